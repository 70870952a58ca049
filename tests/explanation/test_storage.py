import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spes_hf import Explanation, ExplanationFormatError
from spes_hf.explanation import PatchMap, Reliability, storage
from spes_hf.scoring.eq3 import weighted_mean

NAN = float("nan")
PUBLIC = (
    "text tokens token_ids token_probabilities context_tokens over_words raw_audio raw_token audio_saliency "
    "token_saliency sentence_saliency sound_bits text_bits features times frequencies pieces context_pieces special "
    "prefix_length probabilities text_impact waveform sampling_rate provenance groups context_groups "
    "sound_impact method text_given reached_length_limit generation"
).split()


def make(seed=0, **changes):
    """Random maps over two levels of which the second has no masks; the last character comes in two tokens."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(shape, generator=generator)

    order = torch.arange(5) < (1 + torch.arange(5))[:, None]
    labels = torch.stack([torch.randint(0, n, (6, 4), generator=generator) for n in (7, 3, 5)])
    values = dict(
        text=f"Ein Café {seed}",
        pieces=(" Ein", " Caf", "\udcc3", "\udca9", "</s>"),
        token_id_list=(5, 6, 7, 8, 2),
        context_pieces=("<s>", " Ein", " Caf", "\udcc3", "\udca9"),
        special=(False, False, False, False, True),
        prefix_length=1,
        probabilities=rand(5),
        features=rand(6, 4) * 3 - 1,
        times=torch.arange(6) * 0.01 + 0.005,
        frequencies=rand(4) * 8_000,
        audio_map=PatchMap.of(labels, (rand(5, 7), rand(5, 3)), (rand(7) * 9, torch.tensor([0.0, 1, 2]))),
        raw_token_scores=rand(5, 5).masked_fill(~order, NAN),
        text_impact=rand(5),
        token_sound_bits=torch.full((5,), NAN),
        token_text_bits=torch.full((5,), NAN),
        token_reliability=Reliability(torch.tensor([0.5, NAN, -0.1, 1.0, 0.9]), 0.123456789012345),
        waveform=torch.randint(-32_767, 32_768, (160,), generator=generator) / 32_767,
        sampling_rate=16_000,
        provenance={"config": {"method": "spes", "fill": "mean"}, "seed": 3, "audio": {"source": "größe \udcc3.wav"}},
    )
    values |= changes
    patches = values["audio_map"]
    unknown = torch.full((5,), NAN)
    values.setdefault(
        "sound_impact", unknown if patches.weights is None else weighted_mean(patches.values, patches.weights)
    )
    return Explanation(**values)


def assert_same(one, other):
    for name in PUBLIC:
        a, b = getattr(one, name), getattr(other, name)
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype, name
            assert a.shape == b.shape, name
            assert torch.equal(a.nan_to_num(nan=-77.0), b.nan_to_num(nan=-77.0)), name
        else:
            assert type(a) is type(b), name
            assert a == b, name
    for name in ("audio_map", "sentence_map"):
        assert_same_map(getattr(one, name), getattr(other, name))
    assert torch.equal(one.time_centroids(), other.time_centroids())
    assert torch.equal(one.reliability.tokens.nan_to_num(nan=-77.0), other.reliability.tokens.nan_to_num(nan=-77.0))
    a, b = one.reliability.sentence, other.reliability.sentence
    assert a == b or (math.isnan(a) and math.isnan(b))
    assert repr(one) == repr(other)


def assert_same_map(one, other):
    if one is None or other is None:
        assert one is other
        return
    assert one.labels.dtype == other.labels.dtype and torch.equal(one.labels, other.labels)
    assert (one.weights is None) == (other.weights is None)
    for a, b in ((one.values, other.values), (one.weights or (), other.weights or ())):
        assert len(a) == len(b)
        assert all(torch.equal(level, same) for level, same in zip(a, b, strict=True))


def with_sentence_map(seed=0):
    """What the gradient estimator leaves: a map of the sentence next to those of the tokens, and impacts on their own.

    Its scores are of either sign, and its patches are others than those of the tokens.
    """
    generator = torch.Generator().manual_seed(100 + seed)
    labels = torch.stack([torch.randint(0, n, (6, 4), generator=generator) for n in (4, 9)])
    scores = tuple(torch.randn(1, n, generator=generator) for n in (4, 9))
    impact = torch.rand(5, generator=generator)
    bits = {name: torch.randn(5, generator=generator) for name in ("token_sound_bits", "token_text_bits")}
    return make(seed, sentence_map=PatchMap.of(labels, scores), sound_impact=impact, **bits)


@pytest.fixture
def saved(tmp_path):
    return make().save(tmp_path / "clip")


# There and back ------------------------------------------------------------------------------------------------------


def test_round_trip_bit_for_bit(tmp_path):
    ex = make()
    folder = ex.save(tmp_path / "deep" / "clip")
    assert folder == tmp_path / "deep" / "clip"
    assert_same(ex, Explanation.load(folder))
    assert_same(ex, Explanation.load(str(folder)))
    assert_same(ex.words(), Explanation.load(folder).words())


def test_round_trip_over_words(tmp_path):
    words = make().words()
    assert words.tokens == [" Ein", " Café"]
    back = Explanation.load(words.save(tmp_path / "clip"))
    assert back.over_words
    assert_same(words, back)
    assert back.words() is back


def test_round_trip_with_a_map_of_the_sentence(tmp_path):
    ex = with_sentence_map()
    back = Explanation.load(ex.save(tmp_path / "clip"))
    assert_same(ex, back)
    assert_same(ex.words(), back.words())
    words = Explanation.load(ex.words().save(tmp_path / "words"))
    assert_same(ex.words(), words)
    for other in (back, words):
        assert torch.equal(other.sentence_map.dense(0), ex.sentence_map.dense(0))
        assert torch.equal(other.sentence_saliency, ex.sentence_saliency)
        assert not torch.allclose(other.sentence_saliency, make().sentence_saliency, atol=0.05)
    assert torch.equal(back.sound_bits, ex.sound_bits) and back.sound_bits.isfinite().all()


@pytest.mark.parametrize("missing", [{"sentence_map": None}, {"sound_impact": torch.full((5,), NAN)}])
def test_either_addition_may_be_missing(tmp_path, missing):
    ex = replace(with_sentence_map(), **missing)
    assert_same(ex, Explanation.load(ex.save(tmp_path / "clip")))


def test_impacts_of_sound_that_the_sums_do_not_tell_are_kept(tmp_path):
    ex = make(sound_impact=torch.full((5,), NAN))
    assert_same(ex, Explanation.load(ex.save(tmp_path / "clip")))


def test_without_additions_the_folder_is_what_it_was(tmp_path):
    """Byte for byte: what older code wrote is read, and what has no additions is written as older code wrote it."""
    old = Path(__file__).parents[1] / "conformance" / "explanation_v1"
    assert_same(make(), Explanation.load(old))
    new = make().save(tmp_path / "clip")
    assert names(new) == names(old)
    assert tensors_of(new).read_bytes() == tensors_of(old).read_bytes()
    assert Explanation.load(old).sentence_map is None


def test_saving_over_a_map_of_the_sentence_leaves_none(tmp_path):
    folder = with_sentence_map().save(tmp_path / "clip")
    assert_same(make(), Explanation.load(make().save(folder)))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def tensors_of(folder):
    (path,) = folder.glob("*.safetensors")
    return path


def test_saving_again_gives_the_same_bytes(tmp_path):
    first = make().save(tmp_path / "one")
    second = Explanation.load(first).save(tmp_path / "two")
    for name in names(first):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_the_folder_holds_two_files_and_either_may_be_named(saved):
    assert len(names(saved)) == 2
    for name in names(saved):
        assert_same(make(), Explanation.load(saved / name))


def test_reliability_that_is_not_a_number(tmp_path):
    ex = make(token_reliability=Reliability(torch.full((5,), NAN), NAN))
    assert_same(ex, Explanation.load(ex.save(tmp_path / "clip")))


def test_parts_of_characters_survive(saved):
    back = Explanation.load(saved)
    assert back.pieces[2:4] == ("\udcc3", "\udca9")
    assert back.provenance["audio"]["source"] == "größe \udcc3.wav"


@pytest.mark.parametrize(
    ("samples", "kind", "size"),
    [
        (torch.arange(-32767, 32768) / 32767, "waveform", 2),
        (torch.arange(-32768, 32768) / 32768, "waveform.pcm16", 2),
        (torch.tensor([-(2**23), -1, 0, 1, 255, 256, 2**23 - 1]) / 2**23, "waveform.pcm24", 3),
        (torch.tensor([-2.0, -1.0, -0.3, 0.0, 1e-6, 0.7, 1.0, 2.0]), "waveform.float32", 4),  # loud, and in between
        (torch.tensor([-0.0, 0.5]), "waveform.float32", 4),
        (torch.tensor([1.0, 2**-23]), "waveform.float32", 4),  # no 24 bits hold 1.0
        (torch.tensor([1e-42, -1e-30]), "waveform.float32", 4),
    ],
)
def test_waveform_keeps_every_bit_in_the_fewest_bytes(tmp_path, samples, kind, size):
    folder = make(waveform=samples).save(tmp_path / "clip")
    (stored,) = [t for name, t in load_file(tensors_of(folder)).items() if name.startswith("waveform")]
    assert kind in load_file(tensors_of(folder)) and stored.nbytes == size * len(samples)
    for back in (Explanation.load(folder).waveform, Explanation.from_row(make(waveform=samples).to_row()).waveform):
        assert back.dtype == torch.float32
        assert torch.equal(back.view(torch.int32), samples.view(torch.int32))


def test_tensors_that_are_views_are_written(tmp_path):
    base = torch.rand(4, 6)
    ex = make(features=base.T, times=base.flatten()[:6])
    assert_same(ex, Explanation.load(ex.save(tmp_path / "clip")))


def test_fewer_levels_with_masks_than_levels(saved):
    back = Explanation.load(saved)
    assert back.audio_map.labels.shape[0] == 3
    assert len(back.audio_map.values) == 2


def test_many_levels_keep_their_order(tmp_path):
    labels = torch.zeros(12, 6, 4, dtype=torch.long)
    scores = (tuple(torch.full((5, 1), float(i)) for i in range(12)), tuple(torch.ones(1) for _ in range(12)))
    ex = make(audio_map=PatchMap.of(labels, *scores))
    back = Explanation.load(ex.save(tmp_path / "clip"))
    assert [float(n[0, 0]) for n in back.audio_map.values] == list(range(12))


def test_sentence_map_and_impact_of_sound_survive(tmp_path):
    generator = torch.Generator().manual_seed(7)
    labels = torch.stack([torch.randint(0, n, (6, 4), generator=generator) for n in (2, 8)])
    scores = ((torch.rand(1, 2), torch.rand(1, 8)), (torch.ones(2), torch.full((8,), 3.0)))
    ex = make(sentence_map=PatchMap.of(labels, *scores), sound_impact=torch.rand(5))
    back = Explanation.load(ex.save(tmp_path / "clip"))
    assert_same(ex, back)
    assert_same(ex.words(), back.words())
    assert not torch.equal(back.sentence_saliency, make().sentence_saliency)
    for ours, theirs in zip(
        (ex.sentence_map.labels, *ex.sentence_map.values, *ex.sentence_map.weights),
        (back.sentence_map.labels, *back.sentence_map.values, *back.sentence_map.weights),
        strict=True,
    ):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def by_feature(rows=1):
    """A map with a value for each feature."""
    labels = torch.arange(24)
    values = torch.randn(rows, 24, generator=torch.Generator().manual_seed(7))
    return PatchMap.of(labels.view(1, 6, 4), (values,))


def test_what_goes_without_saying_is_not_written(tmp_path):
    """Labels of features that are units of their own, and denominators of 1."""
    ex = make(sentence_map=by_feature())
    folder = ex.save(tmp_path / "clip")
    written = {name: value for name, value in load_file(tensors_of(folder)).items() if name.startswith("sentence")}
    assert written.keys() == {"sentence.labels", "sentence.numerator.0"} and not written["sentence.labels"].numel()
    assert_same(ex, Explanation.load(folder))
    whole = make(audio_map=by_feature(5))
    assert load_file(tensors_of(whole.save(tmp_path / "audio")))["audio.labels"].shape == (0, 6, 4)
    assert torch.equal(Explanation.load(tmp_path / "audio").audio_map.labels, whole.audio_map.labels)


@pytest.mark.parametrize("labels", [torch.arange(24) % 5, torch.arange(24).flip(0)])
def test_a_sentence_map_of_one_level_of_patches_survives(tmp_path, labels):
    units = int(labels.max()) + 1
    ex = make(sentence_map=PatchMap.of(labels.view(1, 6, 4), (torch.arange(float(units))[None],)))
    assert_same(ex, Explanation.load(ex.save(tmp_path / "clip")))


def test_explanations_without_a_sentence_map_are_written_as_ever(saved):
    written = load_file(tensors_of(saved))
    assert not [name for name in written if name.startswith("sentence") or name == "audio_mean_impact"]
    back = Explanation.load(saved)
    assert back.sentence_map is None and torch.equal(back.sound_impact, make().sound_impact)


def test_provenance_of_a_config_survives(tmp_path):
    from spes_hf import SpesConfig

    ex = make(provenance={"config": SpesConfig.paper("st").to_dict()})
    back = Explanation.load(ex.save(tmp_path / "clip"))
    assert SpesConfig.from_dict(back.provenance["config"]) == SpesConfig.paper("st")


# What is refused -----------------------------------------------------------------------------------------------------


def refused(path, *words):
    with pytest.raises(ExplanationFormatError) as caught:
        Explanation.load(path)
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    for word in words:
        assert word in message
    return message


def edit(folder, **changes):
    path = folder / storage.DESCRIPTION
    description = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in description.items() if v is not KeyError}))


def test_nothing_there(tmp_path):
    refused(tmp_path / "nowhere", "nowhere", "Explanation.save()")


def test_empty_folder(tmp_path):
    refused(tmp_path, storage.DESCRIPTION)


def test_missing_tensors(saved):
    name = tensors_of(saved).name
    tensors_of(saved).unlink()
    refused(saved, "damaged", name)


def test_missing_description(saved):
    (saved / storage.DESCRIPTION).unlink()
    refused(saved, storage.DESCRIPTION)


def test_folder_of_another_library(tmp_path):
    save_file({"w": torch.zeros(1)}, tmp_path / "explanation-0.safetensors")
    (tmp_path / storage.DESCRIPTION).write_text('{"architectures": []}')
    refused(tmp_path, "was not written by Explanation.save()")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe\x00", b'"spes_hf.explanation"'])
def test_description_that_is_no_description(saved, content):
    (saved / storage.DESCRIPTION).write_bytes(content)
    refused(saved, str(saved))


@pytest.mark.parametrize("version", [5, 0, "1", None])
def test_other_format_version(saved, version):
    edit(saved, format_version=version)
    refused(saved, f"format version {version!r}", "reads 1 to 4")


def test_truncated_tensors(saved):
    path = tensors_of(saved)
    path.write_bytes(path.read_bytes()[:-8])
    refused(saved, "damaged", path.name)


def test_one_bit_of_the_tensors_changed(saved):
    path = tensors_of(saved)
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(bytes(raw))
    refused(saved, "damaged", path.name)


def test_tensors_of_another_explanation(saved, tmp_path):
    other = make(seed=1).save(tmp_path / "other")
    os.replace(tensors_of(other), tensors_of(saved))
    refused(saved, "damaged")


@pytest.mark.parametrize(
    "name", ["text", "pieces", "groups", "provenance", "prefix_length", "tensors_sha256", "reliability_of_sentence"]
)
def test_description_that_lacks_a_field(saved, name):
    edit(saved, **{name: KeyError})
    refused(saved, "damaged")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"text": "Another text"}, id="text"),
        pytest.param({"pieces": [" Zwei", " Caf", "\udcc3", "\udca9", "</s>"]}, id="a token"),
        pytest.param({"pieces": [" Ein"]}, id="fewer tokens"),
        pytest.param({"pieces": 3}, id="tokens of another type"),
        pytest.param({"prefix_length": 4}, id="prefix"),
        pytest.param({"reliability_of_sentence": 0.99}, id="reliability"),
        pytest.param({"groups": [[0], [99]], "context_groups": [[0]]}, id="words out of range"),
    ],
)
def test_edited_description(saved, changes):
    edit(saved, **changes)
    refused(saved, "damaged")


def test_saving_over_a_file(tmp_path):
    path = tmp_path / "clip"
    path.write_text("mine")
    with pytest.raises(ExplanationFormatError, match="clip.*is a file"):
        make().save(path)
    assert path.read_text() == "mine"


# Interrupted ---------------------------------------------------------------------------------------------------------


class PowerCut(BaseException):
    pass


def operations(monkeypatch, fail_at):
    """Make the n-th write or replacement fail; return the names of those that were done."""
    done = []
    sync, replace = os.fsync, os.replace

    def checked(name, action):
        if len(done) == fail_at:
            raise PowerCut
        done.append(name)
        return action()

    def half_write(file):
        if len(done) == fail_at:
            os.ftruncate(file, os.fstat(file).st_size // 2)
        return checked("write", lambda: sync(file))

    monkeypatch.setattr(os, "fsync", half_write)
    monkeypatch.setattr(os, "replace", lambda a, b: checked("replace", lambda: replace(a, b)))
    return done


def test_interrupted_first_save_leaves_no_explanation(tmp_path, monkeypatch):
    for step in range(3):
        with monkeypatch.context() as patch:
            operations(patch, step)
            with pytest.raises(PowerCut):
                make().save(tmp_path / str(step))
        refused(tmp_path / str(step))
        assert not [p for p in (tmp_path / str(step)).iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("step", range(4))
def test_interrupted_save_leaves_the_old_explanation(saved, monkeypatch, step):
    with monkeypatch.context() as patch:
        operations(patch, step)
        with pytest.raises(PowerCut):
            make(seed=1).save(saved)
    assert_same(make(), Explanation.load(saved))


def test_saving_over_an_explanation_replaces_it(saved):
    make(seed=1).save(saved)
    assert_same(make(seed=1), Explanation.load(saved))
    assert len(names(saved)) == 2
