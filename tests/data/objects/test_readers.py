"""Labels in the forms that people have: what they mean, and how broken ones are reported."""

import base64
import io
import json
import shutil
import warnings
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from fabricate_objects import (
    CLASSES,
    HEIGHT,
    SCENE,
    WIDTH,
    corners,
    hub_row,
    mask,
    picture,
    png,
    write_coco,
    write_labelme,
    write_voc,
    write_yolo,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from crossvlt_hf.data import load_data
from crossvlt_hf.data.masks import encode_mask
from crossvlt_hf.data.objects import (
    ObjectSource,
    ReferOptions,
    cutouts_of,
    expressions_dataset,
    load_objects,
    write_references,
)
from crossvlt_hf.data.objects.read import detect_form
from crossvlt_hf.data.objects.references import Report
from crossvlt_hf.data.objects.rows import HubObjects
from crossvlt_hf.data.objects.yolo import read_names
from crossvlt_hf.processing_crossvlt import label_parts


def check(source: ObjectSource, labels=("cup", "cup", "dog"), loose: int = 0) -> None:
    """See that a source's first picture is the scene."""
    scene = source[0]
    assert scene.size == (HEIGHT, WIDTH)
    assert tuple(thing.label for thing in scene.objects) == labels
    assert set(labels) <= set(source.labels)
    assert scene.open().size == (WIDTH, HEIGHT)
    for number in range(len(SCENE)):
        assert (scene.mask([number]) != mask(number)).sum() <= loose
    assert [thing.clear for thing in scene.describe()] == [True] * 3
    assert len(list(source)) == len(source)


def test_coco(tmp_path):
    source = load_objects(write_coco(tmp_path), images=tmp_path / "images")
    check(source)
    assert len(source) == 2
    assert source.labels == CLASSES
    assert [thing.ann_id for thing in source[1].objects] == ["20", "21", "22"]


def change(path, edit) -> None:
    table = json.loads(path.read_text())
    edit(table)
    path.write_text(json.dumps(table))


def test_coco_crowds_are_marked(tmp_path):
    path = write_coco(tmp_path)
    runs = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * 10, HEIGHT * 20, HEIGHT * (WIDTH - 30)]}
    change(path, lambda table: table["annotations"][0].update(iscrowd=1, segmentation=runs))
    scene = load_objects(path, images=tmp_path / "images")[0]
    assert scene.objects[0].crowd
    assert scene.mask([0]).sum() == HEIGHT * 20
    assert scene.describe()[0].unclear == "crowd"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t["annotations"][0].update(segmentation=[[1, 2, 3]]), "annotation 10"),
        (lambda t: t["annotations"][0].update(segmentation="x"), "annotation 10"),
        (lambda t: t["annotations"][0].update(segmentation=[[1, 2, 3, 4], "x"]), "annotation 10"),
        (lambda t: t["annotations"][0].update(segmentation=[1, 2, 3, 4, 5]), "annotation 10"),
        (lambda t: t["annotations"][0].update(segmentation={}), "annotation 10"),
        (lambda t: t["annotations"][0].update(segmentation={"size": [1, 1], "counts": [1]}), "annotation 10"),
        (lambda t: t["annotations"][0].pop("segmentation"), "annotation 10 has no `segmentation`: a mask is needed"),
        (lambda t: t["annotations"][0].update(iscrowd="no"), "annotation 10 must have 0 or 1 as `iscrowd`, got 'no'"),
        (lambda t: t["annotations"][0].update(iscrowd=[]), "annotation 10 must have 0 or 1 as `iscrowd`"),
        (lambda t: t["annotations"][0].update(category_id=99), "annotation 10 has the category 99"),
        (lambda t: t["images"][0].update(height=0), "image 1"),
        (lambda t: t["images"][0].update(file_name="../x.png"), "leads out of"),
        (lambda t: t["images"][0].update(width=WIDTH + 1), "the image is 60x81"),
        (lambda t: t["images"][0].update(file_name="none.png"), "none.png"),
    ],
)
def test_coco_a_broken_row_is_named_and_leaves_others_alone(tmp_path, edit, message):
    path = write_coco(tmp_path)
    change(path, edit)
    source = load_objects(path, images=tmp_path / "images")
    with pytest.raises((ValueError, OSError), match=message):
        source[0].describe()
    assert len(source[1].describe()) == 3


REPAIRED = {  # segmentations of the first object, and what is told of them
    "a part of two points": ([corners(0), [1, 2, 3, 4]], "part of fewer than three points left out"),
    "a part of one point first": ([[1, 2], corners(0)], "part of fewer than three points left out"),
    "a single polygon": (corners(0), None),
    "a single polygon of points": (np.reshape(corners(0), (-1, 2)).tolist(), None),
    "polygons of points": ([np.reshape(corners(0), (-1, 2)).tolist()], None),
}
WITHOUT = {"nothing": [], "null": None, "only short parts": [[1, 2, 3, 4], [5, 6]], "an empty part": [[]]}


def rows_of_objects(segmentation):
    """The scene as a row whose objects are polygons, the first as given."""
    given = [segmentation, *([corners(number)] for number in (1, 2))]
    objects = [{"class": SCENE[number][0], "segmentation": each} for number, each in enumerate(given)]
    return Dataset.from_list([{"image": png(np.asarray(picture())), "objects": objects}])


@pytest.mark.parametrize("name", REPAIRED)
def test_segmentations_are_repaired_as_by_other_readers(tmp_path, name):
    segmentation, told = REPAIRED[name]
    path = write_coco(tmp_path)
    change(path, lambda table: table["annotations"][0].update(segmentation=segmentation))
    sources = [load_objects(path, images=tmp_path / "images")]
    if np.ndim(segmentation[0]) == 1 and len({len(part) for part in segmentation}) > 1:
        sources.append(HubObjects(rows_of_objects(segmentation)))
    for source in sources:
        check(source)
        assert [one for one, _ in source[0].flaws.met] == ([told] if told else [])


@pytest.mark.parametrize("name", WITHOUT)
def test_objects_without_a_mask_are_no_targets(tmp_path, name):
    """Nor do expressions count them as absent: "the cup" is not said of the other one."""
    path = write_coco(tmp_path, images=1)
    change(path, lambda table: table["annotations"][0].update(segmentation=WITHOUT[name]))
    sources = [load_objects(path, images=tmp_path / "images")]
    if WITHOUT[name] is not None:
        sources.append(HubObjects(rows_of_objects(WITHOUT[name])))
    for source in sources:
        assert [thing.unclear for thing in source[0].describe()] == ["hardly visible", "", ""]
        report = Report()
        with pytest.warns(
            UserWarning, match="1 object without a mask, which is no target, in .*(annotation 10|row 0)"
        ):
            said = expressions_dataset(source, ReferOptions(per_family=6), report=report)
        assert report.repaired == {"objects without a mask, which are no targets": 1}
        texts = {text for row in said for text in row["expressions"]}
        assert "the dog" in texts
        assert not {"the cup", "the blue cup", "both cups"} & texts
    with pytest.warns(UserWarning, match="1 object without a mask"):
        assert len(cutouts_of(sources[0])) == 2


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("categories"), "categories"),
        (lambda t: t.update(annotations={}), "annotations"),
        (lambda t: t.update(annotations=[]), "no annotated images"),
        (lambda t: t["annotations"][0].update(image_id=55), "image 55"),
        (lambda t: t["annotations"][0].update(image_id=[1]), "annotation 0"),
        (lambda t: t["categories"][0].pop("name"), "category 0"),
        (lambda t: t["images"][1].update(id=1), "image 1 must have an id of its own, got 1 again"),
        (lambda t: t["categories"][2].update(id=7), "category 2 must have an id of its own, got 7 again"),
        (lambda t: t["images"][1].update(file_name="001.png"), r"'001\.png' as image 1 and as image 2"),
        (lambda t: [a.pop("segmentation") for a in t["annotations"]], "must have masks, .* boxes are not enough"),
        (lambda t: [a.update(segmentation=[]) for a in t["annotations"]], "must have masks, .* boxes are not enough"),
    ],
)
def test_coco_a_broken_file_is_refused(tmp_path, edit, message):
    path = write_coco(tmp_path)
    change(path, edit)
    with pytest.raises(ValueError, match=message):
        load_objects(path, images=tmp_path / "images")


@pytest.mark.parametrize(
    ("value", "crowd"), [(0, False), ("0", False), (False, False), (None, False), (1, True), ("1", True), (True, True)]
)
def test_crowds_are_0_or_1(tmp_path, value, crowd):
    path = write_coco(tmp_path, images=1, iscrowd=value)
    with pytest.warns(UserWarning, match="crowds") if crowd else nullcontext():
        source = load_objects(path, images=tmp_path / "images")
    assert [thing.crowd for thing in source[0].objects] == [crowd] * 3
    for name in ("iscrowd", "is_crowd"):
        row = hub_row()
        row["objects"] = [{**thing, name: value} for thing in row["objects"]]
        assert [thing.crowd for thing in HubObjects(Dataset.from_list([row]))[0].objects] == [crowd] * 3


@pytest.mark.parametrize("name", ["iscrowd", "is_crowd"])
def test_other_values_for_crowds_are_refused(name):
    row = hub_row()
    row["objects"] = [{**thing, name: "false"} for thing in row["objects"]]
    with pytest.raises(ValueError, match=f"row 0, object 0 must have 0 or 1 as `{name}`, got 'false'"):
        HubObjects(Dataset.from_list([row]))[0]


@pytest.mark.parametrize("look", [lambda s: s.open(), lambda s: s.open(40), lambda s: s.check_size()])
def test_an_image_of_another_size_is_no_unreadable_one(tmp_path, look):
    path = write_coco(tmp_path)
    change(path, lambda table: table["annotations"][1].update(segmentation=[corners(1)]))
    change(path, lambda table: table["images"][0].update(height=WIDTH, width=HEIGHT))
    with pytest.raises(ValueError, match=r"image 1: the labels are for 80x60 pixels .* has 60x80\. .* swapped"):
        look(load_objects(path, images=tmp_path / "images")[0])
    change(path, lambda table: table["images"][0].update(height=HEIGHT + 1, width=WIDTH))
    with pytest.raises(ValueError, match=r"image 1: .* the image has 60x80\.$"):
        look(load_objects(path, images=tmp_path / "images")[0])


@pytest.mark.parametrize("nested", [False, True])
def test_lvis_has_addresses_and_is_labelled_in_part(tmp_path, nested):
    path = write_coco(tmp_path)
    if nested:
        (tmp_path / "images" / "train2017").mkdir()
        for image in (tmp_path / "images").glob("*.png"):
            image.rename(tmp_path / "images" / "train2017" / image.name)

    def edit(table):
        for image in table["images"]:
            name = image.pop("file_name")
            image.update(coco_url=f"http://images.cocodataset.org/train2017/{name}" if nested else name)
        table["images"][0].update(neg_category_ids=[9], not_exhaustive_category_ids=[])

    change(path, edit)
    source = load_objects(path, images=tmp_path / "images")
    check(source)
    assert [scene.exhaustive for scene in source] == [False, True]
    assert {row["family"] for row in expressions_dataset(source, ReferOptions(per_family=6)).select(range(3))} <= {
        "noun",
        "attribute",
        "absolute",
    }
    change(path, lambda table: table["images"][1].pop("coco_url"))
    with pytest.raises(ValueError, match="image 2 has no `file_name`"):
        load_objects(path, images=tmp_path / "images")[1]
    for address in ("http://x/train2017/..", "http://x/", "http://[x", "../../x", ""):
        change(path, lambda table, url=address: table["images"][0].update(coco_url=url))
        with pytest.raises((ValueError, OSError), match="image"):
            load_objects(path, images=tmp_path / "images")[0].open()


def test_yolo(tmp_path):
    check(load_objects(write_yolo(tmp_path)))
    check(load_objects(tmp_path / "labels" / "train"))  # images are found beside the labels
    check(load_objects(tmp_path / "labels", images=tmp_path / "images", names=tmp_path / "data.yaml"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.1 0.1", "line 2 must be a polygon, got a box"),
        ("0 0.5 0.5 0.1", "line 2 must have a class"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "line 2 must have a class"),
        ("cup 0.1 0.1 0.2 0.2 0.3 0.1", "line 2 must have numbers"),
        ("9 0.1 0.1 0.2 0.2 0.3 0.1", "class 9"),
        ("0 10 10 20 20 30 10", "from 0 to 1"),
        ("0 nan 0.1 0.2 0.2 0.3 0.1", "from 0 to 1"),
    ],
)
def test_yolo_a_broken_line_is_named(tmp_path, line, message):
    path = write_yolo(tmp_path) / "labels" / "train" / "a.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[2:]]))
    with pytest.raises(ValueError, match=message):
        load_objects(tmp_path)[0]


def test_yolo_names_as_lists_and_lines(tmp_path):
    (tmp_path / "data.yaml").write_text("names: [cup, dog]\n")
    (tmp_path / "classes.txt").write_text("cup\ndog\n")
    assert read_names(tmp_path / "data.yaml") == read_names(tmp_path / "classes.txt") == {0: "cup", 1: "dog"}
    for text in ("names: cup\n", "nc: 2\n", "names: [", "names: {a: cup}\n", "names: []\n"):
        (tmp_path / "data.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"data\.yaml"):
            read_names(tmp_path / "data.yaml")


@pytest.mark.parametrize("file", ["classes.txt", "obj.names"])
@pytest.mark.parametrize(("text", "line"), [("cup\n\ndog\n", 2), ("\ncup\n", 1), ("cup\ndog\n  \t\ncat", 3)])
def test_yolo_a_blank_line_shifts_no_class(tmp_path, file, text, line):
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=f"{file}, line {line} must have the name of class {line - 1}"):
        read_names(tmp_path / file)
    (tmp_path / file).write_text("cup\ndog\n\n  \n")
    assert read_names(tmp_path / file) == {0: "cup", 1: "dog"}


@pytest.mark.parametrize("names", ["[cup, null, dog]", "[cup, '', dog]", "{0: cup, 1: , 2: dog}", "[a, no]"])
def test_yolo_a_class_needs_a_name(tmp_path, names):
    (tmp_path / "data.yaml").write_text(f"names: {names}\n")
    with pytest.raises(ValueError, match=r"data\.yaml, class 1 must have the name of class 1"):
        read_names(tmp_path / "data.yaml")


def test_yolo_needs_an_image_for_each_label_file(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "images" / "train" / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.txt has no image"):
        load_objects(tmp_path)[0]


def test_images_of_one_name_are_refused(tmp_path):
    """Labels of a.txt or a.png could be those of either."""
    write_yolo(tmp_path / "yolo")
    picture().save(tmp_path / "yolo" / "images" / "train" / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.txt must have one image .* a\.jpg and a\.png"):
        load_objects(tmp_path / "yolo")[0]
    write_voc(tmp_path / "voc")
    picture().save(tmp_path / "voc" / "JPEGImages" / "a.png")
    with pytest.raises(ValueError, match=r"a\.png must have one image .* a\.jpg and a\.png"):
        load_objects(tmp_path / "voc")[0]


LAYOUTS = ["labels/{}", "{}/labels"]


def write_splits(root, layout: str, splits=("train", "val")):
    """YOLO labels in a layout; each split has as many images as its place."""
    write_yolo(root / "source")
    shutil.copy(root / "source" / "data.yaml", root / "data.yaml")
    for count, split in enumerate(splits, start=1):
        labels = root / layout.format(split)
        images = root / layout.replace("labels", "images").format(split)
        labels.mkdir(parents=True)
        images.mkdir(parents=True)
        for number in range(count):
            shutil.copy(root / "source" / "labels" / "train" / "a.txt", labels / f"{split}{number}.txt")
            picture().save(images / f"{split}{number}.png")
    shutil.rmtree(root / "source")
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_yolo_reads_the_split_that_is_asked_for(tmp_path, layout):
    root = write_splits(tmp_path, layout, ("train", "valid", "test2017"))
    for split, count in (("train", 1), ("val", 2), ("valid", 2), ("validation", 2), ("test2017", 3)):
        source = load_objects(root, split=split)
        assert len(source) == count
        check(source)
        folder = "valid" if split.startswith("val") else split
        assert [scene.image_id for scene in source] == [f"{folder}/{folder}{n}.png" for n in range(count)]
        assert (source.split, source.name) == (split, tmp_path.name)
    for split in (None, "minival", "dev"):
        with pytest.raises(ValueError, match=f"`split` must be one of .*: test2017, train, valid; got {split!r}"):
            load_objects(root, split=split)
    given = load_objects(root, split="val", images=root / layout.partition("{")[0].replace("labels", "images"))
    assert [scene.image_id for scene in given] == ["valid/valid0.png", "valid/valid1.png"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_yolo_a_folder_of_a_split_is_that_split(tmp_path, layout):
    root = write_splits(tmp_path, layout)
    folders = {root / layout.format("val")} | ({root / "val"} if layout.startswith("{") else set())
    for folder in folders:
        for source in (load_objects(folder), load_objects(folder, split="validation")):
            assert len(source) == 2
            assert source[0].image_id == "val/val0.png"
        assert load_objects(folder).split == "val"
        with pytest.raises(ValueError, match=r"`split` must be one of .*: val; got 'train'"):
            load_objects(folder, split="train")
    shutil.rmtree(root / layout.format("train"))
    assert load_objects(root).split == "val"  # the only one


@pytest.mark.parametrize("layout", LAYOUTS)
def test_yolo_folders_with_a_year(tmp_path, layout):
    root = write_splits(tmp_path, layout, ("train2017", "val2017"))
    for split, count in (("train", 1), ("val", 2), ("train2017", 1), ("val2017", 2)):
        source = load_objects(root, split=split)
        assert (len(source), source.split) == (count, split)
    assert load_objects(root / layout.format("val2017")).split == "val"
    assert load_objects(root / layout.format("val2017"), split="val").split == "val"
    write_splits(tmp_path / "twice", layout, ("train2014", "train2017"))
    with pytest.raises(ValueError, match="train2014, train2017; got 'train'"):
        load_objects(tmp_path / "twice", split="train")


@pytest.mark.parametrize("prefix", ["./images/", "", "images/", "/data/set/images/", "set\\images\\"])
def test_yolo_lists_of_images(tmp_path, prefix):
    """Flat labels, of which data.yaml has lists for its splits."""
    write_yolo(tmp_path / "source")
    (tmp_path / "labels").mkdir()
    (tmp_path / "images").mkdir()
    for name in "abc":
        shutil.copy(tmp_path / "source" / "labels" / "train" / "a.txt", tmp_path / "labels" / f"{name}.txt")
        picture().save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "train.txt").write_text(f"{prefix}a.png\n\n{prefix}unlabelled.png\n")
    (tmp_path / "val.txt").write_text(f"{prefix}b.png\n{prefix}c.png\n")
    lists = "path: .\ntrain: train.txt\nval: val.txt\ntest: gone.txt\n"
    (tmp_path / "data.yaml").write_text(f"{lists}names: [cup, dog]\n")
    for split, names in (("train", ["a"]), ("validation", ["b", "c"])):
        source = load_objects(tmp_path, split=split)
        assert [scene.image_id for scene in source] == [f"{name}.png" for name in names]
    for split in (None, "test"):
        with pytest.raises(ValueError, match=f"train, val; got {split!r}"):
            load_objects(tmp_path, split=split)
    (tmp_path / "train.txt").unlink()
    assert (len(load_objects(tmp_path)), load_objects(tmp_path).split) == (2, "val")  # the only list
    (tmp_path / "val.txt").write_text("d.png\n")
    with pytest.raises(ValueError, match="no label files"):
        load_objects(tmp_path)


def test_yolo_labels_beside_folders_of_splits(tmp_path):
    root = write_splits(tmp_path, "labels/{}", ("val",))
    shutil.copy(root / "labels" / "val" / "val0.txt", root / "labels" / "a.txt")
    with pytest.raises(ValueError, match=r"`split` must be one of .*: val; got None"):
        load_objects(root)
    assert len(load_objects(root, split="val")) == 1


def test_yolo_folders_that_are_no_splits_are_read_together(tmp_path):
    root = write_splits(tmp_path, "labels/{}", ("left", "right"))
    source = load_objects(root)
    assert [scene.image_id for scene in source] == ["left/left0.png", "right/right0.png", "right/right1.png"]
    assert source.split is None
    with pytest.raises(ValueError, match=r"has no split 'val': no folder labels/val .* leave out `split`"):
        load_objects(root, split="val")
    right = load_objects(root, split="right")
    assert [scene.image_id for scene in right] == ["right/right0.png", "right/right1.png"]


def write_folders(root, *folders: str, yaml: str = "", names=("1",)):
    """YOLO labels in folders of their own, with images beside `labels` or in the same folder."""
    write_yolo(root / "source")
    for folder in folders:
        labels, images = root / folder, root / folder.replace("labels", "images")
        for path in (labels, images):
            path.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copy(root / "source" / "labels" / "train" / "a.txt", labels / f"{name}.txt")
            picture().save(images / f"{name}.png")
    shutil.rmtree(root / "source")
    (root / "data.yaml").write_text(f"{yaml}\nnames: [cup, dog]\n")
    return root


def ids_of(path, split=None, **options) -> list[str]:
    return [scene.image_id for scene in load_objects(path, split=split, **options)]


FOLDS = {  # entries of data.yaml, and the folders of train and val
    "train: images/fold1\nval: images/fold2": (["fold1"], ["fold2"]),
    "train: images/fold1/\nval: ./images/fold2": (["fold1"], ["fold2"]),
    "path: .\ntrain: [images/fold1, images/fold3]\nval: [images/fold2]": (["fold1", "fold3"], ["fold2"]),
    "path: images\ntrain: fold1\nval: fold2": (["fold1"], ["fold2"]),
    "path: /elsewhere/data\ntrain: images/fold1\nval: images/fold2": (["fold1"], ["fold2"]),
    "train: ../images/fold1\nval: ../images/fold2": (["fold1"], ["fold2"]),
    "train: images/fold3\nvalid: images\\fold1": (["fold3"], ["fold1"]),
}


@pytest.mark.parametrize("yaml", FOLDS)
def test_yolo_folders_in_data_yaml(tmp_path, yaml):
    """Folders of other names were ignored, so that train and val were all images."""
    root = write_folders(tmp_path, *(f"labels/fold{number}" for number in (1, 2, 3)), yaml=yaml)
    for place in (root, root / "labels"):
        for split, folders in zip(("train", "val"), FOLDS[yaml], strict=True):
            assert ids_of(place, split) == [f"{folder}/1.png" for folder in folders]
        for split in (None, "test"):
            with pytest.raises(ValueError, match=f"one of the splits of .*: train, val(id)?; got {split!r}"):
                load_objects(place, split=split)
    assert ids_of(root, "fold2") == ["fold2/1.png"]  # a folder that is no split may also be named
    first = FOLDS[yaml][0][0]
    fold = load_objects(root / "labels" / first)
    assert ([scene.image_id for scene in fold], fold.split) == ([f"{first}/1.png"], "train")
    with pytest.raises(ValueError, match=": train; got 'val'"):
        load_objects(root / "labels" / first, split="val")


def test_yolo_data_yaml_decides_against_the_names_of_folders(tmp_path):
    yaml = "train: images/val\nval: images/train"
    root = write_folders(tmp_path, "labels/train", "labels/val", yaml=yaml)
    assert (ids_of(root, "train"), ids_of(root, "val")) == (["val/1.png"], ["train/1.png"])
    assert load_objects(root / "labels" / "val").split == "train"
    (root / "data.yaml").write_text("train: images/val\nnames: [cup, dog]\n")
    with pytest.raises(ValueError, match=": train; got 'val'"):
        load_objects(root, split="val")
    (root / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [cup, dog]\n")
    assert ids_of(root, "train") == ids_of(root, "val") == ids_of(root, None) == ["train/1.png"]


def test_yolo_as_roboflow_writes_it(tmp_path):
    yaml = "train: ../train/images\nval: ../valid/images\ntest: ../test/images"
    root = write_folders(tmp_path / "set", "train/labels", "valid/labels", "test/labels", yaml=yaml)
    (root / "README.roboflow.txt").write_text("set\n")
    for split, folder in (("train", "train"), ("val", "valid"), ("valid", "valid"), ("test", "test")):
        assert ids_of(root, split) == [f"{folder}/1.png"]
        assert ids_of(root / folder) == [f"{folder}/1.png"]
    write_folders(tmp_path, "train/labels")  # another data set, where `../` leads
    assert ids_of(root, "train") == ["train/1.png"]


@pytest.mark.parametrize("yaml", ["train: train.txt\nval: val.txt", "train: [train.txt]\nval: [val.txt]", ""])
@pytest.mark.parametrize("prefix", ["data/obj_train_data/", "/content/set/obj_train_data/", "obj_train_data\\"])
def test_yolo_lists_of_a_flat_data_set(tmp_path, yaml, prefix):
    """As CVAT writes it; its lists were read as label files, and each split was all images."""
    root = write_folders(tmp_path, "obj_train_data", yaml=yaml, names=("a", "b c", "train"))
    (root / "train.txt").write_text(f"{prefix}a.png\n{prefix}unlabelled.png\n{prefix}train.png\n")
    (root / "val.txt").write_text(f"{prefix}b c.png\n")
    (root / "obj.data").write_text("classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n")
    for place in (root, root / "obj_train_data"):
        assert ids_of(place, "train") == ["obj_train_data/a.png", "obj_train_data/train.png"]
        assert ids_of(place, "val") == ["obj_train_data/b c.png"]
        with pytest.raises(ValueError, match="train, val; got None"):
            load_objects(place)
    check(load_objects(root, split="val"))


def test_yolo_a_list_chooses_among_folders_of_one_name(tmp_path):
    root = write_folders(tmp_path, "labels", "labels/x", "labels/y", yaml="train: train.txt")
    for line, found in (("images/x/1.png", "x/1.png"), ("./images/1.png", "1.png"), ("/z/images/y/1.jpg", "y/1.png")):
        (root / "train.txt").write_text(f"{line}\n")
        assert ids_of(root, "train") == [found]
    shutil.rmtree(root / "labels" / "x")
    (root / "labels" / "1.txt").rename(root / "labels" / "y" / "2.txt")
    (root / "labels" / "x").mkdir()
    shutil.copy(root / "labels" / "y" / "1.txt", root / "labels" / "x")
    (root / "train.txt").write_text("1.png\n")
    with pytest.raises(ValueError, match=r"train\.txt, line 1: '1\.png' may be that of .*x/1\.txt or .*y/1\.txt"):
        load_objects(root)


def test_yolo_what_data_yaml_lacks_is_told(tmp_path):
    root = write_folders(tmp_path, "labels/fold1", yaml="train: [images/fold1, images/fold9]")
    with pytest.warns(UserWarning, match=r"data\.yaml: there is no images/fold9 of the split train"):
        assert ids_of(root, "train") == ["fold1/1.png"]
    (root / "data.yaml").write_text("train: {a: 1}\nnames: [cup, dog]\n")
    with pytest.raises(ValueError, match="must have a path or a list of paths as `train`"):
        load_objects(root)


@pytest.mark.parametrize("names", ["{'0': cup, '1': dog}", "{0.0: cup, 1: dog}", "{0: cup, 1: dog}"])
@pytest.mark.parametrize("suffix", ["", ".0"])
def test_yolo_whole_numbers_in_any_form(tmp_path, names, suffix):
    path = write_yolo(tmp_path) / "labels" / "train" / "a.txt"
    (tmp_path / "data.yaml").write_text(f"names: {names}\n")
    path.write_text("".join(line.replace(" ", f"{suffix} ", 1) for line in path.open()))
    check(load_objects(tmp_path))
    path.write_text(path.read_text().replace(f"0{suffix} ", "0.5 ", 1))
    with pytest.raises(ValueError, match=r"line 1 has the class 0\.5"):
        load_objects(tmp_path)[0]


def test_labelme(tmp_path):
    check(load_objects(write_labelme(tmp_path)))


def test_labelme_images_inside_circles_masks_and_groups(tmp_path):
    path = write_labelme(tmp_path) / "a.json"
    inner = mask(0)[20:40, 5:25] * 255

    def edit(table):
        table.update(imageData=base64.b64encode((tmp_path / "a.png").read_bytes()).decode(), imagePath="gone.png")
        table["shapes"][0].update(
            shape_type="mask", points=[[5, 20], [24, 39]], mask=base64.b64encode(png(inner)).decode()
        )
        table["shapes"][1].update(group_id=4)
        table["shapes"].append({"label": "cup", "points": [[65, 10], [68, 10]], "shape_type": "circle", "group_id": 4})

    change(path, edit)
    scene = load_objects(tmp_path)[0]
    assert [thing.label for thing in scene.objects] == ["cup", "cup", "dog"]
    assert (scene.mask([0]) == mask(0)).all()
    assert scene.mask([1])[10, 65] == 1  # the circle belongs to the second cup
    assert scene.mask([1])[30, 60] == 1
    assert scene.open().size == (WIDTH, HEIGHT)


def embedded(width: int, height: int) -> str:
    return base64.b64encode(png(np.zeros((height, width, 3), dtype=np.uint8))).decode()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("shapes"), "shapes"),
        (lambda t: t["shapes"][1].pop("label"), "shape 1"),
        (lambda t: t["shapes"][1].update(label=3), "shape 1"),
        (lambda t: t["shapes"][1].update(points=[[1, 2], [3, 4]]), "shape 1 must have at least 3 points"),
        (lambda t: t["shapes"][1].update(points=[[1, 2], [3, "x"], [4, 5]]), "shape 1"),
        (
            lambda t: t["shapes"][1].update(shape_type="linestrip"),
            "shape 1 must be a polygon, .* got 'linestrip'; draw",
        ),
        (
            lambda t: t["shapes"][1].update(shape_type="oriented_rectangle"),
            "got 'oriented_rectangle'; draw its outline",
        ),
        (lambda t: t["shapes"][1].update(shape_type="point", points=[[1, 2]]), "got 'point'; .* or remove it"),
        (lambda t: t.update(imageHeight=None), "height and width in pixels, got None and 80"),
        (lambda t: t.update(imageData=embedded(WIDTH, HEIGHT * 2)), "labels are for 60x80 .* the image has 120x80"),
        (lambda t: t.update(imageData=embedded(HEIGHT, WIDTH)), "the image has 80x60.* swapped"),
        (lambda t: t.update(imageData=5), "must have an image in base64, or null, as `imageData`, got '5'"),
        (lambda t: t.update(imageWidth=3), "labels are for"),
        (lambda t: t.update(imagePath="/etc/passwd"), "leads out of"),
        (lambda t: t.update(imageData="%%"), "imageData"),
    ],
)
def test_labelme_a_broken_file_is_named(tmp_path, edit, message):
    path = write_labelme(tmp_path) / "a.json"
    change(path, edit)
    with pytest.raises(ValueError, match=message):
        load_objects(tmp_path)[0]
    with pytest.raises(ValueError, match=r"a\.json"):
        load_objects(tmp_path)[0]


@pytest.mark.parametrize("data", ["", None])
def test_labelme_without_embedded_data_has_a_path(tmp_path, data):
    change(write_labelme(tmp_path) / "a.json", lambda table: table.update(imageData=data))
    check(load_objects(tmp_path))


def test_labelme_an_embedded_image_is_upright(tmp_path):
    exif, file = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6
    picture().transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    data = base64.b64encode(file.getvalue()).decode()
    change(write_labelme(tmp_path) / "a.json", lambda table: table.update(imageData=data))
    check(load_objects(tmp_path))


@pytest.mark.parametrize("name", ["imageData", "mask"])
def test_labelme_broken_data_is_named_without_addresses_in_memory(tmp_path, name):
    def edit(table, content):
        (table if name == "imageData" else table["shapes"][0]).update({name: content})
        table["shapes"][0].update(shape_type="mask" if name == "mask" else "polygon")

    broken = base64.b64encode(b"no picture").decode()
    for content, message in ((broken, "cannot be read as an image"), ("%", "base64")):
        change(write_labelme(tmp_path) / "a.json", partial(edit, content=content))
        with pytest.raises((OSError, ValueError), match=rf"a\.json.*`{name}`.*") as raised:
            load_objects(tmp_path)[0]
        assert message in str(raised.value)
        assert "object at" not in str(raised.value)


def test_voc(tmp_path):
    """The border of 255 belongs to no object."""
    check(load_objects(write_voc(tmp_path)), ("bottle", "bottle", "dog"), loose=80)
    check(load_objects(tmp_path, split="val"), ("bottle", "bottle", "dog"), loose=80)
    assert load_objects(tmp_path).split == "val"  # the only list
    scene = load_objects(tmp_path)[0]
    left, top, right, bottom = SCENE[0][2]
    assert scene.mask([0]).sum() == (right - left - 2) * (bottom - top - 2)


def test_voc_what_is_broken_is_named(tmp_path):
    write_voc(tmp_path)
    lists = tmp_path / "ImageSets" / "Segmentation"
    (lists / "trainval.txt").write_text("a\n")
    with pytest.raises(ValueError, match=r"trainval, val; got 'train'"):
        load_objects(tmp_path, split="train")
    with pytest.raises(ValueError, match=r"trainval, val; got None"):
        load_objects(tmp_path)
    assert len(load_objects(tmp_path, split="validation")) == len(load_objects(tmp_path, split="val"))
    for path in lists.iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.txt"):
        load_objects(tmp_path, split="train")
    Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / "SegmentationClass" / "a.png")
    with pytest.raises(ValueError, match="object 1 has no class"):
        load_objects(tmp_path)[0]
    Image.new("L", (WIDTH, HEIGHT), 77).save(tmp_path / "SegmentationClass" / "a.png")
    with pytest.raises(ValueError, match="class 77"):
        load_objects(tmp_path)[0]
    Image.new("L", (WIDTH, 9)).save(tmp_path / "SegmentationClass" / "a.png")
    with pytest.raises(ValueError, match="must agree"):
        load_objects(tmp_path)[0]
    (tmp_path / "SegmentationClass" / "a.png").write_bytes(b"no picture")
    with pytest.raises(OSError, match=r"a\.png"):
        load_objects(tmp_path)[0]


def test_hub_lists_of_objects(tmp_path):
    dataset = Dataset.from_list([hub_row(), {**hub_row(), "exhaustive": False}])
    source = HubObjects(dataset, exhaustive="exhaustive")
    check(source)
    assert [scene.exhaustive for scene in source] == [True, False]
    dataset.to_parquet(tmp_path / "rows.parquet")
    check(load_objects(tmp_path / "rows.parquet"))


def test_hub_columns_of_objects_with_classes_by_number():
    """As detection data sets have them: a struct of lists, a ClassLabel, polygons or run lengths."""
    features = Features(
        {
            "image": ImageFeature(),
            "objects": {"category": List(ClassLabel(names=list(CLASSES))), "segmentation": List(Value("string"))},
        }
    )
    features["objects"]["segmentation"] = List({"size": List(Value("int64")), "counts": Value("string")})
    numbers = [CLASSES.index(label) for label, _, _ in SCENE]
    objects = {"category": numbers, "segmentation": [encode_mask(mask(n)) for n in range(3)]}
    check(HubObjects(Dataset.from_list([{"image": picture(), "objects": objects}], features=features)))


def test_hub_one_mask_and_one_label_a_row():
    """As Oxford-IIIT Pet has them: a trimap of 1 object, 2 ground, 3 border, and a label."""
    trimap = np.where(mask(2) == 1, 1, 2).astype(np.uint8)
    trimap[42, 30:52] = 3
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog"]), "trimap": ImageFeature()})
    row = {"image": picture(), "label": 1, "trimap": Image.fromarray(trimap)}
    (scene,) = HubObjects(Dataset.from_list([row], features=features))
    assert [thing.label for thing in scene.objects] == ["dog"]
    assert np.array_equal(scene.mask([0]), trimap == 1)


def masked_row(values, **row):
    """A row with one mask and one class, which is stored as PNG."""
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog"]), "mask": ImageFeature()})
    stored = values if isinstance(values, Image.Image) else Image.fromarray(values)
    return Dataset.from_list([{"image": picture(), "label": 1, "mask": stored, **row}], features=features)


def listed_row(values):
    """The same mask in a list of objects."""
    file = io.BytesIO()
    (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(file, format="PNG")
    return Dataset.from_list(
        [{"image": png(np.asarray(picture())), "objects": [{"class": "dog", "mask": file.getvalue()}]}]
    )


DOG = mask(2)
CLEAR = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
CUT_OUT = np.asarray(picture()) * DOG[..., None]
STRIPED = np.where(DOG == 1, 255, 0).astype(np.uint8)
STRIPED[45] = DOG[45]
PALETTE = Image.fromarray(np.where(DOG == 1, 1, 0).astype(np.uint8))
PALETTE.putpalette([0, 0, 0, 128, 0, 0])


@pytest.mark.parametrize(
    "values",
    [
        DOG,
        DOG * 255,
        DOG.astype(bool),
        np.stack([DOG * 255] * 3, axis=-1),
        np.dstack([CLEAR, DOG * 255]),
        np.dstack([CLEAR + 255, DOG * 255]),
        PALETTE,
        np.where(DOG == 1, 65535, 0).astype(np.uint16),
    ],
    ids=["01", "0255", "bool", "rgb", "alpha", "white_alpha", "palette", "16bits"],
)
@pytest.mark.parametrize("row", [masked_row, listed_row])
def test_hub_masks_are_read_as_all_masks(values, row):
    (scene,) = HubObjects(row(values))
    assert np.array_equal(scene.mask([0]), DOG)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (STRIPED, "ignore_index=255"),
        (np.where(DOG == 1, 255, 128).astype(np.uint8), "0 and 1"),
        (np.where(DOG == 1, 3, 0).astype(np.uint8), "mask == 3"),
        (DOG * 3 + mask(0), "mask == 3"),
        (np.where(np.arange(HEIGHT)[:, None] < 9, 128, DOG * 255).astype(np.uint8), "128"),
        (CUT_OUT, "The channels differ"),
        (np.dstack([np.stack([DOG * 255] * 3, axis=-1), (1 - DOG) * 255]), "transparency"),
    ],
    ids=["striped", "grey", "three", "two_objects", "trimap_for_matting", "colours", "contradiction"],
)
@pytest.mark.parametrize("row", [masked_row, listed_row])
def test_hub_ambiguous_masks_are_refused(values, message, row):
    with pytest.raises(ValueError, match=f"row 0.*{message}"):
        HubObjects(row(values))[0]


@pytest.mark.parametrize("row", [masked_row, listed_row])
def test_hub_ignored_pixels_belong_to_no_object(row):
    values = DOG.copy()
    values[42, 30:52] = 255
    (scene,) = HubObjects(row(values), ignore_index=255)
    assert np.array_equal(scene.mask([0]), values == 1)
    values[values == 1], values[values == 255] = 255, 128
    (scene,) = HubObjects(row(values), ignore_index=128)
    assert np.array_equal(scene.mask([0]), values == 255)


@pytest.mark.parametrize("values", [(1, 2, 2), (1, 2, 3), (1, 3, 3)])
def test_hub_a_trimap_needs_not_all_values(values):
    trimap = np.where(DOG == 1, values[0], values[1]).astype(np.uint8)
    trimap[:5] = values[2]
    for stored in (trimap, np.stack([trimap] * 3, axis=-1)):
        (scene,) = HubObjects(masked_row(stored))
        assert np.array_equal(scene.mask([0]), DOG)


@pytest.mark.parametrize("values", [(2, 3), (2, 2), (3, 3), (0, 0)])
def test_hub_a_mask_without_the_object_makes_no_target(values):
    """A trimap of background and border was an object as large as the image."""
    (scene,) = HubObjects(masked_row(np.where(DOG == 1, *values).astype(np.uint8)))
    assert [thing.unclear for thing in scene.describe()] == ["hardly visible"]
    assert [one for one, _ in scene.flaws.met] == ["object without a mask, which is no target"]


@pytest.mark.parametrize("value", [5, 0.5, "gone.png", {"a": 1}, {"bytes": None}, [], [[]], [5], [None], [[[1]]]])
def test_hub_any_mask_is_read_or_refused_with_its_row(value):
    """Nothing but ValueError, whatever the column has."""
    rows = [{"image": png(np.asarray(picture())), "objects": [{"class": "dog", "mask": value}]}]
    with suppress(ValueError):
        (scene,) = HubObjects(Dataset.from_list(rows))
        assert not scene.mask([0]).any()
        return
    with pytest.raises(ValueError, match="row 0"):
        HubObjects(Dataset.from_list(rows))[0]


@pytest.mark.parametrize(("names", "labels"), [(200, []), (255, []), (256, ["n255"]), (300, ["n255"])])
def test_hub_255_is_a_border_unless_it_has_a_name(names, labels):
    table = np.where(DOG == 1, 255, 0).astype(np.uint8)
    features = Features({"image": ImageFeature(), "annotation": ImageFeature()})
    rows = Dataset.from_list([{"image": picture(), "annotation": Image.fromarray(table)}], features=features)
    (scene,) = HubObjects(rows, names=[f"n{number}" for number in range(names)])
    assert [thing.label for thing in scene.objects] == labels


def test_hub_a_row_without_a_mask_or_image_is_named():
    for name, message in (("mask", "row 0: the file is missing"), ("image", "row 0 has no image")):
        with pytest.raises(ValueError, match=message):
            HubObjects(masked_row(DOG, **{name: None}))[0]
    with pytest.raises(ValueError, match=r"row 0 has no image that can be read: cannot identify image file the data"):
        HubObjects(Dataset.from_list([{**hub_row(), "image": b"no picture"}]))[0]


def instance_map(classes: int, instances: int) -> np.ndarray:
    """Classes and instances of the scene, each in a channel of that number."""
    table = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    for number, value in enumerate((1, 1, 2)):
        table[mask(number) == 1, classes] = value
        table[mask(number) == 1, instances] = number + 1
    return table


@pytest.mark.parametrize("column", ["annotation", "semantic_map", "label"])
@pytest.mark.parametrize("kind", [None, "semantic"])
def test_hub_instances_are_not_merged_to_a_semantic_map(column, kind):
    rows = Dataset.from_list(
        [{"image": picture(), column: Image.fromarray(instance_map(0, 1))}],
        features=Features({"image": ImageFeature(), column: ImageFeature()}),
    )
    names = ["background", "cup", "dog"]
    with pytest.raises(ValueError, match=r"row 0: .*channels differ.*kind=instances"):
        HubObjects(rows, kind=kind, names=names)[0]
    check(HubObjects(rows, kind="instances", names=names))


def test_hub_maps_in_other_channels_are_refused():
    """The full ADE20K has instances in blue; merged, they would be one object."""
    names, features = ["background", "cup", "dog"], Features({"image": ImageFeature(), "instances": ImageFeature()})
    for table, message in ((instance_map(0, 2), "another channel"), (instance_map(0, 1)[..., 0], "one channel")):
        row = {"image": picture(), "instances": Image.fromarray(table)}
        with pytest.raises(ValueError, match=f"row 0.*{message}"):
            HubObjects(Dataset.from_list([row], features=features), names=names)[0]
    row = {"image": picture(), "instances": Image.fromarray(instance_map(0, 1))}
    check(HubObjects(Dataset.from_list([row], features=features), names=names))  # detected from the name
    grey = Image.fromarray(np.stack([instance_map(0, 1)[..., 0]] * 3, axis=-1))
    rows = Dataset.from_list([{"image": picture(), "instances": grey}], features=features)
    check(HubObjects(rows.rename_column("instances", "annotation"), names=names))


def test_hub_maps_of_classes_and_instances():
    """As scene_parse_150 has them: classes in red, instances in green."""
    table = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    for number, value in enumerate((1, 1, 2)):
        table[mask(number) == 1] = (value, number + 1, 0)
    rows = Dataset.from_list(
        [{"image": picture(), "annotation": Image.fromarray(table)}],
        features=Features({"image": ImageFeature(), "annotation": ImageFeature()}),
    )
    check(HubObjects(rows, kind="instances", names=["background", "cup", "dog"]))
    semantic = Dataset.from_list(
        [{"image": picture(), "annotation": Image.fromarray(table[..., 0])}],
        features=Features({"image": ImageFeature(), "annotation": ImageFeature()}),
    )
    check(HubObjects(semantic, names=["background", "cup", "dog"]))
    with pytest.raises(ValueError, match="need class names"):
        HubObjects(semantic)
    with pytest.raises(ValueError, match="row 0 has the class 2"):
        HubObjects(semantic, names=["background", "cup"])[0]


def test_hub_polygons_as_ade20k_has_them():
    objects = [
        {"name": f"{label}, thing", "polygon": {"x": corners(number)[::2], "y": corners(number)[1::2]}}
        for number, (label, _, _) in enumerate(SCENE)
    ]
    source = HubObjects(Dataset.from_list([{"image": png(np.asarray(picture())), "objects": objects}]))
    check(source, ("cup, thing", "cup, thing", "dog, thing"))
    assert [thing.label for thing in source[0].describe()] == ["cup", "cup", "dog"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda row: row["objects"][1].update(mask=b"no picture"), "row 1"),
        (
            lambda row: row["objects"][1].update(mask=png(np.ones((5, 5), dtype=np.uint8))),
            "row 1, object 1: .*size of the image",
        ),
        (lambda row: row["objects"][1].update(mask=None), r"object 1 must have a class and a mask; it has `class`\."),
        (lambda row: row.update(image=b"no picture"), "row 1 has no image"),
    ],
)
def test_hub_a_broken_row_is_named(edit, message):
    broken = hub_row()
    edit(broken)
    source = HubObjects(Dataset.from_list([hub_row(), broken]))
    assert len(source[0].objects) == 3
    with pytest.raises(ValueError, match=message):
        source[1]


def test_hub_columns_must_be_there():
    rows = Dataset.from_list([{"image": png(np.asarray(picture())), "caption": "x"}])
    with pytest.raises(ValueError, match="set `kind` and set `labels`"):
        HubObjects(rows)
    with pytest.raises(ValueError, match="must have a column 'masks'"):
        HubObjects(rows, kind="semantic", labels="masks", names=["a", "b"])
    with pytest.raises(ValueError, match="`kind` must be one of"):
        HubObjects(rows, kind="panoptic")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=7))
def test_parts_are_what_hangs_together(rows):
    """Checked by flooding from each part's first pixel."""
    table = np.array(rows)
    labels = label_parts(torch.from_numpy(table), corners=False).numpy()
    parts = [labels == number for number in range(1, labels.max() + 1)]
    assert np.array_equal(sum((part.astype(int) for part in parts), np.zeros(table.shape, int)), table.astype(int))
    for part in parts:
        flood = np.zeros_like(part)
        flood[tuple(np.argwhere(part)[0])] = True
        for _ in range(table.size):
            wide = np.pad(flood, 1)
            flood = (wide[1:-1, 1:-1] | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]) & table
        assert np.array_equal(flood, part)


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=60))
def test_yolo_any_text_is_read_or_refused_with_its_line(tmp_path_factory, text):
    root = tmp_path_factory.mktemp("yolo")
    path = write_yolo(root) / "labels" / "train" / "a.txt"
    path.write_text("0 0.1 0.1 0.2 0.2 0.3 0.1\n" + text, encoding="utf-8")
    source, told = load_objects(root), "a.txt, line"
    with suppress(ValueError):
        scene = source[0]
        assert scene.mask(range(len(scene.objects))).shape == (HEIGHT, WIDTH)
        return
    with pytest.raises(ValueError, match=told):
        source[0]


def test_forms_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        load_objects(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="supported form"):
        load_objects(tmp_path / "empty")
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(ValueError, match=r"a\.csv"):
        load_objects(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="`form` must be one of"):
        load_objects(tmp_path, form="cvat")


@pytest.mark.parametrize("hidden", ["._{}", ".ipynb_checkpoints/{}", "sub/.git/{}"])
def test_hidden_files_are_no_labels_or_images(tmp_path, hidden):
    """The files that macOS and notebooks leave stopped the run."""

    def leave(folder, name):
        path = folder / hidden.format(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0\5\x16\7\0\xff\xfe")

    labelme, yolo, voc = (tmp_path / name for name in ("labelme", "yolo", "voc"))
    write_labelme(labelme), write_yolo(yolo), write_voc(voc)
    (voc / "ImageSets" / "Segmentation" / "val.txt").unlink()
    for name in ("a.json", "x.parquet", "a.txt"):
        leave(labelme, name)
    for folder, name in (
        ("labels/train", "a.txt"),
        ("images/train", "a.png"),
        ("images/train", "a.jpg"),
        ("", "b.txt"),
    ):
        leave(yolo / folder, name)
    for folder, name in (
        ("SegmentationObject", "a.png"),
        ("JPEGImages", "a.png"),
        ("ImageSets/Segmentation", "t.txt"),
    ):
        leave(voc / folder, name)
    for folder, form in ((labelme, "labelme"), (yolo, "yolo"), (voc, "voc")):
        source = load_objects(folder)
        assert (detect_form(folder), len(source)) == (form, 1)
        source[0].describe()


def test_a_hidden_folder_is_no_split(tmp_path):
    for name in ("train", ".ipynb_checkpoints"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metadata.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"splits of .*: train; got None"):
        load_data(str(tmp_path), None)


@pytest.mark.parametrize("beside", ["../images/a.png", "..\\images\\a.png"])
def test_labelme_images_in_a_folder_beside(tmp_path, monkeypatch, beside):
    """Of an absolute folder, they were refused."""
    folder = write_labelme(tmp_path / "json")
    (tmp_path / "images").mkdir()
    (folder / "a.png").rename(tmp_path / "images" / "a.png")
    change(folder / "a.json", lambda table: table.update(imagePath=beside))
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    for place in (folder, Path("json"), tmp_path, Path(), tmp_path / "link", Path("link")):
        check(load_objects(place))
    monkeypatch.chdir(folder)
    check(load_objects(Path()))
    change(folder / "a.json", lambda table: table.update(imagePath="../../images/a.png"))
    for place in (folder, Path(), tmp_path / "link"):
        with pytest.raises(ValueError, match="leads out of"):
            load_objects(place)[0]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [1, 2, 3, 0], [0, 3, 2, 1], [0, 2], [3, 1], [1, 3]])
def test_labelme_rectangles_of_two_or_four_points(tmp_path, order):
    points = np.reshape(corners(0), (-1, 2))[order].tolist()
    change(
        write_labelme(tmp_path) / "a.json",
        lambda table: table["shapes"][0].update(points=points, shape_type="rectangle"),
    )
    check(load_objects(tmp_path))


@pytest.mark.parametrize(
    ("text", "stems"),
    [
        ("a b é\nc\n", ["a b é", "c"]),
        ("\ufeffc\r\n\r\na b é\r\n", ["c", "a b é"]),
        ("c  1\na b é -1\nx 1\n", ["c", "x 1"]),
        ("c  0\na b é  1\nsub/d  1\n", ["c", "a b é", "sub/d"]),
    ],
)
def test_voc_lists_have_a_name_a_line(tmp_path, text, stems):
    """Names with spaces were split; lists of a class say 1 (there), 0 (hard) or -1 (not there)."""
    write_voc(tmp_path)
    for folder, suffix in (("SegmentationClass", "png"), ("SegmentationObject", "png"), ("JPEGImages", "jpg")):
        (tmp_path / folder / "sub").mkdir()
        for name in ("a b é", "c", "x 1", "sub/d"):
            shutil.copy(tmp_path / folder / f"a.{suffix}", tmp_path / folder / f"{name}.{suffix}")
        (tmp_path / folder / f"a.{suffix}").unlink()
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_bytes(text.encode())
    assert [scene.image_id for scene in load_objects(tmp_path)] == stems
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").unlink()
    assert [scene.image_id for scene in load_objects(tmp_path)] == ["a b é", "c", "sub/d", "x 1"]
    check(load_objects(tmp_path), ("bottle", "bottle", "dog"), loose=80)


def brushed(number: int) -> dict:
    """An object as CVAT writes a mask that is drawn with a brush: run lengths of a crowd."""
    values = mask(number).ravel(order="F")
    ends = np.flatnonzero(np.diff(values)) + 1
    return {
        "iscrowd": 1,
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *ends, values.size]).tolist()},
    }


@pytest.mark.parametrize(("numbers", "told"), [((0, 1, 2), "all 3 objects"), ((0, 1), "all 2 masks of run lengths")])
def test_crowds_that_are_objects(tmp_path, numbers, told):
    """All masks of CVAT are marked as crowds: there were no expressions, and no reason."""
    path = write_coco(tmp_path, images=1)
    change(path, lambda table: [table["annotations"][number].update(brushed(number)) for number in numbers])
    with pytest.warns(UserWarning, match=f"{told} are crowds .* set `crowds=objects`"):
        source = load_objects(path, images=tmp_path / "images")
    assert [thing.crowd for thing in source[0].objects] == [number in numbers for number in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        check(load_objects(path, images=tmp_path / "images", crowds="objects"))
    row = hub_row()
    row["objects"] = [{**thing, "iscrowd": 1} for thing in row["objects"]]
    check(HubObjects(Dataset.from_list([row]), crowds="objects"))
    for read in (partial(load_objects, path, images=tmp_path), partial(HubObjects, Dataset.from_list([row]))):
        with pytest.raises(ValueError, match="`crowds` must be one of crowds, objects, got 'all'"):
            read(crowds="all")


def test_a_few_crowds_are_as_in_coco(tmp_path):
    path = write_coco(tmp_path, images=4)

    def edit(table):
        for row in table["annotations"]:
            row["segmentation"] = [corners(row["id"] % 10)]
        table["annotations"][1].update(brushed(1))

    change(path, edit)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        source = load_objects(path, images=tmp_path / "images")
    assert [thing.crowd for thing in source[0].objects] == [False, True, False]


@pytest.mark.parametrize(
    "name",
    ["images\\001.png", "/label-studio/media/1/001.png", "../../media/001.png", "C:\\me\\001.png", "x/y/001.png"],
)
def test_coco_file_names_of_other_machines(tmp_path, name):
    """As Label Studio writes them: backslashes, absolute paths, and paths that lead out."""
    path = write_coco(tmp_path)
    change(path, lambda table: table["images"][0].update(file_name=name))
    for images in (tmp_path / "images", *([tmp_path] if name.startswith("images") else [])):
        assert load_objects(path, images=images)[0].open().size == (WIDTH, HEIGHT)
    change(path, lambda table: table["images"][1].update(file_name="z/001.png"))  # may be that file as well
    with pytest.raises((ValueError, OSError), match=r"leads out of|There is no image file"):
        load_objects(path, images=tmp_path / "images")[0].open()


def test_coco_one_file_of_two_spellings_is_one_image(tmp_path):
    path = write_coco(tmp_path)

    def edit(table):
        table["images"][0]["file_name"], table["images"][1]["file_name"] = "images/001.png", "images\\001.png"

    change(path, edit)
    with pytest.raises(ValueError, match="as image 1 and as image 2"):
        load_objects(path, images=tmp_path)


def test_a_folder_of_coco(tmp_path):
    """As Roboflow exports it; of other folders, the message names the files."""
    train = write_coco(tmp_path / "set" / "train")
    for image in (train.parent / "images").iterdir():
        image.rename(train.parent / image.name)
    train = train.rename(train.parent / "_annotations.coco.json")
    (tmp_path / "set" / "README.roboflow.txt").write_text("set\n")
    check(load_objects(train.parent))
    with pytest.raises(ValueError, match=r"a COCO file for each split; .* one of .*train/_annotations\.coco\.json"):
        load_objects(tmp_path / "set")
    write_coco(tmp_path / "own")
    with pytest.raises(ValueError, match=r"COCO files, not labels of LabelMe; .* one of .*own/instances\.json"):
        load_objects(tmp_path / "own")


def whole_floats(value):
    """A table with floats for all numbers, as some tools write them."""
    if isinstance(value, dict):
        return {key: whole_floats(entry) for key, entry in value.items() if key != "counts"} | (
            {"counts": value["counts"]} if "counts" in value else {}
        )
    if isinstance(value, list):
        return [whole_floats(entry) for entry in value]
    return float(value) if isinstance(value, int) else value


def test_whole_numbers_may_be_floats(tmp_path):
    path = write_coco(tmp_path / "coco")
    change(path, lambda table: table.update(images=whole_floats(table["images"])))
    for row in (table := json.loads(path.read_text()))["annotations"]:
        row.update({key: float(row[key]) for key in ("id", "image_id", "category_id", "iscrowd")})
    path.write_text(json.dumps(table))
    source = load_objects(path, images=tmp_path / "coco" / "images")
    check(source)
    assert (source[0].image_id, source[0].objects[0].ann_id) == ("1", "10")
    change(path, lambda table: table["images"][0].update(height=HEIGHT + 0.5))
    with pytest.raises(ValueError, match=r"must have height and width in pixels, got 60\.5"):
        load_objects(path, images=tmp_path / "coco" / "images")[0]
    change(
        write_labelme(tmp_path / "labelme") / "a.json",
        lambda table: table.update(imageHeight=float(HEIGHT), imageWidth=float(WIDTH)),
    )
    check(load_objects(tmp_path / "labelme"))
    row = hub_row()
    row["objects"] = [{**thing, "class": float(CLASSES.index(thing["class"]))} for thing in row["objects"]]
    check(HubObjects(Dataset.from_list([row]), names=CLASSES))


def turn(path, orientation: int = 6, quality: int = 95) -> None:
    """Store an image turned, with the EXIF orientation that shows it as it was."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    with Image.open(path) as image:
        turned = image.transpose({6: Image.Transpose.ROTATE_90, 3: Image.Transpose.ROTATE_180}[orientation])
    turned.save(path, exif=exif, **({"quality": quality} if path.suffix == ".jpg" else {}))


def test_labels_of_upright_photographs(tmp_path):
    """Their size is only that of the image with its EXIF orientation."""
    path = write_coco(tmp_path / "coco")
    turn(tmp_path / "coco" / "images" / "001.png")
    source = load_objects(path, images=tmp_path / "coco" / "images")
    check(source)
    assert [scene.upright for scene in source] == [True, False]
    assert np.array_equal(source[0].open(), picture())
    for number, row in enumerate(dataset := expressions_dataset(source, ReferOptions(per_family=6))):
        assert np.array_equal(row["image"], picture()), number
    assert len(set(dataset["image_id"])) == 2
    turn(tmp_path / "coco" / "images" / "002.png", 3)  # nothing shows which of the two
    assert not source[1].upright
    assert source[1].describe()
    write_voc(tmp_path / "voc")
    turn(tmp_path / "voc" / "JPEGImages" / "a.jpg")
    check(load_objects(tmp_path / "voc"), ("bottle", "bottle", "dog"), loose=80)


def colour(root, text: str | None, names=("SegmentationClass", "SegmentationObject"), mode: str = "RGB"):
    """The labels of VOC in colours, with a labelmap.txt, as CVAT exports them."""
    write_voc(root)
    for name in names:
        path = root / name / "a.png"
        image = Image.open(path)
        table = np.arange(256)[:, None] * [1, 7, 3] % 256
        table[[0, 255]] = [[0, 0, 0], [224, 224, 192]]
        image.putpalette(table.astype(np.uint8).ravel().tolist())
        (image if mode == "P" else image.convert(mode)).save(path)
    if text is not None:
        (root / "labelmap.txt").write_text(text)
    return root


LABELMAP = "# label:color_rgb:parts:actions\ndog: 12,84,36::\nbackground:0,0,0::\nred cup:5,35,15:handle,body:\n"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_voc_masks_in_colours(tmp_path, mode):
    source = load_objects(colour(tmp_path, LABELMAP, mode=mode))
    assert source.labels == ("dog", "red cup")
    check(source, ("red cup", "red cup", "dog"), loose=80)
    left, top, right, bottom = SCENE[0][2]
    assert source[0].mask([0]).sum() == (right - left - 2) * (bottom - top - 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"a\.png .*mode must be P or L, got RGB; for colours, add a file labelmap\.txt"),
        ("cup:5,35,15::\n", r"a\.png has the colour 12,84,36, which is not in .*labelmap\.txt"),
        ("cup 5,35,15\n", r"labelmap\.txt, line 1 must have a class and its colour"),
        ("\ncup:5,35,256::\n", r"labelmap\.txt, line 2 must have a class and its colour"),
        ("".join(f"c{n}:1,{n // 256},{n % 256}::\n" for n in range(256)), "at most 254 classes"),
    ],
)
def test_voc_colours_need_names(tmp_path, text, message):
    colour(tmp_path, text)
    with pytest.raises((ValueError, OSError), match=message):
        load_objects(tmp_path)[0]


def test_labelme_paths_of_other_machines(tmp_path):
    """By their end beside a JSON file of that name, or in the folder of images, in folders as those of the files."""
    folder = write_labelme(tmp_path / "json")
    for path in ("C:\\me\\a.png", "/home/me/a.png", "../../../a.png"):
        change(folder / "a.json", lambda table, path=path: table.update(imagePath=path))
        check(load_objects(folder))
    shutil.copy(folder / "a.json", folder / "b.json")  # may be that image, or another of its name
    with pytest.raises((ValueError, OSError), match="leads out of"):
        load_objects(folder)[1]
    for name in "xy":
        (folder / name).mkdir()
        shutil.copy(folder / "a.json", folder / name / "a.json")
        (tmp_path / "images" / name).mkdir(parents=True)
        (folder / "a.png").replace(tmp_path / "images" / "a.png") if name == "x" else None
        shutil.copy(tmp_path / "images" / "a.png", tmp_path / "images" / name / "a.png")
    found = {scene.image_id: scene.image for scene in load_objects(folder, images=tmp_path / "images")}
    below = {name: str(Path(path).relative_to(tmp_path / "images")) for name, path in found.items()}
    assert below == {"a": "a.png", "b": "a.png", "x/a": "x/a.png", "y/a": "y/a.png"}


def test_yolo_an_image_has_one_label_file(tmp_path):
    root = write_folders(tmp_path, "labels/x", "labels/y")
    for folder in (tmp_path / "images", tmp_path / "images" / "x"):
        source = load_objects(root, split="x", images=folder)
        assert source[0].image == str(tmp_path / "images" / "x" / "1.png")
    with pytest.raises(ValueError, match=r"x/1\.txt and .*y/1\.txt would have the same image in .*images/x"):
        load_objects(root, images=tmp_path / "images" / "x")


@pytest.mark.parametrize("inside", [False, True])
def test_labelme_labels_of_stored_pixels(tmp_path, inside):
    """Their size is only that of the image without its EXIF orientation."""
    path = write_labelme(tmp_path) / "a.json"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture().save(tmp_path / "a.png", exif=exif)
    if inside:
        change(path, lambda t: t.update(imageData=base64.b64encode((tmp_path / "a.png").read_bytes()).decode()))
    source = load_objects(tmp_path)
    check(source)
    assert not source[0].upright
    assert np.array_equal(source[0].open(), picture())
    assert np.array_equal(expressions_dataset(source)[0]["image"], picture())
    write_references(source, tmp_path / "out", sheet=0)
    assert np.array_equal(load_data(str(tmp_path / "out"), "train")[0]["image"], picture())


def test_yolo_relative_and_linked_folders(tmp_path, monkeypatch):
    yaml = "train: images/fold1\nval: images/fold2"
    root = write_folders(tmp_path / "set", "labels/fold1", "labels/fold2", yaml=yaml)
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    for place in (Path("set"), tmp_path / "link", Path("link"), Path("link/labels"), Path("set/labels/fold2")):
        assert ids_of(place, "val") == ["fold2/1.png"]
    monkeypatch.chdir(root)
    for place in (Path(), Path("labels"), Path("labels/fold2"), Path("../link")):
        assert ids_of(place, "val") == ["fold2/1.png"]
