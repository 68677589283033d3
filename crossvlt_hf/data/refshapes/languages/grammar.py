"""What a grammar says: one method for each kind of expression."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from ...phrases import Phrase


Determiner = Literal["one", "all", "the", "both"]  # "one" for a single object, the others for several
ONE: Determiner = "one"


class Grammar(Protocol):
    """Puts meanings into words. Arguments are keys of the tables in `crossvlt_hf.data.refshapes.expressions`.

    Different meanings must have different texts, and each text only one reading.
    """

    def attribute(self, determiner: Determiner, noun: Phrase) -> str:
        """`the red circle`, `all red circles`."""

    def absolute(self, determiner: Determiner, noun: Phrase, region: str) -> str:
        """`the circle in the top left corner`, `both circles on the left`."""

    def relation(self, determiner: Determiner, noun: Phrase, relation: str, anchor: Phrase) -> str:
        """`the circle left of the red square`, `the circles left of the red square`."""

    def ordinal(self, noun: Phrase, ordinal: str, side: str) -> str:
        """`the second circle from the left`."""

    def superlative(self, noun: Phrase, degree: str) -> str:
        """`the largest circle`, `the leftmost circle`."""

    def not_coloured(self, noun: Phrase, colour: str) -> str:
        """`the circle that is not red`."""

    def not_shaped(self, noun: Phrase, shape: str) -> str:
        """`the red object that is not a circle`."""

    def two_hop(self, noun: Phrase, first: str, middle: Phrase, second: str, anchor: Phrase) -> str:
        """`the circle left of the square above the red star`, where the square is above the star."""


@dataclass(frozen=True)
class Language:
    """A language of expressions.

    Args:
        usual: its grammar.
        synonyms: the same with words that only the split "paraphrases" uses.
    """

    usual: Grammar
    synonyms: Grammar

    def grammar(self, synonyms: bool) -> Grammar:
        """The grammar with usual words, or with synonyms."""
        return self.synonyms if synonyms else self.usual


def join(words: Iterable[str | None]) -> str:
    """Join words by spaces, without those that are None or empty."""
    return " ".join(word for word in words if word)
