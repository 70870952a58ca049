"""The page of spes_hf as a Space. spes_hf itself comes from the wheel next to this file; see README.md."""

import os
import sys
import tempfile
import zipfile
from pathlib import Path

if __name__ == "__main__":  # not in the worker process, which gets the path of spes_hf
    wheels = sorted(Path(__file__).parent.glob("spes_hf-*.whl"))
    if len(wheels) != 1:
        found = ", ".join(wheel.name for wheel in wheels) or "none"
        sys.exit(f"next to app.py: {found}; put one wheel there: python -m build --wheel -o {Path(__file__).parent}")
    with tempfile.TemporaryDirectory(prefix="spes_hf-wheel-") as folder:
        zipfile.ZipFile(wheels[0]).extractall(folder)
        sys.path.insert(0, folder)
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before Gradio is imported
        from spes_hf.app.server import serve

        serve(host="0.0.0.0", port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")))
