"""The command under its old name; it is `python -m crossvlt_hf`."""

import crossvlt_hf.__main__  # noqa: F401
