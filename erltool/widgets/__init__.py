"""Widgets: values that a notebook shows and whose state the next cell reads.

Each draws itself in the browser (anywidget, its JavaScript in the package, nothing from a network), keeps its
keys from JupyterLab's shortcuts, and shows a PNG and a sentence where there is no kernel. A widget's module imports
kit.js (charts), reading.js (their crosshair), elements.js (controls, tables, live regions) and the arithmetic that a
test holds equal to Python's (bandit.js, law.js, selection.js). Colours are variables of shared.css, which follow the
theme. A view uses of its model get, set, on and save_changes; where there is no `send`, it leaves out what asks a
kernel. Their format is prettier's: npx prettier@3 --write erltool/widgets/*.js
"""

from erltool.widgets.control_explorer import ControlExplorer
from erltool.widgets.curve_fitter import CurveFitter
from erltool.widgets.entropy_lab import EntropyLab
from erltool.widgets.run_form import RunForm
from erltool.widgets.run_monitor import RunMonitor
from erltool.widgets.token_inspector import TokenInspector

__all__ = ["ControlExplorer", "CurveFitter", "EntropyLab", "RunForm", "RunMonitor", "TokenInspector"]
