"""Notebooks as a reader opens them: in JupyterLab, in headless Chromium, run from top to bottom, with a screenshot.

Opt-in, because it takes a minute or two:  R2GENKG_NOTEBOOKS=1 python -m pytest tests/use/test_browser.py
R2GENKG_SCREENSHOTS=FOLDER keeps the pictures.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from browser import chromium, open_page

nbformat = pytest.importorskip("nbformat")
NOTEBOOKS = Path(__file__).resolve().parents[2] / "nbs"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
SHOWN = ("10_use/04_report.ipynb", "10_use/00_plots.ipynb", "tutorials/use_the_modules.ipynb")

pytestmark = pytest.mark.skipif(
    not os.environ.get("R2GENKG_NOTEBOOKS"),
    reason="takes minutes: set R2GENKG_NOTEBOOKS=1 to run it",
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a JupyterLab on copies of the notebooks, its folder and its token."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    chromium()
    folder, token = tmp_path_factory.mktemp("lab"), secrets.token_hex(16)
    for name in SHOWN:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(NOTEBOOKS / name, folder / name)
        notebook = nbformat.read(folder / name, 4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, folder / name)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    home = {
        k: str(folder / ".home" / k)
        for k in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    }
    log = open(folder / "lab.log", "w")
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "jupyter",
            "lab",
            "--no-browser",
            "--allow-root",
            "--ip=127.0.0.1",
            f"--port={port}",
            f"--ServerApp.root_dir={folder}",
            f"--IdentityProvider.token={token}",
            "--LabApp.expose_app_in_browser=True",
            "--LabApp.extension_manager=readonly",
        ],
        env=os.environ
        | home
        | {
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        stdout=log,
        stderr=log,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{url}/api?token={token}", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        else:
            raise AssertionError((folder / "lab.log").read_text()[-2000:])
        yield url, folder, token
    finally:
        server.terminate()
        server.wait(20)
        log.close()


@pytest.mark.parametrize("name", SHOWN)
def test_notebook_runs_in_jupyterlab(lab, name, tmp_path):
    url, folder, token = lab
    shots = Path(os.environ.get("R2GENKG_SCREENSHOTS", tmp_path))
    shots.mkdir(parents=True, exist_ok=True)
    with open_page(1300, 1500) as page:
        page.goto(f"{url}/lab/tree/{name}?reset&token={token}")
        page.wait_for_selector(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell", timeout=120_000)
        page.wait_for_function(
            "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'",
            timeout=120_000,
        )
        assert (
            page.evaluate(
                "async () => await window.jupyterapp.commands.execute('notebook:run-all-cells')"
            )
            is not False
        )
        page.wait_for_function(
            """() => {
            const all = [...window.jupyterapp.shell.currentWidget.content.model.cells];
            const cells = all.filter(c => c.type === 'code' && c.sharedModel.getSource().trim());
            const faults = c => [...Array(c.outputs.length).keys()].filter(i => c.outputs.get(i).type === 'error');
            const failed = cells.some(c => faults(c).length);
            return failed || cells.every(c => c.executionCount !== null);
        }""",
            timeout=300_000,
        )
        page.evaluate("async () => await window.jupyterapp.commands.execute('docmanager:save')")
        for place, cell in (("top", "0"), ("end", "p.widgets.length - 1")):
            page.evaluate(
                "() => { const p = window.jupyterapp.shell.currentWidget.content; "
                f"p.activeCellIndex = {cell}; p.scrollToItem({cell}); }}"
            )
            page.wait_for_timeout(1500)
            page.screenshot(path=shots / f"{Path(name).stem}-{place}.png")
        away = [
            url for url in page.foreign if url != BADGE
        ]  # the badge is a picture of Colab's own
        assert away == [], away[:3]
    done = nbformat.read(folder / name, 4)
    code = [c for c in done.cells if c.cell_type == "code" and c.source.strip()]
    faults = [o.get("evalue", "") for c in code for o in c.outputs if o.output_type == "error"]
    assert not faults and all(c.execution_count for c in code), faults
    assert (shots / f"{Path(name).stem}-end.png").stat().st_size > 20_000
