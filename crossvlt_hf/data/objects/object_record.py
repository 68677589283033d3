"""The record that all readers of labels share: an image with labelled objects, each with class, mask and id."""

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from ...processing_crossvlt import load_pixels, opening, similar_path, to_rgb
from ..files import COCO_ID, digest_of, find_files, first_inside, stored_size
from ..flaws import Flaws
from ..masks import decode_segmentation, encode_mask
from .attributes import DescribedObject, describe


SMALL = 160  # longest side in pixels of the images in which objects are measured


@dataclass(frozen=True)
class ObjectRecord:
    """A labelled object.

    Args:
        label: its class in the data set.
        segmentation: polygons or run lengths as in COCO, in pixels.
        ann_id: id of the annotation.
        crowd: whether the label is for several objects, or for parts of several.
    """

    label: str
    segmentation: Any = field(repr=False)
    ann_id: str = ""
    crowd: bool = False


def is_crowd(value: Any, where: str, name: str = "iscrowd") -> bool:
    """Whether an entry marks a crowd: 0 or 1, as number, bool or text; None is 0.

    Raises:
        ValueError: if it is something else.
    """
    if value not in (None, 0, 1, "0", "1"):
        raise ValueError(f"{where} must have 0 or 1 as `{name}`, got {value!r}.")
    return value in (1, "1")


Crowds = Literal["crowds", "objects"]
CROWDS: tuple[Crowds, ...] = get_args(Crowds)


@contextmanager
def open_image(image: str | bytes, name: str) -> Iterator[Image.Image]:
    """Open an image file, whose pixels are not loaded yet; errors of Pillow as in `opening`.

    Args:
        image: path of the file, or its bytes.
        name: of bytes, for messages.
    """
    file = image if isinstance(image, str) else io.BytesIO(image)
    with opening(image if isinstance(image, str) else name, "image"), Image.open(file) as opened:
        yield opened


def sizes_of(image: str | bytes, name: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of an image file with its EXIF orientation, and of its stored pixels: see `open_image`."""
    with open_image(image, name) as opened:
        return stored_size(opened, upright=True), stored_size(opened, upright=False)


def find_image(folder: str | Path, names: Sequence[Any], where: str, root: str | Path | None = None) -> str:
    """The path of the first of several names of an image that is there: see `first_inside`.

    Raises:
        FileNotFoundError: if none is; suggests a similar path, or to set `images`.
        ValueError: if the first name is not a path, or leads out of the folder.
    """
    path = first_inside(folder, names, where, root)
    if not os.path.lexists(path):
        similar = similar_path(path)
        advice = f"did you mean {similar}?" if similar else "set `images` to the folder of the images."
        raise FileNotFoundError(f"There is no image file {path}, which {where} names; {advice}")
    return path


def is_for_upright(image: str, size: tuple[int, int]) -> bool:
    """Whether labels of a (height, width) are for an image with its EXIF orientation, and not for the stored pixels.

    Only a quarter turn of an image that is not square shows it. An image that cannot be read raises when it is opened.
    """
    try:
        upright, stored = sizes_of(image, image)
    except (OSError, ValueError):
        return False
    return size == upright != stored


def check_label_size(labelled: tuple[int, int], size: tuple[int, int], where: str) -> None:
    """Check that an image has the (height, width) that its labels are for.

    Raises:
        ValueError: if it has not; the message begins with `where`.
    """
    if labelled != size:
        swapped = " Width and height are swapped: in the labels, or by the EXIF orientation of the image."
        raise ValueError(
            f"{where}: the labels are for {labelled[0]}x{labelled[1]} pixels (height x width), the image has "
            f"{size[0]}x{size[1]}.{swapped if labelled == size[::-1] else ''}"
        )


@dataclass(frozen=True)
class ObjectScene:
    """An image and its labelled objects, decoded on demand.

    Args:
        image: path of the image file, or its bytes; a scene must be able to go to another process.
        image_id: id of the image in its labels.
        size: (height, width) of the labels, in pixels.
        objects: the labelled objects.
        where: file and row, for messages.
        upright: whether the labels are for the image with its EXIF orientation applied, or for the stored pixels.
        exhaustive: false if objects of the named classes may be unlabelled.
        flaws: of the labels, which were repaired.
    """

    image: str | bytes
    image_id: str
    size: tuple[int, int]
    objects: tuple[ObjectRecord, ...]
    where: str
    upright: bool = True
    exhaustive: bool = True
    flaws: Flaws | None = None

    def open(self, longest: int | None = None) -> Image.Image:
        """Load the image, of mode "RGB".

        Args:
            longest: longest side in pixels, to which larger images are scaled down; None keeps the size.

        Raises:
            OSError: if it cannot be read.
            ValueError: if it has another size than the labels.
        """
        self.check_size()
        with open_image(self.image, self.where) as opened:
            if longest is not None:
                opened.draft("RGB", (longest, longest))
            load_pixels(opened)
            picture = to_rgb(opened, upright=self.upright)
        if longest is None:
            check_label_size(self.size, (picture.height, picture.width), self.where)
        elif max(picture.size) > longest:
            picture.thumbnail((longest, longest), Image.Resampling.BOX)
        picture.info.clear()
        return picture

    def check_size(self) -> None:
        """Check that the image exists and has the size of the labels; reads only its header.

        Raises:
            OSError: if it cannot be read.
            ValueError: if it has another size.
        """
        with open_image(self.image, self.where) as opened:
            size = stored_size(opened, self.upright)
        check_label_size(self.size, size, self.where)

    def unique_id(self) -> str:
        """The id with a digest of the image file, by which `exclude_images` knows the image in all data sets.

        Labels of other images have the same ids: two COCO files count from 1, rows from 0, and folders of two splits
        have an image 1.jpg. The ids of COCO's own images ("coco 139") stay as they are.

        Raises:
            OSError: if the file cannot be read.
        """
        return self.image_id if self.image_id.startswith(COCO_ID) else f"{self.image_id} {self.digest}"

    @cached_property
    def digest(self) -> str:
        """The digest of the image file; OSError if it cannot be read."""
        return digest_of(Path(self.image).read_bytes() if isinstance(self.image, str) else self.image)

    def mask(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """The union of some objects: (height, width) uint8 of 0 and 1."""
        mask = np.zeros(self.size, dtype=np.uint8)
        for index in indices:
            mask |= decode_segmentation(self.objects[index].segmentation, *self.size)
        return mask

    def segmentation(self, indices: Sequence[int]) -> Any:
        """The union of some objects as polygons, or as run lengths if one of them has run lengths."""
        parts = [self.objects[index].segmentation for index in indices]
        if len(parts) == 1:
            return parts[0]
        if all(isinstance(part, list) and isinstance(part[0], list) for part in parts):
            return [polygon for part in parts for polygon in part]
        return encode_mask(self.mask(indices))

    def describe(self, *, colours: bool = True, longest: int = SMALL, **options: Any) -> list[DescribedObject]:
        """Measure the objects in a scaled-down image: see `attributes.describe`.

        Args:
            colours: whether to measure colours, for which the image is decoded.
            longest: longest side of the scaled-down image, in pixels.
            options: of `describe`.

        Raises:
            OSError: if the image cannot be read.
            ValueError: if a segmentation is broken, or the image has another size.
        """
        picture = self.open(longest) if colours else None
        scale = min(1.0, longest / max(self.size))
        height, width = (max(1, round(side * scale)) for side in self.size)
        if picture is not None and picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BOX)
        masks = [small_mask(thing.segmentation, self.size, (height, width)) for thing in self.objects]
        labels, crowds = [thing.label for thing in self.objects], [thing.crowd for thing in self.objects]
        return describe(picture, masks, labels, crowds=crowds, **options)


def small_mask(segmentation: Any, size: tuple[int, int], small: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode a segmentation at another size: (height, width) uint8 of 0 and 1.

    Args:
        segmentation: polygons or run lengths, checked.
        size: (height, width) of the image.
        small: (height, width) of the mask.
    """
    if size != small and isinstance(segmentation, list) and not isinstance(segmentation[0], dict):
        factors = np.array([small[1] / size[1], small[0] / size[0]])
        polygons = [(np.reshape(polygon, (-1, 2)) * factors).ravel().tolist() for polygon in segmentation]
        return np.asarray(coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *small))))
    mask = decode_segmentation(segmentation, *size)
    return mask if size == small else np.asarray(Image.fromarray(mask).resize(small[::-1], Image.Resampling.NEAREST))


class ObjectSource(ABC, Sequence[ObjectScene]):
    """Labels of a data set, read image by image.

    Reading an image with broken labels raises `ValueError` or `OSError`, which names file and row.

    Attributes:
        name: of the data set.
        labels: all of its classes.
        split: of the data set that it is; None if its labels have no splits, or it is all of them.
    """

    name: str
    labels: tuple[str, ...]
    split: str | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> ObjectScene: ...

    def __iter__(self) -> Iterator[ObjectScene]:
        return (self[index] for index in range(len(self)))


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def find_images(folder: Path) -> list[Path]:
    """The image files below a folder, sorted, without hidden ones."""
    return [path for path in find_files(folder, "**/*") if path.suffix.lower() in IMAGE_SUFFIXES]


class ImagesByName:
    """The image files below a folder, by relative path without suffix.

    Args:
        folder: of the images.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: dict[str, list[Path]] = {}
        for path in find_images(folder):
            self.paths.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)

    def find(self, name: str, where: str) -> Path:
        """The image of a name.

        Raises:
            FileNotFoundError: if there is none; the message begins with `where`.
            ValueError: if there are several.
        """
        paths = self.paths.get(name, [])
        if not paths:
            raise FileNotFoundError(f"{where} has no image of that name in {self.folder}.")
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            raise ValueError(f"{where} must have one image of that name in {self.folder}, got {names}; remove one.")
        return paths[0]


def segmentation_of_map(labels: NDArray, value: int) -> dict[str, Any]:
    """Run lengths of the pixels of a map with a certain value."""
    return encode_mask(labels == value)
