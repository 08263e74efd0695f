"""Pipes and devices in the place of files, names at the limits of the file system, folders that are gone.

Nothing that is no file is replaced or read twice, and what is wrong is said in one line.
"""

import os
import socket
import stat
from pathlib import Path

import pytest

from r2genkg.core.files import R2GenKGError, atomic_path, read_json, read_yaml
from r2genkg.data.study import Study, save_studies

TABLE = "id,image,findings\nr1,a.png,Small left effusion.\nr2,a.png,Small left effusion.\n"


@pytest.fixture
def place(tmp_path) -> Path:
    (tmp_path / "r.csv").write_text(TABLE)
    return tmp_path


def special(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as found:
            found.bind(str(path))
    elif kind == "device":
        try:
            os.mknod(path, 0o20666, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root makes a device")
    else:
        path.symlink_to("/dev/null")


OUTPUTS = {
    "label": ("label", "r.csv", "--out", "x.csv"),
    "annotate": ("annotate", "r.csv", "--out", "x.csv"),
    "kg build": ("kg", "build", "--studies", "r.csv", "--out", "x.csv"),
}


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link to a device"])
def test_output_is_no_file(place, command, monkeypatch, kind, name):
    monkeypatch.chdir(place)  # a socket's path is short
    special(Path("x.csv"), kind)
    before = os.lstat("x.csv")
    command(*OUTPUTS[name], cwd=place).in_one_line("x.csv", "pipe or a device")
    assert stat.S_IFMT(os.lstat("x.csv").st_mode) == stat.S_IFMT(before.st_mode)
    assert sorted(os.listdir()) == ["r.csv", "x.csv"]


def fed(path: Path, text: str) -> None:
    """A pipe into which another process writes once."""
    os.mkfifo(path)
    if not os.fork():
        try:
            path.write_text(text)
        finally:
            os._exit(0)


INPUTS = {
    "label": ("x.csv", TABLE, ["label", "x.csv", "--out", "l.csv"]),
    "annotate": ("x.csv", TABLE, ["annotate", "x.csv", "--out", "a.jsonl"]),
    "score": ("x.json", '{"a": ["Clear."]}', ["score", "--refs", "x.json", "--hypos", "x.json"]),
    "predictions": ("x.jsonl", "{}", ["score", "--refs", "x.jsonl", "--hypos", "x.jsonl"]),
}


@pytest.mark.parametrize("name", INPUTS)
def test_input_is_a_pipe(place, run, name):
    file, text, args = INPUTS[name]
    fed(place / file, text)
    done = run(*args, cwd=place, expect=1, timeout=15)
    assert "can be read only once; save it as a file" in done.stderr
    os.close(os.open(place / file, os.O_RDONLY | os.O_NONBLOCK))  # lets the writer go


@pytest.mark.parametrize("read", [read_json, lambda path: read_yaml(path, path)])
def test_settings_are_a_device(read):
    with pytest.raises(R2GenKGError, match="/dev/null: is no ordinary file"):
        read(Path("/dev/null"))


@pytest.mark.parametrize(
    "name", ["x" * 244, "x" * 255, "\u00e9" * 120, "x" * 200 + ".partial-1-2-3"]
)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_longest_names(tmp_path, name, kind):
    """A name that the file system allows is no fault, nor is what a killed process left under it."""
    for text in ("old", "new"):
        with atomic_path(tmp_path / name) as tmp:
            if kind == "folder":
                tmp.mkdir()
            (tmp / "a" if kind == "folder" else tmp).write_text(text)
    assert (tmp_path / name / "a" if kind == "folder" else tmp_path / name).read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("out", ["x" * 300 + ".csv", "/".join(["d" * 200] * 25) + "/l.csv"])
def test_names_that_are_too_long(place, command, out):
    command("label", "r.csv", "--out", out, cwd=place).in_one_line("File name too long")


NOT_UTF8 = os.fsdecode(b"films\xff\xfe")


def test_folders_that_are_not_utf8(place, command):
    folder = place / NOT_UTF8
    folder.mkdir()
    (folder / "r.csv").write_text(TABLE)
    for args in (
        ("label", folder / "r.csv", "--out", folder / "l.csv", "--json"),
        ("annotate", folder / "r.csv", "--out", folder / "a.jsonl"),
        ("kg", "build", "--studies", folder / "r.csv", "--min-count", 1, "--out", place / "g"),
        ("kg", "export", place / "g", "--format", "ttl", "--out", folder / "g.ttl"),
    ):
        assert command(*args, cwd=place).code == 0, args
    args = ("kg", "build", "--studies", folder / "r.csv", "--min-count", 1, "--out", folder / "g")
    command(*args, cwd=place).in_one_line("not UTF-8; rename it")  # parquet cannot be written there


def test_films_that_are_not_utf8(place, command):
    """A table cannot hold such a path: the line says what to rename."""
    folder = place / NOT_UTF8
    folder.mkdir()
    args = ("data", "prepare", "iu-xray", "--quick", "--root", folder, "--out", place / "s.parquet")
    (folder / "images").mkdir()
    (folder / "images" / "a.png").write_bytes(b"x")
    (folder / "annotation.json").write_text(
        '{"train": [{"id": "a", "report": "Clear.", "image_path": ["a.png"]}]}'
    )
    command(*args, cwd=place).in_one_line("not UTF-8; rename it")
    with pytest.raises(UnicodeEncodeError):
        save_studies([Study("a", (f"{NOT_UTF8}/a.png",), "Clear.")], place / "s.parquet")
    assert not list(place.glob(".s*"))


GONE = [
    ("label", "{table}", "--out", "l.csv"),
    ("annotate", "{table}", "--out", "a.jsonl"),
    ("kg", "build", "--studies", "{table}", "--min-count", "1", "--out", "g"),
    ("train", "--preset", "demo", "--out", "t"),
]


@pytest.mark.parametrize("args", GONE, ids=lambda a: a[0])
def test_the_folder_is_gone(place, tmp_path_factory, monkeypatch, capfd, args):
    from r2genkg.use.commands import main

    gone = tmp_path_factory.mktemp("gone")
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(SystemExit) as ended:
        main([arg.format(table=place / "r.csv") for arg in args])
    os.chdir(place)
    assert ended.value.code == 1
    assert "the folder that this command runs in was deleted" in capfd.readouterr().err


WAYS = {
    "link loop in": ("label", "loop", "--out", "l.csv"),
    "link loop out": ("label", "r.csv", "--out", "loop/l.csv"),
    "below a file": ("label", "r.csv", "--out", "r.csv/l.csv"),
    "run in a loop": ("audit", "loop"),
    "out is /": ("kg", "build", "--studies", "r.csv", "--out", "/"),
    "out is .": ("kg", "build", "--studies", "r.csv", "--out", "."),
    "out is ..": ("kg", "build", "--studies", "r.csv", "--out", ".."),
    "out is nothing": ("label", "r.csv", "--out", ""),
    "a folder as table": ("score", "--refs", ".", "--hypos", "."),
    "a device without end": ("label", "/dev/zero", "--out", "l.csv"),
    "no such ending": ("label", "none.csv", "--out", "l.csv.gz"),
    "explained where it is labelled": ("label", "r.csv", "--out", "l.csv", "--explain", "l.csv"),
}


@pytest.mark.parametrize("name", WAYS)
def test_ways_that_lead_nowhere(place, command, name):
    (place / "loop").symlink_to("loop")
    line = command(*WAYS[name], cwd=place).in_one_line()
    assert "input/output" not in line and "File exists" not in line
    assert "no such ending" != name or "choose a name that ends in" in line  # before the work
    assert (place / "r.csv").read_text() == TABLE


@pytest.mark.parametrize(
    "name", ["[a-z]*?.csv", "~.csv", " .csv", "-l.csv", "a b\u00e9\U0001f600.csv"]
)
def test_odd_names_are_written_as_given(place, command, name):
    assert command("label", "r.csv", f"--out={name}", cwd=place).code == 0
    assert sorted(p.name for p in place.iterdir()) == sorted(["r.csv", name])
