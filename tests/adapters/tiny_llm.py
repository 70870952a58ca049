"""Tiny random speech LLMs, with real processors and chat templates, made without a hub. One entry of `LLMS` each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tiny import lively
from tiny_speech.qwen3_asr import CHAT_TEMPLATE
from tiny_vocabulary import INSTRUCTION, byte_level
from tiny_voxtral import set_chunked, voxtral, voxtral_inputs
from torch import nn


@dataclass(frozen=True)
class LLM:
    """What the contract suite must know of a speech LLM.

    Attributes:
        build: Returns model and processor; gets an empty folder.
        needs: Packages that its processor needs.
        inputs: Returns what the processor makes of samples, as a user calls it; gets processor, samples, options.
        set_value: Puts a value at (frame, mel bin) of the model's own ``input_features`` of one utterance, in place.
        frames: True frames of the 11,400 samples of the suite's clip.
        audio_tokens: Placeholders that the processor makes of it.
        first_time: Centre of the first frame, in seconds.
        before: Tokens of the prompt before the audio, by default.
        behind: Those behind it.
        options: Language, task and prompt, as `explain` takes them.
        instruction: The text among the prompt that these options, or the family's own choice, put there.
        told: The same where `INSTRUCTION` is the prompt.
        chunk: Frames that the encoder reads apart from others.
        slack_s: How far from the centre of its frames an audio embedding may be said to lie.
        wrong: Options that must be refused, and what the message must say.
    """

    build: Callable[[Path], tuple[Any, Any]]
    inputs: Callable[[Any, Any, dict[str, Any]], dict[str, torch.Tensor]]
    set_value: Callable[[torch.Tensor, int, int, float], None]
    frames: int
    audio_tokens: int
    first_time: float
    before: str
    behind: str
    instruction: str
    told: str
    chunk: int
    slack_s: float = 0.0
    needs: tuple[str, ...] = ()
    options: dict[str, str] = field(default_factory=dict)
    wrong: tuple[tuple[dict[str, Any], str], ...] = ()


def qwen_tokenizer(*more: str, named: dict[str, str] | None = None) -> Any:
    """Return a tokenizer of Qwen's kind, with tokens that mark turns and these."""
    vocabulary, merges = byte_level(320)
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = tf.Qwen2Tokenizer(
        vocab=vocabulary, merges=merges, eos_token="<|im_end|>", pad_token="<|endoftext|>", **(named or {})
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [*marks, *more]})
    return tokenizer


def outspoken(model: nn.Module, tokenizer: Any, ends: list[str], heard: float = 4.0) -> Any:
    """Return the model with larger weights, which writes text alone until a limit."""
    model = lively(model)
    for name, parameter in model.named_parameters():
        if "projector" in name and parameter.ndim > 1:  # what is heard outweighs what was written
            parameter.data.mul_(heard)
    ids = tokenizer.convert_tokens_to_ids(ends)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    unknown = range(len(tokenizer), model.config.get_text_config().vocab_size)  # rows that fill up the vocabulary
    model.generation_config = tf.GenerationConfig(
        eos_token_id=ids, pad_token_id=ids[0], max_new_tokens=30, suppress_tokens=sorted({*special, *unknown})
    )
    return model


# Qwen2-Audio ----------------------------------------------------------------------------------------------------------


def qwen2_audio(folder: Path, seconds: int = 2) -> tuple[Any, Any]:
    """Return a Qwen2-Audio with a window of so many seconds."""
    tokenizer = qwen_tokenizer("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
    torch.manual_seed(0)
    config = tf.Qwen2AudioConfig(
        audio_config=dict(
            model_type="qwen2_audio_encoder",
            d_model=32,
            encoder_layers=1,
            encoder_attention_heads=2,
            encoder_ffn_dim=48,
            num_mel_bins=128,
            max_source_positions=50 * seconds,
        ),
        text_config=dict(
            model_type="qwen2",
            vocab_size=len(tokenizer) + 7,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            max_position_embeddings=2048,
        ),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    model = outspoken(tf.Qwen2AudioForConditionalGeneration(config), tokenizer, ["<|endoftext|>", "<|im_end|>"])
    extractor = tf.WhisperFeatureExtractor(feature_size=128, chunk_length=seconds)
    return model, tf.Qwen2AudioProcessor(extractor, tokenizer)


def qwen2_audio_inputs(processor: Any, samples: Any, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return what the processor makes of a chat."""
    prompt = options.get("prompt", "Transcribe the speech into text.")
    content = [{"type": "audio", "audio_url": "clip.wav"}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return dict(processor(text=text, audio=[samples], sampling_rate=16_000, return_tensors="pt"))


def set_mel_first(features: torch.Tensor, frame: int, mel: int, value: float) -> None:
    """(1, mel, time)."""
    features[0, mel, frame] = value


# Qwen3-ASR ------------------------------------------------------------------------------------------------------------


def qwen3_asr(folder: Path) -> tuple[Any, Any]:
    """Return a Qwen3-ASR whose encoder attends within windows of two chunks."""
    named = {"audio_token": "<|audio_pad|>", "audio_bos_token": "<|audio_start|>", "audio_eos_token": "<|audio_end|>"}
    tokenizer = qwen_tokenizer(*named.values(), named={"model_specific_special_tokens": named})
    tokenizer.add_tokens(["<asr_text>"])
    torch.manual_seed(0)
    config = tf.Qwen3ASRConfig(
        audio_config=dict(
            model_type="qwen3_asr_encoder",
            d_model=32,
            encoder_layers=1,
            encoder_attention_heads=2,
            encoder_ffn_dim=48,
            output_dim=32,
            downsample_hidden_size=16,
            n_window_infer=200,
        ),
        text_config=dict(
            model_type="qwen3",
            vocab_size=len(tokenizer) + 7,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=48,
            max_position_embeddings=256,
        ),
        audio_token_id=tokenizer.convert_tokens_to_ids("<|audio_pad|>"),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]),
    )
    model = outspoken(tf.Qwen3ASRForConditionalGeneration(config), tokenizer, ["<|endoftext|>", "<|im_end|>"], 12.0)
    return model, tf.Qwen3ASRProcessor(tf.Qwen3ASRFeatureExtractor(), tokenizer, chat_template=CHAT_TEMPLATE)


def qwen3_asr_inputs(processor: Any, samples: Any, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return what the processor makes of a transcription request."""
    return dict(processor.apply_transcription_request([samples], **options))


# Granite Speech -------------------------------------------------------------------------------------------------------

GRANITE_TEMPLATE = """{% for message in messages -%}
<|start_of_role|>{{ message.role }}<|end_of_role|>{{ message.content }}<|end_of_text|>
{% endfor -%}
{%- if add_generation_prompt -%}<|start_of_role|>assistant<|end_of_role|>{%- endif -%}"""


def granite_speech(folder: Path) -> tuple[Any, Any]:
    """Return a Granite Speech with windows of 15 stacked frames, three embeddings each."""
    vocabulary, merges = byte_level(320)
    tokenizer = tf.GPT2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        bos_token="<|end_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<|end_of_text|>",
        unk_token="<|end_of_text|>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start_of_role|>", "<|end_of_role|>", "<|audio|>"]})
    tokenizer.chat_template = GRANITE_TEMPLATE
    torch.manual_seed(0)
    config = tf.GraniteSpeechConfig(
        encoder_config=dict(hidden_dim=32, num_layers=2, num_heads=2, output_dim=8, context_size=20, max_pos_emb=40),
        projector_config=dict(
            model_type="blip_2_qformer",
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=48,
            encoder_hidden_size=32,
            cross_attention_frequency=1,
        ),
        text_config=dict(
            model_type="granite",
            vocab_size=len(tokenizer) + 7,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            max_position_embeddings=256,
            embedding_multiplier=2.0,
        ),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|audio|>"),
        has_lora_adapter=False,
    )
    model = outspoken(tf.GraniteSpeechForConditionalGeneration(config), tokenizer, ["<|end_of_text|>"])
    return model, tf.GraniteSpeechProcessor(tf.GraniteSpeechFeatureExtractor(), tokenizer, chat_template=None)


def granite_speech_inputs(processor: Any, samples: Any, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return what the processor makes of a chat."""
    prompt = options.get("prompt", "can you transcribe the speech into a written format?")
    chat = [{"role": "user", "content": f"<|audio|>{prompt}"}]
    text = processor.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return dict(processor(text, torch.as_tensor(samples)[None], return_tensors="pt"))


def set_stacked(features: torch.Tensor, frame: int, mel: int, value: float) -> None:
    """(1, time / 2, 2 · mel)."""
    features[0, frame // 2, frame % 2 * 80 + mel] = value


LLMS: dict[str, LLM] = {
    "granite_speech": LLM(
        build=granite_speech,
        inputs=granite_speech_inputs,
        needs=("torchaudio",),
        set_value=set_stacked,
        frames=72,
        audio_tokens=9,
        first_time=0.0,
        before="<|start_of_role|>user<|end_of_role|>",
        behind="can you transcribe the speech into a written format?<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>",
        instruction="can you transcribe the speech into a written format?",
        told=INSTRUCTION,
        chunk=10_000,
        slack_s=0.1,
        wrong=(
            ({"tgt_lang": "de"}, "tgt_lang is 'de'.*takes prompt"),
            ({"prompt": "<|audio|>"}, r"prompt contains <\|audio\|>"),
        ),
    ),
    "qwen2_audio": LLM(
        build=qwen2_audio,
        inputs=qwen2_audio_inputs,
        set_value=set_mel_first,
        frames=72,
        audio_tokens=18,
        first_time=0.0,
        before="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nAudio 1: <|audio_bos|>",
        behind="<|audio_eos|>\nTranscribe the speech into text.<|im_end|>\n<|im_start|>assistant\n",
        instruction="Transcribe the speech into text.",
        told=INSTRUCTION,
        chunk=200,
        wrong=(
            ({"language": "de"}, "language is 'de'.*takes prompt"),
            ({"prompt": " "}, "prompt is ' '.*pass a non-empty instruction"),
            ({"prompt": "What? <|AUDIO|>"}, "prompt contains <|AUDIO|>".replace("|", r"\|")),
        ),
    ),
    "qwen3_asr": LLM(
        build=qwen3_asr,
        inputs=qwen3_asr_inputs,
        set_value=set_mel_first,
        frames=71,
        audio_tokens=9,
        first_time=0.0,
        before="<|im_start|>system\n<|im_end|>\n<|im_start|>user\n<|audio_start|>",
        behind="<|audio_end|><|im_end|>\n<|im_start|>assistant\nlanguage German<asr_text>",
        instruction="language German",
        told=f"{INSTRUCTION}language German",
        chunk=100,
        options={"language": "de"},
        wrong=(
            ({"task": "translate"}, "task is 'translate'.*takes language, prompt"),
            ({"language": "xx"}, "language is 'xx', which the processor refuses"),
            ({"prompt": ""}, "prompt is ''.*pass a non-empty instruction"),
        ),
    ),
    "voxtral": LLM(
        build=voxtral,
        inputs=voxtral_inputs,
        needs=("mistral_common",),
        set_value=set_chunked,
        frames=72,
        audio_tokens=25,
        first_time=0.0,
        before="<s>[INST][BEGIN_AUDIO]",
        behind="[/INST][TRANSCRIBE]",
        instruction="",
        told=INSTRUCTION,
        chunk=200,
        wrong=(
            ({"task": "translate"}, "task is 'translate'.*takes language, prompt"),
            ({"language": "english"}, "language is 'english', which the processor refuses"),
            ({"language": "de", "prompt": "Who speaks?"}, "leave one of the two out"),
            ({"prompt": "[AUDIO]"}, r"prompt contains \[AUDIO\]"),
        ),
    ),
}
