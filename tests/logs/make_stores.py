"""Makes the metrics stores beside this file with the real tools: python tests/logs/make_stores.py trackio mlflow ...

README.md beside it says what each needs; erltool itself needs none of them. The numbers are those of verl.jsonl.
SQLite files lose the tables that a log of metrics does not need, and are vacuumed, so that they are small.
"""

import json
import os
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

HERE = Path(__file__).parent


def rows():
    """(step, entropy, reward, length, held-out accuracy or None) of verl.jsonl."""
    for line in open(HERE / "verl.jsonl"):
        row = json.loads(line)
        data = row["data"]
        if "actor/entropy" in data:
            values = (data["actor/entropy"], data["critic/rewards/mean"], data["response_length/mean"])
            yield row["step"], *values, data.get("val-core/countdown/acc/mean@8")


def trl_metrics(step, entropy, reward, length, accuracy):
    """What TRL's GRPO hands to a tracker through transformers' callbacks, which write train/ and eval/ before names."""
    train = {"train/entropy": entropy, "train/reward": reward, "train/completions/mean_length": length}
    train |= {"train/frac_reward_zero_std": 0.25, "train/global_step": step}
    return train, {"eval/reward": accuracy, "train/global_step": step} if accuracy is not None else None


def shrink(file: Path, keep: set[str]):
    """Drops other tables, and writes the database anew in the smallest pages, without a write-ahead log."""
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("PRAGMA foreign_keys = OFF")
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            if name not in keep and not name.startswith("sqlite_"):
                db.execute(f'DROP TABLE "{name}"')
        db.execute("PRAGMA page_size = 512")
        db.execute("VACUUM")


def trackio():
    """Two runs of TRL in a project."""
    folder = Path(tempfile.mkdtemp())
    os.environ["TRACKIO_DIR"] = str(folder)
    import trackio

    for name, shift in (("base", 0.0), ("kl-cov", 0.1)):
        trackio.init(project="grpo", name=name, config={"learning_rate": 1e-6}, auto_log_gpu=False, auto_log_cpu=False)
        for row in list(rows())[: 24 if name == "base" else 6]:
            train, evaluation = trl_metrics(*row)
            trackio.log(train | {"train/entropy": train["train/entropy"] + shift})
            if evaluation:
                trackio.log(evaluation)
        trackio.log({"train/grad_norm": float("nan"), "train/global_step": 24})
        trackio.finish()
    (HERE / "trackio").mkdir(exist_ok=True)
    shutil.copy(folder / "grpo.db", HERE / "trackio")
    with closing(sqlite3.connect(HERE / "trackio/grpo.db")) as db, db:
        db.execute("DELETE FROM system_metrics")
    shrink(HERE / "trackio/grpo.db", {"metrics", "configs", "project_metadata"})


def mlflow():
    """Two runs of verl, which writes @ as _at_, in a database; one of them in a folder too, as before MLflow 3."""
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    import mlflow

    for uri, names in (
        (f"sqlite:///{HERE / 'mlflow.db'}", ("base", "kl-cov")),
        (f"file://{HERE / 'mlruns'}", ("base",)),
    ):
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment("grpo")
        for name in names:
            with mlflow.start_run(run_name=name):
                for step, entropy, reward, length, accuracy in list(rows())[: 24 if name == "base" else 6]:
                    data = {"actor/entropy": entropy + 0.1 * (name != "base"), "critic/rewards/mean": reward}
                    data |= {"response_length/mean": length, "critic/values/mean": float("nan")}
                    if accuracy is not None:
                        data["val-core/countdown/acc/mean_at_8"] = accuracy
                    mlflow.log_metrics(data, step=step)
    shrink(HERE / "mlflow.db", {"metrics", "runs", "experiments", "tags"})
    for file in (HERE / "mlruns").rglob("*"):  # no user's or machine's names
        if file.name in ("meta.yaml", "mlflow.user") or file.name.startswith("mlflow.source"):
            file.unlink()
    with closing(sqlite3.connect(HERE / "mlflow.db")) as db, db:
        db.execute("UPDATE runs SET user_id = 'user', artifact_uri = ''")
        db.execute("UPDATE experiments SET artifact_location = ''")
        db.execute("DELETE FROM tags WHERE key <> 'mlflow.runName'")
    shrink(HERE / "mlflow.db", {"metrics", "runs", "experiments", "tags"})


def wandb():
    """One run of TRL, offline, with a histogram, a nested metric and a text among the numbers."""
    import wandb

    folder = tempfile.mkdtemp()
    settings = wandb.Settings(
        mode="offline", root_dir=folder, x_disable_stats=True, x_disable_meta=True, disable_git=True, console="off",
        save_code=False, host="host",
    )  # fmt: skip
    run = wandb.init(project="grpo", name="base", id="abcd1234", settings=settings)
    for row in rows():
        train, evaluation = trl_metrics(*row)
        more = {"profiling": {"sampling": 1.5}, "note": "text", "histogram": wandb.Histogram([1, 2, 3])}
        run.log(train | (more if row[0] == 2 else {}))
        if evaluation:
            run.log(evaluation)
    run.finish()
    place = HERE / "wandb/offline-run-20260101_000000-abcd1234"
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(next(Path(folder).rglob("*.wandb")), place)


def swanlab(name="swanlab"):
    """One run of TRL, offline."""
    import swanlab

    folder = tempfile.mkdtemp()
    swanlab.init(project="grpo", experiment_name="base", mode="offline", logdir=folder)
    for row in rows():
        train, evaluation = trl_metrics(*row)
        for data in filter(None, (train, evaluation)):
            swanlab.log(data, step=row[0])
    swanlab.finish()
    made = next(Path(folder).rglob("*.swanlab"))
    place = HERE / name / "run-20260101_000000-abcd1234"
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(made, place / ("backup.swanlab" if made.name == "backup.swanlab" else "run-abcd1234.swanlab"))


def swanlab_old():
    """The same by a version that wrote records of JSON."""
    swanlab("swanlab_old")


def skyrl():
    """SkyRL's console logger, as its trainer calls it; $SKYRL is the unpacked wheel."""
    import re

    from loguru import logger

    source = (Path(os.environ["SKYRL"]) / "skyrl/train/utils/tracking.py").read_text()
    # Without its package's imports.
    code = re.search(r"class ConsoleLogger:.*?(?=\n\n\n(class|def|@))", source, re.S)[0]
    space = {"logger": logger, "pprint": __import__("pprint"), "Dict": dict, "Any": object}
    exec(code, space)
    logger.remove()
    with open(HERE / "skyrl_console.log", "w") as out:
        logger.add(out, format="{time:YYYY-MM-DD HH:mm:ss.SSS} | {level: <8} | {name}:{function}:{line} - {message}")
        for step, entropy, reward, length, accuracy in rows():
            data = {"policy/policy_entropy": entropy, "policy/policy_loss": -0.01, "policy/policy_lr": 1e-6}
            data |= {"reward/avg_pass_at_4": min(1.0, 2 * reward), "reward/avg_raw_reward": reward}
            data |= {"generate/avg_num_tokens": length, "trainer/global_step": step, "trainer/epoch": 0}
            if accuracy is not None:
                data |= {"eval/all/avg_score": accuracy, "eval/all/pass_at_1": accuracy}
            space["ConsoleLogger"]().log(data, step)


MADE = {f.__name__: f for f in (trackio, mlflow, wandb, swanlab, swanlab_old, skyrl)}

if __name__ == "__main__":
    for name in sys.argv[1:]:
        MADE[name]()
    print(json.dumps({name: "made" for name in sys.argv[1:]}))
