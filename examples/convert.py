"""Convert a checkpoint of the authors' code, and look at what is in it.

python examples/convert.py original.pth my-crossvlt
"""

import argparse

from crossvlt_hf import convert_checkpoint
from crossvlt_hf.weights.checkpoint import load_checkpoint


def main() -> None:
    """Convert, then load what was written as anybody would."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("original", help="file of the authors' code; nothing in it is run")
    parser.add_argument("output", help="new folder")
    arguments = parser.parse_args()
    config = convert_checkpoint(arguments.original, arguments.output)
    model, processor = load_checkpoint(arguments.output)
    print(f"Swin of width {config.vision_config.embed_dim}, BERT of width {config.text_config.hidden_size}")
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    print(processor.tokenizer.tokenize("the man in red left of the bus"))


if __name__ == "__main__":
    main()
