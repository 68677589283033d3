"""Processor of CrossVLT: images and expressions to tensors, logits back to masks of the original pixels."""

import copy
import math
import struct
import unicodedata
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedTokenizerBase
from transformers.feature_extraction_utils import BatchFeature
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack

from .configuration_crossvlt import AUTO_MAP, copy_code


ImageLike = str | Path | Image.Image | np.ndarray | Tensor
OVERSHOOT = 0.01
MASK_VALUES = ({0, 1}, {0, 255}, {0, 1, 255})


def _full_scale(values: np.ndarray) -> int:
    """What stands for white in numbers of a dtype and range that do not say it themselves."""
    if values.dtype == np.uint16:
        return 65535
    slack = 1 + OVERSHOOT if values.dtype.kind == "f" else 1
    if values.dtype.kind == "f" and values.max() <= slack:
        return 1
    return 255 if values.max() <= 255 * slack else 65535


def _scaled_to_bytes(values: np.ndarray) -> np.ndarray:
    """Numbers of any dtype to uint8; what overshoots the range by a hair, as resizing leaves it, is clipped."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "buif":
        raise ValueError(f"An image has dtype {values.dtype}; give numbers.")
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if not np.isfinite(values).all():
        raise ValueError("An image holds NaN or infinite values; give finite ones.")
    top, low, high = _full_scale(values), values.min(), values.max()
    slack = OVERSHOOT * top if values.dtype.kind == "f" else 0
    if low < -slack or high > top + slack:
        raise ValueError(f"An image holds values from {low} to {high}; give 0 to 1, 0 to 255 or (16 bits) 0 to 65535.")
    return np.round(values.astype(np.float64).clip(0, top) * (255 / top)).astype(np.uint8)


def _to_numpy(array: np.ndarray | Tensor) -> np.ndarray:
    if isinstance(array, Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()  # numpy has no bfloat16
    return array


def _array_to_pil(array: np.ndarray | Tensor) -> Image.Image:
    """An image array, channels first or last or absent; where both could be, a tensor has them first."""
    first, values = isinstance(array, Tensor), _to_numpy(array)
    if values.ndim == 3 and (values.shape[0] if first else values.shape[-1]) not in (1, 3, 4):
        first = not first
    if values.ndim == 3 and first:
        values = np.moveaxis(values, 0, -1)
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] not in (1, 3, 4)) or 0 in values.shape:
        raise ValueError(
            f"An image has shape {tuple(array.shape)}; give (height, width) or 1, 3 or 4 channels first or last."
        )
    values = _scaled_to_bytes(values)
    return Image.fromarray(values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values)


def _upright(image: Image.Image) -> Image.Image:
    """A copy turned as its EXIF orientation says; EXIF data that cannot be read say nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, TypeError, KeyError, OSError, struct.error):
        return image.copy()


def _read(source: str | Path, timeout: float | None) -> str | Path | BytesIO:
    """What Pillow opens: the path, or the bytes behind a URL."""
    if not str(source).startswith(("http://", "https://", "data:")):
        return source
    request = Request(str(source), headers={"User-Agent": "crossvlt_hf"})  # some servers refuse urllib's own
    with urlopen(request, timeout=timeout) as response:
        return BytesIO(response.read())


def _open(source: str | Path, timeout: float | None) -> Image.Image:
    """The upright image in a file or behind a URL."""
    name = str(source) if len(str(source)) < 200 else f"{str(source)[:60]}..."
    try:
        with Image.open(_read(source, timeout)) as image:
            image.load()
            return _upright(image)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no image file {name}; give a path or a URL.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is refused as too large ({error}); raise PIL.Image.MAX_IMAGE_PIXELS.") from error
    except (OSError, HTTPException, SyntaxError, ValueError) as error:
        raise OSError(f"{name} cannot be read as an image: {error}") from error


def to_rgb(image: ImageLike, timeout: float | None = 60.0) -> Image.Image:
    """Turn whatever shows an image into an upright 8-bit RGB image.

    Args:
        image: a path, a URL (http, https, data), a PIL image of any mode, or an array or tensor with the channels
            first, last or absent. Its numbers may be bool, 0 to 1 (floats), 0 to 255, or 0 to 65535 (uint16, or a
            maximum above 255). EXIF orientation is applied; transparency is dropped; of an animation it is the first
            picture.
        timeout: seconds to wait for the server of a URL; None waits for ever.

    Raises:
        OSError: if a file or URL cannot be reached or is not an image.
        ValueError: if an array is no image, or an image is larger than Pillow allows.
    """
    if isinstance(image, str | Path):
        image = _open(image, timeout)
    elif isinstance(image, np.ndarray | Tensor):
        image = _array_to_pil(image)
    elif isinstance(image, Image.Image):
        image = _upright(image)
    else:
        raise ValueError(f"An image is of type {type(image).__name__}; give a path, URL, PIL image, array or tensor.")
    if 0 in image.size:
        raise ValueError(f"An image has size {image.size}; give one of at least one pixel.")
    if image.mode == "F" or image.mode.startswith("I"):
        # Pillow would clip these to 255
        image = Image.fromarray(_scaled_to_bytes(np.asarray(image)))
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())  # with premultiplied alpha Pillow converts to nothing else
    return image.convert("RGB")


def to_label_map(mask: Image.Image | np.ndarray | Tensor) -> np.ndarray:
    """Turn a mask into (height, width) uint8: 1 on the object, 0 off it, 255 ignored.

    Args:
        mask: PIL image, array or tensor of bool, of 0 and 1, or of 0 and 255 (the object); with 0, 1 and 255 in it,
            255 is ignored.

    Raises:
        ValueError: if it is not two-dimensional or holds other values.
    """
    if not isinstance(mask, Image.Image | np.ndarray | Tensor):
        raise ValueError(f"A mask is of type {type(mask).__name__}; give a PIL image, array or tensor.")
    values = np.asarray(mask if isinstance(mask, Image.Image) else _to_numpy(mask))
    if 0 in values.shape:
        raise ValueError(f"A mask has shape {values.shape}; give (height, width).")
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        values = values.squeeze(0 if values.shape[0] == 1 else -1)
    if values.ndim == 3 and (values == values[..., :1]).all():
        values = values[..., 0]
    if values.ndim != 2:
        raise ValueError(f"A mask has shape {values.shape}; give (height, width).")
    found = set(np.unique(values).tolist())
    if not any(found <= allowed for allowed in MASK_VALUES):
        raise ValueError(f"A mask holds the values {sorted(found)[:8]}; give 0 and 1, 0 and 255, or 0, 1 and 255.")
    return (values == 255).astype(np.uint8) if found <= {0, 255} else values.astype(np.uint8)


def resize_label_map(label_map: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A (height, width) uint8 label map in another (height, width), by the nearest pixel."""
    return np.asarray(Image.fromarray(label_map).resize((shape[1], shape[0]), Image.Resampling.NEAREST))


def _as_images(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    if isinstance(images, np.ndarray | Tensor):
        return list(images) if images.ndim == 4 else [images]
    entries: list[Any] = list(images) if isinstance(images, list | tuple) else [images]
    if not entries:
        raise ValueError(f"`images` is {images!r}; give at least one image.")
    if odd := [entry for entry in entries if isinstance(entry, list | tuple) and len(entry) != 1]:
        raise ValueError(
            f"`images` holds a list of {len(odd[0])} images; give one image for each list of expressions."
        )
    return [entry[0] if isinstance(entry, list | tuple) else entry for entry in entries]


def _as_expressions(text: Any) -> list[str] | list[list[str]]:
    """Check the nesting of expressions: one, a list, or a list of lists."""
    entries = [text] if isinstance(text, str) else list(text) if isinstance(text, list | tuple) else None
    if not entries:
        raise ValueError(f"`text` is {text!r}; give an expression or a list of expressions.")
    nested = [isinstance(entry, list | tuple) for entry in entries]
    if any(nested) and not all(nested):
        raise ValueError("`text` mixes expressions and lists of expressions; give one kind.")
    for expression in _flat(entries):
        if not isinstance(expression, str) or not expression.strip():
            raise ValueError(f"An expression is {expression!r}; say which object is meant.")
        if any("\ud800" <= character <= "\udfff" for character in expression):
            raise ValueError(f"The expression {expression!r} holds half of a surrogate pair; give valid Unicode.")
    return [list(entry) for entry in entries] if any(nested) else entries


def _flat(entries: list) -> list:
    return [item for entry in entries for item in (entry if isinstance(entry, list | tuple) else [entry])]


class ReadExpression(NamedTuple):
    """What a model reads of an expression; see [`CrossVLTProcessor.read_expressions`].

    Args:
        text_read: the part of the expression within the limit of tokens, as it was written.
        unknown_words: words of the whole expression that the vocabulary does not know, each once, in their order.
        cut: whether the expression is longer than the limit.
    """

    text_read: str
    unknown_words: tuple[str, ...]
    cut: bool


def _is_of_a_word(character: str) -> bool:
    """Whether it is a letter, a digit or an emoji, no punctuation and no space."""
    return unicodedata.category(character)[0] in "LN" or unicodedata.category(character) == "So"


def word_spans(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each word: letters, digits and emoji together, with their accents and joiners."""
    start = None
    for position, character in enumerate(text):
        inside = _is_of_a_word(character)
        if start is not None and not inside and unicodedata.category(character) not in ("Mn", "Mc", "Me", "Cf"):
            yield start, position
            start = None
        elif start is None and inside:
            start = position
    if start is not None:
        yield start, len(text)


def _not_covered(text: str, known: list[tuple[int, int]]) -> tuple[str, ...]:
    """The words of a text of which a character lies in no known token's (start, end)."""
    covered = {position for start, end in known for position in range(start, end)}
    words = [
        text[start:end]
        for start, end in word_spans(text)
        if any(position not in covered and _is_of_a_word(text[position]) for position in range(start, end))
    ]
    return tuple(dict.fromkeys(words))


def pair_expressions(num_images: int, text: str | Sequence) -> list[list[str]]:
    """The expressions of each image."""
    expressions = _as_expressions(text)
    if isinstance(expressions[0], list):
        groups = expressions
    elif num_images == 1:
        groups = [expressions]
    elif isinstance(text, str):
        groups = [[text]] * num_images
    else:
        groups = [[expression] for expression in expressions]
    if len(groups) != num_images:
        raise ValueError(
            f"There are {num_images} images and {len(groups)} (lists of) expressions; give one or one list for each."
        )
    if [] in groups:
        raise ValueError(f"Image {groups.index([])} has no expressions; give each at least one.")
    return groups


def _as_sizes(target_sizes: Any) -> list[tuple[int, ...]]:
    sizes = target_sizes.tolist() if isinstance(target_sizes, np.ndarray | Tensor) else list(target_sizes)
    if any(not isinstance(size, Sequence | np.ndarray | Tensor) or len(size) != 2 or min(size) < 1 for size in sizes):
        raise ValueError(f"The target sizes are {sizes}; give (height, width) of at least 1 pixel for each.")
    return [(int(height), int(width)) for height, width in sizes]


def _as_masks(masks: Any, counts: list[int]) -> list:
    """One mask for each expression, of images that have so many expressions each."""
    if not isinstance(masks, list | tuple):
        shape = tuple(getattr(masks, "shape", (0, 0)))
        batch = len(shape) == 4 or (len(shape) == 3 and (shape[0] == sum(counts) or shape[-1] not in (1, 3, 4)))
        masks = list(masks) if batch else [masks]
    nested = any(isinstance(entry, list | tuple) for entry in masks)
    if nested and [len(entry) if isinstance(entry, list | tuple) else 1 for entry in masks] != counts:
        raise ValueError("`segmentation_maps` is not nested as `text`; give each image as many masks as expressions.")
    flat = _flat(list(masks))
    if len(flat) != sum(counts):
        raise ValueError(f"There are {sum(counts)} expressions and {len(flat)} masks; give one mask for each.")
    return flat


def check_threshold(threshold: float | None) -> None:
    """Raise ValueError unless it is None or a probability above 0 and below 1."""
    if threshold is not None and not (isinstance(threshold, int | float) and 0 < threshold < 1):
        raise ValueError(f"`threshold` is {threshold}; give a probability above 0 and below 1.")


def mask_box(mask: Tensor) -> list[int] | None:
    """[x_min, y_min, x_max, y_max] of a (H, W) bool mask, in pixels, the maxima exclusive; None if it is empty."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    if len(rows) == 0:
        return None
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


class CrossVLTProcessor(ProcessorMixin):
    """Image processor and BERT tokenizer of CrossVLT in one.

    Args:
        image_processor: `SegformerImageProcessor`, which squashes to a square, 480x480 in the paper.
        tokenizer: the tokenizer of the language encoder.

    An expression has at most 21 tokens, [CLS] and [SEP] included, as in the paper, or `max_length` where the tokenizer
    has one of its own. Longer ones are cut (and keep their [SEP], which the authors' code cuts off), shorter ones are
    padded.

    Example:
    ```python
    >>> inputs = processor(image, ["the white cup", "the spoon"], return_tensors="pt")
    >>> outputs = model(**inputs)
    >>> results = processor.post_process_masks(outputs, target_sizes=inputs["original_sizes"])
    >>> results[0]["mask"], results[0]["score"], results[0]["box"]
    ```
    """

    text_kwargs = {"padding": "max_length", "truncation": True, "max_length": 21}

    def __init__(self, image_processor: Any, tokenizer: Any, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_tokenizer(
        cls, tokenizer: PreTrainedTokenizerBase, image_size: int | tuple[int, int] = 480, max_length: int = 21
    ) -> "CrossVLTProcessor":
        """A processor with the paper's image processing.

        Args:
            tokenizer: the tokenizer of the language encoder.
            image_size: the side, or height and width, to which images are squashed.
            max_length: the most tokens of an expression; it is saved with the processor's copy of the tokenizer.

        Raises:
            ValueError: if `max_length` leaves no room for a word, or the size is not positive.
        """
        if max_length < 3:
            raise ValueError(f"`max_length` is {max_length}; give at least 3, for [CLS], a word and [SEP].")
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
            raise ValueError(f"`image_size` is {image_size!r}; give the side, or height and width, in pixels.")
        tokenizer = copy.deepcopy(tokenizer)
        # Where ProcessorMixin looks for it, and what the tokenizer saves
        tokenizer.init_kwargs["max_length"] = max_length
        return cls(SegformerImageProcessorPil(size={"height": height, "width": width}), tokenizer)

    @classmethod
    def _get_arguments_from_pretrained(cls, name: str, processor_dict: dict | None = None, **kwargs: Any) -> list:
        """Load the image processor's Pillow backend also where torchvision is installed, whose pixels differ slightly.

        The paper's protocol resizes with Pillow, and a checkpoint should give one mask everywhere. `backend=` says
        otherwise.
        """
        backend = kwargs.pop("backend", "pil")
        image_processor = AutoImageProcessor.from_pretrained(name, backend=backend, **kwargs)
        return [image_processor, AutoTokenizer.from_pretrained(name, **kwargs)]

    def to_dict(self) -> dict[str, Any]:
        """What is saved, and where the code is."""
        return {**super().to_dict(), "auto_map": {"AutoProcessor": AUTO_MAP["AutoProcessor"]}}

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Save the processor and, so that the folder is loadable without this package, its code.

        Args:
            save_directory: folder; it is made where there is none.
            push_to_hub: whether to upload what was saved.
            kwargs: see [`ProcessorMixin.save_pretrained`].
        """
        copy_code(save_directory)
        return super().save_pretrained(str(save_directory), push_to_hub=push_to_hub, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """What a call returns, labels aside, and `expressions_per_image` where an image has several."""
        return [*super().model_input_names, "original_sizes"]

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike] | None = None,
        text: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        segmentation_maps: Any = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        """Prepare B pairs of an image and an expression.

        Args:
            images: an image (see `to_rgb` for what may be one), a list of them, or a batch (B, C, H, W).
            text: for one image, an expression or a list of them; for a list of images, a list with an expression, or a
                list of expressions, for each (or one expression for all).
            segmentation_maps: a mask (see `to_label_map`) for each expression, nested as `text` or in one flat list,
                each of its image's size.
            kwargs: of the image processor and tokenizer, such as `size`, `max_length`, `padding`, `return_tensors`.

        Returns:
            pixel_values (images, 3, 480, 480) float32, each image once; input_ids, token_type_ids and attention_mask
            (B, 21) int64; original_sizes (B, 2) int64: height and width of the (upright) image of each expression;
            labels (B, 480, 480) int64: 1 on the object, 0 off it, 255 ignored; where an image has several expressions,
            expressions_per_image (images,) int64: how many, which the model needs to know.

        Raises:
            OSError: if an image file is missing or is not an image.
            ValueError: if numbers of images, expressions and masks differ, or one of them is not what it should be.
        """
        if images is None and text is None:
            raise ValueError("You need to provide at least one input: give `images`, `text` or both.")
        merged = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        if merged["text_kwargs"].get("padding_side", self.tokenizer.padding_side) != "right":
            raise ValueError("`padding_side` is 'left', but [CLS] has to come first; give 'right'.")
        data: dict[str, Any] = {}
        if images is None and segmentation_maps is not None:
            raise ValueError("There are `segmentation_maps` but no `images`; give both.")
        if images is None:
            expressions = _flat(_as_expressions(text))
            if not expressions:
                raise ValueError(f"`text` is {text!r}, without an expression; give at least one.")
            data |= self.tokenizer(text if isinstance(text, str) else expressions, **merged["text_kwargs"])
        elif text is None:
            counts = [1] * len(_as_images(images))
            data |= self._prepare_images(images, counts, segmentation_maps, merged["images_kwargs"])
        else:
            groups = pair_expressions(len(_as_images(images)), text)
            data |= self.tokenizer([entry for group in groups for entry in group], **merged["text_kwargs"])
            counts = [len(group) for group in groups]
            data |= self._prepare_images(images, counts, segmentation_maps, merged["images_kwargs"])
        return BatchFeature(data, tensor_type=merged["text_kwargs"].get("return_tensors"))

    def read_expressions(self, texts: Sequence[str]) -> list[ReadExpression]:
        """Find out what a model reads of expressions: where they are cut, and which words are unknown.

        Args:
            texts: expressions.

        Returns:
            One for each, in their order. A word is unknown if a part of it becomes the tokenizer's unknown token, or
            no token at all; what becomes bytes, as in some vocabularies, is not. Of a word at the limit `text_read`
            has the part that is read, or nothing of it where a tokenizer written in Python does not tell its position.

        Raises:
            ValueError: if one of them is not an expression.
        """
        expressions = _flat(_as_expressions(texts)) if len(texts) else []
        if not expressions:
            return []
        lengths = [sum(mask) for mask in self(text=expressions, return_attention_mask=True)["attention_mask"]]  # type: ignore[call-arg]
        room = [length - self.tokenizer.num_special_tokens_to_add() for length in lengths]
        read = self._read_by_position if self.tokenizer.is_fast else self._read_by_word
        return [read(expression, count) for expression, count in zip(expressions, room, strict=True)]

    def _read_by_position(self, text: str, count: int) -> ReadExpression:
        """Read a text, of which `count` tokens are kept, with a tokenizer that tells their positions."""
        whole = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spans, ids = whole["offset_mapping"], whole["input_ids"]
        unknown = self.tokenizer.unk_token_id
        words = _not_covered(text, [span for span, token in zip(spans, ids, strict=True) if token != unknown])
        if len(spans) <= count:
            return ReadExpression(text, words, cut=False)
        from_the_left = self.tokenizer.truncation_side == "left"
        kept = spans[len(spans) - count :] if from_the_left else spans[:count]
        text_read = text[min((start for start, _ in kept), default=0) : max((end for _, end in kept), default=0)]
        return ReadExpression(text_read.strip(), words, cut=True)

    def _read_by_word(self, text: str, count: int) -> ReadExpression:
        """Read a text, of which `count` tokens are kept, with a tokenizer that does not tell their positions."""

        def tokens(part: str) -> list[int]:
            return self.tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]

        found = [text[start:end] for start, end in word_spans(text)]
        unknown = [word for word in found if not tokens(word) or self.tokenizer.unk_token_id in tokens(word)]
        cut = len(tokens(text)) > count
        words = text.split() if cut else []
        from_the_left = self.tokenizer.truncation_side == "left"
        while words and len(tokens(" ".join(words))) > count:
            words.pop(0 if from_the_left else -1)
        return ReadExpression(" ".join(words) if cut else text, tuple(dict.fromkeys(unknown)), cut)

    def _prepare_images(
        self, images: Any, counts: list[int], masks: Any, images_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        upright = [to_rgb(image) for image in _as_images(images)]
        images_kwargs = {name: value for name, value in images_kwargs.items() if name != "return_tensors"}
        processed = self.image_processor(upright, **images_kwargs)["pixel_values"]
        owner = [index for index, count in enumerate(counts) for _ in range(count)]
        sizes = [(upright[index].height, upright[index].width) for index in owner]
        data: dict[str, Any] = {"pixel_values": processed, "original_sizes": sizes}
        if len(owner) > len(counts):
            data["expressions_per_image"] = counts
        if masks is not None:
            shapes = [processed[index].shape[-2:] for index in owner]
            pairs = zip(_as_masks(masks, counts), sizes, shapes, strict=True)
            data["labels"] = [self._prepare_mask(mask, size, shape) for mask, size, shape in pairs]
        return data

    @staticmethod
    def _prepare_mask(mask: Any, size: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
        label_map = to_label_map(mask)
        if label_map.shape != size:
            raise ValueError(f"A mask has size {label_map.shape}, but its image {size} (height, width).")
        return resize_label_map(label_map, shape).astype(np.int64)

    def post_process_masks(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        threshold: float | None = None,
    ) -> list[dict[str, Any]]:
        """Bring the logits back to the original pixels.

        Args:
            outputs: output of the model, with `logits` (B, 2, H, W), or these alone.
            target_sizes: height and width of each result, such as `inputs["original_sizes"]`; None keeps (H, W).
            threshold: the least probability of the object that a pixel of the mask exceeds; None takes the larger of
                the two logits, which is a threshold of 0.5 and what the paper does.

        Returns:
            For each of the B pairs: "mask", (height, width) bool; "score", the mean probability of the object over the
            mask's pixels, 0.0 for an empty mask; "box", [x_min, y_min, x_max, y_max] in pixels, the maxima exclusive,
            None for an empty mask.

        Raises:
            ValueError: if the number of sizes is not B, a size is not positive, the threshold not in (0, 1), or the
                logits are NaN.
        """
        if isinstance(outputs, tuple):
            raise ValueError("`outputs` is a tuple; call the model without `return_dict=False`.")
        if not isinstance(outputs, Tensor):
            outputs = outputs["logits"] if isinstance(outputs, dict) else outputs.logits
        logits = outputs
        if logits.ndim != 4 or logits.shape[1] != 2 or 0 in logits.shape[2:] or not logits.is_floating_point():
            raise ValueError(
                f"The logits have shape {tuple(logits.shape)} and dtype {logits.dtype}; give floats (B, 2, H, W)."
            )
        if logits.isnan().any():
            raise ValueError("The logits hold NaN: the weights or the image are broken, and there is no mask in them.")
        sizes = [tuple(logits.shape[-2:])] * len(logits) if target_sizes is None else _as_sizes(target_sizes)
        if len(sizes) != len(logits):
            raise ValueError(f"There are {len(logits)} results and {len(sizes)} target sizes; give one size for each.")
        check_threshold(threshold)
        margin_threshold = 0.0 if threshold is None else math.log(threshold / (1 - threshold))
        # One map is resized instead of two: the object's probability is a sigmoid of the logits' difference.
        margins = logits[:, 1].float() - logits[:, 0].float()
        return [self._result(margin, size, margin_threshold) for margin, size in zip(margins, sizes, strict=True)]

    @staticmethod
    def _result(margin: Tensor, size: tuple[int, ...], threshold: float) -> dict[str, Any]:
        if margin.shape != size:
            margin = F.interpolate(margin[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        mask = margin > threshold
        score = torch.sigmoid(margin[mask]).mean().item() if mask.any() else 0.0
        return {"mask": mask, "score": score, "box": mask_box(mask)}


__all__ = ["CrossVLTProcessor", "ReadExpression"]
