"""The reports of a run: log, pictures and curves while it runs, and facts for a model card at its end."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from datasets import Dataset

from ..data.features import Picture
from ..data.refshapes import LANGUAGES
from ..data.refshapes.expressions import Phrase, Superlative
from ..metrics import ReferringSegmentationMetric, percent
from ..modeling_crossvlt import CrossVLTModel
from ..processing_crossvlt import CrossVLTProcessor, counted
from ..publishing.facts import ABOUT, About, Evidence, is_hub_id, public_name
from ..weights.checkpoint import DEFAULT_CHECKPOINT, describe_hardware
from ..weights.names import BUILT_IN
from .checkpoints import Progress
from .config import TrainingConfig, load_config
from .curves import training_curves
from .log import SCORE, append, best_score, evaluation_line, is_evaluated, read_log, rewind, say
from .pictures import draw_predictions


class Report:
    """The log of a run, for people and trackers, and files that show its results.

    The main process writes. All processes must call the methods that say so.

    Args:
        accelerator: of the run.
        config: of the run.
    """

    def __init__(self, accelerator: Accelerator, config: TrainingConfig) -> None:
        self.accelerator, self.config, self.folder = accelerator, config, Path(config.output.folder)
        self.path = self.folder / "log.jsonl"
        self.start_clock(0)

    def go_back_to(self, step: int) -> None:
        """Remove log entries after a step."""
        rewind(self.path, step)

    def start_clock(self, step: int) -> None:
        """Measure the speed from this step on."""
        self.clock, self.clocked_step = time.perf_counter(), step

    def log(self, step: int, entry: dict[str, Any]) -> None:
        """Write a log entry, and send its numbers to the trackers."""
        self.accelerator.log({k: v for k, v in entry.items() if isinstance(v, int | float)}, step=step)
        if self.accelerator.is_main_process:
            append(self.path, {"step": step, **entry})

    def log_steps(self, progress: Progress, learning_rate: float) -> float:
        """Log the means since the last entry over all processes, and return the loss; called by all processes."""
        means = progress.take_means()
        mean = {name: self.accelerator.reduce(value, "mean").item() for name, value in means.items()}
        samples = (progress.step - self.clocked_step) * self.config.optimization.batch_size
        speed = {"learning_rate": learning_rate, "samples_per_second": samples / (time.perf_counter() - self.clock)}
        skipped = {"skipped": progress.skipped} if self.config.data.on_error == "skip" else {}
        self.start_clock(progress.step)
        self.log(progress.step, {**mean, **speed, **skipped})
        return mean["loss"]

    def is_evaluated(self, step: int) -> bool:
        """Whether an evaluation of a step was logged; called by all processes."""
        return self._told_by_the_first(is_evaluated, step)

    def best_score(self) -> float:
        """The best overall IoU so far, or minus infinity; called by all processes."""
        return self._told_by_the_first(best_score)

    def _told_by_the_first(self, read: Any, *arguments: Any) -> Any:
        own = read(self.path, *arguments) if self.accelerator.is_main_process else None
        return broadcast_object_list([own])[0]

    def log_evaluation(self, step: int, steps: int, metric: ReferringSegmentationMetric) -> dict[str, Any]:
        """Log an evaluation on the validation data, print it, and return its metrics."""
        metrics = metric.compute()
        families = {name: found["mean_iou"] for name, found in metric.compute_groups().items() if name}
        named = {f"validation/{name}": value for name, value in metrics.items()}
        self.log(step, {**named, "validation/families": families})
        if self.accelerator.is_main_process:
            say(evaluation_line(step, steps, metrics))
        return metrics

    def draw(self, step: int, model: CrossVLTModel, processor: CrossVLTProcessor, dataset: Dataset) -> None:
        """Draw predictions, and send the image to the trackers; called by all processes."""
        sharded = self.accelerator.distributed_type == DistributedType.FSDP  # a process cannot predict alone
        if sharded or self.accelerator.is_main_process:
            picture = draw_predictions(model, processor, dataset, self.config.output.pictures)
        if self.accelerator.is_main_process:
            path = self.folder / "pictures" / f"step-{step}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
            for tracker in self.accelerator.trackers:
                if tracker.name == "tensorboard":  # other trackers log images differently
                    values = {"predictions": np.asarray(picture)[None]}
                    tracker.log_images(values, step=step, dataformats="NHWC")
        self.accelerator.wait_for_everyone()

    def draw_curves(self) -> None:
        """Draw the log, if it has losses and matplotlib is installed."""
        if find_spec("matplotlib") and any("loss" in entry for entry in read_log(self.path)):
            training_curves(self.folder).save(self.folder / "curves.png")

    def describe(
        self, name: str, processor: CrossVLTProcessor, training: Sequence[Dataset], validation: Sequence[Dataset]
    ) -> None:
        """Write facts for the model card beside the weights `best` or `last`."""
        hardware = describe_hardware(self.accelerator.device, self.accelerator.num_processes)
        measured = validation_report(
            self.folder, best=name == "best", image_size=processor.image_size, hardware=hardware
        )
        facts = describe_run(self.folder, hardware, count_shared_images(training, validation))
        Evidence(describe_model(self.config), [measured] if measured else [], training=facts).save(self.folder / name)


# ---- for a model card


def describe_run(folder: str | Path, hardware: str, shared_images: dict[str, int] | None = None) -> dict[str, Any]:
    """Summarise `config.yaml` and `log.jsonl` of a run, in numbers and words, without paths of this machine.

    Args:
        folder: of the run.
        hardware: on which it ran.
        shared_images: see [`count_shared_images`].

    Returns:
        `steps`, `samples`, `hours` (of the logged steps, without evaluations), `optimization` (all its settings),
        `seed`, `data` (names), `curve` (mean IoU on the `validation_samples`, by step), `hardware`,
        `started_from` (names), `base_model` (those of them that are Hub ids), `shared_images`, and `summary`,
        Markdown.
    """
    folder = Path(folder)
    config, entries = load_config(folder / "config.yaml"), read_log(folder / "log.jsonl")
    facts = {
        **_sum_up(entries, config.optimization.batch_size),
        "seed": config.seed,
        "data": [" ".join(_name(dataset)) for dataset in config.data.train],
        "optimization": asdict(config.optimization),
        "hardware": hardware,
        "started_from": _origins(config),
        "base_model": [name for name in _sources(config) if is_hub_id(name)],
        "shared_images": shared_images or {},
    }
    return {**facts, "summary": _summarise(config, facts)}


def _sum_up(entries: Sequence[dict[str, Any]], batch: int) -> dict[str, Any]:
    """Totals of a log, for steps of `batch` pairs each."""
    logged = [entry for entry in entries if "samples_per_second" in entry]
    spans = zip([0, *(entry["step"] for entry in logged)], logged, strict=False)
    steps = logged[-1]["step"] if logged else 0
    seconds = sum(batch * (entry["step"] - before) / entry["samples_per_second"] for before, entry in spans)
    return {
        "steps": steps,
        "samples": batch * steps,
        "hours": seconds / 3600,
        "validation_samples": max((entry.get("validation/samples", 0) for entry in entries), default=0),
        "curve": {
            str(entry["step"]): entry["validation/mean_iou"] for entry in entries if "validation/mean_iou" in entry
        },
    }


def describe_model(config: TrainingConfig) -> About:
    """Statements about a model trained on RefShapes alone; empty ones for other models."""
    if {dataset["name"] for dataset in config.data.train} != {"refshapes"}:
        return About()
    languages = [*dict.fromkeys(dataset.get("language", "en") for dataset in config.data.train)]
    return About(
        name="CrossVLT, RefShapes",
        summary="A CrossVLT that segments the shape that a sentence refers to in a drawn scene. **It was trained on "
        "RefShapes (drawn shapes) only, not on photographs.**",
        language=languages,
        intended_use="Trying the package, and experiments on drawn scenes (`crossvlt refshapes FOLDER` writes some).",
        limits="Photographs, words that RefShapes does not use, and sentences that refer to several objects or none.",
        image="scene.png",
        expression=Superlative(Phrase(), "largest").say(LANGUAGES[languages[0]].usual),
    )


def _name(dataset: dict[str, Any]) -> tuple[str, str]:
    """The name of a data set, without the path of a folder, and the split."""
    return public_name(str(dataset["name"])), str(dataset["split"])


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 0.1 else f"{60 * hours:.1f} minutes"


def _sources(config: TrainingConfig) -> list[str]:
    """The checkpoints that the run started from: Hub ids and folders."""
    model = config.model
    names = (model.checkpoint,) if model.checkpoint else (model.vision_encoder, model.text_encoder)
    return [str(name) for name in names if name]


def _origins(config: TrainingConfig) -> list[str]:
    """Names of the checkpoints, without paths of folders, and with the name in their about.yaml."""
    return [_origin(source) for source in _sources(config)]


def _origin(source: str) -> str:
    folder = DEFAULT_CHECKPOINT if source == BUILT_IN else Path(source)
    if folder.resolve() == DEFAULT_CHECKPOINT.resolve():
        return "the built-in checkpoint of `crossvlt_hf`"
    name = f"`{public_name(source)}`"
    return f"{name} ({About.read(folder / ABOUT).name})" if (folder / ABOUT).is_file() else name


def count_shared_images(training: Sequence[Dataset], validation: Sequence[Dataset]) -> dict[str, int]:
    """Count the images of the validation data that are also in the training data, by path and id.

    Args:
        training: data sets of records.
        validation: data sets of records.

    Returns:
        `shared` and `images` of the validation data; {} if none are shared.
    """
    known = {name for dataset in training for names in _image_names(dataset) for name in names}
    images = {names for dataset in validation for names in _image_names(dataset)}
    shared = sum(not known.isdisjoint(names) for names in images)
    return {"shared": shared, "images": len(images)} if shared else {}


def _image_names(dataset: Dataset) -> Iterator[tuple[str, ...]]:
    """The keys of the image of each reference: its file, and its id within the data set."""
    stored = dataset.with_format(None)
    if "image_id" not in stored.column_names:
        return
    columns = ["image_id", *(name for name in ("dataset",) if name in stored.column_names)]
    if isinstance(stored.features.get("image"), Picture):
        stored, columns = stored.cast_column("image", Picture(decode=False)), [*columns, "image"]
    for batch in stored.select_columns(columns).iter(1000):
        sets = batch.get("dataset", [""] * len(batch["image_id"]))
        cells = batch.get("image", [{}] * len(batch["image_id"]))
        for cell, image_id, name in zip(cells, batch["image_id"], sets, strict=True):
            ids, path = (f"{name}\0{image_id}",), (cell or {}).get("path")
            yield (*ids, os.path.realpath(path)) if path else ids


def _summarise(config: TrainingConfig, facts: dict[str, Any]) -> str:
    options, origin = config.optimization, " and ".join(facts["started_from"]) or "random weights"
    text_rate = f", {options.text_learning_rate:g} for the language stages" if options.text_learning_rate else ""
    warm_up = f"warm-up of {options.warmup_steps} steps"
    if facts["steps"] <= options.warmup_steps:
        warm_up += ", in which the run ended, below its peak"
    lines = [
        f"{facts['samples']:,} pairs of an image and an expression of {', '.join(facts['data'])}, in "
        f"{facts['steps']:,} steps of {options.batch_size}, from {origin}, seed {config.seed}; "
        f"{_duration(facts['hours'])} of logged steps on {facts['hardware']}.",
        f"AdamW, peak learning rate {options.learning_rate:g}{text_rate}, schedule {options.schedule}, {warm_up}, "
        f"weight decay {options.weight_decay:g}, mixed precision {options.mixed_precision or 'as launched'}"
        f"{f', averaged weights ({options.ema_decay:g})' if options.ema_decay else ''}.",
    ]
    return "\n".join([*lines, *_describe_curve(facts)])


def _describe_curve(facts: dict[str, Any]) -> list[str]:
    """A sentence about the evaluations of a run, if there are any."""
    known = {step: value for step, value in facts["curve"].items() if value is not None}
    curve = ", ".join(f"{percent(value)} % (step {step})" for step, value in known.items())
    samples = facts["validation_samples"]
    of_how_many = f"{counted(samples, 'expression')} of " if samples else ""
    return [f"Mean IoU on {of_how_many}validation data: {curve}."] if curve else []


def validation_report(folder: str | Path, *, best: bool, image_size: tuple[int, int], hardware: str) -> dict[str, Any]:
    """The best or the last evaluation of a run as a report of `crossvlt evaluate`; {} without evaluations."""
    folder = Path(folder)
    found = [entry for entry in read_log(folder / "log.jsonl") if SCORE in entry]
    if not found:
        return {}
    chosen = max(found, key=lambda entry: entry[SCORE] or 0.0) if best else found[-1]
    metrics = {
        name.removeprefix("validation/"): value for name, value in chosen.items() if name.startswith("validation/")
    }
    metrics.pop("families", None)
    names = [_name(dataset) for dataset in load_config(folder / "config.yaml").data.validation]
    return {
        "data": names[0][0],
        "split": names[0][1],
        "name": f"{', '.join(map(' '.join, names))} (validation in training)",
        "protocol": "paper",
        "image_size": list(image_size),
        "hardware": hardware,
        "metrics": metrics,
    }
