"""Checks of options and arguments that several packages share, each with one wording; imports nothing heavy."""

import re
from collections.abc import Collection
from difflib import get_close_matches
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


def check_least(name: str, value: Any, least: int) -> None:
    """Raise ValueError unless a value is None or an integer from `least` up."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}.")
