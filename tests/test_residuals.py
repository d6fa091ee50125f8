import numpy as np
import pytest
from simulated import neighbours, run_on_its_law

from erltool import fit_law
from erltool.law.fit import METHODS
from erltool.law.residuals import LARGEST, autoregression, diagnose, entropy_noise, gain_of


def designs(rng, n):
    """A line by least squares, and a curve by instruments."""
    t = np.linspace(-1, 1, n)
    line, x = np.column_stack([np.ones(n), t]), t + 0.1 * rng.standard_normal(n)
    return (line, line), (np.column_stack([np.ones(n), x, x**2]), np.column_stack([np.ones(n), t, t**2]))


@pytest.mark.parametrize("kind", [0, 1])
def test_variance_and_autocorrelation_are_those_of_the_matrices_written_out(rng, kind):
    n = 30
    design, z = designs(rng, n)[kind]
    residuals = (np.eye(n) - design @ np.linalg.inv(z.T @ design) @ z.T) @ neighbours(rng, n, 0.6)
    found = autoregression(residuals, design, z)
    assert 0 < found.correlation < LARGEST
    r = found.correlation ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    left = np.eye(n) - design @ np.linalg.inv(z.T @ design) @ z.T
    expected = left @ r @ left.T
    ratio = np.trace(expected, 1) / np.trace(expected)
    assert ratio == pytest.approx(np.sum(residuals[1:] * residuals[:-1]) / np.sum(residuals**2), abs=1e-3)
    inverse = np.linalg.inv(z.T @ design)
    variance = residuals @ residuals / np.trace(expected)
    np.testing.assert_allclose(found.covariance, variance * inverse @ z.T @ r @ z @ inverse.T, rtol=1e-8, atol=1e-12)
    if kind == 0:
        assert found.degrees == pytest.approx(np.trace(expected) ** 2 / np.trace(expected @ expected))


def test_independent_errors_have_the_covariance_and_the_degrees_of_least_squares():
    n = 40
    line = np.column_stack([np.ones(n), np.linspace(0, 1, n)])
    residuals = np.tile([1.0, -1.0, -1.0, 1.0], 10)  # neighbours' products sum to -1: below 0 counts as 0
    found = autoregression(residuals, line)
    assert found.correlation < 0.05 and found.degrees == pytest.approx(n - 2, rel=0.05)
    np.testing.assert_allclose(found.covariance, n / (n - 2) * np.linalg.inv(line.T @ line), rtol=0.1)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8])
def test_autocorrelation_is_found_where_the_residuals_show_too_little(rng, correlation):
    n = 30
    line = np.column_stack([np.ones(n), np.linspace(0, 1, n)])
    left = np.eye(n) - line @ np.linalg.pinv(line)
    errors = [left @ neighbours(rng, n, correlation) for _ in range(300)]
    seen = np.mean([np.sum(e[1:] * e[:-1]) / np.sum(e**2) for e in errors])
    found = np.mean([autoregression(e, line).correlation for e in errors])
    assert seen < correlation - 0.05 and abs(found - correlation) < 0.06


def test_the_noise_of_the_entropy_is_found_beside_any_smooth_course(rng):
    for shape in ("fast", "slow", "power", "line", "late"):
        run = run_on_its_law(rng, 200, shape=shape, entropy_noise=0.05)
        assert entropy_noise(run.entropy) == pytest.approx(0.05 * np.ptp(run.entropy), rel=0.35)
        still = run_on_its_law(rng, 200, shape=shape)
        assert entropy_noise(still.entropy) < 0.001
    assert entropy_noise(np.array([0.5, 0.1, 0.4, 0.2])) == 0


def test_the_gain_is_between_running_means():
    performance = np.r_[np.zeros(10), np.linspace(0, 10, 20), np.full(10, 10.0)]
    assert gain_of(performance) == 10 and gain_of(performance[::-1]) == 10
    performance[35] += 20  # one wild measurement counts for a fifth
    assert gain_of(performance) == 14
    assert gain_of(np.full(7, 0.3)) == pytest.approx(0, abs=1e-12)


def test_a_steady_fall_of_the_entropy_cannot_tell_time_from_entropy(rng):
    """Where H falls in a line, time is the better measure of noisy H; where it stays, points of one H come again."""
    for shape, low, high in (("line", 0.0, 0.05), ("fast", 0.15, 0.7)):
        run = run_on_its_law(rng, 120, shape=shape, entropy_noise=0.05)
        law = fit_law(run.entropy, run.performance, unit="as given")
        assert low <= diagnose(law.entropy, law.performance, law.residuals).revisited <= high


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8, 0.9])
def test_a_run_on_its_law_is_seldom_warned_of_however_noisy_its_entropy(rng, correlation):
    lengths, accused = (12, 20, 40, 60, 120, 240), []
    for n in lengths * 25:
        run = run_on_its_law(rng, n, correlation=correlation, entropy_noise=rng.choice([0, 0.02, 0.05]))
        found = fit_law(run.entropy, run.performance, unit="as given").warnings
        accused.append([any(words in w for w in found) for words in ("bend", "equal entropy", "falls after")])
    assert (np.mean(accused, 0) <= 0.06).all()


def held(runs, method=None):
    """Shares of 95 % intervals that hold a and the ceiling."""
    found = [(r, fit_law(r.entropy, r.performance, unit="as given").interval(method=method)) for r in runs]
    return np.mean([[i["a"][0] < r.a < i["a"][1], i["ceiling"][0] < r.ceiling < i["ceiling"][1]] for r, i in found], 0)


@pytest.mark.parametrize(
    ("correlation", "points", "least"),
    [(0.0, 8, 0.95), (0.0, 120, 0.93), (0.5, 20, 0.9), (0.8, 20, 0.82), (0.8, 120, 0.88), (0.9, 60, 0.82)],
)
def test_intervals_count_autocorrelation_that_residuals_hide(rng, correlation, points, least):
    runs = [run_on_its_law(rng, points, correlation=correlation, shape="slow") for _ in range(250)]
    assert (held(runs) >= least).all()
    if correlation >= 0.8:
        assert (held(runs) > held(runs, "bootstrap") + 0.02).all()


@pytest.mark.parametrize(("noise", "points"), [(0.1, 120), (0.1, 200), (0.2, 60)])
def test_intervals_count_that_noise_in_the_entropy_makes_a_too_small(rng, noise, points):
    runs = [run_on_its_law(rng, points, entropy_noise=noise) for _ in range(100)]
    assert (held(runs) >= 0.75).all() and (held(runs, "bootstrap") <= 0.65).all()
    law = fit_law(runs[0].entropy, runs[0].performance, unit="as given")
    assert law.flattened > 0 and law.interval()["a"][1] - law.a > law.a - law.interval()["a"][0]
    assert any("Entropy is noisy" in w and "nats" in w for w in law.warnings)


def test_what_performance_follows_is_no_noise_of_the_entropy(rng):
    h = np.linspace(1, 0.1, 100) + 0.1 * rng.standard_normal(100)
    law = fit_law(h, 0.7 - 0.2 * np.exp(h) + 0.002 * rng.standard_normal(100))
    assert law.diagnostics.entropy_noise == pytest.approx(0.1, rel=0.3) and law.flattened < 1e-3
    low, high = law.interval()["a"]
    assert high - law.a == pytest.approx(law.a - low) and not any("noisy" in w for w in law.warnings)


def test_where_intervals_are_rough_a_sentence_says_how_often_they_hold(rng):
    few = run_on_its_law(rng, 9)
    said = " ".join(fit_law(few.entropy, few.performance, unit="as given").warnings)
    assert "Only 9 points" in said and "A 95 % interval held the truth in" in said
    together = run_on_its_law(rng, 200, correlation=0.97, shape="slow")
    said = " ".join(fit_law(together.entropy, together.performance, unit="as given").warnings)
    assert "independent points (autocorrelation 0.9" in said and "a 95 % interval held the truth in" in said
    fine = run_on_its_law(rng, 100, shape="slow")
    assert "interval" not in " ".join(fit_law(fine.entropy, fine.performance, unit="as given").warnings)


def test_the_interval_is_the_widest_of_its_methods_and_each_can_be_asked_for(rng):
    run = run_on_its_law(rng, 40, correlation=0.8)
    law = fit_law(run.entropy, run.performance, unit="as given")
    widths = {m: np.ptp(law.interval(method=m)["b"]) for m in METHODS}
    assert np.ptp(law.interval()["b"]) >= max(widths["bootstrap"], widths["autoregression"]) - 1e-12
    assert widths["analytic"] < widths["autoregression"]
    low, high = law.band(0.0, method="autoregression")
    assert (low, high) == pytest.approx(law.interval(method="autoregression")["ceiling"])
