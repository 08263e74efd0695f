"""Inputs made to do harm.

Pickles that run programs, archives that climb or burst, answers of a model gone astray, markup in reports.

Nothing is executed, nothing is written outside its folder, and every page shows markup as text.
"""

import gzip
import io
import json
import os
import pickle
import random
import re
import tarfile
import zipfile
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from PIL import Image
from r2genkg.text.chexbert import read_checkpoint
from r2genkg.data.study import LABELS, Study
from r2genkg.core.files import R2GenKGError
from r2genkg.data.archives import MAX_MEMBER, unpack
from r2genkg.extraction.repair import known_relation
from r2genkg.model.qformer import read_tensors
from r2genkg.data.annotation import SentenceAnnotation
from r2genkg.use.report import ExplainedReport, GeneratedReport, RetrievedToken, BankToken
from r2genkg.use.evidence import SentenceEvidence
from r2genkg.core.weights import load_tensors
from r2genkg.vision.retrieval_audit import Retrieval
from r2genkg.vision.audit_form import audit_form
from r2genkg.vision.vision_tokens import TOKEN_COLUMNS, VisionTokens
from r2genkg.extraction.llm_answers import UnusableAnswer, read_entities, read_relations
from r2genkg.use.pages import board_row, page, page_of, write_reports

import numpy as np
import pandas as pd
import pytest
import torch


# --- pickles that run programs --------------------------------------------------------------------


class Harm:
    """Unpickling it would call `function(*args)`."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def harms(mark: Path) -> dict[str, object]:
    return {
        "os.system": Harm(os.system, f"touch {mark}"),
        "open": Harm(open, str(mark), "w"),
        "eval": Harm(eval, f"open({str(mark)!r}, 'w')"),
        "exec": Harm(exec, f"open({str(mark)!r}, 'w')"),
        "mkdir": Harm(os.mkdir, str(mark)),
        "path": Harm(Path.touch, mark),
    }


def saved(value: object, form: str, file: Path) -> None:
    if form == "pickle":
        file.write_bytes(pickle.dumps(value))
    elif form == "protocol 0":
        file.write_bytes(pickle.dumps(value, 0))
    elif form == "torch":
        torch.save(value, file)
    elif form == "torch, old":
        torch.save(value, file, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("place", ["whole", "in the model", "beside the model"])
@pytest.mark.parametrize("form", ["pickle", "protocol 0", "torch", "torch, old"])
@pytest.mark.parametrize("kind", list(harms(Path("x"))))
@pytest.mark.filterwarnings("ignore")
def test_pickle_is_not_executed(tmp_path, kind, form, place):
    mark = tmp_path / "harm"
    harm = harms(mark)[kind]
    value = {
        "whole": harm,
        "in the model": {"model": {"a": torch.ones(2), "b": harm}},
        "beside the model": {"model": {"a": torch.ones(2)}, "config": harm},
    }[place]
    for name, read in (
        ("x.pth", read_tensors),
        ("x.pth", read_checkpoint),
        ("x.safetensors", load_tensors),
        ("x.safetensors", read_tensors),
    ):
        saved(value, form, tmp_path / name)
        with pytest.raises(R2GenKGError) as caught:
            read(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
        assert not mark.exists(), f"{read.__name__} ran the program in {name}"


# --- archives that climb, link, burst -------------------------------------------------------------


def entry(name: str, data: bytes = b"x", **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def tgz(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


GOOD = entry("good.xml")
ARCHIVES = {
    "parent": lambda: tgz(GOOD, entry("../evil.xml")),
    "parents": lambda: tgz(entry("../../../../tmp/evil.xml")),
    "inner": lambda: tgz(entry("a/../../evil.xml")),
    "absolute": lambda: tgz(entry("/tmp/r2genkg_evil.xml")),
    "drive": lambda: tgz(entry("C:\\evil.xml")),
    "backslash": lambda: tgz(entry("..\\evil.xml")),
    "newline": lambda: tgz(entry("a\nb.xml")),
    "control": lambda: tgz(entry("a\x1bb.xml")),
    "symbolic link": lambda: tgz(entry("l.xml", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
    "hard link": lambda: tgz(entry("l.xml", b"", type=tarfile.LNKTYPE, linkname="../x")),
    "device": lambda: tgz(entry("d.xml", b"", type=tarfile.CHRTYPE)),
    "pipe": lambda: tgz(entry("p.xml", b"", type=tarfile.FIFOTYPE)),
    "link, then through it": lambda: tgz(
        entry("d.png", b"", type=tarfile.SYMTYPE, linkname="/tmp"), entry("d.png/evil.xml")
    ),
    "twice": lambda: tgz(GOOD, GOOD),
    "member too large": lambda: tgz(entry("big.xml", bytes(MAX_MEMBER + 1))),
    "bomb": lambda: tgz(*(entry(f"{i}.xml", bytes(20_000_000)) for i in range(5))),
    "no wanted file": lambda: tgz(entry("readme.txt")),
    "empty": lambda: b"",
    "plain text": lambda: b"text" * 100,
    "web page": lambda: b"<html>404</html>",
    "gzip of text": lambda: gzip.compress(b"text" * 300),
    "cut": lambda: tgz(*(entry(f"{i}.xml", os.urandom(3000)) for i in range(9)))[:-9000],
    "cut in the header": lambda: tgz(GOOD)[:20],
    "flipped": lambda: bytes(
        b ^ (0xFF if i == 60 else 0) for i, b in enumerate(tgz(entry("a.xml", os.urandom(400))))
    ),
    "zip": lambda: zipped(),
}


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("../evil.xml", "x")
    return out.getvalue()


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archive_is_refused_whole(tmp_path, kind):
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "a.tgz").write_bytes(ARCHIVES[kind]())
    with pytest.raises(R2GenKGError) as caught:
        unpack(inner / "a.tgz", inner / "out")
    assert (
        "a.tgz" in str(caught.value)
        and "\n" not in str(caught.value)
        and len(str(caught.value)) < 400
    )
    assert {p.name for p in inner.iterdir()} == {"a.tgz"} and {
        p.name for p in tmp_path.iterdir()
    } == {"inner"}  # nothing written, nowhere
    assert not Path("/tmp/r2genkg_evil.xml").exists() and not Path("/tmp/evil.xml").exists()


# --- answers of a language model ------------------------------------------------------------------

SENTENCES = ["Small left pleural effusion.", "No pneumothorax."]
ASKED = {
    "sentences": [
        {"number": 1, "entities": [{"text": "effusion", "type": "disorder_present"}]},
        {"number": 2, "entities": [{"text": "pneumothorax", "type": "disorder_notpresent"}]},
    ]
}
ANSWERS = {
    "empty": "",
    "blank": "  \n",
    "refusal": "I cannot help with that.",
    "null": "null",
    "number": "3",
    "true": "true",
    "string": '"effusion"',
    "NaN": "NaN",
    "list of numbers": "[1, 2, 3]",
    "list of lists": "[[[]]]",
    "empty object": "{}",
    "no sentences": '{"sentences": []}',
    "sentences null": '{"sentences": null}',
    "sentences text": '{"sentences": "none"}',
    "numbers as text": json.dumps(ASKED).replace(": 1,", ': "one",'),
    "number huge": json.dumps(ASKED).replace(": 1,", ": " + "9" * 5000 + ","),
    "number negative": json.dumps(ASKED).replace(": 1,", ": -1,"),
    "entities null": '{"sentences": [{"number": 1, "entities": null}]}',
    "entity number": '{"sentences": [{"number": 1, "entities": [3, null, true, 1.5]}]}',
    "text null": '{"sentences": [{"number": 1, "entities": [{"text": null, "type": "concept"}]}]}',
    "type list": '{"sentences": [{"number": 1, "entities": [{"text": "effusion", "type": ["concept"]}]}]}',
    "type unknown": json.dumps(ASKED).replace("disorder", "spaceship"),
    "text elsewhere": json.dumps(ASKED).replace("effusion", "kidney"),
    "text empty": json.dumps(ASKED).replace("effusion", ""),
    "fenced": f"```json\n{json.dumps(ASKED)}\n```",
    "thinking": f"<think>hm {{</think>{json.dumps(ASKED)}",
    "thinking, cut": "<think>" + "hm " * 1000,
    "trailing comma": json.dumps(ASKED).replace("]}", ",]}"),
    "single quotes": str(ASKED),
    "deep lists": "[" * 100_000,
    "deep, closed": "[" * 5_000 + "]" * 5_000,
    "deep objects": '{"a":' * 5_000 + "1" + "}" * 5_000,
    "long": "x" * 3_000_000,
    "html": "<script>alert(1)</script>",
    "control": json.dumps(ASKED).replace("effusion", "effu\\u0000sion"),
    "surrogate": json.dumps(ASKED).replace("effusion", "\\ud800"),
    "bom": "\ufeff" + json.dumps(ASKED),
    "python": "__import__('os').system('touch /tmp/r2genkg_harm')",
    "python in a list": "[__import__('os').system('touch /tmp/r2genkg_harm')]",
    "format": "{0.__class__}",
    "utf-16": json.dumps(ASKED).encode("utf-16").decode("latin-1"),
    "many terms": json.dumps(
        {
            "sentences": [
                {"number": 1, "entities": [{"text": "effusion", "type": "concept"}] * 20_000}
            ]
        }
    ),
    "two answers": json.dumps(ASKED) * 2,
    "entities under text": '{"Small left pleural effusion.": {"effusion": {"type": {"type": "disorder_present"}}}}',
    "keys swapped": '{"disorder_present": ["effusion", 7, null, ["x"]]}',
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_answer_to_the_first_question(kind):
    try:
        read = read_entities(ANSWERS[kind], SENTENCES, Counter())
    except UnusableAnswer as e:
        assert "\n" not in str(e) and len(str(e)) < 200
    else:
        assert [a.text for a in read] == SENTENCES and all(
            isinstance(a, SentenceAnnotation) for a in read
        )
    assert not Path("/tmp/r2genkg_harm").exists()


LINKS = {"sentences": [{"number": 1, "relations": [{"source": 1, "target": 2, "type": "modify"}]}]}
RELATIONS = {k: v for k, v in ANSWERS.items() if "entit" not in k and "text" not in k} | {
    "source beyond": json.dumps(LINKS).replace('"source": 1', '"source": 99'),
    "source zero": json.dumps(LINKS).replace('"source": 1', '"source": 0'),
    "itself": json.dumps(LINKS).replace('"target": 2', '"target": 1'),
    "source list": json.dumps(LINKS).replace('"source": 1', '"source": [1]'),
    "source null": json.dumps(LINKS).replace('"source": 1', '"source": null'),
    "source huge": json.dumps(LINKS).replace('"source": 1', '"source": ' + "9" * 400),
    "source superscript": json.dumps(LINKS).replace('"source": 1', '"source": "²"'),
    "type null": json.dumps(LINKS).replace('"modify"', "null"),
    "type object": json.dumps(LINKS).replace('"modify"', "{}"),
    "type unknown": json.dumps(LINKS).replace("modify", "causes"),
    "relations text": '{"sentences": [{"number": 1, "relations": "none"}]}',
    "relations number": '{"sentences": [{"number": 1, "relations": [1, [2], null]}]}',
}


@pytest.mark.parametrize("kind", RELATIONS)
def test_answer_to_the_second_question(kind):
    found = read_entities(
        json.dumps(
            {
                "sentences": [
                    {
                        "number": 1,
                        "entities": [
                            {"text": "left", "type": "concept"},
                            {"text": "effusion", "type": "disorder_present"},
                        ],
                    },
                    {"number": 2, "entities": []},
                ]
            }
        ),
        SENTENCES,
        Counter(),
    )
    try:
        read = read_relations(RELATIONS[kind], found, Counter())
    except UnusableAnswer as e:
        assert "\n" not in str(e) and len(str(e)) < 200
    else:
        assert [a.text for a in read] == SENTENCES and all(
            r.type == known_relation(r.type) for a in read for r in a.relations
        )


@pytest.mark.parametrize("seed", range(40))
def test_answers_spoilt_at_random(seed):
    rng, text = random.Random(seed), list(json.dumps(ASKED))
    for _ in range(rng.choice((1, 3, 9))):
        at = rng.randrange(len(text))
        text[at : at + rng.choice((0, 1, 5))] = rng.choice(
            ['"', "{", "}", "[", "]", ",", ":", "\\", "\x00", "é", "\ud800", "null", "", "1e999"]
        )
    try:
        assert [
            a.text
            for a in read_entities(
                "".join(text)[: rng.choice((None, 60, 150))], SENTENCES, Counter()
            )
        ] == SENTENCES
    except UnusableAnswer:
        pass


# --- markup and control characters in everything that a page shows --------------------------------

MARKUP = {
    "script": "<script>alert(1)</script>",
    "image": "<img src=x onerror=alert(1)>",
    "quotes": '" onload="alert(1)',
    "single quotes": "' onload='alert(1)",
    "closing": "</style></div></html><b>",
    "comment": "<!-- ",
    "template": "{{ 7*7 }}{% raw %}",
    "entity": "&lt;b&gt;&#x3c;b",
    "url": "javascript:alert(1)",
    "data": "data:text/html,<script>alert(1)</script>",
    "css": "}</style><style>*{display:none",
    "control": "a\x00b\x07c\x1b[31md\x7fe",
    "line": "a\x85b\u2028c",
    "surrogate": "a\ufffdb",
    "rtl": "a\u202eb",
    "svg": "<svg/onload=alert(1)>",
    "frame": "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
}
TAGS = {
    "kbd",
    "i",
    "fieldset",
    "section",
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "h1",
    "h2",
    "h3",
    "p",
    "strong",
    "b",
    "code",
    "details",
    "summary",
    "dl",
    "dt",
    "dd",
    "div",
    "img",
    "span",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "br",
    "figure",
    "figcaption",
    "label",
    "input",
    "button",
    "select",
    "option",
    "script",
    "ol",
    "ul",
    "li",
    "nav",
    "pre",
    "a",
    "caption",
}


class Audit(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.sources = Counter(), set(), []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        self.sources += [
            value or ""
            for name, value in attrs
            if name in ("src", "href", "action", "data", "srcset", "poster")
        ]


def harmless(text: str, scripts: int) -> None:
    """No tag, event or script that is not the template's own; no control character."""
    seen = Audit(text)
    assert (
        set(seen.tags) <= TAGS
        and seen.tags["script"] == scripts
        and not [a for a in seen.attributes if a.startswith("on")]
    ), (seen.tags, seen.attributes)
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", text)
    own = r"data:image/(png|jpeg);base64,|#[a-z]+$|figures/[a-z0-9_]+\.svg$"
    assert all(re.match(own, s) for s in seen.sources), seen.sources


def explained(text: str) -> ExplainedReport:
    """A report in which every word comes from outside."""
    film = np.zeros((20, 20), np.uint8)
    sentence = SentenceEvidence(
        text,
        np.full((7, 7), 1 / 49),
        0.5,
        {"Edema": 1.0},
        {"Edema": np.ones((7, 7))},
        [text],
        [(text, 2.0)],
        [(0, 0.5)],
        {text: 0.3, "visual": 0.7},
    )
    report = GeneratedReport(
        text,
        f"{text} . {text} .",
        [("Edema", 0.4)],
        [(text, 0.2)],
        [RetrievedToken(1, text, text, (0, 0, 4, 4), 0.5)],
    )
    return ExplainedReport(
        report,
        film,
        {},
        [text],
        [sentence],
        film,
        [],
        {0: BankToken(text, text, (0, 0, 4, 4), film[:4, :4])},
    )


@pytest.mark.parametrize("kind", MARKUP)
def test_report_page_shows_markup_as_text(tmp_path, kind):
    write_reports(
        [explained(MARKUP[kind])], tmp_path / "r.html", MARKUP[kind], notes=[MARKUP[kind]]
    )
    harmless((tmp_path / "r.html").read_text(), 0)
    write_reports([explained(MARKUP[kind])], tmp_path / "r.json", MARKUP[kind])
    assert (
        json.loads((tmp_path / "r.json").read_text())[0]["image"] == MARKUP[kind]
    )  # data is kept as it is
    write_reports([explained(MARKUP[kind])], tmp_path / "r.txt", MARKUP[kind])
    assert not re.search(
        "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", (tmp_path / "r.txt").read_text()
    )  # a terminal obeys them


@pytest.mark.parametrize("kind", MARKUP)
def test_audit_form_shows_markup_as_text(tmp_path, kind):
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "a.png")
    table = pd.DataFrame(
        [(MARKUP[kind], 0, str(tmp_path / "a.png"), MARKUP[kind], 0, 0, 8, 8, 0.9)],
        columns=list(TOKEN_COLUMNS),
    )
    text = audit_form(
        [Retrieval(MARKUP[kind], str(tmp_path / "a.png"), 1, (0,), (0.5,), (MARKUP[kind],))],
        VisionTokens(torch.ones(1, 4), table),
        32,
    )
    harmless(text, 1)


@pytest.mark.parametrize("kind", MARKUP)
def test_demo_page_shows_markup_as_text(kind):
    text, png = MARKUP[kind], "data:image/png;base64,AA=="
    marked = {"text": text, "mark": "bad", "errors": [text]}
    study = board_row(explained(text), True)
    study["rows"] = [row | {"mark": "good", "errors": [text]} for row in study["rows"]]
    named = ("title", "summary", "other_title", "other_summary")
    study |= dict.fromkeys(named, text) | {"reference": [marked], "other": [marked]}
    table = {"head": ["", text], "rows": [(text, [text], True)]}
    figure = {
        "name": text,
        "title": text,
        "png": png,
        "width": 9,
        "caption": text,
        "svg": "figures/a.svg",
    }
    sections = ("scores", "mechanism", "graph", "tokens", "maps", "other")
    anchors = ("numbers", "studies", *sections, "made", "next")
    page_text = page("demo.html.j2").render(
        name=text,
        lead=text,
        drawn=True,
        contents=dict.fromkeys(anchors, text),
        cards=[
            dict.fromkeys(("title", "value", "interval", "words"), text)
            | {"others": [(text, text)]}
        ],
        reading=text,
        studies=[study],
        scores=table,
        notes=[(text, text)],
        mechanism=[{"name": text, "value": text, "words": text}],
        graph={"words": text, "tables": {text: [(text, text)]}, "all": [(text, text)]},
        tokens=text,
        audit={"words": text, "table": table, "notes": [(text, text)]},
        figures={section: [figure] for section in sections},
        stages=[{"name": text, "note": text, "seconds": text}],
        next=[(text, text)],
    )
    harmless(page_text, 0)


@pytest.mark.parametrize("kind", MARKUP)
def test_page_of_the_app(tmp_path, kind, monkeypatch):
    from r2genkg.use import app, pages

    monkeypatch.setattr(pages, "run_notes", lambda run: [MARKUP[kind]])
    inner = page_of([explained(MARKUP[kind])], MARKUP[kind], tmp_path)
    harmless(inner, 0)
    seen = Audit(app.framed(inner, MARKUP[kind]))
    assert dict(seen.tags) == {"iframe": 1} and seen.attributes == {
        "sandbox",
        "title",
        "srcdoc",
        "style",
    }


def test_labels_are_the_packages_own():
    assert not [name for name in LABELS if re.search("[<>&\"']", name)] and Study
