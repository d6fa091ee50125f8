"""The lessons: their files and exercises, copies for a workshop's participants, and the workshop's timed plan.

An exercise has three cells: a card, which is markdown tagged `exercise` that begins "**1 (10 minutes).**" or
"**1 (10 minutes, a silent bug).**"; code tagged `solution`, with the participant's stub in its metadata; and a check.
"""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat

from erltool.errors import ErltoolError
from erltool.files import writing
from erltool.lessons.workshop import EXERCISES
from erltool.resources import in_clone, shipped

CARD = re.compile(r"\*\*(\d+) \((\d+) minutes(, a silent bug)?\)\.\*\*\s*(.*)", re.S)
ANSWER = re.compile(r"<details>\s*<summary>(?:Answer|Solutions)</summary>.*?</details>\s*", re.S)

SESSIONS = {60: (0, 1), 90: (0, 1, 2), 180: (0, 1, 3, 5)}
"""Lessons of a workshop, by its length in minutes."""
CLOSING = 5  # minutes at least for questions at the end


@dataclass(frozen=True)
class Card:
    """An exercise."""

    number: int
    minutes: int
    silent_bug: bool
    text: str  # the task and its hint, in markdown
    solution: str  # code; "" for a question
    check: str  # name in `workshop.EXERCISES`; "" for an unchecked exercise


@dataclass(frozen=True)
class Lesson:
    """A lesson and its exercises."""

    path: Path
    number: int
    title: str
    minutes: int  # to read and run it without its exercises
    cards: tuple[Card, ...]


def lesson_paths(folder: Path | None = None) -> dict[int, Path]:
    """The lessons of a folder by number; by default the package's own."""
    return {int(p.name[:2]): p for p in sorted((folder or shipped("notebooks")).glob("[0-9][0-9]_*.ipynb"))}


def lesson_path(number: int, folder: Path | None = None) -> Path:
    """The lesson of a number. Raises ErltoolError, which lists the lessons, for an unknown number."""
    paths = lesson_paths(folder)
    if number not in paths:
        raise ErltoolError(f"there is no lesson {number}; choose one of {', '.join(map(str, paths))}")
    return paths[number]


def lessons_folder(wanted: Path | None = None, fresh: bool = False) -> Path:
    """Folder to open the lessons in: notebooks/ in a clone, else a copy in `wanted` or ./erltool-lessons.

    A folder that exists keeps its files, and only missing lessons are added. `fresh` makes a new copy in a folder with
    the next number, in a clone, too.
    """
    if in_clone() and wanted is None and not fresh:
        return shipped("notebooks")
    folder = first = (wanted or Path("erltool-lessons")).resolve()
    number = 1
    while fresh and folder.exists():
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in lesson_paths().values():
            if not (folder / path.name).exists():  # the reader's changes stay
                shutil.copy(path, folder)
    return folder


def read_lesson(path: Path) -> Lesson:
    """A lesson with its exercises. Raises ErltoolError for a file that is not a lesson."""
    cells = nbformat.read(path, as_version=4).cells
    title = re.match(r"# (.+)", cells[0].source)
    minutes = re.search(r"^\| minutes .*\n\|[-|]+\n\| *(\d+)", cells[0].source, re.M)
    if not title or not minutes:
        raise ErltoolError(f"{path}: its first cell must have a title and a table with the minutes")
    cards = [_card(cell.source, cells[i + 1 :]) for i, cell in enumerate(cells) if _tagged(cell, "exercise")]
    return Lesson(path, int(path.name[:2]), title[1], int(minutes[1]), tuple(cards))


def _tagged(cell, tag: str) -> bool:
    return tag in cell.metadata.get("tags", ())


def _card(source: str, following: Sequence) -> Card:
    card = CARD.search(source)
    if not card:
        raise ErltoolError(f'exercise {source[:60]!r}: must begin with its number and minutes, "**1 (10 minutes).**"')
    number, minutes, silent_bug, text = card.groups()
    solution = following[0].source if following and _tagged(following[0], "solution") else ""
    check = re.search(r"check_(\w+)", following[1].source) if solution and len(following) > 1 else None
    return Card(int(number), int(minutes), bool(silent_bug), text, solution, check[1] if check else "")


def participant_copy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy without outputs, with stubs instead of solutions, and with hints but no answers.

    Raises ErltoolError for a solution without a stub.
    """
    copied = nbformat.from_dict(notebook)
    for cell in copied.cells:
        if cell.cell_type == "markdown":
            cell.source = ANSWER.sub("", cell.source).rstrip()
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if _tagged(cell, "solution"):
            stub = cell.metadata.get("erltool", {}).get("stub")
            if not stub:
                raise ErltoolError(f"solution {cell.source[:60]!r}: without a stub in its metadata")
            cell.source, cell.metadata = stub, nbformat.from_dict({"tags": ["stub"]})
    return copied


def plan(lessons: Sequence[Lesson], minutes: int) -> list[tuple[str, int]]:
    """(activity, its minutes) of a workshop of 60, 90 or 180 minutes; the minutes sum to `minutes`.

    First come the lessons in SESSIONS, then the exercises that fit: one of each lesson, then a second one of each, and
    so on, with silent bugs first. The remaining time is for questions. Raises ErltoolError for another length, and
    where the lessons alone take longer.
    """
    if minutes not in SESSIONS:
        raise ErltoolError(f"no plan for {minutes} minutes; choose one of {', '.join(map(str, SESSIONS))}")
    taken = [lesson for lesson in lessons if lesson.number in SESSIONS[minutes]]
    left = minutes - CLOSING - sum(lesson.minutes for lesson in taken)
    if left < 0:
        raise ErltoolError(f"the lessons of the plan for {minutes} minutes take {-left} minutes more")
    in_turn = [sorted(lesson.cards, key=lambda card: not card.silent_bug) for lesson in taken]
    turns = [(turn, i) for i, cards in enumerate(in_turn) for turn in range(len(cards))]
    chosen = set()
    for turn, i in sorted(turns):
        card = in_turn[i][turn]
        if card.minutes <= left:
            left -= card.minutes
            chosen.add((i, card.number))
    rows = []
    for i, lesson in enumerate(taken):
        rows.append((f"Lesson {lesson.number:02}: {lesson.title}", lesson.minutes))
        rows += [(f"its exercise {c.number}", c.minutes) for c in lesson.cards if (i, c.number) in chosen]
    return [*rows, ("questions and open exercises", left + CLOSING)]


def instructor_sheet(lessons: Sequence[Lesson], sessions: Sequence[int] = tuple(SESSIONS)) -> str:
    """Markdown for the instructor: a timed plan for each length, solutions, and the mistakes that the checks name."""
    lines = [
        "# For the instructor",
        "",
        "Participants get the folder `lessons`; this sheet has the solutions. The day before, ask everybody to run",
        "`erltool doctor`, then `erltool lab --dir lessons`. A lesson's minutes are for reading and running it.",
    ]
    for minutes in sessions:
        lines += ["", f"## {minutes} minutes", "", "| from | to | minutes | activity |", "|---|---|---|---|"]
        at = 0
        for activity, length in plan(lessons, minutes):
            lines.append(f"| {_clock(at)} | {_clock(at + length)} | {length} | {activity} |")
            at += length
        lines.append(f"| | | {at} | in all |")
    lines += ["", "## Exercises and solutions"]
    for lesson in lessons:
        lines += ["", f"### Lesson {lesson.number:02}: {lesson.title}"]
        for card in lesson.cards:
            kind = ", a silent bug" if card.silent_bug else ""
            lines += ["", f"**Exercise {card.number}, {card.minutes} minutes{kind}.** {card.text.strip()}"]
            lines += ["", f"```python\n{card.solution}\n```"] if card.solution else []
            mistakes = EXERCISES[card.check].mistakes if card.check else ()
            lines += ["", "The check names these mistakes:", ""] if mistakes else []
            lines += [f"- {sentence}" for sentence in mistakes]
    return "\n".join(lines) + "\n"


def _clock(minutes: int) -> str:
    return f"{minutes // 60}:{minutes % 60:02}"


def write_workshop(out: Path, sessions: Sequence[int] = tuple(SESSIONS)) -> list[Path]:
    """Writes the participants' lessons/*.ipynb and instructor.md to a folder; returns the files.

    Raises ErltoolError, and writes nothing, if one of the files exists with other content.
    """
    lessons = [read_lesson(path) for path in lesson_paths().values()]
    texts = {
        out / "lessons" / lesson.path.name: nbformat.writes(participant_copy(nbformat.read(lesson.path, as_version=4)))
        for lesson in lessons
    }
    texts[out / "instructor.md"] = instructor_sheet(lessons, sessions)
    for file, text in texts.items():
        if file.exists() and file.read_text(encoding="utf-8") != text:
            raise ErltoolError(f"{file}: exists with other content; choose another folder, or delete the file")
    for file, text in texts.items():
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    return list(texts)
