"""Masks in the formats of data sets: polygons and run lengths of COCO, decoded by pycocotools, and image files."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from ..processing_crossvlt import IgnoreIndex, LossyMaskError, check_mask_format, load_pixels, opening, to_label_map


Merge = Literal["union", "reference"]
MERGES: tuple[Merge, ...] = ("union", "reference")


# pycocotools rasterises in 32 bits without checks
FARTHEST = 100_000


def is_number(value: Any) -> bool:
    """Whether it is a number; bools are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def are_numbers(values: Collection[Any]) -> bool:
    """Whether all values are numbers; annotations of a data set have millions, most of exactly these types."""
    return set(map(type, values)) <= {int, float} or all(map(is_number, values))


def check_polygon(polygon: Any) -> list[float]:
    """Check a polygon [x1, y1, x2, y2, ...].

    Raises:
        ValueError: if it has fewer than three points, or lies far outside any image.
    """
    flat = isinstance(polygon, list | tuple) and are_numbers(polygon)
    if not flat or len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"A polygon must be x1, y1, x2, y2, ... of at least three points, got {str(polygon)[:60]}.")
    if not all(abs(x) <= FARTHEST for x in polygon):  # NaN is not
        raise ValueError(f"The polygon {str(polygon)[:60]} lies far outside any image; give pixels.")
    return [float(x) for x in polygon]


def check_polygons(segmentation: Any, where: str) -> Any:
    """Check the polygons of a segmentation; run lengths are checked when they are decoded.

    Raises:
        ValueError: if a polygon is broken; the message begins with `where`.
    """
    try:
        for part in segmentation if isinstance(segmentation, list) else ():
            if not isinstance(part, dict):
                check_polygon(part)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return segmentation


def _run_lengths(counts: str | bytes) -> list[int]:
    """Undo COCO's compression: five bits per character, low bits first; differences from the fourth run on."""
    runs: list[int] = []
    value = shift = 0
    for character in counts.encode() if isinstance(counts, str) else counts:
        bits = character - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            value -= (bits & 0x10) << (shift - 4)  # the sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def _as_rle(rle: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """Compress run lengths; `counts` may be a string or bytes (compressed already), or a list of numbers."""
    size, counts = rle.get("size"), rle.get("counts")
    size = list(size) if isinstance(size, list | tuple) else size
    readable = counts.isascii() if isinstance(counts, str) else isinstance(counts, bytes | list)
    if size != [height, width] or not readable:
        raise ValueError(
            f"Run lengths have size {size} and counts {str(counts)[:40]!r}; the image is {height}x{width}."
        )
    runs = counts if isinstance(counts, list) else _run_lengths(counts or "")
    if not all(isinstance(run, int) and run >= 0 for run in runs):
        raise ValueError(f"Run lengths must be numbers of pixels, got {str(counts)[:40]!r}.")
    if sum(runs) != height * width:  # pycocotools would leave the other pixels undefined
        raise ValueError(f"Run lengths add up to {sum(runs)}, but the image has {height * width} pixels.")
    if isinstance(counts, list):
        return dict(coco_mask.frPyObjects({"size": size, "counts": counts}, height, width))
    return {"size": size, "counts": counts.encode() if isinstance(counts, str) else counts}


def to_run_lengths(segmentation: Any, height: int, width: int) -> list[dict[str, Any]]:
    """The parts of a segmentation as compressed run lengths; arguments and errors as in `decode_segmentation`."""
    parts = [segmentation] if isinstance(segmentation, dict) else segmentation
    if not isinstance(parts, list | tuple) or not parts:
        raise ValueError(f"A segmentation must be polygons or run lengths, got {str(segmentation)[:60]!r}.")
    if all(isinstance(part, dict) for part in parts):
        return [_as_rle(part, height, width) for part in parts]
    return list(coco_mask.frPyObjects([check_polygon(part) for part in parts], height, width))


def decode_segmentation(segmentation: Any, height: int, width: int, merge: Merge = "union") -> np.ndarray:
    """Decode the mask of one annotation.

    Args:
        segmentation: a list of polygons [x1, y1, x2, y2, ...] in pixels, run lengths {"size", "counts"}, or a list of
            these.
        height: of the image, in pixels.
        width: of the image, in pixels.
        merge: "union" of the parts; with "reference" the overlap of two parts is background, as in the authors'
            evaluation.

    Returns:
        (height, width) uint8 of 0 and 1.

    Raises:
        ValueError: if a polygon or the run lengths are broken.
    """
    layers = coco_mask.decode(to_run_lengths(segmentation, height, width))
    return (layers.sum(axis=2) == 1 if merge == "reference" else layers.any(axis=2)).astype(np.uint8)


def draw_outlines(outlines: Sequence[Sequence[Sequence[float]]], height: int, width: int) -> np.ndarray:
    """Draw polygons with Pillow as the evaluation of PhraseCut does: integer coordinates, borders included.

    Args:
        outlines: lists of [x, y] points in pixels; those of a single point are ignored.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        (height, width) uint8 of 0 and 1.
    """
    canvas = Image.new("L", (width, height))
    for outline in outlines:
        if len(outline) > 1:
            ImageDraw.Draw(canvas).polygon([(int(x), int(y)) for x, y in outline], fill=1, outline=1)
    return np.array(canvas)


def open_mask(path: str | Path) -> Image.Image:
    """Load the image file of a mask.

    Raises:
        OSError: if the file is missing or broken.
        ValueError: if it is larger than Pillow allows.
        LossyMaskError: if it is a JPEG, whatever its suffix.
    """
    with opening(str(path), "mask"), Image.open(path) as image:
        load_pixels(image)
    return check_lossless(image, str(path))


def check_lossless(mask: Image.Image, where: str) -> Image.Image:
    """Check that an image file of a mask is not a JPEG.

    Raises:
        LossyMaskError: if it is; the message begins with `where`.
    """
    try:
        check_mask_format(mask)
    except LossyMaskError as error:
        raise LossyMaskError(f"{where}: {error}") from error
    return mask


def read_mask(path: str | Path, ignore_index: IgnoreIndex = "auto") -> np.ndarray:
    """(height, width) uint8 of 0, 1 and (ignored) 255 from an image file: see `to_label_map`."""
    image = open_mask(path)
    try:
        return to_label_map(image, ignore_index)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def has_rows_of(mask: Any, height: int, width: int) -> bool:
    """Whether a list has the rows of an image; polygons are lists of numbers too, but not as many and as long."""
    return len(mask) == height and all(isinstance(row, list | np.ndarray) and len(row) == width for row in mask)


def decode_mask(
    mask: Any, height: int, width: int, merge: Merge = "union", ignore_index: IgnoreIndex = "auto"
) -> np.ndarray:
    """Decode a mask in any format that a column of a data set may have.

    Args:
        mask: a PIL image; a (height, width) array or nested list; polygons or run lengths; or None for an empty mask.
        height: of the image, in pixels.
        width: of the image, in pixels.
        merge: how to merge parts: see `decode_segmentation`.
        ignore_index: the value of pixels to ignore in an image or array: see `to_label_map`.

    Returns:
        (height, width) uint8 of 0, 1 and (ignored) 255.

    Raises:
        ValueError: if it is none of these.
    """
    if mask is None:
        return np.zeros((height, width), dtype=np.uint8)
    if isinstance(mask, Image.Image):
        return to_label_map(mask, ignore_index)
    if isinstance(mask, np.ndarray) and mask.ndim > 1 and mask.dtype != object:
        label_map = to_label_map(mask, ignore_index)
        if label_map.shape != (height, width):
            raise ValueError(f"A mask must have the shape of its image, {height}x{width}, got {mask.shape}.")
        return label_map
    rows: Any = mask if isinstance(mask, list | np.ndarray) else ()
    if has_rows_of(rows, height, width):
        return to_label_map(np.asarray(mask), ignore_index)
    one_polygon = len(rows) > 0 and not isinstance(rows[0], list | dict)
    return decode_segmentation([mask] if one_polygon else mask, height, width, merge)


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Compressed run lengths of COCO for a (height, width) mask, with `counts` as a string for JSON."""
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(x) for x in rle["size"]], "counts": rle["counts"].decode()}


def pack(annotations: Sequence[Any], height: int, width: int) -> str:
    """Pack the segmentations of all annotations of a reference into the string of a record."""
    return json.dumps({"size": [height, width], "annotations": list(annotations)}, separators=(",", ":"))


def pack_outlines(outlines: Sequence[Any], height: int, width: int) -> str:
    """Pack polygons to be drawn by `draw_outlines`."""
    return json.dumps({"size": [height, width], "outlines": list(outlines)}, separators=(",", ":"))


def pack_file(path: str | Path, ignore_index: IgnoreIndex = "auto") -> str:
    """Pack the path of a mask's image file, and the value to ignore in it: see `to_label_map`."""
    return json.dumps({"file": str(path), "ignore_index": ignore_index})


def is_file(packed: str) -> bool:
    """Whether a packed mask is the path of a file."""
    return "file" in json.loads(packed)


def pack_mask(mask: np.ndarray) -> str:
    """Pack a (height, width) mask of 0, 1 and (ignored) 255."""
    ignored = {"ignored": encode_mask(mask == 255)} if (mask == 255).any() else {}
    return json.dumps({"size": mask.shape, "annotations": [encode_mask(mask == 1)], **ignored}, separators=(",", ":"))


def is_drawn(segmentation: Any, height: int, width: int, merge: Merge) -> bool:
    """Whether the mask of an annotation is not empty; decodes it only if overlaps of parts count."""
    parts = to_run_lengths(segmentation, height, width)
    if merge == "reference" and len(parts) > 1:
        return bool(decode_segmentation(segmentation, height, width, merge).any())
    return bool(coco_mask.area(parts).any())


def has_object(packed: str, merge: Merge = "union") -> tuple[tuple[int, int], bool]:
    """The (height, width) of a packed mask, and whether it has an object.

    Raises:
        OSError: if its file is missing or broken.
        ValueError: if it is broken.
    """
    description = json.loads(packed)
    if "annotations" in description:
        height, width = description["size"]
        found = any(is_drawn(each, height, width, merge) for each in description["annotations"])
        return (height, width), found
    mask = unpack(packed, merge)
    return (mask.shape[0], mask.shape[1]), bool((mask == 1).any())


def unpack(packed: str, merge: Merge = "union") -> np.ndarray:
    """Unpack a mask: (height, width) uint8 of 0, 1 and (ignored) 255; all 0 without annotations.

    The masks of several annotations are always united; `merge` is for the parts of one.
    """
    description = json.loads(packed)
    if "file" in description:
        return read_mask(description["file"], description["ignore_index"])
    height, width = description["size"]
    if "outlines" in description:
        return draw_outlines(description["outlines"], height, width)
    mask = np.zeros((height, width), dtype=np.uint8)
    for segmentation in description["annotations"]:
        mask |= decode_segmentation(segmentation, height, width, merge)
    if "ignored" in description:
        mask[decode_segmentation(description["ignored"], height, width) == 1] = 255
    return mask
