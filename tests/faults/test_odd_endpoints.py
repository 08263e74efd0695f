"""Endpoints of language models that answer nonsense, addresses and keys that are none, journals of strangers.

Reports go nowhere else, no key is shown or stored, and the run ends in one line that says what to do.
"""

import gzip
import http.server
import json
import threading
from pathlib import Path

import pytest

from r2genkg.extraction.llm_client import _redact

pytest.importorskip("openai")

KEY = "sk2-" + "Abc7Xyz9Qrs4" * 3
SETTINGS = "model: m\nattempts: 2\nfirst_wait: 0.01\nmax_wait: 0.1\ntimeout: 20\nmax_failures: 1\nreasks: 0\n"
TABLE = "id,image,findings\na,a.png,Small left effusion.\nb,b.png,No edema.\n"


def completion(content: object, usage: object) -> bytes:
    choice = {"message": {"content": content}, "finish_reason": "stop"}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


def error(message: str) -> bytes:
    return json.dumps({"error": {"message": message}}).encode()


#: Kind -> status, headers, body; the key that the client sent stands for KEY.
ANSWERS = {
    "steering refusal": (401, {}, lambda key: error(f"bad \x1b[2J\u202e\x9b key {key}")),
    "key backwards": (404, {}, lambda key: error(f"no model for {key[::-1]}")),
    "key in capitals": (404, {}, lambda key: error(f"no model for {key.upper()}")),
    "a long body": (400, {}, lambda key: b"x" * 3_000_000),
    "elsewhere": (307, {"location": "http://192.0.2.1/v1"}, lambda key: b""),
    "a page": (200, {"content-type": "text/html"}, lambda key: b"<html>login</html>"),
    "nothing": (200, {}, lambda key: b""),
    "no choices": (200, {}, lambda key: b'{"choices": []}'),
    "a list": (200, {}, lambda key: b"[1, 2]"),
    "no content": (200, {}, lambda key: completion(None, None)),
    "tokens in words": (200, {}, lambda key: completion("{}", {"prompt_tokens": "many"})),
    "tokens below zero": (
        200,
        {},
        lambda key: completion("{}", {"prompt_tokens": -5, "completion_tokens": -5}),
    ),
    "tokens without end": (
        200,
        {},
        lambda key: completion("{}", {"prompt_tokens": 10**30, "completion_tokens": 1}),
    ),
    "wait a year": (429, {"retry-after": "31536000"}, lambda key: b"{}"),
    "wait in words": (429, {"retry-after": "soon"}, lambda key: b"{}"),
    "wait below zero": (429, {"retry-after": "-5"}, lambda key: b"{}"),
    "steering failure": (500, {}, lambda key: b"\x1b[2J boom \xff"),
    "packed without end": (
        200,
        {"content-encoding": "gzip"},
        lambda key: gzip.compress(bytes(20_000_000), 1),
    ),
    "not packed": (200, {"content-encoding": "gzip"}, lambda key: b"plain"),
}


class Endpoint(http.server.BaseHTTPRequestHandler):
    """Answers every question in one way."""

    kind = "nothing"

    def log_message(self, *args) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        status, headers, body = ANSWERS[self.kind]
        content = body(self.headers["authorization"].removeprefix("Bearer "))
        self.send_response(status)
        for name, value in ({"content-type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture(scope="module")
def url():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv(
        "HTTP_PROXY", "http://127.0.0.1:9"
    )  # a loopback address goes through no proxy
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    (tmp_path / "r.csv").write_text(TABLE)
    return tmp_path


ASK = ("annotate", "r.csv", "--out", "a.jsonl", "--annotator", "llm:s.yaml")


def nothing_leaked(place: Path, shown: str) -> None:
    files = [p.read_text(errors="replace") for p in place.iterdir() if p.name != "r.csv"]
    for text in (shown, *files):
        for key in (KEY, KEY[::-1]):
            assert key.lower()[6:14] not in text.lower()


@pytest.mark.parametrize("kind", ANSWERS)
def test_answer(place, url, command, monkeypatch, kind):
    monkeypatch.setattr(Endpoint, "kind", kind)
    (place / "s.yaml").write_text(
        f"{SETTINGS}base_url: {url}\nprices: {{m: {{input: 1, output: 1}}}}\n"
    )
    ended = command(*ASK, cwd=place)
    if ended.code:
        assert len(ended.in_one_line()) < 900
    nothing_leaked(place, ended.out + ended.errors)
    for journal in place.glob("a.*.jsonl"):
        assert not journal.stat().st_mode & 0o077  # report text
    assert command(*ASK, cwd=place).code in (0, 1)  # what was kept is read again


KEYS = {
    "a line end inside": KEY[:10] + "\n" + KEY[10:],
    "a letter beyond ASCII": KEY + "\u00e9",
    "a blank inside": KEY[:10] + " " + KEY[10:],
    "without end": "k" * 100_000,
    "steering": KEY + "\x1b[2J",
}


@pytest.mark.parametrize("name", KEYS)
def test_key(place, url, command, monkeypatch, name):
    monkeypatch.setenv("OPENAI_API_KEY", KEYS[name])
    (place / "s.yaml").write_text(f"{SETTINGS}base_url: {url}\n")
    ended = command(*ASK, cwd=place)
    ended.in_one_line("the value of OPENAI_API_KEY is no API key")
    nothing_leaked(place, ended.out + ended.errors)


def test_key_with_a_line_end(place, url, command, monkeypatch):
    """As a file with a key gives it: the line end is no part of it."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")
    monkeypatch.setattr(Endpoint, "kind", "no content")
    (place / "s.yaml").write_text(f"{SETTINGS}base_url: {url}\n")
    assert command(*ASK, cwd=place).code == 0


ADDRESSES = {
    "a port beyond all": "http://127.0.0.1:99999/v1",
    "a port in words": "http://127.0.0.1:abc/v1",
    "another protocol": "ftp://127.0.0.1/v1",
    "steering": "http://127.0.0.1/\x1b[2J",
    "a blank": "http://127.0.0.1/v 1",
    "no port at all": "http://127.0.0.1:0/v1",
}


@pytest.mark.parametrize("name", ADDRESSES)
def test_address(place, command, name):
    args = (*ASK[:-1], "llm:m", "--base-url", ADDRESSES[name])
    command(*args, cwd=place).in_one_line("is no address; write one such as")


@pytest.mark.parametrize("address", ["http://[::1", "http://", "//x", "https://:443/v1"])
def test_address_with_consent(place, command, address):
    args = (*ASK[:-1], "llm:m", "--allow-external", "--base-url", address)
    command(*args, cwd=place).in_one_line("is no address; write one such as")


FILES = {
    "merged consent": "x: &x {allow_external: true}\n<<: *x\n",
    "consent in capitals": "Allow_External: true\n",
    "consent inside": "llm: {allow_external: true}\n",
    "a list of keys": "api_key_env: [OPENAI_API_KEY]\n",
    "no key": "api_key_env: null\n",
    "a tag": "base_url: !!python/name:os.system\n",
    "prices that are none": "prices: {m: {input: .nan, output: 1}}\n",
    "prices below zero": "prices: {m: {input: -1, output: 1}}\n",
    "questions without end": "concurrency: 1000000000\n",
    "no time": "timeout: 0\n",
    "tries below zero": "attempts: -1\n",
    "an unknown key": "password: x\n",
}


@pytest.mark.parametrize("name", FILES)
def test_settings(place, command, name):
    (place / "s.yaml").write_text("model: m\n" + FILES[name])
    command(*ASK, cwd=place).in_one_line("s.yaml")
    assert sorted(p.name for p in place.iterdir() if not p.name.endswith(".lock")) == [
        "r.csv",
        "s.yaml",
    ]


LINES = {
    "deep": "[" * 100_000,
    "a number": "5",
    "a list": "[1]",
    "nothing": "null",
    "no key": "{}",
    "another object": '{"a": 1}',
    "a number as answer": '{"key": "k", "answer": 5, "prompt_tokens": 1, "answer_tokens": 1}',
    "tokens in words": '{"key": "k", "answer": "", "prompt_tokens": "many", "answer_tokens": 1}',
    "no text": "\x00\x01",
}


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("journal", ["answers", "rejects"])
def test_journal(place, url, command, monkeypatch, name, journal):
    monkeypatch.setattr(Endpoint, "kind", "no content")
    (place / "s.yaml").write_text(f"{SETTINGS}base_url: {url}\n")
    (place / f"a.{journal}.jsonl").write_text(LINES[name] + "\n")
    command(*ASK, cwd=place).in_one_line(f"a.{journal}.jsonl:1", "remove the line and run again")


FORMS = {
    "backwards": KEY[::-1],
    "in capitals": KEY.upper(),
    "with hyphens": "-".join(KEY),
    "with nothing wide": "\u200b".join(KEY),
    "in an address": "".join(f"%{ord(c):02x}" for c in KEY),
    "on a page": "".join(f"&#{ord(c)};" for c in KEY),
    "in JSON": "".join(f"\\u{ord(c):04x}" for c in KEY),
    "in an object": json.dumps({"headers": {"authorization": f"Bearer {KEY}"}}),
    "with full stops": ".".join(KEY[i : i + 4] for i in range(0, len(KEY), 4)),
}


@pytest.mark.parametrize("form", FORMS)
def test_echoed_key(form):
    shown = _redact(f"complaint: {FORMS[form]} refused", KEY)
    assert "[key]" in shown and shown.startswith("complaint:")
    assert KEY not in shown and (form == "in an object" or FORMS[form][8:24] not in shown)
