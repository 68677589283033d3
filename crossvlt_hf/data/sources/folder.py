"""One's own data: a folder with a metadata.jsonl, or a data set with columns of images, expressions and masks.

A line of metadata.jsonl is a reference, an object with these keys; paths are relative to the file:

image (or file_name)      path of the image
expression                the text; or `expressions`, several that mean the same
mask                      path of a PNG: 0 and 1, 0 and 255 (the object), 0, 1 and 255 (ignored), or a palette of
                          which 1 is the object and 255 ignored (VOC, DAVIS), of one kind throughout: see
                          `to_label_map` and `ignore_index`
polygons                  instead: a list of polygons [x1, y1, ...] or [[x1, y1], ...], in pixels
segmentation              instead: polygons or run lengths as in COCO
no_target (has_target)    true (false) where nothing is meant; the mask may then be left out
split                     "train" where it is left out
family                    kind of expression
image_id                  the same for all references to one image; its path below the folder where it is left out
ref_id                    the number of the line where it is left out
dataset                   the name of the folder where it is left out

A split may also have a folder of its own, <folder>/<split>/metadata.jsonl. Images are turned upright as their EXIF
data say; masks and polygons are those of the upright image.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Value, concatenate_datasets
from datasets import Image as ImageFeature
from PIL import ExifTags, Image

from ...processing_crossvlt import (
    IGNORED,
    IgnoreIndex,
    Meaning,
    check_ignore_index,
    check_meaning_of_255,
    meaning_of_255,
    opening,
    to_rgb,
)
from ..features import Mask, Picture, open_picture
from ..files import but_has, check_split, inside, require_files
from ..flaws import EmptyMasks, EmptySentences, Flaws, clean_expressions
from ..masks import Merge, decode_mask, open_mask, pack, pack_file, pack_mask, to_run_lengths
from ..record import Record, build_dataset, check_merge, check_records, in_threads, store


METADATA = "metadata.jsonl"
_MASK_KEYS = ("mask", "polygons", "segmentation")


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 ({error}); save it so.") from error


def read_metadata(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a metadata.jsonl with their numbers, from 1; empty ones are left out.

    Raises:
        ValueError: if a line is not an object in JSON.
    """
    for number, line in _read_lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} holds {str(row)[:40]!r}; give an object, {{...}}.")
        yield number, row


@cache
def upright_size(path: str) -> tuple[int, int]:
    """(height, width) of an image when it is turned as its EXIF data say; only its header is read.

    Raises:
        OSError: if it cannot be read.
    """
    with opening(path, "image"), Image.open(path) as image:
        return _turned(image)


def _turned(image: Image.Image) -> tuple[int, int]:
    # Pillow's own reader for PNG would decode the picture first
    turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return image.size if turned else (image.height, image.width)


def _text(row: dict[str, Any], name: str, default: str, where: str) -> str:
    """An entry that is a name: text or a number."""
    value = row.get(name)
    if value is None:
        return default
    if not isinstance(value, str | int):
        raise ValueError(f"{where} has {str(value)[:40]!r} as `{name}`; give text or a number.")
    return str(value)


def _expressions(row: dict[str, Any], where: str, flaws: Flaws) -> list[str]:
    if "expression" not in row and "expressions" not in row:
        raise ValueError(f"{where} has no `expression` or `expressions`{but_has(row)}.")
    if "expression" in row and "expressions" in row:
        raise ValueError(f"{where} has both `expression` and `expressions`; give one.")
    if "expression" in row:
        return flaws.expressions([row["expression"]], where)
    if not isinstance(row["expressions"], list):
        raise ValueError(f"{where} has {str(row['expressions'])[:40]!r} as `expressions`; give a list of texts.")
    return flaws.expressions(row["expressions"], where)


def _has_target(row: dict[str, Any], where: str) -> bool:
    has_target, no_target = row.get("has_target"), row.get("no_target")
    if not all(flag is None or isinstance(flag, bool) for flag in (has_target, no_target)):
        raise ValueError(f"{where} has `has_target` {has_target!r} and `no_target` {no_target!r}; give true or false.")
    if has_target is not None and has_target == no_target:
        raise ValueError(f"{where} contradicts itself: `has_target` and `no_target` are both {has_target}.")
    return not no_target if has_target is None else has_target


def _segmentation(row: dict[str, Any], name: str, size: tuple[int, int], where: str, flaws: Flaws) -> Any:
    """Polygons or run lengths, checked against the size of the image; [] of an object without area, where allowed."""
    segmentation = flaws.polygons(row[name], f"{where}, `{name}`")
    if segmentation == []:
        return []
    try:
        to_run_lengths(segmentation, *size)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}, `{name}`: {error}") from error
    if isinstance(segmentation, list) and all(
        isinstance(polygon, list) and max(map(abs, polygon)) <= 1 < min(size) and len(set(polygon)) > 1
        for polygon in segmentation
    ):
        raise ValueError(
            f"{where} has `{name}` between 0 and 1; give pixels, x times {size[1]} and y times {size[0]}."
        )
    return segmentation


def _mask(
    row: dict[str, Any],
    image: str,
    path: Path,
    root: Path,
    has_target: bool,
    where: str,
    flaws: Flaws,
    ignore_index: IgnoreIndex,
) -> str:
    """The packed mask of a row."""
    given = [name for name in _MASK_KEYS if row.get(name) is not None and row[name] != []]
    if len(given) > 1:
        raise ValueError(f"{where} has `{given[0]}` and `{given[1]}`; give one.")
    empty = any(row.get(name) == [] for name in _MASK_KEYS) and flaws.empty_masks != "error"
    if not given and has_target and not empty:
        raise ValueError(
            f"{where} has none of `mask`, `polygons`, `segmentation`{but_has(row)}; give one, or `no_target`: true."
        )
    if not given:
        return pack([], *upright_size(image))
    if given == ["mask"]:
        return pack_file(inside(path.parent, row["mask"], f"{where}, `mask`,", root), ignore_index)
    if not has_target:
        raise ValueError(f"{where} has `{given[0]}`, but says that nothing is meant; leave one of them out.")
    size = upright_size(image)
    segmentation = _segmentation(row, given[0], size, where, flaws)
    return pack([segmentation] if segmentation else [], *size)


def _files(folder: Path, split: str | None) -> dict[Path, str | None]:
    """The metadata files that can hold rows of a split, with the split that a file is of as a whole."""
    parts = {path: path.parent.name for path in sorted(folder.glob(f"*/{METADATA}"))}
    whole = folder / METADATA
    if whole.is_file() and parts:
        raise ValueError(f"{folder} has a {METADATA} and others in {', '.join(parts.values())}; leave one kind.")
    if whole.is_file():
        return {whole: None}
    if not parts:
        raise FileNotFoundError(f"There is no {METADATA} in {folder}; write one, a line for each reference.")
    wanted = None if split is None else check_split(split, tuple(parts.values()), str(folder))
    return {path: name for path, name in parts.items() if wanted in (None, name)}


def _split_rows(folder: Path, split: str | None) -> Iterator[tuple[Path, int, dict[str, Any], str]]:
    """The rows of a split, or all, with file, line and split."""
    rows = []
    for path, part in _files(folder, split).items():
        for number, row in read_metadata(path):
            named = _text(row, "split", part or "train", f"{path}, line {number}")
            if part not in (None, named):
                raise ValueError(f"{path}, line {number} has the split {named!r} in the folder of {part!r}.")
            rows.append((path, number, row, named))
    if not rows:
        raise ValueError(f"{folder} has no rows in its {METADATA}.")
    wanted = None if split is None else check_split(split, tuple(sorted({row[-1] for row in rows})), str(folder))
    return (row for row in rows if wanted in (None, row[-1]))


def splits_of(folder: Path) -> tuple[str, ...]:
    """The names of the splits of a folder."""
    return tuple(sorted({named for *_, named in _split_rows(folder, None)}))


def _record(
    path: Path,
    number: int,
    row: dict[str, Any],
    split: str,
    image: str,
    folder: Path,
    flaws: Flaws,
    ignore_index: IgnoreIndex,
) -> Record:
    where = f"{path}, line {number}"
    has_target = _has_target(row, where)
    return Record(
        image=image,
        image_id=_text(row, "image_id", os.path.relpath(image, folder), where),
        ref_id=_text(row, "ref_id", str(number), where),
        expressions=_expressions(row, where, flaws),
        mask=_mask(row, image, path, folder, has_target, where, flaws, ignore_index),
        split=split,
        dataset=_text(row, "dataset", folder.resolve().name, where),
        where=where,
        has_target=has_target,
        family=_text(row, "family", "", where),
    )


def load_folder(
    folder: str | Path,
    split: str | None = None,
    *,
    merge: Merge = "union",
    ignore_index: IgnoreIndex = "auto",
    empty_masks: EmptyMasks = "error",
    empty_sentences: EmptySentences = "error",
) -> Dataset:
    """One's own data from a folder with metadata.jsonl: see the module.

    A row without `split` is of "train", so that nothing is by mistake both learnt from and tested on.

    Args:
        folder: path of the folder.
        split: name of a split; None for all rows.
        merge: how the parts of an object join: see `decode_segmentation`.
        ignore_index: the value of pixels to ignore in the files of masks; None for no such value; "auto" is as
            `to_label_map` has it, and refuses masks of which some hold 1 and others 255 alone: it could be ignored.
        empty_masks: what to do with a target without a pixel: see `Flaws`.
        empty_sentences: what to do with an expression without text: see `Flaws`.

    Returns:
        A row for each reference: see `record`.

    Raises:
        OSError: if the folder, an image or a mask is missing.
        ValueError: if there is no such split, or a row is broken; names file and line.
    """
    folder = Path(folder)
    flaws = Flaws(folder.resolve().name, empty_masks, empty_sentences)
    check_merge(merge)
    ignore_index = check_ignore_index(ignore_index)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    upright_size.cache_clear()  # files may have changed since the last time
    rows = []
    for path, number, row, named in _split_rows(folder, split):
        key, where = "image" if "image" in row else "file_name", f"{path}, line {number}"
        if key not in row:
            raise ValueError(f"{where} has no `image` or `file_name`{but_has(row)}.")
        rows.append((path, number, row, named, inside(path.parent, row[key], f"{where}, `{key}`,", folder)))
    # before the records, as these look into the images
    advice = f"Paths are relative to the {METADATA}."
    require_files(((image, f"{path}, line {number}") for path, number, _, _, image in rows), "image", advice)
    records = [_record(*row, folder, flaws, ignore_index) for row in rows]
    files = ((json.loads(record.mask).get("file"), record.where) for record in records)
    masks = [(mask, where) for mask, where in files if mask is not None]
    require_files(masks, "mask", advice)
    if ignore_index == "auto":
        check_meaning_of_255(in_threads(lambda mask: (_meaning(lambda: open_mask(mask)), mask), dict(masks)))
    return build_dataset(records, flaws, merge=merge, upright=True)


def _meaning(load: Callable[[], Any]) -> Meaning:
    """What 255 means in a mask; None of one that cannot be read, as reading its row says why."""
    with suppress(OSError, ValueError):
        return meaning_of_255(load())
    return None


def _stored_mask(mask: Any, image: Image.Image, where: str) -> Image.Image:
    """A mask as a picture with a palette: index 1, white, on the object, and 255, grey, where it is ignored."""
    values = np.asarray(mask)
    if values.shape != (image.height, image.width) or not set(np.unique(values).tolist()) <= {0, 1, 255}:
        raise ValueError(
            f"{where} has a mask of shape {values.shape} with values up to {values.max(initial=0)}; give "
            f"({image.height}, {image.width}) of 0, 1 and 255."
        )
    picture = Image.fromarray(values.astype(np.uint8))
    picture.putpalette(bytes([0, 0, 0] + [255] * 3 + [0] * 253 * 3 + [128] * 3))
    return picture


class _FolderWriter:
    """Writes rows into a folder, an image once for all of its references."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images: dict[str, tuple[str, bytes]] = {}
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True)

    def image(self, row: dict[str, Any], image_id: str, where: str) -> str:
        """The path of the image, written when it is new."""
        image = to_rgb(row["image"])
        digest = blake2b(image.tobytes() + repr(image.size).encode(), digest_size=16).digest()
        if image_id not in self.images:
            path = f"images/{len(self.images):08d}.png"
            image.save(self.folder / path)
            self.images[image_id] = path, digest
        path, known = self.images[image_id]
        if known != digest:
            raise ValueError(f"{where} has the image_id {image_id!r} of another image; give every image its own.")
        return path

    def line(self, number: int, row: dict[str, Any]) -> dict[str, Any]:
        """What metadata.jsonl says of a row, whose files are written."""
        where = f"Row {number}"
        if missing := [name for name in ("image", "expressions", "mask") if row.get(name) is None]:
            raise ValueError(f"{where} has no `{missing[0]}`; give decoded rows as `load_data` does.")
        image_id = str(row.get("image_id") if row.get("image_id") is not None else f"row {number}")
        mask = f"masks/{number:08d}.png"
        _stored_mask(row["mask"], row["image"], where).save(self.folder / mask)
        kept = {name: row[name] for name in ("family", "split", "dataset") if row.get(name)}
        return {
            "image": self.image(row, image_id, where),
            "expressions": clean_expressions(row["expressions"], where),
            "mask": mask,
            "image_id": image_id,
            "ref_id": str(row.get("ref_id", number)),
            "has_target": bool(row.get("has_target", True)),
            **kept,
        }


def write_folder(rows: Iterable[dict[str, Any]], folder: str | Path) -> Path:
    """Write decoded rows as a folder that `load_folder` reads; it appears when it is whole.

    Args:
        rows: such as a data set of `load_data` gives: `image` (PIL), `expressions`, `mask` (height, width) uint8, and,
            where known, `image_id`, `ref_id`, `family`, `has_target`, `split`, `dataset`.
        folder: a new or empty folder.

    Returns:
        The folder.

    Raises:
        FileExistsError: if the folder is not empty.
        ValueError: if there are no rows, or one is broken; names its number.
    """
    folder = Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not an empty folder; give a new one.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        writer, number = _FolderWriter(Path(temporary) / "whole"), 0
        with (writer.folder / METADATA).open("w", encoding="utf-8") as file:
            for number, row in enumerate(rows, start=1):
                file.write(json.dumps(writer.line(number, row), ensure_ascii=False) + "\n")
        if not number:
            raise ValueError("There are no rows to write.")
        writer.folder.replace(folder)
    return folder


def _stored_images(dataset: Dataset, image: str) -> Dataset:
    """A data set with its column of images as cells that are not decoded, {"bytes", "path"}.

    Raises:
        ValueError: if the column has neither images nor their paths.
    """
    feature = dataset.features[image]
    if not (isinstance(feature, ImageFeature | Picture) or feature in (Value("string"), Value("binary"))):
        raise ValueError(f"The column {image!r} must hold images or paths of files, got {feature}.")
    stored = Picture if isinstance(feature, Picture) else ImageFeature
    return dataset.cast_column(image, stored(decode=False))


def _size_of(cell: dict[str, Any], where: str) -> tuple[int, int]:
    """(height, width) of the image in a cell, as it is read; only its header is."""
    inline, upright = cell["bytes"] is not None, cell.get("upright", True)
    if upright and not inline:
        return upright_size(cell["path"])
    name, file = (f"The image in {where}", BytesIO(cell["bytes"])) if inline else (cell["path"], cell["path"])
    with opening(name), Image.open(file) as image:
        return _turned(image) if upright else (image.height, image.width)


def _is_grid(rows: list[Any], height: int, width: int) -> bool:
    """Whether lists are the rows of a mask: polygons are not as many and as long as the image."""
    return len(rows) == height and all(isinstance(row, list) and len(row) == width for row in rows)


class _ColumnMasks:
    """Packs the masks of a column, whatever form they have, each checked against the size of its image."""

    def __init__(
        self,
        dataset: Dataset,
        image: str,
        mask: str,
        name: str,
        merge: Merge,
        flaws: Flaws,
        ignore_index: IgnoreIndex,
    ) -> None:
        stored = _stored_images(dataset, image).select_columns([image, mask])
        if isinstance(stored.features[mask], ImageFeature | Picture):
            stored = _stored_images(stored, mask)
        self.rows, self.image, self.mask, self.name, self.merge, self.flaws = stored, image, mask, name, merge, flaws
        self.ignore_index = IGNORED if isinstance(stored.features[mask], Mask) else ignore_index

    def __iter__(self) -> Iterator[str]:
        if self.ignore_index == "auto":
            numbers = range(len(self.rows))
            check_meaning_of_255((_meaning(partial(self._numbers, number)), self._where(number)) for number in numbers)
        return in_threads(lambda prepared: self._pack(*prepared), self._prepared())

    def _where(self, number: int) -> str:
        return f"{self.name}, row {number}"

    def _numbers(self, number: int) -> Any:
        """A mask as a picture or array, if it is stored as one."""
        row, where = self.rows[number], self._where(number)
        mask = row[self.mask]
        if isinstance(mask, dict) and "bytes" in mask:
            return open_picture(mask, f"The mask in {where}")
        if isinstance(mask, list) and row[self.image] is not None:
            return np.asarray(mask) if _is_grid(mask, *_size_of(row[self.image], where)) else None
        return mask

    def _prepared(self) -> Iterator[tuple[Any, tuple[int, int], str]]:
        """Masks with the sizes of their images and names for messages; polygons are put right."""
        for number, row in enumerate(self.rows):
            where, mask = self._where(number), row[self.mask]
            if row[self.image] is None:
                raise ValueError(f"{where} has no image.")
            height, width = _size_of(row[self.image], where)
            if isinstance(mask, list) and not _is_grid(mask, height, width):
                mask = self.flaws.polygons(mask, where) or None
            yield mask, (height, width), where

    def _pack(self, mask: Any, size: tuple[int, int], where: str) -> str:
        if isinstance(mask, dict) and "bytes" in mask:
            mask = open_picture(mask, f"The mask in {where}")
        try:
            values = decode_mask(mask, *size, self.merge, self.ignore_index)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: {error}") from error
        if values.shape != size:
            raise ValueError(
                f"{where}: the mask is {values.shape[0]}x{values.shape[1]} pixels, the image {size[0]}x{size[1]}; "
                "they must agree."
            )
        return pack_mask(values)


def from_dataset(
    dataset: Dataset,
    *,
    image: str = "image",
    expression: str = "expression",
    mask: str = "mask",
    split: str = "train",
    image_id: str | None = None,
    ref_id: str | None = None,
    family: str | None = None,
    has_target: str | None = None,
    name: str = "dataset",
    merge: Merge = "union",
    ignore_index: IgnoreIndex = "auto",
    empty_masks: EmptyMasks = "error",
    empty_sentences: EmptySentences = "error",
) -> Dataset:
    """A data set with any columns as one of references.

    Masks are checked and packed now; images stay where they are, and are decoded when a row is read.

    Args:
        dataset: the rows.
        image: column of images, or of their paths.
        expression: column of texts, or of lists of texts.
        mask: column of images, (height, width) arrays, polygons, or run lengths: see `decode_mask`.
        split: what the rows' `split` shall be.
        image_id: column of ids, the same for one image; without it every row has an image of its own.
        ref_id: column of ids; without it, the number of the row.
        family: column of kinds of expression.
        has_target: column of bool, false where nothing is meant.
        name: what the rows' `dataset` shall be.
        merge: how the parts of an object join: see `decode_segmentation`.
        ignore_index: the value of pixels to ignore in masks that are pictures or arrays: see `load_folder`.
        empty_masks: what to do with a target without a pixel: see `Flaws`.
        empty_sentences: what to do with an expression without text: see `Flaws`.

    Returns:
        See `record`. The mask of an image that EXIF data turn is that of the upright image.

    Raises:
        OSError: if the file of an image or mask is missing or broken.
        ValueError: if there is no such column, or an expression is empty or a mask broken; names the row.
    """
    light = {
        "expression": expression,
        "image_id": image_id,
        "ref_id": ref_id,
        "family": family,
        "has_target": has_target,
    }
    columns = {key: column for key, column in light.items() if column is not None}
    if missing := [column for column in (image, mask, *columns.values()) if column not in dataset.column_names]:
        raise ValueError(f"The data set has no column {missing[0]!r}; it has {', '.join(dataset.column_names)}.")
    check_merge(merge)
    ignore_index = check_ignore_index(ignore_index)
    plain, flaws = dataset.with_format(None), Flaws(name, empty_masks, empty_sentences)
    upright_size.cache_clear()

    def record(number: int, row: dict[str, Any]) -> Record:
        where = f"{name}, row {number}"
        values = {key: row[column] for key, column in columns.items()}
        expressions = values["expression"]
        return Record(
            image="",  # joined below, so that no image is copied
            image_id=values.get("image_id", number),
            ref_id=values.get("ref_id", number),
            expressions=flaws.expressions(expressions if isinstance(expressions, list) else [expressions], where),
            mask="",
            split=split,
            dataset=name,
            where=where,
            has_target=bool(values.get("has_target", True)),
            family=str(values.get("family") or ""),
        )

    records = [record(*row) for row in enumerate(plain.select_columns(sorted(set(columns.values()))))]
    masks = _ColumnMasks(plain, image, mask, name, merge, flaws, ignore_index)
    checked = check_records(
        (replace(record, mask=packed) for record, packed in zip(records, masks, strict=True)), flaws, merge
    )
    pictures = _stored_images(plain, image).select_columns([image])
    pictures = pictures if image == "image" else pictures.rename_column(image, "image")
    pictures = pictures.cast_column("image", Picture()).select([each.number for each in checked])
    return concatenate_datasets([pictures, store(checked, merge).remove_columns("image")], axis=1)
