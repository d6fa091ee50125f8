// RunForm: the fields of a configuration, and the memory plan beside them.
import { fillTable, fixed, keepKeys, make, panel, problemLine, select, statusLine } from "./elements.js";

// A field's control, and the list of what a field of text offers.
function fieldOf({ name, help, only, offered }, id, value, onChange) {
  const label = name.replaceAll("_", " ");
  let input;
  let list = "";
  if (only.length) {
    const options = only.map((option) => [option, option]);
    input = select(label, options, value, onChange);
  } else {
    input = keepKeys(make("input", { type: "text", "aria-label": label, spellcheck: "false", autocomplete: "off" }));
    input.value = value;
    input.addEventListener("change", () => onChange(input.value));
    if (offered.length) {
      list = make("datalist", { id: `${id}-${name}` }, ...offered.map((option) => make("option", { value: option })));
      input.setAttribute("list", list.id);
    }
  }
  input.title = help;
  return { name, input, node: make("label", {}, make("span", { class: "name" }, label), input, list) };
}

function render({ model, el }) {
  const root = panel();
  const wrong = problemLine(model);
  const says = statusLine();
  const plan = make("table", { "aria-label": "memory plan" });
  const id = `form-${Math.random().toString(36).slice(2)}`;
  const fields = model.get("fields").map((field) =>
    fieldOf(field, id, model.get("values")[field.name], (value) => {
      model.set("values", { ...model.get("values"), [field.name]: value });
      model.save_changes();
    }),
  );
  root.append(make("div", { class: "fields" }, ...fields.map((f) => f.node)), wrong.node, says.node, plan);
  el.append(root);

  const paint = () => {
    const { rows, says: sentences } = model.get("plan");
    for (const { name, input } of fields) {
      if (document.activeElement !== input) input.value = model.get("values")[name] ?? "";
    }
    wrong.show();
    says.say((sentences ?? []).join("\n"));
    const cells = (rows ?? []).map(([when, name, size]) => [when, name, fixed(size, 2)]);
    fillTable(plan, rows ? ["when", "what", "GiB"] : [], cells);
  };
  model.on("change:plan change:problem change:values", paint);
  paint();
}
export default { render };
