"""The one writer of a run's folder: what may begin or go on in it, from which checkpoint, and what it writes.

Files are replaced whole (files.py), each step's lines are flushed, and the lines before a checkpoint are on the disk
before it. So a run that was killed at any moment goes on from its newest checkpoint.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from erltool.errors import ErltoolError
from erltool.files import LOCK, Hold, heal, new_name, reading, sync, write_whole, writing
from erltool.runs import checkpoints
from erltool.runs.checkpoints import ADAPTER, Checkpoint
from erltool.runs.folder import (
    EVALUATION,
    FORMAT,
    PROBE_COLUMNS,
    PROBES,
    TIMED,
    TOKEN_COLUMNS,
    TOKENS,
    read_config,
    read_lines,
    read_tokens,
    row_of,
    write_table,
)

_log = logging.getLogger(__name__)


def check_place(path: Path, config: dict, resume: bool) -> None:
    """Raises ErltoolError where a run of this configuration may not begin in the folder, or go on in it. Changes
    nothing, so that a run can check before it loads a large policy."""
    with reading(path):
        began = (path / "config.json").is_file()
        is_file = path.exists() and not path.is_dir()
        names = {p.name for p in path.iterdir()} if path.is_dir() else set()
    if is_file:
        raise ErltoolError(f"run {path}: is a file; choose another place")
    if began and not resume:
        raise ErltoolError(f"run {path}: already holds a run; resume it, or choose another folder")
    if not began and names - {LOCK, new_name(path / "config.json").name}:
        raise ErltoolError(f"run {path}: not empty and holds no run; choose another folder")
    if began:
        _check_same(path, config)


def _check_same(path: Path, config: dict) -> None:
    before = read_config(path)["config"]
    for field, value in config.items():
        # The user gives trust anew each time, and it changes no result.
        if field not in ("steps", "trust_remote_code") and before.get(field) != value:
            raise ErltoolError(
                f"run {path}: was made with {field}={before.get(field)!r}, not {value!r}; "
                "resume with the same configuration (only steps may differ), or choose another folder"
            )
    made = [row["step"] for row in read_lines(path / "metrics.jsonl")[0]]
    made += [checkpoint.step for checkpoint in checkpoints.checkpoints(path)]
    if made and max(made) > config["steps"]:
        raise ErltoolError(
            f"run {path}: has {max(made)} steps already, and steps={config['steps']} would take some back; give at "
            f"least {max(made)}, or choose another folder"
        )


class RunWriter:
    """The only writer of a run's folder, until `close`.

    To resume a run, ask for its `newest` checkpoint, then call `go_on` with it. With `beside` the folder is another
    tool's: other files may be there, the tool's own checkpoints say where the run goes on, and the text `beside` says
    how to resume. Raises ErltoolError, naming file and remedy, where the run cannot begin or go on.
    """

    def __init__(self, path: Path, document: dict, resume: bool, beside: str = ""):
        self.path = Path(path).absolute()  # a notebook may change its folder meanwhile
        self.document = {"format": FORMAT} | document
        self.tokens: list[pd.DataFrame] = []
        self.probes: list[pd.DataFrame] = []
        self._check_place(resume, beside)
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._hold = Hold(self.path)
        try:
            self._check_place(resume, beside)  # again, since another process may have begun meanwhile
            # Another tool's config.json may be a model's, so there the lines show whether a run has begun.
            if not (self.path / ("metrics.jsonl" if beside else "config.json")).is_file():
                self._write_document(self.document)
        except BaseException:
            self.close()
            raise

    def _check_place(self, resume: bool, beside: str) -> None:
        if not beside:
            check_place(self.path, self.document["config"], resume)
        elif not resume and (self.path / "metrics.jsonl").is_file():
            raise ErltoolError(f"run {self.path}: already holds a run; {beside}")

    def close(self) -> None:
        """Lets others write."""
        self._hold.release()

    def _write_document(self, document: dict) -> None:
        file = self.path / "config.json"
        with writing(file):
            write_whole(file, (json.dumps(document, indent=1) + "\n").encode())

    def write_config(self, config: dict) -> None:
        """Replaces the run's configuration: that of a steered run grows as it goes."""
        self._hold.check()
        self.document |= {"config": config}
        self._write_document(read_config(self.path) | {"config": config})

    # --- going on -----------------------------------------------------------------------------------

    def newest(self) -> tuple[Checkpoint, bytes] | None:
        """The newest whole checkpoint whose lines metrics.jsonl still has, with its state; None before the first one.
        Warns where that is not the last one. Raises ErltoolError where no checkpoint is left to go on from."""
        metrics, saved = self.path / "metrics.jsonl", self.path / "checkpoints"
        newest = checkpoints.newest_whole(self.path, metrics)
        last = max(checkpoints.checkpoint_steps(self.path), default=None)
        if newest and newest[0].step == last:
            return newest
        whole = checkpoints.newest_whole(self.path)
        if whole and newest:
            why = f"{saved}: the one of step {last} is damaged"
            if whole[0].step > newest[0].step:
                why = f"{metrics}: ends before step {whole[0].step}, of which a checkpoint is there"
            _log.warning("%s; the run goes on from step %d", why, newest[0].step)
            return newest
        if whole:
            raise ErltoolError(
                f"{metrics}: shorter than when the checkpoint of step {whole[0].step} was written, or of another run; "
                "restore it, or start another run"
            )
        if last is not None:
            raise ErltoolError(
                f"{saved}: the one of step {last} is damaged, and no older checkpoint is whole; delete {self.path} to "
                "start over, or choose another folder"
            )
        self._check_never_saved()
        return None

    def _check_never_saved(self) -> None:
        """Raises ErltoolError where starting anew would lose lines of steps that a checkpoint should have kept."""
        config, (rows, _) = self.document["config"], read_lines(self.path / "metrics.jsonl")
        first = config.get("checkpoint_every", 1) * config.get("updates_per_iteration", 1)
        if checkpoints.was_ever_saved(self.path) or (rows and rows[-1]["step"] > first):
            raise ErltoolError(
                f"run {self.path}: its checkpoints are gone, so it cannot go on; restore them, or start another run in "
                "another folder"
            )

    def go_on(self, checkpoint: Checkpoint | None) -> None:
        """Takes the folder, but for adapter/, back to the checkpoint, or to before the first step.

        After a kill in here, the same checkpoint is the newest again.
        """
        step = checkpoint.step if checkpoint else 0
        with writing(self.path):
            self.cut(step)
            checkpoints.forget(self.path, step)
            heal(self.path / ADAPTER)
            if step < self.document["config"]["steps"]:
                (self.path / EVALUATION).unlink(missing_ok=True)  # its policy is no longer the last one

    def cut(self, step: int) -> None:
        """Removes what was written after a step, a torn line too, and notes in config.json who goes on."""
        with writing(self.path):
            # Tokens first, so that every step with tokens has a line.
            self.tokens = self._cut_table(self.path / TOKENS, TOKEN_COLUMNS, step)
            self.probes = self._cut_table(self.path / PROBES, PROBE_COLUMNS, step)
            for name in ("timings.jsonl", "metrics.jsonl"):
                self._cut_lines(self.path / name, step)
            before = read_config(self.path)
            if (document := continued(before, self.document, step)) != before:
                self._write_document(document)

    def _cut_lines(self, file: Path, step: int) -> None:
        if file.is_file():
            lines = file.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith(b"\n") and (row := row_of(line)) and row["step"] <= step]
            if kept != lines:
                write_whole(file, b"".join(kept))

    def _cut_table(self, file: Path, columns: Sequence[str], step: int) -> list[pd.DataFrame]:
        """Removes the rows after a step from a table of tokens; returns what is left of it."""
        if not file.is_file():
            return []
        tokens = read_tokens(file, columns)
        kept = tokens[tokens["step"] <= step]
        if not len(kept):
            file.unlink()
            return []
        if len(kept) < len(tokens):
            write_table(file, [kept])
        return [kept]

    # --- as the run goes ----------------------------------------------------------------------------

    def write_step(self, metrics: dict) -> None:
        """Appends a step to metrics.jsonl and timings.jsonl."""
        self._hold.check()
        timed = {k: v for k, v in metrics.items() if k in ("step", *TIMED)}
        self._append("metrics.jsonl", {k: v for k, v in metrics.items() if k not in TIMED})
        self._append("timings.jsonl", timed)

    def _append(self, name: str, row: dict) -> None:
        file = self.path / name
        with writing(file), open(file, "a", encoding="utf-8") as f:
            f.write(json.dumps(row, allow_nan=False) + "\n")

    def amend_last(self, metrics: dict) -> bool:
        """Adds metrics to the last step's line. Returns whether there is one."""
        file = self.path / "metrics.jsonl"
        rows, _ = read_lines(file)
        if rows:
            with writing(file):
                write_whole(file, "".join(json.dumps(row) + "\n" for row in [*rows[:-1], rows[-1] | metrics]).encode())
        return bool(rows)

    def write_tokens(self) -> None:
        """Writes the tokens and probes recorded so far."""
        for name, tables in ((TOKENS, self.tokens), (PROBES, self.probes)):
            if tables:
                with writing(self.path / name):
                    write_table(self.path / name, tables)

    def sync(self) -> None:
        """Flushes the lines to the disk, so that a power cut leaves all lines that a checkpoint needs."""
        for file in (self.path / "metrics.jsonl", self.path / "timings.jsonl"):
            if file.is_file():
                with writing(file):
                    sync(file)

    def checkpoint(self, step: int, state: bytes, save_policy: Callable[[Path], None]) -> None:
        """Writes tokens, checkpoint and adapter/, in this order, each whole or not at all."""
        self._hold.check()
        with writing(self.path):
            self.sync()
            self.write_tokens()
            checkpoints.write_checkpoint(self.path, step, state, (self.path / "metrics.jsonl").stat().st_size)
            checkpoints.write_adapter(self.path, step, save_policy)
            checkpoints.forget(self.path, step)

    def mend_adapter(self, step: int, save_policy: Callable[[Path], None]) -> None:
        """Writes adapter/ again unless it has the mark of this step."""
        if checkpoints.adapter_step(self.path) != step:
            with writing(self.path / ADAPTER):
                checkpoints.write_adapter(self.path, step, save_policy)


def continued(before: dict, document: dict, step: int) -> dict:
    """config.json of a run that goes on after `step`, with its new number of steps and changed versions or settings."""
    if not step:
        return document
    steps = document["config"]["steps"]
    past = [entry for entry in before["continued_by"] if entry["step"] < step]
    maker, config = before["made_by"], before["config"]
    for entry in past:
        maker = {name: value for name, value in entry.items() if name not in ("step", "config")}
        config = config | entry.get("config", {})
    changed = {k: v for k, v in document["config"].items() if k != "steps" and config.get(k) != v}
    if step < steps and (changed or maker != document["made_by"]):
        past.append({"step": step} | document["made_by"] | ({"config": changed} if changed else {}))
    return before | {"format": FORMAT, "config": before["config"] | {"steps": steps}, "continued_by": past}
