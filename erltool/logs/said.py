"""A followed run in words, as `erltool watch` and RunMonitor say them."""

import math

from erltool.logs.live import Snapshot
from erltool.text import clock, shown, visible

NAMES = {"entropy": "entropy", "reward": "reward", "performance": "performance", "response_length": "length",
         "grad_norm": "grad norm"}  # fmt: skip


def roles_of(snapshot: Snapshot) -> list[str]:
    """The roles to show, in order; the performance only where it is not the reward itself."""
    apart = snapshot.columns.get("performance") != snapshot.columns.get("reward")
    return [role for role in NAMES if role in snapshot.series and (role != "performance" or apart)]


def last_text(snapshot: Snapshot, role: str) -> str:
    """A role's last value with its unit, where that is short."""
    unit = " nats" if role == "entropy" else " %" if role == "performance" and "points" in snapshot.unit else ""
    return f"{snapshot.last(role):.4g}{unit}"


def steps_text(snapshot: Snapshot) -> str:
    """How far the run is, how fast it goes, and how long it will take."""
    of = f" of {snapshot.total}" if snapshot.total else ""
    text = f"step {snapshot.step}{of}"
    if math.isfinite(snapshot.rate):
        text += f", {60 * snapshot.rate:.3g} a minute"
    if math.isfinite(snapshot.seconds_left) and not snapshot.done:
        text += f", {clock(snapshot.seconds_left)} left"
    return text + (", done" if snapshot.done else "")


def one_line(snapshot: Snapshot) -> str:
    """The last step with its numbers."""
    of = f" of {snapshot.total}" if snapshot.total else ""
    parts = [f"{NAMES[role]} {snapshot.last(role):.4g}" for role in roles_of(snapshot)
             if role in ("entropy", "reward", "performance")]  # fmt: skip
    if snapshot.forecast is not None:
        low, high = snapshot.forecast.at(0.0)
        parts.append(f"ceiling {snapshot.forecast.law.ceiling:.3g} ({low:.3g} to {high:.3g})")
    if math.isfinite(snapshot.seconds_left):
        parts.append(f"{clock(snapshot.seconds_left)} left")
    return f"step {snapshot.step}{of}: {', '.join(parts)}"


def law_texts(snapshot: Snapshot) -> dict[str, str]:
    """The law of the points so far, and what it forecasts; why there is none."""
    f = snapshot.forecast
    if f is None:
        return {"law": visible(f"none yet: {snapshot.no_law}" if snapshot.no_law else "none yet")}
    law = f.law
    (low,), (high,) = f.interval
    sign = "+" if law.b >= 0 else "-"
    fit = f"R = {-law.a:.3g} exp(H) {sign} {abs(law.b):.3g}, R2 {law.r_squared:.2f}, {len(law.entropy)} points"
    ceiling_low, ceiling_high = f.at(0.0)
    ahead = (
        f"ceiling {law.ceiling:.3g} ({ceiling_low:.3g} to {ceiling_high:.3g} at {f.level:.0%}); last "
        f"{f.performance[-1]:.3g}, by the law {f.predicted[-1]:.3g} ({low:.3g} to {high:.3g})"
    )
    return {"law": fit, "forecast": ahead}


def columns_text(snapshot: Snapshot) -> str:
    """Which columns are followed."""
    taken = [f"{role} {shown(name, 30)}" for role, name in snapshot.columns.items() if role in (*NAMES, "step")][:4]
    return ", ".join(taken)
