"use strict";
// What the pages with a picture share: the spectrogram with a map over it, and the place of the sound in it.
(() => {
  const { data, $, dark, make, seconds, hertz, colour, audio } = spes;
  if (!data.spectrogram) return;  // nothing to draw

  const { frames, bins } = data;
  const [start, end] = data.time_extent;

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

  Object.assign(spes, { sizes, limits, draw, drawScale, xOf, where, readOut, seek, playedElsewhere });
})();
