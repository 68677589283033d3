"""`crossvlt evaluate`: the metrics of the paper's tables on a data set."""

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from ..evidence import hash_weights
from ..loading import describe_hardware, load_checkpoint, resolve_checkpoint
from ..metrics import ReferringSegmentationMetric, markdown_table
from ..settings import TEXT_OPTIONS, convert, parse_value
from ..visualization import evaluation_gallery
from .extras import needs_extra
from .outputs import make_room


def parse_options(settings: list[str]) -> dict[str, Any]:
    """`name=value` settings, the values read as YAML where they are no text."""
    options = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--option {setting!r} must be name=value.")
        kind = str | None if name in TEXT_OPTIONS else Any
        options[name] = convert(parse_value(value, kind, f"--option {setting!r}"), kind, name)
    return options


def _report(
    arguments: argparse.Namespace, metric: ReferringSegmentationMetric, image_size: tuple[int, int], hardware: str
) -> None:
    total, families = metric.compute(), metric.compute_groups()
    name = f"{arguments.data} {arguments.split}"
    print(markdown_table({name: total}, "data"))
    if set(families) != {""}:
        print(f"\n{markdown_table(families, 'family')}")
    settings = ("data", "split", "protocol", "merge", "truncation", "shuffle", "limit", "dtype")
    report = {
        "model": str(arguments.model or "built-in"),
        **{setting: getattr(arguments, setting) for setting in settings},
        "option": parse_options(arguments.option),
        "weights": hash_weights(resolve_checkpoint(arguments.model)),
        "image_size": list(image_size),
        "hardware": hardware,
        "metrics": total,
        "families": {family or "(none)": row for family, row in families.items()},
    }
    path = Path(arguments.output)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"The figures are in {path}", file=sys.stderr)


def _check_gallery(path: str | None) -> None:
    """Rather before the evaluation than after it."""
    if path is None:
        return
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"`--gallery` is {path!r}; give a file that ends in .png.")
    with needs_extra("plot"):
        import_module("matplotlib")


def evaluate(arguments: argparse.Namespace) -> None:
    """Print the row of the table and that of every family, and write them as JSON."""
    with needs_extra("train"):
        from accelerate import PartialState

        from ..data import load_data
        from ..evaluation import EvaluationOptions, describe_reading
        from ..evaluation import evaluate as evaluate_model

    if arguments.limit is not None and arguments.limit < 1:
        raise ValueError(f"`--limit` is {arguments.limit}; give 1 or more.")
    _check_gallery(arguments.gallery)
    for path in (arguments.output, arguments.gallery):
        make_room(path)
    options = EvaluationOptions(
        batch_size=arguments.batch_size,
        protocol=arguments.protocol,
        truncation=arguments.truncation,
        shuffle=arguments.shuffle,
        distractors=arguments.distractors,
        workers=arguments.workers,
        progress=sys.stderr.isatty(),
    )
    try:
        dataset = load_data(
            arguments.data,
            arguments.split,
            root=arguments.root,
            merge=arguments.merge,
            **parse_options(arguments.option),
        )
    except TypeError as error:
        raise ValueError(f"{arguments.data} has no such --option: {error}") from error
    if arguments.limit is not None:
        dataset = dataset.select(range(min(arguments.limit, len(dataset))))
    state = PartialState(cpu=arguments.device == "cpu")
    alone = state.num_processes == 1 and arguments.device is not None
    device = arguments.device if alone else str(state.device)  # several processes have a GPU each
    model, processor = load_checkpoint(arguments.model, device=device, dtype=arguments.dtype)
    if state.is_main_process:
        print(describe_reading(processor, [dataset]), file=sys.stderr)
    metric = evaluate_model(model, processor, dataset, options)
    if state.is_main_process:
        hardware = describe_hardware(model.device, state.num_processes)
        _report(arguments, metric, processor.image_size, hardware)
        if arguments.gallery is not None:
            evaluation_gallery(model, processor, dataset, metric.samples, options).save(arguments.gallery)
            print(f"The gallery is in {arguments.gallery}", file=sys.stderr)


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("evaluate", help="measure a checkpoint on a data set")
    command.add_argument("--model", help="checkpoint: a folder, a Hub id, or built-in (the default)")
    command.add_argument("--data", required=True, help="refcoco, refcoco+, refcocog, ..., refshapes, or a folder")
    command.add_argument("--split", required=True, help="val, testA, testB, test, ...")
    command.add_argument("--root", help="folder in which the annotations and images lie")
    command.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the data set")
    command.add_argument("--limit", type=int, help="take the first references only")
    command.add_argument(
        "--protocol",
        default="paper",
        choices=["paper", "original"],
        help="compare at the size that the model reads, as the paper does, or at the image's own (%(default)s)",
    )
    command.add_argument(
        "--merge",
        default="union",
        choices=["union", "reference"],
        help="of an object's polygons; reference: what two share is background, as in the authors' code (%(default)s)",
    )
    command.add_argument(
        "--truncation",
        default="keep_sep",
        choices=["keep_sep", "reference"],
        help="of long expressions; reference: they lose [SEP], as in the authors' code (%(default)s)",
    )
    command.add_argument("--shuffle", action="store_true", help="give every image the expression of another")
    command.add_argument(
        "--distractors", action="store_true", help="compare with another object of the same image as well"
    )
    command.add_argument("--batch-size", type=int, default=8)
    command.add_argument("--workers", type=int, default=0, help="processes that prepare data (%(default)s)")
    command.add_argument("--device", help="cpu, cuda, ... (default: what Accelerate finds)")
    command.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    command.add_argument("--output", default="crossvlt-output/evaluation.json", help="JSON file (%(default)s)")
    command.add_argument(
        "--gallery", metavar="PNG", help="draw the best, the worst, random samples, and some of each family"
    )
    command.set_defaults(run=evaluate)
