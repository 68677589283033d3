"""Train a CrossVLT.

accelerate launch -m crossvlt_hf.training refcoco model.image_size=448      # a configuration of the package
accelerate launch -m crossvlt_hf.training my.yaml optimization.batch_size=24
accelerate launch -m crossvlt_hf.training my.yaml --resume                  # after an interruption
"""

import argparse
import signal
import sys
from collections.abc import Sequence

from huggingface_hub.errors import StrictDataclassError

from ..system import InterruptionError, in_one_line
from .config import load_config
from .run import TrainingRun


def main(argv: Sequence[str] | None = None) -> int:
    """Train; wrong input is told in one line, with exit code 2; 128 and the signal's number if asked to end."""
    parser = argparse.ArgumentParser(
        prog="crossvlt_hf.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="a YAML file, or the name of a configuration of the package")
    parser.add_argument("settings", nargs="*", metavar="name=value", help="settings to override")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    arguments = parser.parse_intermixed_args(argv)
    try:
        TrainingRun(load_config(arguments.config, arguments.settings), resume=arguments.resume).run()
    except (OSError, ValueError, StrictDataclassError, FloatingPointError) as error:
        sys.stderr.write(f"crossvlt_hf.training: {in_one_line(error)}\n")
        return 2
    except InterruptionError as end:
        sys.stderr.write(f"crossvlt_hf.training: {end}\n")
        return 128 + end.number
    except KeyboardInterrupt:  # before there was anything to keep, or for the second time
        sys.stderr.write("crossvlt_hf.training: interrupted\n")
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
