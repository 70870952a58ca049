"""Does a diagnosis find the cause of an error? On errors whose cause is known (planted_errors.py).

    python benchmarks/diagnosis.py                 # about 20 minutes on one core
    python benchmarks/diagnosis.py --sentences 20  # a first look

Speech recognition with the shipped Speech2Text model. Bounds were set on the voices "dev", what is reported is "test".
Writes benchmarks/results/diagnosis.json:

- verdicts by kind of error: with the times of the words known from synthesis, and with stretches found by maps;
- evidence by kind, when a stretch is hidden by putting its frames in another order, and by fill values;
- where the stretch lies: by the contrast's map alone, by the tokens' maps in order, and by cross-attention;
- whether the top 5 % of the contrast's map lie within the replaced word, against the plain map, energy and chance.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from planted_errors import NOISES, TRUE_VERDICTS, Planted, bare, planted
from torch import Tensor

from spes_hf import ConfigError, Diagnoser, EnergyConfig, Explainer, Explanation, RandomConfig, SpesConfig
from spes_hf.adapters.output import Output
from spes_hf.audio.load import load_audio
from spes_hf.demo import load_tiny_model
from spes_hf.diagnosing import shuffled
from spes_hf.explanation.diagnosis import VERDICTS, WordError
from spes_hf.explanation.stretches import Stretch, joined, peak_stretch, profiles_in_time, stretches_in_order
from spes_hf.masking.perturbations import fill_values
from spes_hf.metrics.bootstrap import bootstrap_interval
from spes_hf.scoring.foils import Words, contrast_at, differing

RATE = 16_000
MODEL = "speech2text-en"
TOP = 0.05


def the_error(errors: Iterable[WordError], case: Planted) -> WordError | None:
    """Return the error at the planted word, if it is the only one of the text."""
    found = list(errors)
    fits = len(found) == 1 and len(found[0].written_words) == 1 and bare(found[0].said) == case.said
    return found[0] if fits and found[0].row is not None else None


def diagnosed(diagnoser: Diagnoser, case: Planted, known: bool) -> WordError | None:
    """Return the error at the planted word; None where the model wrote something else altogether."""
    times = case.times if known else None
    settings: dict[str, Any] = {"sampling_rate": RATE, "text": case.text, "utterance_id": case.name}
    try:
        found = diagnoser(case.samples, " ".join(case.reference), times=times, **settings)
    except ConfigError:  # no word in common
        return None
    return the_error(found.errors, case)


class Places:
    """Where a stretch lies by several ways, and what hiding it does.

    Args:
        config: Of the contrast's map.
    """

    def __init__(self, config: SpesConfig):
        self.explainer = Explainer(*load_tiny_model(MODEL), config, progress=False)
        self.diagnoser = Diagnoser(*load_tiny_model(MODEL), config, progress=False)
        self.adapter = self.explainer.adapter

    def of(self, case: Planted) -> dict[str, Any] | None:
        """Return the evidence of every kind of stretch, and the stretches; None where the error is another one."""
        adapter = self.adapter
        options = adapter.options_of(text_given=case.text is not None)
        waveform = load_audio(case.samples, RATE, RATE)
        with self.explainer.output(waveform, options, case.text, case.name) as output:
            words = Words.of(adapter, output.target.token_ids)
            try:
                parts = differing(adapter, words, " ".join(case.reference), "reference")
                if len(parts) != 1 or len(parts[0][0].first) != 1 or bare(" ".join(parts[0][1])) != case.said:
                    return None
                contrast = contrast_at(adapter, output.target, words, *parts[0], "reference")
            except ConfigError:
                return None
            config = self.explainer.config.with_impact_for(case.text is not None, foil=True)
            objective = self.explainer.contrasting(output, (contrast,), config)
            explanation = self.explainer.of_output(output, options, case.name, config, objective)
            profiles = profiles_in_time(self.explainer.of_output(output, options, case.name, self.diagnoser.alignment))
            stretches = self._stretches(output, explanation, profiles, contrast.tokens)
            stretches["known"] = case.span
            found: dict[str, Any] = {"kind": case.kind, "log_odds": float(objective.odds.bits), "span": case.span}
            found["stretches"] = stretches
            for name, stretch in stretches.items():
                hidden = self._hidden(output, stretch, 0.0 if name == "known" else 0.15)
                bits = {how: objective.bits(features=some)[:, 0] for how, some in hidden.items()}
                found[name] = {how: found["log_odds"] - float(value.mean()) for how, value in bits.items()}
        return found

    def _stretches(
        self, output: Output, explanation: Explanation, profiles: dict[int, np.ndarray], tokens: tuple[int, ...]
    ) -> dict[str, Stretch]:
        evidence, times = explanation.evidence(0), explanation.times
        profile = evidence.abs().sum(1).double().numpy()
        own = {k: profile for k in tokens if k in profiles}
        ways = {
            "tokens' maps in order": profiles,
            "tokens' maps in order, the contrast's for the word": {**profiles, **own},
            "cross-attention in order": self._attention(output, list(profiles)),
        }
        found = {"the contrast's map": peak_stretch(evidence, times)}
        for name, some in ways.items():
            cut = stretches_in_order(some, times)
            stretch = joined(cut[k] for k in tokens if k in cut) if cut else None
            found[name] = stretch or found["the contrast's map"]
        return found

    def _attention(self, output: Output, tokens: list[int]) -> dict[int, np.ndarray]:
        """Return the cross-attention of every token over time, the mean over layers and heads."""
        weights = self.adapter.attention_weights(output.utterance, output.target, output.states)
        spread = self.adapter.encoder_positions(output.utterance).spread(weights.mean((0, 1)))
        return {k: spread[k].double().numpy() for k in tokens}

    def _hidden(self, output: Output, stretch: Stretch, edge: float) -> dict[str, Tensor]:
        features, times = output.utterance.features, output.utterance.times
        filled = features.clone()
        filled[(times >= stretch[0]) & (times <= stretch[1])] = fill_values("mean", features)
        ordered = shuffled(features, times, stretch, 1, edge)
        return {"order": features[None] if ordered is None else ordered, "fill": filled[None]}


def localisation(case: Planted, config: SpesConfig, word: str, written: str) -> dict[str, dict[str, float]]:
    """Return where the top 5 % of several maps of the word lie: share within its time, and whether their centre does.

    Args:
        case: An error of kind "sound".
        config: Of the maps.
        word: What was said.
        written: What the model wrote.
    """
    model = load_tiny_model(MODEL)

    def explained(config: Any, **arguments: Any) -> Explanation:
        return Explainer(*model, config, progress=False)(case.samples, sampling_rate=RATE, **arguments)

    plain = explained(config).words()
    maps = {"contrast": explained(config, foil={written: word}).evidence(0), "plain": plain.evidence(written)}
    for name, control in (("energy", EnergyConfig()), ("random", RandomConfig())):
        maps[name] = explained(control).words().evidence(written)
    start, end = case.span
    found = {}
    for name, values in maps.items():
        flat = values.flatten()
        top, indices = flat.topk(int(TOP * len(flat)))
        seconds = plain.times[indices // values.shape[1]]
        weights = (top - top.min()).clamp_min(1e-9)
        centre = float((weights * seconds).sum() / weights.sum())
        within = float(((seconds >= start) & (seconds <= end)).float().mean())
        found[name] = {"share_within": within, "centre_within": float(start <= centre <= end)}
    return found


def rates(errors: dict[str, list[WordError]]) -> dict[str, Any]:
    """Return the verdicts by kind of error, and how many are right."""
    found: dict[str, Any] = {}
    for kind, some in errors.items():
        counted = Counter(error.verdict for error in some)
        right = [float(error.verdict in TRUE_VERDICTS[kind]) for error in some]
        found[kind] = {"n": len(some), "right": interval(right), **{v: counted[v] for v in VERDICTS}}
    every = [float(error.verdict in TRUE_VERDICTS[kind]) for kind, some in errors.items() for error in some]
    found["all"] = {"n": len(every), "right": interval(every)}
    return found


def interval(values: list[float]) -> list[float]:
    """Return a mean with the ends of its 95 % interval."""
    sums = np.stack([np.array(values), np.ones(len(values))], axis=1)
    ends = bootstrap_interval(sums, lambda s: s[:, 0] / s[:, 1])
    return [round(float(v), 3) for v in (np.mean(values), ends.low, ends.high)]


def separation(rows: list[dict[str, Any]], way: str, how: str) -> dict[str, float]:
    """Return how well the evidence tells what was misheard from what was drowned: area under the ROC curve."""
    misheard = np.array([r[way][how] for r in rows if r["kind"] == "sound"])
    drowned = np.array([r[way][how] for r in rows if r["kind"] in NOISES])
    larger = (misheard[:, None] > drowned).mean() + 0.5 * (misheard[:, None] == drowned).mean()
    bounds = np.concatenate([misheard, drowned])
    best = max(bounds, key=lambda b: (misheard > b).mean() + (drowned <= b).mean())
    quartiles = {
        name: np.round(np.quantile(values, [0.25, 0.5, 0.75]), 2).tolist()
        for name, values in (("misheard", misheard), ("drowned", drowned))
    }
    return {"auc": round(float(larger), 3), "best_bound": float(best), **quartiles}


def overlap(rows: list[dict[str, Any]], way: str) -> float:
    """Return the mean overlap of stretches with the true ones: intersection over union."""

    def of(one: Stretch, other: Stretch) -> float:
        both = max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
        return both / (max(one[1], other[1]) - min(one[0], other[0]))

    return round(float(np.mean([of(r["span"], r["stretches"][way]) for r in rows])), 3)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=80)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "diagnosis.json")
    parser.add_argument("--errors", type=Path, help="where to write the errors one by one")
    parser.add_argument("--splits", nargs="+", default=["dev", "test"])
    options = parser.parse_args()
    config = SpesConfig(num_token_masks=20)
    result: dict[str, Any] = {"model": MODEL}
    for split in options.splits:
        count = 45 if split == "dev" else options.sentences
        diagnoser, places = Diagnoser(*load_tiny_model(MODEL), config, progress=False), Places(config)
        errors: dict[str, dict[str, list[WordError]]] = {name: defaultdict(list) for name in ("known", "found")}
        rows, where = [], []
        for case in planted(count, split, seed=11 if split == "dev" else 12):
            row = places.of(case)
            if row is None:
                continue
            rows.append(row)
            for name in errors:
                error = diagnosed(diagnoser, case, known=name == "known")
                if error is not None:
                    errors[name][case.kind].append(error)
            if case.kind == "sound" and error is not None:
                where.append(localisation(case, config, error.said, error.written))
        ways = [name for name in rows[0] if name not in ("kind", "log_odds", "span", "stretches")]
        if options.errors is not None:
            stored = {name: {kind: list(map(asdict, e)) for kind, e in some.items()} for name, some in errors.items()}
            options.errors.with_suffix(f".{split}.json").write_text(json.dumps(stored), encoding="utf-8")
        result[split] = {
            "verdicts": {name: rates(some) for name, some in errors.items()},
            "stretches": {
                way: {"overlap": overlap(rows, way), "order": separation(rows, way, "order")}
                | {"fill": separation(rows, way, "fill")}
                for way in ways
            },
            "localisation": {
                name: {key: interval([w[name][key] for w in where]) for key in ("share_within", "centre_within")}
                for name in where[0]
            },
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(result[split], indent=1), flush=True)


if __name__ == "__main__":
    main()
