"""Bulk labelling with Ray Data: needs `pip install "ray[data]"` (a wheel of 79 MB), and is skipped without it."""

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from processes import run_python
from pycocotools import mask as coco_mask
from test_examples import EXAMPLES, run
from transformers import pipeline

from crossvlt_hf import DEFAULT_CHECKPOINT
from crossvlt_hf.data.refshapes import make_example


pytest.importorskip("ray", reason="needs Ray: pip install 'ray[data]'")
psutil = pytest.importorskip("psutil")
EXPRESSIONS = ["the largest object", "the leftmost object", "the object at the bottom"]


def write_data(folder, count):
    """Images that are not square, each on two lines, and one that is missing."""
    folder.mkdir()
    lines = [{"image": "missing.png", "expression": "the cup"}]
    for number in range(count):
        image = Image.fromarray(make_example("test", number).scene.image).resize((120, 100))
        image.save(folder / f"{number}.png")
        lines.append({"image": f"{number}.png", "expressions": EXPRESSIONS[:2]})
        lines.append({"image": f"{number}.png", "expression": EXPRESSIONS[2]})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))


def check_labels(folder, data, count):
    """Each row is there once, and is what the pipeline finds."""
    rows = pq.read_table(folder).to_pylist()
    (broken,) = (row for row in rows if row["error"])
    assert "missing.png" in broken["error"]
    assert broken["rle"] is None
    pairs = Counter((row["image"], row["expression"]) for row in rows if not row["error"])
    assert pairs == Counter((str(data / f"{number}.png"), text) for number in range(count) for text in EXPRESSIONS)
    segmenter = pipeline("referring-image-segmentation")
    for number in range(count):
        path = str(data / f"{number}.png")
        found = [row for row in rows if row["image"] == path]
        assert [row["expression"] for row in found] == EXPRESSIONS
        for row, expected in zip(found, segmenter(path, text=EXPRESSIONS), strict=True):
            assert row["score"] == pytest.approx(expected["score"], abs=1e-4)
            assert row["box"] == list(expected["box"].values())
            assert (coco_mask.decode(row["rle"]) == np.asarray(expected["mask"]) // 255).mean() > 0.999


@pytest.mark.slow  # 15 seconds, most of which Ray takes to start
def test_labels_are_those_of_the_pipeline(tmp_path, monkeypatch):
    """The folder of labels must be new: those of a second run would be added to it."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    write_data(tmp_path / "data", 4)
    assert "13 rows in labels" in run("batch_ray.py", "data", "--output", "labels", folder=tmp_path)
    check_labels(tmp_path / "labels", tmp_path / "data", 4)

    again = run_python(EXAMPLES / "batch_ray.py", "data", "--output", "labels", folder=tmp_path)
    assert again.returncode == 1
    assert f"{tmp_path / 'labels'} is not an empty folder; give a new one." in again.stderr


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of two nodes on this machine, in another folder than the example, which joins it."""
    from ray.cluster_utils import Cluster

    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)  # the nodes and their workers have it from here
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
    finally:
        cluster.shutdown()


def is_busy(worker):
    """Whether a process is an actor in the middle of a batch: Ray puts it into the title of the process."""
    try:
        title = " ".join(worker.cmdline()).strip()
    except psutil.Error:  # it has ended
        return False
    return title.startswith("ray::MapWorker(") and title.endswith(".submit")


def kill_busy_actor(cluster):
    """SIGKILL an actor in the middle of a batch, if there is one; it is stopped first, and so cannot end before."""
    nodes = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in cluster.list_all_nodes()]
    for worker in filter(is_busy, [worker for node in nodes for worker in node.children()]):
        worker.suspend()
        if is_busy(worker):
            worker.kill()
            return worker.pid
        worker.resume()
    return None


@pytest.mark.slow  # 6 minutes on a busy core: an actor starts three times
def test_a_batch_is_repeated_if_its_actor_is_killed(tmp_path, cluster):
    """Neither lost nor doubled; model, data and labels are relative to the folder of the example, not of the nodes."""
    write_data(tmp_path / "data", 8)
    (tmp_path / "model").symlink_to(DEFAULT_CHECKPOINT)
    options = ("--model", "model", "--output", "labels", "--actors", "2", "--batch-size", "2")
    with ThreadPoolExecutor() as threads:
        labelling = threads.submit(run, "batch_ray.py", "data", *options, folder=tmp_path)
        killed = None
        while not labelling.done():
            killed = killed or kill_busy_actor(cluster)
            time.sleep(0.02)
    assert "25 rows in labels" in labelling.result()
    assert killed
    check_labels(tmp_path / "labels", tmp_path / "data", 8)
