"""What a run saved: the state of policy and trainer in a checkpoint, and the policy's weights in adapter/.

A state may be a stranger's file. It is unpickled as tensors and plain values only, and checked whole before use.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from erltool.controls.base import Control
from erltool.controls.catalog import control_from_dict, control_to_dict
from erltool.errors import ErltoolError
from erltool.files import Hold, heal, new_name, old_name
from erltool.policies.policy import Policy
from erltool.runs.checkpoints import ADAPTER, Checkpoint, adapter_step, checkpoints, newest_whole, write_adapter
from erltool.text import shown

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """The state from which a run resumes."""

    trainable: dict[str, Tensor]
    optimizer: dict
    """The optimiser's state by the number of the parameter."""
    fingerprint: str
    step: int
    iteration: int
    position: int
    moved: bool
    control: Control

    def to_bytes(self) -> bytes:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values |= {"optimizer": {"state": self.optimizer}, "control": control_to_dict(self.control)}
        buffer = io.BytesIO()
        torch.save(values, buffer)
        return buffer.getvalue()

    def give_weights(self, policy: Policy) -> None:
        """Copies the saved weights into the policy."""
        with torch.no_grad():
            for name, p in policy.trainable().items():
                p.copy_(self.trainable[name])


def read_saved(blob: bytes, checkpoint: Checkpoint, policy: Policy, control: Control) -> Saved:
    """The state in a checkpoint of this policy's run; `control` is for a state that predates controllers. Raises
    ErltoolError where the bytes are not a state of this policy."""
    try:
        with warnings.catch_warnings():  # torch warns about an unusual pickle
            warnings.simplefilter("ignore")
            values = torch.load(io.BytesIO(blob), weights_only=True, map_location=policy.device)
        values = {f.name: values[f.name] for f in fields(Saved) if f.name != "control"} | {
            "control": control_from_dict(values["control"], control) if "control" in values else control,
            "optimizer": values["optimizer"]["state"],
        }
        _check(values, checkpoint.step, list(policy.trainable().items()))
    except Exception as e:  # a hostile pickle may raise anything
        reason = shown(next(iter(str(e).splitlines()), ""), 120)
        raise ErltoolError(
            f"{checkpoint.folder / 'state.pt'}: not a state of this run's policy ({type(e).__name__}: {reason}); "
            f"delete {checkpoint.folder} to resume from the previous checkpoint, or start another run"
        ) from e
    return Saved(**values)


def _check(values: dict, step: int, parameters: list[tuple[str, Tensor]]) -> None:
    """Raises ValueError, or the error of a value of another type, where the state is not of these parameters."""
    kinds = {"fingerprint": str, "step": int, "iteration": int, "position": int, "moved": bool}
    for name, kind in kinds.items():
        if type(values[name]) is not kind or kind is int and values[name] < 0:
            raise ValueError(f"{name} is {values[name]!r}")
    if values["step"] != step:
        raise ValueError(f"it is of step {values['step']}")
    if set(values["trainable"]) != {name for name, _ in parameters}:
        raise ValueError("it has other weights by name")
    if set(values["optimizer"]) != set(range(len(parameters))):
        raise ValueError("its optimiser has other parameters")
    for number, (name, p) in enumerate(parameters):
        moments = values["optimizer"][number]
        _check_tensor(values["trainable"][name], name, p.shape)
        _check_tensor(moments["exp_avg"], f"exp_avg of {name}", p.shape)
        _check_tensor(moments["exp_avg_sq"], f"exp_avg_sq of {name}", p.shape)
        _check_tensor(moments["step"], f"step of {name}", torch.Size())


def _check_tensor(x: Tensor, name: str, shape: torch.Size) -> None:
    if not (isinstance(x, Tensor) and x.layout == torch.strided and x.is_floating_point() and x.shape == shape):
        raise ValueError(f"{name} is not a tensor of numbers of shape {tuple(shape)}")


# --- the policy that a run saved last -------------------------------------------------------------


def save_policy(policy: Policy, folder: Path) -> None:
    """`policy.save`, with a write error of safetensors as an OSError, which Python's own files raise."""
    try:
        policy.save(folder)
    except SafetensorError as e:
        raise OSError(None, shown(e, 120), str(folder)) from e


def load_saved(policy: Policy, run: Path, control: Control) -> None:
    """Loads the weights that the run saved last into the policy.

    They are in adapter/. A kill or a full disk may have left it older than the newest checkpoint, or missing: then they
    are those of the newest whole checkpoint, from which adapter/ is made again. Raises ErltoolError where neither can
    be read.
    """
    if new_name(run / ADAPTER).exists() or old_name(run / ADAPTER).exists():
        with _alone(run) as alone:
            if alone:
                heal(run / ADAPTER)
    saved, step, problem = checkpoints(run), adapter_step(run), None
    if not saved or step is not None and step >= saved[0].step:
        try:
            _load_adapter(policy, run)
        except ErltoolError as e:
            problem = e
        else:
            if step is None:
                _warn(run, "does not say its step, and there is no checkpoint to compare")
            return
    if whole := newest_whole(run):
        _load_checkpoint(policy, run, *whole, control)
        return
    if problem:
        raise problem
    _load_adapter(policy, run)
    _warn(run, f"is of step {step or 'unknown'}, and the newest checkpoint is damaged")


def _load_checkpoint(policy: Policy, run: Path, checkpoint: Checkpoint, blob: bytes, control: Control) -> None:
    """Loads a checkpoint's weights, and makes adapter/ from them unless another process writes there. Warns where
    adapter/ had other weights."""
    state = read_saved(blob, checkpoint, policy, control)
    try:
        _load_adapter(policy, run)
        same = all(torch.equal(p, state.trainable[name].to(p)) for name, p in policy.trainable().items())
        fault = "" if same else "not of the newest checkpoint"
    except ErltoolError:
        fault = "missing" if not (run / ADAPTER).is_dir() else "damaged"
    state.give_weights(policy)
    if fault:
        _warn(run, f"was {fault}; the weights of step {checkpoint.step} replace it")
    with _alone(run) as alone:
        if alone and checkpoints(run)[:1] == [checkpoint]:  # no newer one was saved meanwhile
            write_adapter(run, checkpoint.step, lambda folder: save_policy(policy, folder))


def _warn(run: Path, fault: str) -> None:
    _log.warning("run %s: adapter/ %s", shown(run, 300), fault)


def _load_adapter(policy: Policy, run: Path) -> None:
    try:
        policy.load(run / ADAPTER)
    except (SafetensorError, OSError) as e:
        raise ErltoolError(f"{run / ADAPTER}: cannot be read ({shown(e, 120)}); restore it, or train again") from e


@contextlib.contextmanager
def _alone(run: Path) -> Iterator[bool]:
    """Whether this process may write to the run: no other process does, and the folder is writable. Ignores write
    errors inside."""
    try:
        hold = Hold(run)
    except ErltoolError:
        yield False
        return
    try:
        with contextlib.suppress(OSError):
            yield True
    finally:
        hold.release()
