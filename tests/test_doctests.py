"""The example of every public class and function runs, with the trained Speech2Text model and clips of the package."""

from __future__ import annotations

import doctest
import inspect
from typing import Any

import numpy as np
import pytest
from tiny_speech.mustc import Utterance, write_mustc_split
from tiny_speech.sentences import Sentence

import spes_hf
from spes_hf import SpesConfig, explain
from spes_hf.audio.load import load_audio
from spes_hf.demo import load_tiny_model, tiny_clips

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public() -> list[str]:
    """Return the names with an example: all but errors."""
    values = {name: getattr(spes_hf, name) for name in spes_hf.__all__ if name != "__version__"}
    return [n for n, value in values.items() if not (inspect.isclass(value) and issubclass(value, Exception))]


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
    return {
        **{name: getattr(spes_hf, name) for name in spes_hf.__all__},
        "np": np,
        "model": model,
        "processor": processor,
        "clip": clips[0],
        "clips": clips,
        "talk": {"array": joined(sounds[:3]), "sampling_rate": 16_000},
        "ex": explain(model, processor, clips[0], config=SpesConfig.fast()),
        "dataset": dataset,
        "folder": folder,
        "corpus": folder / "corpus",
    }


@pytest.mark.parametrize("name", public())
def test_example_runs(name, names):
    found = doctest.DocTestFinder(recurse=False).find(getattr(spes_hf, name), name, globs=dict(names))
    assert found and found[0].examples, f"{name} has no example"
    said: list[str] = []
    failed, tried = doctest.DocTestRunner(optionflags=OPTIONS).run(found[0], out=said.append)
    assert tried and not failed, "".join(said)
    assert not any(doctest.SKIP in example.options for example in found[0].examples)
