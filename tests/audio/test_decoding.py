"""Files that break off, and containers that soundfile does not read."""

import io
import os
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import scipy.signal
import soundfile

from spes_hf.audio import codecs
from spes_hf.audio.codecs import find_ffmpeg
from spes_hf.audio.load import AudioAs, load_audio, load_segment
from spes_hf.errors import AudioError

RATE = 16_000


@pytest.fixture(scope="module")
def speech(jfk):
    return soundfile.read(jfk, dtype="float32")[0][: 4 * RATE]


def encoded(samples, form, subtype):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format=form, subtype=subtype)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def contain(tmp_path_factory, speech):
    """Function that makes a container with FFmpeg and returns its path."""
    folder = tmp_path_factory.mktemp("containers")
    soundfile.write(folder / "speech.wav", speech, RATE)

    def make(name, *options):
        assert find_ffmpeg(), "the dev extra brings FFmpeg"
        path = folder / name
        command = [find_ffmpeg(), "-v", "error", "-y", "-i", folder / "speech.wav", *options, path]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=60)
        return path

    return make


VIDEO = ("-f", "lavfi", "-i", "testsrc=size=64x64:rate=5:duration=4", "-c:v", "mpeg4")


# Containers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.m4a", ()),
        ("a.mp4", VIDEO),
        ("a.aac", ()),
        ("a.webm", ()),
        ("a.mkv", VIDEO),
        ("a.wma", ()),
        ("a.wav", ("-f", "mp4")),  # under a wrong name
    ],
)
def test_containers_are_decoded(contain, speech, name, options):
    path = contain(name, *options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_audio(path, RATE)
    assert abs(found.duration_s - 4) < 0.2 and found.notes[0].startswith("decoded by FFmpeg")
    known = speech[4_800:52_800]
    lag = int(np.argmax(scipy.signal.correlate(found.samples, known, "valid")))
    assert np.corrcoef(found.samples[lag : lag + len(known)], known)[0, 1] > 0.9  # what was said
    for form in (path.read_bytes(), {"bytes": path.read_bytes(), "path": name}, {"bytes": None, "path": str(path)}):
        np.testing.assert_array_equal(load_audio(form, RATE).samples, found.samples)
    with path.open("rb") as file:
        np.testing.assert_array_equal(load_audio(file, RATE).samples, found.samples)
    segment = load_segment(path, 1.0, 0.5, RATE)
    if "resampled" not in " ".join(found.notes):
        np.testing.assert_array_equal(segment.samples, found.samples[RATE : RATE + RATE // 2])
    assert len(segment.samples) == RATE // 2


def test_one_of_several_streams_is_taken_with_a_warning_or_by_its_index(contain):
    two = ("-f", "lavfi", "-i", "sine=frequency=300:duration=2", "-map", "0:a", "-map", "1:a")
    path = contain("two.mka", *two, "-c:a", "pcm_s16le")
    with pytest.warns(UserWarning, match=r"2 audio streams \(stream_index 0, 1\)") as caught:
        best = load_audio(path, RATE)
    assert caught[0].filename == __file__ and any("2 audio streams" in note for note in best.notes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (load_audio(AudioAs(path, stream_index=i), RATE) for i in (0, 1))
    assert (round(first.duration_s), round(second.duration_s)) == (4, 2)
    with pytest.raises(AudioError, match="cannot be decoded"):
        load_audio(AudioAs(path, stream_index=7), RATE)


def test_without_a_decoder_the_error_says_what_to_install(contain, monkeypatch):
    path = contain("b.m4a")
    remedy = r"pip install 'imageio-ffmpeg>=0\.5' \(the extra 'codecs'\)"
    monkeypatch.setattr(codecs, "find_ffmpeg", lambda: None)
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    for load in (lambda: load_audio(path, RATE), lambda: load_segment(path, 0, 1, RATE)):
        with pytest.raises(AudioError, match=f"b.m4a.*cannot be decoded.*{remedy}"):
            load()


def test_a_torchcodec_that_does_not_load_is_named(contain, monkeypatch, tmp_path):
    path = contain("c.m4a")
    (tmp_path / "torchcodec").mkdir()
    (tmp_path / "torchcodec" / "__init__.py").write_text(
        "raise RuntimeError('Could not load libtorchcodec.\\nAnd so on')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchcodec"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(codecs, "find_ffmpeg", lambda: None)
    with pytest.raises(AudioError, match=r"fails to load: Could not load libtorchcodec\.\).*pip install"):
        load_audio(path, RATE)


def test_torchcodec_decodes_where_there_is_no_program(contain, monkeypatch, speech):
    pytest.importorskip("torchcodec", reason="torchcodec is not installed")
    try:
        import torchcodec.decoders  # noqa: F401
    except (RuntimeError, OSError) as error:
        pytest.skip(f"torchcodec does not load: {str(error).splitlines()[0]}")
    path = contain("d.m4a")
    expected = load_audio(path, RATE).samples
    monkeypatch.setattr(codecs, "find_ffmpeg", lambda: None)
    for source in (path, path.read_bytes()):
        found = load_audio(source, RATE)
        assert found.notes[0] == "decoded by torchcodec"
        size = min(len(found.samples), len(expected))
        assert np.corrcoef(found.samples[:size], expected[:size])[0, 1] > 0.9


def test_a_broken_container_is_named_or_warned_about(contain, tmp_path):
    whole = contain("e.m4a").read_bytes()
    with pytest.raises(AudioError, match="cannot be decoded: .*moov atom not found"):
        load_audio(whole[: len(whole) // 2], RATE)
    front = contain("f.m4a", "-movflags", "+faststart").read_bytes()
    with pytest.warns(UserWarning, match="damaged or truncated after .* FFmpeg reports"):
        found = load_audio(front[: len(front) // 2], RATE)
    assert found.duration_s < 3 and any("damaged or truncated" in note for note in found.notes)


@pytest.mark.parametrize("content", ["ffconcat version 1.0\nfile secret.wav\n", "#EXTM3U\n#EXTINF:1,\nsecret.wav\n"])
def test_playlists_open_no_other_file(tmp_path, speech, content):
    soundfile.write(tmp_path / "secret.wav", speech, RATE)
    (tmp_path / "list.m4a").write_text(content)
    with pytest.raises(AudioError, match="cannot be decoded"):
        load_audio(tmp_path / "list.m4a", RATE)


def test_a_decoder_that_hangs_is_stopped(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(codecs, "TIME_LIMIT_S", 3.0)
    started = time.monotonic()
    with pytest.raises(AudioError, match="FFmpeg took more than 3 s"):
        load_audio(b"no audio", RATE)
    assert time.monotonic() - started < 40
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_more_than_memory_should_hold_is_refused(contain, speech, monkeypatch):
    from spes_hf.audio import decoding

    path = contain("g.m4a")
    for module in (codecs, decoding):
        monkeypatch.setattr(module, "MAX_SAMPLES", 30_000)
    for audio in (path, encoded(speech, "FLAC", "PCM_16")):
        with pytest.raises(AudioError, match="more than 30000 samples") as refused:
            load_audio(audio, RATE)
    assert "cannot be decoded" not in str(refused.value)  # what soundfile reads is not given to a second decoder


def test_seconds_of_a_segment_may_be_text(speech, tmp_path):
    path = tmp_path / "a.flac"
    path.write_bytes(encoded(speech, "FLAC", "PCM_16"))
    as_text = load_audio({"path": str(path), "offset": "0.5", "duration": "0.25"}, RATE)
    as_numbers = load_audio({"path": str(path), "offset": 0.5, "duration": 0.25}, RATE)
    assert as_text.source == as_numbers.source and np.array_equal(as_text.samples, as_numbers.samples)


def test_the_home_of_nobody_is_no_usable_path():
    with pytest.raises(AudioError, match="~nobody-of-this-name.* is not a usable path"):
        load_audio("~nobody-of-this-name/a.wav", RATE)


# Files that break off -------------------------------------------------------------------------------------------------

CUT = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("WAV", "ULAW"),
    ("WAV", "IMA_ADPCM"),
    ("WAVEX", "PCM_24"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("NIST", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]


@pytest.mark.parametrize(("form", "subtype"), CUT)
def test_a_file_that_breaks_off_warns_and_is_noted(speech, form, subtype):
    content = encoded(speech, form, subtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = load_audio(content, RATE)
    assert not [note for note in whole.notes if "truncated" in note]
    with pytest.warns(UserWarning, match="truncated: ends after") as caught:
        cut = load_audio(content[: len(content) * 6 // 10], RATE)
    assert caught[0].filename == __file__
    (note,) = [note for note in cut.notes if "truncated" in note]
    assert form == "OGG" or "promises 4.0" in note or "promises 3.99" in note, note
    assert 0.2 * len(speech) < len(cut.samples) < 0.75 * len(speech)


def test_segments_of_a_file_that_breaks_off(tmp_path, speech):
    path = tmp_path / "cut.wav"
    path.write_bytes(encoded(speech, "WAV", "PCM_16")[: 4 * RATE + 44])
    with pytest.warns(UserWarning, match="truncated: ends after 2.000 s, but its header promises 4.000 s") as caught:
        segment = load_segment(path, 1.0, 1.05, RATE)
    assert caught[0].filename == __file__
    assert any("truncated: ends after 2.000 s" in note for note in segment.notes) and len(segment.samples) == RATE
    with pytest.raises(
        AudioError, match="ends past the end: .*truncated: ends after 2.000 s, but its header promises 4.000 s"
    ):
        load_segment(path, 1.5, 1.0, RATE)
    flac = tmp_path / "cut.flac"
    flac.write_bytes(encoded(speech, "FLAC", "PCM_16")[:40_000])
    with pytest.raises(AudioError, match="cut.flac.*(is truncated|cannot be decoded)"):
        load_segment(flac, 3.0, 0.5, RATE)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_a_size_that_a_pipe_could_not_know_is_no_promise(speech, size):
    content = bytearray(encoded(speech, "WAV", "PCM_16"))
    content[40:44] = size.to_bytes(4, "little")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_audio(bytes(content), RATE).samples) == len(speech)
