"""Instance annotations of COCO: one JSON file with images, annotations and categories."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..files import coco_image_id, entries, field, image_size, inside, read_json
from ..flaws import Flaws
from ..masks import encode_mask, to_run_lengths
from .object_record import ObjectRecord, ObjectScene, ObjectSource, is_crowd


T = TypeVar("T")


class CocoObjects(ObjectSource):
    """Instances of COCO, or of other data sets in that format; images without objects are left out.

    The images of LVIS, which lack `file_name`, are found by the end of `coco_url`, in the folder or in that of their
    split below it (train2017). Images with `neg_category_ids` or `not_exhaustive_category_ids` are labelled in part.

    Args:
        path: of the JSON file.
        images: folder of the images.
        name: of the data set.

    Raises:
        OSError: if the file is missing.
        ValueError: if it is not a file of instances, has only boxes, or an id or file name twice.
    """

    def __init__(self, path: str | Path, images: str | Path, name: str | None = None) -> None:
        self.path, self.folder = Path(path), Path(images)
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
            if isinstance(name, str) and seen.setdefault(name, image["id"]) != image["id"]:
                raise ValueError(
                    f"{self.path} has the file {name!r} as image {seen[name]} and as image {image['id']}; merge their "
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
            image_id=coco_image_id(Path(path).name, image["id"]),
            size=size,
            objects=tuple(self._object(row, size, flaws) for row in annotations),
            where=where,
            upright=False,
            exhaustive=not image.keys() & {"neg_category_ids", "not_exhaustive_category_ids"},
            flaws=flaws,
        )

    def _image(self, image: dict[str, Any], where: str) -> str:
        """The path of an image; that of LVIS is the end of its address."""
        address = image.get("coco_url")
        if "file_name" in image or not isinstance(address, str):
            return inside(self.folder, field(image, "file_name", where), where)
        parts = [part for part in address.partition("?")[0].split("/") if part]
        nested = inside(self.folder, "/".join(parts[-2:]), where)
        return nested if Path(nested).is_file() else inside(self.folder, "".join(parts[-1:]), where)

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
            str(row.get("id", "")),
            is_crowd(row.get("iscrowd"), where),
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
