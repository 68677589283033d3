"""Plot a report: time and memory over image size, expressions and batch, or the phases of journeys."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..visualization.canvas import FAINT, GREY, add_axes, add_text, clean, new_figure, one_line, to_image
from .cases import SCALES


if TYPE_CHECKING:
    from matplotlib.axes import Axes


TITLES = {"size": "image side (pixels)", "expressions": "expressions per image", "batch": "images in the batch"}
# Fields that distinguish curves; the legend has those that differ
TOLD = ("model", "task", "backend", "device", "dtype", "attention", "compiled", "checkpointing", *SCALES, "tokens")
Series = dict[tuple[Any, ...], list[dict[str, Any]]]
Measure = Callable[[dict[str, Any]], float | None]


def scaling_figure(report: dict[str, Any]) -> Image.Image:
    """Draw a report.

    Args:
        report: result of `run_benchmark`.

    Returns:
        New image of mode "RGB": curves of time (above) and peak memory (below), with a column for each of image size,
        expressions and batch that has several values; bars if there are none; without cases, a stacked bar of the
        phases of each journey.

    Raises:
        ModuleNotFoundError: without matplotlib, the extra `plot`.
    """
    if not report["cases"]:
        return _phases(report)
    measures = [(title, measure) for title, measure in MEASURES if any(measure(case) for case in report["cases"])]
    axes = {axis: series for axis in SCALES if (series := _series(report["cases"], axis))}
    return _curves(report, axes, measures) if axes else _bars(report, measures)


def _milliseconds(case: dict[str, Any]) -> float | None:
    return 1000 * case["seconds"]["p50"] if "seconds" in case else None


def _mebibytes(case: dict[str, Any]) -> float | None:
    return None if case["memory"] is None else case["memory"]["peak_bytes"] / 2**20


MEASURES: list[tuple[str, Measure]] = [("time (ms), median", _milliseconds), ("peak memory (MiB)", _mebibytes)]


def _series(cases: list[dict[str, Any]], axis: str) -> Series:
    """Groups of several cases that only differ in the axis, by the other fields."""
    series: Series = {}
    for case in cases:
        key = tuple(_hashable(case[name]) for name in TOLD if name != axis)
        series.setdefault(key, []).append(case)
    return {
        key: sorted(found, key=lambda case: _position(case, axis)) for key, found in series.items() if len(found) > 1
    }


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _position(case: dict[str, Any], axis: str) -> float:
    """The position of a case on an axis; for the size, the square root of the area."""
    return math.sqrt(math.prod(case["size"])) if axis == "size" else case[axis]


def _curves(report: dict[str, Any], axes: dict[str, Series], measures: list[tuple[str, Measure]]) -> Image.Image:
    figure = new_figure(0.6 + 4.6 * len(axes), 1.15 + 3.5 * len(measures))
    add_text(figure, 0.35, 0.18, _title(report), fontsize=11, weight="bold")
    for column, (axis, series) in enumerate(axes.items()):
        for row, (title, measure) in enumerate(measures):
            panel = add_axes(figure, 0.75 + 4.6 * column, 0.95 + 3.5 * row, 3.75, 2.6)
            panel.set_title(title, loc="left", fontsize=10, weight="bold")
            panel.set_xlabel(TITLES[axis], fontsize=9, color=GREY)
            _draw_panel(panel, axis, series, measure)
    return to_image(figure)


def _draw_panel(panel: "Axes", axis: str, series: Series, measure: Measure) -> None:
    clean(panel)
    panel.grid(color=FAINT, linewidth=0.6)
    for number, (key, cases) in enumerate(series.items()):
        points = [(_position(case, axis), value) for case in cases if (value := measure(case)) is not None]
        label = _legend(key, list(series), axis)
        panel.plot(
            *zip(*points, strict=True), marker="o", markersize=4, linewidth=1.5, color=f"C{number % 10}", label=label
        )
    places = sorted({_position(case, axis) for cases in series.values() for case in cases})
    panel.set_xticks(places, [f"{place:g}" for place in places])
    panel.set_ylim(bottom=0)
    panel.set_xlim(left=0)
    if len(series) > 1:
        panel.legend(frameon=False, fontsize=7.5)


def _legend(key: tuple[Any, ...], keys: list[tuple[Any, ...]], axis: str) -> str:
    """The fields that distinguish a curve from the others."""
    names = [name for name in TOLD if name != axis]
    told = [place for place in range(len(names)) if len({other[place] for other in keys}) > 1]
    return ", ".join(_say(names[place], key[place]) for place in told)


def _say(name: str, value: Any) -> str:
    if name == "size":
        return "x".join(map(str, value))
    if isinstance(value, bool):
        return name if value else f"not {name}"
    return f"{name} {value}" if name in SCALES or name == "tokens" else one_line(str(value))


def _bars(report: dict[str, Any], measures: list[tuple[str, Measure]]) -> Image.Image:
    cases = report["cases"]
    labels = [one_line(case["label"]) for case in cases]
    height = 0.35 * len(cases)
    figure = new_figure(5.6 + 3.2 * len(measures), 1.5 + height)
    add_text(figure, 0.35, 0.18, _title(report), fontsize=11, weight="bold")
    for column, (title, measure) in enumerate(measures):
        panel = add_axes(figure, 5.0 + 3.2 * column, 0.95, 2.6, height)
        clean(panel)
        values = [measure(case) or 0 for case in cases]
        drawn = panel.barh(range(len(cases)), values, height=0.6)
        panel.bar_label(drawn, fmt="%.0f", fontsize=8, padding=3)
        panel.set_yticks(range(len(cases)), labels if column == 0 else [""] * len(cases))
        panel.invert_yaxis()
        panel.margins(x=0.2)
        panel.set_title(title, loc="left", fontsize=10, weight="bold")
    return to_image(figure)


def _phases(report: dict[str, Any]) -> Image.Image:
    entries = report["phases"]
    figure = new_figure(9.5, 0.7 + 0.95 * len(entries))
    add_text(figure, 0.35, 0.18, _title(report), fontsize=11, weight="bold")
    several = len(report["models"]) > 1
    for row, entry in enumerate(entries):
        seconds = {phase: summary["p50"] for phase, summary in entry["seconds"].items()}
        name = f"{entry['model']}: {entry['journey']}" if several else entry["journey"]
        total = f"{1000 * sum(seconds.values()):,.0f} ms"
        add_text(figure, 0.35, 0.6 + 0.95 * row, f"{one_line(name)}: {total}", fontsize=9.5)
        panel = add_axes(figure, 0.35, 0.82 + 0.95 * row, 8.8, 0.26)
        panel.set_axis_off()
        _draw_phases(panel, seconds)
    return to_image(figure)


def _draw_phases(panel: "Axes", seconds: dict[str, float]) -> None:
    """A bar of phases, with their shares in a legend below."""
    left, total = 0.0, sum(seconds.values())
    for number, (phase, length) in enumerate(seconds.items()):
        colour = GREY if phase == "other" else f"C{number}"
        label = f"{phase} {100 * length / total:.0f} %"
        panel.barh(0, length, left=left, height=1, color=colour, edgecolor="white", label=label)
        left += length
    panel.set_xlim(0, total)
    panel.legend(
        loc="upper left",
        bbox_to_anchor=(-0.01, 0.0),
        ncols=len(seconds),
        frameon=False,
        fontsize=7.5,
        handlelength=0.8,
    )


def _title(report: dict[str, Any]) -> str:
    machine = report["machine"]
    models = ", ".join(dict.fromkeys(row["model"] for row in report["models"]))
    return one_line(f"{models} on {', '.join(machine['gpus']) or machine['processor']}, {machine['threads']} threads")
