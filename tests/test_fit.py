import json
from fractions import Fraction
from html.parser import HTMLParser

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
    errors = np.sqrt(np.diag(result.line_covariance))
    assert errors == pytest.approx((0.429796848199937e-03, 0.232818234301152), rel=1e-9)


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


# Coverage of the 95 % interval, measured here; an AR(1) of 0.8 leaves a run of 60 points with about 7 independent ones.
@pytest.mark.parametrize(("correlation", "lowest"), [(0.0, 0.92), (0.5, 0.9), (0.8, 0.85)])
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
        ([0.1, 0.2, 0.3, 0.4], [0, 1, 2, 1e200], "squares overflow; rescale it"),
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


def line_with_noise(rng, n=60, correlation=0.0, scale=0.01, low=0.05, high=1.0):
    h, error = np.linspace(high, low, n), np.zeros(n)
    for t in range(n):
        error[t] = correlation * error[t - 1] + rng.normal()
    return h, 0.7 - 0.2 * np.exp(h) + scale * error


def test_a_weight_of_two_is_the_point_twice(rng):
    h, r = line_with_noise(rng, 12)
    w = np.ones(12)
    w[3] = 2
    weighted, twice = fit_law(h, r, weights=w), fit_law([*h, h[3]], [*r, r[3]])
    assert (weighted.a, weighted.b) == pytest.approx((twice.a, twice.b))
    assert weighted.r_squared == pytest.approx(twice.r_squared) and weighted.rmse == pytest.approx(twice.rmse)
    assert weighted.method == "weighted least squares"


def test_weights_of_inverse_variance_narrow_the_interval(rng):
    h, sigma = np.linspace(1, 0.05, 80), np.where(np.arange(80) < 40, 0.1, 0.001)
    r = 0.7 - 0.2 * np.exp(h) + sigma * rng.normal(size=80)
    plain, weighted = fit_law(h, r), fit_law(h, r, weights=sigma**-2)
    for method in ("bootstrap", "analytic"):
        low, high = weighted.interval(method=method)["ceiling"]
        assert low < 0.5 < high and high - low < np.ptp(plain.interval(method=method)["ceiling"]) / 3


def test_bootstrap_of_independent_points_agrees_with_theory(rng):
    h, r = line_with_noise(rng, 400)
    result = fit_law(h, r, block_length=1)
    for name in ("a", "b", "ceiling"):
        widths = [np.ptp(result.interval(method=m)[name]) for m in ("bootstrap", "analytic")]
        assert widths[0] == pytest.approx(widths[1], rel=0.1)


def test_the_bootstrap_is_that_of_refitting_each_resample(rng):
    h, r = line_with_noise(rng, 23, 0.5)
    result = fit_law(h, r, block_length=4)
    starts = np.random.default_rng(0).integers(0, 20, (2000, 6))
    noise = result.residuals * np.sqrt(23 / 21)
    refits = [fit_law(h, noise[(s[:, None] + np.arange(4)).ravel()[:23]], unit="as given") for s in starts[:200]]
    ours = result._covariance("bootstrap")
    theirs = np.cov([-f.a for f in refits], [f.b for f in refits])
    np.testing.assert_allclose(ours, theirs, rtol=0.3)


def test_errors_in_entropy_flatten_least_squares_and_not_the_orthogonal_fit(rng):
    h = np.linspace(1, 0.05, 300)
    r = 0.7 - 0.2 * np.exp(h) + 0.005 * rng.normal(size=300)
    noisy = h + 0.15 * rng.normal(size=300)
    plain = fit_law(noisy, r)
    both = fit_law(noisy, r, entropy_error=0.15, performance_error=0.005)
    assert plain.a < 0.19 and both.interval()["a"][0] < 0.2 < both.interval()["a"][1]
    assert both.method == "errors in both"
    assert "errors in both; analytic intervals\n" in both.summary() and "bootstrap in blocks of 17\n" in plain.summary()
    exact = fit_law(noisy, r, entropy_error=1e-9, performance_error=0.005)
    assert (exact.a, exact.b) == pytest.approx((plain.a, plain.b), rel=1e-5)
    with pytest.raises(ErltoolError, match="use analytic"):
        both.interval(method="bootstrap")


def test_band_at_entropy_zero_is_the_ceilings_and_a_new_point_adds_the_scatter(rng):
    result = fit_law(*line_with_noise(rng))
    assert result.band(0.0) == pytest.approx(result.interval()["ceiling"])
    narrow, wide = (np.ptp(result.band(0.5, method="analytic", new_point=new)) for new in (False, True))
    scatter = np.sqrt(60 / 58) * result.rmse
    assert wide > 3 * narrow and wide > 2 * 1.96 * scatter
    low, high = result.band(np.array([0.1, 0.2]))
    assert low.shape == high.shape == (2,) and (low < high).all()


def test_units_are_stated_or_read_off_and_never_mixed():
    h = [0.5, 0.4, 0.3, 0.2]
    assert fit_law(h, [0.1, 0.2, 0.3, 0.4]).unit == "fraction"
    assert fit_law(h, [10, 20, 30, 40]).unit == "percentage points"
    assert fit_law(h, [-1, 20, 30, 400]).unit == "as given"
    assert "fraction (read off the values)" in fit_law(h, [0.1, 0.2, 0.3, 0.4]).summary()
    stated = fit_law(h, [0.1, 0.2, 0.3, 0.4], unit="percentage points", entropy_average="token mean")
    assert "R in percentage points; entropy averaged as: token mean" in stated.summary()
    for values in ([0.30, 0.31, 31.5, 33], [30, 31, 0.32, 0.33], [0.2, 20, 0.21, 22]):
        with pytest.raises(ErltoolError, match="fractions and percentage points are mixed"):
            fit_law(h, values)
    # The first percentages of a weak model may look like fractions.
    assert fit_law(h, [0.5, 3, 12, 34]).unit == "percentage points"
    with pytest.raises(ErltoolError, match="is no fraction"):
        fit_law(h, [0.31, 0.32, 33, 34], unit="fraction")
    with pytest.raises(ErltoolError, match="unit 'percent' is not known"):
        fit_law(h, [1, 2, 3, 4], unit="percent")


def test_diagnostics_find_autocorrelation_bending_and_drift(rng):
    h, r = line_with_noise(rng, 400, correlation=0.7)
    found = fit_law(h, r).diagnostics
    assert found.autocorrelation == pytest.approx(0.7, abs=0.1) and found.independent_points < 120
    h, r = line_with_noise(rng)
    assert fit_law(h, r - 0.3 * (h - 0.5) ** 2).diagnostics.curvature_p < 1e-3
    h = np.concatenate([np.linspace(1, 0.3, 20), 0.3 + 0.05 * rng.random(40)])
    drifting = fit_law(h, 0.7 - 0.2 * np.exp(h) + 0.2 * np.linspace(0, 1, 60) + 0.005 * rng.normal(size=60))
    assert drifting.diagnostics.drift == pytest.approx(0.2, abs=0.02) and drifting.diagnostics.drift_p < 1e-6
    assert any("at equal entropy" in w for w in drifting.warnings)


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_a_run_on_the_law_is_seldom_accused(rng, correlation):
    fits = [fit_law(*line_with_noise(rng, 60, correlation)) for _ in range(200)]
    accused = [w for f in fits for w in f.warnings if "bend" in w or "equal entropy" in w or "falls after" in w]
    assert len(accused) <= 20


def test_runs_that_break_the_law_are_told_so_in_words(rng):
    n = np.arange(40)
    cases = {
        "explosion": (0.5 + 2.5 * (n > 20), 0.1 + 0.2 * (n < 20)),
        "rises over the run": (np.linspace(0.5, 0.7, 40), np.linspace(0.1, 0.2, 40)),
        "does not rise as entropy falls": (np.linspace(1, 0.1, 40), np.linspace(0.3, 0.1, 40)),
        "below 0.3 nats": (np.linspace(0.29, 0.1, 40), np.linspace(0.1, 0.3, 40)),
        "falls after its best": (np.linspace(1, 0.1, 40), np.concatenate([n[:20] / 40, 0.5 - n[:20] / 40])),
        "bend away": (np.linspace(1, 0.1, 40), 0.5 - np.linspace(1, 0.1, 40) ** 6 + 0.05 * rng.normal(size=40)),
        "independent points": ([0.5, 0.4, 0.3, 0.1], [0.1, 0.2, 0.2, 0.4]),
        "too little to forecast from": (np.linspace(1, 0.1, 40), rng.random(40)),
    }
    for words, (h, r) in cases.items():
        noise = 1e-4 * rng.normal(size=len(h))
        assert any(words in w for w in fit_law(h, np.asarray(r) + noise).warnings), words


def test_the_fit_as_json_latex_and_html_says_the_same_numbers(rng):
    result = fit_law(*line_with_noise(rng))
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert document["a"] == result.a and document["interval"]["b"] == list(result.interval()["b"])
    assert document["unit"] == "fraction" and document["points"] == 60
    flat = fit_law([0.1, 0.2, 0.3], [0.5, 0.5, 0.5]).to_dict()
    assert flat["r_squared"] is None and flat["diagnostics"]["curvature_p"] is None
    assert f"$a$ & {result.a:.4f} &" in result.latex() and result.latex().count("\\hline") == 4
    texts = []
    parser = HTMLParser()
    parser.handle_data = texts.append
    parser.feed(result._repr_html_())
    assert f"{result.a:.4f}" in texts and "ceiling" in texts


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": [1, 2, 0, 1]}, "weights must be above 0"),
        ({"weights": [1, 2]}, "weights must be above 0 and finite, one or 4"),
        ({"entropy_error": 0.1}, "give the other one too"),
        ({"entropy_error": 0.1, "performance_error": 0.1, "weights": [1, 1, 1, 1]}, "not all three"),
        ({"entropy_error": -1, "performance_error": 1}, "entropy_error must be above 0"),
    ],
)
def test_bad_options_are_one_line(options, words):
    with pytest.raises(ErltoolError, match=words):
        fit_law([0.1, 0.2, 0.3, 0.4], [1, 2, 3, 5], **options)
