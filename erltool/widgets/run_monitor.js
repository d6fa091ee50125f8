const COLOUR = { policy_entropy: "#0072B2", reward: "#D55E00", eval_accuracy: "#009E73", mean_covariance: "#CC79A7" };

function render({ model, el }) {
  const root = panel(), wrong = make("div"), bar = make("progress", { "aria-label": "steps made" });
  const numbers = make("p", { class: "status" }), status = make("p", { class: "status", role: "status" });
  const charts = make("div", { class: "charts" }), alarms = make("ul", { class: "alarms", role: "log", "aria-label": "alarms" });
  let asked = "";
  // A button that cannot act stays where it is: one that vanished would take the keyboard's focus along.
  const command = (name, text, acts) => {
    const node = button(text, () => {
      if (node.getAttribute("aria-disabled") === "true") return;
      asked = name;
      model.send({ command: name });
      paint();
    });
    return { node, acts };
  };
  const buttons = {
    start: command("start", "Start", (s, d) => s === "paused" || (d.startable && s !== "running" && s !== "done")),
    pause: command("pause", "Pause", (s) => s === "running"), stop: command("stop", "Stop", (s) => s === "running" || s === "paused") };
  root.append(make("p", {}, model.get("data").about), make("div", { class: "row" }, ...Object.values(buttons).map((b) => b.node), bar), wrong, numbers, status, alarms, charts);
  el.append(root);

  const duration = (s) => (s < 90 ? `${Math.round(s)} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`);
  const paint = () => {
    const d = model.get("data"), state = model.get("state"), at = floats(d.at);
    for (const { node, acts } of Object.values(buttons)) node.setAttribute("aria-disabled", String(!acts(state, d)));
    buttons.start.node.textContent = state === "paused" ? "Resume" : state === "stopped" || state === "failed" ? "Go on" : "Start";
    bar.max = Math.max(1, d.steps);
    bar.value = d.step;
    const last = Object.entries(d.latest).map(([m, v]) => `${d.metrics[m].replace(/ \(.*/, "")} ${fixed(v)}`);
    const pace = state === "running" && d.rate ? [`${fixed(d.rate, 1)} steps/s`, `about ${duration((d.steps - d.step) / d.rate)} to go`] : [];
    numbers.textContent = [`step ${d.step} of ${d.steps}`, ...pace, ...last].join(" \u00b7 ");
    const doing = d.asked || asked;
    // A screen reader announces this line: it changes with the state, the numbers above it with every message.
    const now = doing ? `${state}: ${doing} asked for${d.asked ? ", at the end of the iteration" : ""}` : state === "running" && !d.step ? "running: loading the policy" : state;
    if (status.textContent !== now) status.textContent = now;
    const text = model.get("problem");
    if (wrong.textContent !== text) wrong.replaceChildren(...(text ? [problem(text)] : []));
    const shown = model.get("alarms");
    if (alarms.childElementCount > shown.length) alarms.replaceChildren();
    alarms.append(...shown.slice(alarms.childElementCount).map((a) => make("li", {}, a)));
    if (!d.steps) return;
    charts.replaceChildren(...Object.entries(d.metrics).map(([metric, title]) => {
      const svg = lineChart(title, at, d.steps, [{ y: floats(d.curves[metric]), colour: COLOUR[metric], dash: "", width: 1.8, opacity: 1 }], 376, 180);
      svg.setAttribute("aria-label", `${title} by optimiser step: ${metric in d.latest ? fixed(d.latest[metric]) : "not measured yet"}`);
      return svg;
    }));
  };
  let due = false;
  const soon = () => { if (!due) { due = true; requestAnimationFrame(() => { due = false; paint(); }); } };
  model.on("change:data change:state change:problem change:alarms", () => { asked = ""; soon(); });
  paint();
}
export default { render };
