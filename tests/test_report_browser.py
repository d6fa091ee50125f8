"""A report in Chromium, from its file: every control moves, nothing leaves, model text stays text. pytest -m browser"""

import os
import re
import statistics
from pathlib import Path

import pytest
from test_report import HOSTILE, LOGS, many_tokens, with_tokens

from erltool.logs.read import read_log
from erltool.report.page import write_page
from erltool.resources import shipped
from erltool.runs.folder import read_run

pytestmark = pytest.mark.browser
SECTION = "(n) => n.closest('section').querySelector(':scope > div:last-child')"
# What a reader sees of a section: its words, and its pictures.
SEEN = """(root) => [root.innerText, ...[...root.querySelectorAll('svg')].map((n) => n.outerHTML)].join('|')"""
FRAMES = """(seconds) => new Promise((done) => {
  const times = [];
  const end = performance.now() + 1000 * seconds;
  const frame = (now) => {
    times.push(now);
    now < end ? requestAnimationFrame(frame) : done(times);
  };
  requestAnimationFrame(frame);
})"""


@pytest.fixture(scope="module")
def chromium():
    for package in ("playwright", "axe_playwright_python"):
        pytest.importorskip(package, reason=f"{package} is missing: pip install -e '.[browser]'")
    import browser

    if browser.chromium() is None:
        pytest.skip("no Chromium: apt-get install chromium, or name one by $CHROMIUM")
    options = ["--no-sandbox", "--disable-gpu"]
    launched = browser.playwright().chromium.launch(executable_path=browser.chromium(), args=options)
    yield launched
    launched.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return pages(tmp_path_factory.mktemp("pages"))


def pages(folder: Path) -> dict[str, Path]:
    """Pages by name, each with a file."""
    run, other = (read_run(shipped(f"data/runs/demo-{name}")) for name in ("none", "clip-cov"))
    hostile = with_tokens(run, run.tokens.assign(text=HOSTILE, prompt=HOSTILE))
    sources = {
        "one": {"none": run},
        "two": {"no control": run, "Clip-Cov": other},
        "log": {"verl.jsonl": read_log(LOGS / "verl.jsonl")},
        "hostile": {HOSTILE: hostile, "b": run},
        "long": {"long": with_tokens(run, many_tokens(1, 1, 2, 5000))},
    }
    return {name: write_page(given, folder / f"{name}.html") for name, given in sources.items()}


class Opened:
    """A page from its file, with what it asked for and what it said."""

    def __init__(self, chromium, file: Path, **settings):
        self.requests: list[str] = []
        self.said: list[str] = []
        self.page = chromium.new_page(viewport={"width": 1280, "height": 900}, **settings)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda line: self.said.append(line.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(file.as_uri())
        for drawn in (".plots svg", ".widget .erltool"):  # not wait_for_function, whose polling the policy forbids
            self.page.locator(drawn).first.wait_for()
        self.page.wait_for_timeout(300)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.page.close()

    def section(self, name: str):
        return self.page.locator(f"#{name} > div:last-child")


@pytest.fixture
def shots(tmp_path):
    folder = Path(os.environ.get("ERLTOOL_SHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def move_all(opened: Opened) -> int:
    """Moves every control to both ends, or to each of its values; returns how many there were."""
    page, moved = opened.page, 0
    for kind in ("input[type=range]", "select", "input[type=checkbox]", "summary", "button"):
        for i in range(page.locator(f"main {kind}").count()):
            control = page.locator(f"main {kind}").nth(i)
            if not control.is_visible() or not control.is_enabled():
                continue
            moved += 1
            if kind == "select":
                for option in range(min(4, control.locator("option").count())):
                    control.select_option(index=option)
                    page.wait_for_timeout(30)
            elif kind == "input[type=range]":
                control.focus()
                for key in ("Home", "End", "ArrowLeft"):
                    page.keyboard.press(key)
                    page.wait_for_timeout(30)
            else:
                control.click()
                page.wait_for_timeout(30)
    page.wait_for_timeout(800)
    return moved


@pytest.mark.parametrize("name", ["one", "two", "log", "hostile"])
def test_every_control_moves_no_request_leaves_and_nothing_is_said(chromium, files, name):
    with Opened(chromium, files[name]) as opened:
        assert move_all(opened) > 5
        assert opened.requests == [files[name].as_uri()]
        assert not opened.said


def test_the_step_moves_the_readings_of_every_chart(chromium, files):
    with Opened(chromium, files["two"]) as opened:
        readings = opened.page.locator(".plots figure p")
        before = readings.all_inner_texts()
        opened.page.get_by_role("region", name="What happened").get_by_role("slider", name="step", exact=True).focus()
        opened.page.keyboard.press("Home")
        after = readings.all_inner_texts()
        assert len(before) == 6 and all(a != b for a, b in zip(before, after, strict=True))
        metrics = read_run(shipped("data/runs/demo-none")).metrics
        first = metrics[metrics["iteration"] == 0]["policy_entropy"].mean()
        assert after[0].startswith(f"no control {first:.3g}")
        opened.page.locator(".plots svg").first.hover(position={"x": 250, "y": 100})
        assert readings.first.inner_text() != after[0]


def test_dragging_a_and_the_forecast_cut_need_no_kernel(chromium, files):
    with Opened(chromium, files["one"]) as opened:
        section = opened.section("law")
        for name in ("a", "forecast cut"):
            before = section.evaluate(SEEN)
            section.get_by_role("slider", name=name, exact=True).focus()
            for _ in range(60):
                opened.page.keyboard.press("ArrowLeft")
            opened.page.wait_for_timeout(300)
            assert section.evaluate(SEEN) != before, name
            if name == "a":
                section.get_by_role("button", name="Let it fit").click()
                opened.page.wait_for_timeout(300)
        assert re.search("lie in the 90 ?% interval", section.inner_text())  # the kernel's, from the page
        assert not opened.said


def test_another_step_shows_its_own_tokens(chromium, files):
    """Chosen in the list of responses, whatever control the widget has for its step."""
    tokens = read_run(shipped("data/runs/demo-none")).tokens
    with Opened(chromium, files["one"]) as opened:
        section = opened.section("tokens")
        section.locator(".finder summary").click()
        for step in sorted(tokens["step"].unique())[:2]:
            section.locator(".finder select").nth(1).select_option(str(step))
            section.locator(".finder tbody button").first.click()
            opened.page.wait_for_timeout(500)
            prompt = tokens.loc[tokens["step"] == step, "prompt"].iloc[0]
            assert prompt in section.locator(".erltool").inner_text()
        assert not opened.said


def test_a_response_is_found_by_its_words_sorted_and_opened(chromium, files):
    run = read_run(shipped("data/runs/demo-none"))
    by = run.tokens.groupby(["step", "prompt_index", "response_index"])
    texts, rewards = by["text"].agg("".join), by["reward"].first()
    with Opened(chromium, files["one"]) as opened:
        section = opened.section("tokens")
        section.get_by_text(f"Find a response among {len(texts)}").click()
        section.get_by_label("search").fill(">4+2")
        with_prompt = by["prompt"].first() + "\n" + texts
        found = with_prompt.str.contains(">4+2", regex=False)
        assert section.get_by_text(f"{found.sum()} of {len(texts)} responses").count() == 1 and found.sum()
        section.get_by_label("search").fill("")
        section.get_by_label("sort").select_option("lowest reward first")
        first = section.locator(".finder tbody tr").first
        assert float(first.locator("td").nth(2).inner_text()) == rewards.min() < rewards.max()
        prompt = first.locator("td").nth(0).inner_text()
        first.get_by_role("button").click()
        opened.page.wait_for_timeout(400)
        assert prompt in section.locator(".erltool").inner_text()
        assert not opened.said


def test_hostile_text_is_only_text(chromium, files):
    with Opened(chromium, files["hostile"]) as opened:
        move_all(opened)
        page = opened.page
        assert page.evaluate("window.hit === undefined && document.querySelectorAll('img').length === 0")
        assert page.locator("script").count() == 3
        seen = page.locator("body").inner_text()
        assert "<img src=x onerror=window.hit=1>" in seen and not set("\u202e\u2028") & set(seen)
        attributes = (
            "[...document.querySelectorAll('*')].some((n) => [...n.attributes].some((a) => /^on/.test(a.name)))"
        )
        assert not page.evaluate(attributes)


def test_ten_thousand_tokens_scroll_smoothly(chromium, files):
    with Opened(chromium, files["long"]) as opened:
        page = opened.page
        opened.section("tokens").scroll_into_view_if_needed()
        page.mouse.move(700, 450)
        page.evaluate(f"window.frames = ({FRAMES})(3)")
        for i in range(60):
            page.mouse.wheel(0, 160 if i % 20 < 10 else -160)
            page.wait_for_timeout(30)
        times = page.evaluate("window.frames")
        apart = [b - a for a, b in zip(times, times[1:], strict=False)]
        print(f"\n{1000 * len(apart) / sum(apart):.0f} frames a second, median {statistics.median(apart):.1f} ms")
        assert 1000 * len(apart) / sum(apart) >= 30
        assert not opened.said


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["two", "log"])
def test_axe_finds_nothing_serious_in_either_theme(chromium, files, name, theme, shots):
    from axe_playwright_python.sync_playwright import Axe

    with Opened(chromium, files[name], color_scheme=theme) as opened:
        for width in (800, 1280):
            opened.page.set_viewport_size({"width": width, "height": 900})
            opened.page.wait_for_timeout(200)
            opened.page.screenshot(path=shots / f"report_{name}_{theme}_{width}.png", full_page=True)
            wide = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
            assert opened.page.evaluate(wide)
        found = Axe().run(opened.page).response["violations"]
        bad = [
            f"{v['id']}: {n['html'][:150]}" for v in found if v["impact"] in ("serious", "critical") for n in v["nodes"]
        ]
        assert not bad
        dark = opened.page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(251, 251, 250)"
        assert dark == (theme == "dark")


def test_the_keyboard_reaches_every_section(chromium, files):
    with Opened(chromium, files["two"]) as opened:
        reached = set()
        for _ in range(250):
            opened.page.keyboard.press("Tab")
            reached.add(opened.page.evaluate("document.activeElement.closest('section, nav')?.id ?? ''"))
        assert reached >= {"summary", "course", "tokens", "law", "controls", "settings"}


def test_on_paper_it_is_light_and_folded_words_are_there(chromium, files, shots):
    with Opened(chromium, files["two"], color_scheme="dark") as opened:
        page = opened.page
        folded = page.locator("main details:not([open])")
        assert folded.count()
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert not folded.count()
        page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert folded.count()
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        page.pdf(path=shots / "report.pdf")
        assert (shots / "report.pdf").stat().st_size > 20_000
