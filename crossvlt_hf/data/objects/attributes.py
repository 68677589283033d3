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
    "red": [(200, 20, 30), (150, 10, 22), (225, 45, 45), (110, 10, 20), (190, 40, 55)],
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
    ],
    "blue": [
        (30, 60, 180),
        (70, 130, 220),
        (20, 30, 100),
        (120, 180, 230),
        (45, 85, 135),
        (10, 150, 205),
        (95, 130, 175),
    ],
    "purple": [(110, 40, 150), (150, 90, 190), (80, 25, 95), (175, 130, 205)],
    "pink": [(240, 130, 170), (255, 185, 205), (220, 60, 130), (235, 150, 165), (250, 95, 140)],
    "brown": [(110, 60, 30), (140, 90, 50), (80, 50, 35), (160, 105, 65), (100, 75, 55)],
    "black": [(10, 10, 12), (28, 28, 30), (38, 36, 40), (20, 22, 30)],
    "grey": [(128, 128, 128), (92, 92, 94), (165, 165, 168), (70, 70, 73), (140, 145, 150)],
    "white": [(252, 252, 252), (236, 236, 234), (242, 240, 246), (228, 230, 234)],
    "beige": [(212, 182, 150), (226, 208, 182), (190, 152, 122), (175, 160, 140), (235, 225, 205)],
}
_WIDTH = 7.0  # of the transition between two colours, in CIELAB units

# Shares of an object's pixels above which a colour fits, and below which it does not
AGREED, OPEN = 0.62, 0.12

MOST_PIXELS = 800  # of an object, evenly spaced, to measure its colour

# Smaller objects, as a share of the image, are hardly visible
HARDLY_VISIBLE = 0.004
HIDDEN, CROWD, DOUBLE = "hardly visible", "crowd", "labelled twice"


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
    for examples in _EXAMPLES.values():
        points = _to_lab(np.asarray(examples, dtype=np.float64))
        nearest.append(np.min(np.linalg.norm(lab[:, None] - points[None], axis=-1), axis=1))
    distance = np.stack(nearest, axis=1)
    weight = np.exp(-(distance - distance.min(axis=1, keepdims=True)) / _WIDTH * 2)
    return np.asarray(weight / weight.sum(axis=1, keepdims=True), dtype=np.float32)


def colour_codes(image: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """(height, width) uint16: the colours of an RGB image in 5 bits per channel."""
    fives = (image >> 3).astype(np.uint16)
    return np.asarray(fives[..., 0] << 10 | fives[..., 1] << 5 | fives[..., 2])


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
        unclear: why people may overlook it or not count it: "hardly visible", "crowd", "labelled twice"; empty if it
            is clear. An unclear object is never a target, and no expression fits it.
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
        image: (height, width, 3) uint8 or an image; None to measure no colours.
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
    codes = None if image is None else colour_codes(np.asarray(image))
    found = [
        _describe(codes, np.asarray(mask) != 0, label, CROWD if crowd else "", hardly_visible)
        for mask, label, crowd in zip(masks, classes, flags, strict=True)
    ]
    return drop_doubles(found) if doubles else found


def _describe(
    codes: NDArray[np.uint16] | None, mask: NDArray[np.bool_], label: str, unclear: str, hardly_visible: float
) -> DescribedObject:
    if codes is not None and codes.shape != mask.shape:
        raise ValueError(f"A mask must have the size of the image, {codes.shape}, got {mask.shape}.")
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
        unclear=unclear or (HIDDEN if area < hardly_visible else ""),
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
