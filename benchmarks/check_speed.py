"""How long a `sound_check` takes: median seconds a clip, one clip at a time.

    python benchmarks/check_speed.py [RECORDING ...] [--device cuda]

Without recordings, the clip of the package; real Whisper tiny.en.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

from spes_hf import SoundChecker
from spes_hf.demo import demo_audio, load_demo_model


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", nargs="*", default=[demo_audio()])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    model, processor = load_demo_model()
    check = SoundChecker(model.to(options.device), processor)
    check(options.recordings[0])  # caches
    seconds = []
    for recording in options.recordings * options.repeats:
        start = time.perf_counter()
        check(recording)
        seconds.append(time.perf_counter() - start)
    print(f"{median(seconds):.2f} s a clip, {3600 / median(seconds):,.0f} clips an hour, {len(seconds)} checks")


if __name__ == "__main__":
    main()
