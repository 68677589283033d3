"""Expressions mean what they say: checked by other programs than those that made them."""

import re
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossvlt_hf.data.objects import FAMILIES, DescribedObject, make_expressions
from crossvlt_hf.data.objects.engine import REGIONS, World, _further, in_region, related
from crossvlt_hf.data.objects.refer_options import UNCERTAIN_FAMILIES
from crossvlt_hf.data.phrases import Phrase


COCO = ("cup", "bowl", "dog", "cat", "horse", "couch", "person", "book", "chair")


def thing(label="cup", x=0.5, y=0.5, side=0.16, colour=None, **kwargs) -> DescribedObject:
    """A square object."""
    box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    colours = None if colour is None else {colour: 0.95}
    cut = min(box) <= 0 or max(box) >= 1
    return DescribedObject(label, box, (x, y), side * side, colours, **{"cut": cut, **kwargs})


def said(objects, family, seeds=30, **kwargs) -> dict[str, tuple[int, ...]]:
    """All that is said of a family over several seeds, with what it means."""
    found = {}
    for seed in range(seeds):
        for e in make_expressions(objects, np.random.default_rng(seed), [family], per_family=50, tries=500, **kwargs):
            assert e.family == family
            assert found.setdefault(e.text, e.targets) == e.targets
    return found


def test_the_noun_of_one():
    words = said([thing("cup", 0.3), thing("couch", 0.7)], "noun")
    assert words == {"the cup": (0,), "the couch": (1,), "the sofa": (1,)}
    assert said([thing("cup", 0.3), thing("cup", 0.7)], "noun") == {}


def test_classes_with_plural_names_are_said_like_those_with_singular_names():
    """One label is for one car, whatever the class is called."""
    plural = [thing("cars", 0.2, colour="red"), thing("cars", 0.5, colour="blue"), thing("buses", 0.8)]
    singular = [thing("car", 0.2, colour="red"), thing("car", 0.5, colour="blue"), thing("bus", 0.8)]
    for family in ("noun", "attribute", "superlative", "plural"):
        words = said(plural, family, labels=["cars", "buses", "trucks"])
        assert words == said(singular, family, labels=["car", "bus", "truck"])
        assert words


def test_persons_are_people():
    objects = [thing("persons", 0.2), thing("persons", 0.5), thing("person", 0.8)]
    assert said(objects, "noun") == {}
    assert said(objects, "plural")["the three people"] == (0, 1, 2)


@pytest.mark.parametrize("label", ["no hardhat", "0 car", "without_mask"])
def test_what_is_no_noun_is_not_said(label):
    unclear = "class name is not a noun"
    objects = [thing(label, 0.2, unclear=unclear, colour="red"), thing(label, 0.5, unclear=unclear), thing("cup", 0.8)]
    texts = [text for family in FAMILIES for text in said(objects, family, seeds=3, labels=[label, "cup", "dog"])]
    assert not [text for text in texts if re.search("no |without|car|hardhat|mask", text)]


def test_wider_words_only_where_the_data_set_labels_several_such_classes():
    objects = [thing("dog", 0.3), thing("cup", 0.7)]
    assert "the animal" not in said(objects, "noun")
    assert said(objects, "noun", labels=COCO)["the animal"] == (0,)


def test_colours_that_decide():
    objects = [thing("cup", 0.2, colour="red"), thing("cup", 0.8, colour="blue")]
    words = said(objects, "attribute")
    assert words == {"the red cup": (0,), "the blue cup": (1,)}


@pytest.mark.parametrize("other", [{"red": 0.5, "blue": 0.5}, {"red": 0.3, "orange": 0.6}, None])
def test_a_colour_that_another_may_have_is_not_said(other):
    rival = DescribedObject("cup", (0.7, 0.4, 0.9, 0.6), (0.8, 0.5), 0.04, other)
    assert "the red cup" not in said([thing("cup", 0.2, colour="red"), rival], "attribute")


def test_size_words_need_a_clear_difference():
    assert said([thing(side=0.4, x=0.3), thing(side=0.2, x=0.8)], "attribute")["the big cup"] == (0,)
    assert said([thing(side=0.22, x=0.3), thing(side=0.2, x=0.8)], "attribute") == {}
    words = said([thing(side=0.4, x=0.3), thing(side=0.2, x=0.8)], "superlative")
    assert words["the largest cup"] == words["the larger cup"] == (0,)
    assert words["the smallest cup"] == (1,)
    near = said([thing(side=0.22, x=0.3), thing(side=0.2, x=0.8)], "superlative")
    assert not any(word in text for text in near for word in ("large", "big", "small"))


def test_a_person_who_is_near_is_not_big():
    words = said([thing("person", side=0.4, x=0.3), thing("person", side=0.2, x=0.8)], "superlative")
    assert words["the leftmost person"] == (0,)
    assert not any(re.search("large|big|small", text) for text in words)


def test_nobody_knows_the_size_of_what_the_border_cuts():
    objects = [thing(side=0.4, x=0.4), thing(side=0.2, x=0.95)]
    assert not any(re.search("large|big|small", text) for text in said(objects, "superlative"))
    assert not any("big" in text for text in said(objects, "attribute"))


def test_places():
    objects = [thing(x=0.15, y=0.2), thing(x=0.8, y=0.2), thing(x=0.8, y=0.85)]
    words = said(objects, "absolute")
    assert words["the cup on the left"] == (0,)
    assert words["the cup at the bottom"] == (2,)
    assert words["the cup in the top right corner"] == (1,)
    assert "the cup on the right" not in words
    assert "the cup at the top" not in words


def middles(*places, **kwargs) -> dict[str, tuple[int, ...]]:
    objects = [thing(x=x, y=y, side=0.12, **kwargs) for x, y in places]
    families = ("absolute", "negation", "plural")
    found = {text: targets for family in families for text, targets in said(objects, family, seeds=15).items()}
    return {text: targets for text, targets in found.items() if text.endswith("in the middle")}


@pytest.mark.parametrize("row", [(0.08, 0.27, 0.5), (0.5, 0.74, 0.95), (0.1, 0.2, 0.35, 0.5), (0.05, 0.15, 0.25, 0.5)])
def test_the_middle_is_not_said_where_that_of_the_image_and_of_the_group_differ(row):
    assert not middles(*((place, 0.5) for place in row))
    assert not middles(*((0.5, place) for place in row))


@pytest.mark.parametrize("row", [(0.1, 0.5, 0.9), (0.2, 0.52, 0.75), (0.05, 0.5, 0.8, 0.95)])
def test_the_middle_of_the_image_and_of_the_group(row):
    place = [abs(x - 0.5) < 0.1 for x in row].index(True)
    assert middles(*((x, 0.5) for x in row))["the cup in the middle"] == (place,)
    assert middles((row[0], 0.6), *((x, 0.5) for x in row[1:]))["the cup in the middle"] == (place,)


def test_the_middle_of_two_of_some_at_one_place_and_of_a_colour():
    assert middles((0.5, 0.5), (0.1, 0.5))["the cup in the middle"] == (0,)
    assert middles((0.45, 0.5), (0.5, 0.45), (0.55, 0.5))["the cups in the middle"] == (0, 1, 2)
    red = [thing(x=0.5, side=0.12, colour="red"), thing(x=0.3, side=0.12, colour="red")]
    words = said([*red, thing(x=0.08, side=0.12, colour="blue")], "absolute")
    assert "the red cup in the middle" not in words  # of all cups, it is the rightmost


def test_a_place_near_the_middle_is_left_alone():
    assert "the cup on the left" not in said([thing(x=0.15), thing(x=0.47)], "absolute")
    assert "the cup on the left" in said([thing(x=0.15), thing(x=0.55)], "absolute")


def test_relations():
    objects = [thing("cup", 0.2), thing("bowl", 0.5), thing("cup", 0.8)]
    words = said(objects, "relation")
    assert words["the cup left of the bowl"] == words["the cup to the left of the bowl"] == (0,)
    assert words["the cup right of the bowl"] == (2,)
    assert not any("above" in text or "below" in text for text in words)


@pytest.mark.parametrize("x", [0.43, 0.4])
def test_a_relation_near_to_none_is_left_alone(x):
    words = said([thing("cup", 0.2, 0.5), thing("cup", x, 0.66), thing("bowl", 0.5, 0.5)], "relation")
    assert "the cup left of the bowl" not in words


def test_ordinals():
    objects = [thing(x=0.15), thing(x=0.4), thing(x=0.65), thing(x=0.9, side=0.12)]
    words = said(objects, "ordinal")
    assert words["the second cup from the left"] == words["the third cup from the right"] == (1,)
    assert words["the fourth cup from the left"] == (3,)
    assert not any("top" in text or "bottom" in text for text in words)  # all are of one height
    assert said(objects[:2], "ordinal") == {}


def test_negations():
    objects = [thing(x=0.2, colour="red"), thing(x=0.8, colour="blue"), thing("dog", 0.5)]
    words = said(objects, "negation")
    assert words["the cup that is not red"] == (1,)
    assert words["the cup that is not on the left"] == (1,)
    animals = [thing("dog", 0.2), thing("cat", 0.8)]
    assert said(animals, "negation", labels=COCO)["the animal that is not a dog"] == (1,)
    shoes = [thing("shoes", 0.2, colour="red"), thing("shoes", 0.8, colour="white")]
    assert said(shoes, "negation")["the shoes that are not red"] == (1,)


def test_plurals():
    objects = [thing(x=0.1, colour="red"), thing(x=0.3, colour="red"), thing(x=0.8, colour="blue"), thing("dog", 0.5)]
    words = said(objects, "plural")
    assert words["all cups"] == words["the three cups"] == (0, 1, 2)
    assert words["both red cups"] == words["the cups on the left"] == (0, 1)
    assert not any("two cups" in text for text in words)
    assert said([thing("person", 0.2), thing("person", 0.8)], "plural")["all the people"] == (0, 1)
    assert said([thing("jeans", 0.2), thing("jeans", 0.8)], "plural") == {}
    assert said([thing("tofu", 0.2), thing("tofu", 0.8)], "plural")["both pieces of tofu"] == (0, 1)


def test_what_is_not_there():
    objects = [thing("cup", 0.2, colour="red"), thing("bowl", 0.8, colour="blue")]
    words = said(objects, "no_target", labels=COCO)
    assert set(words.values()) == {()}
    assert {"the blue cup", "the red bowl", "the dog", "the cup on the right", "the cup right of the bowl"} <= set(
        words
    )
    assert "the red cup" not in words
    assert not {"the mug", "the animal"} & set(said(objects, "no_target"))


@pytest.mark.parametrize(
    ("listed", "other", "kind"),
    [
        ("dog", "lion", "animal"),
        ("car", "van", "vehicle"),
        ("apple", "strawberry", "fruit"),
        ("carrot", "spinach", "vegetable"),
        ("handbag", "tote", "bag"),
        ("sneaker", "clog", "shoe"),
    ],
)
def test_a_wider_word_is_open_beside_a_class_that_is_not_in_the_table(listed, other, kind):
    of_kind = ("dog", "cat", "horse", "car", "bus", "truck", "apple", "banana", "pear", "carrot", "onion", "potato")
    labels = (*of_kind, "handbag", "backpack", "duffel bag", "sneaker", "sandal", "boot", other)
    one, two, unknown = thing(listed, 0.2), thing(listed, 0.5), thing(other, 0.8)
    assert f"the {kind}" in said([one], "noun", seeds=12, labels=labels)
    assert f"the {kind}" not in said([one, unknown], "noun", seeds=12, labels=labels)
    assert any(text.endswith(f" {kind}s") for text in said([one, two], "plural", seeds=12, labels=labels))
    assert not any(text.endswith(f" {kind}s") for text in said([one, two, unknown], "plural", seeds=12, labels=labels))
    assert f"the {kind} on the right" in said([one], "no_target", seeds=12, labels=labels)
    assert f"the {kind} on the right" not in said([one, unknown], "no_target", seeds=12, labels=labels)
    mixed = [one, thing(labels[labels.index(listed) + 1], 0.5)]
    if kind != "bag":  # a backpack may be called a handbag
        assert any(f"the {kind} that is not a" in text for text in said(mixed, "negation", seeds=12, labels=labels))
    assert not any(
        f"the {kind} that is not a" in text for text in said([*mixed, unknown], "negation", seeds=12, labels=labels)
    )


@pytest.mark.parametrize(
    ("labels", "present"),
    [
        (("chair", "furniture"), "chair"),
        (("dog", "mammal", "pet"), "dog"),
        (("car", "automobile"), "car"),
        (("car", "automobile"), "automobile"),
        (("man", "guy"), "man"),
        (("woman", "lady"), "woman"),
        (("child", "boy", "kid"), "child"),
        (("couch", "settee"), "couch"),
        (("couch", "settee"), "settee"),
        (("gadget", "widget"), "widget"),
    ],
)
def test_what_may_be_another_word_for_what_is_there_is_not_called_absent(labels, present):
    words = said([thing(present, 0.2, colour="red")], "no_target", labels=labels)
    for label in set(labels) - {present}:
        assert f"the {label}" not in words


def test_what_the_table_has_is_called_absent_beside_what_it_has():
    labels = (*COCO, "man", "woman", "furniture", "widget")
    words = said([thing("man", 0.2), thing("couch", 0.7)], "no_target", labels=labels)
    assert {"the dog", "the woman", "the cup"} <= set(words)
    assert not any(text.split()[-1] in ("furniture", "widget", "person") for text in words)


@pytest.mark.parametrize("label", ["plant", "bat", "mouse", "ball", "lamp", "racket", "phone", "heel", "tub", "bike"])
def test_a_class_is_called_by_its_own_name_not_by_a_narrower_one(label):
    assert set(said([thing(label)], "noun")) == {f"the {label}"}


def test_what_may_be_there_is_not_called_absent():
    objects = [thing("shoe", 0.3, colour="red"), thing("person", 0.7)]
    words = said(objects, "no_target", labels=("shoe", "sneaker", "boot", "person", "man"))
    assert not any(word in text for text in words for word in ("sneaker", "boot", "the man"))
    objects = [
        thing("cup", 0.2, colour="red"),
        DescribedObject("cup", (0.6, 0.4, 0.8, 0.6), (0.7, 0.5), 0.04, {"green": 0.3}),
    ]
    assert "the green cup" not in said(objects, "no_target")


@pytest.mark.parametrize("reason", ["hardly visible", "crowd", "labelled twice"])
def test_what_is_not_clear_is_never_meant_and_makes_others_ambiguous(reason):
    hidden = thing("cup", 0.8, unclear=reason)
    assert said([thing("cup", 0.2), hidden], "noun") == {}
    assert said([hidden], "noun") == {}
    assert said([thing("cup", 0.2), thing("cup", 0.5), hidden], "plural") == {}
    assert "the dog" in said([thing("dog", 0.2), hidden], "noun")
    words = said([thing("cup", 0.1, side=0.1), thing("cup", 0.4), hidden], "superlative")
    assert "the rightmost cup" not in words
    assert words["the leftmost cup"] == (0,)


UNSEEN = DescribedObject("cup", (0.0, 0.0, 0.0, 0.0), (0.0, 0.0), 0.0, unclear="hardly visible")


@pytest.mark.parametrize("family", FAMILIES)
def test_where_an_object_has_no_pixels_nothing_is_said_of_its_place_size_or_colour(family):
    """It may be anywhere, so that a word that fits it decides nothing."""
    clear = [thing("cup", 0.7, side=0.3, colour="red"), thing("cup", 0.3, 0.7, colour="blue"), thing("dog", 0.2, 0.2)]
    assert any("cup" in text for text in said(clear, family, labels=COCO)) or family in ("noun", "ordinal")
    for text in said([*clear, UNSEEN], family, labels=COCO):
        assert "cup" not in text


def test_no_test_denies_what_is_known_of_no_place():
    known, colours = thing("lamp", 0.5), ("red", "blue")
    unseen = DescribedObject("cup", (0.0, 0.0, 0.0, 0.0), (0.0, 0.0), 0.0, {}, unclear="hardly visible")
    assert {in_region(unseen, sides) for sides in REGIONS.values()} == {None}
    for side in ("left", "right", "top", "bottom"):
        assert related(unseen, known, side) is related(known, unseen, side) is None
    for key in ("left", "right", "top", "bottom", "largest", "smallest", "big", "small"):
        assert _further(key)(unseen, known) is _further(key)(known, unseen) is None
    assert {unseen.is_coloured(colour) for colour in colours} == {None}
    world = World([unseen, known], np.random.default_rng(0))
    assert world.fits(Phrase("cup", None, "striped")) == (None, False)


def part_of(crowd, rng) -> DescribedObject:
    """A part of a crowd, somewhere in its box."""
    (left, right), (top, bottom) = (np.sort(rng.uniform(crowd.box[a], crowd.box[a + 2], 2)) for a in (0, 1))
    box = tuple(map(float, (left, top, right, bottom)))
    return DescribedObject(crowd.label, box, ((left + right) / 2, (top + bottom) / 2), (right - left) * (bottom - top))


@settings(max_examples=150, deadline=None)
@given(st.floats(0.1, 0.9), st.floats(0.1, 0.9), st.floats(0.05, 0.5), st.integers(0, 10_000))
def test_of_a_crowd_is_only_known_what_holds_for_all_of_its_parts(x, y, side, seed):
    rng = np.random.default_rng(seed)
    crowd, other = thing("person", x, y, side, unclear="crowd"), thing("lamp", *rng.uniform(0.1, 0.9, 2))
    parts = [part_of(crowd, rng) for _ in range(30)]
    tests = {str(sides): partial(in_region, sides=sides) for sides in REGIONS.values()}
    for key in ("left", "right", "top", "bottom"):
        tests[f"related {key}"] = partial(related, anchor=other, side=key)
    for key in ("left", "right", "top", "bottom", "largest", "smallest", "big", "small"):
        tests[f"{key} than"] = lambda part, key=key: _further(key)(part, other)
        tests[f"than {key}"] = lambda part, key=key: _further(key)(other, part)
    for name, test in tests.items():
        if (answer := test(crowd)) is not None:
            assert {test(part) for part in parts} == {answer}, name


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("no_target", "the person right of the lamp"),
        ("no_target", "the person left of the lamp"),
        ("no_target", "the person on the right"),
        ("absolute", "the person on the left side"),
        ("negation", "the person that is not on the right"),
        ("superlative", "the leftmost person"),
        ("superlative", "the largest person"),
        ("attribute", "the red person"),
    ],
)
def test_a_crowd_is_not_judged_by_its_centre(family, text):
    person = thing("person", 0.1, 0.5, side=0.18, colour="red")
    crowd = DescribedObject("person", (0.22, 0.3, 1.0, 0.8), (0.6, 0.55), 0.2, {"blue": 0.95}, unclear="crowd")
    lamp = thing("lamp", 0.5, 0.5)
    found = said([person, crowd, lamp], family)
    assert (text in found) == (text == "the leftmost person")  # all of the crowd is further right


@pytest.mark.parametrize("label", ["3", "猫", "cat?"])
def test_a_class_whose_name_is_no_word_is_not_said_and_may_be_anything(label):
    unknown, cup = thing(label, 0.8), thing("cup", 0.2)
    for family in FAMILIES:
        assert not any(label in text for text in said([unknown, cup, thing(label, 0.5)], family, seeds=5))
    assert ("the cup" in said([unknown, cup], "noun")) == (label == "cat?")


def test_what_is_one_thing_in_s_is_singular():
    for label in ("thermos", "lens", "rhinoceros"):
        assert f"the {label} that is not on the left" in said([thing(label, 0.2), thing(label, 0.8)], "negation")


def test_small_objects_are_not_meant_but_counted():
    objects = [thing("cup", 0.2, side=0.08), thing("cup", 0.7, side=0.3), thing("dog", 0.5, side=0.05)]
    assert said(objects, "noun", least_area=0.01) == {}
    assert set(said(objects, "superlative", least_area=0.01).values()) == {(1,)}


def test_incomplete_labels_allow_little_and_are_marked():
    objects = [thing("cup", 0.2, colour="red"), thing("cup", 0.8, colour="blue"), thing("dog", 0.5, 0.8)]
    found = make_expressions(objects, np.random.default_rng(0), exhaustive=False, per_family=5)
    assert found
    assert {e.family for e in found} <= set(UNCERTAIN_FAMILIES)
    assert not any(e.certain for e in found)
    assert all(e.certain for e in make_expressions(objects, np.random.default_rng(0)))


def test_the_same_from_the_same_seed():
    objects = [thing("cup", 0.2, colour="red"), thing("cup", 0.8, colour="blue"), thing("couch", 0.5, 0.8)]
    one, other = (make_expressions(objects, np.random.default_rng(5), per_family=3) for _ in range(2))
    assert one == other


def test_unknown_families_are_refused():
    with pytest.raises(ValueError, match="`families` must be one of"):
        make_expressions([thing()], np.random.default_rng(0), ["colour"])


OBJECTS = st.lists(
    st.builds(
        thing,
        label=st.sampled_from(["cup", "mug", "dog", "cat", "shoes", "tofu", "couch", "traffic_light"]),
        x=st.floats(0.05, 0.95),
        y=st.floats(0.05, 0.95),
        side=st.floats(0.03, 0.4),
        colour=st.sampled_from([None, "red", "blue", "white"]),
    ),
    max_size=7,
)


@settings(max_examples=150, deadline=None)
@given(OBJECTS, st.integers(0, 1000))
def test_whatever_the_scene_numbers_and_words_agree(objects, seed):
    found = make_expressions(objects, np.random.default_rng(seed), labels=COCO, per_family=3)
    by_text = {e.text: e.targets for e in found}
    assert all(by_text[e.text] == e.targets for e in found)  # no text means two things
    for e in found:
        least, most = {"plural": (2, 7), "no_target": (0, 0)}.get(e.family, (1, 1))
        assert least <= len(e.targets) <= most
        assert all(objects[index].clear for index in e.targets)
        assert e.text == " ".join(e.text.lower().split())
        assert e.text.split()[0] in ("the", "all", "every", "both")
    assert {e.family for e in found} <= set(FAMILIES)


@settings(max_examples=100, deadline=None)
@given(OBJECTS, st.integers(0, 1000))
def test_words_of_side_and_size_are_true_by_the_plainest_reading(objects, seed):
    """By centre and area alone, the object that is meant is the one."""
    keys = {
        "leftmost": lambda o: o.centre[0],
        "rightmost": lambda o: -o.centre[0],
        "topmost": lambda o: o.centre[1],
        "highest": lambda o: o.centre[1],
        "lowest": lambda o: -o.centre[1],
        "largest": lambda o: -o.area,
        "biggest": lambda o: -o.area,
        "smallest": lambda o: o.area,
    }
    for e in make_expressions(objects, np.random.default_rng(seed), ["superlative"], per_family=20):
        word = e.text.split()[1]
        if word in keys:
            label = objects[e.targets[0]].label
            rivals = [o for o in objects if o.label == label]
            if all(o.colours == rivals[0].colours for o in rivals):
                best = min(rivals, key=keys[word])
                assert keys[word](objects[e.targets[0]]) == keys[word](best)
