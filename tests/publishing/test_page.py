"""The page, used as a person uses it: a real server, and Chromium without a window."""

import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import tomllib
import zlib
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import urlopen

import numpy as np
import pytest
import yaml
from PIL import Image

from crossvlt_hf.cli import main
from crossvlt_hf.data.refshapes import make_scene
from crossvlt_hf.pipeline_crossvlt import ReferringImageSegmentationPipeline
from crossvlt_hf.processing_crossvlt import CrossVLTProcessor
from crossvlt_hf.training.build import refshapes_tokenizer
from crossvlt_hf.weights.checkpoint import DEFAULT_CHECKPOINT, load_checkpoint


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
OPTIONS += ["--disable-background-networking", "--disable-component-update"]
SPACE = Path(__file__).parents[2] / "examples" / "space"
ROWS = "#table [role=row]:has([role=gridcell])"
PATIENCE = 240_000  # milliseconds; the machine may be busy

pytestmark = [  # Gradio takes seconds to import, which only the process that runs these tests should spend
    pytest.mark.skipif(find_spec("gradio") is None, reason="needs Gradio: pip install '.[demo]'"),
    pytest.mark.skipif(find_spec("playwright") is None, reason="needs Playwright: pip install playwright"),
    pytest.mark.skipif(
        CHROMIUM is None, reason="needs Chromium: apt-get install chromium, or Google Chrome on the PATH"
    ),
]


# ---- the server and the browser


def start(arguments, folder: Path, **environment) -> tuple[subprocess.Popen, Path]:
    """A server in a process of its own, whose temporary files go into a folder."""
    log = folder / "log.txt"
    (folder / "tmp").mkdir(exist_ok=True)
    variables = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(folder / "tmp"), **environment}
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=os.environ | variables,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    return process, log


def wait_for_address(process: subprocess.Popen, log: Path) -> str:
    for _ in range(1500):
        if found := re.search(r"The page is at (http://\S+)", log.read_text()):
            return found[1]
        assert process.poll() is None, log.read_text()
        time.sleep(0.2)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address and log. Ctrl-C ends it, and leaves nothing that was uploaded or found."""
    folder = tmp_path_factory.mktemp("server")
    process, log = start(["-m", "crossvlt_hf", "demo", "--serve", "--port", "0"], folder)
    try:
        yield wait_for_address(process, log), log
        assert list((folder / "tmp").glob("crossvlt-page-*/files/*"))
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        assert list((folder / "tmp").glob("crossvlt-page-*")) == []
        assert len(log.read_text().splitlines()) == 1, log.read_text()
    finally:
        process.kill()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        program = tool.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield program
        program.close()


@pytest.fixture
def visit(server, browser):
    """Open the page as somebody new. At the end: no stack trace, no dialog, no request to another host."""
    address, log = server
    contexts, requests, dialogs = [], [], []

    def open_page(**options):
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: requests.append(request.url))
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.goto(address)
        page.get_by_text("Results appear here").wait_for()  # the last part that is drawn
        return page

    yield open_page
    for context in contexts:
        assert all("Traceback" not in page.content() for page in context.pages)
        context.close()
    hosts = {urlparse(url).netloc for url in requests if not url.startswith(("data:", "blob:"))}
    assert hosts == {urlparse(address).netloc}
    assert dialogs == []
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A drawn scene as a file, and two expressions."""
    examples = make_scene("test", 0, families=("attribute", "absolute"), side=240, seed=5)
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    Image.fromarray(examples[0].scene.image).save(path)
    return path, [example.expression for example in examples]


# ---- what a person does and sees


def expect(locator):
    """Playwright's assertions, which wait until the page is drawn."""
    from playwright.sync_api import expect

    expect.set_options(timeout=PATIENCE)
    return expect(locator)


def upload(page, path: Path) -> None:
    page.locator("#image input[type=file]").set_input_files(path)


def write(page, *expressions: str) -> None:
    page.get_by_label("Expressions").fill("\n".join(expressions))


def press(page) -> None:
    page.get_by_role("button", name="Segment").click()


def ask(page, path: Path, *expressions: str) -> None:
    upload(page, path)
    page.get_by_text("Now describe an object").wait_for()
    write(page, *expressions)
    press(page)
    page.get_by_text(re.compile(r"expressions? in \d+\.\d seconds")).wait_for()
    page.locator("#overlay img").wait_for()


def read_table(page, count: int) -> list[list[str]]:
    """The cells of each row, of as many results."""
    expect(page.locator(ROWS)).to_have_count(count)
    expect(page.locator("#masks a")).to_have_count(count)
    rows = page.locator(ROWS).all()
    return [[cell.inner_text().strip() for cell in row.locator("[role=gridcell]").all()] for row in rows]


def assert_refused(page, sentence: str) -> None:
    """The sentence is there, and no result."""
    page.get_by_role("alert").get_by_text(sentence).wait_for()
    expect(page.locator("#overlay")).not_to_be_visible()


@pytest.mark.slow
def test_two_expressions(visit, scene, tmp_path):
    path, expressions = scene
    page = visit()
    page.get_by_text("This model is small and knows few things").wait_for()
    expect(page.get_by_text("19.03 million parameters")).to_be_visible()
    ask(page, path, *expressions)
    expect(page.get_by_text("2 expressions in")).to_be_visible()

    model, processor = load_checkpoint(DEFAULT_CHECKPOINT)
    results = ReferringImageSegmentationPipeline(model=model, processor=processor)(str(path), text=expressions)
    rows = read_table(page, 2)
    assert [row[0] for row in rows] == expressions
    for number, (row, result) in enumerate(zip(rows, results, strict=True), start=1):
        assert 0.5 < float(row[1]) <= 1
        assert float(row[1]) == pytest.approx(result["score"], abs=0.006)
        assert row[2] == "{xmin}, {ymin} to {xmax}, {ymax}".format_map(result["box"])
        assert row[3].startswith(f"{result['mask'].histogram()[255]:,} px")
        assert 0 < float(row[4]) < 10
        name = f"{number}-{expressions[number - 1].replace(' ', '-')}.png"
        with page.expect_download() as download:
            page.locator("#masks a").nth(number - 1).click()
        assert download.value.suggested_filename == name
        download.value.save_as(tmp_path / name)
        with Image.open(tmp_path / name) as mask:
            assert mask.format == "PNG"
            assert np.array_equal(np.asarray(mask), np.asarray(result["mask"]))
    expect(page.locator("#figures")).not_to_be_visible()


@pytest.mark.slow
def test_explanation_on_and_off(visit, scene):
    pytest.importorskip("matplotlib", reason="explanations are drawn by matplotlib")
    path, expressions = scene
    page = visit()
    ask(page, path, expressions[0])
    toggle = page.get_by_label("Explain")
    toggle.check()
    page.locator("#figures img").first.wait_for()
    expect(page.locator("#figures img")).to_have_count(1)
    size = page.locator("#figures img").first.evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert min(size) > 300
    toggle.uncheck()
    page.locator("#figures").wait_for(state="hidden")
    expect(page.locator("#overlay img")).to_be_visible()

    toggle.check()
    page.locator("#figures img").first.wait_for()
    write(page, *expressions)
    press(page)  # with the toggle on, the new results are explained too
    page.get_by_text("2 expressions in").wait_for()
    expect(page.locator("#figures img")).to_have_count(2)


@pytest.mark.slow
def test_example_on_a_phone(visit):
    page = visit(viewport={"width": 400, "height": 800}, color_scheme="dark")
    page.locator("#examples img").nth(3).click()
    page.locator("#image img").wait_for()
    expect(page.get_by_label("Expressions")).to_have_value(re.compile("\n"))
    press(page)
    page.get_by_text("3 expressions in").wait_for()
    page.locator("#overlay img").wait_for()
    read_table(page, 3)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.slow
def test_what_one_sees_no_other_does(visit, scene):
    path, expressions = scene
    ask(visit(), path, expressions[0])
    other = visit()
    expect(other.get_by_text("Results appear here")).to_be_visible()
    expect(other.get_by_label("Expressions")).to_have_value("")
    expect(other.locator("#image img")).to_have_count(0)
    assert expressions[0] not in other.content()


def png(width: int, height: int) -> bytes:
    """A PNG that says it is so large, with hardly a pixel in it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


@pytest.mark.slow
def test_wrong_uploads(visit, scene, tmp_path):
    from crossvlt_hf.publishing.page import inputs

    path, expressions = scene
    page = visit()
    uploads = {  # two neighbours have two sentences, so that neither passes for the other
        "text.png": (b"no image at all", "cannot be read as an image"),
        "huge.png": (png(30_000, 30_000), "The image is too large"),
        "cut.png": (path.read_bytes()[:5000], "cannot be read as an image"),
        "large.png": (png(9_000, 9_000), "The image is too large"),
        "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "cannot be read"),
    }
    for name, (content, sentence) in uploads.items():
        (tmp_path / name).write_bytes(content)
        upload(page, tmp_path / name)
        assert_refused(page, sentence)
        page.locator("#image input[type=file]").wait_for(state="attached")  # empty again
    for name, content, sentence in [
        ("notes.txt", b"hello", "Only image/* allowed"),
        ("heavy.png", bytes(inputs.MAX_UPLOAD + 1), "exceed the maximum allowed size"),
    ]:
        (tmp_path / name).write_bytes(content)
        upload(page, tmp_path / name)
        page.get_by_text(sentence).wait_for()
    write(page, expressions[0])
    press(page)
    assert_refused(page, "There is no image yet")
    ask(page, path, expressions[0])  # the server lives on
    read_table(page, 1)


@pytest.mark.slow
def test_thousands_of_lines(visit, scene):
    page = visit()
    upload(page, scene[0])
    page.get_by_text("Now describe an object").wait_for()
    page.get_by_label("Expressions").focus()
    page.keyboard.insert_text("the red circle\n" * 5000)  # as a paste, of which the field takes what is allowed
    press(page)
    assert_refused(page, "expressions; the limit is 8.")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "no expression"),
        ("the red circle\n" * 5000, "There are 5,000 expressions; the limit is 8"),
        ("\n" + "x" * 10**6, "Line 2 has 1,000,000 characters"),
        ("the \udc00 circle", "Line 1 is not valid text"),
        ("\u200b\n \x01\n", "no expression yet"),
    ],
)
def test_expressions_past_the_browser(text, sentence):
    from crossvlt_hf.publishing.page import inputs

    with pytest.raises(inputs.InputError, match=sentence):
        inputs.read_expressions(text)


def test_an_expression_of_which_nothing_is_read(model, processor, photo):
    from crossvlt_hf.publishing.page import answers, inputs

    segmenter = answers.Segmenter(model, processor)
    with pytest.raises(inputs.InputError, match="The model knows no word of one of the expressions"):
        segmenter.find(photo, ["the cup", "\ufffd"])
    assert answers.tabulate(segmenter.find(photo, ["..."])[0])[0][-1] == "..."


def test_an_image_of_16_bits_past_the_browser(tmp_path):
    from crossvlt_hf.publishing.page import inputs

    path = tmp_path / "deep.png"
    Image.fromarray(np.arange(48, dtype=np.uint16).reshape(6, 8)).save(path)
    with pytest.raises(inputs.InputError, match="16 bits, but holds an image of 8 bits"):
        inputs.read_image(str(path))


@pytest.mark.slow
def test_wrong_expressions(visit, scene):
    path, expressions = scene
    page = visit()
    ask(page, path, expressions[0])
    wrong = {
        "": "There is no expression yet",
        "the red circle\n" * 9: "There are 9 expressions; the limit is 8.",
        " \n \n": "There is no expression yet",
        "the circle\n" + "very " * 200 + "red": "Line 2 has 1,003 characters; the limit is 300.",
    }
    for text, sentence in wrong.items():
        write(page, text)
        press(page)
        assert_refused(page, sentence)
    write(page, "", expressions[0], "", expressions[1])  # empty lines do no harm
    press(page)
    page.get_by_text("2 expressions in").wait_for()
    page.locator("#overlay img").wait_for()
    assert [row[0] for row in read_table(page, 2)] == expressions


HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "<script>alert(1)</script> **bold**",
    "</textarea><svg onload=alert(1)>",
    "{{7*7}} ${7*7} $$x^2$$",
    "../../etc/passwd",
]


@pytest.mark.slow
def test_hostile_expressions_stay_text(visit, scene):
    page = visit()
    ask(page, scene[0], *HOSTILE)
    assert [row[0] for row in read_table(page, len(HOSTILE))] == HOSTILE
    if page.get_by_label("Explain").is_visible():
        page.get_by_label("Explain").check()
        expect(page.locator("#figures img")).to_have_count(len(HOSTILE))
    elements = "img[src$='/x'], img[src='x'], a[href^='javascript'], #table strong, #table .katex, main script"
    expect(page.locator(elements)).to_have_count(0)
    names = [link.get_attribute("download") for link in page.locator("#masks a").all()]
    assert len(names) == len(HOSTILE)
    assert all(re.fullmatch(r"\d-[a-z0-9-]+\.png", name) for name in names)


# ---- without a browser


@pytest.mark.slow
def test_the_page_is_found_under_its_old_name():
    """Though its functions are imported at their first use."""
    from crossvlt_hf.publishing import page

    with pytest.warns(FutureWarning, match=r"is now `crossvlt_hf\.publishing\.page`"):
        from crossvlt_hf.page import build_page, serve
    assert (build_page, serve) == (page.build_page, page.serve)


@pytest.mark.slow
def test_other_models_are_not_called_models_of_drawn_shapes(model, processor):
    from crossvlt_hf.publishing.page import about, build_page

    assert not about.knows_only_drawn_shapes(processor)
    facts = about.describe(model, processor, "me/my`model")
    assert "`me/mymodel`" in facts
    page = build_page(model, processor, facts=facts)
    shown = json.dumps(page.get_config_file(), default=str)
    assert "me/mymodel" in shown
    assert "RefShapes" not in shown
    assert "photograph" not in shown


def test_the_built_in_one_is_called_what_it_is(tmp_path):
    """With photographs and drawn scenes as examples; a model of drawn shapes only has no photographs."""
    from crossvlt_hf.publishing.page import about

    model, processor = load_checkpoint(DEFAULT_CHECKPOINT)
    for source in (None, "built-in", DEFAULT_CHECKPOINT):
        assert "Cups, dogs and cats were rare" in about.choose_note(processor, source)
        assert "photographs, compositions of them and RefShapes" in about.describe(model, processor, source)
    examples = about.make_examples(processor, "built-in", tmp_path / "both")
    assert [Path(path).name for path, _ in examples[:3]] == ["astronaut.jpg", "coffee.jpg", "scene-1.png"]
    assert examples[0][1] == "the person\nthe hair"
    assert about.make_examples(processor, "me/mine", tmp_path / "none") == []
    drawn = CrossVLTProcessor.from_tokenizer(refshapes_tokenizer(), image_size=64)
    assert "has never seen a photograph" in about.choose_note(drawn, "me/shapes")
    shown = about.make_examples(drawn, "me/shapes", tmp_path / "drawn")
    assert Path(shown[0][0]).name == "scene-1.png"


@pytest.mark.parametrize(("languages", "article"), [(["en"], "the"), (["de"], "d(er|ie|as)"), (["en", "de"], "the")])
def test_drawn_examples_are_in_a_language_of_the_model(languages, article, tmp_path):
    from crossvlt_hf.publishing.page import about

    processor = CrossVLTProcessor.from_tokenizer(refshapes_tokenizer(languages), image_size=64)
    assert about.knows_only_drawn_shapes(processor)
    (_, expressions), *_ = about.make_examples(processor, "me/shapes", tmp_path / "drawn")
    assert all(re.match(article, line) for line in expressions.splitlines())


def test_large_photo(model, processor, photo):
    """It is shown smaller, and its mask is as large as itself."""
    from crossvlt_hf.publishing.page import answers

    large = photo.resize((2600, 900))
    found, _ = answers.Segmenter(model, processor).find(large, ["the cup", "the spoon"])
    assert [entry.mask.size for entry in found] == [large.size] * 2
    assert answers.draw(large, found).width == answers.SHOWN_SIDE
    assert [row[0] for row in answers.tabulate(found)] == ["the cup", "the spoon"]


@pytest.mark.slow
def test_masks_and_explanations_take_one_forward_pass(model, processor, photo, tmp_path):
    """Those that are asked for later take another one."""
    from crossvlt_hf.publishing.page import answers, layout

    pytest.importorskip("matplotlib", reason="explanations are drawn by matplotlib")
    photo.save(tmp_path / "photo.png")
    passes = []
    hook = model.register_forward_hook(lambda module, arguments, output: passes.append(len(output.logits)))
    try:
        segmenter = answers.Segmenter(model, processor)
        page = layout.build_page(model, processor)
        answer, explain = (
            next(each.fn for each in page.fns.values() if getattr(each.fn, "__name__", "") == name)
            for name in ("answer", "explain")
        )
        for explained in (False, True):
            passes.clear()
            found, explanations = segmenter.find(photo, ["the cup", "the spoon"], explained)
            assert (passes, len(found), len(explanations)) == ([2], 2, 2 * explained)
            passes.clear()
            *_, last = answer(str(tmp_path / "photo.png"), "the cup\nthe spoon", explained)
            assert passes == [2]
            figures = last[-2]
            assert figures["visible"] is explained
            assert [text for _, text in figures["value"] or []] == ["the cup", "the spoon"] * explained
        passes.clear()
        *_, last = explain(True, (str(tmp_path / "photo.png"), ["the cup"]))
        assert (passes, len(last[-1]["value"])) == ([1], 1)
    finally:
        hook.remove()


def test_nothing_found():
    from crossvlt_hf.publishing.page import answers

    found = answers.Found("the cup", 0.0, None, Image.new("L", (8, 6)), 0.25)
    assert answers.tabulate([found]) == [["the cup", "0.00", "nothing found", "0 px (0.0%)", "0.25", ""]]
    rows = answers.tabulate([found._replace(presence=presence) for presence in (0.1, 0.49, 0.5, 0.9)])
    assert [row[2] for row in rows] == ["no target (90% sure)", "no target (51% sure)", *["nothing found"] * 2]


# ---- the command and the Space


@pytest.mark.slow
def test_port_that_is_taken(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["demo", "--serve", "--port", port]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith(f"crossvlt: Cannot listen on 127.0.0.1:{port} (")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--port", "70000"], "`--port` must be an integer from 0 to 65535, got 70000"),
        (["--port", "0", "--host", "no.such.host.invalid"], "Cannot listen on no.such.host.invalid:0"),
        (["--port", "0", "--model", "missing"], "no checkpoint folder missing"),
        (["--port", "0", "--device", "nope"], "`--device` must be one such as"),
    ],
)
def test_options_that_cannot_be_served(capsys, options, sentence):
    assert main(["demo", "--serve", *options]) == 2
    errors = capsys.readouterr().err
    assert sentence in errors
    assert errors.count("\n") == 1


@pytest.mark.slow
def test_space_answers(tmp_path):
    shutil.copy(SPACE / "app.py", tmp_path)
    process, log = start([str(tmp_path / "app.py")], tmp_path, GRADIO_SERVER_PORT="7913", MODEL="")
    try:
        with urlopen(wait_for_address(process, log), timeout=60) as response:
            page = response.read().decode()
        assert "This model is small and knows few things" in page
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        assert list((tmp_path / "tmp").glob("crossvlt-page-*")) == []
    finally:
        process.kill()


def test_front_matter_of_the_space():
    import gradio

    _, front, _ = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    values = yaml.safe_load(front)
    assert (values["sdk"], values["app_file"], values["license"]) == ("gradio", "app.py", "apache-2.0")
    assert values["sdk_version"].split(".")[0] == gradio.__version__.split(".")[0]
    assert len(values["short_description"]) <= 60
    assert values["suggested_hardware"] == "cpu-basic"
    assert values["python_version"] >= "3.11"


@pytest.mark.slow
def test_requirements_of_the_space():
    """It has what the package needs, since that lies beside it without having been installed."""
    project = tomllib.loads((SPACE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {*project["dependencies"], *project["optional-dependencies"]["plot"]}
    assert needed <= set((SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines())
