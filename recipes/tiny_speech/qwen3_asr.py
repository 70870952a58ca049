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
"""A miniature Qwen3-ASR: processor, untrained model, training loss and transcription.

The model learns three kinds of prompts at once: with the language forced, with the language left to the model, and with
a few words that may occur. It needs transformers 5.20 or later.
"""

import json
import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

CHAT_TEMPLATE = """{%- set told = namespace(text="") -%}
{%- for message in messages if message.role == "system" -%}
{%- for part in message.content -%}{%- set told.text = told.text + part.text -%}{%- endfor -%}
{%- endfor -%}
<|im_start|>system
{{ told.text }}<|im_end|>
{% for message in messages if message.role != "system" -%}
<|im_start|>{{ message.role }}
{% for part in message.content -%}
{%- if part.type == "audio" -%}<|audio_start|><|audio_pad|><|audio_end|>{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""

END_OF_TURN, PAD, MARK = "<|im_end|>", "<|endoftext|>", "<asr_text>"
LANGUAGE = "English"
# Shares of the training examples in which the language is forced, and in which words that may occur are given.
FORCED, GIVEN = 0.5, 0.25


def processor_of(texts: Iterable[str], folder: Path):
    """Returns and saves a processor whose tokens are the words of `texts`, with or without a space before them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import AutoProcessor, Qwen2Tokenizer, Qwen3ASRFeatureExtractor, Qwen3ASRProcessor

    split = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer.pre_tokenize_str
    prompt = f"system user assistant language {LANGUAGE}"
    words = dict.fromkeys(piece.removeprefix("Ġ") for text in [prompt, *texts] for piece, _ in split(text))
    pieces = [form for word in words for form in (word, "Ġ" + word)]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("\n")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner.train_from_iterator(
        pieces, trainers.BpeTrainer(vocab_size=100_000, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    )
    learned = json.loads(learner.to_str())["model"]
    audio = {"audio_token": "<|audio_pad|>", "audio_bos_token": "<|audio_start|>", "audio_eos_token": "<|audio_end|>"}
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(merge) for merge in learned["merges"]],
        eos_token=END_OF_TURN,
        pad_token=PAD,
        model_specific_special_tokens=audio,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [PAD, "<|im_start|>", END_OF_TURN, *audio.values()]})
    tokenizer.add_tokens([MARK])
    folder.mkdir(parents=True, exist_ok=True)
    Qwen3ASRProcessor(Qwen3ASRFeatureExtractor(), tokenizer, chat_template=CHAT_TEMPLATE).save_pretrained(folder)
    return AutoProcessor.from_pretrained(folder)


def untrained_model(processor, width: int):
    """Returns an untrained model of about 2.6 million parameters at width 144."""
    from transformers import GenerationConfig, Qwen3ASRConfig, Qwen3ASRForConditionalGeneration

    tokenizer, inner = processor.tokenizer, width + 16
    ends = tokenizer.convert_tokens_to_ids([PAD, END_OF_TURN])
    config = Qwen3ASRConfig(
        audio_config=dict(
            model_type="qwen3_asr_encoder",
            d_model=width,
            encoder_layers=4,
            encoder_attention_heads=4,
            encoder_ffn_dim=4 * width,
            downsample_hidden_size=32,
            dropout=0.1,
            output_dim=inner,
            initializer_range=0.05,
        ),
        text_config=dict(
            model_type="qwen3",
            vocab_size=len(tokenizer),
            hidden_size=inner,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=inner // 4,
            intermediate_size=3 * inner,
            max_position_embeddings=1024,
            initializer_range=0.05,
            tie_word_embeddings=True,
        ),
        audio_token_id=processor.audio_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=ends,
        initializer_range=0.05,
    )
    model = Qwen3ASRForConditionalGeneration(config)
    # With the family's own initialisation, the positions would drown out the sound in the first layer.
    tower = model.model.audio_tower
    for layer in (tower.conv2d1, tower.conv2d2, tower.conv2d3, tower.conv_out):
        nn.init.normal_(layer.weight, std=2 / math.sqrt(layer.weight[0].numel()))
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=ends[0], max_new_tokens=60)
    return model


def ctc_layers(model) -> nn.ModuleList:
    """Returns the CTC layers, discarded after training: on the audio embeddings, and on the last audio states."""
    config = model.config
    sizes = (config.audio_config.output_dim, config.text_config.hidden_size)
    return nn.ModuleList(nn.Linear(size, config.text_config.vocab_size) for size in sizes)


def audio_lengths(frames: torch.Tensor) -> torch.Tensor:
    """Returns the number of embeddings for clips with these numbers of frames: 13 a second, each second on its own."""
    rest = frames % 100
    for _ in range(3):
        rest = torch.where(rest > 0, (rest - 1) // 2 + 1, rest)
    return frames // 100 * 13 + rest


def prompts_for(processor, texts: Sequence[str]) -> list[tuple[str, str]]:
    """Returns for every transcript a prompt of a random kind, and what the model should write after it."""
    languages = [LANGUAGE if random.random() < FORCED else None for _ in texts]
    given = [_words_given(text) if random.random() < GIVEN else None for text in texts]
    silence = np.zeros(8000, dtype=np.float32)
    requests = processor.apply_transcription_request(
        [silence] * len(texts), language=languages, prompt=given, tokenize=False
    )
    written = [
        ("" if language else f"language {LANGUAGE}{MARK}") + text + END_OF_TURN
        for language, text in zip(languages, texts, strict=True)
    ]
    return list(zip(requests, written, strict=True))


def _words_given(text: str) -> str:
    words = [word.strip(".,?()") for word in text.split()]
    return " ".join(random.sample(words, min(len(words), random.randint(1, 2))))


def loss_of(model, layers: nn.ModuleList, batch, processor, ctc_weight: float) -> torch.Tensor:
    """Returns the training loss of a batch: label-smoothed cross-entropy of the output, and CTC of the words.

    Args:
        model: In training mode.
        layers: Layers from `ctc_layers`.
        batch: Features (B, T, C), mask (B, T), and under "en" the ids of transcripts (B, L), padded.
        processor: The model's processor.
        ctc_weight: 0 leaves CTC out.
    """
    tokenizer, pad = processor.tokenizer, processor.tokenizer.pad_token_id
    features, mask, ids = batch
    words = ids["en"]
    frames = mask.sum(1)
    missing = -features.shape[1] % 100
    inputs = nn.functional.pad(features, (0, 0, 0, missing)).transpose(1, 2)
    mask = nn.functional.pad(mask, (0, missing))
    lengths = audio_lengths(frames)
    rows, labels = [], []
    texts = tokenizer.batch_decode(words, skip_special_tokens=True)
    for (prompt, written), length in zip(prompts_for(processor, texts), lengths.tolist(), strict=True):
        before = tokenizer(prompt.replace(processor.audio_token, processor.audio_token * length)).input_ids
        after = tokenizer(written).input_ids
        rows.append(torch.tensor(before + after))
        labels.append(torch.tensor([-100] * len(before) + after))
    sequence = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    label = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
    valid = nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True)
    output = model.model(
        input_ids=sequence, attention_mask=valid, input_features=inputs, input_features_mask=mask, use_cache=False
    )
    states = output.last_hidden_state
    of_output = label[:, 1:] != -100
    logits = model.lm_head(states[:, :-1][of_output])
    total = nn.functional.cross_entropy(logits, label[:, 1:][of_output], label_smoothing=0.1)
    if ctc_weight:
        heard = states[sequence == processor.audio_token_id]
        sizes = ((words != pad) & (words != tokenizer.eos_token_id)).sum(1)
        for layer, packed in zip(layers, (output.audio_hidden_states, heard), strict=True):
            rows = nn.utils.rnn.pad_sequence(packed.split(lengths.tolist()))
            scores = layer(rows).log_softmax(-1)
            total = total + ctc_weight * nn.functional.ctc_loss(
                scores, words, lengths, sizes, blank=pad, zero_infinity=True
            )
    return total


def transcribe(model, processor, samples: Sequence[np.ndarray]) -> list[str]:
    """Returns the model's greedy transcript of every clip, with the language forced."""
    inputs = processor.apply_transcription_request(list(samples), language=LANGUAGE)
    with torch.no_grad():
        ids = model.generate(**inputs, num_beams=1, do_sample=False)
    return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
