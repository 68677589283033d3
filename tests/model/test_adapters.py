"""Adapters that peft saved, wherever a checkpoint can be named."""

import importlib.util
import json

import pytest
import torch
from transformers import pipeline

from crossvlt_hf import CrossVLTModel
from crossvlt_hf.cli import main
from crossvlt_hf.evaluation.calibration import save_calibration
from crossvlt_hf.weights.checkpoint import load_checkpoint


peft = pytest.importorskip("peft", reason="needs peft: pip install peft")
TARGETS = r".*attention\.(qkv|proj|query|key|value|output)"


@pytest.fixture
def adapted(checkpoint, tmp_path, photo):
    """The adapter's folder, and the logits of the model that has it."""
    model, processor = load_checkpoint(checkpoint)
    config = peft.LoraConfig(r=2, target_modules=TARGETS, modules_to_save=["decoder"], init_lora_weights=False)
    torch.manual_seed(0)
    model = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1)
    folder = tmp_path / "adapter"
    model.save_pretrained(folder)
    inputs = processor(photo, "the cup", return_tensors="pt")
    with torch.no_grad():
        return folder, inputs, model(**inputs).logits


def test_an_adapter_is_merged_into_its_base(adapted, checkpoint, tmp_path):
    folder, inputs, expected = adapted
    model, processor = load_checkpoint(folder)
    assert type(model) is CrossVLTModel
    assert not model.training
    with torch.no_grad():
        found, base = model(**inputs).logits, load_checkpoint(checkpoint)[0](**inputs).logits
    assert torch.allclose(found, expected, atol=1e-2 * expected.std().item())
    assert not torch.allclose(base, expected, atol=0.1 * expected.std().item())
    model.save_pretrained(tmp_path / "merged")
    processor.save_pretrained(tmp_path / "merged")
    again, _ = load_checkpoint(tmp_path / "merged")
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, found)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}])
def test_adapters_of_the_decoder_s_convolutions(checkpoint, photo, options):
    """peft makes its layers of the class that it adapts."""
    model, processor = load_checkpoint(checkpoint)
    inputs = processor(photo, "the cup", return_tensors="pt")
    config = peft.LoraConfig(r=2, target_modules=r".*decoder.*conv[12]", init_lora_weights=False, **options)
    adapted = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        found, merged = adapted(**inputs).logits, adapted.merge_and_unload()(**inputs).logits
    torch.testing.assert_close(found, merged, rtol=0, atol=1e-3 * merged.std().item())


def test_the_adapter_s_own_processor_goes_first(adapted, processor):
    folder, _, _ = adapted
    processor.image_processor.size = {"height": 32, "width": 32}
    processor.save_pretrained(folder)
    assert load_checkpoint(folder)[1].image_processor.size["height"] == 32


def test_the_base_s_score_calibration_is_not_the_adapter_s(adapted, checkpoint, processor):
    folder, _, _ = adapted
    save_calibration(checkpoint, [[0.5, 0.5]])
    assert load_checkpoint(checkpoint)[1].score_calibration == [[0.5, 0.5]]
    assert load_checkpoint(folder)[1].score_calibration is None
    processor.score_calibration = [[0.25, 0.75]]
    processor.save_pretrained(folder)
    assert load_checkpoint(folder)[1].score_calibration == [[0.25, 0.75]]


def test_commands_and_pipeline_take_adapters(adapted, photo, tmp_path, monkeypatch, capsys):
    folder, _, _ = adapted
    monkeypatch.chdir(tmp_path)
    photo.save("photo.png")
    assert main(["segment", "photo.png", "the cup", "--model", str(folder)]) == 0
    found = json.loads(capsys.readouterr().out)
    (result,) = pipeline("referring-image-segmentation", model=str(folder), device="cpu")(photo, text="the cup")
    assert found["score"] == pytest.approx(result["score"], abs=1e-3)


def change(folder, **values):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize("base", [None, "", "/nowhere/checkpoint", "not-there"])
def test_a_base_that_cannot_be_found(adapted, base):
    folder, _, _ = adapted
    change(folder, base_model_name_or_path=base)
    with pytest.raises((OSError, ValueError), match="base model"):
        load_checkpoint(folder)


def test_weights_that_do_not_fit(adapted):
    folder, _, _ = adapted
    change(folder, target_modules=r".*attention\.(qkv|proj)")
    with pytest.raises(ValueError, match="do not fit"):
        load_checkpoint(folder)


@pytest.mark.parametrize("change_base", [{"base_model_name_or_path": "built-in"}, {"r": 3}], ids=str)
def test_a_base_of_another_size_is_one_mismatch_and_their_number(adapted, change_base, capsys, photo, tmp_path):
    folder, _, _ = adapted
    change(folder, **change_base)
    told = r"does not fit its base model .*: size mismatch for \S+: .*shape.* \(\d{2,} tensors in all\)$"
    with pytest.raises(ValueError, match=told) as error:
        load_checkpoint(folder)
    assert len(str(error.value)) < 500
    capsys.readouterr()  # the progress of loading
    photo.save(tmp_path / "photo.png")
    assert main(["segment", str(tmp_path / "photo.png"), "the cup", "--model", str(folder)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("place", ["", "checkpoints/step-10"])
def test_a_run_without_weights_so_far(tmp_path, place):
    (tmp_path / "checkpoints" / "step-10").mkdir(parents=True)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ValueError, match="run without weights so far; train it further") as error:
        load_checkpoint(tmp_path / place)
    assert str(error.value).endswith(f"--resume: {tmp_path}.")


def test_checkpoints_inside_a_folder_are_named(adapted, checkpoint, tmp_path):
    """Such as adapters with a name, and the best and the last one of a training."""
    model, config = CrossVLTModel.from_pretrained(checkpoint), peft.LoraConfig(r=2, target_modules=TARGETS)
    named = peft.get_peft_model(model, config, adapter_name="mine")
    named.save_pretrained(tmp_path / "named")
    with pytest.raises(
        ValueError, match=r"named is no checkpoint; give one of those that are in it: \S+/named/mine\.$"
    ):
        load_checkpoint(tmp_path / "named")
    named.add_adapter("other", config)
    named.save_pretrained(tmp_path / "named")
    with pytest.raises(ValueError, match=r"in it: \S+/named/mine, \S+/named/other\.$"):
        load_checkpoint(tmp_path / "named")
    assert type(load_checkpoint(tmp_path / "named" / "mine")[0]) is CrossVLTModel
    for name in ("best", "last"):
        CrossVLTModel.from_pretrained(checkpoint).save_pretrained(tmp_path / "run" / name)
    with pytest.raises(ValueError, match=r"in it: \S+/run/best, \S+/run/last\.$"):
        load_checkpoint(tmp_path / "run")


def test_a_damaged_adapter(adapted, tmp_path):
    folder, _, _ = adapted
    (folder / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(OSError, match="adapter"):
        load_checkpoint(folder)


def test_without_peft(adapted, monkeypatch, capsys, tmp_path, photo):
    folder, _, _ = adapted
    monkeypatch.setattr("crossvlt_hf.weights.checkpoint.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install peft"):
        load_checkpoint(folder)
    photo.save(tmp_path / "photo.png")
    assert main(["segment", str(tmp_path / "photo.png"), "the cup", "--model", str(folder)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_folder_with_neither(tmp_path):
    assert importlib.util.find_spec("peft")
    with pytest.raises((OSError, ValueError)):
        load_checkpoint(tmp_path)
