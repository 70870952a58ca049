"""Every form that audio comes in: it works, or is refused, or warns."""

import functools
import http.server
import io
import threading
import zipfile

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch

from spes_hf.audio.load import AudioAs, Waveform, load_audio, load_segment
from spes_hf.audio.stored import entries, is_column, row_of
from spes_hf.errors import AudioError
from spes_hf.jobs.job import describe_job
from spes_hf.jobs.schedule import estimate_costs

datasets = pytest.importorskip("datasets")

RATE = 16_000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(8_000) / RATE)).astype(np.float32)


def encoded(samples, form="WAV", subtype="PCM_16", rate=RATE):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=form, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("form", "subtype", "error"),
    [
        ("WAV", "PCM_24", 2**-22),
        ("WAV", "PCM_32", 2**-22),
        ("WAV", "DOUBLE", 0),
        ("WAV", "FLOAT", 0),
        ("WAV", "PCM_U8", 2**-6),
        ("WAV", "ALAW", 0.03),
        ("WAV", "ULAW", 0.03),
        ("WAV", "GSM610", 0.3),
        ("AIFF", "PCM_16", 2**-14),
        ("AU", "ULAW", 0.03),
        ("CAF", "ALAC_24", 2**-22),
        ("FLAC", "PCM_24", 2**-22),
        ("OGG", "VORBIS", 0.1),
        ("OGG", "OPUS", 0.2),
        ("MP3", "MPEG_LAYER_III", 0.2),
    ],
)
def test_formats_of_files(tmp_path, form, subtype, error):
    content = encoded(TONE, form, subtype)
    path = tmp_path / "tone.mp3"  # whatever it is called
    path.write_bytes(content)
    for audio in (path, str(path), content, io.BytesIO(content)):
        found = load_audio(audio, RATE).samples
        middle = slice(2_000, 6_000)
        assert abs(len(found) - len(TONE)) <= 320
        assert abs(found[middle] - TONE[middle]).max() <= error


def test_open_files_are_read_from_their_start_and_left_where_they_were(tmp_path):
    content = encoded(TONE, subtype="FLOAT")
    (tmp_path / "tone.wav").write_bytes(content)
    with open(tmp_path / "tone.wav", "rb") as file:
        file.seek(7)
        found = load_audio(file, RATE)
        assert file.tell() == 7 and found.source == "file tone.wav"
    written = io.BytesIO()
    written.write(content)
    np.testing.assert_array_equal(load_audio(written, RATE).samples, TONE)
    np.testing.assert_array_equal(found.samples, TONE)


def test_open_files_that_will_not_do_are_refused(tmp_path):
    (tmp_path / "tone.wav").write_bytes(encoded(TONE))
    with open(tmp_path / "tone.wav", encoding="latin-1") as file:
        with pytest.raises(AudioError, match=r"tone.wav.*returns str from read\(\); open it with open\(path, 'rb'\)"):
            load_audio(file, RATE)
    with pytest.raises(AudioError, match="cannot be read: .*closed"):
        load_audio(file, RATE)
    with soundfile.SoundFile(tmp_path / "tone.wav") as file, pytest.raises(AudioError, match="'rb'"):
        load_audio(file, RATE)
    with pytest.raises(AudioError, match="empty"):
        load_audio(io.BytesIO(), RATE)


@pytest.mark.parametrize(
    "audio",
    [
        np.repeat(TONE, 2)[::2],
        np.asfortranarray(TONE[None])[0],
        TONE.astype(">f4"),
        TONE.astype(">f8"),
        TONE.astype(np.longdouble),
        torch.from_numpy(TONE.copy()).requires_grad_(),
        torch.from_numpy(np.repeat(TONE, 2))[::2],
        np.ma.masked_array(TONE),
    ],
)
def test_arrays_of_other_layouts_hold_the_same_samples(audio):
    np.testing.assert_array_equal(load_audio(audio, RATE).samples, TONE)


def test_half_precision_and_read_only_arrays():
    half = TONE.astype(np.float16)
    half.flags.writeable = False
    np.testing.assert_array_equal(load_audio(half, RATE).samples, half.astype(np.float32))


def test_masked_samples_are_refused():
    with pytest.raises(AudioError, match="masked"):
        load_audio(np.ma.masked_less(TONE, 0), RATE)


# Addresses ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "corpus.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("clips/tone.wav", encoded(TONE, subtype="FLOAT"))
    return path


def test_paths_that_fsspec_knows(archive, tmp_path):
    (tmp_path / "tone.wav").write_bytes(encoded(TONE, subtype="FLOAT"))
    inside = f"zip://clips/tone.wav::{archive}"
    for audio in (inside, f"file://{tmp_path}/tone.wav", {"bytes": None, "path": inside}):
        found = load_audio(audio, RATE)
        np.testing.assert_array_equal(found.samples, TONE)
        assert found.source == "file tone.wav"
    np.testing.assert_array_equal(load_segment(inside, 0.1, 0.1, RATE).samples, TONE[1_600:3_200])
    stretch = {"path": inside, "offset": 0.1, "duration": 0.1}
    np.testing.assert_array_equal(load_audio(stretch, RATE).samples, TONE[1_600:3_200])


def test_an_address_over_http(tmp_path):
    (tmp_path / "tone.wav").write_bytes(encoded(TONE, subtype="FLOAT"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = load_audio(f"http://127.0.0.1:{server.server_port}/tone.wav", RATE)
        server.shutdown()
    np.testing.assert_array_equal(found.samples, TONE)


def test_addresses_that_cannot_be_opened_are_refused(archive, monkeypatch):
    for audio in (f"zip://none.wav::{archive}", "nothing://tone.wav", "hf://datasets/nobody/nothing/tone.wav"):
        with pytest.raises(AudioError, match="cannot be opened .*download it first"):
            load_audio(audio, RATE)


# What the Audio feature asks for --------------------------------------------------------------------------------------


def test_a_cast_to_another_rate_is_what_the_model_hears():
    noise = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    cast = load_audio(AudioAs(encoded(noise, subtype="FLOAT"), sampling_rate=8_000), RATE)
    assert cast.notes == (
        "resampled from 16000 Hz to 8000 Hz, as the Audio feature says",
        "resampled from 8000 Hz to 16000 Hz",
    )
    spectrum = abs(np.fft.rfft(cast.samples)) / abs(np.fft.rfft(noise))
    assert spectrum[:3_000].mean() > 0.9 and spectrum[4_500:].mean() < 0.01
    assert load_audio(AudioAs(encoded(noise), sampling_rate=8_000), RATE, 8_000).duration_s == pytest.approx(1)
    with pytest.raises(AudioError, match="is at 8000 Hz, but sampling_rate=16000"):
        load_audio(AudioAs(encoded(noise), sampling_rate=8_000), RATE, 16_000)


def test_channels_that_the_feature_asks_for(recwarn):
    stereo = encoded(np.stack([TONE, 0 * TONE], axis=1), subtype="FLOAT")
    np.testing.assert_allclose(load_audio(AudioAs(stereo, num_channels=1), RATE).samples, TONE / 2, atol=1e-7)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="stereo mixed down"):
        load_audio(AudioAs(stereo, num_channels=2), RATE)
    many = encoded(np.stack([TONE] * 4, axis=1))
    with pytest.raises(AudioError, match="num_channels is 2"):
        load_audio(AudioAs(many, num_channels=2), RATE)
    with pytest.raises(AudioError, match="num_channels is 3; allowed are 1, 2"):
        load_audio(AudioAs(stereo, num_channels=3), RATE)


class Heard:
    """A transform that keeps what it would hear."""

    def __init__(self):
        self.found = []

    def __call__(self, row):
        from spes_hf.rows import is_lazy_batch, raw

        audio = raw(row, "audio")
        self.found += audio if is_lazy_batch(row) else [audio]
        return {}


@pytest.mark.parametrize("batched", [False, True])
def test_map_hands_on_what_the_feature_asks_for(tmp_path, batched):
    (tmp_path / "tone.wav").write_bytes(encoded(TONE))
    data = datasets.Dataset.from_dict({"audio": [str(tmp_path / "tone.wav")] * 2})
    cast = data.cast_column("audio", datasets.Audio(sampling_rate=8_000, num_channels=1, stream_index=0))
    heard = Heard()
    cast.map(heard, batched=batched, new_fingerprint=f"heard{batched}")
    asked = [(a.sampling_rate, a.num_channels, a.stream_index) for a in heard.found[-2:]]
    assert asked == [(8_000, 1, 0)] * 2
    assert "resampled from 16000 Hz to 8000 Hz" in load_audio(heard.found[-1], RATE).notes[0]
    plain = Heard()
    data.cast_column("audio", datasets.Audio()).map(plain, batched=batched, new_fingerprint=f"plain{batched}")
    assert isinstance(plain.found[-1], dict)


def test_a_stream_that_does_not_decode_hands_the_file_on_as_it_is(tmp_path):
    """A stream's rows come without their features, so nobody can see the rate that its feature asks for."""
    (tmp_path / "tone.wav").write_bytes(encoded(TONE))
    data = datasets.Dataset.from_dict({"audio": [str(tmp_path / "tone.wav")]}).to_iterable_dataset()
    heard = Heard()
    list(data.cast_column("audio", datasets.Audio(sampling_rate=8_000, decode=False)).map(heard))
    assert load_audio(heard.found[0], RATE).notes == ()


def test_a_job_hears_and_remembers_the_cast(tmp_path):
    (tmp_path / "tone.wav").write_bytes(encoded(TONE))
    data = datasets.Dataset.from_dict({"audio": [str(tmp_path / "tone.wav")]})
    cast = data.cast_column("audio", datasets.Audio(sampling_rate=8_000))
    row = row_of(cast.with_format("arrow")[0], cast.features)
    assert row["audio"].sampling_rate == 8_000
    assert describe_job(cast, [], "audio")["audio_feature"] == {"sampling_rate": 8_000}
    assert "audio_feature" not in describe_job(data, [], "audio")


# Rows and columns -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.int32, np.float16, np.float32, np.float64])
def test_samples_in_a_column_keep_their_type(dtype):
    samples = (TONE * 50 + 100).astype(dtype) if np.dtype(dtype).kind in "iu" else TONE.astype(dtype)
    expected = load_audio(samples, RATE).samples
    for column in (pa.array([samples]), pa.chunked_array([pa.array([samples, samples])])):
        np.testing.assert_array_equal(load_audio(entries(column)[0], RATE).samples, expected)
    stereo = entries(pa.array([[samples, samples]], pa.list_(pa.list_(pa.from_numpy_dtype(samples.dtype)))))[0]
    assert stereo.shape == (2, len(samples)) and stereo.dtype == dtype
    in_dict = entries(pa.array([{"array": samples, "sampling_rate": 8_000}]))[0]
    assert load_audio(in_dict, RATE).notes[-1] == "resampled from 8000 Hz to 16000 Hz"


def test_fixed_size_arrays_of_datasets_are_read():
    features = datasets.Features({"audio": datasets.Array2D((2, 8_000), "float32")})
    data = datasets.Dataset.from_dict({"audio": [np.stack([TONE, TONE])]}, features=features)
    row = row_of(data.with_format("arrow")[0], data.features)
    with pytest.warns(UserWarning, match="stereo"):
        np.testing.assert_allclose(load_audio(row["audio"], RATE).samples, TONE, atol=1e-6)


def test_other_entries_come_as_they_are():
    column = [{"bytes": b"x", "path": None}, None, {"bytes": None, "path": "a"}]
    assert entries(pa.array(column)) == column
    assert entries(pa.array([["a"], None, []])) == [["a"], None, []]
    assert entries(pa.array([[1.0, None]])) == [[1.0, None]]


@pytest.mark.parametrize(
    ("audio", "others", "batch"),
    [
        (TONE, {"id": "a"}, False),
        (TONE.tolist(), {"id": "a"}, False),
        (np.stack([TONE, TONE]), {"id": "a"}, False),
        (np.stack([TONE, TONE]), {}, False),
        (np.stack([TONE, TONE]), {"id": ["a", "b"]}, True),
        (torch.zeros(2, 9), {"id": ["a", "b"]}, True),
        (torch.zeros(9), {"id": "a"}, False),
        ([[0.0, 1.0], [0.0, 1.0]], {"id": "a"}, False),
        ([[0.0, 1.0], [0.0, 1.0]], {"id": ["a", "b"]}, True),
        ([None, "b.wav"], {"id": ["a", "b"]}, True),
        (["a.wav"], {}, True),
        (np.array(["a.wav", "b.wav"]), {"id": ["a", "b"]}, True),
        (np.array([TONE, TONE[:5]], dtype=object), {"id": ["a", "b"]}, True),
        ([Waveform(TONE, RATE, "x")], {"id": ["a"]}, True),
        ({"array": TONE, "sampling_rate": RATE}, {"id": "a"}, False),
        (Waveform(TONE, RATE, "x"), {}, False),
        (b"x", {"id": "a"}, False),
    ],
)
def test_rows_are_told_from_batches(audio, others, batch):
    assert is_column(audio, {"audio": audio, **others}) is batch


def test_costs_of_every_form(tmp_path, archive):
    (tmp_path / "talk.m4a").write_bytes(b"\0" * 32_000)
    (tmp_path / "tone.wav").write_bytes(encoded(TONE))

    def costs(*audio):
        return [c / 1.4 for c in estimate_costs(datasets.Dataset.from_dict({"audio": list(audio)}), "audio")]

    assert costs(str(tmp_path / "talk.m4a"), str(tmp_path / "tone.wav")) == pytest.approx([2.0, 0.5])
    assert costs(f"zip://a.wav::{archive}", str(tmp_path / "tone.wav")) == pytest.approx([0.5, 0.5])
    assert costs(f"zip://a.wav::{archive}") == pytest.approx([10.0])
    assert costs({"array": TONE.tolist(), "sampling_rate": 8_000}) == pytest.approx([1.0])
    assert costs(np.stack([TONE, TONE]).tolist()) == pytest.approx([0.5])
