"""A Chromium that tests press keys and click in: DevTools' protocol over a pipe, with nothing to install."""

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import time
from base64 import b64decode

FLAGS = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-sync "
    "disable-component-update remote-debugging-pipe hide-scrollbars mute-audio autoplay-policy=no-user-gesture-required"
).split()


def find():
    """Return the path of a Chromium; None: there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One browser with one tab."""

    def __init__(self, profile, patience_s=30.0):
        self.patience_s = patience_s
        theirs, self._write = self._pipe()
        self._read, ours = self._pipe()
        actions = [(os.POSIX_SPAWN_DUP2, theirs, 3), (os.POSIX_SPAWN_DUP2, ours, 4)]
        quiet = os.open(os.devnull, os.O_RDWR)
        actions += [(os.POSIX_SPAWN_DUP2, quiet, number) for number in (0, 1, 2)]
        command = [find(), *(f"--{flag}" for flag in FLAGS), f"--user-data-dir={profile}", "about:blank"]
        self._pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions, setpgroup=0)
        for number in (theirs, ours, quiet):
            os.close(number)
        self._buffer, self._id, self.session, self.complaints = b"", 0, None, []
        (page,) = [t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self.session = self("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")

    @staticmethod
    def _pipe():
        pair = []
        for number in os.pipe():
            pair.append(fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 10))
            os.close(number)
        return pair

    def __call__(self, method, **params):
        """Send a command and return its result."""
        self._id += 1
        message = {"id": self._id, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        return self._until(lambda m: m.get("id") == self._id)

    def _until(self, wanted):
        end = time.monotonic() + self.patience_s
        while True:
            raw, found, rest = self._buffer.partition(b"\0")
            if not found:
                if not select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0]:
                    raise TimeoutError("the browser does not answer")
                more = os.read(self._read, 1 << 20)
                if not more:
                    raise ConnectionError("the browser has ended")
                self._buffer += more
                continue
            self._buffer, message = rest, json.loads(raw)
            self._note(message)
            if wanted(message):
                if "error" in message:
                    raise RuntimeError(message["error"])
                return message.get("result", message.get("params"))

    def _note(self, message):
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params)[:2000])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(params)[:2000])

    def open(self, address, width=1280, height=900, dark=False):
        """Open a page and return the seconds until it has loaded."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self("Emulation.setEmulatedMedia", features=features)
        self("Page.navigate", url="about:blank")
        self("Runtime.evaluate", expression="1")
        self.complaints.clear()
        start = time.monotonic()
        self("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")
        return time.monotonic() - start

    def js(self, expression):
        """Return the value of an expression, or what its promise comes to."""
        found = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"])[:2000])
        return found["result"].get("value")

    def wait(self, condition, seconds=15.0):
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.js(condition):
            if time.monotonic() > end:
                raise TimeoutError(f"not true after {seconds:g} s: {condition}")
            time.sleep(0.02)

    def press(self, key, shift=False):
        """Press a key, as named in KeyboardEvent.key."""
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Escape": 27, "Enter": 13, " ": 32}
        event = {"key": key, "code": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper()))}
        event["modifiers"] = 8 * shift
        if len(key) == 1:
            event["text"] = key
        self("Input.dispatchKeyEvent", type="keyDown", **event)
        self("Input.dispatchKeyEvent", type="keyUp", **{k: v for k, v in event.items() if k != "text"})

    def click(self, selector, x=0.5, y=0.5):
        """Click at a place in an element, in shares of its width and height."""
        box = self.js(
            f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            "return [b.left, b.top, b.width, b.height]; })()"
        )
        place = {"x": box[0] + x * box[2], "y": box[1] + y * box[3], "button": "left", "clickCount": 1}
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self("Input.dispatchMouseEvent", type=kind, **place)

    def shot(self, path, full=False):
        """Write a picture of what is to be seen."""
        path.write_bytes(b64decode(self("Page.captureScreenshot", captureBeyondViewport=full)["data"]))

    def close(self):
        """End the browser."""
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            self.session = None
            self("Browser.close")
        for number in (self._read, self._write):
            os.close(number)
        for _ in range(100):
            if os.waitpid(self._pid, os.WNOHANG)[0]:
                return
            time.sleep(0.05)
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
