"""Write a small CrossVLT checkpoint with random weights, to try the machinery where no trained weights are at hand.

    python examples/make_random_checkpoint.py OUT_DIR

Its masks mean nothing.
"""

import sys

import torch

from crossvlt_hf import CrossVLTConfig, CrossVLTModel, CrossVLTProcessor
from crossvlt_hf.tokenization import default_tokenizer


def main(output_dir: str) -> None:
    """Write config, weights and processor of a model with 19 million parameters."""
    torch.manual_seed(0)
    config = CrossVLTConfig(
        vision_config={"embed_dim": 32, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8], "window_size": 12},
        text_config={"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 512},
    )
    CrossVLTModel(config).save_pretrained(output_dir)
    CrossVLTProcessor.from_tokenizer(default_tokenizer()).save_pretrained(output_dir)
    print(f"{output_dir} holds a small checkpoint with RANDOM weights: its masks mean nothing.")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
