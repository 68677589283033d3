"""`crossvlt demo`: a drawn scene, expressions of every family, and what the built-in checkpoint makes of them."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.refshapes import FAMILIES, Example, make_scene
from ..loading import DEFAULT_CHECKPOINT, load_checkpoint
from ..pipeline_crossvlt import ReferringImageSegmentationPipeline
from ..visualization import arrange, overlay
from .segment import DEFAULT_NOTE


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
    """Write the panel; print a JSON line for each expression."""
    model, processor = load_checkpoint(DEFAULT_CHECKPOINT if arguments.model is None else arguments.model)
    if arguments.model is None:
        print(DEFAULT_NOTE, file=sys.stderr)
    pipeline = ReferringImageSegmentationPipeline(model=model, processor=processor)
    side = processor.image_processor.size["height"]
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
    command = commands.add_parser("demo", help="draw scenes, segment expressions of every family in them")
    command.add_argument("--model", help="checkpoint: a folder or a Hub id (default: the built-in one)")
    command.add_argument("--output", default="crossvlt-output/demo.png", help="PNG (%(default)s)")
    command.add_argument("--seed", type=int, default=1, help="of the scenes (%(default)s)")
    command.set_defaults(run=demo)
