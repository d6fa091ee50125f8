"""A widget's state as JSON and bytes, for a page in which JavaScript stands in for the kernel."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from erltool.widgets.view import View

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


def view_of(widget: View) -> tuple[str, str]:
    """A widget's name, and its JavaScript as an expression whose value has `render`."""
    text = str(widget.get_state(["_esm"])["_esm"])
    head, found, view = text.rpartition("\nexport default ")
    if not found:
        raise ValueError(f"{type(widget).__name__}: its JavaScript has no default export")
    return type(widget).__name__, f"(() => {{\n{head}\nreturn {view.rstrip()}\n}})()"


def state_of(widget: View, numbers: Bytes, asks: tuple[str, Sequence] | None = None) -> dict:
    """A widget's traits for JSON, with its bytes in `numbers`.

    `asks` names a trait and its values. For each value the page gets what the kernel changes along with it. A widget
    that needs no kernel for it changes nothing else, and the page gets no more than its traits.
    """
    traits, answers = _traits(widget), []
    if asks and widget.has_trait(asks[0]):
        name, values = asks
        chosen, whole = getattr(widget, name), False
        for value in values:
            setattr(widget, name, value)
            after = _traits(widget)
            whole = whole or any(v != traits[k] for k, v in after.items() if k != name)
            answers.append([value, after])
        setattr(widget, name, chosen)
        answers = [[value, _packed(after, numbers)] for value, after in answers] if whole else []
    state = {"view": type(widget).__name__, **_packed(traits, numbers)}
    return state | ({"asks": asks[0], "answers": answers} if asks and answers else {})


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
