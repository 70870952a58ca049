"use strict";
// A walk through the words in time with the sound: each word, and its map, shows while its sound plays. Where less motion
// is asked for, nothing moves by itself: every press plays and shows the next word.
(() => {
  const { data, $, make, audio, seek, choose, xOf } = spes;
  const steps = data.walk;  // [word, start, end] in seconds, by the start
  if (!steps.length || !data.audio) return;
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const button = make("button", { type: "button", id: "walk" });
  let walking = false, starting = false, here = -1, until = Infinity;

  function set(on) {
    walking = on;
    button.classList.toggle("walking", on);
    button.textContent = on ? "■ stop" : still.matches ? "▶ hear the next word" : "▶ walk through the words";
    $("heading").closest("section").setAttribute("aria-live", on && !still.matches ? "off" : "polite");
  }
  function show(step) {
    here = step;
    const [word, start] = steps[step], scroller = $("scroller");
    choose("words", word, true);
    scroller.scrollTo({ left: xOf(start) - scroller.clientWidth / 3, behavior: still.matches ? "auto" : "smooth" });
  }
  function follow() {
    if (!walking) return;
    requestAnimationFrame(follow);
    if (audio.paused || audio.seeking || !audio.readyState) return;  // another sound is on its way
    const time = data.sound_from + audio.currentTime;
    if (time >= until) { stop(); return; }
    const step = steps.findLastIndex(([, start]) => start <= time);
    if (!still.matches && step >= 0 && step !== here) show(step);
  }
  async function begin() {
    document.querySelector("[data-hear=all]").click();  // a walk plays the whole recording
    if (!audio.readyState) await new Promise((resolve) => { audio.addEventListener("loadedmetadata", resolve, { once: true }); });
    const next = (here + 1) % steps.length;
    until = still.matches ? steps[next][2] : Infinity;
    if (still.matches) { seek.to(steps[next][1]); show(next); } else if (audio.ended) seek.to(data.sound_from);
    set(true);
    try { await audio.play(); } catch { set(false); return; }
    follow();
  }
  async function start() {
    if (starting) return;  // a second click while the sound loads
    starting = true;
    try { await begin(); } finally { starting = false; }
  }
  function stop() {
    set(false);
    audio.pause();
  }
  button.addEventListener("click", () => (walking ? stop() : start()));
  audio.addEventListener("pause", () => set(false));
  audio.addEventListener("ended", () => { here = -1; set(false); });
  document.addEventListener("chosen", ({ detail: byHand }) => { if (byHand && walking) stop(); });
  still.addEventListener("change", () => set(walking));
  audio.before(make("div", { class: "walk" }, button));
  set(false);
})();
