"""What a presence head gives and costs: nine families of RefShapes with the head, and the same without it.

python examples/studies/presence.py run --jobs 2
python examples/studies/presence.py run --jobs 2 --start runs/refshapes/best    # instead of the first stage
python examples/studies/presence.py report                                      # docs/presence.md

A model is trained in stages, each from the weights of the one before: six families at 64 pixels, nine at 64,
relations alone, and nine at 96 pixels. In the third stage and in half of the data of the second and fourth,
expressions are pairs that differ in one word, only one of which has a target. Without the third, a model does not
read the other object of a relation. Each stage is measured on new scenes, the last one on more. Results are kept in
docs/presence.json; `--results mine.json` begins anew, and `report` then writes mine.md. See runs.py.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runs import Results, Row, Training, hardware_of, read_arguments, study_parser, train_all

from crossvlt_hf.data.refshapes import FAMILIES
from crossvlt_hf.weights.names import check_source


DOCS = Path(__file__).parents[2] / "docs"
RESULTS = Results(DOCS / "presence.json", ("steps", "seed", "model", "stage"))
SINGLE = (*FAMILIES, "two_hop")
NINE = (*SINGLE, "plural", "no_target")
# One half of the training data, in turn with expressions whose places their counterparts take
DENIALS = {"no_target": 3, "no_target_relation": 2, "no_target_ordinal": 2, "no_target_anchor": 4}
PAIRS = {"families": {**DENIALS, "no_target_missing_anchor": 2, "attribute": 13}, "counterparts": True}
RELATIONS = {
    "families": {"no_target_anchor": 3, "no_target_missing_anchor": 3, "no_target_relation": 2, "relation": 8},
    "counterparts": True,
}
MODELS = {"with": True, "without": False}  # a presence head


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Args:
        side: of the scenes, in pixels.
        factor: of the number of steps.
        data: arguments of `load_data` for equal parts of the training data.
        settings: of the optimization.
        expressions: for each family, in the test.
    """

    side: int
    factor: int
    data: tuple[dict[str, Any], ...]
    settings: tuple[str, ...] = ("optimization.schedule=constant_with_warmup",)
    expressions: int = 100


STAGES = {
    "six-64": Stage(64, 4, ({},)),
    "nine-64": Stage(64, 6, ({"families": NINE}, PAIRS)),
    "relations-64": Stage(64, 4, (RELATIONS,)),
    "nine-96": Stage(96, 4, ({"families": NINE}, PAIRS), ("optimization.schedule=cosine",), expressions=2000),
}


def training(model: str, stage: str, seed: int, steps: int, folder: Path, start: str | None) -> Training:
    """The run of a stage, from the one before or, for the second, from a checkpoint in place of the first."""
    chosen, names = STAGES[stage], list(STAGES)
    key = {"model": model, "stage": stage, "seed": seed, "steps": steps}
    number = names.index(stage)
    before = Training({**key, "stage": names[number - 1]}, "", (), (), seed, steps)
    checkpoint = start if start is not None and number == 1 else str(folder / before.name / "last")
    same = {"name": "refshapes", "split": "train", "scenes": 400_000, "expressions": 2, "side": chosen.side}
    data = [{**same, "seed": 10 * number + part, **own} for part, own in enumerate(chosen.data, start=1)]
    settings = [
        f"data.train={json.dumps(data)}",
        "data.validation=[]",
        f"model.image_size={chosen.side}",
        "model.max_length=21",  # for the longest expressions of nine families
        f"model.config.presence_head={json.dumps(MODELS[model])}",
        *chosen.settings,
    ]
    if number:
        settings += [f"model.checkpoint={checkpoint}", "model.add_words=true"]
    script = [__file__, "measure", "--stage", stage, "--run"]
    return Training(key, "refshapes" if number else "refshapes-64", settings, script, seed, steps * chosen.factor)


# ---- measuring


def measure(source: str, stage: Stage) -> None:
    """Calibrate on validation scenes, test on others, and print the results as a line of JSON."""
    import torch

    from crossvlt_hf.evaluation.calibration import calibration_error, fit_score
    from crossvlt_hf.processing_crossvlt import apply_calibration
    from crossvlt_hf.weights.checkpoint import describe_hardware, load_checkpoint

    model, processor = load_checkpoint(source, device="cuda" if torch.cuda.is_available() else "cpu")
    points = fit_score(*_estimates(_evaluate(model, processor, stage, "validation", stage.expressions // 2)))
    metric = _evaluate(model, processor, stage, "test", stage.expressions)
    total, (estimates, ious) = metric.compute(), _estimates(metric)
    results = {
        "families": {name: round(row["mean_iou"], 5) for name, row in metric.compute_groups().items()},
        **{name: round(total[name], 5) for name in ("no_target_accuracy", "target_accuracy")},
        "calibration_error": round(calibration_error(apply_calibration(estimates, points).tolist(), ious), 5),
        "expressions": len(metric.samples),
    }
    size = sum(parameter.numel() for parameter in model.parameters())
    print(json.dumps({"results": results, "parameters": size, "hardware": describe_hardware(model.device, 1)}))


def _evaluate(model: Any, processor: Any, stage: Stage, split: str, count: int) -> Any:
    """The metric on `count` expressions of each family, of scenes that no training has drawn."""
    from crossvlt_hf.data import load_data
    from crossvlt_hf.evaluation import EvaluationOptions, evaluate

    data = load_data("refshapes", split, scenes=count * len(NINE), side=stage.side, seed=2026, families=NINE)
    return evaluate(model, processor, data, EvaluationOptions(batch_size=32))


def _estimates(metric: Any) -> tuple[list[float], list[float]]:
    """Estimated and true IoUs of the masks that are not empty."""
    answered = [sample for sample in metric.samples if sample.predicted > 0 and sample.estimate is not None]
    return [sample.estimate for sample in answered], [sample.iou for sample in answered]


# ---- reporting


def table(rows: list[Row]) -> str:
    """A row for each stage and model."""
    lines = [
        "| stage | head | expressions | mIoU, single target | mIoU, plural | N-acc | T-acc | calibration error |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for stage in STAGES:
        for row in (row for row in rows if row["stage"] == stage):
            results = row["results"]
            single = sum(results["families"][family] for family in SINGLE) / len(SINGLE)
            numbers = [single, results["families"]["plural"]]
            numbers += [results[name] for name in ("no_target_accuracy", "target_accuracy", "calibration_error")]
            cells = " | ".join(f"{100 * number:.1f}" for number in numbers)
            lines.append(f"| {stage} | {row['model']} | {results['expressions']:,} | {cells} |")
    return "\n".join(lines)


def report(rows: list[Row], path: Path) -> None:
    """Write a report to a Markdown file, from runs of as many steps."""
    if not rows:
        raise SystemExit(f"{path.with_suffix('.json')} has no finished run with so many steps.")
    done = {row["stage"] for row in rows}
    facts = {
        "data": path.with_suffix(".json").name,
        "stages": ", ".join(f"{name} ({rows[0]['steps'] * STAGES[name].factor:,})" for name in STAGES if name in done),
        "start": "a new network" if next(iter(STAGES)) in done else "a checkpoint instead of the first stage",
        "hardware": hardware_of(rows),
    }
    path.write_text(f"{INTRODUCTION.format(**facts)}\n\n{table(rows)}\n")


INTRODUCTION = """\
# With and without a presence head

Written by `python examples/studies/presence.py report` from [{data}]({data}). **Drawn shapes and
rule-made expressions, not RefCOCO**: a network of about 4.4 million parameters, one seed, on {hardware}.

Training began with {start}. Each stage goes on with the weights of the one before.
Steps of 32 expressions: {stages}
(a multiple of `steps` in the JSON). `nine` is a mixture of all nine families, `relations` only pairs of relations, one
without a target; 64 and 96 are the pixels of a side. The last stage decides; earlier ones have few test expressions.

Numbers in percent, on new scenes. N-acc: expressions without a target whose mask is empty; T-acc: expressions with a
target whose mask is not. Single target: the mean of the seven families other than plurals and expressions without a
target. The calibration error is that of the score, fitted to validation scenes, half as many as test scenes."""


def main() -> None:
    """See the module."""
    parser = study_parser(__doc__, RESULTS, "runs/presence", seeds=1)
    parser.add_argument("--start", help="checkpoint in place of the first stage")
    parser.add_argument("--stage", choices=STAGES, help="of `measure`")
    arguments = read_arguments(parser)
    if arguments.action == "measure" and arguments.stage is None:
        parser.error(f"measure needs --stage, one of {', '.join(STAGES)}")
    if arguments.action == "run":
        try:
            check_source(arguments.start)
        except OSError as error:
            parser.error(f"--start: {error}")
    results = replace(RESULTS, path=arguments.results)
    if arguments.action == "measure":
        measure(arguments.run, STAGES[arguments.stage])
    elif arguments.action == "run":
        same = (arguments.steps, arguments.folder, arguments.start)
        for stage in list(STAGES)[arguments.start is not None :]:  # a stage goes on from the one before
            runs = [training(model, stage, seed, *same) for seed in arguments.seeds for model in MODELS]
            train_all(runs, results, arguments.folder, arguments.jobs)
    else:
        report(results.load(steps=arguments.steps), results.report)
        print(f"The report is in {results.report}", file=sys.stderr)


if __name__ == "__main__":
    main()
