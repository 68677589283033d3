"""The pipeline: images and expressions in every form go in, masks of the images' own pixels come out."""

import gc
import io
import json
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from inspect import signature
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_config, tiny_tokenizer
from PIL import Image
from processes import run_python
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.data import Dataset, IterableDataset
from transformers import AutoModel, AutoModelForSemanticSegmentation, AutoProcessor, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from crossvlt_hf import (
    DEFAULT_CHECKPOINT,
    CrossVLTConfig,
    CrossVLTModel,
    CrossVLTProcessor,
    ReferringImageSegmentationPipeline,
)
from crossvlt_hf.configuration_crossvlt import CrossVLTTextConfig
from crossvlt_hf.data import load_data
from crossvlt_hf.evaluation import evaluate, find_masks
from crossvlt_hf.modeling_crossvlt import CrossVLTTextModel, CrossVLTVisionModel, evaluating
from crossvlt_hf.prediction import open_requests, predict
from crossvlt_hf.processing_crossvlt import find_parts
from crossvlt_hf.visualization import explain
from crossvlt_hf.weights.checkpoint import load_checkpoint


TASK = "referring-image-segmentation"
WORDS = ["the red cup", "left man", "white bus"]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


ONE, TWO, THREE = picture(50, 40), picture(33, 64, seed=1), picture(7, 9, seed=2)
# Different sizes, different numbers of expressions
ROWS = [{"image": ONE, "text": WORDS}, {"image": TWO, "text": WORDS[1]}, {"image": THREE, "text": WORDS[:2]}]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """A second thread only costs time in a model this small: a hundred times as much where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose masks are neither empty nor full and differ from expression to expression."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(2)
    model = CrossVLTModel(tiny_config())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), image_size=32, max_length=8).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(folder):
    return pipeline(TASK, model=folder, device="cpu")


@pytest.fixture(scope="module")
def expected(pipe):
    """The results of each of `ROWS`, one row and one expression at a time."""
    texts = [[row["text"]] if isinstance(row["text"], str) else row["text"] for row in ROWS]
    return [[pipe(row["image"], text=word)[0] for word in words] for row, words in zip(ROWS, texts, strict=True)]


@pytest.fixture(scope="module")
def address():
    """A server on this machine: /image.png is `ONE`, /slow.png takes its time, all else is missing."""
    buffer = io.BytesIO()
    ONE.save(buffer, "PNG")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/slow.png":
                time.sleep(2)
            found = self.path in ("/image.png", "/slow.png")
            try:
                self.send_response(200 if found else 404)
                self.end_headers()
                self.wfile.write(buffer.getvalue() if found else b"Not found")
            except BrokenPipeError:
                pass

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def assert_same(results: list[dict], expected: list[dict]) -> None:
    """The results of one image, which is always a list."""
    assert isinstance(results, list)
    assert [result["label"] for result in results] == [result["label"] for result in expected]
    for result, other in zip(results, expected, strict=True):
        assert result.keys() >= {"label", "score", "mask", "box", "text_read", "unknown_words"}
        assert (result["text_read"], result["unknown_words"]) == (other["text_read"], other["unknown_words"])
        assert result["mask"].size == other["mask"].size
        np.testing.assert_array_equal(result["mask"], other["mask"])
        assert result["score"] == pytest.approx(other["score"], abs=1e-5)
        assert result["box"] == other["box"]


def assert_all_same(results, expected) -> None:
    results = list(results)
    assert len(results) == len(expected)
    for one, other in zip(results, expected, strict=True):
        assert_same(one, other)


# Results


def test_results(expected):
    masks = set()
    for row, results in zip(ROWS, expected, strict=True):
        for result in results:
            mask = result["mask"]
            assert isinstance(mask, Image.Image)
            assert mask.mode == "L"
            assert mask.size == row["image"].size
            assert set(np.unique(mask)) == {0, 255}
            assert 0.5 < result["score"] < 1
            assert isinstance(result["score"], float)
            corners = [result["box"][name] for name in ("xmin", "ymin", "xmax", "ymax")]
            assert all(type(corner) is int for corner in corners)
            assert tuple(corners) == mask.getbbox()
            masks.add(mask.tobytes())
    assert len(masks) == sum(map(len, expected))


def test_equals_model_and_processor_by_hand(folder, pipe, expected):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(ONE, WORDS, return_tensors="pt")
    sizes = inputs.pop("original_sizes")
    with torch.no_grad():
        results = processor.post_process_masks(model(**inputs), sizes)
    for result, other, word in zip(results, expected[0], WORDS, strict=True):
        np.testing.assert_array_equal(result["mask"] * 255, np.asarray(other["mask"]))
        assert result["score"] == pytest.approx(other["score"], abs=1e-5)
        assert result["box"] == list(other["box"].values())
        assert other["label"] == word


def test_rotated_photo_gives_an_upright_mask(pipe, expected, tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    ONE.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    assert Image.open(tmp_path / "turned.png").size == (ONE.height, ONE.width)
    assert_same(pipe(tmp_path / "turned.png", text=WORDS), expected[0])


def test_one_result_does_not_depend_on_another(pipe, expected):
    results = pipe(ONE, text=[*WORDS, *WORDS[::-1]])
    assert_same(results[:3], expected[0])
    assert_same(results[3:], expected[0][::-1])


# Inputs


@pytest.mark.parametrize("kind", ["path", "str", "URL", "PIL image", "numpy", "numpy CHW", "torch", "floats"])
def test_kind_of_image(pipe, expected, tmp_path, address, kind):
    path = tmp_path / "image.png"
    ONE.save(path)
    image = {
        "path": path,
        "str": str(path),
        "URL": f"{address}/image.png",
        "PIL image": ONE,
        "numpy": np.asarray(ONE),
        "numpy CHW": np.moveaxis(np.asarray(ONE), -1, 0),
        "torch": torch.tensor(np.asarray(ONE)).permute(2, 0, 1),
        "floats": torch.tensor(np.asarray(ONE)).permute(2, 0, 1) / 255,
    }[kind]
    assert_same(pipe(image, text=WORDS[0]), expected[0][:1])
    assert_same(pipe(image, WORDS), expected[0])
    assert_same(pipe(image=image, text=tuple(WORDS)), expected[0])
    assert_same(pipe({"image": image, "text": WORDS}), expected[0])
    assert_all_same(pipe([image, image], text=WORDS[:2]), [expected[0][:1], expected[0][1:2]])


def test_lists_of_images(pipe, expected):
    images, texts = [row["image"] for row in ROWS], [WORDS, [WORDS[1]], WORDS[:2]]
    assert_all_same(pipe(images, text=texts), expected)
    assert_all_same(pipe(tuple(images), text=tuple(texts)), expected)
    assert_all_same(pipe([ONE], text=[WORDS]), expected[:1])
    assert_all_same(pipe([ONE], text=WORDS), expected[:1])
    assert_all_same(pipe([ONE, TWO], text=WORDS[1]), [expected[0][1:2], expected[1]])
    assert_same(pipe(ONE, text=[WORDS]), expected[0])


def test_dict_may_have_other_columns(pipe, expected):
    assert_same(pipe({"image": ONE, "text": WORDS, "mask": ONE, "id": 3}), expected[0])


@pytest.mark.parametrize("kind", [list, tuple, iter, lambda rows: (row for row in rows), lambda rows: map(dict, rows)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_dicts(pipe, expected, kind, batch_size):
    results = pipe(kind(ROWS), batch_size=batch_size)
    assert isinstance(results, list) == (kind in (list, tuple))
    assert_all_same(results, expected)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_generator_is_read_lazily(pipe, batch_size):
    read = []

    def endless():
        for index in count():
            read.append(index)
            yield {"image": THREE, "text": WORDS[index % 3]}

    results = pipe(endless(), batch_size=batch_size)
    assert [results_of_one[0]["label"] for results_of_one in islice(results, 4)] == [*WORDS, WORDS[0]]
    assert len(read) <= 4 + batch_size


class Rows(Dataset):
    def __len__(self):
        return len(ROWS)

    def __getitem__(self, index):
        return ROWS[index]


class Images(IterableDataset):
    def __iter__(self):
        return (row["image"] for row in ROWS)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(ROWS)


@pytest.mark.parametrize("dataset", [Rows(), Stream()], ids=["map-style", "iterable"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_torch_dataset(pipe, expected, dataset, batch_size):
    results = pipe(dataset, batch_size=batch_size)
    assert not isinstance(results, list)
    assert_all_same(results, expected)


@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face_dataset(pipe, expected, tmp_path, streaming):
    datasets = pytest.importorskip("datasets")
    paths = [str(tmp_path / f"{index}.png") for index in range(3)]
    for row, path in zip(ROWS, paths, strict=True):
        row["image"].save(path)
    columns = {"image": paths, "text": [WORDS, [WORDS[1]], WORDS[:2]], "id": [5, 6, 7]}
    dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    assert_all_same(pipe(dataset.to_iterable_dataset() if streaming else dataset, batch_size=2), expected)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 100])
def test_batches_change_nothing(pipe, expected, batch_size):
    assert_all_same(pipe(ROWS, batch_size=batch_size), expected)
    assert_all_same(pipe(ROWS[::-1], batch_size=batch_size), expected[::-1])
    assert_same(pipe(ONE, text=WORDS, batch_size=batch_size), expected[0])


def test_batches_reach_the_model_together(folder):
    pipe = pipeline(TASK, model=folder, device="cpu", batch_size=4)
    sizes = []
    pipe.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append((len(kwargs["input_ids"]), len(kwargs["pixel_values"]))),
        with_kwargs=True,
    )
    pipe(ROWS)
    assert sizes == [(4, 2), (2, 1)]  # expressions, and images: those of 3, 1 and 2 expressions


def test_the_expressions_of_one_image_share_it(folder, expected):
    pipe = pipeline(TASK, model=folder, device="cpu")
    sizes = []
    pipe.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append((len(kwargs["input_ids"]), len(kwargs["pixel_values"]))),
        with_kwargs=True,
    )
    assert_same(pipe(ONE, text=WORDS), expected[0])
    assert sizes == [(3, 1)]
    pipe(ONE, text=WORDS * 4)
    assert sizes[1:] == [(8, 1), (4, 1)]


def test_a_model_that_gives_tuples(folder):
    pipe = pipeline(TASK, model=folder, device="cpu")
    expected = pipe(ROWS[:2])
    pipe.model.config.return_dict = False
    for actual, wanted in zip(pipe(ROWS[:2]), expected, strict=True):
        assert_same(actual, wanted)
    explanation = explain(pipe.model, pipe.processor, ONE, WORDS[0])
    assert (explanation.mask == np.asarray(expected[0][0]["mask"]).astype(bool)).all()


def average_with(model, other) -> None:
    for parameter, added in zip(model.parameters(), other.parameters(), strict=True):
        parameter.data.lerp_(added, 0.5)


CHANGES = {
    "vector": lambda model, other: vector_to_parameters(parameters_to_vector(other.parameters()), model.parameters()),
    "average": average_with,
    "load": lambda model, other: model.load_state_dict(other.state_dict()),
    "module": lambda model, other: setattr(model, "decoder", other.decoder),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_pipeline_sees_a_change_of_the_weights(folder, change):
    """It keeps nothing of the model it was given beside the model itself, and adds nothing to it."""
    processor = CrossVLTProcessor.from_pretrained(folder)
    torch.manual_seed(1)
    other = CrossVLTModel(tiny_config()).eval()
    model, expected = (CrossVLTModel.from_pretrained(folder) for _ in range(2))
    buffers = dict(model.named_buffers())
    pipe = pipeline(TASK, model=model, processor=processor, device="cpu")
    pipe(ONE, text=WORDS)
    assert dict(model.named_buffers()).keys() == buffers.keys()
    for changed in (model, expected):
        with torch.no_grad():
            CHANGES[change](changed, other)
    assert_same(
        pipe(ONE, text=WORDS), pipeline(TASK, model=expected, processor=processor, device="cpu")(ONE, text=WORDS)
    )


def test_the_model_is_not_altered(folder):
    """Weights that are changed by hand afterwards are the ones that the pipeline uses."""
    model, processor = load_checkpoint(folder)
    segmenter = ReferringImageSegmentationPipeline(model=model, processor=processor, device="cpu")
    before = {name: value for name, value in vars(model.decoder.blocks[0]).items() if not name.startswith("_")}
    (first,) = segmenter(ONE, text=WORDS[0])
    with torch.no_grad():
        for module in model.decoder.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.bias.sub_(3.0)
            elif isinstance(module, torch.nn.Conv2d):
                module.weight.mul_(-1.5)
    assert {name: value for name, value in vars(model.decoder.blocks[0]).items() if not name.startswith("_")} == before
    inputs = processor(ONE, WORDS[0], return_tensors="pt")
    with torch.no_grad():
        wanted = processor.post_process_masks(model(**inputs), inputs["original_sizes"])[0]
    (found,) = segmenter(ONE, text=WORDS[0])
    assert found["score"] == pytest.approx(wanted["score"], abs=1e-5)
    np.testing.assert_array_equal(np.asarray(found["mask"]) > 0, wanted["mask"])
    assert found["mask"].tobytes() != first["mask"].tobytes()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_config_that_asks_for_tuples(folder, expected, batch_size):
    model, processor = load_checkpoint(folder)
    model.config.return_dict = False
    segmenter = ReferringImageSegmentationPipeline(model=model, processor=processor, device="cpu")
    assert_all_same(segmenter(ROWS, batch_size=batch_size), expected)


def test_masks_are_kept_and_logits_are_not(model, processor):
    """Of many expressions of one image: the logits of earlier ones are gone when others are computed."""
    segmenter = ReferringImageSegmentationPipeline(model=model, processor=processor, device="cpu")
    alive = []

    def count(*_):
        maps = [x for x in gc.get_objects() if type(x) is torch.Tensor and x.ndim == 4 and x.shape[1:] == (2, 64, 64)]
        alive.append(sum({x.data_ptr(): len(x) for x in maps}.values()))

    model.register_forward_pre_hook(count)
    segmenter(ONE, text=["the cup"] * 40)
    assert len(alive) == 5
    assert max(alive) <= 8


@pytest.mark.parametrize(
    "call",
    [
        lambda pipe: pipe([]),
        lambda pipe: pipe(()),
        lambda pipe: list(pipe(row for row in [])),
        lambda pipe: pipe([], text=[]),
        lambda pipe: pipe([], text="the red cup"),
    ],
    ids=["list", "tuple", "generator", "lists of images and expressions", "list of images"],
)
def test_nothing_in_nothing_out(pipe, call):
    assert call(pipe) == []


# Options


def test_threshold(folder, pipe, expected):
    counts = [np.count_nonzero(pipe(ONE, text=WORDS[0], threshold=t)[0]["mask"]) for t in (0.01, 0.5, 0.99)]
    assert counts[0] > counts[1] > counts[2]
    assert_same(pipe(ONE, text=WORDS, threshold=0.5), expected[0])
    from_the_start = pipeline(TASK, model=folder, device="cpu", threshold=0.01)
    assert np.count_nonzero(from_the_start(ONE, text=WORDS[0])[0]["mask"]) == counts[0]
    assert_same(from_the_start(ONE, text=WORDS, threshold=0.5), expected[0])
    assert_same(pipe(ONE, text=WORDS), expected[0])


def test_empty_mask(pipe):
    (result,) = pipe(THREE, text=WORDS[0], threshold=1 - 1e-9)
    assert result["mask"].size == THREE.size
    assert result["mask"].getbbox() is None
    assert result["score"] == 0.0
    assert result["box"] is None


@pytest.mark.parametrize("threshold", [0, 1, -1, 50, float("nan")])
def test_threshold_out_of_range(pipe, threshold):
    with pytest.raises(ValueError, match=f"`threshold` must be a probability above 0 and below 1, got {threshold}"):
        pipe(ONE, text=WORDS, threshold=threshold)


def test_unknown_option(folder, pipe):
    with pytest.raises(ValueError, match=r"'treshold'.*threshold"):
        pipe(ONE, text=WORDS, treshold=0.3)
    with pytest.raises(ValueError, match="'candidate_labels'"):
        pipeline(TASK, model=folder, device="cpu", candidate_labels=WORDS)


def test_timeout(pipe, address):
    """A server that does not answer in time is an error that names the address."""
    start = time.monotonic()
    with pytest.raises(OSError, match=f"{address}/slow.png"):
        pipe(f"{address}/slow.png", text=WORDS[0], timeout=0.1)
    assert time.monotonic() - start < 1.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_half_precision(folder, expected, dtype, batch_size):
    pipe = pipeline(TASK, model=folder, device="cpu", dtype=dtype)
    assert pipe.model.dtype == dtype
    for results, others in zip(pipe(ROWS, batch_size=batch_size), expected, strict=True):
        for result, other in zip(results, others, strict=True):
            assert result["label"] == other["label"]
            assert result["mask"].size == other["mask"].size
            assert result["score"] == pytest.approx(other["score"], abs=0.1)
            assert np.mean(np.asarray(result["mask"]) != np.asarray(other["mask"])) < 0.1


def test_num_workers(pipe, expected):
    assert_all_same(pipe(ROWS, num_workers=1, batch_size=2), expected)


# Bad input


@pytest.mark.parametrize(
    "image",
    [
        ONE,
        "image.png",
        np.asarray(ONE),
        torch.zeros(3, 5, 6),
        {"image": ONE},
        {"image": ONE, "text": None},
        [ONE, TWO],
        [{"image": ONE}],
        None,
    ],
    ids=["PIL image", "path", "numpy", "torch", "dict", "None in a dict", "images", "dicts", "nothing"],
)
def test_missing_text(pipe, image):
    with pytest.raises(ValueError, match="`text`"):
        pipe(image)


def test_missing_image(pipe):
    with pytest.raises(ValueError, match="image"):
        pipe({"text": WORDS})


@pytest.mark.parametrize("text", ["", "  ", [], [""], ["the cup", ""], [7], [None], 7])
@pytest.mark.parametrize("form", ["arguments", "dict", "list of dicts"])
def test_bad_text(pipe, text, form):
    row = {"image": ONE, "text": text}
    arguments = {"arguments": row, "dict": {"image": row}, "list of dicts": {"image": [row]}}[form]
    with pytest.raises(ValueError, match=r"expression|`text`"):
        pipe(**arguments)


@pytest.mark.parametrize(
    ("images", "text", "message"),
    [
        ([ONE, TWO], WORDS, "2 images and 3 "),
        ([ONE, TWO], [WORDS], "2 images and 1 "),
        (ONE, [WORDS, WORDS], "got 1 image and 2 "),
        ([ONE, TWO], [WORDS, []], "Every image must have an expression, got none for image 1"),
    ],
)
def test_counts_of_images_and_expressions_differ(pipe, images, text, message):
    with pytest.raises(ValueError, match=message):
        pipe(images, text=text)


def test_missing_file(pipe, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        pipe(tmp_path / "missing.png", text=WORDS)
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        pipe([{"image": ONE, "text": WORDS}, {"image": tmp_path / "missing.png", "text": WORDS}], batch_size=2)


def test_missing_file_at_a_url(pipe, address):
    with pytest.raises(OSError, match=f"{address}/missing.png"):
        pipe(f"{address}/missing.png", text=WORDS)


def test_text_as_image(pipe, tmp_path):
    (tmp_path / "text.jpg").write_text("This is no image.")
    with pytest.raises(OSError, match=r"text\.jpg"):
        pipe(tmp_path / "text.jpg", text=WORDS)


@pytest.mark.parametrize("image", [5, b"bytes", {"image": ONE}, np.zeros((2, 5, 6, 2)), np.full((5, 6, 3), np.nan)])
def test_bad_image(pipe, image):
    with pytest.raises(ValueError, match=r"An image|2 images|not both"):
        pipe(image, text=WORDS)


def test_batch_array(pipe):
    batch = np.stack([np.asarray(THREE.convert("RGB"))] * 2)
    assert_all_same(pipe(batch, text=[WORDS[0], WORDS[1]]), pipe([THREE, THREE], text=[WORDS[0], WORDS[1]]))


def test_floats_of_a_batch_are_judged_together(pipe):
    """Alone, the second image would be read as one of 0 to 1."""
    bright = np.asarray(THREE.convert("RGB"))
    dark = (bright > 128).astype(np.uint8)
    batch = np.stack([bright, dark]).astype(np.float32)
    pictures = [Image.fromarray(image) for image in (bright, dark)]
    assert_all_same(pipe(batch, text=WORDS[0]), pipe(pictures, text=WORDS[0]))


@pytest.mark.parametrize("form", [np.asarray, torch.tensor, lambda image: Image.fromarray(image[..., 0])])
@pytest.mark.parametrize("as_rows", [False, True])
def test_floats_of_a_list_are_judged_together(pipe, form, as_rows):
    """As those of a batch, and as the processor judges them: what holds 0 to 1 and 0 to 255 is refused."""
    bright = np.asarray(THREE.convert("RGB")).astype(np.float32)
    dark = (bright > 128).astype(np.float32)

    def given(*images):
        images = [form(image) for image in images]
        return ([{"image": image, "text": WORDS[0]} for image in images],) if as_rows else (images, WORDS[0])

    shown = [Image.fromarray(np.asarray(form(image)).astype(np.uint8)) for image in (bright, dark)]
    assert_all_same(pipe(*given(bright, dark)), pipe(shown, text=WORDS[0]))
    for images in ((bright, bright / 255), (bright / 255, bright), (dark, bright, bright / 255)):
        with pytest.raises(ValueError, match="must have the same range"):
            pipe(*given(*images))
        with pytest.raises(ValueError, match="must have the same range"):
            pipe.processor([form(image) for image in images], [WORDS[0]] * len(images))
    unit = given(bright / 255, bright / 510)
    assert len(pipe(*unit)) == 2


@pytest.mark.parametrize("form", [np.asarray, torch.tensor, lambda image: Image.fromarray(image[..., 0])])
def test_16_bits_of_a_list_are_judged_together(pipe, form):
    """Alone, an image of 16 bits that holds 0 to 255 looks like one of 8 bits."""
    grey = np.asarray(THREE.convert("RGB")).astype(np.uint16)
    for images in (form(grey), [form(grey)] * 2, {"image": form(grey), "text": WORDS[0]}):
        with pytest.raises(ValueError, match="looks like an image of 8 bits"):
            pipe(images, **({} if isinstance(images, dict) else {"text": WORDS[0]}))
    deep = pipe([form(grey * 257), form(grey)], text=WORDS[0])
    shown = [np.asarray(form(each)).astype(np.uint8) for each in (grey, np.round(grey / 257))]
    assert_all_same(deep, pipe([Image.fromarray(each) for each in shown], text=WORDS[0]))


def test_a_list_of_all_kinds_of_images(pipe):
    grey = np.asarray(THREE.convert("RGB"))
    kinds = [THREE, grey, torch.tensor(grey), (grey / 255).astype(np.float32), {"image": grey, "text": WORDS[0]}]
    results = pipe(kinds[:4], text=WORDS[0])
    assert_all_same(results, pipe([Image.fromarray(grey)] * 4, text=WORDS[0]))


def test_largest_part(pipe):
    free, kept = pipe(ONE, text=WORDS), pipe(ONE, text=WORDS, largest_part=True)
    for one, other in zip(free, kept, strict=True):
        largest, parts = find_parts(torch.tensor(np.asarray(one["mask"]) > 0))
        assert other["parts"] == parts
        assert "parts" not in one
        np.testing.assert_array_equal(np.asarray(other["mask"]) > 0, largest)
    with pytest.raises(ValueError, match="`largest_part` must be True or False, got 1"):
        pipe(ONE, text=WORDS, largest_part=1)


def test_usable_after_an_error(pipe, expected):
    for _ in range(2):
        with pytest.raises(ValueError, match="expression"):
            pipe([*ROWS, {"image": ONE, "text": " "}], batch_size=2)
        assert_all_same(pipe(ROWS, batch_size=2), expected)


# Making, saving, loading


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForSemanticSegmentation, CrossVLTModel])
def test_from_model_and_processor(folder, expected, auto_class):
    model, processor = auto_class.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    pipe = pipeline(TASK, model=model, processor=processor, device="cpu")
    assert type(pipe) is ReferringImageSegmentationPipeline
    assert_same(pipe(ONE, text=WORDS), expected[0])


@pytest.mark.parametrize(
    ("parts", "got"),
    [
        (lambda _: {}, "got none"),
        (lambda p: {"tokenizer": p.tokenizer}, "got `tokenizer` alone"),
        (lambda p: {"image_processor": p.image_processor}, "got `image_processor` alone"),
        (
            lambda p: {"tokenizer": p.tokenizer, "image_processor": p.image_processor},
            "got `tokenizer`, `image_processor` alone",
        ),
        (lambda p: {"processor": p.tokenizer}, "got BertTokenizer"),
        (lambda p: {"processor": p.image_processor, "tokenizer": p.tokenizer}, "got SegformerImageProcessor"),
        (lambda _: {"processor": "built-in"}, "got str"),
    ],
)
def test_without_a_processor(model, processor, parts, got):
    wanted = rf"`processor` must be a CrossVLTProcessor, .*from_pretrained\(checkpoint\).*{got}"
    with pytest.raises(ValueError, match=wanted):
        ReferringImageSegmentationPipeline(model=model, **parts(processor))
    if parts(processor).keys() & {"processor"} and not isinstance(parts(processor)["processor"], str):
        with pytest.raises(ValueError, match=wanted):
            pipeline(TASK, model=model, **parts(processor))


@pytest.mark.parametrize("wrong", ["built-in", None, lambda model: model.vision_model, lambda model: model.config])
def test_without_a_model(model, processor, wrong):
    given = wrong(model) if callable(wrong) else wrong
    with pytest.raises(ValueError, match=rf"`model` must be a CrossVLTModel, such as .* got {type(given).__name__}"):
        ReferringImageSegmentationPipeline(model=given, processor=processor)


def test_evaluation_mode(folder):
    assert not pipeline(TASK, model=folder, device="cpu").model.training


def test_saved_pipeline_keeps_model_and_processor(folder, expected, tmp_path):
    """The folder has all that the pipeline needs (but the library then insists on `trust_remote_code`)."""
    pipeline(TASK, model=folder, device="cpu").save_pretrained(tmp_path)
    model, processor = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert type(processor) is CrossVLTProcessor
    assert processor.to_dict() == AutoProcessor.from_pretrained(folder).to_dict()
    assert len(processor(text="the cup " * 9)["input_ids"]) == 8
    again = pipeline(TASK, model=model, processor=processor, device="cpu")
    assert_same(again(ONE, text=WORDS), expected[0])


def in_threads(function, items) -> list:
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(function, items))


def assert_close(results, references) -> None:
    for result, reference in zip(results, references, strict=True):
        assert result["label"] == reference["label"]
        assert result["score"] == pytest.approx(reference["score"], abs=1e-5)
        assert np.mean(np.asarray(result["mask"]) != np.asarray(reference["mask"])) < 0.001


def test_threads_share_a_pipeline(pipe, expected):
    """One loaded pipeline from 8 threads gives the results of one."""
    found = in_threads(lambda row: pipe(row["image"], text=row["text"]), ROWS * 8)
    for results, references in zip(found, expected * 8, strict=True):
        assert_close(results, references)


def test_threads_share_a_processor(processor):
    """Of long and short texts, padded and not: a fast tokenizer keeps both as a state."""
    texts = ["the cup", "the cup " * 9, "red bus above the table"] * 20
    wanted = [processor(text=text)["input_ids"] for text in texts]
    read = processor.read_expressions(texts)
    lengths = [3, 9, 5, 7] * 15

    def use(number: int) -> tuple:
        text, length = texts[number], lengths[number]
        own = processor(text=text, max_length=length, padding="max_length")["input_ids"]
        return processor(text=text)["input_ids"], processor.read_expressions([text])[0], len(own)

    found = in_threads(use, range(len(texts)))
    assert found == list(zip(wanted, read, lengths, strict=True))


# A model that is being trained


def partly_frozen(folder):
    model, processor = load_checkpoint(folder)
    model.train()
    model.vision_model.eval()
    for module in model.decoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    model.text_model.stages[0].requires_grad_(False).eval()
    return model, processor


def modes(model):
    return [module.training for module in model.modules()]


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("use", ["pipeline", "threads", "evaluate", "find_masks", "explain", "predict"])
def test_every_part_keeps_its_mode(folder, expected, tmp_path, use):
    model, processor = partly_frozen(folder)
    before, weights = modes(model), state(model)
    assert set(before) == {True, False}
    segmenter = ReferringImageSegmentationPipeline(model=model, processor=processor, device="cpu")
    if use == "pipeline":
        assert_close(segmenter(ONE, text=WORDS), expected[0])
    elif use == "threads":
        for results, references in zip(in_threads(segmenter, ROWS * 6), expected * 6, strict=True):
            assert_close(results, references)
    elif use in ("evaluate", "find_masks"):
        dataset = load_data("refshapes", "validation", scenes=2, side=64)
        evaluate(model, processor, dataset) if use == "evaluate" else list(find_masks(model, processor, dataset, [0]))
    elif use == "explain":
        assert explain(model, processor, ONE, WORDS[0]).score == pytest.approx(expected[0][0]["score"], abs=1e-4)
    else:
        ONE.save(tmp_path / "one.png")
        requests = open_requests(tmp_path, expressions=[WORDS[0]])
        predict(model, processor, requests, tmp_path / "out")
        (line,) = (tmp_path / "out" / "predictions-00000-of-00001.jsonl").read_text().splitlines()
        assert json.loads(line)["score"] == pytest.approx(expected[0][0]["score"], abs=1e-4)
    assert modes(model) == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_modes_come_back_after_an_error(folder):
    model, processor = partly_frozen(folder)
    before = modes(model)
    segmenter = ReferringImageSegmentationPipeline(model=model, processor=processor, device="cpu")
    handle = model.decoder.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        segmenter(ONE, text=WORDS)
    assert modes(model) == before
    handle.remove()
    outer = evaluating(model)
    with outer:
        assert not any(modes(model))
        with evaluating(model.decoder), evaluating(model):
            pass
        assert not any(modes(model))
    assert modes(model) == before


# What is read of an expression


def test_unknown_words_are_named(pipe):
    with pytest.warns(UserWarning, match="is not read completely: the vocabulary does not know 'zebra'") as told:
        results = pipe(ONE, text=["the zebra, left Gnu!", "the zebra zebra", WORDS[0]])
    assert ["'zebra', 'Gnu'" in str(each.message) for each in told] == [True, False]
    assert [result["unknown_words"] for result in results] == [["zebra", "Gnu"], ["zebra"], []]
    assert [result["text_read"] for result in results] == [result["label"] for result in results]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_what_is_read_of_a_long_expression(pipe, batch_size):
    beginning = "the red cup left of the"
    with pytest.warns(UserWarning, match=f"only '{beginning}"):
        results = pipe(ONE, text=[f"{beginning} man", f"{beginning} bus", WORDS[0]], batch_size=batch_size)
    assert [result["text_read"] for result in results] == [beginning, beginning, WORDS[0]]
    assert results[0]["mask"].tobytes() == results[1]["mask"].tobytes()


def test_no_warning_where_all_is_read(pipe):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe(ROWS)
        pipe(ONE, text="The red cup, left!")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\u200b", "An expression must be text that describes an object"),
        ("\x00", "An expression must be text that describes an object"),
        ("\ufffd", "An expression must describe an object, got '\ufffd', which has no tokens"),
    ],
)
@pytest.mark.parametrize("form", ["arguments", "dict", "list of dicts", "stream"])
def test_an_expression_of_which_nothing_is_read(pipe, text, message, form):
    row = {"image": ONE, "text": [WORDS[0], text]}
    call = {"arguments": lambda: pipe(ONE, text=[WORDS[0], text]), "dict": lambda: pipe(row)}
    call |= {"list of dicts": lambda: pipe([row]), "stream": lambda: list(pipe(iter([row])))}
    with pytest.raises(ValueError, match=message):
        call[form]()


@pytest.mark.parametrize("text", ["...", "🦓", "xyzzy, plugh"])
def test_an_expression_of_which_nothing_is_known(pipe, text):
    with pytest.warns(UserWarning, match="nor any other part of it"):
        (result,) = pipe(ONE, text=text)
    assert result["unknown_words"]


# One text for many images


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize(
    "stream",
    [
        lambda images: (image for image in images),
        lambda images: iter(images),
        lambda images: ({"image": image, "id": 3} for image in images),
        lambda images: KeyDataset(Rows(), "image"),
        lambda images: Images(),
        lambda images: [{"image": image} for image in images],
    ],
    ids=["generator", "iterator", "rows", "dataset", "stream", "list of rows"],
)
def test_one_text_for_many_images(pipe, expected, stream, batch_size):
    images = [row["image"] for row in ROWS]
    found = list(pipe(stream(images), text=WORDS[1], batch_size=batch_size))
    assert_all_same(found, [pipe(image, text=WORDS[1]) for image in images])
    found = list(pipe(stream(images), text=[WORDS, [WORDS[1]], WORDS[:2]], batch_size=batch_size))
    assert_all_same(found, expected)


def test_a_stream_of_images_is_read_lazily(pipe):
    read = []
    images = (read.append(index) or THREE for index in count())
    assert len(list(islice(pipe(images, text="the cup"), 3))) == 3
    assert len(read) <= 5


@pytest.mark.parametrize("text", [WORDS[:2], [*WORDS, "the cup"], [[word] for word in WORDS[:2]], 7, "", []])
def test_a_text_that_does_not_fit_a_stream(pipe, text):
    for stream in ((row["image"] for row in ROWS), KeyDataset(Rows(), "image")):
        with pytest.raises(ValueError, match=r"expression|`text`"):
            list(pipe(stream, text=text))
    with pytest.raises(ValueError, match="not both"):
        list(pipe(iter(ROWS), text="the cup"))


# Without a model


@pytest.mark.slow
def test_without_a_model_one_warning_says_which_it_took():
    code = f"from transformers import pipeline; import crossvlt_hf; pipeline({TASK!r}, device='cpu')"
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if line.strip() and "Loading weights" not in line]
    assert len(told) == 1, told
    assert "built-in" in told[0]
    assert "photographs" in told[0]


@pytest.mark.slow
def test_a_named_model_needs_no_warning(folder):
    made = f"pipeline({TASK!r}, model={str(folder)!r}, device='cpu')"
    code = f"from transformers import pipeline; import crossvlt_hf; {made}"
    lines = run_python("-c", code).stderr.splitlines()
    assert all("Loading weights" in line for line in lines if line.strip())


@pytest.mark.skipif(
    "return_probabilities" not in signature(CrossVLTProcessor.post_process_masks).parameters,
    reason="the processor gives no probabilities",
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_probabilities_on_request(pipe, expected, batch_size):
    found = pipe(ROWS, return_probabilities=True, batch_size=batch_size)
    assert_all_same(found, expected)
    for row, results in zip(ROWS, found, strict=True):
        for result in results:
            map_ = result["probabilities"]
            assert (map_.dtype, map_.shape) == (np.float32, row["image"].size[::-1])
            assert 0 <= map_.min() <= map_.max() <= 1
            assert np.mean((map_ > 0.5) != (np.asarray(result["mask"]) > 0)) < 0.001
    assert all("probabilities" not in result for result in expected[0])


def test_probabilities_are_asked_for_by_true_or_false(pipe):
    with pytest.raises(ValueError, match="return_probabilities"):
        pipe(ONE, text=WORDS, return_probabilities="yes")


@pytest.mark.parametrize(
    "own",
    [CrossVLTModel, CrossVLTVisionModel, CrossVLTTextModel, CrossVLTProcessor, CrossVLTConfig, CrossVLTTextConfig],
)
def test_every_class_of_the_package_knows_the_name_of_the_built_in_checkpoint(own):
    named, expected = own.from_pretrained("built-in"), own.from_pretrained(DEFAULT_CHECKPOINT)
    if hasattr(named, "state_dict"):
        expected_weights = expected.state_dict()
        assert all(torch.equal(value, expected_weights[name]) for name, value in named.state_dict().items())
        named, expected = named.config, expected.config
    assert named.to_dict() == expected.to_dict()
    again = own.from_pretrained(pretrained_model_name_or_path="built-in")
    assert type(again) is own


@pytest.mark.parametrize("own", [CrossVLTModel, CrossVLTProcessor, CrossVLTConfig])
def test_a_folder_named_built_in_is_a_path(own, model, processor, tmp_path, monkeypatch, caplog):
    ReferringImageSegmentationPipeline(model=model, processor=processor).save_pretrained(tmp_path / "built-in")
    monkeypatch.chdir(tmp_path)
    theirs, ours = own.from_pretrained("./built-in"), own.from_pretrained("built-in")
    assert "the folder of that name is './built-in'" in caplog.text
    size = {CrossVLTModel: lambda x: x.num_parameters(), CrossVLTProcessor: lambda x: x.image_size}
    measure = size.get(own, lambda x: x.vision_config.embed_dim)
    assert measure(theirs) == measure({CrossVLTModel: model, CrossVLTProcessor: processor}.get(own, model.config))
    assert measure(ours) == measure(own.from_pretrained(DEFAULT_CHECKPOINT)) != measure(theirs)
    assert measure(own.from_pretrained(Path("built-in"))) == measure(theirs)
