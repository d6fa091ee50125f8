"""The lessons: where they are, their exercises, copies for a workshop's participants, and its timed plan.

An exercise is a card, a markdown cell tagged `exercise` that begins "**1 (10 minutes).**" or "**1 (10 minutes, a
silent bug).**"; a code cell tagged `solution`, whose metadata hold the participant's stub; and a cell that checks.
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
"""Lessons of a workshop by its minutes."""
CLOSING = 5  # minutes kept for questions at the end, at least


@dataclass(frozen=True)
class Card:
    """An exercise of a lesson."""

    number: int
    minutes: int
    silent_bug: bool
    text: str
    """What to do, markdown, with its hint."""
    solution: str
    """Code; empty for a question."""
    check: str
    """Name in `workshop.EXERCISES`, or empty where nothing checks it."""


@dataclass(frozen=True)
class Lesson:
    """A lesson and its exercises."""

    path: Path
    number: int
    title: str
    minutes: int
    """To read and run it, without its exercises."""
    cards: tuple[Card, ...]


def lesson_paths(folder: Path | None = None) -> dict[int, Path]:
    """The lessons of a folder by number, the package's own by default."""
    return {int(p.name[:2]): p for p in sorted((folder or shipped("notebooks")).glob("[0-9][0-9]_*.ipynb"))}


def lesson_path(number: int, folder: Path | None = None) -> Path:
    """One of them. Raises ErltoolError, which names those that exist, for another number."""
    paths = lesson_paths(folder)
    if number not in paths:
        raise ErltoolError(f"there is no lesson {number}; choose one of {', '.join(map(str, paths))}")
    return paths[number]


def lessons_folder(wanted: Path | None = None, fresh: bool = False) -> Path:
    """Folder to open the lessons in: in a clone theirs, else a copy in `wanted` or ./erltool-lessons.

    A copy keeps what is there: only lessons that are missing are added. `fresh` makes another one beside it, numbered,
    also in a clone.
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
    """A lesson with its exercises. Raises ErltoolError where the file is no lesson."""
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
    found = CARD.search(source)
    if not found:
        raise ErltoolError(
            f'an exercise must begin with its number and minutes, "**1 (10 minutes).**": {source[:60]!r}'
        )
    number, minutes, silent_bug, text = found.groups()
    solution = following[0].source if following and _tagged(following[0], "solution") else ""
    check = re.search(r"check_(\w+)", following[1].source) if solution and len(following) > 1 else None
    return Card(int(number), int(minutes), bool(silent_bug), text, solution, check[1] if check else "")


def participant_copy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy without outputs and solutions: stubs in their place, answers removed, hints kept.

    Raises ErltoolError for a solution that has no stub.
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
                raise ErltoolError(f"a solution without a stub in its metadata: {cell.source[:60]!r}")
            cell.source, cell.metadata = stub, nbformat.from_dict({"tags": ["stub"]})
    return copied


def plan(lessons: Sequence[Lesson], minutes: int) -> list[tuple[str, int]]:
    """What a workshop of 60, 90 or 180 minutes does, with the minutes of each; they sum to `minutes`.

    SESSIONS' lessons, then exercises as far as they fit: the first of each lesson, then the second and so on, a silent
    bug before others; what is left is for questions. Raises ErltoolError for another number, or where it is too short.
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
    return [*rows, ("questions, and what is left open", left + CLOSING)]


def instructor_sheet(lessons: Sequence[Lesson], sessions: Sequence[int] = tuple(SESSIONS)) -> str:
    """Markdown for who teaches: a timed plan for each length in minutes, the solutions, and what the checks name."""
    lines = [
        "# For the instructor",
        "",
        "Participants get the folder `lessons`; this sheet has the solutions. The day before, let everybody run",
        "`erltool doctor`, then `erltool lab --dir lessons`. A lesson's minutes are for reading and running it.",
    ]
    for minutes in sessions:
        lines += ["", f"## {minutes} minutes", "", "| from | to | minutes | what |", "|---|---|---|---|"]
        at = 0
        for what, takes in plan(lessons, minutes):
            lines.append(f"| {_clock(at)} | {_clock(at + takes)} | {takes} | {what} |")
            at += takes
        lines.append(f"| | | {at} | in all |")
    lines += ["", "## Exercises and solutions"]
    for lesson in lessons:
        lines += ["", f"### Lesson {lesson.number:02}: {lesson.title}"]
        for card in lesson.cards:
            kind = ", a silent bug" if card.silent_bug else ""
            lines += ["", f"**Exercise {card.number}, {card.minutes} minutes{kind}.** {card.text.strip()}"]
            lines += ["", f"```python\n{card.solution}\n```"] if card.solution else []
            mistakes = EXERCISES[card.check].mistakes if card.check else ()
            lines += ["", "The check names it when:", ""] if mistakes else []
            lines += [f"- {sentence}" for sentence in mistakes]
    return "\n".join(lines) + "\n"


def _clock(minutes: int) -> str:
    return f"{minutes // 60}:{minutes % 60:02}"


def write_workshop(out: Path, sessions: Sequence[int] = tuple(SESSIONS)) -> list[Path]:
    """Writes lessons/*.ipynb for participants and instructor.md into a folder; returns the files.

    Raises ErltoolError, and writes nothing, where one of them is there with other content.
    """
    lessons = [read_lesson(path) for path in lesson_paths().values()]
    texts = {
        out / "lessons" / lesson.path.name: nbformat.writes(participant_copy(nbformat.read(lesson.path, as_version=4)))
        for lesson in lessons
    }
    texts[out / "instructor.md"] = instructor_sheet(lessons, sessions)
    for file, text in texts.items():
        if file.exists() and file.read_text(encoding="utf-8") != text:
            raise ErltoolError(f"{file}: there already, and changed; choose another folder, or delete it")
    for file, text in texts.items():
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    return list(texts)
