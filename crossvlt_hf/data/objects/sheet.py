"""A contact sheet of expressions: what is meant outlined in the picture, the words below."""

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
from PIL import Image

from ...visualization.overlay import TILE, arrange, draw_example
from .engine import Expression
from .object_record import ObjectScene


T = TypeVar("T")


class Reservoir(Generic[T]):
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


def contact_sheet(examples: Sequence[tuple[ObjectScene, Expression]], columns: int = 6) -> Image.Image:
    """A picture of examples.

    Args:
        examples: pictures with an expression each, at least one.
        columns: how many stand in a row.
    """
    tiles = [draw_example(scene.open(2 * TILE), scene.mask(e.targets), e.text, e.family) for scene, e in examples]
    return arrange(tiles, columns)
