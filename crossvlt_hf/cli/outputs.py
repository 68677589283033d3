"""Output files of commands. Each says what it is, so that a command only replaces files that it wrote itself."""

import json
import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from PIL import Image


MARK = "crossvlt_hf"
EARLIER: dict[str, set[str]] = {  # entries of reports of version 0.1, which do not say what they are
    "evaluation": {"model", "data", "split", "metrics", "families"},
    "benchmark": {"format", "machine", "models", "peaks", "cases"},
}
LARGEST_REPORT = 2**26  # bytes


def make_room(path: str | None, kind: str, *, new: bool = False) -> None:
    """Create the folder of a file, and check that the file can be written without losing another one.

    Args:
        path: of the file; None for no file.
        kind: of output, such as "gallery"; an earlier output of this kind may be replaced.
        new: the file will get another name if it exists: see `save_report`.

    Raises:
        OSError: if it cannot be written.
        ValueError: if the path is that of a folder, or of a file that this kind of output must not replace.
    """
    if path is None:
        return
    file = Path(path)
    if file.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file.")
    if not new:
        check_replaceable(file, kind)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists() and not new:
        os.close(os.open(file, os.O_WRONLY))
    else:  # without a name, as another process may be about to write this one
        with TemporaryFile(dir=file.parent):
            pass


def check_replaceable(file: Path, kind: str, **about: str) -> None:
    """Raise ValueError if there is a file that is not an earlier output of this kind.

    Args:
        file: to write.
        kind: of output.
        about: what the earlier output must also have been made from: see `save_picture`.
    """
    if os.path.lexists(file) and not _is_replaceable(file, kind, about):
        same = f" of the same {' and '.join(about)}" if about else ""
        raise ValueError(f"{file} exists, and does not say that it is an earlier {kind}{same}; give another output.")


def _notes(kind: str, about: dict[str, str]) -> dict[str, str]:
    notes = {"made_by": f"{MARK} {kind}", **about}
    return {name: text.encode(errors="replace").decode() for name, text in notes.items()}  # invalid bytes of a shell


def _is_replaceable(file: Path, kind: str, about: dict[str, str]) -> bool:
    """Whether a file says that it is such an output, is empty, or is a device, where nothing can be lost."""
    if not file.is_file():
        return file.exists() and not file.is_dir()  # through a link to nothing, a file elsewhere would be made
    if file.stat().st_size == 0:
        return True
    found = _read_notes(file)
    if "made_by" not in found and not about:
        return kind in EARLIER and found.keys() >= EARLIER[kind]
    return all(found.get(name) == text for name, text in _notes(kind, about).items())


def _read_notes(file: Path) -> dict[Any, Any]:
    """What an output says of itself; nothing for a file of another origin."""
    with suppress(Exception):  # a file of another origin can raise anything
        if file.suffix.lower() != ".png":
            if file.stat().st_size > LARGEST_REPORT:
                return {}
            report = json.loads(file.read_bytes())
            return report if isinstance(report, dict) else {}
        from PIL import Image

        with Image.open(file, formats=("PNG",)) as picture:
            return dict(picture.info)
    return {}


def save_report(report: dict[str, Any], path: str, kind: str, *, new: bool = False) -> str:
    """Write a report as JSON, with its kind.

    Args:
        report: for JSON.
        path: of the file.
        kind: of output.
        new: if the file exists, write name-2.json, name-3.json, ..., whichever is the first new one.

    Returns:
        The path that was written.
    """
    text = json.dumps({**_notes(kind, {}), **report}, indent=2) + "\n"
    if not new:
        Path(path).write_text(text, encoding="utf-8")
        return path
    stem, suffix = os.path.splitext(path)
    name, number = path, 1
    while True:
        try:
            with open(name, "x", encoding="utf-8") as file:
                file.write(text)
            return name
        except FileExistsError:
            number += 1
            name = f"{stem}-{number}{suffix}"


def save_picture(picture: "Image.Image", path: str | Path, kind: str, **about: str) -> None:
    """Write a picture as PNG, with its kind and what it was made from as text of the file."""
    from PIL.PngImagePlugin import PngInfo

    notes = PngInfo()
    for name, text in _notes(kind, about).items():
        notes.add_itxt(name, text)
    picture.save(path, pnginfo=notes)
