"""Segmentation labels of YOLO: a text file per image, a line `class x1 y1 x2 y2 ...` per object.

Coordinates are relative to width and height of the image. Class names are in data.yaml (`names`, a list or a mapping
from numbers) or in classes.txt, one per line.
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ..files import check_split, header_size, require_folder
from .object_record import ImagesByName, ObjectRecord, ObjectScene, ObjectSource


_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")
_SPLIT = re.compile(r"(train(ing|val)?|val(id|idation)?|minival|test(ing|-dev)?|dev)[-_]?\d*", re.IGNORECASE)


class YoloObjects(ObjectSource):
    """Labels of YOLO; images without a label file, or with an empty one, are left out.

    Args:
        labels: folder of the label files, or its parent; with splits, `labels/train` and so on, or `train/labels`, or
            lists of images in data.yaml (`train: train.txt`).
        images: folder of the images; None for the folder `images` beside `labels`.
        split: name of a folder of labels, which may end in a year (train2017), or of a list; if there are neither, the
            name of the split of all images.
        names: file of class names; None to search `labels` and the folders above it.
        name: of the data set.

    Raises:
        OSError: if a folder or the file of class names is missing.
        ValueError: if there are no labels, or no such split; or if there are several splits, and it is None.
    """

    def __init__(
        self,
        labels: str | Path,
        images: str | Path | None = None,
        split: str | None = None,
        names: str | Path | None = None,
        name: str | None = None,
    ) -> None:
        place = _find_place(require_folder(labels), split)
        folder = place.labels
        self.pictures = _images_of(folder) if images is None else _images_in(Path(images), place.folder)
        if not self.pictures.is_dir():
            raise FileNotFoundError(f"There is no folder of images {self.pictures}; set `images`.")
        self.names_file = Path(names) if names is not None else _find_names(folder)
        self.classes = read_names(self.names_file)
        self.labels, self.name = tuple(self.classes.values()), name or place.root.name
        self.split = split or (None if place.folder is None else _plain(place.folder))
        self.prefix = "" if place.folder is None else f"{place.folder}/"
        self.images = ImagesByName(self.pictures)
        self.folder = folder
        self.files = [path for path in _label_files(folder) if path.resolve() != self.names_file.resolve()]
        if place.folder is None:
            self._select_list(split)
        if not self.files:
            raise ValueError(f"{folder} has no label files with objects.")

    def _select_list(self, split: str | None) -> None:
        """Keep the label files of the images in a list, if data.yaml has lists of images for its splits."""
        lists = _lists_of(self.names_file)
        if not lists:
            return
        names = tuple(lists)
        self.split = names[0] if len(names) == 1 and split is None else check_split(split, names, str(self.names_file))
        lines = lists[self.split].read_text(encoding="utf-8-sig").splitlines()
        listed = {_name_in_list(line) for line in lines if line.strip()}
        self.files = [path for path in self.files if self._name_of(path) in listed]

    def _name_of(self, path: Path) -> str:
        """The name of the image of a label file."""
        return path.relative_to(self.folder).with_suffix("").as_posix()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> ObjectScene:
        path = self.files[index]
        image = self.images.find(self._name_of(path), str(path))
        size, image_id = header_size(str(image)), self.prefix + image.relative_to(self.pictures).as_posix()
        return ObjectScene(str(image), image_id, size, self._objects(path, size), str(path))

    def _objects(self, path: Path, size: tuple[int, int]) -> tuple[ObjectRecord, ...]:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not text: {error}") from error
        numbered = ((number, line.split()) for number, line in enumerate(lines, start=1))
        return tuple(
            self._object(words, size, f"{path}, line {number}", number) for number, words in numbered if words
        )

    def _object(self, words: list[str], size: tuple[int, int], where: str, number: int) -> ObjectRecord:
        if len(words) == 5:
            raise ValueError(f"{where} must be a polygon, got a box; use segmentation labels.")
        if len(words) < 7 or len(words) % 2 == 0:
            raise ValueError(f"{where} must have a class and x, y of at least three points, got {len(words)} numbers.")
        try:
            label, values = int(words[0]), [float(word) for word in words[1:]]
        except ValueError as error:
            raise ValueError(f"{where} must have numbers only: {error}") from error
        if label not in self.classes:
            raise ValueError(f"{where} has the class {label}, which has no name in {self.names_file}.")
        if not all(-0.01 <= value <= 1.01 for value in values):
            raise ValueError(f"{where} must have coordinates from 0 to 1, got {min(values)} to {max(values)}.")
        polygon = [min(1.0, max(0.0, value)) * size[1 - place % 2] for place, value in enumerate(values)]
        return ObjectRecord(self.classes[label], [polygon], str(number))


@dataclass(frozen=True)
class _Place:
    """The folder of the label files, the folder of the data set, and the name of the split's folder, if any."""

    labels: Path
    root: Path
    folder: str | None = None


def _label_files(folder: Path, pattern: str = "**/*.txt") -> list[Path]:
    """The label files that are not empty."""
    return [path for path in sorted(folder.glob(pattern)) if path.name not in _NAMES and path.stat().st_size]


def _find_place(given: Path, split: str | None) -> _Place:
    """The labels of a split, or all if there are no folders of splits.

    Raises:
        ValueError: if there is no such split, or there are several and it is None.
    """
    inner = given / "labels"
    labels = inner if inner.is_dir() else given
    root = (given.parent if given.name == "labels" else given).resolve()
    folders = _splits_below(labels, split)
    if folders:
        rest = labels.name == "labels" and split is None and _label_files(labels, "*.txt")
        names = tuple(sorted(folders))
        same = [name for name in names if split is not None and split not in names and _plain(name) == split]
        single = names if split is None and not rest else same  # train2017 is train
        chosen = single[0] if len(single) == 1 else check_split(split, names, str(given))
        return _Place(folders[chosen], root, chosen)
    own = _own_split(root, labels.resolve())
    if own is None:
        return _Place(labels, root)
    if split not in (None, _plain(own.name)):
        check_split(split, (own.name,), str(given))
    above = own.parent.parent if own.parent.name == "labels" else own.parent
    return _Place(labels, above, own.name)


def _splits_below(labels: Path, split: str | None) -> dict[str, Path]:
    """The folders of labels of each split: labels/train and so on, or train/labels."""
    folders = [folder for folder in sorted(labels.iterdir()) if folder.is_dir()]
    roboflow = {folder.name: folder / "labels" for folder in folders if (folder / "labels").is_dir()}
    plain = {folder.name: folder for folder in folders if folder.name == split or _SPLIT.fullmatch(folder.name)}
    return {name: folder for name, folder in (roboflow or plain).items() if _label_files(folder)}


def _own_split(root: Path, labels: Path) -> Path | None:
    """The folder of the split that labels belong to: labels/train, or train/labels without class names of its own."""
    if labels.parent.name == "labels" and _SPLIT.fullmatch(labels.name):
        return labels
    named = any((folder / name).is_file() for folder in (root, labels) for name in _NAMES)
    return root if labels.name == "labels" and _SPLIT.fullmatch(root.name) and not named else None


def _plain(folder: str) -> str:
    """The split of a folder: train for train2017."""
    return re.sub(r"[-_]?\d+$", "", folder.lower())


def _lists_of(names_file: Path) -> dict[str, Path]:
    """The lists of images of splits in data.yaml (`train: train.txt`)."""
    if names_file.suffix not in (".yaml", ".yml"):
        return {}
    table, above = yaml.safe_load(names_file.read_text(encoding="utf-8-sig")), names_file.parent
    entries = {split: table.get(split) for split in ("train", "val", "test")}
    found = {
        split: [above / str(table.get("path") or "") / entry, above / entry]
        for split, entry in entries.items()
        if isinstance(entry, str) and entry.endswith(".txt")
    }
    return {split: path for split, paths in found.items() for path in paths if path.is_file()}


def _name_in_list(line: str) -> str:
    """The name of an image in a list, such as ./images/NAME.jpg: what follows the folder of images, without suffix."""
    parts = PurePosixPath(line.strip().replace("\\", "/")).with_suffix("").parts
    below = len(parts) - parts[::-1].index("images") if "images" in parts else len(parts) - 1
    return "/".join(parts[below:])


def _images_in(images: Path, split: str | None) -> Path:
    """The folder of the images of a split, below the one that is given, if there is such a folder."""
    tried = [] if split is None else [images / split / "images", images / split]
    return next((folder for folder in tried if folder.is_dir()), images)


def _images_of(labels: Path) -> Path:
    """The folder of images for a folder of labels: .../images/train for .../labels/train."""
    parts = list(labels.resolve().parts)
    for place in range(len(parts) - 1, -1, -1):
        if parts[place] == "labels":
            folder = Path(*parts[:place], "images", *parts[place + 1 :])
            return folder if folder.is_dir() else labels
    return labels


def _find_names(folder: Path) -> Path:
    above = [folder, *folder.resolve().parents[:3]]
    for path in (parent / name for parent in above for name in _NAMES):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"There is no data.yaml or classes.txt in {folder} or above it; set `names` to the file of class names."
    )


def read_names(path: Path) -> dict[int, str]:
    """Read the class names, by number.

    Raises:
        OSError: if there is no such file.
        ValueError: if it has no class names.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix in (".yaml", ".yml"):
            table = yaml.safe_load(text)
            names = table.get("names") if isinstance(table, dict) else None
        else:
            names = text.rstrip().splitlines()
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(isinstance(n, int) for n in names):
        raise ValueError(f"{path} must have class names: `names` as a list, or a mapping from numbers.")
    return {number: _class_name(name, number, path) for number, name in names.items()}


def _class_name(name: Any, number: int, path: Path) -> str:
    """The name of a class; lines and entries without one would shift the numbers of the others."""
    if isinstance(name, bool) or not isinstance(name, str | int | float) or not str(name).strip():
        where = f"class {number}" if path.suffix in (".yaml", ".yml") else f"line {number + 1}"
        hint = "; put it in quotes" if isinstance(name, bool) else ""
        raise ValueError(f"{path}, {where} must have the name of class {number}, got {name!r}{hint}.")
    return str(name).strip()
