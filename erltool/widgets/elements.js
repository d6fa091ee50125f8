// Elements of a widget: text that is never markup, native controls that keep their keys, and lines that speak calmly.

const filled = (node, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};
// A child that is a string becomes a text node: model text cannot become an element.
export const make = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);
export const draw = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

// A widget's own part of the page. The other classes keep MathJax from finding formulas in names and tokens.
export const panel = () => make("div", { class: "erltool tex2jax_ignore mathjax_ignore" });
export const row = (...children) => make("div", { class: "row" }, ...children);
export const group = (name, ...children) => filled(row(...children), { role: "group", "aria-label": name }, []);
export const showIf = (node, on) => (node.style.display = on ? "" : "none");

// The width in pixels that a widget has for its charts; `paint` is called when it has changed. It is `otherwise` before
// the widget is in a page.
export const widthOf = (root, paint, otherwise = 756) => {
  let seen = otherwise;
  const observer = new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width < 1 || Math.abs(width - seen) < 8) return;
    seen = width;
    paint();
  });
  observer.observe(root);
  return { now: () => seen, stop: () => observer.disconnect() };
};

// --- controls ---

// JupyterLab acts on keys that bubble out of a cell. A slider must keep its arrows, a button its space.
export const keepKeys = (node) => {
  node.addEventListener("keydown", (e) => e.stopPropagation());
  return node;
};
export const slider = (name, { min, max, step, value }, onInput) => {
  const input = keepKeys(make("input", { type: "range", min, max, step, "aria-label": name }));
  input.value = value;
  input.addEventListener("input", () => onInput(Number(input.value)));
  return input;
};
export const button = (name, onClick) => {
  const node = keepKeys(make("button", { type: "button" }, name));
  node.addEventListener("click", onClick);
  return node;
};
export const select = (name, options, value, onChange) => {
  const node = keepKeys(make("select", { "aria-label": name }));
  node.append(...options.map(([key, text]) => make("option", { value: key }, text)));
  node.value = value;
  node.addEventListener("change", () => onChange(node.value));
  return node;
};
// What few readers need, folded away under its name.
export const folded = (name, ...children) => {
  const summary = keepKeys(make("summary", {}, name));
  return make("details", {}, summary, ...children);
};
// A checkbox or radio button, and the label that names it.
export const choice = (type, name, onChange, attributes = {}) => {
  const input = keepKeys(make("input", { type, ...attributes }));
  input.addEventListener("change", () => onChange(input.checked));
  return { input, node: make("label", {}, input, name) };
};

// --- words ---

export const fixed = (x, digits = 3) =>
  (Object.is(Number(x.toFixed(digits)), -0) ? 0 : x).toFixed(digits).replace("-", "\u2212");

// Replaces a table's rows. The first cell of each row is its header; a cell is a text or a list of children.
export const fillTable = (table, head, rows) => {
  const cells = (tag, scope, contents) => contents.map((c) => make(tag, scope ? { scope } : {}, ...[c].flat()));
  table.replaceChildren(
    ...(head.length ? [make("tr", {}, ...cells("th", "col", head))] : []),
    ...rows.map(([first, ...rest]) => make("tr", {}, ...cells("th", "row", [first]), ...cells("td", "", rest))),
  );
};

// --- time ---

// Calls at once, then at most every `pause` ms; the last call is never lost.
export const throttled = (act, pause) => {
  let timer = null;
  let again = false;
  const run = () => {
    again = false;
    timer = setTimeout(() => {
      timer = null;
      if (again) run();
    }, pause);
    act();
  };
  return () => (timer === null ? run() : (again = true));
};
export const saver = (model) => throttled(() => model.save_changes(), 100);
export const reducedMotion = () => window.matchMedia("(prefers-reduced-motion: reduce)").matches;

const SPOKEN = 1000; // ms between two announcements of a screen reader
// A line that follows every change for the eye, and is announced at most once a second.
export const statusLine = () => {
  const seen = make("p", { class: "status", "aria-hidden": "true" });
  const spoken = make("p", { class: "spoken", role: "status" });
  const speak = throttled(() => (spoken.textContent = seen.textContent), SPOKEN);
  const say = (text) => {
    if (seen.textContent === text) return;
    seen.textContent = text;
    speak();
  };
  return { node: make("div", {}, seen, spoken), say };
};
// What is wrong, where something is; announced at most once a second.
export const problemLine = (model) => {
  const node = make("div");
  let shown = "";
  const show = throttled(() => {
    const text = model.get("problem");
    if (text !== shown) node.replaceChildren(...(text ? [make("p", { class: "problem", role: "alert" }, text)] : []));
    shown = text;
  }, SPOKEN);
  show();
  return { node, show };
};
// Asks the kernel for something, and calls `say` with words where nothing has answered for long. A page that was saved
// has no kernel, and cannot know it.
export const SILENCE = "no answer yet: the kernel is busy with a cell, or this is a saved page, which has no kernel";
export const ask = (model, message, say, patience = 5000) => {
  model.send(message);
  const timer = setTimeout(() => say(SILENCE), patience);
  return () => clearTimeout(timer);
};
// A widget's panel in the page, with its line for what is wrong on top.
export const begin = (model, el) => {
  const root = panel();
  const wrong = problemLine(model);
  root.append(wrong.node);
  el.append(root);
  return { root, wrong };
};

// --- what the kernel sends ---

export const floats = (bytes) => new Float32Array(copied(bytes));
export const doubles = (bytes) => new Float64Array(copied(bytes));
export const integers = (bytes) => new Int32Array(copied(bytes));
// A view may begin anywhere; typed arrays begin at a multiple of their size.
const copied = (bytes) => bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
