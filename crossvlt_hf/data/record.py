"""The one record behind all data sets: an image, the expressions that mean the same object in it, and its mask.

A data set here is a `datasets.Dataset` whose rows are references, with these columns. Image and mask are decoded only
when a row is read; `select_columns` leaves out what need not be.

image            PIL image, RGB
image_id         str, the same for all references to one image
ref_id           str
ann_ids          list of str, the annotated objects that are meant: one, several or none
expressions      list of str
mask             numpy array (height, width) of uint8: 1 on what is meant, 0 off it, 255 ignored; see `mask_to_image`
has_target       bool, False where nothing is meant
family           str, kind of expression; empty where the data do not say
split            str
dataset          str
num_expressions  int, the length of `expressions`

Words of this package:

record   a row of a data set: image, expressions, mask, ids
pair     an image with one expression, and its mask
request  a row of batch prediction
result   what the model says of a pair
sample   what an evaluation keeps of a pair: areas and scores
fused    pixels that have read words (the paper's word)
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

from ..checks import check_known
from ..processing_crossvlt import LossyMaskError
from .features import Mask, Picture
from .flaws import HALF_SURROGATE, Flaws
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


# What is said of one and of many references
LEFT_OUT = (
    "reference left out, as its mask has no pixel",
    "references left out, as their masks have no pixel",
)
WITHOUT_TARGET = (
    "reference made one without a target, as its mask has no pixel",
    "references made ones without a target, as their masks have no pixel",
)
UNSAID = ("reference left out, as it has no sentence", "references left out, as they have no sentence")


@dataclass(frozen=True)
class Record:
    """A reference as a reader gives it: see the module's table.

    Args:
        image: path of the image, or a cell of `Picture` with its bytes.
        mask: packed: see `masks.pack`.
        where: file and row, for messages.
        expressions: without any, the reference is left out.
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
    """Check the choice of how parts of an object join.

    Raises:
        ValueError: if there is no such choice.
    """
    check_known("merge", merge, MERGES)


def mask_to_image(mask: np.ndarray) -> Image.Image:
    """A mask of a record as a picture that shows: white (255) on what is meant, black off it, grey (128) ignored.

    Args:
        mask: (height, width) of 0, 1 and 255, or bool.

    Returns:
        Image of mode "L".
    """
    values = np.asarray(mask)
    shades = np.select([values == 1, values == 255], [np.uint8(255), np.uint8(128)], np.uint8(0))
    return Image.fromarray(shades.astype(np.uint8))


def _check_names(record: Record) -> None:
    """Whether a table can store all that is text; what is said is checked by `clean_expressions`."""
    path = record.image.get("path") if isinstance(record.image, dict) else record.image
    names = (path, record.image_id, record.ref_id, record.split, record.dataset, record.family)
    for name in map(str, (*names, *record.ann_ids)):
        if HALF_SURROGATE.search(name):
            raise ValueError(f"{record.where} has the name {name[:60]!r}: half of a surrogate pair is no text.")


Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The function of every item, in order, a few hundred at a time: files are decoded in threads."""
    rest = iter(items)
    with ThreadPoolExecutor() as pool:
        while some := list(islice(rest, 256)):
            yield from pool.map(function, some)


def _found(record: Record, merge: Merge) -> tuple[tuple[int, int] | None, bool] | None:
    """Size of the mask and whether it has a pixel; None of one that cannot be decoded, as reading its row says why.

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
    """The record, whose mask must have a pixel if and only if something is meant; None if it is to be skipped."""
    if found == record.has_target:
        return record
    if found:
        raise ValueError(f"{record.where} says that nothing is meant, but its mask has pixels; leave one of them out.")
    if flaws.empty_masks == "error":
        raise ValueError(
            f"{record.where} has a target, but its mask has no pixel of it (beside the image, or without area); "
            "repair or remove it, or give `empty_masks`: 'no_target' or 'skip'."
        )
    if flaws.empty_masks == "skip":
        flaws.add(*LEFT_OUT, record.where)
        return None
    flaws.add(*WITHOUT_TARGET, record.where)
    return replace(record, has_target=False, ann_ids=())


def _row(record: Record, size: tuple[int, int] | None, merge: Merge, upright: bool) -> dict[str, Any]:
    """A row as it is stored."""
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
    """A record that was found fit.

    Args:
        number: its place among all.
        record: itself.
        size: (height, width) of its mask; None where the mask could not be decoded.
    """

    number: int
    record: Record
    size: tuple[int, int] | None


def check_records(records: Iterable[Record], flaws: Flaws, merge: Merge = "union") -> list[Checked]:
    """The records whose sentences and masks are fit, with a warning of what was left out.

    Args:
        records: the references.
        flaws: what to do with masks without a pixel; it has counted what the reader met.
        merge: how the parts of an annotation join: see `decode_segmentation`.

    Raises:
        ValueError: if there is no record left, or the mask of one contradicts its `has_target`; names it.
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
    """A data set of checked records: see `build_dataset`."""
    rows = [_row(each.record, each.size, merge, upright) for each in checked]
    return Dataset.from_dict({name: [row[name] for row in rows] for name in FEATURES}, features=FEATURES)


def build_dataset(
    records: Iterable[Record], flaws: Flaws | None = None, *, merge: Merge = "union", upright: bool = False
) -> Dataset:
    """A data set of records, whose images and masks are decoded when a row is read.

    Args:
        records: the references.
        flaws: what to do with masks without a pixel; None makes them an error.
        merge: how the parts of an annotation join: see `decode_segmentation`.
        upright: whether to turn images as their EXIF data say. The annotations of COCO belong to the pixels as they
            are stored.

    Raises:
        ValueError: if there is no record, or the mask of one contradicts its `has_target`; names it.
    """
    return store(check_records(records, flaws or Flaws("The data set"), merge), merge, upright)
