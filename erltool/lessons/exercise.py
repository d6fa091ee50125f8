"""An exercise as data: the right function, fixed inputs, and the classic wrong functions with a sentence each.

A check runs the learner's function on the inputs; where its answers are those of a wrong function, it says which
mistake that is, else by how much it is off and where.
"""

import copy
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 1e-3  # of the largest right number of a case: whoever adds another small epsilon is right too


@dataclass(frozen=True, repr=False)
class Verdict:
    """What a check found. It shows itself as its message."""

    passed: bool
    message: str
    """One line."""

    def __repr__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Exercise:
    """A function to write; calling it with the learner's function checks that."""

    right: Callable
    cases: Mapping[str, tuple]
    """Arguments by what is special about them."""
    mistakes: Mapping[str, Callable]
    """Wrong functions by the sentence that names the mistake, to be read after "when"."""

    def __call__(self, your_function: Callable) -> Verdict:
        """Whether the function gives the right numbers on every case, and if not, what went wrong: a Verdict.

        Its arguments are copies. An exception of the function is reported, never raised.
        """
        if not callable(your_function):
            return Verdict(False, "not yet: give the check the function itself, without calling it")
        yours, right = {}, self.answers(self.right)
        for case, arguments in self.cases.items():
            try:
                yours[case] = _numbers(your_function(*copy.deepcopy(arguments)))
            except Exception as e:
                return Verdict(False, f"not yet, {case}: {_raised(e, your_function)}")
        wrong = [case for case in right if not _same(yours[case], right[case])]
        if not wrong:
            off = max(float((yours[c] - right[c]).abs().max()) for c in right)
            return Verdict(True, f"right: {'; '.join(right)}; largest difference {off:.1g}")
        for sentence, function in self.mistakes.items():
            if all(_same(yours[case], answer) for case, answer in self.answers(function).items()):
                return Verdict(False, f"not yet: this comes out when {sentence}. {_difference(yours, right)}")
        return Verdict(False, f"not yet, {wrong[0]}: {_off(yours[wrong[0]], right[wrong[0]])}")

    def answers(self, function: Callable) -> dict[str, Tensor]:
        """What a function returns for each case, as numbers."""
        return {case: _numbers(function(*copy.deepcopy(arguments))) for case, arguments in self.cases.items()}


def _numbers(value) -> Tensor:
    if value is None:
        raise TypeError("it returned None, as a function without return does")
    try:
        return torch.as_tensor(value, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError) as e:
        raise TypeError(f"it returned {type(value).__name__}, where numbers are wanted") from e


def _same(yours: Tensor, answer: Tensor) -> bool:
    scale = float(answer.nan_to_num().abs().max())
    return yours.shape == answer.shape and torch.allclose(
        yours, answer, rtol=0, atol=max(TOLERANCE * scale, 1e-6), equal_nan=True
    )


def _difference(yours: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> str:
    """The cases' means, or where those agree the number that is off most."""
    means = [(case, *(f"{round(float(x[case].mean()), 6) + 0.0:.3g}" for x in (yours, right))) for case in right]
    if any(mine != other for _, mine, other in means):
        return "Means: " + ", ".join(f"{case}: {mine} (right {other})" for case, mine, other in means)
    case = max(right, key=lambda c: float((yours[c] - right[c]).abs().max()))
    return f"{case.capitalize()}: {_off(yours[case], right[case])}"


def _off(yours: Tensor, right: Tensor) -> str:
    if yours.shape != right.shape:
        return f"shape {tuple(yours.shape)} where {tuple(right.shape)} is right"
    gap = (yours - right).abs().nan_to_num(nan=torch.inf)
    at = np.unravel_index(int(gap.argmax()), tuple(right.shape))
    where = f" at {[int(i) for i in at]}" if at else ""
    return f"off by {float(gap.max()):.3g}{where}: {float(yours[at]):.4g} where {float(right[at]):.4g} is right"


def _raised(error: Exception, function: Callable) -> str:
    code = getattr(function, "__code__", None)
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code is code]
    text = " ".join(str(error).split())[:200]
    if not lines:
        return text
    return f"line {lines[-1] - code.co_firstlineno + 1} of your function: {type(error).__name__}: {text}"
