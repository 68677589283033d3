"""Find the images in a folder."""

import os
import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from PIL import Image, ImageFile


# Formats that Pillow opens but cannot decode, or only with another program
UNDECODED = {"EPS", "MPEG"}
# Formats that are recognised by content; others are too easily confused
BY_CONTENT = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP")


@cache
def picture_suffixes() -> frozenset[str]:
    """The suffixes of the formats that Pillow decodes, in lower case."""
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
    """All files below a folder, except hidden ones; follows links to folders, each folder once."""
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
    except OSError:  # such as a broken link, which should be reported as an unreadable image
        return by_name
    if by_name or not regular:  # reading a pipe or a device may never end
        return regular
    try:
        with Image.open(path, formats=BY_CONTENT):
            return True
    except Image.DecompressionBombError:  # raised again when it is read
        return True
    except Exception:  # damaged headers may raise anything
        return False


def find_pictures(folder: Path) -> tuple[list[str], list[str]]:
    """Find the images below a folder, and the other files.

    Returns:
        Two sorted lists of paths relative to the folder. Images are files with the suffix of a format that Pillow
        decodes, even if they are damaged, and files of common formats with another suffix.

    Raises:
        OSError: if a folder cannot be listed.
    """
    found: tuple[list[str], list[str]] = ([], [])
    for path in _files(folder):
        found[not _is_picture(path)].append(str(path.relative_to(folder)))
    return sorted(found[0]), sorted(found[1])
