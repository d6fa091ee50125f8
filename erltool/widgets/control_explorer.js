// ControlExplorer: the map of where control pays, and the recorded runs of a cell, or of two side by side.
import { controlMap } from "./control_map.js";
import {
  begin,
  choice,
  fillTable,
  fixed,
  floats,
  group,
  make,
  saver,
  select,
  slider,
  statusLine,
  widthOf,
} from "./elements.js";
import { INK, SERIES, lineChart, spanOf } from "./kit.js";
import { crosshair } from "./reading.js";

const END = {
  entropy_end: "entropy at the end, nats/token",
  accuracy_late: "late held-out accuracy",
  accuracy_best: "its best",
  length_end: "length, tokens",
};
const NOTE =
  "Thin: one seed. Thick: mean over seeds, and its 95 % interval. Late: mean over the second half of the steps. Against none: paired by seed, 95 % interval.";
const NARROW = 560; // pixels below which two cells stand under each other

const textOf = (v) => (typeof v === "number" ? String(Number(v.toPrecision(6))) : v);
const inOrder = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
const titleOf = (d, i) => {
  const { control, setting } = d.groups[i];
  const { settings } = d.map;
  return settings.length > 1 || !settings.includes(setting) ? `${control} in ${d.settings[setting]}` : control;
};
// The groups that stand beside a cell's: without control, at random, and its own.
const around = (d, i) => [...new Set([d.groups[i].none, d.groups[i].baseline, i])].filter((k) => k !== null);

// Lines of a metric: of each run, and of a group's mean, with its interval, where all of its runs have a value.
function linesOf(d) {
  const n = floats(d.steps).length;
  const rows = {};
  const kept = {};
  for (const metric of Object.keys(d.metrics)) {
    const all = floats(d.curves[metric]);
    rows[metric] = Array.from({ length: all.length / n }, (_, r) => all.subarray(r * n, (r + 1) * n));
  }
  const meanOf = (runs, quantile) => {
    const made = () => new Float32Array(n).fill(NaN);
    const [y, low, high] = [made(), made(), made()];
    for (let k = 0; k < n; k++) {
      const mean = runs.reduce((sum, v) => sum + v[k], 0) / runs.length;
      const squares = runs.reduce((sum, v) => sum + (v[k] - mean) ** 2, 0);
      const half = quantile ? quantile * Math.sqrt(squares / (runs.length - 1) / runs.length) : NaN;
      [y[k], low[k], high[k]] = [mean, mean - half, mean + half];
    }
    return { y, low, high };
  };
  const lines = (metric, i) => {
    const { control, runs: at, quantile } = d.groups[i];
    const { colour: place, dash } = d.styles[control];
    const colour = place === null ? INK : SERIES[place];
    const runs = at.map((r) => rows[metric][r]);
    const thin = runs.length > 1 ? runs.map((y) => ({ y, colour, dash: "", width: 0.8, opacity: 0.35 })) : [];
    const mean = meanOf(runs, quantile);
    const look = { colour, dash: dash.join(" "), width: 2.4, opacity: 1, label: control };
    return { thin, thick: [{ ...mean, ...look, ...(quantile ? {} : { low: undefined }) }] };
  };
  return (metric, cell) => {
    const of = around(d, cell).map((i) => (kept[`${metric} ${i}`] ??= lines(metric, i)));
    return [...of.flatMap(({ thin }) => thin), ...of.flatMap(({ thick }) => thick)];
  };
}

// A parameter's recorded values: a slider over numbers, or a list where one is a text.
function parameterOf(name, key, values, value, onChange) {
  if (values.every((v) => typeof v === "number")) {
    const shown = make("span", { class: "number" }, textOf(value));
    const range = { min: 0, max: values.length - 1, step: 1, value: values.indexOf(value) };
    const input = slider(`${name} ${key}`, range, (k) => onChange(key, values[k]));
    const show = (v) => {
      input.value = values.indexOf(v);
      shown.textContent = textOf(v);
      input.setAttribute("aria-valuetext", textOf(v));
    };
    show(value);
    return { key, show, node: make("label", {}, key, input, shown) };
  }
  const options = values.map((v, k) => [k, textOf(v)]);
  const list = select(`${name} ${key}`, options, values.indexOf(value), (k) => onChange(key, values[Number(k)]));
  return { key, show: (v) => (list.value = values.indexOf(v)), node: make("label", {}, key, list) };
}

// The parameters of a cell's control that have more than one recorded value in its setting.
function parametersOf(d, cell, change) {
  const { control, setting, parameters } = d.groups[cell];
  const here = [...d.groups.keys()].filter((i) => d.groups[i].control === control && d.groups[i].setting === setting);
  const state = { cell };
  const onChange = (key, value) => {
    const now = d.groups[state.cell].parameters;
    const fits = here.filter((i) => d.groups[i].parameters[key] === value);
    const differing = (i) => Object.entries(d.groups[i].parameters).filter(([k, v]) => now[k] !== v).length;
    change(
      state.cell,
      fits.reduce((a, b) => (differing(b) < differing(a) ? b : a)),
    );
  };
  const name = d.map.settings.length > 1 ? `${control} in ${d.settings[setting]}:` : control;
  const controls = Object.keys(parameters)
    .map((key) => [key, [...new Set(here.map((i) => d.groups[i].parameters[key]))].sort(inOrder)])
    .filter(([, values]) => values.length > 1)
    .map(([key, values]) => parameterOf(name, key, values, parameters[key], onChange));
  const put = (now) => {
    state.cell = now;
    for (const { key, show } of controls) show(d.groups[now].parameters[key]);
  };
  return { here, put, node: make("div", { class: "row" }, ...controls.map(({ node }) => node)) };
}

// A group's row of the table; `alone` for one run, which has no range.
function endRow(d, i) {
  const { control, label, runs, failed, end } = d.groups[i];
  const range = (v, digits) => make("small", {}, `[${fixed(v[1], digits)}, ${fixed(v[2], digits)}]`);
  const cell = (v, digits, alone) => (v ? [fixed(v[0], digits), ...(alone ? [] : [range(v, digits)])] : "\u2013");
  const ends = Object.keys(END).map((k) => cell(end[k], k === "length_end" ? 1 : 3, runs.length === 1));
  const seeds = String(runs.length) + (failed ? `, ${failed} failed` : "");
  const parameters = label.slice(control.length).trim();
  const name = [titleOf(d, i), ...(parameters ? [make("small", {}, parameters)] : [])];
  const against = end.difference;
  return [name, seeds, ...ends, cell(against, 3, against?.[1] === null)];
}
const headOf = (d) => [
  "mean over seeds [lowest, highest]",
  "seeds",
  ...Object.values(END),
  `${d.map.accuracy}, against none`,
];

// A list of the groups whose settings have nothing to compare, which the map leaves out; null without any.
function othersList(d, pick) {
  const others = [...d.groups.keys()].filter((i) => !d.map.settings.includes(d.groups[i].setting));
  if (!others.length) return null;
  const options = [["", "choose one"], ...others.map((i) => [i, titleOf(d, i)])];
  const list = select("also recorded", options, "", (i) => i && pick(Number(i)));
  const put = (cells) => (list.value = others.find((i) => cells.includes(i)) ?? "");
  return { put, node: make("label", {}, "also recorded", list) };
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

// The cells on show: of each its title, the sliders of its parameters and its charts, whose axes all cells share.
function cellsOf(d, lines, change) {
  const steps = floats(d.steps);
  const node = make("div", { class: "cells" });
  let panels = [];
  const panel = (cell) => {
    const parameters = parametersOf(d, cell, change);
    const [title, charts] = [make("h4"), make("div", { class: "charts" })];
    return { parameters, title, charts, node: make("section", {}, title, parameters.node, charts) };
  };
  const paint = (cells, metrics, width) => {
    const same = (i) => panels[i]?.parameters.here.includes(cells[i]);
    if (panels.length !== cells.length || !cells.every((_, i) => same(i))) {
      panels = cells.map(panel);
      node.replaceChildren(...panels.map((p) => p.node));
    }
    const beside = cells.length > 1 && width >= NARROW;
    const wide = Math.floor((width - (beside ? 12 : 0)) / (beside ? 2 : 1));
    node.classList.toggle("beside", beside);
    // The axes span all recorded values of the controls on show: they hold still while a slider moves, and so do the
    // lines beside the one that changes.
    const reach = panels.flatMap(({ parameters }) => parameters.here);
    const end = Math.max(...reach.flatMap((c) => around(d, c)).map((i) => d.groups[i].last));
    const drawn = metrics.map((metric) => {
      const all = cells.map((c) => lines(metric, c));
      const span = spanOf(reach.flatMap((c) => lines(metric, c)));
      return all.map((one) => lineChart(d.metrics[metric], steps, end, one, wide, 190, span));
    });
    panels.forEach(({ title, charts, parameters }, i) => {
      parameters.put(cells[i]);
      title.textContent = titleOf(d, cells[i]);
      metrics.forEach((metric, m) => {
        const chart = drawn[m][i];
        const labels = around(d, cells[i]).map((k) => d.groups[k].label);
        const where = `${d.metrics[metric]} by optimiser step, ${titleOf(d, cells[i])}: ${labels.join("; ")}`;
        chart.setAttribute("aria-label", `${where}; the table below has the end values`);
        if (chart.plot) chart.plot.title = titleOf(d, cells[i]);
      });
      charts.replaceChildren(...(metrics.length ? metrics.map((_, m) => drawn[m][i]) : ["choose a metric above"]));
    });
  };
  return { node, paint };
}

function statusOf(d, cells) {
  const value = (v) => (v ? fixed(v[0]) : "not measured");
  const ends = cells.map((i) => {
    const { end } = d.groups[i];
    return `${titleOf(d, i)} ${value(end.entropy_end)} and ${value(end.accuracy)}`;
  });
  return `entropy at the end and ${d.map.accuracy}: ${ends.join("; ")}. ${NOTE}`;
}

function render({ model, el }) {
  const { root } = begin(model, el);
  const d = model.get("data");
  if (!d.groups.length) return;

  const save = saver(model);
  const put = (name, value) => {
    model.set(name, value);
    save();
  };
  const shown = () => model.get("cells");
  // A cell that is pressed comes beside the last one; pressed again it goes, but for the only one.
  const pick = (at) => {
    const now = shown();
    if (now.includes(at))
      return (
        now.length > 1 &&
        put(
          "cells",
          now.filter((i) => i !== at),
        )
      );
    return put("cells", [...now, at].slice(-2));
  };
  const map = controlMap(d, pick);
  const others = othersList(d, pick);
  const metrics = metricBoxes(model, put);
  const cells = cellsOf(d, linesOf(d), (was, now) =>
    put(
      "cells",
      shown().map((i) => (i === was ? now : i)),
    ),
  );
  const table = make("table", { "aria-label": "end values" });
  const status = statusLine();
  const read = crosshair(cells.node, "read the values at a step");
  if (others) metrics.node.append(others.node);
  root.append(make("div", { class: "scrolls" }, map.node), metrics.node, read.node, status.node);
  root.append(make("div", { class: "scrolls" }, table));

  const paint = () => {
    const now = shown();
    map.paint(now);
    metrics.show();
    others?.put(now);
    cells.paint(now, model.get("metrics"), width.now());
    read.put();
    const rows = [...new Set(now.flatMap((i) => around(d, i)))];
    fillTable(
      table,
      headOf(d),
      rows.map((i) => endRow(d, i)),
    );
    status.say(statusOf(d, now));
  };
  const width = widthOf(root, paint);
  model.on("change:cells change:metrics", paint);
  paint();
  return width.stop;
}
export default { render };
