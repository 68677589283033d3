"""The authors' checkpoints, in every form in which they are found, become ours; whatever else there is, is refused."""

import argparse
import json
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WORDS, tiny_tokenizer
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from parity.fill import case_inputs, fill_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoProcessor, BertConfig, BertTokenizer

from crossvlt_hf import CrossVLTConfig, CrossVLTModel
from crossvlt_hf.weights.checkpoint import load_checkpoint
from crossvlt_hf.weights.original import (
    convert_checkpoint,
    convert_key,
    convert_state_dict,
    infer_config,
    is_dropped,
)
from crossvlt_hf.weights.state_dicts import load_strictly
from crossvlt_hf.weights.vocabulary import default_tokenizer, load_tokenizer


HEADS = {"text_config": {"num_attention_heads": 4}}  # what the shapes of the tiny checkpoint do not tell
WORD_EMBEDDINGS = "lang_stage1.embeddings.word_embeddings.weight"
PATCH_EMBEDDING = "backbone.0.patch_embed.proj.weight"


@cache
def parity(tag: str) -> dict:
    return json.loads((Path(__file__).parents[1] / "parity" / f"{tag}.json").read_text())


@cache
def _filled() -> dict[str, torch.Tensor]:
    return fill_state_dict(parity("tiny")["shapes"])


def original() -> dict[str, torch.Tensor]:
    """The tiny checkpoint, without temperatures like the published ones."""
    return dict(_filled())


def on_meta(tag: str) -> dict[str, torch.Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in parity(tag)["shapes"].items()}


def saved(folder: Path, content, name: str = "original.pth", **kwargs) -> Path:
    torch.save(content, folder / name, **kwargs)
    return folder / name


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        assert actual[key].dtype == tensor.dtype, key
        assert torch.equal(actual[key], tensor), key


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    """The tiny checkpoint, converted once from a bare state dict."""
    folder = tmp_path_factory.mktemp("converted")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    source = saved(folder, original())
    convert_checkpoint(source, folder / "out", tokenizer=str(folder / "tokenizer"), **HEADS)
    return folder / "out"


# ---- keys


@pytest.mark.parametrize("tag", ["tiny", "base"])
@pytest.mark.parametrize("with_temperatures", [False, True])
def test_every_key_has_its_place(tag, with_temperatures):
    state_dict = on_meta(tag) | ({"temp": torch.empty(4)} if with_temperatures else {})
    new_keys = {key: convert_key(key) for key in state_dict}
    dropped = {key for key in state_dict if is_dropped(key)}
    mapped = {key for key, new in new_keys.items() if new is not None and key not in dropped}
    assert state_dict.keys() - mapped - dropped == ({"temp"} if with_temperatures else set())

    counts = Counter(new_keys[key] for key in mapped)
    assert set(counts.values()) == {1}
    with torch.device("meta"):
        own = CrossVLTModel(infer_config(state_dict, **(HEADS if tag == "tiny" else {}))).state_dict()
    derived = {key for key in own if key.endswith(("alignment.temperature", "num_batches_tracked"))}
    assert len(derived) == 4 + 6
    assert counts.keys() | derived == own.keys()
    assert not counts.keys() & derived
    assert {key: value.shape for key, value in convert_state_dict(state_dict).items()} == {
        key: value.shape for key, value in own.items()
    }


def test_base_has_662_keys():
    keys = parity("base")["shapes"]
    dropped = [key for key in keys if is_dropped(key)]
    assert len(keys) == 662
    assert len(dropped) == 2 + 2 * 7  # the gate that feeds nothing; two biases in each of seven fusions
    assert sum(convert_key(key) is not None for key in keys if key not in dropped) == 662 - 16


@pytest.mark.parametrize(
    "key",
    [
        "",
        "temp",
        "backbone",
        "backbone.4.norm4.weight",
        "backbone.1.norm2.weight",
        "backbone.1.patch_embed.proj.weight",
        "backbone.0.layers.blocks.0.attn.qkv.weight.x",
        "x.backbone.0.norm0.weight",
        "lang_stage0.layer.0.output.dense.weight",
        "lang_stage5.layer.0.output.dense.weight",
        "lang_stage2.embeddings.word_embeddings.weight",
        "classifier.conv3_4.weight",
        "classifier.conv1_5.weight",
        "classifier.",
        "decoder.classifier.weight",
    ],
)
def test_unknown_key(key):
    assert convert_key(key) is None
    assert not is_dropped(key)


def test_values():
    """Nothing but the 1x1 convolutions changes shape; temperatures are 1 where the file has none."""
    state_dict = original()
    new = convert_state_dict(state_dict)
    for key, value in state_dict.items():
        if not is_dropped(key):
            assert torch.equal(new[convert_key(key)].flatten(), value.flatten()), key
    assert [new[f"stages.{stage}.alignment.temperature"].item() for stage in range(4)] == [1.0] * 4
    assert state_dict.keys() == original().keys()  # the caller's dict is left alone


def test_temperatures():
    new = convert_state_dict(original() | {"temp": torch.tensor([0.1, 0.2, 0.3, 0.4])})
    actual = [new[f"stages.{stage}.alignment.temperature"].item() for stage in range(4)]
    assert actual == pytest.approx([0.1, 0.2, 0.3, 0.4])


# ---- config


def test_infer_base():
    config, expected = infer_config(on_meta("base")), CrossVLTConfig()
    assert config.decoder_width == expected.decoder_width
    expected.decoder_hidden_size = config.decoder_hidden_size
    assert config.to_dict() == expected.to_dict()


def test_infer_tiny():
    config, expected = infer_config(on_meta("tiny"), **HEADS), parity("tiny")["config"]
    for name in ("embed_dim", "depths", "num_heads", "window_size"):
        assert getattr(config.vision_config, name) == expected[name], name
    for name in ("hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings"):
        assert getattr(config.text_config, name) == expected[name], name
    assert config.text_config.depths == expected["text_depths"]
    assert config.text_config.num_attention_heads == expected["text_heads"]
    assert config.vision_config.mlp_ratio == 4
    assert (config.alignment_dim, config.fusion_head_dim) == (256, 64)


def test_overrides():
    config = infer_config(
        on_meta("tiny"),
        vision_config={"drop_path_rate": 0.1},
        text_config=HEADS["text_config"] | {"hidden_dropout_prob": 0.2},
        fusion_head_dim=32,
        alignment_temperature=0.07,
    )
    assert (config.vision_config.drop_path_rate, config.vision_config.embed_dim) == (0.1, 32)
    assert (config.text_config.hidden_dropout_prob, config.text_config.hidden_size) == (0.2, 64)
    assert (config.fusion_head_dim, config.alignment_temperature) == (32, 0.07)
    assert infer_config(on_meta("tiny"), text_config=None).text_config.num_attention_heads == 1  # 64 wide


@pytest.mark.parametrize(
    "overrides",
    [{"fusion_head_dim": 7}, {"text_config": {"num_attention_heads": 5}}, {"vision_config": {"window_size": -1}}],
    ids=str,
)
def test_overrides_that_do_not_fit(tmp_path, overrides):
    (name,) = {"fusion_head_dim", "num_attention_heads", "window_size"} & set(str(overrides).split("'"))
    with pytest.raises(ValueError, match=name):
        convert_checkpoint(saved(tmp_path, original()), tmp_path / "out", **overrides)


# ---- forms in the wild


def buffers() -> dict[str, torch.Tensor]:
    """The integers of a real checkpoint."""
    index = {
        key.replace("bias_table", "index"): torch.zeros(16, 16, dtype=torch.int64)
        for key in original()
        if key.endswith("relative_position_bias_table")
    }
    steps = {
        key.replace("running_var", "num_batches_tracked"): torch.tensor(7)
        for key in original()
        if key.endswith("running_var")
    }
    return {**index, **steps, "lang_stage1.embeddings.position_ids": torch.arange(64)[None]}


def training_state() -> dict:
    return {
        "args": argparse.Namespace(lr=3e-5, model_id="crossvlt", resume=""),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 3e-5, "params": [0]}]},
        "lr_scheduler": {"base_lrs": [3e-5], "last_epoch": 3, "lr_lambdas": [None]},
        "epoch": np.int64(39),
    }


FORMS = {
    "legacy": lambda state_dict: state_dict,
    "model": lambda state_dict: {"model": state_dict},
    "training": lambda state_dict: {"model": state_dict, **training_state()},
    "module": lambda state_dict: {"state_dict": {f"module.{key}": value for key, value in state_dict.items()}},
    "buffers": lambda state_dict: {"model": state_dict | buffers()},
    "ones": lambda state_dict: state_dict | {"temp": torch.ones(4)},
    "parameters": lambda state_dict: {key: nn.Parameter(value) for key, value in state_dict.items()},
    "transposed": lambda state_dict: {k: v.t().contiguous().t() if v.ndim == 2 else v for k, v in state_dict.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(tmp_path, converted, form):
    source = saved(tmp_path, FORMS[form](original()), _use_new_zipfile_serialization=form != "legacy")
    config = convert_checkpoint(source, tmp_path / "out", **HEADS)
    expected = weights(converted)
    if form == "buffers":
        expected |= {key: torch.tensor(7) for key in expected if key.endswith("num_batches_tracked")}
    assert_same(weights(tmp_path / "out"), expected)
    assert (tmp_path / "out" / "config.json").read_bytes() == (converted / "config.json").read_bytes()
    assert config.to_dict() == CrossVLTConfig.from_pretrained(converted).to_dict()


def test_safetensors(tmp_path, converted):
    save_file(original(), tmp_path / "original.safetensors")
    convert_checkpoint(tmp_path / "original.safetensors", tmp_path / "out", **HEADS)
    assert_same(weights(tmp_path / "out"), weights(converted))


def test_source_in_the_way_of_the_output(tmp_path, converted):
    """The weights are read from the file that is written."""
    save_file(original(), tmp_path / "model.safetensors")
    convert_checkpoint(tmp_path / "model.safetensors", tmp_path, **HEADS)
    assert_same(weights(tmp_path), weights(converted))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_every_precision_becomes_float32(tmp_path, dtype):
    """Exact from half precision, and never a file of several precisions."""
    state_dict = {key: value.to(dtype) for key, value in original().items()}
    convert_checkpoint(saved(tmp_path, state_dict), tmp_path / "out", **HEADS)
    assert_same(weights(tmp_path / "out"), convert_state_dict(state_dict))
    assert {value.dtype for value in weights(tmp_path / "out").values()} == {torch.float32, torch.int64}
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    table = "vision_model.stages.0.blocks.0.attention.relative_position_bias_table"
    key = "backbone.0.layers.blocks.0.attn.relative_position_bias_table"
    assert torch.equal(model.state_dict()[table], state_dict[key].float())


def test_weights_that_are_not_finite(tmp_path):
    state_dict = original()
    state_dict["classifier.conv1_1.bias"] = torch.tensor([0.0, float("nan")])
    with pytest.raises(ValueError, match=r"classifier.conv1_1.bias in .* must be finite"):
        convert_checkpoint(saved(tmp_path, state_dict), tmp_path / "out", **HEADS)


def test_twice_is_once(tmp_path, converted):
    source = saved(tmp_path, original())
    before = source.read_bytes()
    for _ in range(2):
        convert_checkpoint(source, tmp_path / "out", tokenizer=str(converted.parent / "tokenizer"), **HEADS)
        assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == {
            file.name: file.read_bytes() for file in converted.iterdir()
        }
    assert source.read_bytes() == before


def test_converted_is_not_original(tmp_path, converted):
    with pytest.raises(ValueError, match="not a CrossVLT checkpoint"):
        convert_checkpoint(converted / "model.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- what is written


def by_hand(config: CrossVLTConfig) -> CrossVLTModel:
    model = CrossVLTModel(config).eval()
    own = model.state_dict()
    for key, value in original().items():
        if not is_dropped(key):
            target = own[convert_key(key)]
            target.copy_(value.view(target.shape))
    return model


def test_auto_classes(converted, photo):
    model, processor = AutoModel.from_pretrained(converted), AutoProcessor.from_pretrained(converted)
    assert type(model) is CrossVLTModel
    assert not model.training
    reference = by_hand(model.config)
    case = next(case for case in parity("tiny")["eval_cases"] if case["name"] == "square")
    pixel_values, input_ids, attention_mask, _ = case_inputs(case, 200)
    inputs = processor(photo, ["the cup", "the red bus left of the man"], size=(64, 64), return_tensors="pt")
    inputs.pop("original_sizes")
    with torch.no_grad():
        drawn = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
        for batch in (drawn, inputs):
            assert torch.equal(model(**batch).logits, reference(**batch).logits)


def test_loads_strictly(converted):
    model, processor = load_checkpoint(converted)
    assert model.config.text_config.num_attention_heads == 4
    assert processor.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    inputs = processor(text=["the cup"])
    assert len(inputs["input_ids"][0]) == 21
    assert processor.tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True) == "the cup"


def test_default_tokenizer():
    tokenizer = default_tokenizer()
    assert len(tokenizer) == 30522
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the"]
    assert tokenizer.convert_tokens_to_ids(special) == [0, 100, 101, 102, 103, 1996]
    text = "The man, hello WORLD: embeddings Café left-cup"
    tokens = ["the", "man", ",", "hello", "world", ":", "em", "##bed", "##ding", "##s", "cafe", "left", "-", "cup"]
    assert tokenizer.tokenize(text) == tokens
    ids = [101, 1996, 2158, 1010, 7592, 2088, 1024, 7861, 8270, 4667, 2015, 7668, 2187, 1011, 2452, 102]
    assert tokenizer(text)["input_ids"] == ids


def test_default_tokenizer_is_written_where_it_fits(tmp_path):
    state_dict = original() | {WORD_EMBEDDINGS: torch.zeros(30522, 64)}
    convert_checkpoint(saved(tmp_path, state_dict), tmp_path / "out", **HEADS)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    inputs = processor(text=["The white cup"])
    assert inputs["input_ids"][0] == [101, 1996, 2317, 2452, 102] + [0] * 16
    assert sum(inputs["attention_mask"][0]) == 5


def test_default_tokenizer_does_not_fit(tmp_path, caplog):
    convert_checkpoint(saved(tmp_path, original()), tmp_path / "out", **HEADS)
    written = {file.name for file in (tmp_path / "out").iterdir() if file.suffix not in (".py", ".txt")}
    assert written == {"config.json", "model.safetensors"}
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("crossvlt_hf")]
    assert "30522" in warning
    assert "200" in warning
    with pytest.raises((OSError, ValueError)):
        load_checkpoint(tmp_path / "out")


def test_no_processor_of_another_checkpoint_stays(tmp_path):
    fitting = original() | {WORD_EMBEDDINGS: torch.zeros(30522, 64)}
    convert_checkpoint(saved(tmp_path, fitting), tmp_path / "out", **HEADS)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match="out holds a checkpoint with other weights"):
        convert_checkpoint(saved(tmp_path, original()), tmp_path / "out", **HEADS)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    convert_checkpoint(saved(tmp_path, original()), tmp_path / "out", overwrite=True, **HEADS)
    with pytest.raises((OSError, ValueError)):
        load_checkpoint(tmp_path / "out")


def test_a_config_of_another_model_is_not_replaced(tmp_path):
    BertConfig().save_pretrained(tmp_path / "bert")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="no folder of a CrossVLT"):
        convert_checkpoint(saved(tmp_path, original()), tmp_path / "bert", **HEADS)
    convert_checkpoint(saved(tmp_path, original()), tmp_path / "notes", **HEADS)
    assert (tmp_path / "notes" / "notes.txt").read_text() == "mine"


def tokenizer_folder(folder: Path, size: int) -> str:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    words += [f"word{index}" for index in range(size - len(words))]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(folder)
    return str(folder)


def test_own_tokenizer_of_exactly_that_size(tmp_path):
    folder = tokenizer_folder(tmp_path / "tokenizer", 200)
    convert_checkpoint(saved(tmp_path, original()), tmp_path / "out", tokenizer=folder, **HEADS)
    assert len(load_checkpoint(tmp_path / "out")[1].tokenizer) == 200


def test_own_tokenizer_too_large(tmp_path):
    folder = tokenizer_folder(tmp_path / "tokenizer", 201)
    with pytest.raises(ValueError, match=r"201 tokens.*200"):
        convert_checkpoint(saved(tmp_path, original()), tmp_path / "out", tokenizer=folder, **HEADS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", [None, "", "{", "null", "[]", "{}"], ids=str)
def test_no_tokenizer(tmp_path, damage):
    if damage is not None:
        (tmp_path / "tokenizer").mkdir()
        (tmp_path / "tokenizer" / "tokenizer.json").write_text(damage)
        (tmp_path / "tokenizer" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(OSError, match=r"[Nn]o tokenizer"):
        load_tokenizer(str(tmp_path / "tokenizer"))


# ---- what is refused


def refused(folder: Path, state_dict: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(saved(folder, state_dict), folder / "out", **HEADS)
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("key", "named"),
    [
        (PATCH_EMBEDDING, PATCH_EMBEDDING),
        (WORD_EMBEDDINGS, WORD_EMBEDDINGS),
        ("classifier.conv1_4.weight", "classifier.conv1_4.weight"),
        ("backbone.2.layers.blocks.1.mlp.fc2.bias", "vision_model.stages.2.blocks.1.mlp.fc2.bias"),
        ("backbone.1.layers.attn2.values_l.weight", "stages.1.merged_fusion.attention.value.weight"),
        ("lang_stage3.crossattention.self.key.bias", "text_model.stages.2.cross_attention.attention.key.bias"),
        ("lang_stage1.encoder.proj.weight", "stages.0.alignment.sentence_projection.weight"),
        ("classifier.bn2_3.running_mean", "decoder.blocks.1.norm2.running_mean"),
    ],
)
def test_missing_key(tmp_path, key, named):
    state_dict = original()
    del state_dict[key]
    refused(tmp_path, state_dict, named.replace(".", r"\."))


@pytest.mark.parametrize(
    "key",
    [
        "head.weight",
        "backbone.0.layers.blocks.0.attn.extra",
        "backbone.0.layers.blocks.2.norm1.weight",  # known in form, but the block has no other weight
        "lang_stage2.pooler.dense.weight",
        "backbone.4.layers.attn1.v_q.0.bias",  # there is no fifth stage
        "lang_stage1.layer.0.output.dense.weight",  # without `encoder.`: the same place as a key that is there
        "lang_stage2.attention.self.query.weight",  # likewise, without `cross`
    ],
)
def test_extra_key(tmp_path, key):
    refused(tmp_path, original() | {key: torch.zeros(64, 64)}, key.split(".")[-2])


def test_many_extra_keys(tmp_path):
    extra = {f"module{index}.weight": torch.ones(1) for index in range(100)}
    refused(tmp_path, original() | extra, r"100 keys are unknown .*module0\.weight.*module19\.weight, \.\.\.")


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("backbone.1.norm1.weight", [63], r"stages\.1\.norm\.weight has shape \[63\] instead of \[64\]"),
        (
            "backbone.0.layers.attn1.v_q.0.weight",
            [64, 32, 3],
            r"query\.weight has shape \[64, 32, 3\] instead of \[64, 32\]",
        ),
        ("lang_stage4.proj.weight", [64, 256], r"has shape \[64, 256\] instead of \[256, 64\]"),
        ("temp", [3], "temperature"),
        ("temp", [5], "temperature"),
        ("temp", [4, 1], r"`temp` must have shape \[4\].* got \[4, 1\]"),
    ],
)
def test_wrong_shape(tmp_path, key, shape, message):
    refused(tmp_path, original() | {key: torch.ones(shape)}, message)


ODD = {
    "temperature without dimension": ("temp", torch.tensor(1.0)),
    "integer temperatures": ("temp", torch.ones(4, dtype=torch.int64)),
    "empty patches": (PATCH_EMBEDDING, torch.ones(0, 3, 4, 4)),
    "flat patches": (PATCH_EMBEDDING, torch.ones(32)),
    "flat words": (WORD_EMBEDDINGS, torch.ones(200)),
    "flat positions": ("lang_stage1.embeddings.position_embeddings.weight", torch.tensor(1.0)),
    "flat biases": ("backbone.0.layers.blocks.0.attn.relative_position_bias_table", torch.ones(49)),
    "no heads": ("backbone.0.layers.blocks.0.attn.relative_position_bias_table", torch.ones(49, 0)),
    "flat decoder": ("classifier.conv1_4.weight", torch.tensor(1.0)),
    "integers": (PATCH_EMBEDDING, torch.ones(32, 3, 4, 4, dtype=torch.int64)),
    "complex": (PATCH_EMBEDDING, torch.ones(32, 3, 4, 4, dtype=torch.complex64)),
    "sparse": (PATCH_EMBEDDING, torch.ones(32, 3, 4, 4).to_sparse()),
    "meta": (PATCH_EMBEDDING, torch.ones(32, 3, 4, 4, device="meta")),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ODD)
def test_odd_tensor(tmp_path, name):
    key, value = ODD[name]
    refused(tmp_path, original() | {key: value}, "")


def test_shared_memory(tmp_path):
    """Two keys with one tensor, such as a bias that was tied once."""
    names = ("backbone.0.patch_embed.proj.bias", "backbone.0.patch_embed.norm.bias")
    convert_checkpoint(saved(tmp_path, original() | dict.fromkeys(names, torch.ones(32))), tmp_path / "out", **HEADS)
    assert all(torch.equal(weights(tmp_path / "out")[convert_key(name)], torch.ones(32)) for name in names)


@pytest.mark.parametrize(
    "state_dict",
    [{"a": torch.ones(1)}, {"fc.weight": torch.ones(3, 3), "fc.bias": torch.ones(3)}, {"temp": torch.ones(4)}],
    ids=lambda state_dict: next(iter(state_dict)),
)
def test_other_model(tmp_path, state_dict):
    refused(tmp_path, state_dict, "not a CrossVLT checkpoint")


def test_output_is_a_file(tmp_path):
    (tmp_path / "out").write_text("mine")
    for folder in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(OSError, match="out"):
            convert_checkpoint(saved(tmp_path, original()), folder, **HEADS)
    assert (tmp_path / "out").read_text() == "mine"


SHAPES = st.lists(st.integers(0, 5), max_size=4)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
READ = ["temp", PATCH_EMBEDDING, WORD_EMBEDDINGS, "classifier.conv1_4.weight"]
KEYS = st.sampled_from(sorted(parity("tiny")["shapes"])) | st.sampled_from(READ)
# A failure is told as it was found: one example is small, and to make it smaller takes minutes.
RANDOM = settings(max_examples=40, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@RANDOM
@given(entries=st.dictionaries(KEYS | st.text(max_size=5), st.tuples(SHAPES, DTYPES), max_size=8))
def test_random_state_dict(scratch, entries):
    state_dict = {key: torch.zeros(shape, dtype=dtype) for key, (shape, dtype) in entries.items()}
    with pytest.raises(ValueError, match=r"."):
        convert_checkpoint(saved(scratch, state_dict), scratch / "out")


@pytest.mark.slow
@RANDOM
@given(changes=st.dictionaries(KEYS, st.none() | st.tuples(SHAPES, DTYPES), min_size=1, max_size=3))
def test_random_change(changes):
    """All that `convert_checkpoint` does before it writes."""
    state_dict = original()
    for key, change in changes.items():
        state_dict.pop(key, None)
        if change is not None:
            state_dict[key] = torch.zeros(change[0], dtype=change[1])
    try:
        new = convert_state_dict(state_dict)
        with torch.device("meta"):
            model = CrossVLTModel(infer_config(state_dict, **HEADS))
        load_strictly(model, new, "here")
    except ValueError:
        return
    fitting = original() | {"temp": torch.ones(4)}
    for key, change in changes.items():
        assert is_dropped(key) or key == "temp" or change is not None
        assert is_dropped(key) or change is None or state_dict[key].shape == fitting[key].shape
