"""From references to inputs of a model: pairs of an image and one expression, their order, and batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from ..processing_crossvlt import IGNORED, CrossVLTProcessor


class _SharedEpoch:
    """An epoch in shared memory: workers that hold a copy of this object see changes."""

    def __init__(self) -> None:
        self.value = torch.tensor(-1).share_memory_()

    def __setstate__(self, state: dict[str, Tensor]) -> None:
        self.__dict__.update(state)
        self.value.share_memory_()  # a copy outside of a worker gets its own memory

    def get(self) -> int | None:
        """Return the epoch; None if it was not set."""
        return None if self.value < 0 else int(self.value)

    def set(self, epoch: int) -> None:
        """Set it for all processes."""
        self.value.fill_(epoch)


def reference_name(row: dict[str, Any], index: int) -> str:
    """Data set and id of a reference; its index if the data set has no ids."""
    return f"{row.get('dataset', '')} {row.get('ref_id', f'number {index}')}".strip()


def has_same_image(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two rows have the same pixels; pixels are compared only if the ids of data set and image are equal."""
    return all(row.get(name) == other.get(name) for name in ("dataset", "image_id")) and row["image"] == other["image"]


class TrainingPairs(TorchDataset):
    """Every reference once per epoch, with one of its expressions chosen at random.

    After `set_epoch` (`Trainer` and Accelerate call it), the choice depends only on seed, epoch and index, not on
    processes, workers or interruptions; workers of a `DataLoader` follow, persistent ones too. Before that, it is
    drawn from PyTorch's random state whenever a reference is read.

    Args:
        datasets: of records (see `crossvlt_hf.data.record`), concatenated.
        seed: of the choice.
    """

    def __init__(self, datasets: Sequence[Dataset], seed: int = 0) -> None:
        self.datasets, self.seed, self._epoch = list(datasets), seed, _SharedEpoch()
        self.starts = np.cumsum([0, *map(len, self.datasets)])

    @property
    def epoch(self) -> int | None:
        """The epoch; None until it is set."""
        return self._epoch.get()

    def set_epoch(self, epoch: int) -> None:
        """Choose again for this epoch, also in workers."""
        self._epoch.set(epoch)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def name(self, index: int) -> str:
        """Data set and id of a reference, without decoding it."""
        source = int(np.searchsorted(self.starts, index, side="right")) - 1
        dataset = self.datasets[source].with_format(None)
        named = dataset.select_columns([name for name in ("dataset", "ref_id") if name in dataset.column_names])
        return reference_name(named[index - int(self.starts[source])], index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Rows with `expression` and `epoch`, which is a random number if no epoch was set."""
        return [self._pair(int(index)) for index in indices]

    def _pair(self, index: int) -> dict[str, Any]:
        source = int(np.searchsorted(self.starts, index, side="right")) - 1
        row = dict(self.datasets[source][index - int(self.starts[source])])
        epoch = self.epoch
        if epoch is None:
            epoch = int(torch.randint(2**32, 2**63 - 1, ()))
        expressions = row.pop("expressions")
        chosen = np.random.default_rng([self.seed, epoch, index]).integers(len(expressions))
        return {**row, "expression": expressions[chosen], "index": index, "epoch": epoch}


class EvaluationPairs(TorchDataset):
    """Every expression of every reference, in order.

    Args:
        dataset: of records (see `crossvlt_hf.data.record`).
        distractors: whether rows have `distractor`, the mask of the next or previous reference if it is to the same
            image, else None.
    """

    def __init__(self, dataset: Dataset, distractors: bool = False) -> None:
        self.dataset = dataset
        images = np.asarray(dataset.with_format(None)["image_id"][:]) if distractors else np.arange(len(dataset))
        self.neighbour = _neighbours(images)
        counts = np.asarray(dataset.with_format(None)["num_expressions"][:])
        self.reference = np.repeat(np.arange(len(dataset)), counts)
        self.number = np.arange(len(self.reference)) - np.repeat(np.cumsum(counts) - counts, counts)

    def __len__(self) -> int:
        return len(self.reference)

    def texts(self) -> list[str]:
        """The expression of every pair, without reading images."""
        return [text for texts in self.dataset.with_format(None)["expressions"][:] for text in texts]

    def images(self) -> list[str]:
        """The image id of every pair."""
        images = self.dataset.with_format(None)["image_id"][:]
        return [images[reference] for reference in self.reference]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"There is no pair {index}; there are {len(self)}.")
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Rows with `expression`; a reference that occurs several times in `indices` is decoded once."""
        references = self.reference[list(indices)]
        wanted = np.unique(np.r_[references, self.neighbour[references]]).tolist()
        rows = {number: self.dataset[number] for number in wanted}
        return [self._pair(rows, reference, index) for reference, index in zip(references, indices, strict=True)]

    def _pair(self, rows: dict[int, dict[str, Any]], reference: int, index: int) -> dict[str, Any]:
        row, neighbour = dict(rows[reference]), self.neighbour[reference]
        expression = row.pop("expressions")[self.number[index]]
        other = rows[neighbour]
        same = neighbour == reference or (row["ann_ids"] and other["ann_ids"] == row["ann_ids"])
        distractor = None if same else other["mask"]
        return {**row, "expression": expression, "index": int(index), "distractor": distractor}


def _neighbours(images: np.ndarray) -> np.ndarray:
    """For each row, the next row if it has the same image, else the previous one if it has, else the row itself."""
    own = np.arange(len(images))
    follows = np.r_[False, images[1:] == images[:-1]]
    precedes = np.r_[follows[1:], False]
    return np.where(precedes, own + 1, np.where(follows, own - 1, own))


class ReferenceSampler(Sampler[int]):
    """Shuffle references by seed and epoch, keeping `group` references of the same image together.

    Two expressions with different targets in one image teach the model to read the words.

    Args:
        datasets: those of `TrainingPairs`.
        group: how many references of an image to keep together, if it has that many.
        seed: of the order.
    """

    def __init__(self, datasets: Sequence[Dataset], group: int = 1, seed: int = 0) -> None:
        self.group, self.seed, self.epoch = group, seed, 0
        self.length = sum(map(len, datasets))
        self.images = np.arange(self.length) if group == 1 else _image_numbers(datasets)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle again for this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self.length)
        if self.group > 1:
            # Bring the references of an image together, cut them into groups, and shuffle these
            order = order[np.argsort(self.images[order], kind="stable")]
            images = self.images[order]
            first = np.flatnonzero(np.r_[True, images[1:] != images[:-1]])
            place = np.arange(self.length) - np.repeat(first, np.diff(np.r_[first, self.length]))
            group = np.cumsum(place % self.group == 0) - 1
            order = order[np.argsort(rng.permutation(group[-1] + 1)[group], kind="stable")]
        yield from order.tolist()


class ShardedBatchSampler(Sampler[list[int]]):
    """The batches of one process in an epoch, from any batch on.

    Batch b of process p of n holds the indices from (b * n + p) * batch_size on, so n processes together read the same
    indices at each step as one process with n times the batch size. Indices that do not fill a batch of every process
    are left out of the epoch.

    Args:
        sampler: the order of all indices.
        batch_size: of one process.
        process: index of this process.
        processes: number of processes.
        start: the first batch, to resume within an epoch.
    """

    def __init__(
        self, sampler: ReferenceSampler, batch_size: int, process: int = 0, processes: int = 1, start: int = 0
    ) -> None:
        self.sampler, self.batch_size, self.process, self.processes = sampler, batch_size, process, processes
        self.start = start

    def __len__(self) -> int:
        return len(self.sampler) // (self.batch_size * self.processes) - self.start

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.sampler)
        for batch in range(self.start, self.start + len(self)):
            first = (batch * self.processes + self.process) * self.batch_size
            yield order[first : first + self.batch_size]


def _image_numbers(datasets: Sequence[Dataset]) -> np.ndarray:
    """A number for the image of every reference."""
    names = [f"{n}/{name}" for n, data in enumerate(datasets) for name in data.with_format(None)["image_id"][:]]
    return np.unique(names, return_inverse=True)[1]


@dataclass
class Collator:
    """Make a batch of pairs.

    Args:
        processor: of the model.
        masked_words: share of the tokens to replace by [MASK] (training only).
        masked_patches: share of the cells of an 8x8 grid over the image to make grey (training only).
        seed: of the masking, which also depends on index and epoch of the pair.
        epoch: replaces that of the pair.
        share_images: give each image once to neighbouring pairs that have it, with `expressions_per_image`, so that
            the model computes its first stage once; not with `masked_patches`, which differ between pairs. `Trainer`
            takes the number of images for that of pairs.

    Masking is the augmentation of MaskRIS (Lee et al., 2024).
    """

    processor: CrossVLTProcessor
    masked_words: float = 0.0
    masked_patches: float = 0.0
    seed: int = 0
    epoch: int | None = None
    share_images: bool = False

    def __call__(self, pairs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Tensors of the model's forward: pixel_values, input_ids, attention_mask, labels, ..."""
        groups = self._by_image(pairs)
        batch: Any = self.processor(
            [group[0]["image"] for group in groups],
            [[pair["expression"] for pair in group] for group in groups],
            segmentation_maps=[pair["mask"] for pair in pairs],
            ignore_index=IGNORED,  # in records 255 is always ignored, whatever the setting of the processor
            return_tensors="pt",
        )
        batch.pop("original_sizes", None)
        if self.masked_words or self.masked_patches:
            for row, pair in enumerate(pairs):
                epoch = pair.get("epoch", 0) if self.epoch is None else self.epoch
                # The last number makes it independent of the choice of the expression
                self._mask(batch, row, np.random.default_rng([self.seed, epoch, pair["index"], 1]))
        return dict(batch)

    def _by_image(self, pairs: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """Neighbouring pairs that share an image; each pair alone if images are not shared."""
        groups: list[list[dict[str, Any]]] = []
        for pair in pairs:
            if self.share_images and not self.masked_patches and groups and has_same_image(groups[-1][0], pair):
                groups[-1].append(pair)
            else:
                groups.append([pair])
        return groups

    def _mask(self, batch: dict[str, Tensor], row: int, rng: np.random.Generator) -> None:
        tokenizer, ids = self.processor.tokenizer, batch["input_ids"]
        special = torch.isin(ids[row], torch.tensor(tokenizer.all_special_ids))
        words = torch.from_numpy(rng.random(ids.shape[1]) < self.masked_words)
        ids[row, words & ~special] = tokenizer.mask_token_id
        if not self.masked_patches:  # pairs may share an image
            return
        height, width = batch["pixel_values"].shape[-2:]
        cells = torch.from_numpy(rng.random((8, 8)) < self.masked_patches)
        rows, columns = torch.arange(height) * 8 // height, torch.arange(width) * 8 // width
        batch["pixel_values"][row, :, cells[rows][:, columns]] = 0.0
