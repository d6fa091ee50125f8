// TokenInspector's grid: a group's responses in rows. One token is chosen and has the focus; arrows move it.
import { fixed, make } from "./elements.js";
import { MEANINGS, QUANTITIES, branches, colouring, idsOf, luminance, strategiesOf } from "./tokens.js";

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
    marked.clear();
    Object.assign(grid, { rows, group: d.groups[rows[0]], cells: new Map(), first: page * PAGE });
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
    const { colour } = colouring(d, quantity, values, grid.group);
    for (const [i, c] of grid.cells) {
      const rgb = colour(values[i]);
      c.style.background = `rgb(${rgb})`;
      c.style.color = luminance(rgb) > 0.179 ? "#000" : "#fff";
    }
  };
  // Only tokens whose mark changes are touched.
  grid.mark = (name, has) => {
    const before = marked.get(name) ?? new Set();
    const now = new Set([...grid.cells.keys()].filter(has));
    for (const i of before) if (!now.has(i)) grid.cells.get(i)?.classList.remove(name);
    for (const i of now) if (!before.has(i)) grid.cells.get(i).classList.add(name);
    marked.set(name, now);
  };
  // Chooses a token; `focus` where the reader moved to it.
  grid.choose = (i, focus) => {
    const next = grid.cells.get(i) ?? grid.cells.values().next().value;
    if (chosen && chosen !== next) {
      chosen.tabIndex = -1;
      chosen.setAttribute("aria-selected", "false");
    }
    if (next && chosen !== next) {
      next.tabIndex = 0;
      next.setAttribute("aria-selected", "true");
    }
    chosen = next;
    if (!chosen) return;
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

// What the colours, the marks and the words at the left mean.
export const legendOf = (d, quantity, values, grid) => {
  const { map, low, high, roots } = colouring(d, quantity, values, grid.group);
  const whole = d.covariance ? "the step\u2019s" : "all steps\u2019";
  // One unbroken item, lest a reader take the mark and its meaning for two.
  const mark = (name, text, meaning) =>
    make("span", { style: "white-space: nowrap" }, make("span", { class: `mark ${name}` }, text), `: ${meaning}`);
  const style = `background: linear-gradient(to right, ${map.map((c) => `rgb(${c})`)})`;
  return [
    make("span", {}, fixed(low)),
    make("span", { class: "map", "aria-hidden": "true", style }),
    make("span", {}, fixed(high)),
    make("span", { class: "quiet" }, roots ? "of this group, by cube roots" : `2 % to 98 % of ${whole} tokens`),
    make("span", {}, make("b", {}, QUANTITIES[quantity]), `: ${MEANINGS[quantity]}`),
    ...(grid.parts ? [mark("part", "bar", "these responses part here")] : []),
    ...(d.forks.some((x) => x) ? [mark("fork", "box", "a fork: here the task leaves a choice")] : []),
    ...strategiesOf(d).map((words) => make("span", { class: "quiet" }, words)),
  ];
};
