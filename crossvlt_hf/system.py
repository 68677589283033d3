"""The process and its user: requests to end a run (SIGTERM and Ctrl-C), one-line errors, names that moved, extras."""

import json
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from shlex import quote
from types import FrameType
from typing import Any, Self


SIGNALS = (signal.SIGTERM, signal.SIGINT)


class InterruptionError(Exception):
    """A run was asked to end, and what it had done is kept.

    Args:
        message: what happened, and how to go on.
        number: of the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class EndNow(KeyboardInterrupt):
    """A request to end came while there was nothing to finish."""


class Interruption:
    """Notes the first request to end, so that the step and a checkpoint are finished; a second one ends at once.

    To be used as a context. Elsewhere than in the main thread, which alone may handle signals, it notes nothing.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}
        self._waits = True

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            asked = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # not what is ignored
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
        """While there is nothing to finish, a request raises EndNow."""
        self._waits = not possible
        try:
            yield
        finally:
            self._waits = True


def ignore_signals(_: int) -> None:
    """For processes of a loader, which a signal to the whole group reaches too: what they feed is to be finished.

    They end with the process that they feed, also if it is killed.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def in_one_line(error: BaseException) -> str:
    """What an error says, without the traceback that a process of a loader puts around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[1].startswith("Original Traceback"):
        kind = f"{type(error).__name__}: "
        start = max((number for number, line in enumerate(lines) if line.startswith(kind)), default=len(lines) - 1)
        lines = [lines[start].removeprefix(kind), *lines[start + 1 :]]
    return " ".join(" ".join(lines).split())


def warn_of_old_name(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that a name of an earlier version was used; by default at the caller of the caller."""
    warnings.warn(f"`{old}` is now `{new}`; the old name will be removed.", FutureWarning, stacklevel=stacklevel)


def old_names(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` that gives what it had in an earlier version, with a warning.

    Args:
        module: its name.
        names: where each old name is now, with the module.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_of_old_name(f"{module}.{name}", names[name])
        place, _, attribute = names[name].rpartition(".")
        return getattr(import_module(place), attribute)

    return find


def install_command(extra: str) -> str:
    """The command that installs an extra of this package from where the package itself was installed.

    Args:
        extra: its name, such as "train".
    """
    clone = Path(__file__).resolve().parents[1]
    if (clone / "pyproject.toml").is_file():  # also one that is not installed, but on the path
        place = "." if Path.cwd() == clone else str(clone)
        return f"pip install -e {quote(f'{place}[{extra}]')}"
    return f"pip install {quote(_requirement(extra))}"


def _requirement(extra: str) -> str:
    """What pip is told, by what it noted of where the package came from (`direct_url.json`)."""
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
        path = url2pathname(urlsplit(address).path)  # of a folder or a wheel, which may be gone
        return f"{path}[{extra}]" if Path(path).exists() else name
    if "vcs_info" in note:
        revision = note["vcs_info"].get("requested_revision")
        return f"{name} @ {note['vcs_info']['vcs']}+{address}{f'@{revision}' if revision else ''}"
    return f"{name} @ {address}" if address else name
