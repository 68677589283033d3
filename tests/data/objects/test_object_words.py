"""What objects are called, and which words fit which classes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossvlt_hf.data.objects.words import clean, in_table, lookup, pluralise, usable_kinds, word_fits
from crossvlt_hf.data.refshapes.scenes import SHAPES


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("cup", "cups"),
        ("box", "boxes"),
        ("bench", "benches"),
        ("toothbrush", "toothbrushes"),
        ("cherry", "cherries"),
        ("key", "keys"),
        ("person", "people"),
        ("computer mouse", "computer mice"),
        ("sheep", "sheep"),
        ("piece of tofu", "pieces of tofu"),
        ("chest of drawers", "chests of drawers"),
        ("wine glass", "wine glasses"),
    ],
)
def test_plurals(one, many):
    assert pluralise(one) == many


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("dining table", "dining table"),
        ("dining-table", "dining table"),
        ("DiningTable_2", "dining table"),
        ("traffic_light", "traffic light"),
        ("t-shirt", "t-shirt"),
        ("Chair.003", "chair"),
        ("person, individual, someone", "person"),
        ("TV", "tv"),
        ("12", "12"),
    ],
)
def test_class_names_become_words(label, words):
    assert clean(label) == words


@given(st.text(min_size=1, max_size=30))
def test_any_class_name_is_a_noun(label):
    assert clean(clean(label)) == clean(label)
    noun = lookup(label)
    assert noun.name in noun.names
    assert word_fits(noun.name, label) is True


@pytest.mark.parametrize(
    ("word", "label", "fits"),
    [
        ("sofa", "couch", True),
        ("couch", "sofa", True),
        ("table", "diningtable", True),
        ("animal", "swan", True),  # by way of "bird"
        ("bag", "duffel bag", True),
        ("shoe", "flip flop", True),
        ("animal", "teddy bear", None),
        ("dog", "hot dog", None),
        ("man", "person", None),
        ("sneaker", "shoe", None),  # it may be one
        ("mug", "cup", None),
        ("cup", "coffee mug", None),
        ("shoe", "shoes", None),
        ("car", "sports car", None),  # what the table does not know is neither said nor denied
        ("dog", "cat", False),
        ("vehicle", "dog", False),
    ],
)
def test_a_word_fits_a_class(word, label, fits):
    assert word_fits(word, label) is fits


def test_words_for_pairs_and_masses_are_no_plurals_of_something():
    assert lookup("jeans").form == "plural"
    assert lookup("rice").form == "mass"
    assert lookup("goggles").form == "plural"  # not in the table
    assert [lookup(word).form for word in ("glass", "bus", "walrus", "tennis")] == ["count"] * 4


def test_wider_words_need_several_labelled_classes():
    assert usable_kinds(["dog", "cat", "chair"]) == frozenset()
    assert usable_kinds(["dog", "cat", "horse", "chair"]) == {"animal"}


def test_the_table_holds_coco_and_voc_and_knows_what_it_does_not_hold():
    assert all(map(in_table, ["person", "aeroplane", "tvmonitor", "hair drier", "sports ball", "potted plant"]))
    assert not any(map(in_table, SHAPES))
