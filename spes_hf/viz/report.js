"use strict";
(() => {
  const { data, $, dark, make, quoted, percent, number, amount, decode, evidence, sizes, limits, draw, drawScale, where } = spes;
  const { bins, frames } = data;
  const state = { level: data.opens_with, index: null };
  const level = () => data.levels[state.level];
  const kind = () => (state.level === "words" ? "word" : "token"), noun = () => (data.contrasts ? "contrast" : kind());
  const forAndAgainst = () => (data.contrasts  // labels for evidence for and against a row
    ? state.index === null ? ["for what was written", "for the other"] : [`for “${pair().target}”`, `for “${pair().foil}”`]
    : ["for it", "against it"]);
  const pair = () => data.contrasts[state.index];

  // The chosen map
  async function evidenceOf(name, index) {
    if (index === null) return evidence(data.sentence);
    const maps = await Promise.all(data.levels[name].groups[index].map((k) => evidence(data.maps[k])));
    return maps.length === 1 ? maps[0] : maps[0].map((_, i) => maps.reduce((sum, map) => sum + map[i], 0) / maps.length);
  }

  let map = null, sorted = null, spectrogram = null, cut = 0;
  function shareAbove(value) {
    let low = 0, high = sorted.length;
    while (low < high) { const middle = (low + high) >> 1; if (sorted[middle] < value) low = middle + 1; else high = middle; }
    return 1 - low / sorted.length;
  }
  function redraw() {
    if (!map || !spectrogram) return;
    const ends = limits(sorted, $("share").value / 100), high = ends[1];
    draw(spectrogram, map, ends, $("strength").value / 100);
    const signed = drawScale(map, high), unit = state.index === null ? data.sentence.unit : data.unit;
    const [good, bad] = forAndAgainst();
    $("scale-low").textContent = signed ? `${bad} ${amount(data.contrasts ? high : -high)}` : "no effect 0";
    $("scale-high").textContent = high < 1e-9 ? "no effect anywhere" : `${amount(high)} ${unit} ${good}`;
  }

  // Transcript: a button for every token (word); what came before the output is shown, but was not chosen by the model.
  // With contrasts: a button for each, and the earlier text in a line of its own.
  const buttons = () => [...$("transcript").querySelectorAll("button")];
  const startsWord = (name, k) => k === 0 || data.contrasts || /^\s/.test(name) || level().special[k];
  function writeTranscript() {
    const { names, shown, special, context, prefix, spaced, marks, starts, tail } = level(), transcript = $("transcript");
    transcript.className = data.contrasts ? "by-contrasts" : `by-${state.level}`;
    transcript.replaceChildren(...context.slice(0, prefix).map((name) => make("span", { class: "given", dir: "ltr" }, name)));
    let run = null, column = 0;
    // Pieces of a word stay on one line, unless the run is long, as in a script without spaces.
    const put = (element, startsWord) => {
      if (startsWord || !run || run.textContent.length > 24) {
        if (startsWord) transcript.append(" ");
        transcript.append(run = make("span", { class: "run" }));
      }
      run.append(element);
    };
    // Text that is not explained, up to a place among what the model wrote.
    const putSaid = (until) => {
      for (; column < until; column++)
        put(make("span", { class: marks[prefix + column] ? "said special" : "said" }, context[prefix + column]), spaced[prefix + column] || marks[prefix + column]);
    };
    names.forEach((name, k) => {
      if (!data.contrasts) putSaid(starts[k]);
      column++;
      const button = make("button", { type: "button", "aria-pressed": "false" }, shown[k]);
      if (special[k]) button.classList.add("special");
      button.addEventListener("click", () => choose(state.level, k));
      put(button, startsWord(name, k));
    });
    if (!data.contrasts) {
      putSaid(context.length - prefix);
      if (tail) put(make("span", { class: "tail" }, tail), true);
    }
    if (data.contrasts) {
      const earlier = make("span", { class: "earlier", dir: "auto" }, ...transcript.querySelectorAll(".given"));
      context.slice(prefix).forEach((name, j) => earlier.append(spaced[prefix + j] ? " " : "", make("span", { class: "said" }, name)));
      transcript.append(earlier);
    }
    document.querySelectorAll("[data-level]").forEach((button) => {
      button.setAttribute("aria-pressed", button.dataset.level === state.level);
    });
  }
  function colourTranscript() {
    const { prefix, text_saliency: saliency, context, starts } = level(), k = state.index;
    // One for each column of the context; the last row may have none.
    const elements = [...$("transcript").querySelectorAll(data.contrasts ? ".given, .said" : ".given, .said, button")], row = k === null ? [] : saliency[k];
    const known = row.filter((v) => v != null), low = Math.min(...known), high = Math.max(...known);
    const here = data.contrasts && k !== null ? pair().start : k === null ? null : starts[k];  // the place of the chosen one in the text
    buttons().forEach((button, j) => button.setAttribute("aria-pressed", j === k));
    elements.forEach((element, j) => {
      const value = j < prefix || j - prefix < here || data.contrasts ? row[j] : null;
      element.style.setProperty("--weight", value == null ? 0 : high > low ? (value - low) / (high - low) : value);
      element.title = value == null ? "" : `influence ${number(value)}`;
      element.classList.toggle("later", k !== null && (data.contrasts ? value == null : j - prefix > here));
    });
    const most = row.map((v, j) => [v, context[j]]).filter(([v]) => v != null).sort((a, b) => b[0] - a[0])[0];
    $("text-legend").replaceChildren(...(most
      ? ["influence of earlier text ", number(low), make("i"), `${number(high)}, most of `, quoted(most[1])]
      : k === null ? [`Choose a ${noun()} to see what made the model write ${data.contrasts ? "this and not that" : "it"}.`] : ["No earlier text."]));
  }

  // The numbers
  function odds() {
    if (state.index === null) {
      const least = data.contrasts.reduce((a, b) => (b.log_odds < a.log_odds ? b : a));
      return [["lowest odds", quoted(`${least.target}, not ${least.foil}`), `, ${number(least.log_odds, 1)} bits`]];
    }
    const { target, foil, log_odds: bits } = pair(), times = 2 ** Math.abs(bits);
    const shown = times > 1e6 ? "over a million" : times >= 10 ? Math.round(times).toLocaleString("en") : times.toFixed(1);
    return [["log-odds", `${number(bits, 1)} bits: `, quoted(bits < 0 ? foil : target), ` is ${shown} times likelier`]];
  }
  function describe() {
    const { shown, probability, sound_bits, text_bits, instruction_bits, heard, reliability } = level(), k = state.index;
    const heading = $("heading");
    if (k === null) heading.replaceChildren(data.contrasts ? "All contrasts" : "The whole sentence");
    else heading.replaceChildren(quoted(shown[k]), make("small", {}, `${noun()} ${k} of ${shown.length}, counted from 0`));
    const sure = k === null ? data.sentence.reliability : reliability[k];
    const entries = [];
    if (data.contrasts) entries.push(...odds());
    else if (k !== null) entries.push(["probability", percent(probability[k], 1)]);
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
      if (instruction_bits[k] != null)
        entries.push(["from the instruction", make("span", { class: "text" }, `${instruction_bits[k].toFixed(1)} bits`)]);
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
      ? "The reliability of this map is not known: one half of the masks drew no map, or a constant one."
      : data.low_reliability[1];
    $("sentence").setAttribute("aria-pressed", k === null);
    $("picture").setAttribute("aria-label", `Evidence over the spectrogram, ${heading.textContent}: ` +
      `strongest at ${strongest}`);
  }

  const listen = spes.listening(() => ({
    map, share: $("share").value / 100, name: state.index === null ? null : level().shown[state.index].trim(),
  }));

  // Choosing
  async function choose(name, index, keepHash) {
    if (state.level !== name || !$("transcript").children.length) { state.level = name; state.index = index; writeTranscript(); }
    state.index = index;
    const chosen = await evidenceOf(name, index);
    if (state.level !== name || state.index !== index) return;  // another one was chosen in the meantime
    map = chosen;
    const shown = index === null ? [data.sentence] : data.levels[name].groups[index].map((k) => data.maps[k]);
    cut = shown.reduce((sum, { scale }) => sum + scale, 0) / shown.length;
    sorted = sizes(map);
    colourTranscript(); describe(); redraw(); listen();
    document.body.dataset.chosen = index === null ? "sentence" : `${kind()}=${index}`;
    document.dispatchEvent(new CustomEvent("chosen", { detail: !keepHash }));  // whether by hand, here
    if (!keepHash) history.replaceState(null, "", `#${document.body.dataset.chosen}`);
  }
  spes.choose = choose;
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
    $(name).addEventListener("input", () => { show(); redraw(); });
  }
  spes.readOut((frame, row) => {
    if (!map) return "";
    const value = map[row * frames + frame], above = shareAbove(Math.abs(value));
    const unit = state.index === null ? data.sentence.unit : data.unit, side = forAndAgainst()[+(value < 0)];
    const more = Math.abs(value) >= 0.999 * cut ? "or more " : "";
    return `${where(frame, row)}: ${amount(Math.abs(value))} ${more}${unit} ${side}, among the top ${above < 0.001 ? "0.1 %" : percent(above, 1)}`;
  });

  const counted = data.levels.tokens.names.length;
  spes.writeSource(data.contrasts ? `${counted} contrast${counted === 1 ? "" : "s"}` : `${counted} tokens`);
  if (data.contrasts) $("sentence").textContent = "all contrasts";
  for (const element of document.querySelectorAll("[data-rows]")) element.hidden = (element.dataset.rows === "contrasts") !== !!data.contrasts;
  dark.addEventListener("change", redraw);
  new ResizeObserver(redraw).observe($("scroller"));
  decode(data.spectrogram).then((values) => { spectrogram = values; return followHash(); });
})();
