"""Attention on a CPU in bf16, where PyTorch's fused kernel is slow backward: two plain products and a softmax.

Registered with transformers as `CPU_ATTENTION`. It knows queries, keys, values, a mask and a scale; whatever else a
model's attention has (a soft cap, sinks, a position bias) goes to transformers' own kernel, which takes or refuses it.
"""

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

CPU_ATTENTION = "erltool_cpu"
# Tokens of a row up to which attention is plain products: forward and backward 1.7 times as fast as the fused kernel
# in fp32 (4 rows of 172 tokens). Their scratch, which grows with the square of it, is one layer's.
PLAIN_ROW = 512
HARMLESS = {
    "sliding_window",
    "position_ids",
    "cache_position",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
}


def _cpu_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """A step of sampling reads the whole cache as it is, so it goes to the fused kernel, as does what is not plain
    causal attention. A window is in the mask already."""
    if query.shape[-2] == 1 or not _is_plain(module, query, value, attention_mask, **kwargs):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if key.shape[-2] <= PLAIN_ROW:
        return _plain_attention(query, key, value, attention_mask, scaling), None
    query, key, value, kind = query.float(), key.float(), value.float(), query.dtype
    out, weights = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return out.to(kind), weights


def _is_plain(module, query: Tensor, value: Tensor, mask: Tensor | None, dropout=0.0, is_causal=None, **more) -> bool:
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    fits = query.shape[-1] == value.shape[-1] and (causal if mask is None else mask.dtype == torch.bool)
    return fits and not dropout and not any(more[name] is not None for name in set(more) - HARMLESS)


def _plain_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Attention as two products and a softmax; `mask` (B, 1, L, S) is True where a query sees, None is causal.
    Returns (B, L, heads, D)."""
    batch, heads, length, width = query.shape
    if mask is None:
        causal = torch.ones(length, key.shape[2], dtype=torch.bool, device=key.device).tril(key.shape[2] - length)
        mask = causal.expand(batch, 1, -1, -1)
    # A key's queries, of all its heads, are the rows of one product: keys need not be repeated.
    rows = (query * (scaling or width**-0.5)).reshape(-1, heads // key.shape[1] * length, width)
    key, value = (x.reshape(-1, *x.shape[-2:]) for x in (key, value))
    out = _PlainAttention.apply(rows, key, value, mask)
    return out.view(batch, heads, length, width).transpose(1, 2).contiguous()


class _PlainAttention(torch.autograd.Function):
    """Keeps queries, keys and values; probabilities are made again in the backward pass, which was measured to be as
    fast as to keep them and spares memory that grows with the square of a row."""

    @staticmethod
    def forward(ctx, rows, key, value, mask):
        ctx.save_for_backward(rows, key, value, mask)
        return torch.bmm(_probabilities(rows, key, mask), value)

    @staticmethod
    def backward(ctx, grad):
        rows, key, value, mask = ctx.saved_tensors
        p = _probabilities(rows, key, mask)
        # Not public, but what transformers calls too: PyTorch offers a softmax's gradient by no other name.
        grad_scores = torch._softmax_backward_data(torch.bmm(grad, value.mT), p, -1, p.dtype)
        return torch.bmm(grad_scores, key), torch.bmm(grad_scores.mT, rows), torch.bmm(p.mT, grad), None


def _probabilities(rows: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    scores = torch.bmm(rows, key.mT)
    # The lowest number, not -inf, of which a row of padding would make NaN.
    unseen = torch.zeros_like(mask, dtype=rows.dtype).masked_fill_(~mask, torch.finfo(rows.dtype).min)
    scores.view(len(mask), -1, *mask.shape[-2:]).add_(unseen)
    return scores.softmax(-1)


AttentionInterface.register(CPU_ATTENTION, _cpu_attention)
AttentionMaskInterface.register(CPU_ATTENTION, sdpa_mask)
