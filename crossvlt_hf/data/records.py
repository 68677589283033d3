"""The one record behind all data sets: an image, the expressions that mean the same object in it, and its mask.

A data set here is a `datasets.Dataset` whose rows are references. What is heavy is decoded only when a row is read:

image            PIL image, RGB
image_id         str, the same for all references to one image
ref_id           str
ann_ids          list of str, the annotated objects that are meant: one, several or none
expressions      list of str
mask             (height, width) uint8: 1 on what is meant, 0 off it, 255 ignored
has_target       bool, False where nothing is meant
family           str, kind of expression; empty where the data do not say
split            str
dataset          str
num_expressions  int, the length of `expressions`, there without decoding
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value
from PIL import Image

from ..processing_crossvlt import IgnoreIndex, check_ignore_index, opening, to_rgb
from .masks import MERGES, Merge, decode_mask, unpack


# As stored: `image` is a path, or a row number of another data set that holds the images; `mask` is packed
# (see `masks.pack`); `source` says where a row comes from, for messages.
FEATURES = Features(
    {
        "image": Value("string"),
        "image_id": Value("string"),
        "ref_id": Value("string"),
        "ann_ids": List(Value("string")),
        "expressions": List(Value("string")),
        "mask": Value("large_string"),
        "has_target": Value("bool"),
        "family": Value("string"),
        "split": Value("string"),
        "dataset": Value("string"),
        "num_expressions": Value("int32"),
        "source": Value("string"),
    }
)


_HALF_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Record:
    """A reference as a reader gives it: see the module's table; `mask` is packed, `source` names file and row."""

    image: str | Path | int
    image_id: str | int
    ref_id: str | int
    expressions: list[str]
    mask: str
    split: str
    dataset: str
    source: str
    ann_ids: tuple[str | int, ...] = ()
    has_target: bool = True
    family: str = ""


def clean_expressions(expressions: Iterable[Any], source: str) -> list[str]:
    """Expressions without white space around them.

    Raises:
        ValueError: if there is none, or one is empty or no text.
    """
    texts = list(expressions)
    if not texts:
        raise ValueError(f"{source} has no expression; give at least one.")
    for text in texts:
        # half of a surrogate pair is what a damaged escape in JSON leaves; no table can store it
        if not isinstance(text, str) or not text.strip() or _HALF_SURROGATE.search(text):
            raise ValueError(f"{source} has the expression {text!r}; give text.")
    return [text.strip() for text in texts]


@dataclass(frozen=True)
class RecordDecoder:
    """Turn stored rows into decoded ones, whenever they are read.

    Args:
        images: the data set whose rows the records' `image` numbers; None where `image` is a path.
        image_column: of that data set.
        mask_column: of that data set, where it holds the masks too; the records' `mask` then numbers its rows.
        merge: how the parts of an annotation join: see `decode_segmentation`.
        upright: whether to turn images as their EXIF data say. The annotations of COCO belong to the pixels as they
            are stored.
        ignore_index: the value of pixels to ignore in masks that are pictures or arrays: see `to_label_map`.
    """

    images: Dataset | None = None
    image_column: str = "image"
    mask_column: str | None = None
    merge: Merge = "union"
    upright: bool = False
    ignore_index: IgnoreIndex = "auto"

    def __post_init__(self) -> None:
        if self.merge not in MERGES:
            raise ValueError(f"`merge` is {self.merge!r}; give one of {', '.join(MERGES)}.")
        check_ignore_index(self.ignore_index)

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """Decode what is there of image and mask; other columns stay, but for `source`."""
        decoded = {name: values for name, values in batch.items() if name != "source"}
        rows = self._rows(batch)
        if "image" in batch:
            images = batch["image"] if self.images is None else [row[self.image_column] for row in rows]
            decoded["image"] = [self._image(image) for image in images]
        if "mask" in batch:
            sources = batch.get("source", [""] * len(batch["mask"]))
            masks = batch["mask"] if self.mask_column is None else rows
            decoded["mask"] = [self._mask(*row) for row in zip(masks, sources, strict=True)]
        if "image" in batch and "mask" in batch:
            self._check_sizes(decoded, batch)
        return decoded

    def _rows(self, batch: dict[str, list]) -> list[dict[str, Any]]:
        """The rows of the other data set, each read once for image and mask."""
        numbers = batch.get("image") or batch.get("mask") or []
        if self.images is None or ("image" not in batch and self.mask_column is None):
            return []
        sources = batch.get("source") or [f"row {number}" for number in numbers]
        return [self._row(self.images, int(number), source) for number, source in zip(numbers, sources, strict=True)]

    @staticmethod
    def _row(images: Dataset, number: int, source: str) -> dict[str, Any]:
        with opening(source):  # the library decodes images here
            return images[number]

    def _image(self, image: Any) -> Image.Image:
        if isinstance(image, dict):  # a file in a column that is not decoded
            image = image["path"] if image["bytes"] is None else BytesIO(image["bytes"])
        if not isinstance(image, str | BytesIO):
            return to_rgb(image)
        name = image if isinstance(image, str) else "The file in a row"
        with opening(name), Image.open(image) as opened:
            opened.load()
            picture = to_rgb(opened, upright=self.upright)
        picture.info.clear()  # else whoever is given it would turn it after all
        return picture

    def _mask(self, mask: str | dict[str, Any], source: str) -> np.ndarray:
        try:
            if isinstance(mask, str):
                return unpack(mask, self.merge, self.ignore_index)
            image = self._image(mask[self.image_column])
            column = mask[str(self.mask_column)]
            return decode_mask(column, image.height, image.width, self.merge, self.ignore_index)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{source}: {error}") from error

    @staticmethod
    def _check_sizes(decoded: dict[str, list], batch: dict[str, list]) -> None:
        for number, (image, mask) in enumerate(zip(decoded["image"], decoded["mask"], strict=True)):
            if mask.shape != (image.height, image.width):
                source = batch["source"][number] if "source" in batch else ""
                raise ValueError(
                    f"{source}: the mask is {mask.shape[0]}x{mask.shape[1]} pixels, the image "
                    f"{image.height}x{image.width}; they must agree."
                )


def _check_names(record: Record) -> None:
    """Whether a table can store all that is text; what is said is checked by `clean_expressions`."""
    names = (record.image, record.image_id, record.ref_id, record.split, record.dataset, record.family)
    for name in map(str, (*names, *record.ann_ids)):
        if _HALF_SURROGATE.search(name):
            raise ValueError(f"{record.source} has the name {name[:60]!r}: half of a surrogate pair is no text.")


def build_dataset(records: Iterable[Record], decoder: RecordDecoder | None = None) -> Dataset:
    """A data set of records, decoded lazily.

    Raises:
        ValueError: if there is no record.
    """
    columns: dict[str, list] = {name: [] for name in FEATURES}
    for record in records:
        _check_names(record)
        for name, value in vars(record).items():
            columns[name].append(value)
        columns["image"][-1], columns["image_id"][-1] = str(record.image), str(record.image_id)
        columns["ref_id"][-1], columns["ann_ids"][-1] = str(record.ref_id), list(map(str, record.ann_ids))
        columns["num_expressions"].append(len(record.expressions))
    if not columns["image"]:
        raise ValueError("The data set has no rows.")
    return Dataset.from_dict(columns, features=FEATURES).with_transform(decoder or RecordDecoder())
