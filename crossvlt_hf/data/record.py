"""The record that all data sets share: an image, expressions that refer to the same target in it, and its mask.

A data set is a `datasets.Dataset` whose rows are references, with these columns. Image and mask are decoded when a
row is read; leave out columns with `select_columns` to save that time.

image            PIL image, RGB
image_id         str, the same for all references to one image
ref_id           str
ann_ids          list of str, the annotated objects that are the target: one, several or none
expressions      list of str
mask             numpy array (height, width) of uint8: 1 on the target, 0 off it, 255 ignored; see `mask_to_image`
has_target       bool, False if the expressions refer to nothing in the image
family           str, kind of expression; empty if unknown
split            str
dataset          str
num_expressions  int, the length of `expressions`

Terms used in this package:

record   a row of a data set: image, expressions, mask, ids
target   what an expression refers to: one object, several, or none
pair     an image with one expression, and its mask
request  a row of batch prediction
result   what the model predicts for a pair
sample   what an evaluation keeps of a pair: areas and scores
fused    pixels after attention to the words (the paper's term)
where    file and line or row, for messages
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from datasets import Dataset, Features, List, Value
from PIL import Image

from ..processing_crossvlt import LossyMaskError, is_damaged
from ..system import check_known
from .features import Mask, Picture
from .flaws import Flaws
from .masks import MERGES, Merge, has_object


FEATURES = Features(
    {
        "image": Picture(),
        "image_id": Value("string"),
        "ref_id": Value("string"),
        "ann_ids": List(Value("string")),
        "expressions": List(Value("string")),
        "mask": Mask(),
        "has_target": Value("bool"),
        "family": Value("string"),
        "split": Value("string"),
        "dataset": Value("string"),
        "num_expressions": Value("int32"),
    }
)


# Warnings about one reference, and about several
LEFT_OUT = (
    "reference left out, as its mask is empty",
    "references left out, as their masks are empty",
)
WITHOUT_TARGET = (
    "reference kept without a target, as its mask is empty",
    "references kept without a target, as their masks are empty",
)
UNSAID = ("reference left out, as it has no sentence", "references left out, as they have no sentence")


@dataclass(frozen=True)
class Record:
    """A reference as a reader returns it; see the table of the module.

    Args:
        image: path of the image, or a cell of `Picture` with its bytes.
        mask: packed: see `masks.pack`.
        where: file and row, for messages.
        expressions: a reference with none is left out.
    """

    image: str | Path | dict[str, Any]
    image_id: str | int
    ref_id: str | int
    expressions: list[str]
    mask: str
    split: str
    dataset: str
    where: str
    ann_ids: tuple[str | int, ...] = ()
    has_target: bool = True
    family: str = ""


def check_merge(merge: str) -> None:
    """Raise ValueError unless it is a way to merge the parts of an object."""
    check_known("merge", merge, MERGES)


def mask_to_image(mask: np.ndarray) -> Image.Image:
    """Convert the mask of a record to a visible image: white (255) on the target, black off it, grey (128) ignored.

    Args:
        mask: (height, width) of 0, 1 and 255, or bool.

    Returns:
        Image of mode "L".
    """
    values = np.asarray(mask)
    shades = np.select([values == 1, values == 255], [np.uint8(255), np.uint8(128)], np.uint8(0))
    return Image.fromarray(shades.astype(np.uint8))


def _check_names(record: Record) -> None:
    """Raise ValueError for names that Arrow cannot store; `clean_expressions` checks the expressions."""
    path = record.image.get("path") if isinstance(record.image, dict) else record.image
    names = (path, record.image_id, record.ref_id, record.split, record.dataset, record.family)
    for name in map(str, (*names, *record.ann_ids)):
        if is_damaged(name):
            raise ValueError(f"{record.where} has the name {name[:60]!r}, which is not valid Unicode.")


Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Map a function over items in threads, in order, a few hundred at a time; for decoding files."""
    rest = iter(items)
    with ThreadPoolExecutor() as pool:
        while some := list(islice(rest, 256)):
            yield from pool.map(function, some)


def _found(record: Record, merge: Merge) -> tuple[tuple[int, int] | None, bool] | None:
    """Size of the mask, and whether it has a target; None if it cannot be decoded: reading its row raises the error.

    Raises:
        LossyMaskError: if its file is a JPEG.
    """
    try:
        return has_object(record.mask, merge)
    except LossyMaskError as error:
        raise LossyMaskError(f"{record.where}: {error}") from error
    except (OSError, ValueError, TypeError):
        return None


def _settle(record: Record, found: bool, flaws: Flaws) -> Record | None:
    """Check that the mask is empty if and only if there is no target; None if the record is to be skipped."""
    if found == record.has_target:
        return record
    if found:
        raise ValueError(f"{record.where} has no target, but its mask is not empty; correct one of them.")
    if flaws.empty_masks == "error":
        raise ValueError(
            f"{record.where} has a target, but its mask is empty (outside the image, or without area); correct or "
            "remove it, or set `empty_masks=skip` or `empty_masks=no_target`."
        )
    if flaws.empty_masks == "skip":
        flaws.add(*LEFT_OUT, record.where)
        return None
    flaws.add(*WITHOUT_TARGET, record.where)
    return replace(record, has_target=False, ann_ids=())


def _row(record: Record, size: tuple[int, int] | None, merge: Merge, upright: bool) -> dict[str, Any]:
    """The row to store."""
    stored = record.image if isinstance(record.image, dict) else {"path": str(record.image)}
    height, width = size or (None, None)
    cell = {"bytes": None, "path": None, "upright": upright, "height": height, "width": width, "where": record.where}
    return {
        "image": {**cell, **stored},
        "image_id": str(record.image_id),
        "ref_id": str(record.ref_id),
        "ann_ids": list(map(str, record.ann_ids)),
        "expressions": record.expressions,
        "mask": {"packed": record.mask, "merge": merge, "where": record.where},
        "has_target": record.has_target,
        "family": record.family,
        "split": record.split,
        "dataset": record.dataset,
        "num_expressions": len(record.expressions),
    }


@dataclass(frozen=True)
class Checked:
    """A record that passed the checks.

    Args:
        number: its index among all records.
        record: the record.
        size: (height, width) of its mask; None if the mask could not be decoded.
    """

    number: int
    record: Record
    size: tuple[int, int] | None


def check_records(records: Iterable[Record], flaws: Flaws, merge: Merge = "union") -> list[Checked]:
    """Check expressions and masks of records, and warn of those that are left out.

    Args:
        records: the references.
        flaws: what to do with empty masks; it has counted the flaws that the reader found.
        merge: how to merge the parts of an annotation: see `decode_segmentation`.

    Raises:
        ValueError: if no record is left, or the mask of one contradicts its `has_target`; names the record.
    """
    check_merge(merge)
    records, fit = list(records), []
    found = in_threads(lambda record: _found(record, merge), records)
    for number, (record, mask) in enumerate(zip(records, found, strict=True)):
        if not record.expressions:
            flaws.add(*UNSAID, record.where)
            continue
        _check_names(record)
        size, has_pixels = mask or (None, record.has_target)
        settled = _settle(record, has_pixels, flaws)
        if settled is not None:
            fit.append(Checked(number, settled, size))
    flaws.warn()
    if not fit:
        raise ValueError(f"{flaws.dataset} has no rows.")
    return fit


def store(checked: Sequence[Checked], merge: Merge = "union", upright: bool = False) -> Dataset:
    """Make a data set of checked records: see `build_dataset`."""
    rows = [_row(each.record, each.size, merge, upright) for each in checked]
    return Dataset.from_dict({name: [row[name] for row in rows] for name in FEATURES}, features=FEATURES)


def build_dataset(
    records: Iterable[Record], flaws: Flaws | None = None, *, merge: Merge = "union", upright: bool = False
) -> Dataset:
    """Make a data set of records; images and masks are decoded when a row is read.

    Args:
        records: the references.
        flaws: what to do with empty masks; None makes them an error.
        merge: how to merge the parts of an annotation: see `decode_segmentation`.
        upright: whether to apply the EXIF orientation of images. COCO's annotations refer to the stored pixels.

    Raises:
        ValueError: if there is no record, or the mask of one contradicts its `has_target`; names the record.
    """
    return store(check_records(records, flaws or Flaws("The data set"), merge), merge, upright)
