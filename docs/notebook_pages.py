"""Returns the notebooks as pages of the documentation: a hook of mkdocs that needs no plugin."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def page_of(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return a notebook, with its stored outputs, as Markdown, and the pictures in it by name of file.

    Args:
        path: A notebook in the format of Jupyter, version 4.
    """
    blocks: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            blocks.append(source)
            continue
        blocks.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = {kind: "".join(value) for kind, value in output.get("data", {}).items()}
            if "image/png" in data:
                name = f"{path.stem}_{len(pictures) + 1}.png"
                pictures[name] = b64decode(data["image/png"])
                blocks.append(f"![What the cell above draws]({name})")
            elif "text/html" in data:
                # One line: Markdown ends a block of HTML where a blank line is.
                blocks.append(re.sub(r"\s*\n\s*", " ", data["text/html"]))
            else:
                text = "".join(output.get("text", "")) or data.get("text/plain", "")
                blocks.append(f"```text\n{text.rstrip()}\n```")
    return _links("\n\n".join(blocks)), pictures


def _links(text: str) -> str:
    """Return Markdown of the folder of notebooks with links that lead to pages."""
    return re.sub(r"\]\(\.\./docs/", "](../", re.sub(r"(\]\(\w+)\.ipynb\)", r"\1.md)", text))


def on_files(files: Any, config: Any) -> Any:
    """Add a page for every notebook, and its pictures (called by mkdocs)."""
    from mkdocs.structure.files import File

    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text, pictures = page_of(path)
        for name, content in {f"{path.stem}.md": text, **pictures}.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page whose links to notebooks lead to their pages (called by mkdocs)."""
    return re.sub(r"\]\(\.\./notebooks/(\w+)\.ipynb\)", r"](notebooks/\1.md)", markdown)
