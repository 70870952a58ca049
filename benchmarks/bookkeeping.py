"""What a corpus job costs besides explaining: time and memory per row, bytes per utterance.

    python benchmarks/bookkeeping.py

Sends 10,000 utterances that cost nothing through a job (dealing out, rows, shards, progress, summary), takes its time
per row and its memory after each thousand; and packs explanations of an utterance, to compare their bytes with those of
dense maps. Prints it and writes benchmarks/results/bookkeeping.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Value
from processes import fill

from spes_hf import EnergyConfig, FeatureWiseConfig, SpesConfig, explain
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.explanation import Explanation, PatchMap
from spes_hf.explanation.packing import pack
from spes_hf.jobs.run import map_rows
from spes_hf.rows import RowTransform

LIMIT_MS = 5.0


class Copy(RowTransform):
    """Copies a text; notes the memory of the process now and then."""

    key = "copy"

    def __init__(self) -> None:
        self.seen = 0
        self.megabytes: list[float] = []

    def columns(self) -> dict[str, Any]:
        """Return the columns that the transform adds."""
        return {"copy": Value("string"), "error": Value("string")}

    def identity(self) -> dict[str, Any]:
        """Return what decides the result."""
        return {"transform": "copy"}

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row with a copy of its text."""
        self.seen += 1
        if self.seen % 1000 == 0:
            self.megabytes.append(memory_mb())
        return {**row, "copy": row["text"], "error": ""}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000, help="default: 10,000")
    parser.add_argument("--repeats", type=int, default=3, help="runs to take the median of (default: 3)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "bookkeeping.json")
    parser.add_argument("--document", type=Path, metavar="FILE", help="write the table of bytes into this page")
    options = parser.parse_args()

    runs = [job(options.rows) for _ in range(options.repeats)]
    per_row = statistics.median(run["ms_per_row"] for run in runs)
    megabytes = runs[-1]["megabytes"]
    print(f"{options.rows} rows: {per_row:.2f} ms a row (limit: {LIMIT_MS}), {runs[-1]['files']} files")
    print(f"memory after each thousand rows (MB): {', '.join(f'{m:.0f}' for m in megabytes)}")
    sizes = utterance_bytes()
    print(bytes_table(sizes))
    if options.document is not None:
        fill(options.document, {"bytes": bytes_table(sizes)}, Path(__file__).name)
    report = {"rows": options.rows, "ms_per_row": round(per_row, 3), "runs": runs, "bytes": sizes}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def bytes_table(rows: list[dict[str, Any]]) -> str:
    """Return bytes of utterances as a table."""
    lines = ["| utterance | method | dense maps, float32 (bytes) | row (bytes) |", "|---|---|---|---|"]
    lines += [f"| {r['utterance']} | {r['method']} | {r['dense_bytes']:,} | {r['packed_bytes']:,} |" for r in rows]
    return "\n".join(lines)


def job(rows: int) -> dict[str, Any]:
    """Return time and memory of a job with this number of rows."""
    data = Dataset.from_dict({"id": [f"utterance_{i}" for i in range(rows)], "text": ["a b c d"] * rows})
    transform = Copy()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        summary = map_rows(data, [transform], Path(folder) / "out", id_column="id", progress=False)
        seconds = time.perf_counter() - started
        files = len(list((Path(folder) / "out" / "data").iterdir()))
    if not summary.complete or summary.failures:
        raise SystemExit(f"the job went wrong: {summary}")
    return {"ms_per_row": round(1000 * seconds / rows, 3), "files": files, "megabytes": transform.megabytes}


def memory_mb() -> float:
    """Return how much memory the process takes now (Linux), or took at most (elsewhere), in MB."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return round(pages * resource.getpagesize() / 1e6, 1)
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def utterance_bytes() -> list[dict[str, Any]]:
    """Return bytes of rows, and of the dense maps of every token that they stand for."""
    model, processor = load_tiny_model("speech2text-en")
    clip = max(tiny_clips(), key=lambda c: c["words"][-1]["end"])
    masks = {"num_spectrogram_masks": 12, "num_token_masks": 4}  # how many does not matter for the size
    rows = []
    for name, config in {
        "SPES, the default": SpesConfig(),
        "SPES, the paper": SpesConfig.paper("asr", **masks),
        "feature-wise": FeatureWiseConfig(**masks),
        "energy": EnergyConfig(),
    }.items():
        found = explain(model, processor, clip["path"], config=config, progress=False)
        rows.append(measured(f"{found.features.shape[0] / 100:.1f} s, {len(found)} tokens, 80 bins", name, found))
    # As many patches as the paper's settings give: 7.5 s × (400, 500, 600).
    long = synthetic(found, 60, 3_000, 128, (3_000, 3_750, 4_500))
    rows.append(measured("30.0 s, 60 tokens, 128 bins", "SPES, the paper (made up)", long))
    long = synthetic(found, 60, 3_000, 128, (3_000 * 128,))
    rows.append(measured("30.0 s, 60 tokens, 128 bins", "feature-wise (made up)", long))
    return rows


def measured(utterance: str, method: str, found: Explanation) -> dict[str, Any]:
    """Return bytes before and after."""
    dense = len(found.pieces) * found.features.numel() * 4
    return {"utterance": utterance, "method": method, "dense_bytes": dense, "packed_bytes": len(pack(found))}


def synthetic(found: Explanation, tokens: int, frames: int, bins: int, patches: tuple[int, ...]) -> Explanation:
    """Return an explanation of a given size, of rectangular patches with random scores."""
    labels = torch.stack([rectangles(frames, bins, count) for count in patches])
    return replace(
        found,
        pieces=(" word",) * tokens,
        token_id_list=(5,) * tokens,
        special=(False,) * tokens,
        context_pieces=(" word",) * tokens,
        probabilities=torch.rand(tokens),
        features=torch.rand(frames, bins),
        times=torch.arange(frames) / 100,
        frequencies=torch.arange(bins).float(),
        audio_map=PatchMap(
            labels,
            tuple(torch.randn(tokens, int(level.max()) + 1) for level in labels),
            tuple(torch.rand(int(level.max()) + 1) for level in labels),
        ),
        sentence_map=None,
        raw_token_scores=torch.rand(tokens, tokens),
        text_impact=torch.rand(tokens),
        token_sound_bits=torch.rand(tokens),
        token_text_bits=torch.rand(tokens),
        sound_impact=torch.rand(tokens),
        waveform=torch.rand(frames * 160) * 2 - 1,
    )


def rectangles(frames: int, bins: int, count: int) -> torch.Tensor:
    """Return a label map of about this number of rectangular patches, (frames, bins) int32."""
    side = max(1, round((frames * bins / count) ** 0.5))
    columns = -(-bins // side)
    t, c = torch.arange(frames)[:, None], torch.arange(bins)[None]
    return ((t // side) * columns + c // side).int()


if __name__ == "__main__":
    main()
