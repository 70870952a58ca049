# Copyright 2026 The spes_hf authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Tests of the recipe that reports on the explanations of a corpus."""

import csv
import importlib.util
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from spes_hf import EnergyConfig, Explainer
from spes_hf.demo import load_tiny_model, tiny_clips

RECIPE = Path(__file__).parents[2] / "recipes" / "analyze_explanations.py"


def load_recipe():
    spec = importlib.util.spec_from_file_location("analyze_explanations", RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


recipe = load_recipe()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder with explanations, alignments with phones, and metadata of six clips."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "alignments").mkdir()
    explainer = Explainer(*load_tiny_model("speech2text-en"), EnergyConfig(), progress=False)
    rows = []
    for clip in tiny_clips()[:6]:
        explainer(clip["path"]).save(folder / "explained" / clip["id"])
        words = [
            {**w, "phones": [{"phone": w["word"][0].upper(), "start": w["start"], "end": w["end"]}]}
            for w in clip["words"]
        ]
        (folder / "alignments" / f"{clip['id']}.json").write_text(json.dumps({"words": words}), encoding="utf-8")
        rows.append({"id": clip["id"], "gender": "F" if "+f" in clip["speaker"] else "M"})
    with (folder / "speakers.csv").open("w", newline="", encoding="utf-16") as file:
        writer = csv.DictWriter(file, ["id", "gender"])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "speakers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def report(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    arguments = ["--explanations", corpus / "explained", "--alignments", corpus / "alignments", "--words", "Tom,a",
                 "--phones", "plosives=T,P", "sonorants=S,N,L", "--metadata", corpus / "speakers.csv",
                 "--groups", "gender", "--min-count", "2", "--title", "Six <clips>", "--out", out]  # fmt: skip
    assert recipe.main(list(map(str, arguments))) == 0
    return out


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]


def test_page_is_self_contained_and_in_order(report):
    page = (report / "report.html").read_text(encoding="utf-8")
    parser = Links()
    parser.feed(page)
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in parser.sources)
    assert not {"script", "link", "iframe"} & set(parser.tags)
    keys = re.findall(r'<section id="(\w+)"', page)
    assert keys == [
        "corpus", "example", "time_localization", "frequency_words", "word_examples", "frequency_phones", "scatter",
        "modality_balance", "positional", "intermediate_tokens"]  # fmt: skip
    assert "Six &lt;clips&gt;" in page and "Not available" not in page
    assert page.count("alt=") == parser.tags.count("img") >= 11


def test_figures(report):
    names = {path.stem for path in (report / "figures").iterdir()}
    assert {"figure3_sound", "figure3_text", "time", "figure7_words", "figure7_phones", "figure7_words_Tom_groups",
            "figure8_Tom", "figure8_a", "figure10", "figure11", "modality", "table10"} <= names  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (report / "figures").iterdir())


def test_numbers(report):
    data = json.loads((report / "analysis.json").read_text(encoding="utf-8"))
    assert data["corpus"]["utterances"] == 6 and data["corpus"]["models"] and data["corpus"]["tokens"] > 40
    time = data["time_localization"]
    assert time["n"] == len(time["maps"]["saliency"]["words"]) == 37
    # Energy explains by loudness: as a map, it is its own control.
    for name in ("inside", "outside", "mass"):
        assert time["maps"]["saliency"][name] == pytest.approx(time["maps"]["energy"][name])
    profiles = data["frequency_words"]["profiles"]
    assert profiles["Tom"]["n"] == profiles["Tom (M)"]["n"] + profiles["Tom (F)"]["n"] == 3
    assert data["frequency_phones"]["unit"] == "phone" and data["frequency_phones"]["profiles"]["plosives"]["n"] >= 5
    assert [entry["word"] for entry in data["word_examples"]] == ["tom", "a"]
    assert data["scatter"]["min_count"] == 2 and data["positional"]["n"] == data["corpus"]["tokens"] - 6
    assert "table" in data["intermediate_tokens"]


def test_page_and_numbers_agree(report):
    page = (report / "report.html").read_text(encoding="utf-8")
    data = json.loads((report / "analysis.json").read_text(encoding="utf-8"))
    assert f"{data['time_localization']['maps']['saliency']['inside']:.3f} against" in page
    assert f"{data['scatter']['n']} maps" in page


def test_without_alignments(corpus, tmp_path):
    assert recipe.main(["--explanations", str(corpus / "explained"), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "pass --alignments FOLDER" in page and 'id="positional"' in page and 'id="frequency_words"' not in page


def test_a_part_that_cannot_be_made_says_why(corpus, tmp_path):
    arguments = ["--explanations", corpus / "explained", "--alignments", corpus / "alignments", "--words", "xyz,Tom"]
    assert recipe.main([*map(str, arguments), "--out", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "analysis.json").read_text(encoding="utf-8"))
    assert "'xyz' never occurs" in data["frequency_words"]["not_made"]
    assert data["time_localization"]["n"] == 37
    assert "Not available: &#x27;xyz&#x27; never occurs" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_missing_alignment_is_told(corpus, tmp_path):
    (tmp_path / "some").mkdir()
    for path in sorted((corpus / "alignments").iterdir())[:4]:
        (tmp_path / "some" / path.name).write_bytes(path.read_bytes())
    arguments = ["--explanations", corpus / "explained", "--alignments", tmp_path / "some", "--out", tmp_path / "out"]
    assert recipe.main(list(map(str, arguments))) == 0
    data = json.loads((tmp_path / "out" / "analysis.json").read_text(encoding="utf-8"))["time_localization"]
    assert data["utterances"] == 4 and [entry["reason"] for entry in data["skipped"]] == ["no alignment"] * 2
    assert "no alignment" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["parquet", "folder", "disk", "jsonl"])
def test_data_sets(corpus, tmp_path, kind, monkeypatch):
    """Paths of a data set are relative to it; its columns can hold the groups."""
    import datasets

    rows = recipe.read_metadata(corpus / "speakers.jsonl")
    rows = [{**row, "explanation": f"explained/{row['id']}", "error": None} for row in rows]
    rows.append({"id": "bad", "gender": "F", "explanation": None, "error": "too short"})
    table = datasets.Dataset.from_list(rows)
    path = corpus / {"parquet": "t.parquet", "folder": "t", "disk": "d", "jsonl": "t.jsonl"}[kind]
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "disk":
        table.save_to_disk(str(path))
    else:
        file = path / "data" / "0.parquet" if kind == "folder" else path
        file.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(str(file))
    found = recipe.read_explanations(path)
    if kind in ("disk", "folder"):  # these are folders of their own
        found.folder = corpus
    section = recipe.frequency_section(found, corpus / "alignments", ["Tom"], "word", "gender")
    assert section.data["profiles"]["Tom (M)"]["n"] == 2
    assert recipe.corpus_section(found)[0].data["utterances"] == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--explanations": "nowhere"}, "does not exist"),
        ({"--explanations": "alignments"}, "holds no explanation"),
        ({"--metadata": "speakers.txt"}, "cannot be read"),
        ({"--groups": "accent"}, "no column 'accent'; it has id, gender"),
    ],
)
def test_errors(corpus, tmp_path, capsys, change, message):
    options = {"--explanations": "explained", "--metadata": "speakers.csv", "--groups": "gender", **change}
    arguments = [
        part for name, value in options.items() for part in (name, value if name == "--groups" else str(corpus / value))
    ]
    assert recipe.main([*arguments, "--out", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1 + told.count("…\n")


@pytest.mark.parametrize("arguments", [["--phones", "nasals="], ["--words", ","], ["--metadata", "speakers.csv"]])
def test_usage(corpus, tmp_path, capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        recipe.main(["--explanations", str(corpus), "--out", str(tmp_path), *arguments])
    assert caught.value.code == 2 and "error" in capsys.readouterr().err


def test_names():
    assert recipe.read_names(["so,no", "nasals=N,M"]) == {"so": ("so",), "no": ("no",), "nasals": ("N", "M")}


def test_help_is_a_manual_page():
    done = subprocess.run([sys.executable, str(RECIPE), "--help"], capture_output=True, text=True, check=True)
    for part in ("report.html", "analysis.json", "pocketsphinx", "--phones NAMES", "Examples:", "\\\n      --words"):
        assert part in done.stdout, part


def test_inline_metadata():
    source = RECIPE.read_text(encoding="utf-8")
    block = re.search(r"^# /// script$(.*?)^# ///$", source, re.MULTILINE | re.DOTALL)[1]
    assert '"spes-hf"' in block and '"scipy>=1.11"' in block and "requires-python" in block


def test_pocketsphinx(corpus, tmp_path):
    pytest.importorskip("pocketsphinx", reason="the align extra is not installed: pip install -e '.[align]'")
    arguments = ["--explanations", str(corpus / "explained"), "--alignments", "pocketsphinx", "--out", str(tmp_path)]
    assert recipe.main(arguments) == 0
    data = json.loads((tmp_path / "analysis.json").read_text(encoding="utf-8"))["time_localization"]
    assert data["utterances"] == 6 and data["n"] >= 36 and not data["unmatched"]
