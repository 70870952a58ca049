"""The result: saliency of the spectrogram and of the earlier tokens, for every token that the model wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from spes_hf import functional
from spes_hf.bits import Verdict, is_fitted, verdict_of
from spes_hf.explanation.listening import HeardBack, Sound, listen
from spes_hf.explanation.maps import Reliability
from spes_hf.explanation.parts import ExplanationParts, singles
from spes_hf.text import join_pieces

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Explanation(ExplanationParts):
    """Why the model wrote each token: saliency over the spectrogram and over the tokens before it.

    Made by `explain`. K explained tokens, J decoder inputs, T frames, C mel bins; all tensors are on the CPU. `words`
    returns the same over words: properties and methods then have an entry for each word, but stored parts
    (`ExplanationParts`) stay over tokens.

    Examples:
        >>> ex.words().tokens
        [' Tom', ' sells', ' a', ' small', ' picture', '.']
    """

    # What was explained ----------------------------------------------------------------------------------------------

    @property
    def token_ids(self) -> list[int] | list[list[int]]:
        """Ids of the explained tokens; for words, the ids of each word's tokens."""
        if self.contrasts is not None:
            return [list(contrast.target_ids) for contrast in self.contrasts]
        if self.groups is None:
            return list(self.token_id_list)
        return [[self.token_id_list[k] for k in group] for group in self.groups]

    @property
    def token_probabilities(self) -> Tensor:
        """(K,) probability that the model gave each token; for words, the product over their tokens."""
        return torch.tensor(
            [float(self.probabilities[list(group)].prod()) for group in self._groups], dtype=torch.float32, device="cpu"
        )

    @property
    def context_tokens(self) -> list[str]:
        """Text of the J decoder inputs: start and prompt tokens, then y_1 … y_{K−1} (or words)."""
        return [join_pieces([self.context_pieces[j] for j in group]) for group in self._context_groups]

    # Saliency --------------------------------------------------------------------------------------------------------

    @property
    def raw_audio_saliency(self) -> Tensor:
        """(K, T, C) Eq. 3 before normalisation, in nats for KL; for words, the mean over their tokens."""
        return self._mean_over_groups(torch.stack([self.audio_map.dense(k) for k in range(len(self.pieces))]))

    @property
    def raw_token_saliency(self) -> Tensor:
        """(K, J) Eq. 3 before normalisation; NaN where j is not yet generated."""
        return self._context_mean(self.raw_token_scores)

    @property
    def raw_audio(self) -> Tensor:
        """`raw_audio_saliency` by its short name. This is saliency, not sound: the samples are in `waveform`."""
        return self.raw_audio_saliency

    @property
    def raw_token(self) -> Tensor:
        """`raw_token_saliency` by its short name."""
        return self.raw_token_saliency

    @cached_property
    def _normalised(self) -> tuple[Tensor, Tensor]:
        return self._normalise(self._prior_weight)

    @cached_property
    def audio_saliency(self) -> Tensor:
        """(K, T, C) saliency of the spectrogram in [0, 1], on the same scale as `token_saliency` (§4.3).

        By default, maps fall back on the evidence for the sentence where their own is weak (`prior_weight` of
        `SpesConfig`; docs/gradient.md); `raw_audio_saliency` and `evidence` are the token's own.
        """
        return self._mean_over_groups(self._normalised[0])

    @cached_property
    def token_saliency(self) -> Tensor:
        """(K, J) saliency of the decoder inputs in [0, 1]; NaN where j is not yet generated (§4.3)."""
        return self._context_mean(self._normalised[1])

    @property
    def sentence_saliency(self) -> Tensor:
        """(T, C) saliency of the spectrogram for the whole sentence, in [0, 1].

        `measured_sentence_saliency` if the method measured the sentence separately, as the default does; otherwise
        `mean_token_saliency`, as in the paper. `sentence_kind` says which.
        """
        measured = self.measured_sentence_saliency
        return self.mean_token_saliency if measured is None else measured

    def evidence(self, token: int | str | None = None) -> Tensor:
        """Return a token's (or word's) map with sign and unit, (T, C): 0 is no effect, below 0 is evidence against it.

        From gradients, this is the impact of hiding a feature. From Eq. 3, it is how much more hiding the feature moves
        the model than the average mask does. Over words, it is the mean over their tokens. Meant for pictures; metrics
        use the maps in [0, 1]. `evidence_unit` names the unit.

        Args:
            token: Index of the token (or word), or its text if it occurs once; None: the whole sentence, in standard
                deviations. That is the map that the method measured for the sentence, if it did, otherwise the mean of
                the tokens' maps, each in its own standard deviations.

        Raises:
            IndexError: If the index is out of range.
            KeyError: If the text does not occur, or occurs more than once.
        """
        if token is not None:
            group = self._groups[self.find(token)]
            return torch.stack([self._evidence_of(k) for k in group]).mean(0)
        if self.sentence_map is not None and not self.token_sound_bits.isnan().all():
            return functional.scaled(self.sentence_map.dense(0)).float()
        # In explanations by earlier versions, the sentence's map has no zero.
        scaled = [functional.scaled(self._evidence_of(k)) for k in range(len(self.pieces))]
        return torch.stack(scaled).mean(0).float()

    def evidence_unit(self, token: int | str | None = None) -> str:
        """Return the unit of `evidence`, such as "nats", "bits", "probability" or "standard deviations".

        Args:
            token: As for `evidence`.
        """
        energy = bool(self.origin.config.get("energy"))
        attention = "feature units" if energy else "attention"
        units = {"energy": "feature units", "random": "no unit", "attention": attention}
        impact = str(self.origin.config.get("impact", "kl"))
        kinds = {"log-odds": "bits", **dict.fromkeys(("probability", "difference", "relative"), "probability")}
        return "standard deviations" if token is None else units.get(self.method, kinds.get(impact, "nats"))

    @property
    def sentence_kind(self) -> Literal["measured", "mean"]:
        """What `sentence_saliency` is: "measured" on the sentence, or the "mean" of its tokens' maps."""
        return "mean" if self.sentence_map is None else "measured"

    @cached_property
    def measured_sentence_saliency(self) -> Tensor | None:
        """(T, C) `sentence_map`, scaled to [0, 1]; None if the method measures only tokens."""
        if self.sentence_map is None:
            return None
        values = self.sentence_map.dense(0)
        return functional.ratio(values - values.min(), (values.max() - values.min()).expand_as(values))

    @cached_property
    def mean_token_saliency(self) -> Tensor:
        """(T, C) mean of the tokens' audio maps, after both normalisations, including the end of sequence (§4.3)."""
        return self._normalised[0].mean(0)

    @property
    def sound_bits(self) -> Tensor:
        """(K,) bits of evidence from the sound: log2 of how much likelier it made the token, given the text before it.

        0 bits: the token is just as likely without the sound (every frame at its fill value). 8 bits: it is 256 times
        likelier with the sound. Below 0: the sound spoke against it. Over words, the sum over their tokens. Not from
        the paper; see `functional.evidence_bits`.
        """
        return self._sum_over_groups(self.token_sound_bits)

    @property
    def text_bits(self) -> Tensor:
        """(K,) bits of evidence from the text that the model wrote before the token, given the sound.

        Without the text, the embeddings of all tokens that the model wrote are zero; start and prompt tokens stay. 0
        for the first token, except for rounding. Over words, the sum over their tokens.
        """
        return self._sum_over_groups(self.token_text_bits)

    @property
    def probability_without_sound(self) -> Tensor:
        """(K,) probability of the token without the sound; for words, the product over their tokens."""
        return self._probability_less(self.sound_bits)

    @property
    def probability_without_text(self) -> Tensor:
        """(K,) probability of the token without the text before it; for words, the product over their tokens."""
        return self._probability_less(self.text_bits)

    @property
    def log_odds(self) -> Tensor:
        """(K,) bits, with a foil: log2 of how much likelier the model finds its own text than the foil.

        Raises:
            ValueError: If the explanation has no foil.
        """
        if self.contrasts is None:
            raise ValueError("log_odds needs an explanation with a foil; pass foil=… to explain()")
        return torch.tensor([c.log_odds for c in self.contrasts], dtype=torch.float32, device="cpu")

    @property
    def verdict(self) -> Verdict:
        """Whether the model heard what it wrote: "heard", "made up" or "nothing written"; "given" for a given text.

        "not known" for an explanation by an earlier version, which stored no bits, for one with a foil, since its bits
        are those of contrasts, and for other families than Whisper, on which the limit was fitted.
        """
        return verdict_of(self.text, self.bits_per_token, self.text_given, is_fitted(self.origin.model.get("type")))

    @property
    def bits_per_token(self) -> float:
        """Mean sound bits over all but special tokens; NaN if there are none.

        If a whole output has few bits, it was probably made up (`spes_hf.sound_check`).
        """
        if self.contrasts is not None:
            return float("nan")
        written = torch.tensor(list(self.written_bits.values()), dtype=torch.float32, device="cpu")
        return float(written.mean()) if len(written) else float("nan")

    @property
    def reliability(self) -> Reliability:
        """Split-half reliability of every token's map, and of the sentence's.

        For words, the mean over a word's tokens; NaN if one of them is NaN.
        """
        if self.groups is None:
            return self.token_reliability
        return replace(self.token_reliability, tokens=self._mean_over_groups(self.token_reliability.tokens))

    def time_centroids(self, top: float = 0.05) -> Tensor:
        """Return the mean time of the most salient features of every token (or word), (K,) in seconds.

        Uses only the token's own evidence. The sentence's evidence, which maps fall back on, lies where other tokens
        are spoken, and would shift the time towards them.

        Args:
            top: Share of the features that count, weighted by how far they rise above the rest.

        Raises:
            ValueError: If ``top`` is not above 0 and at most 1.
        """
        if not 0 < top <= 1:
            raise ValueError(f"top is {top!r}; allowed: a share of the features above 0 and at most 1")
        own = self._mean_over_groups(self._normalise(0)[0]) if self._prior_weight else self.audio_saliency
        flat = own.flatten(1)
        values, indices = flat.topk(max(1, int(top * flat.shape[1])), dim=1)
        weights = (values - values.amin(1, keepdim=True)).clamp_min(1e-9)
        seconds = self.times[indices // self.features.shape[1]]
        return (weights * seconds).sum(1) / weights.sum(1)

    # Sound -----------------------------------------------------------------------------------------------------------

    def listen(self, token: int | str | None = None, top: float = 0.2, *, complement: bool = False) -> Sound:
        """Return the recording reduced to its salient regions, as (samples, rate); a notebook shows a player.

        Keeps the cells of the spectrogram that `Insertion` (for a word, `WordInsertion`) puts back first, with a soft
        mask on the short-time Fourier transform; phases stay. The rest is silent here, while metrics fill it.

        Args:
            token: Index of the token (or word), or its text if it occurs once; None: the whole sentence.
            top: Share of the T·C cells to keep, the most salient first. 0 is silence, 1 is the recording.
            complement: Return the rest instead: the recording without these regions. Both add up to the recording.

        Raises:
            ConfigError: If ``top`` is not a number in [0, 1], or the explanation has no samples.
            IndexError: If the index is out of range.
            KeyError: If the text does not occur, or occurs more than once.
        """
        saliency = self.sentence_saliency if token is None else self.audio_saliency[self.find(token)]
        return listen(self, saliency, top, complement)

    # Over words ------------------------------------------------------------------------------------------------------

    def words(self) -> Explanation:
        """Return the explanation over words: maps are means over a word's tokens, after both normalisations.

        Special tokens are left out; only the explanation over tokens has them. Punctuation marks are words of their
        own. In the context, start and prompt tokens stay single. A word's own earlier tokens do not belong to its
        context. A word's probability is the product over its tokens, its bits are the sum, its reliability is the
        mean. With a foil, the rows stay as they are.
        """
        if self.over_words:
            return self
        p = self.prefix_length
        groups, earlier = self._words()
        context = [*singles(range(p)), *(tuple(p + k for k in group) for group in earlier)]
        words = replace(self, groups=tuple(groups), context_groups=tuple(context))
        words.__dict__["_normalised"] = self._normalised  # tokens and words share these maps
        return words

    # Out of memory ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the explanation to a folder, as safetensors and JSON, and return the folder.

        Raises:
            ExplanationFormatError: If ``path`` is an existing file.
        """
        from spes_hf.explanation.storage import save_explanation

        return save_explanation(self, Path(path))

    @staticmethod
    def load(path: str | Path) -> Explanation:
        """Return the explanation that `save` wrote.

        Raises:
            ExplanationFormatError: If there is none, it is damaged, or something else wrote it.
        """
        from spes_hf.explanation.storage import load_explanation

        return load_explanation(Path(path))

    def to_row(self) -> dict[str, Any]:
        """Return the explanation as the entries of a row of a table, with all of it as bytes at "explanation".

        Further entries, for reading: "prediction" (the text), "tokens", "token_probabilities", "reliability" (of the
        sentence map), "sound_bits", "text_bits", "bits_per_token", "verdict" and "reached_length_limit".
        """
        from spes_hf.explanation.packing import to_row

        return to_row(self)

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> Explanation:
        """Return the whole explanation of a row that `to_row`, or a corpus job, made.

        Raises:
            ExplanationFormatError: If the row holds an error, or its explanation is missing or damaged.
        """
        from spes_hf.explanation.packing import from_row

        return from_row(row)

    # Pictures --------------------------------------------------------------------------------------------------------

    def plot(self, token: int | str | None = None) -> tuple[Figure, Sequence[Axes]]:
        """Return a figure of a token's map: spectrogram, saliency, and both overlaid (§8, Fig. 8).

        Args:
            token: Index of the token (or word), or its text if it occurs once; None: the whole sentence.
        """
        from spes_hf.viz import plot_saliency

        return plot_saliency(self, token)

    def plot_overview(self, longest: int = 60) -> tuple[Figure, Sequence[Axes]]:
        """Return a figure of all words against time, the spectrogram on top; see `spes_hf.viz.plot_overview`.

        Args:
            longest: Maximum number of words to draw, from the first.
        """
        from spes_hf.viz import plot_overview

        return plot_overview(self, longest)

    def plot_tokens(self) -> tuple[Figure, Axes]:
        """Return a figure of the token map: explained tokens in rows, decoder inputs in columns (Fig. 3)."""
        from spes_hf.viz import plot_tokens

        return plot_tokens(self)

    def to_html(self, path: str | Path, heard: HeardBack | None = None) -> Path:
        """Write one self-contained interactive page, and return its path.

        Args:
            path: File to write; missing parent folders are created.
            heard: Result of `spes_hf.listen_back`, to show with the sound.
        """
        from spes_hf.viz import write_html

        return write_html(self, Path(path), heard)

    def __repr__(self) -> str:
        kind = "contrasts" if self.contrasts is not None else "words" if self.over_words else "tokens"
        shape = f"{len(self.times)} frames × {len(self.frequencies)} mel bins"
        return (
            f"Explanation({self.text!r}, {len(self)} {kind}, {shape}, "
            f"{len(self.waveform) / self.sampling_rate:.1f} s, method={self.method}, "
            f"reliability={self.reliability.sentence:.2f})"
        )

    def _repr_html_(self) -> str:
        from spes_hf.viz import notebook_html

        return notebook_html(self)
