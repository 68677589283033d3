"""Answer requests: run the model, draw the results, and make the table."""

import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image

from ...modeling_crossvlt import CrossVLTModel
from ...pipeline_crossvlt import ReferringImageSegmentationPipeline
from ...processing_crossvlt import PRESENCE_THRESHOLD, CrossVLTProcessor, NothingReadError
from ...visualization import Explanation, overlay, segment_and_explain
from ...visualization.overlay import fit_size
from .inputs import InputError


COLUMNS = ("Expression", "Score", "Box (x, y)", "Area", "Seconds", "Unknown words")
SHOWN_SIDE = 1280  # of the overlay; the masks keep the size of the image


class Found(NamedTuple):
    """The result for an expression; `seconds` is the mean over the expressions of the request."""

    expression: str
    score: float
    box: dict[str, int] | None
    mask: Image.Image
    seconds: float
    presence: float | None = None
    unknown_words: tuple[str, ...] = ()


class Segmenter:
    """A model with its processor."""

    def __init__(self, model: CrossVLTModel, processor: CrossVLTProcessor) -> None:
        self.model, self.processor = model, processor
        self._pipeline = ReferringImageSegmentationPipeline(model=model, processor=processor, device=model.device)

    def find(
        self, image: Image.Image, expressions: Sequence[str], explained: bool = False
    ) -> tuple[list[Found], list[Explanation]]:
        """Segment an image, for all expressions in one run of the model.

        Args:
            image: of mode "RGB".
            expressions: at least one.
            explained: whether to return explanations.

        Returns:
            A result for each expression, and on request an explanation of each.

        Raises:
            InputError: if no token of an expression is known.
        """
        start = time.perf_counter()
        explanations: list[Explanation] = []
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the table has the unknown words
                if explained:
                    results, explanations = segment_and_explain(self._pipeline, image, expressions)
                else:
                    results = self._pipeline(image, text=list(expressions))
        except NothingReadError as error:
            raise InputError("The model knows no word of one of the expressions: use other words.") from error
        seconds = (time.perf_counter() - start) / len(results)
        return [_found(result, seconds) for result in results], explanations


def _found(result: dict[str, Any], seconds: float) -> Found:
    masks = result["score"], result["box"], result["mask"]
    return Found(result["label"], *masks, seconds, result.get("presence"), tuple(result["unknown_words"]))


def draw(image: Image.Image, found: Sequence[Found]) -> Image.Image:
    """Draw the overlay of all masks, scaled down for browsers."""
    size = fit_size(image.size, min(SHOWN_SIDE, max(image.size)))
    masks = [entry.mask.resize(size, Image.Resampling.NEAREST) for entry in found]
    shown = image.resize(size, Image.Resampling.LANCZOS) if size != image.size else image
    return overlay(shown, masks, [entry.expression for entry in found], [entry.score for entry in found])


def tabulate(found: Sequence[Found]) -> list[list[str]]:
    """Make a row of texts for each expression, in the order of `COLUMNS`."""
    rows = []
    for entry in found:
        box = entry.box and "{xmin}, {ymin} to {xmax}, {ymax}".format_map(entry.box)
        area = entry.mask.histogram()[255]
        share = area / (entry.mask.width * entry.mask.height)
        area_text = f"{area:,} px ({share:.1%})"
        presence = 1.0 if entry.presence is None else entry.presence
        nothing = f"no target ({1 - presence:.0%} sure)" if presence < PRESENCE_THRESHOLD else "nothing found"
        unknown = ", ".join(entry.unknown_words)
        found_text = f"{entry.score:.2f}", box or nothing, area_text, f"{entry.seconds:.2f}"
        rows.append([entry.expression, *found_text, unknown])
    return rows
