"""Other models of Transformers for an image and a text, with default sizes and random weights.

Random weights take as long as trained ones, since no computation depends on the output. Each peer runs on one image
and one expression. Nothing is downloaded.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from .machine import available_memory


GIBIBYTE = 1024**3
FLOPS_OF_ATTENTION = {
    # FlopCounterMode does not know this kernel, which PyTorch uses on a CPU
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
        query, key, value
    )
}


@dataclass(frozen=True)
class Peer:
    """A peer, ready to run.

    Args:
        modules: its models.
        run: segments one image.
    """

    modules: tuple[nn.Module, ...]
    run: Callable[[], Any]

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of all its models."""
        for module in self.modules:
            yield from module.parameters()

    def step(self) -> Any:
        """Segment one image."""
        with torch.no_grad():
            return self.run()


@dataclass(frozen=True)
class PeerKind:
    """How to make a peer.

    Args:
        make: function of a device and a dtype.
        size: height and width to which its processor resizes a square image.
        tokens: of the expression, including padding.
        needs_gib: memory in GiB to load and run it in float32, rounded up.
    """

    make: Callable[[str, torch.dtype], Peer]
    size: tuple[int, int]
    tokens: int
    needs_gib: int

    def __call__(self, device: str, dtype: torch.dtype) -> Peer:
        """Make the peer.

        Raises:
            MemoryError: if there is too little memory.
        """
        free = _free_memory(torch.device(device))
        if free is not None and free < self.needs_gib * GIBIBYTE:
            raise MemoryError(f"It needs about {self.needs_gib} GiB of memory; {free / GIBIBYTE:.1f} GiB are free.")
        return self.make(device, dtype)


def _free_memory(device: torch.device) -> int | None:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


def count_step_flops(step: Callable[[], Any]) -> int:
    """Run a step, and count the operations of its matrix products, attention and convolutions."""
    counter = FlopCounterMode(display=False, custom_mapping=FLOPS_OF_ATTENTION)
    with counter:
        step()
    return counter.get_total_flops()


def place(model: nn.Module, device: str, dtype: torch.dtype) -> nn.Module:
    """Move a model to a device and dtype, in eval mode and without gradients."""
    # With gradients, FlopCounterMode fails on layers that return a view of a parameter
    return model.to(torch.device(device), dtype).eval().requires_grad_(False)


def _pixels(side: int, device: str, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(1, 3, side, side, device=device, dtype=dtype)


def _words(tokens: int, device: str, *, start: int, end: list[int], vocabulary: int) -> torch.Tensor:
    """(1, tokens) token ids: a start token, random tokens, and end tokens."""
    middle = torch.randint(1000, vocabulary, (1, tokens - 1 - len(end)))
    return torch.cat([torch.tensor([[start]]), middle, torch.tensor([end])], dim=1).to(device)


def _make_with_clip(model: nn.Module, side: int, tokens: int, device: str, dtype: torch.dtype) -> Peer:
    """Make a peer that takes pixels and tokens of CLIP."""
    model = place(model, device, dtype)
    pixels = _pixels(side, device, dtype)
    words = _words(tokens, device, start=49406, end=[49407], vocabulary=49000)
    mask = torch.ones_like(words)
    return Peer((model,), lambda: model(pixel_values=pixels, input_ids=words, attention_mask=mask))


def _make_clipseg(device: str, dtype: torch.dtype) -> Peer:
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    return _make_with_clip(CLIPSegForImageSegmentation(CLIPSegConfig()), 352, 21, device, dtype)


def _make_grounded_sam(device: str, dtype: torch.dtype) -> Peer:
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection, SamConfig, SamModel

    detector = place(GroundingDinoForObjectDetection(GroundingDinoConfig()), device, dtype)
    segmenter = place(SamModel(SamConfig()), device, dtype)
    image, resized = _pixels(800, device, dtype), _pixels(1024, device, dtype)
    # [CLS] words full-stop [SEP], as from its processor
    words = _words(21, device, start=101, end=[1012, 102], vocabulary=30000)
    mask = torch.ones_like(words)

    def run() -> Any:
        boxes = detector(pixel_values=image, input_ids=words, attention_mask=mask).pred_boxes  # (1, queries, 4)
        centre, extent = boxes[:, :1, :2], boxes[:, :1, 2:]
        corners = torch.cat([centre - extent / 2, centre + extent / 2], dim=-1) * 1024
        return segmenter(pixel_values=resized, input_boxes=corners)

    return Peer((detector, segmenter), run)


def _make_sam3(device: str, dtype: torch.dtype) -> Peer:
    from transformers import Sam3Config, Sam3Model

    return _make_with_clip(Sam3Model(Sam3Config()), 1008, 32, device, dtype)


PEERS = {
    "clipseg": PeerKind(_make_clipseg, (352, 352), 21, 2),
    "grounding-dino-sam": PeerKind(_make_grounded_sam, (800, 800), 21, 8),
    "sam3": PeerKind(_make_sam3, (1008, 1008), 32, 14),
}
