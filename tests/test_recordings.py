"""Recordings of any length: windows, prefixes and tokens are those of generate(), parts equal the whole."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import soundfile
import torch
from scipy.stats import spearmanr

from spes_hf import (
    AudioError,
    ConfigError,
    Deletion,
    Explain,
    Explainer,
    Explanation,
    ExplanationFormatError,
    Recording,
    Size,
    SpesConfig,
    UnsupportedModelError,
    explain,
    explain_dataset,
    get_adapter,
)
from spes_hf.adapters.windows import Window
from spes_hf.audio.load import Waveform, load_audio
from spes_hf.audio.long import StoredSamples, open_audio
from spes_hf.audio.pauses import cut_at_pauses
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.jobs.run import load_explained

CONFIG = SpesConfig(num_spectrogram_masks=4, masks_per_token=2, num_token_masks=6)
SHORT = {"max_new_tokens": 10}
SETTINGS = {
    "greedy": {},
    "beams": {"num_beams": 2},
    "conditioned": {"condition_on_prev_tokens": True},
    "no repeats": {"no_repeat_ngram_size": 1},
}


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    """7 s of noise: four windows of the small Whisper."""
    return (0.1 * np.random.default_rng(0).standard_normal(7 * 16_000)).astype(np.float32)


@pytest.fixture(scope="module")
def recording(small_whisper, sound, tmp_path_factory) -> Recording:
    folder = tmp_path_factory.mktemp("recording") / "whole"
    return explain(*small_whisper, sound, 16_000, config=CONFIG, generate_kwargs=SHORT, folder=folder, progress=False)


def own_long_form(model, processor, sound, **settings):
    """What a user gets who follows the documentation of transformers."""
    features = processor(
        sound, sampling_rate=16_000, truncation=False, padding="longest", return_tensors="pt"
    ).input_features
    return model.generate(features, return_timestamps=True, return_segments=True, **settings)


# What the model did ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_windows_hold_what_generate_wrote(small_whisper, sound, name):
    model, processor = small_whisper
    settings = SHORT | SETTINGS[name]
    adapter = get_adapter(model, processor)
    options = adapter.options_of(generate_kwargs=settings)
    windows = adapter.long_form(Waveform(sound, 16_000, "noise")).write(options)
    ids = [token for window in windows for token in window.token_ids if token not in adapter.eos_token_ids]
    expected = own_long_form(model, processor, sound, **settings)
    assert ids == [token for token in expected["sequences"][0].tolist() if token not in adapter.eos_token_ids]
    assert [window.start for window in windows[1:]] == [window.until for window in windows[:-1]]
    assert windows[0].start == 0 and windows[-1].until == 700
    spans = [(s.start_s, s.end_s) for window in windows for s in window.segments]
    assert spans == [(float(s["start"]), float(s["end"])) for s in expected["segments"][0]]


@pytest.mark.parametrize("name", SETTINGS)
def test_logits_of_windows_are_those_of_every_step_of_generate(small_whisper, sound, name):
    """Teacher-forced, from the features and the prefix that the window had."""
    model, processor = small_whisper
    settings = SHORT | SETTINGS[name]
    adapter = get_adapter(model, processor)
    long = adapter.long_form(Waveform(sound, 16_000, "noise"))
    windows = long.write(adapter.options_of(generate_kwargs=settings))
    expected = own_long_form(model, processor, sound, return_dict_in_generate=True, output_logits=True, **settings)
    results = []
    for segment in expected["segments"][0]:
        if not results or results[-1] is not segment["result"]:
            results.append(segment["result"])
    assert len(results) == len(windows) == 4
    for window, result in zip(windows, results, strict=True):
        assert result["sequences"].tolist()[: len(window.prefix_ids)] == list(window.prefix_ids)
        if "beams" in name:  # logits of beams are those of paths that were left
            continue
        with torch.no_grad():
            mine = adapter.logits(long.utterance(window), window.target)[0]
        steps = torch.stack(result["logits"])[: len(mine)].reshape(len(mine), -1)
        assert torch.allclose(mine, steps, atol=2e-4 * float(steps.abs().max()))


def test_prompts_and_temperatures_are_part_of_what_a_window_started_from(small_whisper, sound):
    model, processor = small_whisper
    prompt = processor.get_prompt_ids("hello there")
    settings = {
        **SHORT,
        "prompt_ids": prompt,
        "temperature": (0.0, 0.4, 0.8),
        "compression_ratio_threshold": 0.01,
        "logprob_threshold": -1.0,
    }
    found = explain(model, processor, sound, 16_000, config=CONFIG, generate_kwargs=settings, progress=False)
    # Nothing is so incompressible; sampled timestamps cut where they like.
    assert {(window.written.attempts, window.written.temperature) for window in found.windows} == {(3, 0.8)}
    assert all(list(window.written.prefix_ids[:3]) == prompt.tolist() for window in found.windows)
    assert found[0].origin.window["temperature"] == 0.8
    before = torch.get_rng_state()
    again = explain(model, processor, sound, 16_000, config=CONFIG, generate_kwargs=settings, progress=False)
    assert again.text == found.text  # sampled, from the same seed
    assert torch.equal(torch.get_rng_state(), before)


def test_silence_is_skipped_and_has_no_explanation(small_whisper, sound):
    settings = SHORT | {"temperature": (0.0,), "logprob_threshold": 0.0, "no_speech_threshold": -1.0}
    found = explain(*small_whisper, sound, 16_000, config=CONFIG, generate_kwargs=settings, progress=False)
    assert all(window.skipped and window.text == "" for window in found.windows)
    assert len(found) == 0 and found.text == "" and found.tokens == [] and found.complete
    assert found.verdict == "nothing written" and len(found.sentence_saliency) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"logprob_threshold": -1.0}, "need a temperature, but generate_kwargs has none"),
        ({"no_speech_threshold": 0.5, "temperature": 0.0}, "needs a logprob_threshold, but there is none"),
        ({"return_timestamps": False}, "refused"),
    ],
)
def test_settings_that_generate_stumbles_over_are_refused(small_whisper, sound, settings, message):
    with pytest.raises(ConfigError, match=message):
        explain(*small_whisper, sound, 16_000, config=CONFIG, generate_kwargs=SHORT | settings, progress=False)


def test_a_generate_that_shows_no_windows_is_an_error(small_whisper, sound, monkeypatch):
    model, _ = small_whisper
    monkeypatch.setattr(type(model), "generate_with_fallback", None)
    with pytest.raises(UnsupportedModelError, match="generate_with_fallback is missing"):
        explain(*small_whisper, sound, 16_000, config=CONFIG, generate_kwargs=SHORT, progress=False)


def test_a_window_that_is_not_where_it_seems_is_an_error(small_whisper, sound, monkeypatch):
    model, _ = small_whisper
    cut = type(model)._get_input_segment
    monkeypatch.setattr(type(model), "_get_input_segment", staticmethod(lambda **given: cut(**given).roll(1, -1)))
    with pytest.raises(UnsupportedModelError, match="which part of the recording a window reads"):
        explain(*small_whisper, sound, 16_000, config=CONFIG, generate_kwargs=SHORT, progress=False)
    assert "generate_with_fallback" not in vars(model)


def test_tokens_that_are_not_those_of_the_segments_are_an_error(small_whisper, sound, monkeypatch):
    model, _ = small_whisper
    found = type(model)._retrieve_segment

    def other(**given):
        segments, offset = found(**given)
        return [{**segment, "tokens": segment["tokens"].flip(0)} for segment in segments], offset

    monkeypatch.setattr(type(model), "_retrieve_segment", staticmethod(other))
    settings = {"config": CONFIG, "generate_kwargs": SHORT | {"no_repeat_ngram_size": 1}, "progress": False}
    with pytest.raises(UnsupportedModelError, match="which tokens a segment contains"):
        explain(*small_whisper, sound, 16_000, **settings)


def test_the_model_is_left_without_a_trace(small_whisper, sound):
    model, _ = small_whisper

    def stop(ids, scores):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explain(*small_whisper, sound, 16_000, generate_kwargs={"logits_processor": [stop]}, progress=False)
    assert "generate_with_fallback" not in vars(model)


@pytest.mark.parametrize("seconds", [2.01, 61, 125])
def test_features_made_in_chunks_are_those_of_the_extractor(small_whisper, seconds):
    _, processor = small_whisper
    rng = np.random.default_rng(1)
    sound = (rng.standard_normal(int(seconds * 16_000)) * rng.uniform(1e-4, 0.5, int(seconds * 16_000))).astype("f4")
    long = get_adapter(*small_whisper).long_form(Waveform(sound, 16_000, "noise"))
    whole = processor.feature_extractor(
        sound, sampling_rate=16_000, padding="longest", truncation=False, return_tensors="np"
    ).input_features[0]
    assert long.features.shape == whole.shape
    assert np.abs(long.features - whole).max() < 1e-5


# The result --------------------------------------------------------------------------------------------------------


def test_a_recording_is_a_sequence_on_one_clock(recording):
    assert isinstance(recording, Recording) and len(recording) == 4 and recording.complete
    assert [ex.text for ex in recording] == [window.text for window in recording.windows]
    assert recording.text == "".join(window.text for window in recording.windows)
    starts = [round(float(ex.times[0]), 3) for ex in recording]
    assert starts == [window.start_s for window in recording.windows]
    total = sum(len(ex) for ex in recording)
    for values in (recording.tokens, recording.sound_bits, recording.text_bits, recording.reliability.tokens):
        assert len(values) == total
    assert torch.equal(recording.sound_bits, torch.cat([ex.sound_bits for ex in recording]))
    assert torch.equal(recording.time_centroids(0.1), torch.cat([ex.time_centroids(0.1) for ex in recording]))
    assert recording[-1].text == recording[3].text and [ex.text for ex in recording[1:3]] == [
        recording[1].text,
        recording[2].text,
    ]
    with pytest.raises(IndexError, match="4 windows are explained"):
        recording[4]
    assert recording.at(2.5).text == recording[1].text
    with pytest.raises(ValueError, match="where nothing is explained"):
        recording.at(99)


def test_sentence_saliency_covers_the_whole_axis_once(recording):
    saliency, times = recording.sentence_saliency, recording.times
    assert saliency.shape == (700, 80) and len(times) == 700
    assert torch.allclose(times, torch.arange(700) * 0.01, atol=1e-4)
    assert torch.equal(saliency[:200], recording[0].sentence_saliency)


def test_words_leave_out_what_is_no_word(recording):
    words = recording.words()
    assert words.over_words and not recording.over_words and words.words() is words
    assert words.tokens == [token for ex in recording for token in ex.words().tokens]
    assert float(words.sound_bits.sum()) == pytest.approx(float(recording.sound_bits.sum()), rel=1e-3)
    assert not any("<|" in token for token in words.tokens)


def test_timestamps_are_explained_only_if_asked(small_whisper, sound, recording):
    asked = explain(
        *small_whisper, sound, config=CONFIG, generate_kwargs=SHORT, timestamps=True, end=1.9, progress=False
    )
    when = [token for token in asked.tokens if token.startswith("<|")]
    adapter, ids = get_adapter(*small_whisper), torch.tensor(asked[0].written_ids)
    stamps = zip(adapter.pieces(ids), adapter.is_timestamp(ids), strict=True)
    assert when and when == [piece for piece, is_one in stamps if is_one]
    assert not any(token.startswith("<|") for token in recording[0].tokens)
    assert len(asked.tokens) > len(recording[0].tokens)
    assert asked.words().tokens == recording[0].words().tokens
    own, known = asked[0], recording[0]
    for row, k in enumerate(known.part.rows):
        assert torch.equal(known.audio_map.dense(row), own.audio_map.dense(k))


def test_what_is_explained_of_a_part_is_told_from_the_rest(recording):
    first = recording[0]
    assert first.part is not None and len(first.part.token_ids) == len(first.written_ids) == 10
    assert first.token_saliency.shape == (len(first), first.prefix_length + 9)
    assert first.starts == list(first.part.rows)
    for row, before in enumerate(first.starts):
        known = ~first.token_saliency[row].isnan()
        assert known.tolist() == [j < first.prefix_length + before for j in range(len(known))]


# Only a part -------------------------------------------------------------------------------------------------------


def passes(recording: Recording) -> int:
    return sum(ex.origin.cost["backward_passes"] for ex in recording)


def test_maps_of_single_words_are_those_of_the_whole(small_whisper, sound):
    settings = SHORT | {"no_repeat_ngram_size": 1}
    recording = explain(*small_whisper, sound, 16_000, config=CONFIG, generate_kwargs=settings, progress=False)
    name = recording.words().tokens[3].strip()
    part = explain(*small_whisper, sound, 16_000, config=CONFIG, generate_kwargs=settings, words=name, progress=False)
    assert part.text == recording.text
    assert {token.strip() for token in part.words().tokens} == {name}
    assert passes(part) < passes(recording)
    seen = 0
    for ex in part:
        whole = recording.at(float(ex.times[5]))
        for row, k in enumerate(ex.part.rows):
            same = whole.part.rows.index(k)
            assert torch.equal(ex.audio_map.dense(row), whole.audio_map.dense(same))
            assert torch.equal(ex.raw_token_scores[row].nan_to_num(9), whole.raw_token_scores[same].nan_to_num(9))
            assert torch.equal(ex.audio_saliency[row], whole.audio_saliency[same])
            assert ex.sound_bits[row] == whole.sound_bits[same]
            seen += 1
    assert seen


@pytest.mark.parametrize("estimator", ["gradient", "perturbation"])
def test_words_of_a_short_clip(small_whisper, tone, estimator):
    settings = {"max_new_tokens": 8, "no_repeat_ngram_size": 1}
    config = CONFIG if estimator == "gradient" else SpesConfig(estimator=estimator, num_spectrogram_masks=8)
    whole = explain(*small_whisper, tone, config=config, generate_kwargs=settings, progress=False)
    first, third = whole.words().groups[0], whole.words().groups[2]
    part = explain(*small_whisper, tone, config=config, generate_kwargs=settings, words=[0, 2], progress=False)
    assert isinstance(part, Explanation) and part.part.rows == (*first, *third)
    assert torch.equal(part.audio_saliency, whole.audio_saliency[list(part.part.rows)])
    assert part.text == whole.text and part.words().tokens == [whole.words().tokens[0], whole.words().tokens[2]]
    tokens = explain(*small_whisper, tone, config=config, generate_kwargs=settings, tokens=[-1], progress=False)
    assert len(tokens) == 1 and torch.equal(tokens.raw_audio[0], whole.raw_audio[-1])
    if estimator == "gradient":
        assert part.origin.cost["backward_passes"] < whole.origin.cost["backward_passes"]


def test_verdicts_are_of_the_whole_text_whatever_is_explained(small_whisper, sound, tone):
    settings = {"config": CONFIG, "generate_kwargs": SHORT | {"no_repeat_ngram_size": 1}, "progress": False}
    whole = explain(*small_whisper, tone, 16_000, **settings)
    part = explain(*small_whisper, tone, 16_000, words=1, **settings)
    assert part.bits_per_token == pytest.approx(whole.bits_per_token) and part.verdict == whole.verdict
    whole = explain(*small_whisper, sound, 16_000, **settings)
    part = explain(*small_whisper, sound, 16_000, words=1, **settings)
    assert len(part) == 1
    assert part.heard[0].bits_per_token == pytest.approx(whole.heard[0].bits_per_token, abs=1e-4)


def test_a_stretch_is_explained_in_the_context_that_it_had(small_whisper, sound):
    settings = SHORT | {"condition_on_prev_tokens": True}
    whole = explain(*small_whisper, sound, 16_000, config=CONFIG, generate_kwargs=settings, progress=False)
    part = explain(
        *small_whisper, sound, 16_000, config=CONFIG, generate_kwargs=settings, start=2.5, end=3.5, progress=False
    )
    assert len(part) == 1 and part.text == whole[1].text
    assert part[0].prefix_length > 2 and part[0].context_tokens == whole[1].context_tokens
    # Without the end of sequence, which belongs to no segment.
    rows = [whole[1].part.rows.index(k) for k in part[0].part.rows]
    assert torch.equal(part[0].raw_audio, whole[1].raw_audio[rows])
    assert len(part.windows) == 2 and part.windows[0].rows == ()
    assert passes(part) < passes(whole) / 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"words": "xylophone"}, "which the model did not write"),
        ({"words": 999}, "words contains 999"),
        ({"words": []}, "which is empty"),
        ({"tokens": [1.5]}, "allowed: texts and indices"),
        ({"start": -1}, "start is -1"),
        ({"start": 3, "end": 2}, "start must come before end"),
        ({"start": 99}, "the recording is 7.0 s long"),
        ({"end": float("nan")}, "end is nan"),
        ({"segment": "words"}, 'allowed: "pauses"'),
        ({"text": "hello"}, "text is given"),
        ({"foil": "hello"}, "foil is given"),
    ],
)
def test_bad_parts_are_refused(small_whisper, sound, arguments, message):
    with pytest.raises(ConfigError, match=message):
        explain(*small_whisper, sound, 16_000, config=CONFIG, generate_kwargs=SHORT, progress=False, **arguments)


def test_short_audio_has_no_start_and_foils_name_their_places(small_whisper, tone):
    with pytest.raises(ConfigError, match="reads audio of .* s in one piece"):
        explain(*small_whisper, tone, config=CONFIG, generate_kwargs=SHORT, start=0.5, progress=False)
    with pytest.raises(ConfigError, match="foil already says which places"):
        explain(*small_whisper, tone, config=CONFIG, foil="hello", words="a", progress=False)


def test_bare_samples_of_a_recording_should_have_a_rate(small_whisper, sound):
    with pytest.warns(UserWarning, match=r"7\.0 s of bare samples without a sampling_rate; assuming 16000 Hz"):
        explain(*small_whisper, sound, config=CONFIG, generate_kwargs=SHORT, end=1.0, progress=False)


def test_a_hundred_hours_are_refused_before_anything_is_read(small_whisper, monkeypatch, tmp_path):
    size = 13 * 3600 * 8_000  # in a file that is nothing but holes
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", size + 36, b"WAVE", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8, b"data", size
    )
    (tmp_path / "day.wav").write_bytes(header)
    os.truncate(tmp_path / "day.wav", size + len(header))
    assert soundfile.info(tmp_path / "day.wav").duration == 13 * 3600
    monkeypatch.setattr("spes_hf.audio.long.Blocks", None)
    with pytest.raises(AudioError, match=r"13\.0 hours long; allowed: at most 12"):
        explain(*small_whisper, tmp_path / "day.wav", config=CONFIG, progress=False)

    waveform = Waveform(np.broadcast_to(np.float32(0), 100 * 3600 * 16_000), 16_000, "endless")
    monkeypatch.setattr("spes_hf.explainer.open_audio", lambda *_: waveform)
    with pytest.raises(AudioError, match=r"100\.0 hours long; allowed: at most 12"):
        explain(*small_whisper, "endless.wav", config=CONFIG, progress=False)


# Out of memory, and on again -----------------------------------------------------------------------------------------


def test_saved_and_loaded(recording, tmp_path):
    place = recording.save(tmp_path / "copy")
    loaded = Recording.load(place)
    assert loaded.text == recording.text and loaded.tokens == recording.tokens and len(loaded) == 4
    assert torch.equal(loaded[2].raw_audio, recording[2].raw_audio)
    assert loaded.save(place) == place
    assert soundfile.info(loaded.audio_file).duration == 7.0
    shutil.rmtree(place / "windows" / "00001")
    assert len(Recording.load(place)) == 3 and not Recording.load(place).complete
    with pytest.raises(ExplanationFormatError, match="already holds something else"):
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "notes.txt").write_text("mine")
        recording.save(tmp_path / "other")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no recording.json"),
        ("{", "damaged"),
        ('{"format": "other"}', "damaged"),
        ('{"format": "spes_hf.recording", "format_version": 9}', "format version 9"),
        ('{"format": "spes_hf.recording", "format_version": 1, "windows": [{"segments": []}]}', "damaged"),
        ("[]", "damaged"),
    ],
)
def test_damaged_recordings_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "recording.json").write_text(content)
    with pytest.raises(ExplanationFormatError, match=message):
        Recording.load(tmp_path)


def test_a_temporary_recording_lives_as_long_as_it_is_used(small_whisper, sound):
    found = explain(*small_whisper, sound, 16_000, config=CONFIG, generate_kwargs=SHORT, end=1.9, progress=False)
    folder, words = found.folder, found.words()
    del found
    assert words.tokens and folder.is_dir()


def test_what_was_interrupted_goes_on_where_it_was(small_whisper, sound, recording, tmp_path):
    class Stopped(Explainer):
        left = 2

        def of_output(self, *args, **kwargs):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            return super().of_output(*args, **kwargs)

    def run(kind):
        explainer = kind(*small_whisper, CONFIG, progress=False)
        return explainer(sound, sampling_rate=16_000, generate_kwargs=SHORT, folder=tmp_path / "r"), explainer

    with pytest.raises(KeyboardInterrupt):
        run(Stopped)
    assert len(Recording.load(tmp_path / "r")) == 2
    found, explainer = run(Stopped)
    assert explainer.left == 0 and len(found) == 4 and found.complete
    for one, other in zip(found, recording, strict=True):
        assert torch.equal(one.raw_audio, other.raw_audio) and one.text == other.text


KILLED = textwrap.dedent(
    """
    import sys, time, numpy as np, conftest
    from spes_hf import Explanation, SpesConfig, explain
    sound = (0.1 * np.random.default_rng(0).standard_normal(7 * 16_000)).astype(np.float32)
    config = SpesConfig(num_spectrogram_masks=4, masks_per_token=2, num_token_masks=6)
    save = Explanation.save

    def slowly(self, folder):  # so that the signal comes before the end
        found = save(self, folder)
        time.sleep(1)
        return found

    Explanation.save = slowly
    model = conftest.small_whisper._get_wrapped_function()()
    print("ready", flush=True)
    short = {"max_new_tokens": 10}
    explain(*model, sound, 16_000, config=config, generate_kwargs=short, folder=sys.argv[1], progress=False)
    """
)


def test_what_was_killed_goes_on_where_it_was(small_whisper, sound, recording, tmp_path):
    here = os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path])}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "r")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout.readline() == "ready\n"
    until = time.monotonic() + 60
    while not list((tmp_path / "r" / "windows").glob("*/explanation.json")) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 1 <= len(Recording.load(tmp_path / "r")) < 4
    found = explain(
        *small_whisper, sound, 16_000, config=CONFIG, generate_kwargs=SHORT, folder=tmp_path / "r", progress=False
    )
    assert [ex.text for ex in found] == [ex.text for ex in recording]
    assert all(torch.equal(a.raw_audio, b.raw_audio) for a, b in zip(found, recording, strict=True))


def test_a_folder_continues_with_the_same_recording_alone(small_whisper, sound, recording, tmp_path):
    with pytest.raises(ConfigError, match="another recording \\(different: config\\)"):
        explain(*small_whisper, sound, 16_000, config=SpesConfig.fast(), generate_kwargs=SHORT, folder=recording.folder)
    with pytest.raises(ConfigError, match="different: audio"):
        explain(*small_whisper, 0.5 * sound, 16_000, config=CONFIG, generate_kwargs=SHORT, folder=recording.folder)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        explain(*small_whisper, sound, 16_000, config=CONFIG, generate_kwargs=SHORT, folder=tmp_path)
    with pytest.raises(ConfigError, match="cannot be written to"):
        explain(*small_whisper, sound, 16_000, config=CONFIG, folder=tmp_path / "notes.txt" / "below", progress=False)
    with pytest.raises(ConfigError, match="is a file"):
        explain(*small_whisper, sound, 16_000, config=CONFIG, generate_kwargs=SHORT, folder=tmp_path / "notes.txt")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes to every folder")
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_transcribed(
    small_whisper, sound, tmp_path, monkeypatch
):
    model, processor = small_whisper
    monkeypatch.setattr(model, "generate", lambda **_: pytest.fail("transcribed"))
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written to"):
        explain(model, processor, sound, 16_000, config=CONFIG, folder=tmp_path, progress=False)


def test_a_short_clip_is_saved_to_its_folder(small_whisper, tone, tmp_path):
    found = explain(*small_whisper, tone, config=CONFIG, generate_kwargs=SHORT, folder=tmp_path / "x", progress=False)
    assert Explanation.load(tmp_path / "x").text == found.text


# Rows and metrics ----------------------------------------------------------------------------------------------------


def test_rows_hold_whole_recordings(recording):
    row = recording.to_row()
    assert row["prediction"] == recording.text and row["tokens"] == recording.tokens
    assert recording.to_row()["explanation"] == row["explanation"]
    again = Recording.from_row(row)
    assert again.text == recording.text and torch.equal(again[3].raw_audio, recording[3].raw_audio)
    with pytest.raises(ExplanationFormatError, match="Recording.from_row"):
        Explanation.from_row(row)
    with pytest.raises(ExplanationFormatError, match="Explanation.from_row"):
        Recording.from_row(recording[0].to_row())
    with pytest.raises(ExplanationFormatError, match="damaged"):
        Recording.from_row({**row, "explanation": row["explanation"][:-200]})


def test_metrics_go_window_by_window(small_whisper, recording):
    deletion = Deletion(*small_whisper, fractions=(0.0, 0.5, 1.0))
    found = deletion(recording)["deletion"]
    apart = [deletion(ex)["deletion"] for ex in recording]
    assert found["texts"][1] == " ".join(entry["texts"][1].strip() for entry in apart).strip()
    assert found["texts"][0] == found["prediction"]
    counts = [len(ex.written_ids) for ex in recording]
    assert found["token_probability"][1] == pytest.approx(
        sum(e["token_probability"][1] * n for e, n in zip(apart, counts, strict=True)) / sum(counts)
    )
    one_by_one = Deletion(*small_whisper, fractions=(0.0, 0.5, 1.0), batch_size=1)(recording)["deletion"]
    assert one_by_one["texts"] == found["texts"]
    assert one_by_one["token_probability"] == pytest.approx(found["token_probability"], abs=1e-5)
    assert Deletion(*small_whisper, fractions=(0.0, 1.0))(recording.to_row())["deletion"]["texts"][0]
    size = Size()(recording)["size"]
    assert len(size["audio"]) == 21 and size["audio"][0] == 100


def test_deletion_of_a_window_starts_from_what_the_window_started_from(small_whisper, sound):
    """Nothing deleted, the model writes what it wrote then, with the text of the window before in front."""
    settings = SHORT | {"condition_on_prev_tokens": True}
    found = explain(
        *small_whisper, sound, 16_000, config=CONFIG, generate_kwargs=settings, start=2.5, end=3.5, progress=False
    )
    entry = Deletion(*small_whisper, fractions=(0.0, 1.0))(found[0])["deletion"]
    assert entry["texts"][0] == entry["prediction"] == found[0].text


# Pauses --------------------------------------------------------------------------------------------------------------


def test_pauses_are_found_and_long_speech_is_cut_where_it_is_quietest():
    rng, rate = np.random.default_rng(0), 16_000
    speech = [0.2 * rng.standard_normal(int(s * rate)) for s in (2.0, 3.0, 1.5)]
    pause = 0.001 * rng.standard_normal(int(0.6 * rate))
    sound = np.concatenate([speech[0], pause, speech[1], pause, speech[2]]).astype(np.float32)
    seconds = [(a / rate, b / rate) for a, b in cut_at_pauses(sound, rate)]
    assert seconds == pytest.approx(
        [pytest.approx(pair, abs=0.1) for pair in ((0, 2.1), (2.5, 5.7), (6.1, len(sound) / rate))]
    )
    short = cut_at_pauses(sound, rate, longest_s=1.0)
    assert len(short) >= 7 and all((b - a) / rate <= 1.0 for a, b in short)
    assert cut_at_pauses(sound[:100], rate) == [(0, 100)]
    assert cut_at_pauses(np.zeros(5 * rate, np.float32), rate) == [(0, 5 * rate)]


@pytest.mark.parametrize("name", ["speech2text-en", "seamless-en-de-es"])
def test_models_without_a_long_form_read_utterances_between_pauses(name):
    """Shipped models on clips that are joined with pauses: as many utterances, each heard, in the order of time."""
    model, processor = load_tiny_model(name)
    clips = tiny_clips()[:4]
    rng, parts = np.random.default_rng(0), []
    for clip in clips:
        samples, rate = soundfile.read(clip["path"], dtype="float32")
        parts += [samples, (1e-4 * rng.standard_normal(int(0.8 * rate))).astype(np.float32)]
    sound = np.concatenate(parts)
    language = {} if name.startswith("speech") else {"tgt_lang": "deu"}
    found = explain(
        model, processor, sound, 16_000, config=SpesConfig.fast(), segment="pauses", progress=False, **language
    )
    assert len(found) == len(found.windows) == 4
    assert found.text.count(".") + found.text.count("?") >= 4
    if not language:
        assert found.windows[0].text == clips[0]["transcript"]
        words = found.words()
        spoken = [i for i, word in enumerate(words.tokens) if word.strip().isalpha()]
        assert spearmanr(spoken, words.time_centroids()[spoken]).statistic >= 0.95
    for window, clip_end in zip(found.windows, np.cumsum([len(part) for part in parts])[::2] / rate, strict=True):
        assert window.end_s == pytest.approx(clip_end, abs=0.3)
    assert found[0].origin.in_recording is False and found[0].origin.window["index"] == 0
    entry = Deletion(model, processor, fractions=(0.0, 1.0))(found)["deletion"]
    assert entry["texts"][0] == entry["prediction"] == found.text.strip()


def test_what_a_model_cannot_read_at_once_says_how_to_cut_it():
    model, processor = load_tiny_model("speech2text-en")
    sound = (0.1 * np.random.default_rng(0).standard_normal(20 * 16_000)).astype(np.float32)
    with pytest.raises(AudioError, match='segment="pauses"'):
        explain(model, processor, sound, 16_000, progress=False)
    silence = np.zeros(20 * 16_000, np.float32)
    assert len(explain(model, processor, silence, 16_000, segment="pauses", progress=False)) == 0


# Real speech ---------------------------------------------------------------------------------------------------------


@pytest.mark.real_model
def test_real_whisper_on_a_long_recording(whisper, jfk, tmp_path):
    """A clip, a pause of 20 s, the clip again: the text is generate()'s, words lie where they are said."""
    model, processor = whisper
    samples, rate = soundfile.read(jfk, dtype="float32")
    pause = (1e-3 * np.random.default_rng(0).standard_normal(20 * rate)).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", np.concatenate([samples, pause, samples]), rate)
    config = SpesConfig(num_spectrogram_masks=4, masks_per_token=4, num_token_masks=10)
    found = explain(model, processor, tmp_path / "long.wav", config=config, words="country", progress=False)
    expected = own_long_form(model, processor, load_audio(tmp_path / "long.wav", rate).samples)["sequences"]
    assert found.text == processor.batch_decode(expected, skip_special_tokens=True)[0].strip()
    words = found.words()
    assert [word.strip() for word in words.tokens] == ["country"] * 4
    # "your country can do" at 5.86-6.43 s, by forced alignment; the second of a clip the text tells as well.
    first, _, again, _ = words.time_centroids()
    assert 5.7 <= first <= 6.6 and 36.7 <= again <= 37.6
    assert words.sound_bits[[0, 2]].min() > 4 and found.verdict == "heard"
    # Verdicts are those of all tokens, explained or not; a sentence that turns the one before round needs less sound.
    assert found.heard[0].verdict == "heard" and found.heard[0].bits_per_token > 5 > found.heard[1].bits_per_token


# Sound on disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "channels", "kind"), [(16_000, 1, "wav"), (44_100, 2, "flac"), (8_000, 1, "ogg")])
def test_long_files_are_read_in_blocks_to_the_same_bits(tmp_path, rate, channels, kind):
    rng = np.random.default_rng(0)
    path = tmp_path / f"long.{kind}"
    soundfile.write(path, 0.1 * rng.standard_normal((rate * 61, channels)), rate)
    with pytest.warns(UserWarning, match="stereo") if channels > 1 else _nothing():
        long = open_audio(path, 16_000)
    with pytest.warns(UserWarning, match="stereo") if channels > 1 else _nothing():
        whole = load_audio(path, 16_000)
    assert isinstance(long.samples, StoredSamples) and long.duration_s == whole.duration_s
    assert np.array_equal(long.samples[:], whole.samples)
    assert np.array_equal(long.samples[12_345:12_400], whole.samples[12_345:12_400])
    assert long.notes == whole.notes and long.source == whole.source
    with pytest.raises(ValueError, match="slices with step 1"):
        long.samples[::2]


def test_a_long_file_that_breaks_off_is_read_to_the_same_place(tmp_path):
    """As a whole, and in blocks: the decoder gives up within one of them."""
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "whole.flac", 0.1 * rng.standard_normal(75 * 16_000), 16_000)
    content = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "broken.flac").write_bytes(content[: int(0.9 * len(content))])
    with pytest.warns(UserWarning, match="truncated: ends after"):
        long, whole = open_audio(tmp_path / "broken.flac", 16_000), load_audio(tmp_path / "broken.flac", 16_000)
    assert isinstance(long.samples, StoredSamples) and 60 < long.duration_s < 75
    assert np.array_equal(long.samples[:], whole.samples) and long.notes == whole.notes


def test_bad_values_in_a_long_file_are_refused_with_their_place(tmp_path):
    sound = np.zeros(70 * 16_000, np.float32)
    sound[65 * 16_000] = np.nan
    soundfile.write(tmp_path / "bad.wav", sound, 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"65\.000 s"):
        open_audio(tmp_path / "bad.wav", 16_000)
    with pytest.raises(AudioError, match="leave it out"):
        soundfile.write(tmp_path / "good.wav", sound[: 62 * 16_000], 16_000)
        open_audio(tmp_path / "good.wav", 16_000, 8_000)


def test_windows_as_json():
    window = Window(3, 5, 8, (1,), (2, 3), temperature=0.4)
    assert Window.from_dict(window.to_dict()) == window


def _nothing():
    from contextlib import nullcontext

    return nullcontext()


# A corpus ------------------------------------------------------------------------------------------------------------


def test_a_corpus_may_hold_recordings(small_whisper, sound, tone, tmp_path):
    """A short clip, a long one and one that is broken; the windows of a job that was stopped are not lost."""
    from datasets import Dataset

    soundfile.write(tmp_path / "short.wav", tone, 16_000)
    soundfile.write(tmp_path / "long.wav", sound, 16_000, subtype="FLOAT")
    audio = [{"path": str(tmp_path / name), "bytes": None} for name in ("short.wav", "long.wav", "none.wav")]
    corpus = Dataset.from_dict({"id": ["a", "b", "c"], "audio": audio})
    settings = {"generate_kwargs": SHORT, "progress": False}
    metrics = [Deletion(*small_whisper, fractions=(0.0, 1.0)), Size()]
    calls = []

    def stop(self, folder):
        calls.append(folder)
        if len(calls) == 3:  # the short clip has no folder: two windows are done
            raise KeyboardInterrupt
        return save(self, folder)

    save = Explanation.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Explanation, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            explain_dataset(*small_whisper, corpus, tmp_path / "out", CONFIG, metrics=metrics, **settings)
    assert len(list((tmp_path / "out" / "recordings").glob("*/windows/*/explanation.json"))) == 2
    summary = explain_dataset(*small_whisper, corpus, tmp_path / "out", CONFIG, metrics=metrics, **settings)
    assert summary.complete and len(summary.failures) == 1 and not (tmp_path / "out" / "recordings").exists()
    rows = load_explained(tmp_path / "out")
    assert Explanation.from_row(rows[0]).text == rows[0]["prediction"]
    found = Recording.from_row(rows[1])
    assert len(found) == 4 and found.text == rows[1]["prediction"] and len(rows[1]["tokens"]) == len(found.tokens)
    assert rows[1]["deletion"]["texts"][0] == rows[1]["deletion"]["prediction"] and rows[1]["size"]["audio"][0] == 100
    mapped = corpus.map(Explain(*small_whisper, CONFIG, generate_kwargs=SHORT))
    assert mapped[1]["explanation"] == rows[1]["explanation"]  # whoever computes it
