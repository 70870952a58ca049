"""Damaged files end in an object that can be used or in an error of ours: the fuzzer's cases, and each kind by hand."""

import hashlib
import json
import subprocess
import sys
import tempfile
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fuzz_cases import KINDS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, load_file, save, save_file
from test_storage import assert_same, make

from spes_hf import ConfigError, Explanation, ExplanationFormatError, SpesError
from spes_hf.analysis.alignments import AlignmentError, read_alignment
from spes_hf.explanation import packing
from spes_hf.explanation.packing import pack, unpack
from spes_hf.explanation.soundness import check_sound
from spes_hf.explanation.storage import DESCRIPTION, _checksum
from spes_hf.jobs import job, shards
from spes_hf.jobs.shards import ShardError, read_finished

FUZZ = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured through /proc")
def test_random_damage_ends_in_an_object_or_an_error_of_ours(tmp_path):
    """A few seconds of what benchmarks/fuzz.py runs for long."""
    command = [sys.executable, str(FUZZ), "--seconds", "6", "--cases", "60", "--out", str(tmp_path / "fuzz.json")]
    run = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=240, check=False)
    found = json.loads((tmp_path / "fuzz.json").read_text())
    assert run.returncode == 0, found
    assert found["total"]["fault"] == 0 and found["total"]["refused"] > 0 and found["total"]["object"] > 0
    assert all(kind["cases"] >= 10 for kind in found["kinds"].values())


@pytest.mark.parametrize("kind", ["row", "manifest", "alignment", "segments", "textgrid"])
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(rng=st.randoms(use_true_random=False))
def test_damage_that_hypothesis_draws_ends_in_an_object_or_an_error_of_ours(tmp_path, kind, rng):
    """The same cases with what hypothesis draws, which shrinks what it finds to the least damage."""
    with suppress(SpesError), tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        KINDS[kind](rng, Path(folder))


def rewritten(folder, change=lambda description: None, tensors=None):
    """Change a saved explanation and make its checksums right again."""
    description = json.loads((folder / DESCRIPTION).read_bytes())
    file = folder / description["tensors"]
    if tensors is not None:
        save_file(tensors(load_file(file)), file)
        description["tensors_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    change(description)
    description.pop("sha256")
    description["sha256"] = _checksum(description)
    (folder / DESCRIPTION).write_text(json.dumps(description))
    return folder


def refused(folder, why):
    with pytest.raises(ExplanationFormatError, match=why):
        Explanation.load(folder)


@pytest.fixture
def saved(tmp_path):
    return make().save(tmp_path / "clip")


@pytest.mark.parametrize("value", [-1, 7, 2**31 - 1])
def test_labels_outside_of_the_patches_are_refused(saved, value):
    def spoil(tensors):
        tensors["audio.labels"][0, 3, 2] = value
        return tensors

    refused(rewritten(saved, tensors=spoil), "labels of audio_map, level 0, lie outside its 7 patches")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])
@pytest.mark.parametrize("part", ["numerator", "denominator"])
def test_scores_and_counts_that_make_no_number_are_refused(saved, part, value):
    def spoil(tensors):
        tensors[f"audio.{part}.1"].view(-1)[1] = value
        return tensors

    refused(rewritten(saved, tensors=spoil), "(scores|counts) of audio_map are")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("features", torch.zeros(0, 4), "features have shape"),
        ("features", torch.zeros(24), "features have shape"),
        ("times", torch.arange(5.0), "times is .* of shape"),
        ("times", torch.full((6,), torch.nan), "times has values that are not finite"),
        ("probabilities", torch.zeros(5, dtype=torch.int64), "probabilities is torch.int64"),
        ("audio.numerator.0", torch.zeros(0, 10**12), "audio.numerator.0 has shape"),
        ("audio.numerator.0", torch.zeros(5), "audio.numerator.0 has shape"),
        ("audio.denominator.1", torch.zeros(2), "audio_map, level 1, counts"),
        ("waveform", torch.zeros(0, dtype=torch.int16), "waveform is"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(saved, name, value, why):
    refused(rewritten(saved, tensors=lambda tensors: {**tensors, name: value}), why)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("pieces", ["a"], "token_id_list is not 1"),
        ("pieces", [], "pieces is not 1"),
        ("pieces", 7, "TypeError|pieces"),
        ("token_id_list", [1, 2, 3, 4, 10**30], "not ids"),
        ("token_id_list", [1, 2, 3, 4, True], "token_id_list"),
        ("special", [0, 0, 0, 0, 1], "special"),
        ("prefix_length", -1, "prefix_length"),
        ("prefix_length", 2, "prefix_length"),
        ("sampling_rate", 0, "sampling_rate"),
        ("sampling_rate", 10**12, "sampling_rate"),
        ("groups", [[0, 1]], "groups and context_groups"),
        ("provenance", [], "provenance is not a mapping"),
        ("provenance", {"output": 3}, "provenance.output"),
        ("provenance", {"cost": {"seconds": "long"}}, "provenance.cost"),
        ("provenance", {"audio": {"notes": 5}}, "provenance.audio.notes"),
        ("reliability_of_sentence", [], "TypeError"),
        ("text", None, "text is not a string"),
    ],
)
def test_values_that_do_not_fit_are_refused(saved, name, value, why):
    refused(rewritten(saved, lambda description: description.update({name: value})), why)


@pytest.mark.parametrize("groups", [[[]], [[9]], [[-1]], [["x"]], [0], {}])
def test_groups_that_are_none_are_refused(saved, groups):
    refused(rewritten(saved, lambda d: d.update(groups=groups, context_groups=[[0]])), "groups")
    folder = rewritten(saved, lambda d: d.update(groups=[[0], [1, 2]], context_groups=groups))
    refused(folder, "context_groups")


def test_whole_explanations_pass(saved):
    for whole in (make(), make().words(), make(provenance={})):
        assert check_sound(whole) is whole
    assert_same(Explanation.load(saved), make())


@pytest.mark.parametrize(
    "name", ["/dev/zero", "../other.safetensors", "", 7, None, "a\0b", "explanation-../x.safetensors"]
)
def test_only_a_file_of_the_folder_is_read(saved, name):
    refused(rewritten(saved, lambda description: description.update(tensors=name)), "as the file of its tensors")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, '{"format": NaN}', '{"a": ' + "9" * 5_000 + "}"])
def test_json_that_python_cannot_take_is_refused(saved, content, tmp_path):
    (saved / DESCRIPTION).write_text(content)
    refused(saved, "is not JSON")
    (tmp_path / "data").mkdir()
    (tmp_path / job.MANIFEST).write_text(content)
    with pytest.raises(ConfigError, match="damaged|another job"):
        job.claim_folder(tmp_path, {"rows": 3})
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(AlignmentError):
        read_alignment(tmp_path / "a.json")


def repacked(change):
    """Return bytes of a row after a change of its header and tensors."""
    packed = pack(make())
    length = int.from_bytes(packed[:8], "little")
    header = json.loads(json.loads(packed[8 : 8 + length])["__metadata__"][packing.KEY])
    tensors = load(packed)
    change(header, tensors)
    return save(tensors, metadata={packing.KEY: json.dumps(header)})


def test_labels_that_inflate_to_more_than_they_promise_are_refused():
    bomb = torch.frombuffer(bytearray(zlib.compress(bytes(300_000_000), 9)), dtype=torch.uint8)
    assert len(bomb) < 400_000
    with pytest.raises(ExplanationFormatError, match="do not inflate to 288 bytes"):
        unpack(repacked(lambda header, tensors: tensors.update({"audio.labels": bomb})))


@pytest.mark.parametrize("shape", [[10**9, 6, 4], [-3, 6, 4], [3, 4, 6], [3, 24], "abc", [None, 6, 4], [3.0, 6, 4]])
def test_labels_of_another_shape_are_refused(shape):
    with pytest.raises(ExplanationFormatError, match="damaged"):
        unpack(repacked(lambda header, tensors: header["labels"].update({"audio.labels": shape})))
    assert_same(unpack(repacked(lambda header, tensors: None)), make())


def shard(tmp_path, **columns):
    (tmp_path / shards.FOLDER).mkdir()
    pq.write_table(pa.table(columns), tmp_path / shards.FOLDER / "00000-abc-2.parquet")
    return tmp_path


@pytest.mark.parametrize(
    "columns",
    [
        {"row_index": [0, 1]},
        {"error": [None, "x"]},
        {"row_index": [0, None], "error": [None, "x"]},
        {"row_index": ["0", "1"], "error": [None, "x"]},
        {"row_index": [0, 1], "error": [None, 5]},
        {"row_index": np.zeros(10**6, dtype=np.int64), "error": pa.nulls(10**6, pa.string())},
    ],
)
def test_shards_with_other_columns_or_too_many_rows_are_refused(tmp_path, columns):
    with pytest.raises(ShardError, match="cannot be read: it.*Delete it and start the job again to recompute its rows"):
        read_finished(shard(tmp_path, **columns))


def test_shard_whose_text_is_no_text_is_refused(tmp_path):
    broken = pa.array([b"\xff\xfe", b"ok"]).view(pa.string())
    with pytest.raises(ShardError, match="cannot be read"):
        read_finished(shard(tmp_path, row_index=[0, 1], error=broken))


@pytest.mark.parametrize(
    "word",
    [
        {"word": "a", "start": 10**400, "end": 1},
        {"word": "a", "start": 0, "end": 1, "phones": 5},
        {"word": "a", "start": 0, "end": 1, "phones": [{"phone": "s", "duration": "x"}]},
        {"word": "a", "start": 0, "end": 1, "phones": [{"phone": "s", "duration": 10**400}]},
        {"word": "a", "start": 0, "end": float("nan")},
    ],
)
def test_alignments_with_numbers_that_are_none_are_refused(tmp_path, word):
    (tmp_path / "a.json").write_text(json.dumps([word]))
    with pytest.raises(AlignmentError):
        read_alignment(tmp_path / "a.json")


@pytest.mark.parametrize("number", ["1e999", "9" * 400])
def test_textgrid_with_a_number_that_is_too_large_is_refused(tmp_path, number):
    text = f'"ooTextFile" "TextGrid" 0 1 <exists> {number} "IntervalTier" "words" 0 1 1 0 1 "so"'
    (tmp_path / "a.TextGrid").write_text(text)
    with pytest.raises(AlignmentError, match="too large"):
        read_alignment(tmp_path / "a.TextGrid")


def test_surrogates_of_every_kind_can_be_shown():
    odd = make(pieces=(" \ud800", " \udbff\udc00", "\udcc3", "\udca9", "</s>"), text="\ud800 x")
    assert odd.words().tokens and "\ud800" not in "".join(odd.tokens)
    assert replace(odd, provenance={"audio": {"source": "\ud800"}})._repr_html_()
