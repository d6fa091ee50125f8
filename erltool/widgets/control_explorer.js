// ControlExplorer: recorded runs by control and parameter, each group with its mean over seeds.
import {
  begin,
  choice,
  fillTable,
  fixed,
  floats,
  group,
  make,
  row,
  saver,
  select,
  showIf,
  slider,
  statusLine,
} from "./elements.js";
import { lineChart, swatch } from "./kit.js";

const ALWAYS = { none: "the run without control", "random-clip": "the random baseline: tokens chosen at random" };
const END = {
  entropy_end: "entropy at the end, nats/token",
  accuracy_late: "late held-out accuracy",
  accuracy_best: "its best",
  length_end: "length, tokens",
};
const HEAD = ["mean over seeds [lowest, highest]", "seeds", ...Object.values(END), "late accuracy against none"];
const NOTE =
  "Late: mean over the second half of the steps. Against none: mean difference and its 95 % interval, paired by seed.";

const textOf = (v) => (typeof v === "number" ? String(Number(v.toPrecision(6))) : v);
const inOrder = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));

// The groups of runs, and which of them can be shown in the setting that is chosen.
function groupsOf(model) {
  const { groups } = model.get("data");
  const inSetting = (control) =>
    [...groups.keys()].filter((i) => groups[i].control === control && groups[i].setting === model.get("setting"));
  // Of these groups the one that differs from group `at` in the fewest parameters; without it, the one with most runs.
  const nearest = (candidates, at) => {
    const now = groups[at]?.parameters;
    const differing = (i) => Object.entries(groups[i].parameters).filter(([k, v]) => now[k] !== v).length;
    const cost = (i) => (now ? differing(i) : -groups[i].runs.length);
    return candidates.reduce((a, b) => (cost(b) < cost(a) ? b : a));
  };
  return { groups, inSetting, nearest };
}

// Lines of a metric: of each run, and of a group's mean where all of its runs have a value.
function linesOf(d) {
  const n = floats(d.steps).length;
  const rows = {};
  const means = {};
  for (const metric of Object.keys(d.metrics)) {
    const all = floats(d.curves[metric]);
    rows[metric] = Array.from({ length: all.length / n }, (_, r) => all.subarray(r * n, (r + 1) * n));
  }
  const ofRuns = (metric, i) => d.groups[i].runs.map((r) => rows[metric][r]);
  const meanOf = (metric, i) => {
    const runs = ofRuns(metric, i);
    return Float32Array.from({ length: n }, (_, k) => runs.reduce((sum, y) => sum + y[k], 0) / runs.length);
  };
  return (metric, shown) => {
    const thin = shown.flatMap((i) => {
      const { colour } = d.styles[d.groups[i].control];
      const runs = ofRuns(metric, i);
      return runs.length > 1 ? runs.map((y) => ({ y, colour, dash: "", width: 0.8, opacity: 0.4 })) : [];
    });
    const thick = shown.map((i) => {
      const { colour, dash } = d.styles[d.groups[i].control];
      const y = (means[`${metric} ${i}`] ??= meanOf(metric, i));
      return { y, colour, dash: dash.join(" "), width: 2.4, opacity: 1 };
    });
    return [...thin, ...thick];
  };
}

// A parameter's recorded values: a slider over numbers, or a list where one is a text. `show` puts it to a value.
function parameterOf(control, key, values, onChange) {
  const name = `${control} ${key}`;
  if (values.every((v) => typeof v === "number")) {
    const shown = make("span", { class: "number" });
    const range = { min: 0, max: values.length - 1, step: 1, value: 0 };
    const input = slider(name, range, (k) => onChange(key, values[k]));
    const show = (value) => {
      input.value = values.indexOf(value);
      shown.textContent = textOf(value);
      input.setAttribute("aria-valuetext", textOf(value));
    };
    return { key, node: make("label", {}, key, input, shown), show };
  }
  const options = values.map((v, k) => [k, textOf(v)]);
  const list = select(name, options, 0, (k) => onChange(key, values[Number(k)]));
  return { key, node: make("label", {}, key, list), show: (value) => (list.value = values.indexOf(value)) };
}

// A control with its box, its line's look and the parameters that have more than one recorded value.
function controlRow(model, control, choose) {
  const { groups, inSetting, nearest } = groupsOf(model);
  const here = inSetting(control);
  const at = () => model.get("chosen")[control];
  const box = choice("checkbox", "", (on) => choose(control, on ? nearest(here, -1) : undefined));
  const { colour, dash } = model.get("data").styles[control];
  box.node.append(swatch({ colour, dash: dash.join(" ") }), control);
  if (control in ALWAYS) {
    box.input.disabled = true;
    box.node.title = ALWAYS[control];
  }
  const change = (key, value) => {
    const fits = here.filter((i) => groups[i].parameters[key] === value);
    choose(control, nearest(fits, at() ?? -1));
  };
  const parameters = Object.keys(groups[here[0]].parameters)
    .map((key) => [key, [...new Set(here.map((i) => groups[i].parameters[key]))].sort(inOrder)])
    .filter(([, values]) => values.length > 1)
    .map(([key, values]) => parameterOf(control, key, values, change));
  const show = () => {
    const chosen = groups[at()];
    box.input.checked = Boolean(chosen);
    for (const p of parameters) {
      showIf(p.node, chosen);
      if (chosen) p.show(chosen.parameters[p.key]);
    }
  };
  return { node: make("div", { class: "choice" }, box.node, ...parameters.map((p) => p.node)), show };
}

// A group's row of the table; `alone` for one run, which has no range.
function endRow({ label, runs, failed, end }) {
  const range = (v, digits) => make("small", {}, `[${fixed(v[1], digits)}, ${fixed(v[2], digits)}]`);
  const cell = (v, digits, alone) => (v ? [fixed(v[0], digits), ...(alone ? [] : [range(v, digits)])] : "\u2013");
  const ends = Object.keys(END).map((k) => cell(end[k], k === "length_end" ? 1 : 3, runs.length === 1));
  const seeds = String(runs.length) + (failed ? `, ${failed} failed` : "");
  return [label, seeds, ...ends, cell(end.difference, 3)];
}

function statusOf(groups) {
  const value = (v) => (v ? fixed(v[0]) : "not measured");
  const ends = groups.map(({ label, end }) => `${label} ${value(end.entropy_end)} and ${value(end.accuracy_late)}`);
  return `entropy at the end and late held-out accuracy: ${ends.join("; ")}. ${NOTE}`;
}

// Charts of the chosen metrics, side by side, or one that is wide.
function chartsOf(d, lines, metrics, shown) {
  const steps = floats(d.steps);
  const [width, height] = metrics.length === 1 ? [756, 270] : [376, 210];
  const labels = shown.map((i) => d.groups[i].label).join("; ");
  return metrics.map((metric) => {
    const chart = lineChart(d.metrics[metric], steps, d.last, lines(metric, shown), width, height);
    const label = `${d.metrics[metric]} by optimiser step: ${labels}; the table below has the end values`;
    chart.setAttribute("aria-label", label);
    return chart;
  });
}

function settingList(model, put, rebuild) {
  const d = model.get("data");
  const list = select("setting", [...d.settings.entries()], model.get("setting"), (value) => {
    const chosen = model.get("chosen");
    model.set("setting", Number(value));
    const { inSetting, nearest } = groupsOf(model);
    const kept = d.controls.filter((c) => (c in chosen || c in ALWAYS) && inSetting(c).length);
    put("chosen", Object.fromEntries(kept.map((c) => [c, nearest(inSetting(c), chosen[c] ?? -1)])));
    rebuild();
  });
  return { list, node: row(make("label", {}, "setting", list)) };
}

function metricBoxes(model, put) {
  const { metrics } = model.get("data");
  const boxes = Object.entries(metrics).map(([key, name]) => {
    const now = () => model.get("metrics");
    const chosen = (on) => Object.keys(metrics).filter((m) => (m === key ? on : now().includes(m)));
    const box = choice("checkbox", name.replace(/ \(.*/, ""), (on) => put("metrics", chosen(on)));
    return { node: box.node, show: () => (box.input.checked = now().includes(key)) };
  });
  return { node: group("metrics", "show", ...boxes.map((b) => b.node)), show: () => boxes.forEach((b) => b.show()) };
}

function render({ model, el }) {
  const { root } = begin(model, el);
  const d = model.get("data");
  if (!d.groups.length) return;

  const save = saver(model);
  const lines = linesOf(d);
  const put = (name, value) => {
    model.set(name, value);
    save();
  };
  const choose = (control, at) => {
    const { [control]: _, ...others } = model.get("chosen");
    put("chosen", at === undefined ? others : { ...others, [control]: at });
  };
  const metrics = metricBoxes(model, put);
  const setting = settingList(model, put, () => rebuild());
  const controls = make("div", { role: "group", "aria-label": "controls" });
  const charts = make("div", { class: "charts" });
  const table = make("table", { "aria-label": "end values" });
  const status = statusLine();
  root.append(metrics.node, ...(d.settings.length > 1 ? [setting.node] : []), controls, charts, table, status.node);

  let rows = [];
  const rebuild = () => {
    const { inSetting } = groupsOf(model);
    rows = d.controls.filter((c) => inSetting(c).length).map((c) => controlRow(model, c, choose));
    controls.replaceChildren(...rows.map((r) => r.node));
    paint();
  };
  const paint = () => {
    const chosen = model.get("chosen");
    const shown = d.controls.filter((c) => c in chosen).map((c) => chosen[c]);
    const now = model.get("metrics");
    const groups = shown.map((i) => d.groups[i]);
    setting.list.value = model.get("setting");
    metrics.show();
    for (const row of rows) row.show();
    charts.replaceChildren(...(now.length ? chartsOf(d, lines, now, shown) : ["choose a metric above"]));
    fillTable(table, HEAD, groups.map(endRow));
    status.say(statusOf(groups));
  };
  model.on("change:setting", () => {
    if (Number(setting.list.value) !== model.get("setting")) rebuild();
  });
  model.on("change:chosen change:metrics", paint);
  rebuild();
}
export default { render };
