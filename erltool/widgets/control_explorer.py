"""ControlExplorer: the map of where a control pays, and the recorded runs behind a cell, or behind two side by side."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import traitlets
from matplotlib.figure import Figure

from erltool.errors import ErltoolError
from erltool.resources import shipped
from erltool.runs.compare import end_values
from erltool.tables import Table
from erltool.tasks.chain import REGIMES
from erltool.text import visible
from erltool.widgets.control_grid import (
    END,
    GREEDY,
    NONE,
    POINTS,
    Group,
    accuracy_column,
    axis_label,
    baselines,
    binned,
    comparable,
    ends_of,
    grouped,
    label_of,
    line_of,
    map_of,
    middles,
    opened,
    parts_of,
    plain,
    quantile_of,
    style_of,
)
from erltool.widgets.control_picture import draw_picture
from erltool.widgets.view import CHOSEN, View, javascript, message

__all__ = ["END", "POINTS", "SHOWN", "ControlExplorer", "ControlExplorerResult", "axis_label", "binned", "label_of",
           "middles", "opened", "parts_of"]  # fmt: skip

SHOWN = ("policy_entropy", "eval_accuracy", "response_length", "mean_covariance")
FIRST = ("clip-cov", "kl-cov")  # before other controls, where a map of one setting opens
CELLS = 2  # on show at a time
MEASURES = {True: "greedy accuracy at the end", False: "late held-out accuracy"}


@dataclass(frozen=True)
class ControlExplorerResult:
    """What is on show."""

    end: pd.DataFrame
    """One row a run: `run`, `control`, `seed`, then the columns of compare.end_values"""
    curves: pd.DataFrame
    """One row a run and recorded step: `run`, `control`, `seed`, `step` and the metrics of SHOWN"""


class ControlExplorer(View):
    """`ControlExplorer(runs)`: the map of control by regime, and the runs of a cell; `.result` is what is on show.

    `runs` are `Run`s, runs' folders, or folders that hold runs (runs.read_runs), one or several; without them the
    recorded grids of the three regimes. A cell of the map has the difference of accuracy to the runs without control,
    paired by seed with its 95 % interval, and the entropy held: the ratio of the entropies at the end. The accuracy is
    greedy at the end, or the late held-out one where not every run has that. Of a cell, or of two side by side, the
    view shows the runs beside those without control and the random baseline: a thin line a run, a thick one the mean
    over seeds where all have a value, and its 95 % interval. Beyond POINTS steps a point is the mean of several. Runs
    that differ in another field of TrainConfig (policy, task, learning_rate, ...) are in different settings, the
    columns of the map. The widget shows what cannot be compared as `problem`.
    """

    _esm = javascript("control_explorer.js")
    data = traitlets.Dict().tag(sync=True)
    cells = traitlets.List(traitlets.Int()).tag(**CHOSEN)
    """Positions in `groups` of the one or two on show."""
    metrics = traitlets.List(traitlets.Enum(SHOWN)).tag(**CHOSEN)

    def __init__(self, runs=None, *, metrics: Iterable[str] = SHOWN[:2]):
        try:
            given = [shipped(f"data/runs/{name}") for name in REGIMES] if runs is None else runs
            self._runs, problem = comparable(given)
        except ErltoolError as e:
            self._runs, problem = [], f"ControlExplorer: {e}"
        self.groups, settings = grouped(self._runs)
        self._end = end_values({str(i): run for i, run in enumerate(self._runs)}).reset_index(drop=True)
        self._last = float(max((r.metrics["step"].max() for r in self._runs), default=0))
        self._binned = {m: np.array([line_of(r, m, self._last) for r in self._runs], np.float32) for m in SHOWN}
        super().__init__(problem=visible(problem), data=self._data(settings), metrics=list(metrics))
        self.cells = []

    def choose(
        self, control: str, /, *, setting: int | str | None = None, beside: bool = False, **parameters
    ) -> "ControlExplorer":
        """Puts the cell of a control with these parameters on show, `beside` that on show or in its place.

        `setting` is a column of the map, its position or its text in `data["settings"]`; without it that on show. The
        control's other parameters change as little as possible. Raises ErltoolError for a setting that is not there,
        and for a control, or parameters, that were not recorded together in it.
        """
        at = self._setting(setting)
        here = [i for i, g in enumerate(self.groups) if (g.control, g.setting) == (control, at)]
        wanted = {k: plain(v) for k, v in parameters.items()}
        fits = [i for i in here if wanted.items() <= self.groups[i].parameters.items()]
        if not fits:
            known = dict.fromkeys(g.control for g in self.groups if g.setting == at)
            labels = [self.groups[i].label for i in here] or list(known)
            asked = ", ".join([control, *(f"{k}={v}" for k, v in parameters.items())])
            raise ErltoolError(f"ControlExplorer: {asked} was not recorded here; there are {'; '.join(labels)}")
        now = next((c for c in self.cells if c in here), None)
        self.cells = [*(c for c in self.cells if beside and c != now), self._nearest(fits, now)]
        return self

    def _setting(self, asked: int | str | None) -> int:
        texts = self.data["settings"]
        if asked is None:
            return self.groups[self.cells[0]].setting if self.cells else 0
        if asked in texts:
            return texts.index(asked)
        if type(asked) is int and 0 <= asked < len(texts):
            return asked
        raise ErltoolError(f"ControlExplorer: no setting {asked!r}; there are {'; '.join(texts)}")

    def _nearest(self, candidates: list[int], at: int | None) -> int:
        """The candidate that differs from group `at` in the fewest parameters; without it, the one with the most
        runs."""
        if at is None:
            return max(candidates, key=lambda i: (len(self.groups[i].runs), -i))
        now = self.groups[at].parameters
        return min(candidates, key=lambda i: sum(now.get(k) != v for k, v in self.groups[i].parameters.items()))

    @traitlets.validate("cells")
    def _known(self, proposal) -> list[int]:
        """The last CELLS of those that exist; without one, the first controls of FIRST in the first setting."""
        asked = list(dict.fromkeys(i for i in proposal.value if 0 <= i < len(self.groups)))[-CELLS:]
        return asked or self._first()

    def _first(self) -> list[int]:
        """The cells on show at first: where a control does best and worst, over several settings; else two controls."""
        columns = self.data["map"]["settings"]
        acting = [i for i, g in enumerate(self.groups) if g.setting in columns and not self._is_baseline(g.control)]
        d = {i: v for i in acting if (v := self.data["groups"][i]["end"]["difference"]) and v[1] is not None}
        if len(columns) > 1 and d:
            best = max(d, key=lambda i: d[i][1])
            others = [i for i in d if i != best]
            same = [i for i in others if self.groups[i].control == self.groups[best].control]
            return [best, *sorted(same or others, key=lambda i: d[i][0])[:1]]
        here = [i for i in acting if self.groups[i].setting == columns[0]] if columns else []
        named = list(dict.fromkeys(self.groups[i].control for i in here))
        wanted = sorted(named, key=lambda c: FIRST.index(c) if c in FIRST else len(FIRST))[:CELLS]
        first = [self._nearest([i for i in here if self.groups[i].control == c], None) for c in wanted]
        return first or list(range(len(self.groups)))[:1]

    def _is_baseline(self, control: str) -> bool:
        return style_of(control, self.data["controls"])[0] is None

    def _data(self, settings: list[str]) -> dict:
        controls = list(dict.fromkeys(g.control for g in self.groups))
        rows, columns = map_of(self.groups)
        self._accuracy = accuracy_column(self._end)
        known = [c for c in ("seed", *END, self._accuracy) if c in self._end]
        self._ends = {c: self._end[c].to_numpy(float) for c in known}
        return {
            "controls": controls,
            "styles": {c: dict(zip(("colour", "dash"), style_of(c, controls), strict=True)) for c in controls},
            "settings": settings,
            "map": {"controls": rows, "settings": columns, "accuracy": MEASURES[self._accuracy == GREEDY]},
            "groups": [self._group_data(i) for i in range(len(self.groups))],
            "metrics": {m: axis_label(m) for m in SHOWN},
            "steps": middles(self._last).astype(np.float32).tobytes(),
            "last": self._last,
            "curves": {m: self._binned[m].tobytes() for m in SHOWN},
        }  # fmt: skip

    def _group_data(self, at: int) -> dict:
        group, (none, baseline) = self.groups[at], baselines(self.groups, at)
        return {
            "control": group.control, "parameters": group.parameters, "setting": group.setting,
            "runs": list(group.runs), "label": group.label, "none": none, "baseline": baseline,
            "quantile": quantile_of(group), "last": max(float(self._runs[i].metrics["step"].max()) for i in group.runs),
            "end": ends_of(self._ends, group, None if none is None else self.groups[none], self._accuracy),
            "failed": int((self._end["failed"].iloc[[*group.runs]] != "").sum()),
        }  # fmt: skip

    def around(self, cell: int) -> list[int]:
        """Positions of the groups that the view shows for a cell: without control, at random, and its own."""
        own = self.data["groups"][cell]
        return list(dict.fromkeys(i for i in (own["none"], own["baseline"], cell) if i is not None))

    @property
    def shown(self) -> list[Group]:
        """The groups on show: of each cell those without control, at random, and its own."""
        return [self.groups[i] for i in self._shown]

    @property
    def _shown(self) -> list[int]:
        return list(dict.fromkeys(i for cell in self.cells for i in self.around(cell)))

    @property
    def result(self) -> ControlExplorerResult:
        """The end values and curves of the runs on show, as they were recorded."""
        end, curves = [], []
        for group in self.shown:
            for i in group.runs:
                run = self._runs[i]
                names = {"run": run.name, "control": group.label, "seed": run.config["seed"]}
                end.append(names | self._end.loc[i].to_dict())
                curves.append(run.metrics.reindex(columns=["step", *SHOWN]).assign(**names))
        order = ["run", "control", "seed", "step", *SHOWN]
        return ControlExplorerResult(
            Table(end), Table(pd.concat(curves, ignore_index=True)[order] if curves else pd.DataFrame(columns=order))
        )

    @property
    def sentence(self) -> str:
        if not self.groups:
            return self.problem
        texts = []
        for cell in self._shown:
            data = self.data["groups"][cell]
            ends, n = data["end"], len(data["runs"])
            entropy, accuracy = (
                f"{v[0]:.3f}" if v else "not measured" for v in (ends["entropy_end"], ends["accuracy"])
            )
            texts.append(f"{self.name_of(cell)}, {n} seed{'s' * (n > 1)}: {entropy} and {accuracy}{_against(ends)}")
        return f"Entropy at the end (nats/token) and {self.data['map']['accuracy']}: {'; '.join(texts)}."

    def name_of(self, cell: int) -> str:
        """A group's label, and its setting where the map has several or not this one."""
        group, columns = self.groups[cell], self.data["map"]["settings"]
        alone = columns == [group.setting]
        return group.label if alone else f"{group.label} in {self.data['settings'][group.setting]}"

    def picture(self) -> Figure:
        """The map, and below it the chosen metrics of each cell on show."""
        if not self.groups or not self.metrics:
            return message(self.problem or "no metric is chosen")
        return draw_picture(self.data, self._binned, self.cells, self.metrics, {c: self.around(c) for c in self.cells})


def _against(ends: dict) -> str:
    d = ends["difference"]
    if not d:
        return ""
    return f" ({d[0]:+.3f} against {NONE}" + (f", {d[1]:+.3f} to {d[2]:+.3f})" if d[1] is not None else ")")
