"""How large a model is and how much it computes, counted without weights or an image."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from .configuration_crossvlt import CrossVLTConfig
from .modeling_crossvlt import CrossVLTModel


def on_meta_device(config: CrossVLTConfig) -> CrossVLTModel:
    """The model without memory for its weights, in eval mode."""
    with torch.device("meta"):
        return CrossVLTModel(config).float().eval()


def count_parameters(config: CrossVLTConfig) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in on_meta_device(config).parameters())


def count_flops(config: CrossVLTConfig, size: tuple[int, int], tokens: int = 21) -> int:
    """Floating-point operations of segmenting one image with one expression, a multiplication and an addition as two.

    Counted are matrix products, those of attention included, and convolutions, which is nearly all; alignment heads,
    which only training needs, are not.

    Args:
        config: of the model.
        size: height and width in pixels that the model reads.
        tokens: of the expression, padding included.
    """
    model = on_meta_device(config)
    pixel_values = torch.empty(1, config.vision_config.num_channels, *size, device="meta")
    input_ids = torch.empty(1, tokens, dtype=torch.long, device="meta")
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(pixel_values, input_ids)
    return counter.get_total_flops()
