"""A training run: its steps, when to evaluate and save, and how to resume."""

import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    broadcast,
    set_seed,
    tqdm,
)
from huggingface_hub import create_repo
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..data.readable import Batch
from ..evaluation.run import EvaluationOptions, describe_reading, evaluate
from ..metrics import ReferringSegmentationMetric
from ..modeling_crossvlt import CrossVLTModel
from ..publishing.repository import publish
from ..system import EndNow, Interruption, InterruptionError, check_no_file
from .batches import StepBatches
from .build import build_model, check_config, check_processes, load_datasets, load_training_data
from .checkpoints import Checkpoints, Progress
from .config import TrainingConfig, check_same_run, load_config
from .log import say, without_bars
from .optimization import (
    LOSS_TERMS,
    build_average,
    build_optimizer,
    build_schedule,
    check_loss,
    choose_attention,
    loss_counts,
    normalised_loss,
    set_training_mode,
    settle_precision,
)
from .report import Report


# What a run writes into its folder, and what data sets and checkpoints have in theirs
WRITTEN = ("config.yaml", "log.jsonl", "curves.png", "best", "last", "checkpoints", "pictures")
OF_OTHERS = ("metadata.jsonl", "config.json")


def _is_run(folder: Path) -> bool:
    """Whether a folder has the configuration of a run."""
    try:
        load_config(folder / "config.yaml")
    except (OSError, ValueError):
        return False
    return True


def _check_no_others(folder: Path) -> None:
    """Raise ValueError if a run would replace files of others in a folder, or mix with a data set or a checkpoint."""
    found = next((name for name in (*WRITTEN, *OF_OTHERS) if (folder / name).exists()), None)
    if found is not None and not _is_run(folder):
        raise ValueError(f"{folder} has {found}, and is no training run; give another `output.folder`.")


class TrainingRun:
    """Train in one process, or in several processes under `accelerate launch`.

    The folder of the run has `config.yaml`; `log.jsonl`, a line for every logged step and evaluation;
    `checkpoints/step-N`, everything to resume exactly; `best`, the weights with the best overall IoU on the validation
    data, and `last`, both with their processor, for `from_pretrained`; `pictures`, predictions on validation data; and
    at the end `curves.png`, if matplotlib is installed.

    Args:
        config: of the run.
        resume: whether to resume from the last complete checkpoint in the folder.

    Raises:
        OSError: if data or weights are missing.
        ValueError: if the folder has another run, or settings contradict each other.
    """

    def __init__(self, config: TrainingConfig, *, resume: bool = False) -> None:
        check_config(config)
        config = settle_precision(config)
        self.config, self.folder = config, Path(config.output.folder)
        self.accelerator = Accelerator(
            mixed_precision=config.optimization.mixed_precision,
            log_with=config.output.trackers or None,
            project_dir=self.folder,
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
        check_processes(self.accelerator)
        self.interruption, self.asked_to_end = Interruption(), False
        self.checkpoints = Checkpoints(self.accelerator, self.folder, config.output.keep)
        self.report = Report(self.accelerator, config)
        whole = self.checkpoints.find_whole()
        self._check_folder(bool(whole), resume)
        torch.set_flush_denormal(True)  # denormal gradients slow a CPU down tenfold
        self._build_data()
        set_seed(config.seed)
        self._build_model()
        self._build_optimization()
        set_seed(config.seed, device_specific=True)  # different dropout in every process
        if whole:
            self.checkpoints.load(whole[-1])
        self.finished_before = self.progress.step == self.steps
        if self.progress.step > self.steps:
            raise ValueError(
                f"The number of steps must be at least {self.progress.step}, where the run in {self.folder} is, got "
                f"{self.steps}."
            )
        if self.accelerator.is_main_process:
            self._prepare_folder()
        if resume and not whole:
            self._say_once(f"{self.folder} has no checkpoint to resume from: the run starts at its first step.")

    # ---- building

    def _check_folder(self, begun: bool, resume: bool) -> None:
        check_no_file(self.folder)
        if not begun:
            _check_no_others(self.folder)
        if begun and not resume:
            raise ValueError(f"{self.folder} has checkpoints of a run; use --resume, or another output.folder.")
        if begun:
            check_same_run(self.config, load_config(self.folder / "config.yaml"))
        sharded = self.accelerator.distributed_type == DistributedType.FSDP
        if sharded and self.config.optimization.ema_decay is not None:
            raise ValueError("`optimization.ema_decay` is not supported with FSDP; set it to null.")

    def _build_data(self) -> None:
        options, output = self.config.optimization, self.config.output
        self.batches = StepBatches(self.config, load_training_data(self.config.data), self.accelerator)
        self.steps = options.max_steps or options.epochs * self.batches.steps_per_epoch
        self.every = output.evaluation_steps or self.batches.steps_per_epoch
        self.log_every = output.log_steps or min(50, max(1, self.steps // 20))
        self.validation = load_datasets(self.config.data.validation, self.config.data.root)

    def _build_model(self) -> None:
        with without_bars():
            self.model, self.processor = build_model(
                self.config.model, self.batches.pairs.datasets, tell=self._say_once
            )
        self.model.set_attn_implementation(choose_attention(self.accelerator))
        if self.accelerator.is_main_process:
            say(describe_reading(self.processor, self.batches.pairs.datasets))
        several_gpus = self.accelerator.num_processes > 1 and self.accelerator.device.type == "cuda"
        if self.config.optimization.sync_batch_norm and several_gpus:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)

    def _say_once(self, line: str) -> None:
        if self.accelerator.is_main_process:
            say(line)

    def _build_optimization(self) -> None:
        options = self.config.optimization
        self.average = build_average(self.model, options.ema_decay)
        optimizer = build_optimizer(self.model, options)
        self.network, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.schedule = build_schedule(self.optimizer.optimizer, options, self.steps)
        self.progress = Progress()
        self.accelerator.register_for_checkpointing(self.schedule, self.progress)
        if self.average is not None:
            self.average.to(self.accelerator.device)
            self.accelerator.register_for_checkpointing(self.average)

    def _prepare_folder(self) -> None:
        """Remove what an interruption left behind, and save the configuration."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoints.clean_up()
        self.report.go_back_to(self.progress.step)
        self.config.save(self.folder / "config.yaml")
        if self.config.output.push_to_hub:
            create_repo(self.config.output.push_to_hub, exist_ok=True)  # fails now and not at the end

    # ---- running

    def run(self) -> dict[str, Any]:
        """Train until the last step.

        Returns:
            The metrics of the last evaluation; empty without validation data.

        Raises:
            FloatingPointError: if the loss is not finite.
            InterruptionError: after a signal, when a checkpoint was saved.
            OSError: if something cannot be written; existing checkpoints stay complete.
            ValueError: if a reference is unreadable, unless `data.on_error` is "skip".
        """
        with self.interruption:
            try:
                return self._run()
            except EndNow:
                self._end_early()

    def _run(self) -> dict[str, Any]:
        self.accelerator.init_trackers("crossvlt", config={"seed": self.config.seed, "steps": self.steps})
        metrics = self._evaluate_if_due()  # if that of the resumed checkpoint was interrupted
        with tqdm(total=self.steps, initial=self.progress.step, desc="training", mininterval=1.0) as bar:
            self.report.start_clock(self.progress.step)
            set_training_mode(self.network, self.config.optimization)
            for batches in self.batches.steps(self.progress.step, self.steps, self.processor):
                self.progress.add(self._step(batches))
                bar.update()
                if self._is_due(self.log_every) or self._is_due(self.every):
                    loss = self.report.log_steps(self.progress, self.schedule.get_last_lr()[0])
                    bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                intervals = self.every, self.config.output.checkpoint_steps
                saves = self._is_asked_to_end() or any(map(self._is_due, intervals))
                if saves:
                    self.checkpoints.save(self.network, self.progress)
                if self._is_due(self.every):
                    metrics = self._evaluate_if_due()
                    self.report.start_clock(self.progress.step)
                if saves and self._is_asked_to_end() and self.progress.step < self.steps:
                    self._end_early()
        self._finish()
        return metrics

    def _is_due(self, every: int | None) -> bool:
        """Whether an action with this interval is due (always after the last step; never without an interval)."""
        return every is not None and (self.progress.step % every == 0 or self.progress.step == self.steps)

    def _is_asked_to_end(self) -> bool:
        """Whether to stop after this step; several processes agree on it before the step."""
        alone = self.accelerator.num_processes == 1
        return self.asked_to_end or (alone and self.interruption.number is not None)

    def _end_early(self) -> NoReturn:
        """Stop, and say how to resume from the last checkpoint."""
        number = self.interruption.number or signal.SIGTERM
        self.accelerator.end_training()
        raise InterruptionError(
            f"Stopped by {signal.Signals(number).name} after step {self.progress.step} of {self.steps}. Nothing is "
            f"lost: rerun the command with --resume to continue from {self.folder / 'checkpoints'}.",
            number,
        )

    def _agree(self, batches: list[Batch], counts: list[Tensor]) -> Tensor:
        """Exchange `loss_counts`, skipped references and signals between processes; return the total counts."""
        own = torch.stack(counts).sum(0)
        skipped, asked = sum(len(batch.broken) for batch in batches), self.interruption.number is not None
        *_, skipped_by_all, asked_of_any = total = self.accelerator.reduce(
            torch.cat([own, own.new_tensor([skipped, asked])]), "sum"
        )
        self.progress.skipped += int(skipped_by_all)
        self.asked_to_end = bool(asked_of_any)
        return total[: len(own)]

    def _step(self, batches: list[Batch]) -> dict[str, Tensor]:
        """Take an optimizer step over the accumulated batches of all processes; return this process's losses."""
        options, processes = self.config.optimization, self.accelerator.num_processes
        counts = [loss_counts(batch.inputs["labels"]) for batch in batches]
        total = self._agree(batches, counts)
        losses: dict[str, Tensor] = {}
        for number, (batch, own) in enumerate(zip(batches, counts, strict=True)):
            last = number == len(batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.network):
                output = self.network(**batch.inputs, return_dict=True)
                loss = normalised_loss(self.model, output, own, total)
                self.accelerator.backward(loss * processes)  # DDP averages over processes
            terms = {name: output[name] for name in LOSS_TERMS if output.get(name) is not None}
            parts = {"loss": loss * processes * len(batches), **terms}
            losses = {name: losses.get(name, 0.0) + value.detach() / len(batches) for name, value in parts.items()}
        check_loss(self.accelerator, losses["loss"], batches, self.progress.step + 1)
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

    # ---- evaluating and saving

    def evaluated_model(self) -> CrossVLTModel:
        """The model to evaluate and save: the averaged one, if there is one."""
        network: Any = self.accelerator.unwrap_model(self.network) if self.average is None else self.average.module
        return network

    def _evaluate_if_due(self) -> dict[str, Any]:
        """Evaluate, unless this step was evaluated before or there is no validation data."""
        done = self.report.is_evaluated(self.progress.step)
        if not self.validation or done or not (self.progress.step > 0 and self._is_due(self.every)):
            return {}
        cuda = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        alone = self.accelerator.num_processes == 1  # other processes would wait for the one that ends
        with torch.random.fork_rng(cuda), self.interruption.at_once(alone):
            return self._evaluate()  # an evaluation must not change dropout

    def _evaluate(self) -> dict[str, Any]:
        """Evaluate, save the weights if they are the best so far, log, and draw predictions."""
        options = EvaluationOptions(
            batch_size=self.config.output.evaluation_batch_size, distractors=True, workers=self.config.data.workers
        )
        model, step = self.evaluated_model(), self.progress.step
        if self.accelerator.num_processes > 1:
            broadcast(list(model.buffers()))  # every process uses the BatchNorm statistics that are saved
        with self.accelerator.autocast():
            parts = [evaluate(model, self.processor, dataset, options) for dataset in self.validation]
        metric = ReferringSegmentationMetric([sample for part in parts for sample in part.samples])
        if (metric.compute()["overall_iou"] or 0.0) > self.report.best_score():
            self._save_weights("best")  # before the log entry, which marks the evaluation as done
        metrics = self.report.log_evaluation(step, self.steps, metric)
        if self.config.output.pictures:
            self.report.draw(step, model, self.processor, self.validation[0])
        set_training_mode(self.network, self.config.optimization)
        return metrics

    def _save_weights(self, name: str) -> None:
        state = self.accelerator.get_state_dict(self.network) if self.average is None else None
        self.checkpoints.save_weights(name, self.evaluated_model(), self.processor, state)

    def _finish(self) -> None:
        self._save_weights("last")
        self.accelerator.end_training()
        torch.set_flush_denormal(False)  # the default, for the rest of the program
        if self.accelerator.is_main_process:
            if self.config.output.curves:
                self.report.draw_curves()
            names = [name for name in ("best", "last") if (self.folder / name).is_dir()]
            for name in names:
                self.report.describe(name, self.processor, self.batches.pairs.datasets, self.validation)
            done = "The run was finished, and nothing was left to do; it" if self.finished_before else "The run"
            say(f"{done} is in {self.folder}: {', '.join(names)}, log.jsonl")
            if self.config.output.push_to_hub:
                publish(self.folder / names[0], self.config.output.push_to_hub)
