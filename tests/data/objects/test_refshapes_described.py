"""The engine for labelled objects on RefShapes: what both engines say, they mean alike."""

import numpy as np

from crossvlt_hf.data.objects import DescribedObject, make_expressions
from crossvlt_hf.data.refshapes import make_example
from crossvlt_hf.data.refshapes.expressions import QUERIES
from crossvlt_hf.data.refshapes.languages import ENGLISH


FAMILIES = {"attribute", "absolute", "relation", "ordinal", "superlative", "negation", "plural", "no_target"}


def describe_scene(scene):
    """The objects of a scene of RefShapes as the engine for labelled objects sees them."""
    return [
        DescribedObject(
            label=thing.shape,
            box=(thing.x - thing.radius, thing.y - thing.radius, thing.x + thing.radius, thing.y + thing.radius),
            centre=(thing.x, thing.y),
            area=float(mask.mean()),
            colours={thing.colour: 1.0},
            adjectives=() if thing.texture == "plain" else (thing.texture,),
        )
        for thing, mask in zip(scene.things, scene.masks, strict=True)
    ]


def test_two_engines_agree():
    """Sizes apart: RefShapes compares radii, the other what is seen."""
    compared = set()
    for index in range(40):
        scene = make_example("test", index, side=64).scene
        own = {q.say(ENGLISH.usual): q for family in sorted(FAMILIES) for q in QUERIES[family](scene.things)}
        objects = describe_scene(scene)
        rng = np.random.default_rng(index)
        for e in make_expressions(objects, rng, sorted(FAMILIES), closed=True, per_family=15, tries=300):
            if e.text in own and not {"largest", "smallest"} & set(e.text.split()):
                selected = own[e.text].select(scene.things)
                if selected is not None:  # RefShapes hesitates where the other does not, and the reverse
                    assert selected == set(e.targets), e.text
                    compared.add(e.family)
    assert compared == FAMILIES


def test_textures_and_the_word_object_are_said_where_there_is_nothing_else():
    texts = set()
    for index in range(30):
        objects = describe_scene(make_example("test", index, side=64).scene)
        rng = np.random.default_rng(index)
        texts |= {e.text for e in make_expressions(objects, rng, ["attribute"], closed=True, per_family=9)}
    words = {word for text in texts for word in text.split()}
    assert {"striped", "dotted", "object"} <= words
