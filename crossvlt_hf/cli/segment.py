"""`crossvlt segment`: masks of what expressions refer to in an image."""

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from ..loading import DEFAULT_CHECKPOINT, load_checkpoint
from ..pipeline_crossvlt import ReferringImageSegmentationPipeline
from ..processing_crossvlt import pair_expressions, to_rgb
from ..visualization import overlay


DEFAULT_NOTE = (
    "No --model was given: the built-in checkpoint is used. It was trained on drawn shapes (RefShapes) and knows "
    "nothing of photographs."
)


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
    if arguments.model is None:
        print(DEFAULT_NOTE, file=sys.stderr)
    model, processor = load_checkpoint(
        DEFAULT_CHECKPOINT if arguments.model is None else arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
    )
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


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("segment", help="segment what expressions refer to in an image")
    command.add_argument("image", metavar="IMAGE", help="path or URL")
    command.add_argument("expressions", metavar="EXPRESSION", nargs="+", help='such as "the cup left of the spoon"')
    command.add_argument(
        "--model",
        help="checkpoint: a folder or a Hub id (default: the built-in one, which knows drawn shapes, no photographs)",
    )
    command.add_argument("--output", default="crossvlt-output", help="folder for masks and overlay (%(default)s)")
    command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps, ... (%(default)s)")
    command.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    command.add_argument(
        "--threshold", type=float, help="least probability of the object (default: the likelier class)"
    )
    command.set_defaults(run=segment)
