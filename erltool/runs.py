"""A run is a folder: config.json, metrics.jsonl, timings.jsonl, tokens.parquet, adapter/, checkpoints/.

What a seed decides is in metrics.jsonl, which is the same for the same seed; what the machine decides is in
timings.jsonl. Reading joins them. Files that are replaced are replaced whole; lines are flushed one a step.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from erltool.errors import ErltoolError
from erltool.tables import Table
from erltool.text import visible

METRICS = {
    "step": ("count", "optimiser updates so far, this one included"),
    "iteration": ("count", "sampling rounds before this one"),
    "reward": ("in [0, 1]", "mean reward of the update's responses"),
    "policy_entropy": ("nats/token", "exact entropy of the policy before the update, mean over response tokens"),
    "response_entropy": ("nats/token", "the same averaged over each response first, then over responses (Eq 5)"),
    "sampled_nll": ("nats/token", "-mean log pi of the sampled tokens: a one-sample estimate of policy_entropy"),
    "mean_covariance": ("nats", "Cov(log pi, A) over the update's response tokens (Eq 10)"),
    "group_covariance": ("nats", "Cov over a prompt's responses of (log pi, pi A), mean over prompts (Eq 8)"),
    "group_covariance_hard": ("nats", "the same over prompts whose group is right up to 1/3, not 0"),
    "group_covariance_middle": ("nats", "up to 2/3"),
    "group_covariance_easy": ("nats", "above 2/3, not 1"),
    "covariance_top_0.0002": ("nats", "mean token covariance of the highest 0.02 % of the update's tokens (Table 1)"),
    "covariance_top_0.002": ("nats", "of the highest 0.2 %"),
    "covariance_top_0.02": ("nats", "of the highest 2 %"),
    "covariance_top_0.2": ("nats", "of the highest 20 %"),
    "covariance_top_0.5": ("nats", "of the highest 50 %"),
    "response_length": ("tokens", "mean length of the update's responses, EOS included"),
    "response_tokens": ("tokens", "response tokens in the update"),
    "truncated_fraction": ("in [0, 1]", "share of the update's responses cut by max_response_tokens"),
    "zero_spread_fraction": ("in [0, 1]", "share of the iteration's sampled groups whose rewards are all equal"),
    "selected_fraction": ("in [0, 1]", "share of response tokens that the control acts on"),
    "selected_tokens": ("tokens", "the same as a count"),
    "control_value": ("1", "what the control steers, as it is in this update: a share of tokens, or a coefficient"),
    "clip_fraction": ("in [0, 1]", "share of response tokens whose gradient the surrogate's clip has cut"),
    "kl_k1": ("nats/token", "KL(pi_old || pi) by mean of -log_ratio"),
    "kl_k3": ("nats/token", "KL(pi_old || pi) by mean of ratio - 1 - log_ratio"),
    "grad_norm": ("1", "norm of the loss's gradient before clipping"),
    "sampler_mismatch": ("nats", "largest |log-prob by sampler - by training's forward|, first update of an iteration"),
    "entropy_change": ("nats/token", "entropy of the update's contexts after it minus before, where measured"),
    "entropy_change_predicted": ("nats/token", "the same by Lemma 1, from the change of each context's logits"),
    "entropy_change_correlation": ("1", "of the two over contexts"),
    "eval_accuracy": ("in [0, 1]", "held-out accuracy before the update; on the run's last step, after it"),
    "tokens_per_second": ("tokens/s", "response tokens sampled and trained on per second, without evaluation"),
}  # fmt: skip
TIMED = ("tokens_per_second",)
SPARSE = (
    "eval_accuracy",
    "sampler_mismatch",
    "control_value",
    "group_covariance_hard",
    "group_covariance_middle",
    "group_covariance_easy",
    "entropy_change",
    "entropy_change_predicted",
    "entropy_change_correlation",
)  # fmt: skip; absent on the steps where they were not measured

TOKEN_COLUMNS = (
    "step", "prompt_index", "response_index", "position", "prompt", "reward", "token_id", "text", "log_prob",
    "old_log_prob", "entropy", "advantage", "covariance", "selected",
)  # fmt: skip
KEPT_CHECKPOINTS = 2
EVALUATION = "evaluation.json"  # of a run's last policy, where an experiment made one


@dataclass(frozen=True)
class Run:
    """A run that was read: its configuration, one row of metrics a step, and its recorded tokens."""

    path: Path
    config: dict
    """Fields of TrainConfig as they were."""
    made_by: dict
    """Versions, commit, device, threads."""
    metrics: pd.DataFrame
    """One row a step; the columns are METRICS."""
    skipped_lines: int
    """Lines of metrics.jsonl that could not be read: a run that was cut leaves at most one."""

    @property
    def name(self) -> str:
        """The folder's, with what is hidden in it made visible: tables and figures have it."""
        return visible(self.path.name)

    @cached_property
    def tokens(self) -> pd.DataFrame:
        """One row a recorded token; the columns are TOKEN_COLUMNS. Raises ErltoolError if none were recorded."""
        file = self.path / "tokens.parquet"
        if not file.is_file():
            raise ErltoolError(
                f"{file}: not there yet; tokens are written at the first checkpoint, if record_every > 0"
            )
        try:
            return Table(pd.read_parquet(file))
        except (OSError, ValueError) as e:
            raise ErltoolError(
                f"{file}: not readable as Parquet ({str(e).splitlines()[0]}); restore or delete it"
            ) from e

    @cached_property
    def evaluation(self) -> dict:
        """What an experiment measured of the last policy on held-out problems: average, pass@k, `right` of `samples`
        responses to each problem; or "failed" and why. Empty where nothing was measured."""
        file = self.path / EVALUATION
        return _read_json(file) if file.is_file() else {}

    def evaluated(self) -> pd.DataFrame:
        """The rows on which held-out accuracy was measured: the points (policy_entropy, eval_accuracy)."""
        if "eval_accuracy" not in self.metrics:
            return self.metrics.iloc[:0].assign(eval_accuracy=[])
        return self.metrics.dropna(subset=["eval_accuracy"])


def read_run(path: str | Path) -> Run:
    """The run in a folder. A run that is still going or was cut is read as far as it came.

    Raises ErltoolError where the folder is missing, holds no run, or its config.json is damaged.
    """
    path = Path(path)
    document = _read_config(path)
    rows, skipped = _read_lines(path / "metrics.jsonl")
    metrics = pd.DataFrame(rows, columns=None if rows else list(METRICS))
    timings, _ = _read_lines(path / "timings.jsonl")
    if rows and timings:
        metrics = metrics.merge(pd.DataFrame(timings).drop_duplicates("step", keep="last"), on="step", how="left")
    return Run(path, document["config"], document.get("made_by", {}), metrics, skipped)


def read_runs(folder: str | Path) -> dict[str, Run]:
    """The runs in a folder by name: a folder each, or recorded together by `record_runs`.

    Raises ErltoolError where the folder is missing, holds no run, or a file in it is damaged.
    """
    folder = Path(folder)
    if (folder / "runs.json").is_file():
        documents = _read_json(folder / "runs.json")
        try:
            metrics = pd.read_parquet(folder / "metrics.parquet").astype({"step": int, "iteration": int})
        except (OSError, ValueError) as e:
            raise ErltoolError(f"{folder / 'metrics.parquet'}: not readable ({str(e).splitlines()[0]})") from e
        rows = {name: part.drop(columns="run").dropna(axis=1, how="all") for name, part in metrics.groupby("run")}
        return {n: _recorded(folder / n, d, rows[n].reset_index(drop=True)) for n, d in documents.items()}
    names = sorted(p.parent.name for p in folder.glob("*/config.json"))
    if not names:
        raise ErltoolError(f"{folder}: holds no runs")
    return {run.name: run for run in (read_run(folder / name) for name in names)}


def _recorded(path: Path, document: dict, metrics: pd.DataFrame) -> Run:
    run = Run(path, document["config"], document["made_by"], metrics, 0)
    vars(run)["evaluation"] = document["evaluation"]
    return run


def record_runs(runs: dict[str, Run], folder: str | Path) -> None:
    """Writes runs together, compactly: runs.json with configuration, versions and evaluation of each, and
    metrics.parquet with one row an iteration, the mean of its updates, in fp32; `step` is the iteration's last."""
    folder, parts = Path(folder), []
    for name, run in runs.items():
        kept = run.metrics.drop(columns=list(TIMED), errors="ignore")
        rows = kept.groupby("iteration").mean().reset_index()
        rows["step"] = kept.groupby("iteration")["step"].max().to_numpy()
        parts.append(rows.astype({c: "float32" for c in rows if c not in ("step", "iteration")}).assign(run=name))
    documents = {n: {"config": r.config, "made_by": r.made_by, "evaluation": r.evaluation} for n, r in runs.items()}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_table(folder / "metrics.parquet", parts, compression="zstd")
        write_whole(folder / "runs.json", (json.dumps(documents, indent=0) + "\n").encode())


def _read_json(file: Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ErltoolError(f"{file}: damaged ({e}); restore it, or delete it to have it made again") from e


def _read_config(path: Path) -> dict:
    if not path.is_dir():
        raise ErltoolError(f"run {path}: no such folder")
    file = path / "config.json"
    if not file.is_file():
        raise ErltoolError(f"run {path}: holds no config.json, so it is not an erltool run")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        document["config"]["steps"]
    except (ValueError, KeyError, TypeError) as e:
        raise ErltoolError(
            f"{file}: not a run's config ({type(e).__name__}: {e}); restore it or start another run"
        ) from e
    return document


def _read_lines(file: Path) -> tuple[list[dict], int]:
    """Rows of a JSONL file and the number of lines that are not one."""
    rows, skipped = [], 0
    if file.is_file():
        for line in file.read_bytes().splitlines():
            try:
                row = json.loads(line)
                row["step"]
                rows.append(row)
            except (ValueError, KeyError, TypeError):
                skipped += 1
    return rows, skipped


class RunWriter:
    """Writes a run's folder. Raises ErltoolError, naming the file and the remedy, where it cannot."""

    def __init__(self, path: Path, document: dict, resume: bool):
        self.path = Path(path)
        self.tokens: list[pd.DataFrame] = []
        holds_run = (self.path / "config.json").is_file()
        if holds_run and not resume:
            raise ErltoolError(f"run {self.path}: already holds a run; resume it, or choose another folder")
        if not holds_run and self.path.exists() and any(self.path.iterdir()):
            raise ErltoolError(f"run {self.path}: not empty and holds no run; choose another folder")
        if holds_run:
            self._check_same(document)
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / "config.json", (json.dumps(document, indent=1) + "\n").encode())

    def _check_same(self, document: dict):
        before = _read_config(self.path)["config"]
        for field, value in document["config"].items():
            if field != "steps" and before.get(field) != value:
                raise ErltoolError(
                    f"run {self.path}: was made with {field}={before.get(field)!r}, not {value!r}; "
                    "resume with the same configuration (only steps may differ), or choose another folder"
                )

    def load_checkpoint(self) -> bytes | None:
        """State of the newest whole checkpoint, the files cut back to it; None where there is none at all."""
        folders = sorted((self.path / "checkpoints").glob("[0-9]*"), reverse=True)
        for folder in folders:
            try:
                blob = (folder / "state.pt").read_bytes()
                manifest = json.loads((folder / "manifest.json").read_text())
                if hashlib.sha256(blob).hexdigest() != manifest["sha256"]:
                    continue
            except (OSError, ValueError, KeyError):
                continue
            self._cut_back(manifest)
            return blob
        if folders:
            raise ErltoolError(
                f"{folders[0]}: damaged, and no older checkpoint is whole; delete {folders[0].parent} to start over"
            )
        self._cut_back({"step": 0, "metrics_bytes": 0, "timings_bytes": 0})
        return None

    def _cut_back(self, manifest: dict):
        for name in ("metrics", "timings"):
            file = self.path / f"{name}.jsonl"
            if file.is_file():
                if file.stat().st_size < manifest[f"{name}_bytes"]:
                    raise ErltoolError(
                        f"{file}: shorter than when the checkpoint of step {manifest['step']} was written; restore it, "
                        f"or delete {self.path / 'checkpoints'} to start over"
                    )
                with writing(file):
                    os.truncate(file, manifest[f"{name}_bytes"])
        if (self.path / "tokens.parquet").is_file() and manifest["step"]:
            tokens = pd.read_parquet(self.path / "tokens.parquet")
            self.tokens = [tokens[tokens["step"] <= manifest["step"]]]

    def write_step(self, metrics: dict):
        """Appends a step to metrics.jsonl and timings.jsonl, flushed."""
        timed = {k: v for k, v in metrics.items() if k in ("step", *TIMED)}
        self._append("metrics.jsonl", {k: v for k, v in metrics.items() if k not in TIMED})
        self._append("timings.jsonl", timed)

    def _append(self, name: str, row: dict):
        file = self.path / name
        with writing(file), open(file, "a", encoding="utf-8") as f:
            f.write(json.dumps(row, allow_nan=False) + "\n")

    def checkpoint(self, step: int, blob: bytes, save_policy: Callable[[Path], None]) -> None:
        """Writes a checkpoint, the tokens and adapter/ as they are now; each appears whole or not at all."""
        manifest = {"step": step, "sha256": hashlib.sha256(blob).hexdigest()}
        for name in ("metrics", "timings"):
            manifest[f"{name}_bytes"] = (self.path / f"{name}.jsonl").stat().st_size
        folder = self.path / "checkpoints" / f"{step:06d}"
        with writing(folder):
            if self.tokens:
                write_table(self.path / "tokens.parquet", self.tokens)
            with replacing(folder) as new:
                write_whole(new / "state.pt", blob)
                write_whole(new / "manifest.json", json.dumps(manifest).encode())
            with replacing(self.path / "adapter") as new:
                save_policy(new)
            for old in sorted(folder.parent.glob("[0-9]*"))[:-KEPT_CHECKPOINTS]:
                shutil.rmtree(old)


@contextlib.contextmanager
def writing(path: Path):
    """Turns an OSError inside into an ErltoolError that names the path and the remedy."""
    try:
        yield
    except OSError as e:
        where = e.filename or path
        raise ErltoolError(
            f"{where}: cannot write ({e.strerror or e}); make room or choose another place, then resume"
        ) from e


def write_whole(file: Path, blob: bytes) -> None:
    """Writes a file so that it is there whole or not at all, also after a power cut."""
    temporary = file.with_name(f".{file.name}.new")
    with open(temporary, "wb") as f:
        f.write(blob)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, file)


def write_table(file: Path, parts: list[pd.DataFrame], compression: str = "snappy") -> None:
    """Writes tables below one another as Parquet, whole or not at all."""
    table = io.BytesIO()
    pd.concat(parts, ignore_index=True).to_parquet(table, index=False, compression=compression)
    write_whole(file, table.getvalue())


@contextlib.contextmanager
def replacing(folder: Path):
    """A new folder to fill, which takes the place of `folder` at the end; on an error nothing changes."""
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for left_over in (new, old):
        shutil.rmtree(left_over, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)
