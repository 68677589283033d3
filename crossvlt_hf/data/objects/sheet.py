"""A contact sheet of expressions: each image with the target outlined, and the expression below."""

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
from PIL import Image

from ...visualization.overlay import TILE, arrange, draw_example
from .engine import Expression
from .object_record import ObjectScene


T = TypeVar("T")


class Reservoir(Generic[T]):
    """A uniform random sample of a stream (Vitter's algorithm R)."""

    def __init__(self, most: int, seed: int = 0) -> None:
        self.most, self.seen, self.kept = most, 0, list[T]()
        self.rng = np.random.default_rng([seed, 1])

    def add(self, thing: T) -> None:
        """Add an element."""
        self.seen += 1
        if len(self.kept) < self.most:
            self.kept.append(thing)
        elif (place := int(self.rng.integers(self.seen))) < self.most:
            self.kept[place] = thing


def contact_sheet(examples: Sequence[tuple[ObjectScene, Expression]], columns: int = 6) -> Image.Image:
    """Draw examples in a grid.

    Args:
        examples: scenes with an expression each, at least one.
        columns: examples per row.
    """
    tiles = [draw_example(scene.open(2 * TILE), scene.mask(e.targets), e.text, e.family) for scene, e in examples]
    return arrange(tiles, columns)
