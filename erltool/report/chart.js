// Charts of metrics by step: a line a run, or a line a kind for the chosen run, with labels at their ends.
const HEIGHT = 240;
const COLOURED = 6; // runs with a colour each; of more, the chosen one has one
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "5 2", "1 2"];
const MOST_DECADES = 5;

const spanOf = (lines, log) => {
  const values = lines.flatMap(({ y }) => y).filter((v) => Number.isFinite(v) && (!log || v > 0));
  if (!values.length) return null;
  let [low, high] = [Infinity, -Infinity];
  for (const v of values) [low, high] = [Math.min(low, v), Math.max(high, v)];
  if (log) return [Math.max(low, high / 10 ** MOST_DECADES) / 1.2, high * 1.2];
  if (low > 0 && low < 0.7 * high) low = 0;
  const room = 0.05 * (high - low || Math.abs(high) || 1);
  return [low === 0 ? 0 : low - room, high + room];
};
const ticks = ([low, high], count) => {
  const power = 10 ** Math.floor(Math.log10((high - low) / count));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= (high - low) / count);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const values = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) values.push(i * step);
  return values.map((v) => [v, v.toFixed(digits).replace("-", "\u2212")]);
};
const decades = ([low, high]) => {
  const first = Math.ceil(Math.log10(low));
  const powers = Array.from({ length: Math.floor(Math.log10(high)) - first + 1 }, (_, i) => 10 ** (first + i));
  return powers.length > 1 ? powers.map((v) => [v, short(v)]) : ticks([low, high], 4);
};
const linePath = (line, px, py) => {
  const places = line.x.map((x, i) => [px(x), py(line.y[i])]).filter(([, y]) => Number.isFinite(y));
  return places.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
};
const nearest = (line, step) => {
  let k = 0;
  for (let i = 1; i < line.x.length; i++) if (Math.abs(line.x[i] - step) < Math.abs(line.x[k] - step)) k = i;
  return k;
};

// Names at the ends of lines, pushed apart where they would overlap.
const labelsOf = (ends, right) => {
  const sorted = ends.toSorted((a, b) => a.y - b.y);
  sorted.forEach((end, i) => (end.y = i ? Math.max(end.y, sorted[i - 1].y + 13) : Math.max(end.y, 18)));
  let floor = HEIGHT - 42;
  for (const end of sorted.toReversed()) [end.y, floor] = [Math.min(end.y, floor), Math.min(end.y, floor) - 13];
  return sorted.map(({ y, name, colour }) => {
    const cut = name.length > 14 ? `${name.slice(0, 13)}\u2026` : name;
    return draw("text", { x: right + 6, y: y + 4, style: `fill: var(--${colour})` }, cut);
  });
};

// A chart as a figure, with `put` for another chosen run and `at` for another step.
const chartOf = (chart, facts, lastStep, moved) => {
  const byKind = new Set(chart.lines.map((l) => l.kind)).size > 2; // kinds have colours, and one run is drawn
  const few = facts.runs.length <= COLOURED;
  const readout = make("p", byKind ? { class: "two" } : {});
  const title = make("figcaption", {}, chart.title, " ", make("small", {}, chart.unit));
  const figure = make("figure", {}, title, readout);
  let [drawn, chosen, step, px] = [[], 0, lastStep, null];
  const nameOf = (l) =>
    byKind || facts.runs.length === 1 ? l.name : [facts.runs[l.run], l.name].filter(Boolean).join(", ");
  const kinds = [...new Map(chart.lines.map((l) => [l.kind, l.name])).values()];
  const dashed = !byKind && facts.runs.length > 1 && kinds.length > 1;
  if (dashed) title.lastChild.append(` (${kinds[0]}; dashed: ${kinds[1]})`);
  const colourOf = (l) => (byKind ? `q${l.kind}` : `c${few ? l.run % COLOURED : 0}`);

  const paint = () => {
    const width = Math.max(280, Math.min(640, figure.clientWidth - 26 || 420));
    const shown = byKind ? chart.lines.filter((l) => l.run === chosen) : chart.lines;
    const vivid = byKind || few ? shown : shown.filter((l) => l.run === chosen);
    const labelled = vivid.length > 1;
    const box = { left: 52, right: width - (labelled ? 98 : 10), top: 12, bottom: HEIGHT - 38 };
    const svg = draw("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img" });
    const span = spanOf(shown, chart.log);
    drawn = [];
    figure.querySelector("svg")?.remove();
    figure.append(svg);
    if (!span) {
      svg.append(draw("text", { x: width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "not measured in this run"));
      svg.setAttribute("aria-label", `${chart.title}: not measured in this run`);
      readout.textContent = "";
      return;
    }
    const to = chart.log ? (v) => (v > 0 ? Math.log10(v) : NaN) : (v) => v;
    px = (v) => box.left + ((box.right - box.left) * v) / lastStep;
    const py = (v) => box.bottom - ((box.bottom - box.top) * (to(v) - to(span[0]))) / (to(span[1]) - to(span[0]));
    for (const [v, text] of chart.log ? decades(span) : ticks(span, 4)) {
      svg.append(draw("line", { class: "grid", x1: box.left, x2: box.right, y1: py(v), y2: py(v) }));
      svg.append(draw("text", { x: box.left - 6, y: py(v) + 4, "text-anchor": "end" }, text));
    }
    for (const [v, text] of ticks([0, lastStep], 4))
      svg.append(draw("text", { x: px(v), y: HEIGHT - 21, "text-anchor": "middle" }, text));
    svg.append(draw("text", { x: box.right, y: HEIGHT - 4, "text-anchor": "end" }, "optimiser step"));
    for (const l of shown.filter((l) => !vivid.includes(l)))
      svg.append(draw("path", { class: "faint", d: linePath(l, px, py) }));
    for (const [run, at, text] of facts.alarms.filter(([run]) => run === chosen))
      svg.append(
        draw("line", { class: "alarm", x1: px(at), x2: px(at), y1: box.top, y2: box.bottom }, draw("title", {}, text)),
      );
    for (const l of vivid) {
      const dash = byKind ? DASHES[l.kind === 5 ? 1 : 0] : DASHES[l.kind ? 1 : few ? l.run : 0];
      const style = `stroke: var(--${colourOf(l)})`;
      svg.append(draw("path", { d: linePath(l, px, py), style, "stroke-dasharray": dash }));
      drawn.push({ line: l, py, dot: draw("circle", { r: 3.4, style: `fill: var(--${colourOf(l)})` }) });
    }
    // With two kinds of lines the dashes tell the kind, and the label at the first one the run.
    const named = dashed ? vivid.filter((l) => l.kind === vivid[0].kind) : vivid;
    const heightOf = (l) => (Number.isFinite(py(l.y.at(-1))) ? py(l.y.at(-1)) : box.bottom);
    const ends = named.map((l) => ({
      y: heightOf(l),
      name: dashed ? facts.runs[l.run] : nameOf(l),
      colour: colourOf(l),
    }));
    if (labelled) svg.append(...labelsOf(ends, box.right));
    svg.append(draw("line", { class: "cursor", y1: box.top, y2: box.bottom }), ...drawn.map(({ dot }) => dot));
    const changes = vivid
      .slice(0, COLOURED)
      .map((l) => `${nameOf(l)} from ${short(l.y[0])} to ${short(l.y.at(-1))}`.trim());
    svg.setAttribute("aria-label", `${chart.title} (${chart.unit}) by optimiser step: ${changes.join("; ")}`);
    svg.addEventListener("pointermove", (e) => {
      const { left, width: wide } = svg.getBoundingClientRect();
      const x = ((e.clientX - left) * width) / wide;
      moved(Math.max(0, Math.min(lastStep, (lastStep * (x - box.left)) / (box.right - box.left))));
    });
    at(step);
  };
  const at = (now) => {
    step = now;
    const cursor = figure.querySelector(".cursor");
    if (!cursor) return;
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, px(step));
    const read = new Map();
    for (const { line, py, dot } of drawn) {
      const k = nearest(line, step);
      dot.setAttribute("cx", px(line.x[k]));
      dot.setAttribute("cy", Number.isFinite(py(line.y[k])) ? py(line.y[k]) : -9);
      const name = dashed ? facts.runs[line.run] : nameOf(line);
      read.set(name, [...(read.get(name) ?? []), short(line.y[k])]);
    }
    readout.textContent = [...read].map(([name, values]) => `${name} ${values.join(", ")}`.trim()).join(" \u00b7 ");
  };
  const put = (run) => {
    chosen = run;
    paint();
  };
  return { figure, paint, put, at };
};
