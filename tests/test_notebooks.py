"""Every notebook runs, and the committed outputs are those of a run and can be read on GitHub."""

import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from make_notebooks import INSTALL, with_install_cell
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

import erltool
from erltool.resources import shipped

NOTEBOOKS = sorted(shipped("notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_runs_from_another_directory(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": tmp_path}}).execute()
    assert not list(tmp_path.iterdir())


OPTIONAL = (
    "math_verify", "reasoning_gym", "datasets", "gguf", "tensorboard", "playwright", "voila", "trl", "verl",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_runs_twice_in_one_kernel_without_optional_packages(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    hide = nbformat.v4.new_code_cell(f"import sys\nsys.modules.update(dict.fromkeys({OPTIONAL}))")
    notebook.cells = [hide, *notebook.cells, *(nbformat.from_dict(c) for c in nbformat.read(path, as_version=4).cells)]
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": tmp_path}}).execute()
    said = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert not [o.text for o in said if o.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_without_its_data_it_says_what_to_do(path, tmp_path, monkeypatch):
    package = Path(erltool.__file__).parent
    shutil.copytree(package, tmp_path / "erltool", ignore=shutil.ignore_patterns("data", "notebooks", "__pycache__"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    try:  # the first lesson needs none
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    except CellExecutionError as e:
        assert re.search("is missing beside the package in .*; install erltool again", str(e))
    else:
        assert "shipped(" not in path.read_text()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_what_is_committed_is_what_one_run_made(path):
    text = path.read_text()
    notebook = json.loads(text)
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1))
    outputs = [o for c in code for o in c["outputs"]]
    assert all(o["output_type"] != "error" and o.get("name") != "stderr" for o in outputs)
    assert "widgets" not in notebook["metadata"] and len(text) < 700_000
    said = json.dumps([o.get("text", o.get("data", {}).get("text/plain")) for o in outputs])
    assert not re.search(r"(/home/|/root/|/work/|/tmp/|[A-Z]:\\\\)", said + "".join(str(c["source"]) for c in code))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_cells_are_short(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 20
        else:
            assert len(re.sub(r"<details>.*?</details>", "", cell.source, flags=re.S).split()) <= 120


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_its_first_cell_installs_erltool_and_printed_nothing(path):
    first = next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    assert first.source == INSTALL and not first.outputs


@pytest.mark.parametrize("there", [True, False])
def test_the_cell_asks_pip_only_where_erltool_is_missing(there, monkeypatch):
    asked = []
    shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}))
    shell.register_magic_function(asked.append, "line", "pip")
    if not there:
        monkeypatch.setitem(sys.modules, "erltool", None)
    assert shell.run_cell(INSTALL).success
    assert asked == ([] if there else ["install -q -e .."])


def test_the_cell_is_written_once_and_the_counts_behind_it_move_on():
    shown = nbformat.v4.new_output("execute_result", execution_count=1)
    code = nbformat.v4.new_code_cell("1", execution_count=1, outputs=[shown])
    lesson = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A title"), code])
    made = with_install_cell(with_install_cell(lesson))
    assert [cell.source for cell in made.cells] == ["# A title", INSTALL, "1"]
    assert [cell.execution_count for cell in made.cells[1:]] == [1, 2]
    assert made.cells[2].outputs[0].execution_count == 2


def test_the_path_of_the_lessons_is_in_the_package_or_the_clone():
    assert shipped("notebooks").is_dir() and isinstance(shipped("notebooks"), Path)
