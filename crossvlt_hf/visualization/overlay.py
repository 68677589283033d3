"""Draw masks on an image, tinted and outlined, with a legend of the expressions below.

Needs only Pillow and numpy. Shapes: (H, W) the image or a part of it. `unit` is the width of the coloured line of a
contour in pixels, `size` the font size of the legend; both grow with the image.
"""

import math
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageStat
from torch import Tensor

from ..processing_crossvlt import to_rgb


Mask: TypeAlias = np.ndarray | Tensor | Image.Image
Result = dict[str, Any]
Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# At least 25 apart in CIE76, also for the three kinds of colour blindness (Machado et al., 2009).
PALETTE: tuple[Colour, ...] = (
    (36, 150, 255),  # azure
    (226, 18, 127),  # magenta
    (245, 238, 30),  # yellow
    (31, 237, 166),  # mint
    (90, 48, 240),  # violet
    (242, 138, 26),  # orange
)
STANDS_OUT = 120  # least distance of a colour from what lies below it, in RGB of 0 to 255
WHITE: Colour = (255, 255, 255)
INK: Colour = (26, 30, 36)
GREY: Colour = (104, 112, 124)
CELL: Colour = (238, 240, 243)  # background of images in a grid

MIN_WIDTH = 320  # narrower images have no room for a legend
MAX_UPSCALED_HEIGHT = 2048
MAX_LINES = 3  # per expression in the legend
TILE, STRIP = 240, 62  # of an example: side of the image, height of the text
# Fonts of systems for letters that Pillow's font lacks: those with Chinese characters first
SYSTEM_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "msyh.ttc",
    "DejaVuSans.ttf",
)
BLOCK = 256  # side of the blocks in which contours are drawn
GAP = 8  # between images in a grid


def overlay(
    image: Image.Image,
    masks: Mask | Result | Sequence[Mask] | Sequence[Result],
    labels: str | Sequence[str] | None = None,
    scores: float | Sequence[float] | None = None,
    *,
    opacity: float = 0.25,
    colours: Sequence[Colour] | None = None,
) -> Image.Image:
    """Draw masks on an image, each in its own colour, with a legend below.

    `overlay(image, mask)` and `overlay(image, results)`, with results of the pipeline, are enough. Each mask takes the
    first colour of `PALETTE` that no other mask has and that stands out from the image below. The tint is faint, so
    that the colour named by an expression stays visible.

    Later masks cover earlier ones, contours cover all masks. Other pixels of the image do not change. An image
    narrower than 320 pixels is enlarged by an integer factor, up to a height of 2048 pixels, and padded with white if
    it is still narrower. Labels are cut to three lines. Pillow's font has only ASCII letters: accents are dropped, and
    letters of other scripts are empty boxes.

    Args:
        image: of any size; drawn upright as EXIF says, on white.
        masks: one mask of the size of the upright image, or one for each expression: `(height, width)` arrays or
            tensors of bool or integers, or images of mode "1" or "L". Non-zero pixels belong to the mask, except 255
            in masks that also hold 1, which is ignored. Or one or several results of the pipeline, dicts with "mask",
            "label" and "score".
        labels: the expressions; by default those of the results. Without labels there is no legend.
        scores: one number for each expression; by default those of the results.
        opacity: of the colour inside a mask, from 0 (contours only) to 1.
        colours: (red, green, blue) from 0 to 255 for each mask, where a colour must mean the same in several images;
            by default those that stand out.

    Returns:
        New image of mode "RGB".

    Raises:
        ValueError: if numbers or sizes do not match, a mask is invalid, the image has no pixels, or `opacity` is
            outside [0, 1].
    """
    photo = to_rgb(image)
    masks, labels, scores = _listed(masks, labels, scores)
    _check_request(photo, masks, labels, scores, opacity, colours)
    factor = _enlargement(photo.size)
    picture = photo.resize((photo.width * factor, photo.height * factor), Image.Resampling.NEAREST)
    regions = [to_mask_image(mask).resize(picture.size, Image.Resampling.NEAREST) for mask in masks]
    colours = _choose_colours(picture, regions) if colours is None else colours
    _draw_regions(picture, regions, colours, opacity)
    rows = [] if labels is None else _legend_rows(regions, colours, labels, scores)
    return _stack(picture, _draw_legend(rows, picture.size) if rows else None)


def _draw_regions(
    picture: Image.Image, regions: Sequence[Image.Image], colours: Sequence[Colour], opacity: float
) -> None:
    """Tint regions ("L", 0 or 255, of the picture's size) in their colours, and draw their contours."""
    for region, colour in zip(regions, colours, strict=True):
        picture.paste(colour, mask=region.point([round(value * opacity) for value in range(256)]))
    for region, colour in zip(regions, colours, strict=True):
        draw_contour(picture, region, colour)


def _legend_rows(
    regions: Sequence[Image.Image],
    colours: Sequence[Colour],
    labels: Sequence[str],
    scores: Sequence[float] | None,
) -> list["_Row"]:
    found = [region.getbbox() is not None for region in regions]
    given: Sequence[float | None] = [None] * len(found) if scores is None else scores
    notes = [_note(score, shown) for score, shown in zip(given, found, strict=True)]
    return [_Row(*row) for row in zip(colours, found, map(_plain, labels), notes, strict=True)]


def _listed(
    masks: Any, labels: str | Sequence[str] | None, scores: float | Sequence[float] | None
) -> tuple[Sequence[Mask], Sequence[str] | None, Sequence[float] | None]:
    """Convert masks, labels and scores, or results, to lists."""
    if isinstance(masks, dict | Image.Image) or getattr(masks, "ndim", 0) == 2:
        masks, labels = [masks], [labels] if isinstance(labels, str) else labels
        scores = [scores] if isinstance(scores, int | float) else scores
    if len(masks) and isinstance(masks[0], dict):
        results, masks = masks, [result["mask"] for result in masks]
        labels = [result["label"] for result in results] if labels is None else labels
        given = [result["score"] for result in results if result.get("score") is not None]
        scores = given if scores is None and len(given) == len(results) else scores
    if labels is None and scores is not None:
        labels = [""] * len(masks)
    return masks, labels, scores  # type: ignore[return-value]


def fit_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The (width, height) to which an image is scaled so that its longest side has `side` pixels; at least 1 pixel."""
    width, height = (max(1, round(length * side / max(size))) for length in size)
    return width, height


def draw_example(picture: Image.Image, mask: Mask, expression: str, family: str) -> Image.Image:
    """Draw an image of at most 240 pixels a side with a mask outlined, and expression and family below.

    Letters beyond ASCII need one of `SYSTEM_FONTS`: see `overlay` for how they are drawn without.
    """
    picture = picture.resize(fit_size(picture.size, TILE), Image.Resampling.BICUBIC)
    draw_contour(picture, to_mask_image(mask).resize(picture.size, Image.Resampling.NEAREST), PALETTE[1])
    tile = Image.new("RGB", (TILE, TILE + STRIP), "white")
    tile.paste(picture, ((TILE - picture.width) // 2, TILE - picture.height))
    font = ImageFont.load_default(size=12) if expression.isascii() else _system_font(12)
    text = expression if font else _plain(expression)
    font = font or ImageFont.load_default(size=12)
    lines = "\n".join([*_wrap(text, font, TILE - 4), f"({family})"])
    ImageDraw.Draw(tile).multiline_text((2, TILE + 2), lines, fill="black", font=font, spacing=1)
    return tile


@lru_cache
def _system_font(size: int) -> Font | None:
    """The first of `SYSTEM_FONTS` that is installed."""
    for name in SYSTEM_FONTS:
        with suppress(OSError):
            return ImageFont.truetype(name, size)
    return None


def arrange(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    """Arrange images in a grid on white, centred in cells of equal size.

    Rows are balanced: 4 images and 3 columns make 2 rows of 2. A shorter last row is centred.

    Args:
        tiles: images of any sizes, at least one.
        columns: the most images per row.
    """
    width, height = max(tile.width for tile in tiles) + GAP, max(tile.height for tile in tiles) + GAP
    rows = -(-len(tiles) // columns)
    columns = -(-len(tiles) // rows)
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "white")
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        missing = columns - min(columns, len(tiles) - row * columns)
        left = GAP + column * width + (missing * width + width - GAP - tile.width) // 2
        sheet.paste(tile, (left, GAP + row * height + (height - GAP - tile.height) // 2))
    return sheet


def to_mask_image(mask: Mask) -> Image.Image:
    """Convert a mask to a visible image.

    Args:
        mask: `(height, width)` array or tensor of bool or of integers, or image of mode "1" or "L".

    Returns:
        New image of mode "L" and the same size: 255 on the mask, 0 elsewhere; see `overlay` for values of masks.

    Raises:
        ValueError: if the mask does not have two dimensions, or holds floats.
    """
    return Image.fromarray(np.where(_to_array(mask), 255, 0).astype(np.uint8))


def _to_array(mask: Mask) -> NDArray[np.bool_]:
    if isinstance(mask, Tensor):
        mask = mask.detach().cpu()
        mask = mask.float() if mask.is_floating_point() else mask  # numpy has no bfloat16
    values = np.asarray(mask)
    if values.ndim != 2:
        raise ValueError(f"A mask must have two dimensions, (height, width), got shape {values.shape}.")
    if values.dtype.kind not in "bui":
        raise ValueError(f"A mask must hold bools or integers, got {values.dtype}; use e.g. `mask > 0.5`.")
    if {1, 255} <= set(np.unique(values).tolist()) <= {0, 1, 255}:
        return values == 1  # the mask of a record, in which 255 is ignored
    return values != 0


def _check_request(
    image: Image.Image,
    masks: Sequence[Mask],
    labels: Sequence[str] | None,
    scores: Sequence[float] | None,
    opacity: float,
    colours: Sequence[Colour] | None,
) -> None:
    if not 0 <= opacity <= 1:
        raise ValueError(f"`opacity` must be a number from 0 to 1, got {opacity}.")
    if isinstance(labels, str):
        raise ValueError(f"`labels` must be a list of expressions, e.g. [{labels!r}], got a text.")
    for name, values in (("labels", labels), ("scores", scores), ("colours", colours)):
        if values is not None and len(values) != len(masks):
            raise ValueError(f"`{name}` must have one entry for each of {len(masks)} masks, got {len(values)}.")
    for index, mask in enumerate(masks):
        _check_size(f"Mask {index}", mask, image)


def _check_size(name: str, mask: Mask, image: Image.Image) -> None:
    height, width = _to_array(mask).shape
    if (width, height) != image.size:
        raise ValueError(
            f"{name} must have the size of the image, {image.width}x{image.height} (width x height), got "
            f"{width}x{height}."
        )


def _enlargement(size: tuple[int, int]) -> int:
    width, height = size
    return max(1, min(-(-MIN_WIDTH // width), MAX_UPSCALED_HEIGHT // height))


def _colour(index: int) -> Colour:
    """The colour of a mask: the palette, then the palette mixed with white, then with black, and so on."""
    cycle, entry = divmod(index, len(PALETTE))
    target, share = ((0, 0.0), (255, 0.5), (0, 0.45))[cycle % 3]
    red, green, blue = (round(value + (target - value) * share) for value in PALETTE[entry])
    return red, green, blue


def _choose_colours(picture: Image.Image, regions: Sequence[Image.Image]) -> list[Colour]:
    """A colour for each mask: the first left that stands out from the mean of what lies below, else the farthest."""
    left = [_colour(index) for index in range(max(len(regions), len(PALETTE)))]
    chosen = []
    for region in regions:
        below = ImageStat.Stat(picture, region).mean if region.getbbox() else [128, 128, 128]
        clear = [colour for colour in left if math.dist(colour, below) >= STANDS_OUT]
        chosen.append(clear[0] if clear else max(left, key=lambda colour: math.dist(colour, below)))
        left.remove(chosen[-1])
    return chosen


def draw_contour(picture: Image.Image, region: Image.Image, colour: Colour) -> None:
    """Draw the contour of `region` ("L", 0 or 255): a line in `colour`, and outside it a white and a dark one."""
    unit = max(2.0, (picture.width * picture.height) ** 0.5 / 175)
    dark, white = 1.1 * unit, 0.9 * unit
    for box, distance in _rim_distances(np.asarray(region) > 0, int(dark) + 3, max(1, round(unit / 4))):
        for ink, edge, strength in ((INK, dark, 0.5), (WHITE, white, 1.0)):
            _paste(picture, ink, box, np.where(distance > 0, _coverage(edge - distance) * strength, 0))
        _paste(picture, colour, box, _coverage(unit / 2 - abs(distance)))


def _coverage(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """The share of each pixel `(H, W)` that a line covers, from its distance behind the edge of the line."""
    return np.clip(depth + np.float32(0.5), 0, 1)


def _paste(picture: Image.Image, ink: Colour, box: tuple[int, int, int, int], share: NDArray[np.float32]) -> None:
    picture.paste(ink, box, Image.fromarray((share * 255).round().astype(np.uint8)))


def _rim_distances(
    region: NDArray[np.bool_], reach: int, softness: int
) -> Iterator[tuple[tuple[int, int, int, int], NDArray[np.float32]]]:
    """Yield the box (left, top, right, bottom) of each block near the contour, and `(H, W)` distances to the contour.

    Distances are negative inside the region; pixels beyond the image are outside. Blocks save memory and time, since
    most of them have no contour.
    """
    height, width = region.shape
    margin = reach + 3 * softness
    padded = np.pad(region, margin)
    for top in range(0, height, BLOCK):
        for left in range(0, width, BLOCK):
            bottom, right = min(top + BLOCK, height), min(left + BLOCK, width)
            tile = padded[top : bottom + 2 * margin, left : right + 2 * margin]
            if tile.any() and not tile.all():
                distance = _soften(_soften(_signed_distance(tile, reach), softness), 2 * softness)
                yield (left, top, right, bottom), distance[reach:-reach, reach:-reach]


def _signed_distance(region: NDArray[np.bool_], reach: int) -> NDArray[np.float32]:
    """Distances `(H, W)` to the contour in pixels, negative inside the region; exact up to `reach`."""
    outside, inside = _distance_to(region, reach), _distance_to(~region, reach)
    return outside - inside + np.where(region, np.float32(0.5), np.float32(-0.5))


def _distance_to(region: NDArray[np.bool_], reach: int) -> NDArray[np.float32]:
    """Euclidean distance `(H, W)` of each pixel to the region: one pass per axis."""
    squared = np.where(region, np.float32(0), np.float32((reach + 1) ** 2))
    return np.sqrt(_lower_envelope(_lower_envelope(squared, reach).T, reach).T)


def _lower_envelope(squared: NDArray[np.float32], reach: int) -> NDArray[np.float32]:
    nearest = squared.copy()
    for shift in range(1, reach + 1):
        moved = squared + np.float32(shift**2)
        np.minimum(nearest[shift:], moved[:-shift], out=nearest[shift:])
        np.minimum(nearest[:-shift], moved[shift:], out=nearest[:-shift])
    return nearest


def _soften(values: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    """Average values with their neighbours at `step`, to smooth the contour; each side loses `step` values."""
    for _ in range(2):  # once for each axis
        ends = values[: -2 * step] + values[2 * step :]
        values = (ends * np.float32(0.25) + values[step:-step] * np.float32(0.5)).T
    return values


class _Row(NamedTuple):
    """A row of the legend."""

    colour: Colour
    found: bool
    label: str
    note: str


def _note(score: float | None, found: bool) -> str:
    parts = [] if score is None else [f"{float(score):.2f}"]
    return "   ".join(parts if found else [*parts, "nothing found"])


def _plain(text: str) -> str:
    """Convert text to one line without control characters, and without accents that the font lacks."""
    words = " ".join(unicodedata.normalize("NFC", text).split())
    return "".join(_plain_character(character) for character in words)


def _plain_character(character: str) -> str:
    category = unicodedata.category(character)
    if category[0] in "CM":  # control and format characters, halves of surrogate pairs, lone accents
        return ""
    if category == "Pd":
        return "-"
    base = "".join(part for part in unicodedata.normalize("NFKD", character) if unicodedata.category(part) != "Mn")
    return base if base.isascii() else character


def _draw_legend(rows: list[_Row], picture_size: tuple[int, int]) -> Image.Image:
    """Draw the legend as a strip of the width of the image."""
    width, height = max(picture_size[0], MIN_WIDTH), picture_size[1]
    size = round(max(14, min((width * height) ** 0.5 / 28, width / 22)))
    font = ImageFont.load_default(size=size)
    labels, notes_at = _set_columns(rows, font, width, size)
    pitch, gap = round(1.3 * size), round(0.35 * size)
    strip = Image.new("RGB", (width, 2 * size + pitch * sum(map(len, labels)) + gap * (len(rows) - 1)), WHITE)
    draw = ImageDraw.Draw(strip)
    top = size
    for row, lines in zip(rows, labels, strict=True):
        baseline = top + (pitch + round(0.7 * size)) // 2  # capitals have 0.7 of the font size
        _draw_swatch(strip, (size, top + (pitch - size) // 2), size, row)
        draw.text((notes_at, baseline), row.note, GREY, font, anchor="ls")
        for index, line in enumerate(lines):
            draw.text((_labels_at(size), baseline + index * pitch), line, INK, font, anchor="ls")
        top += len(lines) * pitch + gap
    return strip


def _set_columns(rows: list[_Row], font: Font, width: int, size: int) -> tuple[list[list[str]], int]:
    """Wrap the labels, leaving room for the notes; also return the position of the notes."""
    notes = max(_text_width(font, row.note) for row in rows)
    room = width - _labels_at(size) - size - (notes + 2 * size if notes else 0)
    labels = [_wrap(row.label, font, max(room, 4 * size)) for row in rows]
    widest = max(_text_width(font, line) for lines in labels for line in lines)
    return labels, _labels_at(size) + widest + 2 * size


def _labels_at(size: int) -> int:
    return round(2.5 * size)  # margin, swatch, gap


def _draw_swatch(strip: Image.Image, corner: tuple[int, int], side: int, row: _Row) -> None:
    """Draw a rounded square in the colour of the row: filled, or only outlined if the mask is empty."""
    fine = 4 * side
    shape = Image.new("L", (fine, fine))
    ImageDraw.Draw(shape).rounded_rectangle(
        (0, 0, fine - 1, fine - 1), fine // 4, fill=255 if row.found else 0, outline=255, width=fine // 8
    )
    strip.paste(row.colour, corner, shape.resize((side, side), Image.Resampling.LANCZOS))


def _text_width(font: Font, text: str) -> int:
    return int(np.ceil(font.getlength(text)))


def _wrap(text: str, font: Font, room: int) -> list[str]:
    """Wrap text to at most `MAX_LINES` lines of `room` pixels; the rest becomes "…"."""
    lines: list[str] = []
    rest = text[: room * MAX_LINES]  # a letter has at least a pixel; measuring long texts is slow
    while len(lines) < MAX_LINES - 1 and _text_width(font, rest) > room:
        line = _first_line(rest, font, room)
        lines.append(line)
        rest = rest[len(line) :].lstrip()
    if _text_width(font, rest) > room:
        rest = _first_line(rest, font, room - _text_width(font, "…")) + "…"
    return [*lines, rest]


def _first_line(text: str, font: Font, room: int) -> str:
    """The words of a too long text that fit into `room` pixels, or the letters of a long first word."""
    low, high = 1, len(text) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _text_width(font, text[:middle]) <= room else (low, middle - 1)
    space = text.rfind(" ", 0, low + 1)
    return text[: space if space > 0 else low]


def _stack(picture: Image.Image, legend: Image.Image | None) -> Image.Image:
    """Put the image above the legend, centred if it is narrower."""
    if legend is None:
        return picture
    canvas = Image.new("RGB", (legend.width, picture.height + legend.height), WHITE)
    canvas.paste(picture, ((legend.width - picture.width) // 2, 0))
    canvas.paste(legend, (0, picture.height))
    return canvas
