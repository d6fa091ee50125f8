"""The run in TRL's output folder: when its writer writes which lines."""

import logging
import math
from pathlib import Path

from erltool.runs.alarms import Alarm, Watch
from erltool.runs.folder import read_lines
from erltool.runs.writer import RunWriter

HOW = "use train(resume_from_checkpoint=True), or another output_dir"
logger = logging.getLogger(__name__)


class Folder:
    """A run in TRL's output folder, in the main process. It resumes from the `step` of TRL's checkpoint, and has a row
    `every` so many steps. Raises ErltoolError where the folder holds a run and `step` is 0."""

    def __init__(self, path: Path, every: float, step: int, document: dict):
        self.watch = Watch()
        self.held_out: dict[str, float] = {}
        self.writer = RunWriter(path, document, resume=step > 0, beside=HOW)
        try:
            if step:
                self.go_on(step, every)
        except BaseException:
            self.close()
            raise

    def go_on(self, step: int, every: float) -> None:
        self.writer.cut(step)
        file = self.writer.path / "metrics.jsonl"
        rows, _ = read_lines(file)
        last = rows[-1]["step"] if rows else 0
        if step - last >= every:
            logger.warning(f"{file}: ends at step {last}, and the run goes on from step {step}")
        for row in rows:
            self.watch.see(row)

    def write(self, row: dict) -> tuple[Alarm, ...]:
        """Appends a step; returns the alarms that it raises."""
        row = {k: v for k, v in (row | self.held_out).items() if v is not None and math.isfinite(v)}
        self.held_out = {}
        self.writer.write_step(row)
        return self.watch.see(row)

    def evaluated(self, accuracy: float, last: bool) -> None:
        """Held-out accuracy belongs to the next update, or to the `last` one."""
        if not (last and self.writer.amend_last({"eval_accuracy": accuracy})):
            self.held_out = {"eval_accuracy": accuracy}

    def checkpoint(self) -> None:
        """Writes to the disk what a checkpoint needs."""
        self.writer.write_tokens()
        self.writer.sync()

    def close(self) -> None:
        """Lets other processes write."""
        self.writer.close()
