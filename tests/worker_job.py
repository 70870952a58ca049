"""Run by test_workers.py: transforms in worker processes, with the threads that torch has by default.

    python worker_job.py fork|spawn before|fresh

A script of its own, so that a time limit ends it where it hangs, and spawned workers find their main module.
"""

import multiprocessing
import sys

import datasets
import multiprocess
import torch
from settings import pyramid

from spes_hf import Deletion, Explain, Explanation, Insertion, Size, explain
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.rows import RowTransform
from spes_hf.runtime.workers import count_cores

FEW = {"num_spectrogram_masks": 6, "num_token_masks": 4}
ENDS = (0.0, 0.5, 1.0)


class Threads(RowTransform):
    """Says how many threads torch has."""

    key = "threads"

    def columns(self):
        return {"threads": datasets.Value("int64")}

    def __call__(self, row):
        return {**row, "threads": torch.get_num_threads()}


class ExplainAndThreads(Explain):
    """Both at once: every spawned worker takes seconds to start."""

    def __call__(self, row, rank=None):
        return {**super().__call__(row, rank), "threads": torch.get_num_threads()}


inherited = {}


def text_of(path):
    """Explain without any transform, with the model that the parent had at the fork."""
    return explain(*inherited["tiny"], path, config=pyramid(**FEW), progress=False).text


def rows_of(data, transforms, num_proc=None, **options):
    """Map, one after the other; nothing comes from the cache."""
    for transform in transforms:
        data = data.map(transform, num_proc=num_proc, load_from_cache_file=False, **options)
    return data.to_list()


def main(method, before):
    datasets.disable_caching()
    multiprocess.set_start_method(method)
    default = torch.get_num_threads()
    torch.set_num_threads(max(2, default))  # one core, or one thread, would hang nothing
    inherited["tiny"] = tiny = load_tiny_model("speech2text-en")
    clips = tiny_clips()[:2]
    data = datasets.Dataset.from_dict({"id": [c["id"] for c in clips], "audio": [c["path"] for c in clips]})
    explain_row, both = (kind(*tiny, pyramid(**FEW)) for kind in (Explain, ExplainAndThreads))
    metrics = [curve(*tiny, ENDS, against="prediction") for curve in (Deletion, Insertion)]
    if before:
        torch.ones(2_000_000).sin().sum()  # has every thread of the pool at work
        Size()(explain_row(data[0]))
    found = rows_of(data, [both], 2, with_rank=True)
    of_two = {row.pop("threads") for row in found}
    threads = [{row["threads"] for row in rows_of(data, [Threads()], 1)}, of_two]
    share = [1, 1] if method == "fork" else [max(1, min(default, count_cores() // n)) for n in (1, 2)]
    print("threads", threads == [{n} for n in share])
    if method == "fork":
        scored = rows_of(datasets.Dataset.from_list(found), [*metrics, Size()], 2)
        ranked = rows_of(datasets.Dataset.from_list(found), [*metrics, Size()], 2, with_rank=True)
        moved = rows_of(data, [lambda row, rank: explain_row.to(f"cpu:{rank}")(row)], 2, with_rank=True)
        with multiprocessing.get_context("fork").Pool(1) as pool:
            print("explained", pool.map(text_of, [data[0]["audio"]]) == [found[0]["prediction"]])
    torch.set_num_threads(1)  # as in the workers: numbers of threads round differently
    expected = rows_of(data, [explain_row])
    print("rows", found == expected, all(Explanation.from_row(row).text == row["prediction"] for row in found))
    if method == "fork":
        print("moved", moved == expected)
        expected = rows_of(datasets.Dataset.from_list(found), [*metrics, Size()])
        print("scored", scored == expected, ranked == expected)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "before")
