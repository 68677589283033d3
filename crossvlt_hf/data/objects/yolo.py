"""Segmentation labels of YOLO: a text file per image, a line `class x1 y1 x2 y2 ...` per object.

Coordinates are relative to width and height of the image. Class names are in data.yaml (`names`, a list or a mapping
from numbers) or in classes.txt, one per line.
"""

from pathlib import Path

import yaml

from ..files import header_size, require_folder
from .object_record import ObjectRecord, ObjectScene, ObjectSource, find_images


_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")


class YoloObjects(ObjectSource):
    """Labels of YOLO; images without a label file, or with an empty one, are left out.

    Args:
        labels: folder of the label files, or its parent.
        images: folder of the images; None for the folder `images` beside `labels`.
        names: file of class names; None to search `labels` and the folders above it.
        name: of the data set.

    Raises:
        OSError: if a folder or the file of class names is missing.
        ValueError: if there are no labels.
    """

    def __init__(
        self,
        labels: str | Path,
        images: str | Path | None = None,
        names: str | Path | None = None,
        name: str | None = None,
    ) -> None:
        folder = Path(labels) / "labels"
        folder = folder if folder.is_dir() else require_folder(labels)
        self.pictures = _images_of(folder) if images is None else Path(images)
        if not self.pictures.is_dir():
            raise FileNotFoundError(f"There is no folder of images {self.pictures}; set `images`.")
        self.names_file = Path(names) if names is not None else _find_names(folder)
        self.classes = read_names(self.names_file)
        self.labels, self.name = tuple(self.classes.values()), name or folder.resolve().parent.name
        self.files = self._find_files(folder)
        if not self.files:
            raise ValueError(f"{folder} has no label files with objects.")

    def _find_files(self, folder: Path) -> list[tuple[Path, Path | None]]:
        """The label files that are not empty, each with its image."""
        images = find_images(self.pictures)
        files = (path for path in sorted(folder.rglob("*.txt")) if path.name not in _NAMES and path.stat().st_size)
        return [
            (path, images.get(path.relative_to(folder).with_suffix("").as_posix()))
            for path in files
            if path.resolve() != self.names_file.resolve()
        ]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> ObjectScene:
        path, image = self.files[index]
        if image is None:
            raise FileNotFoundError(f"{path} has no image of that name in {self.pictures}.")
        size = header_size(str(image))
        return ObjectScene(
            str(image), image.relative_to(self.pictures).as_posix(), size, self._objects(path, size), str(path)
        )

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
            names = [line.strip() for line in text.splitlines() if line.strip()]
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(isinstance(n, int) for n in names):
        raise ValueError(f"{path} must have class names: `names` as a list, or a mapping from numbers.")
    return {number: str(name) for number, name in names.items()}
