"""The command `crossvlt`. Each command is a module of the same name with a dataclass of options and a function.

Nothing heavy is imported before the options are read and checked.
"""

import inspect
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from ..system import InterruptionError, check_no_file, did_you_mean, in_one_line, keep_memory, orderly_end
from .common import REGISTRY, Command, as_options, check_options


COMMANDS = (
    "segment",
    "predict",
    "demo",
    "train",
    "evaluate",
    "convert",
    "export",
    "publish",
    "refer",
    "refshapes",
    "benchmark",
)
# What PyTorch and onnxruntime say of too little memory, or of sizes beyond any
TOO_LARGE = re.compile(
    "(can't|cannot|failed to) allocate memory|not enough memory|out of (shared )?memory|size calculation overflowed"
    "|CUBLAS_STATUS_ALLOC_FAILED|can't start new thread|DataLoader worker .* killed by signal",
    re.IGNORECASE,
)
DESCRIPTION = """Referring image segmentation with CrossVLT.

crossvlt COMMAND --help describes a command, crossvlt --version prints the version."""


def _options_class(command: str) -> type[Command]:
    """The dataclass of a command's options."""
    return getattr(import_module(f".{command}", __name__), command.capitalize())


def _description(kind: type[Command]) -> str:
    """The part of a docstring before its options; tyro would join the lines."""
    return (inspect.getdoc(kind) or "").partition("Args:")[0].strip()


def _all_commands() -> Any:
    """A union of all commands, for the help of `crossvlt`."""
    choices = []
    for command in COMMANDS:
        kind = _options_class(command)
        summary = _description(kind).splitlines()[0]
        choices.append(Annotated[kind, tyro.conf.subcommand(command, description=summary)])
    return Union[tuple(choices)]  # noqa: UP007 built at run time


def read_options(arguments: Sequence[str]) -> tuple[str, Command]:
    """Read the command and its options.

    Raises:
        SystemExit: with 0 after the help or the version, with 2 after an error of one line.
    """
    command, *rest = arguments or [""]
    if command in COMMANDS:
        kind = _options_class(command)
        return command, _parse(kind, f"crossvlt {command}", rest, _description(kind))
    if command in ("-h", "--help"):
        _parse(_all_commands(), "crossvlt", ["--help"], DESCRIPTION)
    if command == "--version":
        print(f"crossvlt_hf {version('crossvlt_hf')}")
        sys.exit()
    hint = did_you_mean(command, [*COMMANDS, "--help", "--version"]) or f" The commands are {', '.join(COMMANDS)}."
    raise _refusal(f"{f'There is no command {command!r}.' if command else 'A command is missing.'}{hint}")


def _refusal(message: str) -> SystemExit:
    print(f"crossvlt: {message}", file=sys.stderr)
    return SystemExit(2)


def _parse(kind: Any, program: str, arguments: Sequence[str], description: str) -> Any:
    """Read options with tyro; print its help without frames, and its errors in one line."""
    tyro._experimental_options["utf8_boxes"] = False
    tyro._experimental_options["ansi_codes"] = False
    helps = not {"-h", "--help"}.isdisjoint(arguments)
    width = min(max(shutil.get_terminal_size().columns, 80), 110) if helps else 10_000
    output, errors = StringIO(), StringIO()
    try:
        with _columns(width), redirect_stdout(output), redirect_stderr(errors):
            return _call_tyro(kind, prog=program, args=arguments, description=description)
    except SystemExit as end:
        if end.code:
            raise _refusal(_plain_error(errors.getvalue())) from None
        with suppress(BrokenPipeError):  # as `| head` does
            print(_plain_help(output.getvalue()), flush=True)
        raise


def _call_tyro(kind: Any, **options: Any) -> Any:
    markers = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    parse = partial(tyro.cli, kind, config=markers, registry=REGISTRY, **options)
    if not hasattr(kind, "settings"):
        return parse()
    result, rest = parse(return_unknown_args=True)
    if any("=" not in text or text.startswith("-") for text in rest):
        return parse()  # raises an error that names them
    return replace(result, settings=(*result.settings, *rest))  # of `train`, after its options


@contextmanager
def _columns(width: int) -> Iterator[None]:
    """Set the width of the lines that tyro writes."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(width)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _plain_help(text: str) -> str:
    """Remove bullets and empty defaults from tyro's help."""
    text = re.sub(r"\s*\((default:\s*(None|True|False)?|repeatable)\s*\)", "", text)
    text = re.sub(r"^  \(required\) *\n", "", text.replace("•", " "), flags=re.MULTILINE)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def _plain_error(text: str) -> str:
    """Turn the framed error of tyro into one line: what is wrong, and similar options."""
    sentences = []
    for block in re.split(r"^ *-+ *$", text, flags=re.MULTILINE)[1:]:  # the first is a title
        lines = [line for line in block.splitlines() if line.strip() and not line.startswith(" " * 10)]  # no help
        first, *rest = (line.strip() for line in lines) if lines else [""]
        if first and not first.startswith(("Argument helptext", "For full helptext")):
            sentence = f"{first} {', '.join(rest)}".strip()
            sentences.append(sentence if sentence.endswith((".", "?")) else f"{sentence}.")
    return in_one_line(ValueError(re.sub(r"^Error parsing ([^:]+):", r"`\1`", " ".join(sentences))))


def _silence_libraries() -> None:
    """Hide the logs and progress bars of libraries."""
    from huggingface_hub.utils.logging import set_verbosity_error
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_verbosity_error()


def _is_wrong_input(error: Exception) -> bool:
    """Whether an error is due to the input, so that its message alone is enough."""
    if isinstance(error, OSError | ValueError | FloatingPointError | OverflowError) or _is_memory_error(error):
        return True
    from huggingface_hub.errors import StrictDataclassError

    return isinstance(error, StrictDataclassError)


def _is_memory_error(error: BaseException) -> bool:
    """Whether memory was too small, or a number of bytes too large for any."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(TOO_LARGE.search(str(error))))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: command and options; by default those of the process.

    Returns:
        The exit code: 0; 2 for wrong input, after one line on standard error; 128 plus the number of the signal that
        ended the command.

    Raises:
        SystemExit: with 2 for an unknown or unreadable option, after one line on standard error.
    """
    command, options = read_options(sys.argv[1:] if argv is None else argv)
    try:
        with orderly_end():
            check_options(options)
            if argv is None:
                keep_memory()  # only in a process of this command
            _silence_libraries()
            return getattr(import_module(f".{command}", __name__), command)(options) or 0
    except InterruptionError as end:
        print(f"crossvlt: {end}", file=sys.stderr)
        return 128 + end.number
    except KeyboardInterrupt:
        print("crossvlt: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        if not _is_wrong_input(error):
            raise
        print(f"crossvlt: {as_options(options, in_one_line(_explain(error)))}", file=sys.stderr)
        return 2


def _explain(error: BaseException) -> BaseException:
    """Say that there is too little memory, or which file stands where a folder is needed, instead of a number."""
    if _is_memory_error(error):
        return MemoryError(
            f"There is not enough memory; use smaller images, batches or data, or fewer workers. {error}"
        )
    if isinstance(error, FileExistsError | NotADirectoryError) and isinstance(error.filename, str):
        try:
            check_no_file(Path(error.filename))
        except ValueError as plain:
            return plain
    return error
