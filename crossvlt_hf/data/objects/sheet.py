"""A contact sheet of expressions: each image with the target outlined, and the expression below."""

import warnings
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


def contact_sheet(
    examples: Sequence[tuple[ObjectScene, Expression]], columns: int = 6, *, skip: bool = False
) -> Image.Image | None:
    """Draw examples in a grid; None if there are none.

    Args:
        examples: scenes with an expression each.
        columns: examples per row.
        skip: whether to leave out unreadable images, with a warning: without colours, none was decoded before.

    Raises:
        OSError: if an image cannot be read, and `skip` is false.
        ValueError: if it has another size than its labels, and `skip` is false.
    """
    tiles = []
    for scene, expression in examples:
        try:
            picture = scene.open(2 * TILE)
        except (OSError, ValueError) as error:
            if not skip:
                raise
            warnings.warn(f"The contact sheet has no example of an unreadable image: {error}", stacklevel=2)
            continue
        tiles.append(draw_example(picture, scene.mask(expression.targets), expression.text, expression.family))
    return arrange(tiles, columns) if tiles else None
