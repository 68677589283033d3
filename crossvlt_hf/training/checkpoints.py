"""Checkpoints of a run, written atomically."""

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
    """The finished checkpoints in a folder, oldest first."""
    found = [entry for entry in folder.glob(f"{PREFIX}*") if entry.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=_step)


def seal(folder: Path) -> None:
    """Record the names and sizes of the files in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    (folder / SIZES).write_text(json.dumps(sizes))


def is_whole(folder: Path) -> bool:
    """Whether a folder still has the recorded files; true if none were recorded."""
    if not (folder / SIZES).is_file():
        return True
    try:
        sizes = json.loads((folder / SIZES).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _flush(folder: Path) -> None:
    """Sync a folder to disk, so that it survives a power failure."""
    for path in (*folder.rglob("*"), folder):
        if path.is_file() or os.name == "posix":
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def write_whole(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside the target, then replace the target by it.

    After an interruption, the old target is in place, or `recover` restores it.
    """
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    put_in_place(partial, target)


def put_in_place(partial: Path, target: Path) -> None:
    """Replace the target by a finished folder."""
    _flush(partial)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def recover(target: Path) -> None:
    """Restore the old target if `put_in_place` was interrupted."""
    old = target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():
        old.rename(target)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest checkpoints."""
    for checkpoint in list_checkpoints(folder)[:-keep]:
        old = checkpoint.with_name(f".{checkpoint.name}.old")
        checkpoint.rename(old)  # an interruption must not leave a half-deleted checkpoint
        shutil.rmtree(old)


def sweep(folder: Path) -> None:
    """Delete what interruptions left behind in a folder of checkpoints."""
    for entry in folder.glob(f".{PREFIX}*"):
        shutil.rmtree(entry, ignore_errors=True)


class Progress:
    """The state of a run; saved in its checkpoints."""

    def __init__(self) -> None:
        self.step = 0
        self.skipped = 0  # unreadable references, over all processes
        self.sums: dict[str, Tensor] = {}  # of the losses since the last log entry
        self.summed = 0  # number of steps in the sums

    def add(self, losses: dict[str, Tensor]) -> None:
        """Add the losses of a step."""
        before = {name: value.to(losses[name].device) for name, value in self.sums.items()}
        self.sums = {name: before.get(name, 0.0) + value for name, value in losses.items()}
        self.summed += 1

    def take_means(self) -> dict[str, Tensor]:
        """Return the means of the losses since the last call."""
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
    """Checkpoints and weights in the folder of a run; all processes call its methods.

    Args:
        accelerator: of the run; checkpoints contain what is registered with it.
        folder: of the run.
        keep: number of checkpoints to keep.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, keep: int) -> None:
        self.accelerator, self.run_folder, self.keep = accelerator, folder, keep
        self.folder = folder / "checkpoints"

    def find_whole(self) -> list[Path]:
        """The complete checkpoints; warn of damaged ones."""
        found = list_checkpoints(self.folder)
        whole = [checkpoint for checkpoint in found if is_whole(checkpoint)]
        for checkpoint in found:
            if checkpoint not in whole and self.accelerator.is_main_process:
                say(f"{checkpoint} is damaged and ignored.")
        if found and not whole:
            raise ValueError(
                f"All checkpoints in {self.run_folder} are damaged; use another output.folder to start a new run."
            )
        return whole

    def load(self, checkpoint: Path) -> None:
        """Load weights, optimizer, schedule, averages, and the random state of every process."""
        written = len(list(checkpoint.glob("random_states_*.pkl")))
        if written != self.accelerator.num_processes:
            raise ValueError(
                f"{checkpoint} was written by {written} processes, and there are {self.accelerator.num_processes}; "
                "resume with the same number, or start a new run from its weights."
            )
        self.accelerator.load_state(str(checkpoint))

    def clean_up(self) -> None:
        """Remove what an interruption left behind."""
        for name in ("best", "last"):
            recover(self.run_folder / name)
        sweep(self.folder)

    def save(self, network: nn.Module, progress: Progress) -> None:
        """Write a checkpoint, and delete the oldest ones.

        Raises:
            FloatingPointError: if weights are not finite.
            OSError: if it cannot be written; other checkpoints stay intact.
        """
        check_weights(network, progress.step)
        target = self.folder / f"{PREFIX}{progress.step}"
        partial = self.folder / f".{target.name}.partial"
        if self.accelerator.num_processes > 1:  # only those of the main process are saved
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
        """Write weights and processor for `from_pretrained`; `state` if the weights of the model are sharded."""
        if self.accelerator.is_main_process:
            target = self.run_folder / name

            def write(folder: Path) -> None:
                model.save_pretrained(folder, state_dict=state)
                processor.save_pretrained(folder)

            with without_bars(), told_if_not_written(target.with_name(f".{name}.partial"), target):
                write_whole(target, write)
        self.accelerator.wait_for_everyone()


def check_weights(network: nn.Module, step: int) -> None:
    """Raise FloatingPointError if weights are not finite: a gradient may overflow although the loss does not."""
    own = (p.to_local() if isinstance(p, DTensor) else p for p in network.parameters())
    if not all(bool(parameter.isfinite().all()) for parameter in own):
        raise FloatingPointError(
            f"Weights are not finite after step {step} and were not saved; resume from the previous checkpoint with "
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
            f"{target} could not be written ({type(error).__name__}: {error}). Earlier files are intact; free disk "
            "space, and continue with --resume."
        ) from error
