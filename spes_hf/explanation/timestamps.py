"""An explanation without its timestamp tokens, for analyses of what was said."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from spes_hf.explanation.maps import EncoderMap, PatchMap, Reliability
from spes_hf.explanation.result import Explanation


def without_timestamps(explanation: Explanation) -> Explanation:
    """Return the explanation without timestamps, as rows or as context; maps keep their scale.

    Args:
        explanation: An explanation over tokens.
    """
    part, prefix = explanation.part, explanation.prefix_length
    if part is None or not any(part.timestamps):
        return explanation
    kept = [k for k, is_one in enumerate(part.timestamps) if not is_one]
    place = {k: i for i, k in enumerate(kept)}
    rows = [row for row, k in enumerate(part.rows) if k in place]
    columns = [*range(prefix), *(prefix + k for k in kept[:-1])]  # no kept token follows the last one
    whole = [place[part.rows[row]] for row in rows] == list(range(len(kept)))

    def of_rows(values: Tensor) -> Tensor:
        return values[torch.tensor(rows, dtype=torch.int64, device="cpu")]

    def of_both(values: Tensor) -> Tensor:
        return of_rows(values)[:, torch.tensor(columns, dtype=torch.int64, device="cpu")]

    own, encoder = explanation.audio_map, explanation.encoder_map
    found = replace(
        explanation,
        pieces=tuple(explanation.pieces[row] for row in rows),
        token_id_list=tuple(explanation.token_id_list[row] for row in rows),
        special=tuple(explanation.special[row] for row in rows),
        context_pieces=tuple(explanation.context_pieces[j] for j in columns),
        probabilities=of_rows(explanation.probabilities),
        token_sound_bits=of_rows(explanation.token_sound_bits),
        token_text_bits=of_rows(explanation.token_text_bits),
        token_instruction_bits=None if (bits := explanation.token_instruction_bits) is None else of_rows(bits),
        sound_impact=of_rows(explanation.sound_impact),
        text_impact=of_rows(explanation.text_impact),
        audio_map=PatchMap(own.labels, tuple(of_rows(values) for values in own.values), own.weights),
        raw_token_scores=of_both(explanation.raw_token_scores),
        token_reliability=Reliability(
            of_rows(explanation.token_reliability.tokens), explanation.token_reliability.sentence
        ),
        part=None if whole else part.without(part.timestamps),
        encoder_map=None if encoder is None else EncoderMap(of_rows(encoder.scores), encoder.times),
    )
    audio, token = explanation._normalised
    found.__dict__["_normalised"] = of_rows(audio), of_both(token)
    if encoder is not None:
        found.__dict__["_normalised_encoder"] = of_rows(explanation._normalised_encoder)
    return found
