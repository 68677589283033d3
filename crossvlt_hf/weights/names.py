"""Names of checkpoints; light to import, so that commands can check them first."""

from pathlib import Path

from ..system import can_only_be_a_path, check_exists


BUILT_IN = "built-in"  # as in configuration_crossvlt.py, which imports the library and comes with checkpoints


def check_source(source: str | Path | None) -> None:
    """Check that a checkpoint is a folder, "built-in" (or None), or looks like a Hub id.

    Raises:
        FileNotFoundError: if there is no such folder.
        NotADirectoryError: if it is a file.
    """
    if source is None or source == BUILT_IN or Path(source).is_dir():
        return
    if can_only_be_a_path(source) or len(Path(source).parts) != 2:
        advice = f"; give a folder, a Hub id such as name/model, or {BUILT_IN!r}"
        check_exists(source, "checkpoint folder", advice)
        raise NotADirectoryError(f"{source} is a file, not a checkpoint folder{advice}.")
