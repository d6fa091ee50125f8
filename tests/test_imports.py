"""What may import what: the mathematics knows no model, what looks at runs knows no transformers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import erltool

PACKAGE = Path(erltool.__file__).parent

# From the ground up. A module imports only modules of lower rows, or earlier ones of its own.
FLOORS = (
    ("errors", "resources", "arguments", "text", "tables", "threads"),
    ("logprobs", "advantages", "covariance", "tokens", "controls.base", "controls.paper", "controls.others",
     "controls.controllers", "controls.catalog", "controls.loss", "bandit"),
    ("config", "countdown", "chain", "answers", "equality", "gym", "jury", "judge", "tasks"),
    ("logtext", "lognumbers", "logrows", "logfolders", "logtables", "logformats", "logmetrics", "logcolumns"),
    ("logruns", "residuals", "doubts", "fit", "files", "checkpoints", "runs", "runwriter", "importers", "compare",
     "forecasting", "rivals", "scaling", "plots", "alarms"),
    ("attention", "sources", "lora", "heads", "policy", "rollouts", "sampling", "probe", "loading"),
    ("plan", "evaluate", "step", "saved", "training", "trl", "export"),
    ("experiments", "demo", "doctor", "workshop", "lessons", "terminal"),
    ("cli",),
)  # fmt: skip
ORDER = [name for floor in FLOORS for name in floor]
MODULES = sorted(
    ".".join(p.relative_to(PACKAGE).with_suffix("").parts)
    for p in (*PACKAGE.glob("*.py"), *PACKAGE.glob("controls/*.py"))
    if p.stem != "__init__"
)


def parsed(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())


def imported(module: str) -> set[str]:
    """Dotted names of everything a module imports, inside its functions too."""
    names = set()
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def test_every_module_has_its_place():
    assert sorted(ORDER) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    inside = {other for other in ORDER for name in imported(module) if f"{name}.".startswith(f"erltool.{other}.")}
    above = {name for name in inside if ORDER.index(name) >= ORDER.index(module)}
    assert not above


@pytest.mark.parametrize("module", FLOORS[1])
def test_the_mathematics_needs_torch_only(module):
    allowed = {"torch", "erltool"} | sys.stdlib_module_names
    assert {name.split(".")[0] for name in imported(module)} <= allowed


@pytest.mark.parametrize("module", FLOORS[3] + FLOORS[4])
def test_looking_at_runs_needs_neither_torch_nor_transformers(module):
    assert not {name.split(".")[0] for name in imported(module)} & {"torch", "transformers", "peft"}
    code = f"import sys, erltool.{module}; print({{'torch', 'transformers'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_nothing_uses_pyplot_or_evaluates_text():
    for module in MODULES:
        assert not any("pyplot" in name for name in imported(module))
        calls = [n.func.id for n in ast.walk(parsed(module))
                 if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]  # fmt: skip
        assert not {"eval", "exec"} & set(calls)


def test_import_is_lazy_and_every_name_is_there():
    code = "import sys, erltool; print(sorted({'torch', 'transformers', 'numpy', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
    for name in erltool.__all__:
        assert getattr(erltool, name).__doc__
    with pytest.raises(AttributeError, match="no attribute"):
        _ = erltool.nothing
