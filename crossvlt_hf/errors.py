"""Errors as one sentence, for the command lines."""


def in_one_line(error: BaseException) -> str:
    """What an error says, without the traceback that a process of a loader puts around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[1].startswith("Original Traceback"):
        kind = f"{type(error).__name__}: "
        start = max((number for number, line in enumerate(lines) if line.startswith(kind)), default=len(lines) - 1)
        lines = [lines[start].removeprefix(kind), *lines[start + 1 :]]
    return " ".join(" ".join(lines).split())
