"""`crossvlt train`: training in this process, or in several that Accelerate launches."""

import argparse
import logging
import os
import signal
import subprocess
from typing import Any

from ..training.settings import integer
from .extras import needs_extra


def _train_in_processes(options: list[str], arguments: list[str]) -> int:
    """Do what `accelerate launch` does, without its tracebacks below what the processes say; the exit code."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    parsed = launch_command_parser().parse_args([*options, "--module", "crossvlt_hf.training", *arguments])
    # Ctrl-C reaches a single process, too, which finishes its step and saves; several get it from torch's launcher
    before = signal.signal(signal.SIGINT, lambda *_: None)
    logging.disable(logging.ERROR)  # which process failed, at length
    try:
        launch_command(parsed)
    except subprocess.CalledProcessError as error:
        return error.returncode if error.returncode >= 0 else 128 - error.returncode
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code >= 0 else 128 - code
    except SignalException as error:
        return 128 + error.sigval
    finally:
        logging.disable(logging.NOTSET)
        signal.signal(signal.SIGINT, before)
    return 0


def train(arguments: argparse.Namespace) -> int:
    """Train; the exit code is that of `python -m crossvlt_hf.training`."""
    with needs_extra("train"):
        from ..training import load_config
        from ..training.__main__ import main
        from ..training.build import check_config
    import torch

    given = [arguments.config, *arguments.settings, *(["--resume"] if arguments.resume else [])]
    if arguments.processes is None and arguments.accelerate_config is None:
        return main(given)
    if arguments.processes is not None and arguments.processes < 1:
        raise ValueError(f"`--processes` must be 1 or more, got {arguments.processes}.")
    check_config(load_config(arguments.config, arguments.settings), arguments.processes)  # once, not in each of them
    options = ["--config_file", arguments.accelerate_config] if arguments.accelerate_config else ["--multi_gpu"]
    if arguments.processes is not None:
        options += ["--num_processes", str(arguments.processes)]
    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"  # else each process would train a model of its own
    return _train_in_processes(options, given)


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("train", help="train on data sets or your own folder, as a YAML file says")
    command.add_argument("config", help="a YAML file, or the name of a configuration of the package")
    command.add_argument("settings", nargs="*", metavar="name=value", help="settings to override")
    command.add_argument("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    command.add_argument("--processes", type=integer, help="how many, one for each GPU (default: this process alone)")
    command.add_argument("--accelerate-config", metavar="YAML", help="of `accelerate config`, for FSDP and the like")
    command.set_defaults(run=train)
