"""The page: its fields and event handlers.

Texts of users are only shown in fields of plain text (table, text box, captions) or drawn by Pillow. Gradio renders
HTML in its messages and in Markdown, so these must not contain expressions.
"""

import html
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from ...modeling_crossvlt import CrossVLTModel
from ...processing_crossvlt import CrossVLTProcessor
from ...visualization import Explanation, explanation_figure
from .about import INTRODUCTION, Example, score_note
from .answers import COLUMNS, Found, Segmenter, draw, tabulate
from .inputs import (
    MAX_EXPRESSIONS,
    MAX_LETTERS,
    MAX_PIXELS,
    MAX_UPLOAD,
    InputError,
    name_masks,
    read_expressions,
    read_image,
)


KEPT_SECONDS = 3600  # uploads and results
WAITING = 16  # requests in the queue; more are refused
SHOWN_BY_BROWSERS = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}
THEME = gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"])
CSS = """
.gradio-container {width: 100%; max-width: 1160px !important; margin: 0 auto !important}
.gradio-container .app, .gradio-container .wrap, .gradio-container .contain {min-width: 0 !important}
#note {border-left: 4px solid var(--color-accent); padding-left: 12px}
#status .html-container {padding: 0 !important}
#status p {margin: 0; padding: 4px 0}
#status p.refused {border-left: 4px solid var(--error-icon-color); padding-left: 10px; font-weight: 600}
#table table, #table [role="gridcell"] span {font-family: var(--font) !important}
#figures .grid-wrap {max-height: none !important; height: auto !important; padding-top: 30px}
#figures button, #figures img {height: auto !important; min-height: 160px; aspect-ratio: auto !important}
#figures .caption-label {display: none}  /* the figure has a title */
#facts p {font-size: 0.9em; opacity: 0.85}
"""
LIMITS = (
    f"Up to {MAX_EXPRESSIONS} expressions, {MAX_UPLOAD // 2**20} MB and {MAX_PIXELS // 10**6} million pixels. Images "
    f"and results are deleted after {KEPT_SECONDS // 60} minutes."
)

Request = tuple[str, list[str]]  # path of the image, expressions


def _status(sentence: str, *, refused: bool = False) -> str:
    kind = "refused" if refused else "said"
    return f'<p class="{kind}" role="{"alert" if refused else "status"}">{html.escape(sentence)}</p>'


def _uploaded(payload: Any) -> str | None:
    return None if payload is None else payload.path


def _figures(explanations: Sequence[Explanation]) -> Any:
    """Draw the figures for the gallery, with the expressions as captions."""
    drawn = [(explanation_figure(explanation), explanation.expression) for explanation in explanations]
    return gr.update(value=drawn, visible=True)


def _image_field() -> gr.Image:
    """An image field that returns the path of the file, since Gradio fails to read damaged files."""
    field = gr.Image(
        label="Image",
        type="filepath",
        format="png",
        sources=["upload", "clipboard"],
        height=340,
        elem_id="image",
        buttons=[],
    )
    field.preprocess = _uploaded  # for a subclass, Gradio would write a stub file beside this one
    return field


class _Page:
    """The fields and their handlers. The state of a session is in its `gr.State`, not here."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter

    def lay_out(self, note: str, facts: str, examples: Sequence[Example]) -> None:
        """Place all fields, inside `gr.Blocks`."""
        gr.Markdown(INTRODUCTION)
        if note:
            gr.Markdown(note, elem_id="note")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                self._place_inputs(examples)
            with gr.Column(scale=3, min_width=320):
                self._place_results()
        self.figures = gr.Gallery(
            label="Explanations",
            visible=False,
            columns=1,
            object_fit="contain",
            format="png",
            buttons=["download", "fullscreen"],
            elem_id="figures",
        )
        score = score_note(self.segmenter.model, self.segmenter.processor)
        gr.Markdown(f"{score}\n\n{facts}\n\n{LIMITS}", elem_id="facts")
        self._connect()

    def _place_inputs(self, examples: Sequence[Example]) -> None:
        self.image = _image_field()
        self.text = gr.Textbox(
            label="Expressions, one per line",
            placeholder="the red circle\nthe object left of the white square",
            lines=4,
            max_lines=4,  # a growing field freezes the browser when a long text is pasted
            max_length=2 * MAX_EXPRESSIONS * MAX_LETTERS,
            elem_id="expressions",
        )
        self.explained = gr.Checkbox(
            label="Explain: show alignment and attention",
            visible=find_spec("matplotlib") is not None,  # which draws the figures
            elem_id="explain",
        )
        self.button = gr.Button("Segment", variant="primary", elem_id="segment")
        if examples:
            self._place_examples(examples)

    def _place_examples(self, examples: Sequence[Example]) -> None:
        gr.Examples(
            [list(example) for example in examples],
            [self.image, self.text],
            label="Examples, with expressions",
            visible_columns=[0],
            cache_examples=False,
            api_visibility="private",
            elem_id="examples",
        )

    def _place_results(self) -> None:
        self.status = gr.HTML(_status("Results appear here."), elem_id="status", label="Status", padding=False)
        self.asked = gr.State(None, time_to_live=KEPT_SECONDS)
        with gr.Column(visible=False, elem_id="results") as self.results:
            self.picture = gr.Image(
                label="Masks", format="png", interactive=False, elem_id="overlay", buttons=["fullscreen"]
            )
            self.table = gr.Dataframe(
                headers=list(COLUMNS),
                datatype="str",
                interactive=False,
                wrap=True,
                column_widths=[200, 70, 130, 130, 90, 130],  # on a phone, the table scrolls
                label="Scores",
                buttons=[],
                elem_id="table",
            )
            self.files = gr.File(
                label="Masks to download (PNG, white on the object)",
                file_count="multiple",
                interactive=False,
                elem_id="masks",
            )

    def _connect(self) -> None:
        shown: list[Component | gr.Column] = [self.status, self.results, self.picture, self.table, self.files]
        outputs = [*shown, self.figures, self.asked]
        one_at_a_time: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}  # there are few cores
        gr.on(
            [self.button.click, self.text.submit],
            self.answer,
            [self.image, self.text, self.explained],
            outputs,
            api_name="segment",
            scroll_to_output=True,
            **one_at_a_time,
        )
        self.explained.input(
            self.explain,
            [self.explained, self.asked],
            [self.status, self.figures],
            api_visibility="private",
            **one_at_a_time,
        )
        self.image.upload(self.check_upload, [self.image], [self.image, self.status], api_visibility="private")

    def answer(self, path: str | None, text: str | None, explained: bool) -> Iterator[list[Any]]:
        """Segment, and draw explanations; on an error, show it in the status line and remove old results."""
        start = time.perf_counter()
        hidden = gr.update(value=None, visible=False)
        try:
            image, expressions = read_image(path), read_expressions(text)
            found, explanations = self.segmenter.find(image, expressions, explained)
        except InputError as error:
            yield [_status(str(error), refused=True), gr.update(visible=False), None, None, None, hidden, None]
            return
        results = [draw(image, found), tabulate(found), self._save_masks(found)]
        count = "One expression" if len(found) == 1 else f"{len(found)} expressions"
        said = _status(f"{count} in {time.perf_counter() - start:.1f} seconds.")
        shown = [said, gr.update(visible=True), *results]
        yield [*shown, gr.update(value=None, visible=explained), (path, expressions)]
        if explained:
            yield [gr.skip()] * len(shown) + [_figures(explanations), gr.skip()]

    def explain(self, explained: bool, asked: Request | None) -> Iterator[list[Any]]:
        """Show or hide explanations of the current results, for which the model runs again."""
        if not explained or asked is None:
            yield [gr.skip(), gr.update(value=None, visible=False)]
            return
        yield [gr.skip(), gr.update(value=None, visible=True)]  # shows the progress
        path, expressions = asked
        try:
            _, explanations = self.segmenter.find(read_image(path), expressions, explained=True)
        except InputError as error:
            yield [_status(str(error), refused=True), gr.update(value=None, visible=False)]
            return
        yield [gr.skip(), _figures(explanations)]

    def check_upload(self, path: str | None) -> list[Any]:
        """Refuse a file that is not an image; convert an image that browsers cannot show."""
        try:
            image = read_image(path)
        except InputError as error:
            return [None, _status(str(error), refused=True)]
        shown = Path(path or "").suffix.lower() in SHOWN_BY_BROWSERS
        return [gr.skip() if shown else image, _status("Now describe an object, and press Segment.")]

    def _save_masks(self, found: Sequence[Found]) -> list[str]:
        """Write the masks to a folder with a random name in Gradio's cache, which serves and deletes them."""
        cache = Path(self.files.GRADIO_CACHE)
        cache.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=cache))
        paths = [folder / name for name in name_masks([entry.expression for entry in found])]
        for path, entry in zip(paths, found, strict=True):
            entry.mask.save(path)
        return [str(path) for path in paths]


def build_page(
    model: CrossVLTModel,
    processor: CrossVLTProcessor,
    *,
    facts: str = "",
    note: str = "",
    examples: Sequence[Example] = (),
) -> gr.Blocks:
    """Build the page, without serving it: see `serve`.

    Args:
        model: in eval mode, on its device.
        processor: of the model.
        facts: Markdown about the model, for the bottom of the page; see `describe`.
        note: Markdown about what the model knows, for the top; see `choose_note`.
        examples: paths of images, which are public, and their expressions, one per line.
    """
    gr.set_static_paths([str(Path(path).parent) for path, _ in examples])  # the cache would delete them
    with gr.Blocks(title="CrossVLT", analytics_enabled=False, delete_cache=(600, KEPT_SECONDS)) as page:
        _Page(Segmenter(model, processor)).lay_out(note, facts, examples)
    page.queue(max_size=WAITING, default_concurrency_limit=1)
    return page
