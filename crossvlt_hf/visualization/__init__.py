"""Pictures of an image's masks, and of what the model read on the way to them.

`overlay` needs Pillow and numpy alone; `explanation_figure` needs matplotlib, the extra `plot`.
"""

import warnings
from importlib import import_module
from typing import Any

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


_MOVED = {
    "training_curves": "training",
    **dict.fromkeys(["Choice", "choose_samples", "evaluation_gallery"], "evaluation"),
}


def __getattr__(name: str) -> Any:
    """Names of version 0.1 that are elsewhere now."""
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    new = f"crossvlt_hf.{_MOVED[name]}"
    warnings.warn(f"`{__name__}.{name}` is now `{new}.{name}`; the old name will go.", FutureWarning, stacklevel=2)
    return getattr(import_module(new), name)
