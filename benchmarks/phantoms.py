"""Speed of the phantom generator: one process step by step, then a whole data set on disk over all cores.

OMP_NUM_THREADS=1 python benchmarks/phantoms.py          # prints JSON; --out FILE also writes it
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from r2genkg.phantom.drawing import draw
from r2genkg.phantom.findings import sample_findings
from r2genkg.phantom.phantoms import make_phantom, write_phantoms
from r2genkg.phantom.wording import write_report


def milliseconds(work, n: int) -> dict[str, float]:
    """Median and 95th percentile of the wall time of `work(k)`, and the processor time per call, in ms."""
    walls, start = [], time.process_time()
    for k in range(n):
        t = time.perf_counter()
        work(k)
        walls.append(1e3 * (time.perf_counter() - t))
    cpu = 1e3 * (time.process_time() - start) / n
    return {
        "median": round(statistics.median(walls), 2),
        "p95": round(float(np.percentile(walls, 95)), 2),
        "cpu": round(cpu, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument(
        "--repeats", type=int, default=200, help="phantoms of the one-process timings"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    make_phantom(0, 0, args.size)  # textures, tokenizer and grammar are made once per process
    cases = [sample_findings(np.random.default_rng(k)) for k in range(args.repeats)]
    rng = np.random.default_rng(0)
    steps = {
        "draw": milliseconds(lambda k: draw(cases[k], rng, args.size), args.repeats),
        "report": milliseconds(lambda k: write_report(cases[k], rng), args.repeats),
        "phantom": milliseconds(lambda k: make_phantom(1, k, args.size), args.repeats),
    }
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        studies = write_phantoms(Path(folder) / "set", args.studies, 0, 0, size=args.size)
        seconds = time.perf_counter() - start
        stored = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
    result = {
        "machine": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "size": args.size,
        "ms_per_phantom": steps,
        "studies": len(studies),
        "seconds": round(seconds, 2),
        "ms_per_study": round(1e3 * seconds / len(studies), 2),
        "mbytes": round(stored / 1e6, 1),
    }
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
