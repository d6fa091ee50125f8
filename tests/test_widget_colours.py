"""Colours of the widgets, computed from the JavaScript and CSS that ship: contrast, and steps that stay apart for
colour-blind readers."""

import ast
import itertools
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import erltool

WIDGETS = Path(erltool.__file__).parent / "widgets"
SCRIPTS = {file.name: file.read_text() for file in WIDGETS.glob("*.js")}
MAPS = {
    name: np.array(ast.literal_eval(stops), float)
    for text in SCRIPTS.values()
    for name, stops in re.findall(r"const ([A-Z]+) = (\[\s*\[[\d\s,\[\]]+\]);", text)
}
assert set(MAPS) == {"CIVIDIS", "PUOR"}
BLIND = {  # Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
GRAPHICS = ("svg", "swatch", "map")  # white behind drawings, whose text brings its own colour


def linear(rgb):
    """Linear RGB (..., 3) of sRGB in 0 to 255."""
    c = np.asarray(rgb, float) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """WCAG contrast of two sRGB colours (..., 3), from 1 to 21."""
    a, b = (linear(c) @ [0.2126, 0.7152, 0.0722] + 0.05 for c in (one, other))
    return np.maximum(a, b) / np.minimum(a, b)


def lab(rgb):
    """CIELAB (..., 3) under D65 of linear RGB."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    t = np.clip(rgb, 0, 1) @ to_xyz.T / [0.95047, 1.0, 1.08883]
    x, y, z = np.moveaxis(np.where(t > 216 / 24389, np.cbrt(t), t * 841 / 108 + 4 / 29), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def steps(stops, count):
    """That many colours of a map, evenly spaced, between its stops as the widgets do it."""
    at = np.linspace(0, len(stops) - 1, count)
    return np.stack([np.round(np.interp(at, range(len(stops)), channel)) for channel in stops.T], -1)


def parsed(colour, theme, behind=(255, 255, 255)):
    """sRGB of a CSS colour, a theme's variable looked up, over what is behind it."""
    colour = colour.strip()
    while variable := re.fullmatch(r"var\((--[\w-]+)(?:,\s*(.+))?\)", colour):
        colour = theme.get(variable[1], variable[2]).strip()
    if colour in ("white", "black"):
        return np.full(3, 255.0 if colour == "white" else 0.0)
    if inside := re.fullmatch(r"rgba\((.+)\)", colour):
        *rgb, alpha = (float(x) for x in inside[1].split(","))
        return alpha * np.array(rgb) + (1 - alpha) * np.asarray(behind)
    digits = colour.removeprefix("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    return np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)], float)


def themes():
    """Variables of JupyterLab's themes as installed here, and none of them, as outside JupyterLab."""
    by_name = {"none": {}}
    for name in ("light", "dark"):
        file = Path(sys.prefix) / f"share/jupyter/lab/themes/@jupyterlab/theme-{name}-extension/index.css"
        by_name[name] = dict(re.findall(r"(--[\w-]+):\s*([^;}]+)", file.read_text()))
    return by_name


def rules():
    """Selector and declarations of every rule of the shared CSS."""
    css = re.sub(r"/\*.*?\*/", "", (WIDGETS / "shared.css").read_text(), flags=re.S)
    for selector, body in re.findall(r"([^{}]+)\{([^{}]*)\}", css):
        yield selector.strip(), dict(re.findall(r"([\w-]+):\s*([^;]+)", body))


def is_colour(value):
    return bool(value) and bool(re.match(r"(#|rgba?\(|white|var\()", value))


@pytest.mark.parametrize("name", MAPS)
def test_text_on_every_colour_of_a_map_has_contrast(name):
    threshold = float(re.search(r"luminance\(rgb\) > ([\d.]+) \? \"#000\" : \"#fff\"", "".join(SCRIPTS.values()))[1])
    colours = steps(MAPS[name], 2001)
    on_light = linear(colours) @ [0.2126, 0.7152, 0.0722] > threshold
    text = np.where(on_light[:, None], [0, 0, 0], [255, 255, 255])
    assert contrast(colours, text).min() >= 4.5


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("eye", BLIND)
def test_steps_of_a_map_stay_apart_for_colour_blind_readers(name, eye):
    seen = lab(linear(steps(MAPS[name], 9)) @ np.array(BLIND[eye]).T)
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) >= 9


def test_a_bad_map_would_be_found():
    """Red to green through yellow: the standard mistake fails the distance above."""
    bad = np.array([[215, 48, 39], [254, 224, 139], [26, 152, 80]], float)
    seen = lab(linear(steps(bad, 9)) @ np.array(BLIND["deutan"]).T)
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) < 9
    assert contrast([255, 255, 255], [0, 0, 0]) == pytest.approx(21)


@pytest.mark.parametrize("theme", ["none", "light", "dark"])
def test_words_and_lines_of_the_css_have_contrast_in_every_theme(theme):
    variables, styles = themes()[theme], dict(rules())
    page = parsed(styles[".erltool"]["background"], variables)
    ink = parsed(styles[".erltool"]["color"], variables, page)
    assert contrast(ink, page) >= 4.5
    seen = 0
    for selector, style in styles.items():
        if any(name in selector for name in GRAPHICS):
            continue
        behind = parsed(style["background"], variables) if is_colour(style.get("background")) else page
        words = parsed(style["color"], variables, behind) if is_colour(style.get("color")) else ink
        assert contrast(words, behind) >= 4.5, selector
        for line in re.findall(r"solid (#\w+)", " ".join(style.values())) + [style.get("border-top-color", "")]:
            if is_colour(line):
                assert contrast(parsed(line, variables), page) >= 3, selector
        seen += len(style)
    assert seen > 20


def palette(theme, names):
    """Colours by name in a theme: the CSS's own variables, where they are not JupyterLab's."""
    light = dict(rules())[".erltool"]
    dark = dict(rules())['[data-jp-theme-light="false"] .erltool'] if theme == "dark" else {}
    variables = themes()[theme] | light | dark
    return [parsed(variables[f"--erltool-{name}"], variables, (33, 33, 33)) for name in names]


@pytest.mark.parametrize("theme", ["none", "light", "dark"])
def test_words_and_lines_of_drawings_have_contrast_on_the_page(theme):
    (page,) = palette(theme, ["page"])
    assert (
        contrast(np.array(palette(theme, ["ink", "quiet", *(f"{i}-word" for i in range(1, 5))])), page) >= 4.5
    ).all()
    assert (contrast(np.array(palette(theme, ["1", "2", "3", "4", "focus"])), page) >= 3).all()
    (raised,) = palette(theme, ["raised"])  # of the map's cells
    assert (contrast(np.array(palette(theme, ["1-word", "2-word", "ink"])), raised) >= 4.5).all()
    assert (contrast(np.array(palette(theme, ["1", "2"])), raised) >= 3).all()


def test_words_in_drawings_are_of_the_kits_colours_or_have_contrast_in_every_theme():
    fills = set()
    for text in SCRIPTS.values():
        constants = dict(re.findall(r"([A-Z_]+) = \"(#\w+)\"", text))
        fills |= {constants[f] for f in re.findall(r"words\([^;]*?fill: ([A-Z_]+)\b", text) if f in constants}
        fills |= set(re.findall(r"(?:draw\(\"text\"|words\()[^;]*?fill: \"(#\w+)\"", text))
    for theme in themes():
        (page,) = palette(theme, ["page"])
        assert all(contrast(parsed(c, {}), page) >= 4.5 for c in fills), (theme, fills)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("eye", BLIND)
def test_the_first_two_lines_and_ink_differ_for_colour_blind_readers(theme, eye):
    """They meet in one drawing: entropy and its forecast, and what is dragged; the others have dashes of their own."""
    seen = [lab(linear(c) @ np.array(BLIND[eye]).T) for c in palette(theme, ["1", "2", "ink"])]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 30
    others = [lab(linear(c) @ np.array(BLIND[eye]).T) for c in palette(theme, ["1", "2", "3", "4"])]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(others, 2)) > 10


def test_charts_have_no_ground_of_their_own():
    """A white plate in the dark theme is a rule or a rectangle with a colour of its own."""
    assert not [s for s, style in rules() if "svg" in s and "background" in style]
    for name in ("kit.js", "curve_chart.js", "control_map.js", "control_explorer.js", "run_form.js", "entropy_lab.js"):
        assert not re.findall(r"\"#[0-9a-fA-F]{3,6}\"", SCRIPTS[name]), name
