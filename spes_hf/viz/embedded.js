"use strict";
// How the page of a window behaves in a frame on its recording's page: it hides what the outer page shows, reports what is
// chosen and where to seek, and follows the outer page's sound. On its own, it is a page like any other.
(() => {
  if (parent === window) return;
  const { $, audio, seek, playedElsewhere, xOf, data } = spes;
  const sounding = location.search === "?sound";  // the recording's sound is missing, so this window plays its own
  document.documentElement.classList.add("embedded", ...(sounding ? ["sounding"] : []));
  const tell = (message) => parent.postMessage(message, "*");

  const level = () => (document.body.dataset.chosen.startsWith("token") ? "tokens" : "words");
  document.addEventListener("chosen", ({ detail: byHand }) => {
    const [, kind, digits] = /^(token|word)=(\d+)$/.exec(document.body.dataset.chosen) || [];
    tell({ chosen: kind === "word" ? Number(digits) : null, byHand });
    if (!kind) return;
    const index = Number(digits), scroller = $("scroller"), transcript = $("transcript");
    const button = transcript.querySelectorAll("button")[index];
    transcript.scrollTop = button.offsetTop - transcript.clientHeight / 2;
    const [frame] = data.levels[level()].strongest[index], [start, end] = data.time_extent;
    scroller.scrollLeft = xOf(start + (frame / data.frames) * (end - start)) - scroller.clientWidth / 2;
  });
  new ResizeObserver(() => tell({ height: Math.ceil(document.body.getBoundingClientRect().height) })).observe(document.body);

  // Keys go to the recording's page, except steps through tokens, which it does not have, and keys for controls here.
  addEventListener("keydown", (event) => {
    const { key, target } = event, steps = /^Arrow/.test(key);
    if (event.altKey || event.ctrlKey || event.metaKey || /^(INPUT|AUDIO)$/.test(target.tagName)) return;
    if (!steps && !["Escape", "/", " "].includes(key)) return;
    if (steps && (level() === "tokens" || target === $("scroller"))) return;
    if (key === " " && target.tagName === "BUTTON" && !target.closest("#transcript")) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    tell({ key });
  }, true);

  if (sounding) return;
  audio.removeAttribute("src");
  seek.to = (time) => tell({ seek: time });
  addEventListener("message", ({ source, data: message }) => {
    if (source === parent && message && typeof message.time === "number") playedElsewhere(message.time);
  });
})();
