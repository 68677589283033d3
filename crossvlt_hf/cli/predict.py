"""`crossvlt predict`: the masks of a whole data set, in shards."""

import argparse
import json
import sys
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..checkpoint import load_checkpoint, resolve_checkpoint
from ..training.settings import integer, number
from .evaluate import parse_options
from .extras import needs_extra
from .presence import add_largest_part_option, add_presence_option


EXAMPLES = """examples:
  crossvlt predict rows.jsonl --output masks
  crossvlt predict photos --expression "the dog" --expression "the left person" --model my-crossvlt --output masks
  crossvlt predict name/dataset --split test --text-column caption --format parquet --output masks
  accelerate launch -m crossvlt_hf.cli predict rows.jsonl --workers 4 --output masks

A line of rows.jsonl: {"image": "a/1.jpg", "expressions": ["the white cup", "the spoon"]}; paths are below the file, or
--root. Whatever stops it, the same command goes on where it was.
"""


def _identify(source: str | Path, model: Any) -> str:
    """What tells a checkpoint from others of its name."""
    folder = Path(source)
    if not folder.is_dir():
        return str(getattr(model.config, "_commit_hash", None))
    digest = blake2b(digest_size=16)
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".bin")):
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _report(requests: Any, reading: str) -> None:
    """Say what is not predicted, and what is not read."""
    from ..prediction import ImageRequests, some_names

    if isinstance(requests, ImageRequests) and (others := requests.passed_over):
        files = "1 file that is not an image" if len(others) == 1 else f"{len(others)} files that are not images"
        print(f"Passed over {files}: {some_names(others)}", file=sys.stderr)
    print(reading, file=sys.stderr)


def predict(arguments: argparse.Namespace) -> None:
    """Write the shards; print the counts as a line of JSON."""
    with needs_extra("train"):
        from accelerate import PartialState

        from ..prediction import PredictionOptions, describe_reading, open_requests
        from ..prediction import predict as predict_rows

    options = PredictionOptions(
        batch_size=arguments.batch_size,
        shard_size=arguments.shard_size,
        file_format=arguments.format,
        threshold=arguments.threshold,
        presence_threshold=arguments.presence_threshold,
        largest_part=arguments.largest_part,
        on_error=arguments.on_error,
        workers=arguments.workers,
        progress=True,
    )
    try:
        requests = open_requests(
            arguments.data,
            split=arguments.split,
            root=arguments.root,
            expressions=arguments.expression,
            image_column=arguments.image_column,
            text_column=arguments.text_column,
            options=parse_options(arguments.option),
        )
    except TypeError as error:
        raise ValueError(f"{arguments.data} has no such --option: {error}") from error
    state = PartialState(cpu=arguments.device == "cpu")
    alone = state.num_processes == 1 and arguments.device is not None
    source = resolve_checkpoint(arguments.model)
    model, processor = load_checkpoint(
        source, device=arguments.device if alone else str(state.device), dtype=arguments.dtype
    )
    if state.is_main_process:
        _report(requests, describe_reading(processor, requests))
    job = {
        "model": str(arguments.model or "built-in"),
        "checkpoint": _identify(source, model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "source": arguments.data,
        "split": arguments.split,
        "batch_size": options.batch_size,
    }
    try:
        counts = predict_rows(model, processor, requests, arguments.output, options, job)
    except (KeyboardInterrupt, SystemExit):
        print(f"\nFinished shards are in {arguments.output}; the same command goes on.", file=sys.stderr)
        raise
    if counts is not None:
        print(json.dumps({"output": arguments.output, "rows": len(requests), **counts}))


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "predict",
        help="segment a whole data set into shards of run lengths, on one process or many",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "data", metavar="DATA", help="JSONL file, folder (images or metadata.jsonl), name or id of a data set"
    )
    command.add_argument("--output", required=True, help="folder of the shards: a new one, or that of the same job")
    command.add_argument("--model", help="checkpoint: a folder, a Hub id, or built-in (the default)")
    command.add_argument(
        "--expression",
        action="append",
        default=[],
        metavar="TEXT",
        help="for every image of a folder; may be repeated",
    )
    command.add_argument("--split", default="train", help="of a data set (%(default)s)")
    command.add_argument("--root", help="folder of the images (default: that of the JSONL file)")
    command.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of a named data set")
    command.add_argument("--image-column", metavar="NAME", help="of images (default: image, file_name, ...)")
    command.add_argument("--text-column", metavar="NAME", help="of expressions (default: expressions, text, ...)")
    command.add_argument("--format", default="jsonl", help="jsonl or parquet (%(default)s)")
    command.add_argument("--shard-size", type=integer, default=500, help="rows of a file (%(default)s)")
    command.add_argument("--batch-size", type=integer, default=8, help="expressions at a time (%(default)s)")
    command.add_argument("--workers", type=integer, default=0, help="processes that prepare images (%(default)s)")
    command.add_argument("--threshold", type=number, help="least probability of the object")
    add_presence_option(command)
    add_largest_part_option(command)
    command.add_argument(
        "--on-error", default="stop", help="at a row that is broken: stop, or skip it and say so (%(default)s)"
    )
    command.add_argument("--device", help="cpu, cuda, ... (default: what Accelerate finds)")
    command.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    command.set_defaults(run=predict)
