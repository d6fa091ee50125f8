"""`erltool workshop`."""

from erltool.cli.arguments import place


def run(parser, words) -> int:
    from erltool.lessons.copies import SESSIONS, write_workshop

    parser.add_argument("--out", type=place, required=True, help="folder for lessons/ and instructor.md")
    parser.add_argument("--minutes", type=int, choices=SESSIONS, help="plan for this length only; default: each")
    args = parser.parsed(words)
    files = write_workshop(args.out, (args.minutes,) if args.minutes else tuple(SESSIONS))
    print(f"written: {len(files) - 1} lessons without solutions in {args.out / 'lessons'}, and {files[-1]}")
    return 0
