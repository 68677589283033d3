"""Other models of Transformers that take an image and words, at their defaults and with random weights.

Random weights take the same time as trained ones: nothing here depends on what the model says. The figures are of one
image and one expression; nothing is downloaded.
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
    # The counter of PyTorch does not know the attention that it itself takes on a CPU
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
        query, key, value
    )
}


@dataclass(frozen=True)
class Peer:
    """A peer, ready to run.

    Args:
        modules: the models that it consists of.
        run: what segments one image.
    """

    modules: tuple[nn.Module, ...]
    run: Callable[[], Any]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of all its models."""
        for module in self.modules:
            yield from module.parameters()

    def step(self) -> Any:
        """Segment one image."""
        with torch.no_grad():
            return self.run()


@dataclass(frozen=True)
class PeerKind:
    """How a peer is made.

    Args:
        make: makes it, on a device and in a dtype.
        size: height and width that its processor gives it of a square image.
        tokens: of the expression, padding included.
        needs_gib: memory that it takes in float32 to load and run, rounded up.
    """

    make: Callable[[str, torch.dtype], Peer]
    size: tuple[int, int]
    tokens: int
    needs_gib: int

    def __call__(self, device: str, dtype: torch.dtype) -> Peer:
        """Make it.

        Raises:
            MemoryError: if it does not fit.
        """
        free = _free_memory(torch.device(device))
        if free is not None and free < self.needs_gib * GIBIBYTE:
            raise MemoryError(f"It needs about {self.needs_gib} GiB of memory; {free / GIBIBYTE:.1f} GiB are free.")
        return self.make(device, dtype)


def _free_memory(device: torch.device) -> int | None:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


def count_step_flops(step: Callable[[], Any]) -> int:
    """Operations of a step, counted while it runs: matrix products, attention and convolutions."""
    counter = FlopCounterMode(display=False, custom_mapping=FLOPS_OF_ATTENTION)
    with counter:
        step()
    return counter.get_total_flops()


def place(model: nn.Module, device: str, dtype: torch.dtype) -> nn.Module:
    """The model on its device and in its dtype, ready to run."""
    # The counter of operations fails on a layer that returns a view of its parameter, unless that needs no gradient
    return model.to(torch.device(device), dtype).eval().requires_grad_(False)


def _pixels(side: int, device: str, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(1, 3, side, side, device=device, dtype=dtype)


def _words(tokens: int, device: str, *, start: int, end: list[int], vocabulary: int) -> torch.Tensor:
    """(1, tokens) token ids: a start, random words, and what ends the text."""
    middle = torch.randint(1000, vocabulary, (1, tokens - 1 - len(end)))
    return torch.cat([torch.tensor([[start]]), middle, torch.tensor([end])], dim=1).to(device)


def _make_with_clip(model: nn.Module, side: int, tokens: int, device: str, dtype: torch.dtype) -> Peer:
    """A model that reads pixels and the tokens of CLIP."""
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
    # [CLS] words full-stop [SEP], as its processor wants it
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
