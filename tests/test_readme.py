"""What README.md says is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BASH = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_continuous_integration_runs_the_second_command_word_for_word():
    second = BASH[1].strip()
    assert second.endswith("pytest")
    assert second in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_python_in_the_readme_runs(whisper, tmp_path, monkeypatch, capsys):
    """The ten lines as they stand, but for fewer masks."""
    code, measures = PYTHON
    few = code.replace(
        "SpesConfig.fast()",
        "SpesConfig.fast(num_spectrogram_masks=1, masks_per_token=1, num_token_masks=6), progress=False",
    )
    assert few != code
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(few, "README.md", "exec"), names)
    shown = capsys.readouterr().out
    assert "ask not what your country can do for you" in shown
    assert len(re.findall(r"heard around \d+\.\d s, -?\d+\.\d bits from the sound", shown)) == 24
    assert (tmp_path / "why.html").stat().st_size > 100_000
    assert len(list((tmp_path / "why").glob("explanation*"))) == 2
    coarse = measures.replace('"fine"', "[0, 0.05, 1]")
    assert coarse != measures
    exec(compile(coarse, "README.md", "exec"), names)
    assert "deletion_probability" in capsys.readouterr().out


def test_no_placeholder_is_left():
    assert not re.findall(r"\b[A-Z]{4,}_[A-Z]+\b", README)


@pytest.mark.parametrize("command", [line for block in BASH[2:] for line in block.splitlines() if line.strip()])
def test_command_lines_in_the_readme_are_understood(command):
    import shlex

    from spes_hf.cli import build_parser

    name, *arguments = shlex.split(command)
    assert name == "spes-hf"
    build_parser().parse_args(arguments)
