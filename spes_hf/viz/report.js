"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const { frames, bins } = data;
  const [start, end] = data.time_extent;
  const state = { level: data.opens_with, index: null };
  const level = () => data.levels[state.level];
  const noun = () => (state.level === "words" ? "word" : "token");

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const quoted = (text) => make("bdi", { class: "quoted" }, `“${text}”`);
  const percent = (value, digits = 0) => (value == null ? "–" : `${(100 * value).toFixed(digits)} %`);
  const number = (value, digits = 2) => (value == null ? "–" : value.toFixed(digits).replace("-", "−"));
  const amount = (value) => (value === 0 ? "0" : number(value, Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))) - 1)));
  const seconds = (value) => `${value.toFixed(2)} s`;
  const hertz = (value) => `${value < 1000 ? Math.round(value) : (value / 1000).toFixed(1) + " k"}${value < 1000 ? " " : ""}Hz`;

  // Maps: rows are mel bins, the highest on top; grey values in [0, 1], or evidence: 128 is 0, 255 is its scale.
  const decoded = new Map();
  function decode(png) {
    if (!decoded.has(png)) {
      decoded.set(png, (async () => {
        const image = new Image();
        image.src = `data:image/png;base64,${png}`;
        await image.decode();
        const canvas = make("canvas", { width: frames, height: bins });
        const context = canvas.getContext("2d", { willReadFrequently: true });
        context.drawImage(image, 0, 0);
        const pixels = context.getImageData(0, 0, frames, bins).data;
        return Float32Array.from({ length: frames * bins }, (_, i) => pixels[4 * i] / 255);
      })());
    }
    return decoded.get(png);
  }
  async function evidence({ map, scale }) {
    return (await decode(map)).map((v) => (scale * (Math.round(255 * v) - 128)) / 127);
  }
  async function evidenceOf(name, index) {
    if (index === null) return evidence(data.sentence);
    const maps = await Promise.all(data.levels[name].groups[index].map((k) => evidence(data.maps[k])));
    return maps.length === 1 ? maps[0] : maps[0].map((_, i) => maps.reduce((sum, map) => sum + map[i], 0) / maps.length);
  }

  // Colours
  const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  function ramp(stops) {
    const colours = stops.map(channels);
    return Array.from({ length: 256 }, (_, i) => {
      const position = (i / 255) * (colours.length - 1);
      const below = Math.min(colours.length - 2, Math.floor(position));
      return colours[below].map((c, j) => Math.round(c + (position - below) * (colours[below + 1][j] - c)));
    });
  }
  const ramps = Object.fromEntries(Object.entries(data.colours).map(
    ([theme, { greys, sound, against }]) => [theme, { greys: ramp(greys), sound: ramp(sound), against: ramp(against) }]));
  const colours = () => ramps[dark.matches ? "dark" : "light"];

  // The chosen map, the order statistics of its size, and its colour scale
  let map = null, sorted = null, spectrogram = null, cut = 0;
  const quantile = (q) => sorted[Math.max(0, Math.min(sorted.length - 1, Math.round(q * (sorted.length - 1))))];
  function limits() {
    const low = quantile(1 - $("share").value / 100);
    return [low, Math.max(quantile(data.high_percentile / 100), low * 1.01, 1e-12)];
  }
  function shareAbove(value) {
    let low = 0, high = sorted.length;
    while (low < high) { const middle = (low + high) >> 1; if (sorted[middle] < value) low = middle + 1; else high = middle; }
    return 1 - low / sorted.length;
  }

  // Drawing
  const plot = { left: 46, top: 6, bottom: 36, right: 12, width: 0, height: 0 };
  const xOf = (time) => plot.left + ((time - start) / (end - start)) * plot.width;
  const yOf = (bin) => plot.top + (1 - (bin + 0.5) / bins) * plot.height;
  function layer(paint) {
    const canvas = make("canvas", { width: frames, height: bins });
    const context = canvas.getContext("2d");
    const image = context.createImageData(frames, bins);
    paint(image.data);
    context.putImageData(image, 0, 0);
    return canvas;
  }
  function put(pixels, i, colour, opacity) {
    for (let j = 0; j < 3; j++) pixels[4 * i + j] = colour[j];
    pixels[4 * i + 3] = Math.round(255 * opacity);
  }
  const backgrounds = {};
  function background() {
    const theme = dark.matches ? "dark" : "light", { greys } = colours();
    backgrounds[theme] ??= layer((pixels) => spectrogram.forEach((v, i) => put(pixels, i, greys[Math.round(255 * v)], 1)));
    return backgrounds[theme];
  }
  function draw() {
    if (!map || !spectrogram) return;
    const canvas = $("picture"), outer = Math.max($("scroller").clientWidth, plot.left + plot.right + 26 * (end - start));
    const narrow = outer < 560, ratio = window.devicePixelRatio || 1;
    plot.width = outer - plot.left - plot.right;
    plot.height = narrow ? 200 : 270;
    const height = plot.top + plot.height + plot.bottom;
    canvas.width = Math.round(outer * ratio); canvas.height = Math.round(height * ratio);
    canvas.style.width = `${outer}px`; canvas.style.height = `${height}px`; $("plot").style.width = `${outer}px`;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.imageSmoothingEnabled = false;
    const { sound, against } = colours(), [low, high] = limits(), strength = $("strength").value / 100;
    const box = [plot.left, plot.top, plot.width, plot.height];
    context.drawImage(background(), ...box);
    context.drawImage(layer((pixels) => map.forEach((v, i) => {
      const size = Math.abs(v);
      if (size < low || size === 0) return;
      const t = Math.min(1, size / high);
      put(pixels, i, (v > 0 ? sound : against)[Math.round(255 * t)], strength * (0.2 + 0.8 * t));
    })), ...box);
    drawAxes(context, box);
    drawScale(high, sound, against);
    moveCursor();
  }
  function drawAxes(context, box) {
    const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(name).trim();
    context.strokeStyle = colour("--line"); context.fillStyle = colour("--quiet");
    context.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    context.strokeRect(...box);
    context.textAlign = "right"; context.textBaseline = "middle";
    let above = Infinity;
    for (const [value, bin] of data.frequency_ticks) {
      const y = Math.max(plot.top + 5, yOf(bin));
      if (above - y < 14) continue;
      above = y;
      context.fillText(value >= 1000 ? `${value / 1000} k` : value, plot.left - 8, y);
      context.fillRect(plot.left - 5, yOf(bin), 5, 1);
    }
    context.save(); context.translate(9, plot.top + plot.height / 2); context.rotate(-Math.PI / 2);
    context.textAlign = "center"; context.fillText("Hz", 0, 0); context.restore();
    const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60].find((s) => (s / (end - start)) * plot.width >= 52) || 120;
    context.textAlign = "center"; context.textBaseline = "top";
    for (let i = Math.ceil(start / step); i * step <= end; i++) {
      const x = xOf(i * step);
      context.fillRect(x, plot.top + plot.height, 1, 5);
      context.fillText(`${+(i * step).toFixed(1)} s`, Math.min(x, plot.left + plot.width - 4), plot.top + plot.height + 9);
    }
  }
  function drawScale(high, sound, against) {
    const context = $("scale").getContext("2d"), unit = state.index === null ? data.sentence.unit : data.unit;
    context.clearRect(0, 0, 120, 10);
    const signed = map.some((v) => v < 0), zero = signed ? 60 : 0;
    const paint = (colours, from, to) => colours.forEach((colour, i) => {
      context.fillStyle = `rgb(${colour})`;
      context.fillRect(from + ((to - from) * i) / 256, 0, 1, 10);
    });
    if (signed) paint(against, zero, 0);
    paint(sound, zero, 120);
    $("scale-low").textContent = signed ? `against it ${amount(-high)}` : "no effect 0";
    $("scale-high").textContent = high < 1e-9 ? "no effect anywhere" : `${amount(high)} ${unit} for it`;
  }

  // Transcript: a button for every token (word); what stood before the output is shown, but was not chosen by the model
  const buttons = () => [...$("transcript").querySelectorAll("button")];
  const startsWord = (name, k) => k === 0 || /^\s/.test(name) || level().special[k];
  function writeTranscript() {
    const { names, shown, special, context, prefix } = level(), transcript = $("transcript");
    transcript.className = `by-${state.level}`;
    transcript.replaceChildren(...context.slice(0, prefix).map((name) => make("span", { class: "given", dir: "ltr" }, name)));
    let run = null;
    names.forEach((name, k) => {
      // What belongs together stays on one line, unless it is long: a script without spaces.
      if (startsWord(name, k) || !run || run.textContent.length > 24) {
        if (startsWord(name, k)) transcript.append(" ");
        transcript.append(run = make("span", { class: "run" }));
      }
      const button = make("button", { type: "button", "aria-pressed": "false" }, shown[k]);
      if (special[k]) button.classList.add("special");
      button.addEventListener("click", () => choose(state.level, k));
      run.append(button);
    });
    document.querySelectorAll("[data-level]").forEach((button) => {
      button.setAttribute("aria-pressed", button.dataset.level === state.level);
    });
  }
  function colourTranscript() {
    const { prefix, text_saliency: saliency, context } = level(), k = state.index;
    const elements = [...$("transcript").querySelectorAll(".given, button")], row = k === null ? [] : saliency[k];
    const known = row.filter((v) => v != null), low = Math.min(...known), high = Math.max(...known);
    elements.forEach((element, j) => {
      const value = j < prefix || j - prefix < k ? row[j] : null;
      element.style.setProperty("--weight", value == null ? 0 : high > low ? (value - low) / (high - low) : value);
      element.title = value == null ? "" : `influence ${number(value)}`;
      if (j >= prefix) element.setAttribute("aria-pressed", j - prefix === k);
      element.classList.toggle("later", k !== null && j - prefix > k);
    });
    const most = row.map((v, j) => [v, context[j]]).filter(([v]) => v != null).sort((a, b) => b[0] - a[0])[0];
    $("text-legend").replaceChildren(...(most
      ? ["influence of earlier text ", number(low), make("i"), `${number(high)}, most of `, quoted(most[1])]
      : k === null ? [`Choose a ${noun()} to see what made the model write it.`] : ["No earlier text."]));
  }

  // The numbers
  function describe() {
    const { shown, probability, sound_bits, text_bits, heard, reliability } = level(), k = state.index;
    const heading = $("heading");
    if (k === null) heading.replaceChildren("The whole sentence");
    else heading.replaceChildren(quoted(shown[k]), make("small", {}, `${noun()} ${k} of ${shown.length}, counted from 0`));
    const sure = k === null ? data.sentence.reliability : reliability[k];
    const entries = [];
    if (k !== null) entries.push(["probability", percent(probability[k], 1)]);
    else {
      const least = probability.reduce((best, p, i) => (p < probability[best] ? i : best), 0);
      entries.push([`least probable ${noun()}`, quoted(shown[least]), `, ${percent(probability[least])}`]);
    }
    const bits = k === null ? data.sentence.bits_per_token : sound_bits[k];
    if (bits != null && k === null)
      entries.push(["from the sound", make("span", { class: "sound" }, `${bits.toFixed(1)} bits a token`),
        data.sentence.verdict === "made up" ? ": probably made up" : ""]);
    else if (bits != null) {
      entries.push(["from the sound", make("span", { class: "sound" }, heard[k])]);
      if (text_bits[k] != null)
        entries.push(["from earlier text", make("span", { class: "text" }, `${text_bits[k].toFixed(1)} bits`)]);
    }
    const many = k !== null && level().groups[k].length > 1;
    entries.push([many ? "reliability, mean of its tokens" : "reliability of the map", number(sure)]);
    const [frame, bin] = k === null ? data.sentence.strongest : level().strongest[k];
    const strongest = where(frame, bins - 1 - bin);
    entries.push(["strongest at", strongest]);
    $("numbers").replaceChildren(...entries.map(([name, ...value]) => make("div", {}, make("dt", {}, name), make("dd", {}, ...value))));
    const warning = $("warning");
    warning.hidden = !(sure == null || sure < data.low_reliability[0]);
    warning.textContent = sure == null
      ? "The reliability of this map is not known: a half of the masks drew none, or a constant one."
      : data.low_reliability[1];
    $("sentence").setAttribute("aria-pressed", k === null);
    $("picture").setAttribute("aria-label", `Evidence over the spectrogram, ${heading.textContent}: ` +
      `strongest at ${strongest}`);
  }
  const timeOf = (frame) => start + ((frame + 0.5) / frames) * (end - start);
  const where = (frame, row) => `${seconds(timeOf(frame))}, ${hertz(data.frequencies[bins - 1 - row])}`;

  // Choosing
  async function choose(name, index, keepHash) {
    if (state.level !== name || !$("transcript").children.length) { state.level = name; state.index = index; writeTranscript(); }
    state.index = index;
    const chosen = await evidenceOf(name, index);
    if (state.level !== name || state.index !== index) return;  // another one was chosen meanwhile
    map = chosen;
    const shown = index === null ? [data.sentence] : data.levels[name].groups[index].map((k) => data.maps[k]);
    cut = shown.reduce((sum, { scale }) => sum + scale, 0) / shown.length;
    sorted = Float32Array.from(map, Math.abs).sort();
    colourTranscript(); describe(); draw();
    document.body.dataset.chosen = index === null ? "sentence" : `${noun()}=${index}`;
    if (!keepHash) history.replaceState(null, "", `#${document.body.dataset.chosen}`);
  }
  function toLevel(name) {
    if (name === state.level) return;
    const from = level().groups, to = data.levels[name].groups, k = state.index;
    const index = k === null ? -1 : to.findIndex((group) => group.includes(from[k][0]));
    choose(name, index < 0 ? null : index);
  }
  function followHash() {
    const [, kind, digits] = /^#(token|word)=(\d+)$/.exec(location.hash) || [];
    const name = kind ? `${kind}s` : data.opens_with;
    const index = kind && Number(digits) < data.levels[name].names.length ? Number(digits) : null;
    return choose(name, index, true);
  }
  document.querySelectorAll("[data-level]").forEach((button) => {
    button.disabled = !data.levels[button.dataset.level].names.length;
    button.addEventListener("click", () => toLevel(button.dataset.level));
  });
  $("sentence").addEventListener("click", () => choose(state.level, null));
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || /^(INPUT|AUDIO)$/.test(event.target.tagName)) return;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], last = level().names.length - 1, k = state.index;
    if (event.key === "Escape") choose(state.level, null);
    if (!step) return;
    event.preventDefault();
    const next = k === null ? (step > 0 ? 0 : last) : Math.max(0, Math.min(last, k + step));
    choose(state.level, next).then(() => buttons()[next].focus());
  });
  addEventListener("hashchange", followHash);

  // Controls, read-out, sound
  for (const name of ["share", "strength"]) {
    const show = () => { $(`${name}-value`).textContent = `${$(name).value} %`; };
    show();
    $(name).addEventListener("input", () => { show(); draw(); });
  }
  function at(event) {
    const box = $("picture").getBoundingClientRect();
    const frame = Math.floor(((event.clientX - box.left - plot.left) / plot.width) * frames);
    const row = Math.floor(((event.clientY - box.top - plot.top) / plot.height) * bins);
    return frame >= 0 && frame < frames && row >= 0 && row < bins ? [frame, row] : null;
  }
  $("picture").addEventListener("pointermove", (event) => {
    const place = map && at(event);
    if (!place) { $("readout").textContent = "\u00a0"; return; }
    const value = map[place[1] * frames + place[0]], above = shareAbove(Math.abs(value));
    const unit = state.index === null ? data.sentence.unit : data.unit, side = value < 0 ? "against it" : "for it";
    const more = Math.abs(value) >= 0.999 * cut ? "or more " : "";
    $("readout").textContent = `${where(...place)}: ${amount(Math.abs(value))} ${more}${unit} ${side}, among the top ${above < 0.001 ? "0.1 %" : percent(above, 1)}`;
  });
  $("picture").addEventListener("pointerleave", () => { $("readout").textContent = "\u00a0"; });
  const audio = $("audio");
  audio.src = URL.createObjectURL(new Blob([Uint8Array.from(atob(data.audio), (c) => c.charCodeAt(0))], { type: "audio/flac" }));
  function moveCursor() {
    const cursor = $("cursor");
    cursor.hidden = audio.paused && audio.currentTime === 0;
    cursor.style.left = `${xOf(Math.max(start, Math.min(end, audio.currentTime))) - 1}px`;
    cursor.style.top = `${plot.top}px`; cursor.style.height = `${plot.height}px`;
    if (!audio.paused) requestAnimationFrame(moveCursor);
  }
  for (const name of ["play", "pause", "seeked"]) audio.addEventListener(name, moveCursor);
  $("picture").addEventListener("click", (event) => {
    const place = at(event);
    if (place) audio.currentTime = Math.max(0, Math.min(data.duration_s, timeOf(place[0])));
  });

  // Where it comes from
  function list(entries, path = []) {
    return Object.entries(entries).flatMap(([name, value]) => (
      value && typeof value === "object" && !Array.isArray(value)
        ? list(value, [...path, name])
        : [make("dt", {}, [...path, name].join(" › ")), make("dd", {}, Array.isArray(value) ? value.join(", ") || "–" : String(value ?? "") || "–")]));
  }
  const provenance = data.provenance, model = provenance.model || {}, config = provenance.config || {};
  $("source").textContent = [(model.name || "").replace(/^.*[\\/](?=[^\\/]+[\\/]?$)/, (path) => (/^([\\/]|\w:|\.)/.test(path) ? "" : path)) || model.class, config.method, seconds(data.duration_s),
    `${data.levels.tokens.names.length} tokens`].filter(Boolean).join(" · ");
  $("provenance").replaceChildren(...list(provenance));
  $("notes").hidden = !data.warnings.length && !data.notes.length;
  $("notes").replaceChildren(...data.warnings.map((text) => make("p", { class: "warning" }, text)),
    ...data.notes.map((text) => make("p", { class: "legend" }, text)));

  dark.addEventListener("change", draw);
  new ResizeObserver(draw).observe($("scroller"));
  decode(data.spectrogram).then((values) => { spectrogram = values; return followHash(); });
})();
