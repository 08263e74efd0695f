"""Downloads from a server that cuts answers, refuses, and sends other files than expected."""

import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from r2genkg.core.files import R2GenKGError
from r2genkg.data.download import download_iu_xray, fetch


class Server(BaseHTTPRequestHandler):
    files: dict[str, bytes] = {}
    cut = 0

    def do_GET(self):
        content = self.files.get(self.path.rpartition("/")[2])
        if content is None:
            return self.send_error(404)
        wanted = self.headers.get("Range", "")
        start = int(wanted[6:-1]) if wanted else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(content[start:][: self.cut or None])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    handler = type("H", (Server,), {"files": {}, "cut": 0})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    handler.address = f"http://127.0.0.1:{running.server_port}"
    yield handler
    running.shutdown()
    running.server_close()


def tgz(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def openi(uids: range) -> dict[str, bytes]:
    xml = {
        f"ecgen-radiology/{u}.xml": (
            f'<eCitation><uId id="CXR{u}"/><AbstractText Label="FINDINGS">Clear lungs {u}.</AbstractText>'
            f'<parentImage id="CXR{u}_1"/></eCitation>'
        ).encode()
        for u in uids
    }
    images = {}
    for u in uids:
        out = io.BytesIO()
        Image.fromarray(np.random.default_rng(u).integers(0, 255, (64, 64), dtype=np.uint8)).save(
            out, "PNG"
        )
        images[f"CXR{u}_1.png"] = out.getvalue()
    return {"NLMCXR_reports.tgz": tgz(xml), "NLMCXR_png.tgz": tgz(images)}


def test_download_through_a_bad_line(tmp_path, server):
    server.files, server.cut = openi(range(1, 40)), 9_000
    found = download_iu_xray(
        tmp_path / "iu", server.address, any_checksum=True, space=0, pause=0.001
    )
    assert (
        found["kept"] == found["train"] + found["val"] + found["test"] > 20
        and found["unreadable images"] == 0
    )
    assert not list(tmp_path.rglob("*.part*")) and (tmp_path / "iu" / "studies.parquet").exists()
    for name, content in server.files.items():
        assert found[f"sha256 of {name}"] == hashlib.sha256(content).hexdigest()


def test_wrong_checksum_is_not_unpacked(tmp_path, server):
    server.files = openi(range(1, 4))
    with pytest.raises(R2GenKGError, match="SHA-256 is .* expected 8fb6de7eec73d8c3"):
        download_iu_xray(tmp_path / "iu", server.address, space=0, pause=0.001)
    assert not list(tmp_path.rglob("*.xml")) and not list(tmp_path.rglob("*.tgz"))


def test_interrupted_download_goes_on(tmp_path, server):
    server.files = {"x.tgz": np.random.default_rng(0).bytes(200_000)}
    (tmp_path / ".x.tgz.part").write_bytes(server.files["x.tgz"][:150_000])
    (tmp_path / ".x.tgz.part.tag").write_text('"1"')
    server.cut = 50_000  # enough for the rest, not for the whole
    fetch(f"{server.address}/x.tgz", tmp_path / "x.tgz", pause=0.001)
    assert (tmp_path / "x.tgz").read_bytes() == server.files["x.tgz"]


def test_damaged_part_is_found_by_the_checksum(tmp_path, server):
    content = np.random.default_rng(0).bytes(100_000)
    server.files = {"x.tgz": content}
    (tmp_path / ".x.tgz.part").write_bytes(bytes(50_000))
    (tmp_path / ".x.tgz.part.tag").write_text('"1"')
    right = hashlib.sha256(content).hexdigest()
    with pytest.raises(R2GenKGError, match="expected"):
        fetch(f"{server.address}/x.tgz", tmp_path / "x.tgz", right, pause=0.001)
    assert (
        fetch(f"{server.address}/x.tgz", tmp_path / "x.tgz", right, pause=0.001) == right
    )  # the second call starts anew


def test_nobody_there(tmp_path, server):
    with pytest.raises(R2GenKGError, match="answers 404"):
        fetch(f"{server.address}/none.tgz", tmp_path / "x.tgz")
    with pytest.raises(R2GenKGError, match="0 bytes are kept, run the same command again"):
        fetch("http://127.0.0.1:9/x.tgz", tmp_path / "x.tgz", pause=0.001)
