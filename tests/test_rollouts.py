import contextlib
from dataclasses import replace

import pytest
import torch

from erltool import ErltoolError, load_policy, response_log_probs, sample_groups
from erltool.policies import decoding, sampling
from erltool.policies.rollouts import PACKED_ROW, Rollouts, common_beginning, concatenate, pack

PROMPTS = ["1 2 3=6:", "4 5 6=15:", "7 8 9=24:"]


@pytest.fixture(scope="module", params=["tiny", "countdown"])
def policy(request, tiny_policy):
    return load_policy("countdown" if request.param == "countdown" else str(tiny_policy), lora_rank=4)


def sample(policy, group_size=4, seed=0, prompts=PROMPTS, **options):
    options = {"max_response_tokens": 24} | options
    return sample_groups(policy, prompts, group_size, generator=torch.Generator().manual_seed(seed), **options)


def test_mask_ends_at_eos_and_the_text_has_none(policy):
    rollouts = sample(policy, 16)
    eos = policy.tokenizer.eos_token_id
    assert len(rollouts) == 48 and rollouts.prompts == [p for p in PROMPTS for _ in range(16)]
    for b in range(len(rollouts)):
        one = rollouts[b]
        assert (one.token_ids[-1] == eos) == (one.stop_reason == "eos")
        assert eos not in one.token_ids[:-1]
        assert one.stop_reason == "eos" or len(one.token_ids) == 24
        assert one.response == policy.tokenizer.decode([t for t in one.token_ids if t != eos])
    assert (rollouts.log_probs[~rollouts.response_mask] == 0).all()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_samplers_log_probs_are_those_of_the_training_forward(policy, temperature):
    rollouts = sample(policy, temperature=temperature)
    log_probs, entropy = response_log_probs(policy, rollouts, temperature)
    torch.testing.assert_close(log_probs.detach(), rollouts.log_probs, atol=2e-5, rtol=0)
    assert (entropy[rollouts.response_mask] > 0).all() and (entropy[~rollouts.response_mask] == 0).all()


def own_log_probs(policy, one):
    """Log-probs of the single response `one` by the model itself, without our rows."""
    ids = torch.tensor([one.prompt_ids[0] + one.token_ids[0].tolist()])
    logits = policy.causal_lm(ids).logits[0, len(one.prompt_ids[0]) - 1 : -1]
    return torch.log_softmax(logits, -1).gather(-1, one.token_ids[0, :, None])[:, 0]


def test_packing_a_group_changes_nothing(policy):
    """Packed rows must give the same as one row for each response without a mask."""
    rollouts = sample(policy)
    together, _ = response_log_probs(policy, rollouts)
    for b in range(len(rollouts)):
        plain = own_log_probs(policy, rollouts.take([b]))
        torch.testing.assert_close(together[b, : len(plain)], plain, atol=2e-5, rtol=0)


def test_rows_share_a_prompt_up_to_their_length(policy):
    rollouts = sample(policy, 8)
    packed = pack(rollouts)
    assert packed.input_ids.shape[0] == len(PROMPTS) and len(packed.predicting) == rollouts.response_mask.sum()
    alone = pack(rollouts.take([0, 8, 16]))
    assert alone.attention_mask is None and alone.position_ids is None
    many = pack(sample(policy, 200, max_response_tokens=12))
    assert many.input_ids.shape[1] <= PACKED_ROW and many.input_ids.shape[0] > len(PROMPTS)


def test_a_narrow_model_has_shorter_rows(policy):
    rollouts = sample(policy, 8, max_response_tokens=12)
    wide, narrow = pack(rollouts), pack(rollouts, hidden=40)
    assert narrow.input_ids.shape[1] <= 40 < wide.input_ids.shape[1]
    assert len(narrow.predicting) == len(wide.predicting)


def test_responses_too_long_for_one_row_are_shared_out_evenly():
    """A row of seven and one of a single response would be as wide as two of seven: 1012 tokens instead of 586."""
    long = (PACKED_ROW - 9) // 7
    ids = torch.ones(8, long + 1, dtype=torch.long)
    mask, zeros = torch.ones_like(ids, dtype=torch.bool), torch.zeros(ids.shape)
    packed = pack(Rollouts([""] * 8, [""] * 8, [[1] * 9] * 8, ids, mask, zeros, mask[:, 0]))
    assert packed.input_ids.shape == (2, 9 + 4 * long)
    assert len(packed.predicting) == ids.numel()


def test_a_shorter_prompt_does_not_make_one_row_where_the_others_make_two():
    """Of prompts of 8 and 9 tokens the first would fill one row of 512, and the second two of 261, padded to 512."""
    prompts = [[1] * 8] * 8 + [[1] * 9] * 8
    ids = torch.ones(16, (PACKED_ROW - 8) // 8 + 1, dtype=torch.long)
    mask, zeros = torch.ones_like(ids, dtype=torch.bool), torch.zeros(ids.shape)
    packed = pack(Rollouts([""] * 16, [""] * 16, prompts, ids, mask, zeros, mask[:, 0]))
    assert packed.input_ids.shape == (4, 9 + 4 * (PACKED_ROW - 8) // 8)


def test_short_rows_are_put_together(policy):
    """Rows were as wide as the longest: a group of eight different responses beside prompts whose responses are equal,
    as a trained policy's are, made nearly every second token of a batch padding."""
    rollouts = sample(policy, 8, max_response_tokens=12)
    rollouts = rollouts.take([*range(8), 8, 9, 16])  # eight responses, two, and one
    packed = pack(rollouts)
    width = len(rollouts.prompt_ids[0]) + sum(len(ids) - 1 for ids in rollouts.response_ids[:8])
    assert packed.input_ids.shape == (2, width)
    log_probs, _ = response_log_probs(policy, rollouts)
    for b in range(len(rollouts)):
        plain = own_log_probs(policy, rollouts.take([b]))
        torch.testing.assert_close(log_probs[b, : len(plain)], plain, atol=2e-5, rtol=0)


def test_long_rows_of_one_response_need_no_mask(policy):
    rollouts = sample(policy, 1, max_response_tokens=12)
    rollouts = replace(rollouts, prompt_ids=[rollouts.prompt_ids[0] * 4, *rollouts.prompt_ids[1:]])
    assert pack(rollouts).input_ids.shape[0] == 2
    packed = pack(rollouts, hidden=20)
    assert packed.input_ids.shape[0] == 3 and packed.attention_mask is None


BEGUN = "1 2 3=6:1+2+3=6,4 5 6=26:4*5+6=26,"  # worked examples


def test_prompts_that_begin_alike_share_their_beginning(policy):
    """Sampled and scored log-probs, and gradients, must be those of each response in a row of its own."""
    prompts = [BEGUN + p for p in PROMPTS] + [BEGUN + "9 9 9 9=36:"]
    rollouts = sample(policy, 2, prompts=prompts, max_response_tokens=5)
    packed = pack(rollouts)
    assert len(packed.input_ids) == 1
    assert packed.input_ids.numel() < sum(map(len, policy.encode(prompts)))  # with the responses
    log_probs, _ = response_log_probs(policy, rollouts)
    torch.testing.assert_close(log_probs.detach(), rollouts.log_probs, atol=2e-5, rtol=0)
    for b in range(len(rollouts)):
        plain = own_log_probs(policy, rollouts.take([b]))
        torch.testing.assert_close(log_probs[b, : len(plain)], plain, atol=2e-5, rtol=0)
    weights = list(policy.trainable().values())
    shared = torch.autograd.grad(log_probs.sum(), weights)
    singly = sum(response_log_probs(policy, rollouts.take([b]))[0].sum() for b in range(len(rollouts)))
    alone = torch.autograd.grad(singly, weights)
    for one, other in zip(shared, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_prompts_that_begin_alike_share_a_row_only_up_to_its_length(policy):
    rollouts = sample(policy, 8, prompts=[BEGUN + p for p in PROMPTS])
    longest = len(rollouts.prompt_ids[0]) + sum(rollouts.response_mask.sum(-1).tolist())
    for most in (80, 120, longest):
        packed = pack(rollouts, hidden=most)
        assert packed.input_ids.shape[1] <= most and len(packed.predicting) == rollouts.response_mask.sum()


@pytest.mark.parametrize(
    ("prompts", "common"),
    [
        ([[*range(20), 7], [*range(20), 8, 9]], 20),
        ([[*range(20)], [*range(20), 8, 9]], 19),  # the last token of a prompt predicts for its own responses
        ([[*range(15), 7], [*range(15), 8]], 0),  # too few to pay
        ([[5, *range(20)], [*range(21)]], 0),
        ([[3]], 0),
    ],
)
def test_what_prompts_begin_with_alike(prompts, common):
    assert common_beginning(prompts) == common


def test_prompts_of_any_length_stand_side_by_side(policy):
    lengths = ["1 1 1=1:", "1 2 3=6:1+2+3=6,", "9 9 9=99:"]
    rollouts = sample(policy, prompts=lengths)
    log_probs, _ = response_log_probs(policy, rollouts)
    torch.testing.assert_close(log_probs.detach(), rollouts.log_probs, atol=2e-5, rtol=0)


def test_same_seed_same_tokens_and_the_global_state_is_untouched(policy):
    state = torch.random.get_rng_state()
    a, b, c = sample(policy, seed=1), sample(policy, seed=1), sample(policy, seed=2)
    assert torch.equal(a.token_ids, b.token_ids) and torch.equal(a.log_probs, b.log_probs)
    assert a.responses != c.responses
    assert torch.equal(torch.random.get_rng_state(), state)


def test_sampling_follows_the_policys_distribution(tiny_policy):
    policy = load_policy(str(tiny_policy), lora_rank=0)
    rollouts = sample(policy, 4000, prompts=PROMPTS[:1], max_response_tokens=1)
    ids = torch.tensor([policy.tokenizer(PROMPTS[0])["input_ids"]])
    p = torch.softmax(policy.causal_lm(ids).logits[0, -1].detach(), -1)
    found = torch.bincount(rollouts.token_ids[:, 0], minlength=len(p)) / 4000
    assert ((found - p).abs() < 5 * (p * (1 - p) / 4000).sqrt() + 1e-3).all()


def test_take_and_concatenate_are_inverse(policy):
    rollouts = sample(policy)
    again = concatenate([rollouts.take(range(5)), rollouts.take(range(5, 12))])
    assert torch.equal(again.token_ids * again.response_mask, rollouts.token_ids * rollouts.response_mask)
    assert again.responses == rollouts.responses and torch.equal(again.log_probs, rollouts.log_probs)


def test_lora_gradients_are_there_after_a_rollout_and_the_base_gets_none(policy):
    log_probs, _ = response_log_probs(policy, sample(policy))
    log_probs.sum().backward()
    grads = {n: p.grad for n, p in policy.model.named_parameters() if p.grad is not None}
    assert grads and all("lora_" in n for n in grads)
    assert all(g.abs().sum() > 0 for n, g in grads.items() if "lora_B" in n)
    policy.model.zero_grad()


def test_the_reference_is_the_base(policy):
    rollouts = sample(policy)
    with torch.no_grad():
        before, _ = response_log_probs(policy, rollouts)
        for name, p in policy.trainable().items():
            if "lora_B" in name:
                p.add_(0.05)
        moved, _ = response_log_probs(policy, rollouts)
        with policy.reference():
            reference, _ = response_log_probs(policy, rollouts)
        for name, p in policy.trainable().items():
            if "lora_B" in name:
                p.zero_()
    assert torch.equal(reference, before) and not torch.allclose(moved, before)


def test_bad_input_is_named(policy, tiny_policy):
    with pytest.raises(ErltoolError, match="no prompts"):
        sample(policy, prompts=[])
    with pytest.raises(ErltoolError, match="no config.json"):
        load_policy("/nowhere")
    with pytest.raises(ErltoolError, match="no CUDA|cuda"):
        load_policy(str(tiny_policy), device="cuda:99") if not torch.cuda.is_available() else pytest.skip("has CUDA")
    with pytest.raises(ErltoolError, match="lora_rank above 0"):
        with load_policy(str(tiny_policy), lora_rank=0).reference():
            pass


def test_batches_of_like_length_give_whole_groups_in_the_order_of_the_prompts(tiny_policy):
    policy = load_policy(str(tiny_policy), lora_rank=4)
    prompts = ["1 2 3=6:", "12 3 4=19:", "1 1 1=3:", "123 45 6=78:"]
    rollouts = sample_groups(
        policy, prompts, 3, max_response_tokens=6, batch=6, generator=torch.Generator().manual_seed(0)
    )
    assert rollouts.prompts == [p for p in prompts for _ in range(3)]
    assert rollouts.prompt_ids == [i for i in policy.encode(prompts) for _ in range(3)]
    with torch.no_grad():
        log_probs, _ = response_log_probs(policy, rollouts)
    torch.testing.assert_close(rollouts.log_probs, log_probs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("batch", "expected"), [(0, [12]), (1, [3] * 4), (3, [3] * 4), (5, [3] * 4), (6, [6, 6])])
def test_no_more_responses_than_a_batch_or_a_group_are_sampled_at_a_time(tiny_policy, monkeypatch, batch, expected):
    policy, sizes = load_policy(str(tiny_policy), lora_rank=4), []

    def noted(policy, prompt_ids, group_size, *rest, of=sampling._sample):
        sizes.append(len(prompt_ids) * group_size)
        return of(policy, prompt_ids, group_size, *rest)

    monkeypatch.setattr(sampling, "_sample", noted)
    sample_groups(policy, [*PROMPTS, "1 1 1=3:"], 3, max_response_tokens=2, batch=batch)
    assert sizes == expected


def test_top_p_keeps_to_the_likeliest_and_temperature_zero_to_the_best():
    from erltool.policies.sampling import _Draw

    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    for top_p, allowed in ((1.0, {0, 1, 2, 3}), (0.81, {0, 1, 2}), (0.8, {0, 1}), (0.49, {0}), (1e-9, {0})):
        token, log_prob = _Draw(1.0, top_p, torch.Generator().manual_seed(0))(logits)
        assert set(token.flatten().tolist()) == allowed
        torch.testing.assert_close(log_prob, logits.log_softmax(-1).gather(-1, token))
    shares = torch.bincount(_Draw(1.0, 1.0, torch.Generator().manual_seed(1))(logits)[0].flatten(), minlength=4) / 4000
    assert (shares - logits[0].exp()).abs().max() < 0.03
    token, _ = _Draw(0.0, 1.0, None)(logits)
    assert (token == 0).all()


def test_broken_weights_are_said_while_sampling(tiny_policy):
    broken = load_policy(str(tiny_policy), lora_rank=0)
    next(iter(broken.trainable().values())).data.fill_(float("nan"))
    for temperature in (0.0, 1.0):
        with pytest.raises(ErltoolError, match="not finite"):
            sample_groups(broken, ["3 5 7=22:"], 2, max_response_tokens=3, temperature=temperature)


def test_rows_as_a_slice_are_the_rows_by_number(policy):
    rollouts = sample(policy)
    for a, b in zip(vars(rollouts.take(slice(2, 7))).values(), vars(rollouts.take(range(2, 7))).values(), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_sharing_rows_until_responses_differ_samples_the_same(policy, monkeypatch, temperature, top_p):
    options = {"prompts": ["1 2=3:", "14 25 36=75:", "1 2=3:"], "temperature": temperature, "top_p": top_p}
    sizes = []
    hidden = type(policy).hidden
    monkeypatch.setattr(type(policy), "hidden", lambda p, ids, **k: sizes.append(len(ids)) or hidden(p, ids, **k))
    found = sample(policy, **options)
    shared, sizes[:] = sizes.copy(), []
    monkeypatch.setattr(sampling, "SHARING", ())
    expected = sample(policy, **options)
    assert found.responses == expected.responses and torch.equal(found.finished, expected.finished)
    torch.testing.assert_close(found.log_probs, expected.log_probs, atol=2e-5, rtol=0)
    assert len(shared) == len(sizes) and all(a <= b for a, b in zip(shared, sizes, strict=True))
    if policy.path and len(set(found.responses)) < len(found):
        assert sum(shared) < sum(sizes)
    if not temperature:
        assert max(shared) == 3  # a group is one row


def test_steps_of_fixed_size_sample_the_same(policy, monkeypatch):
    """What a GPU records and replays, launched step by step on a CPU. The prompts' lengths differ: rows are padded."""
    prompts = ["1 2=3:", "14 25 36=75:", "7 8 9=24:"]
    monkeypatch.setattr(sampling, "COMPACT_AT", 0.0)  # a recorded step keeps all rows, and so the numbers they draw
    expected = sample(policy, prompts=prompts)
    monkeypatch.setattr(sampling, "RECORDING", ("cpu",))
    monkeypatch.setattr(decoding.FixedSteps, "capture", lambda steps: True)
    found = sample(policy, prompts=prompts)
    assert found.responses == expected.responses
    torch.testing.assert_close(found.log_probs, expected.log_probs, atol=2e-5, rtol=0)
    monkeypatch.setattr(sampling, "RECORD_FROM", 25)
    assert sample(policy, prompts=prompts).responses == expected.responses


@pytest.mark.parametrize("waits", [False, True])
def test_a_step_that_cannot_be_recorded_is_tried_once_and_leaves_nothing_behind(policy, waits, monkeypatch):
    """A recording that failed left the process on the graph's stream, and was tried again at every sampling."""
    prompts = ["1 2=3:", "14 25 36=75:", "7 8 9=24:"]
    streams, modes, tried = ["main"], ["default"], []

    class Stream:
        def wait_stream(self, other):
            pass

    class Graph:
        def __enter__(self):
            tried.append("recording")
            streams.append("graph")

        def __exit__(self, *args):
            raise RuntimeError("operation not permitted when stream is capturing")  # and does not leave the stream

    @contextlib.contextmanager
    def stream(_):
        outside = list(streams)
        streams.append("aside")
        try:
            yield
        finally:
            streams[:] = outside

    def advance(steps, own=decoding.FixedSteps._advance):
        if waits and modes[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return own(steps)

    monkeypatch.setattr(sampling, "COMPACT_AT", 0.0)
    expected = sample(policy, prompts=prompts)
    monkeypatch.setattr(sampling, "RECORDING", ("cpu",))
    monkeypatch.setattr(policy, "recordable", True)
    monkeypatch.setattr(decoding.FixedSteps, "_advance", advance)
    fakes = {"Stream": Stream, "current_stream": Stream, "stream": stream, "CUDAGraph": object,
             "graph": lambda _: Graph(), "get_sync_debug_mode": lambda: modes[-1],
             "set_sync_debug_mode": modes.append}  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    for _ in range(2):
        found = sample(policy, prompts=prompts)
        assert found.responses == expected.responses
        torch.testing.assert_close(found.log_probs, expected.log_probs, atol=2e-5, rtol=0)
    assert streams == ["main"] and modes == ["default", "error", "default"] and not policy.recordable
    assert tried == ([] if waits else ["recording"])


def test_recorded_steps_hold_the_prompts_once(policy):
    """The sampler kept the cache that its recorded steps had copied."""
    with torch.no_grad():
        _, mask, cache = sampling._prefill(policy, policy.encode(PROMPTS))
        steps = decoding.FixedSteps(policy, cache, mask, 4)
    assert not cache.layers and len(steps.cache.layers) == policy.causal_lm.config.num_hidden_layers


def test_tokens_are_read_from_the_device_once(policy, monkeypatch):
    """Every forward pass of a micro-batch made a GPU's host wait twice for its lengths and tokens."""
    rollouts, parts = sample(policy, 4), (slice(2, 9), [3, 0, 5])
    expected = [pack(rollouts.take(rows)).input_ids for rows in parts]
    read = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: read.append(tensor.ndim) or tolist(tensor))
    for rows, ids in zip(parts, expected, strict=True):
        taken = rollouts.take(rows)
        assert taken.token_ids.shape[1] == max(map(len, taken.response_ids)) == taken.response_mask.sum(-1).max()
        taken.distinct()
        assert torch.equal(pack(taken).input_ids, ids)
    assert read == [1]  # the rows of the second part, given on the host


@pytest.mark.gpu
@pytest.mark.parametrize("base", ["none", "nf4"])
def test_a_recorded_step_samples_the_same(base, monkeypatch):
    policy = load_policy("countdown", lora_rank=4, device="cuda", base=base)
    options = {"generator": torch.Generator("cuda").manual_seed(0), "max_response_tokens": 12}
    monkeypatch.setattr(sampling, "COMPACT_AT", 0.0)
    recorded = []
    capture = decoding.FixedSteps.capture
    monkeypatch.setattr(decoding.FixedSteps, "capture", lambda s: recorded.append(s) or capture(s))
    found = sample_groups(policy, PROMPTS, 8, **options)
    assert recorded[0].graph is not None, "the step was recorded"
    options["generator"].manual_seed(0)
    monkeypatch.setattr(sampling, "RECORDING", ())
    expected = sample_groups(policy, PROMPTS, 8, **options)
    same = (
        (found.token_ids == expected.token_ids).float().mean()
        if found.token_ids.shape == expected.token_ids.shape
        else 0
    )
    assert same > 0.95
    log_probs, _ = response_log_probs(policy, found)
    torch.testing.assert_close(log_probs.detach(), found.log_probs, atol=0.05, rtol=0)


def test_texts_and_token_ids_may_be_mixed(policy):
    """Texts beside token ids were dropped without a word."""
    ids = policy.encode(PROMPTS)
    whole, mixed = (sample(policy, prompts=prompts) for prompts in (PROMPTS, [PROMPTS[0], *ids[1:-1], PROMPTS[-1]]))
    assert mixed.prompt_ids == whole.prompt_ids and torch.equal(mixed.token_ids, whole.token_ids)
