"""Loading a policy: what ends a response, what is random, what is refused, and what the probe finds."""

import json
import shutil
import warnings

import pytest
import torch
import transformers
from architectures import tiny_model
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GPT2Config, GPT2LMHeadModel

import erltool
from erltool import ErltoolError, load_policy, response_log_probs, sample_groups
from erltool.policies.load import ends_of_response
from erltool.policies.policy import BOXED, Template

PROMPTS = ["1 2 3=6:", "4 5 6=15:1+2"]


def roll(policy, tokens=8, **options):
    generator = torch.Generator().manual_seed(0)
    return sample_groups(policy, PROMPTS, 4, max_response_tokens=tokens, generator=generator, **options)


def copied(folder, to, **settings):
    """A copy of the folder with other settings in config.json."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | settings))
    return to


def family(name, tmp_path):
    """A tiny model of a family in a folder, with the tokenizer of the policy countdown."""
    tokenizer = AutoTokenizer.from_pretrained(erltool.resources.shipped("data/policies/countdown"))
    tiny_model(name, len(tokenizer)).save_pretrained(tmp_path / name)
    tokenizer.save_pretrained(tmp_path / name)
    return tmp_path / name


# --- what ends a response --------------------------------------------------------------------------


def test_every_end_of_the_generation_config_ends_a_response(tiny_policy, tmp_path):
    folder = copied(tiny_policy, tmp_path / "ends")
    GenerationConfig(eos_token_id=[1, 7, 9, 500]).save_pretrained(folder)
    policy = load_policy(str(folder), lora_rank=0)
    assert policy.ends == (1, 7, 9)
    rollouts = roll(policy, tokens=24)
    ended = set()
    for b in range(len(rollouts)):
        one = rollouts[b]
        assert not {1, 7, 9} & set(one.token_ids[:-1])
        assert (one.stop_reason == "eos") == (one.token_ids[-1] in policy.ends)
        assert one.response == policy.tokenizer.decode(one.token_ids[: -1 if one.stop_reason == "eos" else None])
        ended |= {one.token_ids[-1]}
    assert {7, 9} & ended


def test_the_token_that_ends_a_turn_of_the_chat_template_ends_a_response(tiny_policy):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_policy), AutoTokenizer.from_pretrained(tiny_policy)
    end = tokenizer.convert_ids_to_tokens(5)
    tokenizer.add_special_tokens({"extra_special_tokens": [end]})
    tokenizer.chat_template = f"{{% for m in messages %}}{{{{ m.content }}}}{end}{{% endfor %}}"
    assert ends_of_response(tokenizer, model, "x") == (1, 5)
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert ends_of_response(tokenizer, model, "x") == (1,)
    tokenizer.chat_template, tokenizer.eos_token = None, None
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    with pytest.raises(ErltoolError, match="policy 'x': no token ends a response"):
        ends_of_response(tokenizer, model, "x")


def test_a_tokenizer_without_padding_gives_the_same_policy(tiny_policy, tmp_path):
    folder = copied(tiny_policy, tmp_path / "unpadded")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    policy = load_policy(str(folder), lora_rank=0)
    assert policy.tokenizer.pad_token_id is None and policy.pad == 1
    rollouts, expected = roll(policy), roll(load_policy(str(tiny_policy), lora_rank=0))
    assert rollouts.responses == expected.responses
    assert torch.equal(rollouts.log_probs, expected.log_probs)


# --- what is random --------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_of_the_base_is_off_also_in_training(tiny_policy, tmp_path, checkpointing):
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64, eos_token_id=1,
                        resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = load_policy(str(tmp_path), lora_rank=4, gradient_checkpointing=checkpointing)
    assert not policy.model.training
    rollouts = roll(policy)
    first, again = (response_log_probs(policy, rollouts)[0] for _ in range(2))
    assert torch.equal(first, again)
    torch.testing.assert_close(first.detach(), rollouts.log_probs, atol=2e-5, rtol=0)
    policy.model.train()
    torch.testing.assert_close(response_log_probs(policy, rollouts)[0], first)


def test_a_jitter_that_is_a_threshold_of_the_router_stays(tmp_path):
    """PhiMoE masks experts by the size of router_jitter_noise, in eval mode too."""
    policy = load_policy(str(family("phimoe", tmp_path)), lora_rank=0)
    assert policy.causal_lm.config.router_jitter_noise == 0.01 and policy.causal_lm.config.attention_dropout == 0


def test_an_adapters_dropout_is_at_work_in_training_only(tiny_policy):
    policy = load_policy(str(tiny_policy), lora_rank=4, lora_dropout=0.5)
    for p in policy.trainable().values():
        p.data.normal_(generator=torch.Generator().manual_seed(0))
    rollouts = roll(policy)
    still = [response_log_probs(policy, rollouts)[0] for _ in range(2)]
    with policy.dropping():
        moving = [response_log_probs(policy, rollouts)[0] for _ in range(2)]
    assert torch.equal(*still) and not torch.equal(*moving)
    assert torch.equal(response_log_probs(policy, rollouts)[0], still[0])


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_what_a_generation_config_asks_for_beside_the_distribution_is_left_out(tmp_path, name):
    folder = family(name, tmp_path)
    expected = roll(load_policy(str(folder), lora_rank=0))
    GenerationConfig(repetition_penalty=9.0, top_k=1, do_sample=True, temperature=0.1, eos_token_id=1,
                     no_repeat_ngram_size=1, max_new_tokens=2).save_pretrained(folder)  # fmt: skip
    policy = load_policy(str(folder), lora_rank=0)
    assert roll(policy).responses == expected.responses
    assert policy.causal_lm.generation_config.repetition_penalty == 9.0  # and is the model's again


# --- room ------------------------------------------------------------------------------------------


def test_a_prompt_beyond_the_models_positions_is_refused_in_one_line(tiny_policy, tmp_path):
    policy = load_policy(str(copied(tiny_policy, tmp_path / "short", max_position_embeddings=16)), lora_rank=0)
    assert policy.longest == 16
    assert len(sample_groups(policy, ["1" * 12], 2, max_response_tokens=4)) == 2
    with pytest.raises(ErltoolError, match=r"prompt 1 of 12 tokens.* 16 positions.* max_response_tokens up to 4$"):
        sample_groups(policy, ["1", "1" * 12], 2, max_response_tokens=5)
    with pytest.raises(ErltoolError, match="prompt 0 of 16 tokens.*; shorten it$"):
        sample_groups(policy, ["1" * 16], 2, max_response_tokens=1)


def test_positions_whose_angles_depend_on_the_batch_are_not_used(tiny_policy, tmp_path):
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
    policy = load_policy(str(copied(tiny_policy, tmp_path / "dynamic", rope_parameters=rope)), lora_rank=0)
    assert policy.longest == 16 < policy.causal_lm.config.max_position_embeddings


def test_tokens_that_the_model_does_not_know_are_refused(tiny_policy):
    policy = load_policy(str(tiny_policy), lora_rank=0)
    policy.tokenizer.add_tokens(["x"])
    with pytest.raises(ErltoolError, match=r"tokenizer gives token 22, and its model knows 22"):
        sample_groups(policy, ["1x"], 2, max_response_tokens=2)
    with pytest.raises(ErltoolError, match="a prompt has no tokens"):
        sample_groups(policy, ["1", ""], 2, max_response_tokens=2)


# --- chat templates --------------------------------------------------------------------------------

TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
FORBIDS = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TURNS
DROPS = "{% for m in messages %}{% if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"


@pytest.mark.parametrize("chat", [FORBIDS, DROPS])
def test_a_request_that_the_template_takes_from_no_system_stands_before_the_first_prompt(tiny_policy, chat):
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    tokenizer.chat_template = chat
    boxed = Template("boxed", shots=(("1+1", "2"),))
    assert boxed.render("2+2", tokenizer) == f"<user>{BOXED}\n\n1+1<assistant>2<user>2+2"
    tokenizer.chat_template = TURNS
    assert boxed.render("2+2", tokenizer) == f"<system>{BOXED}<user>1+1<assistant>2<user>2+2"
    tokenizer.chat_template = "{{ raise_exception('alternate!') }}"
    with pytest.raises(ErltoolError, match="template boxed: the chat template refuses a prompt: alternate!"):
        boxed.render("2+2", tokenizer)


# --- weights ---------------------------------------------------------------------------------------


def damage_missing(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.self_attn.q_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def damage_extra(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.gate.weight"] = torch.zeros(2, 2)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def damage_shape(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(8, 8)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def damage_cut(folder):
    blob = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(blob[: len(blob) // 2])


def damage_header(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)


def damage_empty(folder):
    (folder / "model.safetensors").write_bytes(b"")


def damage_config(folder):
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}')


def damage_layers(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))


def damage_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")


def damage_numbers(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def damage_ends(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, ')


def damage_adapter_beside(folder):
    (folder / "adapter_config.json").write_text("{}")


DAMAGES = {
    damage_missing: r"lacks the weights model\.layers\.1\.self_attn\.q_proj\.weight; restore",
    damage_extra: r"weights that its config\.json does not mention: model\.layers\.1\.self_attn\.gate\.weight",
    damage_shape: r"model\.layers\.1\.mlp\.up_proj\.weight",
    damage_cut: "cannot be loaded",
    damage_header: "cannot be loaded",
    damage_empty: "cannot be loaded",
    damage_config: "cannot be loaded",
    damage_layers: r"does not mention: model\.layers\.1\.input_layernorm\.weight.* and 6 more",
    damage_tokenizer: "cannot be loaded",
    damage_numbers: "policy .*: its logits are not finite: its weights or its config.json are damaged",
    damage_ends: "cannot be loaded .*generation_config.json' is not a valid JSON file",
    damage_adapter_beside: "holds an adapter beside a model",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__.removeprefix("damage_"))
def test_a_damaged_model_is_one_line(tiny_policy, tmp_path, damage):
    folder = copied(tiny_policy, tmp_path / "damaged")
    damage(folder)
    with pytest.raises(ErltoolError, match=DAMAGES[damage]) as refusal:
        load_policy(str(folder), lora_rank=0)
    assert "\n" not in str(refusal.value)


def test_a_type_that_is_not_known_is_refused(tiny_policy):
    with pytest.raises(ErltoolError, match="dtype 'fp16': use auto, stored, fp32 or bf16"):
        load_policy(str(tiny_policy), dtype="fp16")


@pytest.mark.parametrize("blob", [b"", b"GGUF", b"GGUF" + b"\xff" * 200, b"no such thing at all"])
def test_a_damaged_gguf_file_is_one_line(tmp_path, monkeypatch, blob):
    pytest.importorskip("gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(blob)
    with pytest.raises(ErltoolError, match="not a GGUF file that transformers reads") as refusal:
        load_policy(str(tmp_path / "model.gguf"))
    assert "\n" not in str(refusal.value)


def change_adapter(folder, change):
    weights = load_file(folder / "adapter_model.safetensors")
    change(weights)
    save_file(weights, folder / "adapter_model.safetensors")


def test_an_adapter_that_is_not_the_policys_is_refused(tiny_policy, tmp_path):
    policy = load_policy(str(tiny_policy), lora_rank=4)
    for name, other in {
        "has r=2, and the policy 4": load_policy(str(tiny_policy), lora_rank=2),
        "has lora_alpha=8.0, and the policy 32.0": load_policy(str(tiny_policy), lora_rank=4, lora_alpha=8.0),
    }.items():
        other.save(tmp_path / name)
        with pytest.raises(ErltoolError, match=name):
            policy.load(tmp_path / name)
    changes = {
        "lacks the weights": lambda w: w.pop(sorted(w)[0]),
        "does not mention: more": lambda w: w.update(more=torch.zeros(2)),
        "of another shape": lambda w: w.update({sorted(w)[0]: torch.zeros(3, 3)}),
    }
    before = {n: p.clone() for n, p in policy.trainable().items()}
    for words, change in changes.items():
        policy.save(tmp_path / words)
        change_adapter(tmp_path / words, change)
        with pytest.raises(ErltoolError, match=words):
            policy.load(tmp_path / words)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ErltoolError, match="holds no safetensors weights"):
        policy.load(tmp_path / "empty")
    assert all(torch.equal(p, before[n]) for n, p in policy.trainable().items())


def test_plain_peft_finds_the_base_of_an_adapter(tiny_policy, tmp_path):
    policy = load_policy(str(tiny_policy), lora_rank=4)
    for p in policy.trainable().values():
        p.data.normal_(generator=torch.Generator().manual_seed(0))
    policy.save(tmp_path / "adapter")
    plain = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    ids = torch.arange(2, 12)[None]
    torch.testing.assert_close(plain(ids).logits, policy.model(ids).logits)
    load_policy(lora_rank=4).save(tmp_path / "shipped")
    AutoPeftModelForCausalLM.from_pretrained(tmp_path / "shipped")


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_all_of_a_model_comes_back_also_in_pieces_and_under_the_hubs_names(tmp_path, name):
    """transformers stores experts one by one, which the model holds stacked, and large models in several files."""
    folder = family(name, tmp_path)
    policy = load_policy(str(folder), lora_rank=0)
    for p in policy.trainable().values():
        p.data.add_(0.01)
    policy.model.save_pretrained(tmp_path / "saved", max_shard_size="50KB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    again = load_policy(str(folder), lora_rank=0)
    again.load(tmp_path / "saved")
    for (n, p), q in zip(policy.trainable().items(), again.trainable().values(), strict=True):
        assert torch.equal(p, q), n


# --- the probe -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mistral", "gemma3_text", "starcoder2", "cohere2", "phi3"])
def test_the_probe_finds_a_window_that_no_configuration_tells_of(tmp_path, monkeypatch, name):
    monkeypatch.setattr("erltool.policies.probe.not_plain", lambda config: "")
    with pytest.warns(UserWarning, match="padded rows .packed: .* off by"):
        policy = load_policy(str(family(name, tmp_path)), lora_rank=0)
    assert policy.path.rows == "padded"


def test_the_probe_finds_a_head_that_is_more_than_a_product(tmp_path, monkeypatch):
    monkeypatch.setattr("erltool.policies.probe.is_linear", lambda *args: True)
    with pytest.raises(ErltoolError, match="agrees with the model .packed: sampled .* off by"):
        load_policy(str(family("granite", tmp_path)), lora_rank=0)


def test_a_policy_as_it_should_be_warns_of_nothing(tiny_policy):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy = load_policy(str(tiny_policy), lora_rank=4)
    assert str(policy.path) == "linear head, packed rows"


@pytest.mark.parametrize("name", ["gemma2", "granite", "recurrent_gemma", "qwen3_5_text"])
@pytest.mark.parametrize("rank", [0, 4])
def test_a_model_on_its_own_path_trains(monkeypatch, tmp_path, tiny_config, name, rank):
    if name == "recurrent_gemma" and transformers.__version__.startswith("5.0."):
        pytest.skip("with transformers 5.0 it samples otherwise than it scores, and is refused")
    monkeypatch.setattr("erltool.tasks.task.Task.reward", lambda self, problem, text: float("1" in text))
    config = tiny_config(
        policy=str(family(name, tmp_path)), lora_rank=rank, entropy_change_every=1, micro_batch=2,
        gradient_checkpointing=name == "gemma2", advantages="dr_grpo", learning_rate=3e-6,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        steps = list(erltool.train(config, tmp_path / "run"))
    assert any(s.metrics["grad_norm"] > 0 for s in steps)
    assert max(s.metrics.get("sampler_mismatch", 0) for s in steps) < 1e-3
    moved = [s for s in steps if s.metrics["grad_norm"] > 0 and s.metrics["entropy_change"]]
    assert moved and all(s.metrics["entropy_change_correlation"] > 0.9 for s in moved)
