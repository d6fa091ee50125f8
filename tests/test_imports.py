"""Runs import-linter with the contracts in pyproject.toml, and checks imports that a linter cannot see."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import erltool
from erltool.resources import shipped

PACKAGE = Path(erltool.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
READERS = ("law", "runs", "logs")


def test_every_room_imports_only_rooms_below():
    # In a process of its own, because import-linter resets logging, which would hide the warnings of other tests.
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (c["layers"] for c in settings["contracts"] if c["type"] == "layers")
    placed = {name.strip().removeprefix("erltool.") for layer in layers for name in layer.split("|")}
    assert placed == {p.stem for p in PACKAGE.iterdir() if p.is_dir() or p.suffix == ".py"} - {
        "__main__",
        "__init__",
        "__pycache__",
    }


def test_looking_at_runs_loads_neither_torch_nor_transformers():
    names = [f"erltool.{'.'.join(p.relative_to(PACKAGE).with_suffix('').parts)}" for r in READERS
             for p in sorted((PACKAGE / r).glob("[a-z]*.py"))]  # fmt: skip
    code = f"import sys, {', '.join(names)}, erltool.plots; print({{'torch', 'transformers'}} & set(sys.modules))"
    assert len(names) > 15
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


WITHOUT_TORCH = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "peft", "bitsandbytes"):
            raise ImportError(name)

sys.meta_path.insert(0, Missing())
from erltool.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("command", [["fit"], ["runs"], ["watch", "--once"], ["check"]], ids=" ".join)
def test_looking_at_runs_works_without_torch(command):
    run = shipped("data/runs/demo-none")
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *command, run], capture_output=True, text=True)
    assert done.stdout.strip() and not done.stderr, done.stderr  # `watch` exits with 1 on an alarm


@pytest.mark.parametrize("module", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_uses_pyplot_or_evaluates_text(module):
    nodes = list(ast.walk(ast.parse(module.read_text())))
    calls = {n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    imports = [ast.unparse(n) for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)]
    assert not any("pyplot" in line for line in imports) and not {"eval", "exec"} & calls


def test_import_is_lazy_and_every_name_is_there():
    code = "import sys, erltool; print(sorted({'torch', 'transformers', 'numpy', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
    for name in erltool.__all__:
        assert getattr(erltool, name).__doc__
    with pytest.raises(AttributeError, match="nothing"):
        _ = erltool.nothing
