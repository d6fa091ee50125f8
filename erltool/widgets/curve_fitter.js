// CurveFitter: the law dragged against points or fitted to them, its forecast, and the points of other runs beside it.
import { HEIGHT, chartOf, curveOf, handles, laid, lookOf, opened, short } from "./curve_chart.js";
import { REACH, fittedHere, isOf } from "./curve_fits.js";
import {
  begin,
  button,
  choice,
  fillTable,
  folded,
  group,
  make,
  row,
  saver,
  select,
  showIf,
  slider,
  statusLine,
  widthOf,
} from "./elements.js";
import { plotted, svg, swatch } from "./kit.js";
import { crosshair } from "./reading.js";

const PERFORMANCE = { eval_accuracy: "held-out accuracy", reward: "training reward" };
const HEAD = ["least squares of the law, 95 % interval", "a", "b", "ceiling b \u2212 a", "R\u00b2", "RMSE", "points"];
const FILES = {
  png: "Save PNG",
  svg: "Save SVG",
  pdf: "Save PDF",
  json: "Save numbers as JSON",
  tex: "Save numbers as LaTeX",
};
const PAUSE = 600; // ms without a change, after which the laws are compared: that takes most of a second

// --- controls ---

// A slider whose ends follow the data. `act` says what a move does, `text` what is read of a value.
function number(name, act, text) {
  const shown = make("span", { class: "number" });
  const tell = (v) => {
    shown.textContent = text(v);
    input.setAttribute("aria-valuetext", shown.textContent);
  };
  const input = slider(name, { min: 0, max: 1, step: 1, value: 0 }, (v) => {
    tell(v);
    act(v);
  });
  const put = (value, min, max, step) => {
    Object.assign(input, { min, max, step });
    const focused = document.activeElement === input; // The reader may have moved on since the kernel's message.
    if (!focused) input.value = value;
    tell(focused ? Number(input.value) : value);
  };
  return { node: make("label", {}, name, input, shown), put };
}

// Sliders: those of a and b act in the browser, the others ask the kernel for another fit.
function numbersOf(model, drag) {
  const ask = (name) => (v) => {
    model.set(name, v);
    model.save_changes();
  };
  const fitted = (v) => (v === 1 ? "all fitted" : `${Math.round(100 * v)} % fitted`);
  const a = number("a", (v) => drag("a", v), short);
  const b = number("b", (v) => drag("b", v), short);
  const span = number("window", ask("window"), (v) => `${v} averaged`);
  const block = number("block length", ask("block_length"), (v) => `${v} points`);
  const cut = number("forecast cut", ask("cut"), fitted);
  const put = (d, curve) => {
    a.put(curve.a, d.a - REACH * d.step, d.a + REACH * d.step, d.step);
    b.put(curve.b, d.b - REACH * d.step, d.b + REACH * d.step, d.step);
    span.put(d.window, 1, d.window_max, 1);
    block.put(d.block, 1, d.block_max, 1);
    cut.put(model.get("cut"), 0.05, 1, 0.01);
  };
  return { handles: [a.node, b.node], span: span.node, refits: [block.node, cut.node], put };
}

// Lists of the data, its performance and the law.
function lists(model) {
  const ask = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  const sources = model.get("sources");
  const named = sources.map(({ name }, i) => [i, name]);
  const laws = model.get("laws").map(([name, formula]) => [name, `${name}: ${formula}`]);
  const data = select("data", named, 0, (v) => ask("current", Number(v)));
  const performance = select("performance", Object.entries(PERFORMANCE), "", (v) => ask("performance", v));
  const law = select("law", laws, "", (v) => ask("law", v));
  const measured = make("label", {}, "performance", performance);
  const put = () => {
    data.value = model.get("current");
    performance.value = model.get("performance");
    law.value = model.get("law");
    showIf(measured, sources[model.get("current")]?.run);
  };
  return { node: row(make("label", {}, "data", data), measured, make("label", {}, "law", law)), put };
}

// A box for each other source; ticked, it has the look of its line.
function besideBoxes(model) {
  const boxes = model.get("sources").map(({ name }, i) => {
    const ticked = choice("checkbox", "", (on) => {
      const others = model.get("beside").filter((k) => k !== i);
      model.set("beside", on ? [...others, i].sort((x, y) => x - y) : others);
      model.save_changes();
    });
    const mark = make("span");
    ticked.node.append(mark, name);
    return { ...ticked, mark };
  });
  const node = group("drawn beside it", "beside it", ...boxes.map((o) => o.node));
  showIf(node, boxes.length > 1);
  const put = () =>
    boxes.forEach(({ node, input }, i) => {
      showIf(node, i !== model.get("current"));
      input.checked = model.get("beside").includes(i);
    });
  const swatches = (shown) =>
    boxes.forEach(({ mark }, i) => {
      const k = shown.findIndex((other) => other.at === i);
      mark.replaceChildren(...(k < 0 ? [] : [swatch(lookOf(k))]));
      showIf(mark, k >= 0);
    });
  return { node, put, swatches };
}

// Buttons that ask the kernel for a file. Its answer reaches every view of the widget: only the one that asked saves it.
function fileButtons(model) {
  let asked = false;
  const ask = (format) => {
    asked = true;
    model.send({ command: "export", format });
  };
  model.on("msg:custom", (content, buffers) => {
    if (!asked || !content.type) return;
    asked = false;
    const href = URL.createObjectURL(new Blob([buffers[0]], { type: content.type }));
    make("a", { href, download: content.name }).click();
    setTimeout(() => URL.revokeObjectURL(href), 10000);
  });
  return row(...Object.entries(FILES).map(([format, name]) => button(name, () => ask(format))));
}

// What is written below the chart: it changes with the data, not while a or b is dragged.
function remarks(model) {
  const [advice, verdict] = [make("p"), make("p")];
  const notes = make("ul", { class: "alarms", "aria-label": "notes" });
  const table = make("table", { "aria-label": "least-squares fits" });
  const put = (d, sent) => {
    advice.textContent = d ? d.forecast.words : "";
    const asks = typeof model.send === "function" ? "Comparing the laws\u2026" : "";
    verdict.textContent = d ? model.get("verdict") || asks : "";
    notes.replaceChildren(...((d ?? sent).notes ?? []).map((note) => make("li", {}, note)));
    const cell = (text) => {
      const [value, interval] = text.split("|");
      return interval ? [value, make("small", {}, interval)] : value;
    };
    fillTable(table, d ? HEAD : [], d ? d.rows.map(([name, ...cells]) => [name, ...cells.map(cell)]) : []);
  };
  return { nodes: [advice, verdict, notes, table], put };
}

const CAPTION =
  "Drag a round handle, or a and b below. Bars: residuals. Bands: 95 % of the law, 90 % of the forecast, which is made from the filled points.";

function render({ model, el }) {
  const { root, wrong } = begin(model, el);
  if (!model.get("sources").length) return;

  const save = saver(model);
  const names = model.get("sources").map(({ name }) => name);
  let d = null;
  let curve = null;
  let timer = null;
  const drag = (a, b) => {
    model.set({ a, b });
    save();
  };
  const numbers = numbersOf(model, (trait, v) => {
    const now = { a: model.get("a") ?? d.a, b: model.get("b") ?? d.b, [trait]: v };
    drag(now.a, now.b);
  });
  const fit = button("Let it fit", () => {
    model.set({ a: null, b: null });
    model.save_changes();
  });
  const log = choice("checkbox", "logarithmic entropy axis", (on) => {
    model.set("log_axis", on);
    save();
  });
  const chosen = lists(model);
  const beside = besideBoxes(model);
  const chart = svg(756, HEIGHT);
  const reads = crosshair(make("div", {}, chart), "read the curves at an entropy");
  handles(chart, () => ({ d, curve }), drag);
  const [status, below] = [statusLine(), remarks(model)];
  const sliders = row(...numbers.handles, fit);
  root.append(chosen.node, beside.node, reads.node, make("p", { class: "quiet" }, CAPTION), status.node, sliders);
  root.append(row(numbers.span, ...numbers.refits, log.node), ...below.nodes);
  if (typeof model.send === "function") root.append(folded("Save the picture or the numbers", fileButtons(model)));

  const paint = () => {
    curve = d && curveOf(model, d);
    const said = curve?.dragged ? `${names[model.get("current")]}: ${curve.words}` : curve?.words;
    chosen.put();
    beside.put();
    log.input.checked = model.get("log_axis");
    for (const node of [...numbers.handles, fit, ...numbers.refits]) showIf(node, curve?.exponential);
    showIf(numbers.span, d);
    fit.setAttribute("aria-disabled", String(!curve?.dragged));
    if (d) numbers.put(d, curve);
    const drawn = d ? chartOf(d, curve, names, model.get("law")) : { nodes: [], plot: null };
    chart.replaceChildren(...drawn.nodes);
    if (drawn.plot) plotted(chart, drawn.plot);
    reads.put();
    chart.setAttribute("aria-label", said ?? "nothing to draw");
    status.say(said ?? "");
  };
  const compareSoon = () => {
    clearTimeout(timer);
    if (!d || model.get("verdict") || typeof model.send !== "function") return;
    timer = setTimeout(() => model.send({ command: "compare" }), PAUSE);
  };
  const tell = () => {
    compareSoon();
    below.put(d, model.get("data"));
  };
  const lay = () => {
    if (d) laid(d, curveOf(model, d), names, model.get("law"), width.now(), model.get("log_axis"));
    chart.setAttribute("viewBox", `0 0 ${width.now()} ${HEIGHT}`);
    chart.setAttribute("width", width.now());
    paint();
  };
  const read = () => {
    const sent = model.get("data");
    const here = isOf(model, sent) ? null : fittedHere(model, sent);
    d = here ?? opened(sent);
    wrong.show();
    beside.swatches(d ? d.beside : []);
    lay();
    tell();
  };
  const width = widthOf(root, lay);
  const another = () => {
    // What is dragged, and the verdict, belonged to the points before; the kernel forgets them likewise.
    if (!isOf(model, model.get("data")) && model.get("raw").length) model.set({ a: null, b: null });
    read();
  };
  model.on("change:data change:log_axis", read);
  model.on("change:current change:performance change:window change:law", another);
  model.on("change:block_length change:cut change:beside", read);
  model.on("change:problem", wrong.show);
  model.on("change:verdict", tell);
  model.on("change:a change:b", paint);
  read();
  return () => {
    clearTimeout(timer);
    width.stop();
  };
}
export default { render };
