"""Metrics against hand-computed cases, and against any sharding."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import EvalPrediction

from crossvlt_hf.metrics import (
    ReferringSegmentationMetric,
    RunningMetrics,
    Sample,
    compute_metrics,
    markdown_table,
    mask_areas,
    percent,
    preprocess_logits_for_metrics,
    summarise,
)
from crossvlt_hf.modeling_crossvlt import IGNORE_INDEX


def bits(*rows: str) -> torch.Tensor:
    return torch.tensor([[cell == "#" for cell in row] for row in rows])


def test_areas_by_hand():
    predictions = torch.stack([bits("##.", "..."), bits("...", "...")])
    labels = torch.stack([bits("#..", "#.."), bits("..#", "...")]).long()
    assert mask_areas(predictions, labels).tolist() == [[1, 3, 2], [0, 1, 0]]
    labels[0, 1, 0] = 255  # ignored: neither intersection nor union
    assert mask_areas(predictions, labels).tolist() == [[1, 2, 2], [0, 1, 0]]


def test_logits_take_the_larger():
    logits = torch.tensor([[[[0.0, 1.0, 2.0]], [[1.0, 1.0, 3.0]]]])  # a tie is background
    assert mask_areas(logits, torch.ones(1, 1, 3).long()).tolist() == [[2, 3, 2]]


def test_metrics_by_hand():
    metric = ReferringSegmentationMetric(
        [Sample(90, 100, 95, group="a"), Sample(1, 2, 1, group="a"), Sample(0, 10, 5, group="b")]
    )
    result = metric.compute()
    assert result["overall_iou"] == pytest.approx(91 / 112)
    assert result["mean_iou"] == pytest.approx((0.9 + 0.5 + 0) / 3)
    assert [result[f"precision@{x}"] for x in (0.5, 0.6, 0.9)] == pytest.approx([2 / 3, 1 / 3, 1 / 3])
    assert (result["target_accuracy"], result["no_target_accuracy"]) == (1.0, None)
    assert metric.compute_groups()["a"]["mean_iou"] == pytest.approx(0.7)
    assert metric.compute_groups()["b"]["samples"] == 1


def test_paper_counts_an_empty_union_as_zero():
    assert Sample(0, 0, 0).iou == 0.0


def test_gres_by_hand():
    samples = [
        Sample(0, 0, 0, has_target=False),  # rightly nothing: IoU 1, adds nothing to the areas
        Sample(0, 40, 40, has_target=False),  # wrongly something: IoU 0, adds its area to the union
        Sample(0, 60, 0, has_target=True),  # wrongly nothing: the target's area stays in the union
        Sample(30, 60, 50, has_target=True),
    ]
    result = summarise(samples)
    assert result["mean_iou"] == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    assert result["overall_iou"] == pytest.approx(30 / 160)
    assert (result["no_target_accuracy"], result["target_accuracy"]) == (0.5, 0.5)


def test_nothing_at_all():
    result = ReferringSegmentationMetric().compute()
    assert (result["samples"], result["mean_iou"], result["overall_iou"]) == (0, None, None)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500), st.booleans()), min_size=1), st.integers(0, 99))
def test_sharding_changes_nothing(triples, seed):
    """Uneven shares in any order: the very same floats."""
    samples = [Sample(min(i, i + u), i + u, i, flag) for i, u, flag in triples]
    shards = [ReferringSegmentationMetric() for _ in range(3)]
    shuffled = samples.copy()
    random.Random(seed).shuffle(shuffled)
    for sample in shuffled:
        shards[random.Random(sample.union).randrange(3)].samples.append(sample)
    shards[0].merge(shards[2])
    shards[0].merge(shards[1])
    assert shards[0].compute() == summarise(samples)


def test_update_in_batches_is_update_at_once():
    generator = torch.Generator().manual_seed(0)
    predictions = torch.rand(7, 5, 6, generator=generator) > 0.5
    labels = (torch.rand(7, 5, 6, generator=generator) > 0.5).long()
    groups, flags = list("abcabca"), [True, True, False, True, True, True, False]
    whole, parts = ReferringSegmentationMetric(), ReferringSegmentationMetric()
    whole.update(predictions, labels, has_target=flags, groups=groups)
    for part in (slice(0, 3), slice(3, 7)):
        parts.update(predictions[part], labels[part], has_target=flags[part], groups=groups[part])
    assert whole == parts


def test_overall_iou_is_torchmetrics_jaccard():
    torchmetrics = pytest.importorskip("torchmetrics")
    generator = torch.Generator().manual_seed(1)
    predictions = torch.rand(5, 8, 8, generator=generator) > 0.4
    labels = (torch.rand(5, 8, 8, generator=generator) > 0.6).long()
    metric = ReferringSegmentationMetric()
    metric.update(predictions, labels)
    jaccard = torchmetrics.classification.BinaryJaccardIndex()(predictions.long(), labels)
    assert metric.compute()["overall_iou"] == pytest.approx(jaccard.item(), rel=1e-6)


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"the same .*, got \(2, 4, 4\) and \(2, 4, 5\)"):
        mask_areas(torch.ones(2, 4, 4), torch.ones(2, 4, 5))
    with pytest.raises(ValueError, match="2 samples, 1 flag and 2 groups"):
        ReferringSegmentationMetric().update(torch.ones(2, 4, 4), torch.ones(2, 4, 4), has_target=[True])


# ---- against torchmetrics, and in every order


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 6))
def test_means_are_torchmetrics(seed, count):
    """Where no union is empty, both mean the same."""
    segmentation = pytest.importorskip("torchmetrics.segmentation")
    classification = pytest.importorskip("torchmetrics.classification")
    generator = torch.Generator().manual_seed(seed)
    predictions = torch.rand(count, 6, 7, generator=generator) > torch.rand(count, 1, 1, generator=generator)
    labels = (torch.rand(count, 6, 7, generator=generator) > 0.6).long()
    labels[:, 0, 0] = 1
    metric = ReferringSegmentationMetric()
    metric.update(predictions, labels)
    mean = segmentation.MeanIoU(num_classes=2, include_background=False, input_format="index")
    assert metric.compute()["mean_iou"] == pytest.approx(mean(predictions.long(), labels).item(), rel=1e-6)
    jaccard = classification.BinaryJaccardIndex(ignore_index=IGNORE_INDEX)
    labels[:, 1, :3] = IGNORE_INDEX
    ignoring = ReferringSegmentationMetric()
    ignoring.update(predictions, labels)
    assert ignoring.compute()["overall_iou"] == pytest.approx(jaccard(predictions.long(), labels).item(), rel=1e-6)


areas = st.builds(
    lambda i, p, u, flag, group, other: Sample(min(i, p), max(u, p), p, flag, group, other),
    *[st.integers(0, 10**6)] * 3,
    st.booleans(),
    st.sampled_from("abc"),
    st.none() | st.tuples(st.integers(0, 10), st.integers(10, 20)),
)


@settings(deadline=None)
@given(st.data())
def test_any_partition_in_any_order(data):
    samples = data.draw(st.lists(areas, max_size=12))
    order = data.draw(st.permutations(range(len(samples))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(samples)), max_size=4)))
    merged = ReferringSegmentationMetric()
    for start, end in zip([0, *cuts], [*cuts, len(samples)], strict=True):
        merged.merge(ReferringSegmentationMetric([samples[index] for index in order[start:end]]))
    whole = ReferringSegmentationMetric(samples)
    assert merged.compute() == whole.compute()
    assert merged.compute_groups() == whole.compute_groups()


def test_distractors_by_hand():
    samples = [
        Sample(6, 10, 8, distractor=(2, 16)),  # 0.6 and 0.125: the right object
        Sample(1, 10, 8, distractor=(4, 8)),  # 0.1 and 0.5: the wrong one
        Sample(0, 10, 0, distractor=(0, 0)),  # a tie of nothing is not right
        Sample(9, 10, 9),  # compared with none
    ]
    result = summarise(samples)
    assert result["distractor_iou"] == pytest.approx((0.125 + 0.5 + 0) / 3)
    assert result["right_object_rate"] == pytest.approx(1 / 3)
    assert "right_object_rate" not in summarise(samples[3:])


def test_gres_batch_by_hand():
    """ReLA's evaluation: a right 'nothing' adds 1 to gIoU and nothing to cIoU; a wrong one its area to the union."""
    predictions = torch.stack([bits("..", ".."), bits("##", ".."), bits("..", ".."), bits("##", "#.")])
    labels = torch.stack([bits("..", ".."), bits("..", ".."), bits("##", "##"), bits("##", "..")]).long()
    metric = ReferringSegmentationMetric()
    metric.update(predictions, labels, has_target=[False, False, True, True])
    result = metric.compute()
    assert result["mean_iou"] == pytest.approx((1 + 0 + 0 + 2 / 3) / 4)
    assert result["overall_iou"] == pytest.approx((0 + 0 + 0 + 2) / (0 + 2 + 4 + 3))
    assert result["no_target_accuracy"] == 1 / 2
    assert result["target_accuracy"] == 1 / 2
    assert result["precision@0.5"] == 2 / 4


# ---- for Trainer


LOGITS = torch.stack([torch.zeros(4, 2, 3), torch.linspace(-1, 1, 24).view(4, 2, 3)], dim=1)
LABELS = torch.tensor(
    [[[0, 0, 0], [0, 0, 0]], [[1, 0, 0], [0, 0, 1]], [[1, 1, 1], [0, 0, 255]], [[1, 1, 1], [1, 1, 1]]]
)


def test_three_numbers_for_trainer():
    expected = [[0, 0, 0], [0, 2, 0], [3, 5, 5], [6, 6, 6]]
    assert preprocess_logits_for_metrics(LOGITS, LABELS).tolist() == expected
    outputs = (LOGITS, torch.tensor(0.3), (LOGITS[:, :1],))  # with the losses and maps that forward gives with labels
    assert preprocess_logits_for_metrics(outputs, LABELS).tolist() == expected


def test_trainer_empties_masks_of_a_low_presence():
    presence = torch.tensor([3.0, -0.1, 0.0, -3.0])
    expected = [[0, 0, 0], [0, 2, 0], [3, 5, 5], [0, 6, 0]]
    assert preprocess_logits_for_metrics((LOGITS, presence), LABELS).tolist() == expected


@pytest.mark.parametrize("outputs", [(LOGITS * torch.nan,), (LOGITS, torch.tensor([0.0, torch.nan, 0.0, 0.0]))])
def test_broken_weights_are_no_empty_masks(outputs):
    with pytest.raises(ValueError, match="Logits must not be NaN"):
        preprocess_logits_for_metrics(outputs, LABELS)


@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray])
def test_trainers_metrics_are_ours(kind):
    metric = ReferringSegmentationMetric()
    metric.update(LOGITS, LABELS, has_target=[False, True, True, True])
    expected = metric.compute()
    rows = kind(preprocess_logits_for_metrics(LOGITS, LABELS))
    assert compute_metrics(EvalPrediction(rows, None)) == expected
    running = RunningMetrics()
    for _ in range(2):  # the second evaluation begins anew
        assert running(EvalPrediction(rows[:3], None), compute_result=False) == {}
        assert running(EvalPrediction(rows[3:], None), compute_result=True) == expected


def test_trainer_gets_no_none():
    rows = np.array([[3, 4, 4]])
    assert "no_target_accuracy" not in compute_metrics(EvalPrediction(rows, None))


# ---- for the library evaluate


@pytest.fixture(params=["class", "path"])
def metric(request, tmp_path, monkeypatch):
    """The metric, from its class and as `evaluate.load` finds it."""
    evaluate = pytest.importorskip("evaluate")
    from crossvlt_hf.evaluation import hf_metric as evaluate_metric

    if request.param == "class":
        return evaluate_metric.ReferringSegmentation(cache_dir=tmp_path)
    return evaluate.load(evaluate_metric.__file__, cache_dir=tmp_path)


def test_evaluate_metric(metric):
    ours = ReferringSegmentationMetric()
    ours.update(bits("##.", "..#")[None], bits("#..", "..#").long()[None])
    ours.update(bits("....", "....")[None], bits("....", "....").long()[None], has_target=[False])
    ours.update(bits("##")[None], torch.tensor([[[1, 255]]]))
    for _ in range(2):  # the second time begins anew
        metric.add_batch(
            predictions=[bits("##.", "..#").numpy(), bits("....", "....").numpy()],
            references=[bits("#..", "..#").numpy().astype(np.uint8), np.zeros((2, 4), dtype=np.uint8)],
        )
        metric.add(prediction=bits("##"), reference=torch.tensor([[1, 255]]))
        assert metric.compute(has_target=[True, False, True]) == ours.compute()


def test_evaluate_metric_at_once(metric):
    result = metric.compute(predictions=[[[1, 1], [0, 0]]], references=[[[1, 0], [0, 0]]])
    assert (result["overall_iou"], result["samples"]) == (0.5, 1)
    assert "oIoU" in metric.description
    assert "Cho" in metric.citation


def test_evaluate_metric_refuses(metric):
    with pytest.raises(ValueError, match="Predictions and labels must have the same"):
        metric.compute(predictions=[[[1, 1]]], references=[[[1, 0], [0, 0]]])


def test_a_table_says_of_how_many_samples_a_share_is():
    """Where it is not of all of them."""
    samples = [Sample(8, 10, 9, distractor=(0, 9)), Sample(1, 10, 9), Sample(0, 0, 0, has_target=False)]
    metrics = summarise(samples)
    assert (metrics["samples"], metrics["no_target_samples"], metrics["right_object_samples"]) == (3, 1, 1)
    _, _, row = markdown_table({"a": metrics}, "data").splitlines()
    shares = [
        "45.0",
        "63.3",
        *["50.0 (of 2)"] * 4,
        "0.0 (of 2)",
        "100.0 (of 1)",
        "100.0 (of 2)",
        "100.0 (of 1)",
    ]
    assert row == f"| a | 3 | {' | '.join(shares)} |"
    assert markdown_table({"a": summarise(samples[:1])}, "data").splitlines()[2].endswith("| 100.0 (of 1) |")
    compared = [replace(sample, instances_found=not sample.has_target) for sample in samples[1:]]
    assert percent(0.12345) == "12.3"
    assert markdown_table({"a": summarise(compared)}, "data").splitlines()[2].endswith(" | 50.0 |")
