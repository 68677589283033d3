"""Every code block of the documents runs as printed, in the order in which it stands there.

The lines that a test cannot run are named, with who runs them. Lines that would take hours have settings added that
make them small; what is printed stays. Each document has a folder of its own with the files that it speaks of.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from documents import DOCUMENTS, ROOT, anchors, code_blocks, links, shell_lines
from documents import run_python as run_block
from fabricate import write_refer
from fabricate_objects import hub_row, mask, picture, write_coco, write_labelme, write_voc, write_yolo
from hub_server import HubServer
from PIL import Image
from processes import run_python
from transformers import BertConfig, BertModel, SwinConfig, SwinModel

from crossvlt_hf.cli import main as crossvlt
from crossvlt_hf.data import load_data
from crossvlt_hf.data.refshapes import make_example
from crossvlt_hf.weights.vocabulary import default_tokenizer


BLOCKS = {name: code_blocks((ROOT / name).read_text()) for name in DOCUMENTS}
# A name that ends in dots stands for all lines that begin so
RUN_ELSEWHERE = {
    "pip install .": "the wheel is built in test_cards; .ci/run installs",
    'pip install ".[train,plot]"': "the same",
    'pip install ".[train]"': "the same",
    "pre-commit install": "changes the clone; its hooks are `make check`",
    "crossvlt demo --serve": "test_page",
    "crossvlt demo --output panel.png": "test_cli",
    "hf auth login": "asks for a token",
    "crossvlt benchmark": "test_benchmark",
    "crossvlt benchmark --model base ...": "test_benchmark",
    "crossvlt benchmark --measure phases ...": "test_benchmark",
    "crossvlt benchmark --measure prediction ...": "test_benchmark",
    "crossvlt train refshapes-64 optimization.max_steps=1": "test_hub",
    "crossvlt benchmark --task inference --backend torch ...": "test_benchmark",
    "crossvlt export --model my-crossvlt ...": "test_export",
    "python examples/onnx_without_torch.py ...": "test_export",
    "python examples/scaling.py ...": "test_scaling",
    "crossvlt evaluate --model my-crossvlt --data my-data --split validation --calibrate": "test_presence",
    "crossvlt evaluate --model my-crossvlt --data my-data --split test --reliability ...": "the same",
    "crossvlt evaluate --model runs/refshapes-nine/best ...": "the same",
    "accelerate launch -m crossvlt_hf train grefcoco ...": "the same",
    "crossvlt evaluate --model runs/grefcoco/best ...": "the same",
    "accelerate launch -m crossvlt_hf train refcoco": "test_reproduction",
    "crossvlt refer annotations/instances_train2014.json --images ...": "the same",
    "accelerate launch -m crossvlt_hf train refcoco output.folder=runs/refcoco-rules ...": "the same",
    "accelerate launch -m crossvlt_hf train refcoco model.checkpoint=runs/refcoco-rules/best ...": "the same",
    "crossvlt evaluate --model runs/refcoco/best --data refcoco --root data --split testA --merge ...": "the same",
    "accelerate launch -m crossvlt_hf evaluate --model runs/refcoco/best ...": "the same",
}
SMALL = [
    "data.workers=0",
    "optimization.max_steps=1",
    "optimization.batch_size=2",
    "output.pictures=0",
    "output.evaluation_batch_size=2",
]
SMALL_REFSHAPES = [
    *SMALL,
    "data.train=[{name: refshapes, split: train, scenes: 4, side: 64}]",
    "data.validation=[{name: refshapes, split: validation, scenes: 2, side: 64}]",
]
TINY = {
    "vision_config": {"drop_path_rate": 0.0},
    "text_config": {"depths": [2, 1, 1, 1]},
    "alignment_dim": 16,
    "decoder_hidden_size": 16,
    "fusion_head_dim": 8,
}
# By what a line begins with
ADDED = {
    "accelerate launch -m crossvlt_hf train refcoco data.root=data": [
        *SMALL,
        "model.image_size=64",
        f"model.config={json.dumps(TINY)}",
        "output.folder=runs/refcoco",
    ],
    "crossvlt train refshapes-64 optimization.max_steps=300": SMALL_REFSHAPES,
    "accelerate launch -m crossvlt_hf train refshapes-64 data.train=": [
        *SMALL,
        SMALL_REFSHAPES[-1],
        "output.folder=runs/own",
    ],
    "crossvlt train my.yaml": [*SMALL, "model.image_size=64"],
    "crossvlt refshapes my-data --scenes 200": ["--scenes", "4"],
    "crossvlt evaluate --model runs/first/best": ["--limit", "4"],
    "crossvlt evaluate --data refshapes": ["--limit", "4"],
    "accelerate launch -m crossvlt_hf evaluate --model runs/shapes/best": ["--limit", "2"],
}


# ---- the files that the documents speak of


def write_photo(write_original):
    Path("examples/images").mkdir(parents=True)
    for place in ("photo.jpg", "examples/images/coffee.jpg"):
        shutil.copy(ROOT / "examples" / "images" / "coffee.jpg", place)
    size = Image.open("photo.jpg").size
    for name, box in (("cup.png", (0, 0, 90, 90)), ("spoon.png", (50, 50, 120, 120))):
        found = Image.new("L", size)
        found.paste(255, box)
        found.save(name)


def write_originals(write_original):
    write_original(Path("original.pth"))


def write_checkpoint(write_original):
    write_original(Path("authors.pth"))
    assert crossvlt(["convert", "authors.pth", "my-crossvlt"]) == 0


def write_encoders(write_original):
    """What the Hub has, but small and random, under the names that the documents give."""
    torch.manual_seed(0)
    swin = SwinConfig(image_size=64, embed_dim=32, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], window_size=4)
    SwinModel(swin).save_pretrained("microsoft/swin-base-patch4-window12-384-in22k")
    bert = BertConfig(hidden_size=16, num_hidden_layers=6, num_attention_heads=2, intermediate_size=32)
    BertModel(bert).save_pretrained("google-bert/bert-base-uncased")
    default_tokenizer().save_pretrained("google-bert/bert-base-uncased")


def scenes(count):
    for index in range(count):
        example = make_example("train", index, side=64)
        yield example.scene.image, [(example.mask.astype(np.uint8), [example.expression])]


def write_refcoco(write_original):
    splits = {name: scenes(2) for name in ("train", "val", "testA", "testB")}
    write_refer(Path("data"), splits, folder="refcoco", refs="refs(unc).p")


def write_own_data(write_original):
    Path("my-data").mkdir()
    lines = []
    for number, (image, [(found, expressions)]) in enumerate(scenes(4)):
        Image.fromarray(image).save(f"my-data/{number}.png")
        Image.fromarray(found * 255).save(f"my-data/{number}-mask.png")
        row = {"image": f"{number}.png", "mask": f"{number}-mask.png", "expressions": [*expressions, "the zebra"]}
        lines.append(json.dumps(row | {"split": "train" if number < 2 else "validation"}))
    Path("my-data/metadata.jsonl").write_text("\n".join(lines))


def write_requests(write_original):
    """What `crossvlt predict` reads: a file, a folder of images, and a data set that is on the Hub."""
    for folder in ("a", "photos", "name/dataset"):
        Path(folder).mkdir(parents=True)
    images = [Image.fromarray(image).resize((40, 30)) for image, _ in scenes(2)]
    for folder, image in zip(("a", "photos"), images, strict=True):
        image.save(f"{folder}/1.jpg")
    Path("rows.jsonl").write_text('{"image": "a/1.jpg", "expressions": ["the white cup", "the spoon"]}\n')
    Dataset.from_dict({"image": images, "text": ["the cup", "the spoon"]}).to_parquet("name/dataset/test.parquet")


def write_coco_labels(write_original):
    """Two photographs, of which one differs in a pixel: copies of a file are one image to hold out."""
    write_coco(Path())
    other = picture()
    other.putpixel((0, 0), (1, 2, 3))
    other.save("images/001.png")


def write_labels(write_original):
    """Labelled objects in every form, and cut-outs with backgrounds."""
    write_coco_labels(write_original)
    write_yolo(Path("yolo"))
    write_labelme(Path("labelme"))
    write_voc(Path("VOCdevkit/VOC2012"))
    Dataset.from_list([hub_row()]).to_parquet("rows.parquet")
    kind = ClassLabel(names=["cat", "dog"])
    pets = Features({"image": ImageFeature(), "trimap": ImageFeature(), "label_cat_dog": kind})
    pet = {"image": picture(), "trimap": Image.fromarray(np.where(mask(2) == 1, 1, 2).astype(np.uint8))}
    Dataset.from_list([pet | {"label_cat_dog": 1}], features=pets).to_parquet("name/pets/train.parquet")
    table = np.zeros((*mask(0).shape, 3), np.uint8)
    for number, value in enumerate((1, 1, 2)):
        table[mask(number) == 1] = (value, number + 1, 0)
    rooms = Features({"image": ImageFeature(), "annotation": ImageFeature()})
    room = {"image": picture(), "annotation": Image.fromarray(table)}
    Dataset.from_list([room], features=rooms).to_parquet("name/rooms/train.parquet")
    Path("rooms").mkdir()
    picture().save("rooms/1.png")
    for name in ("cup", "dog"):
        Path("cutouts", name).mkdir(parents=True)
        cutout = np.zeros((40, 40, 4), np.uint8)
        cutout[8:32, 8:32] = (200, 30, 30, 255)
        Image.fromarray(cutout).save(f"cutouts/{name}/1.png")


FILES = {
    "README.md": [write_photo, write_originals, write_encoders, write_refcoco, write_requests, write_coco_labels],
    "docs/data.md": [write_photo, write_labels],
    "docs/no-target.md": [write_photo],
    "docs/performance.md": [write_checkpoint],
    "docs/publishing.md": [write_photo, write_checkpoint],
    "docs/training.md": [write_photo, write_checkpoint, write_encoders, write_refcoco, write_own_data],
    "docs/usage.md": [write_photo, write_checkpoint, write_originals, write_encoders, write_requests],
}
WRITTEN = {
    "README.md": ["mask.png", "masks/.predictions.json", "runs/first/best/model.safetensors", "repository/README.md"],
    "docs/data.md": ["mask.png", *(f"refs{of}/metadata.jsonl" for of in ("", "-coco", "-voc", "-table", "-rooms"))],
    "docs/publishing.md": ["repository/README.md"],
    "docs/reproduce.md": ["my-data/metadata.jsonl", "runs/own/best/model.safetensors"],
    "docs/training.md": ["runs/mine/best/model.safetensors", "runs/refcoco/best/config.json", "gallery.png"],
    "docs/usage.md": ["masks/.predictions.json", "the spoon.png", "explanation.png", "overlay.png", "sheet.png"],
}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return tmp_path


# ---- the blocks


def fits(name, line):
    return line.startswith(name.removesuffix("...")) if name.endswith("...") else line == name


def test_what_is_not_run_here_is_still_there():
    lines = [
        line for blocks in BLOCKS.values() for b in blocks if b.language == "bash" for line in shell_lines(b.code)
    ]
    for name in RUN_ELSEWHERE:
        assert any(fits(name, line) for line in lines), name
    for beginning in ADDED:
        assert any(line.startswith(beginning) for line in lines), beginning
    targets = (ROOT / "Makefile").read_text()
    for line in lines:
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", targets, re.MULTILINE), line


def run_module(arguments, environment=None):
    done = run_python("-m", *arguments, environment=environment)
    assert done.returncode == 0, (arguments, done.stderr[-2000:])


def run_command(line, hub, name):
    added = next((added for beginning, added in ADDED.items() if line.startswith(beginning)), [])
    words = [*shlex.split(line), *added]
    if words[:3] == ["accelerate", "launch", "-m"] and name == "README.md":  # elsewhere what it would start
        launcher = Path(sys.executable).with_name("accelerate")
        done = subprocess.run([launcher, *words[1:]], capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stderr[-2000:])
    elif words[:3] == ["accelerate", "launch", "-m"]:
        run_module(words[3:])
    elif words[:2] == ["crossvlt", "publish"] and "--folder" not in words:
        run_module(["crossvlt_hf", *words[1:]], hub.environment(Path("home").absolute(), "hf_alice"))
    else:
        assert words[0] == "crossvlt", f"{line} cannot be run here; name the test that does."
        assert crossvlt(words[1:]) == 0, line


def run(block, name, hub, scope):
    if block.language == "bash":
        for line in shell_lines(block.code):
            if not line.startswith("make ") and not any(fits(other, line) for other in RUN_ELSEWHERE):
                run_command(line, hub, name)
    elif block.language == "python" and "alice/" in block.code:
        done = run_python("-c", block.code, environment=hub.environment(Path("home").absolute(), "hf_alice"))
        assert done.returncode == 0, (block.line, done.stderr[-2000:])
    elif block.language == "python":
        if "torchao" in block.code and find_spec("torchao") is None:
            return  # not in the dev extra; test_quantization is the same
        run_block(block.code, ROOT / name, block.line, scope)
    elif block.language == "yaml":
        Path("my.yaml").write_text(block.code)
    elif block.language == "json":
        check_folder(block.code)
    else:
        assert block.language in ("bibtex", "text"), f"{name}, line {block.line}"


SLOW = ("README.md", "docs/data.md", "docs/training.md", "docs/usage.md", "docs/publishing.md", "docs/reproduce.md")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, blocks in BLOCKS.items()
        if blocks
    ],
)
@pytest.mark.filterwarnings("ignore:All 2 backgrounds may show objects")  # of the classes in their names
def test_every_block_runs(name, workspace, write_original):
    for write in FILES.get(name, []):
        write(write_original)
    scope = {}
    with HubServer(workspace / "hub", tokens={"hf_alice": "alice"}) as hub:
        for block in BLOCKS[name]:
            run(block, name, hub, scope)
    for path in WRITTEN.get(name, []):
        assert Path(path).stat().st_size, path


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


# ---- the rest


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    text, folder = (ROOT / name).read_text(), (ROOT / name).parent
    for target in links(text):
        path, _, anchor = target.partition("#")
        document = folder / path if path else ROOT / name
        assert document.exists(), target
        if anchor:
            assert anchor in anchors(document.read_text()), target


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180


def test_the_hooks_are_those_of_the_check():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["entry"].split()[:2] for hook in repository["hooks"]] == [["ruff", "check"], ["ruff", "format"]]
