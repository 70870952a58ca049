"""``spes-hf check``: did the model hear what it wrote, or make it up?"""

from __future__ import annotations

import argparse
import sys

from spes_hf.commands.options import add_autocast, add_model, model_of, writing_of
from spes_hf.errors import AudioError, SpesError


def add_check(command: argparse.ArgumentParser) -> None:
    """Add the options of ``check``; three passes over one copy need no batch, and compiling would not pay off."""
    command.add_argument("audio", nargs="+", metavar="AUDIO", help="recordings")
    add_model(command)
    add_autocast(command)


def run_check(options: argparse.Namespace) -> None:
    """Print for each recording whether the model heard what it wrote; an unreadable one does not stop the others."""
    from spes_hf.hearing import SoundChecker
    from spes_hf.viz.scale import printable

    model = model_of(options)
    checker, settings = SoundChecker(*model, autocast=options.autocast), writing_of(options)
    failed: list[SpesError] = []
    for audio in options.audio:
        try:
            found = checker(audio, **settings)
        except AudioError as error:
            failed.append(error)
            print(f"{audio}\n  {error}", file=sys.stderr)
            continue
        guessed = ", ".join(map(printable, found.not_heard))
        print(f"{audio}\n  {printable(str(found))}" + (f"\n  not heard (under 1 bit): {guessed}" if guessed else ""))
    if failed:
        raise AudioError(f"{len(failed)} of {len(options.audio)} recordings could not be checked; see above")
