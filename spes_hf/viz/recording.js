"use strict";
(() => {
  const { data, $, make, quoted, number } = spes;
  const { words, segments, windows } = data;
  const { clock, spoken, segmentOf, untilOf } = strip;
  const narrow = matchMedia("(max-width: 1000px)");
  const audio = $("audio"), text = $("text"), frame = $("window");
  const state = { word: null, window: null, now: null, time: 0, hits: [], hit: -1 };

  // Transcript: a row for every segment, a button for every explained word
  const heardAs = (bits) => (bits == null ? "bits not known" : `${number(bits, 1)} bits from the sound`);
  const rows = [], buttons = [];
  function button(i) {
    const name = words.text[i], bits = words.bits[i];
    const element = make("button", { type: "button", tabindex: "-1", "data-word": i, "aria-pressed": "false" }, name.trim());
    if (bits != null && spoken[i]) {
      if (bits < data.not_heard_bits) element.className = "unheard";
      else element.style.setProperty("--tint", `var(--sound-rgb) / ${(0.06 + 0.36 * Math.min(1, bits / data.full_bits)).toFixed(2)}`);
    }
    buttons[i] = element;
    return element;
  }
  function row(segment, k) {
    const { start, bits, verdict, parts } = segment, doubtful = verdict === "made up";
    const line = make("p", { dir: "auto" });
    for (const part of parts) {
      const name = typeof part === "number" ? words.text[part] : part;
      if (line.childNodes.length && /^\s/.test(name)) line.append(" ");
      line.append(typeof part === "number" ? button(part) : make("span", { class: "plain" }, name.trim()));
    }
    const about = doubtful ? `probably made up: ${number(bits, 1)} bits a token`
      : verdict !== "not known" ? "" : bits == null ? "not explained" : `${number(bits, 1)} bits a token`;
    const at = make("button", { type: "button", class: "at", tabindex: "-1", "data-time": start, "aria-label": `play from ${clock(start)}` }, clock(start));
    return make("div", { class: doubtful ? "segment doubtful" : "segment", "data-segment": k }, at, line, ...(about ? [make("div", { class: "about" }, about)] : []));
  }
  function writeTranscript() {
    const all = document.createDocumentFragment();
    let k = 0, quiet = null;  // a run of windows without text
    const endQuiet = (until) => {
      if (quiet !== null && until - quiet >= 1) all.append(make("p", { class: "pause" }, `no speech, ${clock(quiet)}–${clock(until)}`));
      quiet = null;
    };
    windows.forEach((window, w) => {
      if (window.state === "silence") { quiet ??= window.start; return; }
      endQuiet(window.start);
      for (; k < segments.length && segments[k].window === w; k++) all.append(rows[k] = row(segments[k], k));
    });
    endQuiet(data.duration);
    for (; k < segments.length; k++) all.append(rows[k] = row(segments[k], k));
    text.replaceChildren(all);
    if (buttons.length) buttons[0].tabIndex = 0;
  }
  function writeLegend() {
    const swatch = (style, name) => make("span", { class: "entry" }, make("i", { class: "swatch", style }), name);
    $("word-legend").replaceChildren(...(buttons.length ? [
      swatch("width:44px;background:linear-gradient(90deg, rgb(var(--sound-rgb) / .06), rgb(var(--sound-rgb) / .42))", "heard: deeper colour, more bits"),
      swatch("background:rgb(var(--text-rgb) / .38)", `hardly heard: under ${data.not_heard_bits} bit`)] : []));
  }

  // Scrolls the transcript alone, never the page around it.
  function show(element, always) {
    if (!element) return;
    const inner = element.getBoundingClientRect(), outer = text.getBoundingClientRect();
    if (!always && inner.top >= outer.top + 24 && inner.bottom <= outer.bottom - 40) return;
    text.scrollTop += inner.top - outer.top - text.clientHeight * 0.35;
  }

  // Places in time
  function last(count, startOf, time) {  // the last that has begun; -1: none has
    let low = 0, high = count;
    while (low < high) { const middle = (low + high) >> 1; if (startOf(middle) <= time) low = middle + 1; else high = middle; }
    return low - 1;
  }
  const wordAt = (time) => last(words.from.length, (i) => words.from[i], time);
  const segmentAt = (time) => last(segments.length, (k) => segments[k].start, time);

  // Sound
  let following = true;
  function mark(time) {
    state.time = time;
    strip.moveTo(time);
    frame.contentWindow.postMessage({ time }, "*");
    const i = wordAt(time), now = i >= 0 && spoken[i] && time < untilOf(i) + 0.25 ? buttons[i] : null;
    if (now !== state.now) {
      state.now?.classList.remove("now");
      now?.classList.add("now");
      state.now = now;
      if (now && following && !audio.paused) show(now);
    }
  }
  function tick() {
    mark(audio.currentTime);
    if (!audio.paused) requestAnimationFrame(tick);
  }
  function seek(time) {
    if (data.sound) audio.currentTime = Math.max(0, Math.min(data.duration, time));
    following = true;
    mark(time);
  }
  function toggle() {
    if (!data.sound) return;
    if (audio.paused) audio.play().catch(() => {}); else audio.pause();
  }
  spes.keep(audio);
  if (data.sound) audio.src = `${data.folder}/${data.sound}`;
  else audio.hidden = true;
  for (const name of ["play", "pause", "seeked"]) audio.addEventListener(name, tick);
  audio.addEventListener("play", () => { following = true; });
  for (const name of ["wheel", "touchmove"]) text.addEventListener(name, () => { following = false; }, { passive: true });
  function jump(time) {
    seek(time);
    const i = wordAt(time), k = segmentAt(time);
    show(i >= 0 && segmentOf[i] === k ? buttons[i] : rows[Math.max(0, k)], true);
  }
  strip.on({
    jump,
    say: (time) => {
      const k = segmentAt(time), segment = segments[k], inside = segment && time <= segment.end;
      const window = windows.find(({ start, until }) => time >= start && time < until);
      if (!inside) return [`${clock(time)}${window && window.state === "silence" ? ": no speech" : ""}`];
      const name = segment.parts.map((part) => (typeof part === "number" ? words.text[part] : part)).join("").trim();
      const known = segment.bits == null ? "not explained" : `${number(segment.bits, 1)} bits a token${segment.verdict === "made up" ? ", probably made up" : ""}`;
      return [`${clock(time)}: ${known}, `, quoted(name)];
    },
  });

  // The chosen word, and the page of its window
  let pending = 0;
  function open(i) {
    const w = segments[segmentOf[i]].window, { page, first } = windows[w];
    const address = new URL(`${data.folder}/${page}${data.sound ? "" : "?sound"}#word=${i - first}`, document.baseURI).href;
    clearTimeout(pending);
    // Steps in quick succession read no page on the way.
    pending = setTimeout(() => {
      if (state.window !== w) { $("loading").hidden = false; state.window = w; }
      frame.contentWindow.location.replace(address);
    }, state.window === w ? 0 : 120);
  }
  function markChosen(i) {
    const before = buttons[state.word ?? 0];
    before?.setAttribute("aria-pressed", "false");
    if (before) before.tabIndex = -1;
    state.word = i;
    buttons[i].setAttribute("aria-pressed", "true");
    buttons[i].tabIndex = 0;
    $("choose").hidden = true; $("chosen").hidden = false;
    const w = segments[segmentOf[i]].window, { start, until } = windows[w];
    $("heading").replaceChildren(make("b", {}, quoted(words.text[i].trim())), ` at ${clock(words.from[i])}, in window ${w + 1} of ${windows.length}, ${clock(start)}–${clock(until)}`);
    history.replaceState(null, "", `#word=${i}`);
    document.body.dataset.chosen = `word=${i}`;
  }
  function choose(i, focus = true) {
    markChosen(i);
    seek(words.from[i]);
    show(buttons[i]);
    if (focus) buttons[i].focus({ preventScroll: true });
    open(i);
  }
  function close() {
    if (state.word === null) return;
    clearTimeout(pending);
    $("choose").hidden = false; $("chosen").hidden = true;
    buttons[state.word].setAttribute("aria-pressed", "false");
    buttons[state.word].focus({ preventScroll: true });
    document.body.dataset.chosen = "";
    history.replaceState(null, "", location.pathname + location.search);
  }
  text.addEventListener("click", ({ target }) => {
    const at = target.closest("[data-time]"), word = target.closest("[data-word]");
    if (at) { seek(Number(at.dataset.time)); if (audio.paused) toggle(); }
    if (word) { choose(Number(word.dataset.word)); bringIn(); }
  });
  // On a narrow screen, the map is below the transcript.
  function bringIn() {
    const { top } = $("detail").getBoundingClientRect();
    if (narrow.matches && top > 0.6 * innerHeight) scrollBy({ top: top - 0.45 * innerHeight });
  }
  text.addEventListener("pointerover", ({ target }) => {
    const word = target.closest("[data-word]");
    if (word && !word.title) word.title = `${clock(words.from[word.dataset.word])} · ${heardAs(words.bits[word.dataset.word])}`;
  });
  $("close").addEventListener("click", close);
  $("play-word").addEventListener("click", () => { seek(words.from[state.word]); if (audio.paused) toggle(); });
  $("play-word").hidden = !data.sound;
  addEventListener("message", ({ source, data: message }) => {
    if (source !== frame.contentWindow || !message) return;
    const { height, chosen, byHand, seek: time, key } = message;
    if (typeof height === "number" && height > 0) frame.style.height = `${Math.min(4000, height)}px`;
    if (chosen !== undefined) {
      $("loading").hidden = true;
      const { first, count } = windows[state.window] || {};
      if (byHand && Number.isInteger(chosen) && chosen >= 0 && chosen < count && !$("chosen").hidden && segments[segmentOf[state.word]].window === state.window)
        markChosen(first + chosen);
      document.body.dataset.framed = `${state.window}:${chosen}`;
      if (data.sound) frame.contentWindow.postMessage({ time: audio.currentTime }, "*");
    }
    if (typeof time === "number") seek(time);
    if (typeof key === "string") act(key, buttons[state.word]);
  });

  // Search
  const search = $("search");
  function findAll() {
    const wanted = search.value.toLocaleLowerCase();
    for (const { elements } of state.hits) elements.forEach((element) => element.classList.remove("hit", "current"));
    state.hits = []; state.hit = -1;
    if (wanted.trim()) {
      segments.forEach(({ parts, start }, k) => {
        const elements = [...rows[k].querySelectorAll("p > button, p > span")], ends = [];
        let whole = "";
        for (const part of parts) {
          whole += (typeof part === "number" ? words.text[part] : part).toLocaleLowerCase();
          ends.push(whole.length);
        }
        for (let at = whole.indexOf(wanted); at >= 0; at = whole.indexOf(wanted, at + wanted.length)) {
          const own = elements.filter((_, j) => ends[j] > at && (ends[j - 1] ?? 0) < at + wanted.length);
          const word = own.find((element) => element.dataset.word);
          state.hits.push({ elements: own, time: word ? words.from[word.dataset.word] : start });
        }
      });
    }
    for (const { elements } of state.hits) elements.forEach((element) => element.classList.add("hit"));
    strip.mark(state.hits.map(({ time }) => time));
    // The first one from here on, as in a browser's own search.
    toHit(Math.max(state.hits.length ? 0 : -1, state.hits.findIndex(({ time }) => time >= state.time)));
  }
  function toHit(n) {
    state.hits[state.hit]?.elements.forEach((element) => element.classList.remove("current"));
    state.hit = n;
    state.hits[n]?.elements.forEach((element) => element.classList.add("current"));
    show(state.hits[n]?.elements[0]);
    $("hits").textContent = !search.value.trim() ? "" : state.hits.length ? `${n + 1} of ${state.hits.length}` : "no hits";
    for (const id of ["hit-before", "hit-after"]) $(id).disabled = state.hits.length < 1;
  }
  const stepHit = (by) => { if (state.hits.length) toHit((state.hit + by + state.hits.length) % state.hits.length); };
  search.addEventListener("input", findAll);
  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter") { event.preventDefault(); stepHit(event.shiftKey ? -1 : 1); }
    if (event.key === "Escape") {
      const word = state.hits[state.hit]?.elements.find((element) => element.dataset.word);
      search.value = "";
      findAll();
      event.preventDefault();
      (word || buttons[state.word ?? 0])?.focus({ preventScroll: true });
    }
  });
  $("hit-before").addEventListener("click", () => stepHit(-1));
  $("hit-after").addEventListener("click", () => stepHit(1));

  // What was probably made up
  const doubtful = segments.map(({ verdict }, k) => [verdict, k]).filter(([verdict]) => verdict === "made up").map(([, k]) => k);
  function toDoubt(by) {
    const later = doubtful.findIndex((k) => segments[k].start > state.time + 0.05);
    const before = doubtful.findLastIndex((k) => segments[k].start < state.time - 0.05);
    const doubt = by > 0 ? Math.max(0, later) : before < 0 ? doubtful.length - 1 : before;
    const k = doubtful[doubt];
    $("doubtful-count").textContent = `made up ${doubt + 1} of ${doubtful.length}`;
    seek(segments[k].start);
    show(rows[k], true);
    const word = segments[k].parts.find((part) => typeof part === "number");
    if (word !== undefined && !$("chosen").hidden) choose(word, false);
  }
  $("doubtful").hidden = !doubtful.length;
  $("doubtful-count").textContent = `${doubtful.length} probably made up`;
  $("doubtful-before").addEventListener("click", () => toDoubt(-1));
  $("doubtful-after").addEventListener("click", () => toDoubt(1));

  // Keys
  function act(key, from) {
    const rtl = from && getComputedStyle(from.parentElement).direction === "rtl" ? -1 : 1;
    const focused = from?.dataset?.word, at = state.word ?? (focused === undefined ? null : Number(focused));
    const by = { ArrowLeft: -rtl, ArrowRight: rtl }[key], down = { ArrowUp: -1, ArrowDown: 1 }[key];
    if (key === "Escape") close();
    else if (key === "/") { search.focus(); search.select(); }
    else if (key === " ") toggle();
    else if (by && buttons.length) choose(at === null ? (by > 0 ? 0 : buttons.length - 1) : Math.max(0, Math.min(buttons.length - 1, at + by)));
    else if (down && buttons.length) {
      const firsts = segments.map(({ parts }) => parts.find((part) => typeof part === "number"));
      let k = at === null ? (down > 0 ? -1 : segments.length) : segmentOf[at];
      do k += down; while (k >= 0 && k < segments.length && firsts[k] === undefined);
      if (firsts[k] !== undefined) choose(firsts[k]);
    }
  }
  document.addEventListener("keydown", (event) => {
    const { key, target } = event;
    if (event.altKey || event.ctrlKey || event.metaKey || /^(INPUT|AUDIO|SUMMARY)$/.test(target.tagName)) return;
    if (!/^(Arrow(Left|Right|Up|Down)|Escape|\/| )$/.test(key)) return;
    const own = target.dataset.word !== undefined;
    if (key === " " && target.tagName === "BUTTON" && !own) return;  // presses it
    event.preventDefault();
    act(key, own ? target : buttons[state.word]);
  });

  function followHash() {
    const i = Number((/^#word=(\d{1,7})$/.exec(location.hash) || [])[1] ?? -1);
    if (i >= 0 && i < buttons.length && i !== state.word) choose(i, false);
  }
  writeTranscript(); writeLegend();
  $("summary").textContent = data.summary;
  $("choose").hidden = !buttons.length;
  const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
  spes.writeSource([data.clock, counted(windows.length, "window"), counted(buttons.length, "explained word")].join(" · "));
  addEventListener("hashchange", followHash);
  strip.draw();
  followHash();
  document.body.dataset.ready = "yes";
})();
