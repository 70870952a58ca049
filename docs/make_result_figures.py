"""Makes the figures of gradient.md and evaluating.md from the numbers in benchmarks/results; runs no model.

python docs/make_result_figures.py
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
RESULTS, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"
ORANGE, BLUE, GREY = "#d55e00", "#0072b2", "#7f7f7f"


def main() -> None:
    """Draw both figures."""
    agreement(IMAGES / "agreement.png")
    methods(IMAGES / "methods.png")


def agreement(path: Path) -> None:
    """Draw how well each estimator agrees with Eq. 3 under very many masks, against its cost."""
    tokens = defaultdict(list)
    for row in json.loads((RESULTS / "agreement.json").read_text(encoding="utf-8")):
        tokens[row["method"]].append(row)
    figure, ax = plt.subplots(figsize=(6.4, 3.8))
    for estimator, color, marker in (("Eq. 3", "black", "o"), ("gradient", ORANGE, "v")):
        points = []
        for method, rows in tokens.items():
            if method.startswith(estimator):
                # The rows of a clip all hold the cost of the whole clip; a backward pass counts as two forward passes.
                cost = mean(row["forward_passes"] + 2 * row["backward_passes"] for row in rows)
                corrected = mean(row["sum_corrected"] for row in rows)
                points.append((cost, corrected, method.split(", ")[1].replace("1 masks", "1 mask")))
        costs, values, labels = zip(*sorted(points), strict=True)
        ax.plot(costs, values, color=color, marker=marker, label=estimator)
        for cost, value, label in zip(costs, values, labels, strict=True):
            if label in ("500 masks", "2,000 masks", "8,000 masks", "1 mask", "8 masks", "32 masks", "512 masks"):
                below = estimator == "Eq. 3"
                offset = (6, -12) if below else (-6, 7)
                ax.annotate(
                    label, (cost, value), offset, textcoords="offset points", ha="left" if below else "right", size=8
                )
    ax.set(
        xscale="log",
        xlim=(6, 40_000),
        ylim=(0.3, 1.04),
        xlabel="cost of a clip in forward passes (a backward pass counts as two)",
        ylabel="correlation with the limit of Eq. 3",
    )
    ax.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def methods(path: Path) -> None:
    """Draw the scores of Table 1 for Speech2Text with their intervals, best deletion first."""
    file = RESULTS / "table1" / "speech2text-en" / "results.json"
    judged = json.loads(file.read_text(encoding="utf-8"))["judged"]["mean"]
    judged = {name: judged[name]["scores"] for name in judged if "scores" in judged[name] and name[0] != "-"}
    names = sorted(judged, key=lambda name: judged[name]["deletion"]["value"])
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 2.9), sharey=True)
    for ax, score, title in zip(
        axes,
        ("deletion", "insertion"),
        ("deletion, WER (higher is better)", "insertion, WER (lower is better)"),
        strict=True,
    ):
        for i, name in enumerate(names):
            found = judged[name][score]
            color = GREY if name in ("random", "energy") else ORANGE if name == "SPES" else BLUE
            ax.plot(found["interval"], [i, i], color=color, linewidth=1.5)
            ax.plot(found["value"], i, "o", color=color)
        ax.set(xlabel=title, xlim=(0, None))
        ax.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), names)
    figure.tight_layout()
    figure.savefig(path, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
