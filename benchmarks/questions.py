"""Two questions that the paper leaves open, from the runs of the grid `questions`: denoising of 500 nodes, alignment of queries.

    r2genkg tables --grid questions --out runs/questions       # nine runs of the preset demo, one seed
    python benchmarks/questions.py runs/questions              # prints JSON; --out FILE also writes it

Of each variant its scores with 95 % intervals over test studies, and its difference from the first row of its table with
interval and p (approximate randomisation, Holm correction over the table).
"""
import argparse
import json
from pathlib import Path

import pandas as pd

from r2genkg.config import read_json
from r2genkg.tables import load_tables

TABLES, SCORE = ("table_denoising", "table_alignment"), "ce_f1/micro-14/u0"


def table(root: Path, name: str, folders: dict[str, Path]) -> dict[str, dict]:
    """Rows of a table that were run."""
    tests = pd.read_csv(root / "tables" / f"{name}_tests.csv").set_index(["row", "score of"])
    rows = {}
    for variant in (v for v in load_tables()[name].rows if v in folders):
        found = read_json(folders[variant] / "run" / "metrics.json")["intervals"]
        rows[variant] = {key: [round(x, 4) for x in found[key]] for key in (SCORE, "BLEU-4", "CIDEr")}
        if (variant, SCORE) in tests.index:
            against = tests.loc[(variant, SCORE)]
            rows[variant]["difference"] = {k: round(float(against[k]), 4) for k in ("difference", "low", "high", "p_holm")}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of the finished grid")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    folders = {job["variant"]: args.root / job["folder"] for job in read_json(args.root / "grid.json", list) if job["state"] == "finished"}
    result = {name: table(args.root, name, folders) for name in TABLES}
    print(json.dumps(result, indent=2))
    if args.out: args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
