"""`erltool lab`."""

import os
import sys

from erltool.cli.arguments import place


def run(parser, words) -> int:
    parser.add_argument("--lesson", type=int, metavar="N", help="open this lesson; default: the list of all")
    parser.add_argument(
        "--dir", type=place, help="folder for a copy of the lessons (erltool-lessons, if installed from a wheel)"
    )
    parser.add_argument("--fresh", action="store_true", help="make a new copy, in a folder with the next number")
    parser.add_argument("--no-browser", action="store_true", help="print the address only")
    args = parser.parsed(words)
    from erltool.lessons.copies import lesson_path, lessons_folder

    if args.lesson is not None:
        lesson_path(args.lesson)  # an unknown number is an error before anything is copied
    folder = lessons_folder(args.dir, args.fresh)
    command = [sys.executable, "-m", "jupyterlab", "--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={folder}"]
    if args.lesson is not None:
        command.append(f"--LabApp.default_url=/lab/tree/{lesson_path(args.lesson, folder).name}")
    print(f"erltool: lessons in {folder}")
    sys.stdout.flush()
    os.execv(sys.executable, command + (["--no-browser"] if args.no_browser else []))
