"""The campaign of faults: every try of `tests/faults`, counted by area, and the 800 kills and races of the replacing.

    python benchmarks/faults.py                       # all areas; the demos that are killed take minutes
    python benchmarks/faults.py --areas consent app   # some of them
    python benchmarks/faults.py --out FILE            # the table as JSON, too; areas that are not run keep their rows
    python benchmarks/faults.py --before TREE ...     # the same tries against an older tree: `held before` of each area

A try is one case of a test: an input, a request or an end from outside. It held if the test passed. A skipped try (no
rights to mount a disk, Gradio not installed) is counted apart and is no try.
"""

import argparse
import contextlib
import json
import os
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
    "pipes, devices, names": ["test_no_files.py"],
    "stored tables and runs": ["test_stored_tables.py"],
    "odd tables": ["test_odd_tables.py"],
    "settings and variables": ["test_odd_settings.py"],
    "odd films": ["test_odd_films.py"],
    "what terminals show": ["test_terminals.py"],
    "endpoints of language models": ["test_odd_endpoints.py"],
    "signals": ["test_signals.py"],
    "advisories": ["test_advisories.py"],
}


def counted(files: list[str], tree: Path) -> dict[str, int]:
    "Tries, held and skipped cases of test files against the package in `tree`."
    paths = [str(ROOT / "tests" / "faults" / file) for file in files]
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        options = ["-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", f"--junitxml={report.name}"]
        command = [sys.executable, "-m", "pytest", *options, *paths]
        places = os.environ | {"PYTHONPATH": str(tree)}
        if tree != ROOT:
            places["FAULTS_LIMIT"] = "120"  # what hangs in an older tree is soon left
        subprocess.run(command, cwd=tree, env=places, stdout=subprocess.DEVNULL)
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
    parser.add_argument("--before", type=Path, help="an older tree of this repository")
    args = parser.parse_args()
    rows = read_json(args.out, dict) if args.out and args.out.exists() else {}
    for area, files in AREAS.items():
        if args.areas and not any(word in area for word in args.areas):
            continue
        found = counted(files, (args.before or ROOT).resolve())
        if args.before:
            rows[area] = rows.get(area, {}) | {"held_before": found["held"]}
        else:
            rows[area] = rows.get(area, {}) | found
        print(f"{area:28} {json.dumps(rows[area])}", flush=True)
        if args.out:
            write_json(args.out, rows)
    if args.replacing and not args.before:
        rows["replacing, killed and raced"] = replaced(args.replacing)
    names = ("tried", "held_before", "held", "skipped")
    print("| area | tried | held before | held | skipped |\n|---|---|---|---|---|")
    for area, row in rows.items():
        print(f"| {area} | {' | '.join(str(row.get(name, '')) for name in names)} |")
    if args.out:
        write_json(args.out, rows)


if __name__ == "__main__":
    main()
