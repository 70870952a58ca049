"""What the command line shows of a result: pages, pictures, and a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from spes_hf.bits import not_heard
from spes_hf.text import clock

if TYPE_CHECKING:
    from spes_hf.explanation import Explanation
    from spes_hf.explanation.listening import HeardBack
    from spes_hf.explanation.recording import HeardSegment, Recording

# Segments of a recording that are printed.
SHOWN_SEGMENTS = 12


def load_saved(path: Path) -> Explanation | Recording:
    """Return the recording or the explanation in a folder.

    Raises:
        ExplanationFormatError: If it holds neither.
    """
    from spes_hf.explanation import Explanation
    from spes_hf.explanation.recording import Recording
    from spes_hf.explanation.recording_plan import DESCRIPTION

    folder = path if path.is_dir() else path.parent
    return Recording.load(folder) if (folder / DESCRIPTION).is_file() else Explanation.load(path)


def draw(explanation: Explanation, folder: Path, heard: HeardBack | None = None) -> None:
    """Write the page and the pictures of an explanation."""
    explanation.to_html(folder / "explanation.html", heard)
    words = explanation.words()
    explanation.plot()[0].savefig(folder / "sentence.png", dpi=130, bbox_inches="tight")
    words.plot_tokens()[0].savefig(folder / "tokens.png", dpi=130, bbox_inches="tight")


def summary(explanation: Explanation, folder: Path) -> str:
    """Return what a user wants to know at the end: the text, what the sound had no part in, and where the page is."""
    from spes_hf.viz.scale import passes, printable

    cost = explanation.origin.cost
    lines = [
        "",
        f"  {printable(explanation.text)}",
        "",
        *_heard(explanation),
        f"split-half reliability of the sentence map: {explanation.reliability.sentence:.2f}"
        f" ({passes(cost)}, {cost.get('seconds', 0):.0f} s)",
        f"page: {folder / 'explanation.html'}",
        f"pictures: {folder / 'sentence.png'}, {folder / 'tokens.png'}",
        f"in Python: Explanation.load({str(folder)!r})",
    ]
    return "\n".join(lines)


def _heard(explanation: Explanation) -> list[str]:
    """Return the evidence from the sound, line by line."""
    from spes_hf.viz.scale import printable

    if explanation.contrasts is not None:
        found = zip(explanation.contrasts, explanation.sound_bits.tolist(), strict=True)
        return [f"{printable(c.name)}: {c.log_odds:+.1f} bits; the sound adds {bits:+.1f}" for c, bits in found]
    words, mean = explanation.words(), explanation.bits_per_token
    if explanation.verdict == "nothing written":
        return ["no word was written"]
    from_sound = f"{mean:.1f} bits a token from the sound"
    lines = [{"made up": "probably made up: ", "heard": "heard: "}.get(explanation.verdict, "") + from_sound]
    unheard = not_heard(words.tokens, words.sound_bits.tolist())
    guessed = [f"{printable(word)} ({bits:.1f})" for word, bits in unheard]
    lines.append(f"words that the sound had no part in (under 1 bit): {', '.join(guessed) if guessed else 'none'}")
    return lines


def show(found: Explanation | Recording, folder: Path, heard: HeardBack | None = None) -> None:
    """Draw pages and pictures, and print what a user wants to know.

    Args:
        found: The explanation or recording.
        folder: Its folder.
        heard: What the model writes for parts of the sound of an explanation.
    """
    from spes_hf.explanation import Explanation

    if isinstance(found, Explanation):
        draw(found, folder, heard)
        print(summary(found, folder))
    else:
        found.to_html(folder / "recording.html")
        found.plot()[0].savefig(folder / "recording.png", dpi=130, bbox_inches="tight")
        print(summary_of_recording(found, folder))


def summary_of_recording(recording: Recording, folder: Path) -> str:
    """Return what a user wants to know of a recording: the text, what was probably made up, and where the page is."""
    from spes_hf.viz.scale import printable

    def line(segment: HeardSegment) -> str:
        start, end = clock(segment.start_s, tenths=True), clock(segment.end_s, tenths=True)
        return f"  {start}–{end}  {printable(segment.text)} ({segment.bits_per_token:.1f} bits a token)"

    named: list[str] = []
    if any(recording.provenance.get(name) for name in ("words", "tokens")):
        words = recording.words() if recording.provenance.get("words") else recording
        rows = zip(words.tokens, words.time_centroids().tolist(), words.sound_bits.tolist(), strict=True)
        named = [
            f"  {printable(word.strip())} at {clock(time, tenths=True)}: {bits:.1f} bits" for word, time, bits in rows
        ]
    windows = "1 window" if len(recording) == 1 else f"{len(recording)} windows"
    made_up, shown = recording.made_up, recording.heard[:SHOWN_SEGMENTS]
    left = len(recording.heard) - len(shown)
    doubtful = [] if recording.verdict == "not known" else ["probably made up: none of it"]
    if made_up:
        doubtful = ["probably made up:", *map(line, made_up)]
    lines = [
        "",
        *map(line, shown),
        *([f"  … and {left} more"] if left else []),
        "",
        *named[:SHOWN_SEGMENTS],
        f"{windows} explained; {recording.bits_per_token:.1f} bits a token from the sound",
        *doubtful,
        f"page: {folder / 'recording.html'}",
        f"picture: {folder / 'recording.png'}",
        f"in Python: Recording.load({str(folder)!r})",
    ]
    return "\n".join(lines)
