"""Examples of RefShapes: a scene and expressions that are verified against it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any, Literal

import numpy as np
from PIL import Image

from ...checks import check_known
from .expressions import QUERIES, Query, paraphrase, sample_queries
from .scenes import COLOURS, SHAPES, Scene, Thing, draw, is_visible, sample_things


FAMILIES = ("attribute", "absolute", "relation", "ordinal", "superlative", "negation")
EXTRAS = ("plural", "no_target", "two_hop")
SEVERAL = (2, 4)  # the fewest and the most targets of a plural
RELATIONAL = ("relation", "two_hop", "plural", "no_target")  # families whose expressions may hold a relation
TRIES = 5000  # scenes that are drawn until one gives what is asked for

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
        counterpart: of the family "no_target" the expression, one word different, that refers to one object.
    """

    scene: Scene
    expression: str
    targets: tuple[int, ...]
    family: str
    counterpart: str | None = None

    @property
    def mask(self) -> np.ndarray:
        """(side, side) bool: the visible pixels of all targets."""
        return np.asarray(self.scene.masks[list(self.targets)].any(axis=0))


def _fits(query: Query, targets: set[int] | None, things: tuple[Thing, ...], split: Split) -> bool:
    """Whether what a query selects is as many things as its family says, and the query belongs into a split."""
    fewest, most = {"plural": SEVERAL, "no_target": (0, 0)}.get(query.family, (1, 1))
    if targets is None or not fewest <= len(targets) <= most:
        return False
    meant = {(things[index].colour, things[index].shape) for index in targets}
    named = {(phrase.colour, phrase.word) for phrase in query.phrases}
    if split == "unseen_pairs":
        return meant <= UNSEEN_PAIRS if meant else bool(named & UNSEEN_PAIRS)
    if named & UNSEEN_PAIRS:  # what is only ever said where it is not would be learnt as never there
        return False
    if split in ("paraphrases", "longer"):
        return split == "longer" or paraphrase(query.words) != query.words
    return any(relation in UNSEEN_RELATIONS for relation in query.relations) == (split == "unseen_relations")


def _choose(
    rng: np.random.Generator, things: tuple[Thing, ...], families: Sequence[str], split: Split
) -> list[tuple[Query, set[int]]] | None:
    """A query of each family, each of other targets; None if the things do not give that."""
    chosen: list[tuple[Query, set[int]]] = []
    for family in families:
        taken = set().union(*(targets for _, targets in chosen))
        said = {query.words for query, _ in chosen}
        for query in sample_queries(rng, family, things):
            targets = query.select(things)
            if _fits(query, targets, things, split) and not taken & (targets or set()) and query.words not in said:
                chosen.append((query, targets or set()))
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
        ValueError: if there is no such split or family, a number is out of range, or the objects are too few for the
            expressions.
    """
    _check(split, index, families, side, count)
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    unseen = split == "unseen_pairs"
    kinds = [kind for kind in product(COLOURS, SHAPES) if unseen or kind not in UNSEEN_PAIRS]
    for _ in range(TRIES):
        wanted = int(rng.integers(count[0], count[1] + 1))
        things = sample_things(rng, wanted, kinds)
        if len(things) < wanted or (chosen := _choose(rng, things, families, split)) is None:
            continue
        scene = draw(things, rng, side)
        if is_visible(scene):
            return [_example(scene, query, targets, split) for query, targets in chosen]
    raise ValueError(
        f"Scenes of {count[0]} to {count[1]} objects do not give expressions of the families {', '.join(families)} in "
        f"split {split!r}; give more objects or fewer expressions."
    )


def _example(scene: Scene, query: Query, targets: set[int], split: Split) -> Example:
    say = paraphrase if split == "paraphrases" else str
    counterpart = None if query.counterpart is None else say(query.counterpart)
    return Example(scene, say(query.words), tuple(sorted(targets)), query.family, counterpart)


def _check(split: str, index: int, families: Sequence[str], side: int, count: tuple[int, int]) -> None:
    check_known("split", split, SPLITS)
    if not families:
        raise ValueError("`families` is empty; give at least one.")
    for family in families:
        check_known("family", family, QUERIES)
        if split == "unseen_relations" and family not in RELATIONAL:
            raise ValueError(
                f"The family {family!r} has no relations for the split {split!r}; give one of {', '.join(RELATIONAL)}."
            )
    if index < 0 or side < 32:
        raise ValueError(f"The index is {index} and the side {side}; give 0 or above, and 32 pixels or more.")
    if not 3 <= count[0] <= count[1] <= 8:
        raise ValueError(f"`count` is {count}; give the fewest and the most objects, from 3 to 8.")


Families = Sequence[str] | Mapping[str, float]


def in_turn(families: Families) -> list[str]:
    """Families in the order in which expressions take them, over and over, each spread as evenly as its share allows.

    Args:
        families: names, for equal shares, or each with its share: positive numbers, in proportion to their sum.

    Raises:
        ValueError: if a family is not known, or the shares are not positive numbers of few digits.
    """
    if isinstance(families, str) or not isinstance(families, Sequence | Mapping) or not families:
        raise ValueError(f"`families` is {families!r}; give a list of names, or a dict of names and shares.")
    for family in families:
        check_known("family", family, QUERIES)
    shares: Mapping[str, Any] = families if isinstance(families, Mapping) else dict.fromkeys(families, 1)
    if len(shares) < len(families):
        raise ValueError(f"`families` names one twice: {families!r}; give a dict of names and shares.")
    counts = _whole_numbers(shares)
    total, order, credit = sum(counts.values()), [], dict.fromkeys(counts, 0)
    for _ in range(total):
        credit = {family: credit[family] + count for family, count in counts.items()}
        order.append(max(credit, key=credit.__getitem__))  # the first of equals
        credit[order[-1]] -= total
    return order


def _whole_numbers(shares: Mapping[str, Any], most: int = 1000) -> dict[str, int]:
    """Shares as the smallest whole numbers of the same proportions."""
    for family, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < math.inf:
            raise ValueError(f"The share of the family {family!r} is {share!r}; give a number above 0.")
    exact = {family: Fraction(str(share)) for family, share in shares.items()}
    parts = math.lcm(*(share.denominator for share in exact.values()))
    counts = {family: int(share * parts) for family, share in exact.items()}
    divisor = math.gcd(*counts.values())
    if sum(counts.values()) > most * divisor:
        raise ValueError(f"The shares {dict(shares)} are too fine; give whole numbers such as 1, 2 and 3.")
    return {family: count // divisor for family, count in counts.items()}


def families_at(split: Split, index: int, expressions: int = 1, families: Iterable[str] | None = None) -> list[str]:
    """The families of a scene's expressions, those given in turn.

    None takes all six of `FAMILIES`, but in the splits that test one of them that one.
    """
    single = {"unseen_relations": ("relation",), "longer": ("two_hop",)}
    order = tuple(single.get(split, FAMILIES) if families is None else families)
    return [order[(index * expressions + number) % len(order)] for number in range(expressions)]


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
    """A picture of examples: each scene with its targets outlined, its expression below."""
    from ...visualization.overlay import arrange, draw_example

    tiles = [draw_example(Image.fromarray(e.scene.image), e.mask, e.expression, e.family) for e in examples]
    return arrange(tiles, columns)
