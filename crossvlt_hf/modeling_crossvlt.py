"""CrossVLT, a network for referring image segmentation (Cho, Yu, Kang, IEEE TMM 2023).

"Cross-aware Early Fusion with Stage-divided Vision and Language Transformer Encoders for Referring Image
Segmentation", https://arxiv.org/abs/2408.07539.

Shapes: B pairs of an image and an expression, T words (tokens), D their width, (H, W) the grid of a stage, C its
width, N = H * W its positions. Pixels stay a grid (B, H, W, C) throughout.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import wraps
from threading import Lock
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import guard_scalar
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple, maybe_autocast, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_crossvlt import (
    MIN_TEMPERATURE,
    CrossVLTConfig,
    CrossVLTTextConfig,
    CrossVLTVisionConfig,
    code_files,
)


logger = logging.get_logger(__name__)

# Added to the attention scores of what must not be read. Finite, so that a row of nothing but padding stays finite,
# and far inside float16's range, so that a score may come on top.
MASKED = -3e4
# Between the regions that the cyclic shift of a window brings together (Swin Transformer, section 3.2).
SHIFT_MASKED = -100.0
# Intermediate values of a computation that a CPU's cache holds: 16 MiB in float32
CACHED_VALUES = 2**22
# Cross-entropy weights of background and object, weight of the mask loss, label that both losses ignore
CLASS_WEIGHTS = (0.9, 1.1)
MASK_LOSS_WEIGHT = 2.0
IGNORE_INDEX = 255
# What others hand to forward with no effect: our processor its sizes, Transformers' decorators and Trainer the rest
PASSED_ALONG = ("original_sizes", "use_cache", "is_causal", "num_items_in_batch")
# What the library's other models read and this one does not, whatever the attention function: words count from 0
UNSUPPORTED = ("position_ids", "inputs_embeds", "output_router_logits")
ARGUMENTS = (
    "pixel_values",
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "labels",
    "output_alignment_maps",
    "expressions_per_image",
)


@dataclass
class CrossVLTVisionOutput(ModelOutput):
    """Output of [`CrossVLTVisionModel`].

    Args:
        last_hidden_state: (B, H, W, C) pixels that leave the last stage.
        hidden_states: the patch embeddings, then the pixels that leave the blocks of each stage, (B, H, W, C) each.
        attentions: the window attention of every block, (B * windows, heads, window**2, window**2) each.
    """

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class CrossVLTTextOutput(ModelOutput):
    """Output of [`CrossVLTTextModel`].

    Args:
        last_hidden_state: (B, T, D) words that leave the last stage.
        text_hidden_states: the words that leave each stage, (B, T, D) each.
        text_attentions: the self-attention of every BERT layer, (B, heads, T, T) each.
        cross_attentions: the words' attention to the pixels in stages 2-4, (B, heads, T, N) each.
    """

    last_hidden_state: Tensor | None = None
    text_hidden_states: tuple[Tensor, ...] | None = None
    text_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass
class CrossVLTOutput(ModelOutput):
    """Output of [`CrossVLTModel`].

    Args:
        loss: scalar, `2 * (mask_loss + dice_loss_weight * dice_loss) + alignment_loss`, and with a presence head
            `+ presence_loss_weight * presence_loss`; with labels only.
        logits: (B, 2, height, width) float32 at the size of the image. Channel 1 is the referred object, channel 0 the
            background.
        presence_logits: (B,) float32, the logit of the probability that something in the image fits the expression;
            with `config.presence_head` only.
        mask_loss: scalar, weighted cross-entropy of the logits.
        dice_loss: scalar, one minus the soft Dice coefficient; where the config weighs it.
        alignment_loss: scalar, the sum over stages of the binary cross-entropy of the alignment maps.
        presence_loss: scalar, binary cross-entropy of the presence logits; with `config.presence_head` only.
        alignment_maps: one (B, 1, H, W) float32 map for each aligned stage: cosine of every pixel with the sentence,
            divided by the stage's temperature; with labels, or with `output_alignment_maps=True`.
        hidden_states: as in [`CrossVLTVisionOutput`]; the pixels have read the words in the stages before.
        attentions: as in [`CrossVLTVisionOutput`].
        text_hidden_states: as in [`CrossVLTTextOutput`].
        text_attentions: as in [`CrossVLTTextOutput`].
        cross_attentions: as in [`CrossVLTTextOutput`].
        fusion_hidden_states: what the fusions give, (B, H, W, C) each: stage 1, merged stage 1, stage 2, ... stage 4.
        fusion_attentions: the pixels' attention to the words, (B, heads, N, T) each, in the same order.
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


# ---- sizes


def is_symbolic(*sizes: int) -> bool:
    """Whether one of the sizes stands for any, as in an export with dynamic shapes."""
    return any(isinstance(size, torch.SymInt) for size in sizes)


def fixed(size: int) -> int:
    """A size that `torch.compile` must know: it compiles once for each, also with `dynamic=True`."""
    return int(guard_scalar(size)) if torch.compiler.is_dynamo_compiling() else size


def padded(size: int, part: int) -> int:
    """The smallest multiple of `part` that holds `size` positions."""
    return parts(size, part) * part


def parts(size: int, part: int) -> int:
    """How many parts of that length hold `size` positions.

    Of a symbolic size it is a symbol of its own. As an expression of the size it would grow from stage to stage into
    nested roundings, which neither export nor compilation can reason about in reasonable time.
    """
    if not is_symbolic(size):
        return -(-size // part)
    number: Any = ((torch.scalar_tensor(size, dtype=torch.int64) + (part - 1)) // part).item()
    torch._check(number >= 1)
    return number


def is_readable(x: Tensor) -> bool:
    """Whether a look at the values costs nothing: they are on the CPU, and no graph is recorded."""
    return type(x) is Tensor and x.device.type == "cpu" and not torch.compiler.is_compiling()


# ---- what both encoders use


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision lifted to float32; float32 and float64 as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention that also returns its weights: (B, heads, L, d) in, (B, L, heads, d) and (B, heads, L, S) out."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(at_least_float32(scores), dim=-1).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, L, heads * d) -> (B, heads, L, d)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def cut_for_cache(module: nn.Module, x: Tensor, values: int) -> Sequence[Tensor]:
    """Cut along the first dimension what a module computes from with `values` intermediate values for each entry.

    On the CPU these then stay in its cache, in memory that is used again instead of being mapped anew. Elsewhere there
    is one part: on other devices, in training, where they are kept for the backward pass, and where a graph is
    recorded.
    """
    whole = x.device.type != "cpu" or module.training or torch.is_grad_enabled() or torch.compiler.is_compiling()
    return (x,) if whole else x.split(max(1, CACHED_VALUES // values))


def join(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Take `cut_for_cache` back, without a copy where nothing was cut."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim)


class CrossVLTMLP(nn.Module):
    """Two linear layers with an activation between and dropout behind."""

    def __init__(self, width: int, inner_width: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.inner_width = inner_width
        self.fc1 = nn.Linear(width, inner_width)
        self.activation = ACT2FN[activation]
        self.fc2 = nn.Linear(inner_width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        parts = cut_for_cache(self, x.flatten(0, -2), values=self.inner_width)
        x = join([self.fc2(self.activation(self.fc1(part))) for part in parts]).view(x.shape)
        return self.dropout(x)


# ---- vision: Swin Transformer v1


class CrossVLTDropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): drop a residual branch for some samples of the batch in training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return branch
        kept = torch.rand(branch.shape[0], *[1] * (branch.ndim - 1), device=branch.device) >= self.rate
        return branch * kept.to(branch.dtype) / (1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class CrossVLTPatchEmbeddings(nn.Module):
    """Cut the image into patches, those at the right and bottom edges filled up with zeros, and embed each."""

    def __init__(self, config: CrossVLTVisionConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.projection = nn.Conv2d(config.num_channels, config.embed_dim, config.patch_size, stride=config.patch_size)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: Tensor) -> Tensor:
        height, width = (fixed(size) for size in pixel_values.shape[-2:])
        full_height, full_width = (padded(size, self.patch_size) for size in (height, width))
        pixel_values = pixel_values.to(self.projection.weight.dtype)  # what the processor gives is float32
        pixel_values = F.pad(pixel_values, (0, full_width - width, 0, full_height - height))
        return self.dropout(self.norm(self.projection(pixel_values).permute(0, 2, 3, 1)))


class CrossVLTPatchMerging(GradientCheckpointingLayer):
    """Join every 2x2 neighbourhood into one position of twice the width; odd grids are filled up with zeros."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width, eps=eps)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        batch, height, width, channels = pixels.shape
        rows, columns = parts(height, 2), parts(width, 2)
        pixels = F.pad(pixels, (0, 0, 0, 2 * columns - width, 0, 2 * rows - height))
        corners = pixels.view(batch, rows, 2, columns, 2, channels).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(corners.flatten(3)))  # top left, bottom left, top right, bottom right


def window_partition(grid: Tensor, window: int) -> Tensor:
    """(H, W) -> (windows, window**2); H and W are multiples of the window."""
    height, width = grid.shape
    windows = grid.view(height // window, window, width // window, window).transpose(1, 2)
    return windows.flatten(2, 3).flatten(0, 1)


def shift_regions(size: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Which of its three parts (0, 1, 2) every position of a padded axis belongs to, (size,)."""
    position = torch.arange(size, device=device)
    return (position >= size - window).long() + (position >= size - shift).long()


def shift_mask(height: int, width: int, window: int, shift: int, like: Tensor) -> Tensor:
    """Keep apart what the cyclic shift of a padded (height, width) grid brings together.

    The grid falls into nine regions; between them -100 is added to the scores.

    Returns:
        (windows, 1, window**2, window**2), of the device and dtype of `like`.
    """
    rows = shift_regions(height, window, shift, like.device)
    columns = shift_regions(width, window, shift, like.device)
    regions = window_partition(3 * rows[:, None] + columns, window)
    apart = regions[:, None, :, None] != regions[:, None, None, :]
    return apart.to(like.dtype) * SHIFT_MASKED


class CrossVLTWindows(NamedTuple):
    """How a grid of H * W = N positions is cut into windows; the blocks of a stage that shift alike share it.

    To pad, shift and cut a grid is to pick its positions in another order, at the cost of one copy instead of four.

    Args:
        order: (windows, window**2) int64, the position of the grid at every place of the windows, counted from 1; 0
            where there is none.
        inverse: (N,) int64, the place of every position in the flat `order`.
        mask: (windows, 1, window**2, window**2), what is added to the scores; None without a shift.
    """

    order: Tensor
    inverse: Tensor
    mask: Tensor | None

    @classmethod
    def of(cls, pixels: Tensor, window: int, shifts: Sequence[int]) -> list["CrossVLTWindows"]:
        """The windows of (B, H, W, C) pixels, padded at the right and bottom, for each cyclic shift."""
        height, width = pixels.shape[1:3]
        full_height, full_width = padded(height, window), padded(width, window)
        grid = torch.arange(1, height * width + 1, device=pixels.device).view(height, width)
        grid = F.pad(grid, (0, full_width - width, 0, full_height - height))
        found = []
        for shift in shifts:
            order = window_partition(grid.roll((-shift, -shift), dims=(0, 1)), window)
            place = torch.arange(full_height * full_width, device=pixels.device)
            inverse = place.new_empty(height * width + 1).scatter(0, order.flatten(), place)[1:]
            mask = shift_mask(full_height, full_width, window, shift, like=pixels) if shift else None
            found.append(cls(order, inverse, mask))
        return found


class CrossVLTWindowAttention(nn.Module):
    """Self-attention within windows of the grid, with a learned relative position bias (Swin, section 3.2).

    The grid is padded at the right and bottom to whole windows. What is padded takes part as ordinary positions whose
    input is zero. All of them have the same query, key and value, so one more position is projected for them.
    """

    def __init__(self, config: CrossVLTVisionConfig, stage: int) -> None:
        super().__init__()
        width = config.hidden_sizes[stage]
        self.config = config
        self.num_heads = config.num_heads[stage]
        self.window = config.window_size
        self.scaling = (width // self.num_heads) ** -0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.proj = nn.Linear(width, width)
        self.proj_dropout = nn.Dropout(config.hidden_dropout_prob)
        self.relative_position_index: Tensor
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * self.window - 1) ** 2, self.num_heads))
        self.register_buffer("relative_position_index", self.compute_relative_position_index(), persistent=False)

    def compute_relative_position_index(self) -> Tensor:
        """Row of the bias table for every pair of positions of a window: (window**2 * window**2,) int64."""
        position = torch.arange(self.window)
        row, column = (axis.flatten() for axis in torch.meshgrid(position, position, indexing="ij"))
        rows, columns = (axis[:, None] - axis[None, :] + self.window - 1 for axis in (row, column))
        return (rows * (2 * self.window - 1) + columns).flatten()

    def position_bias(self) -> Tensor:
        """The relative position bias of a window: (1, heads, window**2, window**2)."""
        bias = self.relative_position_bias_table[self.relative_position_index].unflatten(0, (self.window**2, -1))
        return bias.permute(2, 0, 1)[None].contiguous()  # what is added to it and attention itself are faster so

    def forward(
        self, pixels: Tensor, windows: CrossVLTWindows, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[Tensor, Tensor | None]:
        images = cut_for_cache(self, pixels, values=3 * math.prod(pixels.shape[1:]))
        attended, weights = zip(*(self.attend(some, windows, **kwargs) for some in images), strict=True)
        return self.proj_dropout(join(attended)), None if weights[0] is None else join(weights)

    def attend(
        self, pixels: Tensor, windows: CrossVLTWindows, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[Tensor, Tensor | None]:
        """Attention in some of the images; the weights are (B * windows, heads, window**2, window**2)."""
        qkv = self.qkv(F.pad(pixels.flatten(1, 2), (0, 0, 1, 0)))
        bias = self.position_bias().to(qkv.dtype)
        scores = qkv.shape[0] * bias.numel()  # of a window in every image
        orders = cut_for_cache(self, windows.order, scores)
        masks = [None] * len(orders) if windows.mask is None else cut_for_cache(self, windows.mask, scores)
        parts = (
            self.attend_in_windows(qkv, order, bias, mask, **kwargs) for order, mask in zip(orders, masks, strict=True)
        )
        attended, weights = zip(*parts, strict=True)
        pixels = self.proj(join(attended, dim=1).index_select(1, windows.inverse)).view(pixels.shape)
        if weights[0] is not None and len(weights) > 1:
            weights = [join([part.unflatten(0, (qkv.shape[0], -1)) for part in weights], dim=1).flatten(0, 1)]
        return pixels, weights[0]  # themselves where nothing was cut, no view: their gradient may be asked for

    def attend_in_windows(
        self,
        qkv: Tensor,
        order: Tensor,
        bias: Tensor,
        mask: Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None]:
        """Attention in some of the windows.

        Args:
            qkv: (B, 1 + N, 3 * C), projected, with that of the padding first.
            order: (windows, window**2) int64, what of it is in these windows.
            bias: (1, heads, window**2, window**2).
            mask: (windows, 1, window**2, window**2), or None.
            kwargs: for the attention function.

        Returns:
            (B, windows * window**2, C), and the weights (B * windows, heads, window**2, window**2) if they are kept.
        """
        batch, windows = qkv.shape[0], order.shape[0]
        qkv = qkv.index_select(1, order.flatten()).view(batch, *order.shape, -1).flatten(0, 1)
        query, key, value = (split_heads(x, self.num_heads) for x in qkv.chunk(3, dim=-1))
        if mask is not None:
            bias = (bias + mask)[None].expand(batch, -1, -1, -1, -1).flatten(0, 1)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        attended, weights = attend(self, query, key, value, bias, dropout=dropout, scaling=self.scaling, **kwargs)
        return attended.flatten(2).unflatten(0, (batch, windows)).flatten(1, 2), weights


class CrossVLTVisionBlock(GradientCheckpointingLayer):
    """Swin block: pre-norm window attention, then a pre-norm MLP, with stochastic depth on both branches."""

    def __init__(self, config: CrossVLTVisionConfig, stage: int, drop_path_rate: float) -> None:
        super().__init__()
        width = config.hidden_sizes[stage]
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = CrossVLTWindowAttention(config, stage)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = CrossVLTMLP(width, int(config.mlp_ratio * width), config.hidden_act, config.hidden_dropout_prob)
        self.drop_path = CrossVLTDropPath(drop_path_rate)

    def forward(self, pixels: Tensor, windows: CrossVLTWindows, **kwargs: Unpack[TransformersKwargs]) -> Tensor:
        attended, _ = self.attention(self.norm1(pixels), windows, **kwargs)
        pixels = pixels + self.drop_path(attended)
        return pixels + self.drop_path(self.mlp(self.norm2(pixels)))


class CrossVLTVisionStage(nn.Module):
    """The Swin blocks of a stage, every second one with shifted windows, and the merging that leads to the next."""

    def __init__(self, config: CrossVLTVisionConfig, stage: int) -> None:
        super().__init__()
        width, blocks_before = config.hidden_sizes[stage], sum(config.depths[:stage])
        self.window = config.window_size
        last_block = max(config.num_hidden_layers - 1, 1)
        self.blocks = nn.ModuleList(
            CrossVLTVisionBlock(
                config, stage, drop_path_rate=config.drop_path_rate * (blocks_before + block) / last_block
            )
            for block in range(config.depths[stage])
        )
        last = stage == config.num_stages - 1
        self.downsample = None if last else CrossVLTPatchMerging(width, config.layer_norm_eps)

    def forward(self, pixels: Tensor, **kwargs: Unpack[TransformersKwargs]) -> Tensor:
        windows, shifted = CrossVLTWindows.of(pixels, self.window, shifts=(0, self.window // 2))
        for index, block in enumerate(self.blocks):
            pixels = block(pixels, shifted if index % 2 else windows, **kwargs)
        return pixels


# ---- language: BERT


class CrossVLTFloat32LayerNorm(nn.LayerNorm):
    """LayerNorm that computes and returns float32 where input and weights are of half precision."""

    def forward(self, x: Tensor) -> Tensor:
        x = at_least_float32(x)
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class CrossVLTTextEmbeddings(nn.Module):
    """Sum of word, position and token type embeddings, normalised."""

    def __init__(self, config: CrossVLTTextConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = CrossVLTFloat32LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        words = at_least_float32(self.word_embeddings(input_ids))
        words = words + self.token_type_embeddings(token_type_ids) + self.position_embeddings(positions)
        return self.dropout(self.norm(words))


class CrossVLTTextAttention(nn.Module):
    """Multi-head attention of the words to themselves or to pixels; keys and values come from `context_dim`."""

    def __init__(self, config: CrossVLTTextConfig, context_dim: int) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.scaling = (config.hidden_size // self.num_heads) ** -0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(context_dim, config.hidden_size)
        self.value = nn.Linear(context_dim, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, words: Tensor, context: Tensor, mask: Tensor | None, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[Tensor, Tensor | None]:
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attended, weights = attend(
            self,
            split_heads(self.query(words), self.num_heads),
            split_heads(self.key(context), self.num_heads),
            split_heads(self.value(context), self.num_heads),
            mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.output(attended.flatten(2)), weights


class CrossVLTTextLayer(GradientCheckpointingLayer):
    """BERT layer, post-norm: attention of the words to a context (themselves or pixels), then a feed-forward block.

    The words between the branches are float32 under half precision. That costs next to nothing and takes the error of
    the logits in bfloat16 from 6.4 % of their spread to 4.3 % (base case of the parity tests).
    """

    def __init__(self, config: CrossVLTTextConfig, context_dim: int | None = None) -> None:
        super().__init__()
        self.attention = CrossVLTTextAttention(config, context_dim or config.hidden_size)
        self.attention_dropout = nn.Dropout(config.hidden_dropout_prob)
        self.attention_norm = CrossVLTFloat32LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CrossVLTMLP(
            config.hidden_size, config.intermediate_size, config.hidden_act, config.hidden_dropout_prob
        )
        self.mlp_norm = CrossVLTFloat32LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self, words: Tensor, context: Tensor, mask: Tensor | None, **kwargs: Unpack[TransformersKwargs]
    ) -> Tensor:
        dtype = self.mlp_norm.weight.dtype  # the model's; of weights that may be quantised, this is not one
        mask = None if mask is None else mask.to(dtype)
        attended, _ = self.attention(words.to(dtype), context.to(dtype), mask, **kwargs)
        words = self.attention_norm(words + self.attention_dropout(attended))
        return self.mlp_norm(words + self.mlp(words.to(dtype)))


class CrossVLTTextStage(nn.Module):
    """A language stage: the words attend to the pixels of the stage before, if there are any, then to each other."""

    def __init__(self, config: CrossVLTTextConfig, stage: int, context_dim: int | None) -> None:
        super().__init__()
        self.cross_attention = None if context_dim is None else CrossVLTTextLayer(config, context_dim)
        self.layers = nn.ModuleList(CrossVLTTextLayer(config) for _ in range(config.depths[stage]))

    def forward(
        self,
        words: Tensor,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Tensor:
        if self.cross_attention is not None and context is not None:
            words = self.cross_attention(words, context.flatten(1, 2), None, **kwargs)
        for layer in self.layers:
            words = layer(words, words, mask, **kwargs)
        return words


# ---- what joins the two


class CrossVLTFloat32Linear(nn.Linear):
    """Linear layer that computes and returns float32 where input and weights are of half precision."""

    def forward(self, x: Tensor) -> Tensor:
        x = at_least_float32(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class CrossVLTPointwise(CrossVLTFloat32Linear):
    """The same for the 1x1 convolutions of the fusion, which have initial weights of their own."""


def instance_norm(pixels: Tensor, eps: float = 1e-5) -> Tensor:
    """InstanceNorm over the positions, (B, N, C), without affine. torch's own refuses a grid of one position."""
    centred = pixels - pixels.mean(dim=1, keepdim=True)
    centred = centred - centred.mean(dim=1, keepdim=True)  # rounding of the mean, which a small variance magnifies
    variance = (centred * centred).mean(dim=1, keepdim=True)  # `var_mean` takes three times as long over this axis
    return centred * torch.rsqrt(variance + eps)


class CrossVLTFusionAttention(nn.Module):
    """Attention of every pixel to the words, normalised over the grid.

    Original: query and output have biases, which the normalisation behind each cancels exactly.
    """

    def __init__(self, config: CrossVLTConfig, width: int, inner_width: int) -> None:
        super().__init__()
        text_width = config.text_config.hidden_size
        self.config = config
        self.num_heads = inner_width // config.fusion_head_dim
        self.scaling = config.fusion_head_dim**-0.5
        self.is_causal = False
        self.query = CrossVLTPointwise(width, inner_width, bias=False)
        self.key = CrossVLTFloat32Linear(text_width, inner_width)
        self.value = CrossVLTFloat32Linear(text_width, inner_width)
        self.output = CrossVLTPointwise(inner_width, width, bias=False)

    def forward(
        self, pixels: Tensor, words: Tensor, mask: Tensor | None, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[Tensor, Tensor | None]:
        values = pixels.shape[1] * self.query.out_features
        grids, sentences = (cut_for_cache(self, x, values) for x in (pixels, words))
        masks = [None] * len(grids) if mask is None else cut_for_cache(self, mask, values)
        parts = (self.attend(*part, **kwargs) for part in zip(grids, sentences, masks, strict=True))
        attended, weights = zip(*parts, strict=True)
        return join(attended), None if weights[0] is None else join(weights)

    def attend(
        self, pixels: Tensor, words: Tensor, mask: Tensor | None, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[Tensor, Tensor | None]:
        """The same in some of the images."""
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attended, weights = attend(
            self,
            split_heads(instance_norm(self.query(pixels)), self.num_heads),
            split_heads(self.key(words), self.num_heads),
            split_heads(self.value(words), self.num_heads),
            mask,
            dropout=0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return instance_norm(self.output(attended.flatten(2))), weights


class CrossVLTFusion(GradientCheckpointingLayer):
    """Every pixel reads the words: `GELU(Linear(pixels + attention to the words))`.

    It computes in float32 under half precision: InstanceNorm over an attention output that hardly varies from pixel to
    pixel magnifies rounding, which in bfloat16 puts an error of 42 % of their spread on the logits.
    """

    def __init__(self, config: CrossVLTConfig, width: int, inner_width: int) -> None:
        super().__init__()
        self.attention = CrossVLTFusionAttention(config, width, inner_width)
        self.projection = CrossVLTPointwise(width, width)

    def forward(
        self, pixels: Tensor, words: Tensor, mask: Tensor | None, **kwargs: Unpack[TransformersKwargs]
    ) -> Tensor:
        with maybe_autocast(device_type=pixels.device.type, enabled=False):
            flat = at_least_float32(pixels.flatten(1, 2))
            mask = None if mask is None else mask.to(flat.dtype)
            attended, _ = self.attention(flat, words.to(flat.dtype), mask, **kwargs)
            fused = F.gelu(self.projection(flat + attended))
        return fused.view(pixels.shape).to(pixels.dtype)


class CrossVLTGatedResidual(GradientCheckpointingLayer):
    """`pixels + g(fused)` with the language gate `g(f) = tanh(W2 relu(W1 f)) * f` (LAVT, section 3.2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width, bias=False)
        self.fc2 = nn.Linear(width, width, bias=False)

    def forward(self, pixels: Tensor, fused: Tensor) -> Tensor:
        parts = (cut_for_cache(self, x, values=math.prod(pixels.shape[1:])) for x in (pixels, fused))
        return join([some + self.gate(read) * read for some, read in zip(*parts, strict=True)])

    def gate(self, fused: Tensor) -> Tensor:
        """How much of what was read is let through: (B, H, W, C), between -1 and 1."""
        return torch.tanh(self.fc2(F.relu(self.fc1(fused))))


class CrossVLTLowerBound(torch.autograd.Function):
    """`max(x, bound)` whose gradient below the bound passes where it leads back up (Balle et al., ICLR 2018).

    A plain clamp has no gradient there, so what has once fallen below would stay there for ever.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, bound: float) -> Tensor:
        return x.clamp(min=bound)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.bound = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.where((x >= ctx.bound) | (gradient < 0), gradient, 0), None


class CrossVLTAlignment(GradientCheckpointingLayer):
    """Cosine similarity of every pixel with the sentence, over a learnable temperature (section III-C).

    Original: the temperature is not bounded. Trained, it can cross zero, where the maps are infinite and beyond which
    the loss teaches the contrary.
    """

    def __init__(self, config: CrossVLTConfig, width: int) -> None:
        super().__init__()
        self.pixel_projection = nn.Linear(width, config.alignment_dim)
        self.sentence_projection = nn.Linear(config.text_config.hidden_size, config.alignment_dim)
        self.temperature = nn.Parameter(torch.tensor([float(config.alignment_temperature)]))  # FSDP takes no scalars

    def bounded_temperature(self) -> Tensor:
        """By which the cosine is divided: at least `MIN_TEMPERATURE`, (1,)."""
        return CrossVLTLowerBound.apply(self.temperature, MIN_TEMPERATURE)

    def forward(self, pixels: Tensor, sentence: Tensor) -> Tensor:
        sentence = F.normalize(at_least_float32(self.sentence_projection(sentence.to(pixels.dtype))), dim=-1)
        pixels = at_least_float32(self.pixel_projection(pixels))
        # The cosine as a dot product over a length: to normalise the whole grid took 40 % of a small model's training
        lengths = torch.linalg.vector_norm(pixels, dim=-1).clamp(min=1e-12)
        return (torch.einsum("bhwc,bc->bhw", pixels, sentence) / lengths)[:, None] / self.bounded_temperature()


class CrossVLTStage(nn.Module):
    """What joins the two encoders in a stage: alignment, fusion, and the way of the fused pixels to the next stage."""

    def __init__(self, config: CrossVLTConfig, stage: int) -> None:
        super().__init__()
        width, merged_width = config.vision_config.hidden_sizes[stage], 2 * config.vision_config.hidden_sizes[stage]
        inner_width = merged_width if stage == 0 else width
        self.alignment = CrossVLTAlignment(config, width) if stage in config.aligned_stages else None
        self.fusion = CrossVLTFusion(config, width, inner_width)
        self.norm = nn.LayerNorm(width, eps=config.vision_config.layer_norm_eps)
        # Original: the last stage has a gate too, which feeds nothing.
        passes_on = config.pixels_read_words and stage < config.num_stages - 1
        self.gate = CrossVLTGatedResidual(width) if passes_on else None
        self.merged_fusion = CrossVLTFusion(config, merged_width, merged_width) if passes_on else None
        self.merged_gate = CrossVLTGatedResidual(merged_width) if passes_on else None


def interpolation(source: int, target: int, like: Tensor) -> Tensor:
    """Linear interpolation with aligned ends as a (target, source) matrix, which has no case that depends on sizes."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    from_, to = (torch.arange(size, device=like.device, dtype=dtype) for size in (source, target))
    position = to * (from_[-1] / to[-1].clamp(min=1))
    return (1 - (position[:, None] - from_).abs()).clamp(min=0).to(like.dtype)


def upsample(maps: Tensor, like: Tensor) -> Tensor:
    """Bilinear with aligned corners, to the height and width of `like`."""
    source, size = maps.shape[-2:], like.shape[-2:]
    if is_symbolic(*source, *size):
        rows, columns = (interpolation(*ends, like=maps) for ends in zip(source, size, strict=True))
        return rows @ maps @ columns.T
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)


class CrossVLTDecoderBlock(nn.Module):
    """Bring the coarse map to the grid of the finer one, join them, and convolve twice."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        joined = torch.cat([upsample(coarse, like=fine), fine], dim=1)
        joined = F.relu(self.norm1(self.conv1(joined)), inplace=True)
        return F.relu(self.norm2(self.conv2(joined)), inplace=True)


class CrossVLTDecoder(nn.Module):
    """Join the maps of all stages from coarse to fine: (B, C, H, W) each in, (B, 2, H_1, W_1) out."""

    def __init__(self, config: CrossVLTConfig) -> None:
        super().__init__()
        width, (*skip_widths, coarsest_width) = config.decoder_width, config.vision_config.hidden_sizes
        in_widths = [coarsest_width] + [width] * (len(skip_widths) - 1)
        self.blocks = nn.ModuleList(
            CrossVLTDecoderBlock(in_width + skip_width, width)
            for in_width, skip_width in zip(in_widths, reversed(skip_widths), strict=True)
        )
        self.classifier = nn.Conv2d(width, 2, 1)

    def forward(self, feature_maps: list[Tensor]) -> Tensor:
        values = self.classifier.in_channels * math.prod(feature_maps[0].shape[2:])
        parts = zip(*(cut_for_cache(self, maps, values) for maps in feature_maps), strict=True)
        return join([self.decode(part) for part in parts])

    def decode(self, feature_maps: Sequence[Tensor]) -> Tensor:
        """The maps of some of the images."""
        joined, *finer_maps = reversed(feature_maps)
        for block, finer in zip(self.blocks, finer_maps, strict=True):
            joined = block(joined, finer)
        return self.classifier(joined)


class CrossVLTPresenceHead(GradientCheckpointingLayer):
    """Whether something in the image fits the expression: one logit for each pair.

    It joins the sentence after the last language stage with the coarsest map, pooled over the positions in three ways
    (mean, maximum, attention of the sentence), and sees how sure the mask is at its surest pixel and how large it is.
    The mask is only read: no gradient of the presence loss goes into the decoder. Like the fusion it computes in
    float32 under half precision.
    """

    # As in CrossVLTPreTrainedModel, which collects them from its parts: an optional one names itself
    _keep_in_fp32_modules_strict = ["presence_head"]
    _keep_in_fp32_modules = [r".*presence_head"]

    def __init__(self, config: CrossVLTConfig) -> None:
        super().__init__()
        width, text_width = config.vision_config.hidden_size, config.text_config.hidden_size
        self.scaling = width**-0.5
        self.query = CrossVLTFloat32Linear(text_width, width)
        self.sentence_projection = CrossVLTFloat32Linear(text_width, width)
        self.pixel_projection = CrossVLTFloat32Linear(3 * width, width)
        self.norm = CrossVLTFloat32LayerNorm(width, eps=config.vision_config.layer_norm_eps)
        self.classifier = CrossVLTFloat32Linear(width + 2, 1)

    def forward(self, sentence: Tensor, feature_map: Tensor, mask_logits: Tensor) -> Tensor:
        """(B, D) sentences, (B, C, H, W) maps and (B, 2, H_1, W_1) logits of the mask in, (B,) float32 out."""
        with maybe_autocast(device_type=feature_map.device.type, enabled=False):
            pixels = at_least_float32(feature_map.flatten(2))
            sentence = sentence.to(pixels.dtype)
            joined = self.sentence_projection(sentence) + self.pixel_projection(self.pool(pixels, sentence))
            features = torch.cat([F.gelu(self.norm(joined)), self.read_mask(mask_logits.to(pixels.dtype))], dim=1)
            return self.classifier(features).squeeze(1)

    def pool(self, pixels: Tensor, sentence: Tensor) -> Tensor:
        """(B, C, N) pixels -> (B, 3 * C), their mean, their maximum and what the sentence attends to."""
        weights = F.softmax(self.query(sentence)[:, None] @ pixels * self.scaling, dim=-1)
        attended = (pixels @ weights.transpose(1, 2)).squeeze(2)
        return torch.cat([pixels.mean(2), pixels.amax(2), attended], dim=1)

    @staticmethod
    def read_mask(mask_logits: Tensor) -> Tensor:
        """(B, 2, H_1, W_1) -> (B, 2): the log-odds of the surest pixel, and log(1 + expected number of pixels)."""
        log_odds = (mask_logits[:, 1] - mask_logits[:, 0]).detach().flatten(1)
        return torch.stack([log_odds.amax(1), log_odds.sigmoid().sum(1).log1p()], dim=1)


# ---- losses


def mask_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy (torch's weighted mean) of (B, 2, H, W) logits with (B, H, W) labels.

    Equal to `F.cross_entropy(..., reduction="mean")`, but 0 and not NaN where every label is ignored.
    """
    background, target = CLASS_WEIGHTS
    is_object = (labels == 1).to(logits.dtype)
    weight = (labels != IGNORE_INDEX) * (background + (target - background) * is_object)
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")
    return (weight * losses).sum() / weight.sum().clamp(min=background)


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """One minus the soft Dice coefficient of the object's probability, mean over the batch."""
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
    """Binary cross-entropy of (B,) logits: the target is whether the pair's (H, W) labels hold an object.

    Pairs whose labels are all ignored are left out of the mean; of none the loss is 0.
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
    """What is minimised (section III-D), with the optional Dice and presence terms."""
    loss = MASK_LOSS_WEIGHT * (mask_loss + config.dice_loss_weight * dice_loss) + alignment_loss
    return loss + config.presence_loss_weight * presence_loss


# ---- evaluation in the midst of training

# Modules that are in evaluation mode for the time being, and how many `evaluating` contexts each is in
_EVALUATING: dict[nn.Module, int] = {}
_EVALUATING_LOCK = Lock()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and every module back into its own mode afterwards.

    `model.eval()` and `model.train()` would not do: the second puts frozen BatchNorms and dropouts into training mode
    as well. Contexts of several threads may overlap; the last one that ends restores the modes. A training step of
    the same model must not run in another thread meanwhile: it would compute in evaluation mode.

    Args:
        model: any module; nothing of it is changed but the mode.
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
    """Let `output_hidden_states` and `output_attentions` ask for all that a model can record of that kind.

    Transformers' `capture_outputs` switches on only the keys of exactly these names, and the cross-attentions with
    the attentions, whatever `output_cross_attentions` says.
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


def _is_asked(key: str, kwargs: dict[str, Any], config: PreTrainedConfig) -> Any:
    """Whether to record an output: as its own argument says, else that of its kind, else the config."""
    kind = "hidden_states" if key.endswith("hidden_states") else "attentions"
    for name in (f"output_{key}", f"output_{kind}"):
        if kwargs.get(name) is not None:
            return kwargs[name]
    return getattr(config, f"output_{kind}", False)


def _warn_without_weights(model: PreTrainedModel) -> None:
    """As the library's models do: only eager attention and functions of the user's own return their weights."""
    for name in sorted(attention_implementations(model) - {"eager"}):
        if is_library_attention(name):
            logger.warning_once(
                f"`{name}` attention does not return its weights, so the attentions asked for are empty. Load the "
                'model with `attn_implementation="eager"`, or call `model.set_attn_implementation("eager")`.'
            )


def attention_implementations(model: PreTrainedModel) -> set[str]:
    """The names of the attention functions of a model and of its parts."""
    configs = [model.config, *(getattr(model.config, name) for name in model.config.sub_configs)]
    return {config._attn_implementation or "eager" for config in configs}


def is_library_attention(name: str) -> bool:
    """Whether an attention implementation is the library's, or eager, and not one that a user has registered."""
    function = ALL_ATTENTION_FUNCTIONS.get(name)
    return (getattr(function, "__module__", None) or "transformers").startswith("transformers")


class CrossVLTPreTrainedModel(PreTrainedModel):
    """Weight initialisation and what Transformers needs to know of the models."""

    config: CrossVLTConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    # Every operation on tensors of two modules happens inside one of these, so that they may lie on different devices.
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
    # In `from_pretrained`; elsewhere (`.to`, `from_config`) the weights are cast and only the computing is float32
    _keep_in_fp32_modules_strict = ["fusion", "merged_fusion"]
    # What quantizers leave alone; see "int8 weights" in docs/performance.md
    _keep_in_fp32_modules = [r".*fusion"]
    # Trainer must divide the loss by the accumulation steps itself.
    accepts_loss_kwargs = False

    def _get_files_timestamps(self, working_dir: Any) -> dict[str, float]:
        """What `save_pretrained(push_to_hub=True)` need not upload if it is as old afterwards: no code, ever."""
        times = super()._get_files_timestamps(working_dir)
        return {name: time for name, time in times.items() if name not in code_files(working_dir)}

    def _attention_kwargs(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What of forward's further arguments goes to the attention function.

        Raises:
            TypeError: for an argument that nothing reads, such as a misspelt one, which `**kwargs` would swallow.
        """
        recorded = [f"output_{key}" for key in self._can_record_outputs or {}]
        read = [*recorded, "output_hidden_states", "output_attentions", *PASSED_ALONG]
        passed = {name: value for name, value in kwargs.items() if value is not None and name not in read}
        if not passed and not kwargs.get("output_attentions"):
            return {}
        custom = any(not is_library_attention(name) for name in attention_implementations(self))
        for name in passed:
            close = (
                [] if torch.compiler.is_compiling() else get_close_matches(name, [*ARGUMENTS, *read], n=1, cutoff=0.8)
            )
            if close or not custom or name in UNSUPPORTED:
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise TypeError(f"{type(self).__name__}.forward() got an unexpected keyword argument {name!r}.{hint}")
        if custom and kwargs.get("output_attentions"):
            passed["output_attentions"] = True
        return passed

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Give each part its start; `init.*` leaves alone what was loaded.

        Linear of the language encoder, Embedding   normal, std `initializer_range`; the padding word 0
        every other Linear, gates included          truncated normal, std `initializer_range`
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


# Weights of a whole checkpoint that belong to neither encoder
OF_THE_WHOLE = (
    r"^stages\.\d+\.(alignment|fusion|norm|gate|merged_fusion|merged_gate)\.",
    r"^decoder\.",
    r"^presence_head\.",
)


class CrossVLTVisionModel(CrossVLTPreTrainedModel):
    """The vision encoder: a Swin Transformer v1 without final norm, in four stages. On its own it reads no words."""

    config: CrossVLTVisionConfig
    base_model_prefix = "vision_model"  # under which a whole checkpoint has its weights
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
        """Encode (B, channels, height, width) normalised images of any size."""
        kwargs = self._attention_kwargs(kwargs)
        pixels = self.patch_embeddings(pixel_values)
        for stage in self.stages:
            pixels = stage(pixels, **kwargs)
            if stage.downsample is not None:
                pixels = stage.downsample(pixels)
        return CrossVLTVisionOutput(last_hidden_state=pixels)


class CrossVLTTextModel(CrossVLTPreTrainedModel):
    """The language encoder: BERT in four stages. On its own it sees no pixels and skips the cross-attention blocks."""

    config: CrossVLTTextConfig
    base_model_prefix = "text_model"  # under which a whole checkpoint has its weights
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
        # Stage 1 has no pixels to read
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
        """Encode (B, T) token ids; `attention_mask` (B, T) is 1 on words and 0 on padding."""
        kwargs = self._attention_kwargs(kwargs)
        words = self.embeddings(input_ids, token_type_ids)
        mask = word_mask(attention_mask, like=words)
        for stage in self.stages:
            words = stage(words, mask, **kwargs)
        return CrossVLTTextOutput(last_hidden_state=words)


def word_mask(attention_mask: Tensor | None, like: Tensor) -> Tensor | None:
    """(B, T), 1 on words and 0 on padding -> (B, 1, 1, T), what is added to the attention scores."""
    if attention_mask is None:
        return None
    return (attention_mask[:, None, None, :] == 0).to(like.dtype) * MASKED


def repeat_images(pixels: Tensor, counts: Tensor, total: int) -> Tensor:
    """(images, H, W, C) -> (total, H, W, C), each image `counts` times; counts on the CPU spare waiting for a GPU."""
    order = torch.repeat_interleave(counts, output_size=total)
    return pixels.index_select(0, order.to(pixels.device, non_blocking=True))


class CrossVLTModel(CrossVLTPreTrainedModel):
    """CrossVLT: one image and one expression in, the mask of the object that the expression refers to out."""

    _can_record_outputs = {
        **CrossVLTVisionModel._can_record_outputs,
        **CrossVLTTextModel._can_record_outputs,
        "fusion_hidden_states": CrossVLTFusion,
        "fusion_attentions": CrossVLTFusionAttention,
    }

    def __init__(self, config: CrossVLTConfig) -> None:
        super().__init__(config)
        config.validate()  # fields may have been set since the config was made
        config.text_config.context_dims = config.context_dims
        self.vision_model = CrossVLTVisionModel._from_config(config.vision_config)
        self.text_model = CrossVLTTextModel._from_config(config.text_config)
        self.stages = nn.ModuleList(CrossVLTStage(config, stage) for stage in range(config.num_stages))
        self.decoder = CrossVLTDecoder(config)
        self.presence_head = CrossVLTPresenceHead(config) if config.presence_head else None
        self.post_init()
        # What the encoders alone leave out is part of this model
        self._keys_to_ignore_on_load_unexpected: set[str] = set()
        # FSDP refuses names of modules that there are none of: what an ablation or an optional head leaves out
        self._no_split_modules &= {type(module).__name__ for module in self.modules()}

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
        """Encode images by the vision encoder alone, which then has read no words.

        Args:
            pixel_values: (B, channels, height, width) normalised images of any size.
            kwargs: see [`CrossVLTVisionModel`].

        Returns:
            "last_hidden_state" (B, H, W, C), the grid of the last stage; "pooler_output" (B, C), its mean;
            "hidden_states" and "attentions" as in [`CrossVLTVisionOutput`], if asked for.
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
        """Encode expressions by the language encoder alone, which then has read no pixels.

        Args:
            input_ids: (B, T) token ids, [CLS] first, padding last.
            attention_mask: (B, T), 1 on words and 0 on padding; None means no padding.
            token_type_ids: (B, T) token types; None means 0.
            kwargs: see [`CrossVLTTextModel`].

        Returns:
            "last_hidden_state" (B, T, D), the words that leave the last stage; "pooler_output" (B, D), that of [CLS];
            "hidden_states", the words that leave each stage, and "attentions", (B, heads, T, T) of every layer, if
            asked for.
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
        """Segment in each image the object that its expression refers to.

        Args:
            pixel_values: (B, channels, height, width) normalised images of any size, floats of any dtype. In training,
                one pair alone must be larger than 16 pixels a side (4 patches), else BatchNorm has a single value.
                With `expressions_per_image` (images, channels, height, width), each image once.
            input_ids: (B, T) token ids of the expressions, [CLS] first, padding last.
            attention_mask: (B, T), 1 on words and 0 on padding; None means no padding.
            token_type_ids: (B, T) token types; None means 0.
            labels: (B, height, width) integers: 1 on the object, 0 off it, 255 ignored.
            output_alignment_maps: whether to compute the alignment maps where no labels call for them.
            expressions_per_image: (images,) integers that sum up to B: how many consecutive expressions belong to
                each image. They share what comes before the first fusion: the patch embedding and the blocks of vision
                stage 1, whose hidden states and attentions are then of the images. None means one each.
            kwargs: `output_hidden_states`, `output_attentions` (of both encoders and the fusion; these need eager
                attention) or one kind alone, such as `output_cross_attentions`; `return_dict`; `original_sizes`, which
                the processor gives for the way back, is not used. What an attention function of your own, registered
                in `AttentionInterface`, reads goes to it.

        Raises:
            TypeError: for any other argument.
            ValueError: if the shapes do not fit each other or the config; on the CPU also for token ids outside the
                vocabulary and for other labels (on other devices, which would have to wait, torch fails by itself).
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
                pixels = repeat_images(pixels, expressions_per_image, total=len(words))
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
        maps = [map_.to(logits.device) for map_ in alignment_maps]  # of a model that is split over several devices
        losses = {"mask_loss": mask_loss(logits, labels), "alignment_loss": alignment_loss(maps, labels)}
        if self.config.dice_loss_weight:
            losses["dice_loss"] = dice_loss(logits, labels)
        if presence_logits is not None:
            losses["presence_loss"] = presence_loss(presence_logits.to(logits.device), labels)
        return {"loss": total_loss(self.config, **losses), **losses}

    @staticmethod
    def _count_expressions(images: int, input_ids: Tensor, expressions_per_image: Tensor | None) -> int:
        """How many expressions there must be."""
        if expressions_per_image is None:
            return images
        counts = expressions_per_image
        if (
            not isinstance(counts, Tensor)
            or counts.shape != (images,)
            or counts.dtype not in (torch.int32, torch.int64)
        ):
            raise ValueError(
                f"`expressions_per_image` is {counts!r}; give a tensor of {images} integers, one for each image."
            )
        # While a graph is recorded the values are not known, and to read them from a GPU would wait for it
        if not is_readable(counts):
            return input_ids.shape[0]
        if counts.min() < 1 or counts.sum() != input_ids.shape[0]:
            raise ValueError(
                f"`expressions_per_image` is {counts.tolist()}; give numbers of at least 1 that sum up to the "
                f"{input_ids.shape[0]} expressions in `input_ids`."
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
        channels, longest = self.config.vision_config.num_channels, self.config.text_config.max_position_embeddings
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels or 0 in pixel_values.shape:
            raise ValueError(
                f"`pixel_values` has shape {tuple(pixel_values.shape)}; give (batch, {channels}, height, width)."
            )
        if not pixel_values.is_floating_point():
            raise ValueError(f"`pixel_values` has dtype {pixel_values.dtype}; give normalised floats.")
        images, _, height, width = pixel_values.shape
        batch = self._count_expressions(images, input_ids, expressions_per_image)
        if self.training and batch == 1 and max(height, width) <= 4 * self.config.vision_config.patch_size:
            raise ValueError(
                f"One image of {height}x{width} pixels leaves BatchNorm a single value in training; give a larger "
                "image or several."
            )
        if input_ids.ndim != 2 or input_ids.shape[0] != batch or not 1 <= input_ids.shape[1] <= longest:
            raise ValueError(
                f"`input_ids` has shape {tuple(input_ids.shape)}; give one expression of 1 to {longest} tokens for "
                f"each of the {batch} images. For several of one image give `expressions_per_image`."
            )
        for name, value in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
            if value is not None and value.shape != input_ids.shape:
                raise ValueError(
                    f"`{name}` has shape {tuple(value.shape)}; give that of `input_ids`, {tuple(input_ids.shape)}."
                )
        if labels is not None and (labels.shape != (batch, height, width) or labels.is_floating_point()):
            raise ValueError(
                f"`labels` has shape {tuple(labels.shape)} and dtype {labels.dtype}; give integers of shape "
                f"{(batch, height, width)}: 1 on the object, 0 off it, 255 to ignore."
            )
        self._check_values(input_ids, token_type_ids, labels)

    def _check_values(self, input_ids: Tensor, token_type_ids: Tensor | None, labels: Tensor | None) -> None:
        text = self.config.text_config
        for name, ids, size in (
            ("input_ids", input_ids, text.vocab_size),
            ("token_type_ids", token_type_ids, text.type_vocab_size),
        ):
            if ids is not None and (ids.dtype not in (torch.int32, torch.int64)):
                raise ValueError(f"`{name}` has dtype {ids.dtype}; give int64.")
            if ids is not None and is_readable(ids) and (ids.min() < 0 or ids.max() >= size):
                raise ValueError(
                    f"`{name}` holds {ids.min()} to {ids.max()}, but the model knows 0 to {size - 1}; give those of "
                    "its own tokenizer."
                )
        if labels is not None and is_readable(labels):
            known = (labels == 0) | (labels == 1) | (labels == IGNORE_INDEX)
            if not known.all():
                raise ValueError(
                    f"`labels` holds {labels[~known][0]}; give 1 on the object, 0 off it, {IGNORE_INDEX} to ignore."
                )


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
