"""Models whose weights are split over processes are refused by each of them at once: nobody waits for the others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from spes_hf.runtime.sharding import split_over_processes

ROOT = Path(__file__).parents[2]

HOW = ("sharded", "wrapped", "partly", "parallel", "planned")

# Process 1 calls `explain` of nothing, so that process 0 would wait for it for ever if it waited at all.
SCRIPT = """
import os
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from datasets import Dataset
from spes_hf import UnsupportedModelError, explain, explain_dataset
from spes_hf.demo import load_tiny_model, tiny_clips

store, out, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))


def sharded(model):
    for layer in (*model.model.encoder.layers, *model.model.decoder.layers):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def wrapped(model):
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)


def partly(model):
    model.model.encoder = wrapped(model.model.encoder)
    return model


def parallel(model):
    return parallelize_module(model, mesh, {"model.encoder.layers.*.fc1": ColwiseParallel()})


def planned(model):
    # A speech LLM with the plan that transformers has for it, which counts the processes by these names.
    if rank == 0:
        model.save_pretrained(store + "-model")
    dist.barrier()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    found = type(model).from_pretrained(store + "-model", tp_plan="auto")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        del os.environ[name]
    return found


paths = [clip["path"] for clip in tiny_clips()]
data = Dataset.from_dict({"audio": paths, "id": [str(i) for i in range(len(paths))]})
for split in (sharded, wrapped, partly, parallel, planned):
    model, processor = load_tiny_model("qwen3-asr-en" if split is planned else "speech2text-en")
    model = split(model)
    calls = {
        "explain": lambda: explain(model, processor, paths[0], progress=False),
        "job": lambda: explain_dataset(model, processor, data, out, progress=False),
    }
    for name, call in calls.items():
        if rank == 0 or name == "job":
            try:
                call()
            except UnsupportedModelError as error:
                print(split.__name__, name, error)
"""


@pytest.mark.parametrize("module", [nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU())])
def test_a_whole_model_is_not_split(module):
    assert split_over_processes(module) is None
    assert split_over_processes(nn.DataParallel(module)) is None


def test_split_models_are_refused_before_anybody_waits(tmp_path):
    """Two processes that do not do the same: they could not even end, if one of them waited for the other."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    arguments = [sys.executable, "-c", SCRIPT, str(tmp_path / "store"), str(tmp_path / "out")]
    started = [
        subprocess.Popen([*arguments, str(rank)], env=environment, stdout=-1, stderr=-1, text=True) for rank in (0, 1)
    ]
    try:
        outputs = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    for rank, (process, (out, err)) in enumerate(zip(started, outputs, strict=True)):
        assert process.returncode == 0, err
        for line in out.splitlines():
            assert "split over processes" in line and 'device_map="auto"' in line
        refused = [tuple(line.split()[:2]) for line in out.splitlines()]
        calls = ["explain", "job"] if rank == 0 else ["job"]
        assert refused == [(how, call) for how in HOW for call in calls]
        assert "FSDPModule" in out and "FullyShardedDataParallel" in out and "is a DTensor" in out
    assert not (tmp_path / "out").exists()
