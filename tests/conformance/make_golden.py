"""Write the maps that `SpesConfig.paper` must go on drawing.

    python tests/conformance/make_golden.py

Run it with the code whose numbers are to be kept, before a change, not after: test_golden.py compares. The file was
made with the code as it was before there was a gradient estimator, on torch 2.13 and scikit-image 0.26.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from spes_hf import Explanation, SpesConfig, explain
from spes_hf.demo import load_tiny_model, tiny_clips

FILE = Path(__file__).parent / "paper.safetensors"
FEW = {"num_spectrogram_masks": 60, "num_token_masks": 40}
# Setting, model, clip, what generate() needs.
CASES: dict[str, tuple[SpesConfig, str, str, dict[str, Any]]] = {
    "asr": (SpesConfig.paper("asr", **FEW), "speech2text-en", "tst-COMMON-0109", {}),
    "st": (SpesConfig.paper("st", **FEW), "seamless-en-de-es", "tst-COMMON-0305", {"tgt_lang": "deu"}),
}


def explained(case: str) -> Explanation:
    """Return the explanation of a case, seed 0."""
    config, name, clip_id, options = CASES[case]
    clip = next(clip for clip in tiny_clips() if clip["id"] == clip_id)
    return explain(*load_tiny_model(name), clip["path"], config=config, progress=False, **options)


def numbers(explanation: Explanation) -> dict[str, Tensor]:
    """Return what is kept: for every level how often each patch was perturbed, (F,), and its raw scores, (K, F)."""
    audio = explanation.audio_map
    kept = {
        "token_ids": torch.tensor(explanation.token_ids),
        "raw_token": explanation.raw_token,
        "impact_of_tokens": explanation.text_impact,
        "impact_of_sound": explanation.sound_impact,
        "label_sums": audio.labels.long().sum(2),  # (L, T): where the patches lie, frame by frame
    }
    for level, (numerator, denominator) in enumerate(zip(audio.values, audio.weights, strict=True)):
        kept[f"counts.{level}"] = denominator.to(torch.uint8)
        kept[f"scores.{level}"] = numerator / denominator.clamp_min(1)
    return kept


def main() -> None:
    """Explain and write."""
    parts = {f"{case}.{name}": value for case in CASES for name, value in numbers(explained(case)).items()}
    save_file({name: value.contiguous() for name, value in parts.items()}, FILE)
    FILE.chmod(0o644)
    print(f"{FILE}: {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
