"""What both makers of expressions say for given seeds, pinned: what they share may change, their texts may not."""

import json
from pathlib import Path

import numpy as np
import pytest

from crossvlt_hf.data.objects import FAMILIES, DescribedObject, make_expressions
from crossvlt_hf.data.phrases import SIDES, axis_of, both, every, opposite
from crossvlt_hf.data.refshapes import EXTRAS, SPLITS, families_at, make_scene
from crossvlt_hf.data.refshapes import FAMILIES as DRAWN_FAMILIES


SAID = Path(__file__).with_name("said.json")
LABELS = ("cup", "dog", "cat", "person", "chair", "bowl")
COLOURS = ("red", "blue", "black", "white")


def drawn() -> dict[str, list]:
    """Expressions of RefShapes, with their targets, by split, index and families."""
    asked = [(split, index, families_at(split, index)) for split in SPLITS for index in range(4)]
    asked += [("train", index, [family]) for family in (*DRAWN_FAMILIES, *EXTRAS) for index in range(100, 103)]
    asked += [("validation", index, ["relation", "plural", "no_target"]) for index in range(4)]
    return {
        f"{split} {index} {' '.join(families)}": [
            [example.expression, list(example.targets), example.counterpart]
            for example in make_scene(split, index, families=families, side=32, seed=7)
        ]
        for split, index, families in asked
    }


def labelled() -> dict[str, list]:
    """Expressions for random objects, with their targets, by seed."""
    found = {}
    for seed in range(8):
        rng = np.random.default_rng(seed)
        objects = []
        for _ in range(6):
            (x, y), side = rng.uniform(0.15, 0.85, 2), float(rng.uniform(0.05, 0.14))
            colours = {str(rng.choice(COLOURS)): 0.95}
            box = (float(x) - side, float(y) - side, float(x) + side, float(y) + side)
            objects.append(
                DescribedObject(str(rng.choice(LABELS[:3])), box, (float(x), float(y)), 4 * side**2, colours)
            )
        said = make_expressions(objects, rng, FAMILIES, labels=LABELS, closed=seed % 2 == 0, per_family=3, tries=500)
        found[str(seed)] = [[e.text, e.family, list(e.targets)] for e in said]
    return found


@pytest.mark.parametrize("makes", [drawn, labelled])
def test_the_same_seeds_give_the_same_expressions(makes):
    assert makes() == json.loads(SAID.read_text())[makes.__name__]


def test_open_answers_decide_nothing_that_is_false():
    for one in (True, False, None):
        assert both(one, False) is both(False, one) is every([True, one, False]) is False
        assert opposite(opposite(one)) is one
    assert both(True, None) is every([None, True, True]) is None
    assert both(True, True) is every([]) is True


def test_sides_have_an_axis_and_grow_away_from_their_edge():
    assert [axis_of(side) for side in SIDES] == [(0, 1), (0, -1), (1, 1), (1, -1)]
