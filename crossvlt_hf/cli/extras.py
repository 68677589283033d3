"""Commands that need an optional dependency."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Tell how to install what an import inside misses.

    Raises:
        ValueError: if something is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"This needs {error.name}: pip install 'crossvlt_hf[{extra}]'.") from error
