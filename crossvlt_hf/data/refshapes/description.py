"""Scenes of RefShapes as the engine of `crossvlt_hf.data.objects` sees labelled objects."""

from collections.abc import Sequence

from ..objects.attributes import DescribedObject
from .scenes import Scene, Thing


def describe_scene(scene: Scene) -> list[DescribedObject]:
    """The objects of a scene with their colours, textures, places and sizes as they were drawn."""
    return describe_things(scene.things, [float(mask.mean()) for mask in scene.masks])


def describe_things(things: Sequence[Thing], areas: Sequence[float]) -> list[DescribedObject]:
    """The same of things, given the share of the picture that each covers."""
    return [
        DescribedObject(
            label=thing.shape,
            box=(thing.x - thing.radius, thing.y - thing.radius, thing.x + thing.radius, thing.y + thing.radius),
            centre=(thing.x, thing.y),
            area=area,
            colours={thing.colour: 1.0},
            adjectives=() if thing.texture == "plain" else (thing.texture,),
        )
        for thing, area in zip(things, areas, strict=True)
    ]
