"""`crossvlt refer`: make referring expressions from labelled objects."""

import os
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from ..data.objects.refer_options import FAMILIES, SMALLEST_TARGET, TABLES, Family, Form, OnError, ReferOptions
from ..system import check_least, check_source_exists, refusing_twice
from .common import Command, Settings, checked_settings, needs_extra, parse_settings, warnings_in_one_line


if TYPE_CHECKING:
    from ..data.objects.references import Report


MANY = 500  # images from which processes are started


@dataclass(frozen=True)
class Refer(Command):
    """Make referring expressions from labelled objects.

    Args:
        labels: COCO JSON; folder of YOLO, LabelMe or Pascal VOC; parquet file; or Hub id.
        output: A new folder.
        images: Folder of the images. By default the usual one for this form.
        form: Form of the labels. By default it is detected.
        option: Setting of the reader of this form; may be repeated.
        split: Split of the data set, which is also that of the references: of the Hub, YOLO, or a list of Pascal VOC.
            The labels of COCO and LabelMe have no splits, so that it only names that of the
            references. The default is the only split, or train.
        families: Families of expressions. The default is all.
        per_family: Most expressions per family and image.
        per_image: Most expressions per image. By default there is no limit.
        least_area: Smallest target, as a share of the image.
        colours: Do not decode the images, and make no expressions with colours.
        incomplete: Objects of the named classes may be unlabelled. Makes only nouns, attributes and places, marked as
            uncertain.
        validation: Share of the images, such as 0.1, whose references are of the split validation.
        on_error: What to do at an unreadable row.
        copy: Copy the images instead of linking to them.
        sheet: Number of examples on the contact sheet.
        seed: Seed of the choice of objects and expressions.
        workers: Processes that read images and make expressions. By default one per core from 500 images on.
    """

    labels: Positional[Annotated[str, arg(metavar="LABELS")]]
    output: Annotated[str, arg(metavar="FOLDER")]
    images: Annotated[str | None, arg(metavar="DIR")] = None
    form: Form | None = None
    option: Settings = ()
    split: str | None = None
    families: tuple[Family, ...] = FAMILIES
    per_family: int = 1
    per_image: int | None = None
    least_area: float = SMALLEST_TARGET
    colours: bool = True
    incomplete: bool = False
    validation: float = 0.0
    on_error: OnError = "stop"
    copy: bool = False
    sheet: int = 36
    seed: int = 0
    workers: int | None = None

    def check(self) -> None:
        """Check that settings are name=value, and that numbers are in range."""
        self.choices().check_split(self.split)
        check_least("sheet", self.sheet, 0)
        checked_settings(self.option, "`--option` ")
        check_source_exists(self.labels, TABLES if self.form != "hub" else ())

    def choices(self) -> ReferOptions:
        """How expressions are made."""
        return ReferOptions(
            families=list(self.families),
            per_family=self.per_family,
            per_image=self.per_image,
            least_area=self.least_area,
            colours=self.colours,
            exhaustive=not self.incomplete,
            validation=self.validation,
            seed=self.seed,
            on_error=self.on_error,
            workers=0 if self.workers is None else self.workers,
        )


def refer(options: Refer) -> None:
    """Write the folder, and print counts of images, objects and expressions."""
    with needs_extra("train"):
        from ..data.objects import load_objects, write_references
        from ..data.objects.read import detect_form

    form, choices = options.form or detect_form(options.labels), options.choices()
    with warnings_in_one_line(options), refusing_twice(options.labels, "--option"):
        source = load_objects(
            options.labels,
            form=form,
            images=options.images,
            split=options.split if form in ("hub", "voc", "yolo") else None,
            **parse_settings(options.option),
        )
    if options.workers is None and len(source) >= MANY:
        choices = replace(choices, workers=os.cpu_count() or 1)
    split = options.split or source.split or "train"
    with warnings_in_one_line(options):
        report = write_references(source, options.output, choices, split=split, copy=options.copy, sheet=options.sheet)
    _print_report(report)
    print(f"References, report.json and contact_sheet.png are in {options.output}", file=sys.stderr)


def _print_report(report: "Report") -> None:
    print(f"images: {_listed(report.images)}, unreadable {len(report.broken)}")
    if report.splits:
        print(f"images of each split: {_listed(report.splits)}")
    print(f"objects: {_listed(report.objects)}")
    print(f"left out: {_listed(dict(report.left_out.most_common())) or 'none'}")
    print(f"expressions: {report.families.total()} ({_listed(dict(report.families.most_common()))})")
    print(f"words: {len(report.words)}")


def _listed(counts: Any) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
