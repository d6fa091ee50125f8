// EntropyLab: a softmax bandit whose probabilities and advantages are dragged, and whose steps are made in the browser.
import {
  entropy,
  entropyChange,
  firstOrderChange,
  firstOrderTerms,
  logSoftmax,
  moved,
  step,
  withProbability,
} from "./bandit.js";
import {
  begin,
  button,
  choice,
  fillTable,
  fixed,
  make,
  reducedMotion,
  row,
  saver,
  slider,
  statusLine,
  widthOf,
} from "./elements.js";
import {
  QUIET,
  SERIES,
  circles,
  endLabels,
  line,
  plotted,
  roomFor,
  scales,
  svg,
  ticks,
  wordOf,
  words,
  xAxis,
  yAxis,
} from "./kit.js";
import { crosshair } from "./reading.js";

const [ENTROPY, PREDICTED] = SERIES;
const HEIGHT = 190;
const MAX_STEPS = 400;
const METHODS = { pg: "policy gradient", npg: "natural policy gradient" };

// Logits z, advantages a and the history of steps: changed here first, then sent to the kernel.
function labOf(model) {
  const save = saver(model);
  const lab = {
    read() {
      lab.z = [...model.get("logits")];
      lab.a = [...model.get("advantages")];
      lab.history = model.get("history").map((h) => [...h]);
    },
    push() {
      model.set({ logits: [...lab.z], advantages: [...lab.a], history: lab.history.map((h) => [...h]) });
      save();
    },
    restart() {
      lab.history = [];
      lab.push();
    },
    next() {
      const change = step(lab.z, lab.a, model.get("eta"), model.get("method"));
      return { change, exact: entropyChange(lab.z, change), predicted: firstOrderChange(lab.z, change) };
    },
    advance() {
      const { change, exact, predicted } = lab.next();
      lab.history.push([entropy(lab.z), exact, predicted]);
      lab.z = moved(lab.z, change);
      lab.push();
    },
    isTheKernels: () =>
      JSON.stringify([model.get("logits"), model.get("advantages")]) === JSON.stringify([lab.z, lab.a]),
  };
  lab.read();
  return lab;
}

const number = () => make("span", { class: "number" });

// One row an action; `changed` is told which slider moved, so that this one is not set while it is dragged.
function actionTable(model, lab, changed) {
  const rows = model.get("names").map((name, i) => {
    const p = slider(`probability of ${name}`, { min: 0.01, max: 0.98, step: 0.01, value: 0.5 }, (value) => {
      lab.z = withProbability(lab.z, i, value);
      changed(p);
    });
    const a = slider(`advantage of ${name}`, { min: -2, max: 2, step: 0.05, value: lab.a[i] }, (value) => {
      lab.a[i] = value;
      changed(a);
    });
    return { name, p, a, shownP: number(), shownA: number(), log: number(), term: number() };
  });
  const node = make("table", { "aria-label": "actions" });
  const cells = rows.map((r) => [r.name, [r.p, r.shownP], [r.a, r.shownA], [r.log], [r.term]]);
  fillTable(node, ["action", "probability", "advantage", "log \u03c0", "adds to dH/d\u03b7"], cells);
  const put = (input, shown, value, source) => {
    if (input !== source) input.value = value;
    shown.textContent = fixed(value, 2);
    input.setAttribute("aria-valuetext", shown.textContent);
  };
  const paint = (source) => {
    const logP = logSoftmax(lab.z);
    const terms = firstOrderTerms(lab.z, lab.next().change);
    rows.forEach((r, i) => {
      put(r.p, r.shownP, Math.exp(logP[i]), source);
      put(r.a, r.shownA, lab.a[i], source);
      r.log.textContent = fixed(logP[i], 2);
      r.term.textContent = fixed(terms[i] / model.get("eta"), 4);
    });
  };
  return { node, paint };
}

function stepSettings(model) {
  const save = saver(model);
  const put = (name, value) => {
    model.set(name, value);
    save();
  };
  const shown = number();
  const range = { min: 0.02, max: 2, step: 0.02, value: model.get("eta") };
  const eta = slider("step size eta", range, (value) => put("eta", value));
  const name = `method-${Math.random().toString(36).slice(2)}`;
  const methods = Object.entries(METHODS).map(([value, text]) =>
    choice("radio", text, () => put("method", value), { name, value }),
  );
  const paint = (source) => {
    if (source !== eta) eta.value = model.get("eta");
    shown.textContent = fixed(model.get("eta"), 2);
    for (const { input } of methods) input.checked = input.value === model.get("method");
  };
  return { node: row(make("label", {}, "step size \u03b7", eta, shown), ...methods.map((m) => m.node)), paint };
}

// Play and Pause. A reader who asked for less motion gets one picture a second, at the same pace of steps.
function playButton(advance) {
  let timer = null;
  const stop = () => {
    clearInterval(timer);
    timer = null;
    node.textContent = "Play";
  };
  const start = () => {
    const [pause, steps] = reducedMotion() ? [1000, 8] : [120, 1];
    node.textContent = "Pause";
    timer = setInterval(() => advance(steps), pause);
  };
  const node = button("Play", () => (timer === null ? start() : stop()));
  return { node, stop, plays: () => timer !== null };
}

// Entropy by step, and beside it the sum of the changes that the theorem predicts.
function entropyChart(lab) {
  const node = svg(756, HEIGHT);
  const paint = (width) => {
    const { history, z } = lab;
    const highest = Math.log(z.length);
    const right = width - roomFor(["entropy", "predicted"]) - 6;
    const last = Math.max(10, history.length);
    const at = scales({ left: 52, right, top: 24, bottom: HEIGHT - 34 }, [0, last], [0, highest]);
    const exact = [...history.map(([h]) => h), entropy(z)];
    let sum = exact[0];
    const predicted = [sum, ...history.map(([, , change]) => (sum += change))];
    const steps = [...exact.keys()];
    const within = predicted.map((h) => Math.max(0, Math.min(highest, h)));
    const lines = [
      { label: "entropy", y: exact, colour: ENTROPY },
      { label: "predicted", y: predicted, colour: PREDICTED },
    ];
    const x = at.px(history.length);
    const ends = lines.map(({ label, y, colour }) => [x + 4, at.inside(y.at(-1)), label, wordOf(colour)]);
    const halves = [0, 0.5, 1].map((half) => [half * highest, fixed(half * highest, 2)]);
    const whole = ticks(0, last, 5).filter(([v]) => Number.isInteger(Number(v.toFixed(6))));
    node.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    node.setAttribute("width", width);
    node.replaceChildren(
      words(52, 14, "entropy (nats), and the sum of the changes that the theorem predicts", { "font-weight": 600 }),
      ...yAxis(at, halves),
      ...xAxis(
        at,
        whole.map(([v]) => [v, String(Math.round(v))]),
      ),
      words(right, HEIGHT - 4, "step", { "text-anchor": "end", "font-size": 11, fill: QUIET }),
      line(at, steps, exact, { stroke: ENTROPY }),
      line(at, steps, within, { stroke: PREDICTED, "stroke-dasharray": "6 4" }),
      circles([[x, at.py(entropy(z))]], { stroke: ENTROPY, fill: ENTROPY }),
      ...endLabels(at, ends),
    );
    plotted(node, { at, x: steps, lines });
  };
  return { node, paint };
}

function render({ model, el }) {
  const { root } = begin(model, el);
  if (model.get("problem")) return;

  const lab = labOf(model);
  const status = statusLine();
  const table = actionTable(model, lab, (source) => {
    lab.restart();
    paint(source);
  });
  const settings = stepSettings(model);
  const chart = entropyChart(lab);
  const advance = (steps) => {
    for (let i = 0; i < steps; i++) lab.advance();
    if (lab.history.length >= MAX_STEPS) play.stop();
    paint();
  };
  const play = playButton(advance);
  const reset = () => {
    play.stop();
    lab.z = [...model.get("start")];
    lab.restart();
    paint();
  };
  const buttons = row(
    button("Step", () => advance(1)),
    play.node,
    button("Reset", reset),
  );
  const reads = crosshair(make("div", {}, chart.node), "read the entropy at a step");
  root.append(table.node, settings.node, buttons, reads.node, status.node);

  const paint = (source) => {
    const { exact, predicted } = lab.next();
    table.paint(source);
    settings.paint(source);
    chart.paint(width.now());
    reads.put();
    const said =
      `entropy ${fixed(entropy(lab.z))} nats of at most ${fixed(Math.log(lab.z.length))}; the next step changes it by ` +
      `${fixed(exact, 4)}, predicted ${fixed(predicted, 4)}; ${lab.history.length} steps made`;
    status.say(said);
    chart.node.setAttribute("aria-label", said);
  };
  const fromKernel = () => {
    if (play.plays() || lab.isTheKernels()) return;
    lab.read();
    paint();
  };
  const width = widthOf(root, () => chart.paint(width.now()));
  model.on("change:logits change:advantages", fromKernel);
  model.on("change:eta change:method", () => paint(document.activeElement));
  paint();
  return () => {
    play.stop();
    width.stop();
  };
}
export default { render };
