"""Executes lessons in place and keeps what they printed and drew: `python tests/make_notebooks.py notebooks/*.ipynb`.

Each runs whole in a new kernel, in an empty folder. What is kept reads on GitHub: no widget view where a picture stands
beside it, no widget state, pictures with a palette of 192 colours where that is smaller.
"""

import base64
import io
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

VIEW = "application/vnd.jupyter.widget-view+json"
COLOURS = 192


def executed(path: Path) -> nbformat.NotebookNode:
    """The lesson as a run of all its cells leaves it. Raises CellExecutionError where a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook,
            timeout=900,
            resources={"metadata": {"path": folder}},
            store_widget_state=False,
            coalesce_streams=True,
        ).execute()
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for data in (output.get("data", {}) for output in cell.get("outputs", ())):
            if "image/png" in data:
                data.pop(VIEW, None)
                data["image/png"] = with_palette(data["image/png"])
    return notebook


def with_palette(picture: str) -> str:
    """A PNG in base64 with a palette, or as it was where that is no smaller."""
    before, after = base64.b64decode(picture), io.BytesIO()
    image = Image.open(io.BytesIO(before)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    image.save(after, "PNG", optimize=True)
    return base64.b64encode(after.getvalue()).decode() if after.tell() < len(before) else picture


if __name__ == "__main__":
    for name in sys.argv[1:]:
        start = time.time()
        nbformat.write(executed(Path(name)), name)
        print(f"{name}: {time.time() - start:.0f} s, {Path(name).stat().st_size / 1000:.0f} kB", flush=True)
