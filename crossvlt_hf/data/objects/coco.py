"""Instance annotations of COCO: one JSON file with images, annotations and categories."""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ...system import check_known
from ..files import coco_image_id, entries, field, image_size, last_part, read_json, slashed, whole
from ..flaws import Flaws
from ..masks import encode_mask, to_run_lengths
from .object_record import (
    CROWDS,
    Crowds,
    ObjectRecord,
    ObjectScene,
    ObjectSource,
    find_image,
    is_crowd,
    is_for_upright,
)


T = TypeVar("T")
MANY_CROWDS = 0.1  # share of all objects from which masks that are all crowds are told of


class CocoObjects(ObjectSource):
    """Instances of COCO, or of other data sets in that format; images without objects are left out.

    The images of LVIS, which lack `file_name`, are found by the end of `coco_url`, in the folder or in that of their
    split below it (train2017). A path of another machine, as Label Studio writes it, is found by its end, if no other
    image has that end. Labels are for the stored pixels; if only the size of the image with its EXIF orientation fits,
    for that one. Images with `neg_category_ids` or `not_exhaustive_category_ids` are labelled in part.

    Args:
        path: of the JSON file.
        images: folder of the images.
        name: of the data set.
        crowds: "objects" if annotations with `iscrowd` are objects, as in masks that CVAT draws with a brush, and not
            "crowds", of which no expression speaks.

    Raises:
        OSError: if the file is missing.
        ValueError: if it is not a file of instances, has only boxes, or an id or file name twice.
    """

    def __init__(
        self, path: str | Path, images: str | Path, name: str | None = None, crowds: Crowds = "crowds"
    ) -> None:
        check_known("crowds", crowds, CROWDS)
        self.path, self.folder, self.crowds = Path(path), Path(images), crowds
        table = read_json(self.path)
        self.name = name or self.path.stem
        categories = list(self._rows(table, "categories", "category"))
        self.classes = _unique(
            (_id(row, "id", where), str(field(row, "name", where)), where) for where, row in categories
        )
        self.labels = tuple(self.classes.values())
        self.rows = self._annotated_images(table)
        if not self.rows:
            raise ValueError(f"{self.path} has no annotated images.")
        names = (image.get("file_name") for image, _ in self.rows)
        self.ends = Counter(last_part(name) for name in names if isinstance(name, str))
        if crowds == "crowds":
            self._tell_of_crowds()

    def _tell_of_crowds(self) -> None:
        """Warn if all objects, or all masks of run lengths, are crowds; COCO has such masks, but few."""
        rows = [row for _, annotations in self.rows for row in annotations]
        masks = [row for row in rows if isinstance(row.get("segmentation"), dict)]
        for kind, some in (("objects", rows), ("masks of run lengths", masks)):
            if len(some) > MANY_CROWDS * len(rows) and all(row.get("iscrowd") in (1, "1") for row in some):
                warnings.warn(
                    f"{self.path}: all {len(some)} {kind} are crowds (`iscrowd` 1), which are no targets. If each is "
                    "one object, as in masks that CVAT draws with a brush, set `crowds=objects`.",
                    stacklevel=2,
                )
                return

    def _rows(self, table: Any, name: str, kind: str) -> Iterator[tuple[str, Any]]:
        """The rows of a list in the file, with their names for messages."""
        for number, row in enumerate(entries(table, name, str(self.path))):
            yield f"{self.path}, {kind} {number}", row

    def _annotated_images(self, table: Any) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Images with their annotations; those without any are left out."""
        of_image: dict[Any, list[dict[str, Any]]] = {}
        for where, row in self._rows(table, "annotations", "annotation"):
            of_image.setdefault(_id(row, "image_id", where), []).append(row)
        images = _unique((_id(row, "id", where), row, where) for where, row in self._rows(table, "images", "image"))
        pairs = [(row, of_image.pop(number, [])) for number, row in images.items()]
        if of_image:
            raise ValueError(f"{self.path} has annotations for the image {next(iter(of_image))!r}, but not the image.")
        found = [(image, annotations) for image, annotations in pairs if annotations]
        if found and not any(row.get("segmentation") for _, annotations in found for row in annotations):
            raise ValueError(
                f"{self.path} must have masks, but no annotation has a `segmentation`; boxes are not enough."
            )
        self._check_files(found)
        return found

    def _check_files(self, rows: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> None:
        """Check that no file has two images, each with a part of its objects."""
        seen: dict[str, Any] = {}
        for image, _ in rows:
            name = image.get("file_name")
            first = seen.setdefault(slashed(name), image["id"]) if isinstance(name, str) else image["id"]
            if first != image["id"]:
                raise ValueError(
                    f"{self.path} has the file {name!r} as image {first} and as image {image['id']}; merge their "
                    "annotations."
                )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> ObjectScene:
        image, annotations = self.rows[index]
        where = f"{self.path}, image {image['id']}"
        size, flaws = image_size(image, where), Flaws(self.name, empty_masks="skip")
        path = self._image(image, where)
        return ObjectScene(
            image=path,
            image_id=coco_image_id(Path(path).name, whole(image["id"])),
            size=size,
            objects=tuple(self._object(row, size, flaws) for row in annotations),
            where=where,
            upright=is_for_upright(path, size),
            exhaustive=not image.keys() & {"neg_category_ids", "not_exhaustive_category_ids"},
            flaws=flaws,
        )

    def _image(self, image: dict[str, Any], where: str) -> str:
        """The path of an image, by its name or the end of it; that of LVIS is the end of its address."""
        address = image.get("coco_url")
        if "file_name" not in image and isinstance(address, str):
            parts = [part for part in address.partition("?")[0].split("/") if part]
            return find_image(self.folder, ["/".join(parts[-count:]) for count in (2, 1)], where)
        name = field(image, "file_name", where)
        end = last_part(name)
        others = [slashed(name), *([end] if self.ends[end] == 1 else [])] if isinstance(name, str) else []
        return find_image(self.folder, [name, *others], where)

    def _object(self, row: Mapping[str, Any], size: tuple[int, int], flaws: Flaws) -> ObjectRecord:
        where = f"{self.path}, annotation {row.get('id', '?')}"
        category = _id(row, "category_id", where)
        if category not in self.classes:
            raise ValueError(f"{where} has the category {category!r}, which is not in `categories`.")
        if "segmentation" not in row:
            raise ValueError(f"{where} has no `segmentation`: a mask is needed, a box is not enough; [] is for none.")
        return ObjectRecord(
            self.classes[category],
            check_segmentation(row["segmentation"], size, where, flaws),
            str(whole(row.get("id", ""))),
            is_crowd(row.get("iscrowd"), where) and self.crowds == "crowds",
        )


def _unique(rows: Iterable[tuple[int | str, T, str]]) -> dict[int | str, T]:
    """Rows by id.

    Args:
        rows: id, row, and file and row for the message.

    Raises:
        ValueError: if an id is there twice; the message begins with the second row.
    """
    found: dict[int | str, T] = {}
    for number, row, where in rows:
        if number in found:
            raise ValueError(f"{where} must have an id of its own, got {number!r} again.")
        found[number] = row
    return found


def _id(row: Any, name: str, where: str) -> int | str:
    value = whole(field(row, name, where))
    if not isinstance(value, int | str):
        raise ValueError(f"{where} must have a number or text as `{name}`, got {str(value)[:40]!r}.")
    return value


WITHOUT_MASK = ("object without a mask, which is no target", "objects without a mask, which are no targets")


def check_segmentation(segmentation: Any, size: tuple[int, int], where: str, flaws: Flaws) -> Any:
    """Check polygons or run lengths, and leave out polygons of fewer than three points.

    Returns:
        Polygons or run lengths in COCO's format; run lengths of an empty mask if there are none, since expressions
        must not mistake the object for absent.

    Raises:
        ValueError: if they are broken; the message begins with `where`.
    """
    segmentation = flaws.polygons([] if segmentation is None else segmentation, where)
    if segmentation == []:
        flaws.add(*WITHOUT_MASK, where)
        return encode_mask(np.zeros(size, dtype=np.uint8))
    if isinstance(segmentation, list) and not any(isinstance(part, dict) for part in segmentation):
        return segmentation
    try:
        parts = to_run_lengths(segmentation, *size)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error
    texts = [{"size": list(size), "counts": part["counts"].decode()} for part in parts]
    return texts[0] if len(texts) == 1 else texts
