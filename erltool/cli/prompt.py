"""`erltool prompt`."""

from erltool.cli.arguments import at_least
from erltool.cli.flags import add_config_flags, config_of_flags


def run(parser, words) -> int:
    parser.add_argument("--count", type=at_least(1), default=1, help="number of prompts to show (1)")
    add_config_flags(parser)
    args = vars(parser.parsed(words))
    from erltool.policies.load import load_tokenizer
    from erltool.policies.policy import Template
    from erltool.tasks.task import load_task

    count = args.pop("count")
    config = config_of_flags(args)
    task, tokenizer = load_task(config.task), load_tokenizer(config.policy, config.trust_remote_code)
    template = Template.choose(config.template, tokenizer, config.policy, task.examples(config.shots))
    print(f"template {template.name}; {len(task.train)} problems to train on, {len(task.held_out)} held out")
    for problem in task.train[:count]:
        tokens = template.encode([problem.prompt], tokenizer)[0]
        print(f"--- {len(tokens)} tokens\n{template.render(problem.prompt, tokenizer)}\n---")
    return 0
