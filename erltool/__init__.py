"""Watch, token by token, why reinforcement learning makes a language model stop exploring; measure and control it.

Names are loaded on first use: `import erltool` itself needs neither torch nor transformers.
"""

import importlib

_HOMES = {
    "advantages": ("group_advantages",),
    "alarms": ("Alarm", "Watch", "alarm_report", "alarm_summary"),
    "config": ("TrainConfig",),
    "controls.base": ("Control", "NoControl"),
    "controls.catalog": ("parse_control", "parse_controller", "preset"),
    "controls.controllers": ("AdaptiveBonus", "Schedule", "TargetEntropy"),
    "controls.loss": ("control_loss", "policy_loss"),
    "controls.others": (
        "CEGPPO",
        "CISPO",
        "CovarianceKernel",
        "EntropyShapedAdvantage",
        "GSPO",
        "HighEntropyMask",
        "NegativeReinforcement",
        "QuantileAdvantage",
    ),
    "controls.paper": (
        "ClipCov",
        "ClipHigher",
        "EntropyBonus",
        "KLCov",
        "RandomClip",
        "RandomKL",
        "ReferenceKL",
    ),
    "covariance": ("token_covariance", "mean_covariance"),
    "compare": ("end_values", "paired_difference"),
    "errors": ("ErltoolError",),
    "fit": ("fit_law",),
    "forecasting": ("forecast", "replay"),
    "importers": ("read_log", "align_points"),
    "logprobs": ("token_log_probs",),
    "plots": ("plot_fit", "plot_run"),
    "loading": ("load_policy",),
    "rivals": ("compare_laws",),
    "rollouts": ("response_log_probs",),
    "runs": ("read_run", "read_runs", "METRICS"),
    "sampling": ("sample_groups",),
    "scaling": ("fit_scaling", "law_differences"),
    "tasks": ("load_task",),
    "tokens": ("Tokens",),
    "training": ("train",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)
__version__ = "0.1.0"


def __getattr__(name):
    if name not in _HOME_OF:
        raise AttributeError(f"module 'erltool' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"erltool.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return __all__
