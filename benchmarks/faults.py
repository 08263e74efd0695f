"""The campaign of faults: every try of `tests/faults`, counted by area, and the 800 kills and races of the replacing.

    python benchmarks/faults.py                       # all areas; the demos that are killed take minutes
    python benchmarks/faults.py --areas consent app   # some of them
    python benchmarks/faults.py --out FILE            # the table as JSON, too; areas that are not run keep their rows

A try is one case of a test: an input, a request or an end from outside. It held if the test passed. A skipped try (no
rights to mount a disk, Gradio not installed) is counted apart and is no try.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from r2genkg.core.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
#: Area -> its test files.
AREAS = {
    "consent and keys": ["test_consent.py"],
    "the page": ["test_app_faults.py"],
    "strangers' files": ["test_hostile_inputs.py", "test_strangers.py"],
    "damaged readers": ["test_reader_faults.py"],
    "damaged artifacts": ["test_artifact_faults.py"],
    "ends, memory, terminals": ["test_ends.py"],
    "places": ["test_places.py"],
    "kills of whole commands": ["test_kills.py"],
    "replacing, in each test run": ["test_replacing.py"],
    "scoring and its Java": ["test_scoring_faults.py"],
    "tables of labels and boxes": ["test_table_faults.py"],
    "tables that are written": ["test_written_tables.py"],
    "numbers of workers": ["test_two_workers.py"],
    "temporary folder": ["test_litter.py"],
    "advisories": ["test_advisories.py"],
}


def counted(files: list[str]) -> dict[str, int]:
    "Tries, held and skipped cases of test files."
    paths = [str(ROOT / "tests" / "faults" / file) for file in files]
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report.name}", *paths]
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        cases = list(ElementTree.parse(report.name).iter("testcase"))
    skipped = sum(case.find("skipped") is not None for case in cases)
    failed = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    for case in failed:
        print(f"  not held: {case.get('classname')} {case.get('name')}", file=sys.stderr)
    tried = len(cases) - skipped
    return {"tried": tried, "held": tried - len(failed), "skipped": skipped}


def replaced(tries: int) -> dict[str, int]:
    "Tries and held ones of `test_replacing` as a campaign."
    sys.path.insert(0, str(ROOT / "tests" / "faults"))
    import r2genkg.core.files as files
    from test_replacing import campaign

    lost = tried = 0
    for exchange in (True, False):
        if not exchange:
            files._exchange = lambda a, b: False
        with contextlib.redirect_stdout(sys.stderr):
            rows = campaign(files, -(-tries // 6), exchange)
        tried += sum(row[0] for row in rows.values())
        lost += sum(row[1] for row in rows.values())
    return {"tried": tried, "held": tried - lost, "skipped": 0}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--areas", nargs="*", default=[], help="words in the names of areas")
    parser.add_argument("--replacing", type=int, default=800, help="kills and races; 0: none")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = read_json(args.out, dict) if args.out and args.out.exists() else {}
    for area, files in AREAS.items():
        if args.areas and not any(word in area for word in args.areas):
            continue
        rows[area] = counted(files)
        print(f"{area:28} {json.dumps(rows[area])}", flush=True)
        if args.out:
            write_json(args.out, rows)
    if args.replacing:
        rows["replacing, killed and raced"] = replaced(args.replacing)
    print("| area | tried | held | skipped |\n|---|---|---|---|")
    for area, row in rows.items():
        print(f"| {area} | {row['tried']} | {row['held']} | {row['skipped']} |")
    if args.out:
        write_json(args.out, rows)


if __name__ == "__main__":
    main()
