"""Checkpoints that are there whole or not at all."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..modeling_crossvlt import CrossVLTModel
from ..processing_crossvlt import CrossVLTProcessor
from .log import say, without_bars


PREFIX = "step-"
SIZES = "files.json"


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix(PREFIX))


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder that were finished, the oldest first."""
    found = [entry for entry in folder.glob(f"{PREFIX}*") if entry.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=_step)


def seal(folder: Path) -> None:
    """Note in a folder which files it has and how long they are."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    (folder / SIZES).write_text(json.dumps(sizes))


def is_whole(folder: Path) -> bool:
    """Whether a sealed folder has what it had; one that was never sealed counts as whole."""
    if not (folder / SIZES).is_file():
        return True
    try:
        sizes = json.loads((folder / SIZES).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _flush(folder: Path) -> None:
    """Have the system write a folder to the disk, so that a failure of power finds it whole."""
    for path in (*folder.rglob("*"), folder):
        if path.is_file() or os.name == "posix":
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def write_whole(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside the target, then put it in its place.

    An interruption leaves the old target or, from within the exchange, what `recover` makes the old target of.
    """
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    put_in_place(partial, target)


def put_in_place(partial: Path, target: Path) -> None:
    """Move a finished folder to where it belongs, over an old one."""
    _flush(partial)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def recover(target: Path) -> None:
    """Put back what an interruption in the midst of `put_in_place` left beside the target."""
    old = target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():
        old.rename(target)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the last checkpoints."""
    for checkpoint in list_checkpoints(folder)[:-keep]:
        old = checkpoint.with_name(f".{checkpoint.name}.old")
        checkpoint.rename(old)  # else an interruption would leave half of it
        shutil.rmtree(old)


def sweep(folder: Path) -> None:
    """Delete what interruptions left in a folder of checkpoints."""
    for entry in folder.glob(f".{PREFIX}*"):
        shutil.rmtree(entry, ignore_errors=True)


class Progress:
    """Where a run is; kept in its checkpoints."""

    def __init__(self) -> None:
        self.step = 0
        self.skipped = 0  # references that could not be read, over all processes
        self.sums: dict[str, Tensor] = {}  # of the losses of the steps since the last line of the log
        self.summed = 0  # how many these are

    def add(self, losses: dict[str, Tensor]) -> None:
        """Take a step's losses into the means."""
        before = {name: value.to(losses[name].device) for name, value in self.sums.items()}
        self.sums = {name: before.get(name, 0.0) + value for name, value in losses.items()}
        self.summed += 1

    def take_means(self) -> dict[str, Tensor]:
        """The means of the losses since the last call."""
        means = {name: value / self.summed for name, value in self.sums.items()}
        self.sums, self.summed = {}, 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """For Accelerate."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """For Accelerate."""
        vars(self).update(state)


class Checkpoints:
    """The checkpoints in the folder of a run, and its weights: the processes write them together.

    Args:
        accelerator: of the run; what is registered with it goes into the checkpoints.
        folder: of the run.
        keep: how many checkpoints to keep.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, keep: int) -> None:
        self.accelerator, self.run_folder, self.keep = accelerator, folder, keep
        self.folder = folder / "checkpoints"

    def find_whole(self) -> list[Path]:
        """Those to go on from; the last ones may have been damaged since they were written."""
        found = list_checkpoints(self.folder)
        whole = [checkpoint for checkpoint in found if is_whole(checkpoint)]
        for checkpoint in found:
            if checkpoint not in whole and self.accelerator.is_main_process:
                say(f"{checkpoint} is damaged and left aside.")
        if found and not whole:
            raise ValueError(
                f"All checkpoints in {self.run_folder} are damaged; give another output.folder to start anew."
            )
        return whole

    def load(self, checkpoint: Path) -> None:
        """Weights, optimizer, schedule, averages, and the random state of every process."""
        written = len(list(checkpoint.glob("random_states_*.pkl")))
        if written != self.accelerator.num_processes:
            raise ValueError(
                f"{checkpoint} was written by {written} processes, and there are {self.accelerator.num_processes}; go "
                "on with as many, or start anew from its weights."
            )
        self.accelerator.load_state(str(checkpoint))

    def clean_up(self) -> None:
        """Undo what an interruption left behind."""
        for name in ("best", "last"):
            recover(self.run_folder / name)
        sweep(self.folder)

    def save(self, network: nn.Module, progress: Progress) -> None:
        """Write all that is needed to go on, and drop the oldest checkpoints.

        Raises:
            FloatingPointError: if weights are not finite.
            OSError: if it cannot be written; what was there stays.
        """
        check_weights(network, progress.step)
        target = self.folder / f"{PREFIX}{progress.step}"
        partial = self.folder / f".{target.name}.partial"
        if self.accelerator.num_processes > 1:  # only the first one's are kept
            progress.sums = {name: self.accelerator.reduce(value, "mean") for name, value in progress.sums.items()}
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)  # of an interruption
        self.accelerator.wait_for_everyone()
        with told_if_not_written(partial, target):
            self.accelerator.save_state(str(partial))
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                seal(partial)
                put_in_place(partial, target)
                prune(self.folder, self.keep)
        self.accelerator.wait_for_everyone()

    def save_weights(
        self, name: str, model: CrossVLTModel, processor: CrossVLTProcessor, state: dict[str, Any] | None
    ) -> None:
        """Write weights and processor for `from_pretrained`; `state` if the model's own are in parts."""
        if self.accelerator.is_main_process:
            target = self.run_folder / name

            def write(folder: Path) -> None:
                model.save_pretrained(folder, state_dict=state)
                processor.save_pretrained(folder)

            with without_bars(), told_if_not_written(target.with_name(f".{name}.partial"), target):
                write_whole(target, write)
        self.accelerator.wait_for_everyone()


def check_weights(network: nn.Module, step: int) -> None:
    """A gradient may overflow where the loss does not; the checkpoint before is then the last good one."""
    own = (p.to_local() if isinstance(p, DTensor) else p for p in network.parameters())
    if not all(bool(parameter.isfinite().all()) for parameter in own):
        raise FloatingPointError(
            f"Weights are not finite after step {step}, which are not kept; go on from the checkpoint before with "
            "another `optimization.learning_rate` or `optimization.max_grad_norm`."
        )


@contextmanager
def told_if_not_written(partial: Path, target: Path) -> Iterator[None]:
    """Turn any write failure into an OSError; earlier files stay intact."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(
            f"{target} could not be written ({type(error).__name__}: {error}). What was there is as it was; make "
            "room, and go on with --resume."
        ) from error
