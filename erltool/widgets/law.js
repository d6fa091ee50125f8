// The law's arithmetic, as erltool/law/fit.py, forecast.py and rivals.py have it, for a page without a kernel.
// Intervals are not among it: they need the bootstrap and the autoregression of the package.

export const LAW = "exponential"; // R = b - a exp(H), the one that is dragged and forecasts
const FEWEST = 6; // points that a forecast is fitted to
const logarithms = (low, high, count) =>
  Array.from({ length: count }, (_, i) => (i === count - 1 ? high : low * (high / low) ** (i / (count - 1))));
const EXPONENTS = [...logarithms(12, 0.05, 25).map((c) => -c), ...logarithms(0.05, 12, 25)];
const SHAPES = {
  exponential: { shape: (h) => Math.exp(h) },
  linear: { shape: (h) => h },
  log: { shape: (h) => Math.log(h) },
  power: { shape: (h, c) => Math.sign(c) * h ** c, searched: true },
  "free exponent": { shape: (h, c) => Math.sign(c) * Math.exp(c * h), searched: true },
};

// Python's round: halves go to the even number.
export const roundEven = (v) => {
  const down = Math.floor(v);
  return v - down === 0.5 ? down + (down % 2) : Math.round(v);
};
const meanOf = (v) => v.reduce((sum, x) => sum + x, 0) / v.length;

// Means of `window` neighbours each; the last point is the mean of the rest.
export const averaged = (v, window) =>
  Float64Array.from({ length: Math.ceil(v.length / window) }, (_, i) =>
    meanOf([...v.slice(i * window, (i + 1) * window)]),
  );
export const widest = (n) => Math.max(1, Math.floor(n / 3));

// Least squares of r on s: slope, intercept and the sum of squares.
const line = (s, r) => {
  const [centre, mean] = [meanOf(s), meanOf(r)];
  const spread = s.reduce((sum, v) => sum + (v - centre) ** 2, 0);
  const slope = s.reduce((sum, v, i) => sum + (v - centre) * (r[i] - mean), 0) / spread;
  const intercept = mean - slope * centre;
  const squares = s.reduce((sum, v, i) => sum + (r[i] - intercept - slope * v) ** 2, 0);
  return { slope, intercept, squares };
};

// The law fitted to points; null where it cannot be.
export const fitLaw = (h, r) => {
  if (h.length < 3) return null;
  const { slope, intercept, squares } = line([...h].map(Math.exp), [...r]);
  if (![slope, intercept].every(Number.isFinite)) return null;
  const mean = meanOf([...r]);
  const total = [...r].reduce((sum, v) => sum + (v - mean) ** 2, 0);
  const [a, b] = [-slope, intercept];
  return { a, b, ceiling: b - a, rmse: Math.sqrt(squares / h.length), rSquared: total > 0 ? 1 - squares / total : NaN };
};

// A law by its name fitted to points: its value at an entropy, its rmse, and performance at entropy 0.
export const fitShape = (law, h, r) => {
  const { shape, searched } = SHAPES[law];
  const solved = (c) => {
    const found = line(
      [...h].map((v) => shape(v, c)),
      [...r],
    );
    return Number.isFinite(found.squares) ? found : { ...found, squares: Infinity };
  };
  const c = searched ? lowest((v) => solved(v).squares) : 0;
  const { slope, intercept, squares } = solved(c);
  const predict = (v) => intercept + slope * shape(v, c);
  return { predict, rmse: Math.sqrt(squares / h.length), ceiling: predict(0) };
};

// The exponent with the lowest value, between the neighbours of the best of EXPONENTS.
function lowest(value) {
  const at = EXPONENTS.reduce((best, c, i) => (value(c) < value(EXPONENTS[best]) ? i : best), 0);
  let [low, high] = [EXPONENTS[Math.max(0, at - 1)], EXPONENTS[Math.min(EXPONENTS.length - 1, at + 1)]];
  const golden = (Math.sqrt(5) - 1) / 2;
  while (high - low > 1e-7) {
    const step = golden * (high - low);
    if (value(high - step) < value(low + step)) high = low + step;
    else low = high - step;
  }
  return (low + high) / 2;
}

// The law of the first fraction `cut` of the points, and its error on the others; null where there are too few.
export const forecastLaw = (h, r, cut) => {
  if (h.length <= FEWEST) return null;
  const count = Math.min(Math.max(FEWEST, roundEven(cut * h.length)), h.length - 1);
  const law = fitLaw(h.slice(0, count), r.slice(0, count));
  if (!law) return null;
  const rest = [...h.slice(count)].map((v, i) => (r[count + i] - law.b + law.a * Math.exp(v)) ** 2);
  return { ...law, count, rest: rest.length, restRmse: Math.sqrt(meanOf(rest)) };
};

// Entropies from 0 to the highest, for drawing curves; dense enough for either axis.
export const gridOf = (h) => {
  const [low, high] = [Math.min(0, ...h), Math.max(...h)];
  const even = Array.from({ length: 81 }, (_, i) => (i === 80 ? high : low + ((high - low) * i) / 80));
  const positive = h.filter((v) => v > 0);
  const dense = positive.length ? logarithms(Math.min(...positive), high, 61) : [];
  return Float64Array.from(new Set([...even, ...dense])).sort();
};
