"""The shipped tiny models, which are trained: what the adapters write is what the models write, and makes sense."""

from __future__ import annotations

import pytest
import torch

from spes_hf.adapters import GenerationOptions, get_adapter
from spes_hf.audio.load import load_audio


@pytest.fixture(scope="module", params=["speech2text-en", "seamless-en-de-es"])
def trained(request):
    from spes_hf.demo import load_tiny_model, tiny_clips

    return load_tiny_model(request.param), tiny_clips()[:6]


def settings(model):
    languages = getattr(model.generation_config, "text_decoder_lang_to_code_id", None)
    return [{"tgt_lang": code} for code in languages if code != "eng"] if languages else [{}]


def test_writes_what_the_model_writes(trained):
    (model, processor), clips = trained
    adapter = get_adapter(model, processor)
    complete = 0
    for clip in clips:
        waveform = load_audio(clip["path"], 16_000)
        utterance = adapter.encode(waveform)
        inputs = processor.feature_extractor(waveform.samples, sampling_rate=16_000, return_tensors="pt")
        for options in settings(model):
            target = adapter.generate(utterance, GenerationOptions(**options))
            sequence = model.generate(**inputs, **options)[0]
            assert torch.cat([target.prefix_ids, target.token_ids]).tolist() == sequence.tolist()
            text = processor.batch_decode(sequence[None], skip_special_tokens=True)[0]
            assert adapter.text(target.token_ids) == text.strip()
            likeliest = adapter.logits(utterance, target)[0].argmax(-1)
            assert torch.equal(likeliest, target.token_ids)
            complete += target.complete
    assert complete >= 0.9 * len(clips) * len(settings(model))


def test_text_has_the_tokens_that_the_model_wrote(trained):
    (model, processor), clips = trained
    adapter = get_adapter(model, processor)
    for clip in clips:
        utterance = adapter.encode(load_audio(clip["path"], 16_000))
        for options in settings(model):
            target = adapter.generate(utterance, GenerationOptions(**options))
            again = adapter.encode_text(utterance, adapter.text(target.token_ids), GenerationOptions(**options))
            assert torch.equal(again.prefix_ids, target.prefix_ids)
            assert again.token_ids.tolist() == target.token_ids.tolist()


def test_beams_of_the_model_are_the_adapter_s(trained):
    (model, processor), clips = trained
    adapter = get_adapter(model, processor)
    waveform = load_audio(clips[0]["path"], 16_000)
    inputs = processor.feature_extractor(waveform.samples, sampling_rate=16_000, return_tensors="pt")
    for options in settings(model):
        beams = GenerationOptions(**options, generate_kwargs={"num_beams": 4})
        target = adapter.generate(adapter.encode(waveform), beams)
        sequence = model.generate(**inputs, **options, num_beams=4)[0].tolist()
        assert torch.cat([target.prefix_ids, target.token_ids]).tolist() == sequence[: len(sequence)]
