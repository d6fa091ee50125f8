"""The files of a run in TRL's output folder."""

import json
import logging
import math
from pathlib import Path

import pandas as pd

from erltool.errors import ErltoolError
from erltool.files import Hold, sync, write_whole, writing
from erltool.runs.alarms import Watch
from erltool.runs.folder import FORMAT, read_config, read_lines, read_tokens, write_table
from erltool.runs.writer import continued

logger = logging.getLogger(__name__)


class Folder:
    """The run's files in TRL's output folder; written by the main process only, and by one at a time."""

    def __init__(self, path: Path, every: float = 1):
        self.path, self.watch = path, Watch()
        self.every = every  # steps from one row to the next
        self.tokens: list[pd.DataFrame] = []
        self.held_out: dict[str, float] = {}
        self.hold: Hold | None = None

    def open(self, step: int, document: dict) -> None:
        """Begins a run, or goes on after `step`, without what was written later. Raises ErltoolError over another."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self.hold = Hold(self.path)
        try:
            if (self.path / "metrics.jsonl").is_file():
                document = self.go_on(step, document)
            with writing(self.path):
                text = json.dumps({"format": FORMAT} | document, indent=1)
                write_whole(self.path / "config.json", f"{text}\n".encode())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets others write."""
        if self.hold is not None:
            self.hold.release()

    def go_on(self, step: int, document: dict) -> dict:
        """Takes back what was written after `step`; returns what config.json then says."""
        if not step:
            raise ErltoolError(
                f"run {self.path}: already holds a run; use train(resume_from_checkpoint=True), or another output_dir"
            )
        document = continued(read_config(self.path), document, step)
        kept = [row for row in self.rows() if row["step"] <= step]
        last = kept[-1]["step"] if kept else 0
        if step - last >= self.every:
            logger.warning(f"{self.path / 'metrics.jsonl'}: ends at step {last}, and the run goes on from step {step}")
        self.write_rows(kept)
        for row in kept:
            self.watch.see(row)
        if (self.path / "tokens.parquet").is_file():
            tokens = read_tokens(self.path / "tokens.parquet")
            self.tokens = [tokens[tokens["step"] <= step]]
            self.write_tokens()
        return document

    def rows(self) -> list[dict]:
        """The whole lines: a kill leaves the last one torn."""
        return read_lines(self.path / "metrics.jsonl")[0]

    def write_rows(self, rows: list[dict]) -> None:
        with writing(self.path / "metrics.jsonl"):
            write_whole(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())

    def write(self, row: dict):
        """Appends a step; returns the alarms that it raises."""
        self.hold.check()
        row = {k: v for k, v in (row | self.held_out).items() if v is not None and math.isfinite(v)}
        self.held_out = {}
        with writing(self.path / "metrics.jsonl"), open(self.path / "metrics.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps(row) + "\n")
        return self.watch.see(row)

    def sync(self) -> None:
        """Has the disk hold the rows: a power cut must not leave fewer of them than a checkpoint counts on."""
        if (self.path / "metrics.jsonl").is_file():
            with writing(self.path / "metrics.jsonl"):
                sync(self.path / "metrics.jsonl")

    def evaluated(self, accuracy: float, last: bool) -> None:
        """Held-out accuracy belongs to the update that follows; after the last one to that."""
        rows = self.rows() if last else []
        if rows:
            self.write_rows([*rows[:-1], rows[-1] | {"eval_accuracy": accuracy}])
        else:
            self.held_out = {"eval_accuracy": accuracy}

    def write_tokens(self) -> None:
        if self.tokens:
            with writing(self.path / "tokens.parquet"):
                write_table(self.path / "tokens.parquet", self.tokens)
