"""Photographs in the public domain that come with the package, and sentences about them."""

from pathlib import Path
from typing import NamedTuple


class Photograph(NamedTuple):
    """A photograph and sentences about it.

    Args:
        file: name of the JPEG.
        expressions: what the built-in checkpoint finds in it. They were chosen for that.
        missed: what is in it and the built-in checkpoint does not find.
    """

    file: str
    expressions: tuple[str, ...]
    missed: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """Where the photograph lies: packed with a wheel, or in the clone of an editable installation."""
        package = Path(__file__).parents[2]
        packed = package / "assets" / "images"
        return (packed if packed.is_dir() else package.parent / "examples" / "images") / self.file


SAMPLES = (
    Photograph("astronaut.jpg", ("the person", "the hair")),
    Photograph("coffee.jpg", ("the spoon",), ("the cup", "the plate")),
)
