"""The memory plan of a configuration, made before anything is loaded, and the settings to lower where it is too large.

It is computed from the model's configuration. Sampling and the update alternate, so the peak is what always stays
(weights, adapter, optimiser, runtime) plus the larger of the two. tests/benchmarks/memory_plan.py compares it with the
peak of real runs; the counts per token are for Llama-like layers in transformers 5. On several devices what stays is
sharded (FSDP's full shard, ZeRO-3) and the responses are split, which is computed and not measured.
"""

import gc
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers

from erltool.entropy.log_probs import CHUNK_ELEMENTS
from erltool.errors import ErltoolError
from erltool.policies.attention import PLAIN_ROW
from erltool.policies.load import resolve_device, resolve_dtype, stored_dtype
from erltool.policies.policy import free_on_gpu
from erltool.policies.probe import not_plain
from erltool.policies.rollouts import share_rows
from erltool.policies.sources import find_model, hub_advice, is_offline
from erltool.training.config import VLLM, TrainConfig

GIB = 2**30
CARDS = (16, 24, 48, 80)  # GB of common GPUs
RUNTIME = {"cpu": 0.58 * GIB, "cuda": 0.6 * GIB}  # Python with its libraries; a CUDA context and its handles
# Factor from the counted activations to an update's memory, which has temporaries and what glibc keeps. Fitted on a CPU
# to the runs of tests/benchmarks/memory_plan.py; on CUDA the plan is within 4 % without it (tests/gpu/h100.json).
SLACK = {"cpu": 1.8, "cuda": 1.0}
# Bytes for each logit of a chunk in the forward and backward pass, and additional ones for a cast to fp32: the peak of
# `token_log_probs` alone on a CPU, at SmolLM2's width and vocabulary.
LOGIT_BYTES, CAST_BYTES = 9, 3
ROOM = 1.25  # of the key-value cache, which grows by a quarter

# Layers, width, width of the MLP, of the queries, of the keys, vocabulary, tied head: known without the hub.
KNOWN = {
    "HuggingFaceTB/SmolLM2-135M": (30, 576, 1536, 576, 192, 49152, True),
    "Qwen/Qwen2.5-0.5B": (24, 896, 4864, 896, 128, 151936, True),
    "Qwen/Qwen2.5-1.5B": (28, 1536, 8960, 1536, 256, 151936, True),
    "Qwen/Qwen2.5-3B": (36, 2048, 11008, 2048, 256, 151936, True),
    "Qwen/Qwen2.5-7B": (28, 3584, 18944, 3584, 512, 152064, False),
    "Qwen/Qwen2.5-14B": (48, 5120, 13824, 5120, 1024, 152064, False),
    "Qwen/Qwen2.5-32B": (64, 5120, 27648, 5120, 1024, 152064, False),
}


class UnknownShape(ErltoolError):
    """Raised for a model whose layers the plan does not know."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that decide its memory."""

    layers: int
    width: int
    mlp: int
    queries: int
    keys: int
    vocabulary: int
    tied: bool
    stored: torch.dtype

    @property
    def linear(self) -> int:
        """Weights of the decoder's linear layers."""
        attention = 2 * self.width * self.queries + 2 * self.width * self.keys
        return self.layers * (attention + 3 * self.width * self.mlp)

    @property
    def other(self) -> int:
        """Weights of embedding and head, which are not quantised."""
        return self.vocabulary * self.width * (1 if self.tied else 2)

    def adapter(self, rank: int) -> int:
        """Weights of LoRA on all linear layers."""
        pairs = 2 * (self.width + self.queries) + 2 * (self.width + self.keys) + 3 * (self.width + self.mlp)
        return self.layers * rank * pairs


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by name. Printing it gives a table."""

    stays: dict[str, float]
    sampling: dict[str, float]
    update: dict[str, float]

    @property
    def peak(self) -> float:
        """Bytes at the peak."""
        return sum(self.stays.values()) + max(sum(self.sampling.values()), sum(self.update.values()))

    def __str__(self) -> str:
        lines = []
        for title, parts in (("always", self.stays), ("sampling", self.sampling), ("update", self.update)):
            lines += [f"{title:9} {name:48} {size / GIB:8.2f} GiB" for name, size in parts.items()]
        lines.append(f"{'peak':9} {'always + the larger of sampling and update':48} {self.peak / GIB:8.2f} GiB")
        return "\n".join(lines)


def model_shape(source: str, trust_remote_code: bool = False) -> Shape:
    """The shape in a model's configuration; SmolLM2's and Qwen2.5's, Math and Instruct too, need no hub. Raises
    ErltoolError, and its subclass UnknownShape for a model whose layers are not Llama's."""
    place = find_model(source)
    plain = place.removesuffix("-Instruct").replace("Qwen2.5-Math-", "Qwen2.5-")
    if not Path(place).exists() and plain in KNOWN:
        return Shape(*KNOWN[plain], torch.bfloat16)
    try:
        c = transformers.AutoConfig.from_pretrained(
            place, trust_remote_code=trust_remote_code, local_files_only=is_offline(place)
        )
    except (OSError, ValueError) as e:
        raise ErltoolError(f"plan of {source!r}: its configuration is out of reach{hub_advice(place)}") from e
    experts = next((f"it has {name}" for name in vars(c) if re.match("[a-z].*experts", name)), "")
    if why := not_plain(c) or experts:
        raise UnknownShape(f"plan of {source!r}: its layers are not like Llama's, so its memory is not known: {why}")
    try:
        head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        queries, keys = c.num_attention_heads * head, c.num_key_value_heads * head
        sizes = c.num_hidden_layers, c.hidden_size, c.intermediate_size, queries, keys, c.vocab_size
        return Shape(*sizes, bool(c.tie_word_embeddings), stored_dtype(c))
    except AttributeError as e:
        raise UnknownShape(f"plan of {source!r}: not a Llama-like model ({e}); its memory is not known") from e


def plan_memory(
    config: TrainConfig, prompt_tokens: int = 256, device: str = "cuda", shape: Shape | None = None, gpus: int = 1
) -> MemoryPlan:
    """Memory of training on "cuda" or "cpu" with prompts of `prompt_tokens` tokens and the longest responses.

    With `gpus` above 1 it is that of each of them: they share weights, gradients and optimiser evenly (FSDP's full
    shard, ZeRO-3), and the responses; `micro_batch` and `sampling_batch` are then of one device. The dequantised
    weights that a GPU keeps while it samples, where twice as much is free, are not counted. Of `sampler=vllm` only what
    it must have is: its weights, and the keys and values of one response. It takes 90 % of what is free, and gives it
    back for the update; its graphs and workspace are not known. Raises ErltoolError for fewer than 1, and for vLLM on
    several.
    """
    if gpus < 1:
        raise ErltoolError(f"gpus={gpus}: must be at least 1")
    if gpus > 1 and config.sampler == VLLM:
        raise ErltoolError(f"gpus={gpus}: sampler=vllm samples on the one GPU that trains; leave it out for this plan")
    s = shape or model_shape(config.policy, config.trust_remote_code)
    size = resolve_dtype(config.dtype, s.stored, torch.device(device), whole=not config.lora_rank).itemsize
    job = _Job(config, s, prompt_tokens, device, gpus, size)
    sampling, update = job.sampling(), job.update()
    if device == "cpu" and config.gradient_checkpointing:
        # Fitted to one run, whose resident memory stayed after sampling, for an unknown reason.
        update["kept from sampling"] = sum(sampling.values())
    return MemoryPlan(job.stays(), sampling, update)


@dataclass(frozen=True)
class _Job:
    """A training whose memory is counted, in bytes."""

    config: TrainConfig
    shape: Shape
    prompt: int  # tokens
    device: str
    gpus: int
    size: int  # bytes of a number in the type of computation

    @property
    def length(self) -> int:
        """Tokens of the longest prompt with the longest response."""
        return self.prompt + self.config.max_response_tokens

    @property
    def trained(self) -> int:
        """Number of weights that train."""
        rank = self.config.lora_rank
        return self.shape.adapter(rank) if rank else self.shape.linear + self.shape.other

    def stays(self) -> dict[str, float]:
        s, size, base = self.shape, self.size, self.config.base
        # NF4: half a byte, and per block of 64 one byte that is itself scaled per 256 blocks.
        per_weight = {"none": size, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}[base]
        stays = {
            f"weights, linear layers ({base})": s.linear * per_weight,
            "weights, embedding and head": s.other * size,
            "adapter, fp32": 4 * self.trained if self.config.lora_rank else 0,
            "Adam's two moments, fp32": 8 * self.trained,
        }
        if self.gpus > 1:
            stays = {name: whole / self.gpus for name, whole in stays.items()}
            # The layer at work is whole, and so is the next, which is fetched meanwhile.
            stays["gathered: two layers"] = 2 * s.linear / s.layers * per_weight
            stays["gathered: embedding and head"] = s.other * size
        return {"runtime": RUNTIME[self.device]} | stays

    def sampling(self) -> dict[str, float]:
        config, s, size = self.config, self.shape, self.size
        if config.sampler == VLLM:
            return {
                "vLLM: the weights again, dense": (s.linear + s.other) * size,
                "vLLM: cache of a response; it fills what is free": self.length * s.layers * 2 * s.keys * size,
            }
        rows = math.ceil(config.prompts_per_iteration * config.group_size / self.gpus)
        rows = min(rows, max(config.sampling_batch, config.group_size) if config.sampling_batch else rows)
        cache = rows * self.length * ROOM * s.layers * 2 * s.keys * size
        is_dense = self.device == "cpu" and config.lora_rank and config.base != "int8"
        return {
            f"dense weights {'dequantised' if config.base == 'nf4' else 'with the adapter'}":
                s.linear * size if is_dense else 0,
            f"key-value cache of {rows} responses": cache,
            "prefill of their prompts": rows / config.group_size * self.prompt * self.passing,
            "probabilities": rows * s.vocabulary * (4 + 4 + 8 + size),
        }  # fmt: skip

    def update(self) -> dict[str, float]:
        config, s, size = self.config, self.shape, self.size
        responses = math.ceil(config.prompts_per_update * config.group_size / self.gpus)
        responses = min(responses, config.micro_batch or responses)
        group = min(responses, config.group_size)
        shared = share_rows(self.prompt, [config.max_response_tokens] * group, s.width)
        rows = math.ceil(responses / group) * len(shared)
        width = self.prompt + max(map(len, shared)) * (config.max_response_tokens - 1)
        tokens, layers = rows * width, 1 if config.gradient_checkpointing else s.layers
        activations = tokens * (layers * self.kept(width) + self.passing)
        if len(shared) < group and not self.is_plain(width):  # the fused kernel keeps a mask in every layer
            activations += layers * rows * width**2 * (4 if self.device == "cpu" else size)
        if config.gradient_checkpointing:
            activations += tokens * s.layers * s.width * size
        chunk = min(CHUNK_ELEMENTS, responses * config.max_response_tokens * s.vocabulary)
        weight = 4 * s.vocabulary * s.width if not config.lora_rank else 0
        copies = 2 if config.base != "none" else 1 if config.lora_rank and size < 4 else 0  # as they are, and with B
        return {
            f"activations of {tokens} tokens": activations * SLACK[self.device],
            "logits of a chunk": chunk * (LOGIT_BYTES + (CAST_BYTES if size < 4 else 0)) + weight,
            "one layer's weights, as a product takes them": copies * s.width * s.mlp * size,
            "gradients": 4 * self.trained / self.gpus,
        }

    def kept(self, width: int) -> float:
        """Bytes that a token of a row of `width` keeps in a layer for the backward pass."""
        s, size = self.shape, self.size
        norms = 2 * 4 * s.width + (2 * size * s.width if size < 4 else 4 * s.width)
        if self.is_plain(width):
            attention = size * 2 * (s.queries + s.keys)
        else:
            inside = 4 if self.device == "cpu" else size  # the fused kernel on a CPU works in fp32
            attention = inside * 4 * s.queries + size * s.queries  # keys and values are repeated to the queries' heads
        return norms + attention + size * 4 * s.mlp + 7 * self.config.lora_rank * size

    @property
    def passing(self) -> float:
        """Bytes of a token while a layer works."""
        return self.size * 3 * self.shape.mlp + 4 * 4 * self.shape.width

    def is_plain(self, width: int) -> bool:
        """Whether attention is plain products, as probe.py and attention.py decide it."""
        return self.device == "cpu" and self.size < 4 and width <= PLAIN_ROW


def check_fits(config: TrainConfig, prompt_tokens: int) -> None:
    """Raises ErltoolError where the plan exceeds the free memory; accepts a model without a plan."""
    device = resolve_device(config.device)
    try:
        plan, free = plan_memory(config, prompt_tokens, device.type), free_memory(device)
    except UnknownShape:
        return
    if plan.peak > free:
        largest = sorted({**plan.stays, **plan.sampling, **plan.update}.items(), key=lambda item: -item[1])[:3]
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in largest)
        changes = advice(config, free, prompt_tokens, device.type)
        raise ErltoolError(
            f"policy {config.policy!r} needs about {plan.peak / GIB:.1f} GiB ({parts}) and {free / GIB:.1f} are free; "
            f"use {', '.join(changes) if changes else 'a smaller policy'}"
        )


def advice(config: TrainConfig, memory: float, prompt_tokens: int, device: str, gpus: int = 1) -> list[str] | None:
    """The cheapest changes with which the plan fits into `memory` bytes: [] where none is needed, None where none is
    enough. `gpus` as in `plan_memory`."""
    shape = model_shape(config.policy, config.trust_remote_code)
    changes: dict[str, Any] = {}

    def fits() -> bool:
        return plan_memory(replace(config, **changes), prompt_tokens, device, shape, gpus).peak <= memory

    group = config.group_size
    steps: list[tuple[str, Any]] = [("micro_batch", group), ("micro_batch", 1), ("sampling_batch", max(group, 64)),
                                    ("gradient_checkpointing", True)]  # fmt: skip
    if config.lora_rank and config.base == "none":
        steps.append(("base", "nf4"))
    for name, value in [*steps, ("sampling_batch", group)]:
        if fits():
            break
        now = getattr(config, name)
        if name in ("gradient_checkpointing", "base") or not now or now > value:  # a batch of 0 is all responses
            changes[name] = value
    return [f"{k}={v}" for k, v in changes.items()] if fits() else None


def free_memory(device: torch.device) -> int:
    """Free bytes of a CUDA device or of the machine."""
    gc.collect()  # a LoRA layer of a deleted policy refers to itself by its forward method
    return free_on_gpu(device) if device.type == "cuda" else psutil.virtual_memory().available
