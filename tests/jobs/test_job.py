import json
import multiprocessing
import os
import resource
import tracemalloc
import warnings
from dataclasses import replace

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from mustc_shape import write_corpus
from settings import pyramid

from spes_hf import (
    ConfigError,
    Deletion,
    EnergyConfig,
    Explain,
    Explanation,
    Size,
    explain_dataset,
    load_mustc,
)
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.jobs import run as distributed
from spes_hf.jobs import shards
from spes_hf.jobs.job import JobSummary
from spes_hf.jobs.run import load_explained, map_rows
from spes_hf.jobs.schedule import Place, advise_threads, estimate_costs, find_place, split_by_cost
from spes_hf.jobs.shards import INDEX, ShardError, read_finished
from spes_hf.metrics import summarize
from spes_hf.rows import RowTransform

FEW = pyramid(num_spectrogram_masks=6, num_token_masks=4)
QUIET = {"progress": False}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Tables of `datasets` go to a folder of their own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def tiny():
    return load_tiny_model("speech2text-en")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, tiny_clips()[:6])
    return load_mustc(folder, cache_dir=folder / "cache")


@pytest.fixture(scope="module")
def undisturbed(tiny, corpus, tmp_path_factory):
    """Folder of a job that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    summary = explain_dataset(*tiny, corpus, out, FEW, **QUIET)
    assert summary.complete and summary.exit_code == 0
    return out


def content(out):
    """All rows of a job by index; an index that is there twice fails."""
    found = {}
    for path in shards.shard_files(out):
        for row in pq.read_table(path).to_pylist():
            assert row[INDEX] not in found, f"row {row[INDEX]} is there twice"
            found[row[INDEX]] = repr(row)  # NaN equals NaN
    return found


def litter(out):
    """What is in the folder of a job that is not of it."""
    known = {"manifest.json", "summary.json", "data"}
    return [p.name for p in out.iterdir() if p.name not in known] + [
        p.name for p in (out / "data").iterdir() if p.suffix != ".parquet" or p.name.startswith(".")
    ]


class Trivial(RowTransform):
    """Says how long a text is; keeps count of what it was asked."""

    key = "length"

    def __init__(self, text="text", fail=(), stop=None):
        self.text, self.fail, self.stop, self.asked = text, fail, stop, []

    def columns(self):
        return {"length": datasets.Value("int64"), "error": datasets.Value("string")}

    def identity(self):
        return {"transform": "trivial"}

    def __call__(self, row):
        index = int(row["id"])
        if index == self.stop:
            raise KeyboardInterrupt
        self.asked.append(index)
        if index in self.fail:
            raise ValueError("no\nlength")
        return {**row, "length": len(row[self.text]), "error": ""}


def texts(count):
    return datasets.Dataset.from_dict(
        {"id": [str(i) for i in range(count)], "text": ["x" * (i % 7) for i in range(count)]}
    )


# Who does what --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 40])
def test_split_is_complete_disjoint_balanced_and_always_the_same(parts):
    costs = np.random.default_rng(0).exponential(5, 200).tolist()
    todo = [i for i in range(200) if i % 5]
    shares = split_by_cost(costs, todo, parts)
    assert len(shares) == parts and sorted(i for share in shares for i in share) == todo
    assert all(share == sorted(share) for share in shares)
    loads = [sum(costs[i] for i in share) for share in shares]
    assert max(loads) - min(loads) <= max(costs[i] for i in todo) + 1e-9
    assert shares == split_by_cost(costs, todo, parts)


def test_split_is_by_cost_not_by_count():
    assert split_by_cost([10, 1, 1, 1, 1, 1, 1, 1, 1, 2], range(10), 2) == [[0], [1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert split_by_cost([1, 1], [], 3) == [[], [], []]


def test_costs(corpus, tmp_path):
    lengths = corpus["duration"][:]
    paths = [clip["path"] for clip in tiny_clips()[:2]] + [str(tmp_path / "none.wav")]
    seconds = [soundfile.info(path).duration for path in paths[:2]] + [0.0]
    own = [1.4 * s for s in lengths]
    assert estimate_costs(corpus, "audio") == pytest.approx(own)
    assert estimate_costs(corpus.remove_columns("duration"), "audio") == pytest.approx(own)
    assert estimate_costs(corpus, "audio", window_s=30) == pytest.approx([30 + 0.4 * s for s in lengths])
    for audio in (paths, [{"path": p, "bytes": None} for p in paths]):
        data = datasets.Dataset.from_dict({"audio": audio})
        assert estimate_costs(data, "audio") == pytest.approx([1.4 * s for s in seconds])
    data = datasets.Dataset.from_dict({"audio": paths[:2]}).cast_column("audio", datasets.Audio())
    assert estimate_costs(data, "audio") == pytest.approx([1.4 * s for s in seconds[:2]])
    inside = datasets.Dataset.from_dict(
        {"audio": [{"path": None, "bytes": b"x" * 64_000}, {"path": None, "bytes": None}]}
    )
    assert estimate_costs(inside, "audio") == pytest.approx([2.8, 0])
    samples = datasets.Dataset.from_dict({"audio": [[0.0] * 16_000, [0.0] * 8_000]})
    assert estimate_costs(samples, "audio") == pytest.approx([1.4, 0.7])


def test_place(monkeypatch):
    assert find_place(2, 5).index == 2 and not find_place(2, 5).together
    for index, count in ((1, None), (None, 2), (2, 2), (-1, 2)):
        with pytest.raises(ConfigError, match="process_index is .* allowed: both None"):
            find_place(index, count)
    assert find_place() == find_place(None, None) and find_place().count == 1
    monkeypatch.setenv("WORLD_SIZE", "2")  # a launcher that Accelerate was not told of
    with pytest.raises(ConfigError, match="WORLD_SIZE is 2, but Accelerate knows of only one process"):
        find_place()


@pytest.mark.parametrize(
    ("processes", "threads", "cores", "together", "fitting"),
    [
        (1, 8, 16, False, None),  # one thread for each physical core
        (1, 1, 16, False, None),  # alone, and restricted on purpose
        (1, 16, 2, False, 2),  # set by hand, or left from a larger machine
        (4, 4, 16, True, None),
        (4, 16, 16, True, 4),  # they get in each other's way
        (2, 1, 16, True, 8),  # torchrun's own number leaves cores idle
        (32, 1, 16, True, None),
    ],
)
def test_threads_that_do_not_suit_the_cores(monkeypatch, processes, threads, cores, together, fitting):
    if processes == 1:
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    advice = advise_threads(together)
    assert advice is None if fitting is None else advice.endswith(f"OMP_NUM_THREADS={fitting}")


def test_a_job_tells_of_threads_that_do_not_suit(tiny, corpus, undisturbed, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "5000")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    with pytest.warns(UserWarning, match="5000 processes on this machine with 4 threads each, .* OMP_NUM_THREADS=1$"):
        explain_dataset(*tiny, corpus, undisturbed, FEW, process_index=0, num_processes=1, **QUIET)


@pytest.mark.parametrize(
    ("index", "together", "device", "told"),
    [
        (0, True, "cpu", True),
        (1, True, "cpu", False),  # the first one speaks for all
        (1, False, "cpu", True),  # nobody else does
        (0, True, "cuda", False),
    ],
)
def test_who_tells_of_threads(tiny, corpus, undisturbed, monkeypatch, index, together, device, told):
    monkeypatch.setattr(distributed, "find_place", lambda *given: Place(index, 2, together))
    monkeypatch.setattr(distributed, "advise_threads", lambda launched: f"launched together: {launched}")
    monkeypatch.setattr(distributed, "map_rows", lambda *args, **kwargs: JobSummary(undisturbed, 1, 0))
    monkeypatch.setattr("spes_hf.adapters.base.execution_device", lambda module: torch.device(device))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        explain_dataset(*tiny, corpus, undisturbed, FEW, **QUIET)
    found = [str(w.message) for w in caught if "launched together" in str(w.message)]
    assert found == ([f"launched together: {together}"] if told else [])


# A job ----------------------------------------------------------------------------------------------------------------


def test_rows_are_those_of_map(tiny, corpus, undisturbed):
    rows, mapped = load_explained(undisturbed), corpus.map(Explain(*tiny, FEW))
    assert list(rows[INDEX]) == list(range(6))
    for column in set(mapped.column_names) - {"audio"}:
        assert list(rows[column]) == list(mapped[column]), column
    assert "audio" not in rows.column_names and rows.features["explanation"].dtype == "large_binary"
    assert torch.equal(Explanation.from_row(rows[2]).raw_audio, Explanation.from_row(mapped[2]).raw_audio)
    assert not litter(undisturbed)
    assert json.loads((undisturbed / "summary.json").read_text()) == {
        "rows": 6,
        "finished": 6,
        "failed": 0,
        "failures": [],
        "reached_length_limit": [],
    }


def test_metrics_and_scores(tiny, corpus, tmp_path):
    metrics = [Deletion(*tiny, (0, 0.5, 1)), Size()]
    explain_dataset(*tiny, corpus, tmp_path / "out", FEW, metrics=metrics, **QUIET)
    rows = load_explained(tmp_path / "out")
    mapped = corpus.map(Explain(*tiny, FEW)).map(metrics[0]).map(metrics[1])
    assert list(rows["deletion"]) == list(mapped["deletion"]) and list(rows["size"]) == list(mapped["size"])
    scores, again = (summarize(r, references="transcript", samples=20) for r in (rows, mapped))
    assert {n: s.value for n, s in scores.items()} == {n: s.value for n, s in again.items()}


@pytest.mark.parametrize("count", [2, 4])
def test_processes_that_do_not_know_each_other(tiny, corpus, undisturbed, tmp_path, count):
    out = tmp_path / "out"
    done = []
    for index in reversed(range(count)):
        place = {"process_index": index, "num_processes": count}
        summary = explain_dataset(*tiny, corpus, out, FEW, **place, **QUIET)
        done.append(summary.finished)
        assert summary.exit_code == 0 and summary.complete == summary.reports == (index == 0)
        assert ("6 of 6 rows explained" if summary.complete else f"{summary.finished} of 6 rows are") in str(summary)
    assert done == sorted(set(done)) and done[-1] == 6
    assert content(out) == content(undisturbed) and not litter(out)


def test_progress_is_that_of_the_whole_job(tmp_path, capsys):
    data, out = texts(30), tmp_path / "out"
    map_rows(data, [Trivial()], out, process_index=1, num_processes=2, progress=True)
    assert "row" not in capsys.readouterr().err  # process 0 shows it
    map_rows(data, [Trivial()], out, process_index=0, num_processes=2, progress=True)
    told = capsys.readouterr().err
    assert "15/30" in told and "30/30" in told and "row/s" in told


def test_work_is_dealt_out_by_length(tiny, corpus, tmp_path):
    for index in range(2):
        place = {"process_index": index, "num_processes": 2}
        explain_dataset(*tiny, corpus, tmp_path / "out", EnergyConfig(), **place, **QUIET)
    seconds = {0: 0.0, 1: 0.0}
    for path in shards.shard_files(tmp_path / "out"):
        seconds[int(path.name.split("-")[0])] += sum(pq.read_table(path)["duration"].to_pylist())
    assert abs(seconds[0] - seconds[1]) <= max(corpus["duration"])


# Going on -------------------------------------------------------------------------------------------------------------


def test_an_interrupted_job_goes_on_and_computes_nothing_again(tmp_path):
    data, out, seen = texts(100), tmp_path / "out", []
    for stop, place in ((20, (None, None)), (67, (0, 1)), (80, (None, None)), (None, (None, None))):
        transform = Trivial(stop=stop)
        options = {"process_index": place[0], "num_processes": place[1], **QUIET}
        if stop is None:
            summary = map_rows(data, [transform], out, **options)
        else:
            with pytest.raises(KeyboardInterrupt):
                map_rows(data, [transform], out, **options)
        seen += transform.asked
    assert seen == list(range(100)) and summary.complete
    assert load_explained(out)["length"][:] == [i % 7 for i in range(100)] and not litter(out)


def test_another_number_of_processes_goes_on(tmp_path):
    data, out, seen = texts(60), tmp_path / "out", []
    for stop, index, count in ((30, 0, 2), (None, 2, 3), (40, 1, 3), (None, 0, 1)):
        transform = Trivial(stop=stop)
        try:
            map_rows(data, [transform], out, process_index=index, num_processes=count, **QUIET)
        except KeyboardInterrupt:
            assert stop is not None
        seen += transform.asked
    assert sorted(seen) == list(range(60)) and len(content(out)) == 60


def test_a_finished_job_is_only_reported(tiny, corpus, undisturbed):
    before = {p.name: p.stat().st_mtime_ns for p in (undisturbed / "data").iterdir()}
    model = load_tiny_model("speech2text-en")
    model[0].generate = None  # nothing may be generated
    assert explain_dataset(*model, corpus, undisturbed, FEW, **QUIET).complete
    assert {p.name: p.stat().st_mtime_ns for p in (undisturbed / "data").iterdir()} == before


def test_another_job_is_refused_and_the_difference_told(tiny, corpus, undisturbed):
    before = content(undisturbed)
    other = replace(FEW, num_spectrogram_masks=9)
    with pytest.raises(ConfigError, match=r"config.num_spectrogram_masks was 6, is 9\. Pass the same model"):
        explain_dataset(*tiny, corpus, undisturbed, other, **QUIET)
    with pytest.raises(ConfigError, match="seed was 0, is 1"):
        explain_dataset(*tiny, corpus, undisturbed, FEW, seed=1, **QUIET)
    with pytest.raises(ConfigError, match="rows was 6, is 5"):
        explain_dataset(*tiny, corpus.select(range(5)), undisturbed, FEW, **QUIET)
    with pytest.raises(ConfigError, match="dataset was "):
        explain_dataset(*tiny, corpus.select([1, 0, 2, 3, 4, 5]), undisturbed, FEW, **QUIET)
    with pytest.raises(ConfigError, match="transforms was "):
        explain_dataset(*tiny, corpus, undisturbed, FEW, metrics=[Size()], **QUIET)
    changed, processor = load_tiny_model("speech2text-en")
    with torch.no_grad():
        next(changed.parameters()).view(-1)[0] += 1
    with pytest.raises(ConfigError, match="weights was "):
        explain_dataset(changed, processor, corpus, undisturbed, FEW, **QUIET)
    assert content(undisturbed) == before


def test_the_same_data_elsewhere_is_the_same_job(tiny, undisturbed, tmp_path):
    write_corpus(tmp_path / "moved", tiny_clips()[:6], version=1)
    moved = load_mustc(tmp_path / "moved")
    assert explain_dataset(*tiny, moved, undisturbed, FEW, batch_size=3, **QUIET).complete


# What goes wrong ------------------------------------------------------------------------------------------------------


def test_corrupt_empty_and_endless_utterances_are_reported_and_stop_nothing(tiny, tmp_path):
    (tmp_path / "corrupt.wav").write_bytes(b"RIFF what is this?")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    clips = sorted(tiny_clips(), key=lambda clip: len(clip["words"]))
    audio = [str(tmp_path / "corrupt.wav"), clips[0]["path"], str(tmp_path / "empty.wav"), clips[-1]["path"]]
    data = datasets.Dataset.from_dict({"id": ["corrupt", "well", "empty", "endless"], "audio": audio})
    longest = 1 + len(tiny[1].tokenizer(clips[0]["transcript"]).input_ids)
    out, generate_kwargs = tmp_path / "out", {"max_new_tokens": longest}
    summary = explain_dataset(*tiny, data, out, FEW, metrics=[Size()], generate_kwargs=generate_kwargs, **QUIET)
    assert summary.complete and summary.exit_code == 1
    assert [(i, name) for i, name, _ in summary.failures] == [(0, "corrupt"), (2, "empty")]
    assert summary.reached_length_limit == ((3, "endless"),)
    rows = load_explained(out)
    assert "cannot be decoded" in rows[0]["error"] and "empty" in rows[2]["error"]
    assert rows[0]["size"] is None and rows[0]["explanation"] == b""
    assert rows[1]["error"] == rows[3]["error"] == "" and rows[3]["reached_length_limit"] and rows[3]["size"]
    told = str(summary)
    assert "2 of 4 rows explained" in told and "2 failed:" in told and "empty: AudioError" in told
    assert "1 reached the length limit: endless" in told
    assert json.loads((out / "summary.json").read_text())["failures"][0]["id"] == "corrupt"
    # Going on does not try them again, and says the same.
    assert (
        explain_dataset(*tiny, data, out, FEW, metrics=[Size()], generate_kwargs=generate_kwargs, **QUIET).exit_code
        == 1
    )


def test_shards_of_nothing_but_failures_fit_to_the_others(tmp_path):
    out = tmp_path / "out"
    summary = map_rows(texts(10), [Trivial(fail=range(5))], out, flush_seconds=0, **QUIET)
    assert len(summary.failures) == 5 and summary.failures[0] == (0, "0", "length: ValueError: no length")
    assert load_explained(out)["length"][:] == [None] * 5 + [5, 6, 0, 1, 2]


def test_a_metric_that_fails_leaves_the_explanation(tiny, corpus, undisturbed, tmp_path):
    class Broken(Size):
        def __call__(self, row):
            raise ZeroDivisionError("no size")

    summary = explain_dataset(*tiny, corpus, tmp_path / "out", FEW, metrics=[Broken(), Deletion(*tiny)], **QUIET)
    row = load_explained(tmp_path / "out")[3]
    assert len(summary.failures) == 6 and row["error"] == "size: ZeroDivisionError: no size"
    assert row["explanation"] == load_explained(undisturbed)[3]["explanation"]
    assert row["size"] is None and row["deletion"] is None


def in_a_process(function, *arguments):
    """Run in a forked process with one thread, and return its exit code."""

    def run():
        torch.set_num_threads(1)
        function(*arguments)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def test_a_full_disk_loses_nothing_that_was_written(tmp_path):
    """A limit of the size of a file stands for the disk: the system itself refuses to write."""
    words = ["".join(np.random.default_rng(i).choice(list("abcdefgh"), 20_000)) for i in range(8)]
    data = datasets.Dataset.from_dict({"id": [str(i) for i in range(8)], "text": words})
    out = tmp_path / "out"

    class Limited(Trivial):
        def __call__(self, row):
            if row["id"] == "5":
                resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, resource.RLIM_INFINITY))
            return super().__call__(row)

    def job():
        with pytest.raises(ShardError, match=r"no space left for 1 finished rows .*it resumes from there"):
            map_rows(data, [Limited()], out, flush_seconds=0, **QUIET)

    assert in_a_process(job) == 0
    assert sorted(content(out)) == [0, 1, 2, 3, 4] and not litter(out)
    transform = Trivial()
    assert map_rows(data, [transform], out, **QUIET).complete and transform.asked == [5, 6, 7]


def test_litter_of_dead_processes_is_removed_and_that_of_the_living_is_not(tmp_path):
    data, out = texts(12), tmp_path / "out"
    map_rows(data, [Trivial()], out, process_index=0, num_processes=3, **QUIET)
    for rank in (0, 1, 2, 7):
        (out / "data" / f".{rank:05d}-dead-4.parquet.tmp").write_bytes(b"half")
    map_rows(data, [Trivial()], out, process_index=1, num_processes=3, **QUIET)
    assert sorted(litter(out)) == [".00000-dead-4.parquet.tmp", ".00002-dead-4.parquet.tmp"]
    map_rows(data, [Trivial()], out, **QUIET)
    assert not litter(out)


def test_rows_that_two_jobs_wrote_count_once_and_stay_once(tmp_path):
    """As when a process outlives its launcher, and the job was started again meanwhile."""
    data, out = texts(9), tmp_path / "out"
    map_rows(data, [Trivial()], out, process_index=0, num_processes=2, **QUIET)
    (first,) = shards.shard_files(out)
    five = pq.read_table(first)
    pq.write_table(five, first.with_name("00001-again-5.parquet"))
    assert len(read_finished(out).indices) == 5 and list(load_explained(out)[INDEX]) == [0, 2, 4, 6, 8]
    transform = Trivial()
    map_rows(data, [transform], out, process_index=1, num_processes=2, **QUIET)
    assert transform.asked == [1, 3, 5, 7] and len(content(out)) == 9 and not litter(out)


def test_a_shard_of_old_and_new_rows_keeps_the_new_ones(tmp_path):
    data, out = texts(9), tmp_path / "out"
    map_rows(data, [Trivial()], out, process_index=0, num_processes=2, **QUIET)
    map_rows(data, [Trivial()], tmp_path / "whole", **QUIET)
    (whole,) = shards.shard_files(tmp_path / "whole")
    (out / "data" / "00007-whole-9.parquet").write_bytes(whole.read_bytes())
    transform = Trivial()
    assert map_rows(data, [transform], out, **QUIET).finished == 9 and transform.asked == []
    assert content(out) == content(tmp_path / "whole") and not litter(out)
    assert shards.count_rows(out) == 9


def test_a_damaged_shard_is_named(tmp_path):
    data, out = texts(9), tmp_path / "out"
    map_rows(data, [Trivial()], out, flush_seconds=0, **QUIET)
    path = shards.shard_files(out)[3]
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ShardError, match=f"{path.name}.*Delete it and start the job again to recompute its rows"):
        map_rows(data, [Trivial()], out, **QUIET)
    path.unlink()
    transform = Trivial()
    assert map_rows(data, [transform], out, **QUIET).complete and len(transform.asked) == 1


def test_wrong_arguments(tiny, corpus, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="dataset is a IterableDataset; pass a datasets.Dataset"):
        explain_dataset(*tiny, corpus.to_iterable_dataset(), out, **QUIET)
    with pytest.raises(ConfigError, match="dataset has no rows"):
        explain_dataset(*tiny, corpus.select([]), out, **QUIET)
    with pytest.raises(ConfigError, match="dataset has no column 'sound'; it has id, "):
        explain_dataset(*tiny, corpus, out, audio_column="sound", **QUIET)
    with pytest.raises(ConfigError, match="columns tokens, which the job would overwrite.*rename_column.'tokens'"):
        explain_dataset(*tiny, corpus.rename_column("speaker", "tokens"), out, **QUIET)
    assert not out.exists()
    out.write_text("a file")
    with pytest.raises(ConfigError, match="which is not a folder"):
        explain_dataset(*tiny, corpus, out, FEW, **QUIET)
    (tmp_path / "other" / "data").mkdir(parents=True)
    (tmp_path / "other" / "data" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="has a folder 'data' that no job wrote"):
        explain_dataset(*tiny, corpus, tmp_path / "other", FEW, **QUIET)
    with pytest.raises(ConfigError, match="which has no finished rows"):
        load_explained(tmp_path)


# Bookkeeping ----------------------------------------------------------------------------------------------------------


def peak_of(count, out):
    data, transform = texts(count), Trivial()
    transform.asked = type("Nothing", (), {"append": lambda self, x: None})()
    tracemalloc.start()
    summary = map_rows(data, [transform], out, **QUIET)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert summary.complete and summary.finished == count
    return peak


def test_ten_thousand_rows_take_no_more_memory_and_few_files(tmp_path):
    """What grows is the set of finished indices: well under 1 kB a row."""
    peak_of(10, tmp_path / "warm")
    few, many = peak_of(2_500, tmp_path / "few"), peak_of(10_000, tmp_path / "many")
    assert many - few < 7_500 * 500
    assert len(shards.shard_files(tmp_path / "many")) < 30
    assert len(read_finished(tmp_path / "many").indices) == 10_000


def test_shards_are_written_by_rows_bytes_and_time(tmp_path, monkeypatch):
    def sizes(**options):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        map_rows(texts(50), [Trivial()], out, **options, **QUIET)
        return sorted((int(p.stem.rsplit("-", 1)[1]) for p in shards.shard_files(out)), reverse=True)

    assert sizes() == [50]
    assert sizes(flush_seconds=0) != [50]
    monkeypatch.setattr(shards, "MAX_ROWS", 20)
    assert sizes() == [20, 20, 10]
    monkeypatch.setattr(shards, "MAX_BYTES", 0)
    assert sizes() == [1] * 50


def test_waiting_grows_with_the_job_so_that_files_stay_few(tmp_path, monkeypatch):
    """At one row a minute, for a day: not one file a minute."""
    clock = iter(range(0, 10**9, 60))
    monkeypatch.setattr(shards.time, "monotonic", lambda: next(clock))
    (tmp_path / "data").mkdir()
    schema = datasets.Features({INDEX: datasets.Value("int64"), "n": datasets.Value("int64")}).arrow_schema
    data = datasets.Dataset.from_dict({"x": [0] * 1440}).with_format("arrow")
    writer = shards.ShardWriter(tmp_path, lambda indices: data[indices], schema, 0)
    lost = []
    for i in range(1440):
        writer.add(i, {"n": i})
        lost.append(writer.waiting)
    assert len(shards.shard_files(tmp_path)) < 150
    assert max(lost) <= 0.05 * 1440 + 1 and max(lost[:20]) <= 1
    assert os.listdir(tmp_path) == ["data"]
