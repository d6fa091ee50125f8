"""Probes and likeliest tokens: what they hold, that they leave the run alone, and that they stay small."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import erltool
from erltool import ErltoolError, KLCov, parse_control, read_run
from erltool.entropy.log_probs import likeliest, token_log_probs
from erltool.policies.rollouts import response_log_probs
from erltool.runs.folder import (
    DESCRIBED_COLUMNS,
    LIKELIEST_COLUMNS,
    PROBE_COLUMNS,
    PUSH_COLUMNS,
    TOKEN_COLUMNS,
    read_table,
    write_table,
)
from erltool.training.loop import policies_at
from erltool.training.probes import MOST_TOKENS, OF_PROBE, OF_UPDATE

FIELDS = dict(eval_every=0, record_every=2, record_prompts=1, control=KLCov(0.2), updates_per_iteration=2, steps=12)


@pytest.fixture
def config(tiny_config):
    return tiny_config(**FIELDS, record_probes=2)


def test_the_likeliest_tokens_are_those_of_the_distribution(generator):
    logits = torch.randn(7, 20, generator=generator)
    logits[0, 3] = -torch.inf
    ids, p, entropy = likeliest(logits, 5, temperature=0.7, chunk_elements=40)
    whole = torch.softmax(logits / 0.7, -1)
    assert torch.equal(ids, whole.topk(5).indices) and torch.equal(p, whole.topk(5).values)
    assert torch.allclose(entropy, token_log_probs(logits, ids[:, 0], temperature=0.7)[1], atol=1e-6)
    again = likeliest(logits.flip(0), 5, ids=ids, temperature=0.7)[1]
    assert torch.equal(again, whole.flip(0).gather(1, ids))
    hidden, weight = torch.randn(7, 4, generator=generator), torch.randn(20, 4, generator=generator)
    of_hidden = likeliest(hidden, 30, weight)
    assert of_hidden[0].shape == (7, 20) and torch.allclose(of_hidden[1].sum(1), torch.ones(7))
    assert [x.shape for x in likeliest(logits[:0], 5)] == [(0, 5), (0, 5), (0,)]


def test_a_run_with_probes_is_the_run_without_bit_for_bit(config, tmp_path):
    """Dropout too, which draws from the global random state."""
    config = replace(config, lora_dropout=0.1, control=parse_control("none"))
    list(erltool.train(config, tmp_path / "with"))
    list(erltool.train(replace(config, record_probes=0), tmp_path / "without"))
    a, b = (tmp_path / name for name in ("with", "without"))
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    assert (a / "adapter/adapter_model.safetensors").read_bytes() == (
        b / "adapter/adapter_model.safetensors"
    ).read_bytes()
    known = list(read_run(b).tokens)
    pd.testing.assert_frame_equal(pd.DataFrame(read_run(a).tokens[known]), pd.DataFrame(read_run(b).tokens))
    assert (a / "probes.parquet").is_file() and not (b / "probes.parquet").exists()
    assert len(read_run(b).probes) == 0 and list(read_run(b).probes) == [*PROBE_COLUMNS]
    assert not set(LIKELIEST_COLUMNS) & set(known)


def test_probes_are_the_same_prompts_at_every_recorded_step(config, tmp_path):
    steps = [s for s in erltool.train(config, tmp_path) if s.probes is not None]
    probes = read_run(tmp_path).probes
    assert sorted(probes["step"].unique()) == [2, 6, 10] == sorted(read_run(tmp_path).tokens["step"].unique())
    prompts = probes.groupby("step").apply(lambda t: tuple(t["prompt"].unique()), include_groups=False)
    assert len(set(prompts)) == 1 and len(prompts.iloc[0]) == 2
    assert tuple(probes)[: len(PROBE_COLUMNS)] == PROBE_COLUMNS
    for _, token in probes.iterrows():
        p = token["likeliest_before"]
        assert len(p) == OF_PROBE == len(token["likeliest"]) and (np.diff(p) <= 0).all() and p.sum() <= 1.002
        if token["text"] in token["likeliest"]:
            at = list(token["likeliest"]).index(token["text"])
            assert p[at] == pytest.approx(np.exp(token["log_prob"]), rel=2e-3, abs=1e-6)
    assert len(steps) == 3 and set(steps[0].probes["step"]) == {2}


def test_the_likeliest_tokens_of_an_update_are_before_and_after_it(config):
    """With a policy whose responses are right and wrong, so that the update moves it."""
    config = replace(
        config,
        task="chain:sharpening",
        policy="sharpening",
        lora_rank=0,
        max_response_tokens=20,
        micro_batch=3,
        steps=2,
    )
    (step,) = [s for s in erltool.train(config) if s.likeliest is not None]
    table = step.table(1)
    assert tuple(table) == (*TOKEN_COLUMNS, *PUSH_COLUMNS, *DESCRIBED_COLUMNS, *LIKELIEST_COLUMNS)
    for _, token in table.iterrows():
        assert len(token["likeliest"]) == OF_UPDATE == len(token["likeliest_after"])
        at = list(token["likeliest"]).index(token["text"]) if token["text"] in token["likeliest"] else None
        if at is not None:
            assert token["likeliest_before"][at] == pytest.approx(np.exp(token["log_prob"]), abs=1e-5)
    (_, policy, _), *_ = policies_at(config, [2])
    with torch.no_grad():
        log_probs, entropy = response_log_probs(policy, step.rollouts)
    mask = step.rollouts.response_mask.clone()
    mask[config.group_size :] = False
    assert table["entropy_after"].to_numpy() == pytest.approx(entropy[mask].numpy(), abs=1e-5)
    p = log_probs[mask].exp()
    for value, (_, token) in zip(p.tolist(), table.iterrows(), strict=True):
        if token["text"] in token["likeliest"]:
            assert token["likeliest_after"][list(token["likeliest"]).index(token["text"])] == pytest.approx(
                value, abs=1e-5
            )
    # More tokens than were measured: the rest has nothing.
    changes = [np.abs(t["likeliest_after"] - t["likeliest_before"]).max() for _, t in table.iterrows()]
    assert max(changes) > 1e-3
    whole = step.table()
    assert whole["entropy_after"].notna().sum() == len(table) and len(whole["likeliest"].iloc[-1]) == 0


def test_probes_of_a_resumed_run_are_those_of_one_that_was_not_stopped(config, tmp_path):
    list(erltool.train(config, tmp_path / "whole"))
    for step in erltool.train(config, tmp_path / "stopped"):
        if step.metrics["step"] == 7:  # inside an iteration, after the second recording
            break
    list(erltool.train(config, tmp_path / "stopped", resume=True))
    one, other = (pd.DataFrame(read_run(tmp_path / name).probes) for name in ("whole", "stopped"))
    pd.testing.assert_frame_equal(one, other)


def test_a_run_older_than_the_field_goes_on(config, tmp_path):
    config = replace(config, record_probes=0, steps=4)
    list(erltool.train(config, tmp_path))
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"record_probes": 0,', ""))
    assert "record_probes" not in file.read_text() and read_run(tmp_path).config["record_probes"] == 0
    list(erltool.train(replace(config, steps=6), tmp_path, resume=True))
    with pytest.raises(ErltoolError, match="record_probes=0, not 3"):
        erltool.train(replace(config, steps=8, record_probes=3), tmp_path, resume=True)


def test_fifty_recordings_of_long_responses_stay_below_two_megabytes(rng, tmp_path):
    """Two prompts, groups of eight, every response as long as what is kept; words as unlike as a model's."""
    n = 50 * 2 * 8 * MOST_TOKENS
    words = np.array([f" word{i}" for i in range(3000)])[rng.zipf(1.3, (n, OF_PROBE + 1)) % 3000]
    p = -np.sort(-rng.dirichlet(np.full(OF_PROBE, 0.3), n), 1).astype(np.float16)
    at = np.arange(n)
    table = pd.DataFrame({
        "step": at * 50 // n, "prompt_index": at // (8 * MOST_TOKENS) % 2, "response_index": at // MOST_TOKENS % 8,
        "position": at % MOST_TOKENS, "prompt": "a question of some length " * 8, "reward": 1.0, "token_id": at % 3000,
        "text": words[:, -1], "log_prob": rng.normal(size=n).astype("f4"), "entropy": rng.random(n).astype("f4"),
        "likeliest": list(words[:, :-1]), "likeliest_before": list(p.astype("f4")),
    })  # fmt: skip
    write_table(tmp_path / "probes.parquet", [table])
    assert (tmp_path / "probes.parquet").stat().st_size <= 2e6
    assert np.array_equal(read_table(tmp_path / "probes.parquet")["likeliest_before"][5], p[5].astype("f4"))
