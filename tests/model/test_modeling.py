"""The network: every ablation, size and precision; what it shares with the library's models is in the common tests."""

import itertools
import json

import accelerate
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import fake_batch, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.exc import FailOnRecompileLimitHit
from transformers import AttentionInterface, AutoModel, AutoModelForSemanticSegmentation, Trainer, TrainingArguments
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from crossvlt_hf import (
    CrossVLTConfig,
    CrossVLTModel,
    CrossVLTTextConfig,
    CrossVLTTextModel,
    CrossVLTVisionModel,
    layers_crossvlt,
    modeling_crossvlt,
)
from crossvlt_hf.configuration_crossvlt import MIN_TEMPERATURE
from crossvlt_hf.layers_crossvlt import (
    CrossVLTConvolution,
    CrossVLTDropPath,
    CrossVLTFusion,
    CrossVLTLowerBound,
    CrossVLTWindowAttention,
    CrossVLTWindows,
    eager_attention_forward,
    instance_norm,
    interpolation,
    shift_mask,
    winograd_convolution,
    winograd_kernel,
)
from crossvlt_hf.modeling_crossvlt import (
    CrossVLTVisionOutput,
    alignment_loss,
    dice_loss,
    mask_loss,
    presence_loss,
)


DIRECTIONS = ("both", "words_to_pixels", "pixels_to_words", "late")


def without_labels(batch: dict) -> dict:
    return {name: value for name, value in batch.items() if name != "labels"}


def logits(model, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        return model(**without_labels(batch)).logits


# ---- ablations


@pytest.mark.parametrize(("direction", "alignment"), list(itertools.product(DIRECTIONS, ("all", "last", "none"))))
def test_every_parameter_gets_a_gradient(direction, alignment):
    """One training step, without unused parameters for DistributedDataParallel to trip over."""
    torch.manual_seed(0)
    model = CrossVLTModel(tiny_config(fusion_direction=direction, alignment_stages=alignment)).train()
    batch = fake_batch(model.config, height=32, width=64)
    output = model(**batch)
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # What softmax and InstanceNorm cancel gets rounding only
        if not name.endswith(("key.bias", "fusion.attention.value.bias")):
            assert parameter.grad.abs().max() > 0, name
    assert len(output.alignment_maps) == {"all": 4, "last": 1, "none": 0}[alignment]


def test_a_direction_that_is_off_has_no_parameters():
    keys = {d: set(CrossVLTModel(tiny_config(fusion_direction=d)).state_dict()) for d in DIRECTIONS}
    words_read = {key for key in keys["both"] if ".cross_attention." in key}
    pixels_read = {key for key in keys["both"] if any(part in key for part in (".gate.", ".merged_"))}
    assert words_read
    assert pixels_read
    assert keys["words_to_pixels"] == keys["both"] - words_read
    assert keys["pixels_to_words"] == keys["both"] - pixels_read
    assert keys["late"] == keys["both"] - words_read - pixels_read
    assert not any("alignment" in key for key in CrossVLTModel(tiny_config(alignment_stages="none")).state_dict())


def reads(model, batch: dict) -> tuple[bool, bool]:
    """Whether the words' last state depends on the image, and the pixels' last state on the words."""

    def states(**changes):
        with torch.no_grad():
            output = model(**without_labels(batch) | changes, output_hidden_states=True)
        return output.text_hidden_states[-1], output.hidden_states[-1]

    words, pixels = states()
    words_of_another_image, _ = states(pixel_values=batch["pixel_values"].flip(-1))
    _, pixels_of_other_words = states(input_ids=(batch["input_ids"] + 1) % 60)
    return not torch.equal(words, words_of_another_image), not torch.equal(pixels, pixels_of_other_words)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_direction_of_reading(direction):
    torch.manual_seed(0)
    model = CrossVLTModel(tiny_config(fusion_direction=direction)).eval()
    words_read, pixels_read = reads(model, fake_batch(model.config, height=64, width=64))
    assert words_read is (direction in ("both", "pixels_to_words"))
    assert pixels_read is (direction in ("both", "words_to_pixels"))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_mask_depends_on_the_words_in_every_direction(direction):
    torch.manual_seed(0)
    model = CrossVLTModel(tiny_config(fusion_direction=direction)).eval()
    batch = fake_batch(model.config)
    other = batch | {"input_ids": (batch["input_ids"] + 1) % 60}
    assert not torch.equal(logits(model, batch), logits(model, other))


def test_stage_one_words_do_not_see_the_image(model):
    batch = without_labels(fake_batch(model.config))
    other = batch | {"pixel_values": batch["pixel_values"].flip(-1)}
    with torch.no_grad():
        first, second = (model(**b, output_hidden_states=True).text_hidden_states for b in (batch, other))
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


def test_split_of_the_bert_layers():
    model = CrossVLTModel(tiny_config(text_config={"depths": [1, 0, 3, 2]}))
    assert [len(stage.layers) for stage in model.text_model.stages] == [1, 0, 3, 2]
    assert [stage.cross_attention is not None for stage in model.text_model.stages] == [False, True, True, True]
    model(**fake_batch(model.config)).loss.backward()


# ---- any size, any batch, any padding


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90), batch=st.integers(1, 3))
def test_any_size(shared_model, height, width, batch):
    inputs = fake_batch(shared_model.config, batch, height, width)
    output = logits(shared_model, inputs)
    assert output.shape == (batch, 2, height, width)
    assert output.isfinite().all()


def test_one_tiny_image_has_nothing_for_batch_norm(model):
    with pytest.raises(ValueError, match=r"more than 16 pixels a side in training, since .* got 16x9"):
        model.train()(**fake_batch(model.config, 1, 16, 9))
    model(**fake_batch(model.config, 1, 17, 9)).loss.backward()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (5, 3)])
def test_small_and_narrow_images_train(model, size):
    """From a batch of 2, since BatchNorm needs two values."""
    output = model.train()(**fake_batch(model.config, 2, *size))
    output.loss.backward()
    assert output.loss.isfinite()


def test_a_size_leaves_no_trace(model):
    batch = fake_batch(model.config, 2, 64, 64)
    before = logits(model, batch)
    logits(model, fake_batch(model.config, 2, 8, 8))
    assert torch.equal(before, logits(model, batch))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_batch_equals_its_images_one_by_one(model, attention):
    model.set_attn_implementation(attention)
    batch = fake_batch(model.config, 3, 44, 60)
    together = logits(model, batch)
    for row in range(3):
        alone = logits(model, {name: value[row : row + 1] for name, value in batch.items()})
        assert (alone - together[row : row + 1]).abs().max() <= 2e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_words_never_matter(model, attention):
    model.set_attn_implementation(attention)
    batch = without_labels(fake_batch(model.config, 2, 32, 32, words=9))
    mask = batch["attention_mask"]
    batch["token_type_ids"] = torch.zeros_like(mask)
    other = batch | {
        "input_ids": torch.where(mask == 1, batch["input_ids"], 17),
        "token_type_ids": torch.where(mask == 1, 0, 1),
    }
    assert torch.equal(logits(model, batch), logits(model, other))
    # As if they were not there at all
    length = int(mask[1].sum())
    cut = {"pixel_values": batch["pixel_values"][1:], "input_ids": batch["input_ids"][1:, :length]}
    assert (logits(model, cut) - logits(model, batch)[1:]).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_nothing_but_padding_is_still_finite(model, dtype, attention):
    model.set_attn_implementation(attention)
    batch = fake_batch(model.config)
    batch["attention_mask"] = torch.zeros_like(batch["attention_mask"])
    batch["pixel_values"] = batch["pixel_values"].to(dtype)
    assert logits(model.to(dtype), batch).isfinite().all()


def test_sdpa_equals_eager(model):
    batch = fake_batch(model.config, 2, 70, 50)
    model.set_attn_implementation("eager")
    eager = logits(model, batch)
    model.set_attn_implementation("sdpa")
    assert (logits(model, batch) - eager).abs().max() <= 2e-5


# ---- wrong input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_values": torch.zeros(2, 1, 32, 48)}, r"`pixel_values` must .* \(batch, 3, .* got \(2, 1, 32, 48\)"),
        ({"pixel_values": torch.zeros(3, 32, 48)}, r"`pixel_values` must have shape .* got \(3, 32, 48\)"),
        ({"pixel_values": torch.zeros(2, 3, 0, 48)}, r"`pixel_values` must have shape .* got \(2, 3, 0, 48\)"),
        ({"pixel_values": torch.zeros(2, 3, 32, 48).byte()}, "must be normalised floats, got dtype torch.uint8"),
        (
            {"input_ids": torch.ones(3, 7).long()},
            r"shape \(2, tokens\) with 1 to 40 tokens, an expression for each image, got \(3, 7\)",
        ),
        (
            {"input_ids": torch.ones(2, 41).long(), "attention_mask": None},
            r"`input_ids` must have shape .* got \(2, 41\)",
        ),
        (
            {"input_ids": torch.ones(2, 0).long(), "attention_mask": None},
            r"`input_ids` must have shape .* got \(2, 0\)",
        ),
        (
            {"attention_mask": torch.ones(2, 6)},
            r"`attention_mask` must have the shape of `input_ids` \(2, 7\), got \(2, 6\)",
        ),
        ({"token_type_ids": torch.ones(2, 6).long()}, "`token_type_ids` must have the shape of `input_ids`"),
        (
            {"labels": torch.ones(2, 32, 32).long()},
            r"`labels` must be integers of shape \(2, 32, 48\).* got shape \(2, 32, 32\)",
        ),
        ({"labels": torch.ones(2, 32, 48)}, "`labels` must be integers .* dtype torch.float32"),
    ],
)
def test_wrong_shapes(model, changes, message):
    with pytest.raises(ValueError, match=message):
        model(**fake_batch(model.config) | changes)


IMAGES = [
    (torch.zeros(2, 1, 32, 48), r"must have shape \(batch, 3, height, width\), got \(2, 1, 32, 48\)"),
    (torch.zeros(3, 32, 48), r"`pixel_values` must have shape .* got \(3, 32, 48\)"),
    (torch.zeros(0, 3, 32, 48), r"`pixel_values` must have shape .* got \(0, 3, 32, 48\)"),
    (torch.zeros(2, 3, 32, 48).long(), "`pixel_values` must be normalised floats, got dtype torch.int64"),
    (torch.zeros(2, 3, 32, 48).numpy(), "`pixel_values` must be a tensor, got ndarray"),
    (None, "`pixel_values` must be a tensor, got NoneType"),
]


@pytest.mark.parametrize(("pixel_values", "message"), IMAGES)
def test_the_vision_encoder_alone_checks_its_input(model, pixel_values, message):
    words = {name: value for name, value in fake_batch(model.config).items() if name == "input_ids"}
    for call in (model.vision_model, model.get_image_features, CrossVLTVisionModel(model.config.vision_config)):
        with pytest.raises(ValueError, match=message):
            call(pixel_values)
    with pytest.raises(ValueError, match=message):
        model(pixel_values, **words)


IDS = torch.ones(2, 7).long()
WORDS = [
    ({"input_ids": torch.ones(7).long()}, r"`input_ids` must have shape .* got \(7,\)"),
    ({"input_ids": torch.ones(2, 41).long()}, r"`input_ids` must .* with 1 to 40 tokens.* got \(2, 41\)"),
    ({"input_ids": torch.ones(2, 0).long()}, r"`input_ids` must have shape .* got \(2, 0\)"),
    ({"input_ids": torch.ones(2, 7)}, "`input_ids` must be int64, got torch.float32"),
    ({"input_ids": torch.ones(2, 7).bool()}, "`input_ids` must be int64, got torch.bool"),
    ({"input_ids": IDS.tolist()}, "`input_ids` must be a tensor, got list"),
    ({"input_ids": IDS * 64}, "`input_ids` must be from 0 to 63, got 64 to 64"),
    ({"input_ids": -IDS}, "`input_ids` must be from 0 to 63, got -1 to -1"),
    (
        {"input_ids": IDS, "attention_mask": torch.ones(2, 6)},
        r"`attention_mask` must have the shape of `input_ids` .* got \(2, 6\)",
    ),
    ({"input_ids": IDS, "attention_mask": [[1] * 7] * 2}, "`attention_mask` must be a tensor, got list"),
    (
        {"input_ids": IDS, "token_type_ids": IDS[:1]},
        r"`token_type_ids` must have the shape of `input_ids` .* got \(1, 7\)",
    ),
    ({"input_ids": IDS, "token_type_ids": IDS * 2}, "`token_type_ids` must be from 0 to 1, got 2 to 2"),
    ({"input_ids": IDS, "token_type_ids": IDS.float()}, "`token_type_ids` must be int64, got torch.float32"),
]


@pytest.mark.parametrize(("words", "message"), WORDS)
def test_the_language_encoder_alone_checks_its_input(model, words, message):
    for call in (model.text_model, model.get_text_features, CrossVLTTextModel(model.config.text_config)):
        with pytest.raises(ValueError, match=message):
            call(**words)
    with pytest.raises(ValueError, match=message):
        model(fake_batch(model.config)["pixel_values"], **words)


def test_misspelt_arguments_are_refused(model):
    batch = fake_batch(model.config)
    with pytest.raises(TypeError, match="unexpected keyword argument 'lables'"):
        model(**without_labels(batch), lables=batch["labels"])
    sizes = torch.ones(2, 2)
    assert model(**batch, original_sizes=sizes, inputs_embeds=None).loss is not None  # of the processor; of PEFT


# ---- precision


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """RMS error over the spatial spread of the logits."""
    spread = expected.flatten(2).std(dim=2).mean()
    return ((actual.float() - expected).square().mean().sqrt() / spread).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tmp_path, model, dtype):
    """Loaded, cast and autocast; fusion computes in float32 in all of them."""
    batch = fake_batch(model.config, 2, 64, 64)
    expected = logits(model, batch)
    model.save_pretrained(tmp_path)
    loaded = CrossVLTModel.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.stages[0].fusion.projection.weight.dtype == torch.float32
    assert loaded.vision_model.dtype == dtype
    half = batch | {"pixel_values": batch["pixel_values"].to(dtype)}
    assert relative_error(logits(loaded, half), expected) <= 0.06
    with torch.autocast("cpu", dtype=dtype):
        assert relative_error(logits(model, batch), expected) <= 0.06
    assert relative_error(logits(model.to(dtype), half), expected) <= 0.06


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_float32_images_fit_every_dtype(model, dtype):
    """What the processor gives goes into the model as it is."""
    batch = fake_batch(model.config)
    assert relative_error(logits(model.to(dtype), batch), logits(model.float(), batch)) <= 0.06


def test_float64_is_computed_in_float64(model):
    batch = fake_batch(model.config)
    batch["pixel_values"] = batch["pixel_values"].double()
    exact = logits(model.double(), batch)
    assert exact.dtype == torch.float64
    assert torch.autograd.gradcheck(
        lambda words: model.stages[0].fusion(torch.ones(1, 2, 3, 8).double(), words, None),
        torch.randn(1, 3, 16, dtype=torch.float64, requires_grad=True),
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")  # of torch itself
def test_dynamic_quantisation_of_the_linear_layers(model):
    batch = fake_batch(model.config, 2, 33, 42)
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    assert relative_error(logits(quantised, batch), logits(model, batch)) <= 0.1


def test_one_kind_of_output_alone(model):
    batch = without_labels(fake_batch(model.config))
    assert set(model(**batch, output_text_hidden_states=True)) == {"logits", "text_hidden_states"}
    output = model(**batch, output_hidden_states=True, output_fusion_hidden_states=False)
    assert set(output) == {"logits", "hidden_states", "text_hidden_states"}


def test_fusion_never_leaves_float32(model):
    """Also where everything around it is bfloat16, weights included."""
    seen = []
    fusion = model.to(torch.bfloat16).stages[0].fusion
    for linear in (fusion.attention.query, fusion.attention.value, fusion.attention.output, fusion.projection):
        linear.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    pixels, words = torch.randn(1, 4, 4, 8).bfloat16(), torch.randn(1, 5, 16).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert fusion(pixels, words, None).dtype == torch.bfloat16
    assert seen == [torch.float32] * 4


def test_logits_are_float32(model):
    batch = fake_batch(model.config)
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    assert logits(model.to(torch.bfloat16), batch).dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("how", ["autocast", "native"])
def test_bfloat16_on_the_base_case(how):
    """At most 6 % rms of the spatial spread of the logits (design, section 4)."""
    from test_parity import case_inputs, converted_model, parity

    model = converted_model("base")
    (case,) = parity("base")[0]["eval_cases"]
    pixel_values, input_ids, attention_mask, _ = case_inputs(case, model.config.text_config.vocab_size)
    inputs = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
    expected = logits(model, inputs)
    if how == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = logits(model, inputs)
    else:
        actual = logits(model.to(torch.bfloat16), inputs | {"pixel_values": pixel_values.bfloat16()})
    assert relative_error(actual, expected) <= 0.06


# ---- parts


def test_instance_norm_is_torchs(model):
    pixels = torch.randn(2, 30, 8) * 3 + 1
    expected = F.instance_norm(pixels.transpose(1, 2)).transpose(1, 2)
    assert torch.allclose(instance_norm(pixels), expected, atol=1e-5)
    assert torch.equal(instance_norm(pixels[:, :1]), torch.zeros(2, 1, 8))


@pytest.mark.parametrize("shift", [0, 2])
def test_what_fills_up_windows_is_zero_before_the_projection(shift):
    """The saving of section 5 changes no number: padding the grid by hand gives the same."""
    torch.manual_seed(0)
    attention = CrossVLTWindowAttention(tiny_config().vision_config, stage=0).eval()
    torch.nn.init.normal_(attention.qkv.bias)
    pixels = torch.randn(2, 6, 9, 8)
    filled = F.pad(pixels, (0, 0, 0, 3, 0, 2))
    with torch.no_grad():
        expected, _ = attention(filled, *CrossVLTWindows.of(filled, 4, [shift]))
        actual, _ = attention(pixels, *CrossVLTWindows.of(pixels, 4, [shift]))
    assert torch.allclose(actual, expected[:, :6, :9], atol=1e-6)


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize(("height", "width"), [(8, 12), (6, 9), (1, 1), (3, 17)])
def test_windows_are_pad_roll_and_cut(height, width, shift):
    pixels = torch.randn(2, height, width, 3)
    (windows,) = CrossVLTWindows.of(pixels, 4, [shift])
    grid = F.pad(pixels, (0, 0, 0, -width % 4, 0, -height % 4)).roll((-shift, -shift), dims=(1, 2))
    cut = grid.unfold(1, 4, 4).unfold(2, 4, 4).permute(0, 1, 2, 4, 5, 3).reshape(2, -1, 3)
    picked = F.pad(pixels.flatten(1, 2), (0, 0, 1, 0))[:, windows.order.flatten()]
    assert torch.equal(picked, cut)
    assert torch.equal(picked[:, windows.inverse].view_as(pixels), pixels)
    assert (windows.mask is None) == (shift == 0)


def test_shift_mask_keeps_nine_regions_apart():
    mask = shift_mask(8, 8, window=4, shift=2, like=torch.zeros(1))
    assert mask.shape == (4, 1, 16, 16)
    assert set(mask.unique().tolist()) == {-100.0, 0.0}
    assert (mask[0] == 0).all()  # the first window holds one region
    assert [int((m == 0).sum()) for m in mask] == [256, 128, 128, 64]


def test_drop_path_rises_over_all_blocks_and_scales():
    config = tiny_config(vision_config={"drop_path_rate": 0.4})
    model = CrossVLTModel(config)
    rates = [block.drop_path.rate for stage in model.vision_model.stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    torch.manual_seed(0)
    dropped = CrossVLTDropPath(0.25).train()(torch.ones(4000, 2, 2, 3))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)
    assert (dropped.flatten(1) == dropped[:, 0, 0, :1]).all()  # whole samples


def test_losses_by_hand():
    logits_ = torch.tensor([[[[0.0, 2.0]], [[1.0, -1.0]]]])  # (1, 2, 1, 2)
    labels = torch.tensor([[[1, 0]]])
    losses = [np.log1p(np.exp(-1.0)), np.log1p(np.exp(-3.0))]
    expected = (1.1 * losses[0] + 0.9 * losses[1]) / 2.0
    assert mask_loss(logits_, labels).item() == pytest.approx(expected, rel=1e-6)
    ignored = mask_loss(logits_, torch.tensor([[[1, 255]]]))
    assert ignored.item() == pytest.approx(losses[0], rel=1e-6)
    assert mask_loss(logits_, torch.full((1, 1, 2), 255)).item() == 0.0
    maps = [torch.tensor([[[[1.0, -2.0]]]]), torch.tensor([[[[0.5]]]])]
    bce = [(np.log1p(np.exp(-1.0)) + np.log1p(np.exp(-2.0))) / 2, (np.log1p(np.exp(-0.5)) + np.log1p(np.exp(0.5))) / 2]
    assert alignment_loss(maps, labels).item() == pytest.approx(sum(bce), rel=1e-6)
    assert alignment_loss(maps, torch.full((1, 1, 2), 255)).item() == 0.0
    assert alignment_loss([], labels).item() == 0.0


def test_mask_loss_is_torchs_weighted_mean():
    generator = torch.Generator().manual_seed(0)
    logits_ = torch.randn(3, 2, 9, 7, generator=generator)
    labels = torch.randint(0, 3, (3, 9, 7), generator=generator)
    labels[labels == 2] = 255
    expected = F.cross_entropy(logits_, labels, weight=torch.tensor([0.9, 1.1]), ignore_index=255)
    assert mask_loss(logits_, labels).item() == pytest.approx(expected.item(), rel=1e-6)


def test_dice_term(model):
    batch = fake_batch(model.config)
    plain = model(**batch)
    model.config.dice_loss_weight = 0.5
    with_dice = model(**batch)
    assert plain.dice_loss is None
    assert 0 < with_dice.dice_loss.item() < 1
    assert with_dice.mask_loss.item() == plain.mask_loss.item()
    assert with_dice.loss.item() == pytest.approx(plain.loss.item() + 2 * 0.5 * with_dice.dice_loss.item())
    perfect = torch.stack([-30 * (batch["labels"] * 2 - 1.0), 30 * (batch["labels"] * 2 - 1.0)], dim=1)
    assert dice_loss(perfect, batch["labels"]).item() == pytest.approx(0, abs=1e-3)


def test_loss_is_the_sum_of_its_parts(model):
    output = model(**fake_batch(model.config))
    assert output.loss.item() == pytest.approx(2 * output.mask_loss.item() + output.alignment_loss.item())
    assert list(output)[:2] == ["loss", "logits"]
    assert output[0] is output.loss


def test_alignment_maps_only_where_wanted(model):
    batch = without_labels(fake_batch(model.config))
    assert model(**batch).alignment_maps is None
    maps = model(**batch, output_alignment_maps=True).alignment_maps
    assert [tuple(m.shape) for m in maps] == [(2, 1, 8, 12), (2, 1, 4, 6), (2, 1, 2, 3), (2, 1, 1, 2)]
    assert max(m.abs().max() for m in maps) <= 1
    assert model(**batch, return_dict=False)[0].shape == (2, 2, 32, 48)


# ---- initial weights


def test_initial_weights():
    """The rules of section 6 of the design."""
    torch.manual_seed(0)
    config = tiny_config(
        vision_config={"embed_dim": 64, "num_heads": [2, 4, 8, 8]}, text_config={"hidden_size": 64}, fusion_head_dim=64
    )
    model = CrossVLTModel(config)
    stage = model.stages[1]
    for linear in (stage.gate.fc1, stage.gate.fc2, model.vision_model.stages[2].blocks[0].attention.qkv):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.text_model.stages[1].layers[0].attention.query.weight.std().item() == pytest.approx(0.02, rel=0.1)
    for linear in (stage.fusion.attention.query, stage.fusion.attention.output, stage.fusion.projection):
        assert linear.weight.std().item() == pytest.approx((2 / linear.in_features) ** 0.5, rel=0.05)
    assert stage.fusion.attention.key.weight.std().item() == pytest.approx(0.02, rel=0.05)
    conv = model.decoder.blocks[0].conv1
    assert conv.weight.abs().max().item() == pytest.approx(1 / conv.weight[0].numel() ** 0.5, rel=0.05)
    assert model.text_model.embeddings.word_embeddings.weight[0].abs().max() == 0
    for name, parameter in model.named_parameters():
        if name.endswith(".bias") and "decoder" not in name and "patch_embeddings.projection" not in name:
            assert (parameter == 0).all(), name
        if "norm" in name and name.endswith("weight"):
            assert (parameter == 1).all(), name
    assert [s.alignment.temperature.item() for s in model.stages] == [1.0] * 4


def test_loading_keeps_what_was_saved(tmp_path, model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(tmp_path)
    batch = fake_batch(model.config)
    for auto_class in (AutoModel, AutoModelForSemanticSegmentation):
        reloaded, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
        assert type(reloaded) is CrossVLTModel
        assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        for (name, value), (_, expected) in zip(reloaded.named_buffers(), model.named_buffers(), strict=True):
            assert torch.equal(value, expected), name
        assert torch.equal(logits(reloaded, batch), logits(model, batch))


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, {"text_model": "cpu", "vision_model": "cpu", "": "cpu"}])
def test_device_map(tmp_path, model, device_map):
    model.save_pretrained(tmp_path)
    batch = fake_batch(model.config)
    assert torch.equal(
        logits(CrossVLTModel.from_pretrained(tmp_path, device_map=device_map), batch), logits(model, batch)
    )


def test_offload_module_by_module(tmp_path, model):
    """Every module on the disk until it is called: nothing reaches into another's weights."""
    batch = fake_batch(model.config)
    expected = logits(model, batch)
    accelerate.disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    assert (logits(model, batch) - expected).abs().max() <= 1e-6


# ---- compilation, checkpointing, training


@pytest.mark.slow
def test_compile_without_graph_breaks(model):
    batch = without_labels(fake_batch(model.config))
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    assert (logits(compiled, batch) - logits(model, batch)).abs().max() <= 1e-5
    larger = without_labels(fake_batch(model.config, 2, 40, 48))
    assert (logits(compiled, larger) - logits(model, larger)).abs().max() <= 1e-5


@pytest.mark.slow
def test_compile_of_a_training_step():
    """With as few layers as have a shifted window, and cross-attention after every stage but the first."""
    torch.manual_seed(0)
    model = CrossVLTModel(tiny_config(text_config={"depths": [1, 1, 1, 1]})).train()
    batch = fake_batch(model.config)
    expected = model(**batch).loss
    loss = torch.compile(model, fullgraph=True, backend="aot_eager")(**batch).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_export(model, attention):
    model.set_attn_implementation(attention)
    batch = without_labels(fake_batch(model.config))
    program = torch.export.export(model, (), kwargs=batch)
    with torch.no_grad():
        assert (program.module()(**batch).logits - logits(model, batch)).abs().max() <= 1e-5


def test_activation_checkpointing_changes_nothing(model):
    batch = fake_batch(model.config)
    gradients = []
    for enabled in (False, True):
        model.train().zero_grad()
        if enabled:
            model.activation_checkpointing_enable()
            assert model.is_gradient_checkpointing
        model(**batch).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


def test_forward_writes_no_state(model):
    def attributes() -> dict[str, set]:
        return {name: set(vars(module)) for name, module in model.named_modules()}

    before, weights = attributes(), {key: value.clone() for key, value in model.state_dict().items()}
    logits(model, fake_batch(model.config))
    assert attributes() == before
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_trainer_divides_by_the_accumulation_steps(tmp_path, model):
    """`accepts_loss_kwargs = False`: four micro-batches of the same give the loss of one."""
    row = {name: value[0] for name, value in fake_batch(model.config).items()}
    arguments = TrainingArguments(
        tmp_path,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        max_steps=1,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        learning_rate=0.0,
    )
    expected = model.train()(**{name: value[None].repeat(2, *[1] * value.ndim) for name, value in row.items()}).loss
    trainer = Trainer(model, arguments, train_dataset=[row] * 8)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-3)


def test_it_learns(model):
    """A few steps on one batch."""
    torch.manual_seed(0)
    model.train()
    batch = fake_batch(model.config)
    batch["labels"] = torch.zeros_like(batch["labels"])
    batch["labels"][:, 8:24, 8:24] = 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(
    "fields", [{}, {"presence_head": True}, {"alignment_stages": "none"}, {"fusion_direction": "late"}]
)
def test_modules_that_must_not_be_split_exist(fields):
    """FSDP refuses a model that names others."""
    model = CrossVLTModel(tiny_config(**fields))
    names = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) == names & set(CrossVLTModel._no_split_modules)
    assert CrossVLTFusion.__name__ in model._no_split_modules


# ---- presence


@pytest.fixture
def presence_model() -> CrossVLTModel:
    torch.manual_seed(0)
    return CrossVLTModel(tiny_config(presence_head=True)).eval()


def presence(model, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        return model(**without_labels(batch)).presence_logits


def test_the_paper_has_no_presence_head(model):
    output = model(**fake_batch(model.config))
    assert not any("presence" in key for key in model.state_dict())
    assert not any("presence" in key for key in output)
    model.config.presence_loss_weight = 7.0
    assert model(**fake_batch(model.config)).loss.item() == output.loss.item()


def test_the_presence_head_changes_nothing_else(model, presence_model):
    """Seeds and checkpoints give the same masks with and without it."""
    weights = presence_model.state_dict()
    assert set(weights) - set(model.state_dict()) == {key for key in weights if key.startswith("presence_head.")}
    model.load_state_dict({key: value for key, value in weights.items() if not key.startswith("presence_head.")})
    batch = fake_batch(model.config)
    assert torch.equal(logits(model, batch), logits(presence_model, batch))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_presence_is_one_logit_for_each_pair(direction):
    torch.manual_seed(0)
    model = CrossVLTModel(tiny_config(presence_head=True, fusion_direction=direction)).train()
    batch = fake_batch(model.config, 3, 32, 64)
    output = model(**batch)
    assert output.presence_logits.shape == (3,)
    assert output.presence_logits.dtype == torch.float32
    assert list(output)[:3] == ["loss", "logits", "presence_logits"]
    expected = 2 * output.mask_loss + output.alignment_loss + output.presence_loss
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not name.startswith("presence_head.") or parameter.grad.abs().max() > 0, name


def test_the_presence_head_reads_image_and_words(presence_model):
    batch = fake_batch(presence_model.config)
    before = presence(presence_model, batch)
    assert (presence(presence_model, batch | {"pixel_values": batch["pixel_values"].flip(-1)}) != before).all()
    assert (presence(presence_model, batch | {"input_ids": (batch["input_ids"] + 1) % 60}) != before).all()


def test_the_presence_loss_leaves_the_decoder_alone(presence_model):
    presence_model(**fake_batch(presence_model.config)).presence_loss.backward()
    with_gradient = {name for name, parameter in presence_model.named_parameters() if parameter.grad is not None}
    assert not any(name.startswith("decoder.") for name in with_gradient)
    assert {"stages.3.fusion.projection.weight", "text_model.stages.3.layers.0.mlp.fc1.weight"} <= with_gradient


@pytest.mark.parametrize("size", [(1, 1), (5, 90), (64, 64)])
def test_presence_at_any_size_and_of_pairs_one_by_one(presence_model, size):
    batch = fake_batch(presence_model.config, 3, *size)
    together = presence(presence_model, batch)
    alone = [
        presence(presence_model, {name: value[row : row + 1] for name, value in batch.items()}) for row in range(3)
    ]
    assert (torch.cat(alone) - together).abs().max() <= 1e-4


def test_presence_of_expressions_that_share_their_image(presence_model):
    batch = without_labels(fake_batch(presence_model.config, 3))
    batch["pixel_values"], counts = batch["pixel_values"][:2], torch.tensor([1, 2])
    expected = presence(presence_model, batch | {"pixel_values": batch["pixel_values"].repeat_interleave(counts, 0)})
    actual = presence(presence_model, batch | {"expressions_per_image": counts})
    assert torch.allclose(actual, expected, atol=1e-5)


def test_presence_without_a_dict(presence_model):
    output = presence_model(**without_labels(fake_batch(presence_model.config)), return_dict=False)
    assert [tuple(value.shape) for value in output] == [(2, 2, 32, 48), (2,)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_presence_is_computed_in_float32_under_half_precision(tmp_path, presence_model, dtype):
    batch = fake_batch(presence_model.config, 4, 64, 64)
    expected = presence(presence_model, batch)
    presence_model.save_pretrained(tmp_path)
    loaded = CrossVLTModel.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.presence_head.query.weight.dtype == torch.promote_types(dtype, torch.float32)
    for model in (loaded, presence_model.to(dtype)):
        actual = presence(model, batch)
        assert actual.dtype == torch.promote_types(dtype, torch.float32)
        assert (actual - expected).abs().max() <= 0.05


def test_presence_under_autocast(presence_model):
    seen = []
    for module in presence_model.presence_head.modules():
        module.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        presence(presence_model, fake_batch(presence_model.config))
    assert set(seen) == {torch.float32}


def test_presence_loss_is_the_cross_entropy_of_the_labelled_pairs():
    labels = torch.tensor([[[0, 1]], [[0, 0]], [[255, 255]], [[255, 0]], [[255, 1]]])
    presence_logits = torch.tensor([2.0, -1.0, 50.0, 0.5, -3.0])
    expected = [np.log1p(np.exp(x)) for x in (-2.0, -1.0, 0.5, 3.0)]
    assert presence_loss(presence_logits, labels).item() == pytest.approx(np.mean(expected), rel=1e-6)
    assert presence_loss(presence_logits[2:3], labels[2:3]).item() == 0.0


@pytest.mark.slow
def test_the_presence_head_survives_export_and_compilation(presence_model):
    batch = without_labels(fake_batch(presence_model.config))
    expected = presence(presence_model, batch)
    program = torch.export.export(presence_model, (), kwargs=batch)
    compiled = torch.compile(presence_model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.allclose(program.module()(**batch).presence_logits, expected, atol=1e-5)
        assert torch.allclose(compiled(**batch).presence_logits, expected, atol=1e-5)


def test_the_presence_head_on_the_disk(tmp_path, presence_model):
    batch = fake_batch(presence_model.config)
    expected = presence(presence_model, batch)
    accelerate.disk_offload(presence_model, str(tmp_path), execution_device=torch.device("cpu"))
    assert torch.allclose(presence(presence_model, batch), expected, atol=1e-6)


@pytest.mark.slow
def test_presence_is_learnt(presence_model):
    """Half of the pairs have an object."""
    model = presence_model.train()
    batch = fake_batch(model.config, 4)
    batch["labels"][2:] = 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert (model(**batch).presence_logits > 0).tolist() == [True, True, False, False]


# ---- faster inference


def stir_statistics(model):
    """BatchNorms as after training."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_()


# ---- inference


@pytest.mark.parametrize("counts", [[3], [1, 3, 2], [1, 1]])
@pytest.mark.parametrize("labelled", [False, True])
def test_expressions_share_their_image(model, counts, labelled):
    total = sum(counts)
    batch = fake_batch(model.config, batch=total)
    counts = torch.tensor(counts)
    once = batch["pixel_values"][: len(counts)]
    if not labelled:
        del batch["labels"]
    with torch.no_grad():
        expected = model(**batch | {"pixel_values": once.repeat_interleave(counts, 0)})
        actual = model(**batch | {"pixel_values": once}, expressions_per_image=counts, output_hidden_states=True)
    assert torch.allclose(actual.logits, expected.logits, atol=1e-6)
    assert len(actual.hidden_states[0]) == len(counts)
    assert len(actual.hidden_states[-1]) == total
    if labelled:
        assert actual.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)


@pytest.mark.parametrize("counts", [[3], [1, 3, 2]])
def test_gradients_of_expressions_that_share_their_image(model, counts):
    model.double()
    batch = fake_batch(model.config, batch=sum(counts))
    counts = torch.tensor(counts)
    once = batch["pixel_values"][: len(counts)].double()
    gradients = []
    for inputs in (
        {"pixel_values": once, "expressions_per_image": counts},
        {"pixel_values": once.repeat_interleave(counts, 0)},
    ):
        model.zero_grad()
        model(**batch | inputs).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_an_export_takes_any_number_of_expressions_per_image(model):
    batch = without_labels(fake_batch(model.config, batch=4))
    images = batch.pop("pixel_values")
    auto = torch.export.Dim.AUTO
    shapes = {name: {0: auto} for name in batch} | {"pixel_values": None, "expressions_per_image": None}
    example = batch | {"pixel_values": images[:2], "expressions_per_image": torch.tensor([3, 1])}
    with torch.no_grad():
        exported = torch.export.export(model, (), kwargs=example, dynamic_shapes=shapes).module()
    for counts in ([3, 1], [1, 1], [2, 3]):
        other = without_labels(fake_batch(model.config, batch=sum(counts)))
        other |= {"pixel_values": images[:2], "expressions_per_image": torch.tensor(counts)}
        with torch.no_grad():
            torch.testing.assert_close(exported(**other).logits, model(**other).logits, rtol=0, atol=1e-5)


def rows_at_a_time(model, layer, batch, **options) -> list[int]:
    """How many rows a layer of the model computes at each of its calls."""
    seen, module = [], model.get_submodule(layer)
    forward = module.forward

    def counted(*args, **kwargs):
        output = forward(*args, **kwargs)
        seen.append(len(output[0] if isinstance(output, tuple) else output))
        return output

    with pytest.MonkeyPatch.context() as patch:  # not a hook, for which layers compute the whole batch
        patch.setattr(module, "forward", counted)
        model(**batch, **options)
    return seen


@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("part", [1, 1_000, 20_000])
def test_layers_in_parts_give_the_same(model, part, attention, masked, monkeypatch):
    """With attentions and hidden states, each recorded once."""
    stir_statistics(model.double())
    model.set_attn_implementation(attention)
    batch = without_labels(fake_batch(model.config, batch=5))
    batch["pixel_values"] = batch["pixel_values"].double()
    asked = {"output_hidden_states": True, "output_attentions": attention == "eager", "output_alignment_maps": True}
    if not masked:
        del batch["attention_mask"]
    with torch.no_grad():
        expected = model(**batch, **asked)
        monkeypatch.setattr(layers_crossvlt, "PART", part)
        actual = model(**batch, **asked)
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=1e-12)


IN_PARTS = [
    "vision_model.stages.1.blocks.1.attention",
    "vision_model.stages.1.blocks.1.attention.qkv",
    "vision_model.stages.1.blocks.1.norm2",
    "vision_model.stages.1.blocks.1.mlp.fc2",
    "stages.0.fusion.attention",
    "stages.0.fusion.attention.query",
    "stages.0.fusion.projection",
    "stages.0.merged_gate.fc1",
    "vision_model.stages.0.downsample.reduction",
    "decoder.blocks.0.norm2",
    "decoder.classifier",
]


@pytest.mark.parametrize("layer", IN_PARTS)
def test_layers_compute_parts_on_a_cpu_only_without_gradients(layer, model, monkeypatch):
    batch = without_labels(fake_batch(model.config, batch=5))
    with torch.no_grad():
        assert len(whole := rows_at_a_time(model, layer, batch)) == 1
    monkeypatch.setattr(layers_crossvlt, "PART", 1)
    assert len(rows_at_a_time(model, layer, batch)) == 1
    with torch.no_grad():
        assert rows_at_a_time(model, layer, batch) == [whole[0] // 5] * 5


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("layer", IN_PARTS)
def test_a_hook_sees_the_whole_batch(layer, register, model, monkeypatch):
    """A user stores what a hook gets under the name of the layer, once for each call of the model."""
    monkeypatch.setattr(layers_crossvlt, "PART", 1)
    batch = without_labels(fake_batch(model.config, batch=5))
    seen = []
    hook = getattr(model.get_submodule(layer), register)(lambda module, inputs, *output: seen.append(len(inputs[0])))
    with torch.no_grad():
        model(**batch)
    hook.remove()
    assert seen == [5]
    with torch.no_grad():
        assert len(rows_at_a_time(model, layer, batch)) == 5


@pytest.mark.parametrize("layer", IN_PARTS)
def test_a_layer_computes_everything_at_once_if_accelerate_loads_its_weights(layer, model, monkeypatch):
    """It would load them again for each part."""
    monkeypatch.setattr(layers_crossvlt, "PART", 1)
    accelerate.hooks.add_hook_to_module(model.get_submodule(layer), accelerate.hooks.ModelHook())
    batch = without_labels(fake_batch(model.config, batch=5))
    with torch.no_grad():
        assert len(rows_at_a_time(model, layer, batch)) == 1


@pytest.mark.parametrize("tracked", [True, False])
def test_statistics_of_a_batch_are_of_all_pairs(model, monkeypatch, tracked):
    """Also if only BatchNorm is in training, or has no statistics of training, as where it adapts to new images."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.train(tracked)
        if not tracked:
            norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    batch = without_labels(fake_batch(model.config, batch=5))
    expected = logits(model, batch)
    monkeypatch.setattr(layers_crossvlt, "PART", 1)
    torch.testing.assert_close(logits(model, batch), expected, rtol=0, atol=1e-5)
    assert {norm.num_batches_tracked.item() for norm in norms} == {2 if tracked else 0}


@pytest.mark.parametrize("layer", IN_PARTS)
def test_only_recorded_outputs_need_the_whole_batch(layer, model, monkeypatch):
    """Transformers' hooks stay after outputs were recorded, but do nothing."""
    model.set_attn_implementation("eager")
    monkeypatch.setattr(layers_crossvlt, "PART", 1)
    batch = without_labels(fake_batch(model.config, batch=5))
    with torch.no_grad():
        expected = 1 if ".blocks.1" in layer or ".fusion" in layer else 5  # inside of which attentions are recorded
        assert len(rows_at_a_time(model, layer, batch, output_attentions=True)) == expected
        assert len(rows_at_a_time(model, layer, batch)) == 5


class Composite(CrossVLTVisionModel):
    """A model of a user that records outputs of the layers by itself."""

    _can_record_outputs = {"attentions": OutputRecorder(CrossVLTWindowAttention, index=1)}

    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values, **kwargs):
        pixels = self.patch_embeddings(pixel_values)
        for stage in self.stages[:1]:
            pixels = stage(pixels)
        return CrossVLTVisionOutput(last_hidden_state=pixels)


def test_attentions_that_another_model_records_are_of_all_pairs(monkeypatch):
    config = tiny_config().vision_config
    config._attn_implementation = "eager"
    model, images = Composite(config).eval(), torch.randn(5, 3, 32, 48)
    with torch.no_grad():
        expected = model(images, output_attentions=True)
        monkeypatch.setattr(layers_crossvlt, "PART", 1)
        found = model(images, output_attentions=True)
    assert len(found.attentions) == len(expected.attentions) == config.depths[0]
    torch.testing.assert_close(found.attentions, expected.attentions, rtol=0, atol=1e-6)


def test_an_attention_function_may_change_its_mask(model, monkeypatch):
    def change(module, query, key, value, mask, **kwargs):
        if isinstance(module, CrossVLTWindowAttention):
            mask.mul_(2)
        return eager_attention_forward(module, query, key, value, mask, **kwargs)

    AttentionInterface.register("changes_mask", change)
    model.double().set_attn_implementation("changes_mask")
    batch = without_labels(fake_batch(model.config, batch=5))
    batch["pixel_values"] = batch["pixel_values"].double()
    expected = logits(model, batch)
    monkeypatch.setattr(layers_crossvlt, "PART", 1)
    torch.testing.assert_close(logits(model, batch), expected, rtol=0, atol=1e-12)


def test_a_hook_may_change_one_of_several_pairs_of_an_image(model):
    batch = without_labels(fake_batch(model.config, batch=3))
    batch["input_ids"][:], batch["attention_mask"][:] = batch["input_ids"][:1], batch["attention_mask"][:1]
    shared = batch | {"pixel_values": batch["pixel_values"][:1], "expressions_per_image": torch.tensor([3])}
    before = logits(model, shared)

    def change(module, inputs):
        inputs[0][0] = 0

    hook = model.stages[0].fusion.register_forward_pre_hook(change)
    after = logits(model, shared)
    hook.remove()
    torch.testing.assert_close(after[1:], before[1:], rtol=0, atol=1e-6)
    assert not torch.allclose(after[0], before[0])


def test_an_error_while_attentions_are_recorded_ends_recording(model, monkeypatch):
    monkeypatch.setattr(layers_crossvlt, "PART", 1)
    model.set_attn_implementation("eager")
    batch = without_labels(fake_batch(model.config, batch=5))
    with torch.no_grad():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model.decoder, "forward", lambda *arguments: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                model(**batch, output_attentions=True)
        assert len(rows_at_a_time(model, "stages.0.fusion.attention", batch)) == 5


def test_the_bias_of_windows_is_made_once_for_all_parts(model, monkeypatch):
    monkeypatch.setattr(layers_crossvlt, "PART", 1)
    made = []

    def record(self, mask, dtype):
        made.append(self)
        return score_bias(self, mask, dtype)

    score_bias = CrossVLTWindowAttention.score_bias
    monkeypatch.setattr(CrossVLTWindowAttention, "score_bias", record)
    batch = without_labels(fake_batch(model.config, batch=5))
    found = logits(model, batch)
    blocks = [block for stage in model.vision_model.stages for block in stage.blocks]
    assert [id(each) for each in made] == [id(block.attention) for block in blocks]
    monkeypatch.setattr(layers_crossvlt, "PART", 10**9)
    torch.testing.assert_close(found, logits(model, batch), rtol=0, atol=1e-5)


# Of the largest map of the decoder: 8x12 positions, 16 channels and 8 of the first stage
VALUES = 8 * 12 * (16 + 8)


@pytest.mark.parametrize(("part", "pairs"), [(1, [1] * 5), (VALUES, [1] * 5), (2 * VALUES, [2, 2, 1]), (10**7, [5])])
def test_a_part_has_as_many_pairs_as_its_largest_map_allows(model, monkeypatch, part, pairs):
    monkeypatch.setattr(layers_crossvlt, "PART", part)
    batch = without_labels(fake_batch(model.config, batch=5))
    with torch.no_grad():
        assert rows_at_a_time(model, "decoder.classifier", batch) == pairs


@pytest.mark.parametrize(("training", "gradients"), [(True, True), (True, False), (False, True)])
def test_training_decodes_all_pairs_together(model, monkeypatch, training, gradients):
    """BatchNorm's statistics are those of the whole batch, whether or not gradients are recorded."""
    monkeypatch.setattr(layers_crossvlt, "PART", 1)
    with torch.set_grad_enabled(gradients):
        batch = fake_batch(model.config, batch=5)
        assert rows_at_a_time(model.train(training), "decoder.classifier", batch) == [5]


# ---- Winograd's convolution


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 14), st.integers(1, 14), st.data())
def test_winograd_convolution_is_a_convolution(batch, channels, width, rows, columns, data):
    """To rounding in float64, for sides that are no multiple of a tile, and in parts of any number of rows."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    maps = torch.randn(batch, channels, rows, columns, dtype=torch.float64, generator=generator)
    kernel = torch.randn(width, channels, 3, 3, dtype=torch.float64, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers_crossvlt, "WINOGRAD_TILES", data.draw(st.sampled_from([1, 4, 256])))
        found = winograd_convolution(maps, winograd_kernel(kernel))
    assert found.shape == (batch, width, rows, columns)
    torch.testing.assert_close(found, F.conv2d(maps, kernel, padding=1), rtol=0, atol=1e-11)


def test_winograd_convolution_of_the_width_of_the_base_model():
    """In float32, its largest error is below 1e-4 of the spread."""
    generator = torch.Generator().manual_seed(0)
    maps, kernel = torch.rand(1, 512, 20, 20, generator=generator), torch.randn(64, 512, 3, 3, generator=generator)
    expected = F.conv2d(maps.double(), kernel.double(), padding=1)
    error = (winograd_convolution(maps, winograd_kernel(kernel)) - expected).abs().max() / expected.std()
    assert error < 1e-4


@pytest.fixture
def winograd_calls(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of the maps that Winograd's algorithm convolves, which takes also small ones here."""
    calls = []

    def record(maps, kernel):
        calls.append(tuple(maps.shape))
        return winograd_convolution(maps, kernel)

    monkeypatch.setattr(layers_crossvlt, "winograd_convolution", record)
    monkeypatch.setattr(layers_crossvlt, "WINOGRAD_CHANNELS", 1)
    monkeypatch.setattr(layers_crossvlt, "WINOGRAD_LEAST_TILES", 2)  # of stages 1 and 2
    monkeypatch.setattr(layers_crossvlt, "WINOGRAD_LEAST_TILES_OF_A_KERNEL", 2)
    return calls


def test_a_decoder_with_winograd_convolutions(model, monkeypatch, winograd_calls):
    stir_statistics(model)
    batch = without_labels(fake_batch(model.config, batch=5))
    found = logits(model, batch)
    assert [shape[2:] for shape in winograd_calls] == 2 * [(4, 6)] + 2 * [(8, 12)]
    monkeypatch.setattr(layers_crossvlt, "WINOGRAD_CHANNELS", 10**6)
    expected = logits(model, batch)
    assert len(winograd_calls) == 4
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.fixture
def kernels_made(monkeypatch, winograd_calls) -> list[torch.Tensor]:
    """The kernels that are transformed for Winograd's algorithm, while the decoder takes a pair at a time."""
    made = []

    def record(kernel):
        made.append(kernel)
        return winograd_kernel(kernel)

    monkeypatch.setattr(layers_crossvlt, "winograd_kernel", record)
    monkeypatch.setattr(layers_crossvlt, "PART", 1)
    return made


def test_kernels_are_transformed_once_for_all_parts(model, kernels_made, winograd_calls):
    """And again in the next forward pass, after which weights may have changed."""
    batch = without_labels(fake_batch(model.config, batch=5))
    before = logits(model, batch)
    assert len(winograd_calls) == 4 * 5
    kernels = [convolution.weight for block in model.decoder.blocks[1:] for convolution in (block.conv1, block.conv2)]
    assert [id(kernel) for kernel in kernels_made] == [id(kernel) for kernel in kernels]
    with torch.no_grad():
        kernels[-1].zero_()
    after = logits(model, batch)
    assert len(kernels_made) == 8
    assert not torch.allclose(before, after)
    assert layers_crossvlt.PARTS.get() is None


def test_parametrized_kernels_are_transformed_once(model, kernels_made):
    last = model.decoder.blocks[-1].conv2
    torch.nn.utils.parametrizations.weight_norm(last)
    batch = without_labels(fake_batch(model.config, batch=5))
    found = logits(model, batch)
    assert len(kernels_made) == 4
    torch.nn.utils.parametrize.remove_parametrizations(last, "weight")
    torch.testing.assert_close(found, logits(model, batch), rtol=0, atol=1e-5)


def test_a_hook_changes_a_kernel_before_it_is_transformed(model, kernels_made):
    """Once, for the whole batch."""
    last, batch = model.decoder.blocks[-1].conv2, without_labels(fake_batch(model.config, batch=3))
    before = logits(model, batch)

    def change(module, inputs):
        module.weight.zero_()

    hook = last.register_forward_pre_hook(change)
    after = logits(model, batch)
    hook.remove()
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, logits(model, batch), rtol=0, atol=1e-5)


def test_an_error_in_a_part_leaves_nothing_shared(model, kernels_made, monkeypatch):
    monkeypatch.setattr(model.decoder.classifier, "forward", lambda maps: 1 / 0)
    batch = without_labels(fake_batch(model.config, batch=5))
    with torch.no_grad(), pytest.raises(ZeroDivisionError):
        model(**batch)
    assert kernels_made
    assert layers_crossvlt.PARTS.get() is None


@pytest.mark.parametrize("part", [1, 10**9])
@pytest.mark.parametrize(
    ("pairs", "sizes"), [(2, 2 * [(8, 12)]), (3, 2 * [(4, 6)] + 2 * [(8, 12)]), (5, 2 * [(4, 6)] + 2 * [(8, 12)])]
)
def test_small_maps_of_several_pairs_share_transformed_kernels(model, winograd_calls, monkeypatch, pairs, sizes, part):
    """A kernel is transformed for 6 tiles of 4x4 or more here: 6 of a pair of 8x12 positions, 2 of 4x6."""
    monkeypatch.setattr(layers_crossvlt, "WINOGRAD_LEAST_TILES_OF_A_KERNEL", 6)
    monkeypatch.setattr(layers_crossvlt, "PART", part)
    logits(model, without_labels(fake_batch(model.config, batch=pairs)))
    assert [shape[2:] for shape in winograd_calls] == (pairs if part == 1 else 1) * sizes


def test_where_winograd_convolutions_are_not_used(model, winograd_calls):
    """With gradients, in other dtypes, and in graphs."""
    batch = without_labels(fake_batch(model.config))
    model(**batch)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(**batch)
    with torch.no_grad():
        torch.export.export(model, (), kwargs=batch)
        torch.compile(model, backend="eager")(**batch)
    for dtype in (torch.bfloat16, torch.float64):
        logits(model.to(dtype), batch | {"pixel_values": batch["pixel_values"].to(dtype)})
    assert not winograd_calls


MAPS = torch.randn(2, 6, 9, 11, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},  # with a bias
        {"kernel_size": 3, "bias": False},
        {"kernel_size": 3, "padding": 1, "stride": 2, "bias": False},
        {"kernel_size": 3, "padding": 1, "dilation": 2, "bias": False},
        {"kernel_size": 3, "padding": 1, "groups": 2, "bias": False},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "bias": False},
        {"kernel_size": 1, "bias": False},
        {"kernel_size": 5, "padding": 1, "bias": False},
    ],
)
def test_a_changed_convolution_is_direct(winograd_calls, options):
    layer, direct = CrossVLTConvolution(6, 4, **options), torch.nn.Conv2d(6, 4, **options)
    direct.load_state_dict(layer.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(layer(MAPS), direct(MAPS), rtol=0, atol=0)
    assert not winograd_calls


@pytest.mark.parametrize("maps", [MAPS[0], MAPS[:0], MAPS[..., :1, :2]])
def test_unusual_maps_are_convolved_directly(winograd_calls, maps):
    layer = CrossVLTConvolution(6, 4, 3, padding=1, bias=False)
    with torch.no_grad():
        torch.testing.assert_close(layer(maps), F.conv2d(maps, layer.weight, padding=1), rtol=0, atol=0)
    assert not winograd_calls


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_winograd_is_neither_traced_nor_of_another_precision(winograd_calls):
    layer = CrossVLTConvolution(6, 4, 3, padding=1, bias=False)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(MAPS).dtype == torch.bfloat16
        traced = torch.jit.trace(layer, MAPS, check_trace=False)
        assert not winograd_calls
        torch.testing.assert_close(traced(MAPS), F.conv2d(MAPS, layer.weight, padding=1))


def test_winograd_convolution_in_unusual_surroundings(winograd_calls):
    """Another default device, another memory format, kernels that `vmap` stacks, and BatchNorm folded into it."""
    layer = CrossVLTConvolution(6, 4, 3, padding=1, bias=False)
    expected = F.conv2d(MAPS, layer.weight, padding=1).detach()
    with torch.no_grad(), torch.device("meta"):
        torch.testing.assert_close(layer(MAPS), expected, rtol=0, atol=1e-5)
    with torch.inference_mode():
        found = layer(MAPS.to(memory_format=torch.channels_last))
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    with torch.no_grad():
        kernels = torch.vmap(winograd_kernel)(torch.stack([layer.weight, -layer.weight]))
        both = torch.vmap(winograd_convolution, in_dims=(None, 0))(MAPS, kernels)
    torch.testing.assert_close(both, torch.stack([expected, -expected]), rtol=0, atol=1e-5)
    norm = torch.nn.BatchNorm2d(4).eval()
    norm.bias.data.fill_(3.0)
    with torch.no_grad():
        folded = torch.nn.utils.fuse_conv_bn_eval(layer.eval(), norm)(MAPS)
        torch.testing.assert_close(folded, norm(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("channels", "side", "fast"), [(256, 48, True), (255, 48, False), (256, 44, False)])
def test_the_convolutions_that_winograd_takes(monkeypatch, channels, side, fast):
    """From 256 channels and 12x12 tiles on."""
    calls = []
    monkeypatch.setattr(layers_crossvlt, "winograd_convolution", lambda maps, kernel: calls.append(maps.shape))
    with torch.no_grad():
        CrossVLTConvolution(channels, 256, 3, padding=1, bias=False)(torch.zeros(1, channels, side, side))
    assert bool(calls) is fast


@pytest.mark.parametrize("counts", [[1, 2], [0, 2], [2, 0, 0], [1.0, 1.0], [[1, 1]], [-1, 3], [2], [True, True]])
def test_expressions_that_do_not_add_up(model, counts):
    batch = fake_batch(model.config)
    with pytest.raises(ValueError, match="`expressions_per_image` must be"):
        model(**batch, expressions_per_image=torch.tensor(counts))


def test_expressions_per_image_is_a_tensor(model):
    with pytest.raises(ValueError, match="must be a tensor of 2 integers"):
        model(**fake_batch(model.config), expressions_per_image=[1, 1])


@pytest.mark.parametrize("name", ["input_ids", "token_type_ids", "labels"])
@pytest.mark.parametrize("value", [-1, 10**6])
def test_values_that_the_model_does_not_know(name, value):
    batch = fake_batch(tiny_config())
    batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    batch[name] = batch[name].clone()
    batch[name].flatten()[0] = value
    with pytest.raises(ValueError, match=rf"`{name}` must be .* got (\d+ to )?{value}\b"):
        CrossVLTModel(tiny_config()).eval()(**batch)


# ---- float64


def test_losses_and_attention_keep_float64():
    """Half precision is lifted to float32; float64 is never lowered to it."""
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(1, 1, 3, 4, dtype=torch.float64, generator=generator)]
    labels = torch.randint(0, 2, (1, 9, 10), generator=generator)
    assert alignment_loss(exact, labels).dtype == torch.float64
    assert alignment_loss([map_.float() for map_ in exact], labels).dtype == torch.float32
    query, key, value = torch.randn(3, 1, 2, 5, 4, dtype=torch.float64, generator=generator)
    attended, weights = eager_attention_forward(torch.nn.Identity(), query, key, value, None, scaling=0.5)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=0.5)
    assert torch.allclose(attended, expected.transpose(1, 2), rtol=0, atol=1e-14)
    assert (weights.sum(-1) - 1).abs().max() <= 1e-14
    rows, columns = (interpolation(source, target, like=exact[0]) for source, target in ((3, 9), (4, 11)))
    expected = F.interpolate(exact[0], size=(9, 11), mode="bilinear", align_corners=True)
    assert torch.allclose(rows @ exact[0] @ columns.T, expected, rtol=0, atol=1e-14)


# ---- the temperature


def aligned(model, batch: dict) -> tuple:
    return model(**without_labels(batch), output_alignment_maps=True).alignment_maps


def set_temperatures(model, value: float) -> list:
    temperatures = [stage.alignment.temperature for stage in model.stages]
    with torch.no_grad():
        for temperature in temperatures:
            temperature.fill_(value)
    return temperatures


@pytest.mark.parametrize("value", [0.0, -1e-8, -0.5, 1e-12, 0.0099])
def test_a_temperature_below_the_bound_counts_as_the_bound(model, value):
    batch = fake_batch(model.config)
    set_temperatures(model, MIN_TEMPERATURE)
    expected = aligned(model, batch)
    set_temperatures(model, value)
    for actual, map_ in zip(aligned(model, batch), expected, strict=True):
        assert torch.equal(actual, map_)
        assert map_.abs().max() <= 1 / MIN_TEMPERATURE + 1e-3


@pytest.mark.parametrize("value", [MIN_TEMPERATURE, 0.0125, 1.0, 30.0])
def test_a_temperature_from_the_bound_up_divides_as_it_is(model, value):
    batch = fake_batch(model.config)
    set_temperatures(model, 1.0)
    cosines = [map_ / value for map_ in aligned(model, batch)]
    temperatures = set_temperatures(model, value)
    for actual, expected in zip(aligned(model, batch), cosines, strict=True):
        assert torch.allclose(actual, expected, rtol=1e-6)
    model(**batch).loss.backward()
    assert all(temperature.grad.abs() > 0 for temperature in temperatures)


@pytest.mark.parametrize("value", [0.0, -0.5])
def test_a_temperature_below_the_bound_finds_its_way_back(model, value):
    """With random weights the cosines say nothing, so the loss wants small maps: high temperatures."""
    batch = fake_batch(model.config)
    temperatures = set_temperatures(model, value)
    optimizer = torch.optim.AdamW(temperatures, lr=0.05, weight_decay=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        assert all(temperature.grad.isfinite() for temperature in temperatures)
        optimizer.step()
    assert all(temperature > MIN_TEMPERATURE for temperature in temperatures)


def test_nothing_pushes_a_temperature_further_below_the_bound():
    """Where the loss wants a lower one still, there is no gradient, and what lies on the bound keeps its own."""
    below, above = (torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (0.001, 0.5))
    for temperature, expected in ((below, 0.0), (above, 1.0)):
        CrossVLTLowerBound.apply(temperature, MIN_TEMPERATURE).backward()  # descent lowers it
        assert temperature.grad.item() == expected
        temperature.grad = None
        CrossVLTLowerBound.apply(temperature, MIN_TEMPERATURE).neg().backward()  # descent raises it
        assert temperature.grad.item() == -1.0


def test_a_temperature_driven_down_stays_finite(model):
    """Labels that the maps fit perfectly drive it down; its own optimizer carries it below the bound, no further."""
    temperatures = set_temperatures(model, 0.02)
    optimizer = torch.optim.AdamW(temperatures, lr=1e-3, weight_decay=0.0)
    batch = fake_batch(model.config)
    for _ in range(60):
        optimizer.zero_grad()
        sum(stage.alignment.bounded_temperature().sum() for stage in model.stages).backward()
        optimizer.step()
    assert all(-0.01 < temperature < MIN_TEMPERATURE for temperature in temperatures)
    assert all(map_.isfinite().all() for map_ in aligned(model, batch))


# ---- the encoders on their own


def assert_same_weights(actual, expected) -> None:
    actual, expected = actual.state_dict(), expected.state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[key], value) for key, value in expected.items())


TOWERS = {"vision_model": CrossVLTVisionModel, "text_model": CrossVLTTextModel}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("tower", TOWERS)
def test_an_encoder_of_a_whole_checkpoint(tmp_path, tower, direction, capfd):
    torch.manual_seed(0)
    model = CrossVLTModel(tiny_config(fusion_direction=direction))
    model.save_pretrained(tmp_path)
    loaded, info = TOWERS[tower].from_pretrained(tmp_path, output_loading_info=True)
    assert_same_weights(loaded, getattr(model, tower))
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("direction", ["both", "late"])
@pytest.mark.parametrize("tower", TOWERS)
def test_an_encoder_saved_alone(tmp_path, tower, direction):
    torch.manual_seed(0)
    encoder = getattr(CrossVLTModel(tiny_config(fusion_direction=direction)), tower)
    encoder.save_pretrained(tmp_path)
    for class_ in (TOWERS[tower], AutoModel):
        loaded = class_.from_pretrained(tmp_path)
        assert type(loaded) is TOWERS[tower]
        assert_same_weights(loaded, encoder)
    has_cross_attention = any("cross_attention" in key for key in encoder.state_dict())
    assert has_cross_attention == (tower == "text_model" and direction == "both")
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModel"] == f"modeling_crossvlt.{TOWERS[tower].__name__}"
    assert (tmp_path / "modeling_crossvlt.py").is_file()


def test_what_the_words_read_follows_from_the_whole_config(tmp_path):
    """And is never stale, whatever the language encoder's own config says."""
    config = tiny_config()
    CrossVLTModel(config).save_pretrained(tmp_path)
    assert config.text_config.context_dims == [16, 32, 64]
    assert config.to_dict() == tiny_config().to_dict() | {"architectures": ["CrossVLTModel"], "dtype": "float32"}
    old = json.loads((tmp_path / "config.json").read_text())
    assert old["text_config"].pop("context_dims") == [16, 32, 64]
    (tmp_path / "config.json").write_text(json.dumps(old))  # as saved before there was such a field
    assert CrossVLTTextConfig.from_pretrained(tmp_path).context_dims == [16, 32, 64]
    config.fusion_direction = "late"
    assert config.to_dict()["text_config"]["context_dims"] is None
    assert not any("cross_attention" in key for key in CrossVLTModel(config).state_dict())
    wider = CrossVLTConfig.from_pretrained(tmp_path, vision_config={"embed_dim": 16})
    assert CrossVLTModel(wider).text_model.config.context_dims == [32, 64, 128]


@pytest.mark.parametrize("return_dict", [True, False])
def test_features_of_either_encoder(model, return_dict):
    batch = fake_batch(model.config, 2, 64, 96)
    model.config.return_dict = return_dict
    with torch.no_grad():
        pixels = model.get_image_features(batch["pixel_values"], output_hidden_states=True)
        words = model.get_text_features(batch["input_ids"], batch["attention_mask"], output_hidden_states=True)
        expected = model.vision_model(batch["pixel_values"], return_dict=True).last_hidden_state
    if not return_dict:
        pixels, words = (BaseModelOutputWithPooling(*output) for output in (pixels, words))
    assert torch.equal(pixels.last_hidden_state, expected)
    assert pixels.last_hidden_state.shape == (2, 2, 3, 64)
    assert torch.allclose(pixels.pooler_output, expected.mean((1, 2)))
    assert [tuple(h.shape) for h in pixels.hidden_states][-1] == (2, 2, 3, 64)
    assert words.last_hidden_state.shape == (2, 7, 16)
    assert torch.equal(words.pooler_output, words.last_hidden_state[:, 0])
    assert [tuple(h.shape) for h in words.hidden_states] == [(2, 7, 16)] * 4


# ---- several devices


@pytest.mark.parametrize("dice_loss_weight", [0.0, 0.5])
def test_labels_and_maps_on_other_devices_than_the_logits(model, dice_loss_weight):
    """The decoder on a device of its own: "meta" has no values, but refuses other devices as a GPU does."""
    model.config.dice_loss_weight = dice_loss_weight
    decoder = model.decoder.to("meta")
    decoder.register_forward_pre_hook(lambda module, args: ([map_.to("meta") for map_ in args[0]],))
    output = model(**fake_batch(model.config))
    assert {map_.device.type for map_ in output.alignment_maps} == {"cpu"}
    assert output.logits.device.type == output.loss.device.type == "meta"


def test_alignment_loss_takes_labels_of_another_device():
    maps = [torch.zeros(2, 1, 4, 4, device="meta")]
    assert alignment_loss(maps, torch.zeros(2, 9, 9, dtype=torch.long)).device.type == "meta"


# ---- arguments of forward


@pytest.mark.parametrize(
    "name", ["output_hidden_state", "output_attention", "output_everything", "position_ids", "foo"]
)
@pytest.mark.parametrize("part", ["whole", *TOWERS])
def test_arguments_that_nothing_reads_are_refused(model, part, name):
    batch = without_labels(fake_batch(model.config))
    inputs = {"whole": batch, "vision_model": {"pixel_values": batch["pixel_values"]}}
    inputs["text_model"] = {"input_ids": batch["input_ids"]}
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        (model if part == "whole" else getattr(model, part))(**inputs[part], **{name: torch.ones(2, 7)})


@pytest.mark.parametrize("attention", ["sdpa", "its own"])
def test_arguments_of_the_other_encoder_are_named_with_those_that_fit(model, processor, photo, attention):
    inputs = processor([photo, photo], [["the bus", "the dog"], ["the cat"]], return_tensors="pt")
    AttentionInterface.register("its own", eager_attention_forward)
    model.set_attn_implementation(attention)
    only = {
        "image": (r"CrossVLTVisionModel.* '(input_ids|token_type_ids|attention_mask)'", r"Pass only pixel_values\.$"),
        "text": ("CrossVLTTextModel.* 'pixel_values'", r"Pass only input_ids, attention_mask, token_type_ids\.$"),
    }
    for encode, kind in ((model.get_image_features, "image"), (model.get_text_features, "text")):
        with pytest.raises(TypeError, match=".*".join(only[kind])):
            encode(**inputs)
    for encode, kind in ((model.vision_model, "image"), (model.text_model, "text")):
        with pytest.raises(TypeError, match=only[kind][1]):
            encode(**inputs)
    words = {name: value for name, value in inputs.items() if name != "pixel_values"}
    with pytest.raises(TypeError, match=f"'expressions_per_image'.*{only['text'][1]}"):
        model.get_text_features(**words)
    with pytest.raises(TypeError, match=f"'labels'.*{only['image'][1]}"):
        model.get_image_features(inputs["pixel_values"], labels=inputs["input_ids"])
    with pytest.raises(TypeError, match=r"'attention_masks'\. Did you mean 'attention_mask'\?"):
        model.get_text_features(inputs["input_ids"], attention_masks=inputs["attention_mask"])
    with pytest.raises(TypeError, match=r"'lables'\. Did you mean 'labels'\?"):
        model(**inputs, lables=inputs["input_ids"])


ATTENTIONS = ("attentions", "text_attentions", "cross_attentions", "fusion_attentions")


@pytest.mark.parametrize("kind", ATTENTIONS[1:])
def test_one_kind_of_attention_alone(model, kind):
    model.set_attn_implementation("eager")
    batch = without_labels(fake_batch(model.config))
    together = model(**batch, output_attentions=True)
    assert set(together) == {"logits", *ATTENTIONS}
    alone = model(**batch, **{f"output_{kind}": True})
    assert set(alone) == {"logits", kind}
    assert all(map(torch.equal, alone[kind], together[kind]))
    others = model(**batch, output_attentions=True, **{f"output_{kind}": False})
    assert set(others) == {"logits", *ATTENTIONS} - {kind}
    assert isinstance(model(**batch, **{f"output_{kind}": True}, return_dict=False)[1], tuple)


@pytest.mark.parametrize("name", ["attentions", *ATTENTIONS[1:]])
def test_attentions_that_sdpa_does_not_give_are_warned_of(model, name, caplog, monkeypatch):
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    modeling_crossvlt.logger.warning_once.cache_clear()
    batch = without_labels(fake_batch(model.config))
    model.set_attn_implementation("sdpa")
    model(**batch)
    assert not caplog.records
    model(**batch, **{f"output_{name}": True})
    assert "`sdpa` attention does not return its weights" in caplog.text
    assert 'attn_implementation="eager"' in caplog.text


def test_an_attention_function_of_the_users_own_gets_its_arguments(model):
    seen = []

    def attention(module, query, key, value, attention_mask, scaling, dropout=0.0, sharpness=None, **kwargs):
        seen.append((type(module).__name__, sharpness, kwargs.get("output_attentions")))
        return eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout)

    AttentionInterface.register("sharp", attention)
    model.set_attn_implementation("sharp")
    batch = without_labels(fake_batch(model.config))
    output = model(**batch, sharpness=2.0, output_attentions=True)
    assert set(seen) == {
        (name, 2.0, True) for name in ("CrossVLTWindowAttention", "CrossVLTTextAttention", "CrossVLTFusionAttention")
    }
    assert len(seen) == sum(len(output[name]) for name in ATTENTIONS)
    with pytest.raises(TypeError, match=r"'output_hidden_state'\. Did you mean 'output_hidden_states'"):
        model(**batch, output_hidden_state=True)
    model.train().activation_checkpointing_enable()
    model(**fake_batch(model.config), sharpness=3.0).loss.backward()
    assert seen[-1][1] == 3.0


# ---- compilation for many sizes


def compare_compiled(compiled, model, **sizes) -> None:
    batch = without_labels(fake_batch(model.config, **{"height": 16, "width": 16, **sizes}))
    assert torch.allclose(logits(compiled, batch), logits(model, batch), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["words", "batch"])
def test_words_and_batch_are_compiled_for_any_number(model, axis):
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch._dynamo.config.patch(recompile_limit=2):
        for number in range(3, 8):
            compare_compiled(compiled, model, **{axis: number})


@pytest.mark.slow
def test_a_raised_limit_leaves_room_for_more_image_sizes(model):
    """Each is compiled for itself, also where the compiler would take any."""
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch._dynamo.config.patch(recompile_limit=2):
        for height in (8, 12):
            compare_compiled(compiled, model, height=height)
        with pytest.raises(FailOnRecompileLimitHit):
            compare_compiled(compiled, model, height=20)
    with torch._dynamo.config.patch(recompile_limit=4):
        compare_compiled(compiled, model, height=20)


@pytest.mark.parametrize("mask", [[[0.0, -1e4]], [[1.0, 0.5]], [[2, 1]]])
def test_an_attention_mask_is_of_zeros_and_ones(model, mask):
    batch = {"pixel_values": torch.zeros(1, 3, 32, 32), "input_ids": torch.tensor([[2, 3]])}
    with pytest.raises(ValueError, match="`attention_mask` must be 1 for words and 0 for padding"):
        model(**batch, attention_mask=torch.tensor(mask))


def test_small_integers_as_labels(model):
    batch = fake_batch(model.config)
    batch["labels"] = batch["labels"].to(torch.int8)
    batch["labels"][0, 0, 0] = -1  # 255, were it unsigned
    with pytest.raises(ValueError, match=r"`labels` must be .* got -1"):
        model(**batch)
