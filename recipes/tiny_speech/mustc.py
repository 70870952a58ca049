# Copyright 2026 The spes_hf authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Spoken sentences of the miniature corpus, written in the layout of MuST-C."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tiny_speech.sentences import LANGUAGES, Sentence


@dataclass(frozen=True)
class Utterance:
    """A spoken sentence: mono samples in [-1, 1] and per English word (start, end) in seconds."""

    sentence: Sentence
    speaker: str
    samples: np.ndarray
    word_times: list[tuple[float, float]] | None = None


def write_mustc_split(
    root: str | os.PathLike[str], split: str, utterances: Sequence[Utterance], sampling_rate: int = 16000
) -> None:
    """Writes a split in the layout of MuST-C, for German and Spanish, under `<root>/en-<lang>/data/<split>`.

    The utterances of a speaker are joined, half a second apart, into one long recording. Lines of
    `txt/<split>.yaml`, `txt/<split>.en` and `txt/<split>.<lang>` correspond.

    Args:
        root: Folder of the corpus; created when missing.
        split: Name of the split: "train", "dev" or "tst-COMMON".
        utterances: The spoken sentences.
        sampling_rate: Rate of the samples in Hz.
    """
    import soundfile

    speakers: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        speakers.setdefault(utterance.speaker, []).append(utterance)
    first = Path(root) / f"en-{LANGUAGES[0]}" / "data" / split
    for language in LANGUAGES:
        for folder in ("wav", "txt"):
            (Path(root) / f"en-{language}" / "data" / split / folder).mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {"yaml": [], "en": [], "de": [], "es": []}
    gap = np.zeros(sampling_rate // 2, dtype=np.float32)
    for index, (speaker, spoken) in enumerate(speakers.items(), start=1):
        name, offset, pieces = f"tiny_{split}_{index}.wav", 0, []
        for utterance in spoken:
            duration = len(utterance.samples)
            lines["yaml"].append(
                f"- {{duration: {duration / sampling_rate:.6f}, offset: {offset / sampling_rate:.6f}, "
                f"rW: {len(utterance.sentence.source)}, uW: 0, speaker_id: spk.{speaker}, wav: {name}}}"
            )
            lines["en"].append(utterance.sentence.text)
            for language in LANGUAGES:
                lines[language].append(utterance.sentence.translation(language))
            pieces += [utterance.samples.astype(np.float32), gap]
            offset += duration + len(gap)
        soundfile.write(first / "wav" / name, np.concatenate(pieces), sampling_rate, subtype="PCM_16")
        for language in LANGUAGES[1:]:
            _link(first / "wav" / name, Path(root) / f"en-{language}" / "data" / split / "wav" / name)
    for language in LANGUAGES:
        texts = Path(root) / f"en-{language}" / "data" / split / "txt"
        for ending in ("yaml", "en", language):
            (texts / f"{split}.{ending}").write_text("\n".join(lines[ending]) + "\n", encoding="utf-8")


def _link(source: Path, destination: Path) -> None:
    destination.unlink(missing_ok=True)
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)
