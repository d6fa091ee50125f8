"""Metrics stores as the tools write them (tests/logs, make_stores.py): Trackio, MLflow, W&B and SwanLab offline, and
SkyRL's console. Right columns, unit and numbers without an option; damage and unknown versions are said in one line."""

import json
import shutil
import sqlite3
import struct
import zlib
from pathlib import Path

import pytest

from erltool import ErltoolError, read_log
from erltool.cli import command as cli
from erltool.logs import records
from erltool.logs.text import Counts

LOGS = Path(__file__).parent / "logs"
ROWS = [json.loads(line) for line in open(LOGS / "verl.jsonl")]
ENTROPY = {row["step"]: row["data"]["actor/entropy"] for row in ROWS if "actor/entropy" in row["data"]}
REWARD = {row["step"]: row["data"]["critic/rewards/mean"] for row in ROWS if "actor/entropy" in row["data"]}
HELD_OUT = "val-core/countdown/acc/mean@8"
ACCURACY = {row["step"]: row["data"][HELD_OUT] for row in ROWS if HELD_OUT in row["data"] and row["step"]}
TRL = ("train/global_step", "train/entropy", "eval/reward", "TRL")
WANDB = LOGS / "wandb/offline-run-20260101_000000-abcd1234/run-abcd1234.wandb"
SWANLAB = LOGS / "swanlab/run-20260101_000000-abcd1234/run-abcd1234.swanlab"


@pytest.mark.parametrize(
    ("name", "run", "kind", "wanted"),
    [
        ("trackio/grpo.db", "base", "Trackio", TRL),
        ("trackio", "base", "Trackio", TRL),
        ("mlflow.db", "base", "MLflow", ("step", "actor/entropy", "val-core/countdown/acc/mean_at_8", "verl")),
        ("mlruns", None, "MLflow", ("step", "actor/entropy", "val-core/countdown/acc/mean_at_8", "verl")),
        ("wandb", None, "W&B run", TRL),
        (WANDB.relative_to(LOGS), None, "W&B run", TRL),
        ("swanlab", None, "SwanLab run", TRL),
        ("swanlab_old", None, "SwanLab run", TRL),
        ("skyrl_console.log", None, "SkyRL console",
         ("trainer/global_step", "policy/policy_entropy", "eval/all/pass_at_1", "SkyRL")),
    ],
)  # fmt: skip
def test_the_tools_own_stores_give_the_numbers_that_went_in(name, run, kind, wanted):
    log = read_log(LOGS / name, run=run)
    step, entropy, performance, average = wanted
    assert log.kind == kind and log.unit == "fraction" and average in log.entropy_average
    assert {**log.columns, "step": step, "entropy": entropy, "performance": performance} == log.columns
    by = log.metrics.set_index(step)
    rounded = 1e-4 if kind == "SkyRL console" else 1e-12  # SkyRL prints four decimals
    assert by[entropy].dropna().to_dict() == pytest.approx(ENTROPY, abs=rounded)
    assert by[log.columns["reward"]].dropna().to_dict() == pytest.approx(REWARD, abs=rounded)
    assert by[performance].dropna().to_dict() == pytest.approx(ACCURACY, abs=rounded)
    assert not [reason for reason in log.skipped if "duplicated" in reason or "order" in reason]
    assert log.run == ("base" if kind != "SkyRL console" else "")


@pytest.mark.parametrize("name", ["trackio", "trackio/grpo.db", "mlflow.db"])
def test_a_database_of_two_runs_asks_and_each_can_be_had(name, capsys):
    with pytest.raises(ErltoolError, match="holds 2 runs; choose one with --run NAME or run=NAME: base, kl-cov$"):
        read_log(LOGS / name)
    log = read_log(LOGS / name, run="kl-cov")
    values = log.metrics.set_index(log.columns["step"])[log.columns["entropy"]].dropna()
    assert values.to_dict() == pytest.approx({step: h + 0.1 for step, h in ENTROPY.items() if step <= 6})
    assert cli.main(["fit", str(LOGS / name), "--run", "base"]) == 0


def test_a_database_is_read_without_a_file_beside_it_and_while_it_is_written(tmp_path):
    file = Path(shutil.copy(LOGS / "trackio/grpo.db", tmp_path))
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA journal_mode = WAL")
    db.close()
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    assert len(read_log(file, run="base").metrics) == 24
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before
    writer = sqlite3.connect(file)
    row = json.dumps({"train/entropy": 0.001, "train/reward": 1.0, "train/global_step": 25})
    run = writer.execute("SELECT run_id FROM metrics WHERE run_name = 'base'").fetchone()[0]
    writer.execute("INSERT INTO metrics (run_id, timestamp, run_name, step, metrics) VALUES (?, '', 'base', 99, ?)",
                   (run, row))  # fmt: skip
    writer.commit()
    assert len(read_log(file, run="base").metrics) == 25
    writer.close()


def test_several_projects_and_equal_names_are_told_apart(tmp_path):
    for name in ("grpo", "other"):
        shutil.copy(LOGS / "trackio/grpo.db", tmp_path / f"{name}.db")
    with pytest.raises(ErltoolError, match="grpo/base, grpo/kl-cov, other/base, other/kl-cov$"):
        read_log(tmp_path)
    with sqlite3.connect(tmp_path / "grpo.db") as db:
        db.execute("UPDATE metrics SET run_name = 'same'")
    db.close()
    with pytest.raises(ErltoolError, match=r"holds 2 runs.*: same [0-9a-f]{8}, same [0-9a-f]{8}$"):
        read_log(tmp_path / "grpo.db")


def test_databases_of_trackios_first_versions_have_no_run_id(tmp_path):
    with sqlite3.connect(tmp_path / "old.db") as db:
        db.execute(
            "CREATE TABLE metrics (id INTEGER PRIMARY KEY, timestamp TEXT, run_name TEXT, step INT, metrics TEXT)"
        )
        for run in "ab":
            for t in range(5):
                text = json.dumps({"entropy": 1 - t / 10, "reward": t / 10}) if t != 3 else "{torn"
                db.execute(
                    "INSERT INTO metrics (timestamp, run_name, step, metrics) VALUES ('', ?, ?, ?)", (run, t, text)
                )
    db.close()
    log = read_log(tmp_path / "old.db", run="b")
    assert list(log.metrics["step"]) == [0, 1, 2, 4] and log.skipped == {"unreadable rows": 1}


def test_deleted_runs_of_mlflow_are_left_out_and_infinite_values_are_none(tmp_path):
    file = Path(shutil.copy(LOGS / "mlflow.db", tmp_path))
    with sqlite3.connect(file) as db:
        db.execute("UPDATE runs SET lifecycle_stage = 'deleted' WHERE name = 'kl-cov'")
        db.execute("UPDATE metrics SET value = 1.7976931348623157e308 WHERE key = 'critic/rewards/mean' AND step = 2")
    db.close()
    log = read_log(file)
    assert log.run == "base" and log.metrics["critic/rewards/mean"].isna().sum() == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda db: db.execute("CREATE TABLE other (a)"), "an SQLite database, but neither Trackio's nor MLflow's"),
        (lambda db: db.execute("CREATE VIEW metrics AS SELECT '' AS run_name, 1 AS step, '' AS metrics"),
         "neither Trackio's nor MLflow's"),
    ],
)  # fmt: skip
def test_another_database_is_refused(tmp_path, make, message):
    with sqlite3.connect(tmp_path / "x.db") as db:
        make(db)
    db.close()
    with pytest.raises(ErltoolError, match=message):
        read_log(tmp_path / "x.db")


def test_a_damaged_database_is_one_line(tmp_path, capsys):
    blob = bytearray((LOGS / "trackio/grpo.db").read_bytes())
    for size in (200, 5000, len(blob) // 2):
        (tmp_path / "x.db").write_bytes(blob[:size])
        assert cli.main(["import", str(tmp_path / "x.db"), "--run", "base"]) == 2
        err = capsys.readouterr().err
        assert "not readable as SQLite" in err and err.count("\n") == 1
    (tmp_path / "y.db").write_bytes(blob[:100] + bytes(400) + blob[500:])
    assert cli.main(["import", str(tmp_path / "y.db")]) == 2


# --- files of records ------------------------------------------------------------------------------


def frames(*payloads: bytes, head: bytes = b":W&B\xe1\xbe\x00") -> bytes:
    """A file of records, written by LevelDB's rules: no chunk crosses a block of 32 KiB."""
    out = bytearray(head)
    for payload in payloads:
        first = True
        while first or payload:
            left = records.BLOCK - len(out) % records.BLOCK
            if left < records.HEADER:
                out += bytes(left)
                left = records.BLOCK
            piece, payload = payload[: left - 7], payload[left - 7 :]
            kind = (1 if first else 4) if not payload else (2 if first else 3)
            out += struct.pack("<IHB", zlib.crc32(piece, zlib.crc32(bytes([kind]))), len(piece), kind) + piece
            first = False
    return bytes(out)


def read_frames(file: Path, at: int = 0):
    skipped = Counts()
    return list(records.framed(file, at, skipped)), dict(skipped)


def test_records_are_framed_across_blocks_and_reading_goes_on_anywhere(tmp_path, rng):
    sizes = [0, 1, 32_740, 32_768 - 7, 5, 100_000, 3, *rng.integers(0, 40_000, 30)]
    payloads = [rng.bytes(int(n)) for n in sizes]
    (tmp_path / "x").write_bytes(frames(*payloads))
    found, skipped = read_frames(tmp_path / "x")
    assert [payload for _, payload in found] == payloads and not skipped
    for index in (0, 3, 5, 20):
        rest, _ = read_frames(tmp_path / "x", found[index][0])
        assert [payload for _, payload in rest] == payloads[index + 1 :]


def test_a_file_that_ends_anywhere_gives_its_whole_records_and_goes_on(tmp_path):
    payloads = [b"a" * 50, b"b" * 40_000, b"c" * 9]
    whole = frames(*payloads)
    for size in [*range(7, 200), *range(32_700, 32_800), *range(40_000, len(whole) + 1)]:
        (tmp_path / "x").write_bytes(whole[:size])
        found, skipped = read_frames(tmp_path / "x")
        at = found[-1][0] if found else 0
        (tmp_path / "x").write_bytes(whole)
        rest, more = read_frames(tmp_path / "x", at)
        assert [p for _, p in found + rest] == payloads and not skipped and not more


def test_damaged_records_are_counted_and_the_next_block_is_read(tmp_path):
    whole = bytearray(frames(*[bytes([i]) * 1000 for i in range(100)]))
    whole[40_000] ^= 1
    (tmp_path / "x").write_bytes(whole)
    found, skipped = read_frames(tmp_path / "x")
    assert len(found) == 99 and skipped == {"damaged records": 1}
    whole[33_000:60_000] = bytes(27_000)
    (tmp_path / "x").write_bytes(whole)
    found, skipped = read_frames(tmp_path / "x")
    assert 60 < len(found) < 99 and skipped["damaged blocks of records"] == 1 and found[-1][1] == bytes([99]) * 1000


@pytest.mark.parametrize("file", [WANDB, SWANLAB])
def test_any_byte_may_be_wrong(tmp_path, rng, file):
    blob = file.read_bytes()
    for _ in range(60):
        bad = bytearray(blob)
        for at in rng.integers(7, len(bad), 3):
            bad[at] = rng.integers(256)
        (tmp_path / file.name).write_bytes(bad)
        try:
            read_log(tmp_path / file.name)
        except ErltoolError as e:
            assert "\n" not in str(e)


def test_messages_that_are_none_are_counted(tmp_path, rng):
    history = bytes.fromhex("1204") + b"\x0a\x02\x0a\x00"  # an item without name and value
    (tmp_path / "x.wandb").write_bytes(
        frames(*[rng.bytes(20) for _ in range(200)], b"\x12\xff\xff\xff\xff\xff", history)
    )
    skipped = Counts()
    rows = list(records.wandb_rows(tmp_path / "x.wandb", 0, skipped, None))
    assert skipped["unreadable records"] > 50 and all(isinstance(row, dict) for _, row in rows)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b":W&B\xe1\xbe\x07", "of version 7, and this erltool reads 0; export the run as CSV"),
        (b":SWL\xd6\xe1\x09", "of version 9, and this erltool reads 1 and 2"),
        (b":W&B\x00\x00\x00", "does not begin like a .wandb or .swanlab file"),
    ],
)
def test_versions_that_are_not_known_are_refused(tmp_path, capsys, head, message):
    (tmp_path / "run-x.wandb").write_bytes(frames(b"abc", head=head))
    assert cli.main(["import", str(tmp_path / "run-x.wandb")]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_what_wandb_wrote_beside_scalars_is_read_or_left():
    log = read_log(WANDB)
    assert log.metrics["profiling/sampling"].dropna().tolist() == [1.5]
    assert not any("histogram" in name for name in log.metrics)


def test_a_run_of_several_files_is_one_and_a_link_is_none(tmp_path):
    for name in ("offline-run-1-abcd1234", "offline-run-2-abcd1234"):
        shutil.copytree(WANDB.parent, tmp_path / "wandb" / name)
    (tmp_path / "wandb/latest-run").symlink_to("offline-run-2-abcd1234", target_is_directory=True)
    assert list(records.record_runs(tmp_path / "wandb", "W&B run")) == ["base"]
    with pytest.raises(ErltoolError, match="holds 2 runs; .* offline-run-1-abcd1234 .*, offline-run-2"):
        read_log(tmp_path / "wandb")  # both began at the first step


def test_a_trainers_last_checkpoint_has_its_state(tmp_path):
    for step in (2, 10, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}/trainer_state.json").write_text("{}")
    shutil.copy(LOGS / "trainer_state.json", tmp_path / "checkpoint-10")
    assert read_log(tmp_path).kind == "TRL trainer_state"


def test_mlflows_files_are_merged_by_time_in_pieces(tmp_path, monkeypatch):
    from erltool.logs import folders

    whole = read_log(LOGS / "mlruns").metrics
    monkeypatch.setattr(folders, "MLFLOW_PIECE", 64)
    assert read_log(LOGS / "mlruns").metrics.equals(whole)


@pytest.mark.parametrize(
    ("name", "run"), [("trackio", "base"), ("mlflow.db", "base"), ("mlruns", None), ("wandb", None), ("swanlab", None)]
)
def test_of_a_large_store_only_columns_with_a_role_are_kept_and_each_is_judged_once(name, run, monkeypatch):
    from erltool.logs import formats
    from erltool.logs import read as logread

    whole = read_log(LOGS / name, run=run)
    asked: list[str] = []
    real = logread.has_role
    monkeypatch.setattr(formats, "LARGE", 100)
    monkeypatch.setattr(logread, "has_role", lambda metric: (asked.append(metric), real(metric))[1])
    log = read_log(LOGS / name, run=run)
    roles = {whole.columns[role] for role in ("step", "entropy", "performance", "reward")}
    assert roles <= set(log.metrics) and len(asked) == len(set(asked))
    for column in roles:
        assert log.metrics[column].equals(whole.metrics[column])
