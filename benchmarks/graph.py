"""Graph construction: ReXKG's row-by-row steps, re-created straight, beside the grouped ones, in one run.

    python benchmarks/graph.py                        # reversed pairs at 1x, 4x, 16x of 21,624 triples
    python benchmarks/graph.py --growth 10000 50000   # reports/s and peak memory of annotate + build on repeated Open-i reports

Triples are synthetic: as many as ReXKG published, between as many nodes, with Zipf-like counts (seeded).
"""
import argparse
import json
import re
import resource
import time

import numpy as np
import pandas as pd

from r2genkg.annotate import iter_annotations
from r2genkg.graph import build_graph
from r2genkg.graph_io import rexkg_pairs
from r2genkg.records import RELATION_TYPES
from r2genkg.studies import read_openi_package

ROWS, NODES = 21_624, 1_396


def triples(times: int, seed: int = 0) -> pd.DataFrame:
    "Synthetic triples, about a fifth of which have a reversed twin."
    rng = np.random.default_rng(seed)
    n = ROWS * times
    ends = rng.integers(0, NODES * times, (n, 2))
    ends[: n // 5] = ends[n // 5: 2 * (n // 5), ::-1]
    table = pd.DataFrame({"source": [f"n{i}" for i in ends[:, 0]], "target": [f"n{i}" for i in ends[:, 1]],
                          "type": np.array(RELATION_TYPES)[rng.integers(0, 3, n)], "count": rng.zipf(1.6, n).clip(max=20_000)})
    return table.drop_duplicates(["source", "target"]).query("source != target").reset_index(drop=True)


def looped_pairs(table: pd.DataFrame) -> pd.DataFrame:
    "ReXKG's step: walk the rows, look the reversed pair up, add its count with df.loc, drop the weaker direction."
    by = table.groupby(["source", "target"], sort=False).agg(type=("type", "first"), count=("count", "sum")).reset_index()
    place = {(r.source, r.target): i for i, r in by.iterrows()}
    drop = set()
    for i, row in by.iterrows():
        j = place.get((row.target, row.source))
        if j is None or i in drop or j in drop: continue
        keep, lose = (i, j) if by.loc[i, "count"] >= by.loc[j, "count"] else (j, i)
        by.loc[keep, "count"] = by.loc[keep, "count"] + by.loc[lose, "count"]
        drop.add(lose)
    return by.drop(index=list(drop))


def timed(call, *args):
    start = time.perf_counter()
    result = call(*args)
    return result, time.perf_counter() - start


def pairs_table(scales: list[int]) -> list[dict]:
    rows = []
    for times in scales:
        table = triples(times)
        slow, slow_s = timed(looped_pairs, table)
        fast, fast_s = timed(rexkg_pairs, table)
        same = set(zip(slow.source, slow.target, slow["count"])) == set(zip(fast.source, fast.target, fast["count"]))
        ties = len(set(map(frozenset, zip(slow.source, slow.target))) ^ set(map(frozenset, zip(fast.source, fast.target))))
        rows.append({"scale": f"{times}x", "rows": len(table), "loop_s": round(slow_s, 3), "grouped_s": round(fast_s, 3), "ratio": round(slow_s / fast_s, 1),
                     "same_counts": int(slow["count"].sum()) == int(fast["count"].sum()), "identical_up_to_ties": same or ties == 0})
    return rows


def perturbed(count: int, seed: int = 0):
    "`count` reports: the packaged Open-i findings again and again, one number word changed at random."
    rng = np.random.default_rng(seed)
    texts = [s.findings for s in read_openi_package() if s.findings]
    words = ("tiny", "small", "mild", "moderate", "large", "severe", "subtle", "stable")
    for i in range(count):
        yield f"r{i}", re.sub(r"\b(small|mild|moderate|large|stable)\b", lambda _: words[rng.integers(len(words))], texts[i % len(texts)])


def growth_table(sizes: list[int]) -> list[dict]:
    rows = []
    for size in sizes:
        graph, seconds = timed(lambda n: build_graph(iter_annotations(perturbed(n))), size)
        rows.append({"reports": size, "seconds": round(seconds, 1), "reports_per_s": round(size / seconds), "nodes": len(graph.nodes),
                     "triples": len(graph.triples), "peak_MiB_of_process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024})
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scales", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--growth", type=int, nargs="*", default=[])
    args = parser.parse_args()
    print(json.dumps(growth_table(args.growth) if args.growth else pairs_table(args.scales), indent=2))
