"""Recordings of any length: generate the text, then explain window by window, saving each to disk once it is done."""

from __future__ import annotations

import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm.auto import tqdm

from spes_hf.adapters import Adapter, GenerationOptions
from spes_hf.adapters.output import Output, undisturbed
from spes_hf.adapters.pauses import PauseLongForm
from spes_hf.adapters.windows import LongForm, Window
from spes_hf.audio.load import NO_RATE, Waveform
from spes_hf.audio.long import check_duration
from spes_hf.checks import is_number, summed_up
from spes_hf.errors import ConfigError
from spes_hf.explanation.recording import Recording
from spes_hf.explanation.recording_plan import (
    DESCRIPTION,
    RecordedWindow,
    RecordingPlan,
    RecordingSegment,
)
from spes_hf.explanation.result import Explanation
from spes_hf.masking.draw import mask_key
from spes_hf.methods import ExplainConfig
from spes_hf.recording_folder import Asked, identity_of, known_plan, store_audio
from spes_hf.runtime.locks import alone
from spes_hf.runtime.ranks import Ranks
from spes_hf.scoring.part import rows_of

# Format of progress bars over a recording.
_SECONDS = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}]"


class WindowExplainer(Protocol):
    """The part of `spes_hf.Explainer` that explains an output."""

    adapter: Adapter
    seed: int
    progress: bool
    watcher: Callable[[float], object] | None
    autocast: str | None
    ranks: Ranks

    def of_output(
        self,
        output: Output,
        options: GenerationOptions,
        utterance_id: str,
        config: ExplainConfig,
        *,
        rows: Sequence[int] | None = None,
        window: Mapping[str, Any] | None = None,
        advance: Callable[[float], None] | None = None,
        over: str = "spectrogram",
    ) -> Explanation:
        """Return the explanation of an output."""

    def running(self) -> AbstractContextManager[Any]:
        """Return a context in which the model runs."""


def is_recording(
    adapter: Adapter,
    waveform: Waveform,
    segment: str | None,
    start: Any,
    end: Any,
    folder: Any,
    **not_of_recordings: Any,
) -> bool:
    """Return whether audio is explained window by window.

    Args:
        adapter: The model's adapter.
        waveform: The audio.
        segment: How the user wants it cut.
        start: Start of the stretch to explain, in seconds.
        end: End of the stretch, in seconds.
        folder: Where to write windows.
        **not_of_recordings: Arguments that work only with a single window, by name.

    Raises:
        ConfigError: If an argument does not work with such audio.
        AudioError: If the audio is longer than the maximum.
    """
    if folder is not None and not isinstance(folder, (str, os.PathLike)):
        raise ConfigError(f"folder is {folder!r}; pass the path of a folder")
    if segment not in (None, "pauses"):
        raise ConfigError(f'segment is {segment!r}; allowed: "pauses", or None for the model\'s own long form')
    for name, value in (("start", start), ("end", end)):
        if value is not None and not (is_number(value) and value >= 0):
            raise ConfigError(f"{name} is {value!r}; allowed: seconds from the start of the recording, at least 0")
    if start is not None and end is not None and not start < end:
        raise ConfigError(f"start is {start!r} and end is {end!r}; start must come before end")
    if start is not None and start >= waveform.duration_s:
        raise ConfigError(f"start is {start!r}, but the recording is {waveform.duration_s:.1f} s long")
    if not goes_in_windows(adapter, waveform.duration_s, segment):
        given = [name for name, value in (("start", start), ("end", end)) if value is not None]
        if given:
            raise ConfigError(
                f"{given[0]} is given, but the model reads audio of {waveform.duration_s:.1f} s in one piece, and its "
                'words have no times before they are explained; pass words=… to explain some, or segment="pauses"'
            )
        if folder is not None and (Path(folder).is_file() or (Path(folder) / DESCRIPTION).is_file()):
            what = "is a file" if Path(folder).is_file() else "holds a recording"
            raise ConfigError(f"folder is {str(folder)!r}, which {what}; pass another folder for the explanation")
        return False
    for name, value in not_of_recordings.items():
        if value is not None:
            raise ConfigError(
                f"{name} is given, but audio of {waveform.duration_s:.1f} s is explained in several windows; cut it to "
                f"the part that {name} is about (load_segment in spes_hf.audio.load), and leave out segment"
            )
    if any(NO_RATE in note for note in waveform.notes):
        warnings.warn(
            f"audio is {waveform.duration_s:.1f} s of bare samples without a sampling_rate; assuming "
            f"{waveform.sampling_rate} Hz. Pass sampling_rate=…, since a wrong rate makes the speech unintelligible",
            UserWarning,
            stacklevel=4,
        )
    check_duration(waveform.duration_s)
    return True


def goes_in_windows(adapter: Adapter, duration_s: float, segment: str | None) -> bool:
    """Return whether audio of this length is explained window by window; ``segment`` is as for `explain`."""
    return segment is not None or (adapter.undivided_s is not None and duration_s > adapter.undivided_s)


def explain_recording(explainer: WindowExplainer, asked: Asked, folder: str | os.PathLike[str] | None) -> Recording:
    """Return the explanation of a recording.

    The model writes the text first; then every window is explained and written to the folder. Windows that are already
    there are skipped. If several processes work together, the first one writes to the folder, and all must see it.

    Args:
        explainer: Explains the windows.
        asked: What to explain, and how.
        folder: Where to write; None: a temporary folder.

    Raises:
        AudioError: If the model cannot process long recordings.
        ConfigError: If an argument has a value that is not allowed, or the folder holds something else.
    """
    temporary = tempfile.TemporaryDirectory(prefix="spes_hf-") if folder is None else None
    place = Path(temporary.name) if temporary is not None else Path(folder or "")
    if place.exists() and not place.is_dir():
        raise ConfigError(f"folder is {str(place)!r}, which is a file; pass a folder")
    try:
        place.mkdir(parents=True, exist_ok=True)
        if not (place / DESCRIPTION).is_file():  # find out now, not after an hour of transcribing
            tempfile.TemporaryFile(dir=place, prefix=".").close()
    except OSError as error:
        raise ConfigError(f"folder is {str(place)!r}, which cannot be written to: {error}; pass another one") from error
    adapter, waveform, ranks = explainer.adapter, asked.waveform, explainer.ranks
    identity, plan = {}, None
    if folder is not None:
        identity = identity_of(adapter, explainer.seed, explainer.autocast, asked)
        plan = known_plan(place, identity)
        whole = plan is not None and all(each.is_there(place) for each in plan.windows if each.rows != ())
        ranks.check_same(f"what folder={str(place)!r} holds", (plan is None, whole))
        if whole:
            return Recording(place)
    writes = ranks.is_first or folder is None
    seed = mask_key(explainer.seed, asked.utterance_id, "generate")
    with undisturbed(adapter, waveform.duration_s, seed), explainer.running():
        with alone():  # a processor may use random numbers
            long = adapter.long_form(waveform) if asked.part["segment"] is None else PauseLongForm(adapter, waveform)
        if plan is None:
            plan = _plan(adapter, long, _written(long, asked, explainer.progress and ranks.is_first), asked, identity)
            if writes:
                store_audio(waveform, place)
                plan.write(place)
        _explain_windows(explainer, long, plan, asked, place, writes)
    ranks.gather("written", None)
    return Recording(place, temporary=temporary)


def _written(long: LongForm, asked: Asked, progress: bool) -> list[Window]:
    """Run generation over the recording, with a progress bar."""
    end = asked.part["end"]
    total = asked.waveform.duration_s if end is None else min(asked.waveform.duration_s, end)
    bar = tqdm(total=total, desc="transcribing", disable=not progress, delay=1, bar_format=_SECONDS)
    with bar, torch.no_grad():
        windows = long.write(asked.options, end, lambda done: bar.update(min(done, total) - bar.n))
        bar.update(total - bar.n)
    return windows


def _plan(
    adapter: Adapter, long: LongForm, windows: Sequence[Window], asked: Asked, identity: dict[str, Any]
) -> RecordingPlan:
    """Return the plan of a recording: what to explain in each window.

    Raises:
        ConfigError: If the model wrote nothing of what was asked for.
    """
    waveform, named, part = asked.waveform, asked.named, asked.part
    start, end = part["start"] or 0.0, math.inf if part["end"] is None else part["end"]
    end = math.inf if end >= waveform.duration_s else end  # timestamps may lie beyond the end
    whole = not start and end == math.inf
    kept = [w for w in windows if w.start * long.frame_s < end]
    among = [None if whole else _within(w, long.frame_s, start, end) for w in kept]
    rows = rows_of(adapter, [w.target for w in kept], **named, among=among)
    chosen = [name for name in ("words", "tokens") if named[name] is not None]
    if chosen and not any(some is None or some for some in rows):
        names = named[chosen[0]]
        shown = names[0] if len(names) == 1 else names
        raise ConfigError(
            f"{chosen[0]} is {shown!r}, but the model wrote none of them between start={start:g} and end={end:g} s"
        )
    described = [
        _described(adapter, i, w, some, long.frame_s, bool(chosen))
        for i, (w, some) in enumerate(zip(kept, rows, strict=True))
    ]
    # Text of the requested part, without timestamps.
    ids = [token for w, some in zip(kept, among, strict=True) for token in _of_part(w.token_ids, some)]
    text = adapter.text(torch.tensor(ids, dtype=torch.int64, device="cpu"))
    if not whole and not text:
        raise ConfigError(f"the model wrote nothing between start={start:g} and end={end:g} s, only for {_shown(kept)}")
    return RecordingPlan(
        text=text,
        duration_s=waveform.duration_s,
        frame_s=long.frame_s,
        windows=tuple(described),
        identity=identity,
        provenance={
            "audio": {"source": waveform.source, "notes": list(waveform.notes), "duration_s": waveform.duration_s},
            "windows": "of generate()" if long.native else "cut where speech pauses",
            **{name: value for name, value in asked.settings.items() if value is not None and value is not False},
        },
    )


def _of_part(ids: Sequence[int], among: Sequence[int] | None) -> list[int]:
    """Return the ids of those tokens of a window that lie in the requested part."""
    return [*ids] if among is None else [ids[k] for k in among]


def _shown(windows: Sequence[Window]) -> str:
    stretches = [(s.start_s, s.end_s) for w in windows for s in w.segments]
    return ", ".join(f"{a:.1f}–{b:.1f} s" for a, b in stretches[:8]) + (" …" if len(stretches) > 8 else "") or "nothing"


def _within(window: Window, frame_s: float, start: float, end: float) -> tuple[int, ...]:
    """Return the tokens of those segments of a window that lie, at least in part, between two times."""
    if not window.segments:
        overlaps = window.start * frame_s < end and window.until * frame_s > start
        return tuple(range(len(window.token_ids))) if overlaps else ()
    inside = [s for s in window.segments if s.start_s < end and (s.end_s > start or s.start_s >= start)]
    return tuple(k for s in inside for k in range(s.first, s.stop))


def _described(
    adapter: Adapter, index: int, window: Window, rows: tuple[int, ...] | None, frame_s: float, named: bool
) -> RecordedWindow:
    """Return a window in the form a recording stores; unless tokens were named, it must have text to be explained."""
    ids = window.target.token_ids
    # There is nothing to explain in a lone end-of-sequence token.
    special = adapter.is_special(ids)
    spoken = named or any(not special[k] for k in (range(len(ids)) if rows is None else rows))
    return RecordedWindow(
        index=index,
        start_s=round(window.start * frame_s, 6),
        end_s=round((window.start + window.frames) * frame_s, 6),
        until_s=round(window.until * frame_s, 6),
        text=adapter.text(ids) if len(ids) else "",
        segments=tuple(
            RecordingSegment(
                round(s.start_s, 6), round(s.end_s, 6), s.first, s.stop, adapter.text(ids[s.first : s.stop])
            )
            for s in window.segments
        ),
        rows=rows if spoken else (),
        written=window,
    )


def _explain_windows(
    explainer: WindowExplainer, long: LongForm, plan: RecordingPlan, asked: Asked, place: Path, writes: bool
) -> None:
    """Explain the windows that are not there yet; each is saved before the next begins.

    Args:
        explainer: Explains them.
        long: How the model processes the recording.
        plan: All windows.
        asked: What to explain, and how.
        place: Where to write them.
        writes: Whether this process writes.
    """
    todo, ranks = [window for window in plan.windows if window.rows != ()], explainer.ranks
    with _bar(todo, place, explainer.progress and ranks.is_first, explainer.watcher) as advance:
        for each in todo:
            if ranks.decide("whether a window is there", each.is_there(place)):
                continue
            window = each.written
            with alone():
                utterance = long.utterance(window)
            explanation = explainer.of_output(
                Output(utterance, window.target, None),
                asked.options,
                # Its masks do not depend on which other windows are explained.
                f"{asked.utterance_id}@{each.start_s:.2f}",
                asked.config,
                rows=each.rows,
                window={
                    "native": long.native,
                    "index": each.index,
                    "start_s": each.start_s,
                    "end_s": each.end_s,
                    "until_s": each.until_s,
                    "temperature": window.temperature,
                    "attempts": window.attempts,
                    "discarded_tokens": window.discarded,
                },
                advance=_by_share(advance, each.until_s - each.start_s),
                over=asked.over,
            )
            if writes:
                explanation.save(each.folder(place))


def _by_share(advance: Callable[[float], None], seconds: float) -> Callable[[float], None]:
    """Return a function that takes a share of a window and moves a bar by its seconds."""
    return lambda share: advance(share * seconds)


@contextmanager
def _bar(
    todo: Sequence[RecordedWindow], place: Path, shown: bool, watcher: Callable[[float], object] | None
) -> Iterator[Callable[[float], None]]:
    """Yield a function that moves a bar, and notifies a watcher, by seconds; windows explained before count as done."""
    total = sum(window.until_s - window.start_s for window in todo)
    before = sum(window.until_s - window.start_s for window in todo if window.is_there(place))
    bar = tqdm(total=total, initial=before, desc="explaining", disable=not shown, bar_format=_SECONDS, smoothing=0)
    tell = None if watcher is None else summed_up(watcher)
    if tell is not None and before:
        tell(before / total)
    with bar:

        def advance(seconds: float) -> None:
            bar.update(min(seconds, total - bar.n))
            if tell is not None:
                tell(seconds / total)

        yield advance
