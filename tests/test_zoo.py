"""The controls of other papers, and controllers, against cases worked by hand; and what composes."""

import dataclasses
import json
import math

import pytest
import torch

import erltool
from erltool import (
    CEGPPO,
    CISPO,
    GSPO,
    AdaptiveBonus,
    ClipCov,
    ClipHigher,
    CovarianceKernel,
    EntropyBonus,
    EntropyShapedAdvantage,
    ErltoolError,
    HighEntropyMask,
    KLCov,
    NegativeReinforcement,
    NoControl,
    QuantileAdvantage,
    RandomClip,
    RandomKL,
    ReferenceKL,
    Schedule,
    TargetEntropy,
    TrainConfig,
    group_advantages,
    parse_control,
    parse_controller,
    policy_loss,
    read_run,
)
from erltool.controls.base import Composed, reaches_zero_advantage
from erltool.controls.catalog import control_from_dict, control_to_dict

TWO_AND_ONE = torch.tensor([[True, True], [True, False]])


def on_policy(advantages, control, mask=TWO_AND_ONE, **extra):
    """The loss where every ratio is 1, so that a token's gradient is -weight * A / normaliser; and that gradient."""
    log_probs = torch.full(mask.shape, -1.0, requires_grad=True)
    out = policy_loss(log_probs, log_probs.detach(), torch.tensor(advantages), mask, control=control, **extra)
    return out, torch.autograd.grad(out.loss, log_probs, retain_graph=True)[0]


def test_a_bonus_below_an_entropy_by_hand():
    # Entropies 0.1, 0.3, 0.2 and padding: the mean is 0.2.
    entropy = torch.tensor([[0.1, 0.3], [0.2, 9.0]], requires_grad=True)
    found = {}
    for below in (0.25, 0.15):
        found[below], _ = on_policy([1.0, -1.0], EntropyBonus(0.004, below=below), token_entropy=entropy)
    plain, _ = on_policy([1.0, -1.0], NoControl())
    assert (found[0.25].loss - plain.loss).item() == pytest.approx(-0.004 * 0.6 / 3, abs=1e-6)
    pull = torch.autograd.grad(found[0.25].loss, entropy)[0]
    torch.testing.assert_close(pull, torch.tensor([[-0.004, -0.004], [-0.004, 0.0]]) / 3)
    assert torch.equal(found[0.25].selected, TWO_AND_ONE)
    assert found[0.15].loss == plain.loss and not found[0.15].selected.any()


def test_the_adaptive_coefficient_goes_up_below_the_target_and_down_above_within_its_bounds():
    controller, given = AdaptiveBonus(target=0.2, delta=0.002, max_coef=0.005), KLCov() + EntropyBonus(0.0, below=0.2)
    control, coefs = given, []
    for step, entropy in enumerate((0.1, 0.1, 0.1, 0.3, 0.2, 0.3, 0.3), start=1):
        control = controller.after(control, given, step, entropy)
        coefs.append(controller.value(control))
    assert control == KLCov() + EntropyBonus(0.0, below=0.2)
    assert coefs == pytest.approx([0.002, 0.004, 0.005, 0.003, 0.001, 0.0, 0.0])


def test_high_entropy_mask_by_hand():
    # Two of the five tokens have the highest entropy, 0.7 and 0.9; the padding's 5 does not count.
    mask = torch.tensor([[True, True, True], [True, True, False]])
    entropy = torch.tensor([[0.1, 0.9, 0.2], [0.7, 0.3, 5.0]])
    out, gradient = on_policy([1.0, -2.0], HighEntropyMask(fraction=0.4), mask, token_entropy=entropy)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, -1.0, 0.0], [2.0, 0.0, 0.0]]) / 5)
    assert out.loss.item() == pytest.approx((-1.0 + 2.0) / 5)
    assert out.selected.tolist() == [[True, False, True], [False, True, False]]
    everything, all_of_it = on_policy([1.0, -2.0], HighEntropyMask(fraction=1.0), mask, token_entropy=entropy)
    assert torch.equal(all_of_it, on_policy([1.0, -2.0], NoControl(), mask)[1]) and not everything.selected.any()


def test_entropy_shaped_advantage_by_hand():
    # min(0.4 * 0.5, 1 / 2) = 0.2 and min(0.4 * 5, 1 / 2) = 0.5 are added to 1 and -1; 0 stays 0.
    mask = torch.ones(3, 2, dtype=torch.bool)
    entropy = torch.tensor([[0.5, 5.0]]).repeat(3, 1).requires_grad_()
    out, gradient = on_policy([1.0, -1.0, 0.0], EntropyShapedAdvantage(), mask, token_entropy=entropy)
    shaped = torch.tensor([[1.2, 1.5], [-0.8, -0.5], [0.0, 0.0]])
    torch.testing.assert_close(gradient, -shaped / 6)
    assert out.loss.item() == pytest.approx(-shaped.sum().item() / 6)
    assert torch.autograd.grad(out.loss, entropy, allow_unused=True)[0] is None


def test_cispo_by_hand():
    # Ratios 2, 0.25 and 1: weights 1.5, 0.25 (no lower bound) and 1.
    log_probs = torch.tensor([[-1.0], [-3.0], [-2.0]], requires_grad=True)
    old = log_probs.detach() - torch.tensor([[2.0], [0.25], [1.0]]).log()
    out = policy_loss(
        log_probs, old, torch.tensor([1.0, -1.0, 2.0]), torch.ones(3, 1).bool(), control=CISPO(clip_eps_high=0.5)
    )
    torch.testing.assert_close(out.token_loss, torch.tensor([[1.5], [-0.75], [4.0]]))
    gradient = torch.autograd.grad(out.loss, log_probs)[0]
    torch.testing.assert_close(gradient, torch.tensor([[-1.5], [0.25], [-2.0]]) / 3)
    assert not out.clipped.any()  # a token's gradient is never cut, however far its ratio
    torch.testing.assert_close(on_policy([1.0, -2.0], CISPO())[1], on_policy([1.0, -2.0], NoControl())[1])


def test_gspo_by_hand():
    # Log-ratios 0.1, -0.3: s = exp(-0.1), inside the clip. Log-ratio 0.2: s = exp(0.2), cut to 1.1.
    old = torch.tensor([[-1.0, -1.0], [-1.0, -1.0]])
    log_probs = (old + torch.tensor([[0.1, -0.3], [0.2, 7.0]])).requires_grad_()
    control, advantages = GSPO(clip_eps_low=0.1, clip_eps_high=0.1), torch.tensor([-1.0, 1.0])
    out = policy_loss(log_probs, old, advantages, TWO_AND_ONE, control=control)
    assert out.loss.item() == pytest.approx((math.exp(-0.1) - 1.1) / 2)
    gradient = torch.autograd.grad(out.loss, log_probs)[0]
    torch.testing.assert_close(gradient, torch.tensor([[math.exp(-0.1) / 4] * 2, [0.0, 0.0]]))
    assert out.clipped.tolist() == [[False, False], [True, False]]


def test_gspo_is_its_sequence_formula_and_a_response_counts_the_same_whatever_its_length(generator):
    old = -torch.rand(5, 8, generator=generator).double()
    log_probs = (old + 0.1 * torch.randn(5, 8, generator=generator)).requires_grad_()
    advantages = torch.randn(5, generator=generator).double()
    mask = torch.arange(8) < torch.tensor([8, 2, 5, 1, 3])[:, None]
    control = GSPO(clip_eps_low=0.02, clip_eps_high=0.03)
    out = policy_loss(log_probs, old, advantages, mask, control=control)
    s = (((log_probs - old) * mask).sum(-1) / mask.sum(-1)).exp()
    literal = torch.maximum(-advantages * s, -advantages * s.clamp(0.98, 1.03)).mean()
    torch.testing.assert_close(out.loss, literal)
    torch.testing.assert_close(torch.autograd.grad(out.loss, log_probs)[0], torch.autograd.grad(literal, log_probs)[0])
    twice = (x.repeat(1, 2) for x in (log_probs, old))
    longer = policy_loss(*twice, advantages, mask.repeat(1, 2), control=control)
    torch.testing.assert_close(longer.loss, out.loss)


def test_ce_gppo_by_hand():
    # Ratios 1.5 and wanted: gradient 1 * 1.2; 0.5 and unwanted: 0.75 * 0.8; 1.5 and unwanted, 1.1 and wanted: inside.
    ratio = torch.tensor([[1.5], [0.5], [1.5], [1.1]])
    log_probs = ratio.log().requires_grad_()
    advantages = torch.tensor([1.0, -1.0, -1.0, 2.0])
    out = policy_loss(log_probs, torch.zeros(4, 1), advantages, torch.ones(4, 1).bool(), control=CEGPPO())
    torch.testing.assert_close(out.token_loss, torch.tensor([[-1.2], [0.6], [1.5], [-2.2]]))
    gradient = torch.autograd.grad(out.loss, log_probs)[0]
    torch.testing.assert_close(gradient, torch.tensor([[-1.2], [0.6], [1.5], [-2.2]]) / 4)
    assert out.clipped.flatten().tolist() == [True, True, False, False]
    none = CEGPPO(beta_low=0.0, beta_high=0.0)
    clipped = policy_loss(log_probs, torch.zeros(4, 1), advantages, torch.ones(4, 1).bool(), control=none)
    plain = policy_loss(log_probs, torch.zeros(4, 1), advantages, torch.ones(4, 1).bool())
    assert torch.equal(*(torch.autograd.grad(x.loss, log_probs)[0] for x in (clipped, plain)))
    torch.testing.assert_close(on_policy([1.0, -2.0], CEGPPO())[1], on_policy([1.0, -2.0], NoControl())[1])


def test_cw_grpo_by_hand():
    log_probs = torch.tensor([[-1.0, -3.0], [-1.0, -1.0], [-2.0, 7.0]], requires_grad=True)
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    advantages = torch.tensor([1.0, -1.0, 0.5])
    out = policy_loss(log_probs, log_probs.detach(), advantages, mask, control=CovarianceKernel())
    lp, a = [-1.0, -3.0, -1.0, -1.0, -2.0], [1.0, 1.0, -1.0, -1.0, 0.5]
    c = [(x - sum(lp) / 5) * (y - sum(a) / 5) for x, y in zip(lp, a, strict=True)]
    variance = sum((x - sum(c) / 5) ** 2 for x in c) / 5
    w = [math.exp(-x * x / (2 * variance)) for x in c]
    expected = [-y * x * 5 / sum(w) / 5 for x, y in zip(w, a, strict=True)]
    gradient = torch.autograd.grad(out.loss, log_probs)[0]
    torch.testing.assert_close(gradient[mask], torch.tensor(expected))
    assert w[1] == min(w)  # the rare token of the right response has the most extreme covariance
    equal, _ = on_policy([1.0, 1.0], CovarianceKernel())  # no covariance varies: the advantages stay
    assert equal.loss == on_policy([1.0, 1.0], NoControl())[0].loss
    for apart in (2.0, 0.6):  # two tokens have one covariance, and it is not 0; it may differ by its rounding
        pair = torch.tensor([[-0.1], [-0.1 - apart]])
        two = pair, pair - 0.1, torch.tensor([1.0, -1.0]), torch.ones(2, 1, dtype=torch.bool)
        torch.testing.assert_close(
            policy_loss(*two, control=CovarianceKernel()).token_loss, policy_loss(*two).token_loss
        )


def test_negative_reinforcement_by_hand():
    rewards = torch.tensor([1.0, 0.0])
    out, gradient = on_policy([0.0, 0.0], NegativeReinforcement(coef=0.1), rewards=rewards)
    torch.testing.assert_close(gradient, torch.tensor([[-0.1, -0.1], [1.0, 0.0]]) / 3)
    assert out.loss.item() == pytest.approx((-0.2 + 1.0) / 3)
    _, negative_only = on_policy([0.0, 0.0], NegativeReinforcement(coef=0.0), rewards=rewards)
    assert (negative_only[0] == 0).all() and negative_only[1, 0] == gradient[1, 0]


def test_quantile_advantage_by_hand():
    # One right in four: Q = 0, the right one has 1 / 0.5; three right: Q = 1, the wrong one has -1 / 0.5.
    rewards = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1])
    mask = torch.ones(12, 1, dtype=torch.bool)
    out, gradient = on_policy([9.0] * 12, QuantileAdvantage(), mask, rewards=rewards, group_size=4)
    expected = torch.tensor([2.0, 0, 0, 0, 0, 0, 0, -2, 0, 0, 0, 0])
    torch.testing.assert_close(gradient[:, 0], -expected / 12, atol=1e-6, rtol=1e-5)
    assert out.loss.item() == pytest.approx(0, abs=1e-6)


def test_the_quantile_leaves_rare_successes_of_hard_prompts_and_remaining_failures_of_easy_ones():
    for quantile in (0.2, 0.4, 0.7):
        for right in range(1, 10):
            rewards = torch.tensor([1.0] * right + [0.0] * (10 - right))
            mask = torch.ones(10, 1, dtype=torch.bool)
            _, gradient = on_policy([0.0] * 10, QuantileAdvantage(quantile), mask, rewards=rewards, group_size=10)
            hard = right <= round(10 * (1 - quantile))
            assert torch.equal(gradient[:, 0] != 0, rewards == (1.0 if hard else 0.0))


# --- a wanted entropy ------------------------------------------------------------------------------


def test_target_entropy_by_hand():
    controller, control = TargetEntropy(target=0.5, rate=0.2, max_fraction=0.2), KLCov(0.1, 2.0)
    assert controller.after(control, control, 1, 0.25) == KLCov(0.1 * math.exp(0.1), 2.0)
    assert controller.after(control, control, 1, 0.5) == control
    assert controller.after(control, control, 1, 40.0).fraction == pytest.approx(0.1 * math.exp(-0.2))
    for entropy, bound in ((0.0, 0.2), (9.0, 1e-4)):
        held = control
        for step in range(1, 101):
            held = controller.after(held, control, step, entropy)
        assert controller.value(held) == bound


def test_a_schedule_explores_and_then_commits():
    controller, given = Schedule(start=3, length=4), ClipCov(0.02, 0.5, 50.0)
    control, fractions = given, []
    for step in range(1, 10):
        fractions.append(controller.value(control))
        control = control_from_dict(json.loads(json.dumps(control_to_dict(control))))  # as a checkpoint keeps it
        control = controller.after(control, given, step, 0.3)
    assert fractions == pytest.approx([0.02, 0.02, 0.02, 0.02, 0.015, 0.01, 0.005, 0, 0])
    assert control == ClipCov(0.0, 0.5, 50.0)
    out, gradient = on_policy([1.0, -1.0], control)
    plain, of_plain = on_policy([1.0, -1.0], NoControl())
    assert out.loss == plain.loss and torch.equal(gradient, of_plain) and not out.selected.any()
    coefficient = Schedule(field="coef", start=0, length=2, to=1.0)
    assert coefficient.after(KLCov(0.1, 3.0), KLCov(0.1, 3.0), 1, 0.3) == KLCov(0.1, 2.0)


def test_a_token_without_advantage_gets_a_gradient_where_some_part_gives_it_one():
    assert reaches_zero_advantage(KLCov(), on_policy=False) and not reaches_zero_advantage(KLCov(), on_policy=True)
    assert reaches_zero_advantage(ClipCov() + EntropyBonus(), on_policy=True)
    assert not reaches_zero_advantage(ClipCov(), on_policy=False)


def test_a_reward_at_the_mean_and_above_the_quantile_gets_a_gradient():
    rewards, mask = torch.tensor([0.0, 0.5, 0.5, 1.0]), torch.ones(4, 1, dtype=torch.bool)
    of_grpo = group_advantages(rewards, 4)
    _, gradient = on_policy(of_grpo.tolist(), QuantileAdvantage(0.2), mask, rewards=rewards, group_size=4)
    assert of_grpo[1] == 0 > gradient[1, 0]
    assert reaches_zero_advantage(QuantileAdvantage(0.2), on_policy=True)


@pytest.mark.parametrize("start", [1e-4, 0.02, 0.5])
@pytest.mark.parametrize("inner", [KLCov(coef=2.0), ClipCov(), RandomClip()], ids=lambda c: c.name)
def test_a_simulated_plant_is_brought_to_the_target_from_any_share(start, inner):
    """Entropy decays to 0.05 by itself, and a share holds up 2 nats times itself."""
    controller, given = TargetEntropy(target=0.3), dataclasses.replace(inner, fraction=start)
    control, entropy, seen = given, 0.5, []
    for step in range(1, 601):
        entropy += 0.05 * (0.05 + 2 * control.fraction - entropy)
        control = controller.after(control, given, step, entropy)
        seen.append(entropy)
    assert all(abs(h - 0.3) < 0.01 for h in seen[-100:])
    assert control.fraction == pytest.approx(0.125, rel=0.05)


@pytest.mark.parametrize(("target", "direction"), [(9.0, 1), (0.01, -1)])
def test_on_a_shipped_policy_the_share_moves_towards_the_target(target, direction):
    control, controller = KLCov(0.1, 2.0), TargetEntropy(target, rate=0.2)
    config = TrainConfig(
        control=control, controller=controller, steps=8, prompts_per_iteration=8, updates_per_iteration=2, eval_every=0
    )
    steps = [s.metrics for s in erltool.train(config)]
    shares = [m["control_value"] for m in steps]
    assert shares[0] == 0.1 and all(direction * (b - a) > 0 for a, b in zip(shares, shares[1:], strict=False))
    for m, share in zip(steps, shares, strict=True):
        assert m["selected_tokens"] == max(1, int(share * m["response_tokens"] + 1e-9))


@pytest.mark.parametrize(
    ("control", "controller"),
    [
        ("clip-cov:fraction=0.1,low=0,high=5", "target-entropy:target=9"),
        ("entropy-bonus:coef=0,below=9+kl-cov:fraction=0.2", "adaptive-bonus:target=9"),
    ],
)
def test_a_controller_is_resumed_where_it_was(tiny_config, tmp_path, control, controller):
    config = tiny_config(control=parse_control(control), controller=parse_controller(controller), eval_every=0)
    list(erltool.train(config, tmp_path / "whole"))
    steps = erltool.train(config, tmp_path / "cut")
    for _ in range(5):  # one beyond the checkpoint of step 4
        next(steps)
    steps.close()
    list(erltool.train(config, tmp_path / "cut", resume=True))
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    values = read_run(tmp_path / "cut").metrics["control_value"]
    assert values.is_monotonic_increasing and values.nunique() == 8


# --- composition -----------------------------------------------------------------------------------


def test_a_composition_is_the_sum_of_its_parts(generator):
    log_probs = -torch.rand(6, 9, generator=generator).double()
    old = (log_probs + 0.3 * torch.randn(6, 9, generator=generator)).double()
    mask = torch.arange(9) < torch.tensor([9, 3, 7, 1, 8, 5])[:, None]
    advantages = torch.randn(6, generator=generator).double()
    extra = {"token_entropy": torch.rand(6, 9, generator=generator).double(), "ref_log_probs": old}

    def loss(control):
        seeded = torch.Generator().manual_seed(1)
        return policy_loss(log_probs, old, advantages, mask, control=control, generator=seeded, **extra)

    kl, bonus, reference, clip = KLCov(0.2, 3.0), EntropyBonus(0.5), ReferenceKL(0.7), ClipCov(0.2, 0, 5)
    plain = loss(NoControl()).loss
    torch.testing.assert_close(loss(kl + bonus + reference).loss,
                               loss(kl).loss + loss(bonus).loss + loss(reference).loss - 2 * plain)  # fmt: skip
    assert torch.equal(loss(kl + bonus).selected, loss(kl).selected)
    # A dropped token loses its surrogate, not its bonus.
    torch.testing.assert_close(loss(clip + bonus).loss, loss(clip).loss + loss(bonus).loss - plain)
    assert loss(clip + bonus).loss == loss(bonus + clip).loss
    assert NoControl() + kl == kl == kl + NoControl()


def test_advantages_are_made_from_rewards_before_they_are_shaped():
    rewards, entropy = torch.tensor([1.0, 0.0]), torch.full((2, 2), 0.1)
    for control in (
        NegativeReinforcement(1.0) + EntropyShapedAdvantage(),
        EntropyShapedAdvantage() + NegativeReinforcement(1.0),
    ):
        _, gradient = on_policy([0.0, 0.0], control, rewards=rewards, token_entropy=entropy)
        torch.testing.assert_close(gradient, -torch.tensor([[1.04, 1.04], [-0.96, 0.0]]) / 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kl-cov+clip-higher", "kl-cov and clip-higher cannot act together: both decide the surrogate or its clip"),
        ("cispo+gspo", "both decide the surrogate"),
        ("clip-cov:clip_eps=1+cispo", "both decide the surrogate"),
        ("clip-cov+random-clip", "both drop tokens"),
        ("high-entropy-mask+clip-cov", "both drop tokens"),
        ("kl-cov+clip-cov", "both choose tokens by covariance"),
        ("negative-reinforcement+quantile-advantage", "both make the advantages from the rewards"),
        ("entropy-bonus+entropy-bonus:below=1", "both are entropy-bonus"),
        ("cw-grpo+kl-cov", "both choose tokens by covariance"),
        ("reference-kl+reference-kl", "both are reference-kl"),
    ],
)
def test_what_only_one_can_do_is_refused_for_two(text, words):
    with pytest.raises(ErltoolError, match=words) as error:
        parse_control(text)
    assert "\n" not in str(error.value)


def test_text_and_json_name_the_same_composition():
    wanted = KLCov(0.02, 1.0) + EntropyBonus(0.01)
    assert parse_control("kl-cov:chain + entropy-bonus:coef=0.01") == wanted
    assert isinstance(wanted, Composed) and wanted.name == "kl-cov+entropy-bonus"
    assert parse_control("entropy-bonus:coef=1e+3") == EntropyBonus(1000.0)
    controller = parse_controller("target-entropy:target=0.4,rate=0.2")
    assert controller == TargetEntropy(0.4, rate=0.2)
    assert control_from_dict(control_to_dict(wanted)) == wanted
    config = TrainConfig(control=wanted, controller=controller)
    assert TrainConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("target-entropy", "control 'target-entropy' is not known"),
        ("high-entropy-mask:fraction=0", r"in \(0, 1\]"),
        ("entropy-bonus:below=0", "below must be above 0"),
        ("entropy-shaped-advantage:kappa=1", "above 1"),
        ("quantile-advantage:quantile=1", r"in \(0, 1\)"),
        ("kl-cov:coef=inf", "at least 0 and finite"),
        ("reference-kl:coef=inf", "at least 0 and finite"),
        ("kl-cov+", "control '' is not known"),
    ],
)
def test_bad_text_is_one_line(text, words):
    with pytest.raises(ErltoolError, match=words) as error:
        parse_control(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("control", "controller", "words"),
    [
        (NoControl(), TargetEntropy(), "needs one number fraction of clip-cov or kl-cov or .* none has none"),
        (KLCov() + RandomClip(), TargetEntropy(), "has 2"),
        (HighEntropyMask(), TargetEntropy(), "has none"),
        (KLCov(0.1), TargetEntropy(max_fraction=0.01), "fraction of control kl-cov must be in"),
        (EntropyBonus(1.0), AdaptiveBonus(), "max_coef=0.005"),
        (parse_control("repo-r:zeta=5"), parse_controller("doubling"), "zeta of control repo-r must be in"),
        (KLCov(), Schedule(field="strength"), "needs one number strength to steer"),
        (KLCov(), Schedule(to=2.0), "fraction must be in"),
        (KLCov(), "target-entropy", "controller='target-entropy': must be a controller"),
    ],
    ids=str,
)
def test_a_controller_that_cannot_steer_is_refused(control, controller, words):
    with pytest.raises(ErltoolError, match=words) as error:
        TrainConfig(control=control, controller=controller)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["pid", "schedule:half=3", "schedule:length=0", "target-entropy:target=many"])
def test_bad_text_of_a_controller_is_one_line(text):
    with pytest.raises(ErltoolError, match="controller") as error:
        parse_controller(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("control", "fields", "words"),
    [
        (QuantileAdvantage(), {"advantages": "rloo"}, "quantile-advantage makes the advantages itself"),
        (NegativeReinforcement() + EntropyBonus(), {"advantages": "dr_grpo"}, "makes the advantages itself"),
        (NegativeReinforcement() + ClipCov(), {}, r"negative-reinforcement\+clip-cov: the band .* assumes advantages"),
        (ClipCov() + EntropyBonus(), {"advantages": "rloo"}, "standard deviation"),
        (KLCov(), {"lora_dropout": 0.1, "controller": TargetEntropy()}, "kl-cov penalises every difference"),
        (RandomKL(), {"lora_dropout": 0.1}, "random-kl penalises every difference"),
        (GSPO(), {"lora_dropout": 0.1}, "gspo clips whole responses"),
        (CISPO(), {"updates_per_iteration": 1}, "cispo cannot act"),
        (CEGPPO(), {"updates_per_iteration": 1}, "ce-gppo cannot act"),
        (ClipHigher() + EntropyBonus(), {"updates_per_iteration": 1}, r"clip-higher\+entropy-bonus cannot act"),
    ],
    ids=str,
)  # fmt: skip
def test_configurations_in_which_a_control_would_mislead_are_refused(control, fields, words):
    with pytest.raises(ErltoolError, match=words) as error:
        TrainConfig(control=control, **fields)
    assert "\n" not in str(error.value)


def test_what_a_control_reads_is_asked_for_by_name():
    batch = torch.zeros(2, 2), torch.zeros(2, 2), torch.ones(2), TWO_AND_ONE
    for control, name in ((QuantileAdvantage(), "rewards"), (HighEntropyMask(), "token_entropy")):
        with pytest.raises(ErltoolError, match=f"{control.name} needs {name}"):
            policy_loss(*batch, control=control)
    with pytest.raises(ErltoolError, match="group_size 3 does not divide the 2 responses"):
        policy_loss(*batch, control=QuantileAdvantage(), rewards=torch.zeros(2), group_size=3)
