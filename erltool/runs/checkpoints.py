"""A run's checkpoints/ and adapter/: which checkpoint is whole, which the metrics fit, of which step the adapter is.

A checkpoint is the truth; adapter/, which other tools load, is made from it after it, and says of which step it is.
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
MARK = "erltool.json"  # in adapter/: the step it is of; PEFT and transformers look for other names


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint by its manifest; whether its state is whole is known when it is read."""

    folder: Path
    step: int
    sha256: str
    metrics_bytes: int
    """Length of metrics.jsonl when it was made: the lines up to its step."""

    def state(self) -> bytes | None:
        """The state's bytes; None where they are not those that were written."""
        file = self.folder / "state.pt"
        try:
            blob = file.read_bytes() if file.is_file() else b""
        except OSError:
            return None
        return blob if hashlib.sha256(blob).hexdigest() == self.sha256 else None

    def fits(self, metrics: Path) -> bool:
        """Whether metrics.jsonl still begins with the lines that it had, as far as the last of them tells."""
        try:
            head = metrics.read_bytes()[: self.metrics_bytes] if metrics.is_file() else b""
            last = json.loads(head.splitlines()[-1])
            return len(head) == self.metrics_bytes and head.endswith(b"\n") and last["step"] == self.step
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return False


def checkpoints(run: Path) -> list[Checkpoint]:
    """Those with a readable manifest, the newest first."""
    found = [_checkpoint(run / "checkpoints" / _name(step)) for step in reversed(checkpoint_steps(run))]
    return [checkpoint for checkpoint in found if checkpoint]


def checkpoint_steps(run: Path) -> list[int]:
    """Of all checkpoints, the damaged ones among them."""
    return sorted(int(folder.name) for folder in (run / "checkpoints").glob("*") if folder.name.isdecimal())


def newest_whole(run: Path, metrics: Path | None = None) -> tuple[Checkpoint, bytes] | None:
    """The newest checkpoint whose state is whole, and fits `metrics` where that is given, with its state."""
    for found in checkpoints(run):
        if (metrics is None or found.fits(metrics)) and (state := found.state()) is not None:
            return found, state
    return None


def _checkpoint(folder: Path) -> Checkpoint | None:
    said = _json(folder / "manifest.json")
    step, sha256, size = (said.get(name) for name in ("step", "sha256", "metrics_bytes"))
    known = type(step) is int and _name(step) == folder.name and type(size) is int and isinstance(sha256, str)
    return Checkpoint(folder, step, sha256, size) if known and size >= 0 else None


def _name(step: int) -> str:
    return f"{step:06d}"


def _json(file: Path) -> dict:
    """An object of a small file of ours; empty where it is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_checkpoint(run: Path, step: int, state: bytes, metrics_bytes: int) -> None:
    """Writes a checkpoint; it appears whole or not at all."""
    manifest = {"step": step, "sha256": hashlib.sha256(state).hexdigest(), "metrics_bytes": metrics_bytes}
    with replacing(run / "checkpoints" / _name(step)) as new:
        write_whole(new / "state.pt", state)
        write_whole(new / "manifest.json", json.dumps(manifest).encode())


def forget(run: Path, step: int) -> None:
    """Removes checkpoints later than `step`, which are of a future that was given up, what a kill left of one, and all
    but the last KEPT of the others."""
    stay = {_name(s) for s in [s for s in checkpoint_steps(run) if s <= step][-KEPT:]}
    for folder in (run / "checkpoints").glob("*"):
        if re.fullmatch(r"\d+|\.\d+\.(new|old)", folder.name) and folder.name not in stay:
            shutil.rmtree(folder)


def write_adapter(run: Path, step: int, save: Callable[[Path], None]) -> None:
    """Makes adapter/ again by `save`, and says of which step it is; it changes whole or not at all."""
    with replacing(run / ADAPTER) as new:
        save(new)
        write_whole(new / MARK, json.dumps({"step": step}).encode())


def adapter_step(run: Path) -> int | None:
    """The step that adapter/ is of; None where it is missing, or was made before adapters said so."""
    step = _json(run / ADAPTER / MARK).get("step")
    return step if type(step) is int else None


def was_ever_saved(run: Path) -> bool:
    """Whether an adapter shows that there was a checkpoint."""
    return any(path.exists() for path in (run / ADAPTER, new_name(run / ADAPTER), old_name(run / ADAPTER)))
