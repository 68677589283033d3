"""Reports as values of JSON, and as tables."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .cases import Case
from .machine import Probe
from .timing import median_ratio, summarise


if TYPE_CHECKING:
    from .run import Findings


MEBIBYTE = 1024**2


def describe_probe(probe: Probe, samples: Sequence[float]) -> dict[str, Any]:
    """Describe the peak performance of the machine in a computation."""
    seconds = summarise(samples)
    return {
        "kind": probe.kind,
        "device": probe.device,
        "dtype": probe.dtype,
        "shape": list(probe.shape),
        "flops": probe.flops,
        "seconds": seconds,
        "flops_per_second": probe.flops / seconds["p50"],
    }


def describe_case(case: Case, found: "Findings", probes: Sequence[Probe]) -> dict[str, Any]:
    """Describe a case with all its measurements."""
    described: dict[str, Any] = {
        **case.to_dict(),
        "label": case.label,
        "parameters": found.parameters.get(case),
        "flops": found.flops.get(case),
        "memory": found.memory.get(case),
        "agreement": found.agreement.get(case),
    }
    if case in found.samples:
        described |= _describe_speed(case, found, probes)
    return described


def _describe_speed(case: Case, found: "Findings", probes: Sequence[Probe]) -> dict[str, Any]:
    seconds, flops = summarise(found.samples[case]), found.flops[case]
    return {
        "seconds": seconds,
        "first_call_seconds": found.first[case],
        "images_per_second": case.batch / seconds["p50"],
        "expressions_per_second": case.batch * case.expressions / seconds["p50"],
        "flops_per_second": flops / seconds["p50"],
        "fraction_of_peak": _fractions(case, found, probes),
    }


def _fractions(case: Case, found: "Findings", probes: Sequence[Probe]) -> dict[str, float]:
    """Operations per second as a fraction of the peak of the machine, by kind of probe.

    Each time is compared with the peak in the same round.
    """
    return {
        probe.kind: found.flops[case] / probe.flops * median_ratio(found.samples[probe], found.samples[case])
        for probe in probes
        if (probe.device, probe.dtype) == (case.device, case.peak_dtype)
    }


FEW_ROWS = 1000
FEW_ROWS_NOTE = (
    f"With fewer than {FEW_ROWS:,} rows, the share of the model's rate is too high, also above 100 %: while the model "
    "runs alone, the worker loads the next rows."
)


def format_report(report: dict[str, Any]) -> str:
    """Format the tables of a report in Markdown."""
    tables = [
        ("Models", _model_rows(report)),
        ("Peak of this machine", _peak_rows(report)),
        ("Cases", _case_rows(report)),
        ("Where the time goes", _phase_rows(report)),
        ("Prediction", _prediction_rows(report)),
        ("Not measured", [{"case": row["label"], "reason": row["reason"]} for row in report["skipped"]]),
    ]
    text = [f"**{title}**\n\n{_table(rows)}" for title, rows in tables if rows]
    if any(entry["workers"] and entry["rows"] < FEW_ROWS for entry in report["predictions"]):
        text.append(FEW_ROWS_NOTE)
    return "\n\n".join(text)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table, without empty columns."""
    titles = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
    titles = [title for title in titles if any(row.get(title) is not None for row in rows)]
    cells = [
        ["-" if row.get(title) is None else str(row[title]).replace("|", "/") for title in titles] for row in rows
    ]
    lines = [titles, ["---"] * len(titles), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _model_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "model": row["model"],
            "parameters (M)": f"{row['parameters'] / 1e6:.1f}",
            "pixels": _size(row["size"]),
            "GFLOP": f"{sum(row['flops_by_part'].values()) / 1e9:.1f}",
            "weights": "random" if row["random_weights"] else "trained",
            **_loading_columns(row["loading"]),
        }
        for row in report["models"]
    ]


def _loading_columns(loading: dict[str, Any] | None) -> dict[str, str]:
    if loading is None:
        return {}
    return {
        "load (s)": f"{loading['load_seconds']['p50']:.3f}",
        "read the file (s)": f"{loading['read_seconds']['p50']:.3f}",
        "load / read": f"{loading['load_over_read']:.2f}",
        "peak of loading (MiB)": _mebibytes(loading["peak_bytes"]),
        "file (MiB)": _mebibytes(loading["file_bytes"]),
    }


def _peak_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "computation": f"{row['kind']} {'x'.join(map(str, row['shape']))}",
            "device": row["device"],
            "dtype": row["dtype"],
            "p50 (ms)": _milliseconds(row["seconds"]["p50"]),
            "p90 (ms)": _milliseconds(row["seconds"]["p90"]),
            "GFLOP/s": f"{row['flops_per_second'] / 1e9:.0f}",
        }
        for row in report["peaks"]
    ]


def _phase_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for entry in report["phases"]:
        medians = {phase: seconds["p50"] for phase, seconds in entry["seconds"].items()}
        for phase, seconds in medians.items():
            share = f"{100 * seconds / sum(medians.values()):.0f} %"
            what = {"model": entry["model"], "journey": entry["journey"], "phase": phase}
            rows.append({**what, "p50 (ms)": _milliseconds(seconds), "share": share})
    return rows


def _prediction_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            **{name: entry[name] for name in ("model", "rows", "batch", "workers")},
            "seconds": f"{entry['seconds']:.0f}",
            "rows/s": f"{entry['rows_per_second']:.3g}",
            "model alone (rows/s)": f"{entry['model_rows_per_second']:.3g}",
            "of the model's rate": f"{100 * entry['fraction_of_model']:.0f} %",
            "of its CPU time": f"{100 * entry['fraction_of_model_cpu']:.0f} %",
            "memory after a tenth, without files (MiB)": _mebibytes(entry["early_bytes"]),
            "at the end (MiB)": _mebibytes(entry["final_bytes"]),
            "highest (MiB)": _mebibytes(entry["peak_bytes"]),
            "rows written once": entry["rows_once"],
        }
        for entry in report["predictions"]
    ]


# Columns that are only shown if their values differ
OPTIONAL = ("device", "attention", "compiled", "checkpointing", "tokens")


def _case_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    cases = report["cases"]
    varying = [axis for axis in OPTIONAL if len({case[axis] for case in cases}) > 1]
    exported = any(case["backend"] != "torch" for case in cases)
    return [
        {
            "model": case["model"],
            "task": case["task"],
            "backend": case["backend"] if exported else None,
            "dtype": case["dtype"],
            **{axis: _word(case[axis]) for axis in varying},
            "pixels": _size(case["size"]),
            "batch": case["batch"],
            "expressions": case["expressions"],
            "GFLOP": None if case["flops"] is None else f"{case['flops'] / 1e9:.1f}",
            **_time_columns(case),
            **_memory_columns(case["memory"]),
            **_agreement_columns(case["agreement"]),
        }
        for case in cases
    ]


def _time_columns(case: dict[str, Any]) -> dict[str, str]:
    if "seconds" not in case:
        return {}
    titles = {"matrix product": "of matrix peak", "3x3 convolution": "of convolution peak"}
    fractions = {titles[kind]: f"{100 * value:.0f} %" for kind, value in case["fraction_of_peak"].items()}
    return {
        "p50 (ms)": _milliseconds(case["seconds"]["p50"]),
        "p90 (ms)": _milliseconds(case["seconds"]["p90"]),
        "images/s": f"{case['images_per_second']:.3g}",
        **fractions,
    }


def _memory_columns(memory: dict[str, Any] | None) -> dict[str, str]:
    if memory is None:
        return {}
    return {
        "weights (MiB)": _mebibytes(memory["weights_bytes"]),
        "loaded (MiB)": _mebibytes(memory["loaded_bytes"]),
        "peak (MiB)": _mebibytes(memory["peak_bytes"]),
    }


def _agreement_columns(agreement: dict[str, float] | None) -> dict[str, str]:
    if agreement is None:
        return {}
    return {
        "rms error (%)": f"{100 * agreement['rms_error']:.2g}",
        "equal mask pixels (%)": f"{100 * agreement['equal_pixels']:.3f}",
    }


def _word(value: Any) -> Any:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def _size(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


def _mebibytes(count: int) -> str:
    return f"{count / MEBIBYTE:.0f}"
