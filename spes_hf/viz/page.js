"use strict";
// What the pages share: elements, numbers, maps from PNGs, the recording, sources.
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
  // Maps: rows are mel bins, the highest on top; grey values in [0, 1], or evidence: 128 is 0, 255 is its scale.
  const decoded = new Map();
  function decode(png) {
    if (!decoded.has(png)) {
      decoded.set(png, (async () => {
        const image = new Image();
        image.src = `data:image/png;base64,${png}`;
        await image.decode();
        const { frames, bins } = data, canvas = make("canvas", { width: frames, height: bins });
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

  const shared = { data, $, dark, make, quoted, percent, number, amount, seconds, hertz, colour, writeSource, keep, decode, evidence };
  const audio = $("audio");
  if (!audio) return shared;

  // Sound; an explanation may have lost its samples
  if (!data.audio) {
    for (const element of document.querySelectorAll("#audio, .hear")) element.style.display = "none";
    return { ...shared, audio };
  }
  keep(audio);
  audio.src = URL.createObjectURL(new Blob([Uint8Array.from(atob(data.audio), (c) => c.charCodeAt(0))], { type: "audio/flac" }));
  return { ...shared, audio };
})();
