"""What can go wrong around the package, found out and said in one line each with a remedy."""

import importlib.metadata
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from erltool.threads import Crowding, crowded_text

OK, NOTE, FAIL = range(3)
LOOK = 1.0  # seconds of matrix products, in which threads may have to wait for a core
PACKAGES = (
    "torch", "transformers", "peft", "bitsandbytes", "numpy", "scipy", "pandas", "pyarrow", "matplotlib",
    "ipywidgets", "anywidget", "jupyterlab", "ipykernel",
)  # fmt: skip


def findings() -> Iterator[tuple[int, str]]:
    """(level, line) of every check; FAIL keeps something from working, NOTE may surprise."""
    yield OK, f"python {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield from _versions()
    yield from _device()
    yield from _memory()
    yield from _lab_server()
    yield _callback_threads()


def _versions() -> Iterator[tuple[int, str]]:
    found = []
    for name in ("erltool", *PACKAGES):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield FAIL, f"{name} is not installed; run: pip install {name if name != 'erltool' else '-e .'}"
    for at in range(0, len(found), 4):
        yield OK, ", ".join(found[at : at + 4])


def _device() -> Iterator[tuple[int, str]]:
    try:
        import torch
    except ImportError as e:
        yield FAIL, f"torch cannot be imported ({e}); reinstall it"
        return
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        yield OK, f"device cuda: {torch.cuda.get_device_name(0)}, {total:.0f} GiB"
    else:
        yield OK, "device cpu: no CUDA; the lessons run on it, models of billions of weights do not"
    yield from _threads()


def _threads() -> Iterator[tuple[int, str]]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    if threads > cores:
        yield NOTE, f"{threads} torch threads on {cores} cores slow each other; set OMP_NUM_THREADS={cores}"
    else:
        yield OK, f"{threads} torch threads on {cores} cores"
    crowding, until, a = Crowding(LOOK), time.monotonic() + LOOK, torch.zeros(512, 512)
    while time.monotonic() < until:
        a @ a
    if share := crowding.look():
        yield NOTE, crowded_text(share)
    else:
        yield OK, f"they waited for a core {crowding.share:.0%} of {LOOK} s"


def _memory() -> Iterator[tuple[int, str]]:
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(lines[k].split()[0]) / 2**20 for k in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return
    level = NOTE if free < 2 else OK
    remedy = "; the demo needs about 1.5 GiB: close something" if level else ""
    yield level, f"memory {free:.1f} GiB available of {total:.1f}{remedy}"
    disk = shutil.disk_usage(".").free / 2**30
    yield (NOTE, f"disk {disk:.1f} GiB free here; runs need room: free some") if disk < 1 else (
        OK, f"disk {disk:.0f} GiB free here",
    )  # fmt: skip


def _lab_server() -> Iterator[tuple[int, str]]:
    """anywidget must be where the JupyterLab server runs, which may not be where this kernel runs."""
    server = shutil.which("jupyter-lab") or shutil.which("jupyter")
    prefix = Path(server).resolve().parent.parent if server else Path(sys.prefix)
    places = [prefix / "share" / "jupyter" / "labextensions", *_jupyter_paths()]
    if any((place / "anywidget").is_dir() for place in places):
        yield OK, "anywidget is in the JupyterLab server's environment"
    else:
        yield FAIL, f"anywidget is missing beside {server}: widgets stay blank; install it there: pip install anywidget"
    if server and Path(server).parent.resolve() != Path(sys.executable).parent.resolve():
        yield NOTE, f"JupyterLab on PATH is {server}, not this Python's; start it with: erltool lab"


def _jupyter_paths() -> list[Path]:
    try:
        from jupyter_core.paths import jupyter_path

        return [Path(p) for p in jupyter_path("labextensions")]
    except ImportError:
        return []


def _callback_threads() -> tuple[int, str]:
    """JupyterLab >= 4.4 runs widget callbacks beside the main thread, where pyplot draws wrong figures."""
    value = "perCommTarget"
    for file in _settings_files():
        try:
            text = json.loads("\n".join(_without_comments(file.read_text(encoding="utf-8"))))
            settings = text.get("@jupyterlab/apputils-extension:kernels-settings", text)
            value = settings.get("commsOverSubshells", value)
        except (OSError, ValueError, AttributeError):
            continue
    if value == "disabled":
        return OK, "widget callbacks run in the kernel's main thread (commsOverSubshells: disabled)"
    return NOTE, (
        f"widget callbacks run in a thread of their own (commsOverSubshells: {value}); do not use pyplot "
        "beside moving sliders, or set it to disabled in Settings > Kernels"
    )


def _settings_files() -> list[Path]:
    try:
        from jupyter_core.paths import jupyter_config_dir
    except ImportError:
        return []
    user = Path(jupyter_config_dir()) / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    overrides = Path(sys.prefix) / "share" / "jupyter" / "lab" / "settings" / "overrides.json"
    return [overrides, user / "kernels-settings.jupyterlab-settings"]


def _without_comments(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.strip().startswith("//")]
