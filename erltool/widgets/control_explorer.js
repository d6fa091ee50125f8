const ALWAYS = { none: "the run without control", "random-clip": "the random baseline: tokens drawn at random" };
const END = { entropy_end: "entropy at the end, nats/token", accuracy_late: "late held-out accuracy", accuracy_best: "its best", length_end: "length, tokens" };

function render({ model, el }) {
  const root = panel(), save = saver(model), d = model.get("data");
  el.append(root);
  if (model.get("problem")) root.append(problem(model.get("problem")));
  if (!d.groups.length) return;
  const steps = floats(d.steps), n = steps.length, runs = {}, means = {};
  for (const metric of Object.keys(d.metrics)) {
    const all = floats(d.curves[metric]);
    runs[metric] = Array.from({ length: all.length / n }, (_, r) => all.subarray(r * n, (r + 1) * n));
  }
  const rows = (metric, group) => group.runs.map((r) => runs[metric][r]);
  const meanOf = (metric, i) => (means[`${metric} ${i}`] ??= (() => {
    const lines = rows(metric, d.groups[i]);
    return Float32Array.from(steps, (_, k) => lines.reduce((sum, y) => sum + y[k], 0) / lines.length);
  })());
  const text = (v) => (typeof v === "number" ? String(Number(v.toPrecision(6))) : v);
  const inSetting = (control) => [...d.groups.keys()].filter((i) => d.groups[i].control === control && d.groups[i].setting === model.get("setting"));
  const differing = (i, parameters) => Object.entries(d.groups[i].parameters).filter(([k, v]) => parameters[k] !== v).length;
  const nearest = (candidates, at) => {
    const size = (i) => d.groups[i].runs.length, parameters = d.groups[at] && d.groups[at].parameters;
    return candidates.reduce((a, b) => (parameters ? differing(b, parameters) < differing(a, parameters) : size(b) > size(a)) ? b : a);
  };
  const put = (name, value) => { model.set(name, value); save(); };

  const swatch = (control) => {
    const { colour, dash } = d.styles[control], svg = draw("svg", { width: 34, height: 12, class: "swatch", "aria-hidden": "true" });
    svg.append(draw("line", { x1: 2, x2: 32, y1: 6, y2: 6, stroke: colour, "stroke-width": 2.5, "stroke-dasharray": dash.join(" ") }));
    return svg;
  };
  const tick = (name, checked, onChange) => {
    const input = keepKeys(make("input", { type: "checkbox" }));
    input.checked = checked;
    input.addEventListener("change", () => onChange(input.checked));
    return { input, node: make("label", {}, input, name) };
  };
  // A slider over the recorded numbers, or a list where one is a text; `show` puts it to the group on show.
  const parameter = (control, key, values) => {
    const name = `${control} ${key}`, shown = make("span", { class: "number" });
    const change = (value) => {
      const fits = inSetting(control).filter((i) => d.groups[i].parameters[key] === value);
      put("chosen", { ...model.get("chosen"), [control]: nearest(fits, model.get("chosen")[control] ?? -1) });
      paint();
    };
    if (values.every((v) => typeof v === "number")) {
      const input = slider(name, { min: 0, max: values.length - 1, step: 1, value: 0 }, (k) => change(values[k]));
      const show = (value) => { input.value = values.indexOf(value); shown.textContent = text(value); input.setAttribute("aria-valuetext", text(value)); };
      return { key, node: make("label", {}, key, input, shown), show };
    }
    const list = keepKeys(make("select", { "aria-label": name }));
    list.append(...values.map((v, k) => make("option", { value: k }, text(v))));
    list.addEventListener("change", () => change(values[Number(list.value)]));
    return { key, node: make("label", {}, key, list), show: (value) => { list.value = values.indexOf(value); } };
  };
  const controlRow = (control) => {
    const here = inSetting(control), all = here.map((i) => d.groups[i].parameters), always = control in ALWAYS;
    const box = tick("", true, (on) => {
      const chosen = { ...model.get("chosen") };
      if (on) chosen[control] = nearest(here, -1); else delete chosen[control];
      put("chosen", chosen);
      paint();
    });
    box.node.append(swatch(control), control);
    if (always) { box.input.disabled = true; box.node.title = ALWAYS[control]; }
    const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
    const parameters = Object.keys(all[0]).map((key) => [key, [...new Set(all.map((p) => p[key]))].sort(order)])
      .filter(([, values]) => values.length > 1).map(([key, values]) => parameter(control, key, values));
    const show = () => {
      const at = model.get("chosen")[control], group = d.groups[at];
      box.input.checked = at !== undefined;
      parameters.forEach((p) => { p.node.style.display = group ? "" : "none"; if (group) p.show(group.parameters[p.key]); });
    };
    return { node: make("div", { class: "choice" }, box.node, ...parameters.map((p) => p.node)), show };
  };

  const controls = make("div", { role: "group", "aria-label": "controls" }), charts = make("div", { class: "charts" });
  const table = make("table", { "aria-label": "end values" }), status = make("p", { class: "status", role: "status" });
  const metrics = Object.entries(d.metrics).map(([key, name]) => [key, tick(name.replace(/ \(.*/, ""), false, (on) => {
    const now = model.get("metrics");
    put("metrics", Object.keys(d.metrics).filter((m) => (m === key ? on : now.includes(m))));
    paint();
  })]);
  const setting = keepKeys(make("select", { "aria-label": "setting" }));
  setting.append(...d.settings.map((s, i) => make("option", { value: i }, s)));
  setting.addEventListener("change", () => {
    const chosen = model.get("chosen");
    model.set("setting", Number(setting.value));
    put("chosen", Object.fromEntries(d.controls.filter((c) => (c in chosen || c in ALWAYS) && inSetting(c).length)
      .map((c) => [c, nearest(inSetting(c), chosen[c] ?? -1)])));
    rebuild();
  });
  root.append(make("div", { class: "row", role: "group", "aria-label": "metrics" }, "show", ...metrics.map(([, m]) => m.node)));
  if (d.settings.length > 1) root.append(make("div", { class: "row" }, make("label", {}, "setting", setting)));
  root.append(controls, charts, table, status);

  let shown = [];
  const rebuild = () => {
    shown = d.controls.filter((c) => inSetting(c).length).map(controlRow);
    controls.replaceChildren(...shown.map((r) => r.node));
    paint();
  };
  const chartOf = (metric, groups, width, height) => {
    const lines = groups.flatMap((i) => {
      const { colour, dash } = d.styles[d.groups[i].control], own = rows(metric, d.groups[i]);
      return own.length > 1 ? own.map((y) => ({ y, colour, dash: "", width: 0.8, opacity: 0.4 })) : [];
    });
    for (const i of groups) {
      const { colour, dash } = d.styles[d.groups[i].control];
      lines.push({ y: meanOf(metric, i), colour, dash: dash.join(" "), width: 2.4, opacity: 1 });
    }
    const svg = lineChart(d.metrics[metric], steps, d.last, lines, width, height);
    svg.setAttribute("aria-label", `${d.metrics[metric]} by optimiser step: ${groups.map((i) => d.groups[i].label).join("; ")}; the table below has the end values`);
    return svg;
  };
  const paint = () => {
    const chosen = model.get("chosen"), groups = d.controls.filter((c) => c in chosen).map((c) => chosen[c]), now = model.get("metrics");
    setting.value = model.get("setting");
    shown.forEach((row) => row.show());
    metrics.forEach(([key, { input }]) => { input.checked = now.includes(key); });
    const [width, height] = now.length === 1 ? [756, 270] : [376, 210];
    charts.replaceChildren(...(now.length ? now.map((m) => chartOf(m, groups, width, height)) : ["choose a metric above"]));
    const cell = (v, digits, alone) => (v ? make("td", {}, `${fixed(v[0], digits)}`, ...(alone ? [] : [make("small", {}, `[${fixed(v[1], digits)}, ${fixed(v[2], digits)}]`)])) : make("td", {}, "\u2013"));
    const head = ["mean over seeds [lowest, highest]", "seeds", ...Object.values(END), "late accuracy against none"];
    table.replaceChildren(make("tr", {}, ...head.map((t) => make("th", { scope: "col" }, t))), ...groups.map((i) => {
      const { label, runs, end } = d.groups[i];
      const ends = Object.keys(END).map((k) => cell(end[k], k === "length_end" ? 1 : 3, runs.length === 1));
      return make("tr", {}, make("th", { scope: "row" }, label), make("td", {}, String(runs.length) + (end.failed ? `, ${end.failed} failed` : "")), ...ends, cell(end.difference, 3));
    }));
    const value = (v) => (v ? fixed(v[0]) : "not measured");
    status.textContent = `entropy at the end and late held-out accuracy: ${groups.map((i) => `${d.groups[i].label} ${value(d.groups[i].end.entropy_end)} and ${value(d.groups[i].end.accuracy_late)}`).join("; ")}. ` +
      "Late: mean over the second half of the steps. Against none: mean difference and its 95 % interval, paired by seed.";
  };
  model.on("change:setting", () => { if (Number(setting.value) !== model.get("setting")) rebuild(); });
  model.on("change:chosen change:metrics", paint);
  rebuild();
}
export default { render };
