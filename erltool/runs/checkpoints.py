"""A run's checkpoints/ and adapter/: which checkpoint is whole and fits the metrics, and the adapter's step.

A run goes on from a checkpoint. adapter/ is for other tools, made after the checkpoint and marked with its step.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from erltool.files import new_name, old_name, replacing, write_whole

KEPT = 2
ADAPTER = "adapter"
MARK = "erltool.json"  # the step of adapter/, under a name that PEFT and transformers do not look for


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint by its manifest. Reading its state shows whether it is whole."""

    folder: Path
    step: int
    sha256: str
    metrics_bytes: int  # length of metrics.jsonl up to its step

    def state(self) -> bytes | None:
        """The state's bytes; None where they are damaged."""
        file = self.folder / "state.pt"
        try:
            blob = file.read_bytes() if file.is_file() else b""
        except OSError:
            return None
        return blob if hashlib.sha256(blob).hexdigest() == self.sha256 else None

    def fits(self, metrics: Path) -> bool:
        """Whether metrics.jsonl still has the lines up to the checkpoint's step, by the last of them."""
        try:
            head = metrics.read_bytes()[: self.metrics_bytes] if metrics.is_file() else b""
            last = json.loads(head.splitlines()[-1])
            return len(head) == self.metrics_bytes and head.endswith(b"\n") and last["step"] == self.step
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return False


def checkpoints(run: Path) -> list[Checkpoint]:
    """The checkpoints with a readable manifest, newest first."""
    folders = (run / "checkpoints" / _name(step) for step in reversed(checkpoint_steps(run)))
    return [checkpoint for checkpoint in map(_checkpoint, folders) if checkpoint]


def checkpoint_steps(run: Path) -> list[int]:
    return sorted(int(folder.name) for folder in (run / "checkpoints").glob("*") if folder.name.isdecimal())


def newest_whole(run: Path, metrics: Path | None = None) -> tuple[Checkpoint, bytes] | None:
    """The newest checkpoint, with its state, that is whole and fits `metrics` (if given)."""
    for checkpoint in checkpoints(run):
        if (metrics is None or checkpoint.fits(metrics)) and (state := checkpoint.state()) is not None:
            return checkpoint, state
    return None


def _checkpoint(folder: Path) -> Checkpoint | None:
    match _json(folder / "manifest.json"):
        case {"step": int(step), "sha256": str(sha256), "metrics_bytes": int(size)}:
            return Checkpoint(folder, step, sha256, size) if _name(step) == folder.name and size >= 0 else None
    return None


def _name(step: int) -> str:
    return f"{step:06d}"


def _json(file: Path) -> dict:
    """The object in a small file; empty without one."""
    try:
        document = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def write_checkpoint(run: Path, step: int, state: bytes, metrics_bytes: int) -> None:
    """Writes a checkpoint, whole or not at all."""
    manifest = {"step": step, "sha256": hashlib.sha256(state).hexdigest(), "metrics_bytes": metrics_bytes}
    with replacing(run / "checkpoints" / _name(step)) as new:
        write_whole(new / "state.pt", state)
        write_whole(new / "manifest.json", json.dumps(manifest).encode())


def forget(run: Path, step: int) -> None:
    """Removes checkpoints later than `step`, leftovers of a kill, and all but the last KEPT of the others."""
    stay = {_name(s) for s in [s for s in checkpoint_steps(run) if s <= step][-KEPT:]}
    for folder in (run / "checkpoints").glob("*"):
        if re.fullmatch(r"\d+|\.\d+\.(new|old)", folder.name) and folder.name not in stay:
            shutil.rmtree(folder)


def write_adapter(run: Path, step: int, save: Callable[[Path], None]) -> None:
    """Replaces adapter/ by what `save` writes, marked with its step, whole or not at all."""
    with replacing(run / ADAPTER) as new:
        save(new)
        write_whole(new / MARK, json.dumps({"step": step}).encode())


def adapter_step(run: Path) -> int | None:
    """The step of adapter/; None without one, or without the mark of recent versions."""
    step = _json(run / ADAPTER / MARK).get("step")
    return step if type(step) is int else None


def was_ever_saved(run: Path) -> bool:
    """Whether an adapter, made after a checkpoint, is there."""
    return any(path.exists() for path in (run / ADAPTER, new_name(run / ADAPTER), old_name(run / ADAPTER)))
