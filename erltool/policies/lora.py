"""A LoRA layer as one autograd function, on a dense or a 4-bit base.

    y = x W^T + s (x A^T) B^T

PEFT holds both products, the scaled one and the sum as separate fp32 tensors of the output's size. This accumulates
the products in place. It dequantises a 4-bit W for the forward and again for the backward pass, so that a layer keeps
only x and x A^T. A and B remain PEFT's fp32 parameters with fp32 gradients, and PEFT saves them.

In bf16 the sum is rounded once, by one product [x, x A^T] [W, s B]^T. A product x W^T that is rounded already swallows
what is below half its last place, and that is most of what a few updates add: the policy then moves less than its
weights say (PEFT adds in that order). A sum that is rounded once errs as often up as down.

On a CPU with AVX512-BF16, bitsandbytes 0.50 repacks 4-bit weights the first time a layer is used in eval mode, after
which no gradient reaches the adapter. `keep_4_bit_weights` prevents it.
"""

import contextlib
import json
import logging
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import torch

# On import, also by peft, bitsandbytes warns about a kernel that a CPU does not need.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from erltool.errors import ErltoolError
from erltool.policies.heads import weight_of
from erltool.policies.sources import check_loaded

ADAPTER = "default"  # PEFT's name for a model's only adapter
EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}


class Dense(NamedTuple):
    """A layer's weights in the type of its computation, kept for many small steps."""

    weight: Tensor | None  # (out, in); None where there is no room to keep it
    a: Tensor  # (rank, in)
    b: Tensor  # (out, rank), scaled
    wide: Tensor | None = None  # (out, in + rank) in a type that rounds: weight and b, side by side


class Layer(Protocol):
    """A LoRA layer of PEFT's, as this file uses it."""

    dense: Dense | None  # of a fused layer only
    scaling: dict[str, float]
    lora_A: torch.nn.ModuleDict
    lora_B: torch.nn.ModuleDict
    lora_dropout: torch.nn.ModuleDict
    forward: Callable[..., Tensor]
    disable_adapters: bool
    merged: bool

    def get_base_layer(self) -> torch.nn.Linear: ...

    def get_delta_weight(self, adapter: str) -> Tensor: ...


def attach(
    model: PreTrainedModel, targets: list[str], place: str, rank: int, alpha: float, dropout: float = 0.0, seed: int = 0
) -> PeftModel:
    """The model, frozen, with LoRA on the linear layers `targets`. `seed` decides A; B starts at 0. The adapter's
    configuration names `place` as its base. Raises ErltoolError for no layers."""
    if not targets:
        raise ErltoolError("it has no linear layer for LoRA; use lora_rank 0")
    config = LoraConfig(
        r=rank, lora_alpha=alpha,  # type: ignore[arg-type]  # peft says int, and only divides it
        lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM",
        fan_in_fan_out=all(isinstance(model.get_submodule(name), Conv1D) for name in targets),
    )  # fmt: skip
    model.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        with warnings.catch_warnings():  # peft 0.21 uses a name that transformers 5 has renamed
            warnings.simplefilter("ignore", FutureWarning)
            adapted = get_peft_model(model, config)
    adapted.peft_config[ADAPTER].base_model_name_or_path = place
    fuse(adapted)
    return adapted


def layers_behind(model: torch.nn.Module, ids: Tensor) -> set[torch.nn.Module]:
    """The linear layers from which a gradient path leads to the logits of `ids` (1, L). A pooler's output goes nowhere,
    and an indexer's scores only choose what attention sees: an adapter on either would get no gradient."""
    products = []

    def note(module, inputs, output):
        if isinstance(output, Tensor):  # a router may return more
            products.append((module, output.grad_fn))

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, torch.nn.Linear | Conv1D)]
    try:
        with torch.enable_grad():
            to_visit = [model(ids, use_cache=False).logits.grad_fn]
    finally:
        for hook in hooks:
            hook.remove()
    visited = set()
    while to_visit:
        node = to_visit.pop()
        if node is not None and node not in visited:
            visited.add(node)
            to_visit += [earlier for earlier, _ in node.next_functions]
    return {module for module, node in products if node in visited}


def targets(model: PreTrainedModel, ids: Tensor) -> list[str]:
    """Names of the linear layers that can have LoRA: those on which the logits of `ids` (1, L) depend, except the head.

    An adapter would have no effect on a layer whose weight the model uses without calling the layer, as fused kernels
    use the output weight of a state-space layer. Where experts are stacked in one parameter, layers whose names PEFT
    would take for theirs are left out.
    """
    called, head = layers_behind(model, ids), model.get_output_embeddings()
    stacked = any("experts" in name and p.ndim > 2 for name, p in model.named_parameters())
    names = []
    for name, module in model.named_modules():
        parent, _, leaf = name.rpartition(".")
        fused = leaf == "out_proj" and hasattr(model.get_submodule(parent), "A_log")
        if module in called and module is not head and not fused and not (stacked and leaf in EXPERTS):
            names.append(name)
    return names


def load_adapter(model: PeftModel, folder: Path) -> None:
    """Loads the weights of a saved adapter. Raises ErltoolError where they do not fit this model's adapter."""
    weights = load_file(folder / "adapter_model.safetensors", str(next(model.parameters()).device))
    own, config = get_peft_model_state_dict(model, save_embedding_layers=False), model.peft_config[ADAPTER]
    saved = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    for name in ("r", "lora_alpha", "use_rslora", "use_dora"):
        if saved.get(name, getattr(config, name)) != getattr(config, name):
            raise ErltoolError(f"adapter {folder}: has {name}={saved[name]}, and the policy {getattr(config, name)}")
    report = {
        "missing_keys": own.keys() - weights.keys(),
        "unexpected_keys": weights.keys() - own.keys(),
        "mismatched_keys": [n for n in weights.keys() & own.keys() if weights[n].shape != own[n].shape],
    }
    check_loaded(report, str(folder))
    set_peft_model_state_dict(model, weights)


def fuse(model: torch.nn.Module) -> None:
    """Makes the LoRA layers of a PEFT model compute as above: those without dropout on a dense or 4-bit base."""
    keep_4_bit_weights(model)
    for layer in lora_layers(model):
        fusable = type(layer.get_base_layer()) in (torch.nn.Linear, Linear4bit)
        if fusable and isinstance(layer.lora_dropout[ADAPTER], torch.nn.Identity):
            layer.dense = None
            layer.forward = types.MethodType(_forward, layer)


def keep_4_bit_weights(model: torch.nn.Module) -> None:
    """Prevents bitsandbytes from repacking 4-bit weights."""
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def lora_layers(model: torch.nn.Module) -> list[Layer]:
    return [cast(Layer, m) for m in model.modules() if isinstance(m, LoraLayer)]


def adapter_weights(layer: Layer) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank)."""
    return weight_of(layer.lora_A[ADAPTER]), weight_of(layer.lora_B[ADAPTER])


@contextlib.contextmanager
def dense_weights(model: torch.nn.Module, base: bool = True) -> Iterator[None]:
    """Inside, fused layers keep their adapter cast and, with `base`, the base's weights dequantised: faster over many
    small steps."""
    layers = [m for m in lora_layers(model) if "dense" in vars(m)]
    try:
        for layer in layers:
            weight = _base_weight(layer)
            a, b = _low(layer, weight.dtype)
            if not base:
                layer.dense = Dense(None, a, b)
            elif weight.dtype == torch.float32:
                layer.dense = Dense(weight, a, b)
            else:
                wide = torch.cat([weight, b], 1)
                layer.dense = Dense(wide[:, : weight.shape[1]], a, b, wide)
        yield
    finally:
        for layer in layers:
            layer.dense = None


def dense_bytes(model: torch.nn.Module) -> int:
    """Bytes of the weights that `dense_weights` would keep beside the base: dequantised, or with the adapter's."""
    total = 0
    for layer in lora_layers(model):
        base = layer.get_base_layer()
        kind = base.compute_dtype if isinstance(base, Linear4bit) else base.weight.dtype
        if "dense" in vars(layer) and (isinstance(base, Linear4bit) or kind != torch.float32):
            total += base.in_features * base.out_features * kind.itemsize
    return total


@torch.no_grad()
def merged_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The weights of the model that an adapter makes of its base, one after the other, by the names of a checkpoint.

    A 4-bit weight is dequantised. The adapter is added in fp32 unless it is off, and the sum rounded once to the base's
    type. What the adapter does not change is not copied. Raises ErltoolError for an int8 base.
    """
    layers = {name: cast(Layer, m) for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    for name, p in model.named_parameters():
        if ".lora_" in name:
            continue
        owner, _, leaf = name.rpartition(".")
        weight = dequantize_4bit(p.data, p.quant_state) if hasattr(p, "quant_state") else p.detach()
        if not weight.is_floating_point():
            raise ErltoolError("an adapter cannot be merged into an int8 base, which rounds its inputs too; use nf4")
        layer = layers.get(owner.removesuffix(".base_layer"))
        if layer is not None and leaf == "weight" and not layer.disable_adapters:
            weight = (weight.float() + layer.get_delta_weight(ADAPTER).float()).to(weight.dtype)
        yield name.replace(".base_layer.", "."), weight


def _base_weight(layer: Layer) -> Tensor:
    """The base's weight (out, in), dequantised where it is 4-bit."""
    if layer.dense is not None and layer.dense.weight is not None:
        return layer.dense.weight
    weight = layer.get_base_layer().weight
    return dequantize_4bit(weight.data, weight.quant_state) if hasattr(weight, "quant_state") else weight


def _low(layer: Layer, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A (rank, in) and s B (out, rank), cast. In a type that rounds, the rank is filled up with zeros to a multiple of
    eight, since a GPU is slow on rows of [W, s B] that are not aligned."""
    a, b = adapter_weights(layer)
    low_a, low_b = a.to(dtype), (b * layer.scaling[ADAPTER]).to(dtype)
    if dtype != torch.float32 and (fill := -len(a) % 8):
        low_a, low_b = (torch.nn.functional.pad(low_a, (0, 0, 0, fill)), torch.nn.functional.pad(low_b, (0, fill)))
    return low_a, low_b


def _forward(self: Layer, x: Tensor) -> Tensor:
    bias = self.get_base_layer().bias
    if self.disable_adapters or self.merged:
        weight = _base_weight(self)
        return torch.nn.functional.linear(x.to(weight.dtype), weight, bias)
    if self.dense is not None:
        rows = x.view(-1, x.shape[-1])
        y = _product(x.shape, rows, self, rows @ self.dense.a.T, self.dense.b)
    else:
        y = _LoraLinear.apply(x, *adapter_weights(self), self)
    return y if bias is None else y + bias


def _product(shape: torch.Size, rows: Tensor, layer: Layer, low: Tensor, low_b: Tensor) -> Tensor:
    """rows W^T + low (s B)^T, rounded once, for an input of this shape."""
    y = rows.new_empty(*shape[:-1], len(low_b))  # not a view: models write into a layer's output
    out = y.view(-1, len(low_b))
    if rows.dtype == torch.float32:
        torch.mm(rows, _base_weight(layer).to(rows.dtype).T, out=out).addmm_(low, low_b.T)
        return y
    kept = None if layer.dense is None else layer.dense.wide
    wide = torch.cat([_base_weight(layer).to(rows.dtype), low_b], 1) if kept is None else kept
    torch.mm(torch.cat([rows, low], 1), wide.T, out=out)
    return y


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, a, b, layer):
        low_a, low_b = _low(layer, x.dtype)  # cast once for both passes; B takes the scale
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ low_a.T
        y = _product(x.shape, rows, layer, low, low_b)
        ctx.save_for_backward(rows, low, low_a, low_b)
        ctx.layer, ctx.dtype = layer, a.dtype
        return y

    @staticmethod
    def backward(ctx, grad):
        rows, low, low_a, low_b = ctx.saved_tensors
        shape, grad = grad.shape, grad.reshape(-1, grad.shape[-1])
        grad_low = grad @ low_b
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ _base_weight(ctx.layer).to(grad.dtype)
            grad_x.addmm_(grad_low, low_a)
            grad_x = grad_x.view(*shape[:-1], -1)
        rank = len(adapter_weights(ctx.layer)[0])
        grad_a = (grad_low.T @ rows).to(ctx.dtype)[:rank]
        grad_b = (grad.T @ low).to(ctx.dtype)[:, :rank].mul_(ctx.layer.scaling[ADAPTER])
        return grad_x, grad_a, grad_b, None
