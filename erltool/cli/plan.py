"""`erltool plan`."""

from erltool.cli.arguments import at_least
from erltool.cli.flags import add_config_flags, config_of_flags


def run(parser, words) -> int:
    parser.add_argument("--prompt-tokens", type=at_least(1), default=256, help="length of the longest prompts (256)")
    parser.add_argument(
        "--gpus", type=at_least(1), default=1, help="GPUs that share the model, sharded as by FSDP or ZeRO-3 (1)"
    )
    add_config_flags(parser)
    args = vars(parser.parsed(words))
    from erltool.training.memory import CARDS, advice, plan_memory

    prompt_tokens, gpus = args.pop("prompt_tokens"), args.pop("gpus")
    device = "cpu" if args.get("device") == "cpu" else "cuda"
    config = config_of_flags(args | {"device": "cpu"})
    print(plan_memory(config, prompt_tokens, device, gpus=gpus))
    print(f"on each of {gpus} GPUs; calculated, not measured\n" if gpus > 1 else "")
    for card in CARDS:
        changes = advice(config, card * 1e9, prompt_tokens, device, gpus)
        verdict = "too small" if changes is None else f"fits with {', '.join(changes)}" if changes else "fits"
        print(f"{card:3} GB  {verdict}")
    return 0
