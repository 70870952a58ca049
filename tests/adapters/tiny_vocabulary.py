"""A byte-level vocabulary that was trained on a few sentences, for tiny speech LLMs."""

from __future__ import annotations

import json

from tiny import CORPUS
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

INSTRUCTION = "write the little garden in german"
WORDS = ["system user assistant\n", "You are a helpful assistant.", "Transcribe the speech into text.", INSTRUCTION]


def byte_level(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return vocabulary and merges of a byte-level tokenizer that was trained on a few sentences."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator([*CORPUS, *WORDS * 3], trainer)
    learned = json.loads(learner.to_str())["model"]
    return learned["vocab"], [tuple(merge) for merge in learned["merges"]]
