"""What users pass as model and processor: a pipeline is taken, anything else is refused with the line to write."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import transformers as tf
from test_contract import FEW, assert_untouched, snapshot
from test_wrappers import FOUR, explained, same
from tiny import TEXT, VARIED

from spes_hf import (
    AudioError,
    Deletion,
    Explain,
    Explainer,
    Explanation,
    Insertion,
    UnsupportedModelError,
    explain,
    explain_dataset,
    get_adapter,
)


def pipe_of(case, **kwargs):
    model, processor = case.copy()
    plain = case.family.plain(processor) if callable(case.family.plain) else case.family.plain
    settings = {"generate_kwargs": {**plain, **VARIED}, **kwargs}
    return tf.AutomaticSpeechRecognitionPipeline(
        model, feature_extractor=processor.feature_extractor, tokenizer=processor.tokenizer, device="cpu", **settings
    )


# Pipelines ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FOUR, "whisper", "speech_to_text-languages"])
def test_pipeline_is_explained_as_its_model_with_its_settings(cases, name):
    case = cases(name)
    pipe = pipe_of(case)
    before = snapshot(pipe.model)
    settings = copy.deepcopy((pipe._forward_params, getattr(pipe, "_generate_kwargs", None)))
    found = explain(pipe, audio=case.audio, config=FEW, progress=False)
    assert_untouched(pipe.model, before)
    assert (pipe._forward_params, getattr(pipe, "_generate_kwargs", None)) == settings
    # What it wrote is what the pipeline writes, by beam search as its defaults are.
    assert found.text == pipe(case.audio.copy())["text"].strip()
    pad = case.processor.tokenizer.pad_token_id
    beams = {**VARIED, "num_beams": 5, "pad_token_id": pad}
    plain = {"forced_bos_token_id": case.target.prefix_ids[1].item()} if name == "speech_to_text-languages" else {}
    options = {} if plain else case.family.options
    arguments = {"config": FEW, "progress": False, "generate_kwargs": {**beams, **plain}}
    same(found, explain(case.model, case.processor, case.audio, **arguments, **options))
    assert found.provenance["output"]["generate_kwargs"]["num_beams"] == 5


def test_pipeline_settings_give_way_to_those_of_the_call(cases):
    case = cases("whisper")
    pipe = pipe_of(case, generate_kwargs={"language": "es", "task": "transcribe", **VARIED})
    called = {"language": "de", "task": "translate", "generate_kwargs": {"num_beams": 1, "max_length": 11}}
    found = explain(pipe, None, case.audio, config=FEW, progress=False, **called)
    wanted = {"num_beams": 1, "max_length": 11, "no_repeat_ngram_size": 1}
    same(found, explained(case, case.model, generate_kwargs=wanted))
    assert "max_new_tokens" not in found.provenance["output"]["generate_kwargs"]


def test_pipeline_with_a_generation_config(cases):
    case = cases("whisper-en")
    config = copy.deepcopy(case.model.generation_config)
    config.update(num_beams=2, **VARIED)
    pipe = pipe_of(case, generate_kwargs={}, generation_config=config)
    found = explain(pipe, audio=case.audio, config=FEW, progress=False)
    assert found.text == pipe(case.audio.copy())["text"].strip()
    same(found, explained(case, case.model, generate_kwargs={"num_beams": 2, **VARIED}))


@pytest.mark.parametrize("timestamps", [True, "word", False])
def test_pipeline_with_timestamps(cases, timestamps):
    case = cases("whisper-en")
    pipe = pipe_of(case)
    pipe._forward_params["return_timestamps"] = timestamps
    settings = get_adapter(pipe).settings
    assert settings["return_timestamps"] is bool(timestamps) and "return_token_timestamps" not in settings
    given = explain(pipe, audio=case.audio, text=TEXT, config=FEW, progress=False)  # which has no timestamps
    assert given.text == TEXT and "return_timestamps" not in given.provenance["output"]["generate_kwargs"]


def test_pipeline_at_every_entry_point(cases, tmp_path):
    from datasets import Dataset

    case = cases("seamless_m4t_v2")
    pipe = pipe_of(case)
    found = explain(pipe, audio=case.audio, config=FEW, progress=False)
    same(Explainer(pipe, config=FEW, progress=False)(case.audio), found)
    kwargs = {**VARIED, "num_beams": 5, "pad_token_id": case.processor.tokenizer.pad_token_id}
    for metric in (Deletion, Insertion):
        expected = metric(case.model, case.processor, (0.0, 0.5, 1.0))({"explanation": found})
        curve = metric(pipe, fractions=(0.0, 0.5, 1.0))({"explanation": found})
        assert curve[metric.key] == expected[metric.key]
    assert Deletion(pipe)({"explanation": found})["deletion"]["texts"][0] == found.text
    row = {"audio": case.audio, "id": "a"}
    transform = Explain(pipe, config=FEW)
    plainly = Explain(case.model, case.processor, FEW, tgt_lang="spa", generate_kwargs=kwargs)
    same(*(Explanation.from_row(each(row)) for each in (transform, plainly)))
    other = Explain(pipe_of(case, generate_kwargs={"tgt_lang": "deu", **VARIED}), config=FEW)
    assert transform.fingerprint() == Explain(pipe_of(case), config=FEW).fingerprint() != other.fingerprint()
    data = Dataset.from_list([{"audio": case.audio.tolist(), "id": "a"}])
    job = explain_dataset(pipe, None, data, tmp_path / "out", FEW, sampling_rate=16_000, progress=False)
    assert job.finished == 1 and not job.failures


def test_pipeline_of_a_wrapped_model(cases):
    from test_wrappers import with_lora

    case = cases("whisper-en")
    pipe = pipe_of(case)
    found = explain(pipe, audio=case.audio, config=FEW, progress=False)
    pipe.model = torch.compile(with_lora(pipe.model, "SEQ_2_SEQ_LM"), backend="eager")
    other = explain(pipe, audio=case.audio, config=FEW, progress=False)
    assert other.provenance["model"]["adapters"] == ["default"] and not torch.equal(other.raw_audio, found.raw_audio)


def test_audio_that_is_missing_is_an_error(cases):
    with pytest.raises(AudioError, match="audio is of type NoneType"):
        explain(pipe_of(cases("whisper-en")))


# Mistakes -------------------------------------------------------------------------------------------------------------

CALLS = {
    "explain": lambda model, processor: explain(model, processor, [0.0, 0.1] * 8_000),
    "Explainer": Explainer,
    "Explain": Explain,
    "Deletion": Deletion,
    "get_adapter": get_adapter,
}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("name", "model is 'openai/whisper-tiny'.*AutoModelForSpeechSeq2Seq.from_pretrained('openai/whisper-tiny')"),
        ("path", "model is '/models/mine'.*AutoProcessor.from_pretrained('/models/mine')"),
        (
            "swapped",
            "model is a WhisperProcessor and processor a WhisperForCond.*swapped.*explain(model, proc",
        ),
        (
            "class",
            "model is the class WhisperForCond.*WhisperForConditionalGeneration.from_pretrained",
        ),
        ("config", "model is a WhisperConfig, a configuration.*AutoModelForSpeechSeq2Seq.from_pretrained(name)"),
        ("other pipeline", 'model is a TextGenerationPipeline.*pipeline("automatic-speech-recognition", model=name)'),
        (
            "feature extractor",
            "processor is a WhisperFeatureExtractor, only a feature extractor.*AutoProcessor",
        ),
        ("tokenizer", "processor is a WhisperTokenizer.*only a tokenizer.*AutoProcessor.from_pretrained('me/mine')"),
        (
            "processor's name",
            "processor is 'openai/whisper-tiny'.*AutoProcessor.from_pretrained('openai/whis",
        ),
        (
            "no processor",
            "processor is None, which is allowed only with a pipeline.*AutoProcessor.from_pretrained('me/mine')",
        ),
        ("processor class", "processor is the class WhisperProcessor.*AutoProcessor.from_pretrained('me/mine')"),
        ("pipeline as processor", "processor is a AutomaticSpeechRecognitionPipeline.*explain(pipe, audio=audio)"),
    ],
)
def test_mistake_is_refused_with_the_line_to_write(cases, what, message):
    from pathlib import PurePosixPath

    case = cases("whisper-en")
    model, processor = case.copy()
    model.config._name_or_path = "me/mine"
    passed = {
        "name": lambda: ("openai/whisper-tiny", "openai/whisper-tiny"),
        "path": lambda: (PurePosixPath("/models/mine"), processor),
        "swapped": lambda: (processor, model),
        "class": lambda: (type(model), processor),
        "config": lambda: (model.config, processor),
        "other pipeline": lambda: (text_pipeline(processor), None),
        "feature extractor": lambda: (model, processor.feature_extractor),
        "tokenizer": lambda: (model, processor.tokenizer),
        "processor's name": lambda: (model, "openai/whisper-tiny"),
        "no processor": lambda: (model, None),
        "processor class": lambda: (model, type(processor)),
        "pipeline as processor": lambda: (model, pipe_of(case)),
    }[what]()
    pattern = ".*".join(map(re.escape, message.split(".*")))
    for call in CALLS.values():
        with pytest.raises(UnsupportedModelError, match=pattern):
            call(*passed)


def text_pipeline(processor):
    config = tf.GPT2Config(vocab_size=400, n_embd=16, n_layer=1, n_head=2)
    return tf.TextGenerationPipeline(tf.GPT2LMHeadModel(config), tokenizer=processor.tokenizer, device="cpu")
