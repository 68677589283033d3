"""Pictures of an image's masks, and of what the model read on the way to them.

`overlay` needs Pillow and numpy alone; `explanation_figure` needs matplotlib, the extra `plot`.
"""

from .explanation import Explanation, explain
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
    "to_mask_image",
]
