"""Runs and logs as one interactive HTML file: the widgets' own JavaScript on recorded data.

The file needs no kernel and no network, and its content-security policy allows none. Python writes every word into the
page; JavaScript draws the charts and opens the widgets, each by its `render` on a stand-in for the kernel's model
(common.js). What a widget would ask the kernel for was asked while the page was made (state.py).
"""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import erltool
from erltool.errors import ErltoolError
from erltool.files import write_whole, writing
from erltool.logs.read import Log
from erltool.report import words
from erltool.report.charts import charts_of
from erltool.report.sources import Source, named
from erltool.report.state import Asks, Bytes, state_of, view_of
from erltool.report.tokens import for_the_page, responses
from erltool.runs.folder import Run
from erltool.widgets import ControlExplorer, CurveFitter, TokenInspector

HERE = Path(__file__).parent
SCRIPTS = ("common.js", "chart.js", "finder.js", "page.js")  # one script; each needs those before it
BESIDE = 3  # laws beside the first, of other runs
FINE, COARSE, FEW = 1, 5, 6  # percent between forecast cuts that the page has: of one source, and of a few


def write_page(sources: Mapping[str, Run | Log], file: Path, **settings) -> Path:
    """Writes `page_of` the sources, with its settings. Raises ErltoolError where there is none, or the file cannot be
    written."""
    text = page_of(sources, **settings)
    with writing(file):
        write_whole(file, text.encode())
    return file


def page_of(sources: Mapping[str, Run | Log], title: str = "", about: str = "", window: float | None = None) -> str:
    """The page of the sources, by the names that a reader sees.

    `title` and `about`, a sentence, are by default the sources' names and what they are. `window` is that of
    `align_points`, for logs. Raises ErltoolError without a source.
    """
    shown = named(sources, window)
    if not shown:
        raise ErltoolError("report: there is nothing to show; give runs, their folders, or logs")
    notes: dict[str, list[str]] = {"tokens": [], "law": [], "controls": []}
    numbers, views = Bytes(), dict[str, str]()
    modules: dict[str, str] = {}
    placed: dict[str, list[dict]] = {}
    styles: dict[str, None] = {}
    for place, label, widget, asks, more in _widgets(shown, notes, window):
        if widget.problem:
            notes[place].append(widget.problem)
        if not widget.problem or place == "controls" and len(widget.result.end):
            placed.setdefault(place, []).append({"label": label, **more, **state_of(widget, numbers, asks)})
            name, needed, views[name] = view_of(widget)
            modules |= needed
            styles[str(widget.get_state(["_css"])["_css"])] = None
        widget.close()  # ipywidgets keeps every open one
    charts = charts_of(shown)
    alarms = [[at, a.step, str(a)] for at, s in enumerate(shown) for a in s.alarms]
    facts = {"runs": [s.name for s in shown], "charts": charts, "alarms": alarms, "widgets": placed}
    body = words.body(shown, title, about, notes, placed)
    return _document(
        title or words.title_of(shown), body, "".join(styles), _views(modules, views), facts, b"".join(numbers.parts)
    )


def _widgets(shown: list[Source], notes: dict[str, list[str]], window: float | None) -> Iterator[tuple]:
    """Each widget: its place in the page, its label, the widget, what it asks the kernel for, and what the page shows
    beside it."""
    runs = {s.name: s.run for s in shown if s.run}
    cut, left_out = for_the_page(runs)
    notes["tokens"] += left_out
    for name, run in cut.items():
        steps = sorted(run.tokens["step"].unique().tolist())
        asks = Asks({"step": steps}, along=("response",))
        yield "tokens", name, TokenInspector(run), asks, {"responses": responses(run.tokens)}
    points = {s.name: s.log.points(window) if s.log else s.run for s in shown if not isinstance(s.law, str)}
    if points:
        beside = list(range(1, min(len(points), BESIDE + 1)))
        fitter = CurveFitter(points, beside=beside, performance=shown[0].performance)
        yield "law", "", fitter, _of_the_law(len(points)), {}
    if len(runs) > 1:
        yield "controls", "", ControlExplorer(runs), None, {}


def _of_the_law(sources: int) -> Asks:
    """Every source, and for few sources every cut of the forecast: its interval needs Python."""
    percent = FINE if sources == 1 else COARSE
    cuts = [p / 100 for p in range(5, 101, percent)] if sources <= FEW else [1.0]
    given = ("performance", "window", "block_length", "law", "beside")
    # With the verdict, changed or not: the view forgets it when the reader chooses another source.
    return Asks({"current": range(sources), "cut": cuts}, given, along=("verdict",), settle=_compared)


def _compared(fitter: CurveFitter) -> None:
    """The verdict on the laws, which the view asks for after a pause."""
    if fitter.verdict:
        return
    try:
        fitter.compare()
    except ErltoolError as e:
        fitter.verdict = f"The laws are not compared: {e}."


def _views(modules: dict[str, str], views: dict[str, str]) -> str:
    """The widgets by name, as an expression; what they share stands in it once."""
    listed = ",\n".join(f"{json.dumps(name)}: {code}" for name, code in views.items())
    return f"(() => {{\n{''.join(modules.values())}return {{\n{listed}\n}};\n}})()"


def _document(title: str, body: str, styles: str, views: str, facts: dict, numbers: bytes) -> str:
    style = (HERE / "page.css").read_text(encoding="utf-8") + styles
    own = "".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f"{own}const VIEWS = {views};\nstart();\n"
    for code, end in ((style, "</style"), (script, "</script"), (script, "<!--")):
        if end in code.lower():
            raise ValueError(f"{end} would end the element that it stands in")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; style-src-attr 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    # Base64, so that no text of a run can end the element that it stands in.
    data = [_packed(json.dumps(facts, allow_nan=False).encode()), _packed(numbers)]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="erltool {erltool.__version__}">
<title>{words.text(title)}</title>
<style>{style}</style></head>
<body>
{body}
<script type="text/plain" id="facts">{data[0]}</script>
<script type="text/plain" id="numbers">{data[1]}</script>
<script>{script}</script>
</body></html>
"""


def _packed(blob: bytes) -> str:
    return base64.b64encode(gzip.compress(blob, 9, mtime=0)).decode()  # without a date: equal runs, equal pages


def _hash(code: str) -> str:
    """A source of the content-security policy that allows this one element. The parser reads \\r\\n as \\n."""
    digest = hashlib.sha256(re.sub("\r\n?", "\n", code).encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
