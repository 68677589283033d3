"""`crossvlt convert`: convert a checkpoint of the authors' code."""

import json
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from ..system import check_exists, check_least
from .common import Command


@dataclass(frozen=True)
class Convert(Command):
    """Convert a checkpoint of the authors' code.

    Args:
        original: Checkpoint of the authors' code.
        output_dir: Folder of the converted checkpoint.
        tokenizer: Hub id or folder. The default is that of bert-base-uncased, which is built in.
        num_attention_heads: Heads of the language encoder. By default 64 wide, which makes 12 in the paper.
        fusion_head_dim: Width of a fusion head. The default is 64.
        overwrite: Replace another checkpoint in the folder.
    """

    original: Positional[Annotated[str, arg(metavar="ORIGINAL.pth")]]
    output_dir: Positional[Annotated[str, arg(metavar="OUT_DIR")]]
    tokenizer: str | None = None
    num_attention_heads: int | None = None
    fusion_head_dim: int | None = None
    overwrite: bool = False

    def check(self) -> None:
        """Check that numbers are in range, and that there is a checkpoint."""
        check_least("num_attention_heads", self.num_attention_heads, 1)
        check_least("fusion_head_dim", self.fusion_head_dim, 1)
        check_exists(self.original, "checkpoint file")


def convert(options: Convert) -> None:
    """Convert the checkpoint, and print a JSON line about it."""
    from ..weights.original import convert_checkpoint

    names = ("num_attention_heads", "fusion_head_dim")
    overrides = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    config = convert_checkpoint(
        options.original, options.output_dir, tokenizer=options.tokenizer, overwrite=options.overwrite, **overrides
    )
    vision, text = config.vision_config, config.text_config
    summary = {
        "output": options.output_dir,
        "vision": {name: getattr(vision, name) for name in ("embed_dim", "depths", "num_heads", "window_size")},
        "text": {name: getattr(text, name) for name in ("hidden_size", "depths", "num_attention_heads", "vocab_size")},
    }
    print(json.dumps(summary))
