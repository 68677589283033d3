"""Bulk labelling with Ray Data: needs `pip install "ray[data]"` (a wheel of 79 MB), and is skipped without it."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from test_examples import run
from transformers import pipeline

import crossvlt_hf  # noqa: F401  makes Transformers know the task
from crossvlt_hf.data.refshapes import make_example


pytest.importorskip("ray", reason="needs Ray: pip install 'ray[data]'")
EXPRESSIONS = ["the largest object", "the leftmost object", "the object at the bottom"]


@pytest.mark.slow  # 15 seconds, most of which Ray takes to start
def test_labels_are_those_of_the_pipeline(tmp_path, monkeypatch):
    """Images that are not square, each on two lines, and one that is missing."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    (tmp_path / "data").mkdir()
    lines = [{"image": "missing.png", "expression": "the cup"}]
    for number in range(4):
        image = Image.fromarray(make_example("test", number).scene.image).resize((120, 100))
        image.save(tmp_path / "data" / f"{number}.png")
        lines.append({"image": f"{number}.png", "expressions": EXPRESSIONS[:2]})
        lines.append({"image": f"{number}.png", "expression": EXPRESSIONS[2]})
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))

    assert "13 rows in labels" in run("batch_ray.py", "data", "--output", "labels", folder=tmp_path)
    rows = pq.read_table(tmp_path / "labels").to_pylist()
    (broken,) = (row for row in rows if row["error"])
    assert "missing.png" in broken["error"]
    assert broken["rle"] is None
    segmenter = pipeline("referring-image-segmentation")
    for number in range(4):
        path = tmp_path / "data" / f"{number}.png"
        found = [row for row in rows if row["image"] == str(path)]
        assert [row["expression"] for row in found] == EXPRESSIONS
        for row, expected in zip(found, segmenter(str(path), text=EXPRESSIONS), strict=True):
            assert row["score"] == pytest.approx(expected["score"], abs=1e-4)
            assert row["box"] == list(expected["box"].values())
            assert (coco_mask.decode(row["rle"]) == np.asarray(expected["mask"]) // 255).mean() > 0.999
