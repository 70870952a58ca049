"""Do the maps say what phonetics and grammar say? Section 8 of the paper on real speech, and on the shipped models.

    python benchmarks/plausibility.py --data FOLDER --work CACHE

FOLDER holds a ``manifest.jsonl`` with id, file, text, gender (M or F) and alignment (path of a JSON alignment) of every
recording. Explanations are kept in CACHE and used again. Prints the results and writes them to
benchmarks/results/plausibility.json, with figures beside it.

Real Whisper tiny.en, twelve utterances, six by men and six by women:

- time: the map of a word inside its interval against outside, paired over words, next to energy and random maps;
- frequency: *so* against *no* (a fricative against a nasal), all sibilants against all nasals, men against women.

The shipped models, 24 synthetic clips with known word times (``--only tiny`` needs no FOLDER):

- time, also of German translations, whose words have the times of the words that they translate;
- words that begin with a sibilant against words that begin with a nasal;
- position: latest, start and intermediate tokens;
- "?" and its question word; with ``--corpus``, the folder that ``python recipes/train_tiny_models.py corpus`` wrote, on
  50 questions and 50 statements of its test split instead of 4 and 20.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tiny_models import moved_cases, nearer_to_source

from spes_hf import Explainer, Explanation, SpesConfig
from spes_hf.analysis import (
    FrequencyProfiles,
    TimeLocalization,
    frequency_profile,
    intermediate_tokens,
    modality_balance,
    positional,
    scatter,
    time_localization,
)
from spes_hf.analysis.alignments import Alignment
from spes_hf.analysis.corpus import named
from spes_hf.analysis.matching import match_words, normalise
from spes_hf.analysis.stats import permutation_of_means, to_json
from spes_hf.audio.load import load_segment
from spes_hf.demo import load_demo_model, load_tiny_model, tiny_clips
from spes_hf.files import read_json_lines
from spes_hf.methods.presets import preset
from spes_hf.names import PRESETS

UTTERANCES = (
    "ls-tc5-7367-86737-0105 ls-tc5-7859-102519-0047 ls-tc5-7312-92432-0009 ls-to-367-130732-0009 "
    "ls-tc5-163-122947-0022 ls-tc5-1088-134315-0046 ls-tc5-3664-178355-0019 ls-tc5-5789-70653-0013 "
    "ls-tc5-6272-70171-0021 ls-to-2414-128291-0006 ls-to-2609-156975-0000 ls-to-1998-15444-0007"
).split()
PAIR = ("so", "no")
PAIR_SET = "librispeech-so-no"
SIBILANTS_AND_NASALS = {"sibilants": ("S", "Z", "SH", "ZH"), "nasals": ("N", "M", "NG")}
VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
SYNTHETIC = {
    "s-": ("sees", "sells", "says", "six", "sister", "seven", "seventy"),
    "n-": ("needs", "new", "nina", "know"),
}


# --------------------------------------------------------------------------------------------------------------- real


def read_manifest(data: Path) -> dict[str, dict[str, Any]]:
    """Return the recordings of a folder by their ids."""
    return {row["id"]: row for row in read_json_lines(data / "manifest.jsonl")}


def cached(
    model: tuple[Any, Any], clips: Iterable[tuple[str, Path]], config: SpesConfig, work: Path, **arguments: Any
) -> list[Path]:
    """Return the folders of the explanations of clips, made where they are not there yet.

    Args:
        model: Model and processor.
        clips: Name and file of every clip.
        config: How to explain; every config has a cache of its own.
        work: Cache.
        **arguments: For the explainer, such as ``tgt_lang``.
    """
    name = Path(getattr(model[0].config, "_name_or_path", "") or "model").name
    settings = json.dumps([name, config.to_dict(), arguments], sort_keys=True)
    folder = work / f"{name}-{hashlib.sha256(settings.encode()).hexdigest()[:10]}"
    explainer = Explainer(*model, config, progress=False)
    found = []
    for index, (clip, file) in enumerate(clips, 1):
        path = folder / clip
        if not (path / "explanation.json").is_file():
            print(f"explaining {index}: {clip}", flush=True)
            explainer(file, utterance_id=clip, **arguments).save(path)
        found.append(path)
    return found


def pair_utterances(manifest: dict[str, dict[str, Any]], everywhere: bool) -> list[str]:
    """Return the English recordings in which one of the pair's words is said: of the set made for it, or of all."""
    return [
        name
        for name, row in manifest.items()
        if row["language"] == "en"
        and row.get("alignment")
        and (row["set"] == PAIR_SET or everywhere)
        and {normalise(word) for word in row["text"].split()} & set(PAIR)
    ]


def loaded(model_and_processor: tuple[Any, Any], options: argparse.Namespace) -> tuple[Any, Any]:
    """Return a model, where it shall run, and its processor."""
    model, processor = model_and_processor
    return model.to(options.device), processor


def real(options: argparse.Namespace, config: SpesConfig) -> dict[str, Any]:
    """Return the results on real speech; figures are written beside the JSON file."""
    manifest = read_manifest(options.data)
    names = options.ids or UTTERANCES
    pairs = [] if options.no_pairs else pair_utterances(manifest, options.all_pairs)
    absent = [name for name in names if name not in manifest]
    if absent:
        raise SystemExit(f"error: {options.data / 'manifest.jsonl'} has no {', '.join(absent)}")
    wanted = list(dict.fromkeys([*names, *pairs]))
    clips = [(name, options.data / manifest[name]["file"]) for name in wanted]
    paths = dict(zip(wanted, cached(loaded(load_demo_model(), options), clips, config, options.work), strict=True))
    alignments = {name: options.data / manifest[name]["alignment"] for name in wanted}
    genders = {name: manifest[name]["gender"] for name in wanted}

    reported = [paths[name] for name in names]
    time = time_localization(reported, alignments)
    print(time)
    save(time, options.out, "time")
    by_gender = {}
    for gender in sorted({genders[name] for name in names}):
        by_gender[gender] = time_localization([paths[n] for n in names if genders[n] == gender], alignments)
        print(f"{gender}: {by_gender[gender]}")
    result: dict[str, Any] = {
        "utterances": [
            {
                "id": name,
                "gender": genders[name],
                "written": Explanation.load(paths[name]).text,
                "said": manifest[name]["text"],
            }
            for name in names
        ],
        "time": summary(time),
        "time_by_gender": {gender: summary(found) for gender, found in by_gender.items()},
    }
    if pairs:
        found = frequency_profile([paths[name] for name in pairs], alignments, PAIR, groups=genders)
        result["pair"] = profiles(found, options.out, "so_no")
        grouped = [label for label, p in found.profiles.items() if p.group and p.name == PAIR[0]]
        save(found, options.out, "so_men_women", grouped)
        result["pair_utterances"] = {name: genders[name] for name in pairs}
    everything = list(paths.values())
    for title, sought, groups in (
        ("sibilants_nasals", SIBILANTS_AND_NASALS, None),
        ("vowels_men_women", {"vowels": VOWELS}, genders),
    ):
        found = frequency_profile(everything, alignments, sought, unit="phone", groups=groups)
        labels = [label for label, p in found.profiles.items() if bool(p.group) == bool(groups)]
        result[title] = profiles(found, options.out, title, labels)
    result |= text_side(everything)
    return result


# --------------------------------------------------------------------------------------------------------------- tiny


def source_words(clip: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the words of a clip's German translation, each with the times of the words that it translates."""
    spoken = clip["words"]
    return [
        {
            "word": word,
            "start": min(spoken[i]["start"] for i in sources),
            "end": max(spoken[i]["end"] for i in sources),
        }
        for word, sources in zip(clip["translation_de"].split(), clip["alignment"]["de"], strict=True)
        if sources
    ]


def first_word_of(marks: str, explanations: Iterable[Path | Explanation], spoken: dict[str, list]) -> dict[str, Any]:
    """Return for "?" and "." how much they rest on the first word of the sentence: as text, and as sound.

    As text: the first word's raw saliency over the mean of all earlier words' ("weight"). As sound: how far the mark's
    map stands out while the first word is spoken, in standard deviations of its curve over time ("contrast").

    Args:
        marks: The two marks to compare.
        explanations: Live ones, or folders.
        spoken: When each word is spoken.
    """
    found: dict[str, dict[str, list[float]]] = {mark: {"weight": [], "contrast": []} for mark in marks}
    for item in named(explanations):
        explanation, prefix = item.explanation, item.explanation.prefix_length
        first = match_words(explanation.words().tokens[:1], Alignment.of(spoken[item.name][:1])).spoken
        for k, token in enumerate(explanation.tokens):
            if token.strip() in marks and k and first:
                row = explanation.raw_token[k, prefix : prefix + k]
                found[token.strip()]["weight"].append(float(row[0] / row.mean()))
                curve = explanation.audio_saliency[k].amax(1)
                inside = (explanation.times >= first[0].start) & (explanation.times < first[0].end)
                contrast = (curve[inside].mean() - curve[~inside].mean()) / curve.std()
                found[token.strip()]["contrast"].append(float(contrast))
    result: dict[str, Any] = {"n": [len(found[mark]["weight"]) for mark in marks]}
    for key in ("weight", "contrast"):
        values = [np.array(found[mark][key]) for mark in marks]
        test = permutation_of_means(*values)
        result[key] = {**dict(zip(marks, values, strict=True)), "test": test}
        means = ", ".join(f"{mark!r} {value.mean():.2f}" for mark, value in zip(marks, values, strict=True))
        print(f"{key} of the first word: {means}; {test}")
    return result


def questions(corpus: Path, config: SpesConfig, each: int = 50) -> dict[str, Any]:
    """Return what "?" and "." take from the first word, in the questions and statements of a test split.

    Args:
        corpus: Folder of the corpus.
        config: How to explain.
        each: How many of each kind.
    """
    import yaml

    split = corpus / "en-de" / "data" / "tst-COMMON"
    rows = json.loads((corpus / "alignments" / "tst-COMMON.json").read_text(encoding="utf-8"))
    segments = yaml.safe_load((split / "txt" / "tst-COMMON.yaml").read_text(encoding="utf-8"))
    explainer = Explainer(*load_tiny_model("speech2text-en"), config, progress=False)
    chosen = []
    for kind in ("question", "statement"):
        chosen += [pair for pair in zip(rows, segments, strict=True) if pair[0]["kind"] == kind][:each]
    made = (
        explainer(
            load_segment(split / "wav" / segment["wav"], segment["offset"], segment["duration"], 16_000),
            utterance_id=row["id"],
        )
        for row, segment in chosen
    )
    return first_word_of("?.", made, {row["id"]: row["words"] for row, _ in chosen})


def tiny(options: argparse.Namespace, config: SpesConfig) -> dict[str, Any]:
    """Return the results on the shipped models."""
    clips = tiny_clips()
    files = [(clip["id"], Path(clip["path"])) for clip in clips]
    recognised = cached(load_tiny_model("speech2text-en"), files, config, options.work)
    spoken = {clip["id"]: clip["words"] for clip in clips}
    time = time_localization(recognised, spoken)
    print(f"Speech2Text, English\n{time}")
    found = frequency_profile(recognised, spoken, SYNTHETIC)
    first_word = questions(options.corpus, config) if options.corpus else first_word_of("?.", recognised, spoken)
    result: dict[str, Any] = {
        "speech2text-en": {
            "time": summary(time),
            "sibilants_nasals": profiles(found, options.out, "synthetic_s_n"),
            "first_word": {"of": "tst-COMMON" if options.corpus else "shipped clips", **first_word},
            **text_side(recognised),
        }
    }
    translated = cached(load_tiny_model("seamless-en-de-es"), files, config, options.work, tgt_lang="deu")
    sources = {clip["id"]: source_words(clip) for clip in clips}
    time = time_localization(translated, sources)
    print(f"SeamlessM4T, German\n{time}")
    verbs = [
        case
        for path, clip in zip(translated, clips, strict=True)
        if clip["kind"] == "verb-final"
        for case in moved_cases(Explanation.load(path), clip)
    ]
    hits = sum(map(nearer_to_source, verbs))
    print(f"final verbs whose map lies nearer to their source than to the monotonic place: {hits} of {len(verbs)}")
    result["seamless-en-de-es, German"] = {
        "time": summary(time),
        "final_verbs": [{**case, "nearer_to_source": nearer_to_source(case)} for case in verbs],
        **text_side(translated),
    }
    return result


# ------------------------------------------------------------------------------------------------------------- common


def text_side(explanations: list[Path]) -> dict[str, Any]:
    """Return and print what §8.2 and §8.3 ask."""
    found = {
        "scatter": scatter(explanations),
        "modality_balance": modality_balance(explanations, min_count=3),
        "positional": positional(explanations),
        "intermediate_tokens": intermediate_tokens(explanations),
    }
    for part in found.values():
        print(part)
    result = {name: part.to_dict() for name, part in found.items()}
    result["modality_balance"].pop("tokens")  # long, and not needed to check a claim
    return result


def summary(found: TimeLocalization) -> dict[str, Any]:
    """Return the numbers without those of the single words, but for the saliency's contrasts."""
    result = to_json(found)
    first = found.maps["saliency"]
    result["words"] = [
        [w.utterance, w.word, round(w.start, 3), round(w.end, 3), round(w.contrast, 3), round(w.centroid, 3)]
        for w in first.words
    ]
    return result


def profiles(found: FrequencyProfiles, out: Path, name: str, labels: list[str] | None = None) -> dict[str, Any]:
    """Return the profiles' numbers, rounded; print them and draw the figure."""
    print(found)
    save(found, out, name, labels)
    result = found.to_dict()
    for profile in result["profiles"].values():
        for key in ("mean", "standard_error", "frequencies_hz"):
            profile[key] = [None if v is None else round(v, 4) for v in profile[key]]
        profile["occurrences"] = len(profile["occurrences"])
    return result


def save(found: Any, out: Path, name: str, *arguments: Any) -> None:
    """Draw a result's figure beside the JSON file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    found.plot(*arguments)[0].savefig(out.with_name(f"{out.stem}_{name}.png"), dpi=100)


def make_config(options: argparse.Namespace) -> SpesConfig:
    """Return the config that the options ask for."""
    counts = {"num_spectrogram_masks": options.num_masks, "num_token_masks": options.num_token_masks}
    given: dict[str, Any] = {name: count for name, count in counts.items() if count is not None}
    if options.estimator:
        given["estimator"] = options.estimator
    return preset(options.preset, "asr", **given)


def main(arguments: list[str] | None = None) -> None:
    """Explain, analyse, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with manifest.jsonl, recordings and alignments")
    parser.add_argument("--work", type=Path, required=True, help="folder in which explanations are kept")
    parser.add_argument("--only", choices=("real", "tiny"), help="only one of the two parts; the other's results stay")
    parser.add_argument("--ids", nargs="+", help="other utterances than the twelve")
    parser.add_argument("--no-pairs", action="store_true", help="leave out so and no")
    parser.add_argument("--all-pairs", action="store_true", help="so and no in all English recordings")
    parser.add_argument("--preset", choices=PRESETS, default="default", help="default: default")
    parser.add_argument("--estimator", help="perturbation or gradient (default: the preset's)")
    parser.add_argument("--num-masks", type=int, help="masks of the spectrogram (default: the preset's)")
    parser.add_argument("--num-token-masks", type=int, help="masks of the tokens (default: the preset's)")
    parser.add_argument("--device", default="cpu", help="where the models run (default: cpu)")
    parser.add_argument("--corpus", type=Path, help="folder of the tiny corpus, for more questions")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "plausibility.json")
    options = parser.parse_args(arguments)
    if options.data is None and options.only != "tiny":
        parser.error("real speech needs --data FOLDER; or pass --only tiny")
    config = make_config(options)
    result = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    if options.only != "tiny":
        result["real"] = {"model": "Whisper tiny.en", "config": config.to_dict(), **real(options, config)}
    if options.only != "real":
        result["tiny"] = {"config": config.to_dict(), **tiny(options, config)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(to_json(result), indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
