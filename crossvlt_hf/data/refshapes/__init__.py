"""RefShapes: scenes of drawn shapes and expressions that refer to exactly one of them, made without any file.

A scene is drawn by numpy and Pillow from a seed and an index alone. An expression is a small program (`Phrase`,
`Query`) that is run on the scene: it is kept only if what it selects is exactly the flagged number of objects, and if
no object lies so near a border (just left of, just larger than) that a person would hesitate.

Lengths are shares of the picture's side; (x, y) has its origin at the top left.
"""

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from .expressions import QUERIES, Query, paraphrase
from .scenes import COLOURS, SHAPES, Scene, Thing, draw, is_visible, sample_things


FAMILIES = ("attribute", "absolute", "relation", "ordinal", "superlative", "negation")
EXTRAS = ("plural", "no_target", "two_hop")

# What the training split never shows together, and `unseen_pairs` and `unseen_relations` always do
UNSEEN_PAIRS = {("red", "star"), ("blue", "triangle"), ("yellow", "square"), ("green", "cross")}
UNSEEN_RELATIONS = {("above", "star"), ("left of", "diamond"), ("below", "circle")}

Split = Literal["train", "validation", "test", "unseen_pairs", "unseen_relations", "longer", "paraphrases"]
SPLITS: tuple[Split, ...] = (
    "train",
    "validation",
    "test",
    "unseen_pairs",
    "unseen_relations",
    "longer",
    "paraphrases",
)


@dataclass(frozen=True)
class Example:
    """One scene with one expression.

    Args:
        scene: the scene.
        expression: what is said.
        targets: indices of the objects that it refers to; one, but for the extras.
        family: one of `FAMILIES` or `EXTRAS`.
    """

    scene: Scene
    expression: str
    targets: tuple[int, ...]
    family: str

    @property
    def mask(self) -> np.ndarray:
        """(side, side) bool: the visible pixels of all targets."""
        return np.asarray(self.scene.masks[list(self.targets)].any(axis=0))


def _fits(query: Query, things: tuple[Thing, ...], split: Split) -> bool:
    """Whether a query selects as many things as its family says, and belongs into a split."""
    selected = query.select(things)
    counts = {"plural": range(2, len(things) + 1), "no_target": range(1)}
    if selected is None or len(selected) not in counts.get(query.family, range(1, 2)):
        return False
    if split == "paraphrases":
        return paraphrase(query.words) != query.words
    if split == "unseen_pairs":
        return all((things[index].colour, things[index].shape) in UNSEEN_PAIRS for index in selected)
    return (query.relation in UNSEEN_RELATIONS) == (split == "unseen_relations")


def _family_of(split: Split, index: int) -> str:
    """The families in turn; the splits that test one of them have only that."""
    single = {"unseen_relations": "relation", "longer": "two_hop"}
    return single.get(split, FAMILIES[index % len(FAMILIES)])


def make_example(
    split: Split,
    index: int,
    *,
    side: int = 96,
    seed: int = 0,
    family: str | None = None,
    count: tuple[int, int] = (3, 6),
) -> Example:
    """The example of a split at an index: the same on every machine and in every process.

    Args:
        split: one of `SPLITS`. "train" never shows `UNSEEN_PAIRS` nor says `UNSEEN_RELATIONS`; "unseen_pairs" refers
            to nothing else, "unseen_relations" says nothing else; "longer" has two relations, "paraphrases" has other
            words.
        index: 0 or above; every split is endless.
        side: of the picture, in pixels.
        seed: another seed gives other scenes.
        family: one of `FAMILIES` or `EXTRAS`; None takes the six families in turn.
        count: the fewest and the most objects.

    Raises:
        ValueError: if there is no such split or family, or the index or side is too small.
    """
    if split not in SPLITS:
        raise ValueError(f"RefShapes has no split {split!r}; give one of {', '.join(SPLITS)}.")
    if family is not None and family not in QUERIES:
        raise ValueError(f"RefShapes has no family {family!r}; give one of {', '.join(QUERIES)}.")
    if index < 0 or side < 32:
        raise ValueError(f"The index is {index} and the side {side}; give 0 or above, and 32 pixels or more.")
    family = family or _family_of(split, index)
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    unseen = split == "unseen_pairs"
    kinds = [kind for kind in product(COLOURS, SHAPES) if unseen or kind not in UNSEEN_PAIRS]
    while True:
        things = sample_things(rng, int(rng.integers(count[0], count[1] + 1)), kinds)
        queries = [query for query in QUERIES[family](things) if _fits(query, things, split)]
        if not queries or len(things) < count[0]:
            continue
        query = queries[rng.integers(len(queries))]
        scene = draw(things, rng, side)
        if is_visible(scene):
            words = paraphrase(query.words) if split == "paraphrases" else query.words
            return Example(scene, words, tuple(sorted(query.select(things) or ())), family)


def contact_sheet(examples: list[Example], columns: int = 6) -> Image.Image:
    """A picture of examples: each scene with its target outlined in white, its expression below."""
    side, strip = examples[0].scene.image.shape[0], 26
    rows = -(-len(examples) // columns)
    sheet = Image.new("RGB", (columns * (side + 8), rows * (side + strip + 8)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, example in enumerate(examples):
        x, y = (number % columns) * (side + 8) + 4, (number // columns) * (side + strip + 8) + 4
        mask = np.pad(example.mask, 1)
        edge = (mask[1:-1, 1:-1]) & ~(mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:])
        sheet.paste(Image.fromarray(np.where(edge[..., None], 255, example.scene.image).astype(np.uint8)), (x, y))
        words = example.expression.split()
        half = (len(words) + 1) // 2
        pen.multiline_text(
            (x, y + side), f"{' '.join(words[:half])}\n{' '.join(words[half:])}", fill="black", font_size=10
        )
    return sheet
