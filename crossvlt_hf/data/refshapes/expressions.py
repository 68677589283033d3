"""Expressions of RefShapes: words, and the program on the scene that they stand for."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product

from .scenes import COLOURS, SHAPES, TEXTURES, Thing


# Two positions or sizes nearer than these are not told apart in words
MARGIN, SIZE_RATIO = 0.06, 1.18


@dataclass(frozen=True)
class Phrase:
    """A noun with adjectives: `the large striped red circle`. None says nothing, the shape "object" any."""

    shape: str = "object"
    colour: str | None = None
    texture: str | None = None

    def select(self, things: tuple[Thing, ...]) -> set[int]:
        """Indices of the things that it fits."""
        return {
            index
            for index, thing in enumerate(things)
            if self.shape in ("object", thing.shape)
            and self.colour in (None, thing.colour)
            and self.texture in (None, thing.texture)
        }

    def __str__(self) -> str:
        return " ".join(word for word in (self.texture, self.colour, self.shape) if word)


@dataclass(frozen=True)
class Query:
    """What an expression says, as words and as what it selects; None where a person would hesitate."""

    family: str
    words: str
    select: Callable[[tuple[Thing, ...]], set[int] | None]
    relation: tuple[str, str] | None = None


DIRECTIONS: dict[str, Callable[[Thing], float]] = {
    "left": lambda thing: thing.x,
    "right": lambda thing: -thing.x,
    "top": lambda thing: thing.y,
    "bottom": lambda thing: -thing.y,
}
RELATIONS = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}
REGIONS = {
    "on the left": {"left"},
    "on the right": {"right"},
    "at the top": {"top"},
    "at the bottom": {"bottom"},
    "in the top left corner": {"top", "left"},
    "in the top right corner": {"top", "right"},
    "in the bottom left corner": {"bottom", "left"},
    "in the bottom right corner": {"bottom", "right"},
}
SUPERLATIVES: dict[str, Callable[[Thing], float]] = {
    "leftmost": DIRECTIONS["left"],
    "rightmost": DIRECTIONS["right"],
    "highest": DIRECTIONS["top"],
    "lowest": DIRECTIONS["bottom"],
    "largest": lambda thing: -math.log(thing.radius),
    "smallest": lambda thing: math.log(thing.radius),
}
ORDINALS = ("second", "third")


def _ranked(
    indices: set[int], things: tuple[Thing, ...], key: Callable[[Thing], float], gap: float
) -> list[int] | None:
    """Indices by rising key; None if two neighbours are too near to be told apart."""
    ranked = sorted(indices, key=lambda index: key(things[index]))
    values = [key(things[index]) for index in ranked]
    return ranked if all(b - a >= gap for a, b in pairwise(values)) else None


def _sided(thing: Thing, reference: float, direction: str) -> bool | None:
    """Whether a thing lies on a side of a line; None within the margin."""
    offset = DIRECTIONS[direction](thing) - reference
    return None if abs(offset) < MARGIN else offset < 0


def _where(indices: set[int], test: Callable[[int], bool | None]) -> set[int] | None:
    answers = {index: test(index) for index in indices}
    return None if None in answers.values() else {index for index, answer in answers.items() if answer}


def _in_region(thing: Thing, sides: set[str]) -> bool | None:
    middle = {"left": 0.42, "top": 0.42, "right": -0.58, "bottom": -0.58}
    answers = [_sided(thing, middle[side], side) for side in sides]
    return False if False in answers else None if None in answers else True


def _related(things: tuple[Thing, ...], noun: Phrase, relation: str, anchor: set[int] | None) -> set[int] | None:
    """The things of a noun that stand in a relation to the one anchor."""
    if anchor is None or len(anchor) != 1:
        return None
    (index,) = anchor
    direction = RELATIONS[relation]
    reference = DIRECTIONS[direction](things[index])
    return _where(noun.select(things) - anchor, lambda other: _sided(things[other], reference, direction))


def phrases(things: tuple[Thing, ...]) -> list[Phrase]:
    """Every phrase whose words fit something in the scene, `object` alone included."""
    found = {
        Phrase(shape, colour, pattern)
        for thing in things
        for shape, colour, pattern in product(
            ("object", thing.shape), (None, thing.colour), (None, thing.texture if thing.texture != "plain" else None)
        )
    }
    return sorted(found, key=str)


def _crowded(things: tuple[Thing, ...], at_least: int = 2) -> list[Phrase]:
    """Short phrases that fit several things, among which an expression then decides."""
    return [p for p in phrases(things) if p.texture is None and len(p.select(things)) >= at_least]


def _definite(things: tuple[Thing, ...]) -> list[Phrase]:
    """Phrases of a colour or texture and a shape that fit one thing."""
    return [p for p in phrases(things) if p.shape != "object" and len(p.select(things)) == 1]


def _select_region(noun: Phrase, sides: set[str], things: tuple[Thing, ...]) -> set[int] | None:
    return _where(noun.select(things), lambda index: _in_region(things[index], sides))


def _select_rank(
    noun: Phrase, key: Callable[[Thing], float], gap: float, rank: int, things: tuple[Thing, ...]
) -> set[int] | None:
    ranked = _ranked(noun.select(things), things, key, gap)
    return None if ranked is None or len(ranked) <= rank else {ranked[rank]}


def _select_related(noun: Phrase, relation: str, anchor: Phrase, things: tuple[Thing, ...]) -> set[int] | None:
    return _related(things, noun, relation, anchor.select(things))


def _select_two_hop(
    noun: Phrase, first: str, middle: Phrase, second: str, anchor: Phrase, things: tuple[Thing, ...]
) -> set[int] | None:
    return _related(things, noun, first, _select_related(middle, second, anchor, things))


def _select_except(noun: Phrase, other: Phrase, things: tuple[Thing, ...]) -> set[int]:
    return noun.select(things) - other.select(things)


def attribute_queries(things: tuple[Thing, ...]) -> Iterator[Query]:
    """`the striped red circle`: no word more than needed to single it out."""
    for phrase in phrases(things):
        shorter = [
            Phrase("object", phrase.colour, phrase.texture),
            Phrase(phrase.shape, None, phrase.texture),
            Phrase(phrase.shape, phrase.colour, None),
        ]
        if all(s == phrase or len(s.select(things)) > 1 for s in shorter):
            yield Query("attribute", f"the {phrase}", phrase.select)


def absolute_queries(things: tuple[Thing, ...]) -> Iterator[Query]:
    """`the circle in the top left corner`."""
    for noun, (words, sides) in product(_crowded(things), REGIONS.items()):
        yield Query("absolute", f"the {noun} {words}", partial(_select_region, noun, sides))


def relation_queries(things: tuple[Thing, ...]) -> Iterator[Query]:
    """`the circle left of the red square`."""
    for noun, relation, anchor in product(_crowded(things), RELATIONS, _definite(things)):
        select = partial(_select_related, noun, relation, anchor)
        yield Query("relation", f"the {noun} {relation} the {anchor}", select, relation=(relation, noun.shape))


def ordinal_queries(things: tuple[Thing, ...]) -> Iterator[Query]:
    """`the second circle from the left`."""
    for noun, (rank, word), side in product(_crowded(things, 3), enumerate(ORDINALS, start=1), DIRECTIONS):
        select = partial(_select_rank, noun, DIRECTIONS[side], MARGIN, rank)
        yield Query("ordinal", f"the {word} {noun} from the {side}", select)


def superlative_queries(things: tuple[Thing, ...]) -> Iterator[Query]:
    """`the largest circle`."""
    for noun, (word, key) in product(_crowded(things), SUPERLATIVES.items()):
        gap = math.log(SIZE_RATIO) if word in ("largest", "smallest") else MARGIN
        yield Query("superlative", f"the {word} {noun}", partial(_select_rank, noun, key, gap, 0))


def negation_queries(things: tuple[Thing, ...]) -> Iterator[Query]:
    """`the circle that is not red`, `the red object that is not a circle`."""
    for noun in _crowded(things):
        colours = {thing.colour for thing in things} if noun.colour is None else set()
        shapes = {thing.shape for thing in things} if noun.shape == "object" else set()
        for colour in sorted(colours):
            yield Query(
                "negation", f"the {noun} that is not {colour}", partial(_select_except, noun, Phrase(colour=colour))
            )
        for shape in sorted(shapes):
            yield Query("negation", f"the {noun} that is not a {shape}", partial(_select_except, noun, Phrase(shape)))


def two_hop_queries(things: tuple[Thing, ...]) -> Iterator[Query]:
    """`the circle left of the square above the red star`."""
    crowded = _crowded(things)
    for noun, first, middle, second, anchor in product(crowded, RELATIONS, crowded, RELATIONS, _definite(things)):
        select = partial(_select_two_hop, noun, first, middle, second, anchor)
        yield Query("two_hop", f"the {noun} {first} the {middle} {second} the {anchor}", select)


def plural_queries(things: tuple[Thing, ...]) -> Iterator[Query]:
    """`all red circles`."""
    for noun in _crowded(things):
        plural = {"cross": "crosses"}.get(noun.shape, f"{noun.shape}s")
        words = " ".join(["all", *([noun.colour] if noun.colour else []), plural])
        yield Query("plural", words, noun.select)


def no_target_queries(things: tuple[Thing, ...]) -> Iterator[Query]:
    """`the red star` where there are red things and stars, but none is both."""
    colours, shapes = {thing.colour for thing in things}, {thing.shape for thing in things}
    for colour, shape in product(sorted(colours), sorted(shapes)):
        phrase = Phrase(shape, colour)
        yield Query("no_target", f"the {phrase}", phrase.select)


QUERIES = {
    "attribute": attribute_queries,
    "absolute": absolute_queries,
    "relation": relation_queries,
    "ordinal": ordinal_queries,
    "superlative": superlative_queries,
    "negation": negation_queries,
    "two_hop": two_hop_queries,
    "plural": plural_queries,
    "no_target": no_target_queries,
}

PARAPHRASES = {
    "left of": "to the left of",
    "right of": "to the right of",
    "above": "over",
    "below": "under",
    "largest": "biggest",
    "smallest": "littlest",
    "leftmost": "furthest left",
    "rightmost": "furthest right",
    "highest": "topmost",
    "lowest": "bottommost",
    "that is not": "which is anything but",
    "object": "thing",
}


def paraphrase(words: str) -> str:
    """Other words for the same, none of which the training split uses."""
    for usual, other in PARAPHRASES.items():
        words = f" {words} ".replace(f" {usual} ", f" {other} ").strip()
    return words


def vocabulary() -> list[str]:
    """Every word that the expressions of any split use, sorted."""
    tables = [SHAPES, COLOURS, TEXTURES, RELATIONS, REGIONS, SUPERLATIVES, ORDINALS, DIRECTIONS, PARAPHRASES.values()]
    phrases_ = [str(entry) for table in tables for entry in table]
    plurals = ["crosses", *(f"{shape}s" for shape in (*SHAPES, "object") if shape != "cross")]
    return sorted(
        {word for entry in [*phrases_, *plurals, "the a all object from that is not"] for word in entry.split()}
    )
