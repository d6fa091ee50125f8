"""The memory plan of a configuration as RunForm shows it: its parts, its sentences, and what to lower on which GPU."""

import typing

from erltool.controls.catalog import control_to_dict
from erltool.runs.compare import control_text
from erltool.text import visible
from erltool.training.config import TrainConfig

if typing.TYPE_CHECKING:
    from erltool.training.memory import MemoryPlan  # loads transformers

GIB = 2**30
PROMPT_TOKENS = 256  # of the longest prompts, as in `erltool plan`
SHOWN = 0.005  # GiB: less is 0.00 for a reader


def plan_of(config: TrainConfig) -> dict:
    """The trait `plan`, for the device that the configuration asks for."""
    from erltool.policies.load import resolve_device
    from erltool.training.memory import CARDS, advice, free_memory, plan_memory

    device = resolve_device(config.device)
    plan, free = plan_memory(config, PROMPT_TOKENS, device.type), free_memory(device)
    known = f", {free / GIB:.1f} are free" if free < 1e18 else ""
    says = [f"about {plan.peak / GIB:.2f} GiB at the peak on {device.type}{known}."]
    if plan.peak > free:
        changes = advice(config, free, PROMPT_TOKENS, device.type)
        says.append(f"It would be refused here; use {', '.join(changes) if changes else 'a smaller policy'}.")
    cards = []
    for card in CARDS:
        changes = advice(config, card * 1e9, PROMPT_TOKENS, "cuda")
        size = f"{card} GB" + (" or more" if changes == [] else "")
        cards.append(f"{size}: {'too small' if changes is None else ', '.join(changes) or 'as it is'}")
        if changes == []:
            break
    says.append(f"On a GPU of {'; '.join(cards)}.")
    times = {"always": plan.stays, "sampling": plan.sampling, "update": plan.update}
    about = f"{config.policy} (base {config.base}) on {config.task}, {control_text(control_to_dict(config.control))}"
    return {
        "about": visible(about),
        "rows": [[when, name, size / GIB] for when, sizes in times.items() for name, size in sizes.items() if size],
        "bar": _bar(plan),
        "peak": plan.peak / GIB,
        "free": free / GIB if free < 1e18 else None,
        "says": says,
    }


def _bar(plan: "MemoryPlan") -> list[tuple[str, float]]:
    """The peak's parts as (name, GiB), largest first: what always stays, and of sampling and the update, which take
    turns, the larger. Parts below SHOWN or a fiftieth of the peak are one."""
    turn = max((plan.sampling, plan.update), key=lambda sizes: sum(sizes.values()))
    parts = {_short(name): size / GIB for name, size in plan.stays.items()}
    for name, size in turn.items():
        parts[_short(name)] = parts.get(_short(name), 0.0) + size / GIB
    least = max(SHOWN, plan.peak / GIB / 50)
    shown = sorted(((n, s) for n, s in parts.items() if s >= least), key=lambda part: -part[1])
    rest = sum(s for s in parts.values() if s < least)
    return shown + ([("the rest", rest)] if rest >= SHOWN else [])


def _short(name: str) -> str:
    return name.split(",")[-1].strip() if name.startswith("weights") else name.split(" of ")[0].split(",")[0]
