// The arithmetic of erltool/entropy/bandit.py: a slider's picture does not wait for the kernel. A test holds both equal.

const sum = (x) => x.reduce((a, b) => a + b, 0);
const mean = (p, x) => sum(p.map((pi, i) => pi * x[i]));

export const logSoftmax = (z) => {
  const top = Math.max(...z);
  const rest = Math.log(sum(z.map((x) => Math.exp(x - top))));
  return z.map((x) => x - top - rest);
};
export const softmax = (z) => logSoftmax(z).map(Math.exp);
// Nats.
export const entropy = (z) => -sum(logSoftmax(z).map((l) => (Math.exp(l) > 0 ? Math.exp(l) * l : 0)));

export const policyCovariance = (z, x, y) => {
  const p = softmax(z);
  const [mx, my] = [mean(p, x), mean(p, y)];
  return sum(p.map((pi, i) => pi * (x[i] - mx) * (y[i] - my)));
};

// Change of the logits in one exact step: eta * pi * A by policy gradient, eta * A by natural policy gradient.
export const step = (z, values, eta, method) => {
  const p = softmax(z);
  const average = mean(p, values);
  return values.map((v, i) => eta * (v - average) * (method === "pg" ? p[i] : 1));
};
export const moved = (z, change) => z.map((x, i) => x + change[i]);
// H(z + dz) - H(z), exactly, and to first order: -Cov(log pi, dz).
export const entropyChange = (z, change) => entropy(moved(z, change)) - entropy(z);
export const firstOrderChange = (z, change) => -policyCovariance(z, logSoftmax(z), change);
// What each action adds to `firstOrderChange`.
export const firstOrderTerms = (z, change) => {
  const [logP, p, h] = [logSoftmax(z), softmax(z), entropy(z)];
  const average = mean(p, change);
  return p.map((pi, i) => -pi * (logP[i] + h) * (change[i] - average));
};

// Logits under which action `i` has the probability `p` and the others keep their ratios.
export const withProbability = (z, i, p) => {
  const others = z.filter((_, j) => j !== i);
  const top = Math.max(...others);
  const rest = top + Math.log(sum(others.map((x) => Math.exp(x - top))));
  return z.map((x, j) => (j === i ? Math.log(p / (1 - p)) + rest : x));
};
