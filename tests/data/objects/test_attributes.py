"""What is measured of labelled objects."""

import io

import numpy as np
import pytest
from PIL import Image, ImageColor

from crossvlt_hf.data.objects import DescribedObject, describe, make_expressions
from crossvlt_hf.data.objects.attributes import COLOURS, colour_codes, measure_colours


def patch(*colours):
    """A picture of stripes of equal width below a line in red and blue, and the mask of all of it but a frame."""
    image = np.concatenate([np.full((40, 60 // len(colours), 3), c, dtype=np.uint8) for c in colours], axis=1)
    image[0, ::2], image[0, 1::2] = (255, 0, 0), (0, 0, 255)
    mask = np.zeros(image.shape[:2], dtype=bool)
    mask[2:-2, 2:-2] = True
    return image, mask


PLAIN = {
    "red": (205, 25, 35),
    "orange": (245, 135, 20),
    "yellow": (250, 222, 40),
    "green": (40, 140, 60),
    "blue": (40, 80, 200),
    "purple": (120, 50, 160),
    "pink": (245, 140, 180),
    "brown": (115, 65, 35),
    "black": (18, 18, 20),
    "grey": (125, 125, 125),
    "white": (250, 250, 250),
}


@pytest.mark.parametrize("name", COLOURS)
def test_plain_colours_have_their_names(name):
    image, mask = patch(PLAIN[name])
    (thing,) = describe(image, [mask], ["cup"])
    assert thing.colour == name
    assert thing.is_coloured(name) is True
    far = {"red": "green", "black": "white", "white": "black", "grey": "red"}.get(name, "black")
    assert thing.is_coloured(far) is False


# Of the colours of CSS: those with one name, and the names that people use of others
ONE_NAME = {
    "red": "red",
    "orange": "orange darkorange",
    "yellow": "yellow gold",
    "green": "green lime limegreen forestgreen seagreen darkgreen lightgreen",
    "blue": "blue mediumblue navy royalblue dodgerblue deepskyblue lightskyblue steelblue cornflowerblue",
    "purple": "purple darkmagenta rebeccapurple",
    "pink": "pink hotpink deeppink lightpink palevioletred",
    "brown": "saddlebrown",
    "black": "black",
    "grey": "grey dimgrey darkgrey",
    "white": "white snow ghostwhite whitesmoke mintcream",
}
SEVERAL_NAMES = {
    "purple pink": "magenta violet orchid plum mediumvioletred thistle",
    "white grey": "lightgrey silver gainsboro",
    "orange brown": "chocolate peru sandybrown sienna",
    "orange brown red": "#b7410e sienna",
    "red brown purple": "maroon",
    "red brown": "brown firebrick darkred indianred",
    "white purple": "lavender",
    "green brown": "olive darkkhaki olivedrab",
    "red orange": "tomato orangered coral salmon",
    "red pink": "crimson indianred lightcoral salmon coral",
    "yellow orange": "goldenrod darkgoldenrod",
    "yellow green": "yellowgreen greenyellow chartreuse darkkhaki olive",
    "blue green": "cyan turquoise darkturquoise lightseagreen teal darkcyan aquamarine mediumaquamarine cadetblue",
    "blue grey": "slategrey lightslategrey lightsteelblue darkslategrey",
    "blue white": "lightblue powderblue paleturquoise",
    "blue purple": "indigo slateblue mediumslateblue blueviolet darkslateblue midnightblue",
    "yellow white": "lemonchiffon lightyellow beige cornsilk wheat moccasin",
    "brown yellow": "tan burlywood khaki",
    "orange pink": "peachpuff lightsalmon darksalmon bisque",
    "white pink": "mistyrose linen antiquewhite seashell",
    "grey black": "#373739",
    "brown black": "#2d2019",
    "green black": "#0f2814",
    "blue black": "#0f122d midnightblue",
}


def plain(css: str) -> DescribedObject:
    image, mask = patch(ImageColor.getrgb(css))
    return describe(image, [mask], ["cup"])[0]


@pytest.mark.parametrize(("name", "css"), [(name, css) for name, all_ in ONE_NAME.items() for css in all_.split()])
def test_colours_with_one_name_are_certain(name, css):
    assert plain(css).colour == name
    assert plain(css).is_coloured(name) is True


@pytest.mark.parametrize(("names", "css"), [(n, css) for n, all_ in SEVERAL_NAMES.items() for css in all_.split()])
def test_colours_with_several_names_are_open(names, css):
    assert plain(css).colour is None
    assert {name: plain(css).is_coloured(name) for name in names.split()} == dict.fromkeys(names.split())


def test_where_pixels_disagree_no_colour_is_said_nor_denied():
    image, mask = patch(PLAIN["red"], PLAIN["blue"])
    (thing,) = describe(image, [mask], ["cup"])
    assert thing.colour is None
    assert (thing.is_coloured("red"), thing.is_coloured("blue"), thing.is_coloured("green")) == (None, None, False)


def test_between_two_colours_both_are_open():
    image, mask = patch((222, 72, 32))  # red or orange
    (thing,) = describe(image, [mask], ["cup"])
    assert thing.is_coloured("red") is not False
    assert thing.is_coloured("orange") is not False


def street(rng) -> np.ndarray:
    """The brightness of a picture of all shades, with noise."""
    shades = np.linspace(5, 250, 80)[None] + rng.normal(0, 6, (60, 80))
    shades[15:45, 20:60] = 120 + rng.normal(0, 6, (30, 40))
    return shades.clip(0, 255)


SEPIA = ((0.393, 0.769, 0.189), (0.349, 0.686, 0.168), (0.272, 0.534, 0.131))


@pytest.mark.parametrize("toned", ["grey", "scan", "warm", "sepia", "faint sepia", "black and white", "jpeg"])
def test_the_colours_of_a_photograph_in_grey_or_sepia_are_open(toned):
    rng = np.random.default_rng(0)
    image = np.repeat(street(rng)[..., None], 3, axis=2)
    if toned == "scan":
        image += rng.normal(0, 1, image.shape)
    if toned == "warm":
        image += (3, 0, -4)
    if "sepia" in toned:
        image = image @ np.array(SEPIA).T * (0.8 if toned == "faint sepia" else 1.0)
    if toned == "black and white":
        image = (image > 128) * 255.0
    image = image.clip(0, 255).astype(np.uint8)
    if toned == "jpeg":
        file = io.BytesIO()
        Image.fromarray(image).convert("L").save(file, "JPEG", quality=60)
        image = np.asarray(Image.open(file).convert("RGB"))
    mask = np.zeros((60, 80), dtype=bool)
    mask[15:45, 20:60] = True
    (thing,) = describe(image, [mask], ["cup"])
    assert thing.colours is None
    assert {name: thing.is_coloured(name) for name in COLOURS} == dict.fromkeys(COLOURS)
    texts = {
        e.text for seed in range(20) for e in make_expressions([thing], np.random.default_rng(seed), per_family=9)
    }
    assert texts
    assert not [text for text in texts if set(text.split()) & set(COLOURS)]


@pytest.mark.parametrize("colour", ["red", "blue", "brown", "pink", "white"])
@pytest.mark.parametrize("ground", [(128, 128, 128), (200, 190, 175), (250, 250, 250), (70, 60, 50)])
def test_one_coloured_object_makes_a_coloured_picture(colour, ground):
    image = np.full((100, 100, 3), ground, dtype=np.uint8)
    image[10:20, 10:20] = PLAIN[colour]
    image[60:70, 60:70] = (20, 90, 30)
    mask = np.zeros((100, 100), dtype=bool)
    mask[10:20, 10:20] = True
    assert describe(image, [mask], ["cup"])[0].colour == colour


def test_what_was_not_measured_is_open():
    _, mask = patch(PLAIN["red"])
    (thing,) = describe(None, [mask], ["cup"])
    assert (thing.colour, thing.is_coloured("red"), thing.is_coloured("blue")) == (None, None, None)


@pytest.mark.parametrize(("label", "colour"), [("window", "blue"), ("person", "red"), ("orange", "orange")])
def test_colours_that_nobody_says(label, colour):
    image, mask = patch(PLAIN[colour])
    (thing,) = describe(image, [mask], [label])
    assert thing.colour is None


def test_shares_add_up():
    rng = np.random.default_rng(0)
    shares = measure_colours(colour_codes(rng.integers(0, 256, (50, 50, 3), dtype=np.uint8)))
    assert set(shares) <= set(COLOURS)
    assert 0.5 < sum(shares.values()) <= 1.0 + 1e-5


def test_places_and_sizes_are_shares_of_the_picture():
    mask = np.zeros((100, 200), dtype=np.uint8)
    mask[20:60, 50:100] = 1
    (thing,) = describe(None, [mask], ["Cup"])
    assert thing.label == "cup"
    assert thing.box == (0.25, 0.2, 0.5, 0.6)
    assert thing.centre == pytest.approx((0.375, 0.4))
    assert thing.area == pytest.approx(0.1)
    assert not thing.cut
    assert thing.clear


def test_what_is_not_clear():
    empty, speck, edge, whole = (np.zeros((100, 100), dtype=bool) for _ in range(4))
    speck[50:53, 50:53] = edge[:30, 40:80] = whole[40:90, 10:60] = True
    inside = np.zeros_like(whole)
    inside[42:80, 12:50] = True
    masks = [empty, speck, edge, whole, inside, whole]
    labels = ["cup", "cup", "dog", "cat", "cat", "bowl"]
    found = describe(None, masks, labels, crowds=[False] * 5 + [True])
    unclear = ["hardly visible", "hardly visible", "", "labelled twice", "labelled twice", "crowd"]
    assert [thing.unclear for thing in found] == unclear
    assert [thing.cut for thing in found] == [False, False, True, False, False, False]
    assert describe(None, [whole, inside], ["cat", "cat"], doubles=False)[0].clear


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="the same length"):
        describe(None, [np.ones((4, 4))], [])
    with pytest.raises(ValueError, match="size of the image"):
        describe(np.zeros((4, 5, 3), dtype=np.uint8), [np.ones((4, 4))], ["cup"])


def test_descriptions_are_values():
    assert DescribedObject("cup", (0, 0, 1, 1), (0.5, 0.5), 1.0) == DescribedObject(
        "cup", (0, 0, 1, 1), (0.5, 0.5), 1.0
    )


@pytest.mark.parametrize(
    ("one", "other", "double"),
    [
        ("cup", "cup", True),
        ("sofa", "couch", True),
        ("person", "pedestrian", True),
        ("fridge", "refrigerator", True),
        ("Dining Table", "diningtable", True),
        ("bag", "backpack", True),
        ("plant", "potted plant", True),
        ("cup", "bowl", False),
        ("sofa", "dog", False),
    ],
)
def test_one_object_under_two_names_of_a_noun_is_labelled_twice(one, other, double):
    mask, apart = np.zeros((100, 100), dtype=bool), np.zeros((100, 100), dtype=bool)
    mask[20:70, 10:50] = apart[20:70, 55:95] = True
    for names in ([one, other], [other, one]):
        found = describe(None, [mask, mask, apart], [*names, one])
        assert [thing.unclear for thing in found] == ["labelled twice" if double else ""] * 2 + [""]


def test_objects_of_classes_that_are_no_words_are_left_out_with_the_reason():
    mask = np.zeros((100, 100), dtype=bool)
    mask[20:70, 10:50] = True
    (thing,) = describe(None, [mask], ["3"])
    assert (thing.unclear, thing.clear, thing.single) == ("class name is not a noun", False, True)
