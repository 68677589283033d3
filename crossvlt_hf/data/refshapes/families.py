"""Splits of RefShapes, families of expressions and their shares, and limits of scenes; imports nothing heavy."""

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, get_args

from ...system import check_integer, check_known, check_pair


Split = Literal["train", "validation", "test", "unseen_pairs", "unseen_relations", "longer", "paraphrases"]
SPLITS: tuple[Split, ...] = get_args(Split)
Family = Literal[
    "attribute", "absolute", "relation", "ordinal", "superlative", "negation", "plural", "no_target", "two_hop"
]
FAMILIES, EXTRAS = get_args(Family)[:6], get_args(Family)[6:]
# Kinds of "no_target", by the family of the expression from which they differ in one word. If that is a relation, the
# word can be one of the anchor, the other object ("the star left of the red circle"). A missing anchor has a colour,
# shape or texture that no object of the scene has.
DENIALS = (*(f"no_target_{family}" for family in FAMILIES), "no_target_anchor", "no_target_missing_anchor")
# Families that may have a relation
RELATIONAL = (
    *("relation", "two_hop", "plural", "no_target"),
    *("no_target_relation", "no_target_anchor", "no_target_missing_anchor"),
)
Families = Sequence[str] | Mapping[str, float]
LARGEST_SIDE = 4096  # of an image, in pixels: far beyond what an object of a few colours needs
MOST_SCENES = 2_000_000  # of a data set: with three expressions each, their ids take about 8 GiB


def check_scene(index: Any, side: Any, seed: Any, count: Any) -> None:
    """Raise ValueError unless the numbers of a scene are in range: see `make_scene`."""
    check_integer("index", index, 0)
    check_integer("side", side, 32, LARGEST_SIDE)
    check_integer("seed", seed, 0, 2**63 - 1)
    check_pair("count", count, 3, 8)


def check_counts(scenes: Any, expressions: Any, family: str | None) -> None:
    """Raise ValueError unless the numbers of scenes and of expressions for each are in range: see `load_refshapes`."""
    check_integer("scenes", scenes, 1, MOST_SCENES)
    check_integer("expressions", expressions, 1, 3)
    if family is not None and expressions > 1:
        raise ValueError(f"`expressions` must be 1 if `family` is set, got {expressions} and {family!r}.")


def check_counterparts(counterparts: Any, expressions: int) -> None:
    """Raise ValueError unless `counterparts` of [`make_scene`] fits the number of expressions per scene."""
    if not isinstance(counterparts, bool):
        raise ValueError(f"`counterparts` must be true or false, got {counterparts!r}.")
    if counterparts and expressions < 2:
        raise ValueError("`counterparts` needs several expressions per scene, got 1.")


def check_split(split: str, families: Iterable[str], name: str = "families") -> None:
    """Raise ValueError unless there are such a split and such families, and expressions of the families in it.

    Args:
        split: to check.
        families: to check.
        name: of the argument, for the message.
    """
    check_known("split", split, SPLITS)
    for family in families:
        check_known(name, family, (*get_args(Family), *DENIALS))
        if split == "unseen_relations" and family not in RELATIONAL:
            one_of = f"one of those with relations ({', '.join(RELATIONAL)})"
            raise ValueError(f"`{name}` must be {one_of} for the split {split}, got {family!r}.")


def order_families(split: str, family: str | None, families: Families | None, counterparts: bool = False) -> list[str]:
    """One cycle of the order of families of `load_refshapes`; empty for the families of the split.

    Raises:
        ValueError: if both are given, there is no such split or family, or they do not go together.
    """
    if family is not None and families is not None:
        raise ValueError(f"Set only one of `family` and `families`, got {family!r} and {families!r}.")
    order = [family] if family is not None else [] if families is None else in_turn(families)
    check_split(split, order, "families" if family is None else "family")
    if counterparts and not any(each.startswith("no_target") for each in order):
        raise ValueError("`counterparts` needs a family of expressions without a target, such as no_target.")
    return order


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
        check_known("families", family, (*get_args(Family), *DENIALS))
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
            raise ValueError(f"`families` must have shares above 0, got {share!r} for {family!r}.")
    exact = {family: Fraction(str(share)) for family, share in shares.items()}
    parts = math.lcm(*(share.denominator for share in exact.values()))
    counts = {family: int(share * parts) for family, share in exact.items()}
    divisor = math.gcd(*counts.values())
    if sum(counts.values()) > most * divisor:
        raise ValueError(f"`families` has shares of too many digits, {dict(shares)}; use integers such as 1, 2 and 3.")
    return {family: count // divisor for family, count in counts.items()}


def families_at(split: Split, index: int, expressions: int = 1, families: Iterable[str] | None = None) -> list[str]:
    """The families of the expressions of a scene, in turn.

    None means all six of `FAMILIES`, or the one family that the split tests.
    """
    single = {"unseen_relations": ("relation",), "longer": ("two_hop",)}
    order = tuple(single.get(split, FAMILIES) if families is None else families)
    return [order[(index * expressions + number) % len(order)] for number in range(expressions)]
