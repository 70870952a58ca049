"""What an explanation is made of: its stored parts, over tokens; where they come from; how tokens form words."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from spes_hf.adapters.positions import EncoderPositions
from spes_hf.explanation.maps import EncoderMap, PatchMap, Reliability
from spes_hf.explanation.origin import Origin
from spes_hf.functional import paired_min_max, ratio, standardize, z_score
from spes_hf.masking.perturbations import fill_values
from spes_hf.scoring.contrast import Contrast
from spes_hf.scoring.prior import prior_of, with_prior
from spes_hf.text import join_pieces, word_groups

# In seconds.
_CLIP_STARTS_BY_S = 0.1


@dataclass(frozen=True)
class Part:
    """Which tokens of an output are explained, if not all, and what the whole output was.

    Attributes:
        rows: Index of each explained token among those of the output.
        token_ids: Ids of all tokens of the output.
        pieces: Text of each token.
        special: Whether each token is a special one, such as a timestamp.
        sound_bits: Bits of evidence from the sound for each token; the whole text is needed to tell if it is made up.
        timestamps: Whether each token is a timestamp.

    Examples:
        >>> Part((1,), (5, 6), (" Tom", " sells"), (False, False), (2.0, 4.0), (False, False)).words()
        ([(0,)], [(0,)])
    """

    rows: tuple[int, ...]
    token_ids: tuple[int, ...]
    pieces: tuple[str, ...]
    special: tuple[bool, ...]
    sound_bits: tuple[float, ...]
    timestamps: tuple[bool, ...]

    def without(self, left_out: Sequence[bool]) -> Part:
        """Return the part for an output without the tokens marked here."""
        kept = [k for k, leave in enumerate(left_out) if not leave]
        place = {k: i for i, k in enumerate(kept)}
        values = {f.name: tuple(getattr(self, f.name)[k] for k in kept) for f in fields(self) if f.name != "rows"}
        return Part(rows=tuple(place[k] for k in self.rows if k in place), **values)

    def words(self) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """Return the words of the explained tokens, as rows, and all words before the last one, as tokens."""
        words = word_groups(self.pieces, self.special)
        row_of = {k: row for row, k in enumerate(self.rows)}
        explained = [tuple(row_of[k] for k in word if k in row_of) for word in words]
        return [word for word in explained if word], words[:-1]


@dataclass(frozen=True, eq=False)
class ExplanationParts:
    """The stored parts of an `Explanation`: K tokens, J decoder inputs, T frames, C mel bins; tensors are on the CPU.

    Attributes:
        text: The text of the output.
        pieces: Text of every explained token, including the space that starts a word.
        token_id_list: Id of every explained token, including the end-of-sequence token.
        context_pieces: Text of every decoder input.
        special: Whether each explained token is a special one (end of sequence).
        prefix_length: Number of decoder inputs that the model did not choose (start and prompt tokens).
        probabilities: Per explained token, the probability that the model gave it.
        token_sound_bits: (K,) float32, `sound_bits` over tokens; NaN in explanations by earlier versions.
        token_text_bits: (K,) float32, `text_bits` over tokens, likewise.
        features: (T, C) float32, the spectrogram as the model saw it, true frames only.
        times: (T,) centres of the frames, in seconds.
        frequencies: (C,) centres of the mel bins, in Hz.
        audio_map: Raw scores of the spectrogram.
        raw_token_scores: Per token (K, J) float32, Eq. 3; NaN where j is not yet generated.
        sound_impact: (K,) mean impact of the masks that hide sound; NaN if the method draws none.
        text_impact: (K,) mean impact of the masks that hide a token the model wrote, and no sound; NaN without any.
        token_reliability: Split-half reliability of the audio map, over tokens.
        waveform: (S,) float32 samples, for playing.
        sampling_rate: Samples per second.
        provenance: Everything needed to make this explanation again.
        groups: Which tokens form each word, in an explanation over words.
        context_groups: Which decoder inputs form each word of the context.
        sentence_map: Scores of the spectrogram for the sentence, if the method measures them separately; without a unit
            if they are means over levels in standard deviations, as by default.
        contrasts: The rows of an explanation with a foil: instead of K tokens, K places where the output and the foil
            differ. ``pieces`` then holds the names of the places, and ``probabilities`` those of what the model wrote
            there. Bits are those of log-odds against the foil. Maps speak for what the model wrote (above 0) or for
            the foil (below 0).
        part: The whole output, if only K of its tokens are explained.
        encoder_map: Raw scores of the encoder's output, if requested.
        token_instruction_bits: (K,) float32, `instruction_bits` over tokens; None: there is no instruction.

    Examples:
        >>> len(ex.pieces) == len(ex), ex.over_words, ex.words().find("picture")
        (True, False, 4)
    """

    text: str
    pieces: tuple[str, ...]
    token_id_list: tuple[int, ...]
    context_pieces: tuple[str, ...]
    special: tuple[bool, ...]
    prefix_length: int
    probabilities: Tensor
    token_sound_bits: Tensor
    token_text_bits: Tensor
    features: Tensor
    times: Tensor
    frequencies: Tensor
    audio_map: PatchMap
    raw_token_scores: Tensor
    sound_impact: Tensor
    text_impact: Tensor
    token_reliability: Reliability
    waveform: Tensor
    sampling_rate: int
    provenance: dict[str, Any] = field(default_factory=dict)
    groups: tuple[tuple[int, ...], ...] | None = None
    context_groups: tuple[tuple[int, ...], ...] | None = None
    sentence_map: PatchMap | None = None
    contrasts: tuple[Contrast, ...] | None = None
    part: Part | None = None
    encoder_map: EncoderMap | None = None
    token_instruction_bits: Tensor | None = None

    # Its rows -------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Number of explained tokens, or words."""
        return len(self._groups)

    @property
    def tokens(self) -> list[str]:
        """Text of every explained token (or word)."""
        return [join_pieces([self.pieces[k] for k in group]) for group in self._groups]

    def find(self, token: int | str) -> int:
        """Return the index of an explained token (or word) given by index or text.

        Raises:
            IndexError: If the index is out of range.
            KeyError: If the text does not occur, or occurs more than once.
        """
        if not isinstance(token, str):
            token = operator.index(token)
            if not -len(self) <= token < len(self):
                raise IndexError(f"token is {token}, but {len(self)} are explained; allowed: 0 … {len(self) - 1}")
            return token % len(self)
        hits = [k for k, name in enumerate(self.tokens) if name.strip() == token.strip()]
        if len(hits) != 1:
            found = f"occurs at {hits}; pass one of these" if hits else f"does not occur; allowed: {self.tokens}"
            raise KeyError(f"token {token!r} {found}")
        return hits[0]

    # Where it comes from ---------------------------------------------------------------------------------------------

    @cached_property
    def origin(self) -> Origin:
        """The content of the provenance, field by field."""
        return Origin.read(self.provenance)

    @property
    def method(self) -> str:
        """Name of the method: "spes", "captum", …."""
        return self.origin.method

    @property
    def text_given(self) -> bool:
        """Whether the text was given, not generated."""
        return self.origin.text_given

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader needs to know: what was done to the audio, what was explained, and how."""
        notes = [f"Audio: {note}" for note in self.origin.notes]
        if self.text_given:
            notes.append("The text was given, not generated: probabilities are those of the given tokens.")
            if self.origin.config.get("impact") == "kl":
                notes.append("KL measures how the prediction changes at each position, whatever token is given there.")
        return tuple(notes)

    @property
    def sound_start_s(self) -> float:
        """Where the waveform begins on the clock of `times`, in seconds: 0, except for a window of a recording."""
        start = float(self.times[0]) if len(self.times) else 0.0
        # A clip's first frame lies before that; the first frame of a later window of a recording does not.
        return float(self.origin.window.get("start_s", start if start > _CLIP_STARTS_BY_S else 0.0))

    @property
    def reached_length_limit(self) -> bool:
        """Whether a length limit cut the text."""
        return self.origin.reached_length_limit

    @property
    def generation(self) -> dict[str, Any]:
        """Language, task, tgt_lang and generate_kwargs of the unperturbed run, as `to_plain` writes them."""
        return {name: getattr(self.origin, name) for name in ("language", "task", "tgt_lang", "generate_kwargs")}

    @property
    def written_bits(self) -> dict[int, float]:
        """Bits from the sound of all tokens of the text, explained or not, by their index in the output."""
        special = self.special if self.part is None else self.part.special
        bits = self.token_sound_bits.tolist() if self.part is None else self.part.sound_bits
        return {k: bits[k] for k, left_out in enumerate(special) if not left_out}

    @property
    def instruction_bits(self) -> Tensor:
        """(K,) bits of evidence from a speech LLM's instruction, given the sound and the text before the token.

        log2 of how much likelier the instruction made the token. Without it, the embeddings of its own text (the words
        of ``prompt``, ``language`` and ``task``) are zero; tokens that mark turns, and text that the chat template adds
        by itself, stay. Over words, the sum over their tokens. NaN if the model takes no instruction or got none, and
        in explanations by earlier versions.
        """
        if self.token_instruction_bits is None:
            return self._sum_over_groups(torch.full_like(self.token_sound_bits, torch.nan))
        return self._sum_over_groups(self.token_instruction_bits)

    # Over the encoder's output ---------------------------------------------------------------------------------------

    @property
    def raw_encoder(self) -> Tensor:
        """(K, S) raw scores of the encoder's output, in nats for KL; for words, the mean over their tokens.

        S is the number of positions that hold sound, at `encoder_times`. Hidden positions got the mean of all.

        Raises:
            ValueError: If the explanation has no such map.
        """
        return self._mean_over_groups(self._encoder_map.scores)

    @property
    def encoder_saliency(self) -> Tensor:
        """(K, S) saliency of the encoder's output in [0, 1], on a scale of its own; for words, the mean over tokens.

        Normalised like the other maps: z-scores of each token, then min-max over all (§4.3).

        Raises:
            ValueError: If the explanation has no such map.
        """
        return self._mean_over_groups(self._normalised_encoder)

    @cached_property
    def _normalised_encoder(self) -> Tensor:
        standard = torch.stack([z_score(scores) for scores in self._encoder_map.scores])
        low, high = standard.min(), standard.max()
        return ratio(standard - low, (high - low).expand_as(standard)).float()

    @property
    def encoder_times(self) -> Tensor:
        """(S,) the centre of each position of the encoder's output, in seconds, on the clock of `times`.

        Raises:
            ValueError: If the explanation has no map of the encoder's output.
        """
        return self._encoder_map.times

    @property
    def encoder_positions(self) -> EncoderPositions:
        """How positions of the encoder's output map to frames; spreads and pools values between them.

        Raises:
            ValueError: If the explanation has no map of the encoder's output.
        """
        return EncoderPositions(self._encoder_map.times, self.times)

    @property
    def _encoder_map(self) -> EncoderMap:
        if self.encoder_map is None:
            raise ValueError('the explanation has no map of the encoder\'s output; pass over="encoder" to explain()')
        return self.encoder_map

    # Maps -----------------------------------------------------------------------------------------------------------

    def _evidence_of(self, k: int) -> Tensor:
        """Return the evidence for one token, (T, C)."""
        dense = self.audio_map.dense(k)
        if self.audio_map.weights is None:
            return dense
        # A feature that was never hidden has shown no effect.
        return (dense - self.sound_impact[k].nan_to_num(0.0)).masked_fill(self.audio_map.counts <= 0, 0.0)

    def _normalise(self, prior_weight: float) -> tuple[Tensor, Tensor]:
        """Return the maps of all tokens in [0, 1], (K, T, C) and (K, J), with this weight for the prior."""
        audio = [self.audio_map.dense(k) for k in range(len(self.pieces))]
        if prior_weight and self._prior is not None:
            audio = [with_prior(values, prior_weight, self._prior) for values in audio]
        valid = ~self.raw_token_scores.isnan()
        standard = standardize(torch.stack(audio), self.raw_token_scores, valid)
        return paired_min_max(*standard, valid)

    @property
    def _prior_weight(self) -> float:
        """Weight of the prior in a token's map, from `SpesConfig.prior_weight`; 0 if there is no prior."""
        weight = float(self.origin.config.get("prior_weight") or 0)
        # A contrast's map has a sign, since evidence against a row is evidence too; a prior has no sign.
        return weight if weight and self.contrasts is None and self._prior is not None else 0.0

    @cached_property
    def _prior(self) -> Tensor | None:
        """(T, C) the prior that maps of tokens fall back on; None if the method does not measure the sentence."""
        if self.sentence_map is None or self.origin.config.get("estimator") != "gradient":
            return None
        deviation = self.features - fill_values(self.origin.config.get("fill", "mean"), self.features)
        return prior_of(self.sentence_map.dense(0), deviation.abs(), self.audio_map.labels)

    # Words -----------------------------------------------------------------------------------------------------------

    @property
    def over_words(self) -> bool:
        """Whether this is an explanation over words."""
        return self.groups is not None

    @property
    def _groups(self) -> Sequence[tuple[int, ...]]:
        return singles(self.pieces) if self.groups is None else self.groups

    @property
    def _context_groups(self) -> Sequence[tuple[int, ...]]:
        return singles(self.context_pieces) if self.context_groups is None else self.context_groups

    def _words(self) -> tuple[Sequence[tuple[int, ...]], Sequence[tuple[int, ...]]]:
        """Return which rows form each word, and which written tokens form each word of the context."""
        if self.part is not None:
            return self.part.words()
        if self.contrasts is None:
            words = word_groups(self.pieces, self.special)
            return words, words[:-1]
        written = self.context_pieces[self.prefix_length :]
        return singles(self.pieces), word_groups(written, [False] * len(written))

    def _sum_over_groups(self, values: Tensor) -> Tensor:
        if self.groups is None:
            return values
        return torch.stack([values[list(g)].sum() for g in self.groups]) if self.groups else values[:0]

    def _probability_less(self, bits: Tensor) -> Tensor:
        """Return the probability of each token (or word) without the source of these bits.

        Raises:
            ValueError: If the explanation has a foil: its bits are those of log-odds.
        """
        if self.contrasts is not None:
            raise ValueError("with a foil, bits are those of log-odds; use log_odds, sound_bits and text_bits instead")
        known = self._sum_over_groups(self.probabilities.double().clamp_min(1e-300).log2())
        return (2 ** (known - bits.double())).clamp_max(1.0).float()

    def _mean_over_groups(self, values: Tensor) -> Tensor:
        if self.groups is None:
            return values
        return torch.stack([values[list(g)].mean(0) for g in self.groups]) if self.groups else values[:0]

    def _start_of(self, row: int) -> int:
        """Return the number of written tokens before a row."""
        if self.contrasts is not None:
            return self.contrasts[row].start
        return row if self.part is None else self.part.rows[row]

    @property
    def starts(self) -> list[int]:
        """For each row, the number of decoder inputs the model wrote, or words of the context, that come before it."""
        p, written = self.prefix_length, [group for group in self._context_groups if group[0] >= self.prefix_length]
        rows = [self._start_of(group[0]) for group in self._groups]
        return [sum(group[-1] < p + start for group in written) for start in rows]

    @property
    def written_ids(self) -> tuple[int, ...]:
        """Ids of all tokens of the output, explained or not.

        Raises:
            ValueError: If the explanation has a foil, since its rows are not tokens.
        """
        if self.contrasts is not None:
            raise ValueError("with a foil, rows are places in the text, not tokens; use contrasts instead")
        return self.token_id_list if self.part is None else self.part.token_ids

    def _context_mean(self, values: Tensor) -> Tensor:
        if self.groups is None:
            return values
        grouped = values.new_full((len(self._groups), len(self._context_groups)), torch.nan)
        for w, rows in enumerate(self._groups):
            for v, columns in enumerate(self._context_groups):
                if columns[-1] < self.prefix_length + self._start_of(rows[0]):
                    grouped[w, v] = values[list(rows)][:, list(columns)].mean()
        return grouped


def singles(items: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    """Return groups of one for all items."""
    return tuple((i,) for i in range(len(items)))
