"""Helpers of all figures, drawn with matplotlib without pyplot and its global state, as Pillow images."""

import textwrap
import unicodedata
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..system import install_command


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


DPI = 110
INK, GREY, FAINT = "#1a1e24", "#68707c", "#d5d9df"
BLUE, PINK = "#2496ff", "#e2127f"  # azure and magenta of the overlay's palette
# For texts of users, in which a dollar sign starts no formula
LITERAL: dict[str, Any] = {"parse_math": False, "usetex": False}


def new_figure(width: float, height: float) -> "Figure":
    """Make an empty white figure.

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
        message = f"Figures need matplotlib: {install_command('plot')}"
        raise ModuleNotFoundError(message, name="matplotlib") from error
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def add_axes(figure: "Figure", left: float, top: float, width: float, height: float) -> "Axes":
    """Add axes at a place in inches from the top left of the figure."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def add_text(figure: "Figure", left: float, top: float, text: str, **kwargs: Any) -> None:
    """Add text at a place in inches from the top left of the figure."""
    across, down = figure.get_size_inches()
    figure.text(left / across, 1 - top / down, text, **{"va": "top", "color": INK, **LITERAL, **kwargs})


def clean(axes: "Axes") -> None:
    """Keep only thin lines at the left and the bottom."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(color=FAINT, labelcolor=GREY, labelsize=8)


def one_line(text: str) -> str:
    """Remove line breaks, control characters and halves of surrogate pairs."""
    words = " ".join(text.split())
    return "".join(character for character in words if unicodedata.category(character) not in ("Cc", "Cf", "Cs"))


def wrap(text: str, letters: int, lines: int) -> str:
    """Wrap text to at most `lines` lines of `letters` letters; the rest becomes "…"."""
    return "\n".join(textwrap.wrap(one_line(text), letters, max_lines=lines, placeholder=" …"))


def to_image(figure: "Figure") -> Image.Image:
    """Draw the figure as a new image of mode "RGB". Letters that the font lacks are boxes."""
    canvas: Any = figure.canvas
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about missing letters
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
