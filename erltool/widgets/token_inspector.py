"""TokenInspector: a rollout's tokens coloured by what drives its entropy, and what each control would take."""

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
from erltool.widgets.view import View, javascript, message

QUANTITIES = ("covariance", "entropy", "log_prob", "ratio", "selected")


@dataclass(frozen=True)
class TokenInspectorResult:
    """What the sliders choose among the N tokens of the step, in the order of the table."""

    tokens: pd.DataFrame
    """The step's tokens, columns as in runs.TOKEN_COLUMNS, with `ratio`, `clip_cov` and `kl_cov` (bool) added"""
    covariance: float
    """mean token covariance, nats: to first order what the entropy falls by, up to the step size"""
    covariance_clip_cov: float
    """the same with no advantage on the tokens that Clip-Cov takes"""
    covariance_kl_cov: float
    """the same with KL-Cov's push against log_ratio on the tokens it takes"""


class TokenInspector(View):
    """`TokenInspector(run)` or `TokenInspector(step)`; `.result` is what the sliders choose, for the next cell.

    Shows a response's text, each token coloured by covariance, entropy, log-prob, ratio to the sampling policy or
    what the run's own control took, at first of the last step with a covariance. Sliders for Clip-Cov (band, share) and
    KL-Cov (share, coef) show at once which tokens they would take among the step's shown prompts, and how that changes
    the mean covariance, which is to first order what the entropy falls by. Where the task knows at which tokens a
    response had a choice, these forks are boxed, and the response's strategy and first wrong step are said. A run has
    the tokens it recorded; a live step all of its own. Bad input is said in the widget: `problem`; a step or response
    that is not there raises ErltoolError where it is set later.
    """

    _esm = javascript("token_inspector.js")
    steps = traitlets.List(traitlets.Int()).tag(sync=True)
    # Not echoed: an echo would undo in the browser what was chosen since.
    step = traitlets.Int(0).tag(sync=True, echo_update=False)
    quantity = traitlets.Enum(QUANTITIES, "covariance").tag(sync=True, echo_update=False)
    response = traitlets.Int(0).tag(sync=True, echo_update=False)
    low = traitlets.Float(1.0).tag(sync=True, echo_update=False)
    high = traitlets.Float(5.0).tag(sync=True, echo_update=False)
    clip_fraction = traitlets.Float(0.02).tag(sync=True, echo_update=False)
    kl_fraction = traitlets.Float(0.1).tag(sync=True, echo_update=False)
    coef = traitlets.Float(1.0).tag(sync=True, echo_update=False)
    data = traitlets.Dict().tag(sync=True)
    """The step's tokens as columns: texts, float32 bytes, and where each response begins."""

    _responses = 0  # of the step; before one is loaded any number may be asked for

    def __init__(self, source, **settings):
        try:
            self._table = _tokens_of(source)
            problem = ""
        except ErltoolError as e:
            self._table, problem = pd.DataFrame({c: [] for c in TOKEN_COLUMNS}), str(e)
        steps = sorted(int(s) for s in self._table["step"].unique())
        # Late, groups may have no spread left, and a step without a covariance shows nothing.
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

    @traitlets.validate("response")
    def _among_responses(self, proposal) -> int:
        if self._responses and not 0 <= proposal.value < self._responses:
            raise ErltoolError(f"TokenInspector: response {proposal.value}: the step has 0 to {self._responses - 1}")
        return proposal.value

    def _load(self) -> None:
        table = self._table[self._table["step"] == self.step].reset_index(drop=True)
        group = (
            table[["prompt_index", "response_index"]].apply(tuple, axis=1) if len(table) else pd.Series(dtype=object)
        )
        begins = np.flatnonzero((group != group.shift()).to_numpy())
        ratio = np.exp(table["log_prob"] - table["old_log_prob"]) if len(table) else pd.Series(dtype=float)
        self._shown = table.assign(ratio=ratio)
        # One key a token, as the controls draw them: the sliders' random choice is that of a seeded generator.
        self._keys = np.random.default_rng(0).random(len(table), dtype=np.float32)
        columns = {n: self._shown[n].to_numpy(np.float32) for n in (*QUANTITIES, "advantage")}
        self._responses = len(begins)
        self.response = max(0, min(self.response, len(begins) - 1))
        self.data = {
            "note": _note(self._shown),
            "texts": [visible(str(t)) for t in table["text"]],
            "prompts": [visible(str(table["prompt"][b])) for b in begins],
            "rewards": [float(table["reward"][b]) for b in begins],
            "begins": begins.tolist(),
            "told": _told(table, begins),
            "forks": np.ascontiguousarray(_forks(table), np.float32).tobytes(),
            "keys": self._keys.tobytes(),
            **{n: np.ascontiguousarray(v).tobytes() for n, v in columns.items()},
        }

    @property
    def result(self) -> TokenInspectorResult:
        """What the sliders choose now."""
        t = self._shown
        cov, n = t["covariance"].to_numpy(float), len(t)
        advantage, log_prob = t["advantage"].to_numpy(float), t["log_prob"].to_numpy(float)
        clip, kl = np.zeros(n, bool), np.zeros(n, bool)
        if n:
            band = np.flatnonzero((cov > self.low) & (cov < self.high))
            clip[band[np.argsort(-self._keys[band], kind="stable")[: token_budget(self.clip_fraction, n)]]] = True
            kl[np.argsort(-cov, kind="stable")[: token_budget(self.kl_fraction, n)]] = True
        push = self.coef * np.sign(log_prob - t["old_log_prob"].to_numpy(float))
        means = [covariance_of(log_prob, a) for a in (advantage, np.where(clip, 0, advantage),
                                                      np.where(kl, advantage - push, advantage))]  # fmt: skip
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
        part = self._shown.iloc[begins[self.response] : begins[self.response + 1]].head(60)
        values = part[self.quantity].to_numpy(float)
        ax.bar(range(len(part)), values, color=np.where(values < 0, "#D55E00", "#0072B2"))
        ax.set_xticks(range(len(part)), [shown(t, 20) for t in part["text"]], parse_math=False, fontsize=8)
        ax.axhline(0, color="black", linewidth=0.8)
        for label, fork in zip(ax.get_xticklabels(), _forks(part), strict=True):
            if fork:
                label.set_bbox({"boxstyle": "square,pad=0.15", "facecolor": "none", "edgecolor": "black"})
        ax.set_ylabel(self.quantity)
        ax.set_title(shown(self.data["prompts"][self.response], 120), parse_math=False, fontsize=9, loc="left")
        return ax.figure


def covariance_of(log_prob: np.ndarray, advantage: np.ndarray) -> float:
    """Mean token covariance of tokens in one row, nats; 0 for no tokens."""
    log_prob, advantage = (torch.from_numpy(np.array(x))[None] for x in (log_prob, advantage))  # pandas' are read-only
    return mean_covariance(advantage, log_prob, torch.ones_like(log_prob, dtype=torch.bool)).item()


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
    missing = [c for c in TOKEN_COLUMNS if c not in table]
    if missing:
        raise ErltoolError(f"TokenInspector: the table lacks {', '.join(missing)}")
    if not len(table):
        raise ErltoolError("TokenInspector: no tokens were recorded; train with record_every above 0")
    for name in ("log_prob", "old_log_prob", "entropy", "advantage", "covariance"):
        broken = int((~np.isfinite(table[name].to_numpy(float))).sum())
        if broken:
            raise ErltoolError(
                f"TokenInspector: {name} is not finite on {broken} of {len(table)} tokens; look for what diverged"
            )
    return table


def _forks(table: pd.DataFrame) -> np.ndarray:
    """(N,) bool: tokens at which a response had a choice; False where the task does not know."""
    return (table["fork"] == True).to_numpy() if "fork" in table else np.zeros(len(table), bool)  # noqa: E712


def _told(table: pd.DataFrame, begins: np.ndarray) -> list[str]:
    """What the task says of each response, "" where it says nothing."""
    if not {"strategy", "first_wrong"} <= set(table):
        return [""] * len(begins)
    strategy = table["strategy"].astype(object).where(table["strategy"].notna(), "").astype(str)
    wrong = pd.to_numeric(table["first_wrong"], errors="coerce")
    return [visible(strategy[b] + (f", step {wrong[b]:.0f} is wrong" if wrong[b] > 0 else "")) for b in begins]


def _unrecorded(step, steps: list[int]) -> str:
    return f"TokenInspector: no tokens of step {step}; there are {steps[0]} to {steps[-1]}, {len(steps)} steps"


def _note(shown: pd.DataFrame) -> str:
    """What a reader of a step's tokens must know first: why all covariances are 0, and which texts are none."""
    notes = []
    if len(shown) and not shown["covariance"].any():
        one = len(shown[["prompt_index", "response_index"]].drop_duplicates()) == 1
        why = "one response has one advantage" if one else "all rewards are equal in each group"
        notes.append(f"Every covariance is 0: {why}, and a control has nothing to choose by.")
    broken = int(shown["text"].str.contains("\ufffd", regex=False).sum()) if len(shown) else 0
    if broken:
        notes.append(f"{broken} tokens are parts of a character, not text on their own: shown as U+FFFD.")
    return " ".join(notes)
