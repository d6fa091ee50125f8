import numpy as np
import pytest

from erltool import ErltoolError, compare_laws
from erltool.law.rivals import RIVALS, verdict

H = np.linspace(2.0, 0.05, 60)
STEPS = np.arange(1, 61) * 10.0
TRUTHS = {
    "exponential": 0.7 - 0.05 * np.exp(H),
    "linear": 0.6 - 0.2 * H,
    "log": 0.3 - 0.1 * np.log(H),
    "power": 0.6 - 0.2 * H**0.3,
    "free exponent": 0.4 + 0.3 * np.exp(-3 * H),
    "sigmoid": 0.1 + 0.5 / (1 + (80 / STEPS) ** 1.7),
}


@pytest.mark.parametrize("name", RIVALS)
def test_each_law_is_found_where_it_is_true(rng, name):
    table = compare_laws(H, TRUTHS[name] + 1e-4 * rng.normal(size=60), STEPS)
    assert set(table.index) == set(RIVALS) and table.loc[name, "tied"]
    # The sigmoid takes the first performance for R0, which here is 0.014 above it.
    assert table.loc[name, "rmse"] < (4e-3 if name == "sigmoid" else 2e-4)
    assert table.loc[name, "out_of_sample"] < (1e-2 if name == "sigmoid" else 1e-3)
    wrong = {"exponential": "linear", "linear": "log", "log": "linear", "power": "log", "free exponent": "linear"}
    assert table.loc[wrong.get(name, "log"), "out_of_sample"] > 3 * table.loc[name, "out_of_sample"]


def test_below_a_third_of_a_nat_exponential_and_linear_are_one(rng):
    h, ratios = np.linspace(0.3, 0.02, 60), []
    for _ in range(8):
        table = compare_laws(h, 0.7 - 0.2 * np.exp(h) + 0.01 * rng.normal(size=60))
        assert table.loc["linear", "rmse"] == pytest.approx(table.loc["exponential", "rmse"], rel=0.05)
        ratios.append(table.loc["linear", "out_of_sample"] / table.loc["exponential", "out_of_sample"])
        assert ("cannot be told apart" in verdict(table)) == (table["tied"].sum() > 1)
    assert np.median(ratios) == pytest.approx(1, abs=0.05)
    wide = compare_laws(H, TRUTHS["exponential"] + 0.005 * rng.normal(size=60))
    assert wide.loc["exponential", "tied"] and not wide.loc["linear", "tied"]


def test_performance_at_zero_is_the_ceiling_of_each_law():
    table = compare_laws(H, TRUTHS["exponential"], STEPS)
    assert table.loc["exponential", "at_zero"] == pytest.approx(0.65)
    assert np.isinf(table.loc["log", "at_zero"]) and np.isnan(table.loc["sigmoid", "at_zero"])


# A RuntimeWarning is an error in these tests.
@pytest.mark.parametrize("scale", [1e-6, 1, 100, 1e6])
@pytest.mark.parametrize("law", ["exponential", "linear", "log"])
def test_points_on_a_law_leave_only_rounding_and_no_warning(law, scale):
    r = TRUTHS[law] * scale
    table = compare_laws(H, r, STEPS)
    rounding = np.finfo(float).eps * np.abs(r).max()
    assert table.index[0] == law and table.loc[law, "tied"] and not table.loc["power", "tied"]
    assert 0.99 * rounding < table.loc[law, "out_of_sample"] < 100 * rounding
    assert np.isfinite(table[["rmse", "aicc", "out_of_sample", "last_block"]].to_numpy(float)).all()
    assert verdict(table).startswith(f"Out of sample the law `{law}`")


@pytest.mark.parametrize("r", [np.zeros(60), np.full(60, 50.0)])
def test_constant_performance_fits_every_law(r):
    assert compare_laws(H, r, STEPS)["tied"].all()


@pytest.mark.parametrize(
    "h",
    [np.r_[np.full(50, 0.5), np.full(10, 0.4)], np.geomspace(1, 1e-300, 60), np.linspace(900, 1, 60),
     np.linspace(60, 1, 60)],
)  # fmt: skip
def test_entropies_at_which_laws_overflow_or_stand_still_give_a_table(h):
    r = np.linspace(0.1, 0.7, 60)
    table = compare_laws(h, r, STEPS)
    assert not table["out_of_sample"].isna().any() and table["tied"].iloc[0] and verdict(table)
    assert not table.loc[np.isinf(table["out_of_sample"].astype(float)), "tied"].any()


def test_aicc_charges_for_parameters(rng):
    table = compare_laws(H, TRUTHS["exponential"] + 0.01 * rng.normal(size=60))
    assert table.loc["free exponent", "rmse"] <= table.loc["exponential", "rmse"]
    assert table.loc["free exponent", "aicc"] > table.loc["exponential", "aicc"] - 4
    # by hand: n log(rss/n) + 2 p + 2 p (p + 1) / (n - p - 1) with the variance among p = 3 parameters
    by_hand = 60 * np.log(table.loc["exponential", "rmse"] ** 2) + 6 + 24 / 56
    assert table.loc["exponential", "aicc"] == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([0.1] * 5, [1] * 5), "at least 10"),
        (([*range(20)], [1] * 20), "entropies must be above 0"),
        ((H, TRUTHS["log"], STEPS - 10), "steps must be above 0"),
        (([0.5] * 20, range(20)), "entropy does not vary"),
        ((H, np.linspace(0, 1e200, 60)), "squares overflow"),
    ],
)
def test_bad_input_is_one_line(arguments, words):
    with pytest.raises(ErltoolError, match=words):
        compare_laws(*arguments)
