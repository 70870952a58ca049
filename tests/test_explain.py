"""The engine on a small random Whisper: equalities, restoration, errors, planted evidence."""

from __future__ import annotations

import copy
import itertools
import math
import os
import shutil

import numpy as np
import pytest
import torch
from agreement import GRADIENT, assert_explanations_agree, assert_raw_maps_agree
from formulas import FORMULAS
from planted import with_ear
from settings import pyramid
from torch import nn

from spes_hf import (
    AudioError,
    ConfigError,
    Explainer,
    RandomConfig,
    SpesConfig,
    UnsupportedModelError,
    explain,
)
from spes_hf.adapters import GenerationOptions, get_adapter
from spes_hf.audio.load import load_audio
from spes_hf.masking.draw import keep_bits, mask_key
from spes_hf.masking.segments import segment

CONFIG = pyramid(num_spectrogram_masks=31, num_token_masks=20)
SHORT = {"max_new_tokens": 6}


def run(model, processor, audio, config=CONFIG, **kwargs):
    return explain(model, processor, audio, config=config, generate_kwargs=SHORT, progress=False, **kwargs)


@pytest.fixture(scope="module")
def explanation(small_whisper, tone):
    return run(*small_whisper, tone)


def test_shapes_and_axes_agree(explanation):
    tokens, context, frames, bins = len(explanation), len(explanation.context_tokens), 120, 80
    assert explanation.audio_saliency.shape == (tokens, frames, bins)
    assert explanation.token_saliency.shape == (tokens, context)
    assert explanation.features.shape == (frames, bins) == explanation.sentence_saliency.shape
    assert explanation.times.tolist() == pytest.approx([0.01 * t for t in range(frames)])
    assert explanation.frequencies.diff().min() > 0
    assert explanation.frequencies[0] == pytest.approx(40, abs=25) and explanation.frequencies[-1] < 8000
    assert context == explanation.prefix_length + tokens - 1
    valid = ~explanation.token_saliency.isnan()
    assert valid.sum(1).tolist() == [explanation.prefix_length + k for k in range(tokens)]


@pytest.mark.numerics
def test_same_seed_gives_the_same_for_every_batch_size(small_whisper, tone):
    first, *others = [run(*small_whisper, tone, batch_size=size) for size in (1, 3, 8)]
    for other in others:
        assert_explanations_agree(other, first)


def test_another_seed_or_utterance_gives_other_masks(small_whisper, tone, explanation):
    assert not torch.equal(run(*small_whisper, tone, seed=1).raw_audio, explanation.raw_audio)
    explainer = Explainer(*small_whisper, CONFIG, progress=False)
    first, second = (explainer(tone, generate_kwargs=SHORT, utterance_id=name) for name in ("a", "b"))
    assert not torch.equal(first.raw_audio, second.raw_audio)


@pytest.mark.numerics
@pytest.mark.parametrize("impact", FORMULAS)
@pytest.mark.parametrize(("perturb", "fill"), [("separate", "mean"), ("separate", "min"), ("joint", -0.3)])
def test_engine_equals_the_literal_method(small_whisper, tone, impact, perturb, fill):
    """Eq. 3 computed the obvious way: one mask at a time, at full resolution, plain calls of the model."""
    model, processor = small_whisper
    joint = perturb == "joint"
    masks = {"num_spectrogram_masks": 13} if joint else {"num_spectrogram_masks": 13, "num_token_masks": 11}
    config = pyramid(**masks, impact=impact, perturb=perturb, fill=fill)
    explanation = run(model, processor, tone, config=config)
    assert explanation.provenance["cost"]["forward_passes"] == 3 + 13 + (0 if joint else 11)
    inputs = processor(tone, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True, max_length=32_000)
    window = inputs.input_features
    frames = int(inputs.attention_mask.sum())
    features = window[0, :, :frames].T
    value = {"mean": features.mean(0), "min": features.min()}.get(fill, fill)
    ids = torch.tensor([[50257, 50362, *explanation.token_ids]])
    prefix, context = 2, ids.shape[1] - 1
    embedding = model.get_decoder().embed_tokens(ids[:, :-1]).detach()

    def log_probs(keep=None, token_keep=None):
        heard, read = window.clone(), embedding.clone()
        if keep is not None:
            heard[0, :, :frames] = torch.where(keep, features, value).T
        for j in range(context):
            if token_keep is not None and not token_keep[j]:
                read[0, j] = 0.0
        with torch.no_grad():
            out = model(input_features=heard, decoder_inputs_embeds=read)
        return out.logits[0, prefix - 1 :].double().log_softmax(-1)

    clean, token = log_probs(), ids[0, prefix:, None]
    rival = clean.scatter(1, token, -torch.inf).argmax(1, keepdim=True)
    labels = segment(features, 1.2, config.patches_per_second, config.max_duration_s, 0.0, 0.1)
    spread = {"audio": (len(explanation), frames, 80), "token": (len(explanation), context)}
    numerators = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in spread.items()}
    denominators = {name: torch.zeros(shape[1:], dtype=torch.float64) for name, shape in spread.items()}

    def bits(stream, row, units, prob):
        return torch.from_numpy(keep_bits(mask_key(0, "", stream), row, 1, units, prob))[0]

    def show(**masks):
        r = FORMULAS[impact](clean, log_probs(masks.get("audio"), masks.get("token")), token, rival)
        for name, keep in masks.items():
            numerators[name] += r.view(-1, *[1] * keep.ndim) * (1 - keep.double())
            denominators[name] += 1 - keep.double()

    for i in range(13):
        level, row = i % 3, i // 3
        keep = bits(f"spectrogram/{level}", row, int(labels[level].max()) + 1, 0.5)[labels[level]]
        show(audio=keep, **({"token": bits(f"token/{level}", row, context, 0.4)} if joint else {}))
    for i in range(0 if joint else 11):
        show(token=bits("token", i, context, 0.4))
    audio, text = (torch.where(d > 0, numerators[name] / d.clamp_min(1), 0.0) for name, d in denominators.items())
    assert audio.flatten(1).std(1).min() > 1e-3  # what is compared is not nothing
    assert_raw_maps_agree(explanation.raw_audio.double(), audio)
    assert_raw_maps_agree(explanation.raw_token.double(), text.masked_fill(explanation.raw_token.isnan(), torch.nan))


PLANTED = SpesConfig(estimator="perturbation", num_spectrogram_masks=1200, num_token_masks=10, patches_per_second=400)


@pytest.fixture(scope="module")
def planted(small_whisper, tone):
    """A Whisper that hears one region alone: the patches with their centre in a box of 40 frames × 30 bins."""
    model, processor = small_whisper
    features = get_adapter(model, processor).encode(load_audio(tone, 16_000)).features
    labels = segment(features, 1.2, PLANTED.patches_per_second, None, 0.0, 0.1)[0]
    region = torch.zeros(120, 80, dtype=torch.bool)
    for patch in range(int(labels.max()) + 1):
        where = labels == patch
        time, mel = (index.double().mean() for index in where.nonzero(as_tuple=True))
        if 40 <= time < 80 and 20 <= mel < 50:
            region |= where
    return with_ear(model, features, region, gain=3), processor, region


def test_planted_evidence_is_found(planted, tone):
    """Only the planted region can matter: at least 95 % of the top 1 % of features lie in it."""
    model, processor, region = planted
    assert region.float().mean() < 0.2  # what chance would reach
    found = run(model, processor, tone, config=PLANTED)
    for saliency in (found.sentence_saliency, *found.audio_saliency):
        top = saliency.flatten().topk(96).indices
        assert region.flatten()[top].float().mean() >= 0.95


def test_impact_outside_the_planted_region_is_zero(planted, tone):
    model, processor, region = planted
    adapter = get_adapter(model, processor)
    utterance = adapter.encode(load_audio(tone, 16_000))
    target = adapter.generate(utterance, GenerationOptions(generate_kwargs=SHORT))
    outside = torch.where(region, utterance.features, 1.0)
    with torch.inference_mode():
        torch.testing.assert_close(
            adapter.logits(utterance, target, features=outside[None]),
            adapter.logits(utterance, target),
            atol=1e-5,
            rtol=0,
        )


# The user's model is left as it was ----------------------------------------------------------------------------------


def snapshot(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        model.generation_config.to_dict(),
        [parameter.requires_grad for parameter in model.parameters()],
        [parameter.grad is None for parameter in model.parameters()],
        torch.random.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
    )


def same(before, after) -> bool:
    weights = all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    return weights and before[1:] == after[1:]


def test_a_model_in_training_mode_is_explained_in_evaluation_mode_and_given_back(small_whisper, tone, explanation):
    model, processor = copy.deepcopy(small_whisper[0]), small_whisper[1]
    model.train()
    model.get_encoder().eval()  # a mixture, as in fine-tuning with a frozen encoder
    model.config.dropout = 0.5
    before = snapshot(model)
    found = run(model, processor, tone)
    assert same(before, snapshot(model))
    torch.testing.assert_close(found.raw_audio, explanation.raw_audio, atol=1e-6, rtol=0)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_run_gives_control_and_model_back(small_whisper, tone, monkeypatch, error):
    model, processor = copy.deepcopy(small_whisper[0]), small_whisper[1]
    model.train()
    calls = itertools.count()
    forward = model.forward

    def interrupted(*args, **kwargs):
        if "encoder_outputs" in kwargs and next(calls) == 3:
            raise error
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", interrupted)
    before = snapshot(model)
    with pytest.raises(error):
        run(model, processor, tone, batch_size=4)
    assert next(calls) > 3
    assert same(before, snapshot(model))


def test_batch_is_halved_when_memory_runs_out(small_whisper, tone, explanation, monkeypatch):
    model, processor = copy.deepcopy(small_whisper[0]), small_whisper[1]
    forward, sizes = model.get_encoder().forward, []

    def small_memory(*args, **kwargs):
        features = kwargs["input_features"]
        if len(features) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        sizes.append(len(features))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.get_encoder(), "forward", small_memory)
    found = run(model, processor, tone, batch_size=8)
    assert max(sizes) == 2
    assert_explanations_agree(found, explanation)


def test_memory_that_runs_out_at_one_copy_is_an_error(small_whisper, tone, monkeypatch):
    model, processor = copy.deepcopy(small_whisper[0]), small_whisper[1]

    def no_memory(*args, **kwargs):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(model.get_encoder(), "forward", no_memory)
    with pytest.raises(RuntimeError, match="out of memory"):
        explain(model, processor, tone, config=CONFIG, text="hello", progress=False)


def test_memory_that_runs_out_is_asked_for_by_what_failed(small_whisper, tone, monkeypatch):
    """Three masks of a level are fewer than the batch size: half of three is tried next, not half of 64."""
    model, processor = copy.deepcopy(small_whisper[0]), small_whisper[1]
    forward, sizes = model.get_encoder().forward, []

    def small_memory(*args, **kwargs):
        sizes.append(len(kwargs["input_features"]))
        if sizes[-1] > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.get_encoder(), "forward", small_memory)
    config = SpesConfig(estimator="perturbation", num_spectrogram_masks=3, num_token_masks=4, patches_per_second=400)
    explain(model, processor, tone, config=config, text="ask", batch_size=64, progress=False)
    assert sizes[-4:] == [3, 1, 1, 1]
    assert set(sizes[:-4]) == {1}  # the clean passes


def test_sampling_follows_the_seed(small_whisper, tone):
    settings = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 8}
    config = SpesConfig(estimator="perturbation", num_spectrogram_masks=3, num_token_masks=3)
    state = torch.random.get_rng_state()

    def tokens(seed):
        return explain(
            *small_whisper, tone, config=config, generate_kwargs=settings, seed=seed, progress=False
        ).token_ids

    assert tokens(0) == tokens(0) != tokens(1)
    assert torch.equal(torch.random.get_rng_state(), state)


# What is explained ---------------------------------------------------------------------------------------------------


def test_beam_search_and_other_generation_settings_are_followed(small_whisper, tone):
    model, processor = small_whisper
    window = processor(tone, sampling_rate=16_000, return_tensors="pt", max_length=32_000).input_features
    for settings in ({"num_beams": 3, "max_new_tokens": 5}, {"max_new_tokens": 4}, {"suppress_tokens": [11, 50256]}):
        settings = {"max_new_tokens": 6, **settings}
        plain = model.generate(window, **settings)[0]
        found = explain(model, processor, tone, config=CONFIG, generate_kwargs=settings, progress=False)
        without_end = [t for t in found.token_ids if t != 50256]
        assert without_end == [t for t in plain.tolist() if t != 50256 and t < 50257]
        assert found.provenance["output"]["reached_length_limit"] == (found.token_ids[-1] != 50256)


def test_a_given_text_is_explained(small_whisper, tone):
    model, processor = small_whisper
    found = explain(model, processor, tone, config=CONFIG, text="ask not what", progress=False)
    assert found.tokens == [" ask", " not", " what", "<|endoftext|>"]
    assert found.context_tokens == ["<|startoftranscript|>", "<|notimestamps|>", " ask", " not", " what"]
    assert found.provenance["output"]["given"] is True


def test_impact_of_text_is_about_text_that_the_model_wrote(explanation, small_whisper, tone):
    prefix, raw, impact = explanation.prefix_length, explanation.raw_token, explanation.text_impact
    assert impact[1] == pytest.approx(float(raw[1, prefix]), rel=1e-4)  # one written token comes before it
    assert abs(raw[1, : prefix + 1].mean() - raw[1, prefix]) > 0.1 * raw[1, prefix]  # the start tokens would show
    for k in range(2, len(explanation)):
        written = raw[k, prefix : prefix + k]
        assert written.min() - 1e-6 <= impact[k] <= written.max() + 1e-6
    joint = run(
        *small_whisper, tone, config=SpesConfig(estimator="perturbation", num_spectrogram_masks=6, perturb="joint")
    )
    assert joint.text_impact.isnan().all()


def test_bits_are_those_of_plain_calls(explanation, small_whisper, tone):
    """With the window's true frames at their mean, and with the embeddings of what the model wrote at zero."""
    model, processor = small_whisper
    window = get_adapter(model, processor).encode(load_audio(tone, 16_000, 16_000)).inputs["input_features"]
    silent = window.clone()
    silent[:, :, :120] = explanation.features.mean(0)[:, None]
    prefix, ids = explanation.prefix_length, torch.tensor(explanation.token_ids)
    start = processor.tokenizer.convert_tokens_to_ids(explanation.context_tokens[:prefix])
    context = torch.tensor([[*start, *explanation.token_ids[:-1]]])

    def log2_probability(features, keep=None):
        hook = model.get_decoder().embed_tokens.register_forward_hook(
            lambda module, args, output: output if keep is None else output * keep
        )
        with torch.no_grad():
            logits = model(input_features=features, decoder_input_ids=context).logits[0, prefix - 1 :]
        hook.remove()
        return logits.log_softmax(-1).gather(1, ids[:, None]).squeeze(1) / math.log(2)

    clean = log2_probability(window)
    keep = (torch.arange(context.shape[1]) < prefix).float()[:, None]
    torch.testing.assert_close(explanation.sound_bits, clean - log2_probability(silent), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(explanation.text_bits, clean - log2_probability(window, keep), rtol=1e-4, atol=1e-4)
    assert explanation.text_bits[0].abs() < 1e-4 < explanation.text_bits[1:].abs().min()  # nothing was written before
    torch.testing.assert_close(
        explanation.probability_without_sound, 2 ** log2_probability(silent), rtol=1e-3, atol=1e-9
    )


def deaf(model):
    """Have a model ignore the sound: nothing of what the decoder hears is added."""
    for layer in model.get_decoder().layers:
        for weight in layer.encoder_attn.out_proj.parameters():
            weight.data.zero_()


def forgetful(model):
    """Have a model ignore what was written: all tokens look alike, the output's own weights stay."""
    model.config.tie_word_embeddings = False
    model.proj_out.weight = nn.Parameter(model.proj_out.weight.detach().clone())
    model.get_decoder().embed_tokens.weight = nn.Parameter(torch.zeros_like(model.get_decoder().embed_tokens.weight))


@pytest.mark.parametrize("ignoring", [(deaf,), (forgetful,), (deaf, forgetful)])
def test_what_a_model_ignores_tells_it_nothing(small_whisper, tone, ignoring):
    model = copy.deepcopy(small_whisper[0])
    for ignore in ignoring:
        ignore(model)
    config = SpesConfig(num_spectrogram_masks=2, masks_per_token=2, num_token_masks=2)
    found = explain(model, small_whisper[1], tone, config=config, text="ask not what", progress=False)
    assert (found.sound_bits.abs() < 1e-4).all() == (deaf in ignoring)
    assert (found.text_bits.abs() < 1e-4).all() == (forgetful in ignoring)


def test_two_given_texts_give_two_maps_unless_kl_is_asked_for(small_whisper, tone):
    def maps(text, **settings):
        config = SpesConfig(num_spectrogram_masks=4, masks_per_token=4, num_token_masks=4, **settings)
        found = explain(*small_whisper, tone, config=config, text=text, progress=False)
        return found, found.raw_audio_saliency[0]

    one, of_one = maps("ask")
    other, of_other = maps("not")
    assert one.origin.config["impact"] == "log-probability"
    assert torch.corrcoef(torch.stack([of_one.flatten(), of_other.flatten()]))[0, 1] < 0.99
    by_name, position = maps("ask", impact="kl")
    assert by_name.origin.config["impact"] == "kl"
    torch.testing.assert_close(position, maps("not", impact="kl")[1])  # KL tells of the place alone
    assert any("KL" in note for note in by_name.notes) and not any("KL" in note for note in one.notes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision(small_whisper, tone, dtype):
    model = copy.deepcopy(small_whisper[0]).to(dtype)
    found = run(model, small_whisper[1], tone, text="ask not what")
    full = run(*small_whisper, tone, text="ask not what")
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert found.raw_audio.dtype == torch.float32
    together = torch.stack([found.raw_audio.flatten(), full.raw_audio.flatten()])
    assert float(torch.corrcoef(together)[0, 1]) > (0.98 if dtype == torch.float16 else 0.8)
    assert found.provenance["model"]["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast_is_faster_arithmetic_for_much_the_same_map(small_whisper, tone, explanation, dtype):
    model, processor = small_whisper
    seen = set()
    handle = model.get_encoder().layers[0].fc1.register_forward_hook(lambda _, args, out: seen.add(out.dtype))
    settings = dict(config=CONFIG, progress=False)
    try:
        found = Explainer(model, processor, autocast=dtype, **settings)(tone, text=explanation.text)
        exact = explain(model, processor, tone, text=explanation.text, **settings)
        with torch.autocast("cpu", getattr(torch, dtype)):  # not asked for by name, so not done
            around = explain(model, processor, tone, text=explanation.text, **settings)
    finally:
        handle.remove()
    assert seen == {getattr(torch, dtype), torch.float32}
    assert found.provenance["model"]["autocast"] == dtype and "autocast" not in around.provenance["model"]
    assert found.raw_audio.dtype == torch.float32 and {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(around.raw_audio, exact.raw_audio) and torch.equal(
        around.raw_token.nan_to_num(), exact.raw_token.nan_to_num()
    )
    together = torch.stack([found.raw_audio.flatten(), exact.raw_audio.flatten()])
    assert 0.95 < torch.corrcoef(together)[0, 1] < 1 - 1e-9


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.skipif(
    "ATEN_CPU_CAPABILITY" in os.environ,
    reason="torch.compile makes code for the processor's own instructions, whatever ATEN_CPU_CAPABILITY says; unset it",
)
def test_a_compiled_encoder_draws_the_same_maps(small_whisper, tone, explanation, monkeypatch):
    model, processor = copy.deepcopy(small_whisper[0]), small_whisper[1]
    graphs, really = [], torch.compile

    def compile(module, **kwargs):
        from torch._inductor.compile_fx import compile_fx

        def backend(graph, inputs):
            graphs.append(graph)
            return compile_fx(graph, inputs)

        return really(module, backend=backend, **kwargs)

    monkeypatch.setattr(torch, "compile", compile)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    # Several tokens go backwards through one graph; previous tokens are perturbed in the decoder.
    config = SpesConfig(num_spectrogram_masks=4, masks_per_token=4, num_token_masks=8)
    arguments = dict(config=config, batch_size=4, progress=False)
    explainer = Explainer(model, processor, compile=True, **arguments)
    found = explainer(tone, text=explanation.text)
    compiled = len(graphs)
    assert compiled >= 1
    explainer(tone, text=explanation.text)
    assert len(graphs) == compiled  # shapes that are known are not compiled again
    plain = Explainer(model, processor, **arguments)(tone, text=explanation.text)
    assert len(graphs) == compiled
    assert found.provenance["model"]["compiled"] and "compiled" not in plain.provenance["model"]
    assert_raw_maps_agree(found.raw_audio, plain.raw_audio, GRADIENT)
    assert_raw_maps_agree(found.raw_token, plain.raw_token)
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before


def test_stereo_is_mixed_down_with_a_note(small_whisper, tone, explanation):
    with pytest.warns(UserWarning, match="mono|mixed"):
        found = run(*small_whisper, np.stack([tone, tone]))
    assert any("mixed" in note for note in found.provenance["audio"]["notes"])
    torch.testing.assert_close(found.features, explanation.features)


def test_integer_samples_are_scaled(small_whisper, tone, explanation):
    found = run(*small_whisper, (tone * 32767).astype(np.int16), sampling_rate=16_000)
    torch.testing.assert_close(found.features, explanation.features, atol=0.05, rtol=0)


def test_progress_is_shown_unless_it_is_not_wanted(small_whisper, tone, capsys, monkeypatch):
    from functools import partial

    from tqdm import tqdm

    monkeypatch.setattr("spes_hf.plans.tqdm", lambda **kwargs: partial(tqdm, **{**kwargs, "delay": 0})())
    explain(*small_whisper, tone, config=CONFIG, generate_kwargs=SHORT)
    shown = capsys.readouterr().err
    assert "pass/s" in shown and "51/51" in shown
    run(*small_whisper, tone)
    assert not capsys.readouterr().err


# Bad input -----------------------------------------------------------------------------------------------------------


def test_audio_that_cannot_be_explained(small_whisper, tone, tmp_path):
    for audio, words in {
        "empty": (np.zeros(0, np.float32), "empty"),
        "nan": (np.where(np.arange(len(tone)) == 7, np.nan, tone), "NaN"),
        "short": (tone[:200], "two frames"),
        "missing": (tmp_path / "no.wav", "no.wav"),
    }.values():
        with pytest.raises(AudioError, match=words):
            run(*small_whisper, audio)
    corrupt = tmp_path / "corrupt.wav"
    corrupt.write_bytes(b"RIFF1234WAVEnonsense")
    with pytest.raises(AudioError, match="corrupt.wav"):
        run(*small_whisper, corrupt)
    with pytest.raises(AudioError, match="sampling_rate"):
        run(*small_whisper, tone, sampling_rate=-1)


def test_models_that_cannot_be_explained(small_whisper, tone):
    model, processor = small_whisper
    with pytest.raises(UnsupportedModelError, match="known types: .*whisper"):
        explain(nn.Linear(2, 2), processor, tone)
    with pytest.raises(UnsupportedModelError, match="WhisperTokenizer, only a tokenizer.*AutoProcessor"):
        explain(model, processor.tokenizer, tone)
    with pytest.raises(UnsupportedModelError, match="meta"):
        explain(copy.deepcopy(model).to("meta"), processor, tone)
    other = copy.deepcopy(processor)
    other.feature_extractor.feature_size = 128
    with pytest.raises(UnsupportedModelError, match="128 mel bins"):
        explain(model, other, tone)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"config": "fast"}, "config is 'fast'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"text": "   "}, "text is"),
        ({"text": "hello <|notimestamps|>"}, "cannot write"),
        ({"tgt_lang": "deu"}, "tgt_lang is 'deu'"),
        ({"language": "Klingon"}, "refused|language"),
        ({"generate_kwargs": {"num_return_sequences": 2}}, "num_return_sequences"),
        ({"generate_kwargs": {"language": "en"}}, "pass it to explain"),
        ({"generate_kwargs": {"generation_config": None}}, "generation_config"),
        ({"generate_kwargs": "num_beams=5"}, "pass a dictionary"),
        ({"text": "ask", "generate_kwargs": {"return_timestamps": True}}, "no timestamps"),
        ({"text": "a " * 600}, "at most 446"),
        ({"batch_size": True}, "batch_size is True"),
    ],
)
def test_arguments_outside_what_is_allowed(small_whisper, tone, arguments, words):
    with pytest.raises(ConfigError, match=words):
        explain(*small_whisper, tone, progress=False, **arguments)


def test_unknown_autocast(small_whisper):
    with pytest.raises(ConfigError, match="autocast is 'int8'.*bfloat16"):
        Explainer(*small_whisper, autocast="int8")


def test_text_beyond_the_models_vocabulary(small_whisper, tone):
    model, processor = copy.deepcopy(small_whisper[0]), small_whisper[1]
    model.config.vocab_size = 100
    with pytest.raises(ConfigError, match="vocabulary has 100"):
        explain(model, processor, tone, text="hello there", progress=False)


def test_zero_masks():
    with pytest.raises(ConfigError, match="num_spectrogram_masks is 0"):
        SpesConfig(num_spectrogram_masks=0)


@pytest.mark.parametrize("foil", [None, True], ids=["tokens", "contrast"])
def test_the_encoder_runs_once_for_the_clean_sound(small_whisper, tone, foil):
    """``generate()`` has run it; the other time is without sound."""
    model, processor = small_whisper
    written = explain(model, processor, tone, config=RandomConfig(), generate_kwargs=SHORT, progress=False).words()
    calls = []
    handle = model.get_encoder().register_forward_hook(lambda *_: calls.append(1))
    try:
        named = {0: "so"} if foil else None
        config = RandomConfig()
        explain(model, processor, tone, config=config, foil=named, generate_kwargs=SHORT, progress=False)
    finally:
        handle.remove()
    assert len(written) and len(calls) == 2
