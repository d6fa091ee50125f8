// TokenInspector: the responses to one prompt as rows of coloured tokens, the chosen token, and what controls take.
import {
  begin,
  button,
  group,
  keepKeys,
  make,
  reducedMotion,
  row,
  saver,
  select,
  showIf,
  slider,
  statusLine,
} from "./elements.js";
import { controlEffects, controlSliders, highestTokens } from "./token_controls.js";
import { PAGE, legendOf, tokenGrid } from "./token_grid.js";
import { tokenPanel } from "./token_panel.js";
import { CHOICES, QUANTITIES, found, highest, mostToSee, rowsOf, samePlace, saying, shareColours, stepOf } from "./tokens.js";

const options = (list, names, value) => {
  list.replaceChildren(...names.map(([key, name]) => make("option", { value: key }, name)));
  list.value = value;
};
const labelled = (name, node) => make("label", {}, name, node);

// The step, as a slider that plays, and the lists of the prompt, the colour and the filter.
function pickers(model, set, act) {
  const view = select("show", [], "", (v) => set("view", v));
  const words = make("span", { class: "number" });
  const range = { min: 0, max: Math.max(0, act.steps().length - 1), step: 1, value: 0 };
  const step = slider("step", range, (k) => act.toStep(act.steps()[k]));
  const play = button("Play", () => act.play());
  const prompt = select("prompt", [], "", (v) => act.toPrompt(Number(v)));
  const colour = select("colour", [], "", (v) => set("quantity", v));
  const keep = select("responses", [], "all", (v) => act.toKeep(v));
  const find = keepKeys(make("input", { type: "text", "aria-label": "find text", placeholder: "find text", size: 10 }));
  find.addEventListener("input", () => set("find", find.value));
  find.addEventListener("keydown", (e) => e.key === "Enter" && act.next());
  const hits = make("span", { class: "quiet", role: "status" });
  const top = button("Highest covariance", () => act.top());
  const views = labelled("show", view);
  const time = group("step", labelled("step", step), words, play);
  const node = make("div", {}, row(views, time, labelled("prompt", prompt)), row(labelled("colour", colour), labelled("responses", keep), find, hits, top));
  const several = Object.keys(model.get("data").probes).length > 0;
  options(view, [["update", "the update's own group"], ["probes", "probe prompts"]], "update");
  showIf(views, several);
  showIf(time, act.steps().length > 1);
  // For another step or view.
  const read = (d) => {
    const firsts = [...new Map(d.groups.map((g, r) => [g, d.groups.indexOf(g)])).values()];
    const right = (r) => rowsOf(d, r).filter((s) => d.rewards[s] >= 1).length;
    options(prompt, firsts.map((r) => [d.groups[r], `${d.prompts[r].slice(0, 24)}  ${right(r)} of ${rowsOf(d, r).length} right`]), "");
    options(colour, d.quantities.map((name) => [name, QUANTITIES[name]]), "");
    const strategies = [...new Set(d.strategies)].filter(Boolean).map((s) => [`strategy ${s}`, s]);
    options(keep, [["all", "all"], ["right", "right"], ["wrong", "wrong"], ...strategies, ["forks", "forks only"]], "all");
    top.textContent = `Highest ${d.leading}`;
  };
  const put = (d, quantity, count) => {
    view.value = model.get("view");
    step.value = act.steps().indexOf(model.get("step"));
    words.textContent = String(model.get("step"));
    step.setAttribute("aria-valuetext", `step ${model.get("step")}`);
    prompt.value = d.groups[model.get("response")];
    [colour.value, keep.value] = [quantity, model.get("keep")];
    if (document.activeElement !== find) find.value = model.get("find");
    hits.textContent = model.get("find") ? `${count} found` : "";
  };
  const playing = (on) => (play.textContent = on ? "Pause" : "Play");
  return { node, read, put, playing };
}

// A long response in parts.
function pager(turned) {
  const words = make("span");
  const state = { page: 0 };
  const node = row(
    button("Earlier tokens", () => turned(state.page - 1)),
    words,
    button("Later tokens", () => turned(state.page + 1)),
  );
  const put = (count) => {
    words.textContent = `part ${state.page + 1} of ${count}`;
    showIf(node, count > 1);
  };
  return { node, put, state };
}

// The tokens of each step, read when they are first shown.
const reader = (model) => {
  const read = new Map();
  const probes = Object.entries(model.get("data").probes);
  const asked = probes.map(([step, data]) => [`probes ${step}`, stepOf(data)]);
  shareColours(asked.map(([, d]) => d));
  for (const [key, d] of asked) read.set(key, d);
  return (view, step) => {
    const key = `${view} ${step}`;
    if (!read.has(key)) read.set(key, stepOf(model.get("data")[view][step]));
    return read.get(key);
  };
};

// Where the reader is, and the moves that change it. `now()` gives the step's tokens.
function moves(model, set, show, stepAt) {
  const steps = () => (model.get("view") === "probes" ? Object.keys(model.get("data").probes).map(Number) : model.get("steps"));
  const now = () => stepAt(model.get("view"), model.get("step"));
  const at = (d, i) => ({ response: d.responseOf[i], position: i - d.begins[d.responseOf[i]] });
  const go = (i, more = {}) => {
    set({ ...more, ...at(now(), i) });
    show(true);
  };
  const chosen = (d) => {
    const r = Math.max(0, Math.min(d.groups.length - 1, model.get("response")));
    const position = model.get("position");
    return position < 0 ? highest(d, [r]) : Math.min(d.begins[r] + position, d.begins[r + 1] - 1);
  };
  // A probe's prompt stays; an update has other prompts at every step.
  const toStep = (step) => {
    const probes = model.get("view") === "probes";
    const d = stepAt(model.get("view"), step);
    const i = probes ? null : highest(d, rowsOf(d, mostToSee(d)));
    set(probes ? { step } : { step, ...at(d, i) });
    show();
  };
  const toGroup = (d, r, keep) => {
    const rows = rowsOf(d, r, keep);
    set({ keep, ...(rows.length ? at(d, highest(d, rows)) : {}) });
    show();
  };
  const toPrompt = (g) => toGroup(now(), now().groups.indexOf(g), "all");
  const toKeep = (keep) => toGroup(now(), model.get("response"), keep);
  const next = () => {
    const places = found(now(), model.get("find"));
    const i = chosen(now());
    if (places.length) set({ keep: "all", ...at(now(), places.find((p) => p > i) ?? places[0]) });
    show();
  };
  const top = () => go(highest(now(), [...now().groups.keys()]), { keep: "all" });
  return { steps, now, go, chosen, toStep, toPrompt, toKeep, next, top };
}

// Steps forward by itself; the function that stops it.
function player(model, act, said) {
  let timer = null;
  const stop = () => {
    clearInterval(timer);
    timer = null;
    said(false);
  };
  const forward = () => {
    const steps = act.steps();
    const k = steps.indexOf(model.get("step")) + 1;
    if (k >= steps.length) return stop();
    act.toStep(steps[k]);
  };
  const play = () => {
    if (timer !== null) return stop();
    if (model.get("step") === act.steps().at(-1)) act.toStep(act.steps()[0]);
    timer = setInterval(forward, reducedMotion() ? 1000 : 600);
    said(true);
  };
  return { play, stop };
}

// What a quantity is for each token; what a control takes follows its sliders.
const valuesOf = (d, quantity, taken) => {
  const sets = { clip_cov: taken?.clip, kl_cov: taken?.kl };
  return sets[quantity] ? Float32Array.from({ length: d.n }, (_, i) => Number(sets[quantity].has(i))) : d[quantity];
};

function render({ model, el }) {
  const { root } = begin(model, el);
  if (model.get("problem")) return;

  const save = saver(model);
  let setting = false;
  const set = (values) => {
    setting = true;
    for (const [name, value] of Object.entries(values)) model.set(name, value);
    setting = false;
    save();
  };
  const stepAt = reader(model);
  const act = moves(model, set, (focus) => show(focus), stepAt);
  const turned = (page) => {
    pages.state.page = Math.max(0, Math.min(grid.pages() - 1, page));
    const [r] = grid.rows;
    act.go(Math.min(act.now().begins[r] + pages.state.page * PAGE, act.now().begins[r + 1] - 1));
  };
  const change = (name, value) => {
    set({ [name]: value });
    if (name === "view") act.toStep(model.get("step"));
    show();
  };
  const lists = pickers(model, change, { ...act, play: () => playing.play() });
  const playing = player(model, act, lists.playing);
  const detail = statusLine();
  const [grid, panel, pages] = [tokenGrid((i) => act.go(i)), tokenPanel(), pager(turned)];
  const legend = make("p", { class: "row legend" });
  const sliders = controlSliders(model, change);
  const marks = controlEffects(model);
  const note = make("p", { class: "note", role: "status" });
  const high = highestTokens((i) => act.go(i, { keep: "all" }));
  const below = make("div", {}, make("div", { class: "row wide" }, ...sliders.map((s) => s.node)), marks.node, high.table);
  root.append(lists.node, note, grid.node, pages.node, legend);
  root.append(make("div", { class: "inspected" }, make("div", {}, panel.node, detail.node), panel.bars), below);

  const seen = {}; // what each part was last drawn from
  const anew = (part, ...from) => {
    const key = from.join("\u0000");
    return seen[part] === key ? false : ((seen[part] = key), true);
  };
  const show = (focus = false) => {
    const [view, step, keep] = [model.get("view"), model.get("step"), model.get("keep")];
    const d = act.now();
    const i = act.chosen(d);
    const r = d.responseOf[i];
    if (anew("step", view, step)) {
      note.textContent = d.note;
      lists.read(d);
      high.put(d);
      showIf(below, Boolean(d.covariance));
    }
    pages.state.page = Math.floor((i - d.begins[r]) / PAGE);
    const laid = anew("grid", view, step, d.groups[r], keep, pages.state.page);
    if (laid) grid.lay(d, rowsOf(d, r, keep), pages.state.page);
    if (laid) pages.put(grid.pages());
    const moved = anew("controls", view, step, ...sliders.map((s) => model.get(s.trait)));
    if (moved && d.covariance) marks.put(d, (seen.taken = marks.takenOf(d)));
    if (moved) for (const s of sliders) s.put();
    const quantity = d.quantities.includes(model.get("quantity")) ? model.get("quantity") : d.leading;
    if (anew("colour", seen.grid, quantity, CHOICES.includes(quantity) && seen.controls)) {
      const values = valuesOf(d, quantity, seen.taken);
      grid.paint(quantity, values);
      legend.replaceChildren(...legendOf(d, quantity, values, grid));
    }
    if ((laid || moved) && d.covariance) {
      grid.mark("clip", (k) => seen.taken.clip.has(k));
      grid.mark("kl", (k) => seen.taken.kl.has(k));
    }
    if (anew("find", seen.grid, model.get("find"))) {
      seen.places = new Set(found(d, model.get("find")));
      grid.mark("found", (k) => seen.places.has(k));
      grid.mark("pale", (k) => keep === "forks" && !d.forks[k] && !grid.cells.get(k).classList.contains("part"));
    }
    if (anew("lists", seen.grid, i, quantity, seen.find)) lists.put(d, quantity, seen.places.size);
    grid.choose(i, focus);
    if (anew("said", view, step, i, seen.controls)) detail.say(saying(d, i, seen.taken));
    if (!anew("token", view, step, i)) return;
    const places = view === "probes" ? samePlace(act.steps(), (s) => stepAt(view, s), d, i) : [];
    panel.put(d, i, places, step);
  };
  const told = () => setting || show();
  for (const name of ["view", "step", "quantity", "response", "position", "keep", "find", ...sliders.map((s) => s.trait)]) {
    model.on(`change:${name}`, told);
  }
  show();
  return playing.stop;
}
export default { render };
