"""Report text leaves the machine only if the command line says so, with a key that was meant for it.

Addresses that look local, files that grant themselves what only the user can grant, keys echoed in every form.
"""

import base64
import random
import string
from pathlib import Path

import pytest

from r2genkg.core.config import load_config
from r2genkg.core.files import R2GenKGError
from r2genkg.extraction.annotate import get_annotator
from r2genkg.extraction.llm_client import _redact
from r2genkg.extraction.llm_settings import (
    LLMSettings,
    check_endpoint,
    is_local,
    load_llm_settings,
    user_consent,
)
from r2genkg.training.preflight import preflight

CONSENTS = ["true", "True", "yes", "on", "1", "'true'", "!!bool true", "[1]", "{a: 1}"]
SECRETS = [
    "AWS_SECRET_ACCESS_KEY",
    "GITHUB_TOKEN",
    "HF_TOKEN",
    "SSH_AUTH_SOCK",
    "PATH",
    "HOME",
    "openai_api_key",
    "OPENAI_API_KEY ",
    "OPENAI_API_KEY\u200b",
]


def settings_file(folder: Path, *lines: str) -> Path:
    file = folder / "llm.yaml"
    file.write_text(
        "model: m\nbase_url: https://evil.example/v1\n" + "".join(f"{x}\n" for x in lines)
    )
    return file


@pytest.mark.parametrize("consent", CONSENTS)
def test_a_file_cannot_consent(tmp_path, consent):
    file = settings_file(tmp_path, f"allow_external: {consent}")
    with pytest.raises(R2GenKGError, match="--allow-external on the command line"):
        load_llm_settings(str(file))


@pytest.mark.parametrize("name", SECRETS)
def test_a_file_cannot_name_any_variable(tmp_path, name):
    file = settings_file(tmp_path, f"api_key_env: '{name}'")
    with pytest.raises(R2GenKGError, match="--api-key-env"):
        load_llm_settings(str(file))
    if name.strip() == name and name:
        assert load_llm_settings(str(file), name).api_key_env == name  # named by the user


@pytest.mark.parametrize("where", ["annotator", "preset", "command", "build", "trace"])
def test_every_way_in(tmp_path, run, where):
    """A settings file, however it is reached, sends nothing."""
    file, table = settings_file(tmp_path), tmp_path / "r.csv"
    table.write_text("id,image,findings\na,a.png,Small effusion.\n")
    if where == "annotator":
        with pytest.raises(R2GenKGError, match="evil.example is not this machine"):
            get_annotator(f"llm:{file}")
        with user_consent():
            assert get_annotator(f"llm:{file}")
        return
    if where == "preset":
        config = load_config("demo", [f"graph.annotator=llm:{file}"])
        with pytest.raises(R2GenKGError, match="evil.example is not this machine"):
            preflight(config, ("studies", "m3kg"))
        return
    args = {
        "command": ["annotate", table, "--annotator", f"llm:{file}", "--out", tmp_path / "a.jsonl"],
        "build": ["kg", "build", "--studies", table, "--annotator", f"llm:{file}", "--out", "g"],
        "trace": ["kg", "trace", "g", "effusion", "--studies", table, "--annotator", f"llm:{file}"],
    }[where]
    assert "not" in run(*args, cwd=tmp_path, expect=1).stderr


LOCAL = ["http://localhost:8000/v1", "http://127.0.0.1", "http://127.1.2.3:9/v1", "http://[::1]/v1"]
ELSEWHERE = [
    "https://api.openai.com/v1",
    "http://localhost.evil.example/v1",
    "http://127.0.0.1.nip.io/v1",
    "http://localhost@evil.example/v1",
    "http://127.0.0.1:80@evil.example/v1",
    "http://evil.example#@localhost/",
    "http://evil.example?@localhost/",
    "http://evil.example/@localhost/",
    "http://evil.example\\@localhost.example/",
    "http://2130706433/v1",
    "http://0x7f.1/v1",
    "http://127.1/v1",
    "http://[::ffff:8.8.8.8]/v1",
    "http://[fe80::1%25eth0]/v1",
    "http://10.0.0.1/v1",
    "http://host.docker.internal/v1",
    "http://ip6-localhost/v1",
    "http://\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3.example/v1",
    "//localhost.example",
    "localhost:8000/v1",
    "file:///etc/passwd",
]


@pytest.mark.parametrize("url", LOCAL)
def test_local(url):
    httpx = pytest.importorskip("httpx")
    check_endpoint(LLMSettings(model="m", base_url=url))
    assert is_local(f"http://{httpx.URL(url).netloc.decode()}/")  # the client asks the same host


@pytest.mark.parametrize("url", ELSEWHERE)
def test_elsewhere(url):
    with pytest.raises(R2GenKGError, match="not this machine"):
        check_endpoint(LLMSettings(model="m", base_url=url))


@pytest.mark.parametrize("url", ["http://0.0.0.0:8000/v1", "http://0/v1"])
@pytest.mark.parametrize("allowed", [False, True])
def test_address_to_listen_on(url, allowed):
    with pytest.raises(R2GenKGError, match="listens on, not one to ask; write 127.0.0.1"):
        check_endpoint(LLMSettings(model="m", base_url=url, allow_external=allowed))


KEY = "sk2-" + "".join(random.Random(0).choices(string.ascii_letters + string.digits, k=40))
FORMS = {
    "plain": KEY,
    "in a sentence": f"Incorrect API key provided: {KEY}.",
    "quoted": f"'{KEY}'",
    "bearer": f"Authorization: Bearer {KEY}",
    "masked in the middle": f"{KEY[:6]}****{KEY[-4:]}",
    "masked, dots": f"{KEY[:4]}...{KEY[-4:]}",
    "masked, ellipsis": f"{KEY[:4]}\u2026{KEY[-4:]}",
    "masked, bullets": f"{KEY[:4]}\u2022\u2022\u2022\u2022{KEY[-4:]}",
    "masked, x": f"{KEY[:4]}xxxxxxxx{KEY[-4:]}",
    "only the end": f"********{KEY[-4:]}",
    "first half": KEY[:20],
    "second half": KEY[20:],
    "base64": base64.b64encode(KEY.encode()).decode(),
    "base64, url": base64.urlsafe_b64encode(KEY.encode()).decode(),
    "base64 of a header": base64.b64encode(f"Bearer {KEY}".encode()).decode(),
    "base64 of user and key": base64.b64encode(f"u:{KEY}".encode()).decode(),
    "base64 of key and newline": base64.b64encode(f"{KEY}\n".encode()).decode(),
    "hex": KEY.encode().hex(),
    "json": f'{{"key":"{KEY}"}}',
    "url": f"https://x/v1?key={KEY}&a=1",
    "cut lines": f"{KEY[:22]}\n{KEY[22:]}",
}


@pytest.mark.parametrize("form", FORMS)
def test_echoed_key(form):
    shown = _redact(f"complaint: {FORMS[form]} refused", KEY)
    telling = [KEY[i : i + 8] for i in range(len(KEY) - 7)]
    assert not any(part in shown for part in telling) and KEY[-4:] not in shown, shown
    assert FORMS[form].encode().hex()[:40] not in shown and shown.startswith("complaint:")
    if form.startswith(("base64", "hex")):
        assert FORMS[form] not in shown and "[key]" in shown


@pytest.mark.parametrize(
    "text", ["no such model: llama", "rate limit reached, wait 20 s", "context of 8192 tokens ..."]
)
def test_other_messages_stay(text):
    assert _redact(text, KEY) == text
