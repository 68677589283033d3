"""The batches of a run, in an order that interruptions do not change."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from datasets import Dataset
from torch.utils.data import DataLoader

from ..data.pairs import Collator, ReferenceSampler, ShardedBatchSampler, TrainingPairs
from ..data.readable import Batch, BatchCollator, ReadablePairs
from ..processing_crossvlt import CrossVLTProcessor, counted
from ..system import ignore_signals
from .config import TrainingConfig
from .log import say


class StepBatches:
    """What the steps of a run train on, for this process.

    Args:
        config: of the run.
        datasets: of records, without the images held out.
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
                f"The data have {counted(len(self.pairs), 'reference')} to train on, less than "
                "`optimization.batch_size`."
            )

    def steps(self, first: int, end: int, processor: CrossVLTProcessor) -> Iterator[list[Batch]]:
        """The batches of the steps from `first` up to `end`, on the device: one for each accumulation.

        Raises:
            ValueError: if a reference cannot be read, unless such are to be skipped.
        """
        accumulation = self.config.optimization.accumulation
        while first < end:
            epoch, done = divmod(first, self.steps_per_epoch)
            loader = iter(self._loader(epoch, done * accumulation, processor))
            last = min(first - done + self.steps_per_epoch, end)
            for _ in range(first, last):
                yield [self._place(next(loader)) for _ in range(accumulation)]
            first = last

    def _loader(self, epoch: int, start: int, processor: CrossVLTProcessor) -> DataLoader:
        """The batches of an epoch from one on."""
        data, shared = self.config.data, self.accelerator
        self.pairs.set_epoch(epoch)
        self.sampler.set_epoch(epoch)
        order = ShardedBatchSampler(self.sampler, self.size, shared.process_index, shared.num_processes, start=start)
        collator = Collator(processor, data.masked_words, data.masked_patches, self.config.seed, epoch)
        return DataLoader(
            ReadablePairs(self.pairs, data.on_error),
            batch_sampler=order,
            collate_fn=BatchCollator(collator),
            num_workers=data.workers,
            worker_init_fn=ignore_signals,
            generator=torch.Generator(),  # else the start of a loader would draw from that of dropout
        )

    def _place(self, batch: Batch) -> Batch:
        """On the device. What could not be read is printed, or is an error if nothing took its place."""
        for sample in batch.broken:
            if not batch.inputs:
                raise ValueError(f"{sample}. Repair it, remove it, or set data.on_error=skip.")
            say(f"skipped: {sample}")
        return replace(batch, inputs=send_to_device(batch.inputs, self.accelerator.device))
