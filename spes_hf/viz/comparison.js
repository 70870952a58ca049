"use strict";
(() => {
  const { data, $, dark, make, quoted, number, amount, decode, evidence, sizes, limits, draw, drawScale, where } = spes;
  const { pairs, names } = data;
  const pictures = ["picture", "picture-second", "picture-difference"].map($);
  const state = { index: null, maps: [], spectrograms: null };
  const chosen = () => (state.index === null ? data.sentence : pairs[state.index]);
  const NOTHING = "(no word)";

  // Both texts: words that agree once, words that differ one above the other
  const buttons = () => [...$("aligned").querySelectorAll("button")];
  function writeTexts() {
    $("aligned").dir = data.direction;
    pairs.forEach(({ words, equal, spaced, agreement }, k) => {
      const line = (text, name) => make("span", { class: text ? name : `${name} nothing` }, text || NOTHING);
      const lines = equal ? [line(words[0], "first")] : [line(words[0], "first"), line(words[1], "second")];
      const button = make("button", { type: "button", "aria-pressed": "false", class: equal ? "" : "apart" },
        make("span", { class: "number", dir: "ltr" }, agreement), ...lines);
      button.addEventListener("click", () => choose(k));
      $("aligned").append(spaced ? " " : "", button);
    });
    for (const [i, side] of ["first", "second"].entries())
      for (const element of document.querySelectorAll(`.${side}-name`)) element.textContent = names[i];
    const apart = pairs.filter(({ equal }) => !equal).length;
    $("summary").textContent = !apart ? "Both wrote the same words." : `The texts differ in ${apart} of ${pairs.length} places.`;
  }

  // The maps: both, and the first minus the second, on one scale
  function redraw() {
    const { maps, spectrograms } = state;
    if (!spectrograms || !maps.some(Boolean)) return;
    const known = maps.slice(0, 2).filter(Boolean), ends = limits(sizes(known.flatMap((map) => [...map])), 0.2);
    const height = $("scroller").clientWidth < 560 ? 130 : 170, none = new Float32Array(data.frames * data.bins);
    pictures.forEach((canvas, i) => draw(spectrograms[i % 2], maps[i] || none, ends, 0.9, { canvas, height }));
    const signed = drawScale(maps.some((map) => map?.some((v) => v < 0)) ? [-1] : [1], ends[1]);
    $("scale-low").textContent = signed ? `against it ${amount(-ends[1])}` : "no effect 0";
    $("scale-high").textContent = `${amount(ends[1])} standard deviations for it`;
  }
  function describe() {
    const { words, bits, agreement, maps } = chosen(), named = (text) => (text ? quoted(text) : "no word");
    $("heading").replaceChildren(...(state.index === null ? ["The whole sentence"]
      : words[0] === words[1] ? [quoted(words[0])] : [named(words[0]), " and ", named(words[1])]),
    ...(state.index === null ? [] : [make("small", {}, `pair ${state.index} of ${pairs.length}, counted from 0`)]));
    const entries = [["agreement over time", agreement]];
    if (bits) names.forEach((name, i) => bits[i] != null && entries.push([`from the sound, ${name}`, `${number(bits[i], 1)} bits`]));
    $("numbers").replaceChildren(...entries.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
    pictures.forEach((canvas, i) => {
      const missing = i < 2 ? !maps[i] : !(maps[0] && maps[1]);
      canvas.hidden = canvas.previousElementSibling.hidden = missing;
      canvas.setAttribute("aria-label", `${i < 2 ? names[i] : "Difference"}: ${$("heading").textContent}`);
    });
  }

  // Choosing
  async function choose(index, keepHash) {
    state.index = index;
    const maps = await Promise.all(chosen().maps.map((map) => map && evidence(map)));
    if (state.index !== index) return;  // another one was chosen in the meantime
    const [first, second] = maps;
    state.maps = [first, second, first && second && first.map((value, i) => value - second[i])];
    buttons().forEach((button, k) => button.setAttribute("aria-pressed", k === index));
    $("sentence").setAttribute("aria-pressed", index === null);
    describe(); redraw();
    document.body.dataset.chosen = index === null ? "sentence" : `pair=${index}`;
    if (!keepHash) history.replaceState(null, "", `#${document.body.dataset.chosen}`);
  }
  function followHash() {
    const index = Number((/^#pair=(\d{1,6})$/.exec(location.hash) || [])[1] ?? -1);
    return choose(index >= 0 && index < pairs.length ? index : null, true);
  }
  $("sentence").addEventListener("click", () => choose(null));
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || /^(INPUT|AUDIO)$/.test(event.target.tagName)) return;
    if (event.key === "Escape") choose(null);
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], last = pairs.length - 1, k = state.index;
    if (!step || last < 0 || event.target.id === "scroller") return;
    event.preventDefault();
    const next = k === null ? (step > 0 ? 0 : last) : Math.max(0, Math.min(last, k + step));
    choose(next).then(() => buttons()[next].focus());
  });
  addEventListener("hashchange", followHash);

  spes.readOut((frame, row, canvas) => {
    const i = pictures.indexOf(canvas), map = state.maps[i];
    if (!map) return "";
    const value = map[row * data.frames + frame], which = i < 2 ? names[i] : "difference";
    return `${where(frame, row)}: ${which} ${amount(value)} standard deviations`;
  });
  writeTexts();
  spes.writeSource();
  $("source").textContent = [`${names[0]} and ${names[1]}`, spes.seconds(data.duration_s)].join(" · ");
  dark.addEventListener("change", redraw);
  new ResizeObserver(redraw).observe($("scroller"));
  Promise.all([decode(data.spectrogram), decode(data.spectrogram_second)]).then((found) => { state.spectrograms = found; return followHash(); });
})();
