"""Jobs that are killed (SIGKILL) while they run, and go on. benchmarks/kill.py does the same with real launchers."""

import multiprocessing
import os
import random
import shutil
import signal
import time

import pyarrow.parquet as pq
import pytest
import torch
from mustc_shape import write_corpus
from settings import pyramid

from spes_hf import explain_dataset, load_mustc
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.jobs.shards import INDEX, count_rows, shard_files

FEW = pyramid(num_spectrogram_masks=6, num_token_masks=4)
TIMEOUT_S = 120


@pytest.fixture(scope="module")
def tiny():
    return load_tiny_model("speech2text-en")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, tiny_clips()[:12])
    return load_mustc(folder, cache_dir=folder / "cache")


def work(tiny, corpus, out, index, count, seconds):
    torch.set_num_threads(1)
    place = {"process_index": index, "num_processes": count}
    explain_dataset(*tiny, corpus, out, FEW, **place, flush_seconds=seconds, progress=False)


def start(tiny, corpus, out, count, seconds=0):
    """Start a job of several processes."""
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work, args=(tiny, corpus, out, i, count, seconds)) for i in range(count)]
    for process in processes:
        process.start()
    return processes


def run(tiny, corpus, out, count):
    for process in start(tiny, corpus, out, count):
        process.join(TIMEOUT_S)
        assert process.exitcode == 0


def kill(*processes):
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.join(TIMEOUT_S)
        assert process.exitcode == -signal.SIGKILL


def wait_for(out, rows):
    until = time.monotonic() + TIMEOUT_S
    while count_rows(out) < rows:
        assert time.monotonic() < until
        time.sleep(0.005)


def content(out):
    """All rows, in order; one that is there twice fails."""
    rows = [row for path in shard_files(out) for row in pq.read_table(path).to_pylist()]
    assert sorted(row[INDEX] for row in rows) == list(range(len(rows)))
    return [repr(row) for row in sorted(rows, key=lambda row: row[INDEX])]


def files(out):
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def undisturbed(tiny, corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run(tiny, corpus, out, 2)
    return content(out)


def assert_whole(out, undisturbed, before):
    assert content(out) == undisturbed and len(undisturbed) == 12
    assert set(before) <= set(files(out))  # what was finished was not computed again
    known = {"manifest.json", "summary.json"}
    assert [name for name in files(out) if name not in known and not (name.startswith("data/0"))] == []


@pytest.mark.parametrize("moment", range(3))
def test_killed_at_a_random_moment_and_gone_on_with_by_one_and_by_two(tiny, corpus, undisturbed, tmp_path, moment):
    out = tmp_path / "killed"
    processes = start(tiny, corpus, out, 2)
    chance = random.Random(moment)
    wait_for(out, chance.randint(0, 5))
    time.sleep(chance.random() * 0.1)
    kill(*processes)
    left = [name for name in files(out) if name.startswith("data/0")]
    assert len(left) < 12
    for count in (1, 2):
        again = tmp_path / str(count)
        shutil.copytree(out, again) if out.exists() else None
        run(tiny, corpus, again, count)
        assert_whole(again, undisturbed, left)


def test_killed_while_a_thread_writes_the_last_row(tiny, corpus, undisturbed, tmp_path):
    """Where rows may wait, if only for a moment, a thread writes one while the model runs for the next."""
    out = tmp_path / "killed"
    processes = start(tiny, corpus, out, 2, seconds=1e-9)
    wait_for(out, 3)
    kill(*processes)
    left = [name for name in files(out) if name.startswith("data/0")]
    for process in start(tiny, corpus, out, 2, seconds=1e-9):
        process.join(TIMEOUT_S)
        assert process.exitcode == 0
    assert_whole(out, undisturbed, left)


def test_killed_in_the_middle_of_writing(tiny, corpus, undisturbed, tmp_path):
    """A kill between a file's first byte and its name leaves a hidden file, which goes."""
    out = tmp_path / "killed"
    processes = start(tiny, corpus, out, 2)
    wait_for(out, 2)
    kill(*processes)
    (out / "data" / ".00001-0123456789ab-1.parquet.tmp").write_bytes(b"PAR1 and then nothing")
    left = [name for name in files(out) if name.startswith("data/0")]
    run(tiny, corpus, out, 2)
    assert_whole(out, undisturbed, left)


def test_one_process_is_lost_and_the_other_finishes(tiny, corpus, undisturbed, tmp_path):
    out = tmp_path / "killed"
    lost, other = start(tiny, corpus, out, 2)
    wait_for(out, 1)
    kill(lost)
    other.join(TIMEOUT_S)
    assert other.exitcode == 0 and not (out / "summary.json").exists()
    left = [name for name in files(out) if name.startswith("data/0")]
    assert 6 <= count_rows(out) < 12
    run(tiny, corpus, out, 1)
    assert_whole(out, undisturbed, left)
