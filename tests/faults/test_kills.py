"""kill -9 at random moments of demo, train, tables and kg build: the next call completes, with the same result.

The same: every file to the last byte, every tensor to the last bit (the order of a safetensors file's header is free).
"""

import hashlib
import os
import random
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
from safetensors import safe_open

from jobs import job
from tiny_demo import TINY

GRID = "preset: demo\nseeds: [42]\nvariants: {full: [], zero-KG: [model.use_graph=false]}\n"
#: Files with times in them: the page, pictures, the trainer's log, measured speed, and hidden work.
TIMED = ("index.html", "history.json", "stages.json", ".png", ".svg", ".pdf")


def command(
    processes, args: list[str], folder: Path, kill_after: float | None = None
) -> tuple[int, float]:
    """Run a command, or kill it after some seconds; its exit code and the seconds it ran."""
    process = processes.Process(
        target=job, args=([*map(str, args)], str(folder.with_suffix(".log")))
    )
    start = time.perf_counter()
    process.start()
    process.join(kill_after)
    if process.is_alive() and kill_after is not None:
        os.kill(process.pid, signal.SIGKILL)
    process.join(300)
    return process.exitcode or 0, time.perf_counter() - start


def whole(processes, args: list[str], folder: Path) -> float:
    code, seconds = command(processes, args, folder)
    assert code == 0, folder.with_suffix(".log").read_text()[-3000:]
    return seconds


def contents(folder: Path) -> dict[str, str]:
    """Path -> hash of everything that a command leaves and that contains no time."""

    def content(path: Path) -> bytes:
        if path.suffix == ".safetensors":
            with safe_open(str(path), "np") as file:
                return repr(
                    [
                        (k, file.get_tensor(k).dtype, file.get_tensor(k).tobytes())
                        for k in sorted(file.keys())
                    ]
                    + sorted((file.metadata() or {}).items())
                ).encode()
        if path.name != "tokens.parquet":
            return path.read_bytes()
        table = pd.read_parquet(path)  # names the images by their place
        return (
            table.assign(
                image=[
                    os.path.relpath(i, folder) if os.path.isabs(i) else i for i in table["image"]
                ]
            )
            .to_csv()
            .encode()
        )

    files = (
        p
        for p in folder.rglob("*")
        if p.is_file()
        and not p.name.endswith(TIMED)
        and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )
    return {
        str(p.relative_to(folder)): hashlib.sha256(content(p)).hexdigest() for p in sorted(files)
    }


def killed(processes, args: list[str], folder: Path, seconds: float, kills: int) -> str:
    """Kill the command at random moments, then let it finish. Returns the moments."""
    moments = []
    for n in range(kills):
        moment = seconds / kills * (n + random.random()) if n else seconds * random.random() * 0.6
        code, _ = command(processes, args, folder, max(moment, 0.05))
        moments.append(f"{moment:.2f} s -> {code}")
        assert code in (-signal.SIGKILL, 0)
    whole(processes, args, folder)
    assert not list(folder.parent.rglob("*.partial-*")), f"killed at {moments}"
    return ", ".join(moments)


def same(found: dict[str, str], wanted: dict[str, str], moments: str) -> None:
    differing = sorted(k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k))
    assert not differing, f"killed at {moments}: {differing[:6]}"


@pytest.fixture(scope="module")
def demo(processes, tmp_path_factory) -> tuple[Path, float]:
    """An uninterrupted demo, and the seconds it took."""
    folder = tmp_path_factory.mktemp("kills") / "whole"
    return folder, whole(processes, ["demo", "--out", folder, *TINY], folder)


def test_demo(processes, demo, tmp_path):
    reference, seconds = demo
    moments = killed(
        processes, ["demo", "--out", tmp_path / "d", *TINY], tmp_path / "d", seconds, 2
    )
    same(contents(tmp_path / "d"), contents(reference), moments)
    assert (tmp_path / "d" / "index.html").stat().st_size > 100_000


def test_train(processes, demo, tmp_path):
    reference, seconds = demo
    moments = killed(
        processes, ["train", "--out", tmp_path / "t", *TINY], tmp_path / "t", seconds / 2, 2
    )
    wanted = {
        k: v
        for k, v in contents(reference).items()
        if k.partition("/")[0]
        in ("studies", "m3kg", "scales", "classifier", "vision_tokens", "run")
    }
    same(contents(tmp_path / "t"), wanted, moments)


def test_tables(processes, demo, tmp_path):
    reference, seconds = demo
    (tmp_path / "grid.yaml").write_text(GRID)
    args = [
        "tables",
        "--grid",
        tmp_path / "grid.yaml",
        "--only",
        "table1_results",
        "--only",
        "table3_components",
        *TINY,
        "--out",
    ]
    moments = killed(processes, [*args, tmp_path / "g"], tmp_path / "g", seconds, 2)
    found = contents(tmp_path / "g")
    tables = {k for k in found if k.startswith("tables/")}
    same(
        {k: v for k, v in found.items() if k not in tables},
        {
            k: v
            for k, v in contents(reference).items()
            if not k.startswith("figures") and k != "summary.json"
        },
        moments,
    )
    assert (
        "tables/table1_results.md" in tables
        and "not run: not in this grid"
        in (tmp_path / "g" / "tables" / "table3_components.md").read_text()
    )


def test_kg_build(processes, tmp_path):
    reports = [
        f"{size} {side} {what}. {other}."
        for size in ("Small", "Moderate", "Large")
        for side in ("left", "right", "bilateral")
        for what in (
            "pleural effusion",
            "pneumothorax",
            "basilar opacity suggests pneumonia",
            "lower lobe atelectasis",
        )
        for other in (
            "Heart size is normal",
            "The heart is enlarged with pulmonary edema",
            "No focal consolidation",
            "Endotracheal tube in place",
            "Aorta is tortuous",
        )
    ] * 8
    pd.DataFrame(
        {"id": [f"r{i}" for i in range(len(reports))], "image": "a.png", "findings": reports}
    ).to_csv(tmp_path / "r.csv", index=False)
    args = ["kg", "build", "--studies", tmp_path / "r.csv", "--out"]
    seconds = whole(processes, [*args, tmp_path / "whole"], tmp_path / "whole")
    moments = killed(processes, [*args, tmp_path / "g"], tmp_path / "g", seconds, 5)
    same(contents(tmp_path / "g"), contents(tmp_path / "whole"), moments)
