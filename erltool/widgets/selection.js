// Which tokens Clip-Cov and KL-Cov act on, and what that does to the mean covariance: as TokenInspector.result has it
// in Python. A test holds both equal.

// Tokens that a fraction of n allows: at least one, unless the fraction is 0.
export const budget = (fraction, n) =>
  fraction > 0 && n ? Math.min(n, Math.max(1, Math.floor(fraction * n + 1e-9))) : 0;

// Positions by falling value; equal values keep their order.
export const falling = (values) => [...values.keys()].sort((i, j) => values[j] - values[i]);

// Clip-Cov: of the tokens in the band (low, high) the first ones in a random order. Without sorting anew for each
// position of a slider, the order of all tokens is given.
export const clipCov = (covariance, order, { low, high, fraction }) => {
  const inBand = order.filter((i) => covariance[i] > low && covariance[i] < high);
  return new Set(inBand.slice(0, budget(fraction, covariance.length)));
};

// KL-Cov: the tokens of highest covariance; `order` is by falling covariance.
export const klCov = (order, fraction) => new Set(order.slice(0, budget(fraction, order.length)));

const average = (x) => x.reduce((a, b) => a + b, 0) / x.length;

// Nats; 0 without tokens.
export const meanCovariance = (logProb, advantage) => {
  if (!logProb.length) return 0;
  const [meanLog, meanAdvantage] = [average(logProb), average(advantage)];
  return average(logProb.map((l, i) => (l - meanLog) * (advantage[i] - meanAdvantage)));
};

// Mean covariance as it is, without an advantage on Clip-Cov's tokens, and with KL-Cov's penalty on its tokens.
export const effects = ({ log_prob, old_log_prob, advantage }, clip, kl, coef) => {
  const penalty = (i) => coef * Math.sign(log_prob[i] - old_log_prob[i]);
  return {
    none: meanCovariance(log_prob, advantage),
    clip: meanCovariance(
      log_prob,
      advantage.map((a, i) => (clip.has(i) ? 0 : a)),
    ),
    kl: meanCovariance(
      log_prob,
      advantage.map((a, i) => (kl.has(i) ? a - penalty(i) : a)),
    ),
  };
};
