"""Lessons in a real JupyterLab and Chromium: they run whole, their sliders answer the keyboard, nothing says an error.

pytest -m browser                                    # every lesson, some minutes each
ERLTOOL_LESSONS=02,03 ERLTOOL_SHOTS=shots pytest -m browser -s     # two of them, pictures kept, latencies printed
"""

import itertools
import json
import os
import statistics
import tempfile
from pathlib import Path

import nbformat
import pytest

import erltool
from erltool.lessons.copies import lesson_paths
from erltool.resources import shipped

CHOSEN = os.environ.get("ERLTOOL_LESSONS", "")
LESSONS = [p for n, p in lesson_paths().items() if not CHOSEN or n in map(int, CHOSEN.split(","))]
SECONDS = 1200  # that a lesson may take on a busy machine
WITH_SLIDERS = "02_why_entropy_falls"  # the quickest lesson with sliders

pytestmark = pytest.mark.browser


@pytest.fixture(autouse=True)
def needed():
    """Skips with a reason where there is no browser."""
    for package in ("playwright", "psutil", "axe_playwright_python"):
        pytest.importorskip(package, reason=f"{package} is missing: pip install -e '.[browser]'")
    from browser import chromium

    if chromium() is None:
        pytest.skip("no Chromium: apt-get install chromium, or name one by $CHROMIUM")


@pytest.fixture
def shots(tmp_path):
    """Folder for the screenshots."""
    folder = Path(os.environ.get("ERLTOOL_SHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def notebook(path):
    return nbformat.read(path, as_version=4)


def cells_with_widgets(lab):
    cells = lab.page.locator(".jp-Notebook .jp-Cell")
    return [i for i in range(cells.count()) if cells.nth(i).locator(".erltool").count()]


PUT_BACK = "(n, value) => { n.value = value; n.dispatchEvent(new Event('input', {bubbles: true})); }"


def moved(page, output, slider):
    """Moves a slider by its keys and puts it back: milliseconds to new pictures, and whether there was another one."""
    from browser import PICTURE, WATCH

    began, changed = slider.input_value(), False
    slider.focus()
    output.evaluate(WATCH)
    for key in ("ArrowLeft", "ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
        page.wait_for_timeout(250)
    times = [frame for frame, _ in page.evaluate("window.times")]
    before = output.evaluate(PICTURE)
    for key in ("Home", "End"):
        page.keyboard.press(key)
        for _ in range(20):
            page.wait_for_timeout(150)
            changed = changed or output.evaluate(PICTURE) != before
            if changed:
                break
    slider.evaluate(PUT_BACK, began)
    return times, changed


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
@pytest.mark.parametrize("comms", ["default", "disabled"])
def test_a_lesson_runs_whole_and_every_slider_changes_its_picture(path, comms, shots):
    from browser import Lab

    with Lab(notebook(path), comms) as lab:
        lab.run_all(SECONDS)
        assert not lab.said()
        still, times = [], []
        for cell in cells_with_widgets(lab):
            output = lab.output_of(cell)
            sliders = output.get_by_role("slider")
            for i in range(sliders.count()):
                if sliders.nth(i).is_visible():
                    took, changed = moved(lab.page, output, sliders.nth(i))
                    times += took
                    still += [] if changed else [f"cell {cell}: {sliders.nth(i).get_attribute('aria-label')}"]
            output.screenshot(path=shots / f"{path.stem}_{comms}_{cell}.png", animations="disabled")
        if times:
            print(f"\n{path.stem}, comms {comms}: {len(times)} presses, {statistics.median(times):.0f} ms median")
        assert not still and not lab.said()


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_reopened_lesson_shows_its_pictures_and_no_dead_widget(path):
    from browser import Lab

    committed = notebook(path)
    pictures = sum("image/png" in o.get("data", {}) for c in committed.cells for o in c.get("outputs", ()))
    with Lab(committed) as lab:
        trusted = (
            "jupyterapp.shell.currentWidget.content.widgets.every((c) => c.model.type !== 'code' || c.model.trusted)"
        )
        assert lab.page.evaluate(trusted)
        assert not lab.said()
        shown = lab.page.locator(".jp-OutputArea img")
        assert shown.count() == pictures and shown.evaluate_all("(all) => all.every((i) => i.naturalWidth > 0)")


WIDGETS = """
import erltool
from erltool.resources import shipped
from erltool.runs.folder import read_runs
from erltool.widgets import ControlExplorer, CurveFitter, EntropyLab, RunForm, RunMonitor, TokenInspector
run = erltool.read_run(shipped("data/runs/demo-none"))
"""
SHOWN = (
    "EntropyLab()",
    "TokenInspector(run)",
    "ControlExplorer(shipped('data/runs/discovery'))",
    "CurveFitter(run)",
    "RunForm(erltool.TrainConfig(device='cpu'))",
    "RunMonitor(erltool.TrainConfig(device='cpu'))",
    "RunMonitor(steer=True)",
)


@pytest.fixture(scope="module")
def widgets():
    """JupyterLab with every widget, one a cell; the keys of the last test leave text in its fields."""
    browser = pytest.importorskip(
        "browser", reason="playwright is missing: pip install -e '.[browser]'", exc_type=ImportError
    )
    if browser.chromium() is None:
        pytest.skip("no Chromium: apt-get install chromium, or name one by $CHROMIUM")
    cells = [nbformat.v4.new_code_cell(code) for code in (WIDGETS, *SHOWN)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    with browser.Lab(nbformat.v4.new_notebook(cells=cells, metadata=kernel)) as lab:
        lab.run_all(SECONDS)
        yield lab


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_axe_finds_nothing_serious_in_our_widgets(widgets, theme, shots):
    from axe_playwright_python.sync_playwright import Axe

    widgets.theme(theme)
    found = Axe().run(widgets.page, context=".erltool").response["violations"]
    for width in (1280, 800):
        widgets.page.set_viewport_size({"width": width, "height": 1000})
        for cell, code in enumerate(SHOWN, 1):
            name = code.split("(")[0] + "_steer" * ("steer=" in code)
            widgets.output_of(cell).screenshot(path=shots / f"{name}_{theme}_{width}.png", animations="disabled")
    serious = [
        f"{v['id']}: {n['html'][:150]}" for v in found if v["impact"] in ("serious", "critical") for n in v["nodes"]
    ]
    assert not serious


def test_a_form_takes_what_is_typed_and_says_what_cannot_be_at_its_field(widgets):
    output = widgets.output_of(1 + SHOWN.index("RunForm(erltool.TrainConfig(device='cpu'))"))
    menu, policy = output.get_by_role("combobox", name="policy"), output.get_by_role("textbox", name="policy, as text")
    peak = output.locator(".status")
    before = peak.inner_text()
    assert not policy.is_visible()
    menu.select_option("")
    policy.fill("nothing-there")
    policy.press("Enter")
    wrong = output.get_by_role("alert").get_by_text("no config.json there; give 'sharpening'")
    wrong.wait_for()
    assert policy.get_attribute("aria-invalid") == "true"
    assert policy.get_attribute("aria-describedby") == wrong.get_attribute("id")
    policy.fill("Qwen/Qwen2.5-7B")
    policy.press("Enter")
    wrong.wait_for(state="hidden")
    assert peak.inner_text() != before
    policy.fill("sharpening")
    policy.press("Enter")
    assert output.get_by_role("img", name="memory").is_visible()
    output.get_by_role("button", name="Measure one iteration").click()
    output.get_by_text("to finish").wait_for()
    before = output.get_by_text("to finish").inner_text()
    output.get_by_role("combobox", name="start from").select_option("the same with Clip-Cov")
    output.get_by_role("combobox", name="control").and_(widgets.page.locator("select")).wait_for()
    widgets.page.wait_for_timeout(1500)
    assert output.get_by_role("combobox", name="control").and_(widgets.page.locator("select")).input_value() == (
        "clip-cov:chain"
    )


def test_a_cell_of_the_map_shows_its_runs_beside_another(widgets):
    output = widgets.output_of(1 + SHOWN.index("ControlExplorer(shipped('data/runs/discovery'))"))
    cells = output.locator("button.cell")
    shown = output.locator("h4")
    pressed = output.locator("button.cell[aria-pressed=true]")
    assert cells.count() > 2 and pressed.count() == shown.count() == 2
    cells.first.click()  # the third takes the place of the first
    assert pressed.count() == 2 and cells.first.get_attribute("aria-pressed") == "true"
    cells.first.focus()
    widgets.page.keyboard.press("Enter")
    assert pressed.count() == shown.count() == 1
    assert output.locator("svg.plot").count() == 2


def test_a_crosshair_reads_the_values_of_charts_together(widgets):
    output = widgets.output_of(1 + SHOWN.index("ControlExplorer(shipped('data/runs/discovery'))"))
    charts = output.locator("svg.plot")
    charts.first.hover()
    assert output.locator(".crosshair").count() == charts.count()
    assert "random-" in output.locator(".crosshair").first.text_content()  # the baseline of whichever control is shown
    widgets.page.mouse.move(0, 0)
    output.locator(".crosshair").first.wait_for(state="detached")
    reader = output.get_by_role("slider", name="read the values at a step")
    reader.focus()
    widgets.page.keyboard.press("End")
    assert output.locator(".crosshair").count() == charts.count()
    assert "none 0.0" in reader.get_attribute("aria-valuetext")


# A model as a report has it: no kernel, no messages.
ALONE = """async ([module, css, state]) => {
  const values = Object.assign({}, state);
  const decoded = (v) => Array.isArray(v) ? v.map(decoded) : v && typeof v === "object"
    ? ("$bytes" in v ? new DataView(Uint8Array.from(atob(v.$bytes), (c) => c.charCodeAt(0)).buffer)
       : Object.fromEntries(Object.entries(v).map(([k, x]) => [k, decoded(x)]))) : v;
  for (const k of Object.keys(values)) values[k] = decoded(values[k]);
  const heard = {};
  const model = {
    get: (name) => values[name],
    on: (names, act) => names.split(" ").forEach((n) => (heard[n] ??= []).push(act)),
    set: (name, value) => {
      for (const [k, v] of Object.entries(typeof name === "string" ? {[name]: value} : name)) {
        values[k] = v;
        for (const act of heard[`change:${k}`] ?? []) act();
      }
    },
    save_changes: () => {},
  };
  document.head.append(Object.assign(document.createElement("style"), {textContent: css}));
  const url = URL.createObjectURL(new Blob([module], {type: "text/javascript"}));
  (await import(url)).default.render({model, el: document.body});
  window.model = model;
}"""


def state_of(widget):
    """A widget's synchronised traits as JSON, its bytes in base 64."""
    import base64

    def plain(value):
        if isinstance(value, bytes | memoryview):
            return {"$bytes": base64.b64encode(value).decode()}
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    names = [n for n in widget.trait_names(sync=True) if not n.startswith("_")]
    return {n: plain(getattr(widget, n)) for n in names if n not in ("layout", "tabbable", "tooltip", "comm")}


@pytest.fixture
def alone():
    """A page without a kernel, in which a widget's view can be opened: a function of the widget."""
    import browser

    opened = browser.playwright().chromium.launch(
        executable_path=browser.chromium(), args=["--no-sandbox", "--disable-gpu"]
    )
    page = opened.new_page(viewport={"width": 900, "height": 1200})
    errors = []
    page.on("pageerror", lambda e: errors.append(str(e)))

    def show(widget):
        page.set_content("<body></body>")
        page.evaluate(ALONE, [widget._esm, widget._css, state_of(widget)])
        return page

    yield show
    opened.close()
    assert not errors


def test_a_view_without_a_kernel_refits_and_forecasts(alone):
    import numpy as np

    from erltool.widgets import CurveFitter

    h = np.linspace(1.0, 0.1, 40)
    r = 0.9 - 0.3 * np.exp(h) + 0.01 * np.sin(7 * np.arange(40))
    page, fitter = alone(CurveFitter((h, r))), CurveFitter((h, r), window=4, cut=0.5)
    for name, presses, key in (("window", 3, "ArrowRight"), ("forecast cut", 50, "ArrowLeft")):
        page.get_by_role("slider", name=name, exact=True).focus()
        for _ in range(presses):
            page.keyboard.press(key)
    assert page.evaluate("[model.get('window'), model.get('cut')]") == [4, 0.5]
    text = page.locator("body").inner_text()
    fit, ahead = fitter.result, fitter.forecast
    assert f"{fit.a:.4g}" in text and f"{fit.b:.4g}" in text and f"{fit.rmse:.4g}" in text
    assert f"From the first 6 points: RMSE {ahead.rmse:.4g}" in text
    assert not page.get_by_text("Save the picture").count() and "Comparing" not in text
    page.get_by_role("slider", name="a", exact=True).focus()
    page.keyboard.press("ArrowRight")
    assert "dragged to a = " in page.locator("body").inner_text()


MOVES, AT_A_TIME = 1000, 50
MOVE = """([name, count]) => {
  const slider = document.querySelector(`input[type=range][aria-label="${name}"]`);
  const [low, high, step] = [slider.min, slider.max, slider.step].map(Number);
  for (let i = 0; i < count; i++) {
    slider.value = low + step * (i % Math.round((high - low) / step + 1));
    slider.dispatchEvent(new Event("input", {bubbles: true}));
  }
}"""


def test_a_thousand_moves_leave_no_element_and_no_listener_behind(alone):
    import numpy as np
    from test_widgets_runs import write_run

    from erltool.widgets import ControlExplorer, CurveFitter, TokenInspector

    h = np.linspace(1.0, 0.1, 40)
    with tempfile.TemporaryDirectory() as folder:
        texts = ["none", "random-clip", *(f"clip-cov:fraction={f}" for f in (0.02, 0.05, 0.1))]
        runs = [write_run(Path(folder) / f"{i}-{s}", text, s) for i, text in enumerate(texts) for s in (0, 1)]
        explorer = ControlExplorer(runs).choose("clip-cov")
    run = erltool.read_run(shipped("data/runs/probes"))
    cases = (
        (explorer, ("clip-cov fraction", "read the values at a step")),
        (CurveFitter((h, 0.9 - 0.3 * np.exp(h) + 0.01 * np.sin(7 * np.arange(40)))), ("a", "window", "forecast cut")),
        (TokenInspector(run), ("KL-Cov fraction", "step")),
    )
    for widget, sliders in cases:
        page = alone(widget)
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable")

        def fewest(counts: int, page=page, session=session):
            """The fewest of some counts, a tenth of a second apart: a frame and a timer let go what they hold."""
            found = []
            for _ in range(counts):
                page.wait_for_timeout(100)
                session.send("HeapProfiler.collectGarbage")
                metrics = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
                found.append((metrics["Nodes"], metrics["JSEventListeners"]))
            return [min(count) for count in zip(*found, strict=True)]

        for slider in sliders:
            page.evaluate(MOVE, [slider, AT_A_TIME])
            before = fewest(5)
            for _ in range(MOVES // AT_A_TIME):
                page.evaluate(MOVE, [slider, AT_A_TIME])
            # On a busy machine frames and timers are late; what is kept for good stays above at every count.
            after = itertools.islice(iter(lambda: fewest(1), None), 100)
            assert any(all(now <= was + 5 for now, was in zip(count, before, strict=True)) for count in after), slider


def test_a_handle_drags_the_law_through_the_pointer(alone):
    import numpy as np

    from erltool.widgets import CurveFitter

    h = np.linspace(1.0, 0.1, 40)
    page = alone(CurveFitter((h, 0.9 - 0.3 * np.exp(h) + 0.01 * np.cos(7 * np.arange(40)))))
    grip = page.locator(".grip").first.bounding_box()
    x, y = grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y + 40)
    page.mouse.up()
    a, b = page.evaluate("[model.get('a'), model.get('b')]")
    assert b - a < 0.58 and b - a * np.exp(1.0) == pytest.approx(0.9 - 0.3 * np.e, abs=0.02)  # the other end stays


@pytest.mark.parametrize("width", [800, 1280])
def test_the_other_views_open_without_a_kernel(alone, width, shots):
    from erltool.widgets import ControlExplorer, EntropyLab, RunForm

    for widget in (EntropyLab().step(5), ControlExplorer(), RunForm()):
        page = alone(widget)
        page.set_viewport_size({"width": width, "height": 1200})
        page.wait_for_timeout(200)
        root = page.locator(".erltool")
        assert root.locator("svg").count() and root.evaluate("(n) => n.scrollWidth <= n.clientWidth + 1")
        page.screenshot(path=shots / f"{type(widget).__name__}_alone_{width}.png", full_page=True)


def test_tables_have_scopes_and_the_focused_token_is_the_selected_one(widgets):
    headers = widgets.page.locator(".erltool th")
    assert headers.count() and not widgets.page.locator(".erltool th:not([scope])").count()
    output = widgets.output_of(1 + SHOWN.index("TokenInspector(run)"))
    output.locator(".token").first.focus()
    widgets.page.keyboard.press("ArrowRight")
    selected = output.locator(".token[aria-selected=true]")
    assert selected.count() == 1 and selected.evaluate("(n) => n === document.activeElement && !!n.previousSibling")


COUNT_PICTURES = """(root) => {
  window.pictures = 0;
  new MutationObserver(() => { window.pictures += 1; }).observe(root.querySelector("svg"), {childList: true});
}"""


def test_a_reader_who_asked_for_less_motion_gets_a_picture_a_second(widgets):
    page, output = widgets.page, widgets.output_of(1 + SHOWN.index("EntropyLab()"))
    page.emulate_media(reduced_motion="reduce")
    output.evaluate(COUNT_PICTURES)
    output.get_by_role("button", name="Play").click()
    page.wait_for_timeout(3500)
    output.get_by_role("button", name="Pause").click()
    pictures = page.evaluate("window.pictures")
    output.get_by_role("button", name="Reset").click()
    page.emulate_media(reduced_motion="no-preference")
    assert 1 <= pictures <= 4


def test_keys_typed_into_our_controls_leave_the_notebook_alone(widgets):
    page = widgets.page
    state = "(({widgets: w, activeCellIndex: i}) => [w.length, i])(jupyterapp.shell.currentWidget.content)"
    for cell in range(1, len(SHOWN) + 1):
        output = widgets.output_of(cell)
        for role in ("slider", "combobox", "textbox", "button", "checkbox", "radio", "option", "gridcell"):
            control = (
                output.get_by_role(role)
                .locator("visible=true")
                .and_(page.locator(":not([disabled]):not(select option)"))
            )
            if not control.count():
                continue
            control.first.focus()
            before = page.evaluate(state)
            for key in ("x", "b", "j", "ArrowDown", "ArrowRight"):
                page.keyboard.press(key)
            assert page.evaluate(state) == before, (SHOWN[cell - 1], role)
    assert not widgets.said()


@pytest.mark.parametrize("comms", ["default", "disabled"])
def test_pictures_are_right_when_another_cell_ran_and_drew_meanwhile(comms):
    from browser import Lab

    cells = (
        WIDGETS + "import hashlib, io, time\nfrom erltool.plots import new_axes",
        "fitter = CurveFitter(run)\nfitter",
        "pictures, end = set(), time.time() + 8\n"
        "while time.time() < end:\n"
        "    ax = new_axes()[0]\n    ax.plot([0, 1], [1, 0])\n"
        "    pictures.add(hashlib.md5(ax.figure._repr_png_()).hexdigest())",
        "print(len(pictures), 'picture; cut', fitter.cut, '|', fitter.sentence)",
    )
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells], metadata=kernel)
    with Lab(made, comms) as lab:
        lab.run_all(SECONDS)
        output = lab.output_of(1)
        slider = output.get_by_role("slider", name="forecast cut", exact=True)
        slider.focus()
        lab.page.evaluate("""jupyterapp.shell.currentWidget.content.activeCellIndex = 2;
            jupyterapp.commands.execute('notebook:run-all-below').then(() => { window.again = true; })""")
        lab.page.wait_for_timeout(1500)
        slider.focus()
        for _ in range(12):
            lab.page.keyboard.press("ArrowLeft")
            lab.page.wait_for_timeout(100)
        lab.page.wait_for_function("window.again")
        lab.page.wait_for_timeout(2000)
        lab.page.evaluate("""jupyterapp.shell.currentWidget.content.activeCellIndex = 3;
            jupyterapp.commands.execute('notebook:run-cell')""")
        lab.page.wait_for_timeout(3000)
        said, shown = lab.output_of(3).inner_text(), output.get_by_role("status").first.inner_text()
        assert said.startswith("1 picture; cut 0.") and shown.replace("\u2212", "-") in said
        assert not lab.said()


SET_CELL = "([i, text]) => jupyterapp.shell.currentWidget.content.widgets[i].model.sharedModel.setSource(text)"
RUN_CELL = """(cell) => {
  jupyterapp.shell.currentWidget.content.activeCellIndex = cell;
  return jupyterapp.commands.execute('notebook:run-cell');
}"""


@pytest.mark.parametrize("comms", ["default", "disabled"])
def test_a_hand_steers_a_run_by_the_keyboard_while_the_notebook_goes_on(comms, shots):
    from axe_playwright_python.sync_playwright import Axe
    from browser import Lab

    cells = (
        "from erltool.widgets import RunMonitor\nmonitor = RunMonitor(steer=True)\nmonitor",
        "print(monitor.state, len(monitor.result.metrics))",
        "[(step, field, value)] = monitor.result.config.controller.changes\n"
        "print(step, '|', monitor.result.metrics['control_fraction'].tolist())",
    )
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells[:2]], metadata=kernel)
    made.cells.append(nbformat.v4.new_code_cell("print('later')"))
    with Lab(made, comms) as lab:
        lab.run_all(SECONDS)
        page, output = lab.page, lab.output_of(0)
        page.set_viewport_size({"width": 1280, "height": 1300})
        output.get_by_role("button", name="Start").click()
        bar, dial = output.locator("progress"), output.get_by_role("slider", name="clip-cov: fraction of tokens")
        page.wait_for_function("document.querySelector('.erltool progress').value >= 2")
        dial.focus()
        page.keyboard.press("ArrowRight")
        output.get_by_text("Turned at update").wait_for()
        assert dial.get_attribute("aria-valuetext") == "0.01" and dial.evaluate("(n) => n === document.activeElement")
        at = bar.evaluate("(n) => n.value")
        page.evaluate(RUN_CELL, 1)
        state, answered = lab.output_of(1).inner_text().split()
        assert state == "running" and int(answered) >= at
        page.wait_for_function(f"document.querySelector('.erltool progress').value >= {at + 8}")
        for theme in ("Light", "Dark"):
            lab.theme(theme)
            found = Axe().run(page, context=".erltool").response["violations"]
            assert not [v["id"] for v in found if v["impact"] in ("serious", "critical")], theme
            output.screenshot(path=shots / f"steering_{comms}_{theme}.png", animations="disabled")
        output.get_by_role("button", name="Stop").click()
        output.get_by_role("table", name="score").get_by_text("this run").wait_for()
        page.evaluate(SET_CELL, [2, cells[2]])
        page.evaluate(RUN_CELL, 2)
        lab.output_of(2).get_by_text("|").wait_for()
        step, values = lab.output_of(2).inner_text().split("|")
        assert json.loads(values) == [0.0] * (int(step) - 1) + [0.01] * (len(json.loads(values)) - int(step) + 1)
        assert not lab.said()


def test_a_lesson_runs_in_voila(shots):
    pytest.importorskip("voila", reason="voila is missing: pip install -e '.[browser]'")
    from browser import PICTURE, Voila

    path = next(p for p in lesson_paths().values() if p.stem == WITH_SLIDERS)
    with Voila(notebook(path)) as served:
        widget = served.page.locator(".erltool").first
        widget.wait_for(timeout=1000 * SECONDS)
        slider = widget.get_by_role("slider").first
        before = widget.evaluate(PICTURE)
        slider.focus()
        served.page.keyboard.press("Home")
        served.page.wait_for_timeout(500)
        assert widget.evaluate(PICTURE) != before and not served.errors
        served.page.screenshot(path=shots / "voila.png")


def test_a_followed_log_grows_in_the_notebook_and_one_of_several_runs_is_chosen(tmp_path, shots):
    from axe_playwright_python.sync_playwright import Axe
    from browser import Lab

    log, store = tmp_path / "grpo.jsonl", Path(__file__).parent / "logs/trackio"
    cells = (
        f"from erltool.widgets import RunMonitor\nmonitor = RunMonitor({str(log)!r}, steps=60)\nmonitor",
        f"RunMonitor({str(store)!r})",
    )

    def write(steps):
        with open(log, "a") as f:
            for t in steps:
                accuracy = {"eval_accuracy": 0.7 - 0.3 / (1 + t / 9)} if t % 3 == 0 else {}
                entropy = 0.05 if t > 40 else 1 / (1 + t / 20)
                f.write(json.dumps({"step": t, "entropy": entropy, "reward": t / 90} | accuracy) + "\n")

    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells], metadata=kernel)
    with Lab(made) as lab:
        lab.run_all(SECONDS)
        page, output = lab.page, lab.output_of(0)
        output.get_by_text("not there yet").wait_for()
        write(range(1, 40))
        output.get_by_text("step 39 of 60").wait_for()
        write(range(40, 50))
        output.get_by_role("log").get_by_text("collapse").wait_for()
        assert output.locator(".charts svg").count() == 4  # entropy, reward, performance and the law
        for theme in ("Light", "Dark"):
            lab.theme(theme)
            found = Axe().run(page, context=".erltool").response["violations"]
            assert not [v["id"] for v in found if v["impact"] in ("serious", "critical")], theme
            output.screenshot(path=shots / f"followed_{theme}.png", animations="disabled")
        pause = output.get_by_role("button", name="Pause")
        pause.focus()
        page.keyboard.press("Space")
        output.get_by_text("paused: the run itself goes on").first.wait_for()
        several = lab.output_of(1)
        several.get_by_text("waits for a run to be chosen").first.wait_for()
        several.get_by_role("combobox", name="run").select_option("1")
        several.get_by_text("step 24").first.wait_for()
        assert not lab.said()
