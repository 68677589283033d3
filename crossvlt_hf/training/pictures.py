"""Draw predictions during training."""

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from PIL import Image

from ..data.pairs import EvaluationPairs
from ..evaluation.run import find_masks
from ..metrics import percent
from ..modeling_crossvlt import CrossVLTModel
from ..processing_crossvlt import CrossVLTProcessor
from ..visualization import CELL, PALETTE, arrange, overlay, to_mask_image
from ..visualization.overlay import fit_size


SIDE, GAP, COLUMNS = 256, 8, 3


def draw_predictions(model: CrossVLTModel, processor: CrossVLTProcessor, dataset: Dataset, count: int) -> Image.Image:
    """Draw predicted masks of expressions evenly spaced over a data set, each beside the ground truth.

    Args:
        model: on its device; runs in eval mode, and keeps its mode.
        processor: of the model.
        dataset: see `evaluate`.
        count: the most expressions.

    Returns:
        New image of mode "RGB", in cells of equal size.
    """
    expressions = len(EvaluationPairs(dataset))
    indices = np.linspace(0, expressions - 1, min(count, expressions)).round().astype(int).tolist()
    cells = [
        _draw_pair(pair["image"], pair["expression"], found, pair["mask"] == 1)
        for pair, found in find_masks(model, processor, dataset, indices)
    ]
    return arrange(cells, COLUMNS)


def _draw_pair(image: Image.Image, expression: str, found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Image.Image:
    """Draw the image twice, with the prediction and with the ground truth, and a legend."""
    photo = _fit(image, CELL, Image.Resampling.BICUBIC)
    wide = Image.new("RGB", (2 * SIDE + GAP, SIDE), "white")
    masks = []
    for left, mask in ((0, found), (SIDE + GAP, truth)):
        wide.paste(photo, (left, 0))
        masks.append(Image.new("L", wide.size))
        masks[-1].paste(_fit(to_mask_image(mask), 0, Image.Resampling.NEAREST), (left, 0))
    union = np.count_nonzero(found | truth)
    iou = np.count_nonzero(found & truth) / union if union else float(not truth.any())
    return overlay(wide, masks, [f"found (IoU {percent(iou)} %): {expression}", "truth"], colours=PALETTE[:2])


def _fit(image: Image.Image, colour: int | tuple[int, int, int], method: Image.Resampling) -> Image.Image:
    """Fit the image into a square of `SIDE` pixels."""
    square = Image.new(image.mode, (SIDE, SIDE), colour)
    width, height = size = fit_size(image.size, SIDE)
    square.paste(image.resize(size, method), ((SIDE - width) // 2, (SIDE - height) // 2))
    return square
