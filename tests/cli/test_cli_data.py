"""The commands around RefShapes, evaluation and the built-in checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, pipeline

from crossvlt_hf.cli import main
from crossvlt_hf.data import load_data
from crossvlt_hf.data.refshapes import FAMILIES, make_example
from crossvlt_hf.publishing.page.samples import SAMPLES
from crossvlt_hf.weights.checkpoint import DEFAULT_CHECKPOINT, load_checkpoint


def test_refshapes_writes_what_can_be_read_again(tmp_path, capsys):
    folder, sheet = tmp_path / "scenes", tmp_path / "sheet.png"
    options = ["--scenes", "4", "--expressions", "2", "--side", "48", "--seed", "3", "--split", "test"]
    assert main(["refshapes", str(folder), *options, "--sheet", str(sheet)]) == 0
    assert "4 scenes" in capsys.readouterr().err
    written = load_data(str(folder), "test")
    drawn = load_data("refshapes", "test", scenes=4, expressions=2, side=48, seed=3)
    assert len(written) == len(drawn) == 8
    for one, other in zip(written, drawn, strict=True):
        assert one["expressions"] == other["expressions"]
        assert one["family"] == other["family"]
        assert np.array_equal(one["image"], other["image"])
        assert np.array_equal(one["mask"], other["mask"])
    assert len(list((folder / "images").iterdir())) == 4
    assert Image.open(sheet).size[0] > 48
    assert main(["refshapes", str(folder), *options]) == 2  # nothing is overwritten
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "options", [["--scenes", "0"], ["--side", "8"], ["--objects", "2", "9"], ["--expressions", "9"]]
)
def test_refshapes_refuses_in_one_line(tmp_path, capsys, options):
    assert main(["refshapes", str(tmp_path / "scenes"), *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "scenes").exists()


def test_evaluate_prints_the_row_and_the_families(checkpoint, tmp_path, capsys):
    path = tmp_path / "figures" / "test.json"
    options = ["--option", "scenes=12", "--option", "side=48", "--output", str(path), "--device", "cpu"]
    command = ["evaluate", "--model", str(checkpoint), "--data", "refshapes", "--split", "test", *options]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| checkpoint, data | samples | oIoU | mIoU | P@0.5 |")
    assert lines[2].startswith(f"| {checkpoint}, refshapes test | 12 |")
    assert [line.split("|")[1].strip() for line in lines[6:]] == sorted(FAMILIES)
    report = json.loads(path.read_text())
    assert report["metrics"]["samples"] == 12
    assert report["families"]["ordinal"]["samples"] == 2
    assert "largest_part" not in report
    assert main([*command, "--largest-part"]) == 0
    largest = json.loads(path.read_text())
    assert largest["largest_part"] is True
    assert largest["metrics"]["mean_parts"] >= 1
    assert main([*command, "--limit", "5", "--protocol", "original", "--shuffle"]) == 0
    assert json.loads(path.read_text())["metrics"]["samples"] == 5


def test_reports_lose_nothing(checkpoint, tmp_path, capsys, monkeypatch):
    """The default is a new file; a named one must be an earlier report."""
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", "--data", "refshapes", "--split", "test", "--option", "scenes=1"]
    assert main([*command, "--model", str(checkpoint), "--option", "side=48"]) == 0
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "No --model was given: the built-in checkpoint is used." in printed.err
    assert "| built-in, refshapes test | 1 |" in printed.out
    folder = tmp_path / "crossvlt-output"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["evaluation-2.json", "evaluation.json"]
    models = [json.loads((folder / name).read_text())["model"] for name in names]
    assert models == ["built-in", str(checkpoint)]
    labels = tmp_path / "instances.json"
    labels.write_text('{"images": []}')
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")
    before = (tmp_path / "photo.png").read_bytes()
    assert main([*command, "--output", str(labels)]) == 2
    assert "instances.json exists, and does not say that it is an earlier evaluation" in capsys.readouterr().err
    for option in ("--output", "--gallery", "--reliability"):
        assert main([*command, option, str(tmp_path / "photo.png")]) == 2
        assert "photo.png exists, and does not say that it is an earlier" in capsys.readouterr().err
    assert labels.read_text() == '{"images": []}'
    assert (tmp_path / "photo.png").read_bytes() == before


@pytest.mark.parametrize("command", [["demo", "--output"], ["refshapes", "new", "--scenes", "1", "--sheet"]])
def test_pictures_of_others_are_kept(tmp_path, capsys, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4)).save("photo.png")
    before = Path("photo.png").read_bytes()
    assert main([*command, "photo.png"]) == 2
    assert "photo.png exists, and does not say that it is an earlier" in capsys.readouterr().err
    assert Path("photo.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--data", "refcoco", "--root", "dat", "--split", "val"],
            "There is no folder dat; set `--root` to the folder",
        ),
        (
            ["--data", "grefcoco", "--root", "dat", "--split", "val"],
            "set `--root` to the folder of the files of grefcoco",
        ),
        (["--data", "refcocoo", "--split", "val"], "There is no data set or folder 'refcocoo'"),
        (["--data", "refcoco", "--split", "val"], "needs `--root`"),
        (["--data", "refcoco"], "`--split` must be one of the splits of refcoco (unc): train, val, testA, testB"),
        (["--data", "jxu124/refcocog"], "splits of jxu124/refcocog: train, validation, test"),
        (["--data", "phrasecut"], "splits of phrasecut: train, val, test, miniv"),
        (["--data", "moondream/refcoco-m"], "splits of moondream/refcoco-m: validation"),
        (["--data", "refshapes"], "splits of refshapes: train, validation, test, "),
        (
            ["--data", "refcoco-google", "--split", "testA"],
            "splits of refcoco (google): train, val, test; got 'testA'",
        ),
        (["--data", "refshapes", "--split", "val2"], "val2"),
        (["--data", "refshapes", "--split", "test", "--option", "scnes=3"], "scnes"),
        (["--data", "refshapes", "--split", "test", "--option", "scenes"], "must be name=value"),
        (
            ["--data", "refshapes", "--split", "test", "--batch-size", "0"],
            "`--batch-size` must be an integer of at least 1",
        ),
        (["--data", "refshapes", "--split", "test", "--limit", "0"], "`--limit` must be an integer of at least 1"),
        (["--data", "refshapes", "--split", "test", "--device", "cuda:7"], "'cuda:7' cannot be used"),
    ],
)
def test_evaluate_refuses_in_one_line(capsys, options, message):
    assert main(["evaluate", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_evaluate_names_the_splits_of_ones_own_folder(tmp_path, capsys):
    rows = [{"image": "0.png", "expression": "cup", "mask": "1.png", "split": split} for split in ("mine", "yours")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["evaluate", "--data", str(tmp_path)]) == 2
    assert f"`--split` must be one of the splits of {tmp_path}: mine, yours" in capsys.readouterr().err
    assert main(["evaluate", "--data", str(tmp_path), "--split", "test"]) == 2
    assert "mine, yours" in capsys.readouterr().err


def test_evaluate_warns_of_the_data_in_one_line(tmp_path, capsys):
    Image.new("RGB", (40, 30)).save(tmp_path / "0.png")
    corners = [5, 5, 25, 5, 25, 20]
    rows = [
        {"image": "0.png", "expression": "cup", "polygons": [corners, [1, 2]], "split": "mine"},
        {"image": "0.png", "expression": "dog", "polygons": [corners], "split": "mine"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["evaluate", "--data", str(tmp_path), "--split", "mine", "--device", "cpu"]) == 0
    first, *_ = capsys.readouterr().err.splitlines()
    assert first.startswith("Warning: ")
    assert "1 part of fewer than three points left out, in " in first


# ---- the built-in checkpoint


def test_the_built_in_checkpoint_is_small_and_exact():
    assert (DEFAULT_CHECKPOINT / "model.safetensors").stat().st_size <= 40e6
    model, processor = load_checkpoint(DEFAULT_CHECKPOINT)
    assert model.dtype == torch.float32
    assert processor.image_processor.size == {"height": 224, "width": 224}
    assert AutoModel.from_pretrained(DEFAULT_CHECKPOINT).dtype == torch.float32
    assert not list(DEFAULT_CHECKPOINT.glob("*.py"))
    assert "auto_map" not in json.loads((DEFAULT_CHECKPOINT / "config.json").read_text())
    card = " ".join((DEFAULT_CHECKPOINT / "README.md").read_text().split())
    assert "not written by people" in card
    assert "none of these results is on RefCOCO" in card


@pytest.mark.slow
def test_the_built_in_checkpoint_follows_language():
    """On 12 scenes that it never saw; the full figures are in its card."""
    segmenter = pipeline("referring-image-segmentation")
    ious = []
    for index in range(12):
        example = make_example("test", index, seed=77)
        (result,) = segmenter(Image.fromarray(example.scene.image), text=example.expression)
        found = np.asarray(result["mask"]) > 0
        ious.append((found & example.mask).sum() / (found | example.mask).sum())
    assert np.mean(ious) > 0.85


def test_segment_uses_it_and_says_what_it_knows(tmp_path, capsys):
    example = make_example("test", 4)
    Image.fromarray(example.scene.image).save(tmp_path / "scene.png")
    output = tmp_path / "out"
    assert main(["segment", str(tmp_path / "scene.png"), example.expression, "--output", str(output)]) == 0
    told = capsys.readouterr()
    assert "rule-made expressions of 537 words" in told.err
    assert json.loads(told.out)["expression"] == example.expression
    assert (output / "scene-overlay.png").is_file()


@pytest.mark.slow
def test_demo_writes_a_panel(tmp_path, capsys):
    panel = tmp_path / "demo" / "panel.png"
    assert main(["demo", "--output", str(panel)]) == 0
    told = capsys.readouterr()
    lines = [json.loads(line) for line in told.out.splitlines()]
    assert {line["family"] for line in lines if "family" in line} == set(FAMILIES)
    assert all(line["iou"] > 0.5 for line in lines if "family" in line)
    shown = [(line["image"], line["expression"]) for line in lines if "family" not in line]
    assert shown == [(sample.file, expression) for sample in SAMPLES for expression in sample.expressions]
    assert "rule-made expressions of 537 words" in told.err
    assert "Others fail in the same photographs: 'the cup', 'the plate'." in told.err
    assert Image.open(panel).size[0] > 1000

    *_, sample = SAMPLES  # wider than its tile, so that its score would change if it were made smaller first
    assert main(["segment", str(sample.path), sample.expressions[0], "--output", str(tmp_path)]) == 0
    score = json.loads(capsys.readouterr().out)["score"]
    assert {line["score"] for line in lines if line["expression"] == sample.expressions[0]} == {score}
