"""The words of the languages of RefShapes."""

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain

from ...system import check_known
from .expressions import (
    DETERMINERS,
    DIRECTIONS,
    RANKS,
    REGIONS,
    RELATIONS,
    SUPERLATIVES,
    Absolute,
    Attribute,
    Negation,
    Ordinal,
    Phrase,
    Plural,
    Query,
    Relation,
    Superlative,
    TwoHop,
)
from .languages import LANGUAGES
from .scenes import COLOURS, SHAPES, TEXTURES


_WORD = re.compile(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+|[^\w\s]")


def split_words(text: str) -> list[str]:
    """Words in lower case, with Chinese characters and punctuation alone: as a tokenizer of BERT splits a text."""
    return _WORD.findall(text.lower())


@lru_cache
def _words(language: str) -> tuple[str, ...]:
    grammars = (LANGUAGES[language].usual, LANGUAGES[language].synonyms)
    texts = (query.say(grammar) for grammar in grammars for query in _queries_of_all_words())
    return tuple(sorted({word for text in texts for word in split_words(text)}))


def vocabulary(language: str = "en") -> list[str]:
    """All words that expressions of any split use in a language, sorted: see `split_words`.

    Raises:
        ValueError: if there is no such language.
    """
    check_known("language", language, LANGUAGES)
    return list(_words(language))


def _queries_of_all_words() -> Iterator[Query]:
    """Queries with every word in all its forms, of every noun with every adjective.

    The texture "plain" is among them, though expressions never name it, since saved models have an id for its word.
    """
    nouns = [Phrase(shape) for shape in (*SHAPES, "object")]
    coloured = [noun._replace(colour=colour) for noun in nouns for colour in COLOURS]
    textured = [noun._replace(adjective=texture) for noun in nouns for texture in TEXTURES]
    return chain.from_iterable(_queries_of(noun) for noun in (*nouns, *coloured, *textured))


def _queries_of(noun: Phrase) -> Iterator[Query]:
    """A query of every kind, with a noun wherever one can be."""
    yield Attribute(noun)
    yield from (Plural(determiner, Attribute(noun)) for determiner in DETERMINERS)
    yield from (Absolute(noun, region) for region in REGIONS)
    yield from (Relation(noun, relation, noun) for relation in RELATIONS if noun.word != "object")
    yield from (TwoHop(noun, relation, noun, relation, noun) for relation in RELATIONS if noun.word != "object")
    yield from (Ordinal(noun, ordinal, side) for ordinal in RANKS for side in DIRECTIONS)
    yield from (Superlative(noun, degree) for degree in SUPERLATIVES)
    yield from (Negation(noun, Phrase(colour=colour)) for colour in COLOURS)
    yield from (Negation(noun, Phrase(shape)) for shape in SHAPES)
