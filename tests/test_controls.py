import pytest
import torch

from erltool import ClipCov, ErltoolError, KLCov, NoControl, RandomClip, RandomKL, TrainConfig, parse_control, preset
from erltool.controls.base import CLIP, UNCLIPPED
from erltool.controls.catalog import (
    CONTROLLERS,
    CONTROLS,
    PRESETS,
    control_from_dict,
    control_to_dict,
    controller_from_dict,
)
from erltool.entropy.covariance import token_covariance
from erltool.entropy.tokens import Tokens, kl_estimate


def make_tokens(generator, rows=6, width=20):
    log_probs = -torch.rand(rows, width, generator=generator) * 4
    old = log_probs + 0.3 * torch.randn(rows, width, generator=generator)
    advantages = torch.randn(rows, 1, generator=generator).expand(rows, width)
    mask = torch.arange(width) < torch.randint(5, width, (rows, 1), generator=generator)
    return Tokens(log_probs, old, advantages, mask)


def select_tokens(tokens, control, clip=CLIP, generator=None):
    return control.choose(tokens, clip, generator).selected


def test_kl_cov_takes_the_top_of_the_whole_update(generator):
    tokens = make_tokens(generator)
    selected = select_tokens(tokens, KLCov(fraction=0.1))
    covariance = token_covariance(tokens.advantages, tokens.log_probs, tokens.response_mask)
    assert selected.sum() == int(0.1 * tokens.response_mask.sum())
    assert not (selected & ~tokens.response_mask).any()
    rest = tokens.response_mask & ~selected
    assert covariance[selected].min() >= covariance[rest].max()


@pytest.mark.parametrize("control", [KLCov(0.1), ClipCov(0.1, -1e9, 1e9), RandomClip(0.1), RandomKL(0.1)])
def test_adversarial_padding_is_never_selected(generator, control):
    tokens = make_tokens(generator)
    hostile = tokens._replace(
        log_probs=tokens.log_probs.masked_fill(~tokens.response_mask, 1e9),
        advantages=tokens.advantages.masked_fill(~tokens.response_mask, 1e9),
    )
    draws = [select_tokens(t, control, generator=torch.Generator().manual_seed(1)) for t in (tokens, hostile)]
    assert torch.equal(*draws) and draws[0].any() and not (draws[1] & ~tokens.response_mask).any()


def test_share_is_floor_of_the_update_and_at_least_one(generator):
    tokens = make_tokens(generator)
    count = int(tokens.response_mask.sum())
    assert select_tokens(tokens, KLCov(fraction=1e-9)).sum() == 1
    assert select_tokens(tokens, KLCov(fraction=0)).sum() == 0
    assert select_tokens(tokens, KLCov(fraction=1)).sum() == count
    assert select_tokens(tokens, RandomClip(fraction=1e-9)).sum() == 1
    empty = tokens._replace(response_mask=torch.zeros_like(tokens.response_mask))
    assert select_tokens(empty, KLCov(fraction=0.5)).sum() == 0
    exact = make_tokens(generator, 1, 100)._replace(response_mask=torch.ones(1, 100, dtype=torch.bool))
    assert select_tokens(exact, KLCov(fraction=0.29)).sum() == 29  # 0.29 * 100 is 28.999999999999996


def test_clip_cov_draws_in_its_band_and_outside_the_clip(generator):
    tokens = make_tokens(generator, 40, 30)
    control = ClipCov(fraction=0.05, low=0.2, high=1.0)
    selected = select_tokens(tokens, control, generator=generator)
    covariance = token_covariance(tokens.advantages, tokens.log_probs, tokens.response_mask)
    ratio = (tokens.log_probs - tokens.old_log_probs).exp()
    cut = ((tokens.advantages > 0) & (ratio > 1.2)) | ((tokens.advantages < 0) & (ratio < 0.8))
    band = (covariance > 0.2) & (covariance < 1.0) & ~cut & tokens.response_mask
    assert selected.sum() == int(0.05 * tokens.response_mask.sum()) < band.sum()
    assert not (selected & ~band).any()


def test_clip_cov_draws_uniformly(generator):
    tokens = make_tokens(generator)
    control = ClipCov(fraction=0.05, low=0.2, high=5)
    draws = torch.stack([select_tokens(tokens, control, (9, 9), generator) for _ in range(2000)]).float().mean(0)
    chances = draws[draws > 0]
    count = int(0.05 * tokens.response_mask.sum())
    assert chances.mean().item() == pytest.approx(count / len(chances), rel=1e-6)
    spread = (count / len(chances) * (1 - count / len(chances)) / 2000) ** 0.5
    assert (chances - chances.mean()).abs().max() < 5 * spread


def test_an_empty_band_drops_nothing_and_a_small_one_all_of_it(generator):
    tokens = make_tokens(generator)
    assert not select_tokens(tokens, ClipCov(0.5, 1e5, 1e6)).any()
    covariance = token_covariance(tokens.advantages, tokens.log_probs, tokens.response_mask)
    top = covariance.max().item()
    assert select_tokens(tokens, ClipCov(0.5, top - 1e-4, top + 1), (9, 9)).sum() == 1


def test_quantile_bounds_are_shares_of_the_response_tokens(generator):
    tokens = make_tokens(generator, 30, 40)
    covariance = token_covariance(tokens.advantages, tokens.log_probs, tokens.response_mask)
    selected = select_tokens(tokens, ClipCov(1.0, 0.9, 1.0, bounds="quantile"), (9, 9))
    count = int(tokens.response_mask.sum())
    assert selected.sum() == pytest.approx(0.1 * count, abs=2)
    assert covariance[selected].min() > covariance[tokens.response_mask].quantile(0.89)
    top = (covariance == covariance[tokens.response_mask].max()) & tokens.response_mask
    assert selected[top].all()
    lowest = select_tokens(tokens, ClipCov(1.0, 0.0, 0.5, bounds="quantile"), (9, 9))
    assert covariance[lowest].min() == covariance[tokens.response_mask].min()


def test_the_null_control_looks_at_the_sign_of_the_advantage_only(generator):
    tokens = make_tokens(generator, 30, 40)
    selected = select_tokens(tokens, RandomClip(fraction=0.1), generator=generator)
    assert (tokens.advantages[selected] > 0).all() and selected.sum() == int(0.1 * tokens.response_mask.sum())


def test_the_null_of_kl_cov_differs_in_its_choice_alone(generator):
    tokens = make_tokens(generator, 30, 40)
    null, ours = RandomKL(0.1, 3.0), KLCov(0.1, 3.0)
    selected = select_tokens(tokens, null, generator=generator)
    covariance = token_covariance(tokens.advantages, tokens.log_probs, tokens.response_mask)
    assert selected.sum() == select_tokens(tokens, ours).sum() and not (selected & ~tokens.response_mask).any()
    # a random tenth of 600 tokens has a mean covariance within four standard errors of all tokens' mean
    every = covariance[tokens.response_mask]
    error = every.std() / selected.sum().sqrt()
    assert abs(covariance[selected].mean() - every.mean()) < 4 * error
    assert torch.equal(null.term(tokens, selected), ours.term(tokens, selected))
    assert null.clip_of(CLIP) == UNCLIPPED


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_within_the_dead_zone_a_token_pays_nothing(generator, estimator):
    tokens = make_tokens(generator)
    chosen = tokens.response_mask
    size = tokens.log_ratio.abs()
    zone = float(size[chosen].median())
    plain, dead = KLCov(1.0, 3.0, estimator), KLCov(1.0, 3.0, estimator, dead_zone=zone)
    inside = chosen & (size <= zone)
    assert inside.any() and (dead.term(tokens, chosen)[inside] == 0).all()
    assert torch.equal(dead.term(tokens, chosen)[~inside], plain.term(tokens, chosen)[~inside])
    log_probs = tokens.log_probs.clone().requires_grad_()
    dead.term(tokens._replace(log_probs=log_probs), chosen).sum().backward()
    assert (log_probs.grad[inside] == 0).all() and (log_probs.grad[chosen & ~inside] != 0).all()


@pytest.mark.parametrize("control", [ClipCov(0.1, 0, 5), RandomClip(0.1), RandomKL(0.1)])
def test_the_same_seed_draws_the_same_tokens(generator, control):
    tokens = make_tokens(generator)
    draws = [select_tokens(tokens, control, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_presets_are_the_projects_defaults():
    assert preset("kl-cov", "paper-7b") == KLCov(2e-3, 1.0)
    assert preset("kl-cov", "paper-32b") == KLCov(2e-4, 1.0)
    assert preset("kl-cov", "verl") == KLCov(2e-4, 0.1)
    assert preset("kl-cov", "skyrl").fraction == 0.2
    assert preset("clip-cov", "paper-7b") == ClipCov(2e-4, 1.0, 5.0, clip_eps=1.0)
    assert preset("clip-cov", "verl").clip_eps == 0.2
    assert {"paper-7b", "paper-32b", "verl", "skyrl", "chain"} == set(PRESETS)


def test_text_and_dictionary_name_the_same_control():
    assert parse_control("none") == NoControl()
    assert parse_control("kl-cov:fraction=0.1,coef=2") == KLCov(0.1, 2.0)
    assert parse_control("clip-cov:bounds=quantile,low=0.9,high=1") == ClipCov(low=0.9, high=1, bounds="quantile")
    assert parse_control("kl-cov:chain") == preset("kl-cov", "chain")
    for cls in CONTROLS.values():
        assert control_from_dict(control_to_dict(cls())) == cls()
    for cls in CONTROLLERS.values():
        assert controller_from_dict(control_to_dict(cls())) == cls()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kl-cv", "not known"),
        ("kl-cov:paper-9b", "preset"),
        ("kl-cov:share=1", "no field 'share'"),
        ("kl-cov:fraction=2", r"in \[0, 1\]"),
        ("kl-cov:fraction=many", "a number"),
        ("kl-cov:estimator=k4", "k1, k2 or k3"),
        ("kl-cov:dead_zone=-1", "dead_zone"),
        ("clip-cov:low=5,high=1", "below high"),
        ("none:x=1", "no fields"),
    ],
)
def test_bad_text_is_one_line(text, words):
    with pytest.raises(ErltoolError, match=words) as error:
        parse_control(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("control", ["kl-cov", "clip-higher"])
def test_a_control_that_cannot_act_is_refused_with_the_reason(control):
    with pytest.raises(ErltoolError, match="first update after sampling"):
        TrainConfig(control=parse_control(control), updates_per_iteration=1)


def test_an_absolute_band_needs_normalised_advantages():
    with pytest.raises(ErltoolError, match="standard deviation"):
        TrainConfig(control=ClipCov(), advantages="dr_grpo")
    TrainConfig(control=ClipCov(low=0.9, high=1, bounds="quantile"), advantages="dr_grpo")


def test_kl_estimators_agree_with_the_exact_kl(generator):
    p, q = torch.softmax(torch.randn(2, 5, generator=generator).double(), -1)
    exact = (p * (p / q).log()).sum()
    for estimator in ("k1", "k3"):
        assert (p * kl_estimate((p / q).log(), estimator)).sum().item() == pytest.approx(exact.item())
    assert (kl_estimate((p / q).log(), "k3") >= 0).all()
