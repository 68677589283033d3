"""From references to batches: which pairs, in what order, the same however the work is divided."""

import copy
import pickle
from collections import defaultdict

import numpy as np
import pytest
import torch
from conftest import tiny_config, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler
from transformers import BertTokenizer, Trainer, TrainingArguments

from crossvlt_hf import CrossVLTModel, CrossVLTProcessor
from crossvlt_hf.data.masks import pack
from crossvlt_hf.data.pairs import Collator, EvaluationPairs, ReferenceSampler, ShardedBatchSampler, TrainingPairs
from crossvlt_hf.data.record import Record, build_dataset
from crossvlt_hf.data.refshapes import load_refshapes
from crossvlt_hf.training.build import refshapes_tokenizer


SIDE = 32


@pytest.fixture(scope="module")
def scenes():
    return load_refshapes("train", scenes=6, expressions=2, side=SIDE)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Five references with 1, 2, 3, 1 and 2 expressions on three images."""
    folder = tmp_path_factory.mktemp("several")
    records = []
    for number, (image, count) in enumerate(zip("aabcc", (1, 2, 3, 1, 2), strict=True)):
        path = folder / f"{image}.png"
        Image.new("RGB", (20, 10), (10 * number, 0, 0)).save(path)
        mask = pack([[[0, 0, 4 + number, 0, 4 + number, 4, 0, 4]]], 10, 20)
        texts = [f"thing {number} said {n}" for n in range(count)]
        records.append(Record(path, image, number, texts, mask, "train", "made", f"row {number}"))
    return build_dataset(records)


def test_refshapes_as_a_dataset(scenes):
    assert len(scenes) == 12
    first, second = scenes[0], scenes[1]
    assert first["image_id"] == second["image_id"] != scenes[2]["image_id"]
    assert np.array_equal(first["image"], second["image"])
    assert first["expressions"] != second["expressions"]
    assert not (first["mask"] & second["mask"]).any()
    assert first["mask"].dtype == np.uint8
    assert first["mask"].shape == (SIDE, SIDE)
    again = load_refshapes("train", scenes=6, expressions=2, side=SIDE)
    assert np.array_equal(again[5]["image"], scenes[5]["image"])
    assert scenes.select_columns(["image_id"])[0] == {"image_id": first["image_id"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scenes": 0}, "`scenes` must be an integer from 1 to 2000000, got 0"),
        ({"expressions": 4}, "`expressions` must be an integer from 1 to 3, got 4"),
        ({"family": "nonsense"}, "`family` must be one of .*got 'nonsense'"),
        ({"count": (3, 9)}, "`count` must be"),
        ({"side": 8}, "`side` must be an integer from 32 .*got 8"),
    ],
)
def test_refshapes_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        load_refshapes("train", **options)


def test_training_takes_one_expression_of_each_by_chance(several):
    pairs = TrainingPairs([several], seed=3)
    assert len(pairs) == 5
    said = set()
    for epoch in range(20):
        pairs.set_epoch(epoch)
        chosen = [pair["expression"] for pair in pairs.__getitems__(range(5))]
        assert [text.split()[1] for text in chosen] == list("01234")
        assert chosen == [pairs[index]["expression"] for index in range(5)]  # alone or together
        said.add(chosen[2])
    assert said == {f"thing 2 said {n}" for n in range(3)}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Twelve references with four expressions each, on one image."""
    path = tmp_path_factory.mktemp("said") / "image.png"
    Image.new("RGB", (20, 10)).save(path)
    texts = ["the red one", "the blue two", "the green three", "the grey four"]
    masks = [pack([[[0, 0, 8 + number, 0, 8 + number, 8, 0, 8]]], 10, 20) for number in range(12)]
    return build_dataset(
        Record(path, 1, number, texts, mask, "train", "made", f"row {number}") for number, mask in enumerate(masks)
    )


EPOCHS = 8
# Of four, how many are seen on the average when one is drawn eight times
EXPECTED = 4 * (1 - 0.75**EPOCHS)


def heard(seen: dict[int, set[str]]) -> float:
    return sum(map(len, seen.values())) / len(seen)


def listen(batches, seen):
    for pair in (pair for batch in batches for pair in batch):
        seen[pair["index"]].add(pair["expression"])


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("told", [True, False], ids=["set_epoch", "left alone"])
def test_every_epoch_chooses_anew_in_the_workers(said, workers, persistent, told):
    torch.manual_seed(0)
    pairs, seen = TrainingPairs([said], seed=1), defaultdict(set)
    loader = DataLoader(pairs, 4, num_workers=workers, persistent_workers=persistent and workers > 0, collate_fn=list)
    for epoch in range(EPOCHS):
        if told:
            pairs.set_epoch(epoch)
        listen(loader, seen)
    assert EXPECTED - 0.5 < heard(seen) <= 4
    if told:  # and as any process would
        alone = TrainingPairs([said], seed=1)
        alone.set_epoch(EPOCHS - 1)
        last = [pair["expression"] for batch in loader for pair in batch]
        assert last == [alone[index]["expression"] for index in range(len(alone))]


@pytest.mark.slow
def test_spawned_workers_follow_the_epoch(said):
    pairs, seen = TrainingPairs([said]), defaultdict(set)
    loader = DataLoader(
        pairs, 6, num_workers=1, persistent_workers=True, collate_fn=list, multiprocessing_context="spawn"
    )
    for epoch in range(EPOCHS):
        pairs.set_epoch(epoch)
        listen(loader, seen)
    assert EXPECTED - 0.5 < heard(seen) <= 4


def test_drawing_with_replacement_as_the_example_of_lora_does(said):
    """One pass of a loader, in which a reference comes many times."""
    torch.manual_seed(0)
    pairs, seen = TrainingPairs([said]), defaultdict(set)
    order = RandomSampler(pairs, replacement=True, num_samples=EPOCHS * len(pairs))
    listen(DataLoader(pairs, 4, sampler=order, collate_fn=list), seen)
    assert heard(seen) > 3
    torch.manual_seed(0)
    again = [pair["expression"] for pair in TrainingPairs([said]).__getitems__(range(12))]
    torch.manual_seed(0)
    assert again == [pair["expression"] for pair in TrainingPairs([said]).__getitems__(range(12))]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pairs: pickle.loads(pickle.dumps(pairs))])
def test_copies_have_epochs_of_their_own(said, copied):
    pairs = TrainingPairs([said])
    assert pairs.epoch is None
    pairs.set_epoch(3)
    other = copied(pairs)
    assert other.epoch == 3
    other.set_epoch(5)
    assert (pairs.epoch, other.epoch) == (3, 5)
    loader, seen = DataLoader(other, 6, num_workers=1, persistent_workers=True, collate_fn=list), defaultdict(set)
    for epoch in range(EPOCHS):
        other.set_epoch(epoch)
        listen(loader, seen)
    assert heard(seen) > 3


class Listener(CrossVLTModel):
    """Notes what it is trained on."""

    def forward(self, **inputs):
        self.heard.append({name: value.clone() for name, value in inputs.items() if name != "attention_mask"})
        return super().forward(**inputs)


@pytest.mark.parametrize("persistent", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_trainer_with_workers(said, tmp_path, persistent):
    """Of every reference other expressions, under other masks, in every epoch."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "red", "blue", "green", "grey"]
    words += ["one", "two", "three", "four"]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    model = Listener(tiny_config())
    model.heard = []
    arguments = TrainingArguments(
        output_dir=tmp_path,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=6,
        dataloader_num_workers=2,
        dataloader_persistent_workers=persistent,
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    processor = CrossVLTProcessor.from_tokenizer(tokenizer, image_size=32, max_length=8)
    collator = Collator(processor, masked_patches=0.3)
    Trainer(model, arguments, train_dataset=TrainingPairs([said]), data_collator=collator).train()
    seen, greyed = defaultdict(set), defaultdict(set)
    for batch in model.heard:
        for mask, text, pixels in zip(batch["labels"], batch["input_ids"], batch["pixel_values"], strict=True):
            reference = int((mask == 1).sum())  # no two have as many pixels
            seen[reference].add(tuple(text.tolist()))
            greyed[reference].add(tuple((pixels == 0).all(0).flatten().tolist()))
    assert len(seen) == len(said)
    assert EXPECTED - 0.5 < heard(seen) <= 4
    assert all(len(patterns) == EPOCHS for patterns in greyed.values())


def test_training_joins_datasets(several, scenes):
    pairs = TrainingPairs([several, scenes])
    assert len(pairs) == 17
    mixed = pairs.__getitems__([16, 0, 5, 4])
    assert [pair["index"] for pair in mixed] == [16, 0, 5, 4]
    assert mixed[1]["expression"] == "thing 0 said 0"
    assert mixed[2]["expression"] == scenes[0]["expressions"][0]
    assert mixed[0]["image"].size == (SIDE, SIDE)


def test_evaluation_takes_every_expression_in_order(several):
    pairs = EvaluationPairs(several)
    assert len(pairs) == 9
    expected = [f"thing {n} said {k}" for n, count in enumerate((1, 2, 3, 1, 2)) for k in range(count)]
    assert [pair["expression"] for pair in pairs.__getitems__(range(9))] == expected
    assert pairs[4]["expression"] == expected[4]
    assert pairs[0]["distractor"] is None


def test_distractors_are_of_the_same_image(several):
    pairs = EvaluationPairs(several, distractors=True)
    widths = [None if pair["distractor"] is None else int(pair["distractor"].any(0).sum()) for pair in pairs]
    # references 0-1 and 3-4 share an image; 2 is alone
    assert widths == [5, 4, 4, None, None, None, 8, 7, 7]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 4), st.integers(0, 3))
def test_sampler_keeps_images_together(images, group, epoch):
    class Fake:
        def __init__(self, values):
            self.values = values

        def __len__(self):
            return len(self.values)

        def with_format(self, _):
            return {"image_id": list(map(str, self.values))}

    sampler = ReferenceSampler([Fake(images)], group=group, seed=1)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(images)))
    assert order == list(sampler)
    if group > 1:
        runs = np.split(np.asarray(images)[order], np.flatnonzero(np.diff(np.asarray(images)[order])) + 1)
        for image in set(images):
            # no more pieces than whole groups and one rest
            assert sum(run[0] == image for run in runs) <= -(-images.count(image) // group)


def test_epochs_differ(scenes):
    sampler = ReferenceSampler([scenes], group=2)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_read_the_same_steps(scenes, processes):
    sampler = ReferenceSampler([scenes], group=2)
    single = list(ShardedBatchSampler(sampler, 6 // processes * processes))
    shares = [list(ShardedBatchSampler(sampler, 6 // processes, p, processes)) for p in range(processes)]
    joined = [[index for share in shares for index in share[step]] for step in range(len(shares[0]))]
    assert joined == single
    later = list(ShardedBatchSampler(sampler, 6 // processes, 0, processes, start=1))
    assert later == shares[0][1:]


def test_pictures_with_an_orientation_stay_as_their_masks_are(tmp_path):
    """As some of COCO's are: the annotations are of the pixels as they are stored."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (20, 10), "red").save(tmp_path / "turned.jpg", exif=exif)
    mask = pack([[[0, 0, 8, 0, 8, 8, 0, 8]]], 10, 20)
    record = Record(tmp_path / "turned.jpg", 1, 1, ["the red circle"], mask, "train", "made", "row 1")
    (pair,) = TrainingPairs([build_dataset([record])]).__getitems__([0])
    assert pair["image"].size == (20, 10)
    processor = CrossVLTProcessor.from_tokenizer(refshapes_tokenizer(), image_size=(10, 20), max_length=16)
    assert Collator(processor)([pair])["labels"].sum().item() == pair["mask"].sum()


def test_collator_masks_words_and_patches(scenes):
    processor = CrossVLTProcessor.from_tokenizer(refshapes_tokenizer(), image_size=SIDE, max_length=16)
    pairs = TrainingPairs([scenes]).__getitems__(range(8))
    plain = Collator(processor)(pairs)
    assert set(plain) == {"pixel_values", "input_ids", "attention_mask", "token_type_ids", "labels"}
    assert plain["labels"].sum().item() == sum(int(pair["mask"].sum()) for pair in pairs)
    collator = Collator(processor, masked_words=0.5, masked_patches=0.25, seed=1)
    masked, again = collator(pairs), collator(pairs)
    assert all(torch.equal(masked[name], again[name]) for name in masked)
    changed = masked["input_ids"] != plain["input_ids"]
    assert (masked["input_ids"][changed] == processor.tokenizer.mask_token_id).all()
    assert not changed[:, 0].any()  # [CLS]
    assert not changed[plain["attention_mask"] == 0].any()
    words = (plain["attention_mask"].sum() - 2 * 8).item()
    assert 0.25 * words < changed.sum().item() < 0.75 * words
    grey = (masked["pixel_values"] == 0).all(1).float().mean().item()
    assert 0.15 < grey < 0.35
    assert torch.equal(masked["labels"], plain["labels"])
    other = Collator(processor, masked_words=0.5, seed=1, epoch=1)(pairs)
    assert not torch.equal(other["input_ids"], masked["input_ids"])


def test_collator_gives_an_image_once_to_neighbours_that_share_it():
    """And the model the same losses and gradients as with an image for each pair."""
    scenes = load_refshapes("train", scenes=4, expressions=2, side=SIDE, seed=3)
    processor = CrossVLTProcessor.from_tokenizer(refshapes_tokenizer(), image_size=SIDE, max_length=16)
    pairs = TrainingPairs([scenes]).__getitems__([0, 1, 2, 5, 4, 7, 6, 3])
    plain, shared = Collator(processor)(pairs), Collator(processor, share_images=True)(pairs)
    counts = shared.pop("expressions_per_image")
    assert counts.tolist() == [2, 1, 2, 2, 1]
    repeated = shared["pixel_values"].repeat_interleave(counts, 0)
    assert torch.equal(repeated, plain["pixel_values"])
    assert all(torch.equal(shared[name], plain[name]) for name in plain if name != "pixel_values")
    config = tiny_config()
    config.text_config.vocab_size = len(processor.tokenizer)
    model = CrossVLTModel(config).double().train()
    double = [batch | {"pixel_values": batch["pixel_values"].double()} for batch in (plain, shared)]
    gradients = []
    for batch in (double[0], double[1] | {"expressions_per_image": counts}):
        model.zero_grad()
        model(**batch).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    for each, other in zip(*gradients, strict=True):
        torch.testing.assert_close(each, other, rtol=0, atol=1e-10)


def test_images_are_not_shared_by_name_alone_nor_if_patches_are_masked():
    """Where ids repeat, as in joined data sets without names, and where pairs get other patches."""
    processor = CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), image_size=8, max_length=9)
    row = {"expression": "the cup", "mask": np.zeros((2, 2), np.uint8), "dataset": "made", "image_id": "1", "index": 0}
    red, green = ({**row, "image": Image.new("RGB", (2, 2), colour)} for colour in ("red", "green"))
    named = {**red, "image_id": "2"}
    for pairs, images in (([red, red], 1), ([red, green, red], 3), ([red, named], 2), ([red] * 3 + [green], 2)):
        assert len(Collator(processor, share_images=True)(pairs)["pixel_values"]) == images
        assert len(Collator(processor)(pairs)["pixel_values"]) == len(pairs)
        masked = Collator(processor, masked_patches=0.5, share_images=True)(pairs)
        assert len(masked["pixel_values"]) == len(masked["labels"]) == len(pairs)
    words = Collator(processor, masked_words=0.5, share_images=True)([red, red])
    assert len(words["pixel_values"]) == 1
    assert len(words["input_ids"]) == 2


@pytest.mark.parametrize("ignore_index", ["auto", None, 128])
def test_what_rows_ignore_stays_ignored_in_every_batch(ignore_index):
    """Rows have 255 for it, whatever else is in the batch, and whatever the files had."""
    masks = [np.array([[0, 255], [0, 0]], np.uint8), np.array([[0, 1], [1, 255]], np.uint8)]
    pairs = [{"image": Image.new("RGB", (2, 2)), "expression": "the cup", "mask": mask} for mask in masks]
    processor = CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), image_size=2, max_length=9)
    processor.ignore_index = ignore_index
    for chosen in ([0], [1], [0, 1], [0, 0]):
        labels = Collator(processor)([pairs[number] for number in chosen])["labels"].numpy()
        assert (labels == np.stack([masks[number] for number in chosen])).all()
