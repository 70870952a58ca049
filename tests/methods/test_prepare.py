"""What threads work out while the model writes: the same results, and no thread that stays."""

import threading

import pytest
import torch

from spes_hf import EnergyConfig, ExplainConfig, Explainer, SpesConfig
from spes_hf.adapters.base import Adapter
from spes_hf.audio.load import load_audio
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.masking import segments
from spes_hf.methods import spes

FEW = {"num_spectrogram_masks": 4, "num_token_masks": 3}
CONFIGS = {
    "gradient": SpesConfig(**FEW, masks_per_token=2),
    "patches": SpesConfig(**FEW, masks_per_token=2, patches=(50,)),
    "grid": SpesConfig(**FEW, masks_per_token=2, segmentation="grid"),
    "no pools": SpesConfig(
        **FEW, masks_per_token=2, pool_patches_per_second=None, sentence_patches_per_second=None, slic_compactness=1.0
    ),
    "paper": SpesConfig.paper("asr", **FEW),
    "paper's patches": SpesConfig(**FEW, estimator="perturbation", patches=(50, 60)),
}


@pytest.fixture(scope="module")
def tiny():
    return load_tiny_model("speech2text-en")


@pytest.fixture
def segmented(monkeypatch):
    """Threads of every segmentation; and a function that says how many cores are spare."""
    seen, really = [], segments.slic_labels

    def seeing(*arguments):
        seen.append(threading.current_thread())
        return really(*arguments)

    monkeypatch.setattr(segments, "slic_labels", seeing)
    monkeypatch.setattr(segments, "own_cores", lambda: 1)
    return seen, lambda cores: monkeypatch.setattr(spes, "spare_cores", lambda device: cores)


def left():
    """Threads of a segmentation that are alive."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("slic")]


def explained(tiny, config, audio=None, **settings):
    explainer = Explainer(*tiny, config, progress=False)
    return explainer(tiny_clips()[0]["path"] if audio is None else audio, **settings)


def assert_same(found, expected):
    for name in ("raw_audio", "raw_token", "sentence_saliency", "sound_bits"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=0, equal_nan=True)
    assert found.reliability.sentence == expected.reliability.sentence
    assert torch.equal(found.audio_map.labels, expected.audio_map.labels)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_bits_and_every_level_ahead(tiny, segmented, monkeypatch, name):
    seen, spare = segmented
    spare(0)
    expected, levels = explained(tiny, CONFIGS[name]), len(seen)
    spare(2)
    foreseen, plan = [], SpesConfig.plan

    def planned(config, problem):
        (ahead,) = segments._ahead.values()
        foreseen.extend(level.result() for level in ahead.values())
        return plan(config, problem)

    monkeypatch.setattr(SpesConfig, "plan", planned)
    found = explained(tiny, CONFIGS[name])
    assert len(foreseen) == len(seen) - levels == levels  # each once, and before
    assert threading.main_thread() not in seen and not left()
    assert_same(found, expected)


def test_segmentation_runs_while_the_model_writes(tiny, segmented, monkeypatch):
    seen, spare = segmented
    spare(1)
    begun, really = threading.Event(), Adapter.generate_with_states
    slic = segments.slic_labels
    monkeypatch.setattr(segments, "slic_labels", lambda *arguments: begun.set() or slic(*arguments))

    def generate(*arguments):
        assert begun.wait(60)
        return really(*arguments)

    monkeypatch.setattr(Adapter, "generate_with_states", generate)
    assert explained(tiny, CONFIGS["gradient"]).text


def test_an_output_that_is_explained_later(tiny, segmented):
    """A window of a recording, or a diagnosis: threads start when it is explained."""
    seen, spare = segmented
    spare(2)
    explainer = Explainer(*tiny, CONFIGS["paper"], progress=False)
    options = explainer.adapter.options_of()
    with explainer.output(load_audio(tiny_clips()[0]["path"], 16_000), options, None, "") as output:
        assert not seen
        found = explainer.of_output(output, options, "", explainer.config)
        assert seen and not left()
    assert_same(found, explained(tiny, CONFIGS["paper"]))


def test_a_model_that_fails_leaves_no_thread(tiny, segmented, monkeypatch):
    seen, spare = segmented
    spare(2)

    def generate(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(Adapter, "generate_with_states", generate)
    with pytest.raises(ZeroDivisionError):
        explained(tiny, CONFIGS["gradient"])
    assert not left() and not segments._ahead


def test_a_level_that_fails_fails_in_the_main_thread(tiny, segmented, monkeypatch):
    seen, spare = segmented
    spare(2)

    def fail(*arguments):
        raise ZeroDivisionError("a level")

    monkeypatch.setattr(segments, "slic_labels", fail)
    with pytest.raises(ZeroDivisionError, match="a level"):
        explained(tiny, CONFIGS["gradient"])
    assert not left() and not segments._ahead


def test_other_methods_prepare_nothing(tiny, segmented):
    seen, spare = segmented
    spare(2)
    assert explained(tiny, EnergyConfig()).text
    assert not seen and type(EnergyConfig()).prepare is ExplainConfig.prepare
