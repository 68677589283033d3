"""What readers do with flaws of data sets: refuse them, leave them out, or put them right, and say so."""

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from ..processing_crossvlt import says_nothing
from .masks import check_polygons, is_number


EmptyMasks = Literal["error", "no_target", "skip"]
EmptySentences = Literal["error", "skip"]
EMPTY_MASKS: tuple[EmptyMasks, ...] = ("error", "no_target", "skip")
EMPTY_SENTENCES: tuple[EmptySentences, ...] = ("error", "skip")


SHORT_PARTS = ("part of fewer than three points left out", "parts of fewer than three points left out")
HALF_SURROGATE = re.compile("[\ud800-\udfff]")


def clean_expressions(expressions: Iterable[Any], where: str) -> list[str]:
    """Expressions without white space around them.

    Raises:
        ValueError: if there is none, or one is empty or no text.
    """
    texts = list(expressions)
    if not texts:
        raise ValueError(f"{where} has no expression; give at least one.")
    for text in texts:
        # half of a surrogate pair is what a damaged escape in JSON leaves; no table can store it
        if not isinstance(text, str) or says_nothing(text) or HALF_SURROGATE.search(text):
            raise ValueError(f"{where} has the expression {text!r}; give text.")
    return [text.strip() for text in texts]


def _is_flat(polygon: Any) -> bool:
    """Whether it is [x1, y1, x2, y2, ...]."""
    return isinstance(polygon, list | tuple) and all(map(is_number, polygon))


def _is_points(polygon: Any) -> bool:
    """Whether it is [[x1, y1], [x2, y2], ...]."""
    return isinstance(polygon, list | tuple) and all(_is_flat(point) and len(point) == 2 for point in polygon)


def to_polygons(segmentation: Any) -> Any:
    """Polygons as COCO has them, a list of [x1, y1, x2, y2, ...], from the forms in which people write them.

    Args:
        segmentation: a list of polygons, each [x1, y1, ...] or [[x1, y1], ...]; or one of these, not in a list.
            Anything else (run lengths) is returned as it is.
    """
    if not isinstance(segmentation, list | tuple) or not segmentation:
        return segmentation
    if _is_flat(segmentation) or (len(segmentation) > 2 and _is_points(segmentation)):
        segmentation = [segmentation]
    return [
        [x for point in part for x in point] if part and _is_points(part) else list(part) if _is_flat(part) else part
        for part in segmentation
    ]


@dataclass
class Flaws:
    """What a reader does with flaws, and how many it met.

    Args:
        dataset: its name, for messages.
        empty_masks: with a reference that has a target but not one pixel of it: "error"; "no_target", make it one
            without a target; "skip" it.
        empty_sentences: with an expression without text: "error", or "skip" it (and a reference without any other).

    Raises:
        ValueError: if there is no such option.
    """

    dataset: str
    empty_masks: EmptyMasks = "error"
    empty_sentences: EmptySentences = "error"
    met: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, options in (("empty_masks", EMPTY_MASKS), ("empty_sentences", EMPTY_SENTENCES)):
            if getattr(self, name) not in options:
                raise ValueError(f"`{name}` must be one of {', '.join(options)}, got {getattr(self, name)!r}.")

    def add(self, one: str, many: str, where: str) -> None:
        """Note a flaw: what is said of one and of many, and the file and row."""
        self.met.setdefault((one, many), []).append(where)

    def expressions(self, texts: Iterable[Any], where: str, *, optional: bool = False) -> list[str]:
        """Expressions without white space around them, and without empty ones if these are to be skipped.

        Args:
            texts: as the data have them.
            where: file and row, for messages.
            optional: whether there may be none from the start.

        Raises:
            ValueError: if there is none, or one is empty or no text, unless that is allowed.
        """
        given = list(texts)
        if self.empty_sentences == "error":
            return [] if optional and not given else clean_expressions(given, where)
        kept = [text for text in given if text is not None and not (isinstance(text, str) and says_nothing(text))]
        for _ in range(len(given) - len(kept)):
            self.add("empty sentence left out", "empty sentences left out", where)
        return clean_expressions(kept, where) if kept else []

    def polygons(self, segmentation: Any, where: str) -> Any:
        """The segmentation; polygons are checked, and those of fewer than three points beside others left out.

        Returns:
            Polygons in COCO's form, or what is no list of polygons as it was; [] if there is none, or all have fewer
            than three points and so no area, and that is allowed.

        Raises:
            ValueError: if a polygon is broken; begins with `where`.
        """
        if segmentation == [] and self.empty_masks != "error":
            return []
        polygons = to_polygons(segmentation)
        if not isinstance(polygons, list) or any(isinstance(part, dict) for part in polygons):
            return segmentation
        whole = [part for part in polygons if not (_is_flat(part) and len(part) < 6 and len(part) % 2 == 0)]
        if not whole and self.empty_masks != "error":
            return []
        for _ in range(len(polygons) - len(whole) if whole else 0):
            self.add(*SHORT_PARTS, where)
        return check_polygons(whole or polygons, where)

    def warn(self) -> None:
        """Say what was met, with numbers and the first place."""
        for (one, many), places in self.met.items():
            what = f"1 {one}, in" if len(places) == 1 else f"{len(places)} {many}, the first in"
            warnings.warn(f"{self.dataset}: {what} {places[0]}.", stacklevel=4)
