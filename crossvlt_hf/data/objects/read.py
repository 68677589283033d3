"""Load labels in any supported form, which is detected from the path."""

from pathlib import Path
from typing import Any

from ...system import call_with_options, check_exists, check_known, check_source_exists, some_names
from ..files import find_files, load_rows, read_json, require_folder, visible_files
from .object_record import ObjectSource
from .refer_options import FORMS, TABLES, Form


ROBOFLOW = "_annotations.coco.json"  # the COCO file in a folder of images, as Roboflow writes it


def detect_form(path: str | Path) -> Form:
    """Detect the form of the labels at a path; what is not a path is a data set of the Hub.

    Raises:
        OSError: if there is no such file or folder.
        ValueError: if the form is not supported.
    """
    place = Path(path)
    if place.is_file():
        if place.suffix.lower() not in TABLES:
            raise ValueError(f"{place} must be a COCO file (.json) or a table (.parquet); otherwise set the form.")
        return TABLES[place.suffix.lower()]
    if not place.is_dir():
        check_source_exists(path, TABLES)
        return "hub"
    return _form_of_folder(place)


def _form_of_folder(place: Path) -> Form:
    if (place / "SegmentationObject").is_dir():
        return "voc"
    if (place / ROBOFLOW).is_file():
        return "coco"
    if splits := find_files(place, f"*/{ROBOFLOW}"):
        raise ValueError(f"{place} has a COCO file for each split; give the path of one of {_listed(splits)}.")
    if any(visible_files(place, "**/*.parquet")):
        return "hub"
    texts = visible_files(place, "**/*.txt")
    if (place / "labels").is_dir() or any(p.name != "classes.txt" and not p.name.startswith("README") for p in texts):
        return "yolo"
    if tables := find_files(place, "**/*.json"):
        if _is_coco(tables[0]):
            raise ValueError(
                f"{place} has COCO files, not labels of LabelMe; give the path of one of {_listed(tables)}."
            )
        return "labelme"
    raise ValueError(f"{place} has no labels of a supported form ({', '.join(FORMS)}).")


def _listed(paths: list[Path]) -> str:
    return some_names([str(path) for path in paths])


def _is_coco(path: Path) -> bool:
    """Whether a file of a folder is one of COCO; a broken one is left to the reader."""
    try:
        table = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(table, dict) and {"images", "annotations"} <= table.keys()


def load_objects(
    path: str | Path,
    *,
    form: Form | None = None,
    images: str | Path | None = None,
    split: str | None = None,
    **options: Any,
) -> ObjectSource:
    """Load labels as a source of labelled images.

    Args:
        path: a COCO file, or a folder with a file `_annotations.coco.json`; a folder of YOLO, LabelMe or Pascal VOC; a
            parquet file; or a Hub id.
        form: one of `FORMS`; None to detect it from the path.
        images: folder of the images, if it is not in the usual place.
        split: of a data set on the Hub, list of images of Pascal VOC, or split of YOLO (see `YoloObjects`).
            The labels of the other forms have no splits.
        options: of the reader: see `CocoObjects`, `YoloObjects`, `LabelMeObjects`, `VocObjects`, `HubObjects`.

    Raises:
        OSError: if a file or folder is missing.
        ValueError: if the labels are broken, or their form is not supported.
    """
    form = form or detect_form(path)
    check_known("form", form, FORMS)
    if images is not None:
        check_exists(images, "folder of images", "; `images` must be that of the images of the labels")
        require_folder(images)
    if form == "hub":
        return _from_hub(path, split, images, options)
    if form == "voc":
        from .voc import VocObjects

        return call_with_options(VocObjects, "voc", options, path, images, split)
    if form == "yolo":
        from .yolo import YoloObjects

        return call_with_options(YoloObjects, form, options, path, images, split)
    if split is not None:
        raise ValueError(f"`split` must be left out for {form}: its labels have no splits.")
    if form == "coco":
        from .coco import CocoObjects

        file = Path(path) / ROBOFLOW if Path(path).is_dir() else Path(path)
        return call_with_options(CocoObjects, form, options, file, file.parent if images is None else images)
    from .labelme import LabelMeObjects

    return call_with_options(LabelMeObjects, form, options, path, images)


def _from_hub(path: str | Path, split: str | None, images: Any, options: dict[str, Any]) -> ObjectSource:
    from .rows import HubObjects

    if images is not None:
        raise ValueError("`images` must be left out: rows of a data set contain their images.")
    place = Path(path)
    options.setdefault("name", place.stem if place.exists() else str(path))
    if place.is_file():
        dataset = load_rows("parquet", "train", data_files=str(place))
    else:
        dataset = load_rows(str(path), split or "train")
    return call_with_options(HubObjects, "hub", options, dataset)
