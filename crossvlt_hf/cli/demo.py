"""`crossvlt demo`: segment in photographs and drawn scenes, or serve a page for the browser."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ..system import check_integer
from ..weights.names import check_source
from .common import Command, check_device, check_png, load_or_built_in, needs_extra, refuse_without_effect
from .outputs import make_room, save_picture


if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


PANEL = "panel"  # the kind of output file
TILE = 384  # side in pixels of a drawn scene, and largest side of a photograph in the panel


@dataclass(frozen=True)
class Demo(Command):
    """Segment in photographs and drawn scenes, or serve a page for the browser.

    Args:
        model: Checkpoint: a folder, a Hub id, or built-in, which is the default.
        output: PNG file to write; an earlier panel is replaced.
        seed: Seed of the drawn scenes.
        device: cpu, cuda, cuda:1, mps, ...
        serve: Serve a page for the browser instead of writing the panel; needs the extra `demo`.
        host: Address of the page; 0.0.0.0 serves it to every machine that can reach this one.
        port: Port of the page; 0 takes a free one.
    """

    model: str | None = None
    output: str = "crossvlt-output/demo.png"
    seed: int = 1
    device: str = "cpu"
    serve: bool = False
    host: str = "127.0.0.1"
    port: int = 7860

    def check(self) -> None:
        """Check the seed, the port, the name of the panel, and that all have an effect."""
        check_integer("seed", self.seed, 0, 2**63 - 1)
        check_integer("port", self.port, 0, 65535)
        check_device(self.device)
        check_source(self.model)
        check_png("output", self.output)
        if self.serve:
            refuse_without_effect(self, ("output", "seed"), "with `serve`")
        else:
            refuse_without_effect(self, ("host", "port"), "without `serve`")


class Question(NamedTuple):
    """An image and an expression; for drawn scenes also its target and family."""

    image: "Image.Image"
    expression: str
    source: str
    target: "np.ndarray | None" = None
    family: str | None = None


def photograph_questions() -> Iterator[Question]:
    """The photographs of the package, with expressions chosen for them."""
    from PIL import Image

    from ..publishing.page.samples import SAMPLES

    for sample in SAMPLES:
        with Image.open(sample.path) as image:
            photograph = image.convert("RGB")
        yield from (Question(photograph, expression, sample.file) for expression in sample.expressions)


def drawn_questions(seed: int, side: int) -> Iterator[Question]:
    """Two scenes of the test split with three expressions each, of different families and targets."""
    from PIL import Image

    from ..data.refshapes import FAMILIES, make_scene

    for index, families in enumerate((FAMILIES[:3], FAMILIES[3:])):
        for example in make_scene("test", index, families=families, side=side, seed=seed, count=(4, 6)):
            image = Image.fromarray(example.scene.image)
            yield Question(image, example.expression, f"scene {index}", example.mask, example.family)


def demo(options: Demo) -> None:
    """Serve the page, or write the panel and print a JSON line for each expression."""
    if not options.serve:
        _write_panel(options)
        return
    with needs_extra("demo"):
        from ..publishing.page import serve
    from ..weights.checkpoint import resolve_checkpoint

    serve(resolve_checkpoint(options.model), host=options.host, port=options.port, device=options.device)


def _write_panel(options: Demo) -> None:
    from ..pipeline_crossvlt import ReferringImageSegmentationPipeline
    from ..visualization import arrange

    make_room(options.output, PANEL)
    model, processor = load_or_built_in(options.model, device=options.device)
    pipeline = ReferringImageSegmentationPipeline(model=model, processor=processor, device=model.device)
    tiles = []
    for question in (*photograph_questions(), *drawn_questions(options.seed, TILE)):
        (result,) = pipeline(question.image, text=question.expression)
        print(json.dumps(_describe(question, result)), flush=True)
        tiles.append(_draw(question, result))
    save_picture(arrange(tiles, columns=3), options.output, PANEL)
    print(f"The panel is in {options.output}", file=sys.stderr)
    if options.model is None:
        _tell_what_is_missed()


def _tell_what_is_missed() -> None:
    from ..publishing.page.samples import SAMPLES

    missed = ", ".join(repr(text) for sample in SAMPLES for text in sample.missed)
    print(
        "The expressions for photographs were chosen because the built-in checkpoint finds their targets. Others fail "
        f"in the same photographs: {missed}.",
        file=sys.stderr,
    )


def _describe(question: Question, result: dict[str, Any]) -> dict[str, Any]:
    """The JSON line of a result, with the IoU where the target is known."""
    import numpy as np

    line = {"image": question.source, "expression": question.expression, "score": round(result["score"], 4)}
    if question.target is None:
        return line
    found = np.asarray(result["mask"]) > 0
    iou = float((found & question.target).sum() / (found | question.target).sum())
    return {**line, "family": question.family, "iou": round(iou, 4)}


def _draw(question: Question, result: dict[str, Any]) -> "Image.Image":
    from PIL import Image, ImageOps

    from ..visualization import overlay

    picture = ImageOps.contain(question.image, (TILE, TILE))
    mask = result["mask"].resize(picture.size, Image.Resampling.NEAREST)
    return overlay(picture, [mask], [question.expression], [result["score"]])
