"""Instance annotations of COCO: one JSON file with images, annotations and categories."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import coco_image_id, entries, field, image_size, inside, read_json
from ..flaws import Flaws
from ..masks import encode_mask, to_run_lengths
from .object_record import ObjectRecord, ObjectScene, ObjectSource


class CocoObjects(ObjectSource):
    """Instances of COCO (also LVIS, Objects365, ... in that format); images without objects are left out.

    Args:
        path: of the JSON file.
        images: folder of the images.
        name: of the data set.

    Raises:
        OSError: if the file is missing.
        ValueError: if it is not a file of instances.
    """

    def __init__(self, path: str | Path, images: str | Path, name: str | None = None) -> None:
        self.path, self.folder = Path(path), Path(images)
        table = read_json(self.path)
        self.name = name or self.path.stem
        self.classes = {
            _id(row, "id", where): str(field(row, "name", where))
            for where, row in self._rows(table, "categories", "category")
        }
        self.labels = tuple(self.classes.values())
        self.rows = self._annotated_images(table)
        if not self.rows:
            raise ValueError(f"{self.path} has no annotated images.")

    def _rows(self, table: Any, name: str, kind: str) -> Iterator[tuple[str, Any]]:
        """The rows of a list in the file, with their names for messages."""
        for number, row in enumerate(entries(table, name, str(self.path))):
            yield f"{self.path}, {kind} {number}", row

    def _annotated_images(self, table: Any) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Images with their annotations; those without any are left out."""
        of_image: dict[Any, list[dict[str, Any]]] = {}
        for where, row in self._rows(table, "annotations", "annotation"):
            of_image.setdefault(_id(row, "image_id", where), []).append(row)
        pairs = [(row, of_image.pop(_id(row, "id", where), [])) for where, row in self._rows(table, "images", "image")]
        if of_image:
            raise ValueError(f"{self.path} has annotations for the image {next(iter(of_image))!r}, but not the image.")
        return [(image, annotations) for image, annotations in pairs if annotations]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> ObjectScene:
        image, annotations = self.rows[index]
        where = f"{self.path}, image {image['id']}"
        size, flaws = image_size(image, where), Flaws(self.name, empty_masks="skip")
        name = field(image, "file_name", where)
        return ObjectScene(
            image=inside(self.folder, name, where),
            image_id=coco_image_id(name, image["id"]),
            size=size,
            objects=tuple(self._object(row, size, flaws) for row in annotations),
            where=where,
            upright=False,
            flaws=flaws,
        )

    def _object(self, row: Mapping[str, Any], size: tuple[int, int], flaws: Flaws) -> ObjectRecord:
        where = f"{self.path}, annotation {row.get('id', '?')}"
        category = _id(row, "category_id", where)
        if category not in self.classes:
            raise ValueError(f"{where} has the category {category!r}, which is not in `categories`.")
        return ObjectRecord(
            self.classes[category],
            check_segmentation(field(row, "segmentation", where), size, where, flaws),
            str(row.get("id", "")),
            bool(row.get("iscrowd", 0)),
        )


def _id(row: Any, name: str, where: str) -> int | str:
    value = field(row, name, where)
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
