"""The pictures of a folder."""

import os
import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from PIL import Image, ImageFile


# Pillow opens these and then cannot decode them, or not without another program
UNDECODED = {"EPS", "MPEG"}
# What a file of another or no suffix may hold; other formats are too easily taken for one another
BY_CONTENT = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP")


@cache
def picture_suffixes() -> frozenset[str]:
    """The suffixes, in lower case, of the formats that Pillow decodes."""
    extensions = Image.registered_extensions()
    stubs = {
        name
        for name, (factory, _) in Image.OPEN.items()
        if isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
    }
    decoded = Image.OPEN.keys() - stubs - UNDECODED
    return frozenset(suffix for suffix, name in extensions.items() if name in decoded)


def _raise(error: OSError) -> None:
    raise error


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, also behind links to folders, each folder once; without hidden ones."""
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _is_picture(path: Path) -> bool:
    by_name = path.suffix.lower() in picture_suffixes()
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except OSError:  # such as a link to nowhere, which is an error where it should be a picture
        return by_name
    if by_name or not regular:  # a pipe or a device would be read for ever
        return regular
    try:
        with Image.open(path, formats=BY_CONTENT):
            return True
    except Image.DecompressionBombError:  # reading it says so
        return True
    except Exception:  # damaged headers raise anything
        return False


def find_pictures(folder: Path) -> tuple[list[str], list[str]]:
    """The pictures below a folder, and the other files.

    Returns:
        Two sorted lists of paths relative to the folder. A picture is a file with the suffix of a format that Pillow
        decodes, whatever it holds, or a file that holds one of the usual formats under another name.

    Raises:
        OSError: if a folder cannot be listed.
    """
    found: tuple[list[str], list[str]] = ([], [])
    for path in _files(folder):
        found[not _is_picture(path)].append(str(path.relative_to(folder)))
    return sorted(found[0]), sorted(found[1])
