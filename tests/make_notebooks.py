"""Executes lessons in place and keeps what they printed and drew: `python tests/make_notebooks.py notebooks/*.ipynb`.

Each runs whole in a new kernel, in an empty folder. What is kept reads on GitHub: no widget view where a picture stands
beside it, no widget state, pictures with a palette of 192 colours where that is smaller. `--install-cell`, as the first
argument, only writes the cell that installs erltool, which no lesson needs to be executed again for.
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
# A quoted text, because a comment behind %pip would be an argument of it where the shell is not a POSIX one.
INSTALL = """\
# Installs erltool where it is missing. `source` is the clone that holds this notebook. Elsewhere, as on Colab, give its
# address or path: "git+https://ADDRESS" or "FOLDER". Restart the kernel if pip says so.
source = "-e .."
try:
    import erltool
except ModuleNotFoundError:
    %pip install -q {source}"""


def with_install_cell(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The lesson with INSTALL as its first code cell, below the title; in place of an older text of it.

    Where erltool is installed the cell prints nothing, so outputs stay what a run made, and only their counts move on.
    """
    title, *cells = [cell for cell in notebook.cells if cell.get("id") != "install"]
    notebook.cells = [title, nbformat.v4.new_code_cell(INSTALL, id="install", metadata={"tags": ["install"]}), *cells]
    if any(cell.get("execution_count") for cell in cells):
        for count, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), 1):
            cell.execution_count = count
            for output in (o for o in cell.outputs if o.output_type == "execute_result"):
                output.execution_count = count
    return notebook


def executed(path: Path) -> nbformat.NotebookNode:
    """The lesson as a run of all its cells leaves it. Raises CellExecutionError where a cell fails."""
    notebook = with_install_cell(nbformat.read(path, as_version=4))
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
    only_cell = sys.argv[1:2] == ["--install-cell"]
    for name in sys.argv[1 + only_cell :]:
        start = time.time()
        made = with_install_cell(nbformat.read(name, as_version=4)) if only_cell else executed(Path(name))
        nbformat.write(made, name)
        print(f"{name}: {time.time() - start:.0f} s, {Path(name).stat().st_size / 1000:.0f} kB", flush=True)
