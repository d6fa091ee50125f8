"""The widgets' JavaScript: modules that node can import, one text for the browser, and Python's arithmetic."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import erltool.widgets
from erltool.entropy import bandit
from erltool.entropy.tokens import token_budget
from erltool.law.fit import fit_law
from erltool.law.forecast import forecast
from erltool.runs.folder import TOKEN_COLUMNS
from erltool.widgets import CurveFitter, TokenInspector
from erltool.widgets.curve_fitter import LAWS
from erltool.widgets.points import Points
from erltool.widgets.token_groups import branches, rows_of
from erltool.widgets.token_picture import _colours
from erltool.widgets.view import javascript

HERE = Path(__file__).parent
FILES = sorted(Path(erltool.widgets.__file__).parent.glob("*.js"))
WIDGETS = [f.name for f in FILES if "export default" in f.read_text()]
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is missing: install Node.js 20 or newer")
MOST_LINES = 80


def node(*arguments, **environment):
    done = subprocess.run([NODE, *arguments], capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_there_is_a_module_for_every_widget():
    assert len(WIDGETS) == len(erltool.widgets.__all__) == 6


@pytest.mark.parametrize("name", WIDGETS)
def test_a_widgets_text_imports_nothing_and_exports_its_view(name):
    """A blob URL resolves no "./kit.js", so every import and export must have been taken in."""
    text = javascript(name)
    lines = [line for line in text.splitlines() if re.match(r"\s*(import|export)\b", line)]
    assert lines == ["export default { render };"]
    assert text.count("const elements = (() => {") == 1


@needs_node
@pytest.mark.parametrize("name", WIDGETS)
def test_a_widgets_text_is_a_module(name, tmp_path):
    (tmp_path / "text.mjs").write_text(javascript(name))
    code = "const m = await import(process.argv[1]); console.log(typeof m.default.render)"
    assert node("--input-type=module", "--eval", code, str(tmp_path / "text.mjs")) == "function\n"


@needs_node
@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_module_exports_what_the_one_text_takes_from_it(file):
    """Importing the file also checks that every name that it imports is exported."""
    code = "console.log(Object.keys(await import(process.argv[1])).join())"
    exported = node("--input-type=module", "--eval", code, str(file)).strip()
    taken = re.findall(r"^export (?:const|function) (\w+)", file.read_text(), re.M)
    assert sorted(exported.split(",")) == sorted(taken or ["default"])


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_no_function_is_long(file):
    starts = r"^(?:export )?(?:function (\w+)\(|const (\w+) = [^\n]*(?:=>|\())"
    for match in re.finditer(starts + r".*?^\}?[;)\]}]*;?$", file.read_text(), re.M | re.S):
        assert match[0].count("\n") < MOST_LINES, match[1] or match[2]


def bandit_vectors():
    rng = np.random.default_rng(0)
    cases = [([0.0, 0.0], [1.0, 0.0]), ([800.0, 0.0, -800.0], [1.0, -1.0, 0.5]), ([-40.0, 0.0], [0.0, 3.0])]
    cases += [(rng.normal(0, 2, n).tolist(), rng.normal(0, 1, n).tolist()) for n in (2, 3, 4, 8, 50)]
    for z, values in cases:
        logits, advantages = (torch.tensor(x, dtype=torch.float64) for x in (z, values))
        for method in bandit.METHODS:
            change = bandit.step(logits, advantages, 0.7, method)
            expected = {
                "probabilities": torch.softmax(logits, -1).tolist(),
                "entropy": bandit.entropy(logits).item(),
                "change": change.tolist(),
                "exact": bandit.entropy_change(logits, change).item(),
                "predicted": bandit.first_order_change(logits, change).item(),
            }
            yield {"z": z, "values": values, "eta": 0.7, "method": method, "expected": expected}


def selection_vectors():
    """Random tokens, some with equal covariance and some that did not move since they were sampled."""
    rng = np.random.default_rng(1)
    for n in (1, 2, 40, 1000):
        log_prob, advantage = -rng.exponential(0.7, n), rng.normal(0, 1, n).round(1)
        moved = rng.normal(0, 0.1, n) * (rng.random(n) < 0.7)
        table = pd.DataFrame({c: 0 for c in TOKEN_COLUMNS}, index=range(n)).assign(
            step=1, response_index=np.arange(n) // 10, text="t", prompt="p", log_prob=log_prob,
            old_log_prob=log_prob - moved, advantage=advantage, entropy=rng.exponential(0.5, n),
            covariance=((log_prob - log_prob.mean()) * (advantage - advantage.mean())).round(1),
        )  # fmt: skip
        for clip, kl in ((0.02, 0.1), (0.0, 0.5), (1.0, 0.0)):
            settings = {"low": -0.1, "high": 1.5, "coef": 1.3, "clip_fraction": clip, "kl_fraction": kl}
            inspector = TokenInspector(table, **settings)
            result, data = inspector.result, inspector.shown
            columns = ("covariance", "log_prob", "old_log_prob", "advantage")
            yield {
                "columns": {c: np.frombuffer(data[c], np.float32).tolist() for c in columns},
                "keys": np.frombuffer(data["keys"], np.float32).tolist(),
                "settings": settings,
                "expected": {
                    "clip": np.flatnonzero(result.tokens["clip_cov"]).tolist(),
                    "kl": np.flatnonzero(result.tokens["kl_cov"]).tolist(),
                    "covariances": [result.covariance, result.covariance_clip_cov, result.covariance_kl_cov],
                },
            }


def law_vectors():
    """Points of a law with noise, fitted and forecast by the package."""
    rng = np.random.default_rng(2)
    for n, window, cut in ((3, 1, 0.5), (7, 1, 0.3), (40, 3, 0.25), (62, 1, 0.15), (61, 2, 0.5)):
        h = np.linspace(0.8, 0.05, n) + rng.normal(0, 0.01, n)
        r = 0.9 - 0.3 * np.exp(h) + rng.normal(0, 0.01, n)
        points = Points(h, r).averaged(window)
        fit = fit_law(points.entropy, points.performance, unit="fraction")
        expected = {k: getattr(fit, k) for k in ("a", "b", "ceiling", "rmse", "r_squared")}
        expected |= {"h": points.entropy.tolist(), "r": points.performance.tolist(), "widest": Points(h, r).widest}
        if len(points.entropy) > 6:
            ahead = forecast(points.entropy, points.performance, cut=cut, unit="fraction")
            law = [ahead.law.a, ahead.law.b, ahead.rmse]
            expected["forecast"] = {"count": len(ahead.law.entropy), "rest": len(ahead.entropy), "law": law}
        fitter = CurveFitter((h, r), window=window)
        grid = np.frombuffer(fitter.data["grid"], np.float32)
        rivals = {}
        for law in LAWS if n > 7 else ():
            fitter.law = law
            rivals[law] = [fitter.result.rmse, *fitter.result.predict(np.array([0.2, 0.9])).tolist()]
        yield {"h": h.tolist(), "r": r.tolist(), "window": window, "cut": cut, "expected": expected,
               "grid": grid.tolist(), "rivals": rivals}  # fmt: skip


def group_vectors():
    """Groups of responses that share beginnings, and what Python shows of them."""
    rng = np.random.default_rng(2)
    for count, longest in ((1, 3), (2, 1), (8, 12), (5, 40)):
        ids = [rng.integers(0, 2, rng.integers(1, longest + 1)).tolist() for _ in range(count)]
        known = {"groups": [int(g) for g in rng.integers(0, 2, count)], "rewards": rng.integers(0, 2, count).tolist(),
                 "strategies": rng.choice(["steps", "guess"], count).tolist()}  # fmt: skip
        keeps = ("all", "right", "wrong", "forks", "strategy steps")
        yield {"ids": ids, "branches": branches(ids), **known,
               "rows": {keep: rows_of(known, count - 1, keep) for keep in keeps}}  # fmt: skip


def colour_vectors():
    """Values with few large ones, in responses of two groups, and the ends of Python's colours for one of them."""
    rng = np.random.default_rng(3)
    for quantity in ("covariance", "push", "ratio", "entropy", "selected"):
        values = (rng.standard_cauchy(60) + (quantity == "ratio")).astype(np.float32).astype(float)
        groups, lengths = [0, 0, 1, 1], [20, 10, 20, 10]
        of_group = values[np.repeat(groups, lengths) == 1]
        _, low, high, _ = _colours(values, of_group, quantity)
        yield {"quantity": quantity, "values": values.tolist(), "groups": groups, "lengths": lengths,
               "ends": [low, high]}  # fmt: skip


def test_responses_part_where_they_were_the_same_before():
    assert branches([[1, 2, 3], [1, 2, 4], [1, 5, 3], [1, 2, 3]]) == [[1, 2], [1, 2], [1], [1, 2]]
    assert branches([[7, 7], [7, 7]]) == [[], []] and branches([[1, 2], [1]]) == [[1], []] and branches([]) == []


@needs_node
def test_the_browsers_arithmetic_is_pythons_and_its_timing_is_calm(tmp_path):
    budgets = [[f, n, token_budget(f, n)] for f in (0.0, 2e-4, 0.07, 0.29, 1.0) for n in (0, 1, 100, 5001)]
    vectors = {
        "bandit": [*bandit_vectors()],
        "selection": [*selection_vectors()],
        "budgets": budgets,
        "law": [*law_vectors()],
    }
    vectors["groups"] = [*group_vectors()]
    vectors["colours"] = [*colour_vectors()]
    assert any(v["expected"]["clip"] and v["expected"]["kl"] for v in vectors["selection"])
    (tmp_path / "vectors.json").write_text(json.dumps(vectors))
    said = node("--test", str(HERE / "widgets.test.mjs"), VECTORS=str(tmp_path / "vectors.json"))
    assert re.search(r"# fail 0|ℹ fail 0", said) and not re.search(r"(?:#|ℹ) skipped [1-9]", said), said
