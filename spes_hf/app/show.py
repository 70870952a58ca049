"""The page's own HTML: where a run is, why it failed, what it found."""

from __future__ import annotations

from html import escape

from spes_hf.app.job import Failure, Result, Stage

# Shares that say nothing yet about how long the whole will take.
_SURE = 0.03

# Tells the page around a frame how high the frame's page is: at once, since browsers watch no size out of sight, and
# whenever it changes.
_HEIGHT = """<script>
const tellHeight = () =>
  parent.postMessage({ spesHeight: Math.ceil(document.documentElement.getBoundingClientRect().height) }, "*");
addEventListener("load", () => setTimeout(tellHeight, 100));
new ResizeObserver(tellHeight).observe(document.body);
</script>"""


def waiting(ahead: int) -> str:
    """Return what a waiting visitor sees; ``ahead``: number of visitors ahead."""
    if not ahead:
        return _line("Starting …")
    others = "One recording is" if ahead == 1 else f"{ahead} recordings are"
    return _line(f"{others} ahead of yours. It starts by itself.")


class Clock:
    """Shows the stage of a run, and how long it will take.

    Args:
        now: When the run began, in seconds on any clock.
    """

    def __init__(self, now: float):
        self._stage, self._since, self._heard = Stage("Starting"), now, now

    def shown(self, news: Stage | None, now: float) -> str:
        """Return what a visitor sees now; ``news``: the new stage, None if it is the same."""
        if news is not None:
            starts_again = (news.share or 0.0) < (self._stage.share or 0.0)
            if news.name != self._stage.name or starts_again:
                self._since = now
            self._stage, self._heard = news, now
        name, share = self._stage.name, self._stage.share
        if share is None:
            return _line(f"{name} …", "<progress></progress>")
        left = (self._heard - self._since) * (1 - share) / share - (now - self._heard) if share > _SURE else None
        said = f", {duration(left)} left" if left is not None and left > 0 else ""
        percent = round(100 * share)
        return _line(f"{name}: {percent} %{said}", f'<progress max="100" value="{percent}"></progress>')


def duration(seconds: float) -> str:
    """Return a time to wait in words."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min"


def failure(failed: Failure) -> str:
    """Return why there is no result."""
    what, why = f"<strong>{escape(failed.what)}</strong>", f"<p>{escape(failed.why)}</p>"
    return f'<div class="spes-failure" role="alert">{what}{why}</div>'


def done(seconds: float) -> str:
    """Return what a visitor sees at the end."""
    return _line(f"Done in {seconds:.0f} s.")


def cancelled() -> str:
    """Return what a visitor sees after cancelling."""
    return _line("Cancelled. Nothing is running.")


def result(found: Result) -> str:
    """Return what was found: the text, whether it was heard, and the pages, each in a frame of its own."""
    notes = "".join(f"<p>{escape(note)}</p>" for note in found.evidence)
    frames = "".join(f"<h2>{escape(title)}</h2>{_frame(title, page)}" for title, page in found.pages)
    text = f"<blockquote>{escape(found.text)}</blockquote>" if found.text else ""
    check = f"<strong>{escape(found.verdict)}</strong>{notes}" if found.verdict else notes
    return f'{text}<div class="spes-check"><h2>Heard, or made up?</h2>{check}</div>{frames}'


def _frame(title: str, page: str) -> str:
    """Return a page in a frame whose scripts reach nothing outside it."""
    source = escape(page.replace("</body>", f"{_HEIGHT}</body>"))
    return f'<iframe title="{escape(title)}" sandbox="allow-scripts" srcdoc="{source}"></iframe>'


def _line(text: str, bar: str = "") -> str:
    return f'<div class="spes-status" role="status"><span>{escape(text)}</span>{bar}</div>'
