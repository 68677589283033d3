"""RefShapes: drawn scenes of shapes, and expressions that refer to exactly one of them; needs no files.

A scene is drawn with numpy and Pillow from a seed and an index. An expression is a small program (`Phrase`, `Query`)
that selects objects of the scene: it is used only if it selects the right number of them, and no object is so close to
a decision boundary (just left of, just larger than) that people would hesitate. Plurals have two to four targets; an
expression without a target differs in one word from one that refers to an object of the scene.

Programs are chosen without words; the grammar of a language (`LANGUAGES`) puts them into words. The same seed and
index therefore give the same scenes and meanings in all languages.

Lengths are relative to the side of the image; (x, y) has its origin at the top left.
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
from .languages import LANGUAGES
from .vocabulary import vocabulary


def load_refshapes(split: Split, **options: Any) -> Any:
    """RefShapes as a `datasets.Dataset`: see `crossvlt_hf.data.refshapes.dataset.load_refshapes`."""
    from .dataset import load_refshapes

    return load_refshapes(split, **options)


__all__ = [
    "EXTRAS",
    "FAMILIES",
    "LANGUAGES",
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
