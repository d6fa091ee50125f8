"""TokenInspector: what one update did to the responses to one prompt, token by token."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import traitlets
from matplotlib.figure import Figure

from erltool.entropy.covariance import mean_covariance
from erltool.entropy.tokens import token_budget
from erltool.errors import ErltoolError
from erltool.runs.folder import PROBE_COLUMNS, TOKEN_COLUMNS
from erltool.text import shown, visible
from erltool.widgets.token_groups import (
    QUANTITIES,
    begins_of,
    most_to_see,
    numbers_of,
    rows_of,
    same_place,
    sent,
    tables_of,
)
from erltool.widgets.token_picture import token_picture
from erltool.widgets.view import CHOSEN, View, javascript, message


@dataclass(frozen=True)
class TokenInspectorResult:
    """What the sliders select among the N tokens of the step, in the order of the table."""

    tokens: pd.DataFrame
    """The step's tokens, columns as in runs.TOKEN_COLUMNS, with `ratio`, `clip_cov` and `kl_cov` (bool) added"""
    covariance: float
    """mean token covariance, nats: to first order the entropy falls by it, up to the step size"""
    covariance_clip_cov: float
    """the same with advantage 0 on the tokens that Clip-Cov takes"""
    covariance_kl_cov: float
    """the same with KL-Cov's penalty on the tokens that it takes"""


class TokenInspector(View):
    """`TokenInspector(run)` or `TokenInspector(step)`; `.result` is what the sliders select, for the next cell.

    The widget shows a group: all responses to one prompt, by falling reward, so that a token at which they part stands
    under the others. Covariance, push (entropy/push.py, where it was recorded), entropy, log-prob, ratio to the
    sampling policy, or what a control takes, colours each token. It opens at the group with the most to see. The chosen
    token has its numbers, a sentence, and, where they were recorded (TrainConfig.record_probes), its likeliest
    alternatives before and after the update. `view="probes"` shows the responses to the run's probe prompts, from the
    first recorded step to the last.

    Sliders set Clip-Cov (band, fraction) and KL-Cov (fraction, coef), and show which tokens of the step each would
    take, and the mean covariance that is left: to first order the entropy falls by it. A run has the tokens it
    recorded, a live step all of its own. The widget shows bad input as `problem`; setting a step or response that does
    not exist, or a quantity that is not recorded, raises ErltoolError.
    """

    _esm = javascript("token_inspector.js")
    steps = traitlets.List(traitlets.Int()).tag(sync=True)
    view = traitlets.Enum(("update", "probes"), "update").tag(**CHOSEN)
    step = traitlets.Int(0).tag(**CHOSEN)
    quantity = traitlets.Enum(QUANTITIES, "covariance").tag(**CHOSEN)
    response = traitlets.Int(0).tag(**CHOSEN)
    """Among the responses of the step; its group is on show."""
    position = traitlets.Int(-1).tag(**CHOSEN)
    """The chosen token of that response; -1 for the one with the highest covariance."""
    keep = traitlets.Unicode("all").tag(**CHOSEN)
    """Which responses of the group: "all", "right", "wrong", "forks" (all, other tokens pale), or "strategy NAME"."""
    find = traitlets.Unicode("").tag(**CHOSEN)
    """Text that is looked for."""
    low = traitlets.Float(1.0).tag(**CHOSEN)
    high = traitlets.Float(5.0).tag(**CHOSEN)
    clip_fraction = traitlets.Float(0.02).tag(**CHOSEN)
    kl_fraction = traitlets.Float(0.1).tag(**CHOSEN)
    coef = traitlets.Float(1.0).tag(**CHOSEN)
    data = traitlets.Dict().tag(sync=True)
    """"update" and "probes": by step, its tokens as token_groups.sent has them."""

    def __init__(self, source, **settings):
        try:
            self._table, self._probes = tables_of(source)
            problem = ""
        except ErltoolError as e:
            self._table, problem = pd.DataFrame(columns=[*TOKEN_COLUMNS], dtype=float), str(e)
            self._probes = pd.DataFrame(columns=[*PROBE_COLUMNS], dtype=float)
        steps = sorted(int(s) for s in self._table["step"].unique())
        if steps and settings.get("step", steps[0]) not in steps:
            problem, settings["step"] = _unrecorded(settings["step"], steps), steps[-1]
        settings = self._opened(settings) if steps else settings
        super().__init__(steps=steps, problem=visible(problem), **settings)
        self.data = {
            "update": {str(step): sent(t, _keys(len(t))) for step, t in _by_step(self._table)},
            "probes": {str(step): sent(t) for step, t in _by_step(self._probes)},
        }

    def _opened(self, settings: dict) -> dict:
        """The settings, with the step, response and quantity that show most where they leave these open."""
        table, opened = self._table, dict(settings)
        if "quantity" not in settings and not (table["covariance"] != 0).any():
            opened["quantity"] = "entropy"
        if "response" in settings and "step" in settings or settings.get("view") == "probes":
            return {"step": int(table["step"].max())} | opened
        among = table[table["step"] == settings["step"]] if "step" in settings else table
        step, prompt, response = most_to_see(among)
        here = table[table["step"] == step]
        first = here.iloc[begins_of(here)]
        at = np.flatnonzero((first["prompt_index"] == prompt) & (first["response_index"] == response))[0]
        return {"step": step, "response": int(at)} | opened

    @traitlets.validate("step")
    def _recorded(self, proposal) -> int:
        if self.steps and proposal.value not in self.steps:
            raise ErltoolError(_unrecorded(proposal.value, self.steps))
        return proposal.value

    @traitlets.validate("quantity")
    def _known(self, proposal) -> str:
        if proposal.value == "push" and "push" not in self._table:
            raise ErltoolError("TokenInspector: quantity push: the run is older; train again, or choose another")
        return proposal.value

    @traitlets.validate("view")
    def _is_there(self, proposal) -> str:
        if proposal.value == "probes" and not len(self._probes):
            raise ErltoolError("TokenInspector: view probes: none were recorded; train with record_probes above 0")
        return proposal.value

    @traitlets.validate("response")
    def _among_responses(self, proposal) -> int:
        count = len(self.shown["begins"]) if self.data else 0  # before the first step any number may be asked for
        if count and not 0 <= proposal.value < count:
            raise ErltoolError(f"TokenInspector: response {proposal.value}: the step has 0 to {count - 1}")
        return proposal.value

    @traitlets.observe("step", "view")
    def _stay_inside(self, change) -> None:
        if self.data:
            self.response = max(0, min(self.response, len(self.shown["begins"]) - 1))

    @property
    def shown(self) -> dict:
        """The tokens of the step and view, as token_groups.sent has them."""
        return self.data[self.view].get(str(self.step), {"begins": []})

    def _frame(self, view: str = "update") -> pd.DataFrame:
        table = self._table if view == "update" else self._probes
        return table[table["step"] == self.step].reset_index(drop=True)

    @property
    def result(self) -> TokenInspectorResult:
        """What the sliders select now."""
        t = self._frame()
        n, numbers = len(t), numbers_of(t)
        columns = ("covariance", "log_prob", "old_log_prob", "advantage")
        cov, log_prob, old, advantage = (np.array(numbers[c], float) for c in columns)
        clip, kl = np.zeros((2, n), bool)
        band = np.flatnonzero((cov > self.low) & (cov < self.high))
        clip[band[np.argsort(-_keys(n)[band], kind="stable")[: token_budget(self.clip_fraction, n)]]] = True
        kl[np.argsort(-cov, kind="stable")[: token_budget(self.kl_fraction, n)]] = True
        penalty = self.coef * np.sign(log_prob - old)
        reshaped = advantage, np.where(clip, 0, advantage), np.where(kl, advantage - penalty, advantage)
        log_probs, mask = torch.from_numpy(log_prob)[None], torch.ones(1, n, dtype=torch.bool)
        means = [mean_covariance(torch.from_numpy(a)[None], log_probs, mask).item() for a in reshaped]
        ratio = np.exp(t["log_prob"] - t["old_log_prob"])
        return TokenInspectorResult(t.assign(ratio=ratio, clip_cov=clip, kl_cov=kl), *means)

    @property
    def chosen(self) -> int:
        """The chosen token, as a place in the step's tokens."""
        begins = [*self.shown["begins"], len(self.shown["texts"])]
        begin, end = begins[self.response], begins[self.response + 1]
        if self.position >= 0:
            return min(begin + self.position, end - 1)
        numbers = numbers_of(self._frame(self.view).iloc[begin:end])
        return begin + int(
            np.argmax(numbers["covariance" if numbers.get("covariance", np.zeros(1)).any() else "entropy"])
        )

    @property
    def sentence(self) -> str:
        if self.view == "probes":
            return self._of_probes()
        r, data = self.result, self.shown
        group = rows_of(data, self.response)
        right, prompt = sum(data["rewards"][i] >= 1 for i in group), shown(data["prompts"][self.response], 60)
        return (
            f"Prompt \u201c{prompt}\u201d at step {self.step}: {right} of {len(group)} "
            f"responses are right. Of the step's {len(r.tokens)} tokens, mean covariance {r.covariance:+.4f} nats, "
            f"Clip-Cov would take {int(r.tokens['clip_cov'].sum())} and leave {r.covariance_clip_cov:+.4f}, KL-Cov "
            f"{int(r.tokens['kl_cov'].sum())} and leave {r.covariance_kl_cov:+.4f}."
        )

    def _of_probes(self) -> str:
        """The sentence of the view "probes"."""
        data, place = self.shown, same_place(self._probes, self.step, self.chosen)
        group, token = rows_of(data, self.response), shown(data["texts"][self.chosen], 20)
        right, prompt = sum(data["rewards"][i] >= 1 for i in group), shown(data["prompts"][self.response], 60)
        ends = ", ".join(f"{place[step]:.3f} at step {step}" for step in (place.index[0], self.step, place.index[-1]))
        return (
            f"Probe prompt \u201c{prompt}\u201d at step {self.step}: {right} of {len(group)} responses are right. "
            f"Entropy in nats of the place of \u201c{token}\u201d: {ends}."
        )

    def picture(self) -> Figure:
        """The group on show: its tokens in the colours of the chosen quantity, and the chosen token's alternatives; of
        a probe prompt also the entropy of the chosen place over the run."""
        if self.problem:
            return message(self.problem)
        table = self.result.tokens if self.view == "update" else self._frame("probes")
        rows = rows_of(self.shown, self.response, self.keep)
        probes = self._probes if self.view == "probes" else None
        return token_picture(table, self.shown, self.quantity, rows, self.chosen, probes)


def _by_step(table: pd.DataFrame):
    """Each step and its tokens."""
    for step, of_step in table.groupby("step", sort=True):
        yield int(step), of_step.reset_index(drop=True)


def _keys(count: int) -> np.ndarray:
    """One random key a token of a step: Clip-Cov's order stays the same while its sliders move."""
    return np.random.default_rng(0).random(count, dtype=np.float32)


def _unrecorded(step, steps: list[int]) -> str:
    return f"TokenInspector: no tokens of step {step}; there are {steps[0]} to {steps[-1]}, {len(steps)} steps"
