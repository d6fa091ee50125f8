"""EntropyLab: drag a small policy's probabilities and advantages, step, and see its entropy move."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import traitlets
from matplotlib.figure import Figure

from erltool import bandit
from erltool.errors import ErltoolError
from erltool.plots import COLOURS, new_axes
from erltool.widgets.view import View, javascript


@dataclass(frozen=True)
class EntropyLabResult:
    """State of the lab: the policy, and what its next step would do."""

    probabilities: np.ndarray
    """(A,)"""
    advantages: np.ndarray
    """(A,) as set; the step centres them under the policy"""
    entropy: float
    """nats"""
    exact: float
    """change of the entropy by the next step, nats"""
    predicted: float
    """the same to first order, by Theorem 1 or 2, nats"""
    history: np.ndarray
    """(steps, 3): entropy before, exact change, predicted change of each step made"""


class EntropyLab(View):
    """A softmax bandit to play with: `EntropyLab()` shows it, `.result` is its state for the next cell.

    Sliders set each action's probability and advantage; Step and Play make policy gradient ("pg", Theorem 1) or
    natural policy gradient ("npg", Theorem 2) steps of size `eta`. The arithmetic is in the browser and equals
    erltool.bandit's. Raises ErltoolError for fewer than two actions, probabilities that are not positive and
    finite, or advantages that do not fit.
    """

    _esm = javascript("entropy_lab.js")
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    start = traitlets.List(traitlets.Float()).tag(sync=True)
    logits = traitlets.List(traitlets.Float()).tag(sync=True)
    advantages = traitlets.List(traitlets.Float()).tag(sync=True)
    history = traitlets.List(traitlets.List(traitlets.Float())).tag(sync=True)
    eta = traitlets.Float(0.5, min=1e-6).tag(sync=True)
    method = traitlets.Enum(("pg", "npg"), "npg").tag(sync=True)

    def __init__(
        self,
        probabilities: Sequence[float] = (0.55, 0.25, 0.15, 0.05),
        advantages: Sequence[float] = (1.0, -0.5, 0.0, -0.5),
        *,
        eta: float = 0.5,
        method: str = "npg",
        names: Sequence[str] | None = None,
    ):
        p = np.asarray(probabilities, dtype=float)
        if p.ndim != 1 or len(p) < 2 or not np.isfinite(p).all() or (p <= 0).any():
            raise ErltoolError("EntropyLab: probabilities must be two or more positive finite numbers")
        if len(advantages) != len(p) or not np.isfinite(np.asarray(advantages, dtype=float)).all():
            raise ErltoolError(f"EntropyLab: give {len(p)} finite advantages, one an action")
        logits = np.log(p / p.sum()).tolist()
        names = [f"a{i + 1}" for i in range(len(p))] if names is None else [str(x) for x in names]
        super().__init__(
            names=names, start=logits, logits=logits, advantages=[float(x) for x in advantages], eta=eta, method=method
        )

    def step(self, count: int = 1) -> "EntropyLab":
        """Makes steps here in Python, as the button does."""
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
