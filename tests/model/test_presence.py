"""Whether something fits, how many objects, and what a score is worth: from the logits to the commands."""

import copy
import json
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import fake_batch, tiny_config
from fabricate import ReferWriter, box, photo
from huggingface_hub.errors import StrictDataclassError
from PIL import Image

from crossvlt_hf import CrossVLTConfig, CrossVLTModel, CrossVLTProcessor
from crossvlt_hf.cli import main as crossvlt
from crossvlt_hf.data.refshapes import load_refshapes
from crossvlt_hf.evaluation import EvaluationOptions, evaluate
from crossvlt_hf.evaluation.calibration import (
    LEAST_SAMPLES,
    calibration_error,
    calibration_report,
    fit_score,
    reliability,
    save_calibration,
)
from crossvlt_hf.evaluation.run import _found_instances
from crossvlt_hf.metrics import Sample, match_instances
from crossvlt_hf.pipeline_crossvlt import ReferringImageSegmentationPipeline
from crossvlt_hf.processing_crossvlt import (
    apply_calibration,
    estimate_iou,
    find_instances,
    resolve_presence_threshold,
)
from crossvlt_hf.publishing.card import render_card
from crossvlt_hf.publishing.export import export_model
from crossvlt_hf.publishing.facts import Evidence
from crossvlt_hf.publishing.page.about import score_note
from crossvlt_hf.training.build import build_model, refshapes_tokenizer
from crossvlt_hf.training.config import ModelOptions
from crossvlt_hf.weights.checkpoint import load_checkpoint


FAMILIES = ["attribute", "plural", "no_target"]


class Fixed(torch.nn.Module):
    """Sets the presence logits of a model: positive for even numbers of pairs, negative for odd ones."""

    def forward(self, sentence, feature_map, mask_logits):
        return torch.tensor([4.0, -4.0]).repeat(len(sentence))[: len(sentence)]


@pytest.fixture(scope="module")
def shapes():
    """A small model with the words of RefShapes."""
    torch.manual_seed(0)
    tokenizer = refshapes_tokenizer()
    model = CrossVLTModel(tiny_config(presence_head=True, text_config={"vocab_size": len(tokenizer)})).eval()
    return model, CrossVLTProcessor.from_tokenizer(tokenizer, image_size=32, max_length=20)


@pytest.fixture
def saved(tmp_path, shapes):
    for part in shapes:
        part.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def outputs(presence=(2.0, -2.0), size=(6, 8)) -> dict:
    """Two masks with two parts each, of 4 and of 2 pixels."""
    logits = torch.zeros(2, 2, *size)
    logits[:, 0] = 3.0
    logits[:, 1, 1:3, 1:3], logits[:, 1, 4, 5:7] = 6.0, 5.0
    return {"logits": logits, "presence_logits": torch.tensor(presence)}


# ---- post-processing


def test_without_a_threshold_the_presence_is_only_said(processor):
    found = processor.post_process_masks(outputs())
    assert [result["presence"] for result in found] == pytest.approx([0.880797, 0.119203], abs=1e-5)
    assert [int(result["mask"].sum()) for result in found] == [6, 6]


@pytest.mark.parametrize(("threshold", "areas"), [(0.05, [6, 6]), (0.5, [6, 0]), (0.95, [0, 0])])
def test_below_the_threshold_there_is_nothing(processor, threshold, areas):
    options = {"presence_threshold": threshold, "instances": True, "return_probabilities": True}
    for result, area in zip(processor.post_process_masks(outputs(), [(12, 16)] * 2, **options), areas, strict=True):
        assert bool(result["mask"].any()) == (area > 0)
        assert (result["box"] is None) == (area == 0)
        assert (result["score"] == 0.0) == (area == 0)
        assert (result["parts"], len(result["instances"])) == ((2, 2) if area else (0, 0))
        assert result["probabilities"].max() > 0.9  # what the pixels say stays


@pytest.mark.parametrize("kind", [dict, SimpleNamespace])
def test_outputs_of_any_kind(processor, kind):
    assert processor.post_process_masks(kind(**outputs()), presence_threshold=0.5)[1]["box"] is None


def test_without_the_head_presence_is_absent(processor):
    logits = outputs()["logits"]
    for given in (logits, {"logits": logits}):
        assert "presence" not in processor.post_process_masks(given)[0]
        message = r"`presence_threshold` must be left out without `presence_logits`.*, got 0\.5"
        with pytest.raises(ValueError, match=message):
            processor.post_process_masks(given, presence_threshold=0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"presence_threshold": 0}, "`presence_threshold` must be a probability above 0 and below 1, got 0"),
        ({"presence_threshold": 1.5}, "`presence_threshold` must be a probability above 0 and below 1, got 1.5"),
        ({"presence_threshold": "high"}, "`presence_threshold` must be a probability above 0 and below 1, got 'high'"),
        ({"min_area": 3}, "`min_area` must be None without `instances`, got 3"),
        ({"instances": True, "min_area": 0}, "`min_area` must be a number of pixels of at least 1, got 0"),
        ({"instances": True, "min_area": 2.5}, "got 2.5"),
        ({"instances": True, "min_area": True}, "got True"),
    ],
)
def test_options_that_cannot_be(processor, changes, message):
    with pytest.raises(ValueError, match=message):
        processor.post_process_masks(outputs(), **changes)


def test_presence_that_is_nan(processor):
    with pytest.raises(ValueError, match="Logits must not be NaN"):
        processor.post_process_masks(outputs((1.0, float("nan"))))


@pytest.mark.parametrize("presence", [(1.0,), ((1.0,), (2.0,))])
def test_presence_that_cannot_be(processor, presence):
    with pytest.raises(ValueError, match="`presence_logits` must have a number for each of 2 pairs"):
        processor.post_process_masks(outputs(presence))


def test_instances_by_hand(processor):
    (result, _) = processor.post_process_masks(outputs(), instances=True)
    assert [part["box"] for part in result["instances"]] == [[1, 1, 3, 3], [5, 4, 7, 5]]
    assert [part["area"] for part in result["instances"]] == [4, 2]
    assert torch.equal(result["instances"][0]["mask"] | result["instances"][1]["mask"], result["mask"])
    (result, _) = processor.post_process_masks(outputs(), instances=True, min_area=3)
    assert [part["area"] for part in result["instances"]] == [4]
    assert result["mask"].sum() == 6


def test_instances_are_the_connected_parts():
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = torch.from_numpy(rng.random((13, 17)) > 0.7)
        parts = find_instances(mask)
        assert sum(part["mask"].int() for part in parts).equal(mask.int())
        assert [part["area"] for part in parts] == sorted((int(p["mask"].sum()) for p in parts), reverse=True)
        for part in parts:  # what touches a part is in it
            grown = torch.nn.functional.max_pool2d(part["mask"][None].float(), 3, 1, 1)[0] > 0
            assert (grown & mask).equal(part["mask"])
    assert find_instances(torch.zeros(3, 4, dtype=torch.bool)) == []


# ---- the score


def test_estimate_by_hand():
    margin = torch.logit(torch.tensor([[0.9, 0.8], [0.25, 0.05]], dtype=torch.float64))
    assert estimate_iou(margin, margin > 0) == pytest.approx(1.7 / 2.3)
    assert estimate_iou(margin, margin > 9) == 0.0


def test_a_calibrated_score_is_interpolated(processor):
    plain = processor.post_process_masks(outputs())[0]["score"]
    margin = outputs()["logits"][0, 1] - outputs()["logits"][0, 0]
    assert plain == pytest.approx(margin[margin > 0].sigmoid().mean().item())
    processor.score_calibration = [[0.0, 0.0], [1.0, 0.5]]
    found = processor.post_process_masks(outputs())
    estimate = estimate_iou(margin, margin > 0)
    assert [r["score"] for r in found] == pytest.approx([estimate * r["presence"] / 2 for r in found])
    assert processor.post_process_masks(outputs()["logits"])[0]["score"] == pytest.approx(estimate / 2)
    assert processor.post_process_masks(outputs(), presence_threshold=0.5)[1]["score"] == 0.0


def test_a_score_is_low_where_the_presence_is(processor):
    processor.score_calibration = [[0.3, 0.15], [0.9, 0.9]]
    for logit in (-12.0, -4.0, 0.0, 4.0):
        found = processor.post_process_masks(outputs(presence=(logit, logit)))[0]
        assert 0 < found["score"] <= found["presence"]
    assert apply_calibration([0.0, 0.15, 0.3, 0.6, 1.0], processor.score_calibration).tolist() == pytest.approx(
        [0.0, 0.075, 0.15, 0.525, 0.9]
    )


def test_the_calibration_is_saved(tmp_path, processor):
    processor.score_calibration = [[0.25, 0.125], [0.5, 0.75]]
    processor.save_pretrained(tmp_path)
    assert CrossVLTProcessor.from_pretrained(tmp_path).score_calibration == [[0.25, 0.125], [0.5, 0.75]]
    save_calibration(tmp_path, [[0.5, 0.5]])
    assert CrossVLTProcessor.from_pretrained(tmp_path).score_calibration == [[0.5, 0.5]]
    save_calibration(tmp_path, None)
    assert CrossVLTProcessor.from_pretrained(tmp_path).score_calibration is None


@pytest.mark.parametrize(
    "points",
    [
        [],
        [0.5],
        [[0.5]],
        [[0.5, 0.5, 0.5]],
        [[0.5, 1.5]],
        [[-0.1, 0.5]],
        [[0.5, 0.5], [0.5, 0.6]],
        [[0.5, 0.5], [0.6, 0.4]],
        [[0.5, float("nan")]],
        "none",
        {"a": 1},
        [["a", "b"]],
    ],
)
def test_calibrations_that_cannot_be(tmp_path, processor, points):
    with pytest.raises(ValueError, match="`score_calibration` must be"):
        CrossVLTProcessor(processor.image_processor, processor.tokenizer, score_calibration=points)
    with pytest.raises(ValueError, match="`score_calibration` must be"):
        processor.score_calibration = points
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`score_calibration` must be"):
        save_calibration(tmp_path, points)


def test_calibration_error_by_hand():
    scores, values = [0.05, 0.1, 0.95, 1.0], [0.0, 0.2, 1.0, 0.5]
    rows = reliability(scores, values)
    assert [(row["low"], row["samples"]) for row in rows] == [(0.0, 1), (0.1, 1), (0.9, 2)]
    assert (rows[2]["score"], rows[2]["value"]) == pytest.approx((0.975, 0.75))
    assert calibration_error(scores, values) == pytest.approx((0.05 + 0.1 + 2 * 0.225) / 4)
    assert calibration_error([], []) is None


@pytest.mark.parametrize(("scores", "values"), [([0.5], []), ([1.5], [1.0]), ([float("nan")], [1.0]), ([[0.5]], [1])])
def test_scores_that_cannot_be(scores, values):
    with pytest.raises(ValueError, match=r"as many scores|numbers from 0 to 1"):
        calibration_error(scores, values)


@pytest.mark.parametrize("seed", range(4))
def test_a_fit_calibrates_fresh_samples(seed):
    """Estimates that promise too much, and IoUs that are 0 or high, as those of a model are."""
    rng = np.random.default_rng(seed)

    def draw(count):
        estimate = 0.4 + 0.6 * rng.beta(4, 1, count)
        right = rng.random(count) < estimate**3
        return estimate, np.where(right, rng.uniform(0.8, 1.0, count), rng.uniform(0, 0.1, count))

    points = fit_score(*draw(2000))
    estimate, iou = draw(4000)
    assert len(points) <= 20
    assert calibration_error(estimate, iou) > 0.15
    assert calibration_error(np.interp(estimate, *zip(*points, strict=True)), iou) <= 0.03


def test_a_fit_of_what_falls_or_stays_is_flat():
    x = np.linspace(0, 1, 100)
    assert fit_score(x, 1 - x) == [[0.5, 0.5]]
    assert fit_score(np.full(100, 0.5), x) == [[0.5, 0.5]]


def test_a_fit_needs_samples():
    few = [0.5] * (LEAST_SAMPLES - 1)
    with pytest.raises(ValueError, match="as many estimates as IoUs, at least 50, got 49 and 49"):
        fit_score(few, few)
    with pytest.raises(ValueError, match="as many estimates as IoUs"):
        fit_score([0.5] * 60, [0.5] * 61)


def test_the_report_is_of_what_was_answered():
    samples = [
        Sample(8, 10, 9, score=0.9, presence=0.8),
        Sample(0, 10, 10, has_target=False, score=0.7, presence=0.6),
        Sample(0, 0, 0, has_target=False, score=0.0, presence=0.2),
    ]
    report = calibration_report(samples, calibrated=True)
    assert sum(row["samples"] for row in report["score"]["bins"]) == 2
    assert report["score"]["expected_calibration_error"] == pytest.approx((0.1 + 0.7) / 2)
    assert report["presence"]["expected_calibration_error"] == pytest.approx((0.2 + 0.6 + 0.2) / 3)
    assert calibration_report([Sample(1, 2, 1)], calibrated=False) == {}


# ---- the pipeline, the page, the endpoint's parameters, the card


@pytest.fixture
def segmenter(shapes):
    model, processor = shapes
    model = CrossVLTModel(model.config).eval()
    model.presence_head = Fixed()
    return ReferringImageSegmentationPipeline(model=model, processor=processor)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_the_pipeline_draws_nothing_where_nothing_fits(segmenter, batch_size):
    options = {} if batch_size is None else {"batch_size": batch_size}
    image = Image.fromarray(photo(40, 50))
    found = segmenter(image, text=["the red circle", "the blue star"], presence_threshold=None, **options)
    assert [round(result["presence"], 3) for result in found] == [0.982, 0.018]
    found = segmenter(image, text=["the red circle", "the blue star"], instances=True, **options)
    assert found[1]["mask"].getextrema() == (0, 0)
    assert (found[1]["box"], found[1]["score"], found[1]["instances"]) == (None, 0.0, [])
    for part in found[0]["instances"]:
        assert set(part) == {"mask", "box", "area"}
        assert part["mask"].histogram()[255] == part["area"]
    assert segmenter(image, text="the red circle", presence_threshold=0.99, **options)[0]["box"] is None


@pytest.mark.parametrize("options", [{"presence_threshold": 2}, {"min_area": 4}, {"instances": True, "min_area": -1}])
def test_the_pipeline_refuses(segmenter, options):
    with pytest.raises(ValueError, match=next(iter(reversed(options)))):
        segmenter(Image.new("RGB", (8, 8)), text="the red circle", **options)


def test_the_pipeline_without_the_head(model, processor):
    segmenter = ReferringImageSegmentationPipeline(model=model, processor=processor)
    assert "presence" not in segmenter(Image.new("RGB", (8, 8)), text="the cup")[0]
    with pytest.raises(ValueError, match="`presence_threshold` must be left out for a model without a presence head"):
        segmenter(Image.new("RGB", (8, 8)), text="the cup", presence_threshold=0.5)


def test_options_of_the_pipeline_and_of_a_call_go_together(shapes):
    model, processor = shapes
    options = {"instances": True, "presence_threshold": None}
    segmenter = ReferringImageSegmentationPipeline(model=model, processor=processor, **options)
    image = Image.fromarray(photo(40, 50))
    (every,) = segmenter(image, text="the red circle")
    (large,) = segmenter(image, text="the red circle", min_area=100, return_probabilities=True)
    assert large["instances"] == [part for part in every["instances"] if part["area"] >= 100]
    assert large["probabilities"].shape == (40, 50)
    with pytest.raises(ValueError, match="`min_area` must be None without `instances`, got 4"):
        segmenter(image, text="the red circle", instances=False, min_area=4)
    with pytest.raises(ValueError, match="`instances` must be True or False, got 'all'"):
        segmenter(image, text="the red circle", instances="all")


def test_a_model_with_the_head_that_gives_tuples(shapes, tmp_path):
    model, processor = CrossVLTModel(copy.deepcopy(shapes[0].config)).train(), shapes[1]
    dataset = load_refshapes("test", scenes=2, side=32)
    image, ways = Image.fromarray(photo(40, 50)), []
    for model.config.return_dict in (True, False):
        segmenter = ReferringImageSegmentationPipeline(model=model.train(), processor=processor)
        (found,) = segmenter(image, text="the red circle", presence_threshold=None)
        measured = evaluate(model, processor, dataset).samples
        ways.append((found, [sample.presence for sample in measured]))
    assert ways[0] == ways[1]


@pytest.mark.slow
def test_a_model_with_the_head_that_gives_tuples_is_exported(shapes, tmp_path):
    model, processor = CrossVLTModel(copy.deepcopy(shapes[0].config)), shapes[1]
    model.config.return_dict = False
    exported = export_model(model, processor, tmp_path / "exported", file_format="torch-export")
    assert all(check["presence_difference"] < 0.01 for check in exported["checks"])


def test_what_the_page_says_of_scores(shapes, model, processor):
    with_head, words = shapes
    assert "always segments something" in score_note(model, processor)
    assert "the mask is empty" in score_note(with_head, words)
    assert "expected overlap" not in score_note(with_head, words)
    processor.score_calibration = [[0.5, 0.5]]
    assert "expected overlap" in score_note(model, processor)


@pytest.mark.slow
def test_the_card_says_it():
    report = {
        "data": "refshapes",
        "split": "test",
        "metrics": {"mean_iou": 0.5},
        "calibration": {"calibrated": True, "score": {"expected_calibration_error": 0.0123, "bins": []}},
    }
    options = {"model_id": "me/model", "image_size": (64, 64), "max_length": 9}
    card = str(render_card(CrossVLTConfig(presence_head=True), evidence=Evidence(evaluations=[report]), **options))
    assert "refshapes test, expected calibration error: score 1.2 %." in card
    assert "empty without a target" in card
    assert "always segments one object" not in card
    assert "always segments one object" in str(render_card(CrossVLTConfig(), **options))


def test_training_on_drops_the_calibration(saved):
    save_calibration(saved, [[0.5, 0.5]])
    _, processor = build_model(ModelOptions(checkpoint=str(saved)))
    assert processor.score_calibration is None


# ---- evaluation and the commands


def test_evaluation_counts_what_is_not_there(shapes):
    model, processor = shapes
    model = CrossVLTModel(model.config).eval()
    model.presence_head = Fixed()
    torch.nn.init.constant_(model.decoder.classifier.weight, 0.0)
    model.decoder.classifier.bias.data = torch.tensor([-1.0, 1.0])  # an object at every pixel
    dataset = load_refshapes("test", scenes=6, side=32, families=["attribute", "no_target"])
    right = evaluate(model, processor, dataset, EvaluationOptions(batch_size=6, instances=True))
    assert right.compute()["no_target_accuracy"] == 1.0
    assert right.compute_groups()["no_target"]["mean_iou"] == 1.0
    assert right.compute_groups()["no_target"]["instance_accuracy"] == 1.0
    assert [sample.presence > 0.5 for sample in right.samples] == [True, False] * 3
    drawn = evaluate(model, processor, dataset, EvaluationOptions(batch_size=6, presence_threshold=None))
    assert drawn.compute()["no_target_accuracy"] == 0.0
    assert all(sample.instances_found is None for sample in drawn.samples)


@pytest.mark.parametrize(
    ("found", "wanted", "expected"),
    [
        ([], [], True),
        ([[0, 0, 4, 4]], [], False),
        ([[0, 0, 4, 4]], [[0, 0, 4, 5]], True),
        ([[0, 0, 4, 4]], [[0, 0, 4, 9]], False),
        ([[9, 9, 12, 12], [0, 0, 4, 4]], [[0, 0, 4, 4], [9, 9, 12, 12]], True),
        ([[0, 0, 4, 4], [0, 0, 4, 4]], [[0, 0, 4, 4], [9, 9, 12, 12]], False),
        # The first true box overlaps most with the only predicted one that the second could have
        ([[0, 0, 10, 9], [0, 0, 10, 6]], [[0, 0, 10, 10], [0, 0, 10, 14]], True),
        ([[0, 0, 10, 9], [0, 0, 10, 6]], [[0, 0, 10, 14], [0, 0, 10, 10]], True),
    ],
)
def test_instances_match_by_their_boxes(found, wanted, expected):
    assert match_instances(found, wanted) is expected


def drawn(*boxes) -> np.ndarray:
    mask = np.zeros((40, 40), dtype=bool)
    for x, y, size in boxes:
        mask[y : y + size, x : x + size] = True
    return mask


@pytest.mark.parametrize(
    ("found", "wanted", "expected"),
    [
        ([], [(5, 5, 3)], False),  # a small target that is missed
        ([(30, 30, 3)], [(5, 5, 3)], False),  # or found elsewhere
        ([(5, 5, 3)], [(5, 5, 3)], True),
        ([(30, 30, 3)], [], False),  # a speck is wrong without a target, as for N-acc
        ([(5, 5, 9), (30, 30, 3)], [(5, 5, 9)], True),  # specks beside others are left out
        ([(5, 5, 9)], [(5, 5, 9), (30, 30, 3)], True),
        ([], [], True),
    ],
)
def test_parts_below_the_least_area_count_only_alone(found, wanted, expected):
    assert _found_instances(torch.from_numpy(drawn(*found)), drawn(*wanted), min_area=16) is expected


@pytest.mark.parametrize("kind", [float, np.float32, np.float64, Fraction])
def test_a_threshold_may_be_any_number(kind):
    assert resolve_presence_threshold(kind(0.5), has_head=True) == 0.5
    assert type(resolve_presence_threshold(kind(0.5), has_head=True)) is float


@pytest.mark.parametrize("part", ["decoder.classifier", "presence_head.classifier"])
def test_weights_that_are_nan_are_not_evaluated(shapes, part):
    model, processor = shapes
    config = CrossVLTConfig(**{**model.config.to_dict(), "presence_head": True})
    model = CrossVLTModel(config).eval()
    torch.nn.init.constant_(model.get_submodule(part).weight, torch.nan)
    dataset = load_refshapes("test", scenes=2, side=32, families=["attribute", "no_target"])
    with pytest.raises(ValueError, match="Logits must not be NaN"):
        evaluate(model, processor, dataset)


def test_evaluate_calibrates_the_checkpoint(saved, tmp_path, capsys):
    families = "families={attribute: 1, plural: 1, no_target: 1}"
    data = ["--data", "refshapes", "--split", "test", "--option", "scenes=60", "--option", "side=32"]
    report, picture = tmp_path / "report.json", tmp_path / "reliability.png"
    command = ["evaluate", "--model", str(saved), *data, "--option", families, "--output", str(report)]
    command += ["--presence-threshold", "none", "--device", "cpu"]
    assert crossvlt([*command, "--calibrate", "--min-area", "4"]) == 0
    assert "| N-acc | T-acc | Pr@F |" in capsys.readouterr().out
    before = json.loads(report.read_text())
    assert CrossVLTProcessor.from_pretrained(saved).score_calibration
    assert crossvlt([*command, "--reliability", str(picture)]) == 0
    after = json.loads(report.read_text())
    assert (before["calibration"]["calibrated"], after["calibration"]["calibrated"]) == (False, True)
    error = [entry["calibration"]["score"]["expected_calibration_error"] for entry in (before, after)]
    assert error[1] < 0.02 < error[0]
    assert after["calibration"]["presence"]["bins"]
    with Image.open(picture) as drawn:
        assert min(drawn.size) > 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--calibrate"], "`--model` must be a folder with a processor_config.json, got None"),
        (["--calibrate", "--shuffle"], "leave out --shuffle"),
        (["--reliability", "picture.jpg"], "`--reliability` must be a file name that ends in .png, got 'picture.jpg'"),
        (["--presence-threshold", "7"], "`--presence-threshold` must be a probability above 0 and below 1, got 7.0"),
        (["--min-area", "0"], "`--min-area` must be an integer of at least 1, got 0"),
    ],
)
def test_evaluate_refuses(options, message, capsys):
    assert crossvlt(["evaluate", "--data", "refshapes", "--split", "test", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("head", [False, True])
def test_a_model_that_finds_nothing_is_evaluated_and_cannot_be_calibrated(shapes, tmp_path, capsys, head):
    model, processor = shapes
    model = CrossVLTModel(CrossVLTConfig(**{**model.config.to_dict(), "presence_head": head}))
    model.decoder.classifier.bias.data = torch.tensor([9.0, -9.0])
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    pictures = [tmp_path / "reliability.png", tmp_path / "gallery.png"]
    command = ["evaluate", "--model", str(tmp_path / "model"), "--data", "refshapes", "--split", "test"]
    command += ["--option", "scenes=2", "--option", "side=32", "--output", str(tmp_path / "report.json")]
    command += ["--reliability", str(pictures[0]), "--gallery", str(pictures[1]), "--calibrate", "--device", "cpu"]
    assert crossvlt(command) == 2
    *_, note, error = capsys.readouterr().err.splitlines()
    assert error == "crossvlt: `--calibrate` needs at least 50 masks that are not empty, got 0; use more data."
    assert note == f"The gallery is in {pictures[1]}"
    assert [path.is_file() for path in pictures] == [head, True]
    assert CrossVLTProcessor.from_pretrained(tmp_path / "model").score_calibration is None


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_lines_of_broken_rows_have_the_same_columns(saved, tmp_path, file_format):
    import pyarrow.parquet as pq

    Image.fromarray(photo(40, 50)).save(tmp_path / "a.png")
    rows, shards = tmp_path / "rows.jsonl", tmp_path / "out"
    lines = [{"image": name, "expressions": ["the red circle"]} for name in ("a.png", "b.png")]
    rows.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    command = ["predict", str(rows), "--model", str(saved), "--output", str(shards), "--format", file_format]
    assert crossvlt([*command, "--shard-size", "1", "--on-error", "skip", "--device", "cpu"]) == 0
    good, broken = (
        pq.read_table(shard).to_pylist()[0] if file_format == "parquet" else json.loads(shard.read_text())
        for shard in sorted(shards.glob(f"*.{file_format}"))
    )
    assert set(good) == set(broken)
    assert 0 < good["presence"] < 1
    assert (broken["presence"], broken["text_read"], broken["error"] is None) == (None, None, False)


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_predict_says_it(saved, tmp_path, file_format, capsys):
    import pyarrow.parquet as pq

    Image.fromarray(photo(40, 50)).save(tmp_path / "a.png")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"image": "a.png", "expressions": ["the red circle", "all stars"]}) + "\n")
    shards = tmp_path / "out"
    command = ["predict", str(rows), "--model", str(saved), "--output", str(shards), "--format", file_format]
    assert crossvlt([*command, "--presence-threshold", "0.999", "--device", "cpu"]) == 0
    (shard,) = shards.glob(f"*.{file_format}")
    lines = (
        pq.read_table(shard).to_pylist()
        if file_format == "parquet"
        else [json.loads(line) for line in shard.read_text().splitlines()]
    )
    assert all(0 < line["presence"] < 0.999 for line in lines)
    assert all(line["box"] is None and line["score"] == 0.0 for line in lines)
    assert crossvlt([*command, "--presence-threshold", "none", "--device", "cpu"]) == 2  # another job
    assert "presence_threshold" in capsys.readouterr().err


def test_segment_says_it(saved, shapes, tmp_path, capsys):
    Image.fromarray(photo(40, 50)).save(tmp_path / "a.png")
    command = ["segment", str(tmp_path / "a.png"), "all stars", "--model", str(saved), "--output", str(tmp_path)]
    assert crossvlt([*command, "--presence-threshold", "none", "--min-area", "1"]) == 0
    drawn = json.loads(capsys.readouterr().out)
    assert sum(part["area"] for part in drawn["instances"]) == drawn["area"]
    assert crossvlt([*command, "--presence-threshold", "0.999"]) == 0
    empty = json.loads(capsys.readouterr().out)
    assert (empty["area"], empty["box"], empty["presence"]) == (0, None, drawn["presence"])
    without = CrossVLTModel(tiny_config(text_config={"vocab_size": len(shapes[1].tokenizer)}))
    without.save_pretrained(saved)
    assert crossvlt([*command, "--presence-threshold", "0.5"]) == 2
    assert "`--presence-threshold` must be left out for a model without a presence head" in capsys.readouterr().err


# ---- configuration


@pytest.mark.parametrize("fields", [{"presence_head": "yes"}, {"presence_head": 1}, {"presence_loss_weight": "1"}])
def test_fields_of_the_wrong_kind(fields):
    with pytest.raises(StrictDataclassError):
        CrossVLTConfig(**fields)


def test_a_checkpoint_without_the_head_stays_without(tmp_path, model):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in [name for name in config if name.startswith("presence")]:
        del config[name]  # as an older version wrote it
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = CrossVLTModel.from_pretrained(tmp_path)
    assert loaded.presence_head is None
    batch = {name: value for name, value in fake_batch(model.config).items() if name != "labels"}
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


# ---- gRefCOCO, from its files to the table


def write_grefcoco(root) -> None:
    """One, several and no targets, in the published format."""
    writer = ReferWriter(root)
    for split, count in (("train", 4), ("val", 2), ("testA", 2), ("testB", 1)):
        for number in range(count):
            image_id = writer.add_image(photo(48, 64, seed=len(writer.images)))
            left = writer.add_object(image_id, [box(4, 6, 20, 30)])
            right = writer.add_object(image_id, [box(36, 10, 18, 24)])
            writer.add_ref(image_id, [left], ["the left cup", "left"], split)
            writer.add_ref(image_id, [left, right], [f"both cups {number}"], split)
            writer.add_ref(image_id, [-1], ["the spoon"], split)
    writer.write("grefcoco", "grefs(unc).json")


@pytest.mark.slow
def test_grefcoco_from_the_json_to_the_table(tmp_path, capsys):
    from transformers import BertConfig, BertModel, SwinConfig, SwinModel

    from crossvlt_hf.training.__main__ import main as train

    write_grefcoco(tmp_path / "data")
    torch.manual_seed(0)
    swin = SwinConfig(image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], window_size=4)
    SwinModel(swin).save_pretrained(tmp_path / "swin")
    tokenizer = refshapes_tokenizer()
    bert = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=6, num_attention_heads=2, intermediate_size=32
    )
    BertModel(bert).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    run = tmp_path / "run"
    settings = [
        f"data.root={tmp_path / 'data'}",
        "data.workers=0",
        f"model.vision_encoder={tmp_path / 'swin'}",
        f"model.text_encoder={tmp_path / 'bert'}",
        "model.image_size=32",
        "optimization.epochs=1",
        f"output.folder={run}",
        "output.trackers=[]",
        "output.pictures=0",
        "model.config={presence_head: true, fusion_head_dim: 8, decoder_hidden_size: 8}",
    ]
    assert train(["grefcoco", *settings]) == 0
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert any(entry.get("presence_loss", 0) > 0 for entry in entries)
    assert any(entry.get("validation/no_target_accuracy") is not None for entry in entries)
    capsys.readouterr()
    report = tmp_path / "report.json"
    command = ["evaluate", "--model", str(run / "best"), "--data", "grefcoco", "--root", str(tmp_path / "data")]
    assert crossvlt([*command, "--split", "testA", "--instances", "--output", str(report), "--device", "cpu"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("| checkpoint, data | samples | oIoU | mIoU | P@0.5 |")
    assert table[0].endswith("| N-acc | T-acc | Pr@F |")
    assert table[2].startswith(f"| {run}/best, grefcoco testA | 8 |")
    metrics = json.loads(report.read_text())["metrics"]
    assert metrics["no_target_accuracy"] in (0.0, 0.5, 1.0)
    assert metrics["target_accuracy"] in [number / 6 for number in range(7)]


@pytest.mark.slow
def test_a_checkpoint_without_the_head_is_trained_on_grefcoco_with_it(tmp_path):
    from crossvlt_hf.training.__main__ import main as train

    write_grefcoco(tmp_path / "data")
    config = tiny_config(text_config={"vocab_size": len(refshapes_tokenizer())})
    CrossVLTModel(config).save_pretrained(tmp_path / "plain")
    CrossVLTProcessor.from_tokenizer(refshapes_tokenizer(), 32, 12).save_pretrained(tmp_path / "plain")
    settings = ["data.workers=0", "data.validation=[]", "output.trackers=[]", "optimization.max_steps=1"]
    model = f"model={{checkpoint: {tmp_path / 'plain'}, config: {{presence_head: true}}}}"
    run = [f"data.root={tmp_path / 'data'}", f"output.folder={tmp_path / 'run'}"]
    assert train(["grefcoco", model, *settings, *run]) == 0
    trained, processor = load_checkpoint(tmp_path / "run" / "last")
    assert trained.presence_head is not None
    assert processor.image_size == (32, 32)
