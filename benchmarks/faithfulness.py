"""What does a map need to be faithful? Deletion and insertion against the number of passes, for every mask design.

    python benchmarks/faithfulness.py --model speech2text-en
    python benchmarks/faithfulness.py --model demo --data CORPUS --designs gradient energy --against prediction

Measures the sentence map of every design at every budget with the machinery of recipes/compare_methods.py, which keeps
what it has measured under OUT/rows, and writes the table (results.md), all numbers (results.json) and a picture with a
panel for each score (results.png). A pass forwards counts 1, a pass backwards 2; only the passes that the sentence map
needs are counted.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from spes_hf import SpesConfig
from spes_hf.methods import ExplainConfig
from spes_hf.metrics import Score, compare

EQ3 = "default:estimator=perturbation,mask_design=independent"
PAPERS_LEVELS = "patches_per_second=400/500/600"
DEFAULT = "default:masks_per_token=1"  # which the sentence's map does not depend on
# The sentence as the sum of its tokens' impacts, and means over patches.
SUM = f"{DEFAULT},sentence_impact=sum,sentence_patches_per_second=None"
# What was the default before masks came in pairs: finer masks, levels further apart.
BEFORE = f"{DEFAULT},mask_design=independent,patches_per_second=400,sentence_patches_per_second=80/400"
# Design → method of compare_methods.py without its number of masks, and the numbers to try.
DESIGNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "Eq. 3, φ = 400, 500, 600": (f"{EQ3},{PAPERS_LEVELS}", (100, 300, 1_000, 3_000)),
    "Eq. 3, antithetic": (f"{EQ3},mask_design=antithetic,{PAPERS_LEVELS}", (1_000,)),
    "Eq. 3, balanced": (f"{EQ3},mask_design=balanced,{PAPERS_LEVELS}", (1_000,)),
    "Eq. 3, φ = 20, 80, 400": (f"{EQ3},patches_per_second=20/80/400", (3_000,)),
    "gradient, Σ r": (f"{SUM},pool_patches_per_second=None", (32,)),
    "gradient, Σ r, means over φ = 400, 1600": (SUM, (32,)),
    "gradient, masks of φ = 400": (BEFORE, (32,)),
    "gradient, independent": (f"{DEFAULT},mask_design=independent", (32,)),
    "gradient, balanced": (f"{DEFAULT},mask_design=balanced", (32,)),
    "gradient, default": (DEFAULT, (8, 16, 32, 128)),
}
PAPER = ("Eq. 3, φ = 400, 500, 600", 20_000)
FREE = ("random", "energy")
PANELS = (
    ("deletion", "deletion, {metric}"),
    ("insertion", "insertion, {metric}"),
    ("deletion_probability_first", "probability left (%), first 20 % deleted"),
    ("insertion_probability", "probability (%), insertion"),
)


def main() -> None:
    """Measure, print, write."""
    recipe = compare_methods()
    parser = recipe.build_parser()
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--designs", nargs="+", default=list(DESIGNS), metavar="DESIGN", help="their names, or a part")
    parser.add_argument("--paper", action="store_true", help="also the paper's own 20,000 masks")
    parser.set_defaults(num_token_masks=20, judge_fill=["mean"])
    options = parser.parse_args()
    if options.out == Path("comparison"):
        options.out = Path(__file__).parent / "results" / "faithfulness" / Path(options.model).name
    chosen = [name for name in DESIGNS if any(part in name for part in options.designs)]
    points = [(name, masks) for name in chosen for masks in DESIGNS[name][1]] + ([PAPER] if options.paper else [])
    methods = {point: f"{DESIGNS[point[0]][0]},num_spectrogram_masks={point[1]}" for point in points}
    methods |= {(name, 0): name for name in FREE}
    counts = {"num_token_masks": options.num_token_masks}
    configs = {method: recipe.method(method, recipe.task_of(options), counts) for method in methods.values()}
    rows = recipe.load_rows(options)
    laboratory = recipe.Laboratory(options, configs)
    if laboratory.measure(rows):
        return
    scores = {point: laboratory.scores(method, rows, "mean") for point, method in methods.items()}
    metric = (options.metric or ("bleu" if recipe.task_of(options) == "st" else "wer")).upper()
    facts = {
        point: {
            "forward_equivalents": cost(configs[method]),
            "reliability": laboratory.cost(method, rows)["reliability"],
        }
        for point, method in methods.items()
    }
    write(options, scores, facts, metric, len(rows))


def compare_methods() -> ModuleType:
    """Return the recipe as a module."""
    path = Path(__file__).parents[1] / "recipes" / "compare_methods.py"
    spec = importlib.util.spec_from_file_location("compare_methods", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["compare_methods"] = module
    spec.loader.exec_module(module)
    return module


def cost(config: ExplainConfig) -> int:
    """Return the forward equivalents that the sentence map costs."""
    backward = isinstance(config, SpesConfig) and config.estimator == "gradient"
    return config.num_spectrogram_masks * (3 if backward else 1)


def write(
    options: argparse.Namespace,
    scores: Mapping[tuple[str, int], Mapping[str, Score]],
    facts: Mapping[tuple[str, int], Mapping[str, Any]],
    metric: str,
    utterances: int,
) -> None:
    """Write results.md, results.json and results.png, and print the table."""
    panels = [(key, label.format(metric=metric)) for key, label in PANELS if key in next(iter(scores.values()))]
    shown = " ".join(f"'{a}'" if " " in a else a for a in sys.argv[1:] if a != "--quiet")
    heads = [label + (" ↑" if next(iter(scores.values()))[key].higher_is_better else " ↓") for key, label in panels]
    lines = [f"# {options.model}, {utterances} utterances", "", f"`python benchmarks/faithfulness.py {shown}`", ""]
    lines += [f"| design | forward equivalents | {' | '.join(heads)} | reliability |", "|---" * (len(heads) + 3) + "|"]
    for (name, masks), found in scores.items():
        cells = [f"{found[k].value:.1f} [{found[k].interval.low:.1f}, {found[k].interval.high:.1f}]" for k, _ in panels]
        passes, reliability = facts[name, masks].values()
        cells.append("" if reliability is None else f"{reliability:.2f}")
        lines.append(f"| {name} | {passes:,} | {' | '.join(cells)} |")
    result: dict[str, Any] = {"model": options.model, "utterances": utterances, "points": []}
    for (name, masks), found in scores.items():
        entry: dict[str, Any] = {"design": name, "masks": masks, **facts[name, masks]}
        for key, _ in panels:
            entry[key] = {"value": found[key].value, "interval": [found[key].interval.low, found[key].interval.high]}
            for base in (PAPER, ("energy", 0)):
                if base in scores and base != (name, masks):
                    c = compare(found[key], scores[base][key])
                    entry[key][f"minus {base[0]} at {base[1]}"] = [c.difference, c.interval.low, c.interval.high]
        result["points"].append(entry)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (options.out / "results.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draw(options.out / "results.png", scores, {p: f["forward_equivalents"] for p, f in facts.items()}, panels)
    print("\n".join(lines))


def draw(
    path: Path,
    scores: Mapping[tuple[str, int], Mapping[str, Score]],
    costs: Mapping[tuple[str, int], int],
    panels: Sequence[tuple[str, str]],
) -> None:
    """Draw a panel for each score: a line for each design over the forward equivalents, free methods as levels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 7.0), layout="constrained")
    FigureCanvasAgg(figure)
    shades = ("#000000", "#d55e00", "#0072b2", "#e69f00", "#009e73", "#cc79a7")
    for axes, (key, label) in zip(figure.subplots(2, 2).flat, panels, strict=False):
        for i, name in enumerate(dict.fromkeys(name for name, masks in scores if masks)):
            points = sorted((costs[p], found[key]) for p, found in scores.items() if p[0] == name)
            middle = [score.value for _, score in points]
            spread = [[s.value - s.interval.low for _, s in points], [s.interval.high - s.value for _, s in points]]
            axes.errorbar([x for x, _ in points], middle, yerr=spread, marker="osD^vP"[i % 6], color=shades[i % 6],
                          linestyle=("-", "--", ":")[i % 3],
                          capsize=2, linewidth=1.2, markersize=4, label=name)  # fmt: skip
        for name, style in zip(FREE, (":", "--"), strict=True):
            value = scores[name, 0][key].value
            axes.axhline(value, color="#888888", linestyle=style, linewidth=1)
            axes.annotate(
                name, (1.0, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="#555555"
            )
        axes.margins(y=0.1)
        axes.set_xscale("log")
        axes.set_xlabel("forward equivalents")
        better = "higher" if scores["energy", 0][key].higher_is_better else "lower"
        axes.set_ylabel(f"{label}\n({better} is better)")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
