"""Prints the README's tables of the recorded experiments, from data/runs/ and data/paper/ alone.

python data/experiments/report.py                       # prints the tables
python data/experiments/report.py --figures FOLDER      # draws the README's figure of discovery, too
"""

import argparse
import functools
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import erltool.runs
from erltool import compare
from erltool.plots import new_axes, plot_seeds
from erltool.resources import shipped
from erltool.scaling import held_out
from erltool.widgets.points import points_of

CONTROLS = ("none", "clip-cov", "kl-cov", "random-clip")
SIZES = {"0.2M": 202_688, "0.8M": 806_784, "2.3M": 2_264_256, "4.8M": 4_825_856}  # parameters


@functools.cache
def record(grid: str) -> tuple[dict[str, erltool.runs.Run], pd.DataFrame]:
    """Runs of a recorded grid, and their end values with each field of the control as a column of its own."""
    runs = erltool.read_runs(shipped(f"data/runs/{grid}"))
    fields = pd.DataFrame([r.config["control"] for r in runs.values()], index=list(runs))
    return runs, compare.end_values(runs).join(fields)


def comparison(*grids: str) -> list[str]:
    """Controls over seeds: entropy, held-out accuracy and pass@k, and differences paired by seed, to no control and to
    the null control: of the control's own kind where it was run, else random-clip."""
    runs = {n: r for grid in grids for n, r in record(grid)[0].items()}
    table = compare.end_values(runs)
    table["label"] = [_label(r.config["control"]) for r in runs.values()]
    seeds = table.groupby("label", sort=False).size()
    lines = [
        "| control | seeds | entropy, start to end | spent | late | avg | pass@8 | pass@32 | avg − none | avg − null | "
        "pass@8 − none | pass@8 − null |"
    ]
    lines.append("|" + "---|" * 12)
    for name in seeds.index:
        mean = table[table["label"] == name].drop(columns=["label", "setting", "failed"]).mean(numeric_only=True)
        against = ["none", _null(name, seeds.index)] if name != "none" else [None, None]
        cells = [
            f"`{name}`",
            f"{seeds[name]}",
            f"{mean['entropy_start']:.3f} to {mean['entropy_end']:.3f}",
            f"{mean['entropy_spent']:.0%}",
            *(f"{mean[k]:.3f}" for k in ("accuracy_late", "average", "pass@8", "pass@32")),
            *(_difference(b and compare.differences(table, v, b, by="label")[name])
              for v in ("average", "pass@8") for b in against),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


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


def _label(control: dict) -> str:
    numbers = [f"{control[key]:g}" for key in ("fraction", "coef") if key in control]
    return f"{control['name']} ({', '.join(numbers)})" if numbers else control["name"]


def _null(label: str, labels) -> str | None:
    """The null control of a control among the labels; None for a null control."""
    own = label.replace("kl-cov", "random-kl").replace("clip-cov", "random-clip")
    if own == label:
        return None
    return own if own in labels else next(other for other in labels if other.startswith("random"))


def _difference(d) -> str:
    return "" if d is None else f"{d.mean:+.3f} ({d.low:+.3f} to {d.high:+.3f})"


def figures() -> list[str]:
    """The paper's figures on dynamics: lesson, our number, theirs, what differs."""
    runs, table = record("headline")
    alone = [r for r in runs.values() if compare.setting_of(r) == "none"]
    early = pd.concat([compare.share_by_step(r, [1 / 12]) for r in alone]).mean()
    tracks = pd.concat([compare.covariance_and_fall(r) for r in alone]).groupby("step").mean()
    r8 = tracks.corr()["fall"]
    ends = table.groupby("name")["entropy_end"].mean()
    theirs = pd.read_csv(shipped("data/paper/fig11_7B_entropy.csv"))
    ordered = theirs.sort_values("gradient_step").groupby("series")["entropy_nats"]
    last = ordered.agg(lambda h: h.tail(20).mean())
    multiples = ", ".join(f"{n} {ends[n] / ends['none']:.1f}×" for n in CONTROLS[1:])
    paper = ", ".join(f"{n} {last[n] / last['GRPO']:.0f}×" for n in ("Clip-higher", "Clip-Cov", "KL-Cov"))
    paid = {v: compare.differences(table, v, "none", by="name") for v in ("average", "pass@8")}
    rows = [
        ("1 left, 2", "04", f"after 1/12 of the steps {early['entropy_spent']:.0%} of the entropy spent, "
         f"{early['accuracy_gained']:.0%} of the gain made", "73 %, 76 %", "held-out accuracy falls after its best"),
        ("1 right", "06", drawn_curves(), "the drawn curves", "dots hide one another"),
        ("forecast", "06", forecasts(), "RMSE 0.9 points (math) from 15 %", "training reward, 5 iterations a point"),
        ("trend over sizes", "06", larger_model(), "log-linear", "the paper's dots, sizes without embeddings"),
        ("trend over sizes", "06", own_sizes(), "log-linear", "training reward, 3 seeds a size, 480 updates"),
        ("6", "06", algorithms(), "a and b do not depend on it", "training reward, 3 seeds, 240 updates"),
        ("8 left", "04", f"correlation of covariance and fall: {r8['token_covariance']:.2f} (Eq 10), "
         f"{r8['group_covariance']:.2f} (Eq 8)", "the curves coincide", "mean of 5 seeds, smoothed over 20 iterations"),
        ("9", "04", by_value("bonus", "coef"), "little, then an explosion", "one seed, 240 updates"),
        ("10", "04", by_value("reference", "coef"), "entropy held, accuracy lost", "one seed, 240 updates, LoRA"),
        ("11", "05", f"entropy at the end against no control: {multiples}", f"7B: {paper}",
         "800 updates; preset `embedded`; no plateau"),
        ("12", "05", sweep(runs), "entropy rises with share and coefficient", "one seed, 240 updates"),
        ("Table 2", "05", "; ".join(f"{v} " + ", ".join(f"{n} {100 * paid[v][n].mean:+.1f}" for n in CONTROLS[1:])
         for v in paid) + " points", "Clip-higher +0.2, Clip-Cov +1.8, KL-Cov +2.0 points (7B, average)",
         "one small task, its 114 held-out problems"),
    ]  # fmt: skip
    lines = ["| figure | lesson | ours | the paper's | what differs |", "|---|---|---|---|---|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


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


def size_of(run: erltool.runs.Run) -> str:
    return run.config["policy"].rpartition("/")[2]


@functools.cache
def size_laws() -> dict:
    """The law of each size of policy without control, of the points of its seeds together."""
    runs = record("sizes")[0].values()
    points = {n: [training_points(r) for r in runs if size_of(r) == n] for n in SIZES}
    return {n: erltool.fit_law(*np.concatenate(p, axis=1)) for n, p in points.items()}


def own_sizes() -> str:
    """The largest size's coefficients as the smaller sizes forecast them."""
    held = held_out({SIZES[n]: law for n, law in size_laws().items()})
    return "2.3M and below forecast for 4.8M " + ", ".join(
        f"{name} {row['predicted']:.2f} (its own {row['fitted']:.2f})" for name, row in held.iterrows()
    )


def by_size() -> list[str]:
    """Policies of four sizes: their laws, and KL-Cov against no control, paired by size and seed."""
    laws = size_laws()
    tables = {}
    for grid in ("sizes", "sizes-kl-cov"):
        runs, table = record(grid)
        tables[grid] = table.assign(size=[size_of(r) for r in runs.values()]).set_index(["size", "seed"])
    alone, held = tables.values()
    lines = ["| policy | a, b, R² of the law | entropy, start to end | with KL-Cov | avg, pass@8 | "
             "late: KL-Cov − none | avg: KL-Cov − none | pass@8: KL-Cov − none |", "|" + "---|" * 8]  # fmt: skip
    for name in (*SIZES, "all"):
        a, h = (t if name == "all" else t.loc[[name]] for t in (alone, held))
        mean, with_control = a.mean(numeric_only=True), h.mean(numeric_only=True)
        law = laws.get(name)
        cells = [
            name,
            f"{law.a:.2f}, {law.b:.2f}, {law.r_squared:.2f}" if law else "",
            f"{mean['entropy_start']:.2f} to {mean['entropy_end']:.3f}",
            f"{with_control['entropy_start']:.2f} to {with_control['entropy_end']:.3f}",
            f"{mean['average']:.3f}, {mean['pass@8']:.3f}",
            *(_difference(compare.paired_difference(h[v], a[v])) for v in ("accuracy_late", "average", "pass@8")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def training_points(run: erltool.runs.Run):
    """(H, R): entropy and training reward, means of 5 iterations."""
    points = points_of(run, "reward").averaged(5)
    return np.stack([points.entropy, points.performance])


def forecasts() -> str:
    """How the law forecasts the recorded runs from their first 15 %, and how often its interval holds."""
    runs = [r for grid in ("headline", "strong") for r in record(grid)[0].values()]
    found = [erltool.forecast(*training_points(r)) for r in runs]
    rmse = pd.Series([f.rmse for f in found]).median()
    return (
        f"median RMSE {100 * rmse:.1f} points over {len(found)} runs, {sum(f.covered for f in found) / len(found):.0%} "
        "inside the 90 % interval"
    )


def algorithms() -> str:
    """The law's coefficients under other advantage estimators against GRPO's."""
    groups = {"grpo": [r for r in record("headline")[0].values()
                       if compare.setting_of(r) == "none" and r.config["seed"] < 3]}  # fmt: skip
    for run in record("algorithms")[0].values():
        groups.setdefault(run.config["advantages"], []).append(run)
    laws = {n: [erltool.fit_law(*training_points(r)[:, :12]) for r in runs] for n, runs in groups.items()}
    table = erltool.law_differences(laws, "grpo").set_index(["group", "coefficient"])
    parts = [f"{n} {c} {row['difference']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f})"
             for (n, c), row in table.iterrows() if c != "ceiling"]  # fmt: skip
    return "difference to GRPO: " + ", ".join(parts)


def by_value(grid: str, field: str) -> str:
    """Entropy at the end for each value of a control's field, in words."""
    table = record(grid)[1]
    ends = table.groupby(table[field].fillna(0))["entropy_end"].mean()
    rising = "rises with it" if ends.is_monotonic_increasing else "is not monotone in it"
    return f"entropy at the end {rising}: " + ", ".join(f"{v:g}: {h:.2f}" for v, h in ends.items())


def sweep(headline_runs: dict) -> str:
    """Whether entropy around update 400 rises with each share and coefficient."""
    runs = record("sweep")[0] | {n: r for n, r in headline_runs.items() if r.config["seed"] == 0}
    rows = pd.DataFrame([
        r.config["control"] | {"entropy": r.metrics[r.metrics["step"].between(200, 240)]["policy_entropy"].mean()}
        for r in runs.values()
    ])  # fmt: skip
    kl, clip = rows[rows["name"] == "kl-cov"], rows[rows["name"] == "clip-cov"]
    by = {
        "KL-Cov's share": kl[kl["coef"] == 2].groupby("fraction"),
        "its coefficient": kl[kl["fraction"] == 0.1].groupby("coef"),
        "Clip-Cov's share": clip.groupby("fraction"),
    }
    parts = []
    for name, groups in by.items():
        ends = groups["entropy"].mean()
        parts.append(f"{name} {'monotone' if ends.is_monotonic_increasing else 'not monotone'} "
                     f"({', '.join(f'{v:g}: {h:.2f}' for v, h in ends.items())})")  # fmt: skip
    return "; ".join(parts)


def tables() -> list[list[str]]:
    """Every table of the README that is made from recorded runs, as lines."""
    return [
        regime("discovery"),
        regime_differences("discovery"),
        comparison("headline"),
        comparison("strong", "plateau", "plateau-null"),
        by_size(),
        figures(),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figures", type=Path, help="folder of the figures")
    args = parser.parse_args()
    print("\n\n".join("\n".join(lines) for lines in tables()))
    if args.figures is not None:
        draw_regime("discovery").savefig(args.figures / "discovery.png")


if __name__ == "__main__":
    main()
