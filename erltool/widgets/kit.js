// Charts as SVG on the page's own ground: scales, axes, lines, points, bands, and words at the ends of lines.
import { draw, fixed } from "./elements.js";

// Colours are variables of shared.css, so that a chart follows the theme: lines, and words that need more contrast.
export const INK = "var(--erltool-ink)";
export const QUIET = "var(--erltool-quiet)";
export const PAGE = "var(--erltool-page)";
export const SERIES = ["var(--erltool-1)", "var(--erltool-2)", "var(--erltool-3)", "var(--erltool-4)"];
export const WORDS = [
  "var(--erltool-1-word)",
  "var(--erltool-2-word)",
  "var(--erltool-3-word)",
  "var(--erltool-4-word)",
];
const GRID = "var(--erltool-grid)";
const FRAME = "var(--erltool-frame)";
const SPARSE = 25; // A line of at most so many points has its points marked.
const HALO = { stroke: PAGE, "stroke-width": 3, "paint-order": "stroke" }; // keeps a word legible on a line
const LETTER = 7; // pixels, of a word of 12
const APART = 14; // pixels between two words at the ends of lines
const LONGEST = 18; // letters of such a word
// The colour of a line's words: a line's own, with more contrast.
export const wordOf = (colour) => WORDS[SERIES.indexOf(colour)] ?? INK;
export const wide = (text) => LETTER * [...text].length;

// Round values from low to high, about `count` of them, each with its text.
export const ticks = (low, high, count) => {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const digits = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9) + (step / power === 2.5 ? 1 : 0));
  const values = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) values.push(i * step);
  return values.map((v) => [v, fixed(v, digits)]);
};
export const logTicks = (low, high) =>
  [-4, -3, -2, -1, 0, 1]
    .flatMap((exponent) => [1, 2, 5].map((m) => Number((m * 10 ** exponent).toPrecision(1))))
    .filter((v) => v >= low && v <= high)
    .map((v) => [v, String(v)]);

// A chart's box in pixels and its scales: `px` and `py` give the pixel of a value, `inside` one within the box.
export const scales = ({ left, right, top, bottom }, [x0, x1], [y0, y1], logarithmic = false) => {
  const to = logarithmic ? (v) => (v > 0 ? Math.log(v) : NaN) : (v) => v;
  const [begin, end] = [to(x0), to(x1)];
  const px = (v) => left + ((right - left) * (to(v) - begin)) / (end - begin);
  const py = (v) => bottom - ((bottom - top) * (v - y0)) / (y1 - y0);
  const inside = (v) => Math.max(top, Math.min(bottom, py(v)));
  return { left, right, top, bottom, px, py, inside, x: [x0, x1], y: [y0, y1] };
};

export const svg = (width, height) => draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" });
export const words = (x, y, text, extra = {}) => draw("text", { x, y, "font-size": 12, fill: INK, ...extra }, text);

// Grid lines with their texts on the left.
export const yAxis = ({ left, right, py }, marks) =>
  marks.flatMap(([v, text]) => [
    draw("line", { x1: left, x2: right, y1: py(v), y2: py(v), stroke: GRID }),
    words(left - 6, py(v) + 4, text, { "text-anchor": "end", fill: QUIET }),
  ]);
// Texts below the box, each with a short mark.
export const xAxis = ({ bottom, px }, marks) =>
  marks.flatMap(([v, text]) => [
    draw("line", { x1: px(v), x2: px(v), y1: bottom, y2: bottom + 4, stroke: FRAME }),
    words(px(v), bottom + 16, text, { "text-anchor": "middle", fill: QUIET }),
  ]);
export const box = ({ left, right, top, bottom }) =>
  draw("rect", { x: left, y: top, width: right - left, height: bottom - top, fill: "none", stroke: FRAME });

const point = (x, y) => `${x.toFixed(1)} ${y.toFixed(1)}`;
export const path = (d, look) => draw("path", { d, fill: "none", "stroke-linejoin": "round", ...look });

// A line through (x, y); where it leaves the box, and where y is not finite, it is interrupted.
export const line = ({ left, top, bottom, px, py }, x, y, look) => {
  let d = "";
  let on = false;
  for (let i = 0; i < x.length; i++) {
    const [across, down] = [px(x[i]), py(y[i])];
    const seen = across >= left - 0.01 && down >= top - 0.01 && down <= bottom + 0.01;
    if (seen) d += `${on ? "L" : "M"}${point(across, down)}`;
    on = seen;
  }
  return path(d, { "stroke-width": 2, ...look });
};
// The area between two lines over x, cut at the box; where a bound is not finite, it is left out.
const outline = ({ left, px, inside }, x, low, high) => {
  const seen = [...x.keys()].filter((i) => px(x[i]) >= left - 0.01 && Number.isFinite(low[i] + high[i]));
  const edge = (y) => (i) => point(px(x[i]), inside(y[i]));
  const places = [...seen.map(edge(low)), ...seen.reverse().map(edge(high))];
  return places.length ? `M${places.join("L")}z` : "";
};
const area = (d, fill) => draw("path", { d, fill, "fill-opacity": 0.16 });
export const band = (at, x, low, high, fill) => area(outline(at, x, low, high), fill);
// Pixels of the points from..to, those that lie left of the box left out.
export const pixels = ({ left, px, inside }, x, y, from = 0, to = x.length) =>
  [...x.keys()]
    .slice(from, to)
    .map((i) => [px(x[i]), inside(y[i])])
    .filter(([across]) => across >= left - 0.01);
export const circles = (places, look) =>
  path(places.map(([x, y]) => `M${point(x - 3.2, y)}a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0 -6.4 0`).join(""), {
    "stroke-width": 1.4,
    ...look,
  });

// Outlines that are told apart without colour: triangle, diamond, triangle on its head.
const OUTLINES = [
  [-3, 3, "h6l-3 -6z"],
  [-3, 0, "l3 -4l3 4l-3 4z"],
  [-3, -3, "h6l-3 6z"],
];
export const marks = (places, kind, colour) => {
  const [right, down, outline] = OUTLINES[kind % OUTLINES.length];
  return draw("path", { d: places.map(([x, y]) => `M${point(x + right, y + down)}${outline}`).join(""), fill: colour });
};

// A short piece of a line beside its name in a list; with `kind`, one of its marks.
export const swatch = ({ colour, dash, kind }) => {
  const node = draw("svg", { width: 34, height: 12, class: "swatch", "aria-hidden": "true" });
  const look = { stroke: colour, "stroke-width": 2.2, "stroke-dasharray": dash };
  node.append(draw("line", { x1: 1, x2: 33, y1: 6, y2: 6, ...look }));
  if (kind !== undefined) node.append(marks([[17, 6]], kind, colour));
  return node;
};

// Heights, in the order of `wanted`, that are APART and within the box, as near to the wanted ones as may be.
export const apart = (wanted, top, bottom) => {
  const order = [...wanted.keys()].sort((i, j) => wanted[i] - wanted[j]);
  const at = [];
  let free = top;
  for (const i of order) free = (at[i] = Math.max(wanted[i], free)) + APART;
  let limit = bottom;
  for (const i of order.toReversed()) limit = (at[i] = Math.min(at[i], limit)) - APART;
  return at;
};
const cut = (text) => ([...text].length > LONGEST ? `${[...text].slice(0, LONGEST - 1).join("")}\u2026` : text);
export const roomFor = (labels) => Math.max(0, ...labels.map((text) => wide(cut(text)) + 10));
// Names of lines behind their ends: [x, y in pixels, text, colour of the words].
export const endLabels = ({ top, bottom }, ends) => {
  const heights = apart(
    ends.map(([, y]) => y),
    top + 4,
    bottom,
  );
  return ends.map(([x, , text, fill], i) => words(x + 8, heights[i] + 4, cut(text), { fill, ...HALO }));
};

// Most lines and bands stay when one is changed: a path is kept for as long as its values and the scales are the same.
const kept = new WeakMap();
const traced = (y, scale, at) => {
  if (kept.get(y)?.scale !== scale) {
    const places = [...y.keys()].filter((i) => Number.isFinite(y[i])).map(at);
    const d = places.length ? `M${places.join("L")}` : "";
    kept.set(y, { scale, d, dots: places.length > SPARSE ? "" : places.map((p) => `M${p}h0`).join("") });
  }
  return kept.get(y);
};
const bounded = (low, scale, make) => {
  if (kept.get(low)?.scale !== scale) kept.set(low, { scale, d: make() });
  return kept.get(low).d;
};

const ends = new WeakMap(); // of a line's values, which are looked through once
const endsOf = (y) => {
  let [low, high] = [Infinity, -Infinity];
  for (const v of y) {
    if (!Number.isFinite(v)) continue;
    if (v < low) low = v;
    if (v > high) high = v;
  }
  return [low, high];
};
// Lowest and highest value that a chart of these lines spans: with room, and from 0 where that is
// near; null without a value.
export const spanOf = (lines) => {
  let [low, high] = [Infinity, -Infinity];
  for (const { y } of lines) {
    if (!ends.has(y)) ends.set(y, endsOf(y));
    low = Math.min(low, ends.get(y)[0]);
    high = Math.max(high, ends.get(y)[1]);
  }
  if (low > high) return null;
  if (low > 0 && low < 0.7 * high) low = 0;
  const room = (high - low || Math.abs(high) || 1) * 0.05;
  return [low === 0 ? 0 : low - room, high + room];
};
const lastOf = (y) => {
  let i = y.length - 1;
  while (i >= 0 && !Number.isFinite(y[i])) i--;
  return i;
};

// Lines by optimiser step, each {y, colour, dash, width, opacity} on the steps `x`; with a `label` it is named at its
// end and read by a crosshair; with `low` and `high` it has a band. A value that is not finite was not measured: the
// line passes over it. Charts with one `span` share the vertical axis.
export const lineChart = (title, x, end, lines, width = 376, height = 200, span = spanOf(lines)) => {
  const chart = svg(width, height);
  const named = lines.filter(({ label }) => label);
  const right = width - Math.max(16, roomFor(named.map(({ label }) => label)));
  const room = { left: 52, right, top: 26, bottom: height - 34 };
  chart.append(words(room.left, 16, title, { "font-weight": 600 }));
  if (!span) {
    const middle = (room.left + room.right) / 2;
    chart.append(words(middle, height / 2, "not measured yet", { "text-anchor": "middle", fill: QUIET }));
    return chart;
  }
  const at = scales(room, [0, end], span);
  chart.append(
    ...yAxis(at, ticks(...span, 4)),
    ...xAxis(at, ticks(0, end, Math.max(2, Math.floor((right - 52) / 60)))),
  );
  chart.append(words(room.right, height - 4, "optimiser step", { "text-anchor": "end", "font-size": 11, fill: QUIET }));
  const scale = [width, height, end, right, ...span].join();
  for (const { low, high, colour } of lines) {
    if (low) chart.append(area(bounded(low, scale, () => outline(at, x, low, high)), colour));
  }
  for (const { y, colour, dash, width: stroke, opacity } of lines) {
    const { d, dots } = traced(y, scale, (i) => point(at.px(x[i]), at.inside(y[i])));
    const look = { stroke: colour, "stroke-opacity": opacity };
    chart.append(path(d, { "stroke-width": stroke, "stroke-dasharray": dash, ...look }));
    if (dots) chart.append(path(dots, { "stroke-width": stroke + 3, "stroke-linecap": "round", ...look }));
  }
  const last = named.map(({ y, label, colour }) => [lastOf(y), y, label, wordOf(colour)]).filter(([i]) => i >= 0);
  chart.append(
    ...endLabels(
      at,
      last.map(([i, y, label, fill]) => [at.px(x[i]), at.inside(y[i]), label, fill]),
    ),
  );
  return plotted(chart, { at, x, lines: named });
};

// What a crosshair reads of a chart: its scales, x, and its lines {label, y, colour}.
export const plotted = (chart, plot) => {
  chart.classList.add("plot");
  chart.plot = plot;
  return chart;
};
