"""Readers of REFER's layout and of PhraseCut, on data sets written in their formats."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import fabricate
import numpy as np
import pytest
from fabricate import ReferWriter, box, photo, write_refer
from PIL import Image

from crossvlt_hf.data import FEATURES, exclude_images, load_data, load_phrasecut, load_refer
from crossvlt_hf.data.features import Mask
from crossvlt_hf.data.masks import decode_segmentation
from crossvlt_hf.data.sources.refer import LAYOUTS, read_plain_pickle


HEIGHT, WIDTH = 24, 32
CROWD = {"size": [HEIGHT, WIDTH], "counts": [10, 5, HEIGHT * WIDTH - 15]}


def scenes(*splits: str) -> dict:
    """A scene for each split, with an object of two polygons that overlap, and a crowd."""
    two = [box(2, 2, 6, 4), box(5, 3, 6, 6)]
    return {
        split: [(photo(seed=seed), [(two, ["The red Cup!", "cup, left"]), (CROWD, ["people"])])]
        for seed, split in enumerate(splits)
    }


@pytest.fixture
def root(tmp_path):
    return write_refer(tmp_path, scenes("train", "val", "testA", "testB"))


def refs_of(root, folder="refcoco", name="refs(unc).p"):
    return pickle.loads((root / folder / name).read_bytes())


def change(root, edit, folder="refcoco", name="refs(unc).p"):
    """Edit the references in place."""
    refs = refs_of(root, folder, name)
    edit(refs)
    (root / folder / name).write_bytes(pickle.dumps(refs, protocol=2))


def change_instances(root, edit):
    path = root / "refcoco" / "instances.json"
    instances = json.loads(path.read_text())
    edit(instances)
    path.write_text(json.dumps(instances))


def test_rows(root):
    dataset = load_refer("refcoco", "train", root=root)
    assert len(dataset) == 2
    assert dataset.features == FEATURES
    cup, people = dataset
    path = root / fabricate.COCO_IMAGES / "COCO_train2014_000000000009.jpg"
    np.testing.assert_array_equal(np.asarray(cup["image"]), np.asarray(Image.open(path)))
    np.testing.assert_array_equal(cup["mask"], decode_segmentation([box(2, 2, 6, 4), box(5, 3, 6, 6)], HEIGHT, WIDTH))
    np.testing.assert_array_equal(people["mask"], decode_segmentation(CROWD, HEIGHT, WIDTH))
    kept = {name: cup[name] for name in cup if name not in ("image", "mask")}
    assert kept == {
        "image_id": "9",
        "ref_id": "0",
        "ann_ids": ["100"],
        "expressions": ["The red Cup!", "cup, left"],
        "has_target": True,
        "family": "",
        "split": "train",
        "dataset": "refcoco",
        "num_expressions": 2,
    }


def test_text_and_merge(root):
    dataset = load_refer("refcoco", "val", root=root, text="sent", merge="reference")
    assert dataset[0]["expressions"] == ["the red cup", "cup left"]
    assert dataset[0]["mask"].sum() == load_refer("refcoco", "val", root=root)[0]["mask"].sum() - 9
    with pytest.raises(ValueError, match="`text` must be one of raw, sent, got 'tokens'"):
        load_refer("refcoco", "val", root=root, text="tokens")
    with pytest.raises(ValueError, match="`merge` must be one of union, reference, got 'sum'"):
        load_refer("refcoco", "val", root=root, merge="sum")


def test_a_form_of_the_text_that_a_data_set_does_not_have(root, tmp_path):
    (tmp_path / "own").mkdir()
    for name in ("refcoco", "refshapes", "phrasecut", "moondream/refcoco-m", str(tmp_path / "own")):
        for options, words in (({"text": "caption"}, "`text` .*raw, sent"), ({"merge": "sum"}, "`merge` .*reference")):
            with pytest.raises(ValueError, match=words):
                load_data(name, "val", root=root, **options)
        if name != "refcoco":
            with pytest.raises(
                ValueError, match=r"`text` must be 'raw' for .*, which has one form of expressions, got 'sent'"
            ):
                load_data(name, "val", root=root, text="sent")
    path = root / "refcoco" / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    for ref in refs:
        ref["sentences"] = [{"raw": "cup", "caption": "a cup"}]
    path.write_bytes(pickle.dumps(refs))
    with pytest.raises(ValueError, match="has no `sent`, but `raw`, `caption`"):
        load_data("refcoco", "val", root=root, text="sent")


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_split_of_every_data_set(tmp_path, name):
    layout = LAYOUTS[name]
    root = write_refer(
        tmp_path,
        scenes(*layout.splits),
        folder=layout.folder,
        refs=f"{layout.refs}({layout.split_by}).p",
        images=layout.images[0],
    )
    for number, split in enumerate(layout.splits):
        dataset = load_data(name, split, root=root)
        assert [row["image_id"] for row in dataset] == [str(9 + number)] * 2
        assert {row["dataset"] for row in dataset} == {name}
        assert {row["split"] for row in dataset} == {split}
    with pytest.raises(ValueError, match=r"`split` must be one of .*: train, val.*; got 'x'"):
        load_data(name, "x", root=root)


def test_split_names(root):
    with pytest.raises(ValueError, match=r"splits of refcoco \(unc\): train, val, testA, testB; got .test.\.$"):
        load_refer("refcoco", "test", root=root)
    assert load_refer("refcoco", "validation", root=root)[0]["split"] == "val"
    with pytest.raises(ValueError, match=r"`name` must be one of refcoco, refcoco-google,.* got 'refcoco#'"):
        load_refer("refcoco#", "val", root=root)


def test_a_reference_in_two_test_splits(tmp_path):
    root = write_refer(tmp_path, scenes("testAB", "testC"), folder="refclef", images="saiapr_tc-12")
    assert [len(load_refer("refclef", split, root=root)) for split in ("testA", "testB", "testC")] == [2, 2, 2]
    with pytest.raises(ValueError, match=r"refs\(unc\).p has no references of split 'train'"):
        load_refer("refclef", "train", root=root)


@pytest.mark.parametrize("folder", ["images/mscoco/images/train2014", "images/train2014", "train2014"])
def test_places_of_images(tmp_path, folder):
    root = write_refer(tmp_path, scenes("train"), images=folder)
    assert load_refer("refcoco", "train", root=root)[0]["image"].size == (WIDTH, HEIGHT)


def test_images_elsewhere(root, tmp_path):
    shutil.move(root / fabricate.COCO_IMAGES, tmp_path / "pictures")
    shutil.rmtree(root / "images")
    dataset = load_refer("refcoco", "train", root=root, images=tmp_path / "pictures")
    assert dataset[0]["image"].size == (WIDTH, HEIGHT)
    with pytest.raises(FileNotFoundError, match=r"no folder of images; tried .*mscoco.*, .*train2014. Set `images`"):
        load_refer("refcoco", "train", root=root)


def test_images_are_not_turned(root):
    """The annotations of COCO belong to the pixels as they are stored."""
    path = root / fabricate.COCO_IMAGES / "COCO_train2014_000000000009.jpg"
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    assert load_refer("refcoco", "train", root=root)[0]["image"].size == (WIDTH, HEIGHT)


def test_missing_images(root):
    (root / fabricate.COCO_IMAGES / "COCO_train2014_000000000009.jpg").unlink()
    with pytest.raises(FileNotFoundError) as raised:
        load_refer("refcoco", "train", root=root)
    message = str(raised.value)
    assert "COCO_train2014_000000000009.jpg" in message
    assert "refs(unc).p, ref 0; 1 of 1 image file is missing" in message
    assert load_refer("refcoco", "val", root=root)[0]["image_id"] == "10"


def test_image_files_are_looked_up_by_listing(root, monkeypatch):
    def no_stat(path):
        raise AssertionError(path)

    monkeypatch.setattr(os.path, "exists", no_stat)
    monkeypatch.setattr(os.path, "isfile", no_stat)
    assert len(load_refer("refcoco", "train", root=root)) == 2


def test_images_that_do_not_fit_their_entry(root):
    path = root / fabricate.COCO_IMAGES / "COCO_train2014_000000000009.jpg"
    Image.new("RGB", (8, 8)).save(path)
    dataset = load_refer("refcoco", "train", root=root)
    with pytest.raises(
        ValueError, match=r"refs\(unc\).p, ref 0: the mask is 24x32 pixels .height x width., the image 8x8"
    ):
        dataset[0]
    path.write_text("no picture")
    with pytest.raises(OSError, match=r"COCO_train2014_000000000009.jpg cannot be read as an image"):
        dataset[0]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda ref: ref.update(ann_id=7), r"ann_id 7, which is not in .*instances.json"),
        (lambda ref: ref.update(ann_id=-1), r"ann_id -1, which is not in .*instances.json"),
        (lambda ref: ref.update(image_id=7), r"image_id 7, which is not in .*instances.json"),
        (lambda ref: ref.update(image_id=10), r"must have an ann_id of its image 10, got 100 of the image 9"),
        (lambda ref: ref.pop("ann_id"), "has no `ann_id`"),
        (lambda ref: ref.pop("image_id"), "has no `image_id`"),
        (lambda ref: ref.pop("split"), "has no `split`"),
        (lambda ref: ref.pop("sentences"), "has no `sentences`"),
        (lambda ref: ref.update(sentences="cup"), "must have a list as `sentences`, got 'cup'"),
        (lambda ref: ref.update(sentences=[]), "must have at least one expression"),
        (lambda ref: ref["sentences"][0].pop("raw"), "has no `raw`"),
        (lambda ref: ref["sentences"][1].update(raw="  "), "must have text as expression, got '  '"),
        (lambda ref: ref["sentences"][1].update(raw=None), "must have text as expression, got None"),
    ],
)
def test_broken_references(root, edit, words):
    change(root, lambda refs: edit(refs[0]))
    with pytest.raises(ValueError, match=rf"refs\(unc\).p, ref 0 .*{words}"):
        load_refer("refcoco", "train", root=root)


def test_broken_lists_of_references(root):
    change(root, lambda refs: refs[1].pop("ref_id"))
    with pytest.raises(ValueError, match=r"refs\(unc\).p, row 1 has no `ref_id`"):
        load_refer("refcoco", "train", root=root)
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps({"refs": []}))
    with pytest.raises(ValueError, match=r"refs\(unc\).p must have a list of references, got a dict"):
        load_refer("refcoco", "train", root=root)
    (root / "refcoco" / "refs(unc).p").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*refs\(unc\).p"):
        load_refer("refcoco", "train", root=root)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda file: file.pop("images"), "instances.json has no `images`"),
        (lambda file: file.update(annotations={}), "instances.json must have a list as `annotations`, got '{}'"),
        (lambda file: file["images"][0].pop("file_name"), "instances.json, image 9, has no `file_name`"),
        (
            lambda file: file["images"][0].update(height=None),
            "image 9, must have height and width in pixels, got None",
        ),
        (lambda file: file["images"][0].pop("width"), "instances.json, image 9, has no `width`"),
        (lambda file: file["annotations"][0].update(segmentation=[]), "ref 0 has the ann_id 100, whose segmentation"),
        (lambda file: file["annotations"][0].pop("segmentation"), "ref 0 has the ann_id 100, whose segmentation"),
    ],
)
def test_broken_instances(root, edit, words):
    change_instances(root, edit)
    with pytest.raises(ValueError, match=words):
        load_refer("refcoco", "train", root=root)


def test_damaged_instances(root):
    path = root / "refcoco" / "instances.json"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ValueError, match=r"instances.json cannot be read as JSON"):
        load_refer("refcoco", "train", root=root)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*instances.json"):
        load_refer("refcoco", "train", root=root)


def test_a_broken_polygon_is_named(root):
    change_instances(root, lambda file: file["annotations"][0].update(segmentation=[[1, 2, 3]]))
    with pytest.raises(ValueError, match=r"refs\(unc\).p, ref 0, annotation 100: A polygon must be .*\[1, 2, 3\]"):
        load_refer("refcoco", "train", root=root)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def test_malicious_pickles_are_not_run(root, tmp_path):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        change(root, lambda refs: None)
        payload = [*refs_of(root), {"ref_id": Malicious(tmp_path / "run")}]
        (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(payload, protocol=protocol))
        with pytest.raises(ValueError, match=r"refs\(unc\).p is refused: it has `(posix|nt).system`"):
            load_refer("refcoco", "train", root=root)
        (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(payload[:-1], protocol=protocol))
    assert not (tmp_path / "run").exists()
    assert len(load_refer("refcoco", "train", root=root)) == 2


def test_a_pickle_that_would_fill_the_memory(tmp_path):
    """The number of an object, for which the unpickler would set aside 16 bytes each up to it."""
    path = tmp_path / "refs.p"
    for data in (b"]r\xff\xff\xff\x7f.", b"(lp2147483647\n."):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="a memo index is 2147483647"):
            read_plain_pickle(path)


def test_pickles_of_plain_data(tmp_path):
    plain = {"a": [1, 2.5, "ü", b"b", None, True, (1, 2), 10**30], "b": {1, 2}, "c": frozenset([3])}
    path = tmp_path / "plain.p"
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        if protocol > 2:  # before, bytes are made by a function
            path.write_bytes(pickle.dumps(plain, protocol=protocol))
            assert read_plain_pickle(path) == plain
    path.write_bytes(b"\x80\x02U\x03\xc3\xbcx.")  # a string of Python 2 in UTF-8
    assert read_plain_pickle(path) == "üx"
    path.write_bytes(pickle.dumps(np.float64(1)))
    with pytest.raises(ValueError, match=r"has `numpy\._?core"):
        read_plain_pickle(path)
    for damaged in (b"", b"no pickle", pickle.dumps(plain)[:-9], b"\x80\x04\x95\xff"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"plain.p is damaged or not a pickle of references"):
            read_plain_pickle(path)


@pytest.mark.parametrize("refs", ["grefs(unc).json", "grefs(unc).p"])
def test_grefcoco(tmp_path, refs):
    writer = ReferWriter(tmp_path)
    image_id = writer.add_image(photo())
    # their parts overlap, and so do the objects
    first = writer.add_object(image_id, [box(2, 2, 6, 4), box(5, 3, 6, 6)])
    second = writer.add_object(image_id, [box(7, 5, 10, 10)])
    writer.add_ref(image_id, [first, second], ["both cups"], "val")
    writer.add_ref(image_id, [-1], ["the spoon"], "val")
    writer.add_ref(image_id, [second], ["the right cup"], "val")
    dataset = load_refer("grefcoco", "val", root=writer.write("grefcoco", refs), merge="reference")
    both, none, one = dataset
    masks = [
        decode_segmentation(writer.annotations[index]["segmentation"], HEIGHT, WIDTH, "reference") for index in (0, 1)
    ]
    np.testing.assert_array_equal(both["mask"], masks[0] | masks[1])
    np.testing.assert_array_equal(one["mask"], masks[1])
    assert none["mask"].shape == (HEIGHT, WIDTH)
    assert not none["mask"].any()
    assert [row["has_target"] for row in dataset] == [True, False, True]
    assert [row["ann_ids"] for row in dataset] == [["100", "101"], [], ["101"]]


@pytest.mark.parametrize(
    ("ann_id", "flag", "message"),
    [
        ([100], True, r"has `no_target` True and `ann_id` \[100\], which contradict each other"),
        ([-1], False, r"has `no_target` False and `ann_id` \[-1\]"),
        ([], False, r"has `no_target` False and `ann_id` \[\]"),
        ([100, -1], None, r"has objects and -1, which means that there are none, in `ann_id`: \[100, -1\]"),
    ],
)
def test_grefcoco_that_contradicts_itself(tmp_path, ann_id, flag, message):
    writer = ReferWriter(tmp_path)
    image_id = writer.add_image(photo())
    writer.add_object(image_id, [box(2, 2, 6, 4)])
    writer.add_ref(image_id, ann_id, ["the cup"], "val")
    writer.refs[-1]["no_target"] = flag
    with pytest.raises(ValueError, match=message):
        load_refer("grefcoco", "val", root=writer.write("grefcoco", "grefs(unc).json"))


def test_grefcoco_with_flags_and_an_object_twice(tmp_path):
    writer = ReferWriter(tmp_path)
    image_id = writer.add_image(photo())
    first = writer.add_object(image_id, [box(2, 2, 6, 4)])
    for ann_id in ([first, first], [-1]):
        writer.add_ref(image_id, ann_id, ["the cup"], "val")
        writer.refs[-1]["no_target"] = ann_id == [-1]
    dataset = load_refer("grefcoco", "val", root=writer.write("grefcoco", "grefs(unc).json"))
    assert [row["ann_ids"] for row in dataset] == [["100"], []]


def test_grefcoco_with_an_unknown_object(tmp_path):
    writer = ReferWriter(tmp_path)
    image_id = writer.add_image(photo())
    writer.add_ref(image_id, [writer.add_object(image_id, [box(2, 2, 6, 4)]), 5], ["both"], "train")
    with pytest.raises(ValueError, match=r"grefs\(unc\).json, ref 0 has the ann_id 5"):
        load_refer("grefcoco", "train", root=writer.write("grefcoco", "grefs(unc).json"))


def folder_of_refs(folder, *names):
    """A folder with files of references to the same object."""
    writer = ReferWriter(folder)
    image_id = writer.add_image(photo())
    ann_id = writer.add_object(image_id, [box(2, 3, 8, 5)])
    for name in names:
        writer.refs = []
        writer.add_ref(image_id, [ann_id] if name.startswith("grefs") else ann_id, ["cup"], "train")
        writer.write("cups", name)
    return str(folder / "cups")


@pytest.mark.parametrize(
    ("names", "choices"),
    [
        (["refs(unc).json", "grefs(unc).json"], ["refs(unc)", "grefs(unc)"]),
        (["refs(unc).p", "grefs(unc).json", "refs(mine).p"], ["refs(unc)", "grefs(unc)", "mine"]),
        (["refs(unc).p", "refs(unc).json"], ["refs(unc).p", "refs(unc).json"]),
        (["refs(unc).p", "refs(unc).json", "grefs(unc).p"], ["refs(unc).p", "refs(unc).json", "grefs(unc)"]),
    ],
)
def test_files_of_references_of_one_author(tmp_path, names, choices):
    folder = folder_of_refs(tmp_path, *names)
    for split_by in (None, "unc"):
        with pytest.raises(ValueError, match=r"`split_by`.* one of ") as raised:
            load_data(folder, "train", split_by=split_by)
        assert all(choice in str(raised.value) for choice in choices)
    for name, choice in zip(names, choices, strict=True):
        stored = load_data(folder, "train", split_by=choice).cast_column("mask", Mask(decode=False))
        assert f"/cups/{name}, ref 0" in stored[0]["mask"]["where"]


@pytest.mark.parametrize("refs", ["refs(mine).p", "refs(mine).json", "grefs(mine).p", "grefs(mine).json"])
def test_a_folder_of_any_name(tmp_path, refs):
    writer = ReferWriter(tmp_path, images="images/mscoco/images/train2014")
    ids = [writer.add_image(photo(seed=seed)) for seed in range(2)]
    writer.images[1]["file_name"] = "b.jpg"
    (writer.images_folder / f"COCO_train2014_{ids[1]:012d}.jpg").rename(writer.images_folder / "b.jpg")
    for image_id, split in zip(ids, ("val", "held"), strict=True):
        ann_id = writer.add_object(image_id, [box(2, 2, 6, 4)])
        writer.add_ref(image_id, [ann_id] if refs.startswith("g") else ann_id, ["The Cup"], split)
    writer.write("my cups", refs)
    for named in (str(tmp_path / "my cups"), str(tmp_path / "my cups") + "/"):
        row = load_data(named, "validation")[0]
        assert (row["dataset"], row["split"], row["image_id"], row["expressions"]) == (
            "my cups",
            "val",
            "coco 9",
            ["The Cup"],
        )
    row = load_data("my cups", "held", root=tmp_path, text="sent")[0]
    assert (row["image_id"], row["expressions"]) == ("10", ["the cup"])
    with pytest.raises(ValueError, match="`split` must be one of the splits of my cups: val, held"):
        load_data(str(tmp_path / "my cups"))
    with pytest.raises(ValueError, match="splits of my cups: val, held; got 'test'"):
        load_data(str(tmp_path / "my cups"), "test")
    with pytest.raises(ValueError, match="is not a data set, but has the data sets my cups"):
        load_data(str(tmp_path), "val")


def test_a_folder_of_any_name_with_several_files(tmp_path):
    write_refer(tmp_path, scenes("testAB"), folder="cups", refs="refs(a).p", images="cups/images")
    (tmp_path / "cups" / "refs(b).p").write_bytes((tmp_path / "cups" / "refs(a).p").read_bytes())
    with pytest.raises(ValueError, match="Set `split_by` to one of a, b"):
        load_data(str(tmp_path / "cups"), "testA")
    with pytest.raises(ValueError, match="`split_by` must be one of a, b, got 'c'"):
        load_data(str(tmp_path / "cups"), "testA", split_by="c")
    with pytest.raises(ValueError, match="splits of cups: testA, testB; got"):
        load_data(str(tmp_path / "cups"), "train", split_by="a")
    assert [len(load_data(str(tmp_path / "cups"), f"test{each}", split_by="b")) for each in "AB"] == [2, 2]


def test_images_of_coco_are_known_by_any_name_of_their_folder(tmp_path):
    root = write_refer(tmp_path, scenes("train", "val"))
    shutil.copytree(root / "refcoco", root / "cups")
    named, own = load_data("refcoco", "train", root=root), load_data(str(root / "cups"), "train")
    with pytest.raises(ValueError, match="nothing remains"):
        exclude_images(own, named)
    assert len(exclude_images(own, load_data("refcoco", "val", root=root))) == 2


def test_splits_are_named_where_there_is_none(tmp_path, root):
    for name, options, splits in (
        ("refcoco", {"root": root}, "train, val, testA, testB"),
        ("phrasecut", {"root": root}, "train, val, test, miniv"),
        ("jxu124/refcocog", {"root": root}, "train, validation, test"),
        ("moondream/refcoco-m", {}, "validation"),
        ("refshapes", {}, "train, validation, test, unseen_pairs"),
    ):
        for split in (None, "x"):
            with pytest.raises(ValueError, match=splits):
                load_data(name, split, **options)
    change(root, lambda refs: refs.__setitem__(slice(None), [ref for ref in refs if ref["split"] == "val"]))
    with pytest.raises(ValueError, match="has no references of split 'train'; it has val"):
        load_data("refcoco", "train", root=root)


def write_phrasecut(root):
    """Three tasks on two images, one of which is COCO's."""
    (root / "images").mkdir(parents=True)
    for image_id in (61, 62):
        Image.fromarray(photo(seed=image_id)).save(root / "images" / f"{image_id}.jpg")
    table = [
        {"image_id": 61, "coco_id": 9, "flickr_id": 1, "width": WIDTH, "height": HEIGHT, "url": "", "split": "miniv"},
        {
            "image_id": 62,
            "coco_id": None,
            "flickr_id": 2,
            "width": WIDTH,
            "height": HEIGHT,
            "url": "",
            "split": "miniv",
        },
    ]
    structure = {"name": "cup", "attributes": [], "relation_ids": [], "relation_descriptions": [], "type": "name"}
    two = [[[[2, 2], [8, 2], [8, 6]], [[12, 12], [14, 12], [14, 14]]], [[[20, 4], [26.7, 4], [26, 9.2], [20, 9]]]]
    tasks = [
        {
            "task_id": f"{image_id}__{number}",
            "image_id": image_id,
            "ann_ids": [number, number + 1],
            "instance_boxes": [[2, 2, 6, 4], [20, 4, 6, 5]],
            "Polygons": two,
            "phrase": f"white cups {number}",
            "phrase_structure": structure,
        }
        for number, image_id in enumerate((61, 61, 62))
    ]
    (root / "image_data_split3000.json").write_text(json.dumps(table))
    (root / "refer_miniv.json").write_text(json.dumps(tasks))
    return root


def test_phrasecut(tmp_path):
    dataset = load_data("phrasecut", "miniv", root=write_phrasecut(tmp_path))
    assert [row["ref_id"] for row in dataset] == ["61__0", "61__1", "62__2"]
    assert [row["image_id"] for row in dataset] == ["coco 9", "coco 9", "visual genome 62"]
    assert [row["expressions"] for row in dataset] == [[f"white cups {number}"] for number in range(3)]
    first = dataset[0]
    assert first["image"].size == (WIDTH, HEIGHT)
    assert first["ann_ids"] == ["0", "1"]
    assert first["mask"][4:10, 20:27].all()  # the border belongs to it
    assert first["mask"][12, 12:15].all()
    assert first["mask"][3, 7]
    assert first["mask"].sum() < 100


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda task: task.pop("Polygons"), "task 61__0 has no `Polygons`"),
        (lambda task: task.update(Polygons=[]), "task 61__0 has no polygon"),
        (lambda task: task.update(Polygons=[[[1, 2, 3]]]), r"task 61__0 must have polygons .* got '\[1, 2, 3\]'"),
        (lambda task: task.update(Polygons=[5]), "task 61__0 must have polygons .* got 'None'"),
        (lambda task: task.update(image_id=1), r"task 61__0 has the image_id 1, which .*image_data_split3000.json"),
        (lambda task: task.update(phrase=" "), "task 61__0 must have text as expression, got ' '"),
        (lambda task: task.pop("task_id"), "row 0 has no `task_id`"),
    ],
)
def test_broken_phrasecut(tmp_path, edit, words):
    path = write_phrasecut(tmp_path) / "refer_miniv.json"
    tasks = json.loads(path.read_text())
    edit(tasks[0])
    path.write_text(json.dumps(tasks))
    with pytest.raises(ValueError, match=rf"refer_miniv.json, {words}"):
        load_phrasecut("miniv", root=tmp_path)


def test_phrasecut_files(tmp_path):
    write_phrasecut(tmp_path)
    with pytest.raises(ValueError, match="splits of phrasecut: train, val, test, miniv; got 'testA'"):
        load_phrasecut("testA", root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"refer_train.json"):
        load_phrasecut("train", root=tmp_path)
    (tmp_path / "images" / "62.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"62.jpg, needed by .*task 62__2; 1 of 2 image files"):
        load_phrasecut("miniv", root=tmp_path)


def test_names():
    with pytest.raises(
        ValueError, match=r"no data set or folder 'refcoc'; give one of refcoco, .*refshapes, or a folder"
    ):
        load_data("refcoc", "train")
    for name in ("refcoco+", "phrasecut", "jxu124/refcoco"):
        with pytest.raises(ValueError, match=r"needs `root`"):
            load_data(name, "train")


def test_refshapes():
    dataset = load_data("refshapes", "val", scenes=2)
    assert dataset[0]["split"] == "validation"
    with pytest.raises(ValueError, match=r"splits of refshapes: .* got 'testA'"):
        load_data("refshapes", "testA")
    assert exclude_images(dataset, load_data("refshapes", "train", scenes=2)).num_rows == 2


def test_excluding_images(tmp_path):
    """Google's train split of RefCOCOg has images of its val split; other sets share images of COCO."""
    writer = ReferWriter(tmp_path)
    ids = [writer.add_image(photo(seed=seed)) for seed in range(3)]
    for image_id, split in zip([*ids, ids[1]], ["train", "train", "train", "val"], strict=True):
        writer.add_ref(image_id, writer.add_object(image_id, [box(2, 2, 6, 4)]), ["cup"], split)
    root = writer.write("refcocog", "refs(google).p")
    write_refer(tmp_path, {"testA": [(photo(), [([box(1, 1, 4, 4)], ["bus"])])]})
    train = load_data("refcocog-google", "train", root=root)
    kept = exclude_images(train, load_data("refcocog-google", "val", root=root))
    assert [row["image_id"] for row in kept] == ["9", "11"]
    assert kept[0]["mask"].shape == (HEIGHT, WIDTH)  # decoded as before
    test = load_data("refcoco", "testA", root=root)
    assert [row["image_id"] for row in exclude_images(kept, test)] == ["11"]
    miniv = load_data("phrasecut", "miniv", root=write_phrasecut(tmp_path / "phrasecut"))
    assert [row["image_id"] for row in exclude_images(miniv, test)] == ["visual genome 62"]
    assert len(exclude_images(train)) == 3
    with pytest.raises(ValueError, match="All 3 rows show images of the held-out data sets"):
        exclude_images(train, train)


def test_images_of_other_sources_are_not_confused(tmp_path):
    root = write_refer(tmp_path, scenes("train"))
    write_refer(tmp_path, scenes("train"), folder="refclef", images="saiapr_tc-12")
    refclef = load_data("refclef", "train", root=root)
    assert len(exclude_images(refclef, load_data("refcoco", "train", root=root))) == 2  # other images of the same ids


@pytest.mark.slow
def test_full_size(tmp_path):
    root = fabricate.write_full_size(tmp_path)
    script = (
        "import sys\n"
        "from crossvlt_hf.benchmark.memory import peak\n"
        "from crossvlt_hf.data import load_refer\n"
        "sets = [load_refer('refcoco', split, root=sys.argv[1]) for split in ('train', 'val', 'testA', 'testB')]\n"
        "expressions = sum(sum(each.with_format(None)['num_expressions']) for each in sets)\n"
        "images = len({row for each in sets for row in each.with_format(None)['image_id']})\n"
        "print(*map(len, sets), expressions, images, peak())\n"  # getrusage counts the process that started it, too
    )
    done = subprocess.run([sys.executable, "-c", script, root], capture_output=True, text=True, check=True)
    *counts, expressions, images, peak = map(int, done.stdout.split())
    assert counts == [42404, 3811, 1975, 1810]
    assert expressions == 142_209
    assert images == 19_994
    assert peak < 1.5 * 2**30


def test_scenes_of_refshapes_as_a_refer_data_set(tmp_path):
    """As a dry run of training on RefCOCO needs it."""
    drawn = load_data("refshapes", "train", scenes=3, expressions=2)
    of_split = [(np.asarray(row["image"]), [(row["mask"], row["expressions"])]) for row in drawn]
    read = load_data("refcoco", "train", root=write_refer(tmp_path, {"train": of_split}))
    assert len(read) == len(drawn) == 6
    for before, after in zip(drawn, read, strict=True):
        np.testing.assert_array_equal(before["mask"], after["mask"])
        assert before["expressions"] == after["expressions"]
        assert before["image"].size == after["image"].size


@pytest.mark.parametrize("name", ["../../secret.jpg", "/etc/passwd", "a/../../b.jpg"])
def test_names_of_images_stay_in_their_folder(tmp_path, name):
    root = write_refer(tmp_path, {"train": [(photo(), [([box(2, 2, 8, 6)], ["a cup"])])]})
    instances = json.loads((root / "refcoco" / "instances.json").read_text())
    instances["images"][0]["file_name"] = name
    (root / "refcoco" / "instances.json").write_text(json.dumps(instances))
    with pytest.raises(ValueError, match="leads out of"):
        load_refer("refcoco", "train", root=root)


@pytest.mark.parametrize("side", [2**31, 10**30])
def test_images_larger_than_pillow_allows(tmp_path, side):
    root = write_refer(tmp_path, {"train": [(photo(), [([box(2, 2, 8, 6)], ["a cup"])])]})
    instances = json.loads((root / "refcoco" / "instances.json").read_text())
    instances["images"][0]["width"] = side
    (root / "refcoco" / "instances.json").write_text(json.dumps(instances))
    with pytest.raises(ValueError, match=r"MAX_IMAGE_PIXELS"):
        load_refer("refcoco", "train", root=root)


@pytest.mark.parametrize("kind", ["images", "annotations"])
def test_ids_differ(root, kind):
    path = root / "refcoco" / "instances.json"
    table = json.loads(path.read_text())
    table[kind].append(table[kind][0])
    path.write_text(json.dumps(table))
    with pytest.raises(ValueError, match="which another one has"):
        load_refer("refcoco", "train", root=root)
