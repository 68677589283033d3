"""`crossvlt demo`: photographs, drawn scenes and what a checkpoint makes of sentences about them; or a page."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ..checkpoint import BUILT_IN_NOTE, load_checkpoint, resolve_checkpoint
from ..data.refshapes import FAMILIES, make_scene
from ..pipeline_crossvlt import ReferringImageSegmentationPipeline
from ..publishing.page.samples import SAMPLES
from ..training.settings import integer
from ..visualization import arrange, overlay
from .extras import needs_extra


TILE = 384  # pixels of a picture in the panel
SIDE = 96  # of a drawn scene


class Question(NamedTuple):
    """An image and a sentence about it, with what is meant and the kind of sentence where a scene was drawn for it."""

    image: Image.Image
    expression: str
    source: str
    target: np.ndarray | None = None
    family: str | None = None


def _iou(found: np.ndarray, target: np.ndarray) -> float:
    return float((found & target).sum() / (found | target).sum())


def photograph_questions() -> Iterator[Question]:
    """The photographs that come with the package, with the sentences chosen for them."""
    for sample in SAMPLES:
        with Image.open(sample.path) as image:
            photograph = ImageOps.contain(image.convert("RGB"), (TILE, TILE))
        yield from (Question(photograph, expression, sample.file) for expression in sample.expressions)


def drawn_questions(seed: int, side: int) -> Iterator[Question]:
    """Two scenes of the test split, with three expressions of other families and other targets each."""
    for index, families in enumerate((FAMILIES[:3], FAMILIES[3:])):
        for example in make_scene("test", index, families=families, side=side, seed=seed, count=(4, 6)):
            image = Image.fromarray(example.scene.image)
            yield Question(image, example.expression, f"scene {index}", example.mask, example.family)


def demo(arguments: argparse.Namespace) -> None:
    """Serve the page, or write the panel and print a JSON line for each expression."""
    source = resolve_checkpoint(arguments.model)
    if not arguments.serve:
        _write_panel(arguments, source)
        return
    with needs_extra("demo"):
        from ..publishing.page import serve
    serve(source, host=arguments.host, port=arguments.port, device=arguments.device)


def _write_panel(arguments: argparse.Namespace, source: str | Path) -> None:
    model, processor = load_checkpoint(source, device=arguments.device)
    if arguments.model is None:
        print(f"No --model was given: {BUILT_IN_NOTE}", file=sys.stderr)
    pipeline = ReferringImageSegmentationPipeline(model=model, processor=processor, device=model.device)
    tiles = []
    for question in (*photograph_questions(), *drawn_questions(arguments.seed, SIDE)):
        (result,) = pipeline(question.image, text=question.expression)
        print(json.dumps(_describe(question, result)), flush=True)
        tiles.append(_draw(question, result))
    path = Path(arguments.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrange(tiles, columns=3).save(path)
    print(f"The panel is in {path}", file=sys.stderr)
    if arguments.model is None:
        missed = ", ".join(repr(text) for sample in SAMPLES for text in sample.missed)
        print(
            "The sentences about photographs were chosen for what the built-in checkpoint finds. Others fail, in "
            f"these photographs too: {missed}.",
            file=sys.stderr,
        )


def _describe(question: Question, result: dict[str, Any]) -> dict[str, Any]:
    """What is printed of a result: with the IoU where the truth is known."""
    line = {"image": question.source, "expression": question.expression, "score": round(result["score"], 4)}
    if question.target is None:
        return line
    iou = _iou(np.asarray(result["mask"]) > 0, question.target)
    return {**line, "family": question.family, "iou": round(iou, 4)}


def _draw(question: Question, result: dict[str, Any]) -> Image.Image:
    picture = ImageOps.contain(question.image, (TILE, TILE), Image.Resampling.NEAREST)
    mask = result["mask"].resize(picture.size, Image.Resampling.NEAREST)
    return overlay(picture, [mask], [question.expression], [result["score"]])


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("demo", help="segment in photographs and scenes, or serve a page for the browser")
    command.add_argument("--model", help="checkpoint: a folder, a Hub id, or built-in (the default)")
    command.add_argument("--output", default="crossvlt-output/demo.png", help="PNG of the panel (%(default)s)")
    command.add_argument("--seed", type=integer, default=1, help="of the scenes in the panel (%(default)s)")
    command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps, ... (%(default)s)")
    command.add_argument("--serve", action="store_true", help="serve a page for the browser; needs the extra `demo`")
    command.add_argument("--host", default="127.0.0.1", help="of the page; 0.0.0.0 is for all who reach this machine")
    command.add_argument("--port", type=integer, default=7860, help="of the page; 0 is any free one (%(default)s)")
    command.set_defaults(run=demo)
