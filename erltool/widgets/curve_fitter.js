// CurveFitter: the law dragged against points or fitted to them, its forecast, and the points of other runs beside it.
import {
  begin,
  button,
  choice,
  fillTable,
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
import {
  band,
  box,
  circles,
  line,
  logTicks,
  marks,
  path,
  pixels,
  scales,
  svg,
  swatch,
  ticks,
  words,
  xAxis,
  yAxis,
} from "./kit.js";

const DATA = "#0072B2";
const FORECAST = "#D55E00";
const DRAGGED = "#111111";
const OTHERS = ["#009E73", "#CC79A7", "#000000"];
const DASHES = ["7 3", "2 2", "9 3 2 3"];
const LAW = "exponential"; // R = b - a exp(H), the one that is dragged and forecasts
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
const REACH = 100; // steps of a slider of a or b on either side of the fit
const [WIDTH, HEIGHT] = [756, 334];
const BOX = { left: 62, right: 744, top: 24, bottom: 292 };

const short = (v) => String(Number(v.toPrecision(4))).replace("-", "\u2212");
const lookOf = (k) => ({ colour: OTHERS[k % 3], dash: DASHES[Math.floor(k / 3) % 3], kind: k });

// --- what is drawn ---

// The message of the kernel with its numbers; null where nothing is fitted.
function opened(sent, logarithmic) {
  if (!sent.h) return null;
  const numbers = (message, ...names) => Object.fromEntries(names.map((name) => [name, floats(message[name])]));
  const d = { ...sent, ...numbers(sent, "h", "r", "grid", "curve", "low", "high") };
  d.beside = sent.beside.map((other) => ({ ...other, ...numbers(other, "h", "r", "curve") }));
  d.forecast = sent.forecast.curve ? { ...sent.forecast, ...numbers(sent.forecast, "curve", "low", "high") } : null;
  const [across, up] = spans(d, logarithmic);
  d.at = scales(BOX, across, up, logarithmic);
  d.frame = [
    ...yAxis(d.at, ticks(...up, 6)),
    ...xAxis(d.at, logarithmic ? logTicks(...across) : ticks(...across, 8)),
    box(BOX),
    words(BOX.right, HEIGHT - 6, "policy entropy H (nats/token)", { "text-anchor": "end" }),
    words(BOX.left, BOX.top - 8, `performance R (${d.unit})`),
  ];
  return d;
}

// Entropies and performances that the chart spans: all points and ceilings, with room.
function spans(d, logarithmic) {
  const h = [d, ...d.beside].flatMap((points) => [...points.h]);
  const ceilings = [d.ceiling, ...d.beside.map((other) => other.curve[0])];
  const r = [...[d, ...d.beside].flatMap((points) => [...points.r]), ...ceilings].filter(Number.isFinite);
  const [low, high] = [Math.min(...r), Math.max(...r)];
  const room = 0.08 * (high - low || 1);
  const first = logarithmic ? Math.min(...h.filter((v) => v > 0)) / 1.2 : Math.min(0, ...h);
  return [
    [first, Math.max(...h) * 1.03],
    [low - room, high + room],
  ];
}

// The curve on show: the law as dragged, or what the kernel fitted.
function curveOf(model, d) {
  const exponential = model.get("law") === LAW;
  const dragged = exponential && (model.get("a") ?? model.get("b")) !== null;
  if (!dragged) return { exponential, dragged, a: d.a, b: d.b, y: d.curve, ceiling: d.ceiling, words: d.words };
  const [a, b] = [model.get("a") ?? d.a, model.get("b") ?? d.b];
  const law = (h) => b - a * Math.exp(h);
  const rmse = Math.sqrt(d.r.reduce((sum, r, i) => sum + (r - law(d.h[i])) ** 2, 0) / d.r.length);
  const numbers = `a = ${short(a)}, b = ${short(b)}: RMSE ${short(rmse)} (${d.unit})`;
  const said = `dragged to ${numbers} where least squares has ${short(d.rmse)}; ceiling ${short(b - a)}.`;
  return { exponential, dragged, a, b, y: d.grid.map(law), ceiling: b - a, words: said };
}

// Between the grid's neighbours: the curve that is drawn, and the bar that ends on it, agree.
function valueAt(grid, curve, h) {
  let i = 1;
  while (i < grid.length - 1 && grid[i] < h) i++;
  const fraction = grid[i] > grid[i - 1] ? (h - grid[i - 1]) / (grid[i] - grid[i - 1]) : 0;
  return curve[i - 1] + fraction * (curve[i] - curve[i - 1]);
}

function residuals({ at, grid, h, r }, curve) {
  const ends = pixels(
    at,
    h,
    [...h].map((v) => valueAt(grid, curve, v)),
  );
  const bars = pixels(at, h, r).map(([x, y], k) => `M${x.toFixed(1)} ${y.toFixed(1)}V${ends[k][1].toFixed(1)}`);
  return path(bars.join(""), { stroke: DATA, "stroke-width": 1 });
}

// The ceiling as a line, and at its left end its interval.
function ceilingNodes({ at, interval }, { ceiling, dragged }) {
  if (ceiling === null || !Number.isFinite(ceiling)) return [];
  const y = at.inside(ceiling);
  const stroke = { stroke: DRAGGED, "stroke-dasharray": "2 4", "stroke-width": 1 };
  const nodes = [path(`M${BOX.left} ${y}H${BOX.right}`, stroke)];
  if (interval && !dragged) {
    const [low, high] = interval.map(at.inside);
    const left = BOX.left + 1;
    const outline = `M${left + 4} ${low}V${high}M${left} ${low}h8M${left} ${high}h8`;
    nodes.push(path(outline, { stroke: DRAGGED, "stroke-width": 1.6 }));
  }
  const above = y > BOX.top + 20;
  return [...nodes, words(BOX.right - 6, y + (above ? -5 : 14), `ceiling ${short(ceiling)}`, { "text-anchor": "end" })];
}

function chartNodes(d, curve) {
  const { at, grid, forecast } = d;
  const fitted = forecast ? forecast.count : d.h.length;
  const nodes = [...d.frame];
  if (d.low.length) nodes.push(band(at, grid, d.low, d.high, DATA));
  if (forecast) {
    nodes.push(band(at, grid, forecast.low, forecast.high, FORECAST));
    nodes.push(line(at, grid, forecast.curve, { stroke: FORECAST, "stroke-dasharray": "8 4" }));
  }
  for (const [k, other] of d.beside.entries()) {
    const { colour, dash, kind } = lookOf(k);
    nodes.push(line(at, grid, other.curve, { stroke: colour, "stroke-dasharray": dash, "stroke-width": 1.6 }));
    nodes.push(marks(pixels(at, other.h, other.r), kind, colour));
  }
  if (curve.dragged)
    nodes.push(line(at, grid, d.curve, { stroke: DATA, "stroke-dasharray": "3 3", "stroke-width": 1.4 }));
  nodes.push(line(at, grid, curve.y, { stroke: curve.dragged || !curve.exponential ? DRAGGED : DATA }));
  nodes.push(residuals(d, curve.y), circles(pixels(at, d.h, d.r, 0, fitted), { fill: DATA, stroke: DATA }));
  if (forecast) nodes.push(circles(pixels(at, d.h, d.r, fitted), { fill: "#ffffff", stroke: DATA }));
  return [...nodes, ...ceilingNodes(d, curve)];
}

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

function legend() {
  const entry = (text, colour, dash) => make("span", {}, swatch({ colour, dash }), ` ${text}`);
  const fit = entry("least squares, 95 % band", DATA, "");
  const forecast = entry("forecast from the filled points, 90 % interval", FORECAST, "8 4");
  const other = entry("", DRAGGED, "");
  const node = make("div", { class: "row", "aria-hidden": "true" }, fit, forecast, other);
  const put = (d, curve, law) => {
    showIf(fit, d && curve.exponential);
    showIf(forecast, d?.forecast);
    showIf(other, d && (curve.dragged || !curve.exponential));
    other.lastChild.textContent = curve?.dragged ? " dragged" : ` the law ${law}`;
  };
  return { node, put };
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
    advice.textContent = d ? sent.forecast.words : "";
    verdict.textContent = d ? model.get("verdict") || "Comparing the laws\u2026" : "";
    notes.replaceChildren(...(sent.notes ?? []).map((note) => make("li", {}, note)));
    const cell = (text) => {
      const [value, interval] = text.split("|");
      return interval ? [value, make("small", {}, interval)] : value;
    };
    fillTable(table, d ? HEAD : [], d ? d.rows.map(([name, ...cells]) => [name, ...cells.map(cell)]) : []);
  };
  return { nodes: [advice, verdict, notes, table], put };
}

function render({ model, el }) {
  const { root, wrong } = begin(model, el);
  if (!model.get("sources").length) return;

  const save = saver(model);
  let d = null;
  let timer = null;
  const numbers = numbersOf(model, (trait, v) => {
    model.set({ a: model.get("a") ?? d.a, b: model.get("b") ?? d.b, [trait]: v });
    save();
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
  const key = legend();
  const chart = svg(WIDTH, HEIGHT);
  const status = statusLine();
  const below = remarks(model);
  const handles = row(...numbers.handles, fit);
  root.append(chosen.node, beside.node, handles, row(numbers.span, ...numbers.refits, log.node), chart, key.node);
  root.append(status.node, ...below.nodes, fileButtons(model));

  const paint = () => {
    const curve = d && curveOf(model, d);
    const said = curve?.dragged ? `${model.get("sources")[model.get("current")].name}: ${curve.words}` : curve?.words;
    chosen.put();
    beside.put();
    log.input.checked = model.get("log_axis");
    for (const node of [...numbers.handles, fit, ...numbers.refits]) showIf(node, curve?.exponential);
    showIf(numbers.span, d);
    fit.setAttribute("aria-disabled", String(!curve?.dragged));
    key.put(d, curve, model.get("law"));
    if (d) numbers.put(d, curve);
    chart.replaceChildren(...(d ? chartNodes(d, curve) : []));
    chart.setAttribute("aria-label", said ?? "nothing to draw");
    status.say(said ?? "");
  };
  const compareSoon = () => {
    clearTimeout(timer);
    if (d && !model.get("verdict")) timer = setTimeout(() => model.send({ command: "compare" }), PAUSE);
  };
  const tell = () => {
    compareSoon();
    below.put(d, model.get("data"));
  };
  const read = () => {
    d = opened(model.get("data"), model.get("log_axis"));
    wrong.show();
    beside.swatches(d ? d.beside : []);
    paint();
    tell();
  };
  model.on("change:data change:log_axis", read);
  model.on("change:problem", wrong.show);
  model.on("change:verdict", tell);
  model.on("change:a change:b", paint);
  read();
  return () => clearTimeout(timer);
}
export default { render };
