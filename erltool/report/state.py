"""A widget's state as JSON and bytes, for a page in which JavaScript stands in for the kernel."""

import hashlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from erltool.widgets.view import View, modules_of

# Traits of ipywidgets and anywidget themselves, beside those that begin with _: a page has no layout and no kernel.
OF_THE_FRAMEWORK = ("layout", "tabbable", "tooltip")


@dataclass
class Bytes:
    """Bytes of all states one after another; equal ones are there once."""

    parts: list[bytes] = field(default_factory=list)
    length: int = 0
    _at: dict[bytes, int] = field(default_factory=dict)

    def place(self, blob: bytes) -> list[int]:
        """Where the bytes are: offset and length. They begin at a multiple of 8, as typed arrays must."""
        key = hashlib.sha256(blob).digest()
        if key not in self._at:
            self._at[key] = self.length
            padded = blob + bytes(-len(blob) % 8)
            self.parts.append(padded)
            self.length += len(padded)
        return [self._at[key], len(blob)]


@dataclass(frozen=True)
class Asks:
    """Choices of a reader for which a page holds what the kernel would send."""

    values: dict[str, Sequence]
    """Traits and their values, in every combination; what a widget does not have is left out."""
    given: tuple[str, ...] = ()
    """Further traits that the kernel reads: the page has its answers for their present values."""
    along: tuple[str, ...] = ()
    """Traits that every answer sets, changed or not."""
    settle: Callable = lambda widget: None
    """What else the view would ask the kernel for after a choice."""


def view_of(widget: View) -> tuple[str, dict[str, str], str]:
    """A widget's name, the modules that its JavaScript needs, and that as an expression whose value has `render`.

    The modules are those of view.modules_of, so that a page with several widgets has each of them once.
    """
    modules, text = modules_of(Path(inspect.getfile(type(widget))).with_suffix(".js").name)
    head, found, view = text.rpartition("\nexport default ")
    if not found:
        raise ValueError(f"{type(widget).__name__}: its JavaScript has no default export")
    return type(widget).__name__, modules, f"(() => {{\n{head}\nreturn {view.rstrip()}\n}})()"


def state_of(widget: View, numbers: Bytes, asks: Asks | None = None) -> dict:
    """A widget's traits for JSON, with its bytes in `numbers`, and the kernel's answers to what it `asks`.

    An answer is the traits that the kernel sets by itself. A widget that needs no kernel for a choice has no answers.
    """
    names = [n for n in asks.values if widget.has_trait(n)] if asks else []
    if asks and names:
        asks.settle(widget)
    traits = _traits(widget)
    state = {"view": type(widget).__name__, **_packed(traits, numbers)}
    if not asks or not names:
        return state
    answers = []
    for combination in itertools.product(*(asks.values[n] for n in names)):
        for name, value in zip(names, combination, strict=True):
            setattr(widget, name, value)
        asks.settle(widget)
        answers.append((combination, _traits(widget)))
    for name in names:
        setattr(widget, name, traits[name])
    # What a reader chooses (view.CHOSEN) stays as it is chosen, unless every answer sets it.
    owned = [k for k in traits if k not in names and widget.trait_metadata(k, "echo_update") is not False]
    changed = {k for _, after in answers for k in owned if after[k] != traits[k]}
    if not changed:
        return state
    changed |= {k for k in asks.along if k in traits}
    said = [[[*values], _packed({k: after[k] for k in sorted(changed)}, numbers)] for values, after in answers]
    return state | {"asks": names, "given": [n for n in asks.given if n in traits], "answers": said}


def _traits(widget: View) -> dict:
    return {k: v for k, v in widget.get_state().items() if not k.startswith("_") and k not in OF_THE_FRAMEWORK}


def _packed(values: dict, numbers: Bytes) -> dict:
    """Values for JSON, and for each array of bytes its path, offset and length."""
    buffers: list[list] = []

    def plain(value, path: list):
        if isinstance(value, bytes | bytearray | memoryview):
            buffers.append([path, *numbers.place(bytes(value))])
            return None
        if isinstance(value, dict):
            return {str(k): plain(v, [*path, str(k)]) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v, [*path, i]) for i, v in enumerate(value)]
        return value if not isinstance(value, float) or np.isfinite(value) else None

    return {"values": plain(values, []), "buffers": buffers}


def rounded(values: Iterable[float], bits: int = 16) -> np.ndarray:
    """Floats with `bits` binary digits, a relative error of 2**-bits: they take half the room once compressed."""
    mantissa, exponent = np.frexp(np.asarray(values, np.float64))
    return np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits)
