"""One command on a machine with a GPU: does what was written without one hold there, and how fast is it?

    python tests/gpu/check.py --out gpu.json --minutes 8 --only tests,policy,lora,attention,chunks,0.5B,1.5B,7B,compile

Prints one table and writes it as JSON after every row, so a run that is cut keeps what it measured. Needs no network:
the models are Qwen2.5's shapes with random weights, made in a temporary folder (7B takes 15 GB, /dev/shm by default).
A part that fails is a row with its error, and the exit status is 1 then. A part that would begin after `--minutes` is
left out, and a row says so; the longest, `compile`, may go on for three minutes.
With `--device cpu` and `--only` everything but the Qwen shapes runs on a CPU, to try the script itself.

The machine needs erltool's dependencies. One without a package registry takes wheels that were carried there:

    pip download --no-deps -d wheels bitsandbytes==0.50.2 peft==0.21.2     # at home
    python -m pip install --no-index --no-deps --target site wheels/*.whl  # there; then PYTHONPATH=site:.
"""

import argparse
import collections
import gc
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from erltool import KLCov, TrainConfig, load_policy, load_task, sample_groups, token_log_probs, train
from erltool.policies import attention, lora, sampling
from erltool.policies.load import load_tokenizer
from erltool.policies.rollouts import response_log_probs
from erltool.training.loop import _Trainer
from erltool.training.memory import KNOWN, RUNTIME, plan_memory
from erltool.training.start import configured_policy
from erltool.training.update import Batch

GIB = 2**30
SIZES = {"0.5B": 32, "1.5B": 32, "7B": 8}  # responses in a micro-batch
PROMPTS, GROUP, RESPONSE = 16, 8, 128
UPDATES = 20
FAST = "linear head, packed rows"
NO_ERROR = "no error"
PROMPT_LINES = ["3 5 7=22:", "1 2 3=6:", "9 9 1=80:"]
Row = tuple[str, str, str, bool]  # what, measured, wanted, held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ["tests", "policy", "lora", "attention", "chunks", *SIZES, "compile"]
    parser.add_argument("--only", default=",".join(parts))
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--folder", default="/dev/shm" if Path("/dev/shm").is_dir() else None)
    args = parser.parse_args()
    started, rows = time.monotonic(), []
    made = {"torch": torch.__version__, "transformers": transformers.__version__, "python": sys.version.split()[0]}
    if args.device == "cuda":
        made["device"] = torch.cuda.get_device_name()
    print(json.dumps(made))
    for part in args.only.split(","):
        if time.monotonic() - started > 60 * args.minutes:
            found: Iterator[Row] = iter([(part, "left out: the time was up", "", False)])
        else:
            found = without_errors(part, run(part, args.device, args.folder))
        for row in found:
            rows.append(row)
            show(row)
            write(args.out, made, rows)
        gc.collect()  # a LoRA layer refers to itself by its forward method
        if args.device == "cuda":
            torch.cuda.empty_cache()
    print(f"{time.monotonic() - started:.0f} s; {sum(not held for *_, held in rows)} of {len(rows)} rows are misses")
    sys.exit(any(wanted == NO_ERROR for _, _, wanted, _ in rows))


def without_errors(part: str, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows, and one that says which error ended them: it must not take the others' numbers with it."""
    try:
        yield from rows
    except Exception as e:
        yield part, f"{type(e).__name__}: {e}".splitlines()[0][:300], NO_ERROR, False


def show(row: Row) -> None:
    what, measured, wanted, held = row
    print(f"{'  ' if held else '! '}{what:44} {measured:52} {wanted}", flush=True)


def write(out: Path, made: dict, rows: list[Row]) -> None:
    named = [dict(zip(("what", "measured", "wanted", "held"), row, strict=True)) for row in rows]
    out.write_text(json.dumps(made | {"rows": named}, indent=1))


def run(part: str, device: str, folder: str | None) -> Iterator[Row]:
    if part in SIZES:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            yield from language_model(part, Path(place), device)
    elif part == "compile":
        with tempfile.TemporaryDirectory(dir=folder) as place:
            yield from compiled("0.5B", Path(place), device)
    else:
        yield from {
            "tests": gpu_tests,
            "policy": same_as_cpu,
            "lora": fused_lora,
            "attention": attention_paths,
            "chunks": chunks,
        }[part](device)


# --- the shipped policies -----------------------------------------------------------------------------------------


def gpu_tests(device: str) -> Iterator[Row]:
    """All tests that ask for a GPU."""
    # Only files that have such a test: others may need what this machine lacks (Jupyter, a browser).
    files = [str(f) for f in sorted(Path("tests").glob("test_*.py")) if "mark.gpu" in f.read_text()]
    words = [sys.executable, "-m", "pytest", "-rs", "-m", "gpu", *files]
    done = subprocess.run(words, capture_output=True, text=True, timeout=180)
    last = (done.stdout.strip() or done.stderr.strip() or "no output").splitlines()[-1]
    print(done.stdout[-3000:], done.stderr[-1000:])  # what failed, and what was skipped and why
    yield "pytest -m gpu", last, "all pass", done.returncode == 0 and " passed" in last


def same_as_cpu(device: str) -> Iterator[Row]:
    """The policy `sharpening` trains as on a CPU, given the same random numbers, and collapses."""
    config = TrainConfig(lora_rank=0, learning_rate=3e-4, eval_every=0, record_every=0, steps=UPDATES, device="cpu")
    there = TrainConfig(**{**vars(config), "device": device})
    ours = torch.rand

    def on_host(*size, generator=None, device=None, **kwargs):
        numbers = torch.Generator().manual_seed(generator.initial_seed() + next(counts))
        return ours(*size, generator=numbers, **kwargs).to(device)

    sampling.torch.rand, compact_at = on_host, sampling.COMPACT_AT
    sampling.COMPACT_AT = 0.0  # a recorded step keeps all rows, and so the numbers they draw
    try:
        runs = []
        for one in (config, there):
            counts = itertools.count()
            runs.append([step.metrics for step in train(one)])
    finally:
        sampling.torch.rand, sampling.COMPACT_AT = ours, compact_at
    for name in ("policy_entropy", "reward", "grad_norm", "mean_covariance"):
        off = max(abs(a[name] - b[name]) / max(abs(a[name]), 1e-3) for a, b in zip(*runs, strict=True))
        yield f"{UPDATES} updates, {name} against the CPU's", f"off by {off:.1e} of it", "1e-2", off < 1e-2
    config = TrainConfig(**{**vars(there), "steps": 320})
    started, entropy, times = time.perf_counter(), [], []
    for step in train(config):
        entropy.append(step.metrics["policy_entropy"])
        times.append(time.perf_counter() - started)
    seconds = (times[-1] - times[39]) / 70
    yield (
        "policy sharpening, 80 iterations",
        f"entropy {entropy[0]:.3f} to {entropy[-1]:.3f}",
        "collapse",
        (entropy[-1] < 0.1 * entropy[0]),
    )
    yield "an iteration of 512 responses, 4 updates", f"{seconds:.3f} s", "0.5 s on a CPU's core", seconds < 0.5


def fused_lora(device: str) -> Iterator[Row]:
    """Our LoRA layer on a 4-bit base against PEFT's own, in log-probs and gradients. In bf16 each rounds in its own
    order, so both are compared with fp32 on the same responses and weights."""
    rollouts, found = None, {}
    for dtype in ("fp32", "bf16"):
        policy = load_policy("countdown", base="nf4", dtype=dtype, lora_rank=8, device=device)
        draws = torch.Generator().manual_seed(5)
        for p in policy.trainable().values():
            p.data = (0.05 * torch.randn(p.shape, generator=draws)).to(p.device)
        if rollouts is None:
            draws = torch.Generator(policy.device).manual_seed(0)
            rollouts = sample_groups(policy, PROMPT_LINES, 4, max_response_tokens=12, generator=draws)
        for fused in (True, False):
            if not fused:
                for layer in lora.lora_layers(policy.model):
                    vars(layer).pop("forward", None)
            log_probs, entropy = response_log_probs(policy, rollouts)
            (log_probs.sum() + 0.3 * entropy.sum()).backward()
            gradients = {n: p.grad.float() for n, p in policy.trainable().items()}
            found[dtype, fused] = log_probs.detach()[rollouts.response_mask], gradients
            for p in policy.trainable().values():
                p.grad = None
    what = "LoRA on NF4, fp32: ours against PEFT's"
    nats, share = apart(found["fp32", True], found["fp32", False])
    yield f"{what}, log-probs", f"off by {nats:.1e} nats", "1e-4", nats < 1e-4
    yield f"{what}, gradients", f"off by {share:.1e} of their norm", "1e-4", share < 1e-4
    what = "LoRA on NF4, bf16 against fp32"
    ours, theirs = (apart(found["bf16", fused], found["fp32", False]) for fused in (True, False))
    for name, unit, our, their in zip(("log-probs", "gradients"), ("nats", "of the norm"), ours, theirs, strict=True):
        yield f"{what}, {name}", f"ours {our:.1e}, PEFT's {their:.1e} {unit}", "no more", our <= 1.1 * their


def apart(found: tuple, expected: tuple) -> tuple[float, float]:
    """Mean difference of log-probs, and the largest of a parameter's gradient as a share of its norm."""
    (values, gradients), (others, exact) = found, expected
    shares = ((gradients[n] - exact[n]).norm() / exact[n].norm().clamp(min=1e-12) for n in exact)
    return (values - others).abs().mean().item(), max(share.item() for share in shares)


def attention_paths(device: str) -> Iterator[Row]:
    """PyTorch's fused attention against two products and a softmax, forward and backward, on Qwen2.5-0.5B's heads."""
    for length in (256, 1024):
        heads, keys, width, rows = 14, 2, 64, 8
        draws = torch.Generator(device).manual_seed(0)
        kind = torch.bfloat16
        q, k, v = (
            torch.randn(rows, n, length, width, device=device, dtype=kind, generator=draws).requires_grad_()
            for n in (heads, keys, keys)
        )
        mask = torch.ones(rows, 1, length, length, device=device, dtype=torch.bool).tril()

        def fused(q=q, k=k, v=v, mask=mask):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True).transpose(1, 2)

        def plain(q=q, k=k, v=v, mask=mask):
            return attention._plain_attention(q, k, v, mask, None)

        off = (fused() - plain()).abs().max().item()
        times = {}
        for name, path in (("fused", fused), ("plain", plain)):
            times[name] = timed(lambda path=path: path().sum().backward(), device)
        text = f"fused {1e3 * times['fused']:.2f} ms, plain {1e3 * times['plain']:.2f} ms, off by {off:.1e}"
        yield (
            f"attention, {rows} rows of {length}, bf16",
            text,
            "fused is used on CUDA",
            times["fused"] < times["plain"],
        )


def chunks(device: str) -> Iterator[Row]:
    """Log-probs and entropy with gradient, 4096 tokens over Qwen2.5's vocabulary, by logits held at a time."""
    draws = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(4096, 896, device=device, dtype=torch.bfloat16, generator=draws).requires_grad_()
    head = torch.randn(151_936, 896, device=device, dtype=torch.bfloat16, generator=draws) / 30
    tokens = torch.randint(0, 151_936, (4096,), device=device, generator=draws)
    for power in (24, 26, 28):

        def work(power=power):
            log_probs, entropy = token_log_probs(hidden, tokens, head, chunk_elements=2**power)
            (log_probs.sum() + 0.1 * entropy.sum()).backward()

        on_gpu = device == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds = timed(work, device, times=4)
        peak = f", peak {torch.cuda.max_memory_allocated() / GIB:.2f} GiB" if on_gpu else ""
        text = f"{1e3 * seconds:.1f} ms{peak}"
        yield f"log-probs of 4096 tokens, 2^{power} logits at a time", text, "", True


# --- language models of random weights ------------------------------------------------------------------------------


def language_model(size: str, place: Path, device: str) -> Iterator[Row]:
    """A Qwen2.5 of random weights, NF4 and LoRA: memory against the plan, tokens a second, share of the card's rate,
    and how often the host waits for it."""
    config = model_config(size, place, device)
    started = time.perf_counter()
    trainer = trainer_of(config)
    yield f"{size}: loading, quantising, probing", f"{time.perf_counter() - started:.1f} s", "", True
    policy = trainer.policy
    yield f"{size}: way of its log-probs", str(policy.path), FAST, str(policy.path) == FAST
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    steps = trainer.steps()
    first = list(itertools.islice(steps, config.updates_per_iteration))
    prompt = max(len(p) for p in first[0].rollouts.prompt_ids)
    plan, peak = plan_memory(config, prompt, device), torch.cuda.max_memory_allocated()
    # The plan is of what training needs. Where there is room, sampling also keeps the dequantised weights.
    kept = lora.dense_bytes(policy.model) if policy._has_room_for_dense_weights() else 0
    planned = sum(plan.stays.values()) - RUNTIME[device]
    planned += max(sum(plan.sampling.values()) + kept, sum(plan.update.values()))
    text = f"planned {planned / GIB:.2f}, measured {peak / GIB:.2f} GiB: {planned / peak:.2f}; prompt {prompt} tokens"
    yield f"{size}: memory", text, "within 15 %", abs(planned / peak - 1) < 0.15
    yield from speed(size, trainer, steps)
    yield from waits(size, trainer, steps)
    yield from device_share(size, trainer)


def speed(size: str, trainer: _Trainer, steps: Iterator) -> Iterator[Row]:
    made = []

    def iteration() -> None:
        made[:] = itertools.islice(steps, trainer.config.updates_per_iteration)

    sample, batch = trainer.sample, trainer.sample()
    sampling = timed(sample, "cuda", times=1, warm=0)
    trainer.sample = lambda: batch
    update = timed(iteration, "cuda", times=1, warm=0)
    tokens = sum(int(step.rollouts.response_mask.sum()) for step in made)
    yield f"{size}: sampling", f"{tokens / sampling:.0f} tokens/s, {PROMPTS * GROUP} at a time", "", True
    yield f"{size}: update", f"{tokens / update:.0f} response tokens/s", "", True
    with FlopCounterMode(display=False) as counter:  # all products: both passes, scoring, adapter, attention, head
        iteration()
    trainer.sample = sample
    done, rate = counter.get_total_flops(), matmul_rate()
    text = f"{done / update / 1e12:.0f} of {rate / 1e12:.0f} TFLOP/s: {done / update / rate:.0%}"
    yield f"{size}: share of the bf16 matmul rate, update", text, "40 %", done / update / rate >= 0.4


def waits(size: str, trainer: _Trainer, steps) -> Iterator[Row]:
    """How often the host waits for the device, by place."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            batch = trainer.sample()
            sampled = len(seen)
            trainer.sample = lambda: batch
            passes = []
            hook = trainer.policy.causal_lm.get_decoder().register_forward_hook(lambda *_: passes.append(1))
            list(itertools.islice(steps, trainer.config.updates_per_iteration))
            hook.remove()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    width = batch.rollouts.response_mask.shape[1]
    parts = (
        ("sampling, a token", seen[:sampled], width, 1.5),
        ("update, a forward pass", seen[sampled:], len(passes), 6),
    )
    for name, found, per, wanted in parts:
        places = collections.Counter(f"{Path(w.filename).name}:{w.lineno}" for w in found)
        worst = ", ".join(f"{place} {count / per:.1f}" for place, count in places.most_common(6))
        print(f"    {name}: {worst}")
        yield (
            f"{size}: waits for the device, {name}",
            f"{len(found) / per:.1f}",
            f"{wanted:g}",
            len(found) / per <= wanted,
        )


def device_share(size: str, trainer: _Trainer) -> Iterator[Row]:
    """Which share of the time the device works, and at what, in sampling 8 tokens and in scoring them with a
    gradient: the rest is the host's, which launches the work."""
    policy, problems = trainer.policy, trainer.next_problems(PROMPTS)
    generator = torch.Generator(policy.device).manual_seed(0)
    rollouts = None

    def sampled():
        nonlocal rollouts
        prompts = [p.prompt for p in problems]
        rollouts = sample_groups(policy, prompts, GROUP, max_response_tokens=8, generator=generator)

    def scored():
        response_log_probs(policy, rollouts)[0].sum().backward()

    for name, work in (("sampling", sampled), ("scoring with a gradient", scored)):
        seconds = timed(work, "cuda", times=2)
        kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=kinds) as profile:
            work()
            torch.cuda.synchronize()
        kernels = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        busy = sum(e.time_range.elapsed_us() for e in kernels) / 1e6
        by_name: dict[str, float] = collections.Counter()
        for e in kernels:
            by_name[e.name[:60]] += e.time_range.elapsed_us() / 1e6
        for kernel, spent in by_name.most_common(8):
            print(f"    {name}: {spent / busy:5.1%} {kernel}")
        text = f"{busy / seconds:.0%} of {1e3 * seconds:.0f} ms, {len(kernels)} kernels"
        yield f"{size}: the device works, {name}", text, "", True


def compiled(size: str, place: Path, device: str) -> Iterator[Row]:
    """Seconds of an update, decoder layers compiled or not."""
    config = model_config(size, place, device)
    seconds = {}
    for compile in (False, True):
        trainer = trainer_of(TrainConfig(**{**vars(config), "compile": compile}))
        batch = trainer.sample()
        trainer.sample = lambda batch=batch: batch
        steps = trainer.steps()
        started = time.perf_counter()
        list(itertools.islice(steps, config.updates_per_iteration))
        torch.cuda.synchronize()
        warm = time.perf_counter() - started
        started = time.perf_counter()
        list(itertools.islice(steps, config.updates_per_iteration))
        torch.cuda.synchronize()
        seconds[compile] = time.perf_counter() - started, warm
        del trainer, steps
    text = f"{seconds[True][0]:.2f} s against {seconds[False][0]:.2f}; the first {seconds[True][1]:.0f} s"
    yield (
        f"{size}: {config.updates_per_iteration} updates, compiled",
        text,
        "not slower",
        seconds[True][0] <= seconds[False][0],
    )


def model_config(size: str, place: Path, device: str) -> TrainConfig:
    """A configuration whose policy is a Qwen2.5 of that size, random weights, with a tokenizer of characters."""
    layers, width, mlp, queries, keys, vocabulary, tied = KNOWN[f"Qwen/Qwen2.5-{size}"]
    head = 64 if size == "0.5B" else 128
    config = transformers.Qwen2Config(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers,
        num_attention_heads=queries // head, num_key_value_heads=keys // head, tie_word_embeddings=tied,
        max_position_embeddings=4096, dtype="bfloat16",
    )  # fmt: skip
    with torch.device(device):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(place)
    del model
    load_tokenizer("countdown").save_pretrained(place)
    return TrainConfig(
        policy=str(place), task="addition", template="none", shots=12, base="nf4", device=device, steps=10**6,
        prompts_per_iteration=PROMPTS, group_size=GROUP, updates_per_iteration=2, micro_batch=SIZES[size],
        max_response_tokens=RESPONSE, eval_every=0, record_every=0, control=KLCov(fraction=0.02),
    )  # fmt: skip


def trainer_of(config: TrainConfig) -> _Trainer:
    """A trainer whose advantages are drawn at random: random answers earn nothing, and would give no gradient."""
    task = load_task(config.task)
    trainer = _Trainer(config, task, configured_policy(config, task))
    sample = trainer.sample

    def with_advantages() -> Batch:
        batch = sample()
        return replace(batch, advantages=torch.randn_like(batch.advantages))

    trainer.sample = with_advantages
    return trainer


def matmul_rate(size: int = 8192) -> float:
    """FLOP/s of a square product in bf16."""
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    return 2 * size**3 / timed(lambda: a @ a, "cuda")


def timed(work: Callable[[], object], device: str, times: int = 10, warm: int = 2) -> float:
    """Seconds of one call, the median of some after a few for warmth."""
    seconds = []
    for _ in range(times + warm):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[warm:])


if __name__ == "__main__":
    main()
