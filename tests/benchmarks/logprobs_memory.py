"""Peak memory and time of log-probabilities and entropy over a large vocabulary, forward and backward.

One response of 4096 tokens over a vocabulary of 152,000 with hidden size 896, the shape of Qwen2.5-0.5B:
`erltool.token_log_probs(hidden, tokens, weight)` against the usual way, which makes all logits at once
(`hidden @ weight.T`, `.float()`, `log_softmax`, `gather`, entropy -(p log p).sum(-1)).

The loss is the sum of the log-probs ("lp"), or of log-prob + 0.01 entropy ("lp+ent"). Both ways always return the
entropy; where it is not in the loss the usual way computes it without gradient, which spares it memory. With the
weight frozen, as under LoRA, the gradient reaches the hidden states only; else the weight as well.

Every measurement has a process of its own. Memory is the growth of the peak resident set (ru_maxrss) during one
forward and backward pass over the resident set just before it, inputs in place and the code warmed up on a small
example; it includes the gradients returned. Time is the wall clock of that same pass, as in a first update. The
two ways take turns, and the better of 2 rounds is reported; it takes 10 minutes and 15 GiB.

    python tests/benchmarks/logprobs_memory.py [rounds]
"""

import json
import resource
import subprocess
import sys
import time

TOKENS, VOCABULARY, HIDDEN = 4096, 152_000, 896
ENTROPY_COEF = 0.01
MIB = 2**20


def ours(hidden, tokens, weight, entropy_in_loss):
    import erltool

    return erltool.token_log_probs(hidden, tokens, weight)


def usual(hidden, tokens, weight, entropy_in_loss):
    import torch

    log_p = torch.log_softmax((hidden @ weight.T).float(), -1)
    chosen = log_p.gather(-1, tokens[..., None]).squeeze(-1)
    with torch.set_grad_enabled(entropy_in_loss):
        entropy = -(log_p.exp() * log_p).sum(-1)
    return chosen, entropy


def one_pass(way, hidden, tokens, weight, entropy_in_loss):
    log_probs, entropy = way(hidden, tokens, weight, entropy_in_loss)
    loss = log_probs.sum()
    if entropy_in_loss:
        loss = loss + ENTROPY_COEF * entropy.sum()
    loss.backward()
    return loss.item(), hidden.grad


def measure(way: str, dtype: str, weight_trains: bool, entropy_in_loss: bool) -> dict:
    """Runs in a process of its own."""
    import torch

    function, dtype = {"ours": ours, "usual": usual}[way], getattr(torch, dtype)

    def inputs(tokens, vocabulary):
        torch.manual_seed(0)
        hidden = torch.empty(1, tokens, HIDDEN, dtype=dtype).normal_().requires_grad_()
        weight = torch.empty(vocabulary, HIDDEN, dtype=dtype).normal_(std=0.05).requires_grad_(weight_trains)
        return hidden, torch.randint(vocabulary, (1, tokens)), weight

    one_pass(function, *inputs(16, 100), entropy_in_loss)  # what is loaded on first use
    arguments = inputs(TOKENS, VOCABULARY)
    before = resident()
    started = time.perf_counter()
    loss, gradient = one_pass(function, *arguments, entropy_in_loss)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"mib": (peak - before) / MIB, "seconds": seconds, "loss": loss, "norm": gradient.float().norm().item()}


def resident() -> int:
    """Bytes of this process in memory now."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize()


def in_a_process(*case) -> dict:
    done = subprocess.run([sys.executable, __file__, "--one", json.dumps(case)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{case}: ended with {done.returncode}; out of memory?")
    return json.loads(done.stdout)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    print(f"{TOKENS} tokens, vocabulary {VOCABULARY}, hidden size {HIDDEN}; MiB beyond the inputs, seconds")
    row = "{:<9}{:<8}{:<7}{:>9}{:>8}{:>8}{:>9}{:>8}{:>8}".format
    print(row("type", "weight", "loss", "usual", "ours", "less", "usual", "ours", "faster"))
    for dtype in ("float32", "bfloat16"):
        for weight_trains in (False, True):
            for entropy_in_loss in (False, True):
                case = dtype, weight_trains, entropy_in_loss
                runs = [(in_a_process("usual", *case), in_a_process("ours", *case)) for _ in range(rounds)]
                theirs, own = ({k: min(r[k] for r in way) for k in way[0]} for way in zip(*runs, strict=True))
                for what in ("loss", "norm"):
                    assert abs(own[what] / theirs[what] - 1) < 0.01, (case, what, own, theirs)
                print(
                    row(
                        dtype,
                        "trains" if weight_trains else "frozen",
                        "lp+ent" if entropy_in_loss else "lp",
                        f"{theirs['mib']:.0f}",
                        f"{own['mib']:.0f}",
                        f"{theirs['mib'] / own['mib']:.1f}x",
                        f"{theirs['seconds']:.1f}",
                        f"{own['seconds']:.1f}",
                        f"{theirs['seconds'] / own['seconds']:.2f}x",
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(*json.loads(sys.argv[2]))))
    else:
        main()
