"""Tokenizers: that of bert-base-uncased, which comes with the package, any other by name; what they do not know."""

import copy
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files

import torch
from torch import Tensor
from transformers import AddedToken, AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from ..modeling_crossvlt import CrossVLTModel
from ..processing_crossvlt import CrossVLTProcessor, counted, word_spans


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
        unread: of how many expressions the vocabulary knows nothing.
    """

    expressions: int
    cut: int
    words: int
    unknown: int
    unknown_words: tuple[str, ...]
    unread: int = 0

    def __str__(self) -> str:
        if not self.unknown:
            share = "the vocabulary knows all words"
        else:
            examples = ", ".join(self.unknown_words)
            share = f"{100 * self.unknown / self.words:.1f} % of the words are unknown to the vocabulary ({examples})"
        unread = f"; of {self.unread:,} nothing is read" if self.unread else ""
        expressions = counted(self.expressions, "expression")
        return f"{expressions}: {share}; {self.cut:,} longer than the model reads{unread}."


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
    cut = words = unread = 0
    for (text, count), read in zip(counts.items(), processor.read_expressions(list(counts)), strict=True):
        cut += count * read.cut
        unread += count * (not read.known)
        found = [text[start:end] for start, end in word_spans(text)] or list(read.unknown_words)
        words += count * len(found)
        for word in found:
            if word in read.unknown_words:
                unknown[word.lower()] += count
    examples = tuple(word for word, _ in unknown.most_common(10))
    return ReadingSummary(counts.total(), cut, words, unknown.total(), examples, unread)


def add_words(model: CrossVLTModel, processor: CrossVLTProcessor, words: str | Iterable[str]) -> list[str]:
    """Give a checkpoint words that its vocabulary does not know, so that training can teach them.

    A new word is read as a whole, in whatever case and with whatever accents the tokenizer ignores; it is never taken
    for a part of another word, and how all other words are read stays as it was. What underscores join, such as
    "traffic_light", is one word. Its embedding starts near the mean of those that the model knows. Save model and
    processor together afterwards, and make the optimizer after it.

    Args:
        model: it is changed: its word embedding grows where it has no row left.
        processor: the model's; its tokenizer is changed.
        words: words, or texts of which the unknown words are taken; punctuation is left out.

    Returns:
        The words that were added, as the tokenizer writes them, in their order; none that it knew already.

    Raises:
        ValueError: if one of the texts is not an expression, or the tokenizer would not find a new word in it; nothing
            is changed then.
    """
    texts = [words] if isinstance(words, str) else list(words)
    tokenizer = processor.tokenizer
    known = len(tokenizer)
    reads = zip(texts, processor.read_expressions(texts), strict=True)
    unknown = {text: list(_whole_words(text, read.unknown_words)) for text, read in reads}
    vocabulary = tokenizer.get_vocab()
    parts = {
        text: [part for word in found for part in _normalised(tokenizer, word).split() if part not in vocabulary]
        for text, found in unknown.items()
    }
    words_of_all = dict.fromkeys(part for found in parts.values() for part in found)
    new = [AddedToken(part, single_word=True, normalized=True) for part in words_of_all]
    _check_that_they_are_found(tokenizer, new, parts)
    tokenizer.add_tokens(new)
    rows = len(model.get_input_embeddings().weight)
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    first = min(known, rows)
    if first < len(tokenizer):
        old = sorted(set(range(first)) - set(tokenizer.all_special_ids))
        _start_near_the_mean(model.get_input_embeddings().weight, old, range(first, len(tokenizer)))
    return [token.content for token in new]


def _joins(character: str) -> bool:
    """Whether it joins what stands beside it to one word: a letter, mark, digit, emoji, underscore or joiner."""
    category = unicodedata.category(character)
    return category[0] in "LMN" or category in ("Pc", "So", "Cf")


def _whole_words(text: str, unknown: Collection[str]) -> Iterator[str]:
    """The unknown words of a text with all that joins them to others: an added token is found between other signs."""
    whole = 0
    for start, end in word_spans(text):
        if text[start:end] not in unknown or start < whole:
            continue
        while start > 0 and _joins(text[start - 1]):
            start -= 1
        while end < len(text) and _joins(text[end]):
            end += 1
        yield text[start:end]
        whole = end


def _check_that_they_are_found(
    tokenizer: PreTrainedTokenizerBase, new: list[AddedToken], parts: dict[str, list[str]]
) -> None:
    """Raise ValueError, which names them, if there are new words that a tokenizer does not find in sentences.

    Args:
        tokenizer: it is not changed.
        new: the words.
        parts: texts, and which of the words each has.
    """
    trial = copy.deepcopy(tokenizer)
    trial.add_tokens(new)
    lost = []
    for text, words in [*parts.items(), *((f"the {token.content} on the left", [token.content]) for token in new)]:
        ids = trial(text, truncation=False, verbose=False)["input_ids"]
        lost += [word for word in words if trial.convert_tokens_to_ids(word) not in ids]
    if lost:
        raise ValueError(
            f"The tokenizer would not find {', '.join(map(repr, dict.fromkeys(lost)))} in a text even if added; write "
            "such words between spaces, or use another tokenizer."
        )


def _normalised(tokenizer: PreTrainedTokenizerBase, word: str) -> str:
    """A word without what the tokenizer ignores, case and accents; signs that it reads one by one with spaces."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.normalizer is None:
        return word.lower() if getattr(tokenizer, "do_lower_case", False) else word
    return backend.normalizer.normalize_str(word)


@torch.no_grad()
def _start_near_the_mean(weight: Tensor, known: list[int], new: range) -> None:
    """Rows of a (words, D) embedding: the mean of the known ones, a little apart from each other."""
    values = weight[known].float()
    generator = torch.Generator().manual_seed(len(known))
    noise = torch.randn(len(new), weight.shape[1], generator=generator).to(weight.device)
    weight[list(new)] = (values.mean(0) + 0.1 * values.std(0) * noise).to(weight.dtype)
