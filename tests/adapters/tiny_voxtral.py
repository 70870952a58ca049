"""A tiny random Voxtral, with a tokenizer of mistral-common that is made without a hub."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import soundfile
import torch
import transformers as tf
from tiny import lively
from tiny_vocabulary import byte_level

from spes_hf.text import byte_level_piece

TEKKEN_PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN_SPECIAL = {
    0: "<unk>",
    1: "<s>",
    2: "</s>",
    3: "[INST]",
    4: "[/INST]",
    5: "[AVAILABLE_TOOLS]",
    6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]",
    8: "[/TOOL_RESULTS]",
    9: "[TOOL_CALLS]",
    11: "<pad>",
    14: "[PREFIX]",
    15: "[MIDDLE]",
    16: "[SUFFIX]",
    17: "[SYSTEM_PROMPT]",
    18: "[/SYSTEM_PROMPT]",
    19: "[TOOL_CONTENT]",
    20: "[ARGS]",
    21: "[CALL_ID]",
    24: "[AUDIO]",
    25: "[BEGIN_AUDIO]",
    34: "[TRANSCRIBE]",
}


def tekken(folder: Path, chunk_s: float) -> Path:
    """Write a tokenizer of mistral-common to a folder, and return the file."""
    vocabulary, _ = byte_level(320)
    learned = [byte_level_piece(token).encode("utf-8", "surrogateescape") for token in vocabulary]
    tokens = [bytes([b]) for b in range(256)]
    tokens += [token for token in learned if len(token) > 1]
    special = [{"rank": i, "token_str": TEKKEN_SPECIAL.get(i, f"<SPECIAL_{i}>"), "is_control": True} for i in range(40)]
    config = {
        "pattern": TEKKEN_PATTERN,
        "num_vocab_tokens": len(tokens),
        "default_vocab_size": len(tokens) + len(special),
        "default_num_special_tokens": len(special),
        "version": "v11",
    }
    audio = {
        "sampling_rate": 16_000,
        "frame_rate": 12.5,
        "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400},
        "chunk_length_s": chunk_s,
    }
    vocab = [
        {"rank": i, "token_bytes": base64.b64encode(token).decode(), "token_str": token.decode("utf-8", "replace")}
        for i, token in enumerate(tokens)
    ]
    path = folder / "tekken.json"
    path.write_text(json.dumps({"config": config, "vocab": vocab, "special_tokens": special, "audio": audio}))
    return path


def voxtral(folder: Path, seconds: int = 2) -> tuple[Any, Any]:
    """Return a Voxtral with chunks of so many seconds."""
    from transformers.tokenization_mistral_common import MistralCommonBackend

    tokenizer = MistralCommonBackend(tekken(folder, float(seconds)))
    torch.manual_seed(0)
    config = tf.VoxtralConfig(
        audio_config=dict(
            model_type="voxtral_encoder",
            hidden_size=32,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_source_positions=50 * seconds,
        ),
        text_config=dict(
            model_type="llama",
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=48,
            max_position_embeddings=2048,
        ),
        audio_token_id=24,
    )
    model = lively(tf.VoxtralForConditionalGeneration(config))
    model.generation_config = tf.GenerationConfig(
        bos_token_id=1, eos_token_id=2, pad_token_id=11, max_new_tokens=30, suppress_tokens=list(range(40))
    )
    extractor = tf.WhisperFeatureExtractor(feature_size=128, chunk_length=seconds)
    return model, tf.VoxtralProcessor(extractor, tokenizer)


def voxtral_inputs(processor: Any, samples: Any, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return what the processor makes of a transcription request, or of a chat.

    Its features are those of the samples, by its own function: a request has been through a file of 16 bits.
    """
    sound = {"sampling_rate": 16_000, "pad_to_multiple_of": 32_000, "max_source_positions": 200}
    if "prompt" in options:
        file = io.BytesIO()
        soundfile.write(file, samples, 16_000, format="WAV")
        audio = {"type": "audio", "base64": base64.b64encode(file.getvalue()).decode()}
        chat = [{"role": "user", "content": [audio, {"type": "text", "text": options["prompt"]}]}]
        found = processor.apply_chat_template(chat, processor_kwargs={"audio_kwargs": sound})
    else:
        found = processor.apply_transcription_request(
            [samples], "tiny", options.get("language"), format=["wav"], audio_kwargs=sound, **_LOADED
        )
    exact = processor._retrieve_input_features(
        [samples], 200, sampling_rate=16_000, padding=True, truncation=False, pad_to_multiple_of=32_000, **_TENSORS
    )
    assert exact.shape == found["input_features"].shape and (exact - found["input_features"]).abs().max() < 0.5
    return {**found, "input_features": exact}


def set_chunked(features: torch.Tensor, frame: int, mel: int, value: float) -> None:
    """(chunks, mel, 200)."""
    features[frame // 200, mel, frame % 200] = value


_LOADED = {"sampling_rate": 16_000}
_TENSORS = {"return_tensors": "pt"}
