"""Statistics and report of examples/ablations.py on made-up results; its hours of training are not for a test."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest


@pytest.fixture
def ablations(tmp_path, monkeypatch):
    path = Path(__file__).parents[2] / "examples" / "ablations.py"
    spec = importlib.util.spec_from_file_location("ablations_example", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look it up
    spec.loader.exec_module(module)
    for name in ("REPORT", "RESULTS", "FOREST"):
        monkeypatch.setattr(module, name, tmp_path / getattr(module, name).name)
    return module


def row(variant, seed, mean_iou, steps=1000):
    figures = {"mean_iou": mean_iou, "overall_iou": mean_iou - 0.05, "right_object_rate": 0.8}
    return {"variant": variant, "seed": seed, "steps": steps, **figures, "families": {}, "parameters": 4_360_000}


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([], []),
        ([0.2], [0.2]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([0.001, 0.02, 0.02, 0.5], [0.004, 0.06, 0.06, 0.5]),
    ],
    ids=str,
)
def test_holm(ablations, p, adjusted):
    assert ablations.holm(p) == pytest.approx(adjusted)


def test_only_shared_seeds_are_compared(ablations):
    rows = [row("both", seed, 0.5 + seed / 100) for seed in range(4)]
    rows += [row("late", seed, 0.4 + seed / 50) for seed in (1, 2, 3, 9)] + [row("align-none", 0, 0.1)]
    found = ablations.compare(rows, ablations.MAIN)
    assert found.keys() == {"late"}  # one seed is not enough
    assert found["late"].differences == pytest.approx([-9, -8, -7])
    assert found["late"].mean == pytest.approx(-8)
    assert found["late"].interval == pytest.approx((-8 - 2.484, -8 + 2.484), abs=1e-3)  # t of 2 degrees: 4.303
    assert found["late"].standardised == pytest.approx(-8)
    assert found["late"].p == pytest.approx(0.00517, abs=1e-4)


def test_results_are_kept_and_not_repeated(ablations, tmp_path):
    for seed in (1, 0):
        ablations.keep(row("both", seed, 0.5))
    assert [each["seed"] for each in ablations.load_results()] == [0, 1]
    ablations.train("both", 0, 1000, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_report(ablations):
    with pytest.raises(SystemExit, match="no finished run of 'both'"):
        ablations.report(1000)
    rows = [row("both", seed, 0.5 + seed / 100) for seed in range(8)]
    rows += [row("late", seed, 0.4 + seed / 90) for seed in range(8)]
    rows += [row("align-none", seed, 0.5 + (seed + seed % 3 - 1) / 100) for seed in range(8)]
    rows += [row("both", 0, 0.9, steps=7)]
    ablations.RESULTS.write_text(json.dumps(rows))
    ablations.report(1000)
    lines = ablations.REPORT.read_text().splitlines()
    (both,) = [line for line in lines if line.startswith("| `both`") and "53.5 ± 2.4" in line][:1]
    assert "| 8 | 53.5 ± 2.4 | 48.5 ± 2.4 | 80.0 ± 0.0 | 4.36 M | - | - | - |" in both
    assert any("`late`" in line and "**-9.6** [-9.8, -9.4]" in line and "| <0.001 |" in line for line in lines)
    assert any("`align-none`" in line and "-0.1 [" in line and "**" not in line for line in lines)
    assert ablations.FOREST.stat().st_size > 1000
