"""How readers treat flaws of data sets: refuse, skip or repair them, and warn."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from ..processing_crossvlt import is_damaged, says_nothing
from ..system import check_known
from .masks import are_numbers, check_polygons


EmptyMasks = Literal["error", "no_target", "skip"]
EmptySentences = Literal["error", "skip"]
EMPTY_MASKS: tuple[EmptyMasks, ...] = ("error", "no_target", "skip")
EMPTY_SENTENCES: tuple[EmptySentences, ...] = ("error", "skip")


class FlawOptions(TypedDict, total=False):
    """Options of all readers: see [`Flaws`]."""

    empty_masks: EmptyMasks
    empty_sentences: EmptySentences


SHORT_PARTS = ("part of fewer than three points left out", "parts of fewer than three points left out")


def clean_expressions(expressions: Iterable[Any], where: str) -> list[str]:
    """Strip expressions.

    Raises:
        ValueError: if there is none, or one is empty or not text.
    """
    texts = list(expressions)
    if not texts:
        raise ValueError(f"{where} must have at least one expression.")
    for text in texts:
        if not isinstance(text, str) or says_nothing(text) or is_damaged(text):
            raise ValueError(f"{where} must have text as expression, got {text!r}.")
    return [text.strip() for text in texts]


def _is_flat(polygon: Any) -> bool:
    """Whether it is [x1, y1, x2, y2, ...]."""
    return isinstance(polygon, list | tuple) and are_numbers(polygon)


def _is_points(polygon: Any) -> bool:
    """Whether it is [[x1, y1], [x2, y2], ...]."""
    return isinstance(polygon, list | tuple) and all(_is_flat(point) and len(point) == 2 for point in polygon)


def to_polygons(segmentation: Any) -> Any:
    """Convert polygons to COCO's format, a list of [x1, y1, x2, y2, ...].

    Args:
        segmentation: a list of polygons, each [x1, y1, ...] or [[x1, y1], ...]; or a single polygon. Anything else
            (run lengths) is returned as it is.
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
    """How a reader treats flaws, and which it found.

    Args:
        dataset: its name, for messages.
        empty_masks: for a reference with a target whose mask is empty: "error"; "no_target" to keep it without a
            target; "skip".
        empty_sentences: for an expression without text: "error", or "skip" (also a reference with no other).
        met: places by the warnings about one and about several flaws.

    Raises:
        ValueError: if there is no such option.
    """

    dataset: str
    empty_masks: EmptyMasks = "error"
    empty_sentences: EmptySentences = "error"
    met: dict[tuple[str, str], list[str]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        check_known("empty_masks", self.empty_masks, EMPTY_MASKS)
        check_known("empty_sentences", self.empty_sentences, EMPTY_SENTENCES)

    def add(self, one: str, many: str, where: str) -> None:
        """Note a flaw: the warnings about one and about several, and file and row."""
        self.met.setdefault((one, many), []).append(where)

    def expressions(self, texts: Iterable[Any], where: str, *, optional: bool = False) -> list[str]:
        """Strip expressions, and drop empty ones if these are to be skipped.

        Args:
            texts: from the data.
            where: file and row, for messages.
            optional: whether there may be none.

        Raises:
            ValueError: if there is none, or one is empty or not text, unless that is allowed.
        """
        given = list(texts)
        if self.empty_sentences == "error":
            return [] if optional and not given else clean_expressions(given, where)
        kept = [text for text in given if text is not None and not (isinstance(text, str) and says_nothing(text))]
        for _ in range(len(given) - len(kept)):
            self.add("empty sentence left out", "empty sentences left out", where)
        return clean_expressions(kept, where) if kept else []

    def polygons(self, segmentation: Any, where: str) -> Any:
        """Check polygons, and drop those of fewer than three points if there are others.

        Returns:
            Polygons in COCO's format, or the segmentation itself if it has none; [] if there are no polygons of three
            points or more, and empty masks are allowed.

        Raises:
            ValueError: if a polygon is broken; the message begins with `where`.
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

    def include(self, other: "Flaws") -> None:
        """Note the flaws that another reader found, such as that of a row."""
        for kind, places in other.met.items():
            self.met.setdefault(kind, []).extend(places)

    def warn(self) -> None:
        """Warn of each kind of flaw, with the number and the first place."""
        for (one, many), places in self.met.items():
            what = f"1 {one}, in" if len(places) == 1 else f"{len(places)} {many}, the first in"
            warnings.warn(f"{self.dataset}: {what} {places[0]}.", stacklevel=4)
