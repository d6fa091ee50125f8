"""An exercise: the right function, fixed inputs, and common wrong functions with a sentence each.

A check runs the learner's function on the inputs. If its results are those of a wrong function, the check names the
mistake; else it says where the results are wrong and by how much.
"""

import copy
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 1e-3  # times the largest right number of a case, so that another small epsilon is right, too


@dataclass(frozen=True, repr=False)
class Verdict:
    """The result of a check. Its repr is its message."""

    passed: bool
    message: str
    """One line."""

    def __repr__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Exercise:
    """A function to write. Call the exercise with the learner's function to check it."""

    right: Callable
    cases: Mapping[str, tuple]
    """Arguments, by a phrase that says what is special about them."""
    mistakes: Mapping[str, Callable]
    """Wrong functions, by a clause that names the mistake and follows "when"."""

    def __call__(self, your_function: Callable) -> Verdict:
        """Whether the function is right on every case, and else what is wrong. It gets copies of the arguments, and its
        exceptions become part of the verdict."""
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
        """The numbers that a function returns, by case."""
        return {case: _numbers(function(*copy.deepcopy(arguments))) for case, arguments in self.cases.items()}


def _numbers(value) -> Tensor:
    if value is None:
        raise TypeError("it returned None; is a return missing?")
    try:
        return torch.as_tensor(value, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError) as e:
        raise TypeError(f"it returned {type(value).__name__}, where numbers are expected") from e


def _same(yours: Tensor, answer: Tensor) -> bool:
    scale = float(answer.nan_to_num().abs().max())
    return yours.shape == answer.shape and torch.allclose(
        yours, answer, rtol=0, atol=max(TOLERANCE * scale, 1e-6), equal_nan=True
    )


def _difference(yours: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> str:
    """The mean of each case, or where all means agree, the number with the largest error."""
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
    if code is None or not lines:
        return text
    return f"line {lines[-1] - code.co_firstlineno + 1} of your function: {type(error).__name__}: {text}"
