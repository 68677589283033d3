"""The output files of a batch prediction: one per `shard_size` rows, written atomically."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..configuration_crossvlt import write_file
from ..system import check_known, check_least, check_output_folder


FORMATS = ("jsonl", "parquet")
# Hidden, so that pandas, pyarrow, datasets and DuckDB can read the folder as a table
MANIFEST = ".predictions.json"
FORMER_MANIFEST = "predictions.json"
FORMER_JOBS = {"largest_part": False}  # of folders without this entry
MARK = "crossvlt_hf"
PARTIAL = ".*.partial"
SHARDS = "predictions-*-of-*"  # of any number and format
SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "name": pa.string(),
        "number": pa.int32(),
        "expression": pa.string(),
        "text_read": pa.string(),
        "unknown_words": pa.list_(pa.string()),
        "score": pa.float64(),
        "box": pa.list_(pa.int32()),
        "mask": pa.struct({"size": pa.list_(pa.int32()), "counts": pa.string()}),
        "error": pa.string(),
    }
)


def row_schema(has_head: bool, largest_part: bool = False) -> pa.Schema:
    """The columns of shards, for a model with or without a presence head, and all parts or only the largest."""
    schema = SCHEMA
    if has_head:
        schema = schema.insert(schema.get_field_index("score") + 1, pa.field("presence", pa.float64()))
    if largest_part:
        schema = schema.insert(schema.get_field_index("box") + 1, pa.field("parts", pa.int32()))
    return schema


def _as_parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    schema = row_schema(*(any(name in row for row in rows) for name in ("presence", "parts")))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), sink)
    return bytes(sink.getvalue())


def _as_jsonl(rows: Sequence[dict[str, Any]]) -> bytes:
    # ASCII, as some readers split lines at other characters
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def find_manifest(folder: Path) -> Path | None:
    """The description of the job of a folder; None for a new or empty one.

    Raises:
        ValueError: if it has other files, or is one.
    """
    found = next((path for path in (folder / MANIFEST, folder / FORMER_MANIFEST) if path.is_file()), None)
    check_output_folder(folder, "prediction", lambda: found is not None, lambda path: path.match(PARTIAL))
    return found


class Shards:
    """A folder of shards, with a description of the job in `.predictions.json`.

    Args:
        folder: a new or empty folder, or that of the same job.
        rows: number of rows to predict.
        size: rows per shard.
        file_format: "jsonl" or "parquet".

    Raises:
        ValueError: if the size or the format is invalid.
    """

    def __init__(self, folder: str | Path, rows: int, size: int, file_format: str) -> None:
        check_least("shard_size", size, 1)
        check_known("file_format", file_format, FORMATS)
        self.folder, self.rows, self.size, self.file_format = Path(folder), rows, size, file_format
        self.count = -(-rows // size)

    def open(self, job: dict[str, Any]) -> None:
        """Start the job, or check that the folder belongs to the same job.

        Args:
            job: everything that the predictions depend on, for JSON.

        Raises:
            OSError: if the folder cannot be written.
            ValueError: if it belongs to another job, or has other files.
        """
        description = {"made_by": MARK, "rows": self.rows, "shard_size": self.size, "format": self.file_format, **job}
        found = find_manifest(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if found is None:
            self._write_manifest(description)
        else:
            self._check(found, description)
            found.replace(self.folder / MANIFEST)

    def _write_manifest(self, description: dict[str, Any]) -> None:
        write_file(self.folder / MANIFEST, json.dumps(description, indent=2).encode() + b"\n", sync=True)

    def _check(self, manifest: Path, description: dict[str, Any]) -> None:
        try:
            found = json.loads(manifest.read_bytes())
            differing = [key for key, value in description.items() if found.get(key, FORMER_JOBS.get(key)) != value]
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{manifest} is damaged; use another folder.") from error
        if differing:
            key = differing[0]
            other = f"whose `{key}` is {found.get(key)!r} and not {description[key]!r}"
            if key == "data":  # a hash
                other = "of other images or expressions"
            if not any(self.folder.glob(SHARDS)):
                raise ValueError(
                    f"{self.folder} is of a run {other}, which has written no predictions; delete {manifest} unless "
                    "that run goes on, or use another folder."
                )
            raise ValueError(f"{self.folder} has predictions {other}; use the same to resume, or another folder.")

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.folder / f"predictions-{shard:05d}-of-{self.count:05d}.{self.file_format}"

    def row_numbers(self, shard: int) -> range:
        """The rows of a shard."""
        return range(shard * self.size, min((shard + 1) * self.size, self.rows))

    def missing(self) -> list[int]:
        """The shards that are not written yet."""
        present = {entry.name for entry in os.scandir(self.folder)}
        return [shard for shard in range(self.count) if self.path(shard).name not in present]

    def write(self, shard: int, rows: Sequence[dict[str, Any]]) -> None:
        """Write a shard: rows of `row_schema`.

        Raises:
            OSError: if it cannot be written; no part of it is left.
        """
        data = _as_parquet(rows) if self.file_format == "parquet" else _as_jsonl(rows)
        try:
            write_file(self.path(shard), data, sync=True)
        except OSError as error:
            raise OSError(
                f"{self.path(shard)} could not be written ({error}). Earlier shards are complete; free disk space and "
                "rerun the command to resume."
            ) from error

    def read(self) -> Iterator[dict[str, Any]]:
        """Read the rows of all written shards, in order."""
        for shard in range(self.count):
            if self.path(shard).is_file():
                yield from self._read(self.path(shard))

    def _read(self, path: Path) -> list[dict[str, Any]]:
        if self.file_format == "parquet":
            return pq.read_table(path).to_pylist()
        return [json.loads(line) for line in path.read_bytes().splitlines()]

    def finish(self) -> dict[str, Any] | None:
        """Count rows and save the counts when all shards are written; called by every process.

        Returns:
            "predictions", and among them "empty" masks, "cut" (truncated expressions) and "unknown" (expressions with
            unknown words); and "errors". None while shards are missing.
        """
        if self.missing():
            return None
        for partial in self.folder.glob(PARTIAL):  # of interruptions
            partial.unlink(missing_ok=True)
        counts = dict.fromkeys(("predictions", "empty", "cut", "unknown", "errors"), 0)
        for row in self.read():
            if row["error"] is not None:
                counts["errors"] += 1
                continue
            counts["predictions"] += 1
            counts["empty"] += row["box"] is None
            # Shards of version 0.1 have no `text_read`
            counts["cut"] += row.get("text_read", row["expression"]) != row["expression"]
            counts["unknown"] += bool(row.get("unknown_words"))
        self._write_manifest(json.loads((self.folder / MANIFEST).read_bytes()) | {"finished": counts})
        return counts
