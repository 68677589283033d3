"""The processor: whatever shows an image becomes the paper's tensors, and logits become masks of its own pixels."""

import base64
import copy
import functools
import io
import itertools
import json
import re
import struct
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_tokenizer
from fabricate import png_of_16_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor
from transformers.image_utils import ChannelDimension

from crossvlt_hf import CrossVLTOutput, CrossVLTProcessor
from crossvlt_hf.data.features import open_picture
from crossvlt_hf.data.masks import decode_mask, read_mask
from crossvlt_hf.processing_crossvlt import (
    ImageDepthError,
    count_parts,
    find_parts,
    mask_box,
    resize_label_map,
    to_label_map,
    to_rgb,
)
from crossvlt_hf.weights.checkpoint import DEFAULT_CHECKPOINT, load_checkpoint


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"]
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SMALL = CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), image_size=8, max_length=9)
SIZE = (5, 6)  # height and width of the small images below


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


GREY = noise(*SIZE)
COLOUR = noise(*SIZE, 3)
IMAGE = Image.fromarray(COLOUR)
SPOT = GREY > 100


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey.astype(np.uint8)] * 3, axis=-1)


def pixels(image: object) -> np.ndarray:
    """What the processor sees of an image, checked to be RGB."""
    result = to_rgb(image)
    assert result.mode == "RGB"
    return np.asarray(result)


def squashed(image: Image.Image, height: int, width: int) -> np.ndarray:
    """The paper's protocol by hand: Pillow's bilinear filter, 1/255, ImageNet's mean and standard deviation."""
    resized = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
    return np.moveaxis((resized / 255 - MEAN) / STD, -1, 0)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder and the address under which a server on this machine hands out its files."""
    folder = tmp_path_factory.mktemp("site")
    handler = functools.partial(QuietHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


# Images of every kind


def palette_image() -> tuple[Image.Image, np.ndarray]:
    colours = noise(256, 3)
    image = Image.fromarray(GREY).copy()
    image.putpalette(colours.tobytes())
    assert image.mode == "P"
    return image, colours[GREY]


def cmyk_image() -> tuple[Image.Image, np.ndarray]:
    ink = noise(*SIZE, 4)
    cmy, key = ink[..., :3].astype(float), ink[..., 3:].astype(float)
    return Image.fromarray(ink, "CMYK"), np.round((255 - cmy) * (255 - key) / 255).astype(np.uint8)


def alpha_image(mode: str) -> Image.Image:
    image = IMAGE.convert(mode) if mode == "RGBA" else Image.fromarray(GREY).convert(mode)
    image.putalpha(Image.fromarray(GREY[::-1].copy()))
    return image


ALPHA = GREY[::-1]


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """What is seen of colours with a transparency, 0 to 255, on white paper."""
    share = alpha[..., None] / 255
    return np.round(colours * share + 255 * (1 - share)).astype(np.uint8)


PIL_IMAGES = {
    "1": lambda: (Image.fromarray(SPOT), rgb(SPOT * 255)),
    "L": lambda: (Image.fromarray(GREY), rgb(GREY)),
    "LA": lambda: (alpha_image("LA"), on_white(rgb(GREY), ALPHA)),
    "P": palette_image,
    "RGB": lambda: (IMAGE, COLOUR),
    "RGBA": lambda: (alpha_image("RGBA"), on_white(COLOUR, ALPHA)),
    "CMYK": cmyk_image,
    "I;16": lambda: (Image.fromarray(GREY.astype(np.uint16) * 257), rgb(GREY)),
    "I": lambda: (Image.fromarray(GREY.astype(np.int32)), rgb(GREY)),
    "F": lambda: (Image.fromarray(GREY.astype(np.float32)), rgb(GREY)),
}


@pytest.mark.parametrize("mode", PIL_IMAGES)
def test_pil_image_of_every_mode(mode):
    image, expected = PIL_IMAGES[mode]()
    assert image.mode == mode
    # Pillow divides by 255 in whole numbers
    np.testing.assert_allclose(pixels(image).astype(int), expected, atol=mode in ("CMYK", "LA", "RGBA"))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray((SPOT * 1).astype(np.float32)), SPOT * 255),
        (Image.fromarray(GREY.astype(np.float32) / 255), GREY),
        (Image.fromarray(GREY.astype(np.int32) * 257), GREY),
    ],
    ids=["F, 0 and 1", "F, 0 to 1", "I, 0 to 65535"],
)
def test_pil_image_of_other_ranges(image, expected):
    np.testing.assert_array_equal(pixels(image), rgb(expected))


def test_transparent_palette_shows_white(tmp_path):
    image, colours = palette_image()
    image.save(tmp_path / "image.png", transparency=bytes(range(256)))
    np.testing.assert_allclose(pixels(tmp_path / "image.png").astype(int), on_white(colours, GREY), atol=1)


def keyed_png(mode: str, hidden: int) -> tuple[Image.Image, np.ndarray]:
    """A PNG that names one value as transparent, where alpha is 0 and 255; what it hides is of that value."""
    visible = ALPHA > 100
    seen = np.where(GREY == 7, 8, GREY)
    grey = np.where(visible, seen, 7).astype(np.uint8)
    if mode == "P":
        image, key = Image.fromarray(grey), 7
        image.putpalette([value for level in range(256) for value in ([hidden] * 3 if level == 7 else [level] * 3)])
    elif mode == "I;16":
        image, key = Image.fromarray(grey.astype(np.uint16) * 257), 7 * 257
    else:
        image, key = Image.fromarray(grey).convert(mode), 7 if mode == "L" else (7, 7, 7)
    file = io.BytesIO()
    image.save(file, "PNG", transparency=key)
    return Image.open(file), on_white(rgb(seen), visible * 255)


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "I;16"])
def test_a_transparent_value_shows_white(mode):
    image, expected = keyed_png(mode, hidden=200)
    assert image.mode == mode
    np.testing.assert_array_equal(pixels(image), expected)


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_what_lies_hidden_changes_nothing(mode):
    """Two images that look the same are the same."""
    seen = []
    for hidden in (0, 255, 90):
        image = Image.fromarray(np.where(ALPHA > 100, GREY, hidden).astype(np.uint8))
        image = image.convert({"PA": "P", "RGBA": "RGB", "RGBa": "RGB"}.get(mode, "L"))
        image.putalpha(Image.fromarray((ALPHA > 100).astype(np.uint8) * 255))
        seen.append(pixels(image.convert(mode)))
    np.testing.assert_array_equal(seen[0], on_white(rgb(GREY), (ALPHA > 100) * 255))
    np.testing.assert_array_equal(seen[1], seen[0])
    np.testing.assert_array_equal(seen[2], seen[0])


UNTURNED = {  # how the stored pixels of an upright image look for each EXIF orientation
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("given_as", ["file", "PIL image", "URL"])
@pytest.mark.parametrize("orientation", UNTURNED)
def test_exif_orientation(site, orientation, given_as):
    exif = Image.Exif()
    exif[274] = orientation
    folder, address = site
    path = folder / f"turned-{orientation}.png"
    Image.fromarray(np.ascontiguousarray(UNTURNED[orientation](COLOUR))).save(path, exif=exif)
    image = {"file": path, "PIL image": Image.open(path), "URL": f"{address}/{path.name}"}[given_as]
    np.testing.assert_array_equal(pixels(image), COLOUR)
    assert SMALL(image, "a cup")["original_sizes"] == [SIZE]


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
def test_corrupt_exif_is_no_obstacle(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    IMAGE.save(path, exif=b"Exif\0\0garbage")
    np.testing.assert_array_equal(pixels(path), np.asarray(Image.open(path)))


NUMBERS = {
    "uint8": lambda a: a,
    "int64": lambda a: a.astype(np.int64),
    "uint16": lambda a: a.astype(np.uint16) * 257,
    "float32, 0 to 1": lambda a: (a / 255).astype(np.float32),
    "float64, 0 to 1": lambda a: a / 255,
    "float32, 0 to 255": lambda a: a.astype(np.float32),
    "float16, 0 to 255": lambda a: a.astype(np.float16),
}
LAYOUTS = {
    "HWC": (lambda a: a, COLOUR),
    "CHW": (lambda a: np.moveaxis(a, -1, 0), COLOUR),
    "HW": (lambda a: a[..., 0], rgb(COLOUR[..., 0])),
    "HW1": (lambda a: a[..., :1], rgb(COLOUR[..., 0])),
    "1HW": (lambda a: a[None, ..., 0], rgb(COLOUR[..., 0])),
}


@pytest.mark.parametrize("library", [np.ascontiguousarray, torch.tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("numbers", NUMBERS)
def test_array(numbers, layout, library):
    arrange, expected = LAYOUTS[layout]
    np.testing.assert_array_equal(pixels(library(arrange(NUMBERS[numbers](COLOUR)))), expected)


@pytest.mark.parametrize("library", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_bool_array(library):
    np.testing.assert_array_equal(pixels(library(SPOT)), rgb(SPOT * 255))


@pytest.mark.parametrize("scale", [1, 1 / 255, 257], ids=["uint8", "floats", "uint16"])
def test_array_with_alpha(scale):
    values = np.concatenate([COLOUR, ALPHA[..., None]], axis=-1) * np.array(scale)
    values = values.astype({1: np.uint8, 257: np.uint16}.get(scale, np.float32))
    expected = pixels(Image.fromarray(np.concatenate([COLOUR, ALPHA[..., None]], axis=-1)))
    np.testing.assert_allclose(expected.astype(int), on_white(COLOUR, ALPHA), atol=1)
    np.testing.assert_array_equal(pixels(values), expected)
    np.testing.assert_array_equal(pixels(torch.tensor(values.astype(np.float32)).permute(2, 0, 1)), expected)


def test_tensor_with_gradient_or_half_precision():
    tensor = torch.tensor(COLOUR / 255, dtype=torch.float32, requires_grad=True).permute(2, 0, 1)
    np.testing.assert_array_equal(pixels(tensor), COLOUR)
    # bfloat16 has 8 significant bits
    assert np.abs(pixels(tensor.bfloat16()).astype(int) - COLOUR).max() <= 1


@pytest.mark.parametrize("excess", [1e-6, 1e-3])
@pytest.mark.parametrize("top", [1, 255])
def test_a_hair_above_the_range_is_not_a_black_image(top, excess):
    """What bicubic resizing and float32 rounding leave: either refused or taken for what it is."""
    values = GREY / 255 * top
    values[0, 0] = top * (1 + excess)
    try:
        result = pixels(values)
    except ValueError:
        return
    np.testing.assert_allclose(result[1:], rgb(GREY)[1:], atol=1)


@pytest.mark.parametrize("library", [np.array, torch.tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("first", [True, False], ids=["BCHW", "BHWC"])
def test_batch_of_images(library, first):
    images = np.stack([COLOUR, COLOUR[::-1], COLOUR[:, ::-1]])
    batch = library(np.moveaxis(images, -1, 1).copy() if first else images)
    inputs = SMALL(batch, ["a cup", "the man", "a bus"], return_tensors="pt")
    expected = SMALL([Image.fromarray(i) for i in images], ["a cup", "the man", "a bus"], return_tensors="pt")
    assert inputs["pixel_values"].equal(expected["pixel_values"])
    assert inputs["original_sizes"].tolist() == [[*SIZE]] * 3


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".gif", ".webp"])
@pytest.mark.parametrize("kind", [str, Path])
def test_path(tmp_path, kind, suffix):
    path = tmp_path / f"an image{suffix}"
    image = IMAGE.convert("P") if suffix == ".gif" else IMAGE
    image.save(path, **({"lossless": True} if suffix == ".webp" else {}))
    np.testing.assert_array_equal(pixels(kind(path)), np.asarray(image.convert("RGB")))


def test_path_that_looks_like_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    IMAGE.save("https.png")
    np.testing.assert_array_equal(pixels("https.png"), COLOUR)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "1", "I;16"])
def test_url_equals_path(site, mode):
    folder, address = site
    path = folder / f"{mode}.png".replace(";", "")
    PIL_IMAGES[mode]()[0].save(path)
    np.testing.assert_array_equal(pixels(f"{address}/{path.name}"), pixels(path))


@pytest.mark.parametrize("side", [10, 100], ids=["short", "longer than a path may be"])
def test_data_url(side):
    values = noise(side, side, 3)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    np.testing.assert_array_equal(
        pixels("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()), values
    )


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 60), width=st.integers(1, 60), mode=st.sampled_from(MODES), count=st.integers(1, 3))
def test_any_size_and_mode_gives_the_right_shapes(height, width, mode, count):
    image = Image.new(mode, (width, height))
    inputs = SMALL(image, ["a cup"] * count, np.zeros((count, height, width)), return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 8, 8)
    assert inputs["pixel_values"].dtype == torch.float32
    assert inputs["original_sizes"].tolist() == [[height, width]] * count
    assert inputs["labels"].shape == (count, 8, 8)
    assert inputs["labels"].dtype == inputs["input_ids"].dtype == inputs["original_sizes"].dtype == torch.int64
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (count, 9)
    np.testing.assert_allclose(inputs["pixel_values"][0], squashed(to_rgb(image), 8, 8), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), height=st.integers(5, 60), width=st.integers(5, 60))
def test_any_array_equals_its_pil_image(data, height, width):
    values = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    convert = NUMBERS[data.draw(st.sampled_from(sorted(NUMBERS)))]
    arrange = LAYOUTS[data.draw(st.sampled_from(["HWC", "CHW"]))][0]
    library = data.draw(st.sampled_from([np.ascontiguousarray, torch.tensor]))
    np.testing.assert_array_equal(pixels(library(arrange(convert(values)))), values)


# The paper's protocol


def test_defaults_are_the_papers(photo):
    inputs = CrossVLTProcessor.from_tokenizer(tiny_tokenizer())(photo, "the red cup", return_tensors="pt")
    np.testing.assert_allclose(inputs["pixel_values"][0], squashed(photo, 480, 480), rtol=0, atol=1e-6)
    assert inputs["input_ids"].shape == (1, 21)
    assert inputs["attention_mask"].sum() == 5
    assert inputs["original_sizes"].tolist() == [[photo.height, photo.width]]


@pytest.mark.parametrize("size", [(1000, 30), (31, 700), (480, 480)])
def test_squash_keeps_no_aspect_ratio(size):
    image = Image.fromarray(noise(size[1], size[0], 3))
    inputs = CrossVLTProcessor.from_tokenizer(tiny_tokenizer())(image, return_tensors="np")
    np.testing.assert_allclose(inputs["pixel_values"][0], squashed(image, 480, 480), rtol=0, atol=1e-6)


def test_long_expression_keeps_its_last_token():
    processor = CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), image_size=8)
    tokens = processor(IMAGE, "the red cup " * 10)["input_ids"][0]
    assert len(tokens) == 21
    assert tokens[0] == processor.tokenizer.cls_token_id
    assert tokens[-1] == processor.tokenizer.sep_token_id
    assert processor.tokenizer.decode(tokens[1:-1]).startswith("the red cup the red cup")


def test_expressions_are_lower_cased():
    assert SMALL(text="The RED Cup")["input_ids"] == SMALL(text="the red cup")["input_ids"]


def test_plain_constructor_has_21_tokens():
    processor = CrossVLTProcessor(SMALL.image_processor, tiny_tokenizer())
    assert len(processor(text="the cup " * 30)["input_ids"]) == 21


@pytest.mark.parametrize("size", [{"height": 12, "width": 20}, 16])
def test_size_and_length_at_call_time(size):
    inputs = SMALL(IMAGE, "the cup " * 9, SPOT, size=size, max_length=5, return_tensors="pt")
    height, width = (16, 16) if size == 16 else (12, 20)
    np.testing.assert_allclose(inputs["pixel_values"][0], squashed(IMAGE, height, width), atol=1e-6)
    assert inputs["labels"].shape == (1, height, width)
    assert inputs["input_ids"].shape == (1, 5)
    assert inputs["input_ids"][0, -1] == SMALL.tokenizer.sep_token_id
    assert SMALL(IMAGE, "a cup", return_tensors="pt")["pixel_values"].shape[-1] == 8
    assert len(SMALL(text="a cup")["input_ids"]) == 9


def test_padding_at_call_time():
    inputs = SMALL(IMAGE, ["a cup", "the red cup"], padding="longest", return_tensors="pt")
    assert inputs["input_ids"].shape == (2, 5)
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


@pytest.mark.parametrize(("image_size", "shape"), [(24, (24, 24)), ((16, 40), (16, 40))])
@pytest.mark.parametrize("length", [3, 13, 30])
def test_size_and_length_are_saved(tmp_path, image_size, shape, length):
    CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), image_size=image_size, max_length=length).save_pretrained(
        tmp_path
    )
    inputs = AutoProcessor.from_pretrained(tmp_path)(IMAGE, "the cup " * 20, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, *shape)
    assert inputs["input_ids"].shape == (1, length)


@pytest.mark.parametrize("length", [-1, 0, 2])
def test_length_without_room_for_a_word(length):
    with pytest.raises(ValueError, match=rf"`max_length` must be from 3 .* got {length}\."):
        CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), max_length=length)


def test_two_processors_of_one_tokenizer_do_not_disturb_each_other():
    tokenizer = tiny_tokenizer()
    short = CrossVLTProcessor.from_tokenizer(tokenizer, max_length=5)
    long = CrossVLTProcessor.from_tokenizer(tokenizer, max_length=15)
    assert [len(each(text="a cup")["input_ids"]) for each in (short, long)] == [5, 15]


def test_round_trip(tmp_path, photo):
    before = CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), image_size=(40, 56), max_length=11)
    before.save_pretrained(tmp_path)
    after = AutoProcessor.from_pretrained(tmp_path)
    assert type(after) is CrossVLTProcessor
    assert after.to_dict() == before.to_dict()
    assert after.tokenizer.get_vocab() == before.tokenizer.get_vocab()
    after.save_pretrained(tmp_path / "again")
    for file in ("processor_config.json", "tokenizer.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes()
    call = {"images": photo, "text": ["the red cup", "a man"], "return_tensors": "pt"}
    expected = before(**call)
    assert after(**call).keys() == expected.keys()
    assert all(value.equal(expected[name]) for name, value in after(**call).items())


# Images and expressions


@pytest.mark.parametrize(
    ("images", "text", "owners", "expressions"),
    [
        ("x", "a", [0], ["a"]),
        ("x", ["a"], [0], ["a"]),
        ("x", ["a", "b", "c"], [0, 0, 0], ["a", "b", "c"]),
        ("x", [["a", "b"]], [0, 0], ["a", "b"]),
        (["x"], ["a", "b"], [0, 0], ["a", "b"]),
        (["x"], [["a", "b"]], [0, 0], ["a", "b"]),
        (["x", "y"], "a", [0, 1], ["a", "a"]),
        (["x", "y"], ["a", "b"], [0, 1], ["a", "b"]),
        (("x", "y"), ("a", "b"), [0, 1], ["a", "b"]),
        (["x", "y"], [["a", "b", "c"], ["d"]], [0, 0, 0, 1], ["a", "b", "c", "d"]),
        (["x", "y"], (("a",), ("b", "c")), [0, 1, 1], ["a", "b", "c"]),
        ([["x"], ["y"]], [["a", "b"], ["c"]], [0, 0, 1], ["a", "b", "c"]),
    ],
)
def test_nesting(images, text, owners, expressions):
    pictures = {"x": IMAGE, "y": Image.fromarray(COLOUR[::-1, :4].copy())}
    words = dict(zip("abcd", ["the cup", "a man", "red bus", "left"], strict=True))

    def replaced(nested, table):
        return table[nested] if isinstance(nested, str) else type(nested)(replaced(entry, table) for entry in nested)

    inputs = SMALL(replaced(images, pictures), replaced(text, words), return_tensors="pt")
    shown = [list(pictures.values())[owner] for owner in owners]
    assert inputs["original_sizes"].tolist() == [[image.height, image.width] for image in shown]
    counts = inputs.get("expressions_per_image", torch.ones(len(owners), dtype=torch.long))
    pixel_values = inputs["pixel_values"].repeat_interleave(counts, dim=0)
    for values, image in zip(pixel_values, shown, strict=True):
        np.testing.assert_allclose(values, squashed(image, 8, 8), atol=1e-6)
    decoded = [SMALL.tokenizer.decode(ids, skip_special_tokens=True) for ids in inputs["input_ids"]]
    assert decoded == [words[expression] for expression in expressions]


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=4), words=st.randoms(use_true_random=False))
def test_any_nesting_gives_a_row_for_each_expression(counts, words):
    images = [Image.new("RGB", (index + 1, 2), (60 * index, 0, 0)) for index in range(len(counts))]
    text = [[words.choice(["cup", "man", "red bus", "left spoon"]) for _ in range(count)] for count in counts]
    inputs = SMALL(images, text, return_tensors="pt")
    owners = [index for index, count in enumerate(counts) for _ in range(count)]
    assert inputs["original_sizes"].tolist() == [[2, owner + 1] for owner in owners]
    singles = SMALL(images, return_tensors="pt")["pixel_values"]
    assert inputs["pixel_values"].equal(singles)
    assert inputs.get("expressions_per_image", torch.ones(len(counts))).tolist() == counts
    assert ("expressions_per_image" in inputs) == (max(counts) > 1)
    decoded = [SMALL.tokenizer.decode(ids, skip_special_tokens=True) for ids in inputs["input_ids"]]
    assert decoded == [expression for group in text for expression in group]


def test_an_image_is_given_once_whatever_the_number_of_its_expressions():
    inputs = SMALL([IMAGE, IMAGE.copy()], [["a cup", "the man"], ["a cup"]], return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 3, 8, 8)
    assert inputs["pixel_values"][0].equal(inputs["pixel_values"][1])
    assert inputs["expressions_per_image"].tolist() == [2, 1]
    assert len(inputs["original_sizes"]) == len(inputs["input_ids"]) == 3


def test_text_only():
    assert set(SMALL(text="a cup")) == {"input_ids", "token_type_ids", "attention_mask"}
    assert len(SMALL(text="a cup")["input_ids"]) == 9
    assert SMALL(text=["a cup", "man"], return_tensors="pt")["input_ids"].shape == (2, 9)


def test_nested_text_only():
    nested = SMALL(text=[["a cup", "man"], ["left", "bus"]])["input_ids"]
    assert nested == SMALL(text=["a cup", "man", "left", "bus"])["input_ids"]


def test_images_only():
    inputs = SMALL([IMAGE, IMAGE], return_tensors="pt")
    assert set(inputs) == {"pixel_values", "original_sizes"}
    assert inputs["pixel_values"].shape == (2, 3, 8, 8)
    assert SMALL(IMAGE, segmentation_maps=SPOT, return_tensors="pt")["labels"].shape == (1, 8, 8)


@pytest.mark.parametrize("kind", ["np", "pt", None])
def test_kinds_of_tensors(kind):
    inputs = SMALL(IMAGE, ["a cup", "man"], SPOT[None].repeat(2, 0), return_tensors=kind)
    assert set(inputs) == {*SMALL.model_input_names, "labels", "expressions_per_image"}
    expected = {"np": np.ndarray, "pt": torch.Tensor, None: list}[kind]
    of_the_image = ("pixel_values", "expressions_per_image")
    assert all(
        isinstance(value, expected) and len(value) == (1 if name in of_the_image else 2)
        for name, value in inputs.items()
    )


# Masks

INDEXED = Image.fromarray(SPOT.astype(np.uint8)).copy()
INDEXED.putpalette([0, 0, 0, 200, 0, 0])
MASKS = {
    "bool": SPOT,
    "0 and 1": SPOT.astype(np.uint8),
    "0 and 1, int64": SPOT.astype(np.int64),
    "0 and 1, float": SPOT.astype(np.float32),
    "0 and 255": SPOT.astype(np.uint8) * 255,
    "PIL 1": Image.fromarray(SPOT),
    "PIL L": Image.fromarray(SPOT.astype(np.uint8) * 255),
    "PIL L, 0 and 1": Image.fromarray(SPOT.astype(np.uint8)),
    "PIL P": INDEXED,
    "PIL RGB": Image.fromarray(SPOT).convert("RGB"),
    "torch bool": torch.tensor(SPOT),
    "torch uint8": torch.tensor(SPOT.astype(np.uint8) * 255),
    "torch float": torch.tensor(SPOT).float(),
    "torch bfloat16": torch.tensor(SPOT).bfloat16(),
    "torch (1, H, W)": torch.tensor(SPOT)[None],
    "numpy (H, W, 1)": SPOT[..., None],
    "numpy (H, W, 3)": rgb(SPOT * 255),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_mask(mask):
    np.testing.assert_array_equal(to_label_map(mask), SPOT)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_mask_becomes_a_label(mask):
    expected = np.asarray(Image.fromarray(SPOT.astype(np.uint8)).resize((8, 8), Image.Resampling.NEAREST))
    for given_as in (mask, [mask], [[mask]]):
        labels = SMALL(IMAGE, "a cup", given_as, return_tensors="pt")["labels"]
        assert labels.dtype == torch.int64
        np.testing.assert_array_equal(labels, expected[None])


@pytest.mark.parametrize("value", [True, False])
def test_mask_of_one_value(value):
    for mask in (np.full(SIZE, value), np.full(SIZE, value, np.uint8), np.full(SIZE, value * 255)):
        assert (to_label_map(mask) == value).all()


@pytest.mark.parametrize("make", [np.array, torch.tensor, lambda a: Image.fromarray(a.astype(np.uint8))])
def test_255_is_ignored_next_to_0_and_1(make):
    mask = SPOT.astype(np.int64)
    mask[0] = 255
    np.testing.assert_array_equal(to_label_map(make(mask)), mask)
    assert set(np.unique(SMALL(IMAGE, "a cup", make(mask), return_tensors="np")["labels"])) == {0, 1, 255}


def test_masks_of_several_sizes():
    rng = np.random.default_rng(1)
    shapes = [(5, 6), (40, 3), (1, 1)]
    images = [Image.new("RGB", (width, height)) for height, width in shapes]
    masks = [[rng.random(shape) > 0.5 for _ in range(count)] for shape, count in zip(shapes, (2, 1, 3), strict=True)]
    text = [["a cup"] * len(group) for group in masks]
    labels = SMALL(images, text, masks, return_tensors="pt")["labels"]
    flat = [mask for group in masks for mask in group]
    for label, mask in zip(labels, flat, strict=True):
        expected = Image.fromarray(mask.astype(np.uint8)).resize((8, 8), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(label, np.asarray(expected))
    assert labels.equal(SMALL(images, text, flat, return_tensors="pt")["labels"])


@pytest.mark.parametrize("library", [np.array, torch.tensor])
def test_masks_stacked_in_an_array(library):
    stack = library(np.stack([SPOT, ~SPOT]))
    labels = SMALL(IMAGE, ["a cup", "man"], stack, return_tensors="pt")["labels"]
    assert labels[0].equal(1 - labels[1])


def test_mask_is_of_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    IMAGE.save(tmp_path / "turned.png", exif=exif)
    upright = np.zeros((6, 5), bool)
    upright[:3] = True
    label = SMALL(tmp_path / "turned.png", "a cup", upright, return_tensors="pt")["labels"][0]
    assert label[:4].all()
    assert not label[4:].any()
    with pytest.raises(ValueError, match=r"size of its image \(6, 5\).* got \(5, 6\)"):
        SMALL(tmp_path / "turned.png", "a cup", SPOT)


# Back to masks


def logits_of(probability: np.ndarray | torch.Tensor) -> torch.Tensor:
    """(B, 2, H, W) with these probabilities of the object, on top of an arbitrary common offset."""
    margin = torch.as_tensor(np.asarray(probability)).double().logit()
    offset = torch.randn(margin.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.stack([offset, offset + margin], dim=1).float()


PROBABILITY = np.full((1, 4, 6), 0.1)
PROBABILITY[0, 1:3, 2:5] = [[0.6, 0.7, 0.8], [0.3, 0.95, 0.4]]


@pytest.mark.parametrize(
    ("threshold", "kept", "box"),
    [
        (None, [0.6, 0.7, 0.8, 0.95], [2, 1, 5, 3]),
        (0.5, [0.6, 0.7, 0.8, 0.95], [2, 1, 5, 3]),
        (0.65, [0.7, 0.8, 0.95], [3, 1, 5, 3]),
        (0.9, [0.95], [3, 2, 4, 3]),
        (0.2, [0.6, 0.7, 0.8, 0.3, 0.95, 0.4], [2, 1, 5, 3]),
        (0.05, PROBABILITY, [0, 0, 6, 4]),
    ],
)
def test_mask_score_and_box_by_hand(threshold, kept, box):
    (result,) = SMALL.post_process_masks({"logits": logits_of(PROBABILITY)}, threshold=threshold)
    assert result["mask"].dtype == torch.bool
    np.testing.assert_array_equal(result["mask"], PROBABILITY[0] > (threshold or 0.5))
    assert result["score"] == pytest.approx(np.mean(kept), abs=1e-6)
    assert isinstance(result["score"], float)
    assert result["box"] == box


@pytest.mark.parametrize("target_sizes", [None, [(7, 9)]])
def test_empty_mask(target_sizes):
    (result,) = SMALL.post_process_masks({"logits": logits_of(PROBABILITY)}, target_sizes, threshold=0.99)
    assert result["mask"].shape == (target_sizes[0] if target_sizes else (4, 6))
    assert not result["mask"].any()
    assert result["score"] == 0.0
    assert result["box"] is None


def test_tie_is_background():
    (result,) = SMALL.post_process_masks({"logits": torch.ones(1, 2, 3, 3)})
    assert not result["mask"].any()


@pytest.mark.parametrize(("y", "x"), [(0, 0), (4, 6), (2, 0), (0, 5)])
def test_box_of_one_pixel_is_half_open(y, x):
    mask = torch.zeros(5, 7, dtype=torch.bool)
    mask[y, x] = True
    assert mask_box(mask) == [x, y, x + 1, y + 1]


def test_box_crops_the_object(photo):
    mask = torch.zeros(photo.height, photo.width, dtype=torch.bool)
    mask[10:30, 20:25] = True
    crop = Image.fromarray(mask.numpy()).crop(mask_box(mask))
    assert crop.size == (5, 20)
    assert np.asarray(crop).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sizes", [None, [(16, 20)] * 3, [(5, 7), (33, 40), (16, 20)]])
def test_default_is_the_argmax(dtype, sizes):
    logits = torch.randn(3, 2, 16, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    default = SMALL.post_process_masks({"logits": logits}, sizes)
    half = SMALL.post_process_masks({"logits": logits}, sizes, threshold=0.5)
    for index, (one, other) in enumerate(zip(default, half, strict=True)):
        size = sizes[index] if sizes else (16, 20)
        resized = torch.nn.functional.interpolate(logits[index : index + 1].double(), size, mode="bilinear")
        assert one["mask"].equal(resized[0].argmax(0).bool())
        assert one["mask"].equal(other["mask"])
        assert (one["score"], one["box"]) == (other["score"], other["box"])


def test_threshold_is_monotone():
    logits = 3 * torch.randn(2, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    thresholds = [1e-6, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999999]
    results = [SMALL.post_process_masks({"logits": logits}, [(20, 30)] * 2, t) for t in thresholds]
    for looser, stricter in itertools.pairwise(results):
        for one, other in zip(looser, stricter, strict=True):
            assert (one["mask"] | ~other["mask"]).all()
            assert one["mask"].sum() >= other["mask"].sum()
            assert other["box"] is None or one["score"] <= other["score"]
    assert results[0][0]["mask"].sum() > results[-1][0]["mask"].sum()
    for threshold, result in zip(thresholds, results, strict=True):
        assert all(r["score"] > threshold or r["box"] is None for r in result)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_target_sizes(kind):
    sizes = [(8, 8), (3, 50), (40, 1)]
    outputs = {"logits": logits_of(PROBABILITY.repeat(3, 0))}
    results = SMALL.post_process_masks(outputs, kind(sizes))
    assert [tuple(result["mask"].shape) for result in results] == sizes


def test_output_of_the_model_and_original_sizes(model, photo):
    inputs = SMALL([photo, IMAGE], [["a cup", "man"], ["bus"]], return_tensors="pt")
    sizes = inputs.pop("original_sizes")
    with torch.no_grad():
        outputs = model(**inputs)
    results = SMALL.post_process_masks(outputs, sizes)
    assert [tuple(result["mask"].shape) for result in results] == [(60, 80), (60, 80), SIZE]
    again = SMALL.post_process_masks({"logits": outputs.logits}, sizes)
    assert all(one["mask"].equal(other["mask"]) for one, other in zip(results, again, strict=True))


def test_logits_with_gradient():
    logits = logits_of(PROBABILITY).requires_grad_()
    (result,) = SMALL.post_process_masks(CrossVLTOutput(logits=logits), [(9, 9)])
    assert not result["mask"].requires_grad
    assert isinstance(result["score"], float)


def test_extreme_logits():
    logits = torch.tensor([1e4, -1e4]).reshape(1, 2, 1, 1).repeat(2, 1, 3, 3)
    logits[1] *= -1
    off, on = SMALL.post_process_masks({"logits": logits.half()})
    assert (off["score"], off["box"]) == (0.0, None)
    assert (on["score"], on["box"]) == (1.0, [0, 0, 3, 3])


@pytest.mark.parametrize("threshold", [0, 1, -0.1, 1.5, 50, float("nan"), float("inf")])
def test_threshold_out_of_range(threshold):
    with pytest.raises(ValueError, match=f"`threshold` must be a probability above 0 and below 1, got {threshold}"):
        SMALL.post_process_masks({"logits": torch.zeros(1, 2, 4, 4)}, threshold=threshold)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([], "got 2 results and 0 target sizes"),
        ([(5, 6)], "got 2 results and 1 target size\\."),
        ([(5, 6)] * 3, "2 results and 3 target sizes"),
        ([(5, 6), (0, 6)], r"\(0, 6\)"),
        ([(5, 6), (5, -1)], r"\(5, -1\)"),
        ([(5, 6), (5, 6, 3)], r"\(5, 6, 3\)"),
        ((60, 80), r"60, 80"),
        (torch.tensor([60, 80]), r"60, 80"),
    ],
)
def test_bad_target_sizes(sizes, message):
    with pytest.raises(ValueError, match=message):
        SMALL.post_process_masks({"logits": torch.zeros(2, 2, 4, 4)}, sizes)


# Bad input


def test_nothing_given():
    with pytest.raises(ValueError, match=r"`images`, `text` or both"):
        SMALL()


@pytest.mark.parametrize("images", [IMAGE, None], ids=["with an image", "text only"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expression must .* got ''"),
        ("  \n\t", "expression must .* got '  "),
        (["a cup", ""], "expression must .* got ''"),
        ([["a cup", "  "]], "expression must .* got '  '"),
        ([], r"`text` must .* got \[\]"),
        (5, "`text` must .* got 5"),
        (b"a cup", "`text` must .* got b'a cup'"),
        ({"a cup"}, "`text` must .* got {'a cup'}"),
        (["a cup", ["man"]], "must not have both"),
        ([[["a cup"]]], r"expression must .* got \['a cup'\]"),
        ([["a cup", 7]], "expression must .* got 7"),
        ([7], "7"),
        ([None], "None"),
        (["a cup", 7], "must not have both|7"),
    ],
)
def test_bad_text(images, text, message):
    with pytest.raises(ValueError, match=message):
        SMALL(images, text)


@pytest.mark.parametrize(
    ("count", "text", "message"),
    [
        (2, ["a cup"], "2 images and 1 "),
        (2, ["a cup", "man", "bus"], "2 images and 3 "),
        (2, [["a cup", "man"]], "2 images and 1 "),
        (1, [["a cup"], ["man"]], "got 1 image and 2 "),
        (2, [["a cup"], []], "Every image must have an expression, got none for image 1"),
        (1, [[]], "Every image must have an expression, got none for image 0"),
        (0, ["a cup"], r"`images` must have at least one image, got \[\]"),
        (0, "a cup", r"`images` must have at least one image, got \[\]"),
        (0, None, r"`images` must have at least one image, got \[\]"),
    ],
)
def test_counts_of_images_and_expressions_differ(count, text, message):
    with pytest.raises(ValueError, match=message):
        SMALL([IMAGE] * count, text)


@pytest.mark.parametrize("images", [[[IMAGE, IMAGE]], [[]], [[IMAGE], []]])
def test_wrong_nesting_of_images(images):
    with pytest.raises(ValueError, match=r"list of [02] images"):
        SMALL(images, "a cup")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "NoneType"),
        (5, "int"),
        (b"bytes", "bytes"),
        ({"image": IMAGE}, "dict"),
        (np.full((5, 6, 3), np.nan), "NaN"),
        (torch.full((3, 5, 6), float("inf")), "infinite"),
        (Image.new("F", (5, 6), float("nan")), "NaN"),
        (np.zeros((5, 6, 2)), r"\(5, 6, 2\)"),
        (torch.zeros(7, 5, 6), r"7, 5, 6"),
        (np.zeros(5), r"\(5,\)"),
        (np.zeros((1, 2, 5, 6, 3)), r"\(1, 2, 5, 6, 3\)"),
        (np.zeros((0, 6, 3)), r"\(0, 6, 3\)"),
        (torch.zeros(3, 5, 0), "3, 5, 0"),
        (Image.new("RGB", (0, 6)), r"\(0, 6\)"),
        (np.full((5, 6, 3), -1), "from -1"),
        (np.full((5, 6, 3), 70000), "70000"),
        (np.full((5, 6, 3), -0.5), "from -0.5"),
        (Image.new("I", (5, 6), -3), "from -3"),
        (np.full((5, 6), "a", dtype=object), "object|dtype|values"),
    ],
)
def test_bad_image(image, message):
    for images in (image, [image]) if image is not None else ([image],):
        with pytest.raises(ValueError, match=message):
            SMALL(images, "a cup")


def broken(folder: Path, kind: str) -> Path:
    """A file that is no image, or not all of one."""
    path = folder / f"broken {kind}"
    image = Image.fromarray(noise(60, 60, 3))
    if kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF"):
        image.save(path, kind)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "header":
        image.save(path, "PNG")
        path.write_bytes(path.read_bytes()[:20])
    else:
        path.write_text({"text": "This is no image.", "empty": "", "svg": "<svg></svg>"}[kind])
    return path


BROKEN = ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "header", "text", "empty", "svg"]


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_file(tmp_path, kind):
    path = broken(tmp_path, kind)
    for given_as in (path, str(path)):
        with pytest.raises(OSError, match=f"{path} cannot be read as an image"):
            SMALL(given_as, "a cup")


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_file_at_a_url(site, kind):
    folder, address = site
    url = f"{address}/{broken(folder, kind).name}".replace(" ", "%20")
    with pytest.raises(OSError, match=url):
        SMALL(url, "a cup")


@pytest.mark.parametrize("name", ["missing.png", "folder/missing.png", ""])
def test_missing_file(name):
    with pytest.raises(FileNotFoundError, match=f"no image file {name};"):
        SMALL(name, "a cup")


def test_folder_is_no_image(tmp_path):
    with pytest.raises(OSError, match=str(tmp_path)):
        SMALL(tmp_path, "a cup")


def test_missing_file_at_a_url(site):
    url = f"{site[1]}/missing.png"
    with pytest.raises(OSError, match=url):
        SMALL(url, "a cup")


def test_no_server_at_a_url():
    with pytest.raises(OSError, match=r"http://127.0.0.1:1/image.png"):
        SMALL("http://127.0.0.1:1/image.png", "a cup")


@pytest.mark.parametrize("url", ["data:image/png;base64,bm8gaW1hZ2U=", "data:image/png", "data:,"])
def test_bad_data_url(url):
    with pytest.raises((OSError, ValueError), match=r"data:|base64"):
        SMALL(url, "a cup")


@pytest.mark.parametrize("remote", [False, True], ids=["file", "URL"])
def test_decompression_bomb(site, monkeypatch, remote):
    folder, address = site
    Image.new("1", (100, 100)).save(folder / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    source = f"{address}/bomb.png" if remote else folder / "bomb.png"
    with pytest.raises(ValueError, match=rf"{source}.*10000 pixels.*MAX_IMAGE_PIXELS"):
        SMALL(source, "a cup")


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((6, 5)), r"size of its image \(5, 6\).* got \(6, 5\)"),
        (Image.new("L", (5, 6)), r"size of its image \(5, 6\).* got \(6, 5\)"),
        (np.full(SIZE, 2), r"\[2\]"),
        (np.full(SIZE, -1), r"\[-1\]"),
        (np.full(SIZE, np.nan), "nan"),
        (np.full(SIZE, 0.5), r"0\.5"),
        (Image.fromarray(GREY), r"values .* got \["),
        (np.zeros(5), r"\(5,\)"),
        (np.zeros((1, *SIZE, 2)), r"\(5, 6, 2\)|\(1, 5, 6, 2\)"),
        (np.zeros((1, 0, 6)), r"\(1, 0, 6\)"),
        (COLOUR[None], "5, 6, 3"),
        ("mask.png", "mask"),
    ],
)
def test_bad_mask(mask, message):
    with pytest.raises(ValueError, match=message):
        SMALL(IMAGE, "a cup", [mask])


@pytest.mark.parametrize(
    ("text", "masks", "message"),
    [
        ("a cup", [SPOT, SPOT], "got 1 expression and 2 masks"),
        (["a cup", "man"], SPOT, "got 2 expressions and 1 mask\\."),
        (["a cup", "man"], [SPOT], "got 2 expressions and 1 mask\\."),
        (["a cup", "man"], np.stack([SPOT] * 3), "2 expressions and 3 masks"),
        ("a cup", [], "got 1 expression and 0 masks"),
    ],
)
def test_counts_of_masks_differ(text, masks, message):
    with pytest.raises(ValueError, match=message):
        SMALL(IMAGE, text, masks)


def test_masks_are_nested_as_the_expressions():
    """Three and three, but the first image has two expressions and one mask."""
    with pytest.raises(ValueError, match="mask"):
        SMALL([IMAGE, IMAGE], [["a cup", "man"], ["bus"]], [[SPOT], [SPOT, SPOT]])


def test_masks_without_images():
    with pytest.raises(ValueError, match="image"):
        SMALL(text="a cup", segmentation_maps=SPOT)


# Arguments of the library

UNIT = (COLOUR / 255).astype(np.float32)
SAME_AS_PIL = {  # an image in another form and the arguments under which the library means the same
    "do_rescale=False": (UNIT, {"do_rescale": False}),
    "do_rescale=False, tensor": (torch.tensor(UNIT).permute(2, 0, 1), {"do_rescale": False}),
    "do_rescale=False, float64": (COLOUR / 255, {"do_rescale": False}),
    "rescale_factor=1": (UNIT, {"rescale_factor": 1.0}),
    "16 bits": (COLOUR.astype(np.uint16) * 257, {"rescale_factor": 1 / 65535}),
    "floats of 0 to 255": (COLOUR.astype(np.float32), {"rescale_factor": 1 / 255}),
    "channels first": (np.moveaxis(COLOUR, -1, 0), {"input_data_format": "channels_first"}),
    "channels last": (torch.tensor(COLOUR), {"input_data_format": ChannelDimension.LAST}),
    "data_format": (COLOUR, {"data_format": "channels_first"}),
    "do_convert_rgb": (COLOUR, {"do_convert_rgb": True}),
    "device": (COLOUR, {"device": "cpu"}),
    "None": (COLOUR, {"do_resize": None, "size": None, "input_data_format": None, "do_rescale": None}),
}


@pytest.mark.parametrize("nested", [False, True], ids=["arguments", "images_kwargs"])
@pytest.mark.parametrize("case", SAME_AS_PIL)
def test_arguments_that_mean_the_pil_image(case, nested):
    image, kwargs = SAME_AS_PIL[case]
    kwargs = {"images_kwargs": kwargs} if nested else kwargs
    found = SMALL(image, "a cup", return_tensors="pt", **kwargs)["pixel_values"]
    np.testing.assert_allclose(found, SMALL(IMAGE, "a cup", return_tensors="pt")["pixel_values"], atol=1e-5)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"do_normalize": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
        {"do_resize": False},
        {"resample": 0, "size": {"height": 3, "width": 11}},
        {"resample": Image.Resampling.BICUBIC},
        {"size": 12},
    ],
)
@pytest.mark.parametrize("form", ["PIL", "array"])
def test_arguments_do_what_the_image_processor_does(kwargs, form):
    expected = SMALL.image_processor(IMAGE, return_tensors="np", **kwargs)["pixel_values"]
    image = IMAGE if form == "PIL" else COLOUR
    for given_as in (kwargs, {"images_kwargs": kwargs}):
        inputs = SMALL(image, "a cup", SPOT, return_tensors="np", **given_as)
        np.testing.assert_allclose(inputs["pixel_values"], expected, atol=1e-5)
        assert inputs["labels"].shape[1:] == inputs["pixel_values"].shape[2:]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"do_rescale": False}, "`do_rescale=False` needs images of floats from 0 to 1, got 0 to 255"),
        ({"do_convert_rgb": False}, "`do_convert_rgb=False`"),
        ({"data_format": "channels_last"}, "`data_format` must be 'channels_first'.*'channels_last'"),
        ({"input_data_format": "first"}, "`input_data_format` must be one of .* got 'first'"),
        ({"input_data_format": "channels_first"}, r"shape \(5, 6, 3\)"),
        ({"input_data_format": "none"}, "`input_data_format` none"),
        ({"do_center_crop": True}, "`do_center_crop` is not supported"),
        ({"crop_size": {"height": 4, "width": 4}}, "`crop_size` is not supported"),
        ({"do_pad": True}, "`do_pad` is not supported"),
        ({"pad_size": {"height": 40, "width": 40}}, "`pad_size` is not supported"),
        ({"do_reduce_labels": True}, "`do_reduce_labels` is not supported"),
        ({"do_normalise": False}, "`do_normalise` is not an argument"),
    ],
)
def test_arguments_that_are_refused(kwargs, message):
    for given_as in (kwargs, {"images_kwargs": kwargs}):
        with pytest.raises(ValueError, match=message):
            SMALL(COLOUR, "a cup", **given_as)


def test_a_device_needs_tensors():
    with pytest.raises(ValueError, match=r"`device` needs `return_tensors='pt'`"):
        SMALL(COLOUR, "a cup", device="cpu")
    on_meta = SMALL(COLOUR, "a cup", SPOT, device="meta", return_tensors="pt")
    assert {value.device.type for value in on_meta.values()} == {"meta"}


def test_return_tensors_of_the_images_alone():
    inputs = SMALL(COLOUR, "a cup", images_kwargs={"return_tensors": "pt"})
    assert all(isinstance(value, torch.Tensor) for value in inputs.values())
    with pytest.raises(ValueError, match="`return_tensors` must be the same"):
        SMALL(COLOUR, "a cup", images_kwargs={"return_tensors": "pt"}, text_kwargs={"return_tensors": "np"})


def test_a_processor_that_does_not_rescale():
    processor = CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), image_size=8)
    processor.image_processor.do_rescale = False
    np.testing.assert_allclose(processor(UNIT)["pixel_values"][0], squashed(IMAGE, 8, 8), atol=1e-5)
    with pytest.raises(ValueError, match="floats from 0 to 1"):
        processor(IMAGE)


def normalised(mean: object, std: object) -> np.ndarray:
    return ((UNIT - np.array(mean)) / np.array(std)).astype(np.float32)


LOOKS = {
    "ImageNet": (normalised(MEAN, STD), "normalised image.*pixel_values"),
    "ImageNet, dark": (normalised(MEAN, STD) * 0.4 - 1, "normalised image"),
    "CLIP": (normalised([0.48, 0.46, 0.41], [0.27, 0.26, 0.28]), "normalised image"),
    "-1 to 1": (UNIT * 2 - 1, r"scaled to -1 to 1: use \(x \+ 1\) / 2"),
    "overshoot below": (UNIT - 0.05, "from -0.05.*slightly more than 0 to 1.*clip it"),
    "overshoot on both sides": (UNIT * 1.2 - 0.1, "slightly more than 0 to 1.*clip it"),
    "overshoot of 0 to 255": (UNIT * 260 - 3, "Clip or rescale"),
    "above 16 bits": (UNIT * 70_000, "Clip or rescale"),
    "overshoot above": (UNIT * 1.2, "Clip or rescale"),
    "overshoot above 255": (UNIT * 300, "Clip or rescale"),
}


@pytest.mark.parametrize("form", [np.array, lambda a: torch.tensor(a).permute(2, 0, 1), lambda a: a[None]])
@pytest.mark.parametrize("case", LOOKS)
def test_floats_that_fit_no_range(case, form):
    values, message = LOOKS[case]
    with pytest.raises(ValueError, match=message):
        SMALL(form(values), "a cup")


def test_floats_of_a_call_are_judged_together():
    """The second image of 0 to 255 holds nothing above 1, which alone would make it a bright one."""
    bright, dark = COLOUR.astype(np.float32), (COLOUR / 255).round().astype(np.float32)
    dark[0, 0] = 0.5
    inputs = SMALL([bright, dark], ["a cup", "man"])
    np.testing.assert_allclose(
        inputs["pixel_values"][1], squashed(Image.fromarray(dark.astype(np.uint8)), 8, 8), atol=0.02
    )
    batch = SMALL(torch.tensor(np.stack([bright, dark])).permute(0, 3, 1, 2), ["a cup", "man"])
    np.testing.assert_array_equal(batch["pixel_values"], inputs["pixel_values"])
    # what is no float says its own range
    mixed = SMALL([UNIT, IMAGE, COLOUR.astype(np.uint16) * 257, COLOUR.astype(np.int32)], ["a cup"] * 4)[
        "pixel_values"
    ]
    for values in mixed:
        np.testing.assert_allclose(values, squashed(IMAGE, 8, 8), atol=1e-5)


# 16 bits that hold a picture of 8 bits

SIXTEEN_BITS = {
    "numpy": np.array,
    "torch": torch.tensor,
    "channels first": lambda a: torch.tensor(a).permute(2, 0, 1),
    "batch": lambda a: a[None],
    "big-endian": lambda a: a.astype(">u2"),
    "PIL": lambda a: Image.fromarray(a[..., 0]),
    "with alpha": lambda a: np.concatenate([a, np.full_like(a[..., :1], 65535)], axis=-1),
}


@pytest.mark.parametrize("high", [1, 255, 1023, 4095])
@pytest.mark.parametrize("form", SIXTEEN_BITS)
def test_16_bits_that_hold_fewer_are_not_a_black_picture(form, high):
    values = np.maximum((COLOUR / 255 * high).round(), 1).astype(np.uint16)
    top = values[..., 0].max() if form == "PIL" else values.max()
    white = 255 if top < 256 else 1023 if top < 1024 else 4095
    with pytest.raises(ImageDepthError, match=rf"no value above {top} of 65535.*use `image / {white}`"):
        SMALL(SIXTEEN_BITS[form](values), "a cup")
    # a dark image beside others of 16 bits, a black one, and what the message says
    bright = SIXTEEN_BITS[form](COLOUR.astype(np.uint16) * 257)
    dark = SIXTEEN_BITS[form](values)
    if form != "batch":
        assert SMALL([bright, dark], ["a cup"] * 2)["pixel_values"][1].max() < SMALL(bright)["pixel_values"][0].max()
    assert pixels(np.zeros((4, 4), np.uint16)).max() == 0
    np.testing.assert_array_equal(pixels(values / white), np.round(values * (255 / white)))
    np.testing.assert_array_equal(pixels(values / 65535), np.round(values / 257))


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.uint32, np.float16, np.float32])
def test_other_numbers_that_hold_8_bits(dtype):
    np.testing.assert_array_equal(pixels(COLOUR.astype(dtype)), COLOUR)
    with pytest.raises(ValueError, match=r"values from 0.*to 300.*Clip or rescale it"):
        pixels(np.where(COLOUR > 240, 300, COLOUR.astype(int)).astype(dtype))


def test_a_transparent_value_of_integers_says_nothing_of_their_range():
    image = Image.fromarray(np.where(SPOT, GREY, 7).astype(np.int32))
    image.info["transparency"] = 7
    np.testing.assert_array_equal(pixels(image), np.where(SPOT[..., None] & (GREY != 7)[..., None], rgb(GREY), 255))


def tiff_of_16_bits(values: np.ndarray, order: str) -> bytes:
    """A TIFF of (height, width, 3), "<" or ">" the order of its bytes."""
    height, width, _ = values.shape
    data, tags = values.astype(f"{order}u2").tobytes(), 9
    after = 8 + 2 + 12 * tags + 4
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, after), (259, 4, 1, 1), (262, 4, 1, 2)]
    entries += [(273, 4, 1, after + 6), (277, 4, 1, 3), (278, 4, 1, height), (279, 4, 1, len(data))]
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, tags)
    packed = b"".join(struct.pack(f"{order}HHII", *entry) for entry in entries)
    return head + packed + bytes(4) + struct.pack(f"{order}HHH", 16, 16, 16) + data


DEEP_FILES = {
    "RGB": lambda grey: png_of_16_bits(np.stack([grey] * 3, axis=-1)),
    "red": lambda grey: png_of_16_bits(np.stack([grey, grey * 0, grey * 0], axis=-1)),
    "RGBA": lambda grey: png_of_16_bits(np.stack([*[grey] * 3, np.full_like(grey, 65535)], axis=-1)),
    "RGBA, alpha of 8 bits": lambda grey: png_of_16_bits(np.stack([*[grey] * 3, np.full_like(grey, 255)], axis=-1)),
    "grey and alpha": lambda grey: png_of_16_bits(np.stack([grey, np.full_like(grey, 65535)], axis=-1)),
    "grey": lambda grey: png_of_16_bits(grey[..., None]),
    "TIFF": lambda grey: tiff_of_16_bits(np.stack([grey] * 3, axis=-1), "<"),
    "big-endian TIFF": lambda grey: tiff_of_16_bits(np.stack([grey] * 3, axis=-1), ">"),
}


@pytest.mark.parametrize("kind", DEEP_FILES)
def test_files_of_16_bits_that_hold_8(tmp_path, kind):
    """Of colours of 16 bits Pillow keeps the upper 8, in which such a file has nothing."""
    path = tmp_path / "deep.png"
    grey = GREY.astype(np.uint16)
    path.write_bytes(DEEP_FILES[kind](grey))
    for image in (path, str(path), Image.open(path), Image.open(io.BytesIO(path.read_bytes()))):
        with pytest.raises(ImageDepthError, match="looks like an image of 8"):
            SMALL(image, "a cup")
    with pytest.raises(ImageDepthError, match=r"8\s*bits"):
        open_picture({"path": str(path)}) and pixels(open_picture({"path": str(path)}))
    path.write_bytes(DEEP_FILES[kind](grey * 257))
    if "alpha of 8" in kind:
        with pytest.raises(ImageDepthError, match="must not have an alpha channel of 8 bits"):
            pixels(path)
        return
    expected = pixels(path)
    np.testing.assert_array_equal(expected[..., 0], GREY)
    np.testing.assert_array_equal(pixels(Image.open(path)), expected)
    path.write_bytes(DEEP_FILES[kind](grey * 0))  # black in all of its bits
    assert pixels(path)[..., 0].max() == 0


UNEVEN = {  # colours and alpha
    "floats of 0 to 1, alpha to 255": (lambda c: c / 255, lambda c: np.full(c.shape[:2], 255.0)),
    "floats of 0 to 1, alpha to 65535": (lambda c: c / 255, lambda c: np.full(c.shape[:2], 65535.0)),
    "floats of 0 to 255, alpha to 1": (lambda c: c * 1.0, lambda c: np.ones(c.shape[:2])),
    "floats of 0 to 255, alpha to 65535": (lambda c: c * 1.0, lambda c: np.full(c.shape[:2], 65535.0)),
    "8 bits, alpha to 1": (lambda c: c, lambda c: np.ones(c.shape[:2], np.uint8)),
    "16 bits, alpha to 255": (lambda c: c.astype(np.uint16) * 257, lambda c: np.full(c.shape[:2], 255, np.uint16)),
    "16 bits, alpha to 1": (lambda c: c.astype(np.uint16) * 257, lambda c: np.ones(c.shape[:2], np.uint16)),
}


@pytest.mark.parametrize("kind", UNEVEN)
def test_alpha_has_the_range_of_the_colours(kind):
    colours, alpha = (make(COLOUR) for make in UNEVEN[kind])
    image = np.concatenate([colours, alpha[..., None]], axis=-1)
    for form in (image, torch.tensor(image.astype(np.int64) if image.dtype.kind == "u" else image)):
        with pytest.raises(ValueError, match="alpha channel of an image must have the range of its colours"):
            SMALL(form, "a cup")
    white = np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1.0 if colours.max() <= 1 else 255.0
    for share, expected in ((1, COLOUR), (0, np.full_like(COLOUR, 255))):
        image[..., 3] = white * share
        np.testing.assert_array_equal(pixels(image), expected)
    image[..., :3] = 0  # black
    image[..., 3] = white
    assert pixels(image).max() == 0


@pytest.mark.parametrize("shape", [(64, 64), (48, 96), (7, 9)])
@pytest.mark.parametrize("place", [(0, 0), (452, 602), (899, 1199), (333, 1000)])
def test_a_small_object_is_not_resized_away(shape, place):
    label_map = np.zeros((900, 1200), np.uint8)
    label_map[place[0] : place[0] + 2, place[1] : place[1] + 2] = 1
    label_map[:, 100:200] = 255  # ignored pixels are no object
    resized = resize_label_map(label_map, shape)
    rows, columns = np.nonzero(resized == 1)
    assert len(rows) == 1
    assert abs(rows[0] - place[0] * shape[0] / 900) <= 1
    assert abs(columns[0] - place[1] * shape[1] / 1200) <= 1
    label_map[label_map == 1] = 0
    assert not (resize_label_map(label_map, shape) == 1).any()
    large = np.zeros((60, 80), np.uint8)
    large[10:40, 20:70] = 1
    nearest = Image.fromarray(large).resize(shape[::-1], Image.Resampling.NEAREST)
    np.testing.assert_array_equal(resize_label_map(large, shape), np.asarray(nearest))


@pytest.mark.parametrize("text", ["[PAD]", "[CLS]", "the [SEP] cup", "the [MASK] cup", "[UNK]"])
def test_special_tokens_in_an_expression_are_text(text):
    row = SMALL(text=[text])["input_ids"][0]
    tokenizer = SMALL.tokenizer
    special = {tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id}
    end = row.index(tokenizer.sep_token_id)
    assert not special & set(row[1:end])
    assert set(row[end + 1 :]) <= {tokenizer.pad_token_id}
    name = text.strip("the cup")
    assert name.strip("[]") in "".join(SMALL.read_expressions([text])[0].unknown_words)


def test_masks_of_16_bits_that_hold_8_are_not_empty(tmp_path):
    path = tmp_path / "mask.png"
    path.write_bytes(png_of_16_bits(np.stack([SPOT * np.uint16(255)] * 3, axis=-1)))
    with pytest.raises(ImageDepthError, match=re.escape(str(path))):
        read_mask(path)
    with pytest.raises(ImageDepthError, match="8 bits"):
        SMALL(IMAGE, "a cup", Image.open(path))
    path.write_bytes(png_of_16_bits(np.stack([SPOT * np.uint16(65535)] * 3, axis=-1)))
    np.testing.assert_array_equal(read_mask(path), SPOT)


# Masks as people have them


def palette_mask(indices: np.ndarray, colours: dict[int, tuple[int, int, int]]) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette([level for index in range(256) for level in colours.get(index, (0, 0, 0))])
    return image


def short_palette(indices: np.ndarray, palette: list[int]) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette(palette)
    return image


def transparent(image: Image.Image, colour: object) -> Image.Image:
    image.info["transparency"] = colour
    return image


VOC = {0: (0, 0, 0), 1: (128, 0, 0), 255: (224, 224, 192)}
EDGE = SPOT.astype(np.uint8)
EDGE[0] = 255  # ignored


def with_alpha(colours: object, alpha: object) -> Image.Image:
    image = Image.fromarray(np.broadcast_to(np.asarray(colours, np.uint8), SIZE).copy())
    image.putalpha(Image.fromarray(np.broadcast_to(np.asarray(alpha, np.uint8), SIZE).copy()))
    return image


WHITE = SPOT.astype(np.uint8) * 255
KINDS = {
    "VOC": (lambda: palette_mask(EDGE, VOC), EDGE),
    "VOC without ignored": (lambda: palette_mask(SPOT, VOC), SPOT),
    "VOC without an object": (lambda: palette_mask(np.where(EDGE == 255, 255, 0), VOC), np.where(EDGE == 255, 255, 0)),
    "VOC, all ignored": (lambda: palette_mask(np.full(SIZE, 255), VOC), np.full(SIZE, 255)),
    "VOC, empty": (lambda: palette_mask(np.zeros(SIZE), VOC), np.zeros(SIZE)),
    "white first": (lambda: palette_mask(~SPOT, {0: (255, 255, 255)}), SPOT),
    "white first, empty": (lambda: palette_mask(np.ones(SIZE), {0: (255, 255, 255)}), np.zeros(SIZE)),
    "white second": (lambda: palette_mask(SPOT, {1: (255, 255, 255)}), SPOT),
    "grey palette, 0 and 255": (lambda: Image.fromarray(WHITE).convert("P"), SPOT),
    "grey palette, 0 and 1": (lambda: Image.fromarray(SPOT.astype(np.uint8)).convert("P"), SPOT),
    "grey palette, 0, 1 and 255": (lambda: Image.fromarray(EDGE).convert("P"), EDGE),
    "all of the palette black": (lambda: palette_mask(EDGE, {}), EDGE),
    "all of the palette red": (lambda: palette_mask(SPOT, dict.fromkeys(range(256), (200, 0, 0))), SPOT),
    "all of the palette white": (lambda: palette_mask(SPOT, dict.fromkeys(range(256), (255, 255, 255))), SPOT),
    "a black palette, all ignored": (lambda: palette_mask(np.full(SIZE, 255), {}), np.full(SIZE, 255)),
    "a palette of one colour": (lambda: short_palette(SPOT, [0, 0, 0]), SPOT),
    "a palette of one white": (lambda: short_palette(SPOT, [255, 255, 255]), SPOT),
    "no palette": (lambda: short_palette(SPOT, []), SPOT),
    "a palette too short for 255": (lambda: short_palette(EDGE, [0, 0, 0, 255, 255, 255]), EDGE),
    "too short, nothing but ignored": (
        lambda: short_palette(np.where(EDGE == 255, 255, 0), [0, 0, 0, 255, 255, 255]),
        np.where(EDGE == 255, 255, 0),
    ),
    "white second, index 5": (lambda: palette_mask(SPOT * 5, {5: (255, 255, 255)}), SPOT),
    "VOC, background transparent": (lambda: transparent(palette_mask(EDGE, VOC), 0), EDGE),
    "L, background transparent": (lambda: transparent(Image.fromarray(WHITE), 0), SPOT),
    "L, 0 and 1, background transparent": (lambda: transparent(Image.fromarray(SPOT.astype(np.uint8)), 0), SPOT),
    "L, labels, background transparent": (lambda: transparent(Image.fromarray(EDGE), 0), EDGE),
    "RGB, background transparent": (
        lambda: transparent(Image.fromarray(WHITE).convert("RGB"), (0, 0, 0)),
        SPOT,
    ),
    "RGB, a transparent colour that is nowhere": (
        lambda: transparent(Image.fromarray(WHITE).convert("RGB"), (1, 2, 3)),
        SPOT,
    ),
    "LA, opaque": (lambda: with_alpha(WHITE, 255), SPOT),
    "LA, alpha of 0": (lambda: with_alpha(WHITE, 0), SPOT),
    "LA, white where seen": (lambda: with_alpha(255, WHITE), SPOT),
    "LA, black where seen": (lambda: with_alpha(0, WHITE), SPOT),
    "LA, white seen, else hidden": (lambda: with_alpha(np.where(SPOT, 255, GREY), WHITE), SPOT),
    "RGBA, opaque": (lambda: with_alpha(WHITE, 255).convert("RGBA"), SPOT),
    "RGBA, red where seen": (
        lambda: Image.merge("RGBA", [with_alpha(255, WHITE).getchannel(c) for c in "LAAA"]),
        SPOT,
    ),
    "La": (lambda: with_alpha(255, WHITE).convert("La"), SPOT),
    "array (H, W, 4)": (lambda: np.asarray(with_alpha(255, WHITE).convert("RGBA")), SPOT),
    "tensor (4, H, W)": (
        lambda: torch.tensor(np.asarray(with_alpha(0, WHITE).convert("RGBA"))).permute(2, 0, 1),
        SPOT,
    ),
    "I;16": (lambda: Image.fromarray(SPOT.astype(np.uint16) * 65535), SPOT),
    "I;16, 0 and 1": (lambda: Image.fromarray(SPOT.astype(np.uint16)), SPOT),
    "I;16, 0 and 255": (lambda: Image.fromarray(SPOT.astype(np.uint16) * 255), SPOT),
    "I": (lambda: Image.fromarray(SPOT.astype(np.int32) * 65535), SPOT),
    "uint16": (lambda: SPOT.astype(np.uint16) * 65535, SPOT),
    "F": (lambda: Image.fromarray(SPOT.astype(np.float32)), SPOT),
    "1 and 255": (lambda: np.where(SPOT, 1, 255), np.where(SPOT, 1, 255)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_masks_as_people_have_them(kind, tmp_path):
    make, expected = KINDS[kind]
    mask = make()
    np.testing.assert_array_equal(to_label_map(mask), expected)
    np.testing.assert_array_equal(
        np.unique(SMALL(IMAGE, "a cup", [mask], size=5)["labels"]).tolist(), np.unique(expected)
    )
    np.testing.assert_array_equal(decode_mask(mask, *SIZE) if isinstance(mask, Image.Image) else expected, expected)
    # Pillow writes as many bits as a short palette needs, and so other indices
    if isinstance(mask, Image.Image) and mask.mode not in ("La", "F") and "too short" not in kind:
        suffix = "tiff" if mask.mode == "I" else "png"
        mask.save(tmp_path / f"mask.{suffix}")
        np.testing.assert_array_equal(read_mask(tmp_path / f"mask.{suffix}"), expected)


CONTRADICTS = "transparency of a mask must not contradict its colours, got"
REFUSED = {
    "0 and 128": (lambda: SPOT * 128, r"\[0, 128\].*If 128 is the object, use `mask == 128`"),
    "objects": (lambda: np.where(SPOT, 3, 2), r"\[2, 3\]"),
    "soft": (lambda: GREY, "lossily compressed"),
    "white and red": (
        lambda: palette_mask(SPOT, {0: (255, 255, 255), 1: (255, 0, 0)}),
        r"must have black for index 0, got \(255, 255, 255\)",
    ),
    "palette of objects": (lambda: palette_mask(np.where(SPOT, 3, 0), {3: (9, 9, 9)}), r"\[0, 3\]"),
    "colours": (lambda: IMAGE, r"\(5, 6, 3\)"),
    "colours and alpha": (lambda: with_alpha(WHITE, np.where(GREY > 50, 255, 0)), CONTRADICTS),
    "half transparent": (lambda: with_alpha(255, GREY), "lossily compressed"),
    "L, object transparent": (
        lambda: transparent(Image.fromarray(WHITE), 255),
        CONTRADICTS + " visible 0 and hidden 255",
    ),
    "L, 0 and 1, object transparent": (lambda: transparent(Image.fromarray(SPOT.astype(np.uint8)), 1), CONTRADICTS),
    "L, labels, object transparent": (lambda: transparent(Image.fromarray(EDGE), 1), CONTRADICTS),
    "L, labels, ignored transparent": (lambda: transparent(Image.fromarray(EDGE), 255), CONTRADICTS),
    "LA, object transparent": (lambda: with_alpha(WHITE, 255 - WHITE), CONTRADICTS),
    "LA, object transparent in part": (lambda: with_alpha(WHITE, np.where(GREY > 200, 255, 0)), CONTRADICTS),
    "RGBA, object transparent": (lambda: with_alpha(WHITE, 255 - WHITE).convert("RGBA"), CONTRADICTS),
    "RGBA, red object transparent": (
        lambda: Image.merge(
            "RGBA",
            [with_alpha(c, 255 - WHITE).getchannel("L") for c in (WHITE, 0, 0)] + [Image.fromarray(255 - WHITE)],
        ),
        CONTRADICTS,
    ),
    "VOC, object transparent": (lambda: transparent(palette_mask(SPOT, VOC), 1), CONTRADICTS),
    "black and white palette, object transparent": (
        lambda: transparent(palette_mask(SPOT, {1: (255, 255, 255)}), 1),
        CONTRADICTS,
    ),
    "array (H, W, 2)": (lambda: np.stack([WHITE, 255 - WHITE], axis=-1), CONTRADICTS),
    "tensor (4, H, W)": (lambda: torch.tensor(np.stack([WHITE] * 3 + [255 - WHITE])), CONTRADICTS),
    "a value above": (
        lambda: np.where(SPOT, 255, 128),
        r"If 128 is the object, use `mask == 128`; if it is to be ig",
    ),
    "a value below": (lambda: np.where(SPOT, 0, -1), r"If -1 is the object.*`ignore_index=-1`"),
    "a fraction": (lambda: np.where(SPOT, 0.5, 0.0), r"\[0.0, 0.5\].*If 0.5 is the object, use `mask == 0.5`\.$"),
    "NaN": (lambda: np.where(SPOT, np.nan, 0), "NaN is not allowed"),
    "CMYK": (lambda: Image.new("CMYK", (6, 5)), "A mask must have mode .* got CMYK"),
    "16 bits": (lambda: SPOT.astype(np.uint16) * 32768, r"\[0, 32768\]"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_masks_whose_object_is_unknown(kind):
    make, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        SMALL(IMAGE, "a cup", [make()])


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_jpeg_masks_are_refused_by_name(tmp_path, mode):
    for suffix, form in (("jpg", "JPEG"), ("mpo", "MPO"), ("png", "JPEG"), ("PNG", "MPO")):
        path = tmp_path / f"mask.{suffix}"
        Image.fromarray(WHITE).convert(mode).save(path, form)
        for read in (read_mask, lambda path: SMALL(IMAGE, "a cup", Image.open(path))):
            with pytest.raises(ValueError, match=r"JPEG.*PNG.*value > 127"):
                read(path)


@pytest.mark.parametrize("form", [np.array, torch.tensor, Image.fromarray], ids=["numpy", "torch", "PIL"])
def test_an_argument_decides_what_255_is(form):
    """Whether the mask holds a 1 or not."""
    ignored = np.where(EDGE == 255, 255, 0).astype(np.uint8)
    full = np.full(SIZE, 255, np.uint8)
    for mask in (EDGE, ignored, full, SPOT.astype(np.uint8), np.where(SPOT, 1, 255).astype(np.uint8)):
        np.testing.assert_array_equal(to_label_map(form(mask), ignore_index=255), mask)
        labels = SMALL(IMAGE, "a cup", form(mask), size={"height": 5, "width": 6}, ignore_index=255)["labels"]
        np.testing.assert_array_equal(labels[0], mask)
    np.testing.assert_array_equal(to_label_map(form(ignored), ignore_index=None), ignored == 255)
    np.testing.assert_array_equal(
        to_label_map(form(np.where(SPOT, 255, 7).astype(np.uint8)), ignore_index=7), np.where(SPOT, 1, 255)
    )
    with pytest.raises(ValueError, match=r"\[0, 1, 255\]"):
        to_label_map(form(EDGE), ignore_index=None)
    for wrong in (0, 1, True, 2.5, "255"):
        with pytest.raises(ValueError, match="`ignore_index` must be"):
            SMALL(IMAGE, "a cup", form(EDGE), ignore_index=wrong)


def test_255_is_ignored_in_all_masks_of_a_call_or_in_none():
    ignored = np.where(EDGE == 255, 255, 0).astype(np.uint8)
    size = {"height": 5, "width": 6}
    for order in (1, -1):
        labels = SMALL(IMAGE, ["a cup", "man"], [EDGE, ignored][::order], size=size)["labels"]
        np.testing.assert_array_equal(labels, [EDGE, ignored][::order])


@pytest.mark.parametrize(
    "one", [SPOT.astype(np.uint8), torch.tensor(SPOT).long(), Image.fromarray(SPOT.astype(np.uint8))]
)
def test_255_alone_beside_1_in_a_call(one):
    white = np.where(SPOT, 255, 0).astype(np.uint8)
    for number, masks in enumerate(([one, white], [white, one]), start=1):
        with pytest.raises(ValueError, match=rf"the object is 1 in mask {number}.*255 in mask {3 - number}"):
            SMALL(IMAGE, ["a cup", "man"], masks)
        for ignored, expected in ((None, 1), (255, 255)):
            labels = SMALL(IMAGE, ["a cup", "man"], masks, size={"height": 5, "width": 6}, ignore_index=ignored)[
                "labels"
            ]
            np.testing.assert_array_equal(labels[number - 1], SPOT)
            np.testing.assert_array_equal(labels[2 - number], SPOT * expected)
    for silent in (SPOT, torch.tensor(SPOT), SPOT.astype(np.float32), Image.fromarray(SPOT)):
        labels = SMALL(IMAGE, ["a cup", "man"], [silent, white], size={"height": 5, "width": 6})["labels"]
        np.testing.assert_array_equal(labels, [SPOT, SPOT])


def test_a_palette_of_one_colour_whose_transparency_is_the_mask():
    for height in (1, 5):
        mask = Image.fromarray(np.where(SPOT[:height], 7, 0).astype(np.uint8))
        mask.putpalette([9, 9, 9] * 256)
        buffer = io.BytesIO()
        mask.save(buffer, "PNG", transparency=bytes([0] * 7 + [255] * 249))
        np.testing.assert_array_equal(to_label_map(Image.open(buffer)), SPOT[:height])


GREYS = {index: (index,) * 3 for index in range(256)}
PALETTES = {
    "greys": GREYS,
    "black and white": {1: (255, 255, 255), 255: (255, 255, 255)},
    "only 255 is white": {255: (255, 255, 255)},
    "VOC": VOC,
    "none": {},
}


@pytest.mark.parametrize("palette", PALETTES)
@pytest.mark.parametrize("other", [*PALETTES, "L"])
def test_255_of_palettes_is_ignored_in_all_masks_of_a_call_or_in_none(palette, other):
    ignored = np.where(EDGE == 255, 255, 0)
    masks = [
        Image.fromarray(EDGE) if other == "L" else palette_mask(EDGE, PALETTES[other]),
        palette_mask(ignored, PALETTES[palette]),
    ]
    for order in (1, -1):
        labels = SMALL(IMAGE, ["a cup", "man"], masks[::order], size={"height": 5, "width": 6})["labels"]
        np.testing.assert_array_equal(labels, [EDGE, ignored][::order])
    np.testing.assert_array_equal(to_label_map(masks[1], ignore_index=255), ignored)
    np.testing.assert_array_equal(to_label_map(masks[1], ignore_index=None), ignored == 255)


def test_an_ignored_index_of_a_black_and_white_palette():
    """The object is what is white, and what is ignored is no part of the picture."""
    indices = np.where(EDGE == 255, 7, np.where(SPOT, 1, 0))
    for colour in ((0, 0, 0), (255, 255, 255), (9, 9, 9)):
        mask = palette_mask(indices, {0: (0, 0, 0), 1: (255, 255, 255), 7: colour})
        np.testing.assert_array_equal(to_label_map(mask, ignore_index=7), EDGE)
    inverted = palette_mask(~SPOT, {0: (255, 255, 255)})
    np.testing.assert_array_equal(to_label_map(inverted, ignore_index=255), SPOT)


@pytest.mark.parametrize("value", [255, 7, None, "auto", np.int64(255), np.uint8(9), torch.tensor(200)])
def test_ignore_index_of_a_processor_is_kept(value, tmp_path):
    processor = CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), image_size=8, max_length=9)
    assert processor.ignore_index == "auto"
    processor.ignore_index = value
    expected = value if value in (None, "auto") else int(value)
    assert type(processor.ignore_index) is type(expected)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    again = CrossVLTProcessor.from_args_and_dict([SMALL.image_processor, SMALL.tokenizer], processor.to_dict())
    for found in (loaded, again, copy.deepcopy(processor)):
        assert (found.ignore_index, type(found.ignore_index)) == (expected, type(expected))
    assert json.loads((tmp_path / "processor_config.json").read_text())["ignore_index"] == expected
    assert CrossVLTProcessor(SMALL.image_processor, SMALL.tokenizer, ignore_index=value).ignore_index == expected
    if isinstance(expected, int):
        mask = np.where(SPOT, 1, expected)
        labels = [
            given_to(IMAGE, "a cup", mask, size={"height": 5, "width": 6}, **options)["labels"][0]
            for given_to, options in ((loaded, {}), (SMALL, {"ignore_index": value}))
        ]
        np.testing.assert_array_equal(labels, [np.where(SPOT, 1, 255)] * 2)


@pytest.mark.parametrize("value", [0, 1, True, np.bool_(True), 2.5, np.float64(255), "255", [255]])
def test_ignore_index_must_be_a_whole_number(value):
    processor = CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), image_size=8, max_length=9)
    with pytest.raises(ValueError, match="`ignore_index` must be"):
        processor.ignore_index = value
    with pytest.raises(ValueError, match="`ignore_index` must be"):
        CrossVLTProcessor(SMALL.image_processor, SMALL.tokenizer, ignore_index=value)
    assert processor.ignore_index == "auto"


def test_labels_with_255_where_nothing_is_to_be_ignored():
    with pytest.raises(ValueError, match=r"\[0, 1, 255\].*If 255 is to be ignored, set `ignore_index=255`"):
        to_label_map(EDGE, ignore_index=None)


# Results


def test_probabilities():
    outputs = {"logits": logits_of(PROBABILITY)}
    (result,) = SMALL.post_process_masks(outputs, return_probabilities=True)
    assert result["probabilities"].dtype == torch.float32
    np.testing.assert_allclose(result["probabilities"], PROBABILITY[0], atol=1e-5)
    (result,) = SMALL.post_process_masks(outputs, [(9, 15)], threshold=0.3, return_probabilities=True)
    assert result["probabilities"].shape == (9, 15)
    assert result["mask"].equal(result["probabilities"] > 0.3)
    assert result["score"] == pytest.approx(result["probabilities"][result["mask"]].mean().item(), abs=1e-5)
    assert "probabilities" not in SMALL.post_process_masks(outputs)[0]


def test_label_maps():
    outputs = CrossVLTOutput(logits=logits_of(PROBABILITY.repeat(2, 0)))
    for sizes in (None, [(7, 9), (3, 4)], torch.tensor([[7, 9], [3, 4]])):
        maps = SMALL.post_process_semantic_segmentation(outputs, target_sizes=sizes)
        for label_map, result in zip(maps, SMALL.post_process_masks(outputs, sizes), strict=True):
            assert label_map.dtype == torch.int64
            assert label_map.equal(result["mask"].long())
    with pytest.raises(ValueError, match="got 2 results and 1 target size\\."):
        SMALL.post_process_semantic_segmentation(outputs, target_sizes=[(7, 9)])


def by_flooding(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """The largest part of a mask and how many there are, pixel by pixel."""
    left, parts = {tuple(place) for place in np.argwhere(mask)}, []
    while left:
        part, edge = set(), [min(left)]
        while edge:
            y, x = edge.pop()
            if (y, x) in left:
                left.remove((y, x))
                part.add((y, x))
                edge += [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        parts.append(part)
    found = np.zeros_like(mask)
    for place in max(parts, key=len, default=()):
        found[place] = True
    return found, len(parts)


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 12), width=st.integers(1, 12), density=st.floats(0, 1), seed=st.integers(0, 99))
def test_parts_are_those_of_a_flood(height, width, density, seed):
    mask = np.random.default_rng(seed).random((height, width)) < density
    largest, count = find_parts(torch.tensor(mask))
    assert count_parts(torch.tensor(mask)) == count
    expected, expected_count = by_flooding(mask)
    assert count == expected_count
    np.testing.assert_array_equal(largest, expected)


def test_largest_part():
    probability = np.full((1, 9, 12), 0.1)
    probability[0, 2:6, 2:6], probability[0, 8, 11], probability[0, 6, 6] = (
        0.8,
        0.99,
        0.7,
    )  # the last touches the first
    outputs = {"logits": logits_of(probability)}
    (result,), (kept,) = (SMALL.post_process_masks(outputs, largest_part=flag) for flag in (False, True))
    assert (result["parts"], result["box"]) == (2, [2, 2, 12, 9])
    assert (kept["parts"], kept["box"]) == (2, [2, 2, 7, 7])
    assert kept["mask"].sum() == result["mask"].sum() - 1 == 17
    assert kept["score"] == pytest.approx((16 * 0.8 + 0.7) / 17, abs=1e-5)
    (empty,) = SMALL.post_process_masks(outputs, threshold=0.999, largest_part=True)
    assert (empty["parts"], empty["box"]) == (0, None)


# Sizes and limits


def test_size_and_length_are_public():
    processor = CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), image_size=(16, 40), max_length=13)
    assert (processor.image_size, processor.max_length) == ((16, 40), 13)
    assert processor.tokenizer.model_max_length == 13
    assert "max_length" not in processor.tokenizer.init_kwargs
    processor.tokenizer.model_max_length = 7
    assert processor.max_length == len(processor(text="the cup " * 30)["input_ids"]) == 7
    processor.image_processor.size = {"shortest_edge": 32}
    with pytest.raises(ValueError, match="must have height and width"):
        processor.image_size  # noqa: B018


@pytest.mark.parametrize(("limit", "length"), [(512, 21), (10**30, 21), (40, 40), (12, 12)])
def test_length_of_a_tokenizer(limit, length):
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = limit
    processor = CrossVLTProcessor(SMALL.image_processor, tokenizer)
    assert processor.max_length == len(processor(text="the cup " * 60)["input_ids"]) == length


def test_a_checkpoint_of_version_0_1_keeps_its_length(tmp_path):
    """It has `max_length` in the tokenizer's file, beside a `model_max_length` that says nothing."""
    CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), image_size=8).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    assert config["model_max_length"] == 21
    path.write_text(json.dumps({**config, "max_length": 11, "model_max_length": 10**30}))
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert processor.max_length == len(processor(text="the cup " * 30)["input_ids"]) == 11
    processor.save_pretrained(tmp_path / "again")
    assert AutoProcessor.from_pretrained(tmp_path / "again").max_length == 11
    assert CrossVLTProcessor.from_tokenizer(processor.tokenizer, max_length=6).max_length == 6
    assert load_checkpoint(DEFAULT_CHECKPOINT)[1].max_length == 24  # the built-in one


# Names of files


@pytest.mark.parametrize("name", ["photo.PNG", "Photo.png", "FOLDER/Caf\u00e9.png", "folder\\cafe\u0301.png"])
def test_a_file_that_is_there_under_another_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    here = "folder/cafe\u0301.png" if "af" in name else "photo.png"
    IMAGE.save(here)
    for given_as in (name, str(tmp_path / name)):
        with pytest.raises(FileNotFoundError, match=f"did you mean .*{here}"):
            SMALL(given_as, "a cup")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"is_split_into_words": True}, "`is_split_into_words` is not supported"),
        ({"return_overflowing_tokens": True}, "`return_overflowing_tokens` is not supported"),
        ({"text_pair": ["a cup"]}, "`text_pair` is not supported"),
        ({"add_special_tokens": False}, "takes the sentence from"),
        ({"max_length": 2}, "`max_length` must be at least 3"),
        ({"image_std": [0.0, 0.0, 0.0]}, "`image_std` must not be 0"),
        ({"resample": "bogus"}, "`resample` must be one of nearest"),
        ({"fps": 3}, "`fps` is not an argument of the image processor or the tokenizer"),
        ({"videos_kwargs": {"fps": 3}}, "is not an argument of the image processor or the tokenizer"),
    ],
)
def test_arguments_that_would_break_the_result(processor, photo, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(photo, "the cup", return_tensors="pt", **arguments)


@pytest.mark.parametrize("name", ["nearest", "BICUBIC", "lanczos"])
def test_resampling_by_name(processor, photo, name):
    values = [
        processor(photo, "the cup", return_tensors="pt", resample=resample)["pixel_values"]
        for resample in (name, Image.Resampling[name.upper()], Image.Resampling.BOX)
    ]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


@pytest.mark.parametrize("threshold", [np.float32(0.5), np.float64(0.5), 0.5])
def test_thresholds_of_numpy(processor, threshold):
    logits = torch.zeros(1, 2, 4, 4)
    logits[:, 1, :2] = 1.0
    (found,) = processor.post_process_masks({"logits": logits}, [(4, 4)], threshold=threshold)
    assert int(found["mask"].sum()) == 8
