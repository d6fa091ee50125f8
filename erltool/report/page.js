// A report's page: its theme, its charts, and the widgets on recorded data. VIEWS holds the widgets' own `render`s.

// --- theme and paper ---

// JupyterLab names its theme on the body, and widgets may read it there.
const dark = window.matchMedia("screen and (prefers-color-scheme: dark)");
const theme = () => (document.body.dataset.jpThemeLight = String(!dark.matches));
dark.addEventListener("change", theme);
theme();
const unfolded = [];
window.addEventListener("beforeprint", () => {
  unfolded.push(...document.querySelectorAll("details:not([open])"));
  for (const node of unfolded) node.open = true;
});
window.addEventListener("afterprint", () => unfolded.splice(0).forEach((node) => (node.open = false)));

// --- charts ---

const showCourse = (facts) => {
  const course = document.querySelector(".course");
  if (!course || !facts.charts.length) return;
  const lastStep = facts.charts.flatMap((c) => c.lines).reduce((last, l) => Math.max(last, l.x.at(-1)), 1);
  const slider = make("input", {
    type: "range",
    min: 0,
    max: lastStep,
    step: "any",
    value: lastStep,
    "aria-label": "step",
  });
  const shown = make("output", {});
  const move = (step) => {
    slider.value = step;
    shown.textContent = `step ${Math.round(step)}`;
    slider.setAttribute("aria-valuetext", shown.textContent);
    for (const chart of charts) chart.at(step);
  };
  const charts = facts.charts.map((chart) => chartOf(chart, facts, lastStep, move));
  const bar = make("div", { class: "bar" });
  if (facts.runs.length > 1) {
    const list = make("select", {}, ...facts.runs.map((name, k) => make("option", { value: k }, name)));
    list.addEventListener("change", () => charts.forEach((chart) => chart.put(Number(list.value))));
    bar.append(make("label", {}, "run", list));
  }
  bar.append(make("label", {}, "step", slider, shown));
  course.append(bar, make("div", { class: "plots" }, ...charts.map((c) => c.figure)));
  slider.addEventListener("input", () => move(Number(slider.value)));
  // A range of any step has arrow keys that move it by a hundredth.
  const redraw = () => charts.forEach((chart) => chart.paint());
  redraw();
  move(lastStep);
  let width = course.clientWidth;
  new ResizeObserver(() => {
    if (course.clientWidth !== width) redraw();
    width = course.clientWidth;
  }).observe(course);
};

// --- widgets ---

const openWidget = (host, widget, numbers) => {
  const el = make("div");
  const refused = make("p", { class: "needs", role: "status" });
  const refuse = () => {
    // Not where a widget asks by itself: only the reader's own click needs an answer.
    if (navigator.userActivation?.isActive ?? true)
      refused.textContent = "That needs Python: open the run in a notebook.";
  };
  const { responses, ...traits } = widget;
  const model = standIn(traits, numbers, refuse);
  const choose = ({ step, at }) => {
    const set = (name, value) => {
      if (model.get(name) === undefined) return;
      model.set(name, value);
      model.save_changes();
    };
    set("step", step);
    setTimeout(() => set("response", at)); // after the answer for the step, which begins at its first response
    el.scrollIntoView({ block: "nearest" });
  };
  host.replaceChildren(...(responses ? [finder(responses, choose)] : []), el, refused);
  try {
    return VIEWS[widget.view].render({ model, el });
  } catch (e) {
    refused.textContent = `This part cannot be drawn here (${e.message}); open the run in a notebook.`;
    throw e;
  }
};
const showWidgets = (facts, numbers) => {
  for (const place of document.querySelectorAll(".widget")) {
    const widgets = facts.widgets[place.dataset.place];
    const host = make("div");
    let leave = null;
    const show = (k) => {
      leave?.();
      leave = null;
      leave = openWidget(host, widgets[k], numbers);
    };
    if (widgets.length > 1) {
      const list = make("select", {}, ...widgets.map(({ label }, k) => make("option", { value: k }, label)));
      list.addEventListener("change", () => show(Number(list.value)));
      place.append(make("div", { class: "bar" }, make("label", {}, "run", list)));
    }
    place.append(host);
    setTimeout(() => show(0)); // by itself: one that fails leaves the others
  }
};

const start = async () => {
  const facts = await (await unpacked("facts")).json();
  const numbers = await (await unpacked("numbers")).arrayBuffer();
  showCourse(facts);
  showWidgets(facts, numbers);
};
