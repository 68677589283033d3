"""`crossvlt convert`: a checkpoint of the authors' code to one of ours."""

import argparse
import json
from typing import Any

from ..conversion.original import convert_checkpoint
from ..training.settings import integer


def convert(arguments: argparse.Namespace) -> None:
    """Convert an authors' checkpoint; print one JSON line."""
    names = ("num_attention_heads", "fusion_head_dim")
    overrides = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    config = convert_checkpoint(arguments.original, arguments.output_dir, tokenizer=arguments.tokenizer, **overrides)
    vision, text = config.vision_config, config.text_config
    summary = {
        "output": arguments.output_dir,
        "vision": {name: getattr(vision, name) for name in ("embed_dim", "depths", "num_heads", "window_size")},
        "text": {name: getattr(text, name) for name in ("hidden_size", "depths", "num_attention_heads", "vocab_size")},
    }
    print(json.dumps(summary))


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("convert", help="convert a checkpoint of the authors' code")
    command.add_argument("original", metavar="ORIGINAL.pth")
    command.add_argument("output_dir", metavar="OUT_DIR")
    command.add_argument("--tokenizer", help="Hub id or folder (default: bert-base-uncased's, which is built in)")
    command.add_argument(
        "--num-attention-heads", type=integer, help="of the language encoder (default: 64 wide each, 12 in the paper)"
    )
    command.add_argument("--fusion-head-dim", type=integer, help="width of a fusion head (default: 64)")
    command.set_defaults(run=convert)
