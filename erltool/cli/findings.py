"""Checks of what the package depends on, one line each, with a remedy for what is wrong."""

import importlib.metadata
import importlib.util
import json
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from erltool.threads import Crowding, cores, crowded_text

OK, NOTE, FAIL = range(3)
LOOK = 1.0  # seconds of matrix products, during which threads may wait for a core
PACKAGES = (
    "torch", "transformers", "peft", "bitsandbytes", "numpy", "scipy", "pandas", "pyarrow", "matplotlib",
    "ipywidgets", "anywidget", "jupyterlab", "ipykernel",
)  # fmt: skip


def findings() -> Iterator[tuple[int, str]]:
    """(level, line) of every check: FAIL for what does not work, NOTE for what may surprise."""
    yield OK, f"python {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield from _versions()
    yield from _device()
    yield from _memory()
    if importlib.util.find_spec("jupyter_core"):
        yield from _lab_server()
        yield _callback_threads()


def _versions() -> Iterator[tuple[int, str]]:
    versions = []
    for name in ("erltool", *PACKAGES):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield FAIL, f"{name} is not installed; run: pip install {name if name != 'erltool' else '-e .'}"
    for at in range(0, len(versions), 4):
        yield OK, ", ".join(versions[at : at + 4])


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
        yield OK, "device cpu: no CUDA; enough for the lessons, not for models of billions of weights"
    yield from _threads()


def _threads() -> Iterator[tuple[int, str]]:
    import torch

    count, threads = cores(), torch.get_num_threads()
    if threads > count:
        yield NOTE, f"{threads} torch threads on {count} cores slow each other; set OMP_NUM_THREADS={count}"
    else:
        yield OK, f"{threads} torch threads on {count} cores"
    crowding, until, a = Crowding(LOOK), time.monotonic() + LOOK, torch.zeros(512, 512)
    while time.monotonic() < until:
        a @ a
    if share := crowding.look():
        yield NOTE, crowded_text(share)
    else:
        yield OK, f"torch threads waited for a core {crowding.share:.0%} of {LOOK:g} s"


def _memory() -> Iterator[tuple[int, str]]:
    import psutil

    memory = psutil.virtual_memory()
    total, free = memory.total / 2**30, memory.available / 2**30
    remedy = "; the demo needs about 1.5 GiB: close other programs" if free < 2 else ""
    yield NOTE if remedy else OK, f"memory {free:.1f} GiB available of {total:.1f}{remedy}"
    disk = shutil.disk_usage(".").free / 2**30
    remedy = "; runs need space: delete files" if disk < 1 else ""
    yield NOTE if remedy else OK, f"disk {disk:.1f} GiB free in this folder{remedy}"


def _lab_server() -> Iterator[tuple[int, str]]:
    """Whether anywidget is in the environment of the JupyterLab server, which may be another one than this kernel's."""
    from jupyter_core.paths import jupyter_path

    server = shutil.which("jupyter-lab") or shutil.which("jupyter")
    prefix = Path(server).resolve().parent.parent if server else Path(sys.prefix)
    places = [prefix / "share" / "jupyter" / "labextensions", *map(Path, jupyter_path("labextensions"))]
    if any((place / "anywidget").is_dir() for place in places):
        yield OK, "anywidget is in the JupyterLab server's environment"
    else:
        yield FAIL, f"anywidget is missing in {prefix}, where JupyterLab runs; run its pip install anywidget"
    if server and Path(server).parent.resolve() != Path(sys.executable).parent.resolve():
        yield NOTE, f"JupyterLab on PATH is {server}, of another Python; start this Python's with: erltool lab"


def _callback_threads() -> tuple[int, str]:
    """Whether JupyterLab (since 4.4) runs widget callbacks in another thread, where pyplot may draw wrong figures."""
    from jupyter_core.paths import jupyter_config_dir

    overrides = Path(sys.prefix) / "share" / "jupyter" / "lab" / "settings" / "overrides.json"
    user = Path(jupyter_config_dir()) / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    value = "perCommTarget"
    for file in (overrides, user / "kernels-settings.jupyterlab-settings"):
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
            document = json.loads("\n".join(line for line in lines if not line.strip().startswith("//")))
            settings = document.get("@jupyterlab/apputils-extension:kernels-settings", document)
            value = settings.get("commsOverSubshells", value)
        except (OSError, ValueError, AttributeError):
            continue
    if value == "disabled":
        return OK, "widget callbacks run in the kernel's main thread (commsOverSubshells: disabled)"
    return NOTE, (
        f"widget callbacks run in a thread of their own (commsOverSubshells: {value}); pyplot may draw wrong figures "
        "while a slider moves: do not use it then, or choose disabled in Settings > Kernels"
    )
