"""How the commands grow with the reports and the cores: reports/s, memory, and whether the results are equal.

    python benchmarks/scale.py --out benchmarks/results/scale.json     # 10,000 to 1,000,000 reports, 1 and 2 workers
    python benchmarks/scale.py --sizes 1000000 --commands "kg build" annotate label --out FILE

With `--out` every row is written when it is measured, and the same command goes on after the last one.

The reports are the packaged Open-i findings with changed words (`perturbed` of graph.py). Each command runs as a user
runs it, in a process of its own. The memory is the largest sum of the resident memory of that process and its workers,
sampled four times a second (pages that several processes share count more than once). The seconds are those of the
clock, so run it on an idle machine; `load` is the machine's load when a row began.
"""

import argparse
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from graph import perturbed
from r2genkg.core.files import read_json, write_json

SIZES = [10_000, 50_000, 250_000, 1_000_000]
PROGRAM = [sys.executable, "-c", "from r2genkg.use.commands import main; main()"]


def write_reports(path: Path, count: int) -> None:
    "A table of reports."
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image", "findings"])
        writer.writerows([id, "a.png", text] for id, text in perturbed(count))


def write_pairs(folder: Path, count: int) -> None:
    "References, and the same texts changed otherwise as hypotheses."
    for name, seed in (("refs", 0), ("hypos", 1)):
        texts = {id: [text] for id, text in perturbed(count, seed)}
        (folder / f"{name}.json").write_text(json.dumps(texts), encoding="utf-8")


def arguments(command: str, folder: Path, out: Path, workers: int) -> list[str]:
    "The command line."
    table, more = str(folder / "reports.csv"), ["--workers", str(workers)]
    return {
        "kg build": ["kg", "build", "--studies", table, "--out", str(out), *more],
        "annotate": ["annotate", table, "--out", f"{out}.jsonl", *more],
        "label": ["label", table, "--out", f"{out}.csv", "--key", "id", *more],
        "score": [
            *("score", "--refs", str(folder / "refs.json")),
            *("--hypos", str(folder / "hypos.json"), "--json", *more),
        ],
    }[command]


def family(pid: int) -> list[int]:
    "A process and all below it."
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(p for child in children for p in family(int(child)))]


def resident(pid: int) -> int:
    "Resident bytes of a process; 0 if it is gone."
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def timed(args: list[str]) -> tuple[float, int, str]:
    "Seconds, largest memory in MiB, and what was printed."
    start, most = time.perf_counter(), 0
    process = subprocess.Popen(args, stdout=subprocess.PIPE, text=True)
    while process.poll() is None:
        most = max(most, sum(map(resident, family(process.pid))))
        time.sleep(0.25)
    seconds, printed = time.perf_counter() - start, process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"{args}: exit {process.returncode}")
    return seconds, most // 2**20, printed


def content(out: Path, printed: str) -> str:
    "A hash of the files that a command wrote, or of what it printed."
    files = sorted(
        p for p in [*out.parent.rglob("*")] if p.is_file() and not p.name.startswith(".")
    )
    h = hashlib.sha256(b"" if files else printed.encode())
    for file in files:
        h.update(file.name.encode() + file.read_bytes())
    return h.hexdigest()[:16]


def write_inputs(folder: Path, commands: list[str], size: int) -> None:
    "What the commands read."
    if set(commands) - {"score"}:
        write_reports(folder / "reports.csv", size)
    if "score" in commands:
        write_pairs(folder, size)


def measured(command: str, size: int, workers: int, folder: Path) -> dict:
    "One row."
    out = folder / f"{command.replace(' ', '-')}-{workers}" / "out"
    out.parent.mkdir()
    load = os.getloadavg()[0]
    seconds, memory, printed = timed([*PROGRAM, *arguments(command, folder, out, workers)])
    found = {
        "command": command,
        "reports": size,
        "workers": workers,
        "seconds": round(seconds, 1),
        "reports_per_s": round(size / seconds),
        "peak_MiB": memory,
        "load_before": round(load, 1),
        "content": content(out, printed),
    }
    shutil.rmtree(out.parent)
    return found


def against_first(row: dict, done: list[dict]) -> dict:
    "The row beside the first of the same command and size."
    kind = ("command", "reports")
    first = next((r for r in done if all(r[k] == row[k] for k in kind)), row)
    return row | {
        "speed_to_first": round(first["seconds"] / row["seconds"], 2),
        "equal_to_first": first["content"] == row["content"],
    }


def rows(commands: list[str], sizes: list[int], workers: list[int], done: list[dict]):
    "One row for each command, size and number of workers that is not done."
    known = {(r["command"], r["reports"], r["workers"]) for r in done}
    for size in sizes:
        left = [(c, n) for c in commands for n in workers if (c, size, n) not in known]
        if not left:
            continue
        with tempfile.TemporaryDirectory() as place:
            write_inputs(Path(place), [command for command, _ in left], size)
            for command, n in left:
                yield measured(command, size, n, Path(place))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--commands", nargs="+", default=["kg build", "annotate", "label"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = read_json(args.out, list) if args.out and args.out.exists() else []
    for one in rows(args.commands, args.sizes, args.workers, found):
        found.append(against_first(one, found))
        print(json.dumps(found[-1]), flush=True)
        if args.out:
            write_json(args.out, found)


if __name__ == "__main__":
    main()
