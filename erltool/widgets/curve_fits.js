// What CurveFitter fits in the browser: at once while the kernel works, and all there is without a kernel.
import { short } from "./curve_chart.js";
import { doubles, fixed } from "./elements.js";
import { LAW, averaged, fitLaw, fitShape, forecastLaw, gridOf, widest } from "./law.js";

const ASKED = ["current", "performance", "window", "block_length", "law", "cut", "beside"];
export const REACH = 100; // steps of a slider of a or b on either side of the fit

// Whether the kernel's last message is of what the reader has chosen since.
export const isOf = (model, sent) => JSON.stringify(ASKED.map((name) => model.get(name))) === JSON.stringify(sent.of);

// A source's points for what is chosen; null where they are not here.
function pointsOf(model, at) {
  const source = model.get("raw")[at];
  const found = source?.[""] ?? source?.[model.get("performance")];
  if (!found) return null;
  const [h, r] = [doubles(found.h), doubles(found.r)];
  const window = Math.min(model.get("window"), widest(h.length));
  return { h: averaged(h, window), r: averaged(r, window), unit: found.unit, measured: h.length, window };
}

// What the kernel would send, but for intervals and advice: fitted here at once, and all there is without a kernel.
export function fittedHere(model, sent) {
  const at = model.get("current");
  const name = (i) => model.get("sources")[i].name;
  const own = pointsOf(model, at);
  const fit = own && fitLaw(own.h, own.r);
  if (!fit) return null;
  const others = model
    .get("beside")
    .filter((i) => i !== at && i < model.get("sources").length)
    .map((i) => [i, pointsOf(model, i)])
    .map(([i, p]) => [i, p, p && fitLaw(p.h, p.r)])
    .filter(([, , f]) => f);
  const grid = gridOf([own, ...others.map(([, p]) => p)].flatMap(({ h }) => [...h]));
  const value = (f) => (h) => f.b - f.a * Math.exp(h);
  const law = model.get("law");
  const shape = law === LAW ? { ...fit, predict: value(fit) } : fitShape(law, own.h, own.r);
  const n = own.h.length;
  const sign = fit.b < 0 ? "\u2212" : "+";
  const formula = `R = ${short(-fit.a)} exp(H) ${sign} ${short(Math.abs(fit.b))}`;
  const ceiling = Number.isFinite(shape.ceiling) ? shape.ceiling : null;
  const end = ceiling === null ? "without bound" : short(ceiling);
  const spread = Math.max(Math.abs(fit.a), Math.max(...own.r) - Math.min(...own.r));
  const row = (i, p, f) => [
    name(i),
    short(f.a),
    short(f.b),
    short(f.ceiling),
    fixed(f.rSquared),
    short(f.rmse),
    String(p.h.length),
  ];
  return {
    ...own,
    grid,
    curve: grid.map(shape.predict),
    low: [],
    high: [],
    a: fit.a,
    b: fit.b,
    rmse: shape.rmse,
    ceiling,
    interval: null,
    step: spread / REACH || 1 / REACH,
    window_max: widest(own.measured),
    block_max: Math.floor(n / 2),
    block: model.get("block_length") ?? Math.min(Math.floor(n / 2), Math.max(1, Math.round(Math.sqrt(n)))),
    rows: [row(at, own, fit), ...others.map(([i, p, f]) => row(i, p, f))],
    notes: [],
    words: `${name(at)}: ${law === LAW ? formula : law} fitted to ${n} points, RMSE ${short(shape.rmse)} (${own.unit}); at H = 0 ${end}.`,
    beside: others.map(([i, p, f]) => ({ at: i, h: p.h, r: p.r, curve: grid.map(value(f)) })),
    forecast: forecastHere(model, own, grid, value) ?? { words: sent.forecast?.words ?? "" },
  };
}

function forecastHere(model, { h, r, unit }, grid, value) {
  const cut = model.get("cut");
  if (model.get("law") !== LAW) return { words: "The forecast is the exponential law\u2019s; choose it for one." };
  if (cut === 1) return { words: "No forecast: all points are fitted. Move the forecast cut to the left for one." };
  const f = forecastLaw(h, r, cut);
  if (!f) return { words: "No forecast: there are too few points." };
  const said = `From the first ${f.count} points: RMSE ${short(f.restRmse)} (${unit}) on the other ${f.rest}.`;
  return { count: f.count, curve: grid.map(value(f)), low: [], high: [], words: said };
}
