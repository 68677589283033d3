"""`crossvlt demo`: drawn scenes, expressions of every family and what a checkpoint makes of them; or a page."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.refshapes import FAMILIES, Example, make_scene
from ..loading import BUILT_IN_NOTE, DEFAULT_CHECKPOINT, load_checkpoint
from ..pipeline_crossvlt import ReferringImageSegmentationPipeline
from ..visualization import arrange, overlay
from .extras import needs_extra


TILE = 384


def _iou(found: np.ndarray, target: np.ndarray) -> float:
    return float((found & target).sum() / (found | target).sum())


def draw_examples(seed: int, side: int) -> list[Example]:
    """Two scenes of the test split, with three expressions of other families and other targets each."""
    groups = (FAMILIES[:3], FAMILIES[3:])
    return [
        example
        for index, families in enumerate(groups)
        for example in make_scene("test", index, families=families, side=side, seed=seed, count=(4, 6))
    ]


def demo(arguments: argparse.Namespace) -> None:
    """Serve the page, or write the panel and print a JSON line for each expression."""
    source = DEFAULT_CHECKPOINT if arguments.model is None else arguments.model
    if not arguments.serve:
        _write_panel(arguments, source)
        return
    with needs_extra("demo"):
        from ..page import serve
    serve(source, host=arguments.host, port=arguments.port, device=arguments.device)


def _write_panel(arguments: argparse.Namespace, source: str | Path) -> None:
    model, processor = load_checkpoint(source, device=arguments.device)
    if arguments.model is None:
        print(f"No --model was given: {BUILT_IN_NOTE}", file=sys.stderr)
    pipeline = ReferringImageSegmentationPipeline(model=model, processor=processor, device=model.device)
    side = processor.image_size[0]
    tiles = []
    for example in draw_examples(arguments.seed, side):
        image = Image.fromarray(example.scene.image)
        (result,) = pipeline(image, text=example.expression)
        line = {
            "family": example.family,
            "expression": example.expression,
            "score": round(result["score"], 4),
            "iou": round(_iou(np.asarray(result["mask"]) > 0, example.mask), 4),
        }
        print(json.dumps(line), flush=True)
        mask = result["mask"].resize((TILE, TILE), Image.Resampling.NEAREST)
        picture = image.resize((TILE, TILE), Image.Resampling.NEAREST)
        tiles.append(overlay(picture, [mask], [example.expression], [result["score"]]))
    path = Path(arguments.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrange(tiles, columns=3).save(path)
    print(f"The panel is in {path}", file=sys.stderr)


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("demo", help="draw scenes and segment in them, or serve a page for the browser")
    command.add_argument("--model", help="checkpoint: a folder or a Hub id (default: the built-in one)")
    command.add_argument("--output", default="crossvlt-output/demo.png", help="PNG of the panel (%(default)s)")
    command.add_argument("--seed", type=int, default=1, help="of the scenes in the panel (%(default)s)")
    command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps, ... (%(default)s)")
    command.add_argument("--serve", action="store_true", help="serve a page for the browser; needs the extra `demo`")
    command.add_argument("--host", default="127.0.0.1", help="of the page; 0.0.0.0 is for all who reach this machine")
    command.add_argument("--port", type=int, default=7860, help="of the page; 0 is any free one (%(default)s)")
    command.set_defaults(run=demo)
