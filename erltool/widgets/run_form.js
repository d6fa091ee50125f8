// RunForm: three choices, the other fields folded away, and what the run needs: memory as one bar, and time.
import {
  ask,
  button,
  draw,
  fixed,
  folded,
  keepKeys,
  make,
  panel,
  row,
  saver,
  select,
  showIf,
  statusLine,
  throttled,
  widthOf,
} from "./elements.js";
import { INK, PAGE, QUIET, SERIES, path, svg, wide, words } from "./kit.js";

const FIRST = ["policy", "task", "control"];
const OTHER = "another, as text\u2026";
const SPOKEN = 1000; // ms between two announcements of what is wrong at a field
const [BAR, DEEP] = [24, 62]; // height in pixels of the bar, and of its drawing

// The line below a field that says what is wrong with it.
function wrongLine(input, id) {
  const node = make("p", { class: "problem", role: "alert", id });
  let text = "";
  const show = throttled(() => {
    if (node.textContent !== text) node.textContent = text;
    showIf(node, text);
  }, SPOKEN);
  const put = (now) => {
    text = now ?? "";
    for (const control of [input].flat()) {
      control.setAttribute("aria-invalid", String(Boolean(text)));
      if (text) control.setAttribute("aria-describedby", id);
      else control.removeAttribute("aria-describedby");
    }
    show();
  };
  showIf(node, false);
  return { node, put };
}

function textInput(label, value, onChange) {
  const input = make("input", { type: "text", "aria-label": label, spellcheck: "false", autocomplete: "off" });
  input.value = value;
  input.addEventListener("change", () => onChange(input.value));
  return keepKeys(input);
}

// A choice: a menu whose entries say what they are, and a field for another text.
function menuOf({ name, help, offered }, id, onChange) {
  const known = offered.map(([value]) => value);
  const options = offered.map(([value, says]) => [value, `${value}: ${says}`]);
  const text = textInput(`${name}, as text`, "", onChange);
  const menu = select(name, [...options, ["", OTHER]], "", (value) => {
    showIf(text, !value);
    if (value) onChange(value);
    else text.focus();
  });
  menu.title = help;
  const wrong = wrongLine([menu, text], id);
  const put = (value) => {
    if (document.activeElement === text) return;
    const at = known.includes(value) ? value : "";
    menu.value = at;
    text.value = value;
    showIf(text, !at);
  };
  const head = make("label", {}, make("span", { class: "name" }, name), menu);
  return { name, put, wrong, node: make("div", { class: "choose" }, head, text, wrong.node) };
}

// One of the other fields, and the list of what a field of text offers.
function fieldOf({ name, help, only, offered }, id, onChange) {
  const label = name.replaceAll("_", " ");
  const options = only.map((option) => [option, option]);
  const input = only.length ? select(label, options, "", onChange) : textInput(label, "", onChange);
  const list = offered.length
    ? [make("datalist", { id: `${id}-list` }, ...offered.map(([value]) => make("option", { value })))]
    : [];
  if (list.length) input.setAttribute("list", `${id}-list`);
  input.title = help;
  const wrong = wrongLine(input, id);
  const put = (value) => document.activeElement !== input && (input.value = value);
  const node = make("label", {}, make("span", { class: "name" }, label), input, ...list);
  return { name, put, wrong, node: make("div", {}, node, wrong.node) };
}

// The peak as one bar of its parts, and the free memory as a mark.
function memoryBar({ bar, peak, free }, width) {
  const chart = svg(width, DEEP);
  const most = Math.max(peak, free ?? 0);
  const px = (v) => ((width - 2) * v) / most + 1;
  const top = 18;
  chart.append(draw("rect", { x: 1, y: top, width: width - 2, height: BAR, fill: "none", stroke: QUIET, rx: 2 }));
  let at = 0;
  bar.forEach(([, size], k) => {
    const look = { fill: SERIES[k % 4], stroke: PAGE, "stroke-width": 1 };
    chart.append(draw("rect", { x: px(at), y: top, width: Math.max(1, px(at + size) - px(at)), height: BAR, ...look }));
    at += size;
  });
  const over = free !== null && peak > free;
  const said = `${fixed(peak, 2)} GiB at the peak`;
  const anchor = px(at) + wide(said) > width ? "end" : "start";
  chart.append(words(Math.min(px(at), width - 2), 13, said, { "font-weight": 600, "text-anchor": anchor }));
  if (free !== null) {
    const text = `${fixed(free, 1)} GiB ${over ? "are free: it does not fit" : "free"}`;
    chart.append(path(`M${px(free)} ${top - 4}V${top + BAR + 4}`, { stroke: INK, "stroke-width": 2 }));
    const side = px(free) > width / 2 ? "end" : "start";
    chart.append(words(px(free), DEEP - 4, text, { "text-anchor": side }));
  }
  const parts = bar.map(([name, size]) => `${name} ${fixed(size, 2)}`).join(", ");
  chart.setAttribute("aria-label", `memory: ${said}${free === null ? "" : `, ${fixed(free, 1)} free`}; ${parts}`);
  return chart;
}
const partsOf = ({ bar }) =>
  bar.map(([name, size], k) => {
    const key = make("span", { class: "key", style: `background: ${SERIES[k % 4]}`, "aria-hidden": "true" });
    return make("span", {}, key, `${name} ${fixed(size, 2)}`);
  });

// Configurations to start from: one sets all fields that it names.
function startList(model, set) {
  const starts = model.get("starts");
  const options = Object.keys(starts).map((name) => [name, name]);
  const list = select("start from", [["", "this configuration"], ...options], "", (name) => name && set(starts[name]));
  const put = (values) => {
    const is = ([, fields]) => Object.entries(fields).every(([k, v]) => values[k] === v);
    list.value = Object.entries(starts).find(is)?.[0] ?? "";
  };
  return { put, node: make("label", {}, make("span", { class: "name" }, "start from"), list) };
}

function render({ model, el }) {
  const root = panel();
  const save = saver(model);
  const set = (fields) => {
    model.set("values", { ...model.get("values"), ...fields });
    save();
  };
  const id = `form-${Math.random().toString(36).slice(2)}`;
  const fields = model.get("fields").map((field) => {
    const made = field.menu ? menuOf : fieldOf;
    return made(field, `${id}-${field.name}`, (value) => set({ [field.name]: value }));
  });
  const [three, others] = [true, false].map((first) => fields.filter(({ name }) => FIRST.includes(name) === first));
  const start = startList(model, set);
  const rest = folded("Sizes, learning rate, device", make("div", { class: "fields" }, ...others.map((f) => f.node)));
  const elsewhere = wrongLine([], `${id}-elsewhere`);
  const says = statusLine();
  const bar = make("div", { class: "memory" });
  const parts = make("p", { class: "row quiet" });
  const pace = make("span", { role: "status" });
  let answered = () => {};
  const measure = button("Measure one iteration", () => {
    if (measure.getAttribute("aria-disabled") !== "false") return;
    answered();
    answered = ask(model, { command: "measure" }, (words) => (pace.textContent = words));
  });
  model.on("change:pace", () => answered());
  const time = row(...(typeof model.send === "function" ? [measure] : []), pace);
  root.append(make("div", { class: "three" }, start.node, ...three.map((f) => f.node)), rest, elsewhere.node);
  root.append(bar, parts, says.node, time);
  el.append(root);

  const paint = () => {
    const [values, wrong, plan] = [model.get("values"), model.get("wrong"), model.get("plan")];
    start.put(values);
    for (const { name, put, wrong: line } of fields) {
      put(values[name] ?? "");
      line.put(wrong[name]);
    }
    elsewhere.put(wrong[""]);
    if (others.some(({ name }) => wrong[name])) rest.open = true;
    const known = Boolean(plan.bar);
    bar.replaceChildren(...(known ? [memoryBar(plan, Math.min(width.now(), 720))] : []));
    parts.replaceChildren(...(known ? partsOf(plan) : []));
    says.say((plan.says ?? []).join("\n"));
    const measured = model.get("pace");
    pace.textContent = measured.words ?? "";
    const busy = measured.words && measured.iteration === undefined;
    measure.setAttribute("aria-disabled", String(Boolean(busy || !known || measured.iteration !== undefined)));
  };
  const width = widthOf(root, paint);
  model.on("change:plan change:problem change:values change:wrong change:pace", paint);
  paint();
  return width.stop;
}
export default { render };
