"""The package's own data and notebooks, in the wheel or beside the package in a clone."""

import functools
import os
import socket
import subprocess
import urllib.parse
from importlib import resources
from pathlib import Path

from erltool.errors import ErltoolError

POLICIES = ("sharpening", "discovery", "trap", "countdown")  # each a folder of data/policies


def shipped(name: str) -> Path:
    """Path of `data` or `notebooks`, or inside them ("data/policies/countdown"). Raises ErltoolError if missing."""
    package = Path(str(resources.files("erltool")))
    for path in (package / name, package.parent / name):
        if path.exists():
            return path
    raise ErltoolError(
        f"{name} is missing beside the package in {package}: lessons and recorded runs come with a whole clone or a "
        "wheel; install erltool again from one"
    )


def cache_folder() -> Path:
    """The package's folder in the user's cache. It may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "erltool"


def commit() -> str | None:
    """Short commit of the clone that the package runs from, with "+" where files differ; None outside a clone."""
    clone = Path(__file__).parent.parent
    if not (clone / ".git").exists():
        return None
    try:
        head = _git(clone, "rev-parse", "--short", "HEAD")
        return head + ("+" if _git(clone, "status", "--porcelain", "--", "erltool") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    # Without a lock, which would refuse the user's own `git commit` meanwhile, and stay where this process is killed.
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def in_clone() -> bool:
    """Whether the package runs from a clone instead of a wheel."""
    return not (Path(__file__).parent / "data").exists()


@functools.cache
def hub_reachable() -> bool:
    """Whether the Hugging Face hub's name resolves; True behind a proxy.

    The hub's own client would try for half a minute before it gives up.
    """
    if os.environ.get("HF_HUB_OFFLINE"):
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    host = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True
