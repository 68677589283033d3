"""Processor of CrossVLT: images and expressions to tensors, logits back to masks of the original pixels."""

import copy
import math
import operator
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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

from .configuration_crossvlt import AUTO_MAP, copy_code, take_hub_options


ImageLike: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor
IgnoreIndex = int | Literal["auto"] | None
Meaning = Literal["ignored", "object", "absent"] | None

OVERSHOOT = 0.01  # by which floats may leave their range, as rounding and resizing make them
LEAST_OF_16_BITS = 1020  # a picture of 0 to 65535 that nowhere reaches this is black in 8 bits, up to 3
IGNORED = 255
OBJECT_VALUES = (1, 255, 65535)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
BERT_POSITIONS = 512
PRESENCE_THRESHOLD = 0.5  # where a model has a presence head and no other threshold is given
IMAGE_LAYOUTS = ("channels_first", "channels_last", "none")
# Of the library's kinds of arguments, those that this processor reads
MODALITIES = ("text_kwargs", "images_kwargs")
REFUSED_TEXT_KWARGS = {
    "is_split_into_words": "an expression is a text",
    "return_overflowing_tokens": "an expression has one row of tokens",
    "text_pair": "an expression is one text",
    "text_target": "an expression is one text",
    "text_pair_target": "an expression is one text",
}
# Of the library's arguments for images, those that would do nothing here or displace the masks
REFUSED_IMAGE_KWARGS = {
    "do_center_crop": "the model takes the whole image, resized",
    "crop_size": "the model takes the whole image, resized",
    "do_pad": "the model takes the whole image, resized",
    "pad_size": "the model takes the whole image, resized",
    "do_reduce_labels": "masks hold 1 on the object and 0 off it",
    "image_seq_length": "there are no image tokens",
}
# A fast tokenizer keeps padding and truncation as a state, which calls of several threads must not change under way
_TOKENIZING = RLock()


def counted(number: int, noun: str) -> str:
    """A number with its noun, of which more than one end in s: "1 mask", "2 masks"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


class ImageTooLargeError(ValueError):
    """An image has more pixels than `PIL.Image.MAX_IMAGE_PIXELS` allows."""


class ImageDepthError(ValueError):
    """An image has 16 bits, but its values are those of 8 bits, so that it would be nearly black."""


class NothingReadError(ValueError):
    """An expression has no token between [CLS] and [SEP], so that all such expressions would give one mask."""

    def __init__(self, expression: str, where: str = "An expression") -> None:
        super().__init__(
            f"{where} is {expression!r}, of which the tokenizer reads nothing; say which object is meant."
        )
        self.expression = expression


class LossyMaskError(ValueError):
    """A mask is in a file format that does not keep its values."""


def similar_path(path: str) -> str | None:
    """An existing path that differs in letter case, Unicode normalisation or the kind of slash; None without one."""
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
    """Re-raise whatever Pillow raises while it reads a file: its plugins raise any exception on corrupt files.

    Args:
        name: of the file, for the message.
        kind: "image" or "mask", for the message.

    Raises:
        FileNotFoundError: if there is no such file; a file whose name differs only in letter case, Unicode
            normalisation or the kind of slash is named.
        OSError: if it cannot be read.
        ImageTooLargeError: if it is larger than Pillow allows.
        ImageDepthError: if `load_pixels` finds it black.
    """
    try:
        yield
    except FileNotFoundError as error:
        similar = similar_path(name)
        hint = f"did you mean {similar}?" if similar else "check its path."
        raise FileNotFoundError(f"There is no {kind} file {name}; {hint}") from error
    except Image.DecompressionBombError as error:
        message = f"{name} is refused as too large ({error}); raise PIL.Image.MAX_IMAGE_PIXELS."
        raise ImageTooLargeError(message) from error
    except ImageDepthError as error:
        raise ImageDepthError(f"{name}: {error}") from error
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise OSError(f"{name} cannot be read as {'an' if kind == 'image' else 'a'} {kind}: {reason}") from error


def _lower_bytes(image: Image.Image) -> tuple[Image.Image, slice] | None:
    """A picture of the lower 8 of the 16 bits for each colour, if `image` has as many and is not loaded yet.

    Returns:
        The picture, not loaded, and the channels of it that hold colours; None for an image of other depth.
    """
    opened: Any = image
    args = opened.tile[0].args if getattr(image, "tile", None) else ""
    raw, *rest = args if isinstance(args, tuple) else (args,)
    kind, depth, order = str(raw).partition(";16")
    if kind not in ("RGB", "RGBA", "LA") or not depth:
        return None
    # N is the order of the machine
    swapped = "L" if order == "B" or (order == "N" and sys.byteorder == "big") else "B"
    # grey and alpha are four bytes, of which Pillow takes no other order: the second is the lower one of grey
    other = "RGBA" if kind == "LA" else f"{kind};16{swapped}"
    place = opened.fp.tell()
    opened.fp.seek(0)
    lower: Any = Image.open(BytesIO(opened.fp.read()))
    opened.fp.seek(place)
    lower.tile = [tile._replace(args=(other, *rest) if rest else other) for tile in lower.tile]
    return lower, slice(1, 2) if kind == "LA" else slice(0, 3)


def load_pixels(image: Image.Image) -> None:
    """Load the pixels of an opened picture.

    Of 16 bits for each colour Pillow keeps the upper 8, in which a picture of 0 to 255 has nothing.

    Raises:
        ImageDepthError: if it is such a picture; one that is black in all bits is not.
    """
    lower = _lower_bytes(image)
    image.load()
    if lower is None:
        return
    highest = _highest(image, slice(0, 3))
    if highest < LEAST_OF_16_BITS >> 8 and (highest or _highest(*lower)):
        raise ImageDepthError(
            "An image of 16 bits for each colour, of which Pillow keeps the upper 8, holds next to nothing in these "
            "and would be nearly black. It looks like one of 8 bits: save it as such."
        )


def _highest(image: Any, channels: slice) -> int:
    return max(high for _, high in image.getextrema()[channels])


def _upright(image: Image.Image) -> Image.Image:
    """A copy turned as its EXIF orientation says; EXIF data that cannot be read are left out."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # corrupt EXIF data raise as many kinds of errors as corrupt pixels
        return image.copy()


def _read(source: str | Path, timeout: float | None) -> str | Path | BytesIO:
    """What Pillow opens: the path, or the bytes behind a URL."""
    if not str(source).startswith(("http://", "https://", "data:")):
        return source
    request = Request(str(source), headers={"User-Agent": "crossvlt_hf"})  # some servers refuse urllib's own
    with urlopen(request, timeout=timeout) as response:
        return BytesIO(response.read())


def _open(source: str | Path, timeout: float | None, upright: bool) -> Image.Image:
    """The image in a file or behind a URL."""
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
    """(height, width) or (height, width, channels); without a layout, where both could be, a tensor is channels first.

    Args:
        array: with the channels first, last or absent.
        layout: "channels_first", "channels_last" or "none", the library's `input_data_format`.
    """
    values = _to_numpy(array)
    first = isinstance(array, Tensor) if layout is None else layout == "channels_first"
    if layout is None and values.ndim == 3 and (values.shape[0] if first else values.shape[-1]) not in (1, 3, 4):
        first = not first
    if values.ndim == 3 and first:
        values = np.moveaxis(values, 0, -1)
    given = "" if layout is None or (values.ndim == 2) == (layout == "none") else f", but `input_data_format` {layout}"
    if given or values.ndim not in (2, 3) or values.shape[2:] not in ((), (1,), (3,), (4,)) or 0 in values.shape:
        raise ValueError(
            f"An image has shape {tuple(array.shape)}{given}; give (height, width), or 1, 3 or 4 channels "
            "first or last."
        )
    return values[..., 0] if values.shape[2:] == (1,) else values


def _check_numbers(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "buif":
        raise ValueError(f"An image has dtype {values.dtype}; give numbers.")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("An image holds NaN or infinite values; give finite ones.")
    return values


def _decode(image: Any, timeout: float | None, layout: str | None, upright: bool) -> Image.Image | np.ndarray:
    """A PIL image of 8 bits, or numbers whose range is still to be found: (height, width[, channels])."""
    if isinstance(image, np.ndarray | Tensor):
        return _check_numbers(_channels_last(image, layout))
    if isinstance(image, str | Path):
        image = _open(image, timeout, upright)
    elif isinstance(image, Image.Image):
        with opening(str(getattr(image, "filename", "")) or "The image"):
            load_pixels(image)
        image = _upright(image) if upright else image
    else:
        raise ValueError(f"An image is of type {type(image).__name__}; give a path, URL, PIL image, array or tensor.")
    if 0 in image.size:
        raise ValueError(f"An image has size {image.size}; give one of at least one pixel.")
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = _check_numbers(np.asarray(image))  # Pillow would clip these to 255
    hidden = image.info.get("transparency")
    if not isinstance(hidden, int):
        return values
    return np.stack([values] * 3 + [np.where(values == hidden, 0, 65535).astype(values.dtype)], axis=-1)


def _looks_like(low: float, high: float) -> str:
    """What is said of floats that are neither 0 to 1, nor 0 to 255, nor 0 to 65535."""
    if -0.5 < low < 0 and 0.5 < high < 1.5:
        return " It reaches a little beyond 0 to 1, as resizing makes it: clip it."
    if -1.01 <= low < -0.5 and 0 < high <= 1.01:
        return " This looks like an image scaled to -1 to 1: give (x + 1) / 2."
    if low < 0 and high < 4:
        return (
            " This looks like an image that is normalised already: give it as it was before (x * image_std + "
            "image_mean), or give the model itself your `pixel_values`."
        )
    return " Clip or rescale it."


def _is_of_0_to_1(image: np.ndarray) -> bool:
    """Whether floats are an image of 0 to 1, and not a black one of 0 to 255: most values are not whole numbers."""
    seen = image[image != 0]
    return image.max() <= 1 + OVERSHOOT and seen.size > 0 and bool((seen % 1 != 0).mean() > 0.5)


def _check_that_they_are_of_one_range(images: Sequence[np.ndarray]) -> None:
    """Raise ValueError if some floats are 0 to 1 and others 0 to 255: one reading cannot be right for both."""
    if images[0].dtype.kind != "f" or max(float(image.max()) for image in images) <= 1 + OVERSHOOT:
        return
    small = [number for number, image in enumerate(images, start=1) if _is_of_0_to_1(image)]
    if small:
        raise ValueError(
            f"The images of a call must be of one range, but of {len(images)} of floats number {small[0]} holds 0 to "
            "1, and others larger values; give all as 0 to 1, or all as 0 to 255."
        )


def _find_white(images: Sequence[np.ndarray]) -> int:
    """What stands for white in numbers of one kind, floats or integers, that are judged together: 1, 255 or 65535.

    Floats between the ranges, as an image has that was normalised or overshoots its range, would give a black picture.

    Raises:
        ValueError: if the numbers fit no range.
    """
    floats = images[0].dtype.kind == "f"
    low = min(float(image.min()) for image in images)
    # the alpha channel of integers may be that of Pillow's transparent value, which says nothing of the colours
    high = max(float((image if floats or image.max() > 65535 else _colours(image)).max()) for image in images)
    _check_that_they_are_of_one_range(images)
    slack = OVERSHOOT if floats else 0
    if low >= -slack:
        if floats and high <= 1 + slack:
            return 1
        # a photo of 0 to 255 reaches more than this, unless it was made of integers
        if high <= 255 + slack and (not floats or high >= 4 or all((image % 1 == 0).all() for image in images)):
            return 255
        if LEAST_OF_16_BITS <= high <= 65535:
            return 65535
    shown = (low, high) if floats else (int(low), int(high))
    raise ValueError(
        f"An image holds values from {shown[0]} to {shown[1]}; give 0 to 1, 0 to 255 or (16 bits) 0 to 65535."
        + (_looks_like(low, high) if floats else " Clip or rescale it.")
    )


def _check_that_16_bits_are_used(images: Sequence[np.ndarray]) -> None:
    """Raise ImageDepthError if uint16 images, judged together, hold those of 8 bits; black ones are right so."""
    high = max(int(_colours(image).max()) for image in images)
    if 0 < high < LEAST_OF_16_BITS:
        clip = "" if high <= 255 else ".clip(0, 255)"
        raise ImageDepthError(
            f"An image of 16 bits holds nothing above {high} of 65535 and would be nearly black. It looks like one of "
            f'8 bits: give `image{clip}.astype("uint8")`; if it really is so dark, `image / 65535`.'
        )


def _colours(values: np.ndarray) -> np.ndarray:
    """The channels of (height, width[, channels]) but for alpha."""
    return values[..., :3] if values.shape[2:] == (4,) else values


def _whites(decoded: Sequence[Image.Image | np.ndarray]) -> list[int]:
    """What stands for white in each of the images of a call; those whose dtype does not say are judged together."""
    known = {"?": 1, "B": 255, "H": 65535}
    kinds = ["B" if isinstance(image, Image.Image) else image.dtype.char for image in decoded]
    kinds = [kind if kind in known else "f" if kind in "efdg" else "i" for kind in kinds]
    of_kind: Any = {kind: [image for image, own in zip(decoded, kinds, strict=True) if own == kind] for kind in kinds}
    for kind in of_kind.keys() - known.keys():
        known[kind] = _find_white(of_kind[kind])
    if "H" in of_kind:
        _check_that_16_bits_are_used(of_kind["H"])
    return [known[kind] for kind in kinds]


def _on_white(image: Image.Image) -> Image.Image:
    """8-bit RGB of an 8-bit image of any mode; what is transparent shows white."""
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())  # with premultiplied alpha Pillow converts to nothing else
    if not image.has_transparency_data:
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")


def _paint(decoded: Image.Image | np.ndarray, white: int) -> Image.Image:
    """8-bit RGB of what `_decode` gives."""
    if isinstance(decoded, Image.Image):
        return _on_white(decoded)
    if decoded.dtype != np.uint8:
        decoded = np.round(decoded.astype(np.float64).clip(0, white) * (255 / white)).astype(np.uint8)
    return _on_white(Image.fromarray(decoded))


def to_rgb(image: ImageLike, timeout: float | None = 60.0, *, upright: bool = True) -> Image.Image:
    """Turn whatever shows an image into an 8-bit RGB image, upright as its EXIF orientation says.

    Args:
        image: a path, a URL (http, https, data), a PIL image of any mode, or an array or tensor with the channels
            first, last or absent. Its numbers may be bool, 0 to 1 (floats), 0 to 255, or 0 to 65535, with a maximum of
            at least 1020 unless it is uint16 and black. What is transparent shows white; of an animation it is the
            first picture.
        timeout: seconds to wait for the server of a URL; None waits for ever.
        upright: whether to apply the EXIF orientation.

    Raises:
        OSError: if a file or URL cannot be reached or is not an image.
        ValueError: if an array is not an image (such as normalised values), or an image is larger than Pillow allows.
        ImageDepthError: if an image of 16 bits holds one of 8 bits, which would be nearly black.
    """
    return _to_rgb_and_white([image], timeout=timeout, upright=upright)[0][0]


def to_rgb_together(images: Sequence[ImageLike], timeout: float | None = 60.0) -> list[Image.Image]:
    """The same for images that belong together: the range of their numbers is judged of all at once.

    A dark image of 0 to 255 may hold nothing above 1, which alone would make it a bright one of 0 to 1, and one of 16
    bits nothing above 255.
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
    """Whether (height, width, channels) hold nothing but the values that masks have."""
    return bool((values == values[..., :1]).all() and np.isin(values, (0, *OBJECT_VALUES)).all())


def _alpha_is_the_mask(colours: np.ndarray, shown: np.ndarray) -> bool:
    """Whether colours are no mask themselves: one is seen, and what is hidden does not look like the object."""
    if (colours == colours[:1, :1]).all():
        return True
    visible, hidden = colours[shown], colours[~shown]
    if _is_a_mask(colours) or not len(hidden) or (visible != visible[0]).any() or not visible[0].any():
        return False
    two = hidden.any() and not (hidden != hidden[0]).any() and not _is_a_mask(visible[None])
    return not two and not (hidden == visible[0]).all(-1).any()


def _without_alpha(values: np.ndarray) -> np.ndarray:
    """The channels of a mask that hold it: the colours, or the alpha channel if the colours hold none.

    Raises:
        ValueError: if the two contradict each other.
    """
    colours, alpha = values[..., :-1], values[..., -1]
    shown = alpha != 0
    if (alpha == alpha.flat[0]).all():
        return colours
    if _alpha_is_the_mask(colours, shown):
        # true or false, as what is seen is the object, and not ignored, whatever 255 means elsewhere
        return shown if np.isin(alpha, (0, *OBJECT_VALUES)).all() else alpha
    if (shown == colours.any(-1)).all():
        return colours
    listed = [np.unique(colours[where].reshape(-1, colours.shape[-1]), axis=0).tolist() for where in (shown, ~shown)]
    seen, hidden = (", ".join(str(each[0] if len(set(each)) == 1 else each) for each in part[:4]) for part in listed)
    raise ValueError(
        f"A mask has varying transparency that contradicts its colours: it shows {seen} and hides "
        f"{hidden or 'nothing'}, so that either could be the object. Save the mask without transparency, or give one "
        "of the two: the colours, such as `mask.convert('RGB')`, or the alpha channel, such as "
        "`mask.convert('RGBA').getchannel('A')`."
    )


def _palette_values(image: Image.Image, ignored: int | None) -> tuple[np.ndarray, bool]:
    """The (height, width) numbers of a palette image, and whether they are labels, of which 255 is ignored.

    They are the indices, unless the palette makes a picture in black and white of them: then true where it is white,
    or 1 if that is the index 1. A palette that shows all that is used in one colour, or has no colour for it, says
    nothing. One of greys that are equal to their indices is like no palette.

    Raises:
        ValueError: if index 0 is shown as a colour of its own and not black, so that the object could be either.
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
            f"A mask has a palette that shows index 0 as the colour {judged[0]}, not black, so that the object "
            "could be either; give a mask in black and white, or an array with 1 on the object."
        )
    return indices, True


def _picture_values(image: Image.Image, ignored: int | None) -> tuple[np.ndarray, bool]:
    """The numbers in a PIL image, and whether they are labels of a palette."""
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
        raise ValueError(f"A mask has mode {image.mode}; give one of 1, L, LA, P, RGB, RGBA or I;16.")
    values = np.asarray(image)
    if image.mode.startswith("I") and isinstance(hidden, int):
        values = np.stack([values, (values != hidden).astype(values.dtype)], axis=-1)
    return values, False


def check_mask_format(image: Image.Image) -> None:
    """Raise LossyMaskError if a picture that Pillow opened is a JPEG, whatever the name of its file is."""
    if image.format in ("JPEG", "MPO"):
        raise LossyMaskError(
            "A mask is a JPEG, whose compression smears the values of masks; save masks as PNG, of a JPEG "
            "that cannot be made again as `mask.convert('L').point(lambda value: 255 * (value > 127))`."
        )


def _mask_values(mask: Any, ignored: int | None = None) -> tuple[np.ndarray, bool]:
    """The (height, width) numbers of a mask in any form, and whether they are labels, of which 255 is ignored.

    Args:
        mask: see `to_label_map`.
        ignored: the value that is said to be ignored, which no picture in black and white is made of.
    """
    if not isinstance(mask, Image.Image | np.ndarray | Tensor):
        raise ValueError(f"A mask is of type {type(mask).__name__}; give a PIL image, array or tensor.")
    values, labels = _picture_values(mask, ignored) if isinstance(mask, Image.Image) else (_to_numpy(mask), False)
    shape = values.shape
    if values.dtype.kind not in "buif":
        raise ValueError(f"A mask has dtype {values.dtype}; its values must be numbers.")
    if 0 in shape:
        raise ValueError(f"A mask has shape {shape}; give (height, width).")
    if values.ndim == 3 and 1 in (shape[0], shape[-1]):
        values = values.squeeze(0 if shape[0] == 1 else -1)
    if values.ndim == 3 and shape[0] in (2, 3, 4) and shape[-1] not in (2, 3, 4):
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[-1] in (2, 4):
        values = _without_alpha(values)
    if values.ndim == 3 and (values == values[..., :1]).all():
        values = values[..., 0]
    if values.ndim != 2:
        raise ValueError(f"A mask has shape {shape}, and not one value for each pixel; give (height, width).")
    return values, labels


def _unknown_values(found: list, levels: list) -> str:
    """What is said of a mask whose values do not say what is the object.

    Args:
        found: all of its values, in order.
        levels: those but 0 and what is ignored: more than one, or one that the object does not have.
    """
    shown = f"[{', '.join(map(str, found[:8]))}{', ...' if len(found) > 8 else ''}]"
    wanted = f"A mask holds the values {shown}; give 0 and 1, 0 and 255 (16 bits: 65535), or 0, 1 and 255."
    if any(level != level for level in levels):
        return f"{wanted} NaN is no value of a mask."
    if len(found) > 8:
        return f"{wanted} This looks like a soft or lossily compressed mask: give `mask > threshold`."
    if set(levels) <= {1, IGNORED}:
        return f"{wanted} Here {IGNORED} is not said to be ignored: give `ignore_index={IGNORED}`, or `mask != 0`."
    odd = next(level for level in reversed(levels) if level not in (1, IGNORED))
    whole = float(odd).is_integer()
    ignore = f"; if it is to be ignored, `ignore_index={int(odd)}`" if whole else ""
    return f"{wanted} If {odd} is the object, give `mask == {odd}`{ignore}."


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
    """What says which value of a mask is ignored: an int (of whatever kind of integer), None or "auto".

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
        raise ValueError(f"`ignore_index` must be a whole number but 0 and 1, None or 'auto', got {ignore_index!r}.")
    return whole


def _meaning_of_255(values: np.ndarray, labels: bool) -> Meaning:
    found = set(np.unique(values).tolist())
    if IGNORED in found:
        return "ignored" if labels or 1 in found else "object"
    return "absent" if 1 in found and values.dtype.kind in "ui" else None


def meaning_of_255(mask: Any) -> Meaning:
    """What "auto" takes 255 for in the numbers of a mask.

    Returns:
        "ignored", "object"; "absent" where the object is 1 and 255 does not occur, so that it would be ignored; None
        where nothing says so, as in masks that are black, or true and false.
    """
    return _meaning_of_255(*_mask_values(mask))


def check_meaning_of_255(found: Iterable[tuple[Meaning, str]]) -> None:
    """Check that 255 means the same in all masks that belong together.

    Without this check a mask of ignored pixels only would become an object, beside others in which the object is 1.

    Args:
        found: what `meaning_of_255` says of each mask, and what to call it.

    Raises:
        ValueError: if 255 could be the object in one mask, and is ignored, or would be, in another.
    """
    seen: dict[Meaning, str] = {}
    for meaning, name in found:
        seen.setdefault(meaning, name)
    if "object" not in seen or not seen.keys() & {"ignored", "absent"}:
        return
    if "ignored" in seen:
        raise ValueError(
            f"255 must mean the same in all masks: in {seen['ignored']} it is ignored, as a 1 beside it or a palette "
            f"says, but nothing in {seen['object']} says so, and it could be the object. Give `ignore_index=255` if "
            "it is ignored in all of them, or save masks of 0 and 1."
        )
    raise ValueError(
        f"255 must mean the same in all masks: in {seen['absent']} the object is 1, so that 255 in {seen['object']} "
        "could be the object or ignored. Give `ignore_index=None` if it is the object, `ignore_index=255` if it is "
        "ignored."
    )


def to_label_maps(masks: Sequence[Any], ignore_index: IgnoreIndex = "auto") -> list[np.ndarray]:
    """The same as `to_label_map` for masks that belong together: "auto" judges all of them at once.

    Raises:
        ValueError: also if the object is 1 in one mask, and 255, which could be ignored too, in another.
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
    """Turn a mask into (height, width) uint8: 1 on the object, 0 off it, 255 ignored.

    Args:
        mask: PIL image, array or tensor. The object has the value 1, 255 or (16 bits) 65535, and everything else 0.
            The values of a palette image are its indices (VOC and DAVIS: 1 on the object, 255 ignored), but if all of
            it is black and white, what is seen: the object is white. An alpha channel that varies is the mask if the
            colours hold none, and may otherwise hide what is black; one that contradicts the colours is refused. A
            JPEG is refused, as it does not keep values.
        ignore_index: the value of pixels to ignore, whatever else the mask holds; None ignores nothing. "auto" ignores
            255 in palette indices, and where the mask also holds 1; otherwise 255 is the object. So a mask of 0 and
            255 that belongs to others with 0, 1 and 255 needs `ignore_index=255` (or `to_label_maps`).

    Raises:
        ValueError: if it is not two-dimensional, or its values do not say what is the object.
        OSError: if the file of a PIL image is corrupt.
    """
    return to_label_maps([mask], ignore_index)[0]


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


def says_nothing(text: str) -> bool:
    """Whether nothing of a text is seen: only spaces, control and zero-width characters, and accents of no letter."""
    kinds = map(unicodedata.category, text)
    return all(kind[0] in "ZM" or kind in ("Cc", "Cf") for kind in kinds)


def check_that_something_is_read(tokenizer: Any, expressions: Sequence[str], input_ids: Any) -> None:
    """See that every expression has a token.

    Args:
        tokenizer: that has read them.
        expressions: as they were written.
        input_ids: a row of token ids for each, with [CLS] and [SEP], padded or not; or the only row.

    Raises:
        NothingReadError: if a row has none but those that the tokenizer adds to every expression.
    """
    rows = input_ids.tolist() if isinstance(input_ids, np.ndarray | Tensor) else input_ids
    rows = rows if isinstance(rows[0], list | tuple) else [rows]
    added = tokenizer.num_special_tokens_to_add()
    for expression, row in zip(expressions, rows, strict=True):
        if len(row) <= added or all(token == tokenizer.pad_token_id for token in row[added:]):
            raise NothingReadError(expression)


def _as_expressions(text: Any) -> list[str] | list[list[str]]:
    """Check the nesting of expressions: one, a list, or a list of lists."""
    entries = [text] if isinstance(text, str) else list(text) if isinstance(text, list | tuple) else None
    if not entries:
        raise ValueError(f"`text` is {text!r}; give an expression or a list of expressions.")
    nested = [isinstance(entry, list | tuple) for entry in entries]
    if any(nested) and not all(nested):
        raise ValueError("`text` mixes expressions and lists of expressions; give one kind.")
    for expression in _flat(entries):
        if not isinstance(expression, str) or says_nothing(expression):
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
        unknown_words: words of the whole expression that the vocabulary does not know, each once, in their order; of
            signs without a word, none of which it knows, all of what is read.
        cut: whether the expression is longer than the limit.
        known: whether the vocabulary knows anything of what is read; otherwise all such expressions give one mask.
    """

    text_read: str
    unknown_words: tuple[str, ...]
    cut: bool
    known: bool = True


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


def _as_read(text: str, words: tuple[str, ...], cut: bool, known: bool) -> ReadExpression:
    """What is read; signs of which the vocabulary knows none stand for the words that an expression lacks."""
    return ReadExpression(text, words if words or known else (text.strip(),), cut, known)


def reading_note(expression: str, read: ReadExpression) -> str | None:
    """A sentence on what a model does not read of an expression; None if it reads all of it."""
    notes = []
    if read.unknown_words:
        words = ", ".join(map(repr, read.unknown_words))
        nothing = "" if read.known else ", so that nothing of it is read"
        notes.append(f"the vocabulary does not know {words}{nothing}")
    if read.cut:
        notes.append(f"it is too long, and only {read.text_read!r} is read")
    return f"The expression {expression!r} is not read as it is: {'; '.join(notes)}." if notes else None


def _not_covered(text: str, known: list[tuple[int, int]]) -> tuple[str, ...]:
    """The words of a text of which a character lies in no known token's (start, end)."""
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
            f"`text` must have an expression or a list of them for each image, got {counted(num_images, 'image')} and "
            f"{counted(len(groups), 'expression or list')}."
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
    """One mask for each expression; `counts` says how many expressions each image has."""
    if not isinstance(masks, list | tuple):
        shape = tuple(getattr(masks, "shape", (0, 0)))
        batch = len(shape) == 4 or (len(shape) == 3 and (shape[0] == sum(counts) or shape[-1] not in (1, 3, 4)))
        masks = list(masks) if batch else [masks]
    nested = any(isinstance(entry, list | tuple) for entry in masks)
    if nested and [len(entry) if isinstance(entry, list | tuple) else 1 for entry in masks] != counts:
        raise ValueError("`segmentation_maps` is not nested as `text`; give each image as many masks as expressions.")
    flat = _flat(list(masks))
    if len(flat) != sum(counts):
        raise ValueError(
            f"There must be one mask for each expression, got {counted(sum(counts), 'expression')} and "
            f"{counted(len(flat), 'mask')}."
        )
    return flat


def check_threshold(threshold: float | None, name: str = "threshold") -> None:
    """Raise ValueError unless it is None or a probability above 0 and below 1."""
    if threshold is not None and not (isinstance(threshold, Real) and 0 < threshold < 1):
        raise ValueError(f"`{name}` is {threshold!r}; give a probability above 0 and below 1.")


def resolve_presence_threshold(threshold: Any, has_head: bool) -> float | None:
    """What stands for "auto": 0.5 for a model with a presence head, None for another.

    Raises:
        ValueError: if it is neither "auto" nor None nor a probability, or a probability for a model without the head.
    """
    if isinstance(threshold, str) and threshold == "auto":
        return PRESENCE_THRESHOLD if has_head else None
    check_threshold(threshold, "presence_threshold")
    if threshold is not None and not has_head:
        raise ValueError(
            f"`presence_threshold` is {threshold}, but the model has no presence head (`config.presence_head`); leave "
            "it out."
        )
    return threshold


def check_min_area(instances: bool, min_area: int | None) -> None:
    """Raise ValueError unless it is None or, where instances are asked for, a whole number of pixels above 0."""
    if min_area is None:
        return
    if isinstance(min_area, bool) or not isinstance(min_area, int) or min_area < 1:
        raise ValueError(f"`min_area` must be a number of pixels of at least 1, got {min_area!r}.")
    if not instances:
        raise ValueError(f"`min_area` is {min_area}, but `instances` False; ask for the instances, or leave it out.")


def mask_box(mask: Tensor) -> list[int] | None:
    """[x_min, y_min, x_max, y_max] of a (H, W) bool mask, in pixels, the maxima exclusive; None if it is empty."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    if len(rows) == 0:
        return None
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def _join(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The component, 0, 1, ..., of each of `count` things, of which `first[i]` and `second[i]` are connected."""
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

    Written here since neither torch, numpy nor Pillow labels components and SciPy is not needed for anything else.
    The runs of pixels in each row are joined with those that they touch in the next, also at a corner.

    Args:
        mask: (height, width) bool.

    Returns:
        (height, width) bool, on the same device, and the number of parts.
    """
    labels = label_parts(mask)
    areas = labels.flatten().bincount()[1:]
    return (labels == areas.argmax() + 1, len(areas)) if len(areas) else (mask, 0)


def find_instances(mask: Tensor, min_area: int = 1) -> list[dict[str, Any]]:
    """The connected parts of a mask, the largest first.

    Args:
        mask: (height, width) bool.
        min_area: smaller parts are left out, in pixels.

    Returns:
        For each part "mask", (height, width) bool, "box", as `mask_box` gives it, and "area" in pixels.
    """
    labels = label_parts(mask)
    areas = labels.flatten().bincount()[1:].tolist()
    order = sorted((number for number, area in enumerate(areas) if area >= min_area), key=lambda n: -areas[n])
    masks = [labels == number + 1 for number in order]
    return [
        {"mask": part, "box": mask_box(part), "area": areas[number]} for part, number in zip(masks, order, strict=True)
    ]


def label_parts(mask: Tensor) -> Tensor:
    """The connected parts of a (height, width) bool mask, as (height, width) int64: 1, 2, ... and 0 off the mask."""
    labels = torch.zeros_like(mask, dtype=torch.int64)
    if (box := mask_box(mask)) is not None:
        left, top, right, bottom = box
        inside = _label_parts(mask[top:bottom, left:right].detach().cpu().numpy())
        labels[top:bottom, left:right] = torch.from_numpy(inside).to(mask.device)
    return labels


def _label_parts(mask: np.ndarray) -> np.ndarray:
    """`label_parts` of what is not empty."""
    height, width = mask.shape
    row = width + 2  # so that the runs of two rows never touch in the flattened mask
    flat = np.zeros(height * row + 1, dtype=np.int8)
    flat[:-1].reshape(height, row)[:, 1:-1] = mask
    steps = np.diff(flat)
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)  # of the runs; the ends are exclusive
    lower = np.searchsorted(ends, starts + row, side="left")
    upper = np.searchsorted(starts, ends + row, side="right")
    touching = np.maximum(upper - lower, 0)
    above = np.repeat(np.arange(len(starts)), touching)
    below = np.arange(touching.sum()) + np.repeat(lower - np.cumsum(touching) + touching, touching)
    parts = _join(len(starts), above, below)
    steps = np.zeros(len(flat), dtype=np.int64)
    steps[starts + 1], steps[ends + 1] = parts + 1, -(parts + 1)
    return np.cumsum(steps)[:-1].reshape(height, row)[:, 1:-1]


def _as_logits(outputs: Any) -> Tensor:
    """The (B, 2, H, W) logits of an output of the model, checked."""
    if isinstance(outputs, tuple):
        raise ValueError("`outputs` is a tuple; call the model without `return_dict=False`.")
    if not isinstance(outputs, Tensor):
        outputs = outputs["logits"] if isinstance(outputs, dict) else outputs.logits
    logits: Tensor = outputs
    if logits.ndim != 4 or logits.shape[1] != 2 or 0 in logits.shape[2:] or not logits.is_floating_point():
        raise ValueError(
            f"The logits have shape {tuple(logits.shape)} and dtype {logits.dtype}; give floats (B, 2, H, W)."
        )
    if logits.isnan().any():
        raise ValueError("The logits hold NaN: the weights or the image are broken, and there is no mask in them.")
    return logits


def _as_presence(outputs: Any, pairs: int, threshold: float | None) -> list[float] | None:
    """The probability that something fits each of the pairs; None if the output does not say it."""
    check_threshold(threshold, "presence_threshold")
    found = outputs.get("presence_logits") if isinstance(outputs, dict) else getattr(outputs, "presence_logits", None)
    if found is None and threshold is not None:
        raise ValueError(
            f"`presence_threshold` is {threshold}, but there are no `presence_logits`: give the whole output of a "
            "model with a presence head (`config.presence_head`), or None."
        )
    if found is None:
        return None
    if found.shape != (pairs,) or found.isnan().any():
        raise ValueError(f"The presence logits must be {counted(pairs, 'number')}, one for each pair, got {found}.")
    return found.float().sigmoid().tolist()


def estimate_iou(margin: Tensor, mask: Tensor) -> float:
    """What a model that is as sure as it should be expects of a mask: expected intersection over expected union.

    Args:
        margin: (height, width) float, the log-odds of the object at each pixel.
        mask: (height, width) bool.

    Returns:
        0 to 1; 0 for an empty mask.
    """
    probability = margin.sigmoid()
    inside, outside = probability[mask].sum(), probability[~mask].sum()
    return float(inside / (mask.sum() + outside)) if mask.any() else 0.0


def check_calibration(points: Any) -> list[list[float]] | None:
    """The points of a score calibration, checked: see `CrossVLTProcessor`.

    Raises:
        ValueError: if they are not pairs of shares, the first of which rise and the second of which do not fall.
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


def _check_text_kwargs(text_kwargs: dict[str, Any]) -> None:
    """Raise ValueError for arguments of the tokenizer with which expressions and rows no longer belong together."""
    for name, reason in REFUSED_TEXT_KWARGS.items():
        if text_kwargs.get(name) not in (None, False):
            raise ValueError(f"`{name}` is not supported: {reason}.")
    if not text_kwargs.get("add_special_tokens", True):
        raise ValueError("`add_special_tokens=False` is not supported: the model reads the sentence at [CLS].")
    if isinstance(longest := text_kwargs.get("max_length"), int) and longest < 3:
        raise ValueError(f"`max_length` must leave room for a word between [CLS] and [SEP], 3 or more, got {longest}.")


class CrossVLTProcessor(ProcessorMixin):
    """Image processor and BERT tokenizer of CrossVLT in one.

    Args:
        image_processor: `SegformerImageProcessor`, which squashes to a square, 480x480 in the paper.
        tokenizer: the tokenizer of the language encoder.
        score_calibration: [estimate, expected IoU] points, both rising from 0 to 1, which `crossvlt evaluate
            --calibrate` fits. With them a score is the expected IoU of the mask: what lies between the points is
            interpolated, from what `estimate_iou` gives, times the presence. None keeps the mean probability.
        ignore_index: the value of pixels to ignore in masks, where a call says nothing else: see `to_label_map`.

    An expression has at most `max_length` tokens, [CLS] and [SEP] included: the tokenizer's `model_max_length`, or the
    paper's 21 where that is 512 or more (BERT's positions). Longer ones are cut (and keep their [SEP], which the
    authors' code cuts off), shorter ones are padded.

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
        self.score_calibration = check_calibration(score_calibration)
        self.ignore_index = ignore_index

    def __setattr__(self, name: str, value: Any) -> None:
        """Check `ignore_index` whenever it is set. The library allows no property of the name of an argument."""
        super().__setattr__(name, check_ignore_index(value) if name == "ignore_index" else value)

    @property
    def max_length(self) -> int:
        """The most tokens of an expression, [CLS] and [SEP] included."""
        # where version 0.1 kept it
        length = self.tokenizer.init_kwargs.get("max_length") or self.tokenizer.model_max_length
        return int(length) if length < BERT_POSITIONS else 21

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width to which images are resized.

        Raises:
            ValueError: if the image processor keeps the aspect ratio, so that there is no one size.
        """
        size = dict(self.image_processor.size)
        if not (size.get("height") and size.get("width")):
            raise ValueError(f"The image processor's `size` must have height and width, got {size}.")
        return int(size["height"]), int(size["width"])

    @property
    def text_kwargs(self) -> dict[str, Any]:
        """Defaults of the tokenizer's arguments, which `ProcessorMixin` reads."""
        return {"padding": "max_length", "truncation": True, "max_length": self.max_length}

    @classmethod
    def from_tokenizer(
        cls, tokenizer: PreTrainedTokenizerBase, image_size: int | tuple[int, int] = 480, max_length: int = 21
    ) -> "CrossVLTProcessor":
        """A processor with the paper's image processing.

        Args:
            tokenizer: the tokenizer of the language encoder.
            image_size: the side, or height and width, to which images are squashed.
            max_length: the most tokens of an expression; it becomes `model_max_length` of the processor's copy of the
                tokenizer.

        Raises:
            ValueError: if `max_length` leaves no room for a word or reaches 512, or the size is not positive.
        """
        if not 3 <= max_length < BERT_POSITIONS:
            raise ValueError(
                f"`max_length` is {max_length}; give at least 3, for [CLS], a word and [SEP], and at most "
                f"{BERT_POSITIONS - 1}."
            )
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
            raise ValueError(f"`image_size` is {image_size!r}; give the side, or height and width, in pixels.")
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.init_kwargs.pop("max_length", None)
        tokenizer.model_max_length = max_length
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
        own = {"ignore_index": self.ignore_index, "auto_map": {"AutoProcessor": AUTO_MAP["AutoProcessor"]}}
        return {**super().to_dict(), **own}

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Save the processor and, so that the folder is loadable without this package, its code.

        Args:
            save_directory: folder; it is made where there is none.
            push_to_hub: whether to upload what was saved.
            kwargs: see [`ProcessorMixin.save_pretrained`], and of `push_to_hub`.
        """
        options = take_hub_options(save_directory, kwargs) if push_to_hub else {}
        copy_code(save_directory)
        files = super().save_pretrained(str(save_directory), **kwargs)
        if push_to_hub:
            self.push_to_hub(**options)
        return files

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
            images: an image (see `to_rgb` for what may be one), a list of them, or a batch (B, C, H, W). Whether
                floats are 0 to 1 or 0 to 255 is judged of all images together.
            text: for one image, an expression or a list of them; for a list of images, a list with an expression, or a
                list of expressions, for each (or one expression for all).
            segmentation_maps: a mask (see `to_label_map`) for each expression, nested as `text` or in one flat list,
                each of its image's size.
            kwargs: `ignore_index`, the value of pixels to ignore in the masks: None for no such value; "auto", the
                default, takes 255, if any of the masks also holds 1 or has a palette: see `to_label_map`. Others are
                the image processor's and the tokenizer's, such as `size`, `resample`, `do_rescale`, `rescale_factor`,
                `do_normalize`, `image_mean`, `image_std`, `input_data_format`, `max_length`, `padding`,
                `return_tensors`, `device`; also as `images_kwargs` and `text_kwargs`. `rescale_factor` multiplies the
                numbers as they are given; `do_rescale=False` says that they are 0 to 1. What cannot be done (cropping,
                padding, other layouts than the model's) is refused.

        Returns:
            pixel_values (images, 3, 480, 480) float32, each image once; input_ids, token_type_ids and attention_mask
            (B, 21) int64; original_sizes (B, 2) int64: height and width of the (upright) image of each expression;
            labels (B, 480, 480) int64: 1 on the object, 0 off it, 255 ignored; where an image has several expressions,
            expressions_per_image (images,) int64: how many, which the model needs to know.

        Raises:
            OSError: if an image file is missing or is not an image.
            ValueError: if numbers of images, expressions and masks differ, one of them is not what it should be, or an
                argument is unknown or cannot be honoured.
        """
        if images is None and text is None:
            raise ValueError("You need to provide at least one input: give `images`, `text` or both.")
        if images is None and segmentation_maps is not None:
            raise ValueError("There are `segmentation_maps` but no `images`; give both.")
        text_kwargs, images_kwargs, ignore_index = self._sort_kwargs(kwargs)
        device = images_kwargs.pop("device", None)
        data: dict[str, Any] = {}
        groups = None if text is None else self._group(images, text)
        if groups is not None:
            said = text if images is None and isinstance(text, str) else _flat(groups)
            data |= self._tokenize(said, **text_kwargs)
            check_that_something_is_read(self.tokenizer, _flat([said]), data["input_ids"])
        if images is not None:
            entries = _as_images(images)
            counts = [1] * len(entries) if groups is None else [len(group) for group in groups]
            data |= self._prepare_images(entries, counts, images_kwargs)
            if segmentation_maps is not None:
                shapes = [values.shape[-2:] for values in data["pixel_values"]]
                shapes = [shape for shape, count in zip(shapes, counts, strict=True) for _ in range(count)]
                masks = to_label_maps(_as_masks(segmentation_maps, counts), ignore_index)
                data["labels"] = list(map(self._prepare_mask, masks, data["original_sizes"], shapes))
        features = BatchFeature(data, tensor_type=text_kwargs.get("return_tensors"))
        return features if device is None else features.to(device)

    @staticmethod
    def _group(images: Any, text: Any) -> list[list[str]]:
        """The expressions of each image, or all in one group without images."""
        if images is not None:
            return pair_expressions(len(_as_images(images)), text)
        expressions = _flat(_as_expressions(text))
        if not expressions:
            raise ValueError(f"`text` is {text!r}, without an expression; give at least one.")
        return [expressions]

    def _sort_kwargs(self, kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], IgnoreIndex]:
        """The arguments of the tokenizer and of the image processor, checked, and `ignore_index`."""
        ignore_index = check_ignore_index(kwargs.pop("ignore_index", self.ignore_index))
        self._check_names(kwargs)
        try:
            merged = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(" ".join(str(error).split())) from error
        text_kwargs, images_kwargs = merged["text_kwargs"], merged["images_kwargs"]
        if text_kwargs.get("padding_side", self.tokenizer.padding_side) != "right":
            raise ValueError("`padding_side` is 'left', but [CLS] has to come first; give 'right'.")
        _check_text_kwargs(text_kwargs)
        kind, other = images_kwargs.pop("return_tensors", None), text_kwargs.get("return_tensors")
        if kind is not None and other is not None and kind != other:
            raise ValueError(f"`return_tensors` must be one for images and text, got {kind!r} and {other!r}.")
        text_kwargs["return_tensors"] = other if kind is None else kind
        if images_kwargs.get("device") is not None and text_kwargs["return_tensors"] not in ("pt", TensorType.PYTORCH):
            raise ValueError("`device` needs `return_tensors='pt'`.")
        return text_kwargs, self._check_images_kwargs(images_kwargs), ignore_index

    def _check_names(self, kwargs: Any) -> None:
        """Raise ValueError if an argument is unknown, which the library only warns of."""
        kinds = {
            name: kind for name, kind in self.valid_processor_kwargs.__annotations__.items() if name in MODALITIES
        }
        known = {name for kind in kinds.values() for name in getattr(kind, "__annotations__", {})}
        known |= {*kinds, "common_kwargs", *self.image_processor.valid_kwargs.__annotations__}
        nested = {
            name for kind in (*kinds, "common_kwargs") if isinstance(kwargs.get(kind), dict) for name in kwargs[kind]
        }
        if unknown := sorted((kwargs.keys() | nested) - known):
            raise ValueError(
                f"`{unknown[0]}` must be an argument of the image processor or tokenizer, and is not one."
            )

    @staticmethod
    def _check_images_kwargs(images_kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments that are not None, in the library's words; those that cannot be honoured are refused."""
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
                f"`data_format` must be 'channels_first', as the model reads it, got {layouts['data_format']!r}."
            )
        if layouts["input_data_format"] not in (None, *IMAGE_LAYOUTS):
            raise ValueError(
                f"`input_data_format` must be one of {', '.join(IMAGE_LAYOUTS)}, got {layouts['input_data_format']!r}."
            )
        return {**given, "input_data_format": layouts["input_data_format"]}

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
            NothingReadError: if the tokenizer finds no token in one, such as one of damaged characters.
        """
        expressions = _flat(_as_expressions(texts)) if len(texts) else []
        if not expressions:
            return []
        lengths = [sum(mask) for mask in self(text=expressions, return_attention_mask=True)["attention_mask"]]
        room = [length - self.tokenizer.num_special_tokens_to_add() for length in lengths]
        if not self.tokenizer.is_fast:
            return [self._read_by_word(text, count) for text, count in zip(expressions, room, strict=True)]
        whole = self._tokenize(expressions, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        parts = zip(expressions, room, whole["input_ids"], whole["offset_mapping"], strict=True)
        return [self._read_by_position(*part) for part in parts]

    def _tokenize(self, text: str | list[str], **kwargs: Any) -> Any:
        with _TOKENIZING:
            return self.tokenizer(text, **kwargs)

    def _read_by_position(self, text: str, count: int, ids: list[int], spans: list[tuple[int, int]]) -> ReadExpression:
        """Read a text, of which `count` tokens are kept, with the (start, end) of all its tokens."""
        unknown = self.tokenizer.unk_token_id
        words = _not_covered(text, [span for span, token in zip(spans, ids, strict=True) if token != unknown])
        kept = self._kept(count, spans)
        known = any(token != unknown for token in self._kept(count, ids))
        if cut := len(spans) > count:
            text = text[
                min((start for start, _ in kept), default=0) : max((end for _, end in kept), default=0)
            ].strip()
        return _as_read(text, words, cut, known)

    def _kept(self, count: int, tokens: list) -> list:
        """Those of all tokens that are read, where `count` are."""
        return tokens[max(0, len(tokens) - count) :] if self.tokenizer.truncation_side == "left" else tokens[:count]

    def _read_by_word(self, text: str, count: int) -> ReadExpression:
        """Read a text, of which `count` tokens are kept, with a tokenizer that does not tell their positions."""

        def tokens(part: str) -> list[int]:
            return self._tokenize(part, add_special_tokens=False, verbose=False)["input_ids"]

        found = [text[start:end] for start, end in word_spans(text)]
        unknown = [word for word in found if not tokens(word) or self.tokenizer.unk_token_id in tokens(word)]
        cut = len(tokens(text)) > count
        known = any(token != self.tokenizer.unk_token_id for token in self._kept(count, tokens(text)))
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
        """`do_rescale` and `rescale_factor` for images that were brought to 0 to 255, as if they were as given.

        The image processor's own factor is meant for 0 to 255; any other for the numbers as they are.
        """
        own = self.image_processor
        do_rescale = given.get("do_rescale", own.do_rescale)
        factor = given.get("rescale_factor", own.rescale_factor) if do_rescale else 1.0
        if do_rescale and factor == own.rescale_factor:
            return {"do_rescale": True, "rescale_factor": factor}
        what = f"`rescale_factor={factor}`" if do_rescale else "`do_rescale=False`"
        if len(set(whites)) > 1:
            ranges = " and ".join(f"0 to {white}" for white in sorted(set(whites)))
            raise ValueError(f"{what} needs images of one range, got {ranges}.")
        if not do_rescale and whites[0] != 1 and given.get("do_normalize", own.do_normalize):
            raise ValueError(
                f"{what} needs images of floats from 0 to 1, got 0 to {whites[0]}; leave it out, or give "
                "`do_normalize=False` too."
            )
        return {"do_rescale": True, "rescale_factor": factor * whites[0] / 255}

    @staticmethod
    def _prepare_mask(label_map: np.ndarray, size: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
        if label_map.shape != size:
            raise ValueError(f"A mask has size {label_map.shape}, but its image {size} (height, width).")
        return resize_label_map(label_map, shape).astype(np.int64)

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
        """Bring the logits back to the original pixels.

        Args:
            outputs: output of the model, with `logits` (B, 2, H, W), or these alone.
            target_sizes: height and width of each result, such as `inputs["original_sizes"]`; None keeps (H, W).
            threshold: the least probability of the object that a pixel of the mask exceeds; None takes the larger of
                the two logits, which is a threshold of 0.5 and what the paper does.
            return_probabilities: whether to give the probability of the object at each pixel too.
            largest_part: whether to keep only the largest connected part of each mask, without the specks that make a
                box wider than the object.
            presence_threshold: the mask is empty where the probability that something fits the expression is below
                this; None empties none. It needs the whole output of a model with a presence head.
            instances: whether to list the connected parts of each mask, as of several objects that do not touch.
            min_area: the least area of an instance, in pixels; None is 1. The mask keeps what is smaller.

        Returns:
            For each of the B pairs: "mask", (height, width) bool; "score", the expected IoU of the mask if the
            processor has a `score_calibration`, else the mean probability of the object over the mask's pixels, 0.0
            for an empty mask; with a presence head "presence", the probability that something fits; "box",
            [x_min, y_min, x_max, y_max] in pixels, the maxima exclusive, None for an empty mask; "parts", the number
            of connected parts that were found, those that `largest_part` left out included (pixels that touch at a
            corner are connected); with `return_probabilities`, "probabilities", (height, width) float32 from 0 to 1;
            with `instances`, "instances", from the largest to the smallest "mask", "box" and "area" (in pixels).

        Raises:
            ValueError: if the number of sizes is not B, a size is not positive, the threshold not in (0, 1), or the
                logits are NaN.
        """
        logits = _as_logits(outputs)
        sizes = [tuple(logits.shape[-2:])] * len(logits) if target_sizes is None else _as_sizes(target_sizes)
        if len(sizes) != len(logits):
            raise ValueError(
                f"There must be one target size for each result, got {counted(len(logits), 'result')} and "
                f"{counted(len(sizes), 'target size')}."
            )
        check_threshold(threshold)
        check_min_area(instances, min_area)
        presence = _as_presence(outputs, len(logits), presence_threshold)
        margin_threshold = 0.0 if threshold is None else math.log(threshold / (1 - threshold))
        # One map is resized instead of two: the object's probability is a sigmoid of the logits' difference.
        margins = logits[:, 1].float() - logits[:, 0].float()
        results = []
        for number, (margin, size) in enumerate(zip(margins, sizes, strict=True)):
            if margin.shape != size:
                margin = F.interpolate(margin[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
            there = None if presence is None else presence[number]
            absent = there is not None and presence_threshold is not None and there < presence_threshold
            result = self._result(margin, math.inf if absent else margin_threshold, largest_part, there)
            if return_probabilities:
                result["probabilities"] = margin.sigmoid()
            if instances:
                result["instances"] = find_instances(result["mask"], min_area or 1)
            results.append(result)
        return results

    def _result(self, margin: Tensor, threshold: float, largest_part: bool, presence: float | None) -> dict[str, Any]:
        mask = margin > threshold
        largest, parts = find_parts(mask)
        mask = largest if largest_part else mask
        result = {"mask": mask, "score": self.score(margin, mask, presence), "box": mask_box(mask), "parts": parts}
        return result if presence is None else {**result, "presence": presence}

    def score(self, margin: Tensor, mask: Tensor, presence: float | None = None) -> float:
        """The score of a mask: see `post_process_masks`.

        Args:
            margin: (height, width) float, the log-odds of the object at each pixel.
            mask: (height, width) bool.
            presence: the probability that something fits the expression, of a model with a presence head.
        """
        if not mask.any():
            return 0.0
        if self.score_calibration is None:
            return margin[mask].sigmoid().mean().item()
        estimate = estimate_iou(margin, mask) * (1.0 if presence is None else presence)
        estimates, ious = zip(*self.score_calibration, strict=True)
        return float(np.interp(estimate, estimates, ious))

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: Sequence[tuple[int, int]] | Tensor | None = None
    ) -> list[Tensor]:
        """The masks of `post_process_masks` as label maps, as Transformers' own segmentation processors give them.

        Args:
            outputs: output of the model, with `logits` (B, 2, H, W).
            target_sizes: height and width of each result; None keeps (H, W).

        Returns:
            B tensors (height, width) int64: 1 on the object, 0 off it.

        Raises:
            ValueError: as `post_process_masks`.
        """
        return [result["mask"].long() for result in self.post_process_masks(outputs, target_sizes)]


__all__ = ["CrossVLTProcessor", "ReadExpression"]
