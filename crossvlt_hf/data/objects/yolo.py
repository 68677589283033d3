"""Segmentation labels of YOLO: a text file per image, a line `class x1 y1 x2 y2 ...` per object.

Coordinates are relative to width and height of the image. Class names are in data.yaml (`names`, a list or a mapping
from numbers) or in classes.txt, one per line.
"""

import os
import re
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ..files import check_split, find_files, header_size, require_folder, slashed, whole
from .object_record import IMAGE_SUFFIXES, ImagesByName, ObjectRecord, ObjectScene, ObjectSource


_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")
_SPLIT = re.compile(r"(train(ing|val)?|val(id|idation)?|minival|test(ing|-dev)?|dev)[-_]?\d*", re.IGNORECASE)


class YoloObjects(ObjectSource):
    """Labels of YOLO; images without a label file, or with an empty one, are left out.

    Splits are the entries of data.yaml (`train`, `val`, `test`: folders or lists of images, one or several; relative
    to the file, to its `path`, or as Roboflow writes them, with `../` too much), or lists beside the names of the
    classes (train.txt); then the folders `labels/train` and so on, or `train/labels`, that none of these has.

    Args:
        labels: folder of the data set, or of some of its label files.
        images: folder of the images; None for the folder `images` beside `labels`, or that of the label file.
        split: name of a split, or of a folder of labels, which may end in a year (train2017).
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
        self.folder, self.pictures = require_folder(labels), None if images is None else Path(images)
        if self.pictures is not None and not self.pictures.is_dir():
            raise FileNotFoundError(f"There is no folder of images {self.pictures}; set `images`.")
        self.names_file = Path(names) if names is not None else _find_names(_labels_in(self.folder))
        self.classes = read_names(self.names_file)
        self.labels = tuple(self.classes.values())
        splits = _Splits(self.folder, self.names_file, split)
        self.name, self.above = name or splits.root.name, splits.above
        self.split, self.files = splits.choose(split)
        if not self.files:
            raise ValueError(f"{self.folder} has no label files with objects.")
        self.folders = {folder: self._folder_of_images(folder) for folder in {path.parent for path in self.files}}
        self.images: dict[Path, ImagesByName] = {}
        self._check_images()

    def _check_images(self) -> None:
        """Check that no image has two label files."""
        seen: dict[tuple[Path, str], Path] = {}
        for path in self.files:
            folder = self.folders[path.parent]
            if (first := seen.setdefault((folder, path.stem), path)) != path:
                raise ValueError(
                    f"{first} and {path} would have the same image in {folder}; set `images` to its parent."
                )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> ObjectScene:
        path = self.files[index]
        folder = self.folders[path.parent]
        if folder not in self.images:
            self.images[folder] = ImagesByName(folder)
        image = self.images[folder].find(path.stem, str(path))
        image_id = "/".join((*_parts(path, self.folder, self.above)[:-1], image.name))
        size = header_size(str(image))
        return ObjectScene(str(image), image_id, size, self._objects(path, size), str(path))

    def _folder_of_images(self, labels: Path) -> Path:
        """The folder of the images for a folder of label files."""
        if self.pictures is None:
            return _images_of(labels)
        parts = _parts(labels / "any", self.folder, self.above)[:-1]
        rests = (self.pictures.joinpath(*parts[start:]) for start in range(len(parts) + 1))
        return next(folder for rest in rests for folder in (rest / "images", rest) if folder.is_dir())

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
            label, *values = (float(word) for word in words)
        except ValueError as error:
            raise ValueError(f"{where} must have numbers only: {error}") from error
        if label not in self.classes:
            raise ValueError(f"{where} has the class {words[0]}, which has no name in {self.names_file}.")
        if not all(-0.01 <= value <= 1.01 for value in values):
            raise ValueError(f"{where} must have coordinates from 0 to 1, got {min(values)} to {max(values)}.")
        polygon = [min(1.0, max(0.0, value)) * size[1 - place % 2] for place, value in enumerate(values)]
        return ObjectRecord(self.classes[int(label)], [polygon], str(number))


def _labels_in(folder: Path) -> Path:
    """The folder of label files of a data set."""
    return folder / "labels" if (folder / "labels").is_dir() else folder


def _label_files(folder: Path, pattern: str = "**/*.txt") -> list[Path]:
    """The label files that are not empty."""
    return [
        path
        for path in find_files(folder, pattern)
        if path.name not in _NAMES
        and not path.name.startswith("README")
        and path.stat().st_size
        and not _is_list(path)
    ]


def _is_list(path: Path) -> bool:
    """Whether a file beside or among labels is a list of images (train.txt, as CVAT writes it)."""
    return bool(_SPLIT.fullmatch(path.stem)) and any(
        line.strip().lower().endswith(IMAGE_SUFFIXES) for line in path.read_text("utf-8-sig", "replace").splitlines()
    )


def _apart_from(files: list[Path], others: list[Path]) -> list[Path]:
    """Files without some others; only those of the same name are looked at."""
    names, places = {path.name for path in others}, {path.resolve() for path in others}
    return [path for path in files if path.name not in names or path.resolve() not in places]


def _within(inner: Path, outer: Path) -> tuple[str, ...] | None:
    """The path of a folder below another, or None; links count as where they are and as where they lead."""
    for real in (os.path.abspath, os.path.realpath):
        if Path(real(inner)).is_relative_to(real(outer)):
            return Path(real(inner)).relative_to(real(outer)).parts
    return None


def _parts(path: Path, given: Path, above: tuple[str, ...]) -> tuple[str, ...]:
    """Folders and name of a label file in its data set, without the folder `labels` and the suffix."""
    return _without("labels", (*above, *path.parts[len(given.parts) : -1], path.stem))


def _without(folder: str, parts: tuple[str, ...]) -> tuple[str, ...]:
    """The parts of a path without the last folder of a name."""
    place = next((place for place in range(len(parts) - 2, -1, -1) if parts[place] == folder), None)
    return parts if place is None else parts[:place] + parts[place + 1 :]


class _Splits:
    """The splits of a data set, and their label files below a folder.

    Attributes:
        root: the folder of the data set, as it seems from folders.
        above: the path of the given folder below that of the class names, if it is below it.
        named: label files of the splits in data.yaml or lists.
        folders: label files of the splits that have folders.
    """

    def __init__(self, given: Path, names_file: Path, asked: str | None) -> None:
        self.given, self.labels = given, _labels_in(given)
        self.root = (given.parent if given.name == "labels" else given).resolve()
        self.files = _apart_from(_label_files(self.labels), [names_file])
        self.folders = {name: self._in(folder) for name, folder in _splits_below(self.labels, asked).items()}
        self.folders = {name: files for name, files in self.folders.items() if files}
        if not self.folders and (own := _own_split(self.root, self.labels.resolve())) is not None:
            self.folders = {own.name: self.files}
            self.root = own.parent.parent if own.parent.name == "labels" else own.parent
        inside = _within(given, names_file.parent)
        self.base = names_file.parent if inside is not None else self.root
        self.above = inside if inside is not None else _within(given, self.root) or ()
        places = _places_in_yaml(names_file, self.base) or _lists_in(self.base)
        self.files = _apart_from(self.files, [path for found in places.values() for path in found if path.is_file()])
        self.named = {split: files for split, found in places.items() if (files := self._of(found)) is not None}

    def _of(self, places: list[Path]) -> list[Path] | None:
        """The label files of lists and folders of images; None if they are of another part of the data set."""
        found: set[Path] = set()
        known = False
        for place in places:
            is_list = place.is_file()
            files = self._listed(place) if is_list else self._below(_swapped(place, "images", "labels"))
            known = known or files is not None
            found.update(files or ())
        return sorted(found) if known and (found or not self.above) else None

    def _below(self, folder: Path) -> list[Path] | None:
        """The label files that are in a folder, of those below the given one."""
        if _within(self.given, folder) is not None:
            return self.files
        parts = _within(folder, self.given)
        if parts is None:
            return None
        here = self.given.joinpath(*parts)
        return self._in(here) or _label_files(here)

    def _in(self, folder: Path) -> list[Path]:
        """The label files that are below a folder."""
        parts = folder.parts
        return [path for path in self.files if path.parts[: len(parts)] == parts]

    def _listed(self, path: Path) -> list[Path]:
        """The label files of the images in a list, whose paths may begin elsewhere.

        Raises:
            ValueError: if a line may be any of several label files.
        """
        of_name: dict[str, list[tuple[tuple[str, ...], Path]]] = {}
        for file in self.files:
            parts = _parts(file, self.given, self.above)
            of_name.setdefault(parts[-1], []).append((parts, file))
        found = []
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
            image = PurePosixPath(slashed(line.strip()))
            parts = _without("images", image.with_suffix("").parts) if image.name else ()
            fits = [
                ((min(len(key), len(parts)), key == parts), file)
                for key, file in of_name.get(image.stem, [])
                if _end_alike(key, parts)
            ]
            best = max((fit for fit, _ in fits), default=None)
            longest = [file for fit, file in fits if fit == best]
            if len(longest) > 1:
                raise ValueError(
                    f"{path}, line {number}: {line.strip()!r} may be that of {longest[0]} or {longest[1]}."
                )
            found += longest
        return found

    def choose(self, asked: str | None) -> tuple[str | None, list[Path]]:
        """The name and the label files of a split; all if there are no splits, and none is asked for.

        Raises:
            ValueError: if there is no such split, or there are several and it is None.
        """
        taken = {path for files in self.named.values() for path in files}
        free = {
            name: files
            for name, files in self.folders.items()
            if _same(name, self.named) is None and taken.isdisjoint(files)
        }
        splits = {**free, **self.named}
        if asked is None:
            return self._only(splits)
        found = _same(asked, self.named) or _same(asked, free)
        if found is not None:
            return asked, splits[found]
        if asked in self.folders and (not _SPLIT.fullmatch(asked) or self._is_of(asked, self.named)):
            return asked, self.folders[asked]
        if not splits:
            raise ValueError(
                f"{self.given} has no split {asked!r}: no folder labels/{asked} or {asked}/labels, and no entry in "
                f"data.yaml (`{asked}: images`). To read all labels, leave out `split`."
            )
        return asked, splits[check_split(asked, tuple(sorted(splits)), str(self.given))]

    def _is_of(self, folder: str, named: dict[str, list[Path]]) -> bool:
        """Whether all labels of a folder are of the split that it is called by: train2017 of train."""
        return set(self.folders[folder]) <= set(named.get(_same(_plain(folder), named) or "", ()))

    def _only(self, splits: dict[str, list[Path]]) -> tuple[str | None, list[Path]]:
        """The only split, or all label files if there is none."""
        if not splits:
            return None, self.files
        filled = {name: files for name, files in splits.items() if files} or splits
        beside = not self.named and self.labels.name == "labels" and _label_files(self.labels, "*.txt")
        own = list(self.folders.values()) == [self.files]
        if len({tuple(files) for files in filled.values()}) > 1 or (beside and not own):
            check_split(None, tuple(sorted(splits)), str(self.given))
        name = next(iter(filled))
        return _plain(name), filled[name]


def _same(split: str, splits: Iterable[str]) -> str | None:
    """The name of a split among others: val is validation, and train2017 if there is no other year."""
    names = list(splits)
    with suppress(ValueError):
        return check_split(split, names, "")
    years = [name for name in names if _plain(name) == split]
    return years[0] if len(years) == 1 else None


def _splits_below(labels: Path, split: str | None) -> dict[str, Path]:
    """The folders of labels of each split: labels/train and so on, or train/labels."""
    folders = [folder for folder in find_files(labels, "*") if folder.is_dir()]
    roboflow = {folder.name: folder / "labels" for folder in folders if (folder / "labels").is_dir()}
    plain = {folder.name: folder for folder in folders if folder.name == split or _SPLIT.fullmatch(folder.name)}
    return roboflow or plain


def _own_split(root: Path, labels: Path) -> Path | None:
    """The folder of the split that labels belong to: labels/train, or train/labels without class names of its own."""
    if labels.parent.name == "labels" and _SPLIT.fullmatch(labels.name):
        return labels
    named = any((folder / name).is_file() for folder in (root, labels) for name in _NAMES)
    return root if labels.name == "labels" and _SPLIT.fullmatch(root.name) and not named else None


def _plain(folder: str) -> str:
    """The split of a folder: train for train2017."""
    return re.sub(r"[-_]?\d+$", "", folder.lower())


def _places_in_yaml(names_file: Path, base: Path) -> dict[str, list[Path]]:
    """The folders and lists of images that data.yaml has for its splits, of those that exist.

    Raises:
        ValueError: if an entry is neither a path nor a list of paths.
    """
    if names_file.suffix not in (".yaml", ".yml"):
        return {}
    table = yaml.safe_load(names_file.read_text(encoding="utf-8-sig"))
    starts = [names_file.parent / str(table.get("path") or ""), names_file.parent, base]
    places = {}
    for split in (key for key in table if isinstance(key, str) and _SPLIT.fullmatch(key) and table[key]):
        entries = table[split] if isinstance(table[split], list) else [table[split]]
        if not all(isinstance(entry, str) for entry in entries):
            raise ValueError(f"{names_file} must have a path or a list of paths as `{split}`, got {table[split]!r}.")
        found = {entry: _first_place(entry, starts, base) for entry in entries}
        if any(found.values()):
            places[split] = [place for place in found.values() if place is not None]
            for entry in (entry for entry, place in found.items() if place is None):
                warnings.warn(f"{names_file}: there is no {entry} of the split {split}.", stacklevel=2)
    return places


def _first_place(entry: str, starts: Iterable[Path], base: Path) -> Path | None:
    """The folder or list of an entry of data.yaml that is in the data set."""
    entry = entry.replace("\\", "/")
    tried = (Path(os.path.normpath(start / each)) for start in starts for each in (entry, _up(entry)))
    inside = (place for place in tried if _within(place, base) is not None)
    return next((place for place in inside if place.is_dir() or (place.suffix == ".txt" and place.is_file())), None)


def _up(entry: str) -> str:
    """An entry without the steps up of Roboflow, whose data.yaml is in the folder of its splits (../train/images)."""
    return re.sub(r"^(\.\./)+", "", entry)


def _lists_in(folder: Path) -> dict[str, list[Path]]:
    """The lists of images beside the class names: train.txt and so on."""
    return {_plain(path.stem): [path] for path in find_files(folder, "*.txt") if _is_list(path)}


def _end_alike(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether one path is the end of the other."""
    least = min(len(one), len(other))
    return one[-least:] == other[-least:]


def _swapped(path: Path, old: str, new: str) -> Path:
    """A folder with the last part of a name replaced, if there is such a folder, otherwise the folder itself."""
    parts = Path(os.path.abspath(path)).parts
    place = next((place for place in range(len(parts) - 1, -1, -1) if parts[place] == old), None)
    folder = path if place is None else Path(*parts[:place], new, *parts[place + 1 :])
    return folder if folder.is_dir() else path


def _images_of(labels: Path) -> Path:
    """The folder of images for a folder of labels: .../images/train for .../labels/train."""
    found = _swapped(labels, "labels", "images")
    return found if found != labels else _swapped(labels.resolve(), "labels", "images")


def _find_names(folder: Path) -> Path:
    above = [folder, *Path(os.path.abspath(folder)).parents[:3], *folder.resolve().parents[:3]]
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
    if isinstance(names, dict):
        names = {_class_number(number): name for number, name in names.items()}
    if not isinstance(names, dict) or not names or not all(isinstance(n, int) for n in names):
        raise ValueError(f"{path} must have class names: `names` as a list, or a mapping from numbers.")
    return {number: _class_name(name, number, path) for number, name in names.items()}


def _class_number(key: Any) -> Any:
    """The number of a class, also in quotes ('0') or as a float; anything else as it is."""
    return int(key) if isinstance(key, str) and key.isdecimal() else whole(key)


def _class_name(name: Any, number: int, path: Path) -> str:
    """The name of a class; lines and entries without one would shift the numbers of the others."""
    if isinstance(name, bool) or not isinstance(name, str | int | float) or not str(name).strip():
        where = f"class {number}" if path.suffix in (".yaml", ".yml") else f"line {number + 1}"
        hint = "; put it in quotes" if isinstance(name, bool) else ""
        raise ValueError(f"{path}, {where} must have the name of class {number}, got {name!r}{hint}.")
    return str(name).strip()
