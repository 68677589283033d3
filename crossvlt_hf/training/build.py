"""Build model, processor and data of a training run from its configuration."""

import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType
from datasets import Dataset
from transformers import BertTokenizer, PreTrainedTokenizerBase

from ..configuration_crossvlt import CrossVLTConfig, CrossVLTTextConfig, CrossVLTVisionConfig
from ..data import NAMES, exclude_images, load_data
from ..data.load import find_own_folder
from ..data.pairs import EvaluationPairs
from ..data.refshapes import LANGUAGES, vocabulary
from ..data.refshapes.dataset import languages_of
from ..modeling_crossvlt import CrossVLTModel
from ..processing_crossvlt import CrossVLTProcessor, counted
from ..system import check_known, did_you_mean, some_names
from ..weights.checkpoint import load_checkpoint
from ..weights.encoders import from_pretrained_encoders
from ..weights.names import check_source
from ..weights.vocabulary import add_words, default_tokenizer, load_tokenizer
from .config import DataOptions, ModelOptions, OptimizationOptions, TrainingConfig
from .optimization import build_schedule


def check_config(config: TrainingConfig, processes: int | None = None) -> None:
    """Check a configuration on this machine, before weights and data are loaded.

    Args:
        config: of the run.
        processes: number of processes; None for those that were launched.

    Raises:
        OSError: if there is no such checkpoint.
        ValueError: if a setting is wrong; names it.
    """
    _check_trackers(config.output.trackers)
    _check_schedule(config.optimization)
    _check_model(config.model)
    for name in ("train", "validation", "exclude"):
        for number, source in enumerate(getattr(config.data, name)):
            _check_data({"root": config.data.root} | source, f"data.{name}[{number}]")
    share = config.optimization.accumulation * (processes or int(os.environ.get("WORLD_SIZE", "1")))
    if config.optimization.batch_size % share:
        raise ValueError(
            f"`optimization.batch_size` must be divisible by {share} (`optimization.accumulation` times processes), "
            f"got {config.optimization.batch_size}."
        )


def check_processes(accelerator: Accelerator) -> None:
    """Raise ValueError unless Accelerate uses all processes that were launched."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise ValueError(
            f"{launched} processes were launched, but Accelerate uses {accelerator.num_processes}; on the CPU set "
            "ACCELERATE_USE_CPU=true and use examples/accelerate/cpu.yaml. FSDP needs GPUs."
        )


def _check_trackers(trackers: Sequence[str]) -> None:
    """Raise ValueError for unknown and missing trackers, which Accelerate would ignore."""
    installed = [str(name) for name in get_available_trackers()]
    for name in trackers:
        if name == "all" and installed:
            continue
        check_known("output.trackers", name, ["all", *LOGGER_TYPE_TO_CLASS])
        if name not in installed and name in LoggerType.list():  # others were registered by a program
            raise ValueError(
                f"`output.trackers` must be installed trackers ({', '.join(installed) or 'there are none'}), got "
                f"{name!r}; install {'one' if name == 'all' else name}, or leave it out."
            )


def _check_schedule(options: OptimizationOptions) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    try:
        schedule = build_schedule(optimizer, options, steps=options.max_steps or 100)
        optimizer.step()
        schedule.step()
    except TypeError as error:
        raise ValueError(
            f"`optimization.schedule` must depend on the step alone, got {options.schedule!r}."
        ) from error


def _check_model(options: ModelOptions) -> None:
    _check_fields(CrossVLTConfig, options.config, "model.config")
    if options.checkpoint is not None:
        check_source(options.checkpoint)
        CrossVLTConfig(**options.config)  # raises for wrong values
    elif (options.vision_encoder is None) != (options.text_encoder is None):
        raise ValueError("Set both `model.vision_encoder` and `model.text_encoder`, or neither.")
    elif options.vision_encoder is None:
        CrossVLTConfig(**options.config)  # raises for wrong values


def _check_fields(kind: type[Any], given: dict[str, Any], setting: str) -> None:
    """Raise ValueError for a field that a config does not have, which the library would keep without an effect."""
    known = [field.name for field in fields(kind)]
    parts = {"vision_config": CrossVLTVisionConfig, "text_config": CrossVLTTextConfig}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"There is no field `{setting}.{name}`.{did_you_mean(name, known)}")
        if isinstance(value, dict) and name in parts:
            _check_fields(parts[name], value, f"{setting}.{name}")


def _check_data(source: dict[str, Any], setting: str) -> None:
    name = source["name"]
    if name in NAMES or find_own_folder(name, source["root"]) is not None:
        return
    hint = did_you_mean(name, NAMES, cutoff=0.8) or f" There is no such folder, and data sets are {', '.join(NAMES)}."
    raise ValueError(f"`{setting}.name` must be a folder or a data set, got {name!r}.{hint}")


ENGLISH = ("en",)
REFSHAPES_TOKENIZERS = {
    "refshapes": ENGLISH,
    **{f"refshapes-{language}": (language,) for language in LANGUAGES if language not in ENGLISH},
    "refshapes-all": tuple(LANGUAGES),
}


def refshapes_tokenizer(languages: Sequence[str] = ENGLISH) -> BertTokenizer:
    """A BERT tokenizer with only the words of RefShapes.

    Args:
        languages: those of its words. Accents distinguish words, unless English is the only one.
    """
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *chain.from_iterable(map(vocabulary, languages))]
    ids = {word: number for number, word in enumerate(dict.fromkeys(words))}
    return BertTokenizer(vocab=ids, strip_accents=None if tuple(languages) == ENGLISH else False)


def build_tokenizer(options: ModelOptions) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the options.

    Raises:
        OSError: if there is no such tokenizer.
        ValueError: if it is none of `REFSHAPES_TOKENIZERS`, but named like them.
    """
    own = options.tokenizer
    if own in REFSHAPES_TOKENIZERS:
        return refshapes_tokenizer(REFSHAPES_TOKENIZERS[own])
    if own is not None and own.startswith("refshapes-") and not Path(own).exists():
        check_known("model.tokenizer", own, REFSHAPES_TOKENIZERS)
    name = own or options.text_encoder
    return default_tokenizer() if name is None else load_tokenizer(name)


def build_model(
    options: ModelOptions, datasets: Sequence[Dataset] = (), tell: Callable[[str], None] = lambda line: None
) -> tuple[CrossVLTModel, CrossVLTProcessor]:
    """Build model and processor from a CrossVLT checkpoint, from pretrained encoders, or with random weights.

    Args:
        options: see `ModelOptions`.
        datasets: the training data, for `add_words`.
        tell: called with a line about the words that are added.

    Raises:
        OSError: if a checkpoint is missing or broken.
        ValueError: if options contradict each other.
    """
    if options.checkpoint is not None:
        model, processor = load_checkpoint(options.checkpoint, dtype="float32")
        processor.score_calibration = None  # of the weights before training
        model = _reconfigure(model, options.config)
        _resize(processor, options)
    else:
        model, processor = _new_model(options)
    limit = model.config.text_config.max_position_embeddings
    if options.max_length is not None and options.max_length > limit:
        raise ValueError(
            f"`model.max_length` must be at most {limit}, the number of positions, got {options.max_length}."
        )
    if options.add_words:
        texts = [text for dataset in datasets for text in _texts(dataset)]
        tell(_describe_added(add_words(model, processor, texts)))
    _freeze(model, options.freeze)
    if options.gradient_checkpointing:
        model.activation_checkpointing_enable()
    return model.train(), processor


def _texts(dataset: Dataset) -> list[str]:
    """The expressions of a data set; for RefShapes, which would be drawn for them, all words of its languages."""
    if (languages := languages_of(dataset)) is None:
        return EvaluationPairs(dataset).texts()
    return [word for language in languages for word in vocabulary(language)]


def _reconfigure(model: CrossVLTModel, changes: dict[str, Any]) -> CrossVLTModel:
    """Change fields of the config of a trained model; a presence head that it does not have gets new weights."""
    if not changes:
        return model
    changed = CrossVLTModel(CrossVLTConfig(**{**model.config.to_dict(), **changes}))
    missing, unexpected = changed.load_state_dict(model.state_dict(), strict=False)
    others = [name for name in (*missing, *unexpected) if not name.startswith("presence_head.")]
    if others:
        raise RuntimeError(f"Only the presence head may differ from the checkpoint, got {others[0]}.")
    return changed


def _freeze(model: CrossVLTModel, starts: Sequence[str]) -> None:
    """Freeze the parameters whose names start with one of `starts`."""
    names = [name for name, _ in model.named_parameters()]
    if unused := [start for start in starts if not any(name.startswith(start) for name in names)]:
        raise ValueError(f"`model.freeze` must be prefixes of parameter names, got {unused[0]!r}.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(starts)))


def _describe_added(words: list[str]) -> str:
    """The line of the log about words that were added."""
    if not words:
        return "No words were added: the vocabulary knows all of the training data."
    return f"Added {counted(len(words), 'word')} of the training data to the vocabulary: {some_names(words, 10)}"


def _resize(processor: CrossVLTProcessor, options: ModelOptions) -> None:
    """Set the sizes that the options give, and nothing else, in the processor of a checkpoint."""
    size, length = options.image_size or 480, options.max_length or 21
    sized = CrossVLTProcessor.from_tokenizer(processor.tokenizer, size, length)  # checks both
    if options.image_size is not None:
        processor.image_processor.size = sized.image_processor.size
    if options.max_length is not None:
        processor.tokenizer = sized.tokenizer


def _new_model(options: ModelOptions) -> tuple[CrossVLTModel, CrossVLTProcessor]:
    tokenizer, size = build_tokenizer(options), options.image_size or 480
    processor = CrossVLTProcessor.from_tokenizer(tokenizer, size, options.max_length or 21)
    vision, text_encoder = options.vision_encoder, options.text_encoder
    if vision is None and text_encoder is None:
        text = {"vocab_size": len(tokenizer), **options.config.get("text_config", {})}
        return CrossVLTModel(CrossVLTConfig(**{**options.config, "text_config": text})), processor
    model, _ = from_pretrained_encoders(vision, text_encoder, **options.config)
    return model, processor


def load_datasets(entries: Sequence[dict[str, Any]], root: str | None = None) -> list[Dataset]:
    """Load data sets.

    Args:
        entries: arguments of `load_data` for each.
        root: of entries without a `root`.

    Raises:
        ValueError: if a data set has no such option.
    """
    return [load_data(**({"root": root} | entry)) for entry in entries]


def load_training_data(options: DataOptions) -> list[Dataset]:
    """Load the training data, without images of the data sets to exclude."""
    held_out, datasets = (load_datasets(entries, options.root) for entries in (options.exclude, options.train))
    return [exclude_images(dataset, *held_out) if held_out else dataset for dataset in datasets]
