"""Data sets of the Hub: RefCOCO, RefCOCO+ and RefCOCOg (without images) by jxu124, and RefCOCO-M by moondream."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Unpack

from datasets import Dataset, load_dataset
from datasets import Image as ImageFeature

from ...system import check_known
from ..files import COCO_FOLDERS, check_split, field, image_size, inside, require_columns, require_files
from ..flaws import FlawOptions, Flaws
from ..masks import Merge, pack
from ..record import Record, build_dataset, check_merge
from .refer import TEXTS, Text, expressions_of


REFCOCO_M = "moondream/refcoco-m"

# The usual names of splits, and those on the Hub
_UNC = {"train": "train", "validation": "validation", "test": "test", "testA": "test", "testB": "testB"}
JXU124: dict[str, dict[str, str]] = {
    "jxu124/refcoco": _UNC,
    "jxu124/refcocoplus": _UNC,
    "jxu124/refcocog": {"train": "train", "validation": "validation", "test": "test"},
}
_JXU124_COLUMNS = ("ref_id", "ann_id", "image_id", "split", "sentences", "raw_anns", "raw_image_info", "image_path")


def _columns(base: Dataset, names: tuple[str, ...], source: str) -> Dataset:
    """Select columns, so that no other image is decoded.

    Raises:
        ValueError: if a column is missing.
    """
    require_columns(base, names, source)
    return base.with_format(None).select_columns(list(names))


def _parse(row: dict[str, Any], name: str, source: str) -> dict[str, Any]:
    try:
        return dict(json.loads(row[name]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source} must have a JSON object as `{name}`, got {str(row[name])[:60]!r}.") from error


def jxu124_records(
    base: Dataset, name: str, root: Path, images: Path | None, text: Text, flaws: Flaws
) -> Iterator[Record]:
    """Make records of the rows of `jxu124/refcoco`, `jxu124/refcocoplus` or `jxu124/refcocog`.

    Args:
        base: the rows.
        name: of the data set, for records and messages.
        root: folder of `image_path`, or of a train2014 as in the layout of REFER.
        images: folder of the images, instead.
        text: see `expressions_of`.
        flaws: how to treat empty sentences.

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
    **flaws: Unpack[FlawOptions],
) -> Dataset:
    """Load RefCOCO, RefCOCO+ or RefCOCOg (umd) from the Hub, with the images of COCO from a folder.

    Args:
        name: "jxu124/refcoco", "jxu124/refcocoplus" or "jxu124/refcocog".
        split: "train", "val" (or "validation"), "testA" (the Hub calls it "test"), "testB"; RefCOCOg: "test".
        root: folder of the images: in `image_path` (coco/train2014/...), `train2014`, `images/train2014` or
            `images/mscoco/images/train2014`.
        images: folder of the images, if it is elsewhere.
        path: of a local copy of the data set.
        text: see `expressions_of`.
        merge: how to merge the parts of an object: see `decode_segmentation`.
        flaws: `empty_masks` and `empty_sentences`: see `Flaws`.

    Returns:
        A row for each reference: see `record`.

    Raises:
        OSError: if images are missing, or the Hub cannot be reached.
        ValueError: if there is no such data set or split, or a row is broken; names it.
    """
    check_known("name", name, JXU124)
    found = Flaws(name, **flaws)
    check_known("text", text, TEXTS)
    check_merge(merge)
    split = JXU124[name][check_split(split, tuple(JXU124[name]), name)]
    base = load_dataset(str(path or name), split=split)
    records = list(jxu124_records(base, name, Path(root), Path(images) if images else None, text, found))
    require_files(
        ((str(record.image), record.where) for record in records),
        "image",
        "They are the images of COCO's train2014; set `images` to their folder.",
    )
    return build_dataset(records, found, merge=merge)


def refcoco_m_records(base: Dataset, flaws: Flaws) -> Iterator[Record]:
    """Make a record of each sample of `moondream/refcoco-m`, without decoding images.

    Args:
        base: the rows.
        flaws: how to treat empty sentences.

    Raises:
        ValueError: if a row is broken; names it.
    """
    # not decoded, since `datasets` would apply the EXIF orientation, which annotations of COCO do not
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
    **flaws: Unpack[FlawOptions],
) -> Dataset:
    """Load RefCOCO-M, the validation split of RefCOCO with better masks, from the Hub, with images.

    Args:
        split: "validation" (or "val"), the only split.
        path: of a local copy of the data set.
        merge: see `decode_segmentation`; has no effect on masks with one part, as here.
        flaws: `empty_masks` and `empty_sentences`: see `Flaws`.

    Returns:
        A row for each object: see `record`.

    Raises:
        OSError: if the Hub cannot be reached.
        ValueError: if there is no such split, or a row is broken; names it.
    """
    split, found = check_split(split, ("validation",), REFCOCO_M), Flaws(REFCOCO_M, **flaws)
    base = load_dataset(str(path or REFCOCO_M), split=split)
    return build_dataset(refcoco_m_records(base, found), found, merge=merge)
