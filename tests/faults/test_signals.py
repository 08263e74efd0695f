"""SIGTERM and a closed terminal for every command: a fixed exit code, one line, no half-written file."""

import os
import signal
import time

import pytest

from jobs import job
from tiny_demo import TINY


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    rows = [
        f"r{n},a.png,Small left effusion of {n} mm. The heart is {n} cm wide. No edema {n}."
        for n in range(3_000)
    ]
    (folder / "r.csv").write_text("id,image,findings\n" + "\n".join(rows) + "\n")
    return folder


def arguments(name: str, inputs, out) -> list:
    table = inputs / "r.csv"
    return {
        "label": ["label", table, "--out", out / "l.csv", "--workers", 1],
        "annotate": ["annotate", table, "--out", out / "a.jsonl", "--workers", 1],
        "kg build": ["kg", "build", "--studies", table, "--out", out / "g", "--workers", 1],
        "train": ["train", "--out", out / "t", *TINY],
        "tables": ["tables", "--out", out / "t", *TINY],
        "extract": [
            "extract",
            "run",
            "--model",
            "none",
            "--studies",
            table,
            "--out",
            out / "a.jsonl",
        ],
        "doctor": ["doctor"],
    }[name]


NAMES = ["label", "annotate", "kg build", "train", "tables", "extract", "doctor"]


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("name", NAMES)
def test_end(processes, inputs, tmp_path, name, end):
    (tmp_path / "out").mkdir()
    args = [*map(str, arguments(name, inputs, tmp_path / "out"))]
    process = processes.Process(target=job, args=(args, str(tmp_path / "log")))
    process.start()
    until = time.time() + 60
    while process.is_alive() and not (tmp_path / "log").exists() and time.time() < until:
        time.sleep(0.02)
    time.sleep(0.3)
    if process.is_alive():
        os.kill(process.pid, end)
    process.join(120)
    text = (tmp_path / "log").read_text()
    assert process.exitcode in (0, 1, 143) and "Traceback" not in text, text[-1500:]
    if process.exitcode == 143:
        assert "r2genkg: interrupted" in text.strip().splitlines()[-1]
    assert not list((tmp_path / "out").rglob("*.partial-*"))
    if process.exitcode:  # a file that is there is whole
        assert not [p for p in (tmp_path / "out").iterdir() if p.name[0] != "." and p.is_file()]
