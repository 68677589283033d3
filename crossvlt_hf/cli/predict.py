"""`crossvlt predict`: segment a whole data set, into shards."""

import json
import sys
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from ..system import check_exists, check_known, check_least, check_no_file, check_source_exists, refusing_twice
from ..weights.names import BUILT_IN
from .common import DataCommand, check_probability, needs_extra, parse_settings


if TYPE_CHECKING:
    from ..prediction import PredictionOptions


FORMATS = ("jsonl", "parquet")
ON_ERROR = ("stop", "skip")


@dataclass(frozen=True, kw_only=True)
class Predict(DataCommand):
    """Segment a whole data set into shards of run lengths, in one process or many.

    Examples:
        crossvlt predict rows.jsonl --output masks
        crossvlt predict photos --expression "the dog" --expression "the left person" --output masks
        crossvlt predict name/dataset --split test --text-column caption --format parquet --output masks
        accelerate launch -m crossvlt_hf predict rows.jsonl --workers 4 --output masks

    A line of rows.jsonl: {"image": "a/1.jpg", "expressions": ["the white cup", "the spoon"]}; paths are relative to
    the file, or to --root. Shards are written atomically; rerun the command to resume.

    Args:
        data: JSONL file, folder (images or metadata.jsonl), or name or id of a data set.
        output: Folder of the shards: a new one, or that of the same job.
        expression: Expression for every image of a folder; may be repeated.
        split: Split of a data set (by default train), or of the lines of a JSONL file (all).
        root: Folder of the images. The default is that of the JSONL file.
        image_column: Column of the images. By default image, file_name, ...
        text_column: Column of the expressions. By default expressions, text, ...
        format: Format of the shards: jsonl or parquet.
        shard_size: Rows per shard.
        threshold: Lowest probability of the object for a pixel of the mask. The default is 0.5.
        on_error: At an unreadable row or expression, stop and name file and line, or skip it and record the error in
            its line.
    """

    data: Positional[Annotated[str, arg(metavar="DATA")]]
    output: Annotated[str, arg(metavar="FOLDER")]
    expression: UseAppendAction[tuple[str, ...]] = ()
    split: str | None = None
    root: Annotated[str | None, arg(metavar="DIR")] = None
    image_column: Annotated[str | None, arg(metavar="NAME")] = None
    text_column: Annotated[str | None, arg(metavar="NAME")] = None
    format: str = "jsonl"
    shard_size: int = 500
    threshold: float | None = None
    on_error: str = "stop"

    def check(self) -> None:
        """Check that settings are name=value and numbers in range."""
        super().check()
        check_known("format", self.format, FORMATS)
        check_known("on_error", self.on_error, ON_ERROR)
        check_least("shard_size", self.shard_size, 1)
        check_probability("threshold", self.threshold)
        check_no_file(Path(self.output))
        if self.expression:
            check_exists(self.data, "folder", " of images for `--expression`")
        else:
            check_source_exists(self.data, {".jsonl"}, "; give one, or the id of a data set")


def _identify(source: str | Path, model: Any) -> str:
    """A hash of the files of a checkpoint folder, or the commit of one from the Hub."""
    folder = Path(source)
    if not folder.is_dir():
        return str(getattr(model.config, "_commit_hash", None))
    digest = blake2b(digest_size=16)
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".bin")):
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _report(requests: Any, reading: str) -> None:
    """Print which files are skipped, and which words are unknown."""
    from ..prediction import ImageRequests
    from ..system import some_names

    if isinstance(requests, ImageRequests) and (others := requests.skipped):
        files = "1 file that is not an image" if len(others) == 1 else f"{len(others)} files that are not images"
        print(f"Skipped {files}: {some_names(others)}", file=sys.stderr)
    print(reading, file=sys.stderr)


def _open_requests(options: Predict) -> Any:
    from ..prediction import open_requests

    with refusing_twice(options.data, "--option"):
        return open_requests(
            options.data,
            split=options.split,
            root=options.root,
            expressions=list(options.expression),
            image_column=options.image_column,
            text_column=options.text_column,
            options=parse_settings(options.option),
        )


def _prediction_options(options: Predict) -> "PredictionOptions":
    from ..prediction import PredictionOptions

    return PredictionOptions(
        batch_size=options.batch_size,
        shard_size=options.shard_size,
        file_format=options.format,
        threshold=options.threshold,
        presence_threshold=options.presence_threshold,
        largest_part=options.largest_part,
        on_error=options.on_error,
        workers=options.workers,
        progress=True,
    )


def _describe_job(options: Predict, model: Any) -> dict[str, Any]:
    """What the predictions depend on besides their options."""
    from ..weights.checkpoint import resolve_checkpoint

    return {
        "model": options.model or BUILT_IN,
        "checkpoint": _identify(resolve_checkpoint(options.model), model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "source": options.data,
        "split": options.split,
        "batch_size": options.batch_size,
    }


def predict(options: Predict) -> None:
    """Write the shards, and print the counts as a JSON line."""
    with needs_extra("train"):
        from ..prediction import describe_reading
        from ..prediction import predict as predict_rows
        from ..prediction.shards import find_manifest

    find_manifest(Path(options.output))  # before anything loads
    choices, requests = _prediction_options(options), _open_requests(options)
    state, model, processor = options.load()
    if state.is_main_process:
        _report(requests, describe_reading(processor, requests))
    job = _describe_job(options, model)
    try:
        counts = predict_rows(model, processor, requests, options.output, choices, job)
    except (KeyboardInterrupt, SystemExit):
        print(f"\nFinished shards are in {options.output}; rerun the command to resume.", file=sys.stderr)
        raise
    if counts is not None:
        print(json.dumps({"output": options.output, "rows": len(requests), **counts}))
        if not counts["predictions"]:
            raise ValueError(f"Nothing in {options.data} could be read; {options.output} has the reasons (`error`).")
