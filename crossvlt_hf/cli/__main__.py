"""The old name of `python -m crossvlt_hf`."""

import crossvlt_hf.__main__  # noqa: F401
