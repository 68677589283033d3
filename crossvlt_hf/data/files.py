"""Splits, JSON files, folders, columns, and image files of data sets, for all readers."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from PIL import ExifTags, Image

from ..processing_crossvlt import counted, opening, similar_path
from ..system import check_exists, did_you_mean, in_one_line


COCO_FOLDERS = ("images/mscoco/images/train2014", "images/train2014", "train2014")

_VALIDATION = ("val", "validation", "valid")


def check_split(split: str | None, splits: Sequence[str], dataset: str) -> str:
    """The name of a split in the data; "val", "validation" and "valid" are the same.

    Raises:
        ValueError: if there is no such split, or it is None; names the splits.
    """
    names = [split, *(_VALIDATION if split in _VALIDATION else ())]
    name = next((name for name in names if name in splits), None)
    if name is None:
        hint = did_you_mean(split, splits)
        raise ValueError(f"`split` must be one of the splits of {dataset}: {', '.join(splits)}; got {split!r}.{hint}")
    return name


def read_json(path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Read a JSON file.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is not JSON.
    """
    try:
        return json.loads(path.read_bytes(), object_hook=object_hook)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"There is no file {path}; download the annotations, or give another `root`."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error


def field(row: Any, name: str, where: str) -> Any:
    """An entry of a row.

    Raises:
        ValueError: if the row has no such entry; names those it has.
    """
    if not isinstance(row, dict) or name not in row:
        raise ValueError(f"{where} has no `{name}`{but_has(row)}.")
    return row[name]


def but_has(row: Any) -> str:
    """The names of a row's entries, as the end of a sentence on what it lacks."""
    if not isinstance(row, dict):
        return f", but is {str(row)[:40]!r}"
    names = [f"`{name}`" for name in row]
    return f", but {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}" if names else ""


def entries(table: Any, name: str, where: str) -> list[Any]:
    """An entry of a row that must be a list; errors as in `field`."""
    found = field(table, name, where)
    if not isinstance(found, list):
        raise ValueError(f"{where} must have a list as `{name}`, got {str(found)[:40]!r}.")
    return found


def rows_of(table: Any, where: str) -> list[Any]:
    """Check that a table is a list.

    Raises:
        ValueError: if it is not.
    """
    if not isinstance(table, list):
        raise ValueError(f"{where} must hold a list, got {str(table)[:40]!r}.")
    return table


def load_rows(source: str, split: str, **options: Any) -> Dataset:
    """Load a split by `datasets.load_dataset`, from the Hub or from files.

    Raises:
        FileNotFoundError: if there is no such path, and no data set of this name on the Hub.
        OSError, ValueError: if it cannot be read.
    """
    try:
        return load_dataset(source, split=split, **options)
    except Exception as error:  # a broken file can raise anything
        if not options and len(Path(source).parts) == 1:
            reason = in_one_line(error).rstrip(".")
            check_exists(source, "file or folder", f", and the Hub gives no data set of this name: {reason}")
        if isinstance(error, OSError | ValueError):
            raise
        raise OSError(f"{source} cannot be read as a data set. {type(error).__name__}: {error}") from error


def visible_files(folder: Path, pattern: str) -> Iterator[Path]:
    """The files that match below a folder, without hidden ones (._1.json, .ipynb_checkpoints/1.json)."""
    above = len(folder.parts)
    return (path for path in folder.glob(pattern) if not any(part.startswith(".") for part in path.parts[above:]))


def find_files(folder: Path, pattern: str) -> list[Path]:
    """The files of `visible_files`, sorted."""
    return sorted(visible_files(folder, pattern), key=lambda path: path.parts)


def whole(value: Any) -> Any:
    """An integer for a float without a fraction, as some tools write all numbers; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def require_columns(dataset: Dataset, columns: Iterable[str], name: str = "The data set") -> None:
    """Raise ValueError unless a data set has certain columns."""
    if missing := [column for column in columns if column not in dataset.column_names]:
        raise ValueError(f"{name} must have a column {missing[0]!r}, got {', '.join(dataset.column_names)}.")


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, from 1 (upright) to 8."""
    # not that of a PNG file's class, which would decode the image
    turn = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    return turn if isinstance(turn, int) and 1 <= turn <= 8 else 1


def stored_size(image: Image.Image, upright: bool) -> tuple[int, int]:
    """(height, width) of an opened image, with or without its EXIF orientation."""
    return (image.width, image.height) if upright and orientation(image) >= 5 else (image.height, image.width)


@cache
def header_size(path: str) -> tuple[int, int]:
    """(height, width) of an image file with its EXIF orientation; reads only its header.

    Raises:
        OSError: if it cannot be read.
    """
    with opening(path, "image"), Image.open(path) as image:
        return stored_size(image, upright=True)


COCO_ID = "coco "  # how the ids of COCO's images begin
_DIGEST = re.compile(r" (sha1:[0-9a-f]{16})\Z")


def coco_image_id(file_name: Any, image_id: Any) -> str:
    """The id of an image: "coco 139" if its file has COCO's name for that id, to recognise it in all data sets."""
    number = re.fullmatch(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})\.jpg", str(file_name).rpartition("/")[2])
    return f"{COCO_ID}{image_id}" if number is not None and number[1] == f"{image_id:0>12}" else str(image_id)


def digest_of(content: bytes) -> str:
    """A digest of an image file, for the end of the image's id."""
    return f"sha1:{hashlib.sha1(content, usedforsecurity=False).hexdigest()[:16]}"


def content_key(image_id: str, image: str | bytes) -> str:
    """A key of the content of an image file: the digest in its id, or of the file (a path or its bytes)."""
    if digest := _DIGEST.search(image_id):
        return digest[1]
    return digest_of(image if isinstance(image, bytes) else Path(image).read_bytes())


def image_key(dataset: str, image_id: str) -> str:
    """A key of an image: in all data sets if its id is of COCO or has a digest, otherwise in those of one name."""
    if digest := _DIGEST.search(image_id):
        return digest[1]
    return image_id if image_id.startswith(COCO_ID) else f"{dataset} {image_id}"


def image_size(image: Any, where: str) -> tuple[int, int]:
    """(height, width) in the entry of an image.

    Raises:
        ValueError: if it has none, or it is larger than Pillow allows.
    """
    height, width = (whole(field(image, side, where)) for side in ("height", "width"))
    if not all(isinstance(side, int) and side > 0 for side in (height, width)):
        raise ValueError(f"{where} must have height and width in pixels, got {height!r} and {width!r}.")
    most = Image.MAX_IMAGE_PIXELS and 2 * Image.MAX_IMAGE_PIXELS  # Pillow's own limit
    if most and height * width > most:
        raise ValueError(f"{where} is {height}x{width}, more than {most} pixels; raise PIL.Image.MAX_IMAGE_PIXELS.")
    return height, width


def find_folder(root: Path, names: Sequence[str], given: str | Path | None) -> Path:
    """The folder of images: the given one, or the first that exists of the names below root.

    Raises:
        FileNotFoundError: if there is none.
    """
    tried = [Path(given)] if given is not None else [root / name for name in names]
    for folder in tried:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"There is no folder of images; tried {', '.join(map(str, tried))}. Set `images` to its path."
    )


def require_folder(path: str | Path) -> Path:
    """A folder that exists.

    Raises:
        FileNotFoundError: if it does not.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    return folder


def inside(folder: str | Path, name: Any, where: str, root: str | Path | None = None) -> str:
    """The path of a file named in a data set, which must stay inside a folder.

    A data set may come from anyone, so it must not read other files of this machine. Links are followed, since folders
    of images are often links. An absolute path is allowed if it stays in the folder.

    Args:
        folder: what a relative name is relative to.
        name: the entry of the data set.
        where: file and row, for the message.
        root: the folder that the path must stay in; None means `folder`.

    Raises:
        ValueError: if the name is not a path, or leads out of the folder.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"{where} must have the path of a file, got {repr(name)[:60]}.")
    path = os.path.normpath(os.path.join(folder, name))
    root = os.path.normpath(folder if root is None else root)
    roots = [os.path.abspath(root), os.path.realpath(root)]
    if not any(os.path.abspath(path).startswith(os.path.join(start, "")) for start in roots):
        raise ValueError(f"{where} has the path {name!r}, which leads out of {root}; move the file into that folder.")
    return path


def first_inside(folder: str | Path, names: Sequence[Any], where: str, root: str | Path | None = None) -> str:
    """The path of the first of several names of a file that is there; if none is, that of `inside` for the first."""
    for name in names:
        with suppress(ValueError):  # it leads out of the folder
            if os.path.isfile(path := inside(folder, name, where, root)):
                return path
    return inside(folder, names[0], where, root)


def slashed(name: Any) -> Any:
    """The path of a file with forward slashes, whichever system wrote it; what is no text as it is."""
    return name.replace("\\", "/") if isinstance(name, str) else name


def last_part(name: Any) -> Any:
    """The end of the path of a file, with the slashes of any system; what is no text as it is."""
    return slashed(name).rpartition("/")[2] if isinstance(name, str) else name


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Write a new folder atomically: it appears when it is complete, and not at all after an error.

    Args:
        folder: must not exist, or be empty.

    Yields:
        An empty folder beside it, to write into.

    Raises:
        FileExistsError: if the folder is not empty.
    """
    folder = Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not an empty folder; give a new one.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        whole = Path(temporary) / "whole"
        whole.mkdir()
        yield whole
        whole.replace(folder)


def require_files(needed: Iterable[tuple[str, str]], kind: str, advice: str) -> None:
    """Check that files exist, listing each folder once.

    Args:
        needed: pairs of a path and the row that needs it.
        kind: kind of file, for the message.
        advice: what to do, for the message.

    Raises:
        FileNotFoundError: names the first missing file, the row that needs it, and how many are missing.
    """
    listings: dict[str, set[str]] = {}
    missing: dict[str, str] = {}
    present: set[str] = set()
    for path, where in needed:
        folder, name = os.path.split(path)
        if folder not in listings:
            listings[folder] = set(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else set()
        if name in listings[folder]:
            present.add(path)
        else:
            missing.setdefault(path, where)
    if missing:
        path, where = next(iter(missing.items()))
        similar = similar_path(path)
        hint = f"Did you mean {similar}? {advice}" if similar else advice
        of_all, verb = counted(len(missing) + len(present), f"{kind} file"), "is" if len(missing) == 1 else "are"
        raise FileNotFoundError(
            f"There is no {kind} file {path}, needed by {where}; {len(missing)} of {of_all} {verb} missing. {hint}"
        )
