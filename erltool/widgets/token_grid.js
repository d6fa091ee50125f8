// TokenInspector's grid: a group's responses in rows. One token is chosen and has the focus; arrows move it.
import { fixed, make } from "./elements.js";
import { branches, colouring, idsOf, luminance } from "./tokens.js";

export const PAGE = 200; // positions in the page at a time

const about = (d, r) => {
  const wrong = d.wrong[r] ? `, step ${d.wrong[r]} wrong` : "";
  const words = [String(Number(d.rewards[r].toFixed(3))), [d.strategies[r] + wrong].filter(Boolean).join("")];
  const attributes = { role: "rowheader", class: d.rewards[r] >= 1 ? "about right" : "about" };
  return make("span", attributes, make("b", {}, words[0]), ` ${words[1]}`);
};
const cell = (d, i, parts) => {
  const look = `token${d.forks[i] ? " fork" : ""}${parts ? " part" : ""}`;
  return make("span", { class: look, role: "gridcell", "aria-selected": "false", tabindex: -1 }, d.texts[i]);
};

// `go(i)` is called with the token that the reader moves to.
export const tokenGrid = (go) => {
  const node = make("div", { class: "tokens", role: "grid", "aria-label": "responses, by falling reward" });
  const grid = { node, rows: [], cells: new Map(), first: 0, parts: false };
  let [d, chosen, places, laid] = [null, null, new Map(), false];
  const marked = new Map();
  grid.last = () => Math.max(...grid.rows.map((r) => d.begins[r + 1] - d.begins[r]), 1);
  grid.pages = () => Math.ceil(grid.last() / PAGE);
  grid.lay = (step, rows, page) => {
    [d, chosen, laid] = [step, null, true];
    Object.assign(grid, { rows, cells: new Map(), first: page * PAGE });
    const parting = branches(rows.map((r) => idsOf(d, r)));
    grid.parts = parting.some((p) => p.length);
    const lines = rows.map((r, k) => {
      const [begin, end] = [d.begins[r] + grid.first, Math.min(d.begins[r + 1], d.begins[r] + grid.first + PAGE)];
      const here = new Set(parting[k]);
      const cells = [];
      for (let i = begin; i < end; i++) {
        cells.push(cell(d, i, here.has(i - d.begins[r])));
        grid.cells.set(i, cells.at(-1));
      }
      return make("div", { class: "response", role: "row" }, about(d, r), ...cells);
    });
    const longest = Math.max(0, ...lines.map((line) => line.firstChild.textContent.length));
    node.style.setProperty("--erltool-about", `${Math.min(13, 3.5 + 0.5 * longest)}em`);
    node.replaceChildren(...lines);
    places = new Map([...grid.cells].map(([i, c]) => [c, i]));
  };
  grid.paint = (quantity, values) => {
    const { colour } = (d.colourings[quantity] ??= colouring({ ...d, [quantity]: values }, quantity));
    for (const [i, c] of grid.cells) {
      const rgb = colour(values[i]);
      c.style.background = `rgb(${rgb})`;
      c.style.color = luminance(rgb) > 0.179 ? "#000" : "#fff";
    }
  };
  grid.mark = (name, has) => {
    const now = [...grid.cells.keys()].filter(has);
    for (const i of marked.get(name) ?? []) if (!has(i)) grid.cells.get(i)?.classList.remove(name);
    for (const i of now) grid.cells.get(i).classList.add(name);
    marked.set(name, now);
  };
  // Chooses a token; `focus` where the reader moved to it.
  grid.choose = (i, focus) => {
    if (chosen) {
      chosen.tabIndex = -1;
      chosen.setAttribute("aria-selected", "false");
    }
    chosen = grid.cells.get(i) ?? grid.cells.values().next().value;
    if (!chosen) return;
    chosen.tabIndex = 0;
    chosen.setAttribute("aria-selected", "true");
    if (focus) chosen.focus();
    else if (laid) node.scrollLeft = chosen.offsetLeft - 0.7 * node.clientWidth;
    laid = false;
  };
  const tokenOf = (target) => places.get(target.closest?.(".token"));
  node.addEventListener("click", (e) => {
    const i = tokenOf(e.target);
    if (i !== undefined) go(i);
  });
  node.addEventListener("keydown", (e) => {
    e.stopPropagation();
    const i = tokenOf(e.target);
    const to = i === undefined ? null : moved(d, grid.rows, i, e.key);
    if (to === null) return;
    e.preventDefault();
    go(to);
  });
  return grid;
};

// The token that a key leads to from token i; null for other keys.
export const moved = (d, rows, i, key) => {
  const r = d.responseOf[i];
  const [begin, end] = [d.begins[r], d.begins[r + 1]];
  const along = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: begin, End: end - 1 }[key];
  if (along !== undefined) return Math.max(begin, Math.min(end - 1, along));
  const line = { ArrowUp: -1, ArrowDown: 1 }[key];
  if (line === undefined) return null;
  const other = rows[Math.max(0, Math.min(rows.length - 1, rows.indexOf(r) + line))];
  return Math.min(d.begins[other] + i - begin, d.begins[other + 1] - 1);
};

// What the colours and marks mean.
export const legendOf = (d, quantity, values, grid) => {
  const { map, low, high } = (d.colourings[quantity] ??= colouring({ ...d, [quantity]: values }, quantity));
  // One unbroken item, lest a reader take the mark and its meaning for two.
  const mark = (name, text, meaning) =>
    make("span", { style: "white-space: nowrap" }, make("span", { class: `mark ${name}` }, text), `: ${meaning}`);
  const style = `background: linear-gradient(to right, ${map.map((c) => `rgb(${c})`)})`;
  return [
    make("span", {}, fixed(low)),
    make("span", { class: "map", "aria-hidden": "true", style }),
    make("span", {}, fixed(high)),
    make("span", { class: "quiet" }, `2 % to 98 % of ${d.covariance ? "the step\u2019s" : "all steps\u2019"} tokens`),
    ...(grid.parts ? [mark("part", "bar", "responses part here")] : []),
    ...(d.forks.some((x) => x) ? [mark("fork", "boxed", "a choice of strategy or step")] : []),
  ];
};
