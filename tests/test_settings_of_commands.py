"""Every command and recipe that loads a model takes the shared settings, and what is set takes effect."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import zipfile
from pathlib import Path

import compare_methods
import diagnose_corpus
import explain_dataset
import pytest
import torch
import transformers
from agreement import assert_explanations_agree

from spes_hf import Explanation, SpesConfig, cli, diagnosis_of
from spes_hf.app.desk import Desk
from spes_hf.app.job import Job, Result, Running
from spes_hf.app.work import Workbench
from spes_hf.app.worker import Worker
from spes_hf.commands import options
from spes_hf.commands.options import load_model
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.errors import ConfigError
from spes_hf.jobs.run import load_explained

pytestmark = pytest.mark.usefixtures("tables")

ROOT = Path(__file__).parents[1]
FEW = SpesConfig(num_spectrogram_masks=4, masks_per_token=2, num_token_masks=4)

HALVES = {"model.encoder": "disk", "model.decoder": "cpu", "lm_head": "cpu"}

SHARED = {"--device", "--device-map", "--dtype", "--batch-size", "--autocast", "--compile"}
SHARED |= {"--num-beams", "--max-new-tokens", "--config", "--num-masks"}
# Settings that a command has no use for: a command is not in here unless there is a reason.
LEFT_OUT = {
    "check": {"--batch-size", "--compile", "--config", "--num-masks"},  # three passes over one copy, no masks
    "evaluate": {"--autocast", "--compile", "--config", "--num-masks"},  # explained already, in a certain type
    "app": {"--compile", "--num-beams", "--max-new-tokens", "--config", "--num-masks"},  # visitors choose a preset
    "demo": {"--num-beams", "--max-new-tokens"},  # one clip and its text
}
LOAD_NO_MODEL = {"compare", "report"}
# Recipes that run no explained model: they read rows, upload files, and train.
OTHER_RECIPES = {"analyze_explanations", "publish", "train_tiny_models"}


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """Tables of `datasets` go to a folder of their own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def clip():
    return next(c for c in tiny_clips() if c["kind"] == "statement")


@pytest.fixture
def config(tmp_path):
    FEW.to_json(tmp_path / "config.json")
    return ["--config", str(tmp_path / "config.json")]


@pytest.fixture
def maps(tmp_path):
    """Device maps in files: all on the CPU, and one half on disk until it is needed; tied weights stay in memory."""
    for name, content in (("cpu", {"": "cpu"}), ("halves", HALVES)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return {name: str(tmp_path / f"{name}.json") for name in ("cpu", "halves")}


@pytest.fixture
def spread(monkeypatch):
    """The maps of the models that were loaded with one."""
    found = []
    check = options.check_parts

    def keep(model, device_map, given):
        found.append(getattr(model, "hf_device_map", device_map))
        check(model, device_map, given)

    monkeypatch.setattr(options, "check_parts", keep)
    return found


@pytest.fixture
def manifest(tmp_path, clip):
    """Two clips whose references end with another word than the sound."""
    last = "house." if "house" not in clip["transcript"] else "dog."
    text = " ".join([*clip["transcript"].split()[:-1], last])
    path = tmp_path / "manifest.jsonl"
    lines = [{"id": name, "file": clip["path"], "text": text} for name in "ab"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


# What each takes ------------------------------------------------------------------------------------------------------


def commands() -> dict[str, argparse.ArgumentParser]:
    (added,) = [a for a in cli.build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(added.choices)


def recipes() -> dict[str, argparse.ArgumentParser]:
    names = {path.stem for path in (ROOT / "recipes").glob("*.py")} - OTHER_RECIPES
    return {name: importlib.import_module(name).build_parser() for name in sorted(names)}


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {name: action for action in parser._actions for name in action.option_strings}


@pytest.mark.parametrize("name", sorted(commands()) + sorted(recipes()))
def test_whatever_loads_a_model_takes_the_shared_settings(name):
    taken = options_of({**commands(), **recipes()}[name])
    if name in LOAD_NO_MODEL:
        assert not ({"--model"} | SHARED) & taken.keys()
        return
    assert SHARED - taken.keys() == LEFT_OUT.get(name, set())
    model = options_of(commands()["explain"])
    for setting in SHARED & taken.keys():
        for of in ("dest", "default", "type", "choices", "nargs"):
            assert getattr(taken[setting], of) == getattr(model[setting], of), setting


def test_the_table_in_the_docs_says_so():
    section = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8").split("## Settings")[1].split("\n## ")[0]
    told: dict[str, set[str]] = {}
    for line in section.splitlines():
        if line.startswith("| `--"):
            names, _, without = (re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split(" | "))
            told |= {name: set(without) for name in names}
    assert told == {s: {name for name, left in LEFT_OUT.items() if s in left} for s in SHARED}
    assert all(f"`{name}.py`" in section for name in recipes())


# Device maps ----------------------------------------------------------------------------------------------------------


def explained(clip, out, config, *more) -> Explanation:
    arguments = [clip["path"], "--model", "speech2text-en", "--quiet", "--out", str(out), *config, *more]
    assert cli.main(["explain", *arguments]) == 0
    return Explanation.load(out)


def test_a_model_spread_by_a_file_is_explained_as_on_one_device(clip, config, maps, spread, tmp_path):
    one = explained(clip, tmp_path / "one", config, "--device", "cpu")
    for name, path in maps.items():
        found = explained(clip, tmp_path / name, config, "--device-map", path)
        assert torch.equal(found.raw_audio, one.raw_audio) and found.token_ids == one.token_ids
        assert torch.equal(found.raw_token.nan_to_num(), one.raw_token.nan_to_num())
    assert spread == [{"": "cpu"}, HALVES]


@pytest.mark.parametrize("name", ["auto", "balanced", "sequential"])
def test_automatic_maps(clip, config, spread, tmp_path, name):
    found = explained(clip, tmp_path / "spread", config, "--device-map", name)
    assert len(spread) == 1
    assert_explanations_agree(found, explained(clip, tmp_path / "one", config))


def test_parts_of_a_loaded_model_are_where_the_file_says(maps, tmp_path):
    model, processor = load_tiny_model("speech2text-en")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    for name in ("speech2text-en", str(tmp_path / "model")):
        parted, _ = load_model(name, None, "auto", maps["halves"])
        assert parted.hf_device_map == HALVES
        assert {w.device.type for w in parted.model.encoder.parameters()} == {"meta"}
        assert {(w.device.type, w.dtype) for w in parted.model.decoder.parameters()} == {("cpu", torch.float32)}
        half, _ = load_model(name, None, "bfloat16", maps["cpu"])
        assert {(w.device.type, w.dtype) for w in half.parameters()} == {("cpu", torch.bfloat16)}


def test_check_diagnose_and_evaluate_with_a_map(clip, config, maps, spread, tmp_path, capsys):
    wrong = " ".join([*clip["transcript"].split()[:-1], "house."])
    shown, diagnoses, scores = [], [], []
    for where in (["--device", "cpu"], ["--device-map", maps["halves"]]):
        model = ["--model", "speech2text-en", *where]
        capsys.readouterr()
        assert cli.main(["check", clip["path"], *model]) == 0
        shown.append(capsys.readouterr().out)
        out = tmp_path / "diagnosed"
        told = ["--reference", wrong, "--quiet", "--out", str(out), *config]
        assert cli.main(["diagnose", clip["path"], *model, *told]) == 0
        diagnoses.append((out / "diagnosis.json").read_text())
        saved = tmp_path / "saved"
        explained(clip, saved, config, *where)
        assert cli.main(["evaluate", str(saved), *model, "--metrics", "deletion,word_deletion", "--quiet"]) == 0
        scores.append((saved / "evaluation.json").read_text())
    assert "bits a token" in shown[0] and len(json.loads(diagnoses[0])) and '"deletion"' in scores[0]
    for one, other in (shown, diagnoses, scores):
        assert one == other
    assert spread == [HALVES] * 4


def test_a_corpus_with_a_map_is_the_same_job(manifest, config, maps, spread, tmp_path, capsys):
    """Each half of the corpus by a process with devices of its own; then a run without a map finds nothing to do."""
    base = ["--model", "speech2text-en", "--dataset", str(manifest), "--audio-column", "file", "--quiet", *config]
    one, parted = tmp_path / "one", tmp_path / "parted"
    assert explain_dataset.main([*base, "--device", "cpu", "--out", str(one)]) == 0
    for index in ("0", "1"):
        place = ["--process-index", index, "--num-processes", "2", "--device-map", maps["halves"]]
        assert explain_dataset.main([*base, *place, "--out", str(parted)]) == 0
    files = sorted((parted / "data").iterdir())
    assert spread == [HALVES] * 2
    assert {path.name[:5] for path in files} == {"00000", "00001"}
    for a, b in zip(load_explained(one), load_explained(parted), strict=True):
        assert a["explanation"] and a["id"] == b["id"]
        assert torch.equal(Explanation.from_row(a).raw_audio, Explanation.from_row(b).raw_audio)
    capsys.readouterr()
    assert explain_dataset.main([*base, "--device", "cpu", "--out", str(parted)]) == 0
    assert "2 of 2 rows explained" in capsys.readouterr().out and sorted((parted / "data").iterdir()) == files


def test_other_recipes_with_a_map(manifest, config, maps, spread, tmp_path):
    found = []
    for where in (["--device", "cpu"], ["--device-map", maps["halves"]]):
        out = tmp_path / where[0]
        base = ["--model", "speech2text-en", *where, "--quiet", *config]
        told = ["--dataset", str(manifest), "--audio-column", "file", "--pages", "0", "--out", str(out / "diagnosed")]
        assert diagnose_corpus.main([*base, *told]) == 0
        errors = [diagnosis_of(row).to_dict() for row in load_explained(out / "diagnosed")]
        assert compare_methods.main([*base, "--max-utterances", "1", *CURVE, "--out", str(out / "compared")]) == 0
        result = json.loads((out / "compared" / "results.json").read_text(encoding="utf-8"))
        found.append((errors, result["judged"]["mean"][config[1]]["scores"]))
    assert found[0][0][0]["errors"] and found[0] == found[1] and spread == [HALVES] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "As a file, it cannot be read"),
        ("{", "is not JSON"),
        ("[]", r"holds \[\]; allowed: auto, balanced, sequential, or a JSON file such as"),
        ("{}", r"holds \{\}; allowed"),
        ('{"": true}', "puts '' on True, which is no device"),
        ('{"": "gpu"}', ".*at start of device string: gpu\nCheck the parts and devices of the map"),
        ('{"": "cpu", "ears": "cpu"}', "names 'ears', which is no part of this Speech2Text.*model.encoder, model.dec"),
        ('{"model.encoder": "cpu"}', "has no device for 'model.decoder.*give one for every part"),
    ],
)
def test_maps_that_are_none(tmp_path, content, message):
    path = tmp_path / "map.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=f"(?s)--device-map.*{message}"):
        load_model("speech2text-en", None, "auto", str(path))


def test_a_device_next_to_a_map_is_refused(clip, manifest, tmp_path, capsys):
    where = ["--model", "speech2text-en", "--device", "cpu", "--device-map", "auto"]
    data, out = ["--dataset", str(manifest), "--audio-column", "file"], ["--out", str(tmp_path / "out")]
    plan = ["plan", *where, "--hours", "1"]
    calls = [lambda given=given: cli.main(given) for given in (["explain", clip["path"], *where, *out], plan)]
    calls += [lambda: cli.main(["app", *where[2:]]), lambda: explain_dataset.main([*where, *data, *out])]
    calls += [lambda: diagnose_corpus.main([*where, *data, *out])]
    for call in calls:
        assert call() == cli.EXIT_USAGE
        assert "--device is 'cpu' and --device-map is 'auto', but each" in capsys.readouterr().err
    assert compare_methods.main([*where, "--methods", "energy", *out]) == 1
    assert "--device is 'cpu' and --device-map is 'auto', but each" in capsys.readouterr().err


def test_launched_processes_do_not_spread_a_model_over_the_same_devices(clip, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    where = ["--model", "speech2text-en", "--device-map", "auto", "--out", str(tmp_path / "out")]
    assert cli.main(["explain", clip["path"], *where]) == cli.EXIT_USAGE
    told = capsys.readouterr().err
    assert "--device-map is 'auto', but a launcher started 2 processes on this machine" in told
    assert "CUDA_VISIBLE_DEVICES" in told and "--process-index and --num-processes" in told


def test_a_plan_for_several_gpus_has_no_map(capsys):
    plan = ["plan", "--model", "speech2text-en", "--hours", "1", "--device-map", "auto", "--max-new-tokens", "50"]
    assert cli.main([*plan, "--gpus", "2"]) == cli.EXIT_USAGE
    assert "--device-map is 'auto' and --gpus is 2" in capsys.readouterr().err
    assert cli.main(plan) == 0
    launch = capsys.readouterr().out.split("launch:")[1]
    assert "--device-map auto" in launch and "--max-new-tokens 50" in launch


# Settings of single commands and recipes ------------------------------------------------------------------------------

CURVE = ["--fractions", "0", "0.5", "1"]


@pytest.fixture
def kept(monkeypatch):
    """The explanations that `compare_methods` makes."""
    found: list[Explanation] = []

    class Keeping(compare_methods.Explainer):
        def __call__(self, *arguments, **settings):
            found.append(super().__call__(*arguments, **settings))
            return found[-1]

    monkeypatch.setattr(compare_methods, "Explainer", Keeping)
    return found


def test_compare_methods_takes_what_explain_dataset_takes(config, kept, tmp_path, capsys):
    base = ["--model", "speech2text-en", "--device", "cpu", "--max-utterances", "1", "--quiet", *CURVE]
    base += ["--out", str(tmp_path), *config, "--methods", "energy", "--num-token-masks", "2"]
    asked = ["--dtype", "bfloat16", "--num-beams", "2", "--max-new-tokens", "5"]
    assert compare_methods.main(base) == 0 and compare_methods.main([*base, *asked]) == 0
    result = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    name = config[1]
    assert list(result["configs"]) == [name, "energy"]  # the file comes first: others are compared to it
    assert SpesConfig.from_dict(result["configs"][name]) == FEW.changed(num_token_masks=2)
    exact, _, half, _ = kept  # other settings are measured anew
    assert exact.provenance["model"]["dtype"] == "float32" and half.provenance["model"]["dtype"] == "bfloat16"
    assert half.origin.generate_kwargs == {"num_beams": 2, "max_new_tokens": 5} and not exact.origin.generate_kwargs
    assert len(half.token_ids) == 5 < len(exact.token_ids)
    assert compare_methods.main(base) == 0 and len(kept) == 4
    capsys.readouterr()
    assert compare_methods.main([*base, "--config", str(tmp_path / "none.json")]) == 1
    assert "--config" in capsys.readouterr().err


@pytest.mark.skipif(
    not hasattr(transformers, "Qwen3ASRForConditionalGeneration"), reason="transformers has no Qwen3-ASR before 5.20"
)
def test_a_diagnosis_next_to_explanations_has_the_same_prompt(manifest, config, tmp_path):
    base = ["--model", "qwen3-asr-en", "--dataset", str(manifest), "--audio-column", "file", "--limit", "1", *config]
    base += ["--reference-column", "text", "--metrics", "diagnosis", "--prompt", "Tom lives here.", "--quiet"]
    assert explain_dataset.main([*base, "--out", str(tmp_path / "out")]) == 0
    made = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))["transforms"]
    assert [each["options"]["prompt"] for each in made] == ["Tom lives here."] * 2


def test_evaluate_takes_arguments_of_generate(clip, config, tmp_path, capsys):
    explained(clip, tmp_path / "saved", config)
    base = ["evaluate", str(tmp_path / "saved"), "--model", "speech2text-en", "--baselines", "none", "--quiet"]
    base += ["--reference", clip["transcript"]]
    clean = []
    for asked in ([], ["--max-new-tokens", "3", "--num-beams", "2"]):
        assert cli.main([*base, "--metrics", "deletion", *asked]) == 0
        found = json.loads((tmp_path / "saved" / "evaluation.json").read_text(encoding="utf-8"))
        clean.append(found["scores"]["spes"]["clean"]["value"])
        assert found.get("generate_kwargs", {}) == ({"num_beams": 2, "max_new_tokens": 3} if asked else {})
    assert clean[0] == 0 < clean[1]  # the text ends too early
    capsys.readouterr()
    assert cli.main([*base, "--metrics", "word_deletion,size", "--num-beams", "2"]) == cli.EXIT_USAGE
    assert "only deletion and insertion write texts" in capsys.readouterr().err


def job(clip, tmp_path) -> Job:
    folder = str(tmp_path / "secret" / "result")
    return Job(clip["path"], "speech2text-en", None, None, "fast", None, 30.0, folder)


def test_the_page_runs_models_as_asked(clip, maps, spread, tmp_path):
    bench = Workbench(Running(device_map=maps["cpu"], dtype="bfloat16", batch_size=2))
    assert bench.model("speech2text-en")[0].dtype == torch.bfloat16 and spread == [{"": "cpu"}]
    worker = Worker(running=Running(device="cpu", autocast="bfloat16"))
    try:
        *_, found = worker.run("a", job(clip, tmp_path))
    finally:
        worker.close()
    assert isinstance(found, Result)
    with zipfile.ZipFile(found.archive) as archive:
        archive.extractall(tmp_path / "out")
    model = Explanation.load(tmp_path / "out" / "explanation").provenance["model"]
    assert (model["autocast"], model["dtype"]) == ("bfloat16", "float32")


def test_app_hands_its_settings_on(monkeypatch, capsys):
    server = pytest.importorskip("spes_hf.app.server", reason="the extra app is not installed: pip install '.[app]'")
    handed = []

    class Ended(Desk):
        def __init__(self, running):
            super().__init__(running)
            handed.append(self._worker._running)
            self.close()
            raise KeyboardInterrupt

    monkeypatch.setattr(server, "Desk", Ended)
    asked = ["--device", "cpu", "--dtype", "bfloat16", "--batch-size", "4", "--autocast", "float16"]
    assert cli.main(["app", *asked]) == cli.EXIT_INTERRUPTED
    assert handed == [Running("cpu", None, "bfloat16", 4, "float16")]
    capsys.readouterr()
    for wrong, message in ((["--device", "gpu0"], "--device is 'gpu0'"), (["--batch-size", "0"], "--batch-size is 0")):
        assert cli.main(["app", *wrong]) == cli.EXIT_USAGE
        assert message in capsys.readouterr().err
