# Copyright 2026 The spes_hf authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "spes-hf",
#     "torch>=2.4",
#     "transformers>=5.0",
#     "tokenizers",
#     "sentencepiece",
#     "safetensors",
#     "numpy",
#     "soundfile",
#     "soxr",
#     "pyyaml",
#     "jiwer",
#     "sacrebleu",
# ]
#
# [tool.uv.sources]
# spes-hf = { path = "..", editable = true }
# ///
"""Makes a miniature speech translation corpus and trains three tiny Hugging Face models on it, on two CPU cores.

The models are real checkpoints of their families, small enough to ship with a package (under 6 MB each):

* a Speech2Text model that transcribes English,
* a SeamlessM4T v2 model that translates English speech into German or Spanish text, and
* a Qwen3-ASR model, a speech LLM, that transcribes English (needs transformers 5.20 or later).

Needs espeak-ng; flite, when installed, adds voices to the training split. On Debian and Ubuntu:
`apt-get install espeak-ng flite`.

Examples:
  python recipes/train_tiny_models.py all --work WORK --assets ASSETS           # everything, about two hours
  python recipes/train_tiny_models.py all --work WORK --assets ASSETS --quick   # a smoke test, a minute
  python recipes/train_tiny_models.py corpus --work WORK                    # only the corpus
  python recipes/train_tiny_models.py corpus --work WORK --speaker-gender   # and adjectives that agree with the voice
  python recipes/train_tiny_models.py train --work WORK --assets ASSETS --family speech2text
  python recipes/train_tiny_models.py evaluate --model ASSETS/speech2text-en --work WORK
"""

import argparse
import ctypes
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import struct
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import yaml
from tiny_speech import qwen3_asr
from tiny_speech.lexicon import number_words
from tiny_speech.sentences import KINDS, LANGUAGES
from tiny_speech.synthesis import SAMPLING_RATE, make_corpus
from torch import nn
from transformers import (
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    GenerationConfig,
    SeamlessM4TFeatureExtractor,
    SeamlessM4TProcessor,
    SeamlessM4TTokenizer,
    SeamlessM4Tv2Config,
    SeamlessM4Tv2ForSpeechToText,
    Speech2TextConfig,
    Speech2TextFeatureExtractor,
    Speech2TextForConditionalGeneration,
    Speech2TextProcessor,
    Speech2TextTokenizer,
)
from transformers.modeling_outputs import BaseModelOutput

FAMILIES = {"speech2text": "speech2text-en", "seamless": "seamless-en-de-es", "qwen3_asr": "qwen3-asr-en"}
SPLITS = ("train", "dev", "tst-COMMON")
SEAMLESS_CODES = {"en": "eng", "de": "deu", "es": "spa"}


@dataclass(frozen=True)
class Scale:
    """How much is made and trained.

    Args:
        train, dev, test: Utterances per split.
        epochs: Passes over the training split, per family.
        minutes: Time limit of a training in minutes, per family; the learning rate decays in time for it.
        clips: Clips shipped with the models, per kind of sentence.
        width: Model width.
    """

    train: int = 7000
    dev: int = 160
    test: int = 400
    epochs: tuple[tuple[str, int], ...] = (("speech2text", 24), ("seamless", 40), ("qwen3_asr", 40))
    minutes: tuple[tuple[str, float], ...] = (("speech2text", 30), ("seamless", 58), ("qwen3_asr", 75))
    clips: tuple[tuple[str, int], ...] = (
        ("statement", 4),
        ("number", 6),
        ("verb-final", 6),
        ("question", 4),
        ("parenthesis", 4),
    )
    width: int = 144


QUICK = Scale(
    train=160,
    dev=8,
    test=60,
    epochs=(("speech2text", 2), ("seamless", 1), ("qwen3_asr", 1)),
    minutes=(("speech2text", 1), ("seamless", 1), ("qwen3_asr", 1)),
    clips=tuple((kind, 1) for kind in KINDS),
    width=32,
)


# ---------------------------------------------------------------------------------------------------------- corpus


@dataclass
class Example:
    """An utterance read back from the corpus: samples (n,) float32 and its texts by language."""

    samples: np.ndarray
    texts: dict[str, str]


def read_split(root: Path, split: str, limit: int | None = None) -> list[Example]:
    """Returns the utterances of a split, in the order of its files."""
    import soundfile

    def lines(language: str, ending: str) -> list[str]:
        path = root / f"en-{language}" / "data" / split / "txt" / f"{split}.{ending}"
        return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    segments = yaml.load("\n".join(lines("de", "yaml")), Loader=loader)
    texts = {"en": lines("de", "en"), "de": lines("de", "de"), "es": lines("es", "es")}
    recordings: dict[str, np.ndarray] = {}
    examples = []
    for i, segment in enumerate(segments[:limit]):
        name = segment["wav"]
        if name not in recordings:
            recordings[name] = soundfile.read(root / "en-de" / "data" / split / "wav" / name, dtype="float32")[0]
        start = round(segment["offset"] * SAMPLING_RATE)
        samples = recordings[name][start : start + round(segment["duration"] * SAMPLING_RATE)]
        examples.append(Example(samples, {language: texts[language][i] for language in texts}))
    return examples


# ------------------------------------------------------------------------------------------------------ tokenizers

_WORD = re.compile(r"^([(¿]?)(.*?)([.,?)]*)$")
_GERMAN_NUMBERS = {number_words(n)["de"] for n in range(21, 100) if n % 10}


def word_pieces(text: str) -> list[str]:
    """Returns the tokens that a text should have: words, punctuation marks, and the parts of German numbers.

    Example:
        >>> word_pieces("Anna (meine Tante) hat dreiundzwanzig Hüte.")  # doctest: +ELLIPSIS
        ['▁Anna', '▁(', 'meine', '▁Tante', ')', '▁hat', '▁drei', 'und', 'zwanzig', '▁Hüte', '.']
    """
    pieces = []
    for word in text.split():
        opening, core, closing = _WORD.match(word).groups()
        if core in _GERMAN_NUMBERS:
            ones, tens = core.split("und", 1)
            parts = [ones, "und", tens]
        else:
            parts = [core]
        if opening:
            parts = [opening, *parts]
        parts[0] = "▁" + parts[0]
        pieces += [*parts, *closing]
    return pieces


def _proto(number: int, wire: int, payload: bytes) -> bytes:
    """Returns a field of a protocol buffer; wire type 2 is prefixed with its length."""
    if wire == 2:
        size, length = len(payload), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        payload = length + bytes([size]) + payload
    return bytes([number << 3 | wire]) + payload


def sentencepiece_model(pieces: list[str]) -> bytes:
    """Returns a unigram SentencePiece model that prefers the given pieces, with their letters as a fallback."""
    letters = sorted({letter for piece in pieces for letter in piece} - set(pieces))
    rows = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    rows += [(piece, -1.0, 1) for piece in pieces] + [(letter, -20.0, 1) for letter in letters]
    model = b""
    for piece, score, kind in rows:
        body = _proto(1, 2, piece.encode()) + _proto(2, 5, struct.pack("<f", score)) + _proto(3, 0, bytes([kind]))
        model += _proto(1, 2, body)
    return model + _proto(2, 2, b"") + _proto(3, 2, _proto(1, 2, b"identity"))


def speech2text_processor(texts: list[str], folder: Path) -> Speech2TextProcessor:
    """Returns and saves a processor whose tokens are the words of `texts`."""
    counts = Counter(piece for text in texts for piece in word_pieces(text))
    pieces = [piece for piece, _ in counts.most_common()]
    letters = sorted({letter for piece in pieces for letter in piece} - set(pieces))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        spm_file, vocab_file = Path(scratch) / "sentencepiece.bpe.model", Path(scratch) / "vocab.json"
        spm_file.write_bytes(sentencepiece_model(pieces))
        vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *pieces, *letters]
        vocab_file.write_text(json.dumps({piece: i for i, piece in enumerate(vocabulary)}, ensure_ascii=False))
        tokenizer = Speech2TextTokenizer(str(vocab_file), str(spm_file))
        Speech2TextProcessor(Speech2TextFeatureExtractor(), tokenizer).save_pretrained(folder)
    return AutoProcessor.from_pretrained(folder)


def seamless_processor(texts: list[str], folder: Path) -> SeamlessM4TProcessor:
    """Returns and saves a processor whose tokens are the words of `texts`, built by byte-pair merges."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    counts = Counter(piece for text in texts for piece in word_pieces(text))
    pieces = [piece for piece, _ in counts.most_common()]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("\n")
    learner.train_from_iterator(pieces, trainers.BpeTrainer(vocab_size=100_000, min_frequency=1, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    codes = [f"__{code}__" for code in SEAMLESS_CODES.values()]
    inner = [piece for piece in learned["vocab"] if piece not in counts]
    vocabulary = ["<pad>", "<unk>", "<s>", "</s>", *codes, *pieces, *inner]
    tokenizer = SeamlessM4TTokenizer(
        vocab={piece: i for i, piece in enumerate(vocabulary)},
        merges=[tuple(merge) for merge in learned["merges"]],
        src_lang="eng",
        tgt_lang="deu",
        additional_special_tokens=codes,
    )
    folder.mkdir(parents=True, exist_ok=True)
    SeamlessM4TProcessor(SeamlessM4TFeatureExtractor(), tokenizer).save_pretrained(folder)
    return AutoProcessor.from_pretrained(folder)


# ---------------------------------------------------------------------------------------------------------- models


def speech2text_model(processor: Speech2TextProcessor, width: int) -> Speech2TextForConditionalGeneration:
    """Returns an untrained Speech2Text model of about 2.3 million parameters at width 144."""
    config = Speech2TextConfig(
        vocab_size=len(processor.tokenizer),
        d_model=width,
        encoder_layers=4,
        decoder_layers=3,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        conv_channels=width + width // 2,
        dropout=0.1,
        max_source_positions=1500,
        max_target_positions=64,
        init_std=0.05,
    )
    model = Speech2TextForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, max_length=60
    )
    return model


def seamless_model(processor: SeamlessM4TProcessor, width: int) -> SeamlessM4Tv2ForSpeechToText:
    """Returns an untrained SeamlessM4T v2 speech-to-text model of about 2.6 million parameters at width 144."""
    tokenizer = processor.tokenizer
    config = SeamlessM4Tv2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        speech_encoder_layers=3,
        speech_encoder_attention_heads=4,
        speech_encoder_intermediate_size=2 * width,
        speech_encoder_layerdrop=0.0,
        speech_encoder_dropout=0.0,
        adaptor_kernel_size=4,
        adaptor_stride=4,
        adaptor_dropout=0.0,
        conv_depthwise_kernel_size=15,
        left_max_position_embeddings=32,
        right_max_position_embeddings=32,
        decoder_layers=3,
        decoder_ffn_dim=3 * width,
        decoder_attention_heads=4,
        decoder_layerdrop=0.0,
        encoder_layers=1,
        encoder_ffn_dim=width,
        encoder_attention_heads=4,
        dropout=0.1,
        attention_dropout=0.0,
        max_position_embeddings=256,
        initializer_range=0.05,
    )
    model = SeamlessM4Tv2ForSpeechToText(config)
    codes = SEAMLESS_CODES.values()
    model.generation_config = GenerationConfig(
        bos_token_id=2,
        pad_token_id=0,
        eos_token_id=3,
        decoder_start_token_id=3,
        max_new_tokens=56,
        text_decoder_lang_to_code_id={code: tokenizer.convert_tokens_to_ids(f"__{code}__") for code in codes},
    )
    return model


BUILD = {
    "speech2text": (speech2text_processor, speech2text_model),
    "seamless": (seamless_processor, seamless_model),
    "qwen3_asr": (qwen3_asr.processor_of, qwen3_asr.untrained_model),
}


def width_of(model: nn.Module) -> int:
    """Returns the width that a model was built with."""
    return getattr(model.config, "audio_config", model.config).hidden_size


def with_new_words(family: str, model: nn.Module, processor, texts: list[str], folder: Path):
    """Returns a processor for the words of `texts`, and the model with the same words as vocabulary.

    A word that is one token for the old processor keeps its row of the embedding; other rows are untrained. All other
    weights are the model's.
    """
    build_processor, build_model = BUILD[family]
    new_processor = build_processor(texts, folder)
    grown = build_model(new_processor, width_of(model))
    old_ids, new_ids = processor.tokenizer.get_vocab(), new_processor.tokenizer.get_vocab()
    known = sorted(old_ids.keys() & new_ids.keys())
    rows, old_rows = [new_ids[token] for token in known], [old_ids[token] for token in known]
    weights, new_weights = model.state_dict(), grown.state_dict()
    for name, weight in weights.items():
        if name.endswith(("shared.weight", "embed_tokens.weight", "lm_head.weight")):
            new_weights[name][rows] = weight[old_rows]
        else:
            new_weights[name].copy_(weight)
    grown.load_state_dict(new_weights)
    return new_processor, grown


def save_half(model: nn.Module, folder: Path) -> None:
    """Saves the weights in 16 bits, with a configuration that loads them as float32.

    Weights of Qwen3-ASR are bfloat16, as usual in the family, rounded to 7 significant bits. Errors on the test split
    stay the same, and the weights take a quarter less space in a wheel.
    """
    from safetensors.torch import load_file, save_file

    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    stored = _rounded if model.config.model_type == "qwen3_asr" else torch.Tensor.half
    weights = {name: stored(tensor) for name, tensor in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _rounded(weight: torch.Tensor) -> torch.Tensor:
    bits = weight.to(torch.bfloat16).view(torch.int16)
    return ((bits + 1) & -2).view(torch.bfloat16)


# -------------------------------------------------------------------------------------------------------- training


def _features(extractor, samples: np.ndarray) -> np.ndarray:
    torch.set_num_threads(1)
    output = extractor(
        samples, sampling_rate=SAMPLING_RATE, return_tensors="np", return_attention_mask=True, padding=True
    )
    features = output["input_features"][0]
    if hasattr(extractor, "n_window"):  # Qwen3-ASR: (C, T)
        features = features.T
    return features[output["attention_mask"][0].astype(bool)].astype(np.float16)


def extract_features(extractor, examples: list[Example], workers: int) -> list[np.ndarray]:
    """Returns the model input (frames, channels) of every example, as float16."""
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(partial(_features, extractor), [e.samples for e in examples], chunksize=16))


def spec_augment(features: torch.Tensor, stack: int, strength: float) -> torch.Tensor:
    """Returns features with random bands, spans and rectangles set to the mean of each channel.

    Args:
        features: (frames, stack * mel bins), changed in place.
        stack: Mel frames of 10 ms that one model frame holds.
        strength: 0 leaves the features unchanged, 1 masks most.
    """
    view = features.view(len(features) * stack, -1)
    mels, mean = view.shape[1], view.mean(0)

    def span(limit: int, most: float) -> slice:
        size = int(random.random() * most) + 1
        start = random.randrange(max(limit - size, 1))
        return slice(start, start + size)

    for _ in range(2):
        band = span(mels, mels * 0.15 * strength)
        view[:, band] = mean[band]
        view[span(len(view), 14 * strength)] = mean
    if random.random() < 0.4 * strength:
        for _ in range(random.randrange(1, 12)):
            band = span(mels, mels * 0.375)
            view[span(len(view), 30), band] = mean[band]
    return features


class Batches:
    """Batches of similar lengths: features, mask, and target ids by language.

    Args:
        features: Per utterance (frames, channels).
        targets: By language, per utterance the decoder ids: start, (language code,) tokens, end.
        size: Utterances per batch.
        stack: Mel frames that one model frame holds.
        pad: Padding id.
    """

    def __init__(self, features, targets, size: int, stack: int, pad: int) -> None:
        """Keeps everything in memory."""
        self.features, self.targets, self.size, self.stack, self.pad = features, targets, size, stack, pad

    def __len__(self) -> int:
        """Batches per epoch."""
        return math.ceil(len(self.features) / self.size)

    def epoch(self, strength: float):
        """Yields the batches of an epoch in random order."""
        order = sorted(range(len(self.features)), key=lambda i: len(self.features[i]) * random.uniform(0.92, 1.08))
        groups = [order[i : i + self.size] for i in range(0, len(order), self.size)]
        random.shuffle(groups)
        for group in groups:
            yield self.batch(group, strength)

    def batch(self, group: list[int], strength: float):
        """Returns features (B, T, C), mask (B, T), target ids by language (B, L)."""
        longest = max(len(self.features[i]) for i in group)
        inputs = torch.zeros(len(group), longest, self.features[0].shape[1])
        mask = torch.zeros(len(group), longest, dtype=torch.long)
        for row, i in enumerate(group):
            features = torch.from_numpy(self.features[i].astype(np.float32))
            inputs[row, : len(features)] = spec_augment(features, self.stack, strength) if strength else features
            mask[row, : len(features)] = 1
        ids = {
            language: nn.utils.rnn.pad_sequence(
                [torch.tensor(rows[i]) for i in group], batch_first=True, padding_value=self.pad
            )
            for language, rows in self.targets.items()
        }
        return inputs, mask, ids


def target_ids(processor, family: str, language: str, texts: list[str]) -> list[list[int]]:
    """Returns decoder ids as `generate` forms them: start token, for SeamlessM4T the language code, tokens, end.

    Ids for Qwen3-ASR do not include the prompt, which changes from step to step.
    """
    tokenizer = processor.tokenizer
    if family == "speech2text":
        return [[2, *tokenizer(text).input_ids] for text in texts]
    if family == "qwen3_asr":
        return [tokenizer(text + qwen3_asr.END_OF_TURN).input_ids for text in texts]
    return [tokenizer(text_target=text, tgt_lang=SEAMLESS_CODES[language]).input_ids for text in texts]


def ctc_layer(family: str, model, size: int) -> nn.Module:
    """Returns the layer that predicts words from the encoder's output during training."""
    return qwen3_asr.ctc_layers(model) if family == "qwen3_asr" else nn.Linear(width_of(model), size)


def loss_of(model, ctc_head, batch, family: str, processor, ctc_weight: float) -> torch.Tensor:
    """Returns the training loss of a batch: label-smoothed cross-entropy plus CTC of the English words.

    The encoder runs once, the decoder once for each target language. CTC teaches the encoder early where each word is;
    its layer is discarded after training.
    """
    if family == "qwen3_asr":
        return qwen3_asr.loss_of(model, ctc_head, batch, processor, ctc_weight)
    inputs, mask, ids = batch
    pad = model.config.pad_token_id
    encoded = model.get_encoder()(inputs, attention_mask=mask)[0]
    # The same as the models compute from the mask: two convolutions of stride 2, or the adapter's with stride 4.
    lengths = mask.sum(1)
    lengths = ((lengths - 1) // 2 + 1 - 1) // 2 + 1 if family == "speech2text" else lengths // 4 + 1
    lengths = lengths.clamp(max=encoded.shape[1])
    total = inputs.new_zeros(())
    for language, target in ids.items():
        if family == "seamless" and language == "en" and random.random() < 0.7:
            continue  # transcription only supports the encoder, like CTC
        output = model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            attention_mask=mask,
            decoder_input_ids=target[:, :-1],
        )
        labels = target[:, 1:].clone()
        labels[labels == pad] = -100
        if family == "seamless":
            labels[:, 0] = -100  # the language code is given
        smooth = nn.functional.cross_entropy(
            output.logits.flatten(0, 1), labels.flatten(), ignore_index=-100, label_smoothing=0.1
        )
        total = total + smooth
    if ctc_weight:
        words = ids["en"][:, 2 if family == "seamless" else 1 :]
        sizes = ((words != pad) & (words != model.config.eos_token_id)).sum(1)
        scores = ctc_head(encoded).log_softmax(-1).transpose(0, 1)
        ctc = nn.functional.ctc_loss(scores, words, lengths, sizes, blank=pad, zero_infinity=True)
        total = total + ctc_weight * ctc
    return total


def train(family: str, work: Path, assets: Path, scale: Scale, seed: int, workers: int, init: Path | None) -> None:
    """Trains a model and saves the best one on the dev split, with its processor, under `assets`."""
    torch.manual_seed(seed)
    random.seed(seed)
    folder = assets / FAMILIES[family]
    examples, dev = read_split(work / "corpus", "train"), read_split(work / "corpus", "dev")
    languages = ["en", "de", "es"] if family == "seamless" else ["en"]
    texts = [example.texts[language] for example in examples for language in languages]
    if init is not None:
        processor = AutoProcessor.from_pretrained(init)
        model = AutoModelForSpeechSeq2Seq.from_pretrained(init, dtype=torch.float32)
        if set(chain.from_iterable(map(word_pieces, texts))) - set(processor.tokenizer.get_vocab()):
            processor, model = with_new_words(family, model, processor, texts, folder)
    else:
        processor = BUILD[family][0](texts, folder)
        model = BUILD[family][1](processor, scale.width)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{family}: {parameters:,} parameters, {len(processor.tokenizer)} tokens", flush=True)
    started = time.monotonic()
    features = extract_features(processor.feature_extractor, examples, workers)
    targets = {lang: target_ids(processor, family, lang, [e.texts[lang] for e in examples]) for lang in languages}
    print(f"features of {len(features)} utterances in {time.monotonic() - started:.0f} s", flush=True)
    batches = Batches(features, targets, 32, 2 if family == "seamless" else 1, model.config.pad_token_id)

    ctc_head = ctc_layer(family, model, len(processor.tokenizer))
    trained = [*model.parameters(), *ctc_head.parameters()]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    peak = 1.5e-3 if init is None else 5e-4
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
    epochs, minutes = dict(scale.epochs)[family], dict(scale.minutes)[family]
    total, warmup, step, best, done = epochs * len(batches), 300, 0, -math.inf, 0.0
    # Sometimes drop previous tokens, so that the decoder learns to listen.
    embedding = model.get_input_embeddings() if family == "qwen3_asr" else model.get_decoder().embed_tokens
    embedding.register_forward_hook(
        lambda module, _, out: out * (torch.rand(out.shape[:2] + (1,)) > 0.08) if module.training else out
    )
    started = time.monotonic()
    for epoch in range(epochs):
        model.train()
        running = 0.0
        for batch in batches.epoch(strength=min(1.0, 0.3 + 2 * done)):
            done = max(step / total, (time.monotonic() - started) / (60 * minutes))
            if done >= 1:
                break
            rate = peak * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = loss_of(model, ctc_head, batch, family, processor, ctc_weight=0.3 if done < 0.8 else 0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            running += loss.item()
            step += 1
            if step % 50 == 0:
                elapsed = time.monotonic() - started
                mean = running / (step - epoch * len(batches))
                print(f"  {family} step {step}, {elapsed:.0f} s, loss {mean:.3f}", flush=True)
        if done < 0.25:  # too early to be the best
            continue
        scores = score(model, processor, dev)
        quality = -scores["wer"] if "wer" in scores else (scores["bleu_de"] + scores["bleu_es"]) / 2
        shown = ", ".join(f"{name} {value:.1f}" for name, value in scores.items())
        minutes_run = (time.monotonic() - started) / 60
        print(f"{family} epoch {epoch + 1}: {minutes_run:.1f} min, dev {shown}", flush=True)
        if quality > best:
            best = quality
            if init is not None:
                processor.save_pretrained(folder)
            save_half(model, folder)
        if done >= 1:
            break


# ------------------------------------------------------------------------------------------------------ evaluation


def transcribe(model, processor, samples: list[np.ndarray], language: str = "en", batch_size: int = 16) -> list[str]:
    """Returns the model's greedy output for every utterance, in the order given."""
    model.eval()
    is_llm = model.config.model_type == "qwen3_asr"
    options = {"tgt_lang": SEAMLESS_CODES[language]} if model.config.model_type == "seamless_m4t_v2" else {}
    order = sorted(range(len(samples)), key=lambda i: len(samples[i]))
    texts = [""] * len(samples)
    for start in range(0, len(order), batch_size):
        group = order[start : start + batch_size]
        if is_llm:
            for i, text in zip(group, qwen3_asr.transcribe(model, processor, [samples[i] for i in group]), strict=True):
                texts[i] = text
            continue
        inputs = processor.feature_extractor(
            [samples[i] for i in group],
            sampling_rate=SAMPLING_RATE,
            padding=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            ids = model.generate(
                inputs["input_features"], attention_mask=inputs["attention_mask"], num_beams=1, **options
            )
        for i, text in zip(group, processor.batch_decode(ids, skip_special_tokens=True), strict=True):
            texts[i] = text
    return texts


def score(model, processor, examples: list[Example]) -> dict[str, float]:
    """Returns WER in % (punctuation and case count) for a transcribing model, otherwise BLEU per target language."""
    import jiwer
    import sacrebleu

    samples = [example.samples for example in examples]
    if model.config.model_type != "seamless_m4t_v2":
        texts = transcribe(model, processor, samples)
        return {"wer": 100 * jiwer.wer([example.texts["en"] for example in examples], texts)}
    scores = {}
    for language in LANGUAGES:
        texts = transcribe(model, processor, samples, language)
        references = [example.texts[language] for example in examples]
        scores[f"bleu_{language}"] = sacrebleu.corpus_bleu(texts, [references]).score
    return scores


def evaluate(model_path: Path, work: Path, split: str, examples_shown: int) -> dict[str, float]:
    """Prints and returns the scores of a saved model on a split."""
    processor = AutoProcessor.from_pretrained(model_path)
    model = AutoModelForSpeechSeq2Seq.from_pretrained(model_path, dtype=torch.float32)
    examples = read_split(work / "corpus", split)
    scores = score(model, processor, examples)
    print(f"{model_path.name} on {split} ({len(examples)} utterances):")
    for name, value in scores.items():
        print(f"  {name}: {value:.2f}")
    for language in ["en"] if "wer" in scores else LANGUAGES:
        texts = transcribe(model, processor, [example.samples for example in examples[:examples_shown]], language)
        for text, example in zip(texts, examples, strict=False):
            print(f"    {'=' if text == example.texts[language] else '!'} {text}  |  {example.texts[language]}")
    return scores


_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: automatic-speech-recognition
language:
{languages}
tags:
- {tag}
- speech
- explainability
- tiny
metrics:
- {metric}
---

# {title}

{what}
It has {parameters:,} parameters and knows the sentences of a small grammar, spoken by a synthesiser. It is made for
tests, examples and documentation of saliency methods: it loads in a moment, runs on a CPU and behaves like a real
checkpoint of its family, but it does not work on other speech.

## Use

```python
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

path = "{folder}"  # this folder
processor = AutoProcessor.from_pretrained(path)
model = AutoModelForSpeechSeq2Seq.from_pretrained(path)
{use}
```

The weights are stored in 16 bits and load as float32.

## Results

{rows}

Measured on the `tst-COMMON` split of the corpus (greedy search; punctuation and case count), whose sentences and voices
are not in the training data, with

```
python recipes/train_tiny_models.py corpus --work WORK
python recipes/train_tiny_models.py evaluate --model {folder} --work WORK
```

## Data

English sentences from a grammar of about 180 words (numbers, days, times, colours, people, simple clauses), with exact
German and Spanish translations by the same grammar, written in the layout of MuST-C. They are spoken by espeak-ng
(accents and voice variants) and, in the training split only, by flite, at varied rate, pitch, level and noise. The
training split has 7,000 utterances (3.9 hours), the test split 400. `python recipes/train_tiny_models.py corpus` makes
the corpus again. No recordings of people are in it.

## Training

`python recipes/train_tiny_models.py train --family {family}`, one core, {time}. Label-smoothed cross-entropy
with a CTC loss of the English words on the encoder, SpecAugment with masks at the channels' mean, and dropped previous
tokens{extra}. The learning rate decays over a time limit, so another machine gives a slightly different model.

## Limits

{limits} The words are whole tokens; the parts of German numbers ("drei", "und", "zwanzig") are tokens of their own.
Words, names and sentence patterns outside the grammar are misheard as ones inside it. Human speech is not understood.

## Licence

Apache-2.0, weights and code. The sentences were made by the recipe's grammar.
"""

_USE = """inputs = processor(audio=samples, sampling_rate=16000, return_attention_mask=True, return_tensors="pt")
ids = model.generate(**inputs{options})
print(processor.batch_decode(ids, skip_special_tokens=True)[0])"""

_CARDS = {
    "speech2text": {
        "title": "Tiny Speech2Text, English",
        "what": "A miniature `Speech2TextForConditionalGeneration` model that transcribes English.",
        "languages": "- en",
        "tag": "speech_to_text",
        "metric": "wer",
        "use": _USE.format(options=""),
        "time": "about 25 minutes",
        "extra": "",
        "limits": 'Confusions are mostly between "-teen" and "-ty" and between short words and names.',
    },
    "seamless": {
        "title": "Tiny SeamlessM4T v2, English to German and Spanish",
        "what": "A miniature `SeamlessM4Tv2ForSpeechToText` model that translates English speech into German or "
        "Spanish text.",
        "languages": "- en\n- de\n- es",
        "tag": "seamless_m4t_v2",
        "metric": "bleu",
        "use": _USE.format(options=', tgt_lang="deu"'),
        "time": "about an hour",
        "extra": '; English transcription (`tgt_lang="eng"`) is a third task in a third of the steps',
        "limits": 'Set `tgt_lang` to "deu" or "spa"; "eng" was trained less and not measured.',
    },
    "qwen3_asr": {
        "title": "Tiny Qwen3-ASR, English",
        "what": "A miniature `Qwen3ASRForConditionalGeneration` model, a speech LLM that transcribes English. It needs "
        "transformers 5.20 or later.",
        "languages": "- en",
        "tag": "qwen3_asr",
        "metric": "wer",
        "use": """inputs = processor.apply_transcription_request(samples, language="English")
ids = model.generate(**inputs)
print(processor.batch_decode(ids[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)[0])""",
        "time": "75 minutes",
        "extra": ". In half of the examples the language is forced, and in a quarter the prompt names one or two words "
        "of the sentence; a second CTC loss is on the language model's states of the audio",
        "limits": "English is the only language. Words in `prompt` count where the sound is unclear, and then little.",
    },
}


def write_card(folder: Path, scores: dict[str, float]) -> None:
    """Writes the model card `README.md` with scores measured by `evaluate` on the test split."""
    model = AutoModelForSpeechSeq2Seq.from_pretrained(folder)
    family = next(name for name, saved in FAMILIES.items() if saved == folder.name)
    names = {
        "wer": "Word error rate, English (%)",
        "bleu_de": "BLEU, English to German",
        "bleu_es": "BLEU, English to Spanish",
    }
    rows = "\n".join(["| measure | value |", "|---|---|"] + [f"| {names[k]} | {v:.1f} |" for k, v in scores.items()])
    card = _CARD.format(
        **_CARDS[family],
        family=family,
        folder=FAMILIES[family],
        rows=rows,
        parameters=sum(p.numel() for p in model.parameters()),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


# ----------------------------------------------------------------------------------------------------------- clips


def choose_clips(rows: list[dict], counts: tuple[tuple[str, int], ...]) -> list[int]:
    """Returns the indices of the shipped clips: for each kind, the first of each voice in turn, whatever models write.

    Number clips are the first whose number German writes in reverse order.
    """
    voices = sorted({row["speaker"] for row in rows})
    chosen = []
    for kind, count in counts:
        queues = {voice: [] for voice in voices}
        for i, row in enumerate(rows):
            swapped = any("part" in moved for moved in row["moved"]["de"])
            if row["kind"] == kind and (kind != "number" or swapped):
                queues[row["speaker"]].append(i)
        turns = [queue[turn] for turn in range(count) for queue in queues.values() if turn < len(queue)]
        chosen += turns[:count]
    return chosen


def write_clips(work: Path, assets: Path, scale: Scale) -> None:
    """Writes clips of the test split, chosen by a fixed rule, as FLAC files with `clips.jsonl`."""
    import soundfile

    folder = assets / "clips"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    examples = read_split(work / "corpus", "tst-COMMON")
    rows = json.loads((work / "corpus" / "alignments" / "tst-COMMON.json").read_text(encoding="utf-8"))
    with open(folder / "clips.jsonl", "w", encoding="utf-8") as file:
        for i in choose_clips(rows, scale.clips):
            row, example = rows[i], examples[i]
            if row["transcript"] != example.texts["en"]:
                raise ValueError(f"alignments and corpus disagree about {row['id']}; write the corpus again")
            name = f"{row['id']}.flac"
            soundfile.write(folder / name, example.samples, SAMPLING_RATE, subtype="PCM_16")
            file.write(json.dumps({"id": row["id"], "file": name} | row, ensure_ascii=False) + "\n")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"clips: {len(list(folder.glob('*.flac')))} files, {size / 1e6:.2f} MB")


# ------------------------------------------------------------------------------------------------------------ main


def tune_allocator() -> None:
    """Keeps freed memory in the process, and flushes denormal numbers; else both take most of a training's time."""
    torch.set_flush_denormal(True)
    try:
        library = ctypes.CDLL(None)
        library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        library.mallopt(-4, 0)  # M_MMAP_MAX
    except (AttributeError, OSError):  # not glibc
        pass


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Returns the command line options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--work", type=Path, default=Path("tiny-work"), help="folder of the corpus (default: %(default)s)"
    )
    common.add_argument("--quick", action="store_true", help="smoke test with very little data and training")
    common.add_argument("--seed", type=int, default=1, help="seed of everything random (default: %(default)s)")
    common.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    common.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    corpus = commands.add_parser("corpus", parents=[common], help="write the corpus in the layout of MuST-C")
    corpus.add_argument(
        "--speaker-gender",
        action="store_true",
        help="also write sentences whose Spanish adjectives agree with the voice; the shipped models do not know them",
    )
    corpus.add_argument("--sentences", type=int, help="utterances in the training split (default: depends on --quick)")
    assets = argparse.ArgumentParser(add_help=False)
    assets.add_argument(
        "--assets", type=Path, default=Path("tiny-models"), help="folder of the models (default: %(default)s)"
    )
    trainer = commands.add_parser("train", parents=[common, assets], help="train a model on the corpus")
    trainer.add_argument("--family", choices=sorted(FAMILIES), required=True, help="which model")
    trainer.add_argument("--init", type=Path, help="start from this saved model instead of random weights")
    trainer.add_argument("--minutes", type=float, help="time limit (default: depends on --quick)")
    commands.add_parser("clips", parents=[common, assets], help="write the clips that ship with the models")
    evaluator = commands.add_parser("evaluate", parents=[common], help="print a model's WER or BLEU")
    evaluator.add_argument("--model", type=Path, required=True, help="folder of a saved model")
    evaluator.add_argument("--split", choices=SPLITS, default="tst-COMMON", help="default: %(default)s")
    evaluator.add_argument("--card", action="store_true", help="also write the model card, with these scores")
    evaluator.add_argument("--show", type=int, default=0, help="outputs to print next to their references")
    everything = commands.add_parser(
        "all", parents=[common, assets], help="corpus, all trainings, clips and evaluation"
    )
    everything.set_defaults(speaker_gender=False, sentences=None)  # the shipped models' corpus
    return parser.parse_args(arguments)


def _train_and_evaluate(family: str, options: argparse.Namespace, scale: Scale) -> None:
    tune_allocator()
    torch.set_num_threads(1)
    train(family, options.work, options.assets, scale, options.seed, options.workers, None)
    folder = options.assets / FAMILIES[family]
    write_card(folder, evaluate(folder, options.work, "tst-COMMON", 0))


def main(arguments: list[str] | None = None) -> None:
    """Runs a command."""
    options = parse_arguments(arguments)
    scale = QUICK if options.quick else Scale()
    tune_allocator()
    torch.set_num_threads(options.threads)
    if options.command in ("corpus", "all"):
        sizes = {"train": scale.train, "dev": scale.dev, "tst-COMMON": scale.test}
        if options.sentences:
            sizes["train"] = options.sentences
        make_corpus(options.work / "corpus", sizes, options.seed, options.workers, options.speaker_gender)
    if options.command in ("clips", "all"):
        write_clips(options.work, options.assets, scale)
    if options.command == "train":
        if options.minutes:
            scale = replace(scale, minutes=((options.family, options.minutes),))
        train(options.family, options.work, options.assets, scale, options.seed, options.workers, options.init)
    if options.command == "all":
        # Small matrices gain little from a second thread: one process and one core for each model is faster.
        spawn, at_once = multiprocessing.get_context("spawn"), min(len(FAMILIES), options.workers)
        with ProcessPoolExecutor(at_once, mp_context=spawn) as pool:
            longest_first = sorted(FAMILIES, key=dict(scale.minutes).__getitem__, reverse=True)
            jobs = [pool.submit(_train_and_evaluate, family, options, scale) for family in longest_first]
            for job in jobs:
                job.result()
    if options.command == "evaluate":
        scores = evaluate(options.model, options.work, options.split, options.show)
        if options.card:
            write_card(options.model, scores)


if __name__ == "__main__":
    main()
