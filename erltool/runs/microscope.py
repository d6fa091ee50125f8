"""What the microscope measured: the price of sparing tokens, by criterion and dose. training/microscope.py measures."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from erltool.errors import ErltoolError
from erltool.runs.folder import read_table, write_table
from erltool.text import shown

NONE = "none"  # the whole update
BASELINE = "random for "  # and a control's name: the random selection that it is compared with
BLOCKS = 5  # of fresh batches, among which the bootstrap draws
COLUMNS = {
    "at": ("in [0, 1]", "fraction of the run's entropy that was spent at this policy"),
    "run_step": ("count", "optimiser updates before this policy"),
    "batch": ("count", "number of the batch, from 0"),
    "criterion": ("text", "what decides which tokens are silenced, or a control; none for the whole update"),
    "share": ("in [0, 1]", "share of the dose that should be silenced; 0 for a control"),
    "dose": ("at most 1", "share of the dose that was silenced; below 0 where a control added some"),
    "tokens": ("in [0, 1]", "fraction of response tokens that were silenced, or that the control selected"),
    "rare_wrong": ("in [0, 1]", "fraction of the silenced tokens with log-prob and advantage below the mean"),
    "rare_right": ("in [0, 1]", "the same of tokens with log-prob below and advantage above the mean"),
    "likely_wrong": ("in [0, 1]", "the same of tokens with log-prob above and advantage below the mean"),
    "likely_right": ("in [0, 1]", "the same of tokens with log-prob and advantage above the mean"),
    "entropy_change": ("nats/token", "exact change of the entropy on the batch's own fresh responses"),
    "reward_change": ("in [-1, 1]", "change of the expected reward there, by importance weights"),
    "sampled_reward": ("in [0, 1]", "mean reward of new responses after the step"),
    "sampled_entropy": ("nats/token", "their mean entropy"),
    "push_correlation": ("1", "over the update's contexts: measured change of entropy against the summed push"),
    "covariance_correlation": ("1", "the same against minus the summed covariance"),
} | {
    f"{what}_{block}": (unit, f"first-order change of the {what} on block {block} of all fresh responses")
    for what, unit in (("entropy", "nats/token"), ("reward", "in [-1, 1]"))
    for block in range(BLOCKS)
}  # fmt: skip
"""Units and meanings. NaN is what was not measured, or a fraction of no tokens."""
EXACT = ("at", "share")  # columns that a reader compares with numbers
QUADRANTS = ("rare_wrong", "rare_right", "likely_wrong", "likely_right")


def quadrants(log_probs: np.ndarray, advantages: np.ndarray) -> np.ndarray:
    """The one of QUADRANTS of each of an update's tokens, (N,) text: log-prob below the mean is rare, advantage below
    the mean is wrong."""
    sides = (value >= value.mean() if len(value) else value.astype(bool) for value in (log_probs, advantages))
    likely, right = (side.astype(int) for side in sides)
    return np.array(QUADRANTS)[2 * likely + right]


class Correlations(NamedTuple):
    """Mean correlations with the measured change of entropy over a batch's contexts, each with its interval."""

    push: tuple[float, float, float]
    covariance: tuple[float, float, float]
    difference: tuple[float, float, float]
    """push minus covariance, paired by batch"""


@dataclass(frozen=True)
class Microscope:
    """The steps of all batches at one policy: one row a batch and case, columns as in COLUMNS."""

    rows: pd.DataFrame

    @property
    def cases(self) -> pd.DataFrame:
        """`criterion` and `share` of each case, in order; the whole update comes first."""
        return self.rows.loc[self.rows["batch"] == 0, ["criterion", "share"]].reset_index(drop=True)

    def changes(self, what: str) -> np.ndarray:
        """(cases, batches, blocks) first-order changes of "entropy" or "reward"."""
        columns = [f"{what}_{block}" for block in range(BLOCKS)]
        values = self.rows[columns].to_numpy(float)
        return values.reshape(self.rows["batch"].nunique(), -1, BLOCKS).transpose(1, 0, 2)

    def prices(self, level: float = 0.95, draws: int = 2000) -> pd.DataFrame:
        """What each case but the first saves and costs; one row a case.

        `saved`: entropy saved, nats/token an update. `lost`: reward lost, as a fraction of the whole update's change;
        NaN where that is not above 0. `yield`: saved over lost, nats for a whole update's progress; NaN where `lost`
        may be 0. `saved_more` and `lost_more`: minus those of the criterion "random" at the same share, of a control
        minus those of its own baseline, or NaN without one. `x_low` and `x_high` bound each: percentiles of a bootstrap
        over batches and, independently, over blocks of fresh responses. `dose`, `tokens` and QUADRANTS as in COLUMNS,
        means over batches.
        """
        changes = [self.changes(what) for what in ("entropy", "reward")]
        rng, (_, batches, blocks) = np.random.default_rng(0), changes[0].shape
        of_batch, of_block = (rng.multinomial(n, np.full(n, 1 / n), draws) / n for n in (batches, blocks))
        drawn = [np.einsum("db,cbk,dk->cd", of_batch, x, of_block, optimize=True) for x in changes]
        means, spread = (self._effects(*values) for values in ([x.mean((1, 2))[:, None] for x in changes], drawn))
        table = self.cases
        tails = (1 - level) / 2, (1 + level) / 2
        free = (spread["lost"] <= 0).mean(1) > tails[0]
        for name, values in spread.items():
            low, high = np.quantile(values, tails, axis=1)
            columns = {name: means[name][:, 0], f"{name}_low": low, f"{name}_high": high}
            table = table.assign(**{k: np.where(free, np.nan, v) if name == "yield" else v for k, v in columns.items()})
        of_case = self.rows.groupby(["criterion", "share"], sort=False)[["dose", "tokens", *QUADRANTS]].mean()
        return table.join(of_case.reset_index(drop=True)).iloc[1:].reset_index(drop=True)

    def _effects(self, entropy: np.ndarray, reward: np.ndarray) -> dict[str, np.ndarray]:
        """The columns of `prices`, (cases, draws) each, from the changes (cases, draws)."""
        cases = self.cases
        place = {(row.criterion, row.share): number for number, row in enumerate(cases.itertuples())}
        random = np.array([
            place.get((BASELINE + row.criterion, row.share), place.get(("random", row.share), -1))
            for row in cases.itertuples()
        ])  # fmt: skip
        whole = np.where(reward[:1] > 0, reward[:1], np.nan)
        saved, lost = entropy - entropy[:1], (whole - reward) / whole
        with np.errstate(divide="ignore", invalid="ignore"):
            found = {"saved": saved, "lost": lost, "yield": saved / lost}
        for name in ("saved", "lost"):
            found[f"{name}_more"] = np.where((random < 0)[:, None], np.nan, found[name] - found[name][random])
        return found

    def whole(self) -> tuple[float, float]:
        """First-order change of entropy, nats/token, and of the expected reward by the whole update."""
        return float(self.changes("entropy")[0].mean()), float(self.changes("reward")[0].mean())

    def correlations(self, level: float = 0.95, draws: int = 2000) -> Correlations:
        """Means over batches, with a percentile bootstrap over batches."""
        whole = self.rows[self.rows["criterion"] == NONE]
        push, covariance = (whole[f"{name}_correlation"].to_numpy(float) for name in ("push", "covariance"))
        known = np.isfinite(push) & np.isfinite(covariance)
        push, covariance = push[known], covariance[known]
        if not len(push):
            raise ErltoolError("microscope: no batch has contexts whose entropy changed differently")
        picked = np.random.default_rng(0).integers(len(push), size=(draws, len(push)))

        def bounded(x: np.ndarray) -> tuple[float, float, float]:
            low, high = np.quantile(x[picked].mean(1), [(1 - level) / 2, (1 + level) / 2])
            return float(x.mean()), float(low), float(high)

        return Correlations(bounded(push), bounded(covariance), bounded(push - covariance))


def write_microscope(points: list[Microscope], file: str | Path) -> None:
    """Writes the measurements at several policies to one Parquet file, with four significant digits."""
    tables = []
    for point in points:
        floats = [name for name in point.rows.select_dtypes("floating") if name not in EXACT]
        tables.append(point.rows.assign(**{name: _short(point.rows[name]) for name in floats}))
    write_table(Path(file), tables)


def _short(column: pd.Series) -> pd.Series:
    """Floats of 32 bits whose last 11 are 0, which take half the room when compressed."""
    bits = column.to_numpy(np.float32).view(np.uint32)
    known = np.isfinite(column.to_numpy(float))
    rounded = np.where(known, (bits + np.uint32(1 << 10)) & np.uint32(0xFFFFF800), bits)
    return pd.Series(rounded.astype(np.uint32).view(np.float32), index=column.index)


def read_microscope(file: str | Path) -> list[Microscope]:
    """The measurements that `write_microscope` wrote, in order. Raises ErltoolError where the file holds none."""
    rows = read_table(Path(file))
    if missing := [name for name in COLUMNS if name not in rows]:
        raise ErltoolError(f"{file}: no microscope's file: it lacks {missing[0]}")
    return [Microscope(of_policy.reset_index(drop=True)) for _, of_policy in rows.groupby("run_step", sort=True)]


def summary(point: Microscope, share: float = 0.2) -> str:
    """The prices of one policy as text of at most 79 columns: of its controls, or of its criteria for the share of the
    dose that is nearest to `share`."""
    table, (entropy, reward), first = point.prices(), point.whole(), point.rows.iloc[0]
    nearest = table["share"].iloc[(table["share"] - share).abs().argmin()]
    spent = "" if np.isnan(first["at"]) else f", {first['at']:.0%} of the entropy spent"
    doses = f"Without {nearest:.0%} of its dose" if nearest else "With a control"
    than = "random" if nearest else "its random baseline"
    lines = [
        f"Policy after update {first['run_step']:.0f}{spent}; {point.rows['batch'].nunique()} updates examined.",
        f"An update changes the entropy by {1000 * entropy:+.2f} mnats/token and the reward by {reward:+.4f}.",
        f"{doses} (95 % intervals; * differs from {than}):",
        "",
        f"{'criterion' if nearest else 'control':25}{'entropy saved, mnats':>24}{'reward lost':>23}{'tokens':>7}",
    ]
    priced = (table["share"] == nearest) & ~table["criterion"].str.startswith(BASELINE)
    lines += [_line(row) for _, row in table[priced].sort_values("saved", ascending=False).iterrows()]
    if point.rows["push_correlation"].notna().any():
        push, covariance, difference = point.correlations()
        lines += [
            "",
            f"Measured change of a context's entropy: correlation {push[0]:.2f} with the push, {covariance[0]:.2f}",
            f"with the covariance; difference {difference[0]:+.2f} ({difference[1]:+.2f} to {difference[2]:+.2f}).",
        ]
    return "\n".join(lines)


def _line(price: pd.Series) -> str:
    """A row of `prices` as a line of a summary."""
    cells = []
    for name, scale, form, unit in (("saved", 1000, "+.2f", ""), ("lost", 100, "+.0f", " %")):
        value, low, high = (format(scale * price[f"{name}{end}"], form) for end in ("", "_low", "_high"))
        apart = price[f"{name}_more_low"] > 0 or price[f"{name}_more_high"] < 0
        bounds = f"({low} to {high})" if np.isfinite(price[f"{name}_low"]) else "(no bounds)"
        cells.append(f"{value}{unit} {bounds}{'*' if apart else ' '}")
    return f"{shown(price['criterion'], 24):25}{cells[0]:>24}{cells[1]:>23}{price['tokens']:>7.1%}"
