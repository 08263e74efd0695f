"""METEOR's Java process dies, hangs, floods or answers nonsense; a scoring is killed.

The score is right, or None with the reason, and no process stays.

A script stands for `java` and answers at once; what it does wrong, it does at one start, or at one pair.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from r2genkg.scores.meteor import meteor_beside
from r2genkg.scores.metrics import evaluate_reports
from r2genkg.scores.nlg import nlg_scores

JAVA = """#!{python}
import os, sys, time
if "-version" in sys.argv:
    sys.exit(0)
home = os.path.dirname(os.path.abspath(__file__))
with open(home + "/starts", "a") as file:
    print(os.getpid(), *sys.argv[1:], file=file)
first = len(open(home + "/starts").readlines()) == 1
fault, place = {fault!r}, {place!r}
for number, line in enumerate(sys.stdin.buffer):
    here = (first or place == "always") and number == 40 or place == "pair" and b"poison" in line
    if here and fault == "die":
        sys.exit(3)
    if here and fault == "say why":
        sys.exit("java.lang.OutOfMemoryError: Java heap space")
    if here and fault == "hang":
        time.sleep(600)
    if here and fault == "flood":
        sys.stderr.write("x" * 2_000_000)
    answer = f"{{len(line)}}.0 " * 23
    if here and fault == "nonsense":
        answer = "Error: specify SCORE"
    if here and fault == "short":
        answer = answer[:20]
    print(answer, flush=True)
    if here and fault == "half":
        os.kill(os.getpid(), 9)
while fault == "stay":
    time.sleep(1)
"""
PAIRS = [(f"reference {n} " + "x" * (n % 7), f"hypothesis {n}") for n in range(300)]
REFS, HYPOS = (list(side) for side in zip(*PAIRS))


@pytest.fixture
def java(tmp_path, monkeypatch):
    """Puts a script in Java's place: `java(fault, place)`."""

    def put(fault: str = "", place: str = "once") -> Path:
        script = tmp_path / "java"
        script.write_text(JAVA.format(python=sys.executable, fault=fault, place=place))
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        return tmp_path / "starts"

    return put


def pids(starts: Path) -> list[int]:
    return [int(line.split()[0]) for line in starts.read_text().splitlines()]


def living(pid: int) -> bool:
    """Whether a process runs, zombies apart."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(starts: Path, seconds: float = 30) -> bool:
    until = time.time() + seconds
    while any(map(living, pids(starts))) and time.time() < until:
        time.sleep(0.1)
    return not any(map(living, pids(starts)))


def statistics(refs: list[str], hypos: list[str], seconds: float = 20) -> np.ndarray | None:
    with meteor_beside(refs, hypos, seconds=seconds) as wait:
        return wait()


def expected(refs: list[str], hypos: list[str]) -> np.ndarray:
    lengths = [len(f"SCORE ||| {ref} ||| {hypo}\n") for ref, hypo in zip(refs, hypos)]
    return np.repeat(np.array(lengths, dtype=float)[:, None], 23, axis=1)


@pytest.mark.parametrize("fault", ["die", "say why", "nonsense", "short", "half", "flood", "hang"])
def test_java_fails_once(java, fault):
    """It is started again and goes on; the numbers are those of a healthy process."""
    starts = java(fault)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = statistics(REFS, HYPOS, 3 if fault == "hang" else 20)
    assert np.array_equal(found, expected(REFS, HYPOS))
    assert len(pids(starts)) == (1 if fault == "flood" else 2) and gone(starts)


@pytest.mark.parametrize("fault", ["die", "say why", "nonsense", "short"])
def test_a_pair_that_java_cannot_read(java, fault):
    """METEOR is None, the warning names the pair, and the other scores are there."""
    starts = java(fault, "pair")
    refs = [*REFS[:120], "poison", *REFS[120:]]
    hypos = [*HYPOS[:120], "poison", *HYPOS[120:]]
    with pytest.warns(UserWarning, match="METEOR is None.* 5 times, last at pair 121") as told:
        scores = nlg_scores(refs, hypos)
    assert scores["METEOR"] is None and scores["BLEU-1"] > 0 and scores["CIDEr"] > 0
    assert fault != "say why" or any("OutOfMemoryError" in str(one.message) for one in told)
    assert len(pids(starts)) == 5 and gone(starts)


@pytest.mark.parametrize("fault", ["die", "nonsense"])
def test_java_fails_always(java, fault):
    starts = java(fault, "always")
    with pytest.warns(UserWarning, match="failed 5 times"):
        assert statistics(REFS, HYPOS) is None
    assert len(pids(starts)) == 5 and gone(starts)


def test_memory_is_bounded(java):
    starts = java()
    statistics(REFS[:2], HYPOS[:2])
    assert "-Xmx1G" in starts.read_text().split()


@pytest.mark.parametrize(
    "text", ["", " ", "\n\n", "|||", "a ||| b", "\ud800", "\x00", "x" * 3_000_000]
)
def test_odd_texts(java, text):
    """One line a pair, whatever the text."""
    java()
    found = statistics(["before", text, "after"], ["before", text, "after"])
    assert found is not None and found[0, 0] == len("SCORE ||| before ||| before\n")
    assert found[2, 0] == len("SCORE ||| after ||| after\n")


def test_a_fault_elsewhere_ends_java(java):
    starts = java("hang", "always")
    with pytest.raises(ZeroDivisionError), meteor_beside(REFS, HYPOS):
        while not starts.exists():
            time.sleep(0.05)
        raise ZeroDivisionError
    assert gone(starts, 5)


def test_equal_pairs_are_asked_once(java):
    java("die", "always")  # at the 41st line
    found = statistics(["a"] * 500, ["b"] * 500)
    assert np.array_equal(found, expected(["a"] * 500, ["b"] * 500))


def test_labels_that_fail_end_java(java):
    """An evaluation that stops for another reason leaves no process."""

    class Odd:
        def label_all(self, texts):
            raise ValueError("no labels")

    starts = java("hang", "always")
    with pytest.raises(ValueError, match="no labels"):
        evaluate_reports(REFS, HYPOS, labels=Odd(), annotations=None)
    assert not starts.exists() or gone(starts, 5)


ENDS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("end, code", ENDS)
def test_an_ended_scoring_leaves_no_java(java, tmp_path, end, code):
    """Java that hangs, and does not end with its input, ends with the command."""
    if end == signal.SIGKILL and not shutil.which("setpriv"):
        pytest.skip("needs setpriv")
    starts, folder = java("hang", "always"), tmp_path / "work"
    folder.mkdir()
    for name, texts in (("refs", REFS), ("hypos", HYPOS)):
        reports = {str(n): [text] for n, text in enumerate(texts)}
        (folder / f"{name}.json").write_text(json.dumps(reports))
    program = "from r2genkg.use.commands import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "score", "--refs", "refs.json", "--hypos", "hypos.json"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.time() + 240
    while not starts.exists() and process.poll() is None and time.time() < until:
        time.sleep(0.1)
    process.send_signal(end)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == code, errors[-2000:]
    assert "Traceback" not in errors and gone(starts)
    assert sorted(p.name for p in folder.iterdir()) == ["hypos.json", "refs.json"]
