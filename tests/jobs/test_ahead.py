"""What a job does while the model runs: reading one row ahead, writing one row behind, and nothing more."""

import threading

import pytest
from datasets import Dataset, Value

from spes_hf import SpesConfig, explain_dataset
from spes_hf.corpora.audio_transform import AudioTransform
from spes_hf.corpora.transforms import Explain
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.jobs.ahead import BackgroundWriter, read_ahead
from spes_hf.jobs.run import load_explained, map_rows
from spes_hf.jobs.shards import ShardError, ShardWriter, count_rows
from spes_hf.rows import RowTransform

FEW = SpesConfig(num_spectrogram_masks=4, num_token_masks=3, masks_per_token=2)
SECONDS = 60


def left():
    """Threads of a job that are alive."""
    return [t for t in threading.enumerate() if t.name.startswith(("read ahead", "write behind"))]


def test_rows_are_read_in_order_and_one_ahead():
    begun, threads = [], set()

    def read(index):
        begun.append(index)
        threads.add(threading.current_thread())
        return -index

    found, ahead = [], []
    for index, row in read_ahead([3, 1, 4, 5], read):
        found.append((index, row))
        ahead.append(len(begun) - len(found))
    assert found == [(3, -3), (1, -1), (4, -4), (5, -5)] and begun == [3, 1, 4, 5]
    assert max(ahead) <= 1 and threading.main_thread() not in threads and not left()
    assert list(read_ahead([], read)) == []


def test_the_next_row_is_read_while_this_one_is_worked_on():
    reading = {index: threading.Event() for index in range(4)}

    def read(index):
        reading[index].set()
        return index

    for index, _ in read_ahead(range(4), read):
        assert index == 3 or reading[index + 1].wait(SECONDS)
        assert index >= 2 or not reading[index + 2].is_set()


def test_an_error_in_reading_comes_up_at_its_row():
    found = []
    with pytest.raises(ZeroDivisionError):
        for index, row in read_ahead([2, 1, 0, 5], lambda i: 1 / i):
            found.append((index, row))
    assert found == [(2, 0.5), (1, 1.0)] and not left()


def test_an_iterator_that_is_closed_leaves_no_thread():
    rows = read_ahead([1, 2, 3], lambda i: i)
    next(rows)
    rows.close()
    assert not left()


class Slow:
    """A writer that waits."""

    def __init__(self, flush_seconds=60):
        self.flush_seconds = flush_seconds
        self.go, self.rows = threading.Event(), []

    def add(self, index, row):
        assert self.go.wait(SECONDS)
        if row is None:
            raise ShardError(f"row {index}")
        self.rows.append(index)

    def flush(self):
        self.rows.append("flush")


def test_one_row_is_written_while_the_next_is_worked_on():
    slow = Slow()
    with BackgroundWriter(slow) as writer:
        writer.add(0, {})
        assert not slow.rows  # and it is no matter
        threading.Timer(0.1, slow.go.set).start()
        writer.add(1, {})  # waits for the first
        assert slow.rows[0] == 0
        writer.flush()
        assert slow.rows == [0, 1, "flush"]
    assert not left()


def test_rows_that_are_not_to_wait_are_written_before_the_next():
    slow = Slow(flush_seconds=0)
    slow.go.set()
    with BackgroundWriter(slow) as writer:
        writer.add(0, {})
        assert slow.rows == [0]
        with pytest.raises(ShardError, match="row 1"):
            writer.add(1, None)


def test_an_error_in_writing_comes_up_with_the_next_row_or_at_the_end():
    slow = Slow()
    slow.go.set()
    with BackgroundWriter(slow) as writer:
        writer.add(0, None)
        with pytest.raises(ShardError, match="row 0"):
            writer.add(1, {})
        writer.add(2, None)
        with pytest.raises(ShardError, match="row 2"):
            writer.flush()
        writer.flush()
    assert slow.rows == ["flush"] and not left()


@pytest.fixture(scope="module")
def tiny():
    return load_tiny_model("speech2text-en")


@pytest.fixture(scope="module")
def corpus():
    paths = [clip["path"] for clip in tiny_clips()[:4]]
    paths[2] = "missing.wav"
    return Dataset.from_dict({"id": list("abcd"), "audio": paths})


def test_rows_are_those_of_calls_one_by_one(tiny, corpus, tmp_path):
    """And what cannot be read is an error of its row alone, in the same words."""
    explain_dataset(*tiny, corpus, tmp_path / "out", FEW, progress=False)
    found = load_explained(tmp_path / "out").remove_columns("row_index").to_list()
    transform = Explain(*tiny, FEW)
    assert not left()
    for row, given in zip(found, corpus, strict=True):
        expected = transform(given)
        assert row["explanation"] == expected["explanation"] and row["error"] == expected["error"]
    assert [bool(row["error"]) for row in found] == [False, False, True, False] and "missing.wav" in found[2]["error"]


def test_audio_is_read_once_and_not_by_the_main_thread(tiny, corpus, tmp_path, monkeypatch):
    threads, really = [], AudioTransform.waveform_of

    def waveform_of(self, row):
        if type(row) is dict:
            threads.append((row["id"], threading.current_thread() is threading.main_thread()))
        return really(self, row)

    monkeypatch.setattr(AudioTransform, "waveform_of", waveform_of)
    explain_dataset(*tiny, corpus, tmp_path / "out", FEW, progress=False)
    # The missing one is tried again where its error is told.
    assert sorted(threads) == [("a", False), ("b", False), ("c", False), ("c", True), ("d", False)]


class Stop(RowTransform):
    """Stops the job at a row."""

    key = "stop"

    def __init__(self, at, error):
        self.at, self.error = at, error

    def columns(self):
        return {"copy": Value("string"), "error": Value("string")}

    def identity(self):
        return {"transform": "stop"}

    def __call__(self, row):
        if row["id"] == self.at:
            raise self.error
        return {**row, "copy": row["id"], "error": ""}


def test_what_is_finished_is_written_when_a_job_is_interrupted(tmp_path):
    data = Dataset.from_dict({"id": list("abcdef")})
    with pytest.raises(KeyboardInterrupt):
        map_rows(data, [Stop("d", KeyboardInterrupt())], tmp_path, progress=False)
    assert count_rows(tmp_path) == 3 and not left()
    summary = map_rows(data, [Stop("", None)], tmp_path, progress=False)
    assert summary.complete and load_explained(tmp_path)["copy"] == list("abcdef")


def test_a_job_ends_where_rows_cannot_be_written(tmp_path, monkeypatch):
    data, written, add = Dataset.from_dict({"id": list("abcdef")}), [], ShardWriter.add

    def full(self, index, row):
        if index == 2:
            raise ShardError("no space is left")
        written.append(index)
        add(self, index, row)

    monkeypatch.setattr(ShardWriter, "add", full)
    with pytest.raises(ShardError, match="no space"):
        map_rows(data, [Stop("", None)], tmp_path, progress=False)
    assert written == [0, 1] and not left()
