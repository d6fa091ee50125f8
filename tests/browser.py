"""A notebook in a real JupyterLab and Chromium, for tests/test_browser.py and tests/benchmarks/widgets_in_browser.py.

Needs `pip install -e '.[browser]'` and a Chromium: Debian's by `apt-get install chromium`, or another named by
$CHROMIUM. The server has settings of its own, on a free loopback port; nothing of yours is touched.
"""

import atexit
import functools
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import psutil
from nbformat.sign import NotebookNotary
from playwright.sync_api import Locator, Page, Playwright, sync_playwright

CONTROLS = "input, select, button, [tabindex='0']"
NAME = "notebook.ipynb"

KERNEL_IS_THERE = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
RUN_ALL = """() => {
  window.ran = false;
  jupyterapp.commands.execute('notebook:run-all-cells').finally(() => { window.ran = true; });
}"""
SET_AND_RUN = """([cell, text]) => {
  const notebook = jupyterapp.shell.currentWidget.content;
  notebook.widgets[cell].model.sharedModel.setSource(text);
  notebook.activeCellIndex = cell;
  window.ran = false;
  jupyterapp.commands.execute('notebook:run-cell').finally(() => { window.ran = true; });
}"""
ALL_HAVE_RUN = "() => window.ran && !document.body.innerText.includes('Loading widget...')"
# The output that follows a slider, without the slider itself.
PICTURE = """(root) => {
  const parts = [...root.querySelectorAll('svg, img, .token')].map((n) => n.outerHTML);
  const walk = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  const shown = (node) => !node.parentElement.closest('label, output');
  while (walk.nextNode()) if (shown(walk.currentNode)) parts.push(walk.currentNode.data);
  return parts.join('|');
}"""
# A frame's end is where a message posted in its animation callback is delivered.
WATCH = """(root) => {
  const times = window.times = [];
  let pressed = null;
  root.addEventListener('keydown', (e) => { pressed = e.timeStamp; }, true);
  const isReadout = (node) => (node.closest ? node : node.parentElement)?.closest('label');
  new MutationObserver((records) => {
    if (pressed === null || records.every((r) => isReadout(r.target))) return;
    const began = pressed;
    pressed = null;
    requestAnimationFrame(() => {
      const channel = new MessageChannel();
      const frame = performance.now() - began;
      channel.port1.onmessage = () => times.push([frame, performance.now() - began]);
      channel.port2.postMessage(0);
    });
  }).observe(root, {subtree: true, childList: true, characterData: true,
                    attributeFilter: ['style', 'class', 'd', 'cx', 'cy', 'src']});
}"""

# The moment, in seconds since 1970, of each first frame that shows a change; `window.seen`.
SEEN = """(root) => {
  const seen = window.seen = [];
  let waits = false;
  new MutationObserver(() => {
    if (waits) return;
    waits = true;
    requestAnimationFrame(() => {
      waits = false;
      seen.push((performance.timeOrigin + performance.now()) / 1000);
    });
  }).observe(root, {subtree: true, childList: true, characterData: true, attributes: true});
}"""


def chromium() -> str | None:
    """The browser's path, or None."""
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, filter(None, names))), None)


@functools.cache
def playwright() -> Playwright:
    """The one Playwright of this process: a second would not start beside it."""
    made = sync_playwright().start()
    atexit.register(made.stop)
    return made


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Served:
    """A server on a folder of its own that holds a notebook, and a page of Chromium on it. A context manager.

    A subclass gives the server's command and the address of the notebook's page.
    """

    def __init__(self, notebook: nbformat.NotebookNode):
        self.folder = Path(tempfile.mkdtemp(prefix="erltool_browser_"))
        self.port, self.token = free_port(), secrets.token_hex(16)
        nbformat.write(notebook, self.folder / NAME)
        self.browser = None
        self.errors: list[str] = []
        """What the page threw"""

    def command(self) -> list[str]:
        raise NotImplementedError

    def address(self) -> str:
        raise NotImplementedError

    def __enter__(self):
        own = {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
        own |= {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "JUPYTER_DATA_DIR": "data"}
        places = {name: str(self.folder / place) for name, place in (own | {"IPYTHONDIR": "ipython"}).items()}
        self.server = subprocess.Popen(
            [sys.executable, "-m", *self.command()], env=os.environ | places, cwd=self.folder,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            self._wait_for_server()
            options = ["--no-sandbox", "--disable-gpu"]
            self.browser = playwright().chromium.launch(executable_path=chromium(), args=options)
            self.page: Page = self.browser.new_page(viewport={"width": 1280, "height": 1000})
            self.page.set_default_timeout(600_000)  # for a busy machine
            self.page.on("pageerror", lambda e: self.errors.append(str(e)))
            self.page.goto(self.address(), timeout=900_000)
            self.opened()
        except BaseException:
            self.__exit__()
            raise
        return self

    def opened(self) -> None:
        """Called with the page on the notebook."""

    def _wait_for_server(self) -> None:
        for _ in range(900):
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        raise TimeoutError(f"no server on port {self.port}")

    def __exit__(self, *_) -> None:
        if self.browser:
            self.browser.close()
        self.server.terminate()
        self.server.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)


class Lab(Served):
    """JupyterLab on a notebook that is trusted, opened and not yet run. `comms` is its `commsOverSubshells`."""

    def __init__(self, notebook: nbformat.NotebookNode, comms: str = "default"):
        super().__init__(notebook)
        (self.folder / "data").mkdir()
        NotebookNotary(data_dir=str(self.folder / "data")).sign(nbformat.read(self.folder / NAME, as_version=4))
        settings = {
            "notebook-extension/tracker": {"windowingMode": "none", "kernelShutdown": True},
            "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
            "docmanager-extension/plugin": {"autosave": False},
        }
        if comms != "default":
            settings["apputils-extension/kernels-settings"] = {"commsOverSubshells": comms}
        for plugin, value in settings.items():
            file = self.folder / "settings/@jupyterlab" / f"{plugin}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(value))

    def command(self) -> list[str]:
        return [
            "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={self.port}",
            f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={self.folder}",
            "--ServerApp.port_retries=0", "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly",
        ]  # fmt: skip

    def address(self) -> str:
        for _ in range(900):  # the port is open before the server answers
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/status?token={self.token}", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        return f"http://127.0.0.1:{self.port}/doc/tree/{NAME}?token={self.token}"

    def opened(self) -> None:
        self.page.wait_for_function(KERNEL_IS_THERE)

    def run_all(self, seconds: float = 120) -> None:
        """Runs every cell, and returns when all have run or one has failed."""
        self.page.evaluate(RUN_ALL)
        self.page.wait_for_function(ALL_HAVE_RUN, timeout=1000 * seconds)

    def run_as(self, cell: int, text: str) -> None:
        """Gives a cell another text and runs it; returns when it has run."""
        self.page.evaluate(SET_AND_RUN, [cell, text])
        self.page.wait_for_function("() => window.ran")

    def output_of(self, cell: int) -> Locator:
        """What a cell shows."""
        output = self.page.locator(".jp-Notebook .jp-Cell").nth(cell).locator(".jp-Cell-outputWrapper")
        output.scroll_into_view_if_needed()
        return output

    def said(self) -> list[str]:
        """Errors of cells and page, warnings, and widgets that are not drawn."""
        bad = self.page.locator("[data-mime-type$='jupyter.stderr'], [data-mime-type$='jupyter.error']")
        text = self.page.locator(".jp-Notebook").inner_text()
        dead = [t for t in ("Error displaying widget", "Error creating widget", "Loading widget...") if t in text]
        return self.errors + bad.all_inner_texts() + dead

    def theme(self, name: str) -> None:
        self.page.evaluate(f"jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {name}'}})")
        self.page.wait_for_function(f"document.body.dataset.jpThemeName === 'JupyterLab {name}'")

    def memory(self) -> tuple[float, float]:
        """MiB: JavaScript heap in use after a forced collection, and resident memory of the kernel."""
        self.page.wait_for_timeout(1000)  # the last state is saved
        session = self.page.context.new_cdp_session(self.page)
        for _ in range(3):
            session.send("HeapProfiler.collectGarbage")
        heap = session.send("Runtime.getHeapUsage")["usedSize"]
        session.detach()
        kernels = [p for p in psutil.Process(self.server.pid).children(True) if "ipykernel" in " ".join(p.cmdline())]
        return heap / 2**20, sum(p.memory_info().rss for p in kernels) / 2**20


class Voila(Served):
    """Voila on a notebook, which it runs while the page is loaded."""

    def command(self) -> list[str]:
        return ["voila", NAME, "--no-browser", f"--port={self.port}", "--Voila.ip=127.0.0.1"]

    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"
