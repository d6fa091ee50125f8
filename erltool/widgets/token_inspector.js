// TokenInspector: a response's tokens in colour, and which of them Clip-Cov and KL-Cov would take.
import {
  begin,
  button,
  doubles,
  fillTable,
  fixed,
  floats,
  make,
  row,
  saver,
  select,
  showIf,
  slider,
  statusLine,
} from "./elements.js";
import { clipCov, effects, falling, klCov } from "./selection.js";

// Colours for colour-blind readers: cividis for amounts, orange to violet through white where 0 means something.
const CIVIDIS = [
  [0, 34, 78],
  [26, 56, 111],
  [67, 78, 108],
  [97, 101, 111],
  [125, 124, 120],
  [155, 148, 118],
  [188, 174, 108],
  [222, 201, 88],
  [254, 232, 56],
];
const PUOR = [
  [127, 59, 8],
  [190, 99, 10],
  [239, 158, 60],
  [254, 215, 162],
  [246, 246, 247],
  [206, 205, 228],
  [152, 141, 190],
  [93, 55, 144],
  [45, 0, 75],
];
const PAGE = 1000; // tokens in the page at a time
const HIGHEST = 8; // tokens in the table
const QUANTITIES = {
  covariance: "covariance",
  push: "push",
  entropy: "entropy",
  log_prob: "log-prob",
  ratio: "ratio",
  selected: "taken by the run",
};
const CENTRES = { covariance: 0, push: 0, ratio: 1 }; // A quantity's neutral value is white.
const NUMBERS = [...Object.keys(QUANTITIES), "old_log_prob", "advantage"];

const between = (stops, t) => {
  const x = Math.max(0, Math.min(1, t)) * (stops.length - 1);
  const i = Math.min(stops.length - 2, Math.floor(x));
  return stops[i].map((c, k) => Math.round(c + (stops[i + 1][k] - c) * (x - i)));
};
const luminance = (rgb) => {
  const [r, g, b] = rgb.map((c) => ((c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
// Colours of a quantity. They span 2 % to 98 % of the step's tokens: few extremes leave the rest apart.
const colouring = (d, quantity) => {
  const sorted = d[quantity].toSorted();
  const at = (fraction) => sorted[Math.round(fraction * (sorted.length - 1))];
  const [low, high] = quantity === "selected" ? [0, 1] : [at(0.02), at(0.98)];
  const centre = CENTRES[quantity];
  if (centre === undefined) {
    const colour = (v) => between(CIVIDIS, (v - low) / Math.max(high - low, 1e-9));
    return { map: CIVIDIS, low, high, colour };
  }
  const reach = Math.max(Math.abs(low - centre), Math.abs(high - centre), 1e-6);
  const colour = (v) => between(PUOR, 0.5 + (v - centre) / (2 * reach));
  return { map: PUOR, low: centre - reach, high: centre + reach, colour };
};

// The step's tokens as the kernel sent them, with the orders in which the controls select.
const stepOf = (data) => {
  const d = { ...data, n: data.texts.length, begins: [...data.begins, data.texts.length] };
  for (const name of NUMBERS) if (data[name]) d[name] = doubles(data[name]);
  for (const name of ["keys", "forks"]) d[name] = floats(data[name]);
  return Object.assign(d, { byCovariance: falling(d.covariance), byKey: falling(d.keys), colourings: {} });
};

function tokenWords(d, i, response) {
  const numbers =
    `covariance ${fixed(d.covariance[i])}, ${d.push ? `push ${fixed(d.push[i])}, ` : ""}log-prob ${fixed(d.log_prob[i])}, entropy ${fixed(d.entropy[i])}, ` +
    `advantage ${fixed(d.advantage[i], 2)}, ratio ${fixed(d.ratio[i])}`;
  const fork = d.forks[i] ? "; a fork: the response had a choice here" : "";
  return `token ${i - d.begins[response] + 1} \u201c${d.texts[i]}\u201d: ${numbers}${fork}`;
}

// The tokens of a page as a listbox: one option is selected and has the focus, arrows move it.
function tokenList(tell) {
  const attributes = { role: "listbox", "aria-orientation": "horizontal", "aria-label": "tokens of the response" };
  const node = make("div", { class: "tokens", ...attributes });
  const list = { node, first: 0, spans: [] };
  let selected = 0;
  const choose = (k) => {
    for (const [at, on] of [
      [selected, false],
      [k, true],
    ]) {
      list.spans[at].tabIndex = on ? 0 : -1;
      list.spans[at].setAttribute("aria-selected", String(on));
    }
    selected = k;
  };
  const option = (d, i) => {
    const attributes = { role: "option", "aria-selected": "false", tabindex: -1 };
    const span = make("span", { class: d.forks[i] ? "token fork" : "token", ...attributes }, d.texts[i]);
    span.addEventListener("mouseenter", () => tell(i));
    span.addEventListener("focus", () => {
      choose(i - list.first);
      tell(i);
    });
    return span;
  };
  node.addEventListener("keydown", (e) => {
    e.stopPropagation();
    const last = list.spans.length - 1;
    const to = { ArrowRight: selected + 1, ArrowLeft: selected - 1, Home: 0, End: last }[e.key];
    if (to === undefined || !list.spans[to]) return;
    e.preventDefault();
    list.spans[to].focus();
  });
  list.lay = (d, first, end) => {
    list.first = first;
    list.spans = d.texts.slice(first, end).map((_, k) => option(d, first + k));
    node.replaceChildren(...list.spans);
    selected = 0;
    if (list.spans.length) choose(0);
  };
  return list;
}

// A long response in parts.
function pager(turned) {
  const words = make("span");
  const state = { page: 0, count: 1 };
  const turn = (by) => {
    state.page = Math.max(0, Math.min(state.count - 1, state.page + by));
    turned();
  };
  const node = row(
    button("Earlier tokens", () => turn(-1)),
    words,
    button("Later tokens", () => turn(1)),
  );
  const put = (tokens) => {
    state.count = Math.ceil(tokens / PAGE);
    words.textContent = `part ${state.page + 1} of ${state.count}`;
    showIf(node, state.count > 1);
  };
  return { node, put, state };
}

// Sliders of the controls' traits; those with `log` are moved on a logarithmic scale.
function controlSliders(model, set) {
  const number = (trait, name, min, max, log = false) => {
    const shown = make("span", { class: "number" });
    const [to, from] = log ? [(v) => 10 ** v, Math.log10] : [(v) => v, (v) => v];
    const range = { min: from(min), max: from(max), step: 0.05, value: from(model.get(trait)) };
    const input = slider(name, range, (v) => set(trait, to(v)));
    const put = () => {
      const v = model.get(trait);
      shown.textContent = log ? v.toPrecision(2) : fixed(v, 2);
      input.setAttribute("aria-valuetext", shown.textContent);
      if (document.activeElement !== input) input.value = from(v);
    };
    return { trait, put, node: make("label", {}, make("span", { class: "name" }, name), input, shown) };
  };
  return [
    number("low", "Clip-Cov low", -2, 8),
    number("high", "Clip-Cov high", -2, 12),
    number("clip_fraction", "Clip-Cov fraction", 1e-4, 1, true),
    number("kl_fraction", "KL-Cov fraction", 1e-4, 1, true),
    number("coef", "KL-Cov coef", 0, 5),
  ];
}

// Colours the tokens by the chosen quantity, and says what the colours mean.
function colourLegend(model, list) {
  const node = make("p", { class: "row" });
  const mark = (name, text) => [make("span", { class: `mark ${name}` }, text), make("span", {}, "a fork")];
  const paint = (d) => {
    const quantity = model.get("quantity");
    const { map, low, high, colour } = (d.colourings[quantity] ??= colouring(d, quantity));
    list.spans.forEach((span, k) => {
      const rgb = colour(d[quantity][list.first + k]);
      span.style.background = `rgb(${rgb})`;
      span.style.color = luminance(rgb) > 0.179 ? "#000" : "#fff";
    });
    const style = `background: linear-gradient(to right, ${map.map((c) => `rgb(${c})`)})`;
    const meaning = quantity === "selected" ? "1: taken by the run's control" : "2 % to 98 % of the step's tokens";
    node.replaceChildren(
      make("span", {}, fixed(low)),
      make("span", { class: "map", "aria-hidden": "true", style }),
      make("span", {}, fixed(high)),
      make("span", {}, meaning),
      ...(d.forks.some((x) => x) ? mark("fork", "boxed") : []),
    );
  };
  return { node, paint };
}

// Marks the tokens that each control would take, and says what is left of the mean covariance.
function controlEffects(model, list) {
  const lines = [0, 1, 2].map(() => make("p"));
  const mark = (name, text) => make("span", { class: `mark ${name}` }, text);
  const paint = (d) => {
    const band = { low: model.get("low"), high: model.get("high"), fraction: model.get("clip_fraction") };
    const clip = clipCov(d.covariance, d.byKey, band);
    const kl = klCov(d.byCovariance, model.get("kl_fraction"));
    const left = effects(d, clip, kl, model.get("coef"));
    list.spans.forEach((span, k) => {
      span.classList.toggle("clip", clip.has(list.first + k));
      span.classList.toggle("kl", kl.has(list.first + k));
    });
    const silent = d.ratio.every((x) => x === 1);
    const why = silent ? " (every ratio is 1: on the first update after sampling KL-Cov's penalty is 0)" : "";
    const takes = (chosen, mean) => `takes ${chosen.size} of ${d.n} tokens and leaves ${fixed(mean, 4)}`;
    lines[0].textContent = `mean covariance ${fixed(left.none, 4)} nats: to first order the entropy falls by it, up to the step size`;
    lines[1].replaceChildren(mark("clip", "Clip-Cov"), ` (line below) ${takes(clip, left.clip)}`);
    lines[2].replaceChildren(mark("kl", "KL-Cov"), ` (line above) ${takes(kl, left.kl)}${why}`);
  };
  return { node: make("div", {}, ...lines), paint };
}

function highestTokens(table, d) {
  const shown = ["covariance", "push", "log_prob", "entropy"].filter((name) => d[name]);
  const responseOf = (i) => d.begins.findIndex((begin, r) => begin <= i && i < d.begins[r + 1]) + 1;
  const rows = d.byCovariance.slice(0, HIGHEST).map((i) => {
    const numbers = shown.map((name) => fixed(d[name][i]));
    return [d.texts[i], ...numbers, fixed(d.advantage[i], 2), String(responseOf(i))];
  });
  fillTable(table, ["token", ...shown.map((name) => QUANTITIES[name]), "advantage", "response"], rows);
}

// Lists of the step, the response and what the tokens are coloured by. `read` is for new tokens, `put` for a new choice.
function pickers(model, set) {
  const number = (name) => (v) => set(name, Number(v));
  const step = select("step", [], "", number("step"));
  const response = select("response", [], "", number("response"));
  const colour = select("colour by", [], "", (v) => set("quantity", v));
  const options = (list, names) =>
    list.replaceChildren(...names.map(([value, name]) => make("option", { value }, name)));
  options(
    step,
    model.get("steps").map((s) => [s, String(s)]),
  );
  const put = () => {
    step.value = model.get("step");
    response.value = model.get("response");
    colour.value = model.get("quantity");
  };
  const read = (d) => {
    options(
      response,
      d.prompts.map((p, i) => [i, `${i + 1}: ${p.slice(0, 24)}, reward ${d.rewards[i]}`]),
    );
    options(
      colour,
      d.quantities.map((name) => [name, QUANTITIES[name]]),
    );
  };
  const labelled = (name, list) => make("label", {}, name, list);
  const node = row(labelled("step", step), labelled("response", response), labelled("colour", colour));
  return { node, put, read };
}

function render({ model, el }) {
  const { root } = begin(model, el);
  if (model.get("problem")) return;

  const save = saver(model);
  const set = (name, value) => {
    model.set(name, value);
    save();
  };
  let d;
  const detail = statusLine();
  const list = tokenList((i) => detail.say(tokenWords(d, i, model.get("response"))));
  const pages = pager(() => lay());
  const lists = pickers(model, set);
  const legend = colourLegend(model, list);
  const sliders = controlSliders(model, set);
  const marks = controlEffects(model, list);
  const note = make("p", { class: "note", role: "status" });
  const prompt = make("p");
  const table = make("table", { "aria-label": "tokens with the highest covariance" });
  root.append(lists.node, note, prompt, list.node, pages.node, legend.node, detail.node);
  root.append(make("div", { class: "row wide" }, ...sliders.map((s) => s.node)), marks.node, table);

  const lay = () => {
    const r = model.get("response");
    const first = d.begins[r] + pages.state.page * PAGE;
    const told = d.told[r] && `, ${d.told[r]}`;
    prompt.textContent = `prompt \u201c${d.prompts[r]}\u201d, reward ${d.rewards[r]}${told}`;
    list.lay(d, first, Math.min(d.begins[r + 1], first + PAGE));
    pages.put(d.begins[r + 1] - d.begins[r]);
    legend.paint(d);
    paint();
  };
  const paint = () => {
    for (const s of sliders) s.put();
    marks.paint(d);
  };
  const another = () => {
    pages.state.page = 0;
    lists.put();
    lay();
  };
  const read = () => {
    d = stepOf(model.get("data"));
    note.textContent = d.note;
    lists.read(d);
    highestTokens(table, d);
    another();
  };
  model.on("change:data", read);
  model.on("change:response", another);
  model.on("change:quantity", () => {
    lists.put();
    legend.paint(d);
  });
  model.on(sliders.map((s) => `change:${s.trait}`).join(" "), paint);
  read();
}
export default { render };
