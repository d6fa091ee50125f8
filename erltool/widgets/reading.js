// A crosshair that reads the values of charts which share their horizontal axis, by pointer or by keys.
import { draw, fixed, make, showIf, slider } from "./elements.js";
import { INK, PAGE, circles, path, wide, wordOf, words } from "./kit.js";

const ROW = 15; // pixels

// Position of the value of x that is nearest to v; x rises or falls.
export const nearest = (x, v) => {
  let [best, i] = [Infinity, 0];
  for (let k = 0; k < x.length; k++) {
    const off = Math.abs(x[k] - v);
    if (off < best) [best, i] = [off, k];
  }
  return i;
};
// The last value measured up to position i.
const upTo = (y, i) => {
  let k = i;
  while (k >= 0 && !Number.isFinite(y[k])) k--;
  return k < 0 ? NaN : y[k];
};
const readings = ({ lines }, i) =>
  lines.map(({ label, y, colour }) => ({ label, colour, v: upTo(y, i) })).filter(({ v }) => Number.isFinite(v));

// The crosshair's line, points and box of values in a chart.
const drawn = ({ at, x, lines, name = (v) => `step ${Math.round(v)}` }, i) => {
  const across = at.px(x[i]);
  const read = readings({ lines }, i).sort((one, other) => other.v - one.v);
  const texts = read.map(({ label, v }) => `${label} ${fixed(v)}`);
  const title = name(x[i]);
  const [width, height] = [Math.max(...[title, ...texts].map(wide)) + 14, ROW * (texts.length + 1) + 6];
  const left = across + 10 + width <= at.right ? across + 10 : Math.max(0, across - 10 - width);
  const top = at.top + 4;
  return draw(
    "g",
    { class: "crosshair", "pointer-events": "none" },
    path(`M${across.toFixed(1)} ${at.top}V${at.bottom}`, { stroke: INK, "stroke-width": 1, "stroke-dasharray": "2 2" }),
    ...read.map(({ v, colour }) => circles([[across, at.inside(v)]], { fill: colour, stroke: PAGE })),
    draw("rect", { x: left, y: top, width, height, rx: 3, fill: PAGE, stroke: INK, "fill-opacity": 0.94 }),
    words(left + 7, top + ROW, title, { "font-weight": 600 }),
    ...read.map(({ colour }, k) => words(left + 7, top + ROW * (k + 2), texts[k], { fill: wordOf(colour) })),
  );
};

// `node` holds the charts, which may be replaced at any time; `put` is called after that. The slider that moves the
// crosshair by keys is seen by a screen reader, and its charts have the focus ring.
export const crosshair = (node, name) => {
  let at = null;
  const charts = () => [...node.querySelectorAll("svg.plot")].filter(({ plot }) => plot?.x.length);
  const show = () => {
    for (const chart of charts()) {
      chart.querySelector(".crosshair")?.remove();
      if (at !== null) chart.append(drawn(chart.plot, nearest(chart.plot.x, at)));
    }
  };
  const tell = () => {
    const said = charts().map(({ plot }) => {
      const i = nearest(plot.x, at);
      const values = readings(plot, i).map(({ label, v }) => `${label} ${fixed(v)}`);
      return `${plot.title ?? ""} ${values.join(", ")}`.trim();
    });
    input.setAttribute("aria-valuetext", said.join("; ") || "nothing to read");
  };
  const to = (k) => {
    const [first] = charts();
    if (!first) return;
    at = first.plot.x[Math.min(k, first.plot.x.length - 1)];
    show();
    tell();
  };
  const input = slider(name, { min: 0, max: 1, step: 1, value: 0 }, to);
  input.classList.add("reads");
  input.addEventListener("focus", () => to(Number(input.value)));
  const leave = () => {
    at = null;
    show();
  };
  input.addEventListener("blur", leave);
  node.addEventListener("pointermove", (e) => {
    const chart = e.target.closest?.("svg.plot");
    if (!chart?.plot?.x.length) return;
    const { left, width } = chart.getBoundingClientRect();
    const across = ((e.clientX - left) * chart.viewBox.baseVal.width) / width;
    const { x, at: scale } = chart.plot;
    at = x[nearest([...x].map(scale.px), across)];
    show();
  });
  node.addEventListener("pointerleave", leave);
  const put = () => {
    const [first] = charts();
    input.max = first ? first.plot.x.length - 1 : 0;
    showIf(input, first?.plot.x.length > 1);
    if (at !== null) show();
  };
  return { input, put, node: make("div", { class: "reader" }, input, node) };
};
