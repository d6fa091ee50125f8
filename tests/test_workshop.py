"""Each check accepts the right function and names each classic mistake; copies hold no solution; plans add up."""

import copy
import inspect
import re

import nbformat
import numpy as np
import pytest
import torch
from IPython.core.inputtransformer2 import TransformerManager

from erltool.cli import command as cli
from erltool.entropy import bandit
from erltool.errors import ErltoolError
from erltool.lessons import copies as lessons
from erltool.lessons import workshop
from erltool.lessons.copies import (
    SESSIONS,
    lesson_path,
    lesson_paths,
    participant_copy,
    plan,
    read_lesson,
    write_workshop,
)
from erltool.lessons.workshop import EXERCISES
from erltool.resources import shipped

as_python = TransformerManager().transform_cell  # a magic becomes a call

MISTAKES = [(name, sentence) for name, exercise in EXERCISES.items() for sentence in exercise.mistakes]
NOTEBOOKS = {number: nbformat.read(path, as_version=4) for number, path in lesson_paths().items()}
LESSONS = [read_lesson(path) for path in lesson_paths().values()]
SOLUTIONS = [
    (number, cell, notebook.cells[i + 1])
    for number, notebook in NOTEBOOKS.items()
    for i, cell in enumerate(notebook.cells)
    if "solution" in cell.metadata.get("tags", ())
]
CHECKED = [(cell, check) for _, cell, check in SOLUTIONS if "check_" in check.source]
CHECK_NAMES = [re.search(r"check_(\w+)", check.source)[1] for _, check in CHECKED]


def function_and_verdict(source: str, check):
    """The function that a cell defines, and what the check cell says of it."""
    names = {"torch": torch, "np": np, "bandit": bandit}
    exec(source, names)
    name = re.search(r"workshop\.check_(\w+)\(\1\)", check.source)[1]
    return names[name], getattr(workshop, f"check_{name}")(names[name])


# --- checks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXERCISES)
def test_a_check_accepts_the_right_function_and_says_a_number(name):
    found = EXERCISES[name](EXERCISES[name].right)
    assert found.passed and re.search(r"difference [\d.e-]+$", found.message) and repr(found) == found.message


@pytest.mark.parametrize(("name", "sentence"), MISTAKES)
def test_a_check_names_each_classic_mistake_in_one_line_with_a_number(name, sentence):
    found = EXERCISES[name](EXERCISES[name].mistakes[sentence])
    assert not found.passed and f"when {sentence}. " in found.message
    assert "\n" not in found.message and re.search(r"\d", found.message.split(sentence)[1])


@pytest.mark.parametrize("name", EXERCISES)
def test_an_exercise_has_at_least_three_mistakes(name):
    assert len(EXERCISES[name].mistakes) >= 3


def test_an_answer_nobody_foresaw_is_told_by_how_much_and_where():
    right = EXERCISES["covariance_of"].right

    def one_token_off(*arguments):
        covariance = right(*arguments)
        covariance[1, 0] += 0.25
        return covariance

    message = workshop.check_covariance_of(one_token_off).message
    assert "off by 0.25 at [1, 0]: " in message and "is right" in message
    assert "shape (3,) where (4, 3) is right" in workshop.check_covariance_of(lambda *_: torch.zeros(3)).message
    assert "off by inf" in workshop.check_law(lambda *_: float("nan")).message


def test_an_exception_becomes_one_line_that_names_the_line():
    def law(entropy, a, b):
        a = a + b
        raise ValueError("two\nlines")

    found = workshop.check_law(law)
    assert not found.passed
    assert found.message == "not yet, at entropy 0.5: line 3 of your function: ValueError: two lines"
    assert "takes 1 positional" in workshop.check_law(lambda entropy: entropy).message
    assert "it returned str, where numbers are expected" in workshop.check_law(lambda *_: "0.4").message
    assert "the function itself" in workshop.check_law(0.4).message


def test_a_function_that_writes_into_its_arguments_spoils_nothing():
    before = copy.deepcopy(EXERCISES["covariance_of"].cases)
    workshop.check_covariance_of(lambda a, x, mask: x.zero_())
    for case, arguments in EXERCISES["covariance_of"].cases.items():
        assert all(torch.equal(one, other) for one, other in zip(arguments, before[case], strict=True))


def test_the_silent_bug_shows_three_answers_for_three_sizes_and_zero_for_one():
    cell, check = CHECKED[CHECK_NAMES.index("covariance_in_parts")]
    message = function_and_verdict(cell.metadata["erltool"]["stub"], check)[1].message
    one, two, whole = map(float, re.findall(r"(?:micro-batch \d|update): (-?[\d.]+) \(right", message))
    assert one == 0 and len({one, two, whole}) == 3 and "inside each micro-batch" in message


# --- lessons -------------------------------------------------------------------------------------


def test_every_check_is_asked_for_by_one_lesson():
    assert sorted(CHECK_NAMES) == sorted(EXERCISES)


@pytest.mark.parametrize(("cell", "check"), CHECKED, ids=CHECK_NAMES)
def test_a_lessons_solution_passes_its_check_and_its_stub_does_not(cell, check):
    (solution, right), (stub, wrong) = (
        function_and_verdict(source, check) for source in (cell.source, cell.metadata["erltool"]["stub"])
    )
    assert right.passed and not wrong.passed
    assert list(inspect.signature(solution).parameters) == list(inspect.signature(stub).parameters)
    assert set(stub.__annotations__) == {*inspect.signature(stub).parameters, "return"}


@pytest.mark.parametrize(("cell", "check"), CHECKED, ids=CHECK_NAMES)
def test_what_a_committed_check_printed_is_that_it_is_right(cell, check):
    assert check.outputs[0]["data"]["text/plain"].startswith("right: ")


@pytest.mark.parametrize("number", NOTEBOOKS)
def test_a_participants_copy_is_a_valid_notebook_without_solutions_and_outputs(number):
    copied = participant_copy(NOTEBOOKS[number])
    nbformat.validate(copied)
    assert len(copied.cells) == len(NOTEBOOKS[number].cells)
    for cell in copied.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
        assert "solution" not in cell.metadata.get("tags", ()) and not re.search(r"Answer|Solution", cell.source)
        assert cell.cell_type == "markdown" or compile(as_python(cell.source), "cell", "exec")
    kept = "\n".join(cell.source for cell in copied.cells)
    for cell in (cell for of, cell, _ in SOLUTIONS if of == number):
        own = set(cell.source.splitlines()) - set(cell.metadata["erltool"]["stub"].splitlines())
        assert not [line for line in own if line.strip() in kept and not line.startswith("def ")]


def test_a_solution_without_stub_makes_no_copy():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["solution"]})])
    with pytest.raises(ErltoolError, match="without a stub"):
        participant_copy(notebook)


# --- the plan and the folder ---------------------------------------------------------------------


@pytest.mark.parametrize("minutes", SESSIONS)
def test_a_plan_fills_its_minutes_with_lessons_exercises_and_questions(minutes):
    rows = plan(LESSONS, minutes)
    of_lessons = {f"Lesson {lesson.number:02}: {lesson.title}": lesson.minutes for lesson in LESSONS}
    assert sum(takes for _, takes in rows) == minutes and rows[-1][1] >= lessons.CLOSING
    assert {what: takes for what, takes in rows if what in of_lessons}.items() <= of_lessons.items()
    assert sum(what in of_lessons for what, _ in rows) == len(SESSIONS[minutes])
    assert sum(what.startswith("its exercise") for what, _ in rows) >= 2


def test_the_longest_plan_has_the_hunt_for_the_covariance_bug():
    hunt = next(c for c in LESSONS[5].cards if c.check == "covariance_in_parts")
    rows = plan(LESSONS, 180)
    at = [what for what, _ in rows].index(f"Lesson 05: {LESSONS[5].title}")
    assert hunt.silent_bug and (f"its exercise {hunt.number}", hunt.minutes) in rows[at:]


def test_a_plan_of_another_length_or_one_too_short_is_refused():
    with pytest.raises(ErltoolError, match="choose one of 60, 90, 180"):
        plan(LESSONS, 45)
    long = [lessons.Lesson(lesson.path, lesson.number, lesson.title, 50, ()) for lesson in LESSONS]
    with pytest.raises(ErltoolError, match="take 45 minutes more"):
        plan(long, 60)


def test_a_workshops_folder_is_written_twice_but_never_over_changes(tmp_path, capsys):
    assert cli.main(["workshop", f"--out={tmp_path}", "--minutes=60"]) == 0
    assert cli.main(["workshop", f"--out={tmp_path}", "--minutes=60"]) == 0
    sheet = (tmp_path / "instructor.md").read_text()
    assert "## 60 minutes" in sheet and "## 90 minutes" not in sheet and "| | | 60 | in all |" in sheet
    assert all(sentence in sheet for _, sentence in MISTAKES)
    assert all(cell.source in sheet for _, cell, _ in SOLUTIONS)
    assert sorted(p.name for p in (tmp_path / "lessons").iterdir()) == [p.name for p in lesson_paths().values()]
    mine = sorted((tmp_path / "lessons").iterdir())[2]
    mine.write_text("mine")
    (tmp_path / "instructor.md").unlink()
    capsys.readouterr()
    assert cli.main(["workshop", f"--out={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(mine) in said and "choose another folder" in said
    assert mine.read_text() == "mine" and not (tmp_path / "instructor.md").exists()
    assert len(write_workshop(tmp_path / "other")) == len(LESSONS) + 1


# --- lab -----------------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch):
    """The command that `erltool lab` would become."""
    commands = []
    monkeypatch.setattr("os.execv", lambda program, words: commands.append(words))
    return commands


def test_lab_opens_a_lesson_on_the_loopback_address_with_its_token(started):
    cli.main(["lab", "--lesson", "3"])
    (command,) = started
    name = lesson_path(3).name
    assert f"--LabApp.default_url=/lab/tree/{name}" in command and "--ServerApp.ip=127.0.0.1" in command
    assert f"--ServerApp.root_dir={shipped('notebooks')}" in command and not any("token=" in word for word in command)
    cli.main(["lab"])
    assert not any("default_url" in word for word in started[1])


def test_an_unknown_lesson_is_one_line_that_names_those_that_exist(started, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["lab", "--lesson", "99", "--fresh"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ", ".join(map(str, NOTEBOOKS)) in said
    assert not started and not list(tmp_path.iterdir())


def test_a_wheel_is_opened_as_a_copy_that_is_kept_and_fresh_makes_another(started, tmp_path, monkeypatch):
    assert lessons.lessons_folder() == shipped("notebooks")
    monkeypatch.setattr("erltool.lessons.copies.in_clone", lambda: False)
    monkeypatch.chdir(tmp_path)
    folder = lessons.lessons_folder()
    lesson_path(1, folder).write_text("mine")
    lesson_path(2, folder).unlink()
    assert lessons.lessons_folder() == folder == tmp_path / "erltool-lessons"
    assert lesson_path(1, folder).read_text() == "mine" and lesson_path(2, folder).exists()
    for number in (2, 3):
        cli.main(["lab", "--fresh", "--lesson=1"])
        fresh = tmp_path / f"erltool-lessons-{number}"
        assert f"--ServerApp.root_dir={fresh}" in started[-1]
        assert lesson_path(1, fresh).read_bytes() == lesson_path(1).read_bytes()
    assert lesson_path(1, folder).read_text() == "mine"
