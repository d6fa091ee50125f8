"""What the widgets share: their JavaScript as one text, and a picture for readers without a kernel."""

import io
import re
from pathlib import Path

import anywidget
import traitlets
from matplotlib.figure import Figure

from erltool.plots import as_text, new_axes

HERE = Path(__file__).parent
# Tags of what the reader chooses. Not echoed: an echo would undo in the browser what was chosen since.
CHOSEN = {"sync": True, "echo_update": False}
_IMPORT = re.compile(r'^import \{([^}]+)\} from "\./(\w+)\.js";$', re.M)
_EXPORT = re.compile(r"^export (?=(?:const|function) (\w+))", re.M)


def javascript(name: str) -> str:
    """A widget's module and the modules that it imports, as one text."""
    modules, own = modules_of(name)
    return "".join(modules.values()) + own


def modules_of(name: str) -> tuple[dict[str, str], str]:
    """The modules that a widget's module imports, by name, in the order in which they are needed, and the widget's own.

    anywidget imports a text from a blob URL, where "./kit.js" leads nowhere. A page's content-security policy may
    forbid more URLs than that one. So an imported module becomes the result of a function:

        import { axis } from "./kit.js";        const { axis } = kit;
        export const axis = ...; (in kit.js)    const kit = (() => { const axis = ...; return { axis }; })();
    """
    modules: dict[str, str] = {}

    def text_of(file: str) -> str:
        text = (HERE / file).read_text(encoding="utf-8")
        for _, module in _IMPORT.findall(text):
            if module not in modules:
                body = text_of(f"{module}.js")
                exported = ", ".join(_EXPORT.findall(body))
                body = _EXPORT.sub("", body)
                modules[module] = f"const {module} = (() => {{\n{body}return {{ {exported} }};\n}})();\n"
        return _IMPORT.sub(r"const {\1} = \2;", text)

    own = text_of(name)
    return modules, own


def message(text: str) -> Figure:
    """The picture of a widget that has nothing to draw: what is wrong, as text."""
    ax = new_axes(width=8.4, height=1.2)[0]
    # Not parse_math=False, which matplotlib overlooks where it measures lines to wrap.
    ax.text(0.5, 0.5, as_text(text), ha="center", va="center", wrap=True)
    ax.set_axis_off()
    return ax.figure


class View(anywidget.AnyWidget):
    """A widget with a picture and a sentence; a subclass gives both, and its JavaScript."""

    _css = (HERE / "shared.css").read_text(encoding="utf-8")
    _ipython_display_ = None  # that of ipywidgets 7 would show the widget without what _repr_mimebundle_ gives
    problem = traitlets.Unicode("").tag(sync=True)
    """What is wrong with the input, in one line; shown in the widget instead of the view."""

    def picture(self) -> Figure:
        """The widget's state as a figure."""
        raise NotImplementedError

    @property
    def sentence(self) -> str:
        """The widget's state in one sentence, with its numbers."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        png = io.BytesIO()
        self.picture().savefig(png, format="png")
        return data | {"image/png": png.getvalue(), "text/plain": self.problem or self.sentence}, metadata
