"""Feature types of the columns `image` and `mask`: stored packed, decoded when a row is read.

Because the feature type decodes, all operations of `datasets` keep working: selecting, renaming, joining, mapping,
saving. A cell holds everything that is needed to decode it, so rows of all readers have the same types. Importing this
module (or any reader) registers the types for `datasets.load_from_disk`.
"""

import warnings
from dataclasses import dataclass, field
from io import BytesIO
from os.path import basename
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from datasets import Image as ImageFeature
from datasets.features.features import register_feature
from datasets.table import array_cast
from PIL import Image

from ..processing_crossvlt import load_pixels, opening, to_rgb
from .masks import decode_mask, is_file, pack_mask, unpack


def register(feature: type) -> None:
    """Register a feature type with `datasets`, which saves it by its `_type`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the function is experimental
        register_feature(feature, feature._type)  # type: ignore[attr-defined]


def open_picture(picture: dict[str, Any], name: str = "The file in a row") -> Image.Image:
    """Load the image of a cell {"bytes", "path"}, without converting it.

    Raises:
        OSError: if the file is missing or broken.
        ValueError: if it is larger than Pillow allows.
    """
    inline = picture.get("bytes") is not None
    with (
        opening(name if inline else str(picture["path"]), "image"),
        Image.open(BytesIO(picture["bytes"]) if inline else picture["path"]) as image,
    ):
        load_pixels(image)
    return image


def _children(array: pa.StructArray, names: pa.StructType) -> list[pa.Array]:
    """The fields of a struct array, ordered as in another type; nulls for missing fields."""
    found = dict(zip((entry.name for entry in array.type), array.flatten(), strict=True))
    return [found.get(entry.name, pa.nulls(len(array), entry.type)) for entry in names]


@dataclass
class Picture:
    """Feature type of images, which are read as RGB `PIL.Image.Image`: see `to_rgb`.

    A cell holds `bytes` or `path`; `upright`, whether to apply the EXIF orientation (COCO's annotations refer to the
    stored pixels); `height` and `width` of its mask, if known, which the image must have; and `where`, file and row
    for messages.
    """

    decode: bool = True
    id: str | None = field(default=None, repr=False)
    dtype: ClassVar[str] = "PIL.Image.Image"
    pa_type: ClassVar[pa.DataType] = pa.struct(
        {
            "bytes": pa.binary(),
            "path": pa.string(),
            "upright": pa.bool_(),
            "height": pa.int32(),
            "width": pa.int32(),
            "where": pa.string(),
        }
    )
    _type: str = field(default="CrossVLTPicture", init=False, repr=False)

    def __call__(self) -> pa.DataType:
        """The Arrow type of a cell."""
        return self.pa_type

    def flatten(self) -> "Picture":
        """Return itself: `Dataset.flatten` must not split a cell."""
        return self

    def encode_example(self, value: Any) -> dict[str, Any]:
        """Make a cell of a cell, or of anything that `datasets.Image` takes: path, bytes, PIL image, array."""
        if isinstance(value, dict) and "where" in value:
            return value
        # `datasets` stores a PIL image with its EXIF orientation
        empty = dict.fromkeys(entry.name for entry in self.pa_type)
        return {**empty, "upright": True, **ImageFeature().encode_example(value)}

    def decode_example(self, value: Any, token_per_repo_id: dict[str, Any] | None = None) -> Image.Image:
        """Decode the image of a cell.

        Raises:
            OSError: if the file is missing or broken.
            ValueError: if its size differs from its mask's, it is larger than Pillow allows, or it is not an image.
        """
        if not isinstance(value, dict):
            return value
        where = value.get("where") or "The file in a row"
        opened = open_picture(value, where)
        try:
            picture = to_rgb(opened, upright=bool(value.get("upright")))
        except ValueError as error:  # arrays that are not images, as TIFF files may hold
            raise ValueError(f"{where}: {error}") from error
        picture.info.clear()  # EXIF data, which a later reader could apply again
        expected = value.get("height"), value.get("width")
        if None not in expected and expected != (picture.height, picture.width):
            raise ValueError(
                f"{where}: the mask is {expected[0]}x{expected[1]} pixels (height x width), the image "
                f"{picture.height}x{picture.width}; they must agree."
            )
        return picture

    def cast_storage(self, storage: pa.Array) -> pa.Array:
        """Make cells of stored cells, or of the storage of `datasets.Image`."""
        own = pa.types.is_struct(storage.type) and storage.type.get_field_index("upright") >= 0
        storage = storage if own else ImageFeature().cast_storage(storage)
        parts = dict(zip((entry.name for entry in self.pa_type), _children(storage, self.pa_type), strict=True))
        if not own:
            parts["upright"] = pa.array([True] * len(storage))
        storage = pa.StructArray.from_arrays(list(parts.values()), list(parts), mask=storage.is_null())
        return array_cast(storage, self.pa_type)

    def embed_storage(self, storage: pa.Array, local_files: bool = True, **_: Any) -> pa.Array:
        """Read the files into the cells, for data sets that leave this machine."""
        cells = storage.to_pylist()
        for cell in cells if local_files else ():
            if cell is not None and cell["bytes"] is None:
                cell["bytes"], cell["path"] = Path(cell["path"]).read_bytes(), basename(cell["path"])
        return pa.array(cells, type=self.pa_type)


@dataclass
class Mask:
    """Feature type of masks, which are read as (height, width) uint8: 1 on the target, 0 off it, 255 ignored.

    A cell holds `packed` (see `masks.pack`), `merge` (see `masks.decode_segmentation`), and `where`, file and row for
    messages.
    """

    decode: bool = True
    id: str | None = field(default=None, repr=False)
    dtype: ClassVar[str] = "numpy.ndarray"
    pa_type: ClassVar[pa.DataType] = pa.struct(
        {"packed": pa.large_string(), "merge": pa.string(), "where": pa.string()}
    )
    _type: str = field(default="CrossVLTMask", init=False, repr=False)

    def __call__(self) -> pa.DataType:
        """The Arrow type of a cell."""
        return self.pa_type

    def flatten(self) -> "Mask":
        """Return itself: `Dataset.flatten` must not split a cell."""
        return self

    def encode_example(self, value: Any) -> dict[str, Any]:
        """Make a cell of a cell, a mask as rows have it (array or nested list), or a PIL image.

        Raises:
            ValueError: if it is not a mask.
        """
        if isinstance(value, dict) and "packed" in value:
            return value
        if isinstance(value, dict):  # as `datasets` encodes a PIL image
            value = open_picture(value)
        values = decode_mask(value, *value.size[::-1]) if isinstance(value, Image.Image) else np.asarray(value)
        if values.ndim != 2 or not np.isin(values, (0, 1, 255)).all():
            raise ValueError(
                f"A mask must be (height, width) of 0, 1 and (ignored) 255, got shape {values.shape} with values "
                f"up to {values.max(initial=0)}."
            )
        return {"packed": pack_mask(values), "merge": "union", "where": ""}

    def decode_example(self, value: Any, token_per_repo_id: dict[str, Any] | None = None) -> np.ndarray:
        """Decode the mask of a cell.

        Raises:
            OSError: if its file is missing or broken.
            ValueError: if it is broken; the message begins with file and row.
        """
        if not isinstance(value, dict):
            return value
        try:
            return unpack(value["packed"], value["merge"] or "union")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{value['where']}: {error}" if value["where"] else str(error)) from error

    def cast_storage(self, storage: pa.Array) -> pa.Array:
        """Make cells of stored cells, or of masks as nested lists or files."""
        if pa.types.is_struct(storage.type) and storage.type.get_field_index("packed") >= 0:
            return array_cast(storage, self.pa_type)
        cells = [None if cell is None else self.encode_example(cell) for cell in storage.to_pylist()]
        return pa.array(cells, type=self.pa_type)

    def embed_storage(self, storage: pa.Array, local_files: bool = True, **_: Any) -> pa.Array:
        """Read the files into the cells as run lengths of the same values, for data sets that leave this machine.

        Raises:
            OSError: if a file is missing or broken.
            ValueError: if it is no mask; the message begins with file and row.
        """
        cells = storage.to_pylist()
        for cell in cells if local_files else ():
            if cell is not None and is_file(cell["packed"]):
                cell["packed"] = pack_mask(self.decode_example(cell))
        return pa.array(cells, type=self.pa_type)


for _feature in (Picture, Mask):
    register(_feature)
