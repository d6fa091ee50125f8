"""Tables of tokens and of runs' names: their values as they are, and on a page and a terminal only text."""

import pickle

import pandas as pd
import pytest

import erltool
from erltool.resources import shipped
from erltool.tables import Column, Table
from erltool.widgets import ControlExplorer, TokenInspector

HOSTILE = ["$x^2$ and $y$", "<img src=x onerror=alert(1)>", "\x1b[31mred", "a\rb", "\u202eabc"]
SEEN = ["$x^2$ and $y$", "<img src=x onerror=alert(1)>", "U+001B[31mred", "a\\rb", "U+202Eabc"]


@pytest.fixture
def table():
    return Table({"text": HOSTILE, "covariance": [0.1, 0.2, 0.3, 0.4, 0.5]})


def is_safe(shown: str) -> bool:
    return not {"\x1b", "\r", "\u202e"} & set(shown)


def test_a_terminal_is_not_steered(table):
    named = table.set_index("text")
    for what in (table, table["text"], named, named["covariance"], table.T, table.set_index(["text", "covariance"]),
                 table.iloc[3], table.pivot_table(columns="text")):  # fmt: skip
        assert is_safe(repr(what)) and is_safe(str(what))
        assert "U+001B[31mred" in repr(what) or len(what) < 3
    assert [line.split(maxsplit=1)[1].rsplit(maxsplit=1)[0] for line in str(table).splitlines()[1:]] == SEEN


def test_a_page_has_no_formulas_no_markup_and_no_hidden_text(table):
    for what in (table, table.set_index("text"), table.T, table.nlargest(5, "covariance")[["text"]]):
        page = what._repr_html_()
        assert "tex2jax_ignore" in page and "mathjax_ignore" in page
        assert "<img" not in page and "&lt;img" in page and "U+202Eabc" in page and is_safe(page)


def test_the_values_are_as_they_were_and_parts_are_tables(table):
    repr(table), table._repr_html_()
    assert table["text"].tolist() == HOSTILE
    plain = pd.DataFrame(table)
    pd.testing.assert_frame_equal(pd.DataFrame(table.sort_values("text")), plain.sort_values("text"))
    parts = [table.head(2), table[["text"]], table.assign(a=1), table.groupby("text").mean(), table.merge(table),
             table.groupby("text")["covariance"].agg(["mean"]), pd.concat([table, table]), table["text"].to_frame(),
             pickle.loads(pickle.dumps(table))]  # fmt: skip
    assert {type(part) for part in parts} == {Table} and type(table["text"]) is Column


@pytest.mark.parametrize("table", [Table(), Table(index=[1, 2]), Table({"a": []}), Table([[1, 2]], columns=["a", "a"]),
                                   Table({"a": [None, ["x"], 3]}), Table({"a": pd.Categorical(["x", None])}),
                                   Table([[1]], columns=pd.MultiIndex.from_tuples([("a", "b")]))])  # fmt: skip
def test_tables_without_hidden_text_look_as_pandas_has_them(table):
    assert repr(table) == repr(pd.DataFrame(table))
    with pd.option_context("display.html.use_mathjax", False):
        plain = pd.DataFrame(table)._repr_html_()
    if "mathjax_ignore" not in plain:  # pandas before 3 has the class of MathJax 2 only
        plain = plain.replace("tex2jax_ignore", "tex2jax_ignore mathjax_ignore", 1)
    assert table._repr_html_() == plain


def test_a_large_table_is_shown_at_once():
    table = Table({"text": ["a", "b\n"] * 200_000})
    assert "400000 rows" in table._repr_html_()


def test_tokens_and_tables_of_runs_are_such_tables(tiny_config):
    run = erltool.read_run(shipped("data/runs/demo-none"))
    step = next(iter(erltool.train(tiny_config(eval_every=0))))
    explorer = ControlExplorer([run]).result
    report = erltool.alarm_report([run])
    for table in (run.tokens, step.table(), TokenInspector(run).result.tokens, erltool.end_values({"$a$ $b$": run}),
                  explorer.end, explorer.curves, report):  # fmt: skip
        assert type(table) is Table and "mathjax_ignore" in table._repr_html_()


def test_the_columns_of_a_log_have_any_name(tmp_path):
    log = tmp_path / "run.csv"
    log.write_text("step,entropy,accuracy,\x1b[2J$a$\n" + "".join(f"{i},{1 - i / 9},{i / 9},1\n" for i in range(9)))
    assert "U+001B[2J$a$" in repr(erltool.read_log(log).metrics) and "\x1b[2J$a$" in erltool.read_log(log).metrics


def test_the_fit_is_a_page_without_formulas():
    law = erltool.fit_law([0.5, 0.4, 0.3, 0.2], [0.1, 0.2, 0.28, 0.35])
    assert "mathjax_ignore" in law._repr_html_()
