import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import erltool
from erltool import Alarm, EntropyBonus, TrainConfig, Watch, alarm_report, alarm_summary, read_run
from erltool.cli import command as cli
from erltool.resources import shipped
from erltool.runs.alarms import KINDS, line, noise
from erltool.runs.folder import Run

UPDATES = 4


def rows(entropy, **others):
    """Metrics of a run, UPDATES rows an iteration, from one value an iteration for each key."""
    series = {"policy_entropy": entropy} | others
    return [
        {"step": i * UPDATES + u + 1, "iteration": i} | {name: float(values[i]) for name, values in series.items()}
        for i in range(len(entropy))
        for u in range(UPDATES)
    ]


def watched(entropy, **others) -> list[Alarm]:
    watch = Watch()
    return [alarm for row in rows(entropy, **others) for alarm in watch.see(row)]


def kinds(alarms) -> list[str]:
    return [a.kind for a in alarms]


def noisy(level, rng, share=0.08):
    return level * (1 + share * rng.standard_normal(len(level)))


# --- what is alarming, and what is not ----------------------------------------------------------------


def test_a_collapse_is_raised_once_with_the_step_at_which_it_will_be_complete(rng):
    # Entropy is a tenth of its start at iteration 46, step 184.
    entropy = noisy(0.5 * np.exp(-np.arange(100) / 20), rng, 0.03)
    (alarm,) = watched(entropy)
    assert alarm.kind == "collapse" and 4 * 14 < alarm.step < 4 * 35
    assert alarm.value <= alarm.threshold == pytest.approx(Watch.collapse * 0.5, rel=0.1)
    assert int(alarm.message.rsplit(" ", 1)[1]) == pytest.approx(184, rel=0.25)


def test_what_is_spent_already_is_a_collapse_at_any_rate():
    entropy = np.r_[np.full(3, 0.5), np.full(40, 0.04)]
    (alarm,) = watched(entropy)
    # The median of 5 iterations falls with the third of them.
    assert (alarm.kind, alarm.step) == ("collapse", 4 * 5 + 1)
    assert "by step" not in alarm.message


def test_an_explosion_is_raised_once_and_nothing_else_is(rng):
    (alarm,) = watched(noisy(0.5 + 0.02 * np.arange(60), rng, 0.03))
    assert alarm.kind == "explosion" and alarm.value >= alarm.threshold == pytest.approx(Watch.explosion * 0.5, rel=0.1)
    assert 4 * 5 < alarm.step < 4 * 15  # the mean crosses at iteration 7.5


def test_noise_as_large_as_the_rise_is_no_explosion(rng):
    assert watched(0.5 + 0.25 * rng.standard_normal(300).clip(-1.5, 1.5)) == []


@pytest.mark.parametrize("held", [0.4, 0.6, 1.0, 1.1])
def test_a_plateau_under_control_is_quiet(rng, held):
    iterations = np.arange(200)
    for _ in range(3):
        level = 0.5 * (held + (1 - held) * np.exp(-iterations / 15))
        assert watched(noisy(level, rng, 0.05), reward=0.2 + 0.001 * iterations) == []


def test_a_slow_fall_that_the_run_will_not_live_to_see_is_quiet():
    assert watched(0.5 * (1 + np.arange(400)) ** -0.2) == []  # 0.3 of its start; a tenth after 10^5 iterations


def test_an_alarm_is_raised_again_only_after_a_recovery():
    fall, back = 0.5 * np.exp(-np.arange(30) / 10), np.full(20, 0.5)
    assert kinds(watched(np.r_[back, fall, back, fall])) == ["collapse", "collapse"]
    part = 1.1 * Watch.collapse
    assert kinds(watched(np.r_[back, fall, part * back, part * fall])) == ["collapse"]


@pytest.mark.parametrize(
    "entropy", [[], [0.5], 0.5 * np.exp(-np.arange(4)), np.full(100, 0.5), np.zeros(100)],
    ids=["empty", "one", "short", "constant", "zero"],
)  # fmt: skip
def test_a_short_or_constant_run_is_quiet(entropy):
    assert watched(np.array(entropy)) == []


def test_entropy_may_reach_exactly_zero():
    (alarm,) = watched(np.r_[np.linspace(0.5, 0, 30), np.zeros(20)])
    assert alarm.kind == "collapse" and math.isfinite(alarm.value)


def test_reward_that_stands_still_while_entropy_falls_is_a_stall(rng):
    entropy, reward = 0.5 * (1 + np.arange(120)) ** -0.3, 0.4 + 0.01 * rng.standard_normal(120)
    (alarm,) = watched(entropy, reward=reward)
    assert alarm.kind == "stall" and alarm.value < alarm.threshold == Watch.rise
    assert watched(entropy, reward=reward + 0.003 * np.arange(120)) == []
    assert watched(np.full(120, 0.5), reward=reward) == []  # nothing is spent


@pytest.mark.parametrize(("metric", "name"), [("response_length", "length"), ("grad_norm", "gradient norm")])
def test_length_or_gradient_that_grows_with_entropy_runs_away(metric, name):
    growing, entropy = np.linspace(1, 5, 60), 0.5 * np.linspace(1, 1.25, 60)
    (alarm,) = watched(entropy, **{metric: growing})
    assert alarm.kind == "runaway" and alarm.message.startswith(name)
    assert watched(entropy[::-1], **{metric: growing}) == []


def test_missing_metrics_and_nan_change_nothing_for_the_others(rng):
    entropy = noisy(0.5 * np.exp(-np.arange(60) / 20), rng, 0.03)
    whole, watch, found = watched(entropy), Watch(), []
    broken = ({"step": 5, "iteration": 1}, {"step": 5, "iteration": 1, "policy_entropy": math.nan, "reward": None})
    for row in rows(entropy, reward=np.full(60, math.nan), grad_norm=np.full(60, math.inf)):
        found += watch.see(row)
        if row["step"] == 5:
            found += [a for b in broken for a in watch.see(b)]
    assert found == whole != []


def test_the_scale_of_entropy_and_the_number_of_updates_do_not_matter(rng):
    entropy = noisy(0.5 * np.exp(-np.arange(60) / 20), rng, 0.03)
    (small,), (large,) = watched(entropy), watched(8 * entropy)
    assert large.step == small.step and large.value == 8 * small.value
    watch = Watch()
    one_update = [a for row in rows(entropy)[::UPDATES] for a in watch.see(row)]
    assert [a.value for a in one_update] == [small.value]


def test_a_line_of_text_fits_a_terminal_whatever_the_numbers():
    for scale in (1e-7, 1.0, 1234567.0):
        falls, grows = np.exp(-np.arange(60) / 10), np.exp(np.arange(60) / 10)
        for entropy in (falls, grows):
            watch = Watch(stall=20)
            for row in rows(scale * entropy, reward=np.linspace(1, 0, 60), grad_norm=scale * grows):
                for alarm in watch.see(row | {"step": 900_000 + row["step"]}):
                    assert len(str(alarm)) <= 80 and "\n" not in str(alarm) and alarm.kind in KINDS


def test_slope_and_noise_against_worked_cases(rng):
    slope, error = line(np.array([0.0, 1.0, 5.0]))  # residuals 0.5, -1, 0.5: 1.5 over 1 degree of freedom, Sxx = 2
    assert slope == pytest.approx(2.5) and error == pytest.approx(math.sqrt(1.5 / 2))
    assert line(np.array([3.0, 4.0])) == (0.0, 0.0)
    assert noise(np.array([0.0, 1.0, 0.0, 1.0, 0.0])) == pytest.approx(1.4826 / math.sqrt(2))
    assert noise(5 + 0.3 * np.arange(20)) == pytest.approx(0, abs=1e-12) and noise(np.array([1.0, 9.0])) == 0
    assert noise(0.1 * rng.standard_normal(20_000)) == pytest.approx(0.1, rel=0.05)


# --- how often an alarm is false, in numbers of runs that tests/benchmarks/alarm_rates.py has more of ---

LONG = 200  # iterations
PART = np.arange(LONG) / LONG


def first_alarms(entropy, reward, rng, entropy_noise=0.07, reward_noise=0.04) -> dict[str, int]:
    """The iteration of the first alarm of each kind, with one update an iteration and the noise of recorded runs."""
    watch, first = Watch(), {}
    entropy, reward = noisy(entropy, rng, entropy_noise), reward + reward_noise * rng.standard_normal(LONG)
    for i in range(LONG):
        row = {"step": i + 1, "iteration": i, "policy_entropy": max(entropy[i], 0.01), "reward": reward[i]}
        for alarm in watch.see(row):
            first.setdefault(alarm.kind, i)
    return first


@pytest.mark.parametrize("gained", [0.1, 0.2, 0.4])
@pytest.mark.parametrize("noise", [0.02, 0.04, 0.1])
def test_reward_that_rises_is_seldom_said_to_stand_still(rng, gained, noise):
    """Also where it rises as slowly as what is called standing still, by 0.02 in 40 iterations: 0.1 in 200."""
    falls = 0.5 * 0.1**PART
    runs = [first_alarms(falls, 0.3 + gained * PART, rng, reward_noise=noise) for _ in range(20)]
    assert sum("stall" in r for r in runs) <= (1 if gained > 0.1 else 2)


def test_reward_that_stands_still_or_falls_is_found(rng):
    falls = 0.5 * 0.1**PART
    for reward, latest in ((np.full(LONG, 0.4), 130), (0.5 - 0.2 * PART, 80)):
        at = [first_alarms(falls, reward, rng)["stall"] for _ in range(15)]
        assert 40 <= np.median(at) <= latest


@pytest.mark.parametrize("noise", [0.05, 0.1, 0.2])
def test_constant_entropy_is_no_explosion_however_noisy(rng, noise):
    runs = [first_alarms(np.full(LONG, 0.5), 0.3 + 0.4 * PART, rng, entropy_noise=noise) for _ in range(60)]
    assert sum(bool(r) for r in runs) <= 2


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_entropy_that_trebles_within_100_iterations_explodes_before_it_has_doubled(rng, noise):
    rises = 0.5 * 3 ** np.clip((200 * PART - 50) / 100, 0, 1)  # twice its start at iteration 113
    at = [first_alarms(rises, 0.3 + 0.4 * PART, rng, entropy_noise=noise)["explosion"] for _ in range(20)]
    assert 65 <= np.median(at) <= 100


def test_entropy_that_settles_at_a_third_has_not_collapsed(rng):
    settles = 0.15 + 0.35 * np.exp(-PART / 0.15)
    runs = [first_alarms(settles, 0.3 + 0.4 * PART, rng) for _ in range(60)]
    assert sum("collapse" in r for r in runs) <= 3


def test_a_stall_says_how_long_it_looked_and_what_was_spent(rng):
    entropy, reward = 0.5 * (1 + np.arange(120)) ** -0.3, 0.4 + 0.01 * rng.standard_normal(120)
    (alarm,) = watched(entropy, reward=reward)
    rise, iterations, spent = re.fullmatch(
        r"reward ([+-][\d.]+) in (\d+) iterations, entropy fell by (\d+)%", alarm.message
    ).groups()
    assert float(rise) == pytest.approx(alarm.value, abs=5e-4) and int(iterations) in (40, 60, 90) and int(spent) >= 20
    assert alarm.threshold == pytest.approx(Watch.rise * (int(iterations) - 1) / (Watch.stall - 1))


# --- recorded runs ------------------------------------------------------------------------------------


def recorded(name, entropy) -> Run:
    config = {"control": {"name": "none"}, "seed": 0}
    return Run(Path(name), config, {}, pd.DataFrame(rows(entropy, reward=np.linspace(0, 1, len(entropy)))), 0)


def test_the_report_says_what_became_of_a_run_and_when_it_was_warned_of():
    iterations = np.arange(100)
    runs = [
        recorded("collapse", 0.5 * np.exp(-iterations / 20)),
        recorded("explosion", 0.5 + 0.02 * iterations),
        recorded("still", np.full(100, 0.5)),
        recorded("rescued", 0.5 * np.r_[np.exp(-np.arange(30) / 15), np.full(70, 0.9)]),
        recorded("unseen", np.r_[np.full(80, 0.5), 0.5 * np.exp(-np.arange(12) / 2), np.full(8, 1e-3)][:100]),
    ]
    quiet = lambda: Watch(collapse=0.0, floor=0.0, explosion=99.0)  # noqa: E731
    report = alarm_report(runs).set_index("run")
    assert report["collapse_at"].notna().tolist() == [True, False, False, False, True]
    # The mean of 10 iterations about t is 0.5 exp(-(t - 0.5) / 20) * 1.01, below a tenth of (0.5 + 0.4756) / 2 from 48;
    # 0.5 + 0.02 (t - 0.5) is above 1.5 * 0.51 from 14. The last steps of these iterations:
    assert report["collapse_at"]["collapse"] == 4 * 49
    assert report["explosion_at"].dropna().to_dict() == {"explosion": 4 * 15}
    summary = alarm_summary(report.reset_index())
    assert summary.loc["collapse", ["runs", "happened", "hits", "misses", "false_alarms"]].tolist() == [5, 2, 2, 0, 1]
    assert summary.loc["collapse", "false_alarm_rate"] == pytest.approx(1 / 3)
    assert summary.loc["explosion", ["happened", "hits", "false_alarms"]].tolist() == [1, 1, 0]
    lead = report["collapse_at"] - report["collapse_alarm"]
    assert summary.loc["collapse", "lead"] == lead[["collapse", "unseen"]].median()
    unwatched = alarm_summary(alarm_report(runs, quiet))
    assert unwatched["misses"].tolist() == [2, 1] and unwatched["false_alarms"].tolist() == [0, 0]


def test_shipped_runs_have_no_explosion_and_are_warned_of_none():
    report = alarm_report([read_run(shipped(f"data/runs/demo-{name}")) for name in ("none", "clip-cov")])
    assert report["explosion_alarm"].isna().all() and (report["peak"] < 1.1).all()
    assert report["steps"].tolist() == [240, 240] and report["last"].between(0.005, 0.1).all()


# --- a live run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exploding(tmp_path_factory):
    """A run that an entropy bonus of 1 blows up, its steps, and its configuration."""
    config = TrainConfig(
        control=EntropyBonus(1.0), steps=28, prompts_per_iteration=4, group_size=4, updates_per_iteration=2,
        lora_rank=0, learning_rate=1e-3, max_response_tokens=8, eval_every=0, record_every=0, checkpoint_every=3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("alarms") / "run"
    return folder, list(erltool.train(config, folder)), config


def test_train_yields_the_alarms_that_the_recorded_metrics_raise(exploding):
    folder, steps, _ = exploding
    live = [a for s in steps for a in s.alarms]
    watch = Watch()
    assert live == [a for row in read_run(folder).metrics.to_dict("records") for a in watch.see(row)]
    assert "explosion" in kinds(live) and all(a.step == s.metrics["step"] for s in steps for a in s.alarms)
    assert not set(read_run(folder).metrics) & {"alarms", *KINDS}


@pytest.mark.parametrize("stop_after", [11, 26])
def test_a_resumed_run_raises_the_same_alarms_at_the_same_steps(exploding, tmp_path, stop_after):
    whole = {s.metrics["step"]: s.alarms for s in exploding[1]}
    cut = erltool.train(exploding[2], tmp_path / "cut")
    for _ in range(stop_after):
        next(cut)
    cut.close()
    resumed = {s.metrics["step"]: s.alarms for s in erltool.train(exploding[2], tmp_path / "cut", resume=True)}
    assert min(resumed) <= stop_after + 1 and resumed == {k: v for k, v in whole.items() if k in resumed}


def test_the_command_line_prints_an_alarm_on_a_line_of_its_own(exploding, tmp_path, capsys):
    words = [f"--{k.replace('_', '-')}={v}" for k, v in exploding[2].to_dict().items()
             if k in ("steps", "prompts_per_iteration", "group_size", "updates_per_iteration", "lora_rank",
                      "learning_rate", "max_response_tokens", "eval_every", "record_every")]  # fmt: skip
    assert cli.main(["train", f"--out={tmp_path / 'run'}", "--control=entropy-bonus:coef=1", *words]) == 0
    printed = capsys.readouterr()
    lines = printed.err.replace("\r", "\n").splitlines()
    for alarm in (a for s in exploding[1] for a in s.alarms):
        assert str(alarm) in [x.strip() for x in lines]
    assert (
        printed.out == "written: report.html in the run's folder; open it in a browser\n" and max(map(len, lines)) <= 80
    )
