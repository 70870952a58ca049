"""Does a translator take the gender of an adjective from the voice or from a word, and do the maps say which?

    python recipes/train_tiny_models.py corpus --work WORK --speaker-gender --sentences 5000
    python recipes/train_tiny_models.py train --work WORK --assets WORK --family seamless --minutes 40 --threads 1 \
        --init spes_hf/assets/tiny/seamless-en-de-es
    python benchmarks/gender.py --work WORK            # all parts: write, sweep, maps
    python benchmarks/gender.py --work WORK --report   # tables and figure of what is there

WORK is a folder outside of the repository; the model is not shipped. "I am tired" is "Estoy cansada" or "Estoy
cansado". Sentences are new, voices too (five women's, five men's). Parts:

- write: what the model writes where the voice tells the gender, a word, or both, also against each other; and the odds
  of the endings with parts of the sound hidden;
- sweep: the same sentences at eleven pitches, in voices whose other features stay a woman's or a man's; and parts of
  the sound at a high pitch put into the sound at a low one, and the other way round;
- maps: where the contrastive map of the ending lies, next to the plain map of the same word, loudness and chance, and
  what deleting the top 5 % of each does.

Rows are kept in WORK/gender-<part>.json; a summary goes to benchmarks/results/gender.json, the figure to
docs/images/gender.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from gender_figure import draw
from gender_listen import Listener, measured, swept, transplanted, with_progress
from gender_maps import explained
from gender_speech import GROUPS, HEARD, HIGH, LOW, sentences, spoken, sweep
from gender_tables import summary

from spes_hf import Explainer

MODEL = "seamless-en-de-es"
PARTS = ("write", "sweep", "maps")
SENTENCES = {"write": 20, "sweep": 8, "maps": 8}  # of each group; for the sweep of the group "voice" alone


def seen(work: Path) -> set[str]:
    """Return the English sentences of the corpus, training and development split."""
    texts = work / "corpus" / "en-es" / "data"
    files = [texts / split / "txt" / f"{split}.en" for split in ("train", "dev")]
    if not files[0].is_file():
        raise SystemExit(f"error: there is no {files[0]}; write the corpus first, as `--help` says")
    return {line for file in files for line in file.read_text(encoding="utf-8").splitlines()}


def chosen(work: Path, part: str) -> list[Any]:
    """Return the sentences of a part: the first ones of those of "write", half about women."""
    largest = max(SENTENCES.values())
    cases = sentences(largest, seen(work))
    half, found = SENTENCES[part] // 2, []
    for g, group in enumerate(GROUPS):
        for gender in range(2):
            start = (2 * g + gender) * (largest // 2)
            found += cases[start : start + half] if part != "sweep" or group == "voice" else []
    return found


def measure(work: Path, part: str) -> list[dict[str, Any]]:
    """Return the rows of a part, and keep them."""
    from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

    model = AutoModelForSpeechSeq2Seq.from_pretrained(work / MODEL, dtype=torch.float32).eval()
    explainer = Explainer(model, AutoProcessor.from_pretrained(work / MODEL), progress=False)
    listener = Listener(explainer.adapter)
    cases = chosen(work, part)
    if part == "sweep":
        found = sweep(cases, work / "espeak")
        by_base = {(said.case.sentence.text, said.voice, base): said for said, base, _ in found}
        pairs = [(said, by_base[said.case.sentence.text, said.voice, HIGH]) for said, base, _ in found if base == LOW]
        made = [transplanted(listener, *pair) for pair in pairs]
        (work / "gender-transplant.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
        rows = swept(listener, found)
    elif part == "write":
        said = [*spoken(cases), *spoken([case for case in cases if case.group == "voice"], HEARD)]
        rows = with_progress(said, lambda said: measured(listener, said), part)
    else:
        rows = with_progress(spoken(cases), lambda said: explained(listener, explainer, said), part)
        rows = [row for row in rows if row is not None]
    (work / f"gender-{part}.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return rows


def main() -> None:
    """Measure, report, or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the corpus and the trained model")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--report", action="store_true", help="only tables and figure, of rows that are there")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gender.json")
    parser.add_argument(
        "--figure", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "images" / "gender.png"
    )
    options = parser.parse_args()
    if not options.report:
        for part in options.parts:
            measure(options.work, part)
    files = {part: options.work / f"gender-{part}.json" for part in (*PARTS, "transplant")}
    absent = [str(file) for file in files.values() if not file.is_file()]
    if absent:
        raise SystemExit(f"error: there is no {', '.join(absent)}; run without --report first")
    result = summary(**{part: json.loads(file.read_text(encoding="utf-8")) for part, file in files.items()})
    options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draw(result, options.figure)


if __name__ == "__main__":
    main()
