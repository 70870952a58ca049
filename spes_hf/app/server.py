"""Serves the page."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from importlib.resources import files

import gradio as gr

from spes_hf.app.desk import Desk
from spes_hf.app.job import Running
from spes_hf.app.page import build, example

# Hosts that nobody else can reach.
_OWN = ("127.0.0.1", "localhost", "::1")

# Room for the longest recording as 32-bit stereo WAV at 48 kHz, plus other data.
_BYTES_PER_SECOND, _LEAST_BYTES = 2 * 48_000 * 4, 20_000_000


def serve(
    models: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    max_seconds: float = 30.0,
    running: Running | None = None,
) -> None:
    """Serve the page until it is interrupted.

    Args:
        models: Names or paths of models to offer besides those that need no hub. If others can reach the page, only
            these models are allowed; if only this machine can, visitors may type any name or path.
        host: Address to listen on.
        port: Port to listen on; None: the first free one from 7860.
        share: Whether Gradio creates a public link to this server.
        max_seconds: Maximum length of a recording.
        running: How models are loaded and run; None: as by default.

    Raises:
        OSError: If the port is taken.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs the clean-up below
    desk = Desk(running)
    try:
        os.environ["GRADIO_TEMP_DIR"] = str(desk.served)
        blocks = build(desk, models, max_seconds, any_model=host in _OWN and not share)
        _, address, public = blocks.launch(
            server_name=host,
            server_port=port,
            share=share,
            theme=theme(),
            css=_read("app.css"),
            head=f"<script>{_read('app.js')}</script>",
            max_file_size=max(_LEAST_BYTES, int(_BYTES_PER_SECOND * max_seconds)),
            allowed_paths=[example()],
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            quiet=True,
            prevent_thread_lock=True,
        )
        print(f"page: {public or address} (press Ctrl+C to stop)", flush=True)
        blocks.block_thread()
    finally:
        desk.close()


def theme() -> gr.themes.Base:
    """Return the theme of the page, with fonts that every machine has, so nothing is fetched."""
    look = gr.themes.Base(
        primary_hue="orange",
        neutral_hue="stone",
        font=["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )
    return look.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_text_color="white",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
    )


def _read(name: str) -> str:
    return (files("spes_hf.app") / name).read_text("utf-8")
