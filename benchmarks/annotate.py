"""Speed and quality of the rules annotator and the rules labeler.

    python benchmarks/annotate.py [--shared ../shared/data] [--json FILE]

Speed on the Open-i report texts that torchxrayvision ships, one core, without the cache of repeated sentences; quality
on 300 phantoms per style; with the shared development data also against ReXKG's GPT-4o answers and MeSH.
"""
import argparse
import json
import os
import platform
import time
from collections import Counter
from itertools import islice
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd

from r2genkg.annotate import Replay, annotate
from r2genkg.labels import RulesLabeler, label_reports
from r2genkg.lexicon import split_sentences
from r2genkg.openi import read_openi_package
from r2genkg.rules import RulesAnnotator

#: CheXpert label -> MeSH heading of the Open-i tables.
MESH = {"Cardiomegaly": "Cardiomegaly", "Pleural Effusion": "Pleural Effusion", "Pneumothorax": "Pneumothorax",
        "Atelectasis": "Pulmonary Atelectasis", "Edema": "Pulmonary Edema", "Pneumonia": "Pneumonia",
        "Consolidation": "Consolidation", "Fracture": "Fractures, Bone"}


def f1(hits: float, found: float, wanted: float) -> float:
    """F1 from counts; 1 if there was nothing to find and nothing was found."""
    return 2 * hits / (found + wanted) if found + wanted else 1.0


def speed() -> dict:
    """Rates on one core; the fastest of three passes."""
    reports = [s.report("findings+impression") for s in read_openi_package()]
    sentences = [s for r in reports for s in split_sentences(r)]
    distinct = list(dict.fromkeys(sentences))
    engine = RulesAnnotator()
    engine.annotate(distinct[:500])

    def rate(job, n):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            job()
            times.append(time.perf_counter() - start)
        return round(n / min(times), 1)

    return {"reports": len(reports), "sentences": len(sentences), "distinct sentences": len(distinct),
            "annotated sentences/s, all distinct": rate(lambda: engine.annotate(distinct), len(distinct)),
            "annotated reports/s, with cache": rate(lambda: annotate(reports), len(reports)),
            "labelled reports/s, cold cache": rate(lambda: RulesLabeler().label_all(reports), len(reports)),
            "split reports/s": rate(lambda: [split_sentences(r) for r in reports], len(reports))}


def token_types(sentence) -> list[str]:
    """Type of each token, O outside entities."""
    types = ["O"] * len(sentence.tokens)
    for e in sentence.entities: types[e.start:e.end + 1] = [e.type] * (e.end - e.start + 1)
    return types


def gpt4o(path: Path) -> dict:
    """Token F1 of the rules against GPT-4o's answers, typed, untyped and per type."""
    engine, hits, found, wanted, both = RulesAnnotator(), Counter(), Counter(), Counter(), 0
    for sentence in (s for report in Replay(path).reports.values() for s in report):
        for g, p in zip(token_types(sentence), token_types(engine.annotate_sentence(sentence.text)), strict=True):
            wanted[g] += 1; found[p] += 1; hits[g] += g == p; both += g != "O" != p
    kinds = sorted(set(wanted) - {"O"})
    total = [sum(c[k] for k in kinds) for c in (hits, found, wanted)]
    return {"typed token F1": round(f1(*total), 4), "untyped token F1": round(f1(both, *total[1:]), 4),
            "per type": {k: round(f1(hits[k], found[k], wanted[k]), 4) for k in kinds}}


def mesh(path: Path) -> dict:
    """F1 of the rules labeler against MeSH; uncertain counts as not positive."""
    table = pd.read_csv(path).fillna("")
    heads = [{h.split("/")[0].strip() for h in row.split(";")} for row in table["MeSH"]]
    labels = label_reports(table["findings"] + " " + table["impression"])
    scores = {}
    for label, head in MESH.items():
        gold, mine = np.array([head in h for h in heads]), (labels[label] == 1).to_numpy()
        scores[label] = round(f1((gold & mine).sum(), mine.sum(), gold.sum()), 4)
    return {"macro F1": round(float(np.mean(list(scores.values()))), 4), "per label": scores}


def phantoms(style: str, n: int = 300, seed: int = 20_261) -> dict:
    """Entities, relations and labels on unseen phantoms, whose truth is exact."""
    from r2genkg.grammar import write_report
    from r2genkg.phantom import sample_findings
    rng = np.random.default_rng(seed)
    reports = [write_report(sample_findings(rng), rng, style) for _ in range(n)]
    counts = {"entity": Counter(), "relation": Counter()}
    for report, mine in zip(reports, annotate(r.text for r in reports), strict=True):
        for side, sentences in (("wanted", report.sentences), ("found", mine)):
            spans = {(k, e) for k, s in enumerate(sentences) for e in s.entities}
            links = {(k, s.entities[r.head], s.entities[r.tail], r.type) for k, s in enumerate(sentences) for r in s.relations}
            for kind, items in (("entity", spans), ("relation", links)):
                counts[kind][side] = counts[kind][side] + len(items)
                counts[kind]["hits"] += len(items & last[kind]) if side == "found" else 0
                if side == "wanted": last = {"entity": spans, "relation": links} if kind == "relation" else {"entity": spans, "relation": set()}
    table = label_reports([r.text for r in reports])
    exact = [{k: v for k, v in row.items() if v == v} == r.labels for row, r in zip(table.to_dict("records"), reports, strict=True)]
    return {f"{k} F1": round(f1(c["hits"], c["found"], c["wanted"]), 4) for k, c in counts.items()} | {"reports with all labels exact": round(float(np.mean(exact)), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", default=os.environ.get("R2GENKG_SHARED", "../shared") + "/data")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    result = {"machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}", "speed": speed()}
    for style in "AB": result[f"phantoms, style {style}"] = phantoms(style)
    for name, job, parts in (("GPT-4o answers", gpt4o, ("rexkg", "gpt4o_entities_500.json")), ("MeSH", mesh, ("iu_xray", "indiana_reports.csv"))):
        path = Path(args.shared).joinpath(*parts)
        result[name] = job(path) if path.exists() else "not run: file not here"
    print(json.dumps(result, indent=2))
    if args.json: Path(args.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__": main()
