"""Two questions that the paper leaves open, from runs of the grid `questions`: denoising 500 nodes, aligning queries.

    r2genkg tables --grid questions --out runs/questions       # nine runs of the preset demo-paper, seed 42
    r2genkg tables --grid rows.yaml --seeds 43,44 --out runs/more   # some of its rows, with other seeds
    python benchmarks/questions.py runs/questions runs/more    # prints JSON; --out FILE also writes it

Each variant has its scores (means over seeds, with 95 % intervals over test studies) and its difference from the first
row of its table, over the seeds that both have, with interval and p (approximate randomisation, Holm correction over
rows and scores).
"""

import argparse
import json
from pathlib import Path

from r2genkg.core.files import read_json
from r2genkg.scores.significance import bootstrap, compare, holm
from r2genkg.training.tables import load_tables, run_stats

TABLES, KEYS = ("table_denoising", "table_alignment"), ("ce_f1/micro-14/u0", "BLEU-4", "CIDEr")
SCORE = KEYS[0]


def table(name: str, runs: dict[str, dict[int, Path]]) -> dict[str, dict]:
    """Rows of a table that were run; `runs` gives the folder of each variant and seed."""
    stats = {
        v: {seed: run_stats(run) for seed, run in runs[v].items()}
        for v in load_tables()[name].rows
        if v in runs
    }
    first, rows, tests = next(iter(stats)), {}, {}
    for variant, mine in stats.items():
        found = bootstrap(list(mine.values()), list(KEYS))
        rows[variant] = {"seeds": sorted(mine)} | {
            k: [round(float(x), 4) for x in found.loc[k, ["score", "low", "high"]]] for k in KEYS
        }
        both = sorted(mine.keys() & stats[first].keys())
        if variant != first:
            tests[variant] = compare(
                [stats[first][s] for s in both], [mine[s] for s in both], list(KEYS)
            ).assign(seeds=len(both))
    adjusted = iter(holm([p for t in tests.values() for p in t.p]))
    for variant, t in tests.items():
        t = t.assign(p_holm=[next(adjusted) for _ in KEYS]).loc[SCORE]
        rows[variant]["difference"] = {
            k: round(float(t[k]), 4) for k in ("difference", "low", "high", "p_holm")
        } | {"seeds": int(t.seeds)}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("roots", type=Path, nargs="+", help="folders of the grids")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    runs: dict[str, dict[int, Path]] = {}
    for root in args.roots:
        for job in read_json(root / "grid.json", list):
            if job["state"] == "finished":
                runs.setdefault(job["variant"], {})[job["seed"]] = root / job["folder"] / "run"
    result = {name: table(name, runs) for name in TABLES}
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
