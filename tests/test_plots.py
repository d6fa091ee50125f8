"""Names in figures are text: drawn as they are, in every legend and title, whatever is in them."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

import erltool
from erltool.cli import command as cli
from erltool.plots import as_text, plot_entropy_change, plot_fit, plot_forecast, plot_run, plot_seeds
from erltool.report.demo import ARMS, demo_figure
from erltool.resources import shipped
from erltool.text import visible
from erltool.widgets import ControlExplorer, CurveFitter, EntropyLab, RunForm, RunMonitor, TokenInspector

NAMES = [r"a$\frac{$b", "$x$", "$$", r"\$5 and $6", "$", "_run", "__", "a\r\x1b[31m\u202eb", "\udcff", "100 %", "<b>"]


def drawn(text) -> str:
    """The text that matplotlib draws, instead of its source."""
    shown, is_math = text._preprocess_math(text.get_text())
    assert not is_math
    return shown.lstrip(" ")


def saved(ax) -> None:
    for format in ("png", "svg"):
        ax.figure.savefig(io.BytesIO(), format=format)


@pytest.fixture(scope="module")
def run():
    return erltool.read_run(shipped("data/runs/demo-none"))


@pytest.fixture(scope="module")
def law(run):
    points = run.evaluated()
    return erltool.fit_law(points["policy_entropy"], points["eval_accuracy"])


@pytest.fixture(scope="module")
def forecast(run):
    points = run.evaluated()
    return erltool.forecast(points["policy_entropy"], points["eval_accuracy"], cut=0.5)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_drawn_as_it_is_in_every_plot(name, run, law, forecast):
    plots = {
        plot_run: (lambda ax: plot_run(replace(run, path=Path(name)), ax=ax), "{}"),
        plot_fit: (lambda ax: plot_fit(law, ax=ax, label=name), "{}"),
        plot_forecast: (lambda ax: plot_forecast(forecast, ax=ax, label=name), "{}: fitted"),
        plot_seeds: (lambda ax: plot_seeds([run], ax=ax, label=name), "{}"),
    }
    for draw, label in plots.values():
        ax = draw(Figure().subplots())  # the user's own Axes, and a legend of theirs
        ax.legend()
        assert drawn(ax.get_legend().get_texts()[0]) == label.format(visible(name))
        saved(ax)
    ax = plot_entropy_change([0.0, 1.0], [0.0, 1.0], title=name)
    assert drawn(ax.title) == visible(name)
    saved(ax)


def test_a_title_of_two_lines_has_two():
    ax = plot_entropy_change([0.0, 1.0], [0.0, 1.0], title="above\nbelow")
    assert ax.get_title() == "above\nbelow"


def test_no_label_is_no_entry_in_a_legend(run):
    ax = plot_seeds([run])
    assert ax.get_legend_handles_labels() == ([], []) and as_text("") == ""


def test_the_command_line_draws_logs_of_any_name(tmp_path, capsys):
    logs = [tmp_path / name for name in (r"a$\frac{$b.csv", "_run.csv")]
    rows = [f"{i},{1 - i / 50},{0.5 - 0.1 * np.exp(1 - i / 50)}" for i in range(20)]
    for log in logs:
        log.write_text("\n".join(["step,entropy,accuracy", *rows]))
    assert cli.main(["fit", *map(str, logs), f"--png={tmp_path / 'fit.png'}"]) == 0
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")


def test_the_figure_of_the_demo_has_names_of_any_kind(run, monkeypatch):
    monkeypatch.setitem(ARMS, "sharpening", ("sharpening", r"_a$\frac{$b"))
    figure = demo_figure({"demo-seed0-sharpening": run})
    for ax in figure.axes:
        assert drawn(ax.get_legend().get_texts()[0]).startswith(r"_a$\frac{$b")
    figure.savefig(io.BytesIO())


# --- widgets -----------------------------------------------------------------------------------------


def named(run, name: str, seed: int = 0):
    """The run under another control's name and another policy's, in a folder of that name."""
    config = run.config | {"control": {"name": name, name: name}, "seed": seed, "task": name}
    return replace(run, path=Path(name), config=config)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_drawn_as_it_is_in_every_widgets_picture(name, run, tiny_config):
    table = run.tokens.assign(text=name, prompt=name) if name != "\udcff" else run.tokens  # no table contains it
    explorer = ControlExplorer([named(run, name), named(run, name, 1)])
    fitter = CurveFitter({name: run, "other": run}, beside=[1])
    widgets = [explorer, fitter, EntropyLab(names=[name] * 4), TokenInspector(table), RunForm().choose(policy=name),
               RunMonitor(tiny_config(task=name)), CurveFitter(name), ControlExplorer([name])]  # fmt: skip
    hidden = {"\r", "\x1b", "\u202e", "\udcff"}
    for widget in widgets:
        data, _ = widget._repr_mimebundle_()  # its picture is drawn
        assert data["image/png"].startswith(b"\x89PNG") and not hidden & set(data["text/plain"])
        assert not hidden & set(repr(widget.get_state()))
    seen = visible(name)
    assert seen in [drawn(t) for t in explorer.picture().findobj(Text)]
    assert drawn(fitter.picture().axes[0].get_legend().get_texts()[0]) == seen
    labels = EntropyLab(names=[name] * 4).picture().axes[0].get_xticklabels()[:4]
    assert {drawn(t) for t in labels} == {seen}
    if name != "\udcff":
        inspected = TokenInspector(table).picture().axes[0]
        assert {drawn(t) for t in inspected.texts} >= {seen} and seen in inspected.get_title(loc="left").replace(
            r"\$", "$"
        )
