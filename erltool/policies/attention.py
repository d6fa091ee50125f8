"""Attention for a CPU in bf16, where the backward pass of PyTorch's fused kernel is slow: two products and a softmax.

It handles queries, keys, values, a mask and a scale. Anything else in a model's attention (a soft cap, sinks, a
position bias) goes to transformers' own kernel, which accepts or refuses it.
"""

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

# The longest row, in tokens, for which attention is plain products. Forward and backward are then 1.7 times as fast as
# with the fused kernel in fp32 (4 rows of 172 tokens). Scratch memory grows with its square, in one layer at a time.
PLAIN_ROW = 512
# Settings that change nothing here; the mask has the window already.
HARMLESS = {
    "sliding_window",
    "position_ids",
    "cache_position",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
}


def cpu_attention() -> str:
    """Registers this attention with transformers, and returns its name there."""
    name = "erltool_cpu"
    AttentionInterface.register(name, _cpu_attention)
    AttentionMaskInterface.register(name, sdpa_mask)
    return name


def _cpu_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """The fused kernel serves sampling, whose one query reads the whole cache, and whatever is not plain causal."""
    if query.shape[-2] == 1 or not _is_plain(module, query, value, attention_mask, **kwargs):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if key.shape[-2] <= PLAIN_ROW:
        return _plain_attention(query, key, value, attention_mask, scaling), None
    dtype, inputs = query.dtype, (query.float(), key.float(), value.float())
    out, weights = sdpa_attention_forward(module, *inputs, attention_mask, scaling=scaling, **kwargs)
    return out.to(dtype), weights


def _is_plain(
    module, query: Tensor, value: Tensor, mask: Tensor | None, dropout=0.0, is_causal=None, **settings
) -> bool:
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    fits = query.shape[-1] == value.shape[-1] and (causal if mask is None else mask.dtype == torch.bool)
    return fits and not dropout and not any(settings[name] is not None for name in set(settings) - HARMLESS)


def _plain_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Attention (B, L, heads, D) as two products and a softmax. `mask` (B, 1, L, S) is True where a query sees a key;
    None means causal."""
    batch, heads, length, width = query.shape
    if mask is None:
        causal = torch.ones(length, key.shape[2], dtype=torch.bool, device=key.device).tril(key.shape[2] - length)
        mask = causal.expand(batch, 1, -1, -1)
    # The queries of all heads that share a key are the rows of one product, so keys are not repeated.
    rows = (query * (scaling or width**-0.5)).reshape(-1, heads // key.shape[1] * length, width)
    key, value = (x.reshape(-1, *x.shape[-2:]) for x in (key, value))
    out = _PlainAttention.apply(rows, key, value, mask)
    return out.view(batch, heads, length, width).transpose(1, 2).contiguous()


class _PlainAttention(torch.autograd.Function):
    """Recomputes the probabilities in the backward pass: as fast as keeping them, which takes memory quadratic in L."""

    @staticmethod
    def forward(ctx, rows, key, value, mask):
        ctx.save_for_backward(rows, key, value, mask)
        return torch.bmm(_probabilities(rows, key, mask), value)

    @staticmethod
    def backward(ctx, grad):
        rows, key, value, mask = ctx.saved_tensors
        p = _probabilities(rows, key, mask)
        # Private, but PyTorch has no public function for a softmax's gradient, and transformers calls it too.
        grad_scores = torch._softmax_backward_data(torch.bmm(grad, value.mT), p, -1, p.dtype)
        return torch.bmm(grad_scores, key), torch.bmm(grad_scores.mT, rows), torch.bmm(p.mT, grad), None


def _probabilities(rows: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    scores = torch.bmm(rows, key.mT)
    # The lowest number, not -inf, which would make a row of padding NaN.
    unseen = torch.zeros_like(mask, dtype=rows.dtype).masked_fill_(~mask, torch.finfo(rows.dtype).min)
    scores.view(len(mask), -1, *mask.shape[-2:]).add_(unseen)
    return scores.softmax(-1)
