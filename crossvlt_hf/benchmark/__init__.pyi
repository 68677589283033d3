from .cases import Case as Case
from .cases import Grid as Grid
from .cases import Options as Options
from .flops import count_flops as count_flops
from .flops import count_parameters as count_parameters
from .plot import scaling_figure as scaling_figure
from .report import format_report as format_report
from .run import run_benchmark as run_benchmark
