"""A report in Firefox, from its file, by Mozilla's own driver. pytest -m browser"""

import logging
import os
import shutil
import time

import pytest
from test_report_browser import FRAMES, pages

pytestmark = pytest.mark.browser
# What Firefox says of a page in its console: errors of scripts, and what the page's policy forbids.
SAID = """return Services.console.getMessageArray()
    .filter((m) => m instanceof Ci.nsIScriptError && m.sourceName.startsWith('file:'))
    .map((m) => m.errorMessage);"""
DRAWN = "return document.querySelector('.plots svg') !== null && document.querySelector('.widget .erltool') !== null;"
SEEN = """const main = document.querySelector('main');
return main.innerText + [...main.querySelectorAll('svg')].map((n) => n.outerHTML).join('|');"""
AXE = """const [source, done] = arguments;
(0, eval)(source);
window.axe.run().then((found) => done(found.violations), (error) => done([{id: String(error), impact: 'critical'}]));"""
CONTROLS = "input[type=range], select, input[type=checkbox], summary, button"
HOME, END, LEFT = "\ue011", "\ue010", "\ue012"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return pages(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def firefox(tmp_path_factory):
    driver = pytest.importorskip("marionette_driver.marionette", reason="pip install -e '.[browser]'")
    path = os.environ.get("FIREFOX") or shutil.which("firefox-esr") or shutil.which("firefox")
    if path is None:
        pytest.skip("no Firefox: apt-get install firefox-esr, or name one by $FIREFOX")
    logging.getLogger("mozversion").setLevel(logging.WARNING)
    log = str(tmp_path_factory.mktemp("gecko"))  # by default the working directory
    launched = driver.Marionette(bin=path, headless=True, startup_timeout=180, socket_timeout=180, gecko_log=log)
    launched.start_session()
    launched.set_window_rect(width=1280, height=900)
    yield launched
    launched.quit()


@pytest.fixture
def opened(firefox, files, request):
    """The page that the test's parameter names; afterwards nothing may have been asked for, nor said."""
    with firefox.using_context("chrome"):
        firefox.execute_script("Services.console.reset();")
    firefox.navigate(files[request.param].as_uri())
    until(lambda: firefox.execute_script(DRAWN))
    yield firefox
    asked = "return performance.getEntriesByType('resource').map((entry) => entry.name);"
    assert firefox.execute_script(asked) == []
    with firefox.using_context("chrome"):
        assert firefox.execute_script(SAID) == []


def until(holds, seconds: float = 60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "the page did not draw its plots and widgets"
        time.sleep(0.1)


def move_all(firefox) -> int:
    """Moves every control to both ends, or to its first and last value; returns how many there were."""
    moved = 0
    find = f"return [...document.querySelectorAll('main :is({CONTROLS})')]"
    for i in range(firefox.execute_script(f"{find}.length;")):
        control = firefox.execute_script(f"{find}[{i}] ?? null;")  # found anew: a widget may draw its controls again
        if control is None or not control.is_displayed() or not control.is_enabled():
            continue
        moved += 1
        firefox.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'});", [control])
        if control.tag_name == "select":
            control.send_keys(END, HOME)
        elif control.get_attribute("type") == "range":
            control.send_keys(HOME, END, LEFT)
        else:
            control.click()
    time.sleep(0.8)
    return moved


@pytest.mark.parametrize("opened", ["one", "two", "log"], indirect=True)
def test_every_control_moves_the_page(opened):
    before = opened.execute_script(SEEN)
    assert move_all(opened) > 5
    assert opened.execute_script(SEEN) != before


@pytest.mark.parametrize("opened", ["hostile"], indirect=True)
def test_hostile_text_is_only_text(opened):
    move_all(opened)
    # Without a sandbox, since another global object would not have what the page's text may have set.
    assert opened.execute_script("return window.hit === undefined && !document.querySelector('img');", sandbox=None)
    assert "<img src=x onerror=window.hit=1>" in opened.execute_script("return document.body.innerText;")


@pytest.mark.parametrize("opened", ["long"], indirect=True)
def test_ten_thousand_tokens_scroll_smoothly(opened):
    section = opened.find_element("id", "tokens")
    opened.execute_script("arguments[0].scrollIntoView();", [section])
    scroll = "const id = setInterval(() => scrollBy(0, 40), 16); setTimeout(() => clearInterval(id), 3000);"
    script = f"{scroll} ({FRAMES})(3).then(arguments[arguments.length - 1]);"
    times = opened.execute_async_script(script, script_timeout=60_000)
    rate = 1000 * (len(times) - 1) / (times[-1] - times[0])
    print(f"\n{rate:.0f} frames a second")
    assert rate >= 30


@pytest.mark.parametrize("theme", [0, 1], ids=["dark", "light"])
@pytest.mark.parametrize("opened", ["two"], indirect=True)
def test_axe_finds_nothing_serious_in_either_theme(opened, theme):
    from axe_playwright_python.base import AXE_SCRIPT

    with opened.using_prefs({"layout.css.prefers-color-scheme.content-override": theme}):
        opened.refresh()
        until(lambda: opened.execute_script(DRAWN))
        colour = opened.execute_script("return getComputedStyle(document.body).backgroundColor;")
        assert (colour != "rgb(251, 251, 250)") == (theme == 0)
        found = opened.execute_async_script(AXE, [AXE_SCRIPT], script_timeout=120_000)
    bad = [v for v in found if v["impact"] in ("serious", "critical")]
    assert not [f"{v['id']}: {node['html'][:150]}" for v in bad for node in v["nodes"]]
