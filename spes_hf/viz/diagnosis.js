"use strict";
(() => {
  const { data, $, dark, make, quoted, number, amount, colour } = spes;
  const { errors } = data;
  for (const bound of document.querySelectorAll(".bound")) bound.textContent = number(data.bound, 2);
  const state = { index: null, map: null, spectrogram: null };
  const chosen = () => errors[state.index];
  const slug = (verdict) => verdict.replace(" ", "-");
  const signed = (bits) => (bits == null ? "–" : `${bits > 0 ? "+" : ""}${number(bits, 1)}`);
  // The name of one of the two sides of an error.
  const side = (text) => (text ? quoted(text) : "no word");
  const sideText = (text) => (text ? `“${text}”` : "no word");

  // Both texts, one above the other
  function writeColumns() {
    const aligned = $("aligned");
    aligned.dir = data.direction;
    for (const { written, said, spaced, error } of data.columns) {
      const lines = [["was-said", said], ["was-written", written]].map(([name, text]) => (
        make("span", { class: text ? name : `${name} nothing` }, text || "(nothing)")));
      if (spaced) aligned.append(" ");  // lets the line break, and keeps the spaces in copied text
      const name = `column${spaced ? " spaced" : ""}`;
      if (error === null) { aligned.append(make("span", { class: name }, ...lines)); continue; }
      const { verdict, written: own, said: other } = errors[error];
      const button = make("button", {
        type: "button", "aria-pressed": "false", class: `${name} ${slug(verdict)}`,
        "aria-label": `${own || "nothing"} written, ${other || "nothing"} said: ${verdict}`,
      }, ...lines, make("span", { class: "tag", dir: "ltr" }, verdict));
      button.addEventListener("click", () => choose(error));
      aligned.append(button);
    }
  }
  const buttons = () => [...$("aligned").querySelectorAll("button")];

  // The odds: without any sound, without the stretch, what the stretch adds, and all together
  function writeOdds() {
    const { written, said, without_sound: silent, context, evidence, log_odds: all, deviation } = chosen();
    const odds = $("odds");
    odds.hidden = evidence == null;
    $("parts").hidden = evidence == null;
    if (evidence == null) return;
    const spread = deviation ?? 0, values = [0, silent, context, all - spread, all + spread].filter((v) => v != null);
    const least = Math.min(...values), most = Math.max(...values), room = 0.08 * Math.max(most - least, 1);
    const low = least - room, span = most + room - low;
    const place = (bits) => (100 * (bits - low)) / span;
    const bar = (from, to, kind) => make("div", {
      class: `bar ${to >= from ? "written" : "said"} ${kind}`,
      style: `left:${place(Math.min(from, to))}%;width:${(100 * Math.abs(to - from)) / span}%`,
    });
    const track = (...parts) => make("div", { class: "track" }, ...parts, make("div", { class: "zero", style: `left:${place(0)}%` }));
    const link = (bits) => make("div", { class: "link", style: `left:${place(bits)}%` });
    const row = (label, parts, value, strong = "") => [
      make("div", { class: `label ${strong}` }, label), make("div", { class: `value ${strong}` }, value), track(...parts)];
    const whisker = make("div", { class: "error-bar", style: `left:${place(all - spread)}%;width:${(200 * spread) / span}%` });
    const ticks = [];
    const step = [0.5, 1, 2, 5, 10, 20, 50, 100, 200].find((s) => span / s <= 8) || 500;
    for (let i = Math.ceil(low / step); i * step <= low + span; i++)
      ticks.push(make("span", { style: `left:${place(i * step)}%` }, number(i * step, step < 1 ? 1 : 0)));
    odds.replaceChildren(
      make("div", { class: "ends" }, make("span", { class: "against" }, "← ", side(said), " likelier"),
        make("span", { class: "sound" }, side(written), " likelier →")),
      ...row("without any sound", [bar(0, silent, "level")], `${signed(silent)} bits`),
      ...row("context: all but the stretch", [bar(0, context, "level")], `${signed(context)} bits`),
      ...row("evidence of the stretch", [link(context), bar(context, all, ""), whisker],
        `${signed(evidence)} ± ${number(spread, 1)} bits`, "strong"),
      ...row("all together", [link(all), bar(0, all, "level")], `${signed(all)} bits`),
      make("div", { class: "ticks", "aria-hidden": "true" }, ...ticks));
    odds.querySelectorAll(".label, .value, .track").forEach((cell, i) => cell.style.setProperty("--row", 1 + Math.floor(i / 3)));
    odds.setAttribute("aria-label", `Log-odds in bits, above 0 for ${sideText(written)}, below 0 for ${sideText(said)}: without any sound ` +
      `${signed(silent)}, context ${signed(context)}, evidence ${signed(evidence)}, all together ${signed(all)}`);
    const { written_evidence: own, said_evidence: other } = chosen();
    $("parts").replaceChildren(...(own == null || other == null ? []
      : [`From the stretch: ${signed(own)} bits for `, side(written), `, ${signed(other)} bits for `, side(said), "."]));
  }

  // The map and its frame
  function redraw() {
    const { map, spectrogram } = state;
    if (!map || !spectrogram) return;
    const ends = spes.limits(map.sorted, 0.2), [low, high] = chosen().stretch;
    const [context, [, top, , height]] = spes.draw(spectrogram, map.values, ends, 0.9, { pixelsPerSecond: 80 });
    if (low != null && high != null) {
      const left = spes.xOf(low), width = Math.max(3, spes.xOf(high) - left);
      for (const [name, thick] of [["--paper", 5], ["--ink", 2]]) {
        context.strokeStyle = colour(name); context.lineWidth = thick;
        context.strokeRect(left, top + 1, width, height - 2);
      }
    }
    const { written, said, map: { unit } } = chosen();
    const both = spes.drawScale(map.values, ends[1]);
    $("scale-low").textContent = both ? `for ${sideText(said)} ${amount(ends[1])}` : "no effect 0";
    $("scale-high").textContent = ends[1] < 1e-9 ? "no effect anywhere" : `${amount(ends[1])} ${unit} for ${sideText(written)}`;
  }
  function showStretch() {
    const { stretch: [low, high] } = chosen(), scroller = $("scroller");
    if (low != null && high != null) scroller.scrollLeft = spes.xOf((low + high) / 2) - scroller.clientWidth / 2;
  }
  function describeMap() {
    const { reliability: sure, written, said } = chosen();
    $("sure").textContent = sure == null ? "" : `Reliability of the map: ${number(sure)}`;
    $("warning").hidden = !(sure == null || sure < data.low_reliability[0]);
    $("warning").textContent = sure == null ? "The reliability of this map is not known." : data.low_reliability[1];
    $("picture").setAttribute("aria-label", `Evidence over the spectrogram, orange for ${sideText(written)}, purple for ${sideText(said)}`);
  }

  // Choosing
  async function choose(index, keepHash) {
    state.index = index; state.map = null;
    const { written, said, verdict, sentence, map, stretch } = chosen();
    buttons().forEach((button, k) => button.setAttribute("aria-pressed", k === index));
    const button = buttons()[index], box = $("aligned");
    const above = button.offsetTop - box.offsetTop;
    if (above < box.scrollTop || above + button.offsetHeight > box.scrollTop + box.clientHeight)
      box.scrollTop = above - box.clientHeight / 3;
    $("heading").replaceChildren(...(written ? [quoted(written), " written, "] : ["nothing written, "]), ...(said ? [quoted(said), " said"] : ["nothing said"]),
      make("b", { class: `tag ${slug(verdict)}` }, verdict), make("small", {}, `error ${index + 1} of ${errors.length}`));
    $("sentence-of").replaceChildren(...sentence.map((part) => (typeof part === "string" ? part : quoted(part.quoted))));
    $("previous").disabled = index === 0;
    $("next").disabled = index === errors.length - 1;
    writeOdds();
    $("map").hidden = !map;
    if (data.spectrogram) $("play-stretch").disabled = stretch[0] == null;
    if (map) {
      const values = await spes.evidence(map);
      if (state.index !== index) return;  // another one was chosen in the meantime
      state.map = { values, sorted: spes.sizes(values) };
      describeMap(); redraw(); showStretch();
    }
    document.body.dataset.chosen = `error=${index}`;
    if (!keepHash) history.replaceState(null, "", `#error=${index}`);
  }
  function followHash() {
    const index = Number((/^#error=(\d{1,6})$/.exec(location.hash) || [])[1] ?? -1);
    const first = Math.max(0, errors.findIndex(({ map }) => map));
    return choose(index >= 0 && index < errors.length ? index : first, true);
  }
  const step = (by) => {
    const next = Math.max(0, Math.min(errors.length - 1, state.index + by));
    return choose(next).then(() => buttons()[next]);
  };

  writeColumns();
  $("summary").textContent = data.summary;
  $("choose").hidden = !errors.length;
  spes.writeSource(`${errors.length} error${errors.length === 1 ? "" : "s"}`);
  $("origin").hidden = !Object.keys(data.provenance).length;
  $("help").hidden = !errors.length;
  if (!errors.length) return;
  $("chosen").hidden = false;
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  addEventListener("hashchange", followHash);
  document.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.altKey || event.ctrlKey || event.metaKey || event.target.tagName === "AUDIO" || event.target.id === "scroller") return;
    event.preventDefault();
    step(data.direction === "rtl" && event.target.closest("#aligned") ? -by : by).then((button) => button.focus({ preventScroll: true }));
  });
  if (!data.spectrogram) { followHash(); return; }

  // Sound
  const { audio } = spes;
  $("sound").hidden = false;
  let stop = null;  // where the playing stretch ends
  function watch() {
    if (stop !== null && audio.currentTime + data.sound_from >= stop) { audio.pause(); stop = null; }
    if (stop !== null && !audio.paused) requestAnimationFrame(watch);
  }
  async function play(from, to) {
    stop = null;
    spes.seek.to(from);
    await audio.play();
    stop = to;
    watch();
  }
  audio.addEventListener("pause", () => { stop = null; });
  $("picture").addEventListener("click", () => { stop = null; });
  $("play-stretch").addEventListener("click", () => play(...chosen().stretch));
  $("play-all").addEventListener("click", () => play(data.sound_from, null));

  spes.readOut((frame, row) => {
    if (!state.map) return "";
    const value = state.map.values[row * data.frames + frame], { written, said, map } = chosen();
    return `${spes.where(frame, row)}: ${amount(Math.abs(value))} ${map.unit} for ${sideText(value < 0 ? said : written)}`;
  });
  dark.addEventListener("change", redraw);
  new ResizeObserver(redraw).observe($("scroller"));
  spes.decode(data.spectrogram).then((values) => { state.spectrogram = values; return followHash(); });
})();
