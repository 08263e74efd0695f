"""Nothing that a file brings into a message steers the terminal; outputs that are full or closed cost no traceback."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from r2genkg.data.tabular import clean_value, listed, visible
from r2genkg.use.console import plain_warnings, show

from inline import STEERING

PROGRAM = [sys.executable, "-c", "from r2genkg.use.commands import main; main()"]
#: Marks that turn the direction of writing: `eli.exe` can look like `exe.ile`.
TURNING = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]


@pytest.mark.parametrize("code", TURNING)
def test_direction_of_writing(code, capsys):
    text = f"no effusion{chr(code)}evil"
    for as_json in (False, True):
        show({text: text}, as_json)
    printed = capsys.readouterr().out
    for shown in (visible(text), listed([text]), clean_value(text, "row 1"), printed):
        assert not STEERING.search(shown)


HEAD = "id,image,findings\n"


@pytest.mark.parametrize("way", ["-", "e.jsonl", "e.html"])
def test_words_behind_labels(tmp_path, command, way):
    report = "\x9b31mEdema \u202e and effusion \x1b[2J."
    (tmp_path / "r.csv").write_text(f"{HEAD}a,a.png,{report}\n", "utf-8")
    args = ("label", "r.csv", "--key", "id", "--out", "l.csv", "--explain", way)
    assert command(*args, cwd=tmp_path).code == 0
    assert way != "e.html" or not STEERING.search((tmp_path / "e.html").read_text())


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_sentences_behind_an_edge(tmp_path, command, form):
    (tmp_path / "r.csv").write_text(f"{HEAD}a,a.png,Small left effusion.\n", "utf-8")
    command("annotate", "r.csv", "--out", "a.jsonl", cwd=tmp_path)
    args = ("kg", "build", "--annotations", "a.jsonl", "--min-count", 1, "--out", "g")
    assert command(*args, cwd=tmp_path).code == 0
    text = (tmp_path / "a.jsonl").read_text().replace('"id":"a"', '"id":"a\u202e\x9b\\u001b"')
    (tmp_path / "b.jsonl").write_text(text, "utf-8")
    args = ("kg", "trace", "g", "effusion", "--annotations", "b.jsonl", "--every", *form)
    assert command(*args, cwd=tmp_path).out


@pytest.mark.parametrize(
    "args",
    [
        ("label", "\x1b[2J\x9b31m\u202e.csv", "--out", "l.csv"),
        ("label", "r.csv", "--out", "l.csv", "--key", "\x1b[2J\u202e"),
        ("kg", "stats", "\x1b[2J\u202e"),
        ("score", "--refs", "\u202ea.json", "--hypos", "\x9b.json"),
        ("report", "\u202ea.png", "--run", "\x1b[2J"),
    ],
    ids=lambda a: a[0],
)
def test_names_on_the_command_line(tmp_path, command, args):
    (tmp_path / "r.csv").write_text(f"{HEAD}a,a.png,Edema.\n")
    command(*args, cwd=tmp_path).in_one_line()


def test_a_grid_whose_names_steer(tmp_path, command):
    grid = 'preset: demo\nseeds: [1]\nvariants: {"\\x1b[2J\\u202e": [model.use_graph=3]}\n'
    (tmp_path / "g.yaml").write_text(grid)
    command("tables", "--grid", "g.yaml", "--out", "t", cwd=tmp_path).in_one_line("grid g.yaml")


@pytest.mark.parametrize(
    "text", ["part FOOT\x1b[2J", "C\u202eT", "a\nr2genkg: all is well", "\x9b31m"]
)
def test_logged_messages(monkeypatch, capsys, text):
    """What a DICOM file says of itself is logged while a folder is read."""
    handler = logging.StreamHandler(sys.stderr)
    monkeypatch.setattr(logging, "lastResort", handler)
    monkeypatch.setattr("warnings.showwarning", lambda *a: None)
    plain_warnings()
    record = logging.LogRecord("r2genkg", logging.WARNING, "", 1, "%s: %s", ("x.dcm", text), None)
    handler.handle(record)
    shown = capsys.readouterr().err
    assert not STEERING.search(shown) and shown.count("\n") == 1


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    from r2genkg.extraction.annotate import annotate
    from r2genkg.kg.build import build_graph

    folder = tmp_path_factory.mktemp("graph") / "g"
    text = "Small left effusion. Small left effusion."
    build_graph([("a", annotate([text])[0])]).save(folder)
    return folder


ENDS = {
    "nobody reads": (["kg", "stats", "{g}"], {"stdout": "pipe"}),
    "output full": (["kg", "stats", "{g}"], {"stdout": "full"}),
    "errors full": (["kg", "stats", "none"], {"stderr": "full"}),
}


@pytest.mark.parametrize("name", ENDS)
def test_outputs_that_take_nothing(graph, tmp_path, name):
    args, (where, kind) = ENDS[name][0], next(iter(ENDS[name][1].items()))
    if kind == "full":
        if not os.path.exists("/dev/full"):
            pytest.skip("no /dev/full")
        end = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, end = os.pipe()
        os.close(reader)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {where: end}
    command = [*PROGRAM, *(arg.format(g=graph) for arg in args)]
    done = subprocess.run(command, cwd=tmp_path, text=True, timeout=120, **streams)
    os.close(end)
    assert done.returncode == 1 and "Traceback" not in (done.stderr or "")
    if name == "output full":
        assert "what is printed" in done.stderr and "MiB are free" not in done.stderr
