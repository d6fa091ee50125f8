// What TokenInspector knows of a step's tokens: colours, groups, places where responses part, and sentences. As
// token_groups.py has it; a test holds both equal.
import { fixed, floats, integers } from "./elements.js";
import { falling } from "./selection.js";

// Colours for colour-blind readers: cividis for amounts, orange to violet through white where 0 means something.
const CIVIDIS = [
  [0, 34, 78],
  [26, 56, 111],
  [67, 78, 108],
  [97, 101, 111],
  [125, 124, 120],
  [155, 148, 118],
  [188, 174, 108],
  [222, 201, 88],
  [254, 232, 56],
];
const PUOR = [
  [127, 59, 8],
  [190, 99, 10],
  [239, 158, 60],
  [254, 215, 162],
  [246, 246, 247],
  [206, 205, 228],
  [152, 141, 190],
  [93, 55, 144],
  [45, 0, 75],
];
export const QUANTITIES = {
  covariance: "covariance",
  push: "push",
  entropy: "entropy",
  log_prob: "log-prob",
  ratio: "ratio",
  selected: "taken by the run",
  clip_cov: "taken by Clip-Cov",
  kl_cov: "taken by KL-Cov",
};
// What each is, in a few words.
export const MEANINGS = {
  covariance: "(log-prob \u2212 mean) \u00b7 (advantage \u2212 mean): above 0 the token makes the policy surer",
  push: "how the token\u2019s own gradient changes the entropy of its place, nats for a unit step",
  entropy: "how open the choice was before the update, nats",
  log_prob: "log of the token\u2019s probability, nats",
  ratio: "probability now, divided by that when it was sampled",
  selected: "the run\u2019s control acted on it",
  clip_cov: "its gradient would be removed",
  kl_cov: "moving it would cost a penalty",
  advantage: "how much better than its group the response did",
};
const STRATEGIES = { guess: "answers at once", steps: "works step by step", neither: "neither form" };
export const strategiesOf = (d) =>
  [...new Set(d.strategies)].filter((s) => s in STRATEGIES).map((s) => `${s}: ${STRATEGIES[s]}`);
export const CHOICES = ["selected", "clip_cov", "kl_cov"]; // 0 or 1
const CENTRES = { covariance: 0, push: 0, ratio: 1 }; // A quantity's neutral value is white.
const NUMBERS = ["covariance", "push", "entropy", "log_prob", "selected", "old_log_prob", "advantage", "entropy_after"];
const MORE = ["keys", "forks", "likeliest_before", "likeliest_after"];

const between = (stops, t) => {
  const x = Math.max(0, Math.min(1, t)) * (stops.length - 1);
  const i = Math.min(stops.length - 2, Math.floor(x));
  return stops[i].map((c, k) => Math.round(c + (stops[i + 1][k] - c) * (x - i)));
};
export const luminance = (rgb) => {
  const [r, g, b] = rgb.map((c) => ((c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
// Colours of an amount span 2 % to 98 % of the values: few extremes leave the rest apart.
const amounts = (quantity, values) => {
  const sorted = values.toSorted();
  const at = (fraction) => sorted[Math.round(fraction * (sorted.length - 1))];
  const [low, high] = CHOICES.includes(quantity) ? [0, 1] : [at(0.02), at(0.98)];
  return { map: CIVIDIS, low, high, colour: (v) => between(CIVIDIS, (v - low) / Math.max(high - low, 1e-9)) };
};
// Colours of a quantity with a centre span these values alike on both sides, by cube roots: a few tokens have most of a
// covariance, and on an even scale all others are white.
const centred = (centre, values) => {
  const reach = values.reduce((most, v) => Math.max(most, Math.abs(v - centre)), 1e-6);
  const colour = (v) => between(PUOR, 0.5 + Math.cbrt((v - centre) / reach) / 2);
  return { map: PUOR, low: centre - reach, high: centre + reach, colour, roots: true };
};
// Colours of a quantity for a group: amounts as of the whole step, or of all steps (shareColours).
export const colouring = (d, quantity, values, group) => {
  const centre = CENTRES[quantity];
  if (centre === undefined) return (d.colourings[quantity] ??= amounts(quantity, values));
  return (d.colourings[`${quantity} ${group}`] ??= centred(
    centre,
    values.filter((_, i) => d.groups[d.responseOf[i]] === group),
  ));
};


// The tokens of a step as the kernel sent them, with the orders in which the controls select.
export const stepOf = (data) => {
  const d = { ...data, n: data.texts.length, begins: [...data.begins, data.texts.length], colourings: {} };
  // Doubles, so that sums over them are exact enough.
  for (const name of NUMBERS) if (data[name]) d[name] = Float64Array.from(floats(data[name]));
  for (const name of MORE) if (data[name]) d[name] = floats(data[name]);
  for (const name of ["ids", "likeliest"]) if (data[name]) d[name] = integers(data[name]);
  d.most = d.likeliest ? d.likeliest.length / d.n : 0;
  if (d.old_log_prob) d.ratio = Float64Array.from(d.log_prob, (x, i) => Math.exp(x - d.old_log_prob[i]));
  if (d.covariance) Object.assign(d, { byCovariance: falling(d.covariance), byKey: falling(d.keys) });
  d.responseOf = new Int32Array(d.n);
  data.begins.forEach((begin, r) => d.responseOf.fill(r, begin));
  d.leading = d.covariance?.some((x) => x) ? "covariance" : "entropy";
  return d;
};

// Colours that mean the same at every one of these steps.
export const shareColours = (steps) => {
  for (const quantity of ["entropy", "log_prob"]) {
    const all = Float32Array.from(steps.flatMap((d) => [...d[quantity]]));
    const shared = amounts(quantity, all);
    for (const d of steps) d.colourings[quantity] = shared;
  }
};

// --- groups ---

// The responses beside `response` in its group, by falling reward, those that `keep` leaves.
export const rowsOf = (d, response, keep = "all") => {
  const tests = { right: (r) => d.rewards[r] >= 1, wrong: (r) => d.rewards[r] < 1 };
  const test = tests[keep] ?? ((r) => !keep.startsWith("strategy ") || keep === `strategy ${d.strategies[r]}`);
  const group = [...d.groups.keys()].filter((r) => d.groups[r] === d.groups[response]);
  return group.filter(test).sort((r, s) => d.rewards[s] - d.rewards[r]);
};

// Positions in each of several responses, given as token ids, at which it parts from another one that was the same up
// to there.
export const branches = (rows) => {
  const parts = rows.map(() => []);
  const together = [[[...rows.keys()], 0]];
  while (together.length) {
    const [members, at] = together.pop();
    const byToken = new Map();
    for (const m of members) byToken.set(rows[m][at], [...(byToken.get(rows[m][at]) ?? []), m]);
    for (const [token, same] of byToken) {
      if (token === undefined) continue;
      if (byToken.size > 1) for (const m of same) parts[m].push(at);
      if (same.length > 1) together.push([same, at + 1]);
    }
  }
  return parts.map((p) => p.sort((a, b) => a - b));
};
export const idsOf = (d, r) => [...d.ids.subarray(d.begins[r], d.begins[r + 1])];

// The token of these responses with the highest covariance, or entropy where there is none.
export const highest = (d, rows) => {
  let best = d.begins[rows[0]];
  for (const r of rows) {
    for (let i = d.begins[r]; i < d.begins[r + 1]; i++) if (d[d.leading][i] > d[d.leading][best]) best = i;
  }
  return best;
};

// One response of the group with the most to see: rewards differ, and the covariance spreads furthest.
export const mostToSee = (d) => {
  let [best, most] = [0, -1];
  for (const g of new Set(d.groups)) {
    const rows = [...d.groups.keys()].filter((r) => d.groups[r] === g);
    const values = rows.flatMap((r) => [...d[d.leading].subarray(d.begins[r], d.begins[r + 1])]);
    const mean = values.reduce((a, b) => a + b, 0) / values.length;
    const spread = values.reduce((a, v) => a + (v - mean) ** 2, 0) / values.length;
    const differ = rows.some((r) => d.rewards[r] !== d.rewards[rows[0]]);
    const sees = spread + (differ ? 1e9 : 0);
    if (sees > most) [best, most] = [rows[0], sees];
  }
  return best;
};

// Tokens of the step at which a text begins; capitals do not matter.
export const found = (d, text) => {
  const wanted = text.toLowerCase();
  const places = [];
  for (let r = 0; wanted && r < d.groups.length; r++) {
    const owner = [];
    let whole = "";
    for (let i = d.begins[r]; i < d.begins[r + 1]; i++) {
      whole += d.texts[i].toLowerCase();
      while (owner.length < whole.length) owner.push(i);
    }
    for (let at = whole.indexOf(wanted); at >= 0; at = whole.indexOf(wanted, at + 1)) {
      if (places.at(-1) !== owner[at]) places.push(owner[at]);
    }
  }
  return places;
};

// The text around a token, at most `room` characters on each side.
export const around = (d, i, room = 14) => {
  const r = d.responseOf[i];
  const before = d.texts.slice(Math.max(d.begins[r], i - room), i).join("");
  const after = d.texts.slice(i + 1, Math.min(d.begins[r + 1], i + 1 + room)).join("");
  const cut = [before.length > room ? "\u2026" : "", after.length > room ? "\u2026" : ""];
  return [cut[0] + before.slice(-room), d.texts[i].slice(0, 2 * room), after.slice(0, room) + cut[1]];
};

// Entropy, step and token of the same place, that is after the same tokens of a response to the same prompt, at every
// step where it was sampled. `stepAt` gives a step's tokens.
export const samePlace = (steps, stepAt, d, i) => {
  const r = d.responseOf[i];
  const position = i - d.begins[r];
  const prefix = d.ids.subarray(d.begins[r], i);
  return steps.flatMap((step) => {
    const other = stepAt(step);
    const found = other.begins.slice(0, -1).find((begin, s) => {
      if (other.groups[s] !== d.groups[r] || other.begins[s + 1] - begin <= position) return false;
      return prefix.every((id, k) => other.ids[begin + k] === id);
    });
    return found === undefined ? [] : [{ step, at: found + position, d: other, entropy: other.entropy[found + position] }];
  });
};

// --- words ---

const percent = (fraction) => `${Number((100 * fraction).toPrecision(2))} %`;
const chance = (p) => (p >= 0.001 ? fixed(p) : p.toExponential(0).replace("-", "\u2212"));
const likelihood = (p) => (p >= 0.5 ? "A likely token" : p >= 0.1 ? "One of several likely tokens" : "A rare token");

const control = (name, fraction, takes, why) =>
  `${name} at ${percent(fraction)} would ${takes ? "act on it" : `leave it${why ? ` (${why})` : ""}`}`;
const controls = (d, i, { clip, kl, low, high, clipFraction, klFraction }) => {
  const outside = d.covariance[i] <= low || d.covariance[i] >= high;
  const why = outside ? `covariance outside ${fixed(low, 2)} to ${fixed(high, 2)}` : "others were drawn";
  return `${control("Clip-Cov", clipFraction, clip.has(i), why)}, ${control("KL-Cov", klFraction, kl.has(i), "")}.`;
};

// One or a few sentences: what this token did to the entropy, and which control would have acted.
export const saying = (d, i, settings) => {
  const p = Math.exp(d.log_prob[i]);
  const begun = `${likelihood(p)} (probability ${chance(p)})`;
  if (!d.covariance) return `${begun}, at a place with an entropy of ${fixed(d.entropy[i])} nats.`;
  const a = d.advantage[i];
  if (a === 0) return `${begun} with advantage 0: the update did not act on it. ${controls(d, i, settings)}`;
  const acted = `${begun} with advantage ${fixed(a, 2)}: the update pushed it ${a > 0 ? "up" : "down"}.`;
  const sign = d.push ? d.push[i] : -d.covariance[i];
  const by = d.push ? `push ${fixed(d.push[i])} nats for a unit step` : `covariance ${fixed(d.covariance[i])}`;
  const did = `To first order it ${sign < 0 ? "lowered" : sign > 0 ? "raised" : "left"} the entropy of its place (${by}).`;
  const after = d.entropy_after?.[i];
  const measured = after >= 0 ? ` The whole update took it from ${fixed(d.entropy[i])} to ${fixed(after)}.` : "";
  return `${acted} ${did}${measured} ${controls(d, i, settings)}`;
};
