"""Whatever is given to a public entry point from Python: a right answer, or a documented error."""

import contextlib
import os

import numpy as np
import pytest
import torch
from conftest import tiny_config, tiny_tokenizer
from huggingface_hub.errors import StrictDataclassError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from crossvlt_hf import CrossVLTConfig, CrossVLTModel, CrossVLTProcessor
from crossvlt_hf.data.masks import decode_mask, encode_mask
from crossvlt_hf.metrics import ReferringSegmentationMetric
from crossvlt_hf.pipeline_crossvlt import ReferringImageSegmentationPipeline
from crossvlt_hf.processing_crossvlt import to_label_map, to_rgb
from crossvlt_hf.weights.state_dicts import load_strictly


EXAMPLES = int(os.environ.get("CROSSVLT_FUZZ_EXAMPLES", "30"))
fuzzed = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
refused = contextlib.suppress(ValueError, OSError)

SIDES = st.integers(0, 70)
MODES = [
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBX",
    "RGBa",
    "La",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "I;16",
]
SHAPES = st.one_of(
    st.tuples(SIDES, SIDES),
    st.tuples(SIDES, SIDES, st.integers(0, 5)),
    st.tuples(st.integers(0, 5), SIDES, SIDES),
    st.lists(st.integers(0, 3), max_size=5).map(tuple),
    st.sampled_from([(1, 900), (900, 1, 3), (3, 1, 900)]),
)
DTYPES = st.sampled_from(
    [*"?bBhHiIlLqQefd", "complex64", "object", "U3", "S3", "datetime64[s]", ">u2", ">f4", "timedelta64[ms]"]
)


@st.composite
def arrays(draw):
    shape, dtype = draw(SHAPES), np.dtype(draw(DTYPES))
    fill = draw(st.sampled_from([0, 1, 0.5, -1, 255, 256, 65535, 70000, np.nan, np.inf, -np.inf, 1e30]))
    if draw(st.booleans()):
        return np.random.default_rng(draw(st.integers(0, 99))).integers(0, 255, shape).astype(dtype)
    with np.errstate(all="ignore"), contextlib.suppress(OverflowError, ValueError, TypeError):
        return np.full(shape, fill).astype(dtype)
    return np.zeros(shape, dtype)


@st.composite
def pictures(draw):
    with contextlib.suppress(ValueError):
        return Image.new(draw(st.sampled_from(MODES)), (draw(SIDES), draw(SIDES)))
    return Image.new("RGB", (3, 2))


def tensors():
    kinds = [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool]
    return st.builds(lambda s, d: torch.zeros(s).to(d), SHAPES, st.sampled_from(kinds))


IMAGES = st.one_of(
    arrays(), pictures(), tensors(), st.none(), st.integers(), st.text(max_size=20), st.binary(max_size=9)
)
TEXTS = st.one_of(
    st.text(st.characters(), max_size=30),
    st.sampled_from(
        ["", " ", "\0", "word " * 10_000, "😀", "האיש האדום", "\ud800", "a\u202eb", "[CLS] [SEP]", "\x1b[31m"]
    ),
    st.none(),
    st.integers(),
    st.binary(max_size=5),
    st.lists(st.text(max_size=5), max_size=3),
    st.lists(st.lists(st.text(max_size=5), max_size=2), max_size=2),
)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return CrossVLTModel(tiny_config()).eval()


@pytest.fixture(scope="module")
def processor():
    return CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), image_size=32, max_length=9)


@pytest.fixture(scope="module")
def pipeline(network, processor):
    return ReferringImageSegmentationPipeline(model=network, processor=processor)


@fuzzed
@given(IMAGES)
def test_to_rgb(image):
    with refused:
        picture = to_rgb(image)
        assert picture.mode == "RGB"


@fuzzed
@given(IMAGES)
def test_to_label_map(mask):
    with refused:
        label_map = to_label_map(mask)
        assert label_map.ndim == 2
        assert set(np.unique(label_map)) <= {0, 1, 255}


@fuzzed
@given(IMAGES, TEXTS, st.one_of(st.none(), arrays(), pictures()))
def test_processor(processor, images, text, mask):
    with refused:
        inputs = processor(images=images, text=text, segmentation_maps=mask)
        assert ("pixel_values" in inputs) == (images is not None)
        assert ("input_ids" in inputs) == (text is not None)


@fuzzed
@given(IMAGES, TEXTS, st.one_of(st.none(), st.floats(), st.text(max_size=2)))
def test_pipeline(pipeline, image, text, threshold):
    with refused:
        found = pipeline(image, text, threshold=threshold)
        for result in found if isinstance(found, list) else [found]:
            assert result["mask"] is not None


@fuzzed
@given(tensors(), st.one_of(st.none(), st.lists(st.tuples(st.integers(-1, 50), st.integers(-1, 50)), max_size=3)))
def test_post_processing(processor, logits, sizes):
    with refused:
        for result in processor.post_process_masks(logits, target_sizes=sizes):
            assert result["mask"].dtype == torch.bool


@fuzzed
@given(st.data())
def test_model(network, data):
    def tensor(*shape: int, high: int) -> torch.Tensor:
        values = st.sampled_from([0, 1, high - 1, high, -1, 255])
        dtype = data.draw(st.sampled_from([torch.int64, torch.int32, torch.float32, torch.bool]))
        return torch.full(shape, data.draw(values)).to(dtype)

    batch, height, width, words = (data.draw(st.integers(0, most)) for most in (2, 40, 40, 45))
    with refused, torch.no_grad():
        output = network(
            torch.zeros(data.draw(st.integers(0, 2)), data.draw(st.sampled_from([1, 3, 3, 3])), height, width),
            tensor(batch, words, high=network.config.text_config.vocab_size),
            attention_mask=data.draw(st.sampled_from([None, torch.zeros(batch, words), torch.ones(batch, words)])),
            labels=tensor(batch, height, width, high=2) if data.draw(st.booleans()) else None,
        )
        assert output.logits.shape == (batch, 2, height, width)


FIELDS = ["vision_config", "text_config", "decoder_width", "fusion_head_dim", "alignment_stages", "fusion_direction"]
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 64), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["depths", "hidden_sizes", "num_heads", "window_size", "dropout"]), inner),
    ),
    max_leaves=5,
)


@fuzzed
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3))
def test_config(fields):
    with refused, contextlib.suppress(StrictDataclassError):  # the library's own, which names the field
        config = CrossVLTConfig(**fields)
        assert CrossVLTConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.slow
@fuzzed
@given(st.data())
def test_state_dict(network, data):
    state = dict(network.state_dict())
    for key in data.draw(st.lists(st.sampled_from(sorted(state)), min_size=1, max_size=3, unique=True)):
        change = data.draw(st.sampled_from(["drop", "rename", "shape", "dtype"]))
        value = state.pop(key)
        if change != "drop":
            changed = {"rename": value, "shape": value[None], "dtype": value.to(torch.complex64)}[change]
            state[key + "x" if change == "rename" else key] = changed
    with torch.device("meta"):
        empty = CrossVLTModel(network.config)
    with pytest.raises(ValueError, match="does not fit the model"):
        load_strictly(empty, state, "the file")


@fuzzed
@given(st.one_of(IMAGES, VALUES), st.integers(1, 70), st.integers(1, 70))
def test_decode_mask(mask, height, width):
    with refused:
        assert decode_mask(mask, height, width).ndim == 2


@fuzzed
@given(hnp.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_run_lengths_come_back(mask):
    assert (decode_mask(encode_mask(mask), *mask.shape) == mask).all()


@fuzzed
@given(tensors(), tensors())
def test_metric(prediction, reference):
    with refused:
        metric = ReferringSegmentationMetric()
        metric.update(prediction, reference)
        metric.compute()
