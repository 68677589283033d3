"""Evaluation against a plain loop, by hand, and in three processes."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_tokenizer
from PIL import Image
from processes import run_python
from three_processes import CASES, SIDE, balanced_model, evaluate_by_trainer, evaluate_cases, records

from crossvlt_hf import CrossVLTProcessor
from crossvlt_hf.data import Record, build_dataset
from crossvlt_hf.data.masks import encode_mask, pack
from crossvlt_hf.evaluation.run import EvaluationOptions, evaluate, find_masks, tokenize
from crossvlt_hf.metrics import ReferringSegmentationMetric, Sample


HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return records(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def trained(dataset):
    return balanced_model(dataset)


class LeftHalf(torch.nn.Module):
    """Finds the left half of every picture, and remembers what it was asked."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, pixel_values, input_ids, **kwargs):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.asked += input_ids.tolist()
        logits = torch.zeros(len(pixel_values), 2, *pixel_values.shape[-2:])
        half = pixel_values.shape[-1] // 2
        logits[:, 1, :, :half], logits[:, 0, :, half:] = 1.0, 1.0
        return SimpleNamespace(logits=logits)


def words(processor, rows):
    return [processor.tokenizer.decode(row, skip_special_tokens=True) for row in rows]


# ---- one process


@pytest.mark.parametrize("protocol", ["paper", "original"])
def test_is_a_plain_loop(dataset, trained, protocol):
    model, processor = trained
    expected = []
    for row in (dataset[number] for number in range(len(dataset))):
        for expression in row["expressions"]:
            inputs = processor(row["image"], expression, segmentation_maps=row["mask"], return_tensors="pt")
            target = np.asarray(row["mask"]) if protocol == "original" else inputs.pop("labels")[0].numpy()
            inputs.pop("labels", None)
            with torch.no_grad():
                (result,) = processor.post_process_masks(model(**inputs), [target.shape])
            found = result["mask"].numpy()
            areas = [int(x.sum()) for x in (found & (target == 1), found | (target == 1), found)]
            expected.append(Sample(*areas, row["has_target"], row["family"]))
    metric = evaluate(model, processor, dataset, EvaluationOptions(batch_size=3, protocol=protocol))
    assert metric.samples == expected
    assert metric.compute() == ReferringSegmentationMetric(expected).compute()
    assert 0.05 < metric.compute()["mean_iou"] < 0.95  # of a model that finds something
    assert set(metric.compute_groups()) == {"even", "odd"}


@pytest.mark.parametrize(("protocol", "areas"), [("paper", (2, 8, 8)), ("original", (3, 8, 8))])
def test_protocols_by_hand(tmp_path, protocol, areas):
    """A picture of 2x8 pixels, a model of 4x4, the object at the top left: three pixels, of which nearest keeps one.

    paper     nearest takes the columns 1, 3, 5, 7 and each row twice: 2 pixels of object, all in the left half of 8
    original  the left half is 8 pixels of 16, three of which are object
    """
    mask = np.zeros((2, 8), dtype=np.uint8)
    mask[0, :3] = 1
    Image.new("RGB", (8, 2)).save(tmp_path / "image.png")
    record = Record(tmp_path / "image.png", 0, 0, ["the cup"], pack([encode_mask(mask)], 2, 8), "val", "test", "row 0")
    processor = CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), image_size=4, max_length=9)
    model = LeftHalf()
    metric = evaluate(model, processor, build_dataset([record]), EvaluationOptions(protocol=protocol))
    assert metric.samples == [Sample(*areas)]
    assert model.training  # as it was


class TwoParts(LeftHalf):
    """Finds the left third of every picture, and a speck at the right."""

    def forward(self, pixel_values, input_ids, **kwargs):
        logits = torch.zeros(len(pixel_values), 2, *pixel_values.shape[-2:])
        logits[:, 0] = 1.0
        logits[:, 1, :, : pixel_values.shape[-1] // 3] = logits[:, 1, -1, -1] = 2.0
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("protocol", ["paper", "original"])
def test_the_largest_part_is_compared(dataset, trained, protocol):
    _, processor = trained
    free, kept = (
        evaluate(TwoParts(), processor, dataset, EvaluationOptions(protocol=protocol, largest_part=flag))
        for flag in (False, True)
    )
    assert {sample.parts for sample in free.samples} == {None}
    assert {sample.parts for sample in kept.samples} == {2}
    assert kept.compute()["mean_parts"] == 2
    assert "mean_parts" not in free.compute()
    for before, after in zip(free.samples, kept.samples, strict=True):
        assert 0 < after.predicted < before.predicted
    ((_, mask),) = find_masks(TwoParts(), processor, dataset, [0], EvaluationOptions(largest_part=True))
    assert not mask[:, mask.shape[1] // 2 :].any()
    assert mask.any()


def test_distractors_are_other_references_to_the_image(dataset, trained):
    model, processor = trained
    metric = evaluate(model, processor, dataset, EvaluationOptions(distractors=True))
    assert [sample.distractor is not None for sample in metric.samples] == [True] * 4 + [False] * 6
    swapped = dataset.select([1, 0, 2, 3, 4])
    other = evaluate(model, processor, swapped, EvaluationOptions(distractors=True)).samples
    assert metric.compute()["right_object_rate"] is not None
    # The expression of reference 1 compares with the target of reference 0, whichever stands first
    assert metric.samples[3] == other[0]


def test_reads_every_expression_in_order(dataset):
    model, processor = LeftHalf(), CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), SIDE, max_length=30)
    said = [text for number in range(len(dataset)) for text in dataset[number]["expressions"]]
    evaluate(model, processor, dataset)
    assert words(processor, model.asked) == said


def test_shuffled_expressions(dataset):
    """The masks stay, the words come from half the data set away."""
    processor = CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), SIDE, max_length=30)
    plain, shuffled = LeftHalf(), LeftHalf()
    samples = evaluate(plain, processor, dataset).samples
    assert evaluate(shuffled, processor, dataset, EvaluationOptions(shuffle=True)).samples == samples
    assert words(processor, shuffled.asked) == words(processor, plain.asked[5:] + plain.asked[:5])


# ---- truncation


def test_reference_truncation_loses_sep_of_the_long_alone(processor):
    sep = processor.tokenizer.sep_token_id
    said = ["the cup", "the left cup in a red bus", "the left cup in a red bus above", "the man " * 9]  # 9 tokens fit
    ours, theirs = (tokenize(processor, said, way) for way in ("keep_sep", "reference"))
    assert all(values.shape == (4, 9) for values in (*ours.values(), *theirs.values()))
    for name in ours:
        assert torch.equal(ours[name][:2], theirs[name][:2])
    assert (ours["input_ids"] == sep).sum(1).tolist() == [1, 1, 1, 1]
    assert (theirs["input_ids"] == sep).sum(1).tolist() == [1, 1, 0, 0]
    assert torch.equal(ours["input_ids"][2:, :8], theirs["input_ids"][2:, :8])
    assert ours["input_ids"][2:, 8].tolist() == [sep, sep]
    assert theirs["input_ids"][2, 8].item() == processor.tokenizer.convert_tokens_to_ids("above")
    assert torch.equal(ours["attention_mask"], theirs["attention_mask"])


def test_truncation_is_the_processors(processor, photo):
    """What `keep_sep` gives is what the processor does."""
    said = ["the cup", "the man " * 9]
    inputs = processor(photo, said, return_tensors="pt")
    for name, values in tokenize(processor, said, "keep_sep").items():
        assert torch.equal(values, inputs[name])


# ---- what is wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "papers"}, r"`protocol` must be one of paper, original, got 'papers'. Did you mean paper?"),
        ({"truncation": None}, r"`truncation` must be one of keep_sep, reference, got None"),
        ({"batch_size": 0}, r"`batch_size` must be an integer of at least 1, got 0"),
        ({"workers": -1}, r"`workers` must be an integer from 0 to 1024, got -1"),
    ],
)
def test_broken_options(options, message):
    with pytest.raises(ValueError, match=message):
        EvaluationOptions(**options)


def test_a_broken_row_is_named_and_the_model_left_as_it_was(tmp_path, processor):
    Image.new("RGB", (8, 2)).save(tmp_path / "image.png")
    mask = pack([encode_mask(np.ones((3, 8), dtype=np.uint8))], 3, 8)
    row = Record(tmp_path / "image.png", 0, 0, ["the cup"], mask, "val", "test", "refs.json, row 7")
    model = LeftHalf()
    with pytest.raises(ValueError, match=r"refs\.json, row 7: the mask is 3x8 pixels .height x width., the image 2x8"):
        evaluate(model, processor, build_dataset([row]))
    assert model.training


# ---- three processes, and Trainer


@pytest.fixture(scope="module")
def alone(dataset, tmp_path_factory):
    """What one process finds."""
    folder = tmp_path_factory.mktemp("alone")
    return {
        "samples": evaluate_cases(dataset),
        "trainer": [evaluate_by_trainer(dataset, folder, running) for running in (False, True)],
    }


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What three find, each of them."""
    folder = tmp_path_factory.mktemp("three")
    done = run_python(HERE / "three_processes.py", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_three_processes_find_the_same(alone, together, case):
    """The very same samples in the same order, in every process, none twice and none lost."""
    expected = json.loads(json.dumps(alone["samples"][case]))
    assert len(expected) == {"seven": 7, "three": 3}.get(case, 10)
    assert [found["samples"][case] for found in together] == [expected] * 3


@pytest.mark.parametrize("running", [False, True])
def test_trainer_finds_the_same(dataset, alone, running):
    """Ten expressions, three at a time: the last batch has one."""
    samples = [Sample(*sample) for sample in alone["samples"]["ten"]]
    # To Trainer an expression has no target if its labels have no object
    expected = {f"eval_{name}": value for name, value in ReferringSegmentationMetric(samples).compute().items()}
    found = alone["trainer"][running]
    names = set(expected) - {"eval_distractor_iou", "eval_right_object_rate", "eval_right_object_samples"}
    assert {name: found[name] for name in names} == {name: expected[name] for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("running", [False, True])
def test_trainer_in_three_processes(alone, together, running):
    """Nine rows at a time: of the last nine only one is no duplicate."""
    expected = {name: value for name, value in alone["trainer"][running].items() if name != "eval_loss"}
    for found in together:
        assert {name: found["trainer"][running][name] for name in expected} == expected


def test_a_model_that_gives_tuples(dataset, trained):
    model, processor = trained
    expected = evaluate(model, processor, dataset).samples
    model.config.return_dict = False
    try:
        assert evaluate(model, processor, dataset).samples == expected
    finally:
        model.config.return_dict = True
