"""A dry run of the paper's experiments: from the pickle to the table, on scenes in the exact formats of REFER."""

import json

import pytest
import torch
from fabricate import write_refer
from transformers import BertConfig, BertModel, SwinConfig, SwinModel

from crossvlt_hf.cli import main as crossvlt
from crossvlt_hf.data import exclude_images, load_data
from crossvlt_hf.data.refshapes import families_at, make_scene
from crossvlt_hf.data.refshapes.scenes import outline
from crossvlt_hf.training.__main__ import main as train
from crossvlt_hf.training.build import refshapes_tokenizer


SIDE = 64
ROWS = {
    "refcoco": ("unc", ["val", "testA", "testB"]),
    "refcoco+": ("unc", ["val", "testA", "testB"]),
    "refcocog": ("umd", ["val", "test"]),
}


def scenes(split: str, count: int):
    """Pictures with two things each, as polygons, the first of which is said in two ways."""
    for index in range(count):
        examples = make_scene("train", index, families=families_at("train", index, 2), side=SIDE, seed=len(split))
        things = []
        for number, example in enumerate(examples):
            polygon = [x for corner in outline(example.scene.things[example.targets[0]], SIDE) for x in corner]
            said = [example.expression, example.expression.capitalize()] if number == 0 else [example.expression]
            things.append(([polygon], said))
        yield examples[0].scene.image, things


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The three data sets, and encoders as the Hub has them, but small and random."""
    folder = tmp_path_factory.mktemp("reproduction")
    for name, (by, splits) in ROWS.items():
        root = folder / name.replace("+", "-plus")
        write_refer(
            root,
            {"train": scenes("train", 6), **{split: scenes(split, 2) for split in splits}},
            folder=name,
            refs=f"refs({by}).p",
        )
    torch.manual_seed(0)
    swin = SwinConfig(image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], window_size=4)
    SwinModel(swin).save_pretrained(folder / "swin")
    tokenizer = refshapes_tokenizer()
    bert = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=6, num_attention_heads=2, intermediate_size=32
    )
    BertModel(bert).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    return folder


def small(root, run) -> list[str]:
    return [
        f"data.root={root}",
        "data.workers=0",
        "model.image_size=32",
        "optimization.epochs=1",
        f"output.folder={run}",
    ]


def small_model(world) -> list[str]:
    return [
        f"model.vision_encoder={world / 'swin'}",
        f"model.text_encoder={world / 'bert'}",
        "model.config={fusion_head_dim: 8, decoder_hidden_size: 8}",
    ]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name != "refcoco" else []) for name in ROWS]
)
def test_from_the_pickle_to_the_table(world, name, tmp_path, capsys):
    """The shipped configuration but for the sizes; then every row of the paper's table for that data set."""
    root, run = world / name.replace("+", "-plus"), tmp_path / "run"
    assert train([name, *small(root, run), *small_model(world)]) == 0
    losses = [entry for entry in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if "loss" in entry]
    assert losses[-1]["step"] == 1  # twelve references are one batch
    capsys.readouterr()
    for split in ROWS[name][1]:
        path = tmp_path / f"{split}.json"
        assert (
            crossvlt(
                [
                    "evaluate",
                    "--model",
                    str(run / "best"),
                    "--data",
                    name,
                    "--root",
                    str(root),
                    "--split",
                    split,
                    "--merge",
                    "reference",
                    "--truncation",
                    "reference",
                    "--output",
                    str(path),
                ]
            )
            == 0
        )
        table = capsys.readouterr().out.splitlines()
        assert table[0] == "| checkpoint, data | samples | oIoU | mIoU | P@0.5 | P@0.6 | P@0.7 | P@0.8 | P@0.9 |"
        report = json.loads(path.read_text())
        assert report["metrics"]["samples"] == 6  # every expression, not every reference
        cells = [f"{run / 'best'}, {name} {split}", "6", f"{100 * report['metrics']['overall_iou']:.1f}"]
        assert table[2].startswith(f"| {' | '.join(cells)} |")
        assert (report["merge"], report["truncation"], report["protocol"]) == ("reference", "reference", "paper")


@pytest.fixture(scope="module")
def rules(world):
    """Expressions that rules make from the instances of RefCOCO's images, beside its folder."""
    root = world / "refcoco"
    images = root / "images" / "mscoco" / "images" / "train2014"
    command = ["refer", root / "refcoco" / "instances.json", "--images", images, "--output", root / "rules"]
    assert crossvlt([*map(str, command), "--per-image", "2", "--workers", "0"]) == 0
    return root


def test_rules_are_not_trained_on_images_of_other_splits(rules):
    refcoco = {split: load_data("refcoco", split, root=rules) for split in ("train", "val", "testA", "testB")}
    made = load_data(str(rules / "rules"), "train")
    kept = exclude_images(made, *(refcoco[split] for split in ("val", "testA", "testB")))
    every = {f"coco {row['image_id']}" for rows in refcoco.values() for row in rows}
    assert {row["image_id"] for row in made} == every
    assert {row["image_id"] for row in kept} == {f"coco {row['image_id']}" for row in refcoco["train"]}


@pytest.mark.slow
def test_rules_are_mixed_in(world, rules, tmp_path, capsys):
    """As docs/reproduce.md has it: from encoders, on both data sets, without images of the other splits."""
    excluded = ", ".join(f"{{name: refcoco, split: {split}}}" for split in ("val", "testA", "testB"))
    settings = [
        "data.train=[{name: refcoco, split: train, merge: reference}, {name: rules, split: train}]",
        f"data.exclude=[{excluded}]",
    ]
    first, then = tmp_path / "run", tmp_path / "then"
    assert train(["refcoco", *small(rules, first), *small_model(world), *settings]) == 0
    assert train(["refcoco", *small(rules, then), f"model.checkpoint={first / 'best'}"]) == 0
    for run in (first, then):
        assert (run / "best" / "model.safetensors").is_file()


def test_a_wrong_root_and_split_are_told_in_one_line(world, tmp_path, capsys):
    assert crossvlt(["evaluate", "--data", "refcoco", "--root", str(tmp_path), "--split", "val"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert crossvlt(["evaluate", "--data", "refcoco", "--root", str(world / "refcoco"), "--split", "testC"]) == 2
    assert "testC" in capsys.readouterr().err
