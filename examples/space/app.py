"""The page as a Space: with the built-in checkpoint, or the one that the Space's variable MODEL names."""

import os

from crossvlt_hf.checkpoint import DEFAULT_CHECKPOINT
from crossvlt_hf.publishing.page import serve


serve(os.environ.get("MODEL") or DEFAULT_CHECKPOINT)
