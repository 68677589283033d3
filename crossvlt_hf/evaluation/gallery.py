"""A gallery of an evaluation: the best, the worst and random predictions, and some of each family."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..metrics import Sample, percent
from ..modeling_crossvlt import CrossVLTModel
from ..processing_crossvlt import CrossVLTProcessor, counted
from ..visualization.canvas import BLUE, GREY, PINK, add_axes, add_text, new_figure, to_image, wrap
from ..visualization.overlay import CELL, PALETTE, draw_contour, fit_size, to_mask_image


if TYPE_CHECKING:
    from datasets import Dataset
    from matplotlib.axes import Axes

    from .run import EvaluationOptions


TILE = 360  # longest side in pixels of a drawn image
TILE_INCHES, CAPTION_INCHES, HEADING_INCHES, TITLE_INCHES, MARGIN = 2.1, 0.62, 0.34, 0.75, 0.25


@dataclass(frozen=True)
class Choice:
    """A row of the gallery.

    Args:
        title: heading of the row.
        indices: of the samples to show, in the order of the evaluation.
    """

    title: str
    indices: list[int]


def choose_samples(samples: Sequence[Sample], columns: int = 5, seed: int = 0) -> list[Choice]:
    """Choose samples for a gallery: the best, the worst, random ones, and a range of each group.

    No sample is in two rows. Ties are broken at random, so that the expressions of one image do not fill a row.

    Args:
        samples: of an evaluation.
        columns: the most samples per row.
        seed: of the random choices.

    Returns:
        Rows of at least one sample; a single row, from best to worst, if it holds all samples.

    Raises:
        ValueError: if there are no samples or columns.
    """
    if not samples or columns < 1:
        raise ValueError(f"There must be at least one sample and one column, got {len(samples)} and {columns}.")
    shuffled = np.random.default_rng(seed).permutation(len(samples)).tolist()
    ranked = sorted(shuffled, key=lambda index: samples[index].iou, reverse=True)
    if len(samples) <= columns:
        return [Choice("All, from best to worst", ranked)]
    worst = ranked[max(columns, len(ranked) - columns) :]
    rows = [Choice("Best", ranked[:columns]), Choice("Worst", worst[::-1])]
    shown = {index for row in rows for index in row.indices}
    rows.append(Choice("Random", [index for index in shuffled if index not in shown][:columns]))
    shown.update(rows[-1].indices)
    for group in sorted({sample.group for sample in samples} - {""}):
        rows.append(_choose_of_group(group, samples, [index for index in ranked if index not in shown], columns))
    return [row for row in rows if row.indices]


def _choose_of_group(group: str, samples: Sequence[Sample], ranked: list[int], columns: int) -> Choice:
    """A range from best to worst of the samples of a group that no other row shows."""
    ious = [sample.iou for sample in samples if sample.group == group]
    own = [index for index in ranked if samples[index].group == group]
    places = np.linspace(0, len(own) - 1, min(columns, len(own))).round().astype(int)
    count, mean = counted(len(ious), "expression"), float(np.mean(ious))
    title = f"{group}: {count}, mean IoU {percent(mean)} %; others from best to worst"
    return Choice(title, [own[place] for place in places])


def evaluation_gallery(
    model: CrossVLTModel,
    processor: CrossVLTProcessor,
    dataset: "Dataset",
    samples: Sequence[Sample],
    options: "EvaluationOptions | None" = None,
    *,
    columns: int = 5,
    seed: int = 0,
) -> Image.Image:
    """Draw samples of an evaluation.

    An evaluation does not keep masks, so the masks of the drawn samples are predicted again, in this process only.

    Args:
        model: on its device; runs in eval mode, and keeps its mode.
        processor: of the model.
        dataset: the evaluated data set.
        samples: `evaluate(...).samples`: one for every expression of the data set, in order.
        options: of the evaluation.
        columns: the most samples per row.
        seed: of the random row.

    Returns:
        New image of mode "RGB": the prediction tinted and outlined in blue, the ground truth outlined in pink, and
        below them the measured IoU and the expression.

    Raises:
        ModuleNotFoundError: without the extra `train` or `plot`.
        ValueError: if the samples do not belong to the data set.
    """
    from ..data.pairs import EvaluationPairs
    from .run import EvaluationOptions, find_masks

    expressions = len(EvaluationPairs(dataset))
    if len(samples) != expressions:
        counts = f"{counted(len(samples), 'sample')} of {counted(expressions, 'expression')}"
        raise ValueError(f"There must be one sample for each expression of the data set, got {counts}.")
    columns = min(columns, len(samples))
    rows = choose_samples(samples, columns, seed)
    wanted = sorted({index for row in rows for index in row.indices})
    pairs = find_masks(model, processor, dataset, wanted, options or EvaluationOptions())
    tiles = {
        index: _Tile(draw_tile(pair["image"], found, pair["mask"] == 1), pair["expression"])
        for index, (pair, found) in zip(wanted, pairs, strict=True)
    }
    return _draw_sheet(rows, samples, tiles, columns)


@dataclass(frozen=True)
class _Tile:
    picture: Image.Image
    expression: str


def draw_tile(image: Image.Image, found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Image.Image:
    """Draw a prediction, tinted and outlined in azure, and the ground truth, outlined in magenta, on an image.

    Args:
        image: of mode "RGB" and any size.
        found: the prediction, of the (height, width) of the image.
        truth: the ground truth, of the same size.
    """
    size = fit_size(image.size, TILE)
    shrinks = max(image.size) > TILE
    picture = image.resize(size, Image.Resampling.BICUBIC if shrinks else Image.Resampling.NEAREST)
    regions = [to_mask_image(mask).resize(size, Image.Resampling.NEAREST) for mask in (truth, found)]
    picture.paste(PALETTE[0], mask=regions[1].point([round(value * 0.4) for value in range(256)]))
    for region, colour in zip(regions, (PALETTE[1], PALETTE[0]), strict=True):
        draw_contour(picture, region, colour)
    return picture


def _draw_sheet(rows: list[Choice], samples: Sequence[Sample], tiles: dict[int, _Tile], columns: int) -> Image.Image:
    row_height = HEADING_INCHES + TILE_INCHES + CAPTION_INCHES
    width = max(2 * MARGIN + columns * (TILE_INCHES + MARGIN) - MARGIN, 5.5)
    figure = new_figure(width, TITLE_INCHES + len(rows) * row_height)
    mean = float(np.mean([sample.iou for sample in samples]))
    title = f"{counted(len(samples), 'expression')}, mean IoU {percent(mean)} %"
    add_text(figure, MARGIN, 0.15, title, fontsize=14, weight="bold")
    add_text(figure, MARGIN, 0.43, "blue: found", fontsize=9, color=BLUE, weight="bold")
    add_text(figure, MARGIN + 1.1, 0.43, "pink: truth", fontsize=9, color=PINK, weight="bold")
    for number, row in enumerate(rows):
        top = TITLE_INCHES + number * row_height
        add_text(figure, MARGIN, top + 0.05, row.title, fontsize=11, weight="bold")
        for column, index in enumerate(row.indices):
            left = MARGIN + column * (TILE_INCHES + MARGIN)
            axes = add_axes(figure, left, top + HEADING_INCHES, TILE_INCHES, TILE_INCHES)
            _show(axes, tiles[index].picture)
            below = top + HEADING_INCHES + TILE_INCHES + 0.05
            add_text(figure, left, below, _verdict(samples[index]), fontsize=9, weight="bold")
            add_text(figure, left, below + 0.16, wrap(tiles[index].expression, 36, 2), fontsize=8, color=GREY)
    return to_image(figure)


def _show(axes: "Axes", picture: Image.Image) -> None:
    axes.imshow(np.asarray(ImageOps.pad(picture, (TILE, TILE), color=CELL)), interpolation="antialiased")
    axes.set_axis_off()


def _verdict(sample: Sample) -> str:
    if sample.has_target:
        return f"IoU {percent(sample.iou)} %" if sample.predicted else "IoU 0 %: nothing found"
    return "no target, nothing found" if not sample.predicted else "no target, but something found"
