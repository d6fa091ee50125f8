"""Sampling groups of responses by vLLM, in the same process and on the same GPU. Needs the extra `vllm` (from 0.28 on).

vLLM has weights of its own. Each call gives them the policy's as they are, so that a sample is never of older weights,
and afterwards vLLM sleeps: it frees the memory of its weights and of its cache, which training then has. The engine is
made of the policy's configuration alone, so that it needs neither a file of weights nor the hub.

Its kernels differ from training's and an adapter is merged into the base's type, so its log-probs are not training's:
the metric `sampler_mismatch` says by how much, and TrainConfig.sampler_correction corrects for it. A response's seed
decides its random numbers. vLLM's rounding depends on which responses it computes together, so a run with vLLM resumes,
but not bit for bit.
"""

import contextlib
import copy
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from erltool.errors import ErltoolError
from erltool.policies.lora import merged_weights
from erltool.policies.policy import Policy
from erltool.policies.rollouts import Rollouts
from erltool.policies.sampling import encoded, rollouts_of
from erltool.policies.sources import quiet_transformers, reason_of

DEVICES = ("cuda",)  # on which vLLM samples here
KEPT = 0.9  # of the memory that is free as the engine begins, less the optimiser's; vLLM fills it with its cache
COLDEST = 0.01  # vLLM raises a lower temperature above 0 to this one


def require_vllm() -> None:
    """Raises ErltoolError where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise ErltoolError(
            "sampler=vllm: vLLM is not installed; pip install 'erltool[vllm]' (Python 3.13), or use sampler=own"
        )


class VllmSampler:
    """A policy's vLLM engine, called as `sample_groups` is. The engine is made at the first call.

    With `cut` the run's top_p is below 1. vLLM then gives log-probs of softmax(z), which are those of `sample_groups`
    at temperature 1 only; at another temperature they are 0. At most `most` responses are sampled at a time, 0 for as
    many as vLLM chooses. Raises ErltoolError where vLLM is missing and for a policy on another device than the first
    GPU.
    """

    def __init__(self, policy: Policy, cut: bool = False, most: int = 0):
        require_vllm()
        if policy.device.type not in DEVICES:
            raise ErltoolError(f"sampler=vllm: the policy is on {policy.device}, and vLLM needs CUDA; use sampler=own")
        if policy.device.index:
            raise ErltoolError(
                f"sampler=vllm: vLLM takes the first GPU, not {policy.device}; choose one by CUDA_VISIBLE_DEVICES"
            )
        self.policy, self.cut, self.most = policy, cut, most
        self._llm: Any = None

    def __call__(
        self,
        policy: Policy,
        prompts: Sequence[str | list[int]],
        group_size: int,
        *,
        max_response_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        batch: int = 0,
        generator: torch.Generator | None = None,
    ) -> Rollouts:
        """As `sample_groups`; how many responses are sampled at a time does not depend on `batch`, and each has a seed
        drawn from `generator`. Raises ErltoolError also for what vLLM refuses."""
        if policy is not self.policy:
            raise ErltoolError("sampler=vllm: the engine is another policy's; make a sampler for this one")
        if 0 < temperature < COLDEST:
            raise ErltoolError(f"temperature={temperature:g}: vLLM samples at 0 or from {COLDEST} on; use sampler=own")
        texts, prompt_ids = encoded(policy, prompts, max_response_tokens)
        rows = [ids for ids in prompt_ids for _ in range(group_size)]
        seeds = _seeds(len(rows), generator)
        with _one_line():
            from vllm import SamplingParams

            params = [
                SamplingParams(
                    temperature=temperature, top_p=top_p, seed=seed, max_tokens=max_response_tokens,
                    # Exactly the policy's ends, whatever vLLM reads of the tokenizer and the configuration.
                    ignore_eos=True, stop_token_ids=list(policy.ends), logprobs=0, detokenize=False,
                )
                for seed in seeds
            ]  # fmt: skip
            with self._awake() as llm:
                outputs = llm.generate([{"prompt_token_ids": ids} for ids in rows], params, use_tqdm=False)
        ids, log_probs = _columns(policy, [o.outputs[0] for o in outputs], max_response_tokens)
        if self.cut and temperature != 1:
            log_probs = torch.zeros_like(log_probs)
        return rollouts_of(policy, texts, prompt_ids, ids, log_probs)

    @contextlib.contextmanager
    def _awake(self) -> Iterator[Any]:
        """Inside, the engine has its memory and the policy's weights. An error leaves it awake, and ends the run."""
        if self._llm is None:
            self._llm = self._engine()
            self._llm.sleep(level=2)
        llm = self._llm
        torch.cuda.empty_cache()  # vLLM takes its memory from the device, past PyTorch's cache
        llm.wake_up(tags=["weights"])
        llm.apply_model(self._give_weights)
        llm.wake_up(tags=["kv_cache"])
        llm.reset_prefix_cache()  # keys and values of the weights before
        yield llm
        llm.sleep(level=2)  # forgets the weights, too

    def _give_weights(self, model: torch.nn.Module) -> None:
        """Loads the policy's weights into vLLM's model. Raises ErltoolError where that has others."""
        loaded = model.load_weights(merged_weights(self.policy.causal_lm))  # type: ignore[operator]
        missing = sorted({name for name, _ in model.named_parameters()} - set(loaded))
        if missing:
            raise ErltoolError(
                f"sampler=vllm: vLLM's model has weights that the policy does not give it, such as {missing[0]}; "
                "use sampler=own"
            )

    def _engine(self) -> Any:
        """A vLLM engine of the policy's architecture, with weights that mean nothing yet."""
        policy = self.policy
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # it tells of every step, and shows tracebacks
        from vllm import LLM

        config = copy.deepcopy(policy.causal_lm.config)
        vars(config).pop("quantization_config", None)  # vLLM gets dequantised weights
        config.architectures, config.dtype = [type(policy.causal_lm).__name__], policy.causal_lm.dtype
        before = os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING")
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, whose weights it gets
        try:
            with tempfile.TemporaryDirectory() as folder, quiet_transformers():
                config.save_pretrained(folder)
                policy.tokenizer.save_pretrained(folder)
                return LLM(
                    model=folder, dtype=str(config.dtype).removeprefix("torch."), load_format="dummy",
                    generation_config="vllm", max_model_len=-1, gpu_memory_utilization=_share(policy),
                    enable_sleep_mode=True, logprobs_mode="raw_logprobs" if self.cut else "processed_logprobs",
                    max_num_seqs=self.most or None,
                )  # fmt: skip
        finally:
            if before is None:
                del os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"]
            else:
                os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = before


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Inside, what vLLM raises becomes an ErltoolError of one line."""
    try:
        yield
    except ErltoolError:
        raise
    except Exception as e:  # of CUDA, of a model that vLLM does not know, of a setting that it refuses
        raise ErltoolError(f"sampler=vllm: vLLM failed: {reason_of(e)}; use sampler=own, or another vLLM") from e


def _share(policy: Policy) -> float:
    """The fraction of the GPU's memory that vLLM may take, in [0, 1]: KEPT of what is free but for Adam's moments."""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(policy.device)
    moments = 8 * sum(p.numel() for p in policy.trainable().values())
    return max(0.0, KEPT * (free - moments) / total)


def _seeds(count: int, generator: torch.Generator | None) -> list[int | None]:
    if generator is None:
        return [None] * count
    return torch.randint(2**62, (count,), generator=generator, device=generator.device).tolist()


def _columns(policy: Policy, outputs: list, max_tokens: int) -> tuple[Tensor, Tensor]:
    """Tokens and their log-probs (B, T) of vLLM's completions. Raises ErltoolError for one that neither ended nor
    reached the limit."""
    width = max(len(output.token_ids) for output in outputs)
    ids, log_probs = [], []
    for output in outputs:
        tokens = list(output.token_ids)
        if not tokens or tokens[-1] not in policy.ends and len(tokens) < max_tokens:
            raise ErltoolError(
                f"sampler=vllm: vLLM stopped a response after {len(tokens)} tokens ({output.finish_reason}); "
                "lower max_response_tokens, or use sampler=own"
            )
        ids.append(tokens + [policy.pad] * (width - len(tokens)))
        known = [position[token].logprob for position, token in zip(output.logprobs, tokens, strict=True)]
        log_probs.append(known + [0.0] * (width - len(tokens)))
    return torch.tensor(ids, device=policy.device), torch.tensor(log_probs, device=policy.device)
