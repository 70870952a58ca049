"""The guides' code runs as it stands, with trained models, and prints what they show."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import all_gpu
import numpy as np
import pages
import pytest
import soundfile
from pages import DOCS, ROOT, blocks

from spes_hf import Explanation, Recording, SpesConfig, cli

# Few masks, without backward passes: Whisper hears 30 s of each copy, however short the clip is.
FEW = SpesConfig(num_spectrogram_masks=2, num_token_masks=2, estimator="perturbation")
# To find a word, backward passes, but few.
FAST = SpesConfig.fast(num_spectrogram_masks=1, masks_per_token=1, num_token_masks=6)
FEWER = {
    "recordings": {
        'folder="talk_spes")': 'folder="talk_spes", config=FEW, progress=False)',
        "fast = SpesConfig.fast()": "fast = FEW",
        "explain(model, processor, audio)": "explain(model, processor, audio, config=FEW, progress=False)",
        'words="country")': 'words="country", config=FEW, progress=False)',
        "end=75.0)": "end=75.0, config=FEW, progress=False)",
    },
    "contrast": {
        'foil={9: "county"})': 'foil={9: "county"}, config=FEW, progress=False)',
        "demo_audio(), reference=reference)": '"clip.wav", reference="What your county can do.", config=FAST)',
    },
}
TEXT = "What your country can do"
COMMANDS = [line for line in pages.lines() if line.startswith("spes-hf ")]
MENTIONED = [span for span in pages.spans() if span.startswith("spes-hf ")]
SCRIPT = r"((?:recipes|benchmarks|docs)/\w+\.py)(.*)"
SCRIPTS = list(
    dict.fromkeys(found.groups() for text in [*pages.lines(), *pages.spans()] if (found := re.search(SCRIPT, text)))
)

# The commands of all_gpu.py, which tests cannot run for want of a GPU.
GPU_SCRIPTS = [(f"benchmarks/{script}", " ".join(rest)) for (script, *rest), _ in all_gpu.COMMANDS.values()]


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Return what runs the Python of a page, in a folder of its own, and returns the names that it leaves."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, **names):
        fewer = FEWER.get(name, {})
        assert [what for what in fewer if what not in DOCS[name]] == []
        names |= {"FEW": FEW, "FAST": FAST}
        for block in blocks(DOCS[name], "python"):
            pages.run(block, names, fewer, f"docs/{name}.md")
        return names

    return run


@pytest.fixture(scope="module")
def sentence(jfk) -> np.ndarray:
    """1.6 s of the demo clip at 16 kHz: "what your country can do"."""
    samples, rate = soundfile.read(jfk, dtype="float32")
    return samples[int(5.2 * rate) : int(6.8 * rate)]


def test_debugging(page, capsys, tmp_path):
    names = page("debugging")
    pages.assert_prints(capsys.readouterr().out, blocks(DOCS["debugging"], "text")[0])
    assert names["found"].explanation.contrasts
    assert "beautiful house" in (tmp_path / "errors.html").read_text(encoding="utf-8")


def test_translation(page, capsys):
    page("translation")
    pages.assert_prints(capsys.readouterr().out, blocks(DOCS["translation"], "text")[0])


def test_corpus(page, capsys, tmp_path):
    names = page("corpus")
    first, *scores = capsys.readouterr().out.splitlines()
    assert first == "4 of 4 rows explained in explained"
    assert [re.match(r"(\w+) = \d+\.\d+ \[\d+\.\d+, \d+\.\d+\] ", score)[1] for score in scores] == [
        "deletion",
        "deletion_probability",
        "clean",
    ]
    assert Explanation.from_row(names["rows"][0]).text == names["rows"][0]["prediction"]


def test_hallucination(whisper, page, capsys):
    page("hallucination")
    pages.assert_prints(capsys.readouterr().out, blocks(DOCS["hallucination"], "text")[0])


def test_recordings(whisper, page, sentence, tmp_path, capsys):
    """In a folder with a recording of 31 s, in which something is said at first, and one of 75 s: there at 63 s."""
    quiet = 1e-4 * np.random.default_rng(0).standard_normal(75 * 16_000).astype(np.float32)
    for name, start_s, seconds in (("talk.m4a", 0, 31), ("talk.wav", 63, 75)):
        sound = quiet[: seconds * 16_000].copy()
        sound[start_s * 16_000 :][: len(sentence)] += sentence
        soundfile.write(tmp_path / name, sound, 16_000, format="WAV")
    model, processor = whisper
    names = page("recordings", model=model, processor=processor, audio={"array": sentence, "sampling_rate": 16_000})
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"0 s: {[f' {word}' for word in TEXT.split()]}", "30 s: [' .']"]
    assert TEXT in Recording.load(tmp_path / "talk_spes").text
    assert (tmp_path / "talk_spes" / "recording.html").stat().st_size > 10_000
    assert names["recording"].text.startswith("And so my fellow Americans")
    assert names["recording"].verdict == "made up"  # as the page says
    assert [part.text for part in names["parts"]] == [f"{TEXT}."]


def test_contrast(whisper, page, sentence, tmp_path, capsys):
    """In a folder with a clip in which the words are said."""
    soundfile.write(tmp_path / "clip.wav", sentence, 16_000)
    model, processor = whisper
    names = page("contrast", model=model, processor=processor)
    assert names["ex"].log_odds[0] > 5 and names["ex"].sound_bits[0] > 5
    assert names["ex"].evidence(0).shape == names["ex"].features.shape and names["ex"].evidence(0).min() < 0
    printed = capsys.readouterr().out
    assert f"'{TEXT}.': 1 error (1 misheard)" in printed and "country, said county: misheard" in printed


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_of_all_pages_are_understood(line):
    cli.build_parser().parse_args(shlex.split(line, comments=True)[1:])


@pytest.mark.parametrize("span", MENTIONED)
def test_commands_in_the_text_exist_with_their_options(span, capsys):
    _, command, *arguments = shlex.split(span)
    with pytest.raises(SystemExit) as ended:
        cli.build_parser().parse_args([command, "--help"])
    assert ended.value.code == 0
    known = set(re.findall(r"(?<![\w-])--[a-z-]+", capsys.readouterr().out))
    assert [a for a in arguments if a.startswith("--") and a not in known] == []


def with_imports(script: Path) -> set[Path]:
    """Return a script, with what defines options for it: scripts that it imports or loads, modules of options."""
    found, left = set(), [script]
    while left:
        path = left.pop()
        found.add(path)
        names: list[str] = []
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names += [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                names.append(node.value)
        options = [ROOT / f"{name.replace('.', '/')}.py" for name in names if name.endswith("options")]
        scripts = [folder / f"{name}.py" for name in names for folder in (script.parent, ROOT / "recipes")]
        left += [path for path in (*options, *scripts) if path.is_file() and path not in found]
    return found


@pytest.mark.parametrize(("script", "rest"), [*SCRIPTS, *GPU_SCRIPTS])
def test_scripts_of_all_pages_exist_with_their_options(script, rest):
    """The options by the source, and by that of what it imports: to start every benchmark takes minutes."""
    code = "".join(path.read_text(encoding="utf-8") for path in with_imports(ROOT / script))
    options = set(re.findall(r"(?<!\S)--[a-z-]+", rest)) - {"--help"}
    assert [option for option in options if f'"{option}"' not in code] == []


def test_commands_about_speed_take_a_device():
    """As docs/speed.md says."""
    scripts = set(re.findall(r"benchmarks/\w+\.py", DOCS["speed"]))
    assert "Every command here takes `--device cuda`" in DOCS["speed"] and len(scripts) >= 4
    assert [path for path in sorted(scripts) if '"--device"' not in (ROOT / path).read_text(encoding="utf-8")] == []
