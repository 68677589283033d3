"""Forms and families for labelled objects, and options of making expressions; imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ...system import check_integer, check_known, check_least, check_workers


Form = Literal["coco", "yolo", "labelme", "voc", "hub"]
FORMS: tuple[Form, ...] = get_args(Form)
TABLES: dict[str, Form] = {".json": "coco", ".parquet": "hub"}  # forms of single files, by suffix
Family = Literal[
    "noun", "attribute", "absolute", "relation", "ordinal", "superlative", "negation", "plural", "no_target"
]
FAMILIES: tuple[Family, ...] = get_args(Family)
# Families for incomplete labels; their expressions may also fit unlabelled objects
UNCERTAIN_FAMILIES = ("noun", "attribute", "absolute")
OnError = Literal["stop", "skip"]
VALIDATION = "validation"  # the split of images that are held out
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
        exhaustive: false if objects of the named classes may be unlabelled; then only `UNCERTAIN_FAMILIES` are made,
            and others are an error unless all are asked for.
        validation: share of the images with expressions to put into the split "validation"; 0 for none.
        seed: of the choice of expressions, and of images for validation.
        on_error: "stop" at an unreadable image, or "skip" and count it.
        workers: processes that read images and make expressions; the expressions do not depend on their number.
    """

    families: Sequence[str] = FAMILIES
    per_family: int = 1
    per_image: int | None = None
    least_area: float = SMALLEST_TARGET
    colours: bool = True
    exhaustive: bool = True
    validation: float = 0.0
    seed: int = 0
    on_error: OnError = "stop"
    workers: int = 0

    def __post_init__(self) -> None:
        for family in self.families:
            check_known("families", family, FAMILIES)
        others = [family for family in self.families if family not in UNCERTAIN_FAMILIES]
        if not self.exhaustive and others and set(self.families) != set(FAMILIES):
            raise ValueError(
                f"`families` must be of {', '.join(UNCERTAIN_FAMILIES)} where objects may be unlabelled, got "
                f"{others[0]!r}."
            )
        check_integer("per_family", self.per_family, 1)
        check_least("per_image", self.per_image, 1)
        if not 0 <= self.least_area < 1:
            raise ValueError(f"`least_area` must be a number from 0 to below 1, got {self.least_area!r}.")
        if not 0 <= self.validation < 1:
            raise ValueError(f"`validation` must be a share of images, from 0 to below 1, got {self.validation!r}.")
        check_workers("workers", self.workers)
        check_least("seed", self.seed, 0)

    def check_split(self, split: str | None) -> None:
        """Raise ValueError if the split of the references is that of the images to hold out."""
        if self.validation and split == VALIDATION:
            raise ValueError(f"`validation` must be left out if the split of all references is {VALIDATION!r}.")
