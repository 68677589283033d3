"""The network and its vocabulary."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from transformers import BertTokenizer

from crossvlt_hf import CrossVLTConfig, CrossVLTModel, CrossVLTProcessor
from crossvlt_hf.data.objects import engine as rules
from crossvlt_hf.data.objects.words import lookup
from crossvlt_hf.data.refshapes import vocabulary


SIDE = 224  # pixels of the square image that is read
MAX_LENGTH = 24  # tokens
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
OTHER_WORDS = "big small large little that is are not a an all both every the from of object objects"
CONFIG = {
    "vision_config": {
        "image_size": SIDE,
        "embed_dim": 64,
        "depths": (2, 2, 6, 1),
        "num_heads": (2, 4, 8, 16),
        "window_size": 7,
        "drop_path_rate": 0.15,
    },
    "fusion_head_dim": 32,
    "alignment_dim": 128,
    "alignment_temperature": 0.07,
    "decoder_hidden_size": 96,
    "dice_loss_weight": 0.5,
    "presence_head": True,
}
TEXT_CONFIG = {
    "hidden_size": 192,
    "depths": (2, 1, 1, 1),
    "num_attention_heads": 4,
    "intermediate_size": 768,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.05,
    "attention_probs_dropout_prob": 0.0,
}


def words_of(classes: Iterable[str]) -> list[str]:
    """Every word that the rules may say of objects of these classes and of RefShapes, sorted."""
    said = [*rules.SUPERLATIVES, *rules.COMPARATIVES, *rules.RELATIONS, *rules.REGIONS, *rules.ORDINALS]
    said += [*rules.NUMBERS, *rules.COLOURS, OTHER_WORDS, *vocabulary()]
    said += [name for label in classes for name in _names(label)]
    return sorted({word for text in said for word in re.findall(r"\w+|[^\w\s]", text.lower())})


def _names(label: str) -> Iterator[str]:
    noun = lookup(label)
    pieces = [noun.piece] if noun.piece else []
    yield from (noun.name, *noun.also, *noun.kinds, noun.plural, *pieces)
    counted = [] if noun.form == "plural" else noun.also
    yield from (rules.pluralise(name) for name in (*counted, *noun.kinds, *pieces))


def build(words: str | Path) -> tuple[CrossVLTModel, CrossVLTProcessor]:
    """The untrained network with the word embeddings that `words.py` wrote, and its processor."""
    saved = torch.load(words, weights_only=True)
    tokens = [*SPECIAL, *saved["words"]]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(tokens)}, do_lower_case=True)
    processor = CrossVLTProcessor.from_tokenizer(tokenizer, image_size=SIDE, max_length=MAX_LENGTH)
    text_config = {**TEXT_CONFIG, "vocab_size": len(tokens)}
    model = CrossVLTModel(CrossVLTConfig(**CONFIG, text_config=text_config))
    with torch.no_grad():
        model.text_model.embeddings.word_embeddings.weight[len(SPECIAL) :] = saved["embeddings"]
    return model, processor
