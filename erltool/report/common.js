// What the parts of a report's page share: elements, its data, and the stand-in for the kernel's model. The files are
// joined into one script (page.py). Names and tokens come from models and files: they reach the page as text only.
"use strict";
const SVG = "http://www.w3.org/2000/svg";
const filled = (node, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};
const make = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);
const draw = (tag, attributes = {}, ...children) => filled(document.createElementNS(SVG, tag), attributes, children);
const short = (v) => String(Number(v.toPrecision(3))).replace("-", "\u2212");

// --- the data ---

const unpacked = (id) => {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")));
};
// Traits with their bytes where they belong, as the kernel would send them.
const restored = ({ values, buffers }, numbers) => {
  for (const [path, offset, length] of buffers) {
    const inner = path.slice(0, -1).reduce((at, key) => at[key], values);
    inner[path.at(-1)] = new DataView(numbers, offset, length);
  }
  return values;
};

// --- the model ---

const same = (a, b) =>
  a === b ||
  (typeof a === "number" && typeof b === "number" && Math.abs(a - b) < 1e-9) ||
  (a && b && typeof a === "object" && JSON.stringify(a) === JSON.stringify(b));
// What a widget's view knows of its model: traits with their events. The kernel's answers are those in the page;
// `refuse` is called for a message, which no page can answer.
const standIn = ({ asks = [], given = [], answers = [], ...recorded }, numbers, refuse) => {
  const state = restored(structuredClone(recorded), numbers);
  const before = given.map((name) => state[name]);
  const handlers = new Map();
  let unsaved = new Set();
  const fire = (event, ...words) => [...(handlers.get(event) ?? [])].forEach((act) => act(...words));
  const put = (changed) => {
    Object.assign(state, Object.fromEntries(changed));
    for (const [name, value] of changed) fire(`change:${name}`, model, value, {});
    if (changed.length) fire("change", model, {});
  };
  const events = (names, act) => names.split(/\s+/).forEach(act);
  const model = {
    get: (name) => state[name],
    set(name, value) {
      const wanted = Object.entries(typeof name === "string" ? { [name]: value } : name);
      const changed = wanted.filter(([k, v]) => !same(state[k], v));
      for (const [k] of changed) unsaved.add(k);
      put(changed);
    },
    on: (names, act) => events(names, (e) => handlers.set(e, [...(handlers.get(e) ?? []), act])),
    off: (names, act) =>
      names
        ? events(names, (e) => handlers.set(e, act ? (handlers.get(e) ?? []).filter((a) => a !== act) : []))
        : handlers.clear(),
    save_changes() {
      const asked = [...asks, ...given].some((name) => unsaved.has(name));
      unsaved = new Set();
      if (!asked || !given.every((name, i) => same(state[name], before[i]))) return;
      const answer = answers.find(([values]) => values.every((v, i) => same(v, state[asks[i]])));
      if (answer)
        setTimeout(() =>
          put(Object.entries(restored(structuredClone(answer[1]), numbers)).filter(([k, v]) => state[k] !== v)),
        );
    },
    send: () => refuse(),
  };
  return model;
};
