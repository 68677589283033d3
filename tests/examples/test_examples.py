"""The short examples and the notebook, as one would run them."""

import json
import os
import runpy
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image
from processes import run_python

from crossvlt_hf import DEFAULT_CHECKPOINT, CrossVLTConfig, CrossVLTModel
from crossvlt_hf.data.refshapes import make_example
from crossvlt_hf.weights.checkpoint import load_checkpoint


EXAMPLES = Path(__file__).parents[2] / "examples"
OTHERWISE_TESTED = {
    "train.py",  # test_training
    "train_with_trainer.py",  # test_examples_training
    "lora.py",  # test_examples_training
    "render_cards.py",  # test_cards
    "batch_ray.py",  # test_examples_ray
    "onnx_without_torch.py",  # test_export
    "scaling.py",  # test_scaling
    "photographs.py",  # objects/test_refer
    "gpu_checks.py",  # needs a GPU; its steps run below
}


def run(name, *arguments, folder):
    """What an example prints, as a process in a folder."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    done = run_python(EXAMPLES / name, *arguments, environment=environment, folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_example_is_tested():
    here = {"predict.py", "evaluate.py", "custom_data.py", "convert.py", "publish.py", "architecture_figure.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == here | OTHERWISE_TESTED


def test_architecture_figure(tmp_path):
    """That of the README is the paper's model; parts that a config switches off are not drawn."""
    namespace = runpy.run_path(str(EXAMPLES / "architecture_figure.py"))
    assert namespace["DOCUMENT"].read_text(encoding="utf-8") == namespace["draw"](CrossVLTConfig())
    parts = ("Gate", "attends to pixels", "Align", "Presence", "Fusion", "120x120x128", "18 Swin blocks")
    late = CrossVLTConfig(fusion_direction="late", alignment_stages="last", presence_head=True)
    for config, counts in ((CrossVLTConfig(), (3, 3, 4, 0, 4, 1, 1)), (late, (0, 0, 1, 1, 4, 1, 1))):
        figure = namespace["draw"](config)
        assert tuple(figure.count(f">{part}<") for part in parts) == counts
    assert namespace["grids"](CrossVLTConfig(), 100) == [25, 13, 7, 4]


@pytest.mark.slow
@pytest.mark.parametrize("expressions", [1, 8])
def test_the_steps_of_the_gpu_checks_read_no_values(expressions):
    """On "meta", which has none: reading one, for which a GPU would have to wait, is an error."""
    namespace = runpy.run_path(str(EXAMPLES / "gpu_checks.py"))
    with torch.device("meta"):
        model = CrossVLTModel(CrossVLTConfig.from_size("base")).to(namespace["HALF"])
    images, side = 2, namespace["SIDE"]
    batch = namespace["make_batch"](images, expressions, device="meta")
    counts = {"expressions_per_image": torch.full((images,), expressions)}  # on the CPU, as the processor returns them
    with torch.no_grad():
        assert model.eval()(**batch, **counts).logits.shape == (images * expressions, 2, side, side)
    labelled = namespace["make_batch"](images, labelled=True, device="meta")
    model.train()(**labelled).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_predict(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        Image.fromarray(make_example("test", number).scene.image).save(tmp_path / "pictures" / f"{number}.png")
    printed = run("predict.py", "pictures", "the largest object", "the leftmost object", folder=tmp_path)
    rows = [json.loads(line) for line in printed.splitlines()]
    assert [(row["image"], row["label"]) for row in rows] == [
        (f"{number}.png", text) for number in range(3) for text in ("the largest object", "the leftmost object")
    ]
    assert all(Image.open(tmp_path / row["mask"]).size == (96, 96) for row in rows)


@pytest.mark.slow
def test_evaluate(tmp_path):
    printed = run("evaluate.py", "--limit", 8, folder=tmp_path)
    as_said, blind = (line for line in printed.splitlines() if line.startswith(("| as said", "| with the expr")))
    figures = [float(line.split("|")[3]) for line in (as_said, blind)]
    assert figures[0] > 60 > 40 > figures[1]  # one of the eight may be answered "nothing"
    assert Image.open(tmp_path / "gallery.png").width > 400


@pytest.mark.slow
def test_from_custom_data_to_a_repository(tmp_path, checkpoint):
    run("custom_data.py", "my-data", "--model", checkpoint, "--steps", 2, folder=tmp_path)
    load_checkpoint(tmp_path / "runs" / "custom" / "best")
    printed = run("publish.py", "runs/custom/best", "alice/mine", folder=tmp_path)
    assert printed.strip() == "repository"
    card = (tmp_path / "repository" / "README.md").read_text()
    assert "8 pairs of an image and an expression of my-data train, in 2 steps of 4" in card
    assert "my-data validation (validation in training)" in card
    load_checkpoint(tmp_path / "repository")


@pytest.mark.slow
def test_convert(tmp_path, write_original):
    write_original(tmp_path / "original.pth")
    printed = run("convert.py", "original.pth", "my-crossvlt", folder=tmp_path)
    assert "parameters" in printed
    assert "'bus'" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "smaller", "pictures"),
    [
        ("tour", {"scenes=200": "scenes=6", "scenes=64": "scenes=4", "batch_size=8": "batch_size=2"}, 4),
        (
            "own_labels",
            {'"train": 120, "test": 20': '"train": 4, "test": 2', "STEPS = 150": "STEPS = 1", "* 8)": "* 2)"},
            3,
        ),
    ],
)
def test_a_notebook_runs_from_top_to_bottom(tmp_path, name, smaller, pictures):
    """In a kernel of this Python, on fewer data; what should be shown is shown."""
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    for as_written, small in smaller.items():
        (cell,) = (cell for cell in notebook.cells if as_written in cell.source)
        cell.source = cell.source.replace(as_written, small)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    kinds = [
        {kind for output in cell.outputs for kind in output.get("data", {})}
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    assert sum("image/png" in found for found in kinds) == pictures
    assert any("text/markdown" in found for found in kinds)


def test_the_built_in_checkpoint_is_what_the_examples_take():
    assert (DEFAULT_CHECKPOINT / "model.safetensors").is_file()
