"""Execute notebooks in place, so that they are committed with their outputs. Usage: run_notebooks.py [NOTEBOOK...]"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

root = Path(__file__).resolve().parents[1]
for path in [Path(p).resolve() for p in sys.argv[1:]] or sorted(root.glob("nbs/**/*.ipynb")):
    start = time.time()
    nb = nbformat.read(path, as_version=4)
    NotebookClient(
        nb, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    for cell in nb.cells:  # library warnings carry paths of the machine
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    nbformat.write(nb, path)
    print(f"{path.relative_to(root)}: {time.time() - start:.1f} s")
