"""RefShapes as a `datasets.Dataset` whose scenes are drawn when they are read."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, Value
from datasets.table import array_cast
from PIL import Image

from ..features import Mask, Picture, register
from ..masks import unpack
from .examples import EXTRAS, FAMILIES, Example, Families, Split, families_at, in_turn, make_scene


KINDS = (*FAMILIES, *EXTRAS)


@lru_cache(maxsize=32)
def read_scene(
    split: Split, scene: int, side: int, seed: int, expressions: int, families: str | None, fewest: int, most: int
) -> list[Example]:
    """The examples of a scene; the last ones drawn are kept, as a row has several columns and a scene several rows.

    Args:
        split: see `load_refshapes`, and there also the arguments that are not described here.
        scene: its index.
        side: of the picture, in pixels.
        seed: of the data set.
        expressions: of each scene.
        families: what `settle_families` gives.
        fewest: objects of a scene.
        most: objects of a scene.
    """
    order = None if families is None else [KINDS[int(number)] for number in families]
    said = families_at(split, scene, expressions, order)
    return make_scene(split, scene, families=said, side=side, seed=seed, count=(fewest, most))


def settle_families(family: str | None, families: Families | None) -> str | None:
    """The families of `load_refshapes` in turn, as a digit each, their place in `KINDS`; None for the usual ones.

    It stands in every cell of a column, which may be millions, so it is short.

    Raises:
        ValueError: if both are given, or one cannot be.
    """
    if family is not None and families is not None:
        raise ValueError(f"`family` is {family!r} and `families` {families!r}; give one of the two.")
    if family is not None:
        families = [family]
    return None if families is None else "".join(str(KINDS.index(each)) for each in in_turn(families))


_PARTS: dict[str, tuple[str, Callable[[Example], Any]]] = {
    "image": ("PIL.Image.Image", lambda example: Image.fromarray(example.scene.image)),
    "ann_ids": ("list", lambda example: list(map(str, example.targets))),
    "expressions": ("list", lambda example: [example.expression]),
    "mask": ("numpy.ndarray", lambda example: example.mask.astype(np.uint8)),
    "has_target": ("bool", lambda example: bool(example.targets)),
    "family": ("str", lambda example: example.family),
}


@dataclass(repr=False)
class Drawn:
    """A column of RefShapes, read as `record` describes it.

    A cell says which scene is to be drawn; one made of a row, or of an image or mask that `Dataset.map` has changed,
    holds that itself.

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
        """What a row holds."""
        return _PARTS[self.part][0]

    def __call__(self) -> pa.DataType:
        """The type of a cell as it is stored."""
        return self.pa_type

    def flatten(self) -> "Drawn":
        """Itself: a cell is one thing, also for `Dataset.flatten`."""
        return self

    def __repr__(self) -> str:
        """What `datasets` prints where it refuses to join such a column with that of another reader."""
        return (
            f"Drawn(part={self.part!r}, decode={self.decode}), a column of RefShapes, which is drawn when it is "
            "read and joins with RefShapes alone; `dataset.map(dict, features=crossvlt_hf.data.FEATURES)` draws it, "
            "so that it joins with any,"
        )

    def encode_example(self, value: Any) -> dict[str, Any]:
        """A cell from a cell, or from what a row has of this column."""
        if isinstance(value, dict) and "scene" in value:
            return value
        if self.part == "image":
            # the bytes of whatever Picture takes
            cell = Picture().encode_example(value)
            changed = cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()
        elif self.part == "mask":
            changed = Mask().encode_example(value)["packed"].encode()
        else:
            changed = json.dumps(value).encode()
        return {**dict.fromkeys(entry.name for entry in self.pa_type), "changed": changed}

    def decode_example(self, value: Any, token_per_repo_id: dict[str, Any] | None = None) -> Any:
        """The part of the scene of a cell."""
        if not (isinstance(value, dict) and "scene" in value):
            return value
        cell = dict(value)
        changed, number = cell.pop("changed"), cell.pop("number")
        if changed is None:
            return _PARTS[self.part][1](read_scene(**cell)[number])
        if self.part == "image":
            return Picture().decode_example({"bytes": changed})
        return unpack(changed.decode()) if self.part == "mask" else json.loads(changed)

    def cast_storage(self, storage: pa.Array) -> pa.Array:
        """Cells from cells, or from what a function of `Dataset.map` gave for an image or mask.

        Raises:
            TypeError: if it is of another column; the column then has the type of what the function gave.
        """
        if not (pa.types.is_struct(storage.type) and storage.type.get_field_index("scene") >= 0):
            if self.part == "image":
                changed = Picture().embed_storage(Picture().cast_storage(storage)).field("bytes")
            elif self.part == "mask":
                changed = Mask().cast_storage(storage).field("packed")
            else:
                raise TypeError(f"{storage.type} holds no scenes.")
            empty = [pa.nulls(len(storage), each.type) for each in self.pa_type][:-1]
            names = [each.name for each in self.pa_type]
            storage = pa.StructArray.from_arrays([*empty, changed.cast(pa.large_binary())], names)
        return array_cast(storage, self.pa_type)


register(Drawn)

# Those of all records
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
) -> Dataset:
    """Scenes of RefShapes as records (see `crossvlt_hf.data.record`), `expressions` rows for each.

    Args:
        split: see `make_scene`.
        scenes: how many.
        expressions: rows for each scene, each with one expression, no two of the same target.
        side: of a picture, in pixels.
        seed: another seed gives other scenes.
        family: one of `FAMILIES` or `EXTRAS` for all; None takes the six families in turn.
        families: instead, several of them in equal shares, or each with its share, such as
            `{"attribute": 2, "plural": 1, "no_target": 1}`.
        count: the fewest and the most objects of a scene.

    Returns:
        Rows whose columns have types of their own, as expressions are drawn with their scene: `datasets` joins such
        data sets with each other only. Once drawn, by `dataset.map(dict, features=FEATURES)` or by `write_folder` and
        `load_folder`, they join with any.

    Raises:
        ValueError: if there is no such split or family, or a number is out of range.
    """
    _check_counts(scenes, expressions, family)
    said, (fewest, most) = settle_families(family, families), count
    read_scene(split, 0, side, seed, expressions, said, fewest, most)  # checks the rest
    index, number = np.divmod(np.arange(scenes * expressions), expressions)
    same = {"split": split, "side": side, "seed": seed, "expressions": expressions, "families": said}
    cells = _make_cells(index, number, same | {"fewest": fewest, "most": most})  # shared by all drawn columns
    columns = {
        "image_id": pa.array([f"{split}-{seed}-{i}" for i in index]),
        "ref_id": pa.array([f"{split}-{seed}-{i}-{n}" for i, n in zip(index, number, strict=True)]),
        "split": cells.field("split"),
        "dataset": pa.repeat("refshapes", len(index)),
        "num_expressions": pa.array(np.ones(len(index), dtype=np.int32)),
    }
    features = Features({name: Drawn(name) if name in _PARTS else Value(str(columns[name].type)) for name in _ORDER})
    table = pa.table({name: columns.get(name, cells) for name in _ORDER}, schema=features.arrow_schema)
    return Dataset(table, info=DatasetInfo(features=features))


def _check_counts(scenes: int, expressions: int, family: str | None) -> None:
    if scenes < 1 or not 1 <= expressions <= 3 or (family is not None and expressions > 1):
        raise ValueError(
            f"`scenes` is {scenes}, `expressions` {expressions}, `family` {family!r}; give at least one scene, one to "
            "three expressions, and one for a family of its own."
        )


def _make_cells(scene: np.ndarray, number: np.ndarray, same: dict[str, Any]) -> pa.StructArray:
    """A cell of `Drawn` for each row: its scene, the number of its expression there, and what is the same for all."""
    parts = {
        name: pa.repeat(pa.scalar(value, Drawn.pa_type.field(name).type), len(scene)) for name, value in same.items()
    }
    parts |= {"scene": pa.array(scene), "number": pa.array(number, pa.int8())}
    parts["changed"] = pa.nulls(len(scene), pa.large_binary())
    names = [each.name for each in Drawn.pa_type]
    return pa.StructArray.from_arrays([parts[name] for name in names], names)
