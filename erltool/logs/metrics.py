"""Which column of a log is what, by the names that the tools give: step, entropy, performance, and what lies beside.

The names were read in the sources of verl, TRL, OpenRLHF, prime-rl, ms-swift, LLaMA-Factory, slime, AReaL, ROLL,
NeMo-RL, open-instruct, tinker-cookbook and unsloth. A name that says of itself that it is something else (a
coefficient, a cross-entropy, a spread, a part of a reward) never plays the role, or only where nothing better is there.
"""

import re
from collections.abc import Collection, Iterable

# --- names ---------------------------------------------------------------------------------------


def split_run(name: str, kind: str = "") -> tuple[str, str]:
    """The run and the metric of a column of a chart's export, "run - metric" by W&B; no run elsewhere.

    SwanLab writes run-metric_step for the metric's value. Both parts may hold a dash: the split is where a metric is
    known best.
    """
    if kind != "SwanLab CSV":
        run, _, metric = name.rpartition(" - ")
        return run, metric
    metric = name[:400].removesuffix("_step")
    parts = metric.split("-")
    splits = [("-".join(parts[:i]), "-".join(parts[i:])) for i in range(len(parts))]
    ranked = [(r, i) for i, (_, m) in enumerate(splits) for role in MAIN if (r := rank(role, m)) is not None]
    return splits[min(ranked)[1]] if ranked else ("", metric)


def plain(metric: str) -> str:
    """A metric's name as the rules below know it: lower case, no unit, / between parts, _ between words, @ before k."""
    name = re.sub(r"\s*(\([^()]*\)|\[[^\[\]]*\]|%)\s*$", "", metric.strip()[:400])
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    name = re.sub(r"\s*/\s*", "/", name)
    return re.sub(r"_at_(?=\d)", "@", re.sub(r"\s+", "_", name))


def words(name: str) -> list[str]:
    return re.findall(r"[a-z]+\d*|\d+", name)


# --- roles ---------------------------------------------------------------------------------------

MAIN = ("step", "entropy", "performance")
ROLES = {
    "step": (
        r"^((train|training|trainer|policy|actor)/)?(global_steps?|(gradient|optimi[sz]er|optim)_steps?)$",
        r"^global_step/max_steps$", r"^current_steps?$", r"^(training|train|trainer|update|policy|learner)_steps?$",
        r"^(train|training|trainer)/steps?$", r"^steps?$",
        r"^((train|training)/)?(iterations?|iters?|updates?|n_updates)$",
        r"^time/iterations$", r"^rollout/steps?$", r"^_step$",
    ),
    "reward": (r"^(train/)?reward$", r"^critic/rewards/mean$", r"^(train/)?rewards?/mean$", r"^critic/score/mean$"),
    "response_entropy": (r"^response_entropy$",),
    "response_length": (r"^(train/)?response_length(/mean)?$", r"^(train/)?completions/mean_length$"),
    "truncated_fraction": (
        r"^(train/)?completions/clipped_ratio$", r"^response_length/clip_ratio$", r"^truncated_fraction$",
    ),
    "zero_spread_fraction": (r"^(train/)?frac_reward_zero_std$", r"^zero_spread_fraction$"),
    "clip_fraction": (r"^actor/pg_clipfrac$", r"^(train/)?clip_ratio/region_mean$", r"^clip_fraction$"),
    "kl_k1": (r"^actor/ppo_kl$", r"^kl_k1$"),
    "grad_norm": (r"^(actor/|train/)?grad_norm$",),
}  # fmt: skip
"""What a role's column is called, the best name first: regular expressions on the plain name. Entropy and performance
have rules of their own, below."""
ALL_ROLES = (*MAIN, *(role for role in ROLES if role not in MAIN))
RUN_NAME = re.compile(r"(run|experiment|exp|trial)([_ ]?(name|id))?|display[_ ]?name|seed", re.I)


def rank(role: str, metric: str) -> int | None:
    """The place of a metric's name among those that fit a role, 0 the best; None where it does not fit."""
    name = plain(metric)
    if role == "entropy":
        return None if "bits" in words(metric.lower()) else _entropy_rank(name)
    if role == "performance":
        return _performance_rank(name)
    return next((i for i, pattern in enumerate(ROLES[role]) if re.search(pattern, name)), None)


def candidates(names: Iterable[str], kind: str, run: str) -> dict[str, list[str]]:
    """Columns by role, the likeliest first; of a chart of several runs those of `run`."""
    metrics = [(name, metric) for name in names for of, metric in [split_run(name, kind)] if of in ("", run)]
    found = {}
    for role in ALL_ROLES:
        ranked = [(rank(role, metric), i, name) for i, (name, metric) in enumerate(metrics)]
        found[role] = [name for _, _, name in sorted(one for one in ranked if one[0] is not None)]
    return found


def has_role(name: str) -> bool:
    """Whether a column can play a role, names a run, or counts OpenRLHF's evaluations, by its name alone."""
    if RUN_NAME.fullmatch(name) or name == "eval/global_step":
        return True
    metrics = {split_run(name, kind)[1] for kind in ("", "SwanLab CSV")}
    return any(rank(role, metric) is not None for role in ALL_ROLES for metric in metrics)


# --- entropy -------------------------------------------------------------------------------------

HELD_OUT = re.compile(
    r"(^|/)(eval|evaluation|val|valid|validation|test|held_?out)(-core|-aux|-rollout)?(?=[/_])"
    r"|[/_](eval|val|valid|validation|test|held_?out)$"
)
OF_TOKENS = frozenset(
    "entropy actor policy pi train training token tokens response completion completions generation gen output model "
    "logits logit rollout approx per mean avg average all exact full nats nat sampling student ppo grpo update "
    "old step".split()
)
OTHER_ENTROPIES = frozenset(
    # not an entropy of the policy's tokens
    "cross reward rewards advantage answer semantic router routing gate gating expert experts moe attention attn ref "
    "reference teacher value critic_value prompt data dataset group cluster kl accuracy acc correct incorrect wrong "
    "right "
    # what acts on an entropy, or a number about it
    "coef coeff coeffs coefficient beta alpha lambda lam weight weights bonus target threshold scale decay schedule lr "
    "penalty cost term reg regularizer regularization tau eps temperature multiplier clip mask initial init std stddev "
    "var variance min max median change delta diff difference grad gradient norm frac fraction ratio percent pct top "
    "high low quantile count num corr correlation covariance cov predicted time rate "
    "floor ceiling limit cap goal desired relative ce gap drop slope speed percentile error collapse log exp "
    "normalized normalised sum total".split()
)
NOT_ABOVE_PATH = OTHER_ENTROPIES - {"data", "group", "value"}  # these may name the folder of a chart


def _entropy_rank(name: str) -> int | None:
    path = name.split("/")
    at = next((i for i, part in enumerate(path) if "entropy" in words(part)), None)
    if at is None:
        return None
    said = [word for part in path[at:] for word in words(part)]
    above = [word for part in path[:at] for word in words(part)]
    if OTHER_ENTROPIES & set(said) or NOT_ABOVE_PATH & set(above):
        return None
    held_out = HELD_OUT.search(name)
    if name in ("policy_entropy", "actor/entropy"):
        return ("policy_entropy", "actor/entropy").index(name)
    if name == "response_entropy":  # has a role of its own
        return 8
    if held_out:
        return 7
    if said in (["entropy"], ["entropy", "mean"], ["entropy", "avg"]):
        return 2
    if OF_TOKENS.issuperset(said):
        return 3
    if "loss" in said:
        return 4 if OF_TOKENS.issuperset(set(said) - {"loss"}) else 6
    return 5


def is_loss(entropy: str) -> bool:
    """Whether a column of entropy is called a loss: some tools log minus the entropy under that name, or a multiple."""
    return "loss" in words(plain(entropy))


def is_certain(entropy: str) -> bool:
    """Whether every word of a column's name is one of an entropy of tokens."""
    return (_entropy_rank(plain(entropy)) or 0) < 5


# --- performance ---------------------------------------------------------------------------------

NO_PERFORMANCE = re.compile(
    r"(std|stderr|var|min|max|median|worst|lengths?|len|times?|timing|clip(ped)?|frac|num|entropy|loss|kl|logps?|"
    r"margins?|chosen|rejected|coeff?|weight|threshold|tokens?|count|penalty|baseline|advantages?|returns?|lr|ratio|"
    r"steps?|epoch|percentage|top1|proj|values?)(@\d+)?"
)
VERL_VALIDATION = re.compile(r"val-(core|aux)/.*?/?([^/]+/(?:[a-z]+@\d+)(?:/[a-z]+)?)$")
SEVERAL = re.compile(r"(?:pass|best|maj|majority|cons|bon|best_of)[@^_]?k?(\d+)")
MEAN_OF = re.compile(r"(?:mean|avg)@\d+")
ACCURACY = re.compile(
    r"(?<![a-z])(acc|accuracy|accuracies|correct|correctness|solved?(?!_(all|none|some))|solve_rate|success|"
    r"success_rate|pass_rate|exact_match|win_rate|resolve_rate)(?![a-z])"
)
TOTAL = r"(?:mean|avg|average|total|sum|raw|all|overall|task|train|episode|verifiable)"
REWARD = re.compile(rf"(?:.*/)?(?:{TOTAL}_)*(?:rewards?|scores?|reward_score)(?:[/_-]{TOTAL})*")
PART = re.compile(
    rf"(?:^|/)rewards?/(?!{TOTAL}$)(?!(?:{TOTAL}_)*(?:rewards?|scores?)(?:/|$))[^/]+(/{TOTAL})?$"
    rf"|(?:^|[/_])(?!{TOTAL}_)[a-z0-9]+_rewards?(_func)?(/mean|_mean)?$"
    rf"|^rewards?_(?!{TOTAL}$)[a-z0-9_]+$"
)
FORM = re.compile(r"format|length|tag|repetition|language|xml|style|penalty|overlong|strict|soft")
# Of an answer's form, of a reward model, of several responses, so far.
OTHER_ACCURACIES = {"format", "formatting", "xml", "tag", "rm", "best", "maj", "majority", "oracle", "topk"}
BENCHMARK = re.compile(
    r"(aime|amc|math|gsm|minerva|olympiad|gpqa|mmlu|livecode|lcb|humaneval|mbpp|countdown|arc|bbh|hmmt)[^/]*"
)


def _performance_rank(name: str) -> int | None:
    """Held-out accuracy before held-out reward, accuracy, reward, best of several responses, parts of a reward."""
    if name == "eval_accuracy":
        return 0
    found = VERL_VALIDATION.match(name)  # the name of its data source says nothing
    core, inner = (found[1], found[2]) if found else ("", HELD_OUT.sub("", name).strip("/_"))
    if any(NO_PERFORMANCE.fullmatch(word) for word in re.findall(r"[a-z]+\d*(?:@\d+)?", inner)):
        return None
    held_out = bool(found or HELD_OUT.search(name))
    several = SEVERAL.search(inner)
    mean = MEAN_OF.search(inner) or (several and several[1] == "1")
    if several and not mean:
        return 9
    if not found and PART.search(inner):
        return 12 if FORM.search(inner) else 10 if ACCURACY.search(inner) else 11
    if not found and OTHER_ACCURACIES & set(words(inner)):
        return 12
    if core == "core":
        return 1 if re.match(r"acc/", inner) else 2
    if held_out and (ACCURACY.search(inner) or (mean and not re.match(r"(reward|score)", inner))):
        return 3
    if held_out and (mean or REWARD.fullmatch(inner) or re.match("score/", inner)):  # score/ and a data source: verl
        return 4
    if held_out and BENCHMARK.fullmatch(inner):
        return 5
    if ACCURACY.search(inner) or mean:
        return 6
    if not REWARD.fullmatch(inner):
        return None
    return 8 if "score" in inner and inner != "critic/score/mean" else 7


# --- which average an entropy is -----------------------------------------------------------------

UNKNOWN_AVERAGE = "not known: {} does not say over what it averages"
TOKEN_MEAN = "token mean, {}; not Eq 5's mean over responses"
AVERAGES = {
    "verl": TOKEN_MEAN.format("under verl's default loss_agg_mode"),
    "OpenRLHF": TOKEN_MEAN.format("under OpenRLHF's token-level loss"),
    "TRL": TOKEN_MEAN.format("as TRL logs it"),
    "prime-rl": TOKEN_MEAN.format("as prime-rl logs it"),
    "ms-swift": "mean over each response, then over responses (Eq 5), as ms-swift logs it",
    "slime": "mean over each response, then over responses (Eq 5), slime's default",
    "NeMo-RL": "an estimate from the sampled tokens (NeMo-RL's approx_entropy), no exact one",
    "tinker": "an estimate from the sampled tokens (tinker's optim/entropy), no exact one",
}
MARKS = (
    ("verl", r"val-(core|aux)/|actor/(pg_loss|ppo_kl|pg_clipfrac)$|critic/(rewards|score|advantages)/mean$"),
    ("ms-swift", r"global_step/max_steps$|entropy/threshold$"),
    ("TRL", r"((train/)?(frac_reward_zero_std|completions/(mean_length|clipped_ratio)|clip_ratio/region_mean)|"
            r"((train|eval)/)?(eval_)?rewards/[^/]+/(mean|std)|(train/)?reward_std)$"),
    ("OpenRLHF", r"(train/)?actor_lr$"),
    ("slime", r"rollout/raw_reward$|train/train_rollout_logprob_abs_diff$"),
    ("prime-rl", r"entropy/(all/)?std$|mismatch_kl/"),
    ("NeMo-RL", r"train/approx_entropy$"),
    ("tinker", r"optim/entropy$"),
)  # fmt: skip
KIND_OF = {"verl console": "verl", "verl JSONL": "verl", "OpenRLHF console": "OpenRLHF"}
TRAINER = ("TRL trainer_state", "TRL console")
OWN = {
    "policy_entropy": "exact, mean over response tokens; not Eq 5's mean over responses",
    "response_entropy": "exact, mean over each response, then over responses (Eq 5)",
}


def tool_of(kind: str, metrics: Collection[str]) -> str:
    """The tool that logged these metrics, by the kind of log and by names that it alone uses; "" where not known."""
    if kind in KIND_OF:
        return KIND_OF[kind]
    names = [plain(metric) for metric in metrics]
    return next((tool for tool, mark in MARKS if any(re.match(mark, name) for name in names)), "")


def entropy_average(kind: str, tool: str, entropy: str) -> str:
    """Over what an entropy is averaged, as far as the kind of log, its tool and the column tell."""
    name = plain(entropy)
    if kind == "erltool run":
        return OWN.get(name, UNKNOWN_AVERAGE.format("the run"))
    known = _is_the_tools(tool, name)
    if not tool and kind in TRAINER and name == "entropy":
        tool, known = "TRL", True
    return AVERAGES[tool] if known else UNKNOWN_AVERAGE.format(f"the log ({kind})")


def _is_the_tools(tool: str, name: str) -> bool:
    """Whether a column is the one that a tool logs its entropy in."""
    columns = {
        "verl": r"actor/entropy(_loss)?|entropy_loss", "OpenRLHF": r"(train/)?entropy_loss", "TRL": r"(train/)?entropy",
        "prime-rl": r"entropy/(all/)?mean", "ms-swift": r"(train/)?entropy/mean", "slime": r"train/entropy_loss",
        "NeMo-RL": r"train/approx_entropy", "tinker": r"optim/entropy",
    }  # fmt: skip
    return tool in columns and bool(re.fullmatch(columns[tool], name))
