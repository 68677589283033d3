"""The page as a Space: with the built-in checkpoint, or the one that the Space's variable MODEL names."""

import os

from crossvlt_hf.publishing.page import serve
from crossvlt_hf.weights.checkpoint import DEFAULT_CHECKPOINT


serve(os.environ.get("MODEL") or DEFAULT_CHECKPOINT)
