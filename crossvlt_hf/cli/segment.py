"""`crossvlt segment`: segment what expressions refer to in an image."""

import json
import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from tyro.conf import Positional, arg

from ..system import check_exists, check_least
from ..weights.names import check_source
from .common import (
    Command,
    DType,
    Pixels,
    PresenceThreshold,
    check_device,
    check_probability,
    load_or_built_in,
    need_matplotlib,
    warnings_in_one_line,
)
from .outputs import check_replaceable, save_picture


if TYPE_CHECKING:
    from PIL import Image

    from ..modeling_crossvlt import CrossVLTModel
    from ..processing_crossvlt import CrossVLTProcessor
    from ..visualization import Explanation


URLS = ("http://", "https://", "data:")  # what is none of these is a path
MASK, OVERLAY, EXPLANATION = "mask", "overlay", "explanation"  # kinds of output files
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif")  # no names of folders


@dataclass(frozen=True)
class Segment(Command):
    """Segment what expressions refer to in an image.

    Args:
        image: Path or URL.
        expressions: Such as "the cup left of the spoon"; a mask is written for each.
        model: Checkpoint: a folder or a Hub id. The default is the built-in one, which knows few words.
        output: Folder for masks and overlay. Of earlier ones, only those of the same image are replaced.
        device: cpu, cuda, cuda:1, mps, ...
        dtype: Floating-point type of the model; auto is that of the file.
        threshold: Lowest probability of the object for a pixel of the mask. The default is 0.5.
        presence_threshold: Lowest probability that the image has a target; below it the mask is empty. auto: 0.5 for
            models with a presence head. none: no mask is emptied.
        largest_part: Keep only the largest connected part of each mask, and print how many parts there were.
        instances: List the connected parts of each mask.
        min_area: Leave out smaller parts; implies --instances.
        explain: Write a figure of alignment and attention in every stage beside each mask.
        explain_word: Show the attention of this word; implies --explain. By default the word with most of the
            object's attention.
        explain_pixel: Show the attention of this pixel to the words; implies --explain. By default that of the object.
    """

    image: Positional[Annotated[str, arg(metavar="IMAGE")]]
    expressions: Positional[Annotated[tuple[str, ...], arg(metavar="EXPRESSION ...")]]
    model: str | None = None
    output: str = "crossvlt-output"
    device: str = "cpu"
    dtype: DType = "auto"
    threshold: float | None = None
    presence_threshold: PresenceThreshold = "auto"
    largest_part: bool = False
    instances: bool = False
    min_area: Pixels = None
    explain: bool = False
    explain_word: Annotated[str | None, arg(metavar="WORD")] = None
    explain_pixel: Annotated[str | None, arg(metavar="X,Y")] = None

    @property
    def explains(self) -> bool:
        """Whether to write figures."""
        return self.explain or self.explain_word is not None or self.explain_pixel is not None

    def check(self) -> None:
        """Check that numbers are in range, and that the image is not overwritten."""
        check_probability("threshold", self.threshold)
        check_probability("presence_threshold", self.presence_threshold)
        check_least("min_area", self.min_area, 1)
        check_device(self.device)
        self.pixel()
        check_source(self.model)
        self.check_image()
        self.outputs()

    def check_image(self) -> None:
        """Check that the image is a URL, or a file that exists."""
        if self.image.startswith(URLS):
            return
        if os.path.isdir(self.image):
            raise ValueError(
                f"{self.image} is a folder; `crossvlt predict {self.image} --expression TEXT` segments all its images."
            )
        if not os.path.exists(self.image) and _may_be_misspelt(self.image):
            return  # reading it tells which file has a similar path
        files = [text for text in self.expressions if os.path.isfile(text)]
        order = f"; the image comes first, as in `crossvlt segment {quote(files[0])} TEXT`" if files else ""
        check_exists(self.image, "image file", order or "; check its path")

    def pixel(self) -> tuple[int, int] | None:
        """The (x, y) of `--explain-pixel`."""
        if self.explain_pixel is None:
            return None
        if not re.fullmatch(r"\s*\d+\s*,\s*\d+\s*", self.explain_pixel, re.ASCII):
            raise ValueError(
                "`--explain-pixel` must be X,Y in pixels from the top left, such as 120,80, got "
                f"{self.explain_pixel!r}."
            )
        x, y = map(int, self.explain_pixel.split(","))
        return x, y

    def outputs(self) -> tuple[list["_Output"], Path]:
        """The files to write for every expression, and the overlay; none may be the image itself."""
        folder, stem = Path(self.output), _slug(Path(self.image).stem)
        if folder.suffix.lower() in PICTURES and not folder.exists() and not self.output.endswith(("/", os.sep)):
            raise ValueError(f"`--output` must be a folder for the masks, got {self.output!r}.")
        names = [f"{stem}-{n}-{_slug(text)}" for n, text in enumerate(self.expressions, start=1)]
        outputs = [
            _Output(folder / f"{name}.png", folder / f"{name}-explanation.png" if self.explains else None)
            for name in names
        ]
        picture = folder / f"{stem}-overlay.png"
        paths = [path for output in outputs for path in output if path is not None]
        if Path(self.image).absolute() in [path.absolute() for path in (*paths, picture)]:
            raise ValueError(f"The output would overwrite {self.image}; give another --output.")
        return outputs, picture


def _may_be_misspelt(path: str) -> bool:
    """Whether `similar_path`, which needs the imports of the library, may find another path."""
    if not path.isascii() or "\\" in path:
        return True
    folder, name = os.path.split(path)
    if folder and not os.path.isdir(folder):
        return _may_be_misspelt(folder)
    with suppress(OSError):
        return any(each != name and each.lower() == name.lower() for each in os.listdir(folder or "."))
    return False


class _Output(NamedTuple):
    """The files of an expression."""

    mask: Path
    explanation: Path | None


def _about(image: "Image.Image") -> dict[str, str]:
    """What files are made from, for `check_replaceable` and `save_picture`."""
    return {"image": blake2b(repr(image.size).encode() + image.tobytes(), digest_size=16).hexdigest()}


def _check_outputs(
    expressions: Sequence[str], outputs: Sequence[_Output], picture: Path, about: dict[str, str]
) -> None:
    """Check that no file is written over that of another image or expression."""
    for expression, output in zip(expressions, outputs, strict=True):
        check_replaceable(output.mask, MASK, **about, expression=expression)
        if output.explanation is not None:
            check_replaceable(output.explanation, EXPLANATION, **about, expression=expression)
    check_replaceable(picture, OVERLAY, **about)


def _slug(expression: str) -> str:
    """An expression as part of a file name: letters and digits, at most 40 bytes."""
    words = re.sub(r"\W+", "-", expression.lower()).strip("-")
    return words.encode()[:40].decode(errors="ignore") or "expression"


def _speaks_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def _check_explanation(options: Segment, image: "Image.Image") -> None:
    """Check that figures can be drawn and that the pixel is in the image, before the model is loaded."""
    if not options.explains:
        return
    from ..visualization.explanation import check_pixel

    if (pixel := options.pixel()) is not None:
        check_pixel(pixel, image.size)
    need_matplotlib()


def _check_word(options: Segment, processor: "CrossVLTProcessor") -> None:
    if options.explain_word is None:
        return
    from ..visualization.explanation import positions_of, tokens_of

    for expression in options.expressions:
        positions_of(tokens_of(processor, expression), options.explain_word)


def _run(
    options: Segment, model: "CrossVLTModel", processor: "CrossVLTProcessor", image: "Image.Image"
) -> tuple[list[dict[str, Any]], list["Explanation"]]:
    """Run the model once; return the results and, on request, their explanations."""
    from ..pipeline_crossvlt import ReferringImageSegmentationPipeline

    pipeline = ReferringImageSegmentationPipeline(model=model, processor=processor, device=model.device)
    choices = {
        "threshold": options.threshold,
        "presence_threshold": options.presence_threshold,
        "largest_part": options.largest_part,
        "instances": options.instances or options.min_area is not None,
        "min_area": options.min_area,
    }
    with warnings_in_one_line(options):
        if not options.explains:
            return pipeline(image, text=list(options.expressions), **choices), []
        from ..visualization import segment_and_explain

        return segment_and_explain(pipeline, image, options.expressions, **choices)


def segment(options: Segment) -> None:
    """Write a mask for each expression and one overlay; print a JSON line for each expression."""
    from ..processing_crossvlt import pair_expressions, to_rgb
    from ..visualization.overlay import overlay

    image = to_rgb(options.image)
    pair_expressions(1, list(options.expressions))  # check all of them first
    _check_explanation(options, image)
    outputs, picture = options.outputs()
    about = _about(image)
    _check_outputs(options.expressions, outputs, picture, about)
    _notice_missing_quotes(options.expressions)
    model, processor = load_or_built_in(options.model, device=options.device, dtype=options.dtype)
    _check_word(options, processor)
    picture.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    results, explanations = _run(options, model, processor, image)
    seconds = (time.perf_counter() - start) / len(results)
    for number, (result, output) in enumerate(zip(results, outputs, strict=True)):
        made_from = {**about, "expression": options.expressions[number]}
        save_picture(result["mask"], output.mask, MASK, **made_from)
        line = _describe(result, seconds, output.mask)
        if output.explanation is not None:
            save_picture(_draw(options, explanations[number]), output.explanation, EXPLANATION, **made_from)
            line["explanation"] = str(output.explanation)
        print(json.dumps(line, ensure_ascii=not _speaks_unicode()), flush=True)
    save_picture(overlay(image, results), picture, OVERLAY, **about)
    print(f"The overlay is in {picture}", file=sys.stderr)


def _notice_missing_quotes(expressions: Sequence[str]) -> None:
    """Say that words are expressions of their own if one of them can hardly be meant alone."""
    from ..visualization.explanation import FUNCTION_WORDS

    alone = not any(re.search(r"\s", text) for text in expressions)
    if len(expressions) > 1 and alone and FUNCTION_WORDS & {text.lower() for text in expressions}:
        print(
            f"Each of the {len(expressions)} words was read as an expression; put quotes around an expression of "
            f"several words, such as {' '.join(expressions)!r}.",
            file=sys.stderr,
        )


def _draw(options: Segment, explanation: "Explanation") -> "Image.Image":
    from ..visualization import explanation_figure

    return explanation_figure(explanation, word=options.explain_word, pixel=options.pixel())


def _describe(result: dict[str, Any], seconds: float, mask: Path) -> dict[str, Any]:
    """The JSON line of a result; `seconds` is the mean over the expressions."""
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
