"""Explanations of a prediction: the attention between pixels and words, and the alignment with the sentence.

Shapes: stages are numbered from 1 to 4, (H_i, W_i) is the grid of stage i, T the number of tokens without padding. A
cell of stage i covers a square of `patch_size * 2**(i - 1)` pixels of the resized image; cells at the right and the
bottom may extend beyond it.
"""

import threading
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..modeling_crossvlt import CrossVLTModel, CrossVLTOutput, evaluating
from ..processing_crossvlt import CrossVLTProcessor, ImageLike, reading_note, to_rgb


if TYPE_CHECKING:
    from ..pipeline_crossvlt import ReferringImageSegmentationPipeline


Map = NDArray[np.float32]
Pixel = tuple[int, int]
Region = NDArray[np.bool_] | Pixel

SPECIAL = ("[CLS]", "[SEP]")
# Words without content; models often attend to them
FUNCTION_WORDS = frozenset((
    "a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "has", "her", "his", "in", "is", "it", "its",
    "of", "on", "one", "or", "that", "the", "their", "this", "to", "which", "who", "whose", "with",
))  # fmt: skip
# Outputs of the model that an explanation needs
RECORDED = {"output_fusion_attentions": True, "output_cross_attentions": True, "output_alignment_maps": True}
# One explanation at a time, since it changes the attention implementation of its model
_TURNS = threading.Lock()


@dataclass(frozen=True, eq=False)
class Explanation:
    """The prediction for an expression, with attention and alignment maps.

    Attention is averaged over heads. Maps that a configuration does not have are missing: `pixels_read` with a
    `fusion_direction` of "words_to_pixels" or "late", `alignment_maps` of stages without alignment.

    Args:
        image: the image, upright, of mode "RGB".
        expression: the expression.
        mask: (height, width) of the image: the predicted mask.
        score: of the mask, see `CrossVLTProcessor.post_process_masks`; 0.0 if it is empty.
        box: [x_min, y_min, x_max, y_max] of the mask, the maxima exclusive; None if it is empty.
        tokens: the T tokens of the expression, with [CLS] and [SEP]; pieces inside a word start with "##".
        alignment_maps: stage to (H_i, W_i), cosine of every pixel with the sentence, in [-1, 1] (no temperature).
        words_read: stage to (H_i, W_i, T), attention of each pixel to each word; the last axis sums to 1. From the
            fusion at the resolution of the stage, which the decoder reads. That of the merged pixels of stages 1-3 is
            `fusion_attentions[1::2]` of the model's output.
        pixels_read: stage, from 2 on, to (T, H_i, W_i), attention of each word to each pixel; the last two axes sum
            to 1. From the cross-attention at the start of the language stage.
        input_size: height and width to which the image was resized.
        patch_size: side in pixels of a cell of stage 1.
    """

    image: Image.Image
    expression: str
    mask: NDArray[np.bool_]
    score: float
    box: list[int] | None
    tokens: list[str]
    alignment_maps: dict[int, Map]
    words_read: dict[int, Map]
    pixels_read: dict[int, Map]
    input_size: tuple[int, int]
    patch_size: int

    def words_of(self, stage: int, region: Region | None = None) -> Map:
        """Attention of a region to the words: the mean over its pixels, (T,), which sums to 1.

        Args:
            stage: from 1 to 4.
            region: a bool array of the size of the image, or the (x, y) of one pixel; None for the mask, or for the
                whole image if the mask is empty.

        Raises:
            ValueError: if there is no such stage, the given region is empty or has another size, or the pixel is
                outside.
        """
        read = _entry(self.words_read, stage, "attention to words")
        return np.einsum("hw,hwt->t", self.shares(stage, region), read)

    def pixels_of(self, stage: int, word: str) -> Map:
        """Attention of a word to the pixels: (H_i, W_i), which sums to 1; the mean over its tokens.

        Raises:
            ValueError: if the stage has no such attention, or the word is not in the expression.
        """
        read = _entry(self.pixels_read, stage, "attention to pixels")
        return read[positions_of(self.tokens, word)].mean(axis=0)

    def shares(self, stage: int, region: Region | None = None) -> Map:
        """The share of a region's area in each cell of a stage: (H_i, W_i), which sums to 1.

        Cells that are partly in the region count partly. Arguments and errors as in `words_of`.
        """
        grid = _entry(self.words_read, stage, "attention to words").shape[:2]
        area = self._area(region)
        cell = self.patch_size * 2 ** (stage - 1)
        rows, columns = (
            _overlaps(pixels, cells, side / cell)
            for pixels, cells, side in zip(area.shape, grid, self.input_size, strict=True)
        )
        inside = rows @ area.astype(np.float32) @ columns.T
        return inside / inside.sum()

    def extent(self, stage: int) -> tuple[float, float]:
        """Width and height of the grid of a stage, in pixels of the image; at least the size of the image."""
        rows, columns = _entry(self.words_read, stage, "attention to words").shape[:2]
        cell, (height, width) = self.patch_size * 2 ** (stage - 1), self.input_size
        return columns * cell * self.image.width / width, rows * cell * self.image.height / height

    def salient_word(self) -> str:
        """The content word with most of the object's attention, averaged over stages.

        If the mask is empty, uses the attention of the whole image; if there are no content words, all words.
        """
        read = np.mean([self.words_of(stage) for stage in self.words_read], axis=0)
        words = _join_pieces(self.tokens)
        content = [word for word in words if _is_content(word[0])]
        candidates = content or [word for word in words if word[0] not in SPECIAL] or words
        return max(candidates, key=lambda word: read[word[1]].sum())[0]

    def _area(self, region: Region | None) -> NDArray[np.bool_]:
        """The region as (height, width)."""
        if isinstance(region, tuple):
            check_pixel(region, self.image.size)
            area = np.zeros_like(self.mask)
            area[region[1], region[0]] = True
            return area
        if region is None:
            return self.mask if self.mask.any() else np.ones_like(self.mask)
        area = np.asarray(region)
        if area.shape != self.mask.shape or area.dtype != bool:
            raise ValueError(
                f"The region must be the (x, y) of a pixel, or bools of the (height, width) of the image, "
                f"{self.mask.shape}, got {area.dtype} of shape {area.shape}."
            )
        if not area.any():
            raise ValueError("The region is empty; give one with pixels.")
        return area


def _entry(maps: dict[int, Map], stage: int, what: str) -> Map:
    if stage not in maps:
        known = f"there are {', '.join(map(str, maps))}" if maps else "this model has none"
        raise ValueError(f"There is no {what} of stage {stage!r}; {known}.")
    return maps[stage]


def _overlaps(pixels: int, cells: int, used: float) -> Map:
    """The overlap of each pixel with each cell along an axis, (cells, pixels); all pixels fill `used` cells."""
    edges, starts = np.linspace(0, used, pixels + 1), np.arange(cells)[:, None]
    inside = np.minimum(edges[1:], starts + 1) - np.maximum(edges[:-1], starts)
    return np.clip(inside, 0, None).astype(np.float32)


def check_pixel(pixel: Pixel, size: tuple[int, int]) -> None:
    """Raise ValueError unless the (x, y) lies in an image of that (width, height)."""
    whole = len(pixel) == 2 and all(isinstance(value, int | np.integer) for value in pixel)
    if not whole or not (0 <= pixel[0] < size[0] and 0 <= pixel[1] < size[1]):
        raise ValueError(
            f"The pixel must be (x, y) from (0, 0) to ({size[0] - 1}, {size[1] - 1}) in an image of "
            f"{size[0]}x{size[1]} (width x height), got {pixel}."
        )


# ---- words


def tokens_of(processor: CrossVLTProcessor, expression: str) -> list[str]:
    """The tokens of an expression, without padding, truncated if it is too long."""
    inputs = processor(text=[expression], return_tensors="pt")
    return _read_tokens(processor, inputs["input_ids"][0], inputs["attention_mask"][0].bool())


def positions_of(tokens: Sequence[str], word: str) -> list[int]:
    """The positions of a word among the tokens, with all its pieces and occurrences.

    Args:
        tokens: of the expression; pieces inside a word start with "##".
        word: in any letter case; may be several consecutive words.

    Raises:
        ValueError: if it is not among the tokens.
    """
    wanted = _plain(word)
    found: set[int] = set()
    for start in range(len(tokens)):
        joined = ""
        for end in range(start, len(tokens)):
            joined += _plain(tokens[end].removeprefix("##"))
            if not wanted.startswith(joined):
                break
            if joined == wanted and not _is_inside(tokens, start) and not _is_inside(tokens, end + 1):
                found.update(range(start, end + 1))
    if not found or not wanted:
        words = " ".join(word for word, _ in _join_pieces(tokens))
        raise ValueError(f"The word must be one of those in the input ({words}), got {word!r}.")
    return sorted(found)


def _plain(text: str) -> str:
    """Remove case, accents and white space, as uncased tokenizers do."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in letters if unicodedata.category(letter) != "Mn" and not letter.isspace())


def _is_inside(tokens: Sequence[str], position: int) -> bool:
    """Whether a token continues a word."""
    return position < len(tokens) and tokens[position].startswith("##") and len(tokens[position]) > 2


def _join_pieces(tokens: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Join tokens to words, with the positions of their pieces."""
    words: list[tuple[str, list[int]]] = []
    for position, token in enumerate(tokens):
        if words and _is_inside(tokens, position):
            word, positions = words[-1]
            words[-1] = (word + token.removeprefix("##"), [*positions, position])
        else:
            words.append((token, [position]))
    return words


def _is_content(word: str) -> bool:
    return any(map(str.isalnum, word)) and word not in SPECIAL and word.lower() not in FUNCTION_WORDS


def _read_tokens(processor: CrossVLTProcessor, ids: Tensor, read: Tensor) -> list[str]:
    return processor.tokenizer.convert_ids_to_tokens(ids[read].tolist())


# ---- running the model


@contextmanager
def _recording(model: CrossVLTModel, processor: CrossVLTProcessor) -> Iterator[list[dict[str, Any]]]:
    """Record attention and alignment in the forward passes of this thread, in eval mode.

    Uses eager attention, the only one that returns its weights, and restores the model afterwards.

    Yields:
        A list to which each forward pass adds fields of an `Explanation`, for every pair in order.
    """
    found: list[dict[str, Any]] = []
    thread = threading.get_ident()

    def request(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | RECORDED if threading.get_ident() == thread else kwargs

    def keep(_: Any, __: Any, inputs: dict[str, Any], outputs: CrossVLTOutput) -> None:
        if threading.get_ident() == thread:
            found.extend(_read_pairs(model, processor, inputs, outputs))

    with _TURNS:
        config = model.config
        parts = {name: getattr(config, name)._attn_implementation for name in config.sub_configs}
        before = {"": config._attn_implementation, **parts}
        hooks = [
            model.register_forward_pre_hook(request, with_kwargs=True),
            model.register_forward_hook(keep, with_kwargs=True),
        ]
        try:
            model.set_attn_implementation("eager")
            with evaluating(model):
                yield found
        finally:
            model.set_attn_implementation(before)
            for hook in hooks:
                hook.remove()


@torch.no_grad()
def explain(
    model: CrossVLTModel,
    processor: CrossVLTProcessor,
    image: ImageLike,
    expression: str,
    *,
    threshold: float | None = None,
) -> Explanation:
    """Predict the mask of an expression, and keep attention and alignment maps.

    The model runs in eval mode with eager attention, and is restored afterwards. Explanations in several threads take
    turns; other threads that use the model meanwhile also get eager attention, with the same results up to rounding.

    Args:
        model: on any device, of any dtype.
        processor: of the model.
        image: a path, URL, PIL image, array or tensor.
        expression: the expression; parts that are not read (see `CrossVLTProcessor.read_expressions`) give a warning.
        threshold: of the mask, see `CrossVLTProcessor.post_process_masks`.

    Raises:
        OSError: if the image cannot be read.
        ValueError: if image, expression or threshold is invalid.
    """
    if not isinstance(expression, str):
        raise ValueError(f"`expression` must be a text, got {expression!r}.")
    photo = to_rgb(image)
    (read_expression,) = processor.read_expressions([expression])
    if note := reading_note(expression, read_expression):
        warnings.warn(note, stacklevel=3)  # for the caller of the decorated function
    inputs = processor(photo, [expression], return_tensors="pt")
    target_sizes = inputs.pop("original_sizes")
    with _recording(model, processor) as read:
        outputs = model(**inputs.to(model.device), return_dict=True)
    (found,) = processor.post_process_masks(outputs, target_sizes, threshold)
    return Explanation(photo, expression, found["mask"].cpu().numpy(), found["score"], found["box"], **read[0])


def segment_and_explain(
    pipeline: "ReferringImageSegmentationPipeline", image: ImageLike, expressions: Sequence[str], **options: Any
) -> tuple[list[dict[str, Any]], list[Explanation]]:
    """Run the pipeline, and keep attention and alignment maps of the same forward passes: see `explain`.

    Args:
        pipeline: with the model to run.
        image: a path, URL, PIL image, array or tensor.
        expressions: one or several expressions.
        options: of the pipeline.

    Returns:
        The results of the pipeline, and an explanation of each.

    Raises:
        OSError: if the image cannot be read.
        ValueError: if image, expressions or options are invalid.
    """
    photo = to_rgb(image)
    with _recording(pipeline.model, pipeline.processor) as read:
        results = pipeline(photo, text=list(expressions), **options)
    explanations = []
    for result, fields in zip(results, read, strict=True):
        mask, box = np.asarray(result["mask"]) > 0, result["box"]
        found = mask, result["score"], None if box is None else list(box.values())
        explanations.append(Explanation(photo, result["label"], *found, **fields))
    return results, explanations


def _read_pairs(
    model: CrossVLTModel, processor: CrossVLTProcessor, inputs: dict[str, Any], outputs: CrossVLTOutput
) -> Iterator[dict[str, Any]]:
    """Fields of an `Explanation`, for each pair of a forward pass."""
    size, patch_size = tuple(inputs["pixel_values"].shape[-2:]), model.config.vision_config.patch_size
    cosines = _cosines(model, outputs)
    # Fusions at the resolution of the stage alternate with those of merged pixels, if there are any
    fusions = (outputs.fusion_attentions or ())[:: 2 if model.config.pixels_read_words else 1]
    for pair, (ids, mask) in enumerate(zip(inputs["input_ids"].cpu(), inputs["attention_mask"].cpu(), strict=True)):
        words = mask.bool()
        words_read, pixels_read = {}, {}
        for stage, weights in enumerate(fusions, start=1):
            shares = _mean_of_heads(weights[pair])[:, words]  # (N, T)
            words_read[stage] = _normalised(shares).unflatten(0, _grid(size, patch_size, stage)).numpy()
        for stage, weights in enumerate(outputs.cross_attentions or (), start=2):
            shares = _mean_of_heads(weights[pair])[words]  # (T, N)
            pixels_read[stage] = _normalised(shares).unflatten(1, _grid(size, patch_size, stage)).numpy()
        yield {
            "tokens": _read_tokens(processor, ids, words),
            "alignment_maps": {stage: cosine[pair] for stage, cosine in cosines.items()},
            "words_read": words_read,
            "pixels_read": pixels_read,
            "input_size": size,
            "patch_size": patch_size,
        }


def _cosines(model: CrossVLTModel, outputs: CrossVLTOutput) -> dict[int, Map]:
    """The alignment maps without the temperature, (B, H_i, W_i) of each stage."""
    maps = {}
    for stage, scaled in zip(model.config.aligned_stages, outputs.alignment_maps or (), strict=True):
        alignment: Any = model.stages[stage].alignment
        cosine = scaled * alignment.bounded_temperature().detach().to(scaled)
        maps[stage + 1] = cosine[:, 0].float().clamp(-1, 1).cpu().numpy()
    return maps


def _grid(input_size: Sequence[int], patch_size: int, stage: int) -> tuple[int, int]:
    cell = patch_size * 2 ** (stage - 1)
    return -(-input_size[0] // cell), -(-input_size[1] // cell)


def _mean_of_heads(weights: Tensor) -> Tensor:
    """(heads, L, S) -> (L, S) float32."""
    return weights.float().mean(0).cpu()


def _normalised(weights: Tensor) -> Tensor:
    """Normalise to a sum of 1 over the last axis; in half precision it is slightly off."""
    return weights / weights.sum(-1, keepdim=True)
