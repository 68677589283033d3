"""Processes of this Python that need not import PyTorch, which would take them longer than what they are tested for.

Each is a fork of a server, with arguments, environment, folder, output and exit of its own. There are two, each
started at the first process that needs it, and shared by all processes of pytest-xdist. One has imported PyTorch and
what else reads no environment of a user. The other, a fork of it, has also imported Transformers and this package,
which read the environment as they are imported: it serves processes whose environment is that of the tests.
"""

import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir


TESTS = Path(__file__).parent
OWNER = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()  # the process that ends last
RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID", f"{OWNER}-{time.time_ns()}")
ENVIRONMENT = dict(os.environ)
READ_LATER = (  # than at import, or without effect here; libraries set some of them
    *("ACCELERATE_", "CUDA_VISIBLE_DEVICES", "HF_HUB_DISABLE_TELEMETRY", "OMP_NUM_THREADS", "PYTEST_CURRENT_TEST"),
    *("TOKENIZERS_PARALLELISM", "TORCHINDUCTOR_CACHE_DIR"),
)
PLAIN = (
    *("torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor"),
    *("httpx", "jinja2", "pandas"),
)
WHOLE = (
    *("accelerate", "datasets", "transformers.trainer", "transformers.pipelines", "torch.utils.tensorboard"),
    *("crossvlt_hf.cli", "crossvlt_hf.pipeline_crossvlt", "crossvlt_hf.training.run"),
)


def _stays(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(READ_LATER)}


@cache
def _server(name: str) -> Path:
    """The socket of a server; the first process of the tests that asks for it starts it."""
    folder = Path(gettempdir(), f"crossvlt-tests-{RUN}")
    folder.mkdir(exist_ok=True)
    path = folder / name
    try:
        (folder / f"{name}.started").touch(exist_ok=False)
    except FileExistsError:
        return path
    if name == "plain":
        environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # no CUDA yet
        command = [sys.executable, __file__, str(path), str(OWNER), *PLAIN]
        subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
    else:
        code = f"import sys; sys.path.insert(0, {str(TESTS)!r}); import processes; processes.serve(*sys.argv[1:])"
        command = ["-c", code, str(path), str(OWNER), *WHOLE]
        with _send(_server("plain"), command, ENVIRONMENT, TESTS, os.devnull, os.devnull):
            pass  # it goes on when nobody listens
    return path


def _send(server: Path, command: list[str], *request: object) -> socket.socket:
    """Ask a server for a process; its exit code can be received."""
    connection, deadline = socket.socket(socket.AF_UNIX), time.monotonic() + 300
    while True:
        try:
            connection.connect(str(server))
            break
        except (FileNotFoundError, ConnectionRefusedError):  # it is still importing
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    connection.sendall(json.dumps([command, *request], default=str).encode() + b"\n")
    return connection


def run_python(
    *arguments: object, folder: Path | None = None, environment: Mapping[str, str] | None = None, plain: bool = False
) -> subprocess.CompletedProcess:
    """What `python ARGUMENTS` prints; the arguments begin with `-m`, `-c` or a script.

    With `plain`, Transformers and this package are left to the process in any environment.
    """
    plain = plain or _stays(os.environ if environment is None else environment) != _stays(ENVIRONMENT)
    server = _server("plain" if plain else "whole")
    with TemporaryDirectory() as place:
        output, errors = Path(place, "output"), Path(place, "errors")
        command = [str(argument) for argument in arguments]
        variables = dict(os.environ if environment is None else environment)
        with _send(server, command, variables, folder or Path.cwd(), output, errors) as connection:
            code = int(connection.makefile().readline())
        return subprocess.CompletedProcess(command, code, output.read_text("utf-8"), errors.read_text("utf-8"))


def serve(path: str, owner: str, *modules: str) -> None:
    """Answer requests until the tests have ended; in a fork, be what was asked for."""
    for name in modules:
        import_module(name)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{path}.new")
        listening.listen()
        Path(f"{path}.new").rename(path)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait
        while _lives(int(owner)):
            if select.select([listening], [], [], 1)[0]:
                connection, _ = listening.accept()
                if os.fork() == 0:
                    break
                connection.close()
        else:
            shutil.rmtree(Path(path).parent, ignore_errors=True)
            os._exit(0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with connection:
        request = json.loads(connection.makefile().readline())
        child = os.fork()
        if child != 0:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            with suppress(BrokenPipeError):
                connection.sendall(f"{code}\n".encode())
            os._exit(0)
    _begin(*request)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _begin(command: list[str], variables: dict[str, str], folder: str, output: str, errors: str) -> None:
    for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, output, os.O_WRONLY), (2, errors, os.O_WRONLY)):
        os.dup2(os.open(path, flags | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    kind = command[0] if command[0] in ("-m", "-c") else "script"
    what, *sys.argv[1:] = command if kind == "script" else command[1:]
    sys.path[0] = str(Path(what).parent.absolute()) if kind == "script" else folder if kind == "-m" else ""
    if kind == "script" and TESTS in Path(what).absolute().parents:
        sys.path.insert(1, str(TESTS))  # PYTHONPATH=tests
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv[0] = "-c"
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv[0] = what
        runpy.run_path(what, run_name="__main__")


if __name__ == "__main__":
    serve(*sys.argv[1:])
