"""CrossVLT, a network for referring image segmentation (Cho, Yu, Kang, IEEE TMM 2023).

"Cross-aware Early Fusion with Stage-divided Vision and Language Transformer Encoders for Referring Image
Segmentation", https://arxiv.org/abs/2408.07539.

The layers are in `layers_crossvlt.py`. Shapes: B pairs of an image and an expression, T words (tokens) of width D,
grid (H, W) of a stage with width C and N = H * W positions. Pixels always have the shape (B, H, W, C).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from pathlib import Path
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_crossvlt import (
    LABELS,
    LABELS_MESSAGE,
    CrossVLTConfig,
    CrossVLTTextConfig,
    CrossVLTVisionConfig,
    find_named,
    take_hub_options,
    upload_folder,
)
from .layers_crossvlt import (
    CrossVLTAlignment,
    CrossVLTDecoder,
    CrossVLTFusion,
    CrossVLTFusionAttention,
    CrossVLTPatchEmbeddings,
    CrossVLTPointwise,
    CrossVLTPresenceHead,
    CrossVLTStage,
    CrossVLTTextAttention,
    CrossVLTTextEmbeddings,
    CrossVLTTextStage,
    CrossVLTVisionStage,
    CrossVLTWindowAttention,
    at_least_float32,
    is_library_attention,
    upsample,
)


logger = logging.get_logger(__name__)

# Added to the attention scores of masked positions. Finite, so that rows of padding stay finite, and well within the
# range of float16, so that scores can be added.
MASKED = -3e4
# Cross-entropy weights of background and object, weight of the mask loss, ignored label
CLASS_WEIGHTS = (0.9, 1.1)
MASK_LOSS_WEIGHT = 2.0
IGNORE_INDEX = 255
INTEGERS = (torch.int32, torch.int64)
# Keyword arguments that forward accepts and ignores, of the processor, and of Transformers' decorators and Trainer
PASSED_ALONG = ("original_sizes", "use_cache", "is_causal", "num_items_in_batch")
# Keyword arguments of other models that this one does not have
UNSUPPORTED = ("position_ids", "inputs_embeds", "output_router_logits")


@dataclass
class CrossVLTVisionOutput(ModelOutput):
    """Output of [`CrossVLTVisionModel`].

    Args:
        last_hidden_state: (B, H, W, C) pixels after the last stage.
        hidden_states: patch embeddings, then the pixels after the blocks of each stage, (B, H, W, C) each.
        attentions: window attention of every block, (B * windows, heads, window**2, window**2) each.
    """

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class CrossVLTTextOutput(ModelOutput):
    """Output of [`CrossVLTTextModel`].

    Args:
        last_hidden_state: (B, T, D) words after the last stage.
        text_hidden_states: words after each stage, (B, T, D) each.
        text_attentions: self-attention of every BERT layer, (B, heads, T, T) each.
        cross_attentions: attention of words to pixels in stages 2-4, (B, heads, T, N) each.
    """

    last_hidden_state: Tensor | None = None
    text_hidden_states: tuple[Tensor, ...] | None = None
    text_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass
class CrossVLTOutput(ModelOutput):
    """Output of [`CrossVLTModel`].

    Args:
        loss: scalar, `2 * (mask_loss + dice_loss_weight * dice_loss) + alignment_loss`, plus with a presence head
            `presence_loss_weight * presence_loss`; if there are labels.
        logits: (B, 2, height, width) float32 at the size of the image. Channel 1 is the referred object, channel 0 the
            background.
        presence_logits: (B,) float32 logits of the probability of a target; if `config.presence_head`.
        mask_loss: scalar, weighted cross-entropy of the logits; if there are labels.
        dice_loss: scalar, one minus the soft Dice coefficient; if there are labels and `config.dice_loss_weight`.
        alignment_loss: scalar, sum over stages of the binary cross-entropy of the alignment maps; if there are labels.
        presence_loss: scalar, binary cross-entropy of the presence logits; if there are labels and
            `config.presence_head`.
        alignment_maps: a (B, 1, H, W) float32 map for each aligned stage: cosine of every pixel with the sentence,
            divided by the temperature of the stage; with labels or `output_alignment_maps=True`.
        hidden_states: as in [`CrossVLTVisionOutput`]; from stage 2 on, pixels have attended to words.
        attentions: as in [`CrossVLTVisionOutput`].
        text_hidden_states: as in [`CrossVLTTextOutput`].
        text_attentions: as in [`CrossVLTTextOutput`].
        cross_attentions: as in [`CrossVLTTextOutput`].
        fusion_hidden_states: outputs of the fusions, (B, H, W, C) each: stage 1, merged stage 1, stage 2, ... stage 4.
        fusion_attentions: attention of pixels to words, (B, heads, N, T) each, in the same order.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    presence_logits: Tensor | None = None
    mask_loss: Tensor | None = None
    dice_loss: Tensor | None = None
    alignment_loss: Tensor | None = None
    presence_loss: Tensor | None = None
    alignment_maps: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    text_hidden_states: tuple[Tensor, ...] | None = None
    text_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    fusion_hidden_states: tuple[Tensor, ...] | None = None
    fusion_attentions: tuple[Tensor, ...] | None = None


# ---- losses


def mask_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Weighted cross-entropy of (B, 2, H, W) logits with (B, H, W) labels.

    Equal to `F.cross_entropy(..., reduction="mean")`, but 0 instead of NaN if all labels are ignored.
    """
    background, target = CLASS_WEIGHTS
    is_object = (labels == 1).to(logits.dtype)
    weight = (labels != IGNORE_INDEX) * (background + (target - background) * is_object)
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")
    return (weight * losses).sum() / weight.sum().clamp(min=background)


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """One minus the soft Dice coefficient of the probability of the object, mean over the batch."""
    target = (labels == 1).to(logits.dtype)
    probability = F.softmax(logits, dim=1)[:, 1] * (labels != IGNORE_INDEX)
    intersection = (probability * target).sum((1, 2))
    return (1 - (2 * intersection + 1) / (probability.sum((1, 2)) + target.sum((1, 2)) + 1)).mean()


def alignment_loss(alignment_maps: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Sum over stages of the binary cross-entropy of the maps, upsampled to the (B, H, W) labels (section III-C)."""
    if not alignment_maps:
        return torch.zeros((), device=labels.device)
    labels = labels.to(alignment_maps[0].device)
    valid = (labels != IGNORE_INDEX).to(alignment_maps[0].dtype)[:, None]
    target = (labels == 1).to(valid.dtype)[:, None]
    losses = [
        F.binary_cross_entropy_with_logits(upsample(map_, like=target), target, weight=valid, reduction="sum")
        for map_ in alignment_maps
    ]
    return sum(losses, start=valid.new_zeros(())) / valid.sum().clamp(min=1)


def presence_loss(presence_logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of (B,) logits; the target is whether the (H, W) labels of a pair have an object.

    The mean is over pairs with labels that are not ignored; it is 0 without any.
    """
    labels = labels.flatten(1)
    valid = (labels != IGNORE_INDEX).any(1).to(presence_logits.dtype)
    target = (labels == 1).any(1).to(presence_logits.dtype)
    total = F.binary_cross_entropy_with_logits(presence_logits, target, weight=valid, reduction="sum")
    return total / valid.sum().clamp(min=1)


def total_loss(
    config: CrossVLTConfig,
    mask_loss: Tensor,
    alignment_loss: Tensor,
    dice_loss: Tensor | float = 0.0,
    presence_loss: Tensor | float = 0.0,
) -> Tensor:
    """The total loss (section III-D), with optional Dice and presence terms."""
    loss = MASK_LOSS_WEIGHT * (mask_loss + config.dice_loss_weight * dice_loss) + alignment_loss
    return loss + config.presence_loss_weight * presence_loss


# ---- evaluation during training

# Modules that are temporarily in evaluation mode, and the number of their `evaluating` contexts
_EVALUATING: dict[nn.Module, int] = {}
_EVALUATING_LOCK = Lock()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and restore the mode of every module afterwards.

    Unlike `model.train()`, this leaves frozen BatchNorms and dropouts in evaluation mode. Contexts of several threads
    may overlap; the last one restores the modes. Another thread must not train the model meanwhile: it would do so in
    evaluation mode.

    Args:
        model: any module.
    """
    with _EVALUATING_LOCK:
        modules = [module for module in model.modules() if module.training or module in _EVALUATING]
        for module in modules:
            _EVALUATING[module] = _EVALUATING.get(module, 0) + 1
            module.training = False
    try:
        yield
    finally:
        with _EVALUATING_LOCK:
            for module in modules:
                _EVALUATING[module] -= 1
                if not _EVALUATING[module]:
                    del _EVALUATING[module]
                    module.training = True


# ---- the models


def record_both_encoders(forward: Callable) -> Callable:
    """Let `output_hidden_states` and `output_attentions` record all outputs of that kind.

    Transformers' `capture_outputs` only records the keys with exactly these names, and cross-attentions together with
    attentions, regardless of `output_cross_attentions`.
    """

    @wraps(forward)
    def wrapper(self: PreTrainedModel, *args: Any, **kwargs: Any) -> ModelOutput | tuple:
        keys = self._can_record_outputs or {}
        asked = {key: _is_asked(key, kwargs, self.config) for key in keys}
        if any(asked[key] and key.endswith("attentions") for key in keys):
            _warn_without_weights(self)
        kwargs |= {f"output_{key}": value for key, value in asked.items()}
        if "cross_attentions" in asked:
            kwargs["output_attentions"] = asked.get("attentions") or asked["cross_attentions"]
        return_dict = kwargs.pop("return_dict", None)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        output = forward(self, *args, **kwargs, return_dict=True)
        if any(not asked.get(name, True) for name in output):
            output = type(output)(**{name: value for name, value in output.items() if asked.get(name, True)})
        return output if return_dict else output.to_tuple()

    return wrapper


def argument_names(forward: Callable) -> list[str]:
    """The names of the arguments of a forward, without `self` and `kwargs`."""
    return [name for name in signature(forward).parameters if name not in ("self", "kwargs")]


def _is_asked(key: str, kwargs: dict[str, Any], config: PreTrainedConfig) -> Any:
    """Whether to record an output, by its own argument, that of its kind, or the config."""
    kind = "hidden_states" if key.endswith("hidden_states") else "attentions"
    for name in (f"output_{key}", f"output_{kind}"):
        if kwargs.get(name) is not None:
            return kwargs[name]
    return getattr(config, f"output_{kind}", False)


def _warn_without_weights(model: PreTrainedModel) -> None:
    """Warn, as other models do, that only eager attention and custom functions return attention weights."""
    for name in sorted(attention_implementations(model) - {"eager"}):
        if is_library_attention(name):
            logger.warning_once(
                f"`{name}` attention does not return its weights, so there are no attentions in the output. Load the "
                'model with `attn_implementation="eager"`, or call `model.set_attn_implementation("eager")`.'
            )


def attention_implementations(model: PreTrainedModel) -> set[str]:
    """The names of the attention implementations of a model and its parts."""
    configs = [model.config, *(getattr(model.config, name) for name in model.config.sub_configs)]
    return {config._attn_implementation or "eager" for config in configs}


# ---- inputs


def is_readable(x: Tensor) -> bool:
    """Whether values can be checked at no cost: they are on the CPU, and no graph is compiled."""
    return type(x) is Tensor and x.device.type == "cpu" and not torch.compiler.is_compiling()


def check_tensors(**values: Any) -> None:
    """Raise ValueError if an input is neither a tensor nor None."""
    for name, value in values.items():
        if value is not None and not isinstance(value, Tensor):
            raise ValueError(f"`{name}` must be a tensor, got {type(value).__name__}.")


def check_images(config: CrossVLTVisionConfig, pixel_values: Any) -> None:
    """Raise ValueError unless images are (B, channels, height, width) floats of at least one pixel."""
    if not isinstance(pixel_values, Tensor):
        raise ValueError(f"`pixel_values` must be a tensor, got {type(pixel_values).__name__}.")
    channels = config.num_channels
    if pixel_values.ndim != 4 or pixel_values.shape[1] != channels or 0 in pixel_values.shape:
        raise ValueError(
            f"`pixel_values` must have shape (batch, {channels}, height, width), got {tuple(pixel_values.shape)}."
        )
    if not pixel_values.is_floating_point():
        raise ValueError(f"`pixel_values` must be normalised floats, got dtype {pixel_values.dtype}.")


def check_words(
    config: CrossVLTTextConfig,
    input_ids: Any,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
    batch: int | None = None,
) -> None:
    """Check expressions.

    Args:
        config: of the language encoder.
        input_ids: (B, T) token ids.
        attention_mask: (B, T), or None.
        token_type_ids: (B, T), or None.
        batch: required number of expressions; None for any number.

    Raises:
        ValueError: if a shape or dtype is wrong, or, on the CPU, an id is not in the vocabulary.
    """
    if not isinstance(input_ids, Tensor):
        raise ValueError(f"`input_ids` must be a tensor, got {type(input_ids).__name__}.")
    check_tensors(attention_mask=attention_mask, token_type_ids=token_type_ids)
    check_number_of_words(input_ids, config.max_position_embeddings, batch)
    for name, value in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
        if value is not None and value.shape != input_ids.shape:
            raise ValueError(
                f"`{name}` must have the shape of `input_ids` {tuple(input_ids.shape)}, got {tuple(value.shape)}."
            )
    kept = attention_mask
    if kept is not None and is_readable(kept) and not ((kept == 0) | (kept == 1)).all():
        raise ValueError("`attention_mask` must be 1 for words and 0 for padding, got other values.")
    check_ids("input_ids", input_ids, config.vocab_size)
    check_ids("token_type_ids", token_type_ids, config.type_vocab_size)


def check_number_of_words(input_ids: Tensor, longest: int, batch: int | None) -> None:
    """Raise ValueError unless ids have shape (B, T), with B = `batch` (if given) and T from 1 to `longest`."""
    # Not `len`, which would fix the size in an export
    counted = input_ids.ndim == 2 and input_ids.shape[0] == (input_ids.shape[0] if batch is None else batch)
    if counted and input_ids.shape[0] > 0 and 1 <= input_ids.shape[1] <= longest:
        return
    shape, hint = f"(batch, tokens) with 1 to {longest} tokens", ""
    if batch is not None:
        shape = f"({batch}, tokens) with 1 to {longest} tokens, an expression for each image"
        hint = " For several expressions of an image, use `expressions_per_image`."
    raise ValueError(f"`input_ids` must have shape {shape}, got {tuple(input_ids.shape)}.{hint}")


def check_ids(name: str, ids: Tensor | None, size: int) -> None:
    """Raise ValueError unless ids are integers and, if they are on the CPU, from 0 to `size` - 1."""
    if ids is None:
        return
    if ids.dtype not in INTEGERS:
        raise ValueError(f"`{name}` must be int64, got {ids.dtype}.")
    if is_readable(ids) and (ids.min() < 0 or ids.max() >= size):
        raise ValueError(
            f"`{name}` must be from 0 to {size - 1}, got {ids.min()} to {ids.max()}; use the tokenizer of the model."
        )


def check_labels(labels: Tensor, shape: tuple[int, int, int]) -> None:
    """Raise ValueError unless labels are integers of shape (B, H, W) and, if they are on the CPU, 0, 1 or 255."""
    if labels.shape != shape or labels.is_floating_point():
        raise ValueError(
            f"`labels` must be integers of shape {shape}: 1 for the object, 0 for background, {IGNORE_INDEX} to "
            f"ignore; got shape {tuple(labels.shape)} and dtype {labels.dtype}."
        )
    if is_readable(labels):
        values = labels.long()  # in int8, -1 would equal 255
        known = (values == 0) | (values == 1) | (values == IGNORE_INDEX)
        if not known.all():
            raise ValueError(
                f"`labels` must be 1 for the object, 0 for background or {IGNORE_INDEX} to ignore, got "
                f"{labels[~known][0]}."
            )


def check_size_for_training(height: int, width: int, most: int) -> None:
    """Raise ValueError if a side of a single image is not above `most` pixels, where maps have a single position."""
    if max(height, width) <= most:
        raise ValueError(
            f"A single image must have more than {most} pixels a side in training, since BatchNorm needs several "
            f"values, got {height}x{width}."
        )


class CrossVLTPreTrainedModel(PreTrainedModel):
    """Weight initialisation and properties of the models for Transformers."""

    config: CrossVLTConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    # All operations on tensors of two modules are inside one of these, so modules can be on different devices.
    _no_split_modules = [
        "CrossVLTPatchEmbeddings",
        "CrossVLTPatchMerging",
        "CrossVLTVisionBlock",
        "CrossVLTTextEmbeddings",
        "CrossVLTTextLayer",
        "CrossVLTAlignment",
        "CrossVLTFusion",
        "CrossVLTGatedResidual",
        "CrossVLTDecoderBlock",
        "CrossVLTPresenceHead",
    ]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # For `from_pretrained`; `.to` and `from_config` cast the weights, but the computation is always float32
    _keep_in_fp32_modules_strict = ["fusion", "merged_fusion"]
    # Not quantized; see "int8 weights" in docs/performance.md
    _keep_in_fp32_modules = [r".*fusion"]
    # Trainer has to divide the loss by the number of accumulation steps.
    accepts_loss_kwargs = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint, of a folder, a Hub id, or "built-in": see [`PreTrainedModel.from_pretrained`]."""
        return super().from_pretrained(find_named(pretrained_model_name_or_path), *args, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save weights, config and code, so that the folder loads without this package.

        Args:
            save_directory: folder, which is created if it does not exist.
            is_main_process: whether this process writes config and weights, and uploads.
            state_dict: the weights to save; None for those of the model.
            push_to_hub: whether to upload its files.
            kwargs: see [`PreTrainedModel.save_pretrained`], and of `upload_folder`.
        """
        options = take_hub_options(save_directory, kwargs) if push_to_hub else {}
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
        if push_to_hub and self.should_save_on_this_rank(is_main_process):
            given = options.pop("tags", None) or []
            tags = [*(self.model_tags or []), *([given] if isinstance(given, str) else given)]
            upload_folder(save_directory, **options, tags=tags)

    def _attention_kwargs(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Select the arguments of forward for the attention function.

        Raises:
            TypeError: for an unknown argument, such as a misspelt one.
        """
        recorded = [f"output_{key}" for key in self._can_record_outputs or {}]
        read = [*recorded, "output_hidden_states", "output_attentions", *PASSED_ALONG]
        passed = {name: value for name, value in kwargs.items() if value is not None and name not in read}
        if not passed and not kwargs.get("output_attentions"):
            return {}
        custom = any(not is_library_attention(name) for name in attention_implementations(self))
        for name in passed:
            hint = "" if torch.compiler.is_compiling() else self._hint(name, read)
            if hint or not custom or name in UNSUPPORTED:
                raise TypeError(f"{type(self).__name__}.forward() got an unexpected keyword argument {name!r}.{hint}")
        if custom and kwargs.get("output_attentions"):
            passed["output_attentions"] = True
        return passed

    def _hint(self, name: str, read: Sequence[str]) -> str:
        """What to pass in place of an unknown argument of forward; empty if nothing is similar."""
        own = argument_names(type(self).forward)
        if name in argument_names(CrossVLTModel.forward):  # and not of this encoder, or Python would have taken it
            return f" Pass only {', '.join(own)}."
        close = get_close_matches(name, [*own, *read], n=1, cutoff=0.8)
        return f" Did you mean {close[0]!r}?" if close else ""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise weights; `init.*` skips loaded ones.

        Linear of the language encoder, Embedding   normal, std `initializer_range`; the padding token 0
        other Linear, including gates               truncated normal, std `initializer_range`
        bias of a Linear                            0
        LayerNorm, BatchNorm                        weight 1, bias 0, running mean 0, running variance 1
        Conv2d (patch embedding, decoder)           torch's default
        query, output and projection of a fusion    Kaiming normal
        relative position bias                      truncated normal, std `initializer_range`
        temperature of an alignment                 `alignment_temperature`
        """
        std = self.config.initializer_range
        if isinstance(module, nn.Linear) and self.main_input_name == "pixel_values":
            if isinstance(module, CrossVLTPointwise):
                init.kaiming_normal_(module.weight)
            else:
                init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, CrossVLTWindowAttention):
            init.trunc_normal_(module.relative_position_bias_table, std=std)
            init.copy_(module.relative_position_index, module.compute_relative_position_index())
        elif isinstance(module, CrossVLTAlignment):
            init.constant_(module.temperature, self.config.alignment_temperature)
        else:
            super()._init_weights(module)


# Weights of a whole checkpoint outside the encoders
OF_THE_WHOLE = (
    r"^stages\.\d+\.(alignment|fusion|norm|gate|merged_fusion|merged_gate)\.",
    r"^decoder\.",
    r"^presence_head\.",
)


class CrossVLTVisionModel(CrossVLTPreTrainedModel):
    """The vision encoder: a Swin Transformer v1 in four stages, without final norm and without words."""

    config: CrossVLTVisionConfig
    base_model_prefix = "vision_model"  # prefix of its weights in a whole checkpoint
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", *OF_THE_WHOLE]
    input_modalities = ["image"]
    _can_record_outputs = {
        "hidden_states": OutputRecorder(CrossVLTVisionStage, num_hidden_layers_key="num_stages"),
        "attentions": CrossVLTWindowAttention,
    }

    def __init__(self, config: CrossVLTVisionConfig) -> None:
        super().__init__(config)
        self.patch_embeddings = CrossVLTPatchEmbeddings(config)
        self.stages = nn.ModuleList(CrossVLTVisionStage(config, stage) for stage in range(config.num_stages))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The convolution of the patch embedding."""
        return self.patch_embeddings.projection

    @record_both_encoders
    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: Tensor, **kwargs: Unpack[TransformersKwargs]) -> CrossVLTVisionOutput:
        """Encode (B, channels, height, width) normalised images of any size.

        Raises:
            TypeError: for an unknown argument.
            ValueError: if the images have another shape, or are not floats.
        """
        kwargs = self._attention_kwargs(kwargs)
        check_images(self.config, pixel_values)
        pixels = self.patch_embeddings(pixel_values)
        for stage in self.stages:
            pixels = stage(pixels, **kwargs)
            if stage.downsample is not None:
                pixels = stage.downsample(pixels)
        return CrossVLTVisionOutput(last_hidden_state=pixels)


class CrossVLTTextModel(CrossVLTPreTrainedModel):
    """The language encoder: BERT in four stages. Without pixels, it skips the cross-attention blocks."""

    config: CrossVLTTextConfig
    base_model_prefix = "text_model"  # prefix of its weights in a whole checkpoint
    _keys_to_ignore_on_load_unexpected = [r"^vision_model\.", *OF_THE_WHOLE]
    main_input_name = "input_ids"
    input_modalities = ["text"]
    _can_record_outputs = {
        "text_hidden_states": CrossVLTTextStage,
        "text_attentions": OutputRecorder(CrossVLTTextAttention, index=1, layer_name="layers"),
        "cross_attentions": OutputRecorder(CrossVLTTextAttention, index=1, layer_name="cross_attention"),
    }

    def __init__(self, config: CrossVLTTextConfig) -> None:
        super().__init__(config)
        # Stage 1 does not attend to pixels
        later: Sequence[int | None] = config.context_dims or [None] * (config.num_stages - 1)
        dims = [None, *later]
        self.embeddings = CrossVLTTextEmbeddings(config)
        self.stages = nn.ModuleList(CrossVLTTextStage(config, stage, dim) for stage, dim in enumerate(dims))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embedding."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embedding."""
        self.embeddings.word_embeddings = value

    @record_both_encoders
    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CrossVLTTextOutput:
        """Encode (B, T) token ids; `attention_mask` (B, T) is 1 for words and 0 for padding.

        Raises:
            TypeError: for an unknown argument.
            ValueError: if shapes or dtypes are wrong; on the CPU also for ids outside the vocabulary.
        """
        kwargs = self._attention_kwargs(kwargs)
        check_words(self.config, input_ids, attention_mask, token_type_ids)
        words = self.embeddings(input_ids, token_type_ids)
        mask = word_mask(attention_mask, like=words)
        for stage in self.stages:
            words = stage(words, mask, **kwargs)
        return CrossVLTTextOutput(last_hidden_state=words)


def word_mask(attention_mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Convert a (B, T) mask, 1 for words and 0 for padding, to (B, 1, 1, T) terms of the attention scores."""
    if attention_mask is None:
        return None
    return (attention_mask[:, None, None, :] == 0).to(like.dtype) * MASKED


def repeat_images(pixels: Tensor, counts: Tensor, total: int) -> Tensor:
    """(images, H, W, C) -> (total, H, W, C), each image `counts` times; for counts on the CPU, a GPU does not wait."""
    order = torch.repeat_interleave(counts, output_size=total)
    return pixels.index_select(0, order.to(pixels.device, non_blocking=True))


class CrossVLTModel(CrossVLTPreTrainedModel):
    """CrossVLT: segments the object in an image that an expression refers to."""

    _can_record_outputs = {
        **CrossVLTVisionModel._can_record_outputs,
        **CrossVLTTextModel._can_record_outputs,
        "fusion_hidden_states": CrossVLTFusion,
        "fusion_attentions": CrossVLTFusionAttention,
    }

    def __init__(self, config: CrossVLTConfig) -> None:
        super().__init__(config)
        config.validate()  # fields may have changed since the config was made
        if config.num_labels != len(LABELS):  # a config must allow it, since Transformers sets it
            raise ValueError(LABELS_MESSAGE.format(config.num_labels))
        config.text_config.context_dims = config.context_dims
        self.vision_model = CrossVLTVisionModel._from_config(config.vision_config)
        self.text_model = CrossVLTTextModel._from_config(config.text_config)
        self.stages = nn.ModuleList(CrossVLTStage(config, stage) for stage in range(config.num_stages))
        self.decoder = CrossVLTDecoder(config)
        self.presence_head = CrossVLTPresenceHead(config) if config.presence_head else None
        self.post_init()
        # `post_init` adds those of the encoders, which would hide unexpected weights of this model
        self._keys_to_ignore_on_load_unexpected: set[str] = set()
        # FSDP refuses names without modules, as in ablations and without the presence head
        self._no_split_modules &= {type(module).__name__ for module in self.modules()}

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint, of a folder, a Hub id, or "built-in": see [`PreTrainedModel.from_pretrained`].

        Raises:
            ValueError: if the temperature of an alignment is NaN or infinite, as after a training that diverged.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with `output_loading_info`
        for name, value in model.named_parameters():
            if name.endswith("alignment.temperature") and not value.is_meta and not value.isfinite().all():
                raise ValueError(
                    f"`{name}` of the checkpoint must be a finite number, got {value.item()}: its training diverged. "
                    "Load an earlier checkpoint."
                )
        return loaded

    def get_input_embeddings(self) -> nn.Module:
        """The word embedding of the language encoder."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embedding of the language encoder."""
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(
        self, pixel_values: Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple | BaseModelOutputWithPooling:
        """Encode images with the vision encoder, without words.

        Args:
            pixel_values: (B, channels, height, width) normalised images of any size.
            kwargs: see [`CrossVLTVisionModel`].

        Returns:
            "last_hidden_state" (B, H, W, C), the grid of the last stage; "pooler_output" (B, C), its mean; on request
            "hidden_states" and "attentions" as in [`CrossVLTVisionOutput`].

        Raises:
            TypeError: for other arguments, such as those of words.
        """
        found = self.vision_model(pixel_values, **{**kwargs, "return_dict": True})
        return BaseModelOutputWithPooling(
            last_hidden_state=found.last_hidden_state,
            pooler_output=found.last_hidden_state.mean(dim=(1, 2)),
            hidden_states=found.hidden_states,
            attentions=found.attentions,
        )

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """Encode expressions with the language encoder, without pixels.

        Args:
            input_ids: (B, T) token ids, [CLS] first, padding last.
            attention_mask: (B, T), 1 for words and 0 for padding; None means no padding.
            token_type_ids: (B, T) token types; None means 0.
            kwargs: see [`CrossVLTTextModel`].

        Returns:
            "last_hidden_state" (B, T, D), words after the last stage; "pooler_output" (B, D), that of [CLS]; on
            request "hidden_states", (B, T, D) after each stage, and "attentions", (B, heads, T, T) of every layer.

        Raises:
            TypeError: for other arguments, such as `pixel_values` and `expressions_per_image` of a processor's output.
        """
        found = self.text_model(input_ids, attention_mask, token_type_ids, **{**kwargs, "return_dict": True})
        return BaseModelOutputWithPooling(
            last_hidden_state=found.last_hidden_state,
            pooler_output=found.last_hidden_state[:, 0],
            hidden_states=found.text_hidden_states,
            attentions=found.text_attentions,
        )

    @record_both_encoders
    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_alignment_maps: bool = False,
        expressions_per_image: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CrossVLTOutput:
        """Segment the object in each image that its expression refers to.

        Args:
            pixel_values: (B, channels, height, width) normalised images of any size, floats of any dtype; with
                `expressions_per_image` (images, channels, height, width). In training, a single pair must have more
                than 16 pixels (4 patches) a side, since BatchNorm needs several values.
            input_ids: (B, T) token ids of the expressions, [CLS] first, padding last.
            attention_mask: (B, T), 1 for words and 0 for padding; None means no padding.
            token_type_ids: (B, T) token types; None means 0.
            labels: (B, height, width) integers: 1 for the object, 0 for background, 255 to ignore.
            output_alignment_maps: whether to compute alignment maps without labels.
            expressions_per_image: (images,) integers that sum up to B: the number of consecutive expressions of each
                image; None for one each. They share the patch embedding and the blocks of vision stage 1, which then
                have hidden states and attentions per image.
            kwargs: `output_hidden_states`, `output_attentions` (of both encoders and the fusion; these need eager
                attention) or one kind, such as `output_cross_attentions`; `return_dict`; `original_sizes` of the
                processor, which is ignored; arguments of an attention function of your own in `AttentionInterface`.

        Raises:
            TypeError: for any other argument.
            ValueError: if shapes do not match each other or the config; on the CPU also for token ids outside the
                vocabulary and for other labels (other devices would have to wait; there torch fails itself).
        """
        kwargs = self._attention_kwargs(kwargs)
        self._check_inputs(pixel_values, input_ids, attention_mask, token_type_ids, labels, expressions_per_image)
        words = self.text_model.embeddings(input_ids, token_type_ids)
        pixels = self.vision_model.patch_embeddings(pixel_values)
        mask = word_mask(attention_mask, like=words)
        align = labels is not None or output_alignment_maps

        context = None  # what the words can see: nothing in stage 1, then the pixels that enter the vision stage
        alignment_maps: list[Tensor] = []
        feature_maps: list[Tensor] = []
        for language, vision, stage in zip(self.text_model.stages, self.vision_model.stages, self.stages, strict=True):
            words = language(words, mask, context, **kwargs)  # words attend to context, then BERT layers
            pixels = vision(pixels, **kwargs)  # Swin blocks
            if expressions_per_image is not None and not feature_maps:  # no expression has been read so far
                pixels = repeat_images(pixels, expressions_per_image, total=words.shape[0])
            if align and stage.alignment is not None:
                alignment_maps.append(stage.alignment(pixels, words[:, 0]))  # every pixel against [CLS]
            fused = stage.fusion(pixels, words, mask, **kwargs)  # every pixel attends to the words
            feature_maps.append(stage.norm(fused).permute(0, 3, 1, 2))  # what the decoder sees
            if vision.downsample is not None:
                pixels = pixels if stage.gate is None else stage.gate(pixels, fused)
                pixels = vision.downsample(pixels)  # 2x2 -> 1, twice as wide
                if stage.merged_fusion is not None:
                    pixels = stage.merged_gate(pixels, stage.merged_fusion(pixels, words, mask, **kwargs))
                context = pixels
        mask_logits = at_least_float32(self.decoder(feature_maps))
        logits = upsample(mask_logits, like=pixel_values)
        head = self.presence_head
        presence_logits = None if head is None else head(words[:, 0], feature_maps[-1], mask_logits)

        losses = {} if labels is None else self._losses(logits, presence_logits, alignment_maps, labels)
        return CrossVLTOutput(
            logits=logits,
            presence_logits=presence_logits,
            alignment_maps=tuple(alignment_maps) if align else None,
            **losses,
        )

    def _losses(
        self, logits: Tensor, presence_logits: Tensor | None, alignment_maps: list[Tensor], labels: Tensor
    ) -> dict[str, Tensor]:
        labels = labels.to(logits.device).long()
        maps = [map_.to(logits.device) for map_ in alignment_maps]  # for a model on several devices
        losses = {"mask_loss": mask_loss(logits, labels), "alignment_loss": alignment_loss(maps, labels)}
        if self.config.dice_loss_weight:
            losses["dice_loss"] = dice_loss(logits, labels)
        if presence_logits is not None:
            losses["presence_loss"] = presence_loss(presence_logits.to(logits.device), labels)
        return {"loss": total_loss(self.config, **losses), **losses}

    @staticmethod
    def _count_expressions(images: int, input_ids: Tensor, expressions_per_image: Tensor | None) -> int:
        """The number of expressions of a batch."""
        if expressions_per_image is None:
            return images
        counts = expressions_per_image
        if not isinstance(counts, Tensor) or counts.shape != (images,) or counts.dtype not in INTEGERS:
            raise ValueError(
                f"`expressions_per_image` must be a tensor of {images} integers, one per image, got {counts!r}."
            )
        # While a graph is compiled, values are unknown; reading them from a GPU would wait for it
        if not is_readable(counts):
            return input_ids.shape[0]
        if counts.min() < 1 or counts.sum() != input_ids.shape[0]:
            raise ValueError(
                f"`expressions_per_image` must be at least 1 each and sum up to the {input_ids.shape[0]} expressions "
                f"in `input_ids`, got {counts.tolist()}."
            )
        return input_ids.shape[0]

    def _check_inputs(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        labels: Tensor | None,
        expressions_per_image: Tensor | None,
    ) -> None:
        check_images(self.config.vision_config, pixel_values)
        images, _, height, width = pixel_values.shape
        check_tensors(input_ids=input_ids, labels=labels)
        batch = self._count_expressions(images, input_ids, expressions_per_image)
        if self.training and batch == 1:
            check_size_for_training(height, width, 4 * self.config.vision_config.patch_size)
        check_words(self.config.text_config, input_ids, attention_mask, token_type_ids, batch)
        if labels is not None:
            check_labels(labels, (batch, height, width))


__all__ = [
    "CrossVLTModel",
    "CrossVLTOutput",
    "CrossVLTPreTrainedModel",
    "CrossVLTTextModel",
    "CrossVLTTextOutput",
    "CrossVLTVisionModel",
    "CrossVLTVisionOutput",
    "evaluating",
]
