"""Tests of the recipe that compares methods, on a shipped model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from spes_hf import AttentionConfig, BubbleNoiseConfig, CaptumConfig, EnergyConfig, SpesConfig
from spes_hf.demo import tiny_clips
from spes_hf.errors import ConfigError

RECIPE = Path(__file__).parents[2] / "recipes" / "compare_methods.py"
FEW = ["--num-masks", "12", "--num-token-masks", "6", "--fractions", "0", "0.1", "0.2", "1", "--quiet"]


def test_a_name_and_its_settings_become_a_config(recipe: ModuleType) -> None:
    spes = recipe.method("SPES:fill=zero,patches_per_second=20/80/400,max_duration_s=None", "asr", {})
    assert spes == SpesConfig.paper("asr", fill="zero", patches_per_second=(20, 80, 400), max_duration_s=None)
    assert recipe.method("SPES", "st", {"num_spectrogram_masks": 7}).max_duration_s == 5.0
    bubbles = recipe.method("bubble noise", "asr", {"num_spectrogram_masks": 7})
    assert isinstance(bubbles, BubbleNoiseConfig) and bubbles.num_spectrogram_masks == 7
    energy = recipe.method("energy", "asr", {"num_spectrogram_masks": 7, "num_token_masks": 3})
    assert energy == EnergyConfig()
    attention = recipe.method("attention:energy=False,heads=alignment", "asr", {"num_spectrogram_masks": 7})
    assert attention == AttentionConfig(energy=False, heads="alignment")
    gradient = recipe.method("input x gradient:num_token_masks=5", "asr", {"num_spectrogram_masks": 7})
    assert gradient == CaptumConfig(attribution="input_x_gradient", num_token_masks=5)


@pytest.mark.parametrize("name", ["SPEZ", "SPES:fill", "SPES:no_such_field=3", "SPES:fill=maximum"])
def test_an_unknown_name_or_setting_is_refused(recipe: ModuleType, name: str) -> None:
    with pytest.raises(ConfigError, match=name.partition(":")[2].partition("=")[0] or "SPEZ"):
        recipe.method(name, "asr", {})


def test_every_preset_names_methods_that_exist(recipe: ModuleType) -> None:
    for names in recipe.PRESETS.values():
        for name in names:
            assert recipe.method(name, "asr", {"num_spectrogram_masks": 9}).num_spectrogram_masks in (0, 9)


def test_table_json_and_curves_are_written_and_nothing_is_measured_twice(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--model", "speech2text-en", "--max-utterances", "2", "--out", str(tmp_path), *FEW]
    few = [*base, "--methods", "SPES", "random", "--judge-fill", "mean", "min"]
    assert recipe.main([*few, "--share", "1/2"]) == 0
    assert "2 of 4 measurements are left" in capsys.readouterr().out
    kept = sorted((tmp_path / "rows").glob("*/*.json"))
    times = [path.stat().st_mtime_ns for path in kept]
    assert len(kept) == 2

    assert recipe.main(few) == 0
    assert [path.stat().st_mtime_ns for path in kept] == times
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert text.count("| SPES |") == 2 and 'become the "min"' in text
    result = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    judged = result["judged"]["mean"]["SPES"]
    assert judged["cost"]["forward_passes"] == 3 + 12 + 6
    assert -1 <= judged["cost"]["reliability"] <= 1
    low, high = judged["scores"]["deletion"]["interval"]
    assert low <= judged["scores"]["deletion"]["value"] <= high
    assert result["judged"]["mean"]["differences"]["random"]["size_audio"]["interval"]
    for fill in ("mean", "min"):
        assert (tmp_path / f"deletion_{fill}.png").stat().st_size > 5_000
    assert not list(tmp_path.rglob("*.part"))


def test_the_first_fifth_is_the_curve_cut_there(recipe: ModuleType, tmp_path: Path) -> None:
    arguments = ["--model", "speech2text-en", "--max-utterances", "1", "--out", str(tmp_path), *FEW]
    assert recipe.main([*arguments, "--methods", "energy"]) == 0
    scores = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["judged"]["mean"]["energy"]["scores"]
    whole, first = scores["deletion_probability"]["curve"], scores["deletion_probability_first"]["curve"]
    assert first["x"] == [0.0, 0.1, 0.2] and first["y"] == whole["y"][:3]
    by_hand = (first["y"][0] / 2 + first["y"][1] + first["y"][2] / 2) * 0.1 / 0.2
    assert scores["deletion_probability_first"]["value"] == pytest.approx(by_hand)


def test_maps_of_words_are_judged_when_asked_for(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--model", "speech2text-en", "--max-utterances", "1", "--methods", "random", "energy", *FEW]
    assert recipe.main([*base, "--words", "2", "--out", str(tmp_path)]) == 0
    header = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| method"))
    assert "a word's probability, its first 5 % deleted ↓" in header and "a word's probability, insertion ↑" in header
    result = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["judged"]["mean"]
    assert {"word_deletion", "word_specificity", "word_margin", "word_insertion"} <= result["energy"]["scores"].keys()
    assert "words:2|max-words:2" in result["energy"]["scores"]["word_deletion"]["signature"]
    assert "word_deletion" in result["differences"]["energy"]
    assert (tmp_path / "word_deletion.png").stat().st_size > 5_000
    assert recipe.main([*base, "--words", "0", "--out", str(tmp_path)]) == 1
    assert "--words is 0; pass a number of at least 1" in capsys.readouterr().err


def test_a_recording_that_cannot_be_read_is_counted_and_stops_nothing(recipe: ModuleType, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    clip = tiny_clips()[0]
    shutil.copy(clip["path"], data / "good.flac")
    (data / "bad.flac").write_bytes(b"no audio")
    lines = [{"id": name, "file": f"{name}.flac", "text": clip["transcript"]} for name in ("good", "bad")]
    (data / "manifest.jsonl").write_text("\r\n".join(map(json.dumps, lines)), encoding="utf-8-sig", newline="")
    arguments = ["--model", "speech2text-en", "--data", str(data), "--out", str(tmp_path / "out"), *FEW]
    assert recipe.main([*arguments, "--methods", "random"]) == 0
    result = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert result["judged"]["mean"]["random"]["cost"]["failed"] == 1
    assert result["judged"]["mean"]["random"]["cost"]["reliability"] is None


def test_bad_arguments_are_named(recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--model", "speech2text-en", "--out", str(tmp_path)]
    for arguments, named in (
        ([], "--methods and --preset"),
        (["--methods", "random", "--ids", "nobody"], "--ids has 'nobody'"),
        (["--methods", "random", "--share", "half"], "--share is 'half'"),
        (["--methods", "random", "--reference-column", "gist"], "has no 'gist'"),
    ):
        assert recipe.main([*base, *arguments]) == 1
        assert named in capsys.readouterr().err


def test_an_unknown_metric_is_refused_first(recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--model", "speech2text-en", "--methods", "random", "--out", str(tmp_path / "out")]
    assert recipe.main([*arguments, "--metric", "bleu:klingon"]) == 1
    assert "tokenize is 'klingon'" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_file_is_a_method(recipe: ModuleType, tmp_path: Path) -> None:
    SpesConfig(num_token_masks=9).to_json(tmp_path / "mine.json")
    found = recipe.method(f"{tmp_path / 'mine.json'}:masks_per_token=8", "asr", {"num_spectrogram_masks": 10})
    assert found == SpesConfig(num_spectrogram_masks=10, num_token_masks=9, masks_per_token=8)
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        recipe.method(str(tmp_path / "none.json"), "asr", {})
