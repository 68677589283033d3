"""What the readers share: JSON files, names of splits, folders and files of images."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..processing_crossvlt import counted, similar_path


COCO_FOLDERS = ("images/mscoco/images/train2014", "images/train2014", "train2014")

_ALIASES = {"validation": "val", "val": "validation"}


def check_split(split: str | None, splits: Sequence[str], dataset: str) -> str:
    """The split as the data call it; "val" and "validation" are the same.

    Raises:
        ValueError: if there is no such split, or None is given; says which there are.
    """
    if split is None:
        raise ValueError(f"`split` must be one of the splits of {dataset}: {', '.join(splits)}.")
    name = split if split in splits else _ALIASES.get(split, split)
    if name not in splits:
        raise ValueError(f"unknown split {split!r} of {dataset}; it has {', '.join(splits)}")
    return name


def read_json(path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is damaged.
    """
    try:
        return json.loads(path.read_bytes(), object_hook=object_hook)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no file {path}; get the annotations, or give another `root`.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a whole JSON file: {error}") from error


def field(row: Any, name: str, where: str) -> Any:
    """An entry of a row that must have it.

    Raises:
        ValueError: if it has not; says which it has.
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
    """The same for a list."""
    found = field(table, name, where)
    if not isinstance(found, list):
        raise ValueError(f"{where} has {str(found)[:40]!r} as `{name}`, not a list.")
    return found


def rows_of(table: Any, where: str) -> list[Any]:
    """A table that is a list.

    Raises:
        ValueError: if it is not one.
    """
    if not isinstance(table, list):
        raise ValueError(f"{where} holds {str(table)[:40]!r}, not a list.")
    return table


def image_size(image: Any, where: str) -> tuple[int, int]:
    """(height, width) as the entry of an image says.

    Raises:
        ValueError: if it does not.
    """
    height, width = field(image, "height", where), field(image, "width", where)
    if not all(isinstance(side, int) and side > 0 for side in (height, width)):
        raise ValueError(f"{where} has the height {height!r} and the width {width!r}; these are no pixels.")
    most = Image.MAX_IMAGE_PIXELS and 2 * Image.MAX_IMAGE_PIXELS  # where Pillow refuses an image too
    if most and height * width > most:
        raise ValueError(f"{where} is {height}x{width}, more than {most} pixels; raise PIL.Image.MAX_IMAGE_PIXELS.")
    return height, width


def find_folder(root: Path, names: Sequence[str], given: str | Path | None) -> Path:
    """The folder of images: the given one, or the first of the names below root that is there.

    Raises:
        FileNotFoundError: if there is none.
    """
    tried = [Path(given)] if given is not None else [root / name for name in names]
    for folder in tried:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"There is no folder of images; tried {', '.join(map(str, tried))}. Give its path as `images`."
    )


def inside(folder: str | Path, name: Any, where: str, root: str | Path | None = None) -> str:
    """The path of a file that a data set names.

    A data set may come from a stranger, so that its names must not lead to other files of the machine. What is a link
    is followed: folders of images often are. An absolute path is fine if it stays in the folder.

    Args:
        folder: what the name is relative to, unless it is absolute.
        name: as the data set has it.
        where: who says so, for the message.
        root: the folder that the path must stay in, if it is another.

    Raises:
        ValueError: if the name is not a path, or leads out of the folder.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"{where} has {str(name)[:60]!r} for a path; give the path of a file.")
    path = os.path.normpath(os.path.join(folder, name))
    root = os.path.normpath(folder if root is None else root)
    roots = [os.path.abspath(root), os.path.realpath(root)]
    if not any(os.path.abspath(path).startswith(os.path.join(start, "")) for start in roots):
        raise ValueError(f"{where} has the path {name!r}, which leads out of {root}; put the file into that folder.")
    return path


def require_files(needed: Iterable[tuple[str, str]], kind: str, advice: str) -> None:
    """Check that files are there, with one look into each folder.

    Args:
        needed: path and what needs it.
        kind: of file, for the message.
        advice: what to do, for the message.

    Raises:
        FileNotFoundError: names the first that is missing, what needs it, and how many are missing.
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
            f"There is no {kind} file {path}, which {where} needs; {len(missing)} of {of_all} {verb} missing. {hint}"
        )
