"""Run by test_workers.py: transforms in worker processes, with the threads that torch has by default.

    python worker_job.py fork|spawn before|fresh

A script of its own, so that a time limit ends it where it hangs, and spawned workers find their main module.
"""

import os
import sys

import datasets
import torch
from settings import pyramid

from spes_hf import Deletion, Explain, Explanation, Insertion, Size, explain
from spes_hf.data.rowwise import RowTransform
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.workers import count_cores

FEW = {"num_spectrogram_masks": 6, "num_token_masks": 4}
ENDS = (0.0, 0.5, 1.0)


class Threads(RowTransform):
    """Says how many threads torch has, and which process it is."""

    key = "threads"

    def columns(self):
        return {"threads": datasets.Value("int64"), "process": datasets.Value("int64")}

    def __call__(self, row):
        return {**row, "threads": torch.get_num_threads(), "process": os.getpid()}


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
    import multiprocess

    datasets.disable_caching()
    multiprocess.set_start_method(method)
    default = torch.get_num_threads()
    torch.set_num_threads(max(2, default))  # one core, or one thread, would hang nothing
    inherited["tiny"] = tiny = load_tiny_model("speech2text-en")
    clips = tiny_clips()[:2]
    data = datasets.Dataset.from_dict({"id": [c["id"] for c in clips], "audio": [c["path"] for c in clips]})
    explain_row = Explain(*tiny, pyramid(**FEW))
    transforms = [explain_row, Deletion(*tiny, ENDS, against="prediction")]
    transforms += [Insertion(*tiny, ENDS, against="prediction"), Size()]
    if before:
        torch.ones(2_000_000).sin().sum()  # has every thread of the pool at work
        Size()(explain_row(data[0]))
    found = rows_of(data, transforms, 2)
    ranked = rows_of(data, transforms[:2] + transforms[3:], 2, with_rank=True)
    one_worker = rows_of(data, [Threads()], 1)
    two_workers = rows_of(data, [Threads()], 2)
    if method == "fork":
        import multiprocessing

        with multiprocessing.get_context("fork").Pool(1) as pool:
            print("explained", pool.map(text_of, [data[0]["audio"]]) == [found[0]["prediction"]])
        moved = rows_of(data, [lambda row, rank: explain_row.to(f"cpu:{rank}")(row)], 2, with_rank=True)
    else:
        moved = ranked
    torch.set_num_threads(1)  # as in the workers: numbers of threads round differently
    expected = rows_of(data, transforms)
    assert all(Explanation.from_row(row).text == row["prediction"] for row in expected)
    print("rows", found == expected)
    expected = [{k: v for k, v in row.items() if k != "insertion"} for row in expected]
    print("ranked", ranked == expected)
    print("moved", [row["explanation"] for row in moved] == [row["explanation"] for row in expected])
    print("processes", os.getpid() in {r["process"] for r in two_workers}, len({r["process"] for r in two_workers}))
    share = [1, 1] if method == "fork" else [max(1, min(default, count_cores() // n)) for n in (1, 2)]
    print("threads", [{row["threads"] for row in rows} for rows in (one_worker, two_workers)] == [{n} for n in share])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "before")
