"""Checkpoints that are there whole or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path


PREFIX = "step-"


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix(PREFIX))


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in a folder, the oldest first."""
    found = [entry for entry in folder.glob(f"{PREFIX}*") if entry.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=_step)


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
        shutil.rmtree(checkpoint)
