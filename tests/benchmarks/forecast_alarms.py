"""How often forecasts and fits accuse runs that follow the law, how often those that do not, and what intervals hold.

    python tests/benchmarks/forecast_alarms.py [RUNS_A_CELL]        (200; 15 minutes)

Runs are simulated (tests/simulated.py): entropy that falls in five shapes, a and b of several kinds, noise in H of 0,
2 or 5 % of its range, and errors of performance that are a first-order autoregression. Prints, in this order: how
often a forecast says that a run has left its law (`left`) or that it missed, on runs that follow the law, by run length
and cut and by shape, at noise of 3 % of the gain; by the size of a true departure; the same of the warnings of a fit;
and how often intervals hold the truth, by points, autocorrelation and noise in H, beside what the sentences in
erltool/law/doubts.py and erltool/law/forecast.py say of it.
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from erltool import fit_law, forecast
from erltool.law import forecast as forecasting
from erltool.law.doubts import FEW, HELD_FEW, HELD_NOISY, HELD_TOGETHER

sys.path.insert(0, str(Path(__file__).parent.parent))
from simulated import SHAPES, Simulated, run_on_its_law  # noqa: E402

CORRELATIONS, LENGTHS, CUTS = (0.0, 0.5, 0.8, 0.9), (20, 40, 60, 120, 240), (0.15, 0.3, 0.5)
ENTROPY_NOISE = (0.0, 0.02, 0.05)
WARNINGS = {"bend": "bend away", "drift": "at equal entropy", "falls": "falls after its best"}


def said(run: Simulated, cut: float) -> dict[str, bool]:
    """What the forecast says, and whether its fitted points reach far enough for it to say anything."""
    f = forecast(run.entropy, run.performance, cut=cut, unit="as given")
    left = f.departure is not None
    return {"left": left, "missed": f.missed, "either": left or f.missed, "silent": f.reach < 0.5}


def warned(run: Simulated) -> dict[str, bool]:
    found = fit_law(run.entropy, run.performance, unit="as given").warnings
    return {name: any(words in w for w in found) for name, words in WARNINGS.items()}


def held(run: Simulated) -> dict[str, bool]:
    """Whether the 95 % intervals hold a and the ceiling; the bootstrap's alone, which was the default once, too."""
    law = fit_law(run.entropy, run.performance, unit="as given")
    found = {}
    for method in (None, "bootstrap"):
        intervals = law.interval(method=method)
        for name, truth in (("a", run.a), ("ceiling", run.ceiling)):
            low, high = intervals[name]
            found[f"{name}{', bootstrap' if method else ''}"] = low < truth < high
    return found


def shares(found: list[dict[str, bool]]) -> dict[str, float]:
    return pd.DataFrame(found).mean().to_dict()


def entropy_noise(rng: np.random.Generator) -> float:
    return rng.choice(ENTROPY_NOISE)


def false_alarms(rng: np.random.Generator, runs: int) -> pd.DataFrame:
    rows = {}
    for c, n, cut in itertools.product(CORRELATIONS, LENGTHS, CUTS):
        made = (run_on_its_law(rng, n, correlation=c, entropy_noise=entropy_noise(rng)) for _ in range(runs))
        rows[c, n, cut] = shares([said(run, cut) for run in made])
    return pd.DataFrame(rows).T.rename_axis(["autocorrelation", "points", "cut"])


def by_shape(rng: np.random.Generator, runs: int) -> pd.DataFrame:
    rows = {}
    for shape, c in itertools.product(SHAPES, CORRELATIONS):
        made = [run_on_its_law(rng, n, correlation=c, shape=shape, entropy_noise=entropy_noise(rng))
                for n in LENGTHS for _ in range(runs // 2)]  # fmt: skip
        rows[shape, c] = shares([said(run, rng.choice(CUTS)) | warned(run) for run in made])
    return pd.DataFrame(rows).T.rename_axis(["entropy", "autocorrelation"])


def power(rng: np.random.Generator, runs: int) -> pd.DataFrame:
    """Of departures. `either, where it can` is of the runs whose fitted points reach far enough."""
    rows = {}
    for size, noise, c in itertools.product(
        (-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.5), (0.01, 0.03, 0.05), (0.0, 0.8)
    ):
        found = []
        for n, _ in itertools.product((40, 120), range(runs)):
            cut = rng.choice(CUTS)
            run = run_on_its_law(rng, n, noise=noise, correlation=c, leaves=size, since=cut)
            found.append(said(run, cut) | warned(run))
        table = pd.DataFrame(found)
        rows[size, noise, c] = {
            **table.mean().to_dict(),
            "either, where it can": table[~table["silent"]]["either"].mean(),
        }
    return pd.DataFrame(rows).T.rename_axis(["departure", "noise", "autocorrelation"])


def warnings_table(rng: np.random.Generator, runs: int) -> pd.DataFrame:
    rows = {}
    for noisy, c, n in itertools.product(ENTROPY_NOISE, CORRELATIONS, (8, 12, *LENGTHS)):
        made = (run_on_its_law(rng, n, correlation=c, entropy_noise=noisy) for _ in range(runs))
        rows[noisy, c, n] = shares([warned(run) for run in made])
    return pd.DataFrame(rows).T.rename_axis(["noise in H", "autocorrelation", "points"])


def coverage(rng: np.random.Generator, runs: int) -> pd.DataFrame:
    rows = {}
    noisy, together, points = (0.0, 0.02, 0.05, 0.1, 0.2), (*CORRELATIONS, 0.95), (6, 8, 11, 12, 20, 30, 60, 120, 240)
    for entropy_noise, c, n in itertools.product(noisy, together, points):
        made = [run_on_its_law(rng, n, correlation=c, noise=rng.choice((0.01, 0.03, 0.05)), entropy_noise=entropy_noise)
                for _ in range(runs)]  # fmt: skip
        rows[entropy_noise, c, n] = shares([held(run) for run in made])
    return pd.DataFrame(rows).T.rename_axis(["noise in H", "autocorrelation", "points"])


def spoken_of(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """What of `coverage` the sentences of erltool/law/doubts.py speak of, by what they say."""
    noisy, together, points = (table.index.get_level_values(i) for i in range(3))
    parts = {
        f"fewer than {FEW} points, said {HELD_FEW}": (points < FEW) & (noisy == 0),
        f"autocorrelation 0.8 to 0.95, said {HELD_TOGETHER}": (points >= FEW) & (together >= 0.8) & (noisy == 0),
        f"noise in H of 5 to 20 %, said {HELD_NOISY}": (points >= FEW) & (noisy >= 0.05) & (together <= 0.8),
    }
    return {sentence: table.loc[part, ["a", "ceiling"]].to_numpy() for sentence, part in parts.items()}


def forecasts_hold(rng: np.random.Generator, runs: int) -> pd.DataFrame:
    """Later points inside the 90 % interval of a forecast, mean over runs, by points fitted."""
    rows = {}
    for c, (n, cut) in itertools.product(
        (*CORRELATIONS, 0.95), ((40, 0.15), (20, 0.5), (80, 0.3), (240, 0.3), (240, 0.5))
    ):
        made = (run_on_its_law(rng, n, correlation=c, entropy_noise=entropy_noise(rng)) for _ in range(runs))
        found = [forecast(r.entropy, r.performance, cut=cut, unit="as given").covered for r in made]
        rows[c, round(cut * n), n] = {"held": np.mean(found)}
    return pd.DataFrame(rows).T.rename_axis(["autocorrelation", "fitted", "of"])


def main(runs: int) -> None:
    pd.set_option("display.width", 250, "display.max_columns", 40, "display.max_rows", 500)
    rng = np.random.default_rng(0)
    table = false_alarms(rng, runs)
    print(f"false alarms of a forecast, {runs} runs a cell, noise 3 % of the gain\n{table.round(3).to_string()}")
    print(f"largest: {table[['left', 'missed', 'either']].max().round(3).to_dict()}")
    print(table.groupby("autocorrelation").mean().round(3).to_string())
    print(f"\nfalse alarms by shape of the entropy\n{by_shape(rng, runs).round(3).to_string()}")
    print(f"\nby the size of a true departure, share of the gain\n{power(rng, runs).round(3).to_string()}")
    table = warnings_table(rng, runs)
    print(f"\nfalse warnings of a fit\n{table.unstack().round(3).to_string()}\nlargest: {table.max().to_dict()}")
    table = coverage(rng, runs)
    print(f"\n95 % intervals that hold the truth\n{table.unstack().round(2).to_string()}")
    for sentence, values in spoken_of(table).items():
        print(f"{sentence}: measured {values.min():.0%} to {values.max():.0%}")
    print(f"said: {forecasting.HELD_FEW} for few points, {forecasting.HELD_TOGETHER} for neighbours that go together")
    print(
        f"\nlater points inside a forecast's 90 % interval\n{forecasts_hold(rng, runs).unstack(0).round(2).to_string()}"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
