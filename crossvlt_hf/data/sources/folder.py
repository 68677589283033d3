"""Data of the user: a folder with a metadata.jsonl, or a data set with columns of images, expressions and masks.

Each line of metadata.jsonl is a reference: a JSON object with these keys. Paths are relative to the file.

image (or file_name)      path of the image
expression                the text; or `expressions`, several for the same target
mask                      path of a PNG: 0 and 1, 0 and 255 (the object), 0, 1 and 255 (ignored), or a palette with 1
                          for the object and 255 for ignored pixels (VOC, DAVIS), all of the same form: see
                          `to_label_map` and `ignore_index`
polygons                  instead of `mask`: a list of polygons [x1, y1, ...] or [[x1, y1], ...], in pixels
segmentation              instead of `mask`: polygons or run lengths as in COCO
no_target (has_target)    true (false) if the expressions have no target; then the mask is optional
split                     "train" by default
family                    kind of expression
image_id                  the same for all references to an image; by default its path below the folder
ref_id                    by default the number of the line
dataset                   by default the name of the folder

Each split may have its own folder, <folder>/<split>/metadata.jsonl. The EXIF orientation of images is applied; masks
and polygons are those of the upright image.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from datasets import Dataset, Value, concatenate_datasets
from datasets import Image as ImageFeature
from PIL import Image

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
from ..files import (
    but_has,
    check_split,
    find_files,
    header_size,
    inside,
    new_folder,
    require_columns,
    require_files,
    require_folder,
    stored_size,
)
from ..flaws import FlawOptions, Flaws, clean_expressions
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
        raise ValueError(f"{path} must be in UTF-8: {error}") from error


def read_metadata(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the lines of a metadata.jsonl with their numbers, from 1, without empty lines.

    Raises:
        ValueError: if a line is not a JSON object.
    """
    for number, line in _read_lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} must be JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} must be an object {{...}}, got {str(row)[:40]!r}.")
        yield number, row


def _text(row: dict[str, Any], name: str, default: str, where: str) -> str:
    """An entry that is text or a number."""
    value = row.get(name)
    if value is None:
        return default
    if not isinstance(value, str | int):
        raise ValueError(f"{where} must have text or a number as `{name}`, got {str(value)[:40]!r}.")
    return str(value)


def _expressions(row: dict[str, Any], where: str, flaws: Flaws) -> list[str]:
    if "expression" not in row and "expressions" not in row:
        raise ValueError(f"{where} has no `expression` or `expressions`{but_has(row)}.")
    if "expression" in row and "expressions" in row:
        raise ValueError(f"{where} has both `expression` and `expressions`; remove one.")
    if "expression" in row:
        return flaws.expressions([row["expression"]], where)
    if not isinstance(row["expressions"], list):
        raise ValueError(f"{where} must have a list of texts as `expressions`, got {str(row['expressions'])[:40]!r}.")
    return flaws.expressions(row["expressions"], where)


def _has_target(row: dict[str, Any], where: str) -> bool:
    has_target, no_target = row.get("has_target"), row.get("no_target")
    if not all(flag is None or isinstance(flag, bool) for flag in (has_target, no_target)):
        raise ValueError(
            f"{where} must have true or false as `has_target` and `no_target`, got {has_target!r} and {no_target!r}."
        )
    if has_target is not None and has_target == no_target:
        raise ValueError(f"{where} must not have {has_target} for both `has_target` and `no_target`.")
    return not no_target if has_target is None else has_target


def _segmentation(row: dict[str, Any], name: str, size: tuple[int, int], where: str, flaws: Flaws) -> Any:
    """Check polygons or run lengths against the size of the image; [] for an object without area, if allowed."""
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
            f"{where} must have `{name}` in pixels, got values from 0 to 1; multiply x by {size[1]} and y by "
            f"{size[0]}."
        )
    return segmentation


@dataclass(frozen=True)
class _Line:
    """A row of a metadata.jsonl."""

    path: Path
    number: int
    row: dict[str, Any]
    split: str

    @property
    def where(self) -> str:
        return f"{self.path}, line {self.number}"


def _files(folder: Path, split: str | None) -> dict[Path, str | None]:
    """The metadata files that may have rows of a split, and the split of each file if it has its own folder."""
    parts = {path: path.parent.name for path in find_files(folder, f"*/{METADATA}")}
    whole = folder / METADATA
    if whole.is_file() and parts:
        raise ValueError(
            f"{folder} must have a {METADATA} for all splits or for each split, got both (in "
            f"{', '.join(parts.values())})."
        )
    if whole.is_file():
        return {whole: None}
    if not parts:
        raise FileNotFoundError(f"There is no {METADATA} in {folder}; write one, with a line for each reference.")
    wanted = None if split is None else check_split(split, tuple(parts.values()), str(folder))
    return {path: name for path, name in parts.items() if wanted in (None, name)}


def _split_lines(folder: Path, split: str | None) -> Iterator[_Line]:
    """The rows of a split, or all rows."""
    lines = []
    for path, part in _files(folder, split).items():
        for number, row in read_metadata(path):
            named = _text(row, "split", part or "train", f"{path}, line {number}")
            if part not in (None, named):
                raise ValueError(f"{path}, line {number} has the split {named!r}, but is in the folder {part!r}.")
            lines.append(_Line(path, number, row, named))
    if not lines:
        raise ValueError(f"{folder} has no rows in its {METADATA}.")
    wanted = None if split is None else check_split(split, tuple(sorted({line.split for line in lines})), str(folder))
    return (line for line in lines if wanted in (None, line.split))


def splits_of(folder: Path) -> tuple[str, ...]:
    """The names of the splits of a folder."""
    return tuple(sorted({line.split for line in _split_lines(folder, None)}))


class _FolderReader:
    """Reads records from the rows of a folder."""

    def __init__(self, folder: Path, flaws: Flaws, ignore_index: IgnoreIndex) -> None:
        self.folder, self.flaws, self.ignore_index = folder, flaws, ignore_index

    def image(self, line: _Line) -> str:
        """The path of the image of a row."""
        key = "image" if "image" in line.row else "file_name"
        if key not in line.row:
            raise ValueError(f"{line.where} has no `image` or `file_name`{but_has(line.row)}.")
        return inside(line.path.parent, line.row[key], f"{line.where}, `{key}`,", self.folder)

    def record(self, line: _Line, image: str) -> Record:
        row, where = line.row, line.where
        has_target = _has_target(row, where)
        return Record(
            image=image,
            image_id=_text(row, "image_id", os.path.relpath(image, self.folder), where),
            ref_id=_text(row, "ref_id", str(line.number), where),
            expressions=_expressions(row, where, self.flaws),
            mask=self._mask(line, image, has_target),
            split=line.split,
            dataset=_text(row, "dataset", self.folder.resolve().name, where),
            where=where,
            has_target=has_target,
            family=_text(row, "family", "", where),
        )

    def _mask(self, line: _Line, image: str, has_target: bool) -> str:
        """The packed mask of a row."""
        row, where = line.row, line.where
        given = [name for name in _MASK_KEYS if row.get(name) is not None and row[name] != []]
        if len(given) > 1:
            raise ValueError(f"{where} has both `{given[0]}` and `{given[1]}`; remove one.")
        empty = any(row.get(name) == [] for name in _MASK_KEYS) and self.flaws.empty_masks != "error"
        if not given and has_target and not empty:
            names = "`mask`, `polygons`, `segmentation` or `no_target`: true"
            empty_ones = [f"`{name}` is {json.dumps(row[name])}" for name in _MASK_KEYS if name in row]
            reason = f"; its {', its '.join(empty_ones)}" if empty_ones else but_has(row)
            raise ValueError(f"{where} must have {names}{reason}.")
        if not given:
            return pack([], *header_size(image))
        if given == ["mask"]:
            file = inside(line.path.parent, row["mask"], f"{where}, `mask`,", self.folder)
            return pack_file(file, self.ignore_index)
        if not has_target:
            raise ValueError(f"{where} has both `{given[0]}` and no target; remove one.")
        size = header_size(image)
        segmentation = _segmentation(row, given[0], size, where, self.flaws)
        return pack([segmentation] if segmentation else [], *size)

    def check_masks(self, records: Iterable[Record], advice: str) -> None:
        """Check that the files of masks exist, and that 255 means the same in all of them, also of other splits."""
        files = ((json.loads(record.mask).get("file"), record.where) for record in records)
        masks = [(mask, where) for mask, where in files if mask is not None]
        require_files(masks, "mask", advice)
        if self.ignore_index == "auto":
            every = dict(masks) | dict.fromkeys(self._all_masks() if masks else ())
            check_meaning_of_255(in_threads(lambda mask: (_meaning_in(mask), mask), every))

    def _all_masks(self) -> Iterator[str]:
        """The files of masks of all splits. What is broken in another split is an error when that is loaded."""
        for path in _files(self.folder, None):
            with suppress(ValueError):
                for _, row in read_metadata(path):
                    with suppress(ValueError):
                        yield inside(path.parent, row.get("mask"), "", self.folder)


def load_folder(
    folder: str | Path,
    split: str | None = None,
    *,
    merge: Merge = "union",
    ignore_index: IgnoreIndex = "auto",
    **flaws: Unpack[FlawOptions],
) -> Dataset:
    """Load data from a folder with a metadata.jsonl: see the module.

    Rows without `split` belong to "train", so that no row is used both for training and for testing by mistake.

    Args:
        folder: path of the folder.
        split: name of a split; None for all rows.
        merge: how to merge the parts of an object: see `decode_segmentation`.
        ignore_index: value of pixels to ignore in files of masks; None for no such value; "auto" as in `to_label_map`.
            "auto" refuses data in which some masks have 1 and others only 255, which could be either; it reads the
            files of masks of all splits, once per process (about 40 s for 10,000 masks of 640x480 on two cores).
        flaws: `empty_masks` and `empty_sentences`: see `Flaws`.

    Returns:
        A row for each reference: see `record`.

    Raises:
        OSError: if the folder, an image or a mask is missing.
        ValueError: if there is no such split, or a row is broken; names file and line.
    """
    folder = Path(folder)
    found = Flaws(folder.resolve().name, **flaws)
    check_merge(merge)
    reader = _FolderReader(require_folder(folder), found, check_ignore_index(ignore_index))
    header_size.cache_clear()  # files may have changed
    lines = [(line, reader.image(line)) for line in _split_lines(folder, split)]
    advice = f"Paths are relative to the {METADATA}."
    require_files(((image, line.where) for line, image in lines), "image", advice)  # before their headers are read
    records = [reader.record(line, image) for line, image in lines]
    reader.check_masks(records, advice)
    return build_dataset(records, found, merge=merge, upright=True)


def _meaning(load: Callable[[], Any]) -> Meaning:
    """What 255 means in a mask; None if it cannot be read, which is an error when its row is read."""
    with suppress(OSError, ValueError):
        return meaning_of_255(load())
    return None


def _meaning_in(path: str) -> Meaning:
    """What 255 means in the file of a mask, which is read once for all splits; None as for `_meaning`."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return _meaning_of_file(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=2**20)
def _meaning_of_file(path: str, changed: int, size: int) -> Meaning:
    """What 255 means in a file of a mask, as it was changed at a time and has a size."""
    return _meaning(lambda: open_mask(path))


def _stored_mask(mask: Any, image: Image.Image, where: str) -> Image.Image:
    """Convert a mask to an image with a palette: index 1, white, for the object, and 255, grey, for ignored pixels."""
    values = np.asarray(mask)
    if values.shape != (image.height, image.width) or not set(np.unique(values).tolist()) <= {0, 1, 255}:
        raise ValueError(
            f"The mask of {where} must have shape ({image.height}, {image.width}) and values 0, 1 and 255, got shape "
            f"{values.shape} and values up to {values.max(initial=0)}."
        )
    picture = Image.fromarray(values.astype(np.uint8))
    picture.putpalette(bytes([0, 0, 0] + [255] * 3 + [0] * 253 * 3 + [128] * 3))
    return picture


class _FolderWriter:
    """Writes rows to a folder, each image once for all of its references."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images: dict[str, tuple[str, bytes]] = {}
        for name in ("images", "masks"):
            (folder / name).mkdir()

    def image(self, row: dict[str, Any], image_id: str, where: str) -> str:
        """Write an image unless it is written already, and return its path."""
        image = to_rgb(row["image"])
        digest = blake2b(image.tobytes() + repr(image.size).encode(), digest_size=16).digest()
        if image_id not in self.images:
            path = f"images/{len(self.images):08d}.png"
            image.save(self.folder / path)
            self.images[image_id] = path, digest
        path, known = self.images[image_id]
        if known != digest:
            raise ValueError(f"{where} must have its own image_id, got {image_id!r}, which another image has.")
        return path

    def line(self, number: int, row: dict[str, Any]) -> dict[str, Any]:
        """Write the files of a row, and return its line in metadata.jsonl."""
        where = f"Row {number}"
        if missing := [name for name in ("image", "expressions", "mask") if row.get(name) is None]:
            raise ValueError(f"{where} must have `{missing[0]}`, as rows of `load_data` have.")
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
    """Write decoded rows to a folder for `load_folder`, atomically.

    Args:
        rows: such as a data set of `load_data`: `image` (PIL), `expressions`, `mask` (height, width) uint8, and
            optionally `image_id`, `ref_id`, `family`, `has_target`, `split`, `dataset`.
        folder: a new or empty folder.

    Returns:
        The folder.

    Raises:
        FileExistsError: if the folder is not empty.
        ValueError: if there are no rows, or one is broken; names its number.
    """
    with new_folder(folder) as whole:
        writer, number = _FolderWriter(whole), 0
        with (whole / METADATA).open("w", encoding="utf-8") as file:
            for number, row in enumerate(rows, start=1):
                file.write(json.dumps(writer.line(number, row), ensure_ascii=False) + "\n")
        if not number:
            raise ValueError("There are no rows to write.")
    return Path(folder).absolute()


def _stored_images(dataset: Dataset, image: str) -> Dataset:
    """Leave a column of images undecoded, as cells {"bytes", "path"}.

    Raises:
        ValueError: if the column has neither images nor their paths.
    """
    feature = dataset.features[image]
    if not (isinstance(feature, ImageFeature | Picture) or feature in (Value("string"), Value("binary"))):
        raise ValueError(f"The column {image!r} must hold images or paths of files, got {feature}.")
    stored = Picture if isinstance(feature, Picture) else ImageFeature
    return dataset.cast_column(image, stored(decode=False))


def _size_of(cell: dict[str, Any], where: str) -> tuple[int, int]:
    """(height, width) of the image in a cell, as it is decoded; reads only its header."""
    inline, upright = cell["bytes"] is not None, cell.get("upright", True)
    if upright and not inline:
        return header_size(cell["path"])
    name, file = (f"The image in {where}", BytesIO(cell["bytes"])) if inline else (cell["path"], cell["path"])
    with opening(name), Image.open(file) as image:
        return stored_size(image, upright)


def _is_grid(rows: list[Any], height: int, width: int) -> bool:
    """Whether lists are the rows of a mask, not polygons: they have the size of the image."""
    return len(rows) == height and all(isinstance(row, list) and len(row) == width for row in rows)


@dataclass(frozen=True)
class _Columns:
    """A data set, and the names of its columns.

    Args:
        rows: the data set, not formatted.
        image: column of images.
        mask: column of masks.
        others: other columns, by their names in records.
        name: of the data set, for messages.
    """

    rows: Dataset
    image: str
    mask: str
    others: dict[str, str]
    name: str

    def __post_init__(self) -> None:
        require_columns(self.rows, (self.image, self.mask, *self.others.values()))

    def where(self, number: int) -> str:
        return f"{self.name}, row {number}"

    def records(self, split: str, flaws: Flaws) -> Iterator[Record]:
        """Records without image and mask, which must be neither decoded nor copied."""
        for number, row in enumerate(self.rows.select_columns(sorted(set(self.others.values())))):
            values = {key: row[column] for key, column in self.others.items()}
            texts = values["expression"]
            yield Record(
                image="",
                image_id=values.get("image_id", number),
                ref_id=values.get("ref_id", number),
                expressions=flaws.expressions(texts if isinstance(texts, list) else [texts], self.where(number)),
                mask="",
                split=split,
                dataset=self.name,
                where=self.where(number),
                has_target=bool(values.get("has_target", True)),
                family=str(values.get("family") or ""),
            )

    def images(self) -> Dataset:
        """The column of images, with the name `image`."""
        images = _stored_images(self.rows, self.image).select_columns([self.image])
        return (images if self.image == "image" else images.rename_column(self.image, "image")).cast_column(
            "image", Picture()
        )


class _ColumnMasks:
    """Packs the masks of a column in any form, and checks them against the sizes of their images."""

    def __init__(self, columns: _Columns, merge: Merge, flaws: Flaws, ignore_index: IgnoreIndex) -> None:
        self.columns, self.merge, self.flaws = columns, merge, flaws
        self.image, self.mask = columns.image, columns.mask
        stored = _stored_images(columns.rows, self.image).select_columns([self.image, self.mask])
        if isinstance(stored.features[self.mask], ImageFeature | Picture):
            stored = _stored_images(stored, self.mask)
        self.rows = stored
        self.ignore_index = IGNORED if isinstance(stored.features[self.mask], Mask) else ignore_index

    def __iter__(self) -> Iterator[str]:
        if self.ignore_index == "auto":
            numbers = range(len(self.rows))
            meanings = ((_meaning(partial(self._values, number)), self.columns.where(number)) for number in numbers)
            check_meaning_of_255(meanings)
        return in_threads(lambda prepared: self._pack(*prepared), self._prepared())

    def _values(self, number: int) -> Any:
        """A mask as an image or array, if it is stored as one."""
        row, where = self.rows[number], self.columns.where(number)
        mask = row[self.mask]
        if isinstance(mask, dict) and "bytes" in mask:
            return open_picture(mask, f"The mask in {where}")
        if isinstance(mask, list) and row[self.image] is not None:
            return np.asarray(mask) if _is_grid(mask, *_size_of(row[self.image], where)) else None
        return mask

    def _prepared(self) -> Iterator[tuple[Any, tuple[int, int], str]]:
        """Masks, with checked polygons, sizes of their images, and names for messages."""
        for number, row in enumerate(self.rows):
            where, mask = self.columns.where(number), row[self.mask]
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
                f"{where}: the mask is {values.shape[0]}x{values.shape[1]} pixels (height x width), the image "
                f"{size[0]}x{size[1]}; they must agree."
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
    **flaws: Unpack[FlawOptions],
) -> Dataset:
    """Convert a data set with any columns to records.

    Masks are checked and packed now; images are decoded when a row is read.

    Args:
        dataset: the rows.
        image: column of images, or of their paths.
        expression: column of texts, or of lists of texts.
        mask: column of images, (height, width) arrays, polygons, or run lengths: see `decode_mask`.
        split: `split` of the records.
        image_id: column of ids, the same for the same image; None for a different image in each row.
        ref_id: column of ids; None for the numbers of the rows.
        family: column of kinds of expression.
        has_target: column of bool, False without a target.
        name: `dataset` of the records.
        merge: how to merge the parts of an object: see `decode_segmentation`.
        ignore_index: value of pixels to ignore in masks that are images or arrays: see `load_folder`.
        flaws: `empty_masks` and `empty_sentences`: see `Flaws`.

    Returns:
        See `record`. The mask of an image with an EXIF orientation is that of the upright image.

    Raises:
        OSError: if the file of an image or mask is missing or broken.
        ValueError: if there is no such column, or an expression is empty or a mask broken; names the row.
    """
    others = {"expression": expression, "image_id": image_id, "ref_id": ref_id}
    others |= {"family": family, "has_target": has_target}
    known = {key: column for key, column in others.items() if column is not None}
    columns = _Columns(dataset.with_format(None), image, mask, known, name)
    return _join(columns, split, Flaws(name, **flaws), merge, check_ignore_index(ignore_index))


def _join(columns: _Columns, split: str, flaws: Flaws, merge: Merge, ignore_index: IgnoreIndex) -> Dataset:
    """Check records with their masks, and join them to the images."""
    check_merge(merge)
    header_size.cache_clear()  # files may have changed
    records = list(columns.records(split, flaws))
    masks = _ColumnMasks(columns, merge, flaws, ignore_index)
    complete = (replace(record, mask=mask) for record, mask in zip(records, masks, strict=True))
    checked = check_records(complete, flaws, merge)
    images = columns.images().select([each.number for each in checked])
    return concatenate_datasets([images, store(checked, merge).remove_columns("image")], axis=1)
