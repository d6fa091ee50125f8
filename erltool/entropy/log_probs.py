"""Log-probability and exact entropy of chosen tokens, in memory that does not grow with the vocabulary.

The work is done in chunks of tokens, at the sampling temperature. With a head the logits of a chunk live only while
the chunk is worked on, and are computed again in the backward pass. Logits are made in the type of the hidden states,
as the model itself makes them, so in bf16 where the model is; everything after them is fp32.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from erltool.errors import ErltoolError

CHUNK_ELEMENTS = 2**24  # logits held at a time: 64 MiB in fp32
LOG_ZERO = -1e4  # exp of it is 0 in fp32, and 0 times it is 0, which 0 times -inf is not

Head = Tensor | Callable[[Tensor], Tensor]
"""Weight (V, D) of a head that is one product, or any other head: logits (N, V) of hidden states (N, D), its
vocabulary's size in `.vocabulary`."""


def token_log_probs(
    logits_or_hidden: Tensor,
    tokens: Tensor,
    weight: Head | None = None,
    *,
    temperature: float = 1.0,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and entropy of its distribution, both in nats.

        p = softmax(z / temperature),  log_prob = log p[token],  entropy = -sum p log p

    `logits_or_hidden` is z of shape (..., V), or, with `weight` (V, D), the hidden states (..., D) for which
    z = hidden @ weight.T, or z = weight(hidden) where it is a function; `tokens` has shape (...). Returns two fp32
    tensors of that shape. Gradients reach hidden states, weight and logits through both. Empty input gives empty
    output.

    Raises ErltoolError where shapes disagree or the temperature is not positive.
    """
    if temperature <= 0:
        raise ErltoolError(f"temperature {temperature}: must be above 0")
    if logits_or_hidden.shape[:-1] != tokens.shape:
        raise ErltoolError(
            f"tokens of shape {tuple(tokens.shape)} do not index {tuple(logits_or_hidden.shape)}: "
            "the leading dimensions must agree"
        )
    rows = logits_or_hidden.reshape(-1, logits_or_hidden.shape[-1])
    if callable(weight) and len(rows):
        pieces = _through_head(weight, rows, tokens.reshape(-1), temperature, chunk_elements)
        return tuple(torch.cat(piece).view(tokens.shape) for piece in zip(*pieces, strict=True))
    weight = None if callable(weight) else weight  # of no rows there are no logits
    frozen = weight is not None and not weight.requires_grad
    keep = frozen and rows.requires_grad and torch.is_grad_enabled()
    log_probs, entropy = _TokenLogProbs.apply(
        rows, weight, tokens.reshape(-1), float(temperature), int(chunk_elements), keep
    )
    return log_probs.view(tokens.shape), entropy.view(tokens.shape)


def _through_head(head, rows: Tensor, tokens: Tensor, temperature: float, elements: int) -> list[tuple[Tensor, Tensor]]:
    def piece(part: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        return token_log_probs(head(part), chosen, temperature=temperature)

    size = _chunk(head, elements)
    parts = zip(rows.split(size), tokens.split(size), strict=True)
    if not torch.is_grad_enabled():
        return [piece(*part) for part in parts]
    return [checkpoint(piece, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]


@torch.no_grad()
def entropy_changes(
    before: Tensor,
    after: Tensor,
    weight: Head,
    weight_after: Head | None = None,
    *,
    temperature: float = 1.0,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[Tensor, Tensor]:
    """Entropy change of each context over an update, (predicted, measured), each (N,) fp32, nats.

        predicted = -Cov_{a ~ pi}(log pi, dz),    measured = H(pi after) - H(pi)        (Lemma 1)

    `before` and `after` are the hidden states (N, D) at the same N contexts, for which z is as in `token_log_probs`,
    with `weight_after` where the head itself has trained. In chunks, as `token_log_probs`.
    """
    weight_after = weight if weight_after is None else weight_after
    predicted = torch.empty(len(before), device=before.device)
    measured = torch.empty_like(predicted)
    chunk = _chunk(weight, chunk_elements)
    for at in range(0, len(before), chunk):
        part = slice(at, at + chunk)
        old = torch.log_softmax(_logits(before[part], weight, temperature), -1)
        new = torch.log_softmax(_logits(after[part], weight_after, temperature), -1)
        p = old.exp()
        entropy = torch.special.entr(p).sum(-1)
        measured[part] = torch.special.entr(new.exp()).sum(-1) - entropy
        # The change of log pi differs from that of z by one number a context, which a covariance does not see.
        change = (new - old).nan_to_num_(0.0)  # a forbidden token has -inf in both, and no share
        change -= (p * change).sum(-1, keepdim=True)
        predicted[part] = -(p * (old.clamp(min=LOG_ZERO) + entropy[:, None]) * change).sum(-1)
    return predicted, measured


class _TokenLogProbs(torch.autograd.Function):
    """One pass for both numbers. The gradient of a token's two outputs with respect to its logits z is

    d log_prob / dz_j = 1[j = token] - p_j,     d entropy / dz_j = -p_j (log p_j + entropy).
    """

    @staticmethod
    def forward(ctx, rows, weight, tokens, temperature, chunk_elements, keep):
        chunk = _chunk(rows.T if weight is None else weight, chunk_elements)
        log_probs = torch.empty(len(rows), device=rows.device)
        entropy, log_norm = torch.empty_like(log_probs), torch.empty_like(log_probs)
        kept = torch.empty_like(rows) if keep else None
        for at in range(0, len(rows), chunk):
            part = slice(at, at + chunk)
            z = _logits(rows[part], weight, temperature)
            chosen = z.gather(-1, tokens[part, None]).squeeze(-1)
            top = z.amax(-1, keepdim=True)
            p = z.sub_(top).exp()  # not yet divided by its total, which would be another pass
            total = p.sum(-1)
            log_total = total.log()
            log_norm[part] = top.squeeze(-1) + log_total
            log_probs[part] = chosen - log_norm[part]
            # A forbidden token has z = -inf and p = 0, and p log p is 0 there, not NaN.
            entropy[part] = (log_total - z.clamp_(min=LOG_ZERO).mul_(p).sum(-1) / total).clamp_(min=0)
            if keep:
                expected = (p.to(weight.dtype) @ weight) / total[:, None]
                kept[part] = (weight[tokens[part]] - expected).to(rows.dtype) / temperature
            del z, p  # or they would live on while the next chunk's are made
        ctx.save_for_backward(rows, weight, tokens, log_norm, entropy, kept)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.set_materialize_grads(False)
        return log_probs, entropy

    @staticmethod
    def backward(ctx, grad_log_probs, grad_entropy):
        rows, weight, tokens, log_norm, entropy, kept = ctx.saved_tensors
        if kept is not None and grad_entropy is None:
            return (kept * grad_log_probs[:, None]).to(rows.dtype), None, None, None, None, None
        grad_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        # Summed over chunks, so in fp32 whatever the weight's type.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for at in range(0, len(rows), ctx.chunk):
            part = slice(at, at + ctx.chunk)
            z = _logits(rows[part], weight, ctx.temperature).sub_(log_norm[part, None])
            p = z.exp()
            scale = torch.zeros_like(log_norm[part])
            if grad_entropy is not None:
                scale -= grad_entropy[part] * entropy[part]
            if grad_log_probs is not None:
                scale -= grad_log_probs[part]
            if grad_entropy is None:
                grad = p.mul_(scale[:, None])
            else:  # p * (scale - grad_entropy * log p)
                z.clamp_(min=LOG_ZERO)
                grad = p.mul_(z.mul_(-grad_entropy[part, None]).add_(scale[:, None]))
            if grad_log_probs is not None:
                grad.scatter_add_(-1, tokens[part, None], grad_log_probs[part, None])
            grad = grad.div_(ctx.temperature).to(rows.dtype)
            if weight is None:
                grad_rows[part] = grad
            elif grad_rows is not None:
                torch.mm(grad, weight.to(rows.dtype), out=grad_rows[part])
            if grad_weight is not None:
                # In place: the product alone would be as large as everything else together.
                grad_weight.addmm_(grad.T.float(), rows[part].float())
            del z, p, grad
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_rows, grad_weight, None, None, None, None


def _chunk(head: Head, elements: int) -> int:
    """Rows whose logits are at most so many elements, at least one."""
    return max(1, elements // (head.vocabulary if callable(head) else len(head)))


def logits_of(rows: Tensor, head: Head) -> Tensor:
    """Logits (N, V) of hidden states (N, D), in their type."""
    return head(rows) if callable(head) else rows @ head.T.to(rows.dtype)


def _logits(rows: Tensor, weight: Head | None, temperature: float) -> Tensor:
    """A new fp32 tensor of logits over temperature, safe to write into."""
    z = rows if weight is None else logits_of(rows, weight)
    z = z.clone() if z is rows and z.dtype == torch.float32 else z.float()
    return z if temperature == 1 else z.div_(temperature)
