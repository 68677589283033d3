"""One's own data: folders with metadata.jsonl, read and written, and data sets with any columns."""

import io
import json
import pickle

import numpy as np
import pytest
from datasets import Array2D, Dataset, Features, List, Value, concatenate_datasets, load_from_disk
from datasets import Image as ImageFeature
from fabricate import box, photo, write_refer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from crossvlt_hf import data
from crossvlt_hf.data import Picture, exclude_images, from_dataset, load_data, load_folder, load_refer, write_folder
from crossvlt_hf.data.masks import decode_segmentation, encode_mask
from crossvlt_hf.data.sources.folder import read_metadata


HEIGHT, WIDTH = 24, 32


def blob(seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((HEIGHT, WIDTH)) > 0.5).astype(np.uint8)


def write(folder, *rows, name="metadata.jsonl"):
    """A folder with two images, a mask, and a metadata file of these rows."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    for seed in (0, 1):
        Image.fromarray(photo(seed=seed)).save(path.parent / f"{seed}.png")
    Image.fromarray(blob() * 255).save(path.parent / "mask.png")
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return folder


def row(**changes) -> dict:
    entry = {"image": "0.png", "expression": "red cup", "mask": "mask.png", **changes}
    return {name: value for name, value in entry.items() if value is not ...}


def test_rows(tmp_path):
    folder = write(
        tmp_path / "cups",
        row(),
        "",
        row(image=..., file_name="1.png", expression=..., expressions=[" left cup ", "the cup"], family="absolute"),
        row(image_id=7, ref_id="r", split="test", dataset="other"),
    )
    dataset = load_data(str(folder), "train")
    first, second = dataset
    np.testing.assert_array_equal(np.asarray(first["image"]), photo(seed=0))
    np.testing.assert_array_equal(first["mask"], blob())
    assert {name: first[name] for name in first if name not in ("image", "mask")} == {
        "image_id": "0.png",
        "ref_id": "1",
        "ann_ids": [],
        "expressions": ["red cup"],
        "has_target": True,
        "family": "",
        "split": "train",
        "dataset": "cups",
        "num_expressions": 1,
    }
    assert (second["image_id"], second["ref_id"], second["family"]) == ("1.png", "3", "absolute")
    assert second["expressions"] == ["left cup", "the cup"]
    test = load_folder(folder, "test")[0]
    assert (test["image_id"], test["ref_id"], test["dataset"]) == ("7", "r", "other")
    assert len(load_folder(folder)) == 3


@pytest.mark.parametrize(
    ("given", "segmentation"),
    [
        ({"polygons": [box(2, 3, 8, 5)]}, [box(2, 3, 8, 5)]),
        ({"polygons": [[[2, 3], [10, 3], [10, 8], [2, 8]], box(15, 3, 5, 5)]}, [box(2, 3, 8, 5), box(15, 3, 5, 5)]),
        ({"segmentation": [box(2, 3, 8, 5)]}, [box(2, 3, 8, 5)]),
        ({"segmentation": encode_mask(blob(4))}, encode_mask(blob(4))),
        ({"segmentation": [encode_mask(blob(4))]}, encode_mask(blob(4))),
        ({"segmentation": {"size": [24, 32], "counts": [5, 7, 756]}}, {"size": [24, 32], "counts": [5, 7, 756]}),
    ],
)
def test_polygons_and_run_lengths(tmp_path, given, segmentation):
    folder = write(tmp_path, row(mask=..., **given))
    np.testing.assert_array_equal(
        load_folder(folder, "train")[0]["mask"], decode_segmentation(segmentation, HEIGHT, WIDTH)
    )


def test_rows_without_target(tmp_path):
    folder = write(
        tmp_path,
        row(mask=..., no_target=True),
        row(mask=..., has_target=False, polygons=[]),
        row(mask=None, no_target=True, has_target=False),
        row(no_target=False),
    )
    dataset = load_folder(folder)
    assert [each["has_target"] for each in dataset] == [False, False, False, True]
    assert all(each["mask"].shape == (HEIGHT, WIDTH) for each in dataset)
    assert [bool(each["mask"].any()) for each in dataset] == [False, False, False, True]


def test_a_folder_for_each_split(tmp_path):
    write(tmp_path, row(), name="train/metadata.jsonl")
    write(tmp_path, row(expression="bus"), row(split="validation"), name="validation/metadata.jsonl")
    assert load_folder(tmp_path, "train")[0]["image_id"] == "train/0.png"
    validation = load_folder(tmp_path, "val")
    assert [each["split"] for each in validation] == ["validation", "validation"]
    assert [each["image_id"] for each in validation] == ["validation/0.png"] * 2
    assert len(load_folder(tmp_path)) == 3
    with pytest.raises(ValueError, match=r"`split` must be one of .*: train, validation; got 'test'"):
        load_folder(tmp_path, "test")
    write(tmp_path, row(split="train"), name="test/metadata.jsonl")
    with pytest.raises(ValueError, match=r"metadata.jsonl, line 1 has the split 'train', but is in the folder 'test'"):
        load_folder(tmp_path, "test")
    write(tmp_path, row())
    with pytest.raises(
        ValueError,
        match=r"must have a metadata.jsonl for all splits or for each split, got both \(in test, train, validation",
    ):
        load_folder(tmp_path, "train")


def test_rows_without_split_are_not_for_testing(tmp_path):
    folder = write(tmp_path, row())
    with pytest.raises(ValueError, match=r"`split` must be one of .*: train; got 'test'"):
        load_folder(folder, "test")


def save_turned(path, orientation):
    image = Image.fromarray(photo())
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_images_are_upright(tmp_path, suffix):
    name = f"turned.{suffix}"
    folder = write(
        tmp_path,
        row(image=name, mask=..., polygons=[box(2, 3, 8, 20)]),
        row(image=name),
        row(image=name, mask="t.png"),
    )
    save_turned(folder / name, 6)
    Image.fromarray(blob().T * 255).save(folder / "t.png")
    dataset = load_folder(folder)
    assert dataset[0]["image"].size == (HEIGHT, WIDTH)
    assert dataset[0]["mask"].shape == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(dataset[2]["mask"], blob().T)
    with pytest.raises(ValueError, match=r"line 2: the mask is 24x32 pixels \(height x width\), the image 32x24"):
        dataset[1]


def test_sizes_come_from_the_header(tmp_path, monkeypatch):
    folder = write(tmp_path, row(mask=..., polygons=[box(2, 3, 8, 5)]), row(), row(mask=..., no_target=True))

    def no_picture(self):
        assert self.mode != "RGB", "decoded"
        return load(self)

    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", no_picture)  # a mask is, to see whether it has a pixel
    assert len(load_folder(folder)) == 3


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "must be JSON"),
        ("[" * 100_000, "must be JSON"),
        ("[1]", r"must be an object .* got '\[1\]'"),
        (row(image=...), "has no `image` or `file_name`, but `expression`, `mask`"),
        (row(image="../a.png"), "leads out of"),
        (row(image="/etc/passwd"), "leads out of"),
        (row(mask="sub/../../mask.png"), "leads out of"),
        (row(image=5), "`image`, must have the path of a file, got 5"),
        (row(image=""), "`image`, must have the path of a file, got ..\\."),
        (row(expression=..., caption="cup"), "has no `expression` or `expressions`, but `image`, `mask`, `caption`"),
        (row(expressions=["cup"]), "has both `expression` and `expressions`; remove one"),
        (row(expression=""), "must have text as expression, got ''"),
        (row(expression="\ud800"), "must have text as expression"),
        (row(expression=5), "must have text as expression, got 5"),
        (row(expression=..., expressions="cup"), "must have a list of texts as `expressions`, got 'cup'"),
        (row(expression=..., expressions=[]), "must have at least one expression"),
        (row(expression=..., expressions=["cup", " "]), "must have text as expression, got ' '"),
        (
            row(mask=..., label="x"),
            "must have `mask`, .*`segmentation` or .*, but `image`, `expression`, `label`",
        ),
        (row(mask=5), "`mask`, must have the path of a file, got 5"),
        (row(polygons=[box(1, 1, 2, 2)]), "has both `mask` and `polygons`; remove one"),
        (row(mask=..., polygons=[box(1, 1, 2, 2)], no_target=True), "has both `polygons` and no target"),
        (row(mask=..., polygons=[]), r"must have `mask`, .*: true; its `polygons` is \[\]\."),
        (row(mask=None), r"must have `mask`, .*: true; its `mask` is null\."),
        (row(mask=None, polygons=None), r": true; its `mask` is null, its `polygons` is null\."),
        (row(mask=..., polygons=5), ", `polygons`: A segmentation must be polygons or run lengths, got '5'"),
        (row(mask=..., polygons=[[1, 2]]), r", `polygons`: A polygon must be .* got \[1, 2\]"),
        (
            row(mask=..., polygons=[[0.1, 0.1, 0.9, 0.1, 0.5, 0.9]]),
            "`polygons` in pixels, got values from 0 to 1; multiply x by 32",
        ),
        (row(mask=..., segmentation={"size": [32, 24], "counts": "04"}), "`segmentation`: Run lengths have size"),
        (row(no_target="yes"), "must have true or false as `has_target` and `no_target`, got None and 'yes'"),
        (row(no_target=True, has_target=True), "must not have True for both"),
        (row(split=["train"]), r"must have text or a number as `split`, got .\['train'\]."),
        (row(family={}), "must have text or a number as `family`, got '{}'"),
    ],
)
def test_broken_rows(tmp_path, line, words):
    folder = write(tmp_path, row(), line)
    with pytest.raises(ValueError, match=rf"metadata.jsonl, line 2.*{words}"):
        load_folder(folder)


def test_missing_files(tmp_path):
    folder = write(tmp_path, row(), row(image="2.png"), row(mask="other/mask.png"))
    with pytest.raises(FileNotFoundError, match=r"no image file .*2.png, needed by .*metadata.jsonl, line 2; 1 of 2"):
        load_folder(folder)
    (folder / "metadata.jsonl").write_text(json.dumps(row(mask="other/mask.png")))
    with pytest.raises(FileNotFoundError, match=r"no mask file .*other/mask.png, needed by .*line 1"):
        load_folder(folder)
    (folder / "metadata.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="has no rows"):
        load_folder(folder)
    (folder / "metadata.jsonl").write_bytes(b'{"image": "\xff"}')
    with pytest.raises(ValueError, match=r"metadata.jsonl must be in UTF-8"):
        load_folder(folder)
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"no metadata.jsonl in .*; write one"):
        load_folder(folder)
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_folder(folder / "none")


def test_broken_images(tmp_path):
    folder = write(tmp_path, row(image="text.png", mask=..., polygons=[box(1, 1, 3, 3)]))
    (folder / "text.png").write_text("no picture")
    with pytest.raises(OSError, match=r"text.png cannot be read as an image"):
        load_folder(folder)


def test_masks_of_another_size(tmp_path):
    folder = write(tmp_path, row(mask="1.png"))
    Image.fromarray(np.ones((5, 6), np.uint8)).save(folder / "1.png")
    with pytest.raises(ValueError, match=r"line 1: the mask is 5x6 pixels \(height x width\), the image 24x32"):
        load_folder(folder)[0]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 40) | st.floats(allow_nan=True) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
KEYS = ("image", "file_name", "expression", "expressions", "mask", "polygons", "segmentation", "split", "family")
KEYS = (*KEYS, "ref_id", "image_id", "no_target", "has_target", "dataset")


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(KEYS), json_values | st.just(...), max_size=4))
def test_any_row_is_read_or_named(tmp_path, changes):
    folder = write(tmp_path, row(**changes))
    try:
        each = load_folder(folder)[0]
    except (ValueError, OSError) as error:
        message = str(error)
    else:
        message = str(folder)
        assert each["mask"].shape == (each["image"].height, each["image"].width)
        assert all(each["expressions"])
    assert str(folder) in message


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=5), json_values, max_size=3), max_size=4), ascii_only=st.booleans()
)
def test_metadata_is_read_as_written(tmp_path, rows, ascii_only):
    rows = json.loads(json.dumps(rows).replace("NaN", "0"))
    path = tmp_path / "metadata.jsonl"
    lines = (json.dumps(each, ensure_ascii=ascii_only).encode("utf-8", "replace") + b"\n" for each in rows)
    path.write_bytes(b"".join(lines))
    assert [number for number, _ in read_metadata(path)] == list(range(1, len(rows) + 1))
    if ascii_only:
        assert [each for _, each in read_metadata(path)] == rows


def decoded_rows(tmp_path):
    """Rows of a data set of REFER, two on one image."""
    two = [box(2, 2, 6, 4), box(5, 3, 6, 6)]
    things = [(two, ["red cup", "Tasse, grün"]), ([box(20, 5, 8, 8)], ["bus"])]
    root = write_refer(tmp_path / "refer", {"val": [(photo(), things), (photo(seed=1), things[:1])]})
    return load_refer("refcoco", "val", root=root)


def test_writing_and_reading(tmp_path):
    rows = decoded_rows(tmp_path)
    folder = write_folder(rows, tmp_path / "new" / "export")
    assert sorted(path.name for path in folder.iterdir()) == ["images", "masks", "metadata.jsonl"]
    assert len(list((folder / "images").iterdir())) == 2
    assert len(list((folder / "masks").iterdir())) == 3
    assert list(folder.parent.iterdir()) == [folder]
    assert "grün" in (folder / "metadata.jsonl").read_text()
    read = load_folder(folder, "val")
    assert len(read) == len(rows)
    for before, after in zip(rows, read, strict=True):
        np.testing.assert_array_equal(np.asarray(before["image"]), np.asarray(after["image"]))
        np.testing.assert_array_equal(before["mask"], after["mask"])
        for name in ("expressions", "image_id", "ref_id", "family", "has_target", "split", "dataset"):
            assert before[name] == after[name]
    with pytest.raises(ValueError, match="nothing remains"):
        exclude_images(read, rows)  # still known as COCO's


def test_writing_other_rows(tmp_path):
    ignored = blob()
    ignored[:3] = 255
    rows = [
        {"image": Image.fromarray(photo()), "expressions": ["cup"], "mask": ignored},
        {"image": Image.fromarray(photo()), "expressions": ["bus"], "mask": blob() * 0, "has_target": False},
        {"image": Image.fromarray(photo()), "expressions": ["all"], "mask": np.ones((HEIGHT, WIDTH), np.uint8)},
    ]
    (tmp_path / "empty").mkdir()
    read = load_folder(write_folder(iter(rows), tmp_path / "empty"))
    for before, after in zip(rows, read, strict=True):
        np.testing.assert_array_equal(before["mask"], after["mask"])
    assert [each["has_target"] for each in read] == [True, False, True]
    assert len({each["image_id"] for each in read}) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mask": None}, "Row 2 must have `mask`"),
        ({"expressions": [""]}, "Row 2 must have text as expression, got ''"),
        ({"mask": np.zeros((5, 5), np.uint8)}, r"The mask of Row 2 must have .* got shape \(5, 5\)"),
        ({"mask": np.full((HEIGHT, WIDTH), 7)}, "and values up to 7"),
        ({"image": Image.fromarray(photo(seed=5))}, "Row 2 must have its own image_id, got 'a'"),
    ],
)
def test_broken_rows_leave_nothing_behind(tmp_path, changes, words):
    good = {"image": Image.fromarray(photo()), "expressions": ["cup"], "mask": blob(), "image_id": "a"}
    with pytest.raises(ValueError, match=words):
        write_folder([good, {**good, **changes}], tmp_path / "export")
    assert not list(tmp_path.iterdir())


def test_writing_into_a_full_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(FileExistsError, match="is not an empty folder; give a new one"):
            write_folder([], folder)
    with pytest.raises(ValueError, match="no rows"):
        write_folder([], tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


POLYGONS = [box(2, 3, 8, 5), box(15, 3, 5, 5)]
COLUMNS = {
    "pictures": (ImageFeature(), Image.fromarray(blob() * 255), blob()),
    "arrays": (Array2D((HEIGHT, WIDTH), "uint8"), blob(), blob()),
    "lists": (List(List(Value("uint8"))), blob().tolist(), blob()),
    "polygons": (List(List(Value("float32"))), POLYGONS, decode_segmentation(POLYGONS, HEIGHT, WIDTH)),
    "run lengths": ({"size": List(Value("int32")), "counts": Value("string")}, encode_mask(blob()), blob()),
    "several": ([{"size": List(Value("int32")), "counts": Value("string")}], [encode_mask(blob())], blob()),
}


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("decode", [True, False])
def test_data_sets_with_any_columns(kind, decode):
    feature, value, expected = COLUMNS[kind]
    features = Features(
        {"photo": ImageFeature(), "said": Value("string"), "truth": feature, "photo_id": Value("int64")}
    )
    columns = {
        "photo": [Image.fromarray(photo(seed=seed)) for seed in (0, 1)],
        "said": ["cup", "bus"],
        "truth": [value] * 2,
        "photo_id": [7, 8],
    }
    source = Dataset.from_dict(columns, features=features).cast_column("photo", ImageFeature(decode=decode))
    dataset = from_dataset(
        source, image="photo", expression="said", mask="truth", image_id="photo_id", split="test", name="mine"
    )
    second = dataset[1]
    np.testing.assert_array_equal(np.asarray(second["image"]), photo(seed=1))
    np.testing.assert_array_equal(second["mask"], expected)
    np.testing.assert_array_equal(dataset.select_columns(["mask"])[1]["mask"], expected)
    assert second["expressions"] == ["bus"]
    assert (second["image_id"], second["ref_id"], second["split"], second["dataset"]) == ("8", "1", "test", "mine")
    assert len(exclude_images(dataset, dataset.select([0]))) == 1


def test_other_columns_of_a_data_set():
    columns = {
        "image": [Image.fromarray(photo())] * 2,
        "expression": [["cup", "red cup"], ["bus"]],
        "mask": [[box(2, 3, 8, 5)], None],
        "there": [True, False],
        "kind": ["attribute", None],
    }
    dataset = from_dataset(Dataset.from_dict(columns), has_target="there", family="kind")
    assert [each["expressions"] for each in dataset] == [["cup", "red cup"], ["bus"]]
    assert [each["has_target"] for each in dataset] == [True, False]
    assert [each["family"] for each in dataset] == ["attribute", ""]
    assert not dataset[1]["mask"].any()


def test_broken_data_sets():
    source = Dataset.from_dict(
        {
            "image": [Image.fromarray(photo())] * 2,
            "expression": ["cup", " "],
            "mask": [[box(2, 3, 8, 5)], [[1.0, 2.0]]],
        }
    )
    with pytest.raises(ValueError, match="must have a column 'text', got image, expression, mask"):
        from_dataset(source, expression="text")
    with pytest.raises(ValueError, match="mine, row 1 must have text as expression, got ' '"):
        from_dataset(source, name="mine")
    source = source.remove_columns("expression").add_column("expression", ["cup", "bus"])
    with pytest.raises(ValueError, match=r"mine, row 1: A polygon must be .* got \[1.0, 2.0\]"):
        from_dataset(source, name="mine")[1]


def test_public_names():
    for name in data.__all__:
        assert getattr(data, name) is not None
        assert name in dir(data)
    with pytest.raises(AttributeError, match="attribute load_refcoco"):
        data.load_refcoco  # noqa: B018


def test_rows_travel_to_other_processes(tmp_path):
    dataset = pickle.loads(pickle.dumps(load_folder(write(tmp_path, row()))))
    np.testing.assert_array_equal(dataset[0]["mask"], blob())


VOC = [0, 0, 0, 128, 0, 0, *[0] * 253 * 3, 224, 224, 192]


def palette_mask(values: np.ndarray) -> Image.Image:
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette(VOC)
    return image


def with_border(mask: np.ndarray) -> np.ndarray:
    mask = mask.copy()
    mask[:3] = 255
    return mask


def masked_folder(folder, *masks: Image.Image, has_target=None):
    targets = has_target or [True] * len(masks)
    write(folder, *[row(mask=f"mask{number}.png", has_target=has) for number, has in enumerate(targets)])
    for number, mask in enumerate(masks):
        mask.save(folder / f"mask{number}.png")
    return folder


def test_masks_with_palettes_in_a_folder_and_in_a_column(tmp_path):
    label_maps = [with_border(blob()), blob(), np.where(with_border(blob()) == 255, 255, 0)]
    pictures, has_target = [palette_mask(label_map) for label_map in label_maps], [True, True, False]
    folder = load_folder(masked_folder(tmp_path / "voc", *pictures, has_target=has_target))
    table = {"image": [Image.fromarray(photo())] * 3, "expression": ["cup"] * 3, "mask": pictures, "is": has_target}
    column = from_dataset(Dataset.from_dict(table), has_target="is")
    for expected, one, other in zip(label_maps, folder, column, strict=True):
        np.testing.assert_array_equal(one["mask"], expected)
        np.testing.assert_array_equal(other["mask"], expected)


def test_255_means_one_thing_in_a_data_set(tmp_path):
    """Ignored pixels never become an object, as they would beside no 1."""
    label_maps = [with_border(blob()), np.where(with_border(blob()) == 255, 255, 0)]
    pictures = [Image.fromarray(label_map.astype(np.uint8)) for label_map in label_maps]
    folder = masked_folder(tmp_path / "grey", *pictures)
    table = Dataset.from_dict({"image": [Image.fromarray(photo())] * 2, "expression": ["cup"] * 2, "mask": pictures})
    for load in (
        lambda **kwargs: load_data(str(folder), "train", **kwargs),
        lambda **kwargs: from_dataset(table, **kwargs),
    ):
        with pytest.raises(ValueError, match=r"255 must mean the same in all masks.*`ignore_index=255`"):
            load()
        with pytest.raises(ValueError, match=r"(line 2|row 1) has a target, but its mask is empty"):
            load(ignore_index=255)
        with pytest.warns(UserWarning, match="1 reference kept without a target, as its mask is empty"):
            ignored = load(ignore_index=255, empty_masks="no_target")
        assert ignored["has_target"] == [True, False]
        for expected, found in zip(label_maps, ignored, strict=True):
            np.testing.assert_array_equal(found["mask"], expected)
        with pytest.raises(ValueError, match=r"\[0, 1, 255\]"):
            load(ignore_index=None)[0]
        with pytest.raises(ValueError, match="`ignore_index` must be"):
            load(ignore_index="no")


def folder_of_splits(folder, whole, **masks):
    """A folder with a mask for each split, in one metadata.jsonl or one for each split."""
    lines = {}
    for split, mask in masks.items():
        place = folder if whole else folder / split
        place.mkdir(exist_ok=True, parents=True)
        Image.fromarray(photo()).save(place / "0.png")
        mask.save(place / f"{split}.png")
        lines.setdefault(place, []).append(json.dumps(row(mask=f"{split}.png", split=split)))
    for place, rows in lines.items():
        (place / "metadata.jsonl").write_text("\n".join(rows))
    return folder


@pytest.mark.parametrize("whole", [True, False], ids=["one file", "a file for each split"])
@pytest.mark.parametrize("train", ["1", "1 and 255", "palette"])
def test_255_means_one_thing_in_all_splits(tmp_path, whole, train):
    label_map = with_border(blob())
    only_ignored = np.where(label_map == 255, 255, 0).astype(np.uint8)
    of_train = {
        "1": Image.fromarray(blob()),
        "1 and 255": Image.fromarray(label_map),
        "palette": palette_mask(label_map),
    }
    folder = folder_of_splits(tmp_path, whole, train=of_train[train], test=Image.fromarray(only_ignored))
    for split in ("test", "train", None):
        with pytest.raises(ValueError, match=r"255 .*train\.png.*test\.png.*`ignore_index=255`"):
            load_folder(folder, split)
    with pytest.warns(UserWarning, match="kept without a target"):
        ignored = load_folder(folder, "test", ignore_index=255, empty_masks="no_target")
    np.testing.assert_array_equal(ignored[0]["mask"], only_ignored)
    Image.fromarray(label_map).save(next(folder.rglob("test.png")))  # a changed file is read again
    np.testing.assert_array_equal(load_folder(folder, "test")[0]["mask"], label_map)


@pytest.mark.parametrize("whole", [True, False], ids=["one file", "a file for each split"])
@pytest.mark.parametrize("flaw", ["missing", "no picture", "outside", "no path", "no JSON"])
def test_flaws_of_masks_of_other_splits_are_errors_when_these_are_loaded(tmp_path, whole, flaw):
    mask = Image.fromarray(blob())
    folder = folder_of_splits(tmp_path, whole, train=mask, test=mask)
    metadata = folder / "metadata.jsonl" if whole else folder / "test" / "metadata.jsonl"
    given = {"outside": '"../../x.png"', "no path": "7", "no JSON": "{"}
    if flaw == "missing":
        next(folder.rglob("test.png")).unlink()
    elif flaw == "no picture":
        next(folder.rglob("test.png")).write_bytes(b"no picture")
    else:
        metadata.write_text(metadata.read_text().replace('"test.png"', given[flaw]))
    if not (whole and flaw == "no JSON"):
        np.testing.assert_array_equal(load_folder(folder, "train")[0]["mask"], blob())
    with pytest.raises((OSError, ValueError), match=r"test\.png|metadata\.jsonl, line"):
        load_folder(folder, "test")[0]


ONES = {  # masks whose object is 1 and which hold no 255, though they could
    "grey": lambda: Image.fromarray(blob()),
    "RGB": lambda: Image.fromarray(np.stack([blob()] * 3, axis=-1)),
    "16 bits": lambda: Image.fromarray(blob().astype(np.uint16)),
    "VOC": lambda: palette_mask(blob()),
    "black and white palette": lambda: short_palette(blob(), [0, 0, 0, 255, 255, 255]),
}
SILENT = {  # those that say nothing of what 255 would be
    "black": lambda: Image.fromarray(blob() * 0),
    "true and false": lambda: Image.fromarray(blob() == 1),
    "alpha": lambda: Image.merge("LA", [Image.fromarray(blob() * 0 + 9), Image.fromarray(blob() * 255)]),
    "inverted palette": lambda: short_palette(1 - blob(), [255, 255, 255, 0, 0, 0]),
    "white": lambda: Image.fromarray(blob() * 255),
}


def short_palette(indices: np.ndarray, palette: list[int]) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette(palette)
    return image


def loaders(folder, *masks: Image.Image, has_target=None):
    """The same masks in a folder and in columns of pictures and of numbers, as functions of `ignore_index`."""
    masked_folder(folder, *masks, has_target=has_target)
    same = {"image": [Image.fromarray(photo())] * len(masks), "expression": ["cup"] * len(masks)}
    same["is"] = has_target or [True] * len(masks)
    pictures = Dataset.from_dict({**same, "mask": list(masks)}, features=PICTURES)
    yield lambda **options: load_data(str(folder), "train", **options)
    yield lambda **options: from_dataset(pictures, has_target="is", **options)


PICTURES = Features(
    {"image": ImageFeature(), "expression": Value("string"), "is": Value("bool"), "mask": ImageFeature()}
)


@pytest.mark.parametrize("kind", ONES)
@pytest.mark.parametrize("first", [True, False])
def test_255_alone_beside_masks_whose_object_is_1(tmp_path, kind, first):
    """It is the object, or what is ignored of a picture without one: nothing in the files says which."""
    masks = [ONES[kind](), Image.fromarray(with_border(0 * blob()))]
    masks = masks if first else masks[::-1]
    ones, white = (r"(mask0|row 0)", r"(mask1|row 1)") if first else (r"(mask1|row 1)", r"(mask0|row 0)")
    message = rf"the object is 1 in .*{ones}.*255 in \S*.*{white}.*`ignore_index=None`.*`ignore_index=255`"
    for load in loaders(tmp_path / "mixed", *masks):
        with pytest.raises(ValueError, match=message):
            load()
        for found, mask in zip(load(ignore_index=None), masks, strict=True):
            np.testing.assert_array_equal(
                found["mask"], blob() if mask is masks[not first] else with_border(0 * blob()) > 0
            )
    for load in loaders(tmp_path / "ignored", *masks, has_target=[first, not first]):
        found = load(ignore_index=255)
        np.testing.assert_array_equal(found[0 if first else 1]["mask"], blob())
        np.testing.assert_array_equal(found[1 if first else 0]["mask"], with_border(0 * blob()))


@pytest.mark.parametrize("kind", SILENT)
def test_masks_that_say_nothing_of_255(tmp_path, kind):
    masks = [SILENT[kind](), Image.fromarray(with_border(0 * blob()))]
    for load in loaders(tmp_path / "mixed", *masks, has_target=[kind != "black", True]):
        found = load()
        np.testing.assert_array_equal(found[0]["mask"], blob() * (kind != "black"))
        np.testing.assert_array_equal(found[1]["mask"], with_border(0 * blob()) > 0)


def test_joined_data_sets_keep_what_they_ignore(tmp_path):
    label_map = with_border(blob())
    masks = [np.where(label_map == 255, 255, 0), np.where(label_map == 1, 1, 0) + np.where(label_map == 255, 7, 0)]
    folders = [
        masked_folder(tmp_path / str(number), Image.fromarray(mask.astype(np.uint8)), has_target=has_target)
        for number, (mask, has_target) in enumerate(zip([*masks, masks[0]], [[True], [True], [False]], strict=True))
    ]
    parts = [load_folder(folder, ignore_index=ignore) for folder, ignore in zip(folders, (None, 7, 255), strict=True)]
    concatenate_datasets(parts).save_to_disk(tmp_path / "joined")
    joined = load_from_disk(str(tmp_path / "joined"))
    for expected, found in zip([masks[0] == 255, label_map, masks[0]], joined, strict=True):
        np.testing.assert_array_equal(found["mask"], expected)


def test_masks_that_records_hold_keep_what_they_ignore(tmp_path):
    """255 of a record is ignored, also beside no 1; in rows of numbers it is judged as in pictures."""
    only_ignored = np.where(with_border(blob()) == 255, 255, 0).astype(np.uint8)
    folder = masked_folder(tmp_path / "voc", palette_mask(only_ignored), has_target=[False])
    records = load_folder(folder)
    again = from_dataset(records, expression="expressions", has_target="has_target")
    np.testing.assert_array_equal(again[0]["mask"], only_ignored)
    np.testing.assert_array_equal(again[0]["image"], records[0]["image"])
    rows = [with_border(blob()).tolist(), only_ignored.tolist()]
    table = {"image": [Image.fromarray(photo())] * 2, "expression": ["cup"] * 2, "mask": rows}
    with pytest.raises(ValueError, match=r"255 must mean the same in all masks.*row 0.*row 1"):
        from_dataset(Dataset.from_dict(table))


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (Image.fromarray(blob() * 128), r"mask0.png: .*\[0, 128\].*`mask == 128`"),
        (Image.fromarray(photo()), "mask0.png: .*with one value per pixel"),
    ],
)
def test_masks_of_unknown_meaning_are_named(tmp_path, mask, words):
    with pytest.raises(ValueError, match=words):
        load_folder(masked_folder(tmp_path / "odd", mask))[0]


@pytest.mark.parametrize("ignore_index", ["auto", 255, None])
@pytest.mark.parametrize("name", ["mask.jpg", "mask.png"])
def test_jpeg_masks_are_refused_whatever_their_name_is(tmp_path, name, ignore_index):
    folder = write(tmp_path / "jpeg", row(mask=name))
    Image.fromarray(blob() * 255).save(folder / name, "JPEG", quality=100)
    with pytest.raises(ValueError, match=rf"line \d: .*{name}: A mask must not be a JPEG.*PNG"):
        load_data(str(folder), "train", ignore_index=ignore_index)
    pictures = {"image": [Image.fromarray(photo())], "expression": ["cup"]}
    for cell in ({"bytes": (folder / name).read_bytes(), "path": None}, {"bytes": None, "path": str(folder / name)}):
        for feature in (ImageFeature(), Picture()):
            kinds = Features({"image": ImageFeature(), "expression": Value("string"), "mask": ImageFeature()})
            table = Dataset.from_dict({**pictures, "mask": [cell]}, features=kinds).cast_column("mask", feature)
            with pytest.raises(ValueError, match=r"row 0.*A mask must not be a JPEG"):
                from_dataset(table, ignore_index=ignore_index)


BLACK_AND_WHITE = [0, 0, 0] + [255, 255, 255] * 255
ONLY_255_IS_WHITE = [0, 0, 0] * 255 + [255, 255, 255]


@pytest.mark.parametrize("palette", [BLACK_AND_WHITE, ONLY_255_IS_WHITE, None], ids=["all", "only 255", "greys"])
@pytest.mark.parametrize("other", [BLACK_AND_WHITE, VOC, "L"], ids=["black and white", "VOC", "L"])
def test_255_of_black_and_white_palettes_means_one_thing(tmp_path, palette, other):
    """Also where no single mask of many has a 1 beside it."""
    label_map = with_border(blob())
    ignored = np.where(label_map == 255, 255, 0).astype(np.uint8)
    first = Image.fromarray(label_map.astype(np.uint8))
    second = Image.fromarray(ignored)
    if other != "L":
        first.putpalette(other)
    if palette is None:
        second = second.convert("P")
    else:
        second.putpalette(palette)
    masks = [second] * 40 + [first] + [second] * 40  # one of many that has a 1
    folder = masked_folder(tmp_path / "mixed", *masks)
    table = Dataset.from_dict(
        {"image": [Image.fromarray(photo())] * 2, "expression": ["cup"] * 2, "mask": [first, second]}
    )
    for load in (
        lambda **kwargs: load_data(str(folder), "train", **kwargs),
        lambda **kwargs: from_dataset(table, **kwargs),
    ):
        with pytest.raises(ValueError, match=r"255 must mean the same in all masks.*`ignore_index=255`"):
            load()
        with pytest.warns(
            UserWarning,
            match=r"(80 references|1 reference) kept without a target, as (their masks|its mask)",
        ):
            rows = load(ignore_index=np.int64(255), empty_masks="no_target")
        found = {row["has_target"]: row["mask"] for row in rows}
        np.testing.assert_array_equal(found[True], label_map)
        np.testing.assert_array_equal(found[False], ignored)


def test_written_masks_keep_what_is_ignored(tmp_path):
    label_maps = [
        blob(),
        with_border(blob()),
        np.full((HEIGHT, WIDTH), 255, np.uint8),
        np.zeros((HEIGHT, WIDTH), np.uint8),
    ]
    common = {"image": Image.fromarray(photo()), "expressions": ["cup"]}
    rows = [{**common, "mask": label_map, "has_target": bool((label_map == 1).any())} for label_map in label_maps]
    folder = write_folder(rows, tmp_path / "new")
    for label_map, found in zip(label_maps, load_folder(folder), strict=True):
        np.testing.assert_array_equal(found["mask"], label_map)
    shown = np.asarray(Image.open(sorted((folder / "masks").iterdir())[1]).convert("L"))
    assert set(np.unique(shown)) == {0, 128, 255}  # seen in any viewer


def test_images_are_seen_on_white_and_16_bits_are_kept(tmp_path):
    folder = write(tmp_path / "odd", row(image="alpha.png"), row(image="deep.png"))
    picture = Image.fromarray(photo())
    picture.putalpha(Image.fromarray(blob() * 255))
    picture.save(folder / "alpha.png")
    Image.fromarray(photo()[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    seen, deep = (np.asarray(found["image"]) for found in load_folder(folder))
    np.testing.assert_array_equal(seen, np.where(blob()[..., None], photo(), 255))
    np.testing.assert_array_equal(deep[..., 0], photo()[..., 0])


def test_an_absolute_path_inside_the_folder(tmp_path, monkeypatch):
    folder = write(
        tmp_path / "cups", row(image=str(tmp_path / "cups" / "0.png"), mask=str(tmp_path / "cups" / "mask.png"))
    )
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    for root in (folder, "cups", "./cups/", tmp_path / "link"):
        np.testing.assert_array_equal(load_folder(root)[0]["mask"], blob())
    write(folder, row(image=str(tmp_path / "cups2" / "0.png")))
    with pytest.raises(ValueError, match="leads out of"):
        load_folder(folder)


@pytest.mark.parametrize("key", ["image", "mask"])
@pytest.mark.parametrize("name", ["Folder/caf\u00e9.png", "folder\\cafe\u0301.png", "folder/CAF\u00c9.PNG"])
def test_names_that_differ_in_case_normalisation_or_slashes(tmp_path, name, key):
    folder = write(tmp_path / "names", row(**{key: name}))
    (folder / "folder").mkdir()
    Image.fromarray(blob() * 255).save(folder / "folder" / "cafe\u0301.png")
    with pytest.raises(FileNotFoundError, match="names/folder/cafe\u0301"):
        load_folder(folder)


@pytest.mark.parametrize("form", ["AVIF", "QOI", "BLP", "PNG", "WEBP", "TIFF"])
def test_corrupt_images_of_a_column_are_named(form):
    """Pillow's readers raise any error."""
    file = io.BytesIO()
    Image.fromarray(photo()).convert("P" if form == "BLP" else "RGB").save(file, form)
    cut = file.getvalue()[: len(file.getvalue()) // 2]
    features = Features({"image": ImageFeature(), "expression": Value("string"), "mask": ImageFeature()})
    table = {"image": [{"bytes": cut, "path": None}], "expression": ["cup"], "mask": [Image.fromarray(blob() * 255)]}
    with pytest.raises(OSError, match=r"(The image in dataset, row 0|The file in a row) cannot be read as an image"):
        from_dataset(Dataset.from_dict(table, features=features))[0]
