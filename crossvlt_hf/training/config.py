"""What a training run is made of, read from YAML; the defaults are the authors' recipe (`docs/reproduce.md`)."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from ..data.readable import ON_ERROR


@dataclass
class ModelOptions:
    """Where the weights start.

    Args:
        checkpoint: a CrossVLT checkpoint to go on from (folder or Hub id), in place of encoders, config and tokenizer.
        vision_encoder: pretrained Swin (folder, file or Hub id); None starts from noise.
        text_encoder: pretrained BERT (folder or Hub id); None starts from noise.
        config: fields of `CrossVLTConfig` to override.
        tokenizer: folder or Hub id; None takes that of the text encoder, or bert-base-uncased's, which is built in;
            "refshapes" the words of RefShapes alone.
        image_size: side in pixels to which images are squashed; None takes the checkpoint's.
        max_length: the most tokens of an expression, [CLS] and [SEP] included.
        freeze: beginnings of the names of parameters that are not trained, such as "text_model.embeddings".
        gradient_checkpointing: compute activations twice instead of keeping them.
    """

    checkpoint: str | None = None
    vision_encoder: str | None = None
    text_encoder: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    image_size: int | None = None
    max_length: int = 21
    freeze: list[str] = field(default_factory=list)
    gradient_checkpointing: bool = False


@dataclass
class DataOptions:
    """What is learnt from. A data set is a dict of the arguments of `load_data`: name, split, root, ...

    Args:
        root: of the data sets that name none.
        train: data sets, all of whose references an epoch takes.
        validation: data sets, on which together the best checkpoint is chosen.
        exclude: data sets whose images are left out of training (test splits of a mix).
        group: how many references of one image come together in a batch, where it has so many.
        masked_words: see `Collator`.
        masked_patches: see `Collator`.
        workers: processes that prepare data, for each process of training.
        on_error: "stop" at a reference that cannot be read; "skip" it, count it, and take the next.
    """

    root: str | None = None
    train: list[dict[str, Any]] = field(default_factory=list)
    validation: list[dict[str, Any]] = field(default_factory=list)
    exclude: list[dict[str, Any]] = field(default_factory=list)
    group: int = 1
    masked_words: float = 0.0
    masked_patches: float = 0.0
    workers: int = 2
    on_error: str = "stop"


@dataclass
class OptimizationOptions:
    """How it is learnt.

    Args:
        epochs: over all references.
        max_steps: of the optimizer, in place of epochs.
        batch_size: pairs for each step of the optimizer, over all processes and accumulated batches together.
        accumulation: batches of each process for each step.
        learning_rate: the peak.
        text_learning_rate: that of the language stages; None is the same.
        betas: of AdamW.
        weight_decay: of all but norms, relative position biases and temperatures.
        schedule: a name of `transformers.get_scheduler`.
        schedule_options: its further arguments.
        warmup_steps: in which the learning rate rises from 0.
        max_grad_norm: the gradient is clipped to; None clips nothing.
        ema_decay: of the averaged weights that are evaluated and saved; None averages nothing.
        mixed_precision: "no", "bf16" or "fp16"; None leaves it to `accelerate launch`.
        sync_batch_norm: BatchNorm over all processes, where they have GPUs.
        freeze_batch_norm: BatchNorm with its running statistics, which then do not change.
    """

    epochs: int = 40
    max_steps: int | None = None
    batch_size: int = 12
    accumulation: int = 1
    learning_rate: float = 3e-5
    text_learning_rate: float | None = None
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 0.01
    schedule: str = "polynomial"
    schedule_options: dict[str, Any] = field(default_factory=lambda: {"power": 0.9, "lr_end": 0.0})
    warmup_steps: int = 0
    max_grad_norm: float | None = None
    ema_decay: float | None = None
    mixed_precision: str | None = None
    sync_batch_norm: bool = True
    freeze_batch_norm: bool = False


@dataclass
class OutputOptions:
    """What is written, and when.

    Args:
        folder: of everything.
        log_steps: steps between lines of the log.
        evaluation_steps: steps between evaluations and checkpoints; None is once an epoch.
        evaluation_batch_size: pairs at a time, in each process.
        keep: how many checkpoints stay.
        pictures: how many predictions are drawn at each evaluation.
        trackers: of Accelerate: tensorboard, wandb, ...
        push_to_hub: a Hub id to which the best weights go at the end.
    """

    folder: str = "runs/crossvlt"
    log_steps: int = 50
    evaluation_steps: int | None = None
    evaluation_batch_size: int = 16
    keep: int = 2
    pictures: int = 8
    trackers: list[str] = field(default_factory=list)
    push_to_hub: str | None = None


@dataclass
class TrainingConfig:
    """A training run.

    Args:
        model: see `ModelOptions`.
        data: see `DataOptions`.
        optimization: see `OptimizationOptions`.
        output: see `OutputOptions`.
        seed: of new weights, dropout, order and choice.
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    optimization: OptimizationOptions = field(default_factory=OptimizationOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    seed: int = 42

    def __post_init__(self) -> None:
        if not self.data.train:
            raise ValueError("`data.train` is empty; give at least one data set.")
        for section in (self.model, self.data, self.optimization, self.output):
            name = next(entry.name for entry in fields(self) if getattr(self, entry.name) is section)
            for setting, (low, high) in RANGES.items():
                value = getattr(section, setting, None)
                if value is not None and not low <= value <= high:
                    raise ValueError(f"`{name}.{setting}` is {value}; give {_range(low, high)}.")
        if self.optimization.mixed_precision not in (None, "no", "bf16", "fp16"):
            raise ValueError(
                f"`optimization.mixed_precision` is {self.optimization.mixed_precision!r}; give no, bf16 or fp16."
            )
        if self.data.on_error not in ON_ERROR:
            raise ValueError(f"`data.on_error` is {self.data.on_error!r}; give one of {', '.join(ON_ERROR)}.")
        if len(self.optimization.betas) != 2:
            raise ValueError(f"`optimization.betas` is {self.optimization.betas}; give two numbers.")
        self._check_model()

    def _check_model(self) -> None:
        """A checkpoint brings what it is made of."""
        if self.model.checkpoint is None:
            return
        for name in ("vision_encoder", "text_encoder", "config", "tokenizer"):
            if getattr(self.model, name):
                raise ValueError(f"`model.{name}` says nothing beside `model.checkpoint`; give one of the two.")

    def save(self, path: Path) -> None:
        """Write the whole configuration, defaults included, as YAML; a file that is there is replaced at once."""
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(yaml.safe_dump(asdict(self), sort_keys=False))
        partial.replace(path)


# Settings that have a least and a greatest value, in whatever section
TINY = 1e-30
RANGES = {
    **dict.fromkeys(("epochs", "max_steps", "batch_size", "accumulation", "group", "image_size"), (1, math.inf)),
    **dict.fromkeys(("log_steps", "evaluation_steps", "evaluation_batch_size", "keep"), (1, math.inf)),
    **dict.fromkeys(("workers", "warmup_steps", "pictures", "weight_decay"), (0, math.inf)),
    **dict.fromkeys(("learning_rate", "text_learning_rate", "max_grad_norm"), (TINY, math.inf)),
    **dict.fromkeys(("masked_words", "masked_patches"), (0, 1)),
    "ema_decay": (TINY, 1 - 1e-9),
}


def _range(low: float, high: float) -> str:
    if math.isinf(high):
        return "a number above 0" if low == TINY else f"{low} or more"
    return "a number between 0 and 1"


# What may be another when a run goes on: it changes where, how fast and whether, not what is computed
MAY_CHANGE = (
    "data.root",
    "data.workers",
    "data.on_error",
    "model.gradient_checkpointing",
    "optimization.accumulation",
)


def check_same_run(config: TrainingConfig, before: TrainingConfig) -> None:
    """Check that a run goes on with the settings it began with.

    Raises:
        ValueError: if one differs that would make it another run.
    """
    now, then = asdict(config), asdict(before)
    for section in ("model", "data", "optimization"):
        for name, value in now[section].items():
            if value != then[section][name] and f"{section}.{name}" not in MAY_CHANGE:
                raise ValueError(
                    f"`{section}.{name}` was {then[section][name]!r} when the run began and is {value!r}; give the "
                    "same, or another output.folder."
                )
    if config.seed != before.seed:
        raise ValueError(f"`seed` was {before.seed} when the run began and is {config.seed}; give the same.")


def _fill(kind: type, values: Any, name: str) -> Any:
    """A dataclass of nested dicts; numbers may be written as integers, or as YAML reads 3e-5 (a string)."""
    if not isinstance(values, dict):
        raise ValueError(f"`{name or 'the configuration'}` is {values!r}; give a table of names and values.")
    known = {entry.name: entry for entry in fields(kind)}
    if unknown := sorted(map(str, values.keys() - known.keys())):
        raise ValueError(f"There is no setting `{name}{unknown[0]}`; there are {', '.join(known)}.")
    filled = {}
    for key, value in values.items():
        default = getattr(kind(), key) if kind is not TrainingConfig else None
        section = known[key].default_factory if kind is TrainingConfig else None
        if isinstance(section, type) and is_dataclass(section):
            filled[key] = _fill(section, value, f"{key}.")
        else:
            filled[key] = _converted(value, str(known[key].type), default, f"{name}{key}")
    return kind(**filled)


def _converted(value: Any, kind: str, default: Any, name: str) -> Any:
    """A value of the kind that its field is annotated with."""
    optional, kind = (
        "None" in kind,
        kind.replace("typing.", "").replace(" | None", "").removeprefix("<class '").removesuffix("'>"),
    )
    try:
        if value is None and optional:
            return None
        if kind == "float" and isinstance(value, int | float | str) and not isinstance(value, bool):
            return float(value)
        if kind == "list[float]" and isinstance(value, list):
            return [float(entry) for entry in value]
    except (ValueError, TypeError):
        pass
    plain = {"int": int, "bool": bool, "str": str}.get(kind, list if kind.startswith("list") else dict)
    entries = {"list[str]": str, "list[dict[str, Any]]": dict}.get(kind)
    wrong = entries is not None and isinstance(value, list) and any(type(entry) is not entries for entry in value)
    if kind == "float" or type(value) is not plain or wrong:
        raise ValueError(f"`{name}` is {value!r}; give {kind}{' or null' if optional else ''}.")
    return value


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Read a configuration.

    Args:
        path: of a YAML file, or the name of one that comes with the package (`refcoco`, `refshapes`, ...).
        overrides: such as "optimization.batch_size=8"; the value is read as YAML.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is not YAML, or a setting does not exist or does not fit.
    """
    source = Path(path)
    if not source.suffix:
        source = Path(__file__).parent / "configs" / f"{path}.yaml"
    if not source.is_file():
        shipped = ", ".join(sorted(file.stem for file in source.parent.glob("*.yaml")))
        raise FileNotFoundError(
            f"There is no configuration {path}; give a YAML file{f', or one of {shipped}' if shipped else ''}."
        )
    try:
        values = yaml.safe_load(source.read_text(encoding="utf-8")) or {}
        for override in overrides:
            name, equals, value = override.partition("=")
            if not equals:
                raise ValueError(f"The setting {override!r} has no value; write name=value.")
            _set(values, name.split("."), yaml.safe_load(value))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    return _fill(TrainingConfig, values, "")


def _set(values: Any, names: list[str], value: Any) -> None:
    for name in names[:-1]:
        values = values.setdefault(name, {}) if isinstance(values, dict) else values
    if not isinstance(values, dict):
        raise ValueError(f"There is no setting `{'.'.join(names)}`.")
    values[names[-1]] = value
