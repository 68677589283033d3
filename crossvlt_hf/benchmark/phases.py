"""Where the time goes: from the shell to the mask, in the pipeline, in predictions and in training steps, on the CPU.

The package's own code runs; functions are only replaced by timed ones while it does.
"""

import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from .. import processing_crossvlt
from ..data.refshapes import make_example
from ..modeling_crossvlt import CrossVLTModel
from ..pipeline_crossvlt import ReferringImageSegmentationPipeline
from ..prediction import run as prediction
from ..prediction.requests import open_requests
from ..prediction.shards import Shards
from ..processing_crossvlt import CrossVLTProcessor
from ..training.config import DataOptions, ModelOptions, OptimizationOptions, OutputOptions, TrainingConfig
from ..training.run import TrainingRun
from ..weights.checkpoint import load_checkpoint
from .memory import environment
from .sources import Source
from .timing import summarise


Lap = dict[str, float]  # seconds by phase

SENTENCE = "the largest object"
PHOTO = "photo.jpg"
PHOTO_SIZE = (640, 480)
ROWS = 16
TRAINING_BATCH = 2


# The phases of all journeys, as they follow each other
ORDER = (
    *("Python", "import of Transformers", "checkpoint", "image to files"),
    *("read the image", "resize, normalise, tokenise", "model", "masks", "run lengths", "write"),
    *("data", "forward", "backward", "optimizer", "other"),
)


class Stopwatch:
    """Time phases; time in a phase within another counts only for the inner one.

    Attributes:
        laps: seconds by phase of every lap.
    """

    def __init__(self) -> None:
        self.laps: list[Lap] = []
        self._lap: Lap = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def lap(self) -> None:
        """End a lap."""
        self.laps.append(dict(self._lap))
        self._lap.clear()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        """Add the time since the last change to the innermost phase."""
        now = time.perf_counter()
        if self._open:
            self._lap[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def watch(self, owner: Any, **phases: str) -> Iterator[None]:
        """Time calls of functions of a class or module, by the phase of each."""
        originals = {name: vars(owner)[name] for name in phases}
        try:
            for name, phase in phases.items():
                setattr(owner, name, self._timed(originals[name], phase))
            yield
        finally:
            for name, original in originals.items():
                setattr(owner, name, original)

    def _timed(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(phase):
                return function(*args, **kwargs)

        return timed


def time_shell(source: Source, folder: Path, rounds: int) -> list[Lap]:
    """Time `crossvlt segment` from the shell: each phase is the difference of two processes."""
    weights = str(source.folders["float32"])
    imports = "from transformers import AutoModel, AutoProcessor, pipeline"
    load = f"from crossvlt_hf.weights.checkpoint import load_checkpoint; load_checkpoint({weights!r})"
    segment = ["-m", "crossvlt_hf", "segment", PHOTO, SENTENCE, "--model", weights]
    commands = {
        "Python": ["-c", ""],
        "import of Transformers": ["-c", imports],
        "checkpoint": ["-c", f"{imports}; {load}"],
        "image to files": segment,
    }
    laps = []
    for _ in range(rounds):
        seconds = [_time_process(arguments, folder) for arguments in commands.values()]
        laps.append(dict(zip(commands, np.diff(seconds, prepend=0.0).tolist(), strict=True)))
    return laps


def _time_process(arguments: Sequence[str], folder: Path) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, env=environment(), check=True, capture_output=True)
    return time.perf_counter() - start


def time_pipeline(source: Source, folder: Path, rounds: int) -> list[Lap]:
    """Time the pipeline with an image file and an expression."""
    model, processor = load_checkpoint(source.folders["float32"])
    segmenter: Any = ReferringImageSegmentationPipeline(model=model, processor=processor, device=model.device)
    watch = Stopwatch()
    with _watch_inference(watch):
        for _ in range(rounds + 1):
            with watch.phase("other"):
                segmenter(str(folder / PHOTO), text=SENTENCE)
            watch.lap()
    return watch.laps[1:]


@contextmanager
def _watch_inference(watch: Stopwatch) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(watch.watch(processing_crossvlt, _to_rgb_and_white="read the image"))
        phases = {"__call__": "resize, normalise, tokenise", "post_process_masks": "masks"}
        stack.enter_context(watch.watch(CrossVLTProcessor, **phases))
        stack.enter_context(watch.watch(CrossVLTModel, forward="model"))
        yield


def time_prediction(source: Source, folder: Path, rounds: int) -> list[Lap]:
    """Time `predict` on a folder of image files, per row; a lap is a shard."""
    model, processor = load_checkpoint(source.folders["float32"])
    for number in range(ROWS):
        draw_scene(folder / "rows" / f"{number}.jpg", number, PHOTO_SIZE)
    requests, watch = open_requests(str(folder / "rows"), expressions=[SENTENCE]), Stopwatch()
    with (
        _watch_inference(watch),
        watch.watch(prediction, encode_mask="run lengths"),
        watch.watch(Shards, write="write"),
    ):
        for number in range(rounds + 1):
            with watch.phase("other"):
                prediction.predict(model, processor, requests, folder / f"predictions-{number}")
            watch.lap()
    return [{phase: seconds / ROWS for phase, seconds in lap.items()} for lap in watch.laps[1:]]


def time_training(source: Source, folder: Path, rounds: int) -> list[Lap]:
    """Time steps of `train` on RefShapes, whose scenes are drawn in the same process."""
    side = max(source.size)
    scenes = {"name": "refshapes", "split": "train", "scenes": TRAINING_BATCH * (rounds + 1), "side": side}
    config = TrainingConfig(
        ModelOptions(checkpoint=str(source.folders["float32"])),
        DataOptions(train=[scenes], workers=0),
        OptimizationOptions(max_steps=rounds + 1, batch_size=TRAINING_BATCH, ema_decay=0.999, mixed_precision="no"),
        OutputOptions(folder=str(folder / "run"), pictures=0, curves=False),
    )
    run, watch = TrainingRun(config), Stopwatch()
    steps = run.batches.steps(0, run.steps, run.processor)
    with (
        watch.watch(CrossVLTModel, forward="forward"),
        watch.watch(Accelerator, backward="backward"),
    ):
        for _ in range(run.steps):
            with watch.phase("data"):
                batches = next(steps)
            with watch.phase("optimizer"):
                run._step(batches)
            watch.lap()
    return watch.laps[1:]


JOURNEYS: dict[str, Callable[[Source, Path, int], list[Lap]]] = {
    "crossvlt segment, from the shell": time_shell,
    "pipeline, an image": time_pipeline,
    "predict, a row": time_prediction,
    f"train, a step of {TRAINING_BATCH}": time_training,
}


def measure_phases(source: Source, rounds: int, tell: Callable[[str], Any]) -> list[dict[str, Any]]:
    """Time the phases of all journeys.

    Args:
        source: the checkpoint; it runs in float32 on the CPU.
        rounds: laps of each journey, after one to warm up.
        tell: called with a line about each journey.

    Returns:
        For each journey "model", "journey" and "seconds", a summary of the laps by phase.
    """
    found = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        draw_scene(folder / PHOTO, 0, PHOTO_SIZE)
        for journey, measure in JOURNEYS.items():
            tell(f"phases: {source.name}, {journey}")
            laps = measure(source, folder, rounds)
            phases = sorted({phase for lap in laps for phase in lap}, key=ORDER.index)
            seconds = {phase: summarise([lap.get(phase, 0.0) for lap in laps]) for phase in phases}
            found.append({"model": source.name, "journey": journey, "seconds": seconds})
    return found


def draw_scene(path: Path, number: int, size: tuple[int, int]) -> str:
    """Draw a test scene of RefShapes as a JPEG.

    Args:
        path: of the file, in a folder that is made if it is not there.
        number: of the scene.
        size: width and height in pixels.

    Returns:
        The expression.
    """
    path.parent.mkdir(exist_ok=True)
    example = make_example("test", number, side=max(size))
    Image.fromarray(example.scene.image).resize(size).save(path, quality=90)
    return example.expression
