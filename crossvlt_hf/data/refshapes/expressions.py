"""What expressions of RefShapes mean: programs that select objects of a scene, without words.

A query names shapes, colours, positions and relations by keys, such as "left of", which are English for the reader
only. A grammar of `crossvlt_hf.data.refshapes.languages` puts it into words.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise, product
from typing import Any, ClassVar

import numpy as np

from ..phrases import ACROSS, CORNERS, EDGES, MARGIN, OPPOSITES, ORDINALS, SIDES, UP_AND_DOWN, Answer, axis_of, every
from ..phrases import Phrase as AnyPhrase
from .languages.grammar import ONE, Determiner, Grammar
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

    def variants(self) -> Iterator["Phrase"]:
        """Phrases with one word replaced."""
        if self.colour is not None:
            yield from (self._replace(colour=colour) for colour in COLOURS if colour != self.colour)
        if self.word != "object":
            yield from (self._replace(word=shape) for shape in SHAPES if shape != self.word)
        if self.adjective is not None:
            yield from (self._replace(adjective=texture) for texture in TEXTURES[1:] if texture != self.adjective)


class Query(ABC):
    """The meaning of an expression."""

    family: ClassVar[str]
    counterpart: "Query | None" = None  # of a query without a target: the one for an object, of which it is a variant

    @abstractmethod
    def select(self, things: tuple[Thing, ...]) -> set[int] | None:
        """Indices of the targets among the objects of a scene; None if people would hesitate."""

    @abstractmethod
    def say(self, grammar: Grammar) -> str:
        """Return the expression in the words of a grammar."""

    @property
    def phrases(self) -> tuple[Phrase, ...]:
        """The phrases in it."""
        return tuple(part for part in vars(self).values() if isinstance(part, Phrase))

    @property
    def relations(self) -> tuple[tuple[str, str], ...]:
        """The relations in it, each with the shape of its subject."""
        return ()

    @property
    def has_synonyms(self) -> bool:
        """Whether the split "paraphrases" has other words for it, in every language."""
        return bool(self.relations) or any(phrase.word == "object" for phrase in self.phrases)

    def variants(self) -> Iterator["Query"]:
        """The same query with one word replaced; variants may fit nothing in the scene."""
        return iter(())


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
SIZES = ("largest", "smallest")
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
DETERMINERS: tuple[Determiner, ...] = ("all", "the", "both")  # of several objects; the last for two only


def _turned(sides: tuple[str, ...]) -> list[str]:
    """The regions of which one side is the opposite one."""
    turned = [tuple(OPPOSITES[side] if side == one else side for side in sides) for one in sides]
    return [region for region, others in REGIONS.items() if others in turned]


TURNED_REGIONS = {region: _turned(sides) for region, sides in REGIONS.items()}
TURNED_RELATIONS = {
    relation: next(other for other, side in RELATIONS.items() if side == OPPOSITES[direction])
    for relation, direction in RELATIONS.items()
}


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


def _select_rank(
    noun: Phrase, key: Callable[[Thing], float], gap: float, rank: int, things: tuple[Thing, ...]
) -> set[int] | None:
    indices = noun.select(things)
    if len(indices) <= rank:
        return set()
    ranked = _ranked(indices, things, key, gap)
    return None if ranked is None else {ranked[rank]}


@dataclass(frozen=True)
class Attribute(Query):
    """`the striped red circle`."""

    noun: Phrase
    family: ClassVar = "attribute"

    def select(self, things: tuple[Thing, ...]) -> set[int]:
        return self.noun.select(things)

    def say(self, grammar: Grammar, determiner: Determiner = ONE) -> str:
        return grammar.attribute(determiner, self.noun)

    def variants(self) -> Iterator[Query]:
        return map(Attribute, self.noun.variants())


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
    return [Attribute(phrase) for phrase in phrases(things) if _is_needed(phrase, things)]


@dataclass(frozen=True)
class Absolute(Query):
    """`the circle in the top left corner`."""

    noun: Phrase
    region: str
    family: ClassVar = "absolute"

    def select(self, things: tuple[Thing, ...]) -> set[int] | None:
        sides = REGIONS[self.region]
        return _where(self.noun.select(things), lambda index: _in_region(things[index], sides))

    def say(self, grammar: Grammar, determiner: Determiner = ONE) -> str:
        return grammar.absolute(determiner, self.noun, self.region)

    def variants(self) -> Iterator[Query]:
        yield from (Absolute(other, self.region) for other in self.noun.variants())
        yield from (Absolute(self.noun, other) for other in TURNED_REGIONS[self.region])


def absolute_queries(things: tuple[Thing, ...]) -> Sequence[Query]:
    """`the circle in the top left corner`."""
    return Combinations(Absolute, _crowded(things), REGIONS)


@dataclass(frozen=True)
class Relation(Query):
    """`the circle left of the red square`."""

    noun: Phrase
    relation: str
    anchor: Phrase
    family: ClassVar = "relation"

    def select(self, things: tuple[Thing, ...]) -> set[int] | None:
        return _related(things, self.noun, self.relation, self.anchor.select(things))

    def say(self, grammar: Grammar, determiner: Determiner = ONE) -> str:
        return grammar.relation(determiner, self.noun, self.relation, self.anchor)

    @property
    def relations(self) -> tuple[tuple[str, str], ...]:
        return ((self.relation, self.noun.word),)

    def variants(self) -> Iterator[Query]:
        yield from (Relation(other, self.relation, self.anchor) for other in self.noun.variants())
        yield Relation(self.noun, TURNED_RELATIONS[self.relation], self.anchor)
        yield from (Relation(self.noun, self.relation, other) for other in self.anchor.variants())


def relation_queries(things: tuple[Thing, ...]) -> Sequence[Query]:
    """`the circle left of the red square`."""
    return Combinations(Relation, _crowded(things), RELATIONS, _definite(things))


@dataclass(frozen=True)
class Ordinal(Query):
    """`the second circle from the left`."""

    noun: Phrase
    ordinal: str
    side: str
    family: ClassVar = "ordinal"

    def select(self, things: tuple[Thing, ...]) -> set[int] | None:
        return _select_rank(self.noun, DIRECTIONS[self.side], MARGIN, ORDINALS.index(self.ordinal), things)

    def say(self, grammar: Grammar) -> str:
        return grammar.ordinal(self.noun, self.ordinal, self.side)

    def variants(self) -> Iterator[Query]:
        yield from (Ordinal(other, self.ordinal, self.side) for other in self.noun.variants())
        yield from (Ordinal(self.noun, other, self.side) for other in RANKS if other != self.ordinal)


def ordinal_queries(things: tuple[Thing, ...]) -> Sequence[Query]:
    """`the second circle from the left`."""
    return Combinations(Ordinal, _crowded(things, 3), RANKS, DIRECTIONS)


@dataclass(frozen=True)
class Superlative(Query):
    """`the largest circle`."""

    noun: Phrase
    degree: str
    family: ClassVar = "superlative"
    has_synonyms: ClassVar = True

    def select(self, things: tuple[Thing, ...]) -> set[int] | None:
        gap = math.log(SIZE_RATIO) if self.degree in SIZES else MARGIN
        return _select_rank(self.noun, SUPERLATIVES[self.degree], gap, 0, things)

    def say(self, grammar: Grammar) -> str:
        return grammar.superlative(self.noun, self.degree)

    def variants(self) -> Iterator[Query]:
        return (Superlative(other, self.degree) for other in self.noun.variants())


def superlative_queries(things: tuple[Thing, ...]) -> Sequence[Query]:
    """`the largest circle`."""
    return Combinations(Superlative, _crowded(things), SUPERLATIVES)


@dataclass(frozen=True)
class Negation(Query):
    """`the circle that is not red`, `the red object that is not a circle`: `other` is only a colour or a shape."""

    noun: Phrase
    other: Phrase
    family: ClassVar = "negation"
    has_synonyms: ClassVar = True

    def select(self, things: tuple[Thing, ...]) -> set[int]:
        return self.noun.select(things) - self.other.select(things)

    def say(self, grammar: Grammar) -> str:
        if self.other.colour is not None:
            return grammar.not_coloured(self.noun, self.other.colour)
        return grammar.not_shaped(self.noun, self.other.word)

    def variants(self) -> Iterator[Query]:
        yield from (Negation(variant, self.other) for variant in self.noun.variants())
        yield from (Negation(self.noun, variant) for variant in self.other.variants())


def negation_queries(things: tuple[Thing, ...]) -> Sequence[Query]:
    """`the circle that is not red`, `the red object that is not a circle`."""
    queries = []
    for noun in _crowded(things):
        colours = {thing.colour for thing in things} if noun.colour is None else set()
        shapes = {thing.shape for thing in things} if noun.word == "object" else set()
        queries += [Negation(noun, Phrase(colour=colour)) for colour in sorted(colours)]
        queries += [Negation(noun, Phrase(shape)) for shape in sorted(shapes)]
    return queries


@dataclass(frozen=True)
class TwoHop(Query):
    """`the circle left of the square above the red star`: the square is above the star."""

    noun: Phrase
    first: str
    middle: Phrase
    second: str
    anchor: Phrase
    family: ClassVar = "two_hop"

    def select(self, things: tuple[Thing, ...]) -> set[int] | None:
        middle = _related(things, self.middle, self.second, self.anchor.select(things))
        return _related(things, self.noun, self.first, middle)

    def say(self, grammar: Grammar) -> str:
        return grammar.two_hop(self.noun, self.first, self.middle, self.second, self.anchor)

    @property
    def relations(self) -> tuple[tuple[str, str], ...]:
        return ((self.first, self.noun.word), (self.second, self.middle.word))


def two_hop_queries(things: tuple[Thing, ...]) -> Sequence[Query]:
    """`the circle left of the square above the red star`."""
    crowded = _crowded(things)
    return Combinations(TwoHop, crowded, RELATIONS, crowded, RELATIONS, _definite(things))


@dataclass(frozen=True)
class Plural(Query):
    """`all red circles`: all targets of a query."""

    determiner: Determiner
    query: Attribute | Absolute | Relation
    family: ClassVar = "plural"

    def select(self, things: tuple[Thing, ...]) -> set[int] | None:
        found = self.query.select(things)
        return None if found is not None and self.determiner == "both" and len(found) != 2 else found

    def say(self, grammar: Grammar) -> str:
        return self.query.say(grammar, self.determiner)

    @property
    def phrases(self) -> tuple[Phrase, ...]:
        return self.query.phrases

    @property
    def relations(self) -> tuple[tuple[str, str], ...]:
        return self.query.relations


def _plural(make: Callable[..., Attribute | Absolute | Relation], determiner: Determiner, *parts: Any) -> Plural:
    return Plural(determiner, make(*parts))


def plural_attribute_queries(things: tuple[Thing, ...]) -> Sequence[Query]:
    """`all red circles`."""
    return Combinations(partial(_plural, Attribute), DETERMINERS, _crowded(things))


def plural_absolute_queries(things: tuple[Thing, ...]) -> Sequence[Query]:
    """`both circles on the left`."""
    return Combinations(partial(_plural, Absolute), DETERMINERS, _crowded(things), REGIONS)


def plural_relation_queries(things: tuple[Thing, ...]) -> Sequence[Query]:
    """`the circles left of the red square`."""
    return Combinations(partial(_plural, Relation), DETERMINERS, _crowded(things), RELATIONS, _definite(things))


@dataclass(frozen=True)
class Denial(Query):
    """A query without a target, one word away from a query that refers to one object."""

    query: Query
    counterpart: Query = field(compare=False)
    family: ClassVar = "no_target"

    def select(self, things: tuple[Thing, ...]) -> set[int] | None:
        return self.query.select(things)

    def say(self, grammar: Grammar) -> str:
        return self.query.say(grammar)

    @property
    def phrases(self) -> tuple[Phrase, ...]:
        return self.query.phrases

    @property
    def relations(self) -> tuple[tuple[str, str], ...]:
        return self.query.relations

    @property
    def has_synonyms(self) -> bool:
        return self.query.has_synonyms


def denials(query: Query, things: tuple[Thing, ...]) -> Iterator[Denial]:
    """Queries without a target, each one word away from a query that refers to one object."""
    if len(query.select(things) or ()) == 1:
        for variant in query.variants():
            if variant.select(things) == set():
                yield Denial(variant, query)


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


# The queries of which the denials of a family are variants
DENIED: dict[str, tuple[Source, ...]] = {
    "no_target": tuple(SINGULAR.values()),
    **{f"no_target_{family}": (source,) for family, source in SINGULAR.items()},
    "no_target_anchor": (relation_queries,),
    "no_target_missing_anchor": (relation_queries,),
}


def _is_hard(denial: Denial, things: tuple[Thing, ...]) -> bool:
    """Whether every shape, colour and texture in it fits some object of the scene, also the replaced one."""
    shown = {None, "object"}.union(*((thing.shape, thing.colour, thing.texture) for thing in things))
    return all(shown.issuperset(phrase) for phrase in denial.phrases)


def _changes_the_anchor(denial: Denial) -> bool:
    """Whether the word that differs from the counterpart, a relation, is one of its anchor."""
    subject, anchor = denial.phrases
    other_subject, other_anchor = denial.counterpart.phrases
    return subject == other_subject and anchor != other_anchor


def sample_queries(rng: np.random.Generator, family: str, things: tuple[Thing, ...]) -> Iterator[Query]:
    """The queries of a family in random order; families of several kinds use one kind after another."""
    if family in DENIED:
        yield from _sample_denials(rng, family, things)
        return
    for kind in _shuffled(rng, PLURAL if family == "plural" else (QUERIES[family],)):
        queries = kind(things)
        yield from (queries[number] for number in rng.permutation(len(queries)))


def _sample_denials(rng: np.random.Generator, family: str, things: tuple[Thing, ...]) -> Iterator[Denial]:
    missing, hard = family == "no_target_missing_anchor", rng.random() < HARD
    for kind in _shuffled(rng, DENIED[family]):
        queries = kind(things)
        for number in rng.permutation(len(queries)):
            found = list(denials(queries[number], things))
            if missing or family == "no_target_anchor":
                found = list(filter(_changes_the_anchor, found))
            if missing or hard:
                found = [denial for denial in found if _is_hard(denial, things) != missing]
            yield from (found[place] for place in rng.permutation(len(found)))


def _shuffled(rng: np.random.Generator, kinds: Sequence[Source]) -> Iterator[Source]:
    """Kinds of queries in random order, which takes no random numbers for a single one."""
    return (kinds[number] for number in (rng.permutation(len(kinds)) if len(kinds) > 1 else (0,)))
