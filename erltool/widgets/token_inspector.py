"""TokenInspector: a rollout's tokens in colour, and which of them each control would take."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import traitlets
from matplotlib.figure import Figure

from erltool.entropy.covariance import mean_covariance
from erltool.entropy.tokens import token_budget
from erltool.errors import ErltoolError
from erltool.plots import new_axes
from erltool.runs.folder import TOKEN_COLUMNS, Run
from erltool.text import shown, visible
from erltool.widgets.view import CHOSEN, View, javascript, message

QUANTITIES = ("covariance", "push", "entropy", "log_prob", "ratio", "selected")
NUMBERS = (*QUANTITIES, "old_log_prob", "advantage")


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

    The widget shows a response's text. Covariance, push (entropy/push.py, where it was recorded), entropy, log-prob,
    ratio to the sampling policy, or what the run's own control took, colours each token. It opens at the last step with
    a covariance. Sliders set Clip-Cov (band, fraction) and KL-Cov (fraction, coef), and show which tokens of the step
    each would take, and the mean covariance that is left: to first order the entropy falls by it. A box marks a fork, a
    token at which the response had a choice, where the task knows it; its strategy and first wrong step stand beside
    the prompt. A run has the tokens it recorded, a live step all of its own. The widget shows bad input as `problem`;
    setting a step or response that does not exist, or a quantity that is not recorded, raises ErltoolError.
    """

    _esm = javascript("token_inspector.js")
    steps = traitlets.List(traitlets.Int()).tag(sync=True)
    step = traitlets.Int(0).tag(**CHOSEN)
    quantity = traitlets.Enum(QUANTITIES, "covariance").tag(**CHOSEN)
    response = traitlets.Int(0).tag(**CHOSEN)
    low = traitlets.Float(1.0).tag(**CHOSEN)
    high = traitlets.Float(5.0).tag(**CHOSEN)
    clip_fraction = traitlets.Float(0.02).tag(**CHOSEN)
    kl_fraction = traitlets.Float(0.1).tag(**CHOSEN)
    coef = traitlets.Float(1.0).tag(**CHOSEN)
    data = traitlets.Dict().tag(sync=True)
    """The step's tokens as columns: texts, bytes of float64 (keys and forks float32), where each response begins."""

    _responses = 0  # of the step; before one is loaded any number may be asked for

    def __init__(self, source, **settings):
        try:
            self._table = _tokens_of(source)
            problem = ""
        except ErltoolError as e:
            self._table, problem = pd.DataFrame(columns=[*TOKEN_COLUMNS], dtype=float), str(e)
        steps = sorted(int(s) for s in self._table["step"].unique())
        # Late in a run no group may have a spread left; a step without a covariance shows nothing.
        alive = sorted(int(s) for s in self._table.loc[self._table["covariance"] != 0, "step"].unique())
        if steps and settings.setdefault("step", (alive or steps)[-1]) not in steps:
            problem, settings["step"] = _unrecorded(settings["step"], steps), steps[-1]
        super().__init__(steps=steps, problem=visible(problem), **settings)
        self._load()
        self.observe(lambda change: self._load(), "step")

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

    @traitlets.validate("response")
    def _among_responses(self, proposal) -> int:
        if self._responses and not 0 <= proposal.value < self._responses:
            raise ErltoolError(f"TokenInspector: response {proposal.value}: the step has 0 to {self._responses - 1}")
        return proposal.value

    def _load(self) -> None:
        table = self._table[self._table["step"] == self.step].reset_index(drop=True)
        response = table[["prompt_index", "response_index"]]
        begins = np.flatnonzero((response != response.shift()).any(axis=1))
        self._shown = table.assign(ratio=np.exp(table["log_prob"] - table["old_log_prob"]))
        # One key a token: Clip-Cov's random order stays the same while its sliders move.
        self._keys = np.random.default_rng(0).random(len(table), dtype=np.float32)
        self._responses = len(begins)
        self.response = max(0, min(self.response, len(begins) - 1))
        self.data = {
            "note": _note(self._shown),
            "texts": [visible(str(t)) for t in table["text"]],
            "prompts": [visible(str(table["prompt"][b])) for b in begins],
            "rewards": [float(table["reward"][b]) for b in begins],
            "begins": begins.tolist(),
            "told": _told(table, begins),
            "quantities": [c for c in QUANTITIES if c in self._shown],
            "forks": np.ascontiguousarray(_forks(table), np.float32).tobytes(),
            "keys": self._keys.tobytes(),
            **{c: np.array(self._shown[c], np.float64).tobytes() for c in NUMBERS if c in self._shown},
        }

    @property
    def result(self) -> TokenInspectorResult:
        """What the sliders select now."""
        t, n = self._shown, len(self._shown)
        columns = ("covariance", "log_prob", "old_log_prob", "advantage")
        cov, log_prob, old, advantage = (np.array(t[c], float) for c in columns)
        clip, kl = np.zeros((2, n), bool)
        band = np.flatnonzero((cov > self.low) & (cov < self.high))
        clip[band[np.argsort(-self._keys[band], kind="stable")[: token_budget(self.clip_fraction, n)]]] = True
        kl[np.argsort(-cov, kind="stable")[: token_budget(self.kl_fraction, n)]] = True
        penalty = self.coef * np.sign(log_prob - old)
        reshaped = advantage, np.where(clip, 0, advantage), np.where(kl, advantage - penalty, advantage)
        log_probs, mask = torch.from_numpy(log_prob)[None], torch.ones(1, n, dtype=torch.bool)
        means = [mean_covariance(torch.from_numpy(a)[None], log_probs, mask).item() for a in reshaped]
        return TokenInspectorResult(t.assign(clip_cov=clip, kl_cov=kl), *means)

    @property
    def sentence(self) -> str:
        r = self.result
        return (
            f"Step {self.step}: {len(r.tokens)} tokens, mean covariance {r.covariance:+.4f} nats; Clip-Cov would take "
            f"{int(r.tokens['clip_cov'].sum())} and leave {r.covariance_clip_cov:+.4f}, KL-Cov "
            f"{int(r.tokens['kl_cov'].sum())} and leave {r.covariance_kl_cov:+.4f}."
        )

    def picture(self) -> Figure:
        """The shown response's tokens as bars of the chosen quantity."""
        if self.problem:
            return message(self.problem)
        ax = new_axes(width=8.4, height=2.6)[0]
        begins = [*self.data["begins"], len(self._shown)]
        tokens = self._shown.iloc[begins[self.response] : begins[self.response + 1]].head(60)
        values = tokens[self.quantity].to_numpy(float)
        ax.bar(range(len(tokens)), values, color=np.where(values < 0, "#D55E00", "#0072B2"))
        ax.set_xticks(range(len(tokens)), [shown(t, 20) for t in tokens["text"]], parse_math=False, fontsize=8)
        ax.axhline(0, color="black", linewidth=0.8)
        for label, fork in zip(ax.get_xticklabels(), _forks(tokens), strict=True):
            if fork:
                label.set_bbox({"boxstyle": "square,pad=0.15", "facecolor": "none", "edgecolor": "black"})
        ax.set_ylabel(self.quantity)
        ax.set_title(shown(self.data["prompts"][self.response], 120), parse_math=False, fontsize=9, loc="left")
        return ax.figure


def _tokens_of(source) -> pd.DataFrame:
    """Tokens of a run, a live step, or a table. Raises ErltoolError for none, or numbers that are not finite."""
    if isinstance(source, Run):
        table = source.tokens
    elif isinstance(source, pd.DataFrame):
        table = source
    elif hasattr(source, "table"):
        table = source.table()
    else:
        raise ErltoolError(f"TokenInspector: give a run, a step or a table of tokens, not {type(source).__name__}")
    if missing := [c for c in TOKEN_COLUMNS if c not in table]:
        raise ErltoolError(f"TokenInspector: the table lacks {', '.join(missing)}")
    if not len(table):
        raise ErltoolError("TokenInspector: no tokens were recorded; train with record_every above 0")
    for name in (c for c in NUMBERS if c in table):
        if broken := int((~np.isfinite(table[name].to_numpy(float))).sum()):
            raise ErltoolError(
                f"TokenInspector: {name} is not finite on {broken} of {len(table)} tokens; look for what diverged"
            )
    return table


def _forks(table: pd.DataFrame) -> np.ndarray:
    """(N,) bool: True for a token at which the response had a choice; False where the task does not know."""
    return (table["fork"] == True).to_numpy() if "fork" in table else np.zeros(len(table), bool)  # noqa: E712


def _told(table: pd.DataFrame, begins: np.ndarray) -> list[str]:
    """What the task says of each response; "" for nothing."""
    if not {"strategy", "first_wrong"} <= set(table):
        return [""] * len(begins)
    strategy = table["strategy"].astype(object).where(table["strategy"].notna(), "").astype(str)
    wrong = pd.to_numeric(table["first_wrong"], errors="coerce")
    return [visible(strategy[b] + (f", step {wrong[b]:.0f} is wrong" if wrong[b] > 0 else "")) for b in begins]


def _unrecorded(step, steps: list[int]) -> str:
    return f"TokenInspector: no tokens of step {step}; there are {steps[0]} to {steps[-1]}, {len(steps)} steps"


def _note(shown: pd.DataFrame) -> str:
    """What a reader must know first: why every covariance is 0, and which tokens are not text."""
    notes = []
    if len(shown) and not shown["covariance"].any():
        one = len(shown[["prompt_index", "response_index"]].drop_duplicates()) == 1
        why = "one response has one advantage" if one else "all rewards are equal in each group"
        notes.append(f"Every covariance is 0: {why}, and a control has nothing to choose by.")
    if broken := int(shown["text"].astype(str).str.contains("\ufffd", regex=False).sum()):
        notes.append(f"{broken} tokens are parts of a character, not text on their own: shown as U+FFFD.")
    return " ".join(notes)
