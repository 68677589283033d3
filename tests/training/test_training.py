"""Training: what a step does, and that runs are whole, exact and able to go on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from conftest import fake_batch, tiny_config
from datasets import Dataset
from documents import code_blocks
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from processes import run_python
from torch import nn
from transformers import AutoModel, AutoProcessor

from crossvlt_hf import CrossVLTConfig, CrossVLTModel, CrossVLTProcessor
from crossvlt_hf.cli import main as crossvlt
from crossvlt_hf.data import load_data, write_folder
from crossvlt_hf.data.refshapes import vocabulary
from crossvlt_hf.training import TrainingRun, build, load_config
from crossvlt_hf.training.__main__ import main
from crossvlt_hf.training.checkpoints import Checkpoints, list_checkpoints, prune, write_whole
from crossvlt_hf.training.config import ModelOptions, OptimizationOptions
from crossvlt_hf.training.log import evaluation_line
from crossvlt_hf.training.optimization import (
    build_average,
    build_optimizer,
    build_schedule,
    loss_counts,
    normalised_loss,
    parameter_groups,
    settle_precision,
)
from crossvlt_hf.weights.checkpoint import load_checkpoint


ROOT = Path(__file__).parents[2]
CONFIGS = sorted(
    path.stem for path in Path(sys.modules["crossvlt_hf.training"].__file__).parent.glob("configs/*.yaml")
)
VISION = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4, "drop_path_rate": 0.1}
TEXT = {
    "hidden_size": 16,
    "depths": [1, 1, 1, 1],
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.1,
}
SMALL = {
    "model": {
        "tokenizer": "refshapes",
        "image_size": 32,
        "max_length": 16,
        "config": {
            "vision_config": VISION,
            "text_config": TEXT,
            "fusion_head_dim": 4,
            "alignment_dim": 8,
            "decoder_hidden_size": 8,
            "dice_loss_weight": 0.5,
        },
    },
    "data": {
        "train": [{"name": "refshapes", "split": "train", "scenes": 14, "expressions": 2, "side": 32}],
        "validation": [{"name": "refshapes", "split": "validation", "scenes": 4, "expressions": 2, "side": 32}],
        "group": 2,
        "workers": 0,
    },
    "optimization": {
        "max_steps": 6,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "text_learning_rate": 5e-4,
        "warmup_steps": 2,
        "max_grad_norm": 1.0,
        "ema_decay": 0.9,
    },
    "output": {"log_steps": 1, "evaluation_steps": 2, "pictures": 0, "curves": False, "keep": 3},
}


def write_config(folder: Path, **overrides) -> Path:
    """A small run in a folder; overrides such as optimization__max_steps=3."""
    values = json.loads(json.dumps(SMALL))
    values["output"]["folder"] = str(folder / "run")
    for name, value in overrides.items():
        section, _, field = name.partition("__")
        values[section] = {**values[section], field: value} if field else value
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def small_run(folder: Path, *, resume: bool = False, **overrides) -> TrainingRun:
    folder.mkdir(parents=True, exist_ok=True)
    return TrainingRun(load_config(write_config(folder, **overrides)), resume=resume)


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]


def losses_of(folder: Path) -> list[float]:
    return [entry["loss"] for entry in log_of(folder) if "loss" in entry]


def weights(run: TrainingRun) -> dict[str, torch.Tensor]:
    return run.accelerator.unwrap_model(run.network).state_dict()


# ---- configuration


@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_configurations_can_be_read(name, tmp_path):
    config = load_config(name)
    config.save(tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


def test_defaults_are_the_authors_recipe():
    options = OptimizationOptions()
    assert (options.learning_rate, options.weight_decay, options.batch_size, options.epochs) == (3e-5, 0.01, 12, 40)
    model = CrossVLTModel(tiny_config())
    schedule = build_schedule(build_optimizer(model, options), options, steps=100)
    rates = []
    for _ in range(100):
        rates.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    assert rates == pytest.approx([3e-5 * (1 - step / 100) ** 0.9 for step in range(100)])


def test_overrides_and_numbers_as_yaml_reads_them(tmp_path):
    path = write_config(tmp_path)
    config = load_config(path, ["optimization.learning_rate=3e-5", "seed=7", "data.masked_words=1"])
    assert (config.optimization.learning_rate, config.seed, config.data.masked_words) == (3e-5, 7, 1.0)
    assert load_config(path, ["optimization.max_grad_norm=null"]).optimization.max_grad_norm is None


TEXTS = ["no", "yes", "off", "007", "010", "1e-3", "1_000", "12:30", "0x1F", "2024-01-01", "true", "1.0", "x #1", "@x"]


@pytest.mark.parametrize("text", [*TEXTS, "a: b", "[x", "*x", "x,y"])
def test_text_on_the_command_line_stays_text(tmp_path, text):
    config = load_config(write_config(tmp_path), [f"output.folder={text}"])
    assert config.output.folder == text
    config.save(tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


@pytest.mark.parametrize("text", [text for text in TEXTS if text not in ("x #1", "@x")])
def test_text_in_yaml_stays_text(tmp_path, text):
    """With quotes and without, in a setting, in a list, and as an argument of a data set."""
    path = tmp_path / "config.yaml"
    for written in (text, f"'{text}'"):
        path.write_text(
            f"data:\n  root: {written}\n  train: [{{name: {written}, split: {written}, root: {written}}}]\n"
            f"model: {{freeze: [{written}]}}\noutput: {{folder: {written}}}\n"
        )
        config = load_config(path)
        found = (config.data.root, *config.data.train[0].values(), *config.model.freeze, config.output.folder)
        assert found == (text,) * 6
        config.save(tmp_path / "saved.yaml")
        assert load_config(tmp_path / "saved.yaml") == config


def test_arguments_of_data_sets_are_numbers_where_they_look_so(tmp_path):
    written = (
        "{name: refshapes, split: train, scenes: 14, count: [3, 4], a: 1e-3, b: true, c: null, d: '1', e: 007, f: no}"
    )
    (source,) = load_config(write_config(tmp_path), [f"data.train=[{written}]"]).data.train
    assert [*source.values()] == ["refshapes", "train", 14, [3, 4], 1e-3, True, None, "1", "007", "no"]
    assert (
        load_config(write_config(tmp_path), ["model.config.dice_loss_weight=1"]).model.config["dice_loss_weight"] == 1
    )


@pytest.mark.parametrize(
    "text", ["1_0", "1_000", "0x10", "010", "1e1", "1.0", "+-1", "\u0661", "\uff11", "ten", "", "true"]
)
def test_what_is_no_integer_is_refused(tmp_path, text):
    path = write_config(tmp_path)
    with pytest.raises(ValueError, match=r"`optimization.epochs` must be an integer, got"):
        load_config(path, [f"optimization.epochs={text}"])
    path.write_text(f"optimization: {{epochs: {text}}}\n")
    with pytest.raises(ValueError, match=r"`optimization.epochs` must be an integer, got"):
        load_config(path)


@pytest.mark.parametrize("text", ["1_0", "1_0.5", "1e1_0", "0x10", "\u0661", "ten", "true", "."])
def test_what_is_no_number_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match=r"`optimization.learning_rate` must be a number, got"):
        load_config(write_config(tmp_path), [f"optimization.learning_rate={text}"])


def test_precision_none_and_no_are_two(tmp_path):
    for text, value in (("no", "no"), ("'no'", "no"), ("null", None), ("bf16", "bf16")):
        config = load_config(write_config(tmp_path), [f"optimization.mixed_precision={text}"])
        assert config.optimization.mixed_precision == value
    assert (
        load_config(write_config(tmp_path), ["optimization.sync_batch_norm=no"]).optimization.sync_batch_norm is False
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimization.learning_rat=1", "`optimization.learning_rat`; did you mean `optimization.learning_rate`?"),
        ("sed=1", "There is no setting `sed`; did you mean `seed`?"),
        ("batch_size=1", "There is no setting `batch_size`; did you mean `optimization.batch_size`?"),
        ("data.batchsize=1", "did you mean `optimization.batch_size`?"),
        ("model.zzz=1", "There is no setting `model.zzz`; there are checkpoint, add_words"),
        ("optimization.batch_size=many", "`optimization.batch_size` must be an integer, got 'many'."),
        ("optimization.batch_size=8.5", "`optimization.batch_size` must be an integer, got '8.5'."),
        ("optimization.batch_size=010", "`optimization.batch_size` must be an integer, got '010'."),
        ("optimization.batch_size=0", "`optimization.batch_size` must be 1 or more, got 0."),
        ("optimization.batch_size=null", "`optimization.batch_size` must be an integer, got null."),
        ("optimization.max_steps=-1", "`optimization.max_steps` must be 1 or more, got -1."),
        ("optimization.max_grad_norm=-1", "`optimization.max_grad_norm` must be a number above 0, got -1.0."),
        ("optimization.learning_rate=nan", "`optimization.learning_rate` must be a number above 0, got nan."),
        ("optimization.learning_rate=12:30", "`optimization.learning_rate` must be a number, got '12:30'."),
        ("optimization.betas=[0.9]", "`optimization.betas` must be two numbers"),
        ("data.masked_words=5", "`data.masked_words` must be a number between 0 and 1, got 5.0."),
        ("data.train=[refcoco]", "`data.train[0]` must be a table of names and values, got 'refcoco'."),
        ("data.train=[{name: refcoco}]", "`data.train[0]` must have `name` and `split`"),
        (
            "data.train=[{name: refcoco}]",
            "`split` must be one of the splits of refcoco (unc): train, val, testA, testB",
        ),
        ("data.train=[{split: train}]", "`data.train[0]` must have `name` and `split`, got {'split': 'train'}."),
        ("data.on_error=ignore", "`data.on_error` must be one of stop, skip, got 'ignore'."),
        ("output.trackers=wandb", "`output.trackers` must be a list of text, got 'wandb'."),
        ("output.folder=", "`output.folder` must be text, got null."),
        (
            "model={checkpoint: somewhere, config: {vision_config: {}}}",
            "With `model.checkpoint`, fields of `model.config` must be some of presence_head, presence_loss_weight, "
            "dice_loss_weight, since the checkpoint has its own config, got 'vision_config'.",
        ),
        (
            "model={checkpoint: somewhere, text_encoder: x}",
            "`model.text_encoder` has no effect with `model.checkpoint`; set only one of them.",
        ),
        ("model.gradient_checkpointing=maybe", "`model.gradient_checkpointing` must be true or false, got 'maybe'."),
        ("output.evaluation_steps=0", "`output.evaluation_steps` must be 1 or more, got 0."),
        ("optimization.mixed_precision=int8", "must be one of auto, no, bf16, fp16 or null, got 'int8'."),
        ("optimization.ema_decay=2", "`optimization.ema_decay` must be a number between 0 and 1, got 2.0."),
        ("optimization=3", "`optimization` must be a table of names and values, got '3'."),
        ("seed.more=3", "There is no setting `seed.more`"),
        ("data.train=[]", "`data.train` must have at least one data set"),
        ("seed", "The setting 'seed' must be name=value."),
        ("seed=[", "The setting 'seed=[' cannot be read as YAML"),
        ("data={train: [], train: []}", "`train` is given twice (line 1)"),
    ],
)
def test_bad_settings_are_named(tmp_path, override, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config(write_config(tmp_path, seed=1), [override])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", "mine: true"),
        ("log.jsonl", "{}"),
        ("curves.png", "mine"),
        ("best/notes.txt", "mine"),
        ("metadata.jsonl", "{}"),
        ("config.json", "{}"),
    ],
)
def test_files_of_others_are_kept(tmp_path, capsys, name, content):
    """Neither replaced nor mixed with a run; a log that a shell writes there is no obstacle."""
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert crossvlt(["train", str(write_config(tmp_path)), "--resume"]) == 2
    said = f"has {name.partition('/')[0]}, and is no training run; give another `output.folder`"
    assert said in capsys.readouterr().err
    assert file.read_text() == content
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == [file]


def test_a_checkpoint_of_the_command_line_replaces_what_it_brings(tmp_path):
    """In every configuration of the package, and also the encoders of a file; what only it has stays."""
    model = {"vision_encoder": "a", "text_encoder": "b", "tokenizer": "c", "max_length": 9}
    config = {"presence_head": True, "text_config": {"depths": [1, 1, 1, 1]}}
    own = write_config(tmp_path, model={**model, "config": config})
    told: list[str] = []
    found = load_config(own, ["model.checkpoint=runs/x/last"], told.append).model
    assert told == [
        "`model.checkpoint` of the command line replaces `model.vision_encoder`, `model.text_encoder`, "
        "`model.tokenizer`, `model.config.text_config`."
    ]
    assert (found.checkpoint, found.vision_encoder, found.text_encoder, found.tokenizer) == (
        "runs/x/last",
        *[None] * 3,
    )
    assert (found.config, found.max_length) == ({"presence_head": True}, 9)
    for name in CONFIGS:
        assert load_config(name, ["model.checkpoint=built-in"]).model.checkpoint == "built-in"
    for given in ("model.tokenizer=d", "model.config={fusion_direction: late}"):  # both are asked for
        with pytest.raises(ValueError, match=r"`model\.(checkpoint|tokenizer)`"):
            load_config(own, ["model.checkpoint=x", given])
    told.clear()
    assert load_config(own, ["model.checkpoint=null"], told.append).model.tokenizer == "c"
    assert told == []


def test_settings_in_python_are_checked_too():
    assert OptimizationOptions(weight_decay=0, betas=[0, 0.9]).weight_decay == 0
    for wrong in ({"batch_size": 0}, {"batch_size": "8"}, {"mixed_precision": "int8"}, {"ema_decay": 1.0}):
        with pytest.raises(StrictDataclassError, match=next(iter(wrong))):
            OptimizationOptions(**wrong)


def missing_trackers() -> list[str]:
    """All trackers of Accelerate that are not installed here."""
    return [name for name in LoggerType.list() if name != "all" and name not in map(str, get_available_trackers())]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        *(
            (f"output.trackers=[tensorboard, {name}]", f"got '{name}'; install {name}, or")
            for name in missing_trackers()
        ),
        ("output.trackers=[WandB]", "got 'WandB'. Did you mean wandb?"),
        ("output.trackers=[tensorbord]", "got 'tensorbord'. Did you mean tensorboard?"),
        ("optimization.schedule=polynomal", "got 'polynomal'. Did you mean polynomial?"),
        ("optimization.schedule=reduce_lr_on_plateau", "`optimization.schedule` must be one of linear"),
        ("optimization.schedule_options={power: 1, pow: 2}", "`optimization.schedule_options`"),
        ("optimization.accumulation=3", "`optimization.batch_size` must be divisible by 3"),
        ("data.validation=[{name: refcocoo, split: val}]", "`data.validation[0].name` must be a folder or a data set"),
        ("model.config.bogus=3", "There is no field `model.config.bogus`."),
        ("model.config.dice_loss_wieght=3", "Did you mean dice_loss_weight?"),
        (
            "model.config.text_config.depth=[1]",
            "There is no field `model.config.text_config.depth`. Did you mean depths?",
        ),
        ("model.config.vision_config.bogus=1", "There is no field `model.config.vision_config.bogus`."),
        ("model={checkpoint: ./nowhere}", "There is no checkpoint folder ./nowhere"),
        ("model={vision_encoder: x}", "Set both `model.vision_encoder` and `model.text_encoder`, or neither."),
    ],
)
def test_what_cannot_run_is_named_before_anything_loads(tmp_path, monkeypatch, capsys, setting, message):
    def load(*arguments, **options):
        raise AssertionError("too late")

    for name in ("load_data", "load_checkpoint", "CrossVLTModel"):
        monkeypatch.setattr(build, name, load)
    assert main([str(write_config(tmp_path)), setting]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "run").exists()


def test_command_line_tells_errors_in_one_line(tmp_path, capsys):
    assert main(["no-such-config"]) == 2
    assert "There is no configuration no-such-config" in capsys.readouterr().err
    (tmp_path / "mine.yaml").touch()
    for wrong, hint in (
        (tmp_path / "mien.yaml", "Did you mean mine.yaml?"),
        ("refcoc", "Did you mean refcoco?"),
        (tmp_path / "zzzzzzzzzzzz.yml", "refshapes-nine."),
    ):
        with pytest.raises(FileNotFoundError) as error:
            load_config(wrong)
        assert "give a YAML file, or one of grefcoco, refcoco, " in str(error.value)
        assert str(error.value).endswith(hint)
    assert main([str(write_config(tmp_path)), "optimization.batch_size=1000"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "references to train on, got 28" in error


# ---- the parts


def test_parameter_groups_are_complete_and_spare_the_norms():
    model = CrossVLTModel(tiny_config())
    model.text_model.embeddings.word_embeddings.weight.requires_grad_(False)
    groups = parameter_groups(model, OptimizationOptions(learning_rate=1e-3, text_learning_rate=5e-4))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    place = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(place) == len(names) - 1
    assert place["vision_model.stages.0.blocks.0.attention.relative_position_bias_table"] == (1e-3, 0.0)
    assert place["stages.0.alignment.temperature"] == (1e-3, 0.0)
    assert place["stages.0.norm.weight"] == (1e-3, 0.0)
    assert place["decoder.blocks.0.norm1.bias"] == (1e-3, 0.0)
    assert place["decoder.classifier.weight"] == (1e-3, 0.01)
    assert place["text_model.embeddings.position_embeddings.weight"] == (1e-3, 0.01)
    undecayed = {name for name, (_, decay) in place.items() if decay == 0}
    assert all("norm" in name or name.endswith(("bias_table", "temperature")) for name in undecayed)
    slower = {name for name, (rate, _) in place.items() if rate == 5e-4}
    assert slower == {name for name in place if name.startswith("text_model.stages.")}


@pytest.mark.parametrize("presence", [False, True])
def test_losses_of_parts_add_up_to_that_of_the_whole(presence):
    model = CrossVLTModel(tiny_config(dice_loss_weight=0.5, presence_head=presence)).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    batch = fake_batch(model.config, batch=6)
    batch["labels"][0, :10] = 255
    batch["labels"][3:] *= 0
    batch["labels"][3:, :4, :4] = 1
    batch["labels"][1], batch["labels"][5] = 255, 0
    whole = model(**batch).loss
    parts = [{name: value[rows] for name, value in batch.items()} for rows in (slice(0, 2), slice(2, 6))]
    counts = [loss_counts(part["labels"]) for part in parts]
    total = torch.stack(counts).sum(0)
    losses = [normalised_loss(model, model(**part), own, total) for part, own in zip(parts, counts, strict=True)]
    assert sum(losses).item() == pytest.approx(whole.item(), rel=1e-6)
    mean_of_means = np.mean([model(**part).loss.item() for part in parts])
    assert abs(mean_of_means - whole.item()) > 1e-3  # which is why


@pytest.mark.parametrize("decay", [0.9, 0.999, 0.9999])
def test_average_leaves_indices_alone(decay):
    model = CrossVLTModel(tiny_config(vision_config={"window_size": 12}))
    average = build_average(model, decay)
    for _ in range(3):
        average.update_parameters(model)
    averaged = dict(average.module.named_buffers())
    indices = {name: value for name, value in model.named_buffers() if not value.is_floating_point()}
    assert len(indices) >= 5
    assert all(torch.equal(averaged[name], value) for name, value in indices.items())


def test_synchronised_norms_are_norms():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(CrossVLTModel(tiny_config()))
    plain = parameter_groups(CrossVLTModel(tiny_config()), OptimizationOptions())
    found = parameter_groups(model, OptimizationOptions())
    assert [len(group["params"]) for group in found] == [len(group["params"]) for group in plain]


def test_average_follows_weights_and_statistics():
    model = CrossVLTModel(tiny_config())
    average = build_average(model, 0.75)
    average.update_parameters(model)
    before = model.decoder.classifier.bias.detach().clone()
    with torch.no_grad():
        model.decoder.classifier.bias += 1.0
        model.decoder.blocks[0].norm1.running_mean += 4.0
    average.update_parameters(model)
    assert torch.allclose(average.module.decoder.classifier.bias, before + 0.25)
    assert torch.allclose(average.module.decoder.blocks[0].norm1.running_mean, torch.ones(16))
    assert build_average(model, None) is None


def test_checkpoints_are_there_whole_or_not_at_all(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "half").write_text("")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "step-1", fail)
    assert list_checkpoints(tmp_path) == []
    for step in (2, 10, 9):
        write_whole(tmp_path / f"step-{step}", lambda folder: (folder / "a").write_text("new"))
    write_whole(tmp_path / "step-2", lambda folder: (folder / "b").write_text("newer"))
    assert [entry.name for entry in (tmp_path / "step-2").iterdir()] == ["b"]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-2", "step-9", "step-10"]
    prune(tmp_path, 2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-9", "step-10"]


# ---- one's own data


@pytest.fixture
def own_data(tmp_path, monkeypatch):
    """The folder of docs/training.md, in the working directory, with words that the built-in checkpoint lacks."""
    monkeypatch.chdir(tmp_path)
    rng, mask = np.random.default_rng(0), np.zeros((40, 40), np.uint8)
    (tmp_path / "my-data").mkdir()
    lines = []
    for number in range(6):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(f"my-data/{number}.png")
        mask[5:20, 5 : 15 + number] = 255
        Image.fromarray(mask).save(f"my-data/{number}-mask.png")
        texts = ["the walrus", "the red circle " + "left of the red circle " * 5]
        split = "train" if number < 4 else "validation"
        row = {"image": f"{number}.png", "mask": f"{number}-mask.png", "expressions": texts, "split": split}
        lines.append(json.dumps(row))
    (tmp_path / "my-data" / "metadata.jsonl").write_text("\n".join(lines))
    document = (ROOT / "docs" / "training.md").read_text()
    (code,) = [block.code for block in code_blocks(document) if block.language == "yaml"]
    (tmp_path / "my.yaml").write_text(code)
    return code


FEW = [
    *("optimization.max_steps=3", "optimization.batch_size=2", "output.evaluation_steps=3", "output.pictures=0"),
    "model.image_size=64",
]


@pytest.mark.slow
def test_six_lines_fine_tune_the_built_in_checkpoint(own_data, capfd):
    assert len(own_data.splitlines()) == 6
    assert main(["my.yaml", *FEW, "data.workers=0"]) == 0
    output, errors = capfd.readouterr()
    reading = next(line for line in errors.splitlines() if "expressions" in line)
    assert reading.startswith("Reading 8 expressions: ")
    assert "4 too long and cut" in reading
    assert "Added 1 word of the training data to the vocabulary: walrus\n" in errors
    _, before = load_checkpoint("built-in")
    model, processor = load_checkpoint("runs/mine/last")
    assert before.read_expressions(["the walrus"])[0].unknown_words == ("walrus",)
    assert processor.read_expressions(["the walrus"])[0].unknown_words == ()
    assert len(processor.tokenizer) <= model.config.text_config.vocab_size
    assert "shards" not in output + errors
    (line,) = [line for line in errors.replace("\r", "\n").splitlines() if line.startswith("step ")]
    share = r"[ \d]{3}\.\d\d %"
    assert re.fullmatch(rf"step 3/3  overall IoU {share}  mean IoU {share}  P@0\.5 {share}  \(4 expressions\)", line)


@pytest.mark.parametrize(("language", "word"), [("en", "both"), ("de", "beide"), ("zh", "两")])
def test_words_of_drawn_scenes_are_added_without_drawing_them(monkeypatch, language, word):
    many = load_data("refshapes", "train", scenes=400_000, side=32, language=language)
    drawn = []
    monkeypatch.setattr("crossvlt_hf.data.refshapes.dataset.make_scene", lambda *_, **__: drawn.append(1))
    model, processor = build.build_model(ModelOptions(checkpoint="built-in", add_words=True), [many])
    assert not drawn
    assert word in vocabulary(language)
    unknown = {word for read in processor.read_expressions(vocabulary(language)) for word in read.unknown_words}
    assert unknown <= {",", "，"}  # punctuation is not added
    assert len(processor.tokenizer) <= model.config.text_config.vocab_size


def test_changed_expressions_of_drawn_scenes_are_read():
    drawn = load_data("refshapes", "train", scenes=3, side=32)
    changed = Dataset.from_list([{**row, "expressions": ["the walrus"]} for row in drawn], features=drawn.features)
    _, processor = build.build_model(ModelOptions(checkpoint="built-in", add_words=True), [changed])
    assert not processor.read_expressions(["the walrus"])[0].unknown_words


def test_an_evaluation_is_a_line_in_percent():
    metrics = {"overall_iou": 0.05, "mean_iou": 0.7034, "precision@0.5": 1.0, "right_object_rate": None, "samples": 1}
    line = evaluation_line(20, 300, metrics)
    assert line == "step  20/300  overall IoU   5.00 %  mean IoU  70.34 %  P@0.5 100.00 %  (1 expression)"


def test_words_that_are_not_added_are_counted(own_data, capsys):
    run = TrainingRun(load_config("my.yaml", [*FEW, "model.add_words=false", "model.max_length=12"]))
    line = capsys.readouterr().err.splitlines()[0]
    assert re.search(
        r"Reading 8 expressions: \d\.\d % of the words are not in the vocabulary \(walrus\); 4 too long", line
    )
    assert run.processor(text="the walrus", return_tensors="pt")["input_ids"].shape == (1, 12)
    with pytest.raises(ValueError, match=r"`model\.max_length` must be at most 32, the number of positions, got 99"):
        TrainingRun(load_config("my.yaml", [*FEW, "model.max_length=99"]))


@pytest.mark.parametrize(
    "sizes", [{"max_length": 8}, {"image_size": 96}, {"max_length": 8, "image_size": 96}], ids=str
)
def test_only_the_sizes_that_are_asked_for_change_in_a_processor(checkpoint, tmp_path, sizes):
    processor = CrossVLTProcessor.from_pretrained(checkpoint)
    changed = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 0, "do_rescale": False}
    for name, value in changed.items():
        setattr(processor.image_processor, name, value)
    processor.ignore_index = 254
    processor.save_pretrained(tmp_path / "own")
    CrossVLTModel.from_pretrained(checkpoint).save_pretrained(tmp_path / "own")
    _, built = build.build_model(ModelOptions(checkpoint=str(tmp_path / "own"), **sizes))
    side = sizes.get("image_size")
    assert built.image_size == ((side, side) if side else processor.image_size)
    assert built.max_length == sizes.get("max_length", processor.max_length)
    kept, found = CrossVLTProcessor.from_pretrained(tmp_path / "own").to_dict(), built.to_dict()
    kept["image_processor"].pop("size"), found["image_processor"].pop("size")
    assert found == kept


@pytest.mark.parametrize("head", [False, True])
def test_a_checkpoint_gets_or_loses_a_presence_head_and_keeps_its_other_weights(checkpoint, tmp_path, head):
    config = CrossVLTModel.from_pretrained(checkpoint).config
    before = CrossVLTModel(CrossVLTConfig(**{**config.to_dict(), "presence_head": not head}))
    before.save_pretrained(tmp_path)
    CrossVLTProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path)
    options = ModelOptions(checkpoint=str(tmp_path), config={"presence_head": head, "dice_loss_weight": 2})
    model, _ = build.build_model(options)
    assert (model.config.presence_head, model.config.dice_loss_weight) == (head, 2)
    kept, found = before.state_dict(), model.state_dict()
    differing = kept.keys() ^ found.keys()
    assert differing
    assert all(name.startswith("presence_head.") for name in differing)
    assert all(torch.equal(kept[name], found[name]) for name in kept.keys() & found.keys())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.config={dice_loss_weight: -1}", "`dice_loss_weight` must be at least 0, got -1"),
        ("model.config={presence_head: perhaps}", "presence_head"),
    ],
)
def test_wrong_changes_to_a_checkpoint_are_named_before_it_is_loaded(own_data, monkeypatch, capsys, setting, message):
    monkeypatch.setattr(build, "load_checkpoint", None)
    assert main(["my.yaml", *FEW, setting]) == 2
    assert message in capsys.readouterr().err


def test_words_that_are_added_are_named(own_data, capsys):
    path = Path("my-data/metadata.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    names = [f"walrus{letter}" for letter in "abcdefghijkl"]
    lines[0]["expressions"] = [f"the {name}" for name in names]
    path.write_text("\n".join(map(json.dumps, lines)))
    TrainingRun(load_config("my.yaml", FEW))
    said = capsys.readouterr().err.splitlines()[0]
    shown = ", ".join(names[:10])
    assert said == f"Added 13 words of the training data to the vocabulary: {shown} and 3 more"
    for line in lines:
        line["expressions"] = ["the red circle"]
    path.write_text("\n".join(map(json.dumps, lines)))
    TrainingRun(load_config("my.yaml", [*FEW, "output.folder=runs/other"]))
    said = capsys.readouterr().err.splitlines()[0]
    assert said == "No words were added: the vocabulary knows all of the training data."


@pytest.mark.parametrize("processes", [[], ["--processes", "2"]])
def test_crossvlt_train_names_wrong_settings_in_one_line(own_data, capfd, processes):
    for setting in ("optimization.epoch=3", "output.trackers=[nothing]", "optimization.batch_size=0"):
        assert crossvlt(["train", "my.yaml", *processes, setting]) == 2
        error = capfd.readouterr().err
        assert error.count("\n") == 1, error
        assert setting.partition("=")[0][:-1] in error
    with pytest.raises(SystemExit):
        crossvlt(["train", "my.yaml", "--processes", "2", "epochs"])


@pytest.mark.parametrize("command", [["segment", "i.png", "the red circle", "--output", "o"], ["evaluate"]])
def test_the_built_in_checkpoint_has_a_name(tmp_path, monkeypatch, capfd, command):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 40)).save("i.png")
    data = ["--data", "refshapes", "--split", "test", "--option", "scenes=2", "--device", "cpu"]
    assert crossvlt([*command, "--model", "built-in", *(data if command == ["evaluate"] else [])]) == 0
    if command == ["evaluate"]:
        assert capfd.readouterr().err.startswith("Reading 2 expressions: all words are in the vocabulary; 0 too long")


# ---- whole runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run, its folder and final weights."""
    folder = tmp_path_factory.mktemp("finished")
    run = small_run(folder, output__pictures=2, output__curves=True, output__trackers=["tensorboard"])
    metrics = run.run()
    return folder, weights(run), metrics


def test_a_run_leaves_what_is_needed(finished):
    folder, _, metrics = finished
    run = folder / "run"
    assert {path.name for path in run.iterdir()} == {
        "best",
        "last",
        "checkpoints",
        "config.yaml",
        *(["curves.png"] if find_spec("matplotlib") else []),
        "log.jsonl",
        "pictures",
        "crossvlt",  # of tensorboard
    }
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-2", "step-4", "step-6"]
    assert {path.name for path in (run / "pictures").iterdir()} == {"step-2.png", "step-4.png", "step-6.png"}
    model, processor = AutoModel.from_pretrained(run / "best"), AutoProcessor.from_pretrained(run / "best")
    assert model(**processor(torch.zeros(3, 40, 40), "the red circle", return_tensors="pt")).logits.shape == (
        1,
        2,
        32,
        32,
    )
    assert metrics["samples"] == 8
    entries = log_of(folder)
    assert [entry["step"] for entry in entries if "loss" in entry] == [1, 2, 3, 4, 5, 6]
    evaluated = [entry for entry in entries if "validation/mean_iou" in entry]
    assert [entry["step"] for entry in evaluated] == [2, 4, 6]
    assert {"validation/right_object_rate", "validation/distractor_iou", "validation/families"} <= evaluated[0].keys()


@pytest.mark.slow
def test_a_run_on_several_languages(tmp_path):
    (english,) = SMALL["data"]["train"]
    run = small_run(
        tmp_path,
        model__tokenizer="refshapes-all",
        model__max_length=27,
        data__train=[english | {"language": language} for language in ("de", "zh")],
        optimization__max_steps=3,
    )
    run.run()
    best = tmp_path / "run" / "best"
    tokenizer = AutoProcessor.from_pretrained(best).tokenizer
    for text in ("the red circle", "der größte Kreis, der nicht grün ist", "不是圆形的红色物体"):
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
    about = yaml.safe_load((best / "about.yaml").read_text(encoding="utf-8"))
    assert (about["language"], about["expression"]) == (["de", "zh"], "das größte Objekt")


def test_last_weights_are_the_average(finished):
    folder, final, _ = finished
    saved = AutoModel.from_pretrained(folder / "run" / "last").state_dict()
    assert any(not torch.equal(saved[name], final[name]) for name in final)


def test_going_on_after_an_interruption_is_bit_exact(finished, tmp_path, monkeypatch):
    """From step 4 on, in the middle of an epoch of three, with dropout, stochastic depth, averaging and a worker."""
    folder, expected, _ = finished
    first, step = small_run(tmp_path, data__workers=1), TrainingRun._step

    def interrupted(run, batches):
        if run.progress.step == 5:
            raise KeyboardInterrupt
        return step(run, batches)

    monkeypatch.setattr(TrainingRun, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    monkeypatch.undo()
    assert main([str(tmp_path / "config.yaml")]) == 2  # not by accident
    torch.manual_seed(12345)
    with (tmp_path / "run" / "log.jsonl").open("a") as log:
        log.write('{"step": 5, "lo')  # cut off
    second = small_run(tmp_path, resume=True)
    assert second.progress.step == 4
    second.run()
    found = weights(second)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    averages = [AutoModel.from_pretrained(place / "run" / "last").state_dict() for place in (folder, tmp_path)]
    assert all(torch.equal(averages[0][name], averages[1][name]) for name in averages[0])
    assert losses_of(tmp_path) == losses_of(folder)
    assert [entry["step"] for entry in log_of(tmp_path)] == [entry["step"] for entry in log_of(folder)]


@pytest.mark.slow
def test_an_evaluation_that_was_interrupted_is_made_up_for(finished, tmp_path, monkeypatch):
    folder, _, _ = finished
    monkeypatch.setattr(TrainingRun, "_evaluate", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        small_run(tmp_path).run()
    monkeypatch.undo()
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step-2"]
    small_run(tmp_path, resume=True).run()
    scores = [[e["validation/mean_iou"] for e in log_of(f) if "validation/mean_iou" in e] for f in (folder, tmp_path)]
    assert scores[0] == scores[1]


CONSTANT = {**SMALL["optimization"], "schedule": "constant_with_warmup"}


@pytest.mark.slow
def test_a_finished_run_is_prolonged_exactly_where_the_schedule_allows(finished, tmp_path, capsys):
    """Four steps and then six are six; checkpoints stand between evaluations, too, and the log has means."""
    spare = {
        "output__evaluation_steps": 6,
        "output__checkpoint_steps": 2,
        "data__validation": [],
        "output__log_steps": 3,
    }
    short, long = tmp_path / "short", tmp_path / "long"
    small_run(long, optimization=CONSTANT, **spare).run()
    small_run(short, optimization={**CONSTANT, "max_steps": 4}, **spare).run()
    assert [path.name for path in list_checkpoints(short / "run" / "checkpoints")] == ["step-2", "step-4"]
    small_run(short, resume=True, optimization=CONSTANT, **spare).run()
    names = ["step-2", "step-4", "step-6"]
    assert [path.name for path in list_checkpoints(short / "run" / "checkpoints")] == names
    expected, found = (AutoModel.from_pretrained(at / "run" / "last").state_dict() for at in (long, short))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (
        main([str(write_config(short, optimization=CONSTANT, **spare)), "--resume", "optimization.max_steps=5"]) == 2
    )
    assert "must be at least 6, where the run in" in capsys.readouterr().err
    folder = finished[0]
    assert main([str(write_config(folder)), "--resume", "optimization.max_steps=9"]) == 2
    error = capsys.readouterr().err
    assert "cannot be continued exactly" in error
    assert f"model.checkpoint={folder / 'run' / 'last'}" in error


@pytest.mark.slow
def test_lines_of_the_log_are_means_over_their_steps(finished, tmp_path, monkeypatch):
    """Also of steps before an interruption; and a short run has a line for every step unless told otherwise."""
    every = losses_of(finished[0])
    settings = {"output__log_steps": 4, "output__checkpoint_steps": 1, "output__evaluation_steps": 6}
    step = TrainingRun._step

    def interrupted(run, batches):
        if run.progress.step == 2:
            raise KeyboardInterrupt
        return step(run, batches)

    monkeypatch.setattr(TrainingRun, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path, **settings).run()
    monkeypatch.undo()
    small_run(tmp_path, resume=True, **settings).run()
    assert losses_of(tmp_path) == pytest.approx([np.mean(every[:4]), np.mean(every[4:])], rel=1e-6)
    assert small_run(tmp_path / "other", output__log_steps=None).log_every == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optimization__batch_size": 4}, "`optimization.batch_size` was 8 when the run started and is 4"),
        ({"seed": 3}, "`seed` was 42 when the run started and is 3"),
        ({"data__group": 1}, "`data.group` was 2 when the run started and is 1"),
    ],
)
def test_another_run_cannot_go_on(finished, overrides, message):
    folder, _, _ = finished
    config = load_config(write_config(folder, **overrides))
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainingRun(config, resume=True)


def test_a_run_with_other_output_can_go_on(finished):
    assert main([str(write_config(finished[0])), "output.log_steps=5", "--resume"]) == 0


def test_as_many_processes_must_go_on(finished):
    folder, _, _ = finished
    checkpoint = list_checkpoints(folder / "run" / "checkpoints")[-1]
    (checkpoint / "random_states_1.pkl").write_bytes((checkpoint / "random_states_0.pkl").read_bytes())
    with pytest.raises(ValueError, match="was written by 2 processes, and there are 1"):
        TrainingRun(load_config(write_config(folder)), resume=True)
    (checkpoint / "random_states_1.pkl").unlink()


@pytest.mark.slow
def test_a_killed_process_loses_no_checkpoint(finished, tmp_path):
    """SIGKILL while it runs; then the same command with --resume ends as if nothing had happened."""
    folder, _, _ = finished
    command = [sys.executable, "-m", "crossvlt_hf", "train", str(write_config(tmp_path))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list_checkpoints(tmp_path / "run" / "checkpoints") and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main([*command[4:], "--resume"]) == 0
    assert losses_of(tmp_path) == losses_of(folder)


@pytest.mark.slow
def test_accumulation_equals_one_large_batch(tmp_path):
    plain = {
        **SMALL["model"]["config"],
        "vision_config": {**VISION, "drop_path_rate": 0.0},
        "text_config": {**TEXT, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    }
    losses = []
    for accumulation in (1, 4):
        options = {**SMALL["optimization"], "accumulation": accumulation, "freeze_batch_norm": True, "max_steps": 5}
        folder = tmp_path / str(accumulation)
        run = small_run(folder, model={**SMALL["model"], "config": plain}, optimization=options, data__validation=[])
        run.run()
        losses.append(losses_of(folder))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


TWO_PROCESSES = """
import sys
from accelerate import debug_launcher
from crossvlt_hf.training import optimization
from crossvlt_hf.training.__main__ import main
optimization.multiplies_in_bf16 = lambda device: False
debug_launcher(main, (sys.argv[1:],), num_processes=2)
"""


@pytest.mark.slow
def test_two_processes_follow_one(tmp_path):
    """The same global batch on one process and on two real ones: the loss curve within 1e-4 over 20 steps.

    Dropout is off, and BatchNorm uses its running statistics in both, since processes without GPUs cannot share
    theirs.
    """
    plain = {
        **SMALL["model"]["config"],
        "vision_config": {**VISION, "drop_path_rate": 0.0},
        "text_config": {**TEXT, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    }
    settings = {**SMALL["optimization"], "freeze_batch_norm": True, "max_steps": 20, "ema_decay": None}
    curves = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        path = write_config(
            folder,
            model={**SMALL["model"], "config": plain},
            optimization={**settings, "mixed_precision": "auto" if processes == 2 else "no"},
            output__evaluation_steps=10,
        )
        if processes == 1:
            assert main([str(path)]) == 0
        else:
            done = run_python("-c", TWO_PROCESSES, path)
            assert done.returncode == 0, done.stderr[-3000:]
        curves.append(losses_of(folder))
    assert len(curves[0]) == len(curves[1]) == 20
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    evaluations = [[e for e in log_of(tmp_path / name) if "validation/samples" in e] for name in ("1", "2")]
    assert [e["validation/samples"] for e in evaluations[1]] == [8] * 2
    assert evaluations[1][0]["validation/mean_iou"] == pytest.approx(
        evaluations[0][0]["validation/mean_iou"], abs=1e-3
    )


def test_a_run_that_has_nothing_to_resume_says_so(tmp_path, capsys):
    small_run(tmp_path, resume=True, data__validation=[])
    assert "has no checkpoint to resume from: the run starts at its first step." in capsys.readouterr().err


@pytest.mark.parametrize(("quick", "precision"), [(True, "bf16"), (False, "no")])
def test_automatic_precision_is_settled_before_the_run(tmp_path, monkeypatch, quick, precision):
    """What was used is in the folder, so that a run is resumed in the same precision on any machine."""
    monkeypatch.setattr("crossvlt_hf.training.optimization.multiplies_in_bf16", lambda device: quick)
    run = small_run(tmp_path, optimization__mixed_precision="auto", data__validation=[])
    assert run.accelerator.mixed_precision == precision
    assert load_config(tmp_path / "run" / "config.yaml").optimization.mixed_precision == precision
    assert run.model.config._attn_implementation == ("eager" if precision == "bf16" else "sdpa")


def test_automatic_precision_leaves_others(tmp_path):
    for precision in (None, "no", "bf16", "fp16"):
        config = load_config(write_config(tmp_path, optimization__mixed_precision=precision))
        assert settle_precision(config) is config


@pytest.mark.slow
def test_half_precision(tmp_path, finished):
    folder, _, _ = finished
    AcceleratorState._reset_state(reset_partial_state=True)  # if `finished` was made just now, in another precision
    small_run(tmp_path, optimization__mixed_precision="bf16", data__validation=[]).run()
    assert losses_of(tmp_path) == pytest.approx(losses_of(folder), rel=0.05)


def test_images_of_test_splits_are_left_out(tmp_path):
    """A folder whose test split shows an image of its train split."""
    drawn = load_data("refshapes", "train", scenes=6, expressions=2, side=32)
    splits = ["train"] * 11 + ["test"]  # the two of the last image
    write_folder(({**row, "split": split} for row, split in zip(drawn, splits, strict=True)), tmp_path / "mine")
    train, test = ({"name": str(tmp_path / "mine"), "split": split} for split in ("train", "test"))
    assert len(small_run(tmp_path / "a", data__train=[train], data__validation=[]).batches.pairs) == 11
    kept = small_run(tmp_path / "b", data__train=[train], data__exclude=[test], data__validation=[]).batches.pairs
    assert len(kept) == 10
    assert drawn[11]["image_id"] not in kept.datasets[0].with_format(None)["image_id"]


@pytest.mark.slow
def test_two_hundred_steps_on_eight_pairs(tmp_path):
    """The whole loss falls below a twentieth of its start."""
    vision = {"embed_dim": 16, "num_heads": [1, 2, 4, 8], "drop_path_rate": 0.0}
    text = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "hidden_dropout_prob": 0.0}
    text["attention_probs_dropout_prob"] = 0.0
    config = {"vision_config": {**VISION, **vision}, "text_config": {**TEXT, **text}}
    config |= {"fusion_head_dim": 16, "alignment_dim": 32, "alignment_temperature": 0.07, "decoder_hidden_size": 32}
    optimization = {
        "max_steps": 200,
        "batch_size": 8,
        "learning_rate": 2e-3,
        "betas": [0.9, 0.98],
        "weight_decay": 0.0,
    }
    run = small_run(
        tmp_path,
        model={**SMALL["model"], "image_size": 96, "config": config},
        data__train=[{**SMALL["data"]["train"][0], "scenes": 4, "side": 96}],
        data__validation=[],
        optimization={**optimization, "warmup_steps": 10, "max_grad_norm": 1.0},
        output__evaluation_steps=200,
    )
    run.run()
    losses = losses_of(tmp_path)
    assert len(losses) == 200
    assert losses[-1] < 0.05 * losses[0]


def test_frozen_parts_stay(tmp_path):
    run = small_run(
        tmp_path, model={**SMALL["model"], "freeze": ["text_model.embeddings", "vision_model"]}, data__validation=[]
    )
    before = {name: value.clone() for name, value in weights(run).items()}
    run.run()
    changed = {name for name, value in weights(run).items() if not torch.equal(value, before[name])}
    assert not any(name.startswith(("text_model.embeddings", "vision_model")) for name in changed)
    assert any(name.startswith("decoder") for name in changed)
    with pytest.raises(ValueError, match=r"`model\.freeze` must be prefixes of parameter names, got 'nothing'"):
        small_run(tmp_path / "other", model={**SMALL["model"], "freeze": ["nothing"]})


@pytest.mark.slow
def test_a_checkpoint_goes_on_at_another_size(finished, tmp_path):
    folder, _, _ = finished
    run = small_run(
        tmp_path,
        model={"checkpoint": str(folder / "run" / "last"), "image_size": 64, "gradient_checkpointing": True},
        optimization__max_steps=3,
    )
    assert run.processor.image_size == (64, 64)
    assert run.model.is_activation_checkpointing
    run.run()
    assert len(losses_of(tmp_path)) == 3


def test_batches_that_cannot_be_divided(tmp_path):
    with pytest.raises(ValueError, match=r"`optimization\.batch_size` must be divisible by 3"):
        small_run(tmp_path, optimization__accumulation=3)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    run = small_run(tmp_path, data__validation=[])
    with torch.no_grad():
        run.model.decoder.classifier.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"The loss is nan at step 1; lower") as error:
        run.run()
    assert str(error.value).count("refshapes train-") == 8  # the pairs of the step, by name
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []


@pytest.mark.slow
def test_weights_that_are_not_finite_are_not_kept(finished, tmp_path, monkeypatch):
    step = TrainingRun._step

    def overflow(run, batches):
        losses = step(run, batches)
        if run.progress.step == 4:
            with torch.no_grad():
                run.model.decoder.classifier.weight.fill_(float("inf"))
        return losses

    monkeypatch.setattr(TrainingRun, "_step", overflow)
    with pytest.raises(FloatingPointError, match="Weights are not finite after step 4"):
        small_run(tmp_path).run()
    monkeypatch.undo()
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step-2"]
    small_run(tmp_path, resume=True).run()
    assert losses_of(tmp_path) == losses_of(finished[0])


# ---- nothing is lost


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("moment", ["_step", pytest.param("_evaluate", marks=pytest.mark.slow)])
def test_a_request_to_end_keeps_what_was_done(finished, tmp_path, monkeypatch, capsys, number, code, moment):
    """In the midst of step 3, or of the evaluation of step 2."""
    method = getattr(TrainingRun, moment)

    def interrupt(run, *batches):
        if run.progress.step == 2:
            signal.raise_signal(number)
        return method(run, *batches)

    monkeypatch.setattr(TrainingRun, moment, interrupt)
    handlers = [signal.getsignal(other) for other in (signal.SIGTERM, signal.SIGINT)]
    config = str(write_config(tmp_path))
    assert main([config]) == code
    monkeypatch.undo()
    step = 3 if moment == "_step" else 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"Stopped by {signal.Signals(number).name} after step {step} of 6. Nothing is lost: rerun" in last
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[-1].name == f"step-{step}"
    assert [signal.getsignal(other) for other in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert main([config, "--resume"]) == 0
    assert losses_of(tmp_path) == losses_of(finished[0])


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_the_whole_group_spares_the_loader(tmp_path, number):
    """As batch systems and terminals send it: to the processes that read the data, too."""
    config = write_config(
        tmp_path, data={**SMALL["data"], "workers": 2, "validation": []}, output__evaluation_steps=500
    )
    command = [sys.executable, "-m", "crossvlt_hf", "train", str(config), "optimization.max_steps=2000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (tmp_path / "run" / "log.jsonl").is_file() and len(log_of(tmp_path)) > 3:
            break
        time.sleep(0.05)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors[-2000:]
    assert f"Stopped by {number.name} after step" in errors.splitlines()[-1]
    assert len(list_checkpoints(tmp_path / "run" / "checkpoints")) == 1


@pytest.mark.usefixtures("interruptible")
def test_a_second_request_ends_at_once(tmp_path, monkeypatch, capsys):
    def interrupt(run, batches):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainingRun, "_step", interrupt)
    assert main([str(write_config(tmp_path))]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "crossvlt: interrupted"
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoints_before(finished, tmp_path, monkeypatch, capsys):
    """A limit on the size of files makes writing fail as a full disk does, within a file."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = Checkpoints.save

    def fill_up(checkpoints, network, progress):
        if progress.step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        save(checkpoints, network, progress)

    monkeypatch.setattr(Checkpoints, "save", fill_up)
    config = str(write_config(tmp_path, output__trackers=[]))
    try:
        assert main([config]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    monkeypatch.undo()
    assert "step-4 could not be written" in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-2"]
    assert main([config, "--resume"]) == 0
    assert losses_of(tmp_path) == losses_of(finished[0])


@pytest.mark.slow
def test_a_damaged_checkpoint_is_left_aside(finished, tmp_path, capsys):
    config = str(write_config(tmp_path, output__keep=3))
    assert main([config, "optimization.max_steps=6"]) == 0
    checkpoints = list_checkpoints(tmp_path / "run" / "checkpoints")
    for path in checkpoints[1:]:
        with (path / "model.safetensors").open("r+b") as file:
            file.truncate(100)
    (tmp_path / "run" / "checkpoints" / ".step-9.partial").mkdir()
    assert main([config, "--resume"]) == 0
    assert "step-6 is damaged and ignored" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints" / ".step-9.partial").exists()
    assert losses_of(tmp_path) == losses_of(finished[0])
    for path in checkpoints:
        (path / "optimizer.bin").unlink()
    assert main([config, "--resume"]) == 2
    assert "All checkpoints in" in capsys.readouterr().err


@pytest.fixture
def with_a_broken_image(tmp_path):
    """Eight scenes as a folder, an image of which is cut off; its name."""
    write_folder(load_data("refshapes", "train", scenes=8, expressions=1, side=32), tmp_path / "data")
    image = sorted((tmp_path / "data" / "images").iterdir())[3]
    image.write_bytes(image.read_bytes()[:60])
    return image.name


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_is_named_or_skipped_and_counted(tmp_path, with_a_broken_image, capsys, workers):
    data = {
        "train": [{"name": str(tmp_path / "data"), "split": "train"}],
        "validation": [],
        "workers": workers,
    }
    few = {"optimization__max_steps": 4, "optimization__batch_size": 4, "output__evaluation_steps": 2}
    config = str(write_config(tmp_path, data=data, **few))
    assert main([config]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("crossvlt: ")]
    assert "The reference refshapes train-0-3-0 cannot be read" in line
    assert with_a_broken_image in line
    assert "data.on_error=skip" in line
    assert "Traceback" not in line
    assert main([config, "data.on_error=skip", f"output.folder={tmp_path / 'skips'}"]) == 0
    assert main([config, "data.on_error=skip", "--resume"]) == 0  # what stopped at it may go on so
    assert "skipped: The reference refshapes train-0-3-0 cannot be read" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "skips" / "log.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines if "loss" in line][-1] == 2  # once in each of two epochs


def test_broken_data_in_an_evaluation_are_told_in_a_line(tmp_path, with_a_broken_image, capsys):
    """By a process of the loader, which puts its traceback around the sentence."""
    validation = [{"name": str(tmp_path / "data"), "split": "train"}]
    data = {**SMALL["data"], "validation": validation, "workers": 1}
    assert main([str(write_config(tmp_path, data=data, output__evaluation_steps=1))]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert with_a_broken_image in last
    assert "Traceback" not in last


@pytest.mark.slow
def test_runs_that_are_killed_end_as_if_they_had_not_been(tmp_path):
    """More with `PYTHONPATH=tests python tests/training/kill_training.py --kills 100`."""
    script = Path(__file__).with_name("kill_training.py")
    done = run_python(script, "--kills", 4, "--in-saves", 2, "--steps", 12, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["in a save"] >= 2
    assert counts["in a save"] + counts["elsewhere"] >= 4
    assert counts["ended"] >= 1
