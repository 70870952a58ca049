"""The tables of the study of gender: means with intervals over sentences and voices, and tests over either."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gender_listen import BANDS, noun
from gender_maps import FRACTIONS, TOP
from gender_speech import BASES, DONORS, GROUPS, HEARD, VOICES, voice_gender

from spes_hf.analysis.stats import permutation_of_means, to_json
from spes_hf.metrics.bootstrap import percentile_interval

SAMPLES = 2_000
MAPS = ("contrast", "plain", "energy", "random")
AREAS = ("adjective", "word that tells", "other words", *BANDS)
HIDDEN_WORDS = ("nothing", "noun", "article", "noun and article", "other words", "all words")
SCALARS = ("log_odds", "sound_bits", "text_bits", "reliability", "reliability_plain")
Row = dict[str, Any]


def mean(rows: Sequence[Row], value: Callable[[Row], float | None]) -> dict[str, Any]:
    """Return the mean of a value, its 95 % interval, and the number of rows that have it.

    Both sentences and voices are drawn with replacement, voices of each gender on their own: an interval holds for
    other sentences and other voices.
    """
    kept = [(row, float(v)) for row in rows if (v := value(row)) is not None]
    if not kept:
        return {"n": 0, "mean": None, "low": None, "high": None}
    values = np.array([v for _, v in kept])
    generator = np.random.default_rng(0)
    weights = np.ones((SAMPLES, len(kept)))
    for key in ("said", "voice"):
        names = [row[key] for row, _ in kept]
        kinds = [row["gender"] if key == "voice" else "" for row, _ in kept]
        for kind in sorted(set(kinds)):
            own = sorted({n for n, k in zip(names, kinds, strict=True) if k == kind})
            drawn = generator.multinomial(len(own), np.full(len(own), 1 / len(own)), size=SAMPLES)
            for i, (name, k) in enumerate(zip(names, kinds, strict=True)):
                if k == kind:
                    weights[:, i] *= drawn[:, own.index(name)]
    total = weights.sum(1)
    means = (weights @ values)[total > 0] / total[total > 0]
    interval = percentile_interval(means)
    return {"n": len(kept), "mean": float(values.mean()), "low": interval.low, "high": interval.high}


def means_by(rows: Sequence[Row], key: str, value: Callable[[Row], float]) -> dict[str, float]:
    """Return the mean of a value for every sentence ("said") or voice."""
    names = dict.fromkeys(row[key] for row in rows)
    return {name: float(np.mean([value(row) for row in rows if row[key] == name])) for name in names}


def truth(row: Row) -> str:
    """Return the gender that the grammar asks for: what a word tells, else that of the voice."""
    return row["told"] or row["gender"]


def sign(gender: str) -> float:
    """Return 1 for feminine, -1 for masculine: odds are those of the feminine ending."""
    return 1.0 if gender == "f" else -1.0


def of(rows: Sequence[Row], group: str, **wanted: Any) -> list[Row]:
    """Return the rows of a group, with these values."""
    return [row for row in rows if row["group"] == group and all(row[k] == v for k, v in wanted.items())]


# ------------------------------------------------------------------------------------------------------------ written


def written(rows: Sequence[Row], heard: Sequence[Row]) -> dict[str, Any]:
    """Return how often the ending is feminine, by group, by what a word tells, and by voice.

    Args:
        rows: In new voices.
        heard: In voices that the training heard.
    """
    shares, right = {}, {}
    for group in GROUPS:
        for told in (None,) if group == "voice" else ("f", "m"):
            for gender in "fm":
                cell = of(rows, group, told=told, gender=gender)
                both = [row for row in cell if row["ending"] != "none"]
                name = f"{group}, word {told or '-'}, voice {gender}"
                shares[name] = mean(both, lambda row: row["ending"] == "f") | {"no ending": len(cell) - len(both)}
        of_group = of(rows, group)
        right[group] = mean(of_group, lambda row: row["right"])
    voice = [row for row in of(rows, "voice") if row["ending"] != "none"]
    known = [row for row in of(heard, "voice") if row["ending"] != "none"]
    follows = {
        "voice, heard in training": mean(known, lambda row: row["ending"] == row["gender"]),
        "by voice, heard in training": means_by(known, "voice", lambda row: row["ending"] == row["gender"]),
        "voice": mean(voice, lambda row: row["ending"] == row["gender"]),
        "by voice": means_by(voice, "voice", lambda row: row["ending"] == row["gender"]),
    }
    for group in GROUPS[1:]:
        cell = [row for row in of(rows, group) if row["ending"] != "none"]
        for name, agrees in (("agree", True), ("conflict", False)):
            part = [row for row in cell if (row["told"] == row["gender"]) == agrees]
            follows[f"{group}, {name}"] = mean(part, lambda row: row["ending"] == row["told"])
    nouns = {}
    for group in ("noun before", "noun after", "third-person noun"):
        for agrees in (True, False):
            part = [row for row in of(rows, group) if (row["told"] == row["gender"]) == agrees]
            named = [row for row in part if row["noun"] != "none"]
            nouns[f"{group}, {'agree' if agrees else 'conflict'}"] = mean(named, lambda r: r["noun"] == r["told"])
    return {"feminine": shares, "follows": follows, "nouns": nouns, "rest of the text right": right}


def effects(rows: Sequence[Row]) -> dict[str, Any]:
    """Return by how many bits the voice and the word move the odds, tested over voices and over sentences."""
    found = {}
    for group in GROUPS:
        own = of(rows, group)
        by_voice = means_by(own, "voice", lambda row: row["bits"]["nothing"])
        values = [np.array([v for n, v in by_voice.items() if voice_gender(n) == gender]) for gender in "fm"]
        found[group] = {"voice": to_json(permutation_of_means(*values))}
        if group != "voice":
            told = {row["said"]: row["told"] for row in own}
            by_sentence = means_by(own, "said", lambda row: row["bits"]["nothing"])
            values = [np.array([v for n, v in by_sentence.items() if told[n] == gender]) for gender in "fm"]
            found[group]["word"] = to_json(permutation_of_means(*values))
    return found


def hiding(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the odds of the right ending in bits with parts of the sound hidden, where voice and word agree."""
    found = {}
    for group in GROUPS:
        own = [row for row in of(rows, group) if row["told"] in (None, row["gender"])]
        masks = list(dict.fromkeys(name for row in own for name in row["bits"]))
        found[group] = {name: mean(own, lambda row, name=name: sign(truth(row)) * row["bits"][name]) for name in masks}
    return found


def swept(rows: Sequence[Row]) -> dict[str, Any]:
    """Return odds and endings by base pitch: of every donor, and of the donors of each gender."""
    found: dict[str, Any] = {"bases": list(BASES), "donors": {}, "pitch": [], "crossing": {}}
    for base in BASES:
        at = [row for row in rows if row["base"] == base]
        found["pitch"].append(float(np.nanmedian([row["pitch"] for row in at])))
    for donor in DONORS:
        found["donors"][donor] = [
            float(np.mean([row["bits"] for row in rows if row["base"] == base and row["voice"] == donor]))
            for base in BASES
        ]
        found["crossing"][donor] = crossing(found["pitch"], found["donors"][donor])
    for gender in "fm":
        for name, known in ((gender, False), (f"{gender} heard in training", True)):
            mine = [row for row in rows if row["gender"] == gender and (row["voice"] in HEARD) == known]
            own = [[row for row in mine if row["base"] == base] for base in BASES]
            found[f"bits, {name}"] = [mean(part, lambda row: row["bits"]) for part in own]
            told = [[row for row in part if row["ending"] != "none"] for part in own]
            found[f"feminine, {name}"] = [mean(part, lambda row: row["ending"] == "f") for part in told]
    return found


def carried(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the share of the bits between low and high pitch that each part of the sound carries, both ways."""
    areas = [name for name in rows[0]["low"] if name != "nothing"]

    def whole(row: Row) -> float:
        return row["high"]["nothing"] - row["low"]["nothing"]

    size = float(np.mean([whole(row) for row in rows]))
    found = {"pairs": len(rows), "bits": mean(rows, whole)}
    for area in areas:

        def moved(row: Row, area: str = area) -> float:
            return (row["low"][area] - row["low"]["nothing"] + row["high"]["nothing"] - row["high"][area]) / 2 / size

        found[area] = mean(rows, moved)
    return found


def crossing(pitch: Sequence[float], bits: Sequence[float]) -> float | None:
    """Return the pitch in Hz at which the odds first rise through 0; None where they do not."""
    for (p, a), (q, b) in zip(zip(pitch, bits, strict=True), list(zip(pitch, bits, strict=True))[1:], strict=False):
        if a < 0 <= b:
            return float(p + (q - p) * -a / (b - a))
    return None


# --------------------------------------------------------------------------------------------------------------- maps


def mapped(rows: Sequence[Row]) -> dict[str, Any]:
    """Return where the maps lie, by group, and how the contrastive one differs from the plain one."""
    found: dict[str, Any] = {}
    for group in GROUPS:
        own = of(rows, group)
        part: dict[str, Any] = {name: mean(own, lambda row, name=name: row[name]) for name in SCALARS}
        part["places"] = {
            kind: {
                area: mean(own, lambda row, kind=kind, area=area: row["places"][kind].get(area))
                for area in (*AREAS, "spread")
            }
            for kind in MAPS
        }
        part["contrast minus plain"] = {
            area: mean(
                own,
                lambda row, area=area: (
                    row["places"]["contrast"][area] - row["places"]["plain"][area]
                    if area in row["places"]["plain"]
                    else None
                ),
            )
            for area in (*AREAS, "spread")
        }
        part["written words"] = {
            name: mean(own, lambda row, name=name: row["text"][name]) for name in ("noun", "article", "other words")
        }
        part["written words hidden"] = {
            name: mean(own, lambda row, name=name: row["text hidden"].get(name)) for name in HIDDEN_WORDS
        }
        part["profile"] = {
            kind: np.mean([row["profile"][kind] for row in own], axis=0).round(3).tolist()
            for kind in ("contrast", "plain")
        }
        found[group] = part
    return found


def conflicts(rows: Sequence[Row]) -> dict[str, Any]:
    """Return, where voice and word disagree, where the contrastive map lies if the word won and if the voice won."""
    found = {}
    for group in GROUPS[1:]:
        own = [row for row in of(rows, group) if row["told"] != row["gender"]]
        for name, wins in (("word", True), ("voice", False)):
            part = [row for row in own if (row["wrote"] == row["told"]) == wins]
            found[f"{group}, {name} won"] = {
                area: mean(part, lambda row, area=area: row["places"]["contrast"].get(area))
                for area in ("adjective", "word that tells", "other words")
            } | {name: mean(part, lambda row, name=name: row[name]) for name in ("sound_bits", "text_bits")}
    return found


def deleted(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what deleting the top of each map does to the ending and to the rest of the text."""
    found: dict[str, Any] = {}
    for group in (*GROUPS, "all"):
        own = list(rows) if group == "all" else of(rows, group)
        part: dict[str, Any] = {
            "bits, part deleted": {
                area: mean(own, lambda row, area=area: row["deletion"]["parts"].get(area)) for area in AREAS[:3]
            }
        }
        for kind in MAPS:
            part[kind] = {
                "flips": mean(own, lambda row, kind=kind: row["deletion"][kind]["flips"]),
                "only the ending flips": mean(
                    own, lambda row, kind=kind: row["deletion"][kind]["flips"] and row["deletion"][kind]["rest"]
                ),
                "rest stays": mean(own, lambda row, kind=kind: row["deletion"][kind]["rest"]),
                "bits": {
                    share: mean(own, lambda row, kind=kind, share=share: row["deletion"][kind]["bits"][share])
                    for share in map(str, (0.0, *FRACTIONS))
                },
            }
        for name, value in (
            ("flips", lambda d: float(d["flips"])),
            ("only the ending flips", lambda d: float(d["flips"] and d["rest"])),
            ("bits", lambda d: d["bits"][str(TOP)]),
        ):
            part[f"contrast minus plain, {name}"] = mean(
                own, lambda row, value=value: value(row["deletion"]["contrast"]) - value(row["deletion"]["plain"])
            )
        found[group] = part
    return found


def summary(write: list[Row], sweep: list[Row], maps: list[Row], transplant: list[Row]) -> dict[str, Any]:
    """Return all numbers, and print them as tables."""
    write = [row | {"noun": noun(row["written"])} for row in write]
    heard = [row for row in write if row["voice"] in HEARD]
    write = [row for row in write if row["voice"] not in HEARD]
    result = {
        "voices": {name: voice_gender(name) for name in VOICES},
        "utterances": {"write": len(write), "sweep": len(sweep), "maps": len(maps)},
        "written": written(write, heard),
        "effects": effects(write),
        "hiding": hiding(write),
        "sweep": swept(sweep),
        "carried": carried([row for row in transplant if row["voice"] not in HEARD]),
        "carried, heard in training": carried([row for row in transplant if row["voice"] in HEARD]),
        "maps": mapped(maps),
        "conflicts": conflicts(maps),
        "deletion": deleted(maps),
    }
    print_tables(result)
    return _rounded(result)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return round(value, 4) if isinstance(value, float) else value


# ----------------------------------------------------------------------------------------------------------- printing


def cell(found: dict[str, Any], scale: float = 1.0, digits: int = 1) -> str:
    """Return a mean and its interval as a cell of a table."""
    if found["mean"] is None:
        return ""
    middle, low, high = (scale * found[name] for name in ("mean", "low", "high"))
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def print_tables(result: dict[str, Any]) -> None:
    """Print the tables as Markdown."""
    print("\nFeminine endings (%)")
    for name, found in result["written"]["feminine"].items():
        print(f"| {name} | {found['n']} | {cell(found, 100, 0)} | {found['no ending']} |")
    print("\nEnding as the word says (of the group voice: as the voice) (%)")
    for name, found in result["written"]["follows"].items():
        print(f"| {name} | {cell(found, 100, 0) if 'mean' in found else found} |")
    print("\nNoun of the gender that was said (%)")
    for name, found in result["written"]["nouns"].items():
        print(f"| {name} | {found['n']} | {cell(found, 100, 0)} |")
    print("\nRest of the text right (%)")
    for name, found in result["written"]["rest of the text right"].items():
        print(f"| {name} | {cell(found, 100, 0)} |")
    print("\nBits by which voice and word move the odds")
    for group, tests in result["effects"].items():
        shown = [f"{name} {t['difference']:+.1f}, p = {t['p_value'] or float('nan'):.2g}" for name, t in tests.items()]
        print(f"| {group} | {' | '.join(shown)} |")
    print("\nBits for the right ending, with parts hidden")
    for group, masks in result["hiding"].items():
        for name, found in masks.items():
            print(f"| {group} | {name} | {cell(found)} |")
    sweep = result["sweep"]
    print("\nSweep: pitch, bits and share of feminine endings, women's and men's voices")
    for i, pitch in enumerate(sweep["pitch"]):
        shown = [
            text
            for g in ("f", "m", "f heard in training", "m heard in training")
            for text in (cell(sweep[f"bits, {g}"][i]), cell(sweep[f"feminine, {g}"][i], 100, 0))
        ]
        print(f"| {pitch:.0f} Hz | {' | '.join(shown)} |")
    print(f"crossing: {sweep['crossing']}")
    for name in ("carried", "carried, heard in training"):
        print(f"\nShare of the pitch's bits that a part carries (%), of {cell(result[name]['bits'])} bits: {name}")
        for area, found in result[name].items():
            if area not in ("pairs", "bits"):
                print(f"| {area} | {cell(found, 100, 0)} |")
    for group, part in result["maps"].items():
        shown = [f"{name} {cell(part[name], digits=2)}" for name in SCALARS]
        print(f"\n{group}: {', '.join(shown)}")
        for name in ("written words", "written words hidden"):
            print(f"{name}: " + ", ".join(f"{k} {cell(v, digits=2)}" for k, v in part[name].items()))
        for area in (*AREAS, "spread"):
            shown = [cell(part["places"][kind][area], digits=2) for kind in MAPS]
            print(f"| {area} | {' | '.join(shown)} | {cell(part['contrast minus plain'][area], digits=2)} |")
    print("\nConflicts")
    for name, found in result["conflicts"].items():
        shown = [f"{k} {cell(v, digits=2)}" for k, v in found.items()]
        print(f"| {name} | {found['adjective']['n']} | {' | '.join(shown)} |")
    print("\nDeletion of the top 5 %")
    for group, part in result["deletion"].items():
        for kind in MAPS:
            shares = [cell(part[kind][k], 100, 0) for k in ("flips", "only the ending flips", "rest stays")]
            bits = [cell(part[kind]["bits"][k]) for k in ("0.0", str(TOP))]
            print(f"| {group} | {kind} | {' | '.join([*shares, *bits])} |")
        parts = part["bits, part deleted"].items()
        print(f"| {group} | contrast, part over | {' | '.join(f'{k} {cell(v)}' for k, v in parts)} |")
        shown = [f"{k}: {cell(v, 100 if 'flips' in k else 1)}" for k, v in part.items() if "minus" in k]
        print(f"| {group} | {' | '.join(shown)} |")
