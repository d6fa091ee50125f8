"""The settings of any framework in one form, and what is found in them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from erltool.text import visible

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)
CLIP_COV, KL_COV = "clip_cov", "kl_cov"


@dataclass(frozen=True)
class Settings:
    """What the rules ask for. None stands for what is not known; a rule that needs it is silent."""

    framework: str
    """"verl", "TRL", "SkyRL", "prime-rl" or "erltool"."""
    release: str = ""
    """The release whose defaults hold where a key is not set."""
    loss: str | None = None
    """CLIP_COV, KL_COV, or the framework's name of another loss."""
    whole_update: bool = False
    """Whether the loss is this package's, registered in the framework, which chooses tokens over the whole update."""
    registered: bool | None = None
    """Whether the framework imports the module that registers that loss."""
    clip_cov_fraction: float | None = None
    """Share of the tokens that Clip-Cov drops, a fraction."""
    clip_cov_low: float | None = None
    kl_cov_fraction: float | None = None
    """Share of the tokens that KL-Cov penalises, a fraction."""
    kl_cov_percent: float | None = None
    """The same where the framework takes percent."""
    kl_cov_coef: float | None = None
    estimator: str | None = None
    """Of advantages, in the framework's name."""
    grouped: bool | None = None
    """Whether the baseline of the advantages is that of the group."""
    per_token: bool = False
    """Whether the advantages differ from token to token of a response."""
    scaled: bool | None = None
    """Whether the advantages are divided by their standard deviation."""
    group_size: float | None = None
    updates_per_rollout: float | None = None
    """Optimiser updates on the responses of one sampling round."""
    micro_batch: float | None = None
    """Responses in one backward pass on a device."""
    update_share: float | None = None
    """Responses of an update on a device."""
    dynamic_batch: bool | None = None
    """Whether micro-batches are filled by tokens."""
    clip_low: float | None = None
    clip_high: float | None = None
    entropy_coef: float | None = None
    """Above 0 it rewards entropy."""
    entropy_on: bool | None = None
    """False where the coefficient counts only with a switch, and that is off."""
    entropy_measured: bool | None = None
    learning_rate: float | None = None
    lora_rank: float | None = None
    lora_dropout: float | None = None
    temperature: float | None = None
    loss_temperature: float | None = None
    """Of the log-probs in the loss, where it is set by itself."""
    top_p: float | None = None
    top_k: float | None = None
    min_p: float | None = None
    sampler_ratio: bool | None = None
    """Whether a ratio has the inference engine's log-probs in its denominator."""
    sampler_old: bool | None = None
    """Whether the policy loss itself takes these for log pi_old, on the first update too."""
    dtype: str | None = None
    """In which log-probs are computed: "fp32", "bf16" or "fp16"."""
    unknown: frozenset[str] = frozenset()
    """Fields whose values are not known, or no numbers where numbers belong."""
    chosen: frozenset[str] = frozenset()
    """Fields above whose keys the user has set."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """The framework's key of each field."""
    values: Mapping[str, object] = field(default_factory=dict)
    """What the framework's key holds, where that is not the number above."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    rule: str
    severity: str
    """ERROR: the run does not do what is asked. WARNING: it likely does not. NOTE: worth knowing."""
    setting: str
    """key=value"""
    why: str
    remedy: str
    source: str
    """Where it can be read up: a file of a release, or a paper."""

    def line(self) -> str:
        """The finding in one line of text."""
        return visible(f"{self.severity:7} {self.setting}: {self.why}; {self.remedy} [{self.source}]")
