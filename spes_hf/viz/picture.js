"use strict";
// What the pages share: elements, numbers, maps from PNGs, the spectrogram with a map over it, the recording, sources.
const spes = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const dark = matchMedia("(prefers-color-scheme: dark)");

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
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Where it comes from
  function list(entries, path = []) {
    return Object.entries(entries).flatMap(([name, value]) => (
      value && typeof value === "object" && !Array.isArray(value)
        ? list(value, [...path, name])
        : [make("dt", {}, [...path, name].join(" › ")), make("dd", {}, Array.isArray(value) ? value.join(", ") || "–" : String(value ?? "") || "–")]));
  }
  function writeSource(counted) {
    const model = data.provenance.model || {}, config = data.provenance.config || {};
    $("source").textContent = [(model.name || "").replace(/^.*[\\/](?=[^\\/]+[\\/]?$)/, (path) => (/^([\\/]|\w:|\.)/.test(path) ? "" : path)) || model.class, config.method, data.duration_s && seconds(data.duration_s),
      counted].filter(Boolean).join(" · ");
    $("provenance").replaceChildren(...list(data.provenance));
    $("notes").hidden = !data.warnings.length && !data.notes.length;
    $("notes").replaceChildren(...data.warnings.map((text) => make("p", { class: "warning" }, text)),
      ...data.notes.map((text) => make("p", { class: "legend" }, text)));
  }
  // Chromium fails to seek to some places in the last second of a FLAC, and drops the sound. Load it again, and seek to
  // slightly before.
  function keep(audio) {
    let tries = 0;
    audio.addEventListener("seeked", () => { tries = 0; });
    audio.addEventListener("error", () => {
      const time = Math.max(0, audio.currentTime - 0.4), paused = audio.paused;
      if (audio.readyState === 0 || tries++ > 4) return;  // there was no sound to begin with
      audio.load();
      audio.addEventListener("loadedmetadata", () => { audio.currentTime = time; if (!paused) audio.play().catch(() => {}); }, { once: true });
    });
  }
  const shared = { data, $, dark, make, quoted, percent, number, amount, seconds, hertz, colour, writeSource, keep };
  if (!data.spectrogram) return shared;  // nothing to draw, nothing to play

  const { frames, bins } = data;
  const [start, end] = data.time_extent;

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

  // The order statistics of a map's size, and its colour scale
  const sizes = (map) => Float32Array.from(map, Math.abs).sort();
  const quantile = (sorted, q) => sorted[Math.max(0, Math.min(sorted.length - 1, Math.round(q * (sorted.length - 1))))];
  function limits(sorted, share) {
    const low = quantile(sorted, 1 - share);
    return [low, Math.max(quantile(sorted, data.high_percentile / 100), low * 1.01, 1e-12)];
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
  const backgrounds = new Map();
  function background(spectrogram) {
    const theme = dark.matches ? "dark" : "light", { greys } = colours();
    if (!backgrounds.has(spectrogram)) backgrounds.set(spectrogram, {});
    const drawn = backgrounds.get(spectrogram);
    drawn[theme] ??= layer((pixels) => spectrogram.forEach((v, i) => put(pixels, i, greys[Math.round(255 * v)], 1)));
    return drawn[theme];
  }
  // Draws a map over the spectrogram, without values smaller than `low`, and returns the context and the box of both.
  function draw(spectrogram, map, [low, high], strength, { pixelsPerSecond = 26, canvas = $("picture"), height: tall } = {}) {
    const wide = Math.min(plot.left + plot.right + pixelsPerSecond * (end - start), 15000 / (window.devicePixelRatio || 1));
    const outer = Math.max($("scroller").clientWidth, wide);
    const narrow = outer < 560, ratio = window.devicePixelRatio || 1;
    plot.width = outer - plot.left - plot.right;
    plot.height = tall ?? (narrow ? 200 : 270);
    const height = plot.top + plot.height + plot.bottom;
    canvas.width = Math.round(outer * ratio); canvas.height = Math.round(height * ratio);
    canvas.style.width = `${outer}px`; canvas.style.height = `${height}px`; $("plot").style.width = `${outer}px`;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.imageSmoothingEnabled = false;
    const { sound, against } = colours(), box = [plot.left, plot.top, plot.width, plot.height];
    context.drawImage(background(spectrogram), ...box);
    context.drawImage(layer((pixels) => map.forEach((v, i) => {
      const size = Math.abs(v);
      if (size < low || size === 0) return;
      const t = Math.min(1, size / high);
      put(pixels, i, (v > 0 ? sound : against)[Math.round(255 * t)], strength * (0.2 + 0.8 * t));
    })), ...box);
    drawAxes(context, box);
    moveCursor();
    return [context, box];
  }
  function drawAxes(context, box) {
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
  // The colour scale; returns whether it has two sides.
  function drawScale(map, high) {
    const { sound, against } = colours(), context = $("scale").getContext("2d");
    context.clearRect(0, 0, 120, 10);
    const signed = map.some((v) => v < 0), zero = signed ? 60 : 0;
    const paint = (colours, from, to) => colours.forEach((colour, i) => {
      context.fillStyle = `rgb(${colour})`;
      context.fillRect(from + ((to - from) * i) / 256, 0, 1, 10);
    });
    if (signed) paint(against, zero, 0);
    paint(sound, zero, 120);
    return signed;
  }

  // Places in a picture, and what `say(frame, row, canvas)` returns for the place under the pointer
  const pictures = [...$("plot").querySelectorAll("canvas")];
  const timeOf = (frame) => start + ((frame + 0.5) / frames) * (end - start);
  const where = (frame, row) => `${seconds(timeOf(frame))}, ${hertz(data.frequencies[bins - 1 - row])}`;
  function at(event) {
    const box = event.currentTarget.getBoundingClientRect();
    const frame = Math.floor(((event.clientX - box.left - plot.left) / plot.width) * frames);
    const row = Math.floor(((event.clientY - box.top - plot.top) / plot.height) * bins);
    return frame >= 0 && frame < frames && row >= 0 && row < bins ? [frame, row] : null;
  }
  function readOut(say) {
    for (const picture of pictures) {
      picture.addEventListener("pointermove", (event) => {
        const place = at(event);
        $("readout").textContent = (place && say(...place, picture)) || "\u00a0";
      });
      picture.addEventListener("pointerleave", () => { $("readout").textContent = "\u00a0"; });
    }
  }

  // Sound
  const audio = $("audio");
  keep(audio);
  audio.src = URL.createObjectURL(new Blob([Uint8Array.from(atob(data.audio), (c) => c.charCodeAt(0))], { type: "audio/flac" }));
  const from = data.sound_from;  // where the sound begins on the axis
  let elsewhere = null;  // the time of a sound that another page plays
  function moveCursor() {
    const cursor = $("cursor"), time = elsewhere ?? from + audio.currentTime;
    cursor.hidden = elsewhere === null ? audio.paused && audio.currentTime === 0 : time < start || time > end;
    cursor.style.left = `${xOf(Math.max(start, Math.min(end, time))) - 1}px`;
    cursor.style.top = `${plot.top}px`; cursor.style.height = `${plot.height}px`;
    if (!audio.paused) requestAnimationFrame(moveCursor);
  }
  const playedElsewhere = (time) => { elsewhere = time; moveCursor(); };
  for (const name of ["play", "pause", "seeked"]) audio.addEventListener(name, moveCursor);
  const seek = { to: (time) => { audio.currentTime = Math.max(0, Math.min(data.duration_s, time - from)); } };
  for (const picture of pictures) {
    picture.addEventListener("click", (event) => {
      const place = at(event);
      if (place) seek.to(timeOf(place[0]));
    });
  }

  return { ...shared, decode, evidence, sizes, limits, draw, drawScale, xOf, where, readOut, audio, seek, playedElsewhere };
})();
