"""A page for the browser: an image and expressions in; masks, scores, boxes, timing and explanations out.

Needs the extra `demo` (Gradio). `crossvlt demo --serve` opens it; `examples/space` is the same page as a Space.
"""

from .layout import build_page
from .server import serve


__all__ = ["build_page", "serve"]
