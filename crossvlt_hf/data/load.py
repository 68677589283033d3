"""Load a data set by name, and exclude the images of one data set from another."""

from pathlib import Path
from typing import Any

from datasets import Dataset

from ..system import call_with_options, check_exists, check_known, did_you_mean
from .files import COCO_ID, check_split, image_key, visible_files
from .masks import Merge
from .record import check_merge
from .refshapes import SPLITS
from .refshapes.dataset import load_refshapes
from .sources.folder import METADATA, load_folder, splits_of
from .sources.hub import JXU124, REFCOCO_M, load_jxu124, load_refcoco_m
from .sources.phrasecut import SPLITS as PHRASES
from .sources.phrasecut import load_phrasecut
from .sources.refer import LAYOUTS, TEXTS, Text, is_refer_folder, load_refer, load_refer_folder


NAMES = (*LAYOUTS, "phrasecut", *JXU124, REFCOCO_M, "refshapes")

# Data sets of COCO's images, with COCO's ids
_COCO = {*(name for name in LAYOUTS if not name.startswith("refclef")), *JXU124, REFCOCO_M}


def _folder(name: str, root: str | Path | None) -> Path:
    if root is None:
        raise ValueError(f"{name!r} needs `root`, the folder of its files.")
    check_exists(root, "folder", f"; set `root` to the folder of the files of {name}")
    return Path(root)


def load_data(
    name: str,
    split: str | None = None,
    *,
    root: str | Path | None = None,
    merge: Merge = "union",
    text: Text = "raw",
    **options: Any,
) -> Dataset:
    """Load a split of a data set.

    Args:
        name: one of `NAMES`; or a folder, by its path or its name below `root`, with a metadata.jsonl (see
            `load_folder`) or annotations in the format of REFER (see `load_refer_folder`).
        split: "train", "val" (or "validation"), or another split of the data set; for None an error names them.
        root: the folder of the data set or its images; RefCOCO-M and RefShapes need none.
        merge: "union" of the parts of an object; with "reference" the overlap of two parts is background, as in the
            authors' evaluation. Has no effect on masks that are image files.
        text: "raw" as written; "sent", in lower case without punctuation, if the data have both.
        options: of the reader: see `load_refer`, `load_refer_folder`, `load_phrasecut`, `load_jxu124`,
            `load_refcoco_m`, `load_folder`, `load_refshapes`. All but the last take `empty_masks` and
            `empty_sentences`: what to do with empty masks and empty expressions (see `Flaws`).

    Returns:
        A row for each reference: see `record`. Images and masks are decoded when a row is read.

    Raises:
        OSError: if a file is missing.
        ValueError: if there is no such data set, split or option, or a file is broken; names file and row.
    """
    check_known("text", text, TEXTS)
    check_merge(merge)
    if name in NAMES:
        check_split(split, _named_splits(name), str(LAYOUTS.get(name, name)))
    if name in LAYOUTS:
        return call_with_options(
            load_refer, name, options, name, split, root=_folder(name, root), text=text, merge=merge
        )
    if name in JXU124:
        return call_with_options(
            load_jxu124, name, options, name, split, root=_folder(name, root), text=text, merge=merge
        )
    folder = None if name in NAMES else _own_folder(name, root)
    if folder is not None and is_refer_folder(folder):
        return call_with_options(load_refer_folder, name, options, folder, split, text=text, merge=merge)
    if text != "raw":
        raise ValueError(f"`text` must be 'raw' for {name}, which has one form of expressions, got {text!r}.")
    if folder is not None:
        return _load_own(folder, split, merge, options)
    if name == "phrasecut":
        return call_with_options(load_phrasecut, name, options, split, root=_folder(name, root))
    if name == REFCOCO_M:
        return call_with_options(load_refcoco_m, name, options, split, merge=merge)
    return call_with_options(load_refshapes, name, options, check_split(split, SPLITS, name))


def _named_splits(name: str) -> tuple[str, ...]:
    """The splits of one of `NAMES`."""
    if name in LAYOUTS:
        return LAYOUTS[name].splits
    return {"phrasecut": PHRASES, REFCOCO_M: ("validation",), "refshapes": SPLITS}.get(name) or tuple(JXU124[name])


def find_own_folder(name: str, root: str | Path | None) -> Path | None:
    """The folder of this path, or of this name below root; None if there is none."""
    folders = (Path(name), *([Path(root) / name] if root is not None else []))
    return next((folder for folder in folders if folder.is_dir()), None)


def _own_folder(name: str, root: str | Path | None) -> Path:
    """The folder of `find_own_folder`, or ValueError."""
    if (folder := find_own_folder(name, root)) is not None:
        return folder
    hint = did_you_mean(name, NAMES)
    raise ValueError(f"There is no data set or folder {name!r}; give one of {', '.join(NAMES)}, or a folder.{hint}")


def is_data_folder(folder: Path) -> bool:
    """Whether `load_data` reads a folder: in the format of REFER, or with a metadata.jsonl in each split."""
    return is_refer_folder(folder) or any(visible_files(folder, f"*/{METADATA}"))


def _load_own(folder: Path, split: str | None, merge: Merge, options: dict[str, Any]) -> Dataset:
    """Load a folder of the user's own data; without a split, an error names the splits."""
    if found := [each.name for each in sorted(folder.iterdir()) if is_refer_folder(each)]:
        raise ValueError(f"{folder} is not a data set, but has the data sets {', '.join(found)}; give one of these.")
    if split is None:
        check_split(None, splits_of(folder), str(folder))
    return call_with_options(load_folder, str(folder), options, folder, split, merge=merge)


def _image_keys(dataset: Dataset) -> list[str]:
    """A key of the image of each row, the same for the same image in all data sets."""
    plain = dataset.with_format(None).select_columns(["dataset", "image_id"])
    return [
        image_key(name, image_id if name not in _COCO or image_id.startswith(COCO_ID) else f"{COCO_ID}{image_id}")
        for name, image_id in zip(plain["dataset"], plain["image_id"], strict=True)
    ]


def exclude_images(dataset: Dataset, *held_out: Dataset) -> Dataset:
    """Remove the rows whose image occurs in other data sets.

    Images of COCO are recognised across data sets: the Google split of RefCOCOg has images in both train and val, and
    the train split of one data set has images of the test splits of others. So are those of `crossvlt refer`, whose
    ids have a digest of the image file.

    Args:
        dataset: the rows to filter.
        held_out: data sets for evaluation.

    Returns:
        The remaining rows.

    Raises:
        ValueError: if none remain.
    """
    keys = {key for other in held_out for key in _image_keys(other)}
    kept = [row for row, key in enumerate(_image_keys(dataset)) if key not in keys]
    if not kept:
        every = "The only row shows" if len(dataset) == 1 else f"All {len(dataset)} rows show"
        raise ValueError(f"{every} images of the held-out data sets; nothing remains.")
    return dataset.select(kept)
