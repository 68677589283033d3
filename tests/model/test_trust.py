"""What is hostile is not run, nothing goes out unasked, and loaders of every kind give the same."""

import importlib
import os
import sys

import pytest
import torch
from conftest import tiny_tokenizer
from processes import run_python
from torch.utils.data import DataLoader

from crossvlt_hf import CrossVLTProcessor
from crossvlt_hf.data import load_data
from crossvlt_hf.data.pairs import Collator, ReferenceSampler, ShardedBatchSampler, TrainingPairs
from crossvlt_hf.data.readable import BatchCollator, ReadablePairs


NO_NETWORK = """
import importlib, os, pkgutil, socket, sys

def refuse(*arguments, **options):
    raise SystemExit(f"The network was asked for: {arguments}")

socket.getaddrinfo = socket.create_connection = refuse
socket.socket.connect = socket.socket.connect_ex = refuse
import crossvlt_hf
for module in pkgutil.walk_packages(crossvlt_hf.__path__, "crossvlt_hf."):
    if not module.name.endswith(("__main__", "handler")):
        importlib.import_module(module.name)
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline
from crossvlt_hf.cli import main

results = pipeline("referring-image-segmentation")(Image.new("RGB", (40, 30)), text="the largest object")
assert results[0]["mask"].size == (40, 30)
assert main(["segment", "nobody/nothing.png", "the cup", "--model", "nobody/nothing"]) == 2
print("done")
"""


@pytest.mark.slow
def test_nothing_goes_out_at_import_or_offline(tmp_path):
    """All modules, the built-in checkpoint, and a command with names that only the Hub could know."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = run_python("-c", NO_NETWORK, environment=environment, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "done"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_of_a_loader_change_nothing(method):
    """Whether they are copies of this process, or started anew."""
    datasets = [load_data("refshapes", "train", scenes=6, expressions=2, side=32)]
    pairs = TrainingPairs(datasets, seed=3)
    pairs.set_epoch(0)  # else the expressions are drawn from PyTorch's random state
    collate = BatchCollator(Collator(CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), 32, 8), 0.3, 0.3, 3))
    sampler = ShardedBatchSampler(ReferenceSampler(datasets, seed=3), 4)
    expected = [collate(ReadablePairs(pairs).__getitems__(indices)) for indices in sampler]
    loader = DataLoader(
        ReadablePairs(pairs), batch_sampler=sampler, collate_fn=collate, num_workers=1, multiprocessing_context=method
    )
    found = list(loader)
    assert [batch.names for batch in found] == [batch.names for batch in expected]
    for batch, other in zip(found, expected, strict=True):
        assert all(torch.equal(batch.inputs[name], other.inputs[name]) for name in other.inputs)


@pytest.mark.parametrize(
    ("old", "name"),
    [
        ("loading", "load_checkpoint"),
        ("conversion", "convert_checkpoint"),
        ("page.server", "serve"),
        ("visualization.gallery", "evaluation_gallery"),
        ("data.folder", "load_folder"),
        ("hub", "write_repository"),
    ],
)
def test_old_names_of_modules(old, name):
    sys.modules.pop(f"crossvlt_hf.{old}", None)
    with pytest.warns(FutureWarning, match=r"`crossvlt_hf\.\w+(\.\w+)*` is now `crossvlt_hf\.") as told:
        module = importlib.import_module(f"crossvlt_hf.{old}")
    assert callable(getattr(module, name))
    assert any(f"`crossvlt_hf.{old}` is now" in str(each.message) for each in told)


def test_packages_are_attributes():
    code = (
        "import crossvlt_hf as c; print(c.data.load_data.__name__, c.evaluation.evaluate.__name__, c.metrics.Sample)"
    )
    assert run_python("-c", code).returncode == 0
