"""The figure of an explanation: alignment and attention maps, a row per stage."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .canvas import (
    BLUE,
    FAINT,
    GREY,
    INK,
    LITERAL,
    PINK,
    add_axes,
    add_text,
    clean,
    new_figure,
    one_line,
    to_image,
    wrap,
)
from .explanation import SPECIAL, Explanation, Map, Pixel, check_pixel, positions_of
from .overlay import fit_size, overlay


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


STAGES = (1, 2, 3, 4)
AGREEMENT, HEAT = "RdBu_r", "YlOrRd"
SIDE = 640  # longest side in pixels of the drawn image
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
# In inches
MARGIN, FIRST, PANEL, LABELS, GAP, TITLE, HEADINGS, BETWEEN, FOOT = 0.3, 3.5, 2.6, 1.0, 0.35, 0.55, 0.62, 0.42, 0.4
LEFT = (
    MARGIN + FIRST + GAP + 0.45,
    MARGIN + FIRST + GAP + 0.45 + PANEL + GAP + LABELS,
    MARGIN + FIRST + GAP + 0.45 + 2 * (PANEL + GAP) + LABELS,
)


@dataclass(frozen=True)
class _Subject:
    """The subject of the figure: pixels with their attention to the words in each stage (T,), and a word."""

    name: str
    words_read: dict[int, Map]
    word: str
    reason: str
    pixel: Pixel | None


def explanation_figure(
    explanation: Explanation, *, word: str | None = None, pixel: Pixel | None = None
) -> Image.Image:
    """Draw an explanation: the overlay of the mask, and a row of panels for each stage.

    Left: the alignment map, the cosine of every pixel with the sentence. Middle: the attention of the object to the
    words. Right: the attention of a word to the pixels. Panels without a map show the image and say so.

    Args:
        explanation: see `explain`.
        word: of the right column; one or several words of the expression. None for the content word with most of the
            object's attention.
        pixel: (x, y) of the middle column. None for the object, or the whole image if the mask is empty.

    Returns:
        New image of mode "RGB".

    Raises:
        ModuleNotFoundError: without matplotlib, the extra `plot`.
        ValueError: if the word is not in the expression, or the pixel not in the image.
    """
    subject = _choose_subject(explanation, word, pixel if pixel is None else (int(pixel[0]), int(pixel[1])))
    panel_height = _panel_height(explanation)
    height = TITLE + HEADINGS + len(STAGES) * (panel_height + BETWEEN) + FOOT
    figure = new_figure(LEFT[2] + PANEL + MARGIN, max(height, TITLE + HEADINGS + 5.5))
    _draw_first_column(figure, explanation, subject)
    _draw_headings(figure, subject)
    photo = _faded(explanation.image)
    columns = (_draw_alignment, _draw_words, _draw_pixels)
    for row, stage in enumerate(STAGES):
        top = TITLE + HEADINGS + row * (panel_height + BETWEEN)
        for left, draw in zip(LEFT, columns, strict=True):
            draw(add_axes(figure, left, top, PANEL, panel_height), explanation, subject, stage, photo)
        _label_row(figure, explanation, stage, top + panel_height / 2)
    foot = TITLE + HEADINGS + len(STAGES) * (panel_height + BETWEEN)
    if explanation.alignment_maps:
        _draw_scale(figure, LEFT[0], foot, AGREEMENT, ("-1", "0", "1"))
    if explanation.pixels_read:
        _draw_scale(figure, LEFT[2], foot, HEAT, ("none", "", "maximum"))
    return to_image(figure)


def _choose_subject(explanation: Explanation, word: str | None, pixel: Pixel | None) -> _Subject:
    whole = "object" if explanation.mask.any() else "whole image"
    name = f"the {whole}"
    if pixel is not None:
        check_pixel(pixel, explanation.image.size)
        name = f"the pixel ({pixel[0]}, {pixel[1]})"
    if word is not None:
        positions_of(explanation.tokens, word)
        reason = "as requested"
    else:
        word = explanation.salient_word()
        reason = f"with most attention of the {whole}"
    words_read = {stage: explanation.words_of(stage, pixel) for stage in explanation.words_read}
    return _Subject(name, words_read, one_line(word), reason, pixel)


def _panel_height(explanation: Explanation) -> float:
    """The height of a panel for the shape of the image, within limits, and for a bar per word."""
    width, height = explanation.image.size
    return max(min(max(PANEL * height / width, 1.5), 3.6), 0.15 * len(explanation.tokens))


def _faded(image: Image.Image) -> NDArray[np.float32]:
    """The image in light grey, scaled down to its drawn size: (h, w) in [0, 1]."""
    small = image.convert("L")
    small.thumbnail((SIDE, SIDE))
    return np.asarray(small, np.float32) * np.float32(0.75 / 255) + np.float32(0.25)


# ---- around the panels


def _draw_first_column(figure: "Figure", explanation: Explanation, subject: _Subject) -> None:
    """Draw heading, overlay and notes."""
    heading = wrap(f"“{one_line(explanation.expression)}”", 100, 1)
    add_text(figure, MARGIN, 0.2, heading, fontsize=15, weight="bold")
    picture = _draw_overlay(explanation, subject.pixel)
    height = min(FIRST * picture.height / picture.width, 4.4)
    axes = add_axes(figure, MARGIN, TITLE + 0.15, FIRST, height)
    axes.imshow(np.asarray(picture))
    axes.set_anchor("NW")
    axes.set_axis_off()
    notes = (
        "Alignment: cosine of every pixel with the sentence, red if high. The line is the contour of the mask.",
        f"Words: attention of {subject.name} to the words, in the fusion of each stage. Dashed: uniform attention.",
        f"Pixels: attention of “{subject.word}” ({subject.reason}) to the pixels, at the start of each language "
        "stage. Every map has its own scale.",
        "Attention is averaged over heads.",
    )
    text = "\n\n".join(wrap(note, 50, 6) for note in notes)
    add_text(figure, MARGIN, TITLE + 0.35 + height, text, fontsize=9, color=GREY, linespacing=1.4)


def _draw_overlay(explanation: Explanation, pixel: Pixel | None) -> Image.Image:
    """Draw the overlay at its final size, with a cross at the pixel."""
    scale = SIDE / max(explanation.image.size)
    size = fit_size(explanation.image.size, SIDE)
    photo = explanation.image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC)
    mask = Image.fromarray(explanation.mask).resize(size, Image.Resampling.NEAREST)
    if pixel is not None:
        x, y = (round((place + 0.5) * scale) for place in pixel)
        pen = ImageDraw.Draw(photo)
        for ink, line in (("white", 7), ("black", 3)):
            pen.line((x - 12, y, x + 12, y), ink, line)
            pen.line((x, y - 12, x, y + 12), ink, line)
    return overlay(photo, mask, [explanation.expression], [explanation.score])


def _draw_headings(figure: "Figure", subject: _Subject) -> None:
    headings = (
        "Alignment with the sentence",
        f"Attention of {subject.name} to words",
        f"Attention of “{subject.word}” to pixels",
    )
    for left, heading in zip((LEFT[0], LEFT[1] - 0.6 * LABELS, LEFT[2]), headings, strict=True):
        text = wrap(heading, 32, 2)
        top = TITLE + (0.32 if "\n" not in text else 0.13)
        add_text(figure, left, top, text, fontsize=10.5, weight="bold")


def _draw_scale(figure: "Figure", left: float, top: float, colours: str, ends: tuple[str, str, str]) -> None:
    axes = add_axes(figure, left + PANEL / 4, top, PANEL / 2, 0.1)
    axes.imshow(np.linspace(0, 1, 64)[None], aspect="auto", cmap=colours, extent=(0, 1, 0, 1), alpha=0.8)
    axes.set_xticks((0, 0.5, 1), ends)
    axes.set_yticks([])
    axes.tick_params(length=0, labelsize=7.5, labelcolor=GREY, pad=2)
    axes.spines[:].set_visible(False)


def _label_row(figure: "Figure", explanation: Explanation, stage: int, middle: float) -> None:
    rows, columns = explanation.words_read[stage].shape[:2]
    label = {"va": "center", "ha": "center", "rotation": 90}
    add_text(figure, LEFT[0] - 0.38, middle, f"Stage {stage}", fontsize=10.5, weight="bold", **label)
    add_text(figure, LEFT[0] - 0.18, middle, f"grid {rows} x {columns}", fontsize=8, color=GREY, **label)


# ---- the panels


def _draw_alignment(
    axes: "Axes", explanation: Explanation, subject: _Subject, stage: int, photo: NDArray[np.float32]
) -> None:
    if stage not in explanation.alignment_maps:
        return _draw_photo(axes, explanation, subject, photo, "no alignment in this stage")
    cosine = explanation.alignment_maps[stage]
    _draw_map(axes, explanation, stage, photo, cosine, cmap=AGREEMENT, vmin=-1, vmax=1, alpha=0.7)
    _finish_image(
        axes, explanation, subject, f"cosine from {_two_decimals(cosine.min())} to {_two_decimals(cosine.max())}"
    )
    return None


def _two_decimals(value: float) -> str:
    return f"{round(float(value), 2) + 0.0:.2f}"  # no negative zero


def _draw_pixels(
    axes: "Axes", explanation: Explanation, subject: _Subject, stage: int, photo: NDArray[np.float32]
) -> None:
    if stage not in explanation.pixels_read:
        note = "no attention to pixels in " + ("this stage" if explanation.pixels_read else "this model")
        return _draw_photo(axes, explanation, subject, photo, note)
    read = explanation.pixels_of(stage, subject.word)
    share = read / read.max()
    _draw_map(axes, explanation, stage, photo, share, cmap=HEAT, vmin=0, vmax=1, alpha=0.9 * share)
    _finish_image(axes, explanation, subject, f"maximum {read.max() * read.size:.1f} x uniform attention")
    return None


def _draw_map(
    axes: "Axes", explanation: Explanation, stage: int, photo: NDArray[np.float32], values: Map, **kwargs: Any
) -> None:
    """Draw a map over the image, with its cells in place."""
    width, height = explanation.extent(stage)
    across, down = explanation.image.size
    axes.imshow(photo, cmap="gray", vmin=0, vmax=1, extent=(0, across, down, 0))
    axes.imshow(values, extent=(0, width, height, 0), interpolation="nearest", **kwargs)


def _finish_image(axes: "Axes", explanation: Explanation, subject: _Subject, label: str) -> None:
    """Draw the contour of the mask, the pixel, and the label."""
    width, height = explanation.image.size
    if explanation.mask.any() and not explanation.mask.all():
        small = Image.fromarray(explanation.mask)
        small.thumbnail((SIDE, SIDE), Image.Resampling.NEAREST)
        places = (
            (np.arange(drawn + 2) - 0.5) * side / drawn
            for drawn, side in zip(small.size, (width, height), strict=True)
        )
        axes.contour(*places, np.pad(np.asarray(small, np.float32), 1), levels=[0.5], colors=INK, linewidths=1.1)
    if subject.pixel is not None:
        x, y = (place + 0.5 for place in subject.pixel)
        for colour, line in (("white", 3.5), (INK, 1.5)):
            axes.plot(x, y, "+", color=colour, markersize=11, markeredgewidth=line)
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.set_xlabel(label, fontsize=8, color=GREY, labelpad=3)
    axes.spines[:].set_color(FAINT)


def _draw_words(
    axes: "Axes", explanation: Explanation, subject: _Subject, stage: int, photo: NDArray[np.float32]
) -> None:
    tokens, read = explanation.tokens, subject.words_read[stage]
    chosen = positions_of(tokens, subject.word)
    colours = [FAINT if token in SPECIAL else PINK if place in chosen else BLUE for place, token in enumerate(tokens)]
    places, size = np.arange(len(tokens)), 8.5 if len(tokens) <= 16 else 7.5
    axes.barh(places, read, height=0.72, color=colours)
    axes.axvline(1 / len(tokens), color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    most = max(float(shares.max()) for shares in subject.words_read.values())
    label: dict[str, Any] = {"va": "center", "fontsize": size - 1.5, "color": GREY, "bbox": PAPER}
    for place, share in enumerate(read):
        axes.text(share + 0.02 * most, place, f"{100 * share:.0f} %", **label)
    clean(axes)
    axes.set_yticks(places, [wrap(token, 14, 1) for token in tokens], fontsize=size, color=INK, **LITERAL)
    spare = max(7 - len(tokens), 0) / 2  # limits the width of bars
    axes.set(xlim=(0, 1.18 * most), ylim=(len(tokens) - 0.4 + spare, -0.6 - spare), xticks=[])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)


def _draw_photo(
    axes: "Axes", explanation: Explanation, subject: _Subject, photo: NDArray[np.float32], note: str
) -> None:
    """Draw the image without a map."""
    width, height = explanation.image.size
    axes.imshow(photo, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
    _finish_image(axes, explanation, subject, note)
