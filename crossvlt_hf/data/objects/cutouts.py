"""Cut-outs and backgrounds, from folders or from labelled images."""

from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from ...processing_crossvlt import load_pixels, opening, to_rgb
from ..files import find_files, require_folder
from ..flaws import Flaws
from .composition import MOST_PIXELS, Background, CutOut, cut_out
from .object_record import ObjectSource, find_images


def load_cutouts(folder: str | Path, most: int = MOST_PIXELS) -> list[CutOut]:
    """Load cut-outs, <folder>/<class>/<name>.png or .webp, transparent around the object.

    Args:
        folder: with a folder for each class.
        most: longest side in pixels; larger cut-outs are scaled down.

    Raises:
        OSError: if the folder or an image cannot be read.
        ValueError: if there are none, or an image has no transparency or is completely transparent.
    """
    paths = [path for path in find_files(require_folder(folder), "*/*") if path.suffix.lower() in (".png", ".webp")]
    if not paths:
        raise ValueError(f"{folder} must contain cut-outs as <class>/<name>.png; it has none.")
    return [_load_cutout(path, most) for path in paths]


def _load_cutout(path: Path, most: int) -> CutOut:
    with opening(str(path), "image"), Image.open(path) as image:
        load_pixels(image)
    if "A" not in image.getbands() and "transparency" not in image.info:
        raise ValueError(f"{path} must be transparent around the object; its mode is {image.mode}.")
    values = np.asarray(image.convert("RGBA"))
    piece = cut_out(values[..., :3], values[..., 3] >= 128, path.parent.name, most)
    if piece is None:
        raise ValueError(f"{path} is completely transparent.")
    return piece


def load_backgrounds(folder: str | Path, most: int = 384) -> list[Background]:
    """Load all images below a folder, scaled down to at most `most` pixels a side; they must show no labelled class.

    Raises:
        OSError: if the folder or an image cannot be read.
        ValueError: if there is no image.
    """
    found = []
    for path in find_images(require_folder(folder)):
        with opening(str(path), "image"), Image.open(path) as image:
            image.draft("RGB", (most, most))
            load_pixels(image)
        picture = to_rgb(image, upright=False)
        picture.thumbnail((most, most))
        found.append(Background(np.asarray(picture)))
    if not found:
        raise ValueError(f"{folder} must contain images; it has none.")
    return found


def cutouts_of(
    source: ObjectSource, *, least_area: float = 0.03, most: int = MOST_PIXELS, limit: int | None = None
) -> list[CutOut]:
    """Cut the labelled objects out of images, except crowds and objects at the border of the image.

    Args:
        source: labelled images.
        least_area: smallest object, as a share of the image.
        most: longest side in pixels; larger cut-outs are scaled down.
        limit: the most cut-outs; None for all.

    Raises:
        OSError: if an image cannot be read.
        ValueError: if labels are broken.
    """
    found: list[CutOut] = []
    flaws = Flaws(source.name)
    for scene in source:
        flaws.include(scene.flaws or Flaws(source.name))
        described = scene.describe(colours=False)
        chosen = [n for n, thing in enumerate(described) if thing.clear and not thing.cut and thing.area >= least_area]
        if chosen:
            values = np.asarray(scene.open())
            masks = ((number, scene.mask([number])) for number in chosen)
            pieces = (cut_out(values, mask, scene.objects[number].label, most) for number, mask in masks)
            found += [piece for piece in pieces if piece is not None]
        if limit is not None and len(found) >= limit:
            break
    flaws.warn()
    return found[:limit]


def backgrounds_of(source: ObjectSource, *, most: int = 384, limit: int | None = None) -> list[Background]:
    """Use labelled images as backgrounds, each with the classes of its objects; not those labelled only in part.

    Args:
        source: labelled images.
        most: longest side in pixels.
        limit: the most backgrounds; None for all.

    Raises:
        OSError: if an image cannot be read.
        ValueError: if labels are broken, or all images are labelled only in part.
    """
    scenes = islice((scene for scene in source if scene.exhaustive), limit)
    found = [
        Background(np.asarray(scene.open(most)), frozenset(thing.label for thing in scene.objects)) for scene in scenes
    ]
    if not found and limit != 0:
        raise ValueError(f"{source.name} must have images with all objects labelled; all are labelled only in part.")
    return found
