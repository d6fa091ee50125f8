"""CurveFitter without a browser: its state, result, picture, files and messages."""

import io
import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

import erltool
from erltool import ErltoolError, align_points, fit_law
from erltool.law.fit import LawFit
from erltool.law.forecast import forecast
from erltool.law.rivals import RIVALS, compare_laws, verdict
from erltool.resources import shipped
from erltool.widgets import CurveFitter
from erltool.widgets.curve_fitter import FORMATS, LAW, LAWS, Curve
from erltool.widgets.points import Points

HOSTILE = "<img src=x onerror=alert(1)> $\\frac$"
H = np.linspace(0.8, 0.1, 12)
R = 0.9 - 0.3 * np.exp(H) + 0.01 * np.sin(9 * np.arange(12))


@pytest.fixture(scope="module")
def paper():
    table = pd.read_csv(shipped("data/paper/fig1_right_points.csv"))
    return {n: (g["entropy_nats"], g["validation_accuracy_percent"]) for n, g in table.groupby("series")}


@pytest.fixture(scope="module")
def run():
    return erltool.read_run(shipped("data/runs/demo-none"))


def array(fitter, name):
    return np.frombuffer(fitter.data[name], np.float32)


# --- what is fitted ----------------------------------------------------------------------------------


def test_its_result_is_the_laws_fit_of_the_chosen_points(paper):
    fitter = CurveFitter(paper, current=4)
    expected = fit_law(*paper["7B"])
    assert [s["name"] for s in fitter.sources] == ["0.5B", "1.5B", "32B", "3B", "7B"]
    assert type(fitter.result) is LawFit and fitter.result.to_dict() == expected.to_dict()
    assert f"7B: R = -{expected.a:.4g} exp(H) + {expected.b:.4g} fitted to 62 points" in fitter.sentence
    fitter.current = 2
    assert fitter.result.a == fit_law(*paper["32B"]).a and fitter.sentence.startswith("32B: ")
    fitter.block_length = 1
    assert fitter.result.interval() == fit_law(*paper["32B"], block_length=1).interval()
    assert fitter.result.interval() != fit_law(*paper["32B"]).interval()


def test_rewards_that_pass_1_are_no_fractions(run):
    shifted = replace(run, metrics=run.metrics.assign(reward=run.metrics["reward"] + 1))
    fitter = CurveFitter(shifted, performance="reward")
    assert not fitter.problem and fitter.result.unit == "as given"


def test_what_is_dragged_is_measured_against_least_squares(paper):
    fitter, fit = CurveFitter(paper, current=4), fit_law(*paper["7B"])
    fitter.a, fitter.b = 20.0, 58.0
    result = fitter.result
    assert type(result) is Curve and result.dragged and (result.a, result.b, result.ceiling) == (20.0, 58.0, 38.0)
    off = np.asarray(paper["7B"][1]) - (58.0 - 20.0 * np.exp(np.asarray(paper["7B"][0])))
    assert result.rmse == pytest.approx(np.sqrt(np.mean(off**2))) and result.rmse > fit.rmse
    assert f"RMSE {result.rmse:.3g} (percentage points) where least squares has {fit.rmse:.3g}" in fitter.sentence
    fitter.a, fitter.b = fit.a, fit.b
    assert fitter.result.rmse == pytest.approx(fit.rmse)
    fitter.window = 2  # the drag belonged to the points before
    assert fitter.a is fitter.b is None and type(fitter.result) is LawFit
    fitter.b = 60.0
    assert fitter.result.a == pytest.approx(fitter.data["a"]) and fitter.result.b == 60.0
    with pytest.raises(ErltoolError, match="b nan: must be finite"):
        fitter.b = float("nan")
    assert fitter.result.b == 60.0


def test_a_rival_law_is_fitted_but_neither_dragged_nor_forecast(paper):
    assert "sigmoid" not in LAWS and LAWS[0] == LAW
    fitter = CurveFitter(paper, current=4, cut=0.2)
    table = fitter.compare()
    for law in LAWS[1:]:
        fitter.law = law
        assert not fitter.problem and not fitter.result.dragged and fitter.forecast is None
        assert fitter.result.rmse == pytest.approx(table.loc[law, "rmse"])
        assert fitter.result.ceiling == pytest.approx(table.loc[law, "at_zero"], rel=1e-6)
        assert RIVALS[law].formula in fitter.sentence
    fitter.picture()
    fitter.law = LAW
    assert fitter.forecast is not None and type(fitter.result) is LawFit


def test_a_window_averages_neighbours_and_leaves_three_points():
    fitter = CurveFitter((H, R), window=5)
    assert fitter.data["window_max"] == 4 and fitter.data["window"] == 4
    assert fitter.result.entropy == pytest.approx(H.reshape(3, 4).mean(1))
    assert fitter.result.performance == pytest.approx(R.reshape(3, 4).mean(1))
    assert Points(H, R).averaged(5).entropy == pytest.approx([H[:5].mean(), H[5:10].mean(), H[10:].mean()])


def test_a_runs_performance_is_its_accuracy_or_its_reward(run):
    fitter, rows = CurveFitter(run), run.metrics
    points = align_points(rows["step"], rows["policy_entropy"], rows["eval_accuracy"])  # as in the demo, and of a log
    assert fitter.sources == [{"name": "demo-none", "run": True}]
    assert fitter.result.a == fit_law(points["entropy"], points["performance"]).a
    assert (fitter.result.unit, fitter.result.unit_stated) == ("fraction", True)
    fitter.performance = "reward"
    by_iteration = run.metrics.groupby("iteration")[["policy_entropy", "reward"]].mean()
    assert fitter.result.entropy.tolist() == by_iteration["policy_entropy"].tolist()
    assert fitter.result.performance.tolist() == by_iteration["reward"].tolist()
    assert CurveFitter(shipped("data/runs/demo-none")).result.a == CurveFitter({"x": run}).result.a


def test_a_table_carries_its_unit():
    table = pd.DataFrame({"entropy": H, "performance": R})
    assert CurveFitter(table).result.unit == "fraction" and not CurveFitter(table).result.unit_stated
    table.attrs["unit"] = "as given"
    assert CurveFitter({"log": table}).result.unit == "as given"
    table.attrs["unit"] = "unknown"
    assert not CurveFitter(table).result.unit_stated


def test_the_forecast_is_from_the_share_of_points_before_the_cut(paper):
    fitter = CurveFitter(paper, current=4)
    assert fitter.forecast is None and "No forecast" in fitter.data["forecast"]["words"]
    fitter.cut = 0.15
    expected = forecast(*paper["7B"], cut=0.15)
    assert fitter.forecast.law.a == expected.law.a and fitter.forecast.rmse == expected.rmse
    assert len(fitter.result.entropy) == 62  # the fit stays that of all points
    assert expected.advice in fitter.sentence and f"{expected.covered:.0%} of the other 53 lie" in fitter.sentence
    sent, grid = fitter.data["forecast"], array(fitter, "grid").astype(float)
    assert np.frombuffer(sent["low"], np.float32) == pytest.approx(expected.at(grid)[0], rel=1e-4)
    assert sent["count"] == 9
    few = CurveFitter((H[:4], R[:4]), cut=0.5)
    assert few.forecast is None and "4 points; at least" in few.data["forecast"]["words"] and not few.problem


def test_laws_are_compared_when_asked_and_again_for_other_points(paper):
    fitter = CurveFitter(paper, current=4)
    assert fitter.verdict == ""
    fitter._handle_custom_msg({"command": "compare"}, [])
    assert fitter.verdict == verdict(compare_laws(*paper["7B"])) and fitter.sentence.endswith(fitter.verdict)
    said = fitter.verdict
    fitter.cut, fitter.block_length, fitter.a = 0.3, 2, 20.0
    assert fitter.verdict == said  # the same points
    fitter.window = 2
    assert fitter.verdict == ""
    few = CurveFitter((H[:5], R[:5]))
    few._handle_custom_msg({"command": "compare"}, [])
    assert "not compared" in few.verdict and "at least 10" in few.verdict


# --- what is shown -----------------------------------------------------------------------------------


def test_what_is_sent_is_what_was_fitted(paper):
    fitter = CurveFitter(paper, current=4, beside=[0, 4])
    fit, grid = fitter.result, array(fitter, "grid").astype(float)
    assert grid[0] == 0 and grid[-1] == pytest.approx(max(paper["0.5B"][0])) and (np.diff(grid) > 0).all()
    assert array(fitter, "curve") == pytest.approx(fit.predict(grid), rel=1e-4, abs=1e-3)
    assert array(fitter, "low") == pytest.approx(fit.band(grid)[0], rel=1e-4, abs=1e-3)
    assert [b["at"] for b in fitter.data["beside"]] == [0]  # itself is not beside itself
    assert [row[0] for row in fitter.data["rows"]] == ["7B", "0.5B"]
    low, high = fit.interval()["ceiling"]
    assert fitter.data["rows"][0][3] == f"{fit.ceiling:.4g}|{low:.4g} to {high:.4g}"


def test_its_picture_has_points_law_residuals_ceiling_and_forecast(paper):
    fitter = CurveFitter(paper, current=4, beside=[2], cut=0.2, log_axis=True)
    (ax,) = fitter.picture().axes
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert labels == ["7B", "32B", f"ceiling {fitter.result.ceiling:.4g}", "from the first 12 points"]
    assert ax.get_xscale() == "log" and ax.get_ylabel() == "performance R (percentage points)"
    bars = [c for c in ax.collections if len(c.get_paths()) == 62]
    ends = np.array([np.sort(p.vertices[:, 1]) for p in bars[0].get_paths()])
    assert np.diff(ends)[:, 0] == pytest.approx(abs(fitter.result.residuals))
    fitter.a = 25.0
    assert "dragged" in [t.get_text() for t in fitter.picture().axes[0].get_legend().get_texts()]
    bundle = fitter._repr_mimebundle_()[0]
    assert bundle["image/png"][:4] == b"\x89PNG" and bundle["text/plain"] == fitter.sentence


def test_warnings_of_the_fit_are_said():
    spoiled = np.where(np.arange(12) < 6, R, R[5])
    fitter = CurveFitter((H[::-1], spoiled))
    assert fitter.data["notes"] == list(fitter.result.warnings) and len(fitter.data["notes"]) > 0


# --- files -------------------------------------------------------------------------------------------


def test_pictures_are_valid_files_and_hold_no_script(paper):
    fitter = CurveFitter({HOSTILE: paper["7B"]}, cut=0.3)
    assert fitter.export("png")[:8] == b"\x89PNG\r\n\x1a\n" and fitter.export("pdf")[:5] == b"%PDF-"
    svg = ElementTree.parse(io.BytesIO(fitter.export("svg")))
    assert svg.getroot().tag.endswith("}svg") and len(list(svg.iter())) > 100
    assert not [e for e in svg.iter() if e.tag.endswith("}script") or any(k.startswith("on") for k in e.attrib)]


@pytest.mark.parametrize("state", [{}, {"a": 20.0, "b": 58.0}, {"law": "log"}], ids=["fitted", "dragged", "rival"])
def test_files_of_numbers_are_the_result(paper, state):
    fitter = CurveFitter({HOSTILE: paper["7B"]}, **state)
    result = fitter.result
    assert json.loads(fitter.export("json")) == json.loads(json.dumps(result.to_dict()))
    table = fitter.export("tex").decode()
    wanted = [result.rmse] if state.get("law") else [result.a, result.b, result.ceiling]
    assert all(f"{value:.4f}" in table for value in wanted)
    assert table.count("\\begin{tabular}") == table.count("\\end{tabular}") == 1 and "inf" not in table


def test_a_button_sends_its_file_and_nothing_else_is_obeyed(paper, monkeypatch):
    sent = []
    monkeypatch.setattr(CurveFitter, "send", lambda self, content, buffers=None: sent.append((content, buffers)))
    fitter = CurveFitter({"../a b": paper["7B"]})
    for content in ({"command": "close"}, {}, "export", None):
        fitter._handle_custom_msg(content, [])
    assert not sent and not fitter.problem
    for form in ("png", "json"):
        fitter._handle_custom_msg({"command": "export", "format": form}, [])
        content, (blob,) = sent.pop()
        assert content == {"name": f"law-..-a-b.{form}", "type": FORMATS[form]} and len(blob) > 50
    fitter._handle_custom_msg({"command": "export", "format": "exe"}, [])
    assert not sent and fitter.problem == "CurveFitter: format 'exe': use one of png, svg, pdf, json, tex"


# --- what is wrong -----------------------------------------------------------------------------------


def test_what_cannot_be_fitted_is_one_line_in_the_widget(run, tmp_path):
    blind = replace(run, metrics=run.metrics.drop(columns="eval_accuracy"))
    cases = {
        "entropy does not vary": (np.ones(5), R[:5]),
        "2 points; at least 3": (H[:2], R[:2]),
        "1 of 12 points are not finite": (H, np.where(np.arange(12) == 3, np.nan, R)),
        "state the unit": (H, np.where(H > 0.5, 0.3, 31.0)),
        "has no steps yet": replace(run, metrics=run.metrics.iloc[:0]),
        "was never evaluated; choose the training reward": blind,
        "no such folder": tmp_path / "nothing",
        "there is nothing to fit": {},
        "two arrays of numbers (H, R), not int": 3,
        "two arrays of numbers (H, R), not tuple": (H, ["high"] * 12),
        "12 entropies but 5 performances": {"x": (H, R[:5])},
        "lacks the column performance": pd.DataFrame({"entropy": H}),
    }
    for words, source in cases.items():
        fitter = CurveFitter(source)
        assert words in fitter.problem and "\n" not in fitter.problem, words
        assert fitter.sentence == fitter.problem
        assert fitter.forecast is None
        with pytest.raises(ErltoolError, match=re.escape(words)):
            fitter.result  # noqa: B018
        fitter._handle_custom_msg({"command": "export", "format": "png"}, [])
        assert words in fitter.problem
    fitter = CurveFitter(blind)
    assert fitter._repr_mimebundle_()[0]["text/plain"] == fitter.problem
    fitter.performance = "reward"
    assert not fitter.problem and fitter.result.a > 0


def test_one_bad_source_does_not_take_the_others_along(paper):
    fitter = CurveFitter({"good": paper["7B"], "bad": (H[:2], R[:2])}, beside=[1, 7])
    assert not fitter.problem and "bad is left out: fit_law: 2 points" in fitter.data["notes"][0]
    fitter.current = 1
    assert "2 points" in fitter.problem and "h" not in fitter.data
    fitter.current = 0
    assert not fitter.problem and type(fitter.result) is LawFit
    fitter.current = 9
    assert "source 9 does not exist" in fitter.problem
    zero = CurveFitter((H - H.min(), R), law="log")
    assert "needs entropies above 0" in zero.problem


def test_hostile_names_are_only_ever_text(paper):
    names = [HOSTILE, "a\n\x00\u202e", "_hidden"]
    fitter = CurveFitter(dict.fromkeys(names, paper["7B"]), beside=[1, 2])
    assert [s["name"] for s in fitter.sources] == [HOSTILE, "a\\nU+0000U+202E", "_hidden"]
    fitter.picture().savefig(io.BytesIO(), format="png")
    assert fitter.sentence.startswith(HOSTILE)
