"""PhraseCut: phrases about regions of the images of Visual Genome, often of several objects.

```
<root>/image_data_split3000.json
<root>/refer_{train,val,test,miniv}.json
<root>/images/<image_id>.jpg
```
"""

from pathlib import Path
from typing import Any

from datasets import Dataset

from ..files import check_split, entries, field, find_folder, image_size, inside, read_json, require_files, rows_of
from ..flaws import EmptyMasks, EmptySentences, Flaws
from ..masks import FARTHEST, is_number, pack_outlines
from ..record import Record, build_dataset


SPLITS = ("train", "val", "test", "miniv")


def _outlines(task: Any, where: str, flaws: Flaws) -> list[list[list[float]]]:
    """The polygons of all instances of a task; one of a single point, which no evaluation draws, is left out."""
    outlines = []
    for instance in entries(task, "Polygons", where):
        if isinstance(instance, list) and instance and all(map(_is_point, instance)):
            instance = [instance]  # one polygon that is not in a list
        for outline in instance if isinstance(instance, list) else [None]:
            if not isinstance(outline, list) or not all(map(_is_point, outline)):
                raise ValueError(f"{where} has the polygon {str(outline)[:60]!r}; it must be a list of [x, y].")
            outlines.append(outline)
    drawn = [outline for outline in outlines if len(outline) > 1]
    for _ in range(len(outlines) - len(drawn)):
        flaws.add("part of a single point left out", "parts of a single point left out", where)
    if not outlines and flaws.empty_masks == "error":
        raise ValueError(f"{where} has no polygon.")
    return drawn


def _is_point(point: Any) -> bool:
    """Whether it is [x, y] in pixels, near enough to an image for Pillow to draw."""
    numbers = isinstance(point, list) and len(point) == 2 and all(map(is_number, point))
    return numbers and all(abs(x) <= FARTHEST for x in point)


def _image_id(image: dict[str, Any], image_id: Any) -> str:
    """The id that an image has in COCO, where it is from there; many are, also of the test splits of RefCOCO."""
    return f"coco {image['coco_id']}" if image.get("coco_id") is not None else f"visual genome {image_id}"


def load_phrasecut(
    split: str | None,
    *,
    root: str | Path,
    images: str | Path | None = None,
    empty_masks: EmptyMasks = "error",
    empty_sentences: EmptySentences = "error",
) -> Dataset:
    """A split of PhraseCut, a row for each phrase.

    The masks are drawn as the authors' evaluation draws them: see `draw_outlines`.

    Args:
        split: "train", "val", "test" or "miniv", 100 images of the validation that "val" does not have.
        root: the folder that holds the annotations.
        images: the folder of the images, if it is not `images` below the root.
        empty_masks: what to do with a target without a pixel: see `Flaws`.
        empty_sentences: what to do with a phrase without text: see `Flaws`.

    Returns:
        See `record`. `ref_id` is the task's; `image_id` is "coco 123" where the image comes from COCO, so that
        `exclude_images` finds it, and otherwise "visual genome 123".

    Raises:
        OSError: if a file or images are missing.
        ValueError: if there is no such split, or the file is broken; names file and task.
    """
    split, flaws = check_split(split, SPLITS, "phrasecut"), Flaws("phrasecut", empty_masks, empty_sentences)
    folder = find_folder(Path(root), ("images",), images)
    table, path = Path(root) / "image_data_split3000.json", Path(root) / f"refer_{split}.json"
    images_of_table = rows_of(read_json(table), str(table))
    known = {str(field(image, "image_id", f"{table}, an image")): image for image in images_of_table}

    def record(row: int, task: Any) -> Record:
        source = f"{path}, task {field(task, 'task_id', f'{path}, row {row}')}"
        image_id = field(task, "image_id", source)
        if str(image_id) not in known:
            raise ValueError(f"{source} has the image_id {image_id!r}, which {table} does not have.")
        image = known[str(image_id)]
        return Record(
            image=inside(folder, f"{image_id}.jpg", source),
            image_id=_image_id(image, image_id),
            ref_id=task["task_id"],
            expressions=flaws.expressions([field(task, "phrase", source)], source),
            mask=pack_outlines(_outlines(task, source, flaws), *image_size(image, f"{table}, image {image_id!r},")),
            split=split,
            dataset="phrasecut",
            where=source,
            ann_ids=tuple(entries(task, "ann_ids", source)),
        )

    records = [record(row, task) for row, task in enumerate(rows_of(read_json(path), str(path)))]
    require_files(
        ((str(record.image), record.where) for record in records),
        "image",
        f"Put them into {folder}, or give another folder as `images`.",
    )
    return build_dataset(records, flaws)
