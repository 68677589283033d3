"""Every code block of the README runs as printed, in the order in which it stands there.

The few lines that a test cannot run are named, with who runs them. Lines that would take hours have settings
added that make them small; what is printed stays.
"""

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from documents import code_blocks
from documents import run_python as run_block
from fabricate import write_refer
from hub_server import HubServer
from PIL import Image
from processes import run_python
from transformers import BertConfig, BertModel, SwinConfig, SwinModel

from crossvlt_hf import CrossVLTModel
from crossvlt_hf.cli import main as crossvlt
from crossvlt_hf.data import load_data
from crossvlt_hf.data.refshapes import make_example
from crossvlt_hf.tokenization import default_tokenizer


ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BLOCKS = code_blocks(README.read_text())
RUN_ELSEWHERE = {
    "make demo": "test_cli runs `crossvlt demo`, which is all that it does",
    "make test": "what runs this test",
    "pip install .": "the wheel is built in test_cards; .ci/run installs",
    "crossvlt demo --serve": "test_page",
    "hf auth login": "asks for a token",
    "crossvlt benchmark": "test_benchmark",
    "crossvlt export --format onnx --output my-crossvlt-onnx": "test_export",
    'python examples/onnx_without_torch.py my-crossvlt-onnx photo.jpg "the white cup"': "test_export",
}
SMALL = [
    "data.workers=0",
    "optimization.max_steps=1",
    "optimization.batch_size=2",
    "output.pictures=1",
    "output.evaluation_batch_size=2",
]
TINY = {
    "vision_config": {"drop_path_rate": 0.0},
    "text_config": {"depths": [2, 1, 1, 1]},
    "alignment_dim": 16,
    "decoder_hidden_size": 16,
    "fusion_head_dim": 8,
}
ADDED = {
    "refcoco data.root=data": [
        *SMALL,
        "model.image_size=64",
        f"model.config={json.dumps(TINY)}",
        "output.folder=runs/refcoco",
    ],
    "refshapes-64 optimization.max_steps=300": [
        *SMALL,
        "data.train=[{name: refshapes, split: train, scenes: 4, side: 64}]",
        "data.validation=[{name: refshapes, split: validation, scenes: 2, side: 64}]",
    ],
    "scenes=500": ["--limit", "12"],
}


def write_encoders(folder):
    """What the Hub has, but small and random, under the names that the README gives."""
    torch.manual_seed(0)
    swin = SwinConfig(image_size=64, embed_dim=32, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], window_size=4)
    SwinModel(swin).save_pretrained(folder / "microsoft" / "swin-base-patch4-window12-384-in22k")
    bert = BertConfig(hidden_size=16, num_hidden_layers=6, num_attention_heads=2, intermediate_size=32)
    BertModel(bert).save_pretrained(folder / "google-bert" / "bert-base-uncased")
    default_tokenizer().save_pretrained(folder / "google-bert" / "bert-base-uncased")


def scenes(count):
    for index in range(count):
        example = make_example("train", index, side=64)
        yield example.scene.image, [(example.mask.astype(np.uint8), [example.expression])]


def write_requests():
    """What `crossvlt predict` reads: a file, a folder of images, and a data set that is on the Hub."""
    for folder in ("a", "photos", "name/dataset"):
        Path(folder).mkdir(parents=True)
    images = [Image.fromarray(image).resize((40, 30)) for image, _ in scenes(2)]
    for folder, image in zip(("a", "photos"), images, strict=True):
        image.save(f"{folder}/1.jpg")
    Path("rows.jsonl").write_text('{"image": "a/1.jpg", "expressions": ["the white cup", "the spoon"]}\n')
    Dataset.from_dict({"image": images, "text": ["the cup", "the spoon"]}).to_parquet("name/dataset/test.parquet")


@pytest.fixture
def workspace(tmp_path, monkeypatch, write_original):
    """A folder with the files that the README speaks of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    shutil.copy(ROOT / "examples" / "images" / "coffee.jpg", "photo.jpg")
    size = Image.open("photo.jpg").size
    for name, box in (("cup.png", (0, 0, 90, 90)), ("spoon.png", (50, 50, 120, 120))):
        mask = Image.new("L", size)
        mask.paste(255, box)
        mask.save(name)
    write_original(Path("original.pth"))
    assert crossvlt(["convert", "original.pth", "my-crossvlt"]) == 0
    write_encoders(tmp_path)
    write_refer(
        tmp_path / "data",
        {name: scenes(2) for name in ("train", "val", "testA", "testB")},
        folder="refcoco",
        refs="refs(unc).p",
    )
    write_requests()
    settings = yaml.safe_load((ROOT / "crossvlt_hf" / "training" / "configs" / "refshapes-64.yaml").read_text())
    settings["data"]["train"][0]["scenes"], settings["data"]["validation"][0]["scenes"] = 4, 2
    settings["optimization"] |= {"max_steps": 1, "batch_size": 2}
    settings["output"] |= {"pictures": 0}
    Path("my.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


def commands():
    """The lines of the shell blocks, without comments."""
    for block in BLOCKS:
        if block.language == "bash":
            yield from (line.split("  #")[0].strip() for line in block.code.splitlines() if line.strip())


def test_what_is_not_run_here_is_still_there():
    lines = list(commands())
    assert set(RUN_ELSEWHERE) <= set(lines)
    for name in ADDED:
        assert sum(name in line for line in lines) == 1, name
    targets = (ROOT / "Makefile").read_text()
    for line in lines:
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", targets, re.MULTILINE)
    assert {block.language for block in BLOCKS} == {"bash", "python", "json", "bibtex"}


def run_command(line, hub, workspace):
    words = [*shlex.split(line), *next((added for name, added in ADDED.items() if name in line), [])]
    if words[:3] == ["accelerate", "launch", "-m"] and words[4] != "refcoco":
        done = run_python(*words[2:])  # the other starts what the launcher would
        assert done.returncode == 0, (line, done.stderr[-2000:])
    elif words[0] == "accelerate":
        launcher = Path(sys.executable).with_name("accelerate")
        done = subprocess.run([launcher, *words[1:]], capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stderr[-2000:])
    elif words[:2] == ["crossvlt", "publish"] and "--folder" not in words:
        environment = hub.environment(workspace / "home", "hf_alice")
        done = run_python("-m", "crossvlt_hf.cli", *words[1:], environment=environment)
        assert done.returncode == 0, (line, done.stderr[-2000:])
    else:
        assert words[0] == "crossvlt", line
        assert crossvlt(words[1:]) == 0, line


def test_every_block_runs(workspace, tmp_path):
    scope, printed = {}, io.StringIO()
    with HubServer(tmp_path / "hub", tokens={"hf_alice": "alice"}) as hub, redirect_stdout(printed):
        for block in BLOCKS:
            if block.language == "bash":
                for line in block.code.splitlines():
                    command = line.split("  #")[0].strip()
                    if command not in RUN_ELSEWHERE:
                        run_command(command, hub, workspace)
            elif block.language == "python" and "alice/" in block.code:
                environment = hub.environment(workspace / "home", "hf_alice")
                done = run_python("-c", block.code, environment=environment)
                assert done.returncode == 0, (block.line, done.stderr[-2000:])
            elif "torchao" in block.code and find_spec("torchao") is None:
                pass  # not in the dev extra; test_quantization is the same
            elif block.language == "python":
                run_block(block.code, README, block.line, scope)
            elif block.language == "json":
                check_folder(block.code)
    assert isinstance(scope["model"], CrossVLTModel)
    assert scope["report"].unused
    for name in (
        "masks/.predictions.json",
        "dogs/.predictions.json",
        "mask-1.png",
        "explanation.png",
        "gallery.png",
        "sheet.png",
        "repository/README.md",
    ):
        assert (workspace / name).stat().st_size
    assert (workspace / "runs" / "first" / "best" / "model.safetensors").is_file()
    assert "the largest object" in printed.getvalue()


def check_folder(lines):
    """The two lines make a folder of one's own data."""
    folder = Path("own")
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    Image.new("RGB", (100, 80)).save(folder / "images" / "1.jpg")
    Image.new("1", (100, 80), 1).save(folder / "masks" / "1.png")
    (folder / "metadata.jsonl").write_text(lines)
    rows = load_data(str(folder), "train")
    assert [row["expressions"] for row in rows] == [["the man in red", "left man"], ["the bus"]]
