"""Metrics against hand-computed cases, and against any sharding."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossvlt_hf.metrics import Areas, ReferringSegmentationMetric, mask_areas, summarise


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
        [Areas(90, 100, 95, group="a"), Areas(1, 2, 1, group="a"), Areas(0, 10, 5, group="b")]
    )
    result = metric.compute()
    assert result["overall_iou"] == pytest.approx(91 / 112)
    assert result["mean_iou"] == pytest.approx((0.9 + 0.5 + 0) / 3)
    assert [result[f"precision@{x}"] for x in (0.5, 0.6, 0.9)] == pytest.approx([2 / 3, 1 / 3, 1 / 3])
    assert (result["target_accuracy"], result["no_target_accuracy"]) == (1.0, None)
    assert metric.compute_groups()["a"]["mean_iou"] == pytest.approx(0.7)
    assert metric.compute_groups()["b"]["samples"] == 1


def test_paper_counts_an_empty_union_as_zero():
    assert Areas(0, 0, 0).iou == 0.0


def test_gres_by_hand():
    samples = [
        Areas(0, 0, 0, has_target=False),  # rightly nothing: IoU 1, adds nothing to the areas
        Areas(0, 40, 40, has_target=False),  # wrongly something: IoU 0, adds its area to the union
        Areas(0, 60, 0, has_target=True),  # wrongly nothing: the target's area stays in the union
        Areas(30, 60, 50, has_target=True),
    ]
    result = summarise(samples)
    assert result["mean_iou"] == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    assert result["overall_iou"] == pytest.approx(30 / 160)
    assert (result["no_target_accuracy"], result["target_accuracy"]) == (0.5, 0.5)


def test_nothing_at_all():
    result = ReferringSegmentationMetric().compute()
    assert (result["samples"], result["mean_iou"], result["overall_iou"]) == (0, None, None)


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500), st.booleans()), min_size=1), st.integers(0, 99))
def test_sharding_changes_nothing(triples, seed):
    """Uneven shares in any order: the very same floats."""
    samples = [Areas(min(i, i + u), i + u, i, flag) for i, u, flag in triples]
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
    with pytest.raises(ValueError, match=r"\(2, 4, 4\) do not fit labels of shape \(2, 4, 5\)"):
        mask_areas(torch.ones(2, 4, 4), torch.ones(2, 4, 5))
    with pytest.raises(ValueError, match="2 samples, 1 flags and 2 groups"):
        ReferringSegmentationMetric().update(torch.ones(2, 4, 4), torch.ones(2, 4, 4), has_target=[True])
