"""How large a model is and how much it computes, counted without weights or an image."""

import json
from collections.abc import Callable
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..configuration_crossvlt import CrossVLTConfig
from ..modeling_crossvlt import CrossVLTModel


def on_meta_device(config: CrossVLTConfig) -> CrossVLTModel:
    """The model without memory for its weights, in eval mode."""
    with torch.device("meta"):
        return CrossVLTModel(config).float().eval()


def count_parameters(config: CrossVLTConfig) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in on_meta_device(config).parameters())


def count_flops(
    config: CrossVLTConfig, size: tuple[int, int], tokens: int = 21, *, images: int = 1, expressions: int = 1
) -> int:
    """Floating-point operations of segmenting images, a multiplication and an addition as two.

    Counted are matrix products, those of attention included, and convolutions, which is nearly all; alignment heads,
    which only training needs, are not.

    Args:
        config: of the model.
        size: height and width in pixels that the model reads.
        tokens: of each expression, padding included.
        images: in the batch.
        expressions: of each image; what precedes the first fusion is computed once for all of an image.
    """
    return add_up(count_flops_by_part(config, size, tokens), images=images, expressions=expressions)


def add_up(parts: dict[str, int], *, images: int = 1, expressions: int = 1) -> int:
    """Operations of a batch from those of the parts, which `count_flops_by_part` gives.

    Args:
        parts: operations of one image with one expression.
        images: in the batch.
        expressions: of each image.
    """
    return images * sum(flops * (1 if part in SHARED else expressions) for part, flops in parts.items())


# What reads no words, and is therefore the same for all expressions of an image
SHARED = ("patch embedding", "vision stage 1")


def count_flops_by_part(config: CrossVLTConfig, size: tuple[int, int], tokens: int = 21) -> dict[str, int]:
    """Where the operations of one image with one expression are: by part of the model, in the order of the figure.

    Args:
        config: of the model.
        size: height and width in pixels that the model reads.
        tokens: of the expression, padding included.

    Returns:
        Operations by the name of the part. Patch merging is a part of its own, since stage 1 alone is `SHARED`.
    """
    return dict(_count_by_part(config.to_json_string(use_diff=False), tuple(size), tokens))


@lru_cache(maxsize=64)
def _count_by_part(config_json: str, size: tuple[int, int], tokens: int) -> dict[str, int]:
    """The base model takes seconds, and a benchmark or a set of cards asks for the same one again and again."""
    config = CrossVLTConfig.from_dict(json.loads(config_json))
    model = on_meta_device(config)
    pixel_values, input_ids = _meta_inputs(config, size, tokens)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(pixel_values, input_ids)
    counts = {name: sum(operations.values()) for name, operations in counter.get_flop_counts().items()}
    return _name_parts(lambda name: counts.get(f"{CrossVLTModel.__name__}.{name}", 0), config.num_stages)


def _name_parts(count: Callable[[str], int], num_stages: int) -> dict[str, int]:
    """The parts of the model from the operations of its modules."""
    stages = range(num_stages)
    return {
        "patch embedding": count("vision_model.patch_embeddings"),
        **{f"vision stage {stage + 1}": count(f"vision_model.stages.{stage}") for stage in stages},
        # Called beside the stage it belongs to, not by it
        "patch merging": sum(count(f"vision_model.stages.{stage}.downsample") for stage in stages),
        **{f"language stage {stage + 1}": count(f"text_model.stages.{stage}") for stage in stages},
        # The modules of a stage are called one by one, so the stage has no count of its own
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
    """Operations of the forward and the backward pass of a training step, alignment heads included.

    What activation checkpointing computes twice counts once: it is the work that has to be done.

    Args:
        config: of the model.
        size: height and width in pixels that the model reads.
        tokens: of each expression, padding included.
        images: in the batch, each with one expression.
    """
    model = on_meta_device(config).train()
    pixel_values, input_ids = _meta_inputs(config, size, tokens, images=2)  # BatchNorm wants more than one value
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
