"""The role of a log's column by its name: step, entropy, performance, and further metrics.

The names come from the sources of verl, TRL, OpenRLHF, prime-rl, ms-swift, LLaMA-Factory, slime, AReaL, ROLL, NeMo-RL,
open-instruct, tinker-cookbook and unsloth. A name of something else (a coefficient, a cross-entropy, a spread, a term
of a reward) never has the role, or only where nothing better is there.
"""

import re
from collections.abc import Collection, Iterable


def split_run(name: str, kind: str = "") -> tuple[str, str]:
    """The run and the metric in a column's name: "run - metric" in W&B's exports, run-metric_step in SwanLab's; else no
    run. SwanLab's names are split at the dash behind which the best known metric stands."""
    if kind != "SwanLab CSV":
        run, _, metric = name.rpartition(" - ")
        return run, metric
    metric = name[:400].removesuffix("_step")
    pieces = metric.split("-")
    splits = [("-".join(pieces[:i]), "-".join(pieces[i:])) for i in range(len(pieces))]
    ranked = [(r, i) for i, (_, m) in enumerate(splits) for role in MAIN if (r := rank(role, m)) is not None]
    return splits[min(ranked)[1]] if ranked else ("", metric)


def plain(metric: str) -> str:
    """A metric's name for the rules below: lower case, no unit, / in paths, _ between words, @ before k."""
    name = re.sub(r"\s*(\([^()]*\)|\[[^\[\]]*\]|%)\s*$", "", metric.strip()[:400])
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    name = re.sub(r"\s*/\s*", "/", name)
    return re.sub(r"_at_(?=\d)", "@", re.sub(r"\s+", "_", name))


def words(name: str) -> list[str]:
    return re.findall(r"[a-z]+\d*|\d+", name)


MAIN = ("step", "entropy", "performance")
ROLES = {
    "step": (
        r"^((train|training|trainer|policy|actor)/)?(global_steps?|(gradient|optimi[sz]er|optim)_steps?)$",
        r"^global_step/max_steps$", r"^current_steps?$", r"^(training|train|trainer|update|policy|learner)_steps?$",
        r"^(train|training|trainer)/steps?$", r"^steps?$",
        r"^((train|training)/)?(iterations?|iters?|updates?|n_updates)$",
        r"^time/iterations$", r"^rollout/steps?$", r"^_step$",
    ),
    "reward": (
        r"^(train/)?reward$", r"^critic/rewards/mean$", r"^(train/)?rewards?/(all/)?mean$", r"^critic/score/mean$",
        r"^reward/avg_raw_reward$", r"^rollout/raw_reward$", r"^train/agg/(all|effective)/[^/]+/reward/mean$",
    ),
    "response_entropy": (r"^response_entropy$",),
    "response_length": (
        r"^(train/)?response_length(/mean)?$", r"^(train/)?completions/mean_length$", r"^generate/avg_num_tokens$",
        r"^train/agg/(all|effective)/[^/]+/num_output_tokens/mean$",
    ),
    "truncated_fraction": (
        r"^(train/)?completions/clipped_ratio$", r"^response_length/clip_ratio$", r"^truncated_fraction$",
    ),
    "zero_spread_fraction": (r"^(train/)?frac_reward_zero_std$", r"^zero_spread_fraction$"),
    "clip_fraction": (r"^actor/pg_clipfrac$", r"^(train/)?clip_ratio/region_mean$", r"^clip_fraction$"),
    "kl_k1": (r"^actor/ppo_kl$", r"^kl_k1$"),
    "grad_norm": (r"^(actor/|train/|policy/|optim/)?(raw_)?grad_norm$",),
}  # fmt: skip
"""Regular expressions on a column's plain name, the best first. Entropy and performance have rules below."""
ALL_ROLES = (*MAIN, *(role for role in ROLES if role not in MAIN))
RUN_NAME = re.compile(r"(run|experiment|exp|trial)([_ ]?(name|id))?|display[_ ]?name|seed", re.I)


def rank(role: str, metric: str) -> int | None:
    """How well a metric's name fits a role, 0 the best; None where it does not."""
    name = plain(metric)
    if role == "entropy":
        return None if BITS & set(words(metric.lower())) else _entropy_rank(name)
    if role == "performance":
        return _performance_rank(name)
    return next((i for i, pattern in enumerate(ROLES[role]) if re.search(pattern, name)), None)


def candidates(names: Iterable[str], kind: str, run: str) -> dict[str, list[str]]:
    """Columns by role, the likeliest first; of a chart of several runs those of `run`."""
    split = {name: split_run(name, kind) for name in names}
    metrics = {name: metric for name, (of, metric) in split.items() if of in ("", run)}
    columns = {}
    for role in ALL_ROLES:
        ranks = {name: place for name, metric in metrics.items() if (place := rank(role, metric)) is not None}
        columns[role] = sorted(ranks, key=ranks.__getitem__)
    return columns


def has_role(name: str) -> bool:
    """Whether a column's name fits a role, names runs, or counts OpenRLHF's evaluations."""
    if RUN_NAME.fullmatch(name) or name == "eval/global_step":
        return True
    metrics = {split_run(name, kind)[1] for kind in ("", "SwanLab CSV")}
    return any(rank(role, metric) is not None for role in ALL_ROLES for metric in metrics)


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
    # entropies of something other than the policy's tokens
    "cross reward rewards advantage answer semantic router routing gate gating expert experts moe attention attn ref "
    "reference teacher value critic_value prompt data dataset group cluster kl accuracy acc correct incorrect wrong "
    "right "
    # numbers that change an entropy or describe it
    "coef coeff coeffs coefficient beta alpha lambda lam weight weights bonus target threshold scale decay schedule lr "
    "penalty cost term reg regularizer regularization tau eps temperature multiplier clip mask initial init std stddev "
    "var variance min max median change delta diff difference grad gradient norm frac fraction ratio percent pct top "
    "high low quantile count num corr correlation covariance cov predicted time rate "
    "floor ceiling limit cap goal desired relative ce gap drop slope speed percentile error collapse log exp "
    "normalized normalised sum total".split()
)
BITS = {"bits", "bit", "log2", "base2"}
NOT_ABOVE_PATH = OTHER_ENTROPIES - {"data", "group", "value"}  # a chart's folder may have these names
# The third has a role of its own; the last is TRL's PPO's sum over a response, which logs the mean beside it.
KNOWN_ENTROPIES = {"policy_entropy": 0, "actor/entropy": 1, "response_entropy": 8, "objective/entropy": 9}


def _entropy_rank(name: str) -> int | None:
    path = name.split("/")
    at = next((i for i, folder in enumerate(path) if "entropy" in words(folder)), None)
    if at is None:
        return None
    own, above = words("/".join(path[at:])), words("/".join(path[:at]))
    if OTHER_ENTROPIES & set(own) or NOT_ABOVE_PATH & set(above):
        return None
    if name in KNOWN_ENTROPIES:
        return KNOWN_ENTROPIES[name]
    if HELD_OUT.search(name):
        return 7
    if own in (["entropy"], ["entropy", "mean"], ["entropy", "avg"]):
        return 2
    if OF_TOKENS.issuperset(own):
        return 3
    if "loss" in own:
        return 4 if OF_TOKENS.issuperset(set(own) - {"loss"}) else 6
    return 5


def is_loss(entropy: str) -> bool:
    """Whether a column is called a loss, as which some tools log minus the entropy or a multiple of it."""
    return "loss" in words(plain(entropy))


def is_sum_of_rewards(performance: str, columns: Iterable[str]) -> bool:
    """Whether a column is TRL's sum of the rewards of several functions, whose largest value is not known."""
    match = re.fullmatch(r"((?:train|eval)/|eval_)?reward", performance)
    part = re.compile(re.escape(match[1] or "") + r"rewards/[^/]+/mean") if match else None
    return part is not None and sum(bool(part.fullmatch(name)) for name in columns) > 1


def is_certain(entropy: str) -> bool:
    """Whether every word of a column's name fits an entropy of tokens."""
    return (_entropy_rank(plain(entropy)) or 0) < 5


NO_PERFORMANCE = re.compile(
    r"(std|stderr|var|min|max|median|worst|lengths?|len|times?|timing|clip(ped)?|frac|num|entropy|loss|kl|logps?|"
    r"margins?|chosen|rejected|coeff?|weight|threshold|tokens?|count|penalty|baseline|advantages?|returns?|lr|ratio|"
    r"steps?|epoch|percentage|top1|proj|values?|"
    # the better the lower, or of two numbers
    r"err|errors?|wrong|incorrect|invalid|unsolved|fail|failed|failures?|gap|delta|diff|difference|change|target|goal)"
    r"(@\d+)?"
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
TERM = re.compile(
    rf"(?:^|/)rewards?/(?!{TOTAL}$)(?!(?:{TOTAL}_)*(?:rewards?|scores?)(?:/|$))[^/]+(/{TOTAL})?$"
    rf"|(?:^|[/_])(?!{TOTAL}_)[a-z0-9]+_rewards?(_func)?(/mean|_mean)?$"
    rf"|^rewards?_(?!{TOTAL}$)[a-z0-9_]+$"
)
FORM = re.compile(r"format|length|tag|repetition|language|xml|style|penalty|overlong|strict|soft")
# Of an answer's form, a reward model, several responses, the best so far, or smoothed.
OTHER_ACCURACIES = {"format", "formatting", "xml", "tag", "rm", "best", "maj", "majority", "oracle", "topk", "ema",
                    "smoothed"}  # fmt: skip
BENCHMARK = re.compile(
    r"(aime|amc|math|gsm|minerva|olympiad|gpqa|mmlu|livecode|lcb|humaneval|mbpp|countdown|arc|bbh|hmmt)[^/]*"
)


def _performance_rank(name: str) -> int | None:
    """Held-out accuracy before held-out reward, accuracy, reward, best of several responses, terms of a reward."""
    if name == "eval_accuracy":
        return 0
    verl = VERL_VALIDATION.match(name)  # without the data source, whose name says nothing
    core, inner = (verl[1], verl[2]) if verl else ("", HELD_OUT.sub("", name).strip("/_"))
    if any(NO_PERFORMANCE.fullmatch(word) for word in re.findall(r"[a-z]+\d*(?:@\d+)?", inner)):
        return None
    held_out = bool(verl or HELD_OUT.search(name))
    several = SEVERAL.search(inner)
    mean = MEAN_OF.search(inner) or (several and several[1] == "1")
    if several and not mean:
        return 9
    if not verl and TERM.search(inner):
        return 12 if FORM.search(inner) else 10 if ACCURACY.search(inner) else 11
    if not verl and OTHER_ACCURACIES & set(words(inner)):
        return 12
    if core == "core":
        return 1 if re.match(r"acc/", inner) else 2
    if held_out and (ACCURACY.search(inner) or (mean and not re.match(r"(reward|score)", inner))):
        return 3
    if held_out and (mean or REWARD.fullmatch(inner) or re.match("score/", inner)):  # verl has score/DATA_SOURCE
        return 4
    if held_out and BENCHMARK.fullmatch(inner):
        return 5
    if ACCURACY.search(inner) or mean:
        return 6
    if not REWARD.fullmatch(inner):
        return None
    return 8 if "score" in inner and inner != "critic/score/mean" else 7


UNKNOWN_AVERAGE = "not known: {} does not say over what it averages"
TOKEN_MEAN = "token mean, {}; not Eq 5's mean over responses"
AVERAGES = {
    "verl": TOKEN_MEAN.format("under verl's default loss_agg_mode"),
    "OpenRLHF": TOKEN_MEAN.format("under OpenRLHF's token-level loss"),
    "TRL": TOKEN_MEAN.format("as TRL logs it"),
    "prime-rl": TOKEN_MEAN.format("as prime-rl logs it"),
    "ms-swift": "mean over each response, then over responses (Eq 5), as ms-swift logs it",
    "SkyRL": "mean over each micro-batch's tokens, then over micro-batches, as SkyRL logs it",
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
    ("SkyRL", r"reward/avg_raw_reward$|policy/policy_lr$|generate/avg_num_tokens$"),
    ("prime-rl", r"entropy/(all/)?std$|mismatch_kl/"),
    ("NeMo-RL", r"train/approx_entropy$"),
    ("tinker", r"optim/entropy$"),
)  # fmt: skip
ENTROPY_COLUMNS = {
    "verl": r"actor/entropy(_loss)?|entropy_loss", "OpenRLHF": r"(train/)?entropy_loss", "TRL": r"(train/)?entropy",
    "prime-rl": r"entropy/(all/)?mean", "ms-swift": r"(train/)?entropy/mean", "slime": r"train/entropy_loss",
    "SkyRL": r"policy/policy_entropy",
    "NeMo-RL": r"train/approx_entropy", "tinker": r"optim/entropy",
}  # fmt: skip
KIND_OF = {"verl console": "verl", "verl JSONL": "verl", "OpenRLHF console": "OpenRLHF", "SkyRL console": "SkyRL"}
TRAINER = ("TRL trainer_state", "TRL console")
OWN = {
    "policy_entropy": "exact, mean over response tokens; not Eq 5's mean over responses",
    "response_entropy": "exact, mean over each response, then over responses (Eq 5)",
}


def tool_of(kind: str, metrics: Collection[str]) -> str:
    """The tool that logged these metrics, by the kind of log or by names that it alone uses; "" where unknown."""
    if kind in KIND_OF:
        return KIND_OF[kind]
    names = [plain(metric) for metric in metrics]
    return next((tool for tool, mark in MARKS if any(re.match(mark, name) for name in names)), "")


def entropy_average(kind: str, tool: str, entropy: str) -> str:
    """The average that an entropy is, as far as the kind of log, its tool and the column show."""
    name = plain(entropy)
    if kind == "erltool run":
        return OWN.get(name, UNKNOWN_AVERAGE.format("the run"))
    known = tool in ENTROPY_COLUMNS and bool(re.fullmatch(ENTROPY_COLUMNS[tool], name))
    if not tool and kind in TRAINER and name == "entropy":
        tool, known = "TRL", True
    return AVERAGES[tool] if known else UNKNOWN_AVERAGE.format(f"the log ({kind})")
