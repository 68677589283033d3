"""Families of expressions for labelled objects, and options of their making; imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ...system import check_known, check_least


Family = Literal[
    "noun", "attribute", "absolute", "relation", "ordinal", "superlative", "negation", "plural", "no_target"
]
FAMILIES: tuple[Family, ...] = get_args(Family)
OnError = Literal["stop", "skip"]
SMALLEST_TARGET = 0.008  # as a share of the image


@dataclass(frozen=True)
class ReferOptions:
    """How expressions are made.

    Args:
        families: of `FAMILIES`.
        per_family: the most expressions per family and image.
        per_image: the most expressions per image; None for all.
        least_area: smallest target, as a share of the image.
        colours: whether to decode the images and use colours.
        exhaustive: false if objects of the named classes may be unlabelled.
        seed: of the choice of expressions.
        on_error: "stop" at an unreadable image, or "skip" and count it.
        workers: processes that read images and make expressions; the expressions do not depend on their number.
    """

    families: Sequence[str] = FAMILIES
    per_family: int = 1
    per_image: int | None = None
    least_area: float = SMALLEST_TARGET
    colours: bool = True
    exhaustive: bool = True
    seed: int = 0
    on_error: OnError = "stop"
    workers: int = 0

    def __post_init__(self) -> None:
        for family in self.families:
            check_known("families", family, FAMILIES)
        if self.per_family < 1 or (self.per_image is not None and self.per_image < 1) or not 0 <= self.least_area < 1:
            raise ValueError(
                f"`per_family` and `per_image` must be 1 or more and `least_area` within [0, 1), got "
                f"{self.per_family}, {self.per_image}, {self.least_area}."
            )
        check_least("workers", self.workers, 0)
        check_least("seed", self.seed, 0)
