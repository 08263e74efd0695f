"""Execute notebooks in place, so that they are committed with their outputs.

python scripts/run_notebooks.py                       # all but those of nbs/paper, which train for an hour
python scripts/run_notebooks.py nbs/05_kg nbs/paper/01_zero_kg.ipynb
"""

import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 4 * 3600  # seconds a cell may take: one of nbs/paper trains all its runs


def execute(path: Path) -> str:
    """Run one notebook and store its outputs; gives a line about it."""
    start = time.time()
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(path.parent)}}
    try:
        NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", resources=place).execute()
    except CellExecutionError as error:  # the others are still run
        return f"{path.relative_to(ROOT)}: FAILED: {str(error).strip().splitlines()[-1]}"
    for cell in notebook.cells:  # library warnings carry paths of the machine
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    nbformat.write(notebook, path)
    return f"{path.relative_to(ROOT)}: {time.time() - start:.1f} s"


def wanted(arguments: list[str]) -> list[Path]:
    """The notebooks that are named, those of folders that are named, or all that take seconds."""
    if not arguments:
        found = [*ROOT.glob("nbs/[0-9]*/*.ipynb"), *ROOT.glob("nbs/*.ipynb")]
        return sorted(found)
    paths = [Path(argument).resolve() for argument in arguments]
    return [n for p in paths for n in (sorted(p.glob("*.ipynb")) if p.is_dir() else [p])]


def main() -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    failed = False
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for line in pool.map(execute, wanted(sys.argv[1:])):
            print(line, flush=True)
            failed |= ": FAILED:" in line
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
