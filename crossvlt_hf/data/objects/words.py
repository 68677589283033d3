"""Nouns for classes of objects: synonyms, hypernyms and plurals, and which words fit which classes.

The table is `nouns.yaml`. Whether a word fits a class may be open (None), as a label does not say everything: a person
may be a man, a shoe may be a sneaker.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

import yaml

from ..phrases import Answer


Form = Literal["count", "plural", "mass"]

# Plurals by the end of a word, longest end first: "snowman", "grandchild", "penknife"
_ENDS = {
    "child": "children",
    "person": "people",
    "mongoose": "mongooses",
    "goose": "geese",
    "tooth": "teeth",
    "foot": "feet",
    "mouse": "mice",
    "louse": "lice",
    "knife": "knives",
    "wife": "wives",
    "leaf": "leaves",
    "loaf": "loaves",
    "sheaf": "sheaves",
    "thief": "thieves",
    "wolf": "wolves",
    "calf": "calves",
    "half": "halves",
    "shelf": "shelves",
    "scarf": "scarves",
    "hoof": "hooves",
    "human": "humans",
    "roman": "romans",
    "german": "germans",
    "shaman": "shamans",
    "ottoman": "ottomans",
    "talisman": "talismans",
    "caiman": "caimans",
    "man": "men",
    "hero": "heroes",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "mosquito": "mosquitoes",
    "torpedo": "torpedoes",
    "buffalo": "buffaloes",
    "domino": "dominoes",
    "mango": "mangoes",
    "volcano": "volcanoes",
    "quiz": "quizzes",
    "matrix": "matrices",
    "craft": "craft",
    "fish": "fish",
    "sheep": "sheep",
    "deer": "deer",
    "moose": "moose",
    "bison": "bison",
    "shrimp": "shrimp",
    "squid": "squid",
    "salmon": "salmon",
    "trout": "trout",
    "offspring": "offspring",
    "series": "series",
    "species": "species",
}
_WHOLE = {
    "ox": "oxen",
    "musk ox": "musk oxen",
    "elf": "elves",
    "echo": "echoes",
    "cargo": "cargoes",
    "life": "lives",
    "axis": "axes",
    "die": "dice",
    "swine": "swine",
    "cod": "cod",
    "elk": "elk",
    "handicraft": "handicrafts",
    "witchcraft": "witchcraft",
    "cactus": "cacti",
    "fungus": "fungi",
    "alumnus": "alumni",
    "nucleus": "nuclei",
    "bacillus": "bacilli",
    "stimulus": "stimuli",
    "larva": "larvae",
    "alga": "algae",
    "pupa": "pupae",
    "vertebra": "vertebrae",
    "bacterium": "bacteria",
    "medium": "media",
    "criterion": "criteria",
    "phenomenon": "phenomena",
}
_IRREGULAR = frozenset(many for one, many in _WHOLE.items() if one != many)
# Words in -s that name one thing, and words in -us and -is that name several
_SINGULAR_IN_S = re.compile(
    r"(ss|us|is|(^|[ -])(thermos|rhinoceros|lens|gas|canvas|atlas|christmas|pancreas|alias|cosmos|"
    r"asbestos|series|species|biceps|triceps|mars|ananas|madras|pampas|news|chaos))$"
)
_PLURAL_IN_S = re.compile(
    r"(^|[ -])(menus|emus|gnus|gurus|skis|taxis|bikinis|kiwis|safaris|sushis|chilis|alibis|rabbis|jet skis|minis|"
    r"yetis|okapis|wasabis|zucchinis|tofus|tutus|haikus|thus)$"
)
_PLURAL = re.compile(
    r"((^|[ -])(people|teeth|feet|geese|mice|men|radii|foci|octopi|hippopotami|antennae|formulae|nebulae|"
    r"aquaria|stadia|strata|ova|data)|children|women|salespeople|"
    r"(police|fire|snow|sales|fisher|business|post|milk|work|crafts|sports|gentle)men)$"
)
# "cup with straws" are "cups with straws", "person on bike" are "people on bike"; but "carry on bag" is a bag
_AFTER_HEAD = re.compile(
    r" ((of|with|without|for|from|in|on|at|under|over|near|behind|beside|inside) |(by|to) (?=(a|an|the|law)( |$)))"
)
_PARTICLE = re.compile(
    r"(add|all|built|carry|check|clip|drive|drop|fold|hang|lift|live|log|plug|pop|press|pull|push|ride|roll|screw|sign|sit|"
    r"slip|snap|spray|stand|step|stick|strap|take|try|turn|walk|wrap) (in|on|over|under) (?!(a|an|the) )"
)

SEVERAL = 3  # classes of a kind, for its name to be used


@dataclass(frozen=True)
class Noun:
    """The words for a class.

    Args:
        name: the usual noun.
        plural: of the name.
        also: synonyms, and wider words that people use for it.
        kinds: hypernyms, direct and indirect.
        perhaps: words that may fit.
        form: "count", "plural" ("shoes", one label for a pair), or "mass" ("rice").
        piece: countable noun for a mass: "piece of tofu".
        colours: colours that expressions may use; None for all.
        sizes: whether expressions may call it big or small by its share of the image.
        listed: whether it is in the table.
        said: whether expressions may use it: false if the name of the class is no noun ("3", "1 bus", "no hardhat").
    """

    name: str
    plural: str
    also: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    perhaps: frozenset[str] = frozenset()
    form: Form = "count"
    piece: str | None = None
    colours: frozenset[str] | None = None
    sizes: bool = True
    listed: bool = False
    said: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """The name and its synonyms."""
        return (self.name, *self.also)


def pluralise(noun: str, *, regular: bool = False) -> str:
    """The plural of an English noun: of its last word, or of the one before a preposition ("cups with straws").

    Args:
        noun: in lower case.
        regular: whether to form it by rule, even if another is usual ("persons").
    """
    before, last, rest = _split_last(noun)
    return before + (_regular_plural(last) if regular else _plural_of(last)) + rest


def _split_last(noun: str) -> tuple[str, str, str]:
    """The word of a noun that has the plural, with what precedes and follows it: ("wine ", "glass", " of water")."""
    head, rest = _split_head(noun)
    before, space, last = head.rpartition(" ")
    return before + space, last, rest


def _split_head(noun: str) -> tuple[str, str]:
    """The head of a noun, and what follows it from a preposition on: ("chest", " of drawers")."""
    particle = _PARTICLE.match(noun)
    found = _AFTER_HEAD.search(noun, particle.end() if particle else 1)
    return (noun, "") if found is None else (noun[: found.start()], noun[found.start() :])


def _plural_of(word: str) -> str:
    if word in _WHOLE:
        return _WHOLE[word]
    for end, plural in _ENDS.items():
        if word.endswith(end):
            return word[: -len(end)] + plural
    return _regular_plural(word)


def _regular_plural(word: str) -> str:
    if word.endswith("sis"):
        return word[:-2] + "es"
    if re.search(r"(s|x|z|ch|sh)$", word):
        return f"{word}es"
    return re.sub(r"y$", "ie", word) + "s" if re.search(r"[^aeiou]y$", word) else f"{word}s"


def _singulars(plural: str) -> frozenset[str]:
    """The words that a plural may be of: "cars" of "car", "axes" of "axe" and of "axis"."""
    before, last, rest = _split_last(plural)
    found = [last[:-1], last[:-2], f"{last[:-3]}y", f"{last[:-2]}is"]
    found += [last[: -len(many)] + one for one, many in (_ENDS | _WHOLE).items() if last.endswith(many)]
    return frozenset(before + one + rest for one in found if one and last in (_plural_of(one), _regular_plural(one)))


def _is_plural(head: str) -> bool:
    """Whether a noun is that of several things, or of a pair, by its form."""
    if _PLURAL.search(head) or head.rpartition(" ")[2] in _IRREGULAR:
        return True
    return head.endswith("s") and (_PLURAL_IN_S.search(head) is not None or _SINGULAR_IN_S.search(head) is None)


@lru_cache(maxsize=65536)
def clean(label: str) -> str:
    """Convert a class name to words: `DiningTable_2`, `dining-table3` and `dining table` become "dining table".

    Hyphens stay in nouns that the table spells with a hyphen ("t-shirt"). Of names separated by commas, as in ADE20K,
    the first is used; what is in parentheses, as in LVIS ("bat_(animal)"), is left out.
    """
    text = re.sub(r"[\s_]*\(.*\)", " ", label).strip() or label
    text = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", text.split(",")[0])
    text = " ".join(re.sub(r"[_/]", " ", text).lower().split())
    for spelled in (text, " ".join(text.replace("-", " ").split()) or text):
        words = re.sub(r"(?<=[a-z]{3})[\s.\d]*\d$|([\s.]+\d+)+$", "", spelled) or spelled
        if words in _index():
            break
    return words or "object"


@cache
def _table() -> dict[str, dict]:
    return {
        name: entry or {}
        for name, entry in yaml.safe_load(Path(__file__).with_name("nouns.yaml").read_text(encoding="utf-8")).items()
    }


@cache
def _index() -> dict[str, str]:
    """The name of the entry for every word: its name, or a word in its `also` or `labels`, or a plural of these."""
    names = {name: name for name in _table()}
    others = {
        word: name for name, entry in _table().items() for word in (*entry.get("also", ()), *entry.get("labels", ()))
    }
    plurals = {plural: name for word, name in (others | names).items() for plural in _plurals_of(word, _table()[name])}
    return plurals | others | names


def _plurals_of(word: str, entry: dict) -> set[str]:
    """The plurals of a countable word: one label of "cars" or "persons" is for a car or a person, as data sets go."""
    if entry.get("form", "count") != "count":
        return set()
    return {pluralise(word), pluralise(word, regular=True), entry.get("plural", pluralise(word))}


def in_table(label: str) -> bool:
    """Whether a class is in the table of nouns."""
    return clean(label) in _index()


def _closure(kinds: Collection[str]) -> Iterator[str]:
    for kind in kinds:
        yield kind
        yield from _closure(_table().get(kind, {}).get("kinds", ()))


@lru_cache(maxsize=65536)
def lookup(label: str) -> Noun:
    """The noun for a class: from the table, or derived from the name of the class."""
    word = clean(label)
    return _listed(_index()[word]) if word in _index() else _unlisted(word)


def _unlisted(word: str) -> Noun:
    """The noun for a class that is not in the table."""
    if _LACKS.match(word):
        return Noun(word, word, said=False)  # it may be anything: a person, a head
    plural = _is_plural(_split_head(word)[0])
    # A "sports car" may be called a car or not: a "hot dog" is no dog
    parts = frozenset(re.findall(r"[^\W\d_]{2,}", word) if not _is_noun(word) else word.split(" ")) - _STOP - {word}
    parts |= _singulars(word) if plural else frozenset()
    if re.search(r"(m[ae]n|boys?|girls?|child(ren)?|persons?|people)$", word):
        parts |= {"person"}
    form: Form = "plural" if plural else "count"
    return Noun(word, word if plural else pluralise(word), perhaps=parts, form=form, said=_is_noun(word))


_STOP = frozenset(("of", "the", "and", "with", "in", "on"))
# English words: Latin letters, and digits only before the last word ("3d printer", "mp3 player")
_WORDS = re.compile(
    r"([a-z0-9\u00c0-\u024f.&'+-]+ )*[a-z\u00c0-\u024f&.'-]*[a-z\u00c0-\u024f]{2}[a-z\u00c0-\u024f.'-]*"
)


# "no hardhat", "without mask": what lacks it, or has it, has no name
_LACKS = re.compile(r"(no|not|non|none|without|with)( |$)")
_NUMBERED = re.compile(r"[\d.]+ ")


def _is_noun(name: str) -> bool:
    """Whether an expression can use a class name: not "3", "1 bus", "cat?", or a word in another script."""
    return _WORDS.fullmatch(name) is not None and _NUMBERED.match(name) is None


def _listed(name: str) -> Noun:
    """The noun of an entry in the table."""
    entry = _table()[name]
    form, colours = entry.get("form", "count"), entry.get("colours")
    kinds = tuple(dict.fromkeys(_closure(entry.get("kinds", ()))))
    parts = frozenset(name.split(" ")) | {
        other for kind in kinds for other in _table().get(kind, {}).get("perhaps", ())
    }
    also = (*entry.get("also", ()), *entry.get("short", ()))
    return Noun(
        name,
        entry.get("plural", name if form == "plural" else pluralise(name)),
        also,
        kinds,
        frozenset({*entry.get("perhaps", ()), *parts}) - {name, "of", *also, *kinds},
        form,
        entry.get("piece"),
        None if colours is None else frozenset(colours or ()),
        entry.get("sizes", True),
        listed=True,
    )


@cache
def _open_words(listed: bool) -> frozenset[str]:
    """Words that may fit any class that is in the table, or that is not.

    Of a class that is not in the table ("lion"), nobody knows which hypernyms fit it; of some words ("tool"), nobody
    knows what they fit.
    """
    entries = _table().items()
    if listed:
        return frozenset(name for name, entry in entries if entry.get("wide") is True)
    counts = Counter(kind for _, entry in entries for kind in set(_closure(entry.get("kinds", ()))))
    hypernyms = {kind for kind, count in counts.items() if count >= SEVERAL}
    return frozenset(hypernyms | {name for name, entry in entries if entry.get("wide")})


@lru_cache(maxsize=262144)
def word_fits(word: str, label: str) -> Answer:
    """Whether a word fits an object of a class.

    Args:
        word: a singular noun, or the plural of a class of form "plural".
        label: the class.

    Returns:
        True, False, or None if it may fit: "sneaker" for a shoe, "man" for a person, "animal" for a class that is not
        in the table.
    """
    noun = lookup(label)
    if word == "object" or word in noun.names or word in noun.kinds:
        return True
    if word in _open_words(noun.listed) or not (noun.said or noun.perhaps):
        return None
    other = lookup(word)
    forms, others = _forms(noun), _forms(other)
    related = noun.perhaps | forms
    if related & others or word in related:
        return None
    if not noun.listed and any(form.endswith(other.name) for form in forms):
        return None  # a wheelchair may be called a chair
    if not other.listed and any(form.endswith(noun.name) for form in others):
        return None
    narrower = forms & {*other.also, *other.kinds, *other.perhaps}
    return None if narrower else False


def _forms(noun: Noun) -> frozenset[str]:
    """The names of a noun in singular and plural."""
    singulars = frozenset() if noun.listed or noun.form != "plural" else _singulars(noun.name)
    return singulars | {*noun.names, noun.plural}


def usable_kinds(labels: Collection[str], at_least: int = SEVERAL) -> frozenset[str]:
    """Hypernyms of enough labelled classes to be used in expressions.

    In a data set that labels only dogs, other animals are unlabelled, so "the animal" would be ambiguous.
    """
    nouns = {lookup(label).name: lookup(label).kinds for label in labels}
    counts: dict[str, int] = {}
    for kinds in nouns.values():
        for kind in kinds:
            counts[kind] = counts.get(kind, 0) + 1
    return frozenset(kind for kind, count in counts.items() if count >= at_least)
