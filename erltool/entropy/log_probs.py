"""What a policy's distribution says of chosen tokens, in memory that does not grow with the vocabulary.

Tokens are worked off in chunks, at the sampling temperature. With a head, the logits of a chunk exist only while the
chunk is worked on; the backward pass computes them again. Logits are fp32, and so is everything after them: a bf16
logit of 20 is a multiple of 1/8, which is noise in a log-prob. The model's own head rounds so, and with it the sampler
and a head that is more than one product, since that is the model's own code.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from erltool.errors import ErltoolError

CHUNK_ELEMENTS = 2**24  # logits held at a time: 64 MiB in fp32
LITTLE = 6.9  # nats: a token that far below the likeliest is 1e-3 times as likely
BLOCK = 4096  # tokens whose logits are computed again at a time: of a flat distribution all are
MOST = 0.4  # of the vocabulary: where more matters, computing all again is faster than gathering what does
LOG_ZERO = -1e4  # stands for -inf: exp of it is 0 in fp32, and 0 times it is 0 where 0 times -inf is NaN


class HeadFunction(Protocol):
    """A head that is more than one product: logits (N, V) of hidden states (N, D)."""

    vocabulary: int

    def __call__(self, hidden: Tensor, /) -> Tensor: ...


Head = Tensor | HeadFunction
"""The weight (V, D) of a head that is one product, or any other head."""


class TokenStatistics(NamedTuple):
    """Four numbers of each token y and its distribution p, fp32. Gradients reach the first two."""

    log_probs: Tensor
    """log p_y, nats"""
    token_entropy: Tensor
    """-sum p log p, nats"""
    entropy_slope: Tensor
    """Change of the entropy, nats, for each unit of a step along the gradient of log p_y in the logits (push.py)."""
    gradient_norm: Tensor
    """Norm of that gradient, |e_y - p|, in [0, sqrt 2]."""


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

    `logits_or_hidden` is z of shape (..., V). With `weight` it is the hidden states (..., D), and z is
    hidden @ weight.T for a matrix (V, D), weight(hidden) for a function. `tokens` has shape (...). Returns two fp32
    tensors of that shape. Gradients reach hidden states, weight and logits through both. Empty input gives empty
    output. Raises ErltoolError where shapes disagree or the temperature is not positive.
    """
    return token_statistics(logits_or_hidden, tokens, weight, temperature=temperature, chunk_elements=chunk_elements)[
        :2
    ]


def token_statistics(
    logits_or_hidden: Tensor,
    tokens: Tensor,
    weight: Head | None = None,
    *,
    temperature: float = 1.0,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> TokenStatistics:
    """`TokenStatistics` of each token. Arguments, shapes and errors are those of `token_log_probs`."""
    if temperature <= 0:
        raise ErltoolError(f"temperature {temperature}: must be above 0")
    if logits_or_hidden.shape[:-1] != tokens.shape:
        raise ErltoolError(
            f"tokens of shape {tuple(tokens.shape)} do not index {tuple(logits_or_hidden.shape)}: "
            "the leading dimensions must agree"
        )
    rows = logits_or_hidden.reshape(-1, logits_or_hidden.shape[-1])
    if weight is not None and not isinstance(weight, Tensor):
        if len(rows):
            return _through_head(weight, rows, tokens, temperature, chunk_elements)
        weight = None  # a function gives no logits for no rows
    frozen = weight is not None and not weight.requires_grad
    keep = frozen and rows.requires_grad and torch.is_grad_enabled()
    columns = _Statistics.apply(rows, weight, tokens.reshape(-1), float(temperature), int(chunk_elements), keep)
    return TokenStatistics(*(column.view(tokens.shape) for column in columns))


def _through_head(
    head: HeadFunction, rows: Tensor, tokens: Tensor, temperature: float, elements: int
) -> TokenStatistics:
    def of_chunk(hidden: Tensor, chosen: Tensor) -> TokenStatistics:
        return token_statistics(head(hidden), chosen, temperature=temperature)

    again = partial(checkpoint, of_chunk, use_reentrant=False, preserve_rng_state=False)
    run = again if torch.is_grad_enabled() else of_chunk
    size = _chunk(head.vocabulary, elements)
    results = [run(*chunk) for chunk in zip(rows.split(size), tokens.reshape(-1).split(size), strict=True)]
    return TokenStatistics(*(torch.cat(values).view(tokens.shape) for values in zip(*results, strict=True)))


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

    `before` and `after` are the hidden states (N, D) at the same N contexts. z is as in `token_log_probs`, with
    `weight_after` where the head itself was trained.
    """
    weight_after = weight if weight_after is None else weight_after
    predicted = torch.empty(len(before), device=before.device)
    measured = torch.empty_like(predicted)
    size = _chunk(len(weight) if isinstance(weight, Tensor) else weight.vocabulary, chunk_elements)
    for at in range(0, len(before), size):
        chunk = slice(at, at + size)
        old = torch.log_softmax(_logits(before[chunk], weight, temperature), -1)
        new = torch.log_softmax(_logits(after[chunk], weight_after, temperature), -1)
        p = old.exp()
        entropy = torch.special.entr(p).sum(-1)
        measured[chunk] = torch.special.entr(new.exp()).sum(-1) - entropy
        # The changes of log pi and z differ by a constant in each context, which leaves the covariance the same.
        change = (new - old).nan_to_num_(0.0)  # a forbidden token has -inf in both and does not count
        change -= (p * change).sum(-1, keepdim=True)
        predicted[chunk] = -(p * (old.clamp(min=LOG_ZERO) + entropy[:, None]) * change).sum(-1)
    return predicted, measured


@torch.no_grad()
def likeliest(
    logits_or_hidden: Tensor,
    count: int,
    weight: Head | None = None,
    *,
    ids: Tensor | None = None,
    temperature: float = 1.0,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` likeliest tokens of each of N distributions, likeliest first, or the tokens `ids` (N, K): their ids
    (N, K), their probabilities (N, K), and the entropy of the whole distribution (N,), nats.

    K is at most the size of the vocabulary V. The first argument is the logits (N, V); with `weight` it is the hidden
    states (N, D), as in `token_log_probs`.
    """
    rows, found = logits_or_hidden, []
    vocabulary = rows.shape[-1] if weight is None else len(weight) if isinstance(weight, Tensor) else weight.vocabulary
    for at in range(0, len(rows), size := _chunk(vocabulary, chunk_elements)):
        p = torch.softmax(_logits(rows[at : at + size], weight, temperature), -1)
        chosen = p.topk(min(count, vocabulary), -1).indices if ids is None else ids[at : at + size]
        found.append((chosen, p.gather(-1, chosen), torch.special.entr(p).sum(-1)))
    if not found:
        none = torch.zeros(0, min(count, vocabulary), device=rows.device)
        return none.long(), none, none[:, 0]
    of_ids, of_p, of_entropy = (torch.cat(columns) for columns in zip(*found, strict=True))
    return of_ids, of_p, of_entropy


class _Statistics(torch.autograd.Function):
    """`TokenStatistics` in one pass. Gradients of log-probability and entropy in a token's logits z are

    d log_prob / dz_j = 1[j = token] - p_j,     d entropy / dz_j = -p_j (log p_j + entropy).
    """

    @staticmethod
    def forward(ctx, rows, weight, tokens, temperature, chunk_elements, keep):
        size = _chunk(rows.shape[-1] if weight is None else len(weight), chunk_elements)
        log_probs = torch.empty(len(rows), device=rows.device)
        entropy, log_norm, slope, norm = (torch.empty_like(log_probs) for _ in range(4))
        kept = torch.empty_like(rows) if keep else None
        for at in range(0, len(rows), size):
            chunk = slice(at, at + size)
            z = _logits(rows[chunk], weight, temperature, tokens[chunk])
            chosen = z.gather(-1, tokens[chunk, None]).squeeze(-1)
            top = z.amax(-1, keepdim=True)
            p = z.sub_(top).exp()  # not yet normalised: dividing would take another pass
            total = p.sum(-1)
            log_total = total.log()
            log_norm[chunk] = top.squeeze(-1) + log_total
            log_probs[chunk] = chosen - log_norm[chunk]
            # A forbidden token has z = -inf and p = 0. The clamp makes its p log p 0 instead of NaN.
            zp = z.clamp_(min=LOG_ZERO).mul_(p)
            entropy[chunk] = (log_total - zp.sum(-1) / total).clamp_(min=0)
            if kept is not None:
                expected = (p.to(weight.dtype) @ weight) / total[:, None]
                kept[chunk] = (weight[tokens[chunk]] - expected).to(rows.dtype) / temperature
            p.scatter_(-1, tokens[chunk, None], 0)  # what is left are the other tokens: no sum cancels
            rest, squares = p.sum(-1) / total, (torch.linalg.vector_norm(p, dim=-1) / total).square()
            log_squares = _dot(zp, p) / total.square() - log_total * squares
            own = log_probs[chunk].exp() * (entropy[chunk] + log_probs[chunk].clamp(min=LOG_ZERO))
            slope[chunk] = entropy[chunk] * squares + log_squares - rest * own
            norm[chunk] = (rest.square() + squares).sqrt()
            del z, zp, p  # frees the memory before the next chunk needs it
        ctx.mark_non_differentiable(slope, norm)
        ctx.save_for_backward(rows, weight, tokens, log_norm, entropy, kept)
        ctx.temperature, ctx.size = temperature, size
        ctx.set_materialize_grads(False)
        return log_probs, entropy, slope, norm

    @staticmethod
    def backward(ctx, grad_log_probs, grad_entropy, *_):
        rows, weight, tokens, log_norm, entropy, kept = ctx.saved_tensors
        if kept is not None and grad_entropy is None:
            return (kept * grad_log_probs[:, None]).to(rows.dtype), None, None, None, None, None
        grad_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        # A sum over chunks needs fp32, whatever the weight's type.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for at in range(0, len(rows), ctx.size):
            chunk = slice(at, at + ctx.size)
            z = _logits(rows[chunk], weight, ctx.temperature, tokens[chunk]).sub_(log_norm[chunk, None])
            p = z.exp()
            scale = torch.zeros_like(log_norm[chunk])
            if grad_entropy is not None:
                scale -= grad_entropy[chunk] * entropy[chunk]
            if grad_log_probs is not None:
                scale -= grad_log_probs[chunk]
            if grad_entropy is None:
                grad = p.mul_(scale[:, None])
            else:  # p * (scale - grad_entropy * log p)
                z.clamp_(min=LOG_ZERO)
                grad = p.mul_(z.mul_(-grad_entropy[chunk, None]).add_(scale[:, None]))
            if grad_log_probs is not None:
                grad.scatter_add_(-1, tokens[chunk, None], grad_log_probs[chunk, None])
            grad = grad.div_(ctx.temperature).to(rows.dtype)
            if grad_rows is not None and weight is None:
                grad_rows[chunk] = grad
            elif grad_rows is not None:
                torch.mm(grad, weight.to(rows.dtype), out=grad_rows[chunk])
            if grad_weight is not None:
                # In place, because the product would be as large as everything else together.
                grad_weight.addmm_(grad.T.float(), rows[chunk].float())
            del z, p, grad
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_rows, grad_weight, None, None, None, None


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Dot products of rows, (N,); without a tensor of products, unlike (x * y).sum(-1)."""
    return torch.bmm(x[:, None], y[:, :, None])[:, 0, 0]


def _chunk(vocabulary: int, elements: int) -> int:
    """Number of rows whose logits have at most this many elements, at least one."""
    return max(1, elements // vocabulary)


def logits_of(rows: Tensor, head: Head) -> Tensor:
    """Logits (N, V) of hidden states (N, D), in their type."""
    return rows @ head.T.to(rows.dtype) if isinstance(head, Tensor) else head(rows)


def _unrounded(rows: Tensor, weight: Tensor, tokens: Tensor | None, within: float) -> Tensor:
    """rows @ weight.T in fp32, of bf16 hidden states and a weight of any type. A CPU has no such product: there, a bf16
    product finds the tokens whose logits are `within` so much of the largest of some row, and these and `tokens` get
    back what rounding took. The others keep their rounding, and weigh next to nothing."""
    if rows.is_cuda and "dtype" in torch.ops.aten.mm.overloads():
        return torch.mm(rows, weight.T.to(rows.dtype), out_dtype=torch.float32)
    rounded = logits_of(rows, weight)
    z = rounded.float()
    matters = (z >= z.amax(-1, keepdim=True) - within).any(0)
    if tokens is not None:
        matters[tokens] = True
    columns: Sequence[Tensor | slice] = matters.nonzero()[:, 0].split(BLOCK)
    if matters.float().mean() > MOST:
        columns = [slice(at, at + BLOCK) for at in range(0, len(weight), BLOCK)]
    for part in columns:
        z[:, part] += _rounding(rows, weight[part], rounded[:, part])
    return z


def _rounding(rows: Tensor, weight: Tensor, rounded: Tensor) -> Tensor:
    """rows @ weight.T - rounded, in fp32. A CPU subtracts before it rounds, so the difference of two bf16 products has
    2^-9 of the error of one, in a fraction of the time of an fp32 product."""
    if rows.device.type == "cpu" and weight.dtype == rows.dtype:
        return torch.addmm(rounded, rows, weight.T, beta=-1).float()
    return rows.float() @ weight.float().T - rounded.float()


def _logits(rows: Tensor, weight: Head | None, temperature: float, tokens: Tensor | None = None) -> Tensor:
    """A new fp32 tensor of logits over temperature, safe to write into."""
    if isinstance(weight, Tensor) and rows.dtype != torch.float32:
        z = _unrounded(rows, weight, tokens, LITTLE * temperature)
    else:
        z = rows if weight is None else logits_of(rows, weight)
    z = z.clone() if z is rows and z.dtype == torch.float32 else z.float()
    return z if temperature == 1 else z.div_(temperature)
