"""The pictures of `crossvlt_hf.visualization`, pixel by pixel."""

import sys
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

from crossvlt_hf.evaluation.gallery import draw_tile
from crossvlt_hf.publishing.page.answers import Found, draw
from crossvlt_hf.training.pictures import _draw_pair
from crossvlt_hf.visualization import MIN_WIDTH, PALETTE, overlay, to_mask_image
from crossvlt_hf.visualization.overlay import draw_example


overlay_module = import_module("crossvlt_hf.visualization.overlay")  # not the function of that name


GREY_PHOTO = (100, 110, 120)
WHITE = (255, 255, 255)


def photo(width, height, colour=GREY_PHOTO, mode="RGB"):
    return Image.new("RGB", (width, height), colour).convert(mode)


def noise(width, height):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def box(width, height, left, top, right, bottom):
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


def pixels(picture):
    return np.asarray(picture).astype(int)  # (H, W, 3)


def tinted(colour, opacity=0.25, below=GREY_PHOTO):
    return np.array([one + (other - one) * opacity for one, other in zip(below, colour, strict=True)])


def legend_of(picture, photo_height):
    return pixels(picture)[photo_height:]


def margins(legend):
    """Width of the white columns at the left and at the right."""
    inked = np.flatnonzero((legend != 255).any(axis=(0, 2)))
    return inked[0], legend.shape[1] - 1 - inked[-1]


def rows_of(legend):
    """Number of swatches: runs of inked rows in the column of the swatches."""
    column = (legend[:, 20] != 255).any(axis=-1).astype(int)
    return int((np.diff(column, prepend=0) == 1).sum())


def test_mask_is_tinted_and_the_rest_of_the_photo_is_kept():
    image, mask = noise(400, 300), box(400, 300, 100, 80, 250, 200)
    picture = overlay(image, [mask], ["the box"], opacity=0.5)
    before, after = pixels(image), pixels(picture)[:300]
    expected = before + (np.array(PALETTE[0]) - before) * 0.5

    assert picture.mode == "RGB"
    assert picture.width == 400
    assert picture.height > 300
    inside, outside = box(400, 300, 105, 85, 245, 195), ~box(400, 300, 95, 75, 255, 205)
    assert np.abs(after - expected)[inside].max() <= 1
    assert (after[outside] == before[outside]).all()


@pytest.mark.parametrize("below", [*PALETTE, (200, 30, 30), (30, 60, 200), WHITE, (0, 0, 0), GREY_PHOTO])
def test_a_colour_stands_out_from_what_lies_below_it(below):
    """Whatever the photo shows, the contour is seen in it; two masks never have one colour."""
    left, right = box(400, 300, 50, 100, 150, 200), box(400, 300, 250, 100, 350, 200)
    picture = pixels(overlay(photo(400, 300, below), [left, right], opacity=1))
    colours = picture[150, 100], picture[150, 300]
    assert {tuple(colour) for colour in colours} <= set(PALETTE)
    assert (colours[0] != colours[1]).any()
    assert all(np.linalg.norm(colour - below) >= 120 for colour in colours)


@pytest.mark.parametrize("below", [(242, 138, 26), (200, 30, 30), (30, 160, 60), (30, 60, 200), (250, 250, 250)])
def test_a_tinted_object_keeps_its_colour(below):
    """An orange object is still nearer to orange than to any other colour that an expression may name."""
    named = np.array([(242, 138, 26), (200, 30, 30), (30, 160, 60), (30, 60, 200), (250, 250, 250), (128, 128, 128)])
    picture = pixels(overlay(photo(400, 300, below), [box(400, 300, 100, 100, 300, 200)]))
    assert tuple(named[np.linalg.norm(named - picture[150, 200], axis=1).argmin()]) == below


def test_contour_is_a_coloured_line_within_a_white_and_a_dark_one():
    picture = overlay(photo(800, 600), [box(800, 600, 200, 150, 600, 450)], ["the box"])
    across = pixels(picture)[300, :400]  # from the left, through the rim between 199 and 200
    assert (across[199:201] == PALETTE[0]).all()
    assert (across[150:190] == GREY_PHOTO).all()
    assert (across[190:200].sum(axis=-1) > 3 * 230).any(), "no white line"
    assert (across[190:200].sum(axis=-1) < sum(GREY_PHOTO) - 10).any(), "no dark line"
    assert np.abs(across[210:] - tinted(PALETTE[0])).max() <= 1


@pytest.mark.parametrize("background", [WHITE, (0, 0, 0), PALETTE[0]])
def test_contour_is_seen_on_any_background(background):
    picture = overlay(photo(400, 300, background), [box(400, 300, 100, 100, 300, 200)], ["box"], opacity=0)
    differs = np.abs(pixels(picture)[150, 90:110] - background).max(axis=-1)
    assert differs.max() > 100


def test_contour_of_a_disc_is_smooth():
    y, x = np.mgrid[:300, :400]
    disc = (x - 200) ** 2 + (y - 150) ** 2 <= 80**2
    picture = pixels(overlay(photo(400, 300, (0, 0, 0)), [disc], ["disc"], opacity=0))[:300]
    radius = np.hypot(x - 200, y - 150)
    assert np.abs(picture[np.abs(radius - 80.2) < 0.4] - PALETTE[0]).max() < 40
    assert picture[np.abs(radius - 80.2) > 5].max() == 0
    blue = np.unique(picture[..., 2])
    assert len(blue) > 20, "the edges of the lines are not anti-aliased"


@pytest.mark.parametrize("cell", [(0, 0), (299, 399), (150, 200), (255, 256)])
def test_single_pixel_is_seen(cell):
    mask = np.zeros((300, 400), bool)
    mask[cell] = True
    picture = pixels(overlay(photo(400, 300), [mask], ["speck"]))[:300]
    changed = np.argwhere((picture != GREY_PHOTO).any(axis=-1))
    assert len(changed) >= 4
    assert np.abs(changed - cell).max() <= 6


def test_contour_does_not_depend_on_the_tiles(monkeypatch):
    mask = np.random.default_rng(1).random((300, 400)) > 0.999
    whole = overlay(noise(400, 300), [mask], ["specks"])
    monkeypatch.setattr(sys.modules["crossvlt_hf.visualization.overlay"], "BLOCK", 37)
    assert (pixels(overlay(noise(400, 300), [mask], ["specks"])) == pixels(whole)).all()


def test_line_width_grows_with_the_image():
    def line_width(scale):
        mask = box(400 * scale, 300 * scale, 100 * scale, 50 * scale, 300 * scale, 250 * scale)
        picture = overlay(photo(400 * scale, 300 * scale), [mask], ["box"], opacity=0)
        across = pixels(picture)[150 * scale, : 200 * scale]
        return (across != GREY_PHOTO).any(axis=-1).sum()

    assert line_width(4) == pytest.approx(4 * line_width(1), rel=0.35)


def test_whole_image_has_a_frame():
    picture = pixels(overlay(photo(400, 300), [np.ones((300, 400), bool)], ["all"], opacity=0))[:300]
    assert (picture[0, 10:-10] == PALETTE[0]).all()
    assert (picture[10:-10, -1] == PALETTE[0]).all()
    assert (picture[20:-20, 20:-20] == GREY_PHOTO).all()


def test_later_masks_lie_over_earlier_ones_and_all_contours_are_seen():
    below, above = box(600, 400, 100, 100, 400, 300), box(600, 400, 200, 50, 500, 350)
    picture = pixels(overlay(photo(600, 400), [below, above], ["below", "above"], opacity=1))
    assert (picture[200, 150] == PALETTE[0]).all()
    assert (picture[200, 300] == PALETTE[1]).all()
    assert (picture[200, 450] == PALETTE[1]).all()
    assert (picture[200, 399:401] == PALETTE[0]).all(), "the contour below is hidden"
    assert (picture[200, 199:201] == PALETTE[1]).all()


@pytest.mark.parametrize("opacity", [0, 1])
def test_opacity_at_its_ends(opacity):
    picture = pixels(overlay(photo(400, 300), [box(400, 300, 100, 100, 300, 200)], ["box"], opacity=opacity))
    assert (picture[150, 200] == (PALETTE[0] if opacity else GREY_PHOTO)).all()


@pytest.mark.parametrize(
    "convert",
    [
        torch.from_numpy,
        Image.fromarray,
        to_mask_image,
        lambda mask: mask.astype(np.uint8),
        lambda mask: torch.from_numpy(mask).to(torch.int64) * 255,
        np.asfortranarray,
    ],
    ids=["tensor", "image 1", "image L", "uint8", "int64 tensor", "columns first"],
)
def test_kinds_of_masks_give_the_same_picture(convert):
    mask = box(340, 120, 30, 30, 90, 100)
    expected = overlay(noise(340, 120), [mask], ["box"])
    assert overlay(noise(340, 120), [convert(mask)], ["box"]).tobytes() == expected.tobytes()


def test_stacked_masks_and_numbers_of_other_libraries():
    masks = torch.stack([torch.from_numpy(box(340, 120, 30, 30, 90, 100))] * 2)
    scores = torch.tensor([0.9, 0.8])
    picture = overlay(photo(340, 120), masks, ["one", "two"], scores)
    assert picture.tobytes() == overlay(photo(340, 120), list(masks), ["one", "two"], [0.9, 0.8]).tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "P", "PA", "LA", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F"])
def test_modes_of_the_photo(mode):
    image = Image.new(mode, (330, 200)) if mode in ("PA", "LAB") else photo(330, 200, WHITE, mode)
    picture = overlay(image, [box(330, 200, 100, 50, 200, 150)], ["box"])
    assert picture.mode == "RGB"
    seen = WHITE if mode == "PA" else pixels(image.convert("RGB"))[5, 5]  # that one is transparent
    assert (pixels(picture)[5, 5] == seen).all()


def test_photo_of_16_bits_is_not_clipped():
    image = Image.fromarray(np.full((200, 330), 0x8000, np.uint16))
    picture = overlay(image, [box(330, 200, 100, 50, 200, 150)], ["box"])
    assert (np.abs(pixels(picture)[5, 5] - 128) <= 1).all()


def test_photo_is_turned_upright():
    image = photo(400, 330)
    image.getexif()[0x0112] = 6  # the camera was turned by a quarter
    mask = box(330, 400, 10, 200, 60, 380)
    picture = overlay(image, [mask], ["box"], opacity=1)
    assert picture.width == 330
    assert (pixels(picture)[300, 30] == PALETTE[0]).all()


def test_inputs_are_not_changed():
    image, masks = noise(100, 80), [box(100, 80, 10, 10, 60, 60), torch.ones(80, 100, dtype=torch.bool)]
    labels, scores = ["one\ntwo", "three"], [0.5, 0.25]
    before = image.tobytes(), masks[0].copy(), masks[1].clone()
    picture = overlay(image, masks, labels, scores)
    picture.paste((0, 0, 0), (0, 0, *picture.size))
    assert image.tobytes() == before[0]
    assert (masks[0] == before[1]).all()
    assert (masks[1] == before[2]).all()
    assert (labels, scores) == (["one\ntwo", "three"], [0.5, 0.25])


def test_no_masks_give_the_photo_alone():
    image = noise(400, 300)
    picture = overlay(image, [], [])
    assert picture is not image
    assert picture.tobytes() == image.tobytes()


def test_a_mask_alone_is_enough():
    mask = box(340, 120, 10, 10, 50, 50)
    plain = overlay(noise(340, 120), [mask], ["box"]).crop((0, 0, 340, 120))
    assert overlay(noise(340, 120), mask).tobytes() == plain.tobytes()
    assert overlay(noise(340, 120), [mask]).tobytes() == plain.tobytes()
    assert overlay(noise(340, 120), torch.from_numpy(np.asarray(mask))).tobytes() == plain.tobytes()
    assert overlay(noise(340, 120), mask, "box") == overlay(noise(340, 120), [mask], ["box"])
    assert overlay(noise(340, 120), mask, "box", 0.5) == overlay(noise(340, 120), [mask], ["box"], [0.5])


def test_results_of_the_pipeline_are_enough():
    masks = [to_mask_image(box(340, 120, 10, 10, 50, 50)), to_mask_image(box(340, 120, 90, 10, 150, 50))]
    results = [{"mask": mask, "label": f"box {n}", "score": n / 10, "box": None} for n, mask in enumerate(masks)]
    expected = overlay(noise(340, 120), masks, ["box 0", "box 1"], [0, 0.1])
    assert overlay(noise(340, 120), results) == expected
    assert overlay(noise(340, 120), results[1]) == overlay(noise(340, 120), masks[1:], ["box 1"], [0.1])
    assert overlay(noise(340, 120), results, ["a", "b"]) == overlay(noise(340, 120), masks, ["a", "b"], [0, 0.1])


def test_ignored_pixels_of_a_record_are_not_the_object():
    mask = np.zeros((120, 340), np.uint8)
    mask[:60, :60] = 1
    ignored = mask.copy()
    ignored[60:, 60:] = 255
    assert overlay(noise(340, 120), ignored) == overlay(noise(340, 120), mask)


def test_drawing_twice_gives_the_same_picture():
    mask = box(400, 300, 10, 10, 60, 60)
    assert overlay(noise(400, 300), [mask], ["a"], [1]) == overlay(noise(400, 300), [mask], ["a"], [1])


def test_legend_has_a_row_for_each_expression_in_its_colour():
    masks = [box(600, 400, 50 * i, 50, 50 * i + 40, 90) for i in range(8)]
    legend = legend_of(overlay(photo(600, 400), masks, [f"object {i}" for i in range(8)]), 400)
    assert rows_of(legend) == 8
    for colour in PALETTE:
        assert (legend == colour).all(axis=-1).sum() > 100
    left, right = margins(legend)
    assert left > 8
    assert right > 8
    assert (legend[0] == 255).all()
    assert (legend[-1] == 255).all()


def test_colours_of_many_masks_differ():
    masks = [box(600, 400, 30 * i, 50, 30 * i + 25, 90) for i in range(18)]
    picture = pixels(overlay(photo(600, 400), masks, ["object"] * 18, opacity=1))
    assert len({tuple(picture[70, 30 * i + 12]) for i in range(18)}) == 18


def test_score_is_written_right_of_the_expression():
    mask = box(600, 400, 100, 100, 200, 200)
    without = legend_of(overlay(photo(600, 400), [mask], ["the cup"]), 400)
    with_score = legend_of(overlay(photo(600, 400), [mask], ["the cup"], [0.934]), 400)
    same_decimals = legend_of(overlay(photo(600, 400), [mask], ["the cup"], [0.93]), 400)
    assert with_score.shape == without.shape
    end = without.shape[1] - margins(without)[1]
    assert (with_score[:, :end] == without[:, :end]).all()
    assert (with_score[:, end:] != 255).any()
    assert (with_score == same_decimals).all()


def test_empty_mask_gets_a_hollow_swatch_and_a_note():
    image, empty = noise(600, 400), np.zeros((400, 600), bool)
    picture = overlay(image, [empty], ["an elephant"])
    found = legend_of(overlay(image, [box(600, 400, 9, 9, 99, 99)], ["an elephant"]), 400)
    legend = legend_of(picture, 400)
    assert (pixels(picture)[:400] == pixels(image)).all()
    assert rows_of(legend) >= 1
    assert 0 < (legend == PALETTE[0]).all(axis=-1).sum() < (found == PALETTE[0]).all(axis=-1).sum() / 2
    assert margins(legend)[1] < margins(found)[1], "there is no note"


LONG = {
    "words": "the cup " * 62,
    "one word": "x" * 500,
    "wide letters": "W" * 500,
    "lines": "a\nb\r\n\tc\x00\x07\x1b[31m " * 40,
    "a book": "word " * 100_000,
}


@pytest.mark.parametrize("label", LONG.values(), ids=LONG.keys())
@pytest.mark.parametrize("size", [(600, 400), (320, 200), (60, 40), (10, 900)], ids=str)
def test_long_expression_stays_inside(size, label):
    mask = np.zeros((size[1], size[0]), bool)
    picture = overlay(photo(*size, WHITE), [mask], [label], [0.5])
    inked = np.argwhere((pixels(picture) != 255).any(axis=-1))
    assert inked[:, 1].min() >= 8
    assert inked[:, 1].max() < picture.width - 8
    assert inked[:, 0].max() < picture.height - 8
    short = overlay(photo(*size, WHITE), [mask], ["x"], [0.5])
    assert short.height < picture.height < short.height + 100, "it takes more or less than three lines"


def test_control_characters_do_not_break_the_layout():
    mask = box(600, 400, 100, 100, 200, 200)
    plain = overlay(photo(600, 400), [mask], ["the red cup"])
    for label in ("the\nred\tcup", "  the red\r\n cup\x00", "the\u202e red\u200b cup\ud800", "the red cu\u0301p"):
        assert overlay(photo(600, 400), [mask], [label]) == plain, repr(label)


def test_accents_and_dashes_are_drawn_by_their_plain_forms():
    mask = box(600, 400, 100, 100, 200, 200)
    assert overlay(photo(600, 400), [mask], ["café \N{EM DASH} à la crème"]) == overlay(
        photo(600, 400), [mask], ["cafe - a la creme"]
    )


@pytest.mark.parametrize(
    "label", ["红色的杯子", "كوب أبيض", "☕😀👩\u200d👧", "чашка", "½ ﬁ ß", "", " ", "\x00", "A" + "\u0301" * 99]
)
def test_expressions_of_any_script_are_drawn(label):
    picture = overlay(photo(400, 300), [box(400, 300, 9, 9, 99, 99)], [label], [0.5])
    assert rows_of(legend_of(picture, 300)) == 1
    assert margins(legend_of(picture, 300))[1] >= 8


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (7, 5), (60, 40), (319, 10)])
def test_tiny_photo_is_enlarged_by_a_whole_factor(size):
    image, mask = noise(*size), np.zeros((size[1], size[0]), bool)
    picture = overlay(image, [mask], ["speck"])
    factor = -(-MIN_WIDTH // size[0])
    squares = pixels(image).repeat(factor, axis=0).repeat(factor, axis=1)
    assert picture.width == size[0] * factor >= MIN_WIDTH
    assert (pixels(picture)[: size[1] * factor] == squares).all()


def test_mask_of_a_tiny_photo_is_enlarged_with_it():
    picture = pixels(overlay(photo(20, 10), [box(20, 10, 5, 2, 15, 8)], ["box"], opacity=1))  # by 16
    assert (picture[16 * 5, 16 * 5 + 4 : 16 * 15 - 4] == PALETTE[0]).all()
    assert (picture[16 * 5, : 16 * 5 - 4] == GREY_PHOTO).all()


def test_high_narrow_photo_stands_in_the_middle():
    picture = overlay(photo(10, 3000), [box(10, 3000, 0, 1000, 10, 2000)], ["a long thing"], [0.5])
    assert picture.width == MIN_WIDTH
    assert 3000 < picture.height < 3100
    assert (pixels(picture)[10, 155:165] == GREY_PHOTO).all()
    assert (pixels(picture)[:3000, :150] == 255).all()
    assert (pixels(picture)[:3000, 170:] == 255).all()


def test_wide_low_photo():
    picture = overlay(photo(3000, 30), [box(3000, 30, 1000, 0, 2000, 30)], ["the middle"], [0.5])
    assert picture.width == 3000
    assert picture.height < 150
    assert np.abs(pixels(picture)[15, 1500] - tinted(PALETTE[0])).max() <= 1


def test_legend_grows_with_the_photo():
    def legend_height(width, height):
        mask = np.zeros((height, width), bool)
        return overlay(photo(width, height), [mask], ["a cup"], [0.5]).height - height

    assert legend_height(2400, 1600) == pytest.approx(4 * legend_height(600, 400), rel=0.1)


@pytest.mark.slow
def test_photo_of_twelve_megapixels():
    masks = [box(4000, 3000, 500 + 400 * i, 400, 2400 + 400 * i, 2400) for i in range(3)]
    picture = overlay(photo(4000, 3000), masks, ["one", "two", "three"])
    corner = np.asarray(picture.crop((0, 0, 300, 3000)))
    assert (corner == GREY_PHOTO).all()
    assert picture.getpixel((500, 1500)) == PALETTE[0]
    assert picture.getpixel((3199, 1500)) == PALETTE[2]


def distance_for_eyes(one, other, eyes):
    """CIE76 distance of two colours as seen by `eyes`, a matrix on linear RGB."""

    def lab(colour):
        share = np.array(colour) / 255
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        t = to_xyz @ np.clip(np.array(eyes) @ linear, 0, 1) / (0.9505, 1, 1.089)
        x, y, z = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    return np.linalg.norm(lab(one) - lab(other))


# Machado, Oliveira and Fernandes, 2009, severity 1.0
EYES = {
    "usual": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


@pytest.mark.parametrize("eyes", EYES.values(), ids=EYES.keys())
def test_colours_are_told_apart_by_all_eyes(eyes):
    pairs = [(one, other) for i, one in enumerate(PALETTE) for other in PALETTE[:i]]
    assert min(distance_for_eyes(one, other, eyes) for one, other in pairs) >= 25


MASK = np.zeros((30, 40), bool)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (([MASK], []), "`labels` must have one entry for each of 1 masks, got 0"),
        (([MASK], ["a", "b"]), "one entry for each of 1 masks, got 2"),
        (([MASK], ["a"], [0.1, 0.2]), "`scores` must have one entry for each of 1 masks, got 2"),
        (([MASK], ["a"], []), "`scores` must have one entry for each of 1 masks, got 0"),
        (([MASK], "a"), r"`labels` must be a list of expressions, e.g. \['a'\], got a text"),
        (([MASK, MASK.T], ["a", "b"]), r"Mask 1 must have the size of the image, 40x30 .*, got 30x40"),
        (([MASK[None]], ["a"]), r"A mask must have two dimensions, .*got shape \(1, 30, 40\)"),
        (([torch.zeros(30)], ["a"]), r"two dimensions, .*got shape \(30,\)"),
        (([Image.new("RGB", (40, 30))], ["a"]), r"two dimensions, .*got shape \(30, 40, 3\)"),
        (([MASK.astype(np.float32)], ["a"]), r"got float32; use e\.g\. `mask > 0\.5`"),
        (([torch.zeros(30, 40)], ["a"]), "got float32"),
        (([torch.zeros(30, 40, dtype=torch.bfloat16)], ["a"]), "got float32"),
    ],
)
def test_errors_say_what_is_wrong_and_how_to_mend_it(request_, message):
    with pytest.raises(ValueError, match=message):
        overlay(photo(40, 30), *request_)


@pytest.mark.parametrize("opacity", [-0.1, 1.1, 45, float("nan")])
def test_opacity_beyond_its_ends(opacity):
    with pytest.raises(ValueError, match=f"`opacity` must be a number from 0 to 1, got {opacity}"):
        overlay(photo(40, 30), [MASK], ["a"], opacity=opacity)


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_photo_without_pixels(size):
    with pytest.raises(ValueError, match=str(size[0])):
        overlay(Image.new("RGB", size), [], [])


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy, Image.fromarray])
def test_mask_image(convert):
    mask = box(7, 5, 1, 2, 4, 4)
    image = to_mask_image(convert(mask))
    assert (image.mode, image.size) == ("L", (7, 5))
    assert (np.asarray(image) == mask * 255).all()


def test_mask_image_of_labels_and_of_a_mask_image():
    image = to_mask_image(np.array([[0, 1, 2], [-1, 0, 255]]))
    assert np.asarray(image).tolist() == [[0, 255, 255], [255, 0, 255]]
    again = to_mask_image(image)
    assert again is not image
    assert again == image


@pytest.mark.parametrize("mask", [np.zeros(3, bool), np.zeros((2, 2, 2), bool), np.zeros((2, 2))])
def test_mask_image_of_something_else(mask):
    with pytest.raises(ValueError, match=r"^A mask must (have|hold) "):
        to_mask_image(mask)


@pytest.mark.parametrize("fonts", [(), ("NoSuchFont.ttf",), overlay_module.SYSTEM_FONTS])
@pytest.mark.parametrize("expression", ["die größte weiße Raute", 25 * "红", "the circle " * 30])
def test_examples_are_drawn_with_any_fonts(monkeypatch, fonts, expression):
    monkeypatch.setattr(overlay_module, "SYSTEM_FONTS", fonts)
    overlay_module._system_font.cache_clear()
    tile = overlay_module.draw_example(photo(60, 40), np.ones((40, 60), bool), expression, "attribute")
    overlay_module._system_font.cache_clear()
    assert (pixels(tile)[-3:] == 255).all()  # nothing is cut at the bottom
    assert (pixels(tile)[overlay_module.TILE :, -2:] == 255).all()  # nor at the right
    assert (pixels(tile)[overlay_module.TILE :] < 128).any()


@pytest.mark.parametrize("size", [(3000, 2), (2, 3000), (700, 1), (1, 700), (1, 1)])
def test_images_of_extreme_shapes_are_drawn_by_all(size):
    image, mask = photo(*size), np.ones(size[::-1], bool)
    found = Found("the cup", 0.9, None, to_mask_image(mask), 0.1)
    assert draw_example(image, mask, "the cup", "noun").width == overlay_module.TILE
    assert max(draw_tile(image, mask, mask).size) == 360
    assert _draw_pair(image, "the cup", mask, mask).width >= 512
    assert min(draw(image, [found]).size) >= 1
    assert min(overlay(image, mask, "the cup").size) >= 1
