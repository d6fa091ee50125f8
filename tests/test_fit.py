from fractions import Fraction

import numpy as np
import pytest

from erltool import ErltoolError, fit_law

# NIST StRD, data set Norris (y, x) and its certified values.
NORRIS = """0.1 0.2 338.8 337.4 118.1 118.2 888.0 884.6 9.2 10.1 228.1 226.5 668.5 666.3 998.5 996.3 449.1 448.6
778.9 777.0 559.2 558.2 0.3 0.4 0.1 0.6 778.1 775.5 668.8 666.9 339.3 338.0 448.9 447.5 10.8 11.6 557.7 556.0
228.3 228.1 998.0 995.8 888.8 887.6 119.6 120.2 0.3 0.3 0.6 0.3 557.6 556.8 339.3 339.1 888.0 887.2 998.5 999.0
778.9 779.0 10.2 11.1 117.6 118.3 228.9 229.2 668.4 669.1 449.2 448.9 0.2 0.5"""
CERTIFIED_SLOPE, CERTIFIED_INTERCEPT = 1.00211681802045, -0.262323073774029


def test_nist_norris_to_nine_digits():
    y, x = np.array(NORRIS.split(), dtype=float).reshape(-1, 2).T
    result = fit_law(np.log(x), y)
    assert -result.a == pytest.approx(CERTIFIED_SLOPE, rel=1e-10)
    assert result.b == pytest.approx(CERTIFIED_INTERCEPT, rel=1e-9)
    assert result.r_squared == pytest.approx(0.999993745883712, rel=1e-10)
    assert result.rmse == pytest.approx(0.884796396144373 * np.sqrt(34 / 36), rel=1e-9)


def test_equals_the_normal_equations_in_exact_arithmetic(rng):
    h, r = rng.uniform(0.05, 0.6, 20), rng.uniform(0, 1, 20)
    x, y = [Fraction(v) for v in np.exp(h)], [Fraction(v) for v in r]
    n, sx, sy = 20, sum(x), sum(y)
    slope = (n * sum(a * b for a, b in zip(x, y, strict=True)) - sx * sy) / (n * sum(a * a for a in x) - sx**2)
    result = fit_law(h, r)
    assert -result.a == pytest.approx(float(slope), rel=1e-12)
    assert result.b == pytest.approx(float((sy - slope * sx) / n), rel=1e-12)


def test_recovers_known_coefficients_and_predicts():
    h = np.linspace(0.5, 0.05, 30)
    result = fit_law(h, 0.7 - 0.3 * np.exp(h))
    assert (result.a, result.b, result.ceiling) == pytest.approx((0.3, 0.7, 0.4))
    assert result.predict(0.0) == pytest.approx(0.4) and result.r_squared == pytest.approx(1)
    np.testing.assert_allclose(result.predict(h), 0.7 - 0.3 * np.exp(h))


def test_ten_times_the_noise_makes_ten_times_the_interval(rng):
    h, noise = np.linspace(0.5, 0.05, 40), rng.normal(0, 0.001, 40)
    widths = []
    for scale in (1, 10):
        low, high = fit_law(h, 0.7 - 0.3 * np.exp(h) + scale * noise).interval()["ceiling"]
        widths.append(high - low)
    assert widths[1] / widths[0] == pytest.approx(10, rel=1e-6)


def test_percentage_points_scale_everything_by_a_hundred(rng):
    h, r = np.linspace(0.5, 0.05, 20), rng.uniform(0, 1, 20)
    one, hundred = fit_law(h, r), fit_law(h, 100 * r)
    for name in ("a", "b", "ceiling", "rmse"):
        assert getattr(hundred, name) == pytest.approx(100 * getattr(one, name))
    assert hundred.interval()["a"] == pytest.approx(tuple(100 * v for v in one.interval()["a"]))


# Coverage of the 95 % interval, measured here. With strong autocorrelation it is honest to say that it is too
# narrow: an AR(1) of 0.8 leaves a run of 60 points with about 7 independent ones.
@pytest.mark.parametrize(("correlation", "lowest"), [(0.0, 0.92), (0.5, 0.88), (0.8, 0.65)])
@pytest.mark.parametrize("points", [30, 60])
def test_interval_covers_the_truth(rng, correlation, lowest, points):
    covered, trials = 0, 400
    for trial in range(trials):
        h = np.linspace(0.55, 0.05, points) + rng.normal(0, 0.01, points)
        error = np.zeros(points)
        error[0] = rng.normal() / np.sqrt(1 - correlation**2)
        for t in range(1, points):
            error[t] = correlation * error[t - 1] + rng.normal()
        low, high = fit_law(h, 0.6 - 0.25 * np.exp(h) + 0.01 * error, seed=trial).interval(0.95)["ceiling"]
        covered += low < 0.35 < high
    assert lowest <= covered / trials <= 0.99


def test_blocks_widen_the_interval_of_autocorrelated_points(rng):
    h = np.linspace(0.5, 0.05, 120)
    error = np.convolve(rng.normal(0, 0.01, 139), np.ones(20) / 20, "valid")
    widths = [np.ptp(fit_law(h, 0.6 - 0.2 * np.exp(h) + error, block_length=n).interval()["a"]) for n in (1, 20)]
    assert widths[1] > 2 * widths[0]


def test_same_seed_same_interval_and_a_higher_level_is_wider(rng):
    h, r = np.linspace(0.5, 0.05, 20), rng.uniform(0, 1, 20)
    assert fit_law(h, r, seed=1).interval() == fit_law(h, r, seed=1).interval()
    assert np.ptp(fit_law(h, r).interval(0.99)["b"]) > np.ptp(fit_law(h, r).interval(0.5)["b"])


def test_summary_names_every_number_with_its_interval():
    h = np.linspace(0.5, 0.05, 12)
    text = fit_law(h, 0.7 - 0.3 * np.exp(h)).summary()
    assert "ceiling =   0.4000" in text and "95 % interval" in text and "12 points" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("entropy", "performance", "words"),
    [
        ([0.1] * 5, range(5), "does not vary"),
        ([0.1, 0.2], [1, 2], "at least 3"),
        ([0.1, 0.2], [1], "2 entropies but 1"),
        ([0.1, 0.2, 0.3, np.nan], range(4), "1 of 4 points are not finite"),
        ([0.1, 0.2, 0.3, 900.0], range(4), "overflows"),
    ],
)
def test_bad_input_is_one_line(entropy, performance, words):
    with pytest.raises(ErltoolError, match=words):
        fit_law(entropy, list(performance))
    good = fit_law([0.1, 0.2, 0.3, 0.4], [1, 2, 3, 5])
    with pytest.raises(ErltoolError, match="between 0 and 1"):
        good.interval(95)
    with pytest.raises(ErltoolError, match="block_length"):
        fit_law([0.1, 0.2, 0.3, 0.4], [1, 2, 3, 5], block_length=3)
