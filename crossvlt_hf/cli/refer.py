"""`crossvlt refer`: referring expressions from the labels that people have."""

import argparse
import sys
from typing import Any

from ..training.settings import integer, number
from .evaluate import parse_options
from .extras import needs_extra


FAMILIES = ("noun", "attribute", "absolute", "relation", "ordinal", "superlative", "negation", "plural", "no_target")
FORMS = ("coco", "yolo", "labelme", "voc", "hub")


def write_expressions(arguments: argparse.Namespace) -> None:
    """Write the folder, and say what became of the objects."""
    with needs_extra("train"):
        from ..data.objects import ReferOptions, load_objects, write_references
        from ..data.objects.read import detect_form

    form = arguments.form or detect_form(arguments.labels)
    options = ReferOptions(
        families=arguments.families,
        per_family=arguments.per_family,
        per_image=arguments.per_image,
        least_area=arguments.least_area,
        colours=arguments.colours,
        exhaustive=not arguments.incomplete,
        seed=arguments.seed,
        on_error=arguments.on_error,
    )
    try:
        source = load_objects(
            arguments.labels,
            form=form,
            images=arguments.images,
            split=arguments.split if form in ("hub", "voc") else None,
            **parse_options(arguments.option),
        )
    except TypeError as error:
        raise ValueError(f"{arguments.labels} has no such --option: {error}") from error
    report = write_references(
        source, arguments.output, options, split=arguments.split or "train", copy=arguments.copy, sheet=arguments.sheet
    )
    print(f"images: {_listed(report.images)}, could not be read {len(report.broken)}")
    print(f"objects: {_listed(report.objects)}")
    print(f"left out: {_listed(dict(report.left_out.most_common())) or 'none'}")
    print(f"expressions: {report.families.total()} ({_listed(dict(report.families.most_common()))})")
    print(f"words: {len(report.words)}")
    print(f"References, report.json and contact_sheet.png are in {arguments.output}", file=sys.stderr)


def _listed(counts: Any) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("refer", help="make referring expressions from labelled objects")
    command.add_argument(
        "labels", metavar="LABELS", help="COCO JSON; folder of YOLO, LabelMe or Pascal VOC; parquet file; or Hub id"
    )
    command.add_argument("--images", metavar="DIR", help="folder of the images (default: where the form has it)")
    command.add_argument("--output", metavar="FOLDER", required=True, help="a new folder")
    command.add_argument("--form", choices=FORMS, help="of the labels (default: detected)")
    command.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the form's reader")
    command.add_argument("--split", help="of the references, and of a data set that has some (train)")
    command.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="default: all")
    command.add_argument(
        "--per-family", type=integer, default=1, help="expressions of each family and image (%(default)s)"
    )
    command.add_argument("--per-image", type=integer, help="expressions of each image, at most (default: all)")
    command.add_argument(
        "--least-area", type=number, default=0.008, help="share of the image of an object that is meant (%(default)s)"
    )
    command.add_argument("--no-colours", dest="colours", action="store_false", help="do not decode the images")
    command.add_argument(
        "--incomplete",
        action="store_true",
        help="objects of the named classes may be unlabelled: only nouns, attributes and places, marked as uncertain",
    )
    command.add_argument("--on-error", choices=["stop", "skip"], default="stop", help="at a broken row (%(default)s)")
    command.add_argument("--copy", action="store_true", help="copy the images (default: link to them)")
    command.add_argument("--sheet", type=integer, default=36, help="examples on the contact sheet (%(default)s)")
    command.add_argument("--seed", type=integer, default=0)
    command.set_defaults(run=write_expressions)
