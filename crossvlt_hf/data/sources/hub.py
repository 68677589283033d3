"""Data sets of the Hub: RefCOCO, RefCOCO+ and RefCOCOg without images by jxu124, and RefCOCO-M by moondream."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets import Image as ImageFeature

from ..files import COCO_FOLDERS, check_split, field, image_size, inside, require_files
from ..flaws import EmptyMasks, EmptySentences, Flaws
from ..masks import Merge, pack
from ..record import Record, build_dataset, check_merge
from .refer import Text, check_text, expressions_of


REFCOCO_M = "moondream/refcoco-m"

# The names of splits that people use, and those of the Hub
_UNC = {"train": "train", "validation": "validation", "test": "test", "testA": "test", "testB": "testB"}
JXU124: dict[str, dict[str, str]] = {
    "jxu124/refcoco": _UNC,
    "jxu124/refcocoplus": _UNC,
    "jxu124/refcocog": {"train": "train", "validation": "validation", "test": "test"},
}
_JXU124_COLUMNS = ("ref_id", "ann_id", "image_id", "split", "sentences", "raw_anns", "raw_image_info", "image_path")


def _columns(base: Dataset, names: tuple[str, ...], source: str) -> Dataset:
    """A data set of these columns only, so that no image is decoded on the way.

    Raises:
        ValueError: if one is missing.
    """
    if missing := [name for name in names if name not in base.column_names]:
        raise ValueError(f"{source} has no column {missing[0]!r}; it has {', '.join(base.column_names)}.")
    return base.with_format(None).select_columns(list(names))


def _parse(row: dict[str, Any], name: str, source: str) -> dict[str, Any]:
    try:
        return dict(json.loads(row[name]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source} has {str(row[name])[:60]!r} as `{name}`, not an object in JSON.") from error


def jxu124_records(
    base: Dataset, name: str, root: Path, images: Path | None, text: Text, flaws: Flaws
) -> Iterator[Record]:
    """Records of the rows of `jxu124/refcoco` and its sisters.

    Args:
        base: the rows.
        name: of the data set, for the records and messages.
        root: below which `image_path` leads to an image, or a folder train2014 as in the layout of REFER has it.
        images: the folder of the images, instead.
        text: "raw" or "sent".
        flaws: what to do with sentences without text.

    Raises:
        ValueError: if a row is broken; names it.
    """

    @cache
    def folder_of(parent: Path) -> Path:
        candidates = [parent, *(root / folder for folder in COCO_FOLDERS)]
        return images or next((folder for folder in candidates if folder.is_dir()), candidates[0])

    for number, row in enumerate(_columns(base, _JXU124_COLUMNS, name)):
        source = f"{name}, ref {row['ref_id']} (row {number})"
        annotation, image = _parse(row, "raw_anns", source), _parse(row, "raw_image_info", source)
        folder = folder_of(Path(inside(root, row["image_path"], source)).parent)
        segmentation = flaws.polygons(field(annotation, "segmentation", source), source)
        yield Record(
            image=inside(folder, field(image, "file_name", source), source),
            image_id=row["image_id"],
            ref_id=row["ref_id"],
            expressions=expressions_of(row, text, source, flaws),
            mask=pack([segmentation] if segmentation else [], *image_size(image, source)),
            split=row["split"],
            dataset=name,
            where=source,
            ann_ids=(row["ann_id"],),
        )


def load_jxu124(
    name: str,
    split: str | None,
    *,
    root: str | Path,
    images: str | Path | None = None,
    path: str | Path | None = None,
    text: Text = "raw",
    merge: Merge = "union",
    empty_masks: EmptyMasks = "error",
    empty_sentences: EmptySentences = "error",
) -> Dataset:
    """RefCOCO, RefCOCO+ or RefCOCOg (umd) from the Hub, with COCO's images from a folder.

    Args:
        name: "jxu124/refcoco", "jxu124/refcocoplus" or "jxu124/refcocog".
        split: "train", "val" (or "validation"), "testA" (the Hub calls it "test"), "testB"; RefCOCOg: "test".
        root: the folder that holds the images as `image_path` says (coco/train2014/...), or in `train2014`,
            `images/train2014` or `images/mscoco/images/train2014`.
        images: the folder of the images, if it is elsewhere.
        path: of a local copy of the data set.
        text: "raw" as people wrote it, or "sent", in lower case without punctuation.
        merge: how the parts of an object join: see `decode_segmentation`.
        empty_masks: what to do with a target without a pixel: see `Flaws`.
        empty_sentences: what to do with a sentence without text: see `Flaws`.

    Returns:
        A row for each reference: see `record`.

    Raises:
        OSError: if images are missing, or the Hub cannot be reached.
        ValueError: if there is no such data set or split, or a row is broken; names it.
    """
    if name not in JXU124:
        raise ValueError(f"`name` is {name!r}; give one of {', '.join(JXU124)}.")
    flaws = Flaws(name, empty_masks, empty_sentences)
    check_text(text)
    check_merge(merge)
    split = JXU124[name][check_split(split, tuple(JXU124[name]), name)]
    base = load_dataset(str(path or name), split=split)
    records = list(jxu124_records(base, name, Path(root), Path(images) if images else None, text, flaws))
    require_files(
        ((str(record.image), record.where) for record in records),
        "image",
        "They are those of COCO's train2014; give their folder as `images`.",
    )
    return build_dataset(records, flaws, merge=merge)


def refcoco_m_records(base: Dataset, flaws: Flaws) -> Iterator[Record]:
    """Records of the rows of `moondream/refcoco-m`, one for each sample; their images are not decoded.

    Args:
        base: the rows.
        flaws: what to do with sentences without text.

    Raises:
        ValueError: if a row is broken; names it.
    """
    # not decoded, as `datasets` would turn an image by its EXIF data, which COCO's annotations leave alone
    rows = _columns(base, ("image", "image_id", "samples"), REFCOCO_M).cast_column("image", ImageFeature(decode=False))
    for number, row in enumerate(rows):
        for sample in row["samples"]:
            source = f"{REFCOCO_M}, sample {sample['id']} (row {number})"
            height, width = field(sample["mask"], "size", source)
            yield Record(
                image=row["image"],
                image_id=row["image_id"],
                ref_id=sample["id"],
                expressions=flaws.expressions(sample["sentences"], source),
                mask=pack([sample["mask"]], height, width),
                split="val",
                dataset=REFCOCO_M,
                where=source,
                ann_ids=(sample["id"],),
            )


def load_refcoco_m(
    split: str | None = "validation",
    *,
    path: str | Path | None = None,
    merge: Merge = "union",
    empty_masks: EmptyMasks = "error",
    empty_sentences: EmptySentences = "error",
) -> Dataset:
    """RefCOCO-M, the validation split of RefCOCO with better masks; its images come with it.

    Args:
        split: "validation" (or "val"), the only one.
        path: of a local copy of the data set.
        merge: see `decode_segmentation`; here the masks have one part.
        empty_masks: what to do with a target without a pixel: see `Flaws`.
        empty_sentences: what to do with a sentence without text: see `Flaws`.

    Returns:
        A row for each object: see `record`.

    Raises:
        OSError: if the Hub cannot be reached.
        ValueError: if there is no such split, or a row is broken; names it.
    """
    split, flaws = check_split(split, ("validation",), REFCOCO_M), Flaws(REFCOCO_M, empty_masks, empty_sentences)
    base = load_dataset(str(path or REFCOCO_M), split=split)
    return build_dataset(refcoco_m_records(base, flaws), flaws, merge=merge)
