"""Several runs in one log, and a run that was resumed in it; units, and what a run may be written from."""

import json
import shutil
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import erltool
from erltool import ErltoolError, read_log
from erltool.cli import command as cli
from erltool.law.units import unit_of
from erltool.logs.read import write_run

CASES = Path(__file__).parent / "logs" / "cases"


def rows(first, last, level=0.5, every=1, **more):
    """Rows of a run whose entropy falls from `level` and whose accuracy is entropy's complement."""
    return [
        {"step": t, "entropy": level - t / 1000, "eval_accuracy": 0.1 + t / 1000} | more
        for t in range(first, last + 1, every)
    ]


def jsonl(tmp_path, *parts, name="log.jsonl"):
    file = tmp_path / name
    file.write_text("\n".join(json.dumps(row) for part in parts for row in part) + "\n")
    return file


def entropies(log) -> dict:
    return log.metrics.set_index(log.columns["step"])[log.columns["entropy"]].to_dict()


# --- one run or several --------------------------------------------------------------------------


def test_a_second_run_behind_the_first_is_asked_for_and_each_can_be_had(tmp_path, capsys):
    file = CASES / "appended_second_run.jsonl"
    with pytest.raises(ErltoolError, match=r"holds 2 runs; .* 1 \(steps 1 to 60\), 2 \(steps 1 to 30\)$"):
        read_log(file)
    first, second = read_log(file, run="1"), read_log(file, run=2)
    assert len(first.metrics) == 60 and first.metrics["entropy"].iloc[0] == 0.8484
    assert second.metrics["entropy"].tolist() == [3.0] * 30
    assert (first.run, first.runs) == ("1", ("1", "2"))
    with pytest.raises(ErltoolError, match=r"no run '3'; its runs are 1 \(steps 1 to 60\), 2 \(steps 1 to 30\)$"):
        read_log(file, run="3")
    assert cli.main(["fit", str(file), "--run", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[str(file)]["points"] == 60
    assert cli.main(["import", str(file), "--run", "1", "--out", str(tmp_path / "run")]) == 0
    assert "run: 1, of 2; others are 2" in capsys.readouterr().out
    assert json.loads((tmp_path / "run/config.json").read_text())["imported"]["run"] == "1"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a crash before the first checkpoint, and a new start", [rows(1, 7), rows(1, 60, 0.6)]),
        ("a start from before the middle", [rows(1, 60), rows(20, 80, 0.6)]),
        ("a piece of the middle that goes no further", [rows(1, 60), rows(40, 55, 0.6)]),
        ("other steps than the first run's", [rows(10, 60, every=10), rows(5, 55, 0.6, every=10)]),
        ("an evaluation before each run's first update",
         [[{"step": 0, "eval_accuracy": 0.1}], rows(1, 60), [{"step": 0, "eval_accuracy": 0.3}], rows(1, 60, 0.6)]),
        ("a third run", [rows(1, 60), rows(61, 90), rows(1, 30)]),
    ],
)  # fmt: skip
def test_what_is_no_clear_resumption_is_asked_for(tmp_path, name, parts):
    with pytest.raises(ErltoolError, match=r"holds 2 runs; choose one .* 1 \(steps 1?\d to \d+\), 2 \(steps \d+ to"):
        read_log(jsonl(tmp_path, *parts))


def test_an_evaluation_before_the_second_runs_first_update_is_the_second_runs(tmp_path):
    before = [[{"step": 0, "eval_accuracy": value}] for value in (0.1, 0.3)]
    file = jsonl(tmp_path, before[0], rows(1, 9), before[1], rows(1, 9, 0.6))
    assert [read_log(file, run=name).metrics["eval_accuracy"].iloc[0] for name in "12"] == [0.1, 0.3]


def test_a_resumed_run_is_one_and_what_it_did_again_counts_as_done_last(tmp_path):
    log = read_log(jsonl(tmp_path, rows(1, 57), [{"step": 50, "eval_accuracy": 0.9}], rows(51, 90, 0.6)))
    assert log.run == "" and len(log.metrics) == 90
    assert entropies(log) == {t: (0.5 if t <= 50 else 0.6) - t / 1000 for t in range(1, 91)}
    assert log.metrics["eval_accuracy"].iloc[49] == 0.9
    assert log.skipped["rows that the run did again after it was resumed"] == 7


def test_a_run_that_goes_on_where_it_was_is_one_in_any_order(tmp_path):
    parts = [rows(1, 30), rows(31, 60), rows(61, 90)]
    for order in (parts, parts[::-1], [rows(61, 90), rows(1, 60)]):
        log = read_log(jsonl(tmp_path, *order))
        assert entropies(log) == {t: 0.5 - t / 1000 for t in range(1, 91)}


def test_rows_in_no_order_are_one_run(tmp_path, rng):
    shuffled = [rows(1, 200)[i] for i in rng.permutation(200)]
    log = read_log(jsonl(tmp_path, shuffled))
    assert entropies(log) == {t: 0.5 - t / 1000 for t in range(1, 201)}
    late = rows(1, 60)
    late.insert(40, late.pop(30))  # one row came late
    assert len(read_log(jsonl(tmp_path, late)).metrics) == 60


def test_evaluations_that_come_late_cut_nothing(tmp_path):
    trained = [{"step": t, "entropy": 1 - t / 100} for t in range(1, 61)]
    late = [{"step": t, "eval_accuracy": t / 100} for t in (10, 20, 30)]
    log = read_log(jsonl(tmp_path, trained[:33], late, trained[33:]))
    assert len(entropies(log)) == 60 and list(log.points()["step"]) == [10, 20, 30]


def test_steps_that_fall_back_all_the_time_are_refused(tmp_path):
    with pytest.raises(ErltoolError, match="its steps fall back 1,199 times; sort it by run and step"):
        read_log(jsonl(tmp_path, *[rows(1, 6)] * 1200))


@pytest.mark.parametrize("key", ["run", "run_name", "run_id", "experiment", "exp_name", "Run Name", "seed"])
def test_a_column_that_names_runs_divides_them(tmp_path, key):
    a, b = (0, 1) if key == "seed" else ("base", "kl-cov")
    mixed = [row for pair in zip(rows(1, 30, **{key: a}), rows(1, 30, 0.7, **{key: b}), strict=True) for row in pair]
    file = jsonl(tmp_path, mixed)
    with pytest.raises(ErltoolError, match=f"holds 2 runs; choose one with --run NAME or run=NAME: {a}, {b}$"):
        read_log(file)
    log = read_log(file, run=b)
    assert entropies(log) == {t: 0.7 - t / 1000 for t in range(1, 31)} and log.run == str(b)


@pytest.mark.parametrize("key", ["run", "arm"])
def test_a_column_of_seeds_tells_runs_of_one_name_apart(tmp_path, key):
    """Each arm with several seeds in one table, as a grid's or a data frame's export."""
    parts = [
        rows(1, 30, 0.5 + 0.1 * (arm == "b") + 0.01 * seed, **{key: arm, "seed": seed})
        for arm in "ab"
        for seed in (0, 1)
    ]
    with pytest.raises(ErltoolError, match="run=NAME: a-seed0, a-seed1, b-seed0, b-seed1$"):
        read_log(jsonl(tmp_path, *parts))
    log = read_log(jsonl(tmp_path, *parts), run="b-seed1")
    assert entropies(log) == {t: pytest.approx(0.61 - t / 1000) for t in range(1, 31)}
    one_each = read_log(jsonl(tmp_path, parts[0], parts[3]), run="b" if key == "run" else "1")
    assert len(one_each.metrics) == 30


def test_a_step_that_the_first_validation_has_too_loses_no_row(tmp_path):
    """verl's file logger: the validation before training has `step` 0 and no training/global_step."""
    first = [{"step": 0, "eval_accuracy": 0.1}]
    trained = [row | {"training/global_step": row["step"]} for row in rows(1, 30)]
    log = read_log(jsonl(tmp_path, first, trained))
    assert log.columns["step"] == "step" and len(log.metrics) == 31 and "rows without a step" not in log.skipped


@pytest.mark.parametrize("prefix", ["", "train/", "eval_"])
def test_a_sum_of_several_rewards_is_no_fraction(tmp_path, prefix):
    """Its largest value is the sum of the weights, which no log says."""
    parts = {f"{prefix}rewards/{name}/mean": 0.2 for name in ("digits", "short")}
    one = [{"step": t, "entropy": 0.5 - t / 100, f"{prefix}reward": 0.4 + t / 100} for t in range(1, 31)]
    two = [row | parts for row in one]
    asked = {"performance": f"{prefix}reward"}
    assert read_log(jsonl(tmp_path, one), columns=asked).unit == "fraction"
    log = read_log(jsonl(tmp_path, two), columns=asked)
    assert log.unit == "as given" and not log.unit_stated
    with pytest.raises(ErltoolError, match="neither a fraction nor percentage points"):
        write_run(log, tmp_path / "run")
    assert read_log(jsonl(tmp_path, two), columns=asked, unit="fraction").unit == "fraction"


def test_what_an_import_leaves_out_is_said(tmp_path, capsys):
    signed = [row | {"critic/rewards/mean": -1 + row["step"] / 50} for row in rows(1, 30)]
    assert cli.main(["import", str(jsonl(tmp_path, signed)), "--out", str(tmp_path / "run")]) == 0
    assert "not written: reward, since values of critic/rewards/mean lie outside [0, 1]" in capsys.readouterr().out
    assert "reward" not in erltool.read_run(tmp_path / "run").metrics


def test_a_table_with_lists_in_its_cells_is_no_reason_to_crash(tmp_path, capsys):
    """TRL's completions of a chat model: messages in cells, and no entropy."""
    said = [[{"role": "user", "content": "q"}]] * 30
    table = pd.DataFrame({"step": range(30), "prompt": said, "reward": np.linspace(0, 1, 30)})
    table.to_parquet(tmp_path / "completions_00001.parquet")
    assert cli.main(["fit", str(tmp_path / "completions_00001.parquet")]) == 2
    assert "no column found for entropy" in capsys.readouterr().err
    jsonl(tmp_path, [row | {"run name": "base model"} for row in rows(1, 30)])
    table.assign(entropy=1.0).to_parquet(tmp_path / "tokens.parquet")  # as `erltool inspect --out` writes it
    assert cli.main(["runs", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "--run 'base model'" in told and "parquet" not in told


def test_a_column_of_other_numbers_names_no_runs(tmp_path):
    few = [row | {"exp": round(np.exp(row["entropy"]), 2)} for row in rows(1, 30)]
    assert read_log(jsonl(tmp_path, few)).runs == ()


def test_a_text_column_that_separates_runs_names_them(tmp_path):
    mixed = [row for pair in zip(rows(1, 30, arm="x"), rows(1, 30, 0.7, arm="y"), strict=True) for row in pair]
    for file in (jsonl(tmp_path, mixed), jsonl(tmp_path, rows(1, 30, arm="x"), rows(1, 30, 0.7, arm="y"))):
        with pytest.raises(ErltoolError, match=r"holds 2 runs; .*: x( \(steps 1 to 30\))?, y"):
            read_log(file)
        assert entropies(read_log(file, run="y"))[30] == pytest.approx(0.67)


def test_runs_that_nothing_tells_apart_are_refused(tmp_path, rng):
    mixed = [row for pair in zip(rows(1, 30), rows(1, 30, 0.7), strict=True) for row in pair]
    for order in (range(60), rng.permutation(60)):
        with pytest.raises(
            ErltoolError, match="30 of 30 steps have several entropies side by side; give the log of one"
        ):
            read_log(jsonl(tmp_path, [mixed[i] for i in order]))


def test_a_single_run_that_is_named_is_said_and_may_be_asked_for(tmp_path):
    file = jsonl(tmp_path, rows(1, 30, run="only"))
    assert read_log(file).run == read_log(file, run="only").run == "only"
    for named, asked in ((file, "other"), (jsonl(tmp_path, rows(1, 30), name="b.jsonl"), "a")):
        with pytest.raises(ErltoolError, match=f"no run '{asked}'; it holds a single one"):
            read_log(named, run=asked)


def test_runs_named_in_a_csv_a_parquet_file_and_a_json_document(tmp_path):
    import pandas as pd

    table = pd.DataFrame(rows(1, 30, run="a") + rows(1, 30, 0.7, run="b"))
    table.to_csv(tmp_path / "runs.csv", index=False)
    table.to_parquet(tmp_path / "runs.parquet")
    (tmp_path / "runs.json").write_text(json.dumps({"a": rows(1, 30), "b": rows(1, 30, 0.7)}))
    for name in ("runs.csv", "runs.parquet", "runs.json"):
        with pytest.raises(ErltoolError, match="holds 2 runs; choose one .*: a.*, b"):
            read_log(tmp_path / name)
        assert entropies(read_log(tmp_path / name, run="b"))[1] == pytest.approx(0.699)


def test_what_trl_prints_of_two_runs_or_of_a_resumed_one(tmp_path):
    def printed(first, last, level):
        return [f"{{'loss': 0.1, 'reward': {t / 100}, 'entropy': {level - t / 1000:.4f}, 'epoch': {t / 40:.4g}}}"
                for t in range(first, last + 1)]  # fmt: skip

    two = tmp_path / "two.log"
    two.write_text("\n".join(printed(1, 40, 0.5) + printed(1, 40, 0.7)))
    with pytest.raises(ErltoolError, match=r"holds 2 runs; .* 1 \(steps 1 to 40\), 2 \(steps 1 to 40\)"):
        read_log(two)
    resumed = tmp_path / "resumed.log"
    resumed.write_text("\n".join(printed(1, 35, 0.5) + printed(31, 60, 0.7)))
    found = entropies(read_log(resumed))
    assert found == {t: pytest.approx((0.5 if t <= 30 else 0.7) - t / 1000) for t in range(1, 61)}


# --- folders -------------------------------------------------------------------------------------


@pytest.fixture
def board(tmp_path):
    """Writes an event file into a folder, named by the seconds at which it was begun."""
    pytest.importorskip("tensorboard", reason="writing event files needs tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    def write(folder, seconds, steps, **scalars):
        made = tmp_path / "made"
        writer = SummaryWriter(str(made))
        for t in steps:
            for tag, value in scalars.items():
                writer.add_scalar(tag.replace("__", "/"), value - t / 1000, t)
        writer.close()
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        next(made.iterdir()).rename(tmp_path / folder / f"events.out.tfevents.{seconds}.host.1.0")
        return tmp_path / folder

    return write


def test_event_files_of_a_resumed_run_are_one_run(board):
    board("logs", 1700000000, range(1, 58), actor__entropy=0.5, val__acc=0.4)
    folder = board("logs", 1700000100, range(51, 91), actor__entropy=0.6, val__acc=0.4)
    found = entropies(read_log(folder))
    assert found == {t: pytest.approx((0.5 if t <= 50 else 0.6) - t / 1000, abs=1e-6) for t in range(1, 91)}
    board("logs", 1700000200, range(1, 91), perf__time=3.0)  # scalars of the same run beside them
    assert len(entropies(read_log(folder))) == 90


def test_event_files_of_many_runs_in_one_folder_are_asked_for(board):
    for i in range(23):
        folder = board("logs", 1700000000 + i, range(1, 21), actor__entropy=0.5 + i / 10, val__acc=0.4)
    with pytest.raises(ErltoolError, match=r"holds 23 runs; .*: 1700000000.host.1.0 \(steps 1 to 20\), .* and 15 more"):
        read_log(folder)
    log = read_log(folder, run="1700000007.host.1.0")
    assert entropies(log)[20] == pytest.approx(1.18, abs=1e-6) and len(log.runs) == 23


def test_a_run_in_a_folder_of_folders_is_asked_for(board, tmp_path):
    for name, level in (("a", 0.5), ("b", 0.7)):
        board(f"logs/{name}", 1700000000, range(1, 21), train__entropy=level, val__acc=0.4)
    board("logs/a/1700000000.5", 1700000001, [1], hparam__lr=1.0)  # where trainers keep hyperparameters
    with pytest.raises(ErltoolError, match="holds 2 runs; choose one with --run NAME or run=NAME: a, b$"):
        read_log(tmp_path / "logs")
    assert entropies(read_log(tmp_path / "logs", run="b"))[1] == pytest.approx(0.699, abs=1e-6)
    board("logs/b", 1700000002, range(1, 21), train__entropy=0.9, val__acc=0.4)
    with pytest.raises(ErltoolError, match=r"holds 2 runs; .*: b/1700000000.host.1.0 \(steps 1 to 20\), b/17000000"):
        read_log(tmp_path / "logs", run="b")
    log = read_log(tmp_path / "logs", run="b/1700000002.host.1.0")
    assert entropies(log)[1] == pytest.approx(0.899, abs=1e-6) and log.columns["performance"] == "val/acc"


def test_mlflows_runs_are_named_by_their_names(tmp_path):
    for i, name in enumerate(["base", "kl-cov"]):
        run = tmp_path / "mlruns" / "0" / f"{i}f00"
        shutil.copytree(CASES / "mlflow", run)
        (run / "tags").mkdir()
        (run / "tags" / "mlflow.runName").write_text(name)
        nested = run / "metrics" / "val-core" / "x" / "acc"
        nested.mkdir(parents=True)
        nested.joinpath("mean_at_8").write_text(
            "".join(f"1700000{t:03} {i / 2 + t / 1000} {t}\n" for t in range(1, 61))
        )
    with pytest.raises(ErltoolError, match="holds 2 runs; choose one with --run NAME or run=NAME: base, kl-cov$"):
        read_log(tmp_path / "mlruns")
    log = read_log(tmp_path / "mlruns", run="kl-cov")
    assert log.run == "kl-cov" and log.columns["performance"] == "eval_accuracy" and len(log.points()) == 60
    one = read_log(tmp_path / "mlruns/0/0f00", columns={"performance": "val-core/x/acc/mean_at_8"})
    assert one.metrics["val-core/x/acc/mean_at_8"].tolist() == [t / 1000 for t in range(1, 61)]


# --- units ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values", "unit"),
    [
        ("performance", [0.1, 0.5], "fraction"),
        ("performance", [0.5, 1.9], "as given"),
        ("performance", [0.011, 1.2], "as given"),
        ("performance", [3, 9], "as given"),
        ("performance", [8, 31], "percentage points"),
        ("reward", [0.9, 0.011, 1.2], "as given"),
        ("reward", [1.06, 1.9], "as given"),
        ("train/reward", [0.01, 1.1, 9], "as given"),
        ("reward", [5, 60], "as given"),
        ("critic/score/mean", [5, 60], "as given"),
        ("eval/score", [30, 60], "as given"),
        ("reward", [-1, 0.5], "as given"),
        ("val/acc", [0.2, 1.4], "as given"),
        ("val/acc", [0.2, 4], "percentage points"),
        ("eval_countdown_pass1", [12, 40], "percentage points"),
        ("val-core/x/acc/mean@8", [12, 40], "percentage points"),
        ("reward (%)", [12, 40], "percentage points"),
        ("acc_pct", [0.5, 1.5], "percentage points"),
        ("eval/correct", [3, 17], "as given"),
        ("eval/solved", [5, 29], "as given"),
        ("eval/correct", [2.5, 17.5], "percentage points"),
        ("eval/success_rate", [5, 29], "percentage points"),
        ("val/acc", [12, 140], "as given"),
    ],
)
def test_a_unit_is_read_off_name_and_values(name, values, unit):
    assert unit_of(values, name=name) == unit


def test_a_unit_can_be_stated_in_python_and_on_both_commands(tmp_path, capsys):
    file = tmp_path / "log.csv"
    lines = [f"{t},{1 - t / 50},{60 + t / 10}" for t in range(1, 31)]
    file.write_text("\n".join(["step,entropy,reward", *lines]) + "\n")
    assert read_log(file).unit == "as given" and not read_log(file).unit_stated
    assert read_log(file, unit="percentage points").unit_stated
    out = tmp_path / "run"
    assert cli.main(["import", str(file), "--out", str(out)]) == 2
    assert "neither a fraction nor percentage points" in capsys.readouterr().err and not out.exists()
    assert cli.main(["import", str(file), "--out", str(out), "--unit", "percentage-points"]) == 0
    assert "percentage points, as stated" in capsys.readouterr().out
    assert erltool.read_run(out).evaluated()["eval_accuracy"].iloc[0] == pytest.approx(0.601)
    assert cli.main(["fit", str(file), "--unit", "percentage points", "--json"]) == 0
    fit = json.loads(capsys.readouterr().out)[str(file)]
    assert fit["unit"] == "percentage points" and fit["unit_stated"]
    assert cli.main(["fit", str(file)]) == 0 and "R in as given" in capsys.readouterr().out
    for bad in ("fraction", "percent"):
        assert cli.main(["fit", str(file), "--unit", bad]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_sum_of_rewards_becomes_no_accuracy(tmp_path):
    log = read_log(CASES / "trl_sum_of_rewards.json")
    with pytest.raises(ErltoolError, match="'reward' is neither a fraction nor percentage points"):
        write_run(log, tmp_path / "run")
    over = read_log(CASES / "trl_sum_of_rewards.json", unit="percentage points")
    assert write_run(over, tmp_path / "run")["unit"] == "percentage points"
    assert "reward" not in erltool.read_run(tmp_path / "run").metrics  # above the 1 of its name


def test_percents_become_fractions_in_a_run(tmp_path):
    file = tmp_path / "log.csv"
    file.write_text("step,entropy,val_acc,clip_fraction\n1,0.9,10%,2%\n2,0.7,20%,4%\n3,0.5,30%,50%\n")
    write_run(read_log(file), tmp_path / "run")
    rows = erltool.read_run(tmp_path / "run").metrics
    assert rows["eval_accuracy"].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert rows["clip_fraction"].tolist() == pytest.approx([0.02, 0.04, 0.5])


# --- what fit says of a log ----------------------------------------------------------------------


def test_fit_takes_the_corrections_that_it_recommends(tmp_path, capsys):
    file = tmp_path / "log.csv"
    rows = [f"{t},{1 - t / 50},{0.2 + t / 100},{t}" for t in range(1, 31)]
    file.write_text("\n".join(["n,my H,mine,entropy_coef", *rows]) + "\n")
    words = ["--step", "n", "--entropy", "my H", "--performance", "mine"]
    for k in (0, 2, 4):
        assert cli.main(["fit", str(file), *words[:k], *words[k + 2 :]]) == 2
        assert f"no column found for {words[k][2:]}; name it with {words[k]} COL" in capsys.readouterr().err
    assert cli.main(["fit", str(file), *words, "--json"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)[str(file)]["points"] == 30
    assert "step n, entropy my H, performance mine" in out.err
    assert max(map(len, out.err.splitlines()[1:])) <= 80


def test_what_gives_no_point_is_counted_and_decimals_are_numbers(tmp_path, capsys):
    gone = [row | {"entropy": float("nan")} if row["step"] % 4 == 0 else row for row in rows(1, 40)]
    assert cli.main(["fit", str(jsonl(tmp_path, gone))]) == 0
    assert "10 measurements of performance without an entropy in the window" in capsys.readouterr().err
    table = pd.DataFrame(rows(1, 40)).map(lambda v: Decimal(str(v)))
    table.to_parquet(tmp_path / "log.parquet")
    assert entropies(read_log(tmp_path / "log.parquet")) == {r["step"]: r["entropy"] for r in rows(1, 40)}


def test_minus_a_column_is_taken_when_asked_for(capsys):
    file = CASES / "negative_entropy_loss.jsonl"
    log = read_log(file, columns={"entropy": "-actor/entropy_loss"})
    assert log.points()["entropy"].iloc[[0, -1]].tolist() == [0.8484, 0.1147]
    assert cli.main(["fit", str(file), "--entropy=-actor/entropy_loss", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[str(file)]["a"] > 0
    with pytest.raises(ErltoolError, match="lies below 0"):
        read_log(file, columns={"entropy": "actor/entropy_loss"})
    with pytest.raises(ErltoolError, match="lies below 0"):
        read_log(CASES / "german.csv", columns={"entropy": "-entropy"})


def test_the_average_of_an_imported_runs_entropy_is_the_logs(tmp_path, capsys):
    write_run(read_log(CASES / "swift.jsonl"), tmp_path / "run")
    assert "Eq 5" in read_log(tmp_path / "run").entropy_average
    assert cli.main(["fit", str(tmp_path / "run")]) == 0 and "as ms-swift logs it" in " ".join(
        capsys.readouterr().out.split()
    )
    log = read_log(CASES / "german.csv")
    assert log.entropy_average == "not known: the log (CSV) does not say over what it averages"
    assert "numbers: read with decimal commas" in log.notes


def test_hostile_names_of_runs_reach_no_terminal(tmp_path, capsys):
    evil = "a\x1b]0;owned\x07\u202e"
    file = jsonl(tmp_path, rows(1, 30, run=evil), rows(1, 30, 0.7, run="b"))
    assert cli.main(["import", str(file)]) == 2
    assert cli.main(["import", str(file), "--run", evil]) == 0
    out = capsys.readouterr()
    assert not set("\x1b\x07\u202e") & set(out.out + out.err)


def test_hostile_tables_cost_no_more_than_their_length(tmp_path):
    import time

    table = (CASES / "notebook_table.html").read_text()
    hostile = [
        "<a " * 100_000,
        "<td" * 100_000,
        "<td>" * 100_000,
        "<!--" * 80_000,
        "&" * 300_000,
        "<table><tr>" * 40_000,
    ]
    began = time.process_time()
    for i, text in enumerate(hostile):
        (tmp_path / f"{i}.html").write_text(f"<p>{text}</p></table>{table}")
        assert len(read_log(tmp_path / f"{i}.html").points()) == 60
    for i, text in enumerate(
        ["|" * 300_000, "|-" * 150_000, "| step " + "|-" * 100_000, "{'" * 150_000, "{'a': 1," * 40_000]
    ):
        (tmp_path / f"{i}.md").write_text(f"{text}\n{text}\n\n" + (CASES / "notebook_table.md").read_text())
        assert len(read_log(tmp_path / f"{i}.md").points()) == 60
    (tmp_path / "n.csv").write_text(f'step,entropy,accuracy,t\n1,0.5,0.1,"{"1," * 100_000}"\n2,0.4,0.2,x\n')
    assert len(read_log(tmp_path / "n.csv").points()) == 2
    assert time.process_time() - began < 10


def test_points_hold_numpy_floats_and_the_unit(rng):
    points = read_log(CASES / "trl_sum_of_rewards.json").points()
    assert points.attrs["unit"] == "as given" and np.isfinite(points["performance"]).all()
    fitter = erltool.fit_law(points["entropy"], points["performance"], unit=points.attrs["unit"])
    assert fitter.unit == "as given" and fitter.a == pytest.approx(0.7, abs=1e-3)
