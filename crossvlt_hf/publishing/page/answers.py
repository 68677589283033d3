"""What the model makes of a request."""

import time
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from ...modeling_crossvlt import CrossVLTModel
from ...pipeline_crossvlt import ReferringImageSegmentationPipeline
from ...processing_crossvlt import CrossVLTProcessor, NothingReadError
from ...visualization import explain, explanation_figure, overlay
from .inputs import InputError


COLUMNS = ("Expression", "Score", "Box (x, y)", "Area", "Seconds", "Unknown words")
SHOWN_SIDE = 1280  # of the overlay; the masks keep the size of the image


class Found(NamedTuple):
    """What the model makes of one expression."""

    expression: str
    score: float
    box: dict[str, int] | None
    mask: Image.Image
    seconds: float
    presence: float | None = None
    unknown_words: tuple[str, ...] = ()


class Segmenter:
    """A model with its processor, asked about one image at a time."""

    def __init__(self, model: CrossVLTModel, processor: CrossVLTProcessor) -> None:
        self.model, self.processor = model, processor
        self._pipeline = ReferringImageSegmentationPipeline(model=model, processor=processor, device=model.device)

    def find(self, image: Image.Image, expressions: Sequence[str]) -> list[Found]:
        """Segment what each expression means.

        Raises:
            InputError: if the tokenizer reads nothing of one.
        """
        found = []
        for expression in expressions:
            start = time.perf_counter()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # what is not read stands in the table
                    (result,) = self._pipeline(image, text=expression)
            except NothingReadError as error:
                raise InputError("There is an expression of which the model reads nothing: use its words.") from error
            seconds = time.perf_counter() - start
            there = result.get("presence")
            masks = result["score"], result["box"], result["mask"]
            found.append(Found(expression, *masks, seconds, there, tuple(result["unknown_words"])))
        return found

    def explain(self, image: Image.Image, expressions: Sequence[str]) -> list[Image.Image]:
        """A figure for each expression that shows how the model came to its mask."""
        return [explanation_figure(explain(self.model, self.processor, image, text)) for text in expressions]


def draw(image: Image.Image, found: Sequence[Found]) -> Image.Image:
    """The overlay of all masks with its legend, of a size that a browser loads quickly."""
    share = min(1.0, SHOWN_SIDE / max(image.size))
    size = max(1, round(image.width * share)), max(1, round(image.height * share))
    masks = [entry.mask.resize(size, Image.Resampling.NEAREST) for entry in found]
    shown = image.resize(size, Image.Resampling.LANCZOS) if share < 1 else image
    return overlay(shown, masks, [entry.expression for entry in found], [entry.score for entry in found])


def tabulate(found: Sequence[Found]) -> list[list[str]]:
    """A row of text for each expression, in the order of `COLUMNS`."""
    rows = []
    for entry in found:
        box = entry.box and "{xmin}, {ymin} to {xmax}, {ymax}".format_map(entry.box)
        area = entry.mask.histogram()[255]
        share = area / (entry.mask.width * entry.mask.height)
        area_text = f"{area:,} px ({share:.1%})"
        nothing = "nothing found" if entry.presence is None else f"not there ({1 - entry.presence:.0%} sure)"
        unknown = ", ".join(entry.unknown_words)
        found_text = f"{entry.score:.2f}", box or nothing, area_text, f"{entry.seconds:.2f}"
        rows.append([entry.expression, *found_text, unknown])
    return rows
