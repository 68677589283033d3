"""`crossvlt evaluate`: measure a checkpoint on a data set."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from ..system import check_least, refusing_twice
from ..weights.names import BUILT_IN
from .common import (
    DataCommand,
    Pixels,
    Png,
    check_distinct,
    check_png,
    need_matplotlib,
    needs_extra,
    parse_settings,
    refuse_without_effect,
    warnings_in_one_line,
)
from .outputs import make_room, save_picture, save_report


if TYPE_CHECKING:
    from ..evaluation.run import EvaluationOptions
    from ..metrics import ReferringSegmentationMetric
    from ..processing_crossvlt import CrossVLTProcessor


OUTPUT = "crossvlt-output/evaluation.json"
REPORT, GALLERY, DIAGRAM = "evaluation", "gallery", "reliability diagram"  # kinds of output files


@dataclass(frozen=True, kw_only=True)
class Evaluate(DataCommand):
    """Measure a checkpoint on a data set.

    Args:
        data: refcoco, refcoco+, refcocog, ..., refshapes, or a folder.
        split: val, testA, testB, test, ...; without it, an error names the splits.
        root: Folder of the annotations and images.
        limit: Use only the first references.
        protocol: Compare masks at the input size of the model, as the paper does, or at the size of the image
            (original).
        merge: How to merge the polygons of an object. With reference, the overlap of two polygons is background, as in
            the authors' code.
        truncation: How to cut long expressions. With reference they lose [SEP], as in the authors' code.
        shuffle: Use the expression of another image for each image.
        distractors: Also compare with another object of the same image.
        output: JSON file of the results; an earlier one is replaced. The default is a new file,
            crossvlt-output/evaluation.json or evaluation-2.json, ...
        gallery: Draw the best, the worst and random samples, and some of each family.
        instances: Also compare the connected parts of the masks (column Pr@F).
        min_area: Leave out smaller parts; implies --instances.
        reliability: Draw the reliability diagram of the scores.
        calibrate: Fit the score to this data set, which must be validation data, and save it in the folder --model.
    """

    data: str
    split: str | None = None
    root: Annotated[str | None, arg(metavar="DIR")] = None
    limit: int | None = None
    protocol: Literal["paper", "original"] = "paper"
    merge: Literal["union", "reference"] = "union"
    truncation: Literal["keep_sep", "reference"] = "keep_sep"
    shuffle: bool = False
    distractors: bool = False
    output: Annotated[str | None, arg(metavar="JSON")] = None
    gallery: Png = None
    instances: bool = False
    min_area: Pixels = None
    reliability: Png = None
    calibrate: bool = False

    def check(self) -> None:
        """Check numbers and file names, and that the score can be calibrated."""
        super().check()
        check_least("limit", self.limit, 1)
        check_least("min_area", self.min_area, 1)
        check_png("gallery", self.gallery)
        check_png("reliability", self.reliability)
        check_distinct(self, "output", "gallery", "reliability")
        if self.data == "refshapes":
            refuse_without_effect(self, ("root", "merge"), "with `data` refshapes")
        if not self.calibrate:
            return
        if self.shuffle:
            raise ValueError("`--calibrate` needs the original expressions; leave out --shuffle.")
        if self.model is None or not (Path(self.model) / "processor_config.json").is_file():
            raise ValueError(
                "`--calibrate` changes the checkpoint: `--model` must be a folder with a processor_config.json, got "
                f"{self.model!r}."
            )


def evaluate(options: Evaluate) -> None:
    """Print the metrics, in total and for every family, and write them as JSON."""
    with needs_extra("train"):
        from ..evaluation.run import describe_reading
        from ..evaluation.run import evaluate as evaluate_model
        from ..weights.checkpoint import describe_hardware

    _make_room(options)
    choices = _evaluation_options(options)
    dataset = _load_data(options)
    state, model, processor = options.load()
    if state.is_main_process:
        print(describe_reading(processor, [dataset]), file=sys.stderr)
    metric = evaluate_model(model, processor, dataset, choices)
    if state.is_main_process:
        scores = _report(options, metric, processor, describe_hardware(model.device, state.num_processes))
        if options.reliability is not None:
            _draw_reliability(options.reliability, f"{options.data} {options.split}", scores)
        if options.gallery is not None:
            from ..evaluation import evaluation_gallery

            gallery = evaluation_gallery(model, processor, dataset, metric.samples, choices)
            save_picture(gallery, options.gallery, GALLERY)
            print(f"The gallery is in {options.gallery}", file=sys.stderr)
        if options.calibrate:
            _calibrate(str(options.model), metric)


def _make_room(options: Evaluate) -> None:
    """Check that all files can be written, before the evaluation starts."""
    if options.gallery is not None or options.reliability is not None:
        need_matplotlib()
    make_room(options.output or OUTPUT, REPORT, new=options.output is None)
    make_room(options.gallery, GALLERY)
    make_room(options.reliability, DIAGRAM)


def _evaluation_options(options: Evaluate) -> "EvaluationOptions":
    from ..evaluation.run import EvaluationOptions

    return EvaluationOptions(
        batch_size=options.batch_size,
        protocol=options.protocol,
        truncation=options.truncation,
        shuffle=options.shuffle,
        distractors=options.distractors,
        presence_threshold=options.presence_threshold,
        largest_part=options.largest_part,
        instances=options.instances or options.min_area is not None,
        min_area=options.min_area,
        workers=options.workers,
        progress=sys.stderr.isatty(),
    )


def _load_data(options: Evaluate) -> Any:
    from ..data import load_data

    with warnings_in_one_line(options), refusing_twice(options.data, "--option"):
        dataset = load_data(
            options.data, options.split, root=options.root, merge=options.merge, **parse_settings(options.option)
        )
    return dataset if options.limit is None else dataset.select(range(min(options.limit, len(dataset))))


def _report(
    options: Evaluate, metric: "ReferringSegmentationMetric", processor: "CrossVLTProcessor", hardware: str
) -> dict[str, Any]:
    """Print the metrics, write the report, and return the calibration of the scores."""
    from ..evaluation.calibration import calibration_report
    from ..metrics import markdown_table

    total, families = metric.compute(), metric.compute_groups()
    print(markdown_table({f"{options.model or BUILT_IN}, {options.data} {options.split}": total}, "checkpoint, data"))
    if set(families) != {""}:
        print(f"\n{markdown_table(families, 'family')}")
    scores = calibration_report(metric.samples, processor.score_calibration is not None)
    _print_errors(scores)
    report = {
        **_describe_measurement(options, "presence" in scores),
        "image_size": list(processor.image_size),
        "hardware": hardware,
        "metrics": total,
        "families": {family or "(none)": row for family, row in families.items()},
        **({"calibration": scores} if scores else {}),
    }
    path = save_report(report, options.output or OUTPUT, REPORT, new=options.output is None)
    print(f"The figures are in {path}", file=sys.stderr)
    return scores


def _describe_measurement(options: Evaluate, has_head: bool) -> dict[str, Any]:
    """Which weights were measured, and how."""
    from ..publishing.facts import hash_weights
    from ..weights.checkpoint import resolve_checkpoint

    settings = ["data", "split", "protocol", "merge", "truncation", "shuffle", "limit", "dtype"]
    settings += ["presence_threshold"] if has_head else []
    settings += ["largest_part"] if options.largest_part else []
    settings += ["min_area"] if options.min_area is not None else []
    return {
        "model": options.model or BUILT_IN,
        **{setting: getattr(options, setting) for setting in settings},
        "option": parse_settings(options.option),
        "weights": hash_weights(resolve_checkpoint(options.model)),
    }


def _print_errors(scores: dict[str, Any]) -> None:
    from ..metrics import percent

    for kind in (kind for kind in ("score", "presence") if kind in scores):
        error = percent(scores[kind]["expected_calibration_error"])
        note = "" if kind == "presence" or scores["calibrated"] else " (not calibrated)"
        print(f"{kind}{note}: expected calibration error {error} %", file=sys.stderr)


def _draw_reliability(path: str, title: str, scores: dict[str, Any]) -> None:
    from ..evaluation import reliability_diagram

    if not scores:
        print("All masks are empty, so there are no scores and no reliability diagram.", file=sys.stderr)
        return
    save_picture(reliability_diagram(scores, title), path, DIAGRAM)
    print(f"The reliability diagram is in {path}", file=sys.stderr)


def _calibrate(folder: str, metric: "ReferringSegmentationMetric") -> None:
    """Fit the score to the samples, and save it in the checkpoint."""
    import numpy as np

    from ..evaluation.calibration import LEAST_SAMPLES, calibration_error, fit_score, save_calibration
    from ..metrics import percent
    from ..processing_crossvlt import apply_calibration, counted

    answered = [s for s in metric.samples if s.predicted > 0 and s.estimate is not None]
    if len(answered) < LEAST_SAMPLES:
        raise ValueError(
            f"`--calibrate` needs at least {LEAST_SAMPLES} masks that are not empty, got {len(answered)}; use more "
            "data."
        )
    estimates, ious = np.array([[s.estimate, s.iou] for s in answered]).reshape(-1, 2).T.tolist()
    points = fit_score(estimates, ious)
    save_calibration(folder, points)
    error = calibration_error(apply_calibration(estimates, points).tolist(), ious)
    print(
        f"The score calibration is in {folder}; its error is now {percent(error or 0)} % on the "
        f"{counted(len(answered), 'mask')} that it was fitted to. Measure it on other data.",
        file=sys.stderr,
    )
