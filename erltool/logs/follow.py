"""A log that is still written, followed: each look reads only what the log gained.

The columns, the unit and the run are chosen as `read_log` chooses them, once. A further row is appended to the columns
as long as it changes none of these choices: it has a later step, no new metric that could have a role, no other run's
name, and values that fit the unit. Otherwise everything that was read is looked at again.
"""

import functools
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from erltool.errors import ErltoolError
from erltool.logs.columns import ROUNDING
from erltool.logs.folders import NotChosen, trainer_state
from erltool.logs.formats import CHUNK_ROWS, LARGE, MAX_COLUMNS, MAX_ROWS, STORES, compact, detect, size_of, table_of
from erltool.logs.metrics import RUN_NAME, has_role
from erltool.logs.numbers import number
from erltool.logs.read import Log, log_of
from erltool.logs.rows import SOURCE, Row
from erltool.logs.tails import RENEWED, Tail, tail_of
from erltool.logs.text import Counts
from erltool.text import shown

FOLLOWED = ("entropy", "performance", "reward", "response_length", "grad_norm")
NEED = ("step", "entropy")
SHARE = 0.004  # of a core, that choosing columns again may take


class Follower:
    """Follows a log, which need not be there yet: `look` reads what is new, and `log` and `series` hold all of it.

    `columns`, `kind`, `unit` and `run` are those of `read_log`. A log of several runs is asked about as by `read_log`;
    where another run begins while the log is followed, it is followed from there on.
    """

    def __init__(
        self, path: str | Path, *, columns: Mapping[str, str] | None = None, kind: str | None = None,
        unit: str | None = None, run: str | None = None,
    ):  # fmt: skip
        self.path = Path(path)
        self.log: Log | None = None
        self.waits = ""
        """Why there is no log yet, or nothing new of it; "" where there is."""
        self.total: int | None = None
        """Steps that the run will have, where it says so."""
        self.restarts = 0  # times that the series changed other than at its end
        self._asked, self._kind, self._unit, self._run = dict(columns or {}), kind, unit, run
        self._tail: Tail | None = None
        self._frames: list[pd.DataFrame] = []
        self._new: list[Row] = []
        self._count = 0
        self._step: list[float] = []
        self._columns: dict[str, list[float]] = {}
        self._names: dict[str, str] = {}
        self._known: set[str] = set()
        self._texts: dict[str, str] = {}
        self._stale = False  # whether everything has to be looked at again
        self._shut = False  # whether no row may be appended until then
        self._keep_all = True
        self._not_before = 0.0

    @property
    def series(self) -> dict[str, np.ndarray]:
        """By name, (n,) each, NaN where a step has no value: "step", the roles of FOLLOWED that the log has, and
        "iteration" of our own run."""
        return {"step": np.array(self._step)} | {role: np.array(v) for role, v in self._columns.items()}

    def look(self) -> bool:
        """Reads what is new; whether there was anything. Raises ErltoolError for several runs of which none is chosen,
        or a log that cannot become readable by growing."""
        if self._tail is None and time.monotonic() < self._not_before:
            return False
        began = time.process_time()
        try:
            news = self._read()
        except NotChosen:
            raise
        except (ErltoolError, OSError) as e:
            self.waits = shown(e, 200)
            self._pay(began)  # a console may be long before the first row
            return False
        if not self._stale or time.monotonic() < self._not_before:
            if news and not self._stale:
                self.waits = ""
            return news and self.log is not None and not self._shut
        began = time.process_time()
        self._choose()
        self._pay(began)
        return self.log is not None

    def _pay(self, began: float) -> None:
        self._not_before = time.monotonic() + (time.process_time() - began) / SHARE

    # --- reading --------------------------------------------------------------------------------------

    def _read(self) -> bool:
        if self._tail is None:
            if not self.path.exists():
                self.waits = f"{shown(self.path)}: not there yet"
                return False
            self._kind = self._kind or detect(self.path)
            large = size_of(self.path) > LARGE
            self._kept = functools.lru_cache(MAX_COLUMNS)(self._is_kept)  # it is asked for every value
            self._tail = tail_of(self.path, self._kind, self._run, self._kept if large else None)
            self._keep_all = not large
        news = False
        for row in self._tail.read():
            news = True
            if row is RENEWED:
                self._forget()
            elif self._count < MAX_ROWS:
                self._take(row)
        return news

    def _is_kept(self, name: str) -> bool:
        asked = {name.removeprefix("-") for name in self._asked.values()}
        return name in asked or name == SOURCE or has_role(name)

    def _forget(self) -> None:
        self._frames, self._new, self._count, self._stale, self._shut = [], [], 0, True, True

    def _take(self, row: Row) -> None:
        if not self._keep_all:
            row = {name: value for name, value in row.items() if self._kept(name)}
        self._new.append(row)
        self._count += 1
        if len(self._new) >= CHUNK_ROWS:
            self._pack()
        if not self._shut and not (self.log and self._append(row)):
            self._stale = self._shut = True

    def _pack(self) -> None:
        self._frames.append(compact(pd.DataFrame(self._new)))
        self._new = []

    # --- a row at the end -----------------------------------------------------------------------------

    def _append(self, row: Row) -> bool:
        """Appends a row to the series; whether it leaves every choice as it was."""
        log = self.log
        assert log is not None
        if log.runs:
            return False
        if new := [name for name in row if name not in self._known]:
            self._known.update(new)
            self._stale |= any(map(has_role, new))  # a metric that may be a better choice
        if any(row.get(name, value) != value for name, value in self._texts.items()):
            return False
        if any(name.startswith("-") for name in log.columns.values()) or log.percents:
            return False
        if any(isinstance(row.get(name), str) and self._number(row, name) is None for name in self._names.values()):
            return False  # a decimal comma, say
        step = self._number(row, log.columns["step"])
        values = {role: value for role, name in self._names.items() if (value := self._number(row, name)) is not None}
        if step is None:
            return not values
        if not self._fits(values) or (self._step and step < self._step[-1]):
            return False
        if not self._step or step > self._step[-1]:
            self._step.append(step)
            for column in self._columns.values():
                column.append(math.nan)
        for role, value in values.items():
            self._columns[role][-1] = value
        return True

    def _number(self, row: Row, name: str) -> float | None:
        value = row.get(name)
        if isinstance(value, str):
            value = number(value, counts_steps=True) if len(value) < 40 else None
        return value if value is not None and math.isfinite(value) else None

    def _fits(self, values: dict[str, float]) -> bool:
        """Whether values leave the unit and the choice of the entropy as they are."""
        assert self.log is not None
        performance, entropy = values.get("performance", 0.0), values.get("entropy", 0.0)
        top = {"fraction": 1.0, "percentage points": 100.0}.get(self.log.unit, math.inf)
        return entropy >= -ROUNDING and (self.log.unit_stated or top == math.inf or 0 <= performance <= top)

    # --- all rows again -------------------------------------------------------------------------------

    def _choose(self) -> None:
        self._pack()
        whole = pd.concat(self._frames, ignore_index=True) if self._frames else pd.DataFrame()
        self._frames = [whole]
        if whole.empty:
            return
        table = table_of(whole, Counts())
        try:
            log = self._log_of(table)
        except NotChosen:
            raise
        except ErltoolError as e:
            self.waits = shown(e, 200)
            return
        self.waits, self._stale, self._shut = "", False, False
        self._known = set(map(str, whole))
        self._texts = {name: str(values.dropna().iloc[-1]) for name, values in table.texts.items()
                       if (name == SOURCE or RUN_NAME.fullmatch(name)) and values.notna().any()}  # fmt: skip
        self._set(log)
        self.total = self._total(whole)

    def _log_of(self, table) -> Log:
        kind = self._kind or ""
        try:
            return log_of(self.path, kind, table, self._asked, self._unit, self._inner, {}, NEED)
        except NotChosen as e:
            if self.log is None or not e.names:
                raise
            # Another run began in the log: follow it, since the earlier one is over.
            return log_of(self.path, kind, table, self._asked, self._unit, e.names[-1], {}, NEED)

    @property
    def _inner(self) -> str | None:
        """The requested run inside the rows; of a store the tail has chosen it already."""
        return None if self._kind in STORES else self._run

    def _set(self, log: Log) -> None:
        step = log.metrics[log.columns["step"]].tolist()
        self._names = {role: log.columns[role] for role in FOLLOWED if role in log.columns}
        if self._kind == "erltool run" and "iteration" in log.metrics:
            self._names["iteration"] = "iteration"
        columns = {role: log.metrics[name].tolist() for role, name in self._names.items()}
        n = len(self._step)
        before = {"step": self._step} | self._columns
        now = {"step": step} | columns
        if any(not np.array_equal(now.get(role, [])[:n], values, equal_nan=True) for role, values in before.items()):
            self.restarts += 1
        self.log, self._step, self._columns = log, step, columns

    def _total(self, whole: pd.DataFrame) -> int | None:
        try:
            if self._kind == "erltool run":
                return int(json.loads((self.path / "config.json").read_text(encoding="utf-8"))["config"]["steps"])
            if self._kind == "TRL trainer_state":
                file = trainer_state(self.path) if self.path.is_dir() else self.path
                return int(json.loads((file or self.path).read_text(encoding="utf-8"))["max_steps"])
            if "global_step/max_steps" in whole:  # ms-swift: "1/438"
                return int(str(whole["global_step/max_steps"].dropna().iloc[-1]).split("/")[1])
        except (OSError, ValueError, LookupError, TypeError):
            pass
        return None
