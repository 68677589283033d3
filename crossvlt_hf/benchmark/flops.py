"""Count parameters and operations of a model, without weights or images."""

import json
from collections.abc import Callable
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..configuration_crossvlt import CrossVLTConfig
from ..modeling_crossvlt import CrossVLTModel


def on_meta_device(config: CrossVLTConfig) -> CrossVLTModel:
    """Make a model without memory for weights, in eval mode."""
    with torch.device("meta"):
        return CrossVLTModel(config).float().eval()


def count_parameters(config: CrossVLTConfig) -> int:
    """Count the parameters of a model."""
    return _count_parameters(_to_key(config))


@lru_cache(maxsize=64)
def _count_parameters(key: str) -> int:
    return sum(parameter.numel() for parameter in on_meta_device(_from_key(key)).parameters())


# Fields of a config that say where a model comes from, not what it is
ORIGIN = ("_name_or_path", "architectures", "auto_map", "dtype", "transformers_version")


def _to_key(config: CrossVLTConfig) -> str:
    """The config as a key of caches, equal for equal models."""
    sections = [config, config.vision_config, config.text_config]
    dicts = [{k: v for k, v in section.to_dict().items() if k not in ORIGIN} for section in sections]
    return json.dumps({**dicts[0], "vision_config": dicts[1], "text_config": dicts[2]}, sort_keys=True)


def _from_key(key: str) -> CrossVLTConfig:
    return CrossVLTConfig.from_dict(json.loads(key))


def count_flops(
    config: CrossVLTConfig, size: tuple[int, int], tokens: int = 21, *, images: int = 1, expressions: int = 1
) -> int:
    """Count floating-point operations of segmentation; a multiplication and an addition are two.

    Matrix products, including those of attention, and convolutions are counted, which is nearly all. Alignment heads
    are not, since only training needs them.

    Args:
        config: of the model.
        size: height and width of the model's input in pixels.
        tokens: per expression, including padding.
        images: in the batch.
        expressions: per image; layers before the first fusion run once per image.
    """
    return add_up(count_flops_by_part(config, size, tokens), images=images, expressions=expressions)


def add_up(parts: dict[str, int], *, images: int = 1, expressions: int = 1) -> int:
    """Add up the result of `count_flops_by_part` for a batch.

    Args:
        parts: operations of one image with one expression.
        images: in the batch.
        expressions: per image.
    """
    return images * sum(flops * (1 if part in SHARED else expressions) for part, flops in parts.items())


# Layers before the first fusion, which are the same for all expressions of an image
SHARED = ("patch embedding", "vision stage 1")


def count_flops_by_part(config: CrossVLTConfig, size: tuple[int, int], tokens: int = 21) -> dict[str, int]:
    """Count operations of one image with one expression by part of the model, in the order of the figure.

    Args:
        config: of the model.
        size: height and width of the model's input in pixels.
        tokens: of the expression, including padding.

    Returns:
        Operations by the name of the part. Patch merging is a separate part, since it is not `SHARED`.
    """
    return dict(_count_by_part(_to_key(config), tuple(size), tokens))


@lru_cache(maxsize=64)
def _count_by_part(key: str, size: tuple[int, int], tokens: int) -> dict[str, int]:
    """Cached, since the base model takes seconds, and benchmarks and cards count the same models repeatedly."""
    config = _from_key(key)
    model = on_meta_device(config)
    pixel_values, input_ids = _meta_inputs(config, size, tokens)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(pixel_values, input_ids)
    counts = {name: sum(operations.values()) for name, operations in counter.get_flop_counts().items()}
    return _name_parts(lambda name: counts.get(f"{CrossVLTModel.__name__}.{name}", 0), config.num_stages)


def _name_parts(count: Callable[[str], int], num_stages: int) -> dict[str, int]:
    """Sum up the operations of modules by part."""
    stages = range(num_stages)
    return {
        "patch embedding": count("vision_model.patch_embeddings"),
        **{f"vision stage {stage + 1}": count(f"vision_model.stages.{stage}") for stage in stages},
        # Called after its stage, not by it
        "patch merging": sum(count(f"vision_model.stages.{stage}.downsample") for stage in stages),
        **{f"language stage {stage + 1}": count(f"text_model.stages.{stage}") for stage in stages},
        # The modules of a stage are called directly, so the stage has no count
        **{
            f"fusion {stage + 1}": sum(
                count(f"stages.{stage}.{name}") for name in ("fusion", "gate", "merged_fusion", "merged_gate")
            )
            for stage in stages
        },
        "decoder": count("decoder"),
        **({"presence": presence} if (presence := count("presence_head")) else {}),
    }


def count_training_flops(config: CrossVLTConfig, size: tuple[int, int], tokens: int = 21, *, images: int = 1) -> int:
    """Count operations of forward and backward pass of a training step, including alignment heads.

    Recomputation by activation checkpointing is not counted.

    Args:
        config: of the model.
        size: height and width of the model's input in pixels.
        tokens: per expression, including padding.
        images: in the batch, each with one expression.
    """
    model = on_meta_device(config).train()
    pixel_values, input_ids = _meta_inputs(config, size, tokens, images=2)  # BatchNorm needs more than one value
    labels = torch.zeros(2, *size, dtype=torch.long, device="meta")
    counter = FlopCounterMode(display=False)
    with counter:
        model(pixel_values, input_ids, labels=labels, return_dict=True).loss.backward()
    return counter.get_total_flops() * images // 2


def _meta_inputs(
    config: CrossVLTConfig, size: tuple[int, int], tokens: int, images: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    pixel_values = torch.empty(images, config.vision_config.num_channels, *size, device="meta")
    return pixel_values, torch.empty(images, tokens, dtype=torch.long, device="meta")
