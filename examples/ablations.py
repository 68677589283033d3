"""What each part of CrossVLT contributes, at small scale: the same run with one thing changed, over several seeds.

python examples/ablations.py run --jobs 2                 # variants of fusion and alignment, 8 seeds
python examples/ablations.py run --variants both,late --seeds 5 --steps 2000
python examples/ablations.py report                       # docs/ablations.md and its figures

Each run is `python -m crossvlt_hf train refshapes-64` in a process of its own, with one thread, on RefShapes at 64
pixels. All variants of a seed see the same images and expressions in the same order, for the same number of steps.
They are compared on the test split of RefShapes, on which nothing was selected. These are results on drawn shapes, not
on RefCOCO.

Results are kept in docs/ablations.json, and a run that is there is not repeated. An interrupted run goes on from its
last checkpoint.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

from scipy.stats import ttest_1samp

from crossvlt_hf.configuration_crossvlt import write_file


DOCS = Path(__file__).parents[1] / "docs"
REPORT, RESULTS, FOREST = DOCS / "ablations.md", DOCS / "ablations.json", DOCS / "ablations.png"
SIGNIFICANT = 0.05
TEST = {"name": "refshapes", "split": "test", "scenes": 500, "expressions": 2, "side": 64, "seed": 99}


@dataclass(frozen=True)
class Variant:
    """A change of the baseline: settings of the training run, and their meaning."""

    settings: tuple[str, ...]
    meaning: str


def _config(field: str, value: object) -> tuple[str, ...]:
    return (f"model.config.{field}={json.dumps(value)}",)


BASELINE = "both"
GROUPS: dict[str, dict[str, Variant]] = {
    "Direction of fusion": {
        "both": Variant((), "words attend to pixels, pixels to words (the paper)"),
        "words_to_pixels": Variant(
            _config("fusion_direction", "words_to_pixels"), "only pixels attend to words (LAVT)"
        ),
        "pixels_to_words": Variant(_config("fusion_direction", "pixels_to_words"), "only words attend to pixels"),
        "late": Variant(_config("fusion_direction", "late"), "only the maps of the decoder attend to words"),
    },
    "Stages with alignment": {
        "align-last": Variant(_config("alignment_stages", "last"), "only in stage 4"),
        "align-none": Variant(_config("alignment_stages", "none"), "in no stage"),
    },
    "Split of the language layers": {
        "split-front": Variant(_config("text_config.depths", [5, 1, 1, 1]), "5, 1, 1, 1 (as the paper's 6, 1, 1, 1)"),
        "split-even": Variant(_config("text_config.depths", [2, 2, 2, 2]), "2, 2, 2, 2"),
        "split-late": Variant(_config("text_config.depths", [1, 1, 1, 5]), "1, 1, 1, 5"),
    },
    "Training settings": {
        "no-dice": Variant(_config("dice_loss_weight", 0.0), "no Dice loss"),
        "temperature-1": Variant(
            _config("alignment_temperature", 1.0), "temperatures start at 1, as in the authors' code"
        ),
        "masking": Variant(
            ("data.masked_words=0.1", "data.masked_patches=0.1"), "10 % of words and patches are masked in training"
        ),
    },
}
# Baselines of groups, if not the common one
BASELINES = {"Split of the language layers": "split-front"}
MAIN = ("Direction of fusion", "Stages with alignment")  # tested together
VARIANTS = {name: variant for group in GROUPS.values() for name, variant in group.items()}


# ---- running


Row = dict[str, Any]  # of a run: `variant`, `seed`, `steps`, and its results
WRITING = Lock()


def load_results() -> list[Row]:
    """The finished runs."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else []


def keep(row: Row) -> None:
    """Add a finished run to the results."""
    with WRITING:
        rows = sorted([*load_results(), row], key=lambda each: (each["steps"], each["seed"], each["variant"]))
        text = "[\n" + ",\n".join(json.dumps(each) for each in rows) + "\n]\n"
        write_file(RESULTS, text.encode())


def train(name: str, seed: int, steps: int, folder: Path) -> None:
    """Train one variant with one seed, or go on with it, and measure it; nothing if that is done."""
    if any((row["variant"], row["seed"], row["steps"]) == (name, seed, steps) for row in load_results()):
        return
    run = folder / f"{name}-{seed}-{steps}"
    settings = [
        f"seed={seed}",
        f"optimization.max_steps={steps}",
        f"output.folder={run}",
        "output.pictures=0",
        f"output.evaluation_steps={steps}",
        f"output.checkpoint_steps={max(steps // 10, 1)}",
        "output.keep=1",
        "data.workers=0",
        "output.evaluation_batch_size=16",
    ]
    command = [sys.executable, "-m", "crossvlt_hf", "train", "refshapes-64", *settings, *VARIANTS[name].settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{run.name}.log").open("a") as log:
        subprocess.run([*command, "--resume"], check=True, env=environment, stdout=log, stderr=log)
        measured = subprocess.run(
            [sys.executable, __file__, "measure", str(run)],
            check=True,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    keep({"variant": name, "seed": seed, "steps": steps, **json.loads(measured.stdout)})


def measure(run: Path) -> None:
    """Print the results of a finished run on the test split as JSON."""
    from crossvlt_hf.data import load_data
    from crossvlt_hf.evaluation import EvaluationOptions, evaluate
    from crossvlt_hf.weights.checkpoint import load_checkpoint

    model, processor = load_checkpoint(run / "last")
    metric = evaluate(model, processor, load_data(**TEST), EvaluationOptions(batch_size=16, distractors=True))
    figures = metric.compute()
    result = {
        **{name: round(figures[name], 5) for name in ("mean_iou", "overall_iou", "right_object_rate")},
        "families": {name: round(row["mean_iou"], 5) for name, row in metric.compute_groups().items()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    print(json.dumps(result))


def run_all(names: list[str], seeds: int, steps: int, folder: Path, jobs: int) -> None:
    """Train all variants, seed by seed, so that what is finished at any time can be compared."""
    with ThreadPoolExecutor(jobs) as pool:
        tasks = [pool.submit(train, name, seed, steps, folder) for seed in range(seeds) for name in names]
        for task in tasks:
            task.result()


# ---- reporting


@dataclass(frozen=True)
class Comparison:
    """A variant against its baseline, over the seeds of both: differences of the mean IoU in points.

    Args:
        name: the variant.
        differences: one for each seed.
        adjusted: the p-value after Holm's correction for all comparisons that are tested together.
    """

    name: str
    differences: list[float]
    adjusted: float = 1.0

    @property
    def mean(self) -> float:
        """The effect."""
        return statistics.mean(self.differences)

    @property
    def p(self) -> float:
        """Two-sided p-value of the paired t-test."""
        return float(ttest_1samp(self.differences, 0).pvalue)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the mean, by Student's t."""
        interval = ttest_1samp(self.differences, 0).confidence_interval(0.95)
        return float(interval.low), float(interval.high)

    @property
    def standardised(self) -> float:
        """Cohen's d of paired values: the mean over the standard deviation of the differences."""
        return self.mean / statistics.stdev(self.differences)


def holm(p: list[float]) -> list[float]:
    """Adjust p-values of tests that are made together (Holm 1979)."""
    order = sorted(range(len(p)), key=p.__getitem__)
    adjusted, most = [0.0] * len(p), 0.0
    for rank, place in enumerate(order):
        most = max(most, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = most
    return adjusted


def values(rows: list[Row], name: str, key: str = "mean_iou") -> dict[int, float]:
    """Results of a variant by seed, in percent."""
    return {row["seed"]: 100 * row[key] for row in rows if row["variant"] == name}


def compare(rows: list[Row], titles: Sequence[str]) -> dict[str, Comparison]:
    """Compare variants of groups that are tested together with their baselines, if they share two seeds or more."""
    found = []
    for title in titles:
        base = values(rows, BASELINES.get(title, BASELINE))
        for name in members(title)[1:]:
            own = values(rows, name)
            seeds = sorted(base.keys() & own.keys())
            if len(seeds) >= 2:
                found.append(Comparison(name, [own[seed] - base[seed] for seed in seeds]))
    adjusted = holm([each.p for each in found])
    return {each.name: replace(each, adjusted=p) for each, p in zip(found, adjusted, strict=True)}


def members(title: str) -> list[str]:
    """The variants of a group, with its baseline first."""
    baseline = BASELINES.get(title, BASELINE)
    return [baseline, *(name for name in GROUPS[title] if name != baseline)]


def spread(numbers: Collection[float]) -> str:
    """Mean and standard deviation."""
    deviation = f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.1f}{deviation}"


def effect(comparison: Comparison | None) -> str:
    """Difference with its interval, standardised, and p-value, as cells of a table."""
    if comparison is None:
        return "- | - | -"
    low, high = comparison.interval
    sure = "**" if comparison.adjusted < SIGNIFICANT else ""
    difference = f"{sure}{comparison.mean:+.1f}{sure} [{low:+.1f}, {high:+.1f}]"
    p = f"{comparison.adjusted:.3f}" if comparison.adjusted >= 0.001 else "<0.001"
    return f"{difference} | {comparison.standardised:+.1f} | {p}"


def table(title: str, rows: list[Row], comparisons: dict[str, Comparison]) -> str:
    """A row for each variant that has results."""
    baseline, *_ = members(title)
    lines = [
        f"| variant | seeds | mean IoU | overall IoU | right object | parameters | against `{baseline}` | d | p |",
        "|---|---:|---:|---:|---:|---:|---|---:|---:|",
    ]
    for name in members(title):
        if not (found := values(rows, name)):
            continue
        cells = [spread(values(rows, name, key).values()) for key in ("mean_iou", "overall_iou", "right_object_rate")]
        size = next(row["parameters"] for row in rows if row["variant"] == name) / 1e6
        cells += [f"{size:.2f} M", effect(comparisons.get(name))]
        lines.append(f"| `{name}`: {VARIANTS[name].meaning} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(comparisons: dict[str, Comparison], path: Path) -> None:
    """Draw a forest plot: the effect of each variant with its interval, and the difference of each seed."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    shown = list(comparisons.values())[::-1]
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.5 * len(shown)))
    for height, each in enumerate(shown):
        low, high = each.interval
        colour = "tab:blue" if each.adjusted < SIGNIFICANT else "tab:grey"
        axes.plot([low, high], [height, height], color=colour, linewidth=2)
        axes.plot(each.mean, height, "s", color=colour, markersize=8)
        axes.plot(each.differences, [height - 0.22] * len(each.differences), "|", color="black", alpha=0.6)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(shown)), [f"{each.name} ({len(each.differences)} seeds)" for each in shown])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlabel("difference of the mean IoU from the baseline in points, 95 % interval; | single seeds")
    axes.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def report(steps: int) -> None:
    """Write `docs/ablations.md` and its figure."""
    rows = [row for row in load_results() if row["steps"] == steps]
    if not values(rows, BASELINE):
        raise SystemExit(f"There is no finished run of {BASELINE!r} with {steps} steps; run it first.")
    comparisons = compare(rows, MAIN)
    for title in GROUPS:
        comparisons |= {} if title in MAIN else compare(rows, [title])
    plot(comparisons, FOREST)
    parts = [INTRODUCTION.format(steps=steps, samples=32 * steps), f"![Effects]({FOREST.name})"]
    for title, group in GROUPS.items():
        if any(values(rows, name) for name in group):
            parts.append(f"## {title}\n\n{table(title, rows, comparisons)}")
    REPORT.write_text("\n\n".join(parts) + "\n")


INTRODUCTION = """\
# Ablations

Written by `python examples/ablations.py report` from [ablations.json](ablations.json). **On RefShapes, drawn
shapes of 64 pixels, not on RefCOCO**: a network of about 4.4 million parameters with random initial weights,
{steps} steps of 32 expressions ({samples:,} in total), on 2 CPU cores. All variants of a seed are trained on the
same images in the same order. Results on 1,000 expressions of 500 test scenes, in percent: mean ± standard
deviation over the seeds; difference of the mean IoU from the first row of the table with the same seed, with its
95 % interval, in bold where p < 0.05; Cohen's d of the paired differences; p-value of the paired t-test, with
Holm's correction over the comparisons of fusion and alignment together, and within each other table. `both` has
two-way fusion, alignment in all stages, language layers 2-1-1-1, Dice weight 0.5, and temperatures from 0.07."""


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "report", "measure"])
    parser.add_argument("run", nargs="?", type=Path, help="of `measure`: the folder of a finished run")
    usual = dict.fromkeys(name for title in MAIN for name in members(title))
    parser.add_argument("--variants", default=",".join(usual), help="of " + ", ".join(VARIANTS) + " (%(default)s)")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--folder", type=Path, default=Path("runs/ablations"))
    arguments = parser.parse_args()
    names = arguments.variants.split(",")
    if unknown := [name for name in names if name not in VARIANTS]:
        parser.error(f"there is no variant {unknown[0]}; there are {', '.join(VARIANTS)}")
    if arguments.action == "measure":
        measure(arguments.run)
    elif arguments.action == "run":
        run_all(names, arguments.seeds, arguments.steps, arguments.folder, arguments.jobs)
    else:
        report(arguments.steps)


if __name__ == "__main__":
    main()
