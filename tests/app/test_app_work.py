"""One job of the page, without the page: what it finds, keeps and says."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spes_hf import AudioError, ConfigError, Explanation, SpesConfig, explain
from spes_hf.app.job import Job
from spes_hf.app.work import Workbench, check_audio, evidence_of, pages_of, plain, verdict_of
from spes_hf.demo import load_tiny_model


@pytest.fixture(scope="module")
def bench():
    return Workbench()


def job(clip, tmp_path, **changes):
    given = {"audio": clip["path"], "model": "speech2text-en", "language": None, "tgt_lang": None, "preset": "fast"}
    rest = {"reference": None, "max_seconds": 30.0, "folder": str(tmp_path / "secret" / "result")}
    return Job(**{**given, **rest, **changes})


def test_a_transcript_that_cannot_be_compared_costs_no_explanation(bench, clips, tmp_path):
    stages = []
    found = bench.do(job(clips[0], tmp_path, reference="…"), stages.append)
    assert [title for title, _ in found.pages] == ["What the model listened to"]
    assert "could not be compared" in found.evidence[-1]
    names = [stage.name for stage in stages]
    assert list(dict.fromkeys(names))[-2:] == ["Diagnosing", "Drawing the page"] and "Explaining" in names
    with zipfile.ZipFile(found.archive) as archive:
        archive.extractall(tmp_path / "out")
    assert Explanation.load(tmp_path / "out" / "explanation").text.strip() == found.text
    assert (tmp_path / "out" / "explanation.html").is_file()


def test_a_model_that_translates_needs_to_know_into_what(bench, clips, tmp_path):
    with pytest.raises(ConfigError, match="tgt_lang"):
        bench.do(job(clips[0], tmp_path, model="seamless-en-de-es"), lambda stage: None)
    found = bench.do(job(clips[0], tmp_path, model="seamless-en-de-es", tgt_lang="deu"), lambda stage: None)
    assert found.text.strip(".") == clips[0]["translation_de"].strip(".")


def test_windows_of_a_recording_have_a_page_each(clips, tmp_path):
    model, processor = load_tiny_model("speech2text-en")
    sounds = [soundfile.read(clip["path"], dtype="float32")[0] for clip in clips[:2]]
    soundfile.write(tmp_path / "two.wav", np.concatenate([sounds[0], np.zeros(12_800), sounds[1]]), 16_000)
    config = SpesConfig(num_spectrogram_masks=2, masks_per_token=1, num_token_masks=2)
    found = explain(model, processor, tmp_path / "two.wav", config=config, segment="pauses", progress=False)
    pages = pages_of(found)
    assert len(pages) == len(found) == 2 and pages[0][0] == "What the model listened to, 0:00–0:02"
    assert all(page.startswith("<!DOCTYPE html>") for _, page in pages)
    assert "bits" in evidence_of(found)[0]


def test_no_verdict_where_its_limit_is_not_known(bench, clips):
    model, processor = bench.model("speech2text-en")
    config = SpesConfig(num_spectrogram_masks=2, masks_per_token=1, num_token_masks=2)
    found = explain(model, processor, clips[0]["path"], config=config, progress=False)
    assert verdict_of(found) == "" and "Whisper alone" in evidence_of(found)[-1]


def test_audio_that_is_just_long_enough(tmp_path):
    soundfile.write(tmp_path / "a.wav", 0.1 * np.sin(np.arange(32_000) / 5), 16_000)
    check_audio(str(tmp_path / "a.wav"), 2.0)
    with pytest.raises(AudioError, match=r"2\.0 s long; at most 1\.9 s"):
        check_audio(str(tmp_path / "a.wav"), 1.9)


def test_messages_name_the_file_alone():
    path = "/secret/place/clip.wav"
    assert plain(AudioError(f"file {path!r} is broken"), path) == "File 'clip.wav' is broken"
    assert plain(ConfigError("--model 'x' cannot be loaded"), str(Path(path))) == "The model 'x' cannot be loaded"
