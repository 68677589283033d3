"""Tokenizers: that of bert-base-uncased, whose vocabulary comes with the package, and any other by name."""

from importlib.resources import files

from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase


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
