"""Prints data/RESULTS.md's tables of the recorded experiments, from data/runs/ and data/paper/ alone.

python data/experiments/report.py                       # prints the tables
python data/experiments/report.py --figures FOLDER      # draws data/RESULTS.md's figures of discovery and trap, too
"""

import argparse
import functools
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import erltool.runs.folder
from erltool.law.scaling import held_out
from erltool.plots import COLOURS, LINES, new_axes, plot_seeds
from erltool.resources import shipped
from erltool.runs import compare
from erltool.widgets.points import points_of


@functools.cache
def record(grid: str) -> tuple[dict[str, erltool.runs.folder.Run], pd.DataFrame]:
    """Runs of a recorded grid, and their end values with each field of the control as a column of its own."""
    runs = erltool.read_runs(shipped(f"data/runs/{grid}"))
    fields = pd.DataFrame([r.config["control"] for r in runs.values()], index=list(runs))
    return runs, compare.end_values(runs).join(fields)


REGIME = {
    "selected": ("acted on", ".1%"),
    "entropy_end": ("entropy, end", ".4f"),
    "zero_spread_end": ("groups without spread", ".0%"),
    "all_wrong_end": ("all wrong", ".1%"),
    "average@0": ("greedy", ".3f"),
    "average@0.6": ("at 0.6", ".3f"),
    "average": ("sampled", ".3f"),
    "pass@32": ("pass@32", ".3f"),
}
ACCURACIES = {name: REGIME[name][0] for name in ("average@0", "average@0.6", "average")}


def arms(grid: str) -> pd.DataFrame:
    """End values of a grid's runs, with the arm of each as its name has it."""
    runs, table = record(grid)
    return table.assign(arm=[name.removeprefix(f"{grid}-seed").partition("-")[2] for name in runs])


def regime(grid: str) -> list[str]:
    """A regime of the chain world: means of the end values of every arm over its seeds."""
    table = arms(grid)
    lines = [
        "| arm | seeds | " + " | ".join(label for label, _ in REGIME.values()) + " |",
        "|" + "---|" * (2 + len(REGIME)),
    ]
    for arm, part in table.groupby("arm", sort=False):
        mean = part[list(REGIME)].astype(float).mean()
        cells = [f"{mean[k]:{form}}" for k, (_, form) in REGIME.items()]
        lines.append(f"| `{arm}` | {len(part)} | " + " | ".join(cells) + " |")
    return lines


def regime_differences(grid: str) -> list[str]:
    """Differences in accuracy of the arms with a covariance control to the others, by seed, with 95 % intervals."""
    table = arms(grid)
    every = list(table["arm"].unique())
    controlled = [arm for arm in every if arm.endswith("-cov")]
    against = [arm for arm in every if arm not in controlled]
    lines = ["| arm | accuracy | " + " | ".join(f"− `{b}`" for b in against) + " |", "|" + "---|" * (2 + len(against))]
    for arm in controlled:
        for value, label in ACCURACIES.items():
            found = [compare.differences(table, value, base, by="arm")[arm] for base in against]
            lines.append(f"| `{arm}` | {label} | " + " | ".join(map(_difference, found)) + " |")
    return lines


def takeover(run: erltool.runs.folder.Run) -> float:
    """The iteration from which on more than half of a run's responses work step by step; NaN where that never comes."""
    thinks = run.metrics.groupby("iteration")["thinking_fraction"].mean() > 0.5
    below = thinks.index[~thinks]
    last = below.max() if len(below) else -1
    return float(last + 1) if last < thinks.index.max() else np.nan


def takeovers(grid: str) -> pd.DataFrame:
    """One row a run of `trap-rates` or `trap`: its end values, with arm, learning rate, iterations, and the iteration
    of the take-over."""
    runs = record(grid)[0]
    table = arms(grid).assign(
        rate=[r.config["learning_rate"] for r in runs.values()],
        iterations=[r.config["steps"] // r.config["updates_per_iteration"] for r in runs.values()],
        takeover=[takeover(r) for r in runs.values()],
    )
    depth = 2 if grid == "trap-rates" else 0  # "rate1e-4-one-update"
    return table.assign(arm=[name.split("-", depth)[depth] for name in table["arm"]] if depth else table["arm"])


def takeover_lines(table: pd.DataFrame, by: str, heads: dict) -> list[str]:
    """In how many runs working step by step takes over, and when (median); then greedy accuracy and entropy, means. One
    row an arm, one column a value of `by`, whose heads are given."""
    lines = ["| arm | " + " | ".join(heads.values()) + " |", "|" + "---|" * (1 + len(heads))]
    for arm, part in table.groupby("arm", sort=False):
        cells = []
        for value in heads:
            at = part[part[by] == value]
            came = at["takeover"].dropna()
            when = f", at {came.median():.0f}" if len(came) else ""
            cells.append(
                f"{len(came)} of {len(at)}{when}; {at['average@0'].mean():.2f}, {at['entropy_end'].mean():.2f}"
            )
        lines.append(f"| `{arm}` | " + " | ".join(cells) + " |")
    return lines


def trap_rates() -> list[str]:
    """The trap by learning rate, after 150 iterations."""
    table = takeovers("trap-rates")
    return takeover_lines(table, "rate", {rate: f"{rate:g}" for rate in sorted(table["rate"].unique())})


def trap() -> list[str]:
    """The trap at 1e-4 in the long run."""
    return takeover_lines(takeovers("trap"), "iterations", {300: "300 iterations at 1e-4"})


def draw_trap() -> Figure:
    """The trap: how many runs end working step by step after 150 iterations, by learning rate; and the share that does
    at 1e-4 over 300, each seed thin, their mean thick."""
    early, runs = takeovers("trap-rates"), record("trap")[0]
    late = takeovers("trap")
    left, right = new_axes(2, width=4.8)
    for index, (arm, part) in enumerate(early.groupby("arm", sort=False)):
        style = {"color": COLOURS[index], "linestyle": LINES[index], "label": arm}
        came = part["takeover"].notna().groupby(part["rate"]).mean()
        left.plot(came.index, came, marker="o", **style)
        chosen = [runs[n] for n in late.index[late["arm"] == arm]]
        plot_seeds(chosen, "thinking_fraction", ax=right, label=arm, index=index, by="iteration")
    left.set(xscale="log", xlabel="learning rate", ylabel="share of runs it takes over in", ylim=(-0.04, 1.04))
    left.set_title("150 iterations, 6 seeds")
    right.set(ylabel="share that works step by step", title="learning rate 1e-4, 10 other seeds")
    left.legend(fontsize=8)
    return left.figure


CURVES = {
    "policy_entropy": "entropy (nats/token)",
    "right_product_fraction": "share of products that are right",
    "eval_accuracy_tempered": "held-out accuracy, greedy",
    "eval_accuracy": "held-out accuracy, sampled",
}


def draw_regime(grid: str) -> Figure:
    """Entropy, products found and accuracies of a regime's arms, by iteration: each seed thin, their mean thick."""
    runs, table = record(grid)[0], arms(grid)
    axes = new_axes(len(CURVES), width=3.6)
    for index, (arm, part) in enumerate(table.groupby("arm", sort=False)):
        for ax, (metric, label) in zip(axes, CURVES.items(), strict=True):
            smooth = (
                1 if metric.startswith("eval") else 15
            )  # iterations: each has other prompts, an evaluation the same
            chosen = [runs[n] for n in part.index]
            plot_seeds(chosen, metric, ax=ax, label=arm, index=index, smooth=smooth, by="iteration")
            ax.set_ylabel(label)
    axes[0].set_yscale("log")
    axes[0].legend(fontsize=8)
    return axes[0].figure


def _difference(d) -> str:
    return "" if d is None else f"{d.mean:+.3f} ({d.low:+.3f} to {d.high:+.3f})"


def figures() -> list[str]:
    """The paper's figures on dynamics: lesson, our number, theirs, what differs."""
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
        ("1 left, 2", "04", f"after 1/12 of the steps {early['entropy_spent']:.0%} of the entropy spent, "
         f"{early['accuracy_gained']:.0%} of the gain made", "73 %, 76 %", f"sharpening, {seeds}, 300 iterations"),
        ("1 right", "06", drawn_curves(), "the drawn curves", "dots hide one another"),
        ("1 right", "06", law("sharpening"), "the curves", f"sharpening, {seeds}; sampled at temperature 1"),
        ("1 right", "06", law("discovery"), "the curves", "discovery, 10 seeds: the law bends"),
        ("forecast", "06", forecasts("sharpening"), "RMSE 0.9 points (math) from 15 %", f"sharpening, {seeds}"),
        ("forecast", "06", forecasts("discovery"), "RMSE 0.9 points (math) from 15 %", "discovery, 10 seeds"),
        ("trend over sizes", "06", larger_model(), "log-linear", "the paper's dots, sizes without embeddings"),
        ("6", "06", algorithms(), "a and b do not depend on it", "sharpening, 5 seeds, 80 iterations"),
        ("8 left", "04", f"correlation of covariance and fall: {r8['token_covariance']:.2f} (Eq 10), "
         f"{r8['group_covariance']:.2f} (Eq 8)", "the curves coincide",
         f"mean of {seeds}, smoothed over 10 iterations"),
        ("9", "04", by_value("bonus", "coef"), "little, then an explosion", "3 seeds, 80 iterations"),
        ("10", "04", by_value("reference", "coef"), "entropy held, accuracy lost", "3 seeds, 80 iterations, LoRA"),
        ("11", "05", f"Clip-Cov's entropy at the end {held('discovery')}", f"7B: {paper}", "discovery, 10 seeds"),
        ("11 middle", "04", length(alone), "length grows with accuracy", f"sharpening, {seeds}"),
        ("12", "05", sweep(), "entropy rises with share and coefficient", "5 seeds, last 20 of 80 iterations"),
        ("Table 2", "05", f"Clip-Cov {100 * paid['average@0']:+.1f} greedily, pass@8 {100 * paid['pass@8']:+.1f} "
         "points", "Clip-Cov +1.8, KL-Cov +2.0 points (7B, average)", "discovery, 1,000 held-out problems, 10 seeds"),
    ]  # fmt: skip
    lines = ["| figure | lesson | ours | the paper's | what differs |", "|---|---|---|---|---|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def runs_of(grid: str, arm: str) -> list[erltool.runs.folder.Run]:
    """The runs of an arm, one a seed."""
    found = record(grid)[0]
    return [found[name] for name, its in arms(grid)["arm"].items() if its == arm]


def held_out_points(run: erltool.runs.folder.Run):
    """(H, R): held-out accuracy at the temperature of training, and the mean entropy since the one before."""
    points = points_of(run, "eval_accuracy")
    return np.stack([points.entropy, points.performance])


def law(grid: str) -> str:
    """How well the law describes the runs without control."""
    points = [held_out_points(r) for r in runs_of(grid, "none")]
    found = pd.Series([erltool.fit_law(*p).r_squared for p in points])
    pooled = erltool.fit_law(*np.concatenate(points, axis=1)).r_squared
    return f"R² of the law {found.median():.2f} in the median run ({found.min():.2f} at least), {pooled:.2f} pooled"


def held(grid: str) -> str:
    """Clip-Cov's entropy at the end against no control's: the geometric mean of the ratios, by seed."""
    table = arms(grid)
    table["entropy"] = np.log(table["entropy_end"].astype(float))
    d = compare.differences(table, "entropy", "none", by="arm")["clip-cov"]
    ratio, low, high = np.exp([d.mean, d.low, d.high])
    return f"{ratio:.1f}× no control's ({low:.1f} to {high:.1f})"


def length(runs: list[erltool.runs.folder.Run]) -> str:
    """Response length beside accuracy."""
    found = [r.evaluated()[["response_length", "eval_accuracy"]].corr().iloc[0, 1] for r in runs]
    ends = pd.concat([r.evaluated()["response_length"].iloc[[0, -1]].reset_index(drop=True) for r in runs], axis=1)
    first, last = ends.mean(axis=1)
    return f"from {first:.1f} to {last:.1f} tokens; correlation with accuracy {np.median(found):.2f} in the median"


def drawn_curves() -> str:
    """How far least squares on the paper's dots is from the curves that its authors drew."""
    drawn = pd.read_csv(shipped("data/paper/fig1_right_fit_table.csv")).set_index("source").loc["drawn_curve"]
    laws = paper_laws()
    slope = max(abs(laws[r.series].a / r.a_percent - 1) for r in drawn.itertuples())
    ceiling = max(abs(laws[r.series].ceiling - r.ceiling_b_minus_a_percent) for r in drawn.itertuples())
    return f"on the dots a within {slope:.1%} of the drawn curves', ceilings within {ceiling:.2f} points, 5 sizes"


def paper_laws() -> dict:
    points = pd.read_csv(shipped("data/paper/fig1_right_points.csv"))
    columns = ["entropy_nats", "validation_accuracy_percent"]
    return {n: erltool.fit_law(*g[columns].to_numpy().T, unit="percentage points") for n, g in points.groupby("series")}


def larger_model() -> str:
    """The 32B ceiling as the smaller sizes forecast it."""
    parameters = {"0.5B": 0.36e9, "1.5B": 1.31e9, "3B": 2.77e9, "7B": 6.53e9, "32B": 31.0e9}  # Qwen2.5's model cards
    ceiling = held_out({parameters[n]: law for n, law in paper_laws().items()}).loc["ceiling"]
    return f"7B and below forecast a ceiling of {ceiling['predicted']:.1f} for 32B; its own is {ceiling['fitted']:.1f}"


def forecasts(grid: str) -> str:
    """How the law forecasts runs without control from their first 15 %, and how often its interval holds."""
    found = [erltool.forecast(*held_out_points(r)) for r in runs_of(grid, "none")]
    rmse, covered = np.median([f.rmse for f in found]), np.mean([f.covered for f in found])
    return f"median RMSE {100 * rmse:.1f} points, {covered:.0%} inside the 90 % interval"


def estimator_differences() -> pd.DataFrame:
    """The law's coefficients under other advantage estimators against GRPO's, as `law_differences` has them."""
    laws: dict[str, list] = {}
    for run in record("algorithms")[0].values():
        laws.setdefault(run.config["advantages"], []).append(erltool.fit_law(*held_out_points(run)))
    return erltool.law_differences(laws, "grpo")


def algorithms() -> str:
    """Those differences in words."""
    table = estimator_differences().set_index(["group", "coefficient"])
    parts = [f"{n} {c} {row['difference']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f})"
             for (n, c), row in table.iterrows() if c != "ceiling"]  # fmt: skip
    return "difference to GRPO: " + ", ".join(parts)


def by_value(grid: str, field: str) -> str:
    """Entropy at the end for each value of a control's field, in words."""
    table = record(grid)[1]
    ends = table.groupby(table[field].fillna(0))["entropy_end"].mean()
    rising = "rises with it" if ends.is_monotonic_increasing else "is not monotone in it"
    return f"entropy at the end {rising}: " + ", ".join(f"{v:g}: {h:.3f}" for v, h in ends.items())


def sweep() -> str:
    """Whether entropy at the end rises with each share and coefficient: the mean of a value's seeds, over the last 20
    iterations."""
    rows = pd.DataFrame([
        r.config["control"] | {"entropy": r.metrics.groupby("iteration")["policy_entropy"].mean().tail(20).mean()}
        for r in record("sweep")[0].values()
    ])  # fmt: skip
    kl, clip = rows[rows["name"] == "kl-cov"], rows[rows["name"] == "clip-cov"]
    by = {
        "KL-Cov's share": kl[kl["coef"] == 1].groupby("fraction"),
        "its coefficient": kl[kl["fraction"] == 0.1].groupby("coef"),
        "Clip-Cov's share": clip.groupby("fraction"),
    }
    parts = []
    for name, groups in by.items():
        ends = groups["entropy"].mean()
        parts.append(f"{name} {'monotone' if ends.is_monotonic_increasing else 'not monotone'} "
                     f"({', '.join(f'{v:g}: {h:.3f}' for v, h in ends.items())})")  # fmt: skip
    return "; ".join(parts)


def tables() -> list[list[str]]:
    """Every table of data/RESULTS.md that is made from recorded runs, as lines."""
    return [
        regime("discovery"),
        regime_differences("discovery"),
        regime("sharpening"),
        regime_differences("sharpening"),
        trap_rates(),
        trap(),
        figures(),
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
