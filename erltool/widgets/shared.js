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
const fixed = (x, digits = 3) => (Object.is(Number(x.toFixed(digits)), -0) ? 0 : x).toFixed(digits).replace("-", "\u2212");
// Saves to the kernel at most every 100 ms, and the last state always.
const saver = (model) => {
  let waiting = null;
  return () => { if (waiting === null) waiting = setTimeout(() => { waiting = null; model.save_changes(); }, 100); };
};
