"""What is read of expressions by tokenizers of all kinds, and new words for a checkpoint."""

import copy

import pytest
import torch
from conftest import Copies, tiny_tokenizer
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, AutoProcessor, PreTrainedTokenizer, PreTrainedTokenizerFast

from crossvlt_hf import DEFAULT_CHECKPOINT, CrossVLTModel, CrossVLTProcessor, add_words
from crossvlt_hf.evaluation.run import describe_reading, tokenize
from crossvlt_hf.processing_crossvlt import NothingReadError, reading_note
from crossvlt_hf.weights.checkpoint import load_checkpoint
from crossvlt_hf.weights.vocabulary import default_tokenizer, summarize_reading


class InPython(PreTrainedTokenizer):
    """A tokenizer without positions."""

    def __init__(self, **kwargs):
        self.words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "the": 4, "cup": 5, "red": 6}
        super().__init__(pad_token="[PAD]", unk_token="[UNK]", **kwargs)

    @property
    def vocab_size(self):
        return len(self.words)

    def get_vocab(self):
        return {**self.words, **self.added_tokens_encoder}

    def _tokenize(self, text):
        return text.split()

    def _convert_token_to_id(self, token):
        return self.words.get(token, 1)

    def _convert_id_to_token(self, index):
        return next(word for word, number in self.words.items() if number == index)

    def build_inputs_with_special_tokens(self, ids, other=None):
        return [2, *ids, 3]


def with_bytes(unknown: str | None) -> PreTrainedTokenizerFast:
    """As SentencePiece's: words begin with a sign, and what is unknown becomes bytes."""
    words = ["<pad>", "<unk>", "▁the", "▁cup", "▁", "a", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token=unknown)


def without_unknown_token() -> PreTrainedTokenizerFast:
    """It leaves out what it does not know."""
    tokenizer = Tokenizer(models.BPE(vocab={"<pad>": 0, "a": 1, "c": 2, "u": 3, "p": 4}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


@pytest.fixture(scope="module")
def built_in():
    return load_checkpoint(DEFAULT_CHECKPOINT)


@pytest.mark.parametrize(
    ("text", "text_read", "unknown"),
    [
        ("the red circle", "the red circle", ()),
        ("The RED, círcle!", "The RED, círcle!", ()),
        ("the walrus", "the walrus", ("walrus",)),
        (
            "Walrus walrus; the walrus-like 🦓?",
            "Walrus walrus; the walrus-like 🦓?",
            ("Walrus", "walrus", "like", "🦓"),
        ),
        ("the wa\u0301lrus left", "the wa\u0301lrus left", ("wa\u0301lrus",)),
        ("the " * 28 + "walrus", ("the " * 22).strip(), ("walrus",)),
        ("  the, " * 14, ("  the, " * 11).strip(), ()),
    ],
)
def test_the_built_in_vocabulary(built_in, text, text_read, unknown):
    (read,) = built_in[1].read_expressions([text])
    assert read == (text_read, unknown, text_read != text, True)


def test_a_word_at_the_limit_is_read_in_part():
    processor = CrossVLTProcessor.from_tokenizer(default_tokenizer(), max_length=6)
    reads = processor.read_expressions(["the hippopotamuses", "hippopotamus", "café 🦓"])
    assert [read.cut for read in reads] == [True, False, False]
    assert "the hippopotamuses".startswith(reads[0].text_read)
    assert len("the ") < len(reads[0].text_read) < len("the hippopotamuses")
    assert [read.unknown_words for read in reads] == [(), (), ("🦓",)]


@pytest.mark.parametrize(
    ("tokenizer", "text", "expected"),
    [
        (tiny_tokenizer(), "the red cup left of the man", ("the red cup left", (), True)),
        (InPython(), "the cup", ("the cup", (), False)),
        (InPython(), "the walrus cup the cup", ("the walrus cup the", ("walrus",), True)),
        (with_bytes("<unk>"), "a é", ("a é", (), False)),
        (with_bytes("<unk>"), "a é a", ("a é", (), True)),
        (with_bytes(None), "the cup a a a a a", ("the c", (), True)),
        (without_unknown_token(), "a cup", ("a cup", (), False)),
        (without_unknown_token(), "a cxp z", ("a cxp z", ("cxp", "z"), False)),
        (InPython(truncation_side="left"), "the the red cup the cup", ("red cup the cup", (), True)),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str | tuple) else None,
)
def test_tokenizers_of_all_kinds(tokenizer, text, expected):
    processor = CrossVLTProcessor.from_tokenizer(tokenizer, max_length=6)
    before = processor(text=text)["input_ids"]
    (read,) = processor.read_expressions([text])
    assert (read.unknown_words, read.cut) == expected[1:]
    assert text.startswith(read.text_read) or read.text_read == expected[0]
    if processor.tokenizer.is_fast is False or isinstance(tokenizer, type(tiny_tokenizer())):
        assert read.text_read == expected[0]
    assert processor(text=text)["input_ids"] == before


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), InPython()], ids=["fast", "slow"])
@pytest.mark.parametrize("limit", [-1, 0, 1, 2])
def test_a_limit_without_room_for_a_word(tokenizer, limit):
    processor = CrossVLTProcessor.from_tokenizer(tokenizer, max_length=6)
    processor.tokenizer.model_max_length = limit
    for call in (processor.read_expressions, lambda texts: processor(text=texts)):
        with pytest.raises(ValueError, match=f"`max_length` must be at least 3.* got {limit}"):
            call(["the cup"])


def test_nothing_and_no_expression(processor):
    assert processor.read_expressions([]) == []
    for bad in ([""], ["the cup", " "], [7]):
        with pytest.raises(ValueError, match="expression"):
            processor.read_expressions(bad)


@pytest.mark.parametrize(
    ("text", "named", "text_read"),
    [
        ("...", "'...'", "..."),
        ("?!", "'?!'", "?!"),
        (" \u2026 ", "'\u2026'", " \u2026 "),
        ("\U0001f600", "'\U0001f600'", "\U0001f600"),
        ("xyzzy Plugh!", "'xyzzy', 'Plugh'", "xyzzy Plugh!"),
        ("xyzzy " * 8 + "cup", "'xyzzy'", ("xyzzy " * 7).strip()),
    ],
)
@pytest.mark.parametrize("tokenizer", [tiny_tokenizer, InPython])
def test_signs_of_which_nothing_is_known(tokenizer, text, named, text_read):
    processor = CrossVLTProcessor.from_tokenizer(tokenizer(), max_length=9)
    known, read = processor.read_expressions(["the red cup", text])
    assert (known.known, read.known) == (True, False)
    assert read.text_read == text_read
    assert f"does not know {named}, nor any other part of it" in reading_note(text, read)
    summary = summarize_reading(processor, [text, "the cup", text])
    assert summary.unread == 2
    assert str(summary).endswith(" too long and cut; 2 without any known word.")
    assert "all words" not in str(summary)


NOTHING = ["\u200b", "\x00\x01", "\u0301", "\ufeff\u202e", "\u00ad \u200d\n"]
DAMAGED = ["\ufffd", "\ufffd\ue000 \u200b"]  # seen in an editor, but the tokenizer leaves them out


@pytest.mark.parametrize("text", [*NOTHING, *DAMAGED])
@pytest.mark.parametrize("kind", [str, list, "pt", "np", "not padded"])
def test_expressions_of_which_nothing_is_read(processor, photo, text, kind):
    texts = text if kind is str else [text] if kind is list else ["the cup", text]
    options = {"padding": False} if kind == "not padded" else {"return_tensors": kind} if kind in ("pt", "np") else {}
    for images in (None, photo):
        with pytest.raises(ValueError, match=r"An expression must .*describes? an object"):
            processor(images, texts, **options)
    with pytest.raises(ValueError, match=r"(must describe|that describes) an object"):
        processor.read_expressions(["the cup", text])
    for truncation in ("keep_sep", "reference"):
        with pytest.raises(ValueError, match=r"(must describe|that describes) an object"):
            tokenize(processor, ["the cup", text], truncation)


def test_a_tokenizer_that_knows_nothing_of_an_expression(processor):
    """One without a token for unknown words leaves them out."""
    processor = CrossVLTProcessor.from_tokenizer(without_unknown_token(), max_length=6)
    with pytest.raises(NothingReadError, match="must describe an object, got 'xyz', which has no tokens"):
        processor(text=["a cup", "xyz"])
    assert processor(text="a xyz")["input_ids"]


def test_a_reference_of_which_nothing_is_read_is_named(processor):
    def dataset(name, *texts):
        rows = {"dataset": [name] * len(texts), "ref_id": list("abc"[: len(texts)]), "expressions": list(texts)}
        return Dataset.from_dict({**rows, "num_expressions": list(map(len, texts))})

    first, second = dataset("one", ["the cup"]), dataset("two", ["the cup"], ["the man", DAMAGED[0]])
    assert describe_reading(processor, [first]).startswith("Reading 1 expression: ")
    with pytest.raises(NothingReadError, match=r"An expression of the reference two b must describe an object"):
        describe_reading(processor, [first, second])


def test_summary(processor):
    summary = summarize_reading(processor, ["the walrus", "The Walrus!", "the cup", "the cup", "the cup " * 9])
    assert (summary.expressions, summary.cut) == (5, 1)
    assert (summary.words, summary.unknown) == (26, 2)
    assert summary.unknown_words == ("walrus",)
    assert str(summary) == (
        "5 expressions: 7.7 % of the words are not in the vocabulary (walrus); 1 too long and cut."
    )
    assert "all words are in the vocabulary" in str(summarize_reading(processor, iter(["the cup"])))
    assert summarize_reading(processor, []).words == 0


# New words


PLAIN = ["the red triangle in the corner", "the left thing, on top of all that", "not the biggest; at the bottom"]


@pytest.fixture(scope="module")
def copies(built_in):
    return Copies(built_in)


@pytest.fixture
def growing(copies):
    return copies.make()


def test_new_words_are_read_as_wholes_and_break_no_others(growing):
    model, processor = growing
    before = processor(text=PLAIN)["input_ids"]
    processor.score_calibration = [[0.0, 0.0], [1.0, 0.5]]
    assert add_words(model, processor, "the red") == []
    assert processor.score_calibration is not None
    added = add_words(model, processor, ["the Walrus, left of a WALRUS!", "Café", "e", "i", "inside", "he", "red"])
    assert added == ["walrus", "cafe", "e", "i", "inside", "he"]
    assert processor.score_calibration is None  # of the weights before the training that follows
    assert processor(text=PLAIN)["input_ids"] == before
    tokens = processor.tokenizer.tokenize("Walrus,café (INSIDE) e triangle walruss red-walrus the")
    assert tokens[:2] == ["walrus", "[UNK]"]
    assert [token for token in tokens if token != "[UNK]"] == [
        *("walrus", "cafe", "inside", "e", "triangle", "red", "-", "walrus", "the"),
    ]


def test_words_are_added_once(growing):
    model, processor = growing
    assert add_words(model, processor, "the walrus's café") == ["walrus", "s", "cafe"]
    rows = model.get_input_embeddings().weight.clone()
    for again in ("a WALRUS", ["walrus", "Cafe\u0301"], "...!", ["the red circle"], []):
        assert add_words(model, processor, again) == []
    assert torch.equal(model.get_input_embeddings().weight, rows)
    for bad in ("", ["walrus", " "], [7]):
        with pytest.raises(ValueError, match="expression"):
            add_words(model, processor, bad)


def test_signs_that_are_read_one_by_one(growing):
    model, processor = growing
    assert add_words(model, processor, ["红色的杯子 🦓"]) == ["红", "色", "的", "杯", "子", "🦓"]
    assert processor.read_expressions(["红杯子 🦓"])[0].unknown_words == ()


JOINED = {
    "lamp_post": ["lamp_post"],
    "bus_2": ["bus_2"],
    "3d": ["3d"],
    "bus2": ["bus2"],
    "__init__": ["__init__"],
    "cup_of_Zz9": ["cup_of_zz9"],
    "Caf\u00e9_1": ["cafe_1"],
    "cafe\u0301_zz": ["cafe_zz"],
    "m\u00b2": ["m\u00b2"],
    "zq\u203fzq": ["zq\u203fzq"],
    "_\u00adzq": ["_zq"],
    "zq-3d": ["zq", "3d"],
    "\U0001f993_2": ["\U0001f993_2"],
    "walrus": ["walrus"],
}


@pytest.mark.parametrize("word", JOINED)
def test_words_with_underscores_and_digits_are_found_as_they_are_written(growing, word):
    model, processor = growing
    others = [*PLAIN, "the bus 2 of 3", "a lamp, a post", "a cup of zz", "bus_23", "the_bus", "x3d"]
    before = processor(text=others)["input_ids"]
    assert add_words(model, processor, [f"the {word} on the left"]) == JOINED[word]
    ids = set(processor.tokenizer.convert_tokens_to_ids(JOINED[word]))
    for text in (word, f"the {word} on the left", f"the {word}", f"({word})", f"left: {word}, right", word.upper()):
        assert processor.read_expressions([text])[0].unknown_words == ()
        assert ids <= set(processor.tokenizer(text)["input_ids"])
    assert processor(text=others)["input_ids"] == before
    assert add_words(model, processor, word) == []


def test_words_that_would_not_be_found_are_refused(model):
    """A tokenizer that splits at spaces alone finds no word in parentheses."""
    processor = CrossVLTProcessor.from_tokenizer(InPython(), max_length=9)
    rows, tokens = len(model.get_input_embeddings().weight), len(processor.tokenizer)
    with pytest.raises(ValueError, match=r"would not find 'lynx' in a text"):
        add_words(model, processor, ["a walrus", "the (lynx) there"])
    assert (len(model.get_input_embeddings().weight), len(processor.tokenizer)) == (rows, tokens)
    assert add_words(model, processor, "a walrus") == ["a", "walrus"]


def test_new_embeddings(growing, photo):
    model, processor = growing
    known = model.get_input_embeddings().weight.detach().clone()
    inputs = processor(photo, PLAIN, return_tensors="pt")
    with torch.no_grad():
        before = model(**inputs).logits
        added = add_words(model, processor, "a walrus beside a lynx")
        assert torch.equal(model(**inputs).logits, before)
    weight = model.get_input_embeddings().weight
    assert len(weight) == len(known) + len(added) == len(processor.tokenizer)
    assert model.config.text_config.vocab_size == len(weight)
    assert torch.equal(weight[: len(known)], known)
    assert weight.requires_grad
    new, typical = weight[len(known) :].detach(), known[5:]
    assert (new[0] != new[1]).any()
    assert (new - typical.mean(0)).norm(dim=1).max() < 0.5 * (typical - typical.mean(0)).norm(dim=1).mean()


def test_free_rows_are_used_first_and_the_embedding_never_shrinks(model, processor):
    """The tiny model has 64 rows, and its tokenizer 20 tokens."""
    added = add_words(model, processor, "walrus lynx")
    assert len(model.get_input_embeddings().weight) == 64
    ids = processor.tokenizer.convert_tokens_to_ids(added)
    assert ids == [20, 21]
    many = [f"w{index}x" for index in range(60)]
    assert add_words(model, processor, many) == many
    assert len(model.get_input_embeddings().weight) == len(processor.tokenizer) == 82
    other = CrossVLTModel(type(model.config)(**{**model.config.to_dict(), "text_config": {"vocab_size": 64}}))
    assert add_words(other, processor, many) == []  # the tokenizer has them, this model not yet
    assert len(other.get_input_embeddings().weight) == 82


def test_grown_checkpoints_are_saved_and_loaded(growing, photo, tmp_path):
    model, processor = growing
    text = "the walrus, left of the café"
    add_words(model, processor, text)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for loaded, own in (
        load_checkpoint(tmp_path),
        (AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)),
    ):
        inputs = own(photo, text, return_tensors="pt")
        assert inputs["input_ids"].tolist() == processor(photo, text, return_tensors="pt")["input_ids"].tolist()
        with torch.no_grad():
            assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
        assert add_words(loaded, own, text) == []
        assert add_words(loaded, own, "a lynx") == ["lynx"]


def test_other_tokenizers_take_words(model):
    for tokenizer in (InPython(), without_unknown_token()):
        processor = CrossVLTProcessor.from_tokenizer(tokenizer, max_length=9)
        grown = copy.deepcopy(model)
        add_words(grown, processor, "a walrus")
        assert processor.read_expressions(["a walrus"])[0].unknown_words == ()
        assert add_words(grown, processor, "a walrus") == []
