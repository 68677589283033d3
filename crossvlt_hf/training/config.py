"""Configuration of a training run, read from YAML; the defaults are the authors' (`docs/reproduce.md`)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict, validated_field

from ..system import MOST_WORKERS, did_you_mean
from .settings import NULL, TEXT_OPTIONS, override, read_settings, read_yaml, write_yaml


Validator = Callable[[Any], None]


def _at_least(low: int) -> Validator:
    """Validate a number of at least `low`, or None."""

    def validate(value: Any) -> None:
        if value is not None and not low <= value < math.inf:
            raise ValueError(f"must be {low} or more, got {value}.")
        if value is not None and value > LARGEST:
            raise ValueError(f"must be at most {LARGEST}, got {value}.")

    return validate


def _workers(value: Any) -> None:
    if not 0 <= value <= MOST_WORKERS:
        raise ValueError(f"must be from 0 to {MOST_WORKERS}, got {value}.")


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


LARGEST = 2**31 - 1  # of numbers that libraries take
# Fields of the config that leave the weights of a checkpoint as they are; a new presence head is added to them
CHECKPOINT_FIELDS = ("presence_head", "presence_loss_weight", "dice_loss_weight")
# Settings that a checkpoint brings with it, besides its config
OF_A_CHECKPOINT = ("vision_encoder", "text_encoder", "tokenizer")
SOURCES = {"text": TEXT_OPTIONS}  # metadata of fields that hold arguments of `load_data`


@strict
@dataclass
class ModelOptions:
    """The model to train.

    Args:
        checkpoint: CrossVLT checkpoint to start from (folder, Hub id, or "built-in"), instead of encoders, config and
            tokenizer. On the command line, it replaces those of the file.
        add_words: add the unknown words of the training data to the tokenizer, with new embeddings; for RefShapes,
            all words of its languages.
        vision_encoder: pretrained Swin (folder, file or Hub id); None for random weights.
        text_encoder: pretrained BERT (folder or Hub id); None for random weights.
        config: fields of `CrossVLTConfig` to override; with `checkpoint`, only those of `CHECKPOINT_FIELDS`.
        tokenizer: folder or Hub id; None for that of the text encoder, or the built-in one of bert-base-uncased;
            "refshapes" for only the words of RefShapes in English, "refshapes-de" in German, "refshapes-zh" in
            Chinese, "refshapes-all" in all three.
        image_size: side in pixels to which images are resized; None for that of the checkpoint, or 480.
        max_length: the most tokens of an expression, with [CLS] and [SEP]; None for that of the checkpoint, or 21.
        freeze: starts of the names of parameters not to train, such as "text_model.embeddings".
        gradient_checkpointing: recompute activations in the backward pass to save memory.
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
    """The data. A data set is a dict of the arguments of `load_data`: name, split, root, ...

    Args:
        root: of data sets without a `root`.
        train: training data; an epoch uses all references.
        validation: validation data, all of it used to choose the best weights.
        exclude: data sets whose images are excluded from training, such as test splits.
        group: how many references of an image to keep together in a batch, if it has that many. The model then
            computes the first stage of such an image once, without `masked_patches`.
        masked_words: see `Collator`.
        masked_patches: see `Collator`.
        workers: processes that load data, per training process.
        on_error: "stop" at an unreadable reference, or "skip" it, count it, and use the next one.
    """

    root: str | None = None
    train: list[dict[str, Any]] = field(default_factory=list, metadata=SOURCES)
    validation: list[dict[str, Any]] = field(default_factory=list, metadata=SOURCES)
    exclude: list[dict[str, Any]] = field(default_factory=list, metadata=SOURCES)
    group: int = validated_field(_at_least(1), default=1)
    masked_words: float | int = validated_field(_share, default=0.0)
    masked_patches: float | int = validated_field(_share, default=0.0)
    workers: int = validated_field(_workers, default=2)
    on_error: Literal["stop", "skip"] = "stop"


@strict
@dataclass
class OptimizationOptions:
    """The optimization.

    Args:
        epochs: number of epochs.
        max_steps: number of optimizer steps, instead of epochs.
        batch_size: pairs per optimizer step, over all processes and accumulated batches.
        accumulation: batches per process and step.
        learning_rate: the peak.
        text_learning_rate: that of the language stages; None for the same.
        betas: of AdamW.
        weight_decay: of all weights but norms, relative position biases and temperatures.
        schedule: a name of `transformers.get_scheduler`.
        schedule_options: its other arguments; None for power 0.9 down to 0 for "polynomial", and nothing for others.
        warmup_steps: steps in which the learning rate rises from 0.
        max_grad_norm: norm to clip the gradient to; None for no clipping.
        ema_decay: decay of averaged weights, which are evaluated and saved instead; None for no averaging.
        mixed_precision: "no", "bf16", "fp16", or "auto": "bf16" on hardware that multiplies in it, and otherwise "no";
            None for the setting of `accelerate launch`.
        sync_batch_norm: synchronise BatchNorm over processes with GPUs.
        freeze_batch_norm: use the running statistics of BatchNorm and do not update them.
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
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] | None = None
    sync_batch_norm: bool = True
    freeze_batch_norm: bool = False

    def __post_init__(self) -> None:
        if self.schedule_options is None:
            self.schedule_options = {"power": 0.9, "lr_end": 0.0} if self.schedule == "polynomial" else {}


@strict
@dataclass
class OutputOptions:
    """The output.

    Args:
        folder: of the run.
        log_steps: steps between log entries, which are means over these steps; None for 50, or a twentieth of a run of
            fewer than 1,000 steps.
        evaluation_steps: steps between evaluations; None for once per epoch.
        checkpoint_steps: steps between checkpoints, in addition to one before every evaluation.
        evaluation_batch_size: pairs per forward pass and process.
        keep: number of checkpoints to keep.
        pictures: number of predictions to draw at each evaluation.
        curves: draw the log as curves.png at the end, if matplotlib is installed.
        trackers: of Accelerate: tensorboard, wandb, ...
        push_to_hub: Hub id to upload the best weights to at the end.
    """

    folder: str = "runs/crossvlt"
    log_steps: int | None = validated_field(_at_least(1), default=None)
    evaluation_steps: int | None = validated_field(_at_least(1), default=None)
    checkpoint_steps: int | None = validated_field(_at_least(1), default=None)
    evaluation_batch_size: int = validated_field(_at_least(1), default=16)
    keep: int = validated_field(_at_least(1), default=2)
    pictures: int = validated_field(_at_least(0), default=8)
    curves: bool = True
    trackers: list[str] = field(default_factory=list)
    push_to_hub: str | None = None


def _named_splits(source: dict[str, Any], root: str | None) -> str:
    """The message about the splits of a data set without `split`; empty if it has no name either."""
    if not source.get("name"):
        return ""
    from ..data import load_data  # only for messages, since the import takes a second

    try:
        load_data(str(source["name"]), root=source.get("root", root))
    except (OSError, ValueError) as error:
        return f" {error}"
    return ""


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
                    splits = _named_splits(source, self.data.root)
                    raise ValueError(f"`data.{name}[{number}]` must have `name` and `split`, got {source}.{splits}")
        if self.model.checkpoint is None:
            return
        for name in OF_A_CHECKPOINT:
            if getattr(self.model, name):
                raise ValueError(f"`model.{name}` has no effect with `model.checkpoint`; set only one of them.")
        for name in self.model.config:
            if name not in CHECKPOINT_FIELDS:
                raise ValueError(
                    "With `model.checkpoint`, fields of `model.config` must be some of "
                    f"{', '.join(CHECKPOINT_FIELDS)}, since the checkpoint has its own config, got {name!r}."
                )

    def save(self, path: Path) -> None:
        """Write the configuration, with defaults, as YAML, atomically."""
        from ..configuration_crossvlt import write_file  # imports the library, which a configuration does not need

        write_file(path, write_yaml(asdict(self)).encode())


# Settings that may change when a run is resumed, since they do not change the result
MAY_CHANGE = (
    "data.root",
    "data.workers",
    "data.on_error",
    "model.gradient_checkpointing",
    "optimization.accumulation",
)
LENGTH = ("optimization.epochs", "optimization.max_steps")
# Schedules that do not depend on the number of steps
ENDLESS_SCHEDULES = ("constant", "constant_with_warmup", "inverse_sqrt")


def check_same_run(config: TrainingConfig, before: TrainingConfig) -> None:
    """Check that a run is resumed with its settings; it may become longer if that changes no learning rate.

    Raises:
        ValueError: if a setting that changes the result differs.
    """
    now, then = asdict(config), asdict(before)
    endless = config.optimization.schedule in ENDLESS_SCHEDULES
    for section in ("model", "data", "optimization"):
        for name, value in now[section].items():
            full, old = f"{section}.{name}", then[section][name]
            if value == old or full in MAY_CHANGE or (full in LENGTH and endless):
                continue
            if full == "optimization.epochs" and config.optimization.max_steps and before.optimization.max_steps:
                continue  # `max_steps` replaces it
            changed = f"`{full}` was {old!r} when the run started and is {value!r}"
            if full in LENGTH and config.optimization.schedule == before.optimization.schedule:
                last = Path(config.output.folder) / "last"
                advice = "use the same, or another output.folder"
                if last.is_dir():
                    advice = f"start another from its weights with model.checkpoint={last} and another output.folder"
                raise ValueError(
                    f"{changed}, but the learning rates of the schedule {config.optimization.schedule!r} depend on "
                    f"the number of steps, so the run cannot be continued exactly; {advice}."
                )
            saved = Path(config.output.folder) / "config.yaml"
            raise ValueError(f"{changed}; use the same (all are in {saved}, a CONFIG too), or another output.folder.")
    if config.seed != before.seed:
        raise ValueError(f"`seed` was {before.seed} when the run started and is {config.seed}; use the same.")


def _names_checkpoint(overrides: Sequence[str]) -> bool:
    """Whether the command line has a checkpoint to start from, as a setting of its own."""
    found: Any = None
    for setting in overrides:
        if setting.startswith("model.checkpoint="):
            found = override(TrainingConfig, None, setting)["model"]["checkpoint"]
    return found not in (None, *NULL)


def _leave_out(values: Any, tell: Callable[[str], Any]) -> Any:
    """Leave out the settings of a file that a checkpoint of the command line replaces."""
    model = values.get("model") if isinstance(values, dict) else None
    if not isinstance(model, dict):
        return values
    config = model.get("config")
    fields = [name for name in config if name not in CHECKPOINT_FIELDS] if isinstance(config, dict) else []
    names = [name for name in OF_A_CHECKPOINT if model.get(name) not in (None, *NULL)]
    if not names and not fields:
        return values
    replaced = ", ".join([*(f"`model.{name}`" for name in names), *(f"`model.config.{name}`" for name in fields)])
    tell(f"`model.checkpoint` of the command line replaces {replaced}.")
    kept = {name: value for name, value in model.items() if name not in names}
    if isinstance(config, dict):
        kept["config"] = {name: value for name, value in config.items() if name not in fields}
    return {**values, "model": kept}


def load_config(
    path: str | Path, overrides: Sequence[str] = (), tell: Callable[[str], Any] = lambda line: None
) -> TrainingConfig:
    """Read a configuration.

    Text settings stay text, even if YAML would convert them: `no`, `007`, `12:30`, dates.

    Args:
        path: YAML file, or name of a configuration of the package (`refcoco`, `refshapes`, ...).
        overrides: such as "optimization.batch_size=8"; the value is read as YAML, unless the setting is text.
            "model.checkpoint=..." also replaces the encoders, the tokenizer and the config of the file.
        tell: called with a line about what is replaced.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is not YAML, or a setting does not exist or has a wrong value.
    """
    source = Path(path)
    if not source.suffix:
        source = Path(__file__).parent / "configs" / f"{path}.yaml"
    if not source.is_file():
        if Path(path).is_dir():
            raise ValueError(
                f"{path} is a folder; a configuration is a YAML file, which names it: "
                "`data: {train: [{name: FOLDER, split: train}]}` (docs/training.md)."
            )
        shipped = sorted(file.stem for file in (Path(__file__).parent / "configs").glob("*.yaml"))
        beside = sorted(file.name for file in Path(path).parent.glob("*.yaml"))
        raise FileNotFoundError(
            f"There is no configuration {path}; give a YAML file, or one of {', '.join(shipped)}."
            f"{did_you_mean(Path(path).name, [*beside, *shipped])}"
        )
    try:
        values = read_yaml(source.read_text(encoding="utf-8"), str(path))
        if _names_checkpoint(overrides):
            values = _leave_out(values, tell)
        for setting in overrides:
            values = override(TrainingConfig, values, setting)
        return read_settings(TrainingConfig, values)
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
