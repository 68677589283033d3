"""What the network reads: photographs, compositions and RefShapes, with sentences that rules make while it reads."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from network import MAX_LENGTH, SIDE
from photographs import World
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from crossvlt_hf.data.objects.attributes import describe
from crossvlt_hf.data.objects.composition import Composer
from crossvlt_hf.data.objects.engine import FAMILIES, make_expressions
from crossvlt_hf.data.refshapes.examples import make_scene


SHARES = {"natural": 0.36, "rooms": 0.10, "composed": 0.36, "refshapes": 0.18}
SHAPE_FAMILIES = ("attribute", "absolute", "relation", "ordinal", "superlative", "negation", "plural", "no_target")
SHAPE_SIDES = {64: 0.1, 80: 0.1, 96: 0.4, 112: 0.15, 128: 0.15, 224: 0.1}  # and how often
COMPOSER_SHARES = (0.5, 0.3, 0.2)
LEAST_AREA = {"train": 0.008, "validation": 0.012}  # of the picture, of a target
NEXT_TRY = 7919  # from an index without a sentence to another one


class Sample(NamedTuple):
    """An image and K sentences.

    Args:
        image: (S, S, 3) uint8.
        masks: (K, S, S) bool, empty where a sentence fits nothing.
        texts: the sentences.
        families: their kinds.
        source: a name of `SHARES`.
    """

    image: np.ndarray
    masks: np.ndarray
    texts: list[str]
    families: list[str]
    source: str


def loosen(text: str, rng: np.random.Generator) -> str:
    """A sentence as people shorten it, sometimes."""
    if rng.random() < 0.15:
        text = re.sub(r"^the ", "", text)
    if rng.random() < 0.08:
        text = re.sub(r" (on|at|from) the (left|right|top|bottom)\b", r" \1 \2", text)
    return text


def resize(image: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, 3) and masks (N, H, W) of the side that is read."""
    picture = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    rows, columns = (((np.arange(SIDE) + 0.5) * side / SIDE).astype(int) for side in masks.shape[1:])
    return np.asarray(picture), masks[:, rows][:, :, columns]


def crop(image: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A part of 30 to 100 % of the picture."""
    height, width = image.shape[:2]
    share, aspect = rng.uniform(0.3, 1.0), math.exp(rng.uniform(-0.3, 0.3))
    high = min(height, round(height * math.sqrt(share / aspect)))
    wide = min(width, round(width * math.sqrt(share * aspect)))
    top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
    window = slice(top, top + high), slice(left, left + wide)
    return image[window], masks[:, window[0], window[1]]


class Mixture(IterableDataset):
    """Batches of samples: without end for training, a fixed list for validation.

    A batch holds `images` (N, S, S, 3) uint8, `labels` (N, K, S, S / 8) uint8, packed bits, `input_ids` and
    `attention_mask` (N, K, T) int64, and `about`, source, family and text of each sentence.

    Args:
        world: the photographs.
        split: "train" or "validation".
        tokenizer: of the sentences.
        images: of a batch.
        expressions: of an image, K.
        seed: of all that is drawn.
        total: of each source's images in validation (a quarter of it for rooms); None for training.
        sources: which are listed in validation; all by default.

    Attributes:
        shares: of each source in training; a subclass may have others.
    """

    shares = SHARES

    def __init__(
        self,
        world: World,
        split: str,
        tokenizer: PreTrainedTokenizerBase,
        images: int,
        expressions: int,
        seed: int,
        total: int | None = None,
        sources: Sequence[str] | None = None,
    ) -> None:
        self.sources = list(SHARES) if sources is None else sources
        self.world, self.split, self.tokenizer = world, split, tokenizer
        self.images, self.expressions, self.seed, self.total = images, expressions, seed, total
        self.part, self.trains = world.parts[split], total is None
        self._composers: list[Composer] = []

    def __iter__(self) -> Iterator[dict[str, Any]]:
        torch.set_num_threads(1)
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        self._composers = self._make_composers()
        return self._endless(worker) if self.trains else self._listed(worker, workers)

    def _make_composers(self) -> list[Composer]:
        cutouts, backgrounds = self.part.cutouts, self.part.backgrounds
        kinds: list[dict[str, Any]] = [
            {"count": (2, 5)},
            {"count": (2, 4), "plain": 0.3, "scale": (0.25, 0.6)},
            {"count": (4, 8), "scale": (0.12, 0.35)},
        ]
        return [Composer(cutouts, backgrounds, SIDE, self.seed + shift, **kind) for shift, kind in enumerate(kinds)]

    def _endless(self, worker: int) -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng([self.seed, worker])
        names = [name for name in self.shares if name in ("composed", "refshapes") or getattr(self.part, name)]
        shares = np.array([self.shares[name] for name in names])
        shares /= shares.sum()
        while True:
            yield self.collate([self.draw(str(rng.choice(names, p=shares)), rng) for _ in range(self.images)])

    def _listed(self, worker: int, workers: int) -> Iterator[dict[str, Any]]:
        total = self.total or 0
        todo = [(name, index) for name in self.sources for index in range(total // 4 if name == "rooms" else total)]
        batches = [todo[start : start + self.images] for start in range(0, len(todo), self.images)]
        for entries in batches[worker::workers]:
            yield self.collate(
                [
                    self.draw(name, np.random.default_rng([self.seed, list(SHARES).index(name), index]), index)
                    for name, index in entries
                ]
            )

    def draw(self, source: str, rng: np.random.Generator, index: int | None = None) -> Sample:
        """A sample of a source, the next that has a sentence; of an index, or any."""
        while True:
            found = getattr(self, f"draw_{source}")(rng, index)
            if found is not None:
                return found
            index = None if index is None else index + NEXT_TRY

    def draw_natural(self, rng: np.random.Generator, index: int | None) -> Sample | None:
        """A photograph with all objects labelled."""
        photographs = self.part.natural
        number = int(rng.choice(len(photographs), p=self.part.weights)) if index is None else index % len(photographs)
        return self._show(photographs[number], rng, "natural")

    def draw_rooms(self, rng: np.random.Generator, index: int | None) -> Sample | None:
        """A photograph where some objects are not labelled."""
        photographs = self.part.rooms
        number = int(rng.integers(len(photographs))) if index is None else index % len(photographs)
        return self._show(photographs[number], rng, "rooms")

    def _show(self, photo: Any, rng: np.random.Generator, source: str) -> Sample | None:
        image, masks = photo.image, np.stack(photo.masks)
        whole = masks.sum((1, 2))
        if self.trains and rng.random() < 0.8:
            image, masks = crop(image, masks, rng)
        left = masks.sum((1, 2)) / np.maximum(whole, 1)
        kept = left > 0.02
        if not kept.any():
            return None
        image, masks = resize(image, masks[kept])
        classes = [name for name, keep in zip(photo.classes, kept, strict=True) if keep]
        if self.trains and rng.random() < 0.5:
            image, masks = image[:, ::-1], masks[:, :, ::-1]
        objects = describe(np.ascontiguousarray(image), masks, classes, crowds=[share < 0.6 for share in left[kept]])
        labels = self.world.labels[photo.source]
        return self._say(image, masks, objects, rng, source, exhaustive=photo.exhaustive, labels=labels)

    def draw_composed(self, rng: np.random.Generator, index: int | None) -> Sample | None:
        """Cut-outs on a photograph or a plain ground."""
        number = int(rng.choice(len(COMPOSER_SHARES), p=COMPOSER_SHARES)) if index is None else index % 2
        scene = self._composers[number].scene(int(rng.integers(2**40)) if index is None else index)
        return self._say(scene.image, scene.masks, scene.describe(), rng, "composed", labels=self.world.classes)

    def draw_refshapes(self, rng: np.random.Generator, index: int | None) -> Sample:
        """Drawn shapes, of several sides."""
        side = int(rng.choice(list(SHAPE_SIDES), p=list(SHAPE_SIDES.values()))) if self.trains else 96
        families = self.shape_families(rng)
        number = int(rng.integers(2**40)) if index is None else index
        examples = make_scene(self.split, number, families=families, side=side, seed=self.seed)
        image, masks = resize(examples[0].scene.image, np.stack([example.mask for example in examples]))
        chosen = list(range(len(examples)))
        while len(chosen) < self.expressions:
            chosen.append(int(rng.integers(len(examples))))
        texts, kinds = zip(*((examples[i].expression, examples[i].family) for i in chosen), strict=True)
        return Sample(image, masks[chosen], list(texts), list(kinds), "refshapes")

    def shape_families(self, rng: np.random.Generator) -> list[str]:
        """The kinds of expression of a drawn scene."""
        return [str(family) for family in rng.permutation(SHAPE_FAMILIES)[: min(self.expressions, 3)]]

    def _say(
        self,
        image: np.ndarray,
        masks: np.ndarray,
        objects: Any,
        rng: np.random.Generator,
        source: str,
        **options: Any,
    ) -> Sample | None:
        """Sentences about objects, at most one of which fits nothing; None if there is no other."""
        families = [str(family) for family in rng.permutation(FAMILIES)]
        if rng.random() < 0.55:
            families.remove("no_target")
        options |= {"least_area": LEAST_AREA[self.split], "per_family": 2 if len(masks) > 3 else 1, "tries": 40}
        found = make_expressions(objects, rng, families, **options)
        if all(entry.family == "no_target" for entry in found):
            return None
        mixed = [found[i] for i in rng.permutation(len(found))]
        nothing = [entry for entry in mixed if entry.family == "no_target"][:1]
        chosen = [*nothing, *(entry for entry in mixed if entry.family != "no_target")][: self.expressions]
        while len(chosen) < self.expressions:
            chosen.append(chosen[int(rng.integers(len(chosen)))])
        labels = np.stack([masks[list(entry.targets)].any(0) for entry in chosen])
        texts = [loosen(entry.text, rng) if self.trains else entry.text for entry in chosen]
        return Sample(image, labels, texts, [entry.family for entry in chosen], source)

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        """A batch; see the class."""
        texts = [text for sample in samples for text in sample.texts]
        encoded = self.tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_LENGTH)
        shape = (len(samples), self.expressions, -1)
        about = [
            (sample.source, *entry) for sample in samples for entry in zip(sample.families, sample.texts, strict=True)
        ]
        return {
            "images": torch.from_numpy(np.stack([sample.image for sample in samples])),
            "labels": torch.from_numpy(np.packbits(np.stack([sample.masks for sample in samples]), axis=-1)),
            "input_ids": torch.tensor(encoded["input_ids"]).view(shape),
            "attention_mask": torch.tensor(encoded["attention_mask"]).view(shape),
            "about": about,
        }
