"""The controls of controls/recent.py, each worked out by hand, and in training."""

import math
from types import SimpleNamespace

import pytest
import torch

import erltool
from erltool import ErltoolError, TrainConfig, parse_control, parse_controller, policy_loss
from erltool.controls.recent import BAPO, DCPO, OPEFO, REPO, ClipV, EntropyRatioClip, PositiveReweighting
from erltool.entropy.tokens import Tokens

LOG2 = math.log(2)


def row(*values) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def tokens(advantages, log_ratio=None, **known) -> Tokens:
    advantages = row(*advantages)
    log_probs = known.pop("log_probs", torch.full_like(advantages, -1.0))
    old = log_probs if log_ratio is None else log_probs - row(*log_ratio)
    return Tokens(log_probs, old, advantages, torch.ones_like(advantages, dtype=torch.bool), **known)


def test_opefo_makes_the_predicted_change_zero():
    """Pushes 1, -2, -2: U = 1, D = 4, lambda = 3 / 5; weights 8/5 and 2/5, and 8/5 - 4 * 2/5 = 0."""
    batch = tokens((1.0, 2.0, -1.0), entropy_slope=row(1.0, -1.0, 2.0))
    reshaped = OPEFO().advantages(batch)
    torch.testing.assert_close(reshaped, row(1.6, 0.8, -0.4))
    assert batch._replace(advantages=reshaped).push.sum().abs() < 1e-12
    silent = tokens((1.0, -1.0), entropy_slope=row(0.0, 0.0))
    torch.testing.assert_close(OPEFO().advantages(silent), silent.advantages)
    with pytest.raises(ErltoolError, match="needs entropy_slope"):
        OPEFO().choose(tokens((1.0, -1.0)))


def test_clip_v_drops_the_outliers_of_wrong_responses():
    """Slopes 0, 0, 0, 3, 3: mean 1.2, deviation sqrt(2.16) = 1.47; only the wrong one of the two is dropped."""
    batch = tokens((-1.0, -1.0, 1.0, -1.0, 1.0), entropy_slope=row(0.0, 0.0, 0.0, 3.0, 3.0))
    assert ClipV(mu=2.0, fraction=1.0).choose(batch).dropped.tolist() == [[False, False, False, True, False]]
    assert not ClipV(mu=2.1, fraction=1.0).choose(batch).dropped.any()
    two = batch._replace(entropy_slope=row(0.0, 4.0, 0.0, 3.0, 0.0))
    assert ClipV(mu=1.0, fraction=1e-4).choose(two).dropped.tolist() == [[False, True, False, False, False]]


def test_positive_reweighting_and_repo_by_hand():
    batch = tokens((2.0, -2.0, 0.0), log_probs=row(-1.0, -3.0, -1.0))
    torch.testing.assert_close(PositiveReweighting(0.25).advantages(batch), row(0.5, -2.0, 0.0))
    torch.testing.assert_close(REPO(0.1).advantages(batch), row(2.2, -1.4, 0.0))
    torch.testing.assert_close(REPO(0.5).advantages(batch), row(3.0, 0.0, 0.0))  # not +1: it stops at 0


def test_doubling_follows_the_entropy():
    controller = parse_controller("doubling:target=0.2,max_zeta=0.03")
    configured = control = REPO(0.01)
    for step, (entropy, expected) in enumerate(((0.1, 0.02), (0.1, 0.03), (0.3, 0.015), (0.2, 0.0075)), 1):
        control = controller.after(control, configured, step, entropy)
        assert control.zeta == pytest.approx(expected)


def test_erc_keeps_tokens_whose_context_kept_its_entropy():
    batch = tokens(
        (1.0,) * 5, token_entropy=row(1.0, 0.94, 1.06, 0.0, 1.0), old_token_entropy=row(1.0, 1.0, 1.0, 0.0, 0.0)
    )
    assert EntropyRatioClip().choose(batch).dropped.tolist() == [[False, True, True, False, True]]


def test_dcpos_bounds_by_hand():
    """q = 1/2: high = 1/2 + 1/2 sqrt(4) = 3/2 at eps 3/8, and low = 1/2 + 1/2 sqrt(1/4) = 3/4 at eps 3/32."""
    control = DCPO(eps_low=3 / 32, eps_high=3 / 8)
    old = torch.full((1, 4), -LOG2, dtype=torch.float64)
    ratio = row(1.6, 1.4, 0.7, 0.8)
    batch = tokens((1.0, 1.0, -1.0, -1.0))._replace(old_log_probs=old, log_probs=old + ratio.log())
    loss, cut = control.surrogate(batch, (0.2, 0.2))
    torch.testing.assert_close(loss, row(-1.5, -1.4, 0.75, 0.8))
    assert cut.tolist() == [[True, False, True, False]]
    rare = batch._replace(old_log_probs=torch.full_like(old, -20.0), log_probs=-20.0 + row(11.0, 9.0, 0.51, 0.49).log())
    assert control.surrogate(rare, (0.2, 0.2))[1].tolist() == [[True, False, False, True]]  # 10 and 1/2


def test_bapo_moves_its_clip_until_the_right_ones_hold_their_share():
    """Ratios 2 (right), 1 (wrong, A = -2): P = min(2, high), N = 2; P / (P + N) >= 0.4 from P = 4/3 on."""
    batch = tokens((1.0, -2.0), log_ratio=(LOG2, 0.0))
    low, high = BAPO(high_step=0.1).choose(batch).clip
    assert low == pytest.approx(0.1) and high == pytest.approx(0.4)
    assert BAPO(target=0.3).choose(batch).clip == pytest.approx((0.4, 0.2))  # met at once: 1.2 / 3.2
    assert BAPO(target=0.9).choose(batch).clip == pytest.approx((0.1, 2.0))  # never met
    loss = BAPO(high_step=0.1).choose(batch)
    assert loss.control.surrogate(batch, loss.clip)[1].tolist() == [[True, False]]


TRAINED = (
    "opefo", "clip-v:fraction=0.05,mu=1", "positive-reweighting", "repo-r:zeta=0.1", "erc", "dcpo", "bapo",
    "erc+entropy-bonus",
)  # fmt: skip


@pytest.mark.parametrize("text", TRAINED)
def test_they_train_and_do_not_depend_on_the_micro_batch(text):
    """Twelve updates in one piece and in micro-batches of 24 give the same metrics within rounding."""
    runs = []
    for micro_batch in (0, 24):
        config = TrainConfig(
            task="chain:sharpening", policy="sharpening", lora_rank=0, learning_rate=3e-4, steps=12, eval_every=0,
            prompts_per_iteration=16, group_size=8, record_every=0, device="cpu", control=parse_control(text),
            micro_batch=micro_batch,
        )  # fmt: skip
        runs.append([step.metrics for step in erltool.train(config)])
    for one, other in zip(*runs, strict=True):
        for name in ("policy_entropy", "grad_norm", "selected_fraction", "clip_fraction"):
            assert one[name] == pytest.approx(other[name], rel=2e-3, abs=2e-3), (name, one["step"])
    if text.startswith("erc"):
        first_updates = [m["selected_fraction"] for m in runs[0][::4]]
        assert first_updates == [0.0] * 3 and any(m["selected_fraction"] for m in runs[0])


def test_engines_that_ask_too_early_are_refused():
    for control in (BAPO(), EntropyRatioClip()):
        ((name, why),) = control.conflicts(SimpleNamespace(chosen_at_sampling=True))
        assert name == "control" and "before that" in why
        assert not list(control.conflicts(SimpleNamespace(advantages="grpo")))
    with pytest.raises(ErltoolError, match="needs old_token_entropy"):
        x = torch.zeros(1, 2)
        policy_loss(x, x, torch.ones(1), torch.ones(1, 2), control=EntropyRatioClip(), token_entropy=x)


@pytest.mark.parametrize("text, words", [
    ("erc:low=1", "low must be in"), ("erc:high=0.9", "high must be above 1"), ("dcpo:eps_low=-1", "eps_low must be"),
    ("bapo:target=1", "target must be"), ("bapo:low=0.95", "low must be"), ("repo-r:zeta=-1", "zeta must be"),
    ("clip-v:mu=-1", "mu must be"), ("positive-reweighting:weight=-1", "weight must be"),
])  # fmt: skip
def test_bad_values_are_refused(text, words):
    with pytest.raises(ErltoolError, match=words):
        parse_control(text)
