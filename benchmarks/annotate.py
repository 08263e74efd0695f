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
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd

from r2genkg.data.openi import read_openi_package
from r2genkg.extraction.annotate import annotate
from r2genkg.extraction.replay import Replay
from r2genkg.phantom.findings import sample_findings
from r2genkg.phantom.wording import write_report
from r2genkg.text.label_words import explain_labels
from r2genkg.text.labels import RulesLabeler, label_reports
from r2genkg.text.rules import RulesAnnotator
from r2genkg.text.sentences import split_sentences

#: CheXpert label -> MeSH heading of the Open-i tables.
MESH = {
    "Cardiomegaly": "Cardiomegaly",
    "Pleural Effusion": "Pleural Effusion",
    "Pneumothorax": "Pneumothorax",
    "Atelectasis": "Pulmonary Atelectasis",
    "Edema": "Pulmonary Edema",
    "Pneumonia": "Pneumonia",
    "Consolidation": "Consolidation",
    "Fracture": "Fractures, Bone",
}


#: MeSH headings that CheXpert's rules count to a label as well.
CHEXPERT_ALSO = {
    "Pulmonary Congestion": ("Edema",),
    "Heart Failure": ("Edema",),
    "Hydropneumothorax": ("Pneumothorax", "Pleural Effusion"),
    "Hemopneumothorax": ("Pneumothorax", "Pleural Effusion"),
}


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

    return {
        "reports": len(reports),
        "sentences": len(sentences),
        "distinct sentences": len(distinct),
        "annotated sentences/s, all distinct": rate(
            lambda: engine.annotate(distinct), len(distinct)
        ),
        "annotated reports/s, with cache": rate(lambda: annotate(reports), len(reports)),
        "labelled reports/s, cold cache": rate(
            lambda: RulesLabeler().label_all(reports), len(reports)
        ),
        "split reports/s": rate(lambda: [split_sentences(r) for r in reports], len(reports)),
    }


def token_types(sentence) -> list[str]:
    """Type of each token, O outside entities."""
    types = ["O"] * len(sentence.tokens)
    for e in sentence.entities:
        types[e.start : e.end + 1] = [e.rexkg_type] * (e.end - e.start + 1)
    return types


def gpt4o(path: Path) -> dict:
    """Token F1 of the rules against GPT-4o's answers, typed, untyped and per type."""
    engine, hits, found, wanted, both = RulesAnnotator(), Counter(), Counter(), Counter(), 0
    for sentence in (s for report in Replay(path).reports.values() for s in report):
        for g, p in zip(
            token_types(sentence), token_types(engine.annotate_sentence(sentence.text)), strict=True
        ):
            wanted[g] += 1
            found[p] += 1
            hits[g] += g == p
            both += g != "O" != p
    kinds = sorted(set(wanted) - {"O"})
    total = [sum(c[k] for k in kinds) for c in (hits, found, wanted)]
    return {
        "typed token F1": round(f1(*total), 4),
        "untyped token F1": round(f1(both, *total[1:]), 4),
        "per type": {k: round(f1(hits[k], found[k], wanted[k]), 4) for k in kinds},
    }


def headings(row: str) -> set[str]:
    """The MeSH headings of a report, and those that CheXpert counts to one of its labels."""
    terms = [[part.strip() for part in term.split("/")] for term in row.split(";")]
    found = {term[0] for term in terms}
    also = {CHEXPERT_ALSO[term[0]] for term in terms if term[0] in CHEXPERT_ALSO}
    if any(term[0] == "Cardiac Shadow" and "enlarged" in term for term in terms):
        also |= {("Cardiomegaly",)}
    return found | {f"CheXpert's {name}" for names in also for name in names}


def mesh(path: Path) -> dict:
    """F1 of the rules labeler against MeSH, and the ten commonest disagreements by kind.

    A label that the labeler calls uncertain counts as not positive. The second macro F1 also takes the headings that
    CheXpert counts to the label (vascular congestion and heart failure as Edema). The ceiling is the macro F1 of a
    labeler that is right wherever it is sure: only what the text hedges or denies is missed.
    """
    table = pd.read_csv(path).fillna("")
    heads = [headings(row) for row in table["MeSH"]]
    texts = (table["findings"] + " " + table["impression"]).tolist()
    labels, scores, wider, ceiling, kinds = label_reports(texts), {}, {}, {}, Counter()
    for label, head in MESH.items():
        gold, mine = np.array([head in h for h in heads]), (labels[label] == 1).to_numpy()
        also = gold | np.array([f"CheXpert's {label}" in h for h in heads])
        scores[label], wider[label] = count_f1(gold, mine), count_f1(also, mine)
        not_stated = gold & labels[label].isin([0, -1]).to_numpy()
        ceiling[label] = count_f1(gold, gold & ~not_stated)
        for i in np.flatnonzero(gold != mine):
            kinds[disagreement(texts[i], label, labels.loc[i, label], gold[i])] += 1
    return {
        "macro F1": mean_of(scores),
        "per label": scores,
        "macro F1, with the headings that CheXpert counts to the label": mean_of(wider),
        "per label, with these headings": wider,
        "ceiling: macro F1 if only what the text hedges or denies is missed": mean_of(ceiling),
        "commonest disagreements": dict(kinds.most_common(10)),
    }


def count_f1(gold: np.ndarray, mine: np.ndarray) -> float:
    """F1 of two columns of yes and no."""
    return round(f1((gold & mine).sum(), mine.sum(), gold.sum()), 4)


def mean_of(scores: dict[str, float]) -> float:
    """The macro average."""
    return round(float(np.mean(list(scores.values()))), 4)


def disagreement(text: str, label: str, value: float, gold: bool) -> str:
    """One disagreement in words: the label, its value with the words behind it, and MeSH's answer."""
    named = {1: "positive", 0: "negative", -1: "uncertain"}.get(value, "not mentioned")
    reasons = [r for r in explain_labels(text) if r.label == label]
    shown = ", ".join(sorted({r.sentence[r.start : r.end].lower() for r in reasons})[:2])
    return f"{label}: text {named} ({shown}), MeSH {'yes' if gold else 'no'}"


def facts(sentences) -> tuple[set, set]:
    """Entities and relations of a report as sets."""
    return (
        {(k, e) for k, s in enumerate(sentences) for e in s.entities},
        {
            (k, s.entities[r.head], s.entities[r.tail], r.type)
            for k, s in enumerate(sentences)
            for r in s.relations
        },
    )


def phantoms(style: str, n: int = 300, seed: int = 20_261) -> dict:
    """Entities, relations and labels on unseen phantoms, whose truth is exact."""
    rng = np.random.default_rng(seed)
    reports = [write_report(sample_findings(rng), rng, style) for _ in range(n)]
    counts = np.zeros((2, 3))
    for report, mine in zip(reports, annotate(r.text for r in reports), strict=True):
        for k, (found, wanted) in enumerate(zip(facts(mine), facts(report.sentences), strict=True)):
            counts[k] += len(found & wanted), len(found), len(wanted)
    rows = [
        {k: v for k, v in row.items() if v == v}
        for row in label_reports([r.text for r in reports]).to_dict("records")
    ]
    truth = [r.labels for r in reports]
    same = sum(len(a.items() & b.items()) for a, b in zip(rows, truth, strict=True))
    return {
        "entity F1": round(f1(*counts[0]), 4),
        "relation F1": round(f1(*counts[1]), 4),
        "label F1": round(f1(same, sum(map(len, rows)), sum(map(len, truth))), 4),
        "reports with all labels exact": round(
            float(np.mean([a == b for a, b in zip(rows, truth, strict=True)])), 4
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", default=os.environ.get("R2GENKG_SHARED", "../shared") + "/data")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    result = {
        "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
        "speed": speed(),
    }
    for style in "AB":
        result[f"phantoms, style {style}"] = phantoms(style)
    for name, job, parts in (
        ("GPT-4o answers", gpt4o, ("rexkg", "gpt4o_entities_500.json")),
        ("MeSH", mesh, ("iu_xray", "indiana_reports.csv")),
    ):
        path = Path(args.shared).joinpath(*parts)
        result[name] = job(path) if path.exists() else "not run: file not here"
    print(json.dumps(result, indent=2))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
