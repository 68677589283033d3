"""RefShapes: scenes of drawn shapes and expressions that refer to exactly one of them, made without any file.

A scene is drawn by numpy and Pillow from a seed and an index alone. An expression is a small program (`Phrase`,
`Query`) that is run on the scene: it is kept only if what it selects is exactly the flagged number of objects, and if
no object lies so near a border (just left of, just larger than) that a person would hesitate. Plurals mean two to four
objects; an expression without a target differs in one word from one that means an object of the same scene.

Lengths are shares of the picture's side; (x, y) has its origin at the top left.
"""

from typing import Any

from .examples import (
    EXTRAS,
    FAMILIES,
    SPLITS,
    UNSEEN_PAIRS,
    UNSEEN_RELATIONS,
    Example,
    Families,
    Split,
    contact_sheet,
    families_at,
    in_turn,
    make_example,
    make_scene,
)
from .expressions import vocabulary


def load_refshapes(split: Split, **options: Any) -> Any:
    """RefShapes as a `datasets.Dataset`: see `crossvlt_hf.data.refshapes.dataset.load_refshapes`."""
    from .dataset import load_refshapes

    return load_refshapes(split, **options)


__all__ = [
    "EXTRAS",
    "FAMILIES",
    "SPLITS",
    "UNSEEN_PAIRS",
    "UNSEEN_RELATIONS",
    "Example",
    "Families",
    "Split",
    "contact_sheet",
    "families_at",
    "in_turn",
    "load_refshapes",
    "make_example",
    "make_scene",
    "vocabulary",
]
