"""The code of the README runs, the documents' tables are the package's, and every path that they name is there."""

import importlib.util
import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from erltool import fit_law, forecast
from erltool.controls.catalog import CONTROLLERS, CONTROLS, PRESETS
from erltool.report import demo
from erltool.resources import shipped
from erltool.runs import compare
from erltool.runs.folder import METRICS, read_runs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DETAILS = (ROOT / "erltool" / "README.md").read_text()
RESULTS = (ROOT / "data" / "RESULTS.md").read_text()
DOCUMENTS = (
    "README.md",
    ".github/CONTRIBUTING.md",
    "erltool/README.md",
    "data/README.md",
    "data/RESULTS.md",
    "notebooks/README.md",
    "tests/benchmarks/README.md",
)


def test_it_is_short():
    assert README.count("\n") <= 200


def test_its_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        exec(compile(block.replace("steps=200", "steps=4"), "README.md", "exec"), {})


def test_it_shows_what_its_first_code_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, shown = re.search(r"```python\n(.*?)```\n\n((?:    [^\n]*\n)+)", README, re.S).groups()
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == "".join(line[4:] for line in shown.splitlines(keepends=True))


def test_the_metric_table_is_metrics():
    section = DETAILS.split("## Metrics")[1].split("\n## ")[0].replace("\\|", "¦")
    rows = re.findall(r"^\| `([\w.]+)` \| ([^|]+?) \| ([^|]+?) \|$", section, re.M)
    assert rows == [(name, unit, meaning.replace("|", "¦")) for name, (unit, meaning) in METRICS.items()]


def test_the_details_name_every_control_and_preset():
    for name in [*CONTROLS, *CONTROLLERS, *PRESETS]:
        assert f"`{name}`" in DETAILS


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_that_a_document_names_is_there(document):
    text = (ROOT / document).read_text()
    for path in re.findall(r"`((?:erltool|data|notebooks|tests)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / document).parent.joinpath(link).exists(), link


def test_every_module_is_in_the_list_of_files():
    for module in (ROOT / "erltool").rglob("[a-z]*.py"):
        assert f"`erltool/{module.relative_to(ROOT / 'erltool')}`" in DETAILS, module


def script(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_experiments_are_what_the_recorded_runs_give():
    for line in itertools.chain(*script("data/experiments/report.py").tables()):
        assert line in RESULTS


def test_the_maps_are_what_the_recorded_runs_give(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "data/experiments")  # as for a script there
    maps = script("data/experiments/maps.py")
    for line in itertools.chain(*map(maps.map_lines, maps.AXES)):
        assert line in RESULTS
    found = maps.map_of("facts")
    assert (found["x"] == 1).tolist() == [maps.pays("facts", row) for _, row in found.iterrows()]
    assert [row["kl-cov:none"].low > 0 for _, row in found.iterrows()] == [False] * 8 + [True]
    found = maps.map_of("rarity")
    assert len(found) == 9 and all(maps.pays("rarity", row) for _, row in found.iterrows())
    found = maps.map_of("updates")
    pays = [maps.pays("updates", row) for _, row in found.iterrows()]
    assert sum(pays) == 5 and (found["random-clip"] < found["none"]).all()
    assert (
        f"without it the best setting ends at {found['none'].max():.2f}, with Clip-Cov at {found['clip-cov'].max():.2f}"
        in RESULTS
    )


def test_the_first_screen_says_what_the_demo_measured():
    runs = read_runs(shipped("data/runs/demo"))
    table, first = demo.summary_table(runs), " ".join(README.split("## The idea")[0].split())
    for row in ("entropy (nats/token)", "accuracy, sampled"):
        assert f"from {table['sharpening', 'no control'][row]}" in first
    for arm in ("no control", "Clip-Cov"):
        assert f"ends at {table['discovery', arm]['accuracy, greedy'].split(' to ')[1]}" in first
    step_by_step = [float(x) for x in table["sharpening", "no control"]["works step by step"].split(" to ")]
    assert (
        "from {:.0%} of the responses in the first five iterations to {:.0%}".format(*step_by_step).replace("%", " %")
        in first
    )
    assert len(runs) == 7 and "seven runs" in first and "means of three seeds" in first
    assert demo.verdict(runs).endswith("recorded: +0.19 (+0.08 to +0.29), 10 seeds")
    for d in script("data/experiments/report.py").minute_differences().values():
        assert d.seeds == 10 and d.low > 0 and f"{d.mean:.3f} ({d.low:.3f} to {d.high:.3f})" in first


def test_in_discovery_clip_cov_ends_above_every_rival_on_seeds_that_chose_nothing():
    table = script("data/experiments/report.py").arms("discovery")
    for rival in ("none", "one-update", "random-clip"):
        for value in ("average@0", "average@0.6"):
            found = compare.differences(table, value, rival, by="arm")["clip-cov"]
            assert found.seeds == 10 and found.low > 0
        assert compare.differences(table, "average", rival, by="arm")["annealed-clip-cov"].low > 0
    table["entropy"] = np.log(table["entropy_end"].astype(float))
    assert compare.differences(table, "entropy", "none", by="arm")["clip-cov"].mean > np.log(10)


def test_in_whole_runs_at_equal_dose_covariance_is_little_above_chance_and_push_explodes():
    table = script("data/experiments/report.py").criterion()
    assert table.groupby("arm").size().eq(10).all()
    exploded = (table["entropy_end"].astype(float) > 1).groupby(table["arm"]).sum()
    assert exploded["push-0.2"] == 10 and exploded.drop("push-0.2").eq(0).all()
    words = " ".join(README.split())

    def said(arm, rival):
        d = compare.differences(table, "average@0", rival, by="arm")[arm]
        shown = f"{d.mean:.3f} ({d.low:+.3f} to {d.high:+.3f})".replace("-", "−")
        return shown if d.low < 0 else shown.replace("+", "")

    assert (
        f"ends {said('covariance-0.1', 'random-0.1')} and {said('covariance-0.2', 'random-0.2')} above chance" in words
    )
    assert f"Push ends {said('push-0.1', 'random-0.1')} above it" in words
    for rival in ("none", "one-update", "two-updates"):
        assert compare.differences(table, "average@0", rival, by="arm")["covariance-0.2"].low > 0
    for arm in ("covariance-0.1", "covariance-0.2", "two-updates", "random-0.2"):
        assert compare.differences(table, "average@0", arm, by="arm")["clip-cov"].low > 0


def test_on_smollm2_clip_cov_keeps_entropy_and_kl_cov_does_not_in_fp32_either():
    report = script("data/experiments/report.py")
    table = report.arms("smollm2")
    ends = table.groupby("arm")["entropy_end"].agg(lambda end: f"{end.astype(float).mean():.2f}")
    assert table.groupby("arm").size().eq(5).all()
    words = " ".join(README.split())
    assert f"Clip-Cov ends at {ends['clip-cov']} nats, where no control has {ends['none']}" in words
    assert (ends.drop("clip-cov").astype(float) < 0.15).all()

    def less(arm, rival, value):
        return compare.differences(table, value, rival, by="arm")[arm]

    found = less("clip-cov", "none", "pass@4")
    assert f"pass@4 is {found.mean:.3f} ({found.low:.3f} to {found.high:.3f}) above no control" in words
    found = less("clip-cov", "none", "average")
    assert f"at temperature 1 is {-found.mean:.3f} ({-found.high:.3f} to {-found.low:.3f}) below" in words
    found = less("clip-cov", "none", "average@0")
    assert found.low < 0 < found.high
    for rival in ("none", "one-update", "random-kl"):
        assert less("kl-cov-k2", rival, "average@0").high < 0
    found = less("kl-cov-fp32", "kl-cov-k2", "average@0")
    assert found.low < 0 < found.high
    assert less("kl-cov-fp32", "none-fp32", "average").high < 0

    def after(arm):
        points = [report.points_of(run, "reward") for run in report.runs_of("smollm2", arm)]
        return np.median([report.spent(p.entropy) for p in points])

    for form in ("", "-fp32"):
        control = after(f"kl-cov{form or '-k2'}")
        assert np.isfinite(control) and control > after(f"random-kl{form}") > after(f"none{form}")


def test_in_sharpening_entropy_is_spent_and_the_law_says_what_it_buys():
    report = script("data/experiments/report.py")
    runs = report.runs_of("sharpening", "none")
    table = report.arms("sharpening")
    assert len(runs) == 10 and table.loc[table["arm"] == "none", "entropy_spent"].min() > 0.95
    points = [report.held_out_points(r) for r in runs]
    assert np.median([fit_law(*p).r_squared for p in points]) >= 0.97
    found = [forecast(*p, cut=0.15) for p in points]
    assert np.median([f.rmse for f in found]) <= 0.03
    assert np.mean([f.covered for f in found]) >= 0.85  # coverage of the 90 % interval, which is too wide here
    assert min(r.evaluated()[["response_length", "eval_accuracy"]].corr().iloc[0, 1] for r in runs) > 0.85
    tracks = pd.concat([compare.covariance_and_fall(r, window=10) for r in runs]).groupby("step").mean().corr()["fall"]
    assert tracks["token_covariance"] >= 0.95 and tracks["group_covariance"] >= 0.95


def test_in_sharpening_clip_cov_keeps_entropy_and_gains_nothing():
    table = script("data/experiments/report.py").arms("sharpening")
    assert (table.groupby("arm").size() == 10).all()
    table["entropy"] = np.log(table["entropy_end"].astype(float))
    for rival in ("none", "one-update", "random-clip"):
        assert compare.differences(table, "entropy", rival, by="arm")["clip-cov"].low > np.log(5)
        for value in ("average@0", "average"):
            assert compare.differences(table, value, rival, by="arm")["clip-cov"].mean < 0


def test_in_the_trap_clip_cov_is_early_or_never():
    came = script("data/experiments/report.py").takeovers("trap").groupby("arm")["takeover"]
    assert came.size().eq(10).all()
    assert came.count().to_dict() == {
        "none": 9, "one-update": 4, "random-clip": 0, "clip-cov": 5, "kl-cov": 7, "random-kl": 8, "clip-higher": 9,
        "entropy-bonus": 9, "target-entropy": 7, "annealed-clip-cov": 5, "annealed-kl-cov": 8,
    }  # fmt: skip
    assert came.max()["clip-cov"] < came.min()["none"] < came.min()["one-update"]


def test_in_sharpening_the_law_does_not_depend_on_the_advantage_estimator():
    table = script("data/experiments/report.py").estimator_differences()
    assert (table["runs"] == 5).all() and set(table["group"]) == {"dr_grpo", "rloo", "reinforce++"}
    of_law = table[table["coefficient"] != "ceiling"]
    assert not of_law["excludes_zero"].any() and of_law[["low", "high"]].abs().to_numpy().max() < 0.08


def test_through_trl_the_same_iterations_give_the_same_curves():
    through = script("data/runs/through_trl.py")
    runs = read_runs(through.RECORD)
    for line in through.table(runs):
        assert line in RESULTS
    for control, metric in itertools.product(through.CONTROLS, through.SHOWN):
        _, low, high = through.difference(runs, "trl-in-order", control, metric)
        assert low < 0 < high
        found = [through.curves(runs, engine, control, metric) for engine in ("erltool", "trl-in-order")]
        assert all(x.shape == (3, 60) for x in found)
        # Of two triples from one distribution one pair in ten does not overlap.
        (a, b), (c, d) = ((x.min(0), x.max(0)) for x in found)
        assert ((a <= d) & (c <= b)).mean() > 0.85
    # What is asked about is a control that does something, and can be told from none by the same interval.
    none, kl_cov = (through.late(runs, "trl", c, "policy_entropy") for c in through.CONTROLS)
    assert kl_cov.min() > 1.5 * none.max()
    for engine, control, seed in itertools.product(through.ENGINES, through.CONTROLS, through.SEEDS):
        run, wanted = runs[through.name_of(engine, control, seed)], through.config(control, seed).to_dict()
        same = "control", "seed", "steps", "learning_rate", "group_size", "prompts_per_iteration", "max_response_tokens"
        assert [run.config[n] for n in same] == [wanted[n] for n in same]
        assert ("trl" in run.made_by) == (engine != "erltool")


def test_the_examples_for_contributors_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / ".github" / "CONTRIBUTING.md").read_text(), re.S)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, "CONTRIBUTING.md", "exec"), {"__name__": "example"})
