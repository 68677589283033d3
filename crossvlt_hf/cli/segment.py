"""`crossvlt segment`: masks of what expressions refer to in an image."""

import argparse
import json
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from ..checkpoint import BUILT_IN_NOTE, load_checkpoint, resolve_checkpoint
from ..modeling_crossvlt import CrossVLTModel
from ..pipeline_crossvlt import ReferringImageSegmentationPipeline
from ..processing_crossvlt import CrossVLTProcessor, pair_expressions, to_rgb
from ..training.settings import integer, number
from ..visualization import explain, explanation_figure, overlay
from ..visualization.explanation import check_pixel, positions_of, tokens_of
from .extras import needs_extra
from .presence import add_largest_part_option, add_presence_option


def _slug(expression: str) -> str:
    """What of an expression can stand in a file name: at most 40 bytes of it."""
    words = re.sub(r"\W+", "-", expression.lower()).strip("-")
    return words.encode()[:40].decode(errors="ignore") or "expression"


def _speaks_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def _parse_pixel(text: str | None, image: Image.Image) -> tuple[int, int] | None:
    """The (x, y) that `X,Y` says, in the image."""
    if text is None:
        return None
    if not re.fullmatch(r"\s*\d+\s*,\s*\d+\s*", text, re.ASCII):
        raise ValueError(f"--explain-pixel is {text!r}; give X,Y in whole pixels from the top left, such as 120,80.")
    x, y = map(int, text.split(","))
    check_pixel((x, y), image.size)
    return x, y


@dataclass(frozen=True)
class _Output:
    """Where the files of an expression go."""

    mask: Path
    explanation: Path | None


def _outputs(arguments: argparse.Namespace, explains: bool) -> tuple[list[_Output], Path]:
    """The files of every expression, and the overlay; the image is none of them."""
    folder, stem = Path(arguments.output), _slug(Path(arguments.image).stem)
    names = [f"{stem}-{n}-{_slug(text)}" for n, text in enumerate(arguments.expressions, start=1)]
    outputs = [
        _Output(folder / f"{name}.png", folder / f"{name}-explanation.png" if explains else None) for name in names
    ]
    picture = folder / f"{stem}-overlay.png"
    paths = [path for output in outputs for path in (output.mask, output.explanation) if path is not None]
    if Path(arguments.image).absolute() in [path.absolute() for path in (*paths, picture)]:
        raise ValueError(f"The output would overwrite {arguments.image}; give another --output.")
    return outputs, picture


def _load(arguments: argparse.Namespace) -> tuple[CrossVLTModel, CrossVLTProcessor]:
    if arguments.model is None:
        print(f"No --model was given: {BUILT_IN_NOTE}", file=sys.stderr)
    source = resolve_checkpoint(arguments.model)
    return load_checkpoint(source, device=arguments.device, dtype=arguments.dtype)


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print warnings without the line of code that gave them."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in found:
        print(f"Warning: {warning.message}", file=sys.stderr)


def segment(arguments: argparse.Namespace) -> None:
    """Write a mask for each expression and one overlay; print a JSON line for each expression."""
    image, word = to_rgb(arguments.image), arguments.explain_word
    pair_expressions(1, arguments.expressions)  # all of them, before the first is segmented
    pixel = _parse_pixel(arguments.explain_pixel, image)
    explains = arguments.explain or word is not None or pixel is not None
    if explains:
        with needs_extra("plot"):
            import_module("matplotlib")
    outputs, picture = _outputs(arguments, explains)
    model, processor = _load(arguments)
    for expression in arguments.expressions if word is not None else []:
        positions_of(tokens_of(processor, expression), word)
    pipeline = ReferringImageSegmentationPipeline(model=model, processor=processor, device=model.device)
    picture.parent.mkdir(parents=True, exist_ok=True)
    results = []
    for expression, output in zip(arguments.expressions, outputs, strict=True):
        start = time.perf_counter()
        with _warnings_in_one_line():
            (result,) = pipeline(
                image,
                text=expression,
                threshold=arguments.threshold,
                presence_threshold=arguments.presence_threshold,
                largest_part=arguments.largest_part,
                instances=arguments.instances or arguments.min_area is not None,
                min_area=arguments.min_area,
            )
        seconds = time.perf_counter() - start
        results.append(result)
        result["mask"].save(output.mask)
        line = _describe(result, seconds, output.mask)
        if output.explanation is not None:
            explanation = explain(model, processor, image, expression, threshold=arguments.threshold)
            explanation_figure(explanation, word=word, pixel=pixel).save(output.explanation)
            line["explanation"] = str(output.explanation)
        print(json.dumps(line, ensure_ascii=not _speaks_unicode()), flush=True)
    masks, scores = [result["mask"] for result in results], [result["score"] for result in results]
    overlay(image, masks, arguments.expressions, scores).save(picture)
    print(f"The overlay is in {picture}", file=sys.stderr)


def _describe(result: dict[str, Any], seconds: float, mask: Path) -> dict[str, Any]:
    """What is printed of a result."""
    return {
        "expression": result["label"],
        "score": round(result["score"], 4),
        **({"presence": round(result["presence"], 4)} if "presence" in result else {}),
        "box": result["box"],
        "area": result["mask"].histogram()[255],
        **({"parts": result["parts"]} if "parts" in result else {}),
        "seconds": round(seconds, 3),
        "mask": str(mask),
        "text_read": result["text_read"],
        "unknown_words": result["unknown_words"],
        **(
            {"instances": [{"box": part["box"], "area": part["area"]} for part in result["instances"]]}
            if "instances" in result
            else {}
        ),
    }


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("segment", help="segment what expressions refer to in an image")
    command.add_argument("image", metavar="IMAGE", help="path or URL")
    command.add_argument("expressions", metavar="EXPRESSION", nargs="+", help='such as "the cup left of the spoon"')
    command.add_argument(
        "--model",
        help="checkpoint: a folder or a Hub id (default: the built-in one, which knows few things)",
    )
    command.add_argument("--output", default="crossvlt-output", help="folder for masks and overlay (%(default)s)")
    command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps, ... (%(default)s)")
    command.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    command.add_argument(
        "--threshold", type=number, help="least probability of the object (default: the likelier class)"
    )
    add_presence_option(command)
    add_largest_part_option(command)
    command.add_argument("--instances", action="store_true", help="list the separate parts of each mask")
    command.add_argument(
        "--min-area", type=integer, metavar="PIXELS", help="list no smaller parts; implies --instances"
    )
    command.add_argument(
        "--explain", action="store_true", help="write beside each mask a figure of what was read in every stage"
    )
    command.add_argument(
        "--explain-word",
        metavar="WORD",
        help="show where this word looked (default: the one that the object read most)",
    )
    command.add_argument(
        "--explain-pixel", metavar="X,Y", help="show which words this pixel read (default: those that the object read)"
    )
    command.set_defaults(run=segment)
