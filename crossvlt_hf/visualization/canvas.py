"""What all figures share: drawn by matplotlib without pyplot, whose state is global, and given as a Pillow image."""

import textwrap
import unicodedata
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


DPI = 110
INK, GREY, FAINT = "#1a1e24", "#68707c", "#d5d9df"
BLUE, PINK = "#2496ff", "#e2127f"  # azure and magenta of the overlay's palette
# What users write is drawn as it is: a dollar begins no formula
LITERAL: dict[str, Any] = {"parse_math": False, "usetex": False}


def new_figure(width: float, height: float) -> "Figure":
    """An empty white figure.

    Args:
        width: in inches of 110 pixels.
        height: in inches.

    Raises:
        ModuleNotFoundError: without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        message = "Figures need matplotlib: pip install 'crossvlt_hf[plot]'."
        raise ModuleNotFoundError(message, name="matplotlib") from error
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def add_axes(figure: "Figure", left: float, top: float, width: float, height: float) -> "Axes":
    """Axes whose place is given in inches from the figure's top left."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def add_text(figure: "Figure", left: float, top: float, text: str, **kwargs: Any) -> None:
    """Text whose top left is given in inches from the figure's top left."""
    across, down = figure.get_size_inches()
    figure.text(left / across, 1 - top / down, text, **{"va": "top", "color": INK, **LITERAL, **kwargs})


def clean(axes: "Axes") -> None:
    """Leave only thin lines at the left and at the bottom."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(color=FAINT, labelcolor=GREY, labelsize=8)


def one_line(text: str) -> str:
    """Text without line breaks, control characters and halves of surrogate pairs."""
    words = " ".join(text.split())
    return "".join(character for character in words if unicodedata.category(character) not in ("Cc", "Cf", "Cs"))


def wrap(text: str, letters: int, lines: int) -> str:
    """Text in at most `lines` lines of `letters` letters; what does not fit becomes "…"."""
    return "\n".join(textwrap.wrap(one_line(text), letters, max_lines=lines, placeholder=" …"))


def to_image(figure: "Figure") -> Image.Image:
    """The figure as a new image of mode "RGB". Letters that the font lacks are boxes."""
    canvas: Any = figure.canvas
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of each letter that is missing
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
