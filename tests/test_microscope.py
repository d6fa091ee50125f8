"""Silencing by dose, and the microscope: its arithmetic by hand, its measurements against known answers."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

import erltool
from erltool import ErltoolError, TrainConfig, load_policy, load_task
from erltool.cli.command import main
from erltool.controls.dose import CRITERIA, Silence, by_dose
from erltool.entropy.tokens import Tokens
from erltool.plots import plot_prices
from erltool.runs.microscope import (
    BASELINE,
    BLOCKS,
    COLUMNS,
    QUADRANTS,
    Microscope,
    read_microscope,
    summary,
    write_microscope,
)
from erltool.training.microscope import ORACLES, examine, examine_controls, examine_run, spent_at

CONFIG = TrainConfig(
    task="chain:sharpening", policy="sharpening", lora_rank=0, learning_rate=3e-4, steps=8, eval_every=0,
    prompts_per_iteration=16, group_size=4, updates_per_iteration=2, record_every=0, device="cpu",
)  # fmt: skip


def some_tokens(rows=6, width=5, seed=0) -> Tokens:
    draws = torch.Generator().manual_seed(seed)
    log_probs = -torch.rand(rows, width, generator=draws) * 3
    mask = torch.arange(width) < torch.randint(2, width + 1, (rows, 1), generator=draws)
    return Tokens(
        log_probs, log_probs, torch.tensor([1.0, -1.0, 0.5, -0.5, 0.0, 2.0])[:rows, None].expand(rows, width), mask,
        token_entropy=torch.rand(rows, width, generator=draws),
        entropy_slope=torch.randn(rows, width, generator=draws),
        gradient_norm=torch.rand(rows, width, generator=draws) + 0.1,
    )  # fmt: skip


def test_by_dose_by_hand():
    scores, dose = torch.tensor([[5.0, 4.0, 3.0, 2.0]]), torch.tensor([[1.0, 0.0, 4.0, 5.0]])
    taken = {share: by_dose(scores, dose, share)[0].tolist() for share in (0.0, 0.1, 0.29, 0.31, 0.5, 1.0)}
    assert taken == {
        0.0: [False] * 4, 0.1: [True, False, False, False],
        0.29: [True, False, False, False],  # half of the third token does not fit
        0.31: [True, False, True, False], 0.5: [True, False, True, False], 1.0: [True, False, True, True],
    }  # fmt: skip
    assert not by_dose(scores.masked_fill(scores > 0, -torch.inf), dose, 1.0).any()
    assert not by_dose(scores, torch.zeros_like(dose), 1.0).any()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_takes_the_dose_that_it_is_given(criterion):
    tokens = some_tokens(seed=3)
    control = Silence(criterion, 0.4)
    choice = control.choose(tokens, generator=torch.Generator().manual_seed(1))
    taken = choice.dropped
    assert torch.equal(taken, choice.selected) and not taken[~tokens.response_mask].any()
    assert not taken[4].any(), "a response without advantage has no dose"
    largest = tokens.dose.max() / tokens.dose.sum()
    share = (tokens.dose[taken].sum() / tokens.dose.sum()).item()
    assert share <= 0.4 + largest / 2
    if criterion not in ("band", "right", "wrong", "rare-wrong"):  # these may have too few tokens
        assert share >= 0.4 - largest / 2


def test_criteria_take_what_their_names_say():
    tokens = some_tokens(seed=5)
    mask, generator = tokens.response_mask, torch.Generator()
    taken = {c: Silence(c, 0.3).choose(tokens, generator=generator.manual_seed(0)).dropped for c in CRITERIA}
    alive = mask & (tokens.dose > 0)
    for criterion, value in (("push", -tokens.push), ("rare", -tokens.log_probs), ("likely", tokens.log_probs),
                             ("uncertain", tokens.token_entropy), ("certain", -tokens.token_entropy)):  # fmt: skip
        chosen = taken[criterion]
        assert value[chosen].min() > value[alive & ~chosen].max(), criterion
    assert (tokens.advantages[taken["right"]] > 0).all() and (tokens.advantages[taken["wrong"]] < 0).all()
    assert (tokens.advantages[taken["rare-wrong"]] < 0).all()
    same = Silence("random", 0.3).choose(tokens, generator=generator.manual_seed(0)).dropped
    other = Silence("random", 0.3).choose(tokens, generator=generator.manual_seed(1)).dropped
    assert torch.equal(same, taken["random"]) and not torch.equal(other, same)


def test_silence_trains_drops_and_says_what_is_wrong():
    config = TrainConfig(**vars(CONFIG) | {"control": erltool.parse_control("silence:criterion=push,dose=0.2")})
    steps = list(erltool.train(config))
    assert steps[-1].metrics["selected_fraction"] > 0
    for step in steps:
        gone = step.tokens.dose[step.selected].sum() / step.tokens.dose.sum().clamp(min=1e-9)
        assert gone < 0.3
    with pytest.raises(ErltoolError, match="criterion must be one of covariance"):
        Silence("nothing")
    with pytest.raises(ErltoolError, match="needs token_entropy"):
        erltool.policy_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1), torch.ones(1, 2), control=Silence())


@pytest.fixture(scope="module")
def point() -> tuple[Microscope, list]:
    policy, task = load_policy("sharpening", lora_rank=0), load_task(CONFIG.task)
    before = [p.detach().clone() for p in policy.trainable().values()]
    point = examine(policy, task, CONFIG, batches=6, shares=(0.2, 1.0), sampled=1)
    return point, [torch.equal(p, w) for p, w in zip(policy.trainable().values(), before, strict=True)]


def test_the_microscope_puts_the_policy_back_and_repeats(point):
    point, same = point
    assert all(same) and list(point.rows) == list(COLUMNS)
    policy, task = load_policy("sharpening", lora_rank=0), load_task(CONFIG.task)
    again = examine(policy, task, CONFIG, batches=6, shares=(0.2, 1.0), sampled=1)
    pd.testing.assert_frame_equal(again.rows, point.rows)


def test_without_any_dose_there_is_no_step(point):
    point, _ = point
    rows = point.rows[(point.rows["criterion"] == "random") & (point.rows["share"] == 1.0)]
    assert (rows["dose"] > 0.999).all() and (rows[[f"reward_{b}" for b in range(BLOCKS)]].abs() < 1e-9).all(axis=None)
    prices = point.prices().set_index(["criterion", "share"])
    entropy, reward = point.whole()
    assert prices.loc[("random", 1.0), "saved"] == pytest.approx(-entropy)
    assert prices.loc[("random", 1.0), "lost"] == pytest.approx(1.0) or reward <= 0
    assert set(point.cases["criterion"]) == {"none", *CRITERIA, *ORACLES}


def test_a_step_does_to_first_order_what_it_does_exactly(point):
    """On the batch's own fresh responses the exact change differs from the first-order one by noise and by the
    second order; over cases and batches they go together."""
    rows = point[0].rows
    known = rows["entropy_change"].notna()
    first = rows[[f"entropy_{b}" for b in range(BLOCKS)]].mean(axis=1)
    assert np.corrcoef(first[known], rows.loc[known, "entropy_change"])[0, 1] > 0.3
    assert known.sum() == 6 * (1 + len(CRITERIA) + len(ORACLES))
    assert rows["sampled_reward"].notna().sum() == 1 + len(CRITERIA) + len(ORACLES)


def test_the_quadrants_of_a_criterion(point):
    rows = point[0].rows.query("share == 0.2")
    for criterion, zero in (("rare-wrong", ["rare_right", "likely_right"]), ("right", ["rare_wrong", "likely_wrong"])):
        of = rows[rows["criterion"] == criterion]
        assert (of[zero].fillna(0) == 0).all(axis=None) and of[zero].notna().any(axis=None)
    assert rows[list(QUADRANTS)].dropna().sum(axis=1).round(5).eq(1).all()


def made_up(saved, lost, whole=(-0.01, 0.02), batches=30) -> Microscope:
    """Measurements with one criterion beside random, of which the truth is known."""
    rng, rows = np.random.default_rng(0), []
    for batch in range(batches):
        for criterion, share, more, less in (("none", 0.0, 0, 0), ("mine", 0.2, saved, lost), ("random", 0.2, 0, 0.2)):
            row = dict.fromkeys(COLUMNS, np.nan)
            row |= {"batch": batch, "criterion": criterion, "share": share, "run_step": 4}
            for block in range(BLOCKS):
                row[f"entropy_{block}"] = whole[0] + more + rng.normal(0, 1e-4)
                row[f"reward_{block}"] = whole[1] * (1 - less) + rng.normal(0, 1e-4)
            if criterion == "none":
                row |= {"push_correlation": 0.5 + rng.normal(0, 0.05), "covariance_correlation": 0.3}
            rows.append(row)
    return Microscope(pd.DataFrame(rows))


def test_prices_of_known_measurements():
    price = made_up(saved=0.004, lost=0.1).prices().iloc[0]
    assert price["saved"] == pytest.approx(0.004, abs=1e-4) and price["saved_low"] < 0.004 < price["saved_high"]
    assert price["lost"] == pytest.approx(0.1, abs=0.01) and price["yield"] == pytest.approx(0.04, rel=0.1)
    assert price["saved_more_low"] > 0 and price["lost_more_high"] < 0
    free = made_up(saved=0.004, lost=0.0).prices().iloc[0]
    assert np.isnan(free["yield"]) and free["lost_low"] < 0 < free["lost_high"]
    backwards = made_up(saved=0.004, lost=0.1, whole=(-0.01, -0.02)).prices().iloc[0]
    assert np.isnan(backwards["lost"]) and backwards["saved"] == pytest.approx(0.004, abs=1e-4)
    push, covariance, difference = made_up(0.0, 0.0).correlations()
    assert push[1] < push[0] < push[2] and covariance[0] == pytest.approx(0.3) and difference[1] > 0.1


def test_a_file_and_a_summary(tmp_path, point):
    points = [made_up(0.004, 0.1), Microscope(point[0].rows.assign(run_step=9, at=0.25))]
    write_microscope(points, tmp_path / "m.parquet")
    back = read_microscope(tmp_path / "m.parquet")
    assert [p.rows["run_step"].iloc[0] for p in back] == [4, 9]
    np.testing.assert_allclose(back[1].changes("reward"), points[1].changes("reward"), rtol=2e-4)
    assert set(back[1].rows["share"]) == {0.0, 0.2, 1.0}
    text = summary(back[1])
    assert max(map(len, text.splitlines())) <= 79 and "after update 9, 25% of the entropy" in text
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ErltoolError, match="lacks at"):
        read_microscope(tmp_path / "other.parquet")


def test_what_cannot_be_examined_is_said():
    policy, task = load_policy("sharpening", lora_rank=0), load_task(CONFIG.task)
    with pytest.raises(ErltoolError, match="2 batches; give at least 5"):
        examine(policy, task, CONFIG, batches=2)
    with pytest.raises(ErltoolError, match="criterion 'luck' is not known"):
        examine(policy, task, CONFIG, criteria=["luck"])


def test_a_run_is_made_again_up_to_where_its_entropy_was_spent(tmp_path, capsys):
    list(erltool.train(CONFIG, tmp_path / "run"))
    run = erltool.read_run(tmp_path / "run")
    steps = spent_at(run, [0.0, 0.5, 0.9])
    assert steps[0] == 0 and steps == sorted(steps) and all(s % 2 == 0 for s in steps)
    found = list(examine_run(run, [0.9], batches=5, criteria=["push", "random"], shares=(0.2,)))
    assert [p.rows["run_step"].iloc[0] for p in found] == [steps[-1]]
    risen = run.metrics.assign(policy_entropy=run.metrics["policy_entropy"].to_numpy()[::-1])
    with pytest.raises(ErltoolError, match="did not fall"):
        spent_at(type(run)(run.path, run.config, run.made_by, risen, 0), [0.5])
    out = tmp_path / "scope.parquet"
    assert main(["microscope", str(tmp_path / "run"), "--at", "0", "--batches", "5", "--out", str(out)]) == 0
    assert "Policy after update 0, 0% of the entropy spent; 5 updates" in capsys.readouterr().out
    assert len(read_microscope(out)) == 1


def test_the_price_picture_has_a_curve_for_each_criterion_that_was_measured():
    point = made_up(saved=0.004, lost=0.1)
    point.rows["criterion"] = point.rows["criterion"].replace("mine", "push")
    ax = plot_prices(point)
    curves = {
        line.get_label(): line.get_xydata()[-1] for line in ax.get_lines() if line.get_label() in ("push", "random")
    }
    assert curves["push"] == pytest.approx([10.0, 4.0], abs=0.5) and curves["random"] == pytest.approx([20, 0], abs=0.5)
    with pytest.raises(ErltoolError, match="none of luck was measured"):
        plot_prices(point, ["luck"])


def examined(criteria=("push", "random"), controls=None, batches=5, **changes) -> pd.DataFrame:
    """Rows of a few batches, by criterion."""
    policy, config = load_policy("sharpening", lora_rank=0), TrainConfig(**vars(CONFIG) | changes)
    task, settings = load_task(config.task), {"batches": batches, "at": (0.0, 0)}
    if controls is None:
        return examine(policy, task, config, criteria=criteria, shares=(0.2,), sampled=0, **settings).rows
    named = {text: erltool.parse_control(text) for text in controls}
    return examine_controls(policy, task, config, named, **settings).rows


FIRST_ORDER = [f"{what}_{block}" for what in ("entropy", "reward") for block in range(BLOCKS)]


def test_a_control_on_the_first_update_makes_the_step_of_its_criterion():
    """Where every ratio is 1 the surrogate's gradient is the criterion's, and KL-Cov is silent."""
    silence, silent = "silence:criterion=push,dose=0.2", "kl-cov:fraction=0.1"
    once = {"updates_per_iteration": 1, "prompts_per_iteration": 8}
    by_criterion = examined(**once).set_index("criterion")
    by_control = examined(controls=[silence, silent], **once).set_index("criterion")
    for criterion, control in (("none", "none"), ("push", silence), ("none", silent)):
        expected = by_criterion.loc[[criterion], FIRST_ORDER].to_numpy()
        found = by_control.loc[[control], FIRST_ORDER].to_numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(by_control.loc[silence, "dose"], by_criterion.loc["push", "dose"], rtol=1e-4)
    assert (by_control.loc[silent, "tokens"] > 0).all() and by_control.loc[silent, "dose"].abs().max() < 1e-6


def test_controls_that_act_on_what_has_moved_are_asked_in_the_last_update():
    controls = ["kl-cov:fraction=0.2,coef=1", "positive-reweighting:weight=0.5", "repo-r:zeta=0.1", "bapo"]
    rows = examined(controls=controls)
    table = rows.groupby("criterion")[["dose", *FIRST_ORDER]].mean()
    assert set(table.index) == {"none", *controls, *(BASELINE + c for c in controls)}
    silent = rows.loc[rows["criterion"] == controls[0], FIRST_ORDER].to_numpy()
    whole = rows.loc[rows["criterion"] == "none", FIRST_ORDER].to_numpy()
    assert np.abs(silent - whole).max() > 1e-6, "the penalty acts once the policy has moved"
    assert 0.1 < table.loc[controls[1], "dose"] < 0.5 and table.loc[BASELINE + controls[1], "dose"] == pytest.approx(
        table.loc[controls[1], "dose"], abs=0.03
    )
    price = Microscope(rows).prices().set_index("criterion")
    assert price.loc[controls, ["saved_more_low", "saved_more_high"]].notna().all(axis=None)
    text = summary(Microscope(rows))
    assert "With a control" in text and BASELINE not in text and max(map(len, text.splitlines())) <= 79
    with pytest.raises(ErltoolError, match="needs a reference policy"):
        examined(controls=["reference-kl"])


def test_truncated_responses_are_left_out_where_the_run_leaves_them_out():
    short = {"max_response_tokens": 8, "mask_truncated": True}
    rows = examined(("random",), **short)
    all_of_them = examined(("random",), max_response_tokens=8)
    whole, other = (t.loc[t["criterion"] == "none", FIRST_ORDER].to_numpy() for t in (rows, all_of_them))
    assert np.isfinite(whole).all() and np.abs(whole - other).max() > 1e-6


def test_a_reward_that_is_not_finite_is_refused():
    policy, task = load_policy("sharpening", lora_rank=0), load_task(CONFIG.task)
    broken = dataclasses.replace(task, verify=lambda problem, response: float("nan"))
    with pytest.raises(ErltoolError, match="microscope: reward of a response to .* is nan"):
        examine(policy, broken, CONFIG, batches=5)
