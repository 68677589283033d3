"""Examples of RefShapes: a scene and expressions that are verified against it."""

import textwrap
from collections.abc import Sequence
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


def _choose(
    rng: np.random.Generator, things: tuple[Thing, ...], families: Sequence[str], split: Split
) -> list[tuple[Query, set[int]]] | None:
    """A query of each family, each of other targets; None if the things do not give that."""
    chosen: list[tuple[Query, set[int]]] = []
    for family in families:
        taken = set().union(*(targets for _, targets in chosen))
        queries = list(QUERIES[family](things))
        for number in rng.permutation(len(queries)):
            if _fits(queries[number], things, split) and not taken & (
                targets := queries[number].select(things) or set()
            ):
                chosen.append((queries[number], targets))
                break
        else:
            return None
    return chosen


def make_scene(
    split: Split,
    index: int,
    *,
    families: Sequence[str],
    side: int = 96,
    seed: int = 0,
    count: tuple[int, int] = (3, 6),
) -> list[Example]:
    """A scene of a split with an expression of each family, no two of which mean the same object.

    To learn from two expressions of one picture is to learn that the words decide.

    Args:
        split: one of `SPLITS`. "train" never shows `UNSEEN_PAIRS` nor says `UNSEEN_RELATIONS`; "unseen_pairs" refers
            to nothing else, "unseen_relations" says nothing else; "longer" has two relations, "paraphrases" has other
            words.
        index: 0 or above; every split is endless.
        families: of `FAMILIES` or `EXTRAS`, one for each expression.
        side: of the picture, in pixels.
        seed: another seed gives other scenes.
        count: the fewest and the most objects, up to 8.

    Returns:
        An example for each family, all of the same scene: the same on every machine and in every process.

    Raises:
        ValueError: if there is no such split or family, or a number is out of range.
    """
    _check(split, index, families, side, count)
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    unseen = split == "unseen_pairs"
    kinds = [kind for kind in product(COLOURS, SHAPES) if unseen or kind not in UNSEEN_PAIRS]
    while True:
        wanted = int(rng.integers(count[0], count[1] + 1))
        things = sample_things(rng, wanted, kinds)
        if len(things) < wanted or (chosen := _choose(rng, things, families, split)) is None:
            continue
        scene = draw(things, rng, side)
        if is_visible(scene):
            return [
                Example(
                    scene,
                    paraphrase(query.words) if split == "paraphrases" else query.words,
                    tuple(sorted(targets)),
                    query.family,
                )
                for query, targets in chosen
            ]


def _check(split: str, index: int, families: Sequence[str], side: int, count: tuple[int, int]) -> None:
    if split not in SPLITS:
        raise ValueError(f"RefShapes has no split {split!r}; give one of {', '.join(SPLITS)}.")
    if not families:
        raise ValueError("`families` is empty; give at least one.")
    for family in families:
        if family not in QUERIES:
            raise ValueError(f"RefShapes has no family {family!r}; give one of {', '.join(QUERIES)}.")
    if index < 0 or side < 32:
        raise ValueError(f"The index is {index} and the side {side}; give 0 or above, and 32 pixels or more.")
    if not 3 <= count[0] <= count[1] <= 8:
        raise ValueError(f"`count` is {count}; give the fewest and the most objects, from 3 to 8.")


def families_at(split: Split, index: int, expressions: int = 1) -> list[str]:
    """The families of a scene's expressions: all six in turn, but in the splits that test one of them."""
    single = {"unseen_relations": "relation", "longer": "two_hop"}
    if split in single:
        return [single[split]] * expressions
    return [FAMILIES[(index * expressions + number) % len(FAMILIES)] for number in range(expressions)]


def make_example(
    split: Split,
    index: int,
    *,
    side: int = 96,
    seed: int = 0,
    family: str | None = None,
    count: tuple[int, int] = (3, 6),
) -> Example:
    """A scene with one expression, of the family given or of the six in turn: see `make_scene`."""
    families = families_at(split, index) if family is None else [family]
    return make_scene(split, index, families=families, side=side, seed=seed, count=count)[0]


def contact_sheet(examples: list[Example], columns: int = 6) -> Image.Image:
    """A picture of examples: each scene with its target outlined in white, its expression below."""
    side, strip = examples[0].scene.image.shape[0], 38
    rows = -(-len(examples) // columns)
    sheet = Image.new("RGB", (columns * (side + 8), rows * (side + strip + 8)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, example in enumerate(examples):
        x, y = (number % columns) * (side + 8) + 4, (number // columns) * (side + strip + 8) + 4
        mask = np.pad(example.mask, 1)
        edge = (mask[1:-1, 1:-1]) & ~(mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:])
        sheet.paste(Image.fromarray(np.where(edge[..., None], 255, example.scene.image).astype(np.uint8)), (x, y))
        lines = textwrap.wrap(example.expression, max(12, side // 5))[:3]
        pen.multiline_text((x, y + side), "\n".join(lines), fill="black", font_size=10, spacing=1)
    return sheet
