"""A LoRA layer as one autograd function, on a dense or a 4-bit base.

    y = x W^T + s (x A^T) B^T

PEFT computes the two products, scales and adds them as separate tensors of the output's size, in the adapter's
own fp32. Here products are accumulated in place, in the type of x, and a 4-bit W is dequantised when it is
needed, forward and backward, and never kept: nothing of a layer lives on but x and x A^T. A and B stay fp32
parameters with fp32 gradients, and PEFT still owns them: what is saved is PEFT's.

A trap that this avoids: on a CPU with AVX512-BF16, bitsandbytes 0.50 repacks the 4-bit weights the first time a
layer is used in eval mode, and from then on no gradient reaches the adapter, also in train mode.
"""

import contextlib
import json
import logging
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

# bitsandbytes, which peft imports too, warns at once about an optional kernel that the CPU can do without.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from erltool.errors import ErltoolError
from erltool.policies.sources import check_loaded

ADAPTER = "default"  # the name that PEFT gives the only adapter there is
EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}


def attach(
    model: torch.nn.Module,
    targets: list[str],
    place: str,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    seed: int = 0,
) -> PeftModel:
    """The model, frozen, with LoRA on the linear layers `targets`. `seed` decides A; B starts at 0. `place` is where
    others find the base. Raises ErltoolError for no layers."""
    if not targets:
        raise ErltoolError("it has no linear layer that LoRA could stand on; use lora_rank 0")
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM",
        fan_in_fan_out=all(isinstance(model.get_submodule(name), Conv1D) for name in targets),
    )  # fmt: skip
    model.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        with warnings.catch_warnings():  # peft 0.21 asks transformers 5 for a name that it renamed
            warnings.simplefilter("ignore", FutureWarning)
            model = get_peft_model(model, config)
    model.peft_config[ADAPTER].base_model_name_or_path = place
    fuse(model)
    return model


def layers_behind(model: torch.nn.Module, ids: Tensor) -> set[torch.nn.Module]:
    """The linear layers on whose products the logits of `ids` (1, L) depend, as their graph says.

    Not a pooler, whose output goes nowhere, nor an indexer, whose scores only choose what attention sees: no gradient
    would reach an adapter there.
    """
    products = []

    def note(module, inputs, output):
        if isinstance(output, Tensor):  # a router may return more
            products.append((module, output.grad_fn))

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, torch.nn.Linear | Conv1D)]
    try:
        with torch.enable_grad():
            ahead = [model(ids, use_cache=False).logits.grad_fn]
    finally:
        for hook in hooks:
            hook.remove()
    behind = set()
    while ahead:
        node = ahead.pop()
        if node is not None and node not in behind:
            behind.add(node)
            ahead += [earlier for earlier, _ in node.next_functions]
    return {module for module, node in products if node in behind}


def targets(model: torch.nn.Module, ids: Tensor) -> list[str]:
    """Names of the linear layers that LoRA can stand on: those that a forward pass of the text `ids` (1, L) calls and
    that its logits depend on, but the head.

    A layer whose weight a model uses without calling it would never move. Left out too: the output of a state-space
    layer, whose fused kernels take the weight; and, where experts are stacked in one parameter, what PEFT takes for
    the names of those.
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
    """Takes the weights of an adapter that was saved in a folder. Raises ErltoolError where they are not this one's."""
    weights = load_file(folder / "adapter_model.safetensors", str(next(model.parameters()).device))
    mine, own = get_peft_model_state_dict(model, save_embedding_layers=False), model.peft_config[ADAPTER]
    saved = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    for name in ("r", "lora_alpha", "use_rslora", "use_dora"):
        if saved.get(name, getattr(own, name)) != getattr(own, name):
            raise ErltoolError(f"adapter {folder}: has {name}={saved[name]}, and the policy {getattr(own, name)}")
    found = {
        "missing_keys": mine.keys() - weights.keys(),
        "unexpected_keys": weights.keys() - mine.keys(),
        "mismatched_keys": [n for n in weights.keys() & mine.keys() if weights[n].shape != mine[n].shape],
    }
    check_loaded(found, str(folder))
    set_peft_model_state_dict(model, weights)


def fuse(model: torch.nn.Module) -> None:
    """Makes every LoRA layer of a PEFT model compute as above, where its base allows it (dense or 4-bit, no
    dropout); others stay PEFT's."""
    keep_4_bit_weights(model)
    for layer in lora_layers(model):
        fusable = type(layer.get_base_layer()) in (torch.nn.Linear, Linear4bit)
        if fusable and isinstance(layer.lora_dropout[ADAPTER], torch.nn.Identity):
            layer.dense_weight = layer.cast_adapter = None
            layer.forward = types.MethodType(_forward, layer)


def keep_4_bit_weights(model: torch.nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights, whoever calls them."""
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def lora_layers(model: torch.nn.Module) -> list[LoraLayer]:
    return [m for m in model.modules() if isinstance(m, LoraLayer)]


@contextlib.contextmanager
def dense_weights(model: torch.nn.Module, base: bool = True) -> Iterator[None]:
    """Inside, fused layers keep what they compute with: the adapter cast, and with `base` the base's weights
    dequantised. That is faster over many small steps."""
    layers = [m for m in lora_layers(model) if "dense_weight" in vars(m)]
    try:
        for layer in layers:
            weight = _base_weight(layer)
            layer.dense_weight = weight if base else None
            a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            layer.cast_adapter = (
                a.detach().T.to(weight.dtype),
                (b.detach().T * layer.scaling[ADAPTER]).to(weight.dtype),
            )
        yield
    finally:
        for layer in layers:
            layer.dense_weight = layer.cast_adapter = None


def dense_bytes(model: torch.nn.Module) -> int:
    """Bytes of the weights that `dense_weights` would dequantise."""
    bases = [m.get_base_layer() for m in lora_layers(model) if "dense_weight" in vars(m)]
    return sum(b.in_features * b.out_features * b.compute_dtype.itemsize for b in bases if isinstance(b, Linear4bit))


def _base_weight(layer: LoraLayer) -> Tensor:
    """The base's weight (out, in), dequantised where it is 4-bit."""
    if layer.dense_weight is not None:
        return layer.dense_weight
    weight = layer.get_base_layer().weight
    return dequantize_4bit(weight.data, weight.quant_state) if hasattr(weight, "quant_state") else weight


def _forward(self: LoraLayer, x: Tensor) -> Tensor:
    bias = self.get_base_layer().bias
    if self.disable_adapters or self.merged:
        weight = _base_weight(self)
        return torch.nn.functional.linear(x.to(weight.dtype), weight, bias)
    if self.cast_adapter is not None:
        a, b = self.cast_adapter
        y = torch.nn.functional.linear(x, _base_weight(self), bias)
        y.view(-1, y.shape[-1]).addmm_(x.view(-1, x.shape[-1]) @ a, b)
        return y
    y = _LoraLinear.apply(x, self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight, self)
    return y if bias is None else y + bias


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, a, b, layer):
        # Cast once for both passes; the scale goes with B.
        low_a, low_b = a.to(x.dtype), (b * layer.scaling[ADAPTER]).to(x.dtype)
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ low_a.T
        weight = _base_weight(layer).to(x.dtype)
        y = x.new_empty(*x.shape[:-1], len(weight))  # no view: models write into what a layer returns
        torch.mm(rows, weight.T, out=y.view(-1, len(weight))).addmm_(low, low_b.T)
        ctx.save_for_backward(rows, low, low_a, low_b)
        ctx.layer, ctx.kind = layer, a.dtype
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
        grad_a = (grad_low.T @ rows).to(ctx.kind)
        grad_b = (grad.T @ low).to(ctx.kind).mul_(ctx.layer.scaling[ADAPTER])
        return grad_x, grad_a, grad_b, None
