"""RefShapes as a `datasets.Dataset`, whose scenes are drawn when a row is read."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from string import ascii_lowercase, digits
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetInfo, Features, Value
from datasets.table import array_cast
from PIL import Image

from ...system import check_known
from ..features import Mask, Picture, register
from ..masks import unpack
from .examples import Example, make_scene
from .families import (
    DENIALS,
    EXTRAS,
    FAMILIES,
    Families,
    Split,
    check_counterparts,
    check_counts,
    check_scene,
    families_at,
    order_families,
)
from .languages import LANGUAGES


# Each family has a symbol, since every cell of a column holds the order of families
KINDS = dict(zip(digits + ascii_lowercase, (*FAMILIES, *EXTRAS, *DENIALS), strict=False))
SYMBOLS = {family: symbol for symbol, family in KINDS.items()}
COUNTERPARTS = "="  # before the symbols


@lru_cache(maxsize=32)
def read_scene(
    split: Split,
    scene: int,
    side: int,
    seed: int,
    expressions: int,
    families: str | None,
    fewest: int,
    most: int,
    language: str,
) -> list[Example]:
    """Draw the examples of a scene; cached, since a row has several drawn columns and a scene several rows.

    Args:
        split: see `load_refshapes`, also for other arguments.
        scene: index of the scene.
        side: side of the image, in pixels.
        seed: of the data set.
        expressions: per scene.
        families: see `settle_families`.
        fewest: the fewest objects of a scene.
        most: the most objects of a scene.
        language: of the expressions.
    """
    symbols = families or ""
    order = [KINDS[symbol] for symbol in symbols.removeprefix(COUNTERPARTS)]
    said = families_at(split, scene, expressions, order or None)
    return make_scene(
        split,
        scene,
        families=said,
        side=side,
        seed=seed,
        count=(fewest, most),
        language=language,
        counterparts=symbols.startswith(COUNTERPARTS),
    )


def settle_families(
    split: str, family: str | None, families: Families | None, counterparts: bool = False
) -> str | None:
    """The families of `load_refshapes` in a cell: a symbol of `KINDS` each, in order; None for the default.

    Raises:
        ValueError: see `order_families`.
    """
    order = "".join(SYMBOLS[each] for each in order_families(split, family, families, counterparts))
    return (COUNTERPARTS * counterparts + order) or None


_PARTS: dict[str, tuple[str, Callable[[Example], Any]]] = {
    "image": ("PIL.Image.Image", lambda example: Image.fromarray(example.scene.image)),
    "ann_ids": ("list", lambda example: list(map(str, example.targets))),
    "expressions": ("list", lambda example: [example.expression]),
    "mask": ("numpy.ndarray", lambda example: example.mask.astype(np.uint8)),
    "has_target": ("bool", lambda example: bool(example.targets)),
    "family": ("str", lambda example: example.family),
}


def _join_language(split: Split, language: str) -> str:
    """What a cell of `Drawn` has as its split."""
    return split if language == "en" else f"{split}:{language}"


def _part_language(split: str) -> tuple[str, str]:
    """Split and language of a cell of `Drawn`."""
    split, _, language = split.partition(":")
    return split, language or "en"


@dataclass(repr=False)
class Drawn:
    """Feature type of a column of RefShapes; values are as described in `record`.

    A cell names the scene to draw; a language other than English stands behind the split ("train:de"), since data sets
    that were saved without a field for it could not be read with one. A cell that was made of a value, for example
    changed by `Dataset.map`, holds the value itself.

    Args:
        part: the name of the column.
    """

    part: str
    decode: bool = True
    id: str | None = field(default=None, repr=False)
    pa_type: ClassVar[pa.DataType] = pa.struct(
        {
            "split": pa.string(),
            "scene": pa.int64(),
            "side": pa.int32(),
            "seed": pa.int64(),
            "expressions": pa.int8(),
            "families": pa.string(),
            "fewest": pa.int8(),
            "most": pa.int8(),
            "number": pa.int8(),
            "changed": pa.large_binary(),
        }
    )
    _type: str = field(default="CrossVLTDrawn", init=False, repr=False)

    @property
    def dtype(self) -> str:
        """The type of a value."""
        return _PARTS[self.part][0]

    def __call__(self) -> pa.DataType:
        """The Arrow type of a cell."""
        return self.pa_type

    def flatten(self) -> "Drawn":
        """Return itself: `Dataset.flatten` must not split a cell."""
        return self

    def __repr__(self) -> str:
        """What `datasets` prints when it cannot concatenate the column with that of another reader."""
        return (
            f"Drawn(part={self.part!r}, decode={self.decode}), a column of RefShapes, which is drawn when a row is "
            "read and can only be concatenated with RefShapes; "
            "`dataset.map(dict, features=crossvlt_hf.data.FEATURES)` draws it, so that it joins with any data set,"
        )

    def encode_example(self, value: Any) -> dict[str, Any]:
        """Make a cell of a cell, or of a value."""
        if isinstance(value, dict) and "scene" in value:
            return value
        if self.part == "image":
            # The bytes of anything that Picture takes
            cell = Picture().encode_example(value)
            changed = cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()
        elif self.part == "mask":
            changed = Mask().encode_example(value)["packed"].encode()
        else:
            changed = json.dumps(value).encode()
        return {**dict.fromkeys(entry.name for entry in self.pa_type), "changed": changed}

    def decode_example(self, value: Any, token_per_repo_id: dict[str, Any] | None = None) -> Any:
        """Decode a cell: draw its scene and return the part."""
        if not (isinstance(value, dict) and "scene" in value):
            return value
        cell = dict(value)
        changed, number = cell.pop("changed"), cell.pop("number")
        if changed is None:
            cell["split"], cell["language"] = _part_language(cell["split"])
            return _PARTS[self.part][1](read_scene(**cell)[number])
        if self.part == "image":
            return Picture().decode_example({"bytes": changed})
        return unpack(changed.decode()) if self.part == "mask" else json.loads(changed)

    def cast_storage(self, storage: pa.Array) -> pa.Array:
        """Make cells of cells, or of images or masks that a function of `Dataset.map` returned.

        Raises:
            TypeError: for other columns, which then get the type of what the function returned.
        """
        if not (pa.types.is_struct(storage.type) and storage.type.get_field_index("scene") >= 0):
            if self.part == "image":
                changed = Picture().embed_storage(Picture().cast_storage(storage)).field("bytes")
            elif self.part == "mask":
                changed = Mask().embed_storage(Mask().cast_storage(storage)).field("packed")
            else:
                raise TypeError(f"{storage.type} holds no scenes.")
            empty = [pa.nulls(len(storage), each.type) for each in self.pa_type][:-1]
            names = [each.name for each in self.pa_type]
            storage = pa.StructArray.from_arrays([*empty, changed.cast(pa.large_binary())], names)
        return array_cast(storage, self.pa_type)


register(Drawn)


def languages_of(dataset: Dataset) -> list[str] | None:
    """The languages of the expressions of RefShapes; None for other data, and where some expressions were changed."""
    if not isinstance(dataset.features.get("expressions"), Drawn):
        return None
    cells = dataset.with_format("arrow")["expressions"][:]
    splits = pc.unique(pc.struct_field(cells, "split")).to_pylist()
    return None if None in splits else sorted({_part_language(split)[1] for split in splits})


# The columns of all records
_ORDER = (
    "image",
    "image_id",
    "ref_id",
    "ann_ids",
    "expressions",
    "mask",
    "has_target",
    "family",
    "split",
    "dataset",
    "num_expressions",
)


def load_refshapes(
    split: Split,
    *,
    scenes: int = 1000,
    expressions: int = 1,
    side: int = 96,
    seed: int = 0,
    family: str | None = None,
    families: Families | None = None,
    count: tuple[int, int] = (3, 6),
    language: str = "en",
    counterparts: bool = False,
) -> Dataset:
    """Scenes of RefShapes as a data set of records (see `crossvlt_hf.data.record`), `expressions` rows per scene.

    Args:
        split: see `make_scene`.
        scenes: number of scenes, at most 2 million.
        expressions: rows per scene, all with different targets; at most 3.
        side: side of the images, in pixels, from 32 to 4096.
        seed: of the scenes.
        family: one of `FAMILIES`, `EXTRAS` or `DENIALS` for all rows; None uses the six families in turn.
        families: instead, several of them in equal shares, or a dict of shares, such as
            `{"attribute": 2, "plural": 1, "no_target": 1}`.
        count: the fewest and the most objects of a scene.
        language: of the expressions: "en", "de" or "zh". The same arguments give the same scenes, ids and targets in
            all, with expressions of the same meaning.
        counterparts: see `make_scene`.

    Returns:
        A data set whose columns have their own feature types, since expressions are drawn with their scene: `datasets`
        concatenates it with RefShapes only. Draw it with `dataset.map(dict, features=FEATURES)`, or `write_folder` and
        `load_folder`, to concatenate it with others.

    Raises:
        ValueError: if there is no such split, family or language, or a number is out of range.
    """
    check_counts(scenes, expressions, family)
    check_counterparts(counterparts, expressions)
    check_scene(0, side, seed, count)
    check_known("language", language, LANGUAGES)
    said, (fewest, most) = settle_families(split, family, families, counterparts), count
    read_scene(split, 0, side, seed, expressions, said, fewest, most, language)  # checks the rest
    index, number = np.divmod(np.arange(scenes * expressions), expressions)
    same = {
        "split": _join_language(split, language),
        "side": side,
        "seed": seed,
        "expressions": expressions,
        "families": said,
    }
    cells = _make_cells(index, number, same | {"fewest": fewest, "most": most})  # shared by all drawn columns
    columns = {
        "image_id": pa.array([f"{split}-{seed}-{i}" for i in index]),
        "ref_id": pa.array([f"{split}-{seed}-{i}-{n}" for i, n in zip(index, number, strict=True)]),
        "split": pa.repeat(split, len(index)),
        "dataset": pa.repeat("refshapes", len(index)),
        "num_expressions": pa.array(np.ones(len(index), dtype=np.int32)),
    }
    features = Features({name: Drawn(name) if name in _PARTS else Value(str(columns[name].type)) for name in _ORDER})
    table = pa.table({name: columns.get(name, cells) for name in _ORDER}, schema=features.arrow_schema)
    return Dataset(table, info=DatasetInfo(features=features))


def _make_cells(scene: np.ndarray, number: np.ndarray, same: dict[str, Any]) -> pa.StructArray:
    """A cell of `Drawn` for each row, of its scene, the number of its expression, and fields that all share."""
    parts = {
        name: pa.repeat(pa.scalar(value, Drawn.pa_type.field(name).type), len(scene)) for name, value in same.items()
    }
    parts |= {"scene": pa.array(scene), "number": pa.array(number, pa.int8())}
    parts["changed"] = pa.nulls(len(scene), pa.large_binary())
    names = [each.name for each in Drawn.pa_type]
    return pa.StructArray.from_arrays([parts[name] for name in names], names)
