"""The temporary folder is as empty after a command as before it, whether the command ends well, badly or by SIGTERM.

The app is in `test_app_faults`, the text commands with two workers are in `test_ends`.
"""

import contextlib
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import job_in
from tiny_demo import TINY


class Place:
    """Runs commands with a temporary folder of their own."""

    def __init__(self, processes, folder: Path) -> None:
        self.processes, self.folder, self.temporary = processes, folder, folder / "temporary"
        self.temporary.mkdir(parents=True)

    def run(self, args: list, end_after: float | None = None) -> int:
        log, args = self.folder / "log", [*map(str, args)]
        places = (str(self.temporary), args, str(log), str(self.folder))
        process = self.processes.Process(target=job_in, args=places)
        process.start()
        if end_after is not None:
            time.sleep(end_after)
            with contextlib.suppress(ProcessLookupError):  # it may have ended
                os.kill(process.pid, signal.SIGTERM)
        process.join(600)
        return process.exitcode or 0

    def left(self) -> list[str]:
        return sorted(p.name for p in self.temporary.iterdir())


@pytest.fixture
def place(processes, tmp_path) -> Place:
    return Place(processes, tmp_path)


@pytest.fixture(scope="module")
def made(processes, tmp_path_factory) -> Place:
    """A finished tiny demo."""
    place = Place(processes, tmp_path_factory.mktemp("demo"))
    code = place.run(["demo", "--out", place.folder / "run", *TINY])
    assert code == 0, (place.folder / "log").read_text()[-3000:]
    return place


def arguments(name: str, run: Path, folder: Path) -> list:
    film = folder / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60), dtype=np.uint8)).save(film)
    (folder / "r.csv").write_text("id,image,findings\nr1,a.png,Small left effusion.\n")
    (folder / "r.json").write_text('{"r1": ["Small left effusion."], "r2": ["Clear."]}')
    return {
        "report": ["report", film, "--run", run, "--out", folder / "r.html"],
        "report, no image": ["report", folder / "r.csv", "--run", run],
        "audit": ["audit", run, "--out", folder / "audit"],
        "label": ["label", folder / "r.csv", "--out", folder / "l.csv"],
        "annotate": ["annotate", folder / "r.csv", "--out", folder / "a.jsonl"],
        "kg build": [
            "kg",
            "build",
            "--min-count",
            "1",
            "--studies",
            folder / "r.csv",
            "--out",
            folder / "kg",
        ],
        "score": ["score", "--refs", folder / "r.json", "--hypos", folder / "r.json"],
        "demo": ["demo", "--out", folder / "run", *TINY],
    }[name]


NAMES = ["report", "report, no image", "audit", "label", "annotate", "kg build", "score"]


def test_demo(made):
    assert made.left() == []


@pytest.mark.parametrize("name", NAMES)
def test_a_command_to_its_end(made, place, name):
    code = place.run(arguments(name, made.folder / "run", place.folder))
    assert code == (1 if name == "report, no image" else 0), (place.folder / "log").read_text()
    assert place.left() == []


@pytest.mark.parametrize("seconds", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("name", ["report", "audit", "demo", "score"])
def test_a_command_that_is_ended(made, place, name, seconds):
    code = place.run(arguments(name, made.folder / "run", place.folder), seconds)
    assert code in (0, 143, -signal.SIGTERM), (place.folder / "log").read_text()
    assert place.left() == []
