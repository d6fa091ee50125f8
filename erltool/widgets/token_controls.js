// TokenInspector's controls: sliders of Clip-Cov and KL-Cov, what each would take, and the tokens of highest covariance.
import { button, fillTable, fixed, make, showIf, slider } from "./elements.js";
import { clipCov, effects, klCov } from "./selection.js";
import { QUANTITIES, around } from "./tokens.js";

const HIGHEST = 8; // tokens in the table

// Sliders of the controls' traits; those with `log` are moved on a logarithmic scale.
export function controlSliders(model, set) {
  const number = (trait, name, min, max, log = false) => {
    const shown = make("span", { class: "number" });
    let seen;
    const [to, from] = log ? [(v) => 10 ** v, Math.log10] : [(v) => v, (v) => v];
    const range = { min: from(min), max: from(max), step: 0.05, value: from(model.get(trait)) };
    const input = slider(name, range, (v) => set(trait, to(v)));
    const put = () => {
      const v = model.get(trait);
      if (v === seen) return;
      seen = v;
      shown.textContent = log ? v.toPrecision(2) : fixed(v, 2);
      input.setAttribute("aria-valuetext", shown.textContent);
      if (document.activeElement !== input) input.value = from(v);
    };
    return { trait, put, node: make("label", {}, make("span", { class: "name" }, name), input, shown) };
  };
  return [
    number("low", "Clip-Cov low", -2, 8),
    number("high", "Clip-Cov high", -2, 12),
    number("clip_fraction", "Clip-Cov fraction", 1e-4, 1, true),
    number("kl_fraction", "KL-Cov fraction", 1e-4, 1, true),
    number("coef", "KL-Cov coef", 0, 5),
  ];
}

// What Clip-Cov and KL-Cov would take of the step, and what is left of the mean covariance, in words.
export function controlEffects(model) {
  const lines = [0, 1, 2].map(() => make("p"));
  const mark = (name, text) => make("span", { class: `mark ${name}` }, text);
  const takenOf = (d) => {
    const [low, high] = [model.get("low"), model.get("high")];
    const [clipFraction, klFraction] = [model.get("clip_fraction"), model.get("kl_fraction")];
    const clip = clipCov(d.covariance, d.byKey, { low, high, fraction: clipFraction });
    return { clip, kl: klCov(d.byCovariance, klFraction), low, high, clipFraction, klFraction };
  };
  const put = (d, { clip, kl }) => {
    const left = effects(d, clip, kl, model.get("coef"));
    const silent = d.ratio.every((x) => x === 1);
    const why = silent ? " (every ratio is 1: on the first update after sampling KL-Cov's penalty is 0)" : "";
    const takes = (chosen, mean) => `takes ${chosen.size} of ${d.n} tokens and leaves ${fixed(mean, 4)}`;
    lines[0].textContent = `mean covariance of log-prob and advantage ${fixed(left.none, 4)} nats: to first order the entropy falls by it, up to the step size`;
    lines[1].replaceChildren(mark("clip", "Clip-Cov"), ` (line below) ${takes(clip, left.clip)}`);
    lines[2].replaceChildren(mark("kl", "KL-Cov"), ` (line above) ${takes(kl, left.kl)}${why}`);
  };
  return { node: make("div", {}, ...lines), takenOf, put };
}

// The tokens with the highest covariance, each with the text around it; a press leads there.
export function highestTokens(go) {
  const table = make("table", { "aria-label": "tokens with the highest covariance" });
  const put = (d) => {
    showIf(table, Boolean(d.covariance));
    if (!d.covariance) return;
    const shown = ["covariance", "push", "log_prob", "entropy"].filter((name) => d[name]);
    const rows = d.byCovariance.slice(0, HIGHEST).map((i) => {
      const [before, token, after] = around(d, i);
      const there = button("", () => go(i));
      there.className = "there";
      there.append(before, make("b", {}, token), after);
      const numbers = shown.map((name) => fixed(d[name][i]));
      return [[there], ...numbers, fixed(d.advantage[i], 2), d.prompts[d.responseOf[i]].slice(0, 20)];
    });
    fillTable(table, ["highest covariance", ...shown.map((name) => QUANTITIES[name]), "advantage", "prompt"], rows);
  };
  return { table, put };
}
