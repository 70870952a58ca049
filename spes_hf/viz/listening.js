"use strict";
// The switch next to the recording: everything, only what mattered for the chosen token, or all but that. Masks the sound
// like `Explanation.listen`: hop, window and transform are those of explanation/listening.py.
spes.listening = (chosen) => {
  const { data, $, audio, quoted, make, percent } = spes, { frames, bins, sampling_rate: rate } = data;
  const [start, end] = data.time_extent, step = (end - start) / frames;
  let mode = "all", samples = null, latest = 0, url = null;
  const original = audio.src;

  // A gain in [0, 1] for every cell of a map. Cells that tie with the last kept one share what is left; there may be many
  // of them, since the page has only 255 levels of evidence.
  function gains(map, share) {
    const sorted = Float32Array.from(map).sort(), count = Math.floor(share * map.length + 1e-9);
    if (!count) return new Float32Array(map.length);
    const last = sorted[map.length - count];
    let above = 0, equal = 0;
    for (const value of map) { above += value > last; equal += value === last; }
    return Float32Array.from(map, (value) => (value > last ? 1 : value === last ? (count - above) / equal : 0));
  }

  // In-place Fourier transform of complex numbers; their number is a power of two. With `sign` 1, the inverse, unscaled.
  function fourier(re, im, sign) {
    const n = re.length;
    for (let i = 1, j = 0; i < n; i++) {
      let bit = n >> 1;
      for (; j & bit; bit >>= 1) j ^= bit;
      j ^= bit;
      if (i < j) { [re[i], re[j]] = [re[j], re[i]]; [im[i], im[j]] = [im[j], im[i]]; }
    }
    for (let size = 2; size <= n; size *= 2) {
      for (let k = 0; k < size / 2; k++) {
        const angle = (sign * 2 * Math.PI * k) / size, c = Math.cos(angle), s = Math.sin(angle);
        for (let a = k; a < n; a += size) {
          const b = a + size / 2, x = c * re[b] - s * im[b], y = c * im[b] + s * re[b];
          re[b] = re[a] - x; im[b] = im[a] - y; re[a] += x; im[a] += y;
        }
      }
    }
  }

  // Where a value lies among increasing centres: the lower neighbour, and the fraction of the way to the next.
  function between(centres, value) {
    let low = 0;
    while (low < centres.length - 2 && centres[low + 1] <= value) low++;
    return [low, Math.max(0, Math.min(1, (value - centres[low]) / (centres[low + 1] - centres[low])))];
  }

  function masked(gain) {  // rows of the gain are mel bins, the highest first
    const width = Math.round(0.025 * rate), hop = Math.round(0.01 * rate), n = 2 ** Math.ceil(Math.log2(width));
    const first = start + step / 2 - data.sound_from, before = ((Math.round(-first * rate) % hop) + hop) % hop;
    const hann = Float64Array.from({ length: width }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / width));
    const places = Array.from({ length: n / 2 + 1 }, (_, f) => between(data.frequencies, (f * rate) / n));
    const sound = new Float64Array(samples.length), weight = new Float64Array(samples.length);
    const re = new Float64Array(n), im = new Float64Array(n), column = new Float64Array(bins);
    for (let centre = -before; centre <= samples.length + hop; centre += hop) {
      const at = Math.max(0, Math.min(frames - 1, (centre / rate - first) / step)), t = Math.min(frames - 2, Math.floor(at));
      for (let c = 0; c < bins; c++) {
        const row = (bins - 1 - c) * frames;
        column[c] = gain[row + t] + (at - t) * (gain[row + t + 1] - gain[row + t]);
      }
      const from = centre - (width >> 1);
      re.fill(0); im.fill(0);
      for (let i = 0; i < width; i++) re[i] = hann[i] * (samples[from + i] ?? 0);
      fourier(re, im, -1);
      for (let f = 0; f < n; f++) {
        const [c, way] = places[Math.min(f, n - f)], g = (column[c] + way * (column[c + 1] - column[c])) / n;
        re[f] *= g; im[f] *= g;
      }
      fourier(re, im, 1);
      for (let i = Math.max(0, -from); i < width && from + i < samples.length; i++) {
        sound[from + i] += hann[i] * re[i];
        weight[from + i] += hann[i] ** 2;
      }
    }
    return sound.map((value, i) => value / weight[i]);
  }

  function wav(sound) {
    const view = new DataView(new ArrayBuffer(44 + 2 * sound.length));
    const put = (at, text) => [...text].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
    put(0, "RIFF"); put(8, "WAVEfmt "); put(36, "data");
    for (const [at, value] of [[4, 36 + 2 * sound.length], [16, 16], [24, rate], [28, 2 * rate], [40, 2 * sound.length]]) view.setUint32(at, value, true);
    for (const [at, value] of [[20, 1], [22, 1], [32, 2], [34, 16]]) view.setUint16(at, value, true);
    sound.forEach((value, i) => view.setInt16(44 + 2 * i, Math.round(32767 * Math.max(-1, Math.min(1, value))), true));
    return new Blob([view], { type: "audio/wav" });
  }

  async function decoded() {
    const bytes = Uint8Array.from(atob(data.audio), (c) => c.charCodeAt(0)).buffer;
    return (await new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes)).getChannelData(0);
  }

  // Another sound continues where the last one was.
  function play(source) {
    const time = audio.currentTime, playing = !audio.paused;
    audio.src = source;
    audio.addEventListener("loadedmetadata", () => {
      audio.currentTime = time;
      if (playing) audio.play().catch(() => {});
    }, { once: true });
    if (url && url !== source) URL.revokeObjectURL(url);
    url = source === original ? null : source;
  }

  async function update() {
    const { map, share, name } = chosen(), call = ++latest;
    $("heard").hidden = !data.heard || name !== null;
    if (!map) return;
    const what = `the top ${percent(share)} for `, whom = name !== null ? quoted(name) : data.contrasts ? "all contrasts" : "the whole sentence";
    $("hearing").replaceChildren(...(mode === "all" ? [] : [mode === "rest" ? `without ${what}` : what, whom]));
    for (const button of document.querySelectorAll("[data-hear]")) button.setAttribute("aria-pressed", button.dataset.hear === mode);
    if (mode === "all") { if (url) play(original); return; }
    try {
      samples ??= await decoded();
    } catch {
      $("hearing").textContent = "This browser cannot decode the recording.";
      return;
    }
    if (call !== latest) return;  // something else was chosen in the meantime
    const gain = gains(map, share);
    play(URL.createObjectURL(wav(masked(mode === "rest" ? gain.map((g) => 1 - g) : gain))));
  }

  for (const button of document.querySelectorAll("[data-hear]")) {
    button.addEventListener("click", () => { mode = button.dataset.hear; update(); });
  }
  $("share")?.addEventListener("change", () => update());
  if (data.heard) {
    const { top, kept, rest } = data.heard;
    $("heard").append(...[[`with only the top ${percent(top)}, the model writes`, kept], ["with all but that", rest]].flatMap(
      ([name, text]) => [make("dt", {}, name), make("dd", {}, text ? quoted(text) : "nothing")]));
  }
  return update;
};
