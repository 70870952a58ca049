"""Recordings at the edges: what is continued, saved over, cut, selected, copied, or empty."""

from __future__ import annotations

import copy
import pickle
import threading

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset

from spes_hf import (
    AudioError,
    ConfigError,
    Deletion,
    Explain,
    Explanation,
    ExplanationFormatError,
    RandomConfig,
    Recording,
    Size,
    SpesConfig,
    explain,
    explain_dataset,
    get_adapter,
)
from spes_hf.analysis import modality_balance, positional
from spes_hf.analysis.corpus import token_label
from spes_hf.analysis.intermediate import tops
from spes_hf.audio.pauses import cut_at_pauses
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.explanation.recording_plan import RecordingPlan
from spes_hf.explanation.soundness import check_sound
from spes_hf.explanation.timestamps import without_timestamps
from spes_hf.jobs.run import load_explained
from spes_hf.jobs.schedule import estimate_costs
from spes_hf.metrics import summarize
from spes_hf.metrics.deletion import generation_options
from spes_hf.metrics.rows import method_signature
from spes_hf.runtime.locks import alone

CONFIG = SpesConfig(num_spectrogram_masks=4, masks_per_token=2, num_token_masks=6)
SHORT = {"max_new_tokens": 10, "no_repeat_ngram_size": 1}
SETTINGS = {"sampling_rate": 16_000, "config": CONFIG, "generate_kwargs": SHORT, "progress": False}


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    """5 s of noise: three windows of the small Whisper."""
    return (0.1 * np.random.default_rng(0).standard_normal(5 * 16_000)).astype(np.float32)


@pytest.fixture(scope="module")
def recording(small_whisper, sound, tmp_path_factory) -> Recording:
    return explain(*small_whisper, sound, folder=tmp_path_factory.mktemp("edges") / "r", **SETTINGS)


class Only:
    """A logits processor that lets nothing but one token be written."""

    def __init__(self, token: int):
        self.token = token

    def __call__(self, ids, scores):
        return torch.full_like(scores, -1e4).index_fill(-1, torch.tensor([self.token]), 0.0)


# Continuing ----------------------------------------------------------------------------------------------------------


def test_a_setting_that_is_left_out_is_another_call(small_whisper, sound, recording):
    fewer = {**SETTINGS, "generate_kwargs": {"max_new_tokens": 10}}
    with pytest.raises(ConfigError, match="different: generate_kwargs"):
        explain(*small_whisper, sound, folder=recording.folder, **fewer)
    plan = recording.plan.identity
    assert {"language", "task", "tgt_lang", "words", "start", "segment"} <= plan.keys()


def test_objects_that_cannot_be_compared_are_not_taken_for_the_same(small_whisper, sound, tmp_path):
    settings = {**SETTINGS, "generate_kwargs": {"max_new_tokens": 4, "logits_processor": [Only(314)]}, "end": 1.0}
    assert explain(*small_whisper, sound, folder=tmp_path / "r", **settings).text
    with pytest.raises(ConfigError, match="but logits_processor in generate_kwargs cannot be compared"):
        explain(*small_whisper, sound, folder=tmp_path / "r", **settings)


def test_saving_over_a_recording_leaves_it_or_the_new_one(small_whisper, sound, recording, tmp_path, monkeypatch):
    place = recording.save(tmp_path / "r")
    other = explain(*small_whisper, sound, seed=3, end=1.0, **SETTINGS)

    def interrupted(plan, folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RecordingPlan, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            other.save(place)
    with pytest.raises(ExplanationFormatError, match=r"holds no recording\.json"):
        Recording.load(place)  # no mixture of both
    assert Recording.load(recording.save(place)).text == recording.text


def test_a_window_of_another_recording_is_refused(small_whisper, sound, recording, tmp_path):
    place = recording.save(tmp_path / "r")
    recording[1].save(place / "windows" / "00000")
    with pytest.raises(ExplanationFormatError, match="of another recording"):
        Recording.load(place)[0]


def test_a_clip_does_not_go_into_the_folder_of_a_recording(small_whisper, tone, recording, tmp_path):
    with pytest.raises(ConfigError, match="holds a recording"):
        explain(*small_whisper, tone, folder=recording.folder, **SETTINGS)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="is a file"):
        explain(*small_whisper, tone, folder=tmp_path / "file", **SETTINGS)
    with pytest.raises(ConfigError, match="folder is 3"):
        explain(*small_whisper, tone, folder=3, **SETTINGS)


def test_copies_share_the_temporary_folder_and_pickles_say_what_to_do(small_whisper, sound, recording):
    found = explain(*small_whisper, sound, end=1.0, **SETTINGS)
    twin = copy.deepcopy(found)
    del found
    assert twin[0].text
    with pytest.raises(ValueError, match=r"save\(\) it first"):
        pickle.dumps(twin)
    assert pickle.loads(pickle.dumps(recording)).tokens == recording.tokens


def test_a_method_that_the_user_put_on_the_model_is_put_back(small_whisper, sound):
    model, _ = small_whisper
    own = model.generate_with_fallback
    model.generate_with_fallback = own
    try:
        explain(*small_whisper, sound, end=1.0, **SETTINGS)
        assert vars(model)["generate_with_fallback"] is own
    finally:
        del model.generate_with_fallback


# Windows that overlap ------------------------------------------------------------------------------------------------


class InTwoParts:
    """A logits processor that writes two segments of half a second and a part of a third, which is thrown away."""

    def __init__(self, model, words):
        first = model.generation_config.no_timestamps_token_id + 1
        stamps = [first, first + 25, first + 50]  # 0, 0.5 and 1 s
        self.tokens = [stamps[0], words[0], stamps[1], stamps[1], words[1], stamps[2], stamps[2], words[2]]
        self.end = model.generation_config.eos_token_id

    def set_begin_index(self, begin):
        self.begin = begin

    def __call__(self, ids, scores):
        place = ids.shape[-1] - self.begin
        token = self.tokens[place] if place < len(self.tokens) else self.end
        return torch.full_like(scores, -1e4).index_fill(-1, torch.tensor([token]), 0.0)


@pytest.fixture(scope="module")
def overlapping(small_whisper, sound) -> Recording:
    settings = {**SETTINGS, "generate_kwargs": {"logits_processor": [InTwoParts(small_whisper[0], [314, 1500, 2100])]}}
    return explain(*small_whisper, sound, **settings)


def test_windows_that_overlap_share_no_second(overlapping):
    """Each window is read for 2 s and kept for 1 s: the next one reads the rest again."""
    assert [(w.start_s, w.end_s, w.until_s) for w in overlapping.windows[:3]] == [(0, 2, 1), (1, 3, 2), (2, 4, 3)]
    assert [w.written.discarded for w in overlapping.windows[:3]] == [1, 1, 1]
    assert [len(w.segments) for w in overlapping.windows[:3]] == [2, 2, 2]
    times, saliency = overlapping.times, overlapping.sentence_saliency
    assert torch.all(times.diff() > 0) and len(times) == len(saliency) == 500
    second = overlapping[1]
    at = int((times - second.times[0]).abs().argmin())
    assert at == 100 and torch.equal(saliency[at : at + 100], second.sentence_saliency[:100])
    assert all(ex.part is not None and 7 not in ex.part.rows for ex in overlapping[:3])  # what was thrown away
    assert [ex.text for ex in overlapping[:3]] == [overlapping.windows[i].text for i in range(3)]


def test_analyses_leave_timestamps_out(overlapping):
    """Rows and columns are those of the tokens that say what; whether timestamps are explained makes no difference."""
    first = overlapping[0]
    bare = without_timestamps(first)
    assert bare.tokens == first.tokens and bare.part is None and not any("<|" in t for t in bare.context_tokens[1:])
    assert bare.token_saliency.shape == (2, bare.prefix_length + 1)
    assert torch.equal(bare.audio_saliency, first.audio_saliency)
    prefix, second = first.prefix_length, first.part.rows[0]
    assert bare.token_saliency[1, prefix] == first.token_saliency[1, prefix + second]
    assert bare.starts == [0, 1] and check_sound(bare) is bare
    found = positional(overlapping)
    assert found.n == sum(len(ex) - 1 for ex in overlapping)
    assert {token.token for token in modality_balance(overlapping).tokens} == {t.strip() for t in overlapping.tokens}
    assert len(modality_balance([{"id": "x", "explanation": overlapping}]).utterances) == len(overlapping)
    assert tops(bare) == [None, None]


def test_a_part_of_a_window_is_what_its_segments_say(small_whisper, sound, overlapping):
    processor = [InTwoParts(small_whisper[0], [314, 1500, 2100])]
    settings = {**SETTINGS, "generate_kwargs": {"logits_processor": processor}}
    part = explain(*small_whisper, sound, start=1.6, end=1.9, **settings)
    assert part.text == overlapping.segments[3].text and len(part) == 1
    (row,) = part[0].part.rows
    same = overlapping[1].part.rows.index(row)
    assert torch.equal(part[0].raw_audio[0], overlapping[1].raw_audio[same])
    assert part[0].words().tokens == [overlapping[1].words().tokens[1]]


def test_other_threads_work_while_a_recording_is_transcribed(small_whisper, sound, monkeypatch):
    model, _ = small_whisper
    retrieve, found = type(model)._retrieve_segment, []

    def between_windows(**given):
        def work():
            with alone():
                found.append(threading.get_ident())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(5)
        return retrieve(**given)

    monkeypatch.setattr(type(model), "_retrieve_segment", staticmethod(between_windows))
    explain(*small_whisper, sound, end=1.0, **SETTINGS)
    assert len(found) == 2  # the window that was asked for, and the one that follows it


def test_a_processor_that_draws_at_random_is_kept_apart(small_whisper, sound):
    model, processor = small_whisper
    processor = copy.deepcopy(processor)
    processor.feature_extractor.dither = 1e-3
    before = torch.get_rng_state()
    one, other = (explain(model, processor, sound, end=1.0, **SETTINGS) for _ in range(2))
    assert torch.equal(one[0].features, other[0].features) and torch.equal(torch.get_rng_state(), before)


# Cutting -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [2.0, 2.005, 2.01, 2.019, 4.0, 4.01])
def test_speech_without_a_pause_is_read_to_the_end(small_whisper, sound, seconds):
    found = explain(*small_whisper, sound[: int(seconds * 16_000)], segment="pauses", **SETTINGS)
    assert not any(window.skipped for window in found.windows)
    assert found.windows[0].start_s == 0 and found.windows[-1].end_s == pytest.approx(seconds, abs=1e-3)
    for one, following in zip(found.windows, found.windows[1:], strict=False):
        assert one.end_s == pytest.approx(following.start_s, abs=1e-3)


def test_what_is_left_after_a_cut_is_long_enough_to_be_kept():
    rng, rate = np.random.default_rng(0), 16_000
    sound = (0.1 * rng.standard_normal(int(2.1 * rate))).astype(np.float32)
    sound[int(1.9 * rate) : int(2.0 * rate)] *= 0.3  # the quietest place is near the end
    found = cut_at_pauses(sound, rate, longest_s=2.0)
    assert [b for _, b in found[:-1]] == [a for a, _ in found[1:]] and found[-1][1] == len(sound)
    assert all((b - a) / rate >= 0.3 for a, b in found)


def test_speech_in_a_long_silence_is_found():
    rng, rate = np.random.default_rng(0), 16_000
    sound = (0.001 * rng.standard_normal(300 * rate)).astype(np.float32)
    sound[100 * rate : 105 * rate] += (0.2 * rng.standard_normal(5 * rate)).astype(np.float32)
    ((start, end),) = cut_at_pauses(sound, rate)
    assert (start / rate, end / rate) == pytest.approx((99.9, 105.1), abs=0.1)


def test_deletion_of_a_window_without_timestamps_writes_none(small_whisper, sound):
    """A few samples more than a window are read without timestamps."""
    (found,) = explain(*small_whisper, sound[: int(2.005 * 16_000)], **SETTINGS)
    adapter = get_adapter(*small_whisper)
    options = generation_options(found, adapter)
    entry = Deletion(*small_whisper, fractions=(0.0, 1.0))(found)["deletion"]
    assert entry["texts"][0] == entry["prediction"] == found.text and options.prefix == found.origin.prefix_ids
    assert not any(adapter.is_timestamp(torch.tensor(found.written_ids)))


# Selecting -----------------------------------------------------------------------------------------------------------


def test_words_outside_of_the_part_are_an_error(small_whisper, sound):
    with pytest.raises(ConfigError, match=r"words is 0, but the model wrote none of them between start=4\.5"):
        explain(*small_whisper, sound, words=0, start=4.5, **SETTINGS)


def test_names_in_any_form_are_those_of_the_call(small_whisper, sound, tmp_path):
    """Ranges, arrays and sets are what they hold, also where a folder is continued."""
    one = explain(*small_whisper, sound, words=range(1), folder=tmp_path / "r", end=1.0, **SETTINGS)
    again = explain(*small_whisper, sound, words=np.array([0]), folder=tmp_path / "r", end=1.0, **SETTINGS)
    assert again.tokens == one.tokens and one.provenance["words"] == [0]
    with pytest.raises(ConfigError, match="different: words"):
        explain(*small_whisper, sound, words={1}, folder=tmp_path / "r", end=1.0, **SETTINGS)


def test_a_finished_recording_is_not_worked_out_again(small_whisper, sound, recording, monkeypatch):
    monkeypatch.setattr("spes_hf.adapters.whisper_long.log_mel", None)
    again = explain(*small_whisper, sound, folder=recording.folder, **SETTINGS)
    assert again.text == recording.text and len(again) == len(recording)


def test_a_timestamp_that_is_named_is_explained(small_whisper, sound, recording):
    adapter = get_adapter(*small_whisper)
    ids = torch.tensor(recording[0].written_ids)
    name = next(p for p, when in zip(adapter.pieces(ids), adapter.is_timestamp(ids), strict=True) if when)
    found = explain(*small_whisper, sound, tokens=name, end=1.0, **SETTINGS)
    assert set(found.tokens) == {name}
    words = explain(*small_whisper, sound, words=0, timestamps=True, end=1.0, **SETTINGS)
    assert name in words.tokens and len(words.words()) == 1 and len(words.words()[0]) == 1


def test_an_end_behind_the_recording_is_its_end(small_whisper, sound, recording):
    assert explain(*small_whisper, sound, start=0.0, end=5.0, **SETTINGS).text == recording.text


def test_a_clip_of_nothing_but_timestamps_has_these_explained(small_whisper, tone):
    settings = {**SETTINGS, "generate_kwargs": {"max_new_tokens": 1, "return_timestamps": True}}
    found = explain(*small_whisper, tone, **settings)
    assert len(found) == 1 and found.tokens[0].startswith("<|")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"words": 1.5}, "allowed: a text, an index"),
        ({"words": True}, "allowed: a text, an index"),
        ({"words": b"a"}, "allowed: a text, an index"),
        ({"timestamps": "no"}, "timestamps is 'no'"),
    ],
)
def test_selections_that_are_none(small_whisper, tone, arguments, message):
    with pytest.raises(ConfigError, match=message):
        explain(*small_whisper, tone, **SETTINGS, **arguments)


def test_a_part_is_told_from_the_whole_by_its_signature(small_whisper, tone):
    whole = explain(*small_whisper, tone, **SETTINGS)
    part = explain(*small_whisper, tone, tokens=[3, 6], **SETTINGS)
    assert "|tokens:2 of" in method_signature(part) and "|tokens:" not in method_signature(whole)
    assert [token_label(part, k) for k in range(2)] == [token_label(whole, k) for k in (3, 6)]
    settings = {**SETTINGS, "config": RandomConfig()}
    drawn, some = explain(*small_whisper, tone, **settings), explain(*small_whisper, tone, tokens=[3, 6], **settings)
    assert torch.equal(some.raw_audio, drawn.raw_audio[[3, 6]])


def test_sizes_of_words_are_those_of_their_tokens(small_whisper, sound):
    found = explain(*small_whisper, sound, tokens=[1, 2, 3, 12], **SETTINGS)
    assert Size()(found)["size"] == Size()(found.words())["size"]


# Rows ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(sound, tmp_path_factory):
    """The same id twice, with different audio, and a length that is not known."""
    folder = tmp_path_factory.mktemp("corpus")
    soundfile.write(folder / "a.wav", sound, 16_000, subtype="FLOAT")
    soundfile.write(folder / "b.wav", -0.5 * sound, 16_000, subtype="FLOAT")
    audio = [{"path": str(folder / name), "bytes": None} for name in ("a.wav", "b.wav")]
    return Dataset.from_dict({"id": ["x", "x"], "audio": audio, "duration": [float("nan"), 5.0]})


def test_ids_that_occur_twice_and_lengths_that_are_not_known(small_whisper, corpus, tmp_path):
    assert estimate_costs(corpus, "audio", 2.0)[0] < estimate_costs(corpus, "audio", 2.0)[1]
    summary = explain_dataset(*small_whisper, corpus, tmp_path / "out", CONFIG, generate_kwargs=SHORT, progress=False)
    assert summary.complete and not summary.failures
    rows = load_explained(tmp_path / "out")
    assert Recording.from_row(rows.with_format("numpy")[0]).text == rows[0]["prediction"]
    assert Size()(rows.with_format("numpy")[1])["size"]["audio"][0] == 100


def test_utterances_between_pauses_of_a_killed_job_are_not_lost(tmp_path, monkeypatch):
    model, processor = load_tiny_model("speech2text-en")
    clips = [soundfile.read(clip["path"], dtype="float32")[0] for clip in tiny_clips()[:2]]
    sound = np.concatenate([clips[0], np.full(12_800, 1e-5, np.float32), clips[1]])
    soundfile.write(tmp_path / "two.wav", sound, 16_000, subtype="FLOAT")
    corpus = Dataset.from_dict({"id": ["x"], "audio": [{"path": str(tmp_path / "two.wav"), "bytes": None}]})
    save, calls = Explanation.save, []

    def stop(self, folder):
        calls.append(folder)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return save(self, folder)

    settings = {"segment": "pauses", "progress": False}
    with monkeypatch.context() as patch:
        patch.setattr(Explanation, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            explain_dataset(model, processor, corpus, tmp_path / "out", CONFIG, **settings)
    assert len(list((tmp_path / "out").glob("recordings/*/windows/*/explanation.json"))) == 1
    assert explain_dataset(model, processor, corpus, tmp_path / "out", CONFIG, **settings).complete
    assert len(Recording.from_row(load_explained(tmp_path / "out")[0])) == 2


def test_a_recording_for_which_nothing_was_written_is_no_failure(small_whisper, corpus, tmp_path):
    ended = {"logits_processor": [Only(small_whisper[0].generation_config.eos_token_id)]}
    metrics = [Size(), Deletion(*small_whisper, fractions=(0.0, 1.0))]
    settings = {"metrics": metrics, "generate_kwargs": ended, "progress": False}
    summary = explain_dataset(*small_whisper, corpus, tmp_path / "out", CONFIG, **settings)
    assert summary.complete and not summary.failures
    rows = load_explained(tmp_path / "out")
    assert rows[0]["verdict"] == "nothing written" and rows[0]["size"] is None and rows[0]["deletion"] is None
    full = Explain(*small_whisper, CONFIG, generate_kwargs=SHORT)(dict(corpus[0]))
    scores = summarize([dict(rows[0]), Size()(full)])
    assert scores  # of the row that has something
    assert isinstance(Recording.from_row(full)[0], Explanation)


def test_only_silence_is_passed_over_between_pauses(sound, monkeypatch):
    """An utterance that the model cannot read for another reason is an error, not silence."""
    model, processor = load_tiny_model("speech2text-en")
    monkeypatch.setattr("spes_hf.adapters.speech_to_text.Speech2TextAdapter.longest_s", 60.0)
    long = np.tile(sound, 4)  # 20 s without a pause, and positions for 15
    with pytest.raises(AudioError, match="reads at most 1500; pass segment"):
        explain(model, processor, long, 16_000, segment="pauses", progress=False)
    error = pickle.loads(pickle.dumps(AudioError("nothing", silent=True)))
    assert error.silent and str(error) == "nothing"
