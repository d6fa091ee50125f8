"""Seconds per GRPO iteration: erltool's trainer against TRL's GRPOTrainer.

`LoRA` and `full`: one iteration is 64 prompts x 8 responses of at most 12 tokens (EOS included), then 4 optimiser
updates of 128 responses each, on the policy `countdown` in fp32, with LoRA on all linear layers (rank 16) and with all
weights training. `SmolLM2`: 8 prompts x 8 responses of at most 16 tokens, then 2 updates of 32, on SmolLM2-135M in
bf16 (fp32 where the CPU only emulates bf16) with LoRA of rank 16; sums of one or two digits behind two worked examples.
Both have the same weights, prompts in the same order, verifier, loss (clipped surrogate over the update's tokens, no
KL), learning rate, AdamW (fused), type and threads; as many parameters train in both.

TRL runs as fast as it can be set here: no gradient checkpointing (on by default; 18% slower), no reference model,
nothing logged, saved or reported. Its static cache is no faster than the dynamic one, continuous batching is 6
times slower on a CPU; vLLM, Liger and hub kernels need a GPU. TRL scores all responses again before the first
update, because several updates follow one generation; it offers no switch for that.

The two alternate iteration by iteration in one process: ours runs inside TRL's `on_step_end`, with TRL's clock
stopped. After 2 warm-up iterations the median and the best of each are reported; the ratio is that of the medians.
Lengths (tokens with EOS), norms of the weights' change, and rewards at the start and the end show that both do
the same work and learn. On a busy machine the threads wait for one another, and no figure means much.

Beside the ratio: tokens sampled per second by `sample_groups` alone, and the share of the machine's own
matrix rate in that type (2048^3 torch.mm in this process, once after every iteration, median) that the updates
reach. FLOPs counted are those of the linear layers, P parameters without the adapter's: 2 P a token of each forward
pass, and for each that has a gradient 2 P with LoRA (gradient of inputs) and 4 P without (also of weights); for the
decoder's layers alone, and with the head's, which only response tokens pass. Only work that is done counts: a group
whose rewards are all equal has no gradient, equal responses are read once, a prompt once per group, and what all
prompts begin with once per pass. A response's last token predicts nothing. Attention, norms, adapter and optimiser are
not counted, nor are padding and what is computed twice to save memory, so the shares are lower bounds.

    python tests/benchmarks/training_vs_trl.py [iterations] [LoRA] [full] [SmolLM2] [SmolLM2-compiled]

A first case is only as quiet as the machine. `SmolLM2-compiled` compiles decoder layers in ours (compile=True), which
costs a minute of warm-up and nothing else.
"""

import itertools
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from typing import NamedTuple
from unittest import mock

import torch
import transformers
from datasets import Dataset

from erltool import TrainConfig, load_task, sample_groups
from erltool.policies import rollouts
from erltool.policies.load import cpu_has_bf16
from erltool.policies.sources import find_model
from erltool.training.loop import _Trainer
from erltool.training.start import configured_policy

GROUP, RANK, ALPHA, SEED, WARM_UP = 8, 16, 32.0, 0, 2


@dataclass(frozen=True)
class Case:
    """What both trainers are given."""

    policy: str = "countdown"
    task: str = "countdown"
    shots: int = 0
    dtype: str = "fp32"
    prompts: int = 64
    updates: int = 4
    tokens: int = 12
    rank: int = RANK
    rate: float = 2e-3
    compile: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        return torch.float32 if self.dtype == "fp32" else torch.bfloat16


FAST = "bf16" if cpu_has_bf16() else "fp32"
SMOLLM2 = Case("smollm2-135m", "addition:20", 2, FAST, prompts=8, updates=2, tokens=16, rate=3e-4)
CASES = {
    "LoRA": Case(),
    "full": Case(rank=0, rate=3e-4),
    "SmolLM2": SMOLLM2,
    "SmolLM2-compiled": replace(SMOLLM2, compile=True),
}


class Pass(NamedTuple):
    """A forward pass, and its backward pass if there is one."""

    tokens: int
    predicted: int  # response tokens, which pass the head
    products: int  # FLOPs for each token and weight


class Ours:
    """erltool's trainer, an iteration at a time."""

    def __init__(self, case: Case):
        self.case, self.task = case, load_task(case.task)
        config = TrainConfig(
            policy=case.policy,
            task=case.task,
            shots=case.shots,
            dtype=case.dtype,
            steps=10**9,
            seed=SEED,
            prompts_per_iteration=case.prompts,
            group_size=GROUP,
            updates_per_iteration=case.updates,
            learning_rate=case.rate,
            lora_rank=case.rank,
            lora_alpha=ALPHA,
            max_response_tokens=case.tokens,
            compile=case.compile,
            eval_every=0,
            device="cpu",
        )
        self.policy = configured_policy(config, self.task)
        self.trainer = _Trainer(config, self.task, self.policy)
        self.steps = self.trainer.steps()
        linear = [m for m in self.policy.causal_lm.get_decoder().modules() if isinstance(m, torch.nn.Linear)]
        adapter = sum(p.numel() for p in self.policy.trainable().values()) if case.rank else 0
        self.parameters = sum(m.weight.numel() for m in linear) - adapter
        self.seconds, self.update_seconds, self.update_rates, self.head_rates = [], [], [], []
        self.lengths, self.rewards, self.sampling_rates = [], [], []
        self.sampling_seconds = 0.0
        sample = self.trainer.sample

        def timed_sample():
            started = time.perf_counter()
            result = sample()
            self.sampling_seconds = time.perf_counter() - started
            return result

        self.trainer.sample = timed_sample
        self.passes, self.pack = [], rollouts.pack

    def problems(self, count: int):
        """The training problems in the order in which the trainer takes them."""
        found = self.trainer.next_problems(count)
        self.trainer.position = 0
        return found

    def iteration(self) -> None:
        started = time.perf_counter()
        steps = list(itertools.islice(self.steps, self.case.updates))
        self.seconds.append(time.perf_counter() - started)
        self.update_seconds.append(self.seconds[-1] - self.sampling_seconds)
        responses = sum(s.metrics["response_tokens"] for s in steps)
        layers = self.parameters * sum(done.products * done.tokens for done in self.passes)
        head = self.policy.head.numel() * sum(done.products * done.predicted for done in self.passes)
        self.passes.clear()
        self.update_rates.append(layers / self.update_seconds[-1])
        self.head_rates.append(head / self.update_seconds[-1])
        self.lengths.append(responses / (self.case.prompts * GROUP))
        self.rewards.append(statistics.mean(s.metrics["reward"] for s in steps))

    def note_pass(self, part, *settings):
        """Packs responses for a forward pass, and notes its work."""
        common = rollouts.common_beginning(part.prompt_ids)
        prompts = common + sum(len(ids) - common for ids, _ in itertools.groupby(part.prompt_ids))
        predicted, backward = sum(map(len, part.response_ids)), 2 if self.case.rank else 4
        products = 2 + backward * torch.is_grad_enabled()
        self.passes.append(Pass(prompts + predicted - len(part), predicted, products))
        return self.pack(part, *settings)

    def sample(self) -> None:
        """Times sampling alone, on problems of its own."""
        generator = torch.Generator().manual_seed(SEED)
        prompts = [p.prompt for p in self.task.held_out[: self.case.prompts]]
        started = time.perf_counter()
        sampled = sample_groups(self.policy, prompts, GROUP, max_response_tokens=self.case.tokens, generator=generator)
        self.sampling_rates.append(int(sampled.response_mask.sum()) / (time.perf_counter() - started))


class Alternation(transformers.TrainerCallback):
    """Times TRL's iterations, and runs one of ours after each of them."""

    def __init__(self, ours: Ours, matmul_rates: list[float]):
        self.ours, self.matmul_rates = ours, matmul_rates
        self.seconds = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.ours.case.updates:
            return
        self.seconds.append(time.perf_counter() - self.started)
        self.ours.iteration()
        self.ours.sample()
        self.matmul_rates.append(matmul_rate(self.ours.case.torch_dtype))
        self.started = time.perf_counter()


def matmul_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """FLOPs per second of one matrix product."""
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    started = time.perf_counter()
    torch.mm(a, b)
    return 2 * size**3 / (time.perf_counter() - started)


class Verifier:
    """erltool's verifier as a reward function of TRL's, which also notes lengths and rewards."""

    __name__ = "verifier"

    def __init__(self, ours: Ours, problems):
        self.task = ours.task
        self.problems = {ours.policy.template.render(p.prompt, ours.policy.tokenizer): p for p in problems}
        self.lengths, self.rewards = [], []

    def __call__(self, prompts, completions, completion_ids, **kwargs):
        rewards = [self.task.reward(self.problems[p], c) for p, c in zip(prompts, completions, strict=True)]
        self.lengths.append(statistics.mean(map(len, completion_ids)))
        self.rewards.append(statistics.mean(rewards))
        return rewards


def trl_trainer(case: Case, iterations: int, prompts: list[str], verifier, folder: str):
    """A GRPOTrainer."""
    from peft import LoraConfig  # after erltool, which silences a warning that this import gives
    from trl import GRPOConfig, GRPOTrainer

    place = find_model(case.policy)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place, padding_side="left")
    model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=case.torch_dtype, attn_implementation="sdpa")
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    settings = {
        "output_dir": folder,
        "max_steps": case.updates * iterations,
        "per_device_train_batch_size": case.prompts * GROUP // case.updates,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": case.updates,
        "num_generations": GROUP,
        "num_iterations": 1,
        "max_completion_length": case.tokens,
        "temperature": 1.0,
        "beta": 0.0,
        "loss_type": "dapo",  # one normaliser for all tokens of the update, as ours
        "learning_rate": case.rate,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "shuffle_dataset": False,
        "seed": SEED,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=verifier,
        args=GRPOConfig(**settings),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        peft_config=lora if case.rank else None,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def compare(name: str, iterations: int) -> None:
    case = CASES[name]
    ours, rates = Ours(case), []
    problems = ours.problems(case.prompts * (WARM_UP + iterations))
    verifier = Verifier(ours, problems)
    prompts = [ours.policy.template.render(p.prompt, ours.policy.tokenizer) for p in problems]
    clock = Alternation(ours, rates)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl_trainer(case, WARM_UP + iterations, prompts, verifier, folder)
        theirs_train = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
        ours_train = ours.policy.trainable()
        assert count(theirs_train) == count(ours_train), "not the same parameters train"
        starts = copies(theirs_train), copies(ours_train)
        trainer.add_callback(clock)
        with mock.patch.object(rollouts, "pack", ours.note_pass):
            trainer.train()
    print_row(name, "TRL", clock.seconds, verifier, distance(starts[0], theirs_train))
    print_row(name, "erltool", ours.seconds, ours, distance(starts[1], ours_train), ratio(clock.seconds, ours.seconds))
    layers, matmul = late_median(ours.update_rates), late_median(rates)
    whole = late_median([a + b for a, b in zip(ours.update_rates, ours.head_rates, strict=True)])
    print(f"  sampling alone {late_median(ours.sampling_rates):.0f} response tokens/s; ", end="")
    print(f"updates {late_median(ours.update_seconds):.3f} s of the iteration,")
    print(f"  {whole / 1e9:.1f} GFLOP/s, {whole / matmul:.1%} of torch.mm's {matmul / 1e9:.0f} GFLOP/s ", end="")
    print(f"({layers / matmul:.1%} in the decoder's layers)")


def print_row(case: str, name: str, seconds: list[float], seen, moved: float, faster: float | None = None) -> None:
    """`seen` has lengths and rewards, one of each an iteration."""
    ends = statistics.mean(seen.rewards[:3]), statistics.mean(seen.rewards[-3:])
    length = statistics.mean(seen.lengths[WARM_UP:])
    times = f"{late_median(seconds):9.3f}{min(seconds[WARM_UP:]):9.3f}"
    print(f"{case:<17}{name:<8}{times}{length:8.2f}{moved:8.2f}{ends[0]:9.3f}{ends[1]:9.3f}", end="")
    print("" if faster is None else f"{faster:9.2f}x", flush=True)


def late_median(values: list[float]) -> float:
    return statistics.median(values[WARM_UP:])


def ratio(theirs: list[float], ours: list[float]) -> float:
    return late_median(theirs) / late_median(ours)


def count(parameters: dict) -> int:
    return sum(p.numel() for p in parameters.values())


def copies(parameters: dict) -> dict:
    return {name: p.detach().clone() for name, p in parameters.items()}


def distance(before: dict, after: dict) -> float:
    """Norm of the change of what trains: above 0, or nothing was trained."""
    return float(sum((after[n].detach() - p).square().sum() for n, p in before.items()).sqrt())


def main() -> None:
    iterations = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(f"{iterations} iterations each, {torch.get_num_threads()} threads, seconds per iteration; ", end="")
    print(f"load average {os.getloadavg()[0]:.1f}")
    print(f"{'':25}{'median':>9}{'best':>9}{'length':>8}{'moved':>8}{'reward':>9}{'at end':>9}{'TRL/ours':>10}")
    for name in sys.argv[2:] or ("LoRA", "full"):
        compare(name, iterations)


if __name__ == "__main__":
    main()
