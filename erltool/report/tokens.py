"""The recorded tokens that a page has room for."""

import dataclasses

import pandas as pd

from erltool.errors import ErltoolError
from erltool.report.state import rounded
from erltool.runs.folder import Run
from erltool.text import listed, visible

MOST = 90_000  # tokens of all runs together: about 3 MB of the page
RUNS = 4  # runs whose tokens a page has


def for_the_page(runs: dict[str, Run]) -> tuple[dict[str, Run], list[str]]:
    """Runs whose tokens the page can show, by name, and sentences on what is left out.

    A run keeps all its recorded steps where that is possible, with the first prompts of each; beyond that, steps evenly
    from the first to the last. A response is whole or not there. Numbers have five significant digits.
    """
    found, said, without = {}, [], []
    for name, run in runs.items():
        try:
            found[name] = run.tokens
        except ErltoolError:
            without.append(name)
    if without:
        said.append(f"No tokens were recorded in {listed(without, 3)}; train with record_every above 0.")
    found = {name: table for name, table in found.items() if len(table)}
    kept = dict(list(found.items())[:RUNS])
    if len(found) > RUNS:
        said.append(f"The tokens of {len(found) - RUNS} more runs are left out; make a page of each.")
    cut = {}
    for name, table in kept.items():
        tokens, left_out = _cut(table, MOST // len(kept))
        said += [f"{name}: {left_out}"] if left_out else []
        cut[name] = dataclasses.replace(runs[name])
        vars(cut[name])["tokens"] = _rounded(tokens)  # in the place of the cached property
    return cut, said


def _cut(tokens: pd.DataFrame, most: int) -> tuple[pd.DataFrame, str]:
    """At most about `most` tokens, but those of one prompt at least, and what is left out."""
    if len(tokens) <= most:
        return tokens, ""
    order = tokens.groupby("step")["prompt_index"].transform(lambda p: pd.factorize(p)[0])
    prompts = int(order.max()) + 1
    while prompts > 1 and (order < prompts).sum() > most:
        prompts -= 1
    kept = tokens[order < prompts]
    steps = kept["step"].unique()
    every = -(-len(kept) // most)
    shown = set(steps[::every]) | {steps[-1]}
    kept = kept[kept["step"].isin(shown)]
    return kept, (
        f"{len(kept):,} of {len(tokens):,} recorded tokens are in this page: of {len(shown)} of {len(steps)} recorded "
        f"steps the first {prompts} prompt{'s' * (prompts > 1)}."
    )


def _rounded(tokens: pd.DataFrame) -> pd.DataFrame:
    floats = tokens.select_dtypes("floating").columns
    return tokens.assign(**{c: rounded(tokens[c]) for c in floats}).reset_index(drop=True)


def responses(tokens: pd.DataFrame) -> list[list]:
    """The recorded responses: step, position in the step, prompt, text, reward, tokens, and mean covariance (nats)."""
    groups = tokens.groupby(["step", "prompt_index", "response_index"], sort=False)
    table = groups.agg(
        prompt=("prompt", "first"), text=("text", lambda t: "".join(map(str, t))), reward=("reward", "first"),
        tokens=("text", "size"), covariance=("covariance", "mean"),
    ).reset_index()  # fmt: skip
    table["at"] = table.groupby("step").cumcount()
    shown = zip(table["prompt"].map(visible), table["text"].map(visible), strict=True)
    numbers = table[["step", "at", "reward", "tokens", "covariance"]].itertuples(index=False)
    return [
        [int(n.step), int(n.at), prompt, text, float(n.reward), int(n.tokens), float(f"{n.covariance:.4g}")]
        for n, (prompt, text) in zip(numbers, shown, strict=True)
    ]
