"""A model's own head: logits of hidden states by the model's own code.

Many families scale the logits (Granite, Cohere), cap them (Gemma 2), or add a bias (Phi, GPT-J), so hidden @ W.T is not
the model's output. This runs the model's own `forward` with its decoder replaced by one that returns given hidden
states, so no head is written a second time.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from erltool.errors import ErltoolError


class OwnHead:
    """Logits (N, V) of hidden states (N, D), by the model's own code after the decoder, its module `name`."""

    def __init__(self, model: PreTrainedModel, name: str):
        self.name = name
        self._shell = _without(model, name.split("."))
        self.vocabulary = weight_of(model.get_output_embeddings()).shape[0]

    def __call__(self, hidden: Tensor) -> Tensor:
        return self._shell(inputs_embeds=hidden[None], use_cache=False).logits[0]

    @property
    def requires_grad(self) -> bool:
        return any(p.requires_grad for p in self._shell.parameters())

    def clone(self) -> "OwnHead":
        """A copy that does not change when the model trains."""
        twin = copy.copy(self)
        twin._shell = copy.deepcopy(self._shell)
        return twin


def weight_of(layer: torch.nn.Module) -> Tensor:
    """A linear layer's or an embedding's weight; type checkers know only that it is some attribute."""
    assert isinstance(layer.weight, Tensor)
    return layer.weight


@torch.no_grad()
def find_head(model: PreTrainedModel, ids: Tensor) -> OwnHead:
    """The head that, behind a decoder inside the model, gives the model's own logits of `ids` (1, L). Raises
    ErltoolError where there is none, so that the model cannot be a policy, and where logits are not finite."""
    outputs: dict[str, Any] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda *call, name=name: outputs.update({name: call[-1]}))
        for name in _decoders(model)
    ]
    try:
        logits = model(ids, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    if not torch.isfinite(logits).all():
        raise ErltoolError("its logits are not finite: its weights or its config.json are damaged; restore them")
    for name, output in outputs.items():
        with contextlib.suppress(Exception):  # the model's own code refuses the output of what is not its decoder
            head = OwnHead(model, name)
            if torch.equal(head(output.last_hidden_state[0]), logits[0]):
                return head
    raise ErltoolError("its logits are not a function of its decoder's last hidden state; use another model")


def is_linear(head: OwnHead, model: PreTrainedModel) -> bool:
    """Whether the head is only hidden @ weight.T. Looks at its module, and compares logits on random hidden states,
    some so large that a cap would cut them."""
    layer = model.get_output_embeddings()
    if not isinstance(layer, torch.nn.Linear) or layer.bias is not None:
        return False
    weight = layer.weight
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, weight.shape[1], generator=generator).to(weight.device, weight.dtype)
    rows = rows * torch.tensor([[0.1], [1.0], [10.0], [1000.0]]).to(rows)
    ours, own = (rows @ weight.T).float(), head(rows).float()
    return bool(((ours - own).abs() <= 16 * torch.finfo(weight.dtype).eps * ours.abs().amax(-1, keepdim=True)).all())


def _decoders(model: PreTrainedModel) -> Iterator[str]:
    """Names of the modules that hold the embedding of the tokens, and so may be the decoder, the largest first."""
    embedding = model.get_input_embeddings()
    path = next(name for name, module in model.named_modules() if module is embedding).split(".")
    return (".".join(path[:n]) for n in range(1, len(path)))


def _without(model: torch.nn.Module, path: list[str]) -> torch.nn.Module:
    """A shallow copy of the model, sharing its parameters, with a `_PassThrough` for the decoder at the path."""
    twin = copy.copy(model)
    twin._modules = dict(model._modules)
    vars(twin).pop("forward", None)  # a hook's, which would call the model itself
    name, *rest = path
    child = model.get_submodule(name)
    twin._modules[name] = _without(child, rest) if rest else _PassThrough(child)
    return twin


class _PassThrough(torch.nn.Module):
    """Takes a decoder's place: returns its `inputs_embeds` as the hidden states; has the decoder's settings."""

    def __init__(self, decoder: torch.nn.Module):
        super().__init__()
        vars(self)["decoder"] = decoder  # not registered as a submodule: its parameters are not the head's

    def forward(self, *args, inputs_embeds=None, **kwargs):
        return _Output(inputs_embeds)

    def __getattr__(self, name: str):
        return getattr(vars(self)["decoder"], name)

    def __deepcopy__(self, memo):
        return self


class _Output:
    """A decoder's output under every name that a head's code may use; every other attribute is None."""

    def __init__(self, hidden: Tensor):
        self.last_hidden_state = hidden

    def __getitem__(self, index):
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return None
