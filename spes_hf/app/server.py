"""Serve the page."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from importlib.resources import files

import gradio as gr

from spes_hf.app.desk import Desk
from spes_hf.app.page import build, example

# Hosts that nobody else can reach.
_OWN = ("127.0.0.1", "localhost", "::1")

# Room for the longest recording as WAV with two channels of 48 kHz and 32 bits, and for what is not audio at all.
_BYTES_PER_SECOND, _LEAST_BYTES = 2 * 48_000 * 4, 20_000_000


def serve(
    models: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    max_seconds: float = 30.0,
) -> None:
    """Serve the page until it is interrupted.

    Args:
        models: Names or paths of models to offer, besides those that need no hub. On a page that others can reach, they
            are all there is; on this machine alone, any name or path may be typed.
        host: Address to listen at.
        port: Port to listen at; None: the first free one from 7860 on.
        share: Whether Gradio shall make a public address that leads here.
        max_seconds: Longer recordings are refused.

    Raises:
        OSError: If the port is taken.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of the clean-up below
    desk = Desk()
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
        print(f"page: {public or address} (Ctrl+C ends it)", flush=True)
        blocks.block_thread()
    finally:
        desk.close()


def theme() -> gr.themes.Base:
    """Return the look of the page, with fonts that every machine has: nothing is fetched."""
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
