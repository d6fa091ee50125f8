import math

import pytest
import torch

from erltool import (
    GSPO,
    ClipCov,
    ClipHigher,
    EntropyBonus,
    EntropyShapedAdvantage,
    ErltoolError,
    HighEntropyMask,
    KLCov,
    NoControl,
    QuantileAdvantage,
    RandomClip,
    ReferenceKL,
    Tokens,
    control_loss,
    policy_loss,
)
from erltool.controls.catalog import CONTROLS


@pytest.fixture
def batch(generator):
    """(log_probs, old_log_probs, advantages, response_mask) with ratios on both sides of the clip."""
    log_probs = -torch.rand(6, 12, generator=generator).double() * 3
    old = log_probs + 0.3 * torch.randn(6, 12, generator=generator).double()
    advantages = torch.randn(6, generator=generator).double()
    mask = torch.arange(12) < torch.tensor([12, 3, 7, 1, 9, 5])[:, None]
    return log_probs.requires_grad_(), old, advantages, mask


def gradient(out, log_probs):
    return torch.autograd.grad(out.loss, log_probs)[0]


def test_hand_worked_surrogate():
    # ratio 1.5 with A = 1 is clipped to 1.2; ratio 0.5 with A = -1 to 0.8; ratio 1.5 with A = -1 is not.
    ratio = torch.tensor([[1.5], [0.5], [1.5]])
    out = policy_loss(ratio.log(), torch.zeros(3, 1), torch.tensor([1.0, -1.0, -1.0]), torch.ones(3, 1).bool())
    torch.testing.assert_close(out.token_loss, torch.tensor([[-1.2], [0.8], [1.5]]))
    assert out.loss.item() == pytest.approx((-1.2 + 0.8 + 1.5) / 3)
    assert out.clipped.flatten().tolist() == [True, True, False]


@pytest.mark.parametrize("control", [NoControl(), KLCov(0.2), ClipHigher()])
def test_at_ratio_one_the_gradient_is_reinforces(batch, control):
    log_probs, _, advantages, mask = batch
    out = policy_loss(log_probs, log_probs.detach(), advantages, mask, control=control)
    expected = -(advantages[:, None] * mask) / mask.sum()
    torch.testing.assert_close(gradient(out, log_probs), expected)


def test_kl_cov_is_silent_at_ratio_one_and_speaks_at_the_next_update(batch):
    log_probs, old, advantages, mask = batch
    first = gradient(policy_loss(log_probs, log_probs.detach(), advantages, mask, control=KLCov(0.2, 7.0)), log_probs)
    plain = gradient(policy_loss(log_probs, log_probs.detach(), advantages, mask), log_probs)
    assert torch.equal(first, plain)
    out = policy_loss(log_probs, old, advantages, mask, control=KLCov(0.2, 7.0))
    without = policy_loss(log_probs, old, advantages, mask, control=KLCov(0, 7.0))
    push = gradient(out, log_probs) - gradient(without, log_probs)
    expected = 7.0 * torch.sign(log_probs - old) * out.selected / mask.sum()
    torch.testing.assert_close(push, expected.detach())


def test_kl_cov_with_fraction_zero_is_the_plain_loss(batch):
    log_probs, old, advantages, mask = batch
    none = policy_loss(log_probs, old, advantages, mask, clip=(math.inf, math.inf))
    zero = policy_loss(log_probs, old, advantages, mask, control=KLCov(fraction=0, coef=5))
    torch.testing.assert_close(zero.loss, none.loss)
    torch.testing.assert_close(gradient(zero, log_probs), gradient(none, log_probs))
    near = log_probs.detach() + 0.1  # no ratio leaves the clip range, so the default clip gives the same loss
    torch.testing.assert_close(
        policy_loss(log_probs, near, advantages, mask, control=KLCov(0)).loss,
        policy_loss(log_probs, near, advantages, mask).loss,
    )


def test_kl_covs_surrogate_is_unclipped_on_all_tokens(batch):
    log_probs, old, advantages, mask = batch
    out = policy_loss(log_probs, old, advantages, mask, control=KLCov(0.1, 0.0))
    ratio = (log_probs - old).exp()
    torch.testing.assert_close(out.loss, -(advantages[:, None] * ratio * mask).sum() / mask.sum())
    assert not out.clipped.any()


@pytest.mark.parametrize("control", [ClipCov(0.2, 0.0, 5.0), RandomClip(0.2)])
def test_dropped_tokens_have_exactly_zero_gradient_and_stay_in_the_denominator(batch, generator, control):
    log_probs, old, advantages, mask = batch
    out = policy_loss(log_probs, old, advantages, mask, control=control, generator=generator)
    found, plain = gradient(out, log_probs), gradient(policy_loss(log_probs, old, advantages, mask), log_probs)
    assert out.selected.any() and (plain[out.selected] != 0).all()
    assert (found[out.selected] == 0).all()
    assert torch.equal(found[~out.selected], plain[~out.selected])


@pytest.mark.parametrize(("estimator", "value"), [("k1", 0.3), ("k2", 0.045), ("k3", math.expm1(-0.3) + 0.3)])
def test_kl_cov_estimators_by_hand(estimator, value):
    # One selected token with A = 0 leaves the penalty alone: log_ratio 0.3.
    out = policy_loss(
        torch.tensor([[-0.7]]),
        torch.tensor([[-1.0]]),
        torch.zeros(1),
        torch.ones(1, 1).bool(),
        control=KLCov(1.0, 2.0, estimator),
    )
    assert out.loss.item() == pytest.approx(2 * value, rel=1e-5)


def test_entropy_bonus_and_reference_kl_by_hand(batch):
    log_probs, old, advantages, mask = batch
    plain = policy_loss(log_probs, old, advantages, mask).loss
    entropy = torch.rand_like(old)
    bonus = policy_loss(log_probs, old, advantages, mask, control=EntropyBonus(0.5), token_entropy=entropy).loss
    torch.testing.assert_close(plain - bonus, 0.5 * (entropy * mask).sum() / mask.sum())
    reference = log_probs.detach() - 0.3
    kl = policy_loss(log_probs, old, advantages, mask, control=ReferenceKL(2.0, "k3"), ref_log_probs=reference).loss
    assert (kl - plain).item() == pytest.approx(2 * (math.expm1(-0.3) + 0.3))


def test_clip_higher_and_clip_eps_move_the_clip():
    log_ratio = torch.tensor([[1.25]]).log()
    arguments = (log_ratio, torch.zeros(1, 1), torch.ones(1), torch.ones(1, 1).bool())
    assert policy_loss(*arguments).loss.item() == pytest.approx(-1.2)
    assert policy_loss(*arguments, control=ClipHigher()).loss.item() == pytest.approx(-1.25)
    assert policy_loss(*arguments, control=ClipCov(clip_eps=1.0)).loss.item() == pytest.approx(-1.25)


ALL = [c() for c in CONTROLS.values()] + [
    KLCov(0.2),
    ClipCov(0.2, 0, 5),
    EntropyBonus(5e-3, below=9.0),
    GSPO(0.1, 0.1),
    KLCov(0.2) + EntropyBonus(0.1) + QuantileAdvantage(),
    GSPO(0.1, 0.1) + HighEntropyMask(0.5) + ReferenceKL(0.3) + EntropyShapedAdvantage(),
]


def extra_inputs(log_probs, old):
    entropy, reference = 0.5 - log_probs, old - 0.1
    return {
        "token_entropy": entropy, "ref_log_probs": reference, "old_token_entropy": 0.55 - old,
        "entropy_slope": 0.3 - log_probs.exp(), "gradient_norm": 1.3 - log_probs.exp(),
    }  # fmt: skip


OF_RESPONSES = {"rewards": torch.tensor([1.0, 0, 0, 1, 1, 0]).double(), "group_size": 3}


@pytest.mark.parametrize("control", ALL, ids=lambda c: c.name)
@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_micro_batches_of_any_size_sum_to_the_update(batch, control, size):
    log_probs, old, advantages, mask = batch
    extra = extra_inputs(log_probs, old)
    seeded = torch.Generator().manual_seed(3)
    whole = policy_loss(log_probs, old, advantages, mask, control=control, generator=seeded, **extra, **OF_RESPONSES)
    of_tokens = advantages[:, None].expand(mask.shape)
    tokens = Tokens(log_probs, old, of_tokens, mask, **extra, **OF_RESPONSES)
    choice = control.choose(tokens, generator=torch.Generator().manual_seed(3))
    assert torch.equal(choice.selected, whole.selected)
    parts = [control_loss(tokens.rows(rows), choice.rows(rows)).loss for rows in torch.arange(6).split(size)]
    torch.testing.assert_close(sum(parts), whole.loss)
    torch.testing.assert_close(torch.autograd.grad(sum(parts), log_probs)[0], gradient(whole, log_probs))


@pytest.mark.parametrize("control", ALL, ids=lambda c: c.name)
def test_padding_reaches_neither_value_nor_gradient(batch, control):
    log_probs, old, advantages, mask = batch

    def found(log_probs, old, extra):
        seeded = torch.Generator().manual_seed(3)
        out = policy_loss(log_probs, old, advantages, mask, control=control, generator=seeded, **extra, **OF_RESPONSES)
        return out.loss, gradient(out, log_probs), out.selected, out.clipped

    expected = found(log_probs, old, extra_inputs(log_probs, old))
    hostile = log_probs.detach().masked_fill(~mask, math.inf).requires_grad_()
    padded = {k: v.masked_fill(~mask, math.nan) for k, v in extra_inputs(hostile, old).items()}
    for one, other in zip(found(hostile, old.masked_fill(~mask, math.nan), padded), expected, strict=True):
        torch.testing.assert_close(one, other)
    assert not (expected[2] & ~mask).any() and not (expected[3] & ~mask).any()


def test_an_empty_mask_has_loss_zero():
    out = policy_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2), torch.zeros(2, 3).bool(), control=KLCov(0.5))
    assert out.loss == 0 and not out.selected.any()


def test_what_is_missing_or_misshapen_is_named(batch):
    log_probs, old, advantages, mask = batch
    with pytest.raises(ErltoolError, match="needs token_entropy"):
        policy_loss(log_probs, old, advantages, mask, control=EntropyBonus())
    with pytest.raises(ErltoolError, match="old_log_probs of shape"):
        policy_loss(log_probs, old[:, :3], advantages, mask)
