"""Measure labelled objects: colour, size and position.

Colours are the eleven basic colour terms of English (Berlin and Kay, 1969). A pixel has a membership in each, from
its distance in CIELAB to examples (compare the fuzzy sets of Benavente et al., 2008); an object has the mean of its
pixels. A colour fits an object if most of its pixels agree, does not fit if hardly any do, and is open in between.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..phrases import Answer
from .words import clean, lookup, word_fits


COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "grey", "white")
# sRGB. "beige" is not used in expressions: it covers what lies between white, brown, pink and yellow
_EXAMPLES: dict[str, list[tuple[int, int, int]]] = {
    "red": [(255, 0, 0), (230, 10, 15), (200, 20, 30), (150, 10, 22), (225, 45, 45), (190, 40, 55)],
    "orange": [(240, 130, 20), (255, 160, 10), (225, 100, 30), (250, 150, 60)],
    "yellow": [(250, 220, 30), (255, 240, 90), (225, 195, 40), (250, 225, 120)],
    "green": [
        (30, 130, 50),
        (80, 170, 60),
        (10, 80, 40),
        (125, 200, 100),
        (95, 115, 40),
        (165, 200, 60),
        (60, 80, 45),
        (0, 255, 0),
        (50, 205, 50),
    ],
    "blue": [
        (30, 60, 180),
        (70, 130, 220),
        (20, 30, 100),
        (120, 180, 230),
        (45, 85, 135),
        (10, 150, 205),
        (95, 130, 175),
        (0, 0, 255),
        (0, 0, 190),
        (0, 0, 128),
        (65, 105, 225),
        (135, 206, 235),
    ],
    "purple": [(128, 0, 128), (110, 40, 150), (150, 90, 190), (80, 25, 95), (175, 130, 205)],
    "pink": [(240, 130, 170), (255, 185, 205), (220, 60, 130), (235, 150, 165), (250, 95, 140), (255, 20, 147)],
    "brown": [(139, 69, 19), (110, 60, 30), (140, 90, 50), (80, 50, 35), (160, 105, 65), (100, 75, 55)],
    "black": [(10, 10, 12), (28, 28, 30), (38, 36, 40), (20, 22, 30)],
    "grey": [(128, 128, 128), (92, 92, 94), (165, 165, 168), (70, 70, 73), (140, 145, 150)],
    "white": [(252, 252, 252), (255, 250, 240), (245, 245, 245), (236, 236, 234), (242, 240, 246), (228, 230, 234)],
    "beige": [(212, 182, 150), (226, 208, 182), (190, 152, 122), (175, 160, 140), (235, 225, 205)],
}
# sRGB of colours that people call by several names: each is an example of all of them, so that none is said nor denied
_DISPUTED: list[tuple[tuple[int, int, int], tuple[str, ...]]] = [
    ((255, 0, 255), ("purple", "pink")),  # magenta
    ((238, 130, 238), ("purple", "pink")),  # violet
    ((218, 112, 214), ("purple", "pink")),  # orchid
    ((221, 160, 221), ("purple", "pink")),  # plum
    ((199, 21, 133), ("purple", "pink")),  # medium violet red
    ((216, 191, 216), ("purple", "pink", "grey")),  # thistle
    ((220, 20, 60), ("red", "pink")),  # crimson
    ((205, 92, 92), ("red", "pink", "brown")),  # indian red
    ((240, 128, 128), ("pink", "red", "orange")),  # light coral
    ((250, 128, 114), ("pink", "orange", "red")),  # salmon
    ((255, 127, 80), ("orange", "pink", "red")),  # coral
    ((255, 99, 71), ("red", "orange")),  # tomato
    ((255, 69, 0), ("red", "orange")),  # orange red
    ((128, 0, 0), ("red", "brown", "purple")),  # maroon
    ((165, 42, 42), ("red", "brown")),  # brown, of CSS
    ((178, 34, 34), ("red", "brown")),  # firebrick
    ((139, 0, 0), ("red", "brown")),  # dark red
    ((110, 10, 20), ("red", "brown", "purple")),  # wine
    ((183, 65, 14), ("orange", "brown", "red")),  # rust
    ((160, 82, 45), ("brown", "orange", "red")),  # sienna
    ((210, 105, 30), ("orange", "brown")),  # chocolate
    ((205, 133, 63), ("orange", "brown")),  # peru
    ((244, 164, 96), ("orange", "brown")),  # sandy brown
    ((184, 134, 11), ("yellow", "brown", "orange")),  # dark goldenrod
    ((218, 165, 32), ("yellow", "orange", "brown")),  # goldenrod
    ((255, 190, 10), ("yellow", "orange")),  # amber
    ((189, 183, 107), ("yellow", "green", "brown")),  # dark khaki
    ((240, 230, 140), ("yellow", "brown")),  # khaki
    ((128, 128, 0), ("green", "brown", "yellow")),  # olive
    ((85, 107, 47), ("green", "grey")),  # dark olive green
    ((154, 205, 50), ("green", "yellow")),  # yellow green
    ((173, 255, 47), ("green", "yellow")),  # green yellow
    ((127, 255, 0), ("green", "yellow")),  # chartreuse
    ((0, 255, 255), ("blue", "green")),  # cyan
    ((64, 224, 208), ("blue", "green")),  # turquoise
    ((0, 206, 209), ("blue", "green")),  # dark turquoise
    ((32, 178, 170), ("blue", "green")),  # light sea green
    ((0, 128, 128), ("blue", "green")),  # teal
    ((95, 158, 160), ("blue", "green", "grey")),  # cadet blue
    ((102, 205, 170), ("green", "blue")),  # medium aquamarine
    ((127, 255, 212), ("green", "blue")),  # aquamarine
    ((0, 250, 154), ("green", "blue")),  # medium spring green
    ((143, 188, 143), ("green", "grey")),  # dark sea green
    ((47, 79, 79), ("grey", "green", "black", "blue")),  # dark slate grey
    ((112, 128, 144), ("grey", "blue")),  # slate grey
    ((119, 136, 153), ("grey", "blue")),  # light slate grey
    ((176, 196, 222), ("blue", "grey")),  # light steel blue
    ((173, 216, 230), ("blue", "white")),  # light blue
    ((176, 224, 230), ("blue", "white")),  # powder blue
    ((175, 238, 238), ("blue", "green", "white")),  # pale turquoise
    ((75, 0, 130), ("purple", "blue")),  # indigo
    ((72, 61, 139), ("purple", "blue")),  # dark slate blue
    ((106, 90, 205), ("purple", "blue")),  # slate blue
    ((123, 104, 238), ("purple", "blue")),  # medium slate blue
    ((138, 43, 226), ("purple", "blue")),  # blue violet
    ((25, 25, 112), ("blue", "black", "purple")),  # midnight blue
    ((230, 230, 250), ("white", "purple", "blue")),  # lavender
    ((255, 228, 225), ("white", "pink")),  # misty rose
    ((188, 143, 143), ("brown", "pink", "grey")),  # rosy brown
    ((211, 211, 211), ("white", "grey")),  # light grey
    ((220, 220, 220), ("white", "grey")),  # gainsboro
    ((192, 192, 192), ("grey", "white")),  # silver
    ((55, 55, 57), ("grey", "black")),  # charcoal
    ((45, 32, 25), ("brown", "black")),
    ((15, 40, 20), ("green", "black")),
    ((15, 18, 45), ("blue", "black")),
    ((255, 160, 122), ("orange", "pink", "brown")),  # light salmon
    ((210, 180, 140), ("beige", "brown", "yellow", "orange")),  # tan
    ((222, 184, 135), ("beige", "brown", "yellow", "orange")),  # burlywood
    ((190, 152, 122), ("beige", "brown", "pink", "orange")),
    ((175, 160, 140), ("beige", "brown", "grey")),
    ((245, 222, 179), ("beige", "yellow", "white", "brown")),  # wheat
    ((255, 225, 177), ("beige", "yellow", "white", "orange")),  # moccasin, navajo white
    ((255, 218, 185), ("beige", "orange", "pink", "yellow")),  # peach puff
    ((255, 228, 196), ("beige", "white", "pink", "orange")),  # bisque
    ((255, 237, 210), ("beige", "white", "yellow", "pink")),  # blanched almond, papaya whip
    ((250, 240, 225), ("beige", "white", "pink")),  # linen, old lace, antique white
    ((255, 250, 205), ("beige", "yellow", "white")),  # lemon chiffon
    ((248, 248, 220), ("beige", "white", "yellow")),  # beige, cornsilk
    ((255, 255, 224), ("beige", "yellow", "white")),  # light yellow
]
_WIDTH = 7.0  # of the transition between two colours, in CIELAB units

# Shares of an object's pixels above which a colour fits, and below which it does not
AGREED, OPEN = 0.62, 0.12

MOST_PIXELS = 800  # of an object, evenly spaced, to measure its colour

# Differences between the channels of grey and of nearly neutral pixels, and how far the channels of a tone may vary
GREY, NEUTRAL, TONE = 12, 8, 0.03
STRAYS = 0.001  # share of pixels that may differ in an image of one tone
MOST_TONES = 20_000  # pixels of an image, evenly spaced, to find out whether it has one tone

# Smaller objects, as a share of the image, are hardly visible
HARDLY_VISIBLE = 0.004
HIDDEN, CROWD, DOUBLE, NAMELESS = "hardly visible", "crowd", "labelled twice", "class name is not a noun"


def _to_lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIELAB (D65) of sRGB colours from 0 to 255, (..., 3)."""
    value = rgb / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


@cache
def _memberships() -> NDArray[np.float32]:
    """(32768, 12) float32: the membership of each colour of 5 bits per channel in each name; rows sum to 1."""
    levels = np.arange(32) * 8 + 4.0
    lab = _to_lab(np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3))
    nearest = []
    for name, examples in _EXAMPLES.items():
        shared = [colour for colour, names in _DISPUTED if name in names]
        points = _to_lab(np.asarray([*examples, *shared], dtype=np.float64))
        nearest.append(np.min(np.linalg.norm(lab[:, None] - points[None], axis=-1), axis=1))
    distance = np.stack(nearest, axis=1)
    weight = np.exp(-(distance - distance.min(axis=1, keepdims=True)) / _WIDTH * 2)
    return np.asarray(weight / weight.sum(axis=1, keepdims=True), dtype=np.float32)


def colour_codes(image: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """(height, width) uint16: the colours of an RGB image in 5 bits per channel."""
    fives = (image >> 3).astype(np.uint16)
    return np.asarray(fives[..., 0] << 10 | fives[..., 1] << 5 | fives[..., 2])


def is_monochrome(image: NDArray[np.uint8]) -> bool:
    """Whether an image is in grey, or in one weak tone like sepia, and does not show the colours of what is in it.

    Args:
        image: (height, width, 3) uint8.
    """
    step = max(1, round((image.shape[0] * image.shape[1] / MOST_TONES) ** 0.5))
    image = image[::step, ::step]
    red, green, blue = np.moveaxis(image, -1, 0)
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    if np.mean(high - low > GREY) <= STRAYS:
        return True
    # Of dark and of bright pixels, the tone is hardly visible; but what is neutral has none
    toned = image[(high >= 40) & (low < 170)]
    if len(toned) < 0.2 * high.size or np.mean((high - low <= NEUTRAL) & (high >= 60)) > STRAYS:
        return False
    shares = toned / toned.sum(axis=1, keepdims=True, dtype=np.float32)
    tone = np.median(shares, axis=0)
    return bool(tone.min() >= 0.6 * tone.max() and (abs(shares - tone).max(axis=1) > TONE).mean() <= STRAYS)


def measure_colours(codes: NDArray[np.uint16]) -> dict[str, float]:
    """The share of each basic colour among pixels given by their codes; shares below 1 % are left out."""
    if not codes.size:
        return {}
    sample = codes.ravel()[:: max(1, codes.size // MOST_PIXELS)]
    shares = _memberships()[sample].mean(axis=0)
    return {name: float(share) for name, share in zip(COLOURS, shares, strict=False) if share >= 0.01}


@dataclass(frozen=True)
class DescribedObject:
    """Measurements of a labelled object, for expressions. Lengths are relative to width and height of the image.

    Args:
        label: its class, in words.
        box: left, top, right and bottom edge.
        centre: (x, y), mean of its pixels.
        area: share of the image.
        colours: share of each basic colour among its pixels; None if not measured.
        cut: whether it touches the border of the image, so that its true size is unknown.
        unclear: why people may overlook it or not count it: "hardly visible", "crowd", "labelled twice"; or why it has
            no name: "class name is not a noun" ("3", "no hardhat"); empty if it is clear. An unclear object is never a
            target, and no expression fits it.
        adjectives: other adjectives that fit ("striped").
    """

    label: str
    box: tuple[float, float, float, float]
    centre: tuple[float, float]
    area: float
    colours: Mapping[str, float] | None = None
    cut: bool = False
    unclear: str = ""
    adjectives: tuple[str, ...] = ()

    @property
    def clear(self) -> bool:
        """Whether it can be a target."""
        return not self.unclear

    @cached_property
    def placed(self) -> bool:
        """Whether its extent is known: false for a label without pixels, whose box and area say nothing."""
        return self.area > 0

    @cached_property
    def single(self) -> bool:
        """Whether it is one object with a known extent: place, size and colour are those of the label."""
        return self.placed and self.unclear != CROWD

    def is_coloured(self, colour: str) -> Answer:
        """Whether a colour fits; None if people might disagree, or for parts of a crowd."""
        if self.colours is None or not self.single:
            return None
        share = self.colours.get(colour, 0.0)
        if share < OPEN:
            return False
        return True if share >= AGREED and colour == self.colour else None

    @property
    def colour(self) -> str | None:
        """The colour for expressions, if most of its pixels agree."""
        if not self.colours:
            return None
        name = max(self.colours, key=lambda colour: (self.colours or {})[colour])
        allowed = lookup(self.label).colours
        if self.colours[name] < AGREED or (allowed is not None and name not in allowed):
            return None
        return name if name not in self.label.split() else None


def describe(
    image: NDArray[np.uint8] | Image.Image | None,
    masks: Sequence[NDArray],
    classes: Sequence[str],
    *,
    crowds: Sequence[bool] | None = None,
    hardly_visible: float = HARDLY_VISIBLE,
    doubles: bool = True,
) -> list[DescribedObject]:
    """Measure labelled objects.

    Args:
        image: (height, width, 3) uint8 or an image; None to measure no colours. Those of a photograph in grey or sepia
            are unknown.
        masks: one (height, width) array for each object, not zero on it.
        classes: the class of each object.
        crowds: which labels are for several objects, or for parts of several.
        hardly_visible: smaller objects, as a share of the image, are unclear.
        doubles: whether an object may be labelled twice: see `drop_doubles`.

    Returns:
        A description of each object; objects without pixels are unclear, and their place and size are unknown.

    Raises:
        ValueError: if numbers or sizes do not match.
    """
    flags = [False] * len(masks) if crowds is None else list(crowds)
    if not len(masks) == len(classes) == len(flags):
        raise ValueError(
            f"`masks`, `classes`, `crowds` must have the same length, got {len(masks)}, {len(classes)}, {len(flags)}."
        )
    values = None if image is None else np.asarray(image)
    for mask in masks:
        if values is not None and np.shape(mask) != values.shape[:2]:
            raise ValueError(f"A mask must have the size of the image, {values.shape[:2]}, got {np.shape(mask)}.")
    codes = None if values is None or is_monochrome(values) else colour_codes(values)
    found = [
        _describe(codes, np.asarray(mask) != 0, label, CROWD if crowd else "", hardly_visible)
        for mask, label, crowd in zip(masks, classes, flags, strict=True)
    ]
    return drop_doubles(found) if doubles else found


def _describe(
    codes: NDArray[np.uint16] | None, mask: NDArray[np.bool_], label: str, unclear: str, hardly_visible: float
) -> DescribedObject:
    rows, columns = mask.sum(axis=1), mask.sum(axis=0)
    pixels = int(rows.sum())
    if not pixels:
        return DescribedObject(clean(label), (0.0, 0.0, 0.0, 0.0), (0.0, 0.0), 0.0, unclear=HIDDEN)
    (left, right, x), (top, bottom, y) = _extent(columns, pixels), _extent(rows, pixels)
    (height, width), area = mask.shape, pixels / mask.size
    window = np.s_[top:bottom, left:right]
    return DescribedObject(
        clean(label),
        (left / width, top / height, right / width, bottom / height),
        (x, y),
        area,
        None if codes is None else measure_colours(codes[window][mask[window]]),
        cut=left == 0 or top == 0 or right == width or bottom == height,
        unclear=unclear or (HIDDEN if area < hardly_visible else "" if lookup(label).said else NAMELESS),
    )


def _extent(counts: NDArray[np.int_], pixels: int) -> tuple[int, int, float]:
    """Start and end in pixels, and relative mean position, along an axis with these counts of pixels."""
    found = np.flatnonzero(counts)
    middle = float((np.arange(len(counts)) + 0.5) @ counts / pixels / len(counts))
    return int(found[0]), int(found[-1]) + 1, middle


def _overlap(one: DescribedObject, other: DescribedObject) -> float:
    """Area of the intersection of two boxes over that of the smaller box."""
    width = min(one.box[2], other.box[2]) - max(one.box[0], other.box[0])
    height = min(one.box[3], other.box[3]) - max(one.box[1], other.box[1])
    smaller = min((o.box[2] - o.box[0]) * (o.box[3] - o.box[1]) for o in (one, other))
    return max(0.0, width) * max(0.0, height) / smaller if smaller > 0 else 0.0


def drop_doubles(objects: list[DescribedObject], at_least: float = 0.85) -> list[DescribedObject]:
    """Mark objects that one noun fits as unclear if one box lies in the other: labelled twice, or a part."""
    labels = {thing.label for thing in objects}
    alike = {label: {other for other in labels if _may_be_one(label, other)} for label in labels}
    doubled = {
        index
        for i, one in enumerate(objects)
        for j, other in enumerate(objects[:i])
        if other.label in alike[one.label] and _overlap(one, other) >= at_least
        for index in (i, j)
    }
    if not doubled:
        return objects
    return [
        replace(thing, unclear=thing.unclear or DOUBLE) if index in doubled else thing
        for index, thing in enumerate(objects)
    ]


def _may_be_one(label: str, other: str) -> bool:
    """Whether two labels may be for one object, as the word for one fits the other: sofa and couch, dog and animal."""
    one, two = lookup(label), lookup(other)
    return one.name == two.name or bool(word_fits(one.name, other)) or bool(word_fits(two.name, label))
