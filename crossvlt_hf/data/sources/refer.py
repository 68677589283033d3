"""RefCOCO, RefCOCO+, RefCOCOg, RefCLEF and gRefCOCO in the layout of REFER.

```
<root>/refcoco/{instances.json, refs(unc).p, refs(google).p}
<root>/refcoco+/{instances.json, refs(unc).p}
<root>/refcocog/{instances.json, refs(umd).p, refs(google).p}
<root>/refclef/{instances.json, refs(unc).p, refs(berkeley).p}
<root>/grefcoco/{instances.json, grefs(unc).json or grefs(unc).p}
<root>/images/mscoco/images/train2014/COCO_train2014_000000000009.jpg  (also images/train2014 or train2014)
<root>/images/saiapr_tc-12/8000.jpg  (also saiapr_tc-12)
```

If there are both refs(unc).p and refs(unc).json, the first is read. Other folders with an instances.json and a file
refs(...) or grefs(...) are read by `load_refer_folder`.
"""

import pickle
import pickletools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, Unpack

from datasets import Dataset

from ...system import check_known
from ..files import (
    COCO_FOLDERS,
    check_split,
    coco_image_id,
    entries,
    field,
    find_folder,
    image_size,
    inside,
    read_json,
    require_files,
)
from ..flaws import FlawOptions, Flaws
from ..masks import Merge, is_drawn, pack
from ..record import Record, build_dataset, check_merge


Text = Literal["raw", "sent"]
TEXTS: tuple[Text, ...] = ("raw", "sent")


@dataclass(frozen=True)
class Layout:
    """The files and splits of a data set.

    Args:
        folder: folder of the annotations, below the root.
        split_by: author of the splits; part of the name of the file of references.
        splits: names of the splits.
        images: possible folders of the images, below the root.
        refs: start of the name of the file of references.
        any_number: whether the target of a reference is a list of objects, or none (-1).
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

# Plain types without an opcode of their own
_PLAIN_CLASSES: dict[tuple[str, str], type] = {
    (module, name): kind
    for module in ("builtins", "__builtin__")
    for name, kind in (("set", set), ("frozenset", frozenset))
}


class _PlainUnpickler(pickle.Unpickler):
    """Loads containers, strings and numbers; anything else is refused, and neither imported nor run."""

    def find_class(self, module: str, name: str) -> type:
        if (module, name) in _PLAIN_CLASSES:
            return _PLAIN_CLASSES[module, name]
        raise pickle.UnpicklingError(f"`{module}.{name}`")


def _check_numbers(data: bytes) -> None:
    """Raise UnpicklingError for a memo index for which the unpickler would allocate gigabytes."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name.endswith("PUT") and (argument or 0) > len(data):
            raise pickle.UnpicklingError(f"a memo index is {argument}.")


def read_plain_pickle(path: Path) -> Any:
    """Load a pickle of plain data.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is damaged, or has anything but plain data (which is not run).
    """
    try:
        data = path.read_bytes()
        _check_numbers(data)
        # The original files are of Python 2, whose strings are bytes
        return _PlainUnpickler(BytesIO(data), encoding="utf-8", errors="replace").load()
    except pickle.UnpicklingError as error:
        if str(error).startswith("`"):
            raise ValueError(
                f"{path} is refused: it has {error}, which is not plain data and could run code."
            ) from error
        raise ValueError(f"{path} is damaged or not a pickle of references: {error}") from error
    except OSError:
        raise
    except Exception as error:  # of any kind, for a damaged pickle
        raise ValueError(
            f"{path} is damaged or not a pickle of references ({type(error).__name__}: {error})."
        ) from error


@dataclass(frozen=True)
class _Instances:
    """Images and objects of an instances.json, by id. Ids are text, as in RefCLEF."""

    path: Path
    images: dict[str, dict[str, Any]]
    annotations: dict[str, dict[str, Any]]

    def image(self, image_id: Any, source: str) -> dict[str, Any]:
        if str(image_id) not in self.images:
            raise ValueError(f"{source} has the image_id {image_id!r}, which is not in {self.path}.")
        return self.images[str(image_id)]

    def segmentation(self, ann_id: Any, image_id: Any, source: str, flaws: Flaws) -> Any:
        """The polygons or run lengths of an object; [] if it has none, and empty masks are allowed."""
        annotation = self.annotations.get(str(ann_id))
        if annotation is None:
            raise ValueError(f"{source} has the ann_id {ann_id!r}, which is not in {self.path}.")
        owner = field(annotation, "image_id", f"{self.path}, annotation {ann_id!r},")
        if str(owner) != str(image_id):
            raise ValueError(
                f"{source} must have an ann_id of its image {image_id!r}, got {ann_id!r} of the image {owner!r}."
            )
        segmentation = annotation.get("segmentation")
        if segmentation is None and flaws.empty_masks != "error":
            return []
        if not isinstance(segmentation, list | dict) or not (segmentation or flaws.empty_masks != "error"):
            raise ValueError(f"{source} has the ann_id {ann_id!r}, whose segmentation in {self.path} is empty.")
        return flaws.polygons(segmentation, f"{source}, annotation {ann_id}")


def _read_instances(path: Path, wanted: set[str]) -> _Instances:
    """Read an instances.json, without unused objects, which are most of the file."""

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
    """Index rows by id; raise ValueError if two have the same."""
    found: dict[str, Any] = {}
    for row in rows:
        key = str(field(row, "id", where))
        if key in found:
            raise ValueError(f"{where} must have its own id, got {key}, which another one has.")
        found[key] = row
    return found


def _find_refs(folder: Path, layout: Layout) -> Path:
    paths = [folder / f"{layout.refs}({layout.split_by}){suffix}" for suffix in (".p", ".json")]
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(f"There is no file {paths[0]} (or .json); download the annotations, or set `root`.")


_REFS = re.compile(r"(g?refs)\((.+)\)\.(p|json)")


def _refs_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """The files of references of a folder with the start of their names, by the shortest name that no other file has.

    That is the author of the splits ("unc"), the name of the file without its suffix ("grefs(unc)"), or with it.
    """
    found = [_REFS.fullmatch(path.name) for path in sorted(folder.iterdir())] if folder.is_dir() else []
    files = [match for match in found if match is not None]
    names = [(match[2], f"{match[1]}({match[2]})", match[0]) for match in files]
    uses = Counter(name for each in names for name in each)
    shortest = (next(name for name in each if uses[name] == 1) for each in names)
    return {name: (folder / match[0], match[1]) for name, match in zip(shortest, files, strict=True)}


def is_refer_folder(folder: Path) -> bool:
    """Whether a folder has annotations in the format of REFER."""
    return (folder / "instances.json").is_file() and bool(_refs_files(folder))


def _belongs(named: str, split: str) -> bool:
    """Whether a reference with a certain name of its split belongs to a split; "testAB" belongs to testA and testB."""
    if split.startswith("test") and named.startswith("test"):
        return split[4:] in named[4:]
    return named == split


def _read_refs(path: Path) -> list[Any]:
    refs = read_json(path) if path.suffix == ".json" else read_plain_pickle(path)
    if not isinstance(refs, list):
        raise ValueError(f"{path} must have a list of references, got a {type(refs).__name__}.")
    return refs


def _named(refs: list[Any], path: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """References with file and id, for messages, and the names of their splits."""
    for row, ref in enumerate(refs):
        where = f"{path}, ref {field(ref, 'ref_id', f'{path}, row {row}')}"
        yield where, ref, str(field(ref, "split", where))


def _splits(names: Iterable[str]) -> tuple[str, ...]:
    """The splits of a file, in order; "testAB" stands for testA and testB."""
    parts = ([f"test{letter}" for letter in name[4:]] if name[:4] == "test" and name[4:] else [name] for name in names)
    return tuple(dict.fromkeys(split for part in parts for split in part))


def _of_split(
    path: Path, split: str | None, splits: tuple[str, ...], name: str
) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    """The name of a split in the data, and its references with file and id, for messages.

    Raises:
        ValueError: if there is no such split, or it has no references; names the splits.
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
    found = dict.fromkeys(ann_id if isinstance(ann_id, list) else [ann_id])
    if -1 in found and len(found) > 1:
        raise ValueError(f"{source} has objects and -1, which means that there are none, in `ann_id`: {ann_id!r}.")
    ids = tuple(each for each in found if each != -1)
    flag = ref.get("no_target")
    if isinstance(flag, bool) and flag == bool(ids):
        raise ValueError(f"{source} has `no_target` {flag} and `ann_id` {ann_id!r}, which contradict each other.")
    return ids


def expressions_of(ref: dict[str, Any], text: Text, where: str, flaws: Flaws, optional: bool = False) -> list[str]:
    """The expressions of a reference.

    Args:
        ref: a reference with `sentences`.
        text: "raw" as written, or "sent", in lower case without punctuation.
        where: file and reference, for messages.
        flaws: how to treat empty sentences.
        optional: whether there may be no sentences.

    Raises:
        ValueError: if there are none, or one is empty, unless that is allowed.
    """
    may_lack = optional or flaws.empty_sentences == "skip"
    sentences = [] if may_lack and field(ref, "sentences", where) is None else entries(ref, "sentences", where)
    return flaws.expressions((field(sentence, text, where) for sentence in sentences), where, optional=optional)


# Warnings about one and about several empty objects of references that have other objects
EMPTY_OBJECTS = (
    "object of several left out, as its mask is empty",
    "objects of several left out, as their masks are empty",
)


@dataclass(frozen=True)
class _Source:
    """A file of references, and how to read it."""

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
        """Objects and their segmentations, without those with an empty mask unless all are empty.

        Raises:
            ValueError: if only some masks are empty, and `empty_masks` is "error".
        """
        drawn = [(ann_id, each) for ann_id, each in segmentations if each and _seems_drawn(each, size, merge)]
        if len(drawn) in (0, len(segmentations)):  # if all are empty, `empty_masks` applies to the reference
            return segmentations
        left_out = [ann_id for ann_id, _ in segmentations if ann_id not in dict(drawn)]
        if self.flaws.empty_masks == "error":
            raise ValueError(
                f"{where} has the ann_id {left_out[0]!r}, whose mask is empty (outside the image, or without area); "
                "correct or remove it, or set `empty_masks=skip` or `empty_masks=no_target`."
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
            image_id=coco_image_id(file_name, image_id) if self.coco_ids else image_id,
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
            f"Put them into {self.images}, or set `images`.",
        )
        return build_dataset(records, self.flaws, merge=merge)


def _seems_drawn(segmentation: Any, size: tuple[int, int], merge: Merge) -> bool:
    """Whether the mask of an object is not empty; true if it is broken, which is an error when its row is read."""
    try:
        return is_drawn(segmentation, *size, merge)
    except (ValueError, TypeError):
        return True


def load_refer(
    name: str,
    split: str | None,
    *,
    root: str | Path,
    images: str | Path | None = None,
    text: Text = "raw",
    merge: Merge = "union",
    **flaws: Unpack[FlawOptions],
) -> Dataset:
    """Load a split of a data set in the layout of REFER: see the module.

    The image of a reference is that in instances.json; its own `file_name` names no file. Splits have their original
    names ("val" or "validation"; RefCOCO has testA and testB, no test). References of gRefCOCO without a sentence,
    which the published file has, are left out with a warning.

    Args:
        name: one of `LAYOUTS`.
        split: name of the split.
        root: folder of data sets and images.
        images: folder of the images, if it is elsewhere.
        text: see `expressions_of`.
        merge: how to merge the parts of an object: see `decode_segmentation`.
        flaws: `empty_masks` and `empty_sentences`: see `Flaws`.

    Returns:
        A row for each reference: see `record`. Only references of gRefCOCO may have no target.

    Raises:
        OSError: if a file or images are missing.
        ValueError: if there is no such split, or a file is broken; names file and reference.
    """
    check_known("name", name, LAYOUTS)
    layout, found = LAYOUTS[name], Flaws(name, **flaws)
    split = check_split(split, layout.splits, str(layout))
    check_known("text", text, TEXTS)
    check_merge(merge)
    folder = find_folder(Path(root), layout.images, images)
    path = _find_refs(Path(root) / layout.folder, layout)
    split, refs = _of_split(path, split, layout.splits, str(layout))
    return _Source(name, path, folder, layout.any_number, text, found).load(refs, split, merge)


def load_refer_folder(
    folder: str | Path,
    split: str | None,
    *,
    split_by: str | None = None,
    images: str | Path | None = None,
    text: Text = "raw",
    merge: Merge = "union",
    **flaws: Unpack[FlawOptions],
) -> Dataset:
    """Load a split of your own data in the format of REFER: a folder with an instances.json and a file of references.

    Args:
        folder: with instances.json and refs(...).p or .json, or grefs(...).p or .json, in which the target of a
            reference may be several objects or none (-1). Its name is that of the data set.
        split: a split in the file.
        split_by: which file, if there are several: the part in parentheses, or the name of the file ("grefs(unc)",
            "refs(unc).json") if others have the same part.
        images: folder of the images; by default `images` or the folders of REFER, in the folder or beside it.
        text: see `expressions_of`.
        merge: how to merge the parts of an object: see `decode_segmentation`.
        flaws: `empty_masks` and `empty_sentences`: see `Flaws`.

    Returns:
        A row for each reference: see `record`. `image_id` is "coco 139" for images with the file name of COCO, so that
        `exclude_images` recognises them.

    Raises:
        OSError: if a file or images are missing.
        ValueError: if there is no such split (names the splits), or a file is broken; names file and reference.
    """
    folder = Path(folder).resolve()
    name = folder.name
    found = Flaws(name, **flaws)
    check_known("text", text, TEXTS)
    check_merge(merge)
    path, kind = _choose_refs(folder, split_by)
    named, refs = _of_split(path, split, (), name)
    below = [str(base / place) for base in (folder, folder.parent) for place in (*COCO_FOLDERS, *_CLEF_FOLDERS)]
    below += [str(folder / "images"), str(folder.parent / "images")]
    source = _Source(name, path, find_folder(folder, below, images), kind == "grefs", text, found, coco_ids=True)
    return source.load(refs, named, merge)


def _choose_refs(folder: Path, split_by: str | None) -> tuple[Path, str]:
    """The file of references of a folder, and the start of its name."""
    files = _refs_files(folder)
    if not files:
        raise FileNotFoundError(f"There is no file refs(...) or grefs(...) in {folder}; download the annotations.")
    if split_by is None and len(files) > 1:
        raise ValueError(f"Set `split_by` to one of {', '.join(files)}, the files of references of {folder}.")
    if split_by is not None:
        check_known("split_by", split_by, files)
    return files[split_by or next(iter(files))]
