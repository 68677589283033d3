"""Draw masks on images, and explanations of predictions.

`overlay` needs only Pillow and numpy; `explanation_figure` needs matplotlib, the extra `plot`.
"""

from ..system import old_names
from .explanation import Explanation, explain, segment_and_explain
from .explanation_figure import explanation_figure
from .overlay import CELL, MIN_WIDTH, PALETTE, Mask, arrange, overlay, to_mask_image


__all__ = [
    "CELL",
    "MIN_WIDTH",
    "PALETTE",
    "Explanation",
    "Mask",
    "arrange",
    "explain",
    "explanation_figure",
    "overlay",
    "segment_and_explain",
    "to_mask_image",
]


__getattr__ = old_names(
    __name__,
    {
        "Choice": "crossvlt_hf.evaluation.Choice",
        "choose_samples": "crossvlt_hf.evaluation.choose_samples",
        "evaluation_gallery": "crossvlt_hf.evaluation.evaluation_gallery",
        "training_curves": "crossvlt_hf.training.training_curves",
    },
)
