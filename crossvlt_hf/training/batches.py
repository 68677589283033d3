"""The batches of a run, in an order that does not depend on interruptions."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from datasets import Dataset
from torch.utils.data import DataLoader

from ..data.pairs import Collator, ReferenceSampler, ShardedBatchSampler, TrainingPairs
from ..data.readable import Batch, BatchCollator, ReadablePairs
from ..processing_crossvlt import CrossVLTProcessor
from ..system import iterate_loader, start_worker
from .config import TrainingConfig
from .log import say


class StepBatches:
    """The batches of a run, for this process.

    Args:
        config: of the run.
        datasets: of records, without excluded images.
        accelerator: of the run.

    Raises:
        ValueError: if there are fewer references than `optimization.batch_size`.
    """

    def __init__(self, config: TrainingConfig, datasets: Sequence[Dataset], accelerator: Accelerator) -> None:
        options = config.optimization
        self.config, self.accelerator = config, accelerator
        self.size = options.batch_size // (options.accumulation * accelerator.num_processes)
        self.pairs = TrainingPairs(datasets, seed=config.seed)
        self.sampler = ReferenceSampler(datasets, group=config.data.group, seed=config.seed)
        self.steps_per_epoch = len(self.pairs) // options.batch_size
        if not self.steps_per_epoch:
            raise ValueError(
                f"There must be at least `optimization.batch_size` references to train on, got {len(self.pairs)}."
            )

    def steps(self, first: int, end: int, processor: CrossVLTProcessor) -> Iterator[list[Batch]]:
        """Yield the batches of each step from `first` up to `end`, on the device: one per accumulation.

        Raises:
            ValueError: if a reference is unreadable, unless `data.on_error` is "skip".
        """
        accumulation = self.config.optimization.accumulation
        while first < end:
            epoch, done = divmod(first, self.steps_per_epoch)
            loader = iterate_loader(self._loader(epoch, done * accumulation, processor))
            last = min(first - done + self.steps_per_epoch, end)
            for _ in range(first, last):
                yield [self._place(next(loader)) for _ in range(accumulation)]
            first = last

    def _loader(self, epoch: int, start: int, processor: CrossVLTProcessor) -> DataLoader:
        """Load the batches of an epoch, starting at one of them."""
        data, shared = self.config.data, self.accelerator
        self.pairs.set_epoch(epoch)
        self.sampler.set_epoch(epoch)
        order = ShardedBatchSampler(self.sampler, self.size, shared.process_index, shared.num_processes, start=start)
        collator = Collator(
            processor, data.masked_words, data.masked_patches, self.config.seed, epoch, share_images=data.group > 1
        )
        return DataLoader(
            ReadablePairs(self.pairs, data.on_error),
            batch_sampler=order,
            collate_fn=BatchCollator(collator),
            num_workers=data.workers,
            worker_init_fn=start_worker,
            generator=torch.Generator(),  # a loader would otherwise draw from the generator of dropout
        )

    def _place(self, batch: Batch) -> Batch:
        """Move a batch to the device; print unreadable references, or raise if they could not be replaced."""
        for sample in batch.broken:
            if not batch.inputs:
                raise ValueError(f"{sample}. Repair it, remove it, or set data.on_error=skip.")
            say(f"skipped: {sample}")
        # The numbers of expressions stay on the CPU, so that a GPU does not wait for them
        inputs = send_to_device(batch.inputs, self.accelerator.device, skip_keys="expressions_per_image")
        return replace(batch, inputs=inputs)
