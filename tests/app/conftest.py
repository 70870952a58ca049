"""The page as a visitor has it: a server of its own, and Chromium."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from spes_hf.demo import tiny_clips

ROOT = Path(__file__).parents[2]
MAX_SECONDS = 12


class Server:
    """``spes-hf app``, with the files that it keeps in a folder of its own."""

    max_seconds = MAX_SECONDS

    def __init__(self, folder: Path):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "spes_hf.cli", "app", "--port", str(self.port)]
        command += ["--max-seconds", str(MAX_SECONDS), "--model", "speech2text-en"]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        self.log = folder / "log.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        end = time.monotonic() + 300
        while "page: " not in self.log.read_text():
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)

    @property
    def worker(self) -> psutil.Process:
        """The process that computes."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if "spawn_main" in " ".join(child.cmdline()))

    @property
    def files(self) -> list[Path]:
        """What is kept of all visitors."""
        return [path for path in self.folder.glob("spes_hf-app-*/**/*") if path.is_file()]

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Visitor:
    """A browser of its own, with the page open. No other machine can be reached from it."""

    def __init__(self, server: Server, downloads: Path):
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = chromium()
        flags = "headless=new no-sandbox disable-gpu disable-dev-shm-usage mute-audio window-size=1280,1000"
        flags += " use-fake-device-for-media-stream use-fake-ui-for-media-stream"  # a microphone that beeps
        for flag in (*flags.split(), "autoplay-policy=no-user-gesture-required"):
            options.add_argument(f"--{flag}")
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        self.driver.set_script_timeout(30)
        self.server, self.downloads = server, downloads
        self.open()

    def open(self) -> None:
        self.driver.get(self.server.address)
        self.wait(lambda: self.all("#explain") and self.all("#audio input[type=file]"), 60)

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def wait(self, condition, seconds: float = 300.0):
        """Return what a condition comes to once it is true."""
        from selenium.common.exceptions import StaleElementReferenceException

        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(StaleElementReferenceException):
                if found := condition():
                    return found
            assert time.monotonic() < end, f"{self.status!r}\n{self.server.log.read_text()[-3000:]}"
            time.sleep(0.1)

    @property
    def status(self) -> str:
        return self.driver.execute_script("return document.querySelector('#status .spes-status')?.innerText || ''")

    def give(self, path: Path | str) -> None:
        """Upload a recording, instead of the one that is there."""
        if not self.all("#audio input[type=file]"):
            self.wait(lambda: self.all("#audio button[aria-label='Clear']"))[0].click()
        self.wait(lambda: self.all("#audio input[type=file]"))[0].send_keys(str(path))
        self.wait(lambda: self.all("#audio button[aria-label='Clear']"))

    def explain(self) -> None:
        self.wait(lambda: self.one("#explain").is_enabled())
        self.one("#explain").click()

    def failure(self) -> str:
        return self.wait(lambda: self.all(".spes-failure"))[0].text

    @contextlib.contextmanager
    def frame(self, index: int = 0):
        """Go into the page of a result."""
        self.wait(lambda: len(self.all("#result iframe")) > index)
        self.driver.switch_to.frame(self.all("#result iframe")[index])
        try:
            yield
        finally:
            self.driver.switch_to.default_content()

    @property
    def requested(self) -> list[str]:
        """All addresses that the browser has asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def fetch(self, address: str) -> int:
        """Return the status code of an address, fetched by this visitor's browser."""
        script = """const [address, done] = arguments;
        fetch(address, { cache: "no-store" }).then((answer) => done(answer.status), () => done(0));"""
        return self.driver.execute_async_script(script, address)

    def close(self) -> None:
        self.driver.quit()


def chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    pytest.importorskip("gradio", reason="the extra app is not installed: pip install '.[app]'")
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def visitors(server, tmp_path_factory):
    """What returns the browser of a visitor, by number; each starts once."""
    pytest.importorskip("selenium", reason="selenium drives the browser: pip install selenium")
    if chromium() is None or shutil.which("chromedriver") is None:
        pytest.skip("Chromium and its driver are not installed: apt install chromium chromium-driver")
    open_ones: dict[int, Visitor] = {}

    def visitor(number: int) -> Visitor:
        if number not in open_ones:
            open_ones[number] = Visitor(server, tmp_path_factory.mktemp(f"downloads_{number}"))
        return open_ones[number]

    yield visitor
    for each in open_ones.values():
        each.close()


@pytest.fixture
def visitor(visitors):
    """The first visitor, with a page that nothing was done on."""
    first = visitors(0)
    first.open()
    return first


@pytest.fixture(scope="session")
def clips() -> list[dict]:
    return [clip for clip in tiny_clips() if clip["kind"] == "statement"]


@pytest.fixture(scope="session")
def long_clip(clips, tmp_path_factory) -> Path:
    """Several clips in one, of nearly the greatest length that is allowed."""
    path = tmp_path_factory.mktemp("long") / "long.wav"
    sounds = [soundfile.read(clip["path"], dtype="float32")[0] for clip in clips]
    soundfile.write(path, np.concatenate(sounds)[: (MAX_SECONDS - 1) * 16_000], 16_000)
    return path
