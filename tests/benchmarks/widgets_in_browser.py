"""Widgets in a real JupyterLab and Chromium: prints what is wanted and what was measured, exits 1 for a miss.

    python tests/benchmarks/widgets_in_browser.py [CHECK ...] [--shots FOLDER]

What it needs, and what serves the notebook that is made here, stands in tests/browser.py.

hostile     markup in a token or a name is shown as itself
bad         bad input: a message that says what is wrong, never a traceback or a blank
speed       from the press of an arrow key on a slider to the first frame that shows its change, and to that frame's end
            (style, layout, paint), 30 presses
python      from a trait that is set in the kernel to the first frame that shows it, 20 times
keyboard    every control has a name that a screen reader says, and Tab reaches it
memory      JavaScript heap after a forced collection, and the kernel's resident memory, over 1,000 slider moves
A new widget is a line in WIDGETS, and its bad input lines in BAD.
"""

import argparse
import json
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
from playwright.sync_api import Locator, Page

sys.path.insert(0, str(Path(__file__).parent.parent))
from browser import CONTROLS, SEEN, WATCH, Lab, chromium  # noqa: E402

PRESSES, WARM_UP, MOVES = 30, 200, 1000
HEAP_GROWTH, RSS_GROWTH = 1.0, 5.0  # MiB over MOVES that pass for none: what the collectors leave differs by less
HOSTILE = '<img src=x onerror="window.hostile=1">'

SETUP = f"""
import dataclasses, numpy as np, pandas as pd
from erltool.runs.folder import read_runs
from erltool.resources import shipped
from erltool.widgets import ControlExplorer, CurveFitter, EntropyLab, RunForm, RunMonitor, TokenInspector
import erltool
hostile = {HOSTILE!r}
def tokens(length, responses=2):
    "A table of tokens with every column that a run records."
    rng, n = np.random.default_rng(0), length * responses
    log_prob, response = -rng.exponential(0.5, n), np.arange(n) // length
    advantage = 1.0 - 2.0 * (response % 2)
    covariance = (log_prob - log_prob.mean()) * (advantage - advantage.mean())
    return pd.DataFrame(dict(step=1, prompt_index=0, response_index=response, position=np.arange(n) % length,
        prompt="3 4 7 = 28", reward=(advantage + 1) / 2, token_id=np.arange(n) % 97,
        text=[f" t{{i % 97}}" for i in range(n)],
        log_prob=log_prob, old_log_prob=log_prob - rng.normal(0, 0.05, n), entropy=rng.exponential(0.5, n),
        advantage=advantage, covariance=covariance, selected=False))
few = tokens(12)
def paper():
    "The paper's points by model size."
    points = pd.read_csv(shipped("data/paper/fig1_right_points.csv"))
    return {{n: (g["entropy_nats"], g["validation_accuracy_percent"]) for n, g in points.groupby("series")}}
def recorded():
    return read_runs(shipped("data/runs/discovery"))
def unevaluated():
    run = next(iter(recorded().values()))
    return dataclasses.replace(run, metrics=run.metrics.drop(columns="eval_accuracy"))
line = np.linspace(0.8, 0.1, 12)
def swept(run, fraction):
    "A recorded Clip-Cov run as if made with another fraction, so that a slider has somewhere to go."
    metrics = run.metrics.assign(policy_entropy=run.metrics["policy_entropy"] * (1 + fraction))
    control = run.config["control"] | dict(fraction=fraction)
    return dataclasses.replace(run, metrics=metrics, config=run.config | dict(control=control))
def runs():
    discovery = list(read_runs(shipped("data/runs/discovery")).values())
    made = [swept(r, k / 20) for r in discovery if r.config["control"]["name"] == "clip-cov" for k in range(1, 13)]
    return [r for r in discovery if r.config["control"]["name"] != "clip-cov"] + made
"""


@dataclass(frozen=True)
class Widget:
    name: str
    code: str
    """An expression that makes it, after SETUP."""
    slider: str
    """Accessible name of the slider that is moved."""
    wanted_ms: float


WIDGETS = (
    Widget("EntropyLab", "EntropyLab()", "probability of a1", 16),
    Widget("TokenInspector, group of 8 x 64", "TokenInspector(tokens(64, responses=8))", "KL-Cov fraction", 16),
    Widget("TokenInspector, 300 tokens", "TokenInspector(tokens(300))", "KL-Cov fraction", 40),
    Widget("TokenInspector, 10,000 tokens", "TokenInspector(tokens(10_000))", "KL-Cov fraction", 200),
    Widget("ControlExplorer, 4 controls, 10 seeds", "ControlExplorer(runs())", "clip-cov fraction", 16),
    Widget("CurveFitter, dragged", "CurveFitter(paper(), current=4, beside=[0, 2])", "a", 40),
    Widget("CurveFitter, refitted", "CurveFitter(recorded(), performance='reward')", "window", 60),
    Widget("ControlExplorer, crosshair", "ControlExplorer(runs()).choose('clip-cov')", "read the values at a step", 40),
    Widget("CurveFitter, forecast", "CurveFitter(recorded(), performance='reward', cut=0.5)", "forecast cut", 60),
)
SHOWN_AS_ITSELF = (
    "TokenInspector(few.assign(text=hostile, prompt=hostile))",
    "EntropyLab(names=[hostile] * 4)",
    "CurveFitter({hostile: (line, 1 - line), hostile * 2: (line, 1 - line)}, beside=[1])",
    "RunForm(erltool.TrainConfig(device='cpu')).choose(policy=hostile, steps=hostile)",
    "ControlExplorer([dataclasses.replace(r, config=r.config | dict(policy=hostile, task=str(i % 2))) for i, r in "
    "enumerate(recorded().values())])",
)
BAD = (  # name, expression, words that the widget must show
    ("empty run", "TokenInspector(few.iloc[:0])", "no tokens were recorded"),
    ("one response", "TokenInspector(tokens(12, responses=1))", "one response"),
    ("all rewards equal", "TokenInspector(few.assign(advantage=0.0, covariance=0.0, reward=1.0))", "rewards are equal"),
    ("NaN log-probs", "TokenInspector(few.assign(log_prob=np.nan))", "log_prob is not finite"),
    ("tokens that are no text alone", "TokenInspector(few.assign(text='\\ufffd'))", "not text on their own"),
    ("wrong type", "TokenInspector(42)", "not int"),
    ("wrong table", "TokenInspector(pd.DataFrame())", "lacks step"),
    ("step that is not there", "TokenInspector(few, step=7)", "no tokens of step 7"),
    ("ControlExplorer, no runs", "ControlExplorer([])", "there are no runs"),
    ("ControlExplorer, foreign folder", "ControlExplorer('.')", "holds no runs"),
    ("RunMonitor, no configuration", "RunMonitor(42)", "give a TrainConfig"),
    ("RunMonitor, stopped before start", "RunMonitor(erltool.TrainConfig()).stop()", "nothing to stop"),
    ("CurveFitter, constant entropy", "CurveFitter((np.ones(9), line[:9]))", "does not vary"),
    ("CurveFitter, two points", "CurveFitter((line[:2], line[:2]))", "at least 3"),
    ("CurveFitter, NaN", "CurveFitter((line, line * np.nan))", "not finite"),
    ("CurveFitter, mixed units", "CurveFitter((line, np.where(line > .5, .3, 31.)))", "state the unit"),
    ("CurveFitter, never evaluated", "CurveFitter(unevaluated())", "was never evaluated"),
    ("CurveFitter, no folder", "CurveFitter('nothing')", "no such folder"),
    ("CurveFitter, other columns", "CurveFitter(pd.DataFrame(dict(H=line, R=line)))", "lacks the column entropy"),
    ("EntropyLab, one action", "EntropyLab([1.0], [1.0])", "two or more"),
    ("EntropyLab, NaN", "EntropyLab(advantages=[np.nan] * 4)", "finite"),
    ("EntropyLab, all advantages equal", "EntropyLab(advantages=[1.0] * 4)", "the next step changes it by 0.0000"),
)

MOVED = "(moved := TokenInspector(tokens(64, responses=8)))"
FROM_PYTHON = """import json, time
sent = []
for i in range(20):
    sent.append(time.time())
    moved.kl_fraction = 0.1 + 0.02 * i
    time.sleep(0.3)
print(json.dumps(sent))"""


class Report:
    """The table: a line as soon as it is known."""

    def __init__(self):
        self.failed = 0

    def line(self, name: str, wanted: str, measured: str, good: bool) -> None:
        self.failed += not good
        print(f"{'ok  ' if good else 'MISS'}  {name:60}  {wanted:>24}  {measured}", flush=True)


class Widgets(Lab):
    """JupyterLab on a notebook of the given expressions, one a cell, all run."""

    def __init__(self, expressions: list[str]):
        self.expressions = expressions
        cells = [nbformat.v4.new_code_cell(code) for code in (SETUP, *expressions)]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}  # without it a dialogue asks
        super().__init__(nbformat.v4.new_notebook(cells=cells, metadata=kernel))

    def opened(self) -> None:
        super().opened()
        self.run_all()

    def output(self, expression: str) -> Locator:
        """What the cell of that expression shows."""
        return self.output_of(1 + self.expressions.index(expression))


def press(page: Page, count: int, pause_ms: int) -> None:
    """That many presses, to and fro, so that the slider never stands at its end."""
    for i in range(count):
        page.keyboard.press("ArrowRight" if i // 5 % 2 == 0 else "ArrowLeft")
        if pause_ms:
            page.wait_for_timeout(pause_ms)


def speed(lab: Widgets, report: Report, widget: Widget) -> None:
    output = lab.output(widget.code)
    output.get_by_role("slider", name=widget.slider, exact=True).focus()
    press(lab.page, 5, 200)
    output.evaluate(WATCH)
    press(lab.page, PRESSES, 250)
    times = lab.page.evaluate("window.times")
    frame, end = ([statistics.quantiles(column, n=10)[at] for at in (4, 8)] for column in zip(*times, strict=True))
    measured = f"{frame[0]:.0f} ms, p90 {frame[1]:.0f}; to its end {end[0]:.0f}, {end[1]:.0f}; {len(times)} presses"
    good = len(times) == PRESSES and frame[0] <= widget.wanted_ms
    report.line(f"{widget.name}: key to new picture, median", f"at most {widget.wanted_ms:g} ms", measured, good)


def from_python(lab: Widgets, report: Report, code: str) -> None:
    lab.output(code).evaluate(SEEN)
    last = len(lab.expressions)  # the last cell: it is there for this
    lab.run_as(last, FROM_PYTHON)
    lab.page.wait_for_timeout(1000)  # the text has come
    sent = json.loads(lab.output_of(last).inner_text())
    seen = lab.page.evaluate("window.seen")
    took = [1000 * min((t - began for t in seen if t > began), default=float("inf")) for began in sent]
    median, p90 = (statistics.quantiles(took, n=10)[at] for at in (4, 8))
    measured = f"{median:.0f} ms, p90 {p90:.0f}; {len(took)} times"
    report.line("TokenInspector, group of 8 x 64: from Python, median", "at most 40 ms", measured, median <= 40)


def memory(lab: Widgets, report: Report, widget: Widget) -> None:
    lab.output(widget.code).get_by_role("slider", name=widget.slider, exact=True).focus()
    press(lab.page, WARM_UP, 0)
    before = lab.memory()
    press(lab.page, MOVES, 0)
    for kind, limit, b, a in zip(("heap", "kernel"), (HEAP_GROWTH, RSS_GROWTH), before, lab.memory(), strict=True):
        wanted = f"at most {limit:g} MiB more"
        report.line(f"{widget.name}: {kind}, {MOVES} moves", wanted, f"{b:.1f} to {a:.1f} MiB", a - b <= limit)


def keyboard(lab: Widgets, report: Report, widget: Widget) -> None:
    output = lab.output(widget.code)
    roles = re.findall(
        r"- (slider|combobox|radio|checkbox|button|option|textbox|spinbutton)( \".+\")?", output.aria_snapshot()
    )
    nameless = [role for role, name in roles if not name]
    report.line(
        f"{widget.name}: controls have names",
        "none without",
        f"{len(roles)} named, {len(nameless)} not",
        bool(roles) and not nameless,
    )
    # Of radio buttons of one name Tab reaches one. It reaches the head of a folded part, and not what is in it.
    count = output.evaluate(f"""(root) => {{
      const reached = (n) => n.tabIndex >= 0 && n.checkVisibility();
      const all = [...root.querySelectorAll("{CONTROLS}, summary")].filter(reached);
      return all.filter((n) => !n.disabled && (n.type !== 'radio' || n.checked)).length; }}""")
    lab.page.evaluate("document.activeElement.blur()")
    output.locator(CONTROLS).first.focus()
    reached, inside = 1, True
    while inside and reached <= count:
        lab.page.keyboard.press("Tab")
        inside = output.evaluate("(root) => root.contains(document.activeElement)")
        reached += inside
    report.line(f"{widget.name}: Tab reaches its controls", f"all {count}", str(reached), reached == count)


def hostile(lab: Widgets, report: Report, code: str) -> None:
    output = lab.output(code)
    shown, images = HOSTILE in output.inner_text(), output.locator(".erltool img").count()
    fired = lab.page.evaluate("window.hostile !== undefined")
    measured = f"{'shown' if shown else 'NOT shown'}, {'RAN' if fired else 'did not run'}, {images} images"
    report.line(
        f"{code.split('(')[0]}: markup in its text", "shown, not run", measured, shown and not fired and not images
    )


def bad_input(lab: Widgets, report: Report, case: tuple[str, str, str]) -> None:
    name, code, words = case
    text = lab.output(code).inner_text()
    good = words in text.replace("\u2212", "-") and "Traceback" not in text
    said = next((line for line in text.splitlines() if words in line), text.strip()[-60:] or "blank")
    report.line(f"bad input: {name}", f"says {words!r}"[:24], said[:110], good)


def screenshots(lab: Widgets, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for theme in ("Light", "Dark"):
        lab.theme(theme)
        for width in (1280, 800):
            lab.page.set_viewport_size({"width": width, "height": 1600})
            for widget in WIDGETS:
                name = re.sub(r"\W+", "_", widget.name)
                lab.output(widget.code).screenshot(
                    path=folder / f"{name}_{theme.lower()}_{width}.png", animations="disabled"
                )


CHECKS = {
    "hostile": (hostile, SHOWN_AS_ITSELF),
    "bad": (bad_input, BAD),
    "speed": (speed, WIDGETS),
    "python": (from_python, [MOVED]),
    "keyboard": (keyboard, WIDGETS),
    "memory": (memory, WIDGETS),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"of {', '.join(CHECKS)}; all without")
    parser.add_argument("--shots", type=Path, help="folder for screenshots in both themes, 1280 and 800 px wide")
    arguments = parser.parse_args()
    chosen = [CHECKS[name] for name in arguments.checks or CHECKS]
    if chromium() is None:
        raise SystemExit("no Chromium: apt-get install chromium, or name one by $CHROMIUM")
    report = Report()
    others = {hostile: SHOWN_AS_ITSELF, from_python: [MOVED], bad_input: [code for _, code, _ in BAD]}
    asked = [code for check, _ in chosen for code in others.get(check, ())]
    with Widgets([*(w.code for w in WIDGETS), *asked, "None"]) as lab:
        for check, items in chosen:
            for item in items:
                check(lab, report, item)
        if arguments.shots:
            screenshots(lab, arguments.shots)
        said = lab.said()
        report.line("errors and warnings in the page", "none", "; ".join(said)[:110] or "none", not said)
    return int(report.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
