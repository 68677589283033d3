"""Processes of this Python that need not import PyTorch, which would take them longer than what they are tested for.

Each is a fork of a server, with arguments, environment, folder, output and exit of its own. There are two, each
started at the first process that needs it. One has also imported Transformers and this package, which read the
environment as they are imported: it serves processes whose environment is that of the tests. The other has imported
PyTorch and what else reads no environment of a user.
"""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory


TESTS = Path(__file__).parent
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
def _server(*modules: str) -> subprocess.Popen:
    """It ends with this process, which closes its input."""
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # no CUDA before a fork
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, __file__, *modules], env=environment, text=True, **pipes)


def run_python(
    *arguments: object, folder: Path | None = None, environment: Mapping[str, str] | None = None, plain: bool = False
) -> subprocess.CompletedProcess:
    """What `python ARGUMENTS` prints; the arguments begin with `-m`, `-c` or a script.

    With `plain`, Transformers and this package are left to the process in any environment.
    """
    plain = plain or _stays(os.environ if environment is None else environment) != _stays(ENVIRONMENT)
    server = _server(*PLAIN) if plain else _server(*PLAIN, *WHOLE)
    with TemporaryDirectory() as place:
        output, errors = Path(place, "output"), Path(place, "errors")
        command = [str(argument) for argument in arguments]
        variables = dict(os.environ if environment is None else environment)
        request = command, variables, str(folder or Path.cwd()), str(output), str(errors)
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(command, code, output.read_text("utf-8"), errors.read_text("utf-8"))


def _wait_for_request() -> list:
    """In the server, until there are no more; returns in its forks."""
    for name in sys.argv[1:]:
        import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return json.loads(line)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()
    sys.exit()


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
    _begin(*_wait_for_request())
