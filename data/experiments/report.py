"""Prints the tables of data/RESULTS.md from data/runs/ and data/paper/.

python data/experiments/report.py                       # prints the tables
python data/experiments/report.py --figures FOLDER      # also draws the figures of discovery and trap
"""

import argparse
import functools
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import erltool
from erltool.law.fit import LawFit
from erltool.law.scaling import held_out
from erltool.plots import COLOURS, LINES, new_axes, plot_seeds
from erltool.resources import shipped
from erltool.runs import compare
from erltool.runs.folder import Run
from erltool.runs.microscope import BASELINE, read_microscope
from erltool.tasks.chain import SYMBOLS
from erltool.training.steering import score_of
from erltool.widgets.points import points_of


@functools.cache
def record(grid: str) -> tuple[dict[str, Run], pd.DataFrame]:
    """The runs of a recorded grid, and a table of their end values with a column for each field of the control."""
    runs = erltool.read_runs(shipped(f"data/runs/{grid}"))
    fields = pd.DataFrame([r.config["control"] for r in runs.values()], index=list(runs))
    return runs, compare.end_values(runs).join(fields)


REGIME = {
    "selected": ("tokens selected", ".1%"),
    "entropy_end": ("entropy at the end", ".4f"),
    "zero_spread_end": ("groups with equal rewards", ".0%"),
    "all_wrong_end": ("groups all wrong", ".1%"),
    "average@0": ("greedy", ".3f"),
    "average@0.6": ("temperature 0.6", ".3f"),
    "average": ("temperature 1", ".3f"),
    "pass@32": ("pass@32", ".3f"),
}
ACCURACIES = {name: REGIME[name][0] for name in ("average@0", "average@0.6", "average")}


def arms(grid: str) -> pd.DataFrame:
    """End values of a grid's runs, with the arm that each run's name ends with."""
    runs, table = record(grid)
    return table.assign(arm=[compare.arm_of(name) for name in runs])


def regime(table: pd.DataFrame) -> list[str]:
    """A regime of the chain task: mean end values of each arm over its seeds."""
    rows = []
    for arm, ends in table.groupby("arm", sort=False):
        mean = ends[list(REGIME)].astype(float).mean()
        rows.append([f"`{arm}`", str(len(ends)), *(f"{mean[k]:{form}}" for k, (_, form) in REGIME.items())])
    return markdown(["arm", "seeds", *(label for label, _ in REGIME.values())], rows)


def markdown(heads: list[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    return [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *(f"| {' | '.join(row)} |" for row in rows)]


def differences(
    table: pd.DataFrame, pairs: Iterable[tuple[str, str]], values: dict[str, str] = ACCURACIES
) -> list[str]:
    """Accuracy of an arm less that of its rival, for each pair, paired by seed, with 95 % intervals; `values` has the
    columns' headings by their names."""
    rows = []
    for arm, rival in pairs:
        cells = [difference(compare.differences(table, value, rival, by="arm")[arm]) for value in values]
        rows.append([f"`{arm}` − `{rival}`", *cells])
    return markdown(["difference", *values.values()], rows)


def regime_differences(grid: str) -> list[str]:
    """The arms of a regime with a covariance control less the others."""
    names = list(arms(grid)["arm"].unique())
    controlled = [arm for arm in names if "-cov" in arm]
    return differences(arms(grid), itertools.product(controlled, [name for name in names if name not in controlled]))


def criterion() -> pd.DataFrame:
    """End values of discovery under a criterion at two doses, with the arms of `discovery` that stand beside them."""
    beside = arms("discovery")
    return pd.concat([beside[beside["arm"].isin(("none", "one-update", "random-clip", "clip-cov"))], arms("criterion")])


def criterion_differences() -> list[str]:
    """The criteria at each dose less chance at that dose and less each other; then covariance less fewer updates."""
    table = criterion()
    pairs = []
    for dose in ("0.1", "0.2"):
        covariance, push, chance = (f"{name}-{dose}" for name in ("covariance", "push", "random"))
        pairs += [(covariance, chance), (push, chance), (push, covariance)]
        pairs += [(covariance, rival) for rival in ("none", "one-update", "two-updates", "clip-cov")]
    return differences(table, [*pairs, ("two-updates", "none")])


SMOLLM2 = {"average@0": "greedy", "average": "temperature 1", "pass@4": "pass@4"}
SMOLLM2_PAIRS = [
    *((arm, rival) for arm in ("clip-cov", "kl-cov-k2", "push-0.1") for rival in ("none", "one-update")),
    ("clip-cov", "random-clip"),
    ("kl-cov-k2", "random-kl"),
    ("push-0.1", "random-0.1"),
    *(("kl-cov-fp32", rival) for rival in ("none-fp32", "one-update-fp32", "random-kl-fp32", "kl-cov-k2")),
    ("none-fp32", "none"),
]
SPENT = 0.2  # nats; SmolLM2 starts at 0.3 to 0.7
POINT = 3  # iterations of SmolLM2 in a point of the law: 40 points, and a forecast from the first six


def smollm2() -> list[str]:
    """The arms of SmolLM2 on 4 bits: mean end values over seeds; how well the law fits rewards and forecasts them."""
    rows = []
    for arm, ends in arms("smollm2").groupby("arm", sort=False):
        mean = ends[["entropy_end", *SMOLLM2]].astype(float).mean()
        each = [points_of(run, "reward") for run in runs_of("smollm2", arm)]
        after = np.median([spent(p.entropy) for p in each])
        points = [p.averaged(POINT) for p in each]
        laws = [erltool.fit_law(p.entropy, p.performance).r_squared for p in points]
        ahead = [erltool.forecast(p.entropy, p.performance) for p in points]
        rmse, stayed = (100 * np.median([getattr(f, name) for f in ahead]) for name in ("rmse", "rmse_if_it_stayed"))
        values = [f"{mean['entropy_end']:.3f}", *(f"{mean[value]:.3f}" for value in SMOLLM2)]
        when = f"{after:.0f}" if np.isfinite(after) else "never"
        rows.append([f"`{arm}`", str(len(ends)), when, *values, f"{np.median(laws):.2f}", f"{rmse:.0f} ({stayed:.0f})"])
    entropy = [f"below {SPENT} nats after", "entropy at the end"]
    law = ["R² of the law", "RMSE of its forecast, points"]
    return markdown(["arm", "seeds", *entropy, *SMOLLM2.values(), *law], rows)


def spent(entropy: np.ndarray) -> float:
    """Iterations until the mean of the last five is below SPENT; infinite where it never is."""
    below = np.flatnonzero(np.convolve(entropy, np.ones(5) / 5, "valid") < SPENT)
    return below[0] + 5 if len(below) else np.inf


def smollm2_differences() -> list[str]:
    """The controls less no control, less fewer updates, and less chance at their dose."""
    return differences(arms("smollm2"), SMOLLM2_PAIRS, SMOLLM2)


def minute_arms() -> pd.DataFrame:
    """The arms of the steered run's minute, with the greedy accuracy of each last policy."""
    runs, table = record("steering")[0], arms("steering")
    return table.assign(greedy=[score_of(run.metrics, run.config).greedy_accuracy for run in runs.values()])


def minute_differences() -> dict[str, compare.Difference]:
    """How much more greedy accuracy the best schedule has than each rival."""
    table = minute_arms()
    rivals = [arm for arm in table["arm"].unique() if arm != "best"]
    return {rival: compare.differences(table, "greedy", rival, by="arm")["best"] for rival in rivals}


def minute() -> list[str]:
    """Means of the minute's arms over seeds, and how far `best` is above each."""
    less, rows = minute_differences(), []
    for arm, ends in minute_arms().groupby("arm", sort=False):
        mean = ends[["entropy_end", "greedy", "average"]].astype(float).mean()
        values = [f"{mean['entropy_end']:.3f}", f"{mean['greedy']:.3f}", f"{mean['average']:.3f}"]
        rows.append([f"`{arm}`", str(len(ends)), *values, difference(less[arm]) if arm in less else ""])
    return markdown(["arm", "seeds", "entropy at the end", "greedy", "temperature 1", "`best` − arm, greedy"], rows)


def takeover(run: Run) -> float:
    """The iteration from which more than half of a run's responses work step by step to its end; NaN for none."""
    thinks = run.metrics.groupby("iteration")["thinking_fraction"].mean() > 0.5
    below = thinks.index[~thinks]
    last = below.max() if len(below) else -1
    return float(last + 1) if last < thinks.index.max() else np.nan


def takeovers(grid: str) -> pd.DataFrame:
    """End values of the runs of a grid of the trap, with arm, learning rate, iterations and `takeover`."""
    runs = record(grid)[0]
    table = arms(grid).assign(
        rate=[r.config["learning_rate"] for r in runs.values()],
        iterations=[r.config["steps"] // r.config["updates_per_iteration"] for r in runs.values()],
        takeover=[takeover(r) for r in runs.values()],
    )
    depth = 2 if grid == "trap-rates" else 0  # "rate1e-4-one-update"
    return table.assign(arm=[name.split("-", depth)[depth] for name in table["arm"]] if depth else table["arm"])


def takeover_cell(ends: pd.DataFrame) -> str:
    """The number of runs that a takeover ends, its median iteration, and the mean greedy accuracy and entropy."""
    iterations = ends["takeover"].dropna()
    when = f", at {iterations.median():.0f}" if len(iterations) else ""
    means = f"{ends['average@0'].mean():.2f}, {ends['entropy_end'].mean():.2f}"
    return f"{len(iterations)} of {len(ends)}{when}; {means}"


def takeover_lines(table: pd.DataFrame, by: str, heads: dict) -> list[str]:
    """A row for each arm and a column for each value of `by`, headed by `heads`."""
    groups = table.groupby("arm", sort=False)
    rows = [[f"`{arm}`", *(takeover_cell(ends[ends[by] == value]) for value in heads)] for arm, ends in groups]
    return markdown(["arm", *heads.values()], rows)


def draw_trap() -> Figure:
    """The trap. Left: fraction of runs with a takeover in 150 iterations, by learning rate. Right: fraction of
    responses that work step by step at 1e-4, each seed thin and their mean thick."""
    early, runs = takeovers("trap-rates"), record("trap")[0]
    late = takeovers("trap")
    left, right = new_axes(2, width=4.8)
    for index, (arm, ends) in enumerate(early.groupby("arm", sort=False)):
        style = {"color": COLOURS[index], "linestyle": LINES[index], "label": arm}
        fractions = ends["takeover"].notna().groupby(ends["rate"]).mean()
        left.plot(fractions.index, fractions, marker="o", **style)
        chosen = [runs[n] for n in late.index[late["arm"] == arm]]
        plot_seeds(chosen, "thinking_fraction", ax=right, label=arm, index=index, by="iteration")
    left.set(xscale="log", xlabel="learning rate", ylabel="fraction of runs with a takeover", ylim=(-0.04, 1.04))
    left.set_title("150 iterations, 6 seeds")
    right.set(ylabel="fraction working step by step", title="learning rate 1e-4, 10 other seeds")
    left.legend(fontsize=8)
    return left.figure


CURVES = {
    "policy_entropy": "entropy (nats/token)",
    "right_product_fraction": "fraction of products that are right",
    "eval_accuracy_tempered": "held-out accuracy, greedy",
    "eval_accuracy": "held-out accuracy, sampled",
}


DRAWN = ("none", "one-update", "random-clip", "clip-cov", "annealed-clip-cov")  # as many as have a colour


def draw_regime(grid: str) -> Figure:
    """Entropy, right products and accuracies of a regime's arms, by iteration: each seed thin, their mean thick."""
    runs, table = record(grid)[0], arms(grid)
    table = table[table["arm"].isin(DRAWN)]
    axes = new_axes(len(CURVES), width=3.6)
    for index, (arm, ends) in enumerate(table.groupby("arm", sort=False)):
        chosen = [runs[n] for n in ends.index]
        for ax, (metric, label) in zip(axes, CURVES.items(), strict=True):
            # Iterations have different prompts and are smoothed; evaluations have the same prompts.
            smooth = 1 if metric.startswith("eval") else 15
            plot_seeds(chosen, metric, ax=ax, label=arm, index=index, smooth=smooth, by="iteration")
            ax.set_ylabel(label)
    axes[0].set_yscale("log")
    axes[0].legend(fontsize=8)
    return axes[0].figure


def difference(d, digits: int = 3) -> str:
    return "" if d is None else f"{d.mean:+.{digits}f} ({d.low:+.{digits}f} to {d.high:+.{digits}f})"


def figures() -> list[str]:
    """A row for each of the paper's figures: lesson, our result, the paper's, and our setting."""
    alone = runs_of("sharpening", "none")
    early = pd.concat([compare.share_by_step(r, [1 / 12], smooth=1) for r in alone]).mean()
    tracks = pd.concat([compare.covariance_and_fall(r, window=10) for r in alone]).groupby("step").mean()
    r8 = tracks.corr()["fall"]
    seeds = f"{len(alone)} seeds"
    theirs = pd.read_csv(shipped("data/paper/fig11_7B_entropy.csv"))
    ordered = theirs.sort_values("gradient_step").groupby("series")["entropy_nats"]
    last = ordered.agg(lambda h: h.tail(20).mean())
    paper = ", ".join(f"{n} {last[n] / last['GRPO']:.0f}×" for n in ("Clip-higher", "Clip-Cov", "KL-Cov"))
    table = arms("discovery")
    paid = {v: compare.differences(table, v, "none", by="arm")["clip-cov"].mean for v in ("average@0", "pass@8")}
    rows = [
        ("1 left, 2", "04", f"after 1/12 of the steps: {early['entropy_spent']:.0%} of the entropy spent, "
         f"{early['accuracy_gained']:.0%} of the gain made", "73 %, 76 %", f"sharpening, {seeds}, 300 iterations"),
        ("1 right", "06", drawn_curves(), "the drawn curves", "the paper's dots; some hide others"),
        ("1 right", "06", law("sharpening"), "the curves", f"sharpening, {seeds}; sampled at temperature 1"),
        ("1 right", "06", law("discovery"), "the curves", "discovery, 10 seeds: the law bends"),
        ("forecast", "06", forecasts("sharpening"), "RMSE 0.9 points (math) from 15 %", f"sharpening, {seeds}"),
        ("forecast", "06", forecasts("discovery"), "RMSE 0.9 points (math) from 15 %", "discovery, 10 seeds"),
        ("trend over sizes", "06", larger_model(), "log-linear", "the paper's dots, sizes without embeddings"),
        ("6", "06", algorithms(), "a and b do not depend on the algorithm", "sharpening, 5 seeds, 80 iterations"),
        ("8 left", "04", f"correlation of covariance and fall: {r8['token_covariance']:.2f} (Eq 10), "
         f"{r8['group_covariance']:.2f} (Eq 8)", "the curves coincide",
         f"mean of {seeds}, smoothed over 10 iterations"),
        ("9", "04", by_value("bonus", "coef"), "little effect, then an explosion", "3 seeds, 80 iterations"),
        ("10", "04", by_value("reference", "coef"), "entropy held, accuracy lost", "3 seeds, 80 iterations, LoRA"),
        ("11", "05", f"Clip-Cov's entropy at the end: {held('discovery')}", f"7B: {paper}", "discovery, 10 seeds"),
        ("11 middle", "04", length(alone), "length grows with accuracy", f"sharpening, {seeds}"),
        ("12", "05", sweep(), "entropy rises with fraction and coefficient", "5 seeds, last 20 of 80 iterations"),
        ("Table 2", "05", f"Clip-Cov {100 * paid['average@0']:+.1f} greedily, pass@8 {100 * paid['pass@8']:+.1f} "
         "points", "Clip-Cov +1.8, KL-Cov +2.0 points (7B, average)", "discovery, 1,000 held-out problems, 10 seeds"),
    ]  # fmt: skip
    return markdown(["figure", "lesson", "our result", "the paper's result", "our setting"], rows)


def runs_of(grid: str, arm: str) -> list[Run]:
    """The runs of an arm, one for each seed."""
    runs, table = record(grid)[0], arms(grid)
    return [runs[name] for name in table.index[table["arm"] == arm]]


def held_out_points(run: Run) -> np.ndarray:
    """(H, R): mean entropy since the evaluation before, and held-out accuracy at the temperature of training."""
    points = points_of(run, "eval_accuracy")
    return np.stack([points.entropy, points.performance])


def law(grid: str) -> str:
    """How well the law fits the runs without control."""
    points = [held_out_points(r) for r in runs_of(grid, "none")]
    single = pd.Series([erltool.fit_law(*p).r_squared for p in points])
    pooled = erltool.fit_law(*np.concatenate(points, axis=1)).r_squared
    return f"R² of the law: median run {single.median():.2f}, lowest {single.min():.2f}, all runs pooled {pooled:.2f}"


def held(grid: str) -> str:
    """Clip-Cov's entropy at the end over that without control: geometric mean of the ratios, paired by seed."""
    table = arms(grid)
    table["entropy"] = np.log(table["entropy_end"].astype(float))
    d = compare.differences(table, "entropy", "none", by="arm")["clip-cov"]
    ratio, low, high = np.exp([d.mean, d.low, d.high])
    return f"{ratio:.1f}× no control's ({low:.1f} to {high:.1f})"


def length(runs: list[Run]) -> str:
    """How response length changes, and its correlation with accuracy."""
    correlations = [r.evaluated()[["response_length", "eval_accuracy"]].corr().iloc[0, 1] for r in runs]
    ends = pd.concat([r.evaluated()["response_length"].iloc[[0, -1]].reset_index(drop=True) for r in runs], axis=1)
    first, last = ends.mean(axis=1)
    return f"from {first:.1f} to {last:.1f} tokens; correlation with accuracy: median run {np.median(correlations):.2f}"


def drawn_curves() -> str:
    """How far least squares on the paper's dots differs from the curves that its authors drew."""
    drawn = pd.read_csv(shipped("data/paper/fig1_right_fit_table.csv")).set_index("source").loc["drawn_curve"]
    laws = paper_laws()
    slope = max(abs(laws[r.series].a / r.a_percent - 1) for r in drawn.itertuples())
    ceiling = max(abs(laws[r.series].ceiling - r.ceiling_b_minus_a_percent) for r in drawn.itertuples())
    return f"fits to the dots: a within {slope:.1%} of the drawn curves, ceilings within {ceiling:.2f} points, 5 sizes"


def paper_laws() -> dict:
    points = pd.read_csv(shipped("data/paper/fig1_right_points.csv"))
    columns = ["entropy_nats", "validation_accuracy_percent"]
    return {n: erltool.fit_law(*g[columns].to_numpy().T, unit="percentage points") for n, g in points.groupby("series")}


def larger_model() -> str:
    """The ceiling of the 32B model, as the smaller sizes forecast it and as fitted."""
    parameters = {"0.5B": 0.36e9, "1.5B": 1.31e9, "3B": 2.77e9, "7B": 6.53e9, "32B": 31.0e9}  # Qwen2.5's model cards
    ceiling = held_out({parameters[n]: law for n, law in paper_laws().items()}).loc["ceiling"]
    return f"sizes up to 7B forecast a ceiling of {ceiling['predicted']:.1f} for 32B; it has {ceiling['fitted']:.1f}"


def forecasts(grid: str) -> str:
    """How well the law forecasts runs without control from their first 15 %."""
    results = [erltool.forecast(*held_out_points(r)) for r in runs_of(grid, "none")]
    rmse, stayed = (100 * np.median([getattr(f, name) for f in results]) for name in ("rmse", "rmse_if_it_stayed"))
    covered = np.mean([f.covered for f in results])
    return f"median RMSE {rmse:.1f} points ({stayed:.1f} if accuracy stayed), {covered:.0%} inside the 90 % interval"


def estimator_differences() -> pd.DataFrame:
    """The law's coefficients under other advantage estimators less GRPO's, as `law_differences` returns them."""
    laws: dict[str, list] = {}
    for run in record("algorithms")[0].values():
        laws.setdefault(run.config["advantages"], []).append(erltool.fit_law(*held_out_points(run)))
    return erltool.law_differences(laws, "grpo")


def size_laws() -> dict[int, LawFit]:
    """The law of each size of the policy `sharpening`, by its number of parameters, on the points of all seeds."""
    points: dict[int, list] = {}
    for name, run in record("sizes")[0].items():
        points.setdefault(parameters(int(name.rpartition("hidden")[2])), []).append(held_out_points(run))
    return {size: erltool.fit_law(*np.concatenate(points[size], axis=1)) for size in sorted(points)}


def parameters(hidden: int, layers: int = 3) -> int:
    """How many parameters a policy of data/policies/make_chain.py has."""
    return hidden * (len(SYMBOLS) + 2) + layers * (4 * hidden**2 + 3 * hidden * (hidden * 8 // 3) + 2 * hidden) + hidden


def sizes() -> list[str]:
    """A row for each size: its law, and in the last row the law of the largest as the trend of the others forecasts."""
    laws, runs = size_laws(), record("sizes")[1]
    ends = runs.assign(size=[parameters(int(name.rpartition("hidden")[2])) for name in runs.index]).groupby("size")
    rows = []
    for size, fit in laws.items():
        end = ends.get_group(size)[["entropy_spent", "average"]].astype(float).mean()
        coefficients = [f"{getattr(fit, k):.3f} ({low:.3f} to {high:.3f})" for k, (low, high) in fit.interval().items()]
        means = [f"{end['entropy_spent']:.0%}", f"{end['average']:.3f}"]
        rows.append([f"{size:,}", *means, f"{fit.r_squared:.2f}", *coefficients])
    forecast = held_out(laws)["predicted"]
    rows.append([f"{max(laws):,}, by the trend", "", "", "", *(f"{forecast[k]:.3f}" for k in ("a", "b", "ceiling"))])
    return markdown(["parameters", "entropy spent", "accuracy at the end", "R²", "a", "b", "ceiling"], rows)


def algorithms() -> str:
    """`estimator_differences` in words."""
    table = estimator_differences().set_index(["group", "coefficient"])
    words = [f"{n} {c} {row['difference']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f})"
             for (n, c), row in table.iterrows() if c != "ceiling"]  # fmt: skip
    return "difference from GRPO: " + ", ".join(words)


def by_value(grid: str, field: str) -> str:
    """Entropy at the end by the value of a control's field, in words."""
    table = record(grid)[1]
    ends = table.groupby(table[field].fillna(0))["entropy_end"].mean()
    rising = "rises with the coefficient" if ends.is_monotonic_increasing else "is not monotone in the coefficient"
    return f"entropy at the end {rising}: " + ", ".join(f"{v:g}: {h:.3f}" for v, h in ends.items())


def sweep() -> str:
    """Whether the entropy of the last 20 iterations, as a mean over seeds, rises with each fraction and coefficient."""
    rows = pd.DataFrame([
        r.config["control"] | {"entropy": r.metrics.groupby("iteration")["policy_entropy"].mean().tail(20).mean()}
        for r in record("sweep")[0].values()
    ])  # fmt: skip
    kl, clip = rows[rows["name"] == "kl-cov"], rows[rows["name"] == "clip-cov"]
    by = {
        "KL-Cov's fraction": kl[kl["coef"] == 1].groupby("fraction"),
        "its coefficient": kl[kl["fraction"] == 0.1].groupby("coef"),
        "Clip-Cov's fraction": clip.groupby("fraction"),
    }
    words = []
    for name, groups in by.items():
        ends = groups["entropy"].mean()
        words.append(f"{name} {'monotone' if ends.is_monotonic_increasing else 'not monotone'} "
                     f"({', '.join(f'{v:g}: {h:.3f}' for v, h in ends.items())})")  # fmt: skip
    return "; ".join(words)


CRITERIA = ("oracle", "push-rate", "push", "covariance", "band", "rare-wrong", "right", "uncertain", "random")


def microscope() -> list[str]:
    """A row for each policy that the microscope examined: what a fifth of the dose saves and costs, by criterion, and
    the correlations of push and covariance with the measured change per context."""
    rows = []
    for regime in ("sharpening", "discovery", "trap"):
        for point in read_microscope(shipped(f"data/microscope/{regime}.parquet")):
            table = point.prices().query("share == 0.2").set_index("criterion")
            cells = [price(table.loc[name]) for name in CRITERIA]
            push, covariance, more = point.correlations()
            at, (entropy, reward) = point.rows["at"].iloc[0], point.whole()
            related = f"{push[0]:.2f}, {covariance[0]:.2f}; {more[0]:+.2f} ({more[1]:+.2f} to {more[2]:+.2f})"
            rows.append([f"{regime}, {at:.0%}", f"{1000 * entropy:+.2f}, {reward:+.4f}", *cells, related])
    return markdown(["policy, entropy spent", "an update", *(f"`{c}`" for c in CRITERIA), "correlations"], rows)


def microscope_controls() -> list[str]:
    """A row for each control that the microscope asked, and a column for each policy: what it saves and costs in an
    iteration's last update."""
    points = {
        f"{regime}, {point.rows['at'].iloc[0]:.0%}": point
        for regime in ("discovery", "sharpening")
        for point in read_microscope(shipped(f"data/microscope/{regime}-controls.parquet"))
    }
    prices = {name: point.prices().set_index("criterion") for name, point in points.items()}
    names = [name for name in next(iter(prices.values())).index if not name.startswith(BASELINE)]
    whole = [f"{1000 * entropy:+.2f}, {reward:+.4f}" for entropy, reward in (p.whole() for p in points.values())]
    return markdown(
        ["control", *points],
        [
            ["the update without", *whole],
            *([f"`{n}`", *(price(table.loc[n]) for table in prices.values())] for n in names),
        ],
    )


def price(row: pd.Series) -> str:
    """A row of `prices` in a cell: mnats saved, * where they differ from the random baseline's, and reward lost."""
    mark = "*" if row["saved_more_low"] > 0 or row["saved_more_high"] < 0 else ""
    return f"{1000 * row['saved']:.2f}{mark}, {row['lost']:.0%}"


SEEN = {  # settings by the names of their files
    "3e-4": "`addition:20`, 3e-4",
    "1e-4": "`addition:20`, 1e-4",
    "1e-5": "`addition:20`, 1e-5",
    "grid": "`addition:50`, 1e-4, the grid's",
    "grid-fp32": "the same in fp32",
}


def precision() -> list[str]:
    """A row for each setting in which `erltool doctor` saw SmolLM2: how far an update moves the log-probs of KL-Cov's
    tokens, and which share of the penalty is rounding."""
    rows = []
    for file, setting in SEEN.items():
        lines = (shipped("data/precision") / f"smollm2-{file}.txt").read_text().splitlines()
        ours = next(line for line in lines if line.startswith("as erltool takes them"))
        rows.append([setting, *ours.split()[4:]])
    shares = ["share of k1", "share of k2", "zone, nats", "share of k2 beyond it"]
    return markdown(["task and rate", "moved in fp32, nats", "noise, nats", *shares], rows)


def tables() -> list[list[str]]:
    """The tables of data/RESULTS.md that are made from recorded runs, as lines."""
    regimes = [
        lines for grid in ("discovery", "sharpening") for lines in (regime(arms(grid)), regime_differences(grid))
    ]
    rates = takeovers("trap-rates")
    by_rate = takeover_lines(rates, "rate", {rate: f"{rate:g}" for rate in sorted(rates["rate"].unique())})
    return [
        *regimes,
        minute(),
        by_rate,
        takeover_lines(takeovers("trap"), "iterations", {300: "300 iterations at 1e-4"}),
        figures(),
        sizes(),
        microscope(),
        microscope_controls(),
        regime(criterion()),
        criterion_differences(),
        precision(),
        smollm2(),
        smollm2_differences(),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figures", type=Path, help="folder of the figures")
    args = parser.parse_args()
    print("\n\n".join("\n".join(lines) for lines in tables()))
    if args.figures is not None:
        draw_regime("discovery").savefig(args.figures / "discovery.png")
        draw_trap().savefig(args.figures / "trap.png")


if __name__ == "__main__":
    main()
