"""What `crossvlt_hf.visualization.explain` keeps of a forward pass, against the model's own outputs and by hand."""

import itertools
import re
import threading
import warnings

import numpy as np
import pytest
import torch
from conftest import tiny_config, tiny_tokenizer
from PIL import Image

from crossvlt_hf import CrossVLTModel, CrossVLTProcessor, ReferringImageSegmentationPipeline
from crossvlt_hf.visualization import Explanation, explain, segment_and_explain
from crossvlt_hf.visualization.explanation import positions_of, tokens_of


DIRECTIONS = ["both", "words_to_pixels", "pixels_to_words", "late"]
ALIGNED = {"all": [1, 2, 3, 4], "last": [4], "none": []}
SAID = "the red cup left of the spoon"


def processor_of(height, width):
    return CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), image_size=(height, width), max_length=12)


def random_model(**options) -> CrossVLTModel:
    """A model whose words and pixels differ enough for uneven attention."""
    torch.manual_seed(0)
    model = CrossVLTModel(tiny_config(**options)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "attention.key" in name or "attention.query" in name:
                weight.mul_(8)
    return model


def implementations(model):
    config = model.config
    return [part._attn_implementation for part in (config, config.vision_config, config.text_config)]


def by_hand(mask, words_read, pixels_read=None, input_size=None, tokens=("[CLS]", "cup")) -> Explanation:
    """An explanation of one stage, of cells of one pixel of what the model reads."""
    mask = np.asarray(mask, bool)
    return Explanation(
        image=Image.new("RGB", mask.shape[::-1]),
        expression="cup",
        tokens=list(tokens),
        mask=mask,
        score=0.5,
        box=None,
        alignment_maps={},
        words_read={1: np.asarray(words_read, np.float32)},
        pixels_read={} if pixels_read is None else {2: np.asarray(pixels_read, np.float32)},
        input_size=input_size or mask.shape,
        patch_size=1,
    )


# ---- against the model


@pytest.mark.parametrize("size", [(32, 48), (50, 30), (33, 17)], ids=str)
def test_is_what_the_model_gives(photo, size):
    model, processor = random_model(), processor_of(*size)
    explanation = explain(model, processor, photo, SAID)
    inputs = processor(photo, [SAID], return_tensors="pt")
    inputs.pop("original_sizes")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(**inputs, output_attentions=True, output_alignment_maps=True)
    words = int(inputs["attention_mask"].sum())

    assert explanation.tokens == ["[CLS]", *SAID.split(), "[SEP]"]
    assert len(explanation.tokens) == words < inputs["input_ids"].shape[1], "there is no padding to leave out"
    for stage in (1, 2, 3, 4):
        grid = tuple(-(-side // (4 * 2 ** (stage - 1))) for side in size)
        weights = outputs.fusion_attentions[2 * (stage - 1)].mean(1)[0, :, :words]
        assert explanation.words_read[stage].shape == (*grid, words)
        assert np.allclose(explanation.words_read[stage].reshape(-1, words), weights, atol=1e-6)
        temperature = model.stages[stage - 1].alignment.temperature.item()
        cosine = outputs.alignment_maps[stage - 1][0, 0] * temperature
        assert explanation.alignment_maps[stage].shape == grid
        assert np.allclose(explanation.alignment_maps[stage], cosine, atol=1e-6)
    for stage in (2, 3, 4):
        weights = outputs.cross_attentions[stage - 2].mean(1)[0, :words]
        assert explanation.pixels_read[stage].shape == (words, *explanation.words_read[stage].shape[:2])
        assert np.allclose(explanation.pixels_read[stage].reshape(words, -1), weights, atol=1e-6)
    assert explanation.words_read[3].std() > 0.01, "the attention is even, and the test tests little"


@pytest.mark.parametrize(("direction", "aligned"), list(itertools.product(DIRECTIONS, ALIGNED)))
def test_every_configuration(photo, direction, aligned):
    model = random_model(fusion_direction=direction, alignment_stages=aligned, alignment_temperature=0.07)
    explanation = explain(model, processor_of(32, 48), photo, SAID)
    assert list(explanation.words_read) == [1, 2, 3, 4]
    assert list(explanation.pixels_read) == ([2, 3, 4] if direction in ("both", "pixels_to_words") else [])
    assert list(explanation.alignment_maps) == ALIGNED[aligned]
    for read in explanation.words_read.values():
        assert np.allclose(read.sum(-1), 1, atol=1e-5)
    for read in explanation.pixels_read.values():
        assert np.allclose(read.sum((1, 2)), 1, atol=1e-5)
    for cosine in explanation.alignment_maps.values():
        assert np.abs(cosine).max() <= 1
    if aligned != "none":
        assert max(np.abs(cosine).max() for cosine in explanation.alignment_maps.values()) > 0.05
    assert isinstance(explanation.salient_word(), str)


@pytest.mark.parametrize("number", [1, 3, 9])
def test_several_expressions_are_explained_as_each_alone(photo, number):
    """Of different lengths, and more than go through the model together."""
    model, processor = random_model(), processor_of(32, 48)
    pipeline = ReferringImageSegmentationPipeline(model=model, processor=processor)
    texts = ["the cup", SAID, "spoon"] * (number // 3) or [SAID]
    passes = []
    hook = model.register_forward_hook(lambda module, arguments, output: passes.append(len(output.logits)))
    results, explanations = segment_and_explain(pipeline, photo, texts, threshold=0.48, instances=True)
    hook.remove()
    assert passes == {1: [1], 3: [3], 9: [8, 1]}[number]
    assert all("instances" in result for result in results)
    assert implementations(model) == ["sdpa"] * 3
    for text, result, found in zip(texts, results, explanations, strict=True):
        alone = explain(model, processor, photo, text, threshold=0.48)
        assert (found.expression, found.tokens, found.input_size) == (text, alone.tokens, alone.input_size)
        assert np.array_equal(found.mask, np.asarray(result["mask"]) > 0)
        assert (found.mask != alone.mask).mean() <= 0.002
        assert found.score == pytest.approx(alone.score, abs=1e-3)
        assert found.box == (result["box"] and list(result["box"].values()))
        for name in ("alignment_maps", "words_read", "pixels_read"):
            maps, others = getattr(found, name), getattr(alone, name)
            assert maps.keys() == others.keys()
            assert all(np.allclose(maps[stage], others[stage], atol=1e-4) for stage in maps)


def test_only_this_thread_is_recorded(photo):
    """Another one that runs the same model meanwhile neither records nor is given more than it asked for."""
    model, processor = random_model(), processor_of(32, 48)
    pipeline = ReferringImageSegmentationPipeline(model=model, processor=processor)
    inputs, others = processor(photo, [SAID], return_tensors="pt"), []
    inputs.pop("original_sizes")
    main = threading.get_ident()

    def run_in_another_thread(*_) -> None:
        if threading.get_ident() == main:
            thread = threading.Thread(target=lambda: others.append(model(**inputs)))
            thread.start()
            thread.join()

    hook = model.vision_model.patch_embeddings.register_forward_hook(run_in_another_thread)
    _, (explanation,) = segment_and_explain(pipeline, photo, [SAID])
    hook.remove()
    assert explanation.tokens == ["[CLS]", *SAID.split(), "[SEP]"]
    assert [output.fusion_attentions for output in others] == [None]


@pytest.mark.parametrize("size", [(80, 60), (41, 97), (1, 1), (1, 400)], ids=str)
def test_mask_is_the_pipelines(size):
    values = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    image, model, processor = Image.fromarray(values), random_model(), processor_of(64, 64)
    pipeline = ReferringImageSegmentationPipeline(model=model, processor=processor)
    for threshold in (None, 0.48):
        (result,) = pipeline(image, text=SAID, threshold=threshold)
        explanation = explain(model, processor, image, SAID, threshold=threshold)
        assert explanation.mask.shape == (size[1], size[0])
        assert (explanation.mask != (np.asarray(result["mask"]) > 0)).mean() <= 0.002
        assert explanation.score == pytest.approx(result["score"], abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(photo, dtype):
    full = explain(random_model(), processor_of(32, 48), photo, SAID)
    half = explain(random_model().to(dtype), processor_of(32, 48), photo, SAID)
    for stage in (2, 3, 4):
        assert half.words_read[stage].dtype == half.pixels_read[stage].dtype == np.float32
        assert half.alignment_maps[stage].dtype == np.float32
        assert np.allclose(half.words_read[stage].sum(-1), 1, atol=1e-5)
        assert np.allclose(half.pixels_read[stage].sum((1, 2)), 1, atol=1e-5)
        assert np.abs(half.words_read[stage] - full.words_read[stage]).mean() < 0.05


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(photo):
    host = explain(random_model(), processor_of(32, 48), photo, SAID)
    device = explain(random_model().cuda(), processor_of(32, 48), photo, SAID)
    assert np.allclose(host.words_read[4], device.words_read[4], atol=1e-3)
    assert host.mask.shape == device.mask.shape


def test_pixels_that_a_hand_set_stage_reads(photo):
    """All words of stage 3 look for what only the cell in row 1 and column 4 has."""
    model = random_model()
    cross = model.text_model.stages[2].cross_attention

    def one_cell(module, args):
        words, context, mask = args
        lit = torch.zeros_like(context)
        lit[:, 1 * 6 + 4] = 10.0
        return words, lit, mask

    with torch.no_grad():
        cross.attention.query.weight.zero_()
        cross.attention.query.bias.fill_(1.0)
        cross.attention.key.weight.fill_(1.0)
    handle = cross.register_forward_pre_hook(one_cell)
    explanation = explain(model, processor_of(64, 96), photo, SAID)  # stage 3 has 4x6 cells
    handle.remove()
    assert explanation.pixels_read[3][:, 1, 4] == pytest.approx(np.ones(9), abs=1e-4)
    assert explanation.pixels_of(3, "spoon").argmax() == 1 * 6 + 4
    assert explanation.pixels_read[2].max() < 0.99


def test_words_that_a_hand_set_stage_reads(photo):
    """In stage 2 the cell in row 3 and column 5 looks for "cup", and the others for anything else."""
    model = random_model()
    attention = model.stages[1].fusion.attention

    def one_cell_one_word(module, args):
        pixels, words, mask = args
        lit, said = torch.zeros_like(pixels), torch.zeros_like(words)
        lit[:, 3 * 12 + 5] = 1.0
        said[:, 3] = 1.0  # [CLS] the red cup
        return lit, said, mask

    with torch.no_grad():
        attention.query.weight.fill_(1.0)
        attention.key.weight.fill_(1.0)
        attention.key.bias.zero_()
    handle = attention.register_forward_pre_hook(one_cell_one_word)
    explanation = explain(model, processor_of(64, 96), photo, SAID)  # stage 2 has 8x12 cells
    handle.remove()
    read = explanation.words_read[2][..., 3]
    assert read[3, 5] > 0.99
    assert np.delete(read.ravel(), 3 * 12 + 5).max() < 1 / 9
    assert explanation.words_of(2, (80 * 5 // 12 + 4, 60 * 3 // 8 + 4))[3] > 0.9  # of 80x60 pixels


# ---- the model is put back


MIXED = {"": "sdpa", "vision_config": "eager", "text_config": "sdpa"}


def test_model_is_as_it_was(photo, processor):
    model = random_model()
    model.set_attn_implementation(MIXED)
    model.train()
    model.decoder.eval()
    modes = [module.training for module in model.modules()]
    before, state = implementations(model), {name: value.clone() for name, value in model.state_dict().items()}
    explain(model, processor, photo, SAID)
    assert implementations(model) == before == ["sdpa", "eager", "sdpa"]
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_model_is_as_it_was_after_an_error(monkeypatch, photo, processor):
    model = random_model().train()
    model.set_attn_implementation(MIXED)

    def fail(*args):
        assert implementations(model) == ["eager"] * 3
        raise MemoryError("out of it")

    monkeypatch.setattr(model.decoder, "forward", fail)
    with pytest.raises(MemoryError):
        explain(model, processor, photo, SAID)
    assert implementations(model) == ["sdpa", "eager", "sdpa"]
    assert model.training
    monkeypatch.undo()
    explain(model, processor, photo, SAID)  # the turn was given back too


def test_threads_take_turns(photo, processor):
    model, found = random_model(), []
    expected = explain(model, processor, photo, SAID)
    threads = [threading.Thread(target=lambda: found.append(explain(model, processor, photo, SAID))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(np.array_equal(one.words_read[4], expected.words_read[4]) for one in found)
    assert implementations(model) == ["sdpa"] * 3


def test_image_is_upright(processor):
    image = Image.new("RGB", (40, 20))
    image.getexif()[0x0112] = 6
    explanation = explain(random_model(), processor, image, "the cup")
    assert explanation.image.size == (20, 40)
    assert explanation.mask.shape == (40, 20)


# ---- regions


def test_words_of_a_region():
    """The left half reads the first word, the right half the second."""
    read = np.zeros((2, 4, 2))
    read[:, :2, 0] = read[:, 2:, 1] = 1.0
    left = np.zeros((2, 4), bool)
    left[:, :2] = True
    explanation = by_hand(left, read)
    assert explanation.words_of(1).tolist() == [1.0, 0.0]
    assert explanation.words_of(1, ~left).tolist() == [0.0, 1.0]
    assert explanation.words_of(1, np.ones((2, 4), bool)).tolist() == [0.5, 0.5]
    assert explanation.words_of(1, (1, 0)).tolist() == [1.0, 0.0]
    assert explanation.words_of(1, (2, 1)).tolist() == [0.0, 1.0]


def test_cells_that_a_region_touches_in_part():
    """Three columns of pixels over two cells: the middle one lies in both."""
    explanation = by_hand(np.ones((1, 3)), [[[1, 0], [0, 1]]], input_size=(1, 2))
    assert explanation.shares(1).tolist() == [[0.5, 0.5]]
    assert explanation.shares(1, (1, 0)).tolist() == [[0.5, 0.5]]
    assert explanation.shares(1, np.array([[True, True, False]])) == pytest.approx(np.array([[0.75, 0.25]]))


def test_cells_beyond_the_image():
    """A grid of 3 cells of which the image fills two and a half: the last cell has half a share."""
    explanation = by_hand(np.ones((1, 5)), np.ones((1, 3, 2)) / 2, input_size=(2, 5))
    object.__setattr__(explanation, "patch_size", 2)
    assert explanation.shares(1) == pytest.approx(np.array([[0.4, 0.4, 0.2]]))
    assert explanation.extent(1) == (6, 1)


def test_a_tiny_object_has_its_share():
    """One pixel of a large image is lost by no resampling."""
    mask = np.zeros((300, 400), bool)
    mask[299, 0] = True
    read = np.zeros((3, 4, 2))
    read[..., 0] = 1.0
    read[2, 0] = [0.0, 1.0]
    assert by_hand(mask, read, input_size=(3, 4)).words_of(1).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (np.zeros((2, 2), bool), "The region is empty"),
        (np.ones((2, 3), bool), r"bools of the \(height, width\) of the image, \(2, 2\), got bool of shape \(2, 3\)"),
        (np.ones((2, 2)), "got float64 of shape"),
        ((2, 0), r"in an image of 2x2 .*, got \(2, 0\)"),
        ((0, -1), r"\(0, -1\)"),
        ((0.5, 0), r"must be \(x, y\) from \(0, 0\) to \(1, 1\)"),
        ((0, 0, 0), r"\(0, 0, 0\)"),
    ],
)
def test_wrong_regions(region, message):
    explanation = by_hand(np.zeros((2, 2)), np.full((2, 2, 2), 0.5))
    with pytest.raises(ValueError, match=message):
        explanation.words_of(1, region)


def test_an_empty_mask_stands_for_the_whole_image():
    """As in the figure: a user also wants to know why nothing was found."""
    read = np.array([[[0.9, 0.1], [0.5, 0.5]], [[0.1, 0.9], [0.3, 0.7]]])
    explanation = by_hand(np.zeros((2, 2), bool), read)
    assert explanation.words_of(1).tolist() == pytest.approx(read.mean((0, 1)).tolist(), abs=1e-6)
    assert explanation.words_of(1).tolist() == explanation.words_of(1, np.ones((2, 2), bool)).tolist()


def test_wrong_stages():
    explanation = by_hand(np.ones((2, 2)), np.full((2, 2, 2), 0.5))
    with pytest.raises(ValueError, match="no attention to words of stage 5; there are 1"):
        explanation.words_of(5)
    with pytest.raises(ValueError, match="this model has none"):
        explanation.pixels_of(2, "cup")


# ---- words


TOKENS = ["[CLS]", "the", "skate", "##board", "##er", "'", "s", "cup", "the", "cafe", "##s", "##board", "[SEP]"]


@pytest.mark.parametrize(
    ("word", "positions"),
    [
        ("the", [1, 8]),
        ("skateboarder", [2, 3, 4]),
        ("Skateboarder's", [2, 3, 4, 5, 6]),
        ("the cafésboard", [8, 9, 10, 11]),
        ("CUP", [7]),
        ("[cls]", [0]),
        ("'", [5]),
    ],
)
def test_positions_of_a_word(word, positions):
    assert positions_of(TOKENS, word) == positions


@pytest.mark.parametrize("word", ["skate", "board", "er", "cafe", "##board", "", " ", "spoon", "cup cup", "th", "he"])
def test_words_that_were_not_read(word):
    with pytest.raises(ValueError, match=r"must be one of those in the input \(\[CLS\] the skateboarder ' s cup the"):
        positions_of(TOKENS, word)


def test_word_of_several_tokens_is_their_mean():
    read = np.zeros((4, 1, 2))
    read[1, 0] = [1.0, 0.0]
    read[2, 0] = [0.5, 0.5]
    explanation = by_hand(np.ones((1, 2)), np.ones((1, 2, 4)) / 4, read, tokens=["[CLS]", "cup", "##s", "[SEP]"])
    assert explanation.pixels_of(2, "cups").tolist() == [[0.75, 0.25]]


@pytest.mark.parametrize(
    ("tokens", "read", "word"),
    [
        (["[CLS]", "the", "red", "cup", "[SEP]"], [0.4, 0.3, 0.1, 0.2, 0.0], "cup"),
        (["[CLS]", "cup", "skate", "##board", "[SEP]"], [0.1, 0.25, 0.2, 0.2, 0.25], "skateboard"),
        (["[CLS]", "on", "the", "[SEP]"], [0.4, 0.1, 0.2, 0.3], "the"),
        (["[CLS]", "[SEP]"], [0.4, 0.6], "[SEP]"),
    ],
)
def test_salient_word(tokens, read, word):
    for mask in (np.ones((1, 1)), np.zeros((1, 1))):
        assert by_hand(mask, [[read]], tokens=tokens).salient_word() == word


def test_tokens_are_those_of_the_explanation(photo, processor):
    said = "the cup in the red bus above the table " * 3  # more than is read
    with pytest.warns(UserWarning, match="too long"):
        explanation = explain(random_model(), processor, photo, said)
    assert tokens_of(processor, said) == explanation.tokens
    assert len(tokens_of(processor, said)) == 9


@pytest.mark.parametrize(
    ("said", "note"),
    [
        ("the zebra", "the vocabulary does not know 'zebra'"),
        ("\N{GRINNING FACE}", "does not know '\N{GRINNING FACE}', nor any other part of it"),
        ("the cup " * 30, "it is too long, and only '.*' is read"),
        ("the cup", None),
    ],
)
def test_what_is_not_read_is_warned_of_as_by_the_pipeline(photo, processor, said, note):
    model = random_model()
    segmenter = ReferringImageSegmentationPipeline(model=model, processor=processor)
    told = []
    for call in (lambda: explain(model, processor, photo, said), lambda: segmenter(photo, text=said)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        told.append([str(warning.message) for warning in caught if "is not read" in str(warning.message)])
    assert told[0] == told[1]
    assert len(told[0]) == bool(note)
    assert not note or re.search(note, told[0][0])


def test_the_warning_is_of_the_line_that_explains(photo, processor):
    with pytest.warns(UserWarning, match="zebra") as caught:
        explain(random_model(), processor, photo, "the zebra")
    assert caught[0].filename == __file__


@pytest.mark.parametrize("expression", ["", ["the cup"], None, 3])
def test_wrong_expressions(photo, processor, expression):
    with pytest.raises(ValueError, match="expression"):
        explain(random_model(), processor, photo, expression)
