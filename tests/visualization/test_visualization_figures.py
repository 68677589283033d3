"""The figures of `crossvlt_hf.visualization`: of an explanation, of an evaluation, of a run."""

import json
import re
import sys
import warnings
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import tiny_config, tiny_tokenizer
from PIL import Image
from processes import run_python
from three_processes import balanced_model, records

from crossvlt_hf import CrossVLTModel, CrossVLTProcessor
from crossvlt_hf.data.sources.folder import load_folder
from crossvlt_hf.evaluation import EvaluationOptions, choose_samples, evaluate, evaluation_gallery, find_masks
from crossvlt_hf.evaluation.gallery import draw_tile
from crossvlt_hf.metrics import Sample, mask_areas
from crossvlt_hf.system import install_command
from crossvlt_hf.training import training_curves
from crossvlt_hf.training.pictures import draw_predictions
from crossvlt_hf.visualization import PALETTE, explain, explanation_figure
from crossvlt_hf.visualization.canvas import DPI, one_line, wrap
from crossvlt_hf.visualization.explanation_figure import BETWEEN, HEADINGS, LEFT, TITLE, _panel_height


needs_matplotlib = pytest.mark.skipif(not find_spec("matplotlib"), reason="needs the extra `plot`")
SAID = "the red cup"


@pytest.fixture(scope="module")
def explained():
    """An explanation of a random model, for figures alone."""
    torch.manual_seed(0)
    processor = CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), image_size=(32, 48), max_length=9)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    explanation = explain(CrossVLTModel(tiny_config()), processor, image, SAID)
    mask = np.zeros((40, 60), bool)
    mask[10:30, 20:50] = True
    return replace(explanation, mask=mask)


@pytest.fixture(scope="module")
def figure(explained):
    return explanation_figure(explained)


# ---- explanation


@needs_matplotlib
def test_figure_depends_on_what_is_asked(explained, figure):
    assert figure.mode == "RGB"
    assert min(figure.size) > 800
    assert explanation_figure(explained) == figure
    others = [explanation_figure(explained, word="the"), explanation_figure(explained, pixel=(59, 39))]
    assert len({picture.tobytes() for picture in (figure, *others)}) == 3


@needs_matplotlib
@pytest.mark.parametrize("missing", ["alignment_maps", "pixels_read"])
def test_columns_of_what_a_model_does_not_have(explained, figure, missing):
    left, right = {"alignment_maps": (0.34, 0.49), "pixels_read": (0.81, 0.97)}[missing]

    def coloured(picture):
        values = np.asarray(picture).astype(int)
        part = values[200:, int(left * values.shape[1]) : int(right * values.shape[1])]
        return (part.max(-1) - part.min(-1) > 40).sum()

    assert coloured(figure) > 1000
    assert coloured(explanation_figure(replace(explained, **{missing: {}}))) < 1000


@needs_matplotlib
@pytest.mark.parametrize(("shape", "found"), [((1, 1), True), ((1, 300), False), ((300, 1), True)], ids=str)
def test_images_of_any_shape(explained, shape, found):
    mask = np.full(shape, found)
    explanation = replace(explained, image=Image.new("RGB", shape[::-1]), mask=mask, box=None, score=0.0)
    assert max(explanation_figure(explanation, pixel=(0, 0)).size) < 3000


@needs_matplotlib
@pytest.mark.parametrize(
    "expression", [r"$\frac{1}{0$ and $x_1$ \foo {0} %s", "红色的杯子 ☕ كوب\n\x00\x1b[31m", "x" * 500], ids=ascii
)
def test_expressions_are_drawn_as_they_are(explained, expression):
    tokens = ["[CLS]", "$x$", "红", expression[:9], "[SEP]"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = explanation_figure(replace(explained, expression=expression, tokens=tokens))
    assert figure.mode == "RGB"


@needs_matplotlib
def test_a_dollar_begins_no_formula(explained):
    """As a formula, `$a$` would lose its dollars."""
    one, other = (explanation_figure(replace(explained, expression=text)) for text in ("$a$", "a"))
    heading = (slice(0, 50), slice(0, 400))
    assert (np.asarray(one)[heading] < 128).sum() > 1.3 * (np.asarray(other)[heading] < 128).sum()


@needs_matplotlib
@pytest.mark.parametrize(
    ("options", "message"),
    [({"word": "spoon"}, "got 'spoon'"), ({"pixel": (60, 0)}, r"an image of 60x40 .*, got \(60, 0\)")],
)
def test_what_the_figure_refuses(explained, options, message):
    with pytest.raises(ValueError, match=message):
        explanation_figure(explained, **options)


def test_text_on_one_line():
    assert one_line(" a\n\tb\x00\u202e c\ud800 ") == "a b c"
    assert wrap("the white cup left of the spoon", 12, 2) == "the white\ncup left …"


# ---- gallery


def areas(*ious, group=""):
    return [Sample(round(100 * iou), 100, 100, True, group) for iou in ious]


def test_best_and_worst_are_chosen():
    samples = areas(0.5, 0.1, 0.9, 0.0, 0.7, 1.0, 0.3, 0.4, 0.6, 0.45)
    best, worst, chance = choose_samples(samples, columns=3)
    assert [row.title for row in (best, worst, chance)] == ["Best", "Worst", "Random"]
    assert best.indices == [5, 2, 4]
    assert worst.indices == [3, 1, 6]
    assert set(chance.indices) < {0, 7, 8, 9}
    assert len(set(chance.indices)) == 3
    assert choose_samples(samples, 3) == [best, worst, chance]
    assert choose_samples(samples, 3, seed=1)[2] != chance


def test_groups_are_shown_from_best_to_worst():
    samples = [*areas(*np.linspace(0, 1, 51), group="left"), *areas(0.25, 0.75, group="right"), *areas(0.5)]
    rows = choose_samples(samples, columns=5)
    assert len(rows) == 5
    ious = [[samples[index].iou for index in row.indices] for row in rows[3:]]
    for own in ious:
        assert own == sorted(own, reverse=True)
    shown = {samples[index].iou for row in rows[:3] for index in row.indices if samples[index].group == "left"}
    others = [round(iou, 2) for iou in np.linspace(0, 1, 51).tolist() if round(iou, 2) not in shown]
    assert (ious[0][0], ious[0][-1], len(ious[0])) == (max(others), min(others), 5)
    assert rows[3].title == "left: 51 expressions, mean IoU 50.0 %; others from best to worst"


@pytest.mark.parametrize("count", [1, 2, 4, 5, 7, 11, 60])
@pytest.mark.parametrize("columns", [1, 4])
def test_no_sample_is_shown_twice(count, columns):
    ious = np.random.default_rng(count).random(count)
    samples = [Sample(round(100 * iou), 100, 100, True, f"group {number % 3}") for number, iou in enumerate(ious)]
    rows = choose_samples(samples, columns)
    shown = [index for row in rows for index in row.indices]
    assert len(shown) == len(set(shown)) >= min(count, 3 * columns)
    assert all(1 <= len(row.indices) <= columns for row in rows)
    assert max(samples[index].iou for index in shown) == max(sample.iou for sample in samples)
    assert min(samples[index].iou for index in shown) == min(sample.iou for sample in samples)


def test_equals_are_chosen_by_chance():
    """And not the first, which in a data set are of one image."""
    rows = choose_samples(areas(*[0.0] * 1000), columns=4)
    assert max(rows[0].indices) > 10
    assert set(rows[0].indices).isdisjoint(rows[1].indices)


def test_fewer_samples_than_columns():
    (row,) = choose_samples(areas(0.5, 0.9), columns=9)
    assert (row.title, row.indices) == ("All, from best to worst", [1, 0])


@pytest.mark.parametrize(("samples", "columns"), [([], 5), (areas(0.5), 0)])
def test_nothing_to_choose(samples, columns):
    with pytest.raises(ValueError, match="at least one sample and one column"):
        choose_samples(samples, columns)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    dataset = records(tmp_path_factory.mktemp("images"))
    model, processor = balanced_model(dataset)
    return model.train(), processor, dataset


@pytest.mark.parametrize("shuffle", [False, True])
def test_masks_found_again_are_those_of_the_evaluation(evaluated, shuffle):
    model, processor, dataset = evaluated
    options = EvaluationOptions(protocol="original", shuffle=shuffle, truncation="reference")
    samples = evaluate(model, processor, dataset, options).samples
    wanted = [9, 0, 4, 7]
    found = list(find_masks(model, processor, dataset, wanted, options))
    assert model.training
    for index, (pair, mask) in zip(wanted, found, strict=True):
        assert mask.shape == pair["mask"].shape == (pair["image"].height, pair["image"].width)
        (again,) = mask_areas(torch.from_numpy(mask)[None], torch.from_numpy(pair["mask"].astype(np.int64))[None])
        sample = samples[index]
        assert np.abs(again.numpy() - (sample.intersection, sample.union, sample.predicted)).max() <= 2
    said = [text for number in range(len(dataset)) for text in dataset[number]["expressions"]]
    expected = [said[(index + 5) % 10] if shuffle else said[index] for index in wanted]
    assert [pair["expression"] for pair, _ in found] == expected


@needs_matplotlib
def test_gallery_of_an_evaluation(monkeypatch, evaluated):
    model, processor, dataset = evaluated
    samples = evaluate(model, processor, dataset).samples
    asked = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **inputs: asked.append(1) or forward(**inputs))
    sheet = evaluation_gallery(model, processor, dataset, samples, columns=3)
    assert sheet.mode == "RGB"
    assert sheet.width == evaluation_gallery(model, processor, dataset, samples, columns=3, seed=1).width
    assert sheet.height > 4 * 220  # best, worst, random, and one sample that is left
    assert len(asked) == 2 * 10, "a chosen sample is computed more than once"
    with pytest.raises(ValueError, match="9 samples of 10 expressions"):
        evaluation_gallery(model, processor, dataset, samples[:9])


@needs_matplotlib
def test_no_panel_of_an_explanation_is_empty(explained):
    """Where there is no map, the photo is shown."""
    for missing, left in (("pixels_read", LEFT[2]), ("alignment_maps", LEFT[0])):
        values = np.asarray(explanation_figure(replace(explained, **{missing: {}})))
        for row in range(4):
            top = TITLE + HEADINGS + row * (_panel_height(explained) + BETWEEN)
            box = [round(DPI * edge) for edge in (top + 0.5, top + 1, left + 0.5, left + 2)]
            assert (values[box[0] : box[1], box[2] : box[3]] < 250).mean() > 0.9


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_pictures_of_a_run_show_the_truth_beside_each_prediction(count, model, processor, tmp_path):
    """In cells of one size, whatever the shapes of the images, and as full rows as there can be."""
    lines = []
    for number, size in enumerate([(90, 30), (30, 90), (60, 60), (20, 80), (80, 20)]):
        Image.new("RGB", size, (100, 110, 120)).save(tmp_path / f"{number}.png")
        mask = Image.new("L", size)
        mask.paste(255, (size[0] // 2, 0, *size))
        mask.save(tmp_path / f"mask-{number}.png")
        lines.append({"image": f"{number}.png", "mask": f"mask-{number}.png", "expression": "the largest object"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    model.train()
    picture = draw_predictions(model, processor, load_folder(tmp_path), count)
    assert model.training
    columns, rows = {1: (1, 1), 2: (2, 1), 4: (2, 2), 5: (3, 2)}[count]
    width, height = (picture.width - 8) / columns, (picture.height - 8) / rows
    assert (width, round(height) == height) == (528, True)
    values = np.asarray(picture).astype(int)
    for number in range(count):
        row, column = divmod(number, columns)
        shift = (columns - min(columns, count - row * columns)) / 2
        left, top = 8 + round((column + shift) * width), 8 + round(row * height)
        found, truth = (values[top : top + 256, left + x : left + x + 256] for x in (0, 264))
        tint = np.array([100, 110, 120]) * 0.75 + np.array(PALETTE[1]) * 0.25
        assert (np.abs(truth - tint).max(-1) <= 2).sum() > 500
        assert not (np.abs(found - np.array(PALETTE[1])).max(-1) <= 2).any()


def test_tile_shows_prediction_and_truth():
    found, truth = np.zeros((60, 80), bool), np.zeros((60, 80), bool)
    found[10:50, 10:35] = True
    truth[10:50, 45:70] = True
    image = Image.new("RGB", (80, 60), (100, 110, 120))
    tile = np.asarray(draw_tile(image, found, truth)).astype(int)
    assert tile.shape == (270, 360, 3)  # enlarged by 4.5
    assert np.abs(tile[135, 100] - (np.array([100, 110, 120]) * 0.6 + np.array(PALETTE[0]) * 0.4)).max() <= 2
    assert (tile[135, 260] == [100, 110, 120]).all(), "the truth is tinted"
    assert (tile[135, 40:50] == PALETTE[0]).all(-1).any()
    assert (tile[135, 198:208] == PALETTE[1]).all(-1).any()
    assert image.getpixel((20, 20)) == (100, 110, 120)


# ---- curves


def entry(step, **values):
    return {"step": step, "loss": 1.0 / step, "mask_loss": 0.3 / step, "learning_rate": 1e-3, **values}


def validation(step, overall, families=None):
    scores = {"validation/overall_iou": overall, "validation/mean_iou": overall}
    return {"step": step, **scores, "validation/families": families or {}}


def write_log(folder, *lines):
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (folder / "log.jsonl").write_text(text)
    return folder


LINES = [entry(10), entry(20), validation(20, 0.5, {"left": 0.4}), entry(30), validation(30, 0.6, {"left": 0.5})]


@needs_matplotlib
def test_broken_lines_are_left_out(tmp_path):
    whole = training_curves(write_log(tmp_path, *LINES))
    broken = ["\x00\x00\n", "null\n", "[1]\n", '"step"\n', '{"loss": 1}\n', '{"step": "x", "loss": 1}\n', "\n"]
    assert training_curves(write_log(tmp_path, *broken, *LINES, '{"step": 40, "lo')) == whole
    assert training_curves(write_log(tmp_path, *LINES, entry(40))) != whole


@needs_matplotlib
def test_numbers_that_are_not_finite_leave_gaps(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        strange = [entry(40, loss=float("nan"), mask_loss=float("inf")), entry(50, dice_loss=None, grad_norm="x")]
        assert training_curves(write_log(tmp_path, *LINES, *strange)).mode == "RGB"
        only = [{"step": 1, "loss": float("nan")}, validation(1, None, {"left": None})]
        assert training_curves(write_log(tmp_path, *only)).mode == "RGB"


@needs_matplotlib
def test_a_run_without_evaluations_or_with_zeros(tmp_path):
    assert training_curves(write_log(tmp_path, entry(1), entry(2))).mode == "RGB"
    assert training_curves(write_log(tmp_path, entry(1, mask_loss=0.0))).mode == "RGB"


@needs_matplotlib
def test_later_lines_of_a_step_count(tmp_path):
    """As after a run that went on from an earlier step."""
    again = validation(30, 0.9, {"left": 0.8})
    assert training_curves(write_log(tmp_path, *LINES, again)) == training_curves(
        write_log(tmp_path, *LINES[:-1], again)
    )


def test_no_log(tmp_path):
    with pytest.raises(FileNotFoundError, match="give the folder of a training run"):
        training_curves(tmp_path)
    (tmp_path / "log.jsonl").write_text("{")
    with pytest.raises(ValueError, match="has no entries"):
        training_curves(tmp_path)


# ---- without matplotlib


def test_figures_say_what_they_need(monkeypatch, explained):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape(install_command("plot"))) as error:
        explanation_figure(explained)
    assert error.value.name == "matplotlib"


@pytest.mark.slow
def test_package_imports_no_matplotlib():
    """Nor anything else that takes seconds to import and only some commands need, some of it in an extra."""
    heavy = {"matplotlib", "datasets", "gradio", "peft", "onnxscript"}
    code = (
        "import sys, crossvlt_hf.visualization, crossvlt_hf.publishing.page, crossvlt_hf.cli;"
        f"print(*{heavy} & set(sys.modules))"
    )
    done = run_python("-c", code, plain=True)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr
