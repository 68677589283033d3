"""`python -m crossvlt_hf.cli`, and `accelerate launch -m crossvlt_hf.cli evaluate ...`."""

import sys

from . import main


sys.exit(main())
