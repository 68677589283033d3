"""The command `crossvlt`: what it writes and prints, and that wrong input is told in one line."""

import base64
import io
import json
import logging
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from conftest import WORDS, tiny_config, tiny_tokenizer
from huggingface_hub.utils import logging as hub_logging
from parity.fill import fill_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.modules.module import register_module_forward_hook
from transformers import BertTokenizer
from transformers.utils import logging as transformers_logging

from crossvlt_hf import CrossVLTModel, CrossVLTProcessor
from crossvlt_hf.cli import COMMANDS, main, predict, read_options, refer, refshapes
from crossvlt_hf.cli.benchmark import Benchmark
from crossvlt_hf.cli.common import as_options
from crossvlt_hf.cli.evaluate import Evaluate
from crossvlt_hf.cli.export import Export
from crossvlt_hf.cli.outputs import EARLIER, check_replaceable, make_room, save_picture, save_report
from crossvlt_hf.cli.refer import Refer
from crossvlt_hf.cli.segment import Segment
from crossvlt_hf.cli.train import Train
from crossvlt_hf.data.objects.read import detect_form
from crossvlt_hf.data.readable import ON_ERROR
from crossvlt_hf.data.refshapes import LANGUAGES
from crossvlt_hf.prediction.shards import FORMATS
from crossvlt_hf.processing_crossvlt import find_parts
from crossvlt_hf.publishing.formats import FILES
from crossvlt_hf.system import can_only_be_a_path, install_command


ROOT = Path(__file__).parents[2]
KEYS = ["expression", "score", "box", "area", "seconds", "mask", "text_read", "unknown_words"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Work in an empty folder, and give the libraries their voice back afterwards."""
    monkeypatch.chdir(tmp_path)
    levels = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
    progress_bars = transformers_logging.is_progress_bar_enabled()
    yield
    transformers_logging.set_verbosity(levels[0])
    hub_logging.set_verbosity(levels[1])
    if progress_bars:
        transformers_logging.enable_progress_bar()


@pytest.fixture(scope="module")
def _saved(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved")
    CrossVLTModel(tiny_config()).save_pretrained(folder)
    CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), image_size=64, max_length=9).save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(tmp_path, _saved) -> Path:
    """A copy that may be damaged: to copy is faster than to save."""
    return Path(shutil.copytree(_saved, tmp_path / "checkpoint"))


@pytest.fixture
def photo_file(tmp_path, photo) -> Path:
    photo.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


class Stderr(logging.Handler):
    """What the libraries would log to stderr, which no capturing sees."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{record.getMessage()}\n")


def run(capsys, *arguments) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of the command, in this process."""
    capsys.readouterr()
    handler = Stderr()
    transformers_logging.add_handler(handler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            code = main([str(argument) for argument in arguments])
        finally:
            transformers_logging.remove_handler(handler)
    output, errors = capsys.readouterr()
    silent = (
        DeprecationWarning,
        PendingDeprecationWarning,
        ImportWarning,
        ResourceWarning,
    )  # Python shows none of these
    errors += "".join(f"{warning.message}\n" for warning in caught if not issubclass(warning.category, silent))
    return code, output, errors


def refusal(capsys, *arguments) -> str:
    """The one line with which wrong input is refused."""
    code, output, errors = run(capsys, *arguments)
    assert_one_line(code, output, errors)
    return errors


def assert_one_line(code: int, output: str, errors: str) -> None:
    assert code == 2
    assert output == ""
    assert errors.startswith("crossvlt: ")
    assert errors.count("\n") == 1
    assert errors.endswith("\n")
    assert len(errors) > 20
    assert errors.rstrip("\n").isprintable()
    assert "Traceback" not in errors


def segmented(capsys, *arguments) -> list[dict]:
    """The JSON lines of a run that works."""
    code, output, errors = run(capsys, "segment", *arguments)
    notes = [line for line in errors.splitlines() if not line.startswith("Warning: ")]
    assert (code, len(notes)) == (0, 1), errors
    lines = [json.loads(line) for line in output.rstrip("\n").split("\n")]
    assert all(list(line) == KEYS for line in lines)
    return lines


def assert_line(line: dict, expression: str, size: tuple[int, int]) -> None:
    assert line["expression"] == expression
    assert 0 <= line["score"] <= 1
    assert line["seconds"] >= 0
    mask = Image.open(line["mask"])
    assert (mask.mode, mask.size, mask.format) == ("L", size, "PNG")
    assert mask.histogram()[0] + mask.histogram()[255] == size[0] * size[1]
    assert line["area"] == mask.histogram()[255]
    box = mask.getbbox()
    assert line["box"] == (box and dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)))


# ---- segment


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_segment(tmp_path, capsys, checkpoint, photo, suffix):
    photo.save(tmp_path / f"My photo.{suffix}")
    expressions = ["the red cup", "a man"]
    lines = segmented(capsys, f"My photo.{suffix}", *expressions, "--model", checkpoint, "--output", "made/here")
    for line, expression in zip(lines, expressions, strict=True):
        assert_line(line, expression, photo.size)
    names = ["my-photo-1-the-red-cup.png", "my-photo-2-a-man.png", "my-photo-overlay.png"]
    assert sorted(file.name for file in Path("made/here").iterdir()) == names
    overlay = Image.open("made/here/my-photo-overlay.png")
    assert overlay.mode == "RGB"
    assert overlay.width >= photo.width


def test_largest_part(tmp_path, capsys, checkpoint, photo_file):
    command = (photo_file, "the red cup", "a man", "--model", checkpoint)
    free = segmented(capsys, *command, "--output", "all")
    code, output, errors = run(capsys, "segment", *command, "--output", "largest", "--largest-part")
    assert code == 0, errors
    for before, after in zip(free, map(json.loads, output.splitlines()), strict=True):
        mask, kept = (np.asarray(Image.open(line["mask"])) > 0 for line in (before, after))
        largest, parts = find_parts(torch.tensor(mask))
        np.testing.assert_array_equal(kept, largest)
        assert (after["parts"], after["area"]) == (parts, int(kept.sum()))


def test_files_of_other_images_are_kept(capsys, checkpoint, photo_file):
    """A rerun replaces its files; those of another image of that name, and of others, stay."""
    segmented(capsys, photo_file, "the cup", "--model", checkpoint)
    files = {path: path.read_bytes() for path in Path("crossvlt-output").iterdir()}
    assert len(files) == 2
    segmented(capsys, photo_file, "the cup", "the bus", "--model", checkpoint)
    Path("other").mkdir()
    Image.new("RGB", (30, 20), "red").save("other/photo.png")
    said = refusal(capsys, "segment", "other/photo.png", "the cup", "--model", checkpoint)
    assert (
        "photo-1-the-cup.png exists, and does not say that it is an earlier mask of the same image and expression"
        in said
    )
    said = refusal(capsys, "segment", "other/photo.png", "the car", "--model", checkpoint)
    assert "photo-overlay.png exists, and does not say that it is an earlier overlay of the same image" in said
    said = refusal(capsys, "segment", photo_file, "The Cup!", "--model", checkpoint)
    assert "not say that it is an earlier mask of the same image and expression" in said
    mask = Path("crossvlt-output/photo-1-the-cup.png")
    assert mask.read_bytes() == files[mask]
    Path("crossvlt-output/photo-3-the-car.png").write_bytes(b"mine")
    refusal(capsys, "segment", photo_file, "the cup", "the bus", "the car", "--model", checkpoint)
    assert Path("crossvlt-output/photo-3-the-car.png").read_bytes() == b"mine"
    segmented(capsys, "other/photo.png", "the cup", "--model", checkpoint, "--output", "more")


def test_default_output(capsys, checkpoint, photo_file):
    (line,) = segmented(capsys, photo_file, "the cup", "--model", checkpoint)
    assert Path(line["mask"]) == Path("crossvlt-output/photo-1-the-cup.png")
    assert Path("crossvlt-output/photo-overlay.png").is_file()


def test_output_is_what_the_model_says(capsys, checkpoint, photo_file, photo):
    (line,) = segmented(capsys, photo_file, "the red bus", "--model", checkpoint)
    model, processor = CrossVLTModel.from_pretrained(checkpoint), CrossVLTProcessor.from_pretrained(checkpoint)
    inputs = processor(photo, ["the red bus"], return_tensors="pt")
    with torch.no_grad():
        outputs = model(**{name: value for name, value in inputs.items() if name != "original_sizes"})
    (result,) = processor.post_process_masks(outputs, inputs["original_sizes"])
    assert (line["score"], line["area"]) == (round(result["score"], 4), int(result["mask"].sum()))


def test_upright(capsys, checkpoint, photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save("turned.jpg", exif=exif)
    (line,) = segmented(capsys, "turned.jpg", "the cup", "--model", checkpoint)
    assert_line(line, "the cup", (photo.height, photo.width))


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1)], ids=str)
def test_thin_image(capsys, checkpoint, size):
    Image.new("RGB", size).save("thin.png")
    (line,) = segmented(capsys, "thin.png", "the cup", "--model", checkpoint)
    assert_line(line, "the cup", size)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype(capsys, checkpoint, photo_file, photo, dtype):
    (line,) = segmented(capsys, photo_file, "the cup", "--model", checkpoint, "--dtype", dtype, "--device", "cpu")
    assert_line(line, "the cup", photo.size)


def test_threshold(capsys, checkpoint, photo_file):
    areas = [
        segmented(capsys, photo_file, "the cup", "--model", checkpoint, *options)[0]["area"]
        for options in (["--threshold", "1e-9"], ["--threshold", "0.5"], [], ["--threshold", "0.999999"])
    ]
    assert areas[0] == 80 * 60
    assert areas[1] == areas[2]
    assert areas[3] == 0


def test_same_expression_twice(capsys, checkpoint, photo_file):
    lines = segmented(capsys, photo_file, *["the cup"] * 3, "the  CUP!", "--model", checkpoint)
    assert len({line["mask"] for line in lines}) == 4
    assert len({Path(line["mask"]).read_bytes() for line in lines[:3]}) == 1
    assert {line["area"] for line in lines[:3]} == {lines[0]["area"]}


STRANGE = [
    "../../etc/passwd",
    "/etc/passwd",
    "a/../b\\c",
    "..",
    ".",
    "",  # replaced below by what is not empty but has no letters
    'the "red" cup\'s `handle` $HOME; rm -rf * | x & y > z',
    "🥄",
    "la tasse à café",
    "左边的杯子" * 20,
    "two\nlines\tand\x1b[31m colour\x00",
    "con",
    "the cup " * 63,
    "x" * 500,
    "\u202egnp.exe",
    "[PAD] [CLS] [MASK]",
    "%s %d {0} {x}",
]


def test_strange_expressions(tmp_path, capsys, checkpoint, photo_file, photo):
    strange = [expression or "?!" for expression in STRANGE]
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    lines = segmented(capsys, photo_file, "--model", checkpoint, "--output", "masks", *strange)
    for line, expression in zip(lines, strange, strict=True):
        assert_line(line, expression, photo.size)
        name = Path(line["mask"]).name
        assert len(name.encode()) <= 255
        assert not set(name) & set('/\\:*?"<>|\x00\n')
        assert name.isprintable()
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert new == {tmp_path / line["mask"] for line in lines} | {tmp_path / "masks" / "photo-overlay.png"}


@pytest.mark.parametrize(("expression", "named"), [("...", "'...'"), ("🥄", "'🥄'"), ("xyzzy", "'xyzzy'")])
def test_an_expression_of_which_nothing_is_known(capsys, checkpoint, photo_file, expression, named):
    code, output, error = run(capsys, "segment", photo_file, expression, "--model", checkpoint)
    assert code == 0
    assert f"does not know {named}, nor any other part of it" in error
    assert json.loads(output)["unknown_words"] == [expression]


def test_long_names_of_wide_letters(capsys, checkpoint, photo):
    """Four bytes each: a name has room for 63 of them."""
    photo.save("𞤀" * 60 + ".png")
    (line,) = segmented(capsys, "𞤀" * 60 + ".png", "𞤀" * 100, "--model", checkpoint)
    assert_line(line, "𞤀" * 100, photo.size)


def test_image_is_not_overwritten(capsys, checkpoint, photo):
    path = Path("p" * 40 + "-overlay.png")
    photo.save(path)
    before = path.read_bytes()
    run(capsys, "segment", path, "the cup", "--model", checkpoint, "--output", ".")
    assert path.read_bytes() == before


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_stdout_that_is_not_utf8(monkeypatch, checkpoint, photo_file, encoding):
    """As on Windows, when a program reads what is printed."""
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    assert main(["segment", str(photo_file), "the cup 🥄", "--model", str(checkpoint)]) == 0
    stdout.flush()
    assert json.loads(stdout.buffer.getvalue().decode(encoding))["expression"] == "the cup 🥄"


def test_data_url(capsys, checkpoint, photo_file, photo):
    url = "data:image/png;base64," + base64.b64encode(photo_file.read_bytes()).decode()
    (line,) = segmented(capsys, url, "the cup", "--model", checkpoint)
    assert_line(line, "the cup", photo.size)


# ---- segment --explain


@pytest.fixture
def _matplotlib():
    pytest.importorskip("matplotlib")


def explained(capsys, *arguments) -> list[dict]:
    """The JSON lines of a run that writes figures."""
    code, output, errors = run(capsys, "segment", *arguments)
    notes = [line for line in errors.splitlines() if not line.startswith("Warning: ")]
    assert (code, len(notes)) == (0, 1), errors
    lines = [json.loads(line) for line in output.rstrip("\n").split("\n")]
    assert all(list(line) == [*KEYS, "explanation"] for line in lines)
    return lines


@pytest.mark.usefixtures("_matplotlib")
def test_explain(capsys, checkpoint, photo_file, photo):
    expressions = ["the red cup", "cost: $5"]
    lines = explained(capsys, photo_file, *expressions, "--model", checkpoint, "--output", "made", "--explain")
    names = ["photo-1-the-red-cup-explanation.png", "photo-2-cost-5-explanation.png"]
    for line, expression, name in zip(lines, expressions, names, strict=True):
        assert_line(line, expression, photo.size)
        assert Path(line["explanation"]) == Path("made") / name
        figure = Image.open(line["explanation"])
        assert (figure.mode, figure.format) == ("RGB", "PNG")
        assert min(figure.size) > 800
    assert len(list(Path("made").iterdir())) == 5


@pytest.mark.usefixtures("_matplotlib")
@contextmanager
def counted_passes() -> Iterator[list[int]]:
    """How many pairs go through a whole model in each forward pass."""
    passes = []

    def count(module, arguments, output) -> None:
        if isinstance(module, CrossVLTModel):
            passes.append(len(output.logits))

    hook = register_module_forward_hook(count)
    try:
        yield passes
    finally:
        hook.remove()


@pytest.mark.parametrize("explain", [[], ["--explain"]])
def test_all_expressions_and_explanations_take_one_forward_pass(capsys, checkpoint, photo_file, explain):
    if explain:
        pytest.importorskip("matplotlib", reason="explanations are drawn by matplotlib")
    cases = {1: [1], 3: [3], 9: [8, 1]}  # 8 expressions of an image at a time
    for number, passes in cases.items() if not explain else [(3, cases[3])]:  # a figure takes a second
        expressions = ["the cup", "the spoon", "the red cup"] * (number // 3) or ["the cup"]
        with counted_passes() as counted:
            code, output, _ = run(capsys, "segment", photo_file, *expressions, "--model", checkpoint, *explain)
        assert (code, output.count("\n")) == (0, number)
        assert counted == passes


@pytest.mark.slow
def test_explain_a_word_and_a_pixel(capsys, checkpoint, photo_file):
    """Each asks for the figure by itself, and changes it."""
    options = [["--explain"], ["--explain-word", "the"], ["--explain-pixel", "79,59"]]
    figures = []
    for number, asked in enumerate(options):
        (line,) = explained(capsys, photo_file, "the cup", "--model", checkpoint, "--output", f"{number}", *asked)
        figures.append(Path(line["explanation"]).read_bytes())
    assert len(set(figures)) == 3


@pytest.mark.usefixtures("_matplotlib")
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--explain-word", "spoon", "must be one of those in the input ([CLS] the cup [SEP]), got 'spoon'"),
        ("--explain-word", "", "`--explain-word` must not be empty"),
        ("--explain-pixel", "80,0", "in an image of 80x60 (width x height), got (80, 0)"),
        ("--explain-pixel", "0,60", "(0, 60)"),
        ("--explain-pixel", "-1,0", "`--explain-pixel` must be X,Y in pixels"),
        ("--explain-pixel", "1.5,0", "such as 120,80"),
        ("--explain-pixel", "7", "got '7'"),
    ],
)
def test_explain_refuses_in_one_line(capsys, checkpoint, photo_file, option, value, message):
    """Before the first expression is segmented, also where it is the second that lacks the word."""
    said = ["the spoon", "the cup"] if value else ["the cup"]
    errors = refusal(capsys, "segment", photo_file, *said, "--model", checkpoint, f"{option}={value}", "--output", "x")
    assert message in errors
    assert not Path("x").exists()


def test_explain_needs_matplotlib(monkeypatch, capsys, checkpoint, photo_file):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    errors = refusal(capsys, "segment", photo_file, "the cup", "--model", checkpoint, "--explain")
    assert f"This needs matplotlib: {install_command('plot')}\n" in errors


@pytest.mark.usefixtures("_matplotlib")
def test_explain_does_not_overwrite_the_image(capsys, checkpoint, photo):
    path = Path("p" * 40 + "-1-the-cup-explanation.png")
    photo.save(path)
    command = ["segment", path, "the cup", "--model", checkpoint, "--output", "."]
    assert "would overwrite" in refusal(capsys, *command, "--explain")
    assert run(capsys, *command)[0] == 0  # without the figure nothing has that name


# ---- evaluate --gallery


@pytest.mark.usefixtures("_matplotlib")
def test_gallery(capsys, checkpoint):
    options = ["--data", "refshapes", "--split", "test", "--option", "scenes=6", "--option", "side=32"]
    command = ["evaluate", "--model", checkpoint, *options, "--device", "cpu", "--gallery"]
    code, output, errors = run(capsys, *command, "deep/sheet.png")
    assert code == 0, errors
    assert "The gallery is in deep/sheet.png" in errors
    assert output.startswith("| checkpoint, data | samples |")
    assert min(Image.open("deep/sheet.png").size) > 500
    assert "must be a file name that ends in .png" in refusal(capsys, *command, "sheet.gif")


# ---- wrong input


@pytest.mark.parametrize("content", [b"hello\n", b"", b"<svg></svg>", None], ids=["text", "empty", "svg", "half"])
def test_not_an_image(capsys, checkpoint, photo_file, content):
    content = photo_file.read_bytes()[:500] if content is None else content
    photo_file.write_bytes(content)
    assert "photo.png" in refusal(capsys, "segment", photo_file, "the cup", "--model", checkpoint)


@pytest.mark.parametrize(
    "name", ["missing.png", "missing/photo.png", ".", "", "x" * 300, "ftp://x/photo.png", "data:x"]
)
def test_no_image(capsys, checkpoint, name):
    refusal(capsys, "segment", name, "the cup", "--model", checkpoint)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/photo.png", "http://", "https://[/x.png"])
def test_no_image_at_url(monkeypatch, capsys, checkpoint, url):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    refusal(capsys, "segment", url, "the cup", "--model", checkpoint)


@pytest.mark.parametrize("expression", ["", "\t\n", "\u200b", "\ufffd", "the cup \udcff"], ids=ascii)
@pytest.mark.parametrize("before", [[], ["the cup"]], ids=["alone", "second"])
def test_wrong_expression(capsys, checkpoint, photo_file, expression, before):
    """`\\udcff` is how Python passes on what a terminal sends that is not UTF-8."""
    refusal(capsys, "segment", photo_file, *before, expression, "--model", checkpoint, "--output", "masks")
    assert not list(Path().glob("masks/*"))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--threshold", value) for value in ("0", "1", "-1", "nan")),
        *(("--device", value) for value in ("", "nonsense", "cuda:99", "cpu:-1", "meta", "hpu", "privateuseone")),
    ],
)
def test_wrong_option(capsys, checkpoint, photo_file, option, value):
    refusal(capsys, "segment", photo_file, "the cup", "--model", checkpoint, f"{option}={value}")


@pytest.mark.parametrize("output", ["photo.png", "photo.png/deeper", "x" * 300])
def test_wrong_output(capsys, checkpoint, photo_file, output):
    before = photo_file.read_bytes()
    refusal(capsys, "segment", photo_file, "the cup", "--model", checkpoint, "--output", output)
    assert photo_file.read_bytes() == before


def test_a_file_stands_where_a_folder_is_needed(capsys, checkpoint, photo_file):
    for command in (
        ("segment", photo_file, "the cup", "--model", checkpoint, "--output", photo_file),
        (
            "evaluate",
            "--model",
            checkpoint,
            "--data",
            "refshapes",
            "--split",
            "test",
            "--output",
            f"{photo_file}/x.json",
        ),
        ("demo", "--model", checkpoint, "--output", f"{photo_file}/deeper/x.png"),
        ("train", "refshapes-64", f"output.folder={photo_file}/run"),
    ):
        assert f"{photo_file} is a file, where a folder is needed" in refusal(capsys, *command)


def test_missing_files_are_told_with_what_is_likely_meant(capsys, photo_file):
    told = {
        ("the cup", photo_file): f"the cup; the image comes first, as in `crossvlt segment {photo_file} TEXT`",
        ("missing.png", "the cup"): "missing.png; check its path",
    }
    for arguments, end in told.items():
        assert refusal(capsys, "segment", *arguments) == f"crossvlt: There is no image file {end}.\n"
    line = refusal(capsys, "segment", photo_file, "the cup", "--output", "new/mask.PNG")
    assert "`--output` must be a folder for the masks, got 'new/mask.PNG'." in line
    assert not Path("new").exists()


def test_words_without_quotes_are_noticed(capsys, checkpoint, photo_file):
    noticed = {
        ("the", "red", "cup"): 1,
        ("the", "cup"): 1,
        ("cup", "spoon", "plate"): 0,
        ("the cup", "a"): 0,
        ("the",): 0,
    }
    for expressions, count in noticed.items():
        code, _, errors = run(capsys, "segment", photo_file, *expressions, "--model", checkpoint)
        assert code == 0
        assert (
            errors.count(f"put quotes around an expression of several words, such as {' '.join(expressions)!r}.")
            == count
        )


def test_a_similar_name_of_an_image_is_still_told(capsys, checkpoint, photo_file):
    shouted = photo_file.with_name(photo_file.name.upper())
    if not shouted.exists():  # on file systems that keep case apart
        assert f"did you mean {photo_file}?" in refusal(capsys, "segment", shouted, "the cup", "--model", checkpoint)


def test_a_similar_path_of_an_image_is_still_told(capsys, checkpoint, photo_file):
    shouted = Path("PHOTOS") / photo_file.name
    Path("photos").mkdir()
    shutil.copy(photo_file, "photos")
    if not shouted.exists():
        line = refusal(capsys, "segment", shouted, "the cup", "--model", checkpoint)
        assert f"did you mean {Path('photos') / photo_file.name}?" in line


def test_a_folder_is_no_file(capsys):
    Path("here").mkdir()
    for arguments in (
        ["publish", "name/checkpoint", "name/model", "--results", "here"],
        ["publish", "name/checkpoint", "name/model", "--about", "here"],
        ["train", "refcoco", "--accelerate-config", "here"],
    ):
        assert refusal(capsys, *arguments) == "crossvlt: here is a folder; give the name of a file.\n"


def test_a_link_to_nothing_is_told(capsys):
    Path("link.png").symlink_to("nowhere.png")
    said = refusal(capsys, "segment", "link.png", "the cup")
    assert "link.png is a link to nowhere.png, which is not there." in said


@pytest.mark.parametrize("source", ["hf://datasets/user/data", "buckets/user/data"])
def test_addresses_on_the_hub_are_no_paths(source):
    assert not can_only_be_a_path(source)
    assert can_only_be_a_path(".hidden/data")
    assert detect_form(source) == "hub"


def test_a_folder_is_no_image_and_no_configuration(capsys, checkpoint):
    Path("photos").mkdir()
    assert "crossvlt predict photos --expression TEXT" in refusal(
        capsys, "segment", "photos", "the cup", "--model", checkpoint
    )
    assert "photos is a folder; a configuration is a YAML file" in refusal(capsys, "train", "photos")


def test_mask_cannot_be_written(capsys, checkpoint, photo_file):
    Path("masks/photo-1-the-cup.png").mkdir(parents=True)
    refusal(capsys, "segment", photo_file, "the cup", "--model", checkpoint, "--output", "masks")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_output_is_read_only(capsys, checkpoint, photo_file):
    Path("masks").mkdir(mode=0o555)
    refusal(capsys, "segment", photo_file, "the cup", "--model", checkpoint, "--output", "masks")


@pytest.mark.parametrize("name", ["missing", "./missing", "/missing/x", "", "a/b/c", "a b", "empty", "photo.png"])
def test_no_model(capsys, photo_file, name):
    Path("empty").mkdir()
    refusal(capsys, "segment", photo_file, "the cup", "--model", name)


def test_model_is_a_file_of_the_folder(capsys, checkpoint, photo_file):
    refusal(capsys, "segment", photo_file, "the cup", "--model", checkpoint / "config.json")


def truncate(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def to_pickle(folder: Path, **more: object) -> Path:
    """Weights as they were stored before safetensors."""
    torch.save(load_file(folder / "model.safetensors") | more, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder / "pytorch_model.bin"


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"echo > '{self.path}'",)


def shard(folder: Path, index: str) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)


def large_tokenizer(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *[f"word{index}" for index in range(100)], *WORDS]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    CrossVLTProcessor.from_tokenizer(tokenizer, image_size=64, max_length=9).save_pretrained(folder)


def without(folder: Path, key: str) -> None:
    state_dict = load_file(folder / "model.safetensors")
    del state_dict[key]
    save_file(state_dict, folder / "model.safetensors", metadata={"format": "pt"})


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "no tokenizer": lambda folder: [file.unlink() for file in folder.glob("tokenizer*")],
    "no tokenizer config": lambda folder: (folder / "tokenizer_config.json").unlink(),
    "no processor": lambda folder: (folder / "processor_config.json").unlink(),
    "empty weights": lambda folder: truncate(folder / "model.safetensors", 0),
    "header of weights": lambda folder: truncate(folder / "model.safetensors", 0.01),
    "half of weights": lambda folder: truncate(folder / "model.safetensors", 0.5),
    "most of weights": lambda folder: truncate(folder / "model.safetensors", 0.999),
    "half of pickle": lambda folder: truncate(to_pickle(folder), 0.5),
    "hostile pickle": lambda folder: to_pickle(folder, x=Touch(folder.parent / "victim")),
    "missing weight": lambda folder: without(folder, "decoder.classifier.bias"),
    "missing shard": lambda folder: shard(folder, '{"metadata": {}, "weight_map": {"x": "missing.safetensors"}}'),
    "broken index": lambda folder: shard(folder, "{"),
    "empty index": lambda folder: shard(folder, "{}"),
    "large tokenizer": large_tokenizer,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_model(tmp_path, capsys, checkpoint, photo_file, damage):
    DAMAGE[damage](checkpoint)
    refusal(capsys, "segment", photo_file, "the red bus", "--model", checkpoint)
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json"])
@pytest.mark.parametrize("text", ["{", "null", "[]", "\x00"], ids=ascii)
def test_damaged_json(capsys, checkpoint, photo_file, name, text):
    (checkpoint / name).write_text(text, encoding="utf-8")
    refusal(capsys, "segment", photo_file, "the cup", "--model", checkpoint)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "bert"},
        {"model_type": None},
        {"vision_config": {}},
        {"vision_config": "x"},
        {"vision_config": {"window_size": 7}},
        {"vision_config": {"embed_dim": 16}},
        {"vision_config": {"depths": [1, 2, 2, 1]}},
        {"vision_config": {"depths": [1, 1, 1, 1]}},
        {"vision_config": {"depths": [1, 2, 1]}},
        {"vision_config": {"depths": 5}},
        {"vision_config": {"patch_size": 0}},
        {"vision_config": {"hidden_act": "nope"}},
        {"text_config": {"vocab_size": 63}},
        {"text_config": {"depths": [1, 1, 1, 1]}},
        {"text_config": {"pad_token_id": 64}},
        {"fusion_direction": "late"},
        {"fusion_direction": "x"},
        {"decoder_hidden_size": 8},
        {"dtype": "nope"},
        {"id2label": "x"},
        {"num_stages": 3},
    ],
    ids=json.dumps,
)
def test_config_does_not_fit(capsys, checkpoint, photo_file, changes):
    """Neither what is missing in the weights nor what is left over goes unnoticed."""
    config = json.loads((checkpoint / "config.json").read_text())
    for name, value in changes.items():
        config[name] = config[name] | value if isinstance(value, dict) and value else value
    (checkpoint / "config.json").write_text(json.dumps(config))
    refusal(capsys, "segment", photo_file, "the cup", "--model", checkpoint)


# ---- convert


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    """A folder with the tiny parity checkpoint and a tokenizer."""
    folder = tmp_path_factory.mktemp("originals")
    shapes = json.loads((Path(__file__).parents[1] / "parity" / "tiny.json").read_text())["shapes"]
    torch.save({"model": fill_state_dict(shapes)}, folder / "original.pth")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    return folder


HEADS = ("--num-attention-heads", "4")


def test_convert(capsys, originals):
    tokenizer = originals / "tokenizer"
    code, output, errors = run(
        capsys,
        "convert",
        originals / "original.pth",
        "out",
        *HEADS,
        "--tokenizer",
        tokenizer,
        "--fusion-head-dim",
        "16",
    )
    assert (code, errors) == (0, "")
    assert json.loads(output) == {
        "output": "out",
        "vision": {"embed_dim": 32, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8], "window_size": 4},
        "text": {"hidden_size": 64, "depths": [6, 1, 1, 1], "num_attention_heads": 4, "vocab_size": 200},
    }
    assert json.loads(Path("out/config.json").read_text())["fusion_head_dim"] == 16


def test_convert_without_processor(capsys, caplog, originals):
    code, output, _ = run(capsys, "convert", originals / "original.pth", "out", *HEADS)
    assert code == 0
    assert output.count("\n") == 1
    assert "No processor is written" in caplog.text  # in a process of its own on stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--num-attention-heads", "5"],
        ["--num-attention-heads", "0"],
        ["--fusion-head-dim", "7"],
        ["--fusion-head-dim=-1"],
        ["--tokenizer", "missing"],
        ["--tokenizer", "."],
    ],
    ids=" ".join,
)
def test_convert_wrong_option(capsys, originals, options):
    refusal(capsys, "convert", originals / "original.pth", "out", *options)
    assert not Path("out").exists()


ORIGINALS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("hello"),
    "empty": lambda path: path.write_bytes(b""),
    "folder": lambda path: path.mkdir(),
    "missing": lambda path: None,
    "half": lambda path: truncate(path, 0.5),
    "hostile": lambda path: torch.save({"model": {"a": torch.ones(1)}, "args": Touch(path.parent / "victim")}, path),
    "hostile pickle": lambda path: path.write_bytes(pickle.dumps(Touch(path.parent / "victim"), protocol=4)),
    "other model": lambda path: torch.save({"fc.weight": torch.ones(1)}, path),
    "list": lambda path: torch.save([torch.ones(1)], path),
}


@pytest.mark.parametrize("kind", ORIGINALS)
def test_convert_wrong_original(tmp_path, capsys, originals, kind):
    path = tmp_path / "other.pth"
    if kind == "half":
        shutil.copy(originals / "original.pth", path)
    ORIGINALS[kind](path)
    assert "other.pth" in refusal(capsys, "convert", path, "out") or kind == "other model"
    assert not (tmp_path / "victim").exists()
    assert not Path("out").exists()


@pytest.mark.parametrize("output", ["photo.png", "photo.png/deeper", ""])
def test_convert_wrong_output(capsys, originals, photo_file, output):
    before = photo_file.read_bytes()
    options = [*HEADS, "--tokenizer", originals / "tokenizer"]
    refusal(capsys, "convert", originals / "original.pth", output, *options)
    assert photo_file.read_bytes() == before


# ---- the command itself


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    output, errors = capsys.readouterr()
    assert "segment" in output
    assert "convert" in output
    assert errors == ""


@pytest.mark.parametrize("command", ["segment", "convert"])
def test_help_of_command(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"usage: crossvlt {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nope"],
        ["segment"],
        ["segment", "photo.png"],
        ["segment", "photo.png", "--model", "x"],
        ["segment", "photo.png", "the cup", "--model", "x", "--threshold", "much"],
        ["segment", "photo.png", "the cup", "--model", "x", "--dtype", "int8"],
        ["segment", "photo.png", "the cup", "--model", "x", "--nope"],
        ["convert", "original.pth"],
        ["convert", "original.pth", "out", "--num-attention-heads", "many"],
        ["convert", "original.pth", "out", "--num-attention-heads", "1_0"],
        ["segment", "photo.png", "the cup", "--min-area", "1_0"],
        ["segment", "photo.png", "the cup", "--threshold", "0.0_5"],
        ["segment", "photo.png", "the cup", "--presence-threshold", "0.0_5"],
        ["predict", "photos", "--output", "x", "--batch-size", "1_0"],
        ["evaluate", "--data", "refshapes", "--split", "test", "--limit", "1_0"],
        ["benchmark", "--rounds", "\u0661"],
        ["refshapes", "x", "--scenes", "1_0"],
    ],
    ids=" ".join,
)
def test_usage(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    output, errors = capsys.readouterr()
    assert_one_line(stop.value.code, output, errors)


HEAVY = ("torch", "transformers", "datasets", "numpy", "PIL", "huggingface_hub", "accelerate", "yaml")
LIGHT = [
    ["--help"],
    ["--version"],
    *[[name, "--help"] for name in COMMANDS],
    [],
    ["nope"],
    ["segment", "a.png", "the cup", "--nope"],
    ["segment", "a.png", "the cup", "--threshold", "much"],
    ["segment", "a.png", "the cup", "--threshold", "7"],
    ["segment", "a.png", "the cup", "--presence-threshold", "0"],
    ["segment", "a.png", "the cup", "--min-area", "0"],
    ["segment", "a.png", "the cup", "--explain-pixel", "7"],
    ["segment", f"{40 * 'p'}-overlay.png", "the cup", "--output", "."],
    ["predict", "rows.jsonl", "--output", "x", "--on-error", "ignore"],
    ["predict", "rows.jsonl", "--output", "x", "--shard-size", "0"],
    ["evaluate", "--data", "refcoco", "--split", "val", "--option", "scenes"],
    ["evaluate", "--data", "refcoco", "--split", "val", "--limit", "0"],
    ["evaluate", "--data", "refcoco", "--split", "val", "--gallery", "x.gif"],
    ["evaluate", "--data", "refcoco", "--split", "val", "--calibrate"],
    ["train", "refcoco", "--processes", "0"],
    ["convert", "original.pth"],
    ["export", "--output", "x", "--format", "coreml"],
    ["publish", "folder"],
    ["refer", "labels.json", "--output", "x", "--families", "nouns"],
    ["refshapes", "x", "--families", "plural=some"],
    ["benchmark", "--dtype", "float8"],
    ["benchmark", "--image-size", "48x"],
    ["benchmark", "--image-size", "40000"],
    ["benchmark", "--rounds", "0"],
    ["benchmark", "--seed", "-1"],
    ["benchmark", "--peers", "sam2"],
    ["demo", "--port", "http"],
    ["demo", "--serve", "--port", "70000"],
    ["demo", "--seed", "-1"],
    ["demo", "--output", "panel.pdf"],
    ["refer", "labels.json", "--output", "x", "--per-image", "0"],
    ["refer", "labels.json", "--output", "x", "--least-area", "1"],
    ["refer", "labels.json", "--output", "x", "--seed", "-1"],
    ["refshapes", "x", "--scenes", "0"],
    ["refshapes", "x", "--expressions", "4"],
    ["refshapes", "x", "--side", "8"],
    ["refshapes", "x", "--objects", "2", "9"],
    ["refshapes", "x", "--families", "plurals=2"],
    ["refshapes", "x", "--families", "plural=0"],
    ["refshapes", "x", "--sheet", "sheet.pdf"],
    ["refshapes", "x", "--families", "no_target", "--counterparts"],
    ["refshapes", "x", "--family", "plural", "--families", "plural"],
    ["refshapes", "x", "--family", "plurals"],
    ["refshapes", "x", "--split", "unseen_relations", "--families", "relation", "attribute"],
    ["refshapes", "x", "--split", "unseen_relations", "--family", "no_target_ordinal"],
    ["refshapes", "x", "--families", "attribute", "plural", "--expressions", "2", "--counterparts"],
    ["refshapes", "x", "--scenes", "1000000000000"],
    ["refshapes", "x", "--side", "40000000"],
    ["benchmark", "--threads", "99999999999"],
    ["benchmark", "--measure", "prediction", "--workers", "99999999999"],
    ["train", "refcoco", "--processes", "99999999999"],
    ["segment", "photo.png", "the cup", "--device", "gpu"],
    ["evaluate", "--data", "refcoco", "--split", "val", "--device", "cuda:one"],
    ["demo", "--device", "cpu:-1"],
    ["benchmark", "--device", "cpu", "cuda0"],
    ["segment", "missing.png", "the cup"],
    ["segment", "missing.png", "the cup", "--output", "mask.png"],
    ["segment", "https://example.com/photo.png", "the cup", "--model", "./missing"],
    ["predict", "missing", "--output", "x", "--expression", "the cup"],
    ["predict", "./missing", "--output", "x"],
    ["predict", "missing.jsonl", "--output", "x"],
    ["predict", "name/data", "--output", "x", "--model", "a/b/c"],
    ["evaluate", "--data", "refcoco", "--split", "val", "--model", "missing"],
    ["export", "--output", "x", "--model", "../missing"],
    ["convert", "missing.pth", "out"],
    ["refer", "./missing", "--output", "x"],
    ["refer", "missing.json", "--output", "x"],
    ["demo", "--model", "missing"],
    ["benchmark", "--model", "tiny", "./missing"],
    ["publish", "./missing", "name/model"],
    ["publish", "name/checkpoint", "name/model", "--results", "missing.json"],
    ["train", "refcoco", "--accelerate-config", "missing.yaml"],
    ["export", "--output", "x", "--opset", "3"],
    ["export", "--output", "x", "--opset", "18", "--format", "torch-export"],
    ["convert", "original.pth", "out", "--fusion-head-dim", "0"],
    ["benchmark", "--measure", "prediction", "--image-size", "64"],
    ["predict", "rows.jsonl", "--output", "x", "--workers", "99999999999"],
    ["refer", "labels.json", "--output", "x", "--workers", "99999999999"],
    *(
        [*line, ""]
        for line in (
            ["benchmark", "--output"],
            ["benchmark", "--model", "tiny"],
            ["segment", "photo.png", "the cup", "--output"],
            ["segment", "photo.png"],
            ["predict", "rows.jsonl", "--output"],
            ["evaluate", "--data"],
            ["train"],
            ["publish", "folder", "name/model", "--token"],
        )
    ),
]
IN_TURN = f"""
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from crossvlt_hf.cli import main

for arguments in {LIGHT}:
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code or 0
    loaded = [name for name in {HEAVY} if name in sys.modules]
    print(json.dumps([code, output.getvalue(), errors.getvalue(), loaded]))
"""


def test_help_and_wrong_options_import_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", IN_TURN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for arguments, line in zip(LIGHT, done.stdout.splitlines(), strict=True):
        code, output, errors, loaded = json.loads(line)
        assert loaded == [], arguments
        if {"--help", "--version"} & set(arguments):
            assert (code, errors) == (0, "")
            assert output.startswith("crossvlt_hf" if arguments == ["--version"] else "usage: crossvlt")
        else:
            assert_one_line(code, output, errors)


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["segment", "photo.png", "the cup", "--presence-threshold", "2"], "--presence-threshold"),
        (["segment", "photo.png", "the cup", "--min-area", "0"], "--min-area"),
        (["predict", "rows.jsonl", "--output", "x", "--batch-size", "0"], "--batch-size"),
        (["predict", "rows.jsonl", "--output", "x", "--format", "csv"], "--format"),
        (["evaluate", "--data", "refcoco", "--workers", "-1"], "--workers"),
        (["evaluate", "--data", "refcoco", "--gallery", "x.gif"], "--gallery"),
        (["train", "refcoco", "--processes", "0"], "--processes"),
        (["refer", "labels.json", "--output", "x", "--per-family", "0"], "--per-family"),
        (["refer", "labels.json", "--output", "x", "--per-image", "0"], "--per-image"),
        (["refer", "labels.json", "--output", "x", "--least-area", "1"], "--least-area"),
        (["refshapes", "x", "--objects", "2", "9"], "--objects"),
        (["refshapes", "x", "--seed", "-1"], "--seed"),
        (["benchmark", "--measure", "speed"], "--measure"),
        (["benchmark", "--image-size", "40000"], "--image-size"),
        (["benchmark", "--warm-up", "0"], "--warm-up"),
        (["demo", "--port", "70000"], "--port"),
        (["convert", "original.pth", "out", "--num-attention-heads", "0"], "--num-attention-heads"),
        (["convert", "original.pth", "out", "--fusion-head-dim", "-4"], "--fusion-head-dim"),
        (["export", "--output", "x", "--opset", "3"], "--opset"),
        (["refshapes", "x", "--families", "plurals"], "--families"),
        (["refshapes", "x", "--families", "plural=nan"], "--families"),
        (["refshapes", "x", "--family", "plurals"], "--family"),
        (["refshapes", "x", "--split", "unseen_relations", "--family", "plural", "--objects", "9", "9"], "--objects"),
        (["refshapes", "x", "--split", "unseen_relations", "--family", "attribute"], "--family"),
        (["refshapes", "x", "--split", "unseen_relations", "--families", "plural", "ordinal"], "--families"),
        (["benchmark", "--backend", "openvino", "--compile", "on"], "--compile"),
        (["segment", "", "the cup"], "IMAGE"),
        (["segment", "photo.png", "the cup", " "], "EXPRESSION"),
        (["segment", "photo.png", "the cup", "--output", ""], "--output"),
        (["train", ""], "CONFIG"),
        (["publish", "folder", ""], "REPO_ID"),
        (["predict", "photos", "--output", "x", "--expression", "the cup", "--expression", ""], "--expression"),
        (["benchmark", "--model", "tiny", ""], "--model"),
    ],
)
def test_an_error_names_its_option(capsys, arguments, option):
    code, output, errors = run(capsys, *arguments)
    assert_one_line(code, output, errors)
    assert errors.startswith(f"crossvlt: `{option}` must ")


TIGHT = """
import re, resource, sys
from crossvlt_hf.cli import main, refshapes
import crossvlt_hf.data.refshapes.dataset

size = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1])
resource.setrlimit(resource.RLIMIT_AS, (size + 2**26, -1))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("options", "message", "said"),
    [
        (Evaluate(data="x"), "There is no folder a; set `root` to it.", "There is no folder a; set `--root` to it."),
        (Evaluate(data="x"), "Set `images` to its path.", "Set `--option images=...` to its path."),
        (Evaluate(data="x"), "set `ignore_index=255`; a, `mask`", "set `--option ignore_index=255`; a, `mask`"),
        (Refer("x", "y"), "set `images`; set `crowds=objects`", "set `--images`; set `--option crowds=objects`"),
        (Refer("x", "y"), "a.json has no `images`, but `root`.", "a.json has no `images`, but `root`."),
        (Train("x"), "give another `root`; set `images`", "give another `data.root`; set `images` of the data set"),
        (Benchmark(), "`tokens` must be 9; `compiled` must be on", "`--tokens` must be 9; `--compile` must be on"),
        (Benchmark(), "`words` must be text", "`words` must be text"),
        (Segment("x", ("y",)), "`image` must be X; set `crowds=a`", "`image` must be X; set `crowds=a`"),
        (Refer("x", "y"), "set `kind` and set `labels`", "set `--option kind=...` and set `--option labels=...`"),
        (Evaluate(data="x"), "Set `ignore_index=None` or `a=2`", "Set `--option ignore_index=null` or `--option a=2`"),
        (Benchmark(), "The processor's `size` must have width", "The processor's `size` must have width"),
        (Evaluate(data="x"), "a.json: `split` must be text", "a.json: `split` must be text"),
    ],
)
def test_messages_name_options(options, message, said):
    assert as_options(options, message) == said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["benchmark", "--output", "x.png", "--plot", "./x.png"], "`--output` and `--plot` must be two files"),
        (
            ["evaluate", "--data", "refcoco", "--output", "a.png", "--gallery", "a.png"],
            "`--output` and `--gallery` must be two files",
        ),
        (
            ["evaluate", "--data", "refcoco", "--gallery", "a.png", "--reliability", "a.png"],
            "`--gallery` and `--reliability` must be two files",
        ),
        (["demo", "--port", "8000"], "`--port` has no effect without `--serve`"),
        (["evaluate", "--data", "refshapes", "--root", "x"], "`--root` has no effect with `--data` refshapes"),
        (
            ["evaluate", "--data", "refshapes", "--merge", "reference"],
            "`--merge` has no effect with `--data` refshapes",
        ),
        (
            ["refer", "labels.json", "--output", "x", "--incomplete", "--families", "noun", "relation"],
            "`--families` must be of noun, attribute, absolute where objects may be unlabelled, got 'relation'",
        ),
        (["demo", "--serve", "--seed", "3"], "`--seed` has no effect with `--serve`"),
        (["demo", "--serve", "--output", "x.png"], "`--output` has no effect with `--serve`"),
    ],
)
def test_options_that_do_not_go_together(capsys, arguments, message):
    assert message in refusal(capsys, *arguments)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: limits the memory of a process")
def test_too_little_memory_is_told_in_one_line():
    done = subprocess.run(
        [sys.executable, "-c", TIGHT, "refshapes", "x", "--scenes", "1", "--side", "4096"],
        **{"capture_output": True, "text": True, "check": False},
    )
    assert_one_line(done.returncode, done.stdout, done.stderr)
    assert done.stderr.startswith(
        "crossvlt: There is not enough memory; use smaller images, batches or data, or fewer workers."
    )


@pytest.mark.parametrize(
    "text",
    [
        "DefaultCPUAllocator: can't allocate memory",
        "CUDA out of memory. Tried",
        "unable to mmap 38114986 bytes: Cannot allocate memory (12)",
        "DataLoader worker (pid 7) is killed by signal: Killed.",
        "Storage size calculation overflowed with sizes=[9]",
    ],
)
def test_errors_of_torch_about_memory_are_known(monkeypatch, capsys, text):
    def fail(_):
        raise RuntimeError(text)

    monkeypatch.setattr(refshapes, "refshapes", fail)
    assert f"There is not enough memory; use smaller images, batches or data, or fewer workers. {text}" in refusal(
        capsys, "refshapes", "x"
    )


def test_other_errors_of_torch_are_not_about_memory(monkeypatch):
    def fail(_):
        raise RuntimeError("value cannot be converted to type at::Half without overflow")

    monkeypatch.setattr(refshapes, "refshapes", fail)
    with pytest.raises(RuntimeError, match="Half"):
        main(["refshapes", "x"])


def test_the_process_imports_nothing_heavy():
    """Neither the package nor `python -m crossvlt_hf` does so before the command has its options."""
    for arguments in (["--help"], ["segment", "photo.png", "the cup", "--nope"]):
        options = {"capture_output": True, "text": True, "check": False}
        done = subprocess.run([sys.executable, "-X", "importtime", "-m", "crossvlt_hf", *arguments], **options)
        imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
        assert "tyro" in imported
        assert not imported & set(HEAVY)


@pytest.mark.parametrize("columns", ["40", "80", "120", "500"])
def test_help_is_plain_text(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", columns)
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        output = capsys.readouterr().out
        assert output.isascii()
        assert output.replace("\n", "").isprintable()
        kind = getattr(sys.modules[f"crossvlt_hf.cli.{name}"], name.capitalize())
        positional = {"image", "expressions", "data", "config", "settings", "original", "output_dir", "checkpoint"}
        flags = [field.name.replace("_", "-") for field in fields(kind) if field.name not in positional]
        said = output.replace("--no-", "--")
        assert all(f"--{flag}" in said for flag in flags if flag not in ("repo-id", "labels", "output"))
        options = output.partition(" options\n")[2].splitlines()
        assert max(map(len, options)) <= 110
    assert os.environ["COLUMNS"] == columns


def test_every_option_has_help():
    """It is in the docstring, from which tyro takes it."""
    for name in COMMANDS:
        kind = getattr(import_module(f"crossvlt_hf.cli.{name}"), name.capitalize())
        described = "".join(base.__doc__.partition("Args:")[2] for base in reversed(kind.__mro__[:-1]))
        assert [field.name for field in fields(kind)] == re.findall(r"^ {8}(\w+): ", described, re.MULTILINE)


def test_the_choices_are_those_of_the_package():
    """The options name them, since to import them would take seconds."""
    assert get_args(refshapes.Language) == tuple(LANGUAGES)
    assert get_args(Export.__annotations__["format"]) == tuple(FILES)
    assert (predict.FORMATS, predict.ON_ERROR) == (FORMATS, ON_ERROR)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segmnt"], "There is no command 'segmnt'. Did you mean segment?"),
        (["segment", "a", "b", "--modle", "x"], "Unrecognized options: --modle, x. Perhaps you meant: --model TEXT."),
        (["evaluate", "--limt", "3", "--data", "x", "--split", "y"], "--limit N"),
        (
            ["segment", "a", "b", "--dtype", "float"],
            "`--dtype` must be one of auto, float32, bfloat16, float16, got 'float'.",
        ),
        (["refer", "a", "--output", "b", "--families", "noun", "nown"], "got 'nown'. Did you mean noun?"),
        (["benchmark", "--batch", "1", "two"], "`--batch` must be an integer, got 'two'."),
        (["benchmark", "--batch"], "`--batch` must have one or more values, got none."),
        (["refshapes", "x", "--objects", "2", "few"], "`--objects` must be an integer, got 'few'."),
        (["refshapes", "x", "--language", "fr"], "`--language` must be one of en, de, zh, got 'fr'."),
        (
            ["segment", "a", "b", "--threshold", "some\nthing" + 300 * "x"],
            r"must be a number, got 'some\nthing" + 300 * "x",
        ),
        (
            ["segment", "a", "b", "--presence-threshold", "x"],
            "must be auto, none or a number between 0 and 1, got 'x'.",
        ),
        (["train"], "CONFIG"),
        (["train", "my.yaml", "epochs"], "must be name=value, got 'epochs'."),
        (["train", "my.yaml", "--resume", "a=1", "epochs"], "must be name=value, got 'epochs'."),
        (["train", "my.yaml", "a=1", "--resume", "b=1", "epochs"], "Unrecognized options: b=1, epochs."),
        (["train", "my.yaml", "--nope"], "Unrecognized options: --nope."),
        (["train", "my.yaml", "--resume", "a=1", "--resum"], "--resum"),
        (["publish", "folder"], "REPO_ID"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_wrong_options_are_named(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    output, errors = capsys.readouterr()
    assert_one_line(stop.value.code, output, errors)
    assert message in errors


def read(*arguments):
    _, options = read_options(arguments)
    return options


def test_options_are_read():
    options = read("segment", "--model=", "--presence-threshold", "none", "--threshold", "-1", "a", "b", "--", "-c")
    assert (options.image, options.expressions, options.model) == ("a", ("b", "-c"), "")
    assert (options.presence_threshold, options.threshold) == (None, -1)
    assert read("segment", "None", "b", "--model", "None").model == "None"
    assert read("segment", "a", "b").presence_threshold == "auto"
    assert read("segment", "a", "b", "--presence-threshold", "0.25").presence_threshold == 0.25
    assert read("segment", "--model", "x", "a", "b", "c", "--model", "y").model == "y"
    options = read("evaluate", "--data", "x", "--split", "y", "--option", "a=1", "--option", "b=c d", "--limit", "3")
    assert (options.option, options.limit, options.shuffle) == (("a=1", "b=c d"), 3, False)
    options = read("refer", "x", "--output", "y", "--no-colours", "--families", "noun", "plural", "--form", "yolo")
    assert (options.colours, options.families, options.form) == (False, ("noun", "plural"), "yolo")
    assert read("refer", "x", "--output", "y").families == refer.FAMILIES
    assert read("refshapes", "x", "--objects", "2", "9", "--families", "plural=2").objects == (2, 9)
    assert read("benchmark", "--compile", "off", "on", "--expressions", "2", "4").expressions == (2, 4)
    options = read("train", "x.yaml", "a=1", "--resume", "b=2", "--accelerate-config", "c=3", "d=")
    assert (options.config, options.settings) == ("x.yaml", ("a=1", "b=2", "d="))
    assert (options.resume, options.accelerate_config) == (True, "c=3")


def test_demo_page_without_gradio(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("crossvlt_hf.publishing.page")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    errors = refusal(capsys, "demo", "--serve", "--port", "0")
    assert f"This needs gradio: {install_command('demo')}\n" in errors


INSTALLED = {  # what pip notes of where the package came from, and the command for an extra
    "an index": (None, "pip install 'crossvlt_hf[train]'"),
    "a folder": ("file://{here}/a%20clone", "pip install '{here}/a clone[train]'"),
    "a wheel": ("file://{here}/wheel.whl", "pip install '{here}/wheel.whl[train]'"),
    "a folder that is gone": ("file://{here}/gone", "pip install 'crossvlt_hf[train]'"),
    "git": ("https://x.org/y.git", "pip install 'crossvlt_hf[train] @ git+https://x.org/y.git@v1'"),
    "an address": ("https://x.org/y.whl", "pip install 'crossvlt_hf[train] @ https://x.org/y.whl'"),
}


@pytest.mark.parametrize("source", INSTALLED)
def test_the_command_for_an_extra_fits_the_installation(tmp_path, source):
    address, wanted = INSTALLED[source]
    (tmp_path / "a clone").mkdir()
    (tmp_path / "wheel.whl").touch()
    for folder in ("site/crossvlt_hf", "site/crossvlt_hf-0.1.0.dist-info"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "site/crossvlt_hf/__init__.py").touch()
    shutil.copy(ROOT / "crossvlt_hf" / "system.py", tmp_path / "site/crossvlt_hf")
    note = tmp_path / "site/crossvlt_hf-0.1.0.dist-info"
    (note / "METADATA").write_text("Metadata-Version: 2.1\nName: crossvlt_hf\nVersion: 0.1.0\n")
    if address is not None:
        more = {"vcs_info": {"vcs": "git", "requested_revision": "v1"}} if source == "git" else {}
        (note / "direct_url.json").write_text(json.dumps({"url": address.format(here=tmp_path), **more}))
    code = "from crossvlt_hf.system import install_command; print(install_command('train'))"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == wanted.format(here=tmp_path) + "\n", done.stderr


def test_the_command_for_an_extra_in_a_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert install_command("train") == "pip install -e '.[train]'"
    monkeypatch.chdir(tmp_path)
    assert install_command("train") == f"pip install -e '{ROOT}[train]'"


def test_demo_on_a_device_that_is_not_there(capsys):
    assert "'nope'" in refusal(capsys, "demo", "--device", "nope")


def command(*arguments) -> subprocess.CompletedProcess:
    """The installed command, in a process of its own."""
    program = shutil.which("crossvlt", path=Path(sys.executable).parent)
    assert program is not None
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # where the cores are shared, two threads are slower than one
    options = {"capture_output": True, "encoding": "utf-8", "timeout": 300, "check": False, "env": environment}
    return subprocess.run([program, *map(str, arguments)], **options)


@pytest.mark.slow
def test_convert_then_segment(originals, photo_file, photo):
    options = [*HEADS, "--tokenizer", originals / "tokenizer"]
    converted = command("convert", originals / "original.pth", "out", *options)
    assert (converted.returncode, converted.stderr) == (0, "")
    assert json.loads(converted.stdout)["output"] == "out"
    result = command("segment", photo_file, "the cup", "--model", "out", "--output", "masks")
    assert result.returncode == 0
    assert result.stderr == f"The overlay is in {Path('masks/photo-overlay.png')}\n"
    assert_line(json.loads(result.stdout), "the cup", photo.size)


@pytest.mark.parametrize(
    ("arguments", "code", "printed"),
    [
        (["crossvlt_hf.cli", "--version"], 0, "crossvlt_hf "),
        (["crossvlt_hf.training"], 2, "crossvlt: Missing from crossvlt train: CONFIG"),
        (["crossvlt_hf.training", "my.yaml", "--nope"], 2, "crossvlt: Unrecognized options: --nope"),
    ],
)
def test_old_names_of_the_command(arguments, code, printed):
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert (done.stdout + done.stderr).startswith(printed)


@pytest.mark.slow
def test_refusal_of_the_process():
    result = command("segment", "missing.png", "the cup", "--model", "missing")
    assert_one_line(result.returncode, result.stdout, result.stderr)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_end_that_is_asked_for_is_orderly(monkeypatch, capsys, number, code):
    left = []

    def work(arguments):
        try:
            signal.raise_signal(number)
        finally:
            left.append("tidied up")

    monkeypatch.setattr("crossvlt_hf.cli.segment.segment", work)
    if number == signal.SIGTERM:
        with pytest.raises(SystemExit, match=str(code)):
            main(["segment", "https://localhost/photo.jpg", "the cup"])
    else:
        assert main(["segment", "https://localhost/photo.jpg", "the cup"]) == code
        assert capsys.readouterr().err == "crossvlt: interrupted\n"
    assert left == ["tidied up"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs permissions that are kept")
def test_a_file_that_cannot_be_written_is_told_before_the_work(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        make_room(str(tmp_path / "report.json"), "report")


def test_room_for_a_file(tmp_path):
    make_room(str(tmp_path / "new" / "report.json"), "report")
    assert not any((tmp_path / "new").iterdir())
    with pytest.raises(ValueError, match="is a folder"):
        make_room(str(tmp_path), "report")
    (tmp_path / "old.json").touch()
    with pytest.raises((NotADirectoryError, FileExistsError)):
        make_room(str(tmp_path / "old.json" / "report.json"), "report")
    make_room(os.devnull, "report")


FOREIGN = {
    "coco.json": b'{"images": [], "annotations": []}',
    "list.json": b"[1, 2]",
    "broken.json": b"{",
    "photo.png": None,
    "text.png": b"no picture",
    "notes": b"precious",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_only_an_earlier_output_of_the_same_kind_is_replaced(tmp_path, name):
    file = tmp_path / name
    if (content := FOREIGN[name]) is None:
        Image.new("RGB", (4, 4), "red").save(file)
    else:
        file.write_bytes(content)
    before = file.read_bytes()
    with pytest.raises(
        ValueError, match=f"{name} exists, and does not say that it is an earlier report; give another output"
    ):
        make_room(str(file), "report")
    assert file.read_bytes() == before
    file.unlink()
    if name.endswith(".png"):
        save_picture(Image.new("L", (2, 2)), file, "mask", image="one", expression="das Grün 杯子")
        check_replaceable(file, "mask", image="one", expression="das Grün 杯子")
        for kind, about in (("overlay", {}), ("mask", {"image": "two"}), ("mask", {"expression": "das Grun"})):
            with pytest.raises(ValueError, match=f"not say that it is an earlier {kind}"):
                check_replaceable(file, kind, **about)
    else:
        save_report({"metrics": {}}, str(file), "evaluation")
        make_room(str(file), "evaluation")
        with pytest.raises(ValueError, match="not say that it is an earlier benchmark"):
            make_room(str(file), "benchmark")


def test_a_link_to_nothing_is_not_written_through(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ValueError, match="exists"):
        make_room(str(tmp_path / "link.json"), "report")
    assert not (tmp_path / "elsewhere.json").exists()


def test_a_new_report_takes_a_free_name(tmp_path):
    path = tmp_path / "report.json"
    names = [save_report({"number": number}, str(path), "evaluation", new=True) for number in range(3)]
    assert names == [str(tmp_path / name) for name in ("report.json", "report-2.json", "report-3.json")]
    assert [json.loads(Path(name).read_text())["number"] for name in names] == [0, 1, 2]


def test_two_processes_with_new_reports_lose_none(tmp_path):
    """Each makes room at the same time, and writes when it is done."""
    code = (
        "import sys, time; from crossvlt_hf.cli.outputs import make_room, save_report;"
        "[make_room('r.json', 'evaluation', new=True) for _ in range(200)];"
        "[print(save_report({'a': 1}, 'r.json', 'evaluation', new=True)) for _ in range(200)]"
    )
    two = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE) for _ in range(2)]
    written = [line for process in two for line in process.communicate()[0].split()]
    assert [process.returncode for process in two] == [0, 0]
    assert len(set(written)) == len(written) == len(list(tmp_path.iterdir())) == 400


@pytest.mark.parametrize("kind", EARLIER)
def test_reports_of_the_version_before_are_known(tmp_path, kind):
    path = tmp_path / "old.json"
    path.write_text(json.dumps(dict.fromkeys(EARLIER[kind] | {"more"})))
    make_room(str(path), kind)
    with pytest.raises(ValueError, match="does not say that it is an earlier gallery"):
        make_room(str(path), "gallery")


def test_a_folder_in_the_place_of_a_file_is_told_before_the_work(capsys, checkpoint, photo_file):
    Path("out/photo-overlay.png").mkdir(parents=True)
    assert "photo-overlay.png exists" in refusal(
        capsys, "segment", photo_file, "the cup", "--model", checkpoint, "--output", "out"
    )


def test_segment_says_what_it_did_not_read(checkpoint, photo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photo.save("photo.png")
    expressions = ["the zebra", "the red cup left of the man above the table", "the cup"]
    assert main(["segment", "photo.png", *expressions, "--model", str(checkpoint)]) == 0
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert [line["unknown_words"] for line in lines] == [["zebra"], [], []]
    assert [line["text_read"] for line in lines] == ["the zebra", "the red cup left of the man", "the cup"]
    told = [line for line in printed.err.splitlines() if line.startswith("Warning: ")]
    assert len(told) == 2
    assert "'zebra'" in told[0]
    assert "only 'the red cup left of the man' is read" in told[1]
