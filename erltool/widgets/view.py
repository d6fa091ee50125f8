"""What the widgets share: JavaScript from files beside them, and a picture for readers without a kernel."""

import io
from pathlib import Path

import anywidget
import traitlets
from matplotlib.figure import Figure

from erltool.plots import as_text, new_axes

HERE = Path(__file__).parent


def javascript(name: str) -> str:
    """A widget's module: the shared helpers and its own file. As text, because a path would be watched for ever."""
    return (HERE / "shared.js").read_text(encoding="utf-8") + (HERE / name).read_text(encoding="utf-8")


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
