"""Worker processes, which inherit the pool of torch's threads without the threads."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spes_hf import Size
from spes_hf.rows import device_of
from spes_hf.runtime import workers

JOB = Path(__file__).parents[1] / "worker_job.py"
SECONDS = 300  # a job that does not hang takes about 20


@pytest.mark.parametrize(
    ("method", "before"),
    [
        pytest.param("fork", "before", marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")),
        pytest.param("fork", "fresh", marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")),
        ("spawn", "before"),
    ],
)
def test_two_workers_neither_hang_nor_differ(method, before):
    """Whether the model has run in the parent or not; with ranks; each with its share of the cores."""
    variables = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    job = subprocess.Popen(
        [sys.executable, str(JOB), method, before],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**variables, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
    try:
        out, errors = job.communicate(timeout=SECONDS)
    finally:  # workers that hang do not end with their parent
        with contextlib.suppress(ProcessLookupError, AttributeError):
            os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode == 0, errors[-3000:]
    expected = {"threads True", "rows True True"}
    if method == "fork":
        expected |= {"explained True", "moved True", "scored True True"}
    assert set(out.splitlines()) == expected


def test_the_main_process_keeps_its_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        workers._done.by = None
        Size()({"error": "none of this"})
        assert torch.get_num_threads() == threads + 1 and not workers.was_forked()
    finally:
        torch.set_num_threads(threads)


def test_a_rank_stands_for_an_accelerator_in_turn():
    if not torch.accelerator.is_available():
        assert device_of(0) is None and device_of(3) is None
        return
    count = torch.accelerator.device_count()
    assert [device_of(rank).index for rank in range(2 * count)] == [*range(count), *range(count)]


def test_cores_of_one_process(monkeypatch):
    monkeypatch.setattr(workers, "count_cores", lambda: 12)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    threads, cpu, accelerator = torch.get_num_threads(), torch.device("cpu"), torch.device("cuda")
    assert workers.own_cores() == 12
    assert (workers.spare_cores(cpu), workers.spare_cores(accelerator)) == (12 - threads, 11)
    for launched, own in (("4", 3), ("99", 1), ("0", 12), ("several", 12)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", launched)
        assert workers.own_cores() == own
        assert workers.spare_cores(cpu) == max(0, own - threads)
    # The cores of a worker are those of its siblings, too.
    monkeypatch.setattr(workers, "was_forked", lambda: True)
    assert workers.own_cores() == 1 and workers.spare_cores(accelerator) == 0
