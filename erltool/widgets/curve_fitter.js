const DATA = "#0072B2", FORECAST = "#D55E00", DRAGGED = "#111111", OTHERS = ["#009E73", "#CC79A7", "#000000"];
const outlines = [[-3, 3, "h6l-3 -6z"], [-3, 0, "l3 -4l3 4l-3 4z"], [-3, -3, "h6l-3 6z"]]; // from where about a point, and its outline
const FILES = { png: "Save PNG", svg: "Save SVG", pdf: "Save PDF", json: "Save numbers as JSON", tex: "Save numbers as LaTeX" };
const PAUSE = 600; // ms without a change after which the laws are compared, which takes most of a second
const [WIDE, HIGH, LEFT, RIGHT, TOP, BOTTOM] = [756, 334, 62, 744, 24, 292];

function render({ model, el }) {
  const root = panel(), wrong = make("div"), save = saver(model), sources = model.get("sources");
  const complain = () => {
    const text = model.get("problem");
    if (wrong.textContent !== text) wrong.replaceChildren(...(text ? [problem(text)] : []));
  };
  root.append(wrong);
  el.append(root);
  complain();
  if (!sources.length) return;

  const short = (v) => String(Number(v.toPrecision(4))).replace("-", "\u2212");
  const ask = (...change) => { model.set(...change); model.save_changes(); };
  const look = (k) => ({ colour: OTHERS[k % 3], dash: ["7 3", "2 2", "9 3 2 3"][Math.floor(k / 3) % 3], dot: outlines[k % 3] });
  const at = ([left, down, outline], x, y) => `M${(x + left).toFixed(1)} ${(y + down).toFixed(1)}${outline}`;

  // A slider over `trait` whose ends follow the data; `act` says what a move does, `text` what is read of a value.
  const number = (name, act, text) => {
    const shown = make("span", { class: "number" });
    const tell = (v) => { shown.textContent = text(v); input.setAttribute("aria-valuetext", shown.textContent); };
    const input = slider(name, { min: 0, max: 1, step: 1, value: 0 }, (v) => { tell(v); act(v); });
    const put = (value, min, max, step) => {
      Object.assign(input, { min, max, step });
      if (document.activeElement !== input) input.value = value; // the reader may have moved on since
      tell(document.activeElement === input ? Number(input.value) : value);
    };
    return { node: make("label", {}, name, input, shown), put, input };
  };
  const drag = (trait) => (v) => {
    model.set({ a: model.get("a") ?? d.a, b: model.get("b") ?? d.b, [trait]: v });
    save();
    paint();
  };
  const a = number("a", drag("a"), short), b = number("b", drag("b"), short);
  const span = number("window", (v) => ask("window", v), (v) => `${v} averaged`);
  const block = number("block length", (v) => ask("block_length", v), (v) => `${v} points`);
  const cut = number("forecast cut", (v) => ask("cut", v), (v) => (v === 1 ? "all fitted" : `${Math.round(100 * v)} % fitted`));
  const fit = button("Let it fit", () => { ask({ a: null, b: null }); paint(); });
  const tick = (name, onChange) => {
    const input = keepKeys(make("input", { type: "checkbox" })), node = make("label", {}, input, name);
    input.addEventListener("change", () => onChange(input.checked));
    return { input, node };
  };
  const log = tick("logarithmic entropy axis", (on) => { model.set("log_axis", on); save(); read(); });
  const swatch = ({ colour, dash, dot }) => {
    const svg = draw("svg", { width: 34, height: 12, class: "swatch", "aria-hidden": "true" });
    svg.append(draw("line", { x1: 1, x2: 33, y1: 6, y2: 6, stroke: colour, "stroke-width": 1.8, "stroke-dasharray": dash }));
    if (dot) svg.append(draw("path", { d: at(dot, 17, 6), fill: colour }));
    return svg;
  };
  const legend = (text, colour, dash) => make("span", {}, swatch({ colour, dash }), ` ${text}`);
  const key = { fit: legend("least squares, 95 % band", DATA, ""), forecast: legend("forecast from the filled points, 90 % interval", FORECAST, "8 4"), other: legend("", DRAGGED, "") };
  const data = select("data", sources.map((s, i) => [i, s.name]), model.get("current"), (v) => ask("current", Number(v)));
  const others = sources.map(({ name }, i) => {
    const box = tick("", (on) => ask("beside", [...model.get("beside").filter((k) => k !== i), ...(on ? [i] : [])].sort((x, y) => x - y)));
    const mark = make("span");
    box.node.append(mark, name);
    return { ...box, mark };
  });
  const performance = select("performance", [["eval_accuracy", "held-out accuracy"], ["reward", "training reward"]], model.get("performance"), (v) => ask("performance", v));
  const law = select("law", model.get("laws").map((l) => [l[0], `${l[0]}: ${l[1]}`]), model.get("law"), (v) => ask("law", v));
  const measured = make("label", {}, "performance", performance), handles = [a.node, b.node, fit], refits = [block.node, cut.node];
  const chart = draw("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, width: WIDE, height: HIGH, role: "img" });
  const status = make("p", { class: "status", role: "status" }), advice = make("p"), verdict = make("p"), notes = make("ul", { class: "alarms", "aria-label": "notes" });
  const table = make("table", { "aria-label": "least-squares fits" });
  let asked = false;
  const files = Object.entries(FILES).map(([format, name]) => button(name, () => { asked = true; model.send({ command: "export", format }); }));
  root.append(make("div", { class: "row" }, make("label", {}, "data", data), measured, make("label", {}, "law", law)),
    ...(sources.length > 1 ? [make("div", { class: "row", role: "group", "aria-label": "drawn beside it" }, "beside it", ...others.map((o) => o.node))] : []),
    make("div", { class: "row" }, ...handles), make("div", { class: "row" }, span.node, ...refits, log.node),
    chart, make("div", { class: "row", "aria-hidden": "true" }, ...Object.values(key)), status, advice, verdict, notes, table, make("div", { class: "row" }, ...files));

  let d = {}, px, py, edge, timer = null;
  const read = () => { // what a move of a or b leaves as it is
    const sent = model.get("data"), logarithmic = model.get("log_axis");
    complain();
    if (!sent.h) { d = {}; paint(); return; }
    d = { ...sent, h: floats(sent.h), r: floats(sent.r), grid: floats(sent.grid), curve: floats(sent.curve), low: floats(sent.low), high: floats(sent.high),
      beside: sent.beside.map((o) => ({ ...o, h: floats(o.h), r: floats(o.r), curve: floats(o.curve) })),
      forecast: sent.forecast.curve ? { ...sent.forecast, curve: floats(sent.forecast.curve), low: floats(sent.forecast.low), high: floats(sent.forecast.high) } : null };
    const h = [d.h, ...d.beside.map((o) => o.h)].flatMap((v) => [...v]), ends = d.ceiling === null ? [] : [d.ceiling];
    const r = [d.r, ...d.beside.map((o) => o.r), d.beside.map((o) => o.curve[0]), ends].flatMap((v) => [...v]).filter(Number.isFinite);
    let low = Math.min(...r), high = Math.max(...r);
    const room = 0.08 * (high - low || 1), last = Math.max(...h) * 1.03;
    [low, high] = [low - room, high + room];
    edge = logarithmic ? Math.min(...h.filter((v) => v > 0)) / 1.2 : Math.min(0, ...h);
    const to = logarithmic ? (v) => (v > 0 ? Math.log(v) : NaN) : (v) => v, [begin, end] = [to(edge), to(last)];
    px = (v) => LEFT + ((RIGHT - LEFT) * (to(v) - begin)) / (end - begin);
    py = (v) => BOTTOM - ((BOTTOM - TOP) * (v - low)) / (high - low);
    d.frame = frame(low, high, last, logarithmic);
    compareSoon();
    paint();
  };
  const compareSoon = () => {
    clearTimeout(timer);
    if (d.h && !model.get("verdict")) timer = setTimeout(() => model.send({ command: "compare" }), PAUSE);
  };
  const words = (x, y, text, extra = {}) => draw("text", { x, y, "font-size": 12, fill: "#111111", ...extra }, text);
  const frame = (low, high, last, logarithmic) => {
    const decades = [-4, -3, -2, -1, 0, 1].flatMap((e) => [1, 2, 5].map((m) => [m * 10 ** e, String(Number((m * 10 ** e).toPrecision(1)))]));
    const along = logarithmic ? decades.filter(([v]) => v >= edge && v <= last) : ticks(edge, last, 8);
    return [
      ...ticks(low, high, 6).flatMap(([v, text]) => [draw("line", { x1: LEFT, x2: RIGHT, y1: py(v), y2: py(v), stroke: "#dddddd" }), words(LEFT - 6, py(v) + 4, text, { "text-anchor": "end" })]),
      ...along.flatMap(([v, text]) => [draw("line", { x1: px(v), x2: px(v), y1: BOTTOM, y2: BOTTOM + 4, stroke: "#777777" }), words(px(v), BOTTOM + 17, text, { "text-anchor": "middle" })]),
      draw("rect", { x: LEFT, y: TOP, width: RIGHT - LEFT, height: BOTTOM - TOP, fill: "none", stroke: "#777777" }),
      words(RIGHT, HIGH - 6, "policy entropy H (nats/token)", { "text-anchor": "end" }), words(LEFT, TOP - 8, `performance R (${d.unit})`),
    ];
  };
  const inside = (y) => Math.max(TOP, Math.min(BOTTOM, py(y)));
  // A line where it is inside the frame.
  const line = (y, look) => {
    let path = "", on = false;
    d.grid.forEach((v, i) => {
      const here = px(v) >= LEFT - 0.01 && py(y[i]) >= TOP && py(y[i]) <= BOTTOM;
      if (here) path += `${on ? "L" : "M"}${px(v).toFixed(1)} ${py(y[i]).toFixed(1)}`;
      on = here;
    });
    return draw("path", { d: path, fill: "none", "stroke-width": 2, ...look });
  };
  const band = (low, high, fill) => {
    const seen = [...d.grid.keys()].filter((i) => px(d.grid[i]) >= LEFT - 0.01), point = (y) => (i) => `${px(d.grid[i]).toFixed(1)} ${inside(y[i]).toFixed(1)}`;
    return draw("path", { d: seen.length ? `M${[...seen.map(point(low)), ...seen.reverse().map(point(high))].join("L")}z` : "", fill, "fill-opacity": 0.16 });
  };
  const dots = (h, r, from, to) => [...Array(to - from).keys()].map((k) => k + from).filter((i) => px(h[i]) >= LEFT - 0.01).map((i) => [px(h[i]), inside(r[i])]);
  const circles = (points, look) => draw("path", { d: points.map(([x, y]) => `M${(x - 3.2).toFixed(1)} ${y.toFixed(1)}a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0 -6.4 0`).join(""), stroke: DATA, "stroke-width": 1.4, ...look });

  const paint = () => {
    const exponential = model.get("law") === "exponential", current = model.get("current");
    const dragged = exponential && d.h && (model.get("a") ?? model.get("b")) !== null;
    data.value = current;
    law.value = model.get("law");
    performance.value = model.get("performance");
    measured.style.display = sources[current]?.run ? "" : "none";
    log.input.checked = model.get("log_axis");
    others.forEach((o, i) => { o.node.style.display = i === current ? "none" : ""; o.input.checked = model.get("beside").includes(i); });
    for (const node of [...handles, ...refits]) node.style.display = exponential && d.h ? "" : "none";
    fit.setAttribute("aria-disabled", String(!dragged));
    const shown = { fit: d.h && exponential, forecast: d.forecast, other: d.h && (dragged || !exponential) };
    for (const [name, node] of Object.entries(key)) node.style.display = shown[name] ? "" : "none";
    key.other.lastChild.textContent = dragged ? " dragged" : ` the law ${model.get("law")}`;
    span.node.style.display = d.h ? "" : "none";
    if (!d.h) {
      chart.replaceChildren();
      chart.setAttribute("aria-label", "nothing to draw");
      status.textContent = "";
      return;
    }
    const now = dragged ? [model.get("a") ?? d.a, model.get("b") ?? d.b] : [d.a, d.b];
    [[a, d.a, now[0]], [b, d.b, now[1]]].forEach(([s, middle, value]) => s.put(value, middle - 100 * d.step, middle + 100 * d.step, d.step));
    span.put(d.window, 1, d.window_max, 1);
    block.put(d.block, 1, d.block_max, 1);
    cut.put(model.get("cut"), 0.05, 1, 0.01);
    const of = (h) => now[1] - now[0] * Math.exp(h), curve = dragged ? d.grid.map(of) : d.curve;
    drawn(dragged, exponential, curve, dragged ? now[1] - now[0] : d.ceiling);
    if (dragged) {
      const rmse = Math.sqrt(d.r.reduce((sum, r, i) => sum + (r - of(d.h[i])) ** 2, 0) / d.r.length);
      status.textContent = `${sources[current].name}: dragged to a = ${short(now[0])}, b = ${short(now[1])}: RMSE ${short(rmse)} (${d.unit}) where least squares has ${short(d.rmse)}; ceiling ${short(now[1] - now[0])}.`;
    } else status.textContent = d.words;
    chart.setAttribute("aria-label", status.textContent);
  };
  const drawn = (dragged, exponential, curve, ceiling) => {
    const f = d.forecast, count = f ? f.count : d.h.length, nodes = [...d.frame];
    if (d.low.length) nodes.push(band(d.low, d.high, DATA));
    if (f) nodes.push(band(f.low, f.high, FORECAST), line(f.curve, { stroke: FORECAST, "stroke-dasharray": "8 4" }));
    for (const [k, o] of d.beside.entries()) {
      const { colour, dash, dot } = look(k);
      nodes.push(line(o.curve, { stroke: colour, "stroke-dasharray": dash, "stroke-width": 1.6 }));
      nodes.push(draw("path", { d: dots(o.h, o.r, 0, o.h.length).map(([x, y]) => at(dot, x, y)).join(""), fill: colour }));
    }
    if (dragged) nodes.push(line(d.curve, { stroke: DATA, "stroke-dasharray": "3 3", "stroke-width": 1.4 }));
    nodes.push(line(curve, { stroke: dragged || !exponential ? DRAGGED : DATA }));
    const bars = [...d.h].map((h, i) => [h, d.r[i], curveAt(curve, h)]).filter(([h]) => px(h) >= LEFT - 0.01);
    nodes.push(draw("path", { d: bars.map(([h, r, c]) => `M${px(h).toFixed(1)} ${inside(r).toFixed(1)}V${inside(c).toFixed(1)}`).join(""), stroke: DATA, "stroke-width": 1, fill: "none" }));
    nodes.push(circles(dots(d.h, d.r, 0, count), { fill: DATA }));
    if (f) nodes.push(circles(dots(d.h, d.r, count, d.h.length), { fill: "#ffffff" }));
    if (ceiling !== null && Number.isFinite(ceiling)) {
      if (d.interval && !dragged) nodes.push(draw("path", { d: `M${LEFT + 5} ${inside(d.interval[0])}V${inside(d.interval[1])}M${LEFT + 1} ${inside(d.interval[0])}h8M${LEFT + 1} ${inside(d.interval[1])}h8`, stroke: DRAGGED, "stroke-width": 1.6 }));
      nodes.push(draw("line", { x1: LEFT, x2: RIGHT, y1: inside(ceiling), y2: inside(ceiling), stroke: DRAGGED, "stroke-dasharray": "2 4" }));
      nodes.push(words(RIGHT - 6, inside(ceiling) + (inside(ceiling) > TOP + 20 ? -5 : 14), `ceiling ${short(ceiling)}`, { "text-anchor": "end" }));
    }
    chart.replaceChildren(...nodes);
  };
  const curveAt = (curve, h) => { // between the grid's neighbours: what is drawn and the bar that ends on it agree
    let i = 1;
    while (i < d.grid.length - 1 && d.grid[i] < h) i++;
    const [x, y] = [d.grid[i - 1], d.grid[i]], share = y > x ? (h - x) / (y - x) : 0;
    return curve[i - 1] + share * (curve[i] - curve[i - 1]);
  };
  const tell = () => { // with the data, not with a drag
    const sent = model.get("data");
    others.forEach((o, i) => {
      const k = (sent.beside ?? []).findIndex((b) => b.at === i);
      o.mark.replaceChildren(...(k < 0 ? [] : [swatch(look(k))]));
      o.mark.style.display = k < 0 ? "none" : "";
    });
    advice.textContent = d.h ? sent.forecast.words : "";
    verdict.textContent = d.h ? model.get("verdict") || "Comparing the laws\u2026" : "";
    notes.replaceChildren(...(sent.notes ?? []).map((n) => make("li", {}, n)));
    table.replaceChildren(...(d.h ? [make("tr", {}, ...["least squares of the law, 95 % interval", "a", "b", "ceiling b \u2212 a", "R\u00b2", "RMSE", "points"].map((t) => make("th", { scope: "col" }, t))),
      ...d.rows.map(([name, ...cells]) => make("tr", {}, make("th", { scope: "row" }, name), ...cells.map((c) => {
        const [value, interval] = c.split("|");
        return make("td", {}, value, ...(interval ? [make("small", {}, interval)] : []));
      })))] : []));
  };
  model.on("change:data", () => { read(); tell(); });
  model.on("change:problem", complain);
  model.on("change:verdict", () => { compareSoon(); tell(); });
  model.on("change:log_axis", read);
  model.on("change:a change:b", () => paint());
  model.on("msg:custom", (content, buffers) => {
    if (!asked || !content.type) return; // another view of this widget asked
    asked = false;
    const link = make("a", { href: URL.createObjectURL(new Blob([buffers[0]], { type: content.type })), download: content.name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
  read();
  tell();
  return () => clearTimeout(timer);
}
export default { render };
