"""What RefShapes and the engine for labelled objects share: phrases, words for positions, three-valued logic.

Lengths are shares of the image's sides; (x, y) has its origin at the top left.
"""

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple


Answer = bool | None  # None if people might disagree

MARGIN = 0.06  # expressions do not compare positions that are closer

SIDES = ("left", "right", "top", "bottom")
OPPOSITES = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
ORDINALS = ("first", "second", "third", "fourth", "fifth")
ACROSS = {"left of": "left", "right of": "right"}
UP_AND_DOWN = {"above": "top", "below": "bottom"}
EDGES: dict[str, tuple[str, ...]] = {
    "on the left": ("left",),
    "on the right": ("right",),
    "at the top": ("top",),
    "at the bottom": ("bottom",),
}
CORNERS: dict[str, tuple[str, ...]] = {
    "in the top left corner": ("top", "left"),
    "in the top right corner": ("top", "right"),
    "in the bottom left corner": ("bottom", "left"),
    "in the bottom right corner": ("bottom", "right"),
}


class Phrase(NamedTuple):
    """A noun with adjectives: `striped red circle`.

    A tuple, since pictures of many objects look up millions of them, and tuples are hashed fastest.
    """

    word: str = "object"
    colour: str | None = None
    adjective: str | None = None

    def __str__(self) -> str:
        return " ".join(word for word in (self.adjective, self.colour, self.word) if word)


def axis_of(side: str) -> tuple[int, int]:
    """The axis of a side, 0 for x and 1 for y, and the sign with which positions increase away from the side."""
    return (0 if side in ("left", "right") else 1), (1 if side in ("left", "top") else -1)


def both(one: Answer, other: Answer) -> Answer:
    """Three-valued "and": False if one of them is, else None if one of them is."""
    if one is False or other is False:
        return False
    return None if one is None or other is None else True


def every(answers: Iterable[Answer]) -> Answer:
    """Three-valued "and" of any number."""
    start: Answer = True
    return reduce(both, answers, start)


def opposite(answer: Answer) -> Answer:
    """Three-valued "not"."""
    return None if answer is None else not answer
