"""Serve the page until Ctrl-C."""

import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import gradio as gr

from ...system import check_integer
from ...weights.checkpoint import DEFAULT_CHECKPOINT, load_checkpoint
from .about import choose_note, describe, make_examples
from .inputs import MAX_UPLOAD
from .layout import CSS, THEME, build_page


def choose_port(host: str, port: int) -> int:
    """Check that a port is free; choose one for 0.

    Raises:
        ValueError: if the port cannot be used.
    """
    check_integer("port", port, 0, 65535)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ValueError(f"Cannot listen on {host}:{port} ({error.strerror}); use another --port.") from error


def _launch(page: gr.Blocks, host: str | None, port: int | None) -> str:
    """Start the server in the background, and return its address."""
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        theme=THEME,
        css=CSS,
        max_file_size=MAX_UPLOAD,
        footer_links=[],
        run_history=False,
        share=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    return address


@contextmanager
def _own_folder() -> Iterator[Path]:
    """A folder for all files of Gradio, which is removed at the end."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="crossvlt-page-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder, "files"))
        try:
            yield Path(folder)
        finally:
            os.environ.pop("GRADIO_TEMP_DIR")
            if before is not None:
                os.environ["GRADIO_TEMP_DIR"] = before


def _run(page: gr.Blocks, host: str | None, port: int | None) -> None:
    try:
        address = _launch(page, host, port)
        print(f"The page is at {address} until Ctrl-C", file=sys.stderr, flush=True)  # noqa: T201
        while True:
            time.sleep(1)
    finally:
        page.close(verbose=False)


def serve(
    source: str | Path = DEFAULT_CHECKPOINT, *, host: str | None = None, port: int | None = None, device: str = "cpu"
) -> None:
    """Serve the page until Ctrl-C or SIGTERM, then delete all uploads and results.

    Args:
        source: checkpoint: a folder or a Hub id.
        host: address to listen on; None for GRADIO_SERVER_NAME from the environment, or 127.0.0.1.
        port: port, 0 for any free one; None for GRADIO_SERVER_PORT, or the first free one from 7860.
        device: of the model.

    Raises:
        OSError: if there is no checkpoint, or it cannot be read.
        ValueError: if the checkpoint, the device or the port cannot be used.
    """
    if port is not None:
        port = choose_port(host or "127.0.0.1", port)
    for number in (signal.SIGTERM, signal.SIGINT):  # background jobs of a shell ignore SIGINT
        signal.signal(number, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        model, processor = load_checkpoint(source, device=device)
        facts, note = describe(model, processor, source), choose_note(processor, source)
        with _own_folder() as folder:
            examples = make_examples(processor, source, folder / "scenes")
            page = build_page(model, processor, facts=facts, note=note, examples=examples)
            _run(page, host, port)
