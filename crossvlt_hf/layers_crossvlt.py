"""The layers of CrossVLT: blocks of Swin and BERT, fusion, alignment and decoder (Cho, Yu, Kang, IEEE TMM 2023).

Shapes: B pairs of an image and an expression, T words (tokens) of width D, grid (H, W) of a stage with width C and
N = H * W positions. Pixels always have the shape (B, H, W, C).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import guard_scalar
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, output_capturing
from transformers.utils.generic import maybe_autocast

from .configuration_crossvlt import MIN_TEMPERATURE, CrossVLTConfig, CrossVLTTextConfig, CrossVLTVisionConfig


# Added to attention scores between regions that the cyclic shift puts into one window (Swin Transformer, section 3.2)
SHIFT_MASKED = -100.0
# Winograd's convolution: tiles of 4x4 pixels at a time, and where it is faster: the fewest channels, the fewest tiles
# of a map, and the fewest tiles of all maps for which a kernel is transformed
WINOGRAD_TILES = 256
WINOGRAD_CHANNELS = 256
WINOGRAD_LEAST_TILES = 8 * 8
WINOGRAD_LEAST_TILES_OF_A_KERNEL = 12 * 12
# Values of the largest map that a layer computes at a time on a CPU, 8 MiB in float32, which fit its cache. The C
# library keeps the memory of such maps. It returns larger ones to the system after each layer, and getting their pages
# again takes time.
PART = 2 * 2**20
# What Transformers records in a forward pass; its hooks stay in the model afterwards
RECORDED = getattr(output_capturing, "_active_collector", None)


# ---- sizes


def is_symbolic(*sizes: int) -> bool:
    """Whether a size is symbolic, as in an export with dynamic shapes."""
    return any(isinstance(size, torch.SymInt) for size in sizes)


def runs_on_cpu(x: Tensor) -> bool:
    """Whether a CPU computes now, and neither gradients nor a graph are recorded."""
    recorded = torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling()
    return x.device.type == "cpu" and not (recorded or is_symbolic(*x.shape))


def fixed(size: int) -> int:
    """Make a size static for `torch.compile`, which compiles once for each, also with `dynamic=True`."""
    return int(guard_scalar(size)) if torch.compiler.is_dynamo_compiling() else size


def padded(size: int, part: int) -> int:
    """The smallest multiple of `part` that is at least `size`."""
    return parts(size, part) * part


def parts(size: int, part: int) -> int:
    """The number of parts of length `part` for `size` positions: `ceil(size / part)`.

    For a symbolic size, this is a new symbol. Nested roundings of later stages would otherwise be too complex for
    export and compilation.
    """
    if not is_symbolic(size):
        return -(-size // part)
    number: Any = ((torch.scalar_tensor(size, dtype=torch.int64) + (part - 1)) // part).item()
    torch._check(number >= 1)
    return number


class CrossVLTParts(NamedTuple):
    """What the parts of a layer share.

    Args:
        pairs: the number of entries of all parts.
        made: by module, what it computes from its weights.
    """

    pairs: int
    made: dict[nn.Module, Tensor]


PARTS: ContextVar[CrossVLTParts | None] = ContextVar("PARTS", default=None)


def in_parts(
    layer: nn.Module,
    compute: Callable[..., Tensor],
    first: Tensor,
    *others: Tensor | None,
    growth: float,
    whole: bool = False,
) -> Tensor:
    """`compute(first, *others)`, on a CPU a few entries of the first dimension at a time.

    Gradients need all maps, a graph must not depend on the batch size, and a GPU is faster with everything at once. In
    training, parts would change BatchNorm and the random numbers of dropout. A hook in the layer expects the whole
    batch.

    Args:
        layer: whose modules compute.
        compute: returns a tensor with the same first dimension.
        first: its first input.
        others: its other inputs: tensors with the same first dimension, or None.
        growth: about how many values the largest map has for each value of `first`.
        whole: do not divide, as for arguments of a custom attention function, which may have a value for each pair.
    """
    if whole or not runs_on_cpu(first):
        return compute(first, *others)
    size = max(int(PART / max(growth * math.prod(first.shape[1:]), 1)), 1)
    if len(first) <= size or needs_whole_batch(layer):
        return compute(first, *others)
    pieces = [first.split(size)]
    pieces += [(None,) * len(pieces[0]) if each is None else each.split(size) for each in others]
    shared = CrossVLTParts(pairs=len(first), made={})
    token = PARTS.set(shared)
    try:
        return join((compute(*some) for some in zip(*pieces, strict=True)), total=len(first))
    finally:
        PARTS.reset(token)
        shared.made.clear()  # a copy of the context would keep it


def join(pieces: Iterable[Tensor], total: int, dim: int = 0) -> Tensor:
    """Concatenate pieces to length `total`. Each is copied while it is in the cache, then freed for the next."""
    joined, start = None, 0
    for piece in pieces:
        length = piece.shape[dim]
        if joined is None:
            joined = piece.new_empty(*piece.shape[:dim], total, *piece.shape[dim + 1 :])
        joined.narrow(dim, start, length).copy_(piece)
        start += length
    assert joined is not None
    assert start == total
    return joined


def needs_whole_batch(layer: nn.Module) -> bool:
    """Whether a module in a layer must get all pairs at once.

    That is in training, for the statistics of BatchNorm (without those of training, also in evaluation), for hooks of
    a user, for those of Transformers while it records outputs, and where Accelerate loads weights for each call.
    """
    inside = [module for module in layer.modules() if module is not layer]
    if layer.training or any(module.training or hasattr(module, "_hf_hook") for module in inside):
        return True
    if any(isinstance(module, nn.BatchNorm2d) and module.running_mean is None for module in inside):
        return True
    hooks = chain.from_iterable((*each._forward_hooks.values(), *each._forward_pre_hooks.values()) for each in inside)
    recording = RECORDED is None or bool(RECORDED.get())
    return any(recording or hook.__module__ != output_capturing.__name__ for hook in hooks)


def once_for_all_parts(module: nn.Module, make: Callable[[], Tensor]) -> Tensor:
    """`make()`, what a module computes from its weights; only for the first part where `in_parts` divides a layer."""
    shared = None if torch.compiler.is_compiling() else PARTS.get()
    if shared is None:
        return make()
    if module not in shared.made:
        shared.made[module] = make()
    return shared.made[module]


# ---- layers of both encoders


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32; float32 and float64 stay the same."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def is_library_attention(name: str | None) -> bool:
    """Whether an attention implementation is of Transformers, not a custom one."""
    function = ALL_ATTENTION_FUNCTIONS.get(name or "eager")
    return (getattr(function, "__module__", None) or "transformers").startswith("transformers")


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


class CrossVLTMLP(nn.Module):
    """Two linear layers with an activation in between, and dropout at the end."""

    def __init__(self, width: int, inner_width: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner_width)
        self.activation = ACT2FN[activation]
        self.fc2 = nn.Linear(inner_width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.activation(self.fc1(x))))


# ---- vision: Swin Transformer v1


class CrossVLTDropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): drop a residual branch for random samples in training."""

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
    """Divide the image into patches, with zero padding at the right and bottom, and embed them."""

    def __init__(self, config: CrossVLTVisionConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.projection = nn.Conv2d(config.num_channels, config.embed_dim, config.patch_size, stride=config.patch_size)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: Tensor) -> Tensor:
        height, width = (fixed(size) for size in pixel_values.shape[-2:])
        full_height, full_width = (padded(size, self.patch_size) for size in (height, width))
        pixel_values = pixel_values.to(self.projection.weight.dtype)  # the processor returns float32
        pixel_values = F.pad(pixel_values, (0, full_width - width, 0, full_height - height))
        return self.dropout(self.norm(self.projection(pixel_values).permute(0, 2, 3, 1)))


class CrossVLTPatchMerging(GradientCheckpointingLayer):
    """Merge every 2x2 neighbourhood into a position of twice the width, with zero padding for odd grids."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width, eps=eps)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return in_parts(self, self._merge, pixels, growth=1)

    def _merge(self, pixels: Tensor) -> Tensor:
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
    """The region (0, 1 or 2) of every position of a padded axis, (size,)."""
    position = torch.arange(size, device=device)
    return (position >= size - window).long() + (position >= size - shift).long()


def shift_mask(height: int, width: int, window: int, shift: int, like: Tensor) -> Tensor:
    """The attention mask for a cyclic shift of a padded (height, width) grid: -100 between its nine regions.

    Returns:
        (windows, 1, window**2, window**2), with device and dtype of `like`.
    """
    rows = shift_regions(height, window, shift, like.device)
    columns = shift_regions(width, window, shift, like.device)
    regions = window_partition(3 * rows[:, None] + columns, window)
    apart = regions[:, None, :, None] != regions[:, None, None, :]
    return apart.to(like.dtype) * SHIFT_MASKED


class CrossVLTWindows(NamedTuple):
    """The windows of a grid of H * W = N positions, which blocks of a stage with the same shift share.

    Padding, shifting and partitioning a grid is a reordering of its positions, with one copy instead of four.

    Args:
        order: (windows, window**2) int64, the grid position of every window position, counted from 1; 0 for padding.
        inverse: (N,) int64, the index of every grid position in the flat `order`.
        mask: (windows, 1, window**2, window**2), added to the scores; None without a shift.
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

    The grid is padded at the right and bottom to complete windows. Padded positions are not masked; their input is
    zero. All of them have the same query, key and value, so only one is projected.
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
        return bias.permute(2, 0, 1)[None].contiguous()  # makes later additions and attention faster

    def score_bias(self, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What is added to the scores: (1 or windows, heads, window**2, window**2)."""
        bias = self.position_bias().to(dtype)
        return bias if mask is None else bias + mask

    def forward(
        self, pixels: Tensor, windows: CrossVLTWindows, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[Tensor, Tensor | None]:
        """`softmax(Q K^T / sqrt(d) + B) V` in every window (Swin, equation 4).

        Args:
            pixels: (B, H, W, C).
            windows: of the grid.
            kwargs: for the attention function.

        Returns:
            (B, H, W, C), and the weights (B * windows, heads, window**2, window**2) if the attention function returns
            them.
        """
        qkv = self.qkv(F.pad(pixels.flatten(1, 2), (0, 0, 1, 0)))  # one more position, for all padding
        batch, order = qkv.shape[0], windows.order
        qkv = qkv.index_select(1, order.flatten()).view(batch, *order.shape, -1).flatten(0, 1)
        query, key, value = (split_heads(x, self.num_heads) for x in qkv.chunk(3, dim=-1))
        make_bias = partial(self.score_bias, windows.mask, dtype=qkv.dtype)
        name = self.config._attn_implementation
        # A custom function could change it in place
        bias = once_for_all_parts(self, make_bias) if is_library_attention(name) else make_bias()
        if windows.mask is not None:
            bias = bias[None].expand(batch, -1, -1, -1, -1).flatten(0, 1)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        attended, weights = attend(self, query, key, value, bias, dropout=dropout, scaling=self.scaling, **kwargs)
        attended = attended.flatten(2).unflatten(0, (batch, order.shape[0])).flatten(1, 2)
        return self.proj_dropout(self.proj(attended.index_select(1, windows.inverse))).view(pixels.shape), weights


class CrossVLTVisionBlock(GradientCheckpointingLayer):
    """Swin block: pre-norm window attention and pre-norm MLP, with stochastic depth on both branches."""

    def __init__(self, config: CrossVLTVisionConfig, stage: int, drop_path_rate: float) -> None:
        super().__init__()
        width = config.hidden_sizes[stage]
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = CrossVLTWindowAttention(config, stage)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = CrossVLTMLP(width, int(config.mlp_ratio * width), config.hidden_act, config.hidden_dropout_prob)
        self.drop_path = CrossVLTDropPath(drop_path_rate)
        self.growth = max(config.mlp_ratio, 3)  # of the MLP, or query, key and value

    def forward(self, pixels: Tensor, windows: CrossVLTWindows, **kwargs: Unpack[TransformersKwargs]) -> Tensor:
        mix = partial(self._mix, windows=windows, **kwargs)
        return in_parts(self, mix, pixels, growth=self.growth, whole=bool(kwargs))

    def _mix(self, pixels: Tensor, windows: CrossVLTWindows, **kwargs: Unpack[TransformersKwargs]) -> Tensor:
        attended, _ = self.attention(self.norm1(pixels), windows, **kwargs)
        pixels = pixels + self.drop_path(attended)
        return pixels + self.drop_path(self.mlp(self.norm2(pixels)))


class CrossVLTVisionStage(nn.Module):
    """The Swin blocks of a stage, every second one with shifted windows, and the patch merging after them."""

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
    """LayerNorm that computes and returns float32 for inputs and weights in half precision."""

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
    """Multi-head attention of words to words or pixels, which have width `context_dim`."""

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
    """BERT layer, post-norm: attention of words to a context (words or pixels), then a feed-forward block.

    In half precision, words between the branches are float32. This costs hardly any time, and reduces the error of the
    logits in bfloat16 from 6.4 % of their spread to 4.3 % (base case of the parity tests).
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
        dtype = self.mlp_norm.weight.dtype  # of the model, from a weight that is never quantised
        mask = None if mask is None else mask.to(dtype)
        attended, _ = self.attention(words.to(dtype), context.to(dtype), mask, **kwargs)
        words = self.attention_norm(words + self.attention_dropout(attended))
        return self.mlp_norm(words + self.mlp(words.to(dtype)))


class CrossVLTTextStage(nn.Module):
    """A language stage: words attend to pixels of the previous stage, if there are any, then to each other."""

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


# ---- fusion, alignment, decoder


class CrossVLTFloat32Linear(nn.Linear):
    """Linear layer that computes and returns float32 for inputs and weights in half precision."""

    def forward(self, x: Tensor) -> Tensor:
        x = at_least_float32(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class CrossVLTPointwise(CrossVLTFloat32Linear):
    """The 1x1 convolutions of the fusion, which have another initialisation."""


def instance_norm(pixels: Tensor, eps: float = 1e-5) -> Tensor:
    """InstanceNorm of (B, N, C) over positions, without affine; unlike that of torch, also for one position."""
    centred = pixels - pixels.mean(dim=1, keepdim=True)
    centred = centred - centred.mean(
        dim=1, keepdim=True
    )  # rounding error of the mean, which a small variance magnifies
    variance = (centred * centred).mean(dim=1, keepdim=True)  # `var_mean` takes three times as long for this axis
    return centred * torch.rsqrt(variance + eps)


class CrossVLTFusionAttention(nn.Module):
    """Attention of pixels to words, normalised over the grid.

    In the original, query and output have biases, which the following normalisation cancels exactly.
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
    """Fuse words into pixels: `GELU(Linear(pixels + attention to words))`.

    In half precision, it computes in float32: attention outputs hardly vary between pixels, so InstanceNorm magnifies
    rounding errors, and the error of the logits in bfloat16 would be 42 % of their spread.
    """

    def __init__(self, config: CrossVLTConfig, width: int, inner_width: int) -> None:
        super().__init__()
        self.attention = CrossVLTFusionAttention(config, width, inner_width)
        self.projection = CrossVLTPointwise(width, width)
        self.growth = inner_width / width

    def forward(
        self, pixels: Tensor, words: Tensor, mask: Tensor | None, **kwargs: Unpack[TransformersKwargs]
    ) -> Tensor:
        fuse = partial(self._fuse, **kwargs)
        return in_parts(self, fuse, pixels, words, mask, growth=self.growth, whole=bool(kwargs))

    def _fuse(
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
        return in_parts(self, self._add, pixels, fused, growth=1)

    def _add(self, pixels: Tensor, fused: Tensor) -> Tensor:
        return pixels + self.gate(fused) * fused

    def gate(self, fused: Tensor) -> Tensor:
        """The factor of the fused pixels: (B, H, W, C), between -1 and 1."""
        return torch.tanh(self.fc2(F.relu(self.fc1(fused))))


class CrossVLTLowerBound(torch.autograd.Function):
    """`max(x, bound)`, with a gradient below the bound if it increases `x` (Balle et al., ICLR 2018).

    `clamp` has no gradient there, so values below the bound would never change.
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
    """Cosine similarity of every pixel with the sentence, divided by a learnable temperature (section III-C).

    In the original, the temperature has no bound. In training, it could reach zero, where the maps are infinite, and
    below which the loss has the wrong sign.
    """

    def __init__(self, config: CrossVLTConfig, width: int) -> None:
        super().__init__()
        self.pixel_projection = nn.Linear(width, config.alignment_dim)
        self.sentence_projection = nn.Linear(config.text_config.hidden_size, config.alignment_dim)
        self.temperature = nn.Parameter(
            torch.tensor([float(config.alignment_temperature)])
        )  # FSDP does not support scalars

    def bounded_temperature(self) -> Tensor:
        """The divisor of the cosine, at least `MIN_TEMPERATURE`, (1,)."""
        return CrossVLTLowerBound.apply(self.temperature, MIN_TEMPERATURE)

    def forward(self, pixels: Tensor, sentence: Tensor) -> Tensor:
        sentence = F.normalize(at_least_float32(self.sentence_projection(sentence.to(pixels.dtype))), dim=-1)
        pixels = at_least_float32(self.pixel_projection(pixels))
        # Divides the dot product by lengths: normalising the grid took 40 % of the training time of a small model
        lengths = torch.linalg.vector_norm(pixels, dim=-1).clamp(min=1e-12)
        return (torch.einsum("bhwc,bc->bhw", pixels, sentence) / lengths)[:, None] / self.bounded_temperature()


class CrossVLTStage(nn.Module):
    """The layers between the encoders in a stage: alignment, fusion, and gates for the pixels of the next stage."""

    def __init__(self, config: CrossVLTConfig, stage: int) -> None:
        super().__init__()
        width, merged_width = config.vision_config.hidden_sizes[stage], 2 * config.vision_config.hidden_sizes[stage]
        inner_width = merged_width if stage == 0 else width
        self.alignment = CrossVLTAlignment(config, width) if stage in config.aligned_stages else None
        self.fusion = CrossVLTFusion(config, width, inner_width)
        self.norm = nn.LayerNorm(width, eps=config.vision_config.layer_norm_eps)
        # In the original, the last stage also has a gate, whose output is unused.
        passes_on = config.pixels_read_words and stage < config.num_stages - 1
        self.gate = CrossVLTGatedResidual(width) if passes_on else None
        self.merged_fusion = CrossVLTFusion(config, merged_width, merged_width) if passes_on else None
        self.merged_gate = CrossVLTGatedResidual(merged_width) if passes_on else None


def interpolation(source: int, target: int, like: Tensor) -> Tensor:
    """Linear interpolation with aligned corners as a (target, source) matrix, without branches on sizes."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    from_, to = (torch.arange(size, device=like.device, dtype=dtype) for size in (source, target))
    position = to * (from_[-1] / to[-1].clamp(min=1))
    return (1 - (position[:, None] - from_).abs()).clamp(min=0).to(like.dtype)


def upsample(maps: Tensor, like: Tensor) -> Tensor:
    """Bilinear interpolation with aligned corners, to the height and width of `like`."""
    source, size = maps.shape[-2:], like.shape[-2:]
    if is_symbolic(*source, *size):
        rows, columns = (interpolation(*ends, like=maps) for ends in zip(source, size, strict=True))
        return rows @ maps @ columns.T
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)


def winograd_powers(count: int) -> Tensor:
    """The powers below `count` of five points and infinity: (6, count), float64.

    The matrices of Winograd's convolution F(4x4, 3x3) are made from them (Toom-Cook; Lavin and Gray, "Fast
    Algorithms for Convolutional Neural Networks", CVPR 2016). With these points, the error is a quarter
    of that with 0, 1, -1, 2, -2.
    """
    with torch.device("cpu"):  # whatever the default device is
        points = torch.tensor([0.0, 0.75, -0.75, 1.5, -1.5], dtype=torch.float64)
        return torch.cat([points[:, None] ** torch.arange(count), torch.eye(count, dtype=torch.float64)[-1:]])


def winograd_kernel(kernel: Tensor) -> Tensor:
    """Transform a kernel for `winograd_convolution`: (width, C, 3, 3) -> (36, width, C)."""
    matrix = winograd_powers(3)
    transformed = torch.kron(matrix, matrix).to(kernel.dtype) @ kernel.permute(2, 3, 0, 1).reshape(9, -1)
    return transformed.view(36, *kernel.shape[:2])


def winograd_convolution(maps: Tensor, kernel: Tensor) -> Tensor:
    """Convolve with padding 1 and a quarter of the multiplications: 36 for 4x4 pixels instead of 144.

    The rounding error is some six times that of a direct convolution, relative to the largest of 6x6 pixels: infinite
    values spread to a tile.

    Args:
        maps: (B, C, H, W).
        kernel: (36, width, C), transformed by `winograd_kernel`.

    Returns:
        (B, width, H, W).
    """
    (batch, channels, height, width), out_channels = maps.shape, kernel.shape[1]
    matrices = torch.linalg.inv(winograd_powers(6)).T, winograd_powers(4).T
    from_pixels, to_pixels = (torch.kron(matrix, matrix).to(maps.dtype) for matrix in matrices)
    rows, columns = parts(height, 4), parts(width, 4)

    def convolve(first: int, last: int) -> Tensor:
        """Rows of tiles: (batch, width, last - first, 4, columns, 4)."""
        top, bottom = 4 * first - 1, 4 * last + 1  # with a border of a pixel
        strip = maps[:, :, max(top, 0) : min(bottom, height)]
        strip = F.pad(strip, (1, 4 * columns + 1 - width, max(-top, 0), max(bottom - height, 0)))
        tiles = strip.unfold(2, 6, 4).unfold(3, 6, 4)
        pixels = from_pixels @ tiles.permute(4, 5, 1, 0, 2, 3).reshape(36, -1)
        products = to_pixels @ (kernel @ pixels.view(36, channels, -1)).view(36, -1)
        return products.view(4, 4, out_channels, batch, -1, columns).permute(3, 2, 4, 0, 5, 1)

    at_a_time = max(WINOGRAD_TILES // (batch * columns), 1)  # rows of tiles that fit the CPU's cache
    strips = (convolve(first, min(first + at_a_time, rows)) for first in range(0, rows, at_a_time))
    convolved = join(strips, total=rows, dim=2).view(batch, out_channels, 4 * rows, 4 * columns)
    return convolved[..., :height, :width].contiguous()


class CrossVLTConvolution(nn.Conv2d):
    """A convolution that uses Winograd's algorithm where that is faster and exact enough.

    That is for large maps in float32 on a CPU, when gradients and graphs are not recorded; torch has the algorithm on
    GPUs only.
    """

    def forward(self, maps: Tensor) -> Tensor:
        if runs_on_cpu(maps) and self._is_usual(maps) and self._is_large(maps):
            # Transforming the kernels for each part took a tenth of the decoder's time
            return winograd_convolution(maps, once_for_all_parts(self, lambda: winograd_kernel(self.weight)))
        return super().forward(maps)

    def _is_usual(self, maps: Tensor) -> bool:
        """Whether it is the decoder's: adapters make others of this class, and folding BatchNorm adds a bias."""
        sizes = (self.kernel_size, self.stride, self.padding, self.dilation, self.groups, self.padding_mode)
        usual = self.bias is None and sizes == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
        single = maps.dtype == self.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return usual and single and maps.ndim == 4

    def _is_large(self, maps: Tensor) -> bool:
        batch, channels, height, width = maps.shape
        tiles, shared = parts(height, 4) * parts(width, 4), PARTS.get()
        of_the_kernel = tiles * (batch if shared is None else shared.pairs)
        enough = tiles >= WINOGRAD_LEAST_TILES and of_the_kernel >= WINOGRAD_LEAST_TILES_OF_A_KERNEL
        return enough and min(channels, self.out_channels) >= WINOGRAD_CHANNELS


class CrossVLTDecoderBlock(nn.Module):
    """Upsample a coarse map to the grid of a finer one, concatenate them, and convolve twice."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.conv1 = CrossVLTConvolution(in_width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = CrossVLTConvolution(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        joined = torch.cat([upsample(coarse, like=fine), fine], dim=1)
        joined = F.relu(self.norm1(self.conv1(joined)), inplace=True)
        return F.relu(self.norm2(self.conv2(joined)), inplace=True)


class CrossVLTDecoder(nn.Module):
    """Combine the (B, C, H, W) maps of all stages from coarse to fine, to (B, 2, H_1, W_1) logits."""

    def __init__(self, config: CrossVLTConfig) -> None:
        super().__init__()
        width, (*skip_widths, coarsest_width) = config.decoder_width, config.vision_config.hidden_sizes
        in_widths = [coarsest_width] + [width] * (len(skip_widths) - 1)
        self.blocks = nn.ModuleList(
            CrossVLTDecoderBlock(in_width + skip_width, width)
            for in_width, skip_width in zip(in_widths, reversed(skip_widths), strict=True)
        )
        self.classifier = nn.Conv2d(width, 2, 1)
        self.growth = in_widths[-1] / skip_widths[0] + 1 if skip_widths else 1.0  # the two finest maps, joined

    def forward(self, feature_maps: list[Tensor]) -> Tensor:
        return in_parts(self, self._decode, *feature_maps, growth=self.growth)

    def _decode(self, *feature_maps: Tensor) -> Tensor:
        joined, *finer_maps = reversed(feature_maps)
        for block, finer in zip(self.blocks, finer_maps, strict=True):
            joined = block(joined, finer)
        return self.classifier(joined)


class CrossVLTPresenceHead(GradientCheckpointingLayer):
    """Predict whether the image has a target: a logit for each pair.

    The inputs are the sentence after the last language stage, the coarsest map, pooled over positions in three ways
    (mean, maximum, attention of the sentence), and the highest log-odds and expected size of the mask. The decoder
    gets no gradient of the presence loss. Like the fusion, it computes in float32 for half precision.
    """

    # Transformers adds these to those of the model, if it has this optional head
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
        """Convert (B, D) sentences, (B, C, H, W) maps and (B, 2, H_1, W_1) mask logits to (B,) float32 logits."""
        with maybe_autocast(device_type=feature_map.device.type, enabled=False):
            pixels = at_least_float32(feature_map.flatten(2))
            sentence = sentence.to(pixels.dtype)
            joined = self.sentence_projection(sentence) + self.pixel_projection(self.pool(pixels, sentence))
            features = torch.cat([F.gelu(self.norm(joined)), self.read_mask(mask_logits.to(pixels.dtype))], dim=1)
            return self.classifier(features).squeeze(1)

    def pool(self, pixels: Tensor, sentence: Tensor) -> Tensor:
        """(B, C, N) pixels -> (B, 3 * C): mean, maximum, and attention of the sentence."""
        weights = F.softmax(self.query(sentence)[:, None] @ pixels * self.scaling, dim=-1)
        attended = (pixels @ weights.transpose(1, 2)).squeeze(2)
        return torch.cat([pixels.mean(2), pixels.amax(2), attended], dim=1)

    @staticmethod
    def read_mask(mask_logits: Tensor) -> Tensor:
        """(B, 2, H_1, W_1) -> (B, 2): highest log-odds of a pixel, and log(1 + expected number of pixels)."""
        log_odds = (mask_logits[:, 1] - mask_logits[:, 0]).detach().flatten(1)
        return torch.stack([log_odds.amax(1), log_odds.sigmoid().sum(1).log1p()], dim=1)
