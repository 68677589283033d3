"""Pretrained encoders: the library's Swin and BERT, written here, give their numbers in our stages."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from transformers import BertConfig, BertForPreTraining, BertModel, SwinConfig, SwinForImageClassification, SwinModel

from crossvlt_hf import CrossVLTModel
from crossvlt_hf.weights.encoders import from_pretrained_encoders, interpolate_bias_table


SWIN = SwinConfig(
    image_size=64, embed_dim=16, depths=[1, 2, 3, 2], num_heads=[1, 2, 2, 4], window_size=4, drop_path_rate=0.1
)
BERT = BertConfig(
    vocab_size=70, hidden_size=24, num_hidden_layers=9, num_attention_heads=3, intermediate_size=48, hidden_act="gelu"
)
HEADS = {"fusion_head_dim": 8}


def randomise(model):
    """No weight may be at a start that hides a mix-up (0, 1)."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def swin(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swin")
    randomise(SwinForImageClassification(SWIN)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    randomise(BertForPreTraining(BERT)).save_pretrained(folder)
    return folder


MICROSOFT_NAMES = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.norm": "patch_embed.norm",
    "encoder.layers": "layers",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.self.relative_position_bias_table": "attn.relative_position_bias_table",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm.": "norm.",
}


def microsoft_state_dict(folder) -> dict[str, torch.Tensor]:
    """The same weights in Microsoft's layout, from the names that stand in the library's files, buffers included."""
    on_disk = load_file(folder / "model.safetensors")
    weights = {}
    for key, value in on_disk.items():
        for old, new in MICROSOFT_NAMES.items():
            key = key.removeprefix("swin.").replace(old, new)
        if ".attention.self.query." in key:
            parts = [on_disk["swin.encoder." + key.replace("query", name)] for name in ("query", "key", "value")]
            weights[key.replace("attention.self.query", "attn.qkv")] = torch.cat(parts)
        elif ".attention.self." not in key:
            weights[key.replace("classifier", "head")] = value
    buffers = {f"layers.{stage}.blocks.0.attn.relative_position_index": torch.zeros(16, 16).long() for stage in (0, 1)}
    return weights | buffers | {"layers.1.blocks.1.attn_mask": torch.zeros(4, 16, 16)}


@pytest.mark.parametrize("size", [(64, 64), (72, 100), (33, 20)])
def test_swin_outputs(swin, bert, size):
    """Stage by stage; `always_partition` keeps the library from shrinking its windows for good."""
    model, _ = from_pretrained_encoders(swin, bert, **HEADS)
    reference = SwinModel.from_pretrained(swin, add_pooling_layer=False).eval()
    pixel_values = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = model.eval().vision_model(pixel_values, output_hidden_states=True)
        pixels, grid = reference.embeddings(pixel_values)
        assert (ours.hidden_states[0].flatten(1, 2) - pixels).abs().max() <= 1e-5
        for stage, hidden in zip(reference.encoder.layers, ours.hidden_states[1:], strict=True):
            for block in stage.blocks:
                pixels = block(pixels, grid, always_partition=True)
                pixels = pixels[0] if isinstance(pixels, tuple) else pixels
            scale = pixels.abs().max().clamp(min=1)
            assert (hidden.flatten(1, 2) - pixels).abs().max() / scale <= 1e-5
            if stage.downsample is not None:
                pixels = stage.downsample(pixels, grid)
                grid = tuple((side + 1) // 2 for side in grid)


def test_bert_outputs(swin, bert):
    """The whole of BERT: nine layers, three of them in the later stages."""
    model, _ = from_pretrained_encoders(swin, bert, text_layers_in_later_stages=True, **HEADS)
    reference = BertModel.from_pretrained(bert, add_pooling_layer=False).eval()
    input_ids = torch.randint(1, 70, (2, 11), generator=torch.Generator().manual_seed(1))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 5:] = 0
    token_type_ids = (torch.arange(11) > 6).long().expand(2, -1)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
    with torch.no_grad():
        ours = model.text_model.eval()(**inputs, output_hidden_states=True)
        theirs = reference(**inputs, output_hidden_states=True)
    for stage, layer in enumerate((6, 7, 8, 9)):
        kept = attention_mask.bool()
        assert (ours.text_hidden_states[stage] - theirs.hidden_states[layer])[kept].abs().max() <= 1e-5


def test_report(swin, bert):
    model, report = from_pretrained_encoders(swin, bert, **HEADS)
    assert not report.interpolated
    assert "vision.layernorm.weight" in report.unused
    assert any(key.startswith("vision.classifier") for key in report.unused)
    assert any(key.startswith("text.cls.") for key in report.unused)
    assert {key.split(".")[3] for key in report.unused if key.startswith("text.encoder.layer")} == {"6", "7", "8"}
    assert len(set(report.loaded)) == len(report.loaded)
    assert model.config.vision_config.drop_path_rate == 0.3  # the paper's, not the checkpoint's
    assert model.config.text_config.depths == [6, 1, 1, 1]


def test_later_stages_start_from_noise_unless_asked(swin, bert):
    layer = BertModel.from_pretrained(bert).encoder.layer[7].attention.self.query.weight
    for asked in (False, True):
        model, _ = from_pretrained_encoders(swin, bert, text_layers_in_later_stages=asked, **HEADS)
        assert torch.equal(model.text_model.stages[2].layers[0].attention.query.weight, layer) is asked


def test_microsoft_file(swin, bert, tmp_path):
    torch.save({"model": microsoft_state_dict(swin)}, tmp_path / "swin.pth")
    expected, _ = from_pretrained_encoders(swin, bert, **HEADS)
    model, report = from_pretrained_encoders(tmp_path / "swin.pth", bert, **HEADS)
    for key, value in expected.vision_model.state_dict().items():
        assert torch.equal(model.vision_model.state_dict()[key], value), key
    assert {"vision.norm.weight", "vision.head.weight"} <= set(report.unused)


def test_other_window(swin, bert):
    model, report = from_pretrained_encoders(swin, bert, vision_config={"window_size": 6}, **HEADS)
    assert len(report.interpolated) == sum(SWIN.depths)
    table = model.vision_model.stages[0].blocks[0].attention.relative_position_bias_table
    original = SwinModel.from_pretrained(swin).state_dict()
    (key,) = [k for k in original if "layers.0.blocks.0" in k and k.endswith("relative_position_bias_table")]
    assert torch.equal(table, interpolate_bias_table(original[key], 6))
    assert table.shape == (121, 1)


def test_interpolation_keeps_a_smooth_table():
    side = torch.linspace(-1, 1, 7)
    table = (side[:, None] + 2 * side[None, :]).reshape(49, 1)
    fine = interpolate_bias_table(table, 7).view(13, 13)
    assert torch.allclose(fine[6], fine[6].flip(0).neg(), atol=1e-5)
    assert (fine.diff(dim=1) > 0).all()


def test_saves_and_loads(swin, bert, tmp_path):
    model, _ = from_pretrained_encoders(swin, bert, **HEADS)
    model.save_pretrained(tmp_path)
    reloaded = CrossVLTModel.from_pretrained(tmp_path)
    assert all(torch.equal(value, reloaded.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"text_config": {"depths": [12, 1, 1, 1]}}, "has 9 layers, but 12 are needed"),
        ({"text_config": {"depths": [8, 1, 1, 1]}, "text_layers_in_later_stages": True}, "11 are needed"),
        ({"vision_config": {"embed_dim": 32}}, "do not override the sizes of the checkpoint"),
        ({"vision_config": {"depths": [1, 2, 4, 2]}}, "do not have 13 weights"),
    ],
)
def test_what_does_not_fit(swin, bert, overrides, message):
    with pytest.raises(ValueError, match=message):
        from_pretrained_encoders(swin, bert, **HEADS, **overrides)


def test_half_precision_checkpoints_make_a_float32_model(swin, bert, tmp_path):
    BertModel.from_pretrained(bert, dtype=torch.bfloat16).save_pretrained(tmp_path / "bert")
    SwinModel.from_pretrained(swin, dtype=torch.float16).save_pretrained(tmp_path / "swin")
    model, _ = from_pretrained_encoders(tmp_path / "swin", tmp_path / "bert", **HEADS)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.text_config.architectures is None


def test_what_would_be_another_network(swin, bert, tmp_path):
    weights = microsoft_state_dict(swin) | {"absolute_pos_embed": torch.zeros(1, 256, 16)}
    torch.save(weights, tmp_path / "swin.pth")
    with pytest.raises(StrictDataclassError, match="`use_absolute_embeddings` must be False"):
        from_pretrained_encoders(tmp_path / "swin.pth", bert, **HEADS)
    model = BertModel.from_pretrained(bert)
    model.config.is_decoder = True
    model.save_pretrained(tmp_path / "decoder")
    with pytest.raises(ValueError, match="must be a BERT encoder, got a decoder"):
        from_pretrained_encoders(swin, tmp_path / "decoder", **HEADS)


def test_other_kinds_of_checkpoint(swin, bert, tmp_path):
    with pytest.raises(ValueError, match="of type 'swin', got one of type 'bert'"):
        from_pretrained_encoders(bert, bert)
    with pytest.raises(ValueError, match="of type 'bert', got one of type 'swin'"):
        from_pretrained_encoders(swin, swin)
    with pytest.raises(OSError, match="nowhere"):
        from_pretrained_encoders(tmp_path / "nowhere", bert)
    torch.save({"a": torch.ones(1)}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match="not a Swin v1 checkpoint"):
        from_pretrained_encoders(tmp_path / "odd.pth", bert)


def test_missing_weights_are_an_error(bert, swin, tmp_path):
    model = BertModel.from_pretrained(bert)
    state_dict = model.state_dict()
    del state_dict["encoder.layer.3.output.dense.weight"]
    model.save_pretrained(tmp_path, state_dict=state_dict)
    with pytest.raises(ValueError, match=r"but 1 are missing .*: encoder.layer.3.output.dense.weight"):
        from_pretrained_encoders(swin, tmp_path, **HEADS)
