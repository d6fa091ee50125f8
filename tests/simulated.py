"""Simulated runs that follow the law R = -a exp(H) + b, and runs that leave it, for tests and benchmarks."""

from typing import NamedTuple

import numpy as np

# How entropy falls from 1 to 0 of its range, at times from 0 to 1.
SHAPES = {
    "fast": lambda t: np.exp(-8 * t),
    "slow": lambda t: np.exp(-2 * t),
    "power": lambda t: (1 + 30 * t) ** -0.7,
    "line": lambda t: 1 - t,
    "late": lambda t: 1 / (1 + np.exp(8 * (t - 0.5))),
}
SLOPES, OFFSETS = (0.05, 0.2, 20.0), (0.7, 60.0)  # a and b
HIGH, LOW = (0.3, 0.6, 1.5), (0.03, 0.3)  # nats at the start; the fraction of them at the end


class Simulated(NamedTuple):
    entropy: np.ndarray
    """(n,) nats, with noise"""
    performance: np.ndarray
    a: float
    ceiling: float
    gain: float
    """By the law, from first to last point."""


def neighbours(rng: np.random.Generator, n: int, correlation: float) -> np.ndarray:
    """(n,) of standard deviation 1, each with this correlation to the one before."""
    e = rng.standard_normal(n)
    for t in range(1, n):
        e[t] = correlation * e[t - 1] + np.sqrt(1 - correlation**2) * e[t]
    return e


def run_on_its_law(
    rng: np.random.Generator, n: int, *, noise: float = 0.03, correlation: float = 0.0, entropy_noise: float = 0.0,
    shape: str | None = None, leaves: float = 0.0, since: float = 0.0,
) -> Simulated:  # fmt: skip
    """A run of n points that spends its entropy in one of SHAPES (at random), with a and b at random.

    `noise` is the standard deviation of performance's errors, as a share of the gain, and `correlation` that of
    neighbours; `entropy_noise` that of independent noise in H, as a share of its range. With `leaves` performance
    leaves the law: from the share `since` of the run on, over the next 0.7 of what is left, by this share of the gain.
    """
    t = np.linspace(0, 1, n)
    falls = SHAPES[shape or rng.choice(list(SHAPES))](t)
    high, a, b = rng.choice(HIGH), rng.choice(SLOPES), rng.choice(OFFSETS)
    low = high * rng.choice(LOW)
    h = low + (high - low) * (falls - falls[-1]) / (falls[0] - falls[-1])
    clean = b - a * np.exp(h)
    gain = np.ptp(clean)
    r = clean + gain * (noise * neighbours(rng, n, correlation) + leaves * _ramp(t, since))
    return Simulated(h + entropy_noise * np.ptp(h) * rng.standard_normal(n), r, a, b - a, gain)


def _ramp(t: np.ndarray, since: float) -> np.ndarray:
    return np.clip((t - since) / (0.7 * (1 - since)), 0, 1)
