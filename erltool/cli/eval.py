"""`erltool eval`."""

from erltool.cli import terminal
from erltool.cli.arguments import at_least, not_negative
from erltool.cli.flags import add_trust
from erltool.errors import ErltoolError


def run(parser, words) -> int:
    parser.add_argument("what", metavar="RUN_OR_POLICY", help="folder of a run, or a policy as in train")
    parser.add_argument("--benchmark", default="", help="benchmarks, comma-separated; all for the paper's seven")
    parser.add_argument("--task", help="a task whose held-out problems are used; default: the run's own")
    parser.add_argument(
        "--samples", type=at_least(1), help="responses to each problem; default: the paper's, 8 of a task"
    )
    parser.add_argument("--temperature", type=not_negative, help="0 for greedy; default: the paper's, 1 of a task")
    parser.add_argument("--max-response-tokens", type=at_least(1), help="default: the run's, or at most 3072")
    parser.add_argument(
        "--template", help="as in train; default: the run's, or boxed if the policy has a chat template"
    )
    parser.add_argument(
        "--limit", type=at_least(0), default=0, help="problems of each benchmark or task, 0 for all (0)"
    )
    parser.add_argument("--batch", type=at_least(0), default=256, help="responses sampled at a time, 0 for all (256)")
    parser.add_argument("--base", default="none", help="quantisation of a policy's weights: none, nf4 or int8 (none)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto (auto)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    add_trust(parser)
    args = parser.parsed(words)
    from erltool.training.evaluate import BENCHMARKS, evaluate, evaluation_report, evaluation_task
    from erltool.training.start import policy_for_evaluation

    if args.benchmark and args.task:
        raise ErltoolError("eval: give --benchmark or --task, not both")
    names = list(BENCHMARKS) if args.benchmark == "all" else [n for n in args.benchmark.split(",") if n]
    for name in names:
        if name not in BENCHMARKS:
            raise ErltoolError(f"benchmark {name!r} is not known: use {', '.join(BENCHMARKS)}, or all")
    # All of them are loaded before the first is evaluated, since one may be out of reach.
    asked = {name: evaluation_task(name) for name in names or filter(None, [args.task])}
    policy, config = policy_for_evaluation(
        args.what, args.base, args.template, args.device, trust_remote_code=args.trust_remote_code
    )
    if not asked:
        if not config:
            raise ErltoolError("eval: a policy has no task of its own; give --benchmark or --task")
        asked = {config.task: evaluation_task(config.task)}
    results = []
    for name, (task, temperature, samples) in asked.items():
        problems = task.held_out[: args.limit] if args.limit else task.held_out
        samples = args.samples or samples
        tokens = args.max_response_tokens or (config.max_response_tokens if config else _room(policy, problems))
        temperature = temperature if args.temperature is None else args.temperature
        settings = {"max_response_tokens": tokens, "temperature": temperature, "batch": args.batch}
        with terminal.progress(len(problems) * samples, name, "response") as bar:
            results.append(evaluate(policy, task, problems, samples, progress=bar.update, **settings))
    print(evaluation_report(results, as_json=args.json))
    return 0


def _room(policy, problems, most: int = 3072) -> int:
    """Tokens that a response may have: as many as the paper's, unless the policy has fewer positions after a prompt."""
    longest = max(map(len, policy.encode([p.prompt for p in problems])), default=0)
    return max(1, min(most, policy.longest - longest if policy.longest else most))
