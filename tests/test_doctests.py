"""The example of every public class and function runs, with the trained Speech2Text model and clips of the package."""

from __future__ import annotations

import doctest
import inspect
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tiny_speech.mustc import Utterance, write_mustc_split
from tiny_speech.sentences import Sentence

import spes_hf
import spes_hf.analysis
import spes_hf.metrics
from spes_hf import Diagnose, SpesConfig, explain
from spes_hf.analysis import Alignment
from spes_hf.audio.load import load_audio
from spes_hf.demo import load_tiny_model, tiny_clips

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


MODULES = (spes_hf, spes_hf.metrics, spes_hf.analysis)
NEEDS = {"align_words": "pocketsphinx", "align_explanation": "pocketsphinx"}


def public() -> list[tuple[ModuleType, str]]:
    """Return the modules and names with an example: all classes and functions but errors.

    What has the same name in `spes_hf` is not listed again.
    """
    found = {(module, name): getattr(module, name) for module in MODULES for name in module.__all__}
    return [
        (module, name)
        for (module, name), value in found.items()
        if callable(value)
        and not (inspect.isclass(value) and issubclass(value, Exception))
        and (module is spes_hf or value is not found.get((spes_hf, name)))
    ]


def joined(sounds: list[np.ndarray]) -> np.ndarray:
    """Return clips, (n,) each at 16 kHz, with faint pauses of 0.8 s between them."""
    pause = 1e-4 * np.random.default_rng(0).standard_normal(12_800).astype(np.float32)
    return np.concatenate([part for sound in sounds for part in (sound, pause)])


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> dict[str, Any]:
    """What examples may use without a word, as docs/api.md says."""
    from datasets import Audio, Dataset

    model, processor = load_tiny_model("speech2text-en")
    rows = tiny_clips()
    clips = [row["path"] for row in rows]
    sounds = [np.asarray(load_audio(path, 16_000).samples) for path in clips[:3]]
    folder = tmp_path_factory.mktemp("examples")
    sentence = Sentence(
        tuple(rows[0]["transcript"].split()),
        {
            language: tuple(
                (word, tuple(source))
                for word, source in zip(
                    rows[0][f"translation_{language}"].split(), rows[0]["alignment"][language], strict=True
                )
            )
            for language in ("de", "es")
        },
    )
    write_mustc_split(folder / "corpus", "tst-COMMON", [Utterance(sentence, "one", sounds[0])])
    dataset = Dataset.from_dict({"id": ["1", "2"], "audio": clips[:2]}).cast_column("audio", Audio(decode=False))
    diagnose_row = Diagnose(model, processor, SpesConfig.fast(), reference_column="text")
    return {
        "np": np,
        "torch": torch,
        "model": model,
        "processor": processor,
        "clip": clips[0],
        "clips": clips,
        "talk": {"array": joined(sounds[:3]), "sampling_rate": 16_000},
        "ex": explain(model, processor, clips[0], config=SpesConfig.fast()),
        "alignment": Alignment.of(rows[0]["words"]),
        "diagnosed": diagnose_row({"audio": clips[0], "text": "Tom sells a small pitcher."}),
        "dataset": dataset,
        "folder": folder,
        "corpus": folder / "corpus",
    }


@pytest.mark.parametrize(("module", "name"), public(), ids=lambda value: getattr(value, "__name__", value))
def test_example_runs(module, name, names):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    globs = {n: getattr(m, n) for m in (spes_hf.analysis, spes_hf.metrics, spes_hf, module) for n in m.__all__} | names
    found = doctest.DocTestFinder(recurse=False).find(getattr(module, name), name, globs=globs)
    assert found and found[0].examples, f"{name} has no example"
    said: list[str] = []
    failed, tried = doctest.DocTestRunner(optionflags=OPTIONS).run(found[0], out=said.append)
    assert tried and not failed, "".join(said)
    assert not any(doctest.SKIP in example.options for example in found[0].examples)
