"""The page in a real browser: what a visitor does, sees and hears, and what a visitor must not see."""

from __future__ import annotations

import time
import zipfile

import numpy as np
import psutil
import pytest
import soundfile

from spes_hf import Explanation

# What the model gets right of the second clip; "hat", the last word, it misses.
HEARD = "At half past eleven Tom needs the beautiful"


def test_a_recording_is_explained_looked_into_and_heard(visitor, clips, tmp_path):
    clip, driver = clips[1], visitor.driver
    visitor.give(clip["path"])
    visitor.one("#reference textarea").send_keys(clip["transcript"])
    visitor.explain()
    visitor.wait(lambda: "%" in visitor.status or visitor.all("#result iframe"))
    visitor.wait(lambda: len(visitor.all("#result iframe")) == 2)
    text = visitor.one("#result blockquote").text
    assert visitor.status.startswith("Done in") and text.startswith(HEARD) and text != clip["transcript"]
    assert "bits" in visitor.one(".spes-check").text
    with visitor.frame(0):
        word = visitor.all("#transcript button")[1]
        word.click()
        visitor.wait(lambda: word.text in visitor.one("#heading").text)
        assert word.get_attribute("aria-pressed") == "true"
        audio = visitor.one("#audio")
        assert audio.get_attribute("src").startswith("blob:")
        driver.execute_script("arguments[0].play()", audio)
        visitor.wait(lambda: driver.execute_script("return arguments[0].currentTime > 0.2", audio), 20)
    with visitor.frame(1):
        assert "hat" in visitor.one("#aligned").text and "“hat" in visitor.one("#heading").text
    for frame in visitor.all("#result iframe"):  # as high as its page, and shut off from this one
        assert 300 < frame.size["height"] < 2000 and frame.size["height"] != 900
        assert driver.execute_script("return arguments[0].contentDocument", frame) is None

    visitor.one("#archive").click()
    (archive,) = visitor.wait(lambda: list(visitor.downloads.glob("*.zip")))
    assert archive.name == f"spes_{clip['id']}.zip"
    zipfile.ZipFile(archive).extractall(tmp_path)
    assert {"explanation.html", "diagnosis.html", "diagnosis.json"} < {path.name for path in tmp_path.iterdir()}
    assert Explanation.load(tmp_path / "explanation").text.strip() == text


def test_nothing_is_fetched_from_elsewhere(visitor):
    own = (visitor.server.address, "data:", "blob:", "about:", "chrome")
    visitor.wait(lambda: visitor.all("#example"))
    requested = visitor.requested
    assert any(address.startswith(visitor.server.address) for address in requested)
    assert [address for address in requested if not address.startswith(own)] == []


def test_the_example_is_a_recording_like_any_other(visitor):
    visitor.one("#example").click()
    visitor.wait(lambda: "0:11" in visitor.one("#audio").text)
    assert [path.name for path in visitor.server.files] == ["jfk.flac"]


def test_a_visitor_records(visitor):
    visitor.wait(lambda: visitor.all("#audio button[aria-label='Record audio']"))[0].click()
    visitor.wait(lambda: visitor.all("#audio .record-button"))[0].click()
    stop = visitor.wait(lambda: [b for b in visitor.all("#audio .stop-button") if b.is_displayed()])[0]
    time.sleep(1.5)
    stop.click()
    (recorded,) = visitor.wait(lambda: visitor.server.files)
    assert 1 < soundfile.info(recorded).duration < 10


def test_a_file_of_the_server_is_no_recording(visitor, clips):
    script = """const [path, done] = arguments;
    const fits = ({ targets }) => targets.some(([id, event]) => event === "click" &&
      gradio_config.components.find((c) => c.id === id).props.elem_id === "explain");
    const data = [path && { path, meta: { _type: "gradio.FileData" } }, "speech2text-en"];
    const body = JSON.stringify({ data, fn_index: gradio_config.dependencies.find(fits).id, session_hash: "other" });
    const headers = { "Content-Type": "application/json" };
    fetch("/gradio_api/run/predict", { method: "POST", headers, body }).then((answer) => done(answer.status));"""
    assert visitor.driver.execute_async_script(script, None) == 200
    for path in (clips[0]["path"], str(visitor.server.log)):
        assert visitor.driver.execute_async_script(script, path) == 500
    assert visitor.fetch(f"{visitor.server.address}/gradio_api/file={clips[0]['path']}") == 403


def test_the_page_fits_a_phone(visitor, clips):
    """Nothing is wider than the screen, before and after."""
    visitor.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        visitor.open()
        widths = "return [document.documentElement.scrollWidth, window.innerWidth]"
        assert visitor.driver.execute_script(widths) == [390, 390]
        visitor.give(clips[0]["path"])
        visitor.explain()
        with visitor.frame():
            wide, width = visitor.driver.execute_script(widths)
            assert wide <= width < 390
            words = visitor.all("#transcript button")
            assert len(words) > 3 and all(word.rect["x"] + word.rect["width"] <= width for word in words)
        assert visitor.driver.execute_script(widths) == [390, 390]
    finally:
        visitor.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_cancel_stops_the_computation(visitor, long_clip, clips):
    visitor.give(long_clip)
    visitor.all("#preset label")[1].click()
    worker = visitor.server.worker
    visitor.explain()
    visitor.wait(lambda: "Transcribing" in visitor.status or "%" in visitor.status)
    visitor.one("#cancel").click()
    visitor.wait(lambda: "Cancelled" in visitor.status, 10)
    visitor.wait(lambda: not psutil.pid_exists(worker.pid), 10)
    time.sleep(1)
    assert "Cancelled" in visitor.status and not visitor.all("#result iframe")
    assert not any(button.is_displayed() for button in visitor.all("#cancel"))
    visitor.give(clips[0]["path"])  # and the next run is as good as any
    visitor.all("#preset label")[0].click()
    visitor.explain()
    visitor.wait(lambda: visitor.all("#result iframe"))


def tones(seconds, loudness=0.1):
    return loudness * np.sin(np.arange(int(seconds * 16_000)) / 5)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("broken.wav", b"RIFF" + bytes(range(256)) * 20, "cannot be decoded"),
        ("empty.wav", b"", "file is empty"),
        ("silent.wav", tones(2, 0), "is silent"),
        ("short.wav", tones(0.01), "too short"),
        ("long.wav", tones(20), "20.0 s long; at most 12 s"),
    ],
)
def test_what_cannot_be_explained_is_refused_in_words(visitor, tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        soundfile.write(path, content, 16_000)
    visitor.give(path)
    visitor.explain()
    failure = visitor.failure()
    assert "This recording cannot be explained" in failure and message in failure
    assert str(visitor.server.folder) not in failure
    assert visitor.one("#explain").is_enabled()


def test_without_a_recording(visitor):
    visitor.explain()
    assert "There is no recording" in visitor.failure()


def test_a_model_that_does_not_exist(visitor, clips):
    visitor.give(clips[0]["path"])
    field = visitor.one("#model input")
    field.send_keys("\ue009a\ue000" + "no/such-model\ue007")  # all of it, replaced
    visitor.explain()
    failure = visitor.failure()
    assert "This model cannot be used" in failure and "no/such-model" in failure


def test_two_visitors_wait_for_each_other_and_see_only_their_own(visitors, visitor, long_clip, clips):
    first, second, server = visitor, visitors(1), visitor.server
    first.give(long_clip)
    first.explain()
    first.wait(lambda: first.status)
    second.give(clips[1]["path"])
    second.explain()
    second.wait(lambda: "One recording is ahead of yours" in second.status)
    first.wait(lambda: first.all("#result iframe"))
    second.wait(lambda: second.all("#result iframe"))
    theirs, own = first.one("#result blockquote").text, second.one("#result blockquote").text
    assert own.startswith(HEARD) and not theirs.startswith(HEARD)

    def fetch(path):
        return second.fetch(f"{server.address}/gradio_api/file={path}")

    files = server.files
    upload = next(path for path in files if path.name == long_clip.name)
    archive = next(path for path in files if path.suffix == ".zip" and "long" in path.name)
    assert fetch(archive) == 200  # by an address that only the first visitor's page knows
    served = archive.parents[1]
    for secret in (upload.parent.name, archive.parent.name):
        assert len(secret) == 64
    guesses = [served, served.parent, upload.parent, archive.parent, served / upload.name, served / archive.name]
    guesses += [served / ("0" * 64) / archive.name, second_of(files, clips[1]).parent / archive.name]
    guesses += ["/etc/passwd", f"{served}/../../../etc/passwd", server.log]
    assert {str(guess): fetch(guess) for guess in guesses} == {str(guess): 403 for guess in guesses}

    first.driver.get("about:blank")  # who leaves takes everything along
    second.wait(lambda: not upload.exists() and not archive.exists(), 20)
    assert fetch(archive) == fetch(upload) == 403
    assert fetch(second_of(server.files, clips[1])) == 200
    second.open()  # a new session
    second.wait(lambda: not server.files, 20)


def second_of(files, clip):
    return next(path for path in files if path.suffix == ".zip" and clip["id"] in path.name)
