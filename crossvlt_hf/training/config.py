"""What a training run is made of, read from YAML; the defaults are the authors' recipe (`docs/reproduce.md`)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict, validated_field

from ..configuration_crossvlt import write_file
from .settings import TEXT_OPTIONS, override, read_settings, read_yaml, write_yaml


Validator = Callable[[Any], None]


def _at_least(low: int) -> Validator:
    """A whole or broken number, or None."""

    def validate(value: Any) -> None:
        if value is not None and not low <= value < math.inf:
            raise ValueError(f"must be {low} or more, got {value}.")

    return validate


def _positive(value: Any) -> None:
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"must be a number above 0, got {value}.")


def _share(value: Any) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"must be a number between 0 and 1, got {value}.")


def _decay(value: Any) -> None:
    if value is not None and not 0 < value < 1:
        raise ValueError(f"must be a number between 0 and 1, got {value}.")


def _two_shares(values: Any) -> None:
    if len(values) != 2 or not all(0 <= value < 1 for value in values):
        raise ValueError(f"must be two numbers from 0 to below 1, got {values}.")


SOURCES = {"text": TEXT_OPTIONS}  # metadata of fields that hold arguments of `load_data`


@strict
@dataclass
class ModelOptions:
    """Where the weights start.

    Args:
        checkpoint: a CrossVLT checkpoint to go on from (folder, Hub id, or "built-in"), in place of encoders, config
            and tokenizer.
        add_words: give the tokenizer the words of the training data that it does not know, with new embeddings.
        vision_encoder: pretrained Swin (folder, file or Hub id); None starts from noise.
        text_encoder: pretrained BERT (folder or Hub id); None starts from noise.
        config: fields of `CrossVLTConfig` to override.
        tokenizer: folder or Hub id; None takes that of the text encoder, or bert-base-uncased's, which is built in;
            "refshapes" the words of RefShapes alone.
        image_size: side in pixels to which images are squashed; None takes the checkpoint's.
        max_length: the most tokens of an expression, [CLS] and [SEP] included; None takes the checkpoint's, or 21.
        freeze: beginnings of the names of parameters that are not trained, such as "text_model.embeddings".
        gradient_checkpointing: compute activations twice instead of keeping them.
    """

    checkpoint: str | None = None
    add_words: bool = False
    vision_encoder: str | None = None
    text_encoder: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    image_size: int | None = validated_field(_at_least(1), default=None)
    max_length: int | None = validated_field(_at_least(3), default=None)
    freeze: list[str] = field(default_factory=list)
    gradient_checkpointing: bool = False


@strict
@dataclass
class DataOptions:
    """What is learnt from. A data set is a dict of the arguments of `load_data`: name, split, root, ...

    Args:
        root: of the data sets that name none.
        train: data sets, all of whose references an epoch takes.
        validation: data sets, on which together the best checkpoint is chosen.
        exclude: data sets whose images are left out of training (test splits of a mix).
        group: how many references of one image come together in a batch, if it has that many.
        masked_words: see `Collator`.
        masked_patches: see `Collator`.
        workers: processes that prepare data, for each process of training.
        on_error: "stop" at a reference that cannot be read; "skip" it, count it, and take the next.
    """

    root: str | None = None
    train: list[dict[str, Any]] = field(default_factory=list, metadata=SOURCES)
    validation: list[dict[str, Any]] = field(default_factory=list, metadata=SOURCES)
    exclude: list[dict[str, Any]] = field(default_factory=list, metadata=SOURCES)
    group: int = validated_field(_at_least(1), default=1)
    masked_words: float | int = validated_field(_share, default=0.0)
    masked_patches: float | int = validated_field(_share, default=0.0)
    workers: int = validated_field(_at_least(0), default=2)
    on_error: Literal["stop", "skip"] = "stop"


@strict
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
        schedule_options: its further arguments; None is power 0.9 down to 0 for "polynomial", nothing for others.
        warmup_steps: in which the learning rate rises from 0.
        max_grad_norm: the gradient is clipped to; None clips nothing.
        ema_decay: of the averaged weights that are evaluated and saved; None averages nothing.
        mixed_precision: "no", "bf16" or "fp16"; None leaves it to `accelerate launch`.
        sync_batch_norm: BatchNorm over all processes, where they have GPUs.
        freeze_batch_norm: BatchNorm with its running statistics, which then do not change.
    """

    epochs: int = validated_field(_at_least(1), default=40)
    max_steps: int | None = validated_field(_at_least(1), default=None)
    batch_size: int = validated_field(_at_least(1), default=12)
    accumulation: int = validated_field(_at_least(1), default=1)
    learning_rate: float | int = validated_field(_positive, default=3e-5)
    text_learning_rate: float | int | None = validated_field(_positive, default=None)
    betas: list[float | int] = field(default_factory=lambda: [0.9, 0.999], metadata={"validator": [_two_shares]})
    weight_decay: float | int = validated_field(_at_least(0), default=0.01)
    schedule: str = "polynomial"
    schedule_options: dict[str, Any] | None = None
    warmup_steps: int = validated_field(_at_least(0), default=0)
    max_grad_norm: float | int | None = validated_field(_positive, default=None)
    ema_decay: float | int | None = validated_field(_decay, default=None)
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    sync_batch_norm: bool = True
    freeze_batch_norm: bool = False

    def __post_init__(self) -> None:
        if self.schedule_options is None:
            self.schedule_options = {"power": 0.9, "lr_end": 0.0} if self.schedule == "polynomial" else {}


@strict
@dataclass
class OutputOptions:
    """What is written, and when.

    Args:
        folder: of everything.
        log_steps: steps between lines of the log, which hold means over them; None is 50, or a twentieth of a run of
            less than 1,000 steps.
        evaluation_steps: steps between evaluations; None is once an epoch.
        checkpoint_steps: steps between checkpoints, beside those before every evaluation; None writes only these.
        evaluation_batch_size: pairs at a time, in each process.
        keep: how many checkpoints stay.
        pictures: how many predictions are drawn at each evaluation.
        trackers: of Accelerate: tensorboard, wandb, ...
        push_to_hub: a Hub id to which the best weights go at the end.
    """

    folder: str = "runs/crossvlt"
    log_steps: int | None = validated_field(_at_least(1), default=None)
    evaluation_steps: int | None = validated_field(_at_least(1), default=None)
    checkpoint_steps: int | None = validated_field(_at_least(1), default=None)
    evaluation_batch_size: int = validated_field(_at_least(1), default=16)
    keep: int = validated_field(_at_least(1), default=2)
    pictures: int = validated_field(_at_least(0), default=8)
    trackers: list[str] = field(default_factory=list)
    push_to_hub: str | None = None


@strict
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
    seed: int = validated_field(_at_least(0), default=42)

    def __post_init__(self) -> None:
        if not self.data.train:
            raise ValueError("`data.train` must have at least one data set, got an empty list.")
        for name in ("train", "validation", "exclude"):
            for number, source in enumerate(getattr(self.data, name)):
                if not source.get("name") or not source.get("split"):
                    raise ValueError(f"`data.{name}[{number}]` must have `name` and `split`, got {source}.")
        if self.model.checkpoint is None:
            return
        for name in ("vision_encoder", "text_encoder", "config", "tokenizer"):  # a checkpoint brings its own
            if getattr(self.model, name):
                raise ValueError(f"`model.{name}` has no effect with `model.checkpoint`; set only one of them.")

    def save(self, path: Path) -> None:
        """Write the whole configuration, defaults included, as YAML; a file that is there is replaced at once."""
        write_file(path, write_yaml(asdict(self)).encode())


# What may be another when a run goes on: it changes where, how fast and whether, not what is computed
MAY_CHANGE = (
    "data.root",
    "data.workers",
    "data.on_error",
    "model.gradient_checkpointing",
    "optimization.accumulation",
)
LENGTH = ("optimization.epochs", "optimization.max_steps")
# The learning rate of a step does not depend on how many there will be
ENDLESS_SCHEDULES = ("constant", "constant_with_warmup", "inverse_sqrt")


def check_same_run(config: TrainingConfig, before: TrainingConfig) -> None:
    """Check that a run goes on with the settings it began with; it may become longer where that changes no step.

    Raises:
        ValueError: if one differs that would make it another run.
    """
    now, then = asdict(config), asdict(before)
    endless = config.optimization.schedule in ENDLESS_SCHEDULES
    for section in ("model", "data", "optimization"):
        for name, value in now[section].items():
            full, old = f"{section}.{name}", then[section][name]
            if value == old or full in MAY_CHANGE or (full in LENGTH and endless):
                continue
            if full == "optimization.epochs" and config.optimization.max_steps and before.optimization.max_steps:
                continue  # which counts instead
            changed = f"`{full}` was {old!r} when the run began and is {value!r}"
            if full in LENGTH and config.optimization.schedule == before.optimization.schedule:
                raise ValueError(
                    f"{changed}, but the learning rates of the schedule {config.optimization.schedule!r} depend on "
                    "the number of steps, so the run cannot be prolonged exactly; begin another from its weights by "
                    f"model.checkpoint={Path(config.output.folder) / 'last'} and another output.folder."
                )
            raise ValueError(f"{changed}; give the same, or another output.folder.")
    if config.seed != before.seed:
        raise ValueError(f"`seed` was {before.seed} when the run began and is {config.seed}; give the same.")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Read a configuration.

    Text is text, whatever it looks like in YAML: `no`, `007`, `12:30`, dates.

    Args:
        path: of a YAML file, or the name of one that comes with the package (`refcoco`, `refshapes`, ...).
        overrides: such as "optimization.batch_size=8"; the value is read as YAML, unless the setting is text.

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
        values = read_yaml(source.read_text(encoding="utf-8"), str(path))
        for setting in overrides:
            values = override(TrainingConfig, values, setting)
        return read_settings(TrainingConfig, values)
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
