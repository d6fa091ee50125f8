"""A table of tokens as TokenInspector sends and draws it: one step at a time, its responses in groups."""

import numpy as np
import pandas as pd

from erltool.errors import ErltoolError
from erltool.runs.folder import PROBE_COLUMNS, TOKEN_COLUMNS, Run
from erltool.text import visible

QUANTITIES = ("covariance", "push", "entropy", "log_prob", "ratio", "selected", "clip_cov", "kl_cov")
CHOICES = ("selected", "clip_cov", "kl_cov")  # quantities that are 0 or 1
SENT = ("covariance", "push", "entropy", "log_prob", "selected", "old_log_prob", "advantage", "entropy_after")
FINITE = SENT[:-1]  # entropy_after is NaN where nothing was measured


def tables_of(source) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tokens of a run, a live step or a table, and the responses to its probe prompts, no rows for none. Raises
    ErltoolError for no tokens, and for numbers that are not finite."""
    probes = pd.DataFrame(columns=[*PROBE_COLUMNS])
    if isinstance(source, Run):
        table, probes = source.tokens, source.probes
    elif isinstance(source, pd.DataFrame):
        table = source
    elif hasattr(source, "table"):
        table = source.table()
        probes = probes if getattr(source, "probes", None) is None else source.probes
    else:
        raise ErltoolError(f"TokenInspector: give a run, a step or a table of tokens, not {type(source).__name__}")
    if missing := [c for c in TOKEN_COLUMNS if c not in table]:
        raise ErltoolError(f"TokenInspector: the table lacks {', '.join(missing)}")
    if not len(table):
        raise ErltoolError("TokenInspector: no tokens were recorded; train with record_every above 0")
    for name in (c for c in FINITE if c in table):
        if broken := int((~np.isfinite(table[name].to_numpy(float))).sum()):
            raise ErltoolError(
                f"TokenInspector: {name} is not finite on {broken} of {len(table)} tokens; look for what diverged"
            )
    return table, probes[probes["step"].isin(table["step"].unique())]


def most_to_see(table: pd.DataFrame) -> tuple[int, int, int]:
    """Step, prompt_index and response_index of the token with the highest covariance in the group with the most to see:
    that whose rewards differ and whose covariance spreads furthest. Without any covariance, entropy takes its place."""
    groups = table.groupby(["step", "prompt_index"], sort=False)
    quantity = "covariance" if (table["covariance"] != 0).any() else "entropy"
    spread = groups[quantity].agg(np.ptp) if quantity == "entropy" else groups[quantity].std(ddof=0)
    differ = spread[groups["reward"].nunique() > 1]
    step, prompt = (differ if len(differ) else spread).idxmax()
    group = table[(table["step"] == step) & (table["prompt_index"] == prompt)]
    return int(step), int(prompt), int(group["response_index"].iloc[int(np.argmax(group[quantity].to_numpy(float)))])


def begins_of(table: pd.DataFrame) -> np.ndarray:
    """Where each response of a step begins in its table."""
    response = table[["prompt_index", "response_index"]]
    return np.flatnonzero((response != response.shift()).any(axis=1))


def numbers_of(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """The numbers of a step's tokens by name, (N,) float32 each, as the browser gets them."""
    numbers = {name: table[name].to_numpy(np.float32) for name in SENT if name in table}
    if "old_log_prob" in numbers:
        numbers["ratio"] = np.exp(numbers["log_prob"] - numbers["old_log_prob"])
    return numbers


def sent(table: pd.DataFrame, keys: np.ndarray | None = None) -> dict:
    """A step's tokens as columns: texts, where each response begins and what is known of it, and bytes of float32 (ids
    and likeliest int32). `keys` is Clip-Cov's random order."""
    begins, numbers = begins_of(table), numbers_of(table)
    strategies, wrong = _described(table, begins)
    return {
        "note": _note(table),
        "texts": [visible(str(t)) for t in table["text"]],
        "prompts": [visible(str(table["prompt"].iloc[b])) for b in begins],
        "rewards": [float(table["reward"].iloc[b]) for b in begins],
        "groups": [int(table["prompt_index"].iloc[b]) for b in begins],
        "strategies": strategies,
        "wrong": wrong,
        "begins": begins.tolist(),
        "quantities": [c for c in QUANTITIES if c in numbers or (c in CHOICES and "covariance" in numbers)],
        "ids": table["token_id"].to_numpy(np.int32).tobytes(),
        "forks": forks_of(table).astype(np.float32).tobytes(),
        **({} if keys is None else {"keys": keys.tobytes()}),
        **{name: values.tobytes() for name, values in numbers.items() if name != "ratio"},
        **_likeliest(table),
    }


def forks_of(table: pd.DataFrame) -> np.ndarray:
    """(N,) bool: True for a token at which the response had a choice; False where the task does not know."""
    return (table["fork"] == True).to_numpy() if "fork" in table else np.zeros(len(table), bool)  # noqa: E712


def _described(table: pd.DataFrame, begins: np.ndarray) -> tuple[list[str], list[int]]:
    """What the task says of each response: strategy ("" for nothing) and first wrong step (0 for none)."""
    if not {"strategy", "first_wrong"} <= set(table):
        return [""] * len(begins), [0] * len(begins)
    first = table.iloc[begins]
    strategy = first["strategy"].astype(object).where(first["strategy"].notna(), "").astype(str)
    wrong = pd.to_numeric(first["first_wrong"], errors="coerce").fillna(0).clip(lower=0)
    return [visible(s) for s in strategy], [int(w) for w in wrong]


def _likeliest(table: pd.DataFrame) -> dict:
    """The likeliest tokens at each place, where recorded: their texts once, (N, K) of numbers into these, -1 for none,
    and their probabilities."""
    if "likeliest" not in table:
        return {}
    rows = [list(row) for row in table["likeliest"]]
    most = max(map(len, rows), default=0)
    if not most:
        return {}
    words = {text: i for i, text in enumerate(dict.fromkeys(text for row in rows for text in row))}
    places = np.full((len(rows), most), -1, np.int32)
    columns = {"likeliest_before": places * 0.0, "likeliest_after": places * 0.0}
    columns = {name: values for name, values in columns.items() if name in table}
    for n, row in enumerate(rows):
        places[n, : len(row)] = [words[text] for text in row]
    for name, values in columns.items():
        for n, row in enumerate(table[name]):
            values[n, : len(row)] = row
    return {
        "words": [visible(str(text)) for text in words],
        "likeliest": places.tobytes(),
        **{name: values.astype(np.float32).tobytes() for name, values in columns.items()},
    }


def _note(table: pd.DataFrame) -> str:
    """What a reader must know first: why every covariance is 0, and which tokens are not text."""
    notes = []
    if len(table) and "covariance" in table and not table["covariance"].any():
        one = len(table[["prompt_index", "response_index"]].drop_duplicates()) == 1
        why = "one response has one advantage" if one else "all rewards are equal in each group"
        notes.append(f"Every covariance is 0: {why}, and a control has nothing to choose by.")
    if broken := int(table["text"].astype(str).str.contains("\ufffd", regex=False).sum()):
        notes.append(f"{broken} tokens are parts of a character, not text on their own: shown as U+FFFD.")
    return " ".join(notes)


# --- what is on show; the browser does the same in tokens.js, and a test holds both equal ------------------


def same_place(table: pd.DataFrame, step: int, chosen: int) -> pd.Series:
    """Entropy by step of the place of a step's token `chosen`, that is after the same tokens of a response to the same
    prompt; at the steps of `table` where it was sampled."""
    now = table[table["step"] == step].reset_index(drop=True)
    at = now.loc[chosen]
    begin = chosen - int(at["position"])
    prefix = tuple(now["token_id"].iloc[begin:chosen])
    found: dict[int, float] = {}
    here = table[(table["prompt_index"] == at["prompt_index"]) & (table["position"] <= at["position"])]
    for (of_step, _), response in here.groupby(["step", "response_index"], sort=True):
        ids = tuple(response["token_id"])
        if len(ids) > len(prefix) and ids[:-1] == prefix:
            found.setdefault(int(of_step), float(response["entropy"].iloc[-1]))
    return pd.Series(found, dtype=float)


def rows_of(data: dict, response: int, keep: str = "all") -> list[int]:
    """The responses beside `response` in its group, by falling reward, those that `keep` leaves."""
    group = [r for r, g in enumerate(data["groups"]) if g == data["groups"][response]]
    rewards, strategies = data["rewards"], data["strategies"]
    tests = {"right": lambda r: rewards[r] >= 1, "wrong": lambda r: rewards[r] < 1}
    test = tests.get(keep, lambda r: not keep.startswith("strategy ") or keep == f"strategy {strategies[r]}")
    return sorted(filter(test, group), key=lambda r: -rewards[r])


def branches(rows: list[list[int]]) -> list[list[int]]:
    """Positions in each of several responses, given as token ids, at which it parts from another one that was the same
    up to there."""
    parts: list[list[int]] = [[] for _ in rows]
    together = [(list(range(len(rows))), 0)]
    while together:
        members, at = together.pop()
        by_token: dict[int | None, list[int]] = {}
        for m in members:
            by_token.setdefault(rows[m][at] if at < len(rows[m]) else None, []).append(m)
        for token, same in by_token.items():
            if token is None:
                continue
            if len(by_token) > 1:
                for m in same:
                    parts[m].append(at)
            if len(same) > 1:
                together.append((same, at + 1))
    return [sorted(p) for p in parts]
