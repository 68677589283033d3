"""Rows of all readers have columns of the same types, and stay decoded whatever `datasets` does with them."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets, interleave_datasets, load_from_disk
from datasets.table import embed_table_storage
from fabricate import box, photo, write_refer
from PIL import Image
from processes import run_python
from torch.utils.data import DataLoader

from crossvlt_hf.data import FEATURES, exclude_images, from_dataset, load_data, mask_to_image, write_folder
from crossvlt_hf.data.pairs import EvaluationPairs, TrainingPairs


HEIGHT, WIDTH = 24, 32
# What a row of a record holds, as the module of records documents it
TYPES = {
    "image": Image.Image,
    "image_id": str,
    "ref_id": str,
    "ann_ids": list,
    "expressions": list,
    "mask": np.ndarray,
    "has_target": bool,
    "family": str,
    "split": str,
    "dataset": str,
    "num_expressions": int,
}


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """Four data sets, of REFER, a folder, columns and RefShapes."""
    folder = tmp_path_factory.mktemp("readers")
    two = [box(2, 2, 6, 4), box(5, 3, 6, 6)]
    things = [(two, ["The red Cup!", "cup"]), ([box(20, 5, 8, 8)], ["bus"])]
    root = write_refer(folder / "refer", {"train": [(photo(seed=seed), things) for seed in range(2)]})
    refer = load_data("refcoco", "train", root=root, merge="reference")
    ignored = np.zeros((HEIGHT, WIDTH), np.uint8)
    ignored[3:9, 5:20], ignored[:2] = 1, 255
    own = [{"image": Image.fromarray(photo(seed=9)), "expressions": ["van"], "mask": ignored}]
    columns = {
        "image": [Image.fromarray(photo(seed=seed)) for seed in range(3)],
        "expression": ["a", "b", "c"],
        "mask": [Image.fromarray((np.eye(HEIGHT, WIDTH, seed) * 255).astype(np.uint8)) for seed in range(3)],
    }
    return {
        "refer": refer,
        "folder": load_data(str(write_folder(own, folder / "own")), "train"),
        "columns": from_dataset(Dataset.from_dict(columns).select([2, 0])),
        "refshapes": load_data("refshapes", "train", scenes=2, expressions=2, side=32),
    }


@pytest.fixture(scope="module")
def joined(readers):
    return concatenate_datasets([readers["refer"], readers["folder"], readers["columns"]])


def assert_same(dataset, rows, image="image", mask="mask"):
    """The data set has these rows, decoded."""
    assert len(dataset) == len(rows)
    for found, row in zip(dataset, rows, strict=True):
        np.testing.assert_array_equal(np.asarray(found[image]), np.asarray(row["image"]))
        np.testing.assert_array_equal(found[mask], row["mask"])
        assert found["expressions"] == row["expressions"]


@pytest.mark.parametrize("name", ["refer", "folder", "columns", "refshapes"])
def test_rows_have_the_documented_columns(readers, name):
    dataset = readers[name]
    assert dataset.column_names == list(dataset.features) == list(TYPES) == list(FEATURES)
    for row in dataset:
        assert {key: type(value) for key, value in row.items() if key not in ("image", "mask")} == {
            key: kind for key, kind in TYPES.items() if key not in ("image", "mask")
        }
        assert (row["image"].mode, row["mask"].dtype) == ("RGB", np.uint8)
        assert row["mask"].shape == (row["image"].height, row["image"].width)
        assert set(np.unique(row["mask"])) <= {0, 1, 255}
        assert row["num_expressions"] == len(row["expressions"])
    if name != "refshapes":  # whose texts are drawn too
        assert dataset.features == FEATURES


def test_masks_as_pictures(readers, tmp_path):
    mask = readers["folder"][0]["mask"]
    mask_to_image(mask).save(tmp_path / "mask.png")
    shown = np.asarray(Image.open(tmp_path / "mask.png"))
    np.testing.assert_array_equal(shown, np.select([mask == 1, mask == 255], [255, 128], 0))
    np.testing.assert_array_equal(np.asarray(mask_to_image(mask == 1)), (mask == 1) * np.uint8(255))


def test_joining(readers, joined):
    rows = [row for name in ("refer", "folder", "columns") for row in readers[name]]
    assert joined.features == FEATURES
    assert_same(joined, rows)
    mixed = interleave_datasets([readers["refer"], readers["columns"]])
    assert_same(mixed, [row for pair in zip(readers["refer"], readers["columns"], strict=False) for row in pair])
    assert len(exclude_images(joined, readers["folder"])) == len(rows) - 1


def test_refshapes_joins_its_own_kind_and_after_drawing_any(readers):
    other = load_data("refshapes", "validation", scenes=1, side=48)
    drawn = concatenate_datasets([readers["refshapes"], other])
    assert_same(drawn, [*readers["refshapes"], *other])
    for parts in ([readers["refshapes"], readers["refer"]], [readers["refer"], readers["refshapes"]]):
        with pytest.raises(ValueError, match=r"aligned.*a column of RefShapes.*`dataset.map\(dict, features="):
            concatenate_datasets(parts)
    stored = other.map(dict, features=FEATURES)
    assert_same(concatenate_datasets([stored, readers["refer"]]), [*other, *readers["refer"]])


@pytest.mark.parametrize("name", ["refer", "folder", "columns", "refshapes"])
def test_rows_make_a_data_set_again(readers, name, tmp_path):
    dataset = readers[name]
    rows = list(dataset)
    for again in (
        Dataset.from_list(rows, features=dataset.features),
        Dataset.from_dict(dataset[:], features=dataset.features),
        Dataset.from_generator(lambda: iter(rows), features=dataset.features, cache_dir=str(tmp_path)),
        Dataset.from_list(rows, features=FEATURES),
    ):
        assert_same(again, rows)
        if again.features == dataset.features:
            assert_same(concatenate_datasets([dataset, again]), [*rows, *rows])
    drawn = Dataset.from_list(rows, features=FEATURES)
    assert_same(concatenate_datasets([drawn, readers["refer"]]), [*rows, *readers["refer"]])


def test_choosing_rows_and_columns(joined):
    rows = list(joined)
    assert_same(joined.select([5, 1]), [rows[5], rows[1]])
    assert_same(joined.filter(lambda row: row["mask"][0, 0] == 255), [rows[4]])
    parts = joined.train_test_split(test_size=2, seed=0)
    assert sorted(row["expressions"] for part in parts.values() for row in part) == sorted(
        row["expressions"] for row in rows
    )
    for changed in (joined.shuffle(seed=1), joined.sort("ref_id"), joined.shard(2, 0), parts["test"]):
        assert changed[0]["mask"].shape == (HEIGHT, WIDTH)
        assert changed[0]["image"].size == (WIDTH, HEIGHT)
    assert joined.select_columns(["ref_id"])[0] == {"ref_id": "0"}
    assert joined["mask"][4][0, 0] == 255
    assert joined[1:3]["image"][0].size == (WIDTH, HEIGHT)


def test_renaming(joined):
    renamed = joined.rename_column("image", "picture").rename_columns({"mask": "truth"})
    assert_same(renamed, list(joined), "picture", "truth")


def halved(row):
    return {**row, "image": row["image"].resize((WIDTH // 2, HEIGHT // 2)), "mask": row["mask"][::2, ::2]}


def batch_halved(batch):
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    changed = [halved(row) for row in rows]
    return {name: [row[name] for row in changed] for name in batch}


@pytest.mark.parametrize("name", ["joined", "refshapes"])
@pytest.mark.parametrize(
    ("function", "options"), [(halved, {}), (batch_halved, {"batched": True}), (halved, {"num_proc": 2})]
)
def test_mapping(readers, joined, name, function, options):
    dataset = joined if name == "joined" else readers[name]
    assert_same(dataset.map(function, **options), [halved(row) for row in dataset])
    counted = dataset.map(lambda row: {"words": len(row["expressions"][0].split())})
    assert_same(counted, list(dataset))
    assert counted[0]["words"] == len(dataset[0]["expressions"][0].split())


def test_saving(readers, joined, tmp_path):
    for name, dataset in {"joined": joined, "refshapes": readers["refshapes"]}.items():
        dataset.save_to_disk(tmp_path / name)
        assert_same(load_from_disk(str(tmp_path / name)), list(dataset))
        assert_same(pickle.loads(pickle.dumps(dataset)), list(dataset))


@pytest.mark.slow
def test_saved_rows_are_read_by_a_process_that_knows_nothing_but_the_types(readers, joined, tmp_path):
    saved = {"joined": joined, "refshapes": readers["refshapes"]}
    for name, dataset in saved.items():
        dataset.save_to_disk(tmp_path / name)
    script = (
        "import sys, datasets, crossvlt_hf.data.refshapes.dataset\n"
        "for path in sys.argv[1:]:\n"
        "    print(sum(int((row['mask'] == 1).sum()) for row in datasets.load_from_disk(path)))"
    )
    done = run_python("-c", script, *(tmp_path / name for name in saved), plain=True)
    assert done.stdout.split() == [
        str(sum(int((row["mask"] == 1).sum()) for row in dataset)) for dataset in saved.values()
    ]


def embedded(dataset, folder):
    """A data set as `push_to_hub` embeds its files, which `to_parquet` does not."""
    whole = dataset.with_format("arrow").map(embed_table_storage, batched=True).with_format(None)
    whole.to_parquet(folder / "rows.parquet")
    return Dataset.from_parquet(str(folder / "rows.parquet"), cache_dir=str(folder / "cache"))


def saved(dataset, folder):
    dataset.save_to_disk(folder / "saved")
    return load_from_disk(str(folder / "saved"))


def masks_of_all_forms():
    """Masks as they may be in files, by `ignore_index`: with ignored pixels, only such, of 0 and 255, and black."""
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[3:9, 5:20] = 1
    ignored, empty = values.copy(), np.zeros_like(values)
    ignored[:2] = 255
    palette = Image.fromarray(ignored)
    palette.putpalette([0, 0, 0, 128, 0, 0] + [224, 224, 192] * 254)
    return {
        "auto": [Image.fromarray(ignored), palette],
        255: [Image.fromarray(ignored), Image.fromarray(np.where(ignored == 255, 255, 0).astype(np.uint8))],
        None: [Image.fromarray(values * 255), Image.fromarray(empty)],
        7: [Image.fromarray(np.where(ignored == 255, 7, values).astype(np.uint8))],
    }


def own_folder(folder, ignore_index):
    lines = []
    for number, mask in enumerate(masks_of_all_forms()[ignore_index]):
        Image.fromarray(photo(seed=number)).save(folder / f"{number}.png")
        mask.save(folder / f"mask-{number}.png")
        lines.append({"image": f"{number}.png", "expression": "cup", "mask": f"mask-{number}.png"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return load_data(str(folder), "train", ignore_index=ignore_index, empty_masks="no_target")


def refer_folder(folder, merge):
    two = [box(2, 2, 6, 4), box(5, 3, 6, 6)]
    root = write_refer(folder, {"train": [(photo(), [(two, ["cup"])])]})
    return load_data("refcoco", "train", root=root, merge=merge)


@pytest.mark.parametrize("leave", [saved, embedded])
@pytest.mark.parametrize(
    ("load", "option"),
    [(own_folder, key) for key in masks_of_all_forms()] + [(refer_folder, key) for key in ("union", "reference")],
)
@pytest.mark.filterwarnings("ignore:.*kept without a target")
def test_data_sets_that_leave_the_machine_carry_their_files(tmp_path, load, option, leave):
    (tmp_path / "data").mkdir()
    dataset = load(tmp_path / "data", option)
    rows = list(dataset)
    whole = leave(dataset, tmp_path)
    shutil.rmtree(tmp_path / "data")
    assert_same(whole, rows)
    assert [row["has_target"] for row in whole] == [row["has_target"] for row in rows]


@pytest.mark.filterwarnings("ignore:.*kept without a target")
def test_a_broken_mask_cannot_leave_the_machine(tmp_path):
    dataset = own_folder(tmp_path, 255)
    (tmp_path / "mask-1.png").write_bytes(b"no picture")
    with pytest.raises(OSError, match=r"mask-1\.png"):
        dataset.save_to_disk(tmp_path / "saved")


def test_formats(joined):
    arrays, tensors = joined.with_format("numpy")[0], joined.with_format("torch")[0]
    np.testing.assert_array_equal(arrays["mask"], joined[0]["mask"])
    np.testing.assert_array_equal(arrays["image"], np.asarray(joined[0]["image"]))
    np.testing.assert_array_equal(tensors["mask"].numpy(), joined[0]["mask"])
    assert isinstance(tensors["image"], torch.Tensor)


def test_workers(readers, joined):
    pairs = EvaluationPairs(joined)
    loader = DataLoader(pairs, 2, num_workers=2, collate_fn=list)
    found = [pair for batch in loader for pair in batch]
    for pair, own in zip(found, (pairs[index] for index in range(len(pairs))), strict=True):
        assert pair["expression"] == own["expression"]
        np.testing.assert_array_equal(pair["mask"], own["mask"])
    assert len(TrainingPairs([joined, readers["refshapes"]])) == len(joined) + 4


def test_masks_that_a_function_of_map_spoils(joined):
    with pytest.raises(ValueError, match=r"A mask must be \(height, width\) of 0, 1 and \(ignored\) 255, got shape"):
        joined.map(lambda row: {"mask": row["mask"] * 7})
