"""Start a CrossVLT from pretrained encoders: any Swin v1 and any BERT checkpoint."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, BertModel, PreTrainedConfig, PreTrainedModel, SwinModel
from transformers.utils import logging

from ..configuration_crossvlt import NUM_STAGES, CrossVLTConfig
from ..modeling_crossvlt import CrossVLTModel
from .original import LEAF, convert_key, infer_swin_config
from .state_dicts import Rules, read_state_dict, rename


logger = logging.get_logger(__name__)

# Fields of the architecture; those of training are not copied
SWIN_FIELDS = (
    *("embed_dim", "depths", "num_heads", "window_size", "mlp_ratio", "qkv_bias", "hidden_act"),
    *("patch_size", "num_channels", "layer_norm_eps", "use_absolute_embeddings"),
)

# From Transformers' names of Swin to Microsoft's. Files have `attention.self.query`, modules of 5.x
# `attention.q_proj`. Query, key and value are joined afterwards.
LIBRARY_SWIN_RULES: Rules = [
    (rf"embeddings\.patch_embeddings\.projection\.{LEAF}", r"patch_embed.proj.\1"),
    (rf"embeddings\.norm\.{LEAF}", r"patch_embed.norm.\1"),
    (rf"encoder\.layers\.(\d)\.downsample\.(norm|reduction)\.{LEAF}", r"layers.\1.downsample.\2.\3"),
]
LIBRARY_SWIN_BLOCK_RULES: Rules = [
    (rf"layernorm_before\.{LEAF}", r"norm1.\1"),
    (rf"layernorm_after\.{LEAF}", r"norm2.\1"),
    (rf"attention\.(?:self\.)?(query|key|value)\.{LEAF}", r"attn.\1.\2"),
    (rf"attention\.(q|k|v)_proj\.{LEAF}", r"attn.\1.\2"),
    (
        r"attention\.(?:self\.|relative_position_bias\.)relative_position_bias_table",
        "attn.relative_position_bias_table",
    ),
    (rf"attention\.(?:output\.dense|o_proj)\.{LEAF}", r"attn.proj.\1"),
    (rf"(?:intermediate\.dense|mlp\.fc1)\.{LEAF}", r"mlp.fc1.\1"),
    (rf"(?:output\.dense|mlp\.fc2)\.{LEAF}", r"mlp.fc2.\1"),
]


@dataclass
class EncoderReport:
    """Which weights were loaded.

    Args:
        loaded: keys of the model that have pretrained weights.
        unused: keys of the checkpoints that are not loaded (classifiers, poolers, more layers), after `vision.` or
            `text.`.
        interpolated: keys of bias tables of the model that were resized to another window.
    """

    loaded: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    interpolated: list[str] = field(default_factory=list)


def _load_library_model(model_class: type[PreTrainedModel], source: str | Path, **kwargs: Any) -> dict[str, Tensor]:
    """Load a checkpoint of Transformers, in which no weight may be missing."""
    options: Any = {"output_loading_info": True, "ignore_mismatched_sizes": True, "dtype": torch.float32}
    loaded: Any = model_class.from_pretrained(source, **options, **kwargs)
    model, info = loaded
    if absent := sorted({*info["missing_keys"], *(str(entry[0]) for entry in info["mismatched_keys"])}):
        raise ValueError(
            f"{source} must have all weights of its config, but {len(absent)} are missing or have another shape: "
            f"{', '.join(absent[:8])}."
        )
    unexpected = {key: torch.empty(0) for key in info["unexpected_keys"]}  # reported as unused
    return {**unexpected, **model.state_dict()}


def _load_config(source: str | Path, model_type: str) -> PreTrainedConfig:
    config = AutoConfig.from_pretrained(source)
    if config.model_type != model_type:
        raise ValueError(
            f"{source} must be a checkpoint of type {model_type!r}, got one of type {config.model_type!r}."
        )
    return config


def _swin_from_library(source: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Load fields of the vision config, and weights with Microsoft's names."""
    config = _load_config(source, "swin")
    weights: dict[str, Tensor] = {}
    for key, tensor in _load_library_model(SwinModel, source, add_pooling_layer=False).items():
        if match := re.fullmatch(r"encoder\.layers\.(\d)\.blocks\.(\d+)\.(.+)", key):
            renamed = rename(match[3], LIBRARY_SWIN_BLOCK_RULES)
            renamed = None if renamed is None else f"layers.{match[1]}.blocks.{match[2]}.{renamed}"
        else:
            renamed = rename(key, LIBRARY_SWIN_RULES)
        weights[renamed or key] = tensor
    return {name: getattr(config, name) for name in SWIN_FIELDS}, _join_qkv(weights)


def _join_qkv(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    joined = dict(weights)
    for key in weights:
        if match := re.fullmatch(rf"(.+\.attn\.)q(?:uery)?\.{LEAF}", key):
            names = ("query", "key", "value") if f"{match[1]}query.{match[2]}" in weights else ("q", "k", "v")
            parts = [joined.pop(f"{match[1]}{name}.{match[2]}") for name in names]
            joined[f"{match[1]}qkv.{match[2]}"] = torch.cat(parts)
    return joined


def _swin_from_microsoft(source: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    weights = read_state_dict(source)
    try:
        return infer_swin_config(weights, "layers.{}.", "patch_embed."), weights
    except KeyError as error:
        raise ValueError(f"{source} is not a Swin v1 checkpoint: it has no key {error}.") from error


def _our_swin_key(key: str) -> str | None:
    """The key of the model for a key of Microsoft, which the authors' checkpoints have after `backbone.`."""
    if match := re.fullmatch(r"layers\.(\d)\.((?:blocks|downsample)\..+)", key):
        return convert_key(f"backbone.{match[1]}.layers.{match[2]}")
    return convert_key(f"backbone.0.{key}") if key.startswith("patch_embed.") else None


def _our_bert_key(key: str, places: dict[int, tuple[int, int]]) -> str | None:
    """The key of the model for a key of BERT, whose layers go to the (stage, layer) in `places`."""
    if key.startswith("embeddings."):
        return convert_key(f"lang_stage1.{key}")
    match = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", key)
    if match is None or int(match[1]) not in places:
        return None
    stage, layer = places[int(match[1])]
    return convert_key(f"lang_stage{stage + 1}.{'encoder.' if stage == 0 else ''}layer.{layer}.{match[2]}")


def interpolate_bias_table(table: Tensor, window: int) -> Tensor:
    """Resize a ((2 w - 1)**2, heads) relative position bias table to another window, by bicubic interpolation."""
    heads, side = table.shape[1], round(table.shape[0] ** 0.5)
    image = table.T.reshape(1, heads, side, side)
    resized = F.interpolate(image, size=(2 * window - 1, 2 * window - 1), mode="bicubic", align_corners=False)
    return resized.reshape(heads, -1).T.contiguous()


def _places(depths: list[int], num_layers: int, later_stages: bool, source: str | Path) -> dict[int, tuple[int, int]]:
    """The (stage, layer) for each layer of BERT: the first go to stage 1 and, on request, the next to later stages."""
    stages = range(NUM_STAGES) if later_stages else range(1)
    slots = [(stage, layer) for stage in stages for layer in range(depths[stage])]
    if len(slots) > num_layers:
        raise ValueError(
            f"{source} has {num_layers} layers, but {len(slots)} are needed; use `text_config={{'depths': [...]}}` "
            f"with at most {num_layers}{' in all' if later_stages else ' in stage 1'}."
        )
    return dict(enumerate(slots))


def _fill(model: CrossVLTModel, weights: Iterable[tuple[str, str | None, Tensor]], report: EncoderReport) -> None:
    """Copy (name, our key or None, tensor) into the model; shapes must agree."""
    own = model.state_dict()
    window = model.config.vision_config.window_size
    for name, key, tensor in weights:
        if key is None or key not in own:
            report.unused.append(name)
            continue
        if key.endswith("relative_position_bias_table") and tensor.shape[0] != (2 * window - 1) ** 2:
            tensor = interpolate_bias_table(tensor, window)
            report.interpolated.append(key)
        if tensor.shape != own[key].shape:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}, but {key} has {list(own[key].shape)}; do not override the "
                "sizes of the checkpoint."
            )
        own[key].copy_(tensor)
        report.loaded.append(key)


def _check_complete(model: CrossVLTModel, report: EncoderReport, places: dict[int, tuple[int, int]]) -> None:
    prefixes = ["vision_model.", "text_model.embeddings."]
    prefixes += [f"text_model.stages.{stage}.layers.{layer}." for stage, layer in places.values()]
    wanted = [key for key, _ in model.named_parameters() if key.startswith(tuple(prefixes))]
    if missing := set(wanted) - set(report.loaded):
        raise ValueError(
            f"The checkpoints do not have {len(missing)} weights of the encoders: {', '.join(sorted(missing)[:8])}. "
            "Check that the config has no more layers or biases than the checkpoints."
        )


@torch.no_grad()
def from_pretrained_encoders(
    vision: str | Path, text: str | Path, *, text_layers_in_later_stages: bool = False, **overrides: Any
) -> tuple[CrossVLTModel, EncoderReport]:
    """Make a CrossVLT with pretrained encoders and otherwise random weights.

    Args:
        vision: a Swin v1 checkpoint: Hub id or folder of Transformers, or a `.pth` file of Microsoft.
        text: a BERT checkpoint: Hub id or folder.
        text_layers_in_later_stages: whether stages 2-4 of the language encoder start from the BERT layers after those
            of stage 1 (6-8 of BERT-base). The authors start them from random weights.
        overrides: fields of [`CrossVLTConfig`]; a dict for `vision_config` or `text_config` sets single fields of it.
            For another `window_size`, bias tables are interpolated.

    Returns:
        The model, in float32, and a report of loaded, unused and interpolated weights.

    Raises:
        OSError: if a checkpoint cannot be found.
        ValueError: if a checkpoint has another type or misses weights, or an override changes the shape of weights.
    """
    is_file = Path(vision).is_file()
    vision_fields, swin = _swin_from_microsoft(Path(vision)) if is_file else _swin_from_library(vision)
    bert_config = _load_config(text, "bert")
    if bert_config.is_decoder:
        raise ValueError(f"{text} must be a BERT encoder, got a decoder.")
    bert = _load_library_model(BertModel, text, add_pooling_layer=False)
    text_fields = CrossVLTConfig(text_config=bert_config).text_config.to_dict()
    config = CrossVLTConfig(
        vision_config={**vision_fields, **(overrides.pop("vision_config", None) or {})},
        text_config={**text_fields, **(overrides.pop("text_config", None) or {})},
        **overrides,
    )
    places = _places(config.text_config.depths, bert_config.num_hidden_layers, text_layers_in_later_stages, text)
    model, report = CrossVLTModel(config), EncoderReport()
    _fill(model, ((f"vision.{key}", _our_swin_key(key), tensor) for key, tensor in swin.items()), report)
    _fill(model, ((f"text.{key}", _our_bert_key(key, places), tensor) for key, tensor in bert.items()), report)
    _check_complete(model, report, places)
    logger.info(f"Loaded {len(report.loaded)} weights; unused: {', '.join(report.unused)}")
    return model, report
