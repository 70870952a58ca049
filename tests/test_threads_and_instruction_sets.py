"""Maps drawn with other vector instructions and other numbers of threads, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from agreement import assert_explanations_agree

from spes_hf import Explanation

ROOT = Path(__file__).parent.parent
# Both estimators, on the shipped models, with batches that do not divide the number of masks.
CODE = """
import sys, torch
from settings import pyramid
from spes_hf import SpesConfig, explain
from spes_hf.demo import load_tiny_model, tiny_clips

torch.set_num_threads(int(sys.argv[2]))
configs = {
    "eq3": pyramid(num_spectrogram_masks=12, num_token_masks=8),
    "gradient": SpesConfig(num_spectrogram_masks=6, masks_per_token=2, num_token_masks=8),
}
for name, config in configs.items():
    for model, options in {"speech2text-en": {}, "seamless-en-de-es": {"tgt_lang": "deu"}}.items():
        clip = tiny_clips()[3]["path"]
        found = explain(*load_tiny_model(model), clip, config=config, batch_size=3, progress=False, **options)
        found.save(f"{sys.argv[1]}/{name}-{model}")
print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
"""


def drawn(folder: Path, threads: int, **environment: str) -> tuple[str, dict[str, Explanation]]:
    """Return what the process says of itself, and its explanations by name."""
    inherited = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
    inherited |= {
        "OMP_WAIT_POLICY": "PASSIVE"
    }  # threads that wait leave the core to others: tests may run next to this
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    folder.mkdir()
    result = subprocess.run(
        [sys.executable, "-c", CODE, str(folder), str(threads)],
        env={**inherited, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1], {path.name: Explanation.load(path) for path in sorted(folder.iterdir())}


# Libraries below torch pick their instructions for themselves; these names are known to them on x86.
OLD = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """What one thread with the machine's own instructions draws."""
    return drawn(tmp_path_factory.mktemp("own") / "found", 1)[1]


def test_maps_agree_between_instruction_sets(own, tmp_path):
    said, found = drawn(tmp_path / "found", 1, **OLD)
    assert said == "DEFAULT 1" and len(own) == 4
    for name, explanation in own.items():
        assert_explanations_agree(found[name], explanation)


@pytest.mark.numerics
@pytest.mark.skipif(
    "PYTEST_XDIST_WORKER" in os.environ, reason="needs two cores for itself: pytest -n 0 (.ci/run does)"
)
def test_maps_agree_between_numbers_of_threads(own, tmp_path):
    said, found = drawn(tmp_path / "found", 2)
    assert said.split()[1] == "2" and len(own) == 4
    for name, explanation in own.items():
        assert_explanations_agree(found[name], explanation)
