"""A corpus in the shape of MuST-C, made of the clips that the package ships."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE_HZ = 16_000
GAP_S = 0.5


def write_corpus(
    root: Path, clips: Sequence[dict[str, Any]], language: str = "de", version: int = 3, talks: int = 2
) -> Path:
    """Write clips as talks of several utterances each, in the layout of a release, and return the split's folder."""
    folder = root / f"en-{language}" / "data" / "tst-COMMON"
    for name in ("wav", "txt"):
        (folder / name).mkdir(parents=True)
    lines: dict[str, list[str]] = {"yaml": [], "en": [], language: []}
    for talk in range(talks):
        pieces: list[np.ndarray] = []
        for clip in clips[talk::talks]:
            samples = soundfile.read(clip["path"], dtype="float32")[0]
            offset, words = sum(map(len, pieces)), len(clip["transcript"].split())
            lines["yaml"].append(
                f"- {{duration: {len(samples) / RATE_HZ:.6f}, offset: {offset / RATE_HZ:.6f}, "
                + (f"rW: {words}, uW: 0, " if version == 1 else "")
                + f"speaker_id: spk.{talk}, wav: ted_{talk}.wav}}"
            )
            lines["en"].append(clip["transcript"])
            lines[language].append(clip[f"translation_{language}"])
            pieces += [samples, np.zeros(int(GAP_S * RATE_HZ), dtype=np.float32)]
        soundfile.write(folder / "wav" / f"ted_{talk}.wav", np.concatenate(pieces), RATE_HZ, subtype="PCM_16")
    for ending, texts in lines.items():
        (folder / "txt" / f"tst-COMMON.{ending}").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return folder
