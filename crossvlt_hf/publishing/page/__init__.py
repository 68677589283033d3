"""A page for the browser: an image and expressions in; masks, scores, boxes, timing and explanations out.

Needs the extra `demo` (Gradio), which is imported when one of the two functions is taken from here.
`crossvlt demo --serve` opens the page; `examples/space` is the same page as a Space.
"""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"layout": ["build_page"], "server": ["serve"]}
)
