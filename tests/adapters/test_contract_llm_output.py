"""What every speech LLM writes, and the whole of its explanations: the second half of ``test_contract_llm``."""

from __future__ import annotations

import numpy as np
import pytest
import test_contract
import torch
from agreement import assert_explanations_agree
from datasets import Dataset
from plain_llm import literal_tokens, plain, plain_generate, plain_logits
from test_contract import FEW, LOUD, assert_untouched, close, explained, snapshot
from tiny import TEXT, VARIED
from tiny_llm import INSTRUCTION

from spes_hf import (
    AttentionConfig,
    ConfigError,
    ContrastiveDeletion,
    Deletion,
    EnergyConfig,
    Explanation,
    UnsupportedModelError,
    WordDeletion,
    diagnose,
    explain,
    sound_check,
)
from spes_hf.adapters import GenerationOptions, get_adapter
from spes_hf.jobs.run import explain_dataset, load_explained


@pytest.fixture
def case(llm):
    """Each family in turn."""
    return llm


@pytest.fixture
def exact(exact_llm):
    """Each family in turn in float64, where equal means equal to 1e-9."""
    return exact_llm


# What is generated ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"num_beams": 3, "max_new_tokens": 5}])
@pytest.mark.parametrize("prompt", [None, INSTRUCTION])
def test_generates_what_the_model_generates(case, more, prompt):
    options = case.family.options if prompt is None else {**case.family.options, "prompt": prompt}
    sequence = plain_generate(case, options, **more)
    settings = GenerationOptions(**options, generate_kwargs={**VARIED, **more})
    target = case.adapter.generate(case.utterance, settings)
    own = sequence[sequence != case.model.config.audio_token_id]
    assert [*target.prefix_ids.tolist(), *target.token_ids.tolist()] == own.tolist()
    assert len(set(target.token_ids.tolist())) >= 4 and not target.complete
    assert torch.equal(case.adapter.prefix_ids(case.utterance, settings), target.prefix_ids)


def test_another_instruction_is_another_prompt(case):
    told = case.adapter.start(GenerationOptions(**{**case.family.options, "prompt": INSTRUCTION}))
    assert told.prefix_ids.tolist() != case.target.prefix_ids.tolist()


def test_end_of_sequence_is_the_last_token_and_explained(case):
    eos = case.adapter.eos_token_id
    settings = {"max_new_tokens": 5, "forced_eos_token_id": eos, "suppress_tokens": None}
    target = case.adapter.generate(case.utterance, GenerationOptions(**case.family.options, generate_kwargs=settings))
    assert target.complete and int(target.token_ids[-1]) in case.adapter.eos_token_ids


def test_a_static_cache_writes_the_same(case):
    settings = GenerationOptions(
        **case.family.options, generate_kwargs={**VARIED, "cache_implementation": "static", "disable_compile": True}
    )
    assert torch.equal(case.adapter.generate(case.utterance, settings).token_ids, case.target.token_ids)


@pytest.mark.parametrize("beams", [1, 3])
def test_generating_gives_the_audio_embeddings_at_no_extra_pass(case, beams):
    other = 5 * torch.randn(case.utterance.features.shape, generator=torch.Generator().manual_seed(3))
    settings = GenerationOptions(**case.family.options, generate_kwargs={**VARIED, "num_beams": beams})
    passes = []
    handle = case.adapter.encoder.register_forward_hook(lambda *_: passes.append(1))
    plain_generate(case, num_beams=beams)  # in a copy, whose encoder has the hook as well
    own, passes[:] = len(passes), []
    target, found = case.adapter.generate_with_states(case.utterance, settings, other)
    handle.remove()
    assert len(passes) == own == 1 and not case.adapter.projector._forward_hooks
    assert target.token_ids.tolist() != case.target.token_ids.tolist()
    with torch.no_grad():
        expected = case.adapter.encoder_states(case.adapter.model_inputs(case.utterance, other[None]))
    close(found, expected)  # of three copies at once or of one
    assert found.shape == expected.shape and (beams > 1 or torch.equal(found, expected))


def test_text_is_written_as_the_model_writes_it(case):
    target = case.adapter.encode_text(case.utterance, f" {TEXT} ", case.options)
    assert target.complete and target.token_ids[-1] == case.adapter.eos_token_id
    assert torch.equal(target.prefix_ids, case.target.prefix_ids)
    assert (target.audio_at, target.instruction) == (case.target.audio_at, case.target.instruction)
    assert case.adapter.text(target.token_ids) == TEXT
    assert "".join(case.adapter.pieces(target.token_ids[:-1])).encode("utf-8", "surrogateescape").decode() == TEXT
    assert case.adapter.is_special(target.token_ids) == [False] * (len(target.token_ids) - 1) + [True]
    inner = torch.tensor(case.adapter.text_ids("garden"))
    assert "".join(case.adapter.pieces(inner)) == " garden"


@pytest.mark.parametrize("method", ["is_special", "pieces"])
def test_the_tokenizer_is_asked_once_for_all_tokens(case, monkeypatch, method):
    test_contract.test_the_tokenizer_is_asked_once_for_all_tokens(case, monkeypatch, method)


def test_text_that_the_model_cannot_write_is_refused(case):
    with pytest.raises(ConfigError, match="text is ''"):
        case.adapter.encode_text(case.utterance, "", case.options)


def test_wrong_options_are_refused(case):
    for options, message in case.family.wrong:
        for more in ({}, {"text": TEXT}):
            with pytest.raises(ConfigError, match=message):
                explained(case, **{**case.family.options, **options}, **more)


def test_wrong_processor_is_refused(case, cases):
    other = cases("whisper")
    with pytest.raises(UnsupportedModelError, match=f"processor is a {type(other.processor).__name__}.*expected"):
        get_adapter(case.model, other.processor)
    with pytest.raises(ConfigError, match="prompt is 'Who\\?'.*takes language, task; leave prompt out"):
        explain(other.model, other.processor, other.audio, prompt="Who?")


# The whole ------------------------------------------------------------------------------------------------------------


@pytest.mark.numerics
def test_explanation_is_the_same_for_every_batch_size(case):
    first, other = (explained(case, config=LOUD, batch_size=size) for size in (1, 4))
    assert first.raw_audio.shape == (len(case.target.token_ids), *case.utterance.features.shape)
    assert first.raw_token.shape == (len(case.target.token_ids), len(case.target.context_ids))
    assert first.token_ids == case.target.token_ids.tolist()
    assert float(first.raw_audio.max()) > 1e-4 and float(first.raw_token.nan_to_num().max()) > 1e-4
    assert_explanations_agree(other, first)


@pytest.mark.numerics
def test_bits_have_three_sources(case):
    """Without the text, prompt and audio stay; without the instruction, its own words alone are gone."""
    explanation = explained(case)
    ids, first = case.target.token_ids, len(case.target.prefix_ids)
    text = torch.ones(1, len(case.target.context_ids), dtype=torch.bool)
    text[:, first:] = False
    told = torch.ones_like(text)
    told[:, list(case.target.instruction)] = False
    clean = plain_logits(case).log_softmax(-1)
    pairs = [(text, explanation.text_bits), (told, explanation.instruction_bits)]
    if not case.target.instruction:
        assert pairs.pop()[1].isnan().all() and explanation.token_instruction_bits is None
    for keep, found in pairs:
        other = literal_tokens(case, keep)[0].log_softmax(-1)
        expected = (clean - other)[range(len(ids)), ids] / np.log(2)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    if case.target.instruction:
        assert float(explanation.instruction_bits.abs().max()) > 1e-3
    assert float(explanation.text_bits[0].abs()) < 1e-5 < float(explanation.sound_bits.abs().max())


def test_explains_an_answer_to_any_instruction(case, tmp_path):
    explanation = explained(case, prompt=INSTRUCTION, over="encoder")
    assert explanation.origin.prompt == INSTRUCTION and explanation.encoder_saliency.shape[0] == len(explanation)
    assert explanation.encoder_saliency.shape[1] == len(case.adapter.encoder_positions(case.utterance))
    told = "".join(explanation.context_tokens[: explanation.prefix_length])
    assert INSTRUCTION in told
    assert explanation.instruction_bits.isfinite().all()
    loaded = Explanation.load(explanation.save(tmp_path / "kept"))
    assert torch.equal(loaded.instruction_bits, explanation.instruction_bits)
    words = loaded.words()
    assert len(words.instruction_bits) == len(words) and words.to_html(tmp_path / "page.html").stat().st_size > 10_000
    kept = Explanation.from_row(explanation.to_row())
    assert torch.equal(kept.instruction_bits, explanation.instruction_bits)


def test_metrics_start_from_the_same_prompt(case):
    explanation = explained(case, prompt=INSTRUCTION)
    found = Deletion(case.model, case.processor, fractions=(0.0, 1.0))(explanation)["deletion"]
    assert found["texts"][0] == found["prediction"] == explanation.text
    probability = float(explanation.probabilities.mean())
    assert found["token_probability"][0] == pytest.approx(probability, abs=1e-5)


@pytest.mark.parametrize("beams", [1, 2])
def test_deletion_halves_its_batch_where_memory_runs_out(exact, beams):
    model, processor = exact.copy()
    settings = {"generate_kwargs": {**VARIED, "num_beams": beams}}
    explanation = explained(exact, config=EnergyConfig(), **settings)
    fractions = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    one = Deletion(model, processor, fractions, batch_size=1)(explanation)["deletion"]
    sizes = []

    def small_memory(module, args, kwargs):
        if kwargs.get("input_ids") is not None:  # of generate()
            sizes.append(len(kwargs["input_ids"]))
            if sizes[-1] > 3 * beams:
                torch.empty(1 << 60, dtype=torch.uint8, device="cpu")

    model.register_forward_pre_hook(small_memory, with_kwargs=True)
    deletion = Deletion(model, processor, fractions)
    for largest in (6, 3):  # the second time it is known
        sizes.clear()
        found = deletion(explanation)["deletion"]
        assert found["texts"] == one["texts"] and max(sizes) == largest * beams
        assert found["token_probability"] == pytest.approx(one["token_probability"], abs=1e-5)


def test_metrics_of_words_and_of_contrasts(case):
    """Which put the output together again: prompt, place of the audio, tokens."""
    whole = explained(case, text=TEXT)
    found = WordDeletion(case.model, case.processor, fractions=(0.2,), max_words=2)(whole)["word_deletion"]
    known = whole.words().token_probabilities[found["indices"]]
    torch.testing.assert_close(torch.tensor(found["clean"]), known, atol=0, rtol=1e-3)
    contrast = explained(case, text=TEXT, foil={"hund": "perro"})
    silent = contrast.log_odds - contrast.sound_bits  # all of the sound is deleted
    kept = ContrastiveDeletion(case.model, case.processor, fractions=(1.0,))(contrast)["contrastive_deletion"]
    torch.testing.assert_close(torch.tensor(kept["log_odds"])[:, 0], silent, atol=1e-3, rtol=0)


def test_why_this_and_not_that(case):
    explanation = explained(case, text=TEXT, foil={"hund": "perro"})
    (contrast,) = explanation.contrasts
    assert (contrast.target, contrast.foil) == ("hund", "perro") and explanation.log_odds.isfinite().all()
    # The words' own logits, by plain calls.
    own = case.adapter.encode_text(case.utterance, TEXT, case.options).token_ids
    before = own[: contrast.start]
    for ids, found in ((contrast.target_ids, contrast.target_log2), (contrast.foil_ids, contrast.foil_log2)):
        tokens = torch.cat([before, torch.tensor([*ids, ids[-1]])])
        log_p = plain_logits(case, tokens=tokens).log_softmax(-1)
        span = sum(float(log_p[contrast.start + i, token]) for i, token in enumerate(ids))
        assert found * np.log(2) <= span + 1e-4  # and a word's end besides
        assert span - found * np.log(2) < 3


def test_a_diagnosis_takes_the_instruction(case):
    said = TEXT.replace("hund", "perro")
    options = {**case.family.options, "prompt": INSTRUCTION}
    found = diagnose(case.model, case.processor, case.audio, said, text=TEXT, progress=False, **options)
    (error,) = found.errors
    assert (error.written, error.said) == ("hund", "perro") and found.explanation.origin.prompt == INSTRUCTION


def test_a_sound_check_takes_the_instruction(case):
    hearing = sound_check(
        case.model, case.processor, case.audio, **case.family.options, generate_kwargs=VARIED, prompt=INSTRUCTION
    )
    assert np.isfinite(hearing.bits_per_token)


def test_attention_as_a_method(case):
    explanation = explained(case, config=AttentionConfig())
    assert explanation.raw_audio.isfinite().all() and float(explanation.raw_audio.std()) > 0


def test_default_method_shares_backward_passes(case):
    explanation = explained(case, config=None)
    assert explanation.raw_audio.isfinite().all() and float(explanation.raw_audio.abs().max()) > 0


def test_a_corpus_job(case, tmp_path):
    sounds = [case.audio, case.audio[:9_000], np.zeros(10, dtype=np.float32)]
    rows = Dataset.from_dict({"id": ["a", "b", "c"], "audio": [sound.tolist() for sound in sounds]})
    summary = explain_dataset(
        case.model,
        case.processor,
        rows,
        tmp_path / "job",
        FEW,
        sampling_rate=16_000,
        generate_kwargs=VARIED,
        progress=False,
        prompt=INSTRUCTION,
        **case.family.options,
    )
    done = {row["id"]: row for row in load_explained(tmp_path / "job")}
    assert sorted(done) == ["a", "b", "c"] and "ms long" in done["c"]["error"] and summary is not None
    found = Explanation.from_row(done["a"])
    assert found.origin.prompt == INSTRUCTION and not done["a"]["error"] and not done["b"]["error"]
    alone = explained(case, prompt=INSTRUCTION)
    assert found.text == alone.text


def test_a_recording_is_cut_where_speech_pauses(case, tmp_path):
    t = np.arange(16_000) / 16_000
    sound = np.sin(2 * np.pi * 440 * t) * 0.3 * (np.random.default_rng(0).random(16_000) > 0.2)
    long = np.concatenate([sound, np.zeros(8_000), sound, np.zeros(8_000), sound]).astype(np.float32)
    recording = explained(case, audio=long, sampling_rate=16_000, segment="pauses", folder=tmp_path / "recording")
    assert len(recording) >= 2
    for window in recording:
        assert window.origin.audio_at == case.target.audio_at
        assert window.instruction_bits.isnan().all() == (not case.target.instruction)


@pytest.mark.parametrize("mode", ["eval", "train", "mixed"])
def test_model_is_left_as_it_was(case, mode):
    model, processor = case.copy()
    model.train(mode != "eval")
    if mode == "mixed":
        next(iter(model.children())).eval()
        next(iter(model.parameters())).requires_grad_(False)
    before = snapshot(model)
    attention = [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")]
    for config in (FEW, AttentionConfig()):
        spoilt = explain(
            model,
            processor,
            case.audio,
            config=config,
            generate_kwargs=VARIED,
            progress=False,
            **case.family.options,
        )
        assert spoilt.token_ids == case.target.token_ids.tolist()  # no dropout, whatever the mode was
    assert_untouched(model, before)
    assert attention == [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")]


def test_model_is_left_as_it_was_after_an_exception(case, monkeypatch):
    model, processor = case.copy()
    model.train()
    before, calls = snapshot(model), []
    module = model.get_output_embeddings()

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) > 12:  # in the middle of the masks
            raise KeyError("broken")
        return type(module).forward(module, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyError, match="broken"):
        patch.setattr(module, "forward", fail)
        explain(model, processor, case.audio, config=FEW, generate_kwargs=VARIED, batch_size=2, **case.family.options)
    vars(module).pop("forward", None)
    assert_untouched(model, before)


def test_model_can_be_trained_afterwards(case):
    model, processor = case.copy()
    explain(model, processor, case.audio, config=FEW, generate_kwargs=VARIED, progress=False, **case.family.options)
    untouched, _ = case.copy()
    inputs = plain(case)
    for one in (model, untouched):
        one(**inputs).logits.log_softmax(-1)[..., 0].sum().backward()
    pairs = [(one.grad, other.grad) for one, other in zip(model.parameters(), untouched.parameters(), strict=True)]
    assert sum(bool(other.any()) for _, other in pairs if other is not None) > len(pairs) / 4
    assert all((one is None) == (other is None) and (one is None or torch.equal(one, other)) for one, other in pairs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision(case, dtype):
    model, processor = case.copy()
    model.to(dtype)
    arguments = dict(config=LOUD, text=TEXT, progress=False, **case.family.options)
    half = explain(model, processor, case.audio, **arguments)
    full = explain(case.model, case.processor, case.audio, **arguments)
    assert half.features.dtype == half.raw_audio.dtype == torch.float32
    assert torch.equal(half.features, full.features)
    together = torch.stack([half.raw_audio.flatten(), full.raw_audio.flatten()])
    assert torch.corrcoef(together)[0, 1] > (0.98 if dtype == torch.float16 else 0.8)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
