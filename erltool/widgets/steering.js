// A run that is steered: dials, charts beside recorded runs, the law with its band, responses, and the score.
import { fillTable, fixed, floats, group, keepKeys, make, row, throttled } from "./elements.js";
import { lineChart, swatch } from "./kit.js";
import { lawChart } from "./law_chart.js";

// The variables are the theme's; without them the ground is white.
const RUN = "var(--erltool-1, #0072B2)";
const BESIDE = {
  none: { colour: "var(--erltool-quiet, #767676)", dash: "6 3" },
  best: { colour: "var(--erltool-3, #009E73)", dash: "8 3 2 3" },
};
const CHART = [312, 170];
const LOW = 112; // pixels, height of a chart of a dial
const READ = 1000; // ms for which a response stays

const label = (v) => String(Number(v.toPrecision(4)));

// --- dials ---

// A dial goes from notch to notch. It is turned when it is let go, or by a key: a share that is only passed by would act.
function dial(model, { field, name, notches }) {
  const at = () => Math.max(0, notches.indexOf(model.get("dials")[field]));
  const input = keepKeys(
    make("input", { type: "range", min: 0, max: notches.length - 1, step: 1, "aria-label": name }),
  );
  const shown = make("output", { class: "number" });
  const say = () => {
    const text = label(notches[input.value]);
    shown.textContent = text;
    input.setAttribute("aria-valuetext", text);
  };
  input.addEventListener("input", say);
  input.addEventListener("change", () => {
    model.set("dials", { ...model.get("dials"), [field]: notches[input.value] });
    model.save_changes();
  });
  const paint = () => {
    if (document.activeElement !== input || !input.matches(":active")) input.value = at();
    input.disabled = ["done", "failed"].includes(model.get("state"));
    say();
  };
  return { node: make("label", {}, name, input, shown), paint };
}

function dials(model) {
  const all = model.get("data").steering.dials.map((about) => dial(model, about));
  const next = make("p", { class: "status" });
  const paint = () => {
    const { next: numbers, schedule } = model.get("data").steering;
    for (const one of all) one.paint();
    const at = [...new Set(schedule.split("/").map((change) => change.split(":")[0]))];
    const past = schedule ? ` Turned at update${at.length > 1 ? "s" : ""} ${at.join(", ")}.` : "";
    const over = ["done", "failed"].includes(model.get("state"));
    next.textContent = `${over ? "" : `The next update has ${numbers}.`}${past}`.trim();
  };
  const turning = group("dials", ...all.map(({ node }) => node));
  return { node: make("div", {}, turning, next), paint };
}

// --- charts ---

const drawn = (model) => model.get("recorded").filter((arm) => arm.drawn);
const look = (arm) => ({ ...BESIDE[arm.arm], label: arm.label });

// What the kernel sends once is decoded once.
const decoded = new WeakMap();
function curvesOf(arm) {
  if (!decoded.has(arm)) {
    const curves = Object.fromEntries(Object.entries(arm.curves).map(([m, bytes]) => [m, floats(bytes)]));
    decoded.set(arm, { curves, h: floats(arm.law.entropy), r: floats(arm.law.performance) });
  }
  return decoded.get(arm);
}

function metricChart(model, d, metric, title, at) {
  const beside = drawn(model)
    .filter((arm) => arm.curves[metric])
    .map((arm) => ({ ...look(arm), y: curvesOf(arm).curves[metric], width: 1.6, opacity: 1 }));
  const own = { y: floats(d.curves[metric]), colour: RUN, dash: "", width: 2.2, opacity: 1, label: "this run" };
  const chart = lineChart(title, at, d.steps, [...beside, own], ...CHART);
  const last = metric in d.latest ? fixed(d.latest[metric]) : "not measured yet";
  chart.setAttribute("aria-label", `${title} by optimiser step, beside recorded runs: ${last}`);
  return chart;
}

function dialChart(d, { field, name }, at) {
  const y = floats(d.curves[`control_${field}`]);
  const chart = lineChart(name, at, d.steps, [{ y, colour: RUN, dash: "", width: 2.2, opacity: 1 }], CHART[0], LOW);
  chart.setAttribute("aria-label", `${name} by optimiser step, as it acted`);
  return chart;
}

function chartsOf(model) {
  const d = model.get("data");
  const at = floats(d.at);
  const metrics = Object.entries(d.metrics).map(([metric, title]) => metricChart(model, d, metric, title, at));
  const turned = d.steering.dials.map((about) => dialChart(d, about, at));
  const beside = drawn(model).map((arm) => ({ ...look(arm), ...curvesOf(arm) }));
  const words = { title: "the law: held-out accuracy, sampled", across: "policy entropy (nats/token)", span: [0, 1] };
  const law = lawChart({ ...d.steering.law, ...words }, beside, RUN, CHART);
  return [...metrics, law, make("div", {}, ...turned)];
}

// Which line is which, once for all charts.
function legend(model) {
  const arms = drawn(model);
  if (!arms.length) return row();
  const name = (text, look) => make("span", {}, swatch(look), ` ${text}`);
  const seeds = (arm) => `${arm.label} (recorded, mean of ${arm.seeds} seeds)`;
  return row(name("this run", { colour: RUN, dash: "" }), ...arms.map((arm) => name(seeds(arm), look(arm))));
}

// --- words ---

function samples(model) {
  const table = make("table", { "aria-label": "sampled responses" });
  const paint = throttled(() => {
    const rows = model
      .get("data")
      .steering.samples.map(({ prompt, response, reward, strategy }) => [
        prompt,
        response,
        reward > 0 ? "right" : "wrong",
        strategy,
      ]);
    fillTable(table, rows.length ? ["prompt", "a response", "", "strategy"] : [], rows);
  }, READ);
  return { node: table, paint };
}

function score(model) {
  const table = make("table", { "aria-label": "score" });
  const schedule = make("p", { class: "status" });
  const number = (v) => (Number.isFinite(v) ? fixed(v) : "not measured");
  const paint = () => {
    const { scores, schedule: text } = model.get("data").steering;
    const over = ["done", "stopped"].includes(model.get("state"));
    const beside = model
      .get("recorded")
      .map((arm) => [arm.label, number(arm.score.greedy_accuracy), number(arm.score.entropy_left)]);
    const own = ["this run", number(scores.greedy_accuracy), number(scores.entropy_left)];
    fillTable(table, over ? ["", "greedy accuracy", "entropy left (nats/token)"] : [], over ? [own, ...beside] : []);
    const repeat = text ? `steered:schedule=${text}` : "none: nothing was turned after the start";
    schedule.textContent = over ? `Its schedule, as a controller: ${repeat}` : "";
  };
  return { node: make("div", {}, table, schedule), paint };
}

// --- all of it ---

export const steered = (model) => {
  const parts = [dials(model), samples(model), score(model)];
  const [turning, responses, result] = parts;
  const charts = make("div", { class: "charts" });
  const node = make("div", {}, turning.node, result.node, legend(model), charts, responses.node);
  const paint = () => {
    for (const part of parts) part.paint();
    charts.replaceChildren(...chartsOf(model));
  };
  return { node, paint };
};
