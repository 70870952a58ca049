"""Speech LLMs by plain calls of model and processor, as a user makes them: what their adapters are compared with."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import test_contract
import torch
from test_contract import ZeroSome
from tiny import VARIED


def plain(case, options=None, audio=None):
    """Return what the processor makes of the clip, as a user calls it."""
    options = case.family.options if options is None else options
    inputs = case.family.inputs(case.processor, case.audio if audio is None else audio, options)
    inputs["input_features"] = inputs["input_features"].to(case.model.dtype)
    return {k: torch.as_tensor(v) for k, v in inputs.items()}


def audio_of(inputs):
    return {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}


def plain_generate(case, options=None, model=None, **kwargs):
    """Return the (L,) tokens of a plain call of ``model.generate()``, prompt and placeholders and all."""
    with torch.no_grad():
        model = copy.deepcopy(case.model) if model is None else model
        return model.generate(**plain(case, options), **{**VARIED, **kwargs})[0]


def plain_logits(case, inputs=None, model=None, tokens=None):
    """Return the (K, V) logits of a plain call of the model on prompt, audio and output."""
    inputs = plain(case) if inputs is None else inputs
    tokens = case.target.token_ids if tokens is None else tokens
    ids = torch.cat([inputs["input_ids"][0], tokens[:-1]])[None]
    with torch.no_grad():
        model = copy.deepcopy(case.model) if model is None else model
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **audio_of(inputs)).logits
    return logits[0, -len(tokens) :]


literal_features = partial(test_contract.literal_features, inputs_of=plain, logits_of=plain_logits)


def literal_tokens(case, keep, inputs=None):
    """Return the logits, (B, K, V), of a copy of the model whose embedding zeroes text, and never a placeholder."""
    inputs = plain(case) if inputs is None else inputs
    ids = torch.cat([inputs["input_ids"][0], case.target.token_ids[:-1]])
    text = (ids != case.model.config.audio_token_id).nonzero()[:, 0]
    results = []
    for mask in keep:
        whole = torch.ones(len(ids), dtype=torch.bool)
        whole[text] = mask
        changed = copy.deepcopy(case.model)
        changed.set_input_embeddings(ZeroSome(changed.get_input_embeddings(), whole))
        results.append(plain_logits(case, inputs, changed))
    return torch.stack(results)


def sound_of(case, samples):
    """Return noise of this length, if the family reads so much at once."""
    if case.adapter.window_s is not None and samples > 16_000 * case.adapter.window_s:
        pytest.skip("longer than the window")
    return (0.1 * np.random.default_rng(0).standard_normal(samples)).astype(np.float32)
