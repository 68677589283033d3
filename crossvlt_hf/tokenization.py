"""Tokenizers: that of bert-base-uncased, which comes with the package, any other by name; what they do not know."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files

from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from .processing_crossvlt import CrossVLTProcessor, word_spans


def default_tokenizer() -> BertTokenizer:
    """The tokenizer of bert-base-uncased, with which the paper's models were trained; needs no network."""
    vocabulary = files("crossvlt_hf") / "assets" / "bert-base-uncased-vocab.txt"
    words = vocabulary.read_text(encoding="utf-8").splitlines()
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)}, do_lower_case=True)


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from the Hub or a folder.

    Raises:
        OSError: if there is none under that name.
    """
    try:
        return AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise OSError(
            f"No tokenizer can be loaded from {name_or_path!r}; give a Hub id or a folder with tokenizer.json."
        ) from error


@dataclass(frozen=True)
class ReadingSummary:
    """What a model reads of many expressions.

    Args:
        expressions: how many there are.
        cut: how many are longer than the limit of tokens.
        words: how many words they have.
        unknown: how many of these the vocabulary does not know.
        unknown_words: the most frequent of these, at most 10, each once.
    """

    expressions: int
    cut: int
    words: int
    unknown: int
    unknown_words: tuple[str, ...]

    def __str__(self) -> str:
        if not self.unknown:
            share = "the vocabulary knows all words"
        else:
            examples = ", ".join(self.unknown_words)
            share = f"{100 * self.unknown / self.words:.1f} % of the words are unknown to the vocabulary ({examples})"
        return f"{self.expressions:,} expressions: {share}; {self.cut:,} longer than the model reads."


def summarize_reading(processor: CrossVLTProcessor, texts: Iterable[str]) -> ReadingSummary:
    """Count the words that the vocabulary does not know and the expressions that are cut.

    Args:
        processor: the model's.
        texts: the expressions, repeated ones counted as often as they occur.

    Raises:
        ValueError: if one of them is not an expression.
    """
    counts = Counter(texts)
    unknown: Counter[str] = Counter()
    cut = words = 0
    for (text, count), read in zip(counts.items(), processor.read_expressions(list(counts)), strict=True):
        cut += count * read.cut
        found = [text[start:end] for start, end in word_spans(text)]
        words += count * len(found)
        for word in found:
            if word in read.unknown_words:
                unknown[word.lower()] += count
    examples = tuple(word for word, _ in unknown.most_common(10))
    return ReadingSummary(counts.total(), cut, words, unknown.total(), examples)
