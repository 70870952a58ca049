"""The example of every public class and function runs, with the trained Speech2Text model and clips of the package."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tiny_speech.mustc import Utterance, write_mustc_split
from tiny_speech.sentences import Sentence
from typing_extensions import is_protocol

import spes_hf
import spes_hf.analysis
import spes_hf.metrics
from spes_hf import Diagnose, SpesConfig, explain
from spes_hf.analysis import Alignment
from spes_hf.audio.load import load_audio
from spes_hf.demo import DEMO_PACKAGE, load_tiny_model, tiny_clips

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


API = Path(__file__).parents[1] / "docs" / "api.md"
NEEDS = {
    **dict.fromkeys(("align_words", "align_explanation"), "pocketsphinx"),
    **dict.fromkeys(("load_demo_model", "convert_demo_model", "read_ctranslate2", "whisper_config"), DEMO_PACKAGE),
    "CaptumStep": "captum",
}


def names_of(module: ModuleType) -> list[str]:
    """Return the public names of a module: those that it exports, or those that it defines."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return list(getattr(module, "__all__", [name for name in own if not name.startswith("_")]))


def documented() -> list[tuple[ModuleType, list[str]]]:
    """Return the package, and the modules of docs/api.md, with the names shown there."""
    found = [(spes_hf, names_of(spes_hf))]
    for path in re.findall(r"^::: (\S+)$", API.read_text(encoding="utf-8"), re.MULTILINE):
        try:
            module = importlib.import_module(path)
            found.append((module, names_of(module)))
        except ModuleNotFoundError:  # a class or function
            parent, _, name = path.rpartition(".")
            found.append((importlib.import_module(parent), [name]))
    return found


def public() -> list[tuple[ModuleType, str]]:
    """Return the modules and names with an example, each once: all classes and functions but errors and protocols."""
    found: dict[int, tuple[ModuleType, str]] = {}
    for module, names in documented():
        for name in names:
            value = getattr(module, name)
            is_bare = inspect.isclass(value) and (issubclass(value, Exception) or is_protocol(value))
            if (inspect.isclass(value) or inspect.isfunction(value)) and not is_bare:
                found.setdefault(id(value), (module, name))
    return sorted(found.values(), key=lambda each: (each[0].__name__, each[1]))


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
    globs = {n: getattr(m, n) for m in (spes_hf.analysis, spes_hf.metrics, spes_hf, module) for n in names_of(m)}
    found = doctest.DocTestFinder(recurse=False).find(getattr(module, name), name, globs=globs | names)
    assert found and found[0].examples, f"{name} has no example"
    said: list[str] = []
    failed, tried = doctest.DocTestRunner(optionflags=OPTIONS).run(found[0], out=said.append)
    assert tried and not failed, "".join(said)
    assert not any(doctest.SKIP in example.options for example in found[0].examples)
