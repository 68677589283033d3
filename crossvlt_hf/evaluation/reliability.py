"""The reliability diagram of scores."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..metrics import percent
from ..visualization.canvas import FAINT, GREY, add_axes, add_text, clean, new_figure, one_line, to_image


if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = {
    "score": ("Score", "mean IoU of the masks, %"),
    "presence": ("Presence", "expressions with a target, %"),
}


def reliability_diagram(report: Mapping[str, Any], title: str = "") -> Image.Image:
    """Draw a report of `crossvlt_hf.evaluation.calibration.calibration_report`.

    Args:
        report: with "score", "presence" or both.
        title: of the figure.

    Returns:
        New image of mode "RGB": a panel for each, with a bar for the mean value of each bin, a point at its mean
        score, and the number of samples in each bin below.

    Raises:
        ModuleNotFoundError: without matplotlib, the extra `plot`.
        ValueError: if the report has neither.
    """
    found = [kind for kind in KINDS if report.get(kind)]
    if not found:
        raise ValueError('The report must have "score" or "presence".')
    figure = new_figure(0.9 + 4.4 * len(found), 5.6)
    add_text(figure, 0.35, 0.18, one_line(title), fontsize=13, weight="bold")
    for number, kind in enumerate(found):
        left = 0.85 + 4.4 * number
        _draw_bins(add_axes(figure, left, 1.0, 3.4, 3.0), kind, report)
        _draw_counts(add_axes(figure, left, 4.25, 3.4, 0.7), KINDS[kind][0], report[kind]["bins"])
    return to_image(figure)


def _draw_bins(axes: "Axes", kind: str, report: Mapping[str, Any]) -> None:
    name, value = KINDS[kind]
    bins: Sequence[Mapping[str, Any]] = report[kind]["bins"]
    if kind == "score":
        name = f"{name}, {'calibrated' if report.get('calibrated') else 'not calibrated'}"
    error = report[kind]["expected_calibration_error"]
    values = [100 * row["value"] for row in bins]
    axes.plot([0, 1], [0, 100], color=GREY, linewidth=1, linestyle="--")
    axes.bar(
        [row["low"] for row in bins],
        values,
        [row["high"] - row["low"] for row in bins],
        align="edge",
        color="#4c78a8",
        edgecolor="white",
    )
    axes.plot([row["score"] for row in bins], values, "o", color="black", markersize=4)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 100)
    axes.set_title(f"{name}: error {percent(error)} %", fontsize=11, loc="left")
    axes.set_ylabel(value, fontsize=9)


def _draw_counts(axes: "Axes", name: str, bins: Sequence[Mapping[str, Any]]) -> None:
    axes.bar(
        [row["low"] for row in bins],
        [row["samples"] for row in bins],
        [row["high"] - row["low"] for row in bins],
        align="edge",
        color=FAINT,
        edgecolor="white",
    )
    axes.set_xlim(0, 1)
    axes.set_xlabel(name.lower(), fontsize=9)
    axes.set_ylabel("samples", fontsize=9)
    clean(axes)
