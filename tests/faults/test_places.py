"""Places that cannot be written: a full or read-only disk, a limit on files, a file or another run in the way.

One line says what is wrong, nothing half written stays, and the same command completes once the place is mended.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from jobs import job, limited_job
from test_kills import command
from tiny_demo import TINY


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Reports and images for the commands."""
    folder = tmp_path_factory.mktemp("inputs")
    reports = [
        f"{size} {side} pleural effusion. Heart size is normal. Study {n}."
        for n in range(60)
        for size in ("Small", "Large")
        for side in ("left", "right")
    ]
    pd.DataFrame(
        {"id": [f"r{i}" for i in range(len(reports))], "image": "a.png", "findings": reports}
    ).to_csv(folder / "r.csv", index=False)
    (folder / "iu" / "images").mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48), dtype=np.uint8)).save(
        folder / "iu" / "images" / "a.png"
    )
    studies = [
        {"id": f"CXR{i}_IM-1", "report": r, "image_path": ["a.png"], "split": "train"}
        for i, r in enumerate(reports)
    ]
    (folder / "iu" / "annotation.json").write_text(
        json.dumps({"train": studies, "val": [], "test": []})
    )
    return folder


def commands(inputs: Path, out: Path) -> dict[str, list]:
    """Each command that writes, with an output below `out`."""
    return {
        "kg build": ["kg", "build", "--studies", inputs / "r.csv", "--out", out / "kg"],
        "label": ["label", inputs / "r.csv", "--out", out / "l.csv"],
        "annotate": ["annotate", inputs / "r.csv", "--out", out / "a.jsonl"],
        "prepare": [
            "data",
            "prepare",
            "iu-xray",
            "--root",
            inputs / "iu",
            "--out",
            out / "s.parquet",
        ],
        "train": ["train", "--out", out / "run", *TINY],
    }


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own: `disk(size)` mounts it, `disk(size, options)` changes it."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root can mount a small disk")
    mounted = []

    def change(size: str, options: str = "rw") -> Path:
        done = subprocess.run(
            [
                "mount",
                "-t",
                "tmpfs",
                "-o",
                f"{'remount,' if mounted else ''}{options},size={size}",
                "tmpfs",
                place,
            ],
            capture_output=True,
            text=True,
        )
        if done.returncode and not mounted:
            pytest.skip(f"no small disk here: {done.stderr.strip()[:80]}")
        assert not done.returncode, done.stderr
        mounted.append(size)
        return place

    yield change
    if mounted:
        subprocess.run(["umount", "-l", place], check=True)


def refused(processes, args: list, log: Path) -> str:
    """The one line with which a command ends."""
    log.with_suffix(".log").unlink(missing_ok=True)
    code, _ = command(processes, args, log)
    message = log.with_suffix(".log").read_text()
    assert code == 1 and "Traceback" not in message, f"exit {code}\n{message[-3000:]}"
    return message.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "size, name",
    [
        ("8k", "kg build"),
        ("4k", "label"),
        ("4k", "annotate"),
        ("4k", "prepare"),
        ("8k", "train"),
        ("120k", "train"),
        ("1m", "train"),
        ("4m", "train"),
    ],
)
def test_full_disk(processes, inputs, disk, tmp_path, size, name):
    out = disk(size)
    message = refused(processes, commands(inputs, out)[name], tmp_path / "c")
    assert message.startswith("r2genkg: ") and "No space left" in message, message
    if name != "train":
        assert not [p for p in out.rglob("*") if p.is_file()]
    assert not list(out.rglob("*.partial-*"))
    if (size, name) in {("8k", "train"), ("120k", "train"), ("4m", "train")}:
        return
    disk("300m")
    code, _ = command(processes, commands(inputs, out)[name], tmp_path / "again")
    assert code == 0, (tmp_path / "again.log").read_text()[-2000:]


@pytest.mark.parametrize("name", ["kg build", "label", "annotate", "prepare", "train"])
def test_read_only_disk(processes, inputs, disk, tmp_path, name):
    disk("1m")
    out = disk("1m", "ro")
    message = refused(processes, commands(inputs, out)[name], tmp_path / "c")
    assert "Read-only file system" in message and str(out) in message, message


@pytest.mark.parametrize("name", ["kg build", "label", "annotate", "prepare", "train"])
def test_a_file_in_the_way(processes, inputs, tmp_path, name):
    (tmp_path / "out").write_text("a file")
    message = refused(processes, commands(inputs, tmp_path / "out")[name], tmp_path / "c")
    assert str(tmp_path / "out") in message and (tmp_path / "out").read_text() == "a file"


@pytest.mark.parametrize("name", ["kg build", "annotate", "prepare", "train", "export"])
def test_a_users_folder_in_the_way(processes, inputs, tmp_path, name):
    """A corpus named as the output by mistake keeps all its files."""
    out = {
        "kg build": "kg",
        "annotate": "a.jsonl",
        "prepare": "s.parquet",
        "train": "run/studies",
        "export": "x",
    }[name]
    if name == "export":
        assert command(processes, commands(inputs, tmp_path)["kg build"], tmp_path / "k")[0] == 0
    shutil.copytree(inputs / "iu", tmp_path / out)
    given = (
        ["kg", "export", tmp_path / "kg", "--format", "neo4j", "--out", tmp_path / out]
        if name == "export"
        else commands(inputs, tmp_path)[name]
    )
    message = refused(processes, given, tmp_path / "c")
    assert message.startswith(f"r2genkg: {tmp_path / out}: ") and (
        "would be lost" in message or "is a folder; name a file" in message
    ), message
    assert {p.relative_to(tmp_path / out) for p in (tmp_path / out).rglob("*")} == {
        p.relative_to(inputs / "iu") for p in (inputs / "iu").rglob("*")
    }


@pytest.mark.parametrize(
    "name, limit",
    [("kg build", 2_000), ("label", 500), ("annotate", 500), ("prepare", 1_000), ("train", 20_000)],
)
def test_limit_on_files(processes, inputs, tmp_path, name, limit):
    process = processes.Process(
        target=limited_job,
        args=([*map(str, commands(inputs, tmp_path / "o")[name])], str(tmp_path / "c.log"), limit),
    )
    process.start()
    process.join(200)
    message = (tmp_path / "c.log").read_text()
    assert (
        process.exitcode == 1
        and "Traceback" not in message
        and "File too large" in message.strip().splitlines()[-1]
    ), message[-2000:]
    assert not list(tmp_path.rglob("*.partial-*")) and resource.RLIMIT_FSIZE is not None


def test_second_run_in_a_folder_is_refused(processes, tmp_path):
    args = ["train", "--out", tmp_path / "run", *TINY]
    first = processes.Process(target=job, args=([*map(str, args)], str(tmp_path / "first.log")))
    first.start()
    until = time.time() + 60
    while not (tmp_path / "run" / ".lock").exists() and time.time() < until:
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGSTOP)  # it holds the folder until both others were message
    for other in (args, ["demo", "--out", tmp_path / "run", *TINY]):
        message = refused(processes, other, tmp_path / "second")
        assert (
            "another run is working in this folder" in message and str(tmp_path / "run") in message
        )
    assert first.is_alive()
    first.kill()
    first.join(60)
