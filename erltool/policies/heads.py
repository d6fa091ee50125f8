"""A model's own head: logits of hidden states by the model's own code, whatever stands behind its last product.

Many families scale the logits (Granite, Cohere), cap them (Gemma 2), or add a bias (Phi, GPT-J): for them hidden @ W.T
is not the model. Here the model's own `forward` is run with its decoder replaced by one that returns the hidden
states it is given, so the head's code is never written a second time.
"""

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from erltool.errors import ErltoolError


class OwnHead:
    """Logits (N, V) of hidden states (N, D), by the model's own code after the module `decoder`.

    `decoder(...).last_hidden_state` and this, one after the other, are the model. `parameters` are those of the head.
    """

    def __init__(self, model: torch.nn.Module, name: str):
        self.name = name
        self._shell = _without(model, name.split("."))
        self.vocabulary = model.get_output_embeddings().weight.shape[0]

    def __call__(self, hidden: Tensor) -> Tensor:
        return self._shell(inputs_embeds=hidden[None], use_cache=False).logits[0]

    @property
    def requires_grad(self) -> bool:
        return any(p.requires_grad for p in self._shell.parameters())

    def clone(self) -> "OwnHead":
        """The head as it is now, whatever the model's becomes."""
        twin = copy.copy(self)
        twin._shell = copy.deepcopy(self._shell)
        return twin


@torch.no_grad()
def find_head(model: torch.nn.Module, ids: Tensor) -> OwnHead:
    """The head with which some decoder inside the model gives the model's own logits of `ids` (1, L).

    Raises ErltoolError where there is none, and a policy cannot be made of the model, and where logits are not finite.
    """
    outputs: dict[str, object] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda *found, name=name: outputs.update({name: found[-1]}))
        for name in _decoders(model)
    ]
    try:
        logits = model(ids, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    if not torch.isfinite(logits).all():
        raise ErltoolError("its logits are not finite; its weights or its config.json are damaged, restore them")
    for name, output in outputs.items():
        with contextlib.suppress(Exception):  # the model's own code on a part of it: this is then not the decoder
            head = OwnHead(model, name)
            if torch.equal(head(output.last_hidden_state[0]), logits[0]):
                return head
    raise ErltoolError("its logits are not a function of its decoder's last hidden state")


def is_linear(head: OwnHead, model: torch.nn.Module) -> bool:
    """Whether the head is hidden @ weight.T and nothing else: by its module, and on random hidden states, small ones
    and such that a cap would cut."""
    layer = model.get_output_embeddings()
    if not isinstance(layer, torch.nn.Linear) or layer.bias is not None:
        return False
    weight = layer.weight
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, weight.shape[1], generator=generator).to(weight.device, weight.dtype)
    rows = rows * torch.tensor([[0.1], [1.0], [10.0], [1000.0]]).to(rows)
    ours, own = (rows @ weight.T).float(), head(rows).float()
    return bool(((ours - own).abs() <= 16 * torch.finfo(weight.dtype).eps * ours.abs().amax(-1, keepdim=True)).all())


def _decoders(model: torch.nn.Module) -> Iterator[str]:
    """Names of what may be the decoder, the largest first: all that holds the embedding of the tokens."""
    inner = model.get_input_embeddings()
    parts = next(name for name, module in model.named_modules() if module is inner).split(".")
    return (".".join(parts[:n]) for n in range(1, len(parts)))


def _without(model: torch.nn.Module, path: list[str]) -> torch.nn.Module:
    """A shallow copy of the model, which shares its parameters, with a `_Given` at the path."""
    twin = copy.copy(model)
    twin._modules = dict(model._modules)
    vars(twin).pop("forward", None)  # a hook's, which would call the model itself
    name, *rest = path
    twin._modules[name] = _without(model._modules[name], rest) if rest else _Given(model._modules[name])
    return twin


class _Given(torch.nn.Module):
    """Stands for a decoder: its output is the hidden states it is given; its settings are the decoder's."""

    def __init__(self, decoder: torch.nn.Module):
        super().__init__()
        vars(self)["decoder"] = decoder  # not a module of this one: its parameters are not the head's

    def forward(self, *args, inputs_embeds=None, **kwargs):
        return _Output(inputs_embeds)

    def __getattr__(self, name: str):
        return getattr(vars(self)["decoder"], name)

    def __deepcopy__(self, memo):
        return self


class _Output:
    """What a decoder returns, under every name by which a head's code may ask for it; all else is None."""

    def __init__(self, hidden: Tensor):
        self.last_hidden_state = hidden

    def __getitem__(self, at):
        return (self.last_hidden_state,)[at]

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return None
