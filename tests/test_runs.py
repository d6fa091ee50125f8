import json

import numpy as np
import pandas as pd
import pytest

import erltool
from erltool import ErltoolError, fit_law, forecast, plot_fit, plot_run, read_run, read_runs
from erltool.controls.catalog import control_to_dict
from erltool.plots import plot_forecast
from erltool.resources import shipped
from erltool.runs.folder import (
    METRICS,
    PUSH_COLUMNS,
    SPARSE,
    TIMED,
    TOKEN_COLUMNS,
    former_control,
    read_table,
    record_runs,
    write_table,
)


@pytest.fixture(scope="module")
def folder(tiny_policy, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    config = erltool.TrainConfig(
        policy=str(tiny_policy), task="countdown", steps=8, prompts_per_iteration=4, group_size=4,
        updates_per_iteration=2,
        max_response_tokens=8, lora_rank=4, eval_every=1, eval_prompts=8, eval_samples=1, record_every=2,
        record_prompts=1,
    )  # fmt: skip
    list(erltool.train(config, out))
    return out


def test_a_run_reads_back_as_it_was(folder):
    run = read_run(folder)
    assert set(METRICS) - set(SPARSE) <= set(run.metrics) <= set(METRICS) and run.skipped_lines == 0
    assert run.metrics["step"].tolist() == list(range(1, 9)) and run.metrics["iteration"].tolist() == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
    ]
    assert erltool.TrainConfig.from_dict(run.config).to_dict() == run.config
    assert {"torch", "transformers", "peft", "device", "threads", "commit"} <= set(run.made_by)
    assert run.evaluated()["step"].tolist() == [1, 3, 5, 7, 8]


def test_every_metric_has_a_unit_and_a_meaning_and_the_writer_keeps_to_them(folder):
    for name, (unit, meaning) in METRICS.items():
        assert unit and meaning and name == name.lower()
    written = set()
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        written |= set(json.loads(line))
    assert set(METRICS) - set(SPARSE) - set(TIMED) <= written <= set(METRICS) - set(TIMED)
    contract = (
        "step, iteration, reward, policy_entropy, sampled_nll, mean_covariance, response_length, zero_spread_fraction, "
        "selected_fraction, clip_fraction, kl_k1, kl_k3, grad_norm, tokens_per_second, eval_accuracy"
    )
    assert set(contract.split(", ")) <= set(METRICS)


def test_tokens_are_of_the_sampled_prompts_and_steps(folder):
    tokens = read_run(folder).tokens
    assert tuple(tokens.columns) == (*TOKEN_COLUMNS, *PUSH_COLUMNS)
    assert sorted(tokens["step"].unique()) == [2, 6] and tokens["prompt_index"].unique().tolist() == [0]
    assert (tokens["entropy"] > 0).all() and (tokens["log_prob"] <= 0).all()
    assert tokens.groupby(["step", "response_index"])["position"].apply(lambda p: list(p) == list(range(len(p)))).all()


def test_a_truncated_or_garbled_file_is_read_as_far_as_it_goes(folder, tmp_path):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    whole = (folder / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole[:-40])
    assert (len(read_run(tmp_path).metrics), read_run(tmp_path).skipped_lines) == (7, 1)
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe\n[1]\nnull\n" + whole)
    assert (len(read_run(tmp_path).metrics), read_run(tmp_path).skipped_lines) == (8, 3)
    (tmp_path / "metrics.jsonl").unlink()
    assert read_run(tmp_path).metrics.empty and read_run(tmp_path).evaluated().empty


def test_missing_and_foreign_folders_are_named(folder, tmp_path):
    with pytest.raises(ErltoolError, match="no such folder"):
        read_run(tmp_path / "nothing")
    with pytest.raises(ErltoolError, match="not an erltool run"):
        read_run(tmp_path)
    (tmp_path / "config.json").write_text('{"model": "other"}')
    with pytest.raises(ErltoolError, match="not a run's config"):
        read_run(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ErltoolError, match="tokens.parquet: not there"):
        _ = read_run(tmp_path).tokens
    (tmp_path / "tokens.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ErltoolError, match="not readable as Parquet"):
        _ = read_run(tmp_path).tokens


def copy(folder, tmp_path, metrics):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "metrics.jsonl").write_bytes(metrics)
    return read_run(tmp_path)


def test_what_is_no_finite_number_is_missing_and_not_in_the_way(folder, tmp_path):
    lines = [
        b'{"step": 2, "reward": NaN, "policy_entropy": "0.3", "grad_norm": [1], "kl_k1": -Infinity, "kl_k3": 1e999}',
        b'{"step": 1, "reward": 0.5, "response_tokens": ' + b"9" * 400 + b"}",
    ]
    run = copy(folder, tmp_path, b"\n".join(lines) + b"\n")
    assert run.metrics["step"].tolist() == [1, 2] and run.skipped_lines == 0
    assert run.metrics["reward"].isna().tolist() == [False, True]
    assert list(run.metrics) == ["step", "reward"]


@pytest.mark.parametrize(
    "line", ['{"step": "3"}', '{"step": null}', '{"step": true}', '{"step": -1}', '{"step": 1.5}', "[" * 100_000, "{"]
)
def test_a_line_without_a_step_is_skipped_and_counted(folder, tmp_path, line):
    run = copy(folder, tmp_path, (folder / "metrics.jsonl").read_bytes() + line.encode())
    assert run.metrics["step"].tolist() == list(range(1, 9)) and run.skipped_lines == 1


def test_of_lines_of_one_step_the_last_is_taken_and_the_others_are_counted(folder, tmp_path):
    """As two simultaneous writers once left it: 344 rows of 200 steps."""
    whole = (folder / "metrics.jsonl").read_bytes()
    again = whole.replace(b'"reward"', b'"reward": 9, "reward_before"').splitlines(keepends=True)
    run = copy(folder, tmp_path, whole + b"".join(again[3:6]))
    assert run.metrics["step"].tolist() == list(range(1, 9)) and run.skipped_lines == 3
    assert (run.metrics["reward"] == 9).tolist() == [False] * 3 + [True] * 3 + [False] * 2


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[]", "TypeError"),
        ("[" * 100_000, "RecursionError"),
        ('{"config": []}', "config is list, not dict"),
        ('{"config": {"steps": "8"}}', "steps is not a whole number"),
        ('{"config": {"steps": 8}, "made_by": 3}', "made_by is int, not dict"),
        ('{"config": {"steps": 8}, "continued_by": {"step": 3}}', "continued_by is dict, not list"),
        ('{"config": {"steps": 8}, "continued_by": [{"step": "3"}]}', "continued_by is not a list of versions"),
    ],
)
def test_a_config_of_other_types_is_one_line(tmp_path, document, message):
    (tmp_path / "config.json").write_text(document)
    with pytest.raises(ErltoolError, match="not a run's config") as e:
        read_run(tmp_path)
    assert message in str(e.value) and "\n" not in str(e.value) and len(str(e.value)) < 400


def test_a_table_or_an_evaluation_that_is_none_is_one_line(folder, tmp_path):
    run = copy(folder, tmp_path, b"")
    pd.DataFrame({"step": [1]}).to_parquet(tmp_path / "tokens.parquet")
    with pytest.raises(ErltoolError, match="tokens.parquet: has no column advantage"):
        _ = run.tokens
    (tmp_path / "evaluation.json").write_text("[1]")
    with pytest.raises(ErltoolError, match="evaluation.json: damaged"):
        _ = run.evaluation


@pytest.mark.parametrize(
    "document",
    ['{"a": {}}', '{"a": 3}', '{"b": {"config": {"steps": 2}}}', '{"a": {"config": {"steps": 2}, "evaluation": 3}}'],
)
def test_runs_recorded_together_of_other_types_are_one_line(tmp_path, document):
    pd.DataFrame({"run": ["a"], "step": [1], "iteration": [0]}).to_parquet(tmp_path / "metrics.parquet")
    (tmp_path / "runs.json").write_text(document)
    with pytest.raises(ErltoolError, match="do not fit") as e:
        read_runs(tmp_path)
    assert "\n" not in str(e.value)


def test_places_that_cannot_hold_a_run_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for place, message in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "run", "Not a directory"),
        (tmp_path / "nowhere", "cannot write"),
        (tmp_path / ("long" * 80), "File name too long"),
    ):
        with pytest.raises(ErltoolError, match=message) as e:
            erltool.train(erltool.TrainConfig(), place)
        assert "\n" not in str(e.value)


def test_plots_draw_the_data_on_the_given_axes(folder):
    run = read_run(folder)
    ax = plot_run(run, "policy_entropy", label="mine")
    line = ax.get_lines()[0]
    assert line.get_xdata().tolist() == run.metrics["step"].tolist()
    assert line.get_ydata().tolist() == run.metrics["policy_entropy"].tolist()
    assert ax.get_ylabel() == "policy entropy (nats/token)" and ax.get_xlabel() == "optimiser step"
    assert plot_run(run, "eval_accuracy", ax=ax, index=1) is ax
    assert len(ax.get_lines()) == 2 and len(ax.get_lines()[1].get_xdata()) == 5
    with pytest.raises(ErltoolError, match="no metric 'loss'"):
        plot_run(run, "loss")


def test_plot_fit_draws_points_law_and_ceiling():
    result = fit_law([0.5, 0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.25, 0.32, 0.36])
    ax = plot_fit(result)
    points, law = ax.get_lines()[:2]
    assert points.get_xdata().tolist() == result.entropy.tolist()
    assert law.get_ydata()[0] == pytest.approx(result.ceiling) and law.get_xdata()[-1] == 0.5
    assert ax.figure._repr_png_().startswith(b"\x89PNG")
    assert "nats/token" in ax.get_xlabel() and ax.figure.get_facecolor() == (1, 1, 1, 1)


def test_plot_forecast_draws_fitted_and_later_points_and_the_interval():
    h = np.linspace(1, 0.1, 20)
    found = forecast(h, 0.7 - 0.2 * np.exp(h) + 0.01 * np.sin(9 * h), cut=0.5)
    ax = plot_forecast(found)
    fitted, later, law = ax.get_lines()
    assert (len(fitted.get_xdata()), len(later.get_xdata())) == (10, 10)
    assert law.get_ydata()[0] == pytest.approx(found.law.ceiling) and "fraction" in ax.get_ylabel()
    low, high = found.at(0.0)
    band = ax.collections[0].get_paths()[0].vertices
    assert {low, high} <= set(band[band[:, 0] == 0][:, 1])


def test_a_control_that_steered_itself_is_read_as_a_control_and_its_controller():
    """As runs were written before controllers existed; data/runs/discovery has some."""
    runs = read_runs(shipped("data/runs/discovery"))
    config = erltool.TrainConfig.from_dict(runs["discovery-seed10-annealed-clip-cov"].config)
    assert config.control == erltool.ClipCov(0.02, 0.5, 50.0)
    assert config.controller == erltool.Schedule(start=1400, length=300)
    target = {"name": "target-entropy", "target": 0.4, "rate": 0.1, "min_fraction": 1e-4, "max_fraction": 0.5}
    bonus = {"name": "adaptive-entropy-bonus", "target": 0.2, "delta": 1e-4, "max_coef": 5e-3, "coef": 0.0}
    members = [target | {"control": {"name": "kl-cov", "fraction": 0.1, "coef": 2.0, "estimator": "k1"}}, bonus]
    for control, wanted, controller in (
        (members[0], erltool.KLCov(0.1, 2.0), erltool.TargetEntropy(0.4)),
        (bonus, erltool.EntropyBonus(0.0, below=0.2), erltool.AdaptiveBonus()),
        ({"name": "entropy-bonus", "coef": 0.1}, erltool.EntropyBonus(0.1), None),
        ({"name": "composed", "members": [members[0], {"name": "entropy-bonus", "coef": 0.1}]},
         erltool.KLCov(0.1, 2.0) + erltool.EntropyBonus(0.1), erltool.TargetEntropy(0.4)),
    ):  # fmt: skip
        control, found = former_control(control)
        config = erltool.TrainConfig.from_dict({"control": control, "controller": found})
        assert config.control == wanted and config.controller == controller


def test_a_run_may_be_older_than_a_field_of_its_control():
    """Once KL-Cov had a new field, each of its recorded runs seemed to have another configuration than its grid."""
    assert erltool.KLCov().dead_zone is None
    for grid in ("sweep", "sharpening", "discovery"):
        for run in read_runs(shipped(f"data/runs/{grid}")).values():
            written = run.config["control"]
            assert control_to_dict(erltool.TrainConfig.from_dict(run.config).control) == written
    assert "dead_zone" in read_runs(shipped("data/runs/sweep"))["sweep-seed0-kl-cov-fraction0.02"].config["control"]


def test_a_run_says_its_format_and_a_newer_one_is_refused(folder, tmp_path):
    document = json.loads((folder / "config.json").read_text())
    assert document["format"] == 2
    (tmp_path / "run").mkdir()
    for newer in (3, "2", True):
        (tmp_path / "run" / "config.json").write_text(json.dumps(document | {"format": newer}))
        with pytest.raises(ErltoolError, match="this erltool reads formats up to 2") as error:
            read_run(tmp_path / "run")
        assert "\n" not in str(error.value)


def test_a_record_gives_each_run_its_rows_in_order_and_the_columns_that_it_measured(tmp_path):
    record_runs({name: read_run(shipped(f"data/runs/{name}")) for name in ("demo-none", "entropy-change")}, tmp_path)
    table = read_table(tmp_path / "metrics.parquet")
    mixed = table.sample(frac=1, random_state=0).sort_values("step", kind="stable")  # runs among each other
    write_table(tmp_path / "metrics.parquet", [mixed])
    runs = read_runs(tmp_path)
    for name, run in runs.items():
        expected = table[table["run"] == name].drop(columns="run").dropna(axis=1, how="all").reset_index(drop=True)
        pd.testing.assert_frame_equal(run.metrics, expected, check_dtype=False)
    assert "eval_accuracy" not in runs["entropy-change"].metrics and "entropy_change" not in runs["demo-none"].metrics


def test_a_run_older_than_a_field_has_the_value_that_it_was_made_with():
    """Else runs that differ in nothing stand under two settings, and a recorded run is not found beside a new one."""
    for run in [
        erltool.read_run(shipped("data/runs/demo-none")),
        *erltool.read_runs(shipped("data/runs/steering")).values(),
    ]:
        assert set(erltool.TrainConfig().to_dict()) <= set(run.config)
        assert run.config["sampler"] == "own" and run.config["sampler_correction"] == 0
