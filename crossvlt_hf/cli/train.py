"""`crossvlt train`: training in this process, or in several that Accelerate launches."""

import logging
import os
import signal
import subprocess
from argparse import Namespace
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from ..checks import check_least
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
    """Train on data sets or your own folder, as a YAML file says.

    Examples:
        crossvlt train refcoco data.root=DATA model.image_size=448
        crossvlt train my.yaml --resume
        accelerate launch -m crossvlt_hf train my.yaml optimization.batch_size=24

    Args:
        config: A YAML file, or the name of a configuration of the package.
        settings: Settings that replace those of the file.
        resume: Continue from the last checkpoint, if there is one.
        processes: Number of processes, one for each GPU. By default only this process trains.
        accelerate_config: File of `accelerate config`, for FSDP and the like.
    """

    config: Positional[Annotated[str, arg(metavar="CONFIG")]]
    settings: Positional[Annotated[tuple[str, ...], SETTINGS]] = ()
    resume: bool = False
    processes: int | None = None
    accelerate_config: Annotated[str | None, arg(metavar="YAML")] = None

    def check(self) -> None:
        """See that there is a process to train in."""
        check_least("--processes", self.processes, 1)


def train(options: Train) -> int | None:
    """Train here, or in processes of their own, whose exit code is returned."""
    with needs_extra("train"):
        from ..training import TrainingRun, load_config
        from ..training.build import check_config

    config = load_config(options.config, list(options.settings))
    if options.processes is None and options.accelerate_config is None:
        TrainingRun(config, resume=options.resume).run()
        return None
    check_config(config, options.processes)  # once, not in each of them
    return _train_in_processes(options)


def _launch_arguments(options: Train) -> Namespace:
    """What `accelerate launch` is told."""
    import torch
    from accelerate.commands.launch import launch_command_parser

    launch = ["--config_file", options.accelerate_config] if options.accelerate_config else ["--multi_gpu"]
    if options.processes is not None:
        launch += ["--num_processes", str(options.processes)]
    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"  # else each process would train a model of its own
    command = ["train", options.config, *options.settings, *(["--resume"] if options.resume else [])]
    return launch_command_parser().parse_args([*launch, "--module", "crossvlt_hf", *command])


def _train_in_processes(options: Train) -> int:
    """Do what `accelerate launch` does, without its tracebacks below what the processes say; the exit code."""
    from accelerate.commands.launch import launch_command
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    arguments = _launch_arguments(options)
    # Ctrl-C reaches a single process, too, which finishes its step and saves; several get it from torch's launcher
    before = signal.signal(signal.SIGINT, lambda *_: None)
    logging.disable(logging.ERROR)  # which process failed, at length
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
