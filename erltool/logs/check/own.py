"""This package's controls in a configuration, as fields of Settings: in its own, and in the loss that it registers in
another framework (engines/verl_losses.py)."""

from collections.abc import Mapping

from erltool.logs.check.scripts import UNKNOWN
from erltool.logs.check.settings import CLIP_COV, KL_COV

LOSS_PREFIX = "erltool:"  # of the name of a registered loss; the control's text follows
LOSSES = "erltool.engines.verl_losses"  # the module that registers it in verl


def parts_of(values: Mapping[str, object]) -> dict[str, dict]:
    """The members of a control by name: from text, "kl-cov:fraction=0.1+entropy-bonus", or as a configuration file
    holds them."""
    text = values.get("control")
    if isinstance(text, str):
        return {part["name"]: part for part in map(_part, text.split("+"))}
    flat = {key.removeprefix("control."): value for key, value in values.items() if key.startswith("control.")}
    members: dict[str, dict] = {}
    for key, value in flat.items():
        if key.startswith("members.") and key.count(".") == 2:
            members.setdefault(key.split(".")[1], {})[key.split(".")[2]] = value
    return {str(part.get("name")): part for part in [*members.values()] or [flat]}


def _part(text: str) -> dict:
    name, _, rest = text.strip().partition(":")
    pairs: dict[str, object] = {}
    for pair in filter(None, rest.split(",")):
        key, equals, value = pair.partition("=")
        # A preset's values are not in the text.
        pairs |= {key.strip(): value.strip()} if equals else dict.fromkeys(("low", "fraction", "coef"), UNKNOWN)
    return {"name": name, **pairs}


def of_control(parts: Mapping[str, dict]) -> dict[str, object]:
    """Fields of Settings that the control decides, by their values as written."""
    clip_cov, kl_cov, bonus, higher = (parts.get(n) for n in ("clip-cov", "kl-cov", "entropy-bonus", "clip-higher"))
    loss = CLIP_COV if clip_cov is not None else KL_COV if kl_cov is not None else "none"
    fields: dict[str, object] = {"loss": loss}
    if clip_cov is not None and clip_cov.get("bounds") != "quantile":
        fields["clip_cov_low"] = clip_cov.get("low", 1.0)
    if kl_cov is not None:
        fields |= {"kl_cov_fraction": kl_cov.get("fraction", 2e-3), "kl_cov_coef": kl_cov.get("coef", 1.0)}
    if bonus is not None:
        fields["entropy_coef"] = bonus.get("coef", 0.01)
    if higher is not None:
        fields["clip_high"] = higher.get("clip_eps_high", 0.28)
    return fields
