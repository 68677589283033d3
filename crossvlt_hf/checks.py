"""Checks of options and arguments that several packages share, each with one wording; imports nothing heavy."""

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any


_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?(inf|nan)", re.IGNORECASE)


def read_number(kind: type[int] | type[float], text: str) -> Any:
    """Read an integer or a float in decimal digits.

    Neither 010, which is octal in some languages, nor 1_000 or digits of other scripts, which `int` and `float` take.

    Raises:
        ValueError: if it is anything else; without a message, as only the caller knows what is being read.
    """
    if not (_INTEGER if kind is int else _DECIMAL).fullmatch(text):
        raise ValueError
    return kind(text)


def did_you_mean(name: Any, known: Collection[str], cutoff: float = 0.6) -> str:
    """A question that names the most similar known name, with a space before it; empty if none is similar."""
    lower = {each.lower(): each for each in known}
    near = get_close_matches(name.lower(), lower, 1, cutoff) if isinstance(name, str) else []
    return f" Did you mean {lower[near[0]]}?" if near else ""


def say_known(value: Any, known: Collection[str]) -> str:
    """What an error says of a value that is not one of the known ones."""
    return f"must be one of {', '.join(known)}, got {value!r}.{did_you_mean(value, known)}"


def check_known(name: str, value: Any, known: Collection[str]) -> None:
    """Raise ValueError unless a value is one of the known ones."""
    if value not in list(known):
        raise ValueError(f"`{name}` {say_known(value, known)}")


@contextmanager
def taking_options(what: str, kind: str = "option") -> Iterator[None]:
    """Turn the TypeError for an unknown argument of a function into a ValueError: `what` has no such `kind`."""
    try:
        yield
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise ValueError(f"{what} has no such {kind}: {error}") from error


def check_output_folder(
    folder: Path,
    kind: str,
    is_ours: Callable[[], bool],
    ignored: Callable[[Path], bool] = lambda path: False,
    advice: str = "give a new folder",
) -> None:
    """Raise ValueError unless a folder can be written: there is none, it is empty, or it is an earlier output.

    Args:
        folder: to write.
        kind: of output, for the message.
        is_ours: whether it is an earlier output of that kind; only asked where there are files.
        ignored: files that count as none.
        advice: what to do, for the message.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder.")
    if folder.is_dir() and not all(map(ignored, folder.iterdir())) and not is_ours():
        raise ValueError(f"{folder} is not empty, and no {kind}; {advice}.")


def check_least(name: str, value: Any, least: int) -> None:
    """Raise ValueError unless a value is None or an integer from `least` up."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}.")
