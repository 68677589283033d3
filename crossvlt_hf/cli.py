"""The command `crossvlt`."""

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils.logging import set_verbosity_error as set_hub_verbosity_error
from PIL import Image
from transformers.utils import logging

from .conversion import convert_checkpoint
from .loading import load_checkpoint
from .pipeline_crossvlt import ReferringImageSegmentationPipeline
from .processing_crossvlt import pair_expressions, to_rgb
from .visualization import overlay


def _slug(expression: str) -> str:
    """What of an expression can stand in a file name: at most 40 bytes of it."""
    words = re.sub(r"\W+", "-", expression.lower()).strip("-")
    return words.encode()[:40].decode(errors="ignore") or "expression"


def _speaks_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def segment(arguments: argparse.Namespace) -> None:
    """Write a mask for each expression and one overlay; print a JSON line for each expression."""
    image = to_rgb(arguments.image)
    pair_expressions(1, arguments.expressions)  # all of them, before the first is segmented
    folder, stem = Path(arguments.output), _slug(Path(arguments.image).stem)
    paths = [folder / f"{stem}-{n}-{_slug(text)}.png" for n, text in enumerate(arguments.expressions, start=1)]
    picture = folder / f"{stem}-overlay.png"
    if Path(arguments.image).absolute() in [path.absolute() for path in (*paths, picture)]:
        raise ValueError(f"The output would overwrite {arguments.image}; give another --output.")
    model, processor = load_checkpoint(arguments.model, device=arguments.device, dtype=arguments.dtype)
    pipeline = ReferringImageSegmentationPipeline(model=model, processor=processor, device=model.device)
    folder.mkdir(parents=True, exist_ok=True)
    masks: list[Image.Image] = []
    scores: list[float] = []
    for expression, path in zip(arguments.expressions, paths, strict=True):
        start = time.perf_counter()
        (result,) = pipeline(image, text=expression, threshold=arguments.threshold)
        seconds = time.perf_counter() - start
        masks.append(result["mask"])
        scores.append(result["score"])
        result["mask"].save(path)
        line = {
            "expression": expression,
            "score": round(result["score"], 4),
            "box": result["box"],
            "area": result["mask"].histogram()[255],
            "seconds": round(seconds, 3),
            "mask": str(path),
        }
        print(json.dumps(line, ensure_ascii=not _speaks_unicode()), flush=True)
    overlay(image, masks, arguments.expressions, scores).save(picture)
    print(f"The overlay is in {picture}", file=sys.stderr)


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


def build_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = argparse.ArgumentParser(prog="crossvlt", description="Referring image segmentation with CrossVLT.")
    parser.add_argument("--version", action="version", version=f"crossvlt_hf {version('crossvlt_hf')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("segment", help="segment what expressions refer to in an image")
    command.add_argument("image", metavar="IMAGE", help="path or URL")
    command.add_argument("expressions", metavar="EXPRESSION", nargs="+", help='such as "the cup left of the spoon"')
    command.add_argument("--model", required=True, help="checkpoint: a folder or a Hub id")
    command.add_argument("--output", default="crossvlt-output", help="folder for masks and overlay (%(default)s)")
    command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps, ... (%(default)s)")
    command.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    command.add_argument(
        "--threshold", type=float, help="least probability of the object (default: the likelier class)"
    )
    command.set_defaults(run=segment)

    command = commands.add_parser("convert", help="convert a checkpoint of the authors' code")
    command.add_argument("original", metavar="ORIGINAL.pth")
    command.add_argument("output_dir", metavar="OUT_DIR")
    command.add_argument("--tokenizer", help="Hub id or folder (default: bert-base-uncased's, which is built in)")
    command.add_argument(
        "--num-attention-heads", type=int, help="of the language encoder (default: 64 wide each, 12 in the paper)"
    )
    command.add_argument("--fusion-head-dim", type=int, help="width of a fusion head (default: 64)")
    command.set_defaults(run=convert)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; wrong input is told in one line, with exit code 2."""
    arguments = build_parser().parse_args(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_hub_verbosity_error()
    try:
        arguments.run(arguments)
    except (OSError, ValueError, StrictDataclassError) as error:
        print(f"crossvlt: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
