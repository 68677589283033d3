"""What a finished run has to tell to a model card."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..evidence import About, public_name
from .config import TrainingConfig, load_config
from .log import SCORE, read_log


def describe_run(folder: str | Path, hardware: str) -> dict[str, Any]:
    """What `config.yaml` and `log.jsonl` of a run say, as numbers and in words; no path of this machine.

    Args:
        folder: of the run.
        hardware: on which it ran.

    Returns:
        `steps`, `samples`, `hours` (of the logged steps, without evaluations), `optimization` (all its settings),
        `seed`, `data` (names), `curve` (mean IoU on validation data by step), `hardware`, and `summary`, Markdown.
    """
    folder = Path(folder)
    config, entries = load_config(folder / "config.yaml"), read_log(folder / "log.jsonl")
    batch = config.optimization.batch_size
    logged = [entry for entry in entries if "samples_per_second" in entry]
    spans = zip([0, *(entry["step"] for entry in logged)], logged, strict=False)
    facts = {
        "steps": logged[-1]["step"] if logged else 0,
        "samples": batch * logged[-1]["step"] if logged else 0,
        "hours": sum(batch * (entry["step"] - before) / entry["samples_per_second"] for before, entry in spans) / 3600,
        "seed": config.seed,
        "data": [" ".join(_name(dataset)) for dataset in config.data.train],
        "optimization": asdict(config.optimization),
        "curve": {
            str(entry["step"]): entry["validation/mean_iou"] for entry in entries if "validation/mean_iou" in entry
        },
        "hardware": hardware,
    }
    return {**facts, "summary": _summarise(config, facts)}


def describe_model(config: TrainingConfig) -> About:
    """What is to be said of a model that knows drawn shapes only; of others only a person can say anything."""
    if {dataset["name"] for dataset in config.data.train} != {"refshapes"}:
        return About()
    return About(
        name="CrossVLT, RefShapes",
        summary="A CrossVLT that finds in a drawn scene the one shape that a sentence means. **It was trained on "
        "RefShapes, drawn shapes, and knows nothing of photographs.**",
        language=["en"],
        intended_use="Trying the package, and experiments on drawn scenes (`crossvlt refshapes FOLDER` writes some).",
        limits="Photographs, other words than those of RefShapes, and sentences that mean several objects or none.",
        image="scene.png",
        expression="the largest object",
    )


def _name(dataset: dict[str, Any]) -> tuple[str, str]:
    """The name of a data set, of a folder only its last part, and the split."""
    return public_name(str(dataset["name"])), str(dataset["split"])


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 0.1 else f"{60 * hours:.1f} minutes"


def _origin(config: TrainingConfig) -> str:
    model = config.model
    if model.checkpoint:
        return "the weights of another checkpoint"
    encoders = [Path(name).name for name in (model.vision_encoder, model.text_encoder) if name]
    return " and ".join(encoders) or "noise"


def _summarise(config: TrainingConfig, facts: dict[str, Any]) -> str:
    options = config.optimization
    curve = ", ".join(f"{value:.3f} (step {step})" for step, value in facts["curve"].items() if value is not None)
    text_rate = f", {options.text_learning_rate:g} for the language stages" if options.text_learning_rate else ""
    warm_up = f"warm-up of {options.warmup_steps} steps"
    if facts["steps"] <= options.warmup_steps:
        warm_up += ", in which the run ended, below its peak"
    lines = [
        f"{facts['samples']:,} pairs of an image and an expression of {', '.join(facts['data'])}, in "
        f"{facts['steps']:,} steps of {options.batch_size}, from {_origin(config)}, seed {config.seed}; "
        f"{_duration(facts['hours'])} of logged steps on {facts['hardware']}.",
        f"AdamW, peak learning rate {options.learning_rate:g}{text_rate}, schedule {options.schedule}, {warm_up}, "
        f"weight decay {options.weight_decay:g}, mixed precision {options.mixed_precision or 'as launched'}"
        f"{f', averaged weights ({options.ema_decay:g})' if options.ema_decay else ''}.",
    ]
    if curve:
        lines.append(f"Mean IoU on validation data: {curve}.")
    return "\n".join(lines)


def validation_report(folder: str | Path, *, best: bool, image_size: tuple[int, int], hardware: str) -> dict[str, Any]:
    """The best or the last evaluation of a run as a report such as `crossvlt evaluate` writes; {} without any."""
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
