"""Checkpoints that are there whole or not at all."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path


PREFIX = "step-"
SIZES = "files.json"


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix(PREFIX))


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder that were finished, the oldest first."""
    found = [entry for entry in folder.glob(f"{PREFIX}*") if entry.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=_step)


def seal(folder: Path) -> None:
    """Note in a folder which files it has and how long they are."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    (folder / SIZES).write_text(json.dumps(sizes))


def is_whole(folder: Path) -> bool:
    """Whether a sealed folder has what it had; one that was never sealed counts as whole."""
    if not (folder / SIZES).is_file():
        return True
    try:
        sizes = json.loads((folder / SIZES).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _flush(folder: Path) -> None:
    """Have the system write a folder to the disk, so that a failure of power finds it whole."""
    for path in (*folder.rglob("*"), folder):
        if path.is_file() or os.name == "posix":
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def write_whole(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside the target, then put it in its place.

    An interruption leaves the old target or, from within the exchange, what `recover` makes the old target of.
    """
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    put_in_place(partial, target)


def put_in_place(partial: Path, target: Path) -> None:
    """Move a finished folder to where it belongs, over an old one."""
    _flush(partial)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def recover(target: Path) -> None:
    """Put back what an interruption in the midst of `put_in_place` left beside the target."""
    old = target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():
        old.rename(target)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the last checkpoints."""
    for checkpoint in list_checkpoints(folder)[:-keep]:
        old = checkpoint.with_name(f".{checkpoint.name}.old")
        checkpoint.rename(old)  # else an interruption would leave half of it
        shutil.rmtree(old)


def sweep(folder: Path) -> None:
    """Delete what interruptions left in a folder of checkpoints."""
    for entry in folder.glob(f".{PREFIX}*"):
        shutil.rmtree(entry, ignore_errors=True)
