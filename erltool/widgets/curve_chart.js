// CurveFitter's chart: points, the law and its band, residuals, forecast, the ceiling, and two handles that drag the law.
import { draw, floats } from "./elements.js";
import {
  INK,
  PAGE,
  QUIET,
  SERIES,
  band,
  circles,
  endLabels,
  line,
  logTicks,
  marks,
  path,
  pixels,
  roomFor,
  scales,
  ticks,
  wordOf,
  words,
  xAxis,
  yAxis,
} from "./kit.js";
import { LAW } from "./law.js";

const [DATA, FORECAST] = SERIES;
const OTHERS = [SERIES[2], SERIES[3], INK];
const DASHES = ["7 3", "2 2", "9 3 2 3"];
export const HEIGHT = 334;
const GRIP = 7; // radius of a handle

export const short = (v) => String(Number(v.toPrecision(4))).replace("-", "\u2212");
export const lookOf = (k) => ({ colour: OTHERS[k % 3], dash: DASHES[Math.floor(k / 3) % 3], kind: k });

// The message of the kernel with its numbers; null where nothing is fitted.
export function opened(sent) {
  if (!sent.h) return null;
  const numbers = (message, names) => Object.fromEntries(names.map((name) => [name, floats(message[name])]));
  const d = { ...sent, ...numbers(sent, ["h", "r", "grid", "curve", "low", "high"]) };
  d.beside = sent.beside.map((other) => ({ ...other, ...numbers(other, ["h", "r", "curve"]) }));
  d.forecast = sent.forecast.curve
    ? { ...sent.forecast, ...numbers(sent.forecast, ["curve", "low", "high"]) }
    : { words: sent.forecast.words };
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

// The curve on show: the law as dragged, or what was fitted.
export function curveOf(model, d) {
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
  const nodes = [path(`M${at.left} ${y}H${at.right}`, { stroke: INK, "stroke-dasharray": "2 4", "stroke-width": 1 })];
  if (interval && !dragged) {
    const [low, high] = interval.map(at.inside);
    const left = at.left + 1;
    const outline = `M${left + 4} ${low}V${high}M${left} ${low}h8M${left} ${high}h8`;
    nodes.push(path(outline, { stroke: INK, "stroke-width": 1.6 }));
  }
  const above = y > at.top + 20;
  return [...nodes, words(at.right - 6, y + (above ? -5 : 14), `ceiling ${short(ceiling)}`, { "text-anchor": "end" })];
}

// The lines of a chart, {label, y, colour, dash, width}: they are drawn, named at their ends and read by the crosshair.
function linesOf(d, curve, names, law) {
  const { forecast, beside } = d;
  const own = curve.dragged ? "dragged" : curve.exponential ? "least squares" : law;
  const shown = [{ label: own, y: curve.y, colour: curve.dragged || !curve.exponential ? INK : DATA, width: 2 }];
  if (curve.dragged) shown.push({ label: "least squares", y: d.curve, colour: DATA, dash: "3 3", width: 1.4 });
  if (forecast.curve) shown.push({ label: "forecast", y: forecast.curve, colour: FORECAST, dash: "8 4", width: 2 });
  for (const [k, other] of beside.entries()) {
    const { colour, dash } = lookOf(k);
    shown.push({ label: names[other.at], y: other.curve, colour, dash, width: 1.6 });
  }
  return shown;
}

// Where a line ends within the box, with its name.
const endOf = ({ at, grid }, { y, label, colour }) => {
  const seen = (i) => at.py(y[i]) >= at.top && at.py(y[i]) <= at.bottom;
  const i = [...grid.keys()].findLast(seen);
  return i === undefined ? null : [at.px(grid[i]) + GRIP, at.py(y[i]), label, wordOf(colour)];
};

// The points of the law that its two handles hold: at the lowest and at the highest entropy of its points.
const grips = ({ at, h }, { a, b }) =>
  [Math.max(0, at.x[0]), Math.max(...h)].map((v) => ({ x: at.px(v), y: at.inside(b - a * Math.exp(v)), h: v }));

// What is drawn of fitted numbers, and what the crosshair reads. `frame` is kept for as long as the data are the same.
export function chartOf(d, curve, names, law) {
  const { at, grid, forecast } = d;
  const fitted = forecast.curve ? forecast.count : d.h.length;
  const lines = linesOf(d, curve, names, law);
  const nodes = [...d.frame];
  if (d.low.length) nodes.push(band(at, grid, d.low, d.high, DATA));
  if (forecast.curve && forecast.low.length) nodes.push(band(at, grid, forecast.low, forecast.high, FORECAST));
  for (const [k, other] of d.beside.entries()) {
    const { colour, kind } = lookOf(k);
    nodes.push(marks(pixels(at, other.h, other.r), kind, colour));
  }
  const look = ({ colour, dash, width }) => ({ stroke: colour, "stroke-dasharray": dash ?? "", "stroke-width": width });
  nodes.push(...lines.toReversed().map((one) => line(at, grid, one.y, look(one))));
  nodes.push(residuals(d, curve.y), circles(pixels(at, d.h, d.r, 0, fitted), { fill: DATA, stroke: DATA }));
  if (forecast.curve) nodes.push(circles(pixels(at, d.h, d.r, fitted), { fill: PAGE, stroke: DATA }));
  nodes.push(...ceilingNodes(d, curve));
  nodes.push(...endLabels(at, lines.map((one) => endOf(d, one)).filter(Boolean)));
  if (curve.exponential) {
    const grip = (p) => draw("circle", { class: "grip", cx: p.x, cy: p.y, r: GRIP, fill: PAGE, stroke: INK });
    nodes.push(...grips(d, curve).map(grip));
  }
  const plot = { at, x: grid, lines, name: (h) => `H ${h.toFixed(3)} nats` };
  return { nodes, plot };
}

// Scales and axes for a width; lines' names have room on the right.
export function laid(d, curve, names, law, width, logarithmic) {
  const labels = linesOf(d, curve, names, law).map(({ label }) => label);
  const room = { left: 62, right: width - Math.max(16, roomFor([...labels, "least squares"])), top: 24, bottom: 292 };
  const [across, up] = spans(d, logarithmic);
  d.at = scales(room, across, up, logarithmic);
  const count = Math.max(3, Math.floor((room.right - room.left) / 70));
  d.frame = [
    ...yAxis(d.at, ticks(...up, 6)),
    ...xAxis(d.at, logarithmic ? logTicks(...across) : ticks(...across, count)),
    words(room.right, HEIGHT - 6, "policy entropy H (nats/token)", { "text-anchor": "end", fill: QUIET }),
    words(room.left, room.top - 8, `performance R (${d.unit})`, { "font-weight": 600 }),
  ];
}

// The pointer takes a handle and drags the law through it and the other one. `drag` is told a and b.
export function handles(chart, now, drag) {
  let held = null;
  const place = (e) => {
    const { left, top, width } = chart.getBoundingClientRect();
    const scale = chart.viewBox.baseVal.width / width;
    return [(e.clientX - left) * scale, (e.clientY - top) * scale];
  };
  chart.addEventListener("pointerdown", (e) => {
    const { d, curve } = now();
    if (!d || !curve.exponential) return;
    const [x, y] = place(e);
    const near = grips(d, curve).map((p) => Math.hypot(p.x - x, p.y - y));
    const k = near[0] < near[1] ? 0 : 1;
    if (near[k] > 3 * GRIP) return;
    const other = grips(d, curve)[1 - k].h;
    held = { h: grips(d, curve)[k].h, other, r: curve.b - curve.a * Math.exp(other) };
    chart.setPointerCapture(e.pointerId);
    e.preventDefault();
  });
  chart.addEventListener("pointermove", (e) => {
    if (!held) return;
    const { at } = now().d;
    const y = Math.max(at.top, Math.min(at.bottom, place(e)[1]));
    const r = at.y[0] + ((at.bottom - y) * (at.y[1] - at.y[0])) / (at.bottom - at.top);
    const a = (r - held.r) / (Math.exp(held.other) - Math.exp(held.h));
    drag(a, r + a * Math.exp(held.h));
  });
  for (const end of ["pointerup", "pointercancel"]) chart.addEventListener(end, () => (held = null));
}
