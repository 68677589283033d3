"""`crossvlt export`: write a checkpoint as ONNX, or as a program of `torch.export`."""

import json
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Literal

from tyro.conf import arg

from ..publishing.formats import check_format
from ..weights.names import check_source
from .common import Command, load_or_built_in, needs_extra


@dataclass(frozen=True)
class Export(Command):
    """Write a checkpoint as ONNX, or as a program of torch.export.

    Args:
        output: A new folder, or that of an earlier export of the same checkpoint.
        model: Checkpoint: a folder, a Hub id, or built-in, which is the default.
        format: File format.
        opset: ONNX operator set. The default is that of the exporter.
        overwrite: Write into a folder with other files, or with the export of another checkpoint.
    """

    output: Annotated[str, arg(metavar="FOLDER")]
    model: str | None = None
    format: Literal["onnx", "torch-export"] = "onnx"
    opset: int | None = None
    overwrite: bool = False

    def check(self) -> None:
        """Check the operator set, and that there is a checkpoint."""
        check_format(self.format, self.opset)
        check_source(self.model)


def export(options: Export) -> None:
    """Write the folder, and print a JSON line for each check."""
    if options.format == "onnx":
        with needs_extra("export"):
            for name in ("onnx", "onnxscript", "onnxruntime"):
                import_module(name)
    from ..publishing.export import export_model

    model, processor = load_or_built_in(options.model, dtype="float32")
    summary = export_model(
        model,
        processor,
        options.output,
        file_format=options.format,
        opset=options.opset,
        overwrite=options.overwrite,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    for check in summary["checks"]:
        print(json.dumps(check))
    least = min(check["agreement"] for check in summary["checks"])
    print(f"{options.output}/{summary['file']} agrees with the model on {least:.4%} of the pixels", file=sys.stderr)
