"""Fixtures: a tiny random policy that trains in a second, and seeded random numbers."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch: two processes of two spinning threads each crawl
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from erltool.resources import shipped
from erltool.training.config import TrainConfig


def pytest_make_parametrize_id(val, argname):
    """Bytes are no test's name: a gzip's hold the second they were made in, and two workers must collect one suite."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory):
    """Folder of a random Llama with 2 layers of width 32 and the tokenizer of the policy countdown."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(shipped("data/policies/countdown"))
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_config(tiny_policy):
    """A configuration that runs in a second: call it with the fields to change."""

    def make(**fields):
        defaults = {
            "policy": str(tiny_policy),
            "task": "countdown",
            "steps": 8,
            "prompts_per_iteration": 4,
            "group_size": 4,
            "updates_per_iteration": 2,
            "max_response_tokens": 10,
            "lora_rank": 4,
            "eval_every": 2,
            "eval_prompts": 8,
            "eval_samples": 1,
            "checkpoint_every": 2,
            "record_every": 1,
        }
        return TrainConfig(**defaults | fields)

    return make


@pytest.fixture
def rng(request):
    return np.random.default_rng(sum(map(ord, request.node.name)))


@pytest.fixture
def generator(request):
    return torch.Generator().manual_seed(sum(map(ord, request.node.name)))
