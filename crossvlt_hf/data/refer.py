"""RefCOCO, RefCOCO+, RefCOCOg, RefCLEF and gRefCOCO in the layout that the authors of REFER gave them.

```
<root>/refcoco/{instances.json, refs(unc).p, refs(google).p}
<root>/refcoco+/{instances.json, refs(unc).p}
<root>/refcocog/{instances.json, refs(umd).p, refs(google).p}
<root>/refclef/{instances.json, refs(unc).p, refs(berkeley).p}
<root>/grefcoco/{instances.json, grefs(unc).json or grefs(unc).p}
<root>/images/mscoco/images/train2014/COCO_train2014_000000000009.jpg  (also images/train2014 or train2014)
<root>/images/saiapr_tc-12/8000.jpg  (also saiapr_tc-12)
```
"""

import pickle
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset

from .files import COCO_FOLDERS, check_split, entries, field, find_folder, image_size, inside, read_json, require_files
from .masks import Merge, check_polygons, pack
from .records import Record, RecordDecoder, build_dataset, clean_expressions


Text = Literal["raw", "sent"]
TEXTS: tuple[Text, ...] = ("raw", "sent")


@dataclass(frozen=True)
class Layout:
    """Where a data set lies below the root, and what it is split into.

    Args:
        folder: of the annotations.
        split_by: who split it; part of the name of the file of references.
        splits: their names.
        images: folders in which the images may be.
        refs: how the name of the file of references begins.
        any_number: whether a reference means a list of objects, or none (-1).
    """

    folder: str
    split_by: str
    splits: tuple[str, ...]
    images: tuple[str, ...] = COCO_FOLDERS
    refs: str = "refs"
    any_number: bool = False

    def __str__(self) -> str:
        return f"{self.folder} ({self.split_by})"


_CLEF_FOLDERS = ("images/saiapr_tc-12", "saiapr_tc-12")
LAYOUTS = {
    "refcoco": Layout("refcoco", "unc", ("train", "val", "testA", "testB")),
    "refcoco-google": Layout("refcoco", "google", ("train", "val", "test")),
    "refcoco+": Layout("refcoco+", "unc", ("train", "val", "testA", "testB")),
    "refcocog": Layout("refcocog", "umd", ("train", "val", "test")),
    "refcocog-google": Layout("refcocog", "google", ("train", "val")),
    "refclef": Layout("refclef", "unc", ("train", "val", "testA", "testB", "testC"), _CLEF_FOLDERS),
    "refclef-berkeley": Layout("refclef", "berkeley", ("train", "val", "test"), _CLEF_FOLDERS),
    "grefcoco": Layout("grefcoco", "unc", ("train", "val", "testA", "testB"), refs="grefs", any_number=True),
}

# What pickle has no code of its own for
_PLAIN_CLASSES: dict[tuple[str, str], type] = {
    (module, name): kind
    for module in ("builtins", "__builtin__")
    for name, kind in (("set", set), ("frozenset", frozenset))
}


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers, strings and numbers; whatever else a pickle asks for is neither imported nor run."""

    def find_class(self, module: str, name: str) -> type:
        if (module, name) in _PLAIN_CLASSES:
            return _PLAIN_CLASSES[module, name]
        raise pickle.UnpicklingError(f"`{module}.{name}`")


def _check_numbers(data: bytes) -> None:
    """Whether no object has a number for which the unpickler would set gigabytes aside."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name.endswith("PUT") and (argument or 0) > len(data):
            raise pickle.UnpicklingError(f"one of its objects has the number {argument}.")


def read_plain_pickle(path: Path) -> Any:
    """What a pickle of plain data holds.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is damaged, or asks for anything but plain data (which is then not run).
    """
    try:
        data = path.read_bytes()
        _check_numbers(data)
        # Python 2 wrote the originals: its strings are bytes
        return _PlainUnpickler(BytesIO(data), encoding="utf-8", errors="replace").load()
    except pickle.UnpicklingError as error:
        if str(error).startswith("`"):
            raise ValueError(
                f"{path} is refused: it asks for {error}, which is not plain data, and loading it could run code."
            ) from error
        raise ValueError(f"{path} is not a whole pickle of references: {error}") from error
    except OSError:
        raise
    except Exception as error:  # damage makes pickle stumble in any way
        raise ValueError(f"{path} is not a whole pickle of references ({type(error).__name__}: {error}).") from error


@dataclass(frozen=True)
class _Instances:
    """Images and objects of an instances.json, by id; ids are text, as those of RefCLEF are."""

    path: Path
    images: dict[str, dict[str, Any]]
    annotations: dict[str, dict[str, Any]]

    def image(self, image_id: Any, source: str) -> dict[str, Any]:
        if str(image_id) not in self.images:
            raise ValueError(f"{source} has the image_id {image_id!r}, which {self.path} does not have.")
        return self.images[str(image_id)]

    def segmentation(self, ann_id: Any, image_id: Any, source: str) -> Any:
        annotation = self.annotations.get(str(ann_id))
        if annotation is None:
            raise ValueError(f"{source} has the ann_id {ann_id!r}, which {self.path} does not have.")
        owner = field(annotation, "image_id", f"{self.path}, annotation {ann_id!r},")
        if str(owner) != str(image_id):
            raise ValueError(
                f"{source} has the ann_id {ann_id!r} of the image {owner!r}, not of its own {image_id!r}."
            )
        segmentation = annotation.get("segmentation")
        if not isinstance(segmentation, list | dict) or not segmentation:
            raise ValueError(f"{source} has the ann_id {ann_id!r}, whose segmentation in {self.path} is empty.")
        return segmentation


def _read_instances(path: Path, wanted: set[str]) -> _Instances:
    """Read an instances.json; of the objects that are not wanted, most of the file, nothing is kept."""

    def slim(entry: dict[str, Any]) -> dict[str, Any] | None:
        if "segmentation" not in entry:
            return entry
        kept = ("id", "image_id", "segmentation")
        return {name: entry.get(name) for name in kept} if str(entry.get("id")) in wanted else None

    instances = read_json(path, slim)
    images = entries(instances, "images", str(path))
    annotations = [entry for entry in entries(instances, "annotations", str(path)) if entry is not None]
    return _Instances(
        path,
        {str(field(image, "id", f"{path}, an image")): image for image in images},
        {str(field(annotation, "id", f"{path}, an annotation")): annotation for annotation in annotations},
    )


def _find_refs(folder: Path, layout: Layout) -> Path:
    paths = [folder / f"{layout.refs}({layout.split_by}){suffix}" for suffix in (".p", ".json")]
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(f"There is no file {paths[0]} (or .json); get the annotations, or give another `root`.")


def _belongs(named: str, split: str) -> bool:
    """Whether a reference whose split is named so is in a split; "testAB" is in testA and in testB."""
    if split.startswith("test") and named.startswith("test"):
        return split[4:] in named[4:]
    return named == split


def _read_refs(path: Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The references of a split, each with its name for messages."""
    refs = read_json(path) if path.suffix == ".json" else read_plain_pickle(path)
    if not isinstance(refs, list):
        raise ValueError(f"{path} holds a {type(refs).__name__}, not a list of references.")
    for row, ref in enumerate(refs):
        source = f"{path}, ref {field(ref, 'ref_id', f'{path}, row {row}')}"
        if _belongs(str(field(ref, "split", source)), split):
            yield source, ref


def _ann_ids(ref: dict[str, Any], layout: Layout, source: str) -> tuple[Any, ...]:
    ann_id = field(ref, "ann_id", source)
    if not layout.any_number:
        return (ann_id,)
    return tuple(each for each in (ann_id if isinstance(ann_id, list) else [ann_id]) if each != -1)


def expressions_of(ref: dict[str, Any], text: Text, source: str) -> list[str]:
    """The expressions of a reference: as written ("raw"), or "sent", in lower case without punctuation.

    Raises:
        ValueError: if there is none, or one is empty.
    """
    sentences = entries(ref, "sentences", source)
    return clean_expressions((field(sentence, text, source) for sentence in sentences), source)


def check_text(text: str) -> None:
    """Check the choice of text.

    Raises:
        ValueError: if there is no such choice.
    """
    if text not in TEXTS:
        raise ValueError(f"`text` is {text!r}; give one of {', '.join(TEXTS)}.")


def load_refer(
    name: str,
    split: str,
    *,
    root: str | Path,
    images: str | Path | None = None,
    text: Text = "raw",
    merge: Merge = "union",
) -> Dataset:
    """A split of a data set in the layout of REFER: see the module.

    The image of a reference is the one that instances.json names; the reference's own `file_name` is of no file. The
    original names of the splits hold ("val" or "validation"; RefCOCO has testA and testB, no test).

    Args:
        name: one of `LAYOUTS`.
        split: its name.
        root: the folder that holds the data sets and the images.
        images: the folder of the images, if it is elsewhere.
        text: "raw" as people wrote it, or "sent", in lower case without punctuation.
        merge: how the parts of an object join: see `decode_segmentation`.

    Returns:
        A row for each reference: see `records`. Without a target are only references of gRefCOCO.

    Raises:
        OSError: if a file or images are missing.
        ValueError: if there is no such split, or the file is broken; names file and reference.
    """
    if name not in LAYOUTS:
        raise ValueError(f"`name` is {name!r}; give one of {', '.join(LAYOUTS)}.")
    layout, decoder = LAYOUTS[name], RecordDecoder(merge=merge)
    split = check_split(split, layout.splits, str(layout))
    check_text(text)
    folder = find_folder(Path(root), layout.images, images)
    path = _find_refs(Path(root) / layout.folder, layout)
    refs = list(_read_refs(path, split))
    if not refs:
        raise ValueError(f"{path} has no references of split {split!r}.")
    wanted = {str(ann_id) for source, ref in refs for ann_id in _ann_ids(ref, layout, source)}
    instances = _read_instances(path.with_name("instances.json"), wanted)

    def record(source: str, ref: dict[str, Any]) -> Record:
        image_id, ann_ids = field(ref, "image_id", source), _ann_ids(ref, layout, source)
        image = instances.image(image_id, source)
        named = f"{instances.path}, image {image_id!r},"
        segmentations = [
            check_polygons(instances.segmentation(ann_id, image_id, source), f"{source}, annotation {ann_id}")
            for ann_id in ann_ids
        ]
        return Record(
            image=inside(folder, field(image, "file_name", named), named),
            image_id=image_id,
            ref_id=ref["ref_id"],
            expressions=expressions_of(ref, text, source),
            mask=pack(segmentations, *image_size(image, named)),
            split=split,
            dataset=name,
            source=source,
            ann_ids=ann_ids,
            has_target=bool(ann_ids),
        )

    records = [record(source, ref) for source, ref in refs]
    require_files(
        ((str(record.image), record.source) for record in records),
        "image",
        f"Put them into {folder}, or give another folder as `images`.",
    )
    return build_dataset(records, decoder)
