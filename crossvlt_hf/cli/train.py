"""`crossvlt train`: train in this process, or in several processes launched by Accelerate."""

import logging
import os
import signal
import subprocess
import sys
from argparse import Namespace
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from ..system import check_file, check_workers
from ..weights.names import check_source
from .common import Command, checked_settings, needs_extra


SETTINGS = PrimitiveConstructorSpec(
    nargs="*",
    metavar="NAME=VALUE ...",
    instance_from_str=checked_settings,
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=list,
)


@dataclass(frozen=True)
class Train(Command):
    """Train on data sets or your own folder, configured by a YAML file.

    Examples:
        crossvlt train refcoco data.root=DATA model.image_size=448
        crossvlt train my.yaml --resume
        accelerate launch -m crossvlt_hf train my.yaml optimization.batch_size=24

    Args:
        config: YAML file, or name of a configuration of the package.
        settings: Settings that override the file.
        resume: Resume from the last checkpoint, if there is one.
        processes: Number of processes, one per GPU. By default only this process trains.
        accelerate_config: File written by `accelerate config`, for example for FSDP.
    """

    config: Positional[Annotated[str, arg(metavar="CONFIG")]]
    settings: Positional[Annotated[tuple[str, ...], SETTINGS]] = ()
    resume: bool = False
    processes: int | None = None
    accelerate_config: Annotated[str | None, arg(metavar="YAML")] = None

    def check(self) -> None:
        """Check the number of processes, and names and types of all settings."""
        check_workers("processes", self.processes, 1)
        if self.accelerate_config is not None:
            check_file(self.accelerate_config)
        from ..training.config import load_config  # after the checks that import nothing

        check_source(load_config(self.config, list(self.settings)).model.checkpoint)


def train(options: Train) -> int | None:
    """Train in this process, or in new processes and return their exit code."""
    with needs_extra("train"):
        from ..training import TrainingRun, load_config
        from ..training.build import check_config

    here = options.processes is None and options.accelerate_config is None
    tell = _tell if here else (lambda line: None)  # other processes tell it themselves
    config = load_config(options.config, list(options.settings), tell)
    if here:
        TrainingRun(config, resume=options.resume).run()
        return None
    check_config(config, options.processes)  # once, not in each process
    return _train_in_processes(options)


def _tell(line: str) -> None:
    """Print a line on stderr, in the first of several processes only."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)


def _launch_arguments(options: Train) -> Namespace:
    """The arguments of `accelerate launch`."""
    import torch
    from accelerate.commands.launch import launch_command_parser

    launch = ["--config_file", options.accelerate_config] if options.accelerate_config else ["--multi_gpu"]
    if options.processes is not None:
        launch += ["--num_processes", str(options.processes)]
    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"  # otherwise each process would train its own model
    command = ["train", options.config, *options.settings, *(["--resume"] if options.resume else [])]
    return launch_command_parser().parse_args([*launch, "--module", "crossvlt_hf", *command])


def _train_in_processes(options: Train) -> int:
    """Run `accelerate launch` without its tracebacks, and return the exit code."""
    from accelerate.commands.launch import launch_command
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    arguments = _launch_arguments(options)
    # Ctrl-C also reaches the process, which finishes its step and saves; several get it from torch's launcher
    before = signal.signal(signal.SIGINT, lambda *_: None)
    logging.disable(logging.ERROR)  # the launcher's long report on the failed process
    try:
        launch_command(arguments)
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
