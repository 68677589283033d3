"""Run exported networks by onnxruntime and OpenVINO, and compare them with torch."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..data.refshapes import make_example
from ..processing_crossvlt import CrossVLTProcessor
from ..publishing.export import save_network
from ..weights.checkpoint import load_checkpoint


Inputs = dict[str, Tensor]
Run = Callable[[Inputs], Tensor]
NAMES = ("pixel_values", "input_ids", "attention_mask")
CALIBRATION_PAIRS = 8


def open_network(path: str | Path, backend: str) -> Run:
    """Open an exported network, for as many threads as torch uses.

    Args:
        path: of an ONNX file.
        backend: "onnxruntime" or "openvino".

    Returns:
        Function of inputs by name, one image for each expression, that gives logits (batch, 2, height, width) float32.
    """
    return {"onnxruntime": _open_onnxruntime, "openvino": _open_openvino}[backend](Path(path))


def _open_onnxruntime(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Otherwise its threads wait in a loop, which slows down whatever is timed next
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {name: inputs[name].numpy() for name in NAMES})[0])

    return run


def _open_openvino(path: Path) -> Run:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # bfloat16 otherwise, where the processor has it
        "ENABLE_CPU_PINNING": False,  # of threads to cores, which others may be using
    }
    request = openvino.compile_model(path, "CPU", settings).create_infer_request()

    def run(inputs: Inputs) -> Tensor:
        found = request.infer({name: inputs[name].numpy() for name in NAMES})
        return torch.from_numpy(found["logits"].copy())

    return run


def one_image_each(inputs: Inputs, expressions: int) -> Inputs:
    """The inputs of an exported network, which takes one image for each expression."""
    return {**inputs, "pixel_values": inputs["pixel_values"].repeat_interleave(expressions, dim=0)}


# ---- export


def export_networks(source: str | Path, folder: str | Path, dtypes: Sequence[str]) -> dict[str, str]:
    """Write a checkpoint as ONNX, in float32 and in int8.

    The weights in int8 have a scale for each output channel, and 7 bits, since products of 8 bits overflow on
    processors without VNNI. "int8-dynamic" has int8 in the layers with a constant matrix, "int8-static" also in
    convolutions, with scales of activations from drawn scenes.

    Args:
        source: checkpoint.
        folder: an empty folder.
        dtypes: of `INT8`, or float32.

    Returns:
        The paths of the files by dtype.
    """
    folder = Path(folder)
    files = {dtype: folder / f"{dtype}.onnx" for dtype in dict.fromkeys(["float32", *dtypes])}
    model, processor = load_checkpoint(source, dtype="float32")
    save_network(model, files["float32"])
    if len(files) > 1:
        folded = folder / "folded.onnx"
        _fold(files["float32"], folded)
    if "int8-dynamic" in files:
        _quantize_dynamic(folded, files["int8-dynamic"])
    if "int8-static" in files:
        pairs = drawn_pairs(processor, processor.image_size, "train", CALIBRATION_PAIRS)
        _quantize_static(folded, files["int8-static"], pairs)
    return {dtype: str(files[dtype]) for dtype in dtypes}


def _fold(source: Path, target: Path) -> None:
    """Compute what is constant, such as transposed weights, since only constant matrices become int8."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    weights = "session.optimized_model_external_initializers_file_name"  # a file of ONNX has less than 2 GB
    options.add_session_config_entry(weights, f"{target.name}.data")
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


COMMON = {"per_channel": True, "reduce_range": True, "use_external_data_format": True}


def _quantize_dynamic(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    kinds = ["MatMul"]  # convolutions of integers are slower than of floats in onnxruntime
    quantize_dynamic(source, target, op_types_to_quantize=kinds, weight_type=QuantType.QInt8, **COMMON)


def _quantize_static(source: Path, target: Path, pairs: Iterator[Inputs]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:
            inputs = next(pairs, None)
            return None if inputs is None else {name: value.numpy() for name, value in inputs.items()}

    quantize_static(
        source,
        target,
        Reader(),
        op_types_to_quantize=["MatMul", "Gemm", "Conv"],
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},  # not the products within attention
        **COMMON,
    )


# ---- agreement


def drawn_pairs(processor: CrossVLTProcessor, size: tuple[int, int], split: Any, count: int) -> Iterator[Inputs]:
    """Inputs of scenes of RefShapes, each with an expression, resized to a height and width."""
    for index in range(count):
        example = make_example(split, index, side=max(32, *size))
        image = Image.fromarray(example.scene.image).resize(size[::-1], Image.Resampling.BICUBIC)
        resized = {"height": size[0], "width": size[1]}
        inputs = processor(images=image, text=[example.expression], size=resized, return_tensors="pt")
        yield {name: inputs[name] for name in NAMES}


def compare(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> dict[str, float]:
    """Compare logits (batch, 2, height, width) of several inputs.

    Returns:
        "rms_error" of the logits as a fraction of their spread, the root mean square of their differences from the
        mean of each map; "equal_pixels", the share of pixels of the masks that are equal.
    """
    error = sum(((a - e).double() ** 2).sum() for a, e in zip(actual, expected, strict=True))
    spread = sum(((e - e.mean((2, 3), keepdim=True)).double() ** 2).sum() for e in expected)
    equal = sum((a.argmax(1) == e.argmax(1)).sum() for a, e in zip(actual, expected, strict=True))
    pixels = sum(e[:, 0].numel() for e in expected)
    return {"rms_error": float((error / spread) ** 0.5), "equal_pixels": float(equal / pixels)}
