"""A folder of RGBA cut-outs: <folder>/<class>/<name>.png, transparent around the object."""

from pathlib import Path

import numpy as np
from PIL import Image

from ...processing_crossvlt import load_pixels, opening, to_rgb
from .composition import MOST_PIXELS, Background, CutOut, cut_out
from .object_record import IMAGE_SUFFIXES, ObjectSource


def load_cutouts(folder: str | Path, most: int = MOST_PIXELS) -> list[CutOut]:
    """Cut-outs whose class is the name of their folder.

    Args:
        folder: with a folder for each class.
        most: longest side in pixels as they are kept.

    Raises:
        OSError: if the folder or a picture cannot be read.
        ValueError: if a picture has no transparency, or nothing is seen of it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}.")
    found = []
    for path in sorted(root.glob("*/*")):
        if path.suffix.lower() in (".png", ".webp"):
            with opening(str(path), "image"), Image.open(path) as image:
                load_pixels(image)
            if "A" not in image.getbands() and "transparency" not in image.info:
                raise ValueError(f"{path} must have transparency around the object, its mode is {image.mode}.")
            values = np.asarray(image.convert("RGBA"))
            piece = cut_out(values[..., :3], values[..., 3] >= 128, path.parent.name, most)
            if piece is None:
                raise ValueError(f"{path} is transparent everywhere.")
            found.append(piece)
    if not found:
        raise ValueError(f"{root} must hold cut-outs as <class>/<name>.png, it has none.")
    return found


def load_backgrounds(folder: str | Path, most: int = 384) -> list[Background]:
    """All pictures below a folder, reduced to at most `most` pixels a side.

    Raises:
        OSError: if the folder or a picture cannot be read.
        ValueError: if there is no picture.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}.")
    found = []
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            with opening(str(path), "image"), Image.open(path) as image:
                image.draft("RGB", (most, most))
                load_pixels(image)
            picture = to_rgb(image, upright=False)
            picture.thumbnail((most, most))
            found.append(Background(np.asarray(picture)))
    if not found:
        raise ValueError(f"{root} must hold pictures, it has none.")
    return found


def cutouts_of(
    source: ObjectSource, *, least_area: float = 0.03, most: int = MOST_PIXELS, limit: int | None = None
) -> list[CutOut]:
    """The labelled objects of pictures as cut-outs, but for crowds and those that the picture's border cuts.

    Args:
        source: of labels.
        least_area: share of the picture that an object has at least.
        most: longest side in pixels as they are kept.
        limit: how many at most.

    Raises:
        OSError: if a picture cannot be read.
        ValueError: if labels are broken.
    """
    found: list[CutOut] = []
    for scene in source:
        described = scene.describe(colours=False)
        chosen = [n for n, thing in enumerate(described) if thing.clear and not thing.cut and thing.area >= least_area]
        if chosen:
            values = np.asarray(scene.open())
            masks = ((number, scene.mask([number])) for number in chosen)
            pieces = (cut_out(values, mask, scene.objects[number].label, most) for number, mask in masks)
            found += [piece for piece in pieces if piece is not None]
        if limit is not None and len(found) >= limit:
            return found[:limit]
    return found


def backgrounds_of(source: ObjectSource, *, most: int = 384, limit: int | None = None) -> list[Background]:
    """Labelled pictures as backgrounds, each with the classes that are seen on it.

    Args:
        source: of labels.
        most: longest side in pixels.
        limit: how many at most.

    Raises:
        OSError: if a picture cannot be read.
        ValueError: if labels are broken.
    """
    scenes = (source[index] for index in range(len(source) if limit is None else min(limit, len(source))))
    return [
        Background(np.asarray(scene.open(most)), frozenset(thing.label for thing in scene.objects)) for scene in scenes
    ]
