"""Where the maps of an ending lie, contrastive and plain, and what deleting them does to the ending."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from gender_listen import Listener, about, bands, ending, hidden, regions, same_but_ending
from gender_speech import Case, Spoken
from torch import Tensor

from spes_hf import Explainer, Explanation

TOP = 0.05  # share of the features that counts as what a map points at
FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2)


def top(values: Tensor, share: float) -> Tensor:
    """Return the largest values of a map, (T, C) bool."""
    chosen = torch.zeros(values.numel(), dtype=torch.bool)
    chosen[values.flatten().topk(max(1, int(share * values.numel()))).indices] = True
    return chosen.view_as(values)


def explained(listener: Listener, explainer: Explainer, said: Spoken) -> dict[str, Any] | None:
    """Return where the maps of the ending that a model wrote lie; None where the rest of the text is not right.

    Args:
        listener: The model.
        explainer: Of the same model.
        said: What it hears.
    """
    utterance, case = listener.hear(said), said.case
    written = listener.write(utterance)
    wrote = ending(written, case)
    if wrote == "none" or not same_but_ending(written, case.sentence.translation("es"), case):
        return None
    word, other = case.endings[wrote], case.endings["m" if wrote == "f" else "f"]
    name = f"{case.sentence.text} {said.voice}"
    ask = {"sampling_rate": 16_000, "tgt_lang": "spa", "utterance_id": name}
    contrast = explainer(said.samples, foil={word: other}, **ask)
    plain = explainer(said.samples, **ask).words()
    k = plain.find(word)
    features = utterance.features
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    maps = {
        "contrast": contrast.evidence(0),
        "plain": plain.evidence(k),
        "energy": features - features.min(),
        "random": torch.rand(features.shape, generator=generator),
    }
    areas = {name: rows[:, None].expand_as(features) for name, rows in regions(utterance, said).items()}
    areas |= {name: columns.expand_as(features) for name, columns in bands(utterance).items()}
    return {
        **about(said),
        "wrote": wrote,
        "log_odds": float(contrast.log_odds[0]),
        "sound_bits": float(contrast.sound_bits[0]),
        "text_bits": float(contrast.text_bits[0]),
        "reliability": float(contrast.reliability.tokens[0]),
        "reliability_plain": float(plain.reliability.tokens[k]),
        "text": written_words(contrast, case),
        "text hidden": text_hidden(listener, said, wrote),
        "places": {name: places(values, areas) for name, values in maps.items()},
        "profile": {name: profile(maps[name]) for name in ("contrast", "plain")},
        "deletion": deletion(listener, said, maps, wrote, written),
    }


def places(values: Tensor, areas: dict[str, Tensor]) -> dict[str, float]:
    """Return how much denser the top of a map is in each area than over the whole, and over how much time it spreads.

    1: as dense as chance. "spread": the share of the frames that the top would cover if it lay evenly (perplexity).
    """
    chosen = top(values, TOP).float()
    found = {name: float(chosen[area].mean() / chosen.mean()) for name, area in areas.items() if area.any()}
    in_time = chosen.sum(1) / chosen.sum()
    entropy = -(in_time * in_time.clamp_min(1e-12).log()).sum()
    return {**found, "spread": float(entropy.exp() / len(in_time))}


def profile(values: Tensor) -> list[float]:
    """Return the share of the top of a map in every mel bin, times the number of bins: 1 is chance."""
    chosen = top(values, TOP).float()
    return [round(float(v), 4) for v in chosen.mean(0) / chosen.mean()]


def written_words(contrast: Explanation, case: Case) -> dict[str, float | None]:
    """Return what the map says of earlier words, in bits: the noun that tells, its article, the mean of others."""
    row = contrast.words().raw_token[0]
    count = len(case.prefix.split())
    start = len(row) - int(row.isnan().sum()) - count
    values = row[start : start + count].tolist()
    parts = written_parts(case)
    return {
        name: sum(values[i] for i in parts[name]) / len(parts[name]) if parts.get(name) else None
        for name in ("noun", "article", "other words")
    }


def written_parts(case: Case) -> dict[str, list[int]]:
    """Return the words written before the adjective: the noun that tells the gender, its article, and the others."""
    count = len(case.prefix.split())
    links = case.sentence.alignment("es")
    nouns = [i for i in range(count) if case.cue is not None and links[i] == [case.cue]]
    articles = [i - 1 for i in nouns if case.prefix.split()[i - 1].lower() in ("la", "el", "una", "un")]
    return {
        "noun": nouns,
        "article": articles,
        "other words": [i for i in range(count) if i not in (*nouns, *articles)],
    }


def text_hidden(listener: Listener, said: Spoken, wrote: str) -> dict[str, float]:
    """Return the odds of the ending that was written, in bits, with words before it hidden."""
    parts = written_parts(said.case)
    parts["noun and article"] = [*parts["noun"], *parts["article"]]
    parts["all words"] = list(range(len(said.case.prefix.split())))
    hide = {"nothing": [], **{name: words for name, words in parts.items() if words}}
    sign = 1.0 if wrote == "f" else -1.0
    odds = sign * listener.odds(listener.hear(said), said.case, hide_words=list(hide.values()))
    return dict(zip(hide, odds.tolist(), strict=True))


def deletion(
    listener: Listener, said: Spoken, maps: dict[str, Tensor], wrote: str, written: str
) -> dict[str, dict[str, Any]]:
    """Return what deleting the top of each map does: the odds of the ending, and the text that the model then writes.

    "bits": by share deleted, the odds of the ending that was written, positive where it is still the likelier one.
    "flips": whether the model then writes the other ending; "rest": whether all other words stay; at `TOP`.
    """
    utterance, case = listener.hear(said), said.case
    sign = 1.0 if wrote == "f" else -1.0
    clean = sign * float(listener.odds(utterance, case)[0])
    found: dict[str, dict[str, Any]] = {}
    # The part of the contrastive map's top that lies over each area.
    areas = {name: rows[:, None] & top(maps["contrast"], TOP) for name, rows in regions(utterance, said).items()}
    parts = torch.stack([hidden(utterance.features, area) for area in areas.values()])
    found["parts"] = dict(zip(areas, (sign * listener.odds(utterance, case, parts)).tolist(), strict=True))
    for name, values in maps.items():
        versions = torch.stack([hidden(utterance.features, top(values, share)) for share in FRACTIONS])
        bits = (sign * listener.odds(utterance, case, versions)).tolist()
        text = listener.write(utterance, versions[FRACTIONS.index(TOP)])
        after = ending(text, case)
        found[name] = {
            "bits": dict(zip(map(str, (0.0, *FRACTIONS)), (clean, *bits), strict=True)),
            "flips": after not in (wrote, "none"),
            "rest": same_but_ending(text, written, case),
        }
    return found
