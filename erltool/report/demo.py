"""The table, figure and page of `erltool demo`: one run where nothing has to be found, and two arms where it does.

The runs are those of the grid data/experiments/demo.toml: `sharpening` without control, and on products that have to be
found three seeds without control and three under Clip-Cov, whose fraction falls to 0 at the end.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from erltool.errors import ErltoolError
from erltool.files import writing
from erltool.law.fit import LawFit, fit_law
from erltool.plots import new_rows, plot_fit, plot_seeds
from erltool.report.page import write_page
from erltool.resources import shipped
from erltool.runs import compare
from erltool.runs.folder import Run, read_runs
from erltool.training.steering import GREEDY, score_of
from erltool.widgets.points import points_of

GRID = "demo"
KNOWN, FOUND = "sharpening", "discovery"  # the two questions, each with its arms
ARMS = {
    "sharpening": (KNOWN, "no control"),
    "none": (FOUND, "no control"),
    "clip-cov": (FOUND, "Clip-Cov"),
}  # arm of the grid: question, name for readers
MEANS = {
    "policy_entropy": "entropy (nats/token)",
    "thinking_fraction": "works step by step",
    "response_length": "response (tokens)",
    "zero_spread_fraction": "groups of equal rewards",
}  # means over EDGE iterations at the start and at the end
ACCURACIES = {"eval_accuracy": "accuracy, sampled", GREEDY: "accuracy, greedy"}
PANELS = {
    "policy_entropy": "entropy (nats/token)",
    GREEDY: "held-out accuracy",
    "thinking_fraction": "works step by step",
    "zero_spread_fraction": "groups of equal rewards",
}


def by_arm(runs: Mapping[str, Run]) -> dict[str, list[Run]]:
    """The runs of the demo by arm, in its order."""
    arms: dict[str, list[Run]] = {}
    for name, run in runs.items():
        arms.setdefault(compare.arm_of(name), []).append(run)
    return {arm: arms[arm] for arm in ARMS if arm in arms}


def law_of(run: Run) -> LawFit | str:
    """The law fitted to a run's held-out accuracies and the mean entropy before each, or why there is none."""
    try:
        points = points_of(run, "eval_accuracy")
        return fit_law(points.entropy, points.performance, unit=points.unit, entropy_average=points.entropy_average)
    except ErltoolError as e:
        return str(e)


def summary_table(runs: Mapping[str, Run]) -> pd.DataFrame:
    """What each arm's runs began and ended with, means over their seeds: a row a quantity, a column (question, name) an
    arm, as texts "start to end". Accuracies are held-out, shares are fractions. The last row has the median R² of the
    laws."""
    return pd.DataFrame({ARMS[arm]: _column(members) for arm, members in by_arm(runs).items()})


def _column(runs: list[Run]) -> dict[str, str]:
    column = {"seeds": str(len(runs))}
    for metric, label in MEANS.items():
        values = pd.DataFrame([_edges(run, metric) for run in runs]).mean()
        column[label] = _from_to(values, digits=1 if metric == "response_length" else 3)
    for metric, label in ACCURACIES.items():
        column[label] = _from_to(pd.DataFrame([_ends(run, metric) for run in runs]).mean())
    squares = pd.Series([law.r_squared for law in map(law_of, runs) if isinstance(law, LawFit)], dtype=float).dropna()
    return column | {"R² of the law, median": f"{squares.median():.2f}" if len(squares) else "not fitted"}


def _edges(run: Run, metric: str) -> tuple[float, float]:
    if metric not in run.metrics:
        return float("nan"), float("nan")
    rows = run.metrics.groupby("iteration")[metric].mean()  # a record has a row an iteration, a run one an update
    return rows.head(compare.EDGE).mean(), rows.tail(compare.EDGE).mean()


def _ends(run: Run, metric: str) -> tuple[float, float]:
    measured = run.metrics.get(metric, pd.Series(dtype=float)).dropna()
    return (measured.iloc[0], measured.iloc[-1]) if len(measured) else (float("nan"), float("nan"))


def _from_to(values: pd.Series, digits: int = 3) -> str:
    return f"{values[0]:.{digits}f} to {values[1]:.{digits}f}" if values.notna().all() else "-"


def verdict(runs: Mapping[str, Run]) -> str:
    """How much more the control found: the difference of greedy accuracies at the end, paired by seed, in a sentence,
    and the same of the recorded grid `steering`, which has more seeds. "" without both arms."""
    arms = by_arm(runs)
    recorded: dict[str, list[Run]] = {}
    for name, run in read_runs(shipped("data/runs/steering")).items():
        recorded.setdefault(compare.arm_of(name), []).append(run)
    try:
        here, there = _gain(arms["clip-cov"], arms["none"]), _gain(recorded["best"], recorded["none"])
    except (KeyError, ErltoolError):
        return ""
    return f"{FOUND}: accuracy of Clip-Cov − no control, greedy: {here}; recorded: {there}"


def _gain(runs: list[Run], baseline: list[Run]) -> str:
    ends = [
        pd.Series({run.config["seed"]: score_of(run.metrics, run.config).greedy_accuracy for run in arm}).dropna()
        for arm in (runs, baseline)
    ]
    d = compare.paired_difference(*ends)
    spread = f" ({d.low:+.2f} to {d.high:+.2f})" if d.seeds > 1 else ""
    return f"{d.mean:+.2f}{spread}, {d.seeds} seed{'s' if d.seeds > 1 else ''}"


def demo_figure(runs: Mapping[str, Run]) -> Figure:
    """A row of panels for each question: entropy, accuracy, the share that works step by step or the groups without
    spread, and accuracy against entropy with the law. Seeds are thin lines, their means thick."""
    questions = {
        question: {arm: members for arm, members in by_arm(runs).items() if ARMS[arm][0] == question}
        for question in (KNOWN, FOUND)
    }
    questions = {question: arms for question, arms in questions.items() if arms}
    axes = new_rows(len(questions), 4, width=3.6, height=2.9)
    for row, (question, arms) in enumerate(questions.items()):
        _draw(axes[4 * row : 4 * row + 4], question, arms)
    return axes[0].figure


def _draw(axes, question: str, arms: Mapping[str, list[Run]]) -> None:
    third = "thinking_fraction" if question == KNOWN else "zero_spread_fraction"
    for index, (arm, runs) in enumerate(arms.items()):
        label = ARMS[arm][1]
        for ax, metric, smooth in ((axes[0], "policy_entropy", 3), (axes[1], GREEDY, 1), (axes[2], third, 3)):
            if any(metric in run.metrics for run in runs):
                name = f"{label}, greedy" if metric == GREEDY else label
                plot_seeds(runs, metric, ax=ax, label=name, index=index, smooth=smooth, by="iteration")
                ax.set_ylabel(PANELS[metric])
        if question == KNOWN and any("eval_accuracy" in run.metrics for run in runs):
            plot_seeds(runs, "eval_accuracy", ax=axes[1], label=f"{label}, sampled", index=1, by="iteration")
            axes[1].set_ylabel(PANELS[GREEDY])
        law = law_of(runs[0])
        if isinstance(law, LawFit):
            seed = f", seed {runs[0].config['seed']}" if len(runs) > 1 else ""
            plot_fit(law, ax=axes[3], label=f"{label}{seed}, R² {law.r_squared:.2f}", index=index)
            axes[3].set_ylabel("held-out accuracy R, sampled")
    axes[0].set_yscale("log")  # a control multiplies the entropy
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    axes[0].set_title(f"{question}: {'nothing' if question == KNOWN else 'products'} to be found", loc="left")
    for ax in axes:
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8)


def caption(table: pd.DataFrame, said: str) -> str:
    """The figure in a sentence, with the numbers of `summary_table` and what `verdict` said."""
    changes = []
    for name, column in table.to_dict().items():
        entropy, sampled, greedy = (column[label] for label in (MEANS["policy_entropy"], *ACCURACIES.values()))
        accuracy = f"held-out accuracy {sampled} sampled and {greedy} greedily"
        changes.append(f"{', '.join(name)}: entropy {entropy} nats/token, {accuracy}")
    return "; ".join(filter(None, [*changes, said])) + "."


def write_report(runs: Mapping[str, Run], about: str, out: Path) -> Path:
    """Writes figure.png and the interactive report.html, which says `about`, to the folder of the runs; returns the
    page's path."""
    with writing(out):
        demo_figure(runs).savefig(out / "figure.png")
    shown = {
        ", ".join([*ARMS[arm], *([f"seed {run.config['seed']}"] if len(members) > 1 else [])]): run
        for arm, members in by_arm(runs).items()
        for run in members
    }
    return write_page(shown, out / "report.html", title="Entropy with and without control", about=about)
