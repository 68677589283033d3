"""PhraseCut: phrases about regions of images of Visual Genome, often of several objects.

```
<root>/image_data_split3000.json
<root>/refer_{train,val,test,miniv}.json
<root>/images/<image_id>.jpg
```
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from datasets import Dataset

from ..files import check_split, entries, field, find_folder, image_size, inside, read_json, require_files, rows_of
from ..flaws import FlawOptions, Flaws
from ..masks import FARTHEST, are_numbers, pack_outlines
from ..record import Record, build_dataset


SPLITS = ("train", "val", "test", "miniv")


def _outlines(task: Any, where: str, flaws: Flaws) -> list[list[list[float]]]:
    """The polygons of all instances of a task, without those of a single point, which evaluations do not draw."""
    outlines = []
    for instance in entries(task, "Polygons", where):
        if isinstance(instance, list) and instance and all(map(_is_point, instance)):
            instance = [instance]  # a polygon outside a list
        for outline in instance if isinstance(instance, list) else [None]:
            if not isinstance(outline, list) or not all(map(_is_point, outline)):
                raise ValueError(f"{where} must have polygons of points [x, y], got {str(outline)[:60]!r}.")
            outlines.append(outline)
    drawn = [outline for outline in outlines if len(outline) > 1]
    for _ in range(len(outlines) - len(drawn)):
        flaws.add("part of a single point left out", "parts of a single point left out", where)
    if not outlines and flaws.empty_masks == "error":
        raise ValueError(f"{where} has no polygon.")
    return drawn


def _is_point(point: Any) -> bool:
    """Whether it is [x, y] in pixels, within the range that Pillow can draw."""
    numbers = isinstance(point, list) and len(point) == 2 and are_numbers(point)
    return numbers and all(abs(x) <= FARTHEST for x in point)


def _image_id(image: dict[str, Any], image_id: Any) -> str:
    """The id of an image, in COCO if it is from COCO, as many are, also of the test splits of RefCOCO."""
    return f"coco {image['coco_id']}" if image.get("coco_id") is not None else f"visual genome {image_id}"


@dataclass(frozen=True)
class _Source:
    """The phrases of a split, and the images of all splits."""

    split: str
    path: Path
    table: Path
    folder: Path
    images: dict[str, Any]
    flaws: Flaws

    def record(self, row: int, task: Any) -> Record:
        where = f"{self.path}, task {field(task, 'task_id', f'{self.path}, row {row}')}"
        image_id = field(task, "image_id", where)
        if str(image_id) not in self.images:
            raise ValueError(f"{where} has the image_id {image_id!r}, which is not in {self.table}.")
        image = self.images[str(image_id)]
        size = image_size(image, f"{self.table}, image {image_id!r},")
        return Record(
            image=inside(self.folder, f"{image_id}.jpg", where),
            image_id=_image_id(image, image_id),
            ref_id=task["task_id"],
            expressions=self.flaws.expressions([field(task, "phrase", where)], where),
            mask=pack_outlines(_outlines(task, where, self.flaws), *size),
            split=self.split,
            dataset="phrasecut",
            where=where,
            ann_ids=tuple(entries(task, "ann_ids", where)),
        )


def load_phrasecut(
    split: str | None, *, root: str | Path, images: str | Path | None = None, **flaws: Unpack[FlawOptions]
) -> Dataset:
    """Load a split of PhraseCut, with a row for each phrase.

    Masks are drawn as in the authors' evaluation: see `draw_outlines`.

    Args:
        split: "train", "val", "test" or "miniv" (100 images of the validation, which are not in "val").
        root: folder of the annotations.
        images: folder of the images; by default `images` in the root.
        flaws: `empty_masks` and `empty_sentences`: see `Flaws`.

    Returns:
        See `record`. `ref_id` is that of the task; `image_id` is "coco 123" for an image of COCO, so that
        `exclude_images` recognises it, otherwise "visual genome 123".

    Raises:
        OSError: if a file or images are missing.
        ValueError: if there is no such split, or a file is broken; names file and task.
    """
    split, found = check_split(split, SPLITS, "phrasecut"), Flaws("phrasecut", **flaws)
    folder = find_folder(Path(root), ("images",), images)
    table, path = Path(root) / "image_data_split3000.json", Path(root) / f"refer_{split}.json"
    rows = rows_of(read_json(table), str(table))
    known = {str(field(image, "image_id", f"{table}, an image")): image for image in rows}
    source = _Source(split, path, table, folder, known, found)
    records = [source.record(row, task) for row, task in enumerate(rows_of(read_json(path), str(path)))]
    needed = ((str(record.image), record.where) for record in records)
    require_files(needed, "image", f"Put them into {folder}, or set `images`.")
    return build_dataset(records, found)
