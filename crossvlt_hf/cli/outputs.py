"""Output files of commands. Each says what it is, so that a command only replaces files that it wrote itself."""

import json
import os
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from PIL import Image


MARK = "crossvlt_hf"


def free_name(path: str) -> str:
    """The first of name.json, name-2.json, name-3.json, ... that does not exist."""
    stem, suffix = os.path.splitext(path)
    names = (f"{stem}-{number}{suffix}" if number > 1 else path for number in count(1))
    return next(name for name in names if not os.path.lexists(name))


def make_room(path: str | None, kind: str) -> None:
    """Create the folder of a file, and check that the file can be written without losing another one.

    Args:
        path: of the file; None for no file.
        kind: of output, such as "gallery"; an earlier output of this kind may be replaced.

    Raises:
        OSError: if it cannot be written.
        ValueError: if the path is that of a folder, or of a file that this kind of output must not replace.
    """
    if path is None:
        return
    file = Path(path)
    if file.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file.")
    check_replaceable(file, kind)
    file.parent.mkdir(parents=True, exist_ok=True)
    new = not file.exists()
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT, 0o666))
    if new:
        file.unlink()


def check_replaceable(file: Path, kind: str, **about: str) -> None:
    """Raise ValueError if there is a file that is not an earlier output of this kind.

    Args:
        file: to write.
        kind: of output.
        about: what the earlier output must also have been made from: see `save_picture`.
    """
    if os.path.lexists(file) and not _is_replaceable(file, _notes(kind, about)):
        same = f" of the same {' and '.join(about)}" if about else ""
        raise ValueError(f"{file} exists, and is not an earlier {kind}{same}; give another output.")


def _notes(kind: str, about: dict[str, str]) -> dict[str, str]:
    notes = {"made_by": f"{MARK} {kind}", **about}
    return {name: text.encode(errors="replace").decode() for name, text in notes.items()}  # invalid bytes of a shell


def _is_replaceable(file: Path, notes: dict[str, str]) -> bool:
    """Whether a file has these notes, is empty, or cannot be a loss, such as a device."""
    if not file.is_file():
        return file.exists()  # a link to nothing is not: writing would make a file elsewhere
    return file.stat().st_size == 0 or _has(_read_notes(file), notes)


def _has(found: dict[Any, Any], notes: dict[str, str]) -> bool:
    return all(found.get(name) == text for name, text in notes.items())


def _read_notes(file: Path) -> dict[Any, Any]:
    """What an output says of itself; nothing for a file of another origin."""
    with suppress(Exception):  # a file of another origin can raise anything
        if file.suffix.lower() != ".png":
            report = json.loads(file.read_bytes())
            return report if isinstance(report, dict) else {}
        from PIL import Image

        with Image.open(file, formats=("PNG",)) as picture:
            return dict(picture.info)
    return {}


def save_report(report: dict[str, Any], path: str, kind: str) -> None:
    """Write a report as JSON, with its kind."""
    Path(path).write_text(json.dumps({**_notes(kind, {}), **report}, indent=2) + "\n", encoding="utf-8")


def save_picture(picture: "Image.Image", path: str | Path, kind: str, **about: str) -> None:
    """Write a picture as PNG, with its kind and what it was made from as text of the file."""
    from PIL.PngImagePlugin import PngInfo

    notes = PngInfo()
    for name, text in _notes(kind, about).items():
        notes.add_itxt(name, text)
    picture.save(path, pnginfo=notes)
