"""The app, driven in a real headless Chromium: upload, generate, compare, another number of nodes."""

import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2genkg.core.files import R2GenKGError

from browser import open_page

pytest.importorskip("gradio", reason='Gradio is not installed: pip install "r2genkg[app]"')


@pytest.fixture(scope="module")
def address(toy, zero_kg, tmp_path_factory) -> tuple[str, Path]:
    """A served app with two toy runs, and a folder with an image."""
    from r2genkg.use.app import serve

    folder = tmp_path_factory.mktemp("app")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 60), dtype=np.uint8)).save(
        folder / "chest.png"
    )
    (folder / "broken.dcm").write_bytes(b"nothing")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    app = serve([toy, zero_kg], port=port, block=False)
    yield f"http://127.0.0.1:{port}", folder
    app.close()


def _generate(page, image: Path, column: str = "A"):
    page.set_input_files("#image input[type=file]", image)
    page.wait_for_selector(
        f"#image td[aria-label='{image.name}']"
    )  # the line of progress, which has the name too, may be gone before it is seen
    page.click("#generate")
    page.wait_for_selector(f"#report-{column} iframe", timeout=60_000)
    return page.frame_locator(f"#report-{column} iframe")


def test_upload_generate_compare(address, tmp_path):
    url, folder = address
    with open_page(1400, 1200) as page:
        page.goto(url)
        page.wait_for_selector("#nodes-A input", timeout=60_000)
        report = _generate(page, folder / "chest.png")
        assert "not for clinical use" in page.inner_text("body")
        assert (
            "with-graph, 10 of 10 graph nodes" in report.locator("body").inner_text()
            and report.locator(".sentence").count() >= 1
        )
        other = page.frame_locator("#report-B iframe").locator("body").inner_text()
        assert "zero, no graph nodes" in other
        page.screenshot(path=tmp_path / "app.png")
        assert (tmp_path / "app.png").stat().st_size > 20_000
        assert page.foreign == []  # nothing left this machine


def test_fewer_nodes(address):
    url, folder = address
    with open_page() as page:
        page.goto(url)
        box = page.locator("#nodes-A input[type=number]")
        box.wait_for(timeout=60_000)
        box.fill("3")
        box.press("Tab")
        assert (
            "with-graph, 3 of 10 graph nodes"
            in _generate(page, folder / "chest.png").locator("body").inner_text()
        )


def test_a_run_against_itself_with_fewer_nodes(address):
    url, folder = address
    with open_page(1400, 1200) as page:
        page.goto(url)
        page.wait_for_selector("#nodes-A input", timeout=60_000)
        assert (
            page.locator("#nodes-B input[type=number]").count() == 0
        )  # the run without a graph has no nodes to choose
        page.click("#run-B input")
        page.get_by_role("option", name="with-graph").click()
        box = page.locator("#nodes-B input[type=number]")
        box.wait_for(timeout=60_000)
        assert box.input_value() == "10"
        box.fill("2")
        box.press("Tab")
        assert (
            "with-graph, 2 of 10 graph nodes"
            in _generate(page, folder / "chest.png", "B").locator("body").inner_text()
        )
        assert (
            "with-graph, 10 of 10 graph nodes"
            in page.frame_locator("#report-A iframe").locator("body").inner_text()
        )


def test_faults_are_one_line(address):
    url, folder = address
    with open_page() as page:
        page.goto(url)
        page.wait_for_selector("#nodes-A input", timeout=60_000)
        page.click("#generate")
        page.wait_for_selector("text=choose an image first")
        page.set_input_files("#image input[type=file]", folder / "broken.dcm")
        page.wait_for_selector("#image td[aria-label='broken.dcm']")
        page.click("#generate")
        page.wait_for_selector("text=image cannot be decoded")


def test_only_this_machine_is_served(address):
    url, _ = address
    other = socket.gethostbyname(socket.gethostname())
    if other.startswith("127."):
        pytest.skip("this machine has no other address")
    with socket.socket() as s:
        s.settimeout(2)
        assert s.connect_ex((other, int(url.rsplit(":", 1)[1]))) != 0


def test_faults_at_the_start(address, zero_kg, tmp_path):
    from r2genkg.use.app import serve

    url, _ = address
    with pytest.raises(R2GenKGError, match="not a run folder"):
        serve([tmp_path])
    with pytest.raises(R2GenKGError, match="--port"):
        serve([zero_kg], port=int(url.rsplit(":", 1)[1]), block=False)
