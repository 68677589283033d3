"""Model, processor and data of a training run, as its configuration says."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import BertTokenizer, PreTrainedTokenizerBase

from ..configuration_crossvlt import CrossVLTConfig
from ..data import exclude_images, load_data
from ..data.refshapes import vocabulary
from ..encoders import from_pretrained_encoders
from ..loading import load_checkpoint
from ..modeling_crossvlt import CrossVLTModel
from ..processing_crossvlt import CrossVLTProcessor
from ..tokenization import default_tokenizer, load_tokenizer
from .config import DataOptions, ModelOptions


def refshapes_tokenizer() -> BertTokenizer:
    """BERT's tokenizer with the words of RefShapes alone."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *vocabulary()]
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)})


def build_tokenizer(options: ModelOptions) -> PreTrainedTokenizerBase:
    """The tokenizer that the options name."""
    if options.tokenizer == "refshapes":
        return refshapes_tokenizer()
    name = options.tokenizer or options.text_encoder
    return default_tokenizer() if name is None else load_tokenizer(name)


def build_model(options: ModelOptions) -> tuple[CrossVLTModel, CrossVLTProcessor]:
    """Model and processor, from a checkpoint of ours, from pretrained encoders, or from noise.

    Raises:
        OSError: if a checkpoint is missing or broken.
        ValueError: if the options do not fit each other.
    """
    if options.checkpoint is not None:
        model, processor = load_checkpoint(options.checkpoint, dtype="float32")
        processor.score_calibration = None  # was of the weights before
        if options.image_size is not None:
            processor = CrossVLTProcessor.from_tokenizer(processor.tokenizer, options.image_size, processor.max_length)
    else:
        model, processor = _new_model(options)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(options.freeze)))
    if unused := [
        start for start in options.freeze if not any(n.startswith(start) for n, _ in model.named_parameters())
    ]:
        raise ValueError(f"`model.freeze` names {unused[0]!r}, but no parameter's name begins so.")
    if options.gradient_checkpointing:
        model.activation_checkpointing_enable()
    return model.train(), processor


def _new_model(options: ModelOptions) -> tuple[CrossVLTModel, CrossVLTProcessor]:
    tokenizer, size = build_tokenizer(options), options.image_size or 480
    processor = CrossVLTProcessor.from_tokenizer(tokenizer, size, options.max_length)
    vision, text_encoder = options.vision_encoder, options.text_encoder
    if vision is None and text_encoder is None:
        text = {"vocab_size": len(tokenizer), **options.config.get("text_config", {})}
        return CrossVLTModel(CrossVLTConfig(**{**options.config, "text_config": text})), processor
    if vision is None or text_encoder is None:
        raise ValueError("Give both `model.vision_encoder` and `model.text_encoder`, or neither.")
    model, _ = from_pretrained_encoders(vision, text_encoder, **options.config)
    return model, processor


def load_datasets(entries: Sequence[dict[str, Any]], root: str | None = None) -> list[Dataset]:
    """The data sets that some dicts of arguments of `load_data` describe, in `root` where they name no other.

    Raises:
        ValueError: if one has no name or split, or takes no such argument.
    """
    datasets = []
    for entry in entries:
        if not {"name", "split"} <= entry.keys():
            raise ValueError(f"The data set {entry} lacks `name` or `split`; give both.")
        try:
            datasets.append(load_data(**({"root": root} | entry)))
        except TypeError as error:
            if "argument" not in str(error):
                raise
            raise ValueError(f"The data set {entry} has a setting that it does not take: {error}") from error
    return datasets


def load_training_data(options: DataOptions) -> list[Dataset]:
    """The data sets to train on, without the images of those held out."""
    held_out, datasets = (load_datasets(entries, options.root) for entries in (options.exclude, options.train))
    return [exclude_images(dataset, *held_out) if held_out else dataset for dataset in datasets]
