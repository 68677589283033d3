"""Composed images as a `datasets.Dataset`, whose scenes are drawn when a row is read."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image

from ...system import check_integer, check_texts
from ..refshapes.families import MOST_SCENES
from .attributes import DescribedObject
from .composition import Background, ComposedScene, Composer, CutOut
from .engine import Expression, make_expressions
from .refer_options import FAMILIES


MOST_ATTEMPTS = 100  # scenes drawn for an index until one has the requested expressions
PATIENCE = 3  # attempts after which other families are accepted


@dataclass
class CompositionDecoder:
    """Decode stored rows by drawing their scenes, each once: see `load_compositions`."""

    composer: Composer
    split: str
    expressions: int
    families: Sequence[str]
    _drawn: tuple[int, ComposedScene, list[Expression]] | None = field(default=None, repr=False, compare=False)

    def scene(self, index: int) -> tuple[ComposedScene, list[Expression]]:
        """Draw a scene with its expressions; the last scene is cached.

        Raises:
            ValueError: if no scene has enough expressions with different targets.
        """
        if self._drawn is None or self._drawn[0] != index:
            self._drawn = index, *self._draw(index)
        return self._drawn[1], self._drawn[2]

    def _draw(self, index: int) -> tuple[ComposedScene, list[Expression]]:
        first = index * self.expressions
        wanted = [self.families[(first + n) % len(self.families)] for n in range(self.expressions)]
        for attempt in range(MOST_ATTEMPTS):
            scene = self.composer.scene(index, attempt)
            rng = np.random.default_rng([self.composer.seed, index, attempt, 1])
            found = self._choose(scene.describe(), rng, wanted, attempt >= PATIENCE)
            if len(found) == self.expressions:
                return scene, found
        raise ValueError(f"No scene of {MOST_ATTEMPTS} has {self.expressions} expressions of {', '.join(wanted)}.")

    def _choose(
        self, objects: list[DescribedObject], rng: np.random.Generator, wanted: list[str], any_family: bool
    ) -> list[Expression]:
        """Choose an expression of each family, all with different targets."""
        spare = [str(self.families[place]) for place in rng.permutation(len(self.families))] if any_family else []
        families = list(dict.fromkeys([*wanted, *spare]))
        found = make_expressions(objects, rng, families, labels=self.composer.labels, per_family=4)
        chosen: list[Expression] = []
        for family in [*wanted, *spare]:
            taken = {target for expression in chosen for target in expression.targets}
            fresh = (e for e in found if e.family == family and not taken & set(e.targets) and e not in chosen)
            if len(chosen) < self.expressions and (expression := next(fresh, None)) is not None:
                chosen.append(expression)
        return chosen

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """Return rows as described in `record`; columns without the numbers of scenes are returned unchanged."""
        if not {"scene", "number"} <= batch.keys():
            return batch
        drawn = [self.scene(int(scene)) for scene in batch["scene"]]
        examples = [(scene, found[number]) for (scene, found), number in zip(drawn, batch["number"], strict=True)]
        return {
            **{name: values for name, values in batch.items() if name not in ("scene", "number")},
            "image": [Image.fromarray(scene.image) for scene, _ in examples],
            "ann_ids": [list(map(str, expression.targets)) for _, expression in examples],
            "expressions": [[expression.text] for _, expression in examples],
            "mask": [scene.masks[list(e.targets)].any(axis=0).astype(np.uint8) for scene, e in examples],
            "has_target": [bool(expression.targets) for _, expression in examples],
            "family": [expression.family for _, expression in examples],
            "split": [self.split] * len(examples),
            "dataset": ["compositions"] * len(examples),
        }


def load_compositions(
    cutouts: Sequence[CutOut],
    backgrounds: Sequence[Background] = (),
    *,
    scenes: int = 1000,
    expressions: int = 1,
    size: int = 224,
    seed: int = 0,
    split: str = "train",
    families: Sequence[str] = FAMILIES,
    **options: Any,
) -> Dataset:
    """Composed scenes as a data set of records (see `crossvlt_hf.data.record`), `expressions` rows per scene.

    Args:
        cutouts: objects to paste: see `load_cutouts`, `cutouts_of`.
        backgrounds: images to paste them on: see `load_backgrounds`, `backgrounds_of`.
        scenes: number of scenes, at most 2 million.
        expressions: rows per scene, all with different targets; at most 3.
        size: side of the images, in pixels, from 32 to 4096.
        seed: of the scenes.
        split: value of `split` in the rows; it does not affect the scenes.
        families: used in turn; a family that fits none of several scenes is replaced by another.
        options: of `Composer`.

    Raises:
        ValueError: if there is no such family, or a number is out of range.
    """
    check_integer("scenes", scenes, 1, MOST_SCENES)
    check_integer("expressions", expressions, 1, 3)
    check_texts("families", families)
    composer = Composer(cutouts, backgrounds, size, seed, **options)
    decoder = CompositionDecoder(composer, split, expressions, tuple(families))
    decoder.scene(0)  # checks the rest
    index, number = np.divmod(np.arange(scenes * expressions), expressions)
    columns = {
        "scene": index,
        "number": number,
        "image_id": [f"{seed}-{i}" for i in index],
        "ref_id": [f"{seed}-{i}-{n}" for i, n in zip(index, number, strict=True)],
        "num_expressions": np.ones(len(index), dtype=np.int32),
    }
    return Dataset.from_dict(columns).with_transform(decoder)
