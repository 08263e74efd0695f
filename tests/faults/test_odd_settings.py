"""Settings from the command line, from variables and from files that no reader of the help would give.

Each is refused in one line that names the option, the variable or the key, before any work.
"""

import os
import signal

import pytest

from r2genkg.core.files import R2GenKGError
from r2genkg.data.study import Study, save_studies

TRAIN = ("train", "--dry-run", "--set")
SETTINGS = {
    "not a number": "train.lr=.nan",
    "without end": "train.epochs=.inf",
    "a number beyond all": "train.epochs=1e400",
    "deep": "train.lr=" + "[" * 5000,
    "digits without end": "train.batch_size=" + "9" * 5000,
    "an alias of itself": "train.lr=&a [*a]",
    "a tag that runs code": "train.lr=!!python/object/apply:os.system [id]",
    "no key": "=3",
    "dots": "...=3",
    "a section": "train=3",
    "a name of Python": "__class__=3",
    "steering": "train.\x1b[2J\u202e=3",
    "a date": "name=2020-01-01",
    "a yes": "name=yes",
    "no value": "train.lr",
    "layers without end": "model.qformer_layers=1000000000",
    "nobody's beams": "decode.beams=0",
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(tmp_path, command, name):
    line = command(*TRAIN, SETTINGS[name], cwd=tmp_path).in_one_line()
    assert len(line) < 500


OPTIONS = {
    "seeds in words": ("tables", "--out", "t", "--seeds", "a,b"),
    "seeds below zero": ("tables", "--out", "t", "--seeds", "-1"),
    "seeds beyond all": ("tables", "--out", "t", "--seeds", str(10**30)),
    "a card of nothing": ("train", "--dry-run", "--card", "0"),
    "an unknown grid": ("tables", "--out", "t", "--grid", "\x1b[2J\u202e"),
    "an unknown preset": ("train", "--out", "t", "--preset", "\x1b[2J\u202e.yaml"),
    "an unknown stage": ("train", "--out", "t", "--upto", "evil"),
    "no run": ("app", "--run", "nowhere"),
    "no graph": ("kg", "stats", "\x9b31m"),
    "a share beyond one": ("extract", "train", "--annotations", "a", "--out", "m", "--test", "1.5"),
    "a share that is none": (
        "extract",
        "train",
        "--annotations",
        "a",
        "--out",
        "m",
        "--dev",
        "nan",
    ),
    "a rate without end": (
        "extract",
        "train",
        "--annotations",
        "a",
        "--out",
        "m",
        "--lr-encoder",
        "inf",
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(tmp_path, command, name):
    command(*OPTIONS[name], cwd=tmp_path).in_one_line()
    assert not list(tmp_path.iterdir())


USAGE = {
    "a port beyond all": ("app", "--run", "r", "--port", "99999"),
    "a port below zero": ("app", "--run", "r", "--port", "-1"),
    "no retrievals": ("audit", "r", "--count", "0"),
    "a file with nul": ("label", "r.csv", "--out", "a\0b.csv"),
    "too many neighbours": ("kg", "view", "g", "--node", "x", "--out", "v.html", "--size", "201"),
}


@pytest.mark.parametrize("name", USAGE)
def test_usage(tmp_path, command, name):
    assert command(*USAGE[name], cwd=tmp_path).code == 2


def test_page_for_an_empty_address(tmp_path, command):
    """`--host $UNSET` must not serve the page to everybody."""
    pytest.importorskip("gradio")
    args = ("app", "--run", "nowhere", "--host", "")
    command(*args, cwd=tmp_path).in_one_line("the address to listen on is empty")


@pytest.mark.parametrize("variable", ["RANK", "WORLD_SIZE"])
@pytest.mark.parametrize("value", ["abc", "-1", "1.5", "\x1b[2J", "0x1"])
def test_numbers_of_processes(tmp_path, command, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    small = ("studies.n_train=2", "studies.n_val=1", "studies.n_test=1", "studies.image_size=56")
    changes = [arg for c in (*small, "tokens.patch=8") for arg in ("--set", c)]
    ended = command("train", "--out", "t", "--upto", "studies", *changes, cwd=tmp_path)
    ended.in_one_line(f"{variable}=", "expected a whole number")


@pytest.mark.parametrize("variable", ["RANK", "WORLD_SIZE"])
def test_empty_numbers_of_processes(tmp_path, command, monkeypatch, variable):
    monkeypatch.setenv(variable, "")
    small = ("studies.n_train=2", "studies.n_val=1", "studies.n_test=1", "studies.image_size=56")
    changes = [arg for c in (*small, "tokens.patch=8") for arg in ("--set", c)]
    assert command("train", "--out", "t", "--upto", "studies", *changes, cwd=tmp_path).code == 0


VARIABLES = {
    "R2GENKG_CACHE": "/dev/null/x",
    "TMPDIR": "/nonexistent",
    "HOME": "/nonexistent",
    "COLUMNS": "-5",
    "LANG": "xx_YY",
    "OPENAI_BASE_URL": "http://[::1",
    "R2GENKG_DEVICE": "tpu9",
    "WORLD_SIZE": "",
}


@pytest.mark.parametrize("variable", VARIABLES)
def test_variables_that_do_not_matter(tmp_path, command, monkeypatch, variable):
    monkeypatch.setenv(variable, VARIABLES[variable])
    (tmp_path / "r.csv").write_text("id,image,findings\na,a.png,Edema.\n")
    assert command("label", "r.csv", "--out", "l.csv", cwd=tmp_path).code == 0


PLACES = [
    "lock is a link",
    "lock is a folder",
    "work is a file",
    "work is a link",
    "stage is a file",
]


@pytest.mark.parametrize("place", PLACES)
def test_what_stands_in_a_run(tmp_path, command, place):
    """A folder made ready by somebody else costs no file of the user's."""
    out, mine = tmp_path / "t", tmp_path / "mine"
    out.mkdir()
    mine.mkdir()
    (mine / "letter").write_text("mine")
    if place == "lock is a link":
        (out / ".lock").symlink_to(mine / "letter")
    elif place == "lock is a folder":
        (out / ".lock").mkdir()
    elif place == "work is a file":
        (out / ".work").write_text("x")
    elif place == "work is a link":
        (out / ".work").symlink_to(mine)
    else:
        (out / "studies").write_text("x")
    small = ("studies.n_train=2", "studies.n_val=1", "studies.n_test=1", "studies.image_size=56")
    changes = [arg for c in (*small, "tokens.patch=8") for arg in ("--set", c)]
    ended = command("train", "--out", "t", "--upto", "studies", *changes, cwd=tmp_path)
    if ended.code:
        assert "input/output" not in ended.in_one_line(str(out.name))
    assert (mine / "letter").read_text() == "mine"
    assert [p.name for p in mine.iterdir()] == ["letter"]


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_closes(ignored):
    """SIGHUP ends a command as SIGTERM does, so that its temporary files go; under `nohup` it does not."""
    from r2genkg.use.console import Terminated, end_gently

    child = os.fork()
    if not child:  # 7: `Terminated` was raised, 0: it went on
        try:
            signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
            end_gently()
            os.kill(os.getpid(), signal.SIGHUP)
        except Terminated:
            os._exit(7)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (0 if ignored else 7)


@pytest.mark.parametrize("path", ["a\u202eb.png", "a\x9bb.png", "a\u2066b.png"])
def test_films_whose_names_hide_something(tmp_path, path):
    from r2genkg.data.study import load_studies

    save_studies([Study("a", (str(tmp_path / path),), "Clear.")], tmp_path / "s.parquet")
    with pytest.raises(R2GenKGError, match="row 0"):
        load_studies(tmp_path / "s.parquet")
