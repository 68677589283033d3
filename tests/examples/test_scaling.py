"""The table generator of docs/scaling.md, and that the document has its figures."""

from pathlib import Path

import pytest
from test_examples import run

from crossvlt_hf import CrossVLTConfig
from crossvlt_hf.benchmark.flops import count_flops, count_parameters


DOCUMENT = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()


def rows(printed: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if "|" in line]


@pytest.mark.slow
def test_the_document_has_what_the_script_prints(tmp_path):
    printed = run("scaling.py", folder=tmp_path)
    trained, *_ = (row for row in rows(printed) if row[0] == "1")
    assert trained[1:3] == ["7.3", "0.9"]
    assert "| 1 | 7.3 | 0.9 | none | 15 | GPU |" in DOCUMENT
    billion = next(row for row in rows(printed) if row[1] == "1,197.8")
    assert billion[-1] == "GPU"
    assert "1,198 | 597 | 1,198 | 2,396" in DOCUMENT
    for figure in ("64 pairs/s", "232 pairs/s", "31 ms", "188 ms", "73 pairs/s"):
        assert figure in printed
        assert figure in DOCUMENT


@pytest.mark.slow
def test_ones_own_figures(tmp_path):
    """A measured rate replaces peak and utilisation; with few cores the CPUs are the bottleneck."""
    printed = run("scaling.py", "--pairs-per-second", 1000, "--cores", 2, folder=tmp_path)
    million = next(row for row in rows(printed) if row[1] == "0.3")
    assert million[-1] == "CPU cores"
    assert "One GPU labels 1,000 pairs/s" in printed


def test_what_is_counted():
    config = CrossVLTConfig.from_size("base")
    assert f"{count_flops(config, (480, 480)) / 1e9:.1f} (856.0) GFLOP" in DOCUMENT
    assert f"{count_parameters(config) / 1e6:.1f} (388.0) million" in DOCUMENT
