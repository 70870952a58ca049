"""When each word on a page is heard, for a walk through the words in time with the sound."""

from __future__ import annotations

from dataclasses import replace

from spes_hf.explanation import Explanation
from spes_hf.explanation.stretches import joined, peak_stretch, profiles_in_time, stretches_in_order


def word_times(explanation: Explanation) -> list[tuple[int, float, float]]:
    """Return the index of each spoken word with the start and end of its stretch in seconds, ordered by start.

    If words are heard in the order in which they are written, they share the time axis, so a walk has no gaps.
    Otherwise, as in translation, or if only part of the text is explained, each word's stretch lies around the peak of
    its map. Empty for contrasts, which are not words, and for a damaged explanation whose times do not rise.

    Args:
        explanation: An explanation over tokens or words.
    """
    if explanation.contrasts is not None or not bool((explanation.times.diff() > 0).all()):
        return []
    tokens = replace(explanation, groups=None, context_groups=None)
    words = explanation.words()
    profiles = profiles_in_time(tokens)
    cut = stretches_in_order(profiles, tokens.times) if tokens.part is None else None
    found = []
    for index, group in enumerate(words.groups or ()):
        if not any(k in profiles for k in group):
            continue
        own = joined(cut[k] for k in group if k in cut) if cut else peak_stretch(words.evidence(index), words.times)
        if own is not None:
            found.append((index, round(own[0], 3), round(own[1], 3)))
    return sorted(found, key=lambda each: each[1])
