"""Folders and files are replaced whole: kill -9 at every call to the system, at random moments, and writers that race.

    python tests/faults/test_replacing.py            # 800 tries, one line of counts per kind
    python tests/faults/test_replacing.py 100 OTHER  # 100 tries of the `atomic_path` in another file

A try is lost if the folder under the name is neither the whole old one nor the whole new one, if a finished new folder
is gone after the next call, if a writer fails, or if anything but the folder stays behind.
"""

import contextlib
import importlib.util
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import r2genkg.core.files as files

#: Names in a folder; the mark is written last, as a stage is stamped when it is whole.
NAMES = (*(f"part{i}/data{j}" for i in range(3) for j in range(3)), files.MADE_FROM)
#: What Python reports when it changes or reads a folder; a child is killed at one of these calls.
EVENTS = {
    "open",
    "os.chmod",
    "os.listdir",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.scandir",
    "shutil.rmtree",
}


def write(module, path: Path, text: str) -> None:
    """Replace the folder by one whose files all hold `text`."""
    with module.atomic_path(path) as tmp:
        for name in NAMES:
            (tmp / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp / name).write_text(text)


def content(path: Path) -> str:
    """The text of a whole folder; an assertion for a missing or mixed one."""
    found = {name: (path / name).read_text() if (path / name).is_file() else "" for name in NAMES}
    assert len(set(found.values())) == 1 and all(found.values()), f"neither old nor new: {found}"
    return found[NAMES[0]]


def child(work: Callable[[], None]) -> int:
    """Start a process that does the work and ends with 0, or with 3 for an exception."""
    pid = os.fork()
    if pid:
        return pid
    code = 3
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(call: int, work: Callable[[], None]) -> Callable[[], None]:
    """The work, killed at a call to the system."""

    def until() -> None:
        left = [call]

        def hook(event: str, _args: tuple) -> None:
            if event in EVENTS:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        work()

    return until


def check_killed(module, path: Path, exchange: bool) -> None:
    """After a kill: whole at once where names are exchanged, else after the next call; then nothing is left over."""
    if exchange:
        assert content(path) in ("old", "new")
    if hasattr(module, "settle"):
        module.settle(path)
    assert content(path) in ("old", "new")
    write(module, path, "next")
    assert content(path) == "next"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def try_call(module, place: Path, call: int, exchange: bool) -> bool:
    """Kill a replacement at one call; false where it was over before."""
    path = place / "artifact"
    write(module, path, "old")
    code = ended(child(killed_at(call, lambda: write(module, path, "new"))))
    assert code in (0, -signal.SIGKILL)
    if code == 0:
        assert content(path) == "new"
        return False
    check_killed(module, path, exchange)
    return True


def try_moment(module, place: Path, seconds: float, exchange: bool) -> None:
    """Kill a process that replaces the folder again and again."""

    def forever() -> None:
        while True:
            write(module, path, "new")

    path = place / "artifact"
    write(module, path, "old")
    pid = child(forever)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    check_killed(module, path, exchange)


def try_race(module, place: Path, writers: int = 3, rounds: int = 3) -> None:
    """Several processes replace the same folder: none fails, and the last whole work stays."""

    def some(text: str) -> None:
        for _ in range(rounds):
            write(module, place / "artifact", text)

    pids = [child(lambda n=n: some(f"writer {n}")) for n in range(writers)]
    assert [ended(pid) for pid in pids] == [0] * writers
    assert content(place / "artifact").startswith("writer")
    assert [p.name for p in place.iterdir()] == ["artifact"]


# --- the same tries as a campaign -------------------------------------------------------------------------------------


def kinds(module, exchange: bool) -> dict[str, Callable[[Path, int], object]]:
    """Kind -> one try in an empty place, numbered."""
    rng = random.Random(0)
    return {
        "killed at a call": lambda place, n: try_call(module, place, n * 7 % 110, exchange),
        "killed at a moment": lambda place, n: try_moment(
            module, place, rng.random() * 0.02, exchange
        ),
        "writers race": lambda place, n: try_race(module, place),
    }


def campaign(module, tries: int, exchange: bool) -> dict[str, list[int]]:
    """Kind -> tries, lost."""
    counts = {}
    for name, attempt in kinds(module, exchange).items():
        lost = 0
        for n in range(tries):
            with tempfile.TemporaryDirectory() as place:
                try:
                    with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
                        attempt(Path(place), n)
                except (AssertionError, OSError, files.R2GenKGError):
                    lost += 1
        counts[name] = [tries, lost]
        print(f"{name:20} {tries:4} tries, {lost:4} lost", flush=True)
    return counts


# --- a part of it in every test run -----------------------------------------------------------------------------------


@pytest.fixture(params=["exchanged", "set aside"])
def exchange(request, monkeypatch) -> bool:
    """Both ways of replacing: in one step, and in two where the system has no exchange."""
    if request.param == "set aside":
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    elif not sys.platform.startswith("linux"):
        pytest.skip("names are exchanged on Linux only")
    return request.param == "exchanged"


def test_killed_at_every_call(tmp_path, exchange):
    calls = 0
    for call in range(0, 400, 3):
        (tmp_path / str(call)).mkdir()
        if not try_call(files, tmp_path / str(call), call + random.randrange(3), exchange):
            break
        calls += 1
    assert calls > 10


def test_killed_at_random_moments(tmp_path, exchange):
    for n in range(12):
        (tmp_path / str(n)).mkdir()
        try_moment(files, tmp_path / str(n), random.random() * 0.02, exchange)


def test_writers_race(tmp_path, exchange):
    for n in range(10):
        (tmp_path / str(n)).mkdir()
        try_race(files, tmp_path / str(n))


def test_finished_folder_is_not_deleted_as_stale(tmp_path, monkeypatch):
    """Killed between the two steps, the new folder is whole beside the name: the next call puts it there."""
    monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    path, steps = tmp_path / "artifact", []
    write(files, path, "old")

    def rename(a, b, real=os.rename):
        steps.append(1)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        real(a, b)

    monkeypatch.setattr(os, "rename", rename)
    assert ended(child(lambda: write(files, path, "new"))) == -signal.SIGKILL
    monkeypatch.undo()
    assert not path.exists()
    files.settle(path)
    assert content(path) == "new" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("was", ["missing", "file", "link to a folder", "link to nothing"])
def test_what_stood_under_the_name(tmp_path, exchange, was):
    path, other = tmp_path / "artifact", tmp_path / "other"
    if was == "file":
        path.write_text("mine")
        with pytest.raises(files.R2GenKGError, match="is a file; name a folder"):
            write(files, path, "new")
        assert path.read_text() == "mine"
        return
    if was.startswith("link"):
        path.symlink_to(other)
    if was == "link to a folder":
        write(files, other, "elsewhere")
    write(files, path, "new")
    assert content(path) == "new" and not path.is_symlink()
    if was == "link to a folder":
        assert content(other) == "elsewhere"  # only the link was replaced


def test_of_another_container_nothing_is_deleted(tmp_path):
    other = tmp_path / ".artifact.partial-00000000-0-1"
    other.mkdir()
    write(files, tmp_path / "artifact", "new")
    assert other.exists()


if __name__ == "__main__":
    module = files
    if len(sys.argv) > 2:
        spec = importlib.util.spec_from_file_location("other_files", sys.argv[2])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 800
    for way in (True, False):
        print("names are exchanged" if way else "the old one is set aside", flush=True)
        if not way:
            module._exchange = lambda a, b: False
        campaign(module, -(-wanted // 6), way)
