"""Advice: it says what was measured, and recommends what the recorded runs support."""

import re

import pytest

import erltool
from erltool import ErltoolError, read_run, read_runs
from erltool.cli.command import main
from erltool.report.advice import advise
from erltool.resources import shipped
from erltool.runs.microscope import read_microscope


@pytest.fixture(scope="module")
def recorded():
    return {grid: read_runs(shipped(f"data/runs/{grid}")) for grid in ("sharpening", "discovery", "trap")}


def test_where_prompts_stay_all_wrong_it_recommends_the_control_that_found_them(recorded):
    stuck = recorded["discovery"]["discovery-seed10-none"]
    text = advise(stuck)
    now = stuck.metrics.tail(20).mean()
    assert f"{now['all_wrong_fraction']:.0%} are all wrong" in text and "Start again with Clip-Cov" in text
    assert "+0.131 (+0.101 to +0.161, 10 seeds)" in text and "too low to trust its ceiling" in text


def test_where_nothing_has_to_be_found_it_recommends_no_control(recorded):
    run = recorded["sharpening"]["sharpening-seed0-none"]
    text = advise(run)
    ceiling = float(re.search(r"ceiling at zero entropy is (\d\.\d+)", text)[1])
    assert ceiling == pytest.approx(1.0, abs=0.02)
    assert "one update per iteration without control first" in text and "Start again" not in text


def test_where_the_entropy_exploded_it_says_so(recorded):
    text = advise(recorded["trap"]["trap-seed11-target-entropy"])
    assert "has risen from" in text and "Halve the dose of clip-cov" in text


def test_where_responses_are_cut_it_asks_to_read_them(recorded):
    run = recorded["sharpening"]["sharpening-seed0-none"]
    assert "cut by" not in advise(run)
    metrics = run.metrics.assign(truncated_fraction=0.97, reward=0.98)
    text = advise(type(run)(run.path, run.config, run.made_by, metrics, 0))
    assert "97% of the responses are cut by max_response_tokens, and the mean reward is 0.98: read some" in text


def test_it_tells_who_spends_the_entropy_where_the_run_recorded_it(tmp_path, capsys):
    config = erltool.TrainConfig(
        task="chain:sharpening", policy="sharpening", lora_rank=0, learning_rate=3e-4, steps=42, eval_every=0,
        updates_per_iteration=1, prompts_per_iteration=8, group_size=4, record_every=5, device="cpu",
    )  # fmt: skip
    for _ in erltool.train(config, tmp_path / "run"):
        pass
    text = advise(read_run(tmp_path / "run"))
    assert re.search(r"\d+% of the predicted fall of the entropy comes from (rare|likely) tokens of", text)
    file = shipped("data/microscope/discovery.parquet")
    assert main(["advise", str(tmp_path / "run"), "--microscope", str(file)]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) < 80
    best = read_microscope(file)[-1].prices().query("share == 0.2 and not criterion.str.startswith('oracle')")
    assert f"criterion {best.loc[best['saved'].idxmax(), 'criterion']} puts" in " ".join(printed.split())


def test_a_run_that_is_too_short_is_refused(recorded):
    run = recorded["sharpening"]["sharpening-seed0-none"]
    short = type(run)(run.path, run.config, run.made_by, run.metrics.head(30), 0)
    with pytest.raises(ErltoolError, match="30 iterations; it needs at least 40"):
        advise(short)
