"""Labels in a data set of `datasets`: lists of objects, a mask and a class per row, or maps of classes."""

import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Value
from datasets import Image as ImageFeature
from numpy.typing import NDArray
from PIL import Image

from ...processing_crossvlt import (
    IgnoreIndex,
    check_ignore_index,
    label_parts,
    load_pixels,
    reason_of,
    to_label_map,
)
from ...system import check_known, check_texts
from ..files import require_columns, stored_size, whole
from ..flaws import Flaws
from ..masks import check_lossless, encode_mask, has_rows_of
from .coco import WITHOUT_MASK, check_segmentation
from .object_record import CROWDS, Crowds, ObjectRecord, ObjectScene, ObjectSource, is_crowd, segmentation_of_map


Kind = Literal["objects", "mask", "instances", "semantic"]
KINDS: tuple[Kind, ...] = ("objects", "mask", "instances", "semantic")

_OBJECTS, _MASKS = ("objects", "annotations"), ("mask", "trimap", "segmentation_mask", "segmentation", "label_mask")
_MAPS = ("annotation", "semantic_map", "label_map", "instances", "label")
_CLASS_KEYS = ("class", "category", "label", "name", "category_id", "class_id")
_MASK_KEYS = ("mask", "segmentation", "rle", "polygon")
BORDER = 255  # of a semantic map, unless a class has that number
SPECK = 0.002  # smaller parts of a semantic map, as a share of the image, are no objects


class HubObjects(ObjectSource):
    """Rows of a data set as images with labelled objects.

    Args:
        dataset: the rows.
        kind: how the labels are stored; None to detect it from the columns.
            "objects": a list of objects with a class and a mask (an image, PNG bytes, polygons or run lengths), or
            a struct of such lists;
            "mask": one object per row: a mask (or a trimap, 1 object, 2 background, 3 border) and a class, as in
            Oxford-IIIT Pet;
            "instances": an image with classes in the red channel and instances in the green channel, as in
            scene_parse_150;
            "semantic": an image of class numbers in one channel; each connected part is an object. 255 is a border,
            unless `names` has a class of that number.
        image: column of images.
        labels: column of the list, mask or map; None for the first column with a usual name.
        class_column: for "mask", column of classes.
        names: class names by number, from 0; None to take them from a `ClassLabel`.
        background: for maps, the numbers that are not classes.
        ignore_index: for masks that are images or arrays, the value of ignored pixels, which belong to no object: see
            `to_label_map`. A mask of 0, 1 and 255 without a palette needs it.
        image_id: column of ids; None for row numbers.
        exhaustive: column of bool, false if objects of the named classes may be unlabelled.
        crowds: "objects" if objects with `iscrowd` are objects: see `CocoObjects`.
        name: of the data set.

    Raises:
        ValueError: if a column is missing, or the classes have no names.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        kind: Kind | None = None,
        image: str = "image",
        labels: str | None = None,
        class_column: str | None = None,
        names: Sequence[str] | None = None,
        background: Sequence[int] = (0,),
        ignore_index: IgnoreIndex = "auto",
        image_id: str | None = None,
        exhaustive: str | None = None,
        crowds: Crowds = "crowds",
        name: str = "dataset",
    ) -> None:
        if names is not None:
            check_texts("names", names)
        if not isinstance(background, list | tuple) or not all(isinstance(each, int) for each in background):
            raise ValueError(f"`background` must be a list of class numbers, got {background!r}.")
        check_known("crowds", crowds, CROWDS)
        self.name, self.image_column, self.background, self.crowds = name, image, tuple(background), crowds
        self.ignore_index = check_ignore_index(ignore_index)
        plain = dataset.with_format(None)
        self.kind, self.column = _find_labels(plain, kind, labels)
        self.class_column = class_column or _first(plain, _CLASS_KEYS) if self.kind == "mask" else None
        self.id_column, self.exhaustive_column = image_id, exhaustive
        needed = [c for c in (image, self.column, self.class_column, image_id, exhaustive) if c is not None]
        require_columns(plain, needed)
        if self.kind == "mask" and self.class_column is None:
            raise ValueError("The data set must have a column of classes; set `class_column`.")
        self.dataset = _undecoded(plain.select_columns(list(dict.fromkeys(needed))), image)
        self.names = list(names) if names is not None else _names(plain, self.class_column or self.column)
        self.labels = tuple(dict.fromkeys(self._all_classes()))

    def _all_classes(self) -> list[str]:
        if self.names is not None:
            absent = self.background if self.kind in ("instances", "semantic") else ()
            return [name for number, name in enumerate(self.names) if number not in absent]
        if self.kind == "mask":
            return sorted({str(value) for value in self.dataset[str(self.class_column)]})
        if self.kind == "objects":
            return sorted({label for things in self.dataset[self.column] for label in _labels(things)})
        raise ValueError("Class numbers need class names; set `names`.")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> ObjectScene:
        row, where = self.dataset[int(index)], f"{self.name}, row {index}"
        flaws = Flaws(self.name, empty_masks="skip")
        image, size = _image(row[self.image_column], where)
        try:
            objects = tuple(self._objects(row, size, where, flaws))
        except (TypeError, OSError, SyntaxError, ValueError) as error:
            message = reason_of(error)
            raise ValueError(message if message.startswith(where) else f"{where}: {message}") from error
        return ObjectScene(
            image=image,
            image_id=str(index if self.id_column is None else row[self.id_column]),
            size=size,
            objects=objects,
            where=where,
            exhaustive=bool(self.exhaustive_column is None or row[self.exhaustive_column]),
            flaws=flaws,
        )

    def _objects(self, row: dict[str, Any], size: tuple[int, int], where: str, flaws: Flaws) -> list[ObjectRecord]:
        value = row[self.column]
        if self.kind == "objects":
            return [
                ObjectRecord(
                    self._class(label, where),
                    to_segmentation(mask, size, f"{where}, object {number}", flaws, self.ignore_index),
                    str(number),
                    crowd and self.crowds == "crowds",
                )
                for number, (label, mask, crowd) in enumerate(_things(value, where))
            ]
        if self.kind == "mask":
            label = self._class(row[str(self.class_column)], where)
            opened = _array_or_image(value, where)
            found = _object_of_trimap(opened)
            found = _object_of(opened, where, self.ignore_index) if found is None else found
            return [ObjectRecord(label, _encoded(found, size, where, flaws), "0")]
        table = _array(value, size, where)
        return self._instances(table, where) if self.kind == "instances" else self._parts(_numbers(table), where)

    def _class(self, value: Any, where: str) -> str:
        if isinstance(value, str):
            return value
        value = whole(value)
        if not isinstance(value, int) or self.names is None or not 0 <= value < len(self.names):
            raise ValueError(f"{where} has the class {value!r}, which has no name.")
        return self.names[value]

    def _instances(self, table: NDArray, where: str) -> list[ObjectRecord]:
        if table.shape[2] < 2:
            raise ValueError(f"{where} must have classes in red and instances in green, got one channel.")
        keys = table[..., 0].astype(np.int64) * 256 + table[..., 1]
        _check_other_channels(keys, table[..., 2:])
        return [
            ObjectRecord(self._class(int(key) // 256, where), segmentation_of_map(keys, int(key)), str(key))
            for key in np.unique(keys)
            if int(key) // 256 not in self.background
        ]

    def _parts(self, table: NDArray, where: str) -> list[ObjectRecord]:
        found = []
        border = () if self.names is not None and len(self.names) > BORDER else (BORDER,)
        for value in (int(v) for v in np.unique(table) if int(v) not in (*self.background, *border)):
            label = self._class(value, where)
            parts = label_parts(torch.from_numpy(table == value), corners=False).numpy()
            for number, area in enumerate(np.bincount(parts.ravel())[1:], start=1):
                if area >= SPECK * parts.size:
                    found.append(ObjectRecord(label, encode_mask(parts == number), f"{value}-{number - 1}"))
        return found


def _first(dataset: Dataset, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in dataset.column_names), None)


def _find_labels(dataset: Dataset, kind: Kind | None, column: str | None) -> tuple[Kind, str]:
    """The kind of the labels, and their column."""
    if kind is not None:
        check_known("kind", kind, KINDS)
    usual = {"objects": _OBJECTS, "mask": _MASKS, "instances": _MAPS, "semantic": _MAPS}
    order: tuple[Kind, ...] = ("objects", "mask", "instances", "semantic") if kind is None else (kind,)
    for candidate in order:
        found = column or _first(dataset, usual[candidate])
        if found is not None and (kind is not None or candidate == _kind_of(dataset, found)):
            return candidate, found
    raise ValueError(
        f"None of the columns {', '.join(dataset.column_names)} has a usual name for labels; set `kind` and set "
        "`labels`."
    )


def _kind_of(dataset: Dataset, column: str) -> Kind:
    require_columns(dataset, [column])
    if isinstance(dataset.features[column], ImageFeature):
        return "mask" if column in _MASKS else "instances" if column == "instances" else "semantic"
    return "objects"


def _undecoded(dataset: Dataset, image: str) -> Dataset:
    """Leave images undecoded; bytes in the column of images are image files."""
    for name, feature in dataset.features.items():
        bytes_of_image = name == image and feature in (Value("binary"), Value("large_binary"))
        if isinstance(feature, ImageFeature) or bytes_of_image:
            dataset = dataset.cast_column(name, ImageFeature(decode=False))
    return dataset


def _names(dataset: Dataset, column: str) -> list[str] | None:
    """The class names in the features of a column."""
    pending: list[Any] = [dataset.features.get(column)]
    while pending:
        feature = pending.pop()
        if isinstance(feature, ClassLabel):
            return list(feature.names)
        if isinstance(feature, dict):
            pending += [feature[key] for key in _CLASS_KEYS if key in feature]
        elif isinstance(feature, list):
            pending += feature
        elif hasattr(feature, "feature"):
            pending.append(feature.feature)
    return None


def _image(value: Any, where: str) -> tuple[str | bytes, tuple[int, int]]:
    """The image file of a row, as a path or its bytes, and its upright (height, width).

    Raises:
        ValueError: if it cannot be read.
    """
    try:
        file = _file(value)
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
            return file, stored_size(picture, upright=True)
    except (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where} has no image that can be read: {reason_of(error)}") from error


def _file(value: Any) -> str | bytes:
    """The path or bytes of an image file in a row."""
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if value is None:
        raise ValueError("the file is missing")
    if not isinstance(value, str | bytes):
        raise ValueError(f"an image must be a file or its bytes, got {str(value)[:40]!r}")
    return value


def _opened(value: Any) -> Image.Image:
    file = _file(value)
    picture = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
    load_pixels(picture)
    return picture


def _array_or_image(value: Any, where: str) -> NDArray | Image.Image:
    """Load a map or mask, which must not be a JPEG."""
    return np.asarray(value) if isinstance(value, list | np.ndarray) else check_lossless(_opened(value), where)


def _check_size(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    if shape[:2] != size:
        raise ValueError(
            f"The labels must have the size of the image, {size[0]}x{size[1]} pixels (height x width), got "
            f"{'x'.join(map(str, shape[:2]))}."
        )


def _array(value: Any, size: tuple[int, int], where: str) -> NDArray:
    """Load a map as (height, width, channels) integers."""
    table = np.asarray(_array_or_image(value, where))
    table = table[..., None] if table.ndim == 2 else table
    if table.ndim != 3:
        raise ValueError(f"A map must have shape (height, width) or (height, width, channels), got {table.shape}.")
    _check_size(table.shape, size)
    if table.dtype.kind not in "bui" and (table.dtype.kind != "f" or (table % 1 != 0).any()):
        raise ValueError("A map must have integers.")
    return table if table.dtype.kind in "ui" else table.astype(np.int64)


def _numbers(table: NDArray) -> NDArray:
    """The (height, width) class numbers of a map, whose channels must agree.

    Raises:
        ValueError: if they do not: each channel has a meaning of its own, or the classes are colours.
    """
    visible = table[..., :-1] if table.shape[2] in (2, 4) and np.ptp(table[..., -1]) == 0 else table  # no alpha
    if (visible != visible[..., :1]).any():
        raise ValueError(
            "A semantic map must have one class number per pixel, but its channels differ. If red has the class and "
            "green the instance, set `kind=instances`; if the classes are colours, convert the map to class numbers."
        )
    return table[..., 0]


def _check_other_channels(keys: NDArray, others: NDArray) -> None:
    """Check that the channels after red and green do not tell instances apart.

    Raises:
        ValueError: if they do.
    """
    seen = np.concatenate([keys.reshape(-1, 1), others.reshape(keys.size, -1)], axis=1)
    if len(np.unique(seen, axis=0)) > len(np.unique(keys)):
        raise ValueError(
            "A map of instances must have the class in red and the instance in green, but pixels with the same red "
            "and green differ in another channel. The full ADE20K has classes in red and green and instances in "
            "blue: convert it, with a class number in red and an instance number in green."
        )


def _object_of_trimap(mask: NDArray | Image.Image) -> NDArray | None:
    """The object of a trimap (1 object, 2 background, 3 border), which may be empty; None for other masks."""
    values = np.asarray(mask)
    if values.ndim == 3 and (values == values[..., :1]).all():
        values = values[..., 0]
    found = set(np.unique(values).tolist())
    return values == 1 if values.ndim == 2 and found <= {1, 2, 3} and found != {1} else None


def _object_of(mask: NDArray | Image.Image, where: str, ignore_index: IgnoreIndex) -> NDArray:
    """The object of a mask, read as all masks of the package; ignored pixels are not part of it.

    Raises:
        ValueError: if its values are ambiguous.
    """
    label_map = to_label_map(mask, ignore_index)
    has_palette = isinstance(mask, Image.Image) and mask.mode in ("P", "PA")
    if ignore_index == "auto" and not has_palette and (label_map == 1).any() and (label_map == 255).any():
        raise ValueError(
            f"{where} has a mask of 0, 1 and 255, so the object is ambiguous. If 255 is ignored, set "
            "`ignore_index=255`; if it is the object, save a mask of 0 and 255."
        )
    return label_map == 1


def _encoded(found: NDArray, size: tuple[int, int], where: str, flaws: Flaws) -> dict[str, Any]:
    """Run lengths of a mask that must have the size of the image; an empty one is a flaw."""
    _check_size(found.shape, size)
    if not found.any():
        flaws.add(*WITHOUT_MASK, where)
    return encode_mask(found)


def _things(value: Any, where: str) -> list[tuple[Any, Any, bool]]:
    """Class, mask and crowd flag of each object in a row."""
    if isinstance(value, dict):  # a struct of lists
        lists = {key: entry for key, entry in value.items() if isinstance(entry, list)}
        value = [dict(zip(lists, entry, strict=True)) for entry in zip(*lists.values(), strict=True)]
    if not isinstance(value, list):
        raise ValueError(f"{where} must have a list of objects, got {str(value)[:40]!r}.")
    found = []
    for number, thing in enumerate(value):
        label = next((thing[key] for key in _CLASS_KEYS if thing.get(key) is not None), None)
        mask = next((thing[key] for key in _MASK_KEYS if thing.get(key) is not None), None)
        if label is None or mask is None:
            present = ", ".join(f"`{key}`" for key in thing if thing[key] is not None)
            raise ValueError(f"{where}, object {number} must have a class and a mask; it has {present or 'neither'}.")
        crowds = [is_crowd(thing.get(name), f"{where}, object {number}", name) for name in ("iscrowd", "is_crowd")]
        found.append((label, mask, any(crowds)))
    return found


def _labels(value: Any) -> list[str]:
    """The classes of the objects in a row; a broken row raises when it is read."""
    try:
        return [str(label) for label, *_ in _things(value, "")]
    except (ValueError, AttributeError):
        return []


def to_segmentation(
    mask: Any, size: tuple[int, int], where: str, flaws: Flaws, ignore_index: IgnoreIndex = "auto"
) -> Any:
    """Convert a mask to polygons or run lengths of COCO, repaired as by `check_segmentation`.

    Raises:
        ValueError: if its format is not supported, its values are ambiguous, or it has another size.
    """
    if isinstance(mask, dict) and {"x", "y"} <= mask.keys():
        mask = [[v for point in zip(mask["x"], mask["y"], strict=True) for v in point]]
        return check_segmentation(mask, size, where, flaws)
    if (isinstance(mask, dict) and "counts" in mask) or (isinstance(mask, list) and not has_rows_of(mask, *size)):
        return check_segmentation(mask, size, where, flaws)
    try:
        return _encoded(_object_of(_array_or_image(mask, where), where, ignore_index), size, where, flaws)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error
