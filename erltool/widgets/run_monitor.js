// RunMonitor: buttons, numbers, alarms and curves of a run that trains beside the notebook, or that is followed.
import {
  ask,
  button,
  fixed,
  floats,
  make,
  panel,
  problemLine,
  reducedMotion,
  row,
  showIf,
  statusLine,
  throttled,
} from "./elements.js";
import { followed } from "./following.js";
import { lineChart } from "./kit.js";
import { steered } from "./steering.js";

const COLOURS = { policy_entropy: "#0072B2", reward: "#D55E00", eval_accuracy: "#009E73", mean_covariance: "#CC79A7" };
const WHILE = {
  start: (state, data) => state === "paused" || (data.startable && state !== "running" && state !== "done"),
  pause: (state) => state === "running",
  stop: (state) => state === "running" || state === "paused",
};
const START = { paused: "Resume", stopped: "Go on", failed: "Go on" };
const ANNOUNCED = 1000; // ms between two alarms that a screen reader announces

const duration = (s) =>
  s < 90 ? `${Math.round(s)} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`;

function numbersOf(d, state) {
  const metrics = Object.entries(d.latest).map(([m, v]) => `${d.metrics[m].replace(/ \(.*/, "")} ${fixed(v)}`);
  const left = d.steps - d.step;
  const pace =
    state === "running" && d.rate ? [`${fixed(d.rate, 1)} steps/s`, `about ${duration(left / d.rate)} to go`] : [];
  return [`step ${d.step} of ${d.steps}`, ...pace, ...metrics].join(" \u00b7 ");
}

function statusOf(d, state, asked) {
  if (d.asked || asked)
    return `${state}: ${d.asked || asked} asked for${d.asked ? ", at the end of the iteration" : ""}`;
  if (d.runs?.length && d.run < 0) return "waits for a run to be chosen";
  if (d.said) return { running: "following", paused: "paused: the run itself goes on" }[state] ?? state;
  return state === "running" && !d.step ? "running: loading the policy" : state;
}

function chartsOf(d) {
  const at = floats(d.at);
  return Object.entries(d.metrics).map(([metric, title]) => {
    const curve = { y: floats(d.curves[metric]), colour: COLOURS[metric], dash: "", width: 1.8, opacity: 1 };
    const chart = lineChart(title, at, d.steps, [curve], 376, 180);
    const last = metric in d.latest ? fixed(d.latest[metric]) : "not measured yet";
    chart.setAttribute("aria-label", `${title} by optimiser step: ${last}`);
    return chart;
  });
}

// A button that cannot act stays where it is: one that vanished would take the keyboard's focus along.
function buttonsOf(model, press) {
  const able = (name) => WHILE[name](model.get("state"), model.get("data"));
  const nodes = ["Start", "Pause", "Stop"].map((text) => {
    const name = text.toLowerCase();
    return [name, button(text, () => able(name) && press(name))];
  });
  const paint = () => {
    for (const [name, node] of nodes) node.setAttribute("aria-disabled", String(!able(name)));
    nodes[0][1].textContent = START[model.get("state")] ?? "Start";
  };
  return { nodes: nodes.map(([, node]) => node), paint };
}

function alarmList(model) {
  const list = make("ul", { class: "alarms" }); // a role of its own would take the items' list from them
  const node = make("div", { role: "log", "aria-label": "alarms" }, list);
  const show = throttled(() => {
    const alarms = model.get("alarms");
    if (list.childElementCount > alarms.length) list.replaceChildren();
    list.append(...alarms.slice(list.childElementCount).map((alarm) => make("li", {}, alarm)));
  }, ANNOUNCED);
  return { node, show };
}

function render({ model, el }) {
  const root = panel();
  const wrong = problemLine(model);
  const bar = make("progress", { "aria-label": "steps made" });
  const numbers = make("p", { class: "status" });
  const charts = make("div", { class: "charts" });
  const status = statusLine();
  const alarms = alarmList(model);
  let asked = "";
  let answered = () => {};
  const buttons = buttonsOf(model, (name) => {
    asked = name;
    paint();
    answered();
    answered = ask(model, { command: name }, (words) => status.say(words));
  });
  root.append(make("p", {}, model.get("data").about), row(...buttons.nodes, bar), wrong.node, numbers, status.node);
  const { steering, said } = model.get("data");
  const more = said ? followed(model) : steering ? steered(model) : null;
  root.append(...(said ? [more.node, alarms.node] : [alarms.node, more ? more.node : charts]));
  el.append(root);

  const paint = () => {
    const d = model.get("data");
    const state = model.get("state");
    buttons.paint();
    bar.max = Math.max(1, d.steps);
    bar.value = d.step;
    showIf(bar, !said || d.known);
    numbers.textContent = said ? d.head : numbersOf(d, state);
    status.say(statusOf(d, state, asked));
    wrong.show();
    alarms.show();
    if (more) more.paint();
    else if (d.steps) charts.replaceChildren(...chartsOf(d));
  };
  const soon = throttled(() => requestAnimationFrame(paint), reducedMotion() ? 1000 : 50);
  model.on("change:data change:state change:problem change:alarms change:dials", () => {
    asked = "";
    answered();
    soon();
  });
  paint();
}
export default { render };
