"""Widgets: values that a notebook shows and whose state the next cell reads.

Each draws itself in the browser (anywidget, its JavaScript in the package, nothing from a network), keeps its
keys from JupyterLab's shortcuts, and shows a PNG and a sentence where there is no kernel. A widget's module imports
kit.js (charts), elements.js (controls, tables, live regions) and the arithmetic that a test holds equal to Python's
(bandit.js, selection.js). Their format is prettier's: npx prettier@3 --write erltool/widgets/*.js
"""

from erltool.widgets.control_explorer import ControlExplorer
from erltool.widgets.curve_fitter import CurveFitter
from erltool.widgets.entropy_lab import EntropyLab
from erltool.widgets.run_form import RunForm
from erltool.widgets.run_monitor import RunMonitor
from erltool.widgets.token_inspector import TokenInspector

__all__ = ["ControlExplorer", "CurveFitter", "EntropyLab", "RunForm", "RunMonitor", "TokenInspector"]
