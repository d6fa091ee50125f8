"""The widgets in other front ends than JupyterLab: VS Code's widget manager on a kernel, and a saved page without one.

    npm --prefix tests/elsewhere run fetch     # once, minutes: the front ends, into tests/elsewhere/node_modules
    pytest -m browser tests/test_elsewhere.py -s

The page of VS Code is its widget manager as its renderer extension ships it, with its style, and not VS Code itself.
"""

import importlib.machinery
import io
import os
import re
import sys
import types
from pathlib import Path

import anywidget
import ipywidgets
import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from ipywidgets import embed
from traitlets.config import Config

from erltool.widgets import EntropyLab

HERE = Path(__file__).parent / "elsewhere"
PARTS = ("vscode/package/dist/ipywidgets.js", "saved/package/dist/embed-amd.js", "requirejs/require.js", "kernel.js")
SHARED = Path(sys.prefix) / "share/jupyter"  # holds nbextensions/anywidget/index.js
VIEW = "application/vnd.jupyter.widget-view+json"
SECONDS = 180  # for a busy machine


@pytest.fixture(scope="module")
def browser():
    """tests/browser.py; skips with a reason where a browser or a front end is missing."""
    module = pytest.importorskip(
        "browser", reason="playwright is missing: pip install -e '.[browser]'", exc_type=ImportError
    )
    if module.chromium() is None:
        pytest.skip("no Chromium: apt-get install chromium, or name one by $CHROMIUM")
    if missing := [part for part in PARTS if not (HERE / "node_modules" / part).is_file()]:
        pytest.skip(f"no {missing[0]} in {HERE / 'node_modules'}: npm --prefix tests/elsewhere run fetch")
    return module


@pytest.fixture
def shots(tmp_path):
    folder = Path(os.environ.get("ERLTOOL_SHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def listened(page) -> list[str]:
    """What the page throws or logs as an error; filled while it runs."""
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda line: line.type == "error" and said.append(line.text))
    return said


SEEN = """(root) => [root.innerText, ...[...root.querySelectorAll('svg, input, progress')].map(
  (n) => n.outerHTML + (n.value ?? ''))].join('|')"""


# Pictures that reach out of their place, over what stands below or beside them.
REACHES_OUT = """(root) => [...root.querySelectorAll('svg')].filter((n) => {
  const [own, place] = [n.getBoundingClientRect(), n.parentElement.getBoundingClientRect()];
  return own.bottom > place.bottom + 2 || own.right > place.right + 2;
}).map((n) => n.getAttribute('aria-label') ?? n.outerHTML.slice(0, 80))"""


def answers(page, root, role, name, key) -> bool:
    """Whether the view changes when a control of it gets a key."""
    control = root.get_by_role(role, name=name, exact=True) if name else root.get_by_role(role)
    control = control.locator("visible=true").first
    control.focus()
    before = root.evaluate(SEEN)
    page.keyboard.press(key)
    for _ in range(100):
        page.wait_for_timeout(100)
        if root.evaluate(SEEN) != before:
            return True
    return False


SETUP = """
import erltool
from erltool.resources import shipped
from erltool.widgets import ControlExplorer, CurveFitter, EntropyLab, RunForm, RunMonitor, TokenInspector
run = erltool.read_run(shipped("data/runs/demo-none"))
"""
# A widget, the control that gets a key, and the key.
WIDGETS = {
    "EntropyLab()": ("slider", "", "End"),
    "TokenInspector(run)": ("gridcell", "", "ArrowRight"),
    "ControlExplorer(shipped('data/runs/discovery'))": ("slider", "read the values at a step", "End"),
    "CurveFitter(run)": ("slider", "forecast cut", "ArrowLeft"),
    "RunForm(erltool.TrainConfig(device='cpu'))": ("combobox", "start from", "ArrowDown"),
    "RunMonitor(erltool.TrainConfig(device='cpu', steps=8))": ("button", "Start", "Enter"),
}


@pytest.fixture
def colab(monkeypatch):
    """What a kernel of Colab has imported before the first cell; the calls of its switch for other people's widgets."""
    names = ("google", "google.colab", "google.colab.output")
    parts = [types.ModuleType(name) for name in names]
    for name, part in zip(names, parts, strict=True):
        part.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, part)
    calls = []
    parts[2].enable_custom_widget_manager = lambda: calls.append("on")
    parts[2]._widgets = types.SimpleNamespace(_installed_url="https://manager.invalid/manager.js")
    anywidget._util.enable_custom_widget_manager_once.cache_clear()
    yield calls
    anywidget._util.enable_custom_widget_manager_once.cache_clear()


@pytest.mark.parametrize("ipywidgets_7", [False, True])
def test_on_colab_a_widget_switches_the_manager_on_once_and_names_it(colab, ipywidgets_7, monkeypatch):
    """anywidget does; and what ours adds to its display must keep it, in the ipywidgets that Colab has, too."""
    if ipywidgets_7:
        monkeypatch.setattr(ipywidgets.Widget, "_ipython_display_", lambda self: print("7's own"), raising=False)
    formatter = InteractiveShell(config=Config(HistoryManager={"enabled": False})).display_formatter
    for _ in range(2):
        data, metadata = formatter.format(EntropyLab())
        assert {VIEW, "image/png", "text/plain"} <= set(data)
        assert metadata[VIEW] == {"colab": {"custom_widget_manager": {"url": "https://manager.invalid/manager.js"}}}
    assert colab == ["on"]


WITHOUT_KERNEL = [name for name in WIDGETS if not name.startswith("Run")]  # a run and its form ask the kernel


@pytest.fixture(scope="module")
def vscode(browser):
    """The page of VS Code with a kernel in which SETUP ran, and what it said."""

    class Server(browser.Served):
        def command(self):
            """A server with our page and the environment's nbextensions as static files, and no extension."""
            folders = f"--ServerApp.extra_static_paths=[{str(HERE)!r}, {str(SHARED)!r}]"
            server = ["jupyter_server", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={self.port}"]
            return [*server, f"--IdentityProvider.token={self.token}", "--ServerApp.port_retries=0", folders]

        def address(self):
            self.said = listened(self.page)
            self.page.set_default_timeout(1000 * SECONDS)
            return f"http://127.0.0.1:{self.port}/static/vscode.html?token={self.token}"

        def opened(self):
            self.page.wait_for_function("!!window.run")
            assert self.page.evaluate("run", SETUP) == ""

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_NO_CONFIG", "1")
        with Server(nbformat.v4.new_notebook()) as served:
            yield served
            served.page.evaluate("ended()")


@pytest.mark.browser
@pytest.mark.parametrize("code", WIDGETS)
def test_in_vs_code_a_widget_is_drawn_and_answers_a_key(vscode, code, shots):
    page = vscode.page
    page.evaluate("run", code)
    root = page.locator(".cell-output-ipywidget-background").last.locator(".erltool")
    root.wait_for()
    page.wait_for_timeout(500)
    root.screenshot(path=shots / f"vscode_{code.split('(')[0]}.png")
    assert not root.evaluate(REACHES_OUT)
    assert answers(page, root, *WIDGETS[code])
    assert not vscode.said


@pytest.mark.browser
def test_in_vs_code_the_next_cell_reads_a_choice_and_a_run_sends_its_steps(vscode):
    page, shown = vscode.page, vscode.page.locator(".cell-output-ipywidget-background")
    page.evaluate("run", "fitter = CurveFitter(run)\nfitter")
    shown.last.get_by_role("slider", name="forecast cut", exact=True).focus()
    page.keyboard.press("ArrowLeft")
    page.evaluate("run", "monitor = RunMonitor(erltool.TrainConfig(device='cpu', steps=8))\nmonitor")
    shown.last.get_by_role("button", name="Start").press("Enter")
    page.wait_for_function("[...document.querySelectorAll('progress')].at(-1).value >= 4")  # a thread sends them
    cut, steps = page.evaluate("run", "print(fitter.cut, len(monitor.result.metrics))").split()
    assert 0.9 < float(cut) < 1 and int(steps) >= 4
    page.evaluate("run", "monitor.stop().wait(60)")
    assert not vscode.said


# A saved page asks two networks and its own folder for scripts; these files here take their place.
SAVED = {
    "require.min.js": HERE / "node_modules/requirejs/require.js",
    "embed-amd.js": HERE / "node_modules/saved/package/dist/embed-amd.js",
    "anywidget.js": SHARED / "nbextensions/anywidget/index.js",
}
PAGE = "http://page.invalid/"


@pytest.fixture(scope="module")
def saved(browser):
    """A function of a widget: the page that ipywidgets.embed saves of it, opened without a network; what it said."""
    launched = browser.playwright().chromium.launch(
        executable_path=browser.chromium(), args=["--no-sandbox", "--disable-gpu"]
    )

    def show(widget):
        html = io.StringIO()
        embed.embed_minimal_html(html, views=[widget], state=embed.dependency_state([widget], drop_defaults=False))
        text = re.sub(r'integrity="[^"]*"', "", html.getvalue())  # of another build of require.js

        def answer(route):
            name = route.request.url.split("/")[-1]
            if route.request.url == PAGE:
                return route.fulfill(body=text, content_type="text/html")
            headers = {"Access-Control-Allow-Origin": "*", "Content-Type": "text/javascript"}
            return route.fulfill(path=SAVED[name], headers=headers) if name in SAVED else route.abort()

        page = launched.new_page(viewport={"width": 1000, "height": 1300})
        page.set_default_timeout(120_000)
        said = listened(page)
        page.route("**/*", answer)
        page.goto(PAGE)
        return page, said

    yield show
    launched.close()


@pytest.mark.browser
@pytest.mark.parametrize("code", WIDGETS)
def test_a_saved_page_draws_a_widget_without_a_kernel(saved, code, shots):
    names: dict = {}
    exec(f"{SETUP}\nmade = {code}", names)
    page, said = saved(names["made"])
    root = page.locator(".erltool")
    root.wait_for()
    page.wait_for_timeout(500)
    page.screenshot(path=shots / f"saved_{code.split('(')[0]}.png", full_page=True)
    assert root.bounding_box()["height"] > 60 and root.inner_text().strip()
    assert not root.evaluate(REACHES_OUT)
    assert code not in WITHOUT_KERNEL or answers(page, root, *WIDGETS[code])
    assert not said
    page.close()
