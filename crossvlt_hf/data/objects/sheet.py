"""A contact sheet of expressions: what is meant outlined in the picture, the words below."""

import textwrap
from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
from PIL import Image, ImageDraw

from ...visualization.overlay import PALETTE, arrange, draw_contour
from .engine import Expression
from .object_record import ObjectScene


T = TypeVar("T")
TILE, STRIP = 240, 46  # pixels: side of a picture, height of the words


class Sample(Generic[T]):
    """A fair sample of a stream (Vitter's algorithm R)."""

    def __init__(self, most: int, seed: int = 0) -> None:
        self.most, self.seen, self.kept = most, 0, list[T]()
        self.rng = np.random.default_rng([seed, 1])

    def add(self, thing: T) -> None:
        """Take notice of one more."""
        self.seen += 1
        if len(self.kept) < self.most:
            self.kept.append(thing)
        elif (place := int(self.rng.integers(self.seen))) < self.most:
            self.kept[place] = thing


def draw_tile(scene: ObjectScene, expression: Expression) -> Image.Image:
    """A picture with what an expression means, and the expression."""
    picture = scene.open(2 * TILE)
    picture.thumbnail((TILE, TILE), Image.Resampling.BICUBIC)
    mask = Image.fromarray(scene.mask(expression.targets) * 255).resize(picture.size, Image.Resampling.NEAREST)
    draw_contour(picture, mask, PALETTE[1])
    tile = Image.new("RGB", (TILE, TILE + STRIP), "white")
    tile.paste(picture, ((TILE - picture.width) // 2, TILE - picture.height))
    lines = textwrap.wrap(expression.text, 40)[:2]
    ImageDraw.Draw(tile).multiline_text(
        (2, TILE + 2), "\n".join([*lines, f"({expression.family})"]), fill="black", font_size=12, spacing=1
    )
    return tile


def contact_sheet(examples: Sequence[tuple[ObjectScene, Expression]], columns: int = 6) -> Image.Image:
    """A picture of examples.

    Args:
        examples: pictures with an expression each, at least one.
        columns: how many stand in a row.
    """
    return arrange([draw_tile(scene, expression) for scene, expression in examples], columns)
