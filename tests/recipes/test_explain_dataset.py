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
"""Tests of the recipe that explains a corpus."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from agreement import assert_explanations_agree
from mustc_shape import write_corpus
from publish import CARD
from settings import pyramid

import spes_hf
from spes_hf import Deletion, Explain, Explanation, Size, load_mustc
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.jobs.run import load_explained
from spes_hf.metrics import summarize

pytestmark = pytest.mark.usefixtures("tables")

RECIPE = Path(__file__).parents[2] / "recipes" / "explain_dataset.py"
FEW = ["--num-masks", "6", "--num-token-masks", "4", "--quiet"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("mustc")
    write_corpus(root, tiny_clips()[:6])
    return root


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    pyramid().to_json(path)
    return str(path)


def shell(*command, folder, **environment):
    """Run a command away from the checkout, as somebody would who has the package and this one file."""
    path = os.pathsep.join(filter(None, [str(Path(spes_hf.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hf"), **environment}
    return subprocess.run(
        list(map(str, command)), cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False
    )


# The script -----------------------------------------------------------------------------------------------------------


def test_help_is_a_manual_page(tmp_path):
    result = shell(sys.executable, RECIPE, "--help", folder=tmp_path, COLUMNS="120")
    assert result.returncode == 0
    for part in ("Datasets", "Output", "To continue a job", "Many processes", "Examples", "Exit codes", "--dry-run"):
        assert part in result.stdout
    assert "torchrun --nnodes" in result.stdout and "accelerate launch" in result.stdout


def test_metadata_and_imports_stand_alone():
    source = RECIPE.read_text(encoding="utf-8")
    block = re.search(r"^# /// script\n((?:#.*\n)+)# ///$", source, re.MULTILINE)
    assert block and "dependencies" in block.group(1) and '"spes-hf' in block.group(1)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            name = node.module.split(".")[0]
        elif isinstance(node, ast.Import):
            name = node.names[0].name.split(".")[0]
        else:
            continue
        known = {"spes_hf", "datasets", "torch", "accelerate", "huggingface_hub", "soundfile"} | sys.stdlib_module_names
        assert name in known and "sys.path" not in source


def test_the_examples_are_right(recipe):
    examples = recipe.__doc__.split("Examples:")[1].split("Exit codes")[0].replace("\\\n", " ")
    commands = re.findall(r"uv run recipes/explain_dataset.py (.*)", examples)
    assert len(commands) == 3
    for command in commands:
        recipe.parse_arguments(command.split())
    for line in re.findall(r"explain_dataset.py (--.*) …", recipe.__doc__):
        recipe.parse_arguments(
            ["--model", "m", "--dataset", "d", "--out", "o", *line.replace("$SLURM_ARRAY_TASK_ID", "3").split()]
        )


def test_two_processes_by_a_launcher_give_what_map_gives(root, config, tmp_path):
    """The maps of load_mustc → Explain → Deletion → Size → summarize, and its scores."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    options = [
        "--model",
        "speech2text-en",
        "--dataset",
        root,
        "--pair",
        "en-de",
        "--config",
        config,
        "--out",
        out,
        *FEW,
    ]
    options += ["--limit", 4]
    result = shell(*command, RECIPE, *options, "--metrics", "deletion,size", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("4 of 4 rows explained") == 1  # one of the two tells
    assert {path.name[:5] for path in (out / "data").iterdir()} == {"00000", "00001"}  # both worked

    model, processor = load_tiny_model("speech2text-en")
    explain = Explain(model, processor, pyramid(num_spectrogram_masks=6, num_token_masks=4))
    corpus = load_mustc(root, "en-de", "tst-COMMON").select(range(4))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun does: the order of equal saliencies decides which texts deletion writes
    try:
        mapped = corpus.map(explain).map(Deletion(model, processor)).map(Size())
    finally:
        torch.set_num_threads(threads)
    rows = load_explained(out)
    for a, b in zip(rows, mapped, strict=True):
        assert a["id"] == b["id"] and a["prediction"] == b["prediction"]
        one, other = Explanation.from_row(a), Explanation.from_row(b)
        assert_explanations_agree(one, other)
        assert a["deletion"]["texts"] == b["deletion"]["texts"]
    expected = summarize(mapped, references="transcript")
    scores = json.loads((out / "scores.json").read_text())
    assert scores.keys() == expected.keys()
    for name, score in expected.items():
        assert scores[name]["value"] == pytest.approx(score.value, abs=1e-3), name


# Data sets ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def manifest(tmp_path):
    """A manifest of three recordings, the second of which is missing."""
    folder = tmp_path / "clips"
    folder.mkdir()
    lines = []
    for clip in tiny_clips()[:3]:
        samples, rate = soundfile.read(clip["path"])
        soundfile.write(folder / f"{clip['id']}.wav", samples, rate)
        lines.append(json.dumps({"id": clip["id"], "file": f"{clip['id']}.wav", "text": clip["transcript"]}))
    (folder / f"{tiny_clips()[1]['id']}.wav").unlink()
    (folder / "clips.jsonl").write_text("\r\n".join(lines) + "\r\n", encoding="utf-16", newline="")
    return folder / "clips.jsonl"


def job(*arguments):
    return ["--model", "speech2text-en", *map(str, arguments), *FEW]


def test_a_manifest_with_a_missing_recording(recipe, manifest, config, tmp_path, capsys):
    options = ["--dataset", manifest, "--audio-column", "file", "--reference-column", "text", "--config", config]
    code = recipe.main(job(*options, "--out", tmp_path / "out", "--metrics", "size"))
    told = capsys.readouterr().out
    assert code == 1 and "2 of 3 rows explained" in told and "does not exist" in told and "size_audio = " in told
    rows = load_explained(tmp_path / "out")
    assert rows["text"][:] == [clip["transcript"] for clip in tiny_clips()[:3]]
    assert [bool(error) for error in rows["error"]] == [False, True, False] and "file" not in rows.column_names


def test_a_folder_of_audio_and_one_on_disk(recipe, manifest, config, tmp_path):
    import datasets

    options = ["--config", config, "--limit", "1"]
    assert recipe.main(job("--dataset", manifest.parent, "--out", tmp_path / "a", *options)) == 0
    name, text = tiny_clips()[2]["id"], tiny_clips()[2]["transcript"]
    table = f'file_name;text\r\n{name}.wav;"{text}"\r\n'  # as Excel writes it
    (manifest.parent / "metadata.csv").write_text(table, encoding="utf-8-sig", newline="")
    assert recipe.main(job("--dataset", manifest.parent, "--out", tmp_path / "c", *options)) == 0
    c = load_explained(tmp_path / "c")
    assert c["text"][:] == c["prediction"][:] == [text] and "file_name" not in c.column_names
    datasets.Dataset.from_dict({"audio": [tiny_clips()[0]["path"]], "n": [1]}).save_to_disk(tmp_path / "saved")
    assert recipe.main(job("--dataset", tmp_path / "saved", "--out", tmp_path / "b", *options)) == 0
    a, b = load_explained(tmp_path / "a"), load_explained(tmp_path / "b")
    assert len(a) == len(b) == 1 and b[0]["n"] == 1
    assert a[0]["prediction"] == b[0]["prediction"] == tiny_clips()[0]["transcript"]


def test_a_translation_is_scored_by_bleu_against_the_translation(recipe, root, config, tmp_path, capsys):
    arguments = ["--model", "seamless-en-de-es", "--tgt-lang", "deu", "--dataset", root, "--pair", "en-de", *FEW]
    arguments += ["--config", config, "--out", tmp_path / "out", "--metrics", "deletion,insertion", "--limit", "1"]
    assert recipe.main(list(map(str, arguments))) == 0
    told = capsys.readouterr().out
    assert "|bleu|" in told and "insertion_probability = " in told
    rows = load_explained(tmp_path / "out")
    assert rows[0]["prediction"] == rows[0]["translation"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--dataset", "nowhere/at-all"], 2, "--dataset 'nowhere/at-all' cannot be loaded"),
        (["--dataset", "ROOT", "--pair", "en-fr"], 2, "has no folder en-fr/data"),
        (["--dataset", "ROOT", "--pair", "en-de", "--split", "dev"], 2, "split is 'dev'"),
        (["--dataset", "ROOT", "--pair", "en-de", "--audio-column", "sound"], 2, "has no column 'sound'"),
        (["--dataset", "ROOT", "--pair", "en-de", "--reference-column", "x"], 2, "--reference-column is 'x'; the data"),
        (["--dataset", "ROOT", "--pair", "en-de", "--num-processes", "2"], 2, "process_index is None"),
        (["--dataset", "ROOT", "--pair", "en-de", "--language", "en"], 2, "language is 'en', but"),
        (["--dataset", "ROOT", "--pair", "en-de", "--device", "nonsense"], 2, "--device is 'nonsense'"),
    ],
)
def test_wrong_arguments(recipe, root, tmp_path, capsys, arguments, code, message):
    arguments = [str(root) if a == "ROOT" else a for a in arguments]
    assert recipe.main(job(*arguments, "--out", tmp_path / "out")) == code
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_references_are_asked_for(recipe, manifest, tmp_path, capsys):
    arguments = job("--dataset", manifest, "--audio-column", "file", "--out", tmp_path / "out", "--metrics", "deletion")
    assert recipe.main(arguments) == 2
    assert "--reference-column is missing; the dataset has id, text, file" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        recipe.parse_arguments(["--model", "m", "--dataset", "d", "--out", "o", "--metrics", "deletion,beauty"])
    assert caught.value.code == 2 and "beauty; allowed: deletion, insertion, size" in capsys.readouterr().err


def test_another_job_in_the_same_folder(recipe, root, config, tmp_path, capsys):
    arguments = job("--dataset", root, "--pair", "en-de", "--config", config, "--out", tmp_path / "out", "--limit", "1")
    assert recipe.main(arguments) == 0 and recipe.main(arguments) == 0
    assert recipe.main([*arguments, "--seed", "3"]) == 2
    assert "seed was 0, is 3" in capsys.readouterr().err


# The card and the hub -------------------------------------------------------------------------------------------------


def test_a_dry_run_leaves_what_would_be_pushed(recipe, root, config, tmp_path, capsys, monkeypatch):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", None)  # whoever pushed would fail
    options = ["--dataset", root, "--pair", "en-de", "--config", config, "--out", tmp_path / "out", "--limit", "3"]
    options += ["--metrics", "size", "--push-to-hub", "me/explained", "--dry-run"]
    assert recipe.main(job(*options)) == 0
    told = capsys.readouterr().out
    assert re.search(r"dry run: would upload 5 files \(.* MB\) to the dataset me/explained: README.md, manifest", told)

    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    _, header, body = card.split("---\n", 2)
    settings = yaml.safe_load(header)
    assert settings["configs"] == [{"config_name": "default", "data_files": "data/*.parquet"}]
    assert "spes_hf" in settings["tags"] and 'load_dataset("me/explained"' in body
    assert "| size_audio | " in body and '"num_spectrogram_masks": 6' in body and str(tmp_path) not in card

    rows = datasets.load_dataset(str(tmp_path / "out"), split="train").sort("row_index")
    assert rows["id"][:] == load_explained(tmp_path / "out")["id"][:] and len(rows) == 3
    assert Explanation.from_row(rows[0]).text == rows[0]["prediction"]


def test_what_is_pushed(recipe, root, config, tmp_path, monkeypatch):
    """The upload itself needs a hub; what is handed to it does not."""
    import huggingface_hub

    calls = []

    class Hub:
        def create_repo(self, *args, **kwargs):
            calls.append(("create", args, kwargs))

        def upload_folder(self, **kwargs):
            calls.append(("upload", kwargs))

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    options = ["--dataset", root, "--pair", "en-de", "--config", config, "--out", tmp_path / "out", "--limit", "1"]
    assert recipe.main(job(*options, "--push-to-hub", "me/explained", "--private")) == 0
    assert calls[0] == ("create", ("me/explained",), {"repo_type": "dataset", "private": True, "exist_ok": True})
    assert calls[1][1]["repo_id"] == "me/explained" and calls[1][1]["folder_path"] == tmp_path / "out"
    assert {"README.md", "data/*.parquet"} <= set(calls[1][1]["allow_patterns"])


def test_the_readme_of_the_recipes_names_them_all_and_the_hub_gets_a_card():
    body = (RECIPE.parent / "README.md").read_text(encoding="utf-8")
    _, header, _ = CARD.split("---\n", 2)
    assert yaml.safe_load(header)["tags"]
    for path in RECIPE.parent.glob("*.py"):
        assert f"`{path.name}`" in body or f"[{path.name}]" in body, path.name


def test_an_unknown_metric_is_refused_first(recipe, manifest, tmp_path, capsys):
    options = ["--dataset", manifest, "--audio-column", "file", "--out", tmp_path / "out", "--quality", "bleu:klingon"]
    assert recipe.main(job(*options)) == 2
    assert "tokenize is 'klingon'" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_preset_next_to_a_config_is_refused_and_settings_of_speed_arrive(recipe, root, config, tmp_path, capsys):
    arguments = job("--dataset", root, "--pair", "en-de", "--config", config, "--out", tmp_path / "out", "--limit", "1")
    assert recipe.main([*arguments, "--preset", "fast"]) == 2
    assert "each sets method and settings" in capsys.readouterr().err
    assert recipe.main([*arguments, "--autocast", "bfloat16", "--batch-size", "auto"]) == 0
    found = Explanation.from_row(load_explained(tmp_path / "out")[0])
    assert found.provenance["model"]["autocast"] == "bfloat16"
