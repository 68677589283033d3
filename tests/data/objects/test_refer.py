"""`crossvlt refer` and what it writes, read again."""

import base64
import json
import os
import re
import runpy
import shutil
from dataclasses import replace
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from fabricate_objects import (
    HEIGHT,
    WIDTH,
    hub_row,
    mask,
    picture,
    png,
    write_coco,
    write_labelme,
    write_voc,
    write_yolo,
)
from PIL import ExifTags, Image
from processes import run_python

from crossvlt_hf.cli import main
from crossvlt_hf.data import exclude_images, load_data
from crossvlt_hf.data.objects import (
    FAMILIES,
    ObjectSource,
    ReferOptions,
    expressions_dataset,
    load_objects,
    references,
    write_references,
)
from crossvlt_hf.data.objects.attributes import drop_doubles
from crossvlt_hf.data.objects.references import choose_validation
from crossvlt_hf.data.objects.rows import HubObjects


EXPECTED = {
    "the red cup": [0],
    "the blue cup": [1],
    "the cup on the left": [0],
    "the cup on the right": [1],
    "the leftmost cup": [0],
    "the dog": [2],
    "the animal": [2],
    "both cups": [0, 1],
    "the cup that is not red": [1],
    "the cup that is not blue": [0],
    "the cup that is not on the left": [1],
    "the cup that is not on the right": [0],
}


def check_rows(rows, loose: int = 0) -> set[str]:
    """See that what is known to be true of the scene has its mask."""
    for row in rows:
        (text,) = row["expressions"]
        assert row["mask"].shape == (HEIGHT, WIDTH)
        assert row["has_target"] == bool(row["mask"].any()) == (row["family"] != "no_target")
        if text in EXPECTED:
            truth = np.any([mask(number) for number in EXPECTED[text]], axis=0)
            assert (row["mask"] != truth).sum() <= loose, text
    return {row["expressions"][0] for row in rows}


def refer(*arguments: object) -> int:
    return main(["refer", *map(str, arguments)])


def test_writes_a_folder_that_is_read_again(tmp_path, capsys):
    labels, folder = write_coco(tmp_path), tmp_path / "out"
    options = ["--images", tmp_path / "images", "--output", folder, "--per-family", 6]
    assert refer(labels, *options) == 0
    printed = capsys.readouterr()
    assert "images: read 2, with expressions 2, unreadable 0" in printed.out
    assert str(folder) in printed.err
    rows = load_data(str(folder), "train")
    texts = check_rows([rows[index] for index in range(len(rows))])
    assert {"the red cup", "the dog"} <= texts
    assert any("cups" in text for text in texts)
    assert any("that is not" in text for text in texts)
    report = json.loads((folder / "report.json").read_text())
    assert (
        report["expressions"]["all"]
        == len(rows)
        == sum(report["expressions"][f] for f in FAMILIES if f in report["expressions"])
    )
    assert report["images"]["with expressions"] == 2
    assert report["objects"]["labelled"] == 6
    assert report["words"]["the"] >= len(rows) / 2
    assert report["classes"]["cup"] == {"objects": 4, "said as": ["cup"], "in the table": True}
    assert Image.open(folder / "contact_sheet.png").width > 400
    assert refer(labels, *options) == 2  # nothing is overwritten
    assert "empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("images", [None, "nowhere", "pictures"])
def test_missing_images_are_told_with_the_option(tmp_path, capsys, monkeypatch, images):
    """Neither beside the file, nor in a folder that is there, nor in one that is not."""
    labels = write_coco(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    options = [] if images is None else ["--images", images]
    assert refer(labels, "--output", "out", *options) == 2
    (said,) = capsys.readouterr().err.splitlines()
    if images == "nowhere":
        assert "There is no folder of images nowhere; `--images` must be that of the images" in said
    else:
        assert "There is no image file" in said
        assert said.endswith("set `--images` to the folder of the images.")
    assert not Path("out").exists()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_images_for_validation(tmp_path, capsys, share):
    """At least one image and not all, the same in files and in memory, whatever the order; none in both splits."""
    labels = write_coco(tmp_path)
    options = ["--images", tmp_path / "images", "--validation", share, "--output"]
    assert refer(labels, *options, tmp_path / "out") == 2  # two files of one photograph are one image
    assert "at least two images" in capsys.readouterr().err
    file = sorted((tmp_path / "images").iterdir())[0]
    picture = Image.open(file).copy()
    picture.putpixel((0, 0), (1, 2, 3))
    picture.save(file)
    assert refer(labels, *options, tmp_path / "out") == 0
    assert "images of each split: " in capsys.readouterr().out
    train, validation = (load_data(str(tmp_path / "out"), split) for split in ("train", "validation"))
    assert len(set(train["image_id"])) == len(set(validation["image_id"])) == 1
    assert not set(train["image_id"]) & set(validation["image_id"])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["splits"] == {"train": 1, "validation": 1}
    source = load_objects(labels, images=tmp_path / "images")
    rows = expressions_dataset(source, ReferOptions(validation=share))
    assert {(row["image_id"], row["split"]) for row in rows.select_columns(["image_id", "split"])} == {
        (row["image_id"], row["split"])
        for part in (train, validation)
        for row in part.select_columns(["image_id", "split"])
    }


def test_a_share_of_many_images_for_validation():
    keys = [f"image {number}" for number in range(1000)]
    chosen = choose_validation(keys, 0.1, seed=0)
    assert len(chosen) == 100
    assert choose_validation(reversed(keys), 0.1, seed=0) == chosen
    assert choose_validation(keys, 0.1, seed=1) != chosen
    with pytest.raises(ValueError, match="at least two images"):
        choose_validation(["one", "one"], 0.5, seed=0)


@pytest.mark.parametrize("share", ["1", "-0.1", "nan", "ten"])
def test_wrong_shares_for_validation(tmp_path, capsys, share):
    command = [write_coco(tmp_path), "--output", tmp_path / "out", "--validation", share]
    if share == "ten":
        with pytest.raises(SystemExit, match="2"):
            refer(*command)
        assert "`--validation`" in capsys.readouterr().err
    else:
        assert refer(*command) == 2
        assert "`--validation` must be a share of images, from 0 to below 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_copies_with_names_of_coco_are_held_out_together(tmp_path):
    """Their ids are those of COCO, without a digest of the file."""
    labels = write_coco(tmp_path, images=6)
    table = json.loads(labels.read_text())
    for number, image in enumerate(table["images"]):
        name = f"{image['id']:012d}.jpg"
        picture = Image.open(tmp_path / "images" / image["file_name"]).convert("RGB")
        picture.putpixel((0, 0), (40 * (number // 2), 0, 0))  # three pairs of copies
        picture.save(tmp_path / "images" / name, quality=95)
        image["file_name"] = name
    labels.write_text(json.dumps(table))
    for seed in range(4):
        command = [labels, "--images", tmp_path / "images", "--validation", 0.4, "--seed", seed]
        assert refer(*command, "--output", tmp_path / f"out{seed}") == 0
        rows = map(json.loads, (tmp_path / f"out{seed}" / "metadata.jsonl").read_text().splitlines())
        splits = {row["image_id"]: row["split"] for row in rows}
        assert sorted(splits) == [f"coco {number}" for number in range(1, 7)]
        assert sorted(splits.values()).count("validation") == 2
        for number in (1, 3, 5):
            assert splits[f"coco {number}"] == splits[f"coco {number + 1}"]
        options = ReferOptions(validation=0.4, seed=seed)
        rows = expressions_dataset(load_objects(labels, images=tmp_path / "images"), options)
        assert {row["image_id"]: row["split"] for row in rows.select_columns(["image_id", "split"])} == splits


def test_references_that_are_all_for_validation(tmp_path):
    source = load_objects(write_coco(tmp_path))
    with pytest.raises(ValueError, match="`validation` must be left out if the split"):
        expressions_dataset(source, ReferOptions(validation=0.5), split="validation")


@pytest.mark.parametrize(("write", "loose"), [(write_yolo, 0), (write_labelme, 0)])
def test_every_form_by_detection(tmp_path, write, loose):
    assert refer(write(tmp_path / "data"), "--output", tmp_path / "out", "--per-family", 6) == 0
    rows = load_data(str(tmp_path / "out"), "train")
    assert {"the red cup", "the dog"} <= check_rows(list(rows), loose)


def test_split_names_the_references(tmp_path):
    labels = write_coco(tmp_path, images=1)
    assert refer(labels, "--images", tmp_path / "images", "--output", tmp_path / "out", "--split", "val") == 0
    assert len(load_data(str(tmp_path / "out"), "val"))


def test_yolo_images_of_another_split_are_not_written(tmp_path, capsys):
    """With --split val, training images were written as split val, and without it validation images as train."""
    root = write_yolo(tmp_path / "data")
    for kind, suffix in (("labels", "txt"), ("images", "png")):
        (root / kind / "val").mkdir()
        shutil.copy(root / kind / "train" / f"a.{suffix}", root / kind / "val" / f"b.{suffix}")
    assert refer(root, "--output", tmp_path / "out") == 2
    assert "`--split` must be one of the splits of" in capsys.readouterr().err
    for split, image in (("val", "val/b.png"), ("train", "train/a.png")):
        assert refer(root, "--output", tmp_path / split, "--split", split) == 0
        lines = [json.loads(line) for line in (tmp_path / split / "metadata.jsonl").open()]
        assert {(line["split"], line["image_id"].split()[0]) for line in lines} == {(split, image)}
    shutil.rmtree(root / "labels" / "train")
    assert refer(root, "--output", tmp_path / "only") == 0
    assert len(load_data(str(tmp_path / "only"), "val"))


def test_voc_and_split(tmp_path):
    assert refer(write_voc(tmp_path / "data"), "--output", tmp_path / "out", "--split", "val", "--sheet", 0) == 0
    assert len(load_data(str(tmp_path / "out"), "val"))
    assert not (tmp_path / "out" / "contact_sheet.png").exists()
    assert refer(tmp_path / "data", "--output", tmp_path / "only", "--sheet", 0) == 0
    assert len(load_data(str(tmp_path / "only"), "val"))  # the only list


def test_images_are_linked_or_copied(tmp_path):
    labels = write_coco(tmp_path, images=1)
    for folder, options in ((tmp_path / "linked", []), (tmp_path / "copied", ["--copy"])):
        assert refer(labels, "--images", tmp_path / "images", "--output", folder, *options) == 0
        (image,) = (folder / "images").iterdir()
        assert image.is_symlink() == (not options)
        assert image.read_bytes() == (tmp_path / "images" / "001.png").read_bytes()


def test_without_a_look_at_colours(tmp_path):
    labels = write_coco(tmp_path)
    assert refer(labels, "--images", tmp_path / "images", "--output", tmp_path / "out", "--no-colours") == 0
    texts = check_rows(list(load_data(str(tmp_path / "out"), "train")))
    assert not any(colour in text for text in texts for colour in ("red", "blue", "brown"))


def test_the_same_from_the_same_seed(tmp_path):
    labels = write_coco(tmp_path)
    for name, seed, workers in (("one", 0, 0), ("again", 0, 0), ("two", 0, 2), ("other", 1, 0)):
        options = ["--output", tmp_path / name, "--seed", seed, "--workers", workers]
        assert refer(labels, "--images", tmp_path / "images", *options) == 0
    one, again, two, other = (
        (tmp_path / name / "metadata.jsonl").read_text() for name in ("one", "again", "two", "other")
    )
    assert one == again == two, "The expressions depend on the number of processes."
    assert one != other
    assert (tmp_path / "one" / "report.json").read_text() == (tmp_path / "two" / "report.json").read_text()


def test_a_picture_is_the_same_whatever_stands_before_it(tmp_path):
    labels = write_coco(tmp_path)
    table = json.loads(labels.read_text())
    refer(labels, "--images", tmp_path / "images", "--output", tmp_path / "both")
    table["images"] = table["images"][1:]
    table["annotations"] = [row for row in table["annotations"] if row["image_id"] == 2]
    labels.write_text(json.dumps(table))
    refer(labels, "--images", tmp_path / "images", "--output", tmp_path / "second")
    texts = [
        [
            row["expression"]
            for row in map(json.loads, (tmp_path / name / "metadata.jsonl").open())
            if row["image_id"].startswith("2 ")
        ]
        for name in ("both", "second")
    ]
    assert texts[0] == texts[1]


def test_the_order_of_the_labels_does_not_matter(tmp_path):
    labels = write_coco(tmp_path, images=6)
    table = json.loads(labels.read_text())
    options = ["--images", tmp_path / "images", "--per-family", 3, "--output"]
    assert refer(labels, *options, tmp_path / "one") == 0
    for name, order in (("reversed", slice(None, None, -1)), ("by class", None)):
        shuffled = (
            table["annotations"][order] if order else sorted(table["annotations"], key=lambda a: -a["category_id"])
        )
        labels.write_text(json.dumps({**table, "annotations": shuffled, "categories": table["categories"][::-1]}))
        assert refer(labels, *options, tmp_path / name) == 0
        one, other = ((tmp_path / folder / "metadata.jsonl").read_text() for folder in ("one", name))
        assert one == other
    check_rows(load_data(str(tmp_path / "reversed"), "train"))


def test_incomplete_labels_are_marked(tmp_path):
    labels = write_coco(tmp_path)
    assert refer(labels, "--images", tmp_path / "images", "--output", tmp_path / "out", "--incomplete") == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").open()]
    assert all(row["certain"] is False for row in rows)
    assert {row["family"] for row in rows} <= {"noun", "attribute", "absolute"}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_row_stops_in_one_line_or_is_skipped_and_counted(tmp_path, capsys, workers):
    labels = write_coco(tmp_path)
    table = json.loads(labels.read_text())
    table["annotations"][0]["segmentation"] = [[1, 2, 3]]
    labels.write_text(json.dumps(table))
    options = ["--images", tmp_path / "images", "--output", tmp_path / "out", "--workers", workers]
    assert refer(labels, *options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "annotation 10" in error
    assert not (tmp_path / "out").exists()
    assert refer(labels, *options, "--on-error", "skip") == 0
    assert "unreadable 1" in capsys.readouterr().out
    (broken,) = json.loads((tmp_path / "out" / "report.json").read_text())["broken"]
    assert "annotation 10" in broken


@pytest.mark.parametrize("size", [(3000, 2), (2, 3000)])
def test_a_very_long_image_does_not_lose_the_run(tmp_path, size):
    (width, height), labels = size, write_coco(tmp_path, images=1)
    table = json.loads(labels.read_text())
    table["images"][0] |= {"width": width, "height": height}
    far, deep = width / 3, height / 3
    boxes = [(0, 0, far, height), (2 * far, 0, width, height)] if width > height else [(0, 0, width, deep)]
    table["annotations"] = [
        {**table["annotations"][0], "id": number, "segmentation": [[a, b, c, b, c, d, a, d]]}
        for number, (a, b, c, d) in enumerate(boxes)
    ]
    labels.write_text(json.dumps(table))
    Image.new("RGB", size, (205, 25, 35)).save(tmp_path / "images" / "001.png")
    assert refer(labels, "--images", tmp_path / "images", "--output", tmp_path / "out") == 0
    assert len(load_data(str(tmp_path / "out"), "train"))
    assert (tmp_path / "out" / "contact_sheet.png").is_file()


def test_an_image_that_only_the_contact_sheet_decodes_does_not_lose_the_run(tmp_path, capsys):
    labels = write_coco(tmp_path)
    broken = tmp_path / "images" / "002.png"
    broken.write_bytes(broken.read_bytes()[:60])
    options = [labels, "--images", tmp_path / "images", "--no-colours", "--output"]
    assert refer(*options, tmp_path / "stop") == 2
    assert "002.png" in capsys.readouterr().err
    assert refer(*options, tmp_path / "skip", "--on-error", "skip") == 0
    assert re.search("Warning: The contact sheet has no example of .*002.png", capsys.readouterr().err)
    assert (tmp_path / "skip" / "contact_sheet.png").is_file()


@pytest.mark.parametrize("workers", [0, 1])
def test_repairs_are_told_and_counted(tmp_path, capsys, workers):
    labels = write_coco(tmp_path)
    table = json.loads(labels.read_text())
    table["annotations"][0]["segmentation"] += [[1, 2, 3, 4]]
    table["annotations"][3]["segmentation"] += [[1, 2], [5, 6, 7, 8]]
    table["annotations"][4]["segmentation"] = []
    labels.write_text(json.dumps(table))
    assert refer(labels, "--images", tmp_path / "images", "--output", tmp_path / "out", "--workers", workers) == 0
    first, second, _ = capsys.readouterr().err.splitlines()  # without the lines of code
    assert re.match("Warning: .* 3 parts of fewer than three points left out, the first in .*annotation 10", first)
    assert re.match("Warning: .* 1 object without a mask, which is no target, in .*annotation 21", second)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["repaired"] == {
        "parts of fewer than three points left out": 3,
        "objects without a mask, which are no targets": 1,
    }
    check_rows(load_data(str(tmp_path / "out"), "train"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--least-area", "2"], "`--least-area` must be a number from 0 to below 1, got 2.0"),
        (["--per-family", "0"], "`--per-family` must be an integer of at least 1, got 0"),
        (["--workers", "-1"], "`--workers` must be an integer from 0 to 1024, got -1"),
        (["--seed", "-1"], "`--seed` must be an integer of at least 0, got -1"),
        (["--sheet", "-1"], "`--sheet` must be an integer of at least 0, got -1"),
        (["--least-area", "0.9"], "There are no expressions"),
        (["--form", "voc"], "SegmentationClass"),
        (["--option", "colour=1"], "no option 'colour'"),
        (["--form", "hub"], "`--images` must be left out"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(tmp_path, capsys, options, message):
    labels = write_coco(tmp_path)
    assert refer(labels, "--images", tmp_path / "images", "--output", tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_images_turned_by_exif_show_what_the_labels_mean(tmp_path):
    """COCO's labels are those of the stored pixels, the folder's those of the upright picture."""
    labels = write_coco(tmp_path, images=1)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture().save(tmp_path / "images" / "001.png", exif=exif)
    write_references(load_objects(labels, images=tmp_path / "images"), tmp_path / "out", ReferOptions(per_family=6))
    rows = load_data(str(tmp_path / "out"), "train")
    check_rows(list(rows))
    assert rows[0]["image"].size == (WIDTH, HEIGHT)
    assert np.array_equal(rows[0]["image"], picture())
    direct = expressions_dataset(load_objects(labels, images=tmp_path / "images"), ReferOptions(per_family=6))
    assert np.array_equal(direct[0]["image"], picture())
    assert [row["expressions"] for row in direct] == [row["expressions"] for row in rows]


def test_as_a_data_set_in_memory(tmp_path):
    for source in (
        load_objects(write_coco(tmp_path), images=tmp_path / "images"),
        HubObjects(Dataset.from_list([hub_row(), hub_row()])),
    ):
        rows = list(expressions_dataset(source, ReferOptions(per_family=6), split="val"))
        assert {"the red cup", "the dog"} <= check_rows(rows)
        assert {row["split"] for row in rows} == {"val"}
        assert all(row["image"].size == (WIDTH, HEIGHT) for row in rows)


def test_what_is_counted_as_labelled_twice(tmp_path):
    """Also an object close behind another of its class: the report says so, and from which overlap."""
    labels = write_coco(tmp_path, images=1)
    table = json.loads(labels.read_text())
    table["annotations"][1]["segmentation"] = [[6, 22, 27, 22, 27, 42, 6, 42]]  # the second cup, close to the first
    labels.write_text(json.dumps(table))
    assert refer(labels, "--images", tmp_path / "images", "--output", tmp_path / "out") == 0
    left_out = json.loads((tmp_path / "out" / "report.json").read_text())["objects left out"]
    share = signature(drop_doubles).parameters["at_least"].default
    (reason,) = [reason for reason in left_out if f"{share:.0%}".replace("%", " %") in reason]
    assert reason.startswith("labelled twice, or close together")
    assert left_out[reason] == 2


def test_classes_that_are_no_nouns_are_counted(tmp_path):
    labels = write_coco(tmp_path, images=1)
    table = json.loads(labels.read_text())
    table["categories"][0]["name"] = "1 bus"
    labels.write_text(json.dumps(table))
    assert refer(labels, "--images", tmp_path / "images", "--output", tmp_path / "out", "--per-family", 6) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["objects left out"]["class name is not a noun"] == 2
    assert "bus" not in report["words"]


def test_seeds_of_expressions_are_not_negative():
    with pytest.raises(ValueError, match="`seed` must be an integer of at least 0, got -1"):
        ReferOptions(seed=-1)


EXAMPLE = Path(__file__).parents[3] / "examples" / "photographs.py"


def test_the_mask_of_a_whole_class_is_not_called_one_object(tmp_path):
    row = hub_row()
    row["objects"] = [{**thing, "kind": "semantic"} for thing in row["objects"]]
    texts = {}
    for name, rows in {"one each": [hub_row()], "whole classes": [row]}.items():
        Dataset.from_list(rows).to_parquet(tmp_path / "t.parquet")
        source = runpy.run_path(str(EXAMPLE))["read_photographs"](tmp_path / "t.parquet")
        options = ReferOptions(families=["noun"], per_family=9)
        texts[name] = {expression.text for _, _, found in references.refer(source, options) for expression in found}
    assert "the dog" in texts["one each"]
    assert not texts["whole classes"]


@pytest.mark.slow
def test_the_example_for_tables_of_photographs(tmp_path):
    Dataset.from_list([hub_row() | {"photo_id": f"p{number}"} for number in range(3)]).to_parquet(
        tmp_path / "t.parquet"
    )
    run = run_python(EXAMPLE, tmp_path / "t.parquet", "--output", tmp_path / "sheet.png")
    assert run.returncode == 0, run.stderr
    assert "expressions for 3 photographs" in run.stdout
    assert Image.open(tmp_path / "sheet.png").width > 600


def write_rows(root: Path) -> Path:
    root.mkdir(parents=True)
    Dataset.from_list([hub_row()] * 5).to_parquet(root / "rows.parquet")
    return root / "rows.parquet"


def write_embedded(root: Path) -> Path:
    """Labels of LabelMe with the images in the JSON files."""
    table = json.loads((write_labelme(root) / "a.json").read_text())
    table["imageData"] = base64.b64encode((root / "a.png").read_bytes()).decode()
    (root / "a.png").unlink()
    for name in "abc":
        (root / f"{name}.json").write_text(json.dumps(table))
    return root


@pytest.mark.parametrize(
    "write",
    [
        *(pytest.param(write, marks=pytest.mark.slow) for write in (write_coco, write_yolo, write_labelme, write_voc)),
        *(write_embedded, write_rows),  # whose images are no files
    ],
)
def test_every_form_is_read_by_processes(tmp_path, write):
    """They waited for ever for rows, and for images in the files of LabelMe, which could not be pickled."""
    labels = write(tmp_path / "data")
    images = ["--images", tmp_path / "data" / "images"] if write is write_coco else []
    for workers in (0, 2):
        assert refer(labels, *images, "--output", tmp_path / f"out{workers}", "--workers", workers) == 0
    for name in ("metadata.jsonl", "report.json", "contact_sheet.png"):
        assert (tmp_path / "out0" / name).read_bytes() == (tmp_path / "out2" / name).read_bytes()
    source = load_objects(labels, images=images[1]) if images else load_objects(labels)
    rows = {workers: expressions_dataset(source, ReferOptions(workers=workers)) for workers in (0, 2)}
    assert [dict(row) | {"image": 0, "mask": 0} for row in rows[0]] == [
        dict(row) | {"image": 0, "mask": 0} for row in rows[2]
    ]
    assert rows[2][0]["image"].size == (WIDTH, HEIGHT)


class Odd(ObjectSource):
    """Scenes that cannot leave their process, or end it."""

    name, labels = "odd", ("cup",)

    def __init__(self, source: ObjectSource, ending: bool) -> None:
        self.source, self.ending = source, ending

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int):
        if self.ending:
            os._exit(3)
        return replace(self.source[index], where=type("Local", (str,), {})("here"))


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_what_cannot_leave_a_process_is_an_error(tmp_path, on_error):
    source = load_objects(write_coco(tmp_path), images=tmp_path / "images")
    options = ReferOptions(workers=2, on_error=on_error)
    with pytest.raises(TypeError, match=r"odd, image 0: the scene must be pickled .* `workers` to 0"):
        list(references.refer(Odd(source, ending=False), options))
    with pytest.raises(OSError, match="process that reads images has ended"):
        list(references.refer(Odd(source, ending=True), options))


def referred(labels: Path, folder: Path, **options):
    """References of labels in another folder, as `load_data` reads them."""
    write_references(load_objects(labels, **options), folder, sheet=0)
    return load_data(str(folder), "train")


def paint(path: Path, shade: int) -> None:
    """Change the background of an image."""
    values = np.array(Image.open(path))
    values[(values == 230).all(axis=-1)] = shade
    Image.fromarray(values).save(path)


def test_images_are_known_by_their_files_not_by_their_numbers(tmp_path):
    """Two files of COCO called other images the same, and never one image of two files."""
    labels = {split: write_coco(tmp_path / split) for split in ("train", "val")}
    for split, shade in (("train", 210), ("val", 200)):
        paint(tmp_path / split / "images" / "001.png", shade)
    named = shutil.copy(labels["val"], tmp_path / "other.json")
    images = {"images": tmp_path / "val" / "images"}
    train = referred(labels["train"], tmp_path / "a", images=tmp_path / "train" / "images")
    for number, held_out in enumerate([labels["val"], Path(named)]):
        kept = exclude_images(train, referred(held_out, tmp_path / f"b{number}", **images))
        assert {image_id.split()[0] for image_id in kept["image_id"]} == {"1"}
    assert len(set(train["ref_id"])) == len(train)


def test_rows_of_two_splits_are_other_images(tmp_path):
    """Their ids are row numbers; the image of a row is known in a file as well."""
    rows = [hub_row(), hub_row()]
    values = np.asarray(picture()).copy()
    values[:5] = 120
    rows[0]["image"] = png(values)
    for name, chosen in (("train", rows[:1]), ("test", rows[1:])):
        Dataset.from_list(chosen).to_parquet(tmp_path / f"{name}.parquet")
    train, test = (expressions_dataset(load_objects(tmp_path / f"{name}.parquet")) for name in ("train", "test"))
    assert len(exclude_images(train, test)) == len(train)
    assert {image_id.split()[0] for dataset in (train, test) for image_id in dataset["image_id"]} == {"0"}
    yolo = write_yolo(tmp_path / "yolo")
    (yolo / "images" / "train" / "a.png").write_bytes(rows[1]["image"])
    with pytest.raises(ValueError, match="nothing remains"):
        exclude_images(referred(yolo, tmp_path / "out"), test)


@pytest.mark.parametrize("name", ["000000000001.jpg", "COCO_val2014_000000000001.jpg"])
def test_the_ids_of_cocos_images_stay(tmp_path, name):
    labels = write_coco(tmp_path, images=1)
    picture().save(tmp_path / "images" / name)
    labels.write_text(labels.read_text().replace("001.png", name))
    made = referred(labels, tmp_path / "out", images=tmp_path / "images")
    assert set(made["image_id"]) == {"coco 1"}
    with pytest.raises(ValueError, match="nothing remains"):
        exclude_images(made, made.remove_columns("dataset").add_column("dataset", ["refcoco"] * len(made)))
