"""A job of verl on the CPU, for tests: verl's own worker class, FSDP engine, mini- and micro-batches and losses, around
a model of one table. Only what needs a GPU or Ray is left out: the wrapping of the model and the worker's start."""

import os
from functools import partial
from types import SimpleNamespace

import torch
import torch.distributed as dist
from tensordict import TensorDict
from verl.utils import seqlen_balancing
from verl.utils import tensordict_utils as tu
from verl.utils.profiler import DistProfiler
from verl.workers import engine_workers
from verl.workers.config import FSDPActorConfig, FSDPEngineConfig, PolicyLossConfig
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import left_right_2_no_padding

VOCABULARY, PROMPT = 11, 2


class Table(torch.nn.Module):
    """Logits of the next token by the last one; called as verl calls a model."""

    def __init__(self, seed=0):
        super().__init__()
        start = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed))
        self.table = torch.nn.Parameter(start)

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=False):
        return SimpleNamespace(logits=self.table[input_ids])


class Engine(transformer_impl.FSDPEngineWithLMHead):
    """verl's FSDP engine, around a model that is not wrapped."""

    def __init__(self, learning_rate=0.5):
        model = SimpleNamespace(use_remove_padding=False, lora_rank=0, model_type="language_model")
        settings = FSDPEngineConfig(strategy="fsdp", use_torch_compile=False, micro_batch_size_per_gpu=2)
        super().__init__(model, settings, SimpleNamespace(clip_grad=1e9), None)
        self._autocast_dtype = torch.float32
        self.module = Table()
        self.optimizer = torch.optim.SGD(self.module.parameters(), learning_rate)
        self.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(self.optimizer, 1.0)
        self.gradients = []

    def optimizer_step(self):
        gradient = self.module.table.grad
        if self.get_data_parallel_size() > 1:  # FSDP averages the gradients of the ranks
            dist.all_reduce(gradient)
            gradient /= self.get_data_parallel_size()
        self.gradients.append(gradient.clone())
        return super().optimizer_step()


def start(rank=0, ranks=1, port="29533"):
    """The process group that verl's engine needs, and the CPU where verl asks for the device."""
    for module in (transformer_impl, engine_workers, seqlen_balancing):
        module.get_device_id = module.get_device_name = lambda: "cpu"
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)


def actor_config(loss_mode, **settings):
    """verl's configuration of an actor with this loss; settings of the policy loss among `settings`."""
    of_loss = {k: settings.pop(k) for k in list(settings) if k in PolicyLossConfig.__dataclass_fields__}
    given = {"strategy": "fsdp", "rollout_n": 4, "ppo_micro_batch_size_per_gpu": 1, "use_torch_compile": False}
    return FSDPActorConfig(**given, policy_loss=PolicyLossConfig(loss_mode=loss_mode, **of_loss), **settings)


def update(responses=8, width=6, seed=1, moved=0.4, nested=False):
    """An update's data as verl's trainer hands it to its workers: padded tensors, made nested by verl, or all nested.
    The old log-probs are the model's, moved by noise of this size, as if the policy had moved since."""
    draws = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (responses,), generator=draws)
    lengths[0] = width
    mask = torch.arange(width) < lengths[:, None]
    ids = torch.randint(VOCABULARY, (responses, PROMPT + width), generator=draws)
    attention = torch.cat([torch.ones(responses, PROMPT, dtype=torch.bool), mask], 1)
    log_probs = Table().table.detach().log_softmax(-1)[ids[:, PROMPT - 1 : -1], ids[:, PROMPT:]]
    noise = moved * torch.randn(responses, width, generator=draws)
    advantages = torch.randn(responses, generator=draws)[:, None].expand(responses, width)
    columns = {
        "input_ids": ids, "attention_mask": attention.long(), "position_ids": attention.long().cumsum(-1) - 1,
        "prompts": ids[:, :PROMPT], "responses": ids[:, PROMPT:], "response_mask": mask.long(),
        "old_log_probs": (log_probs - noise) * mask, "advantages": advantages * mask,
    }  # fmt: skip
    data = left_right_2_no_padding(TensorDict(columns, batch_size=[responses]))
    if nested:
        for name in ("responses", "old_log_probs", "advantages", "loss_mask", "response_mask"):
            data[name] = jagged(data[name], lengths)
        data["prompts"] = jagged(data["prompts"], torch.full((responses,), PROMPT))
        del data["attention_mask"], data["max_response_len"]
    return data


def jagged(padded, lengths):
    rows = [row[:n] for row, n in zip(padded, lengths.tolist(), strict=True)]
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def settings_of(data, micro_batch, ranks=1, packed=False):
    """The same with what verl's trainer and worker say beside the tensors. A packed micro-batch is filled by tokens."""
    tu.assign_non_tensor(
        data, temperature=1.0, calculate_entropy=False, global_batch_size=len(data) * ranks, compute_loss=True,
        use_dynamic_bsz=packed, micro_batch_size_per_gpu=micro_batch, use_remove_padding=False,
    )  # fmt: skip
    return data


def loss_of(config):
    """The actor's loss function, as verl's worker makes it."""
    return partial(ppo_loss, config=config)


def train_mini_batch(loss_mode, micro_batch):
    """Two updates of 4 responses by verl's worker; the gradient of each, and the metrics."""
    from erltool.engines.verl_losses import ControlledWorker

    worker = object.__new__(ControlledWorker)  # without Ray
    worker.engine, worker.device_name, worker.flops_counter = Engine(), "cpu", None
    worker.model_config = {"use_remove_padding": False}
    worker.engine_config = FSDPEngineConfig(
        strategy="fsdp", use_dynamic_bsz=False, micro_batch_size_per_gpu=micro_batch, use_torch_compile=False
    )
    worker.profiler = DistProfiler(rank=0)
    worker.set_loss_fn(loss_of(actor_config(loss_mode)))
    data = update(moved=0.0)
    tu.assign_non_tensor(
        data, temperature=1.0, calculate_entropy=False, global_batch_size=4, mini_batch_size=4, epochs=1, seed=42,
        dataloader_kwargs={"shuffle": False}, compute_loss=True,
    )  # fmt: skip
    output = worker.train_mini_batch(data)
    return worker.engine.gradients, tu.get(output, "metrics")


def of_rank(rank, folder):
    """One of two ranks: half of the responses, of other widths; writes the gradient of the update."""
    from erltool.engines.verl_losses import ControlledWorker

    start(rank, 2, "29534")
    whole = update(nested=True, seed=2)  # the widths of its halves are 6 and 4
    data = tu.chunk_tensordict(whole, 2)[rank]
    worker = object.__new__(ControlledWorker)
    worker.engine = Engine()
    worker.set_loss_fn(loss_of(actor_config("erltool:kl-cov:fraction=0.2,coef=0.7+entropy-bonus:below=9.0")))
    with worker.engine.train_mode():
        worker.engine.train_batch(settings_of(data, 2, ranks=2), worker.loss_fn)
    torch.save(worker.engine.gradients[0], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    import sys

    of_rank(int(sys.argv[1]), sys.argv[2])
