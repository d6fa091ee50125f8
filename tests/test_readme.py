"""The README's code runs, its tables are the package's, and every path it names is there."""

import importlib.util
import itertools
import re
from pathlib import Path

import pytest

from erltool.catalog import CONTROLS, PRESETS
from erltool.runs import METRICS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_its_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        exec(compile(block.replace("steps=200", "steps=4"), "README.md", "exec"), {})


def test_its_metric_table_is_metrics():
    rows = dict(re.findall(r"^\| `([\w.]+)` \| ([^|]+?) \|", README.split("## Metrics")[1].split("\n## ")[0], re.M))
    assert rows == {name: unit for name, (unit, _) in METRICS.items()}


def test_it_names_every_control_and_preset():
    for name in [*CONTROLS, *PRESETS]:
        assert f"`{name}`" in README


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:erltool|data|notebooks|tests)/[\w./-]+)`", README))))
def test_every_path_it_names_is_there(path):
    assert (ROOT / path).exists()


def test_every_module_is_in_its_file_list():
    for module in (ROOT / "erltool").glob("[a-z]*.py"):
        assert f"`erltool/{module.name}`" in README


def test_its_tables_of_experiments_are_what_the_recorded_runs_give():
    spec = importlib.util.spec_from_file_location("report", ROOT / "data/experiments/report.py")
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    for line in itertools.chain(*report.tables()):
        assert line in README
