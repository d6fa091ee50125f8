// Colours for colour-blind readers: cividis for amounts, orange to violet through white where 0 means something.
const CIVIDIS = [[0, 34, 78], [26, 56, 111], [67, 78, 108], [97, 101, 111], [125, 124, 120], [155, 148, 118], [188, 174, 108], [222, 201, 88], [254, 232, 56]];
const PUOR = [[127, 59, 8], [190, 99, 10], [239, 158, 60], [254, 215, 162], [246, 246, 247], [206, 205, 228], [152, 141, 190], [93, 55, 144], [45, 0, 75]];
const between = (stops, t) => {
  const x = Math.max(0, Math.min(1, t)) * (stops.length - 1), i = Math.min(stops.length - 2, Math.floor(x));
  return stops[i].map((c, k) => Math.round(c + (stops[i + 1][k] - c) * (x - i)));
};
const luminance = (rgb) => {
  const [r, g, b] = rgb.map((c) => ((c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const PAGE = 1000; // tokens in the page at a time
const QUANTITIES = { covariance: "covariance", entropy: "entropy", log_prob: "log-prob", ratio: "ratio", selected: "taken by the run" };
const CENTRES = { covariance: 0, ratio: 1 }; // the value at which a quantity changes its meaning: white

function render({ model, el }) {
  const root = panel(), save = saver(model);
  el.append(root);
  if (model.get("problem")) {
    root.append(problem(model.get("problem")));
    return;
  }
  let d, page = 0, focused = 0, spans = [];
  const read = () => {
    const raw = model.get("data");
    d = { texts: raw.texts, prompts: raw.prompts, rewards: raw.rewards, told: raw.told, begins: [...raw.begins, raw.texts.length] };
    for (const name of ["covariance", "entropy", "log_prob", "ratio", "selected", "advantage", "keys", "forks"]) d[name] = floats(raw[name]);
    d.n = raw.texts.length;
    d.ranges = {};
    d.order = [...d.covariance.keys()].sort((i, j) => d.covariance[j] - d.covariance[i]);
    d.drawn = [...d.keys.keys()].sort((i, j) => d.keys[j] - d.keys[i]);
  };
  const count = (fraction) => (fraction > 0 && d.n ? Math.min(d.n, Math.max(1, Math.floor(fraction * d.n + 1e-9))) : 0);
  const average = (x) => x.reduce((a, b) => a + b, 0) / x.length;
  const covarianceOf = (a) => {
    const ml = average(d.log_prob), ma = average(a);
    let sum = 0;
    for (let i = 0; i < d.n; i++) sum += (d.log_prob[i] - ml) * (a[i] - ma);
    return sum / d.n;
  };
  const choose = () => {
    const [low, high] = [model.get("low"), model.get("high")], clip = new Set(), kl = new Set();
    const budget = count(model.get("clip_fraction"));
    for (const i of d.drawn) { if (clip.size >= budget) break; if (d.covariance[i] > low && d.covariance[i] < high) clip.add(i); }
    for (const i of d.order.slice(0, count(model.get("kl_fraction")))) kl.add(i);
    const coef = model.get("coef");
    return { clip, kl, none: covarianceOf(d.advantage),
      afterClip: covarianceOf(d.advantage.map((a, i) => (clip.has(i) ? 0 : a))),
      afterKl: covarianceOf(d.advantage.map((a, i) => (kl.has(i) ? a - coef * Math.sign(Math.log(d.ratio[i])) : a))) };
  };

  const number = (trait, name, min, max, step, log) => {
    const shown = make("span", { class: "number" });
    const to = (v) => (log ? 10 ** v : v), from = (v) => (log ? Math.log10(v) : v);
    const input = slider(name, { min: from(min), max: from(max), step, value: from(model.get(trait)) }, (v) => {
      model.set(trait, to(v)); save();
    });
    const put = () => { const v = model.get(trait); shown.textContent = log ? v.toPrecision(2) : fixed(v, 2); input.setAttribute("aria-valuetext", shown.textContent);
      if (document.activeElement !== input) input.value = from(v); };
    return { node: make("label", {}, make("span", { class: "name" }, name), input, shown), put };
  };
  const sliders = [
    number("low", "Clip-Cov low", -2, 8, 0.05), number("high", "Clip-Cov high", -2, 12, 0.05),
    number("clip_fraction", "Clip-Cov share", 1e-4, 1, 0.05, true),
    number("kl_fraction", "KL-Cov share", 1e-4, 1, 0.05, true), number("coef", "KL-Cov coef", 0, 5, 0.05)];
  const stepBox = make("span"), responseBox = make("span"), prompt = make("p"), text = make("div", { class: "tokens", role: "listbox", "aria-orientation": "horizontal", "aria-label": "tokens of the response" });
  const note = make("p", { class: "note", role: "status" });
  const detail = make("p", { class: "status", role: "status" }), legend = make("p", { class: "row" }), effects = [0, 1, 2].map(() => make("p"));
  const pages = make("div", { class: "row" }), top = make("table", { "aria-label": "tokens with the highest covariance" });
  const colour = select("colour by", Object.entries(QUANTITIES), model.get("quantity"), (v) => { model.set("quantity", v); save(); });
  root.append(make("div", { class: "row" }, stepBox, responseBox, make("label", {}, "colour", colour)), note, prompt, text, pages, legend, detail,
    make("div", { class: "row wide" }, ...sliders.map((s) => s.node)), make("div", {}, ...effects), top);

  const rebuild = () => {
    read(); page = 0; focused = 0;
    note.textContent = model.get("data").note;
    stepBox.replaceChildren(make("label", {}, "step", select("step", model.get("steps").map((s) => [s, String(s)]), model.get("step"), (v) => { model.set("step", Number(v)); save(); })));
    responseBox.replaceChildren(make("label", {}, "response", select("response", d.prompts.map((p, i) => [i, `${i + 1}: ${p.slice(0, 24)}, reward ${d.rewards[i]}`]), model.get("response"), (v) => { model.set("response", Number(v)); save(); page = 0; focused = 0; lay(); })));
    top.replaceChildren(make("tr", {}, ...["token", "covariance", "log-prob", "entropy", "advantage", "response"].map((t) => make("th", {}, t))),
      ...d.order.slice(0, 8).map((i) => make("tr", {}, ...[d.texts[i], fixed(d.covariance[i]), fixed(d.log_prob[i]), fixed(d.entropy[i]), fixed(d.advantage[i], 2),
        String(d.begins.findIndex((b, r) => b <= i && i < d.begins[r + 1]) + 1)].map((t) => make("td", {}, t)))));
    lay();
  };
  const lay = () => {
    const r = model.get("response"), first = begin(), end = Math.min(d.begins[r + 1], first + PAGE);
    prompt.textContent = `prompt \u201c${d.prompts[r]}\u201d, reward ${d.rewards[r]}${d.told[r] && `, ${d.told[r]}`}`;
    spans = [];
    for (let i = first; i < end; i++) {
      const span = make("span", { class: d.forks[i] ? "token fork" : "token", role: "option", "aria-selected": "false", tabindex: i - first === focused ? 0 : -1 }, d.texts[i]);
      span.addEventListener("mouseenter", () => tell(i));
      span.addEventListener("focus", () => { focused = i - first; tell(i); });
      spans.push(span);
    }
    text.replaceChildren(...spans);
    const total = Math.ceil((d.begins[r + 1] - d.begins[r]) / PAGE);
    pages.replaceChildren(...(total > 1 ? [button("Earlier tokens", () => { page = Math.max(0, page - 1); focused = 0; lay(); }),
      make("span", {}, `part ${page + 1} of ${total}`), button("Later tokens", () => { page = Math.min(total - 1, page + 1); focused = 0; lay(); })] : []));
    colourTokens();
    paint();
  };
  text.addEventListener("keydown", (e) => {
    e.stopPropagation();
    const to = { ArrowRight: focused + 1, ArrowLeft: focused - 1, Home: 0, End: spans.length - 1 }[e.key];
    if (to === undefined || !spans[to]) return;
    e.preventDefault();
    spans[focused].tabIndex = -1;
    spans[to].tabIndex = 0;
    spans[to].focus();
  });
  const tell = (i) => {
    detail.textContent = `token ${i - d.begins[model.get("response")] + 1} \u201c${d.texts[i]}\u201d: covariance ${fixed(d.covariance[i])}, ` +
      `log-prob ${fixed(d.log_prob[i])}, entropy ${fixed(d.entropy[i])}, advantage ${fixed(d.advantage[i], 2)}, ratio ${fixed(d.ratio[i])}` +
      (d.forks[i] ? "; a fork: the response had a choice here" : "");
  };
  const rangeOf = (q) => { // 2 % and 98 % of the step's tokens: a few extremes must not leave the rest in one colour
    if (q === "selected") return [0, 1];
    if (!d.ranges[q]) {
      const sorted = d[q].toSorted(), at = (share) => sorted[Math.round(share * (sorted.length - 1))];
      d.ranges[q] = [at(0.02), at(0.98)];
    }
    return d.ranges[q];
  };
  const begin = () => d.begins[model.get("response")] + page * PAGE;
  const colourTokens = () => {
    const q = model.get("quantity"), v = d[q], around = CENTRES[q], [low, high] = rangeOf(q);
    const reach = Math.max(Math.abs(low - around), Math.abs(high - around), 1e-6);
    spans.forEach((span, k) => {
      const x = v[begin() + k];
      const rgb = around === undefined ? between(CIVIDIS, (x - low) / Math.max(high - low, 1e-9)) : between(PUOR, 0.5 + (x - around) / (2 * reach));
      span.style.background = `rgb(${rgb})`;
      span.style.color = luminance(rgb) > 0.179 ? "#000" : "#fff";
    });
    colour.value = q;
    legend.replaceChildren(...(around === undefined ? bar(CIVIDIS, fixed(low), fixed(high)) : bar(PUOR, fixed(around - reach), fixed(around + reach))),
      make("span", {}, q === "selected" ? "1: taken by the run's control" : "2 % to 98 % of the step's tokens"),
      ...(d.forks.some((x) => x) ? [make("span", { class: "mark fork" }, "boxed"), make("span", {}, "a fork")] : []));
  };
  const bar = (map, low, high) => [make("span", {}, low), make("span", { class: "map", "aria-hidden": "true", style: `background: linear-gradient(to right, ${map.map((c) => `rgb(${c})`)})` }), make("span", {}, high)];
  const paint = () => {
    const chosen = choose();
    spans.forEach((span, k) => {
      span.classList.toggle("clip", chosen.clip.has(begin() + k));
      span.classList.toggle("kl", chosen.kl.has(begin() + k));
    });
    sliders.forEach((s) => s.put());
    effects[0].replaceChildren(`mean covariance ${fixed(chosen.none, 4)} nats: to first order what the entropy falls by, up to the step size`);
    effects[1].replaceChildren(make("span", { class: "mark clip" }, "Clip-Cov"), ` (line below) takes ${chosen.clip.size} of ${d.n} tokens and leaves ${fixed(chosen.afterClip, 4)}`);
    effects[2].replaceChildren(make("span", { class: "mark kl" }, "KL-Cov"), ` (line above) takes ${chosen.kl.size} and leaves ${fixed(chosen.afterKl, 4)}` +
      (d.ratio.every((x) => x === 1) ? " (every ratio is 1: on the first update after sampling KL-Cov's penalty is 0)" : ""));
  };
  model.on("change:data", rebuild);
  model.on("change:response", () => { page = 0; lay(); });
  model.on("change:quantity", colourTokens);
  ["low", "high", "clip_fraction", "kl_fraction", "coef"].forEach((t) => model.on(`change:${t}`, paint));
  rebuild();
}
export default { render };
