"""One utterance on several processes: the same maps as on one, on every process, and an error in one ends all."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from together import run_together

from spes_hf import AudioError, ConfigError, FeatureWiseConfig, SpesConfig, explain
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.errors import OutOfMemoryError, RankError
from spes_hf.explanation.recording import Recording
from spes_hf.masking import segments
from spes_hf.masking.segments import slic_labels
from spes_hf.runtime.ranks import Ranks

QUIET = {"progress": False}
CONFIGS = {
    "gradients": SpesConfig(num_spectrogram_masks=11, masks_per_token=8, passes_per_mask=3, num_token_masks=9),
    "goal": SpesConfig(target_reliability=0.6, num_spectrogram_masks=32, masks_per_token=4, num_token_masks=7),
    "Eq. 3": SpesConfig(
        estimator="perturbation", num_spectrogram_masks=31, num_token_masks=8, patches_per_second=(80.0, 400.0)
    ),
    "joint": SpesConfig(estimator="perturbation", perturb="joint", num_spectrogram_masks=12),
    "fewer masks than processes": SpesConfig(
        estimator="perturbation", num_spectrogram_masks=1, num_token_masks=1, patches_per_second=80.0
    ),
    "features": FeatureWiseConfig(num_spectrogram_masks=10, num_token_masks=3),
}


@pytest.fixture(scope="module")
def tiny():
    return load_tiny_model("speech2text-en")


@pytest.fixture(scope="module")
def clips():
    return [clip["path"] for clip in tiny_clips()[:3]]


def values_of(ended):
    """What processes returned; what one raised is raised here."""
    for each in ended:
        if each.error is not None:
            raise each.error
    return [each.value for each in ended]


def assert_same_maps(one, other):
    """Maps differ by the rounding of sums in another order at most."""
    assert one.text == other.text and one.tokens == other.tokens
    names = ["raw_audio", "raw_token", *(["raw_encoder"] if other.encoder_map is not None else [])]
    for name in names:
        assert_close(getattr(one, name), getattr(other, name))
    sentences = (one.sentence_map or one.audio_map, other.sentence_map or other.audio_map)
    assert_close(*(torch.cat([scores.flatten() for scores in each.values]) for each in sentences))
    mine, theirs = one.reliability, other.reliability
    torch.testing.assert_close(mine.tokens, theirs.tokens, rtol=0, atol=1e-3, equal_nan=True)
    assert mine.sentence == pytest.approx(theirs.sentence, abs=1e-3, nan_ok=True)


def assert_close(found, expected):
    """Nothing differs by more than a hundred-thousandth of the largest value."""
    assert torch.equal(found.isnan(), expected.isnan())
    scale = float(expected.nan_to_num().abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * scale, equal_nan=True)


# The same maps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_processes_find_the_maps_of_one(tiny, clips, tmp_path, name, count):
    config = CONFIGS[name]

    def work(accelerator):
        return explain(*tiny, clips[0], config=config, accelerator=accelerator, **QUIET)

    found = values_of(run_together(count, work, folder=tmp_path))
    expected = explain(*tiny, clips[0], config=config, **QUIET)
    for explanation in found:
        assert_same_maps(explanation, expected)
        assert torch.equal(explanation.raw_audio, found[0].raw_audio)
        assert torch.equal(explanation.raw_token.nan_to_num(), found[0].raw_token.nan_to_num())
        cost, alone = explanation.provenance["cost"], expected.provenance["cost"]
        assert cost["processes"] == count and "processes" not in alone
        assert cost["forward_passes"] == alone["forward_passes"]
        assert cost["backward_passes"] == alone["backward_passes"]


@pytest.mark.parametrize(
    "arguments",
    [{"foil": {0: "nothing"}}, {"words": 1}, {"over": "encoder"}, {"text": "two words"}],
    ids=lambda arguments: next(iter(arguments)),
)
def test_foils_parts_and_the_encoders_output(tiny, clips, tmp_path, arguments):
    config = SpesConfig(num_spectrogram_masks=8, masks_per_token=8, num_token_masks=8)

    def work(accelerator):
        return explain(*tiny, clips[0], config=config, accelerator=accelerator, **arguments, **QUIET)

    expected = explain(*tiny, clips[0], config=config, **arguments, **QUIET)
    for explanation in values_of(run_together(2, work, folder=tmp_path)):
        assert_same_maps(explanation, expected)


def test_each_process_does_its_share_of_the_passes(tiny, clips, tmp_path):
    config = CONFIGS["Eq. 3"]

    def work(accelerator):
        seen = []
        hook = tiny[0].model.encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(output[0])))
        explain(*tiny, clips[0], config=config, accelerator=accelerator, **QUIET)
        hook.remove()
        return sum(seen)

    alone = values_of(run_together(1, work, folder=tmp_path))[0]
    first, second = values_of(run_together(2, work, folder=tmp_path))
    clean = alone - config.num_spectrogram_masks
    assert {first - clean, second - clean} == {15, 16}


def test_a_recording(small_whisper, tmp_path):
    sound = (0.1 * np.random.default_rng(0).standard_normal(5 * 16_000)).astype(np.float32)
    config = SpesConfig(num_spectrogram_masks=4, masks_per_token=2, num_token_masks=6)

    def work(accelerator, folder):
        found = explain(
            *small_whisper,
            sound,
            16_000,
            config,
            generate_kwargs={"max_new_tokens": 6},
            batch_size=1,  # passes of one size, which round alike
            folder=folder,
            accelerator=accelerator,
            **QUIET,
        )
        assert isinstance(found, Recording)
        return [each.raw_audio for each in found], found.text

    (expected, text), *_ = values_of(run_together(1, work, None, folder=tmp_path))
    assert len(expected) > 1
    for folder in (None, tmp_path / "recording", tmp_path / "recording"):  # the last one is read
        for maps, written in values_of(run_together(2, work, folder, folder=tmp_path)):
            assert written == text
            for one, other in zip(maps, expected, strict=True):
                assert_close(one, other)


# One that fails -------------------------------------------------------------------------------------------------------


class _Failing:
    """Fails in one process after some passes of the encoder."""

    def __init__(self, rank, after, how):
        self.rank, self.after, self.how = rank, after, how

    def __call__(self, model, accelerator):
        calls = []

        def hook(module, inputs):
            calls.append(1)
            if accelerator.process_index == self.rank and len(calls) > self.after:
                self.how()

        model.model.encoder.register_forward_pre_hook(hook)


def broken():
    raise ValueError("a screw came loose")


def no_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize(("how", "error"), [(broken, ValueError), (no_memory, OutOfMemoryError)])
def test_a_process_that_fails_ends_all(tiny, clips, tmp_path, rank, after, how, error):
    def work(accelerator):
        _Failing(rank, after, how)(tiny[0], accelerator)
        explain(*tiny, clips[0], config=CONFIGS["Eq. 3"], batch_size=2, accelerator=accelerator, **QUIET)

    ended = run_together(3, work, folder=tmp_path)
    assert isinstance(ended[rank].error, error)
    for i, each in enumerate(ended):
        if i != rank:
            assert isinstance(each.error, RankError)
            assert f"process {rank}: {type(ended[rank].error).__name__}" in str(each.error)


@pytest.mark.parametrize("name", ["Eq. 3", "gradients"])
def test_a_process_without_memory_for_the_totals_ends_all(tiny, clips, tmp_path, name):
    def work(accelerator):
        if accelerator.process_index == 1:
            Ranks._copy = lambda *arguments: no_memory()
        explain(*tiny, clips[0], config=CONFIGS[name], accelerator=accelerator, **QUIET)

    ended = run_together(3, work, folder=tmp_path)
    assert isinstance(ended[1].error, OutOfMemoryError)
    for each in (ended[0], ended[2]):
        assert isinstance(each.error, RankError) and "process 1: OutOfMemoryError" in str(each.error)


def test_a_process_that_is_killed_ends_all(tiny, clips, tmp_path):
    def work(accelerator):
        def kill():
            (tmp_path / "killed").write_text(repr(time.monotonic()))
            os.kill(os.getpid(), signal.SIGKILL)

        _Failing(1, 3, kill)(tiny[0], accelerator)
        explain(*tiny, clips[0], config=CONFIGS["Eq. 3"], batch_size=2, accelerator=accelerator, **QUIET)

    ended = run_together(3, work, folder=tmp_path)
    assert ended[1].exitcode == -signal.SIGKILL
    for each in (ended[0], ended[2]):
        assert isinstance(each.error, RankError) and each.error.lost
        assert each.at - float((tmp_path / "killed").read_text()) < 10


@pytest.mark.parametrize("what", ["audio", "seed", "config", "foil", "model", "nothing to read"])
def test_processes_that_are_asked_for_different_things(tiny, clips, tmp_path, what):
    def work(accelerator):
        other = accelerator.process_index == 1
        if other and what == "model":
            with torch.no_grad():  # what no output shows
                tiny[0].model.decoder.layers[-1].fc2.bias[0].add_(1e-7)
        explain(
            *tiny,
            {"audio": clips[1], "nothing to read": "missing.wav"}.get(what, clips[0]) if other else clips[0],
            seed=int(other and what == "seed"),
            foil={0: "nobody" if other else "nothing"} if what == "foil" else None,
            config=replace(CONFIGS["Eq. 3"], num_token_masks=9) if other and what == "config" else CONFIGS["Eq. 3"],
            accelerator=accelerator,
            **QUIET,
        )

    first, second = (each.error for each in run_together(2, work, folder=tmp_path))
    assert isinstance(first, RankError)
    if what == "nothing to read":
        assert isinstance(second, AudioError) and "process 1: AudioError" in str(first)
    else:
        assert isinstance(second, RankError) and "of process 1 differs from that of process 0" in str(second)


def test_processes_can_go_on_after_an_error(tiny, clips, tmp_path):
    def work(accelerator):
        other = accelerator.process_index == 1
        with pytest.raises((RankError, AudioError)):
            explain(*tiny, "missing.wav" if other else clips[0], accelerator=accelerator, **QUIET)
        return explain(*tiny, clips[0], config=CONFIGS["Eq. 3"], accelerator=accelerator, **QUIET)

    expected = explain(*tiny, clips[0], config=CONFIGS["Eq. 3"], **QUIET)
    for explanation in values_of(run_together(2, work, folder=tmp_path)):
        assert_same_maps(explanation, expected)


def test_no_accelerator(tiny, clips):
    with pytest.raises(ConfigError, match=r"accelerator is 2; pass accelerate.Accelerator\(\)"):
        explain(*tiny, clips[0], accelerator=2, **QUIET)


# Who does what --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [24, 8], [5], [0, 3], []])
def test_shares_are_all_rows_once_and_balanced(count, sizes):
    starts = np.cumsum([0, *sizes])
    parts = [range(a, b) for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]
    shares = [Ranks(i, count).share(parts) for i in range(count)]
    for part, *of_part in zip(parts, *shares, strict=True):
        assert sorted(row for share in of_part for row in share) == list(part)
        assert max(map(len, of_part)) - min(map(len, of_part)) <= 1
    done = [sum(map(len, share)) for share in shares]
    assert max(done) - min(done) <= max(1, len(sizes) - 1)
    if sizes == [1, 1, 1, 1] and count == 2:
        assert done == [2, 2]


@pytest.mark.parametrize("sizes", [[3], [3, 5], [24, 8, 1]])
def test_the_larger_shares_of_levels_do_not_add_up(sizes):
    parts = [range(size) for size in sizes]
    for at, size in enumerate(sizes):
        done = [sum(len(Ranks(i, 2).share(parts, turn=level)[at]) for level in range(4)) for i in range(2)]
        assert done == [2 * size, 2 * size]


def segmented(accelerator, tiny, clip, config):
    """Which numbers of patches this process segments, and the patches of all levels that it gets."""
    asked = []

    def seeing(features, patches, *settings):
        asked.append(patches)
        return slic_labels(features, patches, *settings)

    segments.slic_labels = seeing  # this process ends with the test
    explanation = explain(*tiny, clip, config=config, accelerator=accelerator, **QUIET)
    return asked, explanation.audio_map.labels


@pytest.mark.parametrize("name", ["gradients", "Eq. 3"])
def test_each_level_is_segmented_in_one_process(tiny, clips, tmp_path, name):
    config = CONFIGS[name]
    found = values_of(run_together(2, segmented, tiny, clips[0], config, folder=tmp_path))
    asked = [each for each, _ in found]  # without an idle core, nothing is segmented ahead
    assert min(map(len, asked)) >= 1
    assert len(set().union(*asked)) == sum(map(len, asked))
    alone = explain(*tiny, clips[0], config=config, **QUIET)
    for _, labels in found:
        assert torch.equal(labels, alone.audio_map.labels)
