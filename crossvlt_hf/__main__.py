"""The command `crossvlt` as a module: `python -m crossvlt_hf`, `accelerate launch -m crossvlt_hf`."""

import sys

from .cli import main


sys.exit(main())
