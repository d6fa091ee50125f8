"""Every control and controller by name, as text and as JSON."""

import dataclasses
import re
from types import ModuleType
from typing import TypeVar

from erltool.controls import controllers, dose, others, paper, recent
from erltool.controls.base import Composed, Control, NoControl
from erltool.controls.controllers import Controller
from erltool.controls.paper import ClipCov, KLCov
from erltool.errors import ErltoolError

Kind = TypeVar("Kind", Control, Controller)


def _named(kind: type[Kind], *modules: ModuleType) -> dict[str, type[Kind]]:
    """The classes of this kind that the modules define, by their name."""
    classes = (c for module in modules for c in vars(module).values() if isinstance(c, type) and issubclass(c, kind))
    return {c.name: c for c in classes if c.__module__ in {module.__name__ for module in modules} and c is not kind}


CONTROLS: dict[str, type[Control]] = {NoControl.name: NoControl} | _named(Control, paper, others, recent, dose)
CONTROLLERS: dict[str, type[Controller]] = _named(Controller, controllers)
COMPOSED = "composed"

# The paper's Clip-Cov scripts clip at 1, verl's and SkyRL's at 0.2; the other values are these projects' defaults.
# `chain`: seed 100 of the chain world chose Clip-Cov's values. KL-Cov's are the smallest of those tried there that held
# entropy over 80 iterations (data/README.md).
PRESETS = {
    "paper-7b": (ClipCov(2e-4, 1.0, 5.0, clip_eps=1.0), KLCov(2e-3, 1.0)),
    "paper-32b": (ClipCov(2e-4, 1.0, 5.0, clip_eps=1.0), KLCov(2e-4, 1.0)),
    "verl": (ClipCov(2e-4, 1.0, 5.0, clip_eps=0.2), KLCov(2e-4, 0.1)),
    "skyrl": (ClipCov(2e-4, 1.0, 5.0, clip_eps=0.2), KLCov(0.2, 1.0)),
    "chain": (ClipCov(2e-2, 0.5, 50.0), KLCov(2e-2, 1.0)),
}


def preset(control: str, name: str) -> ClipCov | KLCov:
    """The "clip-cov" or "kl-cov" of a preset. Raises ErltoolError for another control or an unknown preset."""
    if name not in PRESETS or control not in (ClipCov.name, KLCov.name):
        raise ErltoolError(f"preset {control}:{name} is not known: use clip-cov or kl-cov with {', '.join(PRESETS)}")
    return PRESETS[name][control == KLCov.name]


def parse_control(text: str) -> Control:
    """The control that a text names: "kl-cov", "kl-cov:chain" or "kl-cov:fraction=0.1,coef=2".

    A "+" composes: "kl-cov:chain+entropy-bonus:coef=0.01". Raises ErltoolError for an unknown control, preset or field,
    a value of the wrong type, or controls that do not compose.
    """
    members = re.split(r"\+(?!\s*\d)", text)  # not at the "+" of a number such as 1e+3
    if len(members) > 1:
        return sum((parse_control(member) for member in members), NoControl())
    name, _, rest = text.strip().partition(":")
    if rest and "=" not in rest:
        return preset(name, rest)
    return control_from_dict({"name": name} | _fields(rest))


def parse_controller(text: str) -> Controller:
    """The controller that a text names: "target-entropy:target=0.3" or "schedule:start=1400,length=300". Raises
    ErltoolError for an unknown controller or field, or a value of the wrong type."""
    name, _, rest = text.strip().partition(":")
    return controller_from_dict({"name": name} | _fields(rest))


def control_from_dict(fields: dict, like: Control = NoControl()) -> Control:
    """The control with these fields, "name" among them: the inverse of `control_to_dict`. The classes of `like`
    are known beside the catalogue's, so that a user's own control comes back. Raises ErltoolError for an unknown
    control or field, or a value of the wrong type."""
    if isinstance(fields, dict) and fields.get("name") == COMPOSED:
        members = fields.get("members")
        if not isinstance(members, list) or any(isinstance(m, dict) and m.get("name") == COMPOSED for m in members):
            raise ErltoolError(f"control {COMPOSED}: members is {shortened(members)}; it must be a list of controls")
        return sum((control_from_dict(member, like) for member in members), NoControl())
    return _from_dict("control", CONTROLS | {part.name: type(part) for part in like.parts}, fields)


def controller_from_dict(fields: dict) -> Controller:
    """The controller with these fields, as `control_from_dict` does for a control."""
    return _from_dict("controller", CONTROLLERS, fields)


def control_to_dict(control: Control | Controller) -> dict:
    """Name and fields of a control or a controller, ready for JSON."""
    if isinstance(control, Composed):
        return {"name": COMPOSED, "members": [control_to_dict(member) for member in control.parts]}
    return {"name": control.name} | {f.name: getattr(control, f.name) for f in dataclasses.fields(control)}


def shortened(value) -> str:
    """The repr of a file's value for an error's line, at most 80 characters and safe for a terminal."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}\u2026"


def _from_dict(kind: str, known: dict[str, type[Kind]], fields: dict) -> Kind:
    if not isinstance(fields, dict):
        raise ErltoolError(f"{kind} {shortened(fields)}: must be a {kind}'s name with its fields")
    fields = dict(fields)
    name = fields.pop("name", None)
    if not isinstance(name, str) or name not in known:
        raise ErltoolError(f"{kind} {shortened(name)} is not known: use one of {', '.join(known)}")
    types = {f.name: f.type for f in dataclasses.fields(known[name])}
    for key, value in fields.items():
        if key not in types:
            have = f"its fields are {', '.join(types)}" if types else "it has no fields"
            raise ErltoolError(f"{kind} {name} has no field {shortened(key)}: {have}")
        wanted, words = ((str,), "text") if types[key] is str else ((int, float), "a number")
        optional = value is None and types[key] not in (str, float)
        if not optional and (isinstance(value, bool) or not isinstance(value, wanted)):
            raise ErltoolError(f"{kind} {name}: {key} is {shortened(value)}; it must be {words}")
    return known[name](**fields)


def _fields(text: str) -> dict[str, float | str | None]:
    """The fields of "fraction=0.1,coef=2"."""
    pairs = (pair.partition("=") for pair in text.split(",") if pair)
    return {key.strip(): _value(raw.strip()) for key, _, raw in pairs}


def _value(raw: str) -> float | str | None:
    if raw.lower() == "none":
        return None
    try:
        return float(raw)
    except ValueError:
        return raw
