"""``spes-hf compare``: two saved explanations of one clip, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from spes_hf.commands.options import check_folder
from spes_hf.summaries import load_saved


def add_compare(command: argparse.ArgumentParser) -> None:
    """Add the options of ``compare``."""
    command.add_argument("first", type=Path, metavar="DIR", help="a folder that explain or Explanation.save() wrote")
    command.add_argument("second", type=Path, metavar="DIR", help="another one, of the same clip")
    command.add_argument(
        "--names", nargs=2, metavar="NAME", help="what to call the two (default: the models or methods that differ)"
    )
    command.add_argument(
        "--out", type=Path, default=Path("spes_compare"), metavar="DIR", help="where to write (default: %(default)s)"
    )


def run_compare(options: argparse.Namespace) -> None:
    """Compare two saved explanations: print how far they agree, word by word, and write the page and a picture."""
    from spes_hf.comparing import compare
    from spes_hf.viz.scale import printable

    first: Any = load_saved(options.first)  # compare() refuses recordings
    second: Any = load_saved(options.second)
    found = compare(first, second, options.names)
    out = check_folder(options.out)
    page = found.to_html(out / "comparison.html")
    found.plot()[0].savefig(out / "comparison.png", dpi=130, bbox_inches="tight")
    lines = ["", *map(printable, str(found).splitlines()), "", f"page: {page}", f"picture: {out / 'comparison.png'}"]
    print("\n".join(lines))
