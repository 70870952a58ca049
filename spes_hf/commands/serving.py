"""``spes-hf app``: a web page for people who do not write Python."""

from __future__ import annotations

import argparse
import importlib.util
import os

from spes_hf.commands.options import add_autocast, add_batch_size, add_loading, check_numbers
from spes_hf.commands.placing import AUTOMATIC, check_placing
from spes_hf.errors import ConfigError
from spes_hf.names import EXTRAS


def add_app(command: argparse.ArgumentParser) -> None:
    """Add the options of ``app``. No --compile: recordings differ in length, and each length would be recompiled."""
    command.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="ID_OR_PATH",
        help="a model to offer besides those that need no hub; may be repeated; the first is preselected",
    )
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    command.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    command.add_argument("--share", action="store_true", help="let Gradio create a public link to this server")
    command.add_argument(
        "--max-seconds", type=float, default=30.0, metavar="S", help="maximum length of a recording (default: 30)"
    )
    add_loading(command)
    add_batch_size(command)
    add_autocast(command)


def run_app(options: argparse.Namespace) -> None:
    """Serve the page until it is interrupted.

    Raises:
        ConfigError: If Gradio is not installed, or an option has a value that is not allowed.
    """
    if not 1 <= options.max_seconds <= 3600:
        raise ConfigError(f"--max-seconds is {options.max_seconds:g}; allowed: from 1 to 3600")
    if options.port is not None and not 1 <= options.port <= 65535:
        raise ConfigError(f"--port is {options.port}; allowed: from 1 to 65535")
    check_numbers(options)
    if options.device_map is not None and options.device_map not in AUTOMATIC:
        raise ConfigError(
            f"--device-map is {options.device_map!r}, but the page offers several models, and a file with parts suits "
            f"one; allowed: {', '.join(AUTOMATIC)}"
        )
    check_placing(options.device, options.device_map)  # find out now, not when the first visitor asks
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError(
            f"the page needs the extra 'app', which is not installed: run `pip install '{EXTRAS['app']}'`, or "
            "`pip install '.[app]'` in a clone"
        )
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before Gradio is imported
    from spes_hf.app.job import Running
    from spes_hf.app.server import serve

    running = Running(options.device, options.device_map, options.dtype, options.batch_size, options.autocast)
    serve(options.model, options.host, options.port, options.share, options.max_seconds, running)
