function render({ model, el }) {
  const root = panel(), wrong = make("div"), says = make("div", { role: "status" });
  const plan = make("table", { "aria-label": "memory plan" });
  const id = `form-${Math.random().toString(36).slice(2)}`;
  const send = (name, value) => {
    model.set("values", { ...model.get("values"), [name]: value });
    model.save_changes();
  };
  const inputs = {}, lists = [];
  const row = make("div", { class: "fields" }, ...model.get("fields").map(({ name, help, only, offered }) => {
    const label = name.replaceAll("_", " "), value = model.get("values")[name];
    let input;
    if (only.length) input = select(label, only.map((x) => [x, x]), value, (v) => send(name, v));
    else {
      input = keepKeys(make("input", { type: "text", "aria-label": label, spellcheck: "false", autocomplete: "off" }));
      input.value = value;
      if (offered.length) {
        lists.push(make("datalist", { id: `${id}-${name}` }, ...offered.map((x) => make("option", { value: x }))));
        input.setAttribute("list", `${id}-${name}`);
      }
      input.addEventListener("change", () => send(name, input.value));
    }
    input.title = help;
    inputs[name] = input;
    return make("label", {}, make("span", { class: "name" }, label), input);
  }));
  root.append(row, ...lists, wrong, says, plan);
  el.append(root);

  const paint = () => {
    const d = model.get("plan"), text = model.get("problem");
    for (const [name, input] of Object.entries(inputs)) if (document.activeElement !== input) input.value = model.get("values")[name] ?? "";
    if (wrong.textContent !== text) wrong.replaceChildren(...(text ? [problem(text)] : []));
    says.replaceChildren(...(d.says ?? []).map((t) => make("p", {}, t)));
    plan.replaceChildren(...(d.rows ? [make("tr", {}, ...["when", "what", "GiB"].map((t) => make("th", { scope: "col" }, t)))] : []),
      ...(d.rows ?? []).map(([when, what, size]) => make("tr", {}, make("td", {}, when), make("td", {}, what), make("td", {}, fixed(size, 2)))));
  };
  model.on("change:plan change:problem change:values", paint);
  paint();
}
export default { render };
