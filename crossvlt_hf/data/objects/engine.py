"""Expressions that refer to labelled objects, each verified against all of them.

An expression is words and a small program on the objects. A program answers for every object True, False or None: None
where people might differ (a cup that is red and orange, a chair hardly left of the middle, a shoe that may be a
sneaker), and where an object is not `clear`. An expression is used only if no answer is None and the objects with True
are as many as its family says.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise, product

import numpy as np

from .attributes import COLOURS, DescribedObject
from .words import lookup, pluralise, usable_kinds, word_fits


FAMILIES = (
    "noun",
    "attribute",
    "absolute",
    "relation",
    "ordinal",
    "superlative",
    "negation",
    "plural",
    "no_target",
)
# What may be said where not all objects of the named classes are labelled: it can still mean an unlabelled one too
UNCERTAIN_FAMILIES = ("noun", "attribute", "absolute")

# Two positions nearer than this share of the picture, and two areas of a smaller ratio, are not distinguished in words
MARGIN, AREA_RATIO, CLEAR_AREA_RATIO = 0.06, 1.6, 2.5
MOST_ABSENT = 8  # classes that a picture lacks, of which it is then said
BIG = 0.04  # share of the picture of what is called big at least
ORDINALS = ("first", "second", "third", "fourth", "fifth")
NUMBERS = ("two", "three", "four", "five", "six")

Answer = bool | None
Answers = tuple[Answer, ...]


@dataclass(frozen=True)
class Expression:
    """What is said, and what it means.

    Args:
        text: in lower case.
        family: one of `FAMILIES`.
        targets: indices of the objects that are meant; empty for "no_target".
        certain: false where unlabelled objects may fit as well.
    """

    text: str
    family: str
    targets: tuple[int, ...]
    certain: bool = True


@dataclass(frozen=True)
class Phrase:
    """A noun with adjectives: `striped red circle`."""

    word: str
    colour: str | None = None
    adjective: str | None = None

    def __str__(self) -> str:
        return " ".join(word for word in (self.adjective, self.colour, self.word) if word)


@dataclass(frozen=True)
class Query:
    """Words, and the program that they stand for.

    Args:
        text: what is said.
        answer: for every object whether it is meant.
        useful: whether the noun alone would not do.
        group: what kind of statement; each group has an equal chance, however many queries it has.
    """

    text: str
    answer: Callable[[], Answers]
    useful: bool = True
    group: str = ""


def both(one: Answer, other: Answer) -> Answer:
    """Three-valued "and"."""
    if one is False or other is False:
        return False
    return None if one is None or other is None else True


def opposite(answer: Answer) -> Answer:
    """Three-valued "not"."""
    return None if answer is None else not answer


def _before(one: DescribedObject, other: DescribedObject, side: str) -> Answer:
    """Whether one is further on a side than the other: by its middle, and by both of its edges."""
    axis, sign = (0, 1) if side in ("left", "right") else (1, 1)
    sign = sign if side in ("left", "top") else -1
    gaps = [
        sign * (other.centre[axis] - one.centre[axis]),
        sign * (other.box[axis] - one.box[axis]),
        sign * (other.box[axis + 2] - one.box[axis + 2]),
    ]
    if gaps[0] >= MARGIN and min(gaps) >= 0:
        return True
    return False if gaps[0] <= -MARGIN and max(gaps) <= 0 else None


def _larger(one: DescribedObject, other: DescribedObject, ratio: float = AREA_RATIO) -> Answer:
    """Whether one covers more of the picture; nobody knows where it cuts off the smaller one."""
    if one.area >= ratio * other.area:
        return None if other.cut else True
    if other.area >= ratio * one.area:
        return None if one.cut else False
    return None


def _further(key: str) -> Callable[[DescribedObject, DescribedObject], Answer]:
    if key in SIDES:
        return lambda one, other: _before(one, other, key)
    ratio = CLEAR_AREA_RATIO if key in ("big", "small") else AREA_RATIO
    if key in ("largest", "big"):
        return lambda one, other: _larger(one, other, ratio) if key != "big" or one.area >= BIG else None
    return lambda one, other: _larger(other, one, ratio)


SIDES = ("left", "right", "top", "bottom")
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
RELATIONS = {
    "left of": "left",
    "right of": "right",
    "to the left of": "left",
    "to the right of": "right",
    "above": "top",
    "below": "bottom",
}
REGIONS: dict[str, tuple[str, ...]] = {
    "on the left": ("left",),
    "on the right": ("right",),
    "at the top": ("top",),
    "at the bottom": ("bottom",),
    "on the left side": ("left",),
    "on the right side": ("right",),
    "in the middle": ("middle",),
    "in the top left corner": ("top", "left"),
    "in the top right corner": ("top", "right"),
    "in the bottom left corner": ("bottom", "left"),
    "in the bottom right corner": ("bottom", "right"),
}
OPPOSITES = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


def _at_side(thing: DescribedObject, side: str, limit: float) -> Answer:
    """Whether a thing lies at a side of the picture: its middle near it, and little of it beyond the middle line."""
    if side == "middle":
        return _in_middle(thing)
    axis = 0 if side in ("left", "right") else 1
    flip = side in ("right", "bottom")
    centre = 1 - thing.centre[axis] if flip else thing.centre[axis]
    far = 1 - thing.box[axis] if flip else thing.box[axis + 2]
    if centre <= limit and far <= 0.58:
        return True
    return False if centre >= 0.5 else None


def _in_middle(thing: DescribedObject) -> Answer:
    away = max(abs(thing.centre[0] - 0.5), abs(thing.centre[1] - 0.5) * 0.75)
    if away <= 0.1 and thing.box[2] - thing.box[0] < 0.6:
        return True
    return False if away >= 0.2 else None


def in_region(thing: DescribedObject, sides: Sequence[str]) -> Answer:
    """Whether a thing lies at all of the sides."""
    limit = 0.35 if len(sides) == 1 else 0.33
    answer: Answer = True
    for side in sides:
        answer = both(answer, _at_side(thing, side, limit))
    return answer


def related(thing: DescribedObject, anchor: DescribedObject, side: str) -> Answer:
    """Whether a thing stands at a side of another: apart from it, and more to that side than across."""
    axis = 0 if side in ("left", "right") else 1
    sign = 1 if side in ("left", "top") else -1
    along = sign * (anchor.centre[axis] - thing.centre[axis])
    across = abs(anchor.centre[1 - axis] - thing.centre[1 - axis])
    gap = anchor.box[axis] - thing.box[axis + 2] if sign == 1 else thing.box[axis] - anchor.box[axis + 2]
    if along >= MARGIN and gap >= -0.02 and across <= along:
        return True
    return False if along <= -MARGIN or (across > 2.5 * abs(along) and along < MARGIN) else None


class World:
    """The objects of a picture and what can be said of them.

    Args:
        objects: all that are labelled.
        rng: chooses among synonyms.
        labels: all classes of the data set, also those that this picture has not; they say which wider words and
            which absent things can be named. None for the classes of the picture.
        closed: whether there is nothing else in the picture at all, so that "the object" can be said.
        least_area: share of the picture that the objects which are meant have at least.
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
        kinds = usable_kinds(self.labels)
        present = {lookup(thing.label).name for thing in self.objects}
        absent = [label for label in self.labels if label not in present]
        self.absent = [absent[place] for place in rng.permutation(len(absent))[:MOST_ABSENT]]
        self.nouns: dict[str, list[str]] = {}
        for thing in self.objects:
            noun = lookup(thing.label)
            if noun.name not in self.nouns:
                usual = not noun.also or rng.random() < 0.6
                name = noun.name if usual else noun.also[int(rng.integers(len(noun.also)))]
                self.nouns[noun.name] = [name, *(kind for kind in noun.kinds if kind in kinds), *["object"] * closed]
        # Pictures of many objects ask the same thousands of times
        self._fits: dict[Phrase, Answers] = {}
        self._counts: dict[Phrase, tuple[int, int | None]] = {}
        self._related: dict[tuple[int, str], Answers] = {}
        self._crowded: list[Phrase] | None = None
        self.phrases = self._all_phrases()

    def _all_phrases(self) -> list[Phrase]:
        found: dict[Phrase, None] = {}
        for thing in self.objects:
            if thing.clear:
                words, adjectives = self.nouns[lookup(thing.label).name], (None, *thing.adjectives)
                for word, colour, adjective in product(words, (None, thing.colour), adjectives):
                    found[Phrase(word, colour, adjective)] = None
        return list(found)

    def fits(self, phrase: Phrase) -> Answers:
        """Whether a phrase fits, for every object."""
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
            answer = both(answer, phrase.adjective in thing.adjectives)
        return None if answer and not thing.clear else answer

    def count(self, phrase: Phrase) -> int:
        """How many objects it may fit."""
        return self._tally(phrase)[0]

    def sure(self, phrase: Phrase) -> int | None:
        """How many objects it fits; None if that is open."""
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
        """Phrases that may fit several objects, among which an expression then decides."""
        if self._crowded is None:
            self._crowded = [p for p in self.phrases if p.adjective is None and self.count(p) >= 2]
        return self._crowded

    @property
    def definite(self) -> list[Phrase]:
        """Phrases that fit one object only."""
        return [p for p in self.phrases if p.word != "object" and self.sure(p) == 1]

    def where(self, phrase: Phrase, test: Callable[[DescribedObject], Answer]) -> Answers:
        """The objects that a phrase and a test fit."""
        return tuple(
            answer is not False and both(answer, test(thing))
            for answer, thing in zip(self.fits(phrase), self.objects, strict=True)
        )

    def at(self, phrase: Phrase, sides: Sequence[str]) -> Answers:
        """The objects of a phrase at all of some sides of the picture."""
        return self.where(phrase, partial(in_region, sides=sides))

    def first(self, phrase: Phrase, further: Callable[[DescribedObject, DescribedObject], Answer]) -> Answers:
        """The one object that is further than all others that a phrase may fit."""
        answers = self.fits(phrase)
        rivals = [index for index, answer in enumerate(answers) if answer is not False]
        for index in rivals:
            if answers[index] and all(further(self.objects[index], self.objects[r]) for r in rivals if r != index):
                return tuple(number == index for number in range(len(answers)))
        return tuple(None if number in rivals else False for number in range(len(answers)))

    def ranked(self, phrase: Phrase, side: str, rank: int) -> Answers:
        """The object of a rank from a side, of those that a phrase fits; nothing beyond the last."""
        answers = self.fits(phrase)
        found = [index for index, answer in enumerate(answers) if answer]
        axis, sign = (0 if side in ("left", "right") else 1), (1 if side in ("left", "top") else -1)
        found.sort(key=lambda index: sign * self.objects[index].centre[axis])
        if None in answers or not all(_before(self.objects[a], self.objects[b], side) for a, b in pairwise(found)):
            return tuple(answer and None for answer in answers)
        return tuple(rank < len(found) and number == found[rank] for number in range(len(answers)))

    def beside(self, phrase: Phrase, side: str, anchor: Phrase) -> Answers:
        """The objects of a phrase at a side of the one that another phrase names."""
        if self.sure(anchor) != 1:
            return (None,) * len(self.objects)
        return tuple(map(both, self.fits(phrase), self._related_to(self.fits(anchor).index(True), side)))

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
    """`a` or `an` before a word that can be counted, nothing before another."""
    if lookup(word).form != "count":
        return word
    return f"{'an' if word[0] in 'aeio' or word.startswith('umb') else 'a'} {word}"


def _counted(phrase: Phrase) -> Phrase | None:
    """The phrase where things are counted or compared: pieces of what is a mass; None if it has none."""
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
    """What can be denied of some of the things that a phrase fits."""
    if phrase.colour is None:
        for colour in sorted({p.colour for p in world.phrases if p.colour}):
            yield partial(_is_coloured, colour), colour
    for word in sorted({p.word for p in world.phrases} - {phrase.word, "object"}):
        if phrase.word in (*lookup(word).kinds, "object"):
            yield partial(_is_called, word), article(word)
    for words, sides in REGIONS.items():
        if len(sides) == 1 and not words.endswith("side"):
            yield partial(in_region, sides=sides), words


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
    """Nothing fits, but something fits all but one word of it."""
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
    for phrase, (relation, side), anchor in product(phrases, RELATIONS.items(), world.definite):
        if phrase.word != anchor.word and True in world.beside(phrase, OPPOSITES[side], anchor):
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
    """The objects that a query means; None where it cannot be used."""
    answers = query.answer()
    if None in answers:
        return None
    targets = tuple(index for index, answer in enumerate(answers) if answer)
    fitting = {"plural": len(targets) >= 2, "no_target": not targets}.get(family, len(targets) == 1)
    large = all(world.objects[index].area >= world.least_area and world.objects[index].clear for index in targets)
    return targets if fitting and large else None


def _in_random_order(queries: Sequence[Query], rng: np.random.Generator) -> Iterator[Query]:
    """Each group with an equal chance to come first, queries whose noun alone would do with a tenth of it."""
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
    """Expressions of each family that are true of the objects and of these alone.

    Args:
        objects: all that are labelled in a picture.
        rng: chooses among what can be said.
        families: of `FAMILIES`, in the order in which they come.
        exhaustive: whether all objects of the named classes are labelled. If not, only `UNCERTAIN_FAMILIES` are made,
            and marked.
        labels: all classes of the data set; None for those of the picture.
        closed: whether there is nothing in the picture but the objects.
        per_family: how many at most, each of other targets where the family has some.
        least_area: share of the picture of an object that is meant, at least.
        tries: how many programs of a family are run at most.

    Returns:
        What could be said; a family may be missing.

    Raises:
        ValueError: if there is no such family.
    """
    if unknown := [family for family in families if family not in QUERIES]:
        raise ValueError(f"`families` must be of {', '.join(FAMILIES)}, got {unknown[0]!r}.")
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
