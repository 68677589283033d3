"""RefShapes as a `datasets.Dataset` whose scenes are drawn when they are read."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image

from .examples import Example, Families, Split, families_at, in_turn, make_scene


@dataclass
class SceneDecoder:
    """Draw the scenes of stored rows, those of one scene once: see `load_refshapes`."""

    split: Split
    side: int = 96
    seed: int = 0
    expressions: int = 1
    families: tuple[str, ...] | None = None
    count: tuple[int, int] = (3, 6)
    _drawn: tuple[int, list[Example]] | None = field(default=None, repr=False, compare=False)

    def scene(self, index: int) -> list[Example]:
        """The examples of a scene; the last one drawn is kept."""
        if self._drawn is None or self._drawn[0] != index:
            families = families_at(self.split, index, self.expressions, self.families)
            options: dict[str, Any] = {"side": self.side, "seed": self.seed, "count": self.count}
            self._drawn = index, make_scene(self.split, index, families=families, **options)
        return self._drawn[1]

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """Rows as `records` describes them; a selection of columns without the scene's number stays as it is."""
        if not {"scene", "number"} <= batch.keys():
            return batch
        examples = [self.scene(scene)[number] for scene, number in zip(batch["scene"], batch["number"], strict=True)]
        return {
            **{name: values for name, values in batch.items() if name not in ("scene", "number")},
            "image": [Image.fromarray(example.scene.image) for example in examples],
            "ann_ids": [list(map(str, example.targets)) for example in examples],
            "expressions": [[example.expression] for example in examples],
            "mask": [example.mask.astype(np.uint8) for example in examples],
            "has_target": [bool(example.targets) for example in examples],
            "family": [example.family for example in examples],
            "split": [self.split] * len(examples),
            "dataset": ["refshapes"] * len(examples),
        }


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
    """Scenes of RefShapes as records (see `crossvlt_hf.data.records`), `expressions` rows for each.

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

    Raises:
        ValueError: if there is no such split or family, or a number is out of range.
    """
    if scenes < 1 or not 1 <= expressions <= 3 or (family is not None and expressions > 1):
        raise ValueError(
            f"`scenes` is {scenes}, `expressions` {expressions}, `family` {family!r}; give at least one scene, one to "
            "three expressions, and one for a family of its own."
        )
    if family is not None and families is not None:
        raise ValueError(f"`family` is {family!r} and `families` {families!r}; give one of the two.")
    order: tuple[str, ...] | None = None if family is None else (family,)
    order = order if families is None else tuple(in_turn(families))
    decoder = SceneDecoder(split, side, seed, expressions, order, (count[0], count[1]))
    decoder.scene(0)  # checks the rest
    index, number = np.divmod(np.arange(scenes * expressions), expressions)
    columns = {
        "scene": index,
        "number": number,
        "image_id": [f"{split}-{seed}-{i}" for i in index],
        "ref_id": [f"{split}-{seed}-{i}-{n}" for i, n in zip(index, number, strict=True)],
        "num_expressions": np.ones(len(index), dtype=np.int32),
    }
    return Dataset.from_dict(columns).with_transform(decoder)
