"""Pictures: what was found, what the model read on the way, an evaluation at a glance, and a run's curves.

`overlay` needs Pillow and numpy alone; the figures need matplotlib, the extra `plot`, which is imported when one is
drawn.
"""

from .curves import training_curves
from .explanation import Explanation, explain
from .gallery import Choice, choose_samples, evaluation_gallery
from .overlay import CELL, MIN_WIDTH, PALETTE, Mask, arrange, overlay, to_mask_image
from .panels import explanation_figure
from .reliability import reliability_diagram


__all__ = [
    "CELL",
    "MIN_WIDTH",
    "PALETTE",
    "Choice",
    "Explanation",
    "Mask",
    "arrange",
    "choose_samples",
    "evaluation_gallery",
    "explain",
    "explanation_figure",
    "overlay",
    "reliability_diagram",
    "to_mask_image",
    "training_curves",
]
