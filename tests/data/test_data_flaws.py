"""Flaws of data sets: targets without a pixel, parts of polygons that are none, sentences without text."""

import json
import warnings
from contextlib import nullcontext

import datasets
import numpy as np
import pytest
from datasets import Dataset
from fabricate import ReferWriter, box, photo
from PIL import Image
from test_data_hub import JXU124_FEATURES, REFCOCO_M_FEATURES, jpeg, jxu124_row, write_hub
from test_data_refer import write_phrasecut

from crossvlt_hf.data import from_dataset, load_data
from crossvlt_hf.data.flaws import Flaws, to_polygons
from crossvlt_hf.data.masks import decode_segmentation, encode_mask


HEIGHT, WIDTH = 24, 32
GOOD = [box(2, 3, 8, 5)]
BESIDE = [box(WIDTH + 5, 3, 8, 5)]
BLACK = np.zeros((HEIGHT, WIDTH), np.uint8)
EMPTY = {
    "beside the image": BESIDE,
    "above the image": [box(3, -20, 5, 5)],
    "no area": [[4.2, 4.2, 4.2, 4.2, 4.2, 4.2]],
    "two parts beside": [*BESIDE, box(-9, -9, 3, 3)],
    "run lengths": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]},
    "compressed run lengths": encode_mask(BLACK),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_folder_of(root, *things, key="segmentation"):
    """A folder with a line for each thing: (what masks it, expressions)."""
    root.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo()).save(root / "0.png")
    lines = [{"image": "0.png", "expressions": texts, key: given} for given, texts in things]
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def read_folder(root, *things, **options):
    return load_data(str(write_folder_of(root / "own", *things)), "train", **options)


def write_refs(root, *things, folder="refcoco", refs="refs(unc).p"):
    writer = ReferWriter(root)
    image_id = writer.add_image(photo())
    for given, texts in things:
        ann_id = writer.add_object(image_id, given)
        writer.add_ref(image_id, [ann_id] if refs.startswith("grefs") else ann_id, texts, "train")
    return writer.write(folder, refs)


def read_refer(root, *things, **options):
    return load_data("refcoco", "train", root=write_refs(root, *things), **options)


def read_grefcoco(root, *things, **options):
    root = write_refs(root, *things, folder="grefcoco", refs="grefs(unc).json")
    return load_data("grefcoco", "train", root=root, **options)


def read_own_refer(root, *things, **options):
    return load_data(str(write_refs(root, *things, folder="mine") / "mine"), "train", **options)


def read_jxu124(root, *things, **options):
    rows = []
    for number, (given, texts) in enumerate(things):
        sentences = [{"raw": text, "sent": text, "sent_id": 0, "tokens": []} for text in texts]
        row = jxu124_row(number, 9, "train", sentences=sentences)
        rows.append({**row, "raw_anns": json.dumps({**json.loads(row["raw_anns"]), "segmentation": given})})
    (root / "train2014").mkdir()
    Image.fromarray(photo()).save(root / "train2014" / f"COCO_train2014_{9:012d}.jpg")
    path = write_hub(root / "hub", JXU124_FEATURES, train=rows)
    return load_data("jxu124/refcoco", "train", root=root, path=path, **options)


def read_refcoco_m(root, *things, **options):
    def sample(number, given, texts):
        given = given if isinstance(given, dict) else encode_mask(decode_segmentation(given, HEIGHT, WIDTH))
        given = given if isinstance(given["counts"], str) else encode_mask(BLACK)
        named = dict.fromkeys(("category", "supercategory", "label"), "cup")
        return {"id": number, "image_id": 1, "sentences": texts, "bbox": [0, 0, 1, 1], "mask": given, **named}

    samples = [sample(number, *thing) for number, thing in enumerate(things)]
    row = {"image": jpeg(1), "image_id": 1, "file_name": "a.jpg", "samples": samples}
    path = write_hub(root / "refcoco-m", REFCOCO_M_FEATURES, validation=[row])
    return load_data("moondream/refcoco-m", "val", path=path, **options)


def read_columns(root, *things, **options):
    kind = [list if isinstance(given, list) else dict for given, _ in things][-1]
    whole = encode_mask(decode_segmentation(GOOD, HEIGHT, WIDTH))
    masks = [given if isinstance(given, kind) else whole for given, _ in things]
    if kind is dict:
        masks = [encode_mask(decode_segmentation(given, HEIGHT, WIDTH)) for given in masks]
    columns = {
        "image": [Image.fromarray(photo())] * len(things),
        "expression": [texts for _, texts in things],
        "mask": masks,
    }
    return from_dataset(Dataset.from_dict(columns), **options)


READERS = {
    "folder": read_folder,
    "refer": read_refer,
    "grefcoco": read_grefcoco,
    "own refer": read_own_refer,
    "jxu124": read_jxu124,
    "refcoco-m": read_refcoco_m,
    "columns": read_columns,
}
TWO = (GOOD, ["the cup"])


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("empty", ["beside the image", "compressed run lengths"])
def test_a_target_without_a_pixel(tmp_path, reader, empty):
    things = TWO, (EMPTY[empty], ["the ghost"])
    (tmp_path / "error").mkdir()
    named = {"folder": "line 2", "columns": "row 1", "refcoco-m": "sample 1"}.get(reader, "ref 1")
    with pytest.raises(ValueError, match=rf"{named}.* has a target, but its mask is empty.*`empty_masks=skip`"):
        READERS[reader](tmp_path / "error", *things)
    (tmp_path / "skip").mkdir()
    with pytest.warns(UserWarning, match=rf"1 reference left out, as its mask is empty, .*{named}"):
        kept = READERS[reader](tmp_path / "skip", *things, empty_masks="skip")
    assert [row["expressions"] for row in kept] == [["the cup"]]
    (tmp_path / "none").mkdir()
    with pytest.warns(UserWarning, match="1 reference kept without a target"):
        read = READERS[reader](tmp_path / "none", *things, empty_masks="no_target")
    assert [row["has_target"] for row in read] == [True, False]
    assert [bool(row["mask"].any()) for row in read] == [True, False]
    assert read[1]["ann_ids"] == []


@pytest.mark.parametrize("empty", EMPTY)
def test_ways_to_have_no_pixel(tmp_path, empty):
    with pytest.raises(ValueError, match=r"metadata.jsonl, line 1 has a target, but its mask is empty"):
        read_folder(tmp_path, (EMPTY[empty], ["the ghost"]))


SHORT = {
    "two points": [[5, 5, 9, 9]],
    "one point": [[5, 5]],
    "no points": [[]],
    "several": [[5, 5, 9, 9], [1, 1], []],
    "points": [[[5, 5], [9, 9]]],
    "a line": [[5, 5, 10, 10, 15, 15]],
    "one point, three times": [[0, 0, 0, 0, 0, 0]],
    "beside": [[-40, 5, -35, 5, -35, 9], [200, 5, 210, 5, 210, 9]],
    "none": [],
}


@pytest.mark.parametrize("reader", ["folder", "refer", "grefcoco", "own refer", "jxu124", "columns"])
@pytest.mark.parametrize("name", SHORT)
def test_objects_without_area_are_without_a_pixel(tmp_path, reader, name):
    if reader == "columns" and name == "points":
        pytest.skip("a column has either flat polygons or lists of points")
    things = (SHORT[name], ["the ghost"]), TWO
    for option, expected in (("skip", [True]), ("no_target", [False, True])):
        (tmp_path / option).mkdir()
        with pytest.warns(UserWarning, match="as its mask is empty"):
            read = READERS[reader](tmp_path / option, *things, empty_masks=option)
        assert [row["has_target"] for row in read] == expected
        assert [bool(row["mask"].any()) for row in read] == expected
    (tmp_path / "error").mkdir()
    with pytest.raises(ValueError, match=r"at least three points|is empty|must have `mask`"):
        READERS[reader](tmp_path / "error", *things)


@pytest.mark.parametrize("name", SHORT)
def test_objects_without_area_beside_others_of_a_reference(tmp_path, name):
    writer = ReferWriter(tmp_path)
    image_id = writer.add_image(photo())
    ghost, there = writer.add_object(image_id, SHORT[name]), writer.add_object(image_id, GOOD)
    writer.add_ref(image_id, [ghost, there], ["both"], "train")
    writer.write("grefcoco", "grefs(unc).json")
    for option in ("skip", "no_target"):
        with pytest.warns(UserWarning, match="1 object of several left out, as its mask is empty"):
            (row,) = load_data("grefcoco", "train", root=tmp_path, empty_masks=option)
        assert (row["ann_ids"], row["has_target"]) == ([str(there)], True)
        np.testing.assert_array_equal(row["mask"], decode_segmentation(GOOD, HEIGHT, WIDTH))
    with pytest.raises(ValueError, match=rf"{ghost}.*(at least three points|is empty)"):
        load_data("grefcoco", "train", root=tmp_path)


NO_POLYGONS = [
    True,
    5,
    "abc",
    {},
    [True],
    [[True] * 6],
    [True] * 6,
    [None],
    [[None] * 6],
    [{}],
    ["a"],
    [GOOD[0], True],
]
NO_POLYGONS += [[[[1, 2], [3, True], [5, 6]]], [[10**400, 1, 2, 3, 4, 5]], [[float("nan")] * 6], {"size": [1, 1]}]


@pytest.mark.parametrize("given", NO_POLYGONS, ids=lambda given: str(given)[:30])
def test_what_is_no_polygon_is_refused(tmp_path, given):
    for number, option in enumerate(("error", "skip", "no_target")):
        for key in ("polygons", "segmentation"):
            folder = write_folder_of(tmp_path / f"{key}{number}", TWO, (given, ["cup"]), key=key)
            with pytest.raises(ValueError, match=rf"line 2, `{key}`: "):
                load_data(str(folder), "train", empty_masks=option)
        if given != {}:
            (tmp_path / f"refer{number}").mkdir()
            with pytest.raises(ValueError, match="ref 1"):
                read_refer(tmp_path / f"refer{number}", TWO, (given, ["cup"]), empty_masks=option)[1]


def test_parts_that_take_each_other_away(tmp_path):
    twice = [box(2, 3, 8, 5), box(2, 3, 8, 5)]
    assert read_folder(tmp_path, (twice, ["the cup"]))[0]["mask"].any()
    with pytest.raises(ValueError, match="line 1 has a target, but its mask is empty"):
        read_folder(tmp_path, (twice, ["the cup"]), merge="reference")


def test_black_mask_files(tmp_path):
    values = {"black": BLACK, "whole": BLACK + 255}
    folder = write_folder_of(tmp_path / "own", ("whole.png", ["all"]), ("black.png", ["none"]), key="mask")
    for name, mask in values.items():
        Image.fromarray(mask).save(folder / f"{name}.png")
    with pytest.raises(ValueError, match=r"metadata.jsonl, line 2 has a target, but its mask is empty"):
        load_data(str(folder), "train")
    with pytest.warns(UserWarning, match="own: 1 reference kept"):
        read = load_data(str(folder), "train", empty_masks="no_target")
    assert [row["has_target"] for row in read] == [True, False]
    line = {"image": "0.png", "expression": "no such thing", "mask": "whole.png", "no_target": True}
    (folder / "metadata.jsonl").write_text(json.dumps(line))
    with pytest.raises(ValueError, match="line 1 has no target, but its mask is not empty"):
        load_data(str(folder), "train")


@pytest.mark.parametrize("name", ["arrays", "pictures", "missing"])
def test_black_masks_of_columns(name):
    black = {"arrays": BLACK.tolist(), "pictures": Image.fromarray(BLACK), "missing": None}[name]
    whole = (BLACK + 1).tolist() if name != "pictures" else Image.fromarray(BLACK + 255)
    columns = {
        "image": [Image.fromarray(photo())] * 3,
        "expression": ["all", "none", "rest"],
        "mask": [whole, black, whole],
    }
    with pytest.raises(ValueError, match="dataset, row 1 has a target, but its mask is empty"):
        from_dataset(Dataset.from_dict(columns))
    with pytest.warns(UserWarning, match="1 reference left out"):
        kept = from_dataset(Dataset.from_dict(columns), empty_masks="skip")
    assert [row["expressions"] for row in kept] == [["all"], ["rest"]]
    assert all(row["mask"].all() for row in kept)


def test_phrases_without_a_pixel(tmp_path):
    path = write_phrasecut(tmp_path) / "refer_miniv.json"
    tasks = json.loads(path.read_text())
    tasks[1]["Polygons"] = [[[[99, 2], [120, 2], [120, 9]]]]
    tasks[2]["Polygons"] = [[[[2, 2], [8, 2], [8, 6]], [[5, 5]]]]  # a part of a single point
    path.write_text(json.dumps(tasks))
    with pytest.raises(ValueError, match="task 61__1 has a target, but its mask is empty"):
        load_data("phrasecut", "miniv", root=tmp_path)
    with pytest.warns(UserWarning, match="left out") as told:
        kept = load_data("phrasecut", "miniv", root=tmp_path, empty_masks="skip")
    assert [row["ref_id"] for row in kept] == ["61__0", "62__2"]
    said = " ".join(str(each.message) for each in told)
    assert "1 reference left out" in said
    assert "1 part of a single point left out" in said
    tasks[1]["Polygons"] = [[[2, 2], [8, 2], [8, 6]]]  # one polygon, not in a list
    tasks[0]["phrase"] = "  "
    path.write_text(json.dumps(tasks))
    with pytest.warns(UserWarning, match="left out") as told:
        kept = load_data("phrasecut", "miniv", root=tmp_path, empty_sentences="skip")
    assert "1 empty sentence left out" in " ".join(str(each.message) for each in told)
    assert [row["ref_id"] for row in kept] == ["61__1", "62__2"]


SEGMENTATIONS = {
    "two points beside": ([*GOOD, [1, 2, 3, 4]], 1),
    "one point and none beside": ([[1, 2], *GOOD, []], 2),
    "one flat polygon": (GOOD[0], 0),
    "points": ([list(map(list, zip(GOOD[0][::2], GOOD[0][1::2], strict=True)))], 0),
    "one polygon of points": (list(map(list, zip(GOOD[0][::2], GOOD[0][1::2], strict=True))), 0),
}


@pytest.mark.parametrize("reader", ["folder", "refer", "grefcoco", "own refer", "jxu124"])
@pytest.mark.parametrize("name", SEGMENTATIONS)
def test_polygons_are_put_right(tmp_path, reader, name):
    given, dropped = SEGMENTATIONS[name]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        row = READERS[reader](tmp_path, (given, ["the cup"]))[0]
    np.testing.assert_array_equal(row["mask"], decode_segmentation(GOOD, HEIGHT, WIDTH))
    said = [str(each.message) for each in told if "of fewer than three points left out" in str(each.message)]
    assert [int(text.split(": ")[1].split()[0]) for text in said] == [dropped][: bool(dropped)]


@pytest.mark.parametrize("name", SEGMENTATIONS)
def test_polygons_of_columns_are_put_right(name):
    given, dropped = SEGMENTATIONS[name]
    columns = {"image": [Image.fromarray(photo())], "expression": ["cup"], "mask": [given]}
    with pytest.warns(UserWarning, match=f"{dropped} parts? of fewer") if dropped else nullcontext():
        row = from_dataset(Dataset.from_dict(columns))[0]
    np.testing.assert_array_equal(row["mask"], decode_segmentation(GOOD, HEIGHT, WIDTH))


def test_polygons_in_the_folder_of_ones_own(tmp_path):
    for number, (given, dropped) in enumerate(SEGMENTATIONS.values()):
        folder = write_folder_of(tmp_path / str(number), (given, ["cup"]), key="polygons")
        with pytest.warns(UserWarning, match=f"{dropped} parts? of fewer") if dropped else nullcontext():
            row = load_data(str(folder), "train")[0]
        np.testing.assert_array_equal(row["mask"], decode_segmentation(GOOD, HEIGHT, WIDTH))


@pytest.mark.parametrize("given", [[[1, 2, 3, 4]], [1, 2, 3, 4], [[1, 2, 3, 4, 5], *GOOD], [["a"], *GOOD]])
def test_polygons_that_cannot_be_put_right(tmp_path, given):
    with pytest.raises(ValueError, match="line 1, `segmentation`: A polygon must be"):
        read_folder(tmp_path, (given, ["cup"]))


def test_what_is_no_polygon_stays():
    run_lengths = encode_mask(BLACK)
    for given in (run_lengths, [run_lengths], None, 5, "text", []):
        assert to_polygons(given) == given


@pytest.mark.parametrize("reader", READERS)
def test_empty_sentences(tmp_path, reader):
    things = (GOOD, ["the cup", " ", ""]), (GOOD, ["\t"]), (GOOD, ["a bus"])
    (tmp_path / "error").mkdir()
    with pytest.raises(ValueError, match="must have text as expression, got ' '"):
        READERS[reader](tmp_path / "error", *things)
    (tmp_path / "skip").mkdir()
    with pytest.warns(UserWarning, match="left out") as told:
        kept = READERS[reader](tmp_path / "skip", *things, empty_sentences="skip")
    assert [row["expressions"] for row in kept] == [["the cup"], ["a bus"]]
    said = " ".join(str(each.message) for each in told)
    assert "3 empty sentences left out" in said
    assert "1 reference left out, as it has no sentence" in said


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", ["\u200b", "\x00\x1f", "\u0301", "\ufeff "])
def test_sentences_of_which_nothing_is_seen(tmp_path, reader, text):
    """They are empty, though they have characters."""
    things = (GOOD, ["the cup", text]), (GOOD, [f"{text}a bus"])
    (tmp_path / "error").mkdir()
    with pytest.raises(ValueError, match="must have text as expression"):
        READERS[reader](tmp_path / "error", *things)
    (tmp_path / "skip").mkdir()
    with pytest.warns(UserWarning, match="1 empty sentence left out"):
        kept = READERS[reader](tmp_path / "skip", *things, empty_sentences="skip")
    assert [row["expressions"] for row in kept] == [["the cup"], [f"{text}a bus".strip()]]


def test_references_of_grefcoco_without_sentences(tmp_path):
    """The published file has some."""
    with pytest.warns(
        UserWarning, match=r"grefcoco: 2 references left out, as they have no sentence, the first in .*1"
    ):
        kept = read_grefcoco(tmp_path, TWO, (GOOD, []), (GOOD, []))
    assert [row["ref_id"] for row in kept] == ["0"]
    with pytest.raises(ValueError, match="ref 1 must have at least one expression"):
        read_refer(tmp_path, TWO, (GOOD, []))


def test_references_whose_sentences_are_null(tmp_path):
    def write(name, refs):
        root = write_refs(tmp_path / name, TWO, TWO, folder=name, refs=refs)
        path = root / name / refs
        rows = json.loads(path.read_text())
        rows[1]["sentences"] = None
        path.write_text(json.dumps(rows))
        return root

    root = write("grefcoco", "grefs(unc).json")
    with pytest.warns(UserWarning, match="grefcoco: 1 reference left out, as it has no sentence, in .*ref 1"):
        assert [row["ref_id"] for row in load_data("grefcoco", "train", root=root)] == ["0"]
    root = write("refcoco", "refs(unc).json")
    with pytest.raises(ValueError, match="ref 1 must have a list as `sentences`, got 'None'"):
        load_data("refcoco", "train", root=root)
    with pytest.warns(UserWarning, match="1 reference left out, as it has no sentence"):
        assert len(load_data("refcoco", "train", root=root, empty_sentences="skip")) == 1


def test_empty_segmentations(tmp_path):
    with pytest.raises(ValueError, match="ref 1 has the ann_id 101, whose segmentation"):
        read_refer(tmp_path, TWO, ([], ["ghost"]))
    with pytest.warns(UserWarning, match="refcoco: 1 reference left out, as its mask is empty"):
        assert len(read_refer(tmp_path, TWO, ([], ["ghost"]), empty_masks="skip")) == 1
    with pytest.warns(UserWarning, match="own: 1 reference kept"):
        assert not read_folder(tmp_path, ([], ["ghost"]), empty_masks="no_target")[0]["has_target"]


def test_options():
    with pytest.raises(ValueError, match="`empty_masks` must be one of error, no_target, skip, got 'drop'"):
        Flaws("mine", empty_masks="drop")
    with pytest.raises(ValueError, match="`empty_sentences` must be one of error, skip, got 'no_target'"):
        Flaws("mine", empty_sentences="no_target")


def test_sound_data_sets_say_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert len(read_refer(tmp_path, TWO)) == 1
