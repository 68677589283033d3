"""Data sets of the Hub, as parquet files of their exact columns in a local folder."""

import json
from io import BytesIO

import datasets
import fabricate
import numpy as np
import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from fabricate import box, photo, sentence
from PIL import Image

from crossvlt_hf.data import load_data
from crossvlt_hf.data.masks import decode_segmentation, encode_mask
from crossvlt_hf.data.sources import hub
from crossvlt_hf.data.sources.hub import load_jxu124, load_refcoco_m


HEIGHT, WIDTH = 24, 32
POLYGONS = [box(2, 2, 6, 4), box(5, 3, 6, 6)]

JXU124_FEATURES = Features(
    {
        "sent_ids": List(Value("int64")),
        "file_name": Value("string"),
        "ann_id": Value("int64"),
        "ref_id": Value("int64"),
        "image_id": Value("int64"),
        "split": Value("string"),
        "sentences": List(
            {
                "raw": Value("string"),
                "sent": Value("string"),
                "sent_id": Value("int64"),
                "tokens": List(Value("string")),
            }
        ),
        "category_id": Value("int64"),
        "raw_anns": Value("string"),
        "raw_image_info": Value("string"),
        "raw_sentences": Value("string"),
        "image_path": Value("string"),
        "bbox": List(Value("float64")),
        "captions": List(Value("string")),
        "global_image_id": Value("string"),
        "anns_id": Value("string"),
    }
)
REFCOCO_M_FEATURES = Features(
    {
        "image": ImageFeature(),
        "image_id": Value("int64"),
        "file_name": Value("string"),
        "samples": List(
            {
                "id": Value("int64"),
                "image_id": Value("int64"),
                "category": Value("string"),
                "supercategory": Value("string"),
                "label": Value("string"),
                "sentences": List(Value("string")),
                "bbox": List(Value("float32")),
                "mask": {"counts": Value("string"), "size": List(Value("int32"))},
            }
        ),
    }
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def jxu124_row(ref_id: int, image_id: int, split: str, **changes) -> dict:
    name = f"COCO_train2014_{image_id:012d}.jpg"
    annotation = {"id": 100 + ref_id, "image_id": image_id, "bbox": [2, 2, 9, 7], "area": 1, "iscrowd": 0}
    row = {
        "sent_ids": [ref_id],
        "file_name": name.replace(".jpg", f"_{ref_id}.jpg"),
        "ann_id": 100 + ref_id,
        "ref_id": ref_id,
        "image_id": image_id,
        "split": split,
        "sentences": [sentence("The red Cup!", ref_id)],
        "category_id": 1,
        "raw_anns": json.dumps({**annotation, "segmentation": POLYGONS}),
        "raw_image_info": json.dumps({"id": image_id, "file_name": name, "height": HEIGHT, "width": WIDTH}),
        "raw_sentences": "[]",
        "image_path": f"coco/train2014/{name}",
        "bbox": [2.0, 2.0, 11.0, 9.0],
        "captions": ["a cup"],
        "global_image_id": f"coco.{image_id}",
        "anns_id": str(100 + ref_id),
    }
    return {**row, **changes}


def write_hub(folder, features, **splits):
    """A local copy of a data set, with a parquet file for each split."""
    (folder / "data").mkdir(parents=True)
    for split, rows in splits.items():
        columns = {name: [row[name] for row in rows] for name in features}
        dataset = Dataset.from_dict(columns, features=features)
        dataset.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return folder


def write_images(folder, *ids):
    folder.mkdir(parents=True)
    for image_id in ids:
        Image.fromarray(photo(seed=image_id)).save(folder / f"COCO_train2014_{image_id:012d}.jpg")


@pytest.fixture
def jxu124(tmp_path):
    splits = {"train": "train", "validation": "val", "test": "testA", "testB": "testB"}
    rows = {name: [jxu124_row(number, 9, split)] for number, (name, split) in enumerate(splits.items())}
    return write_hub(tmp_path / "jxu124", JXU124_FEATURES, **rows)


@pytest.mark.parametrize("folder", ["coco/train2014", fabricate.COCO_IMAGES, "train2014"])
def test_jxu124(tmp_path, jxu124, folder):
    write_images(tmp_path / "root" / folder, 9)
    dataset = load_data("jxu124/refcoco", "val", root=tmp_path / "root", path=jxu124, text="sent", merge="reference")
    row = dataset[0]
    assert len(dataset) == 1
    assert row["image"].size == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(row["mask"], decode_segmentation(POLYGONS, HEIGHT, WIDTH, "reference"))
    assert row["expressions"] == ["the red cup"]
    assert (row["ref_id"], row["image_id"], row["ann_ids"]) == ("1", "9", ["101"])
    assert (row["split"], row["dataset"], row["has_target"]) == ("val", "jxu124/refcoco", True)


def test_names_of_splits(tmp_path, jxu124):
    write_images(tmp_path / "images", 9)

    def split_of(name, split):
        return load_jxu124(name, split, root=tmp_path, images=tmp_path / "images", path=jxu124)[0]["split"]

    named = ("train", "val", "validation", "test", "testA", "testB")
    assert [split_of("jxu124/refcocoplus", split) for split in named] == [
        "train",
        "val",
        "val",
        "testA",
        "testA",
        "testB",
    ]
    with pytest.raises(ValueError, match="splits of jxu124/refcocog: train, validation, test; got 'testA'"):
        split_of("jxu124/refcocog", "testA")
    with pytest.raises(ValueError, match=r"`name` must be one of .*, got 'jxu124/refclef'"):
        split_of("jxu124/refclef", "train")


def test_missing_images(tmp_path, jxu124):
    with pytest.raises(
        FileNotFoundError, match=r"COCO_train2014_000000000009.jpg, needed by jxu124/refcoco, ref 0 \(row 0"
    ):
        load_jxu124("jxu124/refcoco", "train", root=tmp_path, path=jxu124)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"raw_anns": "{"}, "must have a JSON object as `raw_anns`, got '{'"),
        ({"raw_anns": "[1]"}, r"must have a JSON object as `raw_anns`, got '\[1\]'"),
        ({"raw_anns": "{}"}, "has no `segmentation`"),
        ({"raw_image_info": None}, "must have a JSON object as `raw_image_info`, got 'None'"),
        ({"raw_image_info": '{"file_name": "a.jpg"}'}, "has no `height`"),
        ({"sentences": []}, "must have at least one expression"),
    ],
)
def test_broken_rows(tmp_path, changes, words):
    rows = [jxu124_row(0, 9, "train"), jxu124_row(1, 9, "train", **changes)]
    path = write_hub(tmp_path / "hub", JXU124_FEATURES, train=rows)
    with pytest.raises(ValueError, match=rf"jxu124/refcoco, ref 1 \(row 1\) {words}"):
        load_jxu124("jxu124/refcoco", "train", root=tmp_path, path=path)


def test_other_columns(tmp_path):
    features = Features({"text": Value("string")})
    path = write_hub(tmp_path / "hub", features, train=[{"text": "cup"}])
    with pytest.raises(ValueError, match="jxu124/refcoco must have a column 'ref_id', got text"):
        load_jxu124("jxu124/refcoco", "train", root=tmp_path, path=path)


def jpeg(seed: int, orientation: int = 1) -> dict:
    image = Image.fromarray(photo(seed=seed))
    exif = image.getexif()
    exif[0x0112] = orientation
    file = BytesIO()
    image.save(file, "jpeg", exif=exif)
    return {"bytes": file.getvalue(), "path": None}


def mask(column: int) -> np.ndarray:
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[3:9, column : column + 4] = 1
    return values


@pytest.fixture
def refcoco_m(tmp_path):
    def sample(number, image_id, **changes):
        entry = {
            "id": number,
            "image_id": image_id,
            "category": "cup",
            "supercategory": "kitchen",
            "label": "cup",
            "sentences": ["red cup", "the cup on the left"],
            "bbox": [number, 3, 4, 6],
            "mask": encode_mask(mask(number)),
        }
        return {**entry, **changes}

    rows = [
        {"image": jpeg(1), "image_id": 21, "file_name": "a.jpg", "samples": [sample(1, 21), sample(2, 21)]},
        {"image": jpeg(2, 6), "image_id": 22, "file_name": "b.jpg", "samples": [sample(3, 22, sentences=["bus"])]},
    ]
    return write_hub(tmp_path / "refcoco-m", REFCOCO_M_FEATURES, validation=rows)


def test_refcoco_m(refcoco_m):
    dataset = load_data("moondream/refcoco-m", "val", path=refcoco_m)
    assert [row["ref_id"] for row in dataset] == ["1", "2", "3"]
    assert [row["image_id"] for row in dataset] == ["21", "21", "22"]
    assert dataset.with_format(None)["num_expressions"][:] == [2, 2, 1]
    for row, number in zip(dataset, (1, 2, 3), strict=True):
        np.testing.assert_array_equal(row["mask"], mask(number))
        assert row["image"].size == (WIDTH, HEIGHT)  # also of the image with EXIF data, as COCO's masks want it
        assert row["image"].mode == "RGB"
    np.testing.assert_array_equal(
        np.asarray(dataset[1]["image"]), np.asarray(Image.open(BytesIO(jpeg(1)["bytes"])).convert("RGB"))
    )
    with pytest.raises(ValueError, match="splits of moondream/refcoco-m: validation; got 'train'"):
        load_refcoco_m("train", path=refcoco_m)


def test_refcoco_m_decodes_no_image_beforehand(refcoco_m, monkeypatch):
    def no_decoding(*args, **kwargs):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFeature, "decode_example", no_decoding)
    monkeypatch.setattr(Image, "open", no_decoding)
    assert len(load_refcoco_m(path=refcoco_m)) == 3


def test_columns_without_images_are_read_without_them(refcoco_m, monkeypatch):
    dataset = load_refcoco_m(path=refcoco_m)
    monkeypatch.setattr(Image, "open", None)
    np.testing.assert_array_equal(dataset.select_columns(["mask"])[2]["mask"], mask(3))
    assert dataset.select_columns(["expressions"])[2] == {"expressions": ["bus"]}


def test_the_names_that_are_loaded(tmp_path, monkeypatch):
    """Loading asks the Hub for nothing but the data set and the split."""
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return Dataset.from_dict({"text": ["cup"]})

    monkeypatch.setattr(hub, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match="must have a column"):
        load_data("jxu124/refcoco", "testA", root=tmp_path)
    with pytest.raises(ValueError, match="must have a column"):
        load_data("moondream/refcoco-m", "val")
    assert asked == [("jxu124/refcoco", "test"), ("moondream/refcoco-m", "validation")]
