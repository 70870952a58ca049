import copy
import pickle
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from datasets.fingerprint import Hasher  # noqa: E402
from mustc_shape import write_corpus
from settings import pyramid

from spes_hf import ConfigError, Deletion, Explain, Explainer, Explanation, Insertion, Size, load_mustc
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.metrics import summarize
from spes_hf.rows import RowTransform, canonical

FEW = {"num_spectrogram_masks": 6, "num_token_masks": 4}
ENDS = (0.0, 0.5, 1.0)
BITS = ["sound_bits", "text_bits", "bits_per_token", "verdict"]
OTHERS = ["reliability", "reached_length_limit", "error"]
ADDED = ["explanation", "prediction", "tokens", "token_probabilities", *BITS, *OTHERS]


@pytest.fixture(scope="module")
def tiny():
    return load_tiny_model("speech2text-en")


@pytest.fixture(scope="module")
def clips():
    return tiny_clips()[:4]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, clips):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, clips)
    return load_mustc(folder, cache_dir=folder / "cache")


@pytest.fixture(scope="module")
def transform(tiny):
    return Explain(*tiny, pyramid(**FEW))


@pytest.fixture(scope="module")
def rows(corpus, transform):
    return corpus.map(transform)


def table(*audio, **columns):
    """A data set in memory."""
    return datasets.Dataset.from_dict({"audio": list(audio), **columns})


@pytest.fixture
def passes(tiny):
    """Counts the model's passes through the encoder."""
    count = []
    handle = tiny[0].get_encoder().register_forward_hook(lambda *_: count.append(1))
    yield count
    handle.remove()


# From audio to scores -------------------------------------------------------------------------------------------------


def test_rows_hold_what_the_explainer_finds(tiny, corpus, rows):
    assert rows.column_names == [*corpus.column_names, *ADDED]
    explainer = Explainer(*tiny, pyramid(**FEW), progress=False)
    for row in rows:
        direct = explainer(row["audio"], utterance_id=row["id"])
        found = Explanation.from_row(row)
        assert torch.equal(found.raw_audio, direct.raw_audio)
        assert torch.equal(found.audio_saliency, direct.audio_saliency)
        assert torch.equal(found.token_saliency.nan_to_num(-1), direct.token_saliency.nan_to_num(-1))
        assert row["prediction"] == direct.text and row["tokens"] == direct.tokens and row["error"] == ""
        assert row["sound_bits"] == direct.sound_bits.tolist() and row["verdict"] == direct.verdict


def test_the_whole_way_batched_or_not(tiny, rows):
    deletion, insertion = Deletion(*tiny, ENDS), Insertion(*tiny, ENDS)
    one = rows.map(deletion).map(insertion).map(Size())
    many = (
        rows.map(deletion, batched=True, batch_size=3)
        .map(insertion, batched=True, batch_size=1)
        .map(Size(), batched=True)
    )
    assert one.column_names == many.column_names == [*rows.column_names, "deletion", "insertion", "size"]
    scores, again = (summarize(d, references="transcript", samples=50) for d in (one, many))
    assert {"deletion", "insertion", "size_audio", "size_token", "clean"} <= scores.keys()
    assert {n: (s.value, s.signature) for n, s in scores.items()} == {
        n: (s.value, s.signature) for n, s in again.items()
    }
    for a, b, row in zip(one, many, rows, strict=True):
        assert a == b and a["explanation"] == row["explanation"]
        assert a["deletion"] == deletion(row)["deletion"] and a["size"] == Size()(row)["size"]


def test_explain_batched_and_streamed_gives_the_same_bytes(corpus, transform, rows, passes):
    """In processes, too: test_workers.py, which has a time limit."""
    expected = list(rows["explanation"])
    ran = len(passes)
    batched = corpus.map(transform, batched=True, batch_size=3, load_from_cache_file=False)
    assert list(batched["explanation"]) == expected
    assert len(passes) > ran  # not the rows from before, which the cache holds under the same fingerprint
    stream = corpus.to_iterable_dataset(num_shards=2)
    assert [row["explanation"] for row in stream.map(transform)] == expected
    assert [row["explanation"] for row in stream.map(transform, batched=True, batch_size=3)] == expected


def test_plain_rows_and_batches(corpus, transform, rows):
    row = transform(corpus[0])
    assert row.keys() == {*corpus.column_names, *ADDED}
    assert row["explanation"] == rows[0]["explanation"] and row["transcript"] == corpus[0]["transcript"]
    batch = transform(corpus[1:3])
    assert batch.keys() == row.keys() and batch["explanation"] == list(rows[1:3]["explanation"])
    assert Size()({name: list(values) for name, values in rows[1:3].items()})["size"] == [
        Size()(rows[1])["size"],
        Size()(rows[2])["size"],
    ]


def test_masks_depend_on_the_id_not_on_the_place(corpus, transform, rows):
    turned = corpus.select([3, 1]).map(transform)
    assert list(turned["explanation"]) == [rows[3]["explanation"], rows[1]["explanation"]]
    nameless = corpus.remove_columns("id")
    first = nameless.map(transform)
    assert list(nameless.select([3, 1]).map(transform)["explanation"]) == [
        first[3]["explanation"],
        first[1]["explanation"],
    ]
    ids = {Explanation.from_row(row).provenance["utterance_id"] for row in first}
    assert len(ids) == 4 and not ids & set(corpus["id"])


def test_other_names_of_columns_and_other_forms_of_audio(tiny, clips, transform):
    paths = [clip["path"] for clip in clips[:1]]
    samples = [soundfile.read(path, dtype="float32")[0].tolist() for path in paths]
    expected = [transform({"id": str(i), "audio": path})["explanation"] for i, path in enumerate(paths)]
    forms = {
        "paths": paths,
        "bytes": [open(path, "rb").read() for path in paths],
        "dicts": [{"bytes": None, "path": path} for path in paths],
        "samples": samples,
    }
    explain = Explain(*tiny, pyramid(**FEW), audio_column="sound", id_column="name")
    maps = torch.stack([Explanation.from_row({"explanation": e}).raw_audio.mean() for e in expected])
    for kind, audio in forms.items():
        data = datasets.Dataset.from_dict({"sound": audio, "name": ["0"]})
        for batched in (False, True):
            found = data.map(explain, batched=batched)
            assert found["error"][:] == [""], kind
            again = torch.stack([Explanation.from_row(row).raw_audio.mean() for row in found])
            assert torch.allclose(again, maps, atol=1e-6), kind


def test_an_audio_column_is_not_decoded(clips, transform):
    """datasets' own decoder may be missing; the bytes are read by soundfile."""
    data = table(*(clip["path"] for clip in clips[:2]), id=["a", "b"]).cast_column("audio", datasets.Audio())
    assert data.map(transform)["error"][:] == ["", ""]
    assert data.map(transform, batched=True)["error"][:] == ["", ""]


def test_texts_to_explain(tiny, corpus):
    explain = Explain(*tiny, pyramid(**FEW), text_column="transcript")
    row = explain(corpus[1])
    assert row["prediction"] == corpus[1]["transcript"]
    assert Explanation.from_row(row).provenance["output"]["given"]
    assert explain({**corpus[1], "transcript": None})["error"].startswith("ConfigError: text is ''")


def test_wrong_columns_and_options_are_refused_at_once(tiny, corpus, transform):
    with pytest.raises(ConfigError, match="row has no column 'audio'; it has id, sound"):
        transform({"id": 1, "sound": "x.wav"})
    with pytest.raises(ConfigError, match="row has no column 'text'"):
        Explain(*tiny, text_column="text")(corpus[0])
    with pytest.raises(ConfigError, match="tgt_lang is 'deu', but .*; leave tgt_lang out"):
        Explain(*tiny, tgt_lang="deu")
    with pytest.raises(ConfigError, match="seed is 0.5"):
        Explain(*tiny, seed=0.5)


# What fails -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def trouble(tmp_path, clips):
    """Rows of which only the last is well: no file, no audio in it, no samples, too short, NaN."""
    paths = {name: str(tmp_path / f"{name}.wav") for name in ("missing", "corrupt", "empty", "short", "nan")}
    (tmp_path / "corrupt.wav").write_bytes(b"RIFF what is this?")
    soundfile.write(paths["empty"], np.zeros(0), 16_000)
    soundfile.write(paths["short"], np.zeros(20), 16_000)
    soundfile.write(paths["nan"], np.full(16_000, np.nan), 16_000, subtype="FLOAT")
    return table(*paths.values(), clips[0]["path"], id=[*paths, "well"])


@pytest.mark.parametrize(
    "options", [{}, {"batched": True, "batch_size": 1}, {"batched": True}, {"writer_batch_size": 1}]
)
def test_utterances_that_fail_are_rows_with_a_reason(transform, trouble, options):
    found = trouble.map(transform, **options)
    reasons = dict(zip(found["id"], found["error"], strict=True))
    for name, reason in {
        "missing": "AudioError: .* does not exist",
        "corrupt": "AudioError: .* cannot be decoded",
        "empty": "AudioError: audio is empty",
        "short": "AudioError: ",
        "nan": "AudioError: audio .* is NaN or infinite",
    }.items():
        assert re.match(reason, reasons[name]), reasons[name]
    assert reasons["well"] == "" and found[5]["prediction"]
    assert found[0]["explanation"] == b"" and found[0]["tokens"] == [] and found[0]["prediction"] == ""
    expected = transform.features(trouble.features)
    assert {n: str(t).replace("large_", "") for n, t in found.features.items()} == {
        n: str(t).replace("large_", "") for n, t in expected.items()
    }


def test_metrics_pass_over_rows_that_failed(tiny, transform, trouble):
    found = trouble.map(transform).map(Deletion(*tiny, ENDS)).map(Size(), batched=True)
    assert [row["deletion"] is None for row in found] == [row["size"] is None for row in found] == [True] * 5 + [False]
    assert summarize(found, against="prediction", samples=20)["deletion"].num_utterances == 1


def test_features_hold_where_all_of_the_first_rows_fail(tiny, transform, trouble):
    deletion, options = Deletion(*tiny, ENDS), {"writer_batch_size": 1}
    explained = trouble.map(transform, features=transform.features(trouble.features), **options)
    found = explained.map(deletion, features=deletion.features(explained.features), **options)
    found = found.map(Size(), features=Size().features(found.features), **options)
    assert found.features["explanation"].dtype == "large_binary"
    assert found[0]["deletion"] is None and found[5]["deletion"] == deletion(explained[5])["deletion"]
    assert found[5]["size"] == Size()(explained[5])["size"]


def test_a_text_that_a_limit_cut_is_marked(tiny, corpus):
    explain = Explain(*tiny, pyramid(**FEW), generate_kwargs={"max_new_tokens": 3})
    row = explain(corpus[0])
    assert row["reached_length_limit"] and row["error"] == "" and len(row["tokens"]) == 3


def test_a_lost_accelerator_is_no_property_of_an_utterance(tiny, corpus, monkeypatch):
    if not hasattr(torch, "AcceleratorError"):
        pytest.skip("this torch has no such error")
    explain = Explain(*tiny, pyramid(**FEW))

    def lost(*args, **kwargs):
        raise torch.AcceleratorError("device-side assert triggered")

    monkeypatch.setattr(explain.explainer.adapter, "encode", lost)
    with pytest.raises(torch.AcceleratorError):
        explain(corpus[0])


# Fingerprints and pickles ---------------------------------------------------------------------------------------------


def test_an_unchanged_job_comes_from_the_cache(tiny, corpus, passes):
    once = corpus.map(Explain(*tiny, pyramid(**FEW)))
    ran = len(passes)
    again = corpus.map(Explain(*load_tiny_model("speech2text-en"), pyramid(**FEW), batch_size=3))
    assert again.cache_files == once.cache_files and len(passes) == ran
    corpus.map(Explain(*tiny, pyramid(**FEW), seed=1))
    assert len(passes) > ran


def changed(model):
    model = copy.deepcopy(model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    return model


def quieter(model):
    model = copy.deepcopy(model)
    model.generation_config.num_beams = 2
    return model


def test_a_changed_job_does_not(tiny, transform):
    model, processor = tiny
    other = load_tiny_model("seamless-en-de-es")
    different = [
        transform,
        Explain(model, processor, pyramid(**FEW), seed=1),
        Explain(model, processor, pyramid(num_spectrogram_masks=7, num_token_masks=4)),
        Explain(model, processor, pyramid(**FEW, fill="zero")),
        Explain(model, processor, pyramid(**FEW), audio_column="sound"),
        Explain(model, processor, pyramid(**FEW), generate_kwargs={"num_beams": 2}),
        Explain(changed(model), processor, pyramid(**FEW)),
        Explain(quieter(model), processor, pyramid(**FEW)),
        Explain(copy.deepcopy(model).to(torch.bfloat16), processor, pyramid(**FEW)),
        Explain(*other, pyramid(**FEW), tgt_lang="deu"),
        Explain(*other, pyramid(**FEW), tgt_lang="spa"),
        Deletion(model, processor),
        Deletion(model, processor, "fine"),
        Deletion(model, processor, fill="zero"),
        Deletion(model, processor, against="prediction"),
        Deletion(changed(model), processor),
        Insertion(model, processor),
        Size(),
    ]
    hashes = [Hasher.hash(t) for t in different]
    assert len(set(hashes)) == len(hashes)
    assert len({t.fingerprint() for t in different}) == len(different)


def test_what_does_not_change_the_result_does_not_change_the_fingerprint(tiny, corpus, transform):
    model, processor = tiny
    before = Hasher.hash(transform)
    transform(corpus[0])  # the model has run
    assert Hasher.hash(transform) == before
    fresh = Explain(*load_tiny_model("speech2text-en"), pyramid(**FEW), batch_size=2)
    fresh.explainer.adapter.model.config._name_or_path = "elsewhere"
    assert Hasher.hash(fresh) == before
    training = copy.deepcopy(model).train()
    assert Hasher.hash(Explain(training, processor, pyramid(**FEW))) == before
    assert transform.fingerprint(corpus) != transform.fingerprint(corpus.select([0]))
    assert Hasher.hash([transform]) != Hasher.hash([Size()])


def test_another_process_has_the_same_fingerprint(tiny, transform):
    code = """
import datasets
from datasets.fingerprint import Hasher
from settings import pyramid
from spes_hf import Explain
from spes_hf.demo import load_tiny_model
print(Hasher.hash(Explain(*load_tiny_model("speech2text-en"), pyramid(num_spectrogram_masks=6, num_token_masks=4))))
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[1],
        check=True,
    )
    assert result.stdout.strip() == Hasher.hash(transform)


def test_they_can_be_pickled(tiny, corpus, rows, transform):
    for original in (transform, Deletion(*tiny, ENDS), Insertion(*tiny, ENDS), Size()):
        again = pickle.loads(pickle.dumps(original))
        assert type(again) is type(original) and Hasher.hash(again) == Hasher.hash(original)
    again = pickle.loads(pickle.dumps(transform))
    assert again(corpus[0])["explanation"] == rows[0]["explanation"]


class Longer(Size):
    """A subclass of somebody else's, whose code may change under the same name."""

    extra = "…"


def test_a_subclass_from_elsewhere_is_hashed_as_datasets_does():
    from datasets.utils._dill import Pickler

    Longer()
    assert Size in Pickler.dispatch and Longer not in Pickler.dispatch
    assert isinstance(Longer(), RowTransform) and Hasher.hash(Longer()) != Hasher.hash(Size())


def test_identity_is_plain_and_says_what_it_is(transform):
    identity = transform.identity()
    assert identity["transform"] == "spes_hf.corpora.transforms.Explain"
    assert identity["explainer"]["config"]["num_spectrogram_masks"] == 6 and identity["explainer"]["seed"] == 0
    assert "batch_size" not in identity["explainer"] and canonical(identity) == canonical(transform.identity())
