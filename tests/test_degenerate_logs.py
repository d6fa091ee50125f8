"""Logs with almost nothing in them: each command says so in one line, and no number makes it stumble."""

import json

import pytest

from erltool.cli import command as cli

NAN, INF = float("nan"), float("inf")


def rows(steps, entropy=None, accuracy=None):
    """Rows of a run; a number for a column, or a function of the step."""
    h = entropy or (lambda t: 1 / (1 + t / 9))
    r = accuracy or (lambda t: 0.7 - 0.3 / (1 + t / 9))
    return [{"step": t, "entropy": h(t), "eval_accuracy": r(t)} for t in steps]


MANY = range(1, 30)
LOGS = {  # its rows, and what fit says, "" where it fits
    "constant entropy": (rows(MANY, lambda t: 0.5), "entropy does not vary"),
    "no entropy at all": (rows(MANY, lambda t: 0.0), "entropy does not vary"),
    "constant accuracy": (rows(MANY, accuracy=lambda t: 0.5), ""),
    "no accuracy": (rows(MANY, accuracy=lambda t: 0.0), ""),
    "one point": (rows([1]), "1 points; at least 3"),
    "two points": (rows([1, 2]), "2 points; at least 3"),
    "a third is NaN": (rows(MANY, lambda t: NAN if t % 3 == 0 else 1 / t, lambda t: NAN if t % 4 == 0 else t / 60), ""),
    "NaN entropy": (rows(MANY, lambda t: NAN), "no column found for entropy"),
    "NaN accuracy": (rows(MANY, accuracy=lambda t: NAN), "no column found for performance"),
    "one infinite": (rows(MANY, lambda t: INF if t == 5 else 1 / t), ""),
    "one step again and again": (rows([4] * 20), "1 points; at least 3"),
    "evaluated elsewhere": ([{"step": t, "entropy": 1 / t} for t in MANY]
                            + [{"step": 100 + t, "eval_accuracy": 0.5} for t in MANY], "0 points; at least 3"),
    "exactly on the law": (rows(MANY, accuracy=lambda t: 1 - 0.3 * 2.718281828459045 ** (1 / (1 + t / 9))), ""),
    "a step down": (rows(MANY, lambda t: 1.0 if t < 15 else 0.5, lambda t: 0.2 if t < 15 else 0.6), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", LOGS)
def test_every_command_says_what_is_wrong_in_one_line(name, tmp_path, capsys):
    log, wrong = LOGS[name]
    file = tmp_path / "log.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in log))
    for words in (["fit", str(file)], ["fit", str(file), "--forecast", "0.5"], ["watch", str(file), "--once"],
                  ["report", str(file), "--out", str(tmp_path / "page.html")]):  # fmt: skip
        status = cli.main(words)
        said = capsys.readouterr()
        assert "Traceback" not in said.err and "Warning" not in said.err
        last = said.err.strip().splitlines()[-1:]
        if status == 2:
            assert last[0].startswith("erltool: ") and "log.jsonl: " in last[0]
        if words == ["fit", str(file)]:
            assert (status, wrong in "".join(last)) == (2 if wrong else 0, True)
        if words[0] == "watch" and "no column" not in wrong:
            assert status in (0, 1) and "law" in said.out


def test_advice_on_a_log_says_how_a_run_is_made_of_it(tmp_path, capsys):
    file = tmp_path / "log.jsonl"
    file.write_text(json.dumps(rows([1])[0]))
    assert cli.main(["advise", str(file)]) == 2
    assert f"erltool: run {file}: a file, and a run is a folder; erltool import LOG --out" in capsys.readouterr().err
