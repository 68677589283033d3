"""Masks: the same as pycocotools' own, merged as said, and broken ones named."""

import json

import numpy as np
import pytest
from fabricate import box
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from crossvlt_hf.data.masks import (
    decode_mask,
    decode_segmentation,
    draw_outlines,
    encode_mask,
    pack,
    pack_file,
    pack_outlines,
    read_mask,
    unpack,
)


HEIGHT, WIDTH = 20, 30


def ann_to_mask(segmentation, height=HEIGHT, width=WIDTH) -> np.ndarray:
    """What pycocotools itself makes of an annotation."""
    coco = COCO()
    coco.imgs = {1: {"height": height, "width": width}}
    return coco.annToMask({"image_id": 1, "segmentation": segmentation})


def blob() -> np.ndarray:
    return (np.random.default_rng(3).random((HEIGHT, WIDTH)) > 0.6).astype(np.uint8)


def uncompressed(mask: np.ndarray) -> dict:
    flat = mask.flatten(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *ends, len(flat)]).tolist()
    return {"size": list(mask.shape), "counts": counts if flat[0] == 0 else [0, *counts]}


@pytest.mark.parametrize(
    "segmentation",
    [
        [box(3, 4, 10, 8)],
        [box(3.4, 4.7, 10.2, 8.1), box(20, 2, 5, 5)],
        [box(3, 4, 10, 8), box(8, 6, 10, 8)],
        [[2.5, 1.5, 28.0, 3.25, 14.0, 18.75]],
        [box(-5, -5, 12, 12)],
        [box(20, 10, 40, 40)],
        uncompressed(blob()),
        encode_mask(blob()),
    ],
    ids=["one", "two", "overlap", "triangle", "outside low", "outside high", "crowd", "compressed"],
)
def test_masks_are_those_of_pycocotools(segmentation):
    decoded = decode_segmentation(segmentation, HEIGHT, WIDTH)
    np.testing.assert_array_equal(decoded, ann_to_mask(segmentation))
    assert decoded.dtype == np.uint8
    assert decoded.any()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.lists(st.tuples(st.floats(-5, 40), st.floats(-5, 30)), min_size=3, max_size=12),
        min_size=1,
        max_size=4,
    )
)
def test_any_polygons_are_those_of_pycocotools(polygons):
    segmentation = [[x for point in polygon for x in point] for polygon in polygons]
    np.testing.assert_array_equal(decode_segmentation(segmentation, HEIGHT, WIDTH), ann_to_mask(segmentation))
    layers = coco_mask.decode(coco_mask.frPyObjects(segmentation, HEIGHT, WIDTH))
    np.testing.assert_array_equal(
        decode_segmentation(segmentation, HEIGHT, WIDTH, "reference"), np.sum(layers, axis=2) == 1
    )


def test_a_list_of_run_lengths_as_in_refclef():
    left, right = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    left[:, :5], right[:, 3:9] = 1, 1
    parts = [encode_mask(left), encode_mask(right)]
    np.testing.assert_array_equal(decode_segmentation(parts, HEIGHT, WIDTH), left | right)
    np.testing.assert_array_equal(decode_segmentation(parts, HEIGHT, WIDTH, "reference"), left ^ right)
    as_bytes = [{**part, "counts": part["counts"].encode()} for part in parts]
    np.testing.assert_array_equal(decode_segmentation(as_bytes, HEIGHT, WIDTH), left | right)


def test_reference_merging_leaves_out_what_two_parts_share():
    overlapping = [box(2, 2, 6, 4), box(5, 3, 6, 6)]
    union, reference = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    union[2:6, 2:8] = union[3:9, 5:11] = 1
    reference[2:6, 2:8] = reference[3:9, 5:11] = 1
    reference[3:6, 5:8] = 0
    np.testing.assert_array_equal(decode_segmentation(overlapping, HEIGHT, WIDTH), union)
    np.testing.assert_array_equal(decode_segmentation(overlapping, HEIGHT, WIDTH, "reference"), reference)


def test_targets_are_united_however_their_parts_merge():
    two = pack([[box(2, 2, 6, 4)], [box(5, 3, 6, 6)]], HEIGHT, WIDTH)
    one = pack([[box(2, 2, 6, 4), box(5, 3, 6, 6)]], HEIGHT, WIDTH)
    np.testing.assert_array_equal(unpack(two, "reference"), unpack(one, "union"))
    assert unpack(two, "reference").sum() > unpack(one, "reference").sum()


def test_no_annotation_is_an_empty_mask():
    mask = unpack(pack([], HEIGHT, WIDTH))
    assert mask.shape == (HEIGHT, WIDTH)
    assert not mask.any()


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ([], r"segmentation must be .*got '\[\]'"),
        (None, r"segmentation must be .*got 'None'"),
        ("polygon", r"segmentation must be .*got 'polygon'"),
        ([[1, 2, 3, 4]], r"of at least three points, got \[1, 2, 3, 4\]"),
        ([[1, 2, 3, 4, 5, 6, 7]], "at least three points"),
        ([[1, 2, 3, 4, 5, "6"]], "at least three points"),
        ([[1, 2, 3, 4, 5, float("nan")]], "far outside any image"),
        ([[1, 2, 3, 4, 5, 1e12]], "far outside any image"),
        ([box(1, 1, 3, 3), {"size": [HEIGHT, WIDTH]}], r"polygon must be .*got {'size'"),
        ({"counts": "04"}, r"Run lengths have size None"),
        ({"size": [WIDTH, HEIGHT], "counts": "04"}, r"Run lengths have size \[30, 20\].*the image is 20x30"),
        ({"size": [HEIGHT, WIDTH]}, "counts 'None'"),
        ({"size": [HEIGHT, WIDTH], "counts": [3, 4]}, "add up to 7, but the image has 600 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": [605, -5]}, r"must be numbers of pixels, got '\[605, -5\]'"),
        ({"size": [HEIGHT, WIDTH], "counts": [1.5, 598.5]}, "must be numbers of pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": ""}, "add up to 0"),
        ({"size": [HEIGHT, WIDTH], "counts": "zzzz"}, "Run lengths"),
    ],
)
def test_broken_segmentations(segmentation, words):
    with pytest.raises(ValueError, match=words):
        decode_segmentation(segmentation, HEIGHT, WIDTH)


def test_shortened_run_lengths_are_refused():
    # pycocotools itself fills the rest with whatever lay in memory
    rle = encode_mask(blob())
    for cut in range(len(rle["counts"])):
        with pytest.raises(ValueError, match="Run lengths"):
            decode_segmentation({**rle, "counts": rle["counts"][:cut]}, HEIGHT, WIDTH)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.randoms(use_true_random=False), st.floats(0, 1))
def test_encoding_there_and_back(height, width, random, density):
    mask = np.array([[random.random() < density for _ in range(width)] for _ in range(height)], np.uint8)
    packed = pack([json.loads(json.dumps(encode_mask(mask)))], height, width)
    np.testing.assert_array_equal(unpack(packed), mask)
    np.testing.assert_array_equal(decode_segmentation(uncompressed(mask), height, width), mask)


@settings(deadline=None, max_examples=100)
@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=300), max_size=20))
def test_any_counts_are_decoded_or_refused(counts):
    try:
        mask = decode_segmentation({"size": [3, 4], "counts": counts}, 3, 4)
    except ValueError:
        return
    assert set(np.unique(mask)) <= {0, 1}


def test_outlines_are_drawn_as_phrasecut_draws_them():
    outlines = [[[1.9, 2.9], [8.2, 2], [8, 9], [1, 9]], [[15, 3], [20, 12], [11, 12]], [[25, 15]], [[0, 0], [3, 0]]]
    expected = np.zeros((HEIGHT, WIDTH), bool)
    for outline in outlines:
        if len(outline) >= 2:
            layer = Image.new("L", (WIDTH, HEIGHT), 0)
            ImageDraw.Draw(layer).polygon([(int(x), int(y)) for x, y in outline], outline=1, fill=1)
            expected |= np.array(layer) > 0
    np.testing.assert_array_equal(draw_outlines(outlines, HEIGHT, WIDTH), expected)
    np.testing.assert_array_equal(unpack(pack_outlines(outlines, HEIGHT, WIDTH), "reference"), expected)
    assert expected[2:10, 1:9].all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_mask_files(tmp_path, mode):
    mask = blob()
    picture = Image.fromarray(mask * 255)
    if mode == "P":
        picture = Image.fromarray(mask).convert("P")
        picture.putpalette([0, 0, 0, 255, 255, 255])
    path = tmp_path / "mask.png"
    picture.convert(mode).save(path)
    np.testing.assert_array_equal(read_mask(path), mask)
    np.testing.assert_array_equal(unpack(pack_file(path)), mask)


def test_mask_files_with_ignored_pixels(tmp_path):
    mask = blob()
    mask[:3] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), mask)


def test_broken_mask_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no mask file .*none.png"):
        read_mask(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(OSError, match=r"text.png cannot be read as a mask"):
        read_mask(tmp_path / "text.png")
    Image.fromarray(np.full((4, 4), 7, np.uint8)).save(tmp_path / "seven.png")
    with pytest.raises(ValueError, match=r"seven.png: A mask must have values .* got \[7\]"):
        read_mask(tmp_path / "seven.png")


@pytest.mark.parametrize(
    "form",
    [
        lambda mask: mask,
        lambda mask: mask.tolist(),
        lambda mask: mask.astype(bool),
        lambda mask: Image.fromarray(mask * 255),
        encode_mask,
        lambda mask: [uncompressed(mask)],
    ],
    ids=["array", "list", "bool", "picture", "run lengths", "list of run lengths"],
)
def test_masks_of_columns(form):
    np.testing.assert_array_equal(decode_mask(form(blob()), HEIGHT, WIDTH), blob())


def test_masks_of_columns_as_polygons():
    expected = ann_to_mask([box(3, 4, 10, 8)])
    np.testing.assert_array_equal(decode_mask([box(3, 4, 10, 8)], HEIGHT, WIDTH), expected)
    np.testing.assert_array_equal(decode_mask(box(3, 4, 10, 8), HEIGHT, WIDTH), expected)
    assert not decode_mask(None, HEIGHT, WIDTH).any()
    with pytest.raises(ValueError, match="segmentation"):
        decode_mask("mask.png", HEIGHT, WIDTH)
