"""Paired comparisons of runs: effects, intervals, tests, and their forest plot."""

import math
import statistics
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scipy.stats import ttest_1samp

from crossvlt_hf.visualization.canvas import new_figure


SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Comparison:
    """A variant against its baseline, over their pairs: differences of a metric in points.

    Args:
        name: the variant.
        differences: one for each pair.
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
        """Cohen's d of paired values: the mean over the standard deviation of the differences, which may be 0."""
        spread = statistics.stdev(self.differences)
        if self.mean == 0:
            return 0.0
        return self.mean / spread if spread else math.copysign(math.inf, self.mean)

    @property
    def decided(self) -> bool:
        """Whether the difference is significant."""
        return self.adjusted < SIGNIFICANT


def holm(p: list[float]) -> list[float]:
    """Adjust p-values of tests that are made together (Holm 1979)."""
    order = sorted(range(len(p)), key=p.__getitem__)
    adjusted, most = [0.0] * len(p), 0.0
    for rank, place in enumerate(order):
        most = max(most, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = most
    return adjusted


Values = Mapping[Hashable, float]  # of a variant: a metric in percent, by what makes a pair, such as the seed


def compare(pairs: Mapping[str, tuple[Values, Values]]) -> dict[str, Comparison]:
    """Compare variants that are tested together.

    Args:
        pairs: for each variant its own values and those of its baseline. Only values of the same key are compared;
            variants with fewer than two such pairs are left out.
    """
    found = []
    for name, (own, base) in pairs.items():
        both = [key for key in own if key in base]
        if len(both) >= 2:
            found.append(Comparison(name, [own[key] - base[key] for key in both]))
    adjusted = holm([each.p for each in found])
    return {each.name: replace(each, adjusted=p) for each, p in zip(found, adjusted, strict=True)}


def spread(numbers: Collection[float]) -> str:
    """Mean and standard deviation."""
    deviation = f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.1f}{deviation}"


def effect(comparison: Comparison | None) -> str:
    """Difference with its interval, standardised, and p-value, as cells of a table."""
    if comparison is None:
        return "- | - | -"
    low, high = comparison.interval
    sure = "**" if comparison.decided else ""
    difference = f"{sure}{comparison.mean:+.1f}{sure} [{low:+.1f}, {high:+.1f}]"
    p = f"{comparison.adjusted:.3f}" if comparison.adjusted >= 0.001 else "<0.001"
    return f"{difference} | {comparison.standardised:+.1f} | {p}"


def plot(groups: Mapping[str, Sequence[Comparison]], path: Path) -> None:
    """Draw a forest plot: the effect of each variant with its interval, and the difference of each pair.

    Args:
        groups: comparisons by the title of their panel.
        path: of the PNG.
    """
    shown = {title: list(each)[::-1] for title, each in groups.items() if each}
    heights = [len(each) for each in shown.values()]
    figure = new_figure(8, 1.2 + 0.5 * sum(heights) + 0.4 * len(shown))
    panels = figure.subplots(len(shown), sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, (title, comparisons) in zip(panels[:, 0], shown.items(), strict=True):
        for height, each in enumerate(comparisons):
            low, high = each.interval
            colour = "tab:blue" if each.decided else "tab:grey"
            axes.plot([low, high], [height, height], color=colour, linewidth=2)
            axes.plot(each.mean, height, "s", color=colour, markersize=8)
            axes.plot(each.differences, [height - 0.22] * len(each.differences), "|", color="black", alpha=0.6)
        axes.axvline(0, color="black", linewidth=1)
        axes.set_yticks(range(len(comparisons)), [f"{e.name} ({len(e.differences)} pairs)" for e in comparisons])
        axes.set_ylim(-0.6, len(comparisons) - 0.4)
        axes.set_title(title, loc="left", fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    panels[-1, 0].set_xlabel("difference of the mean IoU from the baseline in points, 95 % interval; | single pairs")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
