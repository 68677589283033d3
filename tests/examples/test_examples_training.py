"""The examples that train, as one would start them."""

import json
import os
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from processes import run_python
from safetensors.torch import load_file

from crossvlt_hf import CrossVLTModel
from crossvlt_hf.weights.checkpoint import load_checkpoint


EXAMPLES = Path(__file__).parents[2] / "examples"
METRICS = ("overall_iou", "mean_iou", "precision@0.5")


def run(name: str, *arguments: object) -> str:
    """What an example prints, as a process of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    done = run_python(EXAMPLES / name, *arguments, environment=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_train_with_trainer(tmp_path):
    settings = ["--steps", 3, "--batch-size", 4, "--scenes", 7, "--image-size", 32]
    printed = run("train_with_trainer.py", *settings, "--output", tmp_path)
    assert re.search(r"^samples: 7$", printed, re.MULTILINE)
    metrics = json.loads((tmp_path / "eval_results.json").read_text())
    for name in METRICS:
        assert f"{name}: {metrics[f'eval_{name}']:.4g}\n" in printed
    model, processor = load_checkpoint(tmp_path)
    assert processor.image_processor.size == {"height": 32, "width": 32}
    assert model.config.text_config.hidden_size == 64


def test_train_with_trainer_goes_on_from_a_checkpoint(checkpoint, tmp_path, monkeypatch, capsys):
    settings = ["--steps", "2", "--batch-size", "2", "--scenes", "5", "--image-size", "32"]
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.setattr(sys, "argv", ["", "--model", str(checkpoint), *settings, "--output", str(tmp_path / "run")])
    runpy.run_path(str(EXAMPLES / "train_with_trainer.py"), run_name="__main__")
    assert "samples: 5" in capsys.readouterr().out
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "run"))
    assert before.keys() == after.keys()
    assert not torch.equal(before["decoder.classifier.weight"], after["decoder.classifier.weight"])
    _, processor = load_checkpoint(tmp_path / "run")
    assert processor.max_length == 9  # the checkpoint's


@pytest.fixture
def batch(processor, photo):
    return dict(processor([photo] * 2, ["the cup", "the red bus"], return_tensors="pt"))


def check_lora(printed: str, folder: Path, checkpoint: Path, batch: dict) -> None:
    """The figures of adapter and merged weights are the same, and so are their logits."""
    batch.pop("original_sizes")
    for name in METRICS:
        _, adapted, merged = re.search(
            rf"^{name}: (\S+) % before, (\S+) % with the adapter, (\S+) % merged$", printed, re.MULTILINE
        ).groups()
        assert adapted == merged
    base = CrossVLTModel.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        plain = base(**batch).logits
        adapted = PeftModel.from_pretrained(base, folder / "adapter").eval()(**batch).logits
        merged = load_checkpoint(folder / "merged")[0](**batch).logits
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, adapted, atol=1e-3)


@pytest.mark.slow
def test_lora(checkpoint, tmp_path, batch):
    settings = ["--steps", 4, "--batch-size", 2, "--scenes", 6, "--learning-rate", 0.01, "--output", tmp_path / "run"]
    printed = run("lora.py", "--model", checkpoint, *settings)
    trainable, total = re.search(r"trainable params: ([\d,]+) \|\| all params: ([\d,]+)", printed).groups()
    assert 0 < int(trainable.replace(",", "")) < int(total.replace(",", ""))
    check_lora(printed, tmp_path / "run", checkpoint, batch)
    weights = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert all("lora_" in name for name in weights)
    adapted = {re.sub(r"\.lora_[AB]\.weight|base_model\.model\.", "", name) for name in weights}
    linear = CrossVLTModel.from_pretrained(checkpoint).named_modules()
    assert adapted == {n for n, m in linear if isinstance(m, torch.nn.Linear) and "attention." in n and "mlp" not in n}
    for part in ("vision_model", "text_model", "fusion", "merged_fusion", "cross_attention"):
        assert any(part in name for name in adapted)
    merged = load_file(tmp_path / "run" / "merged" / "model.safetensors")
    for name, value in load_file(checkpoint / "model.safetensors").items():
        if name.removesuffix(".weight") not in adapted:
            assert torch.equal(merged[name], value), name  # BatchNorm statistics, too


@pytest.mark.slow
def test_lora_with_decoder(checkpoint, tmp_path, batch, monkeypatch, capsys):
    settings = ["--steps", "3", "--batch-size", "2", "--scenes", "4", "--train-decoder"]
    monkeypatch.setattr(sys, "argv", ["", "--model", str(checkpoint), *settings, "--output", str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "lora.py"), run_name="__main__")
    check_lora(capsys.readouterr().out, tmp_path, checkpoint, batch)
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "merged"))
    assert before.keys() == after.keys()
    for name in ("decoder.classifier.weight", "decoder.blocks.0.norm1.running_mean"):
        assert not torch.equal(before[name], after[name])
