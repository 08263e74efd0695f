"""The page against other sites: foreign names, foreign uploads, markup in an error, what stays behind after an end."""

import html
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from r2genkg.use.app import Guard, _as_text, _own_names, notice

HOSTS = [
    "evil.example",
    "evil.example:7860",
    "127.0.0.1.evil.example:7860",
    "localhost.evil.example",
    "evil.example@127.0.0.1.evil.example",
    "10.0.0.7:7860",
    "169.254.169.254",
    "[fe80::1]:7860",
    "0.0.0.0:7860",
    "2130706433:7860",
    "127.1:7860",
    "",
    "localhost.",
    "127.0.0.1:abc",
    "127.0.0.1:7860:80",
    "localhost\x00.evil.example",
    "evil.example#127.0.0.1",
    "[::1].evil.example",
    "[::ffff:127.0.0.1]:7860",
    "user@localhost",
    "LOCALHOST.EVIL.EXAMPLE",
    "xn--loclhost-9za.example",
]
ORIGINS = [
    "https://evil.example",
    "http://evil.example:7860",
    "null",
    "http://127.0.0.1.evil.example",
    "http://localhost.evil.example:7860",
    "file://",
    "chrome-extension://abc",
    "http://127.0.0.1:7860@evil.example",
    "http://[::1]:7860",
    "http://localhost:7860",
    "about:blank",
]


def guard(host: str = "127.0.0.1", root_path: str = "") -> Guard:
    return Guard(None, _own_names(host, root_path), host == "0.0.0.0", Path("none"))


@pytest.mark.parametrize("host", HOSTS)
def test_foreign_name(host):
    assert guard().fault("/", {b"host": host.encode()})


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/queue/join", "/config"])
def test_foreign_site(origin, path):
    assert guard().fault(path, {b"host": b"127.0.0.1:7860", b"origin": origin.encode()})


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "[::1]:7860", "LOCALHOST"])
def test_own_name(host):
    origin = f"http://{host}".encode()
    assert not guard().fault("/gradio_api/upload", {b"host": host.encode(), b"origin": origin})


def test_frames_of_other_sites():
    """No other site shows the page inside its own, under buttons of its own."""
    import asyncio

    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})

    async def ask() -> list:
        sent = []

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "path": "/", "headers": [(b"host", b"localhost:7860")]}
        await Guard(page, {"localhost"}, False, Path("none"))(scope, None, send)
        return sent

    (start,) = asyncio.run(ask())
    assert (b"content-security-policy", b"frame-ancestors 'self'") in start["headers"]
    assert (b"a", b"b") in start["headers"]


def test_behind_a_proxy():
    own = guard(root_path="https://films.example/reports")
    assert not own.fault("/", {b"host": b"films.example", b"origin": b"https://films.example"})
    assert own.fault("/", {b"host": b"films.example.evil", b"origin": b"https://films.example"})


MARKUP = [
    "<img src=x onerror=alert(1)>",
    "![film](http://evil.example/p.png)",
    "[click](javascript:alert(1))",
    "www.evil.example",
    "https://evil.example/?q=1",
    "**bold** _it_ `code` ~~no~~",
    "&lt;script&gt;",
    "a@evil.example",
    "<a href='//evil.example'>report</a>",
    "\u202e<b>",
]


@pytest.mark.parametrize("text", MARKUP)
def test_markup_in_an_error(text):
    shown = _as_text(text)
    assert html.unescape(shown) == text
    assert not set(shown) & set("<>[]()!*_`~:/.@'\"")


@pytest.mark.parametrize(
    "host, says",
    [
        ("127.0.0.1", "stays on this machine"),
        ("localhost", "stays on this machine"),
        ("0.0.0.0", "Everybody who reaches"),
        ("192.168.1.4", "Everybody who reaches"),
        ("::", "Everybody who reaches"),
    ],
)
def test_who_can_reach_the_page(host, says):
    assert says in notice(host, False)


SERVER = """
import sys
from r2genkg.use import app
run = type("Run", (), {"studies": []})()
app.Runs = lambda folders: type("R", (), {"by_name": {"toy": run}, "nodes": lambda s, n: (0, 0)})()
from r2genkg.use.console import end_gently
end_gently()
app.serve(["toy"], port=int(sys.argv[1]))
"""


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_served_page(tmp_path, end):
    """Uploads are gone after an end; after a kill, at the next start."""
    pytest.importorskip("gradio")
    import httpx

    port = 18_600 + end
    places = os.environ | {"TMPDIR": str(tmp_path), "HTTP_PROXY": "http://127.0.0.1:9"}
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], env=places)
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(trust_env=False, timeout=30) as client:
        until = time.time() + 90
        while time.time() < until:
            try:
                client.get(f"{url}/config")
                break
            except httpx.HTTPError:
                time.sleep(0.5)
        assert client.get(f"{url}/config").status_code == 200
        assert client.get(f"{url}/config", headers={"Host": "evil.example"}).status_code == 403
        film = {"files": ("a.png", b"film", "image/png")}
        upload = f"{url}/gradio_api/upload"
        foreign = client.post(upload, files=film, headers={"Origin": "https://evil.example"})
        assert foreign.status_code == 403 and not list(tmp_path.rglob("*.png"))
        assert client.post(upload, files=film).status_code == 200
    (kept,) = tmp_path.rglob("*.png")
    assert not kept.parents[0].stat().st_mode & 0o077 or not kept.parents[1].stat().st_mode & 0o077
    server.send_signal(end)
    server.wait(60)
    if end == signal.SIGKILL:
        assert list(tmp_path.rglob("*.png"))
        before, tempfile.tempdir = tempfile.tempdir, str(tmp_path)
        try:
            from r2genkg.use.app import _upload_folder

            _upload_folder()
        finally:
            tempfile.tempdir = before
    assert not list(tmp_path.rglob("*.png"))
