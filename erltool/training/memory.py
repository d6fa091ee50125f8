"""What a configuration needs in memory, before anything is loaded, and what to lower where that is too much.

Counted from the model's configuration alone. Sampling and the update follow each other, so the peak is what always
stays (weights, adapter, optimiser, runtime) and the larger of the two. Measured against the peak of real runs in
tests/benchmarks/memory_plan.py; the counts per token are of Llama-like layers in transformers 5. On several devices
what stays is sharded over them (FSDP's full shard, ZeRO-3) and the responses are shared out: counted, not measured.
"""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers

from erltool.entropy.log_probs import CHUNK_ELEMENTS
from erltool.errors import ErltoolError
from erltool.policies.attention import PLAIN_ROW
from erltool.policies.load import resolve_device, resolve_dtype
from erltool.policies.probe import not_plain
from erltool.policies.rollouts import share_rows
from erltool.policies.sources import find_model, hub_advice, is_offline
from erltool.training.config import TrainConfig

GIB = 2**30
CARDS = (16, 24, 48, 80)  # GB of common GPUs
RUNTIME = {"cpu": 0.58 * GIB, "cuda": 0.6 * GIB}  # Python with its libraries; a CUDA context and its handles
# What is held over the activations that are counted, in an update on a CPU: temporaries, memory that glibc keeps.
# Fitted to the runs of tests/benchmarks/memory_plan.py; on CUDA nothing was measured, and nothing is added.
SLACK = {"cpu": 1.8, "cuda": 1.0}
# Bytes for each logit of a chunk while log-probs and entropy are made and differentiated, and more where they are cast
# to fp32 for it: the peak of `token_log_probs` alone, SmolLM2's width and vocabulary on a CPU.
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
    """Raised for a model of which the plan does not know what its layers hold."""


@dataclass(frozen=True)
class Shape:
    """What of a model decides its memory."""

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
        """Weights of embedding and head, which quantisation leaves alone."""
        return self.vocabulary * self.width * (1 if self.tied else 2)

    def adapter(self, rank: int) -> int:
        """Weights of LoRA on all linear layers."""
        pairs = 2 * (self.width + self.queries) + 2 * (self.width + self.keys) + 3 * (self.width + self.mlp)
        return self.layers * rank * pairs


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by part. Printing it gives a table."""

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
    """Shape of a model, from its configuration; SmolLM2's and Qwen2.5's are known without the hub, Math and Instruct
    too. Raises ErltoolError, UnknownShape for a model whose layers are not Llama's."""
    place = find_model(source)
    plain = place.removesuffix("-Instruct").replace("Qwen2.5-Math-", "Qwen2.5-")
    if not Path(place).exists() and plain in KNOWN:
        return Shape(*KNOWN[plain], torch.bfloat16)
    try:
        config = transformers.AutoConfig.from_pretrained(
            place, trust_remote_code=trust_remote_code, local_files_only=is_offline(place)
        )
    except (OSError, ValueError) as e:
        raise ErltoolError(f"plan of {source!r}: its configuration is out of reach{hub_advice(place)}") from e
    experts = next((f"it has {name}" for name in vars(config) if re.match("[a-z].*experts", name)), "")
    if why := not_plain(config) or experts:
        raise UnknownShape(f"plan of {source!r}: its layers are not like Llama's, so its memory is not known: {why}")
    try:
        return _shape(config)
    except AttributeError as e:
        raise UnknownShape(f"plan of {source!r}: not a Llama-like model ({e}); its memory is not known") from e


def _shape(c: transformers.PretrainedConfig) -> Shape:
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    return Shape(
        c.num_hidden_layers,
        c.hidden_size,
        c.intermediate_size,
        c.num_attention_heads * head,
        c.num_key_value_heads * head,
        c.vocab_size,
        bool(c.tie_word_embeddings),
        c.dtype or torch.float32,
    )


def plan_memory(
    config: TrainConfig, prompt_tokens: int = 256, device: str = "cuda", shape: Shape | None = None, gpus: int = 1
) -> MemoryPlan:
    """Memory of training with `config` on a device ("cuda" or "cpu"), on prompts of `prompt_tokens` tokens with
    responses at their longest.

    With `gpus` above 1 it is that of each of so many, which share weights, gradients and optimiser evenly (FSDP's
    full shard, ZeRO-3) and the responses too; `micro_batch` and `sampling_batch` are then of one device. A sampler
    with weights of its own (vLLM beside the trainer) is not counted. Raises ErltoolError for fewer than 1.
    """
    if gpus < 1:
        raise ErltoolError(f"gpus={gpus}: must be at least 1")
    s = shape or model_shape(config.policy, config.trust_remote_code)
    lora = config.lora_rank > 0
    size = resolve_dtype(config.dtype, s.stored, torch.device(device), whole=not lora).itemsize
    # NF4: half a byte, and per block of 64 one byte that is itself scaled per 256 blocks.
    per_weight = {"none": size, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}[config.base]
    trained = s.adapter(config.lora_rank) if lora else s.linear + s.other
    stays = {
        "runtime": RUNTIME[device],
        f"weights, linear layers ({config.base})": s.linear * per_weight,
        "weights, embedding and head": s.other * size,
        "adapter, fp32": 4 * trained if lora else 0,
        "Adam's two moments, fp32": 8 * trained,
    }
    if gpus > 1:
        stays = {name: part if name == "runtime" else part / gpus for name, part in stays.items()}
        # The layer at work is whole, and so is the next, which is fetched meanwhile.
        stays["gathered: two layers"] = 2 * s.linear / s.layers * per_weight
        stays["gathered: embedding and head"] = s.other * size
    sampling = _sampling(config, s, prompt_tokens, size, device, gpus)
    update = _update(config, s, prompt_tokens, size, device, trained, gpus)
    if device == "cpu" and config.gradient_checkpointing:
        # Fitted to one run, whose resident memory did not fall after sampling; why it is not used again is not known.
        update["kept from sampling"] = sum(sampling.values())
    return MemoryPlan(stays, sampling, update)


def _sampling(config: TrainConfig, s: Shape, prompt: int, size: int, device: str, gpus: int) -> dict[str, float]:
    rows = math.ceil(config.prompts_per_iteration * config.group_size / gpus)
    rows = min(rows, config.sampling_batch or rows)
    cache = rows * (prompt + config.max_response_tokens) * ROOM * s.layers * 2 * s.keys * size
    dense = s.linear * size if device == "cpu" and (config.base == "nf4" or size == 4 and config.lora_rank) else 0
    return {
        f"dense weights {'dequantised' if config.base == 'nf4' else 'with the adapter folded in'}": dense,
        f"key-value cache of {rows} responses": cache,
        "prefill of their prompts": rows / config.group_size * prompt * _passing(s, size),
        "probabilities": rows * s.vocabulary * (4 + 4 + 8 + size),
    }


def _update(
    config: TrainConfig, s: Shape, prompt: int, size: int, device: str, trained: int, gpus: int
) -> dict[str, float]:
    responses = math.ceil(config.prompts_per_update * config.group_size / gpus)
    responses = min(responses, config.micro_batch or responses)
    group = min(responses, config.group_size)
    shared = share_rows(prompt, [config.max_response_tokens] * group, s.width)
    rows = math.ceil(responses / group) * len(shared)
    width = prompt + max(map(len, shared)) * (config.max_response_tokens - 1)
    tokens = rows * width
    layers = 1 if config.gradient_checkpointing else s.layers
    activations = tokens * (layers * _kept(config, s, size, device, width) + _passing(s, size))
    if len(shared) < group and not _is_plain(size, device, width):  # the fused kernel keeps a mask in every layer
        activations += layers * rows * width**2 * (4 if device == "cpu" else size)
    if config.gradient_checkpointing:
        activations += tokens * s.layers * s.width * size
    chunk = min(CHUNK_ELEMENTS, responses * config.max_response_tokens * s.vocabulary)
    weight = 4 * s.vocabulary * s.width if not config.lora_rank else 0
    dense = {"none": 0, "nf4": 2 * s.width * s.mlp * size, "int8": 2 * s.width * s.mlp * size}[config.base]
    return {
        f"activations of {tokens} tokens": activations * SLACK[device],
        "logits of a chunk": chunk * (LOGIT_BYTES + (CAST_BYTES if size < 4 else 0)) + weight,
        "one layer's weights, dequantised": dense,
        "gradients": 4 * trained / gpus,
    }


def _kept(config: TrainConfig, s: Shape, size: int, device: str, width: int) -> float:
    """Bytes that a token of a row of `width` keeps in a layer for the backward pass."""
    norms = 2 * 4 * s.width + (2 * size * s.width if size < 4 else 4 * s.width)
    if _is_plain(size, device, width):
        attention = size * 2 * (s.queries + s.keys)
    else:
        inside = 4 if device == "cpu" else size  # the fused kernel on a CPU works in fp32
        attention = inside * 4 * s.queries + size * s.queries  # keys and values are repeated to the queries' heads
    mlp = size * 4 * s.mlp
    low = 7 * config.lora_rank * size
    return norms + attention + mlp + low


def _passing(s: Shape, size: int) -> float:
    """Bytes of a token that pass through while a layer works."""
    return size * 3 * s.mlp + 4 * 4 * s.width


def _is_plain(size: int, device: str, width: int) -> bool:
    """Whether attention is plain products, as policy.py decides it."""
    return device == "cpu" and size < 4 and width <= PLAIN_ROW


def check_fits(config: TrainConfig, prompt_tokens: int) -> None:
    """Raises ErltoolError, before anything is loaded, where the plan is above the memory that is free. Of a model
    without a plan nothing is known, and nothing refused."""
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
    """Changes, those that cost least first, after which the plan fits into `memory` bytes: [] where it does as it
    is, None where no change is enough. `gpus` as in `plan_memory`."""
    shape = model_shape(config.policy, config.trust_remote_code)
    changes: dict[str, object] = {}

    def fits() -> bool:
        return plan_memory(replace(config, **changes), prompt_tokens, device, shape, gpus).peak <= memory

    group = config.group_size
    steps = [("micro_batch", group), ("micro_batch", 1), ("sampling_batch", max(group, 64)),
             ("gradient_checkpointing", True)]  # fmt: skip
    if config.lora_rank and config.base == "none":
        steps.append(("base", "nf4"))
    for name, value in [*steps, ("sampling_batch", group)]:
        if fits():
            break
        now = getattr(config, name)
        if name == "gradient_checkpointing" or name == "base" or not now or now > value:  # 0 is all of them
            changes[name] = value
    return [f"{k}={v}" for k, v in changes.items()] if fits() else None


def free_memory(device: torch.device) -> float:
    """Bytes that are free on a device: CUDA's, or the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")  # not Linux: nothing is known, so nothing is refused
