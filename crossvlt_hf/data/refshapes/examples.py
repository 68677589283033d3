"""Examples of RefShapes: scenes with verified expressions."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any, Literal

import numpy as np
from PIL import Image

from ...system import check_integer, check_known, check_pair
from .expressions import QUERIES, Query, sample_queries
from .languages import LANGUAGES
from .languages.grammar import Grammar
from .scenes import COLOURS, SHAPES, Scene, Thing, draw, is_visible, sample_things


FAMILIES = ("attribute", "absolute", "relation", "ordinal", "superlative", "negation")
EXTRAS = ("plural", "no_target", "two_hop")
SEVERAL = (2, 4)  # the fewest and the most targets of a plural
RELATIONAL = ("relation", "two_hop", "plural", "no_target")  # families that may have a relation
TRIES = 5000  # scenes drawn until one has the requested expressions

# Combinations that the training split never has, and `unseen_pairs` and `unseen_relations` always have
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
        expression: the text.
        targets: indices of the objects that it refers to: one, except for families of `EXTRAS`.
        family: one of `FAMILIES` or `EXTRAS`.
        counterpart: for "no_target", the expression for an object from which it differs in one word of its meaning;
            in German, articles and endings agree with the word.
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
    """Whether a query has the number of targets of its family, and belongs to a split."""
    fewest, most = {"plural": SEVERAL, "no_target": (0, 0)}.get(query.family, (1, 1))
    if targets is None or not fewest <= len(targets) <= most:
        return False
    meant = {(things[index].colour, things[index].shape) for index in targets}
    named = {(phrase.colour, phrase.word) for phrase in query.phrases}
    if split == "unseen_pairs":
        return meant <= UNSEEN_PAIRS if meant else bool(named & UNSEEN_PAIRS)
    if named & UNSEEN_PAIRS:  # a model would learn that pairs which are only ever denied do not exist
        return False
    if split in ("paraphrases", "longer"):
        return split == "longer" or query.has_synonyms
    return any(relation in UNSEEN_RELATIONS for relation in query.relations) == (split == "unseen_relations")


def _choose(
    rng: np.random.Generator, things: tuple[Thing, ...], families: Sequence[str], split: Split
) -> list[tuple[Query, set[int]]] | None:
    """A query of each family, all with different targets; None if the objects do not allow it."""
    chosen: list[tuple[Query, set[int]]] = []
    for family in families:
        taken = set().union(*(targets for _, targets in chosen))
        said = [query for query, _ in chosen]
        for query in sample_queries(rng, family, things):
            targets = query.select(things)
            if _fits(query, targets, things, split) and not taken & (targets or set()) and query not in said:
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
    language: str = "en",
) -> list[Example]:
    """Draw a scene of a split with an expression of each family, all with different targets.

    Several expressions for one image teach a model to read the words.

    Args:
        split: one of `SPLITS`. "train" has neither `UNSEEN_PAIRS` nor `UNSEEN_RELATIONS`; all targets of
            "unseen_pairs" and all relations of "unseen_relations" are of these; "longer" has two relations per
            expression, "paraphrases" other words.
        index: 0 or above; every split is endless.
        families: of `FAMILIES` or `EXTRAS`, one for each expression.
        side: side of the image, in pixels.
        seed: of the scenes.
        count: the fewest and the most objects, up to 8.
        language: of the expressions, one of `LANGUAGES`; scenes, meanings and targets are the same in all.

    Returns:
        An example for each family, all of the same scene; the same on every machine and in every process.

    Raises:
        ValueError: if there is no such split, family or language, a number is out of range, or there are too few
            objects for the expressions.
    """
    _check(split, families)
    check_scene(index, side, seed, count)
    check_known("language", language, LANGUAGES)
    grammar = LANGUAGES[language].grammar(synonyms=split == "paraphrases")
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
            return [_example(scene, query, targets, grammar) for query, targets in chosen]
    raise ValueError(
        f"Scenes of {count[0]} to {count[1]} objects in split {split!r} have no expressions of the families "
        f"{', '.join(families)}; use more objects or fewer expressions."
    )


def _example(scene: Scene, query: Query, targets: set[int], grammar: Grammar) -> Example:
    counterpart = None if query.counterpart is None else query.counterpart.say(grammar)
    return Example(scene, query.say(grammar), tuple(sorted(targets)), query.family, counterpart)


def _check(split: str, families: Sequence[str]) -> None:
    check_known("split", split, SPLITS)
    if not families:
        raise ValueError("`families` is empty; give at least one.")
    for family in families:
        check_known("family", family, QUERIES)
        if split == "unseen_relations" and family not in RELATIONAL:
            raise ValueError(
                f"The split {split!r} needs a family with relations, {', '.join(RELATIONAL)}, got {family!r}."
            )


LARGEST = 2**31 - 1  # side and seed are stored as integers


def check_scene(index: Any, side: Any, seed: Any, count: Any) -> None:
    """Raise ValueError unless the numbers of a scene are in range: see `make_scene`."""
    check_integer("index", index, 0)
    check_integer("side", side, 32, LARGEST)
    check_integer("seed", seed, 0, 2**63 - 1)
    check_pair("count", count, 3, 8)


Families = Sequence[str] | Mapping[str, float]


def in_turn(families: Families) -> list[str]:
    """One cycle of the order in which expressions use families, each spread as evenly as possible.

    Args:
        families: names, for equal shares, or a dict of shares: positive numbers relative to their sum.

    Raises:
        ValueError: if there is no such family, or the shares are not positive numbers of few digits.
    """
    if isinstance(families, str) or not isinstance(families, Sequence | Mapping) or not families:
        raise ValueError(f"`families` must be a list of names, or a dict of names and shares, got {families!r}.")
    for family in families:
        check_known("family", family, QUERIES)
    shares: Mapping[str, Any] = families if isinstance(families, Mapping) else dict.fromkeys(families, 1)
    if len(shares) < len(families):
        raise ValueError(f"`families` must have each name once, got {families!r}; use a dict for shares.")
    counts = _whole_numbers(shares)
    total, order, credit = sum(counts.values()), [], dict.fromkeys(counts, 0)
    for _ in range(total):
        credit = {family: credit[family] + count for family, count in counts.items()}
        order.append(max(credit, key=credit.__getitem__))  # the first of ties
        credit[order[-1]] -= total
    return order


def _whole_numbers(shares: Mapping[str, Any], most: int = 1000) -> dict[str, int]:
    """Shares as the smallest integers of the same ratios."""
    for family, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < math.inf:
            raise ValueError(f"The share of the family {family!r} must be a number above 0, got {share!r}.")
    exact = {family: Fraction(str(share)) for family, share in shares.items()}
    parts = math.lcm(*(share.denominator for share in exact.values()))
    counts = {family: int(share * parts) for family, share in exact.items()}
    divisor = math.gcd(*counts.values())
    if sum(counts.values()) > most * divisor:
        raise ValueError(f"The shares {dict(shares)} have too many digits; use integers such as 1, 2 and 3.")
    return {family: count // divisor for family, count in counts.items()}


def families_at(split: Split, index: int, expressions: int = 1, families: Iterable[str] | None = None) -> list[str]:
    """The families of the expressions of a scene, in turn.

    None means all six of `FAMILIES`, or the one family that the split tests.
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
    language: str = "en",
) -> Example:
    """Draw a scene with one expression, of a family or of the six in turn: see `make_scene`."""
    families = families_at(split, index) if family is None else [family]
    return make_scene(split, index, families=families, side=side, seed=seed, count=count, language=language)[0]


def contact_sheet(examples: list[Example], columns: int = 6) -> Image.Image:
    """Draw examples in a grid: each scene with its targets outlined, and the expression below."""
    from ...visualization.overlay import arrange, draw_example

    tiles = [draw_example(Image.fromarray(e.scene.image), e.mask, e.expression, e.family) for e in examples]
    return arrange(tiles, columns)
