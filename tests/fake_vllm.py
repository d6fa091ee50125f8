"""A module `vllm` for tests on a CPU: the calls of vLLM 0.28 to 0.33 that erltool makes, with their signatures.

Its model is transformers' own with weights that mean nothing, until it is given some. It samples from logits that are
off by up to `NOISE`, as another program's are. Asleep it has no weights: they are NaN.
"""

import importlib.machinery
import types
from dataclasses import dataclass, field

import torch
from transformers import AutoConfig, AutoModelForCausalLM

NOISE = 0.02  # nats
TAGS = {"weights", "kv_cache"}


@dataclass(kw_only=True)
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    logprobs: int | None = None
    detokenize: bool = True

    def __post_init__(self):
        if self.temperature > 2:
            raise ValueError(f"temperature must be in [0, 2], got {self.temperature}.\nA second line.")


@dataclass
class Logprob:
    logprob: float


@dataclass
class CompletionOutput:
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]]
    finish_reason: str


@dataclass
class RequestOutput:
    outputs: list[CompletionOutput]


@dataclass
class LLM:
    """Records what it was asked: `generate` calls `watch` with itself first."""

    model: str
    tokenizer: str | None = field(default=None, kw_only=True)
    dtype: str = field(default="auto", kw_only=True)
    load_format: str = field(default="auto", kw_only=True)
    generation_config: str = field(default="auto", kw_only=True)
    max_model_len: int | None = field(default=None, kw_only=True)
    max_num_seqs: int | None = field(default=None, kw_only=True)
    gpu_memory_utilization: float = field(default=0.92, kw_only=True)
    enable_sleep_mode: bool = field(default=False, kw_only=True)
    logprobs_mode: str = field(default="raw_logprobs", kw_only=True)
    seed: int = field(default=0, kw_only=True)

    made = []  # all engines  # noqa: RUF012
    watch = staticmethod(lambda llm: None)
    cuts_short = forgets = False  # faults to test with

    def __post_init__(self):
        assert self.load_format == "dummy" and self.generation_config == "vllm" and self.enable_sleep_mode
        config = AutoConfig.from_pretrained(self.model)
        self.config, self.asleep, self.fresh, self.calls = config, set(), False, []
        with torch.random.fork_rng():
            torch.manual_seed(99)
            self.net = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, self.dtype)).eval()
        self.net.load_weights = self._load
        LLM.made.append(self)

    def _load(self, weights) -> set[str]:
        own, loaded = dict(self.net.named_parameters()), set()
        for name, weight in weights:
            if not (self.forgets and "norm" in name):
                own[name].data.copy_(weight)
                loaded.add(name)
        return loaded

    def apply_model(self, func):
        assert "weights" not in self.asleep
        return [func(self.net)]

    def sleep(self, level: int = 1, mode: str = "abort"):
        assert level == 2
        self.asleep, self.fresh = set(TAGS), False
        for p in self.net.parameters():
            p.data.fill_(torch.nan)

    def wake_up(self, tags: list[str] | None = None):
        self.asleep -= TAGS if tags is None else set(tags)

    def reset_prefix_cache(self) -> bool:
        self.fresh = True
        return True

    @torch.no_grad()
    def generate(self, prompts, sampling_params=None, *, use_tqdm=True):
        assert not self.asleep and self.fresh and not use_tqdm and len(prompts) == len(sampling_params)
        LLM.watch(self)
        self.calls.append(sampling_params)
        return [self._one(p["prompt_token_ids"], s) for p, s in zip(prompts, sampling_params, strict=True)]

    def _one(self, prompt: list[int], s: SamplingParams) -> RequestOutput:
        assert s.ignore_eos and not s.detokenize and s.logprobs == 0 and s.n == 1
        draws = torch.Generator().manual_seed(torch.seed() if s.seed is None else s.seed)
        tokens: list[int] = []
        log_probs: list[dict[int, Logprob]] = []
        while len(tokens) < s.max_tokens:
            z = self.net(torch.tensor([prompt + tokens])).logits[0, -1].float()
            z = z + NOISE * torch.sin(torch.arange(len(z)) + len(tokens))
            p = torch.softmax(z / (s.temperature or 1.0), -1)
            known = torch.log_softmax(z, -1) if self.logprobs_mode == "raw_logprobs" else p.log()
            if s.top_p < 1:
                ordered, order = p.sort(descending=True)
                p = torch.zeros_like(p).scatter_(-1, order, ordered * (ordered.cumsum(-1) - ordered < s.top_p))
            token = int(torch.multinomial(p, 1, generator=draws)) if s.temperature else int(z.argmax())
            tokens.append(token)
            log_probs.append({token: Logprob(float(known[token]))})
            if token in s.stop_token_ids or self.cuts_short:
                break
        reason = "stop" if tokens[-1] in s.stop_token_ids else "length"
        return RequestOutput([CompletionOutput(tokens, log_probs, reason)])


def module() -> types.ModuleType:
    """The module, to put into sys.modules."""
    vllm = types.ModuleType("vllm")
    vllm.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    vllm.LLM, vllm.SamplingParams = LLM, SamplingParams
    return vllm
