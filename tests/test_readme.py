"""What README.md and the pages behind it say is what happens."""

from __future__ import annotations

import re
import runpy
import shlex

import pytest
from pages import DOCS, README, ROOT, blocks, run

from spes_hf import cli

FEWER = {
    "config=SpesConfig.fast()": (
        "config=SpesConfig.fast(num_spectrogram_masks=1, masks_per_token=1, num_token_masks=6), progress=False"
    ),
    '"fine"': "[0, 0.05, 1]",
}


BASH = blocks(README, "bash")
COMMANDS = BASH[2:] + blocks(DOCS["start"], "bash")[2:] + blocks(DOCS["command_line"] + DOCS["evaluating"], "bash")


def assert_same_bits(printed: str, shown: str, count: int) -> None:
    """Fail unless as many lines as said have the words and, up to rounding, the bits that the page shows."""
    line = r"^ *(\S+) +(?:heard around|at) \d+\.\d s[:,] (-?\d+\.\d) bits from the sound$"
    found, expected = (re.findall(line, text, re.MULTILINE) for text in (printed, shown))
    assert [word for word, _ in found] == [word for word, _ in expected]
    assert len(found) == count
    assert [float(bits) for _, bits in found] == pytest.approx([float(bits) for _, bits in expected], abs=0.11)


def test_continuous_integration_runs_the_second_command_word_for_word():
    second = BASH[1].strip()
    assert second.endswith("pytest")
    assert second in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_start_page_has_the_two_commands_of_the_readme():
    assert blocks(DOCS["start"], "bash")[:2] == BASH[:2]


def test_readme_is_short():
    """At most 600 words of prose: without code and tables, links by their text."""
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    prose = "\n".join(line for line in prose.splitlines() if not line.startswith("|"))
    words = [word for word in re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", prose).split() if re.search(r"\w", word)]
    assert len(words) <= 600


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_docs_have_no_conflict_markers():
    assert [name for name, text in DOCS.items() if re.search(r"^(<{7}|={7}|>{7})( |$)", text, re.MULTILINE)] == []


def test_python_in_the_readme_and_in_the_docs_runs(whisper, tmp_path, monkeypatch, capsys):
    """The code as it stands, but for fewer masks; sentence and bits, which need no masks, are those that are shown."""
    (code,) = blocks(README, "python")
    assert [what for what in FEWER if what not in code + DOCS["evaluating"]] == []
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    run(code, names, FEWER)
    printed, shown = capsys.readouterr().out, blocks(README, "text")[0]
    assert printed.splitlines()[0] == shown.splitlines()[0]
    assert_same_bits(printed, shown, 2)
    assert (tmp_path / "country.png").stat().st_size > 10_000

    again, every_word, *rest = blocks(DOCS["start"], "python")
    assert again == code
    run(every_word, names, FEWER)
    assert_same_bits(capsys.readouterr().out, blocks(DOCS["start"], "text")[0], 24)
    for block in (
        *rest,
        *(block for page in ("evaluating", "settings", "reading") for block in blocks(DOCS[page], "python")),
    ):
        run(block, names, FEWER)
    assert (tmp_path / "why.html").stat().st_size > 100_000
    assert (tmp_path / "comparison.html").stat().st_size > 100_000
    assert len(list((tmp_path / "why").glob("explanation*"))) == 2
    assert names["why"].log_odds[0] == pytest.approx(14.1, abs=0.2)
    assert "deletion_probability" in capsys.readouterr().out


@pytest.mark.real_model
def test_check_prints_what_the_readme_shows(whisper, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert cli.main(shlex.split(BASH[2])[1:]) == 0
    number = r"\d+\.\d"
    printed, shown = capsys.readouterr().out, blocks(README, "text")[1]
    assert re.sub(number, "N", printed) == re.sub(number, "N", shown)
    bits, expected = (float(re.findall(number, text)[0]) for text in (printed, shown))
    assert bits == pytest.approx(expected, abs=0.11)


def test_no_placeholder_is_left():
    assert not re.findall(r"\b[A-Z]{4,}_[A-Z]+\b", README)


@pytest.mark.parametrize("command", [line for block in COMMANDS for line in block.splitlines() if line.strip()])
def test_command_lines_are_understood(command):
    name, *arguments = shlex.split(command)
    assert name == "spes-hf"
    cli.build_parser().parse_args(arguments)


def test_notebooks_become_pages():
    """Every notebook is in the navigation; its page has its code, its pictures, and links to other pages."""
    page_of = runpy.run_path(str(ROOT / "docs" / "notebook_pages.py"))["page_of"]
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text, pictures = page_of(path)
        assert f"notebooks/{path.stem}.md" in navigation
        assert text.startswith("# ") and "```python\n" in text and ".ipynb" not in text
        assert pictures
        assert all(f"]({name})" in text and data.startswith(b"\x89PNG") for name, data in pictures.items())
