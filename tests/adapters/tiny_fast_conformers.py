"""Tiny random models of the families with a FastConformer, Canary and Cohere Transcribe, with real processors.

Their vocabularies are laid out as those of the checkpoints: special tokens first, with the numbers that the
configurations name, and digits as added words.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from tiny import CORPUS, Family, lively
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

_SPECIAL = ["<unk>", "<|nospeech|>", "<pad>", "<|endoftext|>", "<|startoftranscript|>", "<|pnc|>", "<|nopnc|>"]
_SPECIAL += ["<|startofcontext|>", "<|itn|>", "<|noitn|>", "<|timestamp|>", "<|notimestamp|>", "<|diarize|>"]
_SPECIAL += ["<|nodiarize|>", "<|emo:undefined|>", "<|en|>", "<|de|>", "<|es|>"]

TEMPLATE = (
    "{% for message in messages %}{% for part in message.content %}{% if part.type == 'text' %}"
    "<|startofcontext|><|startoftranscript|><|emo:undefined|>"
    "<|{{ part.source_language }}|><|{{ part.target_language }}|>"
    "{{ '<|pnc|>' if part.punctuation else '<|nopnc|>' }}<|noitn|><|notimestamp|><|nodiarize|>"
    "{% endif %}{% endfor %}{% endfor %}"
)

# One layer that makes a position of 8 frames, as all checkpoints do.
ENCODER: dict[str, Any] = dict(
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    intermediate_size=48,
    conv_kernel_size=9,
    subsampling_conv_channels=8,
    num_mel_bins=128,
    scale_input=False,
    max_position_embeddings=60,  # 4.8 s
)

DECODER: dict[str, Any] = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, head_dim=16, intermediate_size=48
)


def tokenizer() -> Any:
    """Return a byte-pair vocabulary with the families' special tokens and digits, and a space in front of a text."""
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    learner.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    learner.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=140, special_tokens=_SPECIAL, show_progress=False)
    )
    learner.add_tokens([AddedToken(str(digit), normalized=False, special=False) for digit in range(10)])
    named = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<|endoftext|>"}
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=learner, bos_token="<|startoftranscript|>", clean_up_tokenization_spaces=False, **named
    )


def hearing(model: Any) -> Any:
    """Return a lively model whose encoder's output follows the sound rather than its own biases."""
    for name, parameter in lively(model).model.encoder.subsampling.named_parameters():
        parameter.data.mul_(4.0 if name.endswith("weight") else 0.1)
    return model


def silent(words: Any) -> list[int]:
    """Return the special tokens that a model does not write: all but the end of sequence."""
    return [i for i in range(len(_SPECIAL)) if i != words.eos_token_id]


def canary(folder: Path) -> tuple[Any, Any]:
    """Return a Canary and its processor."""
    words = tokenizer()
    torch.manual_seed(0)
    config = tf.CanaryConfig(
        vocab_size=len(words),
        encoder_config={**ENCODER, "model_type": "parakeet_encoder"},
        decoder_config={**DECODER, "vocab_size": len(words), "num_key_value_heads": 2, "max_position_embeddings": 64},
    )
    model = hearing(tf.CanaryForConditionalGeneration(config))
    model.generation_config = tf.GenerationConfig(
        decoder_start_token_id=7,
        bos_token_id=4,
        eos_token_id=3,
        pad_token_id=2,
        max_length=40,
        suppress_tokens=silent(words),
    )
    extractor = tf.ParakeetFeatureExtractor(feature_size=128)
    return model, tf.CanaryProcessor(extractor, words, chat_template=TEMPLATE)


def cohere_asr(folder: Path) -> tuple[Any, Any]:
    """Return a Cohere Transcribe, two of whose heads share a key, and its processor, which cuts after 4.5 s."""
    words = tokenizer()
    torch.manual_seed(0)
    config = tf.CohereAsrConfig(
        vocab_size=len(words),
        encoder_config={**ENCODER, "model_type": "parakeet_encoder"},
        num_key_value_heads=1,
        max_position_embeddings=64,
        **DECODER,
    )
    model = hearing(tf.CohereAsrForConditionalGeneration(config))
    model.generation_config = tf.GenerationConfig(
        decoder_start_token_id=words.convert_tokens_to_ids("▁"),
        bos_token_id=4,
        eos_token_id=3,
        pad_token_id=2,
        max_length=40,
        suppress_tokens=silent(words),
    )
    extractor = tf.CohereAsrFeatureExtractor(max_audio_clip_s=4.5, overlap_chunk_second=1.0)
    return model, tf.CohereAsrProcessor(extractor, words)


def set_fast_conformer(features: torch.Tensor, frame: int, mel: int, value: float) -> None:
    """(1, time, mel)."""
    features[0, frame, mel] = value


def _canary_prompt(processor: Any) -> dict[str, Any]:
    """Return the prompt as a user gets it, with the sound."""
    sound = np.random.default_rng(0).standard_normal(8_000).astype(np.float32)
    request = processor.apply_transcription_request(sound, source_language="de", target_language="en")
    return {"decoder_input_ids": request["decoder_input_ids"]}


def _cohere_prompt(processor: Any) -> dict[str, Any]:
    sound = np.random.default_rng(0).standard_normal(8_000).astype(np.float32)
    return {"decoder_input_ids": processor(sound, language="de", sampling_rate=16_000)["decoder_input_ids"]}


_REST = ("<|pnc|>", "<|noitn|>", "<|notimestamp|>", "<|nodiarize|>")

FAST_CONFORMERS: dict[str, Family] = {
    "canary": Family(
        build=canary,
        set_value=set_fast_conformer,
        decoder="model.decoder",
        frames=71,  # and one of padding
        first_time=0.0,
        options={"language": "de", "tgt_lang": "en"},
        plain=_canary_prompt,
        wrong=(
            ({"language": "fr"}, "language is 'fr', which this checkpoint does not have; allowed: de, en, es"),
            ({"tgt_lang": "Klingon"}, "tgt_lang is 'Klingon'.*de, en, es"),
            ({"task": "translate"}, "task is 'translate'.*takes language, tgt_lang"),
        ),
        prefix=("<|startofcontext|>", "<|startoftranscript|>", "<|emo:undefined|>", "<|de|>", "<|en|>", *_REST),
    ),
    "cohere_asr": Family(
        build=cohere_asr,
        set_value=set_fast_conformer,
        decoder="model.decoder",
        frames=71,
        first_time=0.0,
        options={"language": "de"},
        plain=_cohere_prompt,
        wrong=(
            ({}, "language is missing; allowed: de, en, es"),
            ({"language": "fr"}, "language is 'fr', which this checkpoint does not have; allowed: de, en, es"),
            ({"language": "de", "tgt_lang": "en"}, "tgt_lang is 'en'.*takes language"),
        ),
        prefix=("▁", "<|startofcontext|>", "<|startoftranscript|>", "<|emo:undefined|>", "<|de|>", "<|de|>", *_REST),
    ),
}
