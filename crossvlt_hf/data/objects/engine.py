"""Expressions that refer to labelled objects, each verified against all objects of the image.

An expression is a text with a small program. For every object the program returns True, False, or None if people might
disagree (a cup that is red and orange, a chair just left of the middle, a shoe that may be a sneaker) or the object is
unclear. A crowd is several objects anywhere in its box: a test is False of it only if it is False of all of them. An
expression is used only if there is no None, and the number of Trues fits its family.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np

from ...system import check_known
from ..phrases import (
    ACROSS,
    CORNERS,
    EDGES,
    MARGIN,
    OPPOSITES,
    ORDINALS,
    SIDES,
    UP_AND_DOWN,
    Answer,
    Phrase,
    axis_of,
    both,
    every,
    opposite,
)
from .attributes import COLOURS, DescribedObject
from .refer_options import FAMILIES, UNCERTAIN_FAMILIES
from .words import lookup, pluralise, usable_kinds, word_fits


# Ratios of areas below which expressions do not compare sizes
AREA_RATIO, CLEAR_AREA_RATIO = 1.6, 2.5
MOST_ABSENT = 8  # classes without an object in the image to use for expressions without a target
BIG = 0.04  # smallest object to be called big, as a share of the image
NUMBERS = ("two", "three", "four", "five", "six")

Answers = tuple[Answer, ...]


@dataclass(frozen=True)
class Expression:
    """An expression and its targets.

    Args:
        text: in lower case.
        family: one of `FAMILIES`.
        targets: indices of the objects that it refers to; empty for "no_target".
        certain: false if unlabelled objects may also fit.
    """

    text: str
    family: str
    targets: tuple[int, ...]
    certain: bool = True


class Query(NamedTuple):
    """A text and its program.

    Args:
        text: the expression.
        answer: returns for every object whether it is a target.
        useful: whether the noun alone would be ambiguous.
        group: groups of a family are sampled with equal probability, whatever their number of queries.
    """

    text: str
    answer: Callable[[], Answers]
    useful: bool = True
    group: str = ""


def _edge(thing: DescribedObject, side: str) -> float:
    """Where the box of an object ends at a side."""
    axis, sign = axis_of(side)
    return thing.box[axis if sign == 1 else axis + 2]


def _before(one: DescribedObject, other: DescribedObject, side: str) -> Answer:
    """Whether one object is further to a side than another: by its centre and by both of its edges."""
    axis, sign = axis_of(side)
    if not (one.single and other.single):
        # Only what is before all of a crowd is before each of its parts
        if not (one.single and other.placed):
            return None
        edge = _edge(other, side)
        gaps = [sign * (edge - one.centre[axis]), sign * (edge - _edge(one, OPPOSITES[side]))]
        return True if gaps[0] >= MARGIN and gaps[1] >= 0 else None
    gaps = [
        sign * (other.centre[axis] - one.centre[axis]),
        sign * (other.box[axis] - one.box[axis]),
        sign * (other.box[axis + 2] - one.box[axis + 2]),
    ]
    if gaps[0] >= MARGIN and min(gaps) >= 0:
        return True
    return False if gaps[0] <= -MARGIN and max(gaps) <= 0 else None


def _larger(one: DescribedObject, other: DescribedObject, ratio: float = AREA_RATIO) -> Answer:
    """Whether one object covers more of the image; None if the smaller one is cut off by the border."""
    if not (one.single and other.single):
        # A part is no larger than its crowd, but may be much smaller
        return _larger_than_all(one, other, ratio)
    if one.area >= ratio * other.area:
        return None if other.cut else True
    if other.area >= ratio * one.area:
        return None if one.cut else False
    return None


def _larger_than_all(one: DescribedObject, other: DescribedObject, ratio: float) -> Answer:
    """Whether an object is larger than each part of a crowd, or each part of a crowd smaller than an object."""
    if not (one.placed and other.placed):
        return None
    if one.single and one.area >= ratio * other.area:
        return None if other.cut else True
    if other.single and other.area >= ratio * one.area:
        return None if one.cut else False
    return None


def _further(key: str) -> Callable[[DescribedObject, DescribedObject], Answer]:
    if key in SIDES:
        return lambda one, other: _before(one, other, key)
    ratio = CLEAR_AREA_RATIO if key in ("big", "small") else AREA_RATIO
    if key in ("largest", "big"):
        return lambda one, other: _larger(one, other, ratio) if key != "big" or one.area >= BIG else None
    return lambda one, other: _larger(other, one, ratio)


SUPERLATIVES = {
    "leftmost": "left",
    "rightmost": "right",
    "topmost": "top",
    "highest": "top",
    "lowest": "bottom",
    "largest": "largest",
    "biggest": "largest",
    "smallest": "smallest",
}
# Of exactly two
COMPARATIVES = {"left": "left", "right": "right", "larger": "largest", "bigger": "largest", "smaller": "smallest"}
RELATIONS = {**ACROSS, "to the left of": "left", "to the right of": "right", **UP_AND_DOWN}
REGIONS: dict[str, tuple[str, ...]] = {
    **EDGES,
    "on the left side": ("left",),
    "on the right side": ("right",),
    "in the middle": ("middle",),
    **CORNERS,
}


def _at_side(thing: DescribedObject, side: str, limit: float) -> Answer:
    """Whether an object is at a side of the image: its centre near the side, little of it beyond the middle."""
    if side == "middle":
        return _in_middle(thing)
    axis, sign = axis_of(side)
    if not thing.single:
        near, far = (sign * (_edge(thing, s) - 0.5) + 0.5 for s in (side, OPPOSITES[side]))
        return True if far <= limit else (False if near >= 0.5 else None)
    centre = thing.centre[axis] if sign == 1 else 1 - thing.centre[axis]
    far = thing.box[axis + 2] if sign == 1 else 1 - thing.box[axis]
    if centre <= limit and far <= 0.58:
        return True
    return False if centre >= 0.5 else None


def _in_middle(thing: DescribedObject) -> Answer:
    if not thing.single:
        gaps = [max(thing.box[axis] - 0.5, 0.5 - thing.box[axis + 2]) for axis in (0, 1)]
        return False if max(gaps[0], gaps[1] * 0.75) >= 0.2 else None
    away = max(abs(thing.centre[0] - 0.5), abs(thing.centre[1] - 0.5) * 0.75)
    if away <= 0.1 and thing.box[2] - thing.box[0] < 0.6:
        return True
    return False if away >= 0.2 else None


def _agrees(in_middle: bool, thing: DescribedObject, group: Sequence[DescribedObject]) -> bool:
    """Whether the group of an object, of three or more that spread out, allows to call it in the middle or not."""
    if not all(other.single for other in group):
        return False  # it may be anywhere among them
    centres = [sorted(other.centre[axis] for other in group) for axis in (0, 1)]
    spread = [places[-1] - places[0] for places in centres]
    if len(group) < 3 or max(spread) < 4 * MARGIN:
        return True
    axis = 0 if spread[0] >= spread[1] else 1
    before = sum(place <= thing.centre[axis] - MARGIN for place in centres[axis])
    after = sum(place >= thing.centre[axis] + MARGIN for place in centres[axis])
    return min(before, after) > 0 if in_middle else before != after or before == 0


def in_region(thing: DescribedObject, sides: Sequence[str]) -> Answer:
    """Whether an object is at all of the sides; None if its extent is unknown."""
    if not thing.placed:
        return None
    limit = 0.35 if len(sides) == 1 else 0.33
    return every(_at_side(thing, side, limit) for side in sides)


def related(thing: DescribedObject, anchor: DescribedObject, side: str) -> Answer:
    """Whether an object is on a side of another: separate, and further along that axis than across it."""
    axis, sign = axis_of(side)
    if not (thing.single and anchor.single):
        behind = sign * (_edge(thing, side) - anchor.centre[axis])
        return False if thing.placed and anchor.single and behind >= MARGIN else None
    along = sign * (anchor.centre[axis] - thing.centre[axis])
    across = abs(anchor.centre[1 - axis] - thing.centre[1 - axis])
    gap = anchor.box[axis] - thing.box[axis + 2] if sign == 1 else thing.box[axis] - anchor.box[axis + 2]
    if along >= MARGIN and gap >= -0.02 and across <= along:
        return True
    return False if along <= -MARGIN or (across > 2.5 * abs(along) and along < MARGIN) else None


class World:
    """The objects of an image, and the phrases for them.

    Args:
        objects: all labelled objects.
        rng: chooses among synonyms.
        labels: all classes of the data set, from which hypernyms and absent classes are chosen; None for the classes
            in the image.
        closed: whether the image shows nothing else, so that expressions may use "the object".
        least_area: smallest target, as a share of the image.
    """

    def __init__(
        self,
        objects: Sequence[DescribedObject],
        rng: np.random.Generator,
        labels: Collection[str] | None = None,
        closed: bool = False,
        least_area: float = 0.0,
    ) -> None:
        self.objects, self.least_area = tuple(objects), least_area
        self.labels = sorted({lookup(label).name for label in labels or [thing.label for thing in objects]})
        present = {lookup(thing.label).name for thing in self.objects}
        # A class that is not in the table may be another word for anything (a car beside an automobile)
        listed = all(lookup(name).listed for name in present)
        absent = [label for label in self.labels if label not in present and listed and lookup(label).listed]
        self.absent = [absent[place] for place in rng.permutation(len(absent))[:MOST_ABSENT]]
        self.nouns = self._choose_nouns(rng, closed)
        # Pictures of many objects ask the same thousands of times
        self._fits: dict[Phrase, Answers] = {}
        self._counts: dict[Phrase, tuple[int, int | None]] = {}
        self._related: dict[tuple[int, str], Answers] = {}
        self._crowded: list[Phrase] | None = None
        self.phrases = self._all_phrases()

    def _choose_nouns(self, rng: np.random.Generator, closed: bool) -> dict[str, list[str]]:
        """The words for each class in the image: its name or a synonym, then hypernyms."""
        nouns: dict[str, list[str]] = {}
        kinds = usable_kinds(self.labels)
        for thing in self.objects:
            noun = lookup(thing.label)
            if noun.name not in nouns:
                usual = not noun.also or rng.random() < 0.6
                name = noun.name if usual else noun.also[int(rng.integers(len(noun.also)))]
                nouns[noun.name] = [name, *(kind for kind in noun.kinds if kind in kinds), *["object"] * closed]
        return nouns

    def _all_phrases(self) -> list[Phrase]:
        found: dict[Phrase, None] = {}
        for thing in self.objects:
            if thing.clear and lookup(thing.label).said:
                words, adjectives = self.nouns[lookup(thing.label).name], (None, *thing.adjectives)
                for word, colour, adjective in product(words, (None, thing.colour), adjectives):
                    found[Phrase(word, colour, adjective)] = None
        return list(found)

    def fits(self, phrase: Phrase) -> Answers:
        """Whether a phrase fits each object."""
        answers = self._fits.get(phrase)
        if answers is None:
            answers = self._fits[phrase] = tuple(self._fit(phrase, thing) for thing in self.objects)
        return answers

    @staticmethod
    def _fit(phrase: Phrase, thing: DescribedObject) -> Answer:
        answer = word_fits(phrase.word, thing.label)
        if answer is not False and phrase.colour is not None:
            answer = both(answer, thing.is_coloured(phrase.colour))
        if answer is not False and phrase.adjective is not None:
            answer = both(answer, phrase.adjective in thing.adjectives or (False if thing.single else None))
        return None if answer and not thing.clear else answer

    def count(self, phrase: Phrase) -> int:
        """How many objects a phrase fits or may fit."""
        return self._tally(phrase)[0]

    def sure(self, phrase: Phrase) -> int | None:
        """How many objects a phrase fits; None if that is open."""
        return self._tally(phrase)[1]

    def _tally(self, phrase: Phrase) -> tuple[int, int | None]:
        tally = self._counts.get(phrase)
        if tally is None:
            answers = self.fits(phrase)
            known, no = sum(map(bool, answers)), answers.count(False)
            tally = self._counts[phrase] = len(answers) - no, known if known + no == len(answers) else None
        return tally

    @property
    def crowded(self) -> list[Phrase]:
        """Phrases that may fit several objects, so that an expression needs more words."""
        if self._crowded is None:
            self._crowded = [p for p in self.phrases if p.adjective is None and self.count(p) >= 2]
        return self._crowded

    @property
    def definite(self) -> list[Phrase]:
        """Phrases that fit exactly one object."""
        return [p for p in self.phrases if p.word != "object" and self.sure(p) == 1]

    def where(self, phrase: Phrase, test: Callable[[DescribedObject], Answer]) -> Answers:
        """Whether both a phrase and a test fit each object."""
        return tuple(
            answer is not False and both(answer, test(thing))
            for answer, thing in zip(self.fits(phrase), self.objects, strict=True)
        )

    def at(self, phrase: Phrase, sides: Sequence[str]) -> Answers:
        """Whether a phrase fits and the object is at all of the sides of the image, for each object."""
        return self.where(phrase, self.place_test(phrase, sides))

    def place_test(self, phrase: Phrase, sides: Sequence[str]) -> Callable[[DescribedObject], Answer]:
        """The test of objects of a phrase for a place: of the image, and for the middle also of their group."""
        return partial(self._middle, phrase) if "middle" in sides else partial(in_region, sides=sides)

    def _middle(self, phrase: Phrase, thing: DescribedObject) -> Answer:
        answer = in_region(thing, ("middle",))
        for group in dict.fromkeys((phrase, Phrase(phrase.word))):
            things = [other for other, a in zip(self.objects, self.fits(group), strict=True) if a is not False]
            if answer is not None and not _agrees(answer, thing, things):
                return None
        return answer

    def first(self, phrase: Phrase, further: Callable[[DescribedObject, DescribedObject], Answer]) -> Answers:
        """The object that precedes all others that a phrase may fit."""
        answers = self.fits(phrase)
        rivals = [index for index, answer in enumerate(answers) if answer is not False]
        for index in rivals:
            if answers[index] and all(further(self.objects[index], self.objects[r]) for r in rivals if r != index):
                return tuple(number == index for number in range(len(answers)))
        return tuple(None if number in rivals else False for number in range(len(answers)))

    def ranked(self, phrase: Phrase, side: str, rank: int) -> Answers:
        """The object of a rank from a side, among those that a phrase fits; none beyond the last rank."""
        answers = self.fits(phrase)
        found = [index for index, answer in enumerate(answers) if answer]
        axis, sign = axis_of(side)
        found.sort(key=lambda index: sign * self.objects[index].centre[axis])
        if None in answers or not all(_before(self.objects[a], self.objects[b], side) for a, b in pairwise(found)):
            return tuple(answer and None for answer in answers)
        return tuple(rank < len(found) and number == found[rank] for number in range(len(answers)))

    def beside(self, phrase: Phrase, side: str, anchor: Phrase) -> Answers:
        """The objects of a phrase on a side of the one object of another phrase."""
        if self.sure(anchor) != 1:
            return (None,) * len(self.objects)
        return tuple(map(both, self.fits(phrase), self._related_to(self.fits(anchor).index(True), side)))

    def has_beside(self, phrase: Phrase, side: str, place: int) -> bool:
        """Whether `beside` is True for some object, of an anchor given by its index; it stops at the first."""
        return (True, True) in zip(self.fits(phrase), self._related_to(place, side), strict=True)

    def _related_to(self, place: int, side: str) -> Answers:
        """The objects at a side of one of them, which is not at a side of itself."""
        if (place, side) not in self._related:
            anchor = self.objects[place]
            self._related[place, side] = tuple(
                index != place and related(thing, anchor, side) for index, thing in enumerate(self.objects)
            )
        return self._related[place, side]


def plural_of(phrase: Phrase, label: str | None = None) -> str:
    """The plural of a phrase: `red cups`, `people`."""
    noun = lookup(phrase.word)
    plural = noun.plural if phrase.word == noun.name else pluralise(phrase.word)
    return " ".join(word for word in (phrase.adjective, phrase.colour, plural) if word)


def article(word: str) -> str:
    """Add `a` or `an` to a countable noun."""
    if lookup(word).form != "count":
        return word
    return f"{'an' if word[0] in 'aeio' or word.startswith('umb') else 'a'} {word}"


def _counted(phrase: Phrase) -> Phrase | None:
    """A countable phrase: pieces of a mass noun; None if it has none."""
    noun = lookup(phrase.word)
    if noun.form == "mass":
        return None if noun.piece is None else Phrase(noun.piece, phrase.colour, phrase.adjective)
    return phrase


@lru_cache(maxsize=16384)
def _words(phrase: Phrase) -> str:
    return f"the {_counted(phrase) or phrase}"


def noun_queries(world: World) -> Iterator[Query]:
    """`the cat`."""
    for phrase in world.phrases:
        if phrase.colour is None and phrase.adjective is None and phrase.word != "object":
            yield Query(f"the {phrase}", partial(world.fits, phrase))


def attribute_queries(world: World) -> Iterator[Query]:
    """`the red cup`, `the big cup`."""
    for phrase in world.phrases:
        if phrase.colour or phrase.adjective:
            shorter = [Phrase(phrase.word, None, phrase.adjective), Phrase(phrase.word, phrase.colour)]
            useful = all(world.count(s) > 1 for s in shorter if s != phrase)
            yield Query(_words(phrase), partial(world.fits, phrase), useful, phrase.colour or "adjective")
    for phrase, word in product(world.crowded, ("big", "small")):
        counted = _counted(phrase)
        if counted is not None and phrase.colour is None and lookup(phrase.word).sizes:
            yield Query(f"the {word} {counted}", partial(world.first, phrase, _further(word)), group="size")


def absolute_queries(world: World) -> Iterator[Query]:
    """`the cup in the top left corner`."""
    for phrase, (words, sides) in product(world.phrases, REGIONS.items()):
        if not phrase.adjective:
            useful = world.count(phrase) > 1
            yield Query(
                f"{_words(phrase)} {words}",
                partial(world.at, phrase, sides),
                useful,
                str(sides),
            )


def relation_queries(world: World) -> Iterator[Query]:
    """`the cup left of the red bowl`."""
    plain = [p for p in world.phrases if not p.adjective and (p.colour is None or world.count(Phrase(p.word)) > 1)]
    said = [(phrase, _words(phrase), world.count(phrase) > 1) for phrase in plain]
    anchors = [(anchor, _words(anchor)) for anchor in world.definite]
    for (phrase, words, several), (relation, side), (anchor, name) in product(said, RELATIONS.items(), anchors):
        useful = several and phrase.word != anchor.word
        yield Query(f"{words} {relation} {name}", partial(world.beside, phrase, side, anchor), useful)


def ordinal_queries(world: World) -> Iterator[Query]:
    """`the second cup from the left`."""
    for phrase in world.crowded:
        counted, number = _counted(phrase), world.count(phrase)
        if counted is not None and 3 <= number <= len(ORDINALS):
            for (rank, word), side in product(enumerate(ORDINALS[:number]), SIDES):
                yield Query(
                    f"the {word} {counted} from the {side}",
                    partial(world.ranked, phrase, side, rank),
                    rank > 0,
                )


def superlative_queries(world: World) -> Iterator[Query]:
    """`the largest cup`; of two, `the larger cup`."""
    for phrase in world.crowded:
        if (counted := _counted(phrase)) is not None:
            words = SUPERLATIVES | (COMPARATIVES if world.sure(phrase) == 2 else {})
            for word, key in words.items():
                if key in SIDES or lookup(phrase.word).sizes:
                    yield Query(f"the {word} {counted}", partial(world.first, phrase, _further(key)), group=key)


def negation_queries(world: World) -> Iterator[Query]:
    """`the cup that is not red`, `the animal that is not a dog`, `the cup that is not on the left`."""
    for phrase in world.crowded:
        verb = "are" if lookup(phrase.word).form == "plural" else "is"
        start = f"{_words(phrase)} that {verb} not"
        for test, words in _negated(world, phrase):
            answer = partial(_without, world, phrase, test)
            yield Query(f"{start} {words}", answer, group=words if words in REGIONS else "")


def _without(world: World, phrase: Phrase, test: Callable[[DescribedObject], Answer]) -> Answers:
    return world.where(phrase, lambda thing: opposite(test(thing)))


def _is_coloured(colour: str, thing: DescribedObject) -> Answer:
    return thing.is_coloured(colour)


def _is_called(word: str, thing: DescribedObject) -> Answer:
    return word_fits(word, thing.label)


def _negated(world: World, phrase: Phrase) -> Iterator[tuple[Callable[[DescribedObject], Answer], str]]:
    """Properties that some of the objects of a phrase lack, with their words."""
    if phrase.colour is None:
        for colour in sorted({p.colour for p in world.phrases if p.colour}):
            yield partial(_is_coloured, colour), colour
    for word in sorted({p.word for p in world.phrases} - {phrase.word, "object"}):
        if phrase.word in (*lookup(word).kinds, "object"):
            yield partial(_is_called, word), article(word)
    for words, sides in REGIONS.items():
        if len(sides) == 1 and not words.endswith("side"):
            yield world.place_test(phrase, sides), words


def plural_queries(world: World) -> Iterator[Query]:
    """`all red cups`, `the two cups on the left`."""
    for phrase in world.crowded:
        counted = _counted(phrase)
        if counted is None or (lookup(phrase.word).form == "plural" and phrase.word != "object"):
            continue
        plural, number = plural_of(counted), world.sure(phrase) or 0
        starts = [f"all {plural}", f"the {plural}", f"all the {plural}", f"every {counted}"]
        starts += [f"the {NUMBERS[number - 2]} {plural}"] if 2 <= number <= 6 else []
        starts += [f"both {plural}"] if number == 2 else []
        for text in starts:
            yield Query(text, partial(world.fits, phrase))
        for words, sides in REGIONS.items():
            yield Query(
                f"the {plural} {words}",
                partial(world.at, phrase, sides),
                group="place",
            )


def no_target_queries(world: World) -> Iterator[Query]:
    """Expressions that fit nothing, one word away from an expression that fits an object."""
    yield from _absent_colours(world)
    yield from _absent_places(world)
    yield from _absent_relations(world)
    yield from _absent_things(world)


def _absent_colours(world: World) -> Iterator[Query]:
    for phrase, colour in product([p for p in world.phrases if p.colour and not p.adjective], COLOURS):
        noun = lookup(phrase.word)
        if colour != phrase.colour and (noun.colours is None or colour in noun.colours) and colour not in phrase.word:
            wrong = Phrase(phrase.word, colour)
            yield Query(_words(wrong), partial(world.fits, wrong), group="colour")


def _absent_places(world: World) -> Iterator[Query]:
    for phrase, (words, sides) in product(world.phrases, REGIONS.items()):
        if not phrase.adjective and len(sides) == 1 and sides[0] in OPPOSITES:
            there = world.at(phrase, (OPPOSITES[sides[0]],))
            if True in there:
                yield Query(
                    f"{_words(phrase)} {words}",
                    partial(world.at, phrase, sides),
                    group="place",
                )


def _absent_relations(world: World) -> Iterator[Query]:
    phrases = [phrase for phrase in world.phrases if not phrase.adjective and world.count(phrase)]
    anchors = [(anchor, world.fits(anchor).index(True)) for anchor in world.definite]
    for phrase, (relation, side), (anchor, place) in product(phrases, RELATIONS.items(), anchors):
        if phrase.word != anchor.word and world.has_beside(phrase, OPPOSITES[side], place):
            words = f"{_words(phrase)} {relation} {_words(anchor)}"
            yield Query(words, partial(world.beside, phrase, side, anchor), group="relation")


def _absent_things(world: World) -> Iterator[Query]:
    colours = dict.fromkeys(phrase.colour for phrase in world.phrases if not phrase.adjective)
    for label, colour in product(world.absent, colours):
        allowed = lookup(label).colours
        if colour is None or ((allowed is None or colour in allowed) and colour not in label.split()):
            wrong = Phrase(label, colour)
            yield Query(_words(wrong), partial(world.fits, wrong), group="thing")


QUERIES: dict[str, Callable[[World], Iterator[Query]]] = {
    "noun": noun_queries,
    "attribute": attribute_queries,
    "absolute": absolute_queries,
    "relation": relation_queries,
    "ordinal": ordinal_queries,
    "superlative": superlative_queries,
    "negation": negation_queries,
    "plural": plural_queries,
    "no_target": no_target_queries,
}


def verified_targets(world: World, query: Query, family: str) -> tuple[int, ...] | None:
    """The targets of a query; None if it cannot be used."""
    answers = query.answer()
    if None in answers:
        return None
    targets = tuple(index for index, answer in enumerate(answers) if answer)
    fitting = {"plural": len(targets) >= 2, "no_target": not targets}.get(family, len(targets) == 1)
    large = all(world.objects[index].area >= world.least_area and world.objects[index].clear for index in targets)
    return targets if fitting and large else None


def _in_random_order(queries: Sequence[Query], rng: np.random.Generator) -> Iterator[Query]:
    """Sample queries without replacement: groups have equal weight, queries with redundant words a tenth of it."""
    sizes = Counter(query.group for query in queries)
    weights = [(1.0 if query.useful else 0.1) / sizes[query.group] for query in queries]
    keys = rng.exponential(size=len(queries)) / weights
    return (queries[index] for index in np.argsort(keys))


def make_expressions(
    objects: Sequence[DescribedObject],
    rng: np.random.Generator,
    families: Sequence[str] = FAMILIES,
    *,
    exhaustive: bool = True,
    labels: Collection[str] | None = None,
    closed: bool = False,
    per_family: int = 1,
    least_area: float = 0.0,
    tries: int = 60,
) -> list[Expression]:
    """Make expressions of each family that fit their targets and no other object.

    Args:
        objects: all labelled objects of an image.
        rng: chooses among the expressions.
        families: of `FAMILIES`, in the order of the result.
        exhaustive: whether all objects of the named classes are labelled. If not, only `UNCERTAIN_FAMILIES` are made,
            and marked.
        labels: all classes of the data set; None for those in the image.
        closed: whether the image shows nothing but the objects.
        per_family: the most expressions of a family, with different targets.
        least_area: smallest target, as a share of the image.
        tries: the most queries of a family to verify.

    Returns:
        The expressions; a family may be missing.

    Raises:
        ValueError: if there is no such family.
    """
    for family in families:
        check_known("families", family, FAMILIES)
    world = World(objects, rng, labels, closed, least_area)
    found: list[Expression] = []
    for family in families:
        if exhaustive or family in UNCERTAIN_FAMILIES:
            found += _of_family(world, family, rng, per_family, tries, exhaustive)
    return found


def _of_family(
    world: World, family: str, rng: np.random.Generator, most: int, tries: int, certain: bool
) -> list[Expression]:
    queries = list(QUERIES[family](world))
    found: dict[tuple[int, ...] | str, Expression] = {}
    for query, _ in zip(_in_random_order(queries, rng), range(tries), strict=False):
        if (targets := verified_targets(world, query, family)) is not None:
            found.setdefault(targets or query.text, Expression(query.text, family, targets, certain))
        if len(found) == most:
            break
    return list(found.values())
