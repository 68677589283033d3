"""Files that a command writes, checked before the work and not after it."""

import os
from pathlib import Path


def make_room(path: str | None) -> None:
    """Make the folder of a file, and see that the file can be written.

    Raises:
        OSError: if it cannot.
        ValueError: if it is a folder.
    """
    if path is None:
        return
    file = Path(path)
    if file.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file.")
    file.parent.mkdir(parents=True, exist_ok=True)
    new = not file.exists()
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT, 0o666))
    if new:
        file.unlink()
