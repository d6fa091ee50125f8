// Shared by all widgets: elements without markup (text is only ever text), and native sliders that keep their keys.
const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};
const draw = (tag, attributes = {}, text) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
};
// A widget's own part of the page. The other classes: MathJax, where a page has it, finds no formulas in names and tokens.
const panel = () => make("div", { class: "erltool tex2jax_ignore mathjax_ignore" });
const problem = (text) => make("p", { class: "problem", role: "alert" }, text);
// JupyterLab acts on keys that bubble out of a cell: a slider must keep its arrows, a button its space.
const keepKeys = (node) => { node.addEventListener("keydown", (e) => e.stopPropagation()); return node; };
const slider = (name, { min, max, step, value }, onInput) => {
  const input = keepKeys(make("input", { type: "range", min, max, step, "aria-label": name }));
  input.value = value;
  input.addEventListener("input", () => onInput(Number(input.value)));
  return input;
};
const button = (name, onClick) => {
  const node = keepKeys(make("button", { type: "button" }, name));
  node.addEventListener("click", onClick);
  return node;
};
const select = (name, options, value, onChange) => {
  const node = keepKeys(make("select", { "aria-label": name }));
  options.forEach(([key, text]) => node.append(make("option", { value: key }, text)));
  node.value = value;
  node.addEventListener("change", () => onChange(node.value));
  return node;
};
const fixed = (x, digits = 3) => (Object.is(Number(x.toFixed(digits)), -0) ? 0 : x).toFixed(digits).replace("-", "\u2212");
// Saves to the kernel at most every 100 ms, and the last state always.
const saver = (model) => {
  let waiting = null;
  return () => { if (waiting === null) waiting = setTimeout(() => { waiting = null; model.save_changes(); }, 100); };
};
// A trait of float32 bytes.
const floats = (bytes) => new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
const ticks = (low, high, count) => {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough), digits = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9) + (step / power === 2.5 ? 1 : 0));
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push([i * step, fixed(i * step, digits)]);
  return found;
};
const SPARSE = 60; // points of a line that are marked
// A line's path, kept for as long as its values and the chart's scale are the same: most lines stay when one is changed.
const kept = new WeakMap();
const traced = (y, scale, at) => {
  if (kept.get(y)?.scale !== scale) {
    const found = [];
    for (let i = 0; i < y.length; i++) if (Number.isFinite(y[i])) found.push(at(i));
    kept.set(y, { scale, count: found.length, path: found.length ? `M${found.join("L")}` : "", points: found.map((p) => `M${p}h0`).join("") });
  }
  return kept.get(y);
};
// A line chart by step as SVG, black on white in either theme. Lines are {y, colour, dash, width, opacity} on the steps `x`;
// what is not finite was not measured, and is passed over.
const lineChart = (title, x, end, lines, width = 376, height = 200) => {
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" });
  const [left, right, top, bottom] = [52, width - 16, 26, height - 34];
  let low = Infinity, high = -Infinity;
  for (const line of lines) for (const v of line.y) if (Number.isFinite(v)) { if (v < low) low = v; if (v > high) high = v; }
  const words = (at, text, extra = {}) => svg.append(draw("text", { x: at[0], y: at[1], "font-size": 12, fill: "#111", ...extra }, text));
  words([left, 16], title, { "font-weight": 600 });
  if (low > high) {
    words([(left + right) / 2, height / 2], "not measured yet", { "text-anchor": "middle" });
    return svg;
  }
  if (low > 0 && low < 0.7 * high) low = 0;
  const room = (high - low || Math.abs(high) || 1) * 0.05;
  [low, high] = [low === 0 ? 0 : low - room, high + room];
  const px = (v) => left + ((right - left) * v) / end, py = (v) => bottom - ((bottom - top) * (v - low)) / (high - low);
  for (const [v, text] of ticks(low, high, 4)) {
    svg.append(draw("line", { x1: left, x2: right, y1: py(v), y2: py(v), stroke: "#ddd" }));
    words([left - 6, py(v) + 4], text, { "text-anchor": "end" });
  }
  for (const [v, text] of ticks(0, end, 5)) words([px(v), bottom + 16], text, { "text-anchor": "middle" });
  words([right, height - 4], "optimiser step", { "text-anchor": "end", "font-size": 11 });
  for (const { y, colour, dash, width: stroke, opacity } of lines) {
    const { path, points, count } = traced(y, [width, height, end, low, high].join(), (i) => `${px(x[i]).toFixed(1)} ${py(y[i]).toFixed(1)}`);
    const look = { fill: "none", stroke: colour, "stroke-opacity": opacity };
    svg.append(draw("path", { d: path, "stroke-width": stroke, "stroke-dasharray": dash, "stroke-linejoin": "round", ...look }));
    if (count <= SPARSE) svg.append(draw("path", { d: points, "stroke-width": stroke + 3, "stroke-linecap": "round", ...look }));
  }
  return svg;
};
