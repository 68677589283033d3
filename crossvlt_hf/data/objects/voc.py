"""Pascal VOC: SegmentationObject/*.png numbers the objects, SegmentationClass/*.png the classes; 255 is the border."""

import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...processing_crossvlt import check_mask_format, opening
from ...system import check_texts
from ..files import check_split, find_files, require_folder
from .object_record import (
    ImagesByName,
    ObjectRecord,
    ObjectScene,
    ObjectSource,
    is_for_upright,
    segmentation_of_map,
)


# Class numbers of VOC 2007 to 2012, from 1
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
BORDER = 255
BLACK, VOID = 0, 0xE0E0C0  # the colours of background and border, as numbers


class VocObjects(ObjectSource):
    """Pascal VOC: palette PNGs of classes and instances, or PNGs of colours with a labelmap.txt, as CVAT writes them.

    Args:
        folder: with `SegmentationClass`, `SegmentationObject` and `JPEGImages` (VOCdevkit/VOC2012).
        images: folder of the images; None means `JPEGImages`.
        split: name of a list in ImageSets/Segmentation; None for the only one, or all images if there are no lists.
        classes: names of the classes, from class 1; None for those in labelmap.txt (lines `name:R,G,B::`), if there is
            such a file, otherwise those of VOC.
        name: of the data set.

    Raises:
        OSError: if a folder is missing.
        ValueError: if there are no PNG files, or no such list; or if there are several lists, and `split` is None.
    """

    def __init__(
        self,
        folder: str | Path,
        images: str | Path | None = None,
        split: str | None = None,
        classes: Sequence[str] | None = None,
        name: str | None = None,
    ) -> None:
        if classes is not None:
            check_texts("classes", classes)
        self.folder = Path(folder)
        self.images = Path(images) if images is not None else self.folder / "JPEGImages"
        for path in (self.folder / "SegmentationClass", self.folder / "SegmentationObject", self.images):
            require_folder(path)
        self.labelmap = self.folder / "labelmap.txt"
        self.colours = _read_colours(self.labelmap) if self.labelmap.is_file() else {}
        named = [label for label, colour in self.colours.items() if colour != BLACK] or VOC_CLASSES
        self.labels, self.name = tuple(named if classes is None else classes), name or self.folder.resolve().name
        self.pictures = ImagesByName(self.images)
        self.split = split
        self.stems = self._stems()
        if not self.stems:
            raise ValueError(f"{self.folder / 'SegmentationObject'} has no PNG files.")

    def _stems(self) -> list[str]:
        lists = self.folder / "ImageSets" / "Segmentation"
        names = [path.stem for path in find_files(lists, "*.txt")]
        if self.split is None and len(names) == 1:
            self.split = names[0]
        if self.split is None and not names:
            maps = self.folder / "SegmentationObject"
            return [path.relative_to(maps).with_suffix("").as_posix() for path in find_files(maps, "**/*.png")]
        if not names:
            raise FileNotFoundError(f"There is no file {lists / f'{self.split}.txt'}, nor a list of another split.")
        path = lists / f"{check_split(self.split, names, str(self.folder))}.txt"
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        return [stem for line in lines if line for stem in self._listed(line)]

    def _listed(self, line: str) -> list[str]:
        """The name in a line of a list; none if the list is of a class (`NAME -1`) that the image lacks."""
        named = re.fullmatch(r"(.*\S)\s+(-1|0|1)", line)
        if named is None or (self.folder / "SegmentationObject" / f"{line}.png").is_file():
            return [line]
        return [] if named[2] == "-1" else [named[1]]

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, index: int) -> ObjectScene:
        stem = self.stems[index]
        paths = [self.folder / kind / f"{stem}.png" for kind in ("SegmentationClass", "SegmentationObject")]
        classes, instances = self._classes(paths[0]), _numbered(*_read_map(paths[1], bool(self.colours)))
        if classes.shape != instances.shape:
            raise ValueError(
                f"{paths[0]} is {classes.shape[0]}x{classes.shape[1]} pixels (height x width), {paths[1]} "
                f"{instances.shape[0]}x{instances.shape[1]}; they must agree."
            )
        image = self.pictures.find(stem, str(paths[1]))
        numbers = [int(number) for number in np.unique(instances) if number not in (0, BORDER)]
        objects = tuple(self._object(classes, instances, number, paths[1]) for number in numbers)
        size = (classes.shape[0], classes.shape[1])
        return ObjectScene(str(image), stem, size, objects, str(paths[1]), upright=is_for_upright(str(image), size))

    def _classes(self, path: Path) -> NDArray[np.int64]:
        """The (height, width) class numbers of a map."""
        values, are_colours = _read_map(path, bool(self.colours))
        if not are_colours:
            return values
        present = [colour for colour in self.colours.values() if colour != BLACK]
        numbers = {VOID: BORDER, **{colour: number for number, colour in enumerate(present, start=1)}, BLACK: 0}
        found, places = np.unique(values, return_inverse=True)
        if unknown := [int(colour) for colour in found if int(colour) not in numbers]:
            red, green, blue = unknown[0].to_bytes(3, "big")
            raise ValueError(f"{path} has the colour {red},{green},{blue}, which is not in {self.labelmap}.")
        return np.array([numbers[int(colour)] for colour in found])[places].reshape(values.shape)

    def _object(self, classes: NDArray, instances: NDArray, number: int, path: Path) -> ObjectRecord:
        values, counts = np.unique(classes[instances == number], return_counts=True)
        inner = [(int(c), int(v)) for v, c in zip(values, counts, strict=True) if v not in (0, BORDER)]
        if not inner:
            raise ValueError(f"{path}: the object {number} has no class.")
        value = max(inner)[1]
        if value > len(self.labels):
            raise ValueError(f"{path}: the object {number} has the class {value}; there are {len(self.labels)}.")
        return ObjectRecord(self.labels[value - 1], segmentation_of_map(instances, number), str(number))


def _read_colours(path: Path) -> dict[str, int]:
    """The colour of each class in a labelmap.txt, in its order.

    Raises:
        OSError: if it cannot be read.
        ValueError: if a line is not `name:R,G,B` with what else CVAT writes, or there are more classes than numbers.
    """
    colours = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = re.fullmatch(r"(.*\S)\s*:\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(:.*)?", line.strip())
        if parts is None or not all(int(part) < 256 for part in parts.groups()[1:4]):
            raise ValueError(f"{path}, line {number} must have a class and its colour, `name:R,G,B::`, got {line!r}.")
        colours[parts[1].strip()] = int.from_bytes(bytes(int(part) for part in parts.groups()[1:4]), "big")
    if len(colours) > BORDER:
        raise ValueError(f"{path} must have at most {BORDER - 1} classes and the background, got {len(colours)}.")
    return colours


def _read_map(path: Path, colours: bool) -> tuple[NDArray[np.int64], bool]:
    """The (height, width) values of a palette or grey PNG, or its colours, each as one number; and which they are.

    Args:
        path: of the PNG.
        colours: whether there are names for colours, so that they are read, also those of a palette.
    """
    with opening(str(path), "mask"), Image.open(path) as image:
        if colours and image.mode in ("P", "RGB", "RGBA"):
            check_mask_format(image)
            return np.asarray(image.convert("RGB")).astype(np.int64) @ (65536, 256, 1), True
        if image.mode not in ("P", "L"):
            raise ValueError(
                f"its mode must be P or L, got {image.mode}; for colours, add a file labelmap.txt to the folder, with "
                "a line `name:R,G,B::` for each class, as CVAT writes it"
            )
        check_mask_format(image)
        return np.array(image).astype(np.int64), False


def _numbered(values: NDArray[np.int64], are_colours: bool) -> NDArray[np.int64]:
    """The numbers of the instances in a map; colours are numbered, but for background and border."""
    if not are_colours:
        return values
    found, places = np.unique(values, return_inverse=True)
    free = (number for number in count(1) if number != BORDER)
    known = {BLACK: 0, VOID: BORDER}
    numbers = [known[colour] if colour in known else next(free) for colour in found.tolist()]
    return np.array(numbers)[places].reshape(values.shape)
