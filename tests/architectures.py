"""Tiny random models of the causal language models that transformers has, each in the form that makes it what it is:
windows shorter than a prompt, soft caps, scales behind the head, biases, recurrent layers, experts.

A model is a configuration's own class with small numbers (SMALL, as far as it knows them) and what FAMILIES says.
All weights are drawn, biases and scales too, and large enough that a token's distribution depends on all before it.
"""

import inspect

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

SMALL = {
    "hidden_size": 64, "n_embd": 64, "d_model": 64, "intermediate_size": 96, "ffn_dim": 96, "n_inner": 96,
    "ffn_hidden_size": 96, "num_hidden_layers": 3, "n_layer": 3, "n_layers": 3, "num_layers": 3,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "attention_heads": 4, "encoder_layers": 2,
    "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 96, "num_key_value_heads": 2,
    "num_kv_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "n_positions": 128, "max_seq_len": 128,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 48, "moe_k": 2, "shared_expert_intermediate_size": 48, "n_group": 1, "topk_group": 1,
    "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "qk_head_dim": 24, "first_k_dense_replace": 1, "moe_layer_start_index": 1, "moe_num_shared_experts": 1,
    "n_shared_experts": 1, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_n_heads": 8,
    "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_dt_rank": 8, "state_size": 16, "ssm_state_size": 16,
    "conv_kernel": 4, "expand": 2, "n_groups": 1, "mamba_num_heads": 8, "mamba_head_dim": 16, "mamba_chunk_size": 16,
    "chunk_size": 16, "rotary_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "sliding_window": 6, "window_size": 6,
    "attention_window_size": 6, "attention_chunk_size": 6, "local_attention": 6,
}  # fmt: skip
NO_WINDOW = {"sliding_window": None}
SLIDING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
HYBRID = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
VISION = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
MLA = {"num_key_value_heads": 4, "head_dim": 8}

# What each is called here: its type, if that is not the name, and what SMALL does not say.
FAMILIES: dict[str, dict] = {
    "afmoe": {},
    "apertus": {},
    "arcee": {},
    "bamba": {"attn_layer_indices": [1], "num_key_value_heads": 2},
    "bert": {},
    "biogpt": {},
    "bitnet": {},
    "bloom": {},
    "codegen": {},
    "cohere": {"logit_scale": 0.5},
    "cohere2": SLIDING | {"logit_scale": 0.5},
    "cwm": SLIDING | {"bos_token_id": 2},
    "deepseek_v2": MLA,
    "deepseek_v3": MLA,
    "deepseek_v32": MLA | {"index_topk": 4},
    "diffllama": {},
    "doge": {},
    "dots1": {},
    "ernie4_5": {},
    "ernie4_5_moe": {},
    "exaone": {},
    "exaone4": SLIDING,
    "exaone_moe": SLIDING,
    "falcon": {},
    "falcon-alibi": {"model_type": "falcon", "alibi": True, "new_decoder_architecture": False},
    "falcon_h1": {"mamba_d_ssm": 128, "lm_head_multiplier": 2.0, "num_key_value_heads": 2},
    "falcon_mamba": {},
    "flex_olmo": {},
    "gemma": {},
    "gemma2": SLIDING | {"query_pre_attn_scalar": 16, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0},
    "gemma3_text": SLIDING | {"query_pre_attn_scalar": 16},
    "gemma3": {"text": "gemma3_text", "vision_config": VISION | {"model_type": "siglip_vision_model"}},
    "gemma3n_text": {
        "num_hidden_layers": 5, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8, "laurel_rank": 8,
        "vocab_size_per_layer_input": "vocabulary", "final_logit_softcapping": 3.0, "intermediate_size": 96,
    },
    "gemma4_text": SLIDING | {"vocab_size_per_layer_input": "vocabulary", "hidden_size_per_layer_input": 8},
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
    "glm4_moe_lite": MLA,
    "glm_moe_dsa": MLA | {"index_topk": 4},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["local"], 1]]},
    "gpt_neox": {},
    "gpt_oss": SLIDING,
    "gptj": {},
    "granite": {"logits_scaling": 0.5, "residual_multiplier": 0.5, "embedding_multiplier": 3.0},
    "granitemoe": {"logits_scaling": 0.5},
    "granitemoehybrid": HYBRID | {"shared_intermediate_size": 48, "logits_scaling": 0.5},
    "granitemoeshared": {"logits_scaling": 0.5, "shared_intermediate_size": 48},
    "helium": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {},
    "hyperclovax": {},
    "internlm3": {},
    "jais2": {},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "jetmoe": {"kv_channels": 16},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "llama": {},
    "llama-bias": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "llama4": {"text": "llama4_text", "vision_config": VISION | {"vision_output_dim": 32, "projector_output_dim": 32}},
    "llama4_text": {},
    "mamba": {},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "minicpm3": MLA,
    "minimax": {"layer_types": ["linear_attention", "full_attention", "linear_attention"], "block_size": 8},
    "minimax_m2": {},
    "ministral": SLIDING,
    "mistral": {},
    "mistral-no-window": {"model_type": "mistral"} | NO_WINDOW,
    "mixtral": NO_WINDOW,
    "modernbert-decoder": {"bos_token_id": 2, "cls_token_id": 2, "sep_token_id": 1, "num_hidden_layers": 4},
    "mpt": {},
    "nanochat": {},
    "nemotron": {},
    "nemotron_h": {},
    "olmo": {},
    "olmo-clip": {"model_type": "olmo", "clip_qkv": 0.5},
    "olmo2": {},
    "olmo3": SLIDING,
    "olmo_hybrid": HYBRID,
    "olmoe": {},
    "openai-gpt": {},
    "opt": {},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phi3-no-window": {"model_type": "phi3"} | NO_WINDOW,
    "phimoe": {},
    "qwen2": {},
    "qwen2-window": {
        "model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1,
    },
    "qwen2_moe": {},
    "qwen3": {},
    "qwen3_5_text": HYBRID,
    "qwen3_5_moe_text": HYBRID,
    "qwen3_moe": {},
    "qwen3_next": HYBRID,
    "recurrent_gemma": {"lru_width": 64},
    "rwkv": {"attention_hidden_size": 64},
    "seed_oss": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "starcoder2-no-window": {"model_type": "starcoder2"} | NO_WINDOW,
    "vaultgemma": {"query_pre_attn_scalar": 16},
    "xglm": {},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "num_heads": 2, "num_blocks": 3},
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention"], "n_mamba_heads": 8,
        "mamba_ngroups": 1, "num_key_value_heads": 4, "attention_head_dim": 32,
    },
}  # fmt: skip


def tiny_model(name: str, vocabulary: int, seed: int = 0) -> torch.nn.Module:
    """A random model of one of FAMILIES, in eval mode."""
    model_type, config = tiny_config(name, vocabulary)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _draw(model)
    return model.eval()


def tiny_config(name: str, vocabulary: int):
    """The type of a family's model and its configuration; of a wrapper with a vision part too."""
    options = dict(FAMILIES[name])
    model_type = options.pop("model_type", name)
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this transformers is too old for {model_type}")
    kind = CONFIG_MAPPING[model_type]
    if text := options.pop("text", None):
        return model_type, kind(text_config=tiny_config(text, vocabulary)[1].to_dict(), **options)
    known = set(inspect.signature(kind).parameters)
    common = SMALL | {"vocab_size": vocabulary, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    options = {k: vocabulary if v == "vocabulary" else v for k, v in options.items()}
    return model_type, kind(**{k: v for k, v in common.items() if k in known} | options)


def _draw(model: torch.nn.Module) -> None:
    """Weights of products about 1 / sqrt(width) and more; what is added or multiplied about its usual value."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "A_log" in name or "dt_" in name or "time_" in name or "lru" in name or "rg_lru" in name:
                continue  # decays: other values grow without bound
            if p.ndim >= 2:
                p.copy_(torch.randn(p.shape) * 0.16)
            else:
                p.add_(torch.randn(p.shape) * 0.2)
