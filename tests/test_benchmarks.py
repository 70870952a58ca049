"""What runs most measurements on a GPU in one go; that its commands exist, test_guides.py checks."""

from __future__ import annotations

import sys

import all_gpu
from ending import has_ended

SLEEPS = "import time; time.sleep(60)"
HANGS_WITH_A_CHILD = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {SLEEPS!r}])
with open(sys.argv[1], "w") as file:
    file.write(str(child.pid))
{SLEEPS}
"""


def test_a_command_that_hangs_is_stopped_with_what_it_has_started(tmp_path):
    found = tmp_path / "child"
    assert all_gpu.run([sys.executable, "-c", HANGS_WITH_A_CHILD, str(found)], 5) == "not done after 5 s"
    assert has_ended(int(found.read_text()), seconds=20)  # it would sleep for a minute


def test_a_command_says_why_it_failed():
    assert all_gpu.run([sys.executable, "-c", "print('fine')"], 30) is None
    assert "no such thing" in all_gpu.run([sys.executable, "-c", "raise SystemExit('no such thing')"], 30)
