"""`crossvlt evaluate`: the metrics of the paper's tables on a data set."""

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import describe_hardware, load_checkpoint, resolve_checkpoint
from ..evaluation import evaluation_gallery, reliability_diagram
from ..evaluation.calibration import calibration_error, calibration_report, fit_score, save_calibration
from ..metrics import ReferringSegmentationMetric, markdown_table
from ..processing_crossvlt import CrossVLTProcessor, counted
from ..publishing.facts import hash_weights
from ..training.settings import TEXT_OPTIONS, convert, integer, parse_value
from .extras import needs_extra
from .outputs import make_room
from .presence import add_largest_part_option, add_presence_option


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
    arguments: argparse.Namespace, metric: ReferringSegmentationMetric, processor: CrossVLTProcessor, hardware: str
) -> None:
    total, families = metric.compute(), metric.compute_groups()
    name = f"{arguments.data} {arguments.split}"
    print(markdown_table({name: total}, "data"))
    if set(families) != {""}:
        print(f"\n{markdown_table(families, 'family')}")
    scores = calibration_report(metric.samples, processor.score_calibration is not None)
    for kind in (kind for kind in ("score", "presence") if kind in scores):
        error = 100 * scores[kind]["expected_calibration_error"]
        note = "" if kind == "presence" or scores["calibrated"] else " (not calibrated)"
        print(f"{kind}{note}: expected calibration error {error:.2f} %", file=sys.stderr)
    settings = ["data", "split", "protocol", "merge", "truncation", "shuffle", "limit", "dtype"]
    settings += ["presence_threshold"] if "presence" in scores else []
    settings += ["largest_part"] if arguments.largest_part else []
    report = {
        "model": str(arguments.model or "built-in"),
        **{setting: getattr(arguments, setting) for setting in settings},
        "option": parse_options(arguments.option),
        "weights": hash_weights(resolve_checkpoint(arguments.model)),
        "image_size": list(processor.image_size),
        "hardware": hardware,
        "metrics": total,
        "families": {family or "(none)": row for family, row in families.items()},
        **({"calibration": scores} if scores else {}),
    }
    path = Path(arguments.output)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"The figures are in {path}", file=sys.stderr)


def _check_picture(path: str | None, option: str) -> None:
    """Rather before the evaluation than after it."""
    if path is None:
        return
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"`{option}` is {path!r}; give a file that ends in .png.")
    with needs_extra("plot"):
        import_module("matplotlib")


def _check_calibrate(arguments: argparse.Namespace) -> None:
    if not arguments.calibrate:
        return
    if arguments.shuffle:
        raise ValueError("`--calibrate` needs the right expressions; leave out --shuffle.")
    if arguments.model is None or not (Path(arguments.model) / "processor_config.json").is_file():
        raise ValueError(
            f"`--calibrate` writes into the checkpoint; `--model` must be a folder with a processor_config.json, got "
            f"{arguments.model!r}."
        )


def _check_outputs(arguments: argparse.Namespace) -> None:
    _check_picture(arguments.gallery, "--gallery")
    _check_picture(arguments.reliability, "--reliability")
    _check_calibrate(arguments)
    for path in (arguments.output, arguments.gallery, arguments.reliability):
        make_room(path)


def _calibrate(folder: str, metric: ReferringSegmentationMetric) -> None:
    """Fit the score to what was measured, and write it into the checkpoint."""
    answered = [s for s in metric.samples if s.predicted > 0 and s.estimate is not None]
    estimates, ious = np.array([[s.estimate, s.iou] for s in answered]).reshape(-1, 2).T.tolist()
    points = fit_score(estimates, ious)
    save_calibration(folder, points)
    error = calibration_error(np.interp(estimates, *np.transpose(points)).tolist(), ious)
    print(
        f"The score calibration is in {folder}; on {counted(len(answered), 'answer')} that it was fitted on the error "
        f"is now {100 * (error or 0):.2f} %. Measure it on others.",
        file=sys.stderr,
    )


def _judge_scores(
    arguments: argparse.Namespace, metric: ReferringSegmentationMetric, processor: CrossVLTProcessor
) -> None:
    if arguments.reliability is not None:
        scores = calibration_report(metric.samples, processor.score_calibration is not None)
        reliability_diagram(scores, f"{arguments.data} {arguments.split}").save(arguments.reliability)
        print(f"The reliability diagram is in {arguments.reliability}", file=sys.stderr)
    if arguments.calibrate:
        _calibrate(arguments.model, metric)


def evaluate(arguments: argparse.Namespace) -> None:
    """Print the row of the table and that of every family, and write them as JSON."""
    with needs_extra("train"):
        from accelerate import PartialState

        from ..data import load_data
        from ..evaluation.run import EvaluationOptions, describe_reading
        from ..evaluation.run import evaluate as evaluate_model

    if arguments.limit is not None and arguments.limit < 1:
        raise ValueError(f"`--limit` is {arguments.limit}; give 1 or more.")
    _check_outputs(arguments)
    options = EvaluationOptions(
        batch_size=arguments.batch_size,
        protocol=arguments.protocol,
        truncation=arguments.truncation,
        shuffle=arguments.shuffle,
        distractors=arguments.distractors,
        presence_threshold=arguments.presence_threshold,
        largest_part=arguments.largest_part,
        instances=arguments.instances or arguments.min_area is not None,
        min_area=arguments.min_area,
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
        _report(arguments, metric, processor, hardware)
        _judge_scores(arguments, metric, processor)
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
    command.add_argument("--limit", type=integer, help="take the first references only")
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
    command.add_argument("--batch-size", type=integer, default=8)
    command.add_argument("--workers", type=integer, default=0, help="processes that prepare data (%(default)s)")
    command.add_argument("--device", help="cpu, cuda, ... (default: what Accelerate finds)")
    command.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    command.add_argument("--output", default="crossvlt-output/evaluation.json", help="JSON file (%(default)s)")
    command.add_argument(
        "--gallery", metavar="PNG", help="draw the best, the worst, random samples, and some of each family"
    )
    add_presence_option(command)
    add_largest_part_option(command)
    command.add_argument(
        "--instances", action="store_true", help="compare the separate parts of the masks too (column Pr@F)"
    )
    command.add_argument("--min-area", type=integer, metavar="PIXELS", help="of such a part; implies --instances")
    command.add_argument("--reliability", metavar="PNG", help="draw how near the scores are to the IoUs")
    command.add_argument(
        "--calibrate",
        action="store_true",
        help="fit the score to these expressions (validation data) and write it into the folder --model",
    )
    command.set_defaults(run=evaluate)
