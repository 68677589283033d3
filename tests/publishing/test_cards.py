"""The model cards: rendered, valid for the Hub, and their code runs."""

import ast
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from documents import code_blocks, run_python
from hub_server import HubServer
from huggingface_hub import ModelCard, constants
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from crossvlt_hf import DEFAULT_CHECKPOINT, CrossVLTConfig, CrossVLTProcessor
from crossvlt_hf.benchmark.flops import count_flops, count_parameters
from crossvlt_hf.cli import main as crossvlt
from crossvlt_hf.data import load_data
from crossvlt_hf.data.masks import pack
from crossvlt_hf.data.record import Record, build_dataset
from crossvlt_hf.data.refshapes import make_example
from crossvlt_hf.metrics import markdown_table
from crossvlt_hf.publishing.card import render_card, render_checkpoint_card
from crossvlt_hf.publishing.facts import About, Evidence, hash_weights
from crossvlt_hf.publishing.page.samples import SAMPLES
from crossvlt_hf.publishing.repository import read_evidence, write_repository
from crossvlt_hf.training.report import count_shared_images, describe_run
from crossvlt_hf.weights.checkpoint import load_checkpoint
from crossvlt_hf.weights.vocabulary import default_tokenizer


ROOT = Path(__file__).parents[2]
CARDS = sorted((ROOT / "model_cards").glob("crossvlt-*.md"))


@pytest.fixture(scope="module")
def rendered():
    spec = importlib.util.spec_from_file_location("render_cards", ROOT / "examples" / "render_cards.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.cards()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Cards are validated by the Hub itself."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with HubServer(tmp_path / "hub") as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        yield server


def test_the_cards_are_those_of_the_built_in_and_of_the_paper():
    names = ["crossvlt-built-in", "crossvlt-refcoco", "crossvlt-refcocog", "crossvlt-refcocoplus"]
    assert [path.stem for path in CARDS] == names


@pytest.mark.slow
def test_the_cards_are_rendered_and_not_edited(rendered):
    assert {path.name: path.read_text() for path in CARDS} == rendered
    assert (DEFAULT_CHECKPOINT / "README.md").read_text() == rendered["crossvlt-built-in.md"]


@pytest.mark.parametrize("path", [CARDS[0], DEFAULT_CHECKPOINT / "about.yaml", ROOT / "model_cards" / "built_in.yaml"])
def test_the_photographs_of_the_sources_are_all_of_them(path):
    text = About.read(path).training if path.suffix == ".yaml" else path.read_text()
    (stated,) = re.findall(r"The ([\d,]+) photographs,", text)
    table = text.partition("| source | photographs |")[2].partition("\n\n")[0]
    counts = [int(row.split("|")[2].replace(",", "")) for row in table.splitlines()[2:]]
    assert len(counts) == 12
    assert sum(counts) == int(stated.replace(",", ""))


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_a_card_is_valid(path, hub):
    card = ModelCard.load(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        card.validate()
    assert hub.requests[-1].path == "/api/validate-yaml"
    assert card.data.eval_results  # so the `model-index` could be read
    assert all(0 < result.metric_value <= 100 for result in card.data.eval_results)
    for key in ("license", "language", "library_name", "pipeline_tag", "tags"):
        assert card.data.to_dict()[key]
    for heading in ("How to use it", "Results", "Limitations", "Training", "Citation"):
        assert f"\n## {heading}\n" in card.text


@pytest.mark.slow
@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_the_code_of_a_card_runs(path, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(make_example("test", 0).scene.image).save("scene.png")
    shutil.copy(ROOT / "examples" / "images" / "coffee.jpg", "photo.jpg")
    shutil.copytree(checkpoint, path.stem)  # what `crossvlt convert` leaves
    blocks = [block for block in code_blocks(path.read_text()) if block.language == "python"]
    assert len(blocks) == 2
    for block in blocks:
        run_python(block.code, path, block.line, {})
    assert Image.open("mask.png").mode == "L"


@pytest.mark.slow
def test_figures_of_others_are_marked_as_theirs(rendered):
    for name in ("refcoco", "refcocoplus", "refcocog"):
        text = rendered[f"crossvlt-{name}.md"]
        assert "**From the authors' table**" in text
        assert "we have not run this checkpoint" in text
        assert "Measured with" not in text
        assert "71.54" not in text  # of the row that is another paper's
        assert "62.09" not in text
    assert "the authors' table" not in rendered["crossvlt-built-in.md"]


def test_a_card_without_figures_says_so():
    card = render_card(CrossVLTConfig(), model_id="alice/new", image_size=(480, 480), max_length=21)
    assert "There are no results" in card.text
    assert "Not recorded." in card.text
    assert card.data.eval_results is None


def test_a_card_keeps_apart_what_was_measured_differently():
    metrics = {"overall_iou": 0.5, "mean_iou": 0.25, "precision@0.5": 0.75}
    reports = [
        {"data": "refcoco", "split": "val", "protocol": "paper", "metrics": metrics},
        {"data": "refcoco", "split": "val", "protocol": "original", "metrics": {**metrics, "mean_iou": 0.125}},
        {"data": "refcoco", "split": "val", "protocol": "paper", "shuffle": True, "metrics": metrics},
    ]
    card = render_card(
        CrossVLTConfig(), model_id="a/b", image_size=(480, 480), max_length=21, evidence=Evidence(evaluations=reports)
    )
    assert card.text.count("| data |") == 2
    assert "| refcoco val | 50.0 | 25.0 | 75.0 |" in card.text
    assert "| refcoco val | 50.0 | 12.5 | 75.0 |" in card.text
    assert "| refcoco val, expressions of other images | 50.0 | 25.0 | 75.0 |" in card.text
    assert "compared at the size of the image" in card.text
    means = [result.metric_value for result in card.data.eval_results if result.metric_type == "mean_iou"]
    assert means == [25.0, 12.5]  # without that of the shuffled expressions


def test_a_part_of_the_data_is_called_that_and_not_indexed():
    reports = [
        {"data": "refcoco", "split": "val", "limit": 12, "metrics": {"mean_iou": 0.5}},
        {"data": "refcoco", "split": "val", "metrics": {"mean_iou": 0.25}},
        {"data": "refcoco", "split": "val", "merge": "reference", "metrics": {"mean_iou": 0.125}},
    ]
    card = card_of(Evidence(evaluations=reports))
    assert "| refcoco val, the first 12 references | 50.0 |" in card.text
    assert "merge reference" in card.text
    assert [result.metric_value for result in card.data.eval_results] == [25.0, 12.5]
    configs = {result.dataset_config for result in card.data.eval_results}
    assert configs == {"refcoco val", "refcoco val, merge reference"}
    with pytest.raises(ValueError, match="two reports on 'refcoco val'"):
        card_of(Evidence(evaluations=[reports[1], reports[1]]))


def test_a_card_says_of_how_many_a_rate_is():
    metrics = {"mean_iou": 0.5, "samples": 9, "right_object_rate": 0.5, "right_object_samples": 4}
    report = {"data": "mine", "split": "val", "metrics": metrics}
    assert "| mine val | 9 | 50.0 | 50.0 (of 4) |" in card_of(Evidence(evaluations=[report])).text


def test_a_card_says_when_there_is_no_licence(capsys, checkpoint, tmp_path):
    assert "| licence | **not stated**" in card_of(Evidence()).text
    assert "| licence | mit |" in card_of(Evidence(About(license="mit"))).text
    assert crossvlt(["publish", str(checkpoint), "alice/new", "--folder", str(tmp_path / "new")]) == 0
    assert "states no licence: set `license` in about.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("training", "about", "row", "base_model"),
    [
        ({"started_from": ["`alice/a`"], "base_model": ["alice/a"]}, {}, "`alice/a`", ["alice/a"]),
        ({"started_from": ["`best` (Mine)"], "base_model": []}, {}, "`best` (Mine)", None),
        ({}, {"base_model": ["a/swin", "b/bert"]}, "`a/swin`, `b/bert`", ["a/swin", "b/bert"]),
        ({"started_from": ["`alice/a`"], "base_model": ["alice/a"]}, {"base_model": ["b/c"]}, "`alice/a`", ["b/c"]),
    ],
)
def test_a_card_names_what_the_checkpoint_started_from(training, about, row, base_model):
    card = card_of(Evidence(About(**about), training=training))
    assert f"| started from | {row} |" in card.text
    assert card.data.base_model == base_model


def test_a_card_says_when_images_are_shared():
    card = card_of(Evidence(training={"shared_images": {"shared": 2, "images": 1300}}))
    assert "2 of the 1,300 images of the validation data are also trained on**" in card.text
    assert "also trained on" not in card_of(Evidence(training={"shared_images": {}})).text


def test_images_shared_by_training_and_validation_are_counted(tmp_path):
    def dataset(name, *rows):
        records = [
            Record(file, image_id, number, ["the cup"], pack([], 4, 4), "train", name, "here", has_target=False)
            for number, (file, image_id) in enumerate(rows)
        ]
        return build_dataset(records)

    (tmp_path / "a.png").touch()
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    training = [
        dataset("one", (tmp_path / "a.png", 1), (tmp_path / "b.png", 2)),
        dataset("two", (tmp_path / "7.png", 7), (tmp_path / "8.png", 8)),
    ]
    for validation, found in (
        (
            [dataset("one", (tmp_path / "c.png", 3)), dataset("three", (tmp_path / "d.png", 7))],
            {},
        ),  # equal ids of other data sets
        ([dataset("three", (tmp_path / "link.png", 9), (tmp_path / "c.png", 9))], {"shared": 1, "images": 2}),
        ([dataset("two", *((tmp_path / f"{i}x.png", i) for i in (7, 7, 9)))], {"shared": 1, "images": 2}),
        ([load_data("refshapes", "val", scenes=2)], {}),
        ([], {}),
    ):
        assert count_shared_images(training, validation) == found
    drawn = load_data("refshapes", "train", scenes=3)
    assert count_shared_images([drawn], [drawn.select([0])]) == {"shared": 1, "images": 1}


@pytest.mark.parametrize(
    ("model", "names", "base"),
    [
        ({"checkpoint": "alice/model"}, ["`alice/model`"], ["alice/model"]),
        ({"checkpoint": str(DEFAULT_CHECKPOINT)}, ["the built-in checkpoint of `crossvlt_hf`"], []),
        ({"checkpoint": "FOLDER"}, ["`best` (Cups)"], []),
        ({"vision_encoder": "a/swin", "text_encoder": "b/bert"}, ["`a/swin`", "`b/bert`"], ["a/swin", "b/bert"]),
        ({}, [], []),
    ],
    ids=str,
)
def test_a_run_records_what_it_started_from(model, names, base, tmp_path):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "about.yaml").write_text("name: Cups")
    model = {key: value.replace("FOLDER", str(tmp_path / "best")) for key, value in model.items()}
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"model": model, "data": {"train": [{"name": "refcoco", "split": "train"}]}})
    )
    (tmp_path / "log.jsonl").write_text("")
    facts = describe_run(tmp_path, "a machine", {"shared": 1, "images": 2})
    assert (facts["started_from"], facts["base_model"]) == (names, base)
    assert facts["shared_images"] == {"shared": 1, "images": 2}
    assert f", from {' and '.join(names) or 'random weights'}, seed" in facts["summary"]
    assert str(tmp_path) not in json.dumps(facts)


def test_reports_beside_the_weights_are_taken(checkpoint, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    report = {"model": str(folder), "data": "refcoco", "split": "val", "metrics": {"mean_iou": 0.5, "samples": 3}}
    for name, text in {
        "evaluation.json": json.dumps({**report, "weights": hash_weights(folder)}),
        "testA.json": json.dumps({**report, "split": "testA"}),
        "notes.json": '{"data": 1}',
        "list.json": "[]",
        "cut.json": "{",
    }.items():
        (folder / name).write_text(text)
    evidence = read_evidence(folder)
    assert [entry["split"] for entry in evidence.evaluations] == ["val", "testA"]
    published = write_repository(*load_checkpoint(folder), folder, evidence=evidence)
    text = (published / "README.md").read_text()
    assert "| refcoco val | 3 | 50.0 |" in text
    assert "| refcoco testA | 3 | 50.0 |" in text
    assert read_evidence(folder).evaluations == evidence.evaluations  # which are now in results.json, too
    assert read_evidence(folder, reports=(folder / "testA.json",)).evaluations == evidence.evaluations
    (folder / "evaluation.json").write_text(json.dumps({**report, "weights": "0" * 64}))
    with pytest.raises(ValueError, match=r"results in .*evaluation.json belong to other weights"):
        read_evidence(folder)


def test_an_evaluation_says_which_weights_it_measured(checkpoint, tmp_path):
    output = tmp_path / "report.json"
    options = ["--option", "scenes=2", "--output", str(output), "--device", "cpu", "--model", str(checkpoint)]
    assert crossvlt(["evaluate", "--data", "refshapes", "--split", "test", *options]) == 0
    assert json.loads(output.read_text())["weights"] == hash_weights(checkpoint)


def test_a_card_claims_no_use_that_the_vocabulary_cannot_read():
    model, processor = load_checkpoint(DEFAULT_CHECKPOINT)
    card = render_checkpoint_card(model, processor, "a/b")
    assert "It knows these 537 words and no others:" in card.text
    assert "the man in red" not in card.text
    assert 'text=["the largest object"]' in card.text
    written = render_checkpoint_card(model, processor, "a/b", Evidence(About(expression="the walrus on the left")))
    assert "has words that are not in the vocabulary: walrus." in written.text
    processor = CrossVLTProcessor.from_tokenizer(default_tokenizer())
    card = render_checkpoint_card(model, processor, "a/b")
    assert "and no others" not in card.text
    assert 'text=["the man in red left of the bus"]' in card.text


def card_of(evidence):
    return render_card(CrossVLTConfig(), model_id="a/b", image_size=(480, 480), max_length=21, evidence=evidence)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("presence_threshold", None, "presence threshold None"),
        ("presence_threshold", 0.9, "presence threshold 0.9"),
        ("largest_part", True, "largest part True"),
        ("min_area", 50, "min area 50"),
        ("truncation", "reference", "truncation reference"),
    ],
)
def test_reports_under_other_conditions_have_their_own_table(name, value, said):
    report = {"data": "refshapes", "split": "test", "metrics": {"samples": 10, "mean_iou": 0.5}}
    card = card_of(Evidence(evaluations=[report, {**report, name: value}])).text
    assert said in card
    assert card.count("| refshapes test | 10 | 50.0 |") == 2


@given(
    expression=st.text(min_size=1).filter(lambda text: len(text.splitlines()) == 1),
    image=st.sampled_from(['a".jpg', "C:\\x.png", "{{ 7 * 7 }}"]),
)
@settings(max_examples=25, deadline=None)
def test_what_somebody_wrote_never_becomes_code(expression, image):
    evidence = Evidence(About(expression=expression, image=image))
    with (
        patch("crossvlt_hf.publishing.card.count_flops", return_value=0),
        patch("crossvlt_hf.publishing.card.count_parameters", return_value=0),
    ):
        card = card_of(evidence)
    texts = []
    for block in code_blocks(card.text):
        if block.language == "python":
            tree = ast.parse(block.code)
            texts += [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
            called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
            assert called <= CALLED
    assert texts.count(expression) >= 2
    assert texts.count(image) >= 2


CALLED = {
    "pipeline",
    "segmenter",
    "print",
    "result['mask'].save",
    "AutoModel.from_pretrained",
    "AutoProcessor.from_pretrained",
    "processor",
    "Image.open",
    "torch.no_grad",
    "model",
    "processor.post_process_masks",
}


@pytest.mark.slow
def test_the_template_comes_with_a_wheel(tmp_path):
    """A wheel has no folder `model_cards` beside it."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", ROOT]
    done = subprocess.run([*command, "--wheel-dir", tmp_path], capture_output=True, text=True)
    if "hatchling" in done.stderr and "No module" in done.stderr:
        pytest.skip("hatchling, which builds the wheel, is not installed")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    listing = subprocess.run([sys.executable, "-m", "zipfile", "-l", wheel], capture_output=True, text=True).stdout
    assert "crossvlt_hf/assets/model_card.md.jinja" in listing
    assert "crossvlt_hf/assets/endpoint/handler.py" in listing
    assert {f"crossvlt_hf/assets/images/{sample.file}" for sample in SAMPLES} <= set(listing.split())
    assert "crossvlt_hf/assets/built_in/model.safetensors" in listing


def test_the_base_model_is_as_large_as_the_paper_s():
    config = CrossVLTConfig()
    assert count_parameters(config) == 234_606_334
    assert 385e9 < count_flops(config, (480, 480)) < 392e9


def test_a_matrix_product_counts_twice():
    """The patch embedding of a larger image costs so much more as the image has more patches."""
    config = CrossVLTConfig.from_size("tiny")
    small, wide = count_flops(config, (224, 224), 8), count_flops(config, (224, 448), 8)
    assert 1.8 < wide / small < 2.0


def test_a_table_has_the_columns_that_have_figures():
    rows = {"a": {"overall_iou": 0.5, "mean_iou": None}, "b": {"overall_iou": 0.25, "samples": 3}}
    assert markdown_table(rows, "data").splitlines() == [
        "| data | samples | oIoU |",
        "|---|---:|---:|",
        "| a | - | 50.0 |",
        "| b | 3 | 25.0 |",
    ]
