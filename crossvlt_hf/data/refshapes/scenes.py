"""Scenes of RefShapes: objects, their positions, and how they are drawn."""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from PIL import Image, ImageDraw


SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
COLOURS = {
    "red": (214, 40, 40),
    "green": (42, 157, 72),
    "blue": (38, 84, 205),
    "yellow": (244, 208, 36),
    "purple": (126, 52, 176),
    "orange": (240, 128, 28),
    "white": (244, 244, 240),
    "black": (24, 24, 28),
}
TEXTURES = ("plain", "striped", "dotted")

MIN_VISIBLE = 0.6

# Radius of an object in scenes of up to five; in larger scenes they are smaller
RADIUS, ROOMY = (0.12, 0.21), 5

# Corners of each shape: angle in turns, and distance from the centre in radii
CORNERS = {
    "circle": [(i / 48, 1.0) for i in range(48)],
    "square": [(i / 4 + 1 / 8, 1.0) for i in range(4)],
    "diamond": [(0.0, 0.62), (0.25, 1.1), (0.5, 0.62), (0.75, 1.1)],
    "triangle": [(i / 3 + 1 / 4, 1.05) for i in range(3)],
    "star": [(i / 10 + 1 / 4, 1.1 if i % 2 == 0 else 0.45) for i in range(10)],
    "cross": [
        (i / 4 + turn, reach) for i in range(4) for turn, reach in ((-0.053, 1.05), (0.053, 1.05), (0.125, 0.48))
    ],
}


@dataclass(frozen=True)
class Thing:
    """A drawn object: its kind, centre and radius relative to the side of the image, and rotation in radians."""

    shape: str
    colour: str
    texture: str
    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Scene:
    """An image and its objects.

    Args:
        image: (side, side, 3) uint8.
        things: the objects; later ones are drawn over earlier ones.
        masks: (objects, side, side) bool: the visible part of each.
        areas: pixels of each, hidden ones included.
    """

    image: np.ndarray
    things: tuple[Thing, ...]
    masks: np.ndarray
    areas: tuple[int, ...]

    @property
    def is_visible(self) -> bool:
        """Whether enough of every object is visible."""
        return all(mask.sum() >= MIN_VISIBLE * area for mask, area in zip(self.masks, self.areas, strict=True))


def outline(thing: Thing, side: int) -> list[tuple[float, float]]:
    """Corners of the polygon of an object, in pixels."""
    corners = []
    for turn, reach in CORNERS[thing.shape]:
        angle = 2 * math.pi * turn + thing.angle
        x, y = thing.x + thing.radius * reach * math.cos(angle), thing.y - thing.radius * reach * math.sin(angle)
        corners.append((x * side, y * side))
    return corners


def rasterise(thing: Thing, side: int) -> np.ndarray:
    """(side, side) bool: all pixels of an object, hidden ones included."""
    canvas = Image.new("1", (side, side))
    ImageDraw.Draw(canvas).polygon(outline(thing, side), fill=1)
    return np.array(canvas, dtype=bool)


@lru_cache(maxsize=2 * len(TEXTURES))  # of two sides; making it takes longer than drawing an object
def pattern(texture: str, side: int) -> np.ndarray:
    """(side, side) bool, read-only: the stripes or dots of an image full of them; they scale with the image."""
    rows, columns = np.mgrid[:side, :side] / side
    if texture == "striped":
        drawn = np.sin((rows + columns) * 2 * math.pi * 16) > 0
    elif texture == "dotted":
        drawn = np.sin(rows * 2 * math.pi * 14) * np.sin(columns * 2 * math.pi * 14) > 0.35
    else:
        drawn = np.zeros((side, side), dtype=bool)
    drawn.flags.writeable = False
    return drawn


def shade(thing: Thing, mask: np.ndarray) -> np.ndarray:
    """(pixels of the mask, 3) float32: the colour of an object, with a darker pattern, lighter on dark colours."""
    colour = np.asarray(COLOURS[thing.colour], dtype=np.float32)
    other = colour * 0.55 if colour.max() > 100 else colour + 80
    return np.where(pattern(thing.texture, len(mask))[mask][:, None], other, colour)


def background(rng: np.random.Generator, side: int) -> np.ndarray:
    """(side, side, 3) float32: a gradient between two pale greys, with blotches."""
    ends = rng.uniform(120, 200, (2, 1, 1, 3)) + rng.uniform(-12, 12, (2, 1, 1, 1))
    ramp = np.linspace(0, 1, side, dtype=np.float32)
    ramp = (ramp[:, None] if rng.random() < 0.5 else ramp[None, :])[..., None]
    blotches = rng.normal(0, 14, (8, 8, 3))
    blotches = np.stack(
        [np.asarray(Image.fromarray(b.astype(np.float32)).resize((side, side))) for b in np.moveaxis(blotches, -1, 0)],
        axis=-1,
    )
    return ends[0] * (1 - ramp) + ends[1] * ramp + blotches


def draw(things: tuple[Thing, ...], rng: np.random.Generator, side: int) -> Scene:
    """Draw objects over each other; hidden pixels are removed from the masks."""
    picture = background(rng, side)
    masks = np.zeros((len(things), side, side), dtype=bool)
    areas = []
    for index, thing in enumerate(things):
        mask = rasterise(thing, side)
        masks[:index] &= ~mask
        masks[index] = mask
        picture[mask] = shade(thing, mask)
        areas.append(int(mask.sum()))
    picture += rng.normal(0, 8, picture.shape)
    return Scene(picture.clip(0, 255).astype(np.uint8), things, masks, tuple(areas))


def _place(rng: np.random.Generator, things: list[Thing], radius: float) -> tuple[float, float] | None:
    """A random centre with little overlap with other objects; None after some tries."""
    for _ in range(40):
        x, y = rng.uniform(radius, 1 - radius, 2)
        if all(math.hypot(x - t.x, y - t.y) > 0.85 * (radius + t.radius) for t in things):
            return float(x), float(y)
    return None


def sample_things(rng: np.random.Generator, count: int, kinds: list[tuple[str, str]]) -> tuple[Thing, ...]:
    """Place `count` objects of the allowed (colour, shape) kinds; fewer if there is not enough room.

    A scene has few shapes and colours, so most objects share them with others and the noun alone is ambiguous.
    """
    shapes = rng.choice(SHAPES, size=2 if count < 5 else 3, replace=False)
    colours = rng.choice(list(COLOURS), size=3, replace=False)
    both = set(product(colours.tolist(), shapes.tolist()))
    allowed = [kind for kind in kinds if kind in both]
    things: list[Thing] = []
    scale = min(1.0, math.sqrt(ROOMY / count))
    while len(things) < count and allowed:
        radius = float(rng.uniform(*RADIUS)) * scale
        if (centre := _place(rng, things, radius)) is None:
            break
        colour, shape = allowed[rng.integers(len(allowed))]
        texture = str(rng.choice(TEXTURES, p=(0.5, 0.25, 0.25)))
        things.append(Thing(shape, colour, texture, *centre, radius, float(rng.uniform(-0.3, 0.3))))
    return tuple(things)
