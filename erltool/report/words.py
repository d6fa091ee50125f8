"""The words of a report: its head, its sections, and what is missing. Every text that comes from a run is escaped."""

import html
import math
from collections.abc import Iterable

import erltool
from erltool.law.fit import LawFit
from erltool.logs.read import Log
from erltool.report.sources import Source, settings
from erltool.text import shown as shortened
from erltool.text import visible

ADVISED = 6  # runs whose advice and alarms are spelled out
OPEN = 12  # rows of a table beyond which it is folded
ABOUT = {
    "course": (
        "What happened",
        "Entropy measures how much the policy still explores: nats a token, mean over response tokens. Training spends "
        "it, and reward rises. The covariance of log-probability and advantage is what spends it; a few tokens carry "
        "most of it. Move the step to read values.",
    ),
    "tokens": (
        "Which tokens",
        "The tokens that the run recorded, each with its covariance, its entropy and its log-probability, and what a "
        "control would take. Search and sort the responses to find one, or choose a step and a response. Arrow keys "
        "move from token to token.",
    ),
    "law": (
        "What entropy buys",
        "The law R = \u2212a exp(H) + b ties accuracy R to entropy H; b \u2212 a is the accuracy where entropy is "
        "spent. Drag a and b to see how firmly the points hold them. The forecast cut fits the first points and "
        "predicts the others.",
    ),
    "controls": (
        "Controls compared",
        "Runs by control: a thin line a seed, a thick one their mean. A difference that its interval does not tell "
        "from 0 is no difference.",
    ),
    "settings": ("Configuration and versions", "What made these numbers."),
}


def text(value) -> str:
    """Text for HTML, with hidden characters spelled out."""
    return html.escape(visible(value))


def title_of(sources: list[Source]) -> str:
    if len(sources) == 1:
        return sources[0].name
    names = ", ".join(s.name for s in sources[:3])
    return f"{len(sources)} runs: {names}" + (", \u2026" if len(sources) > 3 else "")


def body(sources: list[Source], title: str, about: str, notes: dict[str, list[str]], widgets: Iterable[str]) -> str:
    """The page's body. `notes` are sentences for a section; `widgets` the sections that have one."""
    first = {"controls": _place("controls", widgets)} if len(sources) > ADVISED else {}
    sections = first | {
        "course": _charts(sources),
        "tokens": _place("tokens", widgets) + _notes(notes["tokens"]),
        "law": _place("law", widgets) + _notes(notes["law"]),
        "controls": _place("controls", widgets) + _notes(notes["controls"]),
        "settings": _settings(sources),
    }
    sections = {name: content for name, content in sections.items() if content}
    links = "".join(f'<a href="#{name}">{ABOUT[name][0]}</a>' for name in sections)
    parts = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><div class="about"><h2 id="{name}-title">'
        f"{ABOUT[name][0]}</h2><p>{ABOUT[name][1]}</p></div><div>{content}</div></section>"
        for name, content in sections.items()
    )
    return (
        f'<header><p class="brand">erltool report</p><h1>{text(title or title_of(sources))}</h1>'
        f'<p class="lead">{text(about or _about(sources))}</p></header>'
        f'<nav aria-label="sections">{links}</nav><main>{_summary(sources)}{parts}</main>'
        f"<footer>Written by erltool {text(erltool.__version__)}. The page holds all of its data and loads nothing. "
        "The law and the covariance: Cui et al. 2025, arXiv 2505.22617.</footer>"
        "<noscript>The charts need JavaScript, which this browser has switched off.</noscript>"
    )


def _about(sources: list[Source]) -> str:
    first = sources[0]
    if len(sources) > 1:
        subjects = {f"{s.run.config.get('policy')} on {s.run.config.get('task')}" for s in sources if s.run}
        same = len(subjects) == 1 and all(s.run for s in sources)
        return f"{len(sources)} runs of {subjects.pop()}." if same else f"{len(sources)} runs and logs."
    if first.log:
        return f"{first.log.kind}, {len(first.rows)} steps; entropy: {first.log.entropy_average}."
    c = first.run.config if first.run else {}
    what = f"{c['policy']} on {c['task']}, " if "policy" in c and "task" in c else ""
    control = f", control {first.control}" if first.control else ""
    return f"{what}{len(first.rows)} of {c.get('steps')} optimiser steps{control}, seed {c.get('seed', 'unknown')}."


# --- summary ---------------------------------------------------------------------------------------


def _summary(sources: list[Source]) -> str:
    if len(sources) == 1:
        table = _tiles(sources[0])
    else:
        table = _scroll(_table_of_runs(sources), "runs")
        if len(sources) > OPEN:
            table = f"<details class=fold><summary>All {len(sources)} runs</summary>{table}</details>"
    said = "".join(_said(s, len(sources) > 1, at == 0) for at, s in enumerate(sources[:ADVISED]))
    if len(sources) > ADVISED:
        said += f"<p>Alarms and advice are spelled out for the first {ADVISED} runs.</p>"
    return f'<section id="summary" class="whole" aria-label="summary">{table}{said}</section>'


def _tiles(source: Source) -> str:
    start, end = source.edges("policy_entropy")
    left = f"{end / start:.0%} of it is left" if start > 0 and math.isfinite(end) else ""
    tiles = [("Entropy, nats/token", _from_to(start, end), left)]
    for metric, name in (("reward", "Reward"), ("eval_accuracy", "Held-out accuracy")):
        if math.isfinite(source.edges(metric)[0]):
            tiles.append((name, _from_to(*source.edges(metric)), "first and last of the run"))
    if isinstance(source.law, LawFit):
        low, high = source.law.interval()["ceiling"]
        of = " of reward" if source.performance == "reward" else ""
        tiles.append((f"Ceiling{of} by the law", f"{source.law.ceiling:.3g}", f"{low:.3g} to {high:.3g} at 95 %"))
    kinds = list(dict.fromkeys(a.kind for a in source.alarms))
    tiles.append(("Alarms", str(len(source.alarms)), ", ".join(kinds) or "none was raised"))
    return '<dl class="tiles">' + "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd><dd class=small>{text(more)}</dd></div>"
        for name, value, more in tiles
    ) + "</dl>"  # fmt: skip


def _from_to(start: float, end: float) -> str:
    return f"{start:.3g} \u2192 {end:.3g}" if math.isfinite(start) else "not measured"


def _table_of_runs(sources: list[Source]) -> str:
    head = ("run", "control", "seed", "steps", "entropy", "reward", "held-out accuracy", "ceiling (95 %)", "alarms")
    rows = []
    for s in sources:
        ceiling = "\u2013"
        if isinstance(s.law, LawFit):
            ceiling = "{:.3g} ({:.3g} to {:.3g})".format(s.law.ceiling, *s.law.interval()["ceiling"])
        values = (_from_to(*s.edges(m)) for m in ("policy_entropy", "reward", "eval_accuracy"))
        seed = s.run.config.get("seed", "\u2013") if s.run else "\u2013"
        control = shortened(s.control, 80).replace(":", ": ").replace(",", ", ").replace("=", " ") or "\u2013"
        rows.append([s.name, control, seed, len(s.rows), *values, ceiling, len(s.alarms)])
    return _table(head, rows, "runs: means of the first and of the last five iterations")


def _said(source: Source, several: bool, first: bool) -> str:
    """Alarms, advice and what is missing; of several sources folded, but for the first."""
    alarms = "".join(f"<li>{text(a)}</li>" for a in source.alarms)
    parts = [f'<ul class="alarm-list" aria-label="alarms">{alarms}</ul>'] if alarms else []
    parts += [f'<p class="advice"><b>Advice.</b> {text(source.advice)}</p>'] if source.advice else []
    parts += [_notes(source.missing)]
    content = "".join(parts)
    if not content or not several:
        return content
    state = f"{len(source.alarms)} alarm{'s' * (len(source.alarms) != 1)}"
    state += ", advice" if source.advice else ""
    return f"<details class=fold{' open' * first}><summary>{text(source.name)}: {state}</summary>{content}</details>"


# --- sections --------------------------------------------------------------------------------------


def _place(name: str, widgets: Iterable[str]) -> str:
    return f'<div class="widget" data-place="{name}"></div>' if name in widgets else ""


def _charts(sources: list[Source]) -> str:
    return '<div class="course"></div>' if any(not s.rows.empty for s in sources) else ""


def _settings(sources: list[Source]) -> str:
    alike, differing = settings(sources)
    parts = []
    if len(differing):
        rows = [[field, *row] for field, row in zip(differing.index, differing.to_numpy(), strict=True)]
        if len(differing.columns) > ADVISED:  # a row each reads better than a column each
            rows = [[name, *column] for name, column in differing.items()]
            head = ["run", *differing.index]
        else:
            head = ["", *differing.columns]
        table = _table(head, rows, "settings in which the runs differ")
        state = " open" if len(differing.columns) <= OPEN else ""
        parts.append(
            f"<details class=fold{state}><summary>What differs</summary>{_scroll(table, 'what differs')}</details>"
        )
    if alike:
        name = "What all have alike" if len(differing) else "Configuration and versions"
        table = _scroll(_table((), list(alike.items()), "settings"), "settings")
        parts.append(f"<details class=fold><summary>{name}</summary>{table}</details>")
    parts += [_reading(s.name, s.log) for s in sources if s.log]
    return "".join(parts)


def _reading(name: str, log: Log) -> str:
    """How a log was read: its format, its columns by role, what was skipped, and guesses."""
    about = [["format", log.kind], ["unit of performance", log.unit], ["entropy", log.entropy_average]]
    about += [[role, column] for role, column in log.columns.items()]
    about += [[f"skipped: {reason}", f"{count:,}"] for reason, count in log.skipped.items()]
    table = _scroll(_table((), about, f"how {name} was read"), "settings")
    return f"<details class=fold><summary>How {text(name)} was read</summary>{table}{_notes(log.notes)}</details>"


def _notes(sentences: Iterable[str]) -> str:
    return "".join(f'<p class="missing">{text(s)}</p>' for s in sentences)


def _scroll(table: str, label: str) -> str:
    """A table that scrolls sideways where the window is narrow, by keys as well."""
    return f'<div class="scroll {label}" tabindex="0" role="region" aria-label="{label}">{table}</div>'


def _table(head: Iterable, rows: Iterable[Iterable], label: str) -> str:
    top = "".join(f'<th scope="col">{text(h)}</th>' for h in head)
    lines = "".join(
        f'<tr><th scope="row">{text(first)}</th>' + "".join(f"<td>{text(v)}</td>" for v in rest) + "</tr>"
        for first, *rest in map(list, rows)
    )
    caption = f'<caption class="spoken">{text(label)}</caption>'
    return f"<table>{caption}{f'<thead><tr>{top}</tr></thead>' if top else ''}<tbody>{lines}</tbody></table>"
