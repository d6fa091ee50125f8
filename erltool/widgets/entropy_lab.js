// The arithmetic of erltool.bandit, in the browser: a slider's picture does not wait for the kernel.
const softmax = (z) => {
  const top = Math.max(...z), e = z.map((x) => Math.exp(x - top)), sum = e.reduce((a, b) => a + b, 0);
  return e.map((x) => x / sum);
};
const entropyOf = (p) => -p.reduce((sum, x) => sum + (x > 0 ? x * Math.log(x) : 0), 0);
const mean = (p, x) => p.reduce((sum, pi, i) => sum + pi * x[i], 0);
const stepOf = (p, a, eta, method) => {
  const average = mean(p, a), centred = a.map((x) => x - average);
  return centred.map((x, i) => eta * x * (method === "pg" ? p[i] : 1));
};
const covariance = (p, x, y) => {
  const mx = mean(p, x), my = mean(p, y);
  return p.reduce((sum, pi, i) => sum + pi * (x[i] - mx) * (y[i] - my), 0);
};

const A = "#0072B2", B = "#D55E00", MAX_STEPS = 400;

function render({ model, el }) {
  const root = panel(), save = saver(model);
  el.append(root);
  if (model.get("problem")) {
    root.append(problem(model.get("problem")));
    return;
  }
  const names = model.get("names"), n = names.length;
  let z = [...model.get("logits")], a = [...model.get("advantages")];
  let history = model.get("history").map((h) => [...h]), timer = null;
  const push = () => {
    model.set({ logits: [...z], advantages: [...a], history: history.map((h) => [...h]) });
    save();
  };

  const table = make("table"), rows = [];
  table.append(make("tr", {}, ...["action", "probability", "", "advantage", "", "log \u03c0", "share of dH/d\u03b7"].map((t) => make("th", {}, t))));
  for (let i = 0; i < n; i++) {
    const shown = { p: make("td"), a: make("td"), log: make("td"), share: make("td") };
    const p = slider(`probability of ${names[i]}`, { min: 0.01, max: 0.98, step: 0.01, value: 0.5 }, (value) => {
      const others = z.filter((_, j) => j !== i), top = Math.max(...others);
      z[i] = Math.log(value / (1 - value)) + top + Math.log(others.reduce((s, x) => s + Math.exp(x - top), 0));
      restart(p);
    });
    const v = slider(`advantage of ${names[i]}`, { min: -2, max: 2, step: 0.05, value: a[i] }, (value) => { a[i] = value; restart(v); });
    rows.push({ p, v, shown });
    table.append(make("tr", {}, make("td", {}, names[i]), make("td", {}, p), shown.p, make("td", {}, v), shown.a,
      shown.log, shown.share));
  }

  const etaText = make("span", { class: "number" });
  const eta = slider("step size eta", { min: 0.02, max: 2, step: 0.02, value: model.get("eta") }, (value) => { model.set("eta", value); save(); });
  const group = `method-${Math.random().toString(36).slice(2)}`;
  const methods = [["pg", "policy gradient"], ["npg", "natural policy gradient"]].map(([key, text]) => {
    const input = keepKeys(make("input", { type: "radio", name: group, value: key }));
    input.addEventListener("change", () => { model.set("method", key); save(); });
    return make("label", {}, input, text);
  });
  const play = button("Play", () => (timer === null ? start() : stop()));
  const start = () => { play.textContent = "Pause"; timer = setInterval(advance, 120); };
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "Play"; };
  const status = make("p", { class: "status", role: "status" });
  const chart = draw("svg", { viewBox: "0 0 760 190", width: 760, height: 190, role: "img" });
  root.append(table, make("div", { class: "row" }, make("label", {}, "step size \u03b7", eta, etaText), ...methods),
    make("div", { class: "row" }, button("Step", () => advance()), play, button("Reset", () => {
      z = [...model.get("start")]; history = []; stop(); push(); paint();
    })), chart, status);

  function restart(source) { history = []; push(); paint(source); }
  function advance() {
    const p = softmax(z), h = entropyOf(p), dz = stepOf(p, a, model.get("eta"), model.get("method"));
    const predicted = -covariance(p, p.map(Math.log), dz);
    z = z.map((x, i) => x + dz[i]);
    history.push([h, entropyOf(softmax(z)) - h, predicted]);
    if (history.length >= MAX_STEPS) stop();
    push();
    paint();
  }
  function paint(source) {
    const p = softmax(z), h = entropyOf(p), method = model.get("method"), e = model.get("eta");
    const dz = stepOf(p, a, e, method), log = p.map(Math.log), mz = mean(p, dz);
    const predicted = -covariance(p, log, dz), exact = entropyOf(softmax(z.map((x, i) => x + dz[i]))) - h;
    rows.forEach((row, i) => {
      if (row.p !== source) row.p.value = p[i];
      if (row.v !== source) row.v.value = a[i];
      row.p.setAttribute("aria-valuetext", fixed(p[i], 2));
      row.v.setAttribute("aria-valuetext", fixed(a[i], 2));
      row.shown.p.textContent = fixed(p[i], 2);
      row.shown.a.textContent = fixed(a[i], 2);
      row.shown.log.textContent = fixed(log[i], 2);
      row.shown.share.textContent = fixed((-p[i] * (log[i] + h) * (dz[i] - mz)) / e, 4);
    });
    if (source !== eta) eta.value = e;
    methods.forEach((m) => { m.firstChild.checked = m.firstChild.value === method; });
    etaText.textContent = fixed(e, 2);
    status.textContent = `entropy ${fixed(h)} nats of at most ${fixed(Math.log(n))}; the next step changes it by ` +
      `${fixed(exact, 4)}, predicted ${fixed(predicted, 4)}; ${history.length} steps made`;
    chart.setAttribute("aria-label", status.textContent);
    chart.replaceChildren(...lines(h, n));
  }
  function lines(h) {
    const [x0, x1, y0, y1] = [56, 745, 155, 12], top = Math.log(n), steps = Math.max(10, history.length);
    const x = (i) => x0 + ((x1 - x0) * i) / steps, y = (v) => y0 + ((y1 - y0) * Math.max(0, Math.min(top, v))) / top;
    const path = (points) => points.map(([i, v], k) => `${k ? "L" : "M"}${x(i).toFixed(1)} ${y(v).toFixed(1)}`).join("");
    const nodes = [0, 0.5, 1].flatMap((share) => [
      draw("line", { x1: x0, x2: x1, y1: y(share * top), y2: y(share * top), stroke: "#ccc" }),
      draw("text", { x: x0 - 6, y: y(share * top) + 4, "text-anchor": "end", "font-size": 12, fill: "#111" }, fixed(share * top, 2)),
    ]);
    const exact = [...history.map(([v], i) => [i, v]), [history.length, h]];
    nodes.push(draw("path", { d: path(exact), fill: "none", stroke: A, "stroke-width": 2 }));
    let reach = exact[0][1];
    const guessed = [[0, reach], ...history.map(([, , d], i) => [i + 1, (reach += d)])];
    nodes.push(draw("path", { d: path(guessed), fill: "none", stroke: B, "stroke-width": 2, "stroke-dasharray": "6 4" }));
    exact.slice(-1).forEach(([i, v]) => nodes.push(draw("circle", { cx: x(i), cy: y(v), r: 4, fill: A })));
    nodes.push(draw("text", { x: x0, y: 182, "font-size": 12, fill: A }, "\u2014 entropy, nats"),
      draw("text", { x: x0 + 130, y: 182, "font-size": 12, fill: "#b34a00" }, "- - sum of the changes that the theorem predicts"),
      draw("text", { x: x1, y: 182, "text-anchor": "end", "font-size": 12, fill: "#111" }, `${history.length} steps`));
    return nodes;
  }
  const ours = () => JSON.stringify([model.get("logits"), model.get("advantages")]) === JSON.stringify([z, a]);
  const fromKernel = () => {
    if (timer || ours()) return;
    z = [...model.get("logits")]; a = [...model.get("advantages")];
    history = model.get("history").map((h) => [...h]);
    paint();
  };
  ["logits", "advantages"].forEach((t) => model.on(`change:${t}`, fromKernel));
  ["eta", "method"].forEach((t) => model.on(`change:${t}`, () => paint(document.activeElement)));
  paint();
  return () => stop();
}
export default { render };
