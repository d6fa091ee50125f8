"""Prints the README's tables of the recorded experiments, from data/runs/ and data/paper/ alone.

python data/experiments/report.py
"""

import pandas as pd

import erltool
from erltool import compare
from erltool.resources import shipped

CONTROLS = ("none", "clip-cov", "kl-cov", "random-clip")


def record(grid: str) -> tuple[dict[str, erltool.runs.Run], pd.DataFrame]:
    """Runs of a recorded grid, and their end values with each field of the control as a column of its own."""
    runs = erltool.read_runs(shipped(f"data/runs/{grid}"))
    fields = pd.DataFrame([r.config["control"] for r in runs.values()], index=list(runs))
    return runs, compare.end_values(runs).join(fields)


def headline() -> list[str]:
    """Controls over five seeds: entropy, held-out accuracy and pass@k, and differences paired by seed."""
    runs, table = record("headline")
    seeds = table.groupby("name").size()
    against = {b: compare.differences(table, "average", b, by="name") for b in ("none", "random-clip")}
    lines = [
        "| control | seeds | entropy, start to end | spent | avg | pass@8 | pass@32 | avg − none | avg − random-clip |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for name in CONTROLS:
        mean = table[table["name"] == name].drop(columns=["name", "setting", "failed"]).mean(numeric_only=True)
        cells = [
            f"`{name}`",
            f"{seeds[name]}",
            f"{mean['entropy_start']:.3f} to {mean['entropy_end']:.3f}",
            f"{mean['entropy_spent']:.0%}",
            *(f"{mean[k]:.3f}" for k in ("average", "pass@8", "pass@32")),
            *(_difference(against[b].get(name)) for b in against),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


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


if __name__ == "__main__":
    print("\n".join([*headline(), "", *figures()]))
