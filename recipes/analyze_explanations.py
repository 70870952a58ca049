# Copyright 2026 The spes_hf authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "spes-hf",
#     "matplotlib>=3.9",
#     "scipy>=1.11",
# ]
#
# [tool.uv.sources]
# spes-hf = { path = "..", editable = true }
# ///
r"""Writes a report on what the maps of a corpus say about speech and language: section 8 of the SPES paper.

Reads existing explanations; no model runs. Writes to OUT:

  report.html     one self-contained page: numbers, tests, figures and tables, in the order of section 8
  analysis.json   every number on the page, and those of every word and token
  figures/*.png   the figures: 3 (one utterance), 7 (frequency), 8 and 9 (single words), 10 (kurtosis), 11 (positions)

EXPLANATIONS is one of

  a folder with explanations that Explanation.save() wrote, each in a folder named after its utterance;
  a dataset with the explanations in the column "explanation" (the folder that each was saved to, or the bytes from
  Explain()) and their names in "id": a Parquet or JSON-lines file, a folder of Parquet files, or a folder that
  Dataset.save_to_disk() wrote.

ALIGNMENTS is a folder with NAME.json or NAME.TextGrid for each utterance, or "pocketsphinx" to make them by forced
alignment (only for English transcripts; needs `pip install pocketsphinx`). Without alignments, the report has no
sections on time and frequency. For a translation, give each word the times of the word that it translates.

Examples:
  python recipes/analyze_explanations.py --explanations explained --out report
  python recipes/analyze_explanations.py --explanations explained --alignments alignments --words so,no --out report
  python recipes/analyze_explanations.py --explanations explained --alignments alignments --out report \
      --words so,no --phones sibilants=S,Z,SH nasals=N,M,NG --metadata speakers.csv --groups gender
"""

import argparse
import base64
import html
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spes_hf import Explanation, SpesError, __version__
from spes_hf.analysis import (
    align_explanation,
    frequency_profile,
    intermediate_tokens,
    modality_balance,
    plot_overview,
    positional,
    saved_explanations,
    scatter,
    time_localization,
)
from spes_hf.analysis.corpus import named
from spes_hf.analysis.matching import normalise
from spes_hf.analysis.stats import Test, to_json
from spes_hf.errors import ConfigError
from spes_hf.files import TextFileError, read_json_lines, read_table
from spes_hf.metrics.rows import method_signature
from spes_hf.viz.scale import LOW_RELIABILITY, clean, shown

STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfb; --ink: #1c1d21; --quiet: #5f6168; --line: #dcdcd6;
  --warn: #8a4b00; --warn-paper: #fff4e0; }
@media (prefers-color-scheme: dark) { :root { --paper: #16171a; --ink: #e9e8e4; --quiet: #a2a3a8; --line: #35373c;
  --warn: #ffcf8a; --warn-paper: #33270f; } }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 40px 0 8px; padding-top: 14px;
  border-top: 1px solid var(--line); }
p { margin: 8px 0; max-width: 78ch; overflow-wrap: anywhere; }
.quiet, figcaption { color: var(--quiet); font-size: 13px; }
.warn { padding: 7px 12px; border-radius: 6px; background: var(--warn-paper); color: var(--warn); }
figure { margin: 14px 0; }
figure img { max-width: 100%; background: #fff; border: 1px solid var(--line); border-radius: 6px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: 12px 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; font-size: 13px; color: var(--quiet); } td.n, th.n { text-align: right; }
"""


@dataclass
class Figure:
    """A picture: its name, what it shows, and its PNG."""

    name: str
    caption: str
    png: bytes


@dataclass
class Section:
    """A part of the report: text and tables as HTML, figures, and numbers for the JSON file."""

    title: str
    key: str
    body: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    data: Any = None

    def say(self, text: str, kind: str = "") -> None:
        """Adds a paragraph."""
        self.body.append(f'<p class="{kind}">{html.escape(clean(text))}</p>')

    def table(self, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Adds a table, with numbers aligned right."""

        def cell(tag: str, value: Any, number: bool) -> str:
            return f"<{tag}{' class=n' if number else ''}>{html.escape(clean(str(value)))}</{tag}>"

        numbers = [bool(rows) and isinstance(rows[0][i], (int, float)) for i in range(len(head))]
        lines = ["".join(cell("th", h, n) for h, n in zip(head, numbers, strict=True))]
        lines += ["".join(cell("td", v, n) for v, n in zip(row, numbers, strict=True)) for row in rows]
        self.body.append('<div class="wide"><table>' + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>")

    def show(self, name: str, caption: str, drawn: tuple[Any, Any]) -> None:
        """Adds a figure."""
        buffer = io.BytesIO()
        drawn[0].savefig(buffer, format="png", dpi=120)
        width = round(drawn[0].get_figwidth() * 90)
        figure = Figure(name, caption, buffer.getvalue())
        self.figures.append(figure)
        data = base64.b64encode(figure.png).decode("ascii")
        told = html.escape(clean(caption))
        self.body.append(
            f'<figure><img src="data:image/png;base64,{data}" style="width: {width}px" alt="{told}">'
            f"<figcaption>{told}</figcaption></figure>"
        )


# ---------------------------------------------------------------------------------------------------------- reading


class DataSet:
    """The rows of a dataset, one at a time, any number of times; paths are relative to its folder."""

    def __init__(self, rows: Any, folder: Path):
        self.rows, self.folder = rows, folder

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self.rows:
            row = dict(row)
            found = row.get("explanation")
            if isinstance(found, str) and not Path(found).is_absolute() and not Path(found).exists():
                row["explanation"] = str(self.folder / found)
            yield row

    def __len__(self) -> int:
        return len(self.rows)


def read_explanations(path: Path) -> Any:
    """Returns the explanations at a path, in a form that the analyses accept.

    Raises:
        ConfigError: If there are none.
    """
    if not path.exists():
        raise ConfigError(f"--explanations {str(path)!r} does not exist; pass a folder of explanations or a dataset")
    if path.suffix.lower() in (".jsonl", ".json"):
        return DataSet(read_metadata(path), path.parent)
    if path.is_file() or (path / "state.json").is_file() or (path / "dataset_info.json").is_file():
        import datasets

        if path.is_file():
            return DataSet(_without_decoding(datasets.Dataset.from_parquet(str(path))), path.parent)
        return DataSet(_without_decoding(datasets.load_from_disk(str(path))), path)
    parquet = sorted(map(str, path.rglob("*.parquet")))
    if parquet:
        import datasets

        return DataSet(_without_decoding(datasets.Dataset.from_parquet(parquet)), path)
    return saved_explanations(path)


def _without_decoding(rows: Any) -> Any:
    """Returns a dataset without its audio, which is not needed here and would require a decoder."""
    import datasets

    audio = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Audio)]
    return rows.remove_columns(audio)


def read_metadata(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a CSV, TSV or JSON-lines file.

    Raises:
        ConfigError: If it cannot be read, or has another format.
    """
    try:
        if path.suffix.lower() in (".csv", ".tsv"):
            return [*read_table(path)]
        return read_json_lines(path)
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error}") from error
    except TextFileError as error:
        raise ConfigError(f"{error} (only .csv and .tsv files are tables)") from error


def read_names(entries: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Returns what to compare, as name → members; "so,no" are two names, "pair=so,no" is one."""
    names: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        name, given, members = entry.partition("=")
        listed = tuple(member for member in (members if given else name).split(",") if member)
        names |= {name: listed} if given or not listed else {member: (member,) for member in listed}
    return names


def read_groups(options: argparse.Namespace) -> Any:
    """Returns the groups of the utterances: a mapping, the name of a column of the dataset, or None.

    Raises:
        ConfigError: If the metadata has no such column, or no "id".
    """
    if not options.groups or not options.metadata:
        return options.groups
    rows = read_metadata(options.metadata)
    missing = [column for column in ("id", options.groups) if not rows or column not in rows[0]]
    if missing:
        columns = ", ".join(rows[0]) if rows else "nothing"
        raise ConfigError(f"{str(options.metadata)!r} has no column {missing[0]!r}; it has {columns}")
    return {str(row["id"]): str(row[options.groups]) for row in rows if row.get(options.groups)}


# --------------------------------------------------------------------------------------------------------- sections


def corpus_section(explanations: Any) -> tuple[Section, list[tuple[str, Explanation]]]:
    """Returns the section on what was explained, and the first explanations with their names, for the examples."""
    section = Section("What was explained", "corpus")
    models: Counter[str] = Counter()
    methods: Counter[str] = Counter()
    reliability, seconds, tokens, first = [], 0.0, 0, []
    for item in named(explanations):
        found = item.explanation
        models[str((found.provenance.get("model") or {}).get("name") or "unknown")] += 1
        methods[method_signature(found).rsplit("|", 1)[0]] += 1
        reliability.append(found.reliability.sentence)
        seconds += len(found.waveform) / found.sampling_rate
        tokens += len(found)
        first.append(item.name)
    known = sorted(r for r in reliability if r == r)
    median = known[len(known) // 2] if known else float("nan")
    section.data = {
        "utterances": len(first),
        "tokens": tokens,
        "seconds": seconds,
        "models": dict(models),
        "methods": dict(methods),
        "median_reliability": median,
        "spes_hf": __version__,
    }
    section.say(f"{len(first)} utterances, {seconds:.0f} s of speech, {tokens} tokens.")
    section.table(["model", "utterances"], [[Path(name).name, n] for name, n in models.items()])
    section.table(["method and settings", "utterances"], [[name, n] for name, n in methods.items()])
    if known:
        section.say(f"Median split-half reliability of the sentence maps: {median:.2f}.", "quiet")
    if known and median < LOW_RELIABILITY:
        section.say("More than half of the variance in these maps is noise. Use more masks.", "warn")
    if len(models) > 1 or len(methods) > 1:
        section.say("These explanations come from more than one model or method. Make one report for each.", "warn")
    return section, first


def example_section(explanations: Any, name: str) -> Section:
    """Returns figure 3: all maps of one utterance."""
    section = Section("One utterance (Fig. 3)", "example")
    found = next((item.explanation for item in named(explanations) if item.name == name), None)
    if found is None:
        raise ConfigError(f"--example is {name!r}, which is not an explained utterance; pass the name of one that is")
    section.data = {"utterance": name, "text": clean(found.text)}
    words = found.words()
    section.show("figure3_sound", f"{name}: the sound behind each word (dark: most salient).", plot_overview(words))
    section.show("figure3_text", f"{name}: the earlier tokens behind each token.", found.plot_tokens())
    return section


def time_section(explanations: Any, alignments: Any) -> Section:
    """Returns the time dimension of §8.1."""
    section = Section("§8.1 Time: do the maps lie where the words are spoken?", "time_localization")
    found = time_localization(explanations, alignments, missing="skip")
    section.data = found.to_dict()
    first = found.maps["saliency"]
    section.say(
        f"{found.n} words of {found.utterances} utterances. Inside the word's interval the map is "
        f"{'higher' if first.inside > first.outside else 'not higher'} than outside: {first.inside:.3f} against "
        f"{first.outside:.3f}; {first.test}. Over utterances: {first.utterance_test}."
    )
    section.table(
        ["map", "inside", "outside", "contrast (sd)", "mass inside", "by chance", "centroid hits", "inside > outside"],
        [
            [name, round(m.inside, 3), round(m.outside, 3), round(m.contrast, 2), f"{m.mass:.1%}",
             f"{m.duration_share:.1%}", f"{m.hits:.0%}", p_value(m.test)]
            for name, m in found.maps.items()
        ],
    )  # fmt: skip
    for name, test in found.against.items():
        section.say(f"Contrast of the map against that of the control “{name}”: {test}.")
    section.show(
        "time",
        "How far each map rises inside the word, and where the maps of the words lie.",
        found.plot(),
    )
    told = [f"{name}: {', '.join(words)}" for name, words in found.unmatched.items()]
    if told:
        section.say(f"Words that were not found in the alignments: {'; '.join(told)}.", "quiet")
    for entry in found.skipped[:10]:
        section.say(f"Skipped: {entry.utterance}: {entry.reason}.", "quiet")
    if len(found.skipped) > 10:
        section.say(f"… and {len(found.skipped) - 10} more.", "quiet")
    return section


def frequency_section(explanations: Any, alignments: Any, names: Any, unit: str, groups: Any) -> Section:
    """Returns the frequency dimension of §8.1: Fig. 7."""
    section = Section(f"§8.1 Frequency: at which frequencies do these {unit}s matter? (Fig. 7)", f"frequency_{unit}s")
    found = frequency_profile(explanations, alignments, names, unit=unit, groups=groups, missing="skip")
    section.data = found.to_dict()
    everyone = [label for label, profile in found.profiles.items() if not profile.group]
    caption = f"Mean saliency over frequency of {', '.join(everyone)}; shaded: one standard error."
    section.show(f"figure7_{unit}s", caption, found.plot())
    for name in everyone:
        grouped = [label for label, p in found.profiles.items() if p.group and p.name == name]
        if len(grouped) > 1:
            file = "".join(c if c.isalnum() else "_" for c in name)
            section.show(f"figure7_{unit}s_{file}_groups", f"“{name}” by group.", found.plot(grouped))
    for comparison in found.comparisons:
        section.say(f"{comparison}.")
    section.say(
        "Tilt is the mean saliency above 4 kHz minus that below 1 kHz, with one number per occurrence. P-values are "
        "corrected by the largest statistic over all bins.",
        "quiet",
    )
    return section


def word_examples_section(explanations: Any, alignments: Any, words: dict[str, tuple[str, ...]]) -> Section:
    """Returns the map of each name's median occurrence, ranked by contrast in time: Fig. 8 and 9."""
    section = Section("Single words (Fig. 8 and 9)", "word_examples", data=[])
    name_of = {normalise(member): name for name, members in words.items() for member in members}
    time = time_localization(explanations, alignments, ["saliency"], missing="skip").maps["saliency"]
    for name in words:
        found = sorted((w for w in time.words if name_of.get(w.word) == name), key=lambda w: w.contrast)
        if not found:
            section.say(f"“{name}” does not occur.", "warn")
            continue
        word = found[len(found) // 2]
        item = next(item for item in named(explanations) if item.name == word.utterance)
        figure, axes = item.explanation.words().plot(word.index)
        for ax in axes:
            for edge in (word.start, word.end):
                ax.axvline(edge, color="#08306b", linewidth=1.2, linestyle=(0, (3, 2)))
        section.data.append({"name": name, "occurrences": len(found), **to_json(word)})
        file = "".join(c if c.isalnum() else "_" for c in name)
        where = f"{word.utterance}; dashed: when it is spoken, {word.start:.2f} to {word.end:.2f} s"
        rank = f"the median of {len(found)} by contrast" if len(found) > 1 else "the only one"
        section.show(f"figure8_{file}", f"“{word.word}” ({where}), {rank}.", (figure, axes))
    return section


def scatter_section(explanations: Any, min_count: int) -> Section:
    """Returns Fig. 10."""
    section = Section("§8.2 Sharp and scattered maps (Fig. 10)", "scatter")
    found = scatter(explanations, min_count=min_count)
    section.data = found.to_dict()
    section.say(
        f"{found.n} maps; {len(found.types)} token types occur at least {min_count} times, {found.rare} do not."
    )
    if found.note:
        section.say(found.note, "warn")
    section.show("figure10", "Token types by the mean kurtosis of their maps.", found.plot())
    section.say(f"Kurtosis and the bits from the sound, over tokens: {found.against_sound_bits}.")
    section.say(f"Kurtosis and the share of the top saliency that text holds: {found.against_top_share}.", "quiet")
    return section


def modality_section(explanations: Any, min_count: int) -> Section:
    """Returns the section on where tokens came from: sound or text."""
    section = Section("§8.2 Sound or text?", "modality_balance")
    found = modality_balance(explanations, min_count=min_count)
    section.data = found.to_dict()
    if found.note:
        section.say(found.note, "warn")
    section.show("modality", "Token types that were most guessed (top) and most heard (bottom).", found.plot())
    section.say("Single tokens with the least evidence from the sound, without end of sequence and punctuation:")
    rows = [t for t in found.tokens if any(c.isalnum() for c in t.token) and not t.token.startswith("<")][:10]
    section.table(
        ["token", "utterance", "bits from the sound", "probability"],
        [[shown(t.token), t.utterance, round(t.sound_bits, 1), round(t.probability, 2)] for t in rows],
    )
    section.say("Utterances with the fewest bits a token. Look here first if the model may have made something up.")
    section.table(["utterance", "bits a token"], [[n, round(v, 1)] for n, v in list(found.utterances.items())[:5]])
    return section


def position_section(explanations: Any) -> Section:
    """Returns Fig. 11."""
    section = Section("§8.3 Which earlier tokens matter? (Fig. 11)", "positional")
    found = positional(explanations)
    section.data = found.to_dict()
    means = " > ".join(f"{name} ({found.values[name].mean():.3f})" for name in found.order)
    told = "as in the paper" if found.as_in_the_paper else "the paper found latest > start > intermediate"
    section.say(f"Mean saliency by position: {means}; {told}.")
    section.show("figure11", "How salient earlier tokens are, by their position.", found.plot())
    for (first, second), test in found.tests.items():
        section.say(f"{first} against {second}: {test}; within tokens: {found.paired_tests[first, second]}.")
    return section


def intermediate_section(explanations: Any, min_count: int) -> Section:
    """Returns Table 10."""
    section = Section("§8.3 Tokens explained by an intermediate token (Table 10)", "intermediate_tokens")
    found = intermediate_tokens(explanations, min_count=min_count)
    section.data = found.to_dict()
    rows = found.table()
    section.say(
        f"Token types for which an intermediate token has the highest saliency in at least 25 % of occurrences: "
        f"{len(rows)} of {len(found.types)} types that occur at least {min_count} times."
    )
    if found.note:
        section.say(found.note, "warn")
    if rows:
        section.table(
            ["token", "intermediate tokens", "%", "occurrences"],
            [[r["token"], ", ".join(f"{t} [{n}]" for t, n in r["by"]), round(r["percent"], 1), r["n"]] for r in rows],
        )
    section.show("table10", "The same as bars.", found.plot())
    return section


def p_value(test: Test) -> str:
    """Returns the p-value of a test, or why there is none."""
    return test.note if test.p_value != test.p_value else f"p = {test.p_value:.2g}, d = {test.effect_size:.2f}"


# ------------------------------------------------------------------------------------------------------------- main


def make_sections(options: argparse.Namespace) -> list[Section]:
    """Returns the report's sections; if an analysis fails, its section says why."""
    explanations = read_explanations(options.explanations)
    groups = read_groups(options)
    alignments: Any = options.alignments
    if alignments == "pocketsphinx":
        made: dict[str, Any] = {}

        def alignments(explanation: Explanation) -> Any:
            key = f"{explanation.text}\0{len(explanation.waveform)}"
            if key not in made:
                made[key] = align_explanation(explanation)
            return made[key]

    corpus, names = corpus_section(explanations)
    sections = [corpus]

    def add(title: str, key: str, make: Callable[[], Section]) -> None:
        print(f"{title} …", file=sys.stderr)
        try:
            sections.append(make())
        except SpesError as error:
            failed = Section(title, key, data={"not_made": str(error)})
            failed.say(f"Not available: {error}", "warn")
            sections.append(failed)

    example = options.example or names[0]
    add("One utterance (Fig. 3)", "example", lambda: example_section(explanations, example))
    words, phones = read_names(options.words), read_names(options.phones)
    if alignments is None:
        section = Section("§8.1 Time and frequency", "time_localization")
        section.say("Not available: pass --alignments FOLDER, or --alignments pocketsphinx to make alignments.", "warn")
        sections.append(section)
    else:
        add("§8.1 Time", "time_localization", lambda: time_section(explanations, alignments))
        if words:
            add("§8.1 Frequency, words (Fig. 7)", "frequency_words",
                lambda: frequency_section(explanations, alignments, words, "word", groups))  # fmt: skip
            add("Single words (Fig. 8 and 9)", "word_examples",
                lambda: word_examples_section(explanations, alignments, words))  # fmt: skip
        if phones:
            add("§8.1 Frequency, phones (Fig. 7)", "frequency_phones",
                lambda: frequency_section(explanations, alignments, phones, "phone", groups))  # fmt: skip
    add("§8.2 Scatter (Fig. 10)", "scatter", lambda: scatter_section(explanations, options.min_count))
    add("§8.2 Sound or text?", "modality_balance", lambda: modality_section(explanations, options.min_count))
    add("§8.3 Positions (Fig. 11)", "positional", lambda: position_section(explanations))
    add("§8.3 Intermediate tokens (Table 10)", "intermediate_tokens",
        lambda: intermediate_section(explanations, options.min_count))  # fmt: skip
    return sections


def page(title: str, sections: Sequence[Section]) -> str:
    """Returns the report as one page that loads no other files."""
    contents = " · ".join(f'<a href="#{s.key}">{html.escape(s.title)}</a>' for s in sections)
    body = "\n".join(
        f'<section id="{s.key}"><h2>{html.escape(s.title)}</h2>{"".join(s.body)}</section>' for s in sections
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f'<body><main><h1>{html.escape(title)}</h1><p class="quiet">{contents}</p>\n{body}\n</main></body></html>\n'
    )


def write_report(sections: Sequence[Section], out: Path, title: str) -> None:
    """Writes the page, the numbers and the figures."""
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for section in sections:
        for figure in section.figures:
            (figures / f"{figure.name}.png").write_bytes(figure.png)
    (out / "report.html").write_text(page(title, sections), encoding="utf-8")
    data = to_json({section.key: section.data for section in sections})
    (out / "analysis.json").write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Returns the command line options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--explanations", type=Path, required=True, help="folder of explanations, or a dataset of them")
    parser.add_argument("--alignments", help='folder of NAME.json or NAME.TextGrid files, or "pocketsphinx"')
    names: dict[str, Any] = {"nargs": "+", "default": [], "metavar": "NAMES"}
    parser.add_argument(
        "--words",
        **names,
        help="words to compare over frequency: so,no; several under one name: front=he,she back=who,you",
    )
    parser.add_argument("--phones", **names, help="phones likewise: S,N or sibilants=S,Z,SH nasals=N,M,NG")
    parser.add_argument("--groups", help="column with the group of each utterance, such as gender")
    parser.add_argument("--metadata", type=Path, help="CSV, TSV or JSON-lines file with that column and an id")
    parser.add_argument("--example", help="utterance for figure 3 (default: the first)")
    parser.add_argument(
        "--min-count", type=int, default=3, help="minimum occurrences of a token type (default: 3; 100 in the paper)"
    )
    parser.add_argument("--title", default="What the maps say", help="heading of the report")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    options = parser.parse_args(arguments)
    wrong = [entry for entry in (*options.words, *options.phones) if not all(read_names([entry]).values())]
    if wrong:
        parser.error(f"{wrong[0]!r} has an empty name; write so,no or NAME=so,no")
    if options.metadata and not options.groups:
        parser.error("--metadata needs --groups COLUMN, the column to group by")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Analyses, writes, and returns the exit status."""
    options = parse_arguments(arguments)
    try:
        write_report(make_sections(options), options.out, options.title)
    except SpesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.out / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
