"""Batches of the mixture as the network reads them."""

from typing import Any

import torch
from torch import Tensor


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY = (0.299, 0.587, 0.114)


def jitter(pixels: Tensor, strength: float = 1.0) -> Tensor:
    """Other brightness, contrast and saturation of (B, 3, H, W) in 0..1, so little that colour words stay true."""

    def factor() -> Tensor:
        return 1 + 0.25 * strength * (2 * torch.rand(len(pixels), 1, 1, 1, device=pixels.device) - 1)

    pixels = pixels * factor()
    mean = pixels.mean((1, 2, 3), keepdim=True)
    pixels = (pixels - mean) * factor() + mean
    grey = (pixels * pixels.new_tensor(GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return (grey + (pixels - grey) * factor()).clamp(0, 1)


def to_pixels(batch: dict[str, Any], device: torch.device) -> Tensor:
    """The images of a batch, (B, 3, S, S) in 0..1."""
    return batch["images"].to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255


def normalise(pixels: Tensor) -> Tensor:
    """Pixels in 0..1 as the network reads them."""
    return (pixels - pixels.new_tensor(MEAN).view(1, 3, 1, 1)) / pixels.new_tensor(STD).view(1, 3, 1, 1)


def to_inputs(batch: dict[str, Any], device: torch.device, augment: bool = False) -> dict[str, Tensor]:
    """The arguments of the network for a batch of N images with K expressions each.

    Returns:
        `pixel_values` (N, 3, S, S), `input_ids` and `attention_mask` (N * K, T), `labels` (N * K, S, S) int64, and
        `expressions_per_image` (N,), on the CPU.
    """
    pixels = to_pixels(batch, device)
    packed = batch["labels"].to(device, non_blocking=True)
    bits = (packed[..., None] >> torch.arange(7, -1, -1, device=device)) & 1
    images, expressions = batch["input_ids"].shape[:2]
    return {
        "pixel_values": normalise(jitter(pixels) if augment else pixels),
        "input_ids": batch["input_ids"].to(device, non_blocking=True).flatten(0, 1),
        "attention_mask": batch["attention_mask"].to(device, non_blocking=True).flatten(0, 1),
        "labels": bits.flatten(-2).flatten(0, 1).long(),
        "expressions_per_image": torch.full((images,), expressions),
    }
