"""Labels of LabelMe: a JSON file per image, with shapes that have a label and points."""

import base64
import binascii
import io
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...processing_crossvlt import load_pixels, opening
from ..files import (
    entries,
    field,
    find_files,
    image_size,
    last_part,
    read_json,
    require_folder,
    slashed,
)
from ..masks import check_lossless, check_polygons, decode_segmentation, encode_mask
from .object_record import ObjectRecord, ObjectScene, ObjectSource, check_label_size, find_image, sizes_of


class LabelMeObjects(ObjectSource):
    """Labels of LabelMe. Shapes with the same `group_id` and label are one object; points and lines are errors.

    Args:
        folder: of the JSON files.
        images: folder of the images; None if `imagePath` is relative to the JSON file.
        name: of the data set.

    Raises:
        OSError: if there is no such folder.
        ValueError: if it has no JSON files.
    """

    def __init__(self, folder: str | Path, images: str | Path | None = None, name: str | None = None) -> None:
        self.folder, self.images = require_folder(folder), None if images is None else Path(images)
        self.files = find_files(self.folder, "**/*.json")
        if not self.files:
            raise ValueError(f"{self.folder} has no JSON files.")
        self.name = name or self.folder.resolve().name
        self.labels = tuple(sorted({label for path in self.files for label in _labels(path)}))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> ObjectScene:
        path = self.files[index]
        table, where = read_json(path), str(path)
        image, size, upright = self._image(table, path)
        groups: dict[Any, list[tuple[int, dict[str, Any]]]] = {}
        for number, shape in enumerate(entries(table, "shapes", where)):
            label, group = _text(shape, f"{where}, shape {number}"), shape.get("group_id")
            key = (label, number) if group is None else (label, "group", str(group))
            groups.setdefault(key, []).append((number, shape))
        objects = tuple(
            ObjectRecord(str(key[0]), _join(shapes, size, where), str(shapes[0][0])) for key, shapes in groups.items()
        )
        return ObjectScene(
            image, path.relative_to(self.folder).with_suffix("").as_posix(), size, objects, where, upright
        )

    def _image(self, table: Any, path: Path) -> tuple[str | bytes, tuple[int, int], bool]:
        """The image, as a path or the bytes of its file, the size of its labels, and whether they are upright."""
        image = self._found_image(table, path)
        upright, stored = sizes_of(image, f"{path}: `imageData`")
        if table.get("imageHeight") is None and table.get("imageWidth") is None:
            return image, upright, True
        labelled = {"height": table.get("imageHeight"), "width": table.get("imageWidth")}
        size = image_size(labelled, str(path))
        if size == stored:
            return image, stored, stored == upright
        check_label_size(size, upright, str(path))
        return image, upright, True

    def _found_image(self, table: Any, path: Path) -> str | bytes:
        """The embedded image, or the path of the one in `imagePath`."""
        where = str(path)
        data = table.get("imageData") if isinstance(table, dict) else None
        if data is not None and not isinstance(data, str):
            raise ValueError(f"{where} must have an image in base64, or null, as `imageData`, got {str(data)[:40]!r}.")
        return _content(data, where, "imageData") if data else self._path(field(table, "imagePath", where), path)

    def _path(self, name: Any, path: Path) -> str:
        """The path of an image that is named in a JSON file; that of another machine is found by its end."""
        end = last_part(name)
        if self.images is not None:
            nested = [str(path.relative_to(self.folder).parent / end)] if isinstance(end, str) else []
            return find_image(self.images, [*nested, end], str(path))
        names = [slashed(name)]
        names += [end] if isinstance(end, str) and Path(end).stem == path.stem else []  # not that of another file
        # the folders beside are of the data set too, such as ../images
        return find_image(path.parent, names, str(path), Path(os.path.abspath(self.folder)).parent)


def _labels(path: Path) -> list[str]:
    """The labels in a file; a broken file raises when its image is read."""
    try:
        shapes = read_json(path)["shapes"]
        return [shape["label"] for shape in shapes if isinstance(shape["label"], str)]
    except (ValueError, TypeError, KeyError, OSError):
        return []


def _text(shape: Any, where: str) -> str:
    label = field(shape, "label", where)
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"{where} must have text as `label`, got {str(label)[:40]!r}.")
    return label


def _content(data: str, where: str, name: str) -> bytes:
    """The bytes of a file that is in the JSON file; ValueError if it is not in base64."""
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{where} has broken base64 in `{name}`: {error}") from error


def _join(shapes: list[tuple[int, dict[str, Any]]], size: tuple[int, int], where: str) -> Any:
    parts = [_shape(shape, size, f"{where}, shape {number}") for number, shape in shapes]
    if all(isinstance(part, list) for part in parts):
        return check_polygons(parts, where)
    masks = [part if not isinstance(part, list) else decode_segmentation([part], *size) for part in parts]
    return encode_mask(np.any(masks, axis=0))


def _points(shape: dict[str, Any], least: int, where: str) -> list[list[float]]:
    points = entries(shape, "points", where)
    pairs = all(
        isinstance(p, list) and len(p) == 2 and all(isinstance(x, int | float) and math.isfinite(x) for x in p)
        for p in points
    )
    if not pairs or len(points) < least:
        raise ValueError(f"{where} must have at least {least} points [x, y], got {str(points)[:60]}.")
    return [[float(x), float(y)] for x, y in points]


def _shape(shape: dict[str, Any], size: tuple[int, int], where: str) -> list[float] | np.ndarray:
    """A shape as a polygon, or as a mask of the size of the image."""
    kind = shape.get("shape_type") or "polygon"
    if kind == "polygon":
        return [x for point in _points(shape, 3, where) for x in point]
    if kind == "rectangle":
        corners = np.array(_points(shape, 2, where))  # two, or all four
        (x0, y0), (x1, y1) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        return [x0, y0, x1, y0, x1, y1, x0, y1]
    if kind == "circle":
        (x, y), (x1, y1) = _points(shape, 2, where)[:2]
        radius, turns = math.hypot(x1 - x, y1 - y), np.linspace(0, 2 * np.pi, 48, endpoint=False)
        return np.stack([x + radius * np.cos(turns), y + radius * np.sin(turns)], axis=1).ravel().tolist()
    if kind == "mask":
        return _embedded_mask(shape, size, where)
    raise ValueError(
        f"{where} must be a polygon, rectangle, circle or mask, got {str(kind)[:40]!r}; draw its outline as a "
        "polygon, or remove it."
    )


def _embedded_mask(shape: dict[str, Any], size: tuple[int, int], where: str) -> np.ndarray:
    left, top = (round(x) for x in _points(shape, 2, where)[0])
    data = field(shape, "mask", where)
    if not isinstance(data, str):
        raise ValueError(f"{where} must have a PNG in base64 as `mask`, got {str(data)[:40]!r}.")
    with opening(f"{where}: `mask`", "image"):
        picture = Image.open(io.BytesIO(_content(data, where, "mask")))
        load_pixels(picture)
    part = np.asarray(check_lossless(picture, where).convert("L")) > 0
    if top < 0 or left < 0 or top + part.shape[0] > size[0] or left + part.shape[1] > size[1]:
        raise ValueError(f"{where} has a mask that extends beyond the image.")
    mask = np.zeros(size, dtype=bool)
    mask[top : top + part.shape[0], left : left + part.shape[1]] = part
    return mask
