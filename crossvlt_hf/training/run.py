"""A training run: its steps, checkpoints, evaluations, and how it goes on after an interruption."""

import math
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    broadcast,
    broadcast_object_list,
    gather_object,
    send_to_device,
    set_seed,
    tqdm,
)
from huggingface_hub import create_repo
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from ..data.pairs import Collator, ReferenceSampler, ShardedBatchSampler, TrainingPairs
from ..data.readable import Batch, BatchCollator, ReadablePairs
from ..evaluation import EvaluationOptions, describe_reading, evaluate
from ..evidence import Evidence
from ..hub import publish
from ..interruption import EndNow, Interruption, InterruptionError, ignore_signals
from ..loading import describe_hardware
from ..metrics import ReferringSegmentationMetric
from ..modeling_crossvlt import CrossVLTModel
from ..processing_crossvlt import counted
from ..visualization import training_curves
from .checkpoints import is_whole, list_checkpoints, prune, put_in_place, recover, seal, sweep, write_whole
from .config import TrainingConfig, check_same_run, load_config
from .console import say, without_bars
from .log import append, best_score, evaluation_line, is_evaluated, read_log, rewind
from .optimization import build_average, build_optimizer, build_schedule, loss_counts, normalised_loss
from .pictures import draw_predictions
from .start import build_model, check_config, load_datasets, load_training_data
from .summary import count_shared_images, describe_model, describe_run, validation_report


class Progress:
    """Where a run is; kept in its checkpoints."""

    def __init__(self) -> None:
        self.step = 0
        self.skipped = 0  # references that could not be read, over all processes
        self.sums: dict[str, Tensor] = {}  # of the losses of the steps since the last line of the log
        self.summed = 0  # how many these are

    def add(self, losses: dict[str, Tensor]) -> None:
        """Take a step's losses into the means."""
        before = {name: value.to(losses[name].device) for name, value in self.sums.items()}
        self.sums = {name: before.get(name, 0.0) + value for name, value in losses.items()}
        self.summed += 1

    def take_means(self) -> dict[str, Tensor]:
        """The means of the losses since the last call."""
        means = {name: value / self.summed for name, value in self.sums.items()}
        self.sums, self.summed = {}, 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """For Accelerate."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """For Accelerate."""
        vars(self).update(state)


class TrainingRun:
    """Training as a configuration says, alone or as one of several processes under `accelerate launch`.

    In its folder: `config.yaml`; `log.jsonl`, a line for every logged step and evaluation; `checkpoints/step-N`, all
    that is needed to go on bit by bit; `best`, the weights with the best overall IoU on the validation data, and
    `last`, both with their processor, for `from_pretrained`; `pictures`, predictions on validation data; at the end
    `curves.png`, where matplotlib is installed.

    Args:
        config: of the run.
        resume: whether to go on from the last whole checkpoint in the folder.

    Raises:
        OSError: if data or weights are missing.
        ValueError: if the folder holds another run, or settings do not fit each other.
    """

    def __init__(self, config: TrainingConfig, *, resume: bool = False) -> None:
        check_config(config)
        self.config, self.folder = config, Path(config.output.folder)
        self.log_path = self.folder / "log.jsonl"
        self.accelerator = Accelerator(
            mixed_precision=config.optimization.mixed_precision,
            log_with=config.output.trackers or None,
            project_dir=self.folder,
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
        self._check_processes()
        self.interruption = Interruption()
        self.checkpoints = self._whole_checkpoints()
        self._check_folder(resume)
        torch.set_flush_denormal(True)  # tiny gradients would otherwise slow the CPU down tenfold
        self._build_data()
        set_seed(config.seed)
        self._build_model()
        self._build_optimization()
        set_seed(config.seed, device_specific=True)  # dropout of its own in every process
        self.progress, self.asked_to_end = Progress(), False
        self.accelerator.register_for_checkpointing(self.schedule, self.progress)
        if self.average is not None:
            self.accelerator.register_for_checkpointing(self.average)
        if self.checkpoints:
            self._load_checkpoint(self.checkpoints[-1])
        if self.progress.step > self.steps:
            raise ValueError(
                f"The run in {self.folder} is at step {self.progress.step} and must be given at least as many, got "
                f"{self.steps}."
            )
        self._prepare_folder()

    # ---- building

    def _check_processes(self) -> None:
        """Whether Accelerate knows of all the processes that were launched."""
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if launched != self.accelerator.num_processes:
            raise ValueError(
                f"{launched} processes were launched, but Accelerate joins {self.accelerator.num_processes}; on the "
                "CPU set ACCELERATE_USE_CPU=true and use examples/accelerate/cpu.yaml. FSDP needs GPUs."
            )

    def _whole_checkpoints(self) -> list[Path]:
        """Those to go on from; the last ones may have been damaged since they were written."""
        found = list_checkpoints(self.folder / "checkpoints")
        whole = [checkpoint for checkpoint in found if is_whole(checkpoint)]
        for checkpoint in found:
            if checkpoint not in whole and self.accelerator.is_main_process:
                say(f"{checkpoint} is damaged and left aside.")
        if found and not whole:
            raise ValueError(
                f"All checkpoints in {self.folder} are damaged; give another output.folder to start anew."
            )
        return whole

    def _check_folder(self, resume: bool) -> None:
        if self.checkpoints and not resume:
            raise ValueError(f"{self.folder} holds checkpoints of a run; give --resume, or another output.folder.")
        if self.checkpoints:
            check_same_run(self.config, load_config(self.folder / "config.yaml"))
        sharded = self.accelerator.distributed_type == DistributedType.FSDP
        if sharded and self.config.optimization.ema_decay is not None:
            raise ValueError("`optimization.ema_decay` needs whole weights, which FSDP has not; give null.")

    def _build_model(self) -> None:
        options = self.config.optimization
        with without_bars():
            self.model, self.processor = build_model(self.config.model, self.pairs.datasets)
        if self.accelerator.is_main_process:
            say(describe_reading(self.processor, self.pairs.datasets))
        if options.sync_batch_norm and self.accelerator.num_processes > 1 and self.accelerator.device.type == "cuda":
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)

    def _build_data(self) -> None:
        data, options = self.config.data, self.config.optimization
        datasets = load_training_data(data)
        self.batch_size = options.batch_size // (options.accumulation * self.accelerator.num_processes)
        self.pairs = TrainingPairs(datasets, seed=self.config.seed)
        self.sampler = ReferenceSampler(datasets, group=data.group, seed=self.config.seed)
        self.steps_per_epoch = len(self.pairs) // options.batch_size
        if not self.steps_per_epoch:
            raise ValueError(
                f"The data have {counted(len(self.pairs), 'reference')} to train on, less than "
                "`optimization.batch_size`."
            )
        self.steps = options.max_steps or options.epochs * self.steps_per_epoch
        self.every = self.config.output.evaluation_steps or self.steps_per_epoch
        self.log_every = self.config.output.log_steps or min(50, max(1, self.steps // 20))
        self.validation = load_datasets(data.validation, data.root)

    def _build_optimization(self) -> None:
        options = self.config.optimization
        self.average = build_average(self.model, options.ema_decay)
        if self.average is not None:
            self.average.to(self.accelerator.device)
        optimizer = build_optimizer(self.model, options)
        self.network, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.schedule = build_schedule(self.optimizer.optimizer, options, self.steps)

    def _load_checkpoint(self, checkpoint: Path) -> None:
        """Weights, optimizer, schedule, averages, and the random state of every process."""
        written = len(list(checkpoint.glob("random_states_*.pkl")))
        if written != self.accelerator.num_processes:
            raise ValueError(
                f"{checkpoint} was written by {written} processes, and there are {self.accelerator.num_processes}; go "
                "on with as many, or start anew from its weights."
            )
        self.accelerator.load_state(str(checkpoint))

    def _prepare_folder(self) -> None:
        """Undo what an interruption left behind, and note the configuration."""
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in ("best", "last"):
                recover(self.folder / name)
            sweep(self.folder / "checkpoints")
            rewind(self.log_path, self.progress.step)
            self.config.save(self.folder / "config.yaml")
            if self.config.output.push_to_hub:
                create_repo(self.config.output.push_to_hub, exist_ok=True)  # rather fail now than at the end

    # ---- running

    def run(self) -> dict[str, Any]:
        """Train to the end.

        Returns:
            The metrics of the last evaluation; empty without validation data.

        Raises:
            FloatingPointError: if the loss is not finite.
            InterruptionError: if the process is asked to end, after a checkpoint.
            OSError: if something cannot be written; the checkpoints that are there stay whole.
            ValueError: if a reference cannot be read, unless such are to be skipped.
        """
        with self.interruption:
            try:
                return self._run()
            except EndNow:
                self._end_early()

    def _run(self) -> dict[str, Any]:
        self.accelerator.init_trackers("crossvlt", config={"seed": self.config.seed, "steps": self.steps})
        metrics = self._evaluate_if_due()  # not if that of the checkpoint was interrupted
        with tqdm(total=self.steps, initial=self.progress.step, desc="training", mininterval=1.0) as bar:
            self._start_clock()
            self._train_mode()
            for batches in self._batches():
                self.progress.add(self._step(batches))
                bar.update()
                if self._is_due(self.log_every) or self._is_due(self.every):
                    bar.set_postfix(loss=f"{self._log_steps():.3f}", refresh=False)
                intervals = self.every, self.config.output.checkpoint_steps
                saves = self._is_asked_to_end() or any(map(self._is_due, intervals))
                if saves:
                    self.save_checkpoint()
                if self._is_due(self.every):
                    metrics = self._evaluate_if_due()
                    self._start_clock()
                if saves and self._is_asked_to_end() and self.progress.step < self.steps:
                    self._end_early()
        self._finish()
        return metrics

    def _is_due(self, every: int | None) -> bool:
        """Whether an action with this interval is due (always after the last step; never without an interval)."""
        return every is not None and (self.progress.step % every == 0 or self.progress.step == self.steps)

    def _is_asked_to_end(self) -> bool:
        """Several processes have to agree, which they do before a step."""
        alone = self.accelerator.num_processes == 1
        return self.asked_to_end or (alone and self.interruption.number is not None)

    def _end_early(self) -> NoReturn:
        """Say how to go on from the checkpoint that is there."""
        number = self.interruption.number or signal.SIGTERM
        self.accelerator.end_training()
        raise InterruptionError(
            f"Stopped by {signal.Signals(number).name} after step {self.progress.step} of {self.steps}. Nothing is "
            f"lost: the same command with --resume goes on from {self.folder / 'checkpoints'}.",
            number,
        )

    def _start_clock(self) -> None:
        self.clock, self.clocked_step = time.perf_counter(), self.progress.step

    def _train_mode(self) -> None:
        self.network.train()
        if self.config.optimization.freeze_batch_norm:
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def _batches(self) -> Iterator[list[Batch]]:
        """The batches of each step that is left, on the device; the same whether or not the run was interrupted."""
        data, accumulation = self.config.data, self.config.optimization.accumulation
        while self.progress.step < self.steps:
            epoch, done = divmod(self.progress.step, self.steps_per_epoch)
            self.pairs.set_epoch(epoch)
            self.sampler.set_epoch(epoch)
            order = ShardedBatchSampler(
                self.sampler,
                self.batch_size,
                self.accelerator.process_index,
                self.accelerator.num_processes,
                start=done * accumulation,
            )
            collator = Collator(self.processor, data.masked_words, data.masked_patches, self.config.seed, epoch)
            loader = iter(
                DataLoader(
                    ReadablePairs(self.pairs, data.on_error),
                    batch_sampler=order,
                    collate_fn=BatchCollator(collator),
                    num_workers=data.workers,
                    worker_init_fn=ignore_signals,
                    generator=torch.Generator(),  # else the start of a loader would draw from that of dropout
                )
            )
            for _ in range(min(self.steps_per_epoch - done, self.steps - self.progress.step)):
                yield [self._place(next(loader)) for _ in range(accumulation)]

    def _place(self, batch: Batch) -> Batch:
        """On the device; what could not be read is told, and is an error if nothing took its place."""
        for sample in batch.broken:
            if not batch.inputs:
                raise ValueError(f"{sample}. Mend it, remove it, or set data.on_error=skip.")
            say(f"skipped: {sample}")
        return replace(batch, inputs=send_to_device(batch.inputs, self.accelerator.device))

    def _agree(self, batches: list[Batch], counts: list[Tensor]) -> Tensor:
        """What the processes share before a step, in one exchange: `loss_counts` of all, and what is asked of them."""
        own = torch.stack(counts).sum(0)
        skipped, asked = sum(len(batch.broken) for batch in batches), self.interruption.number is not None
        *_, skipped_by_all, asked_of_any = total = self.accelerator.reduce(
            torch.cat([own, own.new_tensor([skipped, asked])]), "sum"
        )
        self.progress.skipped += int(skipped_by_all)
        self.asked_to_end = bool(asked_of_any)
        return total[: len(own)]

    def _step(self, batches: list[Batch]) -> dict[str, Tensor]:
        """One step of the optimizer over the accumulated batches of all processes; the losses of this process's."""
        options, processes = self.config.optimization, self.accelerator.num_processes
        counts = [loss_counts(batch.inputs["labels"]) for batch in batches]
        total = self._agree(batches, counts)
        losses: dict[str, Tensor] = {}
        for number, (batch, own) in enumerate(zip(batches, counts, strict=True)):
            last = number == len(batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.network):
                output = self.network(**batch.inputs, return_dict=True)
                loss = normalised_loss(self.model, output, own, total)
                self.accelerator.backward(loss * processes)  # of which DDP takes the mean
            found = {
                "mask_loss": output.mask_loss,
                "alignment_loss": output.alignment_loss,
                "dice_loss": output.dice_loss,
                "presence_loss": output.presence_loss,
            }
            parts = {"loss": loss * processes * len(batches), **{k: v for k, v in found.items() if v is not None}}
            losses = {name: losses.get(name, 0.0) + value.detach() / len(batches) for name, value in parts.items()}
        self._check_loss(losses["loss"], batches)
        if options.max_grad_norm is not None:
            norm = self.accelerator.clip_grad_norm_(self.network.parameters(), options.max_grad_norm)
            losses["grad_norm"] = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.accelerator.unwrap_model(self.network))
        self.optimizer.zero_grad()
        self.progress.step += 1
        return losses

    def _check_loss(self, loss: Tensor, batches: list[Batch]) -> None:
        """Stop before a loss that is not finite reaches the weights."""
        mean = self.accelerator.reduce(loss, "mean").item()
        if math.isfinite(mean):
            return
        own = [name for batch in batches for name in batch.names] if not loss.isfinite() else []
        names = gather_object(own) if self.accelerator.num_processes > 1 else own
        raise FloatingPointError(
            f"The loss is {mean} at step {self.progress.step + 1}; lower `optimization.learning_rate`, or give "
            f"`optimization.max_grad_norm`. Checkpoints are as they were. The pairs of this step: {', '.join(names)}"
        )

    # ---- telling

    def _log(self, entry: dict[str, Any]) -> None:
        numbers = {name: value for name, value in entry.items() if isinstance(value, int | float) and name != "step"}
        self.accelerator.log(numbers, step=self.progress.step)
        if self.accelerator.is_main_process:
            append(self.log_path, entry)

    def _log_steps(self) -> float:
        """Log the means of the steps since the last line, over all processes, and return the loss."""
        means = self.progress.take_means()
        mean = {name: self.accelerator.reduce(value, "mean").item() for name, value in means.items()}
        skipped = {"skipped": self.progress.skipped} if self.config.data.on_error == "skip" else {}
        samples = (self.progress.step - self.clocked_step) * self.config.optimization.batch_size
        seconds = time.perf_counter() - self.clock
        self._start_clock()
        self._log(
            {
                "step": self.progress.step,
                **mean,
                "learning_rate": self.schedule.get_last_lr()[0],
                "samples_per_second": samples / seconds,
                **skipped,
            }
        )
        return mean["loss"]

    def evaluated_model(self) -> CrossVLTModel:
        """The weights that are evaluated and saved: the average, where there is one."""
        network: Any = self.accelerator.unwrap_model(self.network) if self.average is None else self.average.module
        return network

    def _evaluate_if_due(self) -> dict[str, Any]:
        """Evaluate unless this step has been, or there is nothing to evaluate on."""
        done = is_evaluated(self.log_path, self.progress.step) if self.accelerator.is_main_process else None
        (done,) = broadcast_object_list([done])
        due = self.progress.step > 0 and self._is_due(self.every) and not done
        if not (due and self.validation):
            return {}
        cuda = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        alone = self.accelerator.num_processes == 1  # others would wait for a process that ends
        with torch.random.fork_rng(cuda), self.interruption.at_once(alone):
            return self._evaluate()  # dropout goes on as if there had been none

    def _evaluate(self) -> dict[str, Any]:
        """Evaluate, keep the weights if they are the best, log, and draw."""
        options = EvaluationOptions(
            batch_size=self.config.output.evaluation_batch_size, distractors=True, workers=self.config.data.workers
        )
        model = self.evaluated_model()
        if self.accelerator.num_processes > 1:
            broadcast(list(model.buffers()))  # BatchNorm's statistics, where each process has its own: those saved
        with self.accelerator.autocast():
            parts = [evaluate(model, self.processor, dataset, options) for dataset in self.validation]
        metric = ReferringSegmentationMetric([sample for part in parts for sample in part.samples])
        metrics = metric.compute()
        families = {name: found["mean_iou"] for name, found in metric.compute_groups().items() if name}
        (best,) = broadcast_object_list([best_score(self.log_path) if self.accelerator.is_main_process else None])
        if (metrics["overall_iou"] or 0.0) > best:
            self._save_weights(self.folder / "best")  # and then the line, after which this is not done again
        named = {f"validation/{name}": value for name, value in metrics.items()}
        self._log({"step": self.progress.step, **named, "validation/families": families})
        if self.accelerator.is_main_process:
            say(evaluation_line(self.progress.step, self.steps, metrics))
        if self.config.output.pictures:
            self._draw(model)
        self._train_mode()
        return metrics

    def _draw(self, model: CrossVLTModel) -> None:
        """Write predictions as a picture, and show it to the trackers."""
        sharded = self.accelerator.distributed_type == DistributedType.FSDP  # then no process predicts alone
        if sharded or self.accelerator.is_main_process:
            picture = draw_predictions(model, self.processor, self.validation[0], self.config.output.pictures)
        if self.accelerator.is_main_process:
            path = self.folder / "pictures" / f"step-{self.progress.step}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
            for tracker in self.accelerator.trackers:
                if tracker.name == "tensorboard":  # others take pictures in ways of their own
                    values = {"predictions": np.asarray(picture)[None]}
                    tracker.log_images(values, step=self.progress.step, dataformats="NHWC")
        self.accelerator.wait_for_everyone()

    # ---- keeping

    def _save_weights(self, target: Path) -> None:
        """Weights and processor for `from_pretrained`."""
        state = self.accelerator.get_state_dict(self.network) if self.average is None else None
        if self.accelerator.is_main_process:
            model = self.evaluated_model()

            def write(folder: Path) -> None:
                model.save_pretrained(folder, state_dict=state)
                self.processor.save_pretrained(folder)

            with without_bars(), self._told_if_not_written(target.with_name(f".{target.name}.partial"), target):
                write_whole(target, write)
        self.accelerator.wait_for_everyone()

    def save_checkpoint(self) -> None:
        """Write all that is needed to go on, whole, and drop the oldest checkpoints."""
        folder = self.folder / "checkpoints"
        target = folder / f"step-{self.progress.step}"
        partial_folder = folder / f".{target.name}.partial"
        self._check_weights()
        if self.accelerator.num_processes > 1:  # only the first one's are kept
            sums = self.progress.sums.items()
            self.progress.sums = {name: self.accelerator.reduce(value, "mean") for name, value in sums}
        if self.accelerator.is_main_process:
            shutil.rmtree(partial_folder, ignore_errors=True)  # of an interruption
        self.accelerator.wait_for_everyone()
        with self._told_if_not_written(partial_folder, target):
            self.accelerator.save_state(str(partial_folder))
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                seal(partial_folder)
                put_in_place(partial_folder, target)
                prune(folder, self.config.output.keep)
        self.accelerator.wait_for_everyone()

    def _check_weights(self) -> None:
        """A gradient may overflow where the loss does not; the checkpoint before is then the last good one."""
        own = (p.to_local() if isinstance(p, DTensor) else p for p in self.network.parameters())
        if not all(bool(parameter.isfinite().all()) for parameter in own):
            raise FloatingPointError(
                f"Weights are not finite after step {self.progress.step}, which are not kept; go on from the "
                "checkpoint before with another `optimization.learning_rate` or `optimization.max_grad_norm`."
            )

    @contextmanager
    def _told_if_not_written(self, partial_folder: Path, target: Path) -> Iterator[None]:
        """Whatever the writers of the formats raise on a full disk, it is an OSError that says what is left."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(partial_folder, ignore_errors=True)
            raise OSError(
                f"{target} could not be written ({type(error).__name__}: {error}). What was there is as it was; make "
                "room, and go on with --resume."
            ) from error

    def _finish(self) -> None:
        self._save_weights(self.folder / "last")
        self.accelerator.end_training()
        torch.set_flush_denormal(False)  # what the program does next may need them
        if self.accelerator.is_main_process:
            self._draw_curves()
            folders = [self.folder / name for name in ("best", "last") if (self.folder / name).is_dir()]
            for folder in folders:
                self._describe(folder)
            say(f"The run is in {self.folder}: {', '.join(folder.name for folder in folders)}, log.jsonl")
            if self.config.output.push_to_hub:
                publish(folders[0], self.config.output.push_to_hub)

    def _draw_curves(self) -> None:
        """A picture of the log, where there is anything to draw and to draw with."""
        if find_spec("matplotlib") and any("loss" in entry for entry in read_log(self.log_path)):
            training_curves(self.folder).save(self.folder / "curves.png")

    def _describe(self, folder: Path) -> None:
        """Write beside weights what their card tells of the training."""
        hardware = describe_hardware(self.accelerator.device, self.accelerator.num_processes)
        best = folder.name == "best"
        report = validation_report(self.folder, best=best, image_size=self.processor.image_size, hardware=hardware)
        training = describe_run(self.folder, hardware, count_shared_images(self.pairs.datasets, self.validation))
        Evidence(describe_model(self.config), [report] if report else [], training=training).save(folder)
