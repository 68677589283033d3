"""Processor of CrossVLT: images and expressions to tensors, and logits to masks of the original size."""

import copy
import math
import operator
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from numbers import Real
from pathlib import Path
from threading import RLock
from typing import Any, Literal, NamedTuple, TypeAlias
from urllib.request import Request, urlopen

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from PIL import Image, ImageOps
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedTokenizerBase
from transformers.feature_extraction_utils import BatchFeature
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack
from transformers.utils import TensorType

from .configuration_crossvlt import AUTO_MAP, copy_code, find_named, take_hub_options, upload_folder


ImageLike: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor
IgnoreIndex = int | Literal["auto"] | None
Meaning = Literal["ignored", "object", "absent"] | None

OVERSHOOT = 0.01  # of floats beyond their range, from rounding and resizing
LEAST_OF_16_BITS = 4096  # an image of 0 to 65535 below this is nearly black (at most 15 of 255): one of 8 to 12 bits
IGNORED = 255
OBJECT_VALUES = (1, 255, 65535)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
BERT_POSITIONS = 512
PRESENCE_THRESHOLD = 0.5  # default for models with a presence head
IMAGE_LAYOUTS = ("channels_first", "channels_last", "none")
# The kinds of arguments of Transformers that this processor has
MODALITIES = ("text_kwargs", "images_kwargs")
REFUSED_TEXT_KWARGS = {
    "is_split_into_words": "an expression is a text",
    "return_overflowing_tokens": "an expression has one row of tokens",
    "text_pair": "an expression is one text",
    "text_target": "an expression is one text",
    "text_pair_target": "an expression is one text",
}
# Arguments for images that would have no effect or displace the masks
REFUSED_IMAGE_KWARGS = {
    "do_center_crop": "the model takes the whole image, resized",
    "crop_size": "the model takes the whole image, resized",
    "do_pad": "the model takes the whole image, resized",
    "pad_size": "the model takes the whole image, resized",
    "do_reduce_labels": "masks have 1 for the object and 0 for background",
    "image_seq_length": "there are no image tokens",
}
# Padding and truncation are a state of fast tokenizers, which other threads must not change during a call
_TOKENIZING = RLock()
_HALF_SURROGATE = re.compile("[\ud800-\udfff]")


def counted(number: int, noun: str) -> str:
    """A number with its noun, with s in the plural: "1 mask", "2 masks"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


class ImageTooLargeError(ValueError):
    """An image has more pixels than `PIL.Image.MAX_IMAGE_PIXELS` allows."""


class ImageDepthError(ValueError):
    """An image of 16 bits has values of 8 to 12 bits, and would be nearly black."""


class NothingReadError(ValueError):
    """An expression has no token between [CLS] and [SEP], so all such expressions would give the same mask."""

    def __init__(self, expression: str, where: str = "An expression") -> None:
        super().__init__(f"{where} must describe an object, got {expression!r}, which has no tokens.")
        self.expression = expression


class LossyMaskError(ValueError):
    """A mask has a file format that changes values."""


def similar_path(path: str) -> str | None:
    """An existing path that only differs in letter case, Unicode normalisation or slashes; None if there is none."""
    asked = Path(path.replace("\\", "/"))
    found = Path(asked.anchor)
    for part in asked.parts[len(found.parts) :]:
        try:
            names = [name for name in sorted(os.listdir(found)) if _plain_name(name) == _plain_name(part)]
        except OSError:
            return None
        if not names or part == os.pardir:
            return None
        found /= part if part in names else names[0]
    return str(found) if found.parts and found != Path(path) else None


def _plain_name(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


@contextmanager
def opening(name: str, kind: str = "image") -> Iterator[None]:
    """Re-raise the errors of Pillow with the file name; its plugins raise any exception on corrupt files.

    Args:
        name: of the file, for the message.
        kind: "image" or "mask", for the message.

    Raises:
        FileNotFoundError: if there is no such file; suggests a similar path (see `similar_path`).
        OSError: if the file cannot be read.
        ImageTooLargeError: if the image is larger than Pillow allows.
        ImageDepthError: see `load_pixels`.
    """
    try:
        yield
    except FileNotFoundError as error:
        if os.path.islink(name):
            raise FileNotFoundError(f"{name} is a link to {os.readlink(name)}, which is not there.") from error
        similar = similar_path(name)
        hint = f"did you mean {similar}?" if similar else "check its path."
        raise FileNotFoundError(f"There is no {kind} file {name}; {hint}") from error
    except IsADirectoryError as error:
        raise IsADirectoryError(f"{name} is a folder; the {kind} must be a file.") from error
    except Image.DecompressionBombError as error:
        message = f"{name} is too large ({error}); raise PIL.Image.MAX_IMAGE_PIXELS."
        raise ImageTooLargeError(message) from error
    except ImageDepthError as error:
        raise ImageDepthError(f"{name}: {error}") from error
    except Exception as error:
        article = "an" if kind == "image" else "a"
        raise OSError(f"{name} cannot be read as {article} {kind}: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """The message of an error, in which Pillow names bytes by their address in memory; its type if it has none."""
    return re.sub(r"<_io\.BytesIO object at \w+>", "the data", str(error)) or type(error).__name__


def _lower_bytes(image: Image.Image) -> tuple[Image.Image, slice] | None:
    """Open the lower 8 bits of an image with 16 bits per channel, before it is loaded.

    Returns:
        An image, not loaded, and its channels of colours; None for an image of another depth.
    """
    opened: Any = image
    args = opened.tile[0].args if getattr(image, "tile", None) else ""
    raw, *rest = args if isinstance(args, tuple) else (args,)
    kind, depth, order = str(raw).partition(";16")
    if kind not in ("RGB", "RGBA", "LA") or not depth:
        return None
    # N is the native byte order
    swapped = "L" if order == "B" or (order == "N" and sys.byteorder == "big") else "B"
    # Pillow has no other order for grey and alpha; of their four bytes, the second is the lower one of grey
    other = "RGBA" if kind == "LA" else f"{kind};16{swapped}"
    place = opened.fp.tell()
    opened.fp.seek(0)
    lower: Any = Image.open(BytesIO(opened.fp.read()))
    opened.fp.seek(place)
    lower.tile = [tile._replace(args=(other, *rest) if rest else other) for tile in lower.tile]
    return lower, slice(1, 2) if kind == "LA" else slice(0, 3)


def load_pixels(image: Image.Image) -> None:
    """Load the pixels of an opened image.

    Pillow only keeps the upper 8 of 16 bits per channel, so values of 0 to 255 would be black.

    Raises:
        ImageDepthError: if no value is above that of 12 bits.
    """
    lower = _lower_bytes(image)
    image.load()
    if lower is None:
        return
    highest = _highest(image, slice(0, 3))
    if highest < LEAST_OF_16_BITS >> 8 and (highest or _highest(*lower)):
        raise ImageDepthError(
            "An image of 16 bits per channel must have a value of at least 4096 of 65535, or it is nearly black. It "
            "looks like an image of 8, 10 or 12 bits: save it in 8 bits, or scale it to 0 to 65535."
        )
    if "A" in image.mode and _highest(image, slice(-1, None)) == 0 < _highest(lower[0], slice(3, 4)):
        raise ImageDepthError(
            "An image of 16 bits per channel must not have an alpha channel of 8 bits, which makes it transparent; "
            "scale it to 0 to 65535, or leave it out."
        )


def _highest(image: Any, channels: slice) -> int:
    return max(high for _, high in image.getextrema()[channels])


def _upright(image: Image.Image) -> Image.Image:
    """Copy an image with its EXIF orientation applied, if its EXIF data can be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # of any kind, for corrupt EXIF data
        return image.copy()


def _read(source: str | Path, timeout: float | None) -> str | Path | BytesIO:
    """The path, or the bytes of a URL, for Pillow."""
    if not str(source).startswith(("http://", "https://", "data:")):
        return source
    request = Request(str(source), headers={"User-Agent": "crossvlt_hf"})  # some servers refuse urllib's own
    with urlopen(request, timeout=timeout) as response:
        return BytesIO(response.read())


def _open(source: str | Path, timeout: float | None, upright: bool) -> Image.Image:
    """Load the image of a file or URL."""
    name = str(source) if len(str(source)) < 200 else f"{str(source)[:60]}..."
    with opening(name), Image.open(_read(source, timeout)) as image:
        load_pixels(image)
        return _upright(image) if upright else image.copy()


def _to_numpy(array: np.ndarray | Tensor) -> np.ndarray:
    if isinstance(array, Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()  # numpy has no bfloat16
    return array


def _channels_last(array: np.ndarray | Tensor, layout: str | None) -> np.ndarray:
    """Convert to (height, width) or (height, width, channels); ambiguous tensors have the channels first.

    Args:
        array: with the channels first, last or absent.
        layout: "channels_first", "channels_last" or "none", as `input_data_format` of Transformers.
    """
    values = _to_numpy(array)
    first = isinstance(array, Tensor) if layout is None else layout == "channels_first"
    if layout is None and values.ndim == 3 and (values.shape[0] if first else values.shape[-1]) not in (1, 3, 4):
        first = not first
    if values.ndim == 3 and first:
        values = np.moveaxis(values, 0, -1)
    given = "" if layout is None or (values.ndim == 2) == (layout == "none") else f" with `input_data_format` {layout}"
    if given or values.ndim not in (2, 3) or values.shape[2:] not in ((), (1,), (3,), (4,)) or 0 in values.shape:
        raise ValueError(
            "An image must have shape (height, width), or 1, 3 or 4 channels first or last, got shape "
            f"{tuple(array.shape)}{given}."
        )
    return values[..., 0] if values.shape[2:] == (1,) else values


def _check_numbers(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "buif":
        raise ValueError(f"An image must have numbers, got dtype {values.dtype}.")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("An image must have finite values, got NaN or infinite ones.")
    return values


def _decode(image: Any, timeout: float | None, layout: str | None, upright: bool) -> Image.Image | np.ndarray:
    """Decode to a PIL image of 8 bits, or to a (height, width[, channels]) array of unknown range."""
    if isinstance(image, np.ndarray | Tensor):
        return _check_numbers(_channels_last(image, layout))
    if isinstance(image, str | Path):
        image = _open(image, timeout, upright)
    elif isinstance(image, Image.Image):
        with opening(str(getattr(image, "filename", "")) or "The image"):
            load_pixels(image)
        image = _upright(image) if upright else image
    else:
        raise ValueError(f"An image must be a path, URL, PIL image, array or tensor, got {type(image).__name__}.")
    if 0 in image.size:
        raise ValueError(f"An image must have at least one pixel, got size {image.size}.")
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = _check_numbers(np.asarray(image))  # Pillow would clip these to 255
    hidden = image.info.get("transparency")
    if not isinstance(hidden, int):
        return values
    return np.stack([values] * 3 + [np.where(values == hidden, 0, 65535).astype(values.dtype)], axis=-1)


def _looks_like(low: float, high: float) -> str:
    """A hint for floats that are neither 0 to 1, nor 0 to 255, nor 0 to 65535."""
    if -0.5 < low < 0 and 0.5 < high < 1.5:
        return " The range is slightly more than 0 to 1, as after resizing: clip it."
    if -1.01 <= low < -0.5 and 0 < high <= 1.01:
        return " This looks like an image scaled to -1 to 1: use (x + 1) / 2."
    if high < 4 and (low < 0 or high > 1.5):
        return (
            " This looks like a normalised image: undo it (x * image_std + image_mean), or pass it to the model as "
            "`pixel_values`."
        )
    return " Clip or rescale it."


def _is_of_0_to_1(image: np.ndarray) -> bool:
    """Whether floats are from 0 to 1, not a black image of 0 to 255: most values are not whole numbers."""
    seen = image[image != 0]
    return image.max() <= 1 + OVERSHOOT and seen.size > 0 and bool((seen % 1 != 0).mean() > 0.5)


def _check_that_they_are_of_one_range(images: Sequence[np.ndarray]) -> None:
    """Raise ValueError if some images are from 0 to 1 and others from 0 to 255."""
    if images[0].dtype.kind != "f" or max(float(image.max()) for image in images) <= 1 + OVERSHOOT:
        return
    small = [number for number, image in enumerate(images, start=1) if _is_of_0_to_1(image)]
    if small:
        raise ValueError(
            f"The images of a call must have the same range, but image {small[0]} of {len(images)} with floats is "
            "from 0 to 1, and others have larger values; use 0 to 1 or 0 to 255 for all."
        )


def _find_white(images: Sequence[np.ndarray]) -> int:
    """The value of white in all images of floats, or of integers: 1, 255 or 65535.

    Floats between these ranges, as of a normalised image, would give a black image.

    Raises:
        ValueError: if no range fits.
    """
    floats = images[0].dtype.kind == "f"
    low = min(float(image.min()) for image in images)
    # not the alpha channel of integers, which may come from the transparent value of Pillow
    high = max(float((image if floats or image.max() > 65535 else _colours(image)).max()) for image in images)
    _check_that_they_are_of_one_range(images)
    slack = OVERSHOOT if floats else 0
    if low >= -slack:
        if floats and high <= 1 + slack:
            return 1
        # a photo of 0 to 255 has values of 4 or more, or whole numbers
        if high <= 255 + slack and (not floats or high >= 4 or all((image % 1 == 0).all() for image in images)):
            return 255
        if LEAST_OF_16_BITS <= high <= 65535:
            return 65535
    shown = (low, high) if floats else (int(low), int(high))
    raise ValueError(
        f"An image must be from 0 to 1, 0 to 255 or (16 bits) 0 to 65535, got values from {shown[0]} to {shown[1]}"
        + (f" in a call of {len(images)} images" if len(images) > 1 else "")
        + (f".{_looks_like(low, high)}" if floats else ". Clip or rescale it.")
    )


def _check_that_16_bits_are_used(images: Sequence[np.ndarray]) -> None:
    """Raise ImageDepthError if all uint16 images have values of 8 bits, unless they are black."""
    high = max(int(_colours(image).max()) for image in images)
    if 0 < high < LEAST_OF_16_BITS:
        bits = next(bits for bits in (8, 10, 12) if high < 2**bits or bits == 12)
        raise ImageDepthError(
            f"An image of 16 bits must not be nearly black, got no value above {high} of 65535. It looks like an "
            f"image of {bits} bits: use `image / {2**bits - 1}`, or `image / 65535` if it is so dark."
        )


def _check_alpha(image: np.ndarray, white: int) -> None:
    """Raise ValueError if the alpha channel has another range than the colours, which would hide or darken them."""
    if image.shape[2:] != (4,):
        return
    colours, highest = image[..., :3], float(image[..., 3].max())
    if white == 1:
        return
    smaller = {255: 1, 65535: 255}[white] + OVERSHOOT  # white of the next smaller range
    darkened = _is_of_0_to_1(colours) or (white == 65535 and 0 < colours.max() <= smaller < highest)
    if (darkened and image.dtype.kind == "f") or 0 < highest <= smaller < colours.max():
        raise ValueError(
            f"The alpha channel of an image must have the range of its colours, got colours from {colours.min():g} to "
            f"{colours.max():g} and alpha from {image[..., 3].min():g} to {highest:g}; rescale it, or leave it out."
        )


def _colours(values: np.ndarray) -> np.ndarray:
    """The channels of (height, width[, channels]) without alpha."""
    return values[..., :3] if values.shape[2:] == (4,) else values


def _whites(decoded: Sequence[Image.Image | np.ndarray]) -> list[int]:
    """The value of white in each image of a call, by its dtype or inferred from all images of that kind."""
    known = {"?": 1, "B": 255, "H": 65535}
    kinds = ["B" if isinstance(image, Image.Image) else image.dtype.char for image in decoded]
    kinds = [kind if kind in known else "f" if kind in "efdg" else "i" for kind in kinds]
    of_kind: dict[str, list[Any]] = {}
    for own, image in zip(kinds, decoded, strict=True):
        of_kind.setdefault(own, []).append(image)
    for kind in of_kind.keys() - known.keys():
        known[kind] = _find_white(of_kind[kind])
    if "H" in of_kind:
        _check_that_16_bits_are_used(of_kind["H"])
    for kind, image in zip(kinds, decoded, strict=True):
        if not isinstance(image, Image.Image):
            _check_alpha(image, known[kind])
    return [known[kind] for kind in kinds]


def _on_white(image: Image.Image) -> Image.Image:
    """Convert an 8-bit image of any mode to RGB, on white where it is transparent."""
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())  # the only conversion of Pillow for premultiplied alpha
    if not image.has_transparency_data:
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")


def _paint(decoded: Image.Image | np.ndarray, white: int) -> Image.Image:
    """Convert a result of `_decode` to 8-bit RGB."""
    if isinstance(decoded, Image.Image):
        return _on_white(decoded)
    if decoded.dtype != np.uint8:
        decoded = np.round(decoded.astype(np.float64).clip(0, white) * (255 / white)).astype(np.uint8)
    return _on_white(Image.fromarray(decoded))


def to_rgb(image: ImageLike, timeout: float | None = 60.0, *, upright: bool = True) -> Image.Image:
    """Convert an image in any form to 8-bit RGB, with its EXIF orientation applied.

    Args:
        image: a path, a URL (http, https, data), a PIL image of any mode, or an array or tensor with the channels
            first, last or absent. Numbers may be bool, 0 to 1 (floats), 0 to 255, or 0 to 65535 with a maximum of at
            least 4096, unless it is uint16 and black. An alpha channel has the range of the colours. Transparent
            pixels become white; animations give their first image.
        timeout: seconds to wait for the server of a URL; None for no limit.
        upright: whether to apply the EXIF orientation.

    Raises:
        OSError: if a file or URL cannot be read or is not an image.
        ValueError: if an array is not an image (such as normalised values), or an image is larger than Pillow allows.
        ImageDepthError: if an image of 16 bits has values of 8 to 12 bits, and would be nearly black.
    """
    return _to_rgb_and_white([image], timeout=timeout, upright=upright)[0][0]


def to_rgb_together(images: Sequence[ImageLike], timeout: float | None = 60.0) -> list[Image.Image]:
    """Convert images that belong together like `to_rgb`, and infer the range of their numbers from all of them.

    A dark image of 0 to 255 may have no value above 1, and alone would be a bright one of 0 to 1. One of 16 bits may
    have no value above 255.
    """
    return [image for image, _ in _to_rgb_and_white(images, timeout=timeout)]


def _to_rgb_and_white(
    images: Sequence[ImageLike], layout: str | None = None, timeout: float | None = 60.0, upright: bool = True
) -> list[tuple[Image.Image, int]]:
    decoded = [_decode(image, timeout, layout, upright) for image in images]
    whites = _whites(decoded)
    return [(_paint(*pair), pair[1]) for pair in zip(decoded, whites, strict=True)]


# ---- Masks


def _is_a_mask(values: np.ndarray) -> bool:
    """Whether a (height, width, channels) array only has the values of masks."""
    return bool((values == values[..., :1]).all() and np.isin(values, (0, *OBJECT_VALUES)).all())


def _alpha_is_the_mask(colours: np.ndarray, shown: np.ndarray) -> bool:
    """Whether the mask is in the alpha channel: the colours are not a mask, but one visible colour."""
    if (colours == colours[:1, :1]).all():
        return True
    visible, hidden = colours[shown], colours[~shown]
    if _is_a_mask(colours) or not len(hidden) or (visible != visible[0]).any() or not visible[0].any():
        return False
    two = hidden.any() and not (hidden != hidden[0]).any() and not _is_a_mask(visible[None])
    return not two and not (hidden == visible[0]).all(-1).any()


def _without_alpha(values: np.ndarray) -> np.ndarray:
    """Select the channels of a mask: the colours, or the alpha channel if the colours are not a mask.

    Raises:
        ValueError: if both could be the mask.
    """
    colours, alpha = values[..., :-1], values[..., -1]
    shown = alpha != 0
    if (alpha == alpha.flat[0]).all():
        return colours
    if _alpha_is_the_mask(colours, shown):
        # bool, since visible pixels are the object, never ignored, whatever 255 means in other masks
        return shown if np.isin(alpha, (0, *OBJECT_VALUES)).all() else alpha
    if (shown == colours.any(-1)).all():
        return colours
    listed = [np.unique(colours[where].reshape(-1, colours.shape[-1]), axis=0).tolist() for where in (shown, ~shown)]
    seen, hidden = (", ".join(str(each[0] if len(set(each)) == 1 else each) for each in part[:4]) for part in listed)
    raise ValueError(
        f"The transparency of a mask must not contradict its colours, got visible {seen} and hidden "
        f"{hidden or 'nothing'}, either of which could be the object. Save the mask without transparency, or use the "
        "colours, such as `mask.convert('RGB')`, or the alpha channel, such as "
        "`mask.convert('RGBA').getchannel('A')`."
    )


def _palette_values(image: Image.Image, ignored: int | None) -> tuple[np.ndarray, bool]:
    """The (height, width) values of a palette image, and whether they are labels, in which 255 is ignored.

    Values are the indices, but if the palette is black and white, they are true for white (1 for white index 1). A
    palette with one colour for all used indices, or without their colours, has no effect, nor has one of greys equal
    to their indices.

    Raises:
        ValueError: if index 0 has a colour other than black, so that the object is ambiguous.
    """
    indices, palette = np.array(image.getchannel(0)), image.getpalette("RGB") or []
    colours = [tuple(palette[start : start + 3]) for start in range(0, len(palette) - 2, 3)]
    used = np.unique(indices).tolist()
    shown = {index: colours[index] for index in used if index < len(colours)}
    if len(shown) == len(used) and all(colour == (index,) * 3 for index, colour in shown.items()):
        return indices, False
    judged = {index: colour for index, colour in shown.items() if index != ignored}
    inverted = set(colours) == {BLACK, WHITE} and colours[0] == WHITE
    telling = len(shown) == len(used) and (len(set(judged.values())) > 1 or inverted)
    if telling and set(judged.values()) <= {BLACK, WHITE} and not {1, IGNORED} <= set(used):
        white = [index for index, colour in judged.items() if colour == WHITE]
        picture = np.isin(indices, white).astype(indices.dtype if white == [1] else bool)
        return (picture if ignored is None else np.where(indices == ignored, indices, picture)), False
    if telling and judged.get(0, BLACK) != BLACK:
        raise ValueError(
            f"The palette of a mask must have black for index 0, got {judged[0]}, so the object is ambiguous; use a "
            "mask in black and white, or an array with 1 for the object."
        )
    return indices, True


def _picture_values(image: Image.Image, ignored: int | None) -> tuple[np.ndarray, bool]:
    """The values of a PIL image, and whether they are labels of a palette."""
    check_mask_format(image)
    with opening(str(getattr(image, "filename", "")) or "The mask", "mask"):
        load_pixels(image)
    hidden = image.info.get("transparency")
    if image.mode in ("P", "PA"):
        values, labels = _palette_values(image, ignored)
        if image.mode == "PA" or hidden is not None:
            alpha = np.asarray(image.getchannel("A") if image.mode == "PA" else image.convert("RGBA").getchannel("A"))
            values = _without_alpha(np.stack([values, alpha], axis=-1)).reshape(values.shape)
        return values, labels
    if image.mode in ("L", "RGB", "1") and hidden is not None:
        image = image.convert("RGBA")
    elif image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA"}.get(image.mode, "RGBA"))
    if image.mode not in ("1", "L", "LA", "RGB", "RGBA", "F") and not image.mode.startswith("I"):
        raise ValueError(f"A mask must have mode 1, L, LA, P, RGB, RGBA or I;16, got {image.mode}.")
    values = np.asarray(image)
    if image.mode.startswith("I") and isinstance(hidden, int):
        values = np.stack([values, (values != hidden).astype(values.dtype)], axis=-1)
    return values, False


def check_mask_format(image: Image.Image) -> None:
    """Raise LossyMaskError if an image that Pillow opened is a JPEG, whatever its file name."""
    if image.format in ("JPEG", "MPO"):
        raise LossyMaskError(
            "A mask must not be a JPEG, since its compression changes values; save masks as PNG, or convert a JPEG by "
            "`mask.convert('L').point(lambda value: 255 * (value > 127))`."
        )


def _mask_values(mask: Any, ignored: int | None = None) -> tuple[np.ndarray, bool]:
    """The (height, width) values of a mask in any form, and whether they are labels, in which 255 is ignored.

    Args:
        mask: see `to_label_map`.
        ignored: value of ignored pixels, which a palette of black and white keeps.
    """
    if not isinstance(mask, Image.Image | np.ndarray | Tensor):
        raise ValueError(f"A mask must be a PIL image, array or tensor, got {type(mask).__name__}.")
    values, labels = _picture_values(mask, ignored) if isinstance(mask, Image.Image) else (_to_numpy(mask), False)
    shape = values.shape
    if values.dtype.kind not in "buif":
        raise ValueError(f"A mask must have numbers, got dtype {values.dtype}.")
    if 0 in shape:
        raise ValueError(f"A mask must have shape (height, width), got {shape}.")
    if values.ndim == 3 and 1 in (shape[0], shape[-1]):
        values = values.squeeze(0 if shape[0] == 1 else -1)
    if values.ndim == 3 and shape[0] in (2, 3, 4) and shape[-1] not in (2, 3, 4):
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[-1] in (2, 4):
        values = _without_alpha(values)
    if values.ndim == 3 and (values == values[..., :1]).all():
        values = values[..., 0]
    if values.ndim != 2:
        colours = values.ndim == 3 and values.shape[-1] == 3
        raise ValueError(
            f"A mask must have shape (height, width) with one value per pixel, got {shape}."
            + (f" {_OF_COLOURS}" if colours else "")
        )
    return values, labels


_OF_COLOURS = (
    "The channels differ. If the object is coloured on black, use `np.asarray(mask).any(-1)`; if lossy compression "
    "changed black and white, `np.asarray(mask.convert('L')) > 127`."
)


def _unknown_values(found: list, levels: list) -> str:
    """The message for a mask with an ambiguous object.

    Args:
        found: all of its values, in order.
        levels: values other than 0 and the ignored one: several, or one that is not usual for the object.
    """
    shown = f"[{', '.join(map(str, found[:8]))}{', ...' if len(found) > 8 else ''}]"
    wanted = f"A mask must have values 0 and 1, 0 and 255 (16 bits: 65535), or 0, 1 and 255, got {shown}."
    if any(level != level for level in levels):
        return f"{wanted} NaN is not allowed."
    if len(found) > 8 or (IGNORED in found and any(240 <= level < IGNORED for level in levels)):
        return f"{wanted} This looks like a soft or lossily compressed mask: use a threshold, such as `mask > 127`."
    if set(levels) <= {1, IGNORED}:
        return f"{wanted} If {IGNORED} is to be ignored, set `ignore_index={IGNORED}`; otherwise use `mask != 0`."
    odd = next(level for level in reversed(levels) if level not in (1, IGNORED))
    whole = float(odd).is_integer()
    ignore = f"; if it is to be ignored, set `ignore_index={int(odd)}`" if whole else ""
    return f"{wanted} If {odd} is the object, use `mask == {odd}`{ignore}."


def _to_label_map(values: np.ndarray, ignored: int | None) -> np.ndarray:
    found = np.unique(values).tolist()
    levels = [value for value in found if value not in (0, ignored)]
    if levels and (len(levels) > 1 or levels[0] not in OBJECT_VALUES):
        raise ValueError(_unknown_values(found, levels))
    label_map = np.isin(values, levels).astype(np.uint8)
    if ignored is not None:
        label_map[values == ignored] = IGNORED
    return label_map


def check_ignore_index(ignore_index: Any) -> IgnoreIndex:
    """Check the value of ignored pixels: an integer of any type, None or "auto".

    Raises:
        ValueError: if it is something else.
    """
    if ignore_index is None:
        return None
    if isinstance(ignore_index, str) and ignore_index == "auto":
        return "auto"
    try:
        whole = None if isinstance(ignore_index, bool) else operator.index(ignore_index)
    except TypeError:
        whole = None
    if whole in (None, 0, 1):
        raise ValueError(
            f"`ignore_index` must be an integer other than 0 and 1, None or 'auto', got {ignore_index!r}."
        )
    return whole


def _meaning_of_255(values: np.ndarray, labels: bool) -> Meaning:
    found = set(np.unique(values).tolist())
    if IGNORED in found:
        return "ignored" if labels or 1 in found else "object"
    return "absent" if 1 in found and values.dtype.kind in "ui" else None


def meaning_of_255(mask: Any) -> Meaning:
    """The meaning of 255 in a mask, for "auto".

    Returns:
        "ignored" or "object"; "absent" if the object is 1 and there is no 255, which would be ignored; None if it is
        unknown, as in black masks and masks of bool.
    """
    return _meaning_of_255(*_mask_values(mask))


def check_meaning_of_255(found: Iterable[tuple[Meaning, str]]) -> None:
    """Check that 255 means the same in all masks of a data set or call.

    Otherwise a mask with only ignored pixels would become an object, beside masks in which the object is 1.

    Args:
        found: result of `meaning_of_255` for each mask, and its name for messages.

    Raises:
        ValueError: if 255 could be the object in a mask, and is or would be ignored in another.
    """
    seen: dict[Meaning, str] = {}
    for meaning, name in found:
        seen.setdefault(meaning, name)
    if "object" not in seen or not seen.keys() & {"ignored", "absent"}:
        return
    if "ignored" in seen:
        raise ValueError(
            f"255 must mean the same in all masks: it is ignored in {seen['ignored']}, which has 1 or a palette, but "
            f"could be the object in {seen['object']}. Set `ignore_index=255` if it is ignored in all masks, or save "
            "masks of 0 and 1."
        )
    raise ValueError(
        f"255 must mean the same in all masks: the object is 1 in {seen['absent']}, so 255 in {seen['object']} could "
        "be the object or ignored. Set `ignore_index=None` if it is the object, `ignore_index=255` if it is ignored."
    )


def to_label_maps(masks: Sequence[Any], ignore_index: IgnoreIndex = "auto") -> list[np.ndarray]:
    """Convert masks that belong together like `to_label_map`, with the same meaning of 255 for "auto".

    Raises:
        ValueError: as `to_label_map`, and if the meaning of 255 is ambiguous (see `check_meaning_of_255`).
    """
    ignored = check_ignore_index(ignore_index)
    read = [_mask_values(mask, None if ignored == "auto" else ignored) for mask in masks]
    if ignored == "auto":
        meanings = [_meaning_of_255(*each) for each in read]
        ignored = IGNORED if "ignored" in meanings else None
        if ignored is None:
            check_meaning_of_255((meaning, f"mask {number}") for number, meaning in enumerate(meanings, start=1))
    return [_to_label_map(values, ignored) for values, _ in read]


def to_label_map(mask: Image.Image | np.ndarray | Tensor, ignore_index: IgnoreIndex = "auto") -> np.ndarray:
    """Convert a mask to (height, width) uint8: 1 for the object, 0 for background, 255 to ignore.

    Args:
        mask: PIL image, array or tensor. The object has the value 1, 255 or (16 bits) 65535, the background 0. Values
            of a palette image are its indices (VOC and DAVIS: 1 for the object, 255 ignored); in a palette of black
            and white, the object is white. An alpha channel that varies is the mask if the colours are not, and may
            hide black pixels otherwise; one that contradicts the colours is refused. A JPEG is refused, since it
            changes values.
        ignore_index: value of ignored pixels; None for no such value. "auto" ignores 255 in palette indices, and in
            masks that also have 1; otherwise 255 is the object. A mask of 0 and 255 in a data set with masks of 0, 1
            and 255 therefore needs `ignore_index=255` (or `to_label_maps`).

    Raises:
        ValueError: if the mask is not two-dimensional, or the object is ambiguous.
        OSError: if the file of a PIL image is corrupt.
    """
    return to_label_maps([mask], ignore_index)[0]


def resize_label_map(label_map: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize a (height, width) uint8 label map, by nearest-neighbour interpolation.

    Of an object that lies between the pixels that are kept, one pixel is kept: without any, it would be a label map of
    no target.
    """
    resized = np.array(Image.fromarray(label_map).resize((shape[1], shape[0]), Image.Resampling.NEAREST))
    if not (resized == 1).any() and (label_map == 1).any():
        rows, columns = np.nonzero(label_map == 1)
        row, column = int(np.median(rows)), int(np.median(columns))
        resized[row * shape[0] // label_map.shape[0], column * shape[1] // label_map.shape[1]] = 1
    return resized


def _as_images(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    if isinstance(images, np.ndarray | Tensor):
        return list(images) if images.ndim == 4 else [images]
    entries: list[Any] = list(images) if isinstance(images, list | tuple) else [images]
    if not entries:
        raise ValueError(f"`images` must have at least one image, got {images!r}.")
    if odd := [entry for entry in entries if isinstance(entry, list | tuple) and len(entry) != 1]:
        raise ValueError(f"`images` must have one image per list of expressions, got a list of {len(odd[0])} images.")
    return [entry[0] if isinstance(entry, list | tuple) else entry for entry in entries]


def says_nothing(text: str) -> bool:
    """Whether a text has no visible character: only spaces, control and zero-width characters, and lone accents."""
    kinds = map(unicodedata.category, text)
    return all(kind[0] in "ZM" or kind in ("Cc", "Cf") for kind in kinds)


def is_damaged(text: str) -> bool:
    """Whether a text has half a surrogate pair, as from a damaged escape in JSON; Arrow and files cannot store it."""
    return _HALF_SURROGATE.search(text) is not None


def check_that_something_is_read(tokenizer: Any, expressions: Sequence[str], input_ids: Any) -> None:
    """Check that every expression has a token.

    Args:
        tokenizer: the tokenizer.
        expressions: its input.
        input_ids: a row of token ids for each expression, with [CLS] and [SEP] and possibly padding; or a single row.

    Raises:
        NothingReadError: if a row only has [CLS] and [SEP].
    """
    rows = input_ids.tolist() if isinstance(input_ids, np.ndarray | Tensor) else input_ids
    rows = rows if isinstance(rows[0], list | tuple) else [rows]
    added = tokenizer.num_special_tokens_to_add()
    for expression, row in zip(expressions, rows, strict=True):
        if len(row) <= added or all(token == tokenizer.pad_token_id for token in row[added:]):
            raise NothingReadError(expression)


def _as_expressions(text: Any) -> list[str] | list[list[str]]:
    """Check expressions: a text, a list, or a list of lists."""
    entries = [text] if isinstance(text, str) else list(text) if isinstance(text, list | tuple) else None
    if not entries:
        raise ValueError(f"`text` must be an expression or a list of expressions, got {text!r}.")
    nested = [isinstance(entry, list | tuple) for entry in entries]
    if any(nested) and not all(nested):
        raise ValueError("`text` must not have both expressions and lists of expressions.")
    for expression in _flat(entries):
        if not isinstance(expression, str) or says_nothing(expression):
            raise ValueError(f"An expression must be text that describes an object, got {expression!r}.")
        if is_damaged(expression):
            raise ValueError(f"An expression must be valid Unicode, got {expression!r} with half a surrogate pair.")
    return [list(entry) for entry in entries] if any(nested) else entries


def _flat(entries: list) -> list:
    return [item for entry in entries for item in (entry if isinstance(entry, list | tuple) else [entry])]


class ReadExpression(NamedTuple):
    """The part of an expression that a model reads; see [`CrossVLTProcessor.read_expressions`].

    Args:
        text_read: the part within the limit of tokens.
        unknown_words: words of the whole expression that are not in the vocabulary, each once, in order. For unknown
            signs without a word, the text itself.
        cut: whether the expression is longer than the limit.
        known: whether any token is in the vocabulary; otherwise all such expressions give the same mask.
    """

    text_read: str
    unknown_words: tuple[str, ...]
    cut: bool
    known: bool = True


def _is_of_a_word(character: str) -> bool:
    """Whether a character is a letter, a digit or an emoji."""
    return unicodedata.category(character)[0] in "LN" or unicodedata.category(character) == "So"


def word_spans(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each word: letters, digits and emoji, with their accents and joiners."""
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


def _as_read(text: str, words: tuple[str, ...], cut: bool, known: bool) -> ReadExpression:
    """Make a result, in which an unknown text without words is the unknown word."""
    return ReadExpression(text, words if words or known else (text.strip(),), cut, known)


def reading_note(expression: str, read: ReadExpression) -> str | None:
    """A sentence about the parts of an expression that a model does not read; None if it reads everything."""
    notes = []
    if read.unknown_words:
        words = ", ".join(map(repr, read.unknown_words))
        nothing = "" if read.known else ", nor any other part of it"
        notes.append(f"the vocabulary does not know {words}{nothing}")
    if read.cut:
        notes.append(f"it is too long, and only {read.text_read!r} is read")
    return f"The expression {expression!r} is not read completely: {'; '.join(notes)}." if notes else None


def _not_covered(text: str, known: list[tuple[int, int]]) -> tuple[str, ...]:
    """The words of a text with a character outside the (start, end) of known tokens."""
    covered = {position for start, end in known for position in range(start, end)}
    left = [position for position in range(len(text)) if position not in covered]
    if not any(_is_of_a_word(text[position]) for position in left):
        return ()
    words = [
        text[start:end]
        for start, end in word_spans(text)
        if any(start <= position < end and _is_of_a_word(text[position]) for position in left)
    ]
    return tuple(dict.fromkeys(words))


def pair_expressions(num_images: int, text: str | Sequence) -> list[list[str]]:
    """Group expressions by image.

    Raises:
        ValueError: if the numbers do not match.
    """
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
            f"`text` must have an expression or a list of them for each image, got {counted(num_images, 'image')} and "
            f"{'1 expression or list' if len(groups) == 1 else f'{len(groups)} expressions or lists'}."
        )
    if [] in groups:
        raise ValueError(f"Every image must have an expression, got none for image {groups.index([])}.")
    return groups


def _as_sizes(target_sizes: Any) -> list[tuple[int, ...]]:
    sizes = target_sizes.tolist() if isinstance(target_sizes, np.ndarray | Tensor) else list(target_sizes)
    if any(not isinstance(size, Sequence | np.ndarray | Tensor) or len(size) != 2 or min(size) < 1 for size in sizes):
        raise ValueError(f"`target_sizes` must be (height, width) of at least 1 pixel for each result, got {sizes}.")
    return [(int(height), int(width)) for height, width in sizes]


def _as_masks(masks: Any, counts: list[int]) -> list:
    """List a mask for each expression; `counts` has the number of expressions of each image."""
    if not isinstance(masks, list | tuple):
        shape = tuple(getattr(masks, "shape", (0, 0)))
        batch = len(shape) == 4 or (len(shape) == 3 and (shape[0] == sum(counts) or shape[-1] not in (1, 3, 4)))
        masks = list(masks) if batch else [masks]
    nested = any(isinstance(entry, list | tuple) for entry in masks)
    if nested and [len(entry) if isinstance(entry, list | tuple) else 1 for entry in masks] != counts:
        raise ValueError("`segmentation_maps` must be nested like `text`, with a mask for each expression.")
    flat = _flat(list(masks))
    if len(flat) != sum(counts):
        raise ValueError(
            f"There must be a mask for each expression, got {counted(sum(counts), 'expression')} and "
            f"{counted(len(flat), 'mask')}."
        )
    return flat


def check_threshold(threshold: float | None, name: str = "threshold") -> None:
    """Raise ValueError unless a threshold is None or a probability above 0 and below 1."""
    if threshold is not None and not (isinstance(threshold, Real) and 0 < threshold < 1):
        raise ValueError(f"`{name}` must be a probability above 0 and below 1, got {threshold!r}.")


def resolve_presence_threshold(threshold: Any, has_head: bool) -> float | None:
    """Resolve "auto": 0.5 for a model with a presence head, otherwise None.

    Raises:
        ValueError: if it is neither "auto" nor None nor a probability, or the model has no presence head.
    """
    if isinstance(threshold, str) and threshold == "auto":
        return PRESENCE_THRESHOLD if has_head else None
    check_threshold(threshold, "presence_threshold")
    if threshold is not None and not has_head:
        raise ValueError(
            f"`presence_threshold` must be left out for a model without a presence head (`config.presence_head`), got "
            f"{threshold}."
        )
    return None if threshold is None else float(threshold)


def check_min_area(instances: bool, min_area: int | None) -> None:
    """Raise ValueError unless `min_area` is None or, with `instances`, a number of pixels above 0."""
    if min_area is None:
        return
    if isinstance(min_area, bool) or not isinstance(min_area, int) or min_area < 1:
        raise ValueError(f"`min_area` must be a number of pixels of at least 1, got {min_area!r}.")
    if not instances:
        raise ValueError(f"`min_area` must be None without `instances`, got {min_area}.")


def mask_box(mask: Tensor) -> list[int] | None:
    """[x_min, y_min, x_max, y_max] of a (H, W) bool mask, in pixels, the maxima exclusive; None if it is empty."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    if len(rows) == 0:
        return None
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def _join(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The component, 0, 1, ..., of each of `count` things, with connections between `first[i]` and `second[i]`."""
    labels = np.arange(count)
    while True:
        low = np.minimum(labels[first], labels[second])
        joined = labels.copy()
        for side in (first, second):
            np.minimum.at(joined, labels[side], low)
        joined = joined[joined]
        if (joined == labels).all():
            return np.unique(labels, return_inverse=True)[1]
        labels = joined


def find_parts(mask: Tensor) -> tuple[Tensor, int]:
    """The largest connected part of a mask, the upper one of two equal ones, and the number of parts.

    Implemented here, since torch, numpy and Pillow cannot label components, and SciPy is not a dependency.

    Args:
        mask: (height, width) bool.

    Returns:
        (height, width) bool, on the same device, and the number of parts.
    """
    labels = label_parts(mask)
    areas = labels.flatten().bincount()[1:]
    return (labels == areas.argmax() + 1, len(areas)) if len(areas) else (mask, 0)


def count_parts(mask: Tensor) -> int:
    """The number of connected parts of a (height, width) bool mask: see `find_parts`."""
    box = mask_box(mask)
    if box is None:
        return 0
    left, top, right, bottom = box
    return int(_find_runs(mask[top:bottom, left:right].detach().cpu().numpy(), corners=True)[-1].max()) + 1


def find_instances(mask: Tensor, min_area: int = 1) -> list[dict[str, Any]]:
    """The connected parts of a mask, the largest first.

    Args:
        mask: (height, width) bool.
        min_area: least area of a part, in pixels.

    Returns:
        For each part "mask", (height, width) bool, "box" (see `mask_box`), and "area" in pixels.
    """
    labels = label_parts(mask)
    areas = labels.flatten().bincount()[1:].tolist()
    order = sorted((number for number, area in enumerate(areas) if area >= min_area), key=lambda n: -areas[n])
    masks = [labels == number + 1 for number in order]
    return [
        {"mask": part, "box": mask_box(part), "area": areas[number]} for part, number in zip(masks, order, strict=True)
    ]


def label_parts(mask: Tensor, corners: bool = True) -> Tensor:
    """Label the connected parts of a mask.

    Args:
        mask: (height, width) bool.
        corners: whether pixels that only touch at a corner are connected.

    Returns:
        (height, width) int64: 1, 2, ... from the top down, and 0 off the mask.
    """
    labels = torch.zeros_like(mask, dtype=torch.int64)
    if (box := mask_box(mask)) is not None:
        left, top, right, bottom = box
        inside = _label_parts(mask[top:bottom, left:right].detach().cpu().numpy(), corners)
        labels[top:bottom, left:right] = torch.from_numpy(inside).to(mask.device)
    return labels


def _find_runs(mask: np.ndarray, corners: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The starts and (exclusive) ends of the runs of a mask that is not empty, and the part, 0, 1, ..., of each.

    Places are those in the flattened mask with an empty column on both sides, so that runs of two rows do not touch.
    """
    height, width = mask.shape
    row = width + 2
    flat = np.zeros(height * row + 1, dtype=np.int8)
    flat[:-1].reshape(height, row)[:, 1:-1] = mask
    steps = np.diff(flat)
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    lower = np.searchsorted(ends, starts + row, side="left" if corners else "right")
    upper = np.searchsorted(starts, ends + row, side="right" if corners else "left")
    touching = np.maximum(upper - lower, 0)
    above = np.repeat(np.arange(len(starts)), touching)
    below = np.arange(touching.sum()) + np.repeat(lower - np.cumsum(touching) + touching, touching)
    return starts, ends, _join(len(starts), above, below)


def _label_parts(mask: np.ndarray, corners: bool) -> np.ndarray:
    """`label_parts` of a mask that is not empty."""
    height, width = mask.shape
    starts, ends, parts = _find_runs(mask, corners)
    steps = np.zeros(height * (width + 2) + 1, dtype=np.int64)
    steps[starts + 1], steps[ends + 1] = parts + 1, -(parts + 1)
    return np.cumsum(steps)[:-1].reshape(height, width + 2)[:, 1:-1]


def _as_logits(outputs: Any) -> Tensor:
    """Check the (B, 2, H, W) logits of an output of the model."""
    if isinstance(outputs, tuple):
        raise ValueError(
            "`outputs` must be an output of the model or logits, got a tuple; call the model without "
            "`return_dict=False`."
        )
    if not isinstance(outputs, Tensor):
        outputs = outputs["logits"] if isinstance(outputs, dict) else outputs.logits
    logits: Tensor = outputs
    if logits.ndim != 4 or logits.shape[1] != 2 or 0 in logits.shape[2:] or not logits.is_floating_point():
        raise ValueError(
            f"Logits must be floats of shape (B, 2, H, W), got shape {tuple(logits.shape)} and dtype {logits.dtype}."
        )
    return check_not_nan(logits)


def check_not_nan(logits: Tensor) -> Tensor:
    """Return logits of masks or presence; raise ValueError if one is NaN, which would give an empty mask."""
    if logits.isnan().any():
        raise ValueError("Logits must not be NaN: the weights or the image are broken.")
    return logits


def _as_presence(outputs: Any, pairs: int, threshold: float | None) -> list[float] | list[None]:
    """The probability of a target for each pair; None for each if the output has none."""
    check_threshold(threshold, "presence_threshold")
    found = outputs.get("presence_logits") if isinstance(outputs, dict) else getattr(outputs, "presence_logits", None)
    if found is None and threshold is not None:
        raise ValueError(
            "`presence_threshold` must be left out without `presence_logits`, which are in the output of a model with "
            f"a presence head (`config.presence_head`), got {threshold}."
        )
    if found is None:
        return [None] * pairs
    if found.shape != (pairs,):
        raise ValueError(f"`presence_logits` must have a number for each of {counted(pairs, 'pair')}, got {found}.")
    return check_not_nan(found).float().sigmoid().tolist()


def _sizes_of_results(logits: Tensor, target_sizes: Any) -> list[tuple[int, ...]]:
    """(height, width) of each result."""
    sizes = [tuple(logits.shape[-2:])] * len(logits) if target_sizes is None else _as_sizes(target_sizes)
    if len(sizes) != len(logits):
        raise ValueError(
            f"There must be a target size for each result, got {counted(len(logits), 'result')} and "
            f"{counted(len(sizes), 'target size')}."
        )
    return sizes


@dataclass(frozen=True)
class _ResultOptions:
    """Options of `CrossVLTProcessor.post_process_masks`."""

    threshold: float | None
    presence_threshold: float | None
    largest_part: bool
    return_probabilities: bool
    instances: bool
    min_area: int | None

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        check_min_area(self.instances, self.min_area)

    def margin(self, presence: float | None) -> float:
        """The log-odds above which a pixel belongs to the mask of a pair with a certain presence."""
        if presence is not None and self.presence_threshold is not None and presence < self.presence_threshold:
            return math.inf
        return 0.0 if self.threshold is None else math.log(self.threshold / (1 - self.threshold))


def estimate_iou(margin: Tensor, mask: Tensor, presence: float | None = None) -> float:
    """Estimate the IoU of a mask by expected intersection over expected union, times the probability of a target.

    Args:
        margin: (height, width) float, log-odds of the object at each pixel.
        mask: (height, width) bool.
        presence: probability of a target, of a model with a presence head; None means 1.

    Returns:
        0 to 1; 0 for an empty mask. It is the expected IoU of a well-calibrated model.
    """
    probability = margin.sigmoid()
    inside, outside = probability[mask].sum(), probability[~mask].sum()
    estimate = float(inside / (mask.sum() + outside)) if mask.any() else 0.0
    return estimate * (1.0 if presence is None else presence)


def check_calibration(points: Any) -> list[list[float]] | None:
    """Check the points of a score calibration: see `CrossVLTProcessor`.

    Raises:
        ValueError: unless they are pairs of values from 0 to 1, with rising first and non-decreasing second values.
    """
    if points is None:
        return None
    try:
        table = np.asarray(points, dtype=np.float64)
        good = table.ndim == 2 and table.shape[1] == 2 and len(table) > 0
        good = good and bool(((table >= 0) & (table <= 1)).all())
        good = good and bool((np.diff(table[:, 0]) > 0).all() and (np.diff(table[:, 1]) >= 0).all())
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(
            f"`score_calibration` must be [estimate, expected IoU] points from 0 to 1 that rise, got {points!r:.200}."
        )
    return table.tolist()


def calibration_curve(points: Sequence[Sequence[float]]) -> list[list[float]]:
    """The points of a score calibration, starting at (0, 0).

    The expected IoU goes to 0 with the estimate. A fit sees few such masks, as most are emptied for their presence.
    """
    return [*([] if points[0][0] == 0 else [[0.0, 0.0]]), *map(list, points)]


def apply_calibration(estimates: Any, points: Sequence[Sequence[float]]) -> np.ndarray:
    """Convert estimates of IoUs to expected IoUs: piecewise linear between the points of `calibration_curve`.

    Args:
        estimates: a number or array, from 0 to 1.
        points: see `CrossVLTProcessor.score_calibration`.
    """
    return np.interp(estimates, *np.transpose(calibration_curve(points)))


def _check_text_kwargs(text_kwargs: dict[str, Any]) -> None:
    """Raise ValueError for arguments of the tokenizer that would give other rows than one per expression."""
    for name, reason in REFUSED_TEXT_KWARGS.items():
        if text_kwargs.get(name) not in (None, False):
            raise ValueError(f"`{name}` is not supported: {reason}.")
    if not text_kwargs.get("add_special_tokens", True):
        raise ValueError("`add_special_tokens=False` is not supported: the model takes the sentence from [CLS].")
    _check_max_length(text_kwargs.get("max_length"))


def _check_max_length(longest: Any) -> None:
    if isinstance(longest, int) and longest < 3:
        raise ValueError(f"`max_length` must be at least 3, for a token between [CLS] and [SEP], got {longest}.")


class CrossVLTProcessor(ProcessorMixin):
    """Image processor and tokenizer of CrossVLT.

    Args:
        image_processor: `SegformerImageProcessor`, which resizes to 480x480 in the paper, without keeping the aspect
            ratio.
        tokenizer: the tokenizer of the language encoder.
        score_calibration: [estimate, expected IoU] points, both rising from 0 to 1, fitted by `crossvlt evaluate
            --calibrate`. Scores are then expected IoUs, interpolated between the points from `estimate_iou` times the
            presence. With None, scores are mean probabilities.
        ignore_index: default value of ignored pixels in masks: see `to_label_map`.

    An expression has at most `max_length` tokens, including [CLS] and [SEP]: `model_max_length` of the tokenizer, or
    21, as in the paper, if that is at least 512 (the positions of BERT). Longer expressions are cut (they keep [SEP],
    unlike in the authors' code), shorter ones are padded.

    Example:
    ```python
    >>> inputs = processor(image, ["the white cup", "the spoon"], return_tensors="pt")
    >>> outputs = model(**inputs)
    >>> results = processor.post_process_masks(outputs, target_sizes=inputs["original_sizes"])
    >>> results[0]["mask"], results[0]["score"], results[0]["box"]
    ```
    """

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        score_calibration: Sequence[Sequence[float]] | None = None,
        ignore_index: IgnoreIndex = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, **kwargs)
        self.score_calibration = score_calibration
        self.ignore_index = ignore_index

    def __setattr__(self, name: str, value: Any) -> None:
        """Check values, which cannot be properties, since `ProcessorMixin` sets attributes itself."""
        checks = {"ignore_index": check_ignore_index, "score_calibration": check_calibration}
        super().__setattr__(name, checks[name](value) if name in checks else value)

    @property
    def max_length(self) -> int:
        """The most tokens of an expression, including [CLS] and [SEP]."""
        # Version 0.1 saved it in `init_kwargs`
        length = self.tokenizer.init_kwargs.get("max_length") or self.tokenizer.model_max_length
        return int(length) if length < BERT_POSITIONS else 21

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width to which images are resized.

        Raises:
            ValueError: if the image processor keeps the aspect ratio, and has no fixed size.
        """
        size = dict(self.image_processor.size)
        if not (size.get("height") and size.get("width")):
            raise ValueError(f"The image processor's `size` must have height and width, got {size}.")
        return int(size["height"]), int(size["width"])

    @property
    def text_kwargs(self) -> dict[str, Any]:
        """Default arguments of the tokenizer, for `ProcessorMixin`."""
        return {"padding": "max_length", "truncation": True, "max_length": self.max_length}

    @classmethod
    def from_tokenizer(
        cls, tokenizer: PreTrainedTokenizerBase, image_size: int | tuple[int, int] = 480, max_length: int = 21
    ) -> "CrossVLTProcessor":
        """Make a processor with the image processing of the paper.

        Args:
            tokenizer: the tokenizer of the language encoder; the processor has a copy.
            image_size: side, or height and width, to which images are resized.
            max_length: the most tokens of an expression, from 3 to 511; `model_max_length` of the copy.

        Raises:
            ValueError: if `max_length` or `image_size` is out of range.
        """
        if not 3 <= max_length < BERT_POSITIONS:
            raise ValueError(
                f"`max_length` must be from 3 ([CLS], a token and [SEP]) to {BERT_POSITIONS - 1}, got {max_length}."
            )
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
            raise ValueError(f"`image_size` must be the side, or height and width, in pixels, got {image_size!r}.")
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.init_kwargs.pop("max_length", None)
        tokenizer.model_max_length = max_length
        return cls(SegformerImageProcessorPil(size={"height": height, "width": width}), tokenizer)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a processor, of a folder, a Hub id, or "built-in": see [`ProcessorMixin.from_pretrained`]."""
        return super().from_pretrained(find_named(pretrained_model_name_or_path), *args, **kwargs)

    @classmethod
    def _get_arguments_from_pretrained(cls, name: str, processor_dict: dict | None = None, **kwargs: Any) -> list:
        """Load the image processor with the Pillow backend, unless `backend=` is given.

        The paper resizes with Pillow; pixels of torchvision differ slightly.
        """
        backend = kwargs.pop("backend", "pil")
        image_processor = AutoImageProcessor.from_pretrained(name, backend=backend, **kwargs)
        return [image_processor, AutoTokenizer.from_pretrained(name, **kwargs)]

    def to_dict(self) -> dict[str, Any]:
        """The values to save, with the entry about code."""
        own = {"ignore_index": self.ignore_index, "auto_map": {"AutoProcessor": AUTO_MAP["AutoProcessor"]}}
        return {**super().to_dict(), **own}

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Save the processor and its code, so that the folder loads without this package.

        Args:
            save_directory: folder, which is created if it does not exist.
            push_to_hub: whether to upload its files.
            kwargs: see [`ProcessorMixin.save_pretrained`], and of `upload_folder`.
        """
        options = take_hub_options(save_directory, kwargs) if push_to_hub else {}
        copy_code(save_directory)
        files = super().save_pretrained(str(save_directory), **kwargs)
        if push_to_hub:
            upload_folder(save_directory, **options)
        return files

    @property
    def model_input_names(self) -> list[str]:
        """The outputs of a call, except labels and `expressions_per_image`."""
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
            images: an image (see `to_rgb`), a list of images, or a batch (B, C, H, W). All images decide if the range
                of floats is 0 to 1 or 0 to 255.
            text: for one image, an expression or a list of expressions; for several, a list with an expression or a
                list of expressions for each (or one expression for all).
            segmentation_maps: a mask (see `to_label_map`) of the size of its image for each expression, nested like
                `text` or in a flat list.
            kwargs: `ignore_index` of the masks (see `to_label_map`), and arguments of the image processor and the
                tokenizer, also as `images_kwargs` and `text_kwargs`, such as `size`, `resample`, `do_rescale`,
                `rescale_factor`, `do_normalize`, `image_mean`, `image_std`, `input_data_format`, `max_length`,
                `padding`, `return_tensors`, `device`. `rescale_factor` multiplies the given numbers;
                `do_rescale=False` is for numbers from 0 to 1. Cropping, padding of images and other layouts of the
                output are not supported.

        Returns:
            pixel_values (images, 3, 480, 480) float32, each image once; input_ids, token_type_ids and attention_mask
            (B, 21) int64; original_sizes (B, 2) int64: height and width of the (upright) image of each expression;
            labels (B, 480, 480) int64: 1 for the object, 0 for background, 255 to ignore; if an image has several
            expressions, expressions_per_image (images,) int64, which the model needs.

        Raises:
            OSError: if an image file is missing or is not an image.
            ValueError: if numbers of images, expressions and masks differ, an input is invalid, or an argument is
                unknown or not supported.
        """
        if images is None and text is None:
            raise ValueError("You need to provide at least one input: `images`, `text` or both.")
        if images is None and segmentation_maps is not None:
            raise ValueError("`segmentation_maps` needs `images`.")
        text_kwargs, images_kwargs, ignore_index = self._sort_kwargs(kwargs)
        device = images_kwargs.pop("device", None)
        groups = None if text is None else self._group(images, text)
        data = {} if groups is None else self._prepare_text(images, text, groups, text_kwargs)
        if images is not None:
            entries = _as_images(images)
            counts = [1] * len(entries) if groups is None else [len(group) for group in groups]
            data |= self._prepare_images(entries, counts, images_kwargs)
            if segmentation_maps is not None:
                data["labels"] = self._prepare_masks(_as_masks(segmentation_maps, counts), counts, data, ignore_index)
        features = BatchFeature(data, tensor_type=text_kwargs.get("return_tensors"))
        return features if device is None else features.to(device)

    @staticmethod
    def _group(images: Any, text: Any) -> list[list[str]]:
        """The expressions of each image; without images, a single group."""
        if images is not None:
            return pair_expressions(len(_as_images(images)), text)
        expressions = _flat(_as_expressions(text))
        if not expressions:
            raise ValueError(f"`text` must have at least one expression, got {text!r}.")
        return [expressions]

    def _prepare_text(self, images: Any, text: Any, groups: list[list[str]], text_kwargs: Any) -> dict[str, Any]:
        """Tokenize expressions; a single text without an image gives a single row, as of a tokenizer."""
        expressions = text if images is None and isinstance(text, str) else _flat(groups)
        tokens = dict(self._tokenize(expressions, **text_kwargs))
        check_that_something_is_read(self.tokenizer, _flat([expressions]), tokens["input_ids"])
        return tokens

    def _sort_kwargs(self, kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], IgnoreIndex]:
        """Check arguments, and sort them: those of the tokenizer, those of the image processor, and `ignore_index`."""
        ignore_index = check_ignore_index(kwargs.pop("ignore_index", self.ignore_index))
        self._check_names(kwargs)
        try:
            merged = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(" ".join(str(error).split())) from error
        text_kwargs, images_kwargs = merged["text_kwargs"], merged["images_kwargs"]
        if text_kwargs.get("padding_side", self.tokenizer.padding_side) != "right":
            raise ValueError("`padding_side` must be 'right', since [CLS] must be the first token, got 'left'.")
        _check_text_kwargs(text_kwargs)
        kind, other = images_kwargs.pop("return_tensors", None), text_kwargs.get("return_tensors")
        if kind is not None and other is not None and kind != other:
            raise ValueError(f"`return_tensors` must be the same for images and text, got {kind!r} and {other!r}.")
        text_kwargs["return_tensors"] = other if kind is None else kind
        if images_kwargs.get("device") is not None and text_kwargs["return_tensors"] not in ("pt", TensorType.PYTORCH):
            raise ValueError("`device` needs `return_tensors='pt'`.")
        return text_kwargs, self._check_images_kwargs(images_kwargs), ignore_index

    def _check_names(self, kwargs: Any) -> None:
        """Raise ValueError for unknown arguments, for which Transformers only warns."""
        kinds = {
            name: kind for name, kind in self.valid_processor_kwargs.__annotations__.items() if name in MODALITIES
        }
        known = {name for kind in kinds.values() for name in getattr(kind, "__annotations__", {})}
        known |= {*kinds, "common_kwargs", *self.image_processor.valid_kwargs.__annotations__}
        nested = {
            name for kind in (*kinds, "common_kwargs") if isinstance(kwargs.get(kind), dict) for name in kwargs[kind]
        }
        if unknown := sorted((kwargs.keys() | nested) - known):
            raise ValueError(f"`{unknown[0]}` is not an argument of the image processor or the tokenizer.")

    @staticmethod
    def _check_images_kwargs(images_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Check the arguments that are not None, and convert them for the image processor."""
        given = {name: value for name, value in images_kwargs.items() if value is not None}
        for name, reason in REFUSED_IMAGE_KWARGS.items():
            if given.pop(name, None):
                raise ValueError(f"`{name}` is not supported: {reason}.")
        if not given.pop("do_convert_rgb", True):
            raise ValueError("`do_convert_rgb=False` is not supported: the model takes RGB.")
        if isinstance(resample := given.get("resample"), str):
            if resample.upper() not in Image.Resampling.__members__:
                names = ", ".join(name.lower() for name in Image.Resampling.__members__)
                raise ValueError(f"`resample` must be one of {names}, got {resample!r}.")
            given["resample"] = Image.Resampling[resample.upper()]
        if not np.all(np.asarray(given.get("image_std", 1.0))):
            raise ValueError(f"`image_std` must not be 0, got {given['image_std']!r}.")
        layouts = {name: given.pop(name, None) for name in ("data_format", "input_data_format")}
        layouts = {name: getattr(value, "value", value) for name, value in layouts.items()}
        if layouts["data_format"] not in (None, "channels_first"):
            raise ValueError(
                f"`data_format` must be 'channels_first', as in the model, got {layouts['data_format']!r}."
            )
        if layouts["input_data_format"] not in (None, *IMAGE_LAYOUTS):
            raise ValueError(
                f"`input_data_format` must be one of {', '.join(IMAGE_LAYOUTS)}, got {layouts['input_data_format']!r}."
            )
        return {**given, "input_data_format": layouts["input_data_format"]}

    def read_expressions(self, texts: Sequence[str]) -> list[ReadExpression]:
        """Find out where expressions are cut, and which of their words are unknown.

        Args:
            texts: expressions.

        Returns:
            A result for each, in order. A word is unknown if a part of it becomes the unknown token or no token;
            byte tokens are known. If the limit is inside a word, `text_read` has the part within it, or none of the
            word with a slow tokenizer, which gives no positions.

        Raises:
            ValueError: if an expression is invalid, or `max_length` leaves no room for its tokens.
            NothingReadError: if an expression has no tokens, such as one of damaged characters.
        """
        expressions = _flat(_as_expressions(texts)) if len(texts) else []
        if not expressions:
            return []
        if not self.tokenizer.is_fast:
            return [self._read_by_word(text) for text in expressions]
        whole = self._tokenize(expressions, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(map(self._read_by_position, expressions, whole["input_ids"], whole["offset_mapping"]))

    def _count_read(self, text: str, ids: list[int]) -> int:
        """How many tokens of an expression are within the limit, without [CLS] and [SEP]."""
        if not ids:
            raise NothingReadError(text)
        _check_max_length(self.max_length)
        return min(len(ids), self.max_length - self.tokenizer.num_special_tokens_to_add())

    def _tokenize(self, text: str | list[str], **kwargs: Any) -> Any:
        """Tokenize expressions; "[PAD]" and other special tokens in them are text."""
        with _TOKENIZING:
            return self.tokenizer(text, **{"split_special_tokens": True, **kwargs})

    def _read_by_position(self, text: str, ids: list[int], spans: list[tuple[int, int]]) -> ReadExpression:
        """Read a text from the (start, end) of its tokens."""
        count, unknown = self._count_read(text, ids), self.tokenizer.unk_token_id
        words = _not_covered(text, [span for span, token in zip(spans, ids, strict=True) if token != unknown])
        known = any(token != unknown for token in self._kept(count, ids))
        if cut := len(spans) > count:
            kept = self._kept(count, spans)
            start, end = min((start for start, _ in kept), default=0), max((end for _, end in kept), default=0)
            text = text[start:end].strip()
        return _as_read(text, words, cut, known)

    def _kept(self, count: int, tokens: list) -> list:
        """The tokens within the limit, `count` of them."""
        return tokens[max(0, len(tokens) - count) :] if self.tokenizer.truncation_side == "left" else tokens[:count]

    def _read_by_word(self, text: str) -> ReadExpression:
        """Read a text with a tokenizer without positions."""

        def tokens(part: str) -> list[int]:
            return self._tokenize(part, add_special_tokens=False, verbose=False)["input_ids"]

        found = [text[start:end] for start, end in word_spans(text)]
        unknown = [word for word in found if not tokens(word) or self.tokenizer.unk_token_id in tokens(word)]
        ids = tokens(text)
        count = self._count_read(text, ids)
        cut = len(ids) > count
        known = any(token != self.tokenizer.unk_token_id for token in self._kept(count, ids))
        words = text.split() if cut else []
        from_the_left = self.tokenizer.truncation_side == "left"
        while words and len(tokens(" ".join(words))) > count:
            words.pop(0 if from_the_left else -1)
        return _as_read(" ".join(words) if cut else text, tuple(dict.fromkeys(unknown)), cut, known)

    def _prepare_images(
        self, images: list[ImageLike], counts: list[int], images_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        pairs = _to_rgb_and_white(images, images_kwargs.pop("input_data_format"))
        upright, whites = [image for image, _ in pairs], [white for _, white in pairs]
        images_kwargs = images_kwargs | self._rescaling(images_kwargs, whites)
        processed = self.image_processor(upright, **images_kwargs)["pixel_values"]
        owner = [index for index, count in enumerate(counts) for _ in range(count)]
        sizes = [(upright[index].height, upright[index].width) for index in owner]
        data: dict[str, Any] = {"pixel_values": processed, "original_sizes": sizes}
        if len(owner) > len(counts):
            data["expressions_per_image"] = counts
        return data

    def _rescaling(self, given: dict[str, Any], whites: list[int]) -> dict[str, Any]:
        """Adapt `do_rescale` and `rescale_factor`, which are for the given numbers, to images from 0 to 255.

        The default factor of the image processor is for 0 to 255; any other is for the given numbers.
        """
        own = self.image_processor
        do_rescale = given.get("do_rescale", own.do_rescale)
        factor = given.get("rescale_factor", own.rescale_factor) if do_rescale else 1.0
        if do_rescale and factor == own.rescale_factor:
            return {"do_rescale": True, "rescale_factor": factor}
        what = f"`rescale_factor={factor}`" if do_rescale else "`do_rescale=False`"
        if len(set(whites)) > 1:
            ranges = " and ".join(f"0 to {white}" for white in sorted(set(whites)))
            raise ValueError(f"{what} needs images of the same range, got {ranges}.")
        if not do_rescale and whites[0] != 1 and given.get("do_normalize", own.do_normalize):
            raise ValueError(
                f"{what} needs images of floats from 0 to 1, got 0 to {whites[0]}; remove it, or add "
                "`do_normalize=False`."
            )
        return {"do_rescale": True, "rescale_factor": factor * whites[0] / 255}

    @staticmethod
    def _prepare_masks(
        masks: list[Any], counts: list[int], data: dict[str, Any], ignore_index: IgnoreIndex
    ) -> list[np.ndarray]:
        """Convert the masks of all expressions to labels of the size of their resized images."""
        shapes = [values.shape[-2:] for values in data["pixel_values"]]
        shapes = [shape for shape, count in zip(shapes, counts, strict=True) for _ in range(count)]
        labels = []
        for values, size, shape in zip(
            to_label_maps(masks, ignore_index), data["original_sizes"], shapes, strict=True
        ):
            if values.shape != size:
                raise ValueError(f"A mask must have the size of its image {size} (height, width), got {values.shape}.")
            labels.append(resize_label_map(values, shape).astype(np.int64))
        return labels

    def post_process_masks(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        threshold: float | None = None,
        *,
        return_probabilities: bool = False,
        largest_part: bool = False,
        presence_threshold: float | None = None,
        instances: bool = False,
        min_area: int | None = None,
    ) -> list[dict[str, Any]]:
        """Convert logits to masks of the original size.

        Args:
            outputs: output of the model, with `logits` (B, 2, H, W), or the logits.
            target_sizes: height and width of each result, such as `inputs["original_sizes"]`; None for (H, W).
            threshold: the mask has the pixels with a probability above this; None for 0.5, as in the paper.
            return_probabilities: whether to return the probabilities of the object.
            largest_part: whether to keep only the largest connected part of each mask.
            presence_threshold: masks are empty if the probability of a target is below this; None for no such masks.
                It needs the output of a model with a presence head.
            instances: whether to return the connected parts of each mask.
            min_area: least area of an instance, in pixels; None for 1. Masks keep smaller parts.

        Returns:
            For each pair: "mask", (height, width) bool; "score", the expected IoU of the mask if the processor has a
            `score_calibration`, otherwise the mean probability of the object in the mask, 0.0 for an empty mask;
            "box", [x_min, y_min, x_max, y_max] in pixels, the maxima exclusive, None for an empty mask; "parts", the
            number of connected parts (also at corners) before `largest_part`; with a presence head "presence", the
            probability of a target; on request "probabilities", (height, width) float32 from 0 to 1, and "instances",
            largest first, with "mask", "box" and "area" (in pixels).

        Raises:
            ValueError: if there are not B sizes, a size or `min_area` is not positive, a threshold is not in (0, 1),
                or logits are NaN.
        """
        logits = _as_logits(outputs)
        options = _ResultOptions(
            threshold, presence_threshold, largest_part, return_probabilities, instances, min_area
        )
        presences = _as_presence(outputs, len(logits), presence_threshold)
        # Only one map is resized: the probability of the object is a sigmoid of the difference of the logits
        margins = (logits[:, 1].float() - logits[:, 0].float()).detach()
        rows = zip(margins, _sizes_of_results(logits, target_sizes), presences, strict=True)
        return [self._result(*row, options) for row in rows]

    def _result(
        self, margin: Tensor, size: tuple[int, ...], presence: float | None, options: "_ResultOptions"
    ) -> dict[str, Any]:
        if margin.shape != size:
            margin = F.interpolate(margin[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        mask = margin > options.margin(presence)
        mask, parts = find_parts(mask) if options.largest_part else (mask, count_parts(mask))
        result = {"mask": mask, "score": self.score(margin, mask, presence), "box": mask_box(mask), "parts": parts}
        if presence is not None:
            result["presence"] = presence
        if options.return_probabilities:
            result["probabilities"] = margin.sigmoid()
        if options.instances:
            result["instances"] = find_instances(mask, options.min_area or 1)
        return result

    def score(self, margin: Tensor, mask: Tensor, presence: float | None = None) -> float:
        """The score of a mask: see `post_process_masks`.

        Args:
            margin: (height, width) float, log-odds of the object at each pixel.
            mask: (height, width) bool.
            presence: probability of a target, of a model with a presence head.
        """
        if not mask.any():
            return 0.0
        if self.score_calibration is None:
            return margin[mask].sigmoid().mean().item()
        return float(apply_calibration(estimate_iou(margin, mask, presence), self.score_calibration))

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: Sequence[tuple[int, int]] | Tensor | None = None
    ) -> list[Tensor]:
        """Convert logits to label maps, like the segmentation processors of Transformers.

        Args:
            outputs: output of the model, with `logits` (B, 2, H, W).
            target_sizes: height and width of each result; None for (H, W).

        Returns:
            B tensors (height, width) int64: 1 for the object, 0 for background.

        Raises:
            ValueError: see `post_process_masks`.
        """
        return [result["mask"].long() for result in self.post_process_masks(outputs, target_sizes)]


__all__ = ["CrossVLTProcessor", "ReadExpression"]
