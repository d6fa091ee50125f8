// TokenInspector's panel: what is known of the chosen token, and what its place might have held instead.
import { draw, fixed, make, showIf } from "./elements.js";
import { MEANINGS } from "./tokens.js";

const ROWS = 10;
const short = (text) => (text.length > 12 ? `${text.slice(0, 11)}\u2026` : text);

// Paired bars of the likeliest tokens, before (hollow) and after (filled). The rows are made once.
function pairedBars() {
  const head = make("p", { class: "bars-head" });
  const rows = Array.from({ length: ROWS }, () => {
    const [word, numbers] = [make("span", { class: "word" }), make("span", { class: "number" })];
    const [hollow, full] = [make("span", { class: "bar before" }), make("span", { class: "bar after" })];
    const node = make("div", { class: "pair" }, word, make("span", { class: "room" }, hollow, full), numbers);
    return { node, word, hollow, full, numbers };
  });
  const none = make("p", { class: "quiet" }, "Its alternatives were not recorded: train with record_probes above 0.");
  const node = make("div", { class: "bars" }, none, head, ...rows.map((r) => r.node));
  // `names` says what hollow and filled bars are; `after` may be missing.
  const put = (words, before, after, names, own) => {
    showIf(none, !words.length);
    showIf(head, words.length > 0);
    const key = [make("span", { class: "key before" }), ` ${names[0]}`];
    if (after) key.push("  ", make("span", { class: "key after" }), ` ${names[1]}`);
    head.replaceChildren("likeliest tokens here: ", ...key);
    rows.forEach((r, k) => {
      showIf(r.node, k < words.length);
      if (k >= words.length) return;
      r.word.textContent = short(words[k]);
      r.node.classList.toggle("own", words[k] === own);
      r.hollow.style.width = `${100 * (before[k] || 0)}%`;
      r.full.style.width = `${100 * (after ? after[k] || 0 : 0)}%`;
      const [b, a] = [before, after].map((p) => (p && p[k] >= 0 ? fixed(p[k], p[k] < 0.01 ? 4 : 3) : "\u2013"));
      r.numbers.textContent = after ? `${b} \u2192 ${a}` : b;
    });
  };
  return { node, put };
}

// The entropy of one place over the run.
function trace() {
  const line = draw("path", { fill: "none", stroke: "currentColor", "stroke-width": 2 });
  const dot = draw("circle", { r: 4, fill: "currentColor" });
  const chart = draw("svg", { viewBox: "0 0 260 56", width: 260, height: 56, class: "trace", "aria-hidden": "true" });
  chart.append(line, dot);
  const words = make("p");
  const node = make("div", {}, words, chart);
  const put = (places, step) => {
    showIf(node, places.length > 1);
    if (places.length < 2) return;
    const [first, last] = [places[0], places.at(-1)];
    const top = Math.max(...places.map((p) => p.entropy), 1e-6);
    const x = (s) => 6 + (248 * (s - first.step)) / (last.step - first.step);
    const y = (h) => 50 - (44 * h) / top;
    line.setAttribute("d", `M${places.map((p) => `${x(p.step).toFixed(1)} ${y(p.entropy).toFixed(1)}`).join("L")}`);
    const now = places.find((p) => p.step === step) ?? last;
    dot.setAttribute("cx", x(now.step));
    dot.setAttribute("cy", y(now.entropy));
    const ends = `${fixed(first.entropy)} at step ${first.step}, ${fixed(last.entropy)} at step ${last.step}`;
    words.textContent = `entropy of this place, nats: ${ends}; sampled at ${places.length} steps`;
  };
  return { node, put };
}

const alternatives = (d, i) => {
  const at = [...d.likeliest.subarray(i * d.most, (i + 1) * d.most)];
  const count = at.filter((w) => w >= 0).length;
  const part = (values) => values && [...values.subarray(i * d.most, i * d.most + count)];
  return [at.slice(0, count).map((w) => d.words[w]), part(d.likeliest_before), part(d.likeliest_after)];
};

export const tokenPanel = () => {
  const title = make("p", { class: "chosen" });
  const facts = make("div", { class: "facts" }); // no dl: JupyterLab lets its dt float
  const [bars, line] = [pairedBars(), trace()];
  const items = new Map(); // made once each
  const fact = (name, text) => {
    const title = MEANINGS[name.replace("-", "_")];
    if (!items.has(name)) items.set(name, [make("span", { class: "quiet", title }, name), make("span", { class: "value" })]);
    const [label, value] = items.get(name);
    value.textContent = text ?? "";
    if (!label.parentNode) facts.append(make("div", {}, label, value));
    showIf(label.parentNode, text !== null);
  };
  const putFacts = (d, i) => {
    const number = (name, digits) => (d[name] && Number.isFinite(d[name][i]) ? fixed(d[name][i], digits) : null);
    const after = number("entropy_after");
    fact("covariance", number("covariance"));
    fact("push", number("push"));
    fact("advantage", number("advantage", 2));
    fact("log-prob", number("log_prob"));
    fact("ratio", number("ratio"));
    fact("entropy", after === null ? number("entropy") : `${number("entropy")} \u2192 ${after}`);
  };
  // `places`: the same place at other steps, for probes.
  const put = (d, i, places, step) => {
    const fork = d.forks[i] ? ", a fork: here the task leaves a choice" : "";
    title.textContent = `token ${i - d.begins[d.responseOf[i]] + 1} \u201c${d.texts[i]}\u201d${fork}`;
    putFacts(d, i);
    let [list, before, after] = d.likeliest ? alternatives(d, i) : [[]];
    const [first] = places;
    if (first && first.step !== step) {
      const [then, p] = alternatives(first.d, first.at);
      after = before;
      before = list.map((w) => (then.includes(w) ? p[then.indexOf(w)] : NaN));
    }
    const names = places.length ? [first.step === step ? `step ${step}` : `step ${first.step}`, `step ${step}`] : ["before", "after"];
    bars.put(list, before, after, names, d.texts[i]);
    line.put(places, step);
  };
  const node = make("div", { class: "panel", role: "group", "aria-label": "the chosen token" }, title, facts);
  return { node, bars: make("div", {}, bars.node, line.node), put };
};
