"""Batch prediction: what comes out, from what, and that nothing is lost or repeated."""

import io
import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_config, tiny_tokenizer
from datasets import Dataset, Features, List, Value
from datasets import Image as HubImage
from kill_prediction import write_rows
from PIL import Image
from processes import run_python

from crossvlt_hf import CrossVLTModel, CrossVLTProcessor, ReferringImageSegmentationPipeline
from crossvlt_hf.cli import main
from crossvlt_hf.data.masks import decode_segmentation
from crossvlt_hf.loading import load_checkpoint
from crossvlt_hf.prediction import PredictionOptions, Shards, open_requests, predict


KEYS = ["row", "name", "number", "expression", "score", "box", "mask", "error"]


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
        *(f"predictions-0000{shard}-of-00003.jsonl" for shard in range(3)),
        "predictions.json",
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
    assert "whose `data` is" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


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
        5: "has the expression ' '; give text",
        6: "give an object",
        7: "has no image; give one of image, file_name",
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
    assert "row 2 is refused as too large" in lines[2]["error"]
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


WRONG = {
    "nowhere.jsonl": "There is no file or folder",
    "DATA --expression the": "need a folder of images",
    "DATA --shard-size 0": "`shard_size` is 0",
    "DATA --batch-size 0": "`batch_size` is 0",
    "DATA --workers -1": "`workers` is -1",
    "DATA --format csv": "`file_format` is 'csv'; give one of jsonl, parquet",
    "DATA --on-error ignore": "`on_error` is 'ignore'; give one of stop, skip",
    "DATA --threshold 2": "threshold",
    "DATA --output DATA": "is a file; give a folder",
    "DATA --output FOLDER": "is not empty, and no prediction",
    "EMPTY": "has no rows to segment",
    "refshapes --option colour=red": "has no such --option",
}


@pytest.mark.parametrize("options", WRONG)
def test_wrong_input_is_told_in_a_line(rows, checkpoint, tmp_path, capsys, options):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    names = {"DATA": str(rows), "FOLDER": str(rows.parent), "EMPTY": str(tmp_path / "empty.jsonl")}
    words = [names.get(word, word) for word in options.split()]
    if words[0] == "nowhere.jsonl":
        words[0] = str(tmp_path / words[0])
    if "--output" not in words:
        words += ["--output", str(tmp_path / "out")]
    assert run(*words, checkpoint=checkpoint) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("crossvlt: ")]
    assert WRONG[options] in line


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
    assert sorted(path.name for path in output.iterdir()) == ["predictions-00000-of-00003.jsonl", "predictions.json"]
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


def test_two_processes_write_what_one_does(rows, checkpoint, tmp_path):
    command = ["predict", str(rows), "--shard-size", "2", "--model", checkpoint, "--device", "cpu", "--output"]
    alone, environment = tmp_path / "alone", {**os.environ, "PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    assert main([*command, str(alone)]) == 0
    done = run_python("-c", PROCESS, *command, tmp_path / "two", environment=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    for path in alone.iterdir():
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes()
    assert json.loads(done.stdout.splitlines()[-1])["predictions"] == 15


def test_predictions_that_are_killed_end_as_if_they_had_not_been(tmp_path):
    """More with `python tests/kill_prediction.py --rows 1000 --kills 10`."""
    script = Path(__file__).with_name("kill_prediction.py")
    done = run_python(script, "--rows", 80, "--kills", 3, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == json.loads(done.stdout) | {"kills": 3, "rows": 80, "predictions": 120}
