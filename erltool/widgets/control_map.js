// ControlExplorer's map: a button for each control in each setting, with the difference to no control and its interval.
import { draw, fixed, keepKeys, make } from "./elements.js";
import { INK, QUIET, SERIES, WORDS, path, svg } from "./kit.js";

const [CELL, DEEP] = [84, 16]; // pixels of a cell's drawing
const VERDICTS = {
  pays: { word: "pays", colour: SERIES[0], words: WORDS[0] },
  costs: { word: "costs", colour: SERIES[1], words: WORDS[1] },
  open: { word: "not told apart", colour: QUIET, words: QUIET },
};

const signed = (v) => (v > 0 ? "+" : "") + fixed(v);
const times = (v) => `${v >= 10 ? fixed(v, 0) : fixed(v, 1)}\u00d7`;

// Whether the interval of a difference leaves zero out, and on which side.
export const verdictOf = (difference) =>
  VERDICTS[
    !difference || difference[1] === null ? "open" : difference[1] > 0 ? "pays" : difference[2] < 0 ? "costs" : "open"
  ];

// The group that a cell stands for: the one on show, else the one with the most runs.
export const groupOf = (groups, here, cells) =>
  here.find((i) => cells.includes(i)) ?? here.reduce((a, b) => (groups[b].runs.length > groups[a].runs.length ? b : a));

// Lowest and highest difference of the map, 0 among them: its cells share this axis.
const reachOf = (ends) => {
  const all = ends.flatMap(({ difference }) => difference ?? []).filter((v) => v !== null);
  const [low, high] = [Math.min(0, ...all), Math.max(0, ...all)];
  const room = 0.06 * (high - low || 1);
  return [low - room, high + room];
};

const interval = ([mean, low, high], [from, to], { colour }) => {
  const px = (v) => ((v - from) / (to - from)) * CELL;
  const chart = svg(CELL, DEEP);
  chart.setAttribute("aria-hidden", "true");
  chart.append(path(`M${px(0)} 0V${DEEP}`, { stroke: INK, "stroke-width": 1, "stroke-dasharray": "2 2" }));
  if (low !== null) chart.append(path(`M${px(low)} ${DEEP / 2}H${px(high)}`, { stroke: colour, "stroke-width": 3 }));
  chart.append(draw("circle", { cx: px(mean), cy: DEEP / 2, r: 4, fill: colour }));
  return chart;
};

function contents({ end }, reach) {
  const entropy = end.entropy_end ? `entropy ${fixed(end.entropy_end[0])}` : "entropy not measured";
  const value = (text, colour) => make("span", { class: "value", style: `color: ${colour}` }, text);
  if (!end.difference) {
    return [value(end.accuracy ? fixed(end.accuracy[0]) : "not measured", INK), make("small", {}, entropy)];
  }
  const [mean, low, high] = end.difference;
  const verdict = verdictOf(end.difference);
  const between = low === null ? "one seed" : `${signed(low)} to ${signed(high)}`;
  const held = end.held ? `entropy ${times(end.held[0])}` : entropy;
  const word = verdict === VERDICTS.open ? "" : ` ${verdict.word}`;
  return [
    make(
      "span",
      { class: "first" },
      value(`${signed(mean)}${word}`, verdict.words),
      interval(end.difference, reach, verdict),
    ),
    make("small", {}, make("span", {}, between), " \u00b7 ", make("span", {}, held)),
  ];
}

const said = ({ label, end, runs }, setting, accuracy) => {
  const d = end.difference;
  const held = end.held ? `, ${times(end.held[0])} the entropy of no control` : "";
  const bounds = d && d[1] !== null ? `, ${signed(d[1])} to ${signed(d[2])}, ${verdictOf(d).word}` : "";
  const value = d ? `${signed(d[0])} against none${bounds}` : end.accuracy ? fixed(end.accuracy[0]) : "not measured";
  const where = setting ? ` in ${setting}` : "";
  return `${label}${where}, ${runs.length} seed${runs.length > 1 ? "s" : ""}: ${accuracy} ${value}${held}`;
};

// The map as a table; `pick` is told the group of a cell that was pressed.
export function controlMap(d, pick) {
  const { controls, settings, accuracy } = d.map;
  const here = (control, setting) =>
    [...d.groups.keys()].filter((i) => d.groups[i].control === control && d.groups[i].setting === setting);
  const cells = controls.flatMap((c) => settings.map((s) => here(c, s))).filter((all) => all.length);
  const reach = reachOf(cells.flat().map((i) => d.groups[i].end));
  const buttons = new Map();
  const cell = (all) => {
    if (!all.length) return make("td", {}, make("span", { class: "none" }, "\u2013"));
    const button = keepKeys(make("button", { type: "button", class: "cell", "aria-pressed": "false" }));
    button.addEventListener("click", () => pick(buttons.get(button).at));
    buttons.set(button, { all, at: null });
    return make("td", {}, button);
  };
  const head = [make("td"), ...settings.map((s) => make("th", { scope: "col" }, d.settings[s] || "all runs"))];
  const rows = controls.map((control) =>
    make("tr", {}, make("th", { scope: "row" }, control), ...settings.map((s) => cell(here(control, s)))),
  );
  const caption = make(
    "caption",
    {},
    make("b", {}, "Where does control pay? "),
    `Difference of ${accuracy} to no control, mean over seeds and 95 % interval, and how many times its entropy is held. ` +
      "Choose one cell, or two.",
  );
  const node = make("table", { class: "pays" }, caption, make("tr", {}, ...head), ...rows);
  const paint = (shown) => {
    for (const [button, state] of buttons) {
      const at = groupOf(d.groups, state.all, shown);
      button.setAttribute("aria-pressed", String(shown.includes(at)));
      if (at === state.at) continue;
      state.at = at;
      const group = d.groups[at];
      const more = state.all.length > 1 ? [make("small", {}, `1 of ${state.all.length} recorded values`)] : [];
      button.replaceChildren(...contents(group, reach), ...more);
      const name = d.settings.length > 1 ? d.settings[group.setting] : "";
      button.setAttribute("aria-label", said(group, name, accuracy));
      button.title = group.label;
    }
  };
  return { node, paint };
}
