"""`crossvlt export`: a checkpoint as ONNX, or as a program of `torch.export`."""

import argparse
import json
import sys
from importlib import import_module
from typing import Any

from ..checkpoint import BUILT_IN_NOTE, load_checkpoint, resolve_checkpoint
from ..publishing.export import FILES, export_model
from ..training.settings import integer
from .extras import needs_extra


def export(arguments: argparse.Namespace) -> None:
    """Write the folder, and print a JSON line for each size and number of words at which it was checked."""
    if arguments.format == "onnx":
        with needs_extra("export"):
            for name in ("onnx", "onnxscript", "onnxruntime"):
                import_module(name)
    source = resolve_checkpoint(arguments.model)
    model, processor = load_checkpoint(source, dtype="float32")
    if arguments.model is None:
        print(f"No --model was given: {BUILT_IN_NOTE}", file=sys.stderr)
    summary = export_model(
        model,
        processor,
        arguments.output,
        file_format=arguments.format,
        opset=arguments.opset,
        overwrite=arguments.overwrite,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    for check in summary["checks"]:
        print(json.dumps(check))
    least = min(check["agreement"] for check in summary["checks"])
    print(f"{arguments.output}/{summary['file']} gives the model's mask on {least:.4%} of the pixels", file=sys.stderr)


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("export", help="write a checkpoint as ONNX, or as a program of torch.export")
    command.add_argument("--model", help="checkpoint: a folder, a Hub id, or built-in (the default)")
    command.add_argument("--format", default="onnx", choices=list(FILES), help="(%(default)s)")
    command.add_argument("--output", required=True, metavar="FOLDER", help="a new folder, or an earlier export")
    command.add_argument("--opset", type=integer, help="version of the ONNX operators (default: the exporter's own)")
    command.add_argument("--overwrite", action="store_true", help="write also into a folder of other files")
    command.set_defaults(run=export)
