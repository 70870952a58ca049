import copy
import importlib.util
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from spes_hf import ConfigError, Deletion, EnergyConfig, Explanation, Insertion, explain
from spes_hf.adapters import GenerationOptions
from spes_hf.audio.load import Waveform
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.metrics import FINE_FRACTIONS, PAPER_FRACTIONS, summarize
from spes_hf.metrics.deletion import check_fractions
from spes_hf.runtime.preserve import leave_unchanged

ENDS = (0.0, 0.5, 1.0)
SHORT = {"max_new_tokens": 6}


# Which features go, in which order ------------------------------------------------------------------------------------


def test_ties_go_in_order_of_time_then_frequency(small_whisper):
    saliency = torch.tensor([[0.5, 0.9, 0.5], [0.9, 0.1, 0.5]])
    deletion = Deletion(*small_whisper, fractions=[0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    gone = ~deletion.keep(saliency)
    order = [(gone[i + 1] & ~gone[i]).nonzero().tolist()[0] for i in range(6)]
    assert order == [[0, 1], [1, 0], [0, 0], [0, 2], [1, 2], [1, 1]]


def test_the_count_is_rounded_down(small_whisper):
    saliency = torch.rand(7, 3)
    assert (~Deletion(*small_whisper).keep(saliency)).sum((1, 2)).tolist() == [21 * 5 * i // 100 for i in range(21)]


def test_insertion_is_the_mirror_image(small_whisper):
    saliency = torch.rand(9, 8)
    gone = ~Deletion(*small_whisper).keep(saliency)
    assert torch.equal(Insertion(*small_whisper).keep(saliency), gone)


def test_fractions():
    assert PAPER_FRACTIONS == pytest.approx([0.05 * i for i in range(21)])
    assert FINE_FRACTIONS[:7] == (0, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1) and FINE_FRACTIONS[-1] == 1
    assert set(PAPER_FRACTIONS) <= set(FINE_FRACTIONS) and list(FINE_FRACTIONS) == sorted(FINE_FRACTIONS)
    assert check_fractions([0, 1]) == (0.0, 1.0)
    for wrong in ("coarse", [], [0.5], [0, 5, 10], [0, 0.5, 0.5], [0.2, 0.1], [-0.1, 1], [None, 1], None, 3):
        with pytest.raises(ConfigError, match="fractions is .*5 % is 0.05"):
            check_fractions(wrong)


# What the model makes of it -------------------------------------------------------------------------------------------


def test_numpy_number_is_a_fill(small_whisper):
    for fill in (np.float32(0.5), np.int64(2)):
        found, expected = (Deletion(*small_whisper, ENDS, fill=value) for value in (fill, fill.item()))
        assert found.identity() == expected.identity()


@pytest.mark.parametrize("fill", ["mean", "zero", "min", 0.3])
def test_ends(small_whisper, explanation, fill):
    """Nothing deleted is the clean run; everything deleted is nothing but fill."""
    model, processor = small_whisper
    deleted = Deletion(model, processor, ENDS, fill=fill)(explanation)["deletion"]
    inserted = Insertion(model, processor, ENDS, fill=fill)(explanation)["insertion"]
    assert deleted["texts"][0] == inserted["texts"][-1] == explanation.text == deleted["prediction"]
    clean = float(explanation.probabilities.mean())
    assert deleted["token_probability"][0] == pytest.approx(clean, abs=1e-5)
    assert inserted["token_probability"][-1] == pytest.approx(clean, abs=1e-5)
    assert deleted["texts"][-1] == inserted["texts"][0]
    assert deleted["token_probability"][-1] == pytest.approx(inserted["token_probability"][0], abs=1e-6)

    clean = explanation.features
    value = {"mean": clean.mean(0), "zero": torch.zeros(80), "min": clean.min().expand(80)}.get(
        fill, torch.full((80,), 0.3)
    )
    inputs = processor(
        explanation.waveform.numpy(), sampling_rate=16_000, return_tensors="pt", max_length=32_000
    ).input_features
    inputs[0, :, :120] = value[:, None]
    ids = model.generate(inputs, max_new_tokens=6)
    assert deleted["texts"][-1] == processor.batch_decode(ids, skip_special_tokens=True)[0].strip()


def test_a_step_by_hand(small_whisper, explanation):
    """The teacher-forced probability at 50 %, from plain calls of the model."""
    model, processor = small_whisper
    row = Deletion(model, processor, ENDS)(explanation)["deletion"]
    clean = explanation.features
    loudest = clean.flatten().argsort(descending=True, stable=True)[: 120 * 80 // 2]
    perturbed = clean.clone().flatten()
    perturbed[loudest] = clean.mean(0).repeat(120)[loudest]
    inputs = processor(
        explanation.waveform.numpy(), sampling_rate=16_000, return_tensors="pt", max_length=32_000
    ).input_features
    inputs[0, :, :120] = perturbed.view(120, 80).T
    ids = torch.tensor([[50257, 50362, *explanation.token_ids]])
    with torch.no_grad():
        probabilities = model(input_features=inputs, decoder_input_ids=ids[:, :-1]).logits[0, 1:].softmax(-1)
    expected = probabilities.gather(1, ids[0, 2:, None]).mean()
    assert row["token_probability"][1] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("metric", [Deletion, Insertion])
def test_perfect_is_best_and_inverted_is_worst(planted, metric):
    entry = metric(planted.model, planted.processor, against="prediction")
    found = {name: summarize([entry(planted.explanation, saliency=m)], samples=10) for name, m in planted.maps.items()}
    for name in (entry.key, f"{entry.key}_probability"):
        scores = {method: scores[name] for method, scores in found.items()}
        sign = 1 if scores["perfect"].higher_is_better else -1
        values = {method: sign * score.value for method, score in scores.items()}
        assert values["perfect"] > values["random"] + 5 > values["inverted"] + 10, (name, values)
    # A sixth of the features is all there is to hear.
    text = entry(planted.explanation, saliency=planted.maps["perfect"])[entry.key]["texts"]
    changed = [t != planted.explanation.text for t in text]
    assert all(changed[4:]) if metric is Deletion else not any(changed[4:])


def test_the_sentence_map_ranks_unless_another_is_given(small_whisper, explanation):
    deletion = Deletion(*small_whisper, ENDS)
    by_itself = deletion(explanation)["deletion"]
    by_hand = deletion(explanation, saliency=explanation.sentence_saliency.numpy())["deletion"]
    assert by_hand["texts"] == by_itself["texts"] and by_hand["token_probability"] == by_itself["token_probability"]
    assert by_hand["method"] == "custom" and by_itself["method"].startswith("energy|masks:0+0|config:")


@pytest.mark.parametrize("metric", [Deletion, Insertion])
def test_batch_size_changes_nothing(small_whisper, explanation, metric):
    one, *others = (metric(*small_whisper, batch_size=size)(explanation)[metric.key] for size in (1, 5, None))
    for other in others:
        assert one["token_probability"] == pytest.approx(other.pop("token_probability"), abs=1e-5)
        assert other.items() <= one.items()


@pytest.mark.parametrize(
    ("name", "options"),
    [("speech2text-en", {}), ("seamless-en-de-es", {"tgt_lang": "deu"}), ("qwen3-asr-en", {"language": "English"})],
    ids=["asr", "st", "llm"],
)
def test_one_by_one_gives_the_same_on_trained_models(name, options):
    """Rows of different lengths in a batch of columns, as ``Dataset.map(…, batched=True)`` hands them over."""
    if name == "qwen3-asr-en" and not hasattr(transformers, "Qwen3ASRForConditionalGeneration"):
        pytest.skip("transformers has no Qwen3-ASR before 5.20")
    models = load_tiny_model(name)
    clips = tiny_clips()[1:4:2]
    found = [explain(*models, c["path"], config=EnergyConfig(), progress=False, **options) for c in clips]
    assert len({len(ex.features) for ex in found}) == 2
    fractions = (0.0, 0.02, 0.05, 0.1, 0.3, 1.0)
    many = Deletion(*models, fractions)({"explanation": found})["deletion"]
    one = [Deletion(*models, fractions, batch_size=1)(ex)["deletion"] for ex in found]
    for a, b in zip(many, one, strict=True):
        assert a["texts"] == b["texts"] and len(set(a["texts"])) >= 2
        assert a["token_probability"] == pytest.approx(b["token_probability"], abs=1e-5)


def test_sampling_goes_copy_by_copy_from_the_same_seed(small_whisper, explanation):
    """As calls of generate() one after the other, whatever the batch size."""
    model, processor = small_whisper
    settings = {"max_new_tokens": 6, "do_sample": True, "temperature": 2.0}
    deletion = Deletion(model, processor, ENDS, generate_kwargs=settings)
    adapter, clean = deletion.adapter, explanation.features
    options = GenerationOptions(generate_kwargs=settings)
    with leave_unchanged(model):
        utterance = adapter.encode(Waveform(explanation.waveform.numpy(), 16_000, "tone"))
        adapter.prefix_ids(utterance, options)
        rows = [clean, *torch.where(deletion.keep(explanation.sentence_saliency), clean, clean.mean(0))]
        expected = [adapter.text(adapter.generate(utterance, options, row).token_ids) for row in rows]
    for size in (None, 1, 8):
        found = Deletion(model, processor, ENDS, generate_kwargs=settings, batch_size=size)(explanation)["deletion"]
        assert [found["prediction"], *found["texts"]] == expected
    assert len(set(expected)) == 4


def test_a_step_costs_one_pass_through_the_encoder(small_whisper, explanation):
    model, passes = small_whisper[0], []
    handle = model.get_encoder().register_forward_hook(lambda _, args, output: passes.append(len(output[0])))
    for size, batches in ((1, [1, 1, 1, 1, 1]), (2, [2, 2, 1]), (None, [5])):
        passes.clear()
        Deletion(*small_whisper, fractions=[0, 0.25, 0.5, 0.75, 1], batch_size=size)(explanation)
        assert passes == [1, *batches]  # the first for the start tokens
    handle.remove()


def test_steps_without_a_change_are_not_generated_again(small_whisper, explanation, monkeypatch):
    deletion = Deletion(*small_whisper, fractions=[0, 1e-6, 2e-6, 1])
    calls = []
    generate = deletion.adapter.generate_rows
    monkeypatch.setattr(deletion.adapter, "generate_rows", lambda *a: calls.extend(found := generate(*a)) or found)
    entry = deletion(explanation)["deletion"]
    assert len(entry["texts"]) == len(entry["token_probability"]) == 4
    assert len(calls) == 2 + 1  # two different steps, and the prefix


def test_a_given_text_is_no_prediction(small_whisper, tone, explanation):
    given = explain(
        *small_whisper,
        tone,
        config=EnergyConfig(),
        text="ask not",
        progress=False,
        generate_kwargs=SHORT,
    )
    entry = Deletion(*small_whisper, ENDS)(given)["deletion"]
    assert entry["prediction"] == explanation.text != given.text
    assert entry["token_probability"][0] == pytest.approx(float(given.probabilities.mean()), abs=1e-5)


def test_rows_keep_what_they_had(small_whisper, explanation, tmp_path):
    path = str(explanation.save(tmp_path / "saved"))
    row = {"id": "u1", "explanation": path}
    found = Insertion(*small_whisper, ENDS)(Deletion(*small_whisper, ENDS)(row))
    assert row == {"id": "u1", "explanation": path}
    assert found.keys() == {"id", "explanation", "deletion", "insertion"}
    fresh = Deletion(*small_whisper, ENDS)(explanation)["deletion"]
    assert found["deletion"]["texts"] == fresh["texts"]
    assert found["deletion"]["token_probability"] == pytest.approx(fresh["token_probability"], abs=1e-3)  # 16-bit sound
    failed = {"id": "u2", "error": "AudioError"}
    assert Deletion(*small_whisper)(failed) == {**failed, "deletion": None}


def test_words_give_the_same_as_tokens(small_whisper, explanation):
    assert (
        Deletion(*small_whisper, ENDS)(explanation.words())["deletion"]
        == Deletion(*small_whisper, ENDS)(explanation)["deletion"]
    )


def test_it_can_be_pickled(small_whisper, explanation):
    deletion = Deletion(*small_whisper, ENDS, against="prediction", fill="min")
    again = pickle.loads(pickle.dumps(deletion))
    assert again(explanation)["deletion"] == deletion(explanation)["deletion"]


def test_the_model_is_left_as_it_was(small_whisper, explanation):
    model, processor = copy.deepcopy(small_whisper[0]), small_whisper[1]
    model.train()
    model.config.dropout = 0.5
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, settings = torch.random.get_rng_state(), model.generation_config.to_dict()
    entry = Deletion(model, processor, ENDS)(explanation)["deletion"]
    assert entry["texts"][0] == explanation.text  # in evaluation mode meanwhile
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state()) and settings == model.generation_config.to_dict()
    assert all(p.grad is None for p in model.parameters())


# The settings of the clean run ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory):
    """A tiny random Whisper that detects its language."""
    path = Path(__file__).parents[1] / "adapters" / "tiny.py"
    spec = importlib.util.spec_from_file_location("tiny_models_for_metrics", path)
    tiny = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    return tiny.whisper(80, multilingual=True)(tmp_path_factory.mktemp("whisper"))


@pytest.mark.parametrize("stored_before", [False, True])
@pytest.mark.parametrize("task_token", [False, True])
def test_language_is_detected_from_clean_sound_only(multilingual, tone, monkeypatch, task_token, stored_before):
    model, processor = copy.deepcopy(multilingual[0]), multilingual[1]
    if task_token:  # as in the released multilingual checkpoints
        model.generation_config.forced_decoder_ids = [[1, None], [2, model.generation_config.task_to_id["transcribe"]]]
    found = explain(model, processor, tone, config=EnergyConfig(), generate_kwargs=SHORT, progress=False)
    prefix = list(found.context_pieces[: found.prefix_length])
    assert "language" not in found.provenance["output"] and prefix[1] in model.generation_config.lang_to_id
    assert ("<|transcribe|>" in prefix) == task_token
    found = without_digest(found) if stored_before else found
    monkeypatch.setattr(type(model), "detect_language", lambda *args, **kwargs: pytest.fail("language detected again"))
    settings = model.generation_config.to_dict()
    seen = []
    deletion = Deletion(model, processor, ENDS, fill="min")
    generate = deletion.adapter.generate_rows
    monkeypatch.setattr(deletion.adapter, "generate_rows", lambda *a: seen.extend(found := generate(*a)) or found)
    assert deletion(found)["deletion"]["texts"][0] == found.text
    assert len(seen) >= 3 and all(deletion.adapter.pieces(target.prefix_ids) == prefix for target in seen)
    assert model.generation_config.to_dict() == settings


def test_generate_sees_the_settings_of_the_clean_run(small_whisper, tone, monkeypatch):
    model, processor = small_whisper
    settings = {"max_new_tokens": 4, "num_beams": 2}
    found = explain(model, processor, tone, config=EnergyConfig(), generate_kwargs=settings, progress=False)
    seen = []
    generate = type(model).generate
    monkeypatch.setattr(type(model), "generate", lambda self, *a, **k: seen.append(k) or generate(self, *a, **k))
    row = Deletion(model, processor, ENDS)(found)["deletion"]
    assert row["texts"][0] == found.text
    # The start tokens, then three steps.
    assert [len(call["input_features"]) for call in seen] == [1, 3] and seen[0]["max_new_tokens"] == 1
    assert all(call["num_beams"] == 2 and call["max_new_tokens"] == 4 for call in seen[1:])


def test_settings_that_were_lost(small_whisper, explanation):
    """As explanations were stored once: what is no JSON, in words."""
    lost = without_digest(explanation)
    lost.provenance["output"]["generate_kwargs"] = {"prompt_ids": "tensor([1, 2])"}
    with pytest.raises(ConfigError, match="prompt_ids; pass them again: generate_kwargs={'prompt_ids'"):
        Deletion(*small_whisper)(lost)
    entry = Deletion(*small_whisper, ENDS, generate_kwargs=SHORT)(lost)["deletion"]
    assert entry["texts"][0] == explanation.text


# Misuse ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"fill": "median"}, "fill is 'median'.*mean"),
        ({"fill": float("nan")}, "fill is nan"),
        ({"fill": True}, "fill is True"),
        ({"against": "both"}, "against is 'both'.*prediction"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_arguments_outside_what_is_allowed(small_whisper, arguments, words):
    with pytest.raises(ConfigError, match=words):
        Deletion(*small_whisper, **arguments)


def test_maps_that_do_not_fit(small_whisper, explanation, changed):
    deletion = Deletion(*small_whisper)
    with pytest.raises(ConfigError, match=r"saliency has shape \(119, 80\), but the features have \(120, 80\)"):
        deletion(explanation, saliency=torch.rand(119, 80))
    with pytest.raises(ConfigError, match="saliency contains 1 values that are NaN"):
        deletion(
            explanation,
            saliency=torch.rand(120, 80).index_put((torch.tensor(3), torch.tensor(4)), torch.tensor(torch.nan)),
        )
    broken = changed()
    for name in ("measured_sentence_saliency", "mean_token_saliency"):
        broken.__dict__[name] = torch.full((120, 80), torch.nan)
    with pytest.raises(ConfigError, match="sentence_saliency contains 9600 values"):
        deletion(broken)


def without_digest(explanation):
    """Return an explanation as it was stored before it held a digest of the weights, and the ids of its prefix."""
    old = copy.deepcopy(explanation.provenance)
    for part, names in (("model", ["weights"]), ("output", ["prefix_ids", "start"])):
        for name in names:
            del old[part][name]
    return replace(explanation, provenance=old)


def test_an_explanation_without_a_digest_is_of_the_model_of_that_name(small_whisper, explanation):
    def of(**model):
        return replace(
            explanation, provenance={**explanation.provenance, "model": {**explanation.provenance["model"], **model}}
        )

    explanation = without_digest(explanation)
    deletion = Deletion(*small_whisper, ENDS)
    with pytest.raises(ConfigError, match="a Speech2TextForConditionalGeneration .* pass the model that was explained"):
        deletion(of(**{"class": "Speech2TextForConditionalGeneration"}))
    with pytest.raises(ConfigError, match="with 7 parameters"):
        deletion(of(parameters=7))
    model = copy.deepcopy(small_whisper[0])
    model.config._name_or_path = "/models/whisper-tiny"
    named = Deletion(model, small_whisper[1], ENDS)
    with pytest.raises(ConfigError, match="openai/whisper-base"):
        named(of(name="openai/whisper-base"))
    assert named(of(name="openai/whisper-tiny"))["deletion"]["texts"][0] == explanation.text
    assert named(of(name=""))["deletion"]["texts"][0] == explanation.text


def test_no_explanation(small_whisper):
    for row, words in (({"id": 1}, "row has no 'explanation'"), ({}, "it has nothing"), (3, "explanation is a int")):
        with pytest.raises(ConfigError, match=words):
            Deletion(*small_whisper)(row)


def test_a_processor_that_makes_other_features(small_whisper, explanation):
    other = replace(explanation, waveform=explanation.waveform[:16_000])
    with pytest.raises(ConfigError, match=r"\(100, 80\).*\(120, 80\)"):
        Deletion(*small_whisper)(other)


def test_another_prefix(small_whisper, explanation):
    other = replace(explanation, context_pieces=("<|startoftranscript|>", "<|de|>", *explanation.context_pieces[2:]))
    with pytest.raises(ConfigError, match="starts with .*<.de.>"):
        Deletion(*small_whisper)(other)


# A stored explanation is the one that was stored ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["loud", "quiet 24 bits"])
def test_deletion_of_a_loaded_explanation_sees_what_the_fresh_one_saw(small_whisper, tone, tmp_path, kind):
    """Clipping at 1.0, or rounding to 16 bits, changes the padding of Whisper's window, which depends on the peak."""
    samples = {"loud": tone * 5, "quiet 24 bits": np.round(tone * 2**-11 * 2**23) / 2**23}[kind].astype(np.float32)
    assert (abs(samples).max() > 1) == (kind == "loud") and abs(samples).max() > 2**-14
    fresh = explain(*small_whisper, samples, config=EnergyConfig(), generate_kwargs=SHORT, progress=False)
    deletion = Deletion(*small_whisper, ENDS)
    inputs = deletion.adapter.encode(Waveform(samples, 16_000, "here")).inputs["input_features"]
    expected = deletion(fresh)["deletion"]
    for loaded in (Explanation.load(fresh.save(tmp_path / "saved")), Explanation.from_row(fresh.to_row())):
        assert torch.equal(loaded.waveform, torch.from_numpy(samples))
        again = deletion.adapter.encode(Waveform(loaded.waveform.numpy(), loaded.sampling_rate, "loaded"))
        assert torch.equal(again.features, fresh.features) and torch.equal(again.inputs["input_features"], inputs)
        assert deletion(loaded)["deletion"] == expected
