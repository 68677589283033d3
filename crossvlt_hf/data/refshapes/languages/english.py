"""English: adjectives before the noun, places behind it.

The meanings have English keys, which are the usual words.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...phrases import Phrase
from .grammar import ONE, Determiner, Language


@dataclass(frozen=True)
class English:
    """The grammar, with the words that have synonyms.

    Args:
        thing: the word for an object of any shape.
        that_is_not: begins a negation.
        words: for the keys of relations and superlatives that are not used as they are.
    """

    thing: str = "object"
    that_is_not: str = "that is not"
    words: Mapping[str, str] = field(default_factory=dict)

    def attribute(self, determiner: Determiner, noun: Phrase) -> str:
        if determiner == ONE:
            return f"the {self._name(noun)}"
        return f"{determiner} {self._plural(noun)}"

    def absolute(self, determiner: Determiner, noun: Phrase, region: str) -> str:
        return f"{self.attribute(determiner, noun)} {region}"

    def relation(self, determiner: Determiner, noun: Phrase, relation: str, anchor: Phrase) -> str:
        return f"{self.attribute(determiner, noun)} {self._word(relation)} the {self._name(anchor)}"

    def ordinal(self, noun: Phrase, ordinal: str, side: str) -> str:
        return f"the {ordinal} {self._name(noun)} from the {side}"

    def superlative(self, noun: Phrase, degree: str) -> str:
        return f"the {self._word(degree)} {self._name(noun)}"

    def not_coloured(self, noun: Phrase, colour: str) -> str:
        return f"the {self._name(noun)} {self.that_is_not} {colour}"

    def not_shaped(self, noun: Phrase, shape: str) -> str:
        return f"the {self._name(noun)} {self.that_is_not} a {shape}"

    def two_hop(self, noun: Phrase, first: str, middle: Phrase, second: str, anchor: Phrase) -> str:
        return f"the {self._name(noun)} {self._word(first)} {self.relation(ONE, middle, second, anchor)}"

    def _word(self, key: str) -> str:
        return self.words.get(key, key)

    def _name(self, noun: Phrase) -> str:
        return str(noun._replace(word=self._shape(noun)))

    def _plural(self, noun: Phrase) -> str:
        shape = self._shape(noun)
        return str(noun._replace(word=f"{shape}es" if shape == "cross" else f"{shape}s"))

    def _shape(self, noun: Phrase) -> str:
        return self.thing if noun.word == "object" else noun.word


ENGLISH = Language(
    usual=English(),
    synonyms=English(
        thing="thing",
        that_is_not="which is anything but",
        words={
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
        },
    ),
)
