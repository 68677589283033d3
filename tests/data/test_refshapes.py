"""RefShapes: deterministic, and every expression means what its mask shows."""

import itertools
import json
import re

import numpy as np
import pytest
from datasets import concatenate_datasets, load_from_disk
from PIL import Image

import crossvlt_hf.data.refshapes.examples as refshapes_examples
from crossvlt_hf.cli import main as crossvlt
from crossvlt_hf.data import load_data
from crossvlt_hf.data.refshapes import (
    DENIALS,
    EXTRAS,
    FAMILIES,
    SPLITS,
    UNSEEN_PAIRS,
    UNSEEN_RELATIONS,
    contact_sheet,
    families_at,
    in_turn,
    load_refshapes,
    make_example,
    make_scene,
    vocabulary,
)
from crossvlt_hf.data.refshapes.expressions import MARGIN, QUERIES, Combinations, Phrase, denials
from crossvlt_hf.data.refshapes.languages import ENGLISH
from crossvlt_hf.data.refshapes.scenes import COLOURS, MIN_VISIBLE, SHAPES, Thing, rasterise, shade
from crossvlt_hf.visualization.overlay import GAP, draw_example


SIDE = 48


def examples(split, number=36, **kwargs):
    return [make_example(split, index, side=SIDE, **kwargs) for index in range(number)]


def thing(shape="circle", colour="red", x=0.5, y=0.5, radius=0.1, texture="plain") -> Thing:
    return Thing(shape, colour, texture, x, y, radius, 0.0)


def english(query, split="test") -> str:
    return query.say(ENGLISH.grammar(synonyms=split == "paraphrases"))


def one_word_apart(first: str, second: str) -> bool:
    """Whether two expressions differ in exactly one word, at the same place."""
    words, others = first.split(), second.split()
    return len(words) == len(others) and sum(a != b for a, b in zip(words, others, strict=True)) == 1


def selected(family: str, words: str, *things: Thing) -> set[int] | None:
    """What an expression selects, if it can be said of the scene at all."""
    (query,) = [query for query in QUERIES[family](things) if english(query) == words]
    return query.select(things)


def test_the_same_everywhere():
    """Fixed by seed, split and index; these numbers hold on every machine."""
    first, again = make_example("train", 7, side=SIDE), make_example("train", 7, side=SIDE)
    assert first.expression == again.expression
    assert np.array_equal(first.scene.image, again.scene.image)
    assert np.array_equal(first.mask, again.mask)
    others = [make_example("train", 8, side=SIDE), make_example("test", 7, side=SIDE)]
    others.append(make_example("train", 7, side=SIDE, seed=1))
    assert all(not np.array_equal(other.scene.image, first.scene.image) for other in others)


def test_size_changes_the_pixels_only():
    small, large = make_example("test", 3, side=SIDE), make_example("test", 3, side=2 * SIDE)
    assert (small.expression, small.targets) == (large.expression, large.targets)


@pytest.mark.parametrize("split", SPLITS)
def test_every_expression_is_verified(split):
    for example in examples(split):
        things = example.scene.things
        assert 3 <= len(things) <= 6
        assert len(example.targets) == 1
        assert example.scene.image.shape == (SIDE, SIDE, 3)
        assert example.mask.shape == (SIDE, SIDE)
        said = [q for q in QUERIES[example.family](things) if q.select(things) == set(example.targets)]
        assert example.expression in [english(q, split) for q in said]


def test_masks_are_what_is_visible():
    for example in examples("test"):
        masks = example.scene.masks
        assert (masks.sum(axis=0) <= 1).all()  # no pixel belongs to two
        for mask, drawn in zip(masks, example.scene.things, strict=True):
            whole = rasterise(drawn, SIDE)
            assert not (mask & ~whole).any()
            assert mask.sum() >= MIN_VISIBLE * whole.sum()


def test_families_in_equal_parts():
    found = [example.family for example in examples("train", 36)]
    assert {family: found.count(family) for family in FAMILIES} == dict.fromkeys(FAMILIES, 6)


def test_the_noun_alone_does_not_do():
    """In most scenes another object shares the target's shape or colour."""
    shared = [
        any(
            {other.shape, other.colour} & {target.shape, target.colour}
            for other in example.scene.things
            if other is not target
        )
        for example in examples("test", 120)
        for target in [example.scene.things[example.targets[0]]]
    ]
    assert np.mean(shared) >= 0.8


def test_held_out_splits():
    for example in examples("train", 60):
        assert not {(t.colour, t.shape) for t in example.scene.things} & UNSEEN_PAIRS
        for relation, noun in UNSEEN_RELATIONS:
            assert f"{noun} {relation}" not in example.expression
    for example in examples("unseen_pairs", 18):
        target = example.scene.things[example.targets[0]]
        assert (target.colour, target.shape) in UNSEEN_PAIRS
    for example in examples("unseen_relations", 18):
        assert any(f"{noun} {relation}" in example.expression for relation, noun in UNSEEN_RELATIONS)
    assert {example.family for example in examples("longer", 6)} == {"two_hop"}
    synonyms = [*ENGLISH.synonyms.words.values(), ENGLISH.synonyms.thing, ENGLISH.synonyms.that_is_not]
    for example in examples("paraphrases", 18):
        assert any(other in f" {example.expression} " for other in synonyms)


@pytest.mark.parametrize("family", EXTRAS)
def test_extras_are_flagged(family):
    for example in examples("test", 8, family=family):
        counts = {"plural": 2 <= len(example.targets) <= 4, "no_target": not example.targets}
        assert counts.get(family, len(example.targets) == 1)
        assert example.mask.any() == (family != "no_target")


def meanings(example, words: str) -> list[set[int] | None]:
    """What an expression selects in the scene, by every program that says it."""
    things = example.scene.things
    return [q.select(things) for family in FAMILIES for q in QUERIES[family](things) if english(q) == words]


@pytest.mark.parametrize("split", [split for split in SPLITS if split != "paraphrases"])
def test_what_is_not_there_is_one_word_from_what_is(split):
    for example in examples(split, 4, family="no_target", count=(3, 8)):
        assert example.targets == ()
        assert one_word_apart(example.expression, example.counterpart)
        assert any(found is not None and len(found) == 1 for found in meanings(example, example.counterpart))
        assert all(not found for found in meanings(example, example.expression))


def test_what_is_not_there_is_said_in_every_way_and_often_hard():
    found = examples("train", 100, family="no_target")
    for words in ("that is not", "from the", " above ", "in the top", "largest", "striped"):
        assert any(words in example.expression for example in found), words
    shown = [
        {word for thing in example.scene.things for word in (thing.shape, thing.colour, thing.texture)}
        for example in found
    ]
    kinds = {*SHAPES, *COLOURS}
    hard = [set(example.expression.split()) & kinds <= words for example, words in zip(found, shown, strict=True)]
    assert 0.6 <= np.mean(hard) <= 0.95  # the other word fits something else in the scene


def test_what_is_never_shown_is_never_denied():
    """Else a model learns that a red star is never there, and the split with red stars measures that."""
    for family in EXTRAS:
        for example in examples("train", 40, family=family):
            said = example.expression.split()
            pairs = {(colour, noun.removesuffix("s")) for colour, noun in itertools.pairwise(said)}
            assert not pairs & UNSEEN_PAIRS, example.expression
            for relation, noun in UNSEEN_RELATIONS:
                assert f"{noun} {relation}" not in example.expression
                assert f"{noun}s {relation}" not in example.expression


def test_plurals_are_said_in_every_way():
    found = [(example.expression, len(example.targets)) for example in examples("train", 120, family="plural")]
    for words in ("all ", "the ", "both ", "s on the ", "s left of the ", "s at the "):
        assert any(words in said for said, _ in found), words
    assert {count for said, count in found if said.startswith("both ")} == {2}
    assert {count for said, count in found if not said.startswith("both ")} == {2, 3, 4}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("all circles", {0, 1, 2}),
        ("the circles", {0, 1, 2}),
        ("both circles", None),
        ("both red circles", {0, 1}),
        ("all circles left of the square", {0, 1}),
        ("both circles left of the square", {0, 1}),
        ("the circles on the left", {0, 1}),
    ],
)
def test_plurals_by_hand(words, expected):
    things = (thing(x=0.1), thing(x=0.25), thing(x=0.9, colour="blue"), thing("square", x=0.6, colour="green"))
    assert selected("plural", words, *things) == expected


def test_denials_by_hand():
    things = (thing(), thing(colour="blue", x=0.9), thing("square", "blue", x=0.1))
    (query,) = [query for query in QUERIES["attribute"](things) if english(query) == "the red object"]
    assert {english(denial) for denial in denials(query, things)} == {
        f"the {colour} object" for colour in COLOURS if colour not in ("red", "blue")
    }
    (query,) = [q for q in QUERIES["relation"](things) if english(q) == "the circle right of the red circle"]
    found = {english(denial): denial.counterpart for denial in denials(query, things)}
    assert found["the square right of the red circle"] == query
    assert found["the circle left of the red circle"] == query
    assert "the circle right of the blue circle" in found  # the blue one is the last
    assert "the circle right of the green circle" in found  # there is none


def test_combinations_are_the_product():
    made = Combinations(lambda *choice: choice, "ab", (1, 2, 3), "x")
    assert list(made) == list(itertools.product("ab", (1, 2, 3), "x"))
    assert made[-1] == ("b", 3, "x")
    assert list(Combinations(lambda *choice: choice, "ab", ())) == []


@pytest.mark.parametrize(
    ("families", "order"),
    [
        (["plural", "no_target"], ["plural", "no_target"]),
        ({"plural": 3, "no_target": 1}, ["plural", "plural", "no_target", "plural"]),
        ({"plural": 0.5, "no_target": 0.5}, ["plural", "no_target"]),
        ({"attribute": 0.25, "two_hop": 0.25, "plural": 0.5}, ["plural", "attribute", "two_hop", "plural"]),
        (list(FAMILIES), list(FAMILIES)),
    ],
)
def test_families_in_turn(families, order):
    assert in_turn(families) == order


def test_shares_of_families():
    shares = {"attribute": 0.1, "relation": 0.2, "two_hop": 0.3, "plural": 0.15, "no_target": 0.25}
    dataset = load_refshapes("train", scenes=20, expressions=2, side=32, families=shares)
    found = [family for row in range(40) for family in [dataset[row]["family"]]]
    assert {family: found.count(family) / 40 for family in shares} == shares
    assert len({*found[:20]}) == 5  # spread evenly
    for row in range(0, 20, 2):
        first, second = dataset[row], dataset[row + 1]
        assert first["expressions"] != second["expressions"]
        assert not (first["mask"] & second["mask"]).any()


def test_families_stay_with_their_rows(tmp_path):
    """Joined, shuffled, saved and read again."""
    parts = [
        load_refshapes("train", scenes=4, side=32, families=families)
        for families in (None, ["plural", "no_target"], {"two_hop": 3, "attribute": 1})
    ]
    parts.append(load_refshapes("train", scenes=2, side=32, family="negation"))
    expected = [row["family"] for part in parts for row in part]
    assert expected[:6] == [*FAMILIES[:4], "plural", "no_target"]
    assert expected[8:] == ["two_hop", "two_hop", "attribute", "two_hop", "negation", "negation"]
    order = list(range(len(expected)))[::-1]
    concatenate_datasets(parts).select(order).save_to_disk(tmp_path / "saved")
    assert [row["family"] for row in load_from_disk(tmp_path / "saved")] == expected[::-1]


@pytest.mark.parametrize(
    ("families", "message"),
    [
        ({}, "`families` must be a list of names, .* got {}"),
        ([], r"`families` must be a list .* got \[\]"),
        ("plural", "`families` must be a list .* got 'plural'"),
        (7, "`families` must be a list .* got 7"),
        (["plural", "riddle"], "`families` must be one of attribute, .*got 'riddle'"),
        ([["plural"]], "`families` must be one of"),
        (["plural", "two_hop", "plural"], "`families` must have each name once"),
        ({"plural": 0}, "`families` must have shares above 0, got 0 for 'plural'"),
        ({"plural": -1}, "got -1"),
        ({"plural": True}, "got True"),
        ({"plural": "2"}, "got '2'"),
        ({"plural": float("nan")}, "got nan"),
        ({"plural": float("inf")}, "got inf"),
        ({"plural": 1, "two_hop": 0.333333}, "`families` has shares of too many digits, .*; use integers"),
    ],
)
def test_families_that_cannot_be(families, message):
    with pytest.raises(ValueError, match=message):
        load_refshapes("train", families=families)


def test_family_or_families():
    with pytest.raises(ValueError, match="Set only one of `family` and `families`, got 'plural'"):
        load_refshapes("train", family="plural", families=["plural"])


@pytest.mark.parametrize("family", ["attribute", "absolute", "ordinal", "superlative", "negation"])
def test_a_split_that_a_family_cannot_have(family):
    with pytest.raises(
        ValueError, match=f"`family` must be one of those with relations .* unseen_relations, got '{family}'"
    ):
        make_example("unseen_relations", 0, family=family)


def test_scenes_too_small_for_their_expressions(monkeypatch):
    monkeypatch.setattr(refshapes_examples, "TRIES", 30)
    with pytest.raises(
        ValueError, match="3 to 3 objects in split 'train' have no expressions of the families plural, plural"
    ):
        make_scene("train", 0, families=["plural", "plural"], count=(3, 3))


def test_vocabulary():
    words = vocabulary()
    assert len(words) < 100
    for split in SPLITS:
        for example in examples(split, 12):
            assert set(example.expression.split()) <= set(words)
    for family in EXTRAS:
        assert set(make_example("test", 0, side=SIDE, family=family).expression.split()) <= set(words)


# ---- meaning, by hand

LEFT, MIDDLE, RIGHT = thing(x=0.2), thing(x=0.5, colour="blue"), thing(x=0.8, shape="square")


def test_relation_by_hand():
    words = "the circle left of the square"
    assert selected("relation", words, LEFT, RIGHT, thing(x=0.95)) == {0}
    assert selected("relation", words, LEFT, RIGHT, MIDDLE) == {0, 2}
    assert selected("relation", words, LEFT, RIGHT, thing(x=0.8 - MARGIN / 2)) is None  # nobody can tell


def test_absolute_by_hand():
    assert selected("absolute", "the circle on the left", LEFT, MIDDLE) == {0}
    assert selected("absolute", "the circle on the left", LEFT, thing(x=0.4)) is None
    corner = thing(x=0.2, y=0.2)
    assert selected("absolute", "the circle in the top left corner", corner, thing(x=0.2, y=0.45)) is None
    assert selected("absolute", "the circle in the top left corner", corner, thing(x=0.2, y=0.9)) == {0}


def test_ordinal_by_hand():
    row = [thing(x=0.7), thing(x=0.1), thing(x=0.4)]
    assert selected("ordinal", "the second circle from the left", *row) == {2}
    assert selected("ordinal", "the third circle from the right", *row) == {1}
    assert selected("ordinal", "the second circle from the top", *row) is None  # all at one height


def test_superlative_by_hand():
    assert selected("superlative", "the largest circle", thing(radius=0.1), thing(radius=0.15)) == {1}
    assert selected("superlative", "the largest circle", thing(radius=0.1), thing(radius=0.105)) is None
    assert selected("superlative", "the highest circle", thing(y=0.1), thing(y=0.9)) == {0}


def test_negation_by_hand():
    assert selected("negation", "the circle that is not red", LEFT, MIDDLE) == {1}
    assert selected("negation", "the object that is not a circle", LEFT, RIGHT) == {1}


def test_attribute_says_no_more_than_needed():
    things = (thing(), thing(colour="blue"), thing(shape="square", colour="blue"))
    words = {english(query) for query in QUERIES["attribute"](things)}
    assert {"the red object", "the blue circle", "the square"} <= words
    assert "the blue square" not in words


def test_two_hops_by_hand():
    things = (thing(x=0.1), thing(x=0.9), thing("square", x=0.5), thing("square", y=0.2, x=0.7), thing("star", y=0.35))
    assert selected("two_hop", "the circle left of the square below the star", *things) == {0}


def test_phrase():
    assert str(Phrase("star", "red", "dotted")) == "dotted red star"
    assert Phrase("circle").select((LEFT, MIDDLE, RIGHT)) == {0, 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("training", 0), "`split` must be one of train, .*got 'training'. Did you mean train?"),
        (("train", -1), "`index` must be an integer of at least 0, got -1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_example(*arguments)
    with pytest.raises(ValueError, match=r"`family` must be one of .*got 'riddle'"):
        make_example("train", 0, family="riddle")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scenes": "010"}, "`scenes` must be an integer from 1 to 2000000, got '010'"),
        ({"scenes": None}, "`scenes` must be an integer from 1 to 2000000, got None"),
        ({"scenes": 2.0}, "`scenes` must be an integer"),
        ({"scenes": True}, "`scenes` must be an integer"),
        ({"expressions": "x"}, "`expressions` must be an integer from 1 to 3, got 'x'"),
        ({"side": "big"}, "`side` must be an integer from 32 .*got 'big'"),
        ({"side": 64.5}, "`side` must be an integer from 32 .*got 64.5"),
        ({"seed": "x"}, "`seed` must be an integer from 0 .*got 'x'"),
        ({"seed": -1}, "`seed` must be an integer from 0 .*got -1"),
        ({"count": "x"}, "`count` must be two integers in order, from 3 to 8, got 'x'"),
        ({"count": 4}, "`count` must be two integers in order, from 3 to 8, got 4"),
        ({"count": [5, 4]}, r"`count` must be two integers in order, from 3 to 8, got \[5, 4\]"),
        ({"family": 3}, "`family` must be one of .*got '?3"),
    ],
)
def test_options_of_a_wrong_type(options, message, capsys):
    with pytest.raises(ValueError, match=message):
        load_data("refshapes", "test", **{"scenes": 1, **options})
    text = ["--option", *(f"{name}={json.dumps(value)}" for name, value in options.items())]
    assert crossvlt(["evaluate", "--data", "refshapes", "--split", "test", *text]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert re.search(message.split(",")[0], errors[0])


@pytest.mark.parametrize("split", ["train", "test"])
def test_two_expressions_of_a_scene_mean_different_things(split):
    found = []
    for index in range(30):
        pair = make_scene(split, index, families=families_at(split, index, 2), side=SIDE)
        assert pair[0].scene is pair[1].scene
        assert not set(pair[0].targets) & set(pair[1].targets)
        found += [example.family for example in pair]
        for example in pair:
            (query,) = [q for q in QUERIES[example.family](example.scene.things) if english(q) == example.expression]
            assert query.select(example.scene.things) == set(example.targets)
    assert {family: found.count(family) for family in FAMILIES} == dict.fromkeys(FAMILIES, 10)


def test_as_many_objects_as_asked_for():
    assert {len(example.scene.things) for example in examples("test", 12, count=(8, 8))} == {8}
    assert {len(example.scene.things) for example in examples("train", 40, count=(3, 6))} == {3, 4, 5, 6}


def test_patterns_are_seen_on_every_colour():
    for colour in COLOURS:
        for texture in ("striped", "dotted"):
            shades = shade(thing(colour=colour, texture=texture), np.ones((SIDE, SIDE), dtype=bool))
            assert np.ptp(shades, axis=0).max() >= 60, (colour, texture)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"families": []}, "`families` is empty"), ({"families": ["relation"], "count": (3, 9)}, "`count` must be")],
)
def test_scenes_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        make_scene("train", 0, **options)


def test_contact_sheet():
    sheet = contact_sheet(examples("test", 5), columns=3)
    tile = draw_example(Image.new("RGB", (9, 9)), np.ones((9, 9), dtype=bool), "the star", "attribute")
    assert sheet.size == (3 * (tile.width + GAP) + GAP, 2 * (tile.height + GAP) + GAP)


# Expressions without a target of one kind, beside their counterparts


def words_that_differ(expression, other):
    pairs = zip(expression.split(), other.split(), strict=True)
    return [pair for pair in pairs if pair[0] != pair[1]]


@pytest.mark.parametrize("kind", DENIALS)
def test_a_kind_of_no_target_beside_its_counterpart(kind):
    for index in range(6):
        for families in ([kind, "attribute"], ["superlative", kind]):
            both = make_scene("train", index, families=families, counterparts=True)
            (denial,) = (example for example in both if example.family == "no_target")
            (true,) = (example for example in both if example.family != "no_target")
            assert (denial.targets, len(true.targets)) == ((), 1)
            assert denial.counterpart == true.expression
            assert true.family == ("relation" if "anchor" in kind else kind.removeprefix("no_target_"))
            if "anchor" not in kind:
                continue
            ((word, right),) = words_that_differ(denial.expression, true.expression)
            anchors = [re.split(r" (?:left of|right of|above|below) ", each.expression)[1] for each in both]
            assert {word, right} <= {*anchors[0].split(), *anchors[1].split()}
            shown = {name for thing in denial.scene.things for name in (thing.colour, thing.shape, thing.texture)}
            assert right in shown
            if kind == "no_target_missing_anchor":
                assert word not in shown


@pytest.mark.parametrize("families", [["no_target", "plural", "no_target"], ["plural", "no_target", "relation"]])
def test_counterparts_have_a_place_each_and_targets_of_their_own(families):
    for index in range(12):
        examples = make_scene("train", index, families=families, counterparts=True)
        targets = [target for example in examples for target in example.targets]
        assert len(targets) == len(set(targets))
        first = next(example for example in examples if example.counterpart)
        assert next(example for example in examples if example.targets).expression == first.counterpart
        assert sum(example.counterpart is not None for example in examples) == families.count("no_target")


def test_counterparts_are_rows():
    families = {"relation": 1, "no_target_anchor": 1}
    rows = load_refshapes("test", scenes=4, expressions=2, families=families, counterparts=True)
    for index in range(4):
        scene = make_scene("test", index, families=["relation", "no_target_anchor"], counterparts=True)
        pairs = [(row["family"], row["expressions"][0]) for row in rows.select(range(2 * index, 2 * index + 2))]
        assert sorted(pairs) == sorted((example.family, example.expression) for example in scene)
    plain = load_refshapes("test", scenes=4, expressions=2, families=families)
    assert [row["image_id"] for row in plain] == [row["image_id"] for row in rows]
    with pytest.raises(ValueError, match="`counterparts` needs several expressions per scene, got 1"):
        load_refshapes("test", families=["no_target"], counterparts=True)
    for wrong in ("maybe", 2, None):
        with pytest.raises(ValueError, match="`counterparts` must be true or false, got"):
            load_refshapes("test", expressions=2, families=["no_target", "relation"], counterparts=wrong)
    for families in (None, ["plural", "relation"]):
        with pytest.raises(ValueError, match="`counterparts` needs a family of expressions without a target"):
            load_refshapes("test", expressions=2, families=families, counterparts=True)
    assert make_scene("unseen_relations", 0, families=["no_target_missing_anchor"])[0].targets == ()
    with pytest.raises(ValueError, match="no_target_missing_anchor, got 'no_target_anchors'"):
        load_refshapes("test", families=["no_target_anchors"])
