"""The figure of the study of gender."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gender_speech import GROUPS
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

GENDERS = {"f": ("#b2456e", "women's"), "m": ("#2c6fa6", "men's")}
KINDS = {
    "contrast": ("#c2571a", "contrastive map"),
    "plain": ("#7a7a7a", "plain map"),
    "energy": ("#b9b9b9", "loudness"),
    "random": ("#e2e2e2", "random"),
}
TITLES = {
    "voice": '"I am tired"\n(voice alone)',
    "noun before": '"As a mother\nI am tired"',
    "noun after": '"I am tired because\nI am a mother"',
    "pronoun": '"Tom says that\nshe is tired"',
    "third-person noun": '"The mother of\nTom is tired"',
}


def draw(result: dict[str, Any], file: Path) -> None:
    """Draw what the model writes, what pitch does, where the maps lie, and what deleting them does."""
    figure = Figure(figsize=(13, 9.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    _written(axes[0, 0], result["written"]["feminine"])
    _sweep(axes[0, 1], result["sweep"])
    _places(axes[1, 0], result["maps"])
    _deletion(axes[1, 1], result["deletion"])
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)


def _error(found: dict[str, Any], scale: float = 1.0) -> tuple[float, list[list[float]]]:
    middle = scale * found["mean"]
    return middle, [[max(0.0, middle - scale * found["low"])], [max(0.0, scale * found["high"] - middle)]]


def _groups(ax: Axes) -> None:
    ax.set_xticks(range(len(GROUPS)), [TITLES[group] for group in GROUPS], fontsize=8.5)


def _written(ax: Axes, shares: dict[str, Any]) -> None:
    for g, group in enumerate(GROUPS):
        for t, told in enumerate((None,) if group == "voice" else ("f", "m")):
            for gender, (colour, _) in GENDERS.items():
                found = shares[f"{group}, word {told or '-'}, voice {gender}"]
                if found["mean"] is None:
                    continue
                place = g + (0 if told is None else (t - 0.5) * 0.36) + (0.07 if gender == "m" else -0.07)
                middle, error = _error(found, 100)
                marker = {"f": "^", "m": "v", None: "o"}[told]
                ax.errorbar(place, middle, error, fmt=marker, color=colour, markersize=8, linewidth=1.3)
    for gender, (colour, name) in GENDERS.items():
        ax.plot([], [], "s", color=colour, label=f"{name} voices")
        ax.plot([], [], "^" if gender == "f" else "v", color="0.4",
                label=f"a word says {'woman' if gender == 'f' else 'man'}")  # fmt: skip
    ax.axhline(50, color="0.85", linewidth=0.8, zorder=0)
    ax.set_ylim(-4, 104)
    ax.set_ylabel('feminine endings ("cansada"), %')
    ax.set_title('The voice decides "I am", a word decides "she is"', loc="left", fontsize=11, fontweight="bold")
    ax.legend(fontsize=8.5, frameon=False, loc="center", bbox_to_anchor=(0.76, 0.5))
    _groups(ax)


def _sweep(ax: Axes, sweep: dict[str, Any]) -> None:
    for gender, (colour, name) in GENDERS.items():
        found = sweep[f"feminine, {gender}"]
        middle = np.array([100 * f["mean"] if f["mean"] is not None else np.nan for f in found])
        low, high = (np.array([100 * f[k] if f[k] is not None else np.nan for f in found]) for k in ("low", "high"))
        ax.errorbar(sweep["pitch"], middle, [middle - low, high - middle], fmt="o-", color=colour, elinewidth=0.8,
                    markersize=5, label=f"new {name} voices")  # fmt: skip
        heard = [
            100 * f["mean"] if f["mean"] is not None else np.nan for f in sweep[f"feminine, {gender} heard in training"]
        ]
        ax.plot(sweep["pitch"], heard, "--", color=colour, label=f"{name} voices of the training")
    ax.set_xscale("log")
    ticks = [80, 100, 120, 150, 200, 250, 300]
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
    ax.axhline(50, color="0.85", linewidth=0.8, zorder=0)
    ax.set_ylim(-4, 104)
    ax.set_xlabel("median pitch, Hz")
    ax.set_ylabel("feminine endings, %")
    ax.set_title("Pitch alone makes no man's voice a woman's", loc="left", fontsize=11, fontweight="bold")
    ax.legend(fontsize=8.5, frameon=False, loc="center left", bbox_to_anchor=(0.0, 0.62))


def _places(ax: Axes, maps: dict[str, Any]) -> None:
    hatches = {"adjective": "", "word that tells": "///", "other words": "..."}
    width = 0.13
    for g, group in enumerate(GROUPS):
        for a, area in enumerate(hatches):
            for k, kind in enumerate(("contrast", "plain")):
                found = maps[group]["places"][kind][area]
                if found["mean"] is None:
                    continue
                middle, error = _error(found)
                ax.bar(g + (2 * a + k - 2.5) * width, middle, width, yerr=error, color=KINDS[kind][0],
                       hatch=hatches[area], edgecolor="white", error_kw={"linewidth": 0.9})  # fmt: skip
    for kind in ("contrast", "plain"):
        ax.bar([0], [0], color=KINDS[kind][0], label=KINDS[kind][1])
    for area, hatch in hatches.items():
        ax.bar([0], [0], color="0.55", hatch=hatch, edgecolor="white", label=f"over the {area}")
    ax.axhline(1, color="0.3", linewidth=0.8, linestyle="--")
    ax.set_ylabel("density of the map's top 5 % (chance: 1)")
    ax.set_title("The contrastive map finds the pronoun", loc="left", fontsize=11, fontweight="bold")
    ax.legend(fontsize=8.5, frameon=False, loc="upper left")
    _groups(ax)


def _deletion(ax: Axes, deletion: dict[str, Any]) -> None:
    width = 0.2
    for g, group in enumerate(GROUPS):
        for k, (kind, (colour, name)) in enumerate(KINDS.items()):
            middle, error = _error(deletion[group][kind]["only the ending flips"], 100)
            ax.bar(g + (k - 1.5) * width, middle, width, yerr=error, color=colour,
                   label=name if not g else None, error_kw={"linewidth": 0.9})  # fmt: skip
    ax.set_ylabel("ending flips, all other words stay, %")
    ax.set_title(
        "Its top 5 % deleted, the ending flips where the sound decides", loc="left", fontsize=11, fontweight="bold"
    )
    ax.legend(fontsize=8.5, frameon=False)
    _groups(ax)
