"use strict";
// The whole recording on one strip: loudness, bits of every word, segments probably made up, windows, unexplained parts.
const strip = (() => {
  const { data, $, dark, make, colour } = spes;
  const { duration, words, segments, windows, loudness } = data;
  const segmentOf = new Int32Array(words.text.length);
  segments.forEach(({ parts }, k) => parts.forEach((part) => { if (typeof part === "number") segmentOf[part] = k; }));
  const spoken = words.text.map((name) => /[\p{L}\p{N}]/u.test(name));  // marks are not
  const untilOf = (i) => (segmentOf[i + 1] === segmentOf[i] ? words.from[i + 1] : Math.max(words.from[i], Math.min(segments[segmentOf[i]].end, words.from[i] + 1)));
  const canvas = $("strip");
  const plot = { left: 2, right: 2, width: 0, height: 0, level: 0, base: 0 };
  const xOf = (time) => plot.left + (time / duration) * plot.width;
  const timeOf = (x) => Math.max(0, Math.min(duration, ((x - plot.left) / plot.width) * duration));
  let marks = [];  // times of what the search has found

  const clock = (seconds) => {
    const whole = Math.floor(seconds), two = (n) => String(n).padStart(2, "0");
    const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
    return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
  };

  // Hatching across a stretch, so that colour is not the only mark
  function pattern(context, style, width, gap) {
    const tile = make("canvas", { width: gap, height: gap }), pen = tile.getContext("2d");
    pen.strokeStyle = style; pen.lineWidth = width;
    pen.beginPath();
    for (const shift of [-gap, 0, gap]) { pen.moveTo(shift, gap); pen.lineTo(shift + gap, 0); }
    pen.stroke();
    return context.createPattern(tile, "repeat");
  }
  const stretch = (context, from, until, top, height) => context.fillRect(xOf(from), top, Math.max(2, xOf(until) - xOf(from)), height);

  // Mean bits of the words at each pixel of the strip; NaN where there is none.
  function columns(count) {
    const sums = new Float64Array(count), weights = new Float64Array(count), per = count / duration;
    words.from.forEach((from, i) => {
      const bits = words.bits[i];
      if (bits == null || !spoken[i]) return;
      const first = Math.max(0, Math.floor(from * per)), last = Math.min(count - 1, Math.max(first, Math.ceil(untilOf(i) * per) - 1));
      for (let x = first; x <= last; x++) { sums[x] += bits; weights[x] += 1; }
    });
    return sums.map((sum, x) => (weights[x] ? sum / weights[x] : NaN));
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    plot.width = width - plot.left - plot.right; plot.height = height - 22;
    const top = 12, levelHeight = Math.round((plot.height - top) * 0.4), middle = top + levelHeight / 2, base = plot.height;
    const barHeight = base - top - levelHeight - 6;

    // What is not there, and what was made up
    for (const { start, until, state } of windows) {
      if (state === "explained") continue;
      context.fillStyle = state === "silence" ? colour("--raised") : pattern(context, colour("--level"), 1, 7);
      stretch(context, start, until, top, base - top);
    }
    const rgb = colour("--made-up-rgb");
    for (const { start, end, verdict } of segments) {
      if (verdict !== "made up") continue;
      context.fillStyle = `rgb(${rgb} / .16)`;
      stretch(context, start, end, top, base - top);
      context.fillStyle = colour("--made-up");
      stretch(context, start, end, 4, 6);
    }

    // Windows, unless they are many
    const apart = windows.length > 1 && plot.width / windows.length > 20;
    $("legend-of-windows").hidden = !apart;
    context.fillStyle = colour("--line");
    for (const { start } of apart ? windows.slice(1) : []) context.fillRect(Math.round(xOf(start)), top, 1, base - top);

    // Loudness
    context.fillStyle = colour("--level");
    const step = plot.width / (loudness.length || 1);
    loudness.forEach((value, i) => {
      const size = Math.max(1, (value / 100) * levelHeight);
      context.fillRect(plot.left + i * step, middle - size / 2, Math.max(step, 0.5), size);
    });

    // Bits: a bar for each word; where they are too narrow, their mean at each dot
    const bar = (bits, from, width) => {
      const size = Math.max(3, barHeight * Math.min(1, bits / data.full_bits));
      context.fillStyle = bits < data.not_heard_bits ? text : sound;
      context.fillRect(from, base - size, width, size);
    };
    const sound = `rgb(${colour("--sound-rgb")})`, text = `rgb(${colour("--text-rgb")})`;
    if (plot.width / words.text.length > 3)
      words.bits.forEach((bits, i) => {
        const from = xOf(words.from[i]), size = xOf(untilOf(i)) - from;
        if (bits != null && spoken[i]) bar(bits, from, Math.max(1.5, size - 1));
      });
    else {
      const count = Math.max(1, Math.floor(plot.width * ratio)), dot = plot.width / count;
      columns(count).forEach((bits, x) => { if (!Number.isNaN(bits)) bar(bits, plot.left + x * dot, dot + 0.2); });
    }

    // Clock
    context.fillStyle = colour("--line");
    context.fillRect(plot.left, base, plot.width, 1);
    context.fillStyle = colour("--quiet");
    context.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    context.textBaseline = "top"; context.textAlign = "center";
    const tick = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600].find((s) => (s / duration) * plot.width >= 62) || 7200;
    for (let time = 0; time <= duration; time += tick) {
      const text = clock(time), half = context.measureText(text).width / 2;
      context.fillRect(xOf(time), base, 1, 5);
      context.fillText(text, Math.max(half, Math.min(width - half, xOf(time))), base + 8);
    }

    // What the search has found
    context.fillStyle = colour("--ring");
    for (const time of marks) {
      context.beginPath();
      context.moveTo(xOf(time) - 4, 0); context.lineTo(xOf(time) + 4, 0); context.lineTo(xOf(time), 9);
      context.fill();
    }
    moveTo(now);
  }
  let now = 0;
  function moveTo(time) {
    now = time;
    const cursor = $("cursor");
    cursor.hidden = false;
    cursor.style.left = `${xOf(time) - 1}px`; cursor.style.height = `${plot.height}px`;
  }

  // Legend: everything shown, with its mark in the strip
  function writeLegend() {
    const entry = (style, text) => make("span", { class: "entry" }, make("i", { class: "swatch", style }), text);
    const windowsBegin = entry("background:linear-gradient(90deg, transparent 8px, var(--quiet) 8px 9px, transparent 9px);box-shadow:none", "a window begins");
    windowsBegin.id = "legend-of-windows";
    const has = (state) => windows.some((window) => window.state === state);
    const hatch = "repeating-linear-gradient(135deg, var(--level) 0 1px, transparent 1px 5px)";
    $("strip-legend").replaceChildren(
      ...(loudness.length ? [entry("background:var(--level)", "loudness")] : []),
      ...(words.text.length ? [entry("background:rgb(var(--sound-rgb))", `bits from the sound, by word: ${data.full_bits} or more fill the height`),
        entry("background:rgb(var(--text-rgb))", `under ${data.not_heard_bits} bit`)] : []),
      ...(segments.some(({ verdict }) => verdict === "made up")
        ? [entry("background:linear-gradient(var(--made-up) 0 5px, rgb(var(--made-up-rgb) / .16) 5px)", "probably made up")] : []),
      ...(has("silence") ? [entry("background:var(--raised)", "no speech")] : []),
      ...(has("unexplained") ? [entry(`background:${hatch}`, "not explained")] : []),
      windowsBegin);
    const madeUp = segments.filter(({ verdict }) => verdict === "made up");
    canvas.setAttribute("aria-label", `Strip of the recording, ${data.clock} long. ${data.summary}`
      + (madeUp.length ? ` At ${madeUp.slice(0, 20).map(({ start }) => clock(start)).join(", ")}${madeUp.length > 20 ? ", …" : ""}.` : ""));
  }

  function on(act) {
    const time = (event) => timeOf(event.clientX - canvas.getBoundingClientRect().left);
    canvas.addEventListener("click", (event) => act.jump(time(event)));
    canvas.addEventListener("pointermove", (event) => { $("readout").replaceChildren(...act.say(time(event))); });
    canvas.addEventListener("pointerleave", () => { $("readout").textContent = "\u00a0"; });
  }
  dark.addEventListener("change", () => draw());
  writeLegend();
  new ResizeObserver(() => draw()).observe($("strip-box"));
  return { clock, spoken, segmentOf, untilOf, draw, moveTo, on, mark: (times) => { marks = times; draw(); } };
})();
