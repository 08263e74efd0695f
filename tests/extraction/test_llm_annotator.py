"""LLM annotation against a real HTTP server on this machine that speaks chat completions and misbehaves."""

import json
import logging
import multiprocessing
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from r2genkg.extraction.annotation_files import annotation_line, load_annotations
from r2genkg.core.files import R2GenKGError
from r2genkg.extraction.journal import Journal
from r2genkg.extraction.llm_annotator import LLMAnnotator, annotate_with_llm
from r2genkg.extraction.llm_questions import answer_key
from r2genkg.extraction.llm_cost import answer_paths, estimate_run
from r2genkg.extraction.llm_answers import read_entities
from r2genkg.extraction.llm_settings import LLMSettings

WORDS = {
    "small": "concept",
    "large": "concept",
    "left": "concept",
    "right": "concept",
    "pleural": "anatomy",
    "effusion": "disorder_present",
    "lung": "anatomy",
    "opacity": "disorder_present",
    "tube": "devices_present",
}


def is_relations(body: dict) -> bool:
    return "relations that it states" in body["messages"][0]["content"]


def good_answer(body: dict) -> dict:
    """Every known word is an entity; every concept modifies the last term of its sentence."""
    user = body["messages"][1]["content"]
    sentences = {int(n): s for n, s in re.findall(r"^(\d+)\. (.*)$", user, re.M)}
    if not is_relations(body):
        return {
            "sentences": [
                {
                    "number": n,
                    "entities": [
                        {"text": w, "type": WORDS[w.lower()]}
                        for w in re.findall(r"\w+", s)
                        if w.lower() in WORDS
                    ],
                }
                for n, s in sentences.items()
            ]
        }
    terms = dict(zip(sentences, re.findall(r"^   (.*)$", user, re.M), strict=True))
    numbered = {n: re.findall(r"(\d+) \S+ \((\w+)\)", t) for n, t in terms.items()}
    return {
        "sentences": [
            {
                "number": n,
                "relations": [
                    {"source": int(k), "target": int(t[-1][0]), "type": "modify"}
                    for k, kind in t[:-1]
                    if kind == "concept"
                ],
            }
            for n, t in numbered.items()
        ]
    }


def completion(text: str, finish: str = "stop", usage: bool = True) -> dict:
    reply = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [
            {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
        ],
    }
    return reply | (
        {"usage": {"prompt_tokens": 700, "completion_tokens": 50, "total_tokens": 750}}
        if usage
        else {}
    )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        if not raw:
            return  # the client was killed
        body = json.loads(raw)
        with self.server.guard:
            n = len(self.server.log)
            self.server.log.append((time.monotonic(), body, self.headers))
        try:
            self.server.behave(self, n, body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def reply(
        self,
        body,
        status: int = 200,
        headers: dict | None = None,
        kind: str = "application/json",
        length: int | None = None,
    ):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for k, v in {
            "Content-Type": kind,
            "Content-Length": str(len(data) if length is None else length),
            **(headers or {}),
        }.items():
            self.send_header(k, v)
        self.end_headers()
        self.wfile.write(data)

    def good(self, body: dict):
        self.reply(completion(json.dumps(good_answer(body))))

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    """A server; `.behave(handler, number of the request, body)` decides what it does."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads, httpd.guard, httpd.log = True, threading.Lock(), []
    httpd.behave = lambda handler, n, body: handler.good(body)
    httpd.handle_error = lambda *args: None  # killed clients
    threading.Thread(
        target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    ).start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def settings_for(server, **changes) -> LLMSettings:
    values = {
        "model": "m",
        "base_url": f"http://127.0.0.1:{server.server_port}/v1",
        "prices": {"m": {"input": 2.0, "output": 8.0}},
        "timeout": 5.0,
        "first_wait": 0.01,
        "concurrency": 4,
        "attempts": 4,
    } | changes
    return LLMSettings.model_validate(values)


REPORTS = [
    (f"r{i}", f"Small left pleural effusion {i}. There is an opacity in the right lung.")
    for i in range(6)
]


def first_requests_fail(times: int, how):
    """Behaviour: the first `times` requests go to `how(handler, body)`, the others are answered."""
    return lambda handler, n, body: how(handler, body) if n < times else handler.good(body)


def drip(handler, body):
    """A whole and right answer, one byte at a time, far too slowly."""
    data = json.dumps(completion(json.dumps(good_answer(body)))).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    for byte in data:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(0.05)


TROUBLES = {
    "429": lambda h, b: h.reply({"error": {"message": "slow down"}}, 429, {"Retry-After": "0.1"}),
    "500": lambda h, b: h.reply({"error": {"message": "oops"}}, 500),
    "503 with a page": lambda h, b: h.reply(b"<html>busy</html>", 503, kind="text/html"),
    "hangs": lambda h, b: time.sleep(1.2),
    "slow stream": drip,
    "connection cut in the body": lambda h, b: (
        h.reply(b'{"id": "1", "cho', length=500),
        setattr(h, "close_connection", True),
    ),
    "body that is no JSON": lambda h, b: h.reply(b'{"id": "1", "choi'),
    "page instead of JSON": lambda h, b: h.reply(b"<html>hello</html>", kind="text/html"),
    "JSON without choices": lambda h, b: h.reply({"id": "1"}),
    "no choice": lambda h, b: h.reply({"id": "1", "choices": []}),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_passing_trouble_leaves_no_trace(server, tmp_path, name):
    quiet = annotate_with_llm(REPORTS, tmp_path / "quiet.jsonl", settings_for(server))
    server.log.clear()
    server.behave = first_requests_fail(3, TROUBLES[name])
    summary = annotate_with_llm(
        REPORTS,
        tmp_path / "a.jsonl",
        settings_for(server, timeout=0.6 if name in ("hangs", "slow stream") else 5.0),
    )
    assert summary.finished == 6 and not summary.failed and summary.retries >= 3
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "quiet.jsonl").read_bytes()
    assert summary.calls == quiet.calls == 12 and summary.repairs == {}


def test_retry_after_stops_all_calls(server, tmp_path):
    annotate_with_llm(
        REPORTS, tmp_path / "warm.jsonl", settings_for(server)
    )  # the client's first call is slow
    server.log.clear()
    server.behave = first_requests_fail(
        1, lambda h, b: h.reply({"error": {"message": "slow down"}}, 429, {"Retry-After": "1"})
    )
    assert annotate_with_llm(REPORTS, tmp_path / "a.jsonl", settings_for(server)).finished == 6
    start, later = server.log[0][0], [t for t, _, _ in server.log if t > server.log[0][0] + 0.5]
    assert min(later) - start >= 1.0  # nobody asked while the pause was on
    assert len(server.log) - len(later) <= 8  # only what was under way


BAD_ANSWERS = {
    "cut by the limit": (
        completion('{"sentences": [{"number": 1, "enti', "length"),
        "cut after max_answer_tokens=4096",
    ),
    "cut": (completion('{"sentences": [{"number": 1, "enti'), "the JSON is cut or broken"),
    "wrong schema": (
        completion('{"weather": ["fine"], "wind": 3}'),
        "no sentence of the report in the answer",
    ),
    "a list of numbers": (completion("[1, 2, 3]"), "no sentence of the report in the answer"),
    "prose": (completion("I cannot help with that."), "no JSON in the answer"),
    "null": (completion(None), "no JSON in the answer"),
    "other words": (
        completion(
            '{"sentences": [{"number": 1, "entities": [{"text": "spine", "type": "anatomy"}]}]}'
        ),
        "no listed term with a known type stands in its sentence",
    ),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_bad_answers_are_asked_again_then_rejected(server, tmp_path, name):
    bad, reason = BAD_ANSWERS[name]
    server.behave = first_requests_fail(2, lambda h, b: h.reply(bad))
    summary = annotate_with_llm(REPORTS[:1], tmp_path / "once.jsonl", settings_for(server))
    assert summary.finished == 1 and summary.calls == 4  # 2 bad, entities, relations
    assert reason in server.log[1][1]["messages"][1]["content"]  # the model gets the reason
    server.behave = lambda h, n, b: h.reply(bad)
    summary = annotate_with_llm(REPORTS[:1], tmp_path / "always.jsonl", settings_for(server))
    assert (summary.finished, summary.rejected, summary.calls) == (
        0,
        1,
        3,
    ) and summary.failures == {"r0": reason}
    rejects = Journal(answer_paths(tmp_path / "always.jsonl")[1]).rows
    assert [r["reason"] for r in rejects] == [reason] * 3 and rejects[0]["answer"] == (
        bad["choices"][0]["message"]["content"] or ""
    )
    asked = len(server.log)
    assert (
        annotate_with_llm(REPORTS[:1], tmp_path / "always.jsonl", settings_for(server)).calls == 0
        and len(server.log) == asked
    )
    server.behave = lambda h, n, b: h.good(b)
    assert (
        annotate_with_llm(
            REPORTS[:1], tmp_path / "always.jsonl", settings_for(server, retry_rejects=True)
        ).finished
        == 1
    )


def test_bad_relations_reject_the_report(server, tmp_path):
    server.behave = lambda h, n, b: (
        h.reply(completion("no"))
        if is_relations(b) and "effusion 3" in b["messages"][1]["content"]
        else h.good(b)
    )
    summary = annotate_with_llm(REPORTS, tmp_path / "a.jsonl", settings_for(server))
    assert summary.rejected == 1 and [id for id, _ in load_annotations(tmp_path / "a.jsonl")] == [
        "r0",
        "r1",
        "r2",
        "r4",
        "r5",
    ]


def test_careless_answers_are_repaired_and_counted(server, tmp_path):
    nested = {
        "Small left pleural effusion.": {
            "terms": {"Small": "concept", "left": {"type": "concept"}, "anatomy": ["pleural"]},
            "effusion": "disorder present",
        },
        "Tube removed.": {"Tube": "device", "catheter": "device_present", "removed": "verb"},
    }
    relations = {
        "Small left pleural effusion.": [
            {"Small": "effusion", "relation": "modifies"},
            {"source": "effusion", "target": "pleural", "relation": "located in"},
            {"source": "effusion", "target": "lung", "relation": "located_at"},
        ]
    }
    server.behave = lambda h, n, b: h.reply(
        completion(
            "Here you are:\n```json\n"
            + json.dumps(relations if is_relations(b) else nested)
            + "\n```"
        )
    )
    summary = annotate_with_llm(
        [("r", "Small left pleural effusion. Tube removed.")],
        tmp_path / "a.jsonl",
        settings_for(server),
    )
    ((_, (first, second)),) = load_annotations(tmp_path / "a.jsonl")
    assert [first.span(e) for e in first.entities] == ["Small", "left", "pleural", "effusion"]
    assert [e.rexkg_type for e in first.entities] == [
        "concept",
        "concept",
        "anatomy",
        "disorder_present",
    ]
    assert [(r.head, r.tail, r.type) for r in first.relations] == [
        (0, 3, "modify"),
        (3, 2, "located_at"),
    ]
    assert [(second.span(e), e.rexkg_type) for e in second.entities] == [
        ("Tube", "devices_notpresent")
    ]
    assert (
        summary.repairs["terms not in the sentence"] == 1
        and summary.repairs["terms of unknown type"] == 1
    )
    assert (
        summary.repairs["relations that fit no entities or type"] == 1
        and summary.repairs["relation types repaired"] == 2
    )


def test_server_without_structured_outputs(server, tmp_path, caplog):
    def old(handler, n, body):
        if "response_format" in body:
            handler.reply(
                {
                    "error": {
                        "message": f"unknown field response_format {body['response_format']['type']}"
                    }
                },
                400,
            )
        elif "max_tokens" in body:
            handler.reply({"error": {"message": "max_tokens: use max_completion_tokens"}}, 400)
        elif "temperature" in body:
            handler.reply(
                {"error": {"message": "temperature does not support 0 with this model"}}, 400
            )
        else:
            handler.good(body)

    server.behave = old
    with caplog.at_level(logging.WARNING, "r2genkg"):
        summary = annotate_with_llm(
            REPORTS, tmp_path / "a.jsonl", settings_for(server, concurrency=1)
        )
    assert summary.finished == 6 and len(server.log) == 12 + 5  # each refusal is met once
    assert len(caplog.records) == 5


def test_other_refusals_fail_one_report(server, tmp_path):
    server.behave = lambda h, n, b: (
        h.reply({"error": {"message": "prompt too long"}}, 400)
        if "effusion 2" in b["messages"][1]["content"]
        else h.good(b)
    )
    summary = annotate_with_llm(REPORTS, tmp_path / "a.jsonl", settings_for(server))
    assert (
        (summary.finished, summary.failed) == (5, 1)
        and "prompt too long" in summary.failures["r2"]
        and not (tmp_path / "a.jsonl").exists()
    )
    server.behave = lambda h, n, b: h.good(b)
    assert annotate_with_llm(REPORTS, tmp_path / "a.jsonl", settings_for(server)).calls == 2


@pytest.mark.parametrize(
    "status,error,said",
    [
        (
            401,
            {
                "message": "Incorrect API key provided: KEY. Find it at ...",
                "code": "invalid_api_key",
            },
            "refuses model",
        ),
        (403, {"message": "KEY may not use this model"}, "refuses model"),
        (404, {"message": "no such model"}, "no such model"),
        (
            429,
            {"message": "You exceeded your quota", "code": "insufficient_quota"},
            "no credit left",
        ),
        (429, {"message": "daily limit"}, "asks to wait 3600 s"),
    ],
)
def test_final_refusals_end_the_run(server, tmp_path, monkeypatch, caplog, status, error, said):
    key = "local-secret-4711"
    monkeypatch.setenv("R2GENKG_TEST_KEY", key)
    error = {**error, "message": error["message"].replace("KEY", key)}
    server.behave = lambda h, n, b: (
        h.reply(
            {"error": error}, status, {"Retry-After": "3600"} if said.startswith("asks") else {}
        )
        if n > 1
        else h.good(b)
    )
    with (
        pytest.raises(R2GenKGError, match=said) as caught,
        caplog.at_level(logging.DEBUG, "r2genkg"),
    ):
        annotate_with_llm(
            REPORTS,
            tmp_path / "a.jsonl",
            settings_for(server, api_key_env="R2GENKG_TEST_KEY", concurrency=1),
        )
    assert (
        server.log[0][2]["Authorization"] == f"Bearer {key}" and len(server.log) == 3
    )  # it ended at once
    everything = (
        str(caught.value)
        + repr(caught.value.__context__ and caught.value)
        + caplog.text
        + "".join(p.read_text() for p in tmp_path.iterdir() if p.is_file())
    )
    assert key not in everything and not (tmp_path / "a.jsonl").exists()
    assert len(Journal(answer_paths(tmp_path / "a.jsonl")[0]).rows) == 2  # what was paid is kept


def test_dead_endpoint_ends_after_a_few_reports(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        port = httpd.server_port  # closed again
    settings = LLMSettings(
        model="m",
        base_url=f"http://127.0.0.1:{port}/v1",
        attempts=2,
        first_wait=0.01,
        max_failures=3,
        concurrency=1,
    )
    summary = annotate_with_llm(
        [(f"r{i}", f"Effusion {i}.") for i in range(50)], tmp_path / "a.jsonl", settings
    )
    assert (
        summary.failed == 3
        and summary.left == 47
        and "one after the other" in summary.stopped
        and not summary.written
    )


def test_nothing_leaves_this_machine(server, tmp_path, monkeypatch):
    external, out = (
        LLMSettings(model="m", base_url="http://example.invalid/v1"),
        tmp_path / "a.jsonl",
    )
    for source, word in (
        ("", "not this machine"),
        ("chexpert-plus", "Stanford"),
        ("mimic-cxr", "PhysioNet"),
    ):
        with pytest.raises(R2GenKGError, match=word):
            annotate_with_llm(REPORTS, out, external, [source])
    with pytest.raises(R2GenKGError, match="Stanford"):
        annotate_with_llm([("train/patient00012/study1/view1_frontal.jpg", "x")], out, external)
    with pytest.raises(R2GenKGError, match="allow-external"):
        LLMAnnotator(external)
    assert not list(tmp_path.iterdir())
    # neither a proxy nor a redirect of a local endpoint carries text away
    other = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    other.daemon_threads, other.guard, other.log, other.behave = (
        True,
        threading.Lock(),
        [],
        lambda h, n, b: h.good(b),
    )
    threading.Thread(target=other.serve_forever, daemon=True).start()
    elsewhere = f"http://127.0.0.1:{other.server_port}"
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, elsewhere)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert annotate_with_llm(REPORTS, tmp_path / "a.jsonl", settings_for(server)).finished == 6
    server.behave = lambda h, n, b: h.reply(
        b"", 307, {"Location": f"{elsewhere}/v1/chat/completions"}
    )
    summary = annotate_with_llm(
        REPORTS, tmp_path / "b.jsonl", settings_for(server, attempts=1, max_failures=2)
    )
    assert not summary.finished and not other.log
    other.shutdown()


@pytest.mark.parametrize("concurrency", [1, 5])
def test_max_cost_is_never_exceeded(server, tmp_path, concurrency):
    reports = [(f"r{i}", f"Small left pleural effusion {i}.") for i in range(30)]
    rng = random.Random(concurrency)

    def pricey(handler, n, body):
        answer = completion(json.dumps(good_answer(body)))
        answer["usage"] = {
            "prompt_tokens": 700,
            "completion_tokens": rng.randint(1, 1000),
            "total_tokens": 0,
        }
        bills.append((700 * 2 + answer["usage"]["completion_tokens"] * 8) / 1e6)
        handler.reply(answer)

    bills: list[float] = []
    server.behave = pricey
    for limit in (0.05, 0.1, 0.15):
        settings = settings_for(
            server, max_cost=limit, max_answer_tokens=1000, concurrency=concurrency
        )
        summary = annotate_with_llm(reports, tmp_path / "a.jsonl", settings)
        assert (
            sum(bills) <= limit
            and summary.total_cost == pytest.approx(sum(bills))
            and "max_cost" in summary.stopped
            and summary.left
        )
        assert sum(bills) > limit - 0.02 * concurrency  # and the money is used
    assert annotate_with_llm(reports, tmp_path / "a.jsonl", settings_for(server)).finished == 30
    assert len(bills) == 60


def test_answers_without_an_answer_in_time_count_against_the_budget(server, tmp_path):
    server.behave = lambda h, n, b: time.sleep(0.8)
    settings = settings_for(
        server, max_cost=0.03, max_answer_tokens=1000, timeout=0.3, attempts=50, concurrency=1
    )
    summary = annotate_with_llm(REPORTS, tmp_path / "a.jsonl", settings)
    assert "max_cost" in summary.stopped and 1 <= len(server.log) <= 3


def test_dry_run_asks_for_prices_and_sends_nothing(server, tmp_path):
    with pytest.raises(R2GenKGError, match="no price"):
        estimate_run(REPORTS, tmp_path / "a.jsonl", settings_for(server, prices={}))
    with pytest.raises(R2GenKGError, match="no price"):
        annotate_with_llm(
            REPORTS, tmp_path / "a.jsonl", settings_for(server, prices={}, max_cost=1)
        )
    estimate = estimate_run(
        [*REPORTS, ("copy", REPORTS[0][1])], tmp_path / "a.jsonl", settings_for(server)
    )
    assert (estimate.reports, estimate.distinct, estimate.calls) == (7, 6, 12) and not server.log
    assert estimate.cost == pytest.approx(
        (estimate.prompt_tokens * 2 + estimate.answer_tokens * 8) / 1e6
    )
    annotate_with_llm(REPORTS[:2], tmp_path / "a.jsonl", settings_for(server))
    assert estimate_run(REPORTS, tmp_path / "a.jsonl", settings_for(server)).calls == 8


def test_one_run_at_a_time(server, tmp_path):
    started, go = threading.Event(), threading.Event()

    def slow(handler, n, body):
        started.set()
        go.wait(5)
        handler.good(body)

    server.behave = slow
    first = threading.Thread(
        target=annotate_with_llm,
        args=(REPORTS, tmp_path / "a.jsonl", settings_for(server, timeout=30)),
    )
    first.start()
    assert started.wait(10)
    with pytest.raises(R2GenKGError, match="another run"):
        annotate_with_llm(REPORTS, tmp_path / "a.jsonl", settings_for(server))
    go.set()
    first.join()
    with pytest.raises(R2GenKGError, match="twice"):
        annotate_with_llm([REPORTS[0], REPORTS[0]], tmp_path / "a.jsonl", settings_for(server))


def test_damaged_journal_is_named(server, tmp_path):
    answers = answer_paths(tmp_path / "a.jsonl")[0]
    annotate_with_llm(REPORTS, tmp_path / "a.jsonl", settings_for(server))
    lines = answers.read_bytes().splitlines(keepends=True)
    answers.write_bytes(b"".join(lines[:2]) + b"{broken\n" + b"".join(lines[2:]))
    with pytest.raises(R2GenKGError, match=r"a\.answers\.jsonl:3"):
        annotate_with_llm(REPORTS, tmp_path / "a.jsonl", settings_for(server))


def run_in_process(out, port: int, n: int) -> None:
    """One run, in a process that will be killed."""
    settings = LLMSettings(
        model="m",
        base_url=f"http://127.0.0.1:{port}/v1",
        prices={"m": {"input": 2.0, "output": 8.0}},
        concurrency=3,
    )
    annotate_with_llm(many_reports(n), out, settings)


def many_reports(n: int) -> list[tuple[str, str]]:
    return [
        (f"r{i}", f"Small left pleural effusion {i}. There is an opacity in the right lung.")
        for i in range(n)
    ]


def test_kill_nine_ten_times(server, tmp_path):
    """Ten kills at random moments: the resumed result is the undisturbed one, and no saved answer is asked again."""
    n, rng, out = 80, random.Random(7), tmp_path / "a.jsonl"
    server.behave = lambda h, k, b: (time.sleep(0.005), h.good(b))
    run_in_process(tmp_path / "quiet.jsonl", server.server_port, n)
    server.log.clear()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "r2genkg.extraction.llm_annotator",
            "openai",
            "openai.types.chat",
            "tenacity",
            "spacy.lang.en",
        ]
    )
    kept_at_kill, kills = [], 0
    while kills < 10:
        target = len(server.log) + rng.randint(4, 16)
        process = context.Process(target=run_in_process, args=(out, server.server_port, n))
        process.start()
        while len(server.log) < target and process.is_alive():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        assert process.is_alive(), "the run ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL and not out.exists()
        kills += 1
        answers = answer_paths(out)[0]
        whole = answers.read_bytes() if answers.exists() else b""
        if kills in (4, 8):
            with open(answers, "ab") as f:
                f.write(b'{"key": "00')  # and a line was torn
        kept_at_kill.append(
            (
                len(server.log),
                {json.loads(x)["key"] for x in whole[: whole.rfind(b"\n") + 1].splitlines()},
            )
        )
    settings = settings_for(server)
    summary = annotate_with_llm(many_reports(n), out, settings)
    assert [len(kept) for _, kept in kept_at_kill] == sorted(
        len(kept) for _, kept in kept_at_kill
    ) and len(kept_at_kill[-1][1]) > 20
    assert (
        out.read_bytes() == (tmp_path / "quiet.jsonl").read_bytes()
        and summary.finished == n
        and summary.reused > 0
    )
    keys = [
        answer_key(
            settings, "relations" if is_relations(b) else "entities", b["messages"][1]["content"]
        )
        for _, b, _ in server.log
    ]
    for asked_before, kept in kept_at_kill:
        assert not kept & set(keys[asked_before:])
    assert len(set(keys)) == 2 * n and max(Counter(keys).values()) <= 11


def test_annotator_object_remembers(server, tmp_path):
    settings = settings_for(server, answers=str(tmp_path / "paid.jsonl"))
    first = LLMAnnotator(settings).annotate_reports([t for _, t in REPORTS])
    asked = len(server.log)
    assert (
        LLMAnnotator(settings).annotate_reports([t for _, t in REPORTS]) == first
        and len(server.log) == asked
    )
    assert (
        LLMAnnotator(settings).annotate(["Small effusion.", "Nothing."])[0].entities
        and len(server.log) > asked
    )
    server.behave = lambda h, n, b: h.reply({"error": {"message": "oops"}}, 500)
    with pytest.raises(R2GenKGError, match="oops"):
        LLMAnnotator(settings_for(server, attempts=1)).annotate(["Effusion."])


def test_one_question_is_asked_once(server, tmp_path):
    """Reports that differ by a sentence without terms share one question about relations, also while it is asked."""
    reports = [(f"r{i}", "Small effusion." + " Nothing else." * i) for i in range(4)]

    def slow(handler, n, body):
        if is_relations(body):
            time.sleep(0.2)
        handler.good(body)

    server.behave = slow
    summary = annotate_with_llm(reports, tmp_path / "a.jsonl", settings_for(server))
    assert sum(is_relations(body) for _, body, _ in server.log) == 1 and (
        summary.calls,
        summary.reused,
    ) == (5, 3)
    assert annotate_with_llm(reports, tmp_path / "a.jsonl", settings_for(server)).calls == 0


def test_lost_answers_are_reported(server, caplog):
    server.behave = lambda h, n, b: h.reply(completion("rubbish"))
    assert (
        LLMAnnotator(settings_for(server, reasks=0))
        .annotate_reports(["Large effusion."])[0][0]
        .entities
        == ()
    )
    assert (
        "no usable answer" in caplog.text
        and "1 sentences stay without entities" in caplog.text
        and "Large" not in caplog.text
    )


def test_a_dry_run_cuts_nothing(server, tmp_path):
    """A row that another process is writing stays as it is until something is added."""
    answers, _, _ = answer_paths(tmp_path / "a.jsonl")
    answers.write_bytes(b'{"half a row"')
    estimate_run(REPORTS, tmp_path / "a.jsonl", settings_for(server))
    assert answers.read_bytes() == b'{"half a row"'


def test_real_answers(shared_data):
    """All of ReXKG's published answers can be read; what is repaired and dropped is what REXKG.md counts."""
    tree = json.loads(shared_data("rexkg", "gpt4o_entities_500.json").read_text())
    counts, entities = Counter(), 0
    for record in tree.values():
        sentences = list(record["res"])
        if not any(record["res"].values()):
            continue
        read = read_entities(json.dumps(record["res"]), sentences, counts)
        assert len(read) == len(sentences) and annotation_line("r", read)
        entities += sum(len(a.entities) for a in read)
    terms = sum(len(t) for r in tree.values() for t in r["res"].values())
    assert (
        entities > 0.99 * terms
        and 0.01 < counts["types repaired"] / terms < 0.05
        and counts["terms not in the sentence"] < 0.005 * terms
    )


def test_command_asks_the_local_server(server, tmp_path, capsys):
    from r2genkg.use.commands import main
    from r2genkg.data.study import Study, save_studies

    save_studies([Study(id, (), text) for id, text in REPORTS], tmp_path / "studies.parquet")
    local = [
        "--annotator",
        "llm:m",
        "--base-url",
        f"http://127.0.0.1:{server.server_port}/v1",
        "--price-input",
        "2",
        "--price-output",
        "8",
    ]
    command = [
        "annotate",
        str(tmp_path / "studies.parquet"),
        "--out",
        str(tmp_path / "a.jsonl"),
        *local,
        "--json",
    ]

    def call(*more: str) -> dict:
        with pytest.raises(SystemExit) as end:
            main([*command, *more])
        assert not end.value.code
        return json.loads(capsys.readouterr().out)

    dry = call("--dry-run", "--sample", "4")
    assert dry["reports"] == 4 and dry["calls"] == 8 and dry["cost"] > 0 and not server.log
    first = call("--sample", "4", "--max-cost", "1")
    assert (
        first["finished"] == 4
        and first["total_cost"] > 0
        and len(list(load_annotations(tmp_path / "a.jsonl"))) == 4
    )
    again = call()
    assert again["reused"] == first["calls"] and again["finished"] == 6
    with pytest.raises(SystemExit) as end:
        main([*command[:4], "--annotator", "llm:m", "--base-url", "https://api.example.org/v1"])
    assert end.value.code == 1 and "--allow-external" in capsys.readouterr().err
