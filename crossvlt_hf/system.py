"""Shared by all packages and light to import: checks, one-line errors, signals, memory, old names, extras."""

import atexit
import ctypes
import gc
import json
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher, get_close_matches
from functools import partial
from importlib import import_module
from inspect import Parameter, signature
from itertools import islice
from numbers import Integral
from pathlib import Path
from shlex import quote
from types import FrameType
from typing import Any, Self, TypeVar, get_args


MOST_WORKERS = 1024
MOST_COMPARED = 10_000  # names of a folder, for a suggestion
FROZEN_BY_PYTHON = gc.get_freeze_count()  # objects; not zero in Python 3.12
SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Of glibc's `mallopt`: from which size memory comes from the system directly, and how much is kept when it is free
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
MAP_BYTES = (64 * 2**20, 32 * 2**20)  # older versions refuse more than 32 MiB
KEPT_BYTES = 512 * 2**20
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?(inf|nan)", re.IGNORECASE)


# ---- checks of arguments, each with one wording


T = TypeVar("T")


def read_number(kind: type[int] | type[float], text: str) -> Any:
    """Read an integer or a float in decimal digits.

    Neither 010, which is octal in some languages, nor 1_000 or digits of other scripts, which `int` and `float` take.

    Raises:
        ValueError: if it is anything else; without a message, as only the caller knows what is being read.
    """
    if not (_INTEGER if kind is int else _DECIMAL).fullmatch(text):
        raise ValueError
    return kind(text)


def most_similar(name: Any, known: Collection[str], cutoff: float = 0.6) -> str | None:
    """The most similar known name; None if there is none, or two are equally similar, as testA and testB to "test"."""
    lower = {each.lower(): each for each in known}
    near = get_close_matches(name.lower(), lower, 2, cutoff) if isinstance(name, str) else []
    ratios = {SequenceMatcher(None, each, name.lower()).ratio() for each in near}
    return lower[near[0]] if len(ratios) == len(near) > 0 else None


def did_you_mean(name: Any, known: Collection[str], cutoff: float = 0.6) -> str:
    """A question that names the most similar known name, with a space before it; empty if there is none."""
    similar = most_similar(name, known, cutoff)
    return "" if similar is None else f" Did you mean {similar}?"


def say_known(value: Any, known: Collection[str]) -> str:
    """What an error says of a value that is not one of the known ones."""
    return f"must be one of {', '.join(known)}, got {value!r}.{did_you_mean(value, known)}"


def check_known(name: str, value: Any, known: Collection[str]) -> None:
    """Raise ValueError unless a value is one of the known ones."""
    if value not in list(known):
        raise ValueError(f"`{name}` {say_known(value, known)}")


def call_with_options(
    function: Callable[..., T], what: str, options: Mapping[str, Any], *arguments: Any, **own: Any
) -> T:
    """Call a function with options of the user, which it takes by name.

    Args:
        function: to call.
        what: it reads, for the error.
        options: of the user.
        arguments: of the caller.
        own: named arguments of the caller.

    Raises:
        ValueError: if it has no such option; names those that it has.
    """
    known = [name for name in _option_names(function, len(arguments)) if name not in own]
    for name in options:
        if name not in known:
            has = f"; its options are {', '.join(known)}" if known else ""
            raise ValueError(f"{what} has no option {name!r}{has}.{did_you_mean(name, known)}")
    return function(*arguments, **own, **options)


def _option_names(function: Callable[..., Any], given: int) -> Iterator[str]:
    """The arguments of a function after the first ones that are given, also those of an unpacked TypedDict."""
    for parameter in list(signature(function).parameters.values())[given:]:
        if parameter.kind is Parameter.VAR_KEYWORD:
            yield from (name for each in get_args(parameter.annotation) for name in each.__annotations__)
        else:
            yield parameter.name


@contextmanager
def refusing_twice(what: str, kind: str) -> Iterator[None]:
    """Turn the TypeError for an argument that is given twice into a ValueError: it is no `kind` of `what`."""
    try:
        yield
    except TypeError as error:
        twice = re.search(r"multiple values for (?:keyword )?argument '(\w+)'", str(error))
        if twice is None:
            raise
        own = "must be given as an argument of its own"
        raise ValueError(f"`{twice[1]}` {own}, not as a {kind} of {what}.") from error


def check_output_folder(
    folder: Path,
    kind: str,
    is_ours: Callable[[], bool],
    ignored: Callable[[Path], bool] = lambda path: False,
    advice: str = "give a new folder",
) -> None:
    """Raise ValueError unless a folder can be written: there is none, it is empty, or it is an earlier output.

    Args:
        folder: to write.
        kind: of output, for the message.
        is_ours: whether it is an earlier output of that kind; only asked where there are files.
        ignored: files that count as none.
        advice: what to do, for the message.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder.")
    if folder.is_dir() and not all(map(ignored, folder.iterdir())) and not is_ours():
        raise ValueError(f"{folder} is not empty, and no {kind}; {advice}.")


def can_only_be_a_path(source: str | Path) -> bool:
    """Whether a source is written as a path: neither a name nor name/name, nor an address on the Hub."""
    text, path = str(source), Path(source)
    if text.startswith(("hf://", "buckets/")):
        return False
    return path.is_absolute() or len(path.parts) > 2 or text.startswith((".", "~"))


def check_exists(path: str | Path, what: str, advice: str = "") -> None:
    """Raise FileNotFoundError if there is no file or folder at a path.

    Args:
        path: of the file or folder.
        what: of the message: "There is no WHAT PATH."
        advice: at its end, with the punctuation before it; a similar name in the same folder is added.
    """
    if os.path.exists(path):
        return
    if os.path.islink(path):
        raise FileNotFoundError(f"{path} is a link to {os.readlink(path)}, which is not there.")
    raise FileNotFoundError(f"There is no {what} {path}{advice}.{_similar_name(Path(path))}")


def _similar_name(path: Path) -> str:
    """A question that names the file of the same folder with the most similar name; empty if there is none."""
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, MOST_COMPARED)]
    except OSError:
        return ""
    similar = most_similar(path.name, names)
    return "" if similar is None else f" Did you mean {path.parent / similar}?"


def check_source_exists(source: str | Path, suffixes: Collection[str], advice: str = "") -> None:
    """Raise FileNotFoundError if a source is missing that cannot be the name of a data set on the Hub.

    Args:
        source: a path, or a name.
        suffixes: of files, in lower case; a source that ends in one is a path.
        advice: see `check_exists`.
    """
    if can_only_be_a_path(source) or Path(source).suffix.lower() in suffixes:
        check_exists(source, "file or folder", advice)


def check_file(path: str | Path) -> None:
    """Raise FileNotFoundError if there is no file at a path, and ValueError if there is a folder."""
    check_exists(path, "file")
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder; give the name of a file.")


def check_no_file(folder: Path) -> None:
    """Raise ValueError if a folder cannot be made, since it or a folder above it is a file."""
    file = next((path for path in (folder, *folder.parents) if path.is_file()), None)
    if file is not None:
        raise ValueError(f"{file} is a file, where a folder is needed; give another path.")


def check_least(name: str, value: Any, least: int) -> None:
    """Raise ValueError unless a value is None or an integer from `least` up."""
    if value is not None:
        check_integer(name, value, least)


def check_integer(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raise ValueError unless a value is an integer, also of NumPy, from `least` up to `most`."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        span = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"`{name}` must be an integer {span}, got {value!r}.")


def check_workers(name: str, value: Any, least: int = 0) -> None:
    """Raise ValueError unless a value is None or a number of processes or threads that a machine can have."""
    if value is not None:
        check_integer(name, value, least, MOST_WORKERS)


def check_texts(name: str, value: Any) -> None:
    """Raise ValueError unless a value is a list of one or more texts."""
    if not isinstance(value, list | tuple) or not value or not all(isinstance(each, str) for each in value):
        raise ValueError(f"`{name}` must be a list of one or more names, got {value!r}.")


def check_pair(name: str, value: Any, least: float, most: float, kind: type = Integral) -> None:
    """Raise ValueError unless a value is the fewest and the most of something: two numbers of a kind within limits."""
    pair = isinstance(value, list | tuple) and len(value) == 2
    numbers = pair and all(isinstance(each, kind) and not isinstance(each, bool) for each in value)
    if not numbers or not least <= value[0] <= value[1] <= most:
        what = "integers" if kind is Integral else "numbers"
        raise ValueError(f"`{name}` must be two {what} in order, from {least} to {most}, got {value!r}.")


# ---- memory


def keep_memory() -> None:
    """Let the C library keep up to 512 MiB of freed memory, for the next maps of a network.

    Otherwise it returns large maps to the system after each layer, and making their pages again takes time. This has
    no effect where the environment sets it, nor in C libraries other than glibc.
    """
    set_by_user = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    if sys.platform != "linux" or any(name in os.environ for name in set_by_user):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # What to keep last, since it also fixes the first threshold, which is low
    if mallopt is not None and any(mallopt(M_MMAP_THRESHOLD, size) for size in MAP_BYTES):
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


# ---- signals


class InterruptionError(Exception):
    """A signal ended a run, whose results so far are saved.

    Args:
        message: what happened, and how to continue.
        number: of the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class EndNow(KeyboardInterrupt):
    """A signal arrived while there was nothing to finish."""


class Interruption:
    """A context that records the first signal, so that a run can finish its step; a second signal exits immediately.

    It has no effect outside the main thread, since other threads cannot handle signals.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}
        self._waits = True

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            asked = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # not ignored ones
            self._before = {number: signal.signal(number, self._note) for number in asked}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.number = number
        for other, handler in self._before.items():
            signal.signal(other, handler)
        if not self._waits:
            raise EndNow

    @contextmanager
    def at_once(self, possible: bool = True) -> Iterator[None]:
        """Raise EndNow on a signal, while there is nothing to finish."""
        self._waits = not possible
        try:
            yield
        finally:
            self._waits = True


@contextmanager
def orderly_end() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that temporary files are removed as after an exception."""
    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield
        return

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def start_worker(_: int) -> None:
    """Prepare a worker process of a loader.

    It ignores signals, which it gets with its process group, and ends together with the main process, also if that is
    killed. Like `iterate_loader`, it keeps the garbage collector from what it shares with the main process.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()


def iterate_loader(loader: Iterable[T]) -> Iterator[T]:
    """Iterate over a loader whose worker processes are prepared by `start_worker`.

    The garbage collector leaves alone the objects that exist at the start, until the iteration ends: workers share
    them, and visiting an object writes to its page of memory, which is then copied. Workers end with the iteration,
    also if an error of the loader is kept, and at the latest when Python ends, which would otherwise wait for them.
    """
    frozen_before = gc.get_freeze_count() > FROZEN_BY_PYTHON
    gc.collect()
    gc.freeze()
    end_workers = unregister = None
    unfreeze = gc.unfreeze  # modules may be gone when this ends together with Python
    try:
        entries = iter(loader)
        end_workers, unregister = partial(_end_workers, entries, os.getpid()), atexit.unregister
        atexit.register(end_workers)
        yield from entries
    finally:
        try:
            if end_workers is not None and unregister is not None:
                end_workers()
                unregister(end_workers)
        finally:
            if not frozen_before:
                unfreeze()


def _end_workers(entries: Any, process: int, getpid: Callable[[], int] = os.getpid) -> None:
    """End the workers of torch's iterator over a loader, from the process that started them; kill those that hang."""
    end = getattr(entries, "_shutdown_workers", None)  # there is none without workers
    if end is None or getpid() != process:
        return
    end()
    for worker in entries._workers:
        if worker.is_alive():
            worker.kill()


def as_it_is(entry: Any) -> Any:
    """A `collate_fn` for loaders whose data sets give what is wanted; processes cannot be given a lambda."""
    return entry


def in_one_line(error: BaseException) -> str:
    """The message of an error in one line, without the traceback that workers of a loader add."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[1].startswith("Original Traceback"):
        kind = f"{type(error).__name__}: "
        start = max((number for number, line in enumerate(lines) if line.startswith(kind)), default=len(lines) - 1)
        lines = [lines[start].removeprefix(kind), *lines[start + 1 :]]
    return " ".join(" ".join(lines).split())


def warn_of_old_name(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn about the use of an old name, by default at the caller of the caller."""
    warnings.warn(f"`{old}` is now `{new}`; the old name will be removed.", FutureWarning, stacklevel=stacklevel)


def some_names(names: Sequence[str], most: int = 5) -> str:
    """The first of many names, for a message."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def old_names(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Make a `__getattr__` of a module for names of an earlier version, with a warning.

    Args:
        module: name of the module.
        names: old names, and their current names with the module.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_of_old_name(f"{module}.{name}", names[name])
        place, _, attribute = names[name].rpartition(".")
        return getattr(import_module(place), attribute)

    return find


def install_command(extra: str) -> str:
    """The command to install an extra, such as "train", from the same source as this package."""
    clone = Path(__file__).resolve().parents[1]
    if (clone / "pyproject.toml").is_file():  # also if it is on the path without installation
        place = "." if Path.cwd() == clone else str(clone)
        return f"pip install -e {quote(f'{place}[{extra}]')}"
    return f"pip install {quote(_requirement(extra))}"


def _requirement(extra: str) -> str:
    """The requirement for pip, with the source in its `direct_url.json`."""
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    name = f"{__package__}[{extra}]"
    try:
        note = json.loads(distribution(str(__package__)).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        note = {}
    address = note.get("url", "")
    if address.startswith("file:"):
        path = url2pathname(urlsplit(address).path)  # of a folder or a wheel, which may not exist any more
        return f"{path}[{extra}]" if Path(path).exists() else name
    if "vcs_info" in note:
        revision = note["vcs_info"].get("requested_revision")
        return f"{name} @ {note['vcs_info']['vcs']}+{address}{f'@{revision}' if revision else ''}"
    return f"{name} @ {address}" if address else name
