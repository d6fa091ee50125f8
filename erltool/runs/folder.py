"""A run is a folder: config.json, metrics.jsonl, timings.jsonl, tokens.parquet, probes.parquet, adapter/, checkpoints/.

The seed decides metrics.jsonl, the machine decides timings.jsonl, and reading joins them.
"""

import gzip
import io
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from erltool.errors import ErltoolError
from erltool.files import reading, write_whole, writing
from erltool.tables import Table
from erltool.text import shown, visible

FORMAT = 2  # of config.json; format 1 had controls that steered themselves and did not name its format

METRICS = {
    "step": ("count", "optimiser updates so far, including this one"),
    "iteration": ("count", "sampling rounds before this one"),
    "reward": ("in [0, 1]", "mean reward of the update's responses"),
    "policy_entropy": ("nats/token", "exact entropy of the policy before the update, mean over response tokens"),
    "response_entropy": ("nats/token", "exact entropy: mean over each response, then over responses (Eq 5)"),
    "sampled_nll": ("nats/token", "mean of -log pi over the sampled tokens; estimates policy_entropy"),
    "mean_covariance": ("nats", "Cov(log pi, A) over the update's response tokens (Eq 10)"),
    "mean_push": ("nats", "mean over response tokens of the entropy change that each predicts for its own context"),
    "group_covariance": ("nats", "Cov(log pi, pi A) over the responses to a prompt, mean over prompts (Eq 8)"),
    "group_covariance_hard": ("nats", "group_covariance of prompts with mean reward in (0, 1/3]"),
    "group_covariance_middle": ("nats", "group_covariance of prompts with mean reward in (1/3, 2/3]"),
    "group_covariance_easy": ("nats", "group_covariance of prompts with mean reward in (2/3, 1)"),
    "covariance_top_0.0002": ("nats", "mean covariance of the 0.02 % of tokens with the highest (Table 1)"),
    "covariance_top_0.002": ("nats", "mean covariance of the 0.2 % of tokens with the highest"),
    "covariance_top_0.02": ("nats", "mean covariance of the 2 % of tokens with the highest"),
    "covariance_top_0.2": ("nats", "mean covariance of the 20 % of tokens with the highest"),
    "covariance_top_0.5": ("nats", "mean covariance of the 50 % of tokens with the highest"),
    "response_length": ("tokens", "mean length of the update's responses, including EOS"),
    "response_tokens": ("tokens", "response tokens in the update"),
    "truncated_fraction": ("in [0, 1]", "fraction of the update's responses cut by max_response_tokens"),
    "zero_spread_fraction": ("in [0, 1]", "fraction of the iteration's sampled groups with equal rewards"),
    "selected_fraction": ("in [0, 1]", "fraction of response tokens that the control acts on"),
    "selected_tokens": ("tokens", "number of response tokens that the control acts on"),
    "control_value": ("1", "the number that the controller has set for this update: a fraction or a coefficient"),
    "control_fraction": ("in [0, 1]", "the fraction of the steered control in this update (controller steered)"),
    "control_coef": ("1", "the coefficient of the steered control in this update (controller steered)"),
    "clip_fraction": ("in [0, 1]", "fraction of response tokens that get no gradient because the surrogate clips them"),
    "kl_k1": ("nats/token", "KL(pi_old || pi), estimated by the mean of -log_ratio"),
    "kl_k3": ("nats/token", "KL(pi_old || pi), estimated by the mean of ratio - 1 - log_ratio"),
    "grad_norm": ("1", "norm of the loss's gradient before clipping"),
    "sampler_mismatch": ("nats", "largest log-prob difference of sampler and training, in an iteration's first update"),
    "sampler_truncated_fraction": ("in [0, 1]", "fraction of response tokens whose weight sampler_correction has cut"),
    "entropy_change": ("nats/token", "measured change of the entropy over the update, mean over its contexts"),
    "entropy_change_predicted": ("nats/token", "entropy_change by Lemma 1, from the change of each context's logits"),
    "entropy_change_correlation": ("1", "correlation of measured and predicted change over contexts"),
    "all_wrong_fraction": ("in [0, 1]", "fraction of the update's groups with only wrong responses"),
    "all_right_fraction": ("in [0, 1]", "fraction of the update's groups with only right responses"),
    "distinct_fraction": ("in [0, 1]", "different responses in a group divided by the group's size, mean over groups"),
    "thinking_fraction": ("in [0, 1]", "fraction of responses that work step by step, if the task describes responses"),
    "right_step_fraction": ("in [0, 1]", "fraction of the steps in these responses that follow from the value before"),
    "right_product_fraction": ("in [0, 1]", "fraction of the multiplications in these responses that are right"),
    "fork_entropy": ("nats/token", "mean entropy of forks: tokens at which a response has a choice, if the task knows"),
    "fork_covariance": ("nats", "mean covariance of forks"),
    "eval_accuracy": ("in [0, 1]", "held-out accuracy before the update; in the run's last step, after it"),
    "eval_accuracy_tempered": ("in [0, 1]", "held-out accuracy at eval_temperature (0 is greedy), if that is set"),
    "tokens_per_second": ("tokens/s", "response tokens sampled and trained on per second, without evaluation"),
}  # fmt: skip
# Fields of a configuration that a run may be older than, as that run had them.
NEWER = {"record_probes": 0, "sampler": "own", "sampler_correction": 0.0}
NEWER_OF_CONTROLS: dict[str, dict] = {  # the same of controls' fields
    "entropy-bonus": {"below": None},
    "kl-cov": {"dead_zone": None},
    "random-kl": {"dead_zone": None},
}
TIMED = ("tokens_per_second",)
SPARSE = (  # absent on the steps where they were not measured
    "eval_accuracy", "eval_accuracy_tempered", "sampler_mismatch", "sampler_truncated_fraction",
    "control_value", "control_fraction", "control_coef",
    "group_covariance_hard", "group_covariance_middle", "group_covariance_easy", "entropy_change",
    "entropy_change_predicted", "entropy_change_correlation", "mean_push", "all_wrong_fraction", "all_right_fraction",
    "distinct_fraction", "thinking_fraction", "right_step_fraction", "right_product_fraction", "fork_entropy",
    "fork_covariance",
)  # fmt: skip

TOKEN_COLUMNS = (
    "step", "prompt_index", "response_index", "position", "prompt", "reward", "token_id", "text", "log_prob",
    "old_log_prob", "entropy", "advantage", "covariance", "selected",
)  # fmt: skip
PUSH_COLUMNS = ("push", "dose")  # entropy/push.py; further ones of runs that are newer than the first
DESCRIBED_COLUMNS = ("strategy", "first_wrong", "fork")  # further ones, where the task can tell
# Further ones of tokens, where record_probes asked for it: the likeliest tokens of a token's context (a list of texts),
# their probabilities before and after the update (lists, in the same order), and the context's entropy after it, nats.
LIKELIEST_COLUMNS = ("likeliest", "likeliest_before", "likeliest_after", "entropy_after")
# Of the probes: responses to the same prompts at every recorded step, before its update; DESCRIBED_COLUMNS may follow.
PROBE_COLUMNS = (
    "step", "prompt_index", "response_index", "position", "prompt", "reward", "token_id", "text", "log_prob", "entropy",
    "likeliest", "likeliest_before",
)  # fmt: skip
TOKENS, PROBES = "tokens.parquet", "probes.parquet"
RECORD = ("runs.json.gz", "runs.json")  # of many runs in one folder; the second is that of earlier versions
EVALUATION = "evaluation.json"  # an experiment's evaluation of the run's last policy


@dataclass(frozen=True)
class Run:
    """A run: its configuration, one row of metrics a step, and its recorded tokens."""

    path: Path
    config: dict  # fields of TrainConfig
    made_by: dict  # versions, commit, device, threads
    metrics: pd.DataFrame  # one row a step; the columns are METRICS
    skipped_lines: int  # lines of metrics.jsonl that are unreadable or replaced by a later one of their step
    continued_by: tuple[dict, ...] = ()
    """Like `made_by`, of other versions or machines that went on with the run, each after its `step`."""

    @property
    def name(self) -> str:
        """The folder's name, with hidden characters made visible."""
        return visible(self.path.name)

    @cached_property
    def tokens(self) -> pd.DataFrame:
        """One row a recorded token: TOKEN_COLUMNS, PUSH_COLUMNS if the run is not older, DESCRIBED_COLUMNS for some
        tasks, and LIKELIEST_COLUMNS with record_probes. Raises ErltoolError for none."""
        file = self.path / TOKENS
        if not file.is_file():
            raise ErltoolError(f"{file}: not there yet; the first checkpoint writes tokens, if record_every > 0")
        return Table(read_tokens(file))

    @cached_property
    def probes(self) -> pd.DataFrame:
        """One row a token of a response to a probe prompt: PROBE_COLUMNS, and DESCRIBED_COLUMNS for some tasks. No rows
        for a run without `record_probes`. Raises ErltoolError for a file that is damaged."""
        file = self.path / PROBES
        return Table(read_tokens(file, PROBE_COLUMNS)) if file.is_file() else Table(columns=[*PROBE_COLUMNS])

    @cached_property
    def evaluation(self) -> dict:
        """An experiment's evaluation of the last policy on held-out problems: average, pass@k, `right` of `samples`
        responses to each problem; or "failed" and why. Empty without one."""
        file = self.path / EVALUATION
        return _read_json(file) if file.is_file() else {}

    def evaluated(self) -> pd.DataFrame:
        """The rows with held-out accuracy; their entropy is one update's, for the law use `align_points`."""
        if "eval_accuracy" not in self.metrics:
            return self.metrics.iloc[:0].assign(eval_accuracy=[])
        return self.metrics.dropna(subset=["eval_accuracy"])


def read_run(path: str | Path) -> Run:
    """The run in a folder, as far as it came. Raises ErltoolError where the folder is missing, holds no run, or its
    config.json is damaged."""
    path = Path(path)
    document = read_config(path)
    rows, skipped = read_lines(path / "metrics.jsonl")
    metrics = pd.DataFrame(rows, columns=None if rows else list(METRICS))
    timings = {row["step"]: row for row in read_lines(path / "timings.jsonl")[0]}
    for name in TIMED:
        if name not in metrics and any(name in row for row in timings.values()):
            metrics[name] = [timings.get(step, {}).get(name, math.nan) for step in metrics["step"]]
    return _run(path, document, metrics, skipped)


def _run(path: Path, document: dict, metrics: pd.DataFrame, skipped: int) -> Run:
    return Run(path, document["config"], document["made_by"], metrics, skipped, tuple(document["continued_by"]))


def read_runs(folder: str | Path) -> dict[str, Run]:
    """The runs in a folder by name: a folder each, or recorded together by `record_runs`. Raises ErltoolError where the
    folder is missing, holds no run, or a file in it is damaged."""
    folder = Path(folder)
    if holds_record(folder):
        return _read_record(folder)
    names = sorted(p.parent.name for p in folder.glob("*/config.json") if claims_run(p.parent))
    if not names:
        raise ErltoolError(f"{folder}: holds no runs")
    return {run.name: run for run in (read_run(folder / name) for name in names)}


def _read_record(folder: Path) -> dict[str, Run]:
    file = next(folder / name for name in RECORD if (folder / name).is_file())
    documents, table = _read_json(file), read_table(folder / "metrics.parquet")
    runs = {}
    try:
        tables = _by_run(table.astype({"step": int, "iteration": int}))
        for name, recorded in documents.items():
            document = _checked({"evaluation": {}} | recorded)
            run = _run(folder / name, document, tables[name], 0)
            vars(run)["evaluation"] = document["evaluation"]
            runs[name] = run
    except (ValueError, LookupError, TypeError) as e:
        raise ErltoolError(f"{folder}: {file.name} and metrics.parquet do not fit ({_kind(e)}); restore them") from e
    return runs


def _by_run(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Each run's rows, without the columns that it did not measure. By slices: hundreds of runs open in a moment."""
    names = pd.factorize(table["run"])
    ordered = table.drop(columns="run").take(np.argsort(names[0], kind="stable")).reset_index(drop=True)
    table = ordered.copy()  # in one piece: a slice then costs microseconds
    ends = np.bincount(names[0]).cumsum()
    begins = ends - np.bincount(names[0])
    measured: np.ndarray = np.logical_or.reduceat(table.notna().to_numpy(), begins) if len(begins) else np.empty(0)
    return {
        str(name): table.iloc[begin:end, np.flatnonzero(has)].set_axis(range(end - begin))
        for name, begin, end, has in zip(names[1], begins, ends, measured, strict=True)
    }


def holds_record(folder: Path) -> bool:
    """Whether `record_runs` wrote to the folder."""
    return any((folder / name).is_file() for name in RECORD)


def record_runs(runs: dict[str, Run], folder: str | Path, metrics: Sequence[str] = ()) -> None:
    """Writes runs together: runs.json.gz with configuration, versions and evaluation of each, and metrics.parquet with
    one row an iteration, the mean of its updates, to four digits (14 bits). `step` is the iteration's last. With
    `metrics`, only these. Raises ErltoolError for a metric that no run has."""
    folder, tables = Path(folder), []
    if unknown := set(metrics) - {name for run in runs.values() for name in run.metrics}:
        raise ErltoolError(f"record {folder}: no run has the metric {min(unknown)}")
    for name, run in runs.items():
        left_out = set(run.metrics) - {"step", "iteration", *metrics} if metrics else TIMED
        kept = run.metrics.drop(columns=list(left_out), errors="ignore")
        rows = kept.groupby("iteration").mean().reset_index()
        rows["step"] = kept.groupby("iteration")["step"].max().to_numpy()
        measured = rows.columns.drop(["step", "iteration"])
        rows[measured] = _four_digits(rows[measured].to_numpy(dtype=np.float64))
        tables.append(rows.astype({c: "float32" for c in measured}).assign(run=name))
    documents = {
        name: {"format": FORMAT, "config": run.config, "made_by": run.made_by}
        | ({"continued_by": list(run.continued_by)} if run.continued_by else {})
        | {"evaluation": run.evaluation}
        for name, run in runs.items()
    }
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_table(folder / "metrics.parquet", tables, level=19)
        text = (json.dumps(documents) + "\n").encode()
        write_whole(folder / RECORD[0], gzip.compress(text, mtime=0))  # without a date, so equal runs are equal bytes
        (folder / RECORD[1]).unlink(missing_ok=True)


def _four_digits(x: np.ndarray) -> np.ndarray:
    """x within 6e-5 of itself, in 14 bits: the other ten bits of an fp32 fraction are noise that no packing shrinks."""
    fraction, exponent = np.frexp(x)
    return np.ldexp(np.rint(fraction * 2**14) / 2**14, exponent)


def write_table(file: Path, tables: list[pd.DataFrame], level: int = 3) -> None:
    """Writes tables below one another as Parquet, whole or not at all: numbers byte by byte, because the high bytes of
    neighbouring floats are alike. `level` is zstd's."""
    whole, table = pd.concat(tables, ignore_index=True), io.BytesIO()
    lists = [f"{name}.list.element" for name in ("likeliest_before", "likeliest_after") if name in whole]
    floats = [*whole.select_dtypes("floating"), *lists]
    whole.to_parquet(
        table, index=False, compression="zstd", compression_level=level, use_byte_stream_split=floats,
        use_dictionary=[name for name in whole if name not in floats],
    )  # fmt: skip
    write_whole(file, table.getvalue())


def read_tokens(file: Path, columns: Sequence[str] = TOKEN_COLUMNS) -> pd.DataFrame:
    """The table of a run's recorded tokens, which has these columns. Raises ErltoolError where the file is not one."""
    tokens = read_table(file)
    if missing := set(columns) - set(tokens):
        raise ErltoolError(f"{file}: has no column {min(missing)}; restore or delete it")
    return tokens


def read_table(file: Path) -> pd.DataFrame:
    """The table in a Parquet file. Raises ErltoolError where it is none."""
    try:
        return pd.read_parquet(file)
    except (OSError, ValueError, LookupError, TypeError, NotImplementedError) as e:
        raise ErltoolError(f"{file}: not readable as Parquet ({_kind(e)}); restore or delete it") from e


def _read_json(file: Path) -> dict:
    try:
        text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        document = json.loads(text)
        if not isinstance(document, dict):
            raise ValueError("not an object")
        return document
    except (ValueError, RecursionError, EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise ErltoolError(f"{file}: damaged ({_kind(e)}); restore it, or delete it to have it made again") from e


def read_config(path: Path) -> dict:
    """A run's config.json, with "config", "made_by" and "continued_by". Raises ErltoolError where the folder is missing
    or holds no run, or the file is not that of a run."""
    with reading(path):
        if path.is_file():
            raise ErltoolError(f"run {path}: a file, and a run is a folder; erltool import LOG --out FOLDER makes one")
        if not path.is_dir():
            raise ErltoolError(f"run {path}: no such folder")
        file = path / "config.json"
        if not file.is_file():
            raise ErltoolError(f"run {path}: holds no config.json, so it is not an erltool run")
        try:
            return _checked(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, LookupError, TypeError, RecursionError) as e:
            raise ErltoolError(f"{file}: not a run's config ({_kind(e)}); restore it or start another run") from e


def holds_run(path: Path) -> bool:
    """Whether a folder holds a run. A model's folder has another config.json."""
    try:
        read_config(path)
    except ErltoolError:
        return False
    return True


def claims_run(path: Path) -> bool:
    """Whether a folder holds a run, be it damaged. A trainer's output folder may hold a model's config.json."""
    return (path / "config.json").is_file() and ((path / "metrics.jsonl").is_file() or holds_run(path))


def former_control(control: dict) -> tuple[dict, dict | None]:
    """Control and controller of format 1, in which a controller was a control that steered itself."""
    if "members" in control:
        members, controllers = zip(*map(former_control, control["members"]), strict=True)
        return control | {"members": list(members)}, next(filter(None, controllers), None)
    fields = {k: v for k, v in control.items() if k not in ("name", "control")}
    if control.get("name") == "target-entropy":
        return control["control"], {"name": "target-entropy"} | fields
    if control.get("name") == "annealed":
        schedule = {"field": "fraction", "start": fields["start"], "length": fields["length"], "to": 0.0}
        return control["control"] | {"fraction": fields["top"]}, {"name": "schedule"} | schedule
    if control.get("name") == "adaptive-entropy-bonus":
        bonus = {"name": "entropy-bonus", "coef": fields.pop("coef"), "below": fields["target"]}
        return bonus, {"name": "adaptive-bonus"} | fields
    return control, None


def _with_newer_fields(control: dict) -> dict:
    """A control, or its members, with the fields that are newer than its run."""
    if isinstance(members := control.get("members"), list):
        return control | {"members": [_with_newer_fields(m) if isinstance(m, dict) else m for m in members]}
    name = control.get("name")
    newer = NEWER_OF_CONTROLS.get(name, {}) if isinstance(name, str) else {}
    return control | {field: value for field, value in newer.items() if field not in control}


def _checked(document: dict) -> dict:
    """A run's config.json, if its members have the expected types. Raises TypeError or KeyError."""
    document = {"format": 1, "made_by": {}, "continued_by": []} | document
    if type(document["format"]) is not int or document["format"] > FORMAT:
        raise TypeError(f"format {document['format']!r}, and this erltool reads formats up to {FORMAT}")
    for name, kind in (("config", dict), ("made_by", dict), ("continued_by", list), ("evaluation", dict)):
        if not isinstance(document.get(name, kind()), kind):
            raise TypeError(f"{name} is {type(document[name]).__name__}, not {kind.__name__}")
    config = document["config"]
    if document["format"] == 1 and isinstance(config.get("control"), dict) and "controller" not in config:
        config["control"], config["controller"] = former_control(config["control"])
    if "group_size" in config:  # a run of erltool.train, not an imported log
        document["config"] = config = NEWER | config
    if isinstance(config.get("control"), dict):
        config["control"] = _with_newer_fields(config["control"])
    if type(config["steps"]) is not int:
        raise TypeError("steps is not a whole number")
    if not all(isinstance(e, dict) and type(e["step"]) is int for e in document["continued_by"]):
        raise TypeError("continued_by is not a list of versions, each with its step")
    return document


def _kind(e: BaseException) -> str:
    """An error in a few words."""
    return f"{type(e).__name__}: {shown(next(iter(str(e).splitlines()), ''), 120)}"


def read_lines(file: Path) -> tuple[list[dict], int]:
    """Rows of a JSONL file with their finite numbers, by step, and how many lines were unreadable or replaced."""
    with reading(file):
        lines = file.read_bytes().splitlines() if file.is_file() else []
    rows = {row["step"]: row for row in map(row_of, lines) if row}
    return [rows[step] for step in sorted(rows)], len(lines) - len(rows)


def row_of(line: bytes) -> dict | None:
    try:
        row = json.loads(line)
        known = type(row["step"]) is int and 0 <= row["step"] < 2**53
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return {name: value for name, value in row.items() if _is_number(value)} if known else None


def _is_number(value) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False
