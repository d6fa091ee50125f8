"""`erltool check`."""

import dataclasses
import json

from erltool.cli import terminal

STATUS = {"note": 0, "warning": 1, "error": 3}  # 2 is that of an input that cannot be read


def run(parser, words) -> int:
    parser.add_argument(
        "what", nargs="*", metavar="FILE_OR_COMMAND",
        help="a configuration (YAML, JSON, TOML), a script, a run's folder, or a command in quotes or after --",
    )  # fmt: skip
    parser.add_argument(
        "--framework", metavar="NAME", help="verl, TRL, SkyRL, prime-rl or erltool; default: recognised"
    )
    parser.add_argument(
        "--release", metavar="VERSION", help="the framework's release; default: the installed, else the newest known"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.epilog = "Exit status: 0 without findings or with notes only, 1 with a warning, 3 with an error."
    at = words.index("--") if "--" in words else len(words)
    args = parser.parsed(words[:at])
    what = [*args.what, *words[at + 1 :]]
    if not what:
        parser.error("the following arguments are required: FILE_OR_COMMAND")
    from erltool.logs.check import check, read_settings, settings_of

    raw = read_settings(what, args.framework)
    settings = settings_of(raw, args.release)
    findings = check(settings)
    if args.json:
        told = {"framework": settings.framework, "release": settings.release, "passed_over": raw.passed_over}
        print(json.dumps(told | {"findings": [dataclasses.asdict(f) for f in findings]}, indent=1))
    else:
        for finding in findings:
            print(terminal.filled(finding.line(), 8))
        if not findings:
            known = len(settings.keys) - len(settings.unknown)
            rest = f"; {len(settings.unknown)} have a value that is not known" if settings.unknown else ""
            print(f"nothing found in {settings.framework} settings, of {known} that were looked at{rest}")
        if raw.passed_over:
            print(f"commands or configurations of the script not looked at: {raw.passed_over}; give each by itself")
    return max((STATUS[f.severity] for f in findings), default=0)
