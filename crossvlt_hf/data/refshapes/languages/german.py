"""German: gender, case and number of articles, adjectives and nouns.

The grammar is standard German as in the Duden:

- Adjectives have weak endings, since an article, "alle" or "beide" always precedes them ("der rote Kreis", "alle roten
  Kreise"); "lila" has none. The pattern comes before the colour ("der gestreifte rote Kreis").
- Relations take the dative, with "von dem" contracted to "vom" ("links vom roten Kreis"); their synonyms take the
  genitive ("oberhalb des roten Kreises").
- Positions at an end follow the noun ("der Kreis ganz links"), superlatives of size precede it ("der größte Kreis").
- Negations are relative clauses ("der Kreis, der nicht rot ist").
- In a chain of two relations the second is a relative clause of "derjenige": in "der Kreis links von demjenigen
  Quadrat, das über dem Stern liegt" only the square can be above the star; in "der Kreis links vom Quadrat über dem
  Stern" the circle might be.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ...phrases import Phrase
from .grammar import ONE, Determiner, Language, join


Gender = Literal["masculine", "feminine", "neuter"]
Case = Literal["nominative", "genitive", "dative"]


class Noun(NamedTuple):
    """The forms of a noun that expressions use; the dative singular is that of the nominative."""

    gender: Gender
    singular: str
    genitive: str
    plural: str


NOUNS = {
    "circle": Noun("masculine", "Kreis", "Kreises", "Kreise"),
    "square": Noun("neuter", "Quadrat", "Quadrats", "Quadrate"),
    "triangle": Noun("neuter", "Dreieck", "Dreiecks", "Dreiecke"),
    "star": Noun("masculine", "Stern", "Sterns", "Sterne"),
    "cross": Noun("neuter", "Kreuz", "Kreuzes", "Kreuze"),
    "diamond": Noun("feminine", "Raute", "Raute", "Rauten"),
}
COLOURS = {
    "red": "rot",
    "green": "grün",
    "blue": "blau",
    "yellow": "gelb",
    "purple": "lila",
    "orange": "orangefarben",
    "white": "weiß",
    "black": "schwarz",
}
TEXTURES = {"plain": "einfarbig", "striped": "gestreift", "dotted": "gepunktet"}
WITHOUT_ENDING = ("lila",)
ARTICLES: dict[Case, dict[Gender, str]] = {
    "nominative": {"masculine": "der", "feminine": "die", "neuter": "das"},
    "genitive": {"masculine": "des", "feminine": "der", "neuter": "des"},
    "dative": {"masculine": "dem", "feminine": "der", "neuter": "dem"},
}
DETERMINERS = {"all": "alle", "the": "die", "both": "beide"}
ORDINALS = {"second": "zweit", "third": "dritt"}
SIDES = {"left": "links", "right": "rechts", "top": "oben", "bottom": "unten"}
REGIONS = {
    "on the left": "auf der linken Seite",
    "on the right": "auf der rechten Seite",
    "at the top": "in der oberen Hälfte",
    "at the bottom": "in der unteren Hälfte",
    "in the top left corner": "in der oberen linken Ecke",
    "in the top right corner": "in der oberen rechten Ecke",
    "in the bottom left corner": "in der unteren linken Ecke",
    "in the bottom right corner": "in der unteren rechten Ecke",
}


class Preposition(NamedTuple):
    """A preposition, or several words that act as one, and the case that it takes."""

    words: str
    case: Case


@dataclass(frozen=True)
class German:
    """The grammar, with the words that have synonyms.

    Args:
        thing: the noun for an object of any shape.
        relations: a preposition for each relation.
        adjectives: for superlatives before the noun, without endings.
        places: for superlatives behind the noun.
        not_red: before a colour that is denied.
        not_a: before a noun that is denied, without ending.
    """

    thing: Noun
    relations: Mapping[str, Preposition]
    adjectives: Mapping[str, str]
    places: Mapping[str, str]
    not_red: str
    not_a: str

    def attribute(self, determiner: Determiner, noun: Phrase) -> str:
        """`der rote Kreis`, `alle roten Kreise`."""
        if determiner == ONE:
            return self._the(noun)
        return join([DETERMINERS[determiner], *_adjectives(noun, "en"), self._noun(noun).plural])

    def absolute(self, determiner: Determiner, noun: Phrase, region: str) -> str:
        """`der rote Kreis auf der linken Seite`, `die Kreise in der oberen linken Ecke`."""
        return f"{self.attribute(determiner, noun)} {REGIONS[region]}"

    def relation(self, determiner: Determiner, noun: Phrase, relation: str, anchor: Phrase) -> str:
        """`der Kreis links vom roten Quadrat`, `beide Kreise über der Raute`."""
        return f"{self.attribute(determiner, noun)} {self._place(relation, anchor)}"

    def ordinal(self, noun: Phrase, ordinal: str, side: str) -> str:
        """`der zweite rote Kreis von links`."""
        return f"{self._the(noun, ORDINALS[ordinal])} von {SIDES[side]}"

    def superlative(self, noun: Phrase, degree: str) -> str:
        """`der größte rote Kreis`, `der rote Kreis ganz links`."""
        return join([self._the(noun, self.adjectives.get(degree)), self.places.get(degree)])

    def not_coloured(self, noun: Phrase, colour: str) -> str:
        """`der Kreis, der nicht rot ist`."""
        return f"{self._the(noun)}, {self._article(noun)} {self.not_red} {COLOURS[colour]} ist"

    def not_shaped(self, noun: Phrase, shape: str) -> str:
        """`das rote Objekt, das keine Raute ist`."""
        denied = NOUNS[shape]
        ending = "e" if denied.gender == "feminine" else ""
        return f"{self._the(noun)}, {self._article(noun)} {self.not_a}{ending} {denied.singular} ist"

    def two_hop(self, noun: Phrase, first: str, middle: Phrase, second: str, anchor: Phrase) -> str:
        """`der Kreis links von demjenigen Quadrat, das über dem roten Stern liegt`."""
        words, case = self.relations[first]
        that = f"{self._article(middle, case)}jenigen {self._behind_article(middle, case)}"
        return f"{self._the(noun)} {words} {that}, {self._article(middle)} {self._place(second, anchor)} liegt"

    def _noun(self, phrase: Phrase) -> Noun:
        return self.thing if phrase.word == "object" else NOUNS[phrase.word]

    def _article(self, phrase: Phrase, case: Case = "nominative") -> str:
        """The definite article of a noun; in the nominative also its relative pronoun."""
        return ARTICLES[case][self._noun(phrase).gender]

    def _the(self, phrase: Phrase, stem: str | None = None) -> str:
        """`der zweite rote Kreis`: a noun in the nominative, with another adjective before its own."""
        return f"{self._article(phrase)} {self._behind_article(phrase, 'nominative', stem)}"

    def _behind_article(self, phrase: Phrase, case: Case, stem: str | None = None) -> str:
        """Adjectives and noun in the singular, behind a definite article."""
        noun, ending = self._noun(phrase), "e" if case == "nominative" else "en"
        first = None if stem is None else f"{stem}{ending}"
        return join([first, *_adjectives(phrase, ending), noun.genitive if case == "genitive" else noun.singular])

    def _place(self, relation: str, anchor: Phrase) -> str:
        """`links vom roten Kreis`."""
        words, case = self.relations[relation]
        place = f"{words} {self._article(anchor, case)} {self._behind_article(anchor, case)}"
        return place.replace("von dem ", "vom ")


def _adjectives(phrase: Phrase, ending: str) -> list[str]:
    """`gestreifte rote`."""
    stems = [TEXTURES.get(phrase.adjective or ""), COLOURS.get(phrase.colour or "")]
    return [stem if stem in WITHOUT_ENDING else f"{stem}{ending}" for stem in stems if stem]


GERMAN = Language(
    usual=German(
        thing=Noun("neuter", "Objekt", "Objekts", "Objekte"),
        relations={
            "left of": Preposition("links von", "dative"),
            "right of": Preposition("rechts von", "dative"),
            "above": Preposition("über", "dative"),
            "below": Preposition("unter", "dative"),
        },
        adjectives={"largest": "größt", "smallest": "kleinst"},
        places={
            "leftmost": "ganz links",
            "rightmost": "ganz rechts",
            "highest": "ganz oben",
            "lowest": "ganz unten",
        },
        not_red="nicht",
        not_a="kein",
    ),
    synonyms=German(
        thing=Noun("feminine", "Figur", "Figur", "Figuren"),
        relations={
            "left of": Preposition("zur Linken", "genitive"),
            "right of": Preposition("zur Rechten", "genitive"),
            "above": Preposition("oberhalb", "genitive"),
            "below": Preposition("unterhalb", "genitive"),
        },
        adjectives={"largest": "riesigst", "smallest": "winzigst"},
        places={
            "leftmost": "am weitesten links",
            "rightmost": "am weitesten rechts",
            "highest": "am weitesten oben",
            "lowest": "am weitesten unten",
        },
        not_red="alles andere als",
        not_a="alles andere als ein",
    ),
)
