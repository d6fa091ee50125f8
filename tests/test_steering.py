"""Steering a run as it goes: a change acts on the next update, and the recorded schedule repeats the run."""

import json
from dataclasses import replace

import pytest

import erltool
from erltool import ErltoolError, KLCov, NoControl, Steered, TrainConfig, parse_control, parse_controller
from erltool.controls.catalog import control_to_dict, controller_from_dict
from erltool.controls.controllers import steerable
from erltool.runs.compare import setting_of

CHANGES = ((3, "fraction", 0.5), (4, "coef", 7.25), (6, "fraction", 0.1))


SMALL = TrainConfig(
    policy="sharpening", task="chain:sharpening", lora_rank=0, learning_rate=3e-4, steps=8, prompts_per_iteration=8,
    group_size=4, updates_per_iteration=2, eval_every=0, device="cpu", control=KLCov(0.1, 2.0), controller=Steered(),
)  # fmt: skip


def rows(steps):
    return [{k: v for k, v in step.metrics.items() if k != "tokens_per_second"} for step in steps]


def steered_rows(config, wanted, out=None):
    """Rows of a run to which `wanted` (update: numbers) is sent as it goes."""
    steps = erltool.train(config, out)
    made = [next(steps)]
    while len(made) < config.steps:
        made.append(steps.send(wanted.get(len(made) + 1)))
    steps.close()
    return rows(made)


WANTED = {3: {"fraction": 0.5}, 4: {"coef": 7.25}, 6: {"fraction": 0.1}}


# --- the controller ----------------------------------------------------------------------------------


def test_a_schedule_is_a_value_with_a_text_that_gives_it_back():
    steered = Steered.of(CHANGES)
    assert steered.changes == CHANGES and steered.schedule == "3:fraction:0.5/4:coef:7.25/6:fraction:0.1"
    assert parse_controller(f"steered:schedule={steered.schedule}") == steered == Steered(steered.schedule)
    assert controller_from_dict(json.loads(json.dumps(control_to_dict(steered)))) == steered
    assert Steered.of(reversed(CHANGES)) == steered and hash(Steered.of(CHANGES)) == hash(steered)
    third = Steered.of([(2, "coef", 1 / 3)])
    assert Steered(third.schedule).changes[0][2] == 1 / 3


def test_of_two_changes_at_one_update_the_later_counts():
    assert Steered.of(CHANGES).then(6, {"fraction": 0, "coef": 1}).changes[2:] == (
        (6, "coef", 1.0),
        (6, "fraction", 0.0),
    )


def test_a_change_is_made_for_its_update_and_stays():
    steered, control, seen = Steered.of(CHANGES), KLCov(0.2, 1.0), []
    for step in range(1, 8):
        seen.append((control.fraction, control.coef))
        control = steered.after(control, KLCov(0.2, 1.0), step, 0.3)
    assert seen == [(0.2, 1), (0.2, 1), (0.5, 1), (0.5, 7.25), (0.5, 7.25), (0.1, 7.25), (0.1, 7.25)]
    assert steered.values(control) == {"control_fraction": 0.1, "control_coef": 7.25}


def test_of_a_composition_it_steers_each_number_that_one_member_has():
    both = parse_control("clip-cov:fraction=0.02,low=0.5,high=50+entropy-bonus:coef=0.01")
    assert steerable(both) == {"fraction": 0.02, "coef": 0.01}
    after = Steered.of([(2, "fraction", 0.0), (2, "coef", 0.03)]).after(both, both, 1, 0.3)
    assert [part.name for part in after.parts] == ["clip-cov", "entropy-bonus"]
    assert steerable(after) == {"fraction": 0.0, "coef": 0.03}
    assert steerable(parse_control("kl-cov+entropy-bonus")) == {"fraction": 0.002}  # two have a coef
    assert steerable(NoControl()) == {}


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ("1:fraction:0.5", "an update from 2 on"),
        ("3:low:0.5", "a field fraction or coef"),
        ("3:fraction", "joined by /"),
        ("3:fraction:nan", "joined by /"),
        ("x" * 1000, "\u2026"),
        (7, "must be text; give changes to Steered.of"),
    ],
)
def test_a_schedule_that_is_none_is_refused_in_a_line(schedule, words):
    with pytest.raises(ErltoolError, match=words) as refused:
        Steered(schedule)
    assert len(str(refused.value)) < 300 and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("control", "changes", "words"),
    [
        (NoControl(), (), "no fraction or coef to steer"),
        (KLCov(0.1, 2.0), [(3, "fraction", 1.5)], r"fraction must be in \[0, 1\]"),
        (erltool.ClipCov(0.02, 0.5, 50.0), [(3, "coef", 1.0)], "needs one number coef"),
    ],
)
def test_a_control_that_cannot_be_steered_so_is_refused_at_once(control, changes, words):
    with pytest.raises(ErltoolError, match=words):
        TrainConfig(control=control, controller=Steered.of(changes))


# --- the run -----------------------------------------------------------------------------------------


def test_what_is_sent_acts_on_the_next_update_and_on_none_before():
    plain = rows(erltool.train(SMALL))
    steered = steered_rows(SMALL, {4: {"fraction": 0.9, "coef": 50.0}})
    assert [(r["control_fraction"], r["control_coef"]) for r in steered] == [(0.1, 2)] * 3 + [(0.9, 50)] * 5
    assert steered[:3] == plain[:3]
    assert steered[3]["selected_fraction"] > 4 * plain[3]["selected_fraction"]
    assert steered[3]["grad_norm"] != plain[3]["grad_norm"] and steered[3]["reward"] == plain[3]["reward"]
    assert steered[5] != plain[5]


def test_a_recorded_schedule_repeats_the_run_bit_for_bit(tmp_path):
    made = steered_rows(SMALL, WANTED, tmp_path / "run")
    run = erltool.read_run(tmp_path / "run")
    config = TrainConfig.from_dict(run.config)
    assert config.controller == Steered.of(CHANGES) and setting_of(run).endswith(
        f"schedule={config.controller.schedule}"
    )
    assert rows(erltool.train(config)) == made != rows(erltool.train(SMALL))


@pytest.mark.parametrize("stopped", [2, 4])
def test_a_steered_run_resumes_from_any_checkpoint_with_its_changes(tmp_path, stopped):
    """A change that came just after a checkpoint, with none saved since, is made again."""
    made = steered_rows(SMALL, WANTED)
    steps = erltool.train(replace(SMALL, checkpoint_every=stopped // 2), tmp_path / "run")
    next(steps)
    for step in range(2, stopped + 2):
        steps.send(WANTED.get(step))
    steps.close()  # within an iteration: the checkpoint is that of `stopped`
    config = TrainConfig.from_dict(erltool.read_run(tmp_path / "run").config)
    assert config.controller.changes[0] == CHANGES[0]
    resumed = erltool.train(config, tmp_path / "run", resume=True)
    again = [next(resumed)]
    while len(again) < 8 - stopped:
        again.append(resumed.send(WANTED.get(stopped + len(again) + 1)))
    resumed.close()
    assert rows(again) == made[stopped:]
    assert TrainConfig.from_dict(erltool.read_run(tmp_path / "run").config).controller == Steered.of(CHANGES)


def test_a_run_that_is_not_steered_says_how_it_could_be():
    steps = erltool.train(replace(SMALL, controller=None))
    next(steps)
    with pytest.raises(ErltoolError, match=r"needs controller=Steered\(\)"):
        steps.send({"fraction": 0.5})
    steps = erltool.train(SMALL)
    next(steps)
    with pytest.raises(ErltoolError, match=r"fraction must be in \[0, 1\]"):
        steps.send({"fraction": 5})
