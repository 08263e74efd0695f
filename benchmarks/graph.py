"""Graph construction: a straight re-creation of ReXKG's loops beside the grouped steps, and growth with the reports.

    python benchmarks/graph.py                              # 1x, 4x, 16x of ReXKG's published size, synthetic
    python benchmarks/graph.py --rexkg FOLDER               # its kg_nodes.json and kg_relations.csv, renamed copies
    python benchmarks/graph.py --growth 10000 50000 250000  # annotate by rules and build, a process for each size
    python benchmarks/graph.py --growth 10000 50000 250000 --cache 0   # sentences are not remembered: linear time

The growth run repeats the packaged Open-i findings with changed words (`perturbed`). 250,000 reports take minutes.
Times are processor seconds of one thread, so that a busy machine does not matter. `--out FILE` writes each row as it
comes, as JSON.
"""

import argparse
import json
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from r2genkg.data.annotation import RELATION_TYPES
from r2genkg.data.openi import read_openi_package
from r2genkg.extraction.annotate import iter_annotations
from r2genkg.kg.build import build_graph
from r2genkg.kg.construction import compose, leave_to_one, node_table, triple_table
from r2genkg.kg.counts import Counts, surface_table, unfit_reason
from r2genkg.kg.exchange import rexkg_pairs
from r2genkg.kg.linker import Concept
from r2genkg.kg.merging import GraphOptions, merge_surfaces

TERMS, ROWS, LIMIT_S = 6_452, 21_624, 120


# ---- input: terms with types, counts and concepts; rows of relations ----


def published(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    "Aliases of ReXKG's published nodes as terms, and its relations."
    nodes = json.loads((folder / "kg_nodes.json").read_text(encoding="utf-8"))
    rows = [
        (
            a.lower(),
            v["entity_type"],
            max(1, v["count"] // len(v["Aliases"])),
            v["CUI"] if re.fullmatch(r"C\d{7}", v["CUI"]) else "",
        )
        for v in nodes.values()
        for a in dict.fromkeys(x.lower() for x in v["Aliases"])
    ]
    terms = pd.DataFrame(rows, columns=["term", "type", "count", "cui"]).drop_duplicates("term")
    edges = pd.read_csv(folder / "kg_relations.csv", keep_default_na=False)
    return terms, edges.rename(columns={"source_entity": "source", "target_entity": "target"})[
        ["source", "target", "type", "count"]
    ]


def synthetic(seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    "As many terms and rows as ReXKG published; a quarter single words, the others made of words, partly unknown."
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = list(
        dict.fromkeys("".join(rng.choice(letters, rng.integers(5, 11))) for _ in range(2 * TERMS))
    )
    known, terms = words[: TERMS // 4], []
    terms += known
    while len(terms) < TERMS:
        parts = [
            words[rng.integers(len(known) if rng.random() < 0.7 else len(words))]
            for _ in range(rng.choice([2, 3, 4, 5], p=[0.5, 0.3, 0.15, 0.05]))
        ]
        terms.append(" ".join(parts))
    kinds = rng.choice(
        ["concept", "anatomy", "disorder", "devices", "procedures"],
        len(terms),
        p=[0.5, 0.21, 0.15, 0.08, 0.06],
    )
    table = pd.DataFrame(
        {
            "term": terms,
            "type": kinds,
            "count": rng.zipf(1.6, len(terms)).clip(10, 20_000),
            "cui": "",
        }
    ).drop_duplicates("term")
    table["cui"] = np.where(
        rng.random(len(table)) < 0.6, [f"C{i // 4:07d}" for i in range(len(table))], ""
    )
    ends = rng.integers(0, len(known), (ROWS, 2))
    edges = pd.DataFrame(
        {
            "source": [known[i] for i in ends[:, 0]],
            "target": [known[i] for i in ends[:, 1]],
            "type": rng.choice(RELATION_TYPES, ROWS),
            "count": rng.zipf(1.6, ROWS).clip(max=20_000),
        }
    )
    return table, edges[edges.source != edges.target]


def copies(table: pd.DataFrame, columns: list[str], times: int) -> pd.DataFrame:
    "The table `times` times, every word of the copies renamed."

    def renamed(text: str, i: int) -> str:
        return " ".join(w + "qxzjkvwy"[i % 8] * (i // 8 + 1) for w in text.split()) if i else text

    parts = [
        table.assign(**{c: [renamed(t, i) for t in table[c]] for c in columns})
        for i in range(times)
    ]
    if "cui" in table:
        parts = [
            p.assign(cui=[f"{c}-{i}" if c else "" for c in p.cui]) for i, p in enumerate(parts)
        ]
    return pd.concat(parts, ignore_index=True)


def with_reversed(edges: pd.DataFrame) -> pd.DataFrame:
    "One row per pair, a fifth of them with a reversed twin, by falling count (what ReXKG's step reads)."
    pairs = edges.drop_duplicates(["source", "target"])
    twins = pairs.iloc[::5].rename(columns={"source": "target", "target": "source"})
    both = pd.concat([pairs, twins], ignore_index=True).drop_duplicates(["source", "target"])
    return both.query("source != target").sort_values(
        "count", ascending=False, kind="stable", ignore_index=True
    )


# ---- ReXKG's way: lists that are searched, rows that are walked ----


def looped_structure(terms: pd.DataFrame) -> tuple[list, dict]:
    """Single words isolated, longer terms split into known parts.

    Membership is tested in lists, and the list is made anew for each linked word.
    """
    cui_of = {t: c for t, c in zip(terms.term, terms.cui) if c}
    names = {}
    for t, c in cui_of.items():
        names.setdefault(c, []).append(t)
    by_length: dict[int, list[str]] = {}
    for _, row in terms.iterrows():
        by_length.setdefault(len(row["term"].split()), []).append(row["term"])
    known, single, isolated, composed = [], list(cui_of), [], {}
    for term in by_length.get(1, []):
        if term in cui_of:
            known.extend(names[cui_of[term]])
            known = list(set(known))
        else:
            known.append(term)
    isolated.extend(by_length.get(1, []))
    everything = list(by_length.get(1, []))
    for length in range(2, 6):
        for term in by_length.get(length, []):
            words = term.split()
            if term in known or all(w in known for w in words):
                composed[term] = words
            elif length < 4 and all(w in known + single for w in words):
                composed[term] = words
            elif parts := looped_split(words, isolated, everything):
                composed[term] = parts
            else:
                isolated.append(term)
        everything = everything + by_length.get(length, [])
    return isolated, composed


def looped_split(words: list[str], isolated: list, everything: list) -> list[str] | None:
    "Two parts, the first or the last of them one word or any group, by search in lists."
    for cut in range(1, len(words)):
        left, right = " ".join(words[:cut]), " ".join(words[cut:])
        if (left in isolated if cut == 1 else left in everything) and right in everything:
            return [left, right]
    return None


def looped_pairs(table: pd.DataFrame) -> pd.DataFrame:
    "Walk the rows, look the reversed pair up, add its count and mark rows one by one through `loc`."
    df = table.copy()
    df["delete"], seen = False, {}
    for i, row in df.iterrows():
        twin = seen.get((row["target"], row["source"]))
        if twin is None:
            seen[row["source"], row["target"]] = i
            df.loc[i, "delete"] = False
        else:
            df.loc[twin, "count"] += row["count"]
            df.loc[i, "delete"] = True
    return df[~df["delete"]].drop(columns="delete")


# ---- ours ----


class DictLinker:
    "The linker of the benchmark: ReXKG's candidates come from a file as well."

    def __init__(self, terms: pd.DataFrame):
        self.known = {t: Concept(c, t) for t, c in zip(terms.term, terms.cui) if c}

    def link(self, surfaces, types):
        return [self.known.get(s) for s in surfaces]


def as_counts(terms: pd.DataFrame, edges: pd.DataFrame) -> Counts:
    "The same input as counts of mentions and triples."
    mentions = Counter(
        {(t, k, "present"): n for t, k, n in zip(terms.term, terms.type, terms["count"])}
    )
    triples = Counter()
    for a, b, k, n in zip(edges.source, edges.target, edges.type, edges["count"]):
        triples[a, b, k, "present"] += n
    return Counts(mentions=mentions, triples=triples, reports=1)


def grouped_nodes(counts: Counts, linker: DictLinker) -> tuple:
    "Surfaces, all stages of merging, nodes, composed entities."
    table = surface_table(counts)
    types = dict(zip(table.index.tolist(), table.type.tolist()))
    lost = {s: why for s, kind in types.items() if (why := unfit_reason(s, kind))}
    fit = table[~table.index.isin(lost)]
    merging = merge_surfaces(fit, GraphOptions(linker=linker))
    nodes, key_of, claimed = node_table(fit, merging)
    nodes, _ = leave_to_one(
        nodes, dict(zip(fit.index.tolist(), fit.type.tolist())), key_of, claimed
    )
    return nodes, key_of, lost, compose(nodes, key_of)


def timed(call, *args):
    "Result and processor seconds."
    start = time.process_time()
    result = call(*args)
    return result, time.process_time() - start


class Stopped(Exception):
    pass


def stop(*_) -> None:
    raise Stopped


def capped(call, *args) -> tuple:
    "As `timed`, but stopped after LIMIT_S: (None, LIMIT_S)."
    signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT_S)
    try:
        return timed(call, *args)
    except Stopped:
        return None, float(LIMIT_S)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def construction_row(times: int, terms: pd.DataFrame, edges: pd.DataFrame) -> dict:
    "All steps at one size; what is stopped counts with the seconds until then, so that a ratio is a lower bound."
    t, e = copies(terms, ["term"], times), with_reversed(copies(edges, ["source", "target"], times))
    counts, linker = as_counts(t, e), DictLinker(t)
    structured, loop_nodes_s = capped(looped_structure, t)
    slow, loop_pairs_s = capped(looped_pairs, e)
    (nodes, key_of, lost, _), nodes_s = timed(grouped_nodes, counts, linker)
    triples, triples_s = timed(triple_table, counts, key_of, lost)
    fast, pairs_s = timed(rexkg_pairs, e)
    total = nodes_s + triples_s + pairs_s
    stopped = [
        name
        for name, result in (("structuring", structured), ("reversed pairs", slow))
        if result is None
    ]
    return {
        "size": f"{times}x",
        "terms": len(t),
        "rows": len(e),
        "nodes": len(nodes),
        "triples": len(triples[0]),
        "rexkg_structure_s": round(loop_nodes_s, 2),
        "rexkg_reversed_s": round(loop_pairs_s, 2),
        "nodes_s": round(nodes_s, 2),
        "triples_s": round(triples_s, 2),
        "reversed_s": round(pairs_s, 3),
        "reversed_ratio": round(loop_pairs_s / pairs_s, 1),
        "whole_ratio": round((loop_nodes_s + loop_pairs_s) / total, 1),
        "reversed_same_counts": slow is None or sorted(slow["count"]) == sorted(fast["count"]),
        "note": f"{' and '.join(stopped)} by loops stopped after {LIMIT_S} s" if stopped else "",
    }


# ---- growth ----

CLASSES = (
    "tiny small mild moderate large severe subtle".split(),
    "left right bilateral".split(),
    "stable unchanged improved worsened new".split(),
    "upper lower middle".split(),
)
SWAP = {w: c for c in CLASSES for w in c}
WORD = re.compile(r"\b(?:" + "|".join(SWAP) + r")\b")


def perturbed(count: int, seed: int = 0):
    """`count` reports: the packaged Open-i findings again and again, with changes, so that new sentences never end.

    Half of the words of size, side, course and level are drawn anew. One sentence in ten is left out. One report in
    twenty has two letters swapped.
    """
    rng = random.Random(seed)
    texts = [re.split(r"(?<=\.)\s+", s.findings) for s in read_openi_package() if s.findings]

    def other(m):
        return rng.choice(SWAP[m.group()]) if rng.random() < 0.5 else m.group()

    for i in range(count):
        kept = [s for s in texts[i % len(texts)] if rng.random() > 0.1] or texts[i % len(texts)]
        text = WORD.sub(other, " ".join(kept))
        if rng.random() < 0.05 and len(text) > 1:
            j = rng.randrange(len(text) - 1)
            text = text[:j] + text[j + 1] + text[j] + text[j + 2 :]
        yield f"r{i}", text


def growth_row(size: int, cache: int) -> dict:
    "One size, in this process; what is loaded once (report texts, lexicon) is loaded before the clock starts."
    import logging

    logging.getLogger("r2genkg").setLevel(logging.ERROR)
    build_graph(iter_annotations(perturbed(200)))
    base, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, time.perf_counter()
    graph, seconds = timed(lambda: build_graph(iter_annotations(perturbed(size), cache=cache)))
    return {
        "reports": size,
        "cache": cache,
        "sentences": graph.meta["sentences"],
        "cpu_s": round(seconds, 1),
        "wall_s": round(time.perf_counter() - start, 1),
        "reports_per_cpu_s": round(size / seconds),
        "nodes": len(graph.nodes),
        "triples": len(graph.triples),
        "peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "MiB_before": base,
    }


def growth_rows(sizes: list[int], cache: int):
    "Each size in a process of its own, so that the peak is its own."
    first = None
    for size in sizes:
        done = subprocess.run(
            [sys.executable, __file__, "--one", str(size), "--cache", str(cache)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        row = json.loads(done.stdout.splitlines()[-1])
        first = first or row["cpu_s"] / row["reports"]
        yield row | {"time_per_report_to_first": round(row["cpu_s"] / row["reports"] / first, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scales", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--rexkg", type=Path)
    parser.add_argument("--growth", type=int, nargs="*", default=[])
    parser.add_argument(
        "--cache",
        type=int,
        default=50_000,
        help="growth: distinct sentences remembered; 0: every sentence is annotated anew",
    )
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(growth_row(args.one, args.cache)))
        return
    rows = []

    def keep(row):
        rows.append(row)
        print(json.dumps(row), flush=True)
        if args.out:
            args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")

    if args.growth:
        for row in growth_rows(args.growth, args.cache):
            keep(row)
        return
    terms, edges = published(args.rexkg) if args.rexkg else synthetic()
    for times in args.scales:
        keep(construction_row(times, terms, edges))


if __name__ == "__main__":
    main()
