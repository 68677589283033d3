"""Convert the authors' checkpoints without loss.

Every key of the original layout is renamed or on the list of dropped keys; any other key is an error.
"""

import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers.utils import logging

from ..configuration_crossvlt import NUM_STAGES, CrossVLTConfig
from ..modeling_crossvlt import CrossVLTModel
from ..processing_crossvlt import CrossVLTProcessor
from .checkpoint import check_checkpoint_folder
from .state_dicts import Rules, load_strictly, read_state_dict, rename
from .vocabulary import default_tokenizer, load_tokenizer


logger = logging.get_logger(__name__)

LEAF = r"(weight|bias)"

# A block of Swin v1 with Microsoft's names, which the authors kept.
SWIN_BLOCK_RULES: Rules = [
    (r"attn\.(relative_position_bias_table|(?:qkv|proj)\.(?:weight|bias))", r"attention.\1"),
    (rf"(norm[12]|mlp\.fc[12])\.{LEAF}", r"\1.\2"),
]

# A layer of BERT with Google's names, which the authors kept.
BERT_LAYER_RULES: Rules = [
    (rf"attention\.self\.(query|key|value)\.{LEAF}", r"attention.\1.\2"),
    (rf"attention\.output\.dense\.{LEAF}", r"attention.output.\1"),
    (rf"attention\.output\.LayerNorm\.{LEAF}", r"attention_norm.\1"),
    (rf"intermediate\.dense\.{LEAF}", r"mlp.fc1.\1"),
    (rf"output\.dense\.{LEAF}", r"mlp.fc2.\1"),
    (rf"output\.LayerNorm\.{LEAF}", r"mlp_norm.\1"),
]

BERT_EMBEDDING_RULES: Rules = [
    (r"embeddings\.((?:word|position|token_type)_embeddings\.weight)", r"embeddings.\1"),
    (rf"embeddings\.LayerNorm\.{LEAF}", r"embeddings.norm.\1"),
]

FUSION_NAMES = {"attn1": "fusion", "attn2": "merged_fusion"}
FUSION_RULES: Rules = [
    (r"v_q\.0\.weight", "attention.query.weight"),
    (rf"l_q\.{LEAF}", r"attention.key.\1"),
    (rf"values_l\.{LEAF}", r"attention.value.\1"),
    (r"w_v\.0\.weight", "attention.output.weight"),
    (rf"project_mm\.0\.{LEAF}", r"projection.\1"),
]

GATE_NAMES = {"linear1": "gate", "linear2": "merged_gate"}
GATE_RULES: Rules = [(r"0\.weight", "fc1.weight"), (r"2\.weight", "fc2.weight")]

# Keys to drop, and why
DROPPED = (
    r"backbone\.3\.layers\.linear1\..*",  # the gate of the last stage, whose output is unused
    r"backbone\.[0-3]\.layers\.attn[12]\.(v_q|w_v)\.0\.bias",  # cancelled by the InstanceNorm after it
    r".*\.relative_position_index",  # derived from the window
    r".*\.position_ids",  # 0, 1, 2, ...
)


def _nested(prefix: str, leaf: str, rules: Rules) -> str | None:
    renamed = rename(leaf, rules)
    return None if renamed is None else f"{prefix}.{renamed}"


def _convert_vision_key(stage: int, leaf: str) -> str | None:
    """Rename a key after `backbone.<stage>.`."""
    if match := re.fullmatch(r"layers\.blocks\.(\d+)\.(.+)", leaf):
        return _nested(f"vision_model.stages.{stage}.blocks.{match[1]}", match[2], SWIN_BLOCK_RULES)
    if match := re.fullmatch(r"layers\.(attn[12])\.(.+)", leaf):
        return _nested(f"stages.{stage}.{FUSION_NAMES[match[1]]}", match[2], FUSION_RULES)
    if match := re.fullmatch(r"layers\.(linear[12])\.(.+)", leaf):
        return _nested(f"stages.{stage}.{GATE_NAMES[match[1]]}", match[2], GATE_RULES)
    rules = [
        (rf"layers\.proj\.{LEAF}", rf"stages.{stage}.alignment.pixel_projection.\1"),
        (rf"norm{stage}\.{LEAF}", rf"stages.{stage}.norm.\1"),
        (rf"layers\.downsample\.(norm|reduction)\.{LEAF}", rf"vision_model.stages.{stage}.downsample.\1.\2"),
    ]
    if stage == 0:
        rules += [
            (rf"patch_embed\.proj\.{LEAF}", r"vision_model.patch_embeddings.projection.\1"),
            (rf"patch_embed\.norm\.{LEAF}", r"vision_model.patch_embeddings.norm.\1"),
        ]
    return rename(leaf, rules)


def _convert_text_key(stage: int, leaf: str) -> str | None:
    """Rename a key after `lang_stage<stage + 1>.`."""
    if stage == 0 and (renamed := rename(leaf, BERT_EMBEDDING_RULES)):
        return f"text_model.{renamed}"
    if stage == 0:
        if not leaf.startswith("encoder."):
            return None
        leaf = leaf.removeprefix("encoder.")
    if match := re.fullmatch(r"layer\.(\d+)\.(.+)", leaf):
        return _nested(f"text_model.stages.{stage}.layers.{match[1]}", match[2], BERT_LAYER_RULES)
    if match := re.fullmatch(rf"proj\.{LEAF}", leaf):
        return f"stages.{stage}.alignment.sentence_projection.{match[1]}"
    # The other keys are the cross-attention block: a BERT layer without a module of its own
    if leaf.startswith("attention."):
        return None
    leaf = leaf.replace("crossattention.", "attention.")
    return _nested(f"text_model.stages.{stage}.cross_attention", leaf, BERT_LAYER_RULES)


def _convert_decoder_key(leaf: str) -> str | None:
    """Rename a key after `classifier.`; suffix 4 joins the maps of stages 4 and 3, and so on; conv1_1 is the last."""
    if match := re.fullmatch(r"(conv|bn)([12])_([234])\.(.+)", leaf):
        layer = {"conv": "conv", "bn": "norm"}[match[1]] + match[2]
        return f"decoder.blocks.{4 - int(match[3])}.{layer}.{match[4]}"
    return rename(leaf, [(rf"conv1_1\.{LEAF}", r"decoder.classifier.\1")])


def convert_key(key: str) -> str | None:
    """Rename a key of the original layout; None if it is unknown (or `temp`, which becomes four keys)."""
    if match := re.fullmatch(r"backbone\.([0-3])\.(.+)", key):
        return _convert_vision_key(int(match[1]), match[2])
    if match := re.fullmatch(r"lang_stage([1-4])\.(.+)", key):
        return _convert_text_key(int(match[1]) - 1, match[2])
    return _convert_decoder_key(key.removeprefix("classifier.")) if key.startswith("classifier.") else None


def is_dropped(key: str) -> bool:
    """Whether a key of the original layout is on the list of dropped keys."""
    return any(re.fullmatch(pattern, key) for pattern in DROPPED)


def convert_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of an original state dict.

    Args:
        state_dict: in the original layout, without prefix. Missing temperatures, as in published checkpoints, are 1.

    Returns:
        Tensors by the keys of `CrossVLTModel.state_dict()`, floats in float32. 1x1 convolutions get the shape of a
        Linear.

    Raises:
        ValueError: lists unknown keys.
    """
    state_dict = dict(state_dict)
    temperatures = state_dict.pop("temp", torch.ones(NUM_STAGES))
    if temperatures.shape != (NUM_STAGES,):
        raise ValueError(f"`temp` must have shape [4], a temperature for each stage, got {list(temperatures.shape)}.")
    renamed = {key: convert_key(key) for key in state_dict if not is_dropped(key)}
    if unknown := [key for key, new in renamed.items() if new is None]:
        raise ValueError(
            f"{len(unknown)} keys are unknown in a CrossVLT checkpoint: {', '.join(unknown[:20])}"
            f"{', ...' if len(unknown) > 20 else ''}."
        )
    converted = {str(new): _as_linear_float32(key, state_dict[key]) for key, new in renamed.items()}
    for stage, temperature in enumerate(temperatures.split(1)):
        converted[f"stages.{stage}.alignment.temperature"] = temperature.clone()
    for key in [key for key in converted if key.endswith(".running_var")]:
        converted.setdefault(key.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    return _unshared(converted)


def _as_linear_float32(key: str, tensor: Tensor) -> Tensor:
    """Convert floats to float32, and the 1x1 convolutions of a fusion to the shape of a Linear."""
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    return tensor.squeeze(-1) if re.search(r"\.attn[12]\.", key) and tensor.ndim == 3 else tensor


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory, since safetensors cannot save them."""
    seen: set[int] = set()
    own = {}
    for key, tensor in tensors.items():
        own[key] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return own


def count_indices(state_dict: dict[str, Tensor], pattern: str) -> int:
    """Count the different values of the group of a pattern at the start of keys."""
    return len({match[1] for key in state_dict if (match := re.match(pattern, key))})


def infer_swin_config(state_dict: dict[str, Tensor], stage_prefix: str, patch_prefix: str) -> dict[str, Any]:
    """Infer fields of `CrossVLTVisionConfig` from the shapes of a Swin v1 with Microsoft's names.

    Args:
        state_dict: the weights.
        stage_prefix: prefix of `blocks.0...`, with `{}` for the stage (from 0).
        patch_prefix: prefix of `proj.weight` of the patch embedding.

    Raises:
        KeyError: if a tensor is missing.
    """
    patch = state_dict[f"{patch_prefix}proj.weight"]
    prefixes = [stage_prefix.format(stage) for stage in range(NUM_STAGES)]
    tables = [state_dict[f"{prefix}blocks.0.attn.relative_position_bias_table"] for prefix in prefixes]
    return {
        "embed_dim": patch.shape[0],
        "num_channels": patch.shape[1],
        "patch_size": patch.shape[2],
        "depths": [count_indices(state_dict, re.escape(prefix) + r"blocks\.(\d+)\.") for prefix in prefixes],
        "num_heads": [table.shape[1] for table in tables],
        "window_size": (round(tables[0].shape[0] ** 0.5) + 1) // 2,
        "mlp_ratio": state_dict[f"{prefixes[0]}blocks.0.mlp.fc1.weight"].shape[0] / patch.shape[0],
        "qkv_bias": f"{prefixes[0]}blocks.0.attn.qkv.bias" in state_dict,
        "use_absolute_embeddings": "absolute_pos_embed" in state_dict,  # refused by the config
    }


def _infer_text_config(state_dict: dict[str, Tensor]) -> dict[str, Any]:
    words = state_dict["lang_stage1.embeddings.word_embeddings.weight"]
    depths = [count_indices(state_dict, r"lang_stage1\.encoder\.layer\.(\d+)\.")]
    depths += [count_indices(state_dict, rf"lang_stage{stage}\.layer\.(\d+)\.") for stage in (2, 3, 4)]
    return {
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "num_attention_heads": max(words.shape[1] // 64, 1),
        "max_position_embeddings": state_dict["lang_stage1.embeddings.position_embeddings.weight"].shape[0],
        "type_vocab_size": state_dict["lang_stage1.embeddings.token_type_embeddings.weight"].shape[0],
        "intermediate_size": state_dict["lang_stage1.encoder.layer.0.intermediate.dense.weight"].shape[0],
        "depths": depths,
    }


def infer_config(
    state_dict: dict[str, Tensor], *, num_attention_heads: int | None = None, **overrides: Any
) -> CrossVLTConfig:
    """Infer the config of an original checkpoint from the shapes of its tensors.

    The number of heads of the language encoder, the width of heads of the fusion (`fusion_head_dim`) and the rates of
    dropout and stochastic depth cannot be inferred; they have the values of the paper.

    Args:
        state_dict: in the original layout, without prefix.
        num_attention_heads: of the language encoder; None for heads of width 64, as in BERT: 12 in the paper.
        overrides: fields of [`CrossVLTConfig`]; a dict for `vision_config` or `text_config` sets single fields of it.
            The ablations of the config do not fit, since the authors' code has none.

    Raises:
        ValueError: if a tensor is missing, or there is no such field.
    """
    if unknown := overrides.keys() - CrossVLTConfig.__annotations__.keys():
        raise ValueError(f"CrossVLTConfig has no field {sorted(unknown)[0]!r}.")
    heads = {} if num_attention_heads is None else {"num_attention_heads": num_attention_heads}
    vision_overrides, text_overrides = (overrides.pop(name, None) or {} for name in ("vision_config", "text_config"))
    try:
        vision = infer_swin_config(state_dict, "backbone.{}.layers.", "backbone.0.patch_embed.")
        text = _infer_text_config(state_dict)
        inferred = {
            "alignment_dim": state_dict["backbone.0.layers.proj.weight"].shape[0],
            "decoder_hidden_size": state_dict["classifier.conv1_4.weight"].shape[0],
        }
        return CrossVLTConfig(
            vision_config={**vision, **vision_overrides},
            text_config={**text, **heads, **text_overrides},
            **{**inferred, **overrides},
        )
    except KeyError as error:
        raise ValueError(f"This is not a CrossVLT checkpoint: it has no key {error}.") from error
    except (IndexError, ZeroDivisionError) as error:
        raise ValueError(
            "This is not a CrossVLT checkpoint: a tensor has too few dimensions, or one of size 0."
        ) from error
    except StrictDataclassError as error:
        raise ValueError(
            f"The sizes of the tensors do not give a valid config. {' '.join(str(error).split())}"
        ) from error


def _processor_for(config: CrossVLTConfig, tokenizer: str | None) -> CrossVLTProcessor | None:
    """Make the processor of a checkpoint; None if the default tokenizer has too many tokens."""
    chosen = default_tokenizer() if tokenizer is None else load_tokenizer(tokenizer)
    if len(chosen) <= config.text_config.vocab_size:
        longest = min(21, config.text_config.max_position_embeddings)
        return CrossVLTProcessor.from_tokenizer(chosen, max_length=longest)
    message = f"has {len(chosen)} tokens, but the checkpoint has {config.text_config.vocab_size}"
    if tokenizer is not None:
        raise ValueError(f"The tokenizer {tokenizer} {message}; use the tokenizer of its training.")
    return None


def convert_checkpoint(
    source: str | Path,
    output_dir: str | Path,
    *,
    tokenizer: str | None = None,
    overwrite: bool = False,
    **overrides: Any,
) -> CrossVLTConfig:
    """Convert a checkpoint of the authors' code to a folder for `from_pretrained`.

    Args:
        source: the `.pth` file: a bare state dict, or `{"model": ..., "args": ..., ...}`, with or without `module.`
            prefix. Only plain data is loaded from it.
        output_dir: the folder to write: config, weights, and a processor if the tokenizer fits. It may hold other
            files, but no other checkpoint.
        tokenizer: Hub id or folder of the tokenizer; None for that of bert-base-uncased, which is in this package.
        overwrite: replace another checkpoint in the folder.
        overrides: of [`infer_config`], including `num_attention_heads`, for values that cannot be inferred.

    Returns:
        The config that was written.

    Raises:
        OSError: if the source does not exist or the folder cannot be written.
        ValueError: if the source is damaged or refused, or is not a CrossVLT checkpoint, or the folder holds another
            checkpoint.
    """
    state_dict = read_state_dict(source)
    if broken := [key for key, value in state_dict.items() if not value.isfinite().all()]:
        raise ValueError(
            f"{broken[0]} in {source} must be finite, got NaN or infinite values; use an earlier checkpoint."
        )
    config = infer_config(state_dict, **overrides)
    converted = convert_state_dict(state_dict)
    processor = _processor_for(config, tokenizer)
    with torch.device("meta"):
        model = CrossVLTModel(config)
    load_strictly(model, converted, str(source))
    check_checkpoint_folder(output_dir, model.state_dict(), overwrite=overwrite, alone=False)
    model.save_pretrained(output_dir)
    if processor is not None:
        processor.save_pretrained(output_dir)
        return config
    for stale in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (Path(output_dir) / stale).unlink(missing_ok=True)  # of a checkpoint that was converted to this folder before
    logger.warning(
        f"No processor is written: bert-base-uncased has {len(default_tokenizer())} tokens, but the checkpoint has "
        f"{config.text_config.vocab_size}; pass the tokenizer of its training."
    )
    return config
