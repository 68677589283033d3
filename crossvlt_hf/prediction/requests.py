"""Requests: rows of an image and its expressions, from a file, a folder or a data set, loaded one at a time."""

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from datasets import Dataset, load_from_disk

from ..data.files import but_has, check_split, inside, load_rows, visible_files
from ..data.flaws import clean_expressions
from ..data.load import NAMES, is_data_folder, load_data
from ..data.sources.folder import METADATA, read_metadata
from ..processing_crossvlt import ImageLike, counted, opening
from ..system import check_exists, check_source_exists, some_names
from .picture_files import find_pictures, picture_suffixes


IMAGE_KEYS = ("image", "file_name", "image_path", "path")
TEXT_KEYS = ("expressions", "expression", "text", "texts", "sentences", "sentence", "caption")
BOTH = {"expression", "expressions"}  # of which a row has one
NAME_KEYS = ("ref_id", "id", "image_id")
# Files in which `datasets` may find expressions
TABLES = (".arrow", ".csv", ".json", ".jsonl", ".parquet", ".tsv", ".tar", ".zip")


@dataclass(frozen=True)
class Request:
    """A row to segment.

    Args:
        name: its id in the data, or its place.
        image: a path, or an image.
        expressions: at least one, as in the data: some may be empty, or not text.
    """

    name: str
    image: ImageLike
    expressions: list[Any]


class Requests(Protocol):
    """Rows by index, with a `digest` to check that a job is resumed with the same rows."""

    digest: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Request:
        """Load a row.

        Raises:
            OSError, ValueError: if it is unreadable.
        """
        ...

    def name(self, index: int) -> str:
        """The name of a row, for errors."""
        ...

    def texts(self) -> Iterator[str]:
        """The expressions of readable rows, or those of all rows once; loads no images."""
        ...


def _find(row: dict[str, Any], keys: Sequence[str], what: str, source: str) -> Any:
    for key in keys:
        if row.get(key) is not None:
            return row[key]
    given = {key: value for key, value in row.items() if value is not None}
    raise ValueError(f"{source} has no {what}{but_has(given)}; add one of {', '.join(keys)}.")


def _check_one(given: Collection[str], keys: Sequence[str], source: str) -> None:
    """Raise ValueError for both `expression` and `expressions` among the given keys, of which one would be ignored."""
    if set(given) & set(keys) >= BOTH:
        raise ValueError(f"{source} has both `expression` and `expressions`; remove one.")


def _expressions(value: Any, source: str) -> list[Any]:
    if isinstance(value, np.ndarray):  # of a data set in the format of NumPy
        value = value.tolist()
    if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):  # sentences of REFER
        return [entry.get("raw") or entry.get("sent") for entry in value]
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{source} must have an expression or a list of them, got {repr(value)[:40]}.")
    return list(value)


def _clean_ones(expressions: Sequence[Any]) -> Iterator[str]:
    """Those expressions that are text, stripped."""
    for text in expressions:
        with suppress(ValueError):
            yield from clean_expressions([text], "The row")


class JsonlRequests:
    """The lines of a JSONL file; only their offsets are kept in memory.

    Args:
        path: of the file. A line is an object with `image` (or `file_name`), a path below the root, and `expression`
            or `expressions`, and optionally `split`; other keys of `metadata.jsonl` are ignored. `id` or `ref_id` is
            its name.
        root: folder of the images; None for that of the file.
        image_key: key of the image, if it has another name.
        text_key: key of the expressions, if it has another name.
        split: of the lines to use; a line without one is of "train". None for all lines.

    Raises:
        ValueError: if there is no line of the split.
    """

    def __init__(
        self,
        path: Path,
        root: Path | None = None,
        image_key: str | None = None,
        text_key: str | None = None,
        split: str | None = None,
    ) -> None:
        self.path, self.root = path, path.parent if root is None else root
        self.image_keys = (image_key,) if image_key else IMAGE_KEYS
        self.text_keys = (text_key,) if text_key else TEXT_KEYS
        starts, numbers, digest, position = [], [], blake2b(digest_size=16), 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip(b"\xef\xbb\xbf \t\r\n"):
                    starts.append(position)
                    numbers.append(number)
                position += len(line)
                digest.update(line)
        # numpy arrays, since workers would copy lists of ints when they count references to them
        self.starts, self.numbers = np.array(starts), np.array(numbers)
        if split is not None:
            self._keep(split)
            digest.update(split.encode())
        self.digest = digest.hexdigest()

    def _keep(self, split: str) -> None:
        """Keep the lines of a split, and those that cannot be read, which are named later."""
        splits = [self._split(index) for index in range(len(self))]
        wanted = check_split(split, tuple(sorted({each for each in splits if each is not None})), str(self.path))
        kept = [index for index, each in enumerate(splits) if each in (wanted, None)]
        self.starts, self.numbers = self.starts[kept], self.numbers[kept]

    def _split(self, index: int) -> str | None:
        """The split of a line; None if it cannot be read."""
        try:
            return str(self._row(index).get("split", "train"))
        except ValueError:
            return None

    def __len__(self) -> int:
        return len(self.starts)

    def name(self, index: int) -> str:
        """File and line."""
        return f"{self.path.name}, line {self.numbers[index]}"

    def _row(self, index: int) -> dict[str, Any]:
        name = self.name(index)
        with self.path.open("rb") as file:
            file.seek(self.starts[index])
            line = file.readline()
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{name} must be an object, {{...}}, got {str(row)[:40]!r}.")
        return row

    def __getitem__(self, index: int) -> Request:
        name, row = self.name(index), self._row(index)
        image = inside(self.root, _find(row, self.image_keys, "image", name), name)
        _check_one([key for key, value in row.items() if value is not None], self.text_keys, name)
        expressions = _expressions(_find(row, self.text_keys, "expression", name), name)
        given = next((row[key] for key in NAME_KEYS if isinstance(row.get(key), str | int)), name)
        return Request(str(given), image, expressions)

    def texts(self) -> Iterator[str]:
        """The expressions of readable lines."""
        for index in range(len(self)):
            with suppress(OSError, ValueError):
                yield from _clean_ones(self[index].expressions)


class ImageRequests:
    """All images below a folder, with the same expressions.

    Images are found by `find_pictures`. Other files are listed in `skipped`; hidden files are ignored.

    Args:
        folder: of the images.
        expressions: for each image.

    Raises:
        OSError: if a folder cannot be listed.
        ValueError: if there are no expressions, or one is empty.
    """

    def __init__(self, folder: Path, expressions: Sequence[str]) -> None:
        self.folder, self.expressions = folder, clean_expressions(expressions, "--expression")
        pictures, self.skipped = find_pictures(folder)
        self.paths = np.array(pictures)
        self.digest = blake2b(json.dumps([*pictures, *self.expressions]).encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The path relative to the folder."""
        return str(self.paths[index])

    def __getitem__(self, index: int) -> Request:
        return Request(self.name(index), str(self.folder / self.name(index)), self.expressions)

    def texts(self) -> Iterator[str]:
        """The expressions, once for all images."""
        return iter(self.expressions)


class RowRequests:
    """The rows of a data set with columns of images and expressions.

    Args:
        dataset: of records (see `crossvlt_hf.data.record`), or another one.
        image_column: name of the column of images, if it is not a usual one.
        text_column: name of the column of expressions, if it is not a usual one.

    Raises:
        ValueError: if there are no such columns.
    """

    def __init__(self, dataset: Dataset, image_column: str | None = None, text_column: str | None = None) -> None:
        stored = dataset.column_names
        # Only a transform may add columns; otherwise the first row is not read, as it may be broken
        drawn = len(dataset) > 0 and image_column not in stored and not set(stored) & set(IMAGE_KEYS)
        columns = list(dataset[0]) if drawn else stored
        self.image = self._choose(columns, image_column, IMAGE_KEYS, "image")
        _check_one(columns, (text_column,) if text_column else TEXT_KEYS, "The data set")
        self.text = self._choose(columns, text_column, TEXT_KEYS, "text")
        needed = {self.image, self.text, *NAME_KEYS, "source"}
        lean = {self.image, self.text} <= set(stored)
        self.dataset = dataset.select_columns([name for name in stored if name in needed]) if lean else dataset
        self.digest = _digest(dataset.select_columns([name for name in stored if name != self.image]))

    @staticmethod
    def _choose(columns: Sequence[str], wanted: str | None, usual: Sequence[str], kind: str) -> str:
        if wanted and wanted not in columns:
            raise ValueError(f"`--{kind}-column` must be one of the columns {', '.join(columns)}, got {wanted!r}.")
        found = wanted or next((name for name in usual if name in columns), None)
        if found is None:
            others = [name for name in columns if name not in (*IMAGE_KEYS, *NAME_KEYS)]
            advice = f"name another column with `--{kind}-column`" if others else "add one"
            raise ValueError(
                f"The data set must have a column {', '.join(usual[:-1])} or {usual[-1]}, got the columns "
                f"{', '.join(columns)}; {advice}."
            )
        return found

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        """The number of the row."""
        return f"row {index}"

    def __getitem__(self, index: int) -> Request:
        with opening(self.name(index)):  # `datasets` decodes images here
            row = self.dataset[index]
        name = next((row[key] for key in NAME_KEYS if isinstance(row.get(key), str | int)), self.name(index))
        if row[self.image] is None:
            raise ValueError(f"{self.name(index)} has no image.")
        return Request(str(name), row[self.image], _expressions(row[self.text], self.name(index)))

    def texts(self) -> Iterator[str]:
        """The expressions of readable rows; decodes images only if expressions are not stored."""
        stored = self.text in self.dataset.column_names
        rows = self.dataset.with_format(None).select_columns([self.text]) if stored else self.dataset
        for index in range(len(rows)):
            with suppress(OSError, ValueError):
                yield from _clean_ones(_expressions(rows[index][self.text], self.name(index)))


def _digest(dataset: Dataset) -> str:
    """A hash of the stored values, without images."""
    digest = blake2b(digest_size=16)
    for table in dataset.with_format("arrow").iter(1000):
        digest.update(repr(table.to_pydict()).encode(errors="backslashreplace"))
    return digest.hexdigest()


def _load_rows(source: str, split: str | None) -> Dataset:
    """Load a split ("train" by default) from the Hub, from files, or saved by `save_to_disk`."""
    folder = Path(source)
    if (folder / "state.json").is_file():
        _refuse({"split": split}, f"{source}, which was saved without splits")
        return load_from_disk(source)
    split = split or "train"
    if (folder / "dataset_dict.json").is_file():
        saved = load_from_disk(source)
        return saved[check_split(split, tuple(saved), source)]
    suffix = folder.suffix.lower()
    if folder.is_file() and suffix in picture_suffixes():
        raise ValueError(
            f"{source} is an image; `crossvlt segment` takes a single image, `crossvlt predict` a folder of images."
        )
    if folder.is_file():
        raise ValueError(f"{source} must be a JSONL file with a line for each row, or a folder, got another file.")
    check_source_exists(source, {*picture_suffixes(), *TABLES}, "; give one, or the id of a data set")
    return load_rows(source, split)


def _first_mask(folder: Path) -> str | None:
    """The first file of a mask in the metadata of a folder or of its splits; None if there is none."""
    for path in (folder / METADATA, *visible_files(folder, f"*/{METADATA}")):
        with suppress(OSError, ValueError):  # not there, or broken, which matters only if it is used
            for _, row in read_metadata(path):
                if isinstance(row.get("mask"), str):
                    return row["mask"]
    return None


def _open_pictures(folder: Path, expressions: Sequence[str]) -> ImageRequests:
    check_exists(folder, "folder", " of images for `--expression`")
    if not folder.is_dir():
        raise ValueError(
            f"`--expression` must come with a folder of images, got {folder}; `crossvlt segment` takes a single image."
        )
    if (mask := _first_mask(folder)) is not None:
        raise ValueError(
            f"{folder} is a data set with masks such as {mask}, which `--expression` would segment like images; leave "
            "it out to use the expressions of the data set, or give its folder of images."
        )
    requests = ImageRequests(folder, expressions)
    if not len(requests):
        others = requests.skipped
        rest = f"; it has {len(others)} other file(s): {some_names(others)}" if others else ""
        raise ValueError(f"{folder} has no images to segment{rest}.")
    return requests


def _check_has_expressions(folder: Path) -> None:
    """Raise ValueError for a folder that has images but no file that could contain expressions."""
    if (folder / "state.json").is_file() or not folder.is_dir():
        return
    pictures, others = find_pictures(folder)
    if pictures and not any(name.lower().endswith(TABLES) for name in others):
        raise ValueError(
            f"{folder} has {counted(len(pictures), 'image')} and no {METADATA}; set `--expression TEXT` to use it for "
            f"every image, or write {METADATA}, a line for each image with its expressions."
        )


def _refuse(arguments: dict[str, Any], source: str) -> None:
    """Raise ValueError for an argument that has no effect."""
    for name, value in arguments.items():
        if value:
            raise ValueError(f"`--{name}` has no effect on {source}; leave it out.")


def open_requests(
    source: str,
    *,
    split: str | None = None,
    root: str | None = None,
    expressions: Sequence[str] = (),
    image_column: str | None = None,
    text_column: str | None = None,
    options: dict[str, Any] | None = None,
) -> Requests:
    """Open a source of requests.

    Args:
        source: a JSONL file; a folder with metadata.jsonl; a folder of images, with `expressions`; the name of a data
            set of `load_data`; otherwise an argument of `datasets.load_dataset`, or a folder of `save_to_disk`.
        split: of a data set; None means "train", or all lines of a JSONL file. Not for folders of images.
        root: folder of the images of a JSONL file, or of the files of a data set.
        expressions: for every image of a folder.
        image_column: column or key of images, if it is not a usual one.
        text_column: column or key of expressions, if it is not a usual one.
        options: other arguments of `load_data`.

    Raises:
        OSError: if there is no such source.
        ValueError: if it has no rows, images or expressions, or an argument has no effect.
    """
    path, below = Path(source), None if root is None else Path(root)
    table = path / METADATA if path.is_dir() else path
    given = {"split": split, "option": options, "root": root, "image-column": image_column, "text-column": text_column}
    requests: Requests
    if expressions:
        _refuse(given, "a folder of images")
        requests = _open_pictures(path, expressions)
    elif table.is_file() and table.suffix == ".jsonl":
        _refuse({"option": options}, f"the lines of {table}")
        requests = JsonlRequests(table, below, image_column, text_column, split)
    elif source in NAMES or is_data_folder(path):
        dataset = load_data(source, split or "train", root=root, **(options or {}))
        requests = RowRequests(dataset, image_column, text_column)
    else:
        _refuse({name: given[name] for name in ("option", "root")}, f"{source}, which `datasets` loads")
        _check_has_expressions(path)
        requests = RowRequests(_load_rows(source, split), image_column, text_column)
    if not len(requests):
        raise ValueError(f"{source} has no rows to segment.")
    return requests
