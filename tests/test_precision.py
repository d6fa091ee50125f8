"""The precision gauge on a small policy: what is exact, what is not, and what it advises."""

import dataclasses
import math

import pytest

from erltool import ErltoolError, TrainConfig
from erltool.cli.command import main
from erltool.training.precision import TOKENS, Difference, Penalty, Precision, gauge

CONFIG = TrainConfig(
    policy="countdown", task="countdown", max_response_tokens=12, prompts_per_iteration=16, group_size=8,
    updates_per_iteration=2, learning_rate=1e-3, lora_rank=4, device="cpu",
)  # fmt: skip


def test_in_fp32_nothing_but_the_update_moves():
    found = gauge(dataclasses.replace(CONFIG, dtype="fp32"))
    differences = {d.what: d for d in found.differences}
    assert len(differences) == 4 and not any("nf4" in what for what in differences)
    assert all(d.largest < 1e-3 for d in found.differences), "with an adapter added to its base, too"
    assert differences["the computing type against fp32"].largest == 0
    for penalty in found.penalties:
        assert penalty.moved > 1e-3 and penalty.noise < 1e-4 and penalty.k1 < 0.1 and penalty.k2 < 0.01
    assert found.remedy.count("k1, k2 and k3 all do") == 2


def test_in_bf16_on_4_bits_every_ratio_is_noisy():
    found = gauge(dataclasses.replace(CONFIG, dtype="bf16", base="nf4"))
    size = {d.what: d.mean for d in found.differences}
    assert size["nf4 against the weights as they are"] > size["the computing type against fp32"] > 1e-4
    assert size["sampler against training's forward"] > 1e-4
    sampler, ours = found.penalties
    for penalty in found.penalties:  # as erltool takes them, too: after any change of the weights, roundings fall anew
        assert penalty.noise > 1e-3 and penalty.k1 > 0.1, "rounding gets much of the penalty"
    assert sampler.moved == ours.moved and sampler.tokens == ours.tokens >= TOKENS
    assert all(d.mean <= d.p99 <= d.largest for d in found.differences)
    assert sampler.k2 < sampler.k1 and max(map(len, str(found).splitlines())) <= 79


def test_the_remedy_follows_the_noise():
    def advised(k1, k2, outside=math.nan):
        return Precision((Difference("x", 0, 0, 0),), (Penalty("sampler", 1, k1, k1, k2, 0.25, outside, 9),) * 2).remedy

    assert "k1, k2 and k3 all do" in advised(0.05, 0.0) and "use k2 or k3" in advised(0.4, 0.05)
    assert "k2 or k3 with dead_zone=0.25" in advised(0.4, 0.15, 0.05) and "use fp32" in advised(0.4, 0.15, 0.12)
    assert "use fp32" in advised(0.9, 0.8) and "not known" in advised(math.nan, math.nan)


def test_a_step_too_small_for_bf16_is_all_noise():
    """The gauge took what rounding did after an update for movement, and said that there was none."""
    config = dataclasses.replace(CONFIG, dtype="bf16", learning_rate=1e-6)
    for penalty in gauge(config).penalties:
        assert penalty.moved < 1e-4 < penalty.noise and 0.9 < penalty.k1 < 1.1 and 0.9 < penalty.k2 < 1.1


def test_doctor_prints_it_and_says_what_it_cannot_measure(capsys):
    words = "--policy sharpening --task chain:sharpening --max-response-tokens 28 --lora-rank 2 --device cpu"
    small = "--prompts-per-iteration 8 --group-size 4 --updates-per-iteration 2"
    assert main(["doctor", *words.split(), *small.split()]) == 0
    assert "KL-Cov, second update" in capsys.readouterr().out
    with pytest.raises(ErltoolError, match="needs lora_rank above 0"):
        gauge(dataclasses.replace(CONFIG, lora_rank=0))
