"""Batch prediction: what comes out, from what, and that nothing is lost or repeated."""

import io
import json
import os
import socket
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_config, tiny_tokenizer
from datasets import Dataset, DatasetDict, Features, List, Value, load_dataset
from datasets import Image as HubImage
from documents import code_blocks
from documents import run_python as run_block
from kill_prediction import write_rows
from PIL import Image
from processes import run_python

from crossvlt_hf import CrossVLTModel, CrossVLTProcessor, ReferringImageSegmentationPipeline
from crossvlt_hf.cli import main
from crossvlt_hf.cli.predict import Predict
from crossvlt_hf.data import load_data, write_folder
from crossvlt_hf.data.masks import decode_segmentation
from crossvlt_hf.prediction import PredictionOptions, Shards, open_requests, predict
from crossvlt_hf.processing_crossvlt import find_parts
from crossvlt_hf.weights.checkpoint import load_checkpoint


KEYS = ["row", "name", "number", "expression", "text_read", "unknown_words", "score", "box", "mask", "error"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small model with random weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    CrossVLTModel(tiny_config()).save_pretrained(folder)
    CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), 64).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def rows(tmp_path):
    """Ten lines about four pictures, fifteen expressions."""
    return write_rows(tmp_path / "data", 10)


def run(*arguments, checkpoint):
    return main(["predict", *map(str, arguments), "--model", checkpoint, "--device", "cpu"])


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_bytes().splitlines()]


def test_predictions_are_those_of_the_pipeline(rows, checkpoint, tmp_path, capsys):
    assert run(rows, "--output", tmp_path / "out", "--shard-size", 4, checkpoint=checkpoint) == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["rows"], counts["predictions"], counts["errors"]) == (10, 15, 0)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".predictions.json",
        *(f"predictions-0000{shard}-of-00003.jsonl" for shard in range(3)),
    ]
    lines = lines_of(tmp_path / "out")
    assert [list(line) for line in lines] == [KEYS] * 15
    model, processor = load_checkpoint(checkpoint)
    segmenter = ReferringImageSegmentationPipeline(model=model, processor=processor)
    for row, request in enumerate(map(json.loads, rows.read_text().splitlines())):
        own = [line for line in lines if line["row"] == row]
        assert [line["expression"] for line in own] == request["expressions"]
        assert {line["name"] for line in own} == {f"r{row}"}
        expected = segmenter(str(rows.parent / request["image"]), text=request["expressions"])
        for line, result in zip(own, expected, strict=True):
            mask = decode_segmentation(line["mask"], *line["mask"]["size"])
            assert np.mean(mask != (np.asarray(result["mask"]) > 0)) < 0.001
            assert line["score"] == pytest.approx(result["score"], abs=1e-4)
            assert (line["box"] is None) == (result["box"] is None)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_largest_part(rows, checkpoint, tmp_path, capsys, form):
    (rows.parent / "cut.png").write_bytes(b"no picture")
    with rows.open("a") as file:
        file.write('{"image": "cut.png", "expression": "the cup"}\n')
    for name, options in (("all", []), ("largest", ["--largest-part"])):
        command = [rows, "--output", tmp_path / name, "--format", form, "--on-error", "skip", *options]
        assert run(*command, checkpoint=checkpoint) == 0

    def read(name):
        if form == "jsonl":
            return lines_of(tmp_path / name)
        return pd.read_parquet(tmp_path / name).to_dict("records")

    found = [line for line in zip(read("all"), read("largest"), strict=True) if pd.isna(line[0]["error"])]
    assert len(found) == 15
    for free, kept in found:
        sizes = [[int(side) for side in row["mask"]["size"]] for row in (free, kept)]
        before, after = (
            decode_segmentation({"size": size, "counts": row["mask"]["counts"]}, *size)
            for row, size in zip((free, kept), sizes, strict=True)
        )
        largest, parts = find_parts(torch.tensor(before > 0))
        np.testing.assert_array_equal(after, largest)
        assert "parts" not in free
        assert kept["parts"] == parts
    assert max(kept["parts"] for _, kept in found) > 1
    capsys.readouterr()
    for name, options in (("all", ["--largest-part"]), ("largest", [])):
        command = [rows, "--output", tmp_path / name, "--format", form, "--on-error", "skip", *options]
        assert run(*command, checkpoint=checkpoint) == 2
        assert "predictions whose `largest_part` is" in capsys.readouterr().err


def test_the_formats_hold_the_same(rows, checkpoint, tmp_path, capsys):
    for file_format in ("jsonl", "parquet"):
        output = tmp_path / file_format
        assert run(rows, "--output", output, "--format", file_format, "--shard-size", 4, checkpoint=checkpoint) == 0
    parquet = Dataset.from_parquet([str(path) for path in sorted((tmp_path / "parquet").glob("*.parquet"))])
    assert parquet.column_names == KEYS
    assert list(parquet) == lines_of(tmp_path / "jsonl")
    assert list(Shards(tmp_path / "parquet", 10, 4, "parquet").read()) == list(parquet)


def test_a_job_goes_on_and_is_no_other(rows, checkpoint, tmp_path, capsys):
    output = tmp_path / "out"
    command = [rows, "--output", output, "--shard-size", 3]
    assert run(*command, checkpoint=checkpoint) == 0
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    kept = output / "predictions-00002-of-00004.jsonl"
    inode = kept.stat().st_ino
    (output / "predictions-00001-of-00004.jsonl").unlink()
    (output / ".predictions-00001-of-00004.jsonl.1.partial").write_text("half")
    assert run(*command, "--workers", 1, checkpoint=checkpoint) == 0
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert kept.stat().st_ino == inode  # it was not written again
    capsys.readouterr()
    assert run(*command, checkpoint=checkpoint) == 0
    assert "100%|██████████| 10/10 [" in capsys.readouterr().err, (
        "all rows are there, although shards have room for 12"
    )
    for change, words in (
        (("--shard-size", 4), "whose `shard_size` is 3 and not 4"),
        (("--format", "parquet"), "whose `format` is 'jsonl' and not 'parquet'"),
        (("--threshold", 0.7), "whose `threshold` is None and not 0.7"),
        (("--dtype", "bfloat16"), "whose `dtype` is 'float32' and not 'bfloat16'"),
    ):
        assert run(*command, *change, checkpoint=checkpoint) == 2
        assert words in capsys.readouterr().err
    rows.write_text(rows.read_text().replace("the cup", "the red"))
    assert run(*command, checkpoint=checkpoint) == 2
    assert "has predictions of other images or expressions" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_a_run_without_predictions_is_said_to_be_one(rows, checkpoint, tmp_path, capsys):
    output = tmp_path / "out"
    lines = rows.read_text().splitlines()
    rows.write_text("\n".join([*lines, "{"]))
    assert run(rows, "--output", output, checkpoint=checkpoint) == 2
    assert [path.name for path in output.iterdir()] == [".predictions.json"]
    rows.write_text("\n".join(lines))
    capsys.readouterr()
    assert run(rows, "--output", output, checkpoint=checkpoint) == 2
    told = capsys.readouterr().err
    assert "whose `rows` is 11 and not 10, which has written no predictions; delete" in told
    assert "has predictions" not in told
    (output / ".predictions.json").unlink()
    assert run(rows, "--output", output, checkpoint=checkpoint) == 0


def test_what_is_broken_stops_or_is_told_in_its_line(rows, checkpoint, tmp_path, capsys):
    lines = rows.read_text().splitlines()
    lines[1] = '{"image": "missing.png", "expression": "the cup"}'
    lines[2] = "{"
    lines[4] = '{"image": "../../etc/passwd.png", "expression": "the cup"}'
    lines[5] = '{"image": "1.png", "expression": " "}'
    lines[6] = '["no object"]'
    lines[7] = '{"expression": "the cup"}'
    (rows.parent / "cut.png").write_bytes((rows.parent / "0.png").read_bytes()[:80])
    lines[8] = '{"image": "cut.png", "expression": "the cup"}'
    rows.write_text("\n".join([*lines, "", ""]))
    command = [rows, "--output", tmp_path / "out", "--shard-size", 1]
    for workers in (0, 1):
        assert run(*command, "--workers", workers, checkpoint=checkpoint) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("crossvlt: rows.jsonl, line 2 cannot be read: There is no image file")
    assert len(lines_of(tmp_path / "out")) == 1  # what came before is kept
    assert run(*command, "--on-error", "skip", checkpoint=checkpoint) == 0
    assert json.loads(capsys.readouterr().out)["errors"] == 7
    found = lines_of(tmp_path / "out")
    assert [line["row"] for line in found if line["number"] in (0, None)] == list(range(10))
    reasons = {line["row"]: line["error"] for line in found if line["error"]}
    assert {line["mask"] for line in found if line["error"]} == {None}
    for row, words in {
        1: "There is no image file",
        2: "is not JSON",
        4: "leads out of",
        5: "must have text as expression, got ' '",
        6: "must be an object",
        7: "has no image, but `expression`; add one of image, file_name",
        8: "cut.png cannot be read",
    }.items():
        assert words in reasons[row]


def test_broken_rows_of_a_data_set(rows, checkpoint, tmp_path, capsys):
    """The first among them; and a name that no table could store."""
    good = (rows.parent / "0.png").read_bytes()
    huge = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(huge, "PNG")  # more than Pillow opens
    images = [{"bytes": data, "path": None} for data in (b"no image", good, huge.getvalue(), good, good)]
    texts = [["the cup"], ["the bus"], ["the cup"], [], ["the cup"]]
    table = Dataset.from_dict(
        {"image": images, "text": texts}, features=Features({"image": HubImage(), "text": List(Value("string"))})
    )
    table.save_to_disk(tmp_path / "saved")
    assert run(tmp_path / "saved", "--output", tmp_path / "out", "--on-error", "skip", checkpoint=checkpoint) == 0
    lines = lines_of(tmp_path / "out")
    assert [line["error"] is None for line in lines] == [False, True, False, False, True]
    assert "row 2 is too large" in lines[2]["error"]
    rows.write_text('{"image": "0.png", "expression": "the cup", "id": "half \\ud800"}\n')
    for file_format in ("jsonl", "parquet"):
        output = tmp_path / file_format
        assert run(rows, "--output", output, "--format", file_format, checkpoint=checkpoint) == 0
    assert next(Shards(tmp_path / "parquet", 1, 500, "parquet").read())["name"] == "half ?"


def test_sources(rows, checkpoint, tmp_path, capsys):
    images = [Image.open(rows.parent / f"{number}.png") for number in range(3)]
    dataset = Dataset.from_dict({"picture": images, "caption": ["the cup", ["the bus"][0], "the red cup"]})
    dataset.save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet").mkdir()
    dataset.to_parquet(tmp_path / "parquet" / "train.parquet")
    (rows.parent / "deeper").mkdir()
    images[0].save(rows.parent / "deeper" / "a.jpg")
    sources = {
        (tmp_path / "saved", "--image-column", "picture"): 3,
        (tmp_path / "parquet", "--image-column", "picture", "--text-column", "caption"): 3,
        (rows.parent, "--expression", "the cup", "--expression", "the bus"): 10,
        ("refshapes", "--split", "test", "--option", "scenes=3", "--option", "expressions=1"): 3,
    }
    for number, (source, count) in enumerate(sources.items()):
        output = tmp_path / f"out-{number}"
        assert run(*source, "--output", output, checkpoint=checkpoint) == 0, capsys.readouterr().err
        assert len(lines_of(output)) == count
    assert {line["name"] for line in lines_of(tmp_path / "out-2")} >= {"0.png", "deeper/a.jpg"}


def test_the_split_of_lines(rows, checkpoint, tmp_path, capsys):
    """As in a folder of one's own data: a line without a split is of "train"; one that cannot be read is not lost."""
    lines = [json.loads(line) for line in rows.read_text().splitlines()][:3]
    splits = ["val", "test", None]
    said = [
        json.dumps({**line, **({"split": split} if split else {})}) for line, split in zip(lines, splits, strict=True)
    ]
    rows.write_text("\n".join([*said, "{broken"]) + "\n")
    for split, numbers in (("validation", [1, 4]), ("test", [2, 4]), ("train", [3, 4])):
        output = tmp_path / split
        assert run(rows, "--split", split, "--on-error", "skip", "--output", output, checkpoint=checkpoint) == 0
        written = lines_of(output)
        assert [bool(line["error"]) for line in written][-1]
        assert {f"{rows.name}, line {numbers[-1]}" in line["error"] for line in written if line["error"]} == {True}
        assert len({line["row"] for line in written}) == 2
    assert run(rows, "--split", "tset", "--output", tmp_path / "no", checkpoint=checkpoint) == 2
    assert "test, train, val; got 'tset'. Did you mean test?" in capsys.readouterr().err


def test_a_folder_of_images_and_other_files(checkpoint, tmp_path, capsys):
    """What Pillow opens as a picture is predicted, under any name; the rest is named."""
    folder, picture = tmp_path / "photos", Image.new("RGB", (40, 30), "red")
    (folder / "deeper.jpg").mkdir(parents=True)
    for name in ("a.PNG", "b.tga", "c.qoi", "d.webp", "deeper.jpg/e.jpeg", "f.mpo", "g.ico"):
        picture.save(folder / name, format={".PNG": "PNG", ".mpo": "JPEG"}.get(Path(name).suffix))
    picture.save(folder / "scan", format="TIFF")
    picture.save(folder / "photo.jpg.orig", format="JPEG")
    others = ["clip.mpg", "data.bufr", "features.h5", "figure.eps", "list.csv", "notes", "old.wmf", "report.pdf"]
    for name in others:
        (folder / name).write_bytes(b"\x00\x00\x01\xb3" + bytes(100))
    picture.save(folder / "report.pdf")
    picture.save(folder / "figure.eps")
    (folder / "features.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (folder / ".DS_Store").touch()
    os.symlink(folder, folder / "deeper.jpg" / "up")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.jpg")  # reading it would last for ever
        others = sorted([*others, "pipe.jpg"])
    assert run(folder, "--expression", "the cup", "--output", tmp_path / "out", checkpoint=checkpoint) == 0
    said = capsys.readouterr().err
    shown = ", ".join(others[:5])
    assert f"Skipped {len(others)} files that are not images: {shown} and {len(others) - 5} more" in said
    names = [line["name"] for line in lines_of(tmp_path / "out")]
    expected = ["a.PNG", "b.tga", "c.qoi", "d.webp", "deeper.jpg/e.jpeg", "f.mpo", "g.ico", "scan", "photo.jpg.orig"]
    assert names == sorted(expected)


def test_damaged_images_of_a_folder(checkpoint, tmp_path, capsys, monkeypatch):
    """Whatever is wrong with what should be an image, it is an error in one line, or in the image's own."""
    folder, picture = tmp_path / "photos", Image.effect_noise((64, 64), 50).convert("RGB")
    folder.mkdir()
    picture.save(folder / "whole.png")
    (folder / "empty.jpg").touch()
    (folder / "text.png").write_text("no image")
    for suffix in ("png", "jpg", "webp", "tiff", "avif", "qoi", "gif", "bmp", "tga", "jp2"):
        picture.save(folder / f"cut.{suffix}")
        data = (folder / f"cut.{suffix}").read_bytes()
        (folder / f"cut.{suffix}").write_bytes(data[: len(data) // 3])
    (folder / "texture.blp").write_bytes(b"BLP2" + bytes(30))
    os.symlink(folder / "nowhere", folder / "lost.png")
    os.symlink("circle.png", folder / "circle.png")
    Image.new("1", (100, 101)).save(folder / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    broken = sorted({path.name for path in folder.iterdir()} - {"whole.png"})
    assert len(broken) == 16
    command = [folder, "--expression", "the cup", "--output", tmp_path / "out"]
    assert run(*command, checkpoint=checkpoint) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("crossvlt: ")]
    assert f"{broken[0]} cannot be read" in line
    assert run(*command, "--on-error", "skip", checkpoint=checkpoint) == 0
    lines = {line["name"]: line["error"] for line in lines_of(tmp_path / "out")}
    assert {name for name, error in lines.items() if error} == set(broken)
    assert lines["whole.png"] is None
    assert "too large" in lines["huge.png"]
    assert lines["lost.png"].endswith("nowhere, which is not there.")


def test_what_is_not_read_is_said(rows, checkpoint, tmp_path, capsys):
    """In a line before the prediction, and in columns of their own."""
    long = " ".join(["the red cup"] * 20)
    rows.write_text(json.dumps({"image": "0.png", "expressions": ["the xyzzy cup Plugh", "the cup", long]}) + "\n{\n")
    for file_format in ("jsonl", "parquet"):
        output = tmp_path / file_format
        options = ["--output", output, "--format", file_format, "--on-error", "skip"]
        assert run(rows, *options, checkpoint=checkpoint) == 0
        printed = capsys.readouterr()
        (said,) = [line for line in printed.err.splitlines() if line.startswith("3 expressions: ")]
        assert "3.0 % of the words are not in the vocabulary (" in said
        assert {"xyzzy", "plugh"} <= set(said.replace("(", " ").replace(")", " ").replace(",", " ").split())
        assert said.endswith("; 1 too long and cut.")
        counts = json.loads(printed.out)
        assert (counts["predictions"], counts["cut"], counts["unknown"], counts["errors"]) == (3, 1, 1, 1)
        lines = list(Shards(output, 2, 500, file_format).read())
        assert [line["unknown_words"] for line in lines] == [["xyzzy", "Plugh"], [], [], None]
        assert [line["text_read"] for line in lines[:2]] == ["the xyzzy cup Plugh", "the cup"]
        assert long.startswith(lines[2]["text_read"])
        assert len(lines[2]["text_read"]) < len(long) / 2
        assert lines[3]["text_read"] is None


def test_the_expressions_of_all_sources_are_looked_at(rows, tmp_path):
    Dataset.from_dict({"image": [None, None], "text": [["a", "b"], []]}).save_to_disk(tmp_path / "saved")
    drawn = open_requests("refshapes", split="test", options={"scenes": 3, "expressions": 1})
    sources = [open_requests(str(rows)), open_requests(str(rows.parent), expressions=["the cup"])]
    assert list(sources[0].texts()) == [text for row in sources[0] for text in row.expressions]
    assert list(sources[1].texts()) == ["the cup"]
    assert list(open_requests(str(tmp_path / "saved")).texts()) == ["a", "b"]
    assert list(drawn.texts()) == [drawn[index].expressions[0] for index in range(3)]


def test_the_folder_reads_as_a_table(rows, checkpoint, tmp_path):
    """By the libraries that people read tables with: the settings are none of its files."""
    output = tmp_path / "out"
    assert run(rows, "--output", output, "--format", "parquet", "--shard-size", 4, checkpoint=checkpoint) == 0
    pandas, dataset = pytest.importorskip("pandas"), pytest.importorskip("pyarrow.dataset")
    assert list(pandas.read_parquet(output)) == KEYS
    assert len(pandas.read_parquet(output)) == dataset.dataset(output).count_rows() == 15
    loaded = load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
    assert (loaded.column_names, len(loaded)) == (KEYS, 15)
    assert run(rows, "--output", tmp_path / "lines", "--shard-size", 4, checkpoint=checkpoint) == 0
    loaded = load_dataset(str(tmp_path / "lines"), split="train", cache_dir=str(tmp_path / "cache"))
    assert (set(loaded.column_names), len(loaded)) == (set(KEYS), 15)


def test_a_folder_of_the_former_version_goes_on(rows, checkpoint, tmp_path, capsys):
    """Its settings were not hidden; they are renamed when they are those of the same job."""
    output = tmp_path / "out"
    command = [rows, "--output", output, "--shard-size", 4]
    assert run(*command, checkpoint=checkpoint) == 0
    whole = {path.name: path.read_bytes() for path in output.iterdir()}
    (output / ".predictions.json").rename(output / "predictions.json")
    (output / "predictions-00001-of-00003.jsonl").unlink()
    assert run(*command, "--shard-size", 5, checkpoint=checkpoint) == 2
    assert "whose `shard_size` is 4 and not 5" in capsys.readouterr().err
    assert (output / "predictions.json").is_file()
    assert run(*command, checkpoint=checkpoint) == 0
    assert {path.name: path.read_bytes() for path in output.iterdir()} == whole


def test_the_document_shows_how_to_read_the_masks(rows, checkpoint, tmp_path, monkeypatch):
    for name in ("pandas", "pycocotools"):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    for name, file_format in (("test-masks", "parquet"), ("masks", "jsonl")):
        assert run(rows, "--output", name, "--format", file_format, checkpoint=checkpoint) == 0
    document = Path(__file__).parents[2] / "docs" / "usage.md"
    (block,) = [block for block in code_blocks(document.read_text()) if "read_parquet" in block.code]
    scope = {}
    run_block(block.code, document, block.line, scope)
    for line, mask in zip(lines_of(tmp_path / "masks"), scope["masks"], strict=True):
        assert np.array_equal(mask, decode_segmentation(line["mask"], *line["mask"]["size"]))


WRONG = {
    "nowhere.jsonl": "There is no file or folder",
    "nowhere.png": "There is no file or folder nowhere.png",
    "nowhere.CSV": "There is no file or folder nowhere.CSV",
    "TABLE.csv": "must be a JSONL file with a line for each row, or a folder, got another file",
    "TABLE.parquet": "must be a JSONL file with a line for each row, or a folder, got another file",
    "PICTURE": "a.jpg is an image; `crossvlt segment` takes a single image",
    "nowhere --expression the": "There is no folder nowhere of images",
    "nowhere.png --expression the": "There is no folder nowhere.png of images",
    "DATA --expression the": "`--expression` must come with a folder of images",
    "PHOTOS": "has 2 images and no metadata.jsonl; set `--expression TEXT`",
    "NOTES --expression the": "has no images to segment; it has 1 other file(s): notes.txt",
    "SAVED": "must have a column expressions, expression, text, texts, sentences, sentence or caption, got the "
    "columns image; add one.",
    "SAVED --text-column words": "`--text-column` must be one of the columns image, got 'words'",
    "DATA --shard-size 0": "`--shard-size` must be an integer of at least 1",
    "DATA --batch-size 0": "`--batch-size` must be an integer of at least 1",
    "DATA --workers -1": "`--workers` must be an integer from 0 to 1024",
    "DATA --format csv": "`--format` must be one of jsonl, parquet, got 'csv'",
    "DATA --on-error ignore": "`--on-error` must be one of stop, skip, got 'ignore'",
    "DATA --threshold 2": "threshold",
    "DATA --output DATA": "is a file, where a folder is needed",
    "DATA --output FOLDER": "is not empty, and no prediction",
    "EMPTY": "has no rows to segment",
    "refshapes --option colour=red": "refshapes has no option 'colour'; its options are scenes, expressions, side, ",
}


@pytest.mark.parametrize("options", WRONG)
def test_wrong_input_is_told_in_a_line(rows, checkpoint, tmp_path, capsys, options):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    for name in ("photos/more/b.webp", "photos/a.jpg", "photos/report.pdf", "notes/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    Dataset.from_dict({"image": [Image.new("RGB", (4, 4))]}).save_to_disk(tmp_path / "saved")
    names = {name.upper(): str(tmp_path / name) for name in ("photos", "notes", "saved")}
    for suffix in (".csv", ".parquet"):
        names[f"TABLE{suffix}"] = str(tmp_path / f"table{suffix}")
        (tmp_path / f"table{suffix}").touch()
    names |= {
        "PICTURE": str(tmp_path / "photos" / "a.jpg"),
        "DATA": str(rows),
        "FOLDER": str(rows.parent),
        "EMPTY": str(tmp_path / "empty.jsonl"),
    }
    words = [names.get(word, word) for word in options.split()]
    if words[0] == "nowhere.jsonl":
        words[0] = str(tmp_path / words[0])
    if "--output" not in words:
        words += ["--output", str(tmp_path / "out")]
    assert run(*words, checkpoint=checkpoint) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("crossvlt: ")]
    assert WRONG[options] in line


@pytest.mark.parametrize("output", [".", "below", ".."])
def test_a_folder_that_cannot_be_written_is_told_before_a_model_loads(rows, checkpoint, capsys, monkeypatch, output):
    monkeypatch.setattr(Predict, "load", lambda options: pytest.fail("A model loads."))
    assert run(rows, "--output", rows / output if output != ".." else rows.parent, checkpoint=checkpoint) == 2
    assert "give a" in capsys.readouterr().err


def test_a_full_disk_keeps_the_shards_before(rows, checkpoint, tmp_path, capsys, monkeypatch):
    """A limit on the size of files makes writing fail as a full disk does, within a file."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    output = tmp_path / "out"
    write = Shards.write

    def fill_up(shards, shard, lines):
        if shard == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        write(shards, shard, lines)

    monkeypatch.setattr(Shards, "write", fill_up)
    try:
        assert run(rows, "--output", output, "--shard-size", 4, checkpoint=checkpoint) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "predictions-00001-of-00003.jsonl could not be written" in capsys.readouterr().err
    assert sorted(path.name for path in output.iterdir()) == [".predictions.json", "predictions-00000-of-00003.jsonl"]
    monkeypatch.undo()
    assert run(rows, "--output", output, "--shard-size", 4, checkpoint=checkpoint) == 0
    assert len(lines_of(output)) == 15


def test_batches_do_not_change_what_is_found(rows, checkpoint, tmp_path):
    model, processor = load_checkpoint(checkpoint)
    requests = open_requests(str(rows))
    found = []
    for batch_size in (1, 2, 8):
        output = tmp_path / str(batch_size)
        counts = predict(model, processor, requests, output, PredictionOptions(batch_size=batch_size))
        assert counts["predictions"] == 15
        found.append(lines_of(output))
    for lines in found[1:]:
        for line, other in zip(lines, found[0], strict=True):
            masks = [decode_segmentation(each["mask"], *each["mask"]["size"]) for each in (line, other)]
            assert np.mean(masks[0] != masks[1]) < 0.001
            assert line["score"] == pytest.approx(other["score"], abs=1e-4)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


PROCESS = """
import os, sys
import torch, torch.multiprocessing as multiprocessing
from crossvlt_hf.cli import main

def work(rank, command):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": os.environ["PORT"], "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    assert main(command) == 0

if __name__ == "__main__":
    multiprocessing.start_processes(work, args=(sys.argv[1:],), nprocs=2, start_method="fork")
"""


@pytest.mark.slow
def test_two_processes_write_what_one_does(rows, checkpoint, tmp_path):
    command = ["predict", str(rows), "--shard-size", "2", "--model", checkpoint, "--device", "cpu", "--output"]
    alone, environment = tmp_path / "alone", {**os.environ, "PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    assert main([*command, str(alone)]) == 0
    done = run_python("-c", PROCESS, *command, tmp_path / "two", environment=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    for path in alone.iterdir():
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes()
    assert json.loads(done.stdout.splitlines()[-1])["predictions"] == 15


@pytest.mark.slow
def test_predictions_that_are_killed_end_as_if_they_had_not_been(tmp_path):
    """More with `PYTHONPATH=tests python tests/prediction/kill_prediction.py --rows 1000 --kills 10`."""
    script = Path(__file__).with_name("kill_prediction.py")
    done = run_python(script, "--rows", 80, "--kills", 3, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == json.loads(done.stdout) | {"kills": 3, "rows": 80, "predictions": 120}


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"expressions": ["the cup"], "split": "val"}, "split"),
        ({"options": {"nonsense": 1}}, "option"),
        ({"expressions": ["the cup"], "text_column": "text"}, "text-column"),
        ({"expressions": ["the cup"], "root": "."}, "root"),
    ],
)
def test_what_a_source_does_not_read_is_refused(rows, arguments, name):
    source = rows.parent if "expressions" in arguments else rows
    with pytest.raises(ValueError, match=f"`--{name}` has no effect on"):
        open_requests(str(source), **arguments)


def test_folders_of_load_data(tmp_path):
    """One's own with a metadata.jsonl in each split."""
    for split in ("train", "val"):
        rows = load_data("refshapes", "train", scenes=2, side=32)
        write_folder(({**row, "split": split} for row in rows), tmp_path / "mine" / split)
    assert len(open_requests(str(tmp_path / "mine"), split="val")) == 2


def test_an_image_of_16_bits_that_holds_8_is_named(rows, checkpoint, tmp_path, capsys):
    lines = rows.read_text().splitlines()
    path = rows.parent / json.loads(lines[0])["image"]
    Image.fromarray(np.asarray(Image.open(path).convert("L")).astype(np.uint16)).save(path)
    assert run(rows, "--output", tmp_path / "out", checkpoint=checkpoint) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "looks like an image of 8 bits" in line


@pytest.mark.parametrize("text", ["\u200b", "\ufffd"])
def test_expressions_of_which_nothing_is_read(rows, checkpoint, tmp_path, capsys, text):
    lines = [{"image": "0.png", "expression": "the cup"}, {"image": "0.png", "expressions": ["a cup", text]}]
    lines.append({"image": "0.png", "expression": "..."})
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(rows, "--output", tmp_path / "stop", checkpoint=checkpoint) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("crossvlt: rows.jsonl, line 2 ")
    assert said.count("rows.jsonl") == 1
    assert run(rows, "--output", tmp_path / "skip", "--on-error", "skip", checkpoint=checkpoint) == 0
    printed = capsys.readouterr()
    assert any("1 without any known word" in line for line in printed.err.splitlines())
    counts = json.loads(printed.out)
    assert (counts["predictions"], counts["unknown"], counts["errors"]) == (3, 1, 1)
    assert [bool(line["error"]) for line in lines_of(tmp_path / "skip")] == [False, False, True, False]


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
@pytest.mark.parametrize("workers", [0, 1])
def test_good_expressions_of_a_row_are_kept(rows, checkpoint, tmp_path, capsys, file_format, workers):
    """Whatever the others are; with numbers of their row, and the same masks as alone."""
    texts = ["", "the cup", None, 7, "a\ud800", "the bus", " "]
    lines = [{"image": "0.png", "expressions": texts}, {"image": "1.png", "expressions": ["", None]}]
    lines += [{"image": "0.png", "expressions": ["the cup", "the bus"]}, {"image": "0.png", "expressions": []}]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--output", tmp_path / "out", "--format", file_format, "--workers", workers, "--batch-size", 2]
    assert run(rows, *options, "--on-error", "skip", checkpoint=checkpoint) == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["rows"], counts["predictions"], counts["errors"]) == (4, 4, 8)
    found = list(Shards(tmp_path / "out", 4, 500, file_format).read())
    first = [line for line in found if line["row"] == 0]
    assert [line["number"] for line in first] == list(range(7))
    assert [line["expression"] for line in first] == ["", "the cup", None, None, "a?", "the bus", " "]
    assert [line["error"] is None for line in first] == [False, True, False, False, False, True, False]
    assert first[2]["error"] == "rows.jsonl, line 1 must have text as expression, got None."
    alone = [line for line in found if line["row"] == 2]
    assert [(line["mask"], line["box"]) for line in alone] == [
        (line["mask"], line["box"]) for line in (first[1], first[5])
    ]
    (empty,) = [line for line in found if line["row"] == 3]
    assert (empty["number"], empty["error"]) == (
        None,
        "rows.jsonl, line 4 must have an expression or a list of them, got [].",
    )


@pytest.mark.parametrize("expressions", ["7", "true", '{"raw": "the cup"}', "[]", '""', "[null]", '"\\u200b"'])
def test_wrong_expressions_stop_with_the_place_once(rows, checkpoint, tmp_path, capsys, expressions):
    rows.write_text(f'{{"image": "0.png", "expressions": {expressions}}}\n')
    assert run(rows, "--output", tmp_path / "out", checkpoint=checkpoint) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("crossvlt: rows.jsonl, line 1 ")
    assert said.count("rows.jsonl") == 1


def test_two_columns_of_expressions_are_refused(rows, checkpoint, tmp_path, capsys):
    """One of them would be ignored; null is none."""
    lines = ['{"image": "0.png", "expressions": null, "expression": "the cup"}']
    lines.append('{"image": "0.png", "expressions": ["the bus"], "expression": "the cup"}')
    rows.write_text("\n".join(lines))
    assert run(rows, "--output", tmp_path / "out", "--on-error", "skip", checkpoint=checkpoint) == 0
    assert "line 2 has both `expression` and `expressions`; remove one" in lines_of(tmp_path / "out")[1]["error"]
    both = Dataset.from_dict({"image": [Image.new("RGB", (9, 9))], "expression": ["a"], "expressions": [["b"]]})
    both.save_to_disk(tmp_path / "saved")
    command = [tmp_path / "saved", "--output", tmp_path / "more"]
    assert run(*command, checkpoint=checkpoint) == 2
    assert "The data set has both `expression` and `expressions`" in capsys.readouterr().err
    assert run(*command, "--text-column", "expressions", checkpoint=checkpoint) == 0


def test_a_run_that_reads_nothing_fails(rows, checkpoint, tmp_path, capsys):
    rows.write_text('{"image": "missing.png", "expression": "the cup"}\n{"image": "0.png", "expression": ""}\n')
    command = [rows, "--output", tmp_path / "out", "--on-error", "skip"]
    for _ in range(2):  # the second time, all shards are there
        assert run(*command, checkpoint=checkpoint) == 2
        printed = capsys.readouterr()
        assert json.loads(printed.out)["errors"] == 2
        assert "could be read" in printed.err.splitlines()[-1]
        assert "out has the reasons" in printed.err.splitlines()[-1]


@pytest.mark.parametrize("name", ["nowhere", "photo", "metadata"])
def test_a_name_that_is_no_path_and_not_on_the_hub(checkpoint, tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert run(name, "--output", "out", checkpoint=checkpoint) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"There is no file or folder {name}, and the Hub gives no data set of this name: " in said
    assert ("Did you mean photos?" in said) == (name == "photo")


@pytest.mark.parametrize("columns", [["the cup", "the bus"], "the cup"])
def test_rows_in_the_format_of_numpy(checkpoint, tmp_path, capsys, columns):
    rows = Dataset.from_dict({"image": [Image.new("RGB", (40, 30))] * 2, "text": [columns] * 2})
    rows.with_format("numpy").save_to_disk(tmp_path / "saved")
    assert run(tmp_path / "saved", "--output", tmp_path / "out", checkpoint=checkpoint) == 0
    assert json.loads(capsys.readouterr().out)["predictions"] == 2 * (1 if isinstance(columns, str) else 2)


def test_masks_of_a_data_set_are_no_images_to_segment(rows, checkpoint, tmp_path, capsys):
    """Those of folders of data sets, also with a folder for each split; images with captions are segmented."""
    write_folder(load_data("refshapes", "test", scenes=2, side=32), tmp_path / "parts" / "test")
    for folder in (tmp_path / "parts" / "test", tmp_path / "parts"):
        assert run(folder, "--expression", "the circle", "--output", tmp_path / "out", checkpoint=checkpoint) == 2
        assert "is a data set with masks such as masks/00000001.png" in capsys.readouterr().err
    images = tmp_path / "parts" / "test" / "images"
    (images / "metadata.jsonl").write_text('{"file_name": "00000000.png", "text": "a caption"}\n{"broken')
    (images / "state.json").write_text("{}")
    assert run(images, "--expression", "the circle", "--output", tmp_path / "out", checkpoint=checkpoint) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 2


def test_the_splits_of_saved_rows(checkpoint, tmp_path, capsys):
    table = Dataset.from_dict({"image": [Image.new("RGB", (4, 4))], "text": ["the cup"]})
    table.save_to_disk(tmp_path / "one")
    DatasetDict({"held": table, "train": table}).save_to_disk(tmp_path / "two")
    assert run(tmp_path / "one", "--split", "held", "--output", tmp_path / "a", checkpoint=checkpoint) == 2
    assert "`--split` has no effect on" in capsys.readouterr().err
    assert run(tmp_path / "two", "--split", "test", "--output", tmp_path / "b", checkpoint=checkpoint) == 2
    assert "held, train; got 'test'" in capsys.readouterr().err
    for number, options in enumerate(([], ["--split", "held"])):
        assert run(tmp_path / "two", *options, "--output", tmp_path / f"c{number}", checkpoint=checkpoint) == 0
    DatasetDict({"held": table}).save_to_disk(tmp_path / "three")
    assert run(tmp_path / "three", "--output", tmp_path / "d", checkpoint=checkpoint) == 2
    assert "held" in capsys.readouterr().err
