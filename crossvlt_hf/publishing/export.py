"""Export a model to ONNX or `torch.export`, for any batch size, image size and number of tokens.

The folder also has everything to use the network without torch: `tokenizer.json`, and `export.json` with the names of
inputs, size and normalisation of images, and the most tokens of an expression.
"""

import copy
import hashlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..configuration_crossvlt import CrossVLTConfig
from ..modeling_crossvlt import CrossVLTModel, evaluating
from ..processing_crossvlt import PRESENCE_THRESHOLD, CrossVLTProcessor, calibration_curve
from ..system import check_integer, check_output_folder
from .formats import FILES, OLDEST_OPSET, check_format


SUMMARY = "export.json"
MARK = "crossvlt_hf"
PARTIAL = ".partial"
LEAST_AGREEMENT = 0.9999
# Of the logits, relative to their standard deviation
LARGEST_DIFFERENCE = 1e-2
# protobuf holds less than 2 GB
LARGEST_FILE = 1_500_000_000

Tell = Callable[[str], Any]


class ExportedNetwork(nn.Module):
    """The network to export: three tensors in, logits out, and presence logits with a presence head.

    A copy on the CPU without alignment heads, which only training needs. Attention is eager, since fused attention
    selects its kernel by sizes, which are unknown.
    """

    def __init__(self, model: CrossVLTModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
        self.model.set_attn_implementation("eager")
        for stage in self.model.stages:
            stage.alignment = None

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        """See [`export_program`]."""
        inputs = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
        output = self.model(**inputs, return_dict=True)
        return (output.logits, output.presence_logits) if self.model.config.presence_head else output.logits


def output_shapes(config: CrossVLTConfig) -> dict[str, list[Any]]:
    """The axes of the outputs of an exported network, by name, in order."""
    logits = {"logits": ["batch", 2, "height", "width"]}
    return {**logits, "presence_logits": ["batch"]} if config.presence_head else logits


def example_inputs(model: CrossVLTModel, batch: int, height: int, width: int, words: int) -> dict[str, Tensor]:
    """Random inputs of a model, the same for the same sizes; all pairs but the first have padding."""
    generator = torch.Generator().manual_seed(0)
    vision, text = model.config.vision_config, model.config.text_config
    attention_mask = torch.ones(batch, words, dtype=torch.long)
    attention_mask[1:, words // 2 + 1 :] = 0
    input_ids = torch.randint(text.vocab_size, (batch, words), generator=generator)
    return {
        "pixel_values": torch.randn(batch, vision.num_channels, height, width, generator=generator),
        "input_ids": input_ids * attention_mask,
        "attention_mask": attention_mask,
    }


def export_program(model: CrossVLTModel) -> ExportedProgram:
    """Export the network with `torch.export`, for any batch size, image size and number of tokens.

    Args:
        model: on any device; it is not changed.

    Returns:
        A program with keyword arguments pixel_values (batch, 3, height, width) float32, input_ids and attention_mask
        (batch, words) int64. It returns logits (batch, 2, height, width) float32; with a presence head a tuple of
        logits and presence_logits (batch,) float32. There are at most `max_position_embeddings` words; the least size
        is 1.
    """
    longest = model.config.text_config.max_position_embeddings
    batch, words = Dim("batch", min=1), Dim("words", min=1, max=longest)
    shapes: dict[str, Any] = {
        "pixel_values": {0: batch, 2: Dim("height", min=1), 3: Dim("width", min=1)},
        "input_ids": {0: batch, 1: words},
        "attention_mask": {0: batch, 1: words},
    }
    inputs = example_inputs(model, batch=2, height=70, width=90, words=min(7, longest))
    with torch.no_grad():
        return torch.export.export(ExportedNetwork(model).eval(), (), kwargs=inputs, dynamic_shapes=shapes)


@contextmanager
def _quietly() -> Iterator[None]:
    """Hide logs and warnings of the exporter."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _translations() -> dict[Any, Callable[..., Any]]:
    """ONNX translations of operators that torch's exporter would decompose."""
    from onnxscript import opset18 as op

    def cast(source: Any, dtype: int) -> Any:
        return op.Identity(source) if source.dtype == dtype else op.Cast(source, to=dtype)

    def batch_norm(
        source: Any,
        weight: Any,
        bias: Any,
        mean: Any,
        variance: Any,
        training: bool,
        momentum: float,
        eps: float,
        cudnn: bool,
    ) -> Any:
        return op.BatchNormalization(source, weight, bias, mean, variance, epsilon=eps)

    def subtract_from(subtrahend: Any, minuend: float) -> Any:
        return op.Sub(op.CastLike(op.Constant(value_float=minuend), subtrahend), subtrahend)

    aten = torch.ops.aten
    return {
        aten.to.dtype: cast,
        aten.item.default: lambda number: op.Identity(number),
        aten.batch_norm.default: batch_norm,
        aten.rsub.Scalar: subtract_from,
        aten.relu_.default: lambda source: op.Relu(source),
        aten.numpy_T.default: lambda matrix: op.Transpose(matrix),
    }


def _traced_once(program: ExportedProgram) -> ExportedProgram:
    """Make torch's ONNX exporter use a program without tracing it again; the program is changed.

    The exporter first decomposes operators and promotes types. Both trace the network again with symbolic sizes, which
    took 70 % of the time. [`_translations`] leaves nothing to decompose, and the types already match. Assertions about
    sizes are removed, as the exporter would do later.
    """
    aten = torch.ops.aten
    for node in program.graph.nodes:
        if node.target in (aten._assert_tensor_metadata.default, aten._assert_scalar.default):
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.run_decompositions = lambda *_, **__: program
    program.graph_module.modules = lambda *_, **__: iter(())
    return program


def to_onnx(
    trace: Callable[[], ExportedProgram], names: list[str], opset: int | None = None, tell: Tell = lambda line: None
) -> Any:
    """Translate a program of `torch.export`, of a network in eval mode, to a `torch.onnx.ONNXProgram`.

    Args:
        trace: makes the program; called again if operators must be decomposed or the version of torch exports in
            another way. The export then takes several times as long.
        names: of the outputs.
        opset: ONNX operator set; None for that of the exporter.
        tell: called with a description of each step before it starts.
    """
    # The optimizer would take minutes; onnxruntime optimizes when it loads the file
    options: dict[str, Any] = {"dynamo": True, "optimize": False, "verbose": False}
    options.update(opset_version=opset, output_names=names)
    program = _traced_once(trace())
    tell("Translating it to ONNX")
    try:
        return torch.onnx.export(program, (), custom_translation_table=_translations(), **options)
    except torch.onnx.OnnxExporterError:
        program = trace()
        tell("Decomposing it and translating it to ONNX, which takes several times as long")
        return torch.onnx.export(program, (), **options)


@_quietly()
def save_network(model: CrossVLTModel, path: Path, opset: int | None = None, tell: Tell = lambda line: None) -> None:
    """Write the network to a file with the suffix of one of `FILES`, without checking it: see [`export_model`]."""
    if path.suffix == Path(FILES["torch-export"]).suffix:
        torch.export.save(_trace(model, tell), path)
        return
    onnx_program = to_onnx(lambda: _trace(model, tell), list(output_shapes(model.config)), opset, tell)
    pixels, words, _ = onnx_program.model.graph.inputs
    axes = {pixels.shape[0]: "batch", pixels.shape[2]: "height", pixels.shape[3]: "width", words.shape[1]: "words"}
    onnx_program.rename_axes(axes)
    size = sum(weight.nbytes for weight in onnx_program.exported_program.state_dict.values())
    onnx_program.save(path, external_data=size > LARGEST_FILE)


def _trace(model: CrossVLTModel, tell: Tell) -> ExportedProgram:
    tell("Tracing the network for any size")
    return export_program(model)


def load_outputs(folder: str | Path) -> Callable[[dict[str, Tensor]], tuple[Tensor, ...]]:
    """Load an export of [`export_model`] as a function from inputs by name to outputs, the logits first.

    Raises:
        FileNotFoundError: if the folder has no export.
        ModuleNotFoundError: for ONNX without onnxruntime.
    """
    folder = Path(folder)
    if (folder / FILES["onnx"]).is_file():
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / FILES["onnx"], providers=["CPUExecutionProvider"])
        return lambda inputs: tuple(
            map(torch.from_numpy, session.run(None, {name: value.numpy() for name, value in inputs.items()}))
        )
    if not (folder / FILES["torch-export"]).is_file():
        raise FileNotFoundError(f"There is no {' or '.join(FILES.values())} in {folder}.")
    module = torch.export.load(folder / FILES["torch-export"]).module()

    def run(inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        found = module(**inputs)
        return found if isinstance(found, tuple) else (found,)

    return run


def load_exported(folder: str | Path) -> Callable[[dict[str, Tensor]], Tensor]:
    """What [`export_model`] wrote, as a function of the inputs by name that gives the logits; see [`load_outputs`]."""
    run = load_outputs(folder)
    return lambda inputs: run(inputs)[0]


def _check_cases(processor: CrossVLTProcessor, longest: int) -> list[tuple[int, int, int, int]]:
    """Batch, height, width and words of four inputs: the size of the processor, and odd sizes."""
    height, width = processor.image_size
    half, third = (min(longest, max(3, longest // part)) for part in (2, 3))
    return [
        (1, height, width, longest),
        (2, height, width, half),
        (1, height * 3 // 4 + 1, width // 2 + 3, longest),
        (3, height // 3 + 1, width * 2 // 3 + 5, third),
    ]


def check_export(
    exported: Callable[[dict[str, Tensor]], Tensor | tuple[Tensor, ...]],
    model: CrossVLTModel,
    processor: CrossVLTProcessor,
) -> list[dict[str, Any]]:
    """Compare an exported network with the model, on random inputs of several sizes and numbers of words.

    Args:
        exported: inputs by name to all outputs (see [`load_outputs`]), or to the logits alone, which are
            then all that is compared.
        model: on any device; in eval mode.
        processor: of the model; one of the sizes is its own.

    Returns:
        For each input "batch", "height", "width" and "words", "agreement" (the share of pixels with the same
        prediction), "largest_difference" and "spread" (standard deviation) of the logits, and for presence logits
        "presence_difference" (the largest of the probabilities).

    Raises:
        ValueError: if less than 99.99 % of the pixels agree, logits differ by more than 1 % of their spread, or
            presences by more than 0.01.
    """
    rows = []
    for case in _check_cases(processor, _longest(model, processor)):
        inputs = example_inputs(model, *case)
        with torch.no_grad():
            expected = model(**{name: value.to(model.device) for name, value in inputs.items()}, return_dict=True)
        outputs = exported(inputs)
        names = list(output_shapes(model.config))
        if isinstance(outputs, tuple) and len(outputs) != len(names):
            raise ValueError(f"The export has {len(outputs)} outputs, not {', '.join(names)}, and was deleted.")
        actual, *presence = outputs if isinstance(outputs, tuple) else (outputs,)
        row: dict[str, Any] = dict(zip(("batch", "height", "width", "words"), case, strict=True))
        row |= _compare_logits(actual, expected.logits.cpu())
        if presence:
            row |= _compare_presence(presence[0], expected.presence_logits.cpu())
        rows.append(row)
    return rows


def _compare_logits(actual: Tensor, expected: Tensor) -> dict[str, float]:
    row = {
        "agreement": (actual.argmax(1) == expected.argmax(1)).double().mean().item(),
        "largest_difference": (actual - expected).abs().max().item(),
        "spread": expected.std().item(),
    }
    bound = LARGEST_DIFFERENCE * row["spread"]
    if not (row["agreement"] >= LEAST_AGREEMENT and row["largest_difference"] <= bound):
        raise ValueError(f"The export does not reproduce the masks of the model and was deleted: {json.dumps(row)}")
    return row


def _compare_presence(actual: Tensor, expected: Tensor) -> dict[str, float]:
    difference = (actual.sigmoid() - expected.sigmoid()).abs().max().item()
    if not difference <= LARGEST_DIFFERENCE:
        raise ValueError(f"The export does not reproduce the presence of the model (off by {difference}).")
    return {"presence_difference": difference}


def _compare(folder: Path, model: CrossVLTModel, processor: CrossVLTProcessor) -> dict[str, Any]:
    """Check the export in a folder; return the entries of `export.json` about it."""
    with evaluating(model):  # an export may come in the middle of training
        return {"checks": check_export(load_outputs(folder), model, processor)}


def _longest(model: CrossVLTModel, processor: CrossVLTProcessor) -> int:
    """The most tokens of an expression, for both processor and model."""
    return min(processor.max_length, model.config.text_config.max_position_embeddings)


def _summary(model: CrossVLTModel, processor: CrossVLTProcessor, file: str) -> dict[str, Any]:
    """The entries of `export.json`, except the hash of the weights and those about the check."""
    image = processor.image_processor
    return {
        "made_by": MARK,
        "file": file,
        "inputs": {
            "pixel_values": ["batch", model.config.vision_config.num_channels, "height", "width"],
            "input_ids": ["batch", "words"],
            "attention_mask": ["batch", "words"],
        },
        "outputs": output_shapes(model.config),
        "image_size": list(processor.image_size),
        "resample": Image.Resampling(image.resample).name.lower(),
        "image_mean": list(image.image_mean),
        "image_std": list(image.image_std),
        "max_tokens": _longest(model, processor),
        "pad_token_id": processor.tokenizer.pad_token_id,
        "most_words": model.config.text_config.max_position_embeddings,
        **({"presence_threshold": PRESENCE_THRESHOLD} if model.config.presence_head else {}),
        **({"score_calibration": calibration_curve(points)} if (points := processor.score_calibration) else {}),
    }


def _hash_weights(model: CrossVLTModel) -> str:
    """A hash of names and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_folder(folder: Path, weights: str, overwrite: bool) -> None:
    """Raise ValueError if a folder has other files than an export of the same weights, and may not be overwritten."""
    advice = "give a new folder, or --overwrite (in Python overwrite=True)"
    found = _exported_weights(folder)
    check_output_folder(
        folder, "export", lambda: overwrite or found is not None, lambda path: path.name == PARTIAL, advice
    )
    if found is not None and not overwrite and found != weights:
        other = "of another checkpoint" if found else "that does not say of which weights, as of version 0.1"
        raise ValueError(f"{folder} has an export {other}; {advice}.")


def _exported_weights(folder: Path) -> str | None:
    """The hash of the weights of an export, "" if it has none; None for a folder without an export."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        return str(summary.get("weights", "")) if summary.get("made_by") == MARK else None
    except (OSError, ValueError, AttributeError):
        return None


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """A temporary folder inside the folder, so that files can be moved; it is removed afterwards."""
    new, partial = not folder.exists(), folder / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)  # of an interruption
    partial.mkdir(parents=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if new and not any(folder.iterdir()):
            folder.rmdir()


def _check_request(model: CrossVLTModel, file_format: str, opset: int | None) -> None:
    check_format(file_format, opset)
    if model.dtype != torch.float32:
        raise ValueError(f"The model must be in float32, got {model.dtype}.")
    if opset is not None:
        from onnx.defs import onnx_opset_version

        check_integer("opset", opset, OLDEST_OPSET, onnx_opset_version())


def _move(source: Path, folder: Path) -> None:
    """Move files into a folder, replacing an earlier export; the description is moved last."""
    for name in (SUMMARY, *FILES.values(), f"{FILES['onnx']}.data"):
        (folder / name).unlink(missing_ok=True)
    for path in sorted(source.iterdir(), key=lambda path: path.name == SUMMARY):
        path.chmod(0o644)
        os.replace(path, folder / path.name)


def export_model(
    model: CrossVLTModel,
    processor: CrossVLTProcessor,
    folder: str | Path,
    *,
    file_format: str = "onnx",
    opset: int | None = None,
    overwrite: bool = False,
    tell: Tell = lambda line: None,
) -> dict[str, Any]:
    """Write a folder to run the model without this package and, as ONNX, without torch; and check it.

    Args:
        model: in float32.
        processor: of the model.
        folder: a new or empty folder, or that of an earlier export of the same weights.
        file_format: "onnx", or "torch-export" for `torch.export.load`.
        opset: ONNX operator set; None for that of the exporter.
        overwrite: also write into a folder with other files, replacing those of the same names.
        tell: called with a description of each step before it starts.

    Returns:
        The content of `export.json`: "weights" (a hash), "file" (`model.onnx` or `model.pt2`), names and axes of
        "inputs" (pixel_values float32, input_ids and attention_mask int64) and "outputs" (logits and, with a presence
        head, presence_logits, float32), "image_size" (height, width) to resize images to, "image_mean", "image_std",
        "max_tokens" and "pad_token_id" of expressions, "most_words" of the network, the "checks" of [`check_export`]
        and, with a presence head, "presence_threshold". The axes batch, height, width and words are dynamic. The
        folder also has `tokenizer.json` and `preprocessor_config.json`.

    Raises:
        ValueError: if the folder has other files or the export of other weights, the format is unknown, the model is
            not in float32, or the export does not reproduce the masks of the model. Nothing is left behind then.
        ModuleNotFoundError: for ONNX without the extra `export`.
    """
    _check_request(model, file_format, opset)
    folder = Path(folder)
    weights = _hash_weights(model)
    _check_folder(folder, weights, overwrite)
    with _workplace(folder) as beside:
        file = FILES[file_format]
        save_network(model, beside / file, opset, tell)
        tell(f"Comparing {file} with the model")
        summary = {"weights": weights, **_summary(model, processor, file), **_compare(beside, model, processor)}
        processor.image_processor.save_pretrained(beside)
        processor.tokenizer.save_pretrained(beside)
        (beside / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        _move(beside, folder)
    return summary
