"""The photographs in memory, split into those to train on and those to validate on.

The table is a parquet file. A row is a photograph: `photo_id`, `image` (bytes of a file), `source`
("owner/repository@commit", or any name), `exhaustive` (whether all objects of the named classes are labelled) and
`objects`, a list of `class`, `kind` and `mask` (bytes of a PNG of the image's size). The kinds are "instance",
"component" (a connected part of a semantic label), "semantic" and "cutout" (a product on white, to be pasted).
"""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from crossvlt_hf.data.objects.composition import Background, cut_out


COCO = {"zzowenzz", "Obmutescence", "developer0hye", "enginbozaba"}  # whose files are parts of one data set
VALIDATION_PERCENT = 6
CUTOUT_SHARES = 0.012, 0.6  # of the picture, between which an object of a scene is cut out
NOT_CUT_OUT = {"skin", "hair"}
LEAST_BACKGROUND = 120  # pixels of the shorter side


class Photograph:
    """A photograph with its labelled objects.

    Attributes:
        image: (H, W, 3) uint8.
        masks: of the objects, (H, W) bool each.
        classes: their names.
        kinds: see the module.
        source: the name of the data set, of whose classes any could be labelled.
        exhaustive: whether all objects of the named classes are labelled.
        name: id.
    """

    def __init__(self, row: dict[str, Any]) -> None:
        self.image = np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB"))
        self.masks = [np.asarray(Image.open(io.BytesIO(entry["mask"])).convert("1")) for entry in row["objects"]]
        self.classes = [entry["class"] for entry in row["objects"]]
        self.kinds = [entry["kind"] for entry in row["objects"]]
        owner = row["source"].split("/")[0]
        self.source = "coco" if owner in COCO else owner
        self.owner, self.exhaustive, self.name = owner, row["exhaustive"], row["photo_id"]

    @property
    def is_validation(self) -> bool:
        """Whether a hash of its id keeps it from training."""
        return int(hashlib.sha256(self.name.encode()).hexdigest(), 16) % 100 < VALIDATION_PERCENT

    def cut_outs(self) -> list[Any]:
        """Its objects to be pasted: products, and of scenes those that the border does not cut."""
        product = "cutout" in self.kinds
        entries = zip(self.masks, self.classes, self.kinds, strict=True)
        chosen = [entry for entry in entries if product or (self.exhaustive and _is_whole(*entry))]
        found = (cut_out(self.image, mask, name) for mask, name, _ in chosen)
        return [cutout for cutout in found if cutout is not None]


def _is_whole(mask: np.ndarray, name: str, kind: str) -> bool:
    border = mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()
    least, most = CUTOUT_SHARES
    return kind != "semantic" and name not in NOT_CUT_OUT and not border and least < mask.mean() < most


@dataclass
class Part:
    """The photographs of a split.

    Args:
        natural: those with all objects labelled.
        rooms: those where some are not.
        cutouts: to be pasted.
        backgrounds: to paste on.
        weights: how often each of `natural` is drawn: oftener with many objects, and from a small source.
    """

    natural: list[Photograph] = field(default_factory=list)
    rooms: list[Photograph] = field(default_factory=list)
    cutouts: list[Any] = field(default_factory=list)
    backgrounds: list[Background] = field(default_factory=list)
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def of(cls, photographs: list[Photograph]) -> "Part":
        """Sort photographs by their uses."""
        products = [photo for photo in photographs if "cutout" in photo.kinds]
        scenes = [photo for photo in photographs if "cutout" not in photo.kinds]
        natural = [photo for photo in scenes if photo.exhaustive]
        owners = [photo.owner for photo in natural]
        weights = np.array([(1 + len(photo.classes)) ** 0.5 * owners.count(photo.owner) ** -0.25 for photo in natural])
        return cls(
            natural,
            [photo for photo in scenes if not photo.exhaustive],
            [cutout for photo in (*products, *scenes) for cutout in photo.cut_outs()],
            [
                Background(photo.image, frozenset(photo.classes))
                for photo in scenes
                if min(photo.image.shape[:2]) >= LEAST_BACKGROUND
            ],
            weights / weights.sum() if len(weights) else weights,
        )

    def count(self) -> dict[str, int]:
        """How much of each there is."""
        return {name: len(getattr(self, name)) for name in ("natural", "rooms", "cutouts", "backgrounds")}


class World:
    """All photographs of a table, in memory.

    Args:
        path: of the table.
        limit: how many photographs are read, evenly through the table; 0 for all.
        split: whether to keep a part for validation; else all photographs are both parts.

    Attributes:
        labels: the names of classes by data set.
        classes: all of them.
        parts: "train" and "validation".
    """

    def __init__(self, path: str | Path, limit: int = 0, split: bool = True) -> None:
        rows = pq.read_table(path).to_pylist()
        rows = rows[:: max(1, len(rows) // limit)] if limit else rows
        with ThreadPoolExecutor() as pool:
            photographs = list(pool.map(Photograph, rows))
        self.labels: dict[str, set[str]] = {}
        for photo in photographs:
            self.labels.setdefault(photo.source, set()).update(photo.classes)
        self.parts = {
            name: Part.of([photo for photo in photographs if not split or photo.is_validation == kept])
            for name, kept in (("train", False), ("validation", True))
        }

    @property
    def classes(self) -> list[str]:
        """The names of all classes."""
        return sorted(set().union(*self.labels.values()))

    def learn_labels(self, path: str | Path) -> None:
        """Add the classes of another table, so that sentences that fit nothing can name these too."""
        for row in pq.read_table(path, columns=["source", "objects"]).to_pylist():
            owner = row["source"].split("/")[0]
            names = self.labels.setdefault("coco" if owner in COCO else owner, set())
            names.update(entry["class"] for entry in row["objects"])

    def count(self) -> dict[str, dict[str, int]]:
        """How much of each there is in each part."""
        return {name: part.count() for name, part in self.parts.items()}
