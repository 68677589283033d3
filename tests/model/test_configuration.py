"""The configs: defaults, sizes, validation with a mend, round trips, derived values."""

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel, BertConfig, SwinConfig, Swinv2Config
from transformers.utils import logging

from crossvlt_hf import CrossVLTConfig, CrossVLTModel, CrossVLTTextConfig, CrossVLTVisionConfig


def test_defaults_are_the_paper():
    config = CrossVLTConfig()
    assert config.vision_config.hidden_sizes == [128, 256, 512, 1024]
    assert config.vision_config.depths == [2, 2, 18, 2]
    assert (config.vision_config.window_size, config.vision_config.drop_path_rate) == (12, 0.3)
    assert config.text_config.depths == [6, 1, 1, 1]
    assert config.decoder_width == 512
    assert (config.alignment_dim, config.fusion_head_dim, config.alignment_temperature) == (256, 64, 1.0)
    assert config.to_dict() == CrossVLTConfig.from_size("base").to_dict()


@pytest.mark.parametrize(
    ("size", "width", "blocks", "window"),
    [("tiny", 96, 12, 7), ("small", 96, 24, 7), ("base", 128, 24, 12), ("large", 192, 24, 12)],
)
def test_sizes(size, width, blocks, window):
    config = CrossVLTConfig.from_size(size, fusion_direction="late", vision_config={"drop_path_rate": 0.1})
    vision = config.vision_config
    assert (vision.embed_dim, vision.num_hidden_layers, vision.window_size) == (width, blocks, window)
    assert (vision.drop_path_rate, config.fusion_direction) == (0.1, "late")
    assert config.text_config.to_dict() == CrossVLTTextConfig().to_dict()


def test_unknown_size():
    with pytest.raises(ValueError, match="`size` must be one of tiny, small, base, large, got 'huge'"):
        CrossVLTConfig.from_size("huge")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"vision_config": {"num_heads": [3, 8, 16, 32]}},
            r"`num_heads` must divide .*, \[128, 256, 512, 1024\], got \[3, 8, 16, 32\]",
        ),
        ({"vision_config": {"num_heads": [0, 8, 16, 32]}}, r"`num_heads` must divide .* got \[0, 8, 16, 32\]"),
        (
            {"vision_config": {"depths": [2, 2, 2]}},
            r"`depths` must have an entry for each of 4 stages, got \[2, 2, 2\]",
        ),
        ({"vision_config": {"num_heads": [4, 8, 16, 32, 64]}}, "`num_heads` must have an entry for each of 4 stages"),
        ({"vision_config": {"depths": [2, 0, 2, 2]}}, "`depths` must be at least 1 for every stage"),
        ({"vision_config": {"window_size": 0}}, "`window_size` must be above 0, got 0"),
        ({"vision_config": {"patch_size": -4}}, "`patch_size` must be above 0, got -4"),
        ({"vision_config": {"embed_dim": 0}}, "`embed_dim` must be above 0, got 0"),
        ({"vision_config": {"image_size": [480, 0]}}, r"`image_size` must be above 0, got \[480, 0\]"),
        ({"vision_config": {"image_size": []}}, r"`image_size` must be above 0, got \[\]"),
        ({"vision_config": {"hidden_act": "nope"}}, "`hidden_act` must be .* got 'nope'"),
        ({"text_config": {"pad_token_id": 40000}}, "`pad_token_id` must be None or from 0 to 30521, got 40000"),
        ({"initializer_range": -1}, "`initializer_range` must be above 0, got -1"),
        ({"presence_loss_weight": 0}, "`presence_loss_weight` must be above 0, got 0"),
        ({"alignment_temperature": float("nan")}, "`alignment_temperature` must be above 0, got nan"),
        ({"dice_loss_weight": float("nan")}, "`dice_loss_weight` must be at least 0, got nan"),
        ({"num_stages": 3}, "`num_stages` is derived"),
        ({"vision_config": {"drop_path_rate": 1.0}}, "`drop_path_rate` must be at least 0 and below 1, got 1.0"),
        ({"vision_config": {"use_absolute_embeddings": True}}, "`use_absolute_embeddings` must be False.* got True"),
        (
            {"text_config": {"num_attention_heads": 7}},
            "`num_attention_heads` must divide `hidden_size` 768, got 7",
        ),
        ({"text_config": {"depths": [12]}}, r"`depths` must have an entry for each of 4 stages, got \[12\]"),
        ({"text_config": {"depths": [0, 4, 4, 4]}}, "`depths` must be at least 1 for stage 1"),
        ({"text_config": {"depths": [6, 1, -1, 1]}}, "at least 0 for other stages"),
        (
            {"text_config": {"hidden_dropout_prob": -0.1}},
            "`hidden_dropout_prob` must be at least 0 and below 1, got -0.1",
        ),
        ({"text_config": {"vocab_size": 0}}, "`vocab_size` must be above 0, got 0"),
        ({"fusion_direction": "sideways"}, "fusion_direction.*'both', 'words_to_pixels', 'pixels_to_words', 'late'"),
        ({"alignment_stages": "first"}, "alignment_stages.*'all', 'last', 'none'"),
        ({"fusion_head_dim": 60}, "`fusion_head_dim` must divide the width of the fusion 256 .* got 60"),
        ({"alignment_temperature": 0}, "`alignment_temperature` must be above 0, got 0"),
        ({"decoder_hidden_size": -1}, "`decoder_hidden_size` must be above 0, got -1"),
        ({"dice_loss_weight": -1.0}, "`dice_loss_weight` must be at least 0, got -1.0"),
        ({"alignment_dim": "wide"}, "'alignment_dim' expected int, got str"),
        ({"fusion_directon": "late"}, "no field `fusion_directon`; did you mean `fusion_direction`"),
        ({"vision_config": {"windowsize": 7}}, "did you mean `window_size`"),
        ({"text_config": {"depth": [1, 1, 1, 1]}}, "did you mean `depths`"),
        ({"vision_config": 480}, "`vision_config` must be a config or a dict of its fields, got 480"),
    ],
)
def test_messages_have_the_field_what_it_must_be_and_the_value(kwargs, message):
    with pytest.raises((ValueError, StrictDataclassError), match=r"(?s)" + message):
        CrossVLTConfig(**kwargs)


@pytest.fixture
def told(caplog, monkeypatch):
    """The warnings of the library's loggers; what was said once is said again."""
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    logging.warning_once.cache_clear()
    return lambda: [record.message for record in caplog.records if record.levelname == "WARNING"]


NEAR = {
    "align_stages": (CrossVLTConfig, "alignment_stages"),
    "dice_weight": (CrossVLTConfig, "dice_loss_weight"),
    "embed_dim": (CrossVLTConfig, "vision_config.embed_dim"),
    "depths": (CrossVLTConfig, "vision_config.depths` or `text_config.depths"),
    "vocabsize": (CrossVLTConfig, "text_config.vocab_size"),
    "embedding_dim": (CrossVLTVisionConfig, "embed_dim"),
    "layer_norm_epsilon": (CrossVLTTextConfig, "layer_norm_eps"),
}
MISSPELT = {
    "fusion_direcion": (CrossVLTConfig, "fusion_direction"),
    "presence_heads": (CrossVLTConfig, "presence_head"),
    "num_label": (CrossVLTConfig, "num_labels"),
    "output_attention": (CrossVLTConfig, "output_attentions"),
    "embed_dims": (CrossVLTVisionConfig, "embed_dim"),
    "num_attention_head": (CrossVLTTextConfig, "num_attention_heads"),
}


@pytest.mark.parametrize("name", NEAR)
def test_a_name_like_that_of_a_field_gives_a_warning_once(name, told, tmp_path):
    config_class, field = NEAR[name]
    config_class().save_pretrained(tmp_path)
    config_class(**{name: 1})
    config_class(**{name: 1})
    config_class.from_pretrained(tmp_path, **{name: 1})
    message = f"{config_class.__name__} has no field `{name}`; did you mean `{field}`? It has no effect."
    assert [line for line in told() if "has no field" in line] == [message]


@pytest.mark.parametrize("name", MISSPELT)
def test_a_misspelt_field_is_refused_unless_a_checkpoint_has_it(name, told, tmp_path):
    """A saved config may be of a newer version with more fields."""
    config_class, field = MISSPELT[name]
    config_class().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"no field `{name}`; did you mean `{field}`"):
        config_class(**{name: 1})
    for load in (config_class.from_pretrained, AutoConfig.from_pretrained):
        with pytest.raises(ValueError, match=f"no field `{name}`; did you mean `{field}`"):
            load(tmp_path, **{name: 1})
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**saved, name: 1}))
    assert getattr(config_class.from_pretrained(tmp_path), name) == 1
    assert any(f"no field `{name}`; did you mean `{field}`?" in line for line in told())


@pytest.mark.parametrize("part", ["vision_config", "text_config"])
def test_a_misspelt_field_of_a_part_given_to_a_saved_config(part, tmp_path):
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no field `depth`; did you mean `depths`"):
        CrossVLTConfig.from_pretrained(tmp_path, **{part: {"depth": [1, 1, 1, 1]}})


def test_arguments_of_the_library_look_like_no_field(told, tmp_path):
    CrossVLTModel(tiny_config()).save_pretrained(tmp_path)
    arguments = {"cache_dir": None, "revision": "main", "subfolder": "", "local_files_only": True, "token": None}
    arguments |= {"trust_remote_code": False, "attn_implementation": "eager", "output_hidden_states": True}
    more = {"low_cpu_mem_usage": True, "device_map": None, "torch_dtype": "auto", "ignore_mismatched_sizes": False}
    for load in (CrossVLTModel.from_pretrained, AutoModel.from_pretrained):
        assert load(tmp_path, use_safetensors=True, quantization_config=None, **arguments, **more).config.vision_config
    AutoConfig.from_pretrained(tmp_path, return_unused_kwargs=True, foo=1, lora_rank=8, **arguments)
    for swin, bert in ((SwinConfig(), BertConfig()), (SwinConfig().to_dict(), BertConfig().to_dict())):
        CrossVLTConfig(vision_config=swin, text_config=bert, my_note="hello", license="apache")
    assert [line for line in told() if "has no field" in line] == []


def test_round_trip(tmp_path):
    config = tiny_config(fusion_direction="late", alignment_stages="last", dice_loss_weight=0.5)
    config.save_pretrained(tmp_path)
    for reloaded in (CrossVLTConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert reloaded.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}
        assert type(reloaded.vision_config) is CrossVLTVisionConfig
        assert type(reloaded.vision_config.depths) is type(config.vision_config.depths) is list
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "hidden_sizes" not in saved["vision_config"]  # derived values are not stored
    assert saved["vision_config"]["depths"] == [1, 2, 1, 1]


def test_sub_config_overrides(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    config = CrossVLTConfig.from_pretrained(tmp_path, vision_config={"embed_dim": 16}, text_config={"vocab_size": 99})
    assert config.vision_config.hidden_sizes == [16, 32, 64, 128]  # no stale copy
    assert config.vision_config.depths == [1, 2, 1, 1]
    assert (config.text_config.vocab_size, config.text_config.hidden_size) == (99, 16)
    assert CrossVLTVisionConfig.from_pretrained(tmp_path).to_dict() == tiny_config().vision_config.to_dict()


def test_library_configs_fit():
    swin = SwinConfig(embed_dim=64, depths=[1, 2, 3, 4], num_heads=[2, 4, 8, 16], window_size=5)
    bert = BertConfig(hidden_size=96, num_attention_heads=6, num_hidden_layers=24, vocab_size=1000)
    for vision, text in ((swin, bert), (swin.to_dict(), bert.to_dict())):
        config = CrossVLTConfig(vision_config=vision, text_config=text)
        assert (config.vision_config.window_size, config.vision_config.depths) == (5, [1, 2, 3, 4])
        assert (config.text_config.hidden_size, config.text_config.depths) == (96, [6, 1, 1, 1])
        assert config.vision_config.model_type == "crossvlt_vision_model"
    with pytest.raises(ValueError, match="must be the config of a 'swin' checkpoint, got one of type 'swinv2'"):
        CrossVLTConfig(vision_config=Swinv2Config())


def test_inconsistent_mutation_is_found_when_the_model_is_made():
    config = tiny_config()
    config.vision_config.num_heads = [3, 3, 3, 3]
    with pytest.raises(StrictDataclassError, match=r"`num_heads` must divide the widths of the stages, \[8, "):
        CrossVLTModel(config)


def test_the_dict_of_a_librarys_config_is_taken_as_the_config_is(tmp_path):
    odd = {"num_labels": 7, "dtype": "bfloat16", "architectures": ["Swin"], "output_attentions": True}
    sizes = {"embed_dim": 64, "depths": [1, 2, 3, 4], "num_heads": [2, 4, 8, 16], "window_size": 5}
    swin = SwinConfig(image_size=384, drop_path_rate=0.1, **sizes, **odd)
    bert = BertConfig(hidden_size=48, num_attention_heads=4, vocab_size=99, is_decoder=True, **odd)
    config = CrossVLTConfig(vision_config=swin, text_config=bert)
    for own, library, adopted in (
        (CrossVLTVisionConfig, swin, config.vision_config),
        (CrossVLTTextConfig, bert, config.text_config),
    ):
        library.save_pretrained(tmp_path / own.model_type)
        for found in (own(**library.to_dict()), own.from_pretrained(tmp_path / own.model_type)):
            assert found.to_dict() == adopted.to_dict()
        other = swin if library is bert else bert
        with pytest.raises(ValueError, match=f"its own fields or those of a '{library.model_type}' config, got"):
            own(**other.to_dict())
    vision = CrossVLTVisionConfig(**swin.to_dict())
    assert (vision.image_size, vision.drop_path_rate, vision.embed_dim) == (480, 0.3, 64)
    assert not {"encoder_stride", "stage_names", "out_features"} & vision.to_dict().keys()
    assert CrossVLTVisionConfig(**vision.to_dict()).to_dict() == vision.to_dict()
    with pytest.raises(ValueError, match="CrossVLTConfig must be given its own fields, got those of a 'swin' config"):
        CrossVLTConfig(**swin.to_dict())


@pytest.mark.parametrize("labels", [{"num_labels": 3}, {"id2label": {0: "a", 1: "b", 2: "c"}}, {"num_labels": 1}])
def test_no_model_has_other_than_two_classes(labels, caplog):
    config = tiny_config(**labels)  # Transformers' common tests demand that a config takes any number
    assert "`num_labels` must be 2" in caplog.text
    with pytest.raises(ValueError, match=r"`num_labels` must be 2 .*, got \d"):
        CrossVLTModel(config)
    config = tiny_config()
    config.num_labels = 4
    with pytest.raises(ValueError, match=r"`num_labels` must be 2 .*, got 4"):
        CrossVLTModel(config)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -1.0, 0.0])
def test_a_temperature_is_a_number(value, tmp_path):
    with pytest.raises(StrictDataclassError, match="`alignment_temperature` must be"):
        tiny_config(alignment_temperature=value)
    if value not in (-1.0, 0.0):  # those are bounded where they are used, as a training can reach them
        model = CrossVLTModel(tiny_config())
        with torch.no_grad():
            model.stages[1].alignment.temperature.fill_(value)
        model.save_pretrained(tmp_path)
        for load in (CrossVLTModel.from_pretrained, AutoModel.from_pretrained):
            with pytest.raises(ValueError, match=r"`stages.1.alignment.temperature` .* must be a finite number"):
                load(tmp_path)


@pytest.mark.parametrize("as_dict", [False, True])
def test_a_swin_config_says_nothing_of_our_training(as_dict):
    """The network is taken from it; how its own checkpoint was trained is not."""
    for swin in (SwinConfig(), SwinConfig(image_size=384, drop_path_rate=0.2, window_size=12, qkv_bias=False)):
        config = CrossVLTConfig(vision_config=swin.to_dict() if as_dict else swin).vision_config
        assert (config.image_size, config.drop_path_rate) == (480, 0.3)
        for name in ("embed_dim", "depths", "num_heads", "window_size", "qkv_bias", "hidden_act", "layer_norm_eps"):
            wanted = getattr(swin, name)
            assert getattr(config, name) == (list(wanted) if isinstance(wanted, tuple) else wanted), name
    assert CrossVLTConfig(vision_config={"image_size": 384, "drop_path_rate": 0.2}).vision_config.drop_path_rate == 0.2


def test_a_bert_config_keeps_its_dropout():
    config = CrossVLTConfig(text_config=BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.2))
    assert (config.text_config.hidden_dropout_prob, config.text_config.attention_probs_dropout_prob) == (0.0, 0.2)


def test_labels_have_names(tmp_path):
    config = tiny_config()
    assert config.id2label == {0: "background", 1: "object"}
    assert config.label2id == {"background": 0, "object": 1}
    assert config.num_labels == 2
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).id2label == config.id2label
    named = tiny_config(id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    named.save_pretrained(tmp_path)
    assert CrossVLTConfig.from_pretrained(tmp_path).id2label == {0: "no", 1: "yes"}


@pytest.mark.parametrize("value", [0.0099, 1e-9, float("inf")])
def test_temperatures_below_the_bound(value):
    with pytest.raises(StrictDataclassError, match="`alignment_temperature` must be"):
        CrossVLTConfig(alignment_temperature=value)
    assert CrossVLTConfig(alignment_temperature=0.01).alignment_temperature == 0.01


@pytest.mark.parametrize("dims", [[16, 32], [0, 16, 32], []])
def test_widths_of_what_the_words_read(dims):
    with pytest.raises(StrictDataclassError, match="`context_dims` must"):
        CrossVLTTextConfig(context_dims=dims)


def cached(folder: Path, name: str, content: bytes) -> tuple[Path, Path]:
    """A file of a snapshot in the Hub's cache: a link to a blob that other revisions share."""
    blob, link = folder / "blobs" / f"of-{name}", folder / "snapshots" / "1" / name
    for path in (blob, link):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    try:
        link.symlink_to(blob)
    except OSError:
        pytest.skip("this system makes no links")
    return link, blob


@pytest.mark.parametrize("what", ["config", "model", "encoder", "processor"])
def test_saving_never_writes_through_a_link_into_the_hubs_cache(tmp_path, what, processor):
    torch.manual_seed(0)
    model = CrossVLTModel(tiny_config())
    saved = {"config": model.config, "model": model, "encoder": model.text_model, "processor": processor}[what]
    names = ("modeling_crossvlt.py", "config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json")
    files = [cached(tmp_path, name, b"old") for name in names]
    saved.save_pretrained(tmp_path / "snapshots" / "1")
    for link, blob in files:
        assert blob.read_bytes() == b"old", link.name
        assert not link.is_symlink()
    assert files[0][0].read_bytes() != b"old"


def test_code_that_differs_is_replaced_with_a_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    tiny_config().save_pretrained(tmp_path)
    code = {path: path.read_bytes() for path in tmp_path.glob("*.py")}
    tiny_config().save_pretrained(tmp_path)
    assert not caplog.records
    changed = tmp_path / "modeling_crossvlt.py"
    changed.write_text("# mine")
    (tmp_path / "handler.py").write_text("# mine")
    tiny_config().save_pretrained(tmp_path)
    assert [record.message for record in caplog.records] == [
        f"{changed} differs from the code of this model and is replaced."
    ]
    assert changed.read_bytes() == code[changed]
    assert (tmp_path / "handler.py").read_text() == "# mine"  # a handler is the user's to write
    assert not list(tmp_path.glob(".*"))
