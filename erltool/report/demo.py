"""The configurations of `erltool demo`, and its table, figure and page of two runs with their fitted laws."""

import dataclasses
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from erltool.controls.base import NoControl
from erltool.controls.paper import ClipCov
from erltool.errors import ErltoolError
from erltool.files import writing
from erltool.law.fit import LawFit, fit_law
from erltool.plots import new_axes, plot_fit, plot_run
from erltool.report.page import write_page
from erltool.runs.compare import EDGE
from erltool.runs.folder import Run
from erltool.training.config import TrainConfig
from erltool.widgets.points import points_of

LABELS = {"none": "no control", "clip-cov": "Clip-Cov"}


def demo_configs(iterations: int, seed: int) -> dict[str, TrainConfig]:
    """The demo's two runs of the shipped policy `sharpening`, by name: GRPO without control, and with Clip-Cov."""
    none = TrainConfig(
        task="chain:sharpening", policy="sharpening", lora_rank=0, learning_rate=3e-4, steps=4 * iterations,
        updates_per_iteration=4, max_response_tokens=28, eval_every=2, eval_prompts=500, eval_samples=1,
        eval_temperature=0.0, seed=seed, control=NoControl(),
    )  # fmt: skip
    return {"none": none, "clip-cov": dataclasses.replace(none, control=ClipCov(fraction=0.02, low=0.5, high=50.0))}


def law_of(run: Run) -> LawFit | str:
    """The law fitted to a run's held-out accuracies and the mean entropy before each, or why there is none."""
    try:
        points = points_of(run, "eval_accuracy")
        return fit_law(points.entropy, points.performance, unit=points.unit, entropy_average=points.entropy_average)
    except ErltoolError as e:
        return str(e)


def summary_table(runs: dict[str, Run]) -> pd.DataFrame:
    """A row for each measured quantity and a column for each run; numbers are texts."""
    return pd.DataFrame({LABELS.get(name, name): _column(run) for name, run in runs.items()})


def _column(run: Run) -> dict[str, str]:
    edge = EDGE * run.config["updates_per_iteration"]
    first, last = run.metrics.head(edge), run.metrics.tail(edge)
    evaluated, law = run.evaluated(), law_of(run)
    ceiling, r_squared = "not fitted", "-"
    if isinstance(law, LawFit):
        low, high = law.interval()["ceiling"]
        ceiling, r_squared = f"{law.ceiling:.2f} [{low:.2f}, {high:.2f}]", f"{law.r_squared:.3f}"
    column = {
        "entropy at start (nats/token)": f"{first['policy_entropy'].mean():.3f}",
        "entropy at end": f"{last['policy_entropy'].mean():.3f}",
    }
    for metric, label in ACCURACIES.items():
        if metric in evaluated:
            column[f"{label} at start"] = f"{evaluated[metric].iloc[0]:.3f}"
            column[f"{label} at end"] = f"{evaluated[metric].iloc[-1]:.3f}"
    for metric, label, unit in SHOWN:
        if metric in run.metrics:
            column[f"{label} at start{unit}"] = f"{first[metric].mean():.3g}"
            column[f"{label} at end"] = f"{last[metric].mean():.3g}"
    return column | {"ceiling b - a [95 %]": ceiling, "R² of the law": r_squared}


ACCURACIES = {"eval_accuracy": "held-out accuracy, sampled", "eval_accuracy_tempered": "held-out accuracy, greedy"}
SHOWN = (
    ("thinking_fraction", "worked step by step", " (share)"),
    ("response_length", "response length", " (tokens)"),
    ("mean_covariance", "mean covariance", " (nats)"),
)


def demo_figure(runs: dict[str, Run]) -> Figure:
    """Entropy, accuracy and the share that works step by step, over steps; accuracy against entropy with the law."""
    axes = new_axes(4, width=3.6)
    for index, (name, run) in enumerate(runs.items()):
        label = LABELS.get(name, name)
        plot_run(run, "policy_entropy", ax=axes[0], label=label, index=index)
        plot_run(run, "eval_accuracy", ax=axes[1], label=f"{label}, sampled", index=index)
        if "eval_accuracy_tempered" in run.metrics:
            plot_run(run, "eval_accuracy_tempered", ax=axes[1], label=f"{label}, greedy", index=index)
            axes[1].get_lines()[-1].set(linestyle="--", marker="")
        if "thinking_fraction" in run.metrics:
            plot_run(run, "thinking_fraction", ax=axes[2], label=label, index=index)
        law = law_of(run)
        if isinstance(law, LawFit):
            plot_fit(law, ax=axes[3], label=f"{label}, R² {law.r_squared:.2f}", index=index)
    axes[0].set_yscale("log")  # a control multiplies the entropy
    axes[1].set_ylabel("held-out accuracy")
    axes[2].set_ylabel("share that works step by step")
    axes[3].set_ylabel("held-out accuracy R, sampled")
    for ax in axes:
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8)
    return axes[0].figure


def caption(runs: dict[str, Run]) -> str:
    """The figure in a sentence, with its numbers."""
    run = next(iter(runs.values()))
    table = summary_table(runs)
    changes = []
    for name, c in table.items():
        change = f"{name}: entropy {c['entropy at start (nats/token)']} to {c['entropy at end']} nats/token"
        for label in ACCURACIES.values():
            if f"{label} at start" in c:
                change += f", {label} {c[f'{label} at start']} to {c[f'{label} at end']}"
        changes.append(change)
    return (
        f"Policy {run.config['policy']} on {run.config['task']}, {len(run.metrics)} optimiser steps, "
        f"seed {run.config['seed']}. {'; '.join(changes)}."
    )


def write_report(runs: dict[str, Run], out: Path) -> Path:
    """Writes figure.png and the interactive report.html to the folder of the runs; returns the page's path."""
    with writing(out):
        demo_figure(runs).savefig(out / "figure.png")
    shown = {LABELS.get(name, name): run for name, run in runs.items()}
    return write_page(shown, out / "report.html", title="Entropy with and without control", about=caption(runs))
