"""The languages of RefShapes: a grammar for each, which puts the same meanings into words."""

from .chinese import CHINESE
from .english import ENGLISH
from .german import GERMAN
from .grammar import Language


LANGUAGES: dict[str, Language] = {"en": ENGLISH, "de": GERMAN, "zh": CHINESE}
