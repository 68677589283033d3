"""Curves of a training run: losses, learning rate and evaluations."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..visualization.canvas import FAINT, GREY, LITERAL, add_axes, add_text, clean, new_figure, one_line, to_image


if TYPE_CHECKING:
    from matplotlib.axes import Axes


LOSSES = {
    "loss": "loss",
    "mask_loss": "mask",
    "dice_loss": "Dice",
    "alignment_loss": "alignment",
    "presence_loss": "presence",
}
SCORES = {"validation/overall_iou": "overall IoU", "validation/mean_iou": "mean IoU"}
FAMILIES = "validation/families"
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # steps and values


def training_curves(run_folder: str | Path) -> Image.Image:
    """Draw the log of a run.

    Incomplete lines are left out, and values that are not finite leave gaps.

    Args:
        run_folder: folder of the run, with `log.jsonl`.

    Returns:
        New image of mode "RGB": loss and its terms, IoU on the validation data, learning rate, and the mean IoU of
        each family.

    Raises:
        FileNotFoundError: if there is no log.
        ModuleNotFoundError: without matplotlib, the extra `plot`.
        ValueError: if the log has no entries.
    """
    entries = _read_entries(Path(run_folder) / "log.jsonl")
    panels: tuple[tuple[str, dict[str, Curve], Callable[[Axes, dict[str, Curve]], None]], ...]
    panels = (
        ("Loss and its terms, training", _curves_of(entries, LOSSES), _scale_losses),
        ("IoU in percent, validation", _in_percent(_curves_of(entries, SCORES)), _scale_percent),
        ("Learning rate", _curves_of(entries, {"learning_rate": "learning rate"}), _scale_rate),
        ("Mean IoU of each kind of expression", _in_percent(_family_curves(entries)), _scale_percent),
    )
    figure = new_figure(11.5, 7.6)
    add_text(figure, 0.35, 0.18, one_line(Path(run_folder).resolve().name), fontsize=14, weight="bold")
    last = max(entry["step"] for entry in entries)
    for number, (title, curves, scale) in enumerate(panels):
        row, column = divmod(number, 2)
        axes = add_axes(figure, 0.75 + 5.6 * column, 0.9 + 3.5 * row, 4.75, 2.6)
        _draw_curves(axes, curves)
        axes.set_title(title, loc="left", fontsize=10.5, weight="bold")
        axes.set(xlim=(0, 1.02 * max(last, 1)))
        if curves:
            scale(axes, curves)
        if row == 1:
            axes.set_xlabel("step", fontsize=9, color=GREY)
    return to_image(figure)


def _read_entries(path: Path) -> list[dict[str, Any]]:
    from .log import read_log

    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; give the folder of a training run.")
    entries = [entry for entry in read_log(path) if isinstance(entry, dict) and _is_number(entry.get("step"))]
    if not entries:
        raise ValueError(f"{path} has no entries; wait until the run has logged a step.")
    return entries


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _curves_of(entries: list[dict[str, Any]], names: dict[str, str]) -> dict[str, Curve]:
    """The curves of the quantities in the log, by label; NaN for values that are not finite."""
    curves = {}
    for name, label in names.items():
        points = sorted({entry["step"]: entry[name] for entry in entries if entry.get(name) is not None}.items())
        values = np.array([value if _is_number(value) else np.nan for _, value in points], dtype=float)
        if np.isfinite(values).any():
            curves[label] = np.array([step for step, _ in points], dtype=float), values
    return curves


def _in_percent(curves: dict[str, Curve]) -> dict[str, Curve]:
    return {label: (steps, 100 * values) for label, (steps, values) in curves.items()}


def _family_curves(entries: list[dict[str, Any]]) -> dict[str, Curve]:
    found = [{"step": entry["step"], **entry[FAMILIES]} for entry in entries if isinstance(entry.get(FAMILIES), dict)]
    names = sorted({name for entry in found for name in entry} - {"step"})
    return _curves_of(found, {name: name for name in names})


def _draw_curves(axes: "Axes", curves: dict[str, Curve]) -> None:
    clean(axes)
    axes.grid(color=FAINT, linewidth=0.6)
    for number, (label, (steps, values)) in enumerate(curves.items()):
        marker = "o" if len(steps) <= 40 else None
        axes.plot(steps, values, marker=marker, markersize=2.5, linewidth=1.4, color=f"C{number % 10}", label=label)
    if len(curves) > 1:
        legend = axes.legend(frameon=False, fontsize=8, ncols=3 if len(curves) > 4 else 2)
        for text in legend.get_texts():
            text.update(LITERAL)
    if not curves:
        axes.text(0.5, 0.5, "nothing was logged", ha="center", color=GREY, transform=axes.transAxes)


def _scale_losses(axes: "Axes", curves: dict[str, Curve]) -> None:
    """Use a logarithmic scale, unless a value is not positive."""
    if all((values[np.isfinite(values)] > 0).all() for _, values in curves.values()):
        axes.set_yscale("log")


def _scale_percent(axes: "Axes", curves: dict[str, Curve]) -> None:
    """Scale from 0 to 100, and print the best values of metrics."""
    axes.set_ylim(0, 100)
    if set(curves) <= set(SCORES.values()):
        best = ", ".join(f"{label} {np.nanmax(values):.1f} %" for label, (_, values) in curves.items())
        axes.set_title(f"best: {best}", loc="right", fontsize=8, color=GREY)


def _scale_rate(axes: "Axes", curves: dict[str, Curve]) -> None:
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
