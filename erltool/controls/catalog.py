"""Every control and controller by name, as text and as JSON."""

import dataclasses
import re

from erltool.controls import controllers, others, paper
from erltool.controls.base import Composed, Control, NoControl
from erltool.controls.controllers import Controller
from erltool.controls.paper import ClipCov, KLCov
from erltool.errors import ErltoolError


def _named(kind: type, *modules) -> dict[str, type]:
    """The classes of this kind that the modules define, by their name."""
    classes = (c for module in modules for c in vars(module).values() if isinstance(c, type) and issubclass(c, kind))
    return {c.name: c for c in classes if c.__module__ in {module.__name__ for module in modules} and c is not kind}


CONTROLS: dict[str, type[Control]] = {NoControl.name: NoControl} | _named(Control, paper, others)
CONTROLLERS: dict[str, type[Controller]] = _named(Controller, controllers)
COMPOSED = "composed"

# The clip of the paper's Clip-Cov scripts is 1, verl's and SkyRL's 0.2. `chain`: Clip-Cov's values were chosen in the
# chain world on seed 100, KL-Cov's are the smallest tried there that held entropy over 80 iterations (data/README.md).
# The others are those projects' defaults.
PRESETS = {
    "paper-7b": (ClipCov(2e-4, 1.0, 5.0, clip_eps=1.0), KLCov(2e-3, 1.0)),
    "paper-32b": (ClipCov(2e-4, 1.0, 5.0, clip_eps=1.0), KLCov(2e-4, 1.0)),
    "verl": (ClipCov(2e-4, 1.0, 5.0, clip_eps=0.2), KLCov(2e-4, 0.1)),
    "skyrl": (ClipCov(2e-4, 1.0, 5.0, clip_eps=0.2), KLCov(0.2, 1.0)),
    "chain": (ClipCov(2e-2, 0.5, 50.0), KLCov(2e-2, 1.0)),
}


def preset(control: str, name: str) -> ClipCov | KLCov:
    """The Clip-Cov ("clip-cov") or KL-Cov ("kl-cov") of a preset by name. Raises ErltoolError."""
    if name not in PRESETS or control not in (ClipCov.name, KLCov.name):
        raise ErltoolError(
            f"preset {control}:{name} is not known: use clip-cov or kl-cov with one of {', '.join(PRESETS)}"
        )
    return PRESETS[name][control == KLCov.name]


def parse_control(text: str) -> Control:
    """The control that a text names: "kl-cov", "kl-cov:chain" or "kl-cov:fraction=0.1,coef=2".

    A "+" composes: "kl-cov:chain+entropy-bonus:coef=0.01". Raises ErltoolError for an unknown control, preset or field,
    a value of the wrong type, or controls that do not compose.
    """
    parts = re.split(r"\+(?!\s*\d)", text)  # the "+" of a number such as 1e+3 composes nothing
    if len(parts) > 1:
        return sum((parse_control(part) for part in parts), NoControl())
    name, _, rest = text.strip().partition(":")
    if rest and "=" not in rest:
        return preset(name, rest)
    return control_from_dict({"name": name} | _fields(rest))


def parse_controller(text: str) -> Controller:
    """The controller that a text names: "target-entropy:target=0.3" or "schedule:start=1400,length=300". Raises
    ErltoolError for an unknown one or field, or a value of the wrong type."""
    name, _, rest = text.strip().partition(":")
    return controller_from_dict({"name": name} | _fields(rest))


def control_from_dict(fields: dict) -> Control:
    """The control with these fields, "name" among them: the inverse of `control_to_dict`. Raises ErltoolError for what
    names no control, or gives one another field or a value of another type."""
    if isinstance(fields, dict) and fields.get("name") == COMPOSED:
        members = fields.get("members")
        if not isinstance(members, list) or any(isinstance(m, dict) and m.get("name") == COMPOSED for m in members):
            raise ErltoolError(f"control {COMPOSED}: members is {shortened(members)}, it must be a list of controls")
        return sum((control_from_dict(member) for member in members), NoControl())
    return _from_dict("control", CONTROLS, fields)


def controller_from_dict(fields: dict) -> Controller:
    """The controller with these fields, as `control_from_dict` does for a control."""
    return _from_dict("controller", CONTROLLERS, fields)


def control_to_dict(control: Control | Controller) -> dict:
    """Name and fields of a control or a controller, ready for JSON."""
    if isinstance(control, Composed):
        return {"name": COMPOSED, "members": [control_to_dict(part) for part in control.parts]}
    return {"name": control.name} | {f.name: getattr(control, f.name) for f in dataclasses.fields(control)}


def shortened(value) -> str:
    """A value of a file for an error's line: no longer, and without what moves a terminal."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}\u2026"


def _from_dict(what: str, known: dict[str, type], fields: dict):
    """A control or controller of these fields. Raises ErltoolError."""
    if not isinstance(fields, dict):
        raise ErltoolError(f"{what} {shortened(fields)}: must be a {what}'s name with its fields")
    fields = dict(fields)
    name = fields.pop("name", None)
    if not isinstance(name, str) or name not in known:
        raise ErltoolError(f"{what} {shortened(name)} is not known: use one of {', '.join(known)}")
    kinds = {f.name: f.type for f in dataclasses.fields(known[name])}
    for key, value in fields.items():
        if key not in kinds:
            have = f"its fields are {', '.join(kinds)}" if kinds else "it has no fields"
            raise ErltoolError(f"{what} {name} has no field {shortened(key)}: {have}")
        wanted = (str,) if kinds[key] is str else (int, float)
        optional = value is None and kinds[key] not in (str, float)
        if not optional and (isinstance(value, bool) or not isinstance(value, wanted)):
            kind = "text" if wanted == (str,) else "a number"
            raise ErltoolError(f"{what} {name}: {key} is {shortened(value)}, it must be {kind}")
    return known[name](**fields)


def _fields(text: str) -> dict[str, float | str | None]:
    """The fields of "fraction=0.1,coef=2"."""
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    return {key.strip(): _value(raw.strip()) for key, _, raw in pairs}


def _value(raw: str) -> float | str | None:
    if raw.lower() == "none":
        return None
    try:
        return float(raw)
    except ValueError:
        return raw
