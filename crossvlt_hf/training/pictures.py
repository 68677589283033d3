"""Predictions as pictures, to be looked at during training."""

import numpy as np
from datasets import Dataset
from PIL import Image

from ..data.pairs import EvaluationPairs
from ..modeling_crossvlt import CrossVLTModel
from ..pipeline_crossvlt import ReferringImageSegmentationPipeline
from ..processing_crossvlt import CrossVLTProcessor
from ..visualization import arrange, overlay


SIDE, COLUMNS = 256, 4


def draw_predictions(model: CrossVLTModel, processor: CrossVLTProcessor, dataset: Dataset, count: int) -> Image.Image:
    """The masks found for some pairs spread over a data set."""
    pairs = EvaluationPairs(dataset)
    indices = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).astype(int).tolist()
    pipeline = ReferringImageSegmentationPipeline(model=model, processor=processor, device=model.device)
    tiles = []
    for pair in pairs.__getitems__(indices):
        (result,) = pipeline(pair["image"], text=pair["expression"])
        scale = SIDE / max(pair["image"].size)
        size = tuple(round(scale * side) for side in pair["image"].size)
        tiles.append(
            overlay(pair["image"].resize(size), [result["mask"].resize(size)], [pair["expression"]], [result["score"]])
        )
    return arrange(tiles, COLUMNS)
