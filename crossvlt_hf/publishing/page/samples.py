"""Photographs in the public domain, with expressions."""

from pathlib import Path
from typing import NamedTuple


class Photograph(NamedTuple):
    """A photograph with expressions.

    Args:
        file: name of the JPEG file.
        expressions: chosen because the built-in checkpoint finds their targets.
        missed: expressions whose targets the built-in checkpoint does not find.
    """

    file: str
    expressions: tuple[str, ...]
    missed: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The path: in the package of a wheel, or in the clone of an editable installation."""
        package = Path(__file__).parents[2]
        packed = package / "assets" / "images"
        return (packed if packed.is_dir() else package.parent / "examples" / "images") / self.file


SAMPLES = (
    Photograph("astronaut.jpg", ("the person", "the hair")),
    Photograph("coffee.jpg", ("the spoon",), ("the cup", "the plate")),
)
