import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spes_hf.audio.load import Waveform, load_audio, load_segment
from spes_hf.errors import AudioError, SpesError

RATE = 16_000


def tone(seconds=0.5, rate=RATE, hertz=440.0, amplitude=0.5):
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(samples, rate=RATE, form="WAV", subtype="FLOAT"):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=form, subtype=subtype)
    return buffer.getvalue()


@pytest.fixture
def wav(tmp_path):
    path = tmp_path / "tone.wav"
    path.write_bytes(encoded(tone()))
    return path


class Samples:
    def __init__(self, data, sample_rate):
        self.data, self.sample_rate = data, sample_rate


class Decoder:
    """What torchcodec's AudioDecoder offers."""

    def __init__(self, samples, rate=RATE):
        self.samples, self.rate = samples, rate

    def get_all_samples(self):
        return Samples(self.samples, self.rate)


class Indexable:
    def __init__(self, **items):
        self.items = items

    def __getitem__(self, key):
        return self.items[key]


class Opaque:
    pass


def test_every_form_gives_the_same_waveform(wav):
    expected = tone()
    content = wav.read_bytes()
    forms = {
        "str": str(wav),
        "path": wav,
        "bytes": content,
        "bytearray": bytearray(content),
        "array": expected,
        "float64": expected.astype(np.float64),
        "tensor": torch.from_numpy(expected.copy()),
        "tensor with gradient": torch.from_numpy(expected.copy()).requires_grad_(),
        "list": expected.tolist(),
        "column": expected[:, None],
        "row": expected[None],
        "dict": {"array": expected, "sampling_rate": RATE, "path": None},
        "dict of list": {"array": expected.tolist(), "sampling_rate": RATE},
        "undecoded": {"bytes": content, "path": "tone.wav"},
        "undecoded path": {"bytes": None, "path": str(wav)},
        "decoder": Decoder(torch.from_numpy(expected.copy())[None]),
        "indexable": Indexable(array=expected, sampling_rate=RATE),
        "waveform": Waveform(expected, RATE, "given"),
    }
    for form, audio in forms.items():
        loaded = load_audio(audio, RATE)
        assert isinstance(loaded, Waveform)
        assert (loaded.samples.dtype, loaded.samples.ndim, loaded.sampling_rate) == (np.float32, 1, RATE), form
        np.testing.assert_array_equal(loaded.samples, expected, err_msg=form)
        assert loaded.source, form
        assert loaded.duration_s == 0.5


def test_datasets_audio_without_decoding(wav):
    import datasets

    rows = datasets.Dataset.from_dict({"audio": [str(wav)]}).cast_column("audio", datasets.Audio(decode=False))
    np.testing.assert_array_equal(load_audio(rows[0]["audio"], RATE).samples, tone())


@pytest.mark.parametrize(
    ("audio", "scale"),
    [
        (np.array([-32768, 0, 16384], np.int16), 2**15),
        (np.array([-32768, 0, 16384], ">i2"), 2**15),
        (np.array([-(2**31), 0, 2**30], np.int32), 2**31),
        (torch.tensor([-32768, 0, 16384], dtype=torch.int16), 2**15),
    ],
)
def test_integer_pcm_is_scaled(audio, scale):
    loaded = load_audio(audio, RATE)
    np.testing.assert_array_equal(loaded.samples, np.array([-1, 0, 0.5], np.float32))
    assert any(str(scale) in note for note in loaded.notes)


def test_uint8_is_centred():
    np.testing.assert_array_equal(load_audio(np.array([0, 128, 192], np.uint8), RATE).samples, [-1, 0, 0.5])


def test_integer_array_equals_the_file_with_it():
    pcm = (tone() * 32767).astype(np.int16)
    file = encoded(pcm, subtype="PCM_16")
    np.testing.assert_array_equal(load_audio(pcm, RATE).samples, load_audio(file, RATE).samples)


def test_half_precision_tensors():
    for dtype in (torch.float16, torch.bfloat16):
        np.testing.assert_array_equal(load_audio(torch.tensor([0.5, -0.25], dtype=dtype), RATE).samples, [0.5, -0.25])


@pytest.mark.parametrize("layout", ["columns", "rows", "file", "decoder"])
def test_stereo_is_mixed_down_with_a_warning_and_a_note(layout):
    left, right = tone(hertz=300), tone(hertz=500)
    columns = np.stack([left, right], axis=1)
    audio = {
        "columns": columns,
        "rows": columns.T,
        "file": encoded(columns),
        "decoder": Decoder(torch.from_numpy(columns.T.copy())),
    }[layout]
    with pytest.warns(UserWarning, match="stereo mixed down") as caught:
        loaded = load_audio(audio, RATE)
    assert caught[0].filename == __file__
    np.testing.assert_allclose(loaded.samples, (left + right) / 2, atol=1e-7)
    assert "stereo mixed down to mono" in loaded.notes


def test_a_very_short_stereo_file_is_not_ambiguous():
    with pytest.warns(UserWarning, match="stereo"):
        loaded = load_audio(encoded(np.array([[0.5, 0.0], [0.25, 0.25]])), RATE)
    np.testing.assert_array_equal(loaded.samples, [0.25, 0.25])


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_the_tone(rate):
    loaded = load_audio(tone(1.0, rate), RATE, source_rate=rate)
    assert abs(len(loaded.samples) - RATE) <= 1
    middle = slice(RATE // 4, 3 * RATE // 4)
    np.testing.assert_allclose(loaded.samples[middle], tone(1.0)[middle], atol=2e-3)
    assert f"resampled from {rate} Hz to {RATE} Hz" in loaded.notes


def test_files_and_dicts_are_resampled_from_their_own_rate():
    audio = tone(1.0, 48_000)
    from_file = load_audio(encoded(audio, 48_000), RATE)
    from_dict = load_audio({"array": audio, "sampling_rate": 48_000}, RATE)
    from_waveform = load_audio(Waveform(audio, 48_000, "here", ("first",)), RATE)
    assert len(from_file.samples) == RATE
    np.testing.assert_array_equal(from_file.samples, from_dict.samples)
    np.testing.assert_array_equal(from_file.samples, from_waveform.samples)
    assert from_waveform.notes[0] == "first"


def test_the_source_rate_may_repeat_the_audio_s_own(wav):
    assert load_audio(wav, RATE, source_rate=np.int64(RATE)).notes == ()
    assert load_audio(wav, RATE, source_rate=16000.0).notes == ()


def test_a_bare_array_is_taken_to_be_at_the_processor_s_rate():
    assert load_audio(tone(), RATE).notes == ("no sampling rate given: taken to be 16000 Hz",)
    assert load_audio(tone(), RATE, RATE).notes == ()


def test_no_warning_without_a_reason(wav):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_audio(wav, 8_000)


def test_the_caller_s_array_is_left_alone():
    for audio in (tone(), tone()[:, None], Waveform(tone(), RATE, "given")):
        array = audio.samples if isinstance(audio, Waveform) else audio
        before = array.copy()
        loaded = load_audio(audio, RATE)
        loaded.samples[:] = 7
        np.testing.assert_array_equal(array, before)


def test_a_read_only_array_will_do():
    audio = tone()
    audio.flags.writeable = False
    assert load_audio(audio, RATE).samples.flags.writeable


def test_the_source_names_the_file_and_not_its_folder(wav):
    assert load_audio(wav, RATE).source == "file tone.wav"
    assert load_audio({"bytes": wav.read_bytes(), "path": "/far/away/talk.wav"}, RATE).source == "file talk.wav"
    assert load_audio(np.zeros(9, np.int16), RATE).source == "array int16 (9,)"


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(0, np.float32), "empty"),
        (np.zeros((2, 0), np.float32), "empty"),
        ([], "empty"),
        (b"", "empty"),
        ({"array": [], "sampling_rate": RATE}, "empty"),
        (encoded(np.zeros((0, 1))), "no samples"),
        (Decoder(torch.zeros(1, 0)), "no samples"),
        (Waveform(np.zeros(0, np.float32), RATE, "given"), "no samples"),
        (np.array([0, np.nan, 0, np.inf]), r"NaN or infinite at 2 of 4 sample positions, first at index 1"),
        (np.array([[0, 0], [0, 0], [np.nan, np.nan], [0, -np.inf]]), r"2 of 4 sample positions, first at index 2"),
        (encoded(np.array([0, np.nan], np.float32)), "1 of 2"),
        (np.array([0.0, 9.0]), "divide 16-bit samples by 32768"),
        (np.array([0.0, -32768.0]), "amplitude of 32768"),
        (np.array([True, False]), "dtype bool"),
        (np.array([1j, 0]), "dtype complex128"),
        (np.array([None, 1.0]), "dtype object"),
        (np.array([1, 2, 3]), r"dtype int64.*int16"),
        (np.array([1, 2], np.uint16), "dtype uint16"),
        (["a", "b"], "dtype"),
        ([[0.0, 1.0], [0.0]], "not a plain array"),
        (torch.zeros(4, dtype=torch.bool), "dtype bool"),
        (np.zeros((3, 3)), "channel axis is ambiguous"),
        (np.zeros((2, 3, 4)), r"shape \(2, 3, 4\)"),
        (np.zeros((80, 300)), "spectrogram"),
        (np.float32(0.5), r"type float32"),
        (np.zeros(()), r"shape \(\)"),
        (Decoder(torch.zeros(1, 2, 3)), r"shape \(1, 2, 3\)"),
        (None, "type NoneType"),
        (3, "type int"),
        (Opaque(), "type Opaque"),
        (Indexable(other=1), "type Indexable"),
        ({"array": [0.0]}, '"sampling_rate"'),
        ({"file": "a.wav"}, r"\['file'\]"),
        ({"bytes": None, "path": None}, "no audio"),
        ("no/such/file.wav", "no/such/file.wav.*does not exist"),
        ("", "does not exist"),
        ("a\0b", "not a usable path|does not exist"),
        ("https://example.org/a.wav", "URL; download"),
        ({"bytes": None, "path": "no/such/file.wav"}, "does not exist"),
        (b"this is not audio", "cannot be decoded: .*[Ff]ormat"),
        ({"bytes": b"this is not audio", "path": "talk.wav"}, "'talk.wav' cannot be decoded"),
    ],
)
def test_unusable_audio_is_refused(audio, message):
    with pytest.raises(AudioError, match=message) as caught:
        load_audio(audio, RATE)
    assert isinstance(caught.value, SpesError)
    assert isinstance(caught.value, ValueError)


def test_unusable_files_are_refused(tmp_path):
    with pytest.raises(AudioError, match="is a directory"):
        load_audio(tmp_path, RATE)
    for name, content in {
        "text.wav": b"hello",
        "cut.flac": encoded(tone(), form="FLAC", subtype="PCM_16")[:40],
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(AudioError, match=f"{name}.*(cannot be decoded|no samples)"):
            load_audio(path, RATE)
    headerless = tmp_path / "samples.raw"
    headerless.write_bytes(b"\0" * 100)
    with pytest.raises(AudioError, match="cannot be decoded"):
        load_audio(headerless, RATE)


def test_a_failing_decoder_is_reported():
    class Broken:
        def get_all_samples(self):
            raise RuntimeError("no FFmpeg here")

    with pytest.raises(AudioError, match="decoder Broken.*no FFmpeg here"):
        load_audio(Broken(), RATE)


@pytest.mark.parametrize("rate", [0, -1, 16, 16000.5, "16000", True, float("nan"), 10**9, [16000]])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(AudioError, match="^sampling_rate is"):
        load_audio(tone(), RATE, source_rate=rate)
    with pytest.raises(AudioError, match="processor's sampling_rate is"):
        load_audio(tone(), rate)
    with pytest.raises(AudioError, match='dict\'s "sampling_rate" is'):
        load_audio({"array": tone(), "sampling_rate": rate}, RATE)


@pytest.mark.parametrize("form", ["file", "bytes", "dict", "decoder", "waveform"])
def test_contradicting_rates_are_refused(form, wav):
    audio = {
        "file": wav,
        "bytes": wav.read_bytes(),
        "dict": {"array": tone(), "sampling_rate": RATE},
        "decoder": Decoder(torch.from_numpy(tone())[None]),
        "waveform": Waveform(tone(), RATE, "given"),
    }[form]
    with pytest.raises(AudioError, match="is at 16000 Hz, but sampling_rate=8000; leave sampling_rate out"):
        load_audio(audio, RATE, source_rate=8_000)


def test_too_short_to_resample():
    with pytest.raises(AudioError, match="too few to resample"):
        load_audio(np.zeros(1, np.float32), 1_000, source_rate=48_000)


@settings(max_examples=50, deadline=None)
@given(
    length=st.integers(100, 5_000),
    rate=st.sampled_from([8_000, 11_025, 16_000, 44_100]),
    amplitude=st.floats(1e-3, 1.0),
    seed=st.integers(0, 100),
)
def test_any_sane_array_comes_back_finite_at_the_target_length(length, rate, amplitude, seed):
    audio = amplitude * np.random.default_rng(seed).uniform(-1, 1, length)
    loaded = load_audio(audio, RATE, source_rate=rate)
    assert abs(len(loaded.samples) - length * RATE / rate) <= 2
    assert np.isfinite(loaded.samples).all()
    assert abs(loaded.samples).max() <= 2 * amplitude + 1e-6


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=50))
def test_int16_survives_the_round_trip(values):
    pcm = np.array(values, np.int16)
    assert (np.round(load_audio(pcm, RATE).samples * 32768).astype(np.int64) == pcm).all()


@pytest.fixture(scope="module")
def talk(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("talk") / "talk.wav"
    ramp = np.linspace(-1, 1, 10 * RATE, dtype=np.float32)
    soundfile.write(path, ramp, RATE, subtype="FLOAT")
    return path


@settings(max_examples=25, deadline=None)
@given(offset=st.floats(0, 9.0), duration=st.floats(0.001, 1.0))
def test_a_segment_is_the_slice_of_the_whole(talk, offset, duration):
    whole = load_audio(talk, RATE).samples
    segment = load_segment(talk, offset, duration, RATE)
    start = round(offset * RATE)
    np.testing.assert_array_equal(segment.samples, whole[start : round((offset + duration) * RATE)])


def test_a_segment_is_resampled_mixed_and_described(tmp_path):
    path = tmp_path / "stereo.flac"
    soundfile.write(path, np.stack([tone(2.0, 48_000), np.zeros(96_000)], axis=1), 48_000)
    with pytest.warns(UserWarning, match="stereo") as caught:
        segment = load_segment(path, 0.5, 1.0, RATE)
    assert caught[0].filename == __file__
    assert len(segment.samples) == RATE
    assert segment.source == "file stereo.flac [0.5 s, 1.5 s)"
    assert segment.notes == ("stereo mixed down to mono", "resampled from 48000 Hz to 16000 Hz")


def test_only_the_segment_is_read(talk, monkeypatch):
    read, frames = soundfile.SoundFile.read, []
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda self, n=-1, **kw: (frames.append(n), read(self, n, **kw))[1]
    )
    load_segment(talk, 3.0, 0.25, RATE)
    assert frames == [RATE // 4]


def test_a_rounded_end_is_cut_with_a_note(talk):
    segment = load_segment(talk, 9.0, 1.05, RATE)
    assert len(segment.samples) == RATE
    assert segment.notes == ("segment cut by 0.050 s at the end of the file",)


@pytest.mark.parametrize(
    ("offset", "duration", "message"),
    [
        (10.0, 1.0, r"starts past the end.*10\.000 s long"),
        (9.0, 2.0, r"ends past the end.*Give at most 1\.000 s"),
        (-0.1, 1.0, "negative"),
        (0.0, 0.0, "above 0"),
        (0.0, -1.0, "above 0"),
        (0.0, 1e-6, "shorter than one sample"),
        (float("nan"), 1.0, "offset_s is nan"),
        (0.0, float("inf"), "duration_s is inf"),
        (0.0, None, "duration_s is None"),
        ("a", 1.0, "offset_s is 'a'"),
    ],
)
def test_impossible_segments_are_refused(talk, offset, duration, message):
    with pytest.raises(AudioError, match=message):
        load_segment(talk, offset, duration, RATE)


def test_segments_of_unusable_files_are_refused(tmp_path):
    with pytest.raises(AudioError, match="does not exist"):
        load_segment(tmp_path / "none.wav", 0, 1, RATE)
    path = tmp_path / "text.wav"
    path.write_text("hello")
    with pytest.raises(AudioError, match="cannot be decoded"):
        load_segment(path, 0, 1, RATE)
