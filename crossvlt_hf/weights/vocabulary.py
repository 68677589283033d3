"""Load tokenizers, count words that are unknown to them, and add words."""

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
    """The tokenizer of bert-base-uncased, as for the models of the paper; needs no network."""
    vocabulary = files("crossvlt_hf") / "assets" / "bert-base-uncased-vocab.txt"
    words = vocabulary.read_text(encoding="utf-8").splitlines()
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)}, do_lower_case=True)


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from the Hub or a folder.

    Raises:
        OSError: if there is no such tokenizer.
    """
    try:
        return AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise OSError(
            f"No tokenizer can be loaded from {name_or_path!r}; it must be a Hub id or a folder with tokenizer.json."
        ) from error


@dataclass(frozen=True)
class ReadingSummary:
    """Unknown words and cut expressions of a data set.

    Args:
        expressions: number of expressions.
        cut: number of expressions with too many tokens, which are cut.
        words: number of words.
        unknown: number of words that are not in the vocabulary.
        unknown_words: the most frequent unknown words, at most 10.
        unread: number of expressions without any known token.
    """

    expressions: int
    cut: int
    words: int
    unknown: int
    unknown_words: tuple[str, ...]
    unread: int = 0

    def __str__(self) -> str:
        if not self.unknown:
            share = "all words are in the vocabulary"
        else:
            examples = ", ".join(self.unknown_words)
            share = f"{100 * self.unknown / self.words:.1f} % of the words are not in the vocabulary ({examples})"
        unread = f"; {self.unread:,} without any known word" if self.unread else ""
        expressions = counted(self.expressions, "expression")
        return f"{expressions}: {share}; {self.cut:,} too long and cut{unread}."


def summarize_reading(processor: CrossVLTProcessor, texts: Iterable[str]) -> ReadingSummary:
    """Count unknown words and cut expressions.

    Args:
        processor: of the model.
        texts: expressions; duplicates are counted.

    Raises:
        ValueError: if an expression is invalid.
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
    """Add words to the vocabulary of a checkpoint, to learn them in training.

    A new word is one token, in any case and with any accents that the tokenizer ignores. It does not match parts of
    other words, and the tokens of other words stay the same. Underscores join words: "traffic_light" is one word. New
    embeddings start near the mean of the known ones. The calibration of the score is removed, since it is of the
    weights before training. Make the optimizer afterwards, and save model and processor together.

    Args:
        model: it is changed: its word embedding grows if it has too few rows.
        processor: of the model; its tokenizer is changed.
        words: words or texts; their unknown words are added, without punctuation.

    Returns:
        The added words, as the tokenizer writes them, in order.

    Raises:
        ValueError: if a text is not a valid expression, or the tokenizer would not find a new word in it; then nothing
            is changed.
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
    if new:
        processor.score_calibration = None
    rows = len(model.get_input_embeddings().weight)
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    first = min(known, rows)
    if first < len(tokenizer):
        old = sorted(set(range(first)) - set(tokenizer.all_special_ids))
        _start_near_the_mean(model.get_input_embeddings().weight, old, range(first, len(tokenizer)))
    return [token.content for token in new]


def _joins(character: str) -> bool:
    """Whether a character joins its neighbours to one word: a letter, mark, digit, emoji, underscore or joiner."""
    category = unicodedata.category(character)
    return category[0] in "LMN" or category in ("Pc", "So", "Cf")


def _whole_words(text: str, unknown: Collection[str]) -> Iterator[str]:
    """The unknown words of a text, with all characters joined to them, since added tokens only match whole words."""
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
    """Raise ValueError if a tokenizer would not find new words in texts.

    Args:
        tokenizer: it is not changed.
        new: the words.
        parts: the words of each text.
    """
    trial = copy.deepcopy(tokenizer)
    trial.add_tokens(new)
    lost = []
    for text, words in [*parts.items(), *((f"the {token.content} on the left", [token.content]) for token in new)]:
        ids = trial(text, truncation=False, verbose=False)["input_ids"]
        lost += [word for word in words if trial.convert_tokens_to_ids(word) not in ids]
    if lost:
        raise ValueError(
            f"The tokenizer would not find {', '.join(map(repr, dict.fromkeys(lost)))} in a text; write such words "
            "between spaces, or use another tokenizer."
        )


def _normalised(tokenizer: PreTrainedTokenizerBase, word: str) -> str:
    """Normalise a word like the tokenizer: case, accents, and spaces between characters that are tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.normalizer is None:
        return word.lower() if getattr(tokenizer, "do_lower_case", False) else word
    return backend.normalizer.normalize_str(word)


@torch.no_grad()
def _start_near_the_mean(weight: Tensor, known: list[int], new: range) -> None:
    """Fill new rows of a (words, D) embedding with the mean of the known rows and a little noise."""
    values = weight[known].float()
    generator = torch.Generator().manual_seed(len(known))
    noise = torch.randn(len(new), weight.shape[1], generator=generator).to(weight.device)
    weight[list(new)] = (values.mean(0) + 0.1 * values.std(0) * noise).to(weight.dtype)
