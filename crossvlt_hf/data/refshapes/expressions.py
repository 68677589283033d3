"""Expressions of RefShapes: texts, each with a program that selects objects of a scene."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, product
from typing import Any

import numpy as np

from ..phrases import ACROSS, CORNERS, EDGES, MARGIN, ORDINALS, SIDES, UP_AND_DOWN, Answer, axis_of, every
from ..phrases import Phrase as AnyPhrase
from .scenes import COLOURS, SHAPES, TEXTURES, Thing


SIZE_RATIO = 1.18  # two sizes of a smaller ratio are not distinguished in words


class Phrase(AnyPhrase):
    """A shape with its colour and texture, or "object" for any shape."""

    def select(self, things: tuple[Thing, ...]) -> set[int]:
        """Indices of the objects that it fits."""
        return {
            index
            for index, thing in enumerate(things)
            if self.word in ("object", thing.shape)
            and self.colour in (None, thing.colour)
            and self.adjective in (None, thing.texture)
        }

    @property
    def plural(self) -> str:
        """`striped red circles`."""
        return str(self._replace(word="crosses" if self.word == "cross" else f"{self.word}s"))

    def variants(self) -> Iterator["Phrase"]:
        """Phrases with one word replaced."""
        if self.colour is not None:
            yield from (self._replace(colour=colour) for colour in COLOURS if colour != self.colour)
        if self.word != "object":
            yield from (self._replace(word=shape) for shape in SHAPES if shape != self.word)
        if self.adjective is not None:
            yield from (self._replace(adjective=texture) for texture in TEXTURES[1:] if texture != self.adjective)


@dataclass(frozen=True)
class Query:
    """A text, and the program that selects its targets.

    Args:
        family: the kind of expression.
        words: the expression.
        select: returns the indices of the targets among the objects of a scene; None if people would hesitate.
        phrases: the phrases in it.
        relations: the relations in it, each with the shape of its subject.
        variants: returns the same query with one word replaced; variants may fit nothing in the scene.
        counterpart: for a query without a target, the words of the query for an object that it is a variant of.
    """

    family: str
    words: str
    select: Callable[[tuple[Thing, ...]], set[int] | None]
    phrases: tuple[Phrase, ...] = ()
    relations: tuple[tuple[str, str], ...] = ()
    variants: Callable[[], Iterable["Query"]] = tuple
    counterpart: str | None = None


Source = Callable[[tuple[Thing, ...]], Sequence[Query]]


class Combinations(Sequence[Query]):
    """A lazy sequence of queries, one for every combination of choices, in the order of `itertools.product`."""

    def __init__(self, make: Callable[..., Query], *choices: Collection[Any]) -> None:
        self.make = make
        self.choices = [list(choice) for choice in choices]
        self.shape = tuple(map(len, self.choices))

    def __len__(self) -> int:
        return math.prod(self.shape)

    def __getitem__(self, number: Any) -> Any:
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        place = np.unravel_index(number % len(self), self.shape)
        return self.make(*(choice[index] for choice, index in zip(self.choices, place, strict=True)))


def _position(side: str, thing: Thing) -> float:
    """The distance of an object from a side, up to a constant."""
    axis, sign = axis_of(side)
    return sign * (thing.x, thing.y)[axis]


DIRECTIONS: dict[str, Callable[[Thing], float]] = {side: partial(_position, side) for side in SIDES}
RELATIONS = ACROSS | UP_AND_DOWN
REGIONS = EDGES | CORNERS
SUPERLATIVES: dict[str, Callable[[Thing], float]] = {
    "leftmost": DIRECTIONS["left"],
    "rightmost": DIRECTIONS["right"],
    "highest": DIRECTIONS["top"],
    "lowest": DIRECTIONS["bottom"],
    "largest": lambda thing: -math.log(thing.radius),
    "smallest": lambda thing: math.log(thing.radius),
}
RANKS = ORDINALS[1:3]
HARD = 0.7  # share of the expressions without a target in which every word fits some object
DETERMINERS = ("all", "the", "both")  # of several objects; the last for two only


def _ranked(
    indices: set[int], things: tuple[Thing, ...], key: Callable[[Thing], float], gap: float
) -> list[int] | None:
    """Indices sorted by a key; None if two neighbours are too close to distinguish."""
    ranked = sorted(indices, key=lambda index: key(things[index]))
    values = [key(things[index]) for index in ranked]
    return ranked if all(b - a >= gap for a, b in pairwise(values)) else None


def _sided(thing: Thing, reference: float, direction: str) -> Answer:
    """Whether an object is on a side of a line; None within the margin."""
    offset = DIRECTIONS[direction](thing) - reference
    return None if abs(offset) < MARGIN else offset < 0


def _where(indices: set[int], test: Callable[[int], Answer]) -> set[int] | None:
    answers = {index: test(index) for index in indices}
    return None if None in answers.values() else {index for index, answer in answers.items() if answer}


def _in_region(thing: Thing, sides: Collection[str]) -> Answer:
    middle = {"left": 0.42, "top": 0.42, "right": -0.58, "bottom": -0.58}
    return every(_sided(thing, middle[side], side) for side in sides)


def _related(things: tuple[Thing, ...], noun: Phrase, relation: str, anchor: set[int] | None) -> set[int] | None:
    """The objects of a noun that are in a relation to the only anchor; none if there is no anchor."""
    if anchor is None or len(anchor) > 1:
        return None
    if not anchor:
        return set()
    (index,) = anchor
    direction = RELATIONS[relation]
    reference = DIRECTIONS[direction](things[index])
    return _where(noun.select(things) - anchor, lambda other: _sided(things[other], reference, direction))


def phrases(things: tuple[Thing, ...]) -> list[Phrase]:
    """All phrases that fit an object of the scene, including `object` alone."""
    found = {
        Phrase(shape, colour, pattern)
        for thing in things
        for shape, colour, pattern in product(
            ("object", thing.shape), (None, thing.colour), (None, thing.texture if thing.texture != "plain" else None)
        )
    }
    return sorted(found, key=str)


def _crowded(things: tuple[Thing, ...], at_least: int = 2) -> list[Phrase]:
    """Short phrases that fit several objects, so that an expression needs more words."""
    return [p for p in phrases(things) if p.adjective is None and len(p.select(things)) >= at_least]


def _definite(things: tuple[Thing, ...]) -> list[Phrase]:
    """Phrases with a shape that fit exactly one object."""
    return [p for p in phrases(things) if p.word != "object" and len(p.select(things)) == 1]


def _select_region(noun: Phrase, sides: Collection[str], things: tuple[Thing, ...]) -> set[int] | None:
    return _where(noun.select(things), lambda index: _in_region(things[index], sides))


def _select_rank(
    noun: Phrase, key: Callable[[Thing], float], gap: float, rank: int, things: tuple[Thing, ...]
) -> set[int] | None:
    indices = noun.select(things)
    if len(indices) <= rank:
        return set()
    ranked = _ranked(indices, things, key, gap)
    return None if ranked is None else {ranked[rank]}


def _select_related(noun: Phrase, relation: str, anchor: Phrase, things: tuple[Thing, ...]) -> set[int] | None:
    return _related(things, noun, relation, anchor.select(things))


def _select_two_hop(
    noun: Phrase, first: str, middle: Phrase, second: str, anchor: Phrase, things: tuple[Thing, ...]
) -> set[int] | None:
    return _related(things, noun, first, _select_related(middle, second, anchor, things))


def _select_several(
    select: Callable[[tuple[Thing, ...]], set[int] | None], determiner: str, things: tuple[Thing, ...]
) -> set[int] | None:
    found = select(things)
    return None if found is not None and determiner == "both" and len(found) != 2 else found


def _select_except(noun: Phrase, other: Phrase, things: tuple[Thing, ...]) -> set[int]:
    return noun.select(things) - other.select(things)


def one_word_apart(first: str, second: str) -> bool:
    """Whether two expressions differ in exactly one word, at the same place."""
    words, others = first.split(), second.split()
    return len(words) == len(others) and sum(a != b for a, b in zip(words, others, strict=True)) == 1


def _attribute(phrase: Phrase) -> Query:
    return Query(
        "attribute",
        f"the {phrase}",
        phrase.select,
        (phrase,),
        variants=lambda: map(_attribute, phrase.variants()),
    )


def _is_needed(phrase: Phrase, things: tuple[Thing, ...]) -> bool:
    """Whether the phrase would fit several objects without any one of its words."""
    shorter = [
        phrase._replace(word="object"),
        phrase._replace(colour=None),
        phrase._replace(adjective=None),
    ]
    return all(s == phrase or len(s.select(things)) > 1 for s in shorter)


def attribute_queries(things: tuple[Thing, ...]) -> Sequence[Query]:
    """`the striped red circle`: with no more words than needed."""
    return [_attribute(phrase) for phrase in phrases(things) if _is_needed(phrase, things)]


def _absolute(noun: Phrase, region: str) -> Query:
    def variants() -> Iterator[Query]:
        yield from (_absolute(other, region) for other in noun.variants())
        yield from (_absolute(noun, other) for other in REGIONS if one_word_apart(other, region))

    select = partial(_select_region, noun, REGIONS[region])
    return Query("absolute", f"the {noun} {region}", select, (noun,), variants=variants)


def absolute_queries(things: tuple[Thing, ...]) -> Sequence[Query]:
    """`the circle in the top left corner`."""
    return Combinations(_absolute, _crowded(things), REGIONS)


def _relation(noun: Phrase, relation: str, anchor: Phrase) -> Query:
    def variants() -> Iterator[Query]:
        yield from (_relation(other, relation, anchor) for other in noun.variants())
        yield from (_relation(noun, other, anchor) for other in RELATIONS if one_word_apart(other, relation))
        yield from (_relation(noun, relation, other) for other in anchor.variants())

    return Query(
        "relation",
        f"the {noun} {relation} the {anchor}",
        partial(_select_related, noun, relation, anchor),
        (noun, anchor),
        ((relation, noun.word),),
        variants,
    )


def relation_queries(things: tuple[Thing, ...]) -> Sequence[Query]:
    """`the circle left of the red square`."""
    return Combinations(_relation, _crowded(things), RELATIONS, _definite(things))


def _ordinal(noun: Phrase, ordinal: str, side: str) -> Query:
    def variants() -> Iterator[Query]:
        yield from (_ordinal(other, ordinal, side) for other in noun.variants())
        yield from (_ordinal(noun, other, side) for other in RANKS if other != ordinal)

    select = partial(_select_rank, noun, DIRECTIONS[side], MARGIN, ORDINALS.index(ordinal))
    return Query("ordinal", f"the {ordinal} {noun} from the {side}", select, (noun,), variants=variants)


def ordinal_queries(things: tuple[Thing, ...]) -> Sequence[Query]:
    """`the second circle from the left`."""
    return Combinations(_ordinal, _crowded(things, 3), RANKS, DIRECTIONS)


def _superlative(noun: Phrase, word: str) -> Query:
    gap = math.log(SIZE_RATIO) if word in ("largest", "smallest") else MARGIN
    return Query(
        "superlative",
        f"the {word} {noun}",
        partial(_select_rank, noun, SUPERLATIVES[word], gap, 0),
        (noun,),
        variants=lambda: (_superlative(other, word) for other in noun.variants()),
    )


def superlative_queries(things: tuple[Thing, ...]) -> Sequence[Query]:
    """`the largest circle`."""
    return Combinations(_superlative, _crowded(things), SUPERLATIVES)


def _negation(noun: Phrase, other: Phrase) -> Query:
    def variants() -> Iterator[Query]:
        yield from (_negation(variant, other) for variant in noun.variants())
        yield from (_negation(noun, variant) for variant in other.variants())

    words = f"the {noun} that is not {other.colour or f'a {other.word}'}"
    return Query("negation", words, partial(_select_except, noun, other), (noun,), variants=variants)


def negation_queries(things: tuple[Thing, ...]) -> Sequence[Query]:
    """`the circle that is not red`, `the red object that is not a circle`."""
    queries = []
    for noun in _crowded(things):
        colours = {thing.colour for thing in things} if noun.colour is None else set()
        shapes = {thing.shape for thing in things} if noun.word == "object" else set()
        queries += [_negation(noun, Phrase(colour=colour)) for colour in sorted(colours)]
        queries += [_negation(noun, Phrase(shape)) for shape in sorted(shapes)]
    return queries


def _two_hop(noun: Phrase, first: str, middle: Phrase, second: str, anchor: Phrase) -> Query:
    select = partial(_select_two_hop, noun, first, middle, second, anchor)
    words = f"the {noun} {first} the {middle} {second} the {anchor}"
    return Query("two_hop", words, select, (noun, middle, anchor), ((first, noun.word), (second, middle.word)))


def two_hop_queries(things: tuple[Thing, ...]) -> Sequence[Query]:
    """`the circle left of the square above the red star`."""
    crowded = _crowded(things)
    return Combinations(_two_hop, crowded, RELATIONS, crowded, RELATIONS, _definite(things))


def _plural(determiner: str, words: str, query: Query) -> Query:
    """The plural of a query."""
    select = partial(_select_several, query.select, determiner)
    return Query("plural", f"{determiner} {words}", select, query.phrases, query.relations)


def _plural_attribute(determiner: str, noun: Phrase) -> Query:
    return _plural(determiner, noun.plural, _attribute(noun))


def _plural_absolute(determiner: str, noun: Phrase, region: str) -> Query:
    return _plural(determiner, f"{noun.plural} {region}", _absolute(noun, region))


def _plural_relation(determiner: str, noun: Phrase, relation: str, anchor: Phrase) -> Query:
    return _plural(determiner, f"{noun.plural} {relation} the {anchor}", _relation(noun, relation, anchor))


def plural_attribute_queries(things: tuple[Thing, ...]) -> Sequence[Query]:
    """`all red circles`."""
    return Combinations(_plural_attribute, DETERMINERS, _crowded(things))


def plural_absolute_queries(things: tuple[Thing, ...]) -> Sequence[Query]:
    """`both circles on the left`."""
    return Combinations(_plural_absolute, DETERMINERS, _crowded(things), REGIONS)


def plural_relation_queries(things: tuple[Thing, ...]) -> Sequence[Query]:
    """`the circles left of the red square`."""
    return Combinations(_plural_relation, DETERMINERS, _crowded(things), RELATIONS, _definite(things))


def denials(query: Query, things: tuple[Thing, ...]) -> Iterator[Query]:
    """Expressions without a target, each one word away from a query that refers to one object."""
    if len(query.select(things) or ()) == 1:
        for variant in query.variants():
            if variant.select(things) == set():
                yield replace(variant, family="no_target", counterpart=query.words)


SINGULAR: dict[str, Source] = {
    "attribute": attribute_queries,
    "absolute": absolute_queries,
    "relation": relation_queries,
    "ordinal": ordinal_queries,
    "superlative": superlative_queries,
    "negation": negation_queries,
}
PLURAL: tuple[Source, ...] = (plural_attribute_queries, plural_absolute_queries, plural_relation_queries)


def plural_queries(things: tuple[Thing, ...]) -> Sequence[Query]:
    """`all red circles`, `both circles on the left`, `the circles left of the red square`."""
    return [query for source in PLURAL for query in source(things)]


def no_target_queries(things: tuple[Thing, ...]) -> Sequence[Query]:
    """`the red star` where there is a red circle, or a blue star, but no red star: see `denials`."""
    return [denial for source in SINGULAR.values() for query in source(things) for denial in denials(query, things)]


QUERIES: dict[str, Source] = {
    **SINGULAR,
    "two_hop": two_hop_queries,
    "plural": plural_queries,
    "no_target": no_target_queries,
}


def _is_shown(word: str, things: tuple[Thing, ...]) -> bool:
    """Whether a word fits an object of the scene; true for words that describe no object."""
    shown = {word for thing in things for word in (thing.colour, thing.shape, thing.texture)}
    return word in shown or word not in {*COLOURS, *SHAPES, *TEXTURES}


def _is_hard(denial: Query, things: tuple[Thing, ...]) -> bool:
    """Whether the replaced word fits another object of the scene."""
    said = (denial.counterpart or "").split()
    return all(_is_shown(word, things) for word in denial.words.split() if word not in said)


def sample_queries(rng: np.random.Generator, family: str, things: tuple[Thing, ...]) -> Iterator[Query]:
    """The queries of a family in random order; families of several kinds use one kind after another."""
    kinds = {"plural": PLURAL, "no_target": tuple(SINGULAR.values())}.get(family, (QUERIES[family],))
    hard = family == "no_target" and rng.random() < HARD
    for kind in rng.permutation(len(kinds)) if len(kinds) > 1 else (0,):
        queries = kinds[kind](things)
        for number in rng.permutation(len(queries)):
            if family != "no_target":
                yield queries[number]
                continue
            found = [denial for denial in denials(queries[number], things) if not hard or _is_hard(denial, things)]
            yield from (found[place] for place in rng.permutation(len(found)))


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
    "objects": "things",
}


def paraphrase(words: str) -> str:
    """Replace words by synonyms that the training split never uses."""
    for usual, other in PARAPHRASES.items():
        words = f" {words} ".replace(f" {usual} ", f" {other} ").strip()
    return words


def vocabulary() -> list[str]:
    """All words that expressions of any split use, sorted."""
    tables = [SHAPES, COLOURS, TEXTURES, RELATIONS, REGIONS, SUPERLATIVES, RANKS, DIRECTIONS, PARAPHRASES.values()]
    phrases_ = [str(entry) for table in tables for entry in table]
    plurals = ["crosses", *(f"{shape}s" for shape in (*SHAPES, "object") if shape != "cross")]
    return sorted(
        {word for entry in [*phrases_, *plurals, *DETERMINERS, "a object from that is not"] for word in entry.split()}
    )
