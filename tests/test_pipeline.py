"""The pipeline: images and expressions in every form go in, masks of the images' own pixels come out."""

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, islice

import numpy as np
import pytest
import torch
from conftest import tiny_config, tiny_tokenizer
from PIL import Image
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.data import Dataset, IterableDataset
from transformers import AutoModel, AutoModelForSemanticSegmentation, AutoProcessor, pipeline

from crossvlt_hf import CrossVLTModel, CrossVLTProcessor, ReferringImageSegmentationPipeline
from crossvlt_hf.loading import load_checkpoint
from crossvlt_hf.visualization.explanation import explain


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
        assert result.keys() == {"label", "score", "mask", "box"}
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
    with pytest.raises(ValueError, match=f"`threshold` is {threshold}"):
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
        (ONE, [WORDS, WORDS], "1 images and 2 "),
        ([ONE, TWO], [WORDS, []], "Image 1 has no expressions"),
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
    with pytest.raises(ValueError, match=r"An image|2 images|given twice"):
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


def test_threads_share_a_pipeline(pipe, expected):
    """One loaded pipeline from 8 threads gives the results of one."""
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda row: pipe(row["image"], text=row["text"]), ROWS * 8))
    for results, references in zip(found, expected * 8, strict=True):
        for result, reference in zip(results, references, strict=True):
            assert result["label"] == reference["label"]
            assert result["score"] == pytest.approx(reference["score"], abs=1e-6)
            assert (np.asarray(result["mask"]) == np.asarray(reference["mask"])).all()


def test_a_model_in_training_predicts_as_if_it_were_not(checkpoint):
    model, processor = load_checkpoint(checkpoint)
    image = Image.new("RGB", (50, 40), "red")
    segmenter = ReferringImageSegmentationPipeline(model=model, processor=processor)
    expected = segmenter(image, text=["the cup", "the spoon"])
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    segmenter = ReferringImageSegmentationPipeline(model=model.train(), processor=processor)
    for found, wanted in zip(segmenter(image, text=["the cup", "the spoon"]), expected, strict=True):
        assert found["score"] == pytest.approx(wanted["score"], abs=1e-5)
        assert np.mean(np.asarray(found["mask"]) != np.asarray(wanted["mask"])) < 0.001
    assert model.training
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in model.named_buffers())
