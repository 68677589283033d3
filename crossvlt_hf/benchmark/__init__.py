"""Speed, memory and size of models on this machine: what `crossvlt benchmark` does.

`run_benchmark(Options(...))` gives the report as a dict, `format_report` its tables, `scaling_figure` its plot.
"""

from .cases import Case, Grid
from .plot import scaling_figure
from .report import format_report
from .run import Options, run_benchmark


__all__ = ["Case", "Grid", "Options", "format_report", "run_benchmark", "scaling_figure"]
