"""Keys and values of the tokens so far, and the step that adds one token to each row.

On a CPU a layer's keys and values have spare room and rows that have ended leave the batch. On a GPU a step of a small
batch is thousands of short kernels, which the host launches more slowly than the device runs them; so all tensors of a
step get a fixed size and place, and a CUDA graph replays it.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

if TYPE_CHECKING:
    from erltool.policies.policy import Policy

_log = logging.getLogger(__name__)

WARM_UPS = 2  # steps before a capture, in which libraries choose their kernels and take their memory


class RoomyLayer(DynamicLayer):
    """A layer's keys and values with spare room, so that a new token is written in place. Copying them for each token
    took a third of the sampling time of the policy `countdown`."""

    filled = 0  # tokens
    buffers: tuple[Tensor, ...] = ()

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.buffers = (key_states[:, :, :0], value_states[:, :, :0])
        before, self.filled = self.filled, self.filled + key_states.shape[-2]
        if self.buffers[0].shape[-2] < self.filled:
            room = self.filled + max(8, before // 4)
            self.buffers = tuple(moved(b[:, :, :before], room) for b in self.buffers)
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, before : self.filled] = new
        return self._show()

    def _show(self):
        if not self.buffers:  # the model does not run this layer
            return None
        self.keys, self.values = (b[:, :, : self.filled] for b in self.buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices):
        # Not b[indices], which takes five times as long on a CPU.
        self.buffers = tuple(b.index_select(0, indices) for b in self.buffers)
        self._show()

    def batch_repeat_interleave(self, repeats):
        self.buffers = tuple(b.repeat_interleave(repeats, 0) for b in self.buffers)
        self._show()


class FixedLayer(DynamicLayer):
    """A layer's keys and values with room for every token from the beginning. The next token's place is on the device,
    which a captured graph reads anew."""

    def __init__(self, keys: Tensor, values: Tensor, room: int, place: Tensor):
        super().__init__()
        self.lazy_initialization(keys[:, :, :0], values[:, :, :0])
        self.buffers = moved(keys, room), moved(values, room)
        self.keys, self.values = self.buffers
        self.place = place  # (1,)

    def update(self, key_states, value_states, *args, **kwargs):
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer.index_copy_(2, self.place, new)
        return self.buffers


def moved(keys: Tensor, room: int) -> Tensor:
    """Keys or values (B, heads, L, D) at the beginning of a larger tensor. The rest is 0, because a masked NaN would
    still be one."""
    larger = keys.new_zeros(*keys.shape[:2], room, keys.shape[-1])
    larger[:, :, : keys.shape[2]] = keys
    return larger


class FixedSteps:
    """Adds tokens to rows whose prompts a cache holds: `steps(token)` is the last hidden state (B, D) after it."""

    def __init__(self, policy: "Policy", cache: Cache, mask: Tensor, tokens: int):
        """`mask` (B, L) shows the prompts; there is room for `tokens` more in each row. The cache is empty then."""
        length = mask.shape[1]
        room, device = length + tokens, mask.device
        self.policy = policy
        self.place = torch.tensor([length], device=device)
        layers: list[Any] = []
        while cache.layers:  # one after the other, so that the prompts' keys and values are never all there twice
            layer = cache.layers.pop(0)
            keys, values = (layer.keys, layer.values) if isinstance(layer, RoomyLayer) else (None, None)
            if keys is None or values is None:  # the model does not run this layer
                layers.append(RoomyLayer())
            else:
                layers.append(FixedLayer(keys, values, room, self.place))
        self.cache = Cache(layers=layers)
        self.seen = torch.zeros(len(mask), 1, 1, room, dtype=torch.bool, device=device)
        self.seen[:, 0, 0, :length] = mask
        self.positions = mask.sum(-1, keepdim=True)
        self.token = torch.zeros(len(mask), 1, dtype=torch.long, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, token: Tensor) -> Tensor:
        self.token.copy_(token)
        if self.graph is not None:
            self.graph.replay()
        else:
            self.hidden = self._advance()
        return self.hidden

    def _advance(self) -> Tensor:
        self.seen.index_fill_(3, self.place, True)
        out = self.policy.hidden(
            self.token, attention_mask=self.seen, position_ids=self.positions, cache=self.cache
        )  # fmt: skip
        self.positions += 1
        self.place += 1
        return out.last_hidden_state[:, -1]

    def capture(self) -> bool:
        """Records a step as a CUDA graph; False for a model whose step cannot be recorded, which goes on without."""
        state = self.seen, self.positions, self.place
        before, aside, graph = [x.clone() for x in state], torch.cuda.Stream(), torch.cuda.CUDAGraph()
        aside.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(aside):  # PyTorch does not leave a graph's stream where recording fails
                for step in range(WARM_UPS):  # what they write into the cache is masked, and written over
                    # A recording that fails keeps its memory, and one that waits for the device fails: see first.
                    with contextlib.nullcontext() if step + 1 < WARM_UPS else _without_waiting():
                        self._advance()
                    _put_back(state, before)
                with torch.cuda.graph(graph):
                    self.hidden = self._advance()
        except RuntimeError as e:
            _log.info("sampling: a step of this model cannot be recorded (%s); each is launched anew", e)
            torch.cuda.current_stream().wait_stream(aside)
            _put_back(state, before)
            return False
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = graph
        return True


def _put_back(state: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    for x, was in zip(state, before, strict=True):
        x.copy_(was)


@contextlib.contextmanager
def _without_waiting() -> Iterator[None]:
    """Inside, what makes the host wait for a GPU raises RuntimeError."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PyTorch says that it does not find all
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
