"""The exported network gives the model's masks at other sizes, and is used without torch."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_config
from fabricate import png_of_16_bits
from PIL import Image
from torch.export import Dim, ExportedProgram

from crossvlt_hf import DEFAULT_CHECKPOINT, CrossVLTConfig, CrossVLTModel, CrossVLTProcessor
from crossvlt_hf.cli import main as crossvlt
from crossvlt_hf.data.refshapes import make_example
from crossvlt_hf.layers_crossvlt import interpolation, padded, parts, upsample
from crossvlt_hf.pipeline_crossvlt import ReferringImageSegmentationPipeline
from crossvlt_hf.processing_crossvlt import reading_note, to_rgb
from crossvlt_hf.publishing import export as exporting
from crossvlt_hf.publishing.export import (
    LEAST_AGREEMENT,
    check_export,
    example_inputs,
    export_model,
    load_exported,
    load_outputs,
)
from crossvlt_hf.system import install_command
from crossvlt_hf.training.build import refshapes_tokenizer
from crossvlt_hf.weights.checkpoint import load_checkpoint
from crossvlt_hf.weights.vocabulary import default_tokenizer


EXAMPLE = Path(__file__).parents[2] / "examples" / "onnx_without_torch.py"
EXPRESSIONS = ["the largest object", "the leftmost object", "the object at the bottom"]
# Run before the example: what it must not need cannot be imported
BLOCKED = """
import runpy, sys
for name in ("torch", "transformers", "crossvlt_hf"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def built_in():
    return load_checkpoint(DEFAULT_CHECKPOINT)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder of a tiny model with a presence head."""
    torch.manual_seed(0)
    tokenizer = refshapes_tokenizer()
    text = {"vocab_size": len(tokenizer), "depths": [1, 1, 1, 1]}
    processor = CrossVLTProcessor.from_tokenizer(tokenizer, image_size=48, max_length=16)
    processor.score_calibration = [[0.5, 0.4], [0.9, 0.8]]
    folder = tmp_path_factory.mktemp("checkpoint")
    model = CrossVLTModel(tiny_config(presence_head=True, text_config=text)).eval()
    with torch.no_grad():  # about half of the pixels are foreground, and something fits
        logits = model(**example_inputs(model, 2, 48, 48, 9)).logits
        model.decoder.classifier.bias[0] += (logits[:, 1] - logits[:, 0]).median()
        model.presence_head.classifier.bias += 0.2
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(checkpoint):
    return load_checkpoint(checkpoint)


@pytest.fixture(scope="module", params=["onnx", "torch-export"])
def exported(request, checkpoint, tmp_path_factory):
    """The tiny model, exported by the command, in each format."""
    folder = tmp_path_factory.mktemp("exported") / "new"
    traces = []
    with pytest.MonkeyPatch.context() as patch:
        decompose = ExportedProgram.run_decompositions
        patch.setattr(ExportedProgram, "run_decompositions", lambda *args: traces.append(1) or decompose(*args))
        wish = ["--model", str(checkpoint), "--format", request.param, "--output", str(folder)]
        assert crossvlt(["export", *wish]) == 0
    if request.param == "onnx":
        assert not traces, "The network was traced again, which takes most of the time."
    return folder


@pytest.fixture(scope="module")
def run(exported):
    return load_outputs(exported)


@pytest.mark.slow
def test_an_export_gives_the_models_masks_at_any_size(run, tiny):
    model, _ = tiny
    for sizes in [(1, 96, 96, 16), (3, 64, 128, 5), (2, 61, 75, 16), (1, 130, 33, 5), (1, 1, 1, 1)]:
        inputs = example_inputs(model, *sizes)
        with torch.no_grad():
            expected = model(**inputs).logits
        actual, _ = run(inputs)
        assert actual.shape == expected.shape
        assert (actual.argmax(1) == expected.argmax(1)).float().mean() >= LEAST_AGREEMENT
        assert (actual - expected).abs().max() <= 1e-3 * max(1, expected.std())


@pytest.mark.slow
def test_the_folder_says_how_to_use_it(exported):
    summary = json.loads((exported / "export.json").read_text())
    assert (exported / summary["file"]).is_file()
    assert (summary["image_size"], summary["max_tokens"]) == ([48, 48], 16)
    assert {len(summary["checks"])} == {4}
    assert min(check["agreement"] for check in summary["checks"]) >= LEAST_AGREEMENT
    assert {"tokenizer.json", "preprocessor_config.json"} <= {path.name for path in exported.iterdir()}
    assert not any(path.name.startswith(".") for path in exported.parent.iterdir())


@pytest.mark.slow
def test_without_torch_the_masks_are_those_of_the_pipeline(exported, tiny, tmp_path):
    if not (exported / "model.onnx").is_file():
        pytest.skip("torch.export needs torch")
    model, processor = tiny
    picture = Image.fromarray(make_example("test", 8, seed=5).scene.image).resize((150, 110))
    picture.save(tmp_path / "picture.png")
    command = [sys.executable, "-c", BLOCKED, str(EXAMPLE), str(exported), "picture.png", *EXPRESSIONS]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    pipeline = ReferringImageSegmentationPipeline(model=model, processor=processor)
    for line, result in zip(done.stdout.splitlines(), pipeline(picture, text=EXPRESSIONS), strict=True):
        mask, expected = (
            np.asarray(image) for image in (Image.open(tmp_path / json.loads(line)["mask"]), result["mask"])
        )
        assert mask.shape == expected.shape == (110, 150)
        assert expected.any()
        assert (mask == expected).mean() >= LEAST_AGREEMENT


@pytest.mark.slow
def test_what_differs_is_refused_and_leaves_nothing(run, tiny, tmp_path, monkeypatch):
    model, processor = tiny
    with pytest.raises(ValueError, match="was deleted"):
        check_export(lambda inputs: -run(inputs)[0], model, processor)
    monkeypatch.setattr(exporting, "export_program", lambda model: None)
    monkeypatch.setattr(torch.export, "save", lambda program, path: Path(path).touch())
    monkeypatch.setattr(exporting, "load_outputs", lambda folder: lambda inputs: (torch.zeros(1, 2, 1, 1),))
    with pytest.raises(ValueError, match="was deleted"):
        export_model(model, processor, tmp_path / "new", file_format="torch-export")
    assert not any(tmp_path.iterdir())
    (tmp_path / "old" / exporting.PARTIAL).mkdir(parents=True)  # as a kill leaves it
    summary = {"made_by": "crossvlt_hf"}
    (tmp_path / "old" / exporting.SUMMARY).write_text(json.dumps(summary))
    with pytest.raises(ValueError, match="has an export that does not say of which weights"):
        export_model(model, processor, tmp_path / "old", file_format="torch-export")
    summary["weights"] = exporting._hash_weights(model)
    (tmp_path / "old" / exporting.SUMMARY).write_text(json.dumps(summary))
    with pytest.raises(ValueError, match="was deleted"):
        export_model(model, processor, tmp_path / "old", file_format="torch-export")
    assert [path.name for path in (tmp_path / "old").iterdir()] == [exporting.SUMMARY]


def test_each_output_of_an_export_is_checked(tiny):
    """Outputs that are missing, too many or wrong; the logits alone may be given on their own."""
    model, processor = tiny

    def own(inputs):
        outputs = model(**inputs)
        return outputs.logits, outputs.presence_logits

    with torch.no_grad():
        assert all(row["presence_difference"] == 0 for row in check_export(own, model, processor))
        assert all(
            "presence_difference" not in row for row in check_export(lambda each: own(each)[0], model, processor)
        )
        for number, wrong in {1: lambda both: both[:1], 3: lambda both: (*both, both[1])}.items():
            with pytest.raises(
                ValueError, match=f"has {number} outputs, not logits, presence_logits, and was deleted"
            ):
                check_export(lambda inputs, wrong=wrong: wrong(own(inputs)), model, processor)
        with pytest.raises(ValueError, match="does not reproduce the presence"):
            check_export(lambda inputs: (own(inputs)[0], own(inputs)[1] + 1), model, processor)


@pytest.mark.slow
def test_lengths_that_the_model_does_not_take_are_neither_tried_nor_promised(built_in):
    model, processor = built_in
    short = CrossVLTConfig.from_dict(model.config.to_dict())
    short.text_config.max_position_embeddings = 2
    stub = type("Model", (), {"config": short})
    assert exporting._longest(stub, processor) == 2
    assert {words for *_, words in exporting._check_cases(processor, 2)} == {2}


def test_wrong_wishes(built_in, tmp_path, capsys, monkeypatch):
    model, processor = built_in
    with pytest.raises(ValueError, match="file_format"):
        export_model(model, processor, tmp_path / "new", file_format="onyx")
    with pytest.raises(ValueError, match="float32"):
        export_model(CrossVLTModel(model.config).half(), processor, tmp_path / "new")
    for opset in (9, 99):
        with pytest.raises(ValueError, match=rf"`opset` must be an integer (of at least|from) 18.*, got {opset}"):
            export_model(model, processor, tmp_path / "new", opset=opset)
    with pytest.raises(ValueError, match="only ONNX has one"):
        export_model(model, processor, tmp_path / "new", file_format="torch-export", opset=20)
    (tmp_path / "thesis.tex").touch()
    assert crossvlt(["export", "--output", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert crossvlt(["export", "--output", str(tmp_path / "thesis.tex")]) == 2
    assert "is a file" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert crossvlt(["export", "--output", str(tmp_path / "new")]) == 2
    assert f"This needs onnxscript: {install_command('export')}\n" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_export_of_other_weights_is_kept(tiny, tmp_path, monkeypatch):
    """Only the folder matters, so that the network is neither traced nor compared."""
    model, processor = tiny
    monkeypatch.setattr(exporting, "save_network", lambda model, path, *_: path.write_text("the network"))
    monkeypatch.setattr(exporting, "_compare", lambda *_: {"checks": []})
    torch.manual_seed(1)
    other = CrossVLTModel(model.config).eval()
    export_model(model, processor, tmp_path, file_format="torch-export")
    before = (tmp_path / "model.pt2").read_bytes()
    with pytest.raises(ValueError, match="has an export of another checkpoint; give a new folder, or --overwrite"):
        export_model(other, processor, tmp_path, file_format="torch-export")
    assert (tmp_path / "model.pt2").read_bytes() == before
    export_model(model, processor, tmp_path, file_format="torch-export")
    export_model(other, processor, tmp_path, file_format="torch-export", overwrite=True)


def test_files_move_into_the_place_of_an_export_and_beside_those_of_others(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "old").mkdir()
    for name in ("model.pt2", "export.json"):
        (tmp_path / "new" / name).write_text("new")
    for name in ("model.onnx", "model.onnx.data", "export.json", "mine.txt"):
        (tmp_path / "old" / name).write_text("old")
    exporting._move(tmp_path / "new", tmp_path / "old")
    contents = {path.name: path.read_text() for path in (tmp_path / "old").iterdir()}
    assert contents == {"model.pt2": "new", "export.json": "new", "mine.txt": "old"}


@pytest.mark.parametrize(
    ("source", "target"), [((1, 1), (1, 1)), ((1, 2), (5, 7)), ((6, 9), (6, 31)), ((9, 4), (1, 2))]
)
def test_interpolation_as_matrices_is_that_of_torch(source, target):
    maps = torch.randn(2, 3, *source)
    rows, columns = (interpolation(*sizes, like=maps) for sizes in zip(source, target, strict=True))
    assert torch.allclose(rows @ maps @ columns.T, upsample(maps, like=torch.zeros(target)), atol=1e-5)


def test_parts():
    assert [parts(size, 4) for size in (1, 4, 5, 8)] == [1, 1, 2, 2]
    assert [padded(size, 4) for size in (1, 4, 5, 8)] == [4, 4, 8, 8]


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["onnx", "torch-export"])
def test_base_at_480(tmp_path, file_format):
    torch.manual_seed(0)
    model = CrossVLTModel(CrossVLTConfig()).eval()
    processor = CrossVLTProcessor.from_tokenizer(default_tokenizer())
    summary = export_model(model, processor, tmp_path / "base", file_format=file_format)
    assert summary["image_size"] == [480, 480]
    assert min(check["agreement"] for check in summary["checks"]) >= LEAST_AGREEMENT


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I"])
def test_the_example_sees_what_the_processor_sees(tmp_path, mode):
    grey = np.random.default_rng(0).integers(0, 256, (9, 12), dtype=np.uint8)
    if mode.startswith("I"):
        picture = Image.fromarray(grey.astype(np.int32 if mode == "I" else np.uint16) * 257)
    else:
        picture = Image.fromarray(grey).convert(mode)
    if "A" in picture.getbands():
        picture.putalpha(Image.fromarray(grey[::-1].copy()))
    path = tmp_path / ("image.tiff" if mode in ("CMYK", "I") else "image.png")
    picture.save(path)
    seen = runpy.run_path(str(EXAMPLE))["read"](path)
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(to_rgb(path)))


def test_the_example_refuses_expressions_of_which_nothing_is_read(tmp_path):
    default_tokenizer().save_pretrained(tmp_path)
    summary, words = {"max_tokens": 9, "pad_token_id": 0}, runpy.run_path(str(EXAMPLE))["words"]
    assert words(tmp_path, ["the cup", "..."], summary)[1].sum(axis=1).tolist() == [4, 5]
    with pytest.raises(SystemExit, match=r"An expression must describe an object, got '\\u200b', which has no tokens"):
        words(tmp_path, ["the cup", "\u200b"], summary)


RANDOM = np.random.default_rng(0).random((9, 12, 4))
FLOATS = RANDOM[..., 0].astype(np.float32)
READ = {
    "0 to 1.tiff": FLOATS,
    "0 to 255.tiff": FLOATS * 255,
    "0 to 65535.tiff": FLOATS * 65535,
    "black.tiff": FLOATS * 0,
    "whole.tiff": (FLOATS * 3).round(),
    "bytes.tiff": (FLOATS * 255).astype(np.int32),
    "rgb.png": png_of_16_bits(RANDOM[..., :3] * 65535),
    "rgba.png": png_of_16_bits(RANDOM * 65535),
    "grey and alpha.png": png_of_16_bits(RANDOM[..., :2] * 65535),
}
REFUSED = {
    "normalised.tiff": (FLOATS * 4 - 2, "must be from 0 to 1"),
    "0 to 3.tiff": (FLOATS * 3, "must be from 0 to 1"),
    "NaN.tiff": (FLOATS * np.nan, "must be from 0 to 1"),
    "negative.tiff": ((FLOATS * 99).astype(np.int32) - 5, "must be from 0 to 1"),
    "0 to 900.tiff": ((FLOATS * 900).astype(np.int32), "must be from 0 to 1"),
    "deep.png": (np.arange(108, dtype=np.uint16).reshape(9, 12), "looks like an image of 8 to 12 bits"),
    "rgb.png": (png_of_16_bits(RANDOM[..., :3] * 255), "looks like an image of 8 to 12 bits"),
    "rgba.png": (png_of_16_bits(RANDOM * 255), "looks like an image of 8 to 12 bits"),
    "grey and alpha.png": (png_of_16_bits(RANDOM[..., :2] * 255), "looks like an image of 8 to 12 bits"),
    "text.png": (b"no image", "cannot be read as an image"),
    "cut.png": (png_of_16_bits(RANDOM[..., :3] * 65535)[:60], "cannot be read as an image"),
}


def write_picture(path, content):
    path.write_bytes(content) if isinstance(content, bytes) else Image.fromarray(content).save(path)
    return path


@pytest.mark.parametrize("name", READ)
def test_the_example_reads_numbers_as_the_package_does(tmp_path, name):
    path = write_picture(tmp_path / name, READ[name])
    np.testing.assert_array_equal(runpy.run_path(str(EXAMPLE))["read"](path), np.asarray(to_rgb(path)))


@pytest.mark.parametrize("name", REFUSED)
def test_the_example_refuses_images_that_the_package_refuses(tmp_path, name):
    content, told = REFUSED[name]
    path = write_picture(tmp_path / name, content)
    with pytest.raises((ValueError, OSError)):
        to_rgb(path)
    with pytest.raises(SystemExit, match=f"^{re.escape(str(path))} .*{told}.*$"):
        runpy.run_path(str(EXAMPLE))["read"](path)


def test_the_example_names_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SystemExit, match=r"nothing\.png cannot be read as an image: .*No such file"):
        runpy.run_path(str(EXAMPLE))["read"](tmp_path / "nothing.png")


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_the_example_reads_images_with_damaged_exif(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray((RANDOM[..., :3] * 255).astype(np.uint8)).save(path, exif=b"Exif\0\0garbage")
    np.testing.assert_array_equal(runpy.run_path(str(EXAMPLE))["read"](path), np.asarray(to_rgb(path)))


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("the red circle", 0),
        ("the zebra left of the zebra and the walrus", 1),
        ("the \N{GRINNING FACE} circle", 1),
        ("zebra", 1),
        ("...", 1),
        ("the [PAD] circle", 1),
        ("the red circle left of the blue circle above the green square", 1),
        ("the zebra left of the blue circle above the green square", 1),
    ],
)
def test_the_example_tells_what_is_not_read_as_the_package_does(tmp_path, capsys, expression, told):
    processor = CrossVLTProcessor.from_tokenizer(refshapes_tokenizer(), max_length=10)
    processor.save_pretrained(tmp_path)
    summary = {"max_tokens": 10, "pad_token_id": processor.tokenizer.pad_token_id}
    ids, _ = runpy.run_path(str(EXAMPLE))["words"](tmp_path, [expression], summary)
    note = reading_note(expression, processor.read_expressions([expression])[0])
    assert capsys.readouterr().err.splitlines() == ([note] if told else [])
    assert ids.tolist() == processor(text=[expression])["input_ids"]


@pytest.mark.slow
def test_an_export_says_whether_something_fits(exported, run, tiny, tmp_path):
    model, processor = tiny
    summary = json.loads((exported / "export.json").read_text())
    assert summary["outputs"] == {"logits": ["batch", 2, "height", "width"], "presence_logits": ["batch"]}
    assert (summary["presence_threshold"], summary["score_calibration"]) == (0.5, [[0.0, 0.0], [0.5, 0.4], [0.9, 0.8]])
    assert summary["resample"] == "bilinear"
    assert all(check["presence_difference"] <= 1e-3 for check in summary["checks"])
    inputs = example_inputs(model, 3, 40, 56, 9)
    logits, presence = run(inputs)
    with torch.no_grad():
        expected = model(**inputs)
    assert torch.allclose(presence, expected.presence_logits, atol=1e-3)
    if (exported / "model.onnx").is_file():
        assert torch.equal(load_exported(exported)(inputs), logits)
        image = tmp_path / "scene.png"
        Image.fromarray(make_example("test", 0, side=64).scene.image).save(image)
        command = [sys.executable, "-c", BLOCKED, str(EXAMPLE), str(exported), str(image), "the red star"]
        result = subprocess.run(
            [*command, "--output", str(tmp_path / "masks")], capture_output=True, text=True, check=True
        )
        (found,) = ReferringImageSegmentationPipeline(model=model, processor=processor)(image, text="the red star")
        line = json.loads(result.stdout)
        assert line["presence"] == pytest.approx(found["presence"], abs=0.01)
        assert (line["pixels"] > 0) == (found["box"] is not None)


class Operators(torch.nn.Module):
    """Every operator that the package translates, and, on request, one that must be decomposed."""

    def __init__(self, *, unknown: bool) -> None:
        super().__init__()
        self.norm, self.unknown = torch.nn.BatchNorm2d(3), unknown

    def forward(self, pixels):
        x = torch.relu_(self.norm(pixels)).to(torch.float32)
        rows = (torch.scalar_tensor(pixels.shape[2], dtype=torch.int64) + 1).item()
        torch._check(rows >= 1)
        x = (1 - x) * torch.ops.aten.numpy_T(x[0, 0]).sum() + torch.arange(rows).sum().to(torch.float32)
        return torch.nn.functional.softshrink(x, 0.1) if self.unknown else x


@pytest.mark.slow
@pytest.mark.parametrize("unknown", [False, True])
def test_what_cannot_be_translated_is_decomposed(unknown, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    network, steps = Operators(unknown=unknown).eval(), []
    network.norm.running_mean += torch.tensor([0.5, -0.5, 0.1])
    shapes = {"pixels": {0: Dim("batch", min=1), 2: Dim("height", min=4), 3: Dim("width", min=4)}}

    def trace():
        with torch.no_grad():
            return torch.export.export(network, (), {"pixels": torch.randn(2, 3, 6, 9)}, dynamic_shapes=shapes)

    exporting.to_onnx(trace, ["found"], tell=steps.append).save(tmp_path / "model.onnx")
    assert len(steps) == (2 if unknown else 1)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 4, 5), (3, 3, 8, 7)):
        pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = network(pixels)
        (found,) = session.run(None, {"pixels": pixels.numpy()})
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)
