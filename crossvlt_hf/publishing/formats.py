"""File formats of exported networks, and the options of an export; imports nothing heavy."""

from ..system import check_known, check_least


FILES = {"onnx": "model.onnx", "torch-export": "model.pt2"}
# The version of the exporter, which cannot convert to all older ones
OLDEST_OPSET = 18


def check_format(file_format: str, opset: int | None) -> None:
    """Raise ValueError unless there is such a format, and the ONNX operator set, if any, belongs to it."""
    check_known("file_format", file_format, FILES)
    check_least("opset", opset, OLDEST_OPSET)
    if opset is not None and file_format != "onnx":
        raise ValueError(f"`opset` is {opset}, but only ONNX has one; leave it out for {file_format!r}.")
