"""What each part of CrossVLT contributes, at small scale: the same run with one thing changed, over several seeds.

python examples/ablations.py run --jobs 2                 # every variant, 3 seeds; finished runs are not run again
python examples/ablations.py run --variants both,late --seeds 5 --steps 2000
python examples/ablations.py report                       # docs/ablations.md and its plots from what is finished

Each run is `python -m crossvlt_hf train refshapes-64` in a process of its own, with one thread, on
RefShapes at 64 pixels. All variants of a seed see the same pictures and expressions in the same order, for the same
number of steps. They are compared on RefShapes' test split, which no choice was made on. These are results on drawn
shapes, not on RefCOCO.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path


REPORT = Path(__file__).parents[1] / "docs" / "ablations.md"
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
VARIANTS = {name: variant for group in GROUPS.values() for name, variant in group.items()}


# ---- running


def train(name: str, seed: int, steps: int, folder: Path) -> None:
    """Train one variant with one seed, or go on with it, and measure it; nothing if that is done."""
    run = folder / f"{name}-{seed}-{steps}"
    if (run / "result.json").is_file():
        return
    settings = [
        f"seed={seed}",
        f"optimization.max_steps={steps}",
        f"output.folder={run}",
        "output.pictures=0",
        f"output.evaluation_steps={max(steps // 6, 1)}",
        "output.keep=1",
        "data.workers=0",
        "output.evaluation_batch_size=16",
    ]
    command = [sys.executable, "-m", "crossvlt_hf", "train", "refshapes-64", *settings, *VARIANTS[name].settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{run.name}.log").open("a") as log:
        subprocess.run([*command, "--resume"], check=True, env=environment, stdout=log, stderr=log)
    measure = [sys.executable, __file__, "measure", str(run)]
    subprocess.run(measure, check=True, env=environment)


def measure(run: Path) -> None:
    """Write the figures of a finished run on the test split."""
    from crossvlt_hf.data import load_data
    from crossvlt_hf.evaluation import EvaluationOptions, evaluate
    from crossvlt_hf.weights.checkpoint import load_checkpoint

    model, processor = load_checkpoint(run / "last")
    metric = evaluate(model, processor, load_data(**TEST), EvaluationOptions(batch_size=16, distractors=True))
    result = {
        **metric.compute(),
        "families": {name: row["mean_iou"] for name, row in metric.compute_groups().items()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    (run / "result.json").write_text(json.dumps(result, indent=1) + "\n")


def run_all(names: list[str], seeds: int, steps: int, folder: Path, jobs: int) -> None:
    """Train all variants, seed by seed, so that what is finished at any time can be compared."""
    with ThreadPoolExecutor(jobs) as pool:
        tasks = [pool.submit(train, name, seed, steps, folder) for seed in range(seeds) for name in names]
        for task in tasks:
            task.result()


# ---- reporting


def load_results(folder: Path) -> dict[tuple[str, int, int], dict]:
    """Results by variant, seed and number of steps."""
    results = {}
    for path in folder.glob("*/result.json"):
        name, seed, steps = path.parent.name.rsplit("-", 2)
        results[name, int(seed), int(steps)] = json.loads(path.read_text())
    return results


def spread(values: list[float]) -> float:
    """The standard deviation over seeds; 0 for one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def verdict(values: list[float], baseline: list[float]) -> str:
    """Whether the paired differences from the baseline stand out from their own spread."""
    differences = [value - other for value, other in zip(values, baseline, strict=True)]
    if len(differences) < 3:
        return f"too few seeds ({100 * statistics.mean(differences):+.1f})"
    error = spread(differences) / math.sqrt(len(differences))
    mean = statistics.mean(differences)
    # two-sided 95 % of Student's t with n - 1 degrees of freedom
    critical = {3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}.get(len(differences), 2.3)
    if abs(mean) <= critical * error:
        same = sum((difference > 0) == (mean > 0) for difference in differences)
        return f"{100 * mean:+.1f}, inside the spread ({same} of {len(differences)} seeds)"
    return f"**{100 * mean:+.1f}**"


def members(title: str) -> list[str]:
    """The variants of a group, with its baseline first."""
    baseline = BASELINES.get(title, BASELINE)
    return [baseline, *(name for name in GROUPS[title] if name != baseline)]


def table(title: str, results: dict, steps: int) -> str:
    """A row for each variant that has results: mean and spread over the seeds it shares with the baseline."""
    baseline, *_ = members(title)
    lines = [
        f"| variant | seeds | mean IoU | overall IoU | right object | parameters | mean IoU against `{baseline}` |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for name in members(title):
        seeds = [s for s in range(99) if (name, s, steps) in results and (baseline, s, steps) in results]
        if not seeds:
            continue
        rows = [results[name, seed, steps] for seed in seeds]
        base = [results[baseline, seed, steps]["mean_iou"] for seed in seeds]
        cells = []
        for key in ("mean_iou", "overall_iou", "right_object_rate"):
            values = [100 * row[key] for row in rows]
            cells.append(f"{statistics.mean(values):.1f}" + (f" ± {spread(values):.1f}" if len(values) > 1 else ""))
        cells.append(f"{rows[0]['parameters'] / 1e6:.2f} M")
        cells.append("-" if name == baseline else verdict([row["mean_iou"] for row in rows], base))
        lines.append(f"| `{name}`: {VARIANTS[name].meaning} | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(title: str, folder: Path, steps: int, path: Path) -> None:
    """Mean IoU on validation data over the run, mean and range over the seeds of every variant."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2))
    for name in members(title):
        curves = []
        for result in sorted(folder.glob(f"{name}-[0-9]*-{steps}/result.json")):  # of finished runs
            log = result.with_name("log.jsonl")
            entries = {
                e["step"]: e for e in map(json.loads, log.read_text().splitlines()) if "validation/mean_iou" in e
            }
            curves.append({step: entry["validation/mean_iou"] for step, entry in entries.items()})
        shared = sorted(set.intersection(*map(set, curves))) if curves else []
        if not shared:
            continue
        values = [[100 * curve[step] for curve in curves] for step in shared]
        (line,) = axes.plot(shared, [statistics.mean(v) for v in values], marker="o", markersize=3, label=name)
        axes.fill_between(shared, list(map(min, values)), list(map(max, values)), color=line.get_color(), alpha=0.15)
    axes.set(
        xlabel="steps of 32 expressions",
        ylabel="mean IoU in percent, RefShapes validation",
        title=title,
        ylim=(0, 100),
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def report(folder: Path, steps: int) -> None:
    """Write `docs/ablations.md` and its plots."""
    results = load_results(folder)
    if (BASELINE, 0, steps) not in results:
        raise SystemExit(f"There is no finished run of {BASELINE!r} with {steps} steps in {folder}; run it first.")
    parts = [INTRODUCTION.format(steps=steps, samples=32 * steps)]
    for title, group in GROUPS.items():
        if not any(name in group for name, _, found in results if found == steps):
            continue
        picture = f"ablations-{title.lower().replace(' ', '-')}.png"
        plot(title, folder, steps, REPORT.parent / picture)
        parts.append(f"## {title}\n\n{table(title, results, steps)}\n\n![{title}]({picture})")
    REPORT.write_text("\n\n".join(parts) + "\n")


INTRODUCTION = """\
# Ablations

Written by `python examples/ablations.py report`. **On RefShapes, drawn shapes of 64 pixels, not on RefCOCO**: a
network of about 4.4 million parameters with random initial weights, {steps} steps of 32 expressions ({samples:,} in
total), on 2 CPU cores. All variants of a seed are trained on the same images in the same order. Results on 1,000
expressions of 500 test scenes: mean ± standard deviation over the seeds, in percent. The last column is the mean
difference from the first row with the same seed, in bold if it is significant (two-sided t-test, 95 %), otherwise
marked as inside the spread, with the number of seeds with the same sign. Three seeds only show large differences.
`both` has two-way fusion, alignment in all stages, language layers 2-1-1-1, Dice
weight 0.5, and temperatures from 0.07."""


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "report", "measure"])
    parser.add_argument("run", nargs="?", type=Path, help="of `measure`: the folder of a finished run")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="(%(default)s)")
    parser.add_argument("--seeds", type=int, default=3)
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
        report(arguments.folder, arguments.steps)


if __name__ == "__main__":
    main()
