"""Tiny random models of every family, with real processors, made without a hub. One entry of `FAMILIES` each.

A new family needs one function that returns a model and a processor, and one `Family` that says how the contract
suite reaches into it without the adapter: where a value of the spectrogram lies in the model's own input, and where
the decoder is.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn

from spes_hf.adapters import Adapter, GenerationOptions, Target, Utterance

TEXT = "der kleine hund schläft im garten"
CORPUS = [TEXT, "the little dog sleeps in the garden", "el perro pequeño duerme en el jardín", "and so, my fellow"] * 3


@dataclass(frozen=True)
class Family:
    """What the contract suite must know of a family.

    Attributes:
        build: Returns model and processor; gets an empty folder.
        set_value: Puts a value at (frame, mel bin) of the model's own input of one utterance, in place.
        decoder: Name of the module that holds ``embed_tokens``.
        frames: True frames of the 11,400 samples of the suite's clip.
        first_time: Centre of the first frame, in seconds.
        options: Language and task, as `explain` takes them.
        plain: The same, as ``model.generate()`` takes them, or a function that gets the processor and returns it.
        wrong: Options that must be refused, and what the message must say.
        prefix: Start and prompt tokens.
        needs: Packages that its processor needs.
    """

    build: Callable[[Path], tuple[Any, Any]]
    set_value: Callable[[torch.Tensor, int, int, float], None]
    decoder: str
    frames: int
    first_time: float
    options: dict[str, str] = field(default_factory=dict)
    plain: dict[str, Any] | Callable[[Any], dict[str, Any]] = field(default_factory=dict)
    wrong: tuple[tuple[dict[str, str], str], ...] = ()
    prefix: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


# Random models repeat themselves or stop at once; this makes them write eight different tokens.
VARIED = {"max_new_tokens": 8, "no_repeat_ngram_size": 1}


@dataclass(frozen=True)
class Case:
    """A tiny model of a `Family`, or of a speech LLM (``tiny_llm.LLM``), and what the adapter makes of the clip."""

    family: Any
    model: Any
    processor: Any
    adapter: Adapter
    audio: np.ndarray
    utterance: Utterance
    options: GenerationOptions
    target: Target

    def copy(self) -> tuple[Any, Any]:
        """Return a copy of the model that a test may spoil, and the processor."""
        return copy.deepcopy(self.model), self.processor


def lively(model: nn.Module, scale: float = 6.0) -> Any:
    """Return the model with larger weights, so that what is perturbed shows in the logits, in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(scale)
            if "encoder_attn." in name or "cross_attention." in name:  # what is heard outweighs what was written
                parameter.data.mul_(4.0)
        elif "norm" not in name:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


# Whisper --------------------------------------------------------------------------------------------------------------


def whisper(bins: int, multilingual: bool) -> Callable[[Path], tuple[Any, Any]]:
    """Return a function that makes a Whisper with a window of 2 s."""

    def build(folder: Path) -> tuple[Any, Any]:
        learner = Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
        learner.train_from_iterator(CORPUS, trainer)
        learned = json.loads(learner.to_str())["model"]
        special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|es|>", "<|translate|>"]
        special += ["<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
        tokenizer = tf.WhisperTokenizer(vocab=learned["vocab"], merges=[tuple(m) for m in learned["merges"]])
        tokenizer.add_special_tokens({"additional_special_tokens": special})
        ids = {token: tokenizer.convert_tokens_to_ids(token) for token in special}
        timestamps = [f"<|{i * 0.02:.2f}|>" for i in range(101)]
        tokenizer.add_tokens(timestamps)
        extractor = tf.WhisperFeatureExtractor(feature_size=bins, chunk_length=2)
        end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
        torch.manual_seed(0)
        config = tf.WhisperConfig(
            vocab_size=len(tokenizer),
            num_mel_bins=bins,
            d_model=32,
            encoder_layers=1,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_source_positions=100,
            max_target_positions=64,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
            decoder_start_token_id=start,
            begin_suppress_tokens=None,
        )
        model = lively(tf.WhisperForConditionalGeneration(config), 12.0)
        generation: dict[str, Any] = dict(
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
            decoder_start_token_id=start,
            max_length=40,
            no_timestamps_token_id=ids["<|notimestamps|>"],
            is_multilingual=multilingual,
            prev_sot_token_id=ids["<|startofprev|>"],
            suppress_tokens=[*range(start, len(tokenizer))],
            return_timestamps=False,
        )
        if multilingual:
            generation["lang_to_id"] = {token: ids[token] for token in ("<|en|>", "<|de|>", "<|es|>")}
            generation["task_to_id"] = {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}
        model.generation_config = tf.GenerationConfig(**generation)
        return model, tf.WhisperProcessor(extractor, tokenizer)

    return build


def set_whisper(features: torch.Tensor, frame: int, mel: int, value: float) -> None:
    """(1, mel, time)."""
    features[0, mel, frame] = value


# Speech2Text ----------------------------------------------------------------------------------------------------------


def speech_to_text(languages: bool) -> Callable[[Path], tuple[Any, Any]]:
    """Return a function that makes a Speech2Text, with or without language tokens."""

    def build(folder: Path) -> tuple[Any, Any]:
        codes = [f"<lang:{code}>" for code in ("pt", "fr", "ru", "nl", "ro", "it", "es", "de")] if languages else []
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS),
            model_prefix=str(folder / "spm"),
            model_type="unigram",
            vocab_size=70,
            bos_id=0,
            pad_id=1,
            eos_id=2,
            unk_id=3,
            user_defined_symbols=codes,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
        vocabulary = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        lang_codes = {"lang_codes": "mustc"} if languages else {}
        tokenizer = tf.Speech2TextTokenizer(str(folder / "vocab.json"), str(folder / "spm.model"), **lang_codes)
        torch.manual_seed(0)
        config = tf.Speech2TextConfig(
            vocab_size=len(vocabulary),
            d_model=32,
            encoder_layers=1,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            conv_channels=32,
            max_source_positions=200,
            max_target_positions=64,
        )
        model = lively(tf.Speech2TextForConditionalGeneration(config))
        model.generation_config = tf.GenerationConfig(
            bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, max_length=40
        )
        return model, tf.Speech2TextProcessor(tf.Speech2TextFeatureExtractor(), tokenizer)

    return build


def set_speech_to_text(features: torch.Tensor, frame: int, mel: int, value: float) -> None:
    """(1, time, mel)."""
    features[0, frame, mel] = value


# SeamlessM4T ----------------------------------------------------------------------------------------------------------


def seamless(version: str, full: bool, **overrides: Any) -> Callable[[Path], tuple[Any, Any]]:
    """Return a function that makes a SeamlessM4T: version "" or "v2", for speech to text only or for everything."""

    def build(folder: Path) -> tuple[Any, Any]:
        learner = Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
        learner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=120, show_progress=False))
        learned = json.loads(learner.to_str())["model"]
        codes = ["__eng__", "__deu__", "__spa__"]
        vocabulary = ["<pad>", "<unk>", "<s>", "</s>", *learned["vocab"], *codes]
        tokenizer = tf.SeamlessM4TTokenizer(
            vocab={token: i for i, token in enumerate(vocabulary)},
            merges=[tuple(merge) for merge in learned["merges"]],
            src_lang="eng",
            tgt_lang="deu",
            additional_special_tokens=codes,
        )
        sizes = dict(
            vocab_size=len(tokenizer),
            hidden_size=32,
            speech_encoder_layers=1,
            speech_encoder_attention_heads=2,
            speech_encoder_intermediate_size=48,
            conv_depthwise_kernel_size=7,
            adaptor_kernel_size=4,
            adaptor_stride=4,
            decoder_layers=2,
            decoder_ffn_dim=48,
            decoder_attention_heads=2,
            encoder_layers=1,
            encoder_ffn_dim=48,
            encoder_attention_heads=2,
            max_position_embeddings=64,
            t2u_vocab_size=20,
            t2u_encoder_layers=1,
            t2u_decoder_layers=1,
            t2u_encoder_ffn_dim=48,
            t2u_decoder_ffn_dim=48,
            t2u_encoder_attention_heads=2,
            t2u_decoder_attention_heads=2,
            t2u_max_position_embeddings=32,
            unit_hifi_gan_vocab_size=20,
            unit_embed_dim=16,
            lang_embed_dim=8,
            spkr_embed_dim=8,
            vocoder_num_langs=3,
            vocoder_num_spkrs=2,
            upsample_initial_channel=32,
        )
        if version:
            sizes |= dict(char_vocab_size=20, t2u_variance_predictor_embed_dim=32, left_max_position_embeddings=16)
        else:
            sizes |= dict(max_source_positions=128, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4)
        torch.manual_seed(0)
        config = getattr(tf, f"SeamlessM4T{version}Config")(**{**sizes, **overrides})
        name = f"SeamlessM4T{version}Model" if full else f"SeamlessM4T{version}ForSpeechToText"
        model = lively(getattr(tf, name)(config))
        ids = {code.strip("_"): tokenizer.convert_tokens_to_ids(code) for code in codes}
        spoken = {"eng": 0, "spa": 1}  # German is written but not spoken
        model.generation_config = tf.GenerationConfig(
            bos_token_id=2,
            pad_token_id=0,
            eos_token_id=3,
            decoder_start_token_id=3,
            max_new_tokens=40,
            text_decoder_lang_to_code_id=ids,
            **({"t2u_lang_code_to_id": spoken, "vocoder_lang_code_to_id": spoken} if full else {}),
        )
        return model, tf.SeamlessM4TProcessor(tf.SeamlessM4TFeatureExtractor(), tokenizer)

    return build


def set_seamless(features: torch.Tensor, frame: int, mel: int, value: float) -> None:
    """(1, time / 2, 2 · mel)."""
    features[0, frame // 2, frame % 2 * 80 + mel] = value


def _seamless_family(version: str, full: bool) -> Family:
    return Family(
        build=seamless(version, full),
        set_value=set_seamless,
        decoder="text_decoder",
        frames=68,  # of 69: the last one shares its place with padding
        first_time=0.0125,
        options={"tgt_lang": "spa"},
        plain={"tgt_lang": "spa", **({"generate_speech": False} if full else {})},
        wrong=(
            ({}, "missing; allowed: deu, eng, spa"),
            ({"tgt_lang": "fra"}, "'fra'.*deu, eng, spa"),
            ({"tgt_lang": "spa", "language": "en"}, "language is 'en'.*takes tgt_lang"),
        ),
        prefix=("</s>", "__spa__"),
    )


def _speech_to_text_family(languages: bool) -> Family:
    known = "de, es, fr, it, nl, pt, ro, ru"
    some = ({"tgt_lang": "de"}, "writes only one language")
    return Family(
        build=speech_to_text(languages),
        set_value=set_speech_to_text,
        decoder="model.decoder",
        frames=69,
        first_time=0.0125,
        options={"tgt_lang": "es"} if languages else {},
        plain=lambda processor: {"forced_bos_token_id": processor.tokenizer.lang_code_to_id["es"]} if languages else {},
        wrong=(
            *((({}, f"missing.*{known}"), ({"tgt_lang": "xx"}, f"'xx'.*{known}")) if languages else (some,)),
            ({"task": "translate"}, "task is 'translate'.*takes tgt_lang"),
        ),
        prefix=("</s>", "<lang:es>") if languages else ("</s>",),
    )


def _whisper_family(bins: int, multilingual: bool) -> Family:
    options = {"language": "de", "task": "translate"} if multilingual else {}
    return Family(
        build=whisper(bins, multilingual),
        set_value=set_whisper,
        decoder="model.decoder",
        frames=72,
        first_time=0.0,
        options=options,
        plain=options,
        wrong=(
            ({"tgt_lang": "de"}, "tgt_lang is 'de'.*takes language, task"),
            ({"language": "xx"}, "xx" if multilingual else "English-only"),
        ),
        prefix=("<|startoftranscript|>", *(("<|de|>", "<|translate|>") if multilingual else ()), "<|notimestamps|>"),
    )


FAMILIES: dict[str, Family] = {
    "whisper-en": _whisper_family(80, multilingual=False),
    "whisper": _whisper_family(80, multilingual=True),
    "whisper-128": _whisper_family(128, multilingual=True),
    "speech_to_text": _speech_to_text_family(languages=False),
    "speech_to_text-languages": _speech_to_text_family(languages=True),
    "seamless_m4t": _seamless_family("", full=False),
    "seamless_m4t-full": _seamless_family("", full=True),
    "seamless_m4t_v2": _seamless_family("v2", full=False),
    "seamless_m4t_v2-full": _seamless_family("v2", full=True),
}
