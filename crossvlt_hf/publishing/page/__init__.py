"""A page for the browser: an image and expressions in; masks, scores, boxes, timing and explanations out.

Needs the extra `demo` (Gradio), which is imported on first use of one of the two functions. `crossvlt demo --serve`
serves the page; `examples/space` is the same page as a Space.
"""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"layout": ["build_page"], "server": ["serve"]}
)
