"""EntropyLab: drag a small policy's probabilities and advantages, make steps, and see its entropy move."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import traitlets
from matplotlib.figure import Figure

from erltool.entropy import bandit
from erltool.errors import ErltoolError
from erltool.plots import COLOURS, new_axes
from erltool.text import visible
from erltool.widgets.view import CHOSEN, View, javascript, message


@dataclass(frozen=True)
class EntropyLabResult:
    """State of the lab: the policy, and what its next step would do."""

    probabilities: np.ndarray
    """(A,)"""
    advantages: np.ndarray
    """(A,) as set; a step centres them under the policy"""
    entropy: float
    """nats"""
    exact: float
    """change of the entropy by the next step, nats"""
    predicted: float
    """the same to first order, Theorem 1 or 2, nats"""
    history: np.ndarray
    """(steps, 3): entropy before, exact change, predicted change of each step made"""


class EntropyLab(View):
    """A softmax bandit to play with: `EntropyLab()` shows it, `.result` is its state for the next cell.

    Sliders set each action's probability and advantage. Step and Play make steps of size `eta`: of policy gradient
    ("pg", Theorem 1) or natural policy gradient ("npg", Theorem 2). The browser's arithmetic (bandit.js) equals that of
    entropy/bandit.py. `problem` says what is wrong (fewer than two actions, a probability that is not positive and
    finite, advantages or names of another number); `.result` then raises ErltoolError with it.
    """

    _esm = javascript("entropy_lab.js")
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    start = traitlets.List(traitlets.Float()).tag(sync=True)
    logits = traitlets.List(traitlets.Float()).tag(**CHOSEN)
    advantages = traitlets.List(traitlets.Float()).tag(**CHOSEN)
    history = traitlets.List(traitlets.List(traitlets.Float())).tag(**CHOSEN)
    eta = traitlets.Float(0.5, min=1e-6).tag(**CHOSEN)
    method = traitlets.Enum(("pg", "npg"), "npg").tag(**CHOSEN)

    def __init__(
        self,
        probabilities: Sequence[float] = (0.55, 0.25, 0.15, 0.05),
        advantages: Sequence[float] = (1.0, -0.5, 0.0, -0.5),
        *,
        eta: float = 0.5,
        method: str = "npg",
        names: Sequence[str] | None = None,
    ):
        try:
            p, a = _checked(probabilities, advantages)
            names = [f"a{i + 1}" for i in range(len(p))] if names is None else [visible(x) for x in names]
            if len(names) != len(p):
                raise ErltoolError(f"EntropyLab: give {len(p)} names, one an action")
        except ErltoolError as e:
            super().__init__(problem=str(e))
            return
        logits = np.log(p / p.sum()).tolist()
        super().__init__(names=names, start=logits, logits=logits, advantages=a.tolist(), eta=eta, method=method)

    def step(self, count: int = 1) -> "EntropyLab":
        """Makes steps as the button does. Returns the lab."""
        for _ in range(count):
            now, (z, change) = self.result, self._next()
            self.history = [*self.history, [now.entropy, now.exact, now.predicted]]
            self.logits = (z + change).tolist()
        return self

    def _next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits, and what the next step adds to them."""
        z, a = (torch.tensor(x, dtype=torch.float64) for x in (self.logits, self.advantages))
        return z, bandit.step(z, a, self.eta, self.method)

    @property
    def result(self) -> EntropyLabResult:
        """The state as it is now."""
        if self.problem:
            raise ErltoolError(self.problem)
        z, change = self._next()
        return EntropyLabResult(
            torch.softmax(z, -1).numpy(),
            np.array(self.advantages),
            bandit.entropy(z).item(),
            bandit.entropy_change(z, change).item(),
            bandit.first_order_change(z, change).item(),
            np.array(self.history, dtype=float).reshape(-1, 3),
        )

    @property
    def sentence(self) -> str:
        r = self.result
        return (
            f"Entropy {r.entropy:.3f} nats of at most {np.log(len(r.probabilities)):.3f}; the next step changes it by "
            f"{r.exact:+.4f}, predicted {r.predicted:+.4f}; {len(r.history)} steps made."
        )

    def picture(self) -> Figure:
        """Probabilities, and entropy by step beside what the theorem predicts."""
        if self.problem:
            return message(self.problem)
        r = self.result
        left, right = new_axes(2)
        left.bar(range(len(self.names)), r.probabilities, color=COLOURS[0])
        left.set_xticks(range(len(self.names)), self.names, parse_math=False)  # a name is text, never a formula
        for i, advantage in enumerate(r.advantages):
            left.text(i, r.probabilities[i], f"A {advantage:+.2f}", ha="center", va="bottom", fontsize=8)
        left.set(ylabel="probability", ylim=(0, 1.08), title="policy and advantages")
        exact = np.append(r.history[:, 0], r.entropy)
        predicted = exact[0] + np.concatenate([[0.0], np.cumsum(r.history[:, 2])])
        right.plot(exact, color=COLOURS[0], marker="o", markersize=3, label="entropy")
        right.plot(predicted, color=COLOURS[1], linestyle="--", label="sum of predicted changes")
        right.set(xlabel="step", ylabel="entropy (nats)", ylim=(0, 1.05 * np.log(len(r.probabilities))))
        right.legend(fontsize=8)
        return left.figure


def _checked(probabilities: Sequence[float], advantages: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays (A,). Raises ErltoolError for other than a policy over two or more actions and its advantages."""
    try:
        p, a = (np.asarray(x, dtype=float) for x in (probabilities, advantages))
    except (TypeError, ValueError):
        raise ErltoolError("EntropyLab: probabilities and advantages must be numbers, one an action") from None
    if p.ndim != 1 or len(p) < 2 or not np.isfinite(p).all() or (p <= 0).any():
        raise ErltoolError("EntropyLab: probabilities must be two or more positive finite numbers")
    if a.shape != p.shape or not np.isfinite(a).all():
        raise ErltoolError(f"EntropyLab: give {len(p)} finite advantages, one an action")
    return p, a
