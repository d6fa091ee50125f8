"""Where the package's own data and notebooks are: in the wheel, or beside the package in a clone."""

import subprocess
from importlib import resources
from pathlib import Path


def shipped(part: str) -> Path:
    """Path of `data` or `notebooks`, or of something in them: "data/policies/embedded"."""
    package = Path(str(resources.files("erltool")))
    inside = package / part
    return inside if inside.exists() else package.parent / part


def commit() -> str | None:
    """Short commit of the clone this package runs from, "+" behind it where files differ; None outside one."""
    clone = Path(__file__).parent.parent
    if not (clone / ".git").exists():
        return None
    try:
        head = _git(clone, "rev-parse", "--short", "HEAD")
        return head + ("+" if _git(clone, "status", "--porcelain", "--", "erltool") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def in_clone() -> bool:
    """Whether the package runs from a clone, not from an installed wheel."""
    return not (Path(__file__).parent / "data").exists()
