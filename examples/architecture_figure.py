"""Draw the architecture of a configuration as an SVG: the figure of the README.

python examples/architecture_figure.py                                        # the paper's base model
python examples/architecture_figure.py --model my-crossvlt --output mine.svg  # a checkpoint
"""

import argparse
from html import escape
from pathlib import Path

from crossvlt_hf import CrossVLTConfig
from crossvlt_hf.weights.checkpoint import resolve_checkpoint


DOCUMENT = Path(__file__).parents[1] / "docs" / "architecture.svg"
PIXELS, WORDS, FUSED, TRAINING = "#b4530a", "#1d5fc4", "#7a2fb0", "#6b7280"
FILLS = {PIXELS: "#fdf0e3", WORDS: "#e8f0fd", FUSED: "#f5eafc", TRAINING: "#f3f4f6"}
# Left ends of the columns, one for each stage; and middles of the rows
LEFT, PITCH = 150, 285
DECODER, VISION, FUSION, LANGUAGE = 46, 161, 271, 391
STYLE = """
text { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; font-size: 12px; fill: #1f2430;
       text-anchor: middle; dominant-baseline: central }
.title { font-weight: 600; font-size: 13px }
.note { fill: #4b5263; font-size: 11px; text-anchor: start }
path { fill: none; stroke-width: 2 }
"""


class Drawing:
    """Boxes and arrows, as lines of SVG."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.dots: list[str] = []

    def box(self, middle: tuple[float, float], size: tuple[float, float], colour: str, *texts: str) -> None:
        """A box with lines of text, the first of them its title."""
        (x, y), (width, height) = middle, size
        dashes = ' stroke-dasharray="4 3"' if colour == TRAINING else ""
        self.lines.append(
            f'<rect x="{x - width / 2}" y="{y - height / 2}" width="{width}" height="{height}" rx="7" '
            f'fill="{FILLS[colour]}" stroke="{colour}" stroke-width="1.5"{dashes}/>'
        )
        for row, text in enumerate(texts):
            place = y + 16 * (row - (len(texts) - 1) / 2)
            kind = ' class="title"' if row == 0 else ""
            self.lines.append(f'<text x="{x}" y="{place}"{kind}>{escape(text)}</text>')

    def arrow(self, colour: str, *points: tuple[float, float]) -> None:
        """A line through points with a head at its end, on a pale line that keeps it apart from what it crosses."""
        line = "M" + " L".join(f"{x} {y}" for x, y in points)
        dashes = ' stroke-dasharray="4 3"' if colour == TRAINING else ""
        self.lines.append(f'<path d="{line}" stroke="#ffffff" style="stroke-width: 6"/>')
        self.lines.append(f'<path d="{line}" stroke="{colour}" marker-end="url(#{colour[1:]})"{dashes}/>')

    def dot(self, colour: str, x: float, y: float) -> None:
        """Where a line forks."""
        self.dots.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>')

    def note(self, colour: str, x: float, y: float, text: str) -> None:
        """An entry of the legend."""
        self.lines.append(f'<rect x="{x}" y="{y - 5}" width="22" height="10" rx="3" fill="{colour}"/>')
        self.lines.append(f'<text class="note" x="{x + 30}" y="{y}">{escape(text)}</text>')

    def svg(self, width: float, height: float) -> str:
        """The document, on a ground of its own, so that it is readable on light and dark pages."""
        heads = "".join(
            f'<marker id="{colour[1:]}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="5" markerHeight="5" '
            f'orient="auto"><path d="M0 0L8 4L0 8z" style="fill: {colour}"/></marker>'
            for colour in FILLS
        )
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
        title = "<title>The architecture of CrossVLT</title>"
        ground = f'<rect width="{width}" height="{height}" rx="14" fill="#ffffff"/>'
        return "\n".join(
            [head, title, f"<style>{STYLE}</style><defs>{heads}</defs>", ground, *self.lines, *self.dots, "</svg>\n"]
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def grids(config: CrossVLTConfig, side: int) -> list[int]:
    """Positions along a side of the image in each stage; a merging rounds up."""
    sides = [-(-side // config.vision_config.patch_size)]
    while len(sides) < config.num_stages:
        sides.append(-(-sides[-1] // 2))
    return sides


def _draw_stage(drawing: Drawing, config: CrossVLTConfig, stage: int, grid: int) -> None:
    """The boxes of one stage and the arrows between them."""
    x, width = LEFT + stage * PITCH, config.vision_config.hidden_sizes[stage]
    reads = stage > 0 and config.words_read_pixels
    blocks = _count(config.vision_config.depths[stage], "Swin block")
    layers = _count(config.text_config.depths[stage], "BERT layer")
    drawing.arrow(PIXELS, (x + 105, VISION + 35), (x + 105, FUSION - 24))
    drawing.arrow(WORDS, (x + 105, LANGUAGE - 37), (x + 105, FUSION + 24))
    if stage in config.aligned_stages:
        drawing.arrow(TRAINING, (x + 25, VISION + 35), (x + 25, FUSION - 24))
        drawing.arrow(TRAINING, (x + 25, LANGUAGE - 37), (x + 25, FUSION + 24))
        drawing.box((x + 25, FUSION), (58, 44), TRAINING, "Align")
    texts = [f"{grid}x{grid}x{width}", blocks]
    drawing.box((x + 75, VISION), (150, 66), PIXELS, f"Vision stage {stage + 1}", *texts)
    drawing.box((x + 105, FUSION), (86, 44), FUSED, "Fusion")
    texts = ["attends to pixels", layers] if reads else [layers]
    drawing.box((x + 75, LANGUAGE), (150, 70), WORDS, f"Language stage {stage + 1}", *texts)


def _draw_step(drawing: Drawing, config: CrossVLTConfig, stage: int) -> None:
    """The way from a stage to the next one."""
    x, next_x = LEFT + stage * PITCH, LEFT + (stage + 1) * PITCH
    middle, gated = x + 222, config.pixels_read_words
    drawing.arrow(PIXELS, (x + 150, VISION), (middle - 43, VISION))
    drawing.arrow(PIXELS, (middle + 43, VISION), (next_x, VISION))
    drawing.box((middle, VISION), (86, 66), PIXELS, *(["Gate", "merge 2x2", "gate"] if gated else ["Merge 2x2"]))
    drawing.arrow(WORDS, (x + 150, LANGUAGE + 18), (next_x, LANGUAGE + 18))
    if gated:
        drawing.arrow(FUSED, (x + 148, FUSION), (middle - 18, FUSION), (middle - 18, VISION + 34))
        fork = LANGUAGE - 58
        drawing.arrow(WORDS, (x + 105, fork), (middle + 18, fork), (middle + 18, VISION + 34))
        drawing.dot(WORDS, x + 105, fork)
    if config.words_read_pixels:
        fork = next_x - 12
        drawing.arrow(PIXELS, (fork, VISION), (fork, LANGUAGE - 14), (next_x, LANGUAGE - 14))
        drawing.dot(PIXELS, fork, VISION)


def _draw_decoder(drawing: Drawing, config: CrossVLTConfig, sides: list[int], side: int) -> None:
    """From the fused maps of all stages to the mask, right to left."""
    last = config.num_stages - 1
    for stage, grid in enumerate(sides):
        x = LEFT + stage * PITCH + 166
        start = (x - 18, FUSION - 8)
        if stage == last:
            drawing.arrow(FUSED, start, (x, FUSION - 8), (x, DECODER), (x - PITCH + 65, DECODER))
            continue
        drawing.arrow(FUSED, start, (x, FUSION - 8), (x, DECODER + 24))
        end = x - PITCH + 65 if stage else LEFT - 20
        drawing.arrow(FUSED, (x - 65, DECODER), (end, DECODER))
        drawing.box((x, DECODER), (130, 46), FUSED, "Decoder", f"{grid}x{grid}x{config.decoder_width}")
    drawing.box((LEFT - 75, DECODER), (106, 46), FUSED, "Mask", f"{side}x{side}")


def _draw_presence(drawing: Drawing, config: CrossVLTConfig) -> None:
    """The optional head that says whether anything fits."""
    x = LEFT + (config.num_stages - 1) * PITCH
    drawing.arrow(FUSED, (x + 148, FUSION + 8), (x + 196, FUSION + 8), (x + 196, LANGUAGE - 24))
    drawing.arrow(WORDS, (x + 150, LANGUAGE), (x + 166, LANGUAGE))
    drawing.box((x + 206, LANGUAGE), (80, 46), FUSED, "Presence", "1 logit")


def draw(config: CrossVLTConfig, side: int = 480) -> str:
    """The figure as SVG.

    Args:
        config: of the model.
        side: of the image, in pixels.
    """
    drawing, sides = Drawing(), grids(config, side)
    patch, embedded = config.vision_config.patch_size, config.text_config.hidden_size
    drawing.arrow(PIXELS, (LEFT - 22, VISION), (LEFT, VISION))
    drawing.arrow(WORDS, (LEFT - 22, LANGUAGE + 18), (LEFT, LANGUAGE + 18))
    for stage in range(config.num_stages - 1):
        _draw_step(drawing, config, stage)
    _draw_decoder(drawing, config, sides, side)
    for stage, grid in enumerate(sides):
        _draw_stage(drawing, config, stage, grid)
    drawing.box((LEFT - 75, VISION), (106, 66), PIXELS, "Image", f"{side}x{side}x3", f"{patch}x{patch} patches")
    drawing.box((LEFT - 75, LANGUAGE), (106, 70), WORDS, "Sentence", f"{embedded} per token")
    if config.presence_head:
        _draw_presence(drawing, config)
    notes = [(PIXELS, "pixels"), (WORDS, "words"), (FUSED, "pixels that have read the words")]
    if config.aligned_stages:
        notes.append((TRAINING, "training only: cosine of every pixel and the sentence"))
    for (colour, text), x in zip(notes, (LEFT - 128, LEFT - 28, LEFT + 72, LEFT + 312), strict=False):
        drawing.note(colour, x, LANGUAGE + 68, text)
    return drawing.svg(LEFT + config.num_stages * PITCH - (20 if config.presence_head else 90), LANGUAGE + 92)


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder, Hub id, or built-in (default: the paper's base model)")
    parser.add_argument("--output", type=Path, default=DOCUMENT)
    arguments = parser.parse_args()
    source = arguments.model and resolve_checkpoint(arguments.model)
    config = CrossVLTConfig.from_pretrained(source) if source else CrossVLTConfig()
    size = config.vision_config.image_size
    arguments.output.write_text(draw(config, size if isinstance(size, int) else max(size)), encoding="utf-8")


if __name__ == "__main__":
    main()
