"""Composed pictures: deterministic, with distractors, visible masks, and expressions that are true."""

import pickle
import re
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from fabricate_objects import hub_row
from PIL import Image

from crossvlt_hf.data.objects import (
    FAMILIES,
    Background,
    Composer,
    CutOut,
    backgrounds_of,
    cut_out,
    load_backgrounds,
    load_compositions,
    load_cutouts,
)
from crossvlt_hf.data.objects.composition import VISIBLE
from crossvlt_hf.data.objects.rows import HubObjects


COLOURS = {"cup": (200, 30, 30), "bowl": (40, 80, 200), "dog": (110, 60, 30), "couch": (240, 240, 240)}


def discs() -> list[CutOut]:
    """Three discs of each class."""
    rows, columns = np.mgrid[:40, :40] - 19.5
    inside = (rows**2 + columns**2 < 19**2).astype(np.uint8) * 255
    made = []
    for label, colour in COLOURS.items():
        for shade in (1.0, 0.8, 0.6):
            rgb = np.full((40, 40, 3), np.multiply(colour, shade), dtype=np.uint8)
            made.append(CutOut(np.dstack([rgb, inside]), label))
    return made


def test_the_same_for_the_same_seed_and_index():
    one, other = Composer(discs(), size=96, seed=3), Composer(discs(), size=96, seed=3)
    other.scene(1)
    first, again = one.scene(7), other.scene(7)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.masks, again.masks)
    assert first.classes == again.classes
    assert not np.array_equal(first.image, one.scene(8).image)
    assert not np.array_equal(first.image, one.scene(7, attempt=1).image)
    assert not np.array_equal(first.image, Composer(discs(), size=96, seed=4).scene(7).image)


def test_every_scene_has_two_of_a_class_and_masks_of_what_is_seen():
    composer = Composer(discs(), size=96, count=(2, 5))
    for index in range(25):
        scene = composer.scene(index)
        assert scene.image.shape == (96, 96, 3)
        assert scene.image.dtype == np.uint8
        assert 2 <= len(scene.classes) == len(scene.masks) <= 5
        assert max(Counter(scene.classes).values()) >= 2
        assert (scene.masks.sum(axis=0) <= 1).all()  # no pixel belongs to two
        assert (scene.masks.sum(axis=(1, 2)) >= 16).all()


def test_little_is_covered():
    """A disc keeps three quarters of the area that its own extent tells."""
    for index in range(20):
        scene = Composer(discs(), size=128, count=(5, 5)).scene(index)
        for mask in scene.masks:
            ys, xs = np.nonzero(mask)
            side = max(np.ptp(ys), np.ptp(xs)) + 1
            assert mask.sum() >= 0.75 * VISIBLE * np.pi / 4 * (side - 4) ** 2


def test_what_is_seen_on_a_background_is_not_pasted_there():
    background = Background(np.full((50, 70, 3), 90, dtype=np.uint8), frozenset({"cup", "animal"}))
    composer = Composer(discs(), [background], size=96, plain=0.0)
    seen = {label for index in range(20) for label in composer.scene(index).classes}
    assert seen == {"bowl", "couch"}


def ground(*labels) -> Background:
    return Background(np.full((50, 70, 3), 90, dtype=np.uint8), frozenset(labels))


@pytest.mark.parametrize("shown", [("cup",), ("coffee mug",), ("dog", "cup", "glass")])
def test_backgrounds_that_show_all_classes_are_refused_or_warned_of(shown):
    cups = [piece for piece in discs() if piece.label == "cup"]
    with pytest.raises(ValueError, match=r"classes of the cut-outs \(cup\).*`plain` must be above 0"):
        load_compositions(cups, [ground(*shown)] * 2, plain=0.0)
    with pytest.warns(UserWarning, match="All 2 backgrounds .* on gradients"):
        composer = Composer(cups, [ground(*shown)] * 2, size=96)
    assert composer.scene(0).classes
    assert Composer(cups, [ground(*shown), ground("dog")], size=96, plain=0.0).scene(0).classes


SCENES = {"plain": 0.0, "scenes": 48, "expressions": 2, "size": 96, "seed": 2}


@pytest.fixture(scope="module")
def pieces() -> list[CutOut]:
    return [*discs(), *(CutOut(discs()[0].pixels, label) for label in ("cat", "cat", "cow", "sheep", "person"))]


@pytest.fixture(scope="module")
def free(pieces) -> list[str]:
    """What is said above a background without labels."""
    return [row["expressions"][0] for row in load_compositions(pieces, [ground()], **SCENES)]


@pytest.mark.parametrize(
    ("shown", "denied"),
    [
        (("dog",), ("dog",)),
        (("dog", "horse"), ("dog", "animal")),
        (("couch",), ("couch", "sofa")),
        (("persons",), ("person", "people")),
        (("lion",), ("animal",)),  # not in the table: it may be one
    ],
)
def test_what_is_seen_on_a_background_is_neither_absent_nor_left_out(pieces, free, shown, denied):
    kept = load_compositions(pieces, [ground(*shown)], **SCENES)
    said = [row["expressions"][0] for row in kept if not re.search("that (is|are) not an? ", row["expressions"][0])]
    pattern = re.compile(rf"\b({'|'.join(denied)})")
    assert any(map(pattern.search, free))
    assert not [text for text in said if pattern.search(text)]


def test_images_labelled_in_part_are_no_backgrounds():
    part = {**hub_row(), "exhaustive": False}
    source = HubObjects(Dataset.from_list([part, hub_row(), part, hub_row()]), exhaustive="exhaustive")
    assert [ground.labels for ground in backgrounds_of(source)] == [{"cup", "dog"}] * 2
    assert len(backgrounds_of(source, limit=1)) == 1
    with pytest.raises(ValueError, match="must have images with all objects labelled"):
        backgrounds_of(HubObjects(Dataset.from_list([part, part]), exhaustive="exhaustive"))


def test_the_classes_of_a_background_are_described_after_the_objects():
    scene = Composer(discs(), [ground("horse", "bus")], size=96, plain=0.0).scene(0)
    assert scene.behind == ("bus", "horse")
    things = scene.describe()
    assert [thing.label for thing in things] == [*scene.classes, "bus", "horse"]
    assert [(thing.clear, thing.placed) for thing in things[-2:]] == [(False, False)] * 2
    assert all(thing.clear for thing in things[:-2])
    assert Composer(discs(), size=96).scene(0).behind == ()


@pytest.mark.parametrize("alpha", [0, 127])
def test_cutouts_without_opaque_pixels_are_refused(alpha):
    empty = CutOut(np.full((20, 20, 4), alpha, dtype=np.uint8), "bowl")
    with pytest.raises(ValueError, match=r"opaque pixels; number 12 \(bowl\) has none"):
        load_compositions([*discs(), empty])


def test_scenes_without_room_are_refused(monkeypatch):
    monkeypatch.setattr("crossvlt_hf.data.objects.composition.MOST_TRIES", 20)
    with pytest.raises(ValueError, match="`count` and `scale` must leave room"):
        Composer(discs(), size=96, count=(12, 12), scale=(0.9, 1.0)).scene(0)
    speck = np.zeros((40, 40, 4), dtype=np.uint8)
    speck[20, 20] = 255
    with pytest.raises(ValueError, match="None of 20 scenes"):
        load_compositions([CutOut(speck, "cup")], size=96)


def test_cut_out_keeps_the_object_only():
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    mask = np.zeros((60, 80), dtype=bool)
    mask[10:30, 20:70] = True
    piece = cut_out(image, mask, "cup")
    assert np.array_equal(piece.pixels[..., :3], image[10:30, 20:70])
    assert (piece.pixels[..., 3] == 255).all()
    assert max(cut_out(image, mask, "cup", most=25).pixels.shape) == 25
    assert cut_out(image, mask & False, "cup") is None


@pytest.mark.parametrize(
    "options",
    [
        *({"size": size} for size in (8, "big", 64.0)),
        *({"count": count} for count in ((1, 3), (4, 3), "x", 3, (2, 3, 4), (2.0, 3))),
        *({"scale": scale} for scale in ((0.0, 0.5), ("a", "b"), 0.5)),
        *({"seed": seed} for seed in (-1, "x")),
        *({"plain": plain} for plain in (2, "x", True)),
    ],
)
def test_bad_numbers_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"`{name}` must be .*, got {re.escape(repr(options[name]))}"):
        Composer(discs(), **options)
    with pytest.raises(ValueError, match="cut-outs"):
        Composer([])


def test_as_a_data_set_drawn_when_read():
    dataset = load_compositions(discs(), scenes=27, expressions=2, size=96, seed=1, split="validation")
    assert len(dataset) == 54
    rows = [dataset[index] for index in range(54)]
    assert {row["split"] for row in rows} == {"validation"}
    assert {row["dataset"] for row in rows} == {"compositions"}
    assert {row["family"] for row in rows} <= set(FAMILIES)
    assert len({row["family"] for row in rows}) >= 7
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        assert one["image_id"] == other["image_id"]
        assert np.array_equal(one["image"], other["image"])
        assert not (one["mask"] & other["mask"]).any()
        assert one["has_target"] == bool(one["mask"].any()) == bool(one["ann_ids"])
    again = load_compositions(discs(), scenes=27, expressions=2, size=96, seed=1)[30]
    assert again["expressions"] == rows[30]["expressions"]
    assert np.array_equal(again["mask"], rows[30]["mask"])
    assert pickle.loads(pickle.dumps(dataset))[30]["expressions"] == rows[30]["expressions"]


@pytest.mark.parametrize("options", [{"scenes": 0}, {"expressions": 4}, {"families": []}, {"families": ["colour"]}])
def test_bad_options_of_the_data_set_are_refused(options):
    with pytest.raises(ValueError, match="must"):
        load_compositions(discs(), **options)


def test_folders_of_cutouts_and_backgrounds(tmp_path):
    (tmp_path / "cups").mkdir()
    Image.fromarray(discs()[0].pixels).save(tmp_path / "cups" / "one.png")
    (piece,) = load_cutouts(tmp_path)
    assert piece.label == "cups"
    assert piece.pixels.shape[2] == 4
    (ground,) = load_backgrounds(tmp_path)
    assert ground.pixels.shape[2] == 3
    Image.new("RGB", (9, 9)).save(tmp_path / "cups" / "two.png")
    with pytest.raises(ValueError, match=r"two\.png must be transparent"):
        load_cutouts(tmp_path)
    Image.new("RGBA", (9, 9)).save(tmp_path / "cups" / "two.png")
    with pytest.raises(ValueError, match=r"two\.png is completely transparent"):
        load_cutouts(tmp_path)
    (tmp_path / "empty").mkdir()
    for load in (load_cutouts, load_backgrounds):
        with pytest.raises(ValueError, match="must contain"):
            load(tmp_path / "empty")
        with pytest.raises(FileNotFoundError):
            load(tmp_path / "nothing")
