"""`erltool inspect`."""

import argparse
import sys
import textwrap
from pathlib import Path

from erltool.cli import terminal
from erltool.cli.arguments import above_zero, at_least, place
from erltool.cli.flags import add_trust
from erltool.errors import ErltoolError
from erltool.text import visible

AROUND = 200  # characters of a response that are looked at on each side of a token
RESPONSES = 5  # shown in colour on a terminal


def run(parser, words) -> int:
    from erltool.logs.rollouts import ROLES

    parser.add_argument(
        "file", type=Path, metavar="FILE",
        help="TRL completions, verl rollout_data_dir, prime-rl token exports, JSONL, Parquet; or their folder",
    )  # fmt: skip
    parser.add_argument("--policy", metavar="MODEL", help="as in train; scores what the file lacks")
    parser.add_argument("--group-size", type=at_least(2), help="adjacent responses to one prompt; default: by prompt")
    for role in ("prompt", "response", "reward", "group", "token_ids", "log_probs"):
        flag = "--" + role.replace("_", "-")
        parser.add_argument(flag, metavar="COLUMN", help=f"the column; default: {', '.join(ROLES[role][:3])}, ...")
    parser.add_argument("--step", type=at_least(0), help="the trainer's step; default: a folder's last, a file's all")
    parser.add_argument("--control", default="none", help="the control whose choice is shown, as in train (none)")
    parser.add_argument("--advantages", default="grpo", help="estimator, if the file has no advantages (grpo)")
    parser.add_argument("--template", help="as in train, around each prompt; default: none, as the file has it")
    parser.add_argument("--temperature", type=above_zero, default=1.0, help="of the log-probs (1)")
    parser.add_argument("--top", type=at_least(0), default=10, help="tokens to print (10)")
    parser.add_argument("--by", choices=["covariance", "push", "entropy"], default="covariance",
                        help="what they are the highest of (covariance)")  # fmt: skip
    parser.add_argument("--out", type=place, metavar="FOLDER", help="write the tokens to it, as tokens.parquet")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto (auto)")
    add_trust(parser)
    args = parser.parsed(words)
    from erltool.controls.catalog import parse_control
    from erltool.logs.rollouts import read_rollouts

    control = parse_control(args.control)
    named = {role: getattr(args, role) for role in ROLES if getattr(args, role, None) and role != "step"}
    file = read_rollouts(args.file, named, step=args.step, group_size=args.group_size)
    from erltool.policies.inspection import inspect_rollouts, summary

    policy = _policy(args) if args.policy else None
    with terminal.progress(len(file.table), "score", "response") as bar:
        found = inspect_rollouts(
            file, policy, control=control, advantages=args.advantages, temperature=args.temperature,
            progress=bar.update,
        )  # fmt: skip
    if args.by not in found.tokens:
        raise ErltoolError(f"inspect: no {args.by} is known; give --policy to score it")
    print(f"{visible(args.file.name)}: {file.kind}")
    print(summary(found))
    for note in found.notes:
        print(textwrap.fill(visible(note), terminal.WIDTH - 1, initial_indent="- ", subsequent_indent="  "))
    if args.top:
        print("\n" + tokens_text(found, args.top, args.by))
        if sys.stdout.isatty():
            _show_coloured(found, args.top, args.by)
    if args.out:
        from erltool.files import writing

        with writing(args.out):
            args.out.mkdir(parents=True, exist_ok=True)
            found.tokens.to_parquet(args.out / "tokens.parquet", index=False)
    return 0


def _policy(args: argparse.Namespace):
    from erltool.policies.load import load_policy

    loaded = load_policy(args.policy, lora_rank=0, device=args.device, trust_remote_code=args.trust_remote_code)
    return loaded.with_template(args.template or "none")


def tokens_text(found, count: int, by: str, width: int = terminal.WIDTH) -> str:
    """The tokens that are the highest of `by`, a line each with their text around them, in `width` columns."""
    columns = [by, *(c for c in ("advantage", "log_prob", "entropy") if c in found.tokens and c != by)]
    header = " ".join(f"{c[:10]:>10}" for c in columns) + "  text"
    lines = [header]
    keys = ["step", "prompt_index", "response_index"]
    responses = found.tokens.groupby(keys, sort=False)
    for _, token in found.top(count, by).iterrows():
        response = responses.get_group(tuple(token[k] for k in keys))
        at = int((response["position"] < token["position"]).sum())
        texts = [visible(t) for t in response["text"]]
        numbers = " ".join(f"{token[c]:>10.3f}" for c in columns) + (" *" if token["selected"] else "  ")
        before = (visible(token["prompt"]) + "".join(texts[:at]))[-AROUND:]
        lines.append(numbers + _around(before, texts[at], "".join(texts[at + 1 :]), width - 1 - len(numbers)))
    if found.tokens["selected"].any():
        lines.append(f"* {found.control.name} would act on it")
    return "\n".join(lines)


def _show_coloured(found, count: int, by: str) -> None:
    from rich.console import Console

    console = Console(file=sys.__stdout__, highlight=False)
    console.print(f"\ntheir responses, by {by}: orange above 0, blue below", markup=False)
    for text in coloured(found, count, by):
        console.print(text)


def coloured(found, count: int, by: str) -> list:
    """The responses that hold the `count` tokens highest of `by`, at most RESPONSES, as rich Texts: each token on a
    ground that is orange where `by` is above 0 and blue below, the deeper the further."""
    from rich.text import Text

    keys = ["step", "prompt_index", "response_index"]
    most = float(found.tokens[by].abs().max()) or 1.0
    texts, chosen = [], found.top(count, by)[keys].drop_duplicates()
    responses = found.tokens.groupby(keys, sort=False)
    for key in chosen.head(RESPONSES).itertuples(index=False):
        response = responses.get_group(tuple(key))
        text = Text(visible(response["prompt"].iloc[0])[-AROUND:], style="dim")
        for token, value in zip(response["text"][:AROUND], response[by][:AROUND], strict=True):
            text.append(visible(token), style=_ground(float(value) / most))  # a Text takes no markup
        texts.append(text)
    return texts


def _ground(share: float) -> str:
    """Black on a ground from white at 0 to orange at 1 and blue at -1."""
    share = share if share == share else 0.0  # NaN: not measured
    full = (213, 94, 0) if share > 0 else (86, 180, 233)
    red, green, blue = (round(255 + (c - 255) * min(1.0, abs(share))) for c in full)
    return f"not dim black on rgb({red},{green},{blue})"


def _around(before: str, token: str, after: str, width: int) -> str:
    """A token in brackets with as much text on both sides as fits."""
    token = f"[{token}]" if len(token) <= width - 4 else f"[{token[: width - 5]}\u2026]"
    left = max(0, width - len(token))
    half = max(left // 2, left - len(after))
    if len(before) > half:
        before = "\u2026" + before[len(before) - half + 1 :] if half > 1 else ""
    rest = left - len(before)
    if len(after) > rest:
        after = after[: rest - 1] + "\u2026" if rest > 1 else ""
    return before + token + after
