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

A folder of any other name in this form, with an instances.json and a file refs(...) or grefs(...), is read too: see
`load_refer_folder`.
"""

import pickle
import pickletools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset

from ..files import (
    COCO_FOLDERS,
    check_split,
    entries,
    field,
    find_folder,
    image_size,
    inside,
    read_json,
    require_files,
)
from ..flaws import EmptyMasks, EmptySentences, Flaws
from ..masks import Merge, is_drawn, pack
from ..record import Record, build_dataset, check_merge


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
    except Exception as error:  # a damaged pickle can raise anything
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

    def segmentation(self, ann_id: Any, image_id: Any, source: str, flaws: Flaws) -> Any:
        """The polygons or run lengths of an object; [] if it has none and that is allowed."""
        annotation = self.annotations.get(str(ann_id))
        if annotation is None:
            raise ValueError(f"{source} has the ann_id {ann_id!r}, which {self.path} does not have.")
        owner = field(annotation, "image_id", f"{self.path}, annotation {ann_id!r},")
        if str(owner) != str(image_id):
            raise ValueError(
                f"{source} has the ann_id {ann_id!r} of the image {owner!r}, not of its own {image_id!r}."
            )
        segmentation = annotation.get("segmentation")
        if segmentation is None and flaws.empty_masks != "error":
            return []
        if not isinstance(segmentation, list | dict) or not (segmentation or flaws.empty_masks != "error"):
            raise ValueError(f"{source} has the ann_id {ann_id!r}, whose segmentation in {self.path} is empty.")
        return flaws.polygons(segmentation, f"{source}, annotation {ann_id}")


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
    return _Instances(path, _by_id(images, f"{path}, an image"), _by_id(annotations, f"{path}, an annotation"))


def _by_id(rows: list[Any], where: str) -> dict[str, Any]:
    """The rows by their ids, which must differ: which of two would be meant?"""
    found: dict[str, Any] = {}
    for row in rows:
        key = str(field(row, "id", where))
        if key in found:
            raise ValueError(f"{where}, has the id {key}, which another one has, too.")
        found[key] = row
    return found


def _find_refs(folder: Path, layout: Layout) -> Path:
    paths = [folder / f"{layout.refs}({layout.split_by}){suffix}" for suffix in (".p", ".json")]
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(f"There is no file {paths[0]} (or .json); get the annotations, or give another `root`.")


_REFS = re.compile(r"(g?refs)\((.+)\)\.(p|json)")


def _refs_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """The files of references of a folder and what their names begin with, by who split them."""
    found = {path: _REFS.fullmatch(path.name) for path in sorted(folder.iterdir())} if folder.is_dir() else {}
    return {match[2]: (path, match[1]) for path, match in found.items() if match is not None}


def is_refer_folder(folder: Path) -> bool:
    """Whether a folder holds annotations in the form of REFER, whatever its name is."""
    return (folder / "instances.json").is_file() and bool(_refs_files(folder))


def _belongs(named: str, split: str) -> bool:
    """Whether a reference whose split is named so is in a split; "testAB" is in testA and in testB."""
    if split.startswith("test") and named.startswith("test"):
        return split[4:] in named[4:]
    return named == split


def _read_refs(path: Path) -> list[Any]:
    refs = read_json(path) if path.suffix == ".json" else read_plain_pickle(path)
    if not isinstance(refs, list):
        raise ValueError(f"{path} holds a {type(refs).__name__}, not a list of references.")
    return refs


def _named(refs: list[Any], path: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The references with file and id, for messages, and the names of their splits."""
    for row, ref in enumerate(refs):
        where = f"{path}, ref {field(ref, 'ref_id', f'{path}, row {row}')}"
        yield where, ref, str(field(ref, "split", where))


def _splits(names: Iterable[str]) -> tuple[str, ...]:
    """The splits that there are, in order; "testAB" is of testA and of testB."""
    parts = ([f"test{letter}" for letter in name[4:]] if name[:4] == "test" and name[4:] else [name] for name in names)
    return tuple(dict.fromkeys(split for part in parts for split in part))


def _of_split(
    path: Path, split: str | None, splits: tuple[str, ...], name: str
) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    """A split as the data call it, and its references, each with file and id for messages.

    Raises:
        ValueError: if there is no such split, or it has no references; says which there are.
    """
    refs = list(_named(_read_refs(path), path))
    present = _splits(named for _, _, named in refs)
    split = check_split(split, splits or present, name)
    found = [(where, ref) for where, ref, named in refs if _belongs(named, split)]
    if not found:
        raise ValueError(f"{path} has no references of split {split!r}; it has {', '.join(present) or 'no split'}.")
    return split, found


def _ann_ids(ref: dict[str, Any], any_number: bool, source: str) -> tuple[Any, ...]:
    ann_id = field(ref, "ann_id", source)
    if not any_number:
        return (ann_id,)
    return tuple(each for each in (ann_id if isinstance(ann_id, list) else [ann_id]) if each != -1)


def expressions_of(ref: dict[str, Any], text: Text, where: str, flaws: Flaws, optional: bool = False) -> list[str]:
    """The expressions of a reference: as written ("raw"), or "sent", in lower case without punctuation.

    Args:
        ref: with `sentences`.
        text: which form.
        where: file and reference, for messages.
        flaws: what to do with empty ones.
        optional: whether a reference may have none.

    Raises:
        ValueError: if there is none, or one is empty, unless that is allowed.
    """
    may_lack = optional or flaws.empty_sentences == "skip"
    sentences = [] if may_lack and field(ref, "sentences", where) is None else entries(ref, "sentences", where)
    return flaws.expressions((field(sentence, text, where) for sentence in sentences), where, optional=optional)


def check_text(text: str) -> None:
    """Check the choice of text.

    Raises:
        ValueError: if there is no such choice.
    """
    if text not in TEXTS:
        raise ValueError(f"`text` is {text!r}; give one of {', '.join(TEXTS)}.")


# What is said of one and of many objects of references that have others
EMPTY_OBJECTS = (
    "object left out beside others, as its mask has no pixel",
    "objects left out beside others, as their masks have no pixel",
)


@dataclass(frozen=True)
class _Source:
    """Where the references of a data set come from, and what is done with them."""

    name: str
    path: Path
    images: Path
    any_number: bool
    text: Text
    flaws: Flaws
    coco_ids: bool = False

    def objects(
        self, where: str, segmentations: list[tuple[Any, Any]], size: tuple[int, int], merge: Merge
    ) -> list[tuple[Any, Any]]:
        """Objects and their segmentations, without those that have no pixel beside others that do.

        Raises:
            ValueError: if there is such an object, and `empty_masks` is "error".
        """
        drawn = [(ann_id, each) for ann_id, each in segmentations if each and _seems_drawn(each, size, merge)]
        if len(drawn) in (0, len(segmentations)):  # without any it is for `empty_masks` to say what the reference is
            return segmentations
        left_out = [ann_id for ann_id, _ in segmentations if ann_id not in dict(drawn)]
        if self.flaws.empty_masks == "error":
            raise ValueError(
                f"{where} has the ann_id {left_out[0]!r}, whose mask has no pixel (beside the image, or without "
                "area); correct or remove it, or give `empty_masks`: 'no_target' or 'skip'."
            )
        for _ in left_out:
            self.flaws.add(*EMPTY_OBJECTS, where)
        return drawn

    def record(self, where: str, ref: dict[str, Any], split: str, instances: _Instances, merge: Merge) -> Record:
        image_id, ann_ids = field(ref, "image_id", where), _ann_ids(ref, self.any_number, where)
        image = instances.image(image_id, where)
        named = f"{instances.path}, image {image_id!r},"
        file_name = field(image, "file_name", named)
        size = image_size(image, named)
        objects = [(ann_id, instances.segmentation(ann_id, image_id, where, self.flaws)) for ann_id in ann_ids]
        objects = self.objects(where, objects, size, merge)
        return Record(
            image=inside(self.images, file_name, named),
            image_id=f"coco {image_id}" if self.coco_ids and _is_cocos(file_name, image_id) else image_id,
            ref_id=ref["ref_id"],
            expressions=expressions_of(ref, self.text, where, self.flaws, optional=self.any_number),
            mask=pack([segmentation for _, segmentation in objects if segmentation], *size),
            split=split,
            dataset=self.name,
            where=where,
            ann_ids=tuple(ann_id for ann_id, _ in objects),
            has_target=bool(ann_ids),
        )

    def load(self, refs: list[tuple[str, dict[str, Any]]], split: str, merge: Merge) -> Dataset:
        wanted = {str(ann_id) for where, ref in refs for ann_id in _ann_ids(ref, self.any_number, where)}
        instances = _read_instances(self.path.with_name("instances.json"), wanted)
        records = [self.record(where, ref, split, instances, merge) for where, ref in refs]
        require_files(
            ((str(record.image), record.where) for record in records),
            "image",
            f"Put them into {self.images}, or give another folder as `images`.",
        )
        return build_dataset(records, self.flaws, merge=merge)


def _seems_drawn(segmentation: Any, size: tuple[int, int], merge: Merge) -> bool:
    """Whether an object has a pixel; of one that cannot be decoded, reading the row says why."""
    try:
        return is_drawn(segmentation, *size, merge)
    except (ValueError, TypeError):
        return True


def _is_cocos(file_name: Any, image_id: Any) -> bool:
    """Whether an image is named as COCO names that of this id."""
    number = re.fullmatch(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})\.jpg", str(file_name).rpartition("/")[2])
    return number is not None and number[1] == f"{image_id:0>12}"


def load_refer(
    name: str,
    split: str | None,
    *,
    root: str | Path,
    images: str | Path | None = None,
    text: Text = "raw",
    merge: Merge = "union",
    empty_masks: EmptyMasks = "error",
    empty_sentences: EmptySentences = "error",
) -> Dataset:
    """A split of a data set in the layout of REFER: see the module.

    The image of a reference is the one that instances.json names; the reference's own `file_name` is of no file. The
    original names of the splits hold ("val" or "validation"; RefCOCO has testA and testB, no test). References of
    gRefCOCO without a sentence, which the published file has, are left out, and a warning says how many.

    Args:
        name: one of `LAYOUTS`.
        split: its name.
        root: the folder that holds the data sets and the images.
        images: the folder of the images, if it is elsewhere.
        text: "raw" as people wrote it, or "sent", in lower case without punctuation.
        merge: how the parts of an object join: see `decode_segmentation`.
        empty_masks: what to do with a target without a pixel: see `Flaws`.
        empty_sentences: what to do with a sentence without text: see `Flaws`.

    Returns:
        A row for each reference: see `record`. Without a target are only references of gRefCOCO.

    Raises:
        OSError: if a file or images are missing.
        ValueError: if there is no such split, or the file is broken; names file and reference.
    """
    if name not in LAYOUTS:
        raise ValueError(f"`name` is {name!r}; give one of {', '.join(LAYOUTS)}.")
    layout, flaws = LAYOUTS[name], Flaws(name, empty_masks, empty_sentences)
    split = check_split(split, layout.splits, str(layout))
    check_text(text)
    check_merge(merge)
    folder = find_folder(Path(root), layout.images, images)
    path = _find_refs(Path(root) / layout.folder, layout)
    split, refs = _of_split(path, split, layout.splits, str(layout))
    return _Source(name, path, folder, layout.any_number, text, flaws).load(refs, split, merge)


def load_refer_folder(
    folder: str | Path,
    split: str | None,
    *,
    split_by: str | None = None,
    images: str | Path | None = None,
    text: Text = "raw",
    merge: Merge = "union",
    empty_masks: EmptyMasks = "error",
    empty_sentences: EmptySentences = "error",
) -> Dataset:
    """A split of one's own data set in the form of REFER: a folder with an instances.json and a file of references.

    Args:
        folder: with instances.json and refs(...).p, refs(...).json, or, where a reference may mean several objects or
            none (-1), grefs(...).p or grefs(...).json. Its name is that of the data set.
        split: one that the file has.
        split_by: what stands between the parentheses, where there are several such files.
        images: the folder of the images; else `images` below the folder, or the places where REFER has them, below the
            folder or beside it.
        text: "raw" as people wrote it, or "sent", in lower case without punctuation.
        merge: how the parts of an object join: see `decode_segmentation`.
        empty_masks: what to do with a target without a pixel: see `Flaws`.
        empty_sentences: what to do with a sentence without text: see `Flaws`.

    Returns:
        A row for each reference: see `record`. `image_id` is "coco 139" where the image is named as COCO's, so that
        `exclude_images` finds it.

    Raises:
        OSError: if a file or images are missing.
        ValueError: if there is no such split (says which there are), or the file is broken; names file and reference.
    """
    folder = Path(folder).resolve()
    name = folder.name
    flaws = Flaws(name, empty_masks, empty_sentences)
    check_text(text)
    check_merge(merge)
    files = _refs_files(folder)
    if not files:
        raise FileNotFoundError(f"There is no file refs(...) or grefs(...) in {folder}; get the annotations.")
    if split_by is None and len(files) > 1:
        raise ValueError(f"{folder} is split by {', '.join(files)}; give one of these as `split_by`.")
    if split_by is not None and split_by not in files:
        raise ValueError(f"`split_by` must be one of {', '.join(files)}, got {split_by!r}.")
    path, kind = files[split_by or next(iter(files))]
    named, refs = _of_split(path, split, (), name)
    below = [str(base / place) for base in (folder, folder.parent) for place in (*COCO_FOLDERS, *_CLEF_FOLDERS)]
    below += [str(folder / "images"), str(folder.parent / "images")]
    source = _Source(name, path, find_folder(folder, below, images), kind == "grefs", text, flaws, coco_ids=True)
    return source.load(refs, named, merge)
